//! The path of a write with one step out of order: faults that the model in `tests/order` has to find.
#![allow(dead_code)] // used there, where these files are compiled a second time

use std::time::Instant;

use super::answers::Answers;
use super::change::Change;
use super::digest::Digest;
use super::entry::Entry;
use super::execute::{Held, NotDone, NotTogether, Outcome};
use super::prepared::Prepared;
use super::work::{Work, new_entries};
use super::{Engine, PartitionCopy};
use crate::log::{Head, Position};
use crate::wire::Run;

/// A step out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// None: the code as it is.
    Nothing,
    /// Records are appended when the partitions are unlocked.
    AppendAfterUnlock,
    /// Records are appended before the partitions are locked.
    AppendBeforeLock,
    /// The gate is checked before the partitions are locked.
    AdmitBeforeLock,
    /// The index of a partition's copy is read when the partition is unlocked.
    IndexAfterUnlock,
}

impl Engine {
    /// Changes an entry and the digest, and leaves the index: this data set is not its leader's from here on.
    pub(crate) fn plant(&self, entry: Entry, now: Instant) {
        let Head { index, digest } = self.head();
        let new = Digest::of(&entry);
        let old = self.store.set(entry).as_ref().map(Digest::of);
        let digest = digest.changed(old.unwrap_or_default(), new);
        if let Some(sequencer) = &self.sequencer {
            let history = sequencer.log().history();
            sequencer.reset(Head { index, digest }, history, now);
        }
    }

    /// Executes all requests of a run at once, with a step out of order.
    pub(crate) fn execute_planted(
        &self,
        run: &Run<'_>,
        planted: Planted,
        answers: &mut Answers,
    ) -> Result<Outcome, NotTogether> {
        let is_late = match planted {
            Planted::Nothing | Planted::IndexAfterUnlock => {
                return self.execute_together(run, None, answers);
            }
            Planted::AppendAfterUnlock => true,
            Planted::AppendBeforeLock | Planted::AdmitBeforeLock => false,
        };
        let mut held = Held(None);
        let mut prepared = Prepared::of_run(self, run, &mut held)?;
        let digests = Prepared::digests(run);
        let early = self.gate.admits(run.writes() != 0);
        if planted == Planted::AppendBeforeLock {
            let epoch = early.ok_or(NotTogether::NotDone(NotDone::Refused))?;
            if let Some(prepared) = prepared.take() {
                let change = self.change_as_it_seems(run, &digests);
                prepared.append(epoch, run, run.writes(), change);
            }
        }
        let hashes = run.keys().map(|key| self.store.hash(key)).collect();
        let mut locked = loop {
            match self.store.lock(&hashes, run.writes()) {
                Ok(locked) => break locked,
                // Its records are in the log already.
                Err(_) if planted == Planted::AppendBeforeLock => {}
                Err(contended) => return Err(contended.into()),
            }
        };
        let epoch = match planted {
            Planted::AdmitBeforeLock => early.ok_or(NotDone::Refused)?,
            Planted::Nothing
            | Planted::AppendAfterUnlock
            | Planted::AppendBeforeLock
            | Planted::IndexAfterUnlock => self.admitted(run.writes() != 0)?,
        };
        let touched = locked.touch(&hashes, run.writes());
        let new = new_entries(run, touched.vacant);
        let mut work = Work::new(self, &mut prepared, digests, new, Change::new(true));
        let count = work.execute(run, &hashes, &mut locked, answers);
        let index = if is_late {
            drop(locked);
            let (made, change) = (work.made, work.change.digest());
            let prepared = prepared.take();
            prepared.map_or(0, |prepared| prepared.append(epoch, run, made, change))
        } else {
            work.append(run, epoch, &mut locked, answers)
        };
        self.reached(index);
        let position = Position { epoch, index };
        Ok(Outcome { count, position })
    }

    /// The change of the digest by a run of SETs, by the entries that the store has before it is locked.
    fn change_as_it_seems(&self, run: &Run<'_>, digests: &[Digest]) -> Digest {
        let frames = run.frames().enumerate();
        let writes = frames.filter(|(at, _)| run.writes() >> at & 1 == 1);
        writes.fold(Digest::EMPTY, |sum, (at, frame)| {
            let old = self.store.get(frame.key());
            let old = old.as_ref().map(Digest::of).unwrap_or_default();
            sum.changed(old, digests[at])
        })
    }

    /// Copies a partition, with a step out of order.
    pub(crate) fn copy_partition_planted(
        &self,
        partition: usize,
        copy: &mut PartitionCopy,
        planted: Planted,
    ) -> u64 {
        if planted == Planted::IndexAfterUnlock {
            self.store.copy_partition(partition, copy, || ());
            self.head().index
        } else {
            self.copy_partition(partition, copy)
        }
    }
}
