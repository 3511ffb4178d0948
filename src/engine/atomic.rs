//! BATCH: commands that are executed together or not at all.
//!
//! All partitions of the batch are locked. Each command is executed against the store and the changes of those before
//! it; the store itself is not changed. Where one is refused, nothing was done. Otherwise the last change of each key
//! is an effect: the effects are one record of the log, which is appended and applied. So a batch is never torn: not
//! for a reader, and not on a follower, which applies the record with all its partitions locked too.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::Engine;
use super::answers::Answers;
use super::change::Change;
use super::clock::Now;
use super::command::{self, Command, Digits, Effect, Input, Record, expiry, value};
use super::compute::{Ahead, encode};
use super::digest::Digest;
use super::entry::{Entry, encode_put};
use super::execute::{Held, NotDone};
use super::memory::Full;
use super::store::{Entries, Locked};
use crate::log::backlog::Records;
use crate::log::{Log, Position, Reservation, Sequencer};
use crate::wire::batch::{BATCH_MAX, Batch};
use crate::wire::conditional::{Condition, Put, Take};
use crate::wire::expiry::{DEADLINE_LEN, recorded_expiry};
use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{Opcode, Request, RequestFrame, Status};

/// Most bytes of the responses in the answer to a BATCH.
pub const BATCH_ANSWER_BYTES_MAX: usize = 4 << 20;

/// Most bytes of long entries that the EXPIREs of a BATCH copy.
pub const BATCH_COPIES_BYTES_MAX: usize = 64 << 20;

/// Most bytes of values that a batch copies where it may not take long.
const SHORT_ANSWER_BYTES_MAX: usize = 64 << 10;

/// Attempts to lock all partitions of a batch before it waits for them.
const ATTEMPTS: u32 = 3;

/// Times that long old entries are looked at before the locks are taken. Where they are replaced more often than that
/// meanwhile, they are looked at under the locks.
const ROUNDS_MAX: u8 = 4;

/// Bytes of a short response: there is memory for one of each request at first.
const ANSWER_BYTES: usize = 8;

/// One of 64 bits that stand for hashes. A key whose bit is not set has not changed.
const fn bit_of(hash: u64) -> u64 {
    1 << (hash & 63)
}

/// Message for errors that cannot occur: digests and copies of long entries are there.
const KNOWN: &str = "long entries were looked at before, or are now";

/// Commands or effects, and the hashes of their keys.
struct Members<'f, 'a> {
    frames: &'f [RequestFrame<'a>],
    hashes: ArrayVec<u64, BATCH_MAX>,
    /// A bit for each, 1 for a write.
    writes: u64,
}

impl<'f, 'a> Members<'f, 'a> {
    fn of(engine: &Engine, batch: &'f Batch<'a>) -> Members<'f, 'a> {
        let frames = batch.frames();
        let hashes = frames.iter().map(|frame| engine.store.hash(frame.key()));
        Members {
            frames,
            hashes: hashes.collect(),
            writes: batch.write_bits(),
        }
    }
}

/// A long old entry of a batch, which was looked at before the locks were taken. While it is here, its bytes cannot
/// change.
struct Long {
    old: Entry,
    digest: Digest,
    value_hash: u128,
    /// A copy with a deadline, or without one.
    moved: Option<Entry>,
}

/// A key that the batch has changed.
struct Changed {
    /// The number of the first command that has changed it.
    at: usize,
    kind: Kind,
    /// The frame of its effect.
    frame: Range<usize>,
}

/// The effect on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    Removed,
    /// The entry of the store has this deadline, or none.
    Dated(Option<u64>),
}

/// Why a batch is not executed.
enum Stop {
    /// Long old entries are to be looked at first.
    Long(Vec<Entry>),
    /// The answer of this command refuses it.
    Refused(usize),
    /// The responses are too long.
    TooLong,
    /// New deadlines need copies of values that are too long.
    CopiesTooLong,
}

