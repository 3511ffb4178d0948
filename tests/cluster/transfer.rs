//! The planned transfer of leadership, in a live cluster under load. No command begins one yet, so the nodes run in
//! this process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gopherstore::Client;
use gopherstore::client::{
    ClientOptions, Cluster, ClusterError, ClusterOptions, Error, Watch, WatchFrom, Watched, Watcher,
};
use gopherstore::config::Config;
use gopherstore::node::Node;
use gopherstore::replication::{Ending, Transferrer};
use gopherstore::server::{Server, Stopper};
use gopherstore::wire::Token;

use crate::expiry::{now_ms, puts, send};
use crate::support::cluster::wait_until;
use crate::support::node::PATIENCE;
use crate::support::proxy::reserve_port;

const WRITERS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A node that runs in this process.
struct Running {
    addr: String,
    stopper: Stopper,
    transferrer: Transferrer,
    thread: Option<thread::JoinHandle<Ending>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts nodes n1, n2 and n3, of which n1 leads at first.
fn start() -> Vec<Running> {
    let ports: Vec<_> = (0..3).map(|_| reserve_port()).collect();
    let mut text = "cluster = \"moving\"\nleader = \"n1\"\n\
                    [replication]\nheartbeat_interval_ms = 100\nleader_timeout_ms = 2000\n"
        .to_owned();
    for (number, (_, addr)) in (1..).zip(&ports) {
        text += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
    }
    let config = Config::parse(&text, "cluster.toml").unwrap();
    let nodes = config.nodes.iter().zip(ports);
    let running = nodes.map(|(this, (reserved, addr))| {
        let node = Node::of_cluster(&config, this);
        let server = Server::bind(&addr.to_string(), node, config.limits.clone()).unwrap();
        let (stopper, transferrer) = (server.stopper(), server.transferrer());
        let thread = thread::spawn(move || {
            let _reserved = reserved;
            server.run().unwrap()
        });
        let addr = addr.to_string();
        Running {
            addr,
            stopper,
            transferrer,
            thread: Some(thread),
        }
    });
    running.collect()
}

fn client(addr: &str, follow_redirects: bool) -> Client {
    let options = ClientOptions {
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
        follow_redirects,
        ..ClientOptions::default()
    };
    Client::connect_with(addr, options).unwrap()
}

/// The lines of a node's STATUS.
fn status(addr: &str) -> BTreeMap<String, String> {
    let text = client(addr, false).status().unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn wait_for_leader(nodes: &[Running], leader: usize) {
    for (at, node) in nodes.iter().enumerate() {
        let role = if at == leader { "leader" } else { "follower" };
        wait_until(PATIENCE, "the roles", || {
            let status = status(&node.addr);
            status["role"] == role
                && status["state"] == "serving"
                && (at == leader
                    || (status["link"] == "up" && status["leader"] == nodes[leader].addr))
        });
    }
}

/// Writes the keys `PREFIX-1`, `PREFIX-2` and so on until it is told to end, and returns the last number. Each is
/// written again until it is acknowledged.
fn write(addr: &str, prefix: &str, ends: &AtomicBool) -> u64 {
    let mut client = client(addr, true);
    let mut number = 0;
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        loop {
            match client.set(format!("{prefix}-{number}").as_bytes(), b"v") {
                Ok(()) => break,
                Err(Error::Loading { .. } | Error::NotLeader { .. }) => {
                    thread::yield_now();
                }
                Err(error) => panic!("{prefix}-{number}: {error}"),
            }
        }
    }
    number
}

/// Ends the writers, also where the test fails.
struct EndsOnDrop<'a>(&'a AtomicBool);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn leadership_moves_from_node_to_node_under_load_and_loses_nothing() {
    let nodes = start();
    wait_for_leader(&nodes, 0);
    let copies = |nodes: &[Running]| -> Vec<String> {
        let copies = nodes.iter().map(|node| status(&node.addr));
        copies
            .map(|mut status| status.remove("full_copies").unwrap())
            .collect()
    };
    let before = copies(&nodes);
    let ends = AtomicBool::new(false);
    let written: Vec<u64> = thread::scope(|scope| {
        let _ends = EndsOnDrop(&ends);
        let addrs: Vec<&str> = nodes.iter().map(|node| node.addr.as_str()).collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (addr, ends) = (addrs[number % 3], &ends);
                scope.spawn(move || write(addr, &format!("w{number}"), ends))
            })
            .collect();
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let target = format!("n{}", to + 1);
            let begin_index: u64 = status(addrs[from])["index"].parse().unwrap();
            wait_until(PATIENCE, "writes", || {
                let index: u64 = status(addrs[from])["index"].parse().unwrap();
                index > begin_index + 500
            });
            let moved = nodes[from].transferrer.transfer(&target, TIMEOUT);
            assert_eq!(moved, Ok(()), "n{} to {target}", from + 1);
            wait_for_leader(&nodes, to);
        }
        ends.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    });
    let digests = || nodes.iter().map(|node| status(&node.addr));
    wait_until(PATIENCE, "equal nodes", || {
        let all: Vec<_> = digests()
            .map(|status| {
                (
                    status["epoch"].clone(),
                    status["index"].clone(),
                    status["digest"].clone(),
                )
            })
            .collect();
        all.iter().all(|one| *one == all[0])
    });
    for node in &nodes {
        let mut client = client(&node.addr, false);
        for (number, last) in written.iter().enumerate() {
            for at in 1..=*last {
                let key = format!("w{number}-{at}");
                let value = client.get(key.as_bytes()).unwrap();
                assert_eq!(value, Some(b"v".to_vec()), "{key}");
            }
        }
    }
    assert_eq!(copies(&nodes), before, "a full copy was taken");
    assert_eq!(status(&nodes[0].addr)["epoch"], "4");
    stop(nodes);
}

