//! A node that follows: the connection, the identity of the other side, and the shipped follower side of the stream.

use std::time::Instant;

use super::asking::Exchange;
use super::events::{MS, Micros};
use super::network::{End, Signal};
use super::shared::Shared;
use crate::config::NodeConfig;
use crate::replication::core::report::{Contact, Expected};
use crate::replication::driver::Outcome;
use crate::replication::stream::FollowError;
use crate::replication::stream::acks_out::AckTurn;
use crate::replication::stream::following::{FollowerStream, Need};
use crate::wire::Buffer;
use crate::wire::replication::{self, Message, Parsed};
use crate::wire::response::{self, HEADER_LEN};

/// Longest wait in one read until the stream is accepted.
const ANSWER_TURN: Micros = 50 * MS;

/// The stream from the node that is followed.
pub(super) struct Following<'a> {
    pub(super) end: End,
    pub(super) stream: FollowerStream<'a>,
    peer: &'a NodeConfig,
    part: Part,
    /// By when the other side has to be known.
    deadline: Micros,
    /// When something last came.
    read_at: Micros,
    buffer: Buffer,
    needed: usize,
    /// Bytes that the network has not taken.
    unsent: Vec<u8>,
    /// The process that it is connected to.
    pub(super) leader: Option<usize>,
    /// The latest time that the leader's clock had when it sent what was received: milliseconds since 1970. `None`
    /// after a snapshot.
    pub(super) leader_time: Option<u64>,
}

enum Part {
    Connecting,
    Identifying(Exchange),
    Stream,
}

/// How a stream goes on.
pub(super) enum Turn {
    /// At this time at the latest, where nothing comes before.
    Wait(Micros),
    /// It has ended.
    Ended(Outcome),
}