/// The execution of a batch whose partitions are locked.
struct Atomic<'x, 'e, 'f, 'a> {
    engine: &'e Engine,
    members: &'x Members<'f, 'a>,
    longs: &'x mut [Long],
    clock: Now<'e>,
    /// Room for the header of the record, and the frames of effects.
    effects: Vec<u8>,
    changed: Vec<Changed>,
    /// The [bits](bit_of) of the hashes of their keys.
    seen: u64,
    /// A key has changed more than once, so that some frames are no effects.
    is_compact: bool,
    inner: Answers,
    /// Values that are apart: the places in `inner` where they belong.
    apart: Vec<(usize, Entry)>,
    tokens: Vec<usize>,
}

/// Why a batch was not executed on a thread that serves other clients too. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotShort {
    /// It cannot be executed on another thread either.
    NotDone(NotDone),
    /// It takes longer than other clients of the thread can wait.
    TakesLong,
}

impl From<NotDone> for NotShort {
    fn from(not_done: NotDone) -> NotShort {
        NotShort::NotDone(not_done)
    }
}

impl Engine {
    /// Executes all requests of a batch, or none, and adds the one answer. Returns the position that it waits for.
    /// `room` is as for [`execute`](Self::execute).
    ///
    /// # Errors
    ///
    /// Where nothing was done and no answer was added.
    pub fn execute_batch<'e>(
        &'e self,
        batch: &Batch<'_>,
        room: Option<Reservation<'e>>,
        answers: &mut Answers,
    ) -> Result<Position, NotDone> {
        let done = self.batch_within(batch, room, answers, true);
        done.map_err(|why| match why {
            NotShort::NotDone(not_done) => not_done,
            NotShort::TakesLong => unreachable!("it may take long"),
        })
    }

    /// The same on a thread that serves other clients too.
    ///
    /// # Errors
    ///
    /// [`NotShort::TakesLong`] where long values are replaced, compared or answered, or where partitions are not free
    /// soon; among others.
    pub fn execute_short_batch<'e>(
        &'e self,
        batch: &Batch<'_>,
        room: Option<Reservation<'e>>,
        answers: &mut Answers,
    ) -> Result<Position, NotShort> {
        self.batch_within(batch, room, answers, false)
    }

    fn batch_within<'e>(
        &'e self,
        batch: &Batch<'_>,
        room: Option<Reservation<'e>>,
        answers: &mut Answers,
        may_take_long: bool,
    ) -> Result<Position, NotShort> {
        let members = &Members::of(self, batch);
        let mut held = Held(room);
        let mut reserved = match self.reserve_batch(batch, &mut held) {
            Ok(reserved) => reserved,
            Err(why) => return Ok(self.answer_full(why, answers)?),
        };
        let (mut longs, mut rounds) = (Vec::new(), 0);
        loop {
            // Before anything is locked.
            let memory = members.memory();
            let locked = if may_take_long {
                Some(self.lock_all(members))
            } else {
                self.try_lock_all(members)
            };
            let mut locked = locked.ok_or(NotShort::TakesLong)?;
            let epoch = self.admitted(batch.writes())?;
            let mut atomic = Atomic::new(self, members, &mut longs, memory);
            let result = atomic
                .check_longs(&locked, rounds, self.sequencer.is_some())
                .and_then(|()| atomic.execute(&locked));
            let is_long = match &result {
                Ok(()) | Err(Stop::Refused(_)) => atomic.answer_len() > SHORT_ANSWER_BYTES_MAX,
                Err(Stop::Long(_)) => true,
                Err(Stop::TooLong | Stop::CopiesTooLong) => false,
            };
            if is_long && !may_take_long {
                return Err(NotShort::TakesLong);
            }
            match result {
                Err(Stop::Long(olds)) => {
                    drop(locked);
                    let is_logged = self.sequencer.is_some();
                    let look = |old| members.look_at(old, is_logged);
                    longs = olds.into_iter().map(look).collect();
                    rounds += 1;
                }
                Err(stop) => {
                    let index = locked.last_index();
                    drop(locked);
                    atomic.refuse(&stop, answers);
                    return Ok(Position { epoch, index });
                }
                Ok(()) => {
                    let memory = match atomic.reserve_memory(&locked) {
                        Ok(memory) => memory,
                        Err(full) => {
                            drop(locked);
                            match self.make_room(full) {
                                Ok(()) => continue,
                                Err(why) => return Ok(self.answer_full(why, answers)?),
                            }
                        }
                    };
                    let (index, replaced) = atomic.commit(&mut locked, epoch, reserved.take());
                    self.store.release(memory);
                    drop(locked);
                    self.reached(index);
                    drop(replaced);
                    answers.push_bytes(Status::Ok, atomic.take_answer(0));
                    return Ok(Position { epoch, index });
                }
            }
        }
    }

    /// Reserves room in the log for the record of a batch that writes.
    fn reserve_batch<'e>(
        &'e self,
        batch: &Batch<'_>,
        held: &mut Held<'e>,
    ) -> Result<Option<(&'e Sequencer, Reservation<'e>)>, NotDone> {
        let Some(sequencer) = self.sequencer.as_ref().filter(|_| batch.writes()) else {
            return Ok(None);
        };
        let mut opcodes = batch.frames().iter().map(RequestFrame::opcode);
        self.check_space(sequencer, || opcodes.all(command::only_removes))?;
        let cost = Records::cost(effects_len_max(batch));
        Ok(Some((sequencer, held.reserve(sequencer, cost)?)))
    }

    /// Applies the record of a batch, whose effects these are. Sets `missing` to the first key that an effect needs and
    /// that is not here.
    pub(super) fn apply_batch(
        &self,
        sequencer: &Sequencer,
        value: &[u8],
        missing: &mut Option<Vec<u8>>,
    ) {
        let Some(batch) = Batch::of_record(value) else {
            unreachable!("it was accepted as a record");
        };
        let members = &Members::of(self, &batch);
        let (mut longs, mut rounds) = (Vec::new(), 0);
        loop {
            let mut locked = self.lock_all(members);
            let mut atomic = Atomic::new(self, members, &mut longs, Vec::new());
            if let Err(Stop::Long(olds)) = atomic.check_longs(&locked, rounds, true) {
                drop(locked);
                longs = olds
                    .into_iter()
                    .map(|old| members.look_at(old, true))
                    .collect();
                rounds += 1;
                continue;
            }
            let (mut change, mut replaced) = (Change::new(true), Vec::new());
            for (at, frame) in members.frames.iter().enumerate() {
                let done = atomic.apply(at, frame, &mut locked, &mut change);
                if done.is_none() {
                    missing.get_or_insert_with(|| frame.key().to_vec());
                }
                replaced.extend(done.flatten());
            }
            let index = sequencer.applied(1, change.digest());
            locked.set_last_index(index);
            drop(locked);
            self.reached(index);
            return;
        }
    }

    /// Locks all partitions of a batch. Where they are not free soon, one batch at a time waits for them, in ascending
    /// order: nothing else waits for a partition with another one locked.
    fn lock_all(&self, members: &Members<'_, '_>) -> Locked<'_, BATCH_MAX> {
        self.try_lock_all(members).unwrap_or_else(|| {
            let _turn = self.batch_turn.lock();
            self.store.wait_for_many(&members.hashes, members.writes)
        })
    }

    /// Locks all partitions of a batch where they are free soon.
    fn try_lock_all(&self, members: &Members<'_, '_>) -> Option<Locked<'_, BATCH_MAX>> {
        let Members { hashes, writes, .. } = members;
        (0..ATTEMPTS).find_map(|_| self.store.lock_many(hashes, *writes).ok())
    }
}

