//! Assigns log indexes to writes.
//!
//! On a leader, writers call [`Sequencer::append`] while the partitions of their keys are locked: it assigns the next
//! indexes and puts the records into the append queue, under one mutex that is held for nothing else. The replication
//! thread ([`Log::keep`]), or on a node with a disk the log-writer thread, moves them from the queue to the backlog. It
//! never waits for a socket.
//!
//! On a follower, one thread calls [`Sequencer::receive`] with the records that a leader sends, which puts them into
//! the backlog, and [`Sequencer::applied`] while the partitions of those that it applies are locked.
//!
//! # Invariants
//!
//! 1. For each key, the order of the log is the order of the store: the index is assigned, and the queue filled, while
//!    the key's partition is locked for writing.
//! 2. The order of the queue is the order of indexes, since both are under one mutex.
//! 3. While a partition is locked for reading, no writer is between taking an index and changing that partition.
//!    Snapshots rely on it.
//! 4. Records are appended under the epoch in which they were executed: the writer reads the epoch with its partitions
//!    locked, and an epoch ends only after every partition was locked and unlocked once.
//! 5. Each epoch of the history begins with its EPOCH record. Both are added at once.
//! 6. Records are received and applied by one thread, which runs only while no write is admitted.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::append_times::AppendTimes;
use super::backlog::{Append, Records};
use super::room::Reservation;
use super::{Head, Log, Order, Step, epoch_record};
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::history::{EpochStart, History, HistoryError};

/// Records that a leader sent.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Index of the first of them.
    pub first_index: u64,
    /// Their frames, one behind the other.
    pub records: &'a [u8],
    /// The one record, where there is no other and the store is to share it.
    pub entry: Option<&'a Entry>,
    /// How many there are, 1 at least.
    pub count: u32,
    /// The epochs that they begin.
    pub epochs: &'a [EpochStart],
    /// Digest of the data set after the last of them.
    pub digest: Digest,
}

/// Why records of a leader were not logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLogged {
    /// They do not begin at the next index.
    Gap {
        /// The next index.
        expected: u64,
        /// The index of the first of them.
        got: u64,
    },
    /// An EPOCH among them does not follow the history.
    Epoch(HistoryError),
    /// The records that wait to be committed already count for more than the backlog may have.
    Overfull,
}

impl fmt::Display for NotLogged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotLogged::Gap { expected, got } => write!(f, "entry {got} came, expected {expected}"),
            NotLogged::Epoch(error) => error.fmt(f),
            NotLogged::Overfull => {
                f.write_str("more entries wait to be committed than backlog_bytes allows")
            }
        }
    }
}

/// The writing side of a [`Log`]. The engine owns it.
#[derive(Debug)]
pub struct Sequencer {
    log: Log,
}

impl Sequencer {
    /// A log without records that keeps at most `backlog_bytes`.
    #[must_use]
    pub fn new(backlog_bytes: u64) -> Sequencer {
        Sequencer {
            log: Log::new(backlog_bytes),
        }
    }

