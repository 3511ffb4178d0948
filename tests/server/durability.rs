//! A node with a data directory: acknowledged writes survive the end of the process, and damage is never read as data.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gopherstore::client::Client;
use tempfile::TempDir;

use crate::cluster::rounds;
use crate::durable::{Durable, command, log};
use crate::node::{PATIENCE, wait_for};
use crate::tools;

/// Least number of snapshots that kills interrupt.
const SNAPSHOTS: usize = 8;

/// Writers of a node that is killed.
const WRITERS: usize = 4;

/// The segments of the log.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("data")).unwrap();
    let paths = names.map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| path.to_string_lossy().contains("log-");
    let mut segments: Vec<PathBuf> = paths.filter(is_segment).collect();
    segments.sort();
    segments
}

/// The state that writers share with those that wait for them.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) is_over: AtomicBool,
    pub(crate) acknowledged: AtomicU64,
}

/// Writes numbers to keys of its own until the node is gone. Returns for each key the last number that was
/// acknowledged, and the one that was sent last.
pub(crate) fn write(node: &str, number: usize, load: &Load) -> BTreeMap<String, (u64, u64)> {
    let mut written = BTreeMap::new();
    let Ok(mut client) = Client::connect(node) else {
        return written;
    };
    for value in 1_u64.. {
        let key = format!("writer:{number}:{}", value % 50);
        let entry = written.entry(key.clone()).or_insert((0, 0));
        entry.1 = value;
        let result = client.set(key.as_bytes(), value.to_string().as_bytes());
        if result.is_err() || load.is_over.load(Ordering::Relaxed) {
            // The connection was lost, so it is unknown whether it was executed.
            break;
        }
        entry.0 = value;
        load.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    written
}

fn killed_under_load(sync: &str, rounds: usize, snapshot_log_bytes: Option<u32>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let snapshots = || log(dir.path()).matches("wrote a snapshot of ").count();
    for (round, pause) in (0..).zip((0..4).cycle()) {
        let before = snapshots();
        let is_more = round >= rounds;
        if is_more && (snapshot_log_bytes.is_none() || before > SNAPSHOTS) {
            break;
        }
        assert!(round < rounds + 100, "{before} snapshots");
        let mut command = command(dir.path(), sync);
        if let Some(bytes) = snapshot_log_bytes {
            command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", bytes.to_string());
        }
        let node = Durable::of(command, dir.path());
        let mut client = node.client();
        for (key, (acknowledged, sent)) in &known {
            let value = client.get(key.as_bytes()).unwrap();
            let text = value.map(|value| String::from_utf8(value).unwrap());
            let number: u64 = text.map_or(0, |text| text.parse().unwrap());
            assert!(
                (*acknowledged..=*sent).contains(&number),
                "{sync}, round {round}: {key} is {number}, and {acknowledged} was acknowledged"
            );
        }
        let load = Load::default();
        let addr = node.addr.clone();
        let written = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    let (addr, load) = (&addr, &load);
                    scope.spawn(move || write(addr, number, load))
                })
                .collect();
            let enough = 200 + 200 * pause;
            // A busy machine kills before a snapshot is complete, so there are more rounds, with one in each.
            wait_for("writes", || {
                let is_enough = load.acknowledged.load(Ordering::Relaxed) >= enough;
                (is_enough && (!is_more || snapshots() > before)).then_some(())
            });
            node.kill();
            load.is_over.store(true, Ordering::Relaxed);
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect::<Vec<_>>()
        });
        for (key, (acknowledged, sent)) in written.into_iter().flatten() {
            let entry = known.entry(key).or_insert((0, 0));
            // A new writer begins at 1: a key that it has not written has its old value.
            if acknowledged > 0 {
                *entry = (acknowledged, sent);
            } else {
                *entry = (entry.0.min(sent), entry.1.max(sent));
            }
        }
    }
    dir
}

#[test]
fn acknowledged_writes_survive_kill_9_with_each_policy() {
    for sync in ["always", "interval", "never"] {
        killed_under_load(sync, rounds(4, 100), None);
    }
}

