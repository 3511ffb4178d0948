//! Nodes with data directories: acknowledged writes survive the end of all processes, and followers resume.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::faults::{BACKLOG_BYTES, QUICK, QUICK_AND_SMALL};
use crate::support::cluster::{Cluster, Options, Status, rounds, wait_until};
use crate::support::load::{self, Load, Losses, Random};
use crate::support::names::key;
use crate::support::node::PATIENCE;
use crate::support::proxy::Way;

/// Bytes of a full copy that a follower receives in a second, where a test interrupts the copy.
const SLOW: u64 = 2_000_000;

pub(crate) fn cluster(nodes: usize, replication: &str, sync: &str, proxies: bool) -> Cluster {
    cluster_of(
        nodes,
        &Options {
            replication: replication.to_owned(),
            storage: format!("data_dir = \"data\"\nsync = \"{sync}\""),
            proxies,
            ..Options::default()
        },
    )
}

fn cluster_of(nodes: usize, options: &Options) -> Cluster {
    let cluster = Cluster::start_with(nodes, options);
    cluster.wait_converged(PATIENCE);
    for node in 1..nodes {
        // Before that, a follower's directory has nothing.
        cluster.process(node).wait_for_log("wrote a snapshot of");
    }
    cluster
}

fn load(cluster: &Cluster) -> Load {
    Load::start(
        cluster.addr(0),
        load::Options {
            batch: 4,
            ..load::Options::default()
        },
    )
}

/// Bytes that [`fill`] writes.
const COPIED: u64 = 3 * BACKLOG_BYTES;

/// The keys that [`fill`] writes.
fn filled() -> Vec<Vec<u8>> {
    let count = COPIED / 1_000;
    (0..count)
        .map(|n| format!("filled:{n}").into_bytes())
        .collect()
}

/// Writes more than the backlog keeps.
fn fill(cluster: &Cluster) {
    let value = vec![b'x'; 1_000];
    let keys = filled();
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
}

/// Waits until the data set that the second node has copied is in its directory.
fn wait_copied(cluster: &Cluster) {
    cluster.wait_converged(PATIENCE);
    let log = cluster.process(1).own_log();
    if log.contains("copied n1 up to") {
        cluster.process(1).wait_for_log("wrote a snapshot of");
    }
}

/// The greatest index at which the log of a node begins, of the nodes of a cluster that is stopped.
pub(crate) struct Begin(u64);

