//! Faults that followers survive: each once here, a few times by default, and as often as the long run asks.
//!
//! The tests compare STATUS with the data, which they read back key by key.

use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Options, is_long, rounds, wait_until};
use crate::support::load::{self, Load, Losses, Random};
use crate::support::names::{key, opcode, peer, state};
use crate::support::node::PATIENCE;
use crate::support::proxy::{Cut, Way};

/// From the end of a fault to equal nodes.
pub(crate) const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// For a link that has to be closed and opened again first.
pub(crate) const FOUND_WITHIN: Duration = Duration::from_secs(15);
/// Quick enough that a test need not wait long for silence to be noticed.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
pub(crate) const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";
/// The smallest that there is.
pub(crate) const BACKLOG_BYTES: u64 = 1 << 20;
pub(crate) const QUICK_AND_SMALL: &str =
    "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\nbacklog_bytes = 1048576";
/// Memory that a node may use beside its data and its backlog.
pub(crate) const SPARE_KIB: u64 = 16 << 10;

pub(crate) fn cluster(replication: &str) -> Cluster {
    let cluster = Cluster::start_with(
        3,
        &Options {
            replication: replication.to_owned(),
            proxies: true,
            ..Options::default()
        },
    );
    cluster.wait_converged(FOUND_WITHIN);
    cluster
}

pub(crate) fn load(cluster: &Cluster, random: &mut Random) -> Load {
    let seed = random.next();
    let options = load::Options {
        seed,
        ..load::Options::default()
    };
    Load::start(cluster.addr(0), options)
}

/// Stops the load, waits for equal nodes, and reads back every key; nothing may be lost. The load stays paused.
#[track_caller]
pub(crate) fn judge(cluster: &Cluster, load: &Load, within: Duration) {
    load.pause();
    cluster.wait_converged(within);
    load.judge(&cluster.equal_contents(load.keys()), Losses::Forbidden);
}

/// Writes that much on the leader, over and over the same few keys, so that the log grows and the data does not.
pub(crate) fn overwrite(cluster: &Cluster, bytes: u64) {
    let value = vec![b'x'; 1_000];
    let keys: Vec<Vec<u8>> = (0..64_u8).map(|n| vec![b'o', n]).collect();
    let count = usize::try_from(bytes / 1_000).unwrap();
    cluster.write_all(
        keys.iter()
            .cycle()
            .take(count)
            .map(|key| (&key[..], &value[..])),
    );
}

#[test]
fn a_follower_killed_under_load_has_all_data_again_within_five_seconds() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    for round in 0..rounds(4, 200) {
        let node = 1 + round % 2;
        load.wait_for_more(random.within(1..=2_000));
        cluster.kill(node);
        load.wait_for_more(random.within(1..=2_000));
        cluster.restart(node);
        judge(&cluster, &load, HEALED_WITHIN);
        load.resume();
    }
}

#[test]
fn a_stream_cut_at_any_byte_resumes_where_it_was() {
    let mut random = Random::from_env();
    let cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    load.wait_for_more(100);
    judge(&cluster, &load, FOUND_WITHIN);
    let copies = cluster.number(0, key::FULL_COPIES);
    let resumes = cluster.number(0, key::RESUMES);
    let rounds = rounds(20, 1_000);
    for round in 0..rounds {
        let link = cluster.link(1 + round % 2, 0);
        let before = link.counts();
        let how = if random.within(0..=1) == 0 {
            Cut::End
        } else {
            Cut::Reset
        };
        // One in four goes in the other direction, through the ACKs.
        let way = if random.within(0..=3) == 0 {
            Way::Up
        } else {
            Way::Down
        };
        let most = if way == Way::Down { 10_000 } else { 100 };
        link.cut_after(way, random.within(0..=most), how);
        load.resume();
        wait_until(PATIENCE, "the cut", || link.counts().cuts > before.cuts);
        wait_until(FOUND_WITHIN, "the follower's return", || {
            link.counts().watched > before.watched
        });
        if round % 10 == 9 {
            judge(&cluster, &load, HEALED_WITHIN);
        }
    }
    judge(&cluster, &load, HEALED_WITHIN);
    assert_eq!(
        cluster.number(0, key::FULL_COPIES),
        copies,
        "full copies\n{}",
        cluster.statuses()
    );
    let resumed = cluster.number(0, key::RESUMES) - resumes;
    assert!(
        resumed >= u64::try_from(rounds).unwrap(),
        "{resumed} resumes of {rounds}"
    );
}