impl<'a> Members<'_, 'a> {
    /// The last EXPIRE of a key.
    fn last_expire(&self, key: &[u8]) -> Option<&RequestFrame<'a>> {
        let is_it =
            |frame: &&RequestFrame<'_>| frame.opcode() == Opcode::Expire && frame.key() == key;
        self.frames.iter().rev().find(is_it)
    }

    /// Memory for the effects.
    fn memory(&self) -> Vec<u8> {
        let len = self.frames.iter().map(|frame| frame.bytes().len());
        Vec::with_capacity(HEADER_LEN + len.sum::<usize>())
    }

    /// Looks at a long old entry, without a lock.
    fn look_at(&self, old: Entry, is_logged: bool) -> Long {
        let mut of_key = self.frames.iter().filter(|frame| frame.key() == old.key());
        let value_hash = if of_key.any(has_hash) {
            xxhash_rust::xxh3::xxh3_128(old.value())
        } else {
            0
        };
        let last = self.last_expire(old.key());
        let moved = last.and_then(|expire| {
            let expires = recorded_expiry(expire.value()) != Some(None);
            old.with_deadline(expires.then_some(1)).ok()
        });
        Long {
            digest: if is_logged {
                Digest::of(&old)
            } else {
                Digest::EMPTY
            },
            value_hash,
            moved,
            old,
        }
    }
}

