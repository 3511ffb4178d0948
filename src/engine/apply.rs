//! Logs the records that a leader sends, and applies them once they are committed.
//!
//! [`Engine::receive`] logs a group before any of its records is applied. Where all of them are committed and none
//! waits in front of them, which is the rule, they are applied from the bytes that were received. Otherwise they wait
//! in the log, and [`Engine::apply`] reads them from there. Nothing is appended while records are applied.

use std::fmt;
use std::time::Instant;

use super::Engine;
use super::change::{Change, LongOld, NotPut};
use super::command::Record;
use super::compute::Ahead;
use super::digest::Digest;
use super::entry::Entry;
use super::execute::NotTogether;
use super::single::learn;
use super::store::Entries;
use super::work::{Work, new_entries};
use crate::history::EpochStart;
use crate::log::{Found, Mark, NotLogged, Received, Sequencer, epoch_record};
use crate::wire::replication::{Frames, runs};
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{RequestFrame, Run};

/// Bytes of frames that are read from the log at a time.
const READ_BYTES: usize = 64 << 10;

/// Records that came together, the first of which has `first_index`.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Index of the first record.
    pub first_index: u64,
    /// The records' frames.
    pub records: Frames<'a>,
    /// Index up to which records are committed, of this group or others.
    pub committed: u64,
    /// Digest of the data set after the last record.
    pub digest: Digest,
}

/// Why records were not logged, or could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The records are not logged.
    NotLogged(NotLogged),
    /// The node has no log, and follows no other.
    NoLog,
    /// A record removes a key that is not here: this data set is not the leader's.
    Missing {
        /// That key.
        key: Vec<u8>,
    },
    /// After a record the digest is another one than the leader's.
    Diverged {
        /// The record's index.
        index: u64,
        /// This node's digest.
        own: Digest,
        /// The leader's.
        theirs: Digest,
    },
    /// The log does not have a record that is not applied yet.
    Lost {
        /// Its index.
        index: u64,
    },
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::NotLogged(why) => why.fmt(f),
            ApplyError::NoLog => f.write_str("a node without a log follows no other"),
            ApplyError::Missing { key } => {
                let key = key.escape_ascii().to_string();
                write!(f, "the leader removed {key:.40}, which is not here")
            }
            ApplyError::Diverged { index, own, theirs } => {
                write!(
                    f,
                    "the digest at index {index} is {own}, and the leader's {theirs}"
                )
            }
            ApplyError::Lost { index } => write!(f, "entry {index} is not in the log"),
        }
    }
}

impl std::error::Error for ApplyError {}

impl Engine {
    /// Logs a group that a leader sent, as one append, and applies what is committed of it and of the records in front
    /// of it. No request that writes is admitted, and nothing else receives or applies.
    ///
    /// A program without a thread that [keeps](crate::log::Log::keep) the log calls
    /// [`Log::drain`](crate::log::Log::drain) between the writes of a leader and this.
    ///
    /// # Errors
    ///
    /// Where the group does not continue this log, and nothing is logged; or where the data set turns out not to be the
    /// leader's.
    pub fn receive(&self, group: &Group<'_>, now: Instant) -> Result<(), ApplyError> {
        self.receive_within(group, now, 0)
    }

    /// The same for records of this node's own log. Of those up to index `exact_from` the data set may have some
    /// effects already, or later ones: the snapshot that it began with was copied while they were made. So a key may be
    /// missing that such a record removes. Digests are compared from `exact_from` on.
    ///
    /// # Errors
    ///
    /// Those of [`receive`](Self::receive).
    pub fn replay(
        &self,
        group: &Group<'_>,
        now: Instant,
        exact_from: u64,
    ) -> Result<(), ApplyError> {
        self.receive_within(group, now, exact_from)
    }

    fn receive_within(
        &self,
        group: &Group<'_>,
        now: Instant,
        exact_from: u64,
    ) -> Result<(), ApplyError> {
        let sequencer = self.sequencer.as_ref().ok_or(ApplyError::NoLog)?;
        let (records, count) = (group.records, group.records.count());
        let epochs = epochs_of(group);
        // Copied before anything is locked; log and store share the copy.
        let mut frames = records.iter();
        let long = frames.next().filter(|frame| count == 1 && is_long(frame));
        let entry = long.map(|frame| Entry::copy_of(&frame));
        let received = Received {
            first_index: group.first_index,
            records: records.bytes(),
            entry: entry.as_ref(),
            count,
            epochs: &epochs,
            digest: group.digest,
        };
        let were_waiting = sequencer
            .receive(&received, now)
            .map_err(ApplyError::NotLogged)?;
        let last = group.first_index + u64::from(count) - 1;
        if were_waiting || group.committed < last {
            sequencer.hold_waiting();
            return self.apply(group.committed);
        }
        sequencer.log().watermarks().begin_applying(last);
        if let Some(entry) = entry {
            self.apply_entry(sequencer, entry);
        } else {
            let is_exact = group.first_index > exact_from;
            self.apply_records(sequencer, (records.bytes(), count), is_exact)?;
        }
        if last >= exact_from {
            self.compare(group.digest)?;
        }
        self.committed(sequencer, last);
        Ok(())
    }