#[test]
fn a_leader_that_restarts_empty_takes_the_data_of_its_followers() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    let mut lost = 0;
    for round in 0..rounds(3, 50) {
        load.wait_for_more(random.within(100..=3_000));
        let epoch = cluster.number(0, key::EPOCH);
        cluster.kill(0);
        load.pause();
        // The data that they have now is the least that must be there afterwards.
        let seen = [1, 2].map(|node| cluster.read_all(node, load.keys()).unwrap());
        cluster.restart(0);
        cluster.wait_converged(FOUND_WITHIN);
        let values = cluster.equal_contents(load.keys());
        for seen in &seen {
            load.judge_order(seen, &values);
        }
        let verdict = load.judge(&values, Losses::Legal);
        println!(
            "round {round}: {} acknowledged writes lost",
            verdict.lost_writes
        );
        lost += verdict.lost_writes;
        assert!(values.iter().any(Option::is_some), "emptied");
        assert!(cluster.number(0, key::EPOCH) > epoch, "no new epoch");
        load.adopt(&values);
        load.resume();
    }
    let acknowledged = load.counts().acknowledged;
    println!(
        "{lost} of {acknowledged} acknowledged writes lost, all of them unknown to every follower"
    );
    load.wait_for_more(100);
    judge(&cluster, &load, HEALED_WITHIN);
}

#[test]
fn a_node_that_was_suspended_catches_up() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    let longest = if is_long() { 30_000 } else { 1_500 };
    for round in 0..rounds(4, 100) {
        let node = round % 3;
        load.wait_for_more(500);
        cluster.pause(node);
        let pause = random.millis(100..=longest);
        let begin = Instant::now();
        if node == 0 {
            // Nobody can write, so there is nothing to wait for but the time.
            wait_until(pause + PATIENCE, "the pause", || begin.elapsed() >= pause);
        } else {
            while begin.elapsed() < pause {
                load.wait_for_more(10);
            }
        }
        cluster.resume(node);
        load.wait_for_more(100);
        judge(&cluster, &load, FOUND_WITHIN);
        load.resume();
    }
}

#[test]
fn a_follower_that_is_cut_off_costs_the_other_nothing() {
    let mut random = Random::from_env();
    let cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    let lag = key::follower_lag_ms(cluster.name(2));
    // The greatest value of this number of reads, during the load.
    let worst_lag = || {
        let look = |_| {
            load.wait_for_more(50);
            cluster.number(0, &lag)
        };
        (0..50).map(look).max().unwrap()
    };
    // The lag of the other follower before its peer is cut off, and during that.
    let lags = |round: usize| {
        let before = worst_lag();
        for link in cluster.links_of(1) {
            if round.is_multiple_of(2) {
                link.hold_both();
            } else {
                link.refuse(true);
                link.cut(Cut::Reset);
            }
        }
        let during = worst_lag();
        for link in cluster.links_of(1) {
            link.pass();
        }
        judge(&cluster, &load, FOUND_WITHIN);
        load.resume();
        (before, during)
    };
    for round in 0..rounds(2, 50) {
        // A busy machine may delay a few of them.
        let mut seen = Vec::new();
        while seen
            .last()
            .is_none_or(|(before, during): &(u64, u64)| *during > *before.max(&20) * 3)
        {
            assert!(seen.len() < 5, "lags in ms, before and during: {seen:?}");
            seen.push(lags(round));
        }
    }
}

/// Fields of a stream's frames: the byte of each that is corrupted. The first seven are the header's, of every frame.
pub(crate) const HEADER: [(&str, usize); 5] = [
    ("opcode", 0),
    ("key_len", 2),
    ("value_len, high", 3),
    ("value_len, low", 6),
    ("epoch or sequence, low", 14),
];
const ENTRIES_FIELDS: [(&str, usize); 5] = [
    ("epoch, high", 7),
    ("first index, high", 15),
    ("first index, low", 22),
    ("count", 26),
    ("checksum", 30),
];
const ENTRIES_VALUE: [(&str, usize); 4] = [
    ("an entry's opcode", 31),
    ("an entry's key_len", 33),
    ("an entry's value_len", 37),
    ("an entry's key", 38),
];

