//! The leader side: what is to be sent next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::accept::Accepted;
use super::acks_in::AckReader;
use super::link::{Link, StreamEnd};
use super::snapshot_out::SnapshotOut;
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::history::History;
use crate::log::{Cursor, Found, Log};
use crate::node::Node;
use crate::replication::core::liveness::SILENT_HEARTBEATS;
use crate::wire::replication::{BatchEncoder, Fields, Head, Message, Start, StreamOpcode};

/// After a batch of fewer entries the sender pauses, so that more of them gather: a write to the socket for every few
/// entries, and a thread woken on the other side, costs the clients more than it gains a follower.
const FEW_ENTRIES: u32 = 512;

/// The pause after such a batch.
const GATHER: Duration = Duration::from_micros(500);

/// Most bytes of frames in a batch, except for a single larger frame.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// How long a node that stops waits for a follower to acknowledge the last entry.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// Poll interval while a follower that is ordered to lead ends its stream.
const ORDERED_TURN: Duration = Duration::from_millis(2);

/// Longest time between two judgements of a write that the other side does not take.
const STALL_TURN: Duration = Duration::from_millis(500);

/// Next action of the sender.
#[derive(Debug)]
pub(crate) enum Sending {
    /// Write the bytes of the buffer, and then the frame of this entry, which is large.
    Frames {
        /// `None` where the buffer has everything.
        large: Option<Entry>,
    },
    /// Wait until the log has the next record of the cursor, and until this time at most.
    Wait {
        /// The position in the log.
        cursor: Cursor,
        /// Next heartbeat, or the next look at the log.
        until: Instant,
    },
    /// Wait for so long, so that more records gather.
    Gather(Duration),
    /// Wait until the follower has acknowledged this index, and until this time at most.
    AwaitAck {
        /// The last index of the log.
        index: u64,
        /// The end of the wait.
        until: Instant,
    },
    /// The stream is complete: the node stops.
    End,
}

/// The half of the leader side that sends.
///
/// The caller does what [`next`](Self::next) returns, and then calls it again. Where a write is not taken it asks
/// [`check_stall`](Self::check_stall).
pub(crate) struct LeaderStream<'a> {
    sender: Sender<'a>,
    part: Part,
}

/// The part of the stream that is being sent.
enum Part {
    Snapshot(Box<SnapshotOut>),
    Log,
    /// All of the log is sent. The follower has to acknowledge its last index by the deadline.
    LastAck {
        index: u64,
        deadline: Instant,
    },
    /// The follower is ordered to lead. It ends the stream by the deadline.
    Ordered {
        deadline: Instant,
    },
}

/// State that all parts of a stream share.
pub(super) struct Sender<'a> {
    pub(super) node: &'a Node,
    pub(super) log: &'a Log,
    pub(super) link: Arc<Link<'a>>,
    /// [`Node::dataset_generation`] of the data set that is sent.
    generation: u64,
    /// Whether this node led when the stream began.
    led: bool,
    pub(super) epoch: u64,
    /// The history that the other side was told.
    pub(super) history: History,
    /// The position in the log after what is sent.
    pub(super) cursor: Option<Cursor>,
    /// Interval of heartbeats.
    pub(super) interval: Duration,
    beat_at: Instant,
    /// Number of the last heartbeat.
    round: u64,
    /// The last batch was a small one.
    is_to_gather: bool,
    /// Frames read from the log.
    pub(super) run: Vec<u8>,
    /// Lines for the log.
    pub(super) notes: Vec<String>,
}

impl<'a> LeaderStream<'a> {
    /// Begins a stream that was accepted.
    pub(crate) fn new(accepted: Accepted<'a>, now: Instant) -> LeaderStream<'a> {
        let node = accepted.link.replica().node;
        let is_snapshot = accepted.start == Start::Snapshot;
        if !accepted.is_observer() {
            node.count_stream(is_snapshot);
        }
        LeaderStream {
            sender: Sender {
                node,
                log: accepted.log,
                link: Arc::new(accepted.link),
                generation: accepted.generation,
                led: accepted.led,
                epoch: accepted.history.last().map_or(0, |start| start.epoch),
                history: accepted.history,
                cursor: accepted.cursor,
                interval: accepted.interval,
                beat_at: now,
                round: 0,
                is_to_gather: false,
                run: Vec::new(),
                notes: Vec::new(),
            },
            part: if accepted.cursor.is_some() {
                Part::Log
            } else {
                Part::Snapshot(Box::new(SnapshotOut::new(now)))
            },
        }
    }

    /// The half that takes acknowledgements. To be made once.
    pub(crate) fn ack_reader(&self, now: Instant) -> AckReader<'a> {
        AckReader::new(
            Arc::clone(&self.sender.link),
            self.sender.silence_max(),
            now,
        )
    }

