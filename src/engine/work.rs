//! The execution of a run whose partitions are locked.

use arrayvec::ArrayVec;

use super::Engine;
use super::answers::Answers;
use super::change::{Change, LongOld};
use super::command::{self, Command, Effect, Function, value};
use super::digest::Digest;
use super::entry::Entry;
use super::prepared::Prepared;
use super::store::{Entries, Locked, Store};
use crate::wire::request::frames;
use crate::wire::run::RUN_MAX;
use crate::wire::{Opcode, Request, RequestFrame, Run};

/// Entries for the SETs of a run whose bits are set in `vacant`.
///
/// All are made before the first is stored: taking the allocator's lock waits for earlier stores of the processor, and
/// a store into a table usually misses the cache.
pub(super) fn new_entries(run: &Run<'_>, vacant: u16) -> ArrayVec<Option<Entry>, RUN_MAX> {
    if vacant & run.writes() == 0 {
        return ArrayVec::new();
    }
    let entry = |(at, frame): (usize, RequestFrame<'_>)| {
        let is_set = frame.opcode() == Opcode::Set;
        (is_set && vacant >> at & 1 == 1).then(|| Entry::copy_of(&frame))
    };
    run.frames().enumerate().map(entry).collect()
}

/// The execution of a run whose partitions are locked.
pub(super) struct Work<'w, 'e> {
    pub(super) engine: &'e Engine,
    /// Taken where records are appended.
    pub(super) prepared: &'w mut Option<Prepared<'e>>,
    /// Of each request: the digest of the entry that it makes, where it is its own effect. Empty without a log.
    pub(super) digests: ArrayVec<Digest, RUN_MAX>,
    /// A bit for each write that had an effect.
    pub(super) made: u16,
    pub(super) change: Change,
    /// Entries for the keys that have none.
    pub(super) new: ArrayVec<Option<Entry>, RUN_MAX>,
    /// Entries to be freed after the unlock.
    pub(super) replaced: Vec<Entry>,
}

impl Work<'_, '_> {
    /// Executes the requests in their order, and returns how many: up to a GET of a long value, and up to a write that
    /// needs the digest of a long old entry first.
    #[inline]
    pub(super) fn execute(
        &mut self,
        run: &Run<'_>,
        hashes: &ArrayVec<u64, RUN_MAX>,
        locked: &mut Locked<'_>,
        answers: &mut Answers,
    ) -> usize {
        let mut frames = run.frames();
        for (at, &hash) in hashes.iter().enumerate() {
            let Some(frame) = frames.next() else { break };
            let is_done = match command::of(frame.opcode()) {
                Command::Get => {
                    if !value::get(locked.of(at).find(hash, frame.key()), answers) {
                        return at + 1;
                    }
                    true
                }
                Command::Set => {
                    let is_put = self.put(at, hash, &frame, locked.of_mut(at));
                    if is_put {
                        let effect = value::set(answers);
                        self.log(&effect, at, &frame);
                    }
                    is_put
                }
                Command::Del => match self.take(hash, &frame, locked.of_mut(at)) {
                    Ok(is_there) => {
                        let effect = value::del(is_there, answers);
                        self.log(&effect, at, &frame);
                        true
                    }
                    Err(LongOld(_)) => false,
                },
                Command::Computed(function) => {
                    self.compute(at, hash, &frame, function, locked.of_mut(at), answers)
                }
                Command::None => unreachable!("no run has such a request"),
            };
            if !is_done {
                return at;
            }
        }
        run.len()
    }

    /// Applies the records in their order, and returns how many: up to one that needs the digest of a long old entry
    /// first. Sets `missing` to the first key that a record removes and that is not there.
    #[inline]
    pub(super) fn apply(
        &mut self,
        run: &Run<'_>,
        hashes: &ArrayVec<u64, RUN_MAX>,
        locked: &mut Locked<'_>,
        missing: &mut Option<Vec<u8>>,
    ) -> usize {
        let mut frames = run.frames();
        for (at, &hash) in hashes.iter().enumerate() {
            let Some(frame) = frames.next() else { break };
            let is_done = match command::of(frame.opcode()) {
                Command::Set => {
                    let is_put = self.put(at, hash, &frame, locked.of_mut(at));
                    if is_put {
                        self.change.adds(self.digests[at]);
                    }
                    is_put
                }
                Command::Del => match self.take(hash, &frame, locked.of_mut(at)) {
                    Ok(true) => true,
                    Ok(false) => {
                        missing.get_or_insert_with(|| frame.key().to_vec());
                        true
                    }
                    Err(LongOld(_)) => false,
                },
                Command::Get | Command::Computed(_) | Command::None => {
                    unreachable!("a record is its own effect")
                }
            };
            if !is_done {
                return at;
            }
        }
        run.len()
    }

