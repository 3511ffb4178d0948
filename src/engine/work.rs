//! The execution of a run whose partitions are locked.

use arrayvec::ArrayVec;

use super::Engine;
use super::answers::Answers;
use super::change::{Change, LongOld, NotPut};
use super::clock::Now;
use super::command::{self, Command, Effect, Function, Record, expiry, value};
use super::compute::{Ahead, Call, Computed};
use super::digest::Digest;
use super::entry::Entry;
use super::prepared::Prepared;
use super::store::{Entries, Locked};
use crate::log::Log;
use crate::wire::run::RUN_MAX;
use crate::wire::{Opcode, RequestFrame, Run, Token};

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
    pub(super) clock: Now<'e>,
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
    /// Tokens in the answers that are filled in when the records have their indexes: the place, and the number of the
    /// record among those of the run, from 1.
    pub(super) tokens: Vec<(usize, u32)>,
    /// Memory for effects that are not logged.
    pub(super) unlogged: Vec<u8>,
}

impl<'w, 'e> Work<'w, 'e> {
    /// Nothing is done yet. `digests` is empty without a log.
    #[inline(always)]
    pub(super) fn new(
        engine: &'e Engine,
        prepared: &'w mut Option<Prepared<'e>>,
        digests: ArrayVec<Digest, RUN_MAX>,
        new: ArrayVec<Option<Entry>, RUN_MAX>,
        change: Change,
    ) -> Work<'w, 'e> {
        Work {
            engine,
            clock: Now::of(&engine.clock),
            prepared,
            digests,
            made: 0,
            change,
            new,
            replaced: Vec::new(),
            tokens: Vec::new(),
            unlogged: Vec::new(),
        }
    }

    /// Executes the requests in their order, and returns how many: up to a GET of a long value, and up to a write that
    /// needs the digest of a long old entry first, or memory.
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
                    let entries = locked.of(at);
                    self.engine.store.note_hit(entries, hash, frame.key());
                    if !value::get(entries.find_live(hash, frame.key(), &self.clock), answers) {
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
                Command::Del => match self.take(hash, &frame, locked.of_mut(at), true) {
                    Ok(is_there) => {
                        let effect = value::del(is_there, answers);
                        self.log(&effect, at, &frame);
                        true
                    }
                    Err(LongOld(_)) => false,
                },
                Command::Ttl => {
                    let old = locked.of(at).find_live(hash, frame.key(), &self.clock);
                    let deadline = old.and_then(Entry::deadline);
                    expiry::ttl(old.is_some(), deadline, &self.clock, answers);
                    true
                }
                Command::Computed(function) => {
                    let is_done =
                        self.compute(at, hash, &frame, function, locked.of_mut(at), answers);
                    if is_done && answers.has_apart() {
                        return at + 1;
                    }
                    is_done
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
            let is_done = match Record::of(&frame) {
                Record::Put => {
                    let is_put = self.put(at, hash, &frame, locked.of_mut(at));
                    if is_put {
                        self.change.adds(self.digests[at]);
                    }
                    is_put
                }
                Record::Remove => match self.take(hash, &frame, locked.of_mut(at), false) {
                    Ok(true) => true,
                    Ok(false) => {
                        missing.get_or_insert_with(|| frame.key().to_vec());
                        true
                    }
                    Err(LongOld(_)) => false,
                },
                Record::Expire(deadline) => {
                    self.expire(hash, &frame, deadline, locked.of_mut(at), missing)
                }
                Record::Batch | Record::Epoch => unreachable!("it is a run of its own"),
            };
            if !is_done {
                return at;
            }
        }
        run.len()
    }

