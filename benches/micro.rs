//! The cost of single parts: the codec, the store, the log.
//!
//! ```sh
//! cargo bench --bench micro -- --save-baseline before     # then change something
//! cargo bench --bench micro -- --baseline before          # says what that did, with how much confidence
//! cargo bench --bench micro -- store                      # those alone whose names hold this
//! ```
//!
//! Keys have 16 bytes and values 64. Names end with how many entries the store holds: 1,000 are in the processor's
//! cache, a million are not.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine, PartitionCopy};
use gopherstore::log::backlog::{Append, Backlog, Records};
use gopherstore::wire::request::{Limits, Parsed, parse};
use gopherstore::wire::response::{self, Response};
use gopherstore::wire::run::{RUN_MAX, Run};
use gopherstore::wire::{Request, RequestFrame, Status};

/// Entries of a store that fits into the cache, and of one that does not.
const ENTRIES: [u64; 2] = [1_000, 1_000_000];

/// Steps from one key to the next: prime to the number of entries, so that all are met and no two are neighbours.
const STRIDE: u64 = 611_953;

const VALUE: [u8; 64] = [b'v'; 64];

fn key(number: u64) -> String {
    format!("key:{number:012}")
}

/// The frames of requests, one after another.
fn frames(requests: impl IntoIterator<Item = (bool, u64)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (is_set, number) in requests {
        let key = key(number);
        let key = key.as_bytes();
        let value = VALUE.as_slice();
        let request = if is_set {
            Request::Set { key, value }
        } else {
            Request::Get { key }
        };
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

fn whole(bytes: &[u8]) -> RequestFrame<'_> {
    match parse(bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => frame,
        Parsed::Incomplete { .. } => panic!("a whole frame was written"),
    }
}

/// An engine without a log, with this number of entries.
fn filled(entries: u64) -> Engine {
    let store = Store::new();
    for number in 0..entries {
        store.set(Entry::copy_of(&whole(&frames([(true, number)]))));
    }
    let engine = Engine::with_store(store, None, gopherstore::time::MachineTime::clock());
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    engine
}

/// Executes the run at the start of `frames`.
fn execute(engine: &Engine, frames: &[u8], answers: &mut Answers) -> usize {
    answers.clear();
    let run = Run::of(frames, &Limits::default());
    engine.execute(&run, None, answers).unwrap().count
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let (set, get) = (frames([(true, 7)]), frames([(false, 7)]));
    group.bench_function("parse GET", |bencher| {
        bencher.iter(|| whole(black_box(&get)).request().key().len());
    });
    group.bench_function("parse SET", |bencher| {
        bencher.iter(|| whole(black_box(&set)).request().value().len());
    });
    let limits = Limits::default();
    let sixteen: Vec<u8> = set.repeat(RUN_MAX);
    group.bench_function("parse 16 SETs as a run", |bencher| {
        bencher.iter(|| Run::of(black_box(&sixteen), &limits).len());
    });
    let mut out = Vec::with_capacity(1 << 10);
    let request = whole(&set).request();
    group.bench_function("encode SET", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(request).encode(&mut out).unwrap();
            out.len()
        });
    });
    let answer = Response {
        status: Status::Ok.byte(),
        value: &VALUE,
    };
    group.bench_function("encode answer", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(answer).encode(&mut out).unwrap();
            out.len()
        });
    });
    let mut bytes = Vec::new();
    answer.encode(&mut bytes).unwrap();
    group.bench_function("parse answer", |bencher| {
        bencher.iter(|| match response::parse(black_box(&bytes)).unwrap() {
            response::Parsed::Whole(answer) => answer.value.len(),
            response::Parsed::Incomplete { .. } => 0,
        });
    });
    group.finish();
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    for entries in ENTRIES {
        let engine = filled(entries);
        let mut answers = Answers::new();
        let mut number = 0;
        let mut next = move || {
            number = (number + STRIDE) % entries;
            number
        };
        // Enough to leave the cache before they come again, if the entries do.
        let asked = usize::try_from(entries.clamp(1_600, 200_000)).unwrap();
        // Made beforehand, in the order in which they are asked for, so that making them is not measured.
        let requests = |is_set, count: usize, next: &mut dyn FnMut() -> u64| -> Vec<Vec<u8>> {
            (0..asked / count)
                .map(|_| frames((0..count).map(|_| (is_set, next()))))
                .collect()
        };
        let gets = requests(false, 1, &mut next);
        let mut turn = gets.iter().cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("get of {entries}"), |bencher| {
            bencher.iter(|| {
                let frame = whole(turn.next().unwrap());
                engine.get(frame.request().key()).unwrap().value()[0]
            });
        });
        let sets = requests(true, 1, &mut next);
        let mut turn = sets.iter().cycle();
        group.bench_function(format!("set over one of {entries}"), |bencher| {
            bencher.iter(|| execute(&engine, turn.next().unwrap(), &mut answers));
        });
        let batch = u64::try_from(RUN_MAX).unwrap();
        group.throughput(Throughput::Elements(batch));
        let gets = requests(false, RUN_MAX, &mut next);
        let mut turn = gets.iter().cycle();
        group.bench_function(format!("16 gets of {entries} as a run"), |bencher| {
            bencher.iter(|| execute(&engine, turn.next().unwrap(), &mut answers));
        });
        // As long as its lock is held.
        let (mut partitions, mut copied) =
            ((0..engine.partitions()).cycle(), PartitionCopy::default());
        let each = entries / u64::try_from(engine.partitions()).unwrap();
        group.throughput(Throughput::Elements(each.max(1)));
        group.bench_function(format!("copy a partition of {entries}"), |bencher| {
            bencher.iter(|| {
                engine.copy_partition(partitions.next().unwrap(), &mut copied);
                copied.len()
            });
        });
        group.throughput(Throughput::Elements(batch));
        let sets = requests(true, RUN_MAX, &mut next);
        let mut turn = sets.iter().cycle();
        group.bench_function(
            format!("16 sets over those of {entries} as a run"),
            |bencher| {
                bencher.iter(|| execute(&engine, turn.next().unwrap(), &mut answers));
            },
        );
    }
    // The growing of its tables included.
    let inserted = 100_000;
    let sets: Vec<Vec<u8>> = (0..inserted)
        .map(|number| frames([(true, number)]))
        .collect();
    group.throughput(Throughput::Elements(inserted));
    group.sample_size(20);
    group.bench_function(format!("insert {inserted}"), |bencher| {
        bencher.iter_batched(
            || filled(0),
            |engine| {
                for set in &sets {
                    execute(&engine, set, &mut Answers::new());
                }
                engine // freed where it is not measured
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn log(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log");
    let count = u32::try_from(RUN_MAX).unwrap();
    let run = Append {
        records: Records::Frames(frames((0..u64::from(count)).map(|number| (true, number)))),
        count,
        digest: Digest::EMPTY,
    };
    group.throughput(Throughput::Elements(u64::from(count)));
    let mut log = Backlog::new(64 << 20);
    group.bench_function("push a run of 16", |bencher| {
        bencher.iter(|| log.push(black_box(&run)));
    });
    let mut log = Backlog::new(64 << 20);
    while log.bytes() < 32 << 20 {
        log.push(&run);
    }
    let (first, last) = (log.first_index(), log.last_index());
    let (mut buffer, mut index) = (Vec::new(), first);
    // By 64 KiB, as a follower far behind is sent it.
    group.throughput(Throughput::Bytes(64 << 10));
    group.bench_function("read 64 KiB", |bencher| {
        bencher.iter(|| {
            let after = log.read(index, u64::MAX, 64 << 10, &mut buffer);
            index += 64 * 16;
            if index > last - 64 * 16 {
                index = first;
            }
            black_box(after);
            buffer.len()
        });
    });
    group.finish();
}

criterion_group!(benches, codec, store, log);
criterion_main!(benches);
