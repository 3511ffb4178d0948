//! Comparison of nodes: how SUMS and LIST (GBP §4) scan a store.
//!
//! Two nodes that differ in a few of many keys find these with little traffic. Every key belongs to a bucket, the same
//! one on every node, and the sum of a bucket is the [`Digest`] of its entries. Buckets with equal sums are equal; of
//! the others the keys are listed, with a hash of each entry.
//!
//! # Bounds
//!
//! One request does what its [`Budget`] allows, or one entry more; its answer says where the scan goes on. Under the
//! lock of a partition its entries are copied, as for a snapshot, and nothing else; they are hashed and freed outside.
//! A partition that exceeds one request's budget is scanned in the order of its keys, which writes do not change.
//!
//! A key that is not written during the scan is seen once, as it is. A key that is written may be seen as it was before
//! or after. So a comparison asks again about keys that differ.

use xxhash_rust::xxh3::xxh3_64;

use crate::engine::PartitionCopy;
use crate::engine::digest::Digest;
use crate::engine::store::Store;
use crate::wire::comparison::{
    BITS_MAX, ComparisonError, ITEM_FIELDS_LEN, Item, List, ListAnswer, Place, Sums, SumsAnswer,
};
use crate::wire::expiry::DEADLINE_LEN;
use crate::wire::request::frames;
use crate::wire::{Opcode, RequestFrame};

/// Bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Entries that it scans; a larger partition is copied all the same.
    pub entries: usize,
    /// Bytes of entries that it hashes.
    pub hashed_bytes: usize,
    /// Bytes of items in its answer.
    pub answer_bytes: usize,
}

impl Default for Budget {
    /// The bounds in GBP §4: 131,072 entries, 64 MiB and 1 MiB. Measured with 3 million keys of 16 bytes and values of
    /// 32: 24 requests of 35 ms for the sums, 26 for a list, and below 2 ms for the entries of one partition.
    fn default() -> Budget {
        Budget {
            entries: 1 << 17,
            hashed_bytes: 64 << 20,
            answer_bytes: 1 << 20,
        }
    }
}

/// The bucket of a key among 2^`bits`: the first bits of its XXH3-64. More bits than [`BITS_MAX`] count as so many.
#[must_use]
pub fn bucket_of(key: &[u8], bits: u8) -> usize {
    let bits = u32::from(bits.min(BITS_MAX));
    let hash = xxh3_64(key).checked_shr(u64::BITS - bits).unwrap_or(0);
    // At most 12 bits.
    usize::try_from(hash).unwrap_or(0)
}

/// Answers a SUMS, as far as the budget goes.
///
/// # Errors
///
/// When its fields are not acceptable, or its place is none of this store.
pub fn sums(store: &Store, request: &Sums, budget: Budget) -> Result<SumsAnswer, ComparisonError> {
    let mut sums = vec![Digest::EMPTY; 1 << request.bits.min(BITS_MAX)];
    let walk = Walk {
        store,
        budget,
        is_wanted: |_: &[u8]| true,
        answer_len: |_: &RequestFrame<'_>| 0,
    };
    let next = walk.go(&request.place, |entry| {
        let sum = &mut sums[bucket_of(entry.key(), request.bits)];
        *sum = sum.changed(Digest::EMPTY, Digest::of_frame(entry.bytes()));
    })?;
    Ok(SumsAnswer {
        partitions: partitions(store),
        next,
        sums: sums.into_iter().map(Digest::to_u128).collect(),
    })
}

/// Answers a LIST, as far as the budget goes.
///
/// # Errors
///
/// When its fields are not acceptable, or its place is none of this store.
pub fn list(store: &Store, request: &List, budget: Budget) -> Result<ListAnswer, ComparisonError> {
    let mut items = Vec::new();
    let mut take = |entry: &RequestFrame<'_>| {
        items.push(Item {
            key: entry.key().to_vec(),
            // It came in a frame, whose length field is as wide.
            value_len: u32::try_from(put_value_len(entry)).unwrap_or(u32::MAX),
            hash: Digest::of_frame(entry.bytes()).to_u128(),
        });
    };
    let next = match request {
        List::One(key) => {
            if let Some(entry) = store.get(key) {
                frames(entry.frame()).for_each(|frame| take(&frame));
            }
            Place {
                incarnation: store.incarnation(),
                partition: partitions(store),
                from: Vec::new(),
            }
        }
        List::Some { place, buckets } => {
            let walk = Walk {
                store,
                budget,
                is_wanted: |key: &[u8]| buckets.contains(bucket_of(key, buckets.bits())),
                answer_len: |entry: &RequestFrame<'_>| ITEM_FIELDS_LEN + entry.key().len(),
            };
            walk.go(place, take)?
        }
    };
    Ok(ListAnswer {
        partitions: partitions(store),
        next,
        items,
    })
}

