//! The leader side: a snapshot, partition by partition, with the entries that the log gains meanwhile.

use std::time::{Duration, Instant};

use super::link::StreamEnd;
use super::sending::{BATCH_BYTES, Sender, Sending, encode, large};
use crate::engine::PartitionCopy;
use crate::log::Found;
use crate::replication::core::rules::SnapshotRule;
use crate::wire::replication::{BatchEncoder, Epochs, Fields, Message, StreamOpcode};
use crate::wire::request::{self, Limits, Parsed::Whole};

/// Bytes of frames after which a chunk is sent.
const CHUNK_BYTES: usize = 64 << 10;

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
    pub(super) fn new(now: Instant) -> SnapshotOut {
        SnapshotOut {
            started: now,
            rule: SnapshotRule::default(),
            chunks: 0,
            partitions: 0,
            copied: PartitionCopy::default(),
            sent: (0, 0),
            stage: Stage::Begin,
        }
    }

    /// Decides what is to be done next for the snapshot; `None` once all of it is sent.
    pub(super) fn next(
        &mut self,
        sender: &mut Sender<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        loop {
            let sending = match self.stage {
                Stage::Begin => Some(self.begin(sender, out)?),
                Stage::Copied => self.send_copied(sender, out)?,
                Stage::Gained(up_to) => self.send_gained(sender, up_to, now, out)?,
                Stage::Over => return Ok(None),
            };
            if sending.is_some() {
                return Ok(sending);
            }
        }
    }

    fn begin(&mut self, sender: &mut Sender<'_>, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        let (engine, log) = (sender.node.engine(), sender.log);
        // The data set has all of that already, and the backlog knows the digest there.
        let index = engine.head().index.min(log.kept_head().index);
        let cursor = log.cursor_after(index).ok_or(StreamEnd::FellBehind)?;
        sender.cursor = Some(cursor);
        let begin = Message::SnapshotBegin {
            epoch: sender.epoch,
            keys: u64::try_from(engine.len()).unwrap_or(u64::MAX),
            bytes: engine.bytes(),
            history: Epochs::of(&sender.history).ok_or(StreamEnd::TooLong)?,
        };
        encode(&begin, out)?;
        self.stage = Stage::Gained(index);
        Ok(Sending::Frames { large: None })
    }

    /// Sends a chunk of what the log has gained and the snapshot needs. Where all of that up to `up_to` is sent, copies
    /// the next partition, or ends the snapshot once it is exact.
    fn send_gained(
        &mut self,
        sender: &mut Sender<'_>,
        up_to: u64,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let engine = sender.node.engine();
        let mut cursor = sender.cursor.ok_or(StreamEnd::FellBehind)?;
        if sender.log.has_ended() {
            return Err(StreamEnd::NodeStops);
        }
        let is_copied = self.partitions == engine.partitions();
        if is_copied && cursor.next > self.rule.exact_from() {
            return self.end(sender, cursor.next - 1, now, out).map(Some);
        }
        if !is_copied && cursor.next > up_to {
            if !SnapshotRule::may_copy(cursor.next - 1, engine.head().index) {
                return Ok(Some(Sending::Gather(APPLY_TURN)));
            }
            let index = engine.copy_partition(self.partitions, &mut self.copied);
            self.rule.partition_copied(index);
            self.partitions += 1;
            self.sent = (0, 0);
            sender.check_dataset()?;
            self.stage = Stage::Copied;
            return Ok(None);
        }
        let first_index = cursor.next;
        match sender.read(&mut cursor)? {
            Found::Small(..) => self.send_run(sender, first_index, out),
            Found::Large(entry, _) => {
                let partition = engine.partition_of(entry.key());
                if self.rule.sends(partition, first_index) {
                    return large(self.next_chunk(sender.epoch), entry, out).map(Some);
                }
                Ok(None)
            }
            Found::Nothing => Ok(Some(Sending::Wait {
                cursor,
                until: now + sender.interval,
            })),
            Found::Gone => Err(StreamEnd::FellBehind),
            Found::Ended => Err(StreamEnd::NodeStops),
        }
    }

    /// Sends what the snapshot needs of the entries whose frames are in the sender's `run`.
    fn send_run(
        &mut self,
        sender: &Sender<'_>,
        first_index: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let engine = sender.node.engine();
        let (mut rest, mut index) = (&sender.run[..], first_index);
        let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
        while let Ok(Whole(frame)) = request::parse(rest, &ANY_VALUE) {
            rest = &rest[frame.bytes().len()..];
            let partition = engine.partition_of(frame.request().key());
            // The history of a snapshot has the epochs.
            let is_sent = frame.opcode().spec().writes && self.rule.sends(partition, index);
            if is_sent && !batch.push(frame.bytes()) {
                return Err(StreamEnd::TooLong);
            }
            index += 1;
        }
        if batch.finish(|count| chunk_fields(sender.epoch, self.chunks, count)) == 0 {
            return Ok(None);
        }
        self.chunks += 1;
        Ok(Some(Sending::Frames { large: None }))
    }

    /// Sends a chunk of the partition that was copied last; `None` where all of it is sent.
    fn send_copied(
        &mut self,
        sender: &Sender<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Sending>, StreamEnd> {
        let rest = &self.copied.short()[self.sent.0..];
        if !rest.is_empty() {
            let (mut len, mut count) = (0, 0);
            for frame in request::frames(rest) {
                len += frame.bytes().len();
                count += 1;
                if len >= CHUNK_BYTES {
                    break;
                }
            }
            let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
            if !batch.push_run(&rest[..len], count) {
                return Err(StreamEnd::TooLong);
            }
            batch.finish(|count| chunk_fields(sender.epoch, self.chunks, count));
            self.sent.0 += len;
            self.chunks += 1;
            return Ok(Some(Sending::Frames { large: None }));
        }
        let rest = &self.copied.long()[self.sent.1..];
        let Some(first) = rest.first() else {
            self.stage = Stage::Gained(sender.log.kept_head().index);
            return Ok(None);
        };
        if first.frame().len() > BATCH_BYTES {
            let entry = first.clone();
            self.sent.1 += 1;
            return large(self.next_chunk(sender.epoch), entry, out).map(Some);
        }
        let mut batch = BatchEncoder::new(out, StreamOpcode::SnapshotChunk);
        let count = rest
            .iter()
            .take_while(|entry| batch.value_len() < CHUNK_BYTES && batch.push(entry.frame()))
            .count();
        batch.finish(|count| chunk_fields(sender.epoch, self.chunks, count));
        self.sent.1 += count;
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
        sender: &mut Sender<'_>,
        index: u64,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Sending, StreamEnd> {
        let digest = sender.log.digest_at(index).ok_or(StreamEnd::FellBehind)?;
        sender.check_dataset()?;
        let end = Message::SnapshotEnd {
            epoch: sender.epoch,
            index,
            digest: digest.to_u128(),
            chunks: self.chunks,
        };
        encode(&end, out)?;
        sender
            .link
            .progress(|follower| follower.snapshot_ends_at(index))?;
        sender.link.sent(index);
        let took = now.saturating_duration_since(self.started).as_millis();
        let name = sender.link.name();
        sender.notes.push(format!(
            "{name} was sent a full copy up to index {index} in {took} ms"
        ));
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
