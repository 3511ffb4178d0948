//! Writes that are executed one by one: with their own partition locked, for which they wait.

use super::Engine;
use super::answers::Answers;
use super::change::{Change, LongOld, NotPut};
use super::clock::Now;
use super::command::Function;
use super::compute::{Ahead, Call, Computed, NotYet};
use super::digest::Digest;
use super::entry::Entry;
use super::execute::{Held, NotDone};
use super::prepared::{Prepared, digest};
use super::store::Entries;
use crate::log::{Position, Reservation};
use crate::wire::RequestFrame;
use crate::wire::run::RUN_FRAME_BYTES_MAX;

impl Engine {
    /// Stores the entry of one SET frame.
    pub(super) fn set_one<'e>(
        &'e self,
        frame: &RequestFrame<'_>,
        held: &mut Held<'e>,
    ) -> Result<Position, NotDone> {
        if frame.bytes().len() > RUN_FRAME_BYTES_MAX {
            // Copied before anything is locked; the log shares the copy.
            let put = self.set_entry(Entry::copy_of(frame), held);
            return put.map(|(position, _)| position).map_err(|(why, _)| why);
        }
        let prepared = Prepared::of_one(self, frame, held)?;
        let added = prepared.as_ref().map_or(Digest::EMPTY, |_| digest(frame));
        let hash = self.store.hash(frame.key());
        let mut change = Change::of_client(prepared.is_some());
        loop {
            let mut entries = self.store.write(hash);
            let epoch = self.admitted(true)?;
            match self
                .store
                .put_frame(&mut entries, hash, frame, None, &mut change)
            {
                Ok(replaced) => {
                    let index = append_one(prepared, added, epoch, &mut entries, &mut change);
                    drop(entries);
                    self.reached(index);
                    drop(replaced);
                    return Ok(Position { epoch, index });
                }
                Err(why) => self.unblock(entries, &mut change, why)?,
            }
        }
    }

    /// Removes the key of one DEL frame. Returns its entry.
    pub(super) fn del_one<'e>(
        &'e self,
        frame: &RequestFrame<'_>,
        key: &[u8],
        held: &mut Held<'e>,
    ) -> Result<(Position, Option<Entry>), NotDone> {
        let prepared = Prepared::of_one(self, frame, held)?;
        let added = Digest::EMPTY;
        let hash = self.store.hash(key);
        let mut change = Change::new(prepared.is_some());
        loop {
            let mut entries = self.store.write(hash);
            let clock = Now::of(&self.clock);
            let epoch = self.admitted(true)?;
            match self
                .store
                .take(&mut entries, hash, key, Some(&clock), &mut change)
            {
                Ok(removed) => {
                    let index = if removed.is_some() {
                        append_one(prepared, added, epoch, &mut entries, &mut change)
                    } else {
                        entries.last_index
                    };
                    drop(entries);
                    self.reached(index);
                    return Ok((Position { epoch, index }, removed));
                }
                Err(long) => learn(entries, &mut change, long),
            }
        }
    }

    /// Executes a SET whose entry is already made. Returns the position that its answer waits for, and the entry that
    /// it replaced. Adds no answer. `room` is as for [`execute`](Self::execute).
    ///
    /// # Errors
    ///
    /// Where nothing was done; with the entry.
    pub fn set<'e>(
        &'e self,
        entry: Entry,
        room: Option<Reservation<'e>>,
    ) -> Result<(Position, Option<Entry>), (NotDone, Entry)> {
        self.set_entry(entry, &mut Held(room))
    }

    pub(super) fn set_entry<'e>(
        &'e self,
        mut entry: Entry,
        held: &mut Held<'e>,
    ) -> Result<(Position, Option<Entry>), (NotDone, Entry)> {
        let prepared = match Prepared::of_entry(self, &entry, held) {
            Ok(prepared) => prepared,
            Err(not_done) => return Err((not_done, entry)),
        };
        let added = prepared
            .as_ref()
            .map_or(Digest::EMPTY, |_| Digest::of(&entry));
        let hash = self.store.hash(entry.key());
        let mut change = Change::of_client(prepared.is_some());
        loop {
            let mut entries = self.store.write(hash);
            let epoch = match self.admitted(true) {
                Ok(epoch) => epoch,
                Err(not_done) => return Err((not_done, entry)),
            };
            match self.store.put_entry(&mut entries, hash, entry, &mut change) {
                Ok(replaced) => {
                    let index = append_one(prepared, added, epoch, &mut entries, &mut change);
                    drop(entries);
                    self.reached(index);
                    return Ok((Position { epoch, index }, replaced));
                }
                Err((why, given_back)) => {
                    entry = given_back;
                    if let Err(not_done) = self.unblock(entries, &mut change, why) {
                        return Err((not_done, entry));
                    }
                }
            }
        }
    }

    /// Executes one command whose effect follows from the old entry.
    pub(super) fn compute_one<'e>(
        &'e self,
        frame: &RequestFrame<'_>,
        function: Function,
        held: &mut Held<'e>,
        answers: &mut Answers,
    ) -> Result<Position, NotDone> {
        let mut prepared = Prepared::of_one(self, frame, held)?;
        let key = frame.key();
        let hash = self.store.hash(key);
        let has_log = prepared.is_some();
        let (mut change, mut ahead) = (Change::of_client(prepared.is_some()), Ahead::default());
        let mut unlogged = Vec::new();
        loop {
            let mut entries = self.store.write(hash);
            let epoch = self.admitted(true)?;
            // The time is that of this attempt: a deadline may have passed since the one before, and a reader may have
            // seen that.
            let call = Call {
                frame,
                function,
                hash,
                clock: &Now::of(&self.clock),
                has_log,
            };
            let effects = match &mut prepared {
                Some(prepared) => prepared.effects(),
                None => &mut unlogged,
            };
            let state = (&mut change, &mut ahead);
            let done = (self.store).compute(&mut entries, &call, state, effects, answers);
            match done {
                Ok(computed) => {
                    let (is_made, record, replaced) = match computed {
                        Computed::Nothing => (false, None, None),
                        Computed::Made => (true, None, None),
                        Computed::Replaced(old) => (true, None, Some(old)),
                        Computed::Long(made) => (true, made.record, made.replaced),
                    };
                    let mut index = entries.last_index;
                    if let Some(mut prepared) = prepared.take().filter(|_| is_made) {
                        if let Some(entry) = record {
                            prepared.set_entry(entry);
                        }
                        index = prepared.append_one(epoch, change.digest());
                        entries.last_index = index;
                        if let Some(place) = answers.take_slot() {
                            answers.fill(place, self.token_of(index));
                        }
                    }
                    drop(entries);
                    self.reached(index);
                    drop(replaced);
                    answers.settle();
                    return Ok(Position { epoch, index });
                }
                Err(needed) => {
                    drop(entries);
                    if let NotYet::Full(full) = *needed {
                        self.make_room(full)?;
                    } else {
                        ahead.prepare(key, &mut change, *needed);
                    }
                }
            }
        }
    }
}

impl Engine {
    /// Unlocks a partition, and does what a put needs that was not made.
    #[cold]
    #[inline(never)]
    fn unblock(
        &self,
        entries: impl Sized,
        change: &mut Change,
        why: NotPut,
    ) -> Result<(), NotDone> {
        drop(entries);
        match why {
            NotPut::Long(long) => change.learn(long),
            NotPut::Full(full) => self.make_room(full)?,
        }
        Ok(())
    }
}

/// Unlocks a partition and takes the digest of a long old entry.
pub(super) fn learn(entries: impl Sized, change: &mut Change, long: LongOld) {
    drop(entries);
    change.learn(long);
}

/// Appends the record of one write, which added an entry of this digest. Returns its index; 0 without a log.
#[inline]
fn append_one(
    prepared: Option<Prepared<'_>>,
    added: Digest,
    epoch: u64,
    entries: &mut Entries,
    change: &mut Change,
) -> u64 {
    let Some(prepared) = prepared else {
        return 0;
    };
    change.adds(added);
    entries.last_index = prepared.append_one(epoch, change.digest());
    entries.last_index
}
