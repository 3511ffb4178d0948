//! A node with a data directory: acknowledged writes survive the end of the process, and damage is never read as data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gopherstore::client::{Client, NodeStatus};
use gopherstore::wire::Status;
use gopherstore::wire::replication::{Message, Parsed, Watch, WatchFrom, parse};
use gopherstore::wire::request::{HEADER_LEN, RequestHeader};
use tempfile::TempDir;

use crate::cluster::rounds;
use crate::durable::{Durable, command, log};
use crate::node::{Node, PATIENCE, wait_for};
use crate::{answer, tools};

/// Least number of snapshots that kills interrupt.
const SNAPSHOTS: usize = 8;

/// Writers of a node that is killed.
const WRITERS: usize = 4;

/// The segments of the log.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("data")).unwrap();
    let paths = names.map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| path.to_string_lossy().contains("log-");
    let mut segments: Vec<PathBuf> = paths.filter(is_segment).collect();
    segments.sort();
    segments
}

/// The state that writers share with those that wait for them.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    acknowledged: AtomicU64,
}

/// Writes numbers to keys of its own until the node is gone. Returns for each key the last number that was
/// acknowledged, and the one that was sent last.
fn write(node: &str, number: usize, load: &Load) -> BTreeMap<String, (u64, u64)> {
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
        // A busy machine writes fewer in each.
        if round >= rounds && (snapshot_log_bytes.is_none() || snapshots() > SNAPSHOTS) {
            break;
        }
        assert!(round < rounds + 100, "{} snapshots", snapshots());
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
            wait_for("writes", || {
                (load.acknowledged.load(Ordering::Relaxed) >= enough).then_some(())
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

/// The system's calls, as strace sees them: the answer comes behind an fdatasync.
#[test]
fn sync_durable_syncs_the_file_before_its_answer() {
    if !tools::are_there(&["strace"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = command(dir.path(), "never");
    let trace = dir.path().join("trace");
    let mut traced = Command::new("strace");
    traced
        .args(["-D", "-f", "-e", "trace=fdatasync", "-o"])
        .arg(&trace)
        .arg(server.get_program())
        .args(server.get_args())
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("err")).unwrap());
    let node = Durable::of(traced, dir.path());
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

pub(crate) fn status_of(client: &mut Client) -> NodeStatus {
    NodeStatus::parse(&client.status().unwrap())
}

/// The bytes of the files whose names begin with `prefix`.
fn bytes_of(dir: &Path, prefix: &str) -> u64 {
    let entries = fs::read_dir(dir.join("data")).unwrap();
    let entries = entries.map(Result::unwrap);
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.metadata().unwrap().len()).sum()
}

/// A node with `sync = "never"` that has `count` entries, and a client of it.
fn with_entries(dir: &Path, count: u8) -> (Durable, Client) {
    let node = Durable::start(dir, "never");
    let mut client = node.client();
    for number in 0..count {
        client.set(&[number], b"value").unwrap();
    }
    (node, client)
}

#[test]
fn status_says_how_far_the_disk_is_and_what_a_recovery_has_done() {
    let dir = tempfile::tempdir().unwrap();
    let (node, mut client) = with_entries(dir.path(), 50);
    let status = status_of(&mut client);
    let index = status.index;
    assert_eq!(
        (status.has_disk, status.sync.as_deref()),
        (Some(true), Some("never"))
    );
    assert_eq!(status.written_index, index, "the answers waited for that");
    assert!(status.durable_index < index, "{status:?}");
    assert_eq!(
        (status.snapshot_index, status.snapshot_age_ms),
        (None, None)
    );
    assert_eq!(
        (status.recovered_records, status.cut_bytes),
        (Some(0), Some(0))
    );
    client.sync_durable(PATIENCE).unwrap();
    let status = status_of(&mut client);
    assert_eq!(status.durable_index, index);
    assert!(status.synced_ms <= status.uptime_ms, "{status:?}");
    wait_for("the bytes of the files", || {
        let status = status_of(&mut client);
        let is_there = status.log_bytes == Some(bytes_of(dir.path(), "log-"));
        is_there.then_some(())
    });
    assert_eq!(status.snapshot_bytes, Some(0));
    node.kill();
    // The second half of the last group is missing: the log has a torn end.
    let [segment] = &segments(dir.path())[..] else {
        panic!("more than one segment")
    };
    let bytes = fs::read(segment).unwrap();
    let mut groups = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, it)| *it == b"GRP\x01");
    let last = groups.next_back().unwrap().0;
    fs::write(segment, &bytes[..last + 50]).unwrap();
    let node = Durable::start(dir.path(), "never");
    let mut client = node.client();
    // Its answer waits for the log-writer thread.
    client.set(b"k", b"v").unwrap();
    let status = status_of(&mut client);
    assert!(status.cut_bytes >= Some(1), "{status:?}");
    assert!(status.recovered_records >= Some(49), "{status:?}");
    assert!(status.recovery_ms <= status.uptime_ms, "{status:?}");
    // The recovery has synced the log.
    assert!(
        status.durable_index >= Some(49) && status.synced_ms.is_some(),
        "{status:?}"
    );
}

/// The `durable_index` of the next HEARTBEAT to this watcher.
fn next_beat(stream: &mut TcpStream) -> u64 {
    loop {
        let mut frame = vec![0; HEADER_LEN];
        stream.read_exact(&mut frame).unwrap();
        let header = RequestHeader::decode(frame[..].try_into().unwrap());
        frame.resize(header.frame_len(), 0);
        stream.read_exact(&mut frame[HEADER_LEN..]).unwrap();
        let Ok(Parsed::Whole { message, .. }) = parse(&frame) else {
            panic!("no frame of a stream: {frame:?}")
        };
        if let Message::Heartbeat { durable_index, .. } = message {
            return durable_index;
        }
    }
}

#[test]
fn a_heartbeat_says_how_far_the_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "never");
    let mut client = node.client();
    client.sync_durable(PATIENCE).unwrap();
    let mut watch = Vec::new();
    let all = Watch {
        prefix: b"",
        wants_values: false,
        from: WatchFrom::Now,
    };
    all.encode(&mut watch).unwrap();
    let mut stream = TcpStream::connect(&node.addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&watch).unwrap();
    assert_eq!(answer(&stream).0, Status::Ok);
    let before = status_of(&mut client).durable_index;
    client.set(b"k", b"v").unwrap();
    assert_eq!(Some(next_beat(&mut stream)), before);
    client.sync_durable(PATIENCE).unwrap();
    let index = status_of(&mut client).index;
    assert!(index > before);
    wait_for("a heartbeat after the sync", || {
        (Some(next_beat(&mut stream)) == index).then_some(())
    });
}

