//! One client: read what has come, answer every whole request, write all the answers at once, wait, alone or
//! [with others](super::poller).

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::housekeeping::Housekeeper;
use super::poller::{Handle, Polled, Poller, State};
use super::registry::{Peer, Registry};
use crate::engine::entry::{Entry, EntryBuilder};
use crate::node::{Node, Reply};
use crate::replication::leader_side;
use crate::replication::leader_side::accept::{self, Accepted};
use crate::wire::request::{self, Disposition, HEADER_LEN, Limits, Parsed, RequestError};
use crate::wire::run::RUN_MAX;
use crate::wire::{Buffer, Opcode, Request, Run};

/// Answers are written once this many bytes have gathered, even though more requests are at hand. It bounds what a
/// connection holds of answers, and what its client waits for.
const FLUSH_BYTES: usize = 64 << 10;

/// A value at least this long is written from its entry and not copied to the other answers first.
const DIRECT_BYTES: usize = 16 << 10;

/// A SET frame longer than this is read straight into the entry that it becomes. For shorter ones a copy costs less
/// than the call to the system that reading each of several in a row on its own takes.
const LARGE_FRAME_BYTES: usize = 48 << 10;

/// Longest frame in bytes whose room is kept for the next one: as much as a busy connection's input may take.
const ROOM_BYTES_MAX: usize = 128 << 10;

/// A client that asks for more than this at a time is served by its own thread. What a switch of threads costs is
/// little beside such work, and there may be a core for each.
const SHALLOW_MAX: usize = RUN_MAX;

/// A stay among those who share has been worth it from so many requests on: taking a slot and leaving it cost as much
/// as it saves for two or three.
const STAY_MIN: u32 = 4;

/// How often a connection that waits alone lets others have their turn before it sleeps, where its client may ask again
/// at once.
const TURNS: u32 = 2;

/// How many waits in a row something is not tried that has failed again and again.
const RESTS_MAX: u8 = 127;

/// The timeouts of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From a request's first byte to its last, and for the client to take any byte of what it is being sent.
    pub(super) request: Duration,
    /// Between requests; `None` for ever.
    pub(super) idle: Option<Duration>,
    /// How long a connection that has nothing to do keeps the memory that a busier time gave it.
    pub(super) release: Duration,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client shut down its side between two requests; every answer is sent.
    Done,
    /// The client shut down its side inside a frame, of which nothing was applied; every answer is sent.
    Truncated {
        /// Bytes of the frame that came.
        len: usize,
        /// Bytes that were wanted.
        needed: usize,
    },
    /// The last answer is sent and the client may still be sending: its input has to be drained before the socket is
    /// closed, since closing with unread input resets the connection and the answer would be lost.
    Refused(Refusal),
    /// No request came for the idle timeout.
    Idle,
    /// The client was a follower, and its stream has ended.
    Followed,
    /// The client was an observer, and its stream has ended, however it did.
    Observed,
    /// The socket failed, or the client took no byte of its answers for the request timeout.
    Failed(io::Error),
}

/// Why a connection was refused; the text of the ERROR that the client was sent.
#[derive(Debug)]
pub(super) enum Refusal {
    Request(RequestError),
    /// A request was not whole in time.
    TooSlow(Duration),
    /// A connection of the reserve asked for what is not for there.
    NoRoom(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Request(error) => error.fmt(f),
            Refusal::TooSlow(limit) => write!(
                f,
                "request not whole after {} ms, the limit",
                limit.as_millis()
            ),
            Refusal::NoRoom(text) => f.write_str(text),
        }
    }
}

/// What a connection works with.
pub(super) struct Context<'a> {
    pub(super) peer: Arc<Peer>,
    pub(super) node: &'a Node,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    /// The server is to stop.
    pub(super) stopping: &'a AtomicBool,
    pub(super) registry: &'a Registry,
    pub(super) housekeeper: Housekeeper,
}

/// Serves one client until it leaves or has to. `first` is what has come of it already.
pub(super) fn serve<'a>(
    context: Context<'a>,
    first: &[u8],
    poller: &Poller<Connection<'a>>,
) -> End {
    let handle = Connection::shared(context, first);
    let mut state = handle.lock();
    poller.enter();
    let end = run(&handle, &mut state, poller);
    poller.leave();
    if state.connection.is_grown() || state.connection.large.is_some() {
        state.connection.context.housekeeper.trim();
    }
    end.unwrap_or_else(End::Failed)
}

