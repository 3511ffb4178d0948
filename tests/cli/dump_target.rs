//! `dump` as to what it writes to: files, links, pipes and devices.

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use gopherstore::{
    client::Client,
    history::{EpochStart, History},
    replication::core::liveness::SILENT_HEARTBEATS,
    wire::{
        Request, Status,
        replication::{BatchEncoder, Epochs, Fields, FollowAnswer, Message, Start, StreamOpcode},
    },
};

use crate::{
    bench, ended,
    nodes::{cluster::Cluster, node::Node, tools},
    program, run_at, set, start,
    support::{
        PATIENCE, Peer, in_time, next_frame, request, response, unused_addr, wait_for_close,
        wait_until,
    },
    tail::cluster,
};

const HEARTBEAT: Duration = Duration::from_millis(100);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A shell that runs the program after `before`, in the same process.
fn after(before: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .env_remove("GOPHERSTORE_ADDR");
    command
}

/// The response to a FOLLOW that begins a copy, and the copy's first part: one entry.
fn begun() -> Vec<u8> {
    let start = EpochStart {
        epoch: 1,
        nonce: 7,
        start_index: 1,
    };
    let history = History::new(vec![start]).unwrap();
    let mut value = Vec::new();
    FollowAnswer {
        start: Start::Snapshot,
        history: Epochs::of(&history).unwrap(),
    }
    .encode(&mut value);
    let mut out = response(Status::Ok.byte(), &value);
    let begin = Message::SnapshotBegin {
        epoch: 1,
        keys: 1,
        bytes: 2,
        history: Epochs::of(&history).unwrap(),
    };
    begin.encode(&mut out).unwrap();
    let (mut frame, key, value) = (Vec::new(), b"k", b"v");
    Request::Set { key, value }.encode(&mut frame).unwrap();
    let mut chunk = BatchEncoder::new(&mut out, StreamOpcode::SnapshotChunk);
    assert!(chunk.push(&frame));
    chunk.finish(|count| Fields::SnapshotChunk {
        epoch: 1,
        sequence: 0,
        count,
    });
    out
}

fn end() -> Vec<u8> {
    let mut out = Vec::new();
    let end = Message::SnapshotEnd {
        epoch: 1,
        index: 1,
        digest: 0,
        chunks: 1,
    };
    end.encode(&mut out).unwrap();
    out
}

/// A node that begins a snapshot for each FOLLOW, and ends it when the test asks for it.
struct Halting {
    /// Goes before the peer, whose threads wait for it.
    go_on: mpsc::Sender<()>,
    peer: Peer,
}

impl Halting {
    fn start() -> Halting {
        let (go_on, told) = mpsc::channel();
        let told = Arc::new(Mutex::new(told));
        let peer = Peer::start(move |_, mut stream| {
            let Some(frame) = next_frame(&mut stream) else {
                return;
            };
            if !matches!(request(&frame), Request::Watch { .. }) {
                let _ = stream.write_all(&response(Status::Ok.byte(), b"role: leader\n"));
                return;
            }
            let _ = stream.write_all(&begun());
            if told.lock().unwrap().recv().is_ok() {
                let _ = stream.write_all(&end());
            }
            wait_for_close(&mut stream);
        });
        Halting { go_on, peer }
    }

    /// Starts a dump and waits until it has begun the file.
    fn dump(&self, folder: &Path, command: &mut Command, options: &[&str]) -> Child {
        let before = names(folder).len();
        let child = start(
            command
                .args(["--addr", &self.peer.addr, "--timeout", "60s", "dump"])
                .args(options),
        );
        wait_until("the unfinished file", || names(folder).len() > before);
        child
    }
}

