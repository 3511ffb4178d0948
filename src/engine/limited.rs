//! Writes to a store with a memory limit: what they need is reserved before anything is changed, the sum of what is
//! used follows, and where entries are evicted, so do the marks of those that are in use.

use hashbrown::HashTable;

use super::change::{Change, LongOld, NotPut};
use super::entry::Entry;
use super::eviction::Marks;
use super::memory::{Full, Memory, MemoryLimit, block_bytes, table_bytes, table_growth};
use super::store::{Entries, Store};
use crate::wire::{Opcode, RequestFrame};

impl Entries {
    /// Bytes of memory of the entries and of their table.
    #[inline]
    fn memory_bytes(&self, evicts: bool) -> u64 {
        self.sizes.block_bytes() + table_bytes(self.table.num_buckets(), evicts)
    }

    /// Bytes of memory of the heap of deadlines.
    fn heap_bytes(&self) -> u64 {
        let expiring = self.expiring.as_ref();
        expiring.map_or(0, |expiring| expiring.memory_bytes())
    }

    /// Bytes that the partition takes more where a frame of this length becomes the entry of `key`, after `new` other
    /// entries were added. `is_dated` says that the entry has a deadline then.
    fn growth(
        &self,
        (hash, key): (u64, &[u8]),
        (frame_len, is_dated): (usize, bool),
        new: usize,
        evicts: bool,
    ) -> u64 {
        let (table, block) = (&self.table, block_bytes(frame_len));
        let old = self.find(hash, key);
        let has_item = old.is_some_and(|old| old.deadline().is_some());
        let item = if is_dated && !has_item { ITEM_BYTES } else { 0 };
        let growth = match old {
            Some(old) => block.saturating_sub(block_bytes(old.frame().len())),
            // It grows once.
            None if table.len() + new == table.capacity() => {
                block
                    + table_growth(
                        table.len() + new,
                        table.capacity(),
                        table.num_buckets(),
                        evicts,
                    )
            }
            None => block,
        };
        growth + item
    }
}

/// Bytes that one more deadline takes of its heap, which doubles when it is full.
const ITEM_BYTES: u64 = 32;

impl Store {
    /// The same store, which is empty, with a limit.
    #[must_use]
    pub fn with_limit(mut self, limit: MemoryLimit) -> Store {
        self.memory = Some(Box::new(Memory::new(limit, self.partitions())));
        self
    }

