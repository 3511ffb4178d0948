//! The store against a `BTreeMap`.
//!
//! A failure prints its input and writes a seed to `tests/node/model.proptest-regressions`, from which it is replayed
//! first at the next run.

use std::collections::BTreeMap;
use std::time::Instant;

use gopherstore::config::Config;
use gopherstore::engine::digest::Digest;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Answers, COPIED_BYTES, PartitionCopy, Staged};
use gopherstore::history::EpochStart;
use gopherstore::log::Found;
use gopherstore::node::Node;
use gopherstore::wire::request::Limits;
use gopherstore::wire::response::Response;
use gopherstore::wire::run::RUN_FRAME_BYTES_MAX;
use gopherstore::wire::{Opcode, Request, Run, Status};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::entry;

#[derive(Clone, Debug)]
enum Operation {
    Set(Vec<u8>, Vec<u8>),
    Get(Vec<u8>),
    Remove(Vec<u8>),
    Add(Vec<u8>, i64),
    /// Many removals at once, so that tables shrink.
    RemoveAll,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Few keys, so that operations meet; up to three bytes of few kinds, so that some are prefixes of others.
    let key = || vec(prop_oneof![Just(0_u8), Just(b'a'), Just(255)], 0..4);
    // About the longest values that are copied to a run's answers, and that may be written in a run.
    let long = prop_oneof![
        COPIED_BYTES - 1..=COPIED_BYTES + 1,
        RUN_FRAME_BYTES_MAX - 12..=RUN_FRAME_BYTES_MAX
    ];
    let value = || {
        let long = (any::<u8>(), long.clone()).prop_map(|(byte, len)| vec![byte; len]);
        prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => long]
    };
    prop_oneof![
        20 => (key(), value()).prop_map(|(key, value)| Operation::Set(key, value)),
        10 => key().prop_map(Operation::Get),
        10 => key().prop_map(Operation::Remove),
        5 => (key(), any::<i64>()).prop_map(|(key, delta)| Operation::Add(key, delta)),
        1 => Just(Operation::RemoveAll),
    ]
}

proptest! {
    #[test]
    fn what_is_staged_is_put_in_in_its_order(
        partitions in prop_oneof![Just(1_usize), Just(2), Just(256)],
        batches in vec(vec(operation(), 0..60), 0..6),
    ) {
        let (store, expected) = (Store::with_partitions(partitions), Store::with_partitions(partitions));
        let mut staged = Staged::default();
        for batch in batches {
            let (mut replaced, mut replaced_there) = (Vec::new(), Vec::new());
            let mut count = 0;
            for operation in batch {
                if let Operation::Set(key, value) = operation {
                    store.stage(&mut staged, entry(&key, &value));
                    count += 1;
                    let old = expected.set(entry(&key, &value));
                    replaced_there.extend(old.map(|old| old.frame().to_vec()));
                }
            }
            prop_assert_eq!((staged.len(), staged.is_empty()), (count, count == 0));
            store.put_staged(&mut staged, |old| replaced.push(old.frame().to_vec()));
            prop_assert!(staged.is_empty());
            // Entries of one key came in one order, those of different keys in any.
            replaced.sort_unstable();
            replaced_there.sort_unstable();
            prop_assert_eq!(replaced, replaced_there);
            prop_assert_eq!((store.len(), store.bytes()), (expected.len(), expected.bytes()));
        }
        let of = |store: &Store| {
            let mut all = Vec::new();
            for partition in 0..store.partitions() {
                let mut copied = PartitionCopy::default();
                store.copy_partition(partition, &mut copied, || ());
                all.extend(copied.frames().map(|frame| frame.bytes().to_vec()));
            }
            all.sort_unstable();
            all
        };
        prop_assert!(of(&store) == of(&expected));
    }

    #[test]
    fn the_store_is_a_map(
        partitions in prop_oneof![Just(1_usize), Just(2), Just(256)],
        operations in vec(operation(), 0..400),
    ) {
        let store = Store::with_partitions(partitions);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let value = |entry: gopherstore::engine::entry::Entry| entry.value().to_vec();
        for operation in operations {
            match operation {
                Operation::Set(key, bytes) => {
                    let old = store.set(entry(&key, &bytes)).map(value);
                    prop_assert_eq!(old, model.insert(key, bytes));
                }
                Operation::Get(key) => {
                    prop_assert_eq!(store.get(&key).map(value), model.get(&key).cloned());
                }
                Operation::Remove(key) => {
                    prop_assert_eq!(store.remove(&key).map(value), model.remove(&key));
                }
                // Not an operation of the store.
                Operation::Add(..) => {}
                Operation::RemoveAll => {
                    for (key, bytes) in std::mem::take(&mut model) {
                        prop_assert_eq!(store.remove(&key).map(value), Some(bytes));
                    }
                }
            }
            prop_assert_eq!(store.len(), model.len());
            let bytes: usize = model.iter().map(|(key, value)| key.len() + value.len()).sum();
            prop_assert_eq!(store.bytes(), u64::try_from(bytes).unwrap());
        }
        for (key, bytes) in &model {
            let entry = store.get(key).unwrap();
            prop_assert_eq!((entry.key(), entry.value()), (&key[..], &bytes[..]));
        }
    }
}

