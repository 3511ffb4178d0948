//! SUMS and LIST against a store: every entry is seen once, in the bucket of its key, however the walk is cut.

use std::collections::BTreeMap;

use gopherstore::engine::comparison::{self, Budget, bucket_of};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::store::Store;
use gopherstore::wire::comparison::{
    BITS_MAX, Buckets, ComparisonError, Item, List, ListAnswer, Place, Sums,
};
use proptest::prelude::*;

use crate::entry;

fn store<'a>(partitions: usize, pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Store {
    let store = Store::with_partitions(partitions);
    for (key, value) in pairs {
        store.set(entry(key, value));
    }
    store
}

/// The sums of the whole store, and the number of requests for them.
fn sums(store: &Store, bits: u8, budget: Budget) -> (Vec<u128>, usize) {
    let mut total = vec![0_u128; 1 << bits];
    let mut place = Place::default();
    for requests in 1.. {
        let request = Sums {
            place: place.clone(),
            bits,
        };
        let answer = comparison::sums(store, &request, budget).unwrap();
        assert_eq!(answer.sums.len(), 1 << bits);
        assert!(answer.next.is_after(&place), "{place:?} {:?}", answer.next);
        for (total, sum) in total.iter_mut().zip(answer.sums) {
            *total = total.wrapping_add(sum);
        }
        if answer.next.is_end(answer.partitions) {
            return (total, requests);
        }
        place = answer.next;
    }
    unreachable!("more requests than there are numbers")
}

/// All items of some buckets, in the order of their keys, and the answers' lengths. Calls `between` after each answer.
fn list(
    store: &Store,
    buckets: &Buckets,
    budget: Budget,
    mut between: impl FnMut(&Place),
) -> (Vec<Item>, Vec<usize>) {
    let (mut items, mut lens) = (Vec::new(), Vec::new());
    let mut place = Place::default();
    loop {
        let request = List::Some {
            place: place.clone(),
            buckets: buckets.clone(),
        };
        let answer: ListAnswer = comparison::list(store, &request, budget).unwrap();
        assert!(answer.next.is_after(&place), "{place:?} {:?}", answer.next);
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        lens.push(bytes.len());
        items.extend(answer.items);
        if answer.next.is_end(answer.partitions) {
            items.sort_by(|a: &Item, b| a.key.cmp(&b.key));
            return (items, lens);
        }
        between(&answer.next);
        place = answer.next;
    }
}

fn every_bucket(bits: u8) -> Buckets {
    let mut buckets = Buckets::none(bits);
    (0..1 << bits).for_each(|bucket| buckets.insert(bucket));
    buckets
}

fn numbered(count: u32, key_len: usize, value_len: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = |n: u32| format!("{n:0key_len$}").into_bytes();
    let value = |n: u32| vec![n.to_le_bytes()[0]; value_len];
    (0..count).map(|n| (key(n), value(n))).collect()
}

fn slices(pairs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &[u8])> {
    pairs.iter().map(|(key, value)| (&key[..], &value[..]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// `diff` relies on this rule.
    #[test]
    fn sums_of_buckets_are_the_digests_of_their_entries_on_every_node(
        pairs in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 0..12), prop::collection::vec(any::<u8>(), 0..40), 0..200
        ),
        bits in 0..=BITS_MAX,
        partitions in 0_u32..9,
        entries in 1_usize..100,
        hashed_bytes in 1_usize..2_000,
        answer_bytes in 1_usize..2_000,
    ) {
        let budget = Budget { entries, hashed_bytes, answer_bytes };
        let pairs: BTreeMap<Vec<u8>, Vec<u8>> = pairs;
        let pairs: Vec<_> = pairs.into_iter().collect();
        let mut expected = vec![Digest::EMPTY; 1 << bits];
        let mut whole = Digest::EMPTY;
        for (key, value) in &pairs {
            let digest = Digest::of(&entry(key, value));
            let sum = &mut expected[bucket_of(key, bits)];
            *sum = sum.changed(Digest::EMPTY, digest);
            whole = whole.changed(Digest::EMPTY, digest);
        }
        let expected: Vec<u128> = expected.into_iter().map(Digest::to_u128).collect();
        let a = store(1 << partitions, slices(&pairs));
        let b = store(256, slices(&pairs).collect::<Vec<_>>().into_iter().rev());
        prop_assert_eq!(&sums(&a, bits, budget).0, &expected);
        prop_assert_eq!(&sums(&b, bits, Budget::default()).0, &expected);
        prop_assert_eq!(sums(&a, 0, budget).0, vec![whole.to_u128()]);

        // Lists have each entry in its bucket, with its part of the sum.
        let wanted = pairs.first().map_or(0, |(key, _)| bucket_of(key, bits));
        let mut one = Buckets::none(bits);
        one.insert(wanted);
        let (items, _) = list(&a, &one, budget, |_| {});
        let keys: Vec<_> = items.iter().map(|item| item.key.clone()).collect();
        let of_bucket = pairs.iter().filter(|(key, _)| bucket_of(key, bits) == wanted);
        prop_assert_eq!(keys, of_bucket.map(|(key, _)| key.clone()).collect::<Vec<_>>());
        let sum = items.iter().fold(0_u128, |sum, item| sum.wrapping_add(item.hash));
        prop_assert_eq!(sum, expected[wanted]);
        let (items, _) = list(&b, &every_bucket(bits), budget, |_| {});
        let lens: Vec<_> = items.iter().map(|item| item.value_len).collect();
        let expected: Vec<_> = pairs.iter().map(|(_, value)| u32::try_from(value.len()).unwrap()).collect();
        prop_assert_eq!(lens, expected);
    }
}