    /// Stores the entry of a SET. False, and nothing done, where the digest of a long old entry is needed first.
    #[inline(always)]
    fn put(
        &mut self,
        at: usize,
        hash: u64,
        frame: &RequestFrame<'_>,
        entries: &mut Entries,
    ) -> bool {
        let new = self.new.get_mut(at).and_then(Option::take);
        let store = &self.engine.store;
        match store.put_frame(entries, hash, frame, new, &mut self.change) {
            Ok(None) => {}
            Ok(Some(old)) => self.replaced.push(old),
            Err(LongOld(_)) => return false,
        }
        true
    }

    /// Removes the key of a DEL, and returns whether it was there.
    #[inline(always)]
    fn take(
        &mut self,
        hash: u64,
        frame: &RequestFrame<'_>,
        entries: &mut Entries,
    ) -> Result<bool, LongOld> {
        let store = &self.engine.store;
        let removed = store.take(entries, hash, frame.key(), &mut self.change)?;
        let is_there = removed.is_some();
        if let Some(old) = removed {
            self.replaced.push(old);
        }
        Ok(is_there)
    }

    /// Executes a command whose effect follows from the old entry. Not inlined, so that SET, GET and DEL share no
    /// registers with it. Returns false as [`put`](Self::put) does.
    #[inline(never)]
    fn compute(
        &mut self,
        at: usize,
        hash: u64,
        frame: &RequestFrame<'_>,
        function: Function,
        entries: &mut Entries,
        answers: &mut Answers,
    ) -> bool {
        let (store, change) = (&self.engine.store, &mut self.change);
        let done = store.compute(entries, hash, frame, function, change, answers);
        let Ok(Computed { effect, replaced }) = done else {
            return false;
        };
        self.replaced.extend(replaced);
        if let (Some(prepared), Some(effect)) = (&mut *self.prepared, effect) {
            prepared.push(&effect);
            self.made |= 1 << at;
        }
        true
    }

    /// Notes the effect of a write whose request is its record.
    #[inline(always)]
    fn log(&mut self, effect: &Effect<'_>, at: usize, frame: &RequestFrame<'_>) {
        match effect {
            Effect::AsSent | Effect::Remove => {}
            // A computed effect has a record of its own.
            Effect::None | Effect::Put(_) => return,
        }
        if let Some(prepared) = &mut *self.prepared {
            self.made |= 1 << at;
            self.change.adds(self.digests[at]);
            if prepared.is_computed {
                prepared.push(frame.bytes());
            }
        }
    }

    /// Appends the records of the run. Returns the index that its answers wait for; 0 without a log.
    #[inline]
    pub(super) fn append(&mut self, run: &Run<'_>, epoch: u64, locked: &mut Locked<'_>) -> u64 {
        if self.engine.sequencer.is_none() {
            return 0;
        }
        match self.prepared.take() {
            Some(prepared) if self.made != 0 => {
                let index = prepared.append(epoch, run, self.made, self.change.digest());
                locked.set_last_index(index);
                index
            }
            Some(_) | None => locked.last_index(),
        }
    }
}

/// The result of a computed command.
pub(super) struct Computed {
    /// The frame of its effect, which the log records.
    pub(super) effect: Option<Vec<u8>>,
    /// The entry that it replaced.
    pub(super) replaced: Option<Entry>,
}

impl Store {
    /// Executes a command whose effect follows from the old entry, with the key's partition locked for writing.
    ///
    /// # Errors
    ///
    /// [`LongOld`], where `change` needs the digest of the old entry first. Nothing is done then.
    pub(super) fn compute(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        function: Function,
        change: &mut Change,
        answers: &mut Answers,
    ) -> Result<Computed, LongOld> {
        let key = frame.key();
        let old = entries.find(hash, key);
        let before = answers.bytes().len();
        let effect = function(frame, old, answers);
        if let (Effect::Put(_) | Effect::Remove, Some(old)) = (&effect, old)
            && let Err(long) = change.knows(old)
        {
            answers.truncate(before);
            return Err(long);
        }
        let mut record = Vec::new();
        let replaced = match effect {
            Effect::None => {
                let (effect, replaced) = (None, None);
                return Ok(Computed { effect, replaced });
            }
            Effect::AsSent => unreachable!("a computed command is not its own effect"),
            Effect::Put(value) => {
                let value = &value;
                encode(&Request::Set { key, value }, &mut record);
                let mut replaced = None;
                for put in frames(&record) {
                    replaced = self.put_frame(entries, hash, &put, None, change)?;
                }
                change.adds(Digest::of_frame(&record));
                replaced
            }
            Effect::Remove => {
                encode(&Request::Del { key }, &mut record);
                self.take(entries, hash, key, change)?
            }
        };
        let effect = Some(record);
        Ok(Computed { effect, replaced })
    }
}

/// Adds the frame of an effect.
fn encode(effect: &Request<'_>, out: &mut Vec<u8>) {
    let encoded = effect.encode(out);
    encoded.unwrap_or_else(|_| unreachable!("an effect is little longer than its request"));
}
