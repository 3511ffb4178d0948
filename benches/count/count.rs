//! Operations of the codec and a node, one after another, for `scripts/count-instructions.sh`, which runs
//! this under callgrind and divides the instructions of each [`measured`] by its requests.
//!
//! Prints a line for each operation, in their order: its requests, and its name. Its argument is how often each is
//! called. On its own it measures nothing; `benches/micro.rs` has the time of the same operations.
//!
//! The store hashes by a key that is another in each process, so some entries share a group of their table in one run
//! and not in the next. Every call has keys of its own, so that this evens out.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use gopherstore::config::Config;
use gopherstore::engine::{Answers, Group};
use gopherstore::history::EpochStart;
use gopherstore::node::Node;
use gopherstore::wire::conditional::{Add, Put};
use gopherstore::wire::replication::{self, BatchEncoder, Fields, Message, StreamOpcode};
use gopherstore::wire::request::{Limits, Parsed, parse};
use gopherstore::wire::response::Response;
use gopherstore::wire::run::{RUN_MAX, Run};
use gopherstore::wire::{Request, RequestFrame, Status};

const VALUE: [u8; 64] = [b'v'; 64];

/// Runs the code that is counted: this function and its callees. The script knows its name.
#[inline(never)]
fn measured(calls: usize, call: &mut dyn FnMut(usize)) {
    for at in 0..calls {
        call(at);
    }
}

fn operation(name: &str, requests_per_call: usize, calls: usize, mut call: impl FnMut(usize)) {
    measured(calls, &mut call);
    println!("{} {name}", calls * requests_per_call);
}

/// The frames of requests for these keys, one after another; keys have 16 bytes and values 64.
fn frames(
    keys: impl IntoIterator<Item = usize>,
    request: impl for<'a> Fn(&'a [u8]) -> Request<'a>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in keys {
        let key = format!("key:{number:012}");
        request(key.as_bytes()).encode(&mut bytes).unwrap();
    }
    bytes
}

fn get(key: &[u8]) -> Request<'_> {
    Request::Get { key }
}

fn set(key: &[u8]) -> Request<'_> {
    Request::Set { key, value: &VALUE }
}

fn del(key: &[u8]) -> Request<'_> {
    Request::Del { key }
}

fn whole(bytes: &[u8]) -> RequestFrame<'_> {
    match parse(bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => frame,
        Parsed::Incomplete { .. } => panic!("a whole frame was written"),
    }
}

fn codec(calls: usize) {
    let limits = Limits::default();
    let (a_get, a_set) = (frames([7], get), frames([7], set));
    operation("parse GET", 1, calls, |_| {
        black_box(whole(black_box(&a_get)).request().key());
    });
    operation("parse SET", 1, calls, |_| {
        black_box(whole(black_box(&a_set)).request().value());
    });
    let run = frames(0..RUN_MAX, set);
    operation("parse 16 SETs as a run", RUN_MAX, calls, |_| {
        black_box(Run::of(black_box(&run), &limits));
    });
    let mut out = Vec::with_capacity(1 << 10);
    let mut answer = |name: &str, status: Status, value: &'static [u8]| {
        let answer = Response {
            status: status.byte(),
            value,
        };
        operation(name, 1, calls, |_| {
            out.clear();
            black_box(answer).encode(&mut out).unwrap();
        });
    };
    answer("encode the answer to GET", Status::Ok, &VALUE);
    answer("encode the answer to SET", Status::Ok, &[]);
}

/// One request at a time, over as many keys as there are calls, on a node without a log.
fn single(calls: usize) {
    let of_each = |request: fn(&[u8]) -> Request<'_>| -> Vec<Vec<u8>> {
        (0..calls).map(|key| frames([key], request)).collect()
    };
    let (gets, sets, dels) = (of_each(get), of_each(set), of_each(del));
    let node = Node::alone();
    let mut answers = Answers::new();
    let mut one = |name, frames: &[Vec<u8>]| {
        operation(name, 1, calls, |at| {
            execute(&node, &frames[at], &mut answers)
        });
    };
    one("GET, missed", &gets);
    one("SET, new", &sets);
    settle(&node, &sets);
    one("SET, over another", &sets);
    one("GET, found", &gets);
    one("DEL", &dels);
}

/// Executes the run at the start of `frames`.
fn execute(node: &Node, frames: &[u8], answers: &mut Answers) {
    answers.clear();
    let run = Run::of(frames, &Limits::default());
    let _ = black_box(node.execute_run(&run, None, answers));
}

/// Stores all of it twice: a table that is full grows at a second write too, whatever that is for, and how many are
/// full is another number in each process.
fn settle(node: &Node, sets: &[Vec<u8>]) {
    let mut answers = Answers::new();
    for set in [sets, sets].into_iter().flatten() {
        execute(node, set, &mut answers);
    }
}