/// The epoch of a node that leads.
pub(crate) const EPOCH: EpochStart = EpochStart {
    epoch: 1,
    nonce: 1,
    start_index: 1,
};

/// A node in a cluster of one, and one of three that leads, whose log is kept meanwhile.
fn nodes() -> [Node; 2] {
    let config = |count: usize| {
        let mut text = "cluster = \"c\"\nleader = \"n1\"\n".to_owned();
        for n in 1..=count {
            text += &format!("[[node]]\nname = \"n{n}\"\naddr = \"127.0.0.1:{n}\"\n");
        }
        Config::parse(&text, "cluster.toml").unwrap()
    };
    [1, 3].map(|count| {
        let config = config(count);
        let node = Node::of_cluster(&config, config.leader());
        if count > 1 {
            node.open_epoch(EPOCH).unwrap();
        }
        node
    })
}

/// Adds one request, and a map's answer to it. Returns whether the request changes the map.
fn ask(
    model: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    request: &Request<'_>,
    (asked, expected): (&mut Vec<u8>, &mut Vec<u8>),
) -> bool {
    request.encode(asked).unwrap();
    let (found, changes) = match *request {
        Request::Set { key, value } => {
            model.insert(key.to_vec(), value.to_vec());
            (Some(Vec::new()), true)
        }
        Request::Add { key, value } => {
            let delta = i64::from_be_bytes(value[1..9].try_into().unwrap());
            let old = model.get(key).map_or(Some(0), |old| {
                let number: Option<i64> = std::str::from_utf8(old).ok()?.parse().ok();
                number.filter(|number| number.to_string().as_bytes() == old)
            });
            let Some(sum) = old.and_then(|old| old.checked_add(delta)) else {
                let message = match old {
                    None => "the value is no decimal number of 64 bits".to_owned(),
                    Some(old) => format!("{old} and {delta} add up to no number of 64 bits"),
                };
                let (status, value) = (Status::Error.byte(), message.as_bytes());
                Response { status, value }.encode(expected).unwrap();
                return false;
            };
            let text = sum.to_string().into_bytes();
            model.insert(key.to_vec(), text.clone());
            (Some(text), true)
        }
        Request::Del { key } => {
            let removed = model.remove(key);
            let changes = removed.is_some();
            (removed.map(|_| Vec::new()), changes)
        }
        _ => (model.get(request.key()).cloned(), false),
    };
    let status = found.as_ref().map_or(Status::NotFound, |_| Status::Ok);
    let (status, value) = (status.byte(), &found.unwrap_or_default()[..]);
    Response { status, value }.encode(expected).unwrap();
    changes
}

