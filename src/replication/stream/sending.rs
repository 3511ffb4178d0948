//! The leader side: what is to be sent next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::accept::Accepted;
use super::acks_in::AckReader;
use super::link::{Link, StreamEnd};
use super::snapshot_out::{SnapshotEnd, SnapshotOut};
use super::source::Source;
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::log::{Cursor, Found, Log};
use crate::replication::core::liveness::SILENT_HEARTBEATS;
use crate::wire::replication::{BatchEncoder, Fields, Head, Message, Start, StreamOpcode};

/// The pause after a small batch.
pub(super) const GATHER: Duration = Duration::from_micros(500);

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
    source: Source<'a>,
    link: Arc<Link<'a>>,
    /// Whether this node led when the stream began.
    led: bool,
    part: Part,
    /// Lines for the log.
    notes: Vec<String>,
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

impl<'a> LeaderStream<'a> {
    /// Begins a stream that was accepted.
    pub(crate) fn new(accepted: Accepted<'a>, now: Instant) -> LeaderStream<'a> {
        let is_snapshot = accepted.start == Start::Snapshot;
        accepted.offer.node.count_stream(is_snapshot);
        let source = Source::new(accepted.offer, now);
        LeaderStream {
            link: Arc::new(accepted.link),
            led: accepted.led,
            part: if source.cursor.is_some() {
                Part::Log
            } else {
                Part::Snapshot(Box::new(SnapshotOut::new(&[], now)))
            },
            source,
            notes: Vec::new(),
        }
    }

    /// The half that takes acknowledgements. To be made once.
    pub(crate) fn ack_reader(&self, now: Instant) -> AckReader<'a> {
        AckReader::new(Arc::clone(&self.link), self.silence_max(), now)
    }

