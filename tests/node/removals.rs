//! Entries whose deadline has passed are removed by the leader alone, with records that keep all nodes equal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gopherstore::engine::clock::{Clock, Reading, TimeSource};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::memory::MemoryLimit;
use gopherstore::engine::store::Store;
use gopherstore::engine::{
    Admission, Answers, EXPIRED_MAX, Engine, Expired, NotDone, PartitionCopy,
};
use gopherstore::history::EpochStart;
use gopherstore::log::{Found, Log};
use gopherstore::wire::expiry::expire_value;
use gopherstore::wire::request::{Limits, frames};
use gopherstore::wire::{Opcode, Request, Run, Status, response};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::receive;

const START: u64 = 1_700_000_000_000;
const BACKLOG_BYTES: u64 = 4 << 20;

/// A wall clock and a monotonic clock that a test sets.
#[derive(Clone, Debug, Default)]
struct Time {
    wall: Arc<AtomicU64>,
    monotonic: Arc<AtomicU64>,
}

impl TimeSource for Time {
    fn read(&self) -> Reading {
        Reading {
            wall: self.wall.load(Ordering::SeqCst),
            monotonic: self.monotonic.load(Ordering::SeqCst),
        }
    }
}

impl Time {
    fn new() -> Time {
        let time = Time::default();
        time.wall.store(START, Ordering::SeqCst);
        time
    }

    fn pass(&self, ms: u64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
        self.monotonic.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock alone.
    fn step(&self, wall: u64) {
        self.wall.store(wall, Ordering::SeqCst);
    }
}

fn engine(partitions: usize, backlog_bytes: Option<u64>) -> (Engine, Time) {
    let time = Time::new();
    let clock = Clock::new(Box::new(time.clone()));
    let store = Store::seeded(partitions, 7);
    (Engine::with_store(store, backlog_bytes, clock), time)
}

/// An engine with a log that leads.
fn leader(partitions: usize) -> (Engine, Time) {
    let (engine, time) = engine(partitions, Some(BACKLOG_BYTES));
    lead(&engine, 1);
    (engine, time)
}

fn lead(engine: &Engine, epoch: u64) {
    let start = EpochStart {
        epoch,
        nonce: epoch,
        start_index: engine.head().index + 1,
    };
    engine.open_epoch(start, admission(true)).unwrap();
    engine.log().unwrap().drain(Instant::now());
}

fn admission(writes: bool) -> Admission {
    let reads = true;
    Admission { reads, writes }
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    bytes
}

fn setat(key: &[u8], deadline: u64, value: &[u8]) -> Vec<u8> {
    let value = &[&deadline.to_be_bytes()[..], value].concat();
    encoded(&Request::SetAt { key, value })
}

fn expire(key: &[u8], deadline: Option<u64>) -> Vec<u8> {
    let value = &expire_value(deadline);
    encoded(&Request::Expire { key, value })
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    encoded(&Request::Set { key, value })
}

fn del(key: &[u8]) -> Vec<u8> {
    encoded(&Request::Del { key })
}

/// Executes requests, and returns the status of each.
fn execute(engine: &Engine, mut bytes: &[u8]) -> Vec<Status> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let run = Run::of(bytes, &Limits::default());
        let mut answers = Answers::new();
        let outcome = engine.execute(&run, None, &mut answers).unwrap();
        bytes = &bytes[run.bytes_of(outcome.count)..];
        let all = [answers.bytes(), answers.apart().unwrap_or_default()].concat();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let response::Parsed::Whole(answer) = response::parse(rest).unwrap() else {
                panic!("a whole answer")
            };
            statuses.push(answer.status.try_into().unwrap());
            rest = &rest[answer.frame_len()..];
        }
        if let Some(log) = engine.log() {
            log.drain(Instant::now());
        }
    }
    statuses
}

/// Removes everything that has expired. Returns how many entries.
fn sweep(engine: &Engine) -> usize {
    let mut removed = 0;
    for partition in 0..engine.partitions() {
        loop {
            let expired = engine.expire(partition, None, || ()).unwrap();
            assert!(expired.removed <= EXPIRED_MAX);
            removed += expired.removed;
            if !expired.is_more {
                break;
            }
        }
    }
    if let Some(log) = engine.log() {
        log.drain(Instant::now());
    }
    removed
}

/// Has a follower log and apply what it lacks of the leader's log, group by group.
fn follow(leader: &Engine, follower: &Engine) {
    let log = leader.log().unwrap();
    let mut cursor = log.cursor_after(follower.head().index).unwrap();
    let mut records = Vec::new();
    loop {
        let digest = match log.try_read(&mut cursor, 1 << 16, &mut records) {
            Found::Small(_, digest) => digest,
            Found::Large(entry, digest) => {
                records = entry.frame().to_vec();
                digest
            }
            Found::Nothing => break,
            found => panic!("{found:?}"),
        };
        receive(follower, &records, u64::MAX, digest).unwrap();
    }
    assert_eq!(leader.head(), follower.head());
}