impl Begin {
    pub(crate) fn of(cluster: &Cluster) -> Begin {
        let folders = (0..cluster.len()).map(|node| {
            let data = cluster.folder(node).join("data");
            data.join(cluster.name(node))
        });
        let entries = folders.filter_map(|folder| fs::read_dir(folder).ok());
        let begins = entries.flatten().filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let (_, index) = name.strip_prefix("snapshot-")?.split_once('-')?;
            u64::from_str_radix(index, 16).ok()
        });
        Begin(begins.max().unwrap_or(0))
    }

    /// No node has copied another one's data set since then. Where one recovered less than a log begins behind, a copy
    /// is needed, and none or more may have been made.
    #[track_caller]
    pub(crate) fn assert_nothing_copied_in_vain(&self, cluster: &Cluster) {
        let recovered = |node| {
            let log = cluster.process(node).own_log();
            let index = log
                .split_once(" ms, up to index ")
                .and_then(|(_, rest)| rest.split('\n').next()?.parse::<u64>().ok());
            index.unwrap_or(0)
        };
        let indexes: Vec<u64> = (0..cluster.len()).map(recovered).collect();
        let least = indexes.iter().min().unwrap();
        for node in 0..cluster.len() {
            let copies = cluster.number(node, key::FULL_COPIES);
            let statuses = cluster.statuses();
            assert!(
                copies == 0 || *least < self.0,
                "recovered up to {indexes:?}, and a log begins behind {}:\n{statuses}",
                self.0
            );
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_with_all_nodes_at_once_and_nothing_is_copied() {
    let mut random = Random::from_env();
    for sync in ["always", "interval", "never"] {
        // Short segments and many snapshots, so that nodes are also killed while they write these.
        let options = Options {
            replication: QUICK.to_owned(),
            storage: format!("data_dir = \"data\"\nsync = \"{sync}\""),
            env: vec![("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "20000".to_owned())],
            ..Options::default()
        };
        let mut cluster = cluster_of(3, &options);
        let load = load(&cluster);
        for _ in 0..rounds(2, 50) {
            load.wait_for_more(200);
            let first = random.index(3);
            cluster.kill_all();
            let begin = Begin::of(&cluster);
            for node in [first, (first + 1) % 3, (first + 2) % 3] {
                cluster.restart(node);
            }
            load.wait_for_more(10);
            load.pause();
            cluster.wait_converged(PATIENCE);
            let values = cluster.equal_contents(load.keys());
            load.judge(&values, Losses::Forbidden);
            begin.assert_nothing_copied_in_vain(&cluster);
            load.resume();
        }
    }
}

#[test]
fn followers_and_leaders_resume_from_their_logs_over_several_epochs() {
    let mut cluster = cluster(3, QUICK, "interval", false);
    let load = load(&cluster);
    // The leader begins two epochs while the follower does not run.
    load.wait_for_more(100);
    cluster.kill(2);
    for _ in 0..2 {
        load.wait_for_more(100);
        cluster.kill(0);
        cluster.restart(0);
    }
    load.wait_for_more(100);
    cluster.restart(2);
    load.pause();
    cluster.wait_converged(PATIENCE);
    load.judge(&cluster.equal_contents(load.keys()), Losses::Forbidden);
    assert_eq!(cluster.number(2, key::FULL_COPIES), 0);
    assert_eq!(cluster.number(2, key::RESUMES), 1);
}

/// A power failure may cut off the end of a log that was not synced. This test cuts off the end of the leader's log.
#[test]
fn a_leader_takes_from_a_follower_what_its_own_disk_has_lost() {
    let mut cluster = cluster(3, QUICK, "never", false);
    let mut client = cluster.client(0);
    client.set(b"early", b"1").unwrap();
    cluster.wait_converged(PATIENCE);
    let segment = cluster
        .folder(0)
        .join("data/n1/log-00000001-0000000000000001");
    let kept = used(&fs::read(&segment).unwrap());
    client.set(b"late", b"2").unwrap();
    cluster.wait_converged(PATIENCE);
    let last = cluster.number(0, key::INDEX);
    for node in 0..3 {
        cluster.kill(node);
    }
    let mut bytes = fs::read(&segment).unwrap();
    bytes[kept..].fill(0);
    fs::write(&segment, bytes).unwrap();
    for node in [1, 2, 0] {
        cluster.restart(node);
    }
    cluster.wait_converged(PATIENCE);
    let log = cluster.folder_log(0);
    assert!(log.contains("is most up to date, at index "), "{log}");
    assert_eq!(cluster.number(0, key::INDEX), last + 1, "a new epoch");
    assert_eq!(cluster.number(0, key::FULL_COPIES), 0);
    let values = cluster.equal_contents(&[b"early".to_vec(), b"late".to_vec()]);
    assert_eq!(values, [Some(b"1".to_vec()), Some(b"2".to_vec())]);
}

/// Bytes of a segment up to the end of its last group.
fn used(segment: &[u8]) -> usize {
    let last = segment.iter().rposition(|byte| *byte != 0).unwrap();
    (last + 1).next_multiple_of(8)
}

#[test]
fn a_leader_whose_peers_do_not_run_leads_with_its_own_data_after_the_timeout() {
    let mut cluster = cluster(3, QUICK, "always", false);
    cluster.client(0).set(b"a", b"1").unwrap();
    for node in 0..3 {
        cluster.kill(node);
    }
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| status.is_state("serving"));
    assert_eq!(cluster.client(0).get(b"a").unwrap(), Some(b"1".to_vec()));
    for name in ["n2", "n3"] {
        let line = format!(
            "ERROR gopherstore::replication::driver] {name} does not answer, and is passed over"
        );
        // It leads before it says so.
        cluster.process(0).wait_for_log(&line);
    }
}

/// The copy is in memory alone until it is whole: the directory has the old data set.
#[test]
fn a_follower_that_is_killed_in_a_full_copy_has_its_old_data_or_the_new() {
    let mut random = Random::from_env();
    let mut cluster = cluster(2, QUICK_AND_SMALL, "interval", true);
    cluster.client(0).set(b"kept", b"1").unwrap();
    let mut found = [0, 0];
    for round in 0..rounds(3, 30) {
        wait_copied(&cluster);
        let old_index = cluster.number(1, key::INDEX);
        cluster.kill(1);
        fill(&cluster);
        cluster.link(1, 0).throttle(Way::Down, Some(SLOW));
        cluster.restart(1);
        cluster.process(1).wait_for_log("taking a full copy of n1");
        let delivered = || cluster.link(1, 0).counts().down;
        let until = delivered() + random.within(0..=COPIED + COPIED / 16);
        wait_until(PATIENCE, "that much of the copy", || {
            let log = cluster.process(1).own_log();
            delivered() >= until || log.contains("copied n1 up to")
        });
        cluster.kill(1);
        // Without its leader, it serves the data of its own disk.
        cluster.link(1, 0).refuse(true);
        cluster.restart(1);
        cluster.wait_for_status(1, PATIENCE, "its own data", |status| {
            status.is_state("serving")
        });
        let index = cluster.number(1, key::INDEX);
        let is_new = index > old_index;
        found[usize::from(is_new)] += 1;
        assert!(
            index >= old_index,
            "round {round}: {index}, before {old_index}"
        );
        let value = cluster.client(1).get(b"kept").unwrap();
        assert_eq!(value, Some(b"1".to_vec()), "round {round}");
        let link = cluster.link(1, 0);
        link.throttle(Way::Down, None);
        link.refuse(false);
        link.pass();
        cluster.wait_converged(PATIENCE);
        cluster.equal_contents(&filled());
    }
    assert!(found[0] > 0, "{found:?}");
}

/// The connection fails, and the process goes on.
#[test]
fn a_full_copy_that_fails_gives_the_follower_its_old_data_back() {
    let mut cluster = cluster(2, QUICK_AND_SMALL, "interval", true);
    cluster.client(0).set(b"kept", b"1").unwrap();
    wait_copied(&cluster);
    let old_index = cluster.number(1, key::INDEX);
    cluster.kill(1);
    fill(&cluster);
    let link = cluster.link(1, 0);
    link.throttle(Way::Down, Some(SLOW));
    cluster.restart(1);
    cluster.process(1).wait_for_log("taking a full copy of n1");
    let link = cluster.link(1, 0);
    link.refuse(true);
    link.cut(crate::support::proxy::Cut::End);
    let is_old = |status: &Status| {
        status.is_state("serving") && status.number(key::INDEX) == Some(old_index)
    };
    cluster.wait_for_status(1, PATIENCE, "its old data again", is_old);
    assert_eq!(cluster.client(1).get(b"kept").unwrap(), Some(b"1".to_vec()));
    let link = cluster.link(1, 0);
    link.throttle(Way::Down, None);
    link.refuse(false);
    link.pass();
    cluster.wait_converged(PATIENCE);
    // Later writes are on its disk once the snapshot of the new data set is.
    cluster.client(0).set(b"late", b"2").unwrap();
    cluster.wait_converged(PATIENCE);
    let last = cluster.number(1, key::INDEX);
    wait_until(PATIENCE, "a snapshot of the new data set", || {
        fs::read_dir(cluster.folder(1).join("data/n2"))
            .unwrap()
            .any(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("snapshot-00000002")
            })
    });
    wait_until(PATIENCE, "the old chain to go", || {
        !cluster
            .folder(1)
            .join("data/n2/log-00000001-0000000000000001")
            .exists()
    });
    cluster.kill(1);
    cluster.link(1, 0).refuse(true);
    cluster.restart(1);
    cluster.wait_for_status(1, PATIENCE, "all of it", |status| {
        status.number(key::INDEX) == Some(last) && status.is_state("serving")
    });
}

#[test]
fn nodes_with_and_without_a_disk_form_a_cluster() {
    let mut cluster = Cluster::start_with(
        3,
        &Options {
            replication: QUICK.to_owned(),
            ..Options::default()
        },
    );
    cluster.wait_converged(PATIENCE);
    cluster.client(0).set(b"a", b"1").unwrap();
    cluster.wait_converged(PATIENCE);
    // The second node gets a disk, the leader and the third have none.
    cluster.stop(1);
    cluster.change_config(1, |text| format!("{text}[storage]\ndata_dir = \"data\"\n"));
    cluster.restart(1);
    wait_copied(&cluster);
    for node in [0, 2, 1] {
        cluster.kill(node);
    }
    for node in [1, 0, 2] {
        cluster.restart(node);
    }
    cluster.wait_converged(Duration::from_secs(20));
    let values = cluster.equal_contents(&[b"a".to_vec()]);
    assert_eq!(values, [Some(b"1".to_vec())]);
    for (node, disk) in [(0, "disk: none"), (1, "disk: used"), (2, "disk: none")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"));
        let output = command.args(["--addr", &cluster.addr(node).to_string(), "status"]);
        let status = String::from_utf8(output.output().unwrap().stdout).unwrap();
        assert!(status.lines().any(|line| line == disk), "{status}");
    }
}

/// A node with a directory stops without another node: its data is in the directory.
#[test]
fn a_node_with_a_directory_stops_alone_and_loses_nothing() {
    let mut cluster = cluster(2, QUICK, "never", false);
    cluster.client(0).set(b"a", b"1").unwrap();
    cluster.stop(1);
    cluster.stop(0);
    let log = cluster.folder_log(0);
    assert!(log.contains("is in the data directory"), "{log}");
    cluster.restart(0);
    cluster.restart(1);
    cluster.wait_converged(PATIENCE);
    assert_eq!(
        cluster.equal_contents(&[b"a".to_vec()]),
        [Some(b"1".to_vec())]
    );
}

/// A follower with a disk that is restarted as leader has its data, and the former leader keeps its data.
#[test]
fn a_follower_with_a_directory_is_restarted_as_the_leader_in_place_of_one_that_is_gone() {
    let mut cluster = cluster(3, QUICK, "always", false);
    cluster.client(0).set(b"early", b"1").unwrap();
    cluster.wait_converged(PATIENCE);
    let copies = |cluster: &Cluster| [1, 2].map(|node| cluster.number(node, key::FULL_COPIES));
    // The leader has more than its followers.
    cluster.kill(1);
    cluster.kill(2);
    cluster.client(0).set(b"late", b"2").unwrap();
    cluster.kill(0);
    for node in [1, 2] {
        cluster.set_leader(node, "n2");
        cluster.restart(node);
    }
    cluster.wait_converged(PATIENCE);
    let early = cluster.client(1).get(b"early").unwrap();
    assert_eq!(early, Some(b"1".to_vec()));
    cluster.client(1).set(b"new", b"3").unwrap();
    assert_eq!(copies(&cluster), [0, 0]);
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to refuse", |status| {
        status.is_state("refused")
    });
    let late = cluster.client(0).get(b"late").unwrap();
    assert_eq!(late, Some(b"2".to_vec()));
}
