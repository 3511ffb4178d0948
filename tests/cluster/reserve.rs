//! Clients that take all of `max_connections`, and the nodes that need the leader all the same.

use std::net::TcpStream;
use std::time::Duration;

use gopherstore::client::Client;

use crate::support::cluster::{Cluster, Options, wait_until};
use crate::support::names::{key, state};

const WITHIN: Duration = Duration::from_secs(15);

/// Idle clients of the leader, until it takes no more, and one that writes.
fn fill(cluster: &Cluster) -> (Client, Vec<TcpStream>) {
    let mut writer = cluster.client(0);
    writer.set(b"k", b"v").unwrap();
    let mut idle = Vec::new();
    wait_until(WITHIN, "the leader to be full", || {
        idle.push(TcpStream::connect(cluster.addr(0)).unwrap());
        let mut one_more = cluster.client(0);
        one_more
            .ping()
            .is_err_and(|error| error.to_string().contains("too many connections"))
    });
    (writer, idle)
}

#[test]
fn a_follower_comes_back_to_a_leader_whose_places_are_all_taken() {
    let options = Options {
        replication: "heartbeat_interval_ms = 100\nleader_timeout_ms = 2000".to_owned(),
        limits: "max_connections = 8".to_owned(),
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(WITHIN);
    cluster.kill(1);
    let (mut writer, idle) = fill(&cluster);
    cluster.restart(1);
    writer.set(b"while full", b"v").unwrap();
    cluster.wait_for_status(1, WITHIN, "to have everything", |status| {
        status.is_state(state::SERVING) && status.number(key::INDEX) == Some(3)
    });
    // It keeps its place: what is written later comes too.
    writer.set(b"later", b"v").unwrap();
    cluster.wait_for_status(1, WITHIN, "what came later", |status| {
        status.number(key::INDEX) == Some(4)
    });
    // A planned stop hands over to it.
    drop(writer);
    cluster.stop(0);
    assert!(
        cluster.folder_log(0).contains("handed over up to index 4"),
        "{}",
        cluster.folder_log(0)
    );
    drop(idle);
}
