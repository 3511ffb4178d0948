//! Sending a snapshot: the data set, partition by partition, with the entries that the log gains meanwhile.

use std::io;
use std::thread;
use std::time::Instant;

use log::info;

use super::sending::{BATCH_BYTES, Sender, fell_behind, stops, too_long};
use crate::engine::PartitionCopy;
use crate::engine::entry::Entry;
use crate::log::{Cursor, Found};
use crate::replication::core::rules::SnapshotRule;
use crate::wire::replication::{BatchEncoder, Epochs, Fields, Message};
use crate::wire::request::{self, Limits, Parsed::Whole};

/// Bytes of frames after which a chunk is sent.
const CHUNK_BYTES: usize = 64 << 10;

/// For reading frames that this node has accepted.
const ANY_VALUE: Limits = Limits {
    value_len_max: u32::MAX,
};

impl Sender<'_> {
    /// Sends a snapshot, and returns the position in the log after it.
    pub(in crate::replication) fn send_snapshot(&mut self) -> io::Result<Cursor> {
        let (node, log) = (self.node, self.log);
        let started = Instant::now();
        let mut cursor = log.cursor_after(log.head().index).ok_or_else(fell_behind)?;
        self.cursor = Some(cursor);
        let begin = Message::SnapshotBegin {
            epoch: self.epoch,
            keys: u64::try_from(node.engine().len()).unwrap_or(u64::MAX),
            bytes: node.engine().bytes(),
            history: Epochs::of(self.history).ok_or_else(too_long)?,
        };
        begin.encode(&mut self.out).map_err(io::Error::other)?;
        self.write()?;
        let mut rule = SnapshotRule::default();
        let mut chunks = 0;
        let mut copied = PartitionCopy::default();
        for partition in 0..node.engine().partitions() {
            rule.partition_copied(node.engine().copy_partition(partition, &mut copied));
            self.check_dataset()?;
            self.send_copied(&copied, &mut chunks)?;
            while self.send_gained(&mut cursor, &rule, &mut chunks, Instant::now())? {}
        }
        while cursor.next <= rule.exact_from() {
            let deadline = Instant::now() + self.interval;
            self.send_gained(&mut cursor, &rule, &mut chunks, deadline)?;
        }
        let index = cursor.next - 1;
        let digest = log.digest_at(index).ok_or_else(fell_behind)?;
        self.check_dataset()?;
        let end = Message::SnapshotEnd {
            epoch: self.epoch,
            index,
            digest: digest.to_u128(),
            chunks,
        };
        end.encode(&mut self.out).map_err(io::Error::other)?;
        // Before the follower can acknowledge it.
        if let Some(registration) = self.registration {
            registration.progress(|follower| follower.snapshot_ends_at(index));
        }
        self.write()?;
        info!(
            "{} was sent a full copy up to index {index} in {} ms",
            self.name,
            started.elapsed().as_millis()
        );
        Ok(cursor)
    }

    /// Sends the entries that the log has gained and the snapshot needs. Returns whether the log had any.
    fn send_gained(
        &mut self,
        cursor: &mut Cursor,
        rule: &SnapshotRule,
        chunks: &mut u64,
        deadline: Instant,
    ) -> io::Result<bool> {
        let (log, engine) = (self.log, self.node.engine());
        let mut index = cursor.next;
        let end = self.end;
        let found = log.read(cursor, BATCH_BYTES, &mut self.run, deadline, || {
            end.get().is_some()
        });
        self.check_dataset()?;
        self.cursor = Some(*cursor);
        match found {
            Found::Small(_) => {
                let run = std::mem::take(&mut self.run);
                let mut rest = &run[..];
                let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
                while let Ok(Whole(frame)) = request::parse(rest, &ANY_VALUE) {
                    rest = &rest[frame.bytes().len()..];
                    let partition = engine.partition_of(frame.request().key());
                    if rule.sends(partition, index) && !batch.push(frame.bytes()) {
                        return Err(too_long());
                    }
                    index += 1;
                }
                *chunks += u64::from(batch.finish() > 0);
                self.run = run;
                self.write()?;
                Ok(true)
            }
            Found::Large(entry) => {
                if rule.sends(engine.partition_of(entry.key()), index) {
                    self.send_large_chunk(&entry, chunks)?;
                }
                Ok(true)
            }
            Found::Nothing => Ok(false),
            Found::Gone => Err(fell_behind()),
            Found::Ended => Err(stops()),
        }
    }

    /// Sends the copy of a partition in chunks.
    fn send_copied(&mut self, copied: &PartitionCopy, chunks: &mut u64) -> io::Result<()> {
        let mut rest = copied.short();
        while !rest.is_empty() {
            let (mut len, mut count) = (0, 0);
            for frame in request::frames(rest) {
                len += frame.bytes().len();
                count += 1;
                if len >= CHUNK_BYTES {
                    break;
                }
            }
            let (chunk, after) = rest.split_at(len);
            let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
            if !batch.push_run(chunk, count) {
                return Err(too_long());
            }
            batch.finish();
            rest = after;
            *chunks += 1;
            self.write()?;
            thread::yield_now();
        }
        let mut rest = copied.long();
        while let Some(first) = rest.first() {
            if first.frame().len() > BATCH_BYTES {
                self.send_large_chunk(first, chunks)?;
                rest = &rest[1..];
                continue;
            }
            let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
            let count = rest
                .iter()
                .take_while(|entry| batch.value_len() < CHUNK_BYTES && batch.push(entry.frame()))
                .count();
            batch.finish();
            rest = &rest[count..];
            *chunks += 1;
            self.write()?;
            thread::yield_now();
        }
        Ok(())
    }

    /// Sends a chunk of one large entry.
    fn send_large_chunk(&mut self, entry: &Entry, chunks: &mut u64) -> io::Result<()> {
        let fields = Fields::SnapshotChunk {
            epoch: self.epoch,
            sequence: *chunks,
            count: 1,
        };
        *chunks += 1;
        self.write_large(fields, entry)
    }
}