    /// The other side of the stream.
    pub(crate) const fn link(&self) -> &Arc<Link<'a>> {
        &self.sender.link
    }

    /// The log that is sent.
    pub(crate) const fn log(&self) -> &'a Log {
        self.sender.log
    }

    /// Whether [`next`](Self::next) has something to decide, though the log has nothing new: the stream is over, or
    /// carries an order.
    pub(crate) fn has_news(&self) -> bool {
        let sender = &self.sender;
        sender.link.order().is_some() || sender.check_dataset().is_err()
    }

    /// Whether a snapshot is being sent.
    pub(crate) const fn is_in_snapshot(&self) -> bool {
        matches!(self.part, Part::Snapshot(_))
    }

    /// Takes the lines for the log that have come up since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.sender.notes)
    }

    /// Decides what is to be done next. Bytes to write replace the contents of `out`. They count as sent.
    ///
    /// # Errors
    ///
    /// Why the stream ends.
    pub(crate) fn next(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        out.clear();
        if let Some(sending) = self.next_of_order(now, out)? {
            return Ok(sending);
        }
        let sender = &mut self.sender;
        sender.check_dataset()?;
        match &mut self.part {
            Part::Snapshot(snapshot) => {
                if let Some(sending) = snapshot.next(sender, now, out)? {
                    return Ok(sending);
                }
                sender.beat_at = now;
                self.part = Part::Log;
            }
            Part::Log | Part::Ordered { .. } => {}
            Part::LastAck { index, deadline } => return sender.last_ack(*index, *deadline, now),
        }
        self.next_of_log(now, out)
    }

    /// Sends a follower the order to lead, once that is given, and then waits until the follower ends the stream.
    fn next_of_order(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        if let Part::Ordered { deadline } = self.part {
            return match self.sender.link.end() {
                Some(_) => Ok(Some(Sending::End)),
                None if now < deadline => Ok(Some(Sending::Gather(ORDERED_TURN))),
                None => Err(StreamEnd::Silent),
            };
        }
        let Some(order) = self.sender.link.order() else {
            return Ok(None);
        };
        let lead = Message::Lead {
            epoch: order.epoch,
            last_index: order.last_index,
            digest: order.digest,
        };
        encode(&lead, out)?;
        let deadline = now + self.sender.silence_max();
        self.part = Part::Ordered { deadline };
        Ok(Some(Sending::Frames { large: None }))
    }

    fn next_of_log(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        let sender = &mut self.sender;
        let mut cursor = sender.cursor.ok_or(StreamEnd::FellBehind)?;
        if std::mem::take(&mut sender.is_to_gather) {
            return Ok(Sending::Gather(GATHER));
        }
        if sender.beat_at <= now {
            sender.beat_at = now + sender.interval;
            if sender.beat(cursor, out)? {
                return Ok(Sending::Frames { large: None });
            }
        }
        // Only the stream of a follower that was silent is replaced.
        let has_place = sender.link.progress(|_| ());
        has_place.map_err(|_| StreamEnd::Silent)?;
        match sender.read(&mut cursor)? {
            Found::Small(count, digest) => {
                sender.entries(count, digest, cursor, out)?;
                Ok(Sending::Frames { large: None })
            }
            Found::Large(entry, digest) => {
                let fields = sender.group_fields(1, digest, cursor);
                sender.link.sent(cursor.next - 1);
                large(fields, entry, out)
            }
            Found::Nothing => Ok(Sending::Wait {
                cursor,
                until: sender.beat_at,
            }),
            Found::Gone => Err(StreamEnd::FellBehind),
            Found::Ended if sender.link.is_observer() => Ok(Sending::End),
            Found::Ended => {
                let (index, deadline) = (cursor.next - 1, now + LAST_ACK_TIMEOUT);
                self.part = Part::LastAck { index, deadline };
                if sender.beat(cursor, out)? {
                    return Ok(Sending::Frames { large: None });
                }
                sender.last_ack(index, deadline, now)
            }
        }
    }

    /// Longest time that a write may wait before [`check_stall`](Self::check_stall) is asked.
    pub(crate) fn stall_turn(&self) -> Duration {
        self.sender.interval.min(STALL_TURN)
    }

    /// Judges a write of which the other side has taken nothing since `since`. The stream of a follower that takes
    /// nothing for three heartbeat intervals ends. An observer may pause for as long as this node holds the next entry.
    ///
    /// # Errors
    ///
    /// Why the stream has to end.
    pub(crate) fn check_stall(&self, since: Instant, now: Instant) -> Result<(), StreamEnd> {
        let sender = &self.sender;
        if !sender.link.is_observer() {
            let stalled = now.saturating_duration_since(since);
            return if stalled < sender.silence_max() {
                Ok(())
            } else {
                Err(StreamEnd::TookNothing)
            };
        }
        sender.check_dataset()?;
        if sender.log.has_ended() {
            return Err(StreamEnd::NodeStops);
        }
        match sender.cursor {
            Some(cursor) if !sender.log.holds(&cursor) => Err(StreamEnd::FellBehind),
            Some(_) | None => Ok(()),
        }
    }
}

