//! An observer of a stream sees the same as a follower, on any node, and is in no count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gopherstore::client::{Client, ClientOptions, Error, Observer, Watch};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::replication::core::liveness::SILENT_HEARTBEATS;
use gopherstore::wire::replication::{Follow, Frames, Message, Start};
use gopherstore::wire::{Request, RequestFrame};

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

fn observe(cluster: &Cluster, node: usize, watch: Watch) -> Result<Observer, Error> {
    let options = ClientOptions {
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    Observer::open(&cluster.addr(node).to_string(), &options, watch)
}

/// The response to an observer whose stream does not begin.
#[track_caller]
fn refusal(result: Result<Observer, Error>) -> String {
    match result {
        Err(Error::Server { message }) => message,
        other => panic!("{other:?}"),
    }
}

/// A data set made from a stream.
#[derive(Default)]
struct Copy {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    digest: Digest,
}

impl Copy {
    fn apply(&mut self, frames: Frames<'_>) {
        for frame in frames {
            self.apply_one(&frame);
        }
    }

    fn apply_one(&mut self, frame: &RequestFrame<'_>) {
        let key = frame.request().key();
        let (old, new) = match frame.request() {
            Request::Del { .. } => (self.entries.remove(key), Digest::EMPTY),
            request => (
                self.entries.insert(key.to_vec(), request.value().to_vec()),
                Digest::of(&Entry::copy_of(frame)),
            ),
        };
        let old = old.map_or(Digest::EMPTY, |value| digest_of(key, &value));
        self.digest = self.digest.changed(old, new);
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

/// The frames of all entries up to `last`, from the stream's start.
fn entries(observer: &mut Observer, last: u64) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    loop {
        if let Message::Entries {
            first_index,
            frames,
            ..
        } = observer.receive().unwrap()
        {
            seen.extend(frames.iter().map(|frame| frame.bytes().to_vec()));
            if first_index + u64::from(frames.count()) > last {
                return seen;
            }
        }
    }
}

#[test]
fn any_node_shows_the_same_entries_and_counts_no_observer() {
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
    let mut observers: Vec<Observer> = (0..3)
        .map(|node| observe(&cluster, node, Watch::New).unwrap())
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
    let seen: Vec<_> = observers
        .iter_mut()
        .map(|observer| {
            assert_eq!(observer.start(), Start::Resume { from_index: first });
            entries(observer, last)
        })
        .collect();
    assert_eq!(seen[0].len(), 502);
    assert!(seen[0] == seen[1] && seen[1] == seen[2]);
    assert_eq!(&seen[0][500][12..], &large);
    assert_eq!(
        seen[0][501],
        b"\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x07"
    );
    // An observer that has been silent for longer than any follower may be still receives entries.
    for observer in &mut observers {
        for _ in 0..2 * SILENT_HEARTBEATS {
            let message = observer.receive().unwrap();
            assert!(matches!(message, Message::Heartbeat { .. }), "{message:?}");
        }
    }
    client.set(b"late", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    for (node, observer) in observers.iter_mut().enumerate() {
        let late = entries(observer, last + 1);
        assert_eq!(late.len(), 1, "{}", cluster.name(node));
        let position = observer.position().unwrap();
        let mut again = observe(&cluster, (node + 1) % 3, position).unwrap();
        assert_eq!(
            again.start(),
            Start::Resume {
                from_index: last + 2
            }
        );
        assert!(matches!(
            again.receive().unwrap(),
            Message::Heartbeat { .. }
        ));
    }
    let old = observe(&cluster, 2, Watch::From(first));
    let old = entries(&mut old.unwrap(), last);
    assert!(old[..502] == seen[0], "not the same a second time");
    assert_eq!((0..3).map(counts).collect::<Vec<_>>(), before);
}

#[test]
fn an_observer_is_told_what_there_is_where_that_is_not_what_it_wants() {
    let cluster = cluster(2, SMALL);
    let pairs: Vec<_> = (0_u32..60)
        .map(|at| (at.to_be_bytes(), vec![b'v'; 60_000]))
        .collect();
    cluster.write_all(pairs.iter().map(|(key, value)| (&key[..], &value[..])));
    cluster.wait_converged(WITHIN);
    for node in 0..2 {
        let gone = refusal(observe(&cluster, node, Watch::From(1)));
        let (_, first) = gone
            .split_once("entry 1 is no longer in the log, which begins at index ")
            .unwrap_or_else(|| panic!("{gone}"));
        let first: u64 = first.parse().unwrap();
        let held = observe(&cluster, node, Watch::From(first)).unwrap();
        assert_eq!(held.start(), Start::Resume { from_index: first });
        assert_eq!(
            refusal(observe(&cluster, node, Watch::From(100))),
            "no entry after 99 yet, this node's last one is 61"
        );
        let stranger = Watch::After {
            epoch: 1,
            nonce: 1,
            index: 3,
        };
        assert_eq!(
            refusal(observe(&cluster, node, stranger)),
            "entry 3 of epoch 1 is not in this node's history"
        );
        let follow = |cluster_id: &[u8]| {
            let mut frame = Vec::new();
            let follow = Follow {
                name: b"anybody",
                is_observer: true,
                wants_snapshot: false,
                is_to_lead: false,
                epoch: 0,
                nonce: 0,
                last_index: 61,
                cluster_id,
            };
            follow.encode(&mut frame).unwrap();
            // The node shuts nothing down: the first bytes are the response.
            let mut stream = TcpStream::connect(cluster.addr(node)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&frame).unwrap();
            let mut header = [0; 5];
            std::io::Read::read_exact(&mut stream, &mut header).unwrap();
            header[0]
        };
        assert_eq!((follow(b""), follow(b"test"), follow(b"prod")), (0, 0, 1));
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
        let mut observer = observe(&cluster, node, Watch::Copy).unwrap();
        assert_eq!(observer.start(), Start::Snapshot);
        let mut copy = Copy::default();
        let index = loop {
            match observer.receive().unwrap() {
                Message::SnapshotChunk { frames, .. } => copy.apply(frames),
                Message::SnapshotEnd { index, digest, .. } => {
                    assert_eq!(copy.digest.to_u128(), digest, "{}", cluster.name(node));
                    break index;
                }
                Message::SnapshotBegin { .. } | Message::Heartbeat { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        // And the entries that follow lead on from it, up to every digest that the node then tells.
        let (mut last, mut compared) = (index, 0);
        while compared < 3 {
            match observer.receive().unwrap() {
                Message::Entries {
                    first_index,
                    frames,
                    ..
                } => {
                    assert_eq!(first_index, last + 1);
                    last += u64::from(frames.count());
                    copy.apply(frames);
                }
                Message::Heartbeat {
                    digest_index,
                    digest,
                    ..
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
fn an_observer_that_takes_nothing_is_dropped_and_told_why_when_it_asks_again() {
    let cluster = cluster(2, SMALL);
    let mut idle = observe(&cluster, 0, Watch::New).unwrap();
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
    while !cluster.process(0).log().contains("no longer observes: it") {
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
    let why = refusal(observe(&cluster, 0, position));
    assert!(
        why.contains("is no longer in the log, which begins at index "),
        "{why}"
    );
}

/// As `dump` does while it writes into a pipe whose reader pauses.
#[test]
fn an_observer_may_pause_in_the_midst_of_a_copy() {
    const HEARTBEAT: Duration = Duration::from_millis(100);
    let cluster = cluster(2, QUICK);
    let value = vec![b'v'; 100_000];
    let keys: Vec<_> = (0_u32..300).map(u32::to_be_bytes).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
    let mut copy = Copy::default();
    let mut paused = observe(&cluster, 0, Watch::Copy).unwrap();
    let begin = paused.receive().unwrap();
    assert!(matches!(begin, Message::SnapshotBegin { .. }), "{begin:?}");
    // More than the sockets between hold, so the sender waits.
    let begin = Instant::now();
    while begin.elapsed() < HEARTBEAT * SILENT_HEARTBEATS * 4 {
        let log = cluster.process(0).log();
        assert!(!log.contains("no longer observes"), "{log}");
        std::thread::sleep(HEARTBEAT / 4);
    }
    // The log moves on meanwhile, and still holds what comes next.
    cluster.client(0).set(b"late", b"entry").unwrap();
    let (index, digest) = loop {
        match paused.receive().unwrap() {
            Message::SnapshotChunk { frames, .. } => copy.apply(frames),
            Message::SnapshotEnd { index, digest, .. } => break (index, digest),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((copy.entries.len(), index), (301, 302));
    assert_eq!(copy.digest.to_u128(), digest);
}

#[test]
fn the_stop_does_not_wait_for_an_observer() {
    let replication = "heartbeat_interval_ms = 10000\nleader_timeout_ms = 40000";
    let mut cluster = cluster(2, replication);
    let stuck = observe(&cluster, 0, Watch::New).unwrap();
    let value = vec![b'v'; 1_000_000];
    let mut client: Client = cluster.client(0);
    // More than the sockets take, so that its sender waits for room.
    for at in 0_u32..20 {
        client.set(&at.to_be_bytes(), &value).unwrap();
    }
    cluster.wait_converged(WITHIN);
    let begin = Instant::now();
    cluster.stop(0);
    // It would be cut off after 5 seconds, or give the observer 30 of its own.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(stuck);
}

/// All that was acknowledged before the stop is shown, to an observer that reads on, though it is behind.
#[test]
fn a_node_that_stops_sends_its_observers_what_its_log_holds() {
    for node in [0, 1] {
        let mut cluster = cluster(2, QUICK);
        let mut observer = observe(&cluster, node, Watch::New).unwrap();
        // More than the sockets take.
        let (count, value) = (1_000, vec![b'v'; 20_000]);
        let keys: Vec<_> = (0_u32..count).map(u32::to_be_bytes).collect();
        cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
        cluster.wait_converged(WITHIN);
        cluster.begin_stop(node);
        // The first record is an EPOCH.
        let shown = entries(&mut observer, u64::from(count) + 1);
        assert_eq!(shown.len(), keys.len());
        let lost = loop {
            match observer.receive() {
                Ok(message) => assert!(matches!(message, Message::Heartbeat { .. }), "{message:?}"),
                Err(error) => break error,
            }
        };
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
    let mut observer = observe(&cluster, 1, Watch::From(2)).unwrap();
    assert_eq!(entries(&mut observer, 2).len(), 1);
    let link = cluster.link(1, 0);
    link.refuse(true);
    link.cut(Cut::End);
    let pairs: Vec<_> = (0_u32..60)
        .map(|at| (at.to_be_bytes(), vec![b'v'; 60_000]))
        .collect();
    cluster.write_all(pairs.iter().map(|(key, value)| (&key[..], &value[..])));
    link.pass();
    cluster.wait_converged(WITHIN);
    let lost = loop {
        match observer.receive() {
            Ok(message) => assert!(matches!(message, Message::Heartbeat { .. }), "{message:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, Error::Connection { .. }), "{lost}");
    let why = refusal(observe(&cluster, 1, observer.position().unwrap()));
    assert_eq!(
        why,
        "entry 3 is no longer in the log, which begins at index 63"
    );
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

/// The entries that an observer received on all its streams: index, epoch by the history of its stream, and key.
type Shown = Vec<(u64, u64, Vec<u8>)>;

/// Watches a node until the entry with the key `last`, and goes on after each end of the stream where it was.
fn watch_until(addr: &str, last: &[u8], shown: &mut Shown) -> u64 {
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    let begin = Instant::now();
    let (mut watch, mut streams) = (Watch::From(1), 0);
    while begin.elapsed() < 4 * WITHIN {
        let mut observer = match Observer::open(addr, &options, watch) {
            Ok(observer) => observer,
            Err(Error::Loading { .. } | Error::Connect { .. }) => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(error) => panic!("refused after {:?}: {error}", shown.last()),
        };
        streams += 1;
        let history = observer.history().clone();
        while let Ok(message) = observer.receive() {
            let Message::Entries {
                epoch,
                first_index,
                frames,
                ..
            } = message
            else {
                continue;
            };
            assert_eq!(Some(epoch), history.last().map(|start| start.epoch));
            for (index, frame) in (first_index..).zip(frames) {
                let start = history.epoch_of(index).unwrap();
                shown.push((index, start.epoch, frame.request().key().to_vec()));
            }
            if shown.last().is_some_and(|(_, _, key)| key == last) {
                return streams;
            }
        }
        watch = observer.position().unwrap();
    }
    panic!("{} entries within {:?}", shown.len(), begin.elapsed());
}

/// A follower's history grows when its leader restarts, and its observers see that before the first entry of the new
/// epoch: the follower may adopt the history and apply entries between two heartbeats of the observer's sender.
#[test]
fn an_observer_of_a_follower_sees_each_entry_once_and_under_its_epoch_while_leaders_restart() {
    watch_while_leaders_restart(1);
}

/// Entries acknowledged just before a leader stops are in no log once it is back, so observers receive them first.
#[test]
fn an_observer_of_a_leader_sees_each_entry_once_while_that_stops_and_starts() {
    watch_while_leaders_restart(0);
}

fn watch_while_leaders_restart(watched: usize) {
    let mut cluster = cluster(3, QUICK);
    let (leader, watched_addr) = (
        cluster.addr(0).to_string(),
        cluster.addr(watched).to_string(),
    );
    let is_over = AtomicBool::new(false);
    let mut shown = Shown::new();
    let (acknowledged, streams) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&leader, &is_over));
        let watcher = scope.spawn(|| watch_until(&watched_addr, b"last", &mut shown));
        for _ in 0..5 {
            let before = cluster.number(0, key::INDEX);
            cluster.wait_for_status(0, WITHIN, "writes", |status| {
                status.number(key::INDEX) > Some(before + 100)
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
    let indexes: Vec<u64> = shown.iter().map(|(index, ..)| *index).collect();
    let all: Vec<u64> = (1..).take(indexes.len()).collect();
    assert!(indexes == all, "missed or doubled: {indexes:?}");
    let observer = observe(&cluster, watched, Watch::New).unwrap();
    let history = observer.history();
    assert_eq!(history.epochs().len(), 6);
    for (index, epoch, _) in &shown {
        let start = history.epoch_of(*index).unwrap();
        assert_eq!(start.epoch, *epoch, "entry {index}");
    }
    let set: BTreeSet<&[u8]> = acknowledged.iter().map(|key| &key[..]).collect();
    let keys = shown.iter().map(|(_, _, key)| key);
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
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    let addr = proxy.addr().to_string();
    let mut observer = Observer::open(&addr, &options, Watch::Copy).unwrap();
    let mut copy = Copy::default();
    let mut has_replaced = false;
    let ended = loop {
        match observer.receive() {
            Ok(Message::SnapshotChunk { frames, .. }) => copy.apply(frames),
            Ok(Message::SnapshotEnd { digest, .. }) => {
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
