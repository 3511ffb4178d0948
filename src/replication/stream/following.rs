//! One stream from the node that is followed: the connection, FOLLOW and its answer, and one method for each message.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::info;

use super::FollowError;
use super::snapshot_in::SnapshotIn;
use crate::engine::digest::Digest;
use crate::engine::{ApplyError, Group};
use crate::history::History;
use crate::node::{Member, Node, Phase};
use crate::replication::core::report::{Contact, Expected};
use crate::replication::core::rules::{Decision, Position, decide};
use crate::replication::transport::acks::Acks;
use crate::replication::transport::ask::identify;
use crate::replication::transport::{Stop, connect};
use crate::replication::{Peers, Replica};
use crate::wire::replication::{Follow, FollowAnswer, Frames, Message, Parsed, parse};
use crate::wire::response::{self, Response};
use crate::wire::{Buffer, Status};

/// When a stream has done what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Goal {
    /// Never: the node follows until the stream ends.
    Follow,
    /// When the node has applied everything up to this index.
    CatchUp(u64),
}

/// The part of the stream that comes next.
enum Receiving<'a> {
    /// A snapshot was agreed on, and has not begun.
    NoSnapshotYet,
    Snapshot(SnapshotIn<'a>),
    /// The entries that follow the node's own.
    Entries,
}

/// One stream from the peer that the node follows.
pub(in crate::replication) struct Stream<'a> {
    node: &'a Node,
    peers: &'a Peers,
    member: &'a Member,
    /// The peer's name.
    peer: &'a str,
    goal: Goal,
    /// Why the node does not serve while it follows. `None` of a follower, which serves.
    reason: Option<Arc<str>>,
    has_followed: bool,
    receiving: Receiving<'a>,
    epoch: u64,
}