#[test]
fn a_new_file_is_its_owners_alone_and_one_that_replaces_another_has_its_mode() {
    let cluster = cluster(2, "");
    cluster.client(0).set(b"k", b"v").unwrap();
    let addr = cluster.addr(0).to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    let dump = |options: &[&str]| {
        let mut command = after("umask 0");
        let child = start(
            command
                .args(["--addr", &addr, "dump", text(&file)])
                .args(options),
        );
        ended(child)
    };
    dump(&[]).expect(0, "", "");
    assert_eq!(mode(&file), 0o600);
    let whole = fs::read(&file).unwrap();
    for kept in [0o600, 0o640, 0o444] {
        fs::remove_file(&file).unwrap();
        fs::write(&file, b"older").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(kept)).unwrap();
        dump(&[]).expect_failure(8, &["copy.gbp exists, and is as it was", "--force"]);
        assert_eq!(fs::read(&file).unwrap(), b"older");
        dump(&["--force"]).expect(0, "", "");
        assert_eq!(
            (mode(&file), fs::read(&file).unwrap()),
            (kept, whole.clone())
        );
    }
    fs::remove_file(&file).unwrap();
    dump(&["--force"]).expect(0, "", "");
    assert_eq!(
        (mode(&file), names(dir.path())),
        (0o600, vec!["copy.gbp".to_owned()])
    );
}

#[test]
fn an_unwritable_target_is_an_error_before_the_node_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("there"), b"older").unwrap();
    symlink(at("there"), at("link")).unwrap();
    symlink(at("nothing"), at("dangling")).unwrap();
    let before = names(dir.path());
    for (name, expected) in [
        ("there", "exists, and is as it was; replace it with --force"),
        ("link", "exists, and is as it was; replace it with --force"),
        ("dangling", "it is a symbolic link to nothing"),
        ("", "it is a folder; name a file in it"),
        ("no/such/folder", "no such file or directory"),
        ("new/", "there is no such folder"),
        ("there/file", "not a directory"),
    ] {
        let run = run_at(&unused_addr(), &["dump", text(&at(name))], b"");
        assert_eq!(run.code, 8, "{name}: {run:?}");
        let said = run.err.to_lowercase();
        assert!(said.contains(expected), "{name}: {run:?}");
    }
    assert_eq!(names(dir.path()), before);
    assert_eq!(fs::read(at("there")).unwrap(), b"older");
}

