//! Applies the leader's records on a follower.

use std::fmt;

use super::Engine;
use super::change::Change;
use super::command::{self, Command};
use super::execute::{NotTogether, Origin};
use super::prepared::Prepared;
use super::work::{Work, new_entries};
use crate::history::HistoryError;
use crate::log::epoch_record;
use crate::wire::replication::Frames;
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{RequestFrame, Run};

/// Records that came together, the first of which has `first_index`.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Index of the first record.
    pub first_index: u64,
    /// SET and DEL frames, one record each.
    pub records: Frames<'a>,
}

/// Why a group was not applied, or is not the continuation of this data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The group does not begin at the next index. Nothing was applied.
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
    /// An EPOCH record does not follow the history of this data set.
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

impl Engine {
    /// Applies the leader's records, in their order and whatever is admitted. They take the same indexes in this
    /// node's own log. Waits for room in the append queue, with nothing locked.
    ///
    /// # Errors
    ///
    /// Where the group does not continue this data set.
    pub fn apply(&self, group: &Group<'_>) -> Result<(), ApplyError> {
        let expected = self.head().index + 1;
        let got = group.first_index;
        if got != expected {
            return Err(ApplyError::Gap { expected, got });
        }
        let mut missing = None;
        for run in group.records.runs() {
            if group.records.has_epochs() && self.apply_epoch(&run)? {
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
    fn apply_epoch(&self, run: &Run<'_>) -> Result<bool, ApplyError> {
        let next = self.head().index + 1;
        let mut frames = run.frames();
        let start = frames
            .next()
            .and_then(|frame| epoch_record::decode(&frame, next));
        if let (Some(start), Some(sequencer)) = (start, &self.sequencer) {
            sequencer.begin_epoch(start).map_err(ApplyError::Epoch)?;
            self.gate.set_epoch(start.epoch);
        }
        Ok(start.is_some())
    }

    /// Applies records of a run with all their partitions locked, and returns how many.
    #[inline(never)]
    fn apply_together(
        &self,
        run: &Run<'_>,
        missing: &mut Option<Vec<u8>>,
    ) -> Result<usize, NotTogether> {
        let store = &self.store;
        let mut prepared = Prepared::of_run(self, run, &mut Origin::Leader)?;
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
        let mut origin = Origin::Leader;
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
