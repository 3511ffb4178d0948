//! The deadlines of a store's entries: each change of one is noted in its partition's heap ([`Expiring`]).

use std::hint::black_box;
use std::sync::atomic::Ordering;

use hashbrown::HashTable;

use super::change::{Change, LongOld};
use super::clock::Now;
use super::compute::is_live;
use super::entry::Entry;
use super::expiring::Item;
use super::store::{Entries, Store, is_sparse};
use crate::wire::{Opcode, RequestFrame};

/// The result of a look at the earliest deadline of a partition.
pub(super) enum Due {
    /// It had passed, and this entry was removed.
    Removed(Entry),
    /// Its entry lives longer, or is not there any more.
    Corrected,
    /// No deadline has passed.
    Nothing,
}

impl Entries {
    /// Whether the partition has memory that it does not need.
    pub(super) fn is_sparse(&self) -> bool {
        let expiring = self.expiring.as_ref();
        is_sparse(&self.table)
            || expiring
                .is_some_and(|expiring| expiring.live() == 0 || expiring.to_shrink().is_some())
    }

    /// A time before which no entry expires, in milliseconds since 1970 UTC; `None` where none has a deadline.
    pub(super) fn first_deadline(&self) -> Option<u64> {
        self.first_expiring().map(|item| item.deadline)
    }

    fn first_expiring(&self) -> Option<Item> {
        self.expiring.as_ref().and_then(|expiring| expiring.first())
    }
}

/// The deadline of the entry that a frame becomes.
fn put_deadline(frame: &RequestFrame<'_>) -> Option<u64> {
    let deadline = frame.value().first_chunk().copied().map(u64::from_be_bytes);
    deadline.filter(|_| frame.opcode() == Opcode::SetAt)
}

impl Store {
    /// [`put_frame`](Self::put_frame) of an entry that has a deadline, or into a partition where one has. Not inlined,
    /// so that others do not pay for it.
    #[cold]
    #[inline(never)]
    pub(super) fn put_dated(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        new: Option<Entry>,
        change: &mut Change,
    ) -> Result<Option<Entry>, LongOld> {
        let mut deadline = None;
        let replaces = |old: &Entry| deadline = old.deadline();
        let replaced = self.put_after(entries, hash, frame, new, change, replaces)?;
        self.note_deadline(entries, hash, deadline, put_deadline(frame));
        Ok(replaced)
    }

    /// [`take`](Self::take) from a partition where an entry has a deadline.
    #[cold]
    #[inline(never)]
    pub(super) fn take_dated(
        &self,
        entries: &mut Entries,
        hash: u64,
        key: &[u8],
        clock: Option<&Now<'_>>,
        change: &mut Change,
    ) -> Result<Option<Entry>, LongOld> {
        let is_meant =
            |entry: &Entry| entry.key() == key && clock.is_none_or(|clock| is_live(entry, clock));
        let taken = self.take_where(entries, hash, change, is_meant)?;
        if let Some(taken) = &taken {
            self.note_deadline(entries, hash, taken.deadline(), None);
            if is_sparse(&entries.table) {
                self.shrink(entries, hash);
            }
        }
        Ok(taken)
    }

    /// Removes an entry of a locked partition whose deadline is not after `now`. Neither allocates nor frees memory:
    /// [`shrink_partition`](Self::shrink_partition) does that.
    ///
    /// # Errors
    ///
    /// [`LongOld`], as for [`put_frame`](Self::put_frame).
    pub(super) fn take_expired(
        &self,
        entries: &mut Entries,
        now: u64,
        change: &mut Change,
    ) -> Result<Due, LongOld> {
        let Some(Item { deadline, hash }) = entries.first_expiring() else {
            return Ok(Due::Nothing);
        };
        if deadline > now {
            return Ok(Due::Nothing);
        }
        let has_expired = |entry: &Entry| {
            let deadline = entry.deadline();
            deadline.is_some_and(|at| at <= now) && self.hash(entry.key()) == hash
        };
        if let Some(removed) = self.take_where(entries, hash, change, has_expired)? {
            if let Some(expiring) = &mut entries.expiring {
                expiring.remove();
            }
            return Ok(Due::Removed(removed));
        }
        let earliest = self.earliest_deadline(&entries.table, hash);
        if let Some(expiring) = &mut entries.expiring {
            expiring.correct_first(earliest);
        }
        Ok(Due::Corrected)
    }