/// Adds 1 to a counter again and again through a client of the whole cluster, and now and then reads at a node what it
/// has just written. Returns how often it was acknowledged, and how often the outcome was unknown.
fn count(addrs: &[&str], number: usize, ends: &AtomicBool) -> [i64; 2] {
    let options = ClusterOptions {
        timeout: PATIENCE,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::with_options(addrs.iter().copied(), options);
    let (key, [mut acknowledged, mut unknown]) = (format!("of-{number}"), [0, 0]);
    while !ends.load(Ordering::Relaxed) {
        match cluster.write(|leader| leader.add(b"count", 1, 0)) {
            Ok(_) => acknowledged += 1,
            Err(ClusterError::OutcomeUnknown { .. }) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
        if acknowledged % 50 == 0 {
            let value = acknowledged.to_string().into_bytes();
            cluster.set(key.as_bytes(), &value).unwrap();
            let token = cluster.position().unwrap();
            let read = cluster.read_at(token, |node| node.get(key.as_bytes()));
            assert_eq!(read.unwrap(), Some(value));
        }
    }
    [acknowledged, unknown]
}

#[test]
fn a_client_of_the_cluster_follows_the_leader_under_load_and_adds_once() {
    let nodes = start();
    wait_for_leader(&nodes, 0);
    let addrs: Vec<&str> = nodes.iter().map(|node| node.addr.as_str()).collect();
    let ends = AtomicBool::new(false);
    let counted: Vec<[i64; 2]> = thread::scope(|scope| {
        let _ends = EndsOnDrop(&ends);
        let counters: Vec<_> = (0..WRITERS)
            .map(|number| {
                // Some know one node only, and hear of the others.
                let known = if number % 2 == 0 {
                    &addrs[..]
                } else {
                    &addrs[1..2]
                };
                let ends = &ends;
                scope.spawn(move || count(known, number, ends))
            })
            .collect();
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2)] {
            let index = || -> u64 { status(addrs[from])["index"].parse().unwrap() };
            let begin = index();
            wait_until(PATIENCE, "writes", || index() > begin + 300);
            let target = format!("n{}", to + 1);
            let moved = nodes[from].transferrer.transfer(&target, TIMEOUT);
            assert_eq!(moved, Ok(()), "n{} to {target}", from + 1);
            wait_for_leader(&nodes, to);
        }
        ends.store(true, Ordering::Relaxed);
        let results = counters.into_iter().map(|counter| counter.join().unwrap());
        results.collect()
    });
    let sum = |at: usize| counted.iter().map(|counts| counts[at]).sum::<i64>();
    let count = client(&nodes[2].addr, false)
        .get(b"count")
        .unwrap()
        .unwrap();
    let count: i64 = String::from_utf8(count).unwrap().parse().unwrap();
    // Writes that wait for the transfer are answered NOT_LEADER, so the outcome of none is unknown.
    assert_eq!((count, sum(1)), (sum(0), 0));
    assert!(count > 1_200);
    stop(nodes);
}