/// Whether a command compares the hash of a value.
fn has_hash(frame: &RequestFrame<'_>) -> bool {
    let (opcode, key, value) = (frame.opcode(), frame.key(), frame.value());
    let condition = if opcode == Opcode::Put {
        Put::decode(key, value).map(|put| put.condition)
    } else if opcode == Opcode::Take {
        Take::decode(key, value).map(|take| take.condition)
    } else {
        return false;
    };
    matches!(condition, Ok(Condition::EqualHash(_)))
}

/// Longest record of a batch, in bytes.
fn effects_len_max(batch: &Batch<'_>) -> usize {
    let writes = batch.frames().iter().map(|frame| {
        let spec = frame.opcode().spec();
        let extra = spec.effect_extra.unwrap_or(0);
        if spec.writes {
            frame.bytes().len() + extra
        } else {
            0
        }
    });
    HEADER_LEN + writes.sum::<usize>()
}

impl<'x, 'e, 'f, 'a> Atomic<'x, 'e, 'f, 'a> {
    fn new(
        engine: &'e Engine,
        members: &'x Members<'f, 'a>,
        longs: &'x mut [Long],
        mut effects: Vec<u8>,
    ) -> Atomic<'x, 'e, 'f, 'a> {
        effects.resize(HEADER_LEN, 0);
        Atomic {
            engine,
            members,
            longs,
            clock: Now::of(&engine.clock),
            effects,
            changed: Vec::with_capacity(members.frames.len()),
            seen: 0,
            is_compact: false,
            inner: Answers::with_capacity(ANSWER_BYTES * members.frames.len()),
            apart: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// Whether every long old entry that a write may replace was looked at.
    fn check_longs(
        &self,
        locked: &Locked<'_, BATCH_MAX>,
        rounds: u8,
        is_logged: bool,
    ) -> Result<(), Stop> {
        let mut olds = Vec::new();
        let seeming = locked.warm(&self.members.hashes);
        for (at, frame) in self.members.frames.iter().enumerate() {
            let is_short =
                |old: &Entry| old.frame().len() <= RUN_FRAME_BYTES_MAX && old.key() == frame.key();
            if seeming[at].is_none_or(is_short) {
                continue;
            }
            let raw = (self.members.writes >> at & 1 == 1)
                .then(|| locked.of(at).find(self.members.hashes[at], frame.key()))
                .flatten();
            let needs = is_logged || has_hash(frame) || frame.opcode() == Opcode::Expire;
            if let Some(raw) = raw
                && needs
                && raw.frame().len() > RUN_FRAME_BYTES_MAX
                && !olds.iter().any(|old: &Entry| old.is_same_block(raw))
            {
                olds.push(raw.clone());
            }
        }
        let copies = olds
            .iter()
            .filter(|old| self.members.last_expire(old.key()).is_some());
        if copies.map(|old| old.frame().len()).sum::<usize>() > BATCH_COPIES_BYTES_MAX {
            return Err(Stop::CopiesTooLong);
        }
        let are_known = olds.iter().all(|old| self.long(old).is_some());
        if are_known || rounds >= ROUNDS_MAX {
            return Ok(());
        }
        Err(Stop::Long(olds))
    }

    fn long(&self, old: &Entry) -> Option<&Long> {
        self.longs.iter().find(|long| long.old.is_same_block(old))
    }

    /// Executes all commands, and leaves the store as it is.
    fn execute(&mut self, locked: &Locked<'_, BATCH_MAX>) -> Result<(), Stop> {
        for at in 0..self.members.frames.len() {
            let start = self.inner.bytes().len();
            let entries = locked.of(at);
            let effect = self.command(at, entries);
            let status = self.inner.bytes().get(start).copied();
            if let Some(entry) = self.inner.take_apart() {
                self.apart.push((self.inner.bytes().len(), entry));
            }
            self.tokens.extend(self.inner.take_slot());
            let refuses = [Status::Error, Status::Conflict].map(Status::byte);
            if status.is_none_or(|status| refuses.contains(&status)) {
                self.inner.consume(start);
                self.apart.retain(|(place, _)| *place > start);
                for (place, _) in &mut self.apart {
                    *place -= start;
                }
                return Err(Stop::Refused(at));
            }
            self.note(at, &effect, entries);
            if self.answer_len() > BATCH_ANSWER_BYTES_MAX {
                return Err(Stop::TooLong);
            }
        }
        Ok(())
    }

    /// Executes a command against the store and the changes of those before it.
    fn command(&mut self, at: usize, entries: &Entries) -> Effect<'a> {
        let (frame, hash) = (self.members.frames[at], self.members.hashes[at]);
        let key = frame.key();
        self.engine.store.note_hit(entries, hash, key);
        if frame.opcode() == Opcode::Set {
            // It does not depend on what there is.
            return value::set(&mut self.inner);
        }
        let made = self.put_before(at);
        let raw = made.as_ref().or_else(|| entries.find(hash, key));
        let kind = self
            .changed_before(at)
            .map(|changed| self.changed[changed].kind);
        let old = raw.filter(|_| kind != Some(Kind::Removed));
        let deadline = match kind {
            Some(Kind::Dated(deadline)) => deadline,
            Some(Kind::Put | Kind::Removed) | None => old.and_then(Entry::deadline),
        };
        let old = old.filter(|_| !deadline.is_some_and(|deadline| self.clock.has_passed(deadline)));
        let deadline = deadline.filter(|_| old.is_some());
        match command::of(frame.opcode()) {
            Command::Set => value::set(&mut self.inner),
            Command::Get => {
                value::get(old, &mut self.inner);
                Effect::None
            }
            Command::Del => value::del(old.is_some(), &mut self.inner),
            Command::Ttl => {
                expiry::ttl(old.is_some(), deadline, &self.clock, &mut self.inner);
                Effect::None
            }
            Command::Computed(function) => {
                let mut input = Input {
                    frame: &frame,
                    old,
                    deadline,
                    clock: &self.clock,
                    old_hash: old
                        .and_then(|old| self.long(old))
                        .map(|long| long.value_hash),
                    has_log: self.engine.sequencer.is_some(),
                };
                function(&input, &mut self.inner).unwrap_or_else(|_needs_hash| {
                    let value = old.map_or(&[][..], Entry::value);
                    input.old_hash = Some(xxhash_rust::xxh3::xxh3_128(value));
                    let effect = function(&input, &mut self.inner);
                    effect.unwrap_or(Effect::None)
                })
            }
            Command::None => unreachable!("no batch has such a request"),
        }
    }

    /// The change of the key of a command by those before it.
    fn changed_before(&self, at: usize) -> Option<usize> {
        let Members { frames, hashes, .. } = self.members;
        if self.seen & bit_of(hashes[at]) == 0 {
            return None;
        }
        let is_it = |changed: &Changed| {
            hashes[changed.at] == hashes[at] && frames[changed.at].key() == frames[at].key()
        };
        self.changed.iter().position(is_it)
    }

    /// The entry that those before a command have made for its key.
    fn put_before(&self, at: usize) -> Option<Entry> {
        let changed = &self.changed[self.changed_before(at)?];
        let frame = &self.effects[changed.frame.clone()];
        (changed.kind == Kind::Put).then(|| Entry::copy_of(&RequestFrame::of_encoded(frame)))
    }

    /// Notes the effect of a command.
    fn note(&mut self, at: usize, effect: &Effect<'a>, entries: &Entries) {
        let frame = self.members.frames[at];
        let (key, hash) = (frame.key(), self.members.hashes[at]);
        let before = self.changed_before(at);
        let kind_before = before.map(|changed| self.changed[changed].kind);
        let start = self.effects.len();
        let put = |value: &[u8], deadline, out: &mut Vec<u8>| {
            if encode_put(key, value, deadline, out).is_err() {
                unreachable!("an effect is little longer than its request");
            }
        };
        let kind = match effect {
            Effect::None => return,
            Effect::AsSent => {
                self.effects.extend_from_slice(frame.bytes());
                Kind::Put
            }
            Effect::Put { value, deadline } => {
                let mut digits = Digits::new();
                put(value.bytes(&mut digits), *deadline, &mut self.effects);
                Kind::Put
            }
            Effect::Remove => {
                if entries.find(hash, key).is_none() {
                    // The batch itself has made it.
                    self.is_compact = true;
                    before.map(|changed| self.changed.remove(changed));
                    return;
                }
                encode(&Request::Del { key }, &mut self.effects);
                Kind::Removed
            }
            Effect::Expire { deadline } if kind_before == Some(Kind::Put) => {
                let made = self.put_before(at);
                let value = made.as_ref().map_or(&[][..], Entry::value);
                put(value, *deadline, &mut self.effects);
                Kind::Put
            }
            Effect::Expire { deadline } => {
                let value = &crate::wire::expiry::expire_value(*deadline);
                encode(&Request::Expire { key, value }, &mut self.effects);
                Kind::Dated(*deadline)
            }
        };
        let frame = start..self.effects.len();
        match before {
            None => {
                self.seen |= bit_of(hash);
                self.changed.push(Changed { at, kind, frame });
            }
            Some(changed) => {
                self.is_compact = true;
                let at = self.changed[changed].at;
                self.changed[changed] = Changed { at, kind, frame };
            }
        }
    }

    /// Reserves the memory that the effects may need, and returns how much that is.
    fn reserve_memory(&self, locked: &Locked<'_, BATCH_MAX>) -> Result<u64, Full> {
        let store = &self.engine.store;
        // New keys of each partition so far.
        let mut new: ArrayVec<u16, BATCH_MAX> = ArrayVec::new();
        let growth = self.changed.iter().map(|changed| {
            let at = changed.at;
            let (hash, key) = (self.members.hashes[at], self.members.frames[at].key());
            let (entries, place) = (locked.of(at), store.place(hash));
            let becomes = match changed.kind {
                Kind::Put => {
                    let opcode = self.effects[changed.frame.start];
                    (changed.frame.len(), opcode == Opcode::SetAt.byte())
                }
                Kind::Dated(Some(_)) => {
                    let old = entries.find(hash, key).map_or(0, |old| old.frame().len());
                    (old + DEADLINE_LEN, true)
                }
                Kind::Removed => return (0, store.block_of(entries.find(hash, key))),
                Kind::Dated(None) => return (0, 0),
            };
            let before = new.iter().filter(|other| **other == place).count();
            if entries.find(hash, key).is_none() {
                new.push(place);
            }
            (store.growth(entries, (hash, key), becomes, before), 0)
        });
        self.engine.store.reserve_memory(growth)
    }

    /// Makes the effects the record of the log, appends it and applies them. Returns the index that the answer waits
    /// for, and entries to be freed.
    fn commit(
        &mut self,
        locked: &mut Locked<'_, BATCH_MAX>,
        epoch: u64,
        reserved: Option<(&Sequencer, Reservation<'_>)>,
    ) -> (u64, Vec<Entry>) {
        if self.changed.is_empty() {
            // All that the batch has made it has removed again: the position is that of the data set as it is.
            let token = self.engine.log().map(Log::token).unwrap_or_default();
            for place in self.tokens.drain(..) {
                self.inner.fill(place, token);
            }
            return (locked.last_index(), Vec::new());
        }
        if self.is_compact {
            let mut effects = vec![0; HEADER_LEN];
            for changed in &mut self.changed {
                let start = effects.len();
                effects.extend_from_slice(&self.effects[changed.frame.clone()]);
                changed.frame = start..effects.len();
            }
            self.effects = effects;
        }
        let record = std::mem::take(&mut self.effects);
        let mut change = Change::new(reserved.is_some());
        let mut replaced = Vec::with_capacity(self.changed.len());
        let changed = std::mem::take(&mut self.changed);
        for changed in &changed {
            let frame = RequestFrame::of_encoded(&record[changed.frame.clone()]);
            let done = self.apply(changed.at, &frame, locked, &mut change);
            replaced.extend(done.flatten());
        }
        let index = match reserved {
            None => 0,
            Some((sequencer, room)) => {
                let records = Records::Frames(framed(record));
                let index = sequencer.append(epoch, records, 1, change.digest(), room);
                locked.set_last_index(index);
                for place in self.tokens.drain(..) {
                    self.inner.fill(place, self.engine.token_of(index));
                }
                index
            }
        };
        (index, replaced)
    }

    /// Applies an effect on the key of a member. Returns the entry that was replaced; `None` where the key is missing
    /// that the effect needs.
    fn apply(
        &mut self,
        at: usize,
        frame: &RequestFrame<'_>,
        locked: &mut Locked<'_, BATCH_MAX>,
        change: &mut Change,
    ) -> Option<Option<Entry>> {
        let (store, key, hash) = (&self.engine.store, frame.key(), self.members.hashes[at]);
        let entries = locked.of_mut(at);
        let mut ahead = Ahead::under_lock();
        if !self.longs.is_empty()
            && let Some(raw) = entries.find(hash, key)
        {
            let mut longs = self.longs.iter_mut();
            if let Some(long) = longs.find(|long| long.old.is_same_block(raw)) {
                change.know(long.old.clone(), long.digest);
                ahead.move_to(long.old.clone(), long.moved.take());
            }
        }
        change.work_under_lock();
        match Record::of(frame) {
            Record::Put => {
                let put = store.put_frame(entries, hash, frame, None, change);
                if change.is_logged() {
                    change.adds(Digest::of_frame(frame.bytes()));
                }
                Some(put.unwrap_or_else(|_| unreachable!("{KNOWN}")))
            }
            Record::Remove => {
                let taken = store.take(entries, hash, key, None, change);
                taken.unwrap_or_else(|_| unreachable!("{KNOWN}")).map(Some)
            }
            Record::Expire(deadline) => {
                let moved = store.expire(entries, hash, key, deadline, (change, &mut ahead));
                moved.unwrap_or_else(|_| unreachable!("{KNOWN}"))
            }
            Record::Batch | Record::Epoch => unreachable!("no effect of a batch"),
        }
    }

    /// Bytes of all responses.
    fn answer_len(&self) -> usize {
        let apart = self.apart.iter().map(|(_, entry)| entry.value().len());
        self.inner.bytes().len() + apart.sum::<usize>()
    }

    /// The responses one behind the other, behind `before` bytes that are 0.
    fn take_answer(&mut self, before: usize) -> Vec<u8> {
        let mut answer = Vec::with_capacity(before + self.answer_len());
        answer.resize(before, 0);
        let mut from = 0;
        for (place, entry) in self.apart.drain(..) {
            answer.extend_from_slice(&self.inner.bytes()[from..place]);
            answer.extend_from_slice(entry.value());
            from = place;
        }
        answer.extend_from_slice(&self.inner.bytes()[from..]);
        answer
    }

    /// Adds the answer to a batch that is not executed. Nothing is locked.
    fn refuse(&mut self, stop: &Stop, answers: &mut Answers) {
        match *stop {
            Stop::Long(_) => unreachable!("it is tried again"),
            Stop::TooLong => {
                let message = format!("responses of more than {BATCH_ANSWER_BYTES_MAX} bytes");
                answers.push(Status::Error, message.as_bytes());
            }
            Stop::CopiesTooLong => {
                let message = format!(
                    "EXPIRE of values of more than {BATCH_COPIES_BYTES_MAX} bytes in one BATCH"
                );
                answers.push(Status::Error, message.as_bytes());
            }
            Stop::Refused(at) => {
                let mut answer = self.take_answer(1);
                if answer.get(1) == Some(&Status::Conflict.byte()) {
                    answer[0] = u8::try_from(at).unwrap_or(u8::MAX);
                    answers.push_bytes(Status::Conflict, answer);
                } else {
                    let reason = answer.get(1 + crate::wire::response::HEADER_LEN..);
                    let reason = String::from_utf8_lossy(reason.unwrap_or_default());
                    let message = format!("request {}: {reason}", at + 1);
                    answers.push(Status::Error, message.as_bytes());
                }
            }
        }
    }
}

/// The record of a batch, whose header has room at the start of `record`.
fn framed(mut record: Vec<u8>) -> Vec<u8> {
    let header = RequestHeader {
        opcode: Opcode::Batch.byte(),
        key_len: 0,
        value_len: u32::try_from(record.len() - HEADER_LEN).unwrap_or(u32::MAX),
    };
    record[..HEADER_LEN].copy_from_slice(&header.encode());
    record
}
