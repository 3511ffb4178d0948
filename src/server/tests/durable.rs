//! SYNC durable, through sockets: waits for a watermark that the test moves, and for that of a real disk.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::Engine;
use crate::log::Log;
use crate::node::{DataDirectory, StorageStatus};
use crate::server::disk::Disk;
use crate::storage::identity::Identity;
use crate::wire::{SyncRequest, Token};

/// Runs a single node with a disk, which `open` adds to it, for the length of `test`.
fn with_disk(open: impl FnOnce(&Node) -> Option<Arc<Disk>>, test: impl FnOnce(&Server, &Log)) {
    let text =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    let mut node = Node::with_disk(&config, config.leader());
    let disk = open(&node);
    match &disk {
        Some(disk) => {
            node.acknowledge_at(disk.acknowledges_at());
            node.keep_in(Arc::clone(disk) as Arc<dyn DataDirectory>);
        }
        None => node.keep_in(Arc::new(NoDirectory(StorageStatus::default()))),
    }
    let mut server = Server::bind("127.0.0.1:0", node, config.limits.clone()).unwrap();
    if let Some(disk) = disk {
        server = server.writing_to(disk);
    }
    thread::scope(|scope| {
        scope.spawn(|| server.run_until_stopped().unwrap());
        let _stop = Stop(&server);
        wait_for("the leader", || server.node.refuses_writes().is_none());
        test(&server, server.node.engine().log().unwrap());
    });
}

struct Stop<'a>(&'a Server);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stopper().stop();
    }
}

/// Stands for the directory of a disk that only the test moves.
#[derive(Debug)]
struct NoDirectory(StorageStatus);

impl DataDirectory for NoDirectory {
    fn restore(&self, _: &Engine) -> bool {
        false
    }

    fn begin_snapshot(&self, _: &Log) -> bool {
        false
    }

    fn status(&self) -> &StorageStatus {
        &self.0
    }
}

/// A disk that only the test moves.
fn with_hand_moved_disk(test: impl FnOnce(&Server, &Log)) {
    let open = |node: &Node| {
        let log = node.engine().log().unwrap();
        log.begin_writing(0, Mark::Appended);
        None
    };
    with_disk(open, test);
}

/// A directory whose log is synced only where that is asked for.
fn with_directory(path: &Path, policy: SyncPolicy, test: impl FnOnce(&Server, &Log)) {
    let own = Identity {
        cluster: "c".to_owned(),
        node: "n1".to_owned(),
    };
    let storage = StorageConfig {
        sync: policy,
        sync_interval: Duration::from_secs(3_600),
        ..StorageConfig::default()
    };
    let open = |node: &Node| {
        let disk = Disk::open(path, &own, storage).unwrap();
        disk.recover(node).unwrap();
        Some(Arc::new(disk))
    };
    with_disk(open, test);
}

fn index(log: &Log, mark: Mark) -> u64 {
    log.watermarks().index(mark).unwrap()
}

fn durable(timeout_ms: u32) -> Vec<u8> {
    SyncRequest::Durable { timeout_ms }.value()
}

/// The token of an answer that is OK.
fn token(stream: &TcpStream) -> Token {
    let (status, value) = answer(stream);
    assert_eq!(status, Status::Ok, "{}", value.escape_ascii());
    Token::decode(value.try_into().unwrap())
}

#[test]
fn it_waits_until_the_disk_has_what_came_before_it_and_delays_nobody() {
    with_hand_moved_disk(|server, log| {
        let (client, other) = (connect(server), connect(server));
        let value = &durable(30_000);
        let sync = Request::Sync { value };
        send(
            &client,
            &[set(b"a", b"1"), sync, set(b"a", b"2"), Request::Ping],
        );
        assert_eq!(answer(&client), ok(b""), "the SET does not wait for it");
        let index = EPOCH_INDEX + 1;
        wait_for("the wish", || log.wanted_durable() == index);
        // Others are served, and what they write is not waited for.
        send(&other, &[set(b"b", b"1"), Request::Get { key: b"a" }]);
        assert_eq!((answer(&other), answer(&other)), (ok(b""), ok(b"1")));
        log.watermarks().advance(Mark::Written, index + 1);
        log.watermarks().advance(Mark::Durable, index - 1);
        silent(&client);
        log.watermarks().advance(Mark::Durable, index);
        assert_eq!(token(&client).index, index);
        assert_eq!((answer(&client), answer(&client)), (ok(b""), ok(b"PONG")));
        assert_eq!(log.head().index, index + 2);
    });
}