#[test]
fn a_request_goes_as_far_as_its_budget_and_one_entry_at_least() {
    let pairs = numbered(100, 5, 88); // frames of 100 bytes
    let (one, many) = (store(1, slices(&pairs)), store(256, slices(&pairs)));
    let all = Budget::default();
    let expected = sums(&many, 3, all).0;
    for (budget, requests) in [
        (all, 1),
        (Budget { entries: 30, ..all }, 4),
        (
            Budget {
                entries: 100,
                ..all
            },
            1,
        ),
        (Budget { entries: 0, ..all }, 100),
        (
            Budget {
                hashed_bytes: 2_599,
                ..all
            },
            4,
        ),
        (
            Budget {
                hashed_bytes: 2_499,
                ..all
            },
            5,
        ),
        (
            Budget {
                hashed_bytes: 99,
                ..all
            },
            100,
        ),
    ] {
        assert_eq!(
            sums(&one, 3, budget),
            (expected.clone(), requests),
            "{budget:?}"
        );
        let (spread, count) = sums(&many, 3, budget);
        assert_eq!(spread, expected, "{budget:?}");
        assert!(
            (requests..=256).contains(&count),
            "{count} requests, {budget:?}"
        );
    }
}

#[test]
fn answers_to_list_are_bounded_and_a_walk_stays_exact_while_it_is_written_to() {
    let pairs = numbered(300, 100, 1);
    let budget = Budget {
        answer_bytes: 2_000,
        ..Budget::default()
    };
    for partitions in [1, 256] {
        let store = store(partitions, slices(&pairs));
        let mut written = 0_u32;
        let (items, lens) = list(&store, &every_bucket(4), budget, |next| {
            // The key at which the scan continues is removed, and others are added before and after it.
            store.remove(&next.from);
            for at in ["!", "~"] {
                written += 1;
                let key = format!("{at}{written}");
                store.set(entry(key.as_bytes(), b""));
            }
        });
        assert!(lens.len() > 2, "{lens:?}");
        assert!(lens.iter().all(|len| *len <= 2_000 + 18 + 100), "{lens:?}");
        // Every key that was not written is there exactly once.
        let listed: Vec<_> = items.iter().map(|item| &item.key).collect();
        let mut once = listed.clone();
        once.dedup();
        assert_eq!(listed, once);
        for (key, _) in &pairs {
            assert!(store.get(key).is_none() || listed.binary_search(&key).is_ok());
        }
    }
}

#[test]
fn one_key_is_listed_or_nothing() {
    let store = store(16, [(&b"a"[..], &b"xyz"[..]), (b"", b"empty")]);
    for (key, value_len) in [(&b"a"[..], 3), (b"", 5)] {
        let answer = comparison::list(&store, &List::One(key.to_vec()), Budget::default()).unwrap();
        assert!(answer.next.is_end(answer.partitions));
        let hash = Digest::of(&store.get(key).unwrap()).to_u128();
        let key = key.to_vec();
        assert_eq!(
            answer.items,
            [Item {
                key,
                value_len,
                hash
            }]
        );
    }
    let nothing = comparison::list(&store, &List::One(b"b".to_vec()), Budget::default()).unwrap();
    assert_eq!(nothing.items, []);
}

#[test]
fn places_of_another_run_and_beyond_the_end_are_refused() {
    let (store, other) = (Store::with_partitions(4), Store::with_partitions(4));
    assert_ne!(store.incarnation(), other.incarnation());
    let ask = |run, partition, from: &[u8]| {
        let from = from.to_vec();
        let place = Place {
            incarnation: run,
            partition,
            from,
        };
        comparison::sums(&store, &Sums { place, bits: 0 }, Budget::default())
            .map(|answer| answer.next.partition)
    };
    assert_eq!(ask(0, 0, b""), Ok(4));
    assert_eq!(ask(store.incarnation(), 1, b"k"), Ok(4));
    assert_eq!(ask(store.incarnation(), 4, b""), Ok(4));
    assert_eq!(
        ask(other.incarnation(), 1, b""),
        Err(ComparisonError::Incarnation)
    );
    assert_eq!(ask(0, 0, b"k"), Err(ComparisonError::Incarnation));
    let beyond = ComparisonError::Partition {
        partition: 5,
        partitions: 4,
    };
    assert_eq!(ask(store.incarnation(), 5, b""), Err(beyond));
}

/// The figures that GBP §4 shows, so that another implementation can check its hashes.
#[test]
fn the_figures_of_the_document_are_those_of_the_code() {
    let document = include_str!("../../docs/GBP.md");
    let hash = Digest::of(&entry(b"user123", b"active")).to_string();
    let row = format!("\"user123\" value_len=6 hash=0x{hash}");
    assert!(document.contains(&row), "{row}");
    let bucket = bucket_of(b"user123", 12);
    let row = format!("bucket of `user123` is {bucket} of 4,096");
    assert!(document.replace('\n', " ").contains(&row), "{row}");
    assert_eq!(bucket_of(b"user123", 1), bucket >> 11);
}
