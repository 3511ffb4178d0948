//! STATUS of a node with a disk, and snapshots by order.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use gopherstore::client::{Client, NodeStatus};
use gopherstore::wire::Status;
use gopherstore::wire::replication::{Message, Parsed, Watch, WatchFrom, parse};
use gopherstore::wire::request::{HEADER_LEN, RequestHeader};

use crate::answer;
use crate::durability::{Load, segments, write};
use crate::durable::{Durable, command, log, status_of};
use crate::node::{Node, PATIENCE, wait_for};

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
    assert!(!log(dir.path()).contains("reading"), "there was nothing");
    let node = start();
    let text = log(dir.path());
    // Four times the bytes of log after which there is a snapshot are much to read.
    assert!(
        text.contains(" INFO ") && text.contains(" MB from "),
        "{text}"
    );
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
    let first = snapshot_of(&mut client).expect("the command waits for it");
    let counts = (first.snapshots, first.failed_snapshots);
    assert_eq!(counts, (Some(1), Some(0)));
    assert_eq!(first.snapshot_error, None);
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
    let text = log(dir.path());
    assert!(!text.contains(" MB from "), "it is not much: {text}");
    let mut client = node.client();
    assert_eq!(client.get(b"behind").unwrap(), Some(b"it".to_vec()));
    for number in 0..200_u8 {
        assert_eq!(client.get(&[number]).unwrap(), Some(b"value".to_vec()));
    }
    let status = status_of(&mut client);
    assert_eq!(status.recovered_records, Some(1), "{status:?}");
    assert_eq!(status.snapshot_index, index);
}

/// An order just when the last snapshot is counted is not for that one.
#[test]
fn after_each_order_the_number_of_snapshots_rises() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, mut client) = with_entries(dir.path(), 10);
    for _ in 0..300 {
        let before = status_of(&mut client).snapshots;
        client.snapshot().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while status_of(&mut client).snapshots == before {
            assert!(Instant::now() < deadline, "{:?}", status_of(&mut client));
        }
    }
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
