//! `dump`, `check` and `decode` on the data directory of a node that does not run.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gopherstore::{
    Client,
    history::History,
    storage::{
        files::Directory,
        recovery::LogEnd,
        segment::SegmentId,
        writer::{Layout, LogWriter},
    },
};

use crate::{
    Run, finish,
    nodes::{
        durable::{Durable, command},
        node::{Node, wait_for},
    },
    program, run, run_at, text,
};

/// A deadline in the far future, in milliseconds since 1970.
const FAR: u64 = 4_102_444_800_000;

/// Starts a single node with the data directory `data` in a folder. It writes a snapshot after `snapshot_bytes` of log.
fn start(dir: &Path, snapshot_bytes: &str) -> Durable {
    let mut command = command(dir, "always");
    command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", snapshot_bytes);
    Durable::of(command, dir)
}

/// Stores some entries of each kind.
fn fill(client: &mut Client) {
    let mut pipeline = client.pipeline();
    for n in 0..2_000_u32 {
        pipeline.set(&n.to_be_bytes(), &n.to_le_bytes().repeat(4));
    }
    pipeline.set(b"long", &[7; 3 << 20]).set(b"", b"");
    assert!(pipeline.run().unwrap().iter().all(Result::is_ok));
    client.set_at(b"session", b"alice", FAR).unwrap();
    client.del(&3_u32.to_be_bytes()).unwrap();
}

/// The frames of a dump, sorted, and its end mark.
fn sorted(dump: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (entries, mark) = dump.split_at(dump.len() - 55);
    let frames = gopherstore::wire::request::frames(entries);
    let mut frames: Vec<Vec<u8>> = frames.map(|frame| frame.bytes().to_vec()).collect();
    frames.sort_unstable();
    (frames, mark.to_vec())
}

#[test]
fn a_stopped_nodes_directory_is_dumped_as_the_running_node_is() {
    // From the log alone, and from a snapshot with a log behind it.
    for snapshot_bytes in ["100000000", "50000"] {
        let dir = tempfile::tempdir().unwrap();
        let (data, file) = (dir.path().join("data"), dir.path().join("stopped.gbp"));
        let node = start(dir.path(), snapshot_bytes);
        fill(&mut node.client());
        let running = run_at(&node.addr, &["dump"], b"");
        assert_eq!((running.code, &*running.err), (0, ""));
        let offline = ["dump", "--data-dir", text(&data), text(&file)];
        run(&offline, b"").expect_failure(8, &["another process uses this data directory"]);
        assert!(!file.exists());
        assert_eq!(node.stop().code(), Some(0));
        let before = contents(&data);
        run(&offline, b"").expect(0, "", "");
        let stopped = fs::read(&file).unwrap();
        assert!(sorted(&stopped) == sorted(&running.out), "other entries");
        let piped = run(&["dump", "--data-dir", text(&data)], b"").out;
        assert!(sorted(&piped) == sorted(&stopped), "other entries");
        run(&offline, b"").expect_failure(8, &["stopped.gbp exists", "--force"]);
        assert!(contents(&data) == before, "the directory is as it was");

        let to = Node::start();
        run_at(&to.addr.to_string(), &["load", text(&file)], b"").expect(0, "", "");
        let mut client = Client::connect(&to.addr.to_string()).unwrap();
        assert_eq!(client.get(b"long").unwrap(), Some(vec![7; 3 << 20]));
        assert_eq!(client.get(b"session").unwrap(), Some(b"alice".to_vec()));
        assert_eq!(client.get(&3_u32.to_be_bytes()).unwrap(), None);
        assert!(client.status().unwrap().contains("keys: 2002\n"));
    }
}

/// The names and bytes of all files.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort_unstable();
    files
}

#[test]
fn a_directory_without_data_is_not_dumped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dump = |arguments: &[&str]| -> Run {
        let mut command = program();
        command
            .current_dir(dir.path())
            .args(["dump", "--data-dir", "data", "copy.gbp"]);
        finish(command.args(arguments), b"")
    };
    dump(&[]).expect_failure(8, &["cannot open the data directory"]);
    fs::create_dir(&data).unwrap();
    dump(&[]).expect_failure(8, &["it has none of a node's files"]);
    let identity = "gopherstore data directory, format 1\ncluster = \"c\"\nnode = \"n\"\n";
    fs::write(data.join("identity"), identity).unwrap();
    dump(&[]).expect_failure(8, &["nothing to copy: data has no data set"]);
    fs::write(
        data.join("identity"),
        identity.replace("format 1", "format 2"),
    )
    .unwrap();
    dump(&[]).expect_failure(7, &["data/identity: its first line is", "format 2"]);
    fs::write(
        data.join("identity"),
        [identity.as_bytes(), &[0; 100]].concat(),
    )
    .unwrap();
    let damaged = "data/identity, offset 62: the file is damaged; restore that file";
    dump(&[]).expect_failure(7, &[damaged]);
    for place in [
        &["--addr", "127.0.0.1:1"][..],
        &["--config", "cluster.toml"],
    ] {
        dump(place).expect_failure(2, &["--data-dir asks no node; leave out", place[0]]);
    }
    assert!(!dir.path().join("copy.gbp").exists());
}

