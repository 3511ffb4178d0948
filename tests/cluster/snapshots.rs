//! Snapshots to followers under load, and their failures.

use std::time::Duration;

use crate::faults::{
    BACKLOG_BYTES, FOUND_WITHIN, HEADER, HEALED_WITHIN, QUICK, QUICK_AND_SMALL, SPARE_KIB, bit,
    cluster, judge, load, overwrite,
};
use crate::support::cluster::{Cluster, Options, is_long, rounds, wait_until};
use crate::support::load::{self, Load, Random};
use crate::support::names::{key, opcode, state};
use crate::support::node::PATIENCE;
use crate::support::proxy::{Cut, Way};

/// Bytes of a SNAPSHOT_CHUNK that are corrupted, beside those of the header.
const CHUNK_FIELDS: [(&str, usize); 5] = [
    ("checksum", 18),
    ("an entry's opcode", 19),
    ("an entry's value_len", 25),
    ("an entry's key", 26),
    ("an entry's value", 60),
];

#[test]
fn a_gap_larger_than_the_backlog_takes_a_snapshot_in_bounded_memory() {
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
fn a_snapshot_under_load_stalls_no_writer_and_ends() {
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

#[test]
fn a_corrupted_byte_of_a_snapshot_is_detected_and_never_applied() {
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

/// A follower gives up its data for a copy. If both did that at once, a leader that dies would take everything with it.
#[test]
fn followers_that_hold_data_take_snapshots_one_after_another() {
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

/// The only node that had the data dies while the leader copies it. The part that has arrived is no data set: it is not
/// served, and the nodes become equal again.
#[test]
fn an_unfinished_snapshot_of_the_leader_leaves_no_data() {
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