fn run<'a>(
    handle: &Arc<Handle<Connection<'a>>>,
    state: &mut MutexGuard<'_, State<Connection<'a>>>,
    poller: &Poller<Connection<'a>>,
) -> io::Result<End> {
    state.connection.prepare()?;
    loop {
        let connection = &mut state.connection;
        let needed = match connection.answer_whole_requests(true)? {
            Next::Wait(needed) => needed,
            Next::Refuse(refusal) => return connection.refuse(refusal),
            Next::Stream(mut accepted) => {
                poller.count_stream(true);
                let end = connection.stream(&mut accepted);
                poller.count_stream(false);
                return end;
            }
            Next::Own => continue,
        };
        connection.output.flush()?;
        connection.heed_stop();
        let shared = if connection.would_share(poller) {
            poller.share(handle, state);
            state.connection.after_sharing()
        } else {
            None
        };
        let connection = &mut state.connection;
        let wait = match shared {
            Some(found) => found?,
            None => connection.wait(needed, poller)?,
        };
        match wait {
            Wait::Bytes => {}
            Wait::EndOfStream if connection.is_between_frames() => return Ok(End::Done),
            Wait::EndOfStream => {
                let large = connection.large.as_ref().map(EntryBuilder::arrived);
                let len = large.unwrap_or(connection.input.bytes().len());
                let needed = needed.max(len + connection.skip);
                return Ok(End::Truncated { len, needed });
            }
            Wait::TooSlow => {
                let refusal = Refusal::TooSlow(connection.context.timeouts.request);
                // A frame that is being skipped has its answer; a second one would be taken for the next request's.
                if connection.skip > 0 {
                    return Ok(End::Refused(refusal));
                }
                return connection.refuse(refusal);
            }
            Wait::Idle => return Ok(End::Idle),
        }
    }
}

/// A client and what has come of it, whichever thread serves it.
pub(super) struct Connection<'a> {
    context: Context<'a>,
    input: Buffer,
    /// A large SET frame that is arriving; `input` is empty meanwhile.
    large: Option<EntryBuilder>,
    /// Where the next frame goes while nothing of it is there: the block of the entry that the last request, a large
    /// SET, has replaced. It is as long as that, as the next is where a client sends one such after another.
    room: Option<EntryBuilder>,
    output: Output,
    /// Bytes of a refused frame that are still to be thrown away.
    skip: usize,
    /// The first byte has come and was not text.
    spoke: bool,
    /// It is in the reserve, which is not for all requests.
    is_reserved: bool,
    /// By when the frame at the start of `input` has to be whole; `None` between frames.
    deadline: Option<Instant>,
    /// What the socket's read timeout is set to.
    read_timeout: Option<Duration>,
    /// Requests answered since the last wait.
    answered: usize,
    /// Times that a polling thread has served this client since it took its slot.
    served: u32,
    /// What its own thread was called for, if not for quiet.
    found: Option<io::Result<Wait>>,
    /// Whether to share.
    sharing: Try,
    /// Whether to let others have their turn before it sleeps.
    yielding: Try,
}

/// Something that is tried less and less often where it fails.
#[derive(Default)]
struct Try {
    /// How many times to let it be, and how many after that.
    rests: u8,
    rests_next: u8,
}

impl Try {
    /// Whether to try it this time.
    const fn is_due(&mut self) -> bool {
        let is_due = self.rests == 0;
        self.rests = self.rests.saturating_sub(1);
        is_due
    }

    fn has_gone(&mut self, well: bool) {
        self.rests_next = if well {
            0
        } else {
            (2 * self.rests_next + 1).min(RESTS_MAX)
        };
        self.rests = self.rests_next;
    }
}

/// What comes once every whole request is answered.
enum Next<'a> {
    /// More input, for a frame that is so long as far as is known.
    Wait(usize),
    /// The end, after the ERROR for this.
    Refuse(Refusal),
    /// The stream of a follower, in place of answers.
    Stream(Box<Accepted<'a>>),
    /// More answers, which its own thread has to give: they may have to wait for the client, or take long.
    Own,
}

/// What a wait for input came to.
enum Wait {
    Bytes,
    EndOfStream,
    TooSlow,
    Idle,
}