    /// Applies the logged records up to this index, which are committed; those that are applied already, or not logged
    /// yet, are left out. No request that writes is admitted, and nothing else receives or applies.
    ///
    /// # Errors
    ///
    /// Where the data set turns out not to be the leader's.
    pub fn apply(&self, committed: u64) -> Result<(), ApplyError> {
        let Some(sequencer) = &self.sequencer else {
            return Ok(());
        };
        let log = sequencer.log();
        let up_to = committed.min(log.last_index());
        let mut at = log.head().index;
        if at >= up_to {
            return Ok(());
        }
        log.watermarks().begin_applying(up_to);
        let lost = |index| Err(ApplyError::Lost { index });
        let mut frames = Vec::new();
        while at < up_to {
            let Some(mut cursor) = log.cursor_after(at) else {
                return lost(at + 1);
            };
            let (count, digest) = match log.try_read(&mut cursor, READ_BYTES, &mut frames) {
                Found::Small(count, digest) => {
                    let left = u32::try_from(up_to - at).unwrap_or(u32::MAX);
                    self.apply_records(sequencer, (&frames, count.min(left)), true)?;
                    (count, digest)
                }
                Found::Large(entry, digest) => {
                    self.apply_entry(sequencer, entry);
                    (1, digest)
                }
                Found::Nothing | Found::Ended | Found::Gone => return lost(at + 1),
            };
            let end = at + u64::from(count);
            at = log.head().index;
            if at == end {
                self.compare(digest)?;
            }
        }
        sequencer.hold_waiting();
        self.committed(sequencer, up_to);
        Ok(())
    }

    /// The records up to this index are committed and applied: answers and watchers may wait for that.
    fn committed(&self, sequencer: &Sequencer, up_to: u64) {
        let log = sequencer.log();
        log.watermarks().advance(Mark::Committed, up_to);
        log.wake_readers();
    }