/// The keys of an engine with their deadlines, hidden ones too.
fn contents(engine: &Engine) -> BTreeMap<Vec<u8>, (Option<u64>, Vec<u8>)> {
    let (mut copy, mut all) = (PartitionCopy::default(), BTreeMap::new());
    for partition in 0..engine.partitions() {
        engine.copy_partition(partition, &mut copy);
        for frame in copy.frames() {
            let entry = gopherstore::engine::entry::Entry::copy_of(&frame);
            let value = entry.value().to_vec();
            all.insert(entry.key().to_vec(), (entry.deadline(), value));
        }
    }
    all
}

/// The records of the log after an index.
fn records_after(log: &Log, index: u64) -> Vec<u8> {
    let mut cursor = log.cursor_after(index).unwrap();
    let (mut records, mut all) = (Vec::new(), Vec::new());
    while let Found::Small(..) = log.try_read(&mut cursor, 1 << 20, &mut records) {
        all.extend_from_slice(&records);
    }
    all
}

#[test]
fn a_leader_removes_what_has_expired_by_deletes_in_the_log() {
    let (leader, time) = leader(1);
    let (follower, _) = engine(4, Some(BACKLOG_BYTES));
    let requests: Vec<u8> = (0..200_u64)
        .flat_map(|number| setat(&number.to_be_bytes(), START + 1 + number, b"v"))
        .collect();
    execute(&leader, &[set(b"stays", b"v"), requests].concat());
    follow(&leader, &follower);
    assert_eq!((leader.len(), leader.expiring()), (201, 200));
    assert_eq!(follower.expiring(), 200);
    assert_eq!(sweep(&leader), 0);

    time.pass(100);
    let before = leader.head().index;
    let expired = leader.expire(0, None, || ()).unwrap();
    let all = Expired {
        removed: EXPIRED_MAX,
        is_more: true,
        late_ms: 99,
    };
    assert_eq!(expired, all);
    assert_eq!(sweep(&leader), 100 - EXPIRED_MAX);
    let records = records_after(leader.log().unwrap(), before);
    let deleted: Vec<Vec<u8>> = frames(&records)
        .inspect(|frame| assert_eq!(frame.opcode(), Opcode::Del))
        .map(|frame| frame.key().to_vec())
        .collect();
    let expected: Vec<Vec<u8>> = (0..100_u64).map(|key| key.to_be_bytes().to_vec()).collect();
    assert_eq!(deleted, expected, "in the order of the deadlines");
    assert_eq!((leader.expired(), leader.expiring()), (100, 100));
    follow(&leader, &follower);
    assert_eq!(contents(&leader), contents(&follower));
    assert_eq!((follower.expired(), follower.expiring()), (0, 100));
    time.pass(1_000);
    assert_eq!(sweep(&leader), 100);
    follow(&leader, &follower);
    assert_eq!((leader.len(), follower.len()), (1, 1));
    assert_eq!((leader.expiring(), follower.expiring()), (0, 0));
}

#[test]
fn a_follower_removes_nothing_until_it_leads() {
    let (leader, _) = leader(2);
    let (follower, time) = engine(2, Some(BACKLOG_BYTES));
    execute(
        &leader,
        &[setat(b"a", START + 5, b"1"), setat(b"b", START + 9, b"2")].concat(),
    );
    follow(&leader, &follower);
    time.pass(7);
    let refused = (0..2).map(|partition| follower.expire(partition, None, || ()));
    let count = refused
        .filter(|result| *result == Err(NotDone::Refused))
        .count();
    assert!(count > 0, "the partition of the expired key");
    assert_eq!(follower.len(), 2);
    lead(&follower, 2);
    assert_eq!((sweep(&follower), follower.expired()), (1, 1));
    time.pass(7);
    assert_eq!((sweep(&follower), follower.len()), (1, 0));
    assert_eq!(follower.head().digest, Digest::EMPTY);
}

#[test]
fn a_node_without_a_log_removes_too() {
    let (engine, time) = engine(8, None);
    engine.admit(admission(true));
    for number in 0..1_000_u32 {
        execute(&engine, &setat(&number.to_be_bytes(), START + 3, b"v"));
    }
    assert_eq!(sweep(&engine), 0);
    time.pass(3);
    assert_eq!(
        (sweep(&engine), engine.len(), engine.bytes()),
        (1_000, 0, 0)
    );
    assert_eq!((engine.expiring(), engine.expired()), (0, 1_000));
}

