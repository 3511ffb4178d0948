//! SYNC: the position of a data set, and the waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::config::Config;
use gopherstore::engine::Engine;
use gopherstore::engine::digest::Digest;
use gopherstore::history::{EpochStart, History};
use gopherstore::log::{Mark, Position};
use gopherstore::node::{Awaited, DataDirectory, Leader, Node, StorageStatus, Synced};
use gopherstore::wire::{Request, Status, SyncRequest, Token};

use crate::{apply, ask, digest_after, entry, epoch_record, receive};

const EPOCH: EpochStart = EpochStart {
    epoch: 3,
    nonce: 7,
    start_index: 1,
};

fn node_of_two(name: &str) -> Node {
    let text = "cluster = \"c\"\nleader = \"n1\"\n\
                [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    Node::of_cluster(&config, config.node(name).unwrap())
}

/// A follower that serves, and whose log has one record, the beginning of [`EPOCH`].
fn follower() -> Node {
    let node = node_of_two("n2");
    apply(node.engine(), &epoch_record(EPOCH)).unwrap();
    node.adopt();
    node
}

/// The directory of a disk of which the test moves the watermarks.
#[derive(Debug)]
struct NoDirectory(StorageStatus);

impl DataDirectory for NoDirectory {
    fn restore(&self, _: &Engine) -> bool {
        false
    }

    fn begin_snapshot(&self, _: &gopherstore::log::Log) -> bool {
        false
    }

    fn status(&self) -> &StorageStatus {
        &self.0
    }
}

fn follower_with_disk() -> Node {
    let mut node = follower();
    let log = node.engine().log().unwrap();
    log.begin_writing(0, Mark::Appended);
    node.keep_in(Arc::new(NoDirectory(StorageStatus::default())));
    node
}

fn set(key: &[u8]) -> Vec<u8> {
    entry(key, b"v").frame().to_vec()
}

const fn token(epoch: u64, index: u64, nonce: u64) -> Token {
    Token {
        epoch,
        index,
        nonce,
    }
}

fn sync(node: &Node, request: SyncRequest) -> (Status, Vec<u8>) {
    let value = &request.value();
    ask(node, &Request::Sync { value })
}

/// The status of a SYNC at a token, which does not wait.
fn status_at(node: &Node, token: Token) -> Status {
    let timeout_ms = 0;
    sync(node, SyncRequest::At { token, timeout_ms }).0
}

fn position(node: &Node) -> Token {
    let (status, value) = sync(node, SyncRequest::Position);
    assert_eq!(status, Status::Ok);
    Token::decode(value.try_into().unwrap())
}

#[test]
fn the_position_is_that_of_the_last_record_which_is_applied() {
    let leader = node_of_two("n1");
    assert_eq!(sync(&leader, SyncRequest::Position).0, Status::Loading);
    leader.open_epoch(EPOCH).unwrap();
    assert_eq!(position(&leader), token(3, 1, 7));
    ask(
        &leader,
        &Request::Set {
            key: b"k",
            value: b"v",
        },
    );
    assert_eq!(position(&leader), token(3, 2, 7));
    ask(&leader, &Request::Del { key: b"none" });
    assert_eq!(position(&leader), token(3, 2, 7));

    let follower = follower();
    let records = [set(b"a"), set(b"b"), set(b"c")].concat();
    let digest = digest_after(follower.engine(), &records);
    receive(follower.engine(), &records, 2, digest).unwrap();
    assert_eq!(
        position(&follower),
        token(3, 2, 7),
        "the rest is not committed"
    );
    assert_eq!(status_at(&follower, token(3, 3, 7)), Status::Timeout);
    follower.engine().apply(4).unwrap();
    assert_eq!(position(&follower), token(3, 4, 7));
    assert_eq!(status_at(&follower, token(3, 3, 7)), Status::Ok);
}

#[test]
fn a_token_is_held_awaited_lost_or_compacted() {
    let node = follower();
    apply(node.engine(), &set(b"a")).unwrap();
    let next = EpochStart {
        epoch: 5,
        nonce: 9,
        start_index: 3,
    };
    apply(node.engine(), &epoch_record(next)).unwrap();
    for (token, status) in [
        (token(3, 1, 7), Status::Ok),
        (token(3, 2, 7), Status::Ok),
        (token(3, 3, 7), Status::Lost),
        (token(3, 2, 8), Status::Lost),
        (token(4, 3, 1), Status::Lost),
        (token(5, 3, 9), Status::Ok),
        (token(5, 4, 9), Status::Timeout),
        (token(5, 3, 8), Status::Lost),
        (token(6, 3, 1), Status::Timeout),
    ] {
        assert_eq!(status_at(&node, token), status, "{token}");
    }
    let (_, message) = sync(
        &node,
        SyncRequest::At {
            token: token(5, 4, 9),
            timeout_ms: 0,
        },
    );
    assert_eq!(
        String::from_utf8(message).unwrap(),
        "this node is at index 3 of epoch 5, the token is index 4 of epoch 5"
    );
    // A snapshot of a leader whose history begins later.
    let later = History::new(vec![EpochStart {
        epoch: 8,
        nonce: 1,
        start_index: 100,
    }]);
    let engine = node.engine();
    engine.clear();
    let (mut load, digest) = (engine.load(0), Digest::EMPTY);
    assert!(load.finish(120, digest, later.unwrap(), Instant::now()));
    let request = SyncRequest::At {
        token: token(3, 2, 7),
        timeout_ms: 0,
    };
    let (status, oldest) = sync(&node, request);
    assert_eq!(
        (status, oldest),
        (Status::Compacted, 100_u64.to_be_bytes().to_vec())
    );
}

