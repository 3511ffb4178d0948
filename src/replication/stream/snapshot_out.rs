//! The leader side: a snapshot, partition by partition, with the entries that the log gains meanwhile.

use std::time::{Duration, Instant};

use super::link::StreamEnd;
use super::sending::{Sending, encode, large};
use super::source::{BATCH_BYTES, Source};
use crate::engine::PartitionCopy;
use crate::log::Found;
use crate::replication::core::rules::SnapshotRule;
use crate::wire::batch::effects;
use crate::wire::replication::{BatchEncoder, Epochs, Fields, Message, StreamOpcode};
use crate::wire::request::{self, Limits, Parsed::Whole};

/// Bytes of frames after which a chunk is sent.
const CHUNK_BYTES: usize = 64 << 10;

/// Steps of a snapshot that send nothing before others have a turn: a heartbeat, and the end of the connection.
const QUIET_MAX: usize = 32;

/// Time between two looks whether this node has applied what it has sent.
const APPLY_TURN: Duration = Duration::from_millis(1);

/// For reading frames that this node has accepted.
const ANY_VALUE: Limits = Limits {
    value_len_max: u32::MAX,
};

/// A snapshot that is being sent.
pub(super) struct SnapshotOut {
    started: Instant,
    rule: SnapshotRule,
    /// Chunks so far.
    chunks: u64,
    /// Partitions that are copied.
    partitions: usize,
    /// The last of them.
    copied: PartitionCopy,
    /// Bytes of its short entries, and number of its long ones, that are sent.
    sent: (usize, usize),
    stage: Stage,
    end: Option<SnapshotEnd>,
    /// Prefix of the keys that are sent.
    prefix: Vec<u8>,
}

/// The end of a snapshot.
pub(super) struct SnapshotEnd {
    /// Index at which it is exact.
    pub(super) index: u64,
    /// Time since it began.
    pub(super) took: Duration,
}

/// Next part of a snapshot to send.
enum Stage {
    Begin,
    /// The rest of the partition that was copied last.
    Copied,
    /// The entries that the log had gained up to this index when the last partition was sent; and then another
    /// partition, or the end. So writes without end do not keep the snapshot from going on.
    Gained(u64),
    /// Nothing: the snapshot is sent.
    Over,
}

impl SnapshotOut {
    /// A snapshot of the keys that begin with `prefix`.
    pub(super) fn new(prefix: &[u8], now: Instant) -> SnapshotOut {
        SnapshotOut {
            started: now,
            rule: SnapshotRule::default(),
            chunks: 0,
            partitions: 0,
            copied: PartitionCopy::default(),
            sent: (0, 0),
            stage: Stage::Begin,
            end: None,
            prefix: prefix.to_vec(),
        }
    }

    /// Takes the end of the snapshot, once that is made.
    pub(super) const fn take_end(&mut self) -> Option<SnapshotEnd> {
        self.end.take()
    }

    /// Whether this key is sent.
    fn takes(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }

    /// Decides what is to be done next for the snapshot; `None` once all of it is sent.
    pub(super) fn next(
        &mut self,
        source: &mut Source<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        for _ in 0..QUIET_MAX {
            let sending = match self.stage {
                Stage::Begin => Some(self.begin(source, out)?),
                Stage::Copied => self.send_copied(source, out)?,
                Stage::Gained(up_to) => self.send_gained(source, up_to, now, out)?,
                Stage::Over => return Ok(None),
            };
            if sending.is_some() {
                return Ok(sending);
            }
        }
        Ok(Some(Sending::Gather(Duration::ZERO)))
    }

    fn begin(&mut self, source: &mut Source<'_>, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        let (engine, log) = (source.node.engine(), source.log);
        // The data set has all of that already, and the backlog knows the digest there.
        let index = engine.head().index.min(log.kept_head().index);
        let cursor = log.cursor_after(index).ok_or(StreamEnd::FellBehind)?;
        source.cursor = Some(cursor);
        let begin = Message::SnapshotBegin {
            epoch: source.epoch,
            keys: u64::try_from(engine.len()).unwrap_or(u64::MAX),
            bytes: engine.bytes(),
            history: Epochs::of(&source.history).ok_or(StreamEnd::TooLong)?,
        };
        encode(&begin, out)?;
        self.stage = Stage::Gained(index);
        Ok(Sending::Frames { large: None })
    }

    /// Sends a chunk of what the log has gained and the snapshot needs. Where all of that up to `up_to` is sent, copies
    /// the next partition, or ends the snapshot once it is exact.
    fn send_gained(
        &mut self,
        source: &mut Source<'_>,
        up_to: u64,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let engine = source.node.engine();
        let mut cursor = source.cursor.ok_or(StreamEnd::FellBehind)?;
        if source.log.has_ended() {
            return Err(StreamEnd::NodeStops);
        }
        let is_copied = self.partitions == engine.partitions();
        if is_copied && cursor.next > self.rule.exact_from() {
            // A follower's log may be further than its data set.
            if cursor.next - 1 > source.log.committed_index() {
                return Ok(Some(Sending::Gather(APPLY_TURN)));
            }
            return self.end(source, cursor.next - 1, now, out).map(Some);
        }
        if !is_copied && cursor.next > up_to {
            if !SnapshotRule::may_copy(cursor.next - 1, engine.head().index) {
                return Ok(Some(Sending::Gather(APPLY_TURN)));
            }
            let index = engine.copy_partition(self.partitions, &mut self.copied);
            self.rule.partition_copied(index);
            self.partitions += 1;
            self.sent = (0, 0);
            source.check_dataset()?;
            self.stage = Stage::Copied;
            return Ok(None);
        }
        let first_index = cursor.next;
        match source.read(&mut cursor)? {
            Found::Small(..) => self.send_run(source, first_index, out),
            Found::Large(entry, _) => {
                let partition = engine.partition_of(entry.key());
                if self.rule.sends(partition, first_index) && self.takes(entry.key()) {
                    return large(self.next_chunk(source.epoch), entry, out).map(Some);
                }
                Ok(None)
            }
            Found::Nothing => Ok(Some(Sending::Wait {
                cursor,
                until: now + source.interval,
            })),
            Found::Gone => Err(StreamEnd::FellBehind),
            Found::Ended => Err(StreamEnd::NodeStops),
        }
    }