impl<'a> Following<'a> {
    /// Connects to a peer.
    pub(super) fn begin(
        stream: FollowerStream<'a>,
        peer: &'a NodeConfig,
        from: usize,
        to: usize,
        shared: &mut Shared,
    ) -> Following<'a> {
        let timeout = stream.member().replication.leader_timeout;
        let timeout = Micros::try_from(timeout.as_micros()).unwrap_or(Micros::MAX);
        let end = shared.network.connect(from, to, &mut shared.timeline);
        Following {
            end,
            stream,
            peer,
            part: Part::Connecting,
            deadline: shared.timeline.now() + timeout,
            read_at: 0,
            buffer: Buffer::new(),
            needed: HEADER_LEN,
            unsent: Vec::new(),
            leader: None,
            leader_time: Some(0),
        }
    }

    /// Goes on after a signal of the connection, or at a time.
    pub(super) fn step(&mut self, signal: Option<Signal>, shared: &mut Shared) -> Turn {
        self.go_on(signal, shared)
            .unwrap_or_else(|error| Turn::Ended(Outcome::Failed(error)))
    }

    fn go_on(&mut self, signal: Option<Signal>, shared: &mut Shared) -> Result<Turn, FollowError> {
        let lost = |text: &str| Err(FollowError::Lost(text.to_owned()));
        match signal {
            Some(Signal::Refused) => {
                return Err(FollowError::NoProcess("connection refused".to_owned()));
            }
            Some(Signal::Reset) => return lost("connection reset"),
            Some(Signal::Connected) => {
                let host = shared.network.host_of_other(self.end);
                self.leader = host.and_then(|host| shared.running.get(&host).copied());
                let exchange = Exchange::begin(self.end, &mut shared.network, &mut shared.timeline);
                self.part = Part::Identifying(exchange);
            }
            Some(Signal::Readable | Signal::Writable | Signal::Accepted) | None => {}
        }
        let now = shared.timeline.now();
        match &mut self.part {
            Part::Connecting if now >= self.deadline => lost("timed out"),
            Part::Connecting => Ok(Turn::Wait(self.deadline)),
            Part::Identifying(exchange) => {
                let member = self.stream.member();
                let expected = Expected {
                    cluster: &member.cluster,
                    own: &member.name,
                    peer: self.stream.peer(),
                };
                let (network, timeline) = (&mut shared.network, &mut shared.timeline);
                let contact =
                    exchange.receive(expected, &self.peer.addr, self.end, network, timeline);
                let is_late = now >= self.deadline;
                match contact.or_else(|| is_late.then(|| exchange.lost("timed out"))) {
                    None => return Ok(Turn::Wait(self.deadline)),
                    Some(Contact::Report(_)) => {}
                    Some(Contact::Stranger(text)) => return Err(FollowError::WrongNode(text)),
                    Some(Contact::Unclear(text)) => return Err(FollowError::NotYet(text)),
                    Some(Contact::Silent(text)) => return Err(FollowError::Rejected(text)),
                    Some(Contact::NoProcess) => unreachable!("it is connected"),
                }
                self.unsent = self.stream.request(shared.timeline.instant())?;
                self.part = Part::Stream;
                self.read_at = now;
                self.receive(shared)
            }
            Part::Stream => self.receive(shared),
        }
    }

    /// Receives what has arrived, and acknowledges.
    fn receive(&mut self, shared: &mut Shared) -> Result<Turn, FollowError> {
        let now = shared.timeline.instant();
        // It waits no longer than until now: the instants of a run are far ahead.
        while self.stream.wait_for_disk(Instant::now()) && shared.network.readable(self.end) > 0 {
            let space = self.buffer.space(self.needed);
            let mut bytes = Vec::new();
            let max = space.len();
            let count = shared
                .network
                .read(self.end, max, &mut bytes, &mut shared.timeline);
            space[..count].copy_from_slice(&bytes);
            self.buffer.filled(count);
            self.read_at = shared.timeline.now();
            let bytes = self.buffer.bytes().to_vec();
            let was_accepted = self.stream.is_accepted();
            let result = self.stream.receive(&mut self.buffer, now);
            if result.is_ok() {
                let consumed = bytes.len() - self.buffer.bytes().len();
                self.heard(&bytes[..consumed], was_accepted);
            }
            shared.log(self.stream.take_notes());
            match result? {
                Need::Bytes(needed) => self.needed = needed,
                Need::Done => return Ok(Turn::Ended(Outcome::Reached)),
                Need::Lead(order) => return Ok(Turn::Ended(Outcome::Lead(order))),
            }
        }
        if shared.network.is_at_end(self.end) {
            return Err(self.stream.closed());
        }
        let timeout = if self.stream.is_accepted() {
            self.stream.member().replication.leader_timeout.as_micros()
        } else {
            ANSWER_TURN.into()
        };
        let timeout = Micros::try_from(timeout).unwrap_or(Micros::MAX);
        if shared.timeline.now() >= self.read_at + timeout {
            self.stream.check_silence(now)?;
            self.read_at = shared.timeline.now();
        }
        let silent_at = self.read_at + timeout;
        let ack_at = self.acknowledge(shared);
        Ok(Turn::Wait(silent_at.min(ack_at.unwrap_or(Micros::MAX))))
    }

    /// Sends the acknowledgement that is due. Returns when to ask again.
    fn acknowledge(&mut self, shared: &mut Shared) -> Option<Micros> {
        loop {
            let (network, timeline) = (&mut shared.network, &mut shared.timeline);
            let count = network.write(self.end, &self.unsent, timeline);
            self.unsent.drain(..count);
            if !self.unsent.is_empty() {
                return None;
            }
            match self.stream.acks().next(timeline.instant()) {
                AckTurn::Send(message) => {
                    message.encode(&mut self.unsent).expect("it is short");
                    let host = shared.network.host_of(self.end);
                    shared.message(host, self.end, &self.unsent);
                }
                AckTurn::NotBefore(at) => return Some(timeline.micros_of(at)),
                AckTurn::OnChange(at) => return at.map(|at| timeline.micros_of(at)),
            }
        }
    }

    /// Notes the leader's time in messages that the node has taken. In front of them is the answer to FOLLOW, unless
    /// the stream `was_accepted` before.
    fn heard(&mut self, bytes: &[u8], was_accepted: bool) {
        let mut rest = bytes;
        if let (false, Ok(response::Parsed::Whole(answer))) = (was_accepted, response::parse(rest))
        {
            rest = &rest[answer.frame_len()..];
        }
        while let Ok(Parsed::Whole { message, frame_len }) = replication::parse(rest) {
            rest = &rest[frame_len..];
            if let Message::Entries { time_ms, .. } | Message::Heartbeat { time_ms, .. } = message {
                self.leader_time = self.leader_time.max(Some(time_ms));
            } else if let Message::SnapshotEnd { .. } = message {
                self.leader_time = None;
            }
        }
    }
}