    /// The limit's state, where there is a limit.
    #[inline]
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.memory.as_deref()
    }

    /// Bytes of memory that the data set takes; as exact as [`len`](Self::len).
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let evicts = self.memory().is_some_and(|memory| memory.limit.evicts);
        let bytes = |partition| {
            let entries = self.read_partition(partition);
            entries.memory_bytes(evicts) + entries.heap_bytes()
        };
        (0..self.partitions()).map(bytes).sum()
    }

    /// Bytes that a partition takes more where a frame of this length becomes the entry of `key`, with a deadline or
    /// without one, after `new` other entries were added; 0 without a limit.
    pub(super) fn growth(
        &self,
        entries: &Entries,
        at: (u64, &[u8]),
        frame: (usize, bool),
        new: usize,
    ) -> u64 {
        self.memory().map_or(0, |memory| {
            entries.growth(at, frame, new, memory.limit.evicts)
        })
    }

    /// Reserves the sum of these bytes, less those that are freed by the same write, for writes that are not limited
    /// themselves, and returns it.
    ///
    /// # Errors
    ///
    /// Where the limit leaves too few.
    pub(super) fn reserve_memory(
        &self,
        changes: impl Iterator<Item = (u64, u64)>,
    ) -> Result<u64, Full> {
        let Some(memory) = self.memory() else {
            return Ok(0);
        };
        let (mut growth, mut freed) = (0_u64, 0_u64);
        for (more, less) in changes {
            growth += more;
            freed += less;
        }
        let needed = growth.saturating_sub(freed);
        memory.reserve(needed)?;
        Ok(needed)
    }

    /// Bytes of the block of an entry; 0 without a limit.
    pub(super) fn block_of(&self, entry: Option<&Entry>) -> u64 {
        let block = |_: &Memory| entry.map_or(0, |entry| block_bytes(entry.frame().len()));
        self.memory().map_or(0, block)
    }

    /// Gives reserved bytes back.
    pub(super) fn release(&self, reserved: u64) {
        if let Some(memory) = self.memory() {
            memory.changed(reserved, 0, 0);
        }
    }

    /// Notes that the entry of `key` was asked for.
    #[inline]
    pub(super) fn note_hit(&self, entries: &Entries, hash: u64, key: &[u8]) {
        if let Some(memory) = self.memory() {
            self.mark(memory, entries, hash, key);
        }
    }

    #[cold]
    #[inline(never)]
    fn mark(&self, memory: &Memory, entries: &Entries, hash: u64, key: &[u8]) {
        if memory.limit.evicts
            && let Some(bucket) = entries.bucket_of(hash, key)
        {
            memory.mark(self.place(hash), Marks::len_of(entries), bucket);
        }
    }

    /// [`put_frame`](Self::put_frame) with a limit.
    #[cold]
    #[inline(never)]
    pub(super) fn put_frame_counted(
        &self,
        memory: &Memory,
        entries: &mut Entries,
        (hash, frame): (u64, &RequestFrame<'_>),
        new: Option<Entry>,
        change: &mut Change,
    ) -> Result<Option<Entry>, NotPut> {
        let put = Put {
            hash,
            key: frame.key(),
            frame_len: frame.bytes().len(),
            is_dated: frame.opcode() == Opcode::SetAt,
        };
        let before = entries.memory_bytes(memory.limit.evicts);
        let reserved = self
            .prepare(memory, entries, &put, change)
            .map_err(NotPut::Full)?;
        let stored = self.put_frame_uncounted(entries, hash, frame, new, change);
        memory.changed(before, entries.memory_bytes(memory.limit.evicts), reserved);
        Ok(stored?)
    }

    /// [`put_entry`](Self::put_entry) with a limit.
    #[cold]
    #[inline(never)]
    pub(super) fn put_entry_counted(
        &self,
        memory: &Memory,
        entries: &mut Entries,
        hash: u64,
        entry: Entry,
        change: &mut Change,
    ) -> Result<Option<Entry>, (NotPut, Entry)> {
        let put = Put {
            hash,
            key: entry.key(),
            frame_len: entry.frame().len(),
            is_dated: entry.deadline().is_some(),
        };
        let before = entries.memory_bytes(memory.limit.evicts);
        let reserved = match self.prepare(memory, entries, &put, change) {
            Ok(reserved) => reserved,
            Err(full) => return Err((NotPut::Full(full), entry)),
        };
        let stored = self.put_entry_uncounted(entries, hash, entry, change);
        memory.changed(before, entries.memory_bytes(memory.limit.evicts), reserved);
        stored.map_err(|(long, entry)| (NotPut::Long(long), entry))
    }

    /// [`take_where`](Self::take_where) with a limit.
    #[cold]
    #[inline(never)]
    pub(super) fn take_counted(
        &self,
        memory: &Memory,
        entries: &mut Entries,
        hash: u64,
        change: &mut Change,
        is_meant: impl FnMut(&Entry) -> bool,
    ) -> Result<Option<Entry>, LongOld> {
        let len = Marks::len_of(entries);
        let removes = |bucket| {
            if memory.limit.evicts {
                memory.marks_mut(self.place(hash), len).clear(bucket);
            }
        };
        self.counted(entries, |entries| {
            self.take_uncounted(entries, hash, change, is_meant, removes)
        })
    }

    /// Changes the entries or the table of a locked partition, and notes by how much their memory has changed.
    pub(super) fn counted<T>(
        &self,
        entries: &mut Entries,
        body: impl FnOnce(&mut Entries) -> T,
    ) -> T {
        let Some(memory) = self.memory() else {
            return body(entries);
        };
        let of = |entries: &Entries| entries.memory_bytes(memory.limit.evicts);
        let before = of(entries);
        let result = body(entries);
        memory.changed(before, of(entries), 0);
        result
    }

    /// The same of the heap of deadlines. It grows by a few bytes at a time, or by as much as it has, for what is
    /// stored already, so it is not refused.
    pub(super) fn counted_heap<T>(
        &self,
        entries: &mut Entries,
        body: impl FnOnce(&mut Entries) -> T,
    ) -> T {
        let Some(memory) = self.memory() else {
            return body(entries);
        };
        let before = entries.heap_bytes();
        let result = body(entries);
        memory.changed(before, entries.heap_bytes(), 0);
        result
    }

    /// Reserves what a put needs, if the limit holds for it, and returns how much that is. Where entries are evicted,
    /// the one of the key is marked, or the table made ready for a new one.
    fn prepare(
        &self,
        memory: &Memory,
        entries: &mut Entries,
        put: &Put<'_>,
        change: &Change,
    ) -> Result<u64, Full> {
        let evicts = memory.limit.evicts;
        let mut reserved = 0;
        if change.is_limited() {
            reserved = entries.growth(
                (put.hash, put.key),
                (put.frame_len, put.is_dated),
                0,
                evicts,
            );
            memory.reserve(reserved).map_err(|full| {
                // Of a value that no others make room for, the old one is not to make room either.
                let block = block_bytes(put.frame_len);
                let is_too_long = evicts && block > memory.evicted_max();
                if is_too_long {
                    Full { needed: block }
                } else {
                    full
                }
            })?;
        }
        if evicts {
            match entries.bucket_of(put.hash, put.key) {
                Some(bucket) => {
                    memory.mark(self.place(put.hash), Marks::len_of(entries), bucket);
                }
                None => self.make_place(entries, put.hash),
            }
        }
        Ok(reserved)
    }

    /// Makes a place for one more entry, of this hash.
    fn make_place(&self, entries: &mut Entries, hash: u64) {
        if entries.table.len() == entries.table.capacity() {
            self.rehash(usize::from(self.place(hash)), entries, |table| {
                table.reserve(1, |entry| self.hash(entry.key()));
            });
        }
    }

    /// Rehashes the table of this partition, which is locked for writing. Marks move with their entries.
    pub(super) fn rehash<T>(
        &self,
        partition: usize,
        entries: &mut Entries,
        rehash: impl FnOnce(&mut HashTable<Entry>) -> T,
    ) -> T {
        self.count_rehash(partition);
        let table = &mut entries.table;
        let place = u16::try_from(partition).unwrap_or(u16::MAX);
        let Some(memory) = self.memory().filter(|memory| memory.limit.evicts) else {
            return rehash(table);
        };
        let mut marks = memory.marks_mut(place, table.num_buckets());
        let buckets = (0..table.num_buckets()).filter(|&bucket| marks.is_set(bucket));
        let marked = buckets.filter_map(|bucket| table.get_bucket(bucket));
        let marked: Vec<(u64, *const u8)> = marked
            .map(|entry| (self.hash(entry.key()), entry.frame().as_ptr()))
            .collect();
        let result = rehash(table);
        *marks = Marks::new(table.num_buckets());
        for (hash, block) in marked {
            let is_meant = |entry: &Entry| entry.frame().as_ptr() == block;
            if let Some(bucket) = table.find_bucket_index(hash, is_meant) {
                marks.set(bucket);
            }
        }
        result
    }
}