/// The events that a watcher received: their positions, and the keys that they set.
#[derive(Default)]
struct Seen {
    positions: Vec<Token>,
    keys: Vec<Vec<u8>>,
    resumes: usize,
}

/// Watches from the first record on until the key `last` is set, and resumes at any of the nodes.
fn watch(addrs: &[&str], prefix: &[u8]) -> Seen {
    let options = ClientOptions {
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    let watch = Watch {
        prefix: prefix.to_vec(),
        from: WatchFrom::Index(1),
        ..Watch::default()
    };
    let mut watcher = Watcher::open(addrs[0], &options, watch).unwrap();
    let mut seen = Seen::default();
    loop {
        match watcher.receive() {
            Ok(Watched::Event(event)) => {
                seen.positions.push(event.position());
                let sets = event
                    .changes()
                    .filter(|change| change.value_len().is_some());
                seen.keys.extend(sets.map(|change| change.key().to_vec()));
                if seen.keys.last().is_some_and(|key| key.ends_with(b"last")) {
                    return seen;
                }
            }
            Ok(message) => assert!(matches!(message, Watched::Heartbeat { .. }), "{message:?}"),
            Err(Error::Connection { .. }) => {
                // Not at the node where it was, if another one has the position.
                let mut others = addrs.to_vec();
                others.rotate_left(1 + seen.resumes % addrs.len());
                watcher.resume(&others, PATIENCE).unwrap();
                seen.resumes += 1;
            }
            Err(error) => panic!("after {:?}: {error}", seen.positions.last()),
        }
    }
}

#[test]
fn watchers_see_each_record_once_though_the_leader_changes() {
    let nodes = start();
    wait_for_leader(&nodes, 0);
    let addrs: Vec<&str> = nodes.iter().map(|node| node.addr.as_str()).collect();
    // A follower's log begins behind its first snapshot, which has the first EPOCH.
    for addr in &addrs {
        let log: u64 = status(addr)["backlog_first_index"].parse().unwrap();
        assert_eq!(log, 1, "{addr}");
    }
    let ends = AtomicBool::new(false);
    let (written, all, some) = thread::scope(|scope| {
        let _ends = EndsOnDrop(&ends);
        let writers: Vec<_> = (0..2)
            .map(|number| {
                let (addr, ends) = (addrs[number], &ends);
                scope.spawn(move || write(addr, &format!("w{number}"), ends))
            })
            .collect();
        let watchers: Vec<_> = (0..3)
            .map(|at| {
                let mut addrs = addrs.clone();
                addrs.rotate_left(at);
                scope.spawn(move || watch(&addrs, b""))
            })
            .collect();
        let some = scope.spawn(|| watch(&addrs, b"w1-"));
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let index = || -> u64 { status(addrs[from])["index"].parse().unwrap() };
            let begin = index();
            wait_until(PATIENCE, "writes", || index() > begin + 300);
            let moved = nodes[from]
                .transferrer
                .transfer(&format!("n{}", to + 1), TIMEOUT);
            assert_eq!(moved, Ok(()), "n{} to n{}", from + 1, to + 1);
            wait_for_leader(&nodes, to);
        }
        ends.store(true, Ordering::Relaxed);
        let written = writers.into_iter().map(|writer| writer.join().unwrap());
        let written: Vec<u64> = written.collect();
        client(addrs[0], false).set(b"w1-last", b"v").unwrap();
        let all = watchers.into_iter().map(|watcher| watcher.join().unwrap());
        let all: Vec<Seen> = all.collect();
        (written, all, some.join().unwrap())
    });
    let keys_of = |number: usize| (1..=written[number]).map(move |at| format!("w{number}-{at}"));
    for seen in &all {
        let indexes: Vec<u64> = seen.positions.iter().map(|token| token.index).collect();
        let expected: Vec<u64> = (1..).take(indexes.len()).collect();
        assert!(indexes == expected, "missed or doubled: {indexes:?}");
        assert!(seen.resumes >= 3, "{} and 3 new epochs", seen.resumes);
        assert_eq!(seen.positions, all[0].positions);
        assert_eq!(seen.keys, all[0].keys);
        for number in 0..2 {
            let prefix = format!("w{number}-");
            let mut keys = seen.keys.clone();
            keys.retain(|key| key.starts_with(prefix.as_bytes()) && !key.ends_with(b"last"));
            assert!(keys.into_iter().eq(keys_of(number).map(String::into_bytes)));
        }
    }
    let keys = keys_of(1).chain(["w1-last".to_owned()]);
    assert!(some.keys.into_iter().eq(keys.map(String::into_bytes)));
    assert!(some.positions.is_sorted_by(|a, b| a < b));
    stop(nodes);
}