/// With `always` the segments have zeros behind the last group, which are not counted.
#[test]
fn status_has_the_bytes_of_the_log_without_what_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    let mut client = node.client();
    for round in 0..3_u8 {
        client.set(&[round], &[1; 1_000]).unwrap();
        wait_for("the bytes of the log", || {
            let [segment] = &segments(dir.path())[..] else {
                panic!("more than one segment")
            };
            let bytes = fs::read(segment).unwrap();
            let heads = bytes.windows(8).enumerate();
            let mut heads = heads.filter(|(_, it)| it.starts_with(b"GRP\x01"));
            let (at, head) = heads.next_back().unwrap();
            let body = u32::from_be_bytes(head[4..].try_into().unwrap());
            let end = (at + 88 + usize::try_from(body).unwrap()).next_multiple_of(8) + 8;
            let has_zeros = end < bytes.len() && bytes[end..].iter().all(|byte| *byte == 0);
            let counted = status_of(&mut client).log_bytes;
            (has_zeros && counted == u64::try_from(end).ok()).then_some(())
        });
    }
}

#[test]
fn status_has_the_last_snapshot_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = command(dir.path(), "never");
        command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "5000");
        Durable::of(command, dir.path())
    };
    let node = start();
    let mut client = node.client();
    for number in 0..2_000_u32 {
        client.set(&number.to_be_bytes(), b"value").unwrap();
    }
    let snapshots = || bytes_of(dir.path(), "snapshot-");
    let found = wait_for("a snapshot that is counted", || {
        let status = status_of(&mut client);
        let is_there = status.snapshot_index > Some(0)
            && status.snapshot_bytes > Some(0)
            && status.snapshot_bytes == Some(snapshots());
        is_there.then_some(status)
    });
    assert!(found.snapshot_index <= found.index, "{found:?}");
    assert!(found.snapshot_age_ms <= found.uptime_ms, "{found:?}");
    assert_eq!(node.stop().code(), Some(0));
    let node = start();
    let again = status_of(&mut node.client());
    assert!(again.snapshot_index >= found.snapshot_index, "{again:?}");
    assert!(again.snapshot_age_ms.is_some(), "{again:?}");
    assert!(again.recovered_records < Some(2_000), "{again:?}");
}

