//! The state of a data directory that the writing of its log and the writing of snapshots share.

use super::{Copying, Writing};
use crate::log::{Cursor, Log};
use crate::storage::snapshot::SnapshotId;

/// The messages between the writing of the log and the writing of snapshots.
#[derive(Debug, Default)]
pub struct Exchange {
    snapshot: Snapshots,
    /// An operator has ordered one, and it is not wanted yet.
    is_ordered: bool,
    /// The chain that is written, and the index up to which it is durable.
    chain: Option<u32>,
    durable_to: u64,
    /// Cursor of the next record of the chain. It identifies the data set of the chain.
    cursor: Option<Cursor>,
    /// More of it is written, and no sync is under way.
    can_sync: bool,
    /// The log has ended, and all of it is durable.
    has_ended: bool,
    /// A recovery finds the chain that is written.
    is_based: bool,
    /// The writing of the log knows that a snapshot is being written.
    is_beside_snapshot: bool,
    /// No snapshot is wanted any more.
    is_given_up: bool,
}

/// The state of the snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshots {
    /// None is wanted.
    #[default]
    Idle,
    /// One is to be written.
    Wanted,
    /// One is being written.
    Running,
    /// A snapshot is finished: its name, and its bytes.
    Done(SnapshotId, u64),
}

/// The changes by [`Exchange::note`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// A snapshot is wanted now.
    pub wants_snapshot: bool,
    /// The chain is another one, or more of it is durable.
    pub has_moved: bool,
}

impl Exchange {
    /// The state of the snapshots.
    #[must_use]
    pub const fn snapshot(&self) -> Snapshots {
        self.snapshot
    }

    /// Whether there is something for the writing of the log besides the log.
    #[must_use]
    pub fn has_news(&self, log: &Log) -> bool {
        (self.can_sync && log.wanted_durable() > self.durable_to)
            || (self.is_ordered && self.chain.is_some() && self.snapshot == Snapshots::Idle)
            || matches!(self.snapshot, Snapshots::Done(..))
            || (self.is_beside_snapshot && self.snapshot != Snapshots::Running)
    }

    /// Whether the log has ended, and all of it is durable.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether a recovery finds the chain that is written. Until the snapshot of a full copy has its name, it finds the
    /// data set before.
    #[must_use]
    pub const fn is_based(&self) -> bool {
        self.is_based
    }

    /// Whether a snapshot is wanted or being written.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        match self.snapshot {
            Snapshots::Wanted | Snapshots::Running => true,
            Snapshots::Idle | Snapshots::Done(..) => false,
        }
    }

    /// Whether nothing is left to do: the log has ended, and so has the last snapshot.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.has_ended && self.snapshot == Snapshots::Idle
    }

    /// Takes an order for a snapshot. One that is wanted or being written counts. Where there is no chain yet, it waits
    /// for one.
    pub const fn order_snapshot(&mut self) {
        if !self.is_busy() {
            self.is_ordered = true;
        }
    }

    /// Takes the snapshot that has its name, and its bytes. The writing of the log is told of it
    /// ([`Writing::snapshot_done`]).
    pub const fn take_done(&mut self) -> Option<(SnapshotId, u64)> {
        let Snapshots::Done(id, bytes) = self.snapshot else {
            return None;
        };
        self.snapshot = Snapshots::Idle;
        Some((id, bytes))
    }

    /// Notes how far the writing of the log is, and whether it wants a snapshot.
    pub fn note(&mut self, writing: &mut Writing<'_>) -> Noted {
        let is_ordered = self.is_ordered && writing.chain().is_some();
        let wants_snapshot = (writing.wants_snapshot() || is_ordered)
            && self.snapshot == Snapshots::Idle
            && !self.is_given_up;
        if wants_snapshot {
            self.is_ordered = false;
            self.snapshot = Snapshots::Wanted;
            writing.snapshot_began();
        }
        self.is_beside_snapshot = self.snapshot == Snapshots::Running;
        writing.set_beside_snapshot(self.is_beside_snapshot);
        let state = (writing.chain(), writing.durable_to());
        let has_moved = (self.chain, self.durable_to) != state;
        (self.chain, self.durable_to) = state;
        self.cursor = Some(writing.cursor());
        self.can_sync = writing.can_sync();
        self.has_ended = writing.has_ended();
        self.is_based = writing.is_based();
        Noted {
            wants_snapshot,
            has_moved,
        }
    }

    /// Begins the snapshot that is wanted. Returns its chain, and a reader of that chain's data set; `None` where none
    /// is wanted, or where there is no data set.
    pub fn begin_snapshot(&mut self) -> Option<(u32, Cursor)> {
        if self.snapshot != Snapshots::Wanted {
            return None;
        }
        self.snapshot = match self.chain {
            Some(_) => Snapshots::Running,
            None => Snapshots::Idle,
        };
        self.chain.zip(self.cursor)
    }

    /// Ends the snapshot. `done` has its name and bytes; `None` where it was discarded. Then another one is ordered,
    /// since the data set or its history has become another one meanwhile; not once the log has ended.
    pub fn end_snapshot(&mut self, done: Option<(SnapshotId, u64)>) {
        self.is_ordered |= done.is_none() && !self.has_ended;
        self.snapshot = done.map_or(Snapshots::Idle, |(id, bytes)| Snapshots::Done(id, bytes));
    }

    /// Ends the snapshot, which has failed, and has no other one written. For a log that has ended.
    pub const fn give_up_snapshot(&mut self) {
        self.snapshot = Snapshots::Idle;
        self.is_ordered = false;
        self.is_given_up = true;
    }

    /// Has another snapshot written, because the last one has failed.
    pub const fn want_snapshot(&mut self) {
        self.snapshot = Snapshots::Wanted;
    }

    /// Whether a snapshot of this chain, which is copied up to `index`, gets its name: once the chain is durable up to
    /// there. `None` where that is to be asked again. It never gets one where another data set has replaced the one
    /// that is copied, or where the log has ended before.
    #[must_use]
    pub fn may_finish(&self, index: u64, chain: u32, copying: &Copying<'_>) -> Option<bool> {
        if self.chain != Some(chain) || copying.is_replaced() {
            return Some(false);
        }
        let is_durable = self.durable_to >= index;
        (is_durable || self.has_ended).then_some(is_durable)
    }
}