impl<'a> Connection<'a> {
    fn new(context: Context<'a>, first: &[u8]) -> Connection<'a> {
        let peer = Arc::clone(&context.peer);
        let mut input = Buffer::new();
        input.extend(first);
        Connection {
            is_reserved: peer.is_reserved(),
            context,
            input,
            large: None,
            room: None,
            output: Output {
                peer,
                pending: Vec::new(),
                held: None,
            },
            skip: 0,
            spoke: false,
            deadline: None,
            read_timeout: None,
            answered: 0,
            served: 0,
            found: None,
            sharing: Try::default(),
            yielding: Try::default(),
        }
    }

    /// Apart from [`serve`], on whose stack what is moved here would stay.
    fn shared(context: Context<'a>, first: &[u8]) -> Arc<Handle<Connection<'a>>> {
        Handle::new(Connection::new(context, first))
    }

    fn prepare(&self) -> io::Result<()> {
        let stream = &self.context.peer.stream;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.context.timeouts.request))
    }

    /// Becomes the sender of a follower's stream, until that ends.
    fn stream(&mut self, accepted: &mut Accepted<'_>) -> io::Result<End> {
        self.output.flush()?;
        let early = self.input.bytes();
        let peer = &self.context.peer;
        let is_observer = accepted.is_observer();
        peer.observes.store(is_observer, Ordering::SeqCst);
        peer.follows.store(true, Ordering::SeqCst);
        let result = leader_side::serve(self.context.node, &peer.stream, accepted, early);
        if is_observer {
            // It is logged there how the stream ends.
            return Ok(End::Observed);
        }
        result.map(|()| End::Followed)
    }

    /// Tells the stop whether a request has begun to arrive, and between requests ends the reading side where the
    /// server is to stop. Each side writes its flag before it reads the other's, so one of them does it.
    fn heed_stop(&self) {
        let (peer, in_frame) = (&self.context.peer, !self.is_between_frames());
        if peer.in_frame.load(Ordering::Relaxed) != in_frame {
            peer.in_frame.store(in_frame, Ordering::SeqCst);
        }
        if !in_frame && self.context.stopping.load(Ordering::SeqCst) {
            // Fails only where the client is gone, which the next read will show.
            let _ = self.context.peer.stream.shutdown(Shutdown::Read);
        }
    }

    const fn is_between_frames(&self) -> bool {
        self.input.is_empty() && self.large.is_none() && self.skip == 0
    }

    /// Whether the connection holds more memory than an idle one is to.
    fn is_grown(&self) -> bool {
        self.input.is_grown() || self.output.is_grown() || self.room.is_some()
    }

