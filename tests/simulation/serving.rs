//! A connection that a node has accepted: a session, and the shipped leader side of a stream after a FOLLOW.

use super::events::{MS, Micros};
use super::network::{End, Signal};
use super::session::{Answered, Served, Turn};
use super::shared::Shared;
use super::trace::line_of;
use crate::log::Cursor;
use crate::node::Reply;
use crate::replication::Replica;
use crate::replication::stream::accept::{self, NotAccepted};
use crate::replication::stream::acks_in::AckReader;
use crate::replication::stream::link::StreamEnd;
use crate::replication::stream::sending::{LeaderStream, Sending};
use crate::wire::request::Limits;
use crate::wire::{Buffer, Status};

/// How long a FOLLOW waits for the end of an older stream of its name.
const OLDER_STREAM_ENDS: Micros = 100 * MS;

/// Most bytes of a message: those of a group, or of a record, and their header.
const GROUP_BYTES_MAX: usize = (256 << 10) + (1 << 10);

/// A connection that was accepted.
pub(super) struct Connection<'a> {
    pub(super) end: End,
    replica: Replica<'a>,
    state: State<'a>,
    /// A node is at the other end, and not a client.
    pub(super) is_peer: bool,
}

enum State<'a> {
    Session(Served<'a>),
    /// A FOLLOW waits since this time for the end of an older stream.
    Waiting(Served<'a>, Micros),
    /// The answer to FOLLOW is being sent.
    Answering(Served<'a>, Box<Leading<'a>>),
    Leading(Box<Leading<'a>>),
    Closed,
}

struct Leading<'a> {
    stream: LeaderStream<'a>,
    acks: AckReader<'a>,
    buffer: Buffer,
    needed: usize,
    unsent: Vec<u8>,
    /// When the network last took something.
    taken_at: Micros,
    /// When something last came.
    read_at: Micros,
    waits: Waits,
}

/// The reason why the sender does nothing.
#[derive(Clone, Copy, Debug)]
enum Waits {
    /// None.
    No,
    /// For the log.
    Log(Cursor, Micros),
    /// For a time.
    Until(Micros),
    /// For an acknowledgement.
    Ack(Micros),
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        replica: Replica<'a>,
        end: End,
        limits: Limits,
        is_peer: bool,
    ) -> Connection<'a> {
        Connection {
            end,
            replica,
            state: State::Session(Served::new(replica.node, limits, !is_peer)),
            is_peer,
        }
    }

    /// Whether the connection has become a stream.
    pub(super) const fn is_stream(&self) -> bool {
        matches!(self.state, State::Answering(..) | State::Leading(_))
    }

    /// Whether it is over.
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether it may go on, though nothing was signalled: it waits for the log.
    pub(super) fn is_due(&self, now: Micros) -> bool {
        match &self.state {
            State::Leading(leading) => leading.unsent.is_empty() && leading.is_due(now),
            State::Session(served) => served.may_go_on(),
            State::Waiting(..) | State::Answering(..) | State::Closed => false,
        }
    }

    /// Takes the answers that a client was sent since the last call.
    pub(super) fn take_released(&mut self) -> Vec<(usize, Status)> {
        match &mut self.state {
            State::Session(served) => served.take_released(),
            State::Waiting(..) | State::Answering(..) | State::Leading(_) | State::Closed => {
                Vec::new()
            }
        }
    }

    /// Checks that the follower is not taken to have more than it has, or was sent on its newest stream.
    pub(super) fn check_acknowledged(&self, shared: &mut Shared) {
        let State::Leading(leading) = &self.state else {
            return;
        };
        let (link, end) = (leading.stream.link(), self.end);
        let peers = link.replica().peers;
        let Some((number, index)) = peers.newest_stream(link.name()) else {
            return;
        };
        if number != link.number() {
            return;
        }
        let logged = shared.logged.get(&end.other());
        let has = logged.map_or(link.matched(), |logged| link.matched().min(*logged));
        if index > has {
            let text = format!(
                "{} is taken to have {index}, and has {has} at most",
                link.name()
            );
            shared.fail(shared.network.host_of(end), &text);
        }
    }

    /// When the thread that reads acknowledgements looks at the silence.
    pub(super) fn silent_at(&self) -> Option<Micros> {
        let State::Leading(leading) = &self.state else {
            return None;
        };
        let silence = Micros::try_from(leading.acks.silence_max().as_micros());
        Some(
            leading
                .read_at
                .saturating_add(silence.unwrap_or(Micros::MAX)),
        )
    }

    /// Closes it at the end of its process, or where it is not served any more.
    pub(super) fn close(&mut self, shared: &mut Shared) {
        self.state = State::Closed;
        shared.network.close(self.end, &mut shared.timeline);
    }

    /// Has a session end once it has answered what has arrived.
    pub(super) fn drain(&mut self) {
        match &mut self.state {
            State::Session(served) | State::Waiting(served, _) => served.drain(),
            State::Answering(..) | State::Leading(_) | State::Closed => {}
        }
    }

    /// Goes on after a signal, at a time, or when the node has changed. Returns when to go on without one of these.
    pub(super) fn step(
        &mut self,
        signal: Option<Signal>,
        shared: &mut Shared,
        judge: &mut dyn FnMut(&mut Shared, Answered<'_>),
    ) -> Option<Micros> {
        if signal == Some(Signal::Reset) {
            if let State::Leading(leading) = &mut self.state {
                let why = StreamEnd::Lost("connection reset".to_owned());
                shared.log_end(leading.stream.link(), Some(&why));
                leading.acks.end(why);
            }
            self.state = State::Closed;
            return None;
        }
        loop {
            match std::mem::replace(&mut self.state, State::Closed) {
                State::Session(mut served) => match served.step(self.end, shared, judge) {
                    Turn::Waits => {
                        self.state = State::Session(served);
                        return None;
                    }
                    Turn::Follow => self.state = State::Waiting(served, shared.timeline.now()),
                    Turn::Closed => return None,
                },
                State::Waiting(served, since) => {
                    if let Some(wait) = self.follow(served, since, shared) {
                        return Some(wait);
                    }
                }
                State::Answering(mut served, leading) => {
                    if served.is_sent(self.end, shared) {
                        self.state = State::Leading(leading);
                    } else {
                        self.state = State::Answering(served, leading);
                        return None;
                    }
                }
                State::Leading(mut leading) => {
                    let result = leading.step(self.end, signal.is_some(), shared);
                    return match result {
                        Ok(wait) => {
                            self.state = State::Leading(leading);
                            Some(wait)
                        }
                        Err(why) => {
                            shared.log_end(leading.stream.link(), why.as_ref());
                            if why == Some(StreamEnd::FellBehind) {
                                shared.count("followers that fell behind");
                            }
                            drop(leading);
                            self.close(shared);
                            None
                        }
                    };
                }
                State::Closed => return None,
            }
        }
    }

    /// Answers a FOLLOW, or waits for the end of an older stream: returns until when.
    fn follow(
        &mut self,
        mut served: Served<'a>,
        since: Micros,
        shared: &mut Shared,
    ) -> Option<Micros> {
        let now = shared.timeline.instant();
        let frame = served.session.frame().expect("a FOLLOW");
        let (key, value) = (frame.key(), frame.value());
        let host = shared.network.host_of(self.end);
        shared.note(host, || format!("is asked: {}", line_of(frame.bytes())));
        let reply = match accept::accept(self.replica, "peer", key, value, now) {
            Ok(mut accepted) => {
                shared.log(vec![accepted.line()]);
                let answer = std::mem::take(&mut accepted.answer);
                served.session.answer(Reply::Answer(answer));
                let stream = LeaderStream::new(*accepted, now);
                let mut buffer = Buffer::new();
                buffer.extend(served.session.input());
                let leading = Leading {
                    acks: stream.ack_reader(now),
                    stream,
                    buffer,
                    needed: 0,
                    unsent: Vec::new(),
                    taken_at: shared.timeline.now(),
                    read_at: shared.timeline.now(),
                    waits: Waits::No,
                };
                self.state = State::Answering(served, Box::new(leading));
                return None;
            }
            Err(NotAccepted::Refused(reply)) => reply,
            Err(NotAccepted::SecondNode { .. })
                if shared.timeline.now() < since + OLDER_STREAM_ENDS =>
            {
                self.state = State::Waiting(served, since);
                return Some(since + OLDER_STREAM_ENDS);
            }
            Err(NotAccepted::SecondNode { name, .. }) => {
                Reply::Error(format!("two nodes are called {name}"))
            }
        };
        shared.note(host, || {
            format!("answers FOLLOW by {}", reply.status().name())
        });
        served.session.answer(reply);
        self.state = State::Session(served);
        None
    }
}