/// Runs `gopherstore-cli snapshot`: its exit code, and its output.
fn order_snapshot(addr: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"));
    let output = command.args(["snapshot", "--addr", addr]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_snapshot_is_written_by_order_and_shortens_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (node, mut client) = with_entries(dir.path(), 200);
    let index = status_of(&mut client).index;
    let (code, text) = order_snapshot(&node.addr);
    assert_eq!((code, &*text), (Some(0), ""));
    let snapshot_of = |client: &mut Client| {
        let status = status_of(client);
        (status.snapshot_index == index).then_some(status)
    };
    let first = wait_for("the snapshot", || snapshot_of(&mut client));
    assert_eq!(
        first.snapshot_bytes,
        Some(bytes_of(dir.path(), "snapshot-"))
    );
    // Another one begins at the same index: its age says that it is there.
    wait_for("another snapshot", || {
        client.snapshot().unwrap();
        let status = snapshot_of(&mut client).unwrap();
        let made_at = |it: &NodeStatus| it.uptime_ms.unwrap() - it.snapshot_age_ms.unwrap();
        (made_at(&status) > made_at(&first) + 5).then_some(())
    });
    client.set(b"behind", b"it").unwrap();
    node.kill();
    let node = Durable::start(dir.path(), "never");
    let mut client = node.client();
    assert_eq!(client.get(b"behind").unwrap(), Some(b"it".to_vec()));
    for number in 0..200_u8 {
        assert_eq!(client.get(&[number]).unwrap(), Some(b"value".to_vec()));
    }
    let status = status_of(&mut client);
    assert_eq!(status.recovered_records, Some(1), "{status:?}");
    assert_eq!(status.snapshot_index, index);
}

#[test]
fn orders_for_snapshots_by_many_under_load_are_all_taken() {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "interval");
    let load = Load::default();
    let (load, node_ref) = (&load, &node);
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(&node_ref.addr, 0, load));
        let orders = (0..4).map(|_| {
            scope.spawn(move || {
                let mut client = node_ref.client();
                (0..20).try_for_each(|_| client.snapshot())
            })
        });
        let orders: Vec<_> = orders.collect();
        let ends: Vec<_> = orders.into_iter().map(|order| order.join()).collect();
        wait_for("a snapshot", || {
            status_of(&mut node_ref.client()).snapshot_index
        });
        load.is_over.store(true, Ordering::Relaxed);
        for end in ends {
            end.unwrap().unwrap();
        }
        assert!(writer.join().unwrap().len() > 1);
    });
    let keys = status_of(&mut node.client()).keys;
    node.kill();
    let node = Durable::start(dir.path(), "interval");
    assert_eq!(status_of(&mut node.client()).keys, keys);
}

#[test]
fn without_a_disk_the_order_for_a_snapshot_names_the_setting() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let error = Client::connect(&addr).unwrap().snapshot().unwrap_err();
    assert!(error.to_string().contains("--data-dir"), "{error}");
    let (code, text) = order_snapshot(&addr);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
}

/// The keys of GBP.md's tables that a single node with a disk has, and one without.
#[test]
fn the_keys_of_a_node_with_a_disk_are_those_of_the_document() {
    let document = include_str!("../../docs/GBP.md");
    let (_, section) = document
        .split_once("\nA node with a disk also has:\n")
        .unwrap();
    let (section, _) = section.split_once("\nA follower also has:\n").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    let with = status_of(&mut node.client()).lines;
    let without = Node::start();
    let mut client = Client::connect(&without.addr.to_string()).unwrap();
    let without = status_of(&mut client).lines;
    assert_eq!(without["disk"], "none");
    let more = with.keys().filter(|key| !without.contains_key(*key));
    // A node without a configuration file has the name of its directory, and no cluster.
    let more: BTreeSet<&str> = more.map(String::as_str).collect();
    assert_eq!(more, documented);
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
    let server = command(dir.path(), "always");
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 1024 && exec \"$@\"", "sh"])
        .arg(server.get_program())
        .args(server.get_args())
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("err")).unwrap());
    let mut node = Durable::of(limited, dir.path());
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
