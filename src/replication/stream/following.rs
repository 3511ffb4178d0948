//! The follower side of a stream: FOLLOW and its answer, and one method for each message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FollowError;
use super::acks_out::{Acknowledged, AcksOut};
use super::snapshot_in::SnapshotIn;
use crate::engine::digest::Digest;
use crate::engine::{ApplyError, Group};
use crate::history::History;
use crate::log::{Log, Space};
use crate::node::{Leader, Member, Node};
pub(crate) use crate::replication::core::machine::Goal;
use crate::replication::core::role::LeadOrder;
use crate::replication::core::rules::{Decision, Position, decide};
use crate::replication::peers::{Peers, Replica};
use crate::wire::replication::{Follow, FollowAnswer, Frames, Message, Parsed, parse};
use crate::wire::response::{self, Response};
use crate::wire::{Buffer, Opcode, Status};

/// The part of the stream that comes next.
enum Receiving<'a> {
    /// The answer to FOLLOW, by the deadline.
    Answer {
        own: Position,
        deadline: Instant,
    },
    /// A snapshot was agreed on, and has not begun.
    NoSnapshotYet,
    Snapshot(SnapshotIn<'a>),
    /// The entries that follow the node's own.
    Entries,
}

/// The result of [`FollowerStream::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The frame that has begun has so many bytes, as far as known.
    Bytes(usize),
    /// The goal is reached.
    Done,
    /// The leader has ordered this node to lead, which holds all of the leader's log. The stream has ended.
    Lead(LeadOrder),
}

/// The follower side of one stream.
///
/// The caller sends [`request`](Self::request), passes what arrives to [`receive`](Self::receive), sends what
/// [`acks`](Self::acks) has due, and asks [`check_silence`](Self::check_silence) where nothing arrives. It calls
/// [`end`](Self::end) when the connection has ended, or could not be made.
pub(crate) struct FollowerStream<'a> {
    node: &'a Node,
    peers: &'a Peers,
    member: &'a Member,
    /// The peer's name.
    peer: &'a str,
    goal: Goal,
    has_followed: bool,
    receiving: Receiving<'a>,
    epoch: u64,
    /// The peer's clock has pulled the node's since the last snapshot, which says no time.
    has_time: bool,
    /// The history that the leader offered.
    offered: History,
    /// When anything last came.
    heard: Option<Instant>,
    acks: Arc<AcksOut>,
    /// Lines for the log.
    notes: Vec<String>,
}

