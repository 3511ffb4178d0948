//! Power failures of all nodes at once: the calls on their files are recorded in one order with what is acknowledged,
//! and the nodes are started again with what the record leaves on their disks at a moment.

use std::fs;
use std::path::Path;
use std::thread;

use gopherstore::client::{Client, ClientOptions};

use crate::durability::{Begin, cluster};
use crate::faults::QUICK;
use crate::support::cluster::{Cluster, rounds};
use crate::support::load::Random;
use crate::support::node::PATIENCE;
use crate::support::recorder::{Image, Marker, Recorder, Survival, Trace};
use crate::support::writes::Writes;

const NODES: usize = 3;
/// Clients of the leader.
const CLIENTS: usize = 3;

/// The data directory of a node.
fn data(cluster: &Cluster, node: usize) -> std::path::PathBuf {
    let data = cluster.folder(node).join("data");
    data.join(cluster.name(node))
}

fn client(cluster: &Cluster, node: usize) -> Client {
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    Client::connect_with(&cluster.addr(node).to_string(), options).unwrap()
}

/// Each client makes so many writes.
fn load(cluster: &Cluster, trace: &Path, writes: &[Writes], count: u64) {
    let marker = Marker::new(trace);
    thread::scope(|scope| {
        for writes in writes {
            let (mut writes, mut client) = (writes.clone(), client(cluster, 0));
            let marker = &marker;
            scope.spawn(move || {
                for _ in 0..count {
                    assert!(writes.write(&mut client, marker));
                }
            });
        }
    });
}

/// Starts all nodes, which are recorded from now on.
fn start(cluster: &mut Cluster, recorder: &Recorder, trace: &Path, first: usize) {
    for node in (0..NODES).map(|it| (first + it) % NODES) {
        let dir = format!("data/{}", cluster.name(node));
        let mut env = recorder.env(u32::try_from(node).unwrap(), &dir, trace, None);
        env.push(("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "20000".to_owned()));
        cluster.set_env(node, env);
        cluster.restart(node);
    }
    cluster.wait_converged(PATIENCE);
}

/// Fails the power of all nodes that often.
fn power_failures(sync: &str, count: usize) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let mut cluster = cluster(NODES, QUICK, sync, false);
    cluster.kill_all();
    let dir = tempfile::tempdir().unwrap();
    let mut writes: Vec<Writes> = (0..CLIENTS).map(Writes::new).collect();
    let mut expected = vec![(0, 0); CLIENTS];
    for round in 0..=count {
        let trace = dir.path().join(format!("trace-{round}"));
        let bases: Vec<Image> = (0..NODES)
            .map(|it| Image::of(&data(&cluster, it)))
            .collect();
        let begin = Begin::of(&cluster);
        start(&mut cluster, &recorder, &trace, random.index(NODES));
        begin.assert_nothing_copied_in_vain(&cluster);
        for (writes, expected) in writes.iter_mut().zip(&expected) {
            for node in 0..NODES {
                writes.find(
                    &writes.read(&mut client(&cluster, node)).unwrap(),
                    *expected,
                );
            }
        }
        load(&cluster, &trace, &writes, random.within(30..=150));
        cluster.kill_all();
        let trace = Trace::read(&trace);
        let until = trace.moment(&mut random);
        let acknowledged = match sync {
            "always" => until,
            _ => trace.last_sync(0, until).unwrap_or(0),
        };
        expected = (0..CLIENTS)
            .map(|client| {
                let (least, most) = trace.progress(client, until, acknowledged);
                let done = writes[client].done;
                (least.unwrap_or(done), most.unwrap_or(done))
            })
            .collect();
        println!("{sync}: power fails before event {until}, with {expected:?}");
        for (node, base) in bases.iter().enumerate() {
            let number = u32::try_from(node).unwrap();
            let image = trace.image(number, base, until, Survival::Drawn(&mut random));
            let data = data(&cluster, node);
            fs::remove_dir_all(&data).unwrap();
            image.write(&data);
            println!("{}:\n{}", cluster.name(node), image.summary());
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
