//! Applies the leader's records on a follower.

use std::collections::VecDeque;
use std::fmt;

use super::Engine;
use super::change::Change;
use super::command::{self, Command};
use super::digest::Digest;
use super::entry::Entry;
use super::execute::{NotTogether, Origin};
use super::prepared::Prepared;
use super::work::{Work, new_entries};
use crate::history::{EpochStart, HistoryError};
use crate::log::backlog::Records;
use crate::log::{ReceiveError, epoch_record};
use crate::wire::replication::{Frames, runs};
use crate::wire::request::frames;
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{Opcode, RequestFrame, Run};

/// Records that came together, the first of which has `first_index`.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Index of the first record.
    pub first_index: u64,
    /// SET, DEL and EPOCH frames, one record each.
    pub records: Frames<'a>,
    /// The leader's digest after the last record.
    pub digest: Digest,
}

impl Group<'_> {
    /// Index of the last record.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.first_index + u64::from(self.records.count()) - 1
    }
}

/// A group that is logged, and not applied, or not all of it.
#[derive(Debug)]
pub(super) struct Pending {
    first_index: u64,
    last_index: u64,
    /// The frames.
    bytes: Vec<u8>,
    /// Bytes and records of it that are applied.
    applied: (usize, u64),
    digest: Digest,
}

