//! A data set with a memory limit: writes that are refused, and entries that make room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use gopherstore::engine::memory::{MemoryLimit, block_bytes};
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::log::Found;
use gopherstore::time::MachineTime;
use gopherstore::wire::batch::Batch;
use gopherstore::wire::request::{HEADER_LEN, Limits, frames};
use gopherstore::wire::run::RUN_FRAME_BYTES_MAX;
use gopherstore::wire::{Opcode, Request, Run, Status, response};

use crate::{apply, entry, random_seed};

const MIB: u64 = 1 << 20;

/// An engine of a few partitions, which admits everything.
fn engine(max_bytes: u64, evicts: bool, backlog_bytes: Option<u64>) -> Engine {
    let store = Store::with_partitions(8).with_limit(MemoryLimit { max_bytes, evicts });
    engine_over(store, backlog_bytes)
}

/// An engine over a store, which admits everything.
fn engine_over(store: Store, backlog_bytes: Option<u64>) -> Engine {
    let engine = Engine::with_store(store, backlog_bytes, MachineTime::clock());
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    engine
}

/// An engine without a log, whose entries make room for others above 1 MiB, and have the same places for the same seed.
fn evicting(partitions: usize, seed: u64) -> Engine {
    let (max_bytes, evicts) = (MIB, true);
    let store = Store::seeded(partitions, seed).with_limit(MemoryLimit { max_bytes, evicts });
    engine_over(store, None)
}

