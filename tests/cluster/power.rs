//! Power failures of all nodes at once. One trace records the calls on the files of all nodes and the acknowledgements.
//! The nodes are started again with the files that a power failure at a drawn event of the trace leaves.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use gopherstore::client::{Client, ClientOptions};

use crate::durability::{Begin, cluster};
use crate::faults::QUICK;
use crate::support::cluster::{Cluster, rounds};
use crate::support::load::Random;
use crate::support::node::{PATIENCE, wait_for};
use crate::support::recorder::{Image, Marker, Recorder, Survival, Trace};
use crate::support::writes::{Writes, expected};

const NODES: usize = 3;
/// Clients of the leader.
const CLIENTS: usize = 3;

/// The data directory of a node.
fn data(cluster: &Cluster, node: usize) -> std::path::PathBuf {
    let data = cluster.folder(node).join("data");
    data.join(cluster.name(node))
}

fn client(addr: SocketAddr) -> Client {
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    Client::connect_with(&addr.to_string(), options).unwrap()
}

/// Each client makes `count` writes, and ends at the first one that is not acknowledged. Counts the others in
/// `acknowledged`. Returns whether all were acknowledged.
fn load(
    leader: SocketAddr,
    trace: &Path,
    writes: &[Writes],
    count: u64,
    acknowledged: &AtomicU64,
) -> bool {
    let marker = Marker::new(trace);
    thread::scope(|scope| {
        let clients: Vec<_> = writes
            .iter()
            .map(|writes| {
                let (mut writes, marker) = (writes.clone(), &marker);
                let mut client = client(leader);
                let write = move |_| {
                    let is_done = writes.write(&mut client, marker);
                    acknowledged.fetch_add(u64::from(is_done), Ordering::Relaxed);
                    is_done
                };
                scope.spawn(move || (0..count).all(write))
            })
            .collect();
        let mut results = clients.into_iter().map(|it| it.join().unwrap());
        results.all(|is_done| is_done)
    })
}

/// Starts a node whose calls are recorded.
fn start(cluster: &mut Cluster, recorder: &Recorder, trace: &Path, node: usize) {
    let dir = format!("data/{}", cluster.name(node));
    let mut env = recorder.env(u32::try_from(node).unwrap(), &dir, trace, None);
    env.push(("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "20000".to_owned()));
    cluster.set_env(node, env);
    cluster.restart(node);
}

/// Checks that every node has the acknowledged writes, and no write that was not sent.
fn find_all(cluster: &Cluster, writes: &mut [Writes], expected: &[(u64, u64)]) {
    for (writes, expected) in writes.iter_mut().zip(expected) {
        for node in 0..NODES {
            let found = writes.read(&mut client(cluster.addr(node))).unwrap();
            writes.find(&found, *expected);
        }
    }
}

/// Replaces the directory of a stopped node by the files that a power failure leaves.
fn lose(cluster: &Cluster, node: usize, image: &Image) {
    let data = data(cluster, node);
    fs::remove_dir_all(&data).unwrap();
    image.write(&data);
    println!("{}:\n{}", cluster.name(node), image.summary());
}

/// Fails the power of all nodes `count` times.
fn power_failures(sync: &str, count: usize) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let mut cluster = cluster(NODES, QUICK, sync, false);
    cluster.kill_all();
    let dir = tempfile::tempdir().unwrap();
    let mut writes: Vec<Writes> = (0..CLIENTS).map(Writes::new).collect();
    let mut limits = vec![(0, 0); CLIENTS];
    for round in 0..=count {
        let trace = dir.path().join(format!("trace-{round}"));
        let bases: Vec<Image> = (0..NODES)
            .map(|it| Image::of(&data(&cluster, it)))
            .collect();
        let begin = Begin::of(&cluster);
        let first = random.index(NODES);
        for node in (0..NODES).map(|it| (first + it) % NODES) {
            start(&mut cluster, &recorder, &trace, node);
        }
        cluster.wait_converged(PATIENCE);
        begin.assert_nothing_copied_in_vain(&cluster);
        find_all(&cluster, &mut writes, &limits);
        let count = random.within(30..=150);
        let acknowledged = AtomicU64::new(0);
        assert!(load(cluster.addr(0), &trace, &writes, count, &acknowledged));
        cluster.kill_all();
        let trace = Trace::read(&trace);
        let until = trace.moment(&mut random);
        limits = expected(&trace, &writes, until, trace.kept(sync, until));
        println!("{sync}: power fails before event {until}, with {limits:?}");
        for (node, base) in bases.iter().enumerate() {
            let number = u32::try_from(node).unwrap();
            let image = trace.image(number, base, until, Survival::of(&mut random));
            lose(&cluster, node, &image);
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_as_the_power_of_all_nodes_fails() {
    power_failures("always", rounds(2, 50));
}

#[test]
fn a_cluster_comes_up_with_what_was_synced_as_the_power_of_all_nodes_fails() {
    power_failures("interval", rounds(1, 50));
}

/// Fails the power of one node under load, `count` times. The other nodes keep their data.
fn one_power_failure(node: usize, count: usize) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let mut cluster = cluster(NODES, QUICK, "interval", false);
    let dir = tempfile::tempdir().unwrap();
    let mut writes: Vec<Writes> = (0..CLIENTS).map(Writes::new).collect();
    for round in 0..count {
        let path = dir.path().join(format!("trace-{round}"));
        cluster.kill(node);
        let base = Image::of(&data(&cluster, node));
        start(&mut cluster, &recorder, &path, node);
        cluster.wait_converged(PATIENCE);
        let (leader, acknowledged) = (cluster.addr(0), AtomicU64::new(0));
        let until = random.within(1..=200);
        thread::scope(|scope| {
            scope.spawn(|| load(leader, &path, &writes, 100, &acknowledged));
            wait_for("that many writes", || {
                (acknowledged.load(Ordering::Relaxed) >= until).then_some(())
            });
            cluster.kill(node);
        });
        let trace = Trace::read(&path);
        let all = trace.events.len();
        let mut limits = expected(&trace, &writes, all, all);
        if node == 0 {
            // The leader loses nothing that one of its followers has.
            for (writes, limit) in writes.iter().zip(&mut limits) {
                let most = (1..NODES).map(|follower| {
                    let mut writes = writes.clone();
                    let found = writes.read(&mut client(cluster.addr(follower))).unwrap();
                    writes.find(&found, (writes.done, limit.1));
                    writes.done
                });
                limit.0 = most.max().unwrap();
            }
        }
        let number = u32::try_from(node).unwrap();
        let image = trace.image(number, &base, all, Survival::of(&mut random));
        lose(&cluster, node, &image);
        cluster.restart(node);
        cluster.wait_converged(PATIENCE);
        find_all(&cluster, &mut writes, &limits);
    }
}

#[test]
fn a_leader_whose_power_fails_has_everything_that_a_follower_has() {
    one_power_failure(0, rounds(1, 50));
}

#[test]
fn a_follower_whose_power_fails_loses_nothing() {
    one_power_failure(1, rounds(1, 50));
}