    /// The reading side.
    #[must_use]
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Reserves room for records of this cost ([`Records::cost`]), or returns `None` where there is none. Never waits.
    #[must_use]
    pub fn try_reserve(&self, cost: u64) -> Option<Reservation<'_>> {
        self.log.room.try_reserve(cost)
    }

    /// Reserves room for records of this cost, whether there is some or not; `None` while writes are
    /// [held](Self::hold_writes). For records without which a writer that has room already cannot go on.
    #[must_use]
    pub fn reserve_beyond(&self, cost: u64) -> Option<Reservation<'_>> {
        self.log.room.take_unless_paused(cost)
    }

    /// Waits for room for records of this cost, behind the writers that wait already. Once the log has
    /// [ended](Self::end) nothing waits. The caller holds no lock.
    #[must_use]
    pub fn reserve(&self, cost: u64) -> Reservation<'_> {
        let reserved = self.log.room.try_reserve(cost);
        reserved.unwrap_or_else(|| self.log.room.reserve(cost))
    }

    /// Assigns the next indexes to `count` records, which changed the data set's digest by `change`, and queues them
    /// for the backlog. Returns the last index. The caller has all partitions of their keys locked for writing, and
    /// calls [`Log::reached`] once it has unlocked them.
    ///
    /// # Panics
    ///
    /// In debug builds where `epoch` is not the log's: a write was executed after its epoch had ended.
    pub fn append(
        &self,
        epoch: u64,
        records: Records,
        count: u32,
        change: Digest,
        reservation: Reservation<'_>,
    ) -> u64 {
        reservation.spend(Records::cost(records.bytes().len()));
        #[cfg(test)]
        super::tap::note(records.bytes());
        let mut order = self.log.order.lock();
        debug_assert_eq!(order.epoch(), epoch, "a write of another epoch");
        debug_assert_eq!(order.waiting, 0, "a write before records are applied");
        self.queue(&mut order, records, count, change)
    }

    /// Adds records to the end of the order. Returns the last index.
    #[inline]
    fn queue(&self, order: &mut Order, records: Records, count: u32, change: Digest) -> u64 {
        order.head.index += u64::from(count);
        order.head.digest = order.head.digest.plus(change);
        let head = order.head;
        let append = Append {
            records,
            count,
            digest: head.digest,
        };
        // The log holds a receiver itself, so the channel is never closed.
        let _ = self.log.sender.send(Step::Append(append));
        head.index
    }

    /// Begins an epoch with its EPOCH record, which takes the next index and does not change the digest. No write of
    /// another epoch is under way. Never waits for room.
    ///
    /// # Errors
    ///
    /// Where the epoch cannot follow the history, or does not start at the next index. Nothing is changed then.
    pub fn begin_epoch(&self, start: EpochStart) -> Result<(), HistoryError> {
        let records = Records::Frames(epoch_record::encode(start));
        let cost = Records::cost(records.bytes().len());
        let room = self.log.room.take(cost);
        {
            let order = &mut *self.log.order.lock();
            let (got, next) = (start.start_index, order.head.index + 1);
            if got != next {
                return Err(HistoryError::NotNext { got, next });
            }
            order.history.push(start)?;
            // Before a reader of the log can find the record.
            self.log.next_generation(order);
            room.spend(cost);
            self.queue(order, records, 1, Digest::EMPTY);
        }
        self.log.wake_writer();
        self.log.watermarks.begin_epoch(start.epoch);
        Ok(())
    }

    /// Logs records that a leader sent, as one append. None of them is applied yet. Returns whether records before them
    /// are not applied either.
    ///
    /// # Errors
    ///
    /// Where the records are not the next ones, or begin an epoch that cannot follow the history. Nothing is logged
    /// then.
    pub fn receive(&self, received: &Received<'_>, now: Instant) -> Result<bool, NotLogged> {
        let count = u64::from(received.count);
        let kept = &mut *self.log.caught_up();
        if kept.is_overfull() {
            return Err(NotLogged::Overfull);
        }
        let were_waiting = {
            let order = &mut *self.log.order.lock();
            let (expected, got) = (order.last_index() + 1, received.first_index);
            if got != expected {
                return Err(NotLogged::Gap { expected, got });
            }
            if !received.epochs.is_empty() {
                let mut history = order.history.clone();
                let mut epochs = received.epochs.iter();
                epochs
                    .try_for_each(|start| history.push(*start))
                    .map_err(NotLogged::Epoch)?;
                order.history = history;
                // Before a reader of the log can find the record.
                self.log.next_generation(order);
            }
            let were_waiting = order.waiting > 0;
            order.waiting += count;
            were_waiting
        };
        let (records, entry) = (received.records, received.entry);
        let (first, last) = (received.first_index, received.first_index + count - 1);
        kept.backlog
            .push_frames(records, entry, received.count, received.digest);
        kept.times.note(first, last, now);
        self.log.grown.notify_all();
        if kept.written.is_some() {
            self.log.wake_writer();
        }
        Ok(were_waiting)
    }

    /// The next `count` of the records that are logged and not applied yet are applied, and changed the data set's
    /// digest by `change`. Returns the index of the last of them. The caller has all partitions of their keys locked
    /// for writing, and calls [`Log::reached`] once it has unlocked them.
    pub fn applied(&self, count: u32, change: Digest) -> u64 {
        let mut order = self.log.order.lock();
        debug_assert!(order.waiting >= u64::from(count), "not logged before");
        order.waiting -= u64::from(count);
        order.head.index += u64::from(count);
        order.head.digest = order.head.digest.plus(change);
        order.head.index
    }

    /// Holds the records that wait to be applied in the backlog, or no records where none waits.
    pub fn hold_waiting(&self) {
        let kept = &mut *self.log.kept.lock();
        let order = self.log.order.lock();
        let first = (order.waiting > 0).then_some(order.head.index + 1);
        drop(order);
        kept.first_waiting = first;
        kept.hold();
    }

    /// Begins anew after `head`: a data set of this history has replaced the one before. No write is under way, and
    /// nothing is received or applied.
    ///
    /// Where the last records of that data set are EPOCHs, they are put into the log again: a follower that lacks
    /// nothing else can then resume.
    pub fn reset(&self, head: Head, history: History, now: Instant) {
        let mut times = AppendTimes::default();
        times.reset(head.index, now);
        self.begin_anew(head, history, times, true);
    }

    /// Begins anew as [`reset`](Self::reset) does, with a data set that has changes from behind `head` already. So its
    /// digest is that of no index, and no EPOCHs are put into the log again.
    pub fn reset_inexact(&self, head: Head, history: History, now: Instant) {
        let mut times = AppendTimes::default();
        times.reset(head.index, now);
        self.begin_anew(head, history, times, false);
    }

    /// Begins anew with nothing, as [`reset`](Self::reset) does.
    pub fn clear(&self) {
        let times = AppendTimes::default();
        self.begin_anew(Head::default(), History::default(), times, true);
    }

    fn begin_anew(&self, head: Head, history: History, times: AppendTimes, is_exact: bool) {
        let kept = &mut *self.log.caught_up();
        let order = &mut *self.log.order.lock();
        self.log.next_generation(order);
        let last = if is_exact {
            history.last_records(head.index)
        } else {
            &[]
        };
        let base = head.index - u64::try_from(last.len()).unwrap_or(0);
        kept.generation += 1;
        if kept.written.is_some() {
            // The disk has nothing of it yet.
            kept.written = Some(head.index);
            kept.first_waiting = None;
            for (_, cost) in kept.unwritten.drain(..) {
                self.log.room.release(cost);
            }
        }
        kept.backlog.reset(base, is_exact.then_some(head.digest));
        for start in last {
            let frame = epoch_record::encode(*start);
            kept.backlog.push_frames(&frame, None, 1, head.digest);
        }
        kept.hold();
        kept.times = times;
        *order = Order {
            head,
            waiting: 0,
            history,
        };
        // Indices of the data set before say nothing about this one.
        self.log.wanted_durable.store(0, Ordering::SeqCst);
        self.log.watermarks.reset(order.epoch(), head.index);
        self.log.grown.notify_all();
        self.log.wake_writer();
    }

    /// Has writers wait for room, whether there is some or not, or no longer.
    pub fn hold_writes(&self, is_held: bool) {
        if is_held {
            self.log.room.pause();
        } else {
            self.log.room.resume();
        }
    }

    /// Ends the log: [`Log::keep`] returns once everything appended before is in the backlog, and no writer waits for
    /// room any more.
    pub fn end(&self) {
        self.log.room.end();
        let _ = self.log.sender.send(Step::End);
        self.log.wake_writer();
    }
}