    /// Compares the digest with the leader's.
    fn compare(&self, theirs: Digest) -> Result<(), ApplyError> {
        let head = self.head();
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::DigestNotCompared) {
            return Ok(());
        }
        if head.digest == theirs {
            return Ok(());
        }
        let (index, own) = (head.index, head.digest);
        Err(ApplyError::Diverged { index, own, theirs })
    }

    /// Applies the first `count` of these records, which are the next ones. Where it `is_exact`, no key may be missing
    /// that they remove.
    fn apply_records(
        &self,
        sequencer: &Sequencer,
        (records, count): (&[u8], u32),
        is_exact: bool,
    ) -> Result<(), ApplyError> {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        let mut missing = None;
        for run in runs(records) {
            let together = if (2..=left).contains(&run.len()) {
                let done = self.apply_together(sequencer, &run, &mut missing);
                done.unwrap_or(0)
            } else {
                0
            };
            for frame in run.frames().take(left).skip(together) {
                self.apply_one(sequencer, &frame, &mut missing);
            }
            if let Some(key) = missing.take().filter(|_| is_exact) {
                return Err(ApplyError::Missing { key });
            }
            left = left.saturating_sub(run.len());
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Applies records of a run with all their partitions locked, and returns how many.
    #[inline(never)]
    fn apply_together(
        &self,
        sequencer: &Sequencer,
        run: &Run<'_>,
        missing: &mut Option<Vec<u8>>,
    ) -> Result<usize, NotTogether> {
        let store = &self.store;
        let mut prepared = None;
        let digests = run.frames().map(|frame| record_digest(&frame)).collect();
        let hashes = run.keys().map(|key| store.hash(key)).collect();
        let mut locked = store.lock(&hashes, run.writes())?;
        let touched = locked.touch(&hashes, run.writes());
        if touched.longest > RUN_FRAME_BYTES_MAX {
            return Err(NotTogether::LongOld);
        }
        let new = new_entries(run, touched.vacant);
        let mut work = Work::new(self, &mut prepared, digests, new, Change::new(true));
        let count = work.apply(run, &hashes, &mut locked, missing);
        let mut index = 0;
        if let Ok(applied @ 1..) = u32::try_from(count) {
            index = sequencer.applied(applied, work.change.digest());
            locked.set_last_index(index);
        }
        // Before the replaced entries are freed.
        drop(locked);
        self.reached(index);
        Ok(count)
    }

    fn apply_one(
        &self,
        sequencer: &Sequencer,
        frame: &RequestFrame<'_>,
        missing: &mut Option<Vec<u8>>,
    ) {
        let store = &self.store;
        let key = frame.key();
        match Record::of(frame) {
            Record::Put if is_long(frame) => self.apply_entry(sequencer, Entry::copy_of(frame)),
            Record::Put => {
                let (hash, added) = (store.hash(key), record_digest(frame));
                self.apply_alone(sequencer, hash, added, |entries, change| {
                    let put = store.put_frame(entries, hash, frame, None, change);
                    put.map_err(NotPut::unlimited)
                });
            }
            Record::Remove => {
                let hash = store.hash(key);
                let removed =
                    self.apply_alone(sequencer, hash, Digest::EMPTY, |entries, change| {
                        store.take(entries, hash, key, None, change)
                    });
                if removed.is_none() {
                    missing.get_or_insert_with(|| key.to_vec());
                }
            }
            Record::Expire(deadline) => {
                if !self.apply_expire(sequencer, key, deadline) {
                    missing.get_or_insert_with(|| key.to_vec());
                }
            }
            Record::Batch => self.apply_batch(sequencer, frame.value(), missing),
            Record::Epoch => {
                let index = sequencer.applied(1, Digest::EMPTY);
                self.reached(index);
                if let Some(start) = epoch_record::decode(frame, index) {
                    self.gate.set_epoch(start.epoch);
                }
            }
        }
    }

    /// Applies an EXPIRE. Returns whether the key is there.
    fn apply_expire(&self, sequencer: &Sequencer, key: &[u8], deadline: Option<u64>) -> bool {
        let hash = self.store.hash(key);
        let (mut change, mut ahead) = (Change::new(true), Ahead::default());
        loop {
            let mut entries = self.store.write(hash);
            let state = (&mut change, &mut ahead);
            match self.store.expire(&mut entries, hash, key, deadline, state) {
                Ok(replaced) => {
                    let index = sequencer.applied(1, change.digest());
                    entries.last_index = index;
                    drop(entries);
                    self.reached(index);
                    return replaced.is_some();
                }
                Err(needed) => {
                    drop(entries);
                    ahead.prepare(key, &mut change, *needed);
                }
            }
        }
    }

    /// Applies a SET whose entry is made already.
    fn apply_entry(&self, sequencer: &Sequencer, entry: Entry) {
        let (hash, added) = (self.store.hash(entry.key()), Digest::of(&entry));
        let mut given = Some(entry);
        self.apply_alone(sequencer, hash, added, |entries, change| {
            let Some(entry) = given.take() else {
                unreachable!("an entry that is not stored is given back")
            };
            let put = self.store.put_entry(entries, hash, entry, change);
            put.map_err(|(why, entry)| {
                given = Some(entry);
                why.unlimited()
            })
        });
    }

    /// Applies one record, which adds an entry of this digest: `change_entries` changes the partition of `hash`, with
    /// that locked. Returns the entry that it replaced or removed.
    fn apply_alone(
        &self,
        sequencer: &Sequencer,
        hash: u64,
        added: Digest,
        mut change_entries: impl FnMut(&mut Entries, &mut Change) -> Result<Option<Entry>, LongOld>,
    ) -> Option<Entry> {
        let mut change = Change::new(true);
        loop {
            let mut entries = self.store.write(hash);
            match change_entries(&mut entries, &mut change) {
                Ok(old) => {
                    change.adds(added);
                    let index = sequencer.applied(1, change.digest());
                    entries.last_index = index;
                    drop(entries);
                    self.reached(index);
                    return old;
                }
                Err(long) => learn(entries, &mut change, long),
            }
        }
    }
}

/// The digest of the entry that a record makes, if it makes one.
#[inline]
fn record_digest(frame: &RequestFrame<'_>) -> Digest {
    match Record::of(frame) {
        Record::Put => Digest::of_frame(frame.bytes()),
        Record::Remove | Record::Expire(_) | Record::Batch | Record::Epoch => Digest::EMPTY,
    }
}

/// Whether a record's entry is made before its partition is locked.
fn is_long(frame: &RequestFrame<'_>) -> bool {
    Record::of(frame) == Record::Put && frame.bytes().len() > RUN_FRAME_BYTES_MAX
}

/// The epochs that the records of a group begin.
fn epochs_of(group: &Group<'_>) -> Vec<EpochStart> {
    if !group.records.has_epochs() {
        return Vec::new();
    }
    let records = (group.first_index..).zip(group.records);
    let epochs = records.filter_map(|(index, frame)| epoch_record::decode(&frame, index));
    epochs.collect()
}
