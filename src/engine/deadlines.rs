//! The deadlines of a store's entries: each change of one is noted in its partition's heap ([`Expiring`]).

use std::sync::atomic::Ordering;

use hashbrown::HashTable;

use super::change::{Change, LongOld};
use super::clock::Now;
use super::compute::is_live;
use super::entry::Entry;
use super::expiring::Item;
use super::store::{Entries, Store};
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
        let deadline = taken.as_ref().and_then(Entry::deadline);
        self.note_deadline(entries, hash, deadline, None);
        Ok(taken)
    }

    /// Removes an entry of a locked partition whose deadline is not after `now`.
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
            self.note_deadline(entries, hash, removed.deadline(), None);
            return Ok(Due::Removed(removed));
        }
        let earliest = self.earliest_deadline(&entries.table, hash);
        self.counted_heap(entries, |entries| {
            if let Some(expiring) = &mut entries.expiring {
                expiring.correct_first(earliest);
            }
        });
        Ok(Due::Corrected)
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