/// Snapshots follow each other as fast as they can, so that the node is killed at any of their steps.
#[test]
fn acknowledged_writes_survive_kill_9_amid_snapshots() {
    let dir = killed_under_load("interval", rounds(8, 100), Some(8_000));
    let first = segments(dir.path()).swap_remove(0);
    assert!(
        !first.ends_with("log-00000001-0000000000000001"),
        "{first:?} is still there"
    );
}

#[test]
fn everything_is_there_after_a_stop_with_deadlines_and_sums() {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    client.set(b"a", b"1").unwrap();
    client.set(b"large", &vec![b'x'; 300_000]).unwrap();
    client.add(b"n", 5, 0).unwrap();
    client.set(b"gone", b"1").unwrap();
    client.del(b"gone").unwrap();
    let position = client.position().unwrap();
    assert_eq!(node.stop().code(), Some(0), "{}", log(dir.path()));
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    assert_eq!(client.get(b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(client.get(b"large").unwrap(), Some(vec![b'x'; 300_000]));
    assert_eq!(client.get(b"gone").unwrap(), None);
    assert_eq!(client.add(b"n", 1, 0).unwrap(), 6);
    // The history is the same one, which goes on.
    assert!(client.position().unwrap() > position);
    let text = log(dir.path());
    assert!(text.contains("recovered 3 keys, with "), "{text}");
    assert!(!text.contains("torn"), "{text}");
}

/// Starts a node by another program, which takes the command as its last arguments.
fn start_by(mut program: Command, dir: &Path, sync: &str) -> Durable {
    let server = command(dir, sync);
    program
        .arg(server.get_program())
        .args(server.get_args())
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.join("err")).unwrap());
    Durable::of(program, dir)
}

/// The system's calls, as strace sees them: the answer comes behind an fdatasync.
#[test]
fn sync_durable_syncs_the_file_before_its_answer() {
    if !tools::are_there(&["strace"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace
        .args(["-D", "-f", "-e", "trace=fdatasync", "-o"])
        .arg(&trace);
    let node = start_by(strace, dir.path(), "never");
    let mut client = node.client();
    let syncs = || {
        let text = fs::read_to_string(&trace).unwrap();
        let lines = text.lines().filter(|line| line.ends_with(" = 0"));
        lines.filter(|line| line.contains("fdatasync")).count()
    };
    for round in 0..5_u8 {
        client.set(b"k", &[round]).unwrap();
        let before = syncs();
        client.sync_durable(PATIENCE).unwrap();
        wait_for("the line of the call", || (syncs() > before).then_some(()));
    }
    // Everything is on the disk by now, so there is nothing to do.
    let before = syncs();
    client.sync_durable(PATIENCE).unwrap();
    assert_eq!(syncs(), before);
    drop(client);
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn a_directory_is_one_process_and_one_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    // Without a write, the directory would have no data.
    node.client().set(b"a", b"1").unwrap();
    refused(dir.path(), "another process uses this data directory");
    // Before that the directory may have no log.
    node.client().set(b"k", b"v").unwrap();
    node.kill();
    let identity = dir.path().join("data/identity");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("single", "other")).unwrap();
    refused(
        dir.path(),
        "the data directory is that of cluster = \"other\"",
    );
    fs::write(&identity, text.replace("format 1", "format 2")).unwrap();
    refused(dir.path(), "format 2");
    fs::remove_file(&identity).unwrap();
    refused(dir.path(), "no file identity");
}

/// Runs a node that does not start, and says why.
#[track_caller]
fn refused(dir: &Path, why: &str) {
    let before = log(dir).len();
    let mut child = command(dir, "always").spawn().unwrap();
    let status = wait_for("the end of the node", || child.try_wait().unwrap());
    let text = log(dir)[before..].to_owned();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(why), "{why}: {text}");
}

fn with_data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    for number in 0..20_u8 {
        client.set(&[number], b"value").unwrap();
    }
    node.stop();
    dir
}