proptest! {
    /// Requests of all kinds, cut anywhere, with and without a log: the answers are byte for byte those of a map that
    /// executes one after another, the log has the writes that were executed, and the digest is that of the data.
    #[test]
    fn runs_are_their_requests_one_after_another(
        operations in vec(operation(), 0..300),
        pieces in vec(1_usize..3_000, 1..40),
    ) {
        for node in nodes() {
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let (mut asked, mut expected) = (Vec::new(), Vec::new());
            let mut done = crate::epoch_record(EPOCH);
            for operation in &operations {
                let (keys, value): (Vec<Vec<u8>>, Vec<u8>);
                let requests: Vec<Request<'_>> = match operation {
                    Operation::Set(key, value) => vec![Request::Set { key, value }],
                    Operation::Get(key) => vec![Request::Get { key }],
                    Operation::Remove(key) => vec![Request::Del { key }],
                    Operation::Add(key, delta) => {
                        value = Opcode::Add.spec().value_of([0, delta.cast_unsigned(), 0, 0]);
                        vec![Request::Add { key, value: &value }]
                    }
                    Operation::RemoveAll => {
                        keys = model.keys().cloned().collect();
                        keys.iter().map(|key| Request::Del { key }).collect()
                    }
                };
                for request in requests {
                    let before = asked.len();
                    if ask(&mut model, &request, (&mut asked, &mut expected)) {
                        match request {
                            // The log has its effect.
                            Request::Add { key, .. } => {
                                let value = &model[key];
                                Request::Set { key, value }.encode(&mut done).unwrap();
                            }
                            _ => done.extend_from_slice(&asked[before..]),
                        }
                    }
                }
            }
            let (mut at, mut came, mut answers) = (0, 0, Vec::new());
            let mut output = Answers::new();
            for len in pieces.iter().cycle() {
                came = asked.len().min(came + len);
                loop {
                    let run = Run::of(&asked[at..came], &Limits::default());
                    if run.is_empty() {
                        break;
                    }
                    let outcome = node.execute_run(&run, None, &mut output).unwrap();
                    answers.extend_from_slice(output.bytes());
                    answers.extend_from_slice(output.apart().unwrap_or_default());
                    output.clear();
                    at += run.bytes_of(outcome.count);
                }
                if came == asked.len() {
                    break;
                }
            }
            prop_assert_eq!(at, asked.len());
            prop_assert!(answers == expected);
            prop_assert_eq!(node.engine().len(), model.len());
            let mut digest = Digest::EMPTY;
            for (key, value) in &model {
                let entry = node.engine().get(key).unwrap();
                prop_assert_eq!(entry.value(), &value[..]);
                digest = digest.changed(Digest::EMPTY, Digest::of(&entry));
            }
            if let Some(log) = node.engine().log() {
                node.engine().end_log();
                log.keep();
                prop_assert_eq!(node.head().digest, digest);
                prop_assert_eq!(log.kept_head(), node.head());
                let (mut frames, mut part) = (Vec::new(), Vec::new());
                let mut cursor = log.cursor_after(0).unwrap();
                loop {
                    match log.read(&mut cursor, 100, &mut part, Instant::now(), || false) {
                        Found::Small(..) => frames.extend_from_slice(&part),
                        Found::Large(entry, _) => frames.extend_from_slice(entry.frame()),
                        Found::Nothing | Found::Ended | Found::Gone => break,
                    }
                }
                prop_assert_eq!(cursor.next, node.head().index + 1);
                prop_assert!(frames == done);
            }
        }
    }
}

/// Tables grow to their size and shrink again, and nothing is lost on the way.
#[test]
fn a_hundred_thousand_entries_come_and_go() {
    let store = Store::with_partitions(4);
    let key = |n: u32| n.to_be_bytes();
    for n in 0..100_000 {
        assert!(store.set(entry(&key(n), &key(!n))).is_none());
    }
    for n in (0..100_000).filter(|n| n % 100 != 0) {
        assert_eq!(store.remove(&key(n)).unwrap().value(), key(!n));
    }
    assert_eq!(store.len(), 1_000);
    for n in 0..100_000 {
        let found = store.get(&key(n)).map(|entry| entry.value().to_vec());
        assert_eq!(found, (n % 100 == 0).then(|| key(!n).to_vec()), "{n}");
    }
}

#[test]
fn stores_with_one_seed_have_every_key_in_one_place() {
    let places = |store: &Store| -> Vec<usize> {
        let keys = (0..1_000_u32).map(u32::to_be_bytes);
        keys.map(|key| store.partition_of(&key)).collect()
    };
    let [one, same, other] = [7, 7, 8].map(|seed| Store::seeded(16, seed));
    assert_eq!(places(&one), places(&same));
    assert_eq!(one.incarnation(), same.incarnation());
    assert_ne!(places(&one), places(&other));
    assert_ne!(one.incarnation(), other.incarnation());
    assert_eq!(
        (0..16).filter(|place| places(&one).contains(place)).count(),
        16
    );
}
