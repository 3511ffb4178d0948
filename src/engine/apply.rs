//! Applies the leader's records on a follower.

use std::fmt;

use super::Engine;
use super::change::Change;
use super::execute::Origin;
use super::prepared::Prepared;
use super::store::Contended;
use super::work::{new_entries, short};
use crate::wire::replication::Frames;
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{Opcode, RequestFrame, Run};

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
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Gap { expected, got } => write!(f, "entry {got} came, expected {expected}"),
            ApplyError::Missing { key } => {
                let key = key.escape_ascii().to_string();
                write!(f, "the leader removed {key:.40}, which is not here")
            }
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
            if run.len() == 1 || self.apply_together(&run, &mut missing).is_err() {
                for frame in run.frames() {
                    self.apply_one(&frame, &mut missing);
                }
            }
            if let Some(key) = missing {
                return Err(ApplyError::Missing { key });
            }
        }
        Ok(())
    }

    /// Applies all records of a run with all their partitions locked.
    #[inline(never)]
    fn apply_together(
        &self,
        run: &Run<'_>,
        missing: &mut Option<Vec<u8>>,
    ) -> Result<(), Contended> {
        let store = &self.store;
        let mut origin = Origin::Leader;
        let prepared = Prepared::of_run(self, run, &mut origin).map_err(|_| Contended)?;
        let digests = prepared.as_ref().map(|_| Prepared::digests(run));
        let digests = digests.unwrap_or_default();
        let hashes = run.keys().map(|key| store.hash(key)).collect();
        let mut locked = store.lock(&hashes, run.writes())?;
        let touched = locked.touch(&hashes, run.writes());
        if touched.longest > RUN_FRAME_BYTES_MAX {
            return Err(Contended);
        }
        let mut new = new_entries(run, touched.vacant);
        let mut change = Change::new(prepared.is_some());
        let mut made = 0_u16;
        let mut replaced = Vec::new();
        for (at, (frame, &hash)) in run.frames().zip(&hashes).enumerate() {
            let entries = locked.of_mut(at);
            let key = frame.key();
            let is_del = frame.opcode() == Opcode::Del;
            let old = if is_del {
                short(store.take(entries, hash, key, &mut change))
            } else {
                let new = new.get_mut(at).and_then(Option::take);
                short(store.put_frame(entries, hash, &frame, new, &mut change))
            };
            if is_del && old.is_none() {
                missing.get_or_insert_with(|| key.to_vec());
                continue;
            }
            replaced.extend(old);
            made |= 1 << at;
            if let Some(&added) = digests.get(at) {
                change.adds(added);
            }
        }
        if let Some(prepared) = prepared
            && made != 0
        {
            let index = prepared.append(self.gate.epoch(), run, made, change.digest());
            locked.set_last_index(index);
        }
        // Before the replaced entries are freed.
        drop(locked);
        Ok(())
    }

    fn apply_one(&self, frame: &RequestFrame<'_>, missing: &mut Option<Vec<u8>>) {
        let key = frame.key();
        let mut origin = Origin::Leader;
        let is_here = if frame.opcode() == Opcode::Del {
            let done = self.del_one(frame, key, &mut origin);
            done.is_ok_and(|(_, removed)| removed.is_some())
        } else {
            self.set_one(frame, &mut origin).is_ok()
        };
        if !is_here {
            missing.get_or_insert_with(|| key.to_vec());
        }
    }
}
