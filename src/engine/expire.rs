//! Removes entries whose deadline has passed.
//!
//! A node hides such entries by its own clock. The leader alone removes them, with records like those of DELs, so that
//! the data sets of all nodes stay equal.

use std::sync::atomic::Ordering;

use super::Engine;
use super::change::{Change, LongOld};
use super::compute::encode;
use super::deadlines::Due;
use super::entry::Entry;
use super::execute::{Held, NotDone};
use super::single::learn;
use super::store::{Entries, Store};
use crate::log::Reservation;
use crate::log::backlog::Records;
use crate::wire::request::HEADER_LEN;
use crate::wire::{KEY_LEN_MAX, Request};

/// Most entries that are removed under one lock.
pub const EXPIRED_MAX: usize = 64;

/// Most items of the heap that are looked at under one lock. Those of entries that live longer are corrected.
const LOOKS_MAX: usize = 2 * EXPIRED_MAX;

/// No further entry is removed under one lock once those that were had so many bytes: all of them are hashed.
const REMOVED_BYTES: usize = 16 << 10;

/// Most bytes of the records of one lock: DELs that are no longer than what was removed, and the longest DEL.
const RECORDS_BYTES_MAX: usize = REMOVED_BYTES + HEADER_LEN + KEY_LEN_MAX;

/// The result of [`Engine::expire`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Entries that were removed.
    pub removed: usize,
    /// Whether more are to be removed from the partition now.
    pub is_more: bool,
    /// Milliseconds for which the first entry that was to be removed had expired; 0 where none was.
    pub late_ms: u64,
}

/// Entries that are removed under one lock.
struct Batch {
    /// Freed after the unlock.
    removed: Vec<Entry>,
    /// Bytes of their frames.
    bytes: usize,
    /// Frames of the records, where there is a log.
    records: Option<Vec<u8>>,
}

impl Engine {
    /// Removes expired entries of a partition, at most [`EXPIRED_MAX`], and logs it. `on_lock` is called each time when
    /// the partition is locked for it, and again when it is about to be unlocked. `room` is as for
    /// [`execute`](Self::execute).
    ///
    /// # Errors
    ///
    /// Where nothing was removed because writes are not admitted, or for want of room or space.
    pub fn expire<'e>(
        &'e self,
        partition: usize,
        room: Option<Reservation<'e>>,
        mut on_lock: impl FnMut(),
    ) -> Result<Expired, NotDone> {
        let now = self.clock().now();
        let Some(first) = self.store.first_deadline(partition) else {
            return Ok(Expired::default());
        };
        let Some(late_ms) = now.checked_sub(first) else {
            return Ok(Expired::default());
        };
        let mut reservation = match &self.sequencer {
            Some(sequencer) => {
                self.check_space(sequencer, || true)?;
                let cost = Records::cost(RECORDS_BYTES_MAX);
                Some((sequencer, Held(room).reserve(sequencer, cost)?))
            }
            None => None,
        };
        let mut change = Change::new(reservation.is_some());
        let mut batch = Batch::new(reservation.is_some());
        loop {
            let mut entries = self.store.write_partition(partition);
            on_lock();
            let Ok(epoch) = self.admitted(true) else {
                #[cfg(test)]
                if crate::planted::is(crate::planted::Fault::FollowerExpires) {
                    let _ = batch.take(&self.store, &mut entries, now, &mut change);
                }
                on_lock();
                return Err(NotDone::Refused);
            };
            let taken = batch.take(&self.store, &mut entries, now, &mut change);
            if let (Err(long), true) = (taken, batch.removed.is_empty()) {
                on_lock();
                learn(entries, &mut change, long);
                continue;
            }
            let removed = batch.removed.len();
            if let (Some((sequencer, room)), Some(records)) =
                (reservation.take(), batch.records.take())
                && let Ok(count @ 1..) = u32::try_from(removed)
            {
                let records = Records::Frames(records);
                entries.last_index = sequencer.append(epoch, records, count, change.digest(), room);
            }
            let is_more = entries.first_deadline().is_some_and(|first| first <= now);
            let is_sparse = entries.is_sparse();
            on_lock();
            let index = entries.last_index;
            drop(entries);
            self.reached(index);
            if is_sparse {
                self.store.shrink_partition(partition, &mut on_lock);
            }
            let count = u64::try_from(removed).unwrap_or(u64::MAX);
            self.expired.fetch_add(count, Ordering::Relaxed);
            return Ok(Expired {
                removed,
                is_more,
                late_ms,
            });
        }
    }

    /// Entries that this node has removed because their deadline had passed.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Whether an entry ever had a deadline.
    #[must_use]
    pub fn has_expiring(&self) -> bool {
        self.store.has_expiring()
    }

    /// Number of entries with a deadline; as exact as [`len`](Self::len).
    #[must_use]
    pub fn expiring(&self) -> usize {
        self.store.expiring()
    }
}

impl Batch {
    /// No entries, and memory for as many as may be removed.
    fn new(is_logged: bool) -> Batch {
        Batch {
            removed: Vec::with_capacity(EXPIRED_MAX),
            bytes: 0,
            records: is_logged.then(|| Vec::with_capacity(REMOVED_BYTES)),
        }
    }

    /// Removes entries of a locked partition, those with the earliest deadlines first.
    ///
    /// # Errors
    ///
    /// [`LongOld`], where `change` needs the digest of the next entry first.
    fn take(
        &mut self,
        store: &Store,
        entries: &mut Entries,
        now: u64,
        change: &mut Change,
    ) -> Result<(), LongOld> {
        for _ in 0..LOOKS_MAX {
            if self.removed.len() == EXPIRED_MAX || self.bytes >= REMOVED_BYTES {
                break;
            }
            match store.take_expired(entries, now, change)? {
                Due::Removed(entry) => {
                    self.bytes += entry.frame().len();
                    if let Some(records) = &mut self.records {
                        encode(&Request::Del { key: entry.key() }, records);
                    }
                    self.removed.push(entry);
                }
                Due::Corrected => {}
                Due::Nothing => break,
            }
        }
        Ok(())
    }
}
