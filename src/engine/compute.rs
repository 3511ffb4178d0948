//! Commands whose effect follows from the old entry, and changes of deadlines.
//!
//! Under a partition's lock nothing of more than a few KiB is copied or hashed. Where a command needs that, it is not
//! executed ([`NotYet`]): the caller unlocks, prepares it ([`Ahead`]), and tries again.

use super::answers::Answers;
use super::change::{Change, LongOld, NotPut};
use super::clock::Now;
use super::command::{Digits, Effect, Function, Input, Needs, NewValue};
use super::digest::Digest;
use super::entry::{Entry, encode_put};
use super::memory::Full;
use super::store::{Entries, Store};
use crate::wire::expiry::DEADLINE_LEN;
use crate::wire::request::HEADER_LEN;
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{Request, RequestFrame};

/// Times that something is prepared for one write. Where the old entry is replaced by others more often than this
/// meanwhile, the work is done under the lock.
const ROUNDS_MAX: u8 = 4;

/// A command that the engine computes, with its request.
pub(super) struct Call<'c, 'a> {
    pub(super) frame: &'c RequestFrame<'a>,
    pub(super) function: Function,
    pub(super) hash: u64,
    pub(super) clock: &'c Now<'c>,
    /// Whether writes are logged.
    pub(super) has_log: bool,
}

/// The result of a computed command. It fits in registers.
pub(super) enum Computed {
    /// It had no effect.
    Nothing,
    /// It had an effect, whose frame is in the buffer for effects where writes are logged.
    Made,
    /// The same, and it replaced this entry.
    Replaced(Entry),
    /// It stored a long entry.
    Long(Box<LongMade>),
}

/// The result of a command that stored a long entry.
pub(super) struct LongMade {
    /// That entry, where writes are logged: it is the record.
    pub(super) record: Option<Entry>,
    /// The entry that it replaced.
    pub(super) replaced: Option<Entry>,
}

impl Computed {
    fn made(replaced: Option<Entry>) -> Computed {
        replaced.map_or(Computed::Made, Computed::Replaced)
    }
}

/// The thing that a command needs first, without a lock. Nothing was done.
pub(super) enum NotYet<'a> {
    /// The digest of this old entry.
    Digest(LongOld),
    /// The XXH3-128 of the value of this old entry.
    ValueHash(Entry),
    /// The entry of this value, which is long.
    Entry(NewValue<'a>, Option<u64>),
    /// This entry with a deadline, or without one.
    Moved(Entry, Option<u64>),
    /// Memory.
    Full(Full),
}

impl From<NotPut> for Box<NotYet<'_>> {
    fn from(why: NotPut) -> Self {
        Box::new(match why {
            NotPut::Long(long) => NotYet::Digest(long),
            NotPut::Full(full) => NotYet::Full(full),
        })
    }
}

impl From<LongOld> for Box<NotYet<'_>> {
    fn from(long: LongOld) -> Self {
        Box::new(NotYet::Digest(long))
    }
}

/// Things that were prepared without a lock for one write.
#[derive(Default)]
pub(super) struct Ahead {
    /// On the heap, as most writes need none.
    things: Option<Box<Things>>,
    rounds: u8,
}

#[derive(Default)]
struct Things {
    /// A clone of the old entry, and the XXH3-128 of its value.
    value_hash: Option<(Entry, u128)>,
    /// The new entry, and its digest without the deadline.
    entry: Option<(Entry, Digest)>,
    /// A clone of the old entry, and a copy of it with a deadline, or without one.
    moved: Option<(Entry, Entry)>,
}

impl Ahead {
    /// Does everything that is not known under the lock.
    pub(super) fn under_lock() -> Ahead {
        Ahead {
            rounds: ROUNDS_MAX,
            ..Ahead::default()
        }
    }

    /// Knows a copy of an old entry with a deadline, or without one.
    pub(super) fn move_to(&mut self, old: Entry, moved: Option<Entry>) {
        self.things().moved = moved.map(|moved| (old, moved));
    }