#[test]
fn a_corrupted_byte_of_entries_is_detected_and_never_applied() {
    let mut random = Random::from_env();
    let cluster = cluster(QUICK);
    let load = load(&cluster, &mut random);
    let link = cluster.link(1, 0);
    for _ in 0..rounds(1, 8) {
        for (field, offset) in HEADER.iter().chain(&ENTRIES_FIELDS).chain(&ENTRIES_VALUE) {
            let before = link.counts();
            link.flip(Way::Down, opcode::ENTRIES, *offset, bit(&mut random));
            wait_until(PATIENCE, field, || link.counts().flips > before.flips);
            wait_until(FOUND_WITHIN, &format!("{field}: a new link"), || {
                link.counts().watched > before.watched
            });
            judge(&cluster, &load, FOUND_WITHIN);
            load.resume();
        }
    }
}

pub(crate) fn bit(random: &mut Random) -> u8 {
    1 << random.within(0..=7)
}

#[test]
fn a_follower_ahead_of_its_leader_refuses_it_and_serves() {
    let mut random = Random::from_env();
    for round in 0..rounds(2, 20) {
        let mut cluster = cluster(QUICK);
        let load = load(&cluster, &mut random);
        let (behind, ahead) = (1, 2);
        load.wait_for_more(500);
        load.pause();
        cluster.wait_converged(HEALED_WITHIN);
        let old = cluster.equal_contents(load.keys());
        // One falls behind.
        let link = cluster.link(behind, 0);
        link.refuse(true);
        link.cut(Cut::End);
        load.resume();
        load.wait_for_more(500);
        load.pause();
        let index = cluster.number(0, key::INDEX);
        cluster.wait_for_status(ahead, HEALED_WITHIN, "all entries", |status| {
            status.number(key::INDEX) == Some(index)
        });
        let new = cluster.read_all(ahead, load.keys()).unwrap();
        load.judge(&new, Losses::Forbidden);
        // The one ahead is out of reach, with a word or without, when the leader comes back.
        for link in cluster.links_of(ahead) {
            link.cut(Cut::Reset);
            if round % 2 == 0 {
                link.hold_both();
            } else {
                link.refuse(true);
            }
        }
        cluster.kill(0);
        cluster.link(behind, 0).pass();
        cluster.restart(0);
        let both = [0, behind];
        wait_until(
            FOUND_WITHIN,
            "the leader to serve what the other had",
            || {
                both.iter()
                    .all(|node| cluster.read_all(*node, load.keys()).as_ref() == Ok(&old))
            },
        );
        load.adopt(&old);
        load.resume();
        load.wait_for_more(100);
        load.pause();
        // It comes back, and holds what the leader lacks.
        for link in cluster.links_of(ahead) {
            link.pass();
        }
        cluster.wait_for_status(ahead, FOUND_WITHIN, "a refusal", |status| {
            status.is_state(state::REFUSED)
        });
        assert_eq!(cluster.read_all(ahead, load.keys()).as_ref(), Ok(&new));
        // Not for a moment only: it is asked more often than it could have tried again.
        load.resume();
        load.wait_for_more(2_000);
        load.pause();
        assert!(
            cluster.status(ahead).unwrap().is_state(state::REFUSED),
            "{}",
            cluster.statuses()
        );
        assert_eq!(cluster.read_all(ahead, load.keys()).as_ref(), Ok(&new));
        let (status, message) = cluster.discard(ahead);
        assert_eq!(status, 0, "{message}");
        judge(&cluster, &load, FOUND_WITHIN);
    }
}

#[test]
fn a_half_open_connection_is_detected_by_both_sides() {
    let cluster = cluster(QUICK);
    let (leader, follower) = (cluster.name(0), cluster.name(1));
    for _ in 0..rounds(2, 50) {
        for link in cluster.links_of(1) {
            link.hold_both();
        }
        let is = |name: &str, value: &'static str| {
            let key = key::peer_state(name);
            move |status: &crate::support::cluster::Status| status.get(&key) == Some(value)
        };
        // Three heartbeats, and what a busy machine adds.
        let within = HEARTBEAT * 3 + Duration::from_millis(700);
        cluster.wait_for_status(0, within, "the follower is down", is(follower, peer::DOWN));
        cluster.wait_for_status(1, within * 2, "the leader is down", is(leader, peer::DOWN));
        assert!(
            cluster.status(1).unwrap().is_state(state::SERVING),
            "{}",
            cluster.statuses()
        );
        for link in cluster.links_of(1) {
            link.pass();
        }
        cluster.wait_for_status(
            0,
            FOUND_WITHIN,
            "the follower is up",
            is(follower, peer::UP),
        );
        cluster.wait_for_status(1, FOUND_WITHIN, "the leader is up", is(leader, peer::UP));
        cluster.wait_converged(FOUND_WITHIN);
    }
}