/// Runs `gopherstore-cli check`: its exit code, and its output.
pub(crate) fn check(dir: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"));
    let output = command.arg("check").arg(dir.join("data")).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_directory_is_checked_without_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = check(dir.path());
    assert_eq!(code, Some(8), "{text}");
    let mut command = command(dir.path(), "never");
    command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "5000");
    let node = Durable::of(command, dir.path());
    let mut client = node.client();
    for number in 0..2_000_u32 {
        let key = (number % 100).to_be_bytes();
        client.set(&key, &number.to_be_bytes()).unwrap();
    }
    wait_for("a snapshot", || {
        log(dir.path())
            .contains("wrote a snapshot of 100 keys")
            .then_some(())
    });
    let (code, text) = check(dir.path());
    assert_eq!(code, Some(8), "{text}");
    assert!(text.contains("another process uses"), "{text}");
    assert_eq!(node.stop().code(), Some(0));
    let (code, text) = check(dir.path());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("snapshot-00000001-0000"), "{text}");
    assert!(text.contains(": 100 keys of index "), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("100 keys up to index 2001, digest "),
        "{text}"
    );
    let newest = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let at = bytes.windows(4).position(|it| it == b"GRP\x01").unwrap();
    bytes[at + 100] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    let (code, text) = check(dir.path());
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains(&format!("offset {at}")), "{at}: {text}");
    assert!(text.contains(&*newest.to_string_lossy()), "{text}");
}

#[test]
fn damage_is_refused_with_its_place_and_a_torn_end_is_cut() {
    let dir = with_data();
    let [segment] = &segments(dir.path())[..] else {
        panic!("more than one segment")
    };
    let bytes = fs::read(segment).unwrap();
    let at = bytes.windows(5).position(|it| it == b"value").unwrap();
    let mut flipped = bytes.clone();
    flipped[at] ^= 1;
    fs::write(segment, &flipped).unwrap();
    refused(
        dir.path(),
        "is damaged, and a later group says that records up to",
    );
    // The last group of the stop is the seal: without it and a part of the one before, a crash may have torn that.
    let groups: Vec<usize> = bytes
        .windows(4)
        .enumerate()
        .filter_map(|(at, it)| (it == b"GRP\x01").then_some(at))
        .collect();
    let [.., last, _] = groups[..] else {
        panic!("{groups:?}")
    };
    fs::write(segment, &bytes[..last + 100]).unwrap();
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    assert_eq!(client.get(&[18]).unwrap(), Some(b"value".to_vec()));
    let text = log(dir.path());
    assert!(text.contains("the last write was torn at offset"), "{text}");
    client.set(b"goes", b"on").unwrap();
    node.kill();
    let node = Durable::start(dir.path(), "always");
    assert_eq!(node.client().get(b"goes").unwrap(), Some(b"on".to_vec()));
}

/// A limit on the size of files stands for a full disk.
#[test]
fn a_node_whose_disk_fails_ends_and_has_everything_acknowledged_after_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 1024 && exec \"$@\"", "sh"]);
    let mut node = start_by(shell, dir.path(), "always");
    let mut client = node.client();
    let value = vec![b'v'; 10_000];
    let mut acknowledged = 0_u32;
    while client.set(&acknowledged.to_be_bytes(), &value).is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 1_000, "no limit was reached");
    }
    assert!(acknowledged > 20, "{acknowledged}:\n{}", log(dir.path()));
    let status = wait_for("the end of the node", || node.child.try_wait().unwrap());
    let text = log(dir.path());
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(
        text.contains("cannot write") && text.contains("this node ends"),
        "{text}"
    );
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    for number in 0..acknowledged {
        let found = client.get(&number.to_be_bytes()).unwrap();
        assert!(found.as_ref() == Some(&value), "{number} of {acknowledged}");
    }
}

#[test]
fn options_of_the_directory_that_contradict_each_other_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n";
    fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let without = "--sync without a data directory";
    for (arguments, why) in [
        (&["--sync", "always"][..], without),
        (&["--node", "n1", "--sync", "always"], without),
        (
            &["--data-dir", "d", "--sync", "often"],
            "there are always, interval and never",
        ),
        (
            &["--check-config", "--data-dir", "d"],
            "--check-config checks the file alone",
        ),
        (
            &["--check-config", "--node", "n1", "--sync", "never"],
            "goes with neither --data-dir nor --sync",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"));
        let output = command
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(why), "{text}");
    }
    assert!(!dir.path().join("d").exists());
}