#[test]
fn without_a_log_the_error_names_the_setting_and_bad_fields_are_named() {
    let node = Node::alone();
    let (status, message) = sync(&node, SyncRequest::Position);
    let message = String::from_utf8(message).unwrap();
    assert_eq!(status, Status::Error);
    assert_eq!(
        message,
        "SYNC: a token needs a log, which a node has with peers in cluster.toml or with --data-dir"
    );
    for node in [&node, &follower()] {
        let (status, message) = sync(node, SyncRequest::Durable { timeout_ms: 9 });
        assert_eq!(status, Status::Error);
        assert_eq!(
            String::from_utf8(message).unwrap(),
            "SYNC: durable needs a disk, which a node has with --data-dir, or with data_dir in [storage] of \
             cluster.toml"
        );
    }
    let value = b"\x03\0\0\0\0";
    let (status, message) = ask(&node, &Request::Sync { value });
    assert_eq!(status, Status::Error);
    assert_eq!(message, b"mode 3, must be 0, 1 or 2");
    // A node that serves no reads yet.
    let loading = node_of_two("n2");
    assert_eq!(status_at(&loading, token(1, 1, 1)), Status::Loading);
}

#[test]
fn durable_waits_for_the_disk_of_this_node_on_a_follower_too() {
    let node = follower_with_disk();
    let log = node.engine().log().unwrap();
    let value = &SyncRequest::Durable { timeout_ms: 0 }.value();
    let status = || ask(&node, &Request::Sync { value }).0;
    assert_eq!(status(), Status::Timeout);
    assert_eq!(log.wanted_durable(), 1);
    let records = [set(b"a"), set(b"b"), set(b"c")].concat();
    let digest = digest_after(node.engine(), &records);
    receive(node.engine(), &records, 2, digest).unwrap();
    // The records behind 2 are logged, and not applied.
    log.watermarks().advance(Mark::Durable, 1);
    assert_eq!(status(), Status::Timeout);
    assert_eq!(log.wanted_durable(), 2);
    log.watermarks().advance(Mark::Durable, 2);
    let (status_then, answer) = sync(&node, SyncRequest::Durable { timeout_ms: 0 });
    assert_eq!(status_then, Status::Ok);
    assert_eq!(Token::decode(answer.try_into().unwrap()), token(3, 2, 7));
    node.engine().apply(4).unwrap();
    assert_eq!(status(), Status::Timeout);
    log.watermarks().advance(Mark::Durable, 9);
    assert_eq!(status(), Status::Ok);
}

#[test]
fn an_order_for_a_snapshot_needs_a_disk_and_a_data_set() {
    let order = |node: &Node| {
        let (status, message) = ask(node, &Request::Snapshot);
        assert_eq!(status, Status::Error);
        String::from_utf8(message).unwrap()
    };
    assert!(order(&follower()).starts_with("SNAPSHOT needs a disk, "));
    assert!(order(&Node::alone()).starts_with("SNAPSHOT needs a disk, "));
    let mut empty = node_of_two("n2");
    empty.keep_in(Arc::new(NoDirectory(StorageStatus::default())));
    assert_eq!(order(&empty), "SNAPSHOT: this node holds no data set");
    // Its directory takes no order.
    assert_eq!(
        order(&follower_with_disk()),
        "SNAPSHOT: this node is stopping"
    );
}

#[test]
fn durable_is_about_the_data_set_of_its_beginning_and_outlives_an_epoch() {
    let node = follower_with_disk();
    let log = node.engine().log().unwrap();
    let awaited = Awaited::Durable(token(3, 1, 7));
    let again = || match node.sync_again(awaited, Duration::ZERO) {
        Synced::Done(reply, position) => {
            // It does not wait for the watermark of an epoch, which may have ended.
            assert_eq!(position, Position::default());
            reply.status()
        }
        Synced::NotYet { reply, .. } => reply.status(),
    };
    assert_eq!(again(), Status::Timeout);
    let next = EpochStart {
        epoch: 5,
        nonce: 9,
        start_index: 2,
    };
    apply(node.engine(), &epoch_record(next)).unwrap();
    assert_eq!(again(), Status::Timeout);
    let (count, wake) = counter();
    let _wait = node.await_sync(awaited, Arc::clone(&wake)).unwrap();
    log.watermarks().advance(Mark::Written, 2);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    log.watermarks().advance(Mark::Durable, 1);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert_eq!(again(), Status::Ok);
    // Another data set, which is not on the disk.
    let _wait = node.await_sync(Awaited::Durable(token(5, 2, 9)), wake);
    node.discard_dataset("a snapshot replaces it");
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!(again(), Status::Loading);
    let engine = node.engine();
    let load = |history: Vec<EpochStart>, index| {
        engine.clear();
        let history = History::new(history).unwrap();
        let mut load = engine.load(0);
        assert!(load.finish(index, Digest::EMPTY, history, Instant::now()));
        node.adopt();
    };
    load(vec![EPOCH, next], 2);
    assert_eq!(
        again(),
        Status::Timeout,
        "the position is there, not durable"
    );
    assert_eq!(log.wanted_durable(), 1, "it was begun anew");
    log.watermarks().advance(Mark::Durable, 2);
    assert_eq!(again(), Status::Ok);
    load(vec![EpochStart { nonce: 8, ..EPOCH }], 1);
    assert_eq!(again(), Status::Lost);
}