/// Bytes of the value of a put: without the deadline.
fn put_value_len(entry: &RequestFrame<'_>) -> usize {
    let deadline_len = if entry.opcode() == Opcode::SetAt {
        DEADLINE_LEN
    } else {
        0
    };
    entry.value().len().saturating_sub(deadline_len)
}

/// Number of partitions as the wire has it; at most 2^16.
pub(super) fn partitions(store: &Store) -> u32 {
    u32::try_from(store.partitions()).unwrap_or(u32::MAX)
}

/// The place where a request begins, as one of this store.
///
/// # Errors
///
/// When there is no such place in this store.
pub(super) fn begin(store: &Store, place: &Place) -> Result<Place, ComparisonError> {
    let (partitions, incarnation) = (partitions(store), store.incarnation());
    if place.partition > partitions {
        return Err(ComparisonError::Partition {
            partition: place.partition,
            partitions,
        });
    }
    if *place != Place::default() && place.incarnation != incarnation {
        return Err(ComparisonError::Incarnation);
    }
    Ok(Place {
        incarnation,
        ..place.clone()
    })
}

/// The scan of one request.
struct Walk<'a, W, L> {
    store: &'a Store,
    budget: Budget,
    /// Whether the entry of this key is wanted.
    is_wanted: W,
    /// Bytes of the answer that an entry takes.
    answer_len: L,
}

impl Budget {
    /// The rest after `cost`; `None` where that exceeds it.
    fn less(self, cost: Budget) -> Option<Budget> {
        Some(Budget {
            entries: self.entries.checked_sub(cost.entries)?,
            hashed_bytes: self.hashed_bytes.checked_sub(cost.hashed_bytes)?,
            answer_bytes: self.answer_bytes.checked_sub(cost.answer_bytes)?,
        })
    }
}

impl<W: Fn(&[u8]) -> bool, L: Fn(&RequestFrame<'_>) -> usize> Walk<'_, W, L> {
    /// Passes the wanted entries from `place` on to `take`, as far as the budget goes, and returns where to go on.
    fn go(
        &self,
        place: &Place,
        mut take: impl FnMut(&RequestFrame<'_>),
    ) -> Result<Place, ComparisonError> {
        let (partitions, mut next) = (partitions(self.store), begin(self.store, place)?);
        let mut left = self.budget;
        let mut is_first = true;
        let mut copied = PartitionCopy::default();
        while !next.is_end(partitions) {
            let partition = usize::try_from(next.partition).unwrap_or(usize::MAX);
            self.store.copy_partition(partition, &mut copied, || ());
            let looked_at = copied.len();
            let wanted = |entry: &RequestFrame<'_>| {
                let key = entry.key();
                *key >= *next.from && (self.is_wanted)(key)
            };
            let entries: Vec<_> = copied.frames().filter(wanted).collect();
            let mut all = self.cost(&entries);
            all.entries = looked_at;
            match left.less(all) {
                Some(rest) => {
                    left = rest;
                    entries.iter().for_each(&mut take);
                }
                None if is_first => {
                    if let Some(from) = self.go_within(entries, left, &mut take) {
                        next.from = from;
                        return Ok(next);
                    }
                    left.entries = 0;
                }
                None => break,
            }
            is_first = false;
            next.partition += 1;
            next.from.clear();
            // The other partitions have about as many entries; copying one that exceeds the rest would be wasted.
            if left.entries < looked_at {
                break;
            }
        }
        Ok(next)
    }

    /// Takes entries of one partition in the order of their keys, as far as the budget goes, and at least one. Returns
    /// the key of the first that is left.
    fn go_within(
        &self,
        mut entries: Vec<RequestFrame<'_>>,
        mut left: Budget,
        mut take: impl FnMut(&RequestFrame<'_>),
    ) -> Option<Vec<u8>> {
        let by_key =
            |a: &RequestFrame<'_>, b: &RequestFrame<'_>| a.request().key().cmp(b.request().key());
        let most = left.entries.max(1);
        if entries.len() > most {
            // Only those that may be taken, and the one behind them, have to be sorted.
            entries.select_nth_unstable_by(most, by_key);
            entries.truncate(most + 1);
        }
        entries.sort_unstable_by(by_key);
        for (at, entry) in entries.iter().enumerate() {
            match left.less(self.cost(std::slice::from_ref(entry))) {
                Some(rest) => left = rest,
                None if at > 0 => return Some(entry.key().to_vec()),
                None => {
                    left = Budget {
                        entries: 0,
                        hashed_bytes: 0,
                        answer_bytes: 0,
                    }
                }
            }
            take(entry);
        }
        None
    }

    fn cost(&self, entries: &[RequestFrame<'_>]) -> Budget {
        Budget {
            entries: entries.len(),
            hashed_bytes: entries.iter().map(|entry| entry.bytes().len()).sum(),
            answer_bytes: entries.iter().map(&self.answer_len).sum(),
        }
    }
}