impl Sender<'_> {
    /// Silence after which a follower counts as gone.
    fn silence_max(&self) -> Duration {
        self.interval * SILENT_HEARTBEATS
    }

    /// Reads the next records of the log into `run`. They are of this stream's history.
    pub(super) fn read(&mut self, cursor: &mut Cursor) -> Result<Found, StreamEnd> {
        let found = self.log.try_read(cursor, BATCH_BYTES, &mut self.run);
        self.check_dataset()?;
        self.cursor = Some(*cursor);
        Ok(found)
    }

    /// Fails where the other side has ended the stream, or where the data set is no longer the one of this stream: a
    /// follower has discarded it, has found that it diverged, or has adopted a history with a newer epoch.
    ///
    /// To be called after each read of the log or the store, and before the data are sent. They are then of this
    /// stream's history, and no entry of a newer epoch is sent under the epoch of an older one.
    pub(super) fn check_dataset(&self) -> Result<(), StreamEnd> {
        if let Some(end) = self.link.end() {
            Err(end.clone())
        } else if self.led && !self.node.leads() && self.ends_with_leadership() {
            Err(StreamEnd::NotLeading)
        } else if self.node.dataset_generation() == self.generation {
            Ok(())
        } else {
            Err(StreamEnd::OtherData)
        }
    }

    /// Whether the stream ends where this node does not lead any more. The order to lead is given before that, and its
    /// stream carries it then.
    fn ends_with_leadership(&self) -> bool {
        !self.link.is_observer() && self.link.order().is_none()
    }

    /// Makes a heartbeat with the digest at the cursor. Returns whether there is one.
    fn beat(&mut self, cursor: Cursor, out: &mut Vec<u8>) -> Result<bool, StreamEnd> {
        let mut digest_index = cursor.next - 1;
        let digest = match self.log.digest_at(digest_index) {
            Some(digest) => digest,
            // An observer may be at an index whose digest the log does not have. It gets the newest one that it has.
            None if self.link.is_observer() => {
                let kept = self.log.kept_head();
                digest_index = kept.index;
                kept.digest
            }
            None => return Ok(false),
        };
        self.round += 1;
        let last_index = self.log.last_index();
        let beat = Message::Heartbeat {
            epoch: self.epoch,
            round: self.round,
            last_index,
            committed_index: self.log.committed_index(),
            durable_index: 0,
            time_ms: self.node.engine().clock().now(),
            digest_index,
            digest: digest.to_u128(),
        };
        self.check_dataset()?;
        encode(&beat, out)?;
        Ok(true)
    }

    /// Makes a batch of the entries whose frames are in `run`. `cursor` is the position after them.
    fn entries(
        &mut self,
        count: u32,
        digest: Digest,
        cursor: Cursor,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        let mut batch = BatchEncoder::new(out, StreamOpcode::Entries);
        if !batch.push_run(&self.run, count) {
            return Err(StreamEnd::TooLong);
        }
        batch.finish(|count| self.group_fields(count, digest, cursor));
        self.link.sent(cursor.next - 1);
        self.is_to_gather = count < FEW_ENTRIES;
        Ok(())
    }

    /// The fields of a group of `count` records that ends before `cursor`, with the digest there.
    fn group_fields(&self, count: u32, digest: Digest, cursor: Cursor) -> Fields {
        Fields::Entries {
            epoch: self.epoch,
            first_index: cursor.next - u64::from(count),
            count,
            committed_index: self.log.committed_index(),
            time_ms: self.node.engine().clock().now(),
            digest: digest.to_u128(),
        }
    }

    /// Judges whether the follower has acknowledged the last index of the log.
    fn last_ack(&self, index: u64, until: Instant, now: Instant) -> Result<Sending, StreamEnd> {
        match self.link.progress(|follower| follower.applied_index()) {
            Ok(Some(applied)) if applied < index && now < until => {
                Ok(Sending::AwaitAck { index, until })
            }
            Ok(Some(applied)) if applied < index => Err(StreamEnd::NoLastAck(index)),
            Ok(_) => Ok(Sending::End),
            Err(_) => Err(StreamEnd::NoLastAck(index)),
        }
    }
}

/// Makes a batch of one large entry, which is sent without a copy.
pub(super) fn large(fields: Fields, entry: Entry, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
    let head = Head::new(fields, entry.frame()).map_err(|_| StreamEnd::TooLong)?;
    head.encode(out);
    Ok(Sending::Frames { large: Some(entry) })
}

/// Appends a message's frame to `out`.
pub(super) fn encode(message: &Message<'_>, out: &mut Vec<u8>) -> Result<(), StreamEnd> {
    message.encode(out).map_err(|_| StreamEnd::TooLong)
}