/// Counts how often it is called.
fn counter() -> (Arc<AtomicU64>, Arc<dyn Fn() + Send + Sync>) {
    let count = Arc::new(AtomicU64::new(0));
    let called = Arc::clone(&count);
    let wake = move || {
        called.fetch_add(1, Ordering::SeqCst);
    };
    (count, Arc::new(wake))
}

#[test]
fn a_wait_is_woken_once_when_the_data_set_gets_there_or_becomes_another() {
    let node = follower();
    let (counts, wakes): (Vec<_>, Vec<_>) = (0..4).map(|_| counter()).unzip();
    let counts = || -> Vec<u64> {
        let counts = counts.iter();
        counts.map(|count| count.load(Ordering::SeqCst)).collect()
    };
    let log = node.engine().log().unwrap();
    let wait = |at: usize, index| log.await_index(index, Arc::clone(&wakes[at]));
    let (_two, _three, four, _far) = (wait(0, 2), wait(1, 3), wait(2, 4), wait(3, 1_000));
    let records = [set(b"a"), set(b"b")].concat();
    let digest = digest_after(node.engine(), &records);
    // Logged and not applied: nothing is reached.
    receive(node.engine(), &records, 1, digest).unwrap();
    assert_eq!(counts(), [0, 0, 0, 0]);
    node.engine().apply(2).unwrap();
    assert_eq!(counts(), [1, 0, 0, 0]);
    node.engine().apply(3).unwrap();
    assert_eq!(counts(), [1, 1, 0, 0]);
    drop(four);
    apply(node.engine(), &[set(b"c"), set(b"d")].concat()).unwrap();
    assert_eq!(counts(), [1, 1, 0, 0]);
    // A new epoch, and another data set.
    let (_again, next) = (wait(2, 2_000), node.head().index + 1);
    let next = EpochStart {
        epoch: 4,
        nonce: 1,
        start_index: next,
    };
    apply(node.engine(), &epoch_record(next)).unwrap();
    assert_eq!(counts(), [1, 1, 1, 1]);
    let _again = wait(3, 2_000);
    node.discard_dataset("a snapshot replaces it");
    assert_eq!(counts(), [1, 1, 1, 2]);
    assert_eq!(status_at(&node, token(3, 1, 7)), Status::Loading);
}

#[test]
fn no_wait_is_missed_while_a_leader_writes() {
    let leader = node_of_two("n1");
    leader.open_epoch(EPOCH).unwrap();
    let (leader, writes) = (&leader, 3_000_u64);
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for index in (2 + thread..writes).step_by(4) {
                    let token = token(3, index, 7);
                    let value = SyncRequest::At {
                        token,
                        timeout_ms: 1,
                    };
                    let value = value.value();
                    let me = thread::current();
                    let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || me.unpark());
                    loop {
                        let awaited = Awaited::Held(token);
                        let _wait = leader.await_sync(awaited, Arc::clone(&wake));
                        match leader.sync(&value) {
                            Synced::Done(reply, _) => {
                                assert_eq!(reply.status(), Status::Ok);
                                break;
                            }
                            // A wake-up that is missed would end the test here.
                            Synced::NotYet { .. } => park(),
                        }
                    }
                }
            });
        }
        for _ in 0..writes {
            ask(
                leader,
                &Request::Set {
                    key: b"k",
                    value: b"v",
                },
            );
        }
    });
}

/// Sleeps until the thread is woken, which must happen.
fn park() {
    let begin = Instant::now();
    thread::park_timeout(Duration::from_secs(30));
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "a wake-up was missed"
    );
}

#[test]
fn a_leader_that_follows_another_keeps_what_both_had() {
    let node = node_of_two("n1");
    node.open_epoch(EPOCH).unwrap();
    ask(
        &node,
        &Request::Set {
            key: b"k",
            value: b"v",
        },
    );
    let before = position(&node);
    node.follow(Leader {
        name: Arc::from("n2"),
        addr: Arc::from("127.0.0.1:2"),
    });
    assert_eq!(status_at(&node, before), Status::Ok);
    assert_eq!(status_at(&node, token(4, 5, 1)), Status::Timeout);
}
