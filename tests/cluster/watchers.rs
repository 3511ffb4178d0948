//! Watchers see the same as a follower, on any node, and are in no count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gopherstore::client::{
    Change, Client, ClientOptions, Error, Watch, WatchFrom, Watched, Watcher,
};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::replication::core::liveness::SILENT_HEARTBEATS;
use gopherstore::wire::replication::Start;
use gopherstore::wire::{Opcode, Request, Token};

use crate::support::cluster::{Cluster, Options, wait_until};
use crate::support::load::{self, Load};
use crate::support::names::{key, peer, state};
use crate::support::node::PATIENCE;
use crate::support::proxy::{Cut, Proxy, Way};

const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";
const SMALL: &str =
    "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\nbacklog_bytes = 1048576";
const WITHIN: Duration = Duration::from_secs(30);

fn cluster(count: usize, replication: &str) -> Cluster {
    let options = Options {
        replication: replication.to_owned(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(count, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

fn options() -> ClientOptions {
    ClientOptions {
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
        ..ClientOptions::default()
    }
}

/// A watch of all keys with their values.
fn all(from: WatchFrom) -> Watch {
    Watch {
        values: true,
        from,
        ..Watch::default()
    }
}

fn watch(cluster: &Cluster, node: usize, from: WatchFrom) -> Result<Watcher, Error> {
    Watcher::open(&cluster.addr(node).to_string(), &options(), all(from))
}

/// The response to a watcher whose stream does not begin.
#[track_caller]
fn refusal(result: Result<Watcher, Error>) -> String {
    match result {
        Err(Error::Server { message } | Error::Lost { message }) => message,
        other => panic!("{other:?}"),
    }
}

/// The oldest index that is left, where a stream does not begin for lack of older ones.
#[track_caller]
fn oldest<T: std::fmt::Debug>(result: Result<T, Error>) -> u64 {
    match result {
        Err(Error::Compacted { oldest }) => oldest,
        other => panic!("{other:?}"),
    }
}

/// The error that ends a stream on which nothing but heartbeats comes.
#[track_caller]
fn end_of(watcher: &mut Watcher) -> Error {
    loop {
        match watcher.receive() {
            Ok(message) => assert!(matches!(message, Watched::Heartbeat { .. }), "{message:?}"),
            Err(error) => return error,
        }
    }
}

/// A data set made from a stream.
#[derive(Default)]
struct Copy {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    digest: Digest,
}

impl Copy {
    fn apply<'a>(&mut self, changes: impl Iterator<Item = Change<'a>>) {
        for change in changes {
            let key = change.key();
            let (old, new) = match change.value() {
                None => {
                    assert!(matches!(change.opcode(), Opcode::Del | Opcode::Epoch));
                    (self.entries.remove(key), Digest::EMPTY)
                }
                Some(value) => (
                    self.entries.insert(key.to_vec(), value.to_vec()),
                    digest_of(key, value),
                ),
            };
            let old = old.map_or(Digest::EMPTY, |value| digest_of(key, &value));
            self.digest = self.digest.changed(old, new);
        }
    }
}

fn digest_of(key: &[u8], value: &[u8]) -> Digest {
    let mut bytes = Vec::new();
    Request::Set { key, value }.encode(&mut bytes).unwrap();
    let limits = gopherstore::wire::request::Limits {
        value_len_max: u32::MAX,
    };
    match gopherstore::wire::request::parse(&bytes, &limits).unwrap() {
        gopherstore::wire::request::Parsed::Whole(frame) => Digest::of(&Entry::copy_of(&frame)),
        other => panic!("{other:?}"),
    }
}

/// A change as it was received: operation, key, and value.
type Shown = (Opcode, Vec<u8>, Option<Vec<u8>>);

/// All changes up to the record with the index `last`, from the stream's start.
fn entries(watcher: &mut Watcher, last: u64) -> Vec<Shown> {
    let mut seen = Vec::new();
    while watcher.position().unwrap().index < last {
        if let Watched::Event(event) = watcher.receive().unwrap() {
            let changes = event.changes();
            seen.extend(changes.map(|change| {
                let value = change.value().map(<[u8]>::to_vec);
                (change.opcode(), change.key().to_vec(), value)
            }));
        }
    }
    seen
}

#[test]
fn any_node_shows_the_same_entries_and_counts_no_watcher() {
    let cluster = cluster(3, QUICK);
    let counts = |node: usize| {
        let status = cluster.status(node).unwrap();
        (
            status.number(key::FULL_COPIES),
            status.number(key::RESUMES),
            cluster
                .client(node)
                .status()
                .unwrap()
                .matches("follower.")
                .count(),
        )
    };
    cluster.wait_for_status(0, WITHIN, "both followers", |status| {
        [1, 2]
            .iter()
            .all(|&at| status.get(&key::follower_state(cluster.name(at))) == Some("following"))
    });
    let before: Vec<_> = (0..3).map(counts).collect();
    let mut watchers: Vec<Watcher> = (0..3)
        .map(|node| watch(&cluster, node, WatchFrom::Now).unwrap())
        .collect();
    let mut client = cluster.client(0);
    let first = cluster.number(0, key::INDEX) + 1;
    let large = vec![b'x'; 300_000];
    for at in 0_u32..500 {
        client.set(&at.to_be_bytes(), b"value").unwrap();
    }
    client.set(b"large", &large).unwrap();
    assert!(client.del(&7_u32.to_be_bytes()).unwrap());
    let last = cluster.number(0, key::INDEX);
    assert_eq!(last, first + 501);
    let seen: Vec<_> = watchers
        .iter_mut()
        .map(|watcher| {
            assert_eq!(watcher.start(), Start::Resume { from_index: first });
            entries(watcher, last)
        })
        .collect();
    assert_eq!(seen[0].len(), 502);
    assert!(seen[0] == seen[1] && seen[1] == seen[2]);
    assert_eq!(seen[0][500], (Opcode::Set, b"large".to_vec(), Some(large)));
    assert_eq!(
        seen[0][501],
        (Opcode::Del, 7_u32.to_be_bytes().to_vec(), None)
    );
    // A watcher that has been silent for longer than any follower may be still receives entries.
    for watcher in &mut watchers {
        for _ in 0..2 * SILENT_HEARTBEATS {
            let message = watcher.receive().unwrap();
            assert!(matches!(message, Watched::Heartbeat { .. }), "{message:?}");
        }
    }
    client.set(b"late", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    for (node, watcher) in watchers.iter_mut().enumerate() {
        let late = entries(watcher, last + 1);
        assert_eq!(late.len(), 1, "{}", cluster.name(node));
        let position = watcher.position().unwrap();
        let from = WatchFrom::After(position);
        let mut again = watch(&cluster, (node + 1) % 3, from).unwrap();
        assert_eq!(
            again.start(),
            Start::Resume {
                from_index: last + 2
            }
        );
        assert!(matches!(
            again.receive().unwrap(),
            Watched::Heartbeat { .. }
        ));
        assert_eq!(again.position(), Some(position));
    }
    let old = watch(&cluster, 2, WatchFrom::Index(first));
    let old = entries(&mut old.unwrap(), last);
    assert!(old[..502] == seen[0], "not the same a second time");
    assert_eq!((0..3).map(counts).collect::<Vec<_>>(), before);
}

#[test]
fn a_watcher_is_told_what_there_is_where_that_is_not_what_it_wants() {
    let cluster = cluster(2, SMALL);
    let pairs: Vec<_> = (0_u32..60)
        .map(|at| (at.to_be_bytes(), vec![b'v'; 60_000]))
        .collect();
    cluster.write_all(pairs.iter().map(|(key, value)| (&key[..], &value[..])));
    cluster.wait_converged(WITHIN);
    for node in 0..2 {
        let first = oldest(watch(&cluster, node, WatchFrom::Index(1)));
        assert!((2..62).contains(&first), "{first}");
        let held = watch(&cluster, node, WatchFrom::Index(first)).unwrap();
        assert_eq!(held.start(), Start::Resume { from_index: first });
        assert_eq!(
            refusal(watch(&cluster, node, WatchFrom::Index(100))),
            "no entry after 99 yet, this node's last one is 61"
        );
        let stranger = Token {
            epoch: 1,
            nonce: 1,
            index: 3,
        };
        let lost = watch(&cluster, node, WatchFrom::After(stranger));
        assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
        assert_eq!(
            refusal(lost),
            "entry 3 of epoch 1 is not in this node's history, which does not have that epoch"
        );
    }
}

#[test]
fn a_snapshot_under_writes_is_the_data_at_its_index() {
    let cluster = cluster(2, QUICK);
    let fill: Vec<_> = (0_u32..20_000).map(u32::to_be_bytes).collect();
    cluster.write_all(fill.iter().map(|key| (&key[..], &key[..])));
    let load = Load::start(
        cluster.addr(0),
        load::Options {
            keys: 2_000,
            per_second: None,
            dels: 30,
            ..load::Options::default()
        },
    );
    load.wait_for_more(2_000);
    for node in [0, 1] {
        let mut watcher = watch(&cluster, node, WatchFrom::Snapshot).unwrap();
        assert_eq!(watcher.start(), Start::Snapshot);
        assert_eq!(watcher.position(), None);
        let mut copy = Copy::default();
        let index = loop {
            match watcher.receive().unwrap() {
                Watched::Snapshot(frames) => copy.apply(frames.changes()),
                Watched::SnapshotEnd { position, digest } => {
                    assert_eq!(copy.digest.to_u128(), digest, "{}", cluster.name(node));
                    break position.index;
                }
                Watched::SnapshotBegin { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        // And the entries that follow lead on from it, up to every digest that the node then tells.
        let (mut last, mut compared) = (index, 0);
        while compared < 3 {
            match watcher.receive().unwrap() {
                Watched::Event(event) => {
                    assert_eq!(event.position().index, last + 1);
                    last += 1;
                    copy.apply(event.changes());
                }
                Watched::Heartbeat {
                    digest_index,
                    digest,
                } => {
                    assert_eq!((digest_index, digest), (last, copy.digest.to_u128()));
                    compared += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_watcher_that_takes_nothing_is_dropped_and_told_that_it_was_too_slow() {
    let cluster = cluster(2, SMALL);
    let mut idle = watch(&cluster, 0, WatchFrom::Now).unwrap();
    let position = idle.position().unwrap();
    // The other node's probe is one of them, once it is there.
    cluster.wait_for_status(1, WITHIN, "its probe of n1", |status| {
        status.get(&key::peer_state("n1")) == Some(peer::UP)
    });
    let connections = cluster.number(0, "connections");
    let value = vec![b'v'; 100_000];
    let mut client = cluster.client(0);
    let mut written = 0_u32;
    // Until the sockets between hold no more; the writer is never held up by that.
    let begin = Instant::now();
    while !cluster.process(0).log().contains("no longer watches: it") {
        assert!(
            begin.elapsed() < WITHIN,
            "not dropped after {written} writes"
        );
        for _ in 0..20 {
            client.set(&(written % 10).to_be_bytes(), &value).unwrap();
            written += 1;
        }
    }
    wait_until(WITHIN, "its connection to be gone", || {
        cluster.number(0, "connections") <= connections
    });
    let kept = cluster.number(0, "backlog_bytes");
    assert!(
        kept <= 2 << 20,
        "{kept} bytes of log, and 1 MiB was allowed"
    );
    let lost = loop {
        match idle.receive() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, Error::Connection { .. }), "{lost}");
    assert!(cluster.process(0).log().contains("fell behind"));
    let left = oldest(watch(&cluster, 0, WatchFrom::After(position)));
    assert!(left > position.index + 1, "{left}");
    // The content of the sockets is received by now, and later events are gone.
    let received = idle.position().unwrap().index;
    assert!(
        received >= position.index && received + 1 < left,
        "{received}"
    );
    let addr = cluster.addr(0).to_string();
    assert_eq!(oldest(idle.resume(&[&addr], WITHIN)), left);
    assert_eq!(idle.position().unwrap().index, received, "as it was");
}

/// As `dump` does while it writes into a pipe whose reader pauses.
#[test]
fn a_watcher_may_pause_in_the_midst_of_a_snapshot() {
    const HEARTBEAT: Duration = Duration::from_millis(100);
    let cluster = cluster(2, QUICK);
    let value = vec![b'v'; 100_000];
    let keys: Vec<_> = (0_u32..300).map(u32::to_be_bytes).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
    let mut copy = Copy::default();
    let mut paused = watch(&cluster, 0, WatchFrom::Snapshot).unwrap();
    let begin = paused.receive().unwrap();
    assert!(matches!(begin, Watched::SnapshotBegin { .. }), "{begin:?}");
    // More than the sockets between hold, so the sender waits.
    let begin = Instant::now();
    while begin.elapsed() < HEARTBEAT * SILENT_HEARTBEATS * 4 {
        let log = cluster.process(0).log();
        assert!(!log.contains("no longer watches"), "{log}");
        std::thread::sleep(HEARTBEAT / 4);
    }
    // The log moves on meanwhile, and still holds what comes next.
    cluster.client(0).set(b"late", b"entry").unwrap();
    let (index, digest) = loop {
        match paused.receive().unwrap() {
            Watched::Snapshot(frames) => copy.apply(frames.changes()),
            Watched::SnapshotEnd { position, digest } => break (position.index, digest),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((copy.entries.len(), index), (301, 302));
    assert_eq!(copy.digest.to_u128(), digest);
}

#[test]
fn the_stop_does_not_wait_for_a_watcher() {
    let replication = "heartbeat_interval_ms = 10000\nleader_timeout_ms = 40000";
    let mut cluster = cluster(2, replication);
    let stuck = watch(&cluster, 0, WatchFrom::Now).unwrap();
    let value = vec![b'v'; 1_000_000];
    let mut client: Client = cluster.client(0);
    // More than the sockets take, so that its sender waits for room.
    for at in 0_u32..20 {
        client.set(&at.to_be_bytes(), &value).unwrap();
    }
    cluster.wait_converged(WITHIN);
    let begin = Instant::now();
    cluster.stop(0);
    // It would be cut off after 5 seconds, or give the watcher 30 of its own.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(stuck);
}

/// All that was acknowledged before the stop is shown, to a watcher that reads on, though it is behind.
#[test]
fn a_node_that_stops_sends_its_watchers_what_its_log_holds() {
    for node in [0, 1] {
        let mut cluster = cluster(2, QUICK);
        let mut watcher = watch(&cluster, node, WatchFrom::Now).unwrap();
        // More than the sockets take.
        let (count, value) = (1_000, vec![b'v'; 20_000]);
        let keys: Vec<_> = (0_u32..count).map(u32::to_be_bytes).collect();
        cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
        cluster.wait_converged(WITHIN);
        cluster.begin_stop(node);
        // The first record is an EPOCH.
        let shown = entries(&mut watcher, u64::from(count) + 1);
        assert_eq!(shown.len(), keys.len());
        let lost = end_of(&mut watcher);
        assert!(matches!(lost, Error::Connection { .. }), "{lost}");
        cluster.wait_stopped(node);
    }
}

/// Two nodes with a small backlog and a proxy between them.
fn with_proxy() -> Cluster {
    let options = Options {
        replication: SMALL.to_owned(),
        proxies: true,
        ..Options::default()
    };
    let cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

#[test]
fn a_follower_that_takes_another_data_set_ends_the_streams_of_the_old_one() {
    let cluster = with_proxy();
    cluster.client(0).set(b"k", b"v").unwrap();
    cluster.wait_converged(WITHIN);
    let mut watcher = watch(&cluster, 1, WatchFrom::Index(2)).unwrap();
    assert_eq!(entries(&mut watcher, 2).len(), 1);
    let link = cluster.link(1, 0);
    link.refuse(true);
    link.cut(Cut::End);
    let pairs: Vec<_> = (0_u32..60)
        .map(|at| (at.to_be_bytes(), vec![b'v'; 60_000]))
        .collect();
    cluster.write_all(pairs.iter().map(|(key, value)| (&key[..], &value[..])));
    link.pass();
    cluster.wait_converged(WITHIN);
    let lost = end_of(&mut watcher);
    assert!(matches!(lost, Error::Connection { .. }), "{lost}");
    let position = watcher.position().unwrap();
    assert_eq!(position.index, 2);
    let left = oldest(watch(&cluster, 1, WatchFrom::After(position)));
    assert_eq!(left, 63);
}

/// Writes one entry after another, each under its own key, until the test stops it. Gives the keys of those that were
/// acknowledged.
fn write_until(addr: &str, is_over: &AtomicBool) -> Vec<Vec<u8>> {
    let options = ClientOptions {
        timeout: PATIENCE,
        follow_redirects: false,
        ..ClientOptions::default()
    };
    let mut acknowledged = Vec::new();
    let mut client = None;
    for number in 0_u64.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        let key = number.to_be_bytes();
        let mut write = || -> Result<(), Error> {
            let client = match &mut client {
                Some(client) => client,
                none => none.insert(Client::connect_with(addr, options.clone())?),
            };
            client.set(&key, b"v")
        };
        match write() {
            Ok(()) => acknowledged.push(key.to_vec()),
            Err(Error::Loading { .. }) => {}
            Err(_) => client = None,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    acknowledged
}

/// The entries that a watcher received on all its streams: position and key.
type Received = Vec<(Token, Vec<u8>)>;

/// Watches a node until the entry with the key `last`, and goes on after each end of the stream where it was. `reached`
/// gets the index of each entry. Returns the number of streams.
fn watch_until(addr: &str, last: &[u8], received: &mut Received, reached: &AtomicU64) -> u64 {
    let begin = Instant::now();
    let mut watcher = Watcher::open(addr, &options(), all(WatchFrom::Index(1))).unwrap();
    let mut streams = 1;
    while begin.elapsed() < 4 * WITHIN {
        let newest = watcher.history().last().unwrap().epoch;
        match watcher.receive() {
            Ok(Watched::Event(event)) => {
                let position = event.position();
                assert!(position.epoch <= newest);
                received.extend(
                    event
                        .changes()
                        .map(|change| (position, change.key().to_vec())),
                );
                reached.store(position.index, Ordering::SeqCst);
                if received.last().is_some_and(|(_, key)| key == last) {
                    return streams;
                }
            }
            Ok(message) => assert!(matches!(message, Watched::Heartbeat { .. }), "{message:?}"),
            Err(Error::Connection { .. }) => {
                if let Err(error) = watcher.resume(&[addr], WITHIN) {
                    panic!("refused after {:?}: {error}", received.last());
                }
                streams += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{} entries within {:?}", received.len(), begin.elapsed());
}

/// A follower's history grows when its leader restarts, and its watchers see that before the first entry of the new
/// epoch: the follower may adopt the history and apply entries between two heartbeats of the watcher's sender.
#[test]
fn a_watcher_of_a_follower_sees_each_entry_once_and_under_its_epoch_while_leaders_restart() {
    watch_while_leaders_restart(1);
}

/// Entries acknowledged just before a leader stops are in no log once it is back, so watchers receive them first.
#[test]
fn a_watcher_of_a_leader_sees_each_entry_once_while_that_stops_and_starts() {
    watch_while_leaders_restart(0);
}

fn watch_while_leaders_restart(watched: usize) {
    let mut cluster = cluster(3, QUICK);
    let (leader, watched_addr) = (
        cluster.addr(0).to_string(),
        cluster.addr(watched).to_string(),
    );
    let (is_over, reached) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut shown = Received::new();
    let (acknowledged, streams) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&leader, &is_over));
        let watcher = scope.spawn(|| watch_until(&watched_addr, b"last", &mut shown, &reached));
        for _ in 0..5 {
            let before = cluster.number(0, key::INDEX);
            cluster.wait_for_status(0, WITHIN, "writes", |status| {
                status.number(key::INDEX) > Some(before + 100)
            });
            // A watcher that has no stream by the time of the stop misses what the next log does not have.
            wait_until(WITHIN, "the watcher", || {
                watcher.is_finished() || reached.load(Ordering::SeqCst) > before
            });
            cluster.kill(2);
            cluster.stop(0);
            cluster.restart(2);
            cluster.restart(0);
            cluster.wait_for_status(0, WITHIN, "a new epoch", |status| {
                status.is_state(state::SERVING)
            });
        }
        is_over.store(true, Ordering::SeqCst);
        let acknowledged = writer.join().unwrap();
        cluster.client(0).set(b"last", b"v").unwrap();
        (acknowledged, watcher.join().unwrap())
    });
    assert!(streams > 5, "{streams} streams and 5 new epochs");
    let indexes: Vec<u64> = shown.iter().map(|(position, _)| position.index).collect();
    let all: Vec<u64> = (1..).take(indexes.len()).collect();
    assert!(indexes == all, "missed or doubled: {indexes:?}");
    let watcher = watch(&cluster, watched, WatchFrom::Now).unwrap();
    let history = watcher.history();
    assert_eq!(history.epochs().len(), 6);
    for (position, _) in &shown {
        let start = history.epoch_of(position.index).unwrap();
        let found = (position.epoch, position.nonce);
        assert_eq!(
            (start.epoch, start.nonce),
            found,
            "entry {}",
            position.index
        );
    }
    assert!(shown.is_sorted_by_key(|(position, _)| *position));
    let set: BTreeSet<&[u8]> = acknowledged.iter().map(|key| &key[..]).collect();
    let keys = shown.iter().map(|(_, key)| key);
    let keys: Vec<&Vec<u8>> = keys.filter(|key| set.contains(&key[..])).collect();
    assert!(keys.into_iter().eq(&acknowledged), "not in their order");
}

/// A copy taken while the data set is being replaced is one data set or the other, or nothing.
#[test]
fn a_snapshot_of_a_follower_that_changes_its_data_set_is_never_a_mixture() {
    let cluster = with_proxy();
    let value = vec![b'v'; 1_000];
    let keys: Vec<_> = (0_u32..10_000).map(u32::to_be_bytes).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
    cluster.wait_converged(WITHIN);
    let proxy = Proxy::start(cluster.addr(1));
    proxy.throttle(Way::Down, Some(4 << 20));
    let addr = proxy.addr().to_string();
    let mut watcher = Watcher::open(&addr, &options(), all(WatchFrom::Snapshot)).unwrap();
    let mut copy = Copy::default();
    let mut has_replaced = false;
    let ended = loop {
        match watcher.receive() {
            Ok(Watched::Snapshot(frames)) => copy.apply(frames.changes()),
            Ok(Watched::SnapshotEnd { digest, .. }) => {
                break Ok((digest, copy.digest.to_u128()));
            }
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        if !has_replaced && !copy.entries.is_empty() {
            has_replaced = true;
            let link = cluster.link(1, 0);
            link.refuse(true);
            link.cut(Cut::End);
            let other = vec![b'w'; 1_000];
            cluster.write_all(keys[..2_000].iter().map(|key| (&key[..], &other[..])));
            link.pass();
            cluster.wait_converged(WITHIN);
            proxy.pass();
        }
    };
    match ended {
        Ok((told, found)) => assert_eq!(told, found),
        Err(error) => assert!(matches!(error, Error::Connection { .. }), "{error}"),
    }
}