/// Executes requests one behind the other, as a connection does, and returns their answers.
fn execute(engine: &Engine, requests: &[Request<'_>]) -> Vec<(Status, Vec<u8>)> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    let (mut answers, mut out, mut at) = (Answers::new(), Vec::new(), 0);
    while at < bytes.len() {
        let run = Run::of(&bytes[at..], &Limits::default());
        let outcome = engine.execute(&run, None, &mut answers).unwrap();
        out.extend_from_slice(answers.bytes());
        out.extend_from_slice(answers.apart().unwrap_or_default());
        answers.clear();
        at += run.bytes_of(outcome.count);
    }
    let mut rest = &out[..];
    let mut parsed = Vec::new();
    while let Ok(response::Parsed::Whole(answer)) = response::parse(rest) {
        parsed.push((answer.status.try_into().unwrap(), answer.value.to_vec()));
        rest = &rest[answer.frame_len()..];
    }
    assert_eq!((parsed.len(), rest), (requests.len(), &[][..]));
    parsed
}

fn status(engine: &Engine, request: Request<'_>) -> Status {
    execute(engine, &[request])[0].0
}

fn set(engine: &Engine, number: u64, value: &[u8]) -> Status {
    let key = &number.to_be_bytes();
    status(engine, Request::Set { key, value })
}

fn get(engine: &Engine, number: u64) -> Status {
    let key = &number.to_be_bytes();
    status(engine, Request::Get { key })
}

/// Applies records of a leader, as many groups as they need.
fn apply_all(engine: &Engine, records: &[u8]) {
    let (mut group, mut count) = (Vec::new(), 0);
    for frame in frames(records) {
        group.extend_from_slice(frame.bytes());
        count += 1;
        if count == 100 {
            apply(engine, &group).unwrap();
            engine.log().unwrap().drain(Instant::now());
            group.clear();
            count = 0;
        }
    }
    if count > 0 {
        apply(engine, &group).unwrap();
    }
}

/// Stores values until no partition takes one more. Returns how many were stored.
fn fill(engine: &Engine, value: &[u8]) -> u64 {
    fill_on(engine, 0, value)
}

/// The same with keys from this number on.
fn fill_on(engine: &Engine, first: u64, value: &[u8]) -> u64 {
    let (mut stored, mut refused_in_a_row) = (0, 0);
    for number in first.. {
        match set(engine, number, value) {
            Status::Full => refused_in_a_row += 1,
            Status::Ok
            | Status::Error
            | Status::NotLeader
            | Status::NotFound
            | Status::Loading
            | Status::Conflict
            | Status::Timeout
            | Status::Lost
            | Status::Compacted => (stored, refused_in_a_row) = (stored + 1, 0),
        }
        if refused_in_a_row == 200 {
            break;
        }
    }
    stored
}

/// The one table is full, and has no memory to grow.
#[test]
fn a_value_in_the_place_of_another_grows_no_table() {
    let limit = MemoryLimit {
        max_bytes: 40_000,
        evicts: false,
    };
    let store = Store::with_partitions(1).with_limit(limit);
    let engine = Engine::with_store(store, None, MachineTime::clock());
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    let stored = fill(&engine, b"");
    assert!(
        stored.is_multiple_of(7),
        "{stored} of eight places are not seven eighths"
    );
    let used = engine.memory_bytes();
    for number in 0..stored {
        assert_eq!(set(&engine, number, b""), Status::Ok);
        let (key, value) = (&number.to_be_bytes()[..], &[0; 13][..]);
        assert_eq!(status(&engine, Request::Put { key, value }), Status::Ok);
    }
    assert_eq!(engine.memory_bytes(), used);
}

#[test]
fn a_write_that_would_grow_is_refused_and_every_other_goes_on() {
    let max = MIB;
    let engine = engine(max, false, None);
    let value = &[b'v'; 100];
    let stored = fill(&engine, value);
    let used = engine.memory_bytes();
    assert!(used <= max && max - used < 64 << 10, "{used}");
    assert_eq!(engine.len() as u64, stored);
    let needed = block_bytes(HEADER_LEN + 8 + 100);
    let (full, message) = execute(
        &engine,
        &[Request::Set {
            key: &[0; 8],
            value: &[0; 300],
        }],
    )
    .remove(0);
    assert_eq!(full, Status::Full);
    let more = block_bytes(HEADER_LEN + 8 + 300) - needed;
    let used = engine.memory_bytes();
    let expected = format!(
        "the data set takes {used} of {max} bytes (max_memory_bytes), and this needs {more} more"
    );
    assert_eq!(String::from_utf8(message).unwrap(), expected);

    // As long as before, shorter, and no value at all.
    assert_eq!(set(&engine, 0, value), Status::Ok);
    assert_eq!(set(&engine, 0, b"1"), Status::Ok);
    assert_eq!(get(&engine, 0), Status::Ok);
    // Enough that a table may grow.
    for number in 1..400_u64 {
        let key = &number.to_be_bytes()[..];
        assert_eq!(status(&engine, Request::Del { key }), Status::Ok);
    }
    assert_eq!(set(&engine, 1, value), Status::Ok, "there is room again");

    // Operations whose effect is computed. Only those that create or grow are refused.
    let add = Opcode::Add.spec().value_of([0, 1, 0, 0]);
    let deadline = [&u64::MAX.to_be_bytes()[..], value].concat();
    let expire = [&[3][..], &u64::MAX.to_be_bytes()].concat();
    fill_on(&engine, 1 << 20, b"");
    let number = &0_u64.to_be_bytes()[..];
    for (request, expected) in [
        (
            Request::Add {
                key: number,
                value: &add,
            },
            Status::Ok,
        ),
        (
            Request::Add {
                key: b"new",
                value: &add,
            },
            Status::Full,
        ),
        (
            Request::SetAt {
                key: b"new",
                value: &deadline,
            },
            Status::Full,
        ),
        (
            Request::Expire {
                key: number,
                value: &expire,
            },
            // The heap of deadlines grows for it.
            Status::Full,
        ),
        (Request::Get { key: b"new" }, Status::NotFound),
    ] {
        assert_eq!(status(&engine, request), expected, "{request:?}");
    }
    // Within a run each is judged by itself.
    let statuses: Vec<Status> = execute(
        &engine,
        &[
            Request::Get { key: number },
            Request::Set { key: b"new", value },
            Request::Set {
                key: number,
                value: b"2",
            },
            Request::Set {
                key: b"newer",
                value: &[b'v'; RUN_FRAME_BYTES_MAX],
            },
            Request::Del { key: number },
        ],
    )
    .into_iter()
    .map(|(status, _)| status)
    .collect();
    use Status::{Full, Ok};
    assert_eq!(statuses, [Ok, Full, Ok, Full, Ok]);
    let [evicted, refused] = engine.evicted_and_refused();
    assert!(evicted == 0 && refused > 5, "{refused}");
}

#[test]
fn a_batch_is_refused_as_a_whole_or_has_room_made_for_it() {
    for evicts in [false, true] {
        let engine = engine(MIB, evicts, None);
        let value = &[b'v'; 1_000][..];
        for number in 0..3_000 {
            set(&engine, number, value);
        }
        let mut requests = Vec::new();
        for number in 10_000..10_020_u64 {
            let key = &number.to_be_bytes();
            Request::Set { key, value }.encode(&mut requests).unwrap();
        }
        let batch = Batch::decode(&requests).unwrap();
        let (before, mut answers) = (engine.len(), Answers::new());
        engine.execute_batch(&batch, None, &mut answers).unwrap();
        let status = if evicts { Status::Ok } else { Status::Full };
        assert_eq!(answers.bytes()[0], status.byte());
        assert!(engine.memory_bytes() <= MIB);
        for number in 10_000..10_020 {
            let expected = if evicts { Status::Ok } else { Status::NotFound };
            assert_eq!(get(&engine, number), expected);
        }
        if !evicts {
            assert_eq!(engine.len(), before);
            // One that needs nothing more is carried out.
            let mut requests = Vec::new();
            let key = &0_u64.to_be_bytes();
            Request::Set { key, value }.encode(&mut requests).unwrap();
            Request::Del {
                key: &1_u64.to_be_bytes(),
            }
            .encode(&mut requests)
            .unwrap();
            answers.clear();
            let batch = Batch::decode(&requests).unwrap();
            engine.execute_batch(&batch, None, &mut answers).unwrap();
            assert_eq!(answers.bytes()[0], Status::Ok.byte());
            assert_eq!(engine.len(), before - 1);
        }
    }
}

/// A follower that refused a record would have another data set.
#[test]
fn records_of_a_leader_are_applied_whatever_the_limit() {
    let follower = engine(MIB, false, Some(MIB));
    let mut records = Vec::new();
    for number in 0..40_000_u64 {
        let (key, value) = (&number.to_be_bytes()[..], &b"value"[..]);
        Request::Set { key, value }.encode(&mut records).unwrap();
    }
    apply_all(&follower, &records);
    assert_eq!(follower.len(), 40_000);
    let used = follower.memory_bytes();
    assert!(used > MIB);
    // It counts them: once it leads, it has no room.
    assert_eq!(set(&follower, 1 << 40, b""), Status::Full);
    assert_eq!(set(&follower, 1, b"other"), Status::Ok);
    // A snapshot replaces the data set.
    let one = entry(b"key", b"value");
    follower.admit(Admission::default());
    follower.log().unwrap().drain(Instant::now());
    let mut load = follower.load(1);
    load.add(frames(one.frame()));
    load.flush();
    drop(load);
    assert!(follower.memory_bytes() < used / 2);
}

#[test]
fn sixteen_writers_never_exceed_the_limit() {
    const MAX: u64 = 4 * MIB;
    const VALUE_LEN: usize = 20_000;
    for evicts in [false, true] {
        let engine = engine(MAX, evicts, None);
        let is_over = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !is_over.load(Ordering::Relaxed) {
                    most = most.max(engine.memory_bytes());
                }
                most
            });
            let writers: Vec<_> = (0..16_u64)
                .map(|writer| {
                    let engine = &engine;
                    scope.spawn(move || {
                        let value = vec![b'v'; VALUE_LEN];
                        for round in 0..300_u64 {
                            // Of all lengths, so that runs, single requests and growing tables are among them.
                            let len = (usize::try_from(round * 7_919).unwrap() % VALUE_LEN)
                                >> (round % 8);
                            let number = (writer * 1_000 + round * 31) % 5_000;
                            let key = &number.to_be_bytes();
                            let value = &value[..len];
                            let set = Request::Set { key, value };
                            let other = Request::Set {
                                key: &(number + 7).to_be_bytes(),
                                value,
                            };
                            for (status, _) in execute(engine, &[set, other]) {
                                assert!(status == Status::Ok || status == Status::Full && !evicts);
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(most <= MAX + MIB + 16 * VALUE_LEN as u64, "{most}");
        let used = engine.memory_bytes();
        assert!(used <= MAX && used > MAX / 2, "{used}");
    }
}

#[test]
fn entries_that_are_in_use_stay_and_others_make_room() {
    let engine = evicting(8, random_seed());
    let value = &[b'v'; 1_000];
    // The tables grow and the data set is replaced many times, while a few entries are asked for.
    for number in 0..20_000 {
        assert_eq!(set(&engine, number, value), Status::Ok);
        let asked = number % 50;
        assert_eq!(get(&engine, asked), Status::Ok, "{asked} after {number}");
        assert!(engine.memory_bytes() <= MIB);
    }
    assert!(engine.len() > 800, "{}", engine.len());
    let [evicted, refused] = engine.evicted_and_refused();
    assert_eq!((evicted, refused), (20_000 - engine.len() as u64, 0));
    // A long value displaces many short ones, and one beyond the limit none.
    assert_eq!(set(&engine, 0, &vec![b'v'; 500_000]), Status::Ok);
    let len = engine.len();
    assert!(len > 10, "{len}");
    assert_eq!(set(&engine, 1, &vec![b'v'; 1_100_000]), Status::Full);
    assert_eq!(engine.len(), len);
}

/// A rehash moves entries ahead of the hand whose marks it has cleared in the same turn. Under these seeds one that is
/// asked for was evicted so.
#[test]
fn entries_in_use_stay_where_a_table_is_rehashed_around_the_hand() {
    for seed in [2_837, 2_854, 4_130, 5_933] {
        let engine = evicting(8, seed);
        for number in 0..7_000 {
            assert_eq!(set(&engine, number, &[b'v'; 1_000]), Status::Ok);
            let asked = number % 50;
            assert_eq!(get(&engine, asked), Status::Ok, "{asked} after {number}");
        }
    }
}

#[test]
fn entries_in_use_stay_where_a_table_shrinks_as_others_make_room() {
    let engine = evicting(2, 7);
    for number in 0..2_000 {
        let value = &[b'v'; 1_200][..if number < 460 { 1_200 } else { 0 }];
        assert_eq!(set(&engine, number, value), Status::Ok);
    }
    for number in 460..2_000_u64 {
        let key = &number.to_be_bytes();
        assert_eq!(status(&engine, Request::Del { key }), Status::Ok);
    }
    for number in 0..300 {
        assert_eq!(get(&engine, number), Status::Ok);
    }
    // Each of the tables has 2,048 buckets, and shrinks below 224 entries.
    let per_entry = block_bytes(HEADER_LEN + 8 + 1_200);
    let before = engine.memory_bytes() - engine.len() as u64 * per_entry;
    assert_eq!(set(&engine, 1 << 40, &vec![b'v'; 490_000]), Status::Ok);
    let after = engine.memory_bytes() - (engine.len() as u64 - 1) * per_entry;
    let long = block_bytes(HEADER_LEN + 8 + 490_000);
    assert!(after - long < before, "{before} {after} {}", engine.len());
    for number in 0..300 {
        assert_eq!(get(&engine, number), Status::Ok, "{number}");
    }
}

/// Evictions are DELs of the leader, so a follower that evicts nothing has the same data.
#[test]
fn what_makes_room_is_removed_from_followers_by_the_log() {
    let leader = engine(MIB, true, Some(64 * MIB));
    let log = leader.log().unwrap();
    let long = vec![b'v'; 3 * RUN_FRAME_BYTES_MAX];
    let records = thread::scope(|scope| {
        let keeper = scope.spawn(|| log.keep());
        for number in 0..3_000_u64 {
            let value = if number % 50 == 0 {
                &long
            } else {
                &long[..200]
            };
            let more = &(number * 2 + 1_000_000).to_be_bytes();
            let key = &number.to_be_bytes();
            let sets = [
                Request::Set { key, value },
                Request::Set {
                    key: more,
                    value: b"short",
                },
            ];
            for (status, _) in execute(&leader, &sets) {
                assert_eq!(status, Status::Ok);
            }
        }
        leader.end_log();
        keeper.join().unwrap();
        let (mut cursor, mut records, mut part) =
            (log.cursor_after(0).unwrap(), Vec::new(), Vec::new());
        loop {
            match log.read(&mut cursor, 1 << 20, &mut part, Instant::now(), || false) {
                Found::Small(..) => records.extend_from_slice(&part),
                Found::Large(..) | Found::Nothing | Found::Ended | Found::Gone => break records,
            }
        }
    });
    let dels = frames(&records)
        .filter(|frame| frame.opcode() == Opcode::Del)
        .count() as u64;
    assert_eq!(leader.evicted_and_refused(), [dels, 0]);
    assert!(dels > 1_000, "{dels}");
    let follower = engine(MIB, true, Some(64 * MIB));
    apply_all(&follower, &records);
    assert_eq!(follower.head(), leader.head());
    assert_eq!(follower.len(), leader.len());
    assert_eq!(follower.evicted_and_refused(), [0, 0]);
}

#[test]
fn deadlines_count_before_they_are_set() {
    let max = 4 << 20;
    let engine = engine(max, false, None);
    let count = fill(&engine, b"");
    let value = Opcode::Expire.spec().value_of([1, 1_000_000]);
    let mut refused = 0;
    for number in 0..count {
        let key = &number.to_be_bytes();
        let value = &value;
        match status(&engine, Request::Expire { key, value }) {
            Status::Ok => {}
            Status::Full => refused += 1,
            other => panic!("{other:?}"),
        }
        assert!(engine.memory_bytes() <= max, "after {number}");
    }
    assert!(refused > count / 2);
    // As a part of a batch.
    let (first, last) = (0_u64.to_be_bytes(), (count - 1).to_be_bytes());
    let batch = [&last, &first].map(|key| Request::Expire { key, value: &value });
    let mut frames = Vec::new();
    for request in batch {
        request.encode(&mut frames).unwrap();
    }
    let batch = Batch::decode(&frames).unwrap();
    let mut answers = Answers::new();
    engine.execute_batch(&batch, None, &mut answers).unwrap();
    assert_eq!(answers.bytes()[0], Status::Full.byte());
    // Another deadline, and none, need nothing more.
    let with_deadline = (0..count).find(|number| {
        let entry = engine.get(&number.to_be_bytes());
        entry.is_some_and(|entry| entry.deadline().is_some())
    });
    if let Some(number) = with_deadline {
        let key = &number.to_be_bytes();
        for operands in [[1, 5_000], [0, 0]] {
            let value = &Opcode::Expire.spec().value_of(operands);
            assert_eq!(status(&engine, Request::Expire { key, value }), Status::Ok);
        }
    }
}

/// A value that takes nearly all of the limit pushes nothing out, and one that fits is stored: also where its record
/// takes all the room of the append queue.
#[test]
fn a_large_value_makes_room_or_is_refused_with_everything_as_it_was() {
    for backlog_bytes in [None, Some(64 << 20)] {
        let max = 24 << 20;
        let engine = engine(max, true, backlog_bytes);
        for number in 0..1_000 {
            assert_eq!(set(&engine, number, b"small"), Status::Ok);
        }
        let drain = || {
            if let Some(log) = engine.log() {
                log.drain(Instant::now());
            }
        };
        drain();
        assert_eq!(set(&engine, 1_000, &vec![b'l'; 9 << 20]), Status::Ok);
        drain();
        for (number, len) in [(1_000, 30 << 20), (1_001, 16 << 20), (1_000, 24 << 20)] {
            let value = vec![b'l'; len];
            assert_eq!(set(&engine, number, &value), Status::Full, "{len}");
            drain();
            assert_eq!(engine.len(), 1_001);
            assert!(engine.memory_bytes() > 9 << 20, "the old one is there");
        }
        // Each of these has to push out those before it, and its record is longer than the append queue.
        for number in 2_000..2_010 {
            assert_eq!(set(&engine, number, &vec![b'l'; 11 << 20]), Status::Ok);
            drain();
            assert!(engine.memory_bytes() <= max);
        }
    }
}

#[test]
fn a_batch_moves_a_value_from_key_to_key_at_the_limit() {
    let engine = engine(1 << 20, false, None);
    let value = &[b'v'; 100];
    fill(&engine, value);
    let from = &0_u64.to_be_bytes()[..];
    // A table that is full has to grow for one of these keys, which takes more than the other key frees.
    let moved = (0..100).map(|number| u64::MAX - number).find(|to| {
        let to = &to.to_be_bytes()[..];
        let mut frames = Vec::new();
        for request in [Request::Del { key: from }, Request::Set { key: to, value }] {
            request.encode(&mut frames).unwrap();
        }
        let batch = Batch::decode(&frames).unwrap();
        let mut answers = Answers::new();
        engine.execute_batch(&batch, None, &mut answers).unwrap();
        let is_done = answers.bytes()[0] == Status::Ok.byte();
        assert_eq!(engine.get(from).is_none(), is_done);
        assert_eq!(engine.get(to).is_some(), is_done);
        is_done
    });
    assert!(moved.is_some());
}