/// A frame that becomes the entry of its key.
struct Put<'k> {
    hash: u64,
    key: &'k [u8],
    frame_len: usize,
    /// It has a deadline.
    is_dated: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::wire::Request;
    use crate::wire::request::frames;

    fn entry(number: u32, value_len: usize) -> Entry {
        let (key, value) = (&number.to_be_bytes()[..], &vec![b'v'; value_len][..]);
        let mut bytes = Vec::new();
        Request::Set { key, value }.encode(&mut bytes).unwrap();
        frames(&bytes)
            .map(|frame| Entry::copy_of(&frame))
            .next()
            .unwrap()
    }

    #[test]
    fn what_is_used_is_what_the_partitions_take() {
        if !crate::engine::HAS_PLAIN_LOCKS {
            return;
        }
        for evicts in [false, true] {
            let max_bytes = u64::MAX;
            let store = Store::seeded(4, 3).with_limit(MemoryLimit { max_bytes, evicts });
            let used = || store.memory().unwrap().used();
            let mut random = ChaCha8Rng::seed_from_u64(5);
            for step in 0..30_000 {
                let number = random.random_range(0..3_000);
                let new = entry(number, random.random_range(0..600));
                if random.random_range(0..20_000) < step {
                    store.remove(new.key());
                } else if step % 2 == 0 {
                    store.set(new);
                } else {
                    let (hash, mut change) = (store.hash(new.key()), Change::unlogged());
                    let entries = &mut *store.write(hash);
                    let frame = frames(new.frame()).next().unwrap();
                    store
                        .put_frame(entries, hash, &frame, None, &mut change)
                        .unwrap();
                }
                if step % 1_000 == 0 {
                    assert_eq!(used(), store.memory_bytes(), "{step}");
                }
            }
            assert_eq!(used(), store.memory_bytes());
            store.reserve(10_000);
            assert_eq!(used(), store.memory_bytes());
            assert!(used() > 100_000);
            store.clear();
            assert_eq!((used(), store.memory_bytes()), (0, 0));
        }
    }

    #[test]
    fn the_hand_leaves_a_partition_whose_table_is_rehashed() {
        if !crate::engine::HAS_PLAIN_LOCKS {
            return;
        }
        let (max_bytes, evicts) = (u64::MAX, true);
        let store = Store::seeded(2, 3).with_limit(MemoryLimit { max_bytes, evicts });
        let hand = &store.memory().unwrap().hand;
        let (mut rehashed, mut number) = ([0_u32; 2], 0);
        while rehashed.iter().any(|&count| count < 3) {
            number += 1;
            let entry = entry(number, 10);
            let place = usize::from(store.place(store.hash(entry.key())));
            hand.set(place, 1);
            let before = store.rehashes(place);
            store.set(entry);
            let (partition, bucket) = hand.get();
            assert_eq!(partition, place);
            if store.rehashes(place) == before {
                assert_eq!(bucket, 1);
            } else {
                let entries = store.read_partition(place);
                assert!(bucket >= Marks::len_of(&entries));
                rehashed[place] += 1;
            }
            // One that points into another partition stays there.
            hand.set(1 - place, 1);
            store.count_rehash(place);
            assert_eq!(hand.get(), (1 - place, 1));
        }
    }

    #[test]
    fn marks_stay_with_their_entries_as_a_table_grows_and_shrinks() {
        if !crate::engine::HAS_PLAIN_LOCKS {
            return;
        }
        let (max_bytes, evicts) = (u64::MAX, true);
        let store = Store::seeded(1, 3).with_limit(MemoryLimit { max_bytes, evicts });
        let is_marked = |number: u32| {
            let key = &number.to_be_bytes()[..];
            let hash = store.hash(key);
            let entries = &*store.read(hash);
            let bucket = entries.bucket_of(hash, key).unwrap();
            let memory = store.memory().unwrap();
            memory.marks_mut(0, Marks::len_of(entries)).is_set(bucket)
        };
        for number in 0..2_000 {
            store.set(entry(number, 10));
            // A new entry is not in use.
            assert!(!is_marked(number));
            if number % 3 == 0 {
                let key = &number.to_be_bytes()[..];
                let hash = store.hash(key);
                store.note_hit(&store.read(hash), hash, key);
            }
        }
        for number in 0..2_000 {
            assert_eq!(is_marked(number), number % 3 == 0, "{number}");
        }
        // They stay with them where the table shrinks, too.
        for number in 300..2_000_u32 {
            store.remove(&number.to_be_bytes());
        }
        for number in 0..300 {
            assert_eq!(is_marked(number), number % 3 == 0, "{number}");
        }
        for number in 300..2_000 {
            store.set(entry(number, 10));
            assert!(!is_marked(number));
        }
        // A place that is free again is not marked for its next entry.
        for number in (0..2_000_u32).step_by(3) {
            store.remove(&number.to_be_bytes());
        }
        for number in 2_000..2_600 {
            store.set(entry(number, 10));
            assert!(!is_marked(number));
        }
    }
}