#[test]
fn memory_of_expired_entries_is_no_longer_used() {
    for evicts in [false, true] {
        let time = Time::new();
        let limit = MemoryLimit {
            max_bytes: 1 << 30,
            evicts,
        };
        let store = Store::seeded(4, 7).with_limit(limit);
        let clock = Clock::new(Box::new(time.clone()));
        let engine = Engine::with_store(store, None, clock);
        engine.admit(admission(true));
        let empty = engine.memory_bytes();
        for number in 0..4_000_u32 {
            let deadline = START + 1 + u64::from(number % 100);
            execute(&engine, &setat(&number.to_be_bytes(), deadline, b"v"));
        }
        let full = engine.memory_bytes();
        assert!(full > empty + 4_000 * 32, "{empty} {full}");
        time.pass(90);
        assert_eq!(sweep(&engine), 3_600);
        let few = engine.memory_bytes();
        assert!(few < empty + (full - empty) / 5, "{empty} {full} {few}");
        time.pass(10);
        assert_eq!((sweep(&engine), engine.len()), (400, 0));
        assert_eq!(engine.memory_bytes(), empty);
    }
}

#[test]
fn no_step_of_the_wall_clock_brings_an_expired_key_back() {
    let (leader, time) = leader(1);
    let (follower, of_follower) = engine(1, Some(BACKLOG_BYTES));
    let get = |engine: &Engine, key: &[u8]| execute(engine, &encoded(&Request::Get { key }))[0];
    execute(
        &leader,
        &[
            setat(b"a", START + 1_000, b"1"),
            setat(b"b", START + 9_000, b"2"),
        ]
        .concat(),
    );
    follow(&leader, &follower);
    follower.admit(admission(false));
    time.step(START + 2_000);
    assert_eq!(get(&leader, b"a"), Status::NotFound);
    time.step(START - 50_000);
    assert_eq!(get(&leader, b"a"), Status::NotFound);
    assert_eq!(get(&leader, b"b"), Status::Ok);
    // The follower, whose wall clock is behind, hears the leader's time.
    of_follower.step(START - 90_000);
    assert_eq!(get(&follower, b"a"), Status::Ok);
    follower.clock().pull(leader.clock().now());
    assert_eq!(get(&follower, b"a"), Status::NotFound);
    // It leads, goes on by its monotonic clock, and removes both in time.
    lead(&follower, 2);
    assert_eq!(sweep(&follower), 1);
    of_follower.monotonic.fetch_add(6_999, Ordering::SeqCst);
    assert_eq!((sweep(&follower), get(&follower, b"b")), (0, Status::Ok));
    of_follower.monotonic.fetch_add(1, Ordering::SeqCst);
    assert_eq!(get(&follower, b"b"), Status::NotFound);
    assert_eq!((sweep(&follower), follower.len()), (1, 0));
}

#[test]
fn deadlines_that_change_and_writes_over_expired_keys_are_honoured() {
    let (leader, time) = leader(1);
    let ok = Status::Ok;
    let requests = [
        setat(b"put off", START + 5, b"v"),
        setat(b"kept", START + 5, b"v"),
        setat(b"set", START + 5, b"v"),
        setat(b"sooner", START + 50, b"v"),
        setat(b"again", START + 5, b"v"),
        expire(b"put off", Some(START + 20)),
        expire(b"kept", None),
        set(b"set", b"w"),
        expire(b"sooner", Some(START + 5)),
    ];
    assert_eq!(execute(&leader, &requests.concat()), vec![ok; 9]);
    time.pass(5);
    // An expired key is absent for clients, and a write over it is kept.
    let late = [
        expire(b"sooner", None),
        del(b"again"),
        setat(b"again", START + 20, b"x"),
    ];
    let statuses = [Status::NotFound, Status::NotFound, ok];
    assert_eq!(execute(&leader, &late.concat()), statuses);
    assert_eq!(sweep(&leader), 1);
    let keys = |engine: &Engine| contents(engine).into_keys().collect::<Vec<_>>();
    assert_eq!(keys(&leader), [&b"again"[..], b"kept", b"put off", b"set"]);
    time.pass(15);
    assert_eq!(sweep(&leader), 2);
    assert_eq!(keys(&leader), [&b"kept"[..], b"set"]);
    assert_eq!(leader.expiring(), 0);
    let (follower, _) = engine(1, Some(BACKLOG_BYTES));
    follow(&leader, &follower);
    assert_eq!(contents(&leader), contents(&follower));
}

