//! Serves one client: reads input, has the [session](super::session) execute it, sends the answers, and waits, alone or
//! on a [poller](super::poller). Enforces the connection's deadlines and the stop.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::back_off::BackOff;
use super::end::{End, Refusal};
use super::housekeeping::Housekeeper;
use super::lifecycle::StopSignal;
use super::poller::{Handle, Polled, Poller, State};
use super::registry::{Activity, Peer, Registry};
use super::session::{Session, Step, Thread};
use super::sync_wait::SyncWait;
use super::transport::Mode;
use crate::log::Position;
use crate::node::{Awaited, Reply};
use crate::replication::stream::accept::Accepted;
use crate::replication::stream::watching::{AcceptedWatch, accept_watch};
use crate::replication::{Replica, transport};
use crate::wire::request::Limits;
use crate::wire::run::RUN_MAX;
use crate::wire::{Opcode, RequestError};

/// Most requests at a time for which a client shares a poller. With more, a context switch costs little beside the
/// work, and there may be a core for each thread: with up to 64 allowed, 50 clients with 32 GETs each got 0.76 to 0.94
/// times the answers.
const SHARED_MAX: usize = RUN_MAX;

/// How often a thread that waits alone yields before it sleeps, where its client may send the next request at once.
/// With 3 or 6, 50 clients with one GET each get 0.97 and 0.83 times the answers; with none, 50 clients with 32
/// requests each 0.71 times.
const YIELDS: u32 = 2;

/// The timeouts of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From a request's first byte to its last, and for the client to take any byte of its answers.
    pub(super) request: Duration,
    /// Between requests; `None` for ever.
    pub(super) idle: Option<Duration>,
    /// How long an idle connection keeps grown buffers.
    pub(super) release: Duration,
}

/// The environment of a connection: its client, the node, the limits and the server.
pub(super) struct Context<'a> {
    pub(super) peer: Arc<Peer>,
    pub(super) replica: Replica<'a>,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    /// Says that the client is to leave.
    pub(super) stop: StopSignal<'a>,
    pub(super) registry: &'a Registry,
    pub(super) housekeeper: Housekeeper,
}

/// Serves one client until the connection ends. `first` has arrived already.
pub(super) fn serve<'a>(
    context: Context<'a>,
    first: &[u8],
    poller: &Poller<'_, Connection<'a>>,
) -> End {
    let handle = Connection::shared(context, first);
    let mut state = handle.lock();
    poller.enter();
    let end = run(&handle, &mut state, poller);
    poller.leave();
    if state.connection.session.is_large() {
        state.connection.context.housekeeper.trim();
    }
    end.unwrap_or_else(End::Failed)
}

fn run<'a>(
    handle: &Arc<Handle<Connection<'a>>>,
    state: &mut MutexGuard<'_, State<Connection<'a>>>,
    poller: &Poller<'_, Connection<'a>>,
) -> io::Result<End> {
    let connection = &mut state.connection;
    let request_timeout = connection.context.timeouts.request;
    connection.context.peer.stream.prepare(request_timeout)?;
    loop {
        let connection = &mut state.connection;
        if let Some(end) = connection.advance(poller)? {
            return Ok(end);
        }
        connection.heed_stop();
        let event = if connection.session.is_held() {
            connection.begin_deadline();
            if !poller.share(handle, state) {
                thread::sleep(poller.sweep_interval());
            }
            let event = state.connection.event.take();
            Some(event.unwrap_or(Ok(Event::Bytes)))
        } else if connection.would_share(poller) {
            poller.share(handle, state);
            state.connection.after_sharing()
        } else {
            None
        };
        let connection = &mut state.connection;
        let event = match event {
            Some(event) => event?,
            None => connection.wait(poller)?,
        };
        connection.note(event)?;
    }
}