/// Why a group was not logged, or a record not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The group does not begin at the next index. Nothing was logged.
    Gap {
        /// The next index.
        expected: u64,
        /// The index of the group's first record.
        got: u64,
    },
    /// A record removes a key that is not here: this data set is not the leader's.
    Missing {
        /// That key.
        key: Vec<u8>,
    },
    /// An EPOCH record does not follow the history of this data set. Nothing was logged.
    Epoch(HistoryError),
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Gap { expected, got } => write!(f, "entry {got} came, expected {expected}"),
            ApplyError::Missing { key } => {
                let key = key.escape_ascii().to_string();
                write!(f, "the leader removed {key:.40}, which is not here")
            }
            ApplyError::Epoch(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ApplyError {}

impl From<ReceiveError> for ApplyError {
    fn from(error: ReceiveError) -> ApplyError {
        match error {
            ReceiveError::Gap { expected, got } => ApplyError::Gap { expected, got },
            ReceiveError::Epoch(error) => ApplyError::Epoch(error),
        }
    }
}

impl Engine {
    /// Logs a group of the leader's records, whatever is admitted, and applies what of the log is committed: up to the
    /// index `committed`. Records beyond it wait for [`apply`](Self::apply), or for the next group. Applying never
    /// appends. Waits for room in the append queue, with nothing locked.
    ///
    /// Returns the leader's digest at the last record that is applied, where a group ends there.
    ///
    /// # Errors
    ///
    /// Where the group does not continue this data set.
    pub fn receive(&self, group: &Group<'_>, committed: u64) -> Result<Option<Digest>, ApplyError> {
        let Some(sequencer) = &self.sequencer else {
            return Ok(None);
        };
        let Group {
            first_index,
            records,
            digest,
        } = *group;
        let mut pending = self.pending.lock();
        let is_next = pending.is_empty() && self.head().index + 1 == first_index;
        let entry = long_entry(records);
        let logged = match &entry {
            Some(entry) => Records::Entry(entry.clone()),
            None => Records::Frames(records.bytes().to_vec()),
        };
        let epochs = epochs_of(group);
        sequencer.receive(first_index, logged, records.count(), digest, &epochs)?;
        if !is_next || committed < group.last_index() {
            pending.push_back(Pending {
                first_index,
                last_index: group.last_index(),
                bytes: records.bytes().to_vec(),
                applied: (0, 0),
                digest,
            });
            return self.apply_pending(&mut pending, committed);
        }
        match entry {
            Some(entry) => drop(self.set_entry(entry, &mut Origin::Log)),
            None => self.apply_frames(records.runs(), records.has_epochs())?,
        }
        Ok(Some(digest))
    }

    /// Applies the records of the log up to the index `committed`, as far as they are received. Returns what
    /// [`receive`](Self::receive) returns.
    ///
    /// # Errors
    ///
    /// Where a record shows that this data set is not the leader's.
    pub fn apply(&self, committed: u64) -> Result<Option<Digest>, ApplyError> {
        self.apply_pending(&mut self.pending.lock(), committed)
    }

    fn apply_pending(
        &self,
        pending: &mut VecDeque<Pending>,
        committed: u64,
    ) -> Result<Option<Digest>, ApplyError> {
        let mut digest = None;
        while let Some(group) = pending.front_mut()
            && group.first_index + group.applied.1 <= committed
        {
            let (from, applied) = group.applied;
            let count = committed.min(group.last_index) + 1 - group.first_index - applied;
            let rest = &group.bytes[from..];
            let len = frames(rest)
                .take(usize::try_from(count).unwrap_or(usize::MAX))
                .map(|frame| frame.bytes().len())
                .sum::<usize>();
            self.apply_frames(runs(&rest[..len]), true)?;
            group.applied = (from + len, applied + count);
            if group.first_index + group.applied.1 <= group.last_index {
                return Ok(None);
            }
            digest = Some(group.digest);
            pending.pop_front();
        }
        Ok(digest)
    }

    /// Applies records that the log holds, in their order.
    fn apply_frames<'a>(
        &self,
        runs: impl Iterator<Item = Run<'a>>,
        has_epochs: bool,
    ) -> Result<(), ApplyError> {
        let mut missing = None;
        for run in runs {
            if has_epochs && self.apply_epoch(&run) {
                continue;
            }
            let together = match run.len() {
                1 => 0,
                _ => self.apply_together(&run, &mut missing).unwrap_or(0),
            };
            for frame in run.frames().skip(together) {
                self.apply_one(&frame, &mut missing);
            }
            if let Some(key) = missing {
                return Err(ApplyError::Missing { key });
            }
        }
        Ok(())
    }

    /// Applies the record of a run that is an EPOCH. Returns whether it is.
    fn apply_epoch(&self, run: &Run<'_>) -> bool {
        let start = run
            .frames()
            .next()
            .and_then(|frame| epoch_record::decode(&frame, 0));
        if let (Some(start), Some(sequencer)) = (start, &self.sequencer) {
            self.gate.set_epoch(start.epoch);
            sequencer.applied_epoch(start.epoch);
        }
        start.is_some()
    }

    /// Applies records of a run with all their partitions locked, and returns how many.
    #[inline(never)]
    fn apply_together(
        &self,
        run: &Run<'_>,
        missing: &mut Option<Vec<u8>>,
    ) -> Result<usize, NotTogether> {
        let store = &self.store;
        let mut prepared = Prepared::of_run(self, run, &mut Origin::Log)?;
        let digests = prepared.as_ref().map(|_| Prepared::digests(run));
        let hashes = run.keys().map(|key| store.hash(key)).collect();
        let mut locked = store.lock(&hashes, run.writes())?;
        let touched = locked.touch(&hashes, run.writes());
        if touched.longest > RUN_FRAME_BYTES_MAX {
            return Err(NotTogether::LongOld);
        }
        let mut work = Work {
            engine: self,
            change: Change::new(prepared.is_some()),
            prepared: &mut prepared,
            digests: digests.unwrap_or_default(),
            made: 0,
            new: new_entries(run, touched.vacant),
            replaced: Vec::new(),
        };
        let count = work.apply(run, &hashes, &mut locked, missing);
        work.append(run, self.gate.epoch(), &mut locked);
        // Before the replaced entries are freed.
        drop(locked);
        Ok(count)
    }

    fn apply_one(&self, frame: &RequestFrame<'_>, missing: &mut Option<Vec<u8>>) {
        let key = frame.key();
        let mut origin = Origin::Log;
        let is_here = match command::of(frame.opcode()) {
            Command::Set => self.set_one(frame, &mut origin).is_ok(),
            Command::Del => {
                let done = self.del_one(frame, key, &mut origin);
                done.is_ok_and(|(_, removed)| removed.is_some())
            }
            Command::Get | Command::Computed(_) | Command::None => {
                unreachable!("a record is its own effect")
            }
        };
        if !is_here {
            missing.get_or_insert_with(|| key.to_vec());
        }
    }
}

/// The entry of a group that is one long SET: it is copied once, and the log shares it with the store.
fn long_entry(records: Frames<'_>) -> Option<Entry> {
    if records.count() != 1 || records.bytes().len() <= RUN_FRAME_BYTES_MAX {
        return None;
    }
    let frame = records.iter().next()?;
    (frame.opcode() == Opcode::Set).then(|| Entry::copy_of(&frame))
}

/// The epochs that begin in a group.
fn epochs_of(group: &Group<'_>) -> Vec<EpochStart> {
    if !group.records.has_epochs() {
        return Vec::new();
    }
    let indexed = (group.first_index..).zip(group.records.iter());
    indexed
        .filter_map(|(index, frame)| epoch_record::decode(&frame, index))
        .collect()
}
