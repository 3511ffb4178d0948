//! The store, the log and the node, without sockets but for two nodes with different data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod add;
mod batch;
mod comparison;
mod conditional;
mod differences;
mod execute;
mod expiry;
mod log;
mod long;
mod memory;
mod model;
mod operations;
mod peers;
mod receive;
mod removals;
mod scan;
mod sync;
mod threads;

#[path = "../support/quick.rs"]
mod quick;
#[path = "../support/reference.rs"]
mod reference;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::engine::{Answers, ApplyError, Engine, Group};
use gopherstore::history::EpochStart;
use gopherstore::log::Log;
use gopherstore::node::Node;
use gopherstore::wire;
use gopherstore::wire::replication::{self, BatchEncoder, Fields, Message, StreamOpcode};
use gopherstore::wire::request::{Limits, Parsed, frames, parse};
use gopherstore::wire::{Opcode, Request, Run, Status, response};

/// The seed of a random test: `GOPHERSTORE_SEED`, or a new one. Prints it, so that a failure can be replayed.
fn random_seed() -> u64 {
    let seed = match std::env::var("GOPHERSTORE_SEED") {
        Ok(seed) => seed.parse().expect("GOPHERSTORE_SEED is a whole number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("GOPHERSTORE_SEED={seed}");
    seed
}

/// An entry as a client sends it.
fn entry(key: &[u8], value: &[u8]) -> Entry {
    with_frame(&Request::Set { key, value }, Entry::copy_of)
}

/// Calls `f` with the request as parsed from a connection's buffer.
fn with_frame<T>(
    request: &Request<'_>,
    f: impl FnOnce(&gopherstore::wire::RequestFrame<'_>) -> T,
) -> T {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    match parse(&bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => f(&frame),
        Parsed::Incomplete { needed } => panic!("{needed} bytes needed"),
    }
}

/// Executes requests one behind the other as a connection does. Returns the answers, and of each step how many requests
/// were executed and whether the value of the last answer is apart.
fn execute(node: &Node, bytes: &[u8]) -> (Vec<u8>, Vec<(usize, bool)>) {
    let (mut rest, mut out, mut steps) = (bytes, Vec::new(), Vec::new());
    let mut answers = Answers::new();
    while !rest.is_empty() {
        let run = Run::of(rest, &Limits::default());
        let outcome = node.execute_run(&run, None, &mut answers).unwrap();
        steps.push((outcome.count, answers.apart().is_some()));
        out.extend_from_slice(answers.bytes());
        out.extend_from_slice(answers.apart().unwrap_or_default());
        answers.clear();
        rest = &rest[run.bytes_of(outcome.count)..];
    }
    (out, steps)
}

/// The answer of a node to one request.
fn ask(node: &Node, request: &Request<'_>) -> (Status, Vec<u8>) {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    if !Run::takes(bytes[0]) {
        let reply = with_frame(request, |frame| node.execute(frame));
        return (reply.status(), reply.value().to_vec());
    }
    let (out, _) = execute(node, &bytes);
    match response::parse(&out).unwrap() {
        response::Parsed::Whole(answer) => {
            assert_eq!(answer.frame_len(), out.len(), "one answer");
            (answer.status.try_into().unwrap(), answer.value.to_vec())
        }
        response::Parsed::Incomplete { needed } => panic!("{needed} bytes needed"),
    }
}

/// Loads these entries in place of the node's data, whatever it admits.
fn load<'a>(node: &Node, entries: impl IntoIterator<Item = &'a Entry>) {
    let mut load = node.engine().load(0);
    for entry in entries {
        load.add(frames(entry.frame()));
    }
    load.flush();
}

/// The record with which an epoch begins.
fn epoch_record(start: EpochStart) -> Vec<u8> {
    let value = &Opcode::Epoch.spec().value_of([start.epoch, start.nonce]);
    let mut bytes = Vec::new();
    Request::Epoch { value }.encode(&mut bytes).unwrap();
    bytes
}

/// The digest that the engine's data set has after these records.
fn digest_after(engine: &Engine, records: &[u8]) -> Digest {
    let mut written: BTreeMap<Vec<u8>, Option<Entry>> = BTreeMap::new();
    frames(records).fold(engine.head().digest, |digest, frame| {
        if frame.opcode() == Opcode::Epoch {
            return digest;
        }
        let new = (frame.opcode() == Opcode::Set).then(|| Entry::copy_of(&frame));
        let of = |entry: Option<&Entry>| entry.map(Digest::of).unwrap_or_default();
        let added = of(new.as_ref());
        let old = written.insert(frame.key().to_vec(), new);
        let old = old.unwrap_or_else(|| engine.get(frame.key()));
        digest.changed(of(old.as_ref()), added)
    })
}

/// Logs and applies frames as records of a leader.
fn apply(engine: &Engine, records: &[u8]) -> Result<(), ApplyError> {
    receive(engine, records, u64::MAX, digest_after(engine, records))
}

/// Receives frames as a group of a leader, which commits what it has up to `committed`.
fn receive(
    engine: &Engine,
    records: &[u8],
    committed: u64,
    digest: Digest,
) -> Result<(), ApplyError> {
    let first_index = engine.log().map_or(0, Log::last_index) + 1;
    receive_at(engine, first_index, records, committed, digest)
}

/// The same for a group that begins at this index.
fn receive_at(
    engine: &Engine,
    first_index: u64,
    records: &[u8],
    committed: u64,
    digest: Digest,
) -> Result<(), ApplyError> {
    let mut bytes = Vec::new();
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    assert!(frames(records).all(|frame| batch.push(frame.bytes())));
    batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index,
        count,
        committed_index: first_index + u64::from(count) - 1,
        time_ms: 0,
        digest: 0,
    });
    let replication::Parsed::Whole { message, .. } = replication::parse(&bytes).unwrap() else {
        panic!("a whole message was written");
    };
    let Message::Entries {
        first_index,
        frames: records,
        ..
    } = message
    else {
        panic!("entries were written");
    };
    let group = Group {
        first_index,
        records,
        committed,
        digest,
    };
    engine.receive(&group, Instant::now())
}