impl<'a> FollowerStream<'a> {
    /// A stream from the peer of this name.
    pub(crate) fn new(
        replica: Replica<'a>,
        member: &'a Member,
        peer: &'a str,
        goal: Goal,
    ) -> FollowerStream<'a> {
        FollowerStream {
            node: replica.node,
            peers: replica.peers,
            member,
            peer,
            goal,
            has_followed: false,
            receiving: Receiving::Entries,
            epoch: 0,
            has_time: true,
            offered: History::default(),
            heard: None,
            acks: Arc::new(AcksOut::new(member.replication.heartbeat_interval)),
            notes: Vec::new(),
        }
    }

    /// Identity and settings of the node.
    pub(crate) const fn member(&self) -> &'a Member {
        self.member
    }

    /// The name of the peer that is followed.
    pub(crate) const fn peer(&self) -> &'a str {
        self.peer
    }

    /// Whether the node has resumed, or has received a whole snapshot.
    pub(crate) const fn has_followed(&self) -> bool {
        self.has_followed
    }

    /// Whether the peer has accepted the stream.
    pub(crate) const fn is_accepted(&self) -> bool {
        self.heard.is_some()
    }

    /// Whether the node holds a part of a snapshot, which is no data set.
    pub(crate) const fn is_in_snapshot(&self) -> bool {
        matches!(self.receiving, Receiving::Snapshot(_))
    }

    /// The acknowledgements of the stream.
    pub(crate) const fn acks(&self) -> &Arc<AcksOut> {
        &self.acks
    }

    /// Takes the lines for the log that have come up since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Waits until the node's disk is near the end of its log, until `deadline` at most. Returns whether it is.
    pub(crate) fn wait_for_disk(&self, deadline: Instant) -> bool {
        let log = self.node.engine().log();
        log.is_none_or(|log| log.wait_for_disk(deadline))
    }

    /// Judges a wait for the disk. To be called where [`wait_for_disk`](Self::wait_for_disk) has timed out.
    ///
    /// # Errors
    ///
    /// [`FollowError::Disk`], where the stream has to end, or is not to begin: the leader gives up a follower that
    /// takes nothing.
    pub(crate) fn check_disk(&self, now: Instant) -> Result<(), FollowError> {
        let timeout = self.member.replication.leader_timeout;
        if self.heard.is_some_and(|heard| now < heard + timeout) {
            return Ok(());
        }
        let space = self.node.engine().log().map(Log::space);
        Err(FollowError::Disk(match space {
            Some((Space::Reserve | Space::UsedUp, why)) => why.to_string(),
            Some((Space::Enough, _)) | None => {
                "this node's disk is slow, and backlog_bytes of the log wait for it".to_owned()
            }
        }))
    }

    /// Begins the stream: the bytes of FOLLOW.
    ///
    /// # Errors
    ///
    /// [`FollowError::Protocol`], where a name of the configuration is too long for it.
    pub(crate) fn request(&mut self, now: Instant) -> Result<Vec<u8>, FollowError> {
        // A data set that it was ordered to discard does not count.
        let own = if self.node.is_to_discard() {
            Position::default()
        } else {
            Position::of(&self.node.history(), self.node.last_index())
        };
        let deadline = now + self.member.replication.leader_timeout;
        self.receiving = Receiving::Answer { own, deadline };
        let follow = Follow {
            name: self.member.name.as_bytes(),
            wants_snapshot: self.node.wants_snapshot(),
            is_to_lead: self.node.is_candidate(),
            epoch: own.epoch,
            nonce: own.nonce,
            last_index: own.index,
            cluster_id: self.member.cluster.as_bytes(),
        };
        let mut request = Vec::new();
        follow
            .encode(&mut request)
            .map_err(|error| FollowError::Protocol(error.to_string()))?;
        Ok(request)
    }

    /// Consumes the whole frames that have arrived in `buffer`. To be called after each read.
    ///
    /// # Errors
    ///
    /// Why the stream has ended, or does not begin.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut Buffer,
        now: Instant,
    ) -> Result<Need, FollowError> {
        if let Receiving::Answer { own, .. } = self.receiving {
            let parsed = response::parse(buffer.bytes());
            match parsed.map_err(|error| FollowError::Lost(error.to_string()))? {
                response::Parsed::Incomplete { needed } => {
                    self.check_silence(now)?;
                    return Ok(Need::Bytes(needed));
                }
                response::Parsed::Whole(answer) => {
                    let decision = self.judge(&answer, own)?;
                    let len = answer.frame_len();
                    buffer.consume(len);
                    self.begin(decision, own)?;
                }
            }
        }
        // The leader may have given this node up by now, so an order that comes after such a silence is void.
        self.check_silence(now)?;
        self.heard = Some(now);
        self.peers.leader_heard(now);
        while !self.is_done() {
            let parsed = parse(buffer.bytes());
            match parsed.map_err(|error| FollowError::Protocol(error.to_string()))? {
                Parsed::Incomplete { needed } => return Ok(Need::Bytes(needed)),
                Parsed::Whole { message, frame_len } => {
                    if let Message::Lead {
                        epoch,
                        last_index,
                        digest,
                    } = message
                    {
                        return self.lead(LeadOrder {
                            epoch,
                            last_index,
                            digest,
                        });
                    }
                    self.apply(&message, now)?;
                    buffer.consume(frame_len);
                    if let Receiving::Entries = self.receiving {
                        self.acks.reached(self.at());
                    }
                }
            }
        }
        Ok(Need::Done)
    }

    /// Judges a wait in which nothing has arrived. To be called where a read has timed out.
    ///
    /// # Errors
    ///
    /// [`FollowError::Silent`], where the stream has to end.
    pub(crate) fn check_silence(&self, now: Instant) -> Result<(), FollowError> {
        let timeout = self.member.replication.leader_timeout;
        let deadline = match (&self.receiving, self.heard) {
            (Receiving::Answer { deadline, .. }, _) => *deadline,
            (
                Receiving::NoSnapshotYet | Receiving::Snapshot(_) | Receiving::Entries,
                Some(heard),
            ) => heard + timeout,
            (Receiving::NoSnapshotYet | Receiving::Snapshot(_) | Receiving::Entries, None) => {
                return Ok(());
            }
        };
        if now < deadline {
            return Ok(());
        }
        Err(FollowError::Silent(timeout))
    }

    /// The stream has ended, or could not begin. To be called once the driver knows how: until then STATUS says that
    /// the node follows.
    pub(crate) fn end(&self) {
        self.peers.leader_lost(self.node.head().index);
    }

    /// The peer has closed the connection.
    pub(crate) fn closed(&self) -> FollowError {
        match self.receiving {
            Receiving::Answer { .. } => FollowError::Lost("unexpected end of file".to_owned()),
            Receiving::NoSnapshotYet | Receiving::Snapshot(_) | Receiving::Entries => {
                FollowError::Protocol(format!("{} ended the stream", self.peer))
            }
        }
    }

    /// The position that the node acknowledges.
    fn at(&self) -> Acknowledged {
        Acknowledged {
            last_index: self.node.last_index(),
            applied_index: self.node.head().index,
            durable_index: self.node.durable_index(),
        }
    }

    /// Whether the goal is reached. A node that is to lead needs the peer's time with a snapshot: keys that have
    /// expired there do not come back.
    fn is_done(&self) -> bool {
        match (self.goal, &self.receiving) {
            (Goal::CatchUp(index), Receiving::Entries) => {
                self.has_time && self.node.head().index >= index
            }
            (Goal::Follow, _)
            | (
                Goal::CatchUp(_),
                Receiving::Answer { .. } | Receiving::NoSnapshotYet | Receiving::Snapshot(_),
            ) => false,
        }
    }

    /// Decides what the answer to FOLLOW means for this node.
    fn judge(&mut self, answer: &Response<'_>, own: Position) -> Result<Decision, FollowError> {
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
        self.epoch = history.last().map_or(0, |start| start.epoch);
        let decision = decide(own, offer.start, &history);
        self.offered = history;
        Ok(decision)
    }

    /// Begins to follow as decided, or keeps the node's own data set and fails.
    fn begin(&mut self, decision: Decision, own: Position) -> Result<(), FollowError> {
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
                self.begin_to_follow();
                self.node.count_stream(false);
                self.receiving = Receiving::Entries;
                self.adopt();
                let from_index = own.index + 1;
                let note = format!("following {} from index {from_index}", self.peer);
                self.notes.push(note);
                self.acks.begin(self.epoch, self.at());
            }
            Decision::TakeSnapshot => {
                self.begin_to_follow();
                self.node.count_stream(true);
                self.receiving = Receiving::NoSnapshotYet;
                self.has_time = false;
                // Nothing that the snapshot replaces counts.
                self.acks.begin(self.epoch, Acknowledged::default());
            }
        }
        self.peers.set_not_following(None);
        Ok(())
    }

    /// The offer fits. A node that has led until it heard of this leader follows it from now on.
    fn begin_to_follow(&self) {
        let peer = self.member.peers.iter().find(|peer| peer.name == self.peer);
        if let (Goal::Follow, Some(peer)) = (self.goal, peer) {
            self.node.follow(Leader {
                name: Arc::from(self.peer),
                addr: Arc::from(peer.addr.as_str()),
            });
        }
    }

    /// The node holds a data set of the peer's. A follower serves it, a candidate does not yet.
    fn adopt(&mut self) {
        self.node.adopt();
        self.has_followed = true;
    }

    /// Applies one message.
    fn apply(&mut self, message: &Message<'_>, now: Instant) -> Result<(), FollowError> {
        if message.epoch() != self.epoch {
            let text = format!("a message of epoch {}, not {}", message.epoch(), self.epoch);
            return Err(FollowError::Protocol(text));
        }
        match (*message, &mut self.receiving) {
            (
                Message::Entries {
                    first_index,
                    committed_index,
                    time_ms,
                    digest,
                    frames,
                    ..
                },
                Receiving::Entries,
            ) => {
                self.pull_clock(time_ms);
                let group = Group {
                    first_index,
                    records: frames,
                    committed: committed_index,
                    digest: Digest::from_u128(digest),
                };
                self.receive_group(group, now)
            }
            (
                Message::Heartbeat {
                    round,
                    last_index,
                    committed_index,
                    time_ms,
                    digest_index,
                    digest,
                    ..
                },
                Receiving::Entries,
            ) => {
                self.pull_clock(time_ms);
                let applied = self.node.engine().apply(committed_index);
                applied.map_err(|error| follow_error(&error))?;
                self.heartbeat(last_index, digest_index, digest, now)?;
                self.acks.heartbeat(round);
                Ok(())
            }
            (Message::Heartbeat { round, time_ms, .. }, Receiving::Snapshot(_)) => {
                self.pull_clock(time_ms);
                self.acks.heartbeat(round);
                Ok(())
            }
            (
                Message::SnapshotBegin {
                    keys,
                    bytes,
                    history,
                    ..
                },
                Receiving::NoSnapshotYet,
            ) => {
                self.begin_snapshot(keys, bytes, history.to_history(), now);
                Ok(())
            }
            (
                Message::SnapshotChunk {
                    sequence, frames, ..
                },
                Receiving::Snapshot(snapshot),
            ) => snapshot.chunk(sequence, frames, now),
            (
                Message::SnapshotEnd {
                    index,
                    digest,
                    chunks,
                    ..
                },
                Receiving::Snapshot(snapshot),
            ) => {
                let took = snapshot.end(index, digest, chunks, now)?;
                self.end_snapshot(index, took);
                Ok(())
            }
            (
                Message::Entries { .. }
                | Message::Heartbeat { .. }
                | Message::SnapshotBegin { .. }
                | Message::SnapshotChunk { .. }
                | Message::SnapshotEnd { .. }
                | Message::Ack { .. }
                | Message::Lead { .. }
                | Message::Event { .. },
                Receiving::Answer { .. }
                | Receiving::NoSnapshotYet
                | Receiving::Snapshot(_)
                | Receiving::Entries,
            ) => Err(FollowError::Protocol(format!(
                "{} where it does not belong",
                message.opcode().name()
            ))),
        }
    }

    /// Moves the clock to the time of the node that sends the stream, where that is later.
    fn pull_clock(&mut self, time_ms: u64) {
        self.node.engine().clock().pull(time_ms);
        self.has_time = true;
    }

    /// Adds a group of records to the log, and applies the committed ones.
    fn receive_group(&self, group: Group<'_>, now: Instant) -> Result<(), FollowError> {
        self.check_epochs(group.records)?;
        let received = self.node.engine().receive(&group, now);
        #[cfg(test)]
        let received = if crate::planted::is(crate::planted::Fault::AppliedTwice) {
            let again = Group {
                first_index: group.first_index + u64::from(group.records.count()),
                committed: u64::MAX,
                ..group
            };
            received.and_then(|()| self.node.engine().receive(&again, now))
        } else {
            received
        };
        received.map_err(|error| follow_error(&error))
    }

    /// Judges the order to lead: the node must hold exactly what the leader holds.
    fn lead(&self, order: LeadOrder) -> Result<Need, FollowError> {
        // The leader has everything up to there, and takes no more writes.
        let applied = self.node.engine().apply(order.last_index);
        applied.map_err(|error| follow_error(&error))?;
        let head = self.node.head();
        let fits = matches!(self.receiving, Receiving::Entries)
            && order.epoch == self.epoch
            && (head.index, head.digest.to_u128()) == (order.last_index, order.digest);
        if fits && self.goal == Goal::Follow {
            return Ok(Need::Lead(order));
        }
        Err(FollowError::Protocol(format!(
            "it orders this node, at index {}, to lead after index {} of epoch {}",
            head.index, order.last_index, order.epoch
        )))
    }

    /// Checks that the epochs that begin in a group are of the history that the leader offered.
    fn check_epochs(&self, records: Frames<'_>) -> Result<(), FollowError> {
        if !records.has_epochs() {
            return Ok(());
        }
        let epochs = records
            .iter()
            .filter(|frame| frame.opcode() == Opcode::Epoch);
        for frame in epochs {
            let operands = Opcode::Epoch.spec().operands_of(frame.value());
            let [epoch, nonce] = operands.unwrap_or_default();
            if self.offered.end_of(epoch, nonce).is_none() {
                return Err(FollowError::Protocol(format!(
                    "epoch {epoch} begins, which is not in the history that it offered"
                )));
            }
        }
        Ok(())
    }

    /// Discards the data set, and begins to receive a snapshot in its place.
    fn begin_snapshot(&mut self, keys: u64, bytes: u64, history: History, now: Instant) {
        self.notes.push(format!(
            "taking a full copy of {}: about {keys} keys, {bytes} bytes",
            self.peer
        ));
        let snapshot = SnapshotIn::begin(self.node, keys, history, now);
        self.receiving = Receiving::Snapshot(snapshot);
    }

    /// The snapshot is complete: the node adopts it.
    fn end_snapshot(&mut self, index: u64, took: Duration) {
        self.notes.push(format!(
            "copied {} up to index {index} in {} ms",
            self.peer,
            took.as_millis()
        ));
        self.receiving = Receiving::Entries;
        self.acks.snapshot_ended();
        self.adopt();
    }

    /// Compares the leader's digest with this node's.
    fn heartbeat(
        &self,
        last_index: u64,
        digest_index: u64,
        digest: u128,
        now: Instant,
    ) -> Result<(), FollowError> {
        let (own, head) = (self.node.last_index(), self.node.head());
        self.peers.leader_told(last_index, head.index, now);
        if digest_index != own {
            // Everything that was sent before the heartbeat is logged, so this node has entries of another origin.
            return Err(FollowError::Diverged(format!(
                "the leader has sent everything up to index {digest_index}, and this node is at {own}"
            )));
        }
        let (index, own, theirs) = (head.index, head.digest, Digest::from_u128(digest));
        // Otherwise it is compared once all of the log is applied.
        #[cfg(test)]
        let own = if crate::planted::is(crate::planted::Fault::DigestNotCompared) {
            theirs
        } else {
            own
        };
        if index == digest_index && own != theirs {
            let error = ApplyError::Diverged { index, own, theirs };
            return Err(follow_error(&error));
        }
        Ok(())
    }
}

/// The end of the stream where what it brought cannot be logged or applied.
fn follow_error(error: &ApplyError) -> FollowError {
    match error {
        ApplyError::NotLogged(_) | ApplyError::NoLog | ApplyError::Lost { .. } => {
            FollowError::Protocol(error.to_string())
        }
        ApplyError::Missing { .. } | ApplyError::Diverged { .. } => {
            FollowError::Diverged(error.to_string())
        }
    }
}