#[test]
fn after_its_time_the_answer_is_timeout_and_without_one_it_does_not_wait() {
    with_hand_moved_disk(|server, log| {
        let client = connect(server);
        for timeout_ms in [0, 1, 40] {
            let (value, began) = (&durable(timeout_ms), Instant::now());
            send(&client, &[set(b"a", b"1"), Request::Sync { value }]);
            assert_eq!(answer(&client), ok(b""));
            let (status, message) = answer(&client);
            let message = String::from_utf8(message).unwrap();
            assert_eq!(status, Status::Timeout, "{message}");
            let index = log.head().index;
            let expected = format!(
                "the disk of this node has its records up to index 0, and {index} is asked for"
            );
            assert_eq!(message, expected);
            assert!(began.elapsed() >= Duration::from_millis(timeout_ms.into()));
            assert_eq!(log.wanted_durable(), index, "the sync goes on");
        }
        log.watermarks().advance(Mark::Durable, log.head().index);
        let value = &durable(0);
        send(&client, &[Request::Sync { value }]);
        assert_eq!(token(&client).index, log.head().index);
    });
}

#[test]
fn one_sync_serves_all_that_wait() {
    with_hand_moved_disk(|server, log| {
        let clients: Vec<TcpStream> = (0..40).map(|_| connect(server)).collect();
        let value = &durable(30_000);
        for client in &clients {
            send(client, &[set(b"a", b"1"), Request::Sync { value }]);
        }
        let index = EPOCH_INDEX + 40;
        for client in &clients {
            assert_eq!(answer(client), ok(b""));
        }
        wait_for("all wishes", || log.wanted_durable() == index);
        silent(&clients[0]);
        log.watermarks().advance(Mark::Durable, index);
        for client in &clients {
            assert!((EPOCH_INDEX + 1..=index).contains(&token(client).index));
        }
    });
}

#[test]
fn a_stop_ends_the_wait() {
    with_hand_moved_disk(|server, _| {
        let client = connect(server);
        let value = &durable(600_000);
        send(&client, &[set(b"a", b"1"), Request::Sync { value }]);
        assert_eq!(answer(&client), ok(b""));
        silent(&client);
        server.stopper().stop();
        assert_eq!(answer(&client).0, Status::Loading);
    });
}

#[test]
fn a_directory_is_synced_for_it_whatever_the_policy_is() {
    for policy in [SyncPolicy::Never, SyncPolicy::Interval] {
        let dir = tempfile::tempdir().unwrap();
        with_directory(&dir.path().join("data"), policy, |server, log| {
            let client = connect(server);
            for round in 0..20 {
                send(&client, &[set(b"a", b"1")]);
                assert_eq!(answer(&client), ok(b""));
                let (written, head) = (index(log, Mark::Written), log.head().index);
                assert_eq!(written, head, "the answer waited for that");
                let before = index(log, Mark::Durable);
                assert!(
                    before < head,
                    "{policy:?}, {round}: nobody asked for a sync"
                );
                let value = &durable(30_000);
                send(&client, &[Request::Sync { value }]);
                assert_eq!(token(&client).index, head);
                assert!(index(log, Mark::Durable) >= head);
            }
        });
    }
}

/// Writers that never cease, so that the log-writer thread never finds nothing to write.
#[test]
fn it_is_answered_under_load_by_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    with_directory(&path, SyncPolicy::Never, |server, log| {
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let is_over = &is_over;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    let (client, value) = (connect(server), [b'v'; 10_000]);
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        send(&client, &[set(b"load", &value); 20]);
                        (0..20).for_each(|_| assert_eq!(answer(&client), ok(b"")));
                    }
                });
            }
            let syncing: Vec<_> = (0..6_u8)
                .map(|number| {
                    scope.spawn(move || {
                        let (client, key) = (connect(server), [number]);
                        for _ in 0..30 {
                            let value = &durable(30_000);
                            let requests = [set(&key, b"1"), Request::Sync { value }];
                            send(&client, &requests);
                            assert_eq!(answer(&client), ok(b""));
                            let token = token(&client);
                            assert!(index(log, Mark::Durable) >= token.index);
                        }
                    })
                })
                .collect();
            let ends: Vec<_> = syncing.into_iter().map(|thread| thread.join()).collect();
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(ends.iter().all(Result::is_ok));
        });
    });
}
