//! The store against a `BTreeMap`.
//!
//! A failure prints its input and writes a seed to `tests/node/model.proptest-regressions`, from which it is replayed
//! first at the next run.

use std::collections::BTreeMap;

use gopherstore::store::Store;
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
