//! One client's requests and answers, as bytes in and bytes out.
//!
//! A session knows no socket, thread or clock. The [connection](super::connection) reads bytes into it, has it
//! [step](Session::step), and sends what it has to send. So every rule about frames is tested without sockets, and the
//! connection's own thread and a polling thread run the same code.

use std::mem::MaybeUninit;

use crate::engine::entry::{Entry, EntryBuilder};
use crate::engine::{Answers, DIRECT_BYTES};
use crate::log::Reservation;
use crate::node::{NoRoom, Node, NotSet, Reply};
use crate::wire::request::{self, Disposition, HEADER_LEN, Limits, Parsed, RequestError};
use crate::wire::{Buffer, Opcode, Request, RequestFrame, Run};

/// Bytes of answers from which on nothing more is carried out until some are sent. It bounds the memory that answers
/// take, and the time that a client waits for the first of them.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// A SET frame longer than this is read straight into the entry that it becomes. For shorter ones a copy costs less
/// than the system call that reading each of several frames on its own takes.
const LARGE_FRAME_BYTES: usize = 48 << 10;

/// Longest frame in bytes whose block is kept for the next one: as much as the input of a connection under load takes.
const SPARE_BYTES_MAX: usize = 128 << 10;

/// Where a session's input comes from.
pub(super) trait Source {
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
pub(super) enum Thread {
    /// The connection's own, which may take long.
    Own,
    /// A polling thread, for which other clients wait.
    Polling,
}

/// What a session needs to go on.
#[derive(Debug)]
pub(super) enum Step {
    /// More input. Every whole request is carried out.
    Read,
    /// That output is sent: no more is made before.
    Send,
    /// The connection's own thread: the next request may take long.
    Own,
    /// The answer to the [frame](Session::frame) at the start of the input, a FOLLOW, by [`Session::answer`].
    Follow,
    /// A place outside the reserve, for the next request: [`Session::leave_reserve`] or [`Session::refuse`].
    LeaveReserve,
    /// The end, after an ERROR for this by [`Session::refuse`].
    Refuse(RequestError),
}

/// One client's requests and answers.
pub(super) struct Session<'a> {
    node: &'a Node,
    limits: Limits,
    input: Buffer,
    /// Length in bytes of the frame at the start of the input, as far as is known.
    needed: usize,
    /// A large SET frame that is arriving; `input` is empty meanwhile.
    large: Option<EntryBuilder>,
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
    pub(super) fn new(
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
    pub(super) fn read<S: Source>(&mut self, source: &mut S) -> Result<usize, S::Error> {
        if let Some(builder) = &mut self.large {
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
            self.large = Some(spare);
        } else if spare.arrived() > 0 {
            self.input.extend(spare.bytes());
        } else {
            self.spare = Some(spare);
        }
        read
    }

    /// Carries out the requests that have arrived, in their order, up to where something else has to happen first.
    pub(super) fn step(&mut self, thread: Thread) -> Step {
        if !self.has_spoken
            && let Some(&first) = self.input.bytes().first()
        {
            if let Err(error) = request::reject_text(first) {
                return Step::Refuse(error);
            }
            self.has_spoken = true;
        }
        if self.large.is_some() && !self.finish_large() {
            return Step::Read;
        }
        loop {
            if self.output.is_full() {
                return Step::Send;
            }
            if self.skip > 0 && !self.finish_skip() {
                return Step::Read;
            }
            if self.is_reserved && self.needs_place() {
                return Step::LeaveReserve;
            }
            if !self.execute_run()
                && let Some(step) = self.execute_frame(thread)
            {
                return step;
            }
        }
    }

    /// Carries out the large SET that has arrived; false where some of it is missing.
    fn finish_large(&mut self) -> bool {
        let entry = match self.large.take().map(EntryBuilder::finish) {
            Some(Ok(entry)) => entry,
            Some(Err(builder)) => {
                self.needed = builder.needed();
                self.large = Some(builder);
                return false;
            }
            None => return true,
        };
        self.completed += 1;
        match self.set(entry) {
            Ok(replaced) => {
                self.spare = replaced
                    .filter(|entry| entry.frame().len() <= SPARE_BYTES_MAX)
                    .and_then(Entry::into_room);
                self.output.push(Reply::Done);
            }
            Err(reply) => self.output.push(reply),
        }
        true
    }

    /// Executes a large SET, and returns the entry that it replaced.
    fn set(&self, mut entry: Entry) -> Result<Option<Entry>, Reply> {
        let mut room = None;
        loop {
            match self.node.set(entry, room) {
                Ok((_, replaced)) => return Ok(replaced),
                Err(NotSet::Refused(reply)) => return Err(reply),
                Err(NotSet::NoRoom(NoRoom { cost }, given_back)) => {
                    room = self.node.engine().wait_for_room(cost);
                    entry = given_back;
                }
            }
        }
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
        let for_reserve = [Opcode::Status, Opcode::Follow, Opcode::Ping].map(Opcode::byte);
        let first = self.input.bytes().first();
        first.is_some_and(|opcode| !for_reserve.contains(opcode))
    }

    /// Carries out the run at the start of the input; false where there is none.
    fn execute_run(&mut self) -> bool {
        let bytes = self.input.bytes();
        if !bytes.first().is_some_and(|&opcode| Run::takes(opcode)) {
            return false;
        }
        let run = Run::of(bytes, &self.limits);
        if run.is_empty() {
            return false;
        }
        let count = loop {
            let answers = &mut self.output.answers;
            match self.node.execute_run(&run, self.room.take(), answers) {
                Ok(outcome) => break outcome.count,
                Err(NoRoom { cost }) => self.room = self.node.engine().wait_for_room(cost),
            }
        };
        let len = run.bytes_of(count);
        self.completed += count;
        self.input.consume(len);
        true
    }

    /// Carries out, or refuses, the frame at the start of the input, which is no run; or gives what is needed for it.
    fn execute_frame(&mut self, thread: Thread) -> Option<Step> {
        match request::parse(self.input.bytes(), &self.limits) {
            Ok(Parsed::Whole(frame)) => {
                let request = frame.request();
                if thread == Thread::Polling && takes_long(&request) {
                    return Some(Step::Own);
                }
                if matches!(request, Request::Follow { .. }) {
                    return Some(Step::Follow);
                }
                let reply = self.node.execute(&frame);
                let len = frame.bytes().len();
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

    /// The frame at the start of the input is of `needed` bytes, as far as is known, and some of them are missing.
    fn await_rest(&mut self, needed: usize) -> Option<Step> {
        if needed > LARGE_FRAME_BYTES
            && let Some(builder) = EntryBuilder::new(self.input.bytes())
        {
            if let Some(reply) = self.node.refuses_writes() {
                // Without storing the value first.
                self.output.push(reply);
                self.skip = needed;
                return None;
            }
            self.large = Some(builder);
            self.input.consume(needed);
        }
        self.needed = needed;
        Some(Step::Read)
    }

    /// The whole frame at the start of the input.
    pub(super) fn frame(&self) -> Option<RequestFrame<'_>> {
        match request::parse(self.input.bytes(), &self.limits) {
            Ok(Parsed::Whole(frame)) => Some(frame),
            Ok(Parsed::Incomplete { .. }) | Err(_) => None,
        }
    }

    /// Answers the [frame](Session::frame) at the start of the input.
    pub(super) fn answer(&mut self, reply: Reply) {
        let len = self.frame().map_or(0, |frame| frame.bytes().len());
        self.complete(len, reply);
    }

    fn complete(&mut self, len: usize, reply: Reply) {
        self.completed += 1;
        self.input.consume(len);
        self.output.push(reply);
    }

    /// Answers with an ERROR, the last answer of this session.
    pub(super) fn refuse(&mut self, message: String) {
        self.output.push(Reply::Error(message));
    }

    /// Whether the connection has a place of the reserve.
    pub(super) const fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// The connection has an ordinary place from now on.
    pub(super) const fn leave_reserve(&mut self) {
        self.is_reserved = false;
    }

    /// Requests completed since [`begin_wait`](Session::begin_wait).
    pub(super) const fn completed(&self) -> usize {
        self.completed
    }

    /// Counts completed requests from 0.
    pub(super) const fn begin_wait(&mut self) {
        self.completed = 0;
    }

    /// Whether nothing of a request has arrived that is not carried out.
    pub(super) const fn is_between_frames(&self) -> bool {
        self.input.is_empty() && self.large.is_none() && self.skip == 0
    }

    /// Whether the rest of a refused frame is being discarded. It has its ERROR, and a second one would count as the
    /// answer to the next request.
    pub(super) const fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Input that has arrived and is not carried out.
    pub(super) fn input(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Of the frame that is arriving: bytes that have come, and bytes that are needed, as far as is known.
    pub(super) fn progress(&self) -> (usize, usize) {
        let large = self.large.as_ref().map(EntryBuilder::arrived);
        let len = large.unwrap_or(self.input.bytes().len());
        (len, self.needed.max(len + self.skip))
    }

    /// Output that can be sent, in two parts.
    pub(super) fn output(&self) -> [&[u8]; 2] {
        let (bytes, apart) = self.output.parts();
        match self.output.sent.checked_sub(bytes.len()) {
            None => [&bytes[self.output.sent..], apart],
            Some(of_apart) => [&apart[of_apart..], &[]],
        }
    }

    /// The first `count` bytes of the output are sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.output.sent(count);
    }

    /// Whether there is output that is not sent.
    pub(super) fn has_output(&self) -> bool {
        !self.output.answers.is_empty()
    }

    /// Whether some of it is a long value, which may take long to send.
    pub(super) fn has_long_output(&self) -> bool {
        self.output.answers.apart().is_some()
    }

    /// Whether more memory is held than an idle connection is to hold.
    pub(super) fn is_grown(&self) -> bool {
        self.input.is_grown() || self.output.is_grown() || self.spare.is_some()
    }

    /// Whether memory goes back to the allocator when this is dropped that is more than an idle connection's.
    pub(super) fn is_large(&self) -> bool {
        self.is_grown() || self.large.is_some()
    }

    /// Frees the memory that an idle connection does not need.
    pub(super) fn release(&mut self) {
        self.input.release();
        self.spare = None;
        self.output.release();
    }
}

/// Whether a request may take longer than other clients can wait for.
const fn takes_long(request: &Request<'_>) -> bool {
    match request {
        Request::Get { .. } | Request::Set { .. } | Request::Del { .. } | Request::Ping => false,
        Request::Status
        | Request::Discard
        | Request::Sums { .. }
        | Request::List { .. }
        | Request::Follow { .. } => true,
    }
}

/// Answers that are not sent yet.
#[derive(Default)]
struct Output {
    answers: Answers,
    /// Bytes that are sent.
    sent: usize,
}

impl Output {
    fn push(&mut self, reply: Reply) {
        reply.push_to(&mut self.answers);
    }

    /// The answers, and the end of the last one where it is apart.
    fn parts(&self) -> (&[u8], &[u8]) {
        (
            self.answers.bytes(),
            self.answers.apart().unwrap_or_default(),
        )
    }

    /// Whether something has to be sent before more is added.
    fn is_full(&self) -> bool {
        self.answers.apart().is_some() || self.answers.bytes().len() >= OUTPUT_BYTES_MAX
    }

    fn sent(&mut self, count: usize) {
        self.sent += count;
        let (bytes, apart) = self.parts();
        if self.sent >= bytes.len() + apart.len() {
            self.answers.clear();
            self.sent = 0;
        }
    }

    fn is_grown(&self) -> bool {
        self.answers.capacity() > DIRECT_BYTES
    }

    fn release(&mut self) {
        self.answers.release();
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
impl Session<'_> {
    pub(super) const fn spare(&self) -> Option<&EntryBuilder> {
        self.spare.as_ref()
    }

    pub(super) const fn large(&self) -> Option<&EntryBuilder> {
        self.large.as_ref()
    }
}
