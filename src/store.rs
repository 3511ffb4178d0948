//! The map: which entry every key has.

use std::hash::{BuildHasher, Hasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use parking_lot::RwLock;

use crate::entry::Entry;

/// Partitions of a node's store.
///
/// A table that grows moves all that it holds while its lock is held, so what one client can cost another is bounded
/// by the size of a partition and not of the store. `cargo bench --bench growth` shows the difference.
pub const PARTITIONS: usize = 256;

/// A concurrent map from keys to entries, split into partitions with a lock each.
///
/// # Invariants
///
/// 1. A key lives in the partition that its hash names, and in no other.
/// 2. Nothing is copied, freed, logged or sent while a partition is locked, except that its own table may grow or
///    shrink: [`get`](Store::get) clones a pointer, and [`set`](Store::set) and [`remove`](Store::remove) return what
///    they replaced so that it is dropped outside.
/// 3. No thread takes a second partition while it holds one.
///
/// # Hashing
///
/// SipHash under a key drawn at the start of the process: whoever chooses the keys of the entries cannot choose their
/// partition or their place in it.
#[derive(Debug)]
pub struct Store {
    partitions: Box<[Partition]>,
    hashing: RandomState,
}

/// One table, on cache lines of its own so that two cores with different partitions do not contend for a line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Partition(RwLock<HashTable<Entry>>);

impl Default for Store {
    fn default() -> Store {
        Store::with_partitions(PARTITIONS)
    }
}

impl Store {
    /// An empty store of [`PARTITIONS`] partitions.
    #[must_use]
    pub fn new() -> Store {
        Store::default()
    }

    /// An empty store of `count` partitions, rounded up to a power of two; at most 2^16. For measurements.
    #[must_use]
    pub fn with_partitions(count: usize) -> Store {
        let count = count.clamp(1, 1 << 16).next_power_of_two();
        Store {
            partitions: (0..count).map(|_| Partition::default()).collect(),
            hashing: RandomState::new(),
        }
    }

    /// The entry of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        let table = self.partition(hash).read();
        table.find(hash, |entry| entry.key() == key).cloned()
    }

    /// Puts `entry` under its key and returns the one that it replaced.
    pub fn set(&self, entry: Entry) -> Option<Entry> {
        let hash = self.hash(entry.key());
        let mut table = self.partition(hash).write();
        match table.entry(
            hash,
            |other| other.key() == entry.key(),
            |other| self.hash(other.key()),
        ) {
            Slot::Occupied(mut slot) => Some(std::mem::replace(slot.get_mut(), entry)),
            Slot::Vacant(slot) => {
                slot.insert(entry);
                None
            }
        }
    }

    /// Removes `key` and returns its entry.
    pub fn remove(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        let mut table = self.partition(hash).write();
        let (removed, _) = table
            .find_entry(hash, |entry| entry.key() == key)
            .ok()?
            .remove();
        // An eighth: far enough from where a table grows that a client cannot make it do both in turn.
        if table.len() < table.capacity() / 8 {
            let twice = table.len() * 2;
            table.shrink_to(twice, |entry| self.hash(entry.key()));
        }
        Some(removed)
    }

    /// Number of entries. Partitions are counted one after another, so while others write it is near the truth.
    #[must_use]
    pub fn len(&self) -> usize {
        self.partitions.iter().map(|part| part.0.read().len()).sum()
    }

    /// Whether there is no entry; as exact as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    fn partition(&self, hash: u64) -> &RwLock<HashTable<Entry>> {
        // A table takes its bucket from the lowest bits and a tag from the top seven; these lie between, so that the
        // entries of one partition still differ in both. Their number is at most 2^16 and fits every usize.
        #[allow(clippy::cast_possible_truncation)]
        let bits = (hash >> 41) as u16;
        &self.partitions[usize::from(bits) & (self.partitions.len() - 1)].0
    }
}