/// The directory of a stopped node with 100 keys. The node wrote a snapshot after each `snapshot_bytes` of log.
fn stopped(snapshot_bytes: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), snapshot_bytes.unwrap_or("100000000"));
    let mut client = node.client();
    for n in 0..2_000_u32 {
        client.set(&(n % 100).to_be_bytes(), &[7; 10]).unwrap();
    }
    wait_for("a snapshot, and the removal of the log before it", || {
        let first = dir.path().join("data/log-00000001-0000000000000001");
        (snapshot_bytes.is_none() || !first.exists()).then_some(())
    });
    drop(client);
    assert_eq!(node.stop().code(), Some(0));
    dir
}

/// The sorted names of the files in the directory `data`.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("data")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

/// Runs `check` on the directory `data`, which must not change it.
fn check(dir: &Path) -> (i32, String, String) {
    let before = contents(&dir.join("data"));
    let mut command = program();
    command.current_dir(dir).args(["check", "data"]);
    let run = finish(&mut command, b"");
    assert!(
        contents(&dir.join("data")) == before,
        "check changes nothing"
    );
    (run.code, String::from_utf8(run.out).unwrap(), run.err)
}

/// Returns whether a node starts with a copy of the directory.
fn starts(dir: &Path) -> bool {
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("data");
    fs::create_dir(&to).unwrap();
    for name in names(dir) {
        fs::copy(dir.join("data").join(&name), to.join(&name)).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .args(["--addr", "127.0.0.1:0", "--data-dir", "data"])
        .current_dir(copy.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let _ = child.kill();
    child.wait().unwrap();
    line.contains(" ready on ")
}

#[test]
fn check_tells_of_each_file_and_of_what_a_node_would_recover() {
    let dir = stopped(Some("20000"));
    let (code, out, err) = check(dir.path());
    assert_eq!((code, &*err), (0, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let files = names(dir.path())
        .into_iter()
        .filter(|name| name.contains('-'));
    let is_told = |name: &String| {
        lines
            .iter()
            .any(|line| line.starts_with(&format!("{name}: ")))
    };
    for name in files {
        assert!(is_told(&name), "{name}: {out}");
    }
    assert!(lines[0].starts_with("snapshot-00000001-"), "{out}");
    assert!(lines[0].contains(": 100 keys of index "), "{out}");
    assert!(
        lines[0].contains(", whole, needs the log up to index "),
        "{out}"
    );
    let [.., owner, data] = lines[..] else {
        panic!("{out}")
    };
    assert_eq!(owner, "data of node \"single\" of cluster \"single\"");
    assert!(
        data.starts_with("100 keys up to index 2001, digest "),
        "{out}"
    );
    let mut logs = lines.iter().filter(|line| line.starts_with("log-"));
    assert!(
        logs.next_back().unwrap().ends_with(", whole, sealed"),
        "{out}"
    );
    assert!(starts(dir.path()));
}

#[test]
fn a_directory_without_a_nodes_files_has_nothing_to_check() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    let expected = (
        1,
        String::new(),
        "gopherstore-cli: data: it has none of a node's files\n".to_owned(),
    );
    assert_eq!(check(dir.path()), expected);
    fs::write(dir.path().join("data/letter.txt"), "").unwrap();
    assert_eq!(check(dir.path()), expected);
    run(&["check", ""], b"").expect_failure(2, &["an empty path"]);
    run(&["check", "/no/such"], b"").expect_failure(8, &["cannot open the data directory"]);
}

/// Opening a pipe waits for its other end, which is never there.
#[test]
fn a_pipe_in_a_directory_is_an_error_and_no_wait() {
    let dir = stopped(None);
    let data = dir.path().join("data");
    for name in [
        "lock",
        "identity",
        "log-00000001-0000000000000002",
        "snapshot-00000001-0000000000000001",
    ] {
        let copy = tempfile::tempdir().unwrap();
        for file in names(dir.path()).iter().filter(|file| *file != name) {
            fs::copy(data.join(file), copy.path().join(file)).unwrap();
        }
        pipe(&copy.path().join(name));
        for command in [&["check"][..], &["dump", "--data-dir"]] {
            let run = run(&[command, &[text(copy.path())]].concat(), b"");
            assert_eq!(run.code, 8, "{name}: {run:?}");
            assert!(run.err.contains("it is no regular file"), "{}", run.err);
        }
    }
    let alone = dir.path().join("pipe");
    pipe(&alone);
    run(&["check", text(&alone)], b"").expect_failure(8, &["Not a directory"]);
}

fn pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn check_tells_a_torn_end_from_damage() {
    let dir = stopped(None);
    let log = names(dir.path())
        .into_iter()
        .rfind(|name| name.starts_with("log-"));
    let (name, path) = (
        log.clone().unwrap(),
        dir.path().join("data").join(log.unwrap()),
    );
    let whole = fs::read(&path).unwrap();
    let groups: Vec<usize> = (0..whole.len() - 4)
        .filter(|at| whole[*at..].starts_with(b"GRP\x01"))
        .collect();
    // An idle node seals the log too, so there may be two seals.
    let has_records = |at: &usize| whole[at + 8..at + 12] != [0; 4];
    let last = groups.iter().copied().rfind(has_records).unwrap();
    let seal = *groups.last().unwrap();
    // The seal is missing, and half of the group before it.
    fs::write(&path, &whole[..last + 90]).unwrap();
    let (code, out, err) = check(dir.path());
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.contains(&format!("{name}: records ")), "{out}");
    assert!(
        out.contains(&format!(" bytes, torn at offset {last}\n")),
        "{out}"
    );
    assert!(
        out.contains(&format!(
            "of {name}, from offset {last} on: the last write was torn\n"
        )),
        "{out}"
    );
    assert!(out.contains("100 keys up to index 2000, digest "), "{out}");
    assert!(starts(dir.path()));
    // A changed byte of a group that was durable by the seal.
    for at in [last, last + 12, last + 84, last + 90] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let (code, out, err) = check(dir.path());
        assert_eq!(code, 7, "{out}");
        assert!(
            err.contains(&format!(
                "data/{name}, offset {last}: record 2001 is damaged"
            )),
            "{err}"
        );
        assert!(
            out.contains(&format!(" bytes, damaged at offset {last}\n")),
            "{out}"
        );
        let end = "data of node \"single\" of cluster \"single\"\na node would recover nothing\n";
        assert!(out.ends_with(end), "{out}");
        let data = dir.path().join("data");
        let dump = ["dump", "--data-dir", text(&data)];
        run(&dump, b"").expect_failure(7, &["record 2001 is damaged"]);
    }
    assert!(!starts(dir.path()));
    assert!(seal > last);
}

#[test]
fn check_of_a_directory_that_is_not_whole_agrees_with_the_node() {
    let dir = stopped(Some("20000"));
    let data = dir.path().join("data");
    let named = |prefix: &str| -> Vec<String> {
        let names = names(dir.path()).into_iter();
        names.filter(|name| name.starts_with(prefix)).collect()
    };
    fs::write(data.join("new-snapshot"), b"GOPH").unwrap();
    fs::write(data.join("new-00000001-00000000000000ff"), b"").unwrap();
    let (code, out, _) = check(dir.path());
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("new-snapshot: 4 bytes, not finished, not read\n"),
        "{out}"
    );
    // The log is missing that makes the snapshot exact.
    let snapshot = named("snapshot-").pop().unwrap();
    let away = tempfile::tempdir().unwrap();
    let logs = named("log-");
    for name in &logs {
        fs::rename(data.join(name), away.path().join(name)).unwrap();
    }
    let (code, out, err) = check(dir.path());
    assert_eq!(code, 7, "{out}");
    assert!(
        err.contains("needs the log up to index ") && err.contains("there is none"),
        "{err}"
    );
    assert!(!starts(dir.path()));
    // Both are missing: there is no data.
    let bytes = fs::read(data.join(&snapshot)).unwrap();
    fs::remove_file(data.join(&snapshot)).unwrap();
    let (code, out, err) = check(dir.path());
    assert_eq!((code, &*err), (1, ""), "{out}");
    assert!(
        out.ends_with("of cluster \"single\"\nno data set\n"),
        "{out}"
    );
    assert!(starts(dir.path()));
    // The snapshot is missing: the log begins too late.
    for name in &logs {
        fs::rename(away.path().join(name), data.join(name)).unwrap();
    }
    let (code, out, err) = check(dir.path());
    assert_eq!(code, 7, "{out}");
    assert!(err.contains("record 1 is not there"), "{err}");
    assert!(!starts(dir.path()));
    // A byte of the snapshot is changed.
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    fs::write(data.join(&snapshot), &flipped).unwrap();
    let (code, out, err) = check(dir.path());
    assert_eq!(code, 7, "{out}");
    assert!(err.contains(&format!("data/{snapshot}, offset ")), "{err}");
    assert!(
        out.contains(&format!(
            "{snapshot}: {} bytes, damaged at offset ",
            bytes.len()
        )),
        "{out}"
    );
    assert!(out.contains("not judged\n"), "{out}");
    fs::write(data.join(&snapshot), &bytes).unwrap();
    // Names are shown, and compared with nothing.
    let identity = fs::read_to_string(data.join("identity")).unwrap();
    fs::write(
        data.join("identity"),
        identity.replace("node = \"single\"", "node = \"n7\""),
    )
    .unwrap();
    let (code, out, _) = check(dir.path());
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("data of node \"n7\" of cluster \"single\"\n"),
        "{out}"
    );
    assert!(!starts(dir.path()));
    // The file that names the owner is missing.
    fs::remove_file(data.join("identity")).unwrap();
    let (code, out, err) = check(dir.path());
    assert_eq!(code, 7, "{out}");
    assert!(err.contains("no file identity"), "{err}");
    assert!(!starts(dir.path()));
    // As the message says.
    let identity =
        "gopherstore data directory, format 1\ncluster = \"single\"\nnode = \"single\"\n";
    fs::write(data.join("identity"), identity).unwrap();
    let (code, out, err) = check(dir.path());
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(starts(dir.path()));
}