    /// Sends what the snapshot needs of the entries whose frames are in the source's `run`.
    fn send_run(
        &mut self,
        source: &Source<'_>,
        first_index: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let engine = source.node.engine();
        let (mut rest, mut index) = (&source.run[..], first_index);
        let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
        while let Ok(Whole(frame)) = request::parse(rest, &ANY_VALUE) {
            rest = &rest[frame.bytes().len()..];
            // The history of a snapshot has the epochs. The effects of a batch may be sent in parts: nobody reads them
            // before the snapshot's end, which is behind all of them.
            for effect in effects(&frame) {
                let key = effect.key();
                let partition = engine.partition_of(key);
                let is_sent = self.rule.sends(partition, index) && self.takes(key);
                if is_sent && !batch.push(effect.bytes()) {
                    return Err(StreamEnd::TooLong);
                }
            }
            index += 1;
        }
        if !rest.is_empty() {
            return Err(StreamEnd::TooLong);
        }
        if batch.finish(|count| chunk_fields(source.epoch, self.chunks, count)) == 0 {
            return Ok(None);
        }
        self.chunks += 1;
        Ok(Some(Sending::Frames { large: None }))
    }

    /// Sends a chunk of the partition that was copied last; `None` where all of it is sent.
    fn send_copied(
        &mut self,
        source: &Source<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
        // Frames that are sent, and not in the batch yet: they lie one behind the other.
        let rest = &self.copied.short()[self.sent.0..];
        let (mut from, mut at, mut count) = (0, 0, 0);
        for frame in request::frames(rest) {
            if batch.value_len() + (at - from) >= CHUNK_BYTES {
                break;
            }
            let end = at + frame.bytes().len();
            if self.takes(frame.key()) {
                count += 1;
            } else {
                if count > 0 && !batch.push_run(&rest[from..at], count) {
                    return Err(StreamEnd::TooLong);
                }
                (from, count) = (end, 0);
            }
            at = end;
        }
        if count > 0 && !batch.push_run(&rest[from..at], count) {
            return Err(StreamEnd::TooLong);
        }
        self.sent.0 += at;
        if batch.count() > 0 {
            batch.finish(|count| chunk_fields(source.epoch, self.chunks, count));
            self.chunks += 1;
            return Ok(Some(Sending::Frames { large: None }));
        }
        drop(batch);
        self.send_long(source, out)
    }

    /// Sends a chunk of the long entries of that partition; `None` where all of them are sent.
    fn send_long(
        &mut self,
        source: &Source<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
        for entry in &self.copied.long()[self.sent.1..] {
            let is_taken = self.takes(entry.key());
            if is_taken && entry.frame().len() > BATCH_BYTES && batch.count() == 0 {
                drop(batch);
                let entry = entry.clone();
                self.sent.1 += 1;
                return large(self.next_chunk(source.epoch), entry, out).map(Some);
            }
            let has_room = batch.value_len() < CHUNK_BYTES;
            if is_taken && !(has_room && batch.push(entry.frame())) {
                break;
            }
            self.sent.1 += 1;
        }
        if batch.finish(|count| chunk_fields(source.epoch, self.chunks, count)) == 0 {
            self.stage = Stage::Gained(source.log.kept_head().index);
            return Ok(None);
        }
        self.chunks += 1;
        Ok(Some(Sending::Frames { large: None }))
    }

    /// The fields of the next chunk, of one entry.
    const fn next_chunk(&mut self, epoch: u64) -> Fields {
        let sequence = self.chunks;
        self.chunks += 1;
        chunk_fields(epoch, sequence, 1)
    }

    /// Ends the snapshot, which is exact at `index`.
    fn end(
        &mut self,
        source: &mut Source<'_>,
        index: u64,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Sending, StreamEnd> {
        let digest = source.log.digest_at(index).ok_or(StreamEnd::FellBehind)?;
        source.check_dataset()?;
        let end = Message::SnapshotEnd {
            epoch: source.epoch,
            index,
            digest: digest.to_u128(),
            chunks: self.chunks,
        };
        encode(&end, out)?;
        let took = now.saturating_duration_since(self.started);
        self.end = Some(SnapshotEnd { index, took });
        self.stage = Stage::Over;
        Ok(Sending::Frames { large: None })
    }
}

/// The fields of a chunk of `count` frames.
const fn chunk_fields(epoch: u64, sequence: u64, count: u32) -> Fields {
    Fields::SnapshotChunk {
        epoch,
        sequence,
        count,
    }
}