#[test]
fn a_slow_or_stopped_follower_does_not_cost_the_leader_its_memory() {
    let mut cluster = cluster(QUICK_AND_SMALL);
    overwrite(&cluster, 2 * BACKLOG_BYTES);
    cluster.wait_converged(FOUND_WITHIN);
    let base = cluster.process(0).memory_kib("VmHWM");
    cluster.link(1, 0).throttle(Way::Down, Some(64 << 10));
    cluster.pause(2);
    overwrite(&cluster, 32 * BACKLOG_BYTES);
    let most = cluster.process(0).memory_kib("VmHWM");
    assert!(
        most <= base + BACKLOG_BYTES / 1024 + SPARE_KIB,
        "{most} KiB, base {base} KiB"
    );
    cluster.resume(2);
    cluster.link(1, 0).pass();
    cluster.wait_converged(FOUND_WITHIN * 2);
}

#[test]
fn random_restarts_and_cuts_of_all_nodes_end_in_equal_nodes() {
    let mut seeds = Random::from_env();
    for _ in 0..rounds(1, 20) {
        let seed = seeds.next();
        println!("seed of this round: {seed}");
        let mut random = Random::new(seed);
        let mut cluster = cluster(QUICK_AND_SMALL);
        let load = load(&cluster, &mut random);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(if is_long() { 60 } else { 4 }) {
            let pause = random.millis(0..=300);
            let at = Instant::now();
            wait_until(PATIENCE, "the next fault", || at.elapsed() >= pause);
            let node = random.index(3);
            let other = (node + 1 + random.index(2)) % 3;
            let link = cluster.link(node, other);
            println!("{:?}: {}", begin.elapsed(), cluster.name(node));
            match random.within(0..=9) {
                0 => link.cut(Cut::End),
                1 => link.cut(Cut::Reset),
                2 => link.cut_after(Way::Down, random.within(0..=5_000), Cut::End),
                3 => link.hold_both(),
                4 => link.hold(Way::Down),
                5 => link.refuse(true),
                6 => link.throttle(Way::Down, Some(random.within(10_000..=1_000_000))),
                7 => cluster.links_of(node).for_each(|link| link.pass()),
                8 => {
                    cluster.kill(node);
                    cluster.restart(node);
                }
                _ => {
                    cluster.begin_stop(node);
                    // Where no other node had everything it says so.
                    let code = cluster.wait_ended(node);
                    assert!(matches!(code, Some(0 | 3)), "{code:?}");
                    cluster.restart(node);
                }
            }
        }
        (0..3).for_each(|node| cluster.links_of(node).for_each(|link| link.pass()));
        load.pause();
        // A leader that lost its data may have come back while no peer could be asked, and a follower ahead of it then
        // refuses it, rightly, until an operator orders otherwise.
        let begin = Instant::now();
        let mut refused = 0;
        while begin.elapsed() < FOUND_WITHIN {
            let statuses = [0, 1, 2].map(|node| cluster.status(node).unwrap());
            for (node, _) in (1..3)
                .zip(&statuses[1..])
                .filter(|(_, s)| s.is_state(state::REFUSED))
            {
                // By now its leader may know its data.
                let (status, message) = cluster.discard(node);
                assert!(
                    status == 0 || message.starts_with("nothing to discard"),
                    "{message}"
                );
                refused += u32::from(status == 0);
            }
            let place = |s: &crate::support::cluster::Status| {
                s.is_state(state::SERVING)
                    .then(|| s.get(key::DIGEST).map(str::to_owned))
            };
            if statuses
                .iter()
                .all(|s| place(s).is_some() && place(s) == place(&statuses[0]))
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        cluster.wait_converged(HEALED_WITHIN);
        let verdict = load.judge(&cluster.equal_contents(load.keys()), Losses::Legal);
        let acknowledged = load.counts().acknowledged;
        println!(
            "{} of {acknowledged} writes lost, {refused} times discarded",
            verdict.lost_writes
        );
    }
}
