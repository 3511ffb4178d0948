//! The store under many threads on few keys.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine, NotTogether};
use gopherstore::wire::request::Limits;
use gopherstore::wire::response::{self, Parsed};
use gopherstore::wire::{Request, Run};

use crate::entry;

/// Time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sequence numbers and thread make a value; its length varies with them, and every byte can be checked.
fn value(writer: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [writer, sequence] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    let filling = (writer ^ sequence).to_le_bytes();
    bytes.extend(
        filling
            .iter()
            .cycle()
            .take(usize::try_from(sequence % 97).unwrap()),
    );
    bytes
}

/// Writer and sequence of a value, or a panic where it is not one that was written.
fn check(bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let (writer, sequence) = (word(0), word(8));
    assert!(bytes == value(writer, sequence), "torn value {bytes:?}");
    (writer, sequence)
}

#[test]
fn each_reader_sees_only_values_that_were_written_and_never_an_older_one_again() {
    const KEYS: u64 = 5;
    const WRITES: u64 = 40_000;
    let store = Store::with_partitions(2);
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        // One writer for each key, so that a reader must never see an older value again.
        let writers: Vec<_> = (0..KEYS)
            .map(|key| {
                let store = &store;
                scope.spawn(move || {
                    for sequence in 1..=WRITES {
                        let old = store.set(entry(&key.to_be_bytes(), &value(key, sequence)));
                        let expected = (sequence > 1 && sequence % 10 != 1).then_some(sequence - 1);
                        assert_eq!(old.map(|entry| check(entry.value()).1), expected);
                        if sequence % 10 == 0 {
                            assert!(store.remove(&key.to_be_bytes()).is_some());
                        }
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = [0; 5];
                while !done.load(Ordering::Relaxed) {
                    for (key, last) in (0_u64..).zip(&mut last) {
                        if let Some(entry) = store.get(&key.to_be_bytes()) {
                            let (writer, sequence) = check(entry.value());
                            assert_eq!(writer, key, "value of another key");
                            assert!(sequence >= *last, "{sequence} after {last}");
                            *last = sequence;
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        store.is_empty(),
        "every tenth write was followed by a removal"
    );
    assert!(reads.into_inner() > 0);
}

#[test]
fn of_many_writers_of_one_key_one_wins_and_every_other_value_is_replaced_once() {
    let store = Store::new();
    let replaced = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in 0..4 {
            let (store, replaced) = (&store, &replaced);
            scope.spawn(move || {
                for sequence in 0..10_000 {
                    if let Some(old) = store.set(entry(b"key", &value(writer, sequence))) {
                        check(old.value());
                        replaced.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(replaced.into_inner(), 4 * 10_000 - 1);
    assert_eq!(check(store.get(b"key").unwrap().value()).1, 9_999);
}

/// Frames of requests one behind the other.
fn frames<'a>(requests: impl IntoIterator<Item = Request<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

/// An engine of few partitions without a log, which admits everything.
fn engine() -> Engine {
    let engine = Engine::with_store(
        Store::with_partitions(4),
        None,
        gopherstore::time::MachineTime::clock(),
    );
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    engine
}

/// Executes all requests of a run at once, and returns the values of its answers.
fn execute_at_once(engine: &Engine, run: &Run<'_>) -> Vec<Vec<u8>> {
    let mut answers = Answers::new();
    while let Err(why) = engine.execute_together(run, None, &mut answers) {
        assert_eq!(why, NotTogether::Contended);
        thread::yield_now();
    }
    let (mut rest, mut values) = (answers.bytes(), Vec::new());
    while let Parsed::Whole(answer) = response::parse(rest).unwrap() {
        rest = &rest[answer.frame_len()..];
        values.push(answer.value.to_vec());
    }
    assert_eq!(values.len(), run.len());
    values
}

/// Values of one length are written over each other in place. No reader sees half of one, and since a run takes effect
/// at once, no reader sees half of a run. A clone of an entry is never written over.
#[test]
fn runs_of_writes_are_seen_whole_and_in_order_by_runs_of_reads() {
    const ROUNDS: u64 = 100_000;
    let keys: [[u8; 1]; 6] = [[0], [1], [2], [3], [4], [5]];
    let engine = engine();
    let done = AtomicBool::new(false);
    let (reads, written) = (AtomicU64::new(0), AtomicU64::new(0));
    let word = |value: &[u8], at: usize| u64::from_be_bytes(value[at..at + 8].try_into().unwrap());
    thread::scope(|scope| {
        let engine = &engine;
        let writer = scope.spawn(|| {
            for round in 1..=ROUNDS {
                let value = [round.to_be_bytes(), (!round).to_be_bytes()].concat();
                let sets = keys.iter().map(|key| Request::Set { key, value: &value });
                let bytes = frames(sets);
                let run = Run::of(&bytes, &Limits::default());
                assert_eq!(run.len(), keys.len());
                execute_at_once(engine, &run);
                written.store(round, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                let bytes = frames(keys.iter().map(|key| Request::Get { key }));
                let run = Run::of(&bytes, &Limits::default());
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let held = engine.get(&keys[0]);
                    let before = held.as_ref().map(|entry| entry.value().to_vec());
                    let rounds = execute_at_once(engine, &run);
                    let after = held.as_ref().map(|entry| entry.value().to_vec());
                    assert_eq!(before, after, "written over while it was held");
                    let rounds = rounds.iter().map(|value| {
                        if value.is_empty() {
                            return 0;
                        }
                        assert_eq!(word(value, 0), !word(value, 8), "torn value");
                        word(value, 0)
                    });
                    let rounds: Vec<u64> = rounds.collect();
                    assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
                    assert!(rounds[0] >= last, "{} after {last}", rounds[0]);
                    last = rounds[0];
                    reads.fetch_add(1, Ordering::Relaxed);
                    // The writer does not wait for partitions, so readers that always hold some would starve it. Each
                    // waits for the next round.
                    let until = Instant::now() + PATIENCE;
                    while written.load(Ordering::Relaxed) <= last && !done.load(Ordering::Relaxed) {
                        assert!(Instant::now() < until, "no round behind {last}");
                        thread::yield_now();
                    }
                }
            });
        }
        writer.join().unwrap();
        done.store(true, Ordering::Relaxed);
    });
    assert!(reads.into_inner() > 0);
    for key in &keys {
        let entry = engine.get(key).unwrap();
        assert_eq!(entry.value()[..8], ROUNDS.to_be_bytes());
    }
}