    /// The other side of the stream.
    pub(crate) const fn link(&self) -> &Arc<Link<'a>> {
        &self.link
    }

    /// The log that is sent.
    pub(crate) const fn log(&self) -> &'a Log {
        self.source.log
    }

    /// Whether [`next`](Self::next) has something to decide, though the log has nothing new: the stream is over, or
    /// carries an order.
    pub(crate) fn has_news(&self) -> bool {
        self.link.order().is_some() || self.check().is_err()
    }

    /// Whether a snapshot is being sent.
    pub(crate) const fn is_in_snapshot(&self) -> bool {
        matches!(self.part, Part::Snapshot(_))
    }

    /// Takes the lines for the log that have come up since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
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
        self.check()?;
        match &mut self.part {
            Part::Snapshot(snapshot) => {
                let sending = snapshot.next(&mut self.source, now, out)?;
                if let Some(end) = snapshot.take_end() {
                    self.snapshot_ends(end)?;
                }
                if let Some(sending) = sending {
                    self.check()?;
                    return Ok(sending);
                }
                self.source.beat_from(now);
                self.part = Part::Log;
            }
            Part::Log | Part::Ordered { .. } => {}
            Part::LastAck { index, deadline } => {
                let (index, deadline) = (*index, *deadline);
                return self.last_ack(index, deadline, now);
            }
        }
        self.next_of_log(now, out)
    }

    /// The end of the snapshot is made, and not sent yet.
    fn snapshot_ends(&mut self, end: SnapshotEnd) -> Result<(), StreamEnd> {
        let SnapshotEnd { index, took } = end;
        self.link
            .progress(|follower| follower.snapshot_ends_at(index))?;
        self.link.sent(index);
        let (name, took) = (self.link.name(), took.as_millis());
        self.notes.push(format!(
            "{name} was sent a full copy up to index {index} in {took} ms"
        ));
        Ok(())
    }

    /// Sends a follower the order to lead, once that is given, and then waits until the follower ends the stream.
    fn next_of_order(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        if let Part::Ordered { deadline } = self.part {
            return match self.link.end() {
                Some(_) => Ok(Some(Sending::End)),
                None if now < deadline => Ok(Some(Sending::Gather(ORDERED_TURN))),
                None => Err(StreamEnd::Silent),
            };
        }
        let Some(order) = self.link.order() else {
            return Ok(None);
        };
        let lead = Message::Lead {
            epoch: order.epoch,
            last_index: order.last_index,
            digest: order.digest,
        };
        // The time of this node comes before it, so that no key that has expired here is there again.
        if let Some(cursor) = self.source.cursor
            && let Some(beat) = self.source.beat(cursor, order.last_index, false)
        {
            encode(&beat, out)?;
        }
        encode(&lead, out)?;
        let deadline = now + self.silence_max();
        self.part = Part::Ordered { deadline };
        Ok(Some(Sending::Frames { large: None }))
    }

    fn next_of_log(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        let mut cursor = self.source.cursor.ok_or(StreamEnd::FellBehind)?;
        if self.source.takes_pause() {
            return Ok(Sending::Gather(GATHER));
        }
        if self.source.is_beat_due(now) && self.beat(cursor, out)? {
            return Ok(Sending::Frames { large: None });
        }
        // Only the stream of a follower that was silent is replaced.
        let has_place = self.link.progress(|_| ());
        has_place.map_err(|_| StreamEnd::Silent)?;
        let found = self.source.read_acknowledged(&mut cursor)?;
        self.check()?;
        match found {
            Found::Small(count, digest) => {
                self.entries(count, digest, cursor, out)?;
                Ok(Sending::Frames { large: None })
            }
            Found::Large(entry, digest) => {
                let fields = self.group_fields(1, digest, cursor);
                self.link.sent(cursor.next - 1);
                large(fields, entry, out)
            }
            Found::Nothing => Ok(Sending::Wait {
                cursor,
                until: self.source.beat_at(),
            }),
            Found::Gone => Err(StreamEnd::FellBehind),
            Found::Ended => {
                let (index, deadline) = (cursor.next - 1, now + LAST_ACK_TIMEOUT);
                self.part = Part::LastAck { index, deadline };
                if self.beat(cursor, out)? {
                    return Ok(Sending::Frames { large: None });
                }
                self.last_ack(index, deadline, now)
            }
        }
    }

    /// Longest time that a write may wait before [`check_stall`](Self::check_stall) is asked.
    pub(crate) fn stall_turn(&self) -> Duration {
        stall_turn(self.source.interval)
    }

    /// Judges a write of which the follower has taken nothing since `since`. The stream ends where it takes nothing for
    /// three heartbeat intervals.
    ///
    /// # Errors
    ///
    /// Why the stream has to end.
    pub(crate) fn check_stall(&self, since: Instant, now: Instant) -> Result<(), StreamEnd> {
        let stalled = now.saturating_duration_since(since);
        if stalled < self.silence_max() {
            Ok(())
        } else {
            Err(StreamEnd::TookNothing)
        }
    }

    /// Silence after which a follower counts as gone.
    fn silence_max(&self) -> Duration {
        self.source.interval * SILENT_HEARTBEATS
    }

    /// Fails where the other side has ended the stream, where this node no longer leads, or where its data set is no
    /// longer the one of this stream ([`Source::check_dataset`]).
    fn check(&self) -> Result<(), StreamEnd> {
        if let Some(end) = self.link.end() {
            Err(end.clone())
        } else if self.led && !self.source.node.leads() && self.ends_with_leadership() {
            Err(StreamEnd::NotLeading)
        } else {
            self.source.check_dataset()
        }
    }

    /// Whether the stream ends where this node does not lead any more. The order to lead is given before that, and its
    /// stream carries it then.
    fn ends_with_leadership(&self) -> bool {
        self.link.order().is_none()
    }

    /// Makes a heartbeat with the digest at the cursor. Returns whether there is one.
    fn beat(&mut self, cursor: Cursor, out: &mut Vec<u8>) -> Result<bool, StreamEnd> {
        let last_index = self.source.log.last_index();
        let Some(beat) = self.source.beat(cursor, last_index, true) else {
            return Ok(false);
        };
        self.check()?;
        encode(&beat, out)?;
        Ok(true)
    }

    /// Makes a batch of the entries that were read. `cursor` is the position after them.
    fn entries(
        &mut self,
        count: u32,
        digest: Digest,
        cursor: Cursor,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        let mut batch = BatchEncoder::new(out, StreamOpcode::Entries);
        if !batch.push_run(&self.source.run, count) {
            return Err(StreamEnd::TooLong);
        }
        batch.finish(|count| self.group_fields(count, digest, cursor));
        self.link.sent(cursor.next - 1);
        self.source.sent(count);
        Ok(())
    }

    /// The fields of a group of `count` records that ends before `cursor`, with the digest there.
    fn group_fields(&self, count: u32, digest: Digest, cursor: Cursor) -> Fields {
        Fields::Entries {
            epoch: self.source.epoch,
            first_index: cursor.next - u64::from(count),
            count,
            committed_index: self.source.log.committed_index(),
            time_ms: self.source.node.engine().clock().now(),
            digest: digest.to_u128(),
        }
    }

    /// Judges whether the follower has acknowledged the last index of the log.
    fn last_ack(&self, index: u64, until: Instant, now: Instant) -> Result<Sending, StreamEnd> {
        match self.link.progress(|follower| follower.applied_index()) {
            Ok(applied) if applied < index && now < until => Ok(Sending::AwaitAck { index, until }),
            Ok(applied) if applied < index => Err(StreamEnd::NoLastAck(index)),
            Ok(_) => Ok(Sending::End),
            Err(_) => Err(StreamEnd::NoLastAck(index)),
        }
    }
}

/// Longest time that a write may wait before its stall is judged, where heartbeats have this interval.
pub(super) fn stall_turn(interval: Duration) -> Duration {
    interval.min(STALL_TURN)
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
