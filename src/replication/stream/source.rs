//! The data that a node sends on a stream: reads of its log, and checks that they are of one data set.

use std::time::{Duration, Instant};

use super::link::StreamEnd;
use crate::history::History;
use crate::log::{Cursor, Found, Head, Log};
use crate::node::Node;
use crate::wire::replication::Message;

/// Most bytes of frames in a batch, except for a single larger frame.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// After a batch of fewer entries the sender pauses, so that more of them gather: a write to the socket for every few
/// entries, and a thread woken on the other side, costs the clients more than it gains a follower.
const FEW_ENTRIES: u32 = 512;

/// The data set that a stream sends, and the position in its log.
pub(super) struct Source<'a> {
    pub(super) node: &'a Node,
    pub(super) log: &'a Log,
    /// [`Node::dataset_generation`] of the data set that is sent.
    generation: u64,
    /// Epoch of the stream.
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
}

/// The data set of an accepted stream.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    pub(super) node: &'a Node,
    pub(super) log: &'a Log,
    /// [`Node::dataset_generation`] before the request was judged.
    pub(super) generation: u64,
    pub(super) history: History,
    /// The position in the log; `None` where the stream begins with a snapshot.
    pub(super) cursor: Option<Cursor>,
    /// Interval of heartbeats.
    pub(super) interval: Duration,
}

impl<'a> Source<'a> {
    pub(super) fn new(offer: Offer<'a>, now: Instant) -> Source<'a> {
        Source {
            node: offer.node,
            log: offer.log,
            generation: offer.generation,
            epoch: offer.history.last().map_or(0, |start| start.epoch),
            history: offer.history,
            cursor: offer.cursor,
            interval: offer.interval,
            beat_at: now,
            round: 0,
            is_to_gather: false,
            run: Vec::new(),
        }
    }

    /// Reads the next records of the log into `run`. They are of this stream's history.
    pub(super) fn read(&mut self, cursor: &mut Cursor) -> Result<Found, StreamEnd> {
        let found = self.log.try_read(cursor, BATCH_BYTES, &mut self.run);
        self.was_read(*cursor, found)
    }

    /// The same for records that this node acknowledges.
    pub(super) fn read_acknowledged(&mut self, cursor: &mut Cursor) -> Result<Found, StreamEnd> {
        let (log, run) = (self.log, &mut self.run);
        let found = log.try_read_acknowledged(cursor, BATCH_BYTES, run);
        self.was_read(*cursor, found)
    }

    fn was_read(&mut self, cursor: Cursor, found: Found) -> Result<Found, StreamEnd> {
        self.check_dataset()?;
        self.cursor = Some(cursor);
        Ok(found)
    }

    /// Fails where the data set is no longer the one of this stream: a follower has discarded it, has found that it
    /// diverged, or has adopted a history with a newer epoch.
    ///
    /// To be called after each read of the log or the store, and before the data are sent. They are then of this
    /// stream's history, and no entry of a newer epoch is sent under the epoch of an older one.
    pub(super) fn check_dataset(&self) -> Result<(), StreamEnd> {
        if self.node.dataset_generation() == self.generation {
            Ok(())
        } else {
            Err(StreamEnd::OtherData)
        }
    }

    /// A batch of `count` records is sent.
    pub(super) const fn sent(&mut self, count: u32) {
        self.is_to_gather = count < FEW_ENTRIES;
    }

    /// Whether to pause, since the last batch was small. True once for each.
    pub(super) const fn takes_pause(&mut self) -> bool {
        std::mem::replace(&mut self.is_to_gather, false)
    }

    /// When the next heartbeat is due.
    pub(super) const fn beat_at(&self) -> Instant {
        self.beat_at
    }

    /// The next heartbeat is due at this time.
    pub(super) const fn beat_from(&mut self, now: Instant) {
        self.beat_at = now;
    }

    /// Whether a heartbeat has been due for an interval.
    pub(super) fn is_beat_late(&self, now: Instant) -> bool {
        self.beat_at + self.interval <= now
    }

    /// Whether a heartbeat is due; the next one is then due an interval later.
    pub(super) fn is_beat_due(&mut self, now: Instant) -> bool {
        let is_due = self.beat_at <= now;
        if is_due {
            self.beat_at = now + self.interval;
        }
        is_due
    }

    /// Whether the digest at the cursor is known, or nothing behind it is committed: the data set is there then.
    pub(super) fn is_at_digest(&self, cursor: Cursor) -> bool {
        let index = cursor.next - 1;
        self.log.digest_at(index).is_some() || self.log.committed_index() <= index
    }

    /// A heartbeat with this last index, and the digest at the cursor. Where the log does not know that digest, the
    /// data set's or the newest one, or no heartbeat, if `is_exact`.
    pub(super) fn beat(
        &mut self,
        cursor: Cursor,
        last_index: u64,
        is_exact: bool,
    ) -> Option<Message<'static>> {
        let index = cursor.next - 1;
        let at = match self.log.digest_at(index) {
            Some(digest) => Head { index, digest },
            None if is_exact => return None,
            None => Some(self.log.head())
                .filter(|head| head.index == index)
                .unwrap_or_else(|| self.log.kept_head()),
        };
        self.round += 1;
        Some(Message::Heartbeat {
            epoch: self.epoch,
            round: self.round,
            last_index,
            committed_index: self.log.committed_index(),
            durable_index: self.log.durable_index(),
            time_ms: self.node.engine().clock().now(),
            digest_index: at.index,
            digest: at.digest.to_u128(),
        })
    }

    /// Judges a write that the other side does not take, of a stream whose other side may pause: it goes on for as long
    /// as this node holds the next record.
    pub(super) fn check_pause(&self) -> Result<(), StreamEnd> {
        self.check_dataset()?;
        if self.log.has_ended() {
            return Err(StreamEnd::NodeStops);
        }
        match self.cursor {
            Some(cursor) if !self.log.holds(&cursor) => Err(StreamEnd::FellBehind),
            Some(_) | None => Ok(()),
        }
    }
}