    /// Prepares what a write to `key` needs. Nothing is locked.
    pub(super) fn prepare(&mut self, key: &[u8], change: &mut Change, needed: NotYet<'_>) {
        self.rounds = self.rounds.saturating_add(1);
        let mut digits = Digits::new();
        let made = |made| match made {
            Ok(entry) => entry,
            Err(_) => unreachable!("an effect is little longer than its request"),
        };
        match needed {
            NotYet::Digest(long) => change.learn(long),
            NotYet::ValueHash(old) => {
                let hash = xxhash_rust::xxh3::xxh3_128(old.value());
                self.things().value_hash = Some((old, hash));
            }
            NotYet::Entry(value, deadline) => {
                let value = value.bytes(&mut digits);
                let entry: Entry = made(Entry::of_put(key, value, deadline));
                let digest = if change.is_logged() {
                    let of_deadline = Digest::of_deadline(key, deadline);
                    Digest::of(&entry).changed(of_deadline, Digest::EMPTY)
                } else {
                    Digest::EMPTY
                };
                self.things().entry = Some((entry, digest));
            }
            NotYet::Moved(old, deadline) => {
                let moved = made(old.with_deadline(deadline));
                self.things().moved = Some((old, moved));
            }
            // The engine makes room for it, or the command is not executed.
            NotYet::Full(_) => {}
        }
    }

    fn things(&mut self) -> &mut Things {
        self.things.get_or_insert_default()
    }

    fn may_unlock(&self) -> bool {
        self.rounds < ROUNDS_MAX
    }

    fn hash_of(&self, old: Option<&Entry>) -> Option<u128> {
        let (known, hash) = self.things.as_ref()?.value_hash.as_ref()?;
        old.is_some_and(|old| known.is_same_block(old))
            .then_some(*hash)
    }
}

