//! Executes the requests of clients: the path of a write from its frame to its position in the log.
//!
//! 1. Everything that needs no lock is done first: keys are hashed, the records and their digests made, and room in the
//!    append queue reserved ([`Prepared`]).
//! 2. The partitions of the run are locked, in ascending order.
//! 3. The gate is checked. Nothing has changed so far; a request that is not admitted is given back.
//! 4. Each request is executed: its command adds an answer, its effect changes the partition.
//! 5. The records are appended: they get their indexes, and the partitions note the last one.
//! 6. The partitions are unlocked, and replaced entries are freed.

use std::sync::atomic::Ordering;

use super::Engine;
use super::answers::Answers;
use super::change::Change;
use super::clock::Now;
use super::command::{self, Command, expiry, value};
use super::entry;
use super::memory::Full;
use super::prepared::Prepared;
use super::store::Contended;
use super::work::{Work, new_entries};
use crate::log::{Position, Reservation, Sequencer};
use crate::wire::run::RUN_FRAME_BYTES_MAX;
use crate::wire::{RequestFrame, Run, Status};

/// Requests that were executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many, from the start of the run; their answers are added.
    pub count: usize,
    /// The position that their answers wait for: of writes the last record made, of reads the last record that changed
    /// one of their partitions.
    pub position: Position,
}

/// Why nothing was executed. Nothing has changed and no answer was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// The append queue has no room for the run's records. [`Engine::wait_for_room`] waits for it.
    NoRoom {
        /// Bytes to reserve.
        cost: u64,
    },
    /// Requests of this kind are not admitted now.
    Refused,
    /// The memory limit leaves no room for the write. Only [`Engine::set`] returns it: other writes are answered.
    Full(Full),
    /// The disk is full. Only [`Engine::set`] and [`Engine::expire`] return it.
    NoSpace,
}

/// The room in the log that a client may have waited for. What a request needs beyond it is reserved without a wait.
pub(super) struct Held<'e>(pub(super) Option<Reservation<'e>>);

impl<'e> Held<'e> {
    pub(super) fn reserve(
        &mut self,
        sequencer: &'e Sequencer,
        cost: u64,
    ) -> Result<Reservation<'e>, NotDone> {
        let held = self.0.as_mut().and_then(|held| held.split(cost));
        let reserved = held.or_else(|| sequencer.try_reserve(cost));
        reserved.ok_or(NotDone::NoRoom { cost })
    }

    /// Keeps room for requests that go one by one.
    fn keep(&mut self, room: Reservation<'e>) {
        match &mut self.0 {
            Some(held) => held.join(room),
            held @ None => *held = Some(room),
        }
    }
}

/// Why a run was not executed at once. Nothing has changed and no answer was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTogether {
    /// Another thread holds a partition for longer than a running thread would.
    Contended,
    /// The digest of a long old entry is needed first.
    LongOld,
    /// It cannot be executed in another way either.
    NotDone(NotDone),
}

impl From<Contended> for NotTogether {
    fn from(Contended: Contended) -> NotTogether {
        NotTogether::Contended
    }
}

impl From<NotDone> for NotTogether {
    fn from(not_done: NotDone) -> NotTogether {
        NotTogether::NotDone(not_done)
    }
}

