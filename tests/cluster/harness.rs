//! The cluster and the load themselves, without faults between nodes.

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use gopherstore::client::Error;

use crate::support::cluster::{Cluster, Options};
use crate::support::load::{self, Load, Losses, Random};
use crate::support::node::wait_for;

fn flat_out() -> load::Options {
    load::Options {
        keys: 50,
        per_second: None,
        ..load::Options::default()
    }
}

#[test]
fn nodes_are_killed_stopped_and_restarted_where_they_were() {
    for proxies in [false, true] {
        let options = Options {
            replication: "heartbeat_interval_ms = 100".to_owned(),
            limits: "max_connections = 50".to_owned(),
            proxies,
            ..Options::default()
        };
        let mut cluster = Cluster::start_with(3, &options);
        for round in 0..3 {
            for node in 0..3 {
                let addr = cluster.addr(node);
                cluster.client(node).ping().unwrap();
                if (round + node) % 2 == 0 {
                    cluster.kill(node);
                } else {
                    cluster.stop(node);
                }
                assert!(!cluster.running().contains(&node));
                assert!(TcpStream::connect(addr).is_err());
                if proxies {
                    let through = cluster.link((node + 1) % 3, node).addr();
                    assert!(TcpStream::connect(through).is_err());
                }
                cluster.restart(node);
                cluster.client(node).ping().unwrap();
            }
        }
        // A client's own writes go nowhere but to the leader, whose address may be a proxy's.
        let refused = cluster.client(1).set(b"k", b"v").unwrap_err();
        let Error::NotLeader { leader } = refused else {
            panic!("{refused}");
        };
        let expected = if proxies {
            cluster.link(1, 0).addr()
        } else {
            cluster.addr(0)
        };
        assert_eq!(leader, Some(expected.to_string()));
    }
}

#[test]
fn a_paused_node_answers_when_it_goes_on() {
    let mut cluster = Cluster::start(1);
    let mut client = cluster.client(0);
    client.set(b"k", b"v").unwrap();
    cluster.pause(0);
    assert!(cluster.running().is_empty());
    assert!(cluster.status(0).is_err());
    cluster.resume(0);
    assert_eq!(client.get(b"k").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn contents_are_read_back_and_compared() {
    let cluster = Cluster::start(1);
    let keys: Vec<Vec<u8>> = (0..12_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &key[2..])));
    let values = cluster.equal_contents(&keys);
    assert!(
        keys.iter()
            .zip(&values)
            .all(|(key, value)| value.as_deref() == Some(&key[2..]))
    );
    let absent = cluster.equal_contents(&[b"absent".to_vec()]);
    assert_eq!(absent, [None]);
}

#[test]
fn a_load_without_faults_loses_nothing_and_keeps_its_rate() {
    let cluster = Cluster::start(1);
    let load = Load::start(
        cluster.addr(0),
        load::Options {
            per_second: Some(1_000),
            ..flat_out()
        },
    );
    let begin = std::time::Instant::now();
    load.wait_for_more(300);
    assert!(
        begin.elapsed() > Duration::from_millis(250),
        "{:?}",
        begin.elapsed()
    );
    load.pause();
    let counts = load.counts();
    assert_eq!((counts.refused, counts.unknown), (0, 0));
    let values = cluster.equal_contents(load.keys());
    let verdict = load.judge(&values, Losses::Forbidden);
    assert_eq!((verdict.keys, verdict.lost_writes), (50, 0));
    assert_eq!(load.counts(), counts);
    load.resume();
    load.wait_for_more(100);
}

/// A node that restarts empty has lost all: the judge counts every write, and later ones are judged anew.
#[test]
fn data_lost_with_a_node_is_counted() {
    let mut cluster = Cluster::start(1);
    let load = Load::start(
        cluster.addr(0),
        load::Options {
            dels: 0,
            ..flat_out()
        },
    );
    load.wait_for_more(1_000);
    cluster.kill(0);
    wait_for("a failed write", || {
        (load.counts().refused > 0).then_some(())
    });
    load.pause();
    cluster.restart(0);
    let empty = cluster.equal_contents(load.keys());
    assert!(empty.iter().all(Option::is_none));
    let verdict = load.judge(&empty, Losses::Legal);
    assert_eq!(
        u64::try_from(verdict.lost_writes).unwrap(),
        load.counts().acknowledged
    );
    assert!(fails(|| load.judge(&empty, Losses::Forbidden)));
    load.adopt(&empty);
    load.resume();
    load.wait_for_more(1_000);
    load.pause();
    let values = cluster.equal_contents(load.keys());
    load.judge(&values, Losses::Forbidden);
}

#[test]
fn the_judge_finds_what_is_stale_changed_or_never_written() {
    let cluster = Cluster::start(1);
    let options = load::Options {
        keys: 1,
        dels: 0,
        ..flat_out()
    };
    let load = Load::start(cluster.addr(0), options.clone());
    load.wait_for_more(10);
    load.pause();
    let earlier = cluster.equal_contents(load.keys());
    load.resume();
    load.wait_for_more(10);
    load.pause();
    let later = cluster.equal_contents(load.keys());
    load.judge(&later, Losses::Forbidden);
    load.judge_order(&earlier, &later);

    assert!(fails(|| load.judge(&earlier, Losses::Forbidden)));
    assert!(load.judge(&earlier, Losses::Legal).lost_writes >= 10);
    assert!(fails(|| load.judge_order(&later, &earlier)));
    assert!(fails(|| load.judge_order(&later, &[None])));
    let mut changed = later.clone();
    *changed[0].as_mut().unwrap().last_mut().unwrap() ^= 1;
    assert!(fails(|| load.judge(&changed, Losses::Legal)));
    let mut longer = later.clone();
    longer[0].as_mut().unwrap().push(b'a');
    assert!(fails(|| load.judge(&longer, Losses::Legal)));
    // A value as it should be, of a write that was never made.
    let twin = Load::start(cluster.addr(0), options);
    twin.wait_for_more(1_000);
    twin.pause();
    let future = cluster.equal_contents(twin.keys());
    assert!(fails(|| load.judge(&future, Losses::Legal)));
    load.resume();
    assert!(
        fails(|| load.judge(&later, Losses::Legal)),
        "judged while it writes"
    );
}

#[test]
fn a_seed_repeats_its_numbers() {
    let draw = |seed| {
        let mut random = Random::new(seed);
        (0..10).map(|_| random.within(3..=9)).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    assert!(draw(7).iter().all(|n| (3..=9).contains(n)));
}

/// Whether that fails a test. Its message is printed, and means nothing.
fn fails<T>(test: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(test)).is_err()
}