impl Store {
    /// Executes a command whose effect follows from the old entry, with the key's partition locked for writing. Adds
    /// its answer, and the frame of its effect to `effects`.
    ///
    /// # Errors
    ///
    /// The thing that it needs first. Nothing is done then.
    #[inline(always)]
    pub(super) fn compute<'a>(
        &self,
        entries: &mut Entries,
        call: &Call<'_, 'a>,
        (change, ahead): (&mut Change, &mut Ahead),
        effects: &mut Vec<u8>,
        answers: &mut Answers,
    ) -> Result<Computed, Box<NotYet<'a>>> {
        let before = (effects.len(), answers.bytes().len());
        let key = call.frame.key();
        self.note_hit(entries, call.hash, key);
        let bucket = entries.bucket_of(call.hash, key);
        let raw = bucket.and_then(|bucket| entries.table.get_bucket(bucket));
        let old = raw.filter(|entry| is_live(entry, call.clock));
        #[cfg(test)]
        let old = if crate::planted::is(crate::planted::Fault::HiddenIsPresent) {
            raw
        } else {
            old
        };
        let mut input = Input {
            frame: call.frame,
            old,
            deadline: old.and_then(Entry::deadline),
            clock: call.clock,
            old_hash: ahead.hash_of(old),
            has_log: call.has_log,
        };
        let mut done = (call.function)(&input, answers);
        if let Err(Needs::OldHash) = done {
            answers.truncate(before.1);
            if let Some(old) = old.filter(|_| ahead.may_unlock()) {
                return Err(Box::new(NotYet::ValueHash(old.clone())));
            }
            let value = old.map_or(&[][..], Entry::value);
            input.old_hash = Some(xxhash_rust::xxh3::xxh3_128(value));
            done = (call.function)(&input, answers);
        }
        let effect = done.as_ref().unwrap_or(&Effect::None);
        let old = (bucket, input.deadline);
        // By far the most frequent one. It needs no frame where it is not logged.
        if let Effect::Put { value, deadline } = effect
            && deadline.is_none()
            && !change.is_logged()
            && let Some(entry) = bucket.and_then(|bucket| entries.table.get_bucket_mut(bucket))
            && let value = value.bytes(&mut Digits::new())
            && value.len() <= RUN_FRAME_BYTES_MAX
            && entry.overwrite_value(value)
        {
            return Ok(Computed::Made);
        }
        let computed = self.carry_out(entries, (call, old), effect, (change, ahead), effects);
        if computed.is_err() {
            effects.truncate(before.0);
            answers.truncate(before.1);
        }
        computed
    }

    /// Carries out the effect of a command. `old` is the bucket of the key's entry in its table, and the deadline of
    /// the entry, unless that has passed.
    #[inline(never)]
    fn carry_out<'a>(
        &self,
        entries: &mut Entries,
        (call, old): (&Call<'_, 'a>, (Option<usize>, Option<u64>)),
        effect: &Effect<'a>,
        (change, ahead): (&mut Change, &mut Ahead),
        effects: &mut Vec<u8>,
    ) -> Result<Computed, Box<NotYet<'a>>> {
        let key = call.frame.key();
        let raw = old.0.and_then(|bucket| entries.table.get_bucket(bucket));
        let mut digits = Digits::new();
        match effect {
            Effect::None => Ok(Computed::Nothing),
            Effect::AsSent => unreachable!("a computed command is not its own effect"),
            Effect::Put { value, deadline } => {
                if let Some(raw) = raw {
                    change.knows(raw)?;
                }
                let put = Put {
                    hash: call.hash,
                    key,
                    value: *value,
                    bytes: value.bytes(&mut digits),
                    deadline: *deadline,
                };
                self.compute_put(entries, put, (change, ahead), effects, call.has_log)
            }
            Effect::Remove => {
                if let Some(raw) = raw {
                    change.knows(raw)?;
                }
                encode(&Request::Del { key }, effects);
                let taken = self.take(entries, call.hash, key, None, change)?;
                Ok(Computed::made(taken))
            }
            Effect::Expire { deadline } => {
                let old = (raw.map_or(0, |raw| raw.frame().len()), old.1);
                self.compute_expire(entries, (call, old), *deadline, (change, ahead), effects)
            }
        }
    }

    /// Executes the effect [`Effect::Expire`]. `old` is the length of the entry's frame, and its deadline.
    #[inline]
    fn compute_expire<'a>(
        &self,
        entries: &mut Entries,
        (call, old): (&Call<'_, 'a>, (usize, Option<u64>)),
        deadline: Option<u64>,
        (change, ahead): (&mut Change, &mut Ahead),
        effects: &mut Vec<u8>,
    ) -> Result<Computed, Box<NotYet<'a>>> {
        let (hash, key) = (call.hash, call.frame.key());
        let becomes = (old.0 + DEADLINE_LEN, deadline.is_some());
        let growth = if change.is_limited() && old.1.is_none() {
            self.growth(entries, (hash, key), becomes, 0)
        } else {
            0
        };
        let reserved = self.reserve_memory(std::iter::once((growth, 0)));
        let reserved = reserved.map_err(NotPut::Full)?;
        let moved = self.expire(entries, hash, key, deadline, (change, ahead));
        self.release(reserved);
        let replaced = moved?;
        let value = &crate::wire::expiry::expire_value(deadline);
        encode(&Request::Expire { key, value }, effects);
        Ok(Computed::made(replaced.flatten()))
    }

    fn compute_put<'a>(
        &self,
        entries: &mut Entries,
        put: Put<'_, 'a>,
        (change, ahead): (&mut Change, &mut Ahead),
        effects: &mut Vec<u8>,
        has_log: bool,
    ) -> Result<Computed, Box<NotYet<'a>>> {
        let Put { hash, key, .. } = put;
        if HEADER_LEN + key.len() + put.bytes.len() > RUN_FRAME_BYTES_MAX {
            let may_unlock = ahead.may_unlock();
            let mut ready = ahead.things.as_mut().map(|things| &mut things.entry);
            let taken = (ready.as_mut()).and_then(|ready| ready.take_if(|it| put.fits(it)));
            if let Some((entry, digest)) = taken {
                let record = has_log.then(|| entry.clone());
                let stored = self.put_entry(entries, hash, entry, change);
                // It stays there where it is not stored, so that it is freed without the lock.
                let replaced = stored.map_err(|(why, entry)| {
                    if let Some(ready) = ready {
                        *ready = Some((entry, digest));
                    }
                    why
                })?;
                change.adds(digest.plus(Digest::of_deadline(key, put.deadline)));
                return Ok(Computed::Long(Box::new(LongMade { record, replaced })));
            }
            // Otherwise the value changes too often: the entry is made under the lock.
            if may_unlock {
                return Err(Box::new(NotYet::Entry(put.value, put.deadline)));
            }
        }
        let start = effects.len();
        if encode_put(key, put.bytes, put.deadline, effects).is_err() {
            unreachable!("an effect is little longer than its request");
        }
        let frame = &effects[start..];
        let put = RequestFrame::of_encoded(frame);
        let replaced = self.put_frame(entries, hash, &put, None, change)?;
        if change.is_logged() {
            change.adds(Digest::of_frame(frame));
        }
        Ok(Computed::made(replaced))
    }

    /// Gives the entry of `key` a deadline, or takes it away, with its partition locked for writing. Returns the entry
    /// that was replaced, where one was; `None` where the key does not exist.
    ///
    /// # Errors
    ///
    /// The thing that it needs first. Nothing is done then.
    pub(super) fn expire(
        &self,
        entries: &mut Entries,
        hash: u64,
        key: &[u8],
        deadline: Option<u64>,
        (change, ahead): (&mut Change, &mut Ahead),
    ) -> Result<Option<Option<Entry>>, Box<NotYet<'static>>> {
        let Some(entry) = entries.find_mut(hash, key) else {
            return Ok(None);
        };
        let old = entry.deadline();
        if deadline.is_some_and(|deadline| entry.set_deadline(deadline)) {
            change.expires(key, old, deadline);
            self.note_deadline(entries, hash, old, deadline);
            return Ok(Some(None));
        }
        let is_known = |(known, moved): &(Entry, Entry)| {
            known.is_same_block(entry) && moved.deadline().is_some() == deadline.is_some()
        };
        let may_unlock = ahead.may_unlock();
        let ready = ahead.things.as_mut().map(|things| &mut things.moved);
        let mut moved = match ready.and_then(|ready| ready.take_if(|moved| is_known(moved))) {
            Some((_, moved)) => moved,
            None if entry.frame().len() > RUN_FRAME_BYTES_MAX && may_unlock => {
                return Err(Box::new(NotYet::Moved(entry.clone(), deadline)));
            }
            None => match entry.with_deadline(deadline) {
                Ok(moved) => moved,
                Err(_) => unreachable!("an effect is little longer than its request"),
            },
        };
        if let Some(deadline) = deadline {
            moved.set_deadline(deadline);
        }
        let (frame_len, size) = (moved.frame().len(), moved.size());
        let replaced = std::mem::replace(entry, moved);
        self.counted(entries, |entries| {
            entries.sizes.subtract(&replaced);
            entries.sizes.add(frame_len, size);
        });
        change.expires(key, old, deadline);
        self.note_deadline(entries, hash, old, deadline);
        Ok(Some(Some(replaced)))
    }
}