#[test]
fn a_new_leader_goes_on_to_remove_expired_keys() {
    const KEYS: usize = 2_000;
    let nodes = start();
    wait_for_leader(&nodes, 0);
    let number =
        |node: usize, key: &str| -> usize { status(&nodes[node].addr)[key].parse().unwrap() };
    // Half of them expire at once, and the others once the new leader leads.
    let near = now_ms() + 200;
    let deadlines = (0..KEYS).map(|number| if number % 2 == 0 { near } else { near + 4_000 });
    let addr = nodes[0].addr.parse().unwrap();
    send(addr, &puts(deadlines, 10), KEYS);
    client(&nodes[0].addr, false).set(b"stays", b"v").unwrap();
    wait_until(PATIENCE, "removals by the old leader", || {
        number(0, "expired") == KEYS / 2
    });
    let moved = nodes[0].transferrer.transfer("n2", TIMEOUT);
    assert_eq!(moved, Ok(()));
    wait_for_leader(&nodes, 1);
    for node in 0..3 {
        wait_until(PATIENCE, "the removal of all keys", || {
            number(node, "keys") == 1
        });
        assert_eq!(number(node, "expiring"), 0);
    }
    let expired = [0, 1, 2].map(|node| number(node, "expired"));
    assert_eq!(expired.iter().sum::<usize>(), KEYS);
    assert!(expired[1] > 0 && expired[2] == 0, "{expired:?}");
    let digests = [0, 1, 2].map(|node| status(&nodes[node].addr)["digest"].clone());
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    stop(nodes);
}

#[test]
fn only_a_leader_transfers_and_only_to_a_node_that_follows_it() {
    let nodes = start();
    wait_for_leader(&nodes, 0);
    for (from, to, text) in [
        (1, "n3", "this node does not lead"),
        (0, "n1", "n1 does not follow this node"),
        (0, "n4", "n4 does not follow this node"),
    ] {
        let result = nodes[from].transferrer.transfer(to, TIMEOUT);
        assert_eq!(result.unwrap_err().to_string(), text);
    }
    client(&nodes[0].addr, false).set(b"k", b"v").unwrap();
    stop(nodes);
}

/// Stops the nodes, the leader last.
fn stop(nodes: Vec<Running>) {
    nodes.into_iter().rev().for_each(drop);
}

/// Two callers order two nodes to lead. One of them gets its way, and the other an error.
#[test]
fn one_transfer_at_a_time() {
    let nodes = start();
    wait_for_leader(&nodes, 0);
    for _ in 0..20 {
        let leader = (0..3).find(|&node| status(&nodes[node].addr)["role"] == "leader");
        let leader = leader.unwrap();
        let results: Vec<_> = thread::scope(|scope| {
            let others = (0..3).filter(|&node| node != leader);
            let calls: Vec<_> = others
                .map(|node| {
                    let transferrer = nodes[leader].transferrer.clone();
                    scope.spawn(move || transferrer.transfer(&format!("n{}", node + 1), TIMEOUT))
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let moved = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(moved, 1, "{results:?}");
        let leads = |node: &Running| {
            let status = status(&node.addr);
            status["role"] == "leader" && status["state"] == "serving"
        };
        wait_until(PATIENCE, "one leader", || {
            nodes.iter().filter(|node| leads(node)).count() == 1
        });
        let leader = nodes.iter().position(leads).unwrap();
        wait_for_leader(&nodes, leader);
    }
    stop(nodes);
}
