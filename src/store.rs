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
struct Partition(RwLock<Entries>);

/// Entries of one partition.
#[derive(Debug, Default)]
struct Entries {
    table: HashTable<Entry>,
    /// Bytes of all keys and values.
    bytes: u64,
}

/// Bytes of an entry's key and value.
fn size(entry: &Entry) -> u64 {
    u64::try_from(entry.key().len() + entry.value().len()).unwrap_or(u64::MAX)
}

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
        let entries = self.partition(hash).read();
        let found = entries.table.find(hash, |entry| entry.key() == key);
        found.cloned()
    }

    /// Puts `entry` under its key and returns the one that it replaced.
    pub fn set(&self, entry: Entry) -> Option<Entry> {
        self.set_with(entry, |_, _| {})
    }

    /// Removes `key` and returns its entry.
    pub fn remove(&self, key: &[u8]) -> Option<Entry> {
        self.remove_with(key, |_| {})
    }

    /// Puts `entry` under its key and returns the one that it replaced. Calls `before` with the new entry and the old
    /// one while the partition is locked for writing and the change is not made yet: what is done there has the same
    /// order for each key as the changes of the map.
    pub fn set_with(
        &self,
        entry: Entry,
        before: impl FnOnce(&Entry, Option<&Entry>),
    ) -> Option<Entry> {
        let hash = self.hash(entry.key());
        let entries = &mut *self.partition(hash).write();
        entries.bytes += size(&entry);
        match entries.table.entry(
            hash,
            |other| other.key() == entry.key(),
            |other| self.hash(other.key()),
        ) {
            Slot::Occupied(mut slot) => {
                before(&entry, Some(slot.get()));
                entries.bytes -= size(slot.get());
                Some(std::mem::replace(slot.get_mut(), entry))
            }
            Slot::Vacant(slot) => {
                before(&entry, None);
                slot.insert(entry);
                None
            }
        }
    }

    /// Removes `key` and returns its entry. Calls `before` with it, where there is one, as
    /// [`set_with`](Self::set_with) does.
    pub fn remove_with(&self, key: &[u8], before: impl FnOnce(&Entry)) -> Option<Entry> {
        let hash = self.hash(key);
        let entries = &mut *self.partition(hash).write();
        let table = &mut entries.table;
        let slot = table.find_entry(hash, |entry| entry.key() == key).ok()?;
        before(slot.get());
        entries.bytes -= size(slot.get());
        let (removed, _) = slot.remove();
        // An eighth: far enough from where a table grows that a client cannot make it do both in turn.
        if table.len() < table.capacity() / 8 {
            let twice = table.len() * 2;
            table.shrink_to(twice, |entry| self.hash(entry.key()));
        }
        Some(removed)
    }

    /// Removes everything, a partition at a time.
    pub fn clear(&self) {
        for partition in &self.partitions {
            // Freed after the lock is let go.
            let entries = std::mem::take(&mut *partition.0.write());
            drop(entries);
        }
    }

    /// Makes room for `count` entries in all, so that putting them in does not grow one table after the other.
    pub fn reserve(&self, count: usize) {
        // Keys spread evenly but not exactly; an eighth more than the mean is enough for any but the smallest shares.
        let each = count / self.partitions.len();
        for partition in &self.partitions {
            let entries = &mut *partition.0.write();
            let more = (each + each / 8).saturating_sub(entries.table.len());
            entries.table.reserve(more, |entry| self.hash(entry.key()));
        }
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// A number that is another one in every run of the program, as the partitions of keys are.
    #[must_use]
    pub fn run(&self) -> u64 {
        // One value of SipHash tells nothing of the others.
        self.hashing.hash_one(0_u64)
    }

    /// Which partition `key` lives in.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        self.place(self.hash(key))
    }

    /// All entries of one partition, as pointers, and what `at` gives while no one writes there.
    #[must_use]
    pub fn copy_partition<T>(&self, partition: usize, at: impl FnOnce() -> T) -> (Vec<Entry>, T) {
        let entries = self.partitions[partition].0.read();
        (entries.table.iter().cloned().collect(), at())
    }

    /// Number of entries. Partitions are counted one after another, so while others write it is near the truth.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = |part: &Partition| part.0.read().table.len();
        self.partitions.iter().map(len).sum()
    }

    /// Bytes of all keys and values; as exact as [`len`](Self::len).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|part| part.0.read().bytes).sum()
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

    fn partition(&self, hash: u64) -> &RwLock<Entries> {
        &self.partitions[self.place(hash)].0
    }

    fn place(&self, hash: u64) -> usize {
        // A table takes its bucket from the lowest bits and a tag from the top seven; these lie between, so that the
        // entries of one partition still differ in both. Their number is at most 2^16 and fits every usize.
        #[allow(clippy::cast_possible_truncation)]
        let bits = (hash >> 41) as u16;
        usize::from(bits) & (self.partitions.len() - 1)
    }
}