/// Whether the deadline of an entry has not passed.
#[inline]
pub(super) fn is_live(entry: &Entry, clock: &Now<'_>) -> bool {
    match entry.deadline() {
        None => true,
        Some(deadline) => !clock.has_passed(deadline),
    }
}

/// The effect of a command that stores a value.
struct Put<'k, 'a> {
    hash: u64,
    key: &'k [u8],
    value: NewValue<'a>,
    /// Of that value.
    bytes: &'k [u8],
    deadline: Option<u64>,
}

impl Put<'_, '_> {
    /// Whether the entry that was made ahead is this put's, which has its deadline then.
    fn fits(&self, (entry, _): &mut (Entry, Digest)) -> bool {
        // A long value is that of the request, so only one that was computed may have changed.
        let is_same = entry.value().len() == self.bytes.len()
            && (self.bytes.len() > RUN_FRAME_BYTES_MAX || entry.value() == self.bytes);
        is_same
            && match self.deadline {
                None => entry.deadline().is_none(),
                Some(deadline) => entry.set_deadline(deadline),
            }
    }
}

/// Adds the frame of an effect.
pub(super) fn encode(effect: &Request<'_>, out: &mut Vec<u8>) {
    let encoded = effect.encode(out);
    encoded.unwrap_or_else(|_| unreachable!("an effect is little longer than its request"));
}