    /// Stores the entry of a SET. False, and nothing done, where the digest of a long old entry is needed first, or
    /// memory.
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
            Err(NotPut::Long(_) | NotPut::Full(_)) => return false,
        }
        true
    }

    /// Gives a key another deadline, or none, as a record says. Returns false as [`put`](Self::put) does.
    #[inline(never)]
    fn expire(
        &mut self,
        hash: u64,
        frame: &RequestFrame<'_>,
        deadline: Option<u64>,
        entries: &mut Entries,
        missing: &mut Option<Vec<u8>>,
    ) -> bool {
        let (key, ahead) = (frame.key(), &mut Ahead::default());
        let store = &self.engine.store;
        match store.expire(entries, hash, key, deadline, (&mut self.change, ahead)) {
            Ok(Some(replaced)) => self.replaced.extend(replaced),
            Ok(None) => drop(missing.get_or_insert_with(|| key.to_vec())),
            Err(_) => return false,
        }
        true
    }

    /// Removes the key of a DEL, and returns whether it was there. To a client an entry whose deadline has passed is
    /// not there.
    #[inline(always)]
    fn take(
        &mut self,
        hash: u64,
        frame: &RequestFrame<'_>,
        entries: &mut Entries,
        is_request: bool,
    ) -> Result<bool, LongOld> {
        let store = &self.engine.store;
        let clock = is_request.then_some(&self.clock);
        let removed = store.take(entries, hash, frame.key(), clock, &mut self.change)?;
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
        let call = Call {
            frame,
            function,
            hash,
            clock: &self.clock,
            has_log: self.engine.sequencer.is_some(),
        };
        let effects = match &mut *self.prepared {
            Some(prepared) => prepared.effects(),
            None => {
                self.unlogged.clear();
                &mut self.unlogged
            }
        };
        let state = (&mut self.change, &mut Ahead::default());
        let done = (self.engine.store).compute(entries, &call, state, effects, answers);
        match done {
            Ok(Computed::Nothing) => return true,
            Ok(Computed::Made) => {}
            Ok(Computed::Replaced(old)) => self.replaced.push(old),
            Ok(Computed::Long(made)) => self.replaced.extend(made.replaced),
            Err(_) => return false,
        }
        if self.prepared.is_some() {
            self.made |= 1 << at;
            let token = answers.take_slot();
            let number = self.made.count_ones();
            self.tokens.extend(token.map(|place| (place, number)));
        }
        true
    }

    /// Notes the effect of a write whose request is its record.
    #[inline(always)]
    fn log(&mut self, effect: &Effect<'_>, at: usize, frame: &RequestFrame<'_>) {
        match effect {
            Effect::AsSent | Effect::Remove => {}
            // A computed effect has a record of its own.
            Effect::None | Effect::Put { .. } | Effect::Expire { .. } => return,
        }
        if let Some(prepared) = &mut *self.prepared {
            self.made |= 1 << at;
            self.change.adds(self.digests[at]);
            if prepared.is_computed {
                prepared.effects().extend_from_slice(frame.bytes());
            }
        }
    }

    /// Appends the records of the run. Returns the index that its answers wait for; 0 without a log.
    #[inline]
    pub(super) fn append(
        &mut self,
        run: &Run<'_>,
        epoch: u64,
        locked: &mut Locked<'_>,
        answers: &mut Answers,
    ) -> u64 {
        if self.engine.sequencer.is_none() {
            return 0;
        }
        match self.prepared.take() {
            Some(prepared) if self.made != 0 => {
                let index = prepared.append(epoch, run, self.made, self.change.digest());
                locked.set_last_index(index);
                if !self.tokens.is_empty() {
                    self.fill_tokens(index, answers);
                }
                index
            }
            Some(_) | None => locked.last_index(),
        }
    }

    /// Fills in the tokens of the run's records, the last of which has this index.
    #[cold]
    fn fill_tokens(&mut self, last: u64, answers: &mut Answers) {
        for (place, number) in self.tokens.drain(..) {
            let index = last - u64::from(self.made.count_ones() - number);
            #[cfg(test)]
            let index = if crate::planted::is(crate::planted::Fault::TokenOfRun) {
                last
            } else {
                index
            };
            answers.fill(place, self.engine.token_of(index));
        }
    }
}

impl Engine {
    /// The token of a record of the newest epoch, with a partition locked.
    pub(super) fn token_of(&self, index: u64) -> Token {
        let start = self.log().and_then(Log::last_epoch);
        let (epoch, nonce) = start.map_or((0, 0), |start| (start.epoch, start.nonce));
        Token {
            epoch,
            index,
            nonce,
        }
    }
}
