//! Runs of clients, and the answers to those that are not admitted.

use std::sync::Arc;

use super::{Node, Reply};
use crate::engine::entry::Entry;
use crate::engine::{Answers, NotDone, NotShort, Outcome};
use crate::log::backlog::Records;
use crate::log::{Position, Reservation};
use crate::wire::batch::Batch;
use crate::wire::request::Limits;
use crate::wire::{RequestFrame, Run, Status};

/// The append queue has no room for a request's records. Nothing was done;
/// [`Engine::wait_for_room`](crate::engine::Engine::wait_for_room) waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes to reserve.
    pub cost: u64,
}

/// Why a BATCH was not executed. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBatched {
    /// The append queue has no room for its record.
    NoRoom(NoRoom),
    /// It may take longer than other clients of the thread can wait.
    TakesLong,
}

/// Why a large SET was not executed.
#[derive(Debug)]
pub enum NotSet {
    /// The append queue has no room for it. The entry is given back.
    NoRoom(NoRoom, Entry),
    /// This node takes no writes, or has no memory or disk space for it; the answer to the client.
    Refused(Reply),
}

impl Node {
    /// Executes requests of `run` in their order, or refuses them, and adds their answers. Returns how many, and the
    /// position that their answers wait for. `room` is what
    /// [`Engine::wait_for_room`](crate::engine::Engine::wait_for_room) returned after [`NoRoom`].
    ///
    /// # Errors
    ///
    /// [`NoRoom`], where not even the first request could be executed.
    #[inline]
    pub fn execute_run<'n>(
        &'n self,
        run: &Run<'_>,
        room: Option<Reservation<'n>>,
        answers: &mut Answers,
    ) -> Result<Outcome, NoRoom> {
        let (outcome, is_refused) = match self.engine.execute(run, room, answers) {
            Ok(outcome) => (outcome, false),
            Err(NotDone::NoRoom { cost }) => return Err(NoRoom { cost }),
            Err(NotDone::Refused) if self.holds_writes(run) => {
                let cost = Records::cost(run.bytes().len());
                return Err(NoRoom { cost });
            }
            Err(NotDone::Refused) => (self.refuse_run(run, answers), true),
            Err(NotDone::Full(_) | NotDone::NoSpace) => {
                unreachable!("a run answers FULL itself")
            }
        };
        if outcome.count == run.len() {
            return Ok(outcome);
        }
        Ok(self.execute_rest(run, outcome, is_refused, answers))
    }

    /// Executes the requests of a BATCH together, or none of them, and adds the one answer. Returns the position that
    /// it waits for, and whether the batch writes. `room` is as for [`execute_run`](Self::execute_run).
    ///
    /// # Errors
    ///
    /// Where it could not be executed. Without `may_take_long` that is also where it may take longer than other clients
    /// of the thread can wait.
    pub fn execute_batch<'n>(
        &'n self,
        frame: &RequestFrame<'_>,
        (limits, may_take_long): (&Limits, bool),
        room: Option<Reservation<'n>>,
        answers: &mut Answers,
    ) -> Result<(Position, bool), NotBatched> {
        let batch = match Batch::decode_within(frame.value(), limits) {
            Ok(batch) => batch,
            Err(error) => {
                answers.push(Status::Error, error.reason.as_bytes());
                return Ok((Position::default(), true));
            }
        };
        let writes = batch.writes();
        let done = if may_take_long {
            let done = self.engine.execute_batch(&batch, room, answers);
            done.map_err(NotShort::NotDone)
        } else {
            self.engine.execute_short_batch(&batch, room, answers)
        };
        let not_done = match done {
            Ok(position) => return Ok((position, writes)),
            Err(NotShort::TakesLong) => return Err(NotBatched::TakesLong),
            Err(NotShort::NotDone(not_done)) => not_done,
        };
        match not_done {
            NotDone::NoRoom { cost } => return Err(NotBatched::NoRoom(NoRoom { cost })),
            NotDone::Refused if writes && self.is_transferring() => {
                let cost = Records::cost(frame.bytes().len());
                return Err(NotBatched::NoRoom(NoRoom { cost }));
            }
            NotDone::Refused => {}
            NotDone::Full(_) | NotDone::NoSpace => {
                unreachable!("a batch answers FULL itself")
            }
        }
        let reply = if writes {
            self.refusal_of_write()
        } else {
            self.refusal_of_read()
        };
        answers.push(reply.status(), reply.value());
        Ok((Position::default(), writes))
    }

    /// Goes on behind the requests of `outcome`, if there is one that is refused. The others, as those behind a long
    /// value, are the next run.
    fn execute_rest(
        &self,
        run: &Run<'_>,
        mut outcome: Outcome,
        mut was_refused: bool,
        answers: &mut Answers,
    ) -> Outcome {
        while outcome.count < run.len() {
            let rest = run.after(outcome.count);
            let is_admitted = match rest.writes() & 1 {
                0 => self.engine.admits_reads(),
                _ => self.engine.admits_writes(),
            };
            let next = match (is_admitted, was_refused) {
                (false, _) if self.holds_writes(&rest) => break,
                (false, _) => self.refuse_run(&rest, answers),
                (true, false) => break,
                (true, true) => self
                    .engine
                    .execute(&rest, None, answers)
                    .unwrap_or_default(),
            };
            if next.count == 0 {
                break;
            }
            was_refused = !is_admitted;
            outcome.count += next.count;
            outcome.position = outcome.position.max(next.position);
        }
        outcome
    }

    /// Executes a SET whose entry is already made. Returns the position that its answer waits for, and the entry that
    /// it replaced.
    ///
    /// # Errors
    ///
    /// Where nothing was done.
    pub fn set<'n>(
        &'n self,
        entry: Entry,
        room: Option<Reservation<'n>>,
    ) -> Result<(Position, Option<Entry>), NotSet> {
        self.engine
            .set(entry, room)
            .map_err(|(not_done, entry)| match not_done {
                NotDone::NoRoom { cost } => NotSet::NoRoom(NoRoom { cost }, entry),
                NotDone::Refused if self.is_transferring() => {
                    let cost = Records::cost(entry.frame().len());
                    NotSet::NoRoom(NoRoom { cost }, entry)
                }
                NotDone::Refused => NotSet::Refused(self.refusal_of_write()),
                NotDone::Full(full) => NotSet::Refused(Reply::Full(self.engine.message_of(full))),
                NotDone::NoSpace => NotSet::Refused(Reply::Full(self.engine.refuse_for_space())),
            })
    }

    /// Refuses the first request of a run, and those behind it that are refused for the same reason.
    fn refuse_run(&self, run: &Run<'_>, answers: &mut Answers) -> Outcome {
        let (is_write, len) = (run.writes() & 1 == 1, run.len());
        let (reply, same) = if is_write {
            (self.refusal_of_write(), run.writes().trailing_ones())
        } else {
            (self.refusal_of_read(), run.writes().trailing_zeros())
        };
        let count = usize::try_from(same).unwrap_or(len).min(len);
        for _ in 0..count {
            answers.push(reply.status(), reply.value());
        }
        let position = Position::default();
        Outcome { count, position }
    }

    /// Whether the first request of a run is a write that waits until leadership has moved.
    fn holds_writes(&self, run: &Run<'_>) -> bool {
        run.writes() & 1 == 1 && self.is_transferring()
    }

    /// The answer to every write, where this node takes none.
    #[must_use]
    pub fn refuses_writes(&self) -> Option<Reply> {
        (!self.takes_writes()).then(|| self.refusal_of_write())
    }

    fn refusal_of_write(&self) -> Reply {
        match self.redirects_writes() {
            Some(reply) => reply,
            None => self.refusal_of_read(),
        }
    }

    /// The address that a follower sends writers to, in whatever state it is; `None` of any other node.
    #[must_use]
    pub fn redirects_writes(&self) -> Option<Reply> {
        let state = self.state.lock();
        let leader = state.role.leader();
        leader.map(|leader| Reply::NotLeader(Arc::clone(&leader.addr)))
    }
}
