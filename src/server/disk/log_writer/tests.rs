//! Turns in the place of the log-writer thread, on a real directory.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{Config, StorageConfig, SyncPolicy};
use crate::engine::{Admission, Answers};
use crate::history::EpochStart;
use crate::node::Node;
use crate::storage::identity::Identity;
use crate::wire::request::Limits;
use crate::wire::{Request, Run, Status};

/// Longest time that anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the log-writer thread of a node that leads, with its data in a new directory, for the length of `test`. Returns
/// how that thread ends.
fn with_writing(
    directory: &Path,
    sync: SyncPolicy,
    test: impl FnOnce(&LogWriting<'_>),
) -> Result<(), StorageError> {
    let text =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    let mut node = Node::with_disk(&config, config.leader());
    let own = Identity {
        cluster: "c".to_owned(),
        node: "n1".to_owned(),
    };
    let storage = StorageConfig {
        sync,
        sync_interval: Duration::from_secs(3_600),
        ..StorageConfig::default()
    };
    let disk = Disk::open(directory, &own, storage).unwrap();
    node.acknowledge_at(disk.acknowledges_at());
    disk.recover(&node).unwrap();
    let engine = node.engine();
    let start = EpochStart {
        epoch: 1,
        nonce: 7,
        start_index: 1,
    };
    let (reads, writes) = (true, true);
    engine
        .open_epoch(start, Admission { reads, writes })
        .unwrap();
    let writing = LogWriting::new(&disk, engine, engine.log().unwrap());
    thread::scope(|scope| {
        let thread = scope.spawn(|| writing.run());
        scope.spawn(|| disk.sync(writing.log));
        {
            let _end = EndLog(&writing);
            test(&writing);
        }
        thread.join().unwrap()
    })
}

/// Ends the log, also where a test fails.
struct EndLog<'a>(&'a LogWriting<'a>);

impl Drop for EndLog<'_> {
    fn drop(&mut self) {
        self.0.engine.end_log();
        self.0.log.wake_writer();
    }
}

/// Executes a SET without waking the log-writer thread, and tries to write its record. Returns false also where the log
/// has no room for it.
fn set_in_place(writing: &LogWriting<'_>, value: &[u8]) -> bool {
    let mut bytes = Vec::new();
    let set = Request::Set { key: b"key", value };
    set.encode(&mut bytes).unwrap();
    let (run, mut answers) = (Run::of(&bytes, &Limits::default()), Answers::new());
    let deferral = writing.log.watermarks().writer_signal().defer();
    if writing.engine.execute(&run, None, &mut answers).is_err() {
        return false;
    }
    assert_eq!(answers.bytes()[0], Status::Ok as u8);
    deferral.take() && writing.try_write()
}

/// The index up to which the node acknowledges records.
fn acknowledged(writing: &LogWriting<'_>) -> u64 {
    let mark = writing.disk.acknowledges_at();
    writing.log.watermarks().index(mark).unwrap()
}

#[test]
fn records_are_acknowledged_without_the_log_writer_thread() {
    for sync in [SyncPolicy::Always, SyncPolicy::Interval, SyncPolicy::Never] {
        let dir = tempfile::tempdir().unwrap();
        let end = with_writing(&dir.path().join("data"), sync, |writing| {
            let (mut in_place, until) = (0, Instant::now() + PATIENCE);
            while in_place < 20 {
                assert!(Instant::now() < until, "{sync:?}: {in_place} in place");
                if set_in_place(writing, b"value") {
                    assert_eq!(acknowledged(writing), writing.log.head().index);
                    in_place += 1;
                } else {
                    // It prepares the next segment, or takes a turn.
                    writing.log.wake_writer();
                    thread::yield_now();
                }
            }
        });
        end.unwrap();
    }
}

#[test]
fn a_turn_that_has_failed_is_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let end = with_writing(&data, SyncPolicy::Never, |writing| {
        // The next segment cannot get its name.
        fs::rename(&data, dir.path().join("other")).unwrap();
        let (value, until) = (vec![0; 1 << 20], Instant::now() + PATIENCE);
        while !writing.disk.shared.lock().is_over {
            assert!(Instant::now() < until, "the log-writer thread goes on");
            if !set_in_place(writing, &value) {
                writing.log.wake_writer();
                thread::yield_now();
            }
        }
        let before = acknowledged(writing);
        assert!(!set_in_place(writing, b"value"));
        assert_eq!(acknowledged(writing), before);
        assert!(before < writing.log.head().index);
    });
    let error = end.unwrap_err().to_string();
    assert!(error.contains("data"), "{error}");
}
