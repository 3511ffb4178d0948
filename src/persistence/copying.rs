//! Copies the data set to a snapshot, partition by partition, while writes go on.

use crate::engine::{Engine, PartitionCopy};
use crate::log::{Cursor, Log};
use crate::storage::error::StorageError;
use crate::storage::files::Files;
use crate::storage::snapshot::{SnapshotId, SnapshotWriter};

/// Bytes of entries in a chunk of a snapshot, about.
const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of an entry that has a chunk of its own. A start reads each chunk with calls of the system.
const OWN_CHUNK_BYTES: usize = 64 << 10;

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Copying<'d> {
    engine: &'d Engine,
    log: &'d Log,
    writer: SnapshotWriter<'d>,
    id: SnapshotId,
    /// [`Log::dataset_generation`] of the data set that is copied; `None` where another one had replaced it before.
    generation: Option<u64>,
    /// Partitions that are copied.
    partitions: usize,
    copy: PartitionCopy,
    /// Frames that are not in the file yet, and their number.
    chunk: (Vec<u8>, u64),
}

/// The result of [`Copying::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to copy.
    More,
    /// Everything is copied. The snapshot may be [finished](Copying::finish) once the log is durable up to this index.
    Copied(u64),
    /// Another data set has replaced the one that was copied. The copy is of no use.
    Replaced,
}

impl<'d> Copying<'d> {
    /// Begins a snapshot of the data set that `cursor` reads, which the chain of this number continues. Another one may
    /// have replaced it, which the chain knows nothing of: then the copy is of no use.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn begin(
        files: &'d dyn Files,
        (engine, log): (&'d Engine, &'d Log),
        (chain, cursor): (u32, Cursor),
        salt: u64,
    ) -> Result<Copying<'d>, StorageError> {
        let generation = log.dataset_generation();
        let generation = log.is_current(&cursor).then_some(generation);
        let begin = engine.head().index;
        let id = SnapshotId { chain, begin };
        let writer = SnapshotWriter::begin(files, id, &log.history().up_to(begin), salt)?;
        Ok(Copying {
            engine,
            log,
            writer,
            id,
            generation,
            partitions: 0,
            copy: PartitionCopy::default(),
            chunk: (Vec::new(), 0),
        })
    }

    /// Copies the next partition, or ends the copy. Then the log is [wanted](Log::want_durable) to be durable up to its
    /// end.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn step(&mut self) -> Result<Progress, StorageError> {
        if self.partitions < self.engine.partitions() {
            self.copy_partition()?;
        }
        // Checked after the last read of the store, and before the copy counts.
        if self.is_replaced() {
            return Ok(Progress::Replaced);
        }
        if self.partitions < self.engine.partitions() {
            return Ok(Progress::More);
        }
        flush(&mut self.writer, &mut self.chunk)?;
        let end = self.engine.head().index;
        self.writer.end(end)?;
        if self.is_replaced() {
            return Ok(Progress::Replaced);
        }
        self.log.want_durable(end);
        Ok(Progress::Copied(end))
    }

    /// Whether another data set has replaced the one that is copied.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.generation != Some(self.log.dataset_generation())
    }

    fn copy_partition(&mut self) -> Result<(), StorageError> {
        self.engine.copy_partition(self.partitions, &mut self.copy);
        self.partitions += 1;
        let short = self.copy.len() - self.copy.long().len();
        self.chunk.0.extend_from_slice(self.copy.short());
        self.chunk.1 += u64::try_from(short).unwrap_or(u64::MAX);
        if self.chunk.0.len() >= CHUNK_BYTES {
            flush(&mut self.writer, &mut self.chunk)?;
        }
        for entry in self.copy.long() {
            let frame = entry.frame();
            if frame.len() >= OWN_CHUNK_BYTES {
                self.writer.add(frame, 1)?;
                continue;
            }
            let (frames, count) = &mut self.chunk;
            frames.extend_from_slice(frame);
            *count += 1;
            if frames.len() >= CHUNK_BYTES {
                flush(&mut self.writer, &mut self.chunk)?;
            }
        }
        Ok(())
    }

    /// Discards the snapshot, and removes its file.
    pub fn discard(self) {
        self.writer.discard();
    }

    /// Bytes of the snapshot.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.writer.len()
    }

    /// Whether it has no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.writer.is_empty()
    }

    /// Finishes the snapshot, which is [copied](Progress::Copied): its file gets its name.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn finish(self) -> Result<SnapshotId, StorageError> {
        self.writer.finish().map(|()| self.id)
    }
}

/// Writes the frames of a chunk, and their number, where there are some.
fn flush(
    writer: &mut SnapshotWriter<'_>,
    (frames, count): &mut (Vec<u8>, u64),
) -> Result<(), StorageError> {
    if *count > 0 {
        writer.add(frames, *count)?;
    }
    frames.clear();
    *count = 0;
    Ok(())
}