    /// Answers every whole request in the input; returns how many bytes the frame that follows them needs, as far as
    /// is known, or the fault after which the connection cannot go on. Where it must not wait it stops before whatever
    /// may have to.
    fn answer_whole_requests(&mut self, may_wait: bool) -> io::Result<Next<'a>> {
        if !self.spoke
            && let Some(&first) = self.input.bytes().first()
        {
            if let Err(error) = request::reject_text(first) {
                return Ok(Next::Refuse(Refusal::Request(error)));
            }
            self.spoke = true;
        }
        if let Some(builder) = self.large.take() {
            match builder.finish() {
                Ok(entry) => {
                    self.deadline = None;
                    match self.context.node.set(entry) {
                        Ok(replaced) => {
                            self.room = replaced
                                .filter(|entry| entry.frame().len() <= ROOM_BYTES_MAX)
                                .and_then(Entry::into_room);
                            self.output.push(Reply::Done);
                        }
                        Err(reply) => self.output.push(reply),
                    }
                }
                Err(builder) => {
                    let needed = builder.needed();
                    self.large = Some(builder);
                    return Ok(Next::Wait(needed));
                }
            }
        }
        loop {
            if self.output.is_full() {
                if !may_wait {
                    return Ok(Next::Own);
                }
                self.output.flush()?;
            }
            if self.skip > 0 {
                let count = self.skip.min(self.input.bytes().len());
                self.input.consume(count);
                self.skip -= count;
                if self.skip > 0 {
                    return Ok(Next::Wait(HEADER_LEN));
                }
                self.deadline = None;
            }
            if self.is_reserved
                && let Some(refusal) = self.refuses_in_reserve()
            {
                return Ok(Next::Refuse(refusal));
            }
            if self.answer_run() {
                continue;
            }
            match request::parse(self.input.bytes(), &self.context.limits) {
                Ok(Parsed::Whole(frame)) if !may_wait && takes_long(&frame.request()) => {
                    return Ok(Next::Own);
                }
                Ok(Parsed::Whole(frame)) if matches!(frame.request(), Request::Follow { .. }) => {
                    let (key, value) = (frame.request().key(), frame.request().value());
                    let addr = self.context.peer.stream.peer_addr()?;
                    let accepted = accept::accept(self.context.node, addr, key, value);
                    self.input.consume(frame.bytes().len());
                    self.deadline = None;
                    match accepted {
                        Ok(accepted) => {
                            self.output.push(Reply::Answer(accepted.answer.clone()));
                            return Ok(Next::Stream(accepted));
                        }
                        Err(reply) => self.output.push(reply),
                    }
                }
                Ok(Parsed::Whole(frame)) => {
                    let len = frame.bytes().len();
                    let reply = self.context.node.execute(&frame);
                    self.answered += 1;
                    self.input.consume(len);
                    self.deadline = None;
                    self.output.push(reply);
                }
                Ok(Parsed::Incomplete { needed }) => {
                    if needed > LARGE_FRAME_BYTES
                        && let Some(builder) = EntryBuilder::new(self.input.bytes())
                    {
                        if let Some(reply) = self.context.node.refuses_writes() {
                            // Without taking the value in first.
                            self.output.push(reply);
                            self.skip = needed;
                            continue;
                        }
                        self.large = Some(builder);
                        self.input.consume(needed);
                    }
                    return Ok(Next::Wait(needed));
                }
                Err(error) => match error.disposition() {
                    Disposition::Close => return Ok(Next::Refuse(Refusal::Request(error))),
                    Disposition::Skip(frame_len) => {
                        self.output.push(Reply::Error(error.to_string()));
                        self.skip = frame_len;
                    }
                },
            }
        }
    }

    /// Why the next request is not answered in the reserve. The connection leaves that where there is room elsewhere.
    fn refuses_in_reserve(&mut self) -> Option<Refusal> {
        let (registry, peer) = (self.context.registry, &self.context.peer);
        let &opcode = self.input.bytes().first()?;
        let is_for_reserve = [Opcode::Status, Opcode::Follow, Opcode::Ping]
            .iter()
            .any(|&allowed| allowed as u8 == opcode);
        if is_for_reserve {
            registry.note_request(peer);
            return None;
        }
        self.is_reserved = !registry.leave_reserve(peer);
        self.is_reserved
            .then(|| Refusal::NoRoom(registry.refusal()))
    }

    /// Carries out together what stands at the start of the input and can be; says whether there was anything.
    fn answer_run(&mut self) -> bool {
        let (context, output) = (&self.context, &mut self.output);
        let bytes = self.input.bytes();
        if !bytes.first().is_some_and(|&opcode| Run::takes(opcode)) {
            return false;
        }
        let run = Run::of(bytes, &context.limits);
        if run.is_empty() {
            return false;
        }
        let (count, next) = context.node.carry_out(&run, &mut output.pending);
        let len = run.bytes_of(count + usize::from(next.is_some()));
        self.answered += count;
        if let Some(reply) = next {
            output.push(reply);
        }
        self.input.consume(len);
        self.deadline = None;
        true
    }

    /// Sends the last answer of this connection.
    fn refuse(&mut self, refusal: Refusal) -> io::Result<End> {
        let mut message = refusal.to_string();
        if let Refusal::Request(RequestError::Text { .. }) = refusal {
            let addr = self.context.peer.stream.local_addr()?;
            // In octal, which every printf knows; the line feed is for whoever reads this in a terminal.
            message += &format!(
                "; try: printf '\\004\\000\\000\\000\\000\\000\\000' | nc -N {} {} | xxd\n",
                addr.ip(),
                addr.port()
            );
        }
        self.output.push(Reply::Error(message));
        self.output.flush()?;
        Ok(End::Refused(refusal))
    }

    /// Whether it waits for its client together with others. Says so only where nothing of a request has come, and
    /// every answer is sent.
    fn would_share(&mut self, poller: &Poller<Connection<'a>>) -> bool {
        self.served = 0;
        poller.has_enough()
            && self.answered <= SHALLOW_MAX
            && self.is_between_frames()
            && self.sharing.is_due()
    }

    /// Answers what has come, as far as that needs no waiting; says whether all is answered and sent.
    fn serve_now(&mut self) -> io::Result<bool> {
        self.served += 1;
        self.answered = 0;
        let is_all = matches!(self.answer_whole_requests(false)?, Next::Wait(_))
            && self.is_between_frames()
            && self.output.flush_now()?;
        if is_all {
            self.heed_stop();
        }
        Ok(is_all)
    }

    /// Why its own thread was called; `None` where its client was quiet.
    fn after_sharing(&mut self) -> Option<io::Result<Wait>> {
        self.sharing.has_gone(self.served >= STAY_MIN);
        self.found.take()
    }

    /// Waits for input until something else has to happen. `needed` is the length of the frame that is expected.
    fn wait(&mut self, needed: usize, poller: &Poller<Connection<'a>>) -> io::Result<Wait> {
        self.answered = 0;
        let is_grown = self.is_grown();
        let since = (is_grown || self.context.timeouts.idle.is_some() || !self.is_between_frames())
            .then(Instant::now);
        if let Some(now) = since
            && !self.is_between_frames()
        {
            let deadline = *self
                .deadline
                .get_or_insert(now + self.context.timeouts.request);
            if deadline <= now {
                return Ok(Wait::TooSlow);
            }
        }
        // Who has just shared has been quiet for longer.
        let may_be_soon = self.served == 0 && poller.has_others() && self.yielding.is_due();
        if may_be_soon && self.read_soon(needed)? {
            return Ok(Wait::Bytes);
        }
        self.set_read_timeout(self.remaining(since, since), false)?;
        loop {
            poller.leave();
            let read = self.receive(needed, RecvFlags::empty());
            poller.enter();
            match read {
                Ok(0) => return Ok(Wait::EndOfStream),
                Ok(_) => return Ok(Wait::Bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let now = Instant::now();
                    if self.deadline.is_some_and(|deadline| deadline <= now) {
                        return Ok(Wait::TooSlow);
                    }
                    let waited = since.map_or(Duration::ZERO, |since| now - since);
                    if self.is_between_frames() {
                        if self
                            .context
                            .timeouts
                            .idle
                            .is_some_and(|idle| idle <= waited)
                        {
                            return Ok(Wait::Idle);
                        }
                        if is_grown && waited >= self.context.timeouts.release {
                            self.input.release();
                            self.room = None;
                            self.output.release();
                            self.context.housekeeper.trim();
                        }
                    }
                    self.set_read_timeout(self.remaining(since, Some(now)), true)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what comes while other threads have their turn. A client that asks again at once is so met awake, which
    /// saves putting the thread to sleep and waking it.
    fn read_soon(&mut self, needed: usize) -> io::Result<bool> {
        for _ in 0..TURNS {
            // Before the first look too: hardly ever has the client asked again by then, and whoever has waited longer
            // goes first.
            thread::yield_now();
            match self.receive(needed, RecvFlags::DONTWAIT) {
                // The end of the stream is for a read that waits.
                Ok(0) => return Ok(false),
                Ok(_) => {
                    self.yielding.has_gone(true);
                    return Ok(true);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        self.yielding.has_gone(false);
        Ok(false)
    }

    /// Reads from the socket to where the bytes belong, and returns how many came.
    fn receive(&mut self, needed: usize, flags: RecvFlags) -> io::Result<usize> {
        let stream = &self.context.peer.stream;
        match &mut self.large {
            Some(builder) => Ok(builder.read_with(|room| {
                let ((filled, _), _) = rustix::net::recv(stream, room, flags)?;
                Ok::<_, Errno>(filled)
            })?),
            None => {
                if self.input.is_empty()
                    && let Some(mut room) = self.room.take()
                {
                    let read = room.read_with(|room| {
                        let ((filled, _), _) = rustix::net::recv(stream, room, flags)?;
                        Ok::<_, Errno>(filled)
                    });
                    if room.is_of_its_header() {
                        self.large = Some(room);
                    } else if room.arrived() > 0 {
                        self.input.extend(room.bytes());
                    } else {
                        self.room = Some(room);
                    }
                    return Ok(read?);
                }
                let (_, count) = rustix::net::recv(stream, self.input.space(needed), flags)?;
                self.input.filled(count);
                Ok(count)
            }
        }
    }

    /// How long the socket may be left alone, `now`, in a wait that began at `since`; `None` for ever.
    fn remaining(&self, since: Option<Instant>, now: Option<Instant>) -> Option<Duration> {
        let (since, now) = (since?, now?);
        let idle = self
            .context
            .timeouts
            .idle
            .filter(|_| self.is_between_frames());
        let release =
            (self.is_between_frames() && self.is_grown()).then_some(self.context.timeouts.release);
        [
            self.deadline,
            idle.map(|idle| since + idle),
            release.map(|after| since + after),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.saturating_duration_since(now))
    }

    /// Has the next read return after `wanted` at the latest. A timeout that is shorter already does, so it is left as
    /// it is unless `exact`: a busy connection then sets it once and not once a request.
    fn set_read_timeout(&mut self, wanted: Option<Duration>, exact: bool) -> io::Result<()> {
        // The system takes a timeout of 0 for none.
        let wanted = wanted.map(|wanted| wanted.max(Duration::from_millis(1)));
        let suffices = match (self.read_timeout, wanted) {
            (Some(current), Some(wanted)) => current <= wanted,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if self.read_timeout != wanted && (exact || !suffices) {
            self.context.peer.stream.set_read_timeout(wanted)?;
            self.read_timeout = wanted;
        }
        Ok(())
    }
}

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.context.peer.stream.as_fd()
    }
}

impl Polled for Connection<'_> {
    fn serve(&mut self) -> bool {
        let found = match self.receive(HEADER_LEN, RecvFlags::DONTWAIT) {
            Ok(0) => Ok(Wait::EndOfStream),
            Ok(_) => match self.serve_now() {
                Ok(true) => return self.answered <= SHALLOW_MAX,
                Ok(false) => Ok(Wait::Bytes),
                Err(error) => Err(error),
            },
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return true;
            }
            Err(error) => Err(error),
        };
        self.found = Some(found);
        false
    }
}

/// Whether an operation may take longer than others like to wait for. Data operations never do.
const fn takes_long(request: &Request<'_>) -> bool {
    !matches!(
        request,
        Request::Get { .. } | Request::Set { .. } | Request::Del { .. } | Request::Ping
    )
}

/// Answers on their way out.
struct Output {
    peer: Arc<Peer>,
    pending: Vec<u8>,
    /// A long answer that comes after those, and that nobody has begun to send.
    held: Option<Reply>,
}

impl Output {
    fn push(&mut self, reply: Reply) {
        self.pending.extend_from_slice(&reply.header().encode());
        if reply.value().len() < DIRECT_BYTES {
            self.pending.extend_from_slice(reply.value());
        } else {
            self.held = Some(reply);
        }
    }

    /// Whether there has to be a [`flush`](Output::flush) before anything more is added.
    const fn is_full(&self) -> bool {
        self.held.is_some() || self.pending.len() >= FLUSH_BYTES
    }

    /// Sends everything, and waits for the client to take it.
    fn flush(&mut self) -> io::Result<()> {
        let mut stream = &self.peer.stream;
        match self.held.take() {
            Some(reply) => write_all_of_two(stream, &self.pending, reply.value())?,
            None if self.pending.is_empty() => {}
            None => stream.write_all(&self.pending)?,
        }
        self.pending.clear();
        Ok(())
    }

    /// Sends what the system takes at once; says whether that was all.
    fn flush_now(&mut self) -> io::Result<bool> {
        if !self.pending.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.peer.stream, &self.pending, flags) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.pending.is_empty() && self.held.is_none())
    }

    fn is_grown(&self) -> bool {
        self.pending.capacity() > DIRECT_BYTES
    }

    fn release(&mut self) {
        self.pending = Vec::new();
    }
}

/// Writes `first` and `second` as one, without joining them in memory.
fn write_all_of_two(mut stream: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(first), IoSlice::new(second)];
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::node::Role;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Has `test` drive a connection whose idle timeout is longer than its memory's time, with its client and the
    /// server's stop.
    fn drive(test: impl FnOnce(&mut Connection<'_>, TcpStream, &AtomicBool)) {
        let (client, stream) = pair();
        let node = Node::new(Role::Leader);
        let timeouts = Timeouts {
            request: Duration::from_secs(30),
            idle: Some(Duration::from_millis(60)),
            release: Duration::from_millis(20),
        };
        let (housekeeper, _chores) = Housekeeper::new(1);
        let peer = Arc::new(Peer::new(stream));
        let stopping = AtomicBool::new(false);
        let registry = Registry::new(1);
        let context = Context {
            peer,
            node: &node,
            limits: Limits::default(),
            timeouts,
            stopping: &stopping,
            registry: &registry,
            housekeeper,
        };
        test(&mut Connection::new(context, &[]), client, &stopping);
    }

    /// Waits alone.
    fn wait<'a>(connection: &mut Connection<'a>, needed: usize) -> Wait {
        let poller: Poller<Connection<'a>> = Poller::new(Duration::from_secs(1)).unwrap();
        connection.wait(needed, &poller).unwrap()
    }

    #[test]
    fn memory_of_a_busy_time_is_given_back_when_there_is_nothing_to_do() {
        drive(|connection, client, _| give_back(connection, client));
    }

    fn give_back(connection: &mut Connection<'_>, mut client: TcpStream) {
        let mut frames = Vec::new();
        let value = [b'x'; 15_000];
        Request::Set {
            key: b"k",
            value: &value,
        }
        .encode(&mut frames)
        .unwrap();
        for _ in 0..3 {
            Request::Get { key: b"k" }.encode(&mut frames).unwrap();
        }
        client.write_all(&frames).unwrap();
        while connection.output.pending.len() < 45_000 {
            let Next::Wait(needed) = connection.answer_whole_requests(true).unwrap() else {
                panic!("nothing is refused")
            };
            if connection.output.pending.len() < 45_000 {
                assert!(matches!(wait(connection, needed), Wait::Bytes));
            }
        }
        connection.output.flush().unwrap();
        assert!(connection.input.is_grown() && connection.output.is_grown());
        // The idle timeout is the longer one, so when it is over the memory has to be gone.
        assert!(matches!(wait(connection, HEADER_LEN), Wait::Idle));
        assert!(!connection.input.is_grown() && !connection.output.is_grown());
    }

    #[test]
    fn a_large_value_comes_to_lie_where_another_was_and_has_begun_with_its_first_piece() {
        drive(|connection, mut client, stopping| {
            let mut sets = Vec::new();
            for byte in [1, 2] {
                let value = &[byte; 60_000];
                let key = b"k";
                Request::Set { key, value }.encode(&mut sets).unwrap();
            }
            let half = sets.len() / 4;
            let read = |connection: &mut Connection<'_>,
                        until: fn(&Connection<'_>) -> usize,
                        count| {
                loop {
                    let Next::Wait(needed) = connection.answer_whole_requests(true).unwrap() else {
                        panic!("nothing is refused")
                    };
                    connection.output.flush().unwrap();
                    connection.heed_stop();
                    if until(connection) == count {
                        return needed;
                    }
                    assert!(matches!(wait(connection, needed), Wait::Bytes));
                }
            };
            let has_room = |connection: &Connection<'_>| usize::from(connection.room.is_some());
            let arrived = |connection: &Connection<'_>| {
                connection.large.as_ref().map_or(0, EntryBuilder::arrived)
            };
            client.write_all(&sets).unwrap();
            let needed = read(connection, has_room, 1);
            // Kept for no longer than other memory.
            assert!(matches!(wait(connection, needed), Wait::Idle));
            assert!(!connection.is_grown());
            client.write_all(&sets[..2 * half]).unwrap();
            read(connection, has_room, 1);
            let room = connection.room.as_ref().map(|room| room.bytes().as_ptr());
            client.write_all(&sets[..half]).unwrap();
            read(connection, arrived, half);
            let large = connection
                .large
                .as_ref()
                .map(|large| large.bytes().as_ptr());
            assert_eq!(large, room);
            assert!(connection.context.peer.in_frame.load(Ordering::SeqCst));
            stopping.store(true, Ordering::SeqCst);
            connection.heed_stop();
            client.write_all(&sets[half..2 * half]).unwrap();
            let needed = read(connection, has_room, 1);
            let end = wait(connection, needed);
            assert!(matches!(end, Wait::EndOfStream) && connection.is_between_frames());
            let value = connection.context.node.store().get(b"k").unwrap();
            assert_eq!(value.value(), &[1; 60_000]);
        });
    }
}
