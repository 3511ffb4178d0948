//! Faults that followers survive: each once here, a few times by default, and as often as the long run asks.
//!
//! The tests compare STATUS with the data, which they read back key by key.

use std::time::{Duration, Instant};

use gopherstore::client::Error;

use crate::support::cluster::{Cluster, Options, is_long, rounds, wait_until};
use crate::support::load::{self, Load, Losses, Random};
use crate::support::names::{key, opcode, peer, state};
use crate::support::node::PATIENCE;
use crate::support::proxy::{Cut, Way};

/// From the end of a fault to equal nodes.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// Where a link has to be given up, and found again, first.
const FOUND_WITHIN: Duration = Duration::from_secs(15);
/// Quick enough that a test need not wait long for silence to be noticed.
const HEARTBEAT: Duration = Duration::from_millis(100);
const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";
/// The smallest that there is.
const BACKLOG_BYTES: u64 = 1 << 20;
const QUICK_AND_SMALL: &str =
    "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\nbacklog_bytes = 1048576";
/// Memory that a node may use beside its data and its backlog.
const SPARE_KIB: u64 = 16 << 10;

fn cluster(replication: &str) -> Cluster {
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

fn load(cluster: &Cluster, random: &mut Random) -> Load {
    let seed = random.next();
    let options = load::Options {
        seed,
        ..load::Options::default()
    };
    Load::start(cluster.addr(0), options)
}

/// Stops the load, waits for equal nodes, and reads back every key; nothing may be lost. The load stays paused.
#[track_caller]
fn judge(cluster: &Cluster, load: &Load, within: Duration) {
    load.pause();
    cluster.wait_converged(within);
    load.judge(&cluster.equal_contents(load.keys()), Losses::Forbidden);
}

/// Writes that much on the leader, over and over the same few keys, so that the log grows and the data does not.
fn overwrite(cluster: &Cluster, bytes: u64) {
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
fn a_follower_killed_under_load_has_all_again_within_five_seconds() {
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
fn a_link_cut_at_any_byte_goes_on_where_it_was() {
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
fn a_leader_that_comes_back_empty_takes_what_its_followers_have() {
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
fn a_node_that_stood_still_catches_up() {
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
    // The most in so many looks, while the load goes on.
    let worst_lag = || {
        let look = |_| {
            load.wait_for_more(50);
            cluster.number(0, &lag)
        };
        (0..50).map(look).max().unwrap()
    };
    for round in 0..rounds(2, 50) {
        let before = worst_lag();
        for link in cluster.links_of(1) {
            if round % 2 == 0 {
                link.hold_both();
            } else {
                link.refuse(true);
                link.cut(Cut::Reset);
            }
        }
        let during = worst_lag();
        assert!(
            during <= before.max(20) * 3,
            "{during} ms, and {before} ms before"
        );
        for link in cluster.links_of(1) {
            link.pass();
        }
        judge(&cluster, &load, FOUND_WITHIN);
        load.resume();
    }
}

#[test]
fn a_gap_larger_than_the_backlog_is_closed_by_a_copy_in_bounded_memory() {
    let cluster = cluster(QUICK_AND_SMALL);
    overwrite(&cluster, 2 * BACKLOG_BYTES);
    cluster.wait_converged(FOUND_WITHIN);
    let base = cluster.process(0).memory_kib("VmHWM");
    for _ in 0..rounds(2, 50) {
        // The follower's own count: flat out, the leader may leave the other one behind its small backlog too.
        let copies = cluster.number(1, key::FULL_COPIES);
        let link = cluster.link(1, 0);
        link.refuse(true);
        link.cut(Cut::End);
        overwrite(&cluster, 8 * BACKLOG_BYTES);
        link.pass();
        cluster.wait_converged(FOUND_WITHIN);
        assert_eq!(
            cluster.number(1, key::FULL_COPIES),
            copies + 1,
            "{}",
            cluster.statuses()
        );
        let keys: Vec<Vec<u8>> = (0..64_u8).map(|n| vec![b'o', n]).collect();
        cluster.equal_contents(&keys);
    }
    let most = cluster.process(0).memory_kib("VmHWM");
    assert!(
        most <= base + BACKLOG_BYTES / 1024 + SPARE_KIB,
        "{most} KiB, base {base} KiB"
    );
}

/// Nothing is between the nodes, since proxies would take the processor from all of them. What a writer waits for is
/// compared with what it waits for while the follower of another cluster takes the same copy: that takes as much of the
/// machine, but has nothing to do with the writer's leader.
#[test]
fn a_full_copy_under_load_stalls_no_writer_and_ends() {
    let mut random = Random::from_env();
    let count = rounds(30_000, 2_000_000);
    let keys: Vec<Vec<u8>> = (0..count)
        .map(|n| format!("large:{n:010}").into_bytes())
        .collect();
    let value = [b'v'; 64];
    let [mut cluster, mut other] = [3, 2].map(|nodes| {
        let options = Options {
            replication: QUICK_AND_SMALL.to_owned(),
            ..Options::default()
        };
        let cluster = Cluster::start_with(nodes, &options);
        cluster.wait_converged(FOUND_WITHIN);
        cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
        cluster.wait_converged(PATIENCE);
        cluster
    });
    let load = Load::start(
        cluster.addr(0),
        load::Options {
            batch: 1,
            per_second: Some(if is_long() { 50_000 } else { 2_000 }),
            seed: random.next(),
            ..load::Options::default()
        },
    );
    // The longest wait of the writer until the follower serves again.
    let copy = |cluster: &mut Cluster| {
        load.wait_for_more(1_000);
        load.take_times();
        let copies = cluster.number(0, key::FULL_COPIES);
        cluster.kill(1);
        cluster.restart(1);
        cluster.wait_for_status(1, PATIENCE, "its copy", |status| {
            status.is_state(state::SERVING)
        });
        assert!(
            cluster.number(0, key::FULL_COPIES) > copies,
            "{}",
            cluster.statuses()
        );
        load.take_times().into_iter().max().unwrap()
    };
    // A debug build on a busy machine says nothing about 5 ms.
    let allowed = Duration::from_millis(if is_long() { 5 } else { 200 });
    let mut waits = Vec::new();
    for _ in 0..rounds(2, 20) {
        waits.push((copy(&mut other), copy(&mut cluster)));
        judge(&cluster, &load, HEALED_WITHIN);
        load.resume();
    }
    load.pause();
    let median = |waits: &mut dyn Iterator<Item = Duration>| {
        let mut waits: Vec<Duration> = waits.collect();
        waits.sort_unstable();
        waits[waits.len() / 2]
    };
    let without = median(&mut waits.iter().map(|pair| pair.0));
    let with = median(&mut waits.iter().map(|pair| pair.1));
    println!("longest waits, medians: {with:?} with a copy, {without:?} beside another's");
    assert!(with <= without + allowed, "{waits:?}");
    let values = cluster.equal_contents(&keys);
    assert!(
        values
            .iter()
            .all(|found| found.as_deref() == Some(&value[..]))
    );
}

/// Fields of a stream's frames: the byte of each that is corrupted. The first seven are the header's, of every frame.
const HEADER: [(&str, usize); 5] = [
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
const CHUNK_FIELDS: [(&str, usize); 5] = [
    ("checksum", 18),
    ("an entry's opcode", 19),
    ("an entry's value_len", 25),
    ("an entry's key", 26),
    ("an entry's value", 60),
];

#[test]
fn a_corrupted_byte_of_entries_is_noticed_and_never_applied() {
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

#[test]
fn a_corrupted_byte_of_a_snapshot_is_noticed_and_never_applied() {
    let mut random = Random::from_env();
    let mut cluster = cluster(QUICK_AND_SMALL);
    let load = load(&cluster, &mut random);
    // So much that a follower which restarts needs a copy.
    overwrite(&cluster, 2 * BACKLOG_BYTES);
    let header = |opcode| HEADER.iter().map(move |field| (opcode, field));
    let fields: Vec<_> = header(opcode::SNAPSHOT_BEGIN)
        .chain(header(opcode::SNAPSHOT_CHUNK))
        .chain(
            CHUNK_FIELDS
                .iter()
                .map(|field| (opcode::SNAPSHOT_CHUNK, field)),
        )
        .chain(header(opcode::SNAPSHOT_END))
        .collect();
    // Each takes two copies and a pause of the follower's, so by default only every third, from a random one.
    let step = if is_long() { 1 } else { 3 };
    for _ in 0..rounds(1, 8) {
        for (opcode, (field, offset)) in fields.iter().skip(random.index(step)).step_by(step) {
            cluster.kill(1);
            let link = cluster.link(1, 0);
            let before = link.counts();
            link.flip(Way::Down, *opcode, *offset, bit(&mut random));
            cluster.restart(1);
            let link = cluster.link(1, 0);
            let what = format!("{opcode:#04x} {field}");
            wait_until(PATIENCE, &what, || link.counts().flips > before.flips);
            wait_until(FOUND_WITHIN, &format!("{what}: a new link"), || {
                link.counts().watched > before.watched + 1
            });
            judge(&cluster, &load, FOUND_WITHIN);
            load.resume();
        }
    }
}

fn bit(random: &mut Random) -> u8 {
    1 << random.within(0..=7)
}

#[test]
fn a_follower_ahead_of_its_leader_refuses_it_and_serves_on() {
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
fn a_half_open_link_is_noticed_by_both_sides() {
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

/// A follower gives up its data for a copy. If both did that at once, a leader that dies would take everything with it.
#[test]
fn followers_that_hold_data_take_their_copies_one_after_another() {
    let mut cluster = cluster(QUICK_AND_SMALL);
    let keys: Vec<Vec<u8>> = (0..10_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    cluster.write_all(keys.iter().map(|key| (&key[..], &[b'v'; 200][..])));
    for _ in 0..rounds(1, 20) {
        cluster.wait_converged(FOUND_WITHIN);
        for follower in [1, 2] {
            let link = cluster.link(follower, 0);
            link.refuse(true);
            link.cut(Cut::End);
            link.throttle(Way::Down, Some(250_000));
        }
        overwrite(&cluster, 3 * BACKLOG_BYTES);
        for follower in [1, 2] {
            cluster.link(follower, 0).refuse(false);
        }
        let loads = |cluster: &Cluster, node| {
            let status = cluster.status(node).unwrap();
            !status.is_state(state::SERVING)
        };
        wait_until(FOUND_WITHIN, "a copy", || {
            loads(&cluster, 1) || loads(&cluster, 2)
        });
        let (copying, waiting) = if loads(&cluster, 1) { (1, 2) } else { (2, 1) };
        cluster
            .process(waiting)
            .wait_for_log("one that holds data waits for its turn");
        assert!(loads(&cluster, copying), "the test's copy is too short");
        assert!(!loads(&cluster, waiting), "{}", cluster.statuses());
        // Bytes on their way would outlive the leader, and might be the rest of the snapshot.
        for follower in [1, 2] {
            let link = cluster.link(follower, 0);
            link.refuse(true);
            link.cut(Cut::Reset);
        }
        cluster.kill(0);
        assert!(loads(&cluster, copying), "the test's copy is too short");
        for follower in [1, 2] {
            cluster.link(follower, 0).pass();
        }
        cluster.restart(0);
        cluster.wait_converged(FOUND_WITHIN);
        let values = cluster.equal_contents(&keys);
        assert!(values.iter().all(Option::is_some), "lost all");
    }
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
fn a_planned_stop_lets_the_only_copy_end() {
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
fn a_stopping_leader_does_not_wait_for_the_dead() {
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
        log.contains("no other node is known to hold the data: 1 keys, up to index 2, are lost"),
        "{log}"
    );
    cluster.resume(2);
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
        // refuses it, rightly, until it is told otherwise.
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

/// The only node that had the data dies while the leader copies it. What has come of it is no data set: it is not
/// served, and the nodes become equal again.
#[test]
fn a_copy_that_the_leader_cannot_finish_leaves_nothing_behind() {
    let mut cluster = cluster(QUICK);
    let keys: Vec<Vec<u8>> = (0..20_000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let value = [b'v'; 200];
    for _ in 0..rounds(1, 20) {
        cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
        cluster.wait_converged(FOUND_WITHIN);
        cluster.kill(2);
        cluster.kill(0);
        let link = cluster.link(0, 1);
        link.throttle(Way::Down, Some(300_000));
        cluster.restart(0);
        cluster.wait_for_status(0, FOUND_WITHIN, "part of a copy", |status| {
            status.number(key::KEYS).is_some_and(|keys| keys > 100)
        });
        cluster.kill(1);
        cluster.wait_for_status(0, FOUND_WITHIN, "the end of its search", |status| {
            status.is_state(state::SERVING)
        });
        cluster.link(0, 1).pass();
        cluster.restart(1);
        cluster.restart(2);
        cluster.wait_converged(FOUND_WITHIN);
        assert!(cluster.equal_contents(&keys).iter().all(Option::is_none));
    }
}
