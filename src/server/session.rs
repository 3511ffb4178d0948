//! One client's requests and answers, as bytes in and bytes out.
//!
//! A session knows no socket, thread or clock. The [connection](super::connection) reads bytes into it, has it
//! [step](Session::step), and sends what it has to send. So every rule about frames is tested without sockets, and the
//! connection's own thread and a polling thread run the same code.

mod output;

use std::mem::MaybeUninit;
use std::time::Duration;

use crate::engine::entry::{Entry, EntryBuilder};
use crate::log::{Position, Reservation};
use crate::node::{Awaited, NoRoom, Node, NotBatched, NotSet, Reply, Synced};
use crate::wire::command::OkValue;
use crate::wire::command::Reserve;
use crate::wire::request::{self, Disposition, HEADER_LEN, Limits, Parsed, RequestError};
use crate::wire::{Buffer, Opcode, RequestFrame, Run};
use output::Output;

/// A SET frame longer than this is read straight into the entry that it becomes. For shorter ones a copy costs less
/// than the system call that reading each of several frames on its own takes.
const LARGE_FRAME_BYTES: usize = 48 << 10;

/// Longest frame in bytes whose block is kept for the next one: as much as the input of a connection under load takes.
const SPARE_BYTES_MAX: usize = 128 << 10;

/// Where a session's input comes from.
pub(crate) trait Source {
    type Error;

    /// Puts bytes at the start of `room`, and returns how many.
    fn read(&mut self, room: &mut [u8]) -> Result<usize, Self::Error>;

    /// The same where `room` need not be initialised; returns its part that is, by then.
    fn read_uninit<'r>(
        &mut self,
        room: &'r mut [MaybeUninit<u8>],
    ) -> Result<&'r mut [u8], Self::Error>;
}

/// The thread that runs a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// The connection's own, which may take long.
    Own,
    /// A polling thread, for which other clients wait.
    Polling,
}

/// The thing that a session needs to go on.
#[derive(Debug)]
pub(crate) enum Step {
    /// More input. Every whole request is executed.
    Read,
    /// That output is sent: no more is made before.
    Send,
    /// That the position is reached which the output waits for: none of it can be sent, and no more is made before.
    Await,
    /// The connection's own thread: the next request may take long, or has to wait for room in the log.
    Own,
    /// Room for so many bytes in the append queue, which is waited for: [`Session::give_room`].
    Room(u64),
    /// The answer to the [frame](Session::frame) at the start of the input, a SYNC, by [`Session::answer_at`], once
    /// this state is reached, or this time is over.
    Sync(Awaited, Duration),
    /// The answer to the [frame](Session::frame) at the start of the input, a request for a stream, by
    /// [`Session::answer`].
    Stream,
    /// A place outside the reserve, for the next request: [`Session::leave_reserve`] or [`Session::refuse`].
    LeaveReserve,
    /// The end, after an ERROR for this by [`Session::refuse`].
    Refuse(RequestError),
}

/// A large SET.
enum Large {
    Arriving(EntryBuilder),
    /// It waits for room in the log.
    Whole(Entry),
}

/// One client's requests and answers.
pub(crate) struct Session<'a> {
    node: &'a Node,
    limits: Limits,
    input: Buffer,
    /// Length in bytes of the frame at the start of the input, as far as is known.
    needed: usize,
    /// A large SET frame that is arriving; `input` is empty meanwhile.
    large: Option<Large>,
    /// The block of the entry that the last request, a large SET, has replaced. The next frame goes there if nothing of
    /// it has arrived: it is as long where a client sends one such SET after another.
    spare: Option<EntryBuilder>,
    output: Output,
    /// Room in the append queue for the next run, where it had to be waited for.
    room: Option<Reservation<'a>>,
    /// Bytes of a refused frame that are still to be discarded.
    skip: usize,
    /// The first byte has come and was not text.
    has_spoken: bool,
    /// The connection has a place of the reserve, where few requests are allowed.
    is_reserved: bool,
    /// Requests completed since [`begin_wait`](Session::begin_wait).
    completed: usize,
}