/// A client, its session and its deadlines. One thread at a time serves it.
pub(super) struct Connection<'a> {
    context: Context<'a>,
    session: Session<'a>,
    /// By when the frame that is arriving has to be whole; `None` between frames.
    deadline: Option<Instant>,
    /// How the connection ends once all output is sent. Nothing more is read.
    ending: Option<End>,
    /// Nothing more is read or executed before the output's position is reached.
    is_blocked: bool,
    /// The socket's receive timeout.
    receive_timeout: Option<Duration>,
    /// Times that a polling thread has served this client since it took its slot.
    served: u32,
    /// Why a polling thread has woken the connection's own thread; `None` for an idle connection.
    event: Option<io::Result<Event>>,
    /// Whether to share. Clients whose answers go out of a slot again and again, as long ones do, gain nothing by it.
    sharing: BackOff,
    /// Whether to yield before sleeping.
    yielding: BackOff,
}

/// The end of a wait for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Bytes,
    EndOfStream,
    /// The frame that is arriving is not whole in time.
    TooSlow,
    /// No request has come for the idle timeout.
    Idle,
}

impl<'a> Connection<'a> {
    fn new(context: Context<'a>, first: &[u8]) -> Connection<'a> {
        let is_reserved = context.peer.is_reserved();
        Connection {
            session: Session::new(context.replica.node, context.limits, first, is_reserved),
            context,
            deadline: None,
            ending: None,
            is_blocked: false,
            receive_timeout: None,
            served: 0,
            event: None,
            sharing: BackOff::default(),
            yielding: BackOff::default(),
        }
    }

    /// Apart from [`serve`], on whose stack what is moved here would stay.
    fn shared(context: Context<'a>, first: &[u8]) -> Arc<Handle<Connection<'a>>> {
        Handle::new(Connection::new(context, first))
    }

    /// Has the session execute the input, and updates the deadline and the place in the reserve.
    fn step(&mut self, thread: Thread) -> Step {
        loop {
            if self.session.is_reserved() && !self.session.input().is_empty() {
                self.context.registry.note_request(&self.context.peer);
            }
            let step = self.session.step(thread);
            self.is_blocked = matches!(step, Step::Await);
            // A client whose input is not read has no deadline.
            if self.session.completed() > 0 || self.is_blocked {
                self.deadline = None;
            }
            if matches!(step, Step::LeaveReserve)
                && self.context.registry.leave_reserve(&self.context.peer)
            {
                self.session.leave_reserve();
                continue;
            }
            return step;
        }
    }

    /// Executes what has arrived and sends what can be sent, until more input is needed, or the position that the
    /// output waits for. Returns how the connection ends, where it does.
    fn advance(&mut self, poller: &Poller<'_, Connection<'a>>) -> io::Result<Option<End>> {
        loop {
            let step = if self.ending.is_some() {
                Step::Await
            } else {
                self.execute(poller)
            };
            self.send_all()?;
            match step {
                Step::Read => return Ok(None),
                Step::Await if self.session.is_held() => return Ok(None),
                Step::Await => {
                    if let Some(end) = self.ending.take() {
                        return Ok(Some(end));
                    }
                }
                Step::Send | Step::Own => {}
                Step::Room(cost) => {
                    let room = self.context.replica.node.engine().wait_for_room(cost);
                    self.session.give_room(room);
                }
                Step::Sync(awaited, timeout) => self.wait_for_sync(poller, awaited, timeout)?,
                Step::Stream => {
                    if let Some(end) = self.answer_stream(poller)? {
                        return Ok(Some(end));
                    }
                }
                Step::LeaveReserve => {
                    self.refuse(Refusal::NoRoom(self.context.registry.refusal()))?;
                }
                Step::Refuse(error) => self.refuse(Refusal::Request(error))?,
            }
        }
    }

    /// Has the session execute the input. Writes its records where no other connection is active, which is faster than
    /// to wake the log-writer thread and to be woken by it.
    fn execute(&mut self, poller: &Poller<'_, Connection<'a>>) -> Step {
        let alone = poller.begin_alone();
        let step = self.step(Thread::Own);
        if let Some(alone) = alone
            && self.session.is_held()
        {
            alone.write();
        }
        step
    }

    /// Sends all output but what waits for a position, and waits for the client to take it.
    fn send_all(&mut self) -> io::Result<()> {
        self.session.release_answers();
        loop {
            let [first, second] = self.session.output();
            if first.is_empty() && second.is_empty() {
                return Ok(());
            }
            match self.context.peer.stream.send(first, second, Mode::Wait) {
                Ok(count) if self.session.sent(count) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the output that the system takes at once; returns whether that was all but what waits for a position. Long
    /// output is left to a thread that may wait.
    fn send_now(&mut self) -> io::Result<bool> {
        let [first, long] = self.session.output();
        if first.is_empty() || !long.is_empty() {
            return Ok(long.is_empty());
        }
        match self.context.peer.stream.send(first, &[], Mode::Now) {
            Ok(count) => Ok(self.session.sent(count)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the state that the SYNC at the start of the input waits for, and answers it.
    fn wait_for_sync(
        &mut self,
        poller: &Poller<'_, Connection<'a>>,
        awaited: Awaited,
        timeout: Duration,
    ) -> io::Result<()> {
        let wait = SyncWait {
            node: self.context.replica.node,
            awaited,
            timeout,
            stop: self.context.stop,
        };
        poller.leave();
        let waited = wait.run(&self.context.peer.stream);
        poller.enter();
        let (reply, position) = waited?;
        self.session.answer_at(reply, position);
        Ok(())
    }

    /// Answers a request for a stream. Sends the stream where it is accepted, and returns how that ended.
    fn answer_stream(&mut self, poller: &Poller<'_, Connection<'a>>) -> io::Result<Option<End>> {
        let addr = self.context.peer.stream.peer_addr()?;
        let Some(frame) = self.session.frame() else {
            return Ok(None);
        };
        let (key, value) = (frame.request().key(), frame.request().value());
        if frame.opcode() == Opcode::Watch {
            let node = self.context.replica.node;
            return match accept_watch(node, &addr.to_string(), key, value) {
                Ok(accepted) => self.watch(accepted, poller).map(Some),
                Err(reply) => {
                    self.session.answer(reply);
                    Ok(None)
                }
            };
        }
        let accepted = transport::serve::accept(self.context.replica, addr, key, value);
        match accepted {
            Ok(mut accepted) => {
                let answer = std::mem::take(&mut accepted.answer);
                self.session.answer(Reply::Answer(answer));
                poller.count_stream(true);
                let end = self.stream(accepted);
                poller.count_stream(false);
                end.map(Some)
            }
            Err(reply) => {
                self.session.answer(reply);
                Ok(None)
            }
        }
    }

    /// Sends the stream of a watcher, until that ends.
    fn watch(
        &mut self,
        mut accepted: Box<AcceptedWatch<'_>>,
        poller: &Poller<'_, Connection<'a>>,
    ) -> io::Result<End> {
        let answer = std::mem::take(&mut accepted.answer);
        self.session.answer(Reply::Answer(answer));
        poller.count_stream(true);
        let result = self.send_all().and_then(|()| {
            let peer = &self.context.peer;
            peer.set_activity(Activity::Watching);
            transport::watch::serve_watch(peer.stream.tcp(), *accepted)
        });
        poller.count_stream(false);
        result.map(|()| End::Watched)
    }

    /// Sends the stream of a follower, until that ends.
    fn stream(&mut self, accepted: Box<Accepted<'_>>) -> io::Result<End> {
        self.send_all()?;
        let early = self.session.input();
        let peer = &self.context.peer;
        peer.set_activity(Activity::Following);
        let result = transport::serve::serve(peer.stream.tcp(), accepted, early);
        result.map(|()| End::Followed)
    }

    /// Publishes for the stop whether a request has begun to arrive. Between requests it ends the reading side if the
    /// server stops. Each side writes its flag before it reads the other's, so one of them does it.
    fn heed_stop(&self) {
        let peer = &self.context.peer;
        if !self.session.is_between_frames() {
            peer.set_activity(Activity::Receiving);
            return;
        }
        peer.set_activity(Activity::BetweenRequests);
        if self.context.stop.is_raised() {
            peer.stream.shut_down(Shutdown::Read);
        }
    }

    /// Notes what has ended a wait.
    fn note(&mut self, event: Event) -> io::Result<()> {
        let end = match event {
            Event::Bytes => return Ok(()),
            Event::EndOfStream if self.session.is_between_frames() => End::Done,
            Event::EndOfStream => {
                let (len, needed) = self.session.progress();
                End::Truncated { len, needed }
            }
            Event::TooSlow => {
                let refusal = Refusal::TooSlow(self.context.timeouts.request);
                if !self.session.is_skipping() {
                    return self.refuse(refusal);
                }
                End::Refused(refusal)
            }
            Event::Idle => End::Idle,
        };
        self.ending = Some(end);
        Ok(())
    }

    /// Adds the last answer of this connection, which ends once that is sent.
    fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        let mut message = refusal.to_string();
        if let Refusal::Request(RequestError::Text { .. }) = refusal {
            let addr = self.context.peer.stream.local_addr()?;
            // In octal, which every printf knows; the line feed is for a person at a terminal.
            message += &format!(
                "; try: printf '\\004\\000\\000\\000\\000\\000\\000' | nc -N {} {} | xxd\n",
                addr.ip(),
                addr.port()
            );
        }
        self.session.refuse(message);
        self.ending = Some(End::Refused(refusal));
        Ok(())
    }

    /// Whether to wait on the poller. Says so only where nothing of a request has come, and every answer is sent.
    fn would_share(&mut self, poller: &Poller<'_, Connection<'a>>) -> bool {
        self.served = 0;
        poller.has_enough()
            && self.session.completed() <= SHARED_MAX
            && self.session.is_between_frames()
            && self.sharing.is_due()
    }

    /// The work of a polling thread for this connection. Returns why its own thread has to continue, where it has to.
    fn serve_now(&mut self, is_readable: bool) -> io::Result<Option<Event>> {
        if is_readable {
            if !self.reads() {
                // Errors are reported all the same.
                return Err(ErrorKind::ConnectionReset.into());
            }
            match self.receive(Mode::Now) {
                Ok(0) => return Ok(Some(Event::EndOfStream)),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        self.served += 1;
        self.session.begin_wait();
        if self.session.is_held() {
            // Answers that are sent make room for more.
            self.session.release_answers();
            if !self.send_now()? {
                return Ok(Some(Event::Bytes));
            }
        }
        let step = if self.ending.is_some() {
            Step::Await
        } else {
            self.step(Thread::Polling)
        };
        let goes_on = matches!(step, Step::Read | Step::Await) && self.send_now()?;
        let is_held = self.session.is_held();
        let is_idle = self.session.is_between_frames() && self.ending.is_none();
        if !goes_on || !(is_held || is_idle) {
            return Ok(Some(Event::Bytes));
        }
        if is_held {
            self.begin_deadline();
        }
        self.heed_stop();
        Ok(None)
    }

    /// Sets the deadline of the frame that is arriving.
    fn begin_deadline(&mut self) {
        if !self.session.is_between_frames() && !self.is_blocked && self.deadline.is_none() {
            self.deadline = Some(Instant::now() + self.context.timeouts.request);
        }
    }

    /// Why the connection's own thread was woken; `None` where its client was idle.
    fn after_sharing(&mut self) -> Option<io::Result<Event>> {
        // Its own thread would have answered the first time too.
        self.sharing.has_gone(self.served > 1);
        self.event.take()
    }

    /// Waits for input until something else has to happen.
    fn wait(&mut self, poller: &Poller<'_, Connection<'a>>) -> io::Result<Event> {
        self.session.begin_wait();
        let is_between_frames = self.session.is_between_frames();
        let is_timed =
            self.session.is_grown() || self.context.timeouts.idle.is_some() || !is_between_frames;
        let since = is_timed.then(Instant::now);
        if let Some(now) = since
            && !is_between_frames
        {
            let deadline = *self
                .deadline
                .get_or_insert(now + self.context.timeouts.request);
            if deadline <= now {
                return Ok(Event::TooSlow);
            }
        }
        // A connection that has just left the poller has been idle for longer.
        let may_be_soon = self.served == 0 && poller.has_others() && self.yielding.is_due();
        if may_be_soon && self.read_soon()? {
            return Ok(Event::Bytes);
        }
        self.set_receive_timeout(self.remaining(since, since), false)?;
        loop {
            poller.leave();
            let read = self.receive(Mode::Wait);
            poller.enter();
            match read {
                Ok(0) => return Ok(Event::EndOfStream),
                Ok(_) => return Ok(Event::Bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let now = Instant::now();
                    if let Some(event) = self.after_timeout(since, now) {
                        return Ok(event);
                    }
                    self.set_receive_timeout(self.remaining(since, Some(now)), true)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the event `now`, when no input has come since `since`; `None` where the wait goes on.
    fn after_timeout(&mut self, since: Option<Instant>, now: Instant) -> Option<Event> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Event::TooSlow);
        }
        if !self.session.is_between_frames() {
            return None;
        }
        let waited = since.map_or(Duration::ZERO, |since| now - since);
        let timeouts = &self.context.timeouts;
        if timeouts.idle.is_some_and(|idle| idle <= waited) {
            return Some(Event::Idle);
        }
        if self.session.is_grown() && waited >= timeouts.release {
            self.session.release();
            self.context.housekeeper.trim();
        }
        None
    }

    /// Reads the input that arrives while other threads run. A client that sends its next request at once finds the
    /// thread awake, which saves a sleep and a wake-up.
    fn read_soon(&mut self) -> io::Result<bool> {
        for _ in 0..YIELDS {
            // Before the first look too: the client has hardly ever sent its next request by then, and threads that
            // have waited longer run first.
            thread::yield_now();
            match self.receive(Mode::Now) {
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

    /// Reads from the socket, and returns how many bytes came.
    fn receive(&mut self, mode: Mode) -> io::Result<usize> {
        self.session
            .read(&mut self.context.peer.stream.source(mode))
    }

    /// How long the socket may be left alone, `now`, in a wait that began at `since`; `None` for ever.
    fn remaining(&self, since: Option<Instant>, now: Option<Instant>) -> Option<Duration> {
        let (since, now) = (since?, now?);
        let timeouts = &self.context.timeouts;
        let is_between_frames = self.session.is_between_frames();
        let idle = timeouts.idle.filter(|_| is_between_frames);
        let release = (is_between_frames && self.session.is_grown()).then_some(timeouts.release);
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
    /// it is unless `exact`: a connection under load then sets it once and not once a request.
    fn set_receive_timeout(&mut self, wanted: Option<Duration>, exact: bool) -> io::Result<()> {
        // The system takes a timeout of 0 for none.
        let wanted = wanted.map(|wanted| wanted.max(Duration::from_millis(1)));
        let suffices = match (self.receive_timeout, wanted) {
            (Some(current), Some(wanted)) => current <= wanted,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if self.receive_timeout != wanted && (exact || !suffices) {
            self.context.peer.stream.set_receive_timeout(wanted)?;
            self.receive_timeout = wanted;
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
    fn serve(&mut self, is_readable: bool) -> bool {
        let event = match self.serve_now(is_readable) {
            Ok(None) => return self.session.completed() <= SHARED_MAX || self.session.is_held(),
            Ok(Some(event)) => Ok(event),
            Err(error) => Err(error),
        };
        self.event = Some(event);
        false
    }

    fn executed(&self) -> usize {
        self.session.completed()
    }

    fn awaits(&self) -> Option<Position> {
        self.session.awaits()
    }

    fn reads(&self) -> bool {
        self.ending.is_none() && !self.is_blocked
    }

    fn is_overdue(&mut self, now: Instant) -> bool {
        let is_overdue = self.reads() && self.deadline.is_some_and(|deadline| deadline <= now);
        if is_overdue {
            self.event = Some(Ok(Event::TooSlow));
        }
        is_overdue
    }
}

#[cfg(test)]
mod tests;