/// The files are sparse. They have more bytes than the machine has memory.
#[test]
fn files_that_are_too_long_are_read_as_far_as_a_node_writes_them() {
    const LEN: u64 = 300 << 30;
    let dir = stopped(None);
    let data = dir.path().join("data");
    let check = || run(&["check", text(&data)], b"");
    let expect_damage = |found: &str| {
        for command in [&["check"][..], &["dump", "--data-dir"]] {
            let run = run(&[command, &[text(&data)]].concat(), b"");
            assert_eq!(run.code, 7, "{run:?}");
            assert!(run.err.contains(found), "{}", run.err);
        }
    };
    let lengthen = |name: &str| {
        let path = data.join(name);
        let file = fs::File::options().append(true).create(true).open(path);
        file.unwrap().set_len(LEN).unwrap();
    };
    let logs = || {
        names(dir.path())
            .into_iter()
            .filter(|name| name.starts_with("log-"))
    };
    lengthen(&logs().next_back().unwrap());
    let whole = check();
    let out = String::from_utf8_lossy(&whole.out);
    assert_eq!((whole.code, &*whole.err), (0, ""), "{out}");
    assert!(out.contains(", whole, sealed\n"), "{out}");
    let node = start(dir.path(), "100000000");
    node.client().set(b"more", b"v").unwrap();
    assert_eq!(node.stop().code(), Some(0));
    assert_eq!(check().code, 0);

    let last = logs().next_back().unwrap();
    let next = SegmentId::of_name(&last).unwrap().next().name();
    lengthen(&next);
    expect_damage(&format!(
        "data/{next}, offset 0: the header of the segment is damaged"
    ));
    fs::remove_file(data.join(&next)).unwrap();

    let snapshot = "snapshot-00000001-0000000000000001";
    lengthen(snapshot);
    expect_damage(&format!(
        "data/{snapshot}, offset 0: this is no header of a snapshot"
    ));
}

#[test]
fn a_full_copy_that_was_not_finished_is_no_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let identity = "gopherstore data directory, format 1\ncluster = \"c\"\nnode = \"n\"\n";
    fs::write(data.join("identity"), identity).unwrap();
    let files = Directory::existing(&data).unwrap();
    let id = SegmentId {
        chain: 2,
        number: 1,
    };
    let end = LogEnd {
        next_index: 5,
        ..LogEnd::default()
    };
    let none = History::default();
    let layout = Layout {
        segment_bytes: 4_096,
        is_filled: true,
    };
    drop(LogWriter::begin(&files, id, end, &none, std::sync::Arc::new(|| 1), layout).unwrap());
    let (code, out, err) = check(dir.path());
    assert_eq!((code, &*err), (1, ""), "{out}");
    let told = "log-00000002-0000000000000001: 4096 bytes, behind a full copy that was not finished, not read\n";
    assert!(out.starts_with(told), "{out}");
    assert!(out.ends_with("no data set\n"), "{out}");
    let dump = ["dump", "--data-dir", text(&data)];
    run(&dump, b"").expect_failure(8, &["has no data set"]);
}