#[test]
fn long_entries_and_the_longest_keys_expire() {
    let (leader, time) = leader(1);
    let (follower, _) = engine(1, Some(BACKLOG_BYTES));
    let long_key = vec![b'k'; 65_535];
    for number in 0..10_u8 {
        let value = vec![number; 3_000 + 2_000 * usize::from(number)];
        execute(
            &leader,
            &setat(&[number], START + u64::from(number), &value),
        );
        let key = [&long_key[1..], &[number]].concat();
        execute(&leader, &setat(&key, START + 5, b"v"));
    }
    follow(&leader, &follower);
    time.pass(1_000);
    // The first call takes digests of long entries, one each time that it locks.
    let mut locks = 0;
    let first = leader.expire(0, None, || locks += 1).unwrap();
    assert!(first.removed >= 1 && locks >= 2, "{first:?} {locks}");
    assert_eq!(sweep(&leader) + first.removed, 20);
    assert_eq!((leader.len(), leader.head().digest), (0, Digest::EMPTY));
    follow(&leader, &follower);
    assert_eq!(follower.len(), 0);
}

#[test]
fn without_room_in_the_log_nothing_is_removed() {
    let (leader, time) = leader(1);
    execute(&leader, &setat(b"a", START + 1, b"v"));
    time.pass(1);
    leader.hold_writes(true);
    let Err(NotDone::NoRoom { cost }) = leader.expire(0, None, || ()) else {
        panic!("room was reserved")
    };
    assert_eq!(leader.len(), 1);
    leader.hold_writes(false);
    let room = leader.wait_for_room(cost);
    assert!(room.is_some());
    assert_eq!(leader.expire(0, room, || ()).unwrap().removed, 1);
}

#[test]
fn a_snapshot_brings_its_deadlines() {
    let (leader, _) = leader(4);
    let requests: Vec<u8> = (0..100_u64)
        .flat_map(|number| setat(&number.to_be_bytes(), START + 1 + number, b"v"))
        .collect();
    execute(&leader, &requests);
    let (other, time) = engine(4, Some(BACKLOG_BYTES));
    let mut load = other.load(100);
    let mut copy = PartitionCopy::default();
    for partition in 0..4 {
        leader.copy_partition(partition, &mut copy);
        load.add(copy.frames());
    }
    let (head, history) = (leader.head(), leader.log().unwrap().history());
    assert!(load.finish(head.index, head.digest, history, Instant::now()));
    assert_eq!(other.expiring(), 100);
    lead(&other, 2);
    time.pass(50);
    assert_eq!((sweep(&other), other.len()), (50, 50));
    // Another data set has none of them.
    other.admit(Admission::default());
    other.clear();
    assert_eq!(other.expiring(), 0);
}

/// Random writes, deadlines and removals beside a model, and a follower whose data and digest are the leader's after
/// every step.
#[test]
fn random_writes_and_removals_are_those_of_a_model() {
    for seed in 0..30 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (leader, time) = leader(2);
        let (follower, _) = engine(4, Some(BACKLOG_BYTES));
        let mut model: BTreeMap<Vec<u8>, (Option<u64>, Vec<u8>)> = BTreeMap::new();
        let mut now = START;
        for _ in 0..300 {
            let key = vec![b'k', random.random_range(0..40)];
            let deadline = now + random.random_range(0..60);
            let is_long = random.random_bool(0.05);
            let value = vec![random.random_range(0..9); if is_long { 6_000 } else { 5 }];
            let is_live = |model: &BTreeMap<_, (Option<u64>, Vec<u8>)>| {
                let entry = model.get(&key);
                entry.is_some_and(|(deadline, _)| deadline.is_none_or(|at| at > now))
            };
            match random.random_range(0..10) {
                0..4 => {
                    execute(&leader, &setat(&key, deadline, &value));
                    model.insert(key, (Some(deadline), value));
                }
                4 => {
                    execute(&leader, &set(&key, &value));
                    model.insert(key, (None, value));
                }
                5 => {
                    let found = execute(&leader, &del(&key))[0] == Status::Ok;
                    assert_eq!(found, is_live(&model), "seed {seed}");
                    if found {
                        model.remove(&key);
                    }
                }
                6..8 => {
                    let deadline = random.random_bool(0.7).then_some(deadline);
                    let found = execute(&leader, &expire(&key, deadline))[0] == Status::Ok;
                    assert_eq!(found, is_live(&model), "seed {seed}");
                    if let (true, Some(entry)) = (found, model.get_mut(&key)) {
                        entry.0 = deadline;
                    }
                }
                8 => {
                    let ms = random.random_range(0..30);
                    time.pass(ms);
                    now += ms;
                }
                _ => {
                    sweep(&leader);
                    model.retain(|_, (deadline, _)| deadline.is_none_or(|at| at > now));
                }
            }
            follow(&leader, &follower);
        }
        assert_eq!(contents(&leader), model, "seed {seed}");
        assert_eq!(contents(&follower), model, "seed {seed}");
        let expiring = model
            .values()
            .filter(|(deadline, _)| deadline.is_some())
            .count();
        assert_eq!(
            (leader.expiring(), follower.expiring()),
            (expiring, expiring)
        );
        time.pass(1_000);
        assert_eq!(sweep(&leader), expiring, "seed {seed}");
        follow(&leader, &follower);
    }
}
