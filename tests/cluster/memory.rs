//! Memory that a node of any role no longer needs goes back to the system.

use std::time::Duration;

use crate::support::cluster::{Cluster, Options, wait_until};
use crate::support::names::{key, state};

const WITHIN: Duration = Duration::from_secs(30);

const LEADER: usize = 0;
const FOLLOWER: usize = 1;

/// Entries of a data set of 64 MB, and one in so many of them that stays: it keeps the allocator from giving back by
/// itself what lies behind it.
const COUNT: u32 = 2_000;
const VALUE_BYTES: usize = 32_000;
const KEEP: u32 = 100;

fn keys() -> impl Iterator<Item = [u8; 4]> {
    (0..COUNT).map(u32::to_be_bytes)
}

/// The node looks at what it holds so often.
const LOOK_MS: u64 = 1_000;

/// Writes all keys with values of that length, and gives what a node's memory is then, in KiB. Returns once the node
/// has had the time to look at what it holds: less than that it does not notice.
fn fill(cluster: &Cluster, value_bytes: usize, node: usize) -> u64 {
    let value = vec![b'v'; value_bytes];
    let mut client = cluster.client(LEADER);
    for key in keys() {
        client.set(&key, &value).unwrap();
    }
    cluster.wait_converged(WITHIN);
    let begin = cluster.number(node, "uptime_ms");
    cluster.wait_for_status(node, WITHIN, "its look", |status| {
        let uptime = status.number("uptime_ms").unwrap_or(0);
        uptime > begin + LOOK_MS * 3 / 2
    });
    cluster.process(node).memory_kib("VmRSS")
}

/// Waits until a node has given back most of what it had.
fn wait_until_given_back(cluster: &Cluster, node: usize, had_kib: u64, what: &str) {
    assert!(had_kib > 64_000, "{had_kib} KiB are not what was written");
    wait_until(WITHIN, what, || {
        cluster.process(node).memory_kib("VmRSS") < had_kib / 3
    });
}

fn cluster() -> Cluster {
    let options = Options {
        replication: "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n\
                      backlog_bytes = 8388608"
            .to_owned(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

#[test]
fn deleted_and_shortened_values_are_given_back_by_the_leader_and_by_a_follower() {
    let cluster = cluster();
    for node in [LEADER, FOLLOWER] {
        let had = fill(&cluster, VALUE_BYTES, node);
        let mut client = cluster.client(LEADER);
        for key in keys().filter(|key| u32::from_be_bytes(*key) % KEEP != 0) {
            assert!(client.del(&key).unwrap());
        }
        wait_until_given_back(&cluster, node, had, "deleted values");

        let had = fill(&cluster, VALUE_BYTES, node);
        let mut client = cluster.client(LEADER);
        for key in keys() {
            client.set(&key, b"short").unwrap();
        }
        wait_until_given_back(&cluster, node, had, "shortened values");
    }
}

#[test]
fn memory_of_a_discarded_data_set_is_returned() {
    let mut cluster = cluster();
    let had = fill(&cluster, VALUE_BYTES, FOLLOWER);
    cluster.pause(FOLLOWER);
    cluster.kill(LEADER);
    cluster.restart(LEADER);
    cluster.wait_for_status(LEADER, WITHIN, "to lead without it", |status| {
        status.is_state(state::SERVING)
    });
    cluster.client(LEADER).set(b"k", b"v").unwrap();
    cluster.resume(FOLLOWER);
    cluster.wait_for_status(FOLLOWER, WITHIN, "to refuse", |status| {
        status.is_state(state::REFUSED)
    });
    cluster.discard(FOLLOWER);
    cluster.wait_for_status(FOLLOWER, WITHIN, "to have the leader's data", |status| {
        status.is_state(state::SERVING) && status.number(key::KEYS) == Some(1)
    });
    wait_until_given_back(&cluster, FOLLOWER, had, "the data set");
}