impl Engine {
    /// Executes requests of `run` in their order and adds their answers. All of them take effect at once where their
    /// partitions are free; otherwise one after another. A GET of a long value is the last that is executed. Never
    /// waits for anything but a partition, with none locked. `room` is what [`wait_for_room`](Self::wait_for_room)
    /// returned after [`NotDone::NoRoom`].
    ///
    /// # Errors
    ///
    /// Where not even the first request was executed.
    #[inline]
    pub fn execute<'e>(
        &'e self,
        run: &Run<'_>,
        room: Option<Reservation<'e>>,
        answers: &mut Answers,
    ) -> Result<Outcome, NotDone> {
        let mut held = Held(room);
        if self.store.memory().is_some() {
            self.make_room_ahead(run)?;
        }
        if run.len() > 1 {
            match self.together(run, &mut held, answers) {
                Ok(outcome) => return Ok(outcome),
                Err(NotTogether::Contended | NotTogether::LongOld) => {}
                // Its reads may be admitted where its writes are not.
                Err(NotTogether::NotDone(
                    NotDone::Refused | NotDone::Full(_) | NotDone::NoSpace,
                )) => {}
                Err(NotTogether::NotDone(no_room @ NotDone::NoRoom { .. })) => return Err(no_room),
            }
        }
        let mut outcome = Outcome::default();
        for frame in run.frames() {
            match self.execute_one(&frame, &mut held, answers) {
                Ok(position) => {
                    outcome.count += 1;
                    outcome.position = outcome.position.max(position);
                }
                Err(why) => match self.answer_full(why, answers) {
                    Ok(_) => outcome.count += 1,
                    Err(not_done) if outcome.count == 0 => return Err(not_done),
                    Err(_) => break,
                },
            }
            if answers.has_apart() {
                break;
            }
        }
        Ok(outcome)
    }

    /// Executes requests of `run` at once, as [`execute`](Self::execute) does where their partitions are free.
    ///
    /// # Errors
    ///
    /// Where nothing was executed.
    pub fn execute_together<'e>(
        &'e self,
        run: &Run<'_>,
        room: Option<Reservation<'e>>,
        answers: &mut Answers,
    ) -> Result<Outcome, NotTogether> {
        self.together(run, &mut Held(room), answers)
    }

    /// Executes a run with all its partitions locked. Not inlined: a connection that sends one request at a time does
    /// not pay for the stack that this needs.
    #[inline(never)]
    fn together<'e>(
        &'e self,
        run: &Run<'_>,
        held: &mut Held<'e>,
        answers: &mut Answers,
    ) -> Result<Outcome, NotTogether> {
        let mut prepared = Prepared::of_run(self, run, held)?;
        let result = self.with_partitions(run, &mut prepared, answers);
        if let (Err(_), Some(prepared)) = (&result, prepared) {
            // The room that a client has waited for is its requests' when they go one by one.
            held.keep(prepared.into_reservation());
        }
        result
    }

    #[inline(always)]
    fn with_partitions<'e>(
        &'e self,
        run: &Run<'_>,
        prepared: &mut Option<Prepared<'e>>,
        answers: &mut Answers,
    ) -> Result<Outcome, NotTogether> {
        let writes = run.writes();
        let digests = prepared.as_ref().map(|_| Prepared::digests(run));
        let hashes = run.keys().map(|key| self.store.hash(key)).collect();
        let mut locked = self.store.lock(&hashes, writes)?;
        let epoch = self.admitted(writes != 0)?;
        let touched = locked.touch(&hashes, writes);
        if touched.longest > RUN_FRAME_BYTES_MAX {
            return Err(NotTogether::LongOld);
        }
        let digests = digests.unwrap_or_default();
        let new = new_entries(run, touched.vacant);
        let change = Change::of_client(self.sequencer.is_some());
        let mut work = Work::new(self, prepared, digests, new, change);
        let count = work.execute(run, &hashes, &mut locked, answers);
        if count == 0 {
            return Err(NotTogether::LongOld);
        }
        let index = work.append(run, epoch, &mut locked, answers);
        drop(locked);
        if writes != 0 {
            self.reached(index);
        }
        answers.settle();
        Ok(Outcome {
            count,
            position: Position { epoch, index },
        })
    }

    #[inline(always)]
    fn execute_one<'e>(
        &'e self,
        frame: &RequestFrame<'_>,
        held: &mut Held<'e>,
        answers: &mut Answers,
    ) -> Result<Position, NotDone> {
        let key = frame.key();
        match command::of(frame.opcode()) {
            Command::Get => {
                let hash = self.store.hash(key);
                let entries = self.store.read(hash);
                let epoch = self.admitted(false)?;
                self.store.note_hit(&entries, hash, key);
                value::get(entries.find_live(hash, key, &Now::of(&self.clock)), answers);
                let index = entries.last_index;
                drop(entries);
                answers.settle();
                Ok(Position { epoch, index })
            }
            Command::Set => {
                let position = self.set_one(frame, held)?;
                value::set(answers);
                Ok(position)
            }
            Command::Del => {
                let (position, removed) = self.del_one(frame, key, held)?;
                value::del(removed.is_some(), answers);
                Ok(position)
            }
            Command::Ttl => self.ttl_one(key, answers),
            Command::Computed(function) => self.compute_one(frame, function, held, answers),
            Command::None => unreachable!("no run has such a request"),
        }
    }

    /// Executes a TTL. Not inlined, as it is no part of the hot path.
    #[inline(never)]
    fn ttl_one(&self, key: &[u8], answers: &mut Answers) -> Result<Position, NotDone> {
        let (hash, clock) = (self.store.hash(key), Now::of(&self.clock));
        let entries = self.store.read(hash);
        let epoch = self.admitted(false)?;
        let old = entries.find_live(hash, key, &clock);
        expiry::ttl(
            old.is_some(),
            old.and_then(entry::Entry::deadline),
            &clock,
            answers,
        );
        let index = entries.last_index;
        Ok(Position { epoch, index })
    }

    /// Checks that the node's disk has space for a write. Without space a write is refused before it is executed.
    ///
    /// # Errors
    ///
    /// [`NotDone::NoSpace`] where it has not, and [`NotDone::Refused`] where the node takes no writes.
    #[inline]
    pub(super) fn check_space(
        &self,
        sequencer: &Sequencer,
        only_removes: impl FnOnce() -> bool,
    ) -> Result<(), NotDone> {
        let log = sequencer.log();
        if log.has_space(false) || log.has_space(only_removes()) {
            return Ok(());
        }
        // A follower refuses writes whatever its disk is.
        Err(if self.admits_writes() {
            NotDone::NoSpace
        } else {
            NotDone::Refused
        })
    }

    /// Adds the answer FULL where that is why a write was not done. Returns the position that it waits for: none.
    ///
    /// # Errors
    ///
    /// `why`, where it is another reason.
    #[cold]
    pub(super) fn answer_full(
        &self,
        why: NotDone,
        answers: &mut Answers,
    ) -> Result<Position, NotDone> {
        let message = match why {
            NotDone::Full(full) => self.message_of(full),
            NotDone::NoSpace => self.refuse_for_space(),
            NotDone::NoRoom { .. } | NotDone::Refused => return Err(why),
        };
        answers.push(Status::Full, message.as_bytes());
        Ok(Position::default())
    }

    /// Counts a write that is refused because the disk is full, and returns the message of FULL (GBP §7).
    #[cold]
    #[must_use]
    pub fn refuse_for_space(&self) -> String {
        self.refused_for_space.fetch_add(1, Ordering::Relaxed);
        let why = self.log().map(|log| log.space().1).unwrap_or_default();
        format!(
            "{why}; make room there: writes then go on by themselves; DEL is executed while the reserve lasts"
        )
    }

    /// Waits until the append queue has room for records of this cost, behind the writers that wait already. The
    /// caller holds no lock. `None` without a log.
    #[must_use]
    pub fn wait_for_room(&self, cost: u64) -> Option<Reservation<'_>> {
        let sequencer = self.sequencer.as_ref()?;
        Some(sequencer.reserve(cost))
    }

    /// Reserves room where there is some. A simulation waits by itself.
    #[cfg(test)]
    pub(crate) fn try_room(&self, cost: u64) -> Option<Reservation<'_>> {
        self.sequencer.as_ref()?.try_reserve(cost)
    }
}
