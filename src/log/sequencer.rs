//! Assigns log indexes to writes.
//!
//! Writers call [`Sequencer::append`] while the partitions of their keys are locked: it assigns the next indexes and
//! puts the records into the append queue, under one mutex that is held for nothing else. The replication thread
//! ([`Log::keep`]) moves them from the queue to the backlog. It never waits for a socket.
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

use super::backlog::{Append, Records};
use super::room::Reservation;
use super::{Head, Log, Order, ReceiveError, Step, epoch_record};
use crate::engine::digest::Digest;
use crate::history::{EpochStart, History, HistoryError};

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

    /// Waits for room for records of this cost, behind the writers that wait already. Once the log has
    /// [ended](Self::end) nothing waits. The caller holds no lock.
    #[must_use]
    pub fn reserve(&self, cost: u64) -> Reservation<'_> {
        let reserved = self.log.room.try_reserve(cost);
        reserved.unwrap_or_else(|| self.log.room.reserve(cost))
    }

    /// Assigns the next indexes to `count` records, which changed the data set's digest by `change`, and queues them
    /// for the backlog. Returns the last index. The caller has all partitions of their keys locked for writing.
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
        let mut order = self.log.order.lock();
        debug_assert_eq!(order.epoch(), epoch, "a write of another epoch");
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
            debug_assert!(
                order.received <= order.head.index,
                "records that are not applied"
            );
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
        self.log.watermarks.begin_epoch(start.epoch);
        Ok(())
    }

    /// Begins anew after `head`: a data set of this history has replaced the one before. No write is under way.
    ///
    /// Where the last records of that data set are EPOCHs, they are put into the log again: a follower that lacks
    /// nothing else can then resume.
    pub fn reset(&self, head: Head, history: History) {
        let order = &mut *self.log.order.lock();
        self.log.next_generation(order);
        let last: Vec<Vec<u8>> = history
            .last_records(head.index)
            .iter()
            .map(|start| epoch_record::encode(*start))
            .collect();
        order.head = Head {
            index: head.index - u64::try_from(last.len()).unwrap_or(0),
            digest: head.digest,
        };
        order.history = history;
        order.received = 0;
        let _ = self.log.sender.send(Step::Reset(order.head));
        for frame in last {
            let cost = Records::cost(frame.len());
            self.log.room.take(cost).spend(cost);
            self.queue(order, Records::Frames(frame), 1, Digest::EMPTY);
        }
        self.log.watermarks.reset(order.epoch(), head.index);
    }

    /// A reservation of nothing, for records that the log holds already.
    pub(crate) const fn no_room(&self) -> Reservation<'_> {
        self.log.room.none()
    }

    /// Logs a group of records of the leader at its receipt; they are applied later. The history follows from the EPOCH
    /// records among them. Waits for room in the append queue, with nothing locked.
    ///
    /// # Errors
    ///
    /// Where the group does not begin at the next index, or an epoch does not follow the history. Nothing is logged
    /// then.
    pub fn receive(
        &self,
        first_index: u64,
        records: Records,
        count: u32,
        digest: Digest,
        epochs: &[EpochStart],
    ) -> Result<(), ReceiveError> {
        let cost = Records::cost(records.bytes().len());
        self.log.room.reserve_for_leader(cost).spend(cost);
        let order = &mut *self.log.order.lock();
        let expected = order.last_index() + 1;
        let result = if first_index == expected {
            order.begin_epochs(epochs).map_err(ReceiveError::Epoch)
        } else {
            let got = first_index;
            Err(ReceiveError::Gap { expected, got })
        };
        if let Err(error) = result {
            self.log.room.release(cost);
            return Err(error);
        }
        if !epochs.is_empty() {
            // Before a reader of the log can find the records.
            self.log.next_generation(order);
        }
        order.received = first_index + u64::from(count) - 1;
        let append = Append {
            records,
            count,
            digest,
        };
        let _ = self.log.sender.send(Step::Append(append));
        Ok(())
    }

    /// The next `count` records of the log are applied, which changed the data set's digest by `change`. Returns the
    /// index of the last. The caller has all partitions of their keys locked for writing.
    pub(crate) fn applied(&self, count: u32, change: Digest) -> u64 {
        let mut order = self.log.order.lock();
        order.head.index += u64::from(count);
        order.head.digest = order.head.digest.plus(change);
        debug_assert!(
            order.head.index <= order.received,
            "applied before it is logged"
        );
        order.head.index
    }

    /// An EPOCH record of the log is applied.
    pub(crate) fn applied_epoch(&self, epoch: u64) {
        self.applied(1, Digest::EMPTY);
        self.log.watermarks.begin_epoch(epoch);
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
    }
}
