//! Planned stops of a leader under load: nothing may be lost.

use std::time::{Duration, Instant};

use gopherstore::client::Error;

use crate::faults::{FOUND_WITHIN, QUICK, cluster, judge, load};
use crate::support::cluster::rounds;
use crate::support::load::Random;
use crate::support::names::{key, peer};
use crate::support::proxy::Way;

#[test]
fn a_planned_stop_of_the_leader_loses_nothing() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    for round in 0..rounds(4, 50) {
        // Soon after its start too, before anybody follows it again.
        let most = if round % 2 == 0 { 2_000 } else { 10 };
        load.wait_for_more(random.within(1..=most));
        cluster.stop(0);
        if round % 4 != 0 {
            cluster.restart(0);
            continue;
        }
        load.pause();
        cluster.restart(0);
        judge(&cluster, &load, FOUND_WITHIN);
        load.resume();
    }
    judge(&cluster, &load, FOUND_WITHIN);
}

/// Nobody else has what a leader took before its followers came back, so a planned stop waits for them.
#[test]
fn a_planned_stop_before_the_followers_are_back_loses_nothing() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    for _ in 0..rounds(2, 50) {
        load.wait_for_more(100);
        cluster.stop(0);
        for follower in [1, 2] {
            cluster.link(follower, 0).refuse(true);
        }
        cluster.restart(0);
        load.wait_for_more(random.within(1..=500));
        assert_eq!(cluster.number(0, key::RESUMES), 0, "no node follows");
        cluster.begin_stop(0);
        cluster.process(0).wait_for_log("handing over to n2, n3");
        load.pause();
        let refused = cluster.client(0).set(b"late", b"v").unwrap_err();
        assert!(matches!(refused, Error::Loading { .. }), "{refused}");
        assert!(refused.to_string().contains("stopping"), "{refused}");
        cluster.read_all(0, load.keys()).unwrap();
        for follower in [1, 2] {
            cluster.link(follower, 0).refuse(false);
        }
        cluster.wait_stopped(0);
        cluster.restart(0);
        judge(&cluster, &load, FOUND_WITHIN);
        load.resume();
    }
}

/// A copy takes longer than a stop waits for a follower that stays away, and all the data would go with the leader.
#[test]
fn a_planned_stop_waits_for_the_only_snapshot() {
    // With the defaults, since on a slow link a busy machine soon makes a silence of 300 ms.
    let mut cluster = cluster("");
    let keys: Vec<Vec<u8>> = (0..10_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &[b'v'; 200][..])));
    cluster.wait_converged(FOUND_WITHIN);
    cluster.kill(1);
    cluster.kill(2);
    cluster.link(1, 0).throttle(Way::Down, Some(200_000));
    cluster.restart(1);
    cluster.wait_for_status(1, FOUND_WITHIN, "part of a copy", |status| {
        status.number(key::KEYS).is_some_and(|keys| keys > 100)
    });
    cluster.wait_for_status(0, FOUND_WITHIN, "the dead one's end", |status| {
        status.get(&key::peer_state("n3")) == Some(peer::DOWN)
    });
    cluster.stop(0);
    cluster.link(1, 0).pass();
    let values = cluster.read_all(1, &keys).unwrap();
    assert!(values.iter().all(Option::is_some));
    cluster.restart(0);
    cluster.restart(2);
    cluster.wait_converged(FOUND_WITHIN);
    let values = cluster.equal_contents(&keys);
    assert!(values.iter().all(Option::is_some));
}

#[test]
fn a_stopping_leader_does_not_wait_for_dead_followers() {
    let mut cluster = cluster(QUICK);
    cluster.client(0).set(b"k", b"v").unwrap();
    cluster.wait_converged(FOUND_WITHIN);
    cluster.kill(1);
    cluster.pause(2);
    for name in ["n2", "n3"] {
        cluster.wait_for_status(0, FOUND_WITHIN, "no peer", |status| {
            status.get(&key::peer_state(name)) == Some(peer::DOWN)
                && status.get(&key::follower_state(name)) == Some("away")
        });
    }
    cluster.client(0).set(b"k", b"w").unwrap();
    let begin = Instant::now();
    cluster.begin_stop(0);
    cluster.wait_stopped_with(0, 3);
    assert!(begin.elapsed() < Duration::from_secs(15), "{begin:?}");
    let log = cluster.folder_log(0);
    assert!(
        log.contains("no other node is known to hold the data: 1 keys, up to index 3, are lost"),
        "{log}"
    );
    cluster.resume(2);
}