/// Runs of 16 requests, over 16 keys for each call.
fn runs(calls: usize) {
    let of_each = |request: fn(&[u8]) -> Request<'_>| -> Vec<Vec<u8>> {
        let keys = |call: usize| (call * RUN_MAX..).take(RUN_MAX);
        (0..calls).map(|call| frames(keys(call), request)).collect()
    };
    let (gets, sets) = (of_each(get), of_each(set));
    let mixed: Vec<Vec<u8>> = (0..calls)
        .map(|call| {
            let key = |at| call * RUN_MAX + at;
            [
                frames([key(0)], set),
                frames((1..9).map(key), get),
                frames([key(9)], set),
                frames((10..16).map(key), get),
            ]
            .concat()
        })
        .collect();
    let config = "cluster = \"count\"\nleader = \"n1\"\n\
                  [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                  [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
    let config = Config::parse(config, "cluster.toml").unwrap();
    // Nothing consumes their append queues, so these need room for all calls. The count includes neither the work of
    // the replication thread nor waking it, which a follower does without.
    let [leader, follower] = ["n1", "n2"].map(|name| {
        let node = Node::of_cluster(&config, config.node(name).unwrap());
        // As a snapshot, which is not logged.
        let mut load = node.engine().load(0);
        for set in sets.iter().chain(&sets) {
            load.add(Run::of(set, &Limits::default()).frames());
            load.flush();
        }
        node
    });
    let start = EpochStart {
        epoch: 1,
        nonce: 1,
        start_index: 1,
    };
    leader.open_epoch(start).unwrap();
    let alone = Node::alone();
    settle(&alone, &sets);
    let mut answers = Answers::new();
    let mut run = |name, node: &Node, requests: &[Vec<u8>]| {
        operation(name, RUN_MAX, calls, |at| {
            execute(node, &requests[at], &mut answers)
        });
    };
    run("16 GETs as a run", &alone, &gets);
    run("16 SETs as a run", &alone, &sets);
    run("14 GETs and 2 SETs as a run", &alone, &mixed);
    run("16 SETs as a run, on a leader", &leader, &sets);
    let value = Put {
        value: &VALUE,
        ..Put::default()
    };
    let puts = with_value(calls, &value.encode(), |key, value| Request::Put {
        key,
        value,
    });
    let tens: Vec<Vec<u8>> = sets.iter().map(|set| batch_of_ten(set)).collect();
    operation("10 SETs as a BATCH, on a leader", 10, calls, |at| {
        let (frame, limits) = (whole(&tens[at]), Limits::default());
        answers.clear();
        let done = leader.execute_batch(&frame, (&limits, true), None, &mut answers);
        black_box(done.unwrap());
    });
    let mut run = |name, node: &Node, requests: &[Vec<u8>]| {
        operation(name, RUN_MAX, calls, |at| {
            execute(node, &requests[at], &mut answers)
        });
    };
    run("16 PUTs as a run", &alone, &puts);
    let add = Add {
        delta: 1,
        ..Add::default()
    };
    let adds = with_value(calls, &add.encode(), |key, value| Request::Add {
        key,
        value,
    });
    let numbers = with_value(calls, b"12345678", |key, value| Request::Set { key, value });
    settle(&alone, &numbers);
    run("16 SETs of 8 bytes as a run", &alone, &numbers);
    run("16 ADDs as a run", &alone, &adds);
    let batches: Vec<Vec<u8>> = sets.iter().map(|set| batch(set)).collect();
    let now = Instant::now();
    operation("16 SETs of a batch, on a follower", RUN_MAX, calls, |at| {
        receive(&follower, &batches[at], now);
    });
}

/// The first ten requests of a run as a BATCH.
fn batch_of_ten(run: &[u8]) -> Vec<u8> {
    let value = &run[..Run::of(run, &Limits::default()).bytes_of(10)];
    let mut bytes = Vec::new();
    Request::Batch { value }.encode(&mut bytes).unwrap();
    bytes
}

/// Runs of requests with this value, over 16 keys for each call.
fn with_value(
    calls: usize,
    value: &[u8],
    request: impl for<'a> Fn(&'a [u8], &'a [u8]) -> Request<'a>,
) -> Vec<Vec<u8>> {
    let run = |call: usize| {
        let mut bytes = Vec::new();
        for number in (call * RUN_MAX..).take(RUN_MAX) {
            let key = format!("key:{number:012}");
            request(key.as_bytes(), value).encode(&mut bytes).unwrap();
        }
        bytes
    };
    (0..calls).map(run).collect()
}

/// Logs and applies what a leader sends, at the next index of the follower, whatever index it was sent with. It changes
/// no value.
fn receive(follower: &Node, batch: &[u8], now: Instant) {
    let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(batch) else {
        panic!("a whole batch was written")
    };
    let Message::Entries {
        frames: records, ..
    } = message
    else {
        panic!("entries were written")
    };
    let first_index = follower.engine().head().index + 1;
    let group = Group {
        first_index,
        records,
        committed: u64::MAX,
        digest: follower.head().digest,
    };
    follower.engine().receive(&group, now).unwrap();
}

/// The bytes that a leader sends of a run.
fn batch(run: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    for frame in Run::of(run, &Limits::default()).frames() {
        assert!(batch.push(frame.bytes()), "a batch has room for a run");
    }
    batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index: 1,
        count,
        committed_index: u64::from(count),
        time_ms: 0,
        digest: 0,
    });
    bytes
}

fn main() {
    let calls = std::env::args().nth(1).and_then(|calls| calls.parse().ok());
    let Some(calls @ 1..=2_000) = calls else {
        eprintln!("count: how often each operation is called, 1 to 2000, is its only argument");
        std::process::exit(2);
    };
    codec(calls);
    single(calls);
    runs(calls);
}