    /// Shrinks the table and the heap of a partition that are sparse. The allocator may take milliseconds, so memory is
    /// allocated before the partition is locked, and freed after. `on_lock` is as for
    /// [`expire`](super::Engine::expire).
    pub(super) fn shrink_partition(&self, partition: usize, mut on_lock: impl FnMut()) {
        let (entries_max, items_max) = {
            let entries = self.read_partition(partition);
            let expiring = entries.expiring.as_ref();
            let entries_max = is_sparse(&entries.table).then_some(entries.table.len() * 2);
            (
                entries_max,
                expiring.and_then(|expiring| expiring.to_shrink()),
            )
        };
        let (table, items) = (
            entries_max.map(HashTable::<Entry>::with_capacity),
            items_max.map(Vec::with_capacity),
        );
        let mut locked = self.write_partition(partition);
        on_lock();
        let table = self.counted(&mut locked, |entries| {
            let fits = table.filter(|table| entries.table.len() <= table.capacity());
            fits.map(|table| self.move_table(partition, entries, table))
        });
        let heap = self.counted_heap(&mut locked, |entries| {
            let items = match (&mut entries.expiring, items) {
                (Some(expiring), Some(items)) => Some(expiring.shrink_into(items)),
                (None, items) | (_, items @ None) => items,
            };
            let expiring = &mut entries.expiring;
            (items, expiring.take_if(|expiring| expiring.live() == 0))
        });
        on_lock();
        drop(locked);
        drop((table, heap));
    }

    /// Moves the entries of a locked partition into `table`, where they have room. Returns the table of before.
    fn move_table(
        &self,
        partition: usize,
        entries: &mut Entries,
        mut table: HashTable<Entry>,
    ) -> HashTable<Entry> {
        // As where a table grows: this loop overlaps the misses.
        let ends = entries.table.iter().filter_map(|entry| entry.key().last());
        black_box(ends.fold(0, |sum, byte| sum ^ byte));
        let hash = |entry: &Entry| self.hash(entry.key());
        self.rehash(partition, entries, |old| {
            for entry in old.drain() {
                table.insert_unique(hash(&entry), entry, hash);
            }
            std::mem::replace(old, table)
        })
    }

    /// Notes that an entry of this hash had the deadline `old` and has `new`; `None` where it had or has none, or is
    /// not there.
    #[inline(never)]
    pub(super) fn note_deadline(
        &self,
        entries: &mut Entries,
        hash: u64,
        old: Option<u64>,
        new: Option<u64>,
    ) {
        if old == new {
            return;
        }
        self.counted_heap(entries, |entries| {
            let Entries {
                table, expiring, ..
            } = entries;
            let deadlines = expiring.get_or_insert_with(|| {
                self.has_expiring.store(true, Ordering::Relaxed);
                Box::default()
            });
            deadlines.change(hash, old, new, |hash| self.earliest_deadline(table, hash));
            if deadlines.live() == 0 {
                *expiring = None;
            }
        });
    }

    /// The earliest deadline of the entries with this hash.
    fn earliest_deadline(&self, table: &HashTable<Entry>, hash: u64) -> Option<u64> {
        let alike = table.iter_hash(hash);
        let deadlines = alike.filter_map(|entry| Some((entry, entry.deadline()?)));
        let meant = deadlines.filter(|(entry, _)| self.hash(entry.key()) == hash);
        meant.map(|(_, deadline)| deadline).min()
    }

    /// Whether an entry ever had a deadline.
    pub(super) fn has_expiring(&self) -> bool {
        self.has_expiring.load(Ordering::Relaxed)
    }

    /// Number of entries with a deadline; as exact as [`len`](Self::len).
    pub(super) fn expiring(&self) -> usize {
        let live = |partition| {
            let entries = self.read_partition(partition);
            let expiring = entries.expiring.as_ref();
            expiring.map_or(0, |expiring| expiring.live())
        };
        (0..self.partitions()).map(live).sum()
    }

    /// [`Entries::first_deadline`] of the partition with this number.
    pub(super) fn first_deadline(&self, partition: usize) -> Option<u64> {
        self.read_partition(partition).first_deadline()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::memory::MemoryLimit;

    #[test]
    fn what_is_used_is_what_the_partitions_take_while_entries_expire() {
        if !crate::engine::HAS_PLAIN_LOCKS {
            return;
        }
        for evicts in [false, true] {
            let max_bytes = u64::MAX;
            let store = Store::seeded(2, 3).with_limit(MemoryLimit { max_bytes, evicts });
            let used = || store.memory().unwrap().used();
            let empty = store.memory_bytes();
            for number in 0..3_000_u32 {
                let deadline = u64::from(number % 100);
                let entry = Entry::of_put(&number.to_be_bytes(), b"v", Some(deadline));
                store.set(entry.unwrap());
            }
            let full = used();
            for now in 0..100 {
                for partition in 0..2 {
                    let mut entries = store.write_partition(partition);
                    let change = &mut Change::unlogged();
                    while !matches!(
                        store.take_expired(&mut entries, now, change),
                        Ok(Due::Nothing)
                    ) {}
                    drop(entries);
                    store.shrink_partition(partition, || ());
                }
                assert_eq!(used(), store.memory_bytes(), "{now}");
                assert!(now < 95 || used() < full / 5, "{now}: {} of {full}", used());
            }
            assert_eq!((store.len(), used()), (0, empty));
        }
    }
}