impl<'a> Stream<'a> {
    /// A stream for a follower, which serves its data while it follows `peer`.
    pub(in crate::replication) const fn new(
        replica: Replica<'a>,
        member: &'a Member,
        peer: &'a str,
    ) -> Stream<'a> {
        Stream {
            node: replica.node,
            peers: replica.peers,
            member,
            peer,
            goal: Goal::Follow,
            reason: None,
            has_followed: false,
            receiving: Receiving::Entries,
            epoch: 0,
        }
    }

    /// A stream for a node that is to lead. `reason` says why it does not serve meanwhile.
    pub(in crate::replication) fn before_leading(
        replica: Replica<'a>,
        member: &'a Member,
        peer: &'a str,
        goal: Goal,
        reason: String,
    ) -> Stream<'a> {
        let mut stream = Stream::new(replica, member, peer);
        stream.goal = goal;
        stream.reason = Some(Arc::from(reason));
        stream
    }

    /// Whether the node has resumed, or has received a whole snapshot.
    pub(in crate::replication) const fn has_followed(&self) -> bool {
        self.has_followed
    }

    /// Whether the node holds a part of a snapshot, which is no data set.
    pub(in crate::replication) const fn is_in_snapshot(&self) -> bool {
        matches!(self.receiving, Receiving::Snapshot(_))
    }

    /// Asks for the stream and applies it until it ends, or until the goal is reached, which is `Ok`.
    pub(in crate::replication) fn run(
        &mut self,
        addr: &str,
        stop: &Stop,
    ) -> Result<(), FollowError> {
        let timeout = self.member.replication.leader_timeout;
        let deadline = Instant::now() + timeout;
        let stream = Arc::new(connect(addr, deadline, stop)?);
        stop.watch(Some(&stream))?;
        let result = self
            .check_identity(&stream, addr, deadline, stop)
            .and_then(|()| self.follow(&stream, deadline));
        self.peers.leader_lost(self.node.head().index);
        stop.watch(None)?;
        result
    }

    /// Asks for STATUS first, so that no other node is taken for the expected one.
    fn check_identity(
        &self,
        stream: &TcpStream,
        addr: &str,
        deadline: Instant,
        stop: &Stop,
    ) -> Result<(), FollowError> {
        let expected = Expected {
            cluster: &self.member.cluster,
            own: &self.member.name,
            peer: self.peer,
        };
        match identify(stream, expected, addr, deadline, stop).0 {
            Contact::Report(_) => Ok(()),
            Contact::Stranger(text) => Err(FollowError::WrongNode(text)),
            Contact::Unclear(text) => Err(FollowError::NotYet(text)),
            Contact::Silent(text) => Err(FollowError::Rejected(text)),
            Contact::NoProcess => Err(FollowError::Io(ErrorKind::ConnectionRefused.into())),
        }
    }

    /// Whether the goal is reached.
    fn is_done(&self) -> bool {
        match (self.goal, &self.receiving) {
            (Goal::CatchUp(index), Receiving::Entries) => self.node.head().index >= index,
            (Goal::Follow, _) => false,
            (Goal::CatchUp(_), Receiving::NoSnapshotYet | Receiving::Snapshot(_)) => false,
        }
    }

    /// Asks for the stream, and applies it.
    fn follow(&mut self, stream: &TcpStream, deadline: Instant) -> Result<(), FollowError> {
        let timeout = self.member.replication.leader_timeout;
        stream.set_write_timeout(Some(timeout))?;
        let own = self.position();
        self.ask(stream, own)?;
        let mut buffer = Buffer::new();
        let judge = |answer: &Response<'_>| self.judge(answer, own);
        let (decision, history) = read_answer(stream, &mut buffer, deadline, judge)??;
        self.begin(decision, history, own)?;
        self.peers.leader_heard(Instant::now());
        self.peers.set_not_following(None);
        stream.set_read_timeout(Some(timeout))?;
        let acks = match self.receiving {
            Receiving::Entries => Acks::new(own.index),
            // Nothing that the snapshot replaces counts.
            Receiving::NoSnapshotYet | Receiving::Snapshot(_) => Acks::new(0),
        };
        thread::scope(|scope| {
            let (interval, epoch) = (self.member.replication.heartbeat_interval, self.epoch);
            let writer = thread::Builder::new().name("follower-acks".to_owned());
            let acks = &acks;
            writer.spawn_scoped(scope, move || acks.send(stream, interval, epoch))?;
            let result = self.receive(stream, &mut buffer, acks);
            acks.end();
            result
        })
    }

    /// The position that the node asks from.
    fn position(&self) -> Position {
        // A data set that it was ordered to discard does not count.
        if self.node.is_to_discard() {
            Position::default()
        } else {
            Position::of(&self.node.history(), self.node.head().index)
        }
    }

    /// Sends FOLLOW.
    fn ask(&self, mut stream: &TcpStream, own: Position) -> io::Result<()> {
        let follow = Follow {
            name: self.member.name.as_bytes(),
            is_observer: false,
            wants_snapshot: self.node.wants_snapshot(),
            is_to_lead: self.node.is_leader(),
            epoch: own.epoch,
            nonce: own.nonce,
            last_index: own.index,
            cluster_id: self.member.cluster.as_bytes(),
        };
        let mut request = Vec::new();
        follow.encode(&mut request).map_err(io::Error::other)?;
        stream.write_all(&request)
    }

    /// Decides what the answer to FOLLOW means for this node.
    fn judge(
        &self,
        answer: &Response<'_>,
        own: Position,
    ) -> Result<(Decision, History), FollowError> {
        if answer.status != Status::Ok.byte() {
            let name = Status::try_from(answer.status).map_or("an unknown status", Status::name);
            let text = String::from_utf8_lossy(answer.value);
            let text = format!("{} answers {name}: {text}", self.peer);
            return Err(if answer.status == Status::Loading.byte() {
                FollowError::NotYet(text)
            } else {
                FollowError::Rejected(text)
            });
        }
        let offer = FollowAnswer::decode(answer.value)
            .map_err(|error| FollowError::Protocol(error.to_string()))?;
        let history = offer.history.to_history();
        Ok((decide(own, offer.start, &history), history))
    }

    /// Begins to follow as decided, or keeps the node's own data set and fails.
    fn begin(
        &mut self,
        decision: Decision,
        history: History,
        own: Position,
    ) -> Result<(), FollowError> {
        self.epoch = history.last().map_or(0, |start| start.epoch);
        match decision {
            Decision::Refuse => {
                let text = format!(
                    "{}'s data set does not include this node's, which ends at index {} of epoch {}; keeping it \
                     (gopherstore-cli resync --discard gives it up)",
                    self.peer, own.index, own.epoch
                );
                return Err(FollowError::KeepsData(text));
            }
            Decision::OfferMismatch => {
                let text = "its offer does not fit this node's position".to_owned();
                return Err(FollowError::Protocol(text));
            }
            Decision::Resume => {
                self.node.count_stream(false);
                self.adopt(history);
                info!("following {} from index {}", self.peer, own.index + 1);
            }
            Decision::TakeSnapshot => {
                self.node.count_stream(true);
                self.receiving = Receiving::NoSnapshotYet;
            }
        }
        Ok(())
    }

    /// The node holds a data set of this history. A follower serves it.
    fn adopt(&mut self, history: History) {
        self.node.adopt(history);
        if let Some(reason) = &self.reason {
            self.node.enter(Phase::Loading(Arc::clone(reason)));
        }
        self.has_followed = true;
    }

    /// Reads messages and applies them until the goal is reached.
    fn receive(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut Buffer,
        acks: &Acks,
    ) -> Result<(), FollowError> {
        while !self.is_done() {
            let parsed = parse(buffer.bytes());
            let needed = match parsed.map_err(|error| FollowError::Protocol(error.to_string()))? {
                Parsed::Incomplete { needed } => needed,
                Parsed::Whole { message, frame_len } => {
                    let had_snapshot = self.is_in_snapshot();
                    self.apply(&message)?;
                    buffer.consume(frame_len);
                    if let Receiving::Entries = self.receiving {
                        acks.applied(self.node.head().index, had_snapshot);
                    }
                    continue;
                }
            };
            match stream.read(buffer.space(needed)) {
                Ok(0) => {
                    let text = format!("{} ended the stream", self.peer);
                    return Err(FollowError::Protocol(text));
                }
                Ok(count) => {
                    self.peers.leader_heard(Instant::now());
                    buffer.filled(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Applies one message.
    fn apply(&mut self, message: &Message<'_>) -> Result<(), FollowError> {
        if message.epoch() != self.epoch {
            let text = format!("a message of epoch {}, not {}", message.epoch(), self.epoch);
            return Err(FollowError::Protocol(text));
        }
        match (*message, &mut self.receiving) {
            (
                Message::Entries {
                    first_index,
                    frames,
                    ..
                },
                Receiving::Entries,
            ) => self.entries(first_index, frames),
            (
                Message::Heartbeat {
                    last_index,
                    digest_index,
                    digest,
                    ..
                },
                Receiving::Entries,
            ) => self.heartbeat(last_index, digest_index, digest),
            (Message::Heartbeat { .. }, Receiving::Snapshot(_)) => Ok(()),
            (
                Message::SnapshotBegin {
                    keys,
                    bytes,
                    history,
                    ..
                },
                Receiving::NoSnapshotYet,
            ) => {
                self.begin_snapshot(keys, bytes, history.to_history());
                Ok(())
            }
            (
                Message::SnapshotChunk {
                    sequence, frames, ..
                },
                Receiving::Snapshot(snapshot),
            ) => snapshot.chunk(sequence, frames),
            (
                Message::SnapshotEnd {
                    index,
                    digest,
                    chunks,
                    ..
                },
                Receiving::Snapshot(snapshot),
            ) => {
                let (history, took) = snapshot.end(index, digest, chunks)?;
                self.end_snapshot(index, history, took);
                Ok(())
            }
            (
                Message::Entries { .. }
                | Message::Heartbeat { .. }
                | Message::SnapshotBegin { .. }
                | Message::SnapshotChunk { .. }
                | Message::SnapshotEnd { .. }
                | Message::Ack { .. },
                Receiving::NoSnapshotYet | Receiving::Snapshot(_) | Receiving::Entries,
            ) => Err(FollowError::Protocol(format!(
                "{} where it does not belong",
                message.opcode().name()
            ))),
        }
    }

    /// Discards the data set, and begins to receive a snapshot in its place.
    fn begin_snapshot(&mut self, keys: u64, bytes: u64, history: History) {
        info!(
            "taking a full copy of {}: about {keys} keys, {bytes} bytes",
            self.peer
        );
        let snapshot = SnapshotIn::begin(self.node, keys, history);
        self.receiving = Receiving::Snapshot(snapshot);
    }

    /// The snapshot is complete: the node adopts it.
    fn end_snapshot(&mut self, index: u64, history: History, took: Duration) {
        info!(
            "copied {} up to index {index} in {} ms",
            self.peer,
            took.as_millis()
        );
        self.receiving = Receiving::Entries;
        self.adopt(history);
    }

    /// Applies entries, the first of which must be the next one of this node's log.
    fn entries(&self, first_index: u64, records: Frames<'_>) -> Result<(), FollowError> {
        let group = Group {
            first_index,
            records,
        };
        self.node
            .engine()
            .apply(&group)
            .map_err(|error| match error {
                ApplyError::Gap { .. } => FollowError::Protocol(error.to_string()),
                ApplyError::Missing { .. } => FollowError::Diverged(error.to_string()),
            })
    }

    /// Compares the leader's digest with this node's.
    fn heartbeat(
        &self,
        last_index: u64,
        digest_index: u64,
        digest: u128,
    ) -> Result<(), FollowError> {
        let head = self.node.head();
        self.peers
            .leader_told(last_index, head.index, Instant::now());
        if digest_index != head.index {
            // Everything that was sent before the heartbeat is applied, so this node has entries of another origin.
            return Err(FollowError::Diverged(format!(
                "the leader has sent everything up to index {digest_index}, and this node is at {}",
                head.index
            )));
        }
        if digest != head.digest.to_u128() {
            let theirs = Digest::from_u128(digest);
            return Err(FollowError::Diverged(format!(
                "the digest at index {digest_index} is {}, and the leader's {theirs}",
                head.digest
            )));
        }
        Ok(())
    }
}

/// Reads one answer by `deadline`; what follows it stays in `buffer`.
fn read_answer<T>(
    mut stream: &TcpStream,
    buffer: &mut Buffer,
    deadline: Instant,
    f: impl FnOnce(&Response<'_>) -> T,
) -> io::Result<T> {
    loop {
        let needed = match response::parse(buffer.bytes()).map_err(io::Error::other)? {
            response::Parsed::Whole(answer) => {
                let len = answer.frame_len();
                let result = f(&answer);
                buffer.consume(len);
                return Ok(result);
            }
            response::Parsed::Incomplete { needed } => needed,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer.space(needed))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffer.filled(count),
        }
    }
}