impl Leading<'_> {
    /// Reads acknowledgements, where `reads`, and sends what there is. Returns when to go on, or why the stream ends:
    /// `None` where it is complete.
    fn step(
        &mut self,
        end: End,
        reads: bool,
        shared: &mut Shared,
    ) -> Result<Micros, Option<StreamEnd>> {
        let read = if reads {
            self.read(end, shared)
        } else {
            Ok(())
        };
        if let Err(why) = read {
            self.acks.end(why.clone());
            if !self.unsent.is_empty() {
                return Err(Some(why));
            }
            self.waits = Waits::No;
        }
        let sent = self.send(end, shared);
        // Where the other side ended the stream, that is why the sender failed.
        let failed = |why| self.stream.link().end().cloned().unwrap_or(why);
        let send_at = sent.map_err(|why| why.map(failed))?;
        Ok(send_at)
    }

    fn read(&mut self, end: End, shared: &mut Shared) -> Result<(), StreamEnd> {
        let now = shared.timeline.instant();
        loop {
            if shared.network.readable(end) == 0 {
                break;
            }
            let mut bytes = Vec::new();
            let space = self.buffer.space(self.needed);
            let max = space.len();
            let count = shared
                .network
                .read(end, max, &mut bytes, &mut shared.timeline);
            space[..count].copy_from_slice(&bytes);
            self.buffer.filled(count);
            self.read_at = shared.timeline.now();
            self.needed = self.acks.receive(&mut self.buffer, now)?;
        }
        if shared.network.is_at_end(end) {
            return Err(StreamEnd::Closed);
        }
        self.acks.check_silence(now)
    }

    /// Whether the sender is to be asked again.
    fn is_due(&self, now: Micros) -> bool {
        let log = self.stream.log();
        match self.waits {
            Waits::No => true,
            Waits::Until(at) => now >= at,
            Waits::Ack(_) => true,
            Waits::Log(cursor, at) => {
                // Records that are not on the disk of a leader are not sent yet, also where the log has ended.
                let is_at_end = cursor.next > log.kept_head().index;
                now >= at
                    || self.stream.has_news()
                    || log.has_ended() && is_at_end
                    || !log.is_current(&cursor)
                    || log.kept_head().index.min(log.acknowledged_index()) >= cursor.next
            }
        }
    }

    fn send(&mut self, end: End, shared: &mut Shared) -> Result<Micros, Option<StreamEnd>> {
        let mut out = Vec::new();
        loop {
            let (now, network) = (shared.timeline.now(), &mut shared.network);
            let count = network.write(end, &self.unsent, &mut shared.timeline);
            self.unsent.drain(..count);
            if count > 0 {
                self.taken_at = now;
            }
            if !self.unsent.is_empty() {
                let since = shared.timeline.instant_of(self.taken_at);
                self.stream.check_stall(since, shared.timeline.instant())?;
                let turn = Micros::try_from(self.stream.stall_turn().as_micros()).unwrap_or(MS);
                return Ok(now + turn);
            }
            self.taken_at = now;
            if !self.is_due(now) {
                let (Waits::Log(_, at) | Waits::Until(at) | Waits::Ack(at)) = self.waits else {
                    unreachable!("it is due");
                };
                return Ok(at);
            }
            let sending = self.stream.next(shared.timeline.instant(), &mut out);
            shared.log(self.stream.take_notes());
            self.waits = match sending? {
                Sending::Frames { large } => {
                    self.unsent.append(&mut out);
                    if let Some(entry) = large {
                        self.unsent.extend_from_slice(entry.frame());
                    }
                    assert!(
                        self.unsent.len() <= GROUP_BYTES_MAX,
                        "{}",
                        self.unsent.len()
                    );
                    let host = shared.network.host_of(end);
                    shared.message(host, end, &self.unsent);
                    Waits::No
                }
                Sending::Wait { cursor, until } => {
                    Waits::Log(cursor, shared.timeline.micros_of(until))
                }
                Sending::Gather(time) => {
                    let time = Micros::try_from(time.as_micros()).unwrap_or(MS);
                    Waits::Until(now + time)
                }
                Sending::AwaitAck { until, .. } => {
                    let until = shared.timeline.micros_of(until);
                    self.waits = Waits::Ack(until);
                    return Ok(until);
                }
                Sending::End => return Err(None),
            };
        }
    }
}