impl<'a> Session<'a> {
    /// The session of a connection of which `first` has arrived.
    pub(crate) fn new(
        node: &'a Node,
        limits: Limits,
        first: &[u8],
        is_reserved: bool,
    ) -> Session<'a> {
        let mut input = Buffer::new();
        input.extend(first);
        Session {
            node,
            limits,
            input,
            needed: HEADER_LEN,
            large: None,
            spare: None,
            output: Output::default(),
            room: None,
            skip: 0,
            has_spoken: false,
            is_reserved,
            completed: 0,
        }
    }

    /// Reads input to where it belongs, and returns how many bytes. To be called after [`Step::Read`].
    pub(crate) fn read<S: Source>(&mut self, source: &mut S) -> Result<usize, S::Error> {
        if let Some(Large::Arriving(builder)) = &mut self.large {
            return builder.read_with(|room| source.read_uninit(room));
        }
        if self.input.is_empty()
            && let Some(spare) = self.spare.take()
        {
            return self.read_into(spare, source);
        }
        let count = source.read(self.input.space(self.needed))?;
        self.input.filled(count);
        Ok(count)
    }

    /// Reads the beginning of a frame into a spare block, and keeps it there where it is the frame that fits.
    fn read_into<S: Source>(
        &mut self,
        mut spare: EntryBuilder,
        source: &mut S,
    ) -> Result<usize, S::Error> {
        let read = spare.read_with(|room| source.read_uninit(room));
        if spare.is_of_its_header() {
            self.large = Some(Large::Arriving(spare));
        } else if spare.arrived() > 0 {
            self.input.extend(spare.bytes());
        } else {
            self.spare = Some(spare);
        }
        read
    }

    /// Executes the requests that have arrived, in their order, up to where something else has to happen first.
    pub(crate) fn step(&mut self, thread: Thread) -> Step {
        if !self.has_spoken
            && let Some(&first) = self.input.bytes().first()
        {
            if let Err(error) = request::reject_text(first) {
                return Step::Refuse(error);
            }
            self.has_spoken = true;
        }
        if let Some(step) = self.execute_large(thread) {
            return step;
        }
        loop {
            if self.output.is_full() {
                return self.relieve_output();
            }
            if self.skip > 0 && !self.finish_skip() {
                return Step::Read;
            }
            if self.is_reserved && self.needs_place() {
                return Step::LeaveReserve;
            }
            match self.execute_run(thread) {
                Ok(true) => {}
                Ok(false) => {
                    if let Some(step) = self.execute_frame(thread) {
                        return step;
                    }
                }
                Err(step) => return step,
            }
        }
    }

    /// The step that makes room where the output is full.
    fn relieve_output(&self) -> Step {
        if self.output.sendable() == [b"", b""] {
            Step::Await
        } else {
            Step::Send
        }
    }

    /// Executes the large SET that is arriving, where there is one; gives what is needed for it.
    fn execute_large(&mut self, thread: Thread) -> Option<Step> {
        let entry = match self.large.take()? {
            Large::Arriving(builder) => match builder.finish() {
                Ok(entry) => entry,
                Err(builder) => {
                    self.needed = builder.needed();
                    self.large = Some(Large::Arriving(builder));
                    return Some(Step::Read);
                }
            },
            Large::Whole(entry) => entry,
        };
        match self.node.set(entry, self.room.take()) {
            Ok((position, replaced)) => {
                self.spare = replaced
                    .filter(|entry| entry.frame().len() <= SPARE_BYTES_MAX)
                    .and_then(Entry::into_room);
                let start = self.output.len();
                self.output.push(Reply::Done);
                self.output.hold(self.node, start, position, 1);
            }
            Err(NotSet::Refused(reply)) => self.output.push(reply),
            Err(NotSet::NoRoom(NoRoom { cost }, entry)) => {
                self.large = Some(Large::Whole(entry));
                return Some(wait_for_room(thread, cost));
            }
        }
        self.completed += 1;
        None
    }

    /// Discards what has arrived of a refused frame; false where some of it is missing.
    fn finish_skip(&mut self) -> bool {
        let count = self.skip.min(self.input.bytes().len());
        self.input.consume(count);
        self.skip -= count;
        if self.skip > 0 {
            self.needed = HEADER_LEN;
            return false;
        }
        self.completed += 1;
        true
    }

    /// Whether the next request is not one for the reserve.
    fn needs_place(&self) -> bool {
        let is_refused =
            |&byte: &u8| match Opcode::try_from(byte).map(|opcode| opcode.spec().reserve) {
                Ok(Reserve::Answered | Reserve::Admitted) => false,
                Ok(Reserve::Refused) | Err(_) => true,
            };
        self.input.bytes().first().is_some_and(is_refused)
    }

    /// Executes the run at the start of the input, or as much of it as can be done together; false where there is none.
    fn execute_run(&mut self, thread: Thread) -> Result<bool, Step> {
        let bytes = self.input.bytes();
        if !bytes.first().is_some_and(|&opcode| Run::takes(opcode)) {
            return Ok(false);
        }
        let run = Run::of(bytes, &self.limits);
        if run.is_empty() {
            return Ok(false);
        }
        let start = self.output.len();
        let answers = &mut self.output.answers;
        let outcome = match self.node.execute_run(&run, self.room.take(), answers) {
            Ok(outcome) => outcome,
            Err(NoRoom { cost }) => return Err(wait_for_room(thread, cost)),
        };
        let (count, len) = (outcome.count, run.bytes_of(outcome.count));
        self.output
            .hold(self.node, start, outcome.position, run.writes());
        self.completed += count;
        self.input.consume(len);
        Ok(true)
    }

    /// Executes, or refuses, the frame at the start of the input, which is no run; or gives what is needed for it.
    fn execute_frame(&mut self, thread: Thread) -> Option<Step> {
        match request::parse(self.input.bytes(), &self.limits) {
            Ok(Parsed::Whole(frame)) => {
                let spec = frame.opcode().spec();
                if thread == Thread::Polling && spec.may_take_long() {
                    return Some(Step::Own);
                }
                if spec.ok == OkValue::Stream {
                    // A stream replaces answers, so it begins behind them.
                    return Some(if self.output.is_held() {
                        Step::Await
                    } else {
                        Step::Stream
                    });
                }
                let len = frame.bytes().len();
                if frame.opcode() == Opcode::Sync {
                    let synced = self.node.sync(frame.request().value());
                    return self.sync(thread, len, synced);
                }
                if frame.opcode() == Opcode::Batch {
                    let (start, answers) = (self.output.len(), &mut self.output.answers);
                    let within = (&self.limits, thread == Thread::Own);
                    let room = self.room.take();
                    let done = self.node.execute_batch(&frame, within, room, answers);
                    let (position, writes) = match done {
                        Ok(done) => done,
                        Err(NotBatched::NoRoom(NoRoom { cost })) => {
                            return Some(wait_for_room(thread, cost));
                        }
                        Err(NotBatched::TakesLong) => return Some(Step::Own),
                    };
                    self.output.hold(self.node, start, position, writes.into());
                    self.completed += 1;
                    self.input.consume(len);
                    return None;
                }
                let reply = self.node.execute(&frame);
                self.complete(len, reply);
                None
            }
            Ok(Parsed::Incomplete { needed }) => self.await_rest(needed),
            Err(error) => match error.disposition() {
                Disposition::Close => Some(Step::Refuse(error)),
                Disposition::Skip(frame_len) => {
                    self.output.push(Reply::Error(error.to_string()));
                    self.skip = frame_len;
                    None
                }
            },
        }
    }

    /// Answers the SYNC of `len` bytes at the start of the input, or gives what is needed for it.
    fn sync(&mut self, thread: Thread, len: usize, synced: Synced) -> Option<Step> {
        match (synced, thread) {
            (Synced::Done(reply, position), _) => self.complete_at(len, reply, position),
            (Synced::NotYet { timeout, reply, .. }, _) if timeout.is_zero() => {
                self.complete(len, reply);
            }
            (Synced::NotYet { .. }, Thread::Polling) => return Some(Step::Own),
            // The answers in front of it are not to wait with it.
            (Synced::NotYet { .. }, Thread::Own) if self.output.is_held() => {
                return Some(Step::Await);
            }
            (
                Synced::NotYet {
                    awaited, timeout, ..
                },
                Thread::Own,
            ) => {
                return Some(Step::Sync(awaited, timeout));
            }
        }
        None
    }

    /// The frame at the start of the input is of `needed` bytes, as far as is known, and some of them are missing.
    fn await_rest(&mut self, needed: usize) -> Option<Step> {
        if needed > LARGE_FRAME_BYTES {
            if self.begins_write()
                && let Some(reply) = self.node.refuses_writes()
            {
                // Without storing the value first.
                self.output.push(reply);
                self.skip = needed;
                return None;
            }
            if let Some(builder) = EntryBuilder::new(self.input.bytes()) {
                self.large = Some(Large::Arriving(builder));
                self.input.consume(needed);
            }
        }
        self.needed = needed;
        Some(Step::Read)
    }

    /// Whether the frame at the start of the input is a write, of which BATCH is none that is known before it is whole.
    fn begins_write(&self) -> bool {
        let opcode = self.input.bytes().first().copied();
        let opcode = opcode.and_then(|byte| Opcode::try_from(byte).ok());
        opcode.is_some_and(|opcode| opcode.spec().writes && opcode != Opcode::Batch)
    }

    /// The whole frame at the start of the input.
    pub(crate) fn frame(&self) -> Option<RequestFrame<'_>> {
        match request::parse(self.input.bytes(), &self.limits) {
            Ok(Parsed::Whole(frame)) => Some(frame),
            Ok(Parsed::Incomplete { .. }) | Err(_) => None,
        }
    }

    /// Answers the [frame](Session::frame) at the start of the input.
    pub(crate) fn answer(&mut self, reply: Reply) {
        let len = self.frame().map_or(0, |frame| frame.bytes().len());
        self.complete(len, reply);
    }

    /// The same where the answer waits for `position`.
    pub(crate) fn answer_at(&mut self, reply: Reply, position: Position) {
        let len = self.frame().map_or(0, |frame| frame.bytes().len());
        self.complete_at(len, reply, position);
    }

    fn complete_at(&mut self, len: usize, reply: Reply, position: Position) {
        self.completed += 1;
        self.input.consume(len);
        let start = self.output.len();
        self.output.push(reply);
        self.output.hold(self.node, start, position, 0);
    }

    fn complete(&mut self, len: usize, reply: Reply) {
        let position = reply.position();
        self.complete_at(len, reply, position);
    }

    /// Answers with an ERROR, the last answer of this session.
    pub(crate) fn refuse(&mut self, message: String) {
        self.output.push(Reply::Error(message));
    }

    /// Gives the room that [`Step::Room`] asked for; `None` where there is no log.
    pub(crate) fn give_room(&mut self, room: Option<Reservation<'a>>) {
        self.room = room;
    }

    /// Whether the connection has a place of the reserve.
    pub(crate) const fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// The connection has an ordinary place from now on.
    pub(crate) const fn leave_reserve(&mut self) {
        self.is_reserved = false;
    }

    /// Requests completed since [`begin_wait`](Session::begin_wait).
    pub(crate) const fn completed(&self) -> usize {
        self.completed
    }

    /// Counts completed requests from 0.
    pub(crate) const fn begin_wait(&mut self) {
        self.completed = 0;
    }

    /// Whether nothing of a request has arrived that is not executed.
    pub(crate) const fn is_between_frames(&self) -> bool {
        self.input.is_empty() && self.large.is_none() && self.skip == 0
    }

    /// Whether the rest of a refused frame is being discarded. It has its ERROR, and a second one would count as the
    /// answer to the next request.
    pub(crate) const fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Input that has arrived and is not executed.
    pub(crate) fn input(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Of the frame that is arriving: bytes that have come, and bytes that are needed, as far as is known.
    pub(crate) fn progress(&self) -> (usize, usize) {
        let len = match &self.large {
            Some(Large::Arriving(builder)) => builder.arrived(),
            Some(Large::Whole(_)) | None => self.input.bytes().len(),
        };
        (len, self.needed.max(len + self.skip))
    }

    /// Ends the waits of answers whose position is reached, or never will be. To be called before
    /// [`output`](Session::output).
    #[inline]
    pub(crate) fn release_answers(&mut self) {
        self.output.release(self.node);
    }

    /// Whether some output waits for a position.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.output.is_held()
    }

    /// The position that the first answer to be sent waits for.
    #[inline]
    pub(crate) fn awaits(&self) -> Option<Position> {
        self.output.awaits()
    }

    /// Output that can be sent, in two parts.
    #[inline]
    pub(crate) fn output(&self) -> [&[u8]; 2] {
        self.output.sendable()
    }

    /// The first `count` bytes of the output are sent. Returns whether these were all that can be sent.
    #[inline]
    pub(crate) fn sent(&mut self, count: usize) -> bool {
        self.output.sent(count)
    }

    /// Whether more memory is held than an idle connection is to hold.
    pub(crate) fn is_grown(&self) -> bool {
        self.input.is_grown() || self.output.is_grown() || self.spare.is_some()
    }

    /// Whether memory goes back to the allocator when this is dropped that is more than an idle connection's.
    pub(crate) fn is_large(&self) -> bool {
        self.is_grown() || self.large.is_some()
    }

    /// Frees the memory that an idle connection does not need.
    pub(crate) fn release(&mut self) {
        self.input.release();
        self.spare = None;
        self.output.free();
    }
}

/// The step for a request whose records have no room in the append queue. Nothing of it is executed.
const fn wait_for_room(thread: Thread, cost: u64) -> Step {
    match thread {
        Thread::Own => Step::Room(cost),
        Thread::Polling => Step::Own,
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
impl Session<'_> {
    /// Answers that are made and not sent, be it that they wait for a position.
    pub(crate) fn made(&self) -> &[u8] {
        self.output.made()
    }

    pub(crate) const fn spare(&self) -> Option<&EntryBuilder> {
        self.spare.as_ref()
    }

    /// The large frame that is arriving.
    pub(crate) const fn large(&self) -> Option<&EntryBuilder> {
        match &self.large {
            Some(Large::Arriving(builder)) => Some(builder),
            Some(Large::Whole(_)) | None => None,
        }
    }
}