#[test]
fn a_symbolic_link_stays_one_and_the_file_that_it_names_is_replaced() {
    let node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let (link, folder) = (dir.path().join("link"), dir.path().join("folder"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("copy.gbp"), b"older").unwrap();
    symlink("folder/copy.gbp", &link).unwrap();
    let addr = node.addr.to_string();
    let run = run_at(&addr, &["dump", text(&link), "--force"], b"");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    // An end mark and no entry.
    assert_eq!(fs::read(folder.join("copy.gbp")).unwrap().len(), 55);
    assert_eq!(names(&folder), ["copy.gbp"]);
}

/// Its name is made of the process's number and the file's name where the number can be another program's again.
#[test]
fn the_file_of_a_killed_dump_blocks_no_later_dump() {
    let node = Halting::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    let mut killed = node.dump(dir.path(), &mut program(), &[text(&file)]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left = names(dir.path());
    assert_eq!(left.len(), 1);
    // A process of the same number as that of the one that was killed.
    let occupy = format!(
        "for name in '{0}' \"{1}.$$.part\" \"{1}.part\"; do : > \"$name\"; done",
        text(&dir.path().join(&left[0])),
        text(&file)
    );
    let child = node.dump(dir.path(), &mut after(&occupy), &[text(&file)]);
    // One for each dump; the first is never ended.
    node.go_on.send(()).unwrap();
    node.go_on.send(()).unwrap();
    ended(child).expect(0, "", "");
    assert_eq!(fs::read(&file).unwrap().len(), 9 + 55);
    // A name as long as the system allows has room for no more.
    let node = Node::start();
    let long = dir.path().join("x".repeat(255));
    let run = run_at(&node.addr.to_string(), &["dump", text(&long)], b"");
    assert_eq!((run.code, long.exists()), (0, true), "{run:?}");
}

#[test]
fn a_file_created_meanwhile_is_not_replaced_without_force() {
    let node = Halting::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    let first = node.dump(dir.path(), &mut program(), &[text(&file)]);
    let second = node.dump(dir.path(), &mut program(), &[text(&file)]);
    let third = node.dump(dir.path(), &mut program(), &[text(&file), "--force"]);
    fs::write(&file, b"another's").unwrap();
    for _ in 0..3 {
        node.go_on.send(()).unwrap();
    }
    for child in [first, second] {
        ended(child).expect_failure(8, &["exists, and is as it was"]);
    }
    ended(third).expect(0, "", "");
    assert_eq!(fs::read(&file).unwrap().len(), 9 + 55);
    assert_eq!(names(dir.path()), ["copy.gbp"]);
}

#[test]
fn a_signal_leaves_no_unfinished_file() {
    let node = Halting::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        if bench::cannot_receive(name) {
            continue;
        }
        let child = node.dump(dir.path(), &mut program(), &[text(&file)]);
        assert!(!file.exists());
        bench::signal(&child, &[name, name]);
        let output = in_time(move || child.wait_with_output().unwrap());
        // A shell reports 128 and the signal's number.
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
        assert_eq!((&*output.stdout, &*output.stderr), (&b""[..], &b""[..]));
        assert_eq!(names(dir.path()), [""; 0], "after {name}");
    }
    // It continues if SIGHUP is ignored, as under nohup.
    let child = node.dump(dir.path(), &mut after("trap '' HUP"), &[text(&file)]);
    bench::signal(&child, &["HUP"]);
    for _ in 0..5 {
        node.go_on.send(()).unwrap();
    }
    ended(child).expect(0, "", "");
    assert_eq!(names(dir.path()), ["copy.gbp"]);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_file() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let mut client = Client::connect(&addr).unwrap();
    client.set(b"large", &[b'v'; 100_000]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    fs::write(&file, b"older").unwrap();
    // A limit on the size of files is an error of write, as a full disk is.
    for options in [&["--force"][..], &[]] {
        let mut command = after("ulimit -f 8");
        command.args(["--addr", &addr, "dump"]).args(options);
        let path = if options.is_empty() {
            dir.path().join("new.gbp")
        } else {
            file.clone()
        };
        let run = ended(start(command.arg(&path)));
        assert_eq!(run.code, 8, "{run:?}");
        assert!(run.err.contains("too large"), "{run:?}");
        assert!(run.err.contains("make room there"), "{run:?}");
        assert_eq!(names(dir.path()), ["copy.gbp"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"older");
    // The last bytes too: they are few enough to stay in any buffer.
    client.del(b"large").unwrap();
    let mut command = program();
    command.args(["--addr", &addr, "dump"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let run = ended(child);
    assert_eq!(run.code, 8, "{run:?}");
    assert!(
        run.err.contains("cannot write to standard output"),
        "{run:?}"
    );
}

#[test]
fn a_pipe_with_a_name_is_written_as_it_is() {
    if !tools::are_there(&["mkfifo"]) {
        return;
    }
    let node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let child = start(program().args(["--addr", &node.addr.to_string(), "dump", text(&pipe)]));
    let bytes = in_time({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    assert_eq!((ended(child).code, bytes.len()), (0, 55));
    assert_eq!(names(dir.path()), ["pipe"]);
}

/// It must differ from a complete one.
#[test]
fn a_reader_that_goes_away_is_no_success() {
    let cluster = with_data();
    let mut child = start(program().args(["--addr", &cluster.addr(0).to_string(), "dump"]));
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    ended(child).expect_failure(8, &["not complete", "standard output is not read any more"]);
}

/// A cluster with 30 MB, which is more than pipes and sockets hold, and a log of 1 MiB.
fn with_data() -> Cluster {
    let cluster = cluster(2, "backlog_bytes = 1048576");
    let value = vec![b'v'; 100_000];
    let keys: Vec<_> = (0_u32..300).map(u32::to_be_bytes).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
    cluster
}

#[test]
fn a_pipe_may_be_read_as_slowly_as_the_log_allows() {
    let cluster = with_data();
    let mut child = start(program().args(["--addr", &cluster.addr(0).to_string(), "dump"]));
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < HEARTBEAT * SILENT_HEARTBEATS * 4 {
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        thread::sleep(HEARTBEAT / 4);
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(rest.len() + 10, 300 * (7 + 4 + 100_000) + 55);
}

#[test]
fn a_pipe_that_is_read_too_slowly_for_the_log_is_an_error() {
    let cluster = with_data();
    let mut child = start(program().args(["--addr", &cluster.addr(0).to_string(), "dump"]));
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    let value = vec![b'v'; 100_000];
    let mut client = cluster.client(0);
    let begin = Instant::now();
    let fell_behind = "no longer watches: it fell behind";
    while !cluster.process(0).log().contains(fell_behind) {
        assert!(begin.elapsed() < PATIENCE, "it waits");
        (0_u32..10).for_each(|at| client.set(&at.to_be_bytes(), &value).unwrap());
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let run = ended(child);
    run.expect_failure(
        5,
        &[
            "lost",
            "the copy is not complete, what standard output was given is not a whole copy",
            "fell behind the node's log",
            "the log begins at index",
            "raise backlog_bytes",
        ],
    );
    assert!(rest.len() < 300 * 100_000);
}

#[test]
fn the_end_of_a_stream_is_explained_by_the_nodes_status() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    for (said, expected) in [
        (
            "epoch: 1\nstate: loading\nreason: it copies n1\nuptime_ms: 9\n",
            "the node is loading: it copies n1",
        ),
        (
            "epoch: 2\nstate: serving\nuptime_ms: 9\n",
            "the node was restarted, or follows a leader that was",
        ),
        (
            "epoch: 1\nstate: serving\nuptime_ms: 3\n",
            "the node was restarted, or follows a leader that was",
        ),
        (
            "epoch: 1\nstate: serving\nindex: 9\nuptime_ms: 9\n",
            "the node's log says why",
        ),
        ("later: x\n", "the node's log says why"),
    ] {
        let statuses = Mutex::new(0);
        let peer = Peer::start(move |_, mut stream| {
            let Some(frame) = next_frame(&mut stream) else {
                return;
            };
            let out = match request(&frame) {
                Request::Watch { .. } => begun(),
                _ => {
                    let mut statuses = statuses.lock().unwrap();
                    *statuses += 1;
                    let first = "epoch: 1\nstate: serving\nindex: 9\nuptime_ms: 8\n";
                    let text = if *statuses == 1 { first } else { said };
                    response(Status::Ok.byte(), text.as_bytes())
                }
            };
            let _ = stream.write_all(&out);
        });
        let run = run_at(&peer.addr, &["dump", text(&file)], b"");
        run.expect_failure(5, &["the copy is not complete, no file was made", expected]);
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

/// A node on its own has nothing after a restart, and refuses a place of a scan that began before.
#[test]
fn a_restart_of_a_single_node_ends_a_dump() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    let scans = Mutex::new(0);
    let peer = Peer::start(move |_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            let out = match request(&frame) {
                Request::Watch { .. } => response(Status::Error.byte(), b"no followers"),
                Request::Status => {
                    response(Status::Ok.byte(), b"state: serving\nepoch: 0\nkeys: 1\n")
                }
                Request::Scan { .. } => {
                    let mut scans = scans.lock().unwrap();
                    *scans += 1;
                    if *scans > 1 {
                        response(Status::Error.byte(), b"the place is of an earlier run")
                    } else {
                        // The first of two partitions, with one entry.
                        let head = [
                            &[0, 0, 0, 0, 0, 0, 0, 7][..],
                            &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 1],
                        ];
                        let answer = [head.concat(), set(b"k", b"v")].concat();
                        response(Status::Ok.byte(), &answer)
                    }
                }
                _ => response(Status::NotFound.byte(), b""),
            };
            if stream.write_all(&out).is_err() {
                return;
            }
        }
    });
    let run = run_at(&peer.addr, &["dump", text(&file)], b"");
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.err.contains("earlier run"), "{run:?}");
    assert!(
        run.err
            .contains("the copy is not complete, no file was made"),
        "{run:?}"
    );
    assert_eq!(names(dir.path()), [""; 0]);
}
