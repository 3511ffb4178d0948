//! The store against a `BTreeMap`.
//!
//! A failure prints its input and writes a seed to `tests/node/model.proptest-regressions`, from which it is replayed
//! first at the next run.

use std::collections::BTreeMap;
use std::time::Instant;

use gopherstore::config::Config;
use gopherstore::digest::Digest;
use gopherstore::history::Era;
use gopherstore::journal::Found;
use gopherstore::node::{Node, Reply};
use gopherstore::store::Store;
use gopherstore::wire::request::Limits;
use gopherstore::wire::{Request, Run, Status};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::entry;

#[derive(Clone, Debug)]
enum Operation {
    Set(Vec<u8>, Vec<u8>),
    Get(Vec<u8>),
    Remove(Vec<u8>),
    /// Many removals at once, so that tables shrink.
    RemoveAll,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Few keys, so that operations meet; up to three bytes of few kinds, so that some are prefixes of others.
    let key = || vec(prop_oneof![Just(0_u8), Just(b'a'), Just(255)], 0..4);
    prop_oneof![
        20 => (key(), vec(any::<u8>(), 0..40)).prop_map(|(key, value)| Operation::Set(key, value)),
        10 => key().prop_map(Operation::Get),
        10 => key().prop_map(Operation::Remove),
        1 => Just(Operation::RemoveAll),
    ]
}

proptest! {
    #[test]
    fn the_store_is_a_map(
        partitions in prop_oneof![Just(1_usize), Just(2), Just(256)],
        operations in vec(operation(), 0..400),
    ) {
        let store = Store::with_partitions(partitions);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let value = |entry: gopherstore::entry::Entry| entry.value().to_vec();
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

/// A node in a cluster of one, and one of three that leads, whose journal is kept meanwhile.
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
            let era = Era {
                epoch: 1,
                nonce: 1,
                start_index: 1,
            };
            node.open_era(era).unwrap();
        }
        node
    })
}

proptest! {
    /// Writes in runs, with and without a journal: the same answers and the same data as one by one, the log is what
    /// was done, and the digest is the data's.
    #[test]
    fn runs_are_their_requests_one_after_another(runs in vec(vec(operation(), 1..60), 0..20)) {
        for node in nodes() {
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let mut done = Vec::new();
            for operations in &runs {
                let mut bytes = Vec::new();
                let mut expected = Vec::new();
                for operation in operations {
                    let (request, is_done) = match operation {
                        Operation::Set(key, value) => {
                            model.insert(key.clone(), value.clone());
                            (Request::Set { key, value }, true)
                        }
                        Operation::Remove(key) => (Request::Del { key }, model.remove(key).is_some()),
                        Operation::Get(_) | Operation::RemoveAll => continue,
                    };
                    let before = bytes.len();
                    request.encode(&mut bytes).unwrap();
                    expected.push(if is_done { Status::Ok } else { Status::NotFound });
                    if is_done {
                        done.extend_from_slice(&bytes[before..]);
                    }
                }
                let (mut rest, mut answers) = (&bytes[..], Vec::new());
                while !rest.is_empty() {
                    let run = Run::of_writes(rest, &Limits::default());
                    rest = &rest[run.bytes().len()..];
                    answers.extend(node.write_run(&run).iter().map(Reply::status));
                }
                prop_assert_eq!(answers, expected);
            }
            prop_assert_eq!(node.store().len(), model.len());
            let mut digest = Digest::EMPTY;
            for (key, value) in &model {
                let entry = node.store().get(key).unwrap();
                prop_assert_eq!(entry.value(), &value[..]);
                digest = digest.changed(Digest::EMPTY, Digest::of(&entry));
            }
            if let Some(journal) = node.journal() {
                journal.end();
                journal.keep();
                prop_assert_eq!(node.head().digest, digest);
                prop_assert_eq!(journal.kept_head(), node.head());
                let (mut log, mut part) = (Vec::new(), Vec::new());
                let mut cursor = journal.cursor_after(0).unwrap();
                while let Found::Small(_) = journal.read(&mut cursor, 100, &mut part, Instant::now()) {
                    log.extend_from_slice(&part);
                }
                prop_assert_eq!(cursor.next, node.head().index + 1);
                prop_assert_eq!(log, done);
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
