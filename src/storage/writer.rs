//! Writes the log to segments.
//!
//! # Invariants
//!
//! 1. A segment has its name `log-…` only once its header is durable, and every record before it is durable then. So
//!    only the last segment can end in records that were cut by a crash.
//! 2. Behind the last group there are eight zeros, or the end of the file. Behind these there may be groups of an
//!    earlier use of the file, which have another salt.
//! 3. A segment whose end was cut is not written any more: the log goes on in a new one.
//! 4. After an error of a write or a sync nothing is written any more: it is unknown what the disk has.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::error::StorageError;
use super::files::{File, Files};
use super::recovery::{LogEnd, Recovered};
use super::segment::{GroupHead, SegmentHeader, SegmentId, body_checksum, group_len};
use super::snapshot::SnapshotId;
use crate::engine::digest::Digest;
use crate::history::History;

/// Bytes of a segment. A record that needs more has a segment of its own.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Bytes of a new segment that are filled with zeros at once. It is doubled whenever the records reach its end.
const FIRST_BYTES: u64 = 256 << 10;

/// Bytes of zeros behind the last group.
const END_LEN: u64 = 8;

/// Removed segments that are kept for the next ones.
const SPARES_MAX: usize = 2;

/// Records that are written together.
#[derive(Clone, Copy, Debug)]
pub struct NewGroup<'a> {
    /// Their frames, one behind the other.
    pub records: &'a [u8],
    /// How many.
    pub count: u32,
    /// Digest of the data set after the last of them.
    pub digest: Digest,
    /// The newest epoch.
    pub epoch: u64,
    /// Index up to which records are committed.
    pub committed: u64,
    /// Time of the node's clock, in milliseconds since 1970 UTC.
    pub time_ms: u64,
}

/// Draws a salt for a segment.
pub type Salts = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The writer of a log.
pub struct LogWriter<'f> {
    files: &'f dyn Files,
    salts: Salts,
    segment_bytes: u64,
    current: Current,
    /// Each segment and its first index.
    starts: VecDeque<(SegmentId, u64)>,
    /// Where the next group goes.
    end: LogEnd,
    /// Index up to which the records are durable.
    durable_to: u64,
    /// Whether anything was written since the last sync.
    is_unsynced: bool,
    /// The last group was written with the records before it durable, and none is behind it.
    is_sealed: bool,
    /// Names of files that are no segments any more, to be used again.
    spares: Vec<String>,
    /// A group on its way to the file.
    buffer: Vec<u8>,
}

/// The segment that is written.
struct Current {
    name: String,
    id: SegmentId,
    salt: u64,
    file: Box<dyn File>,
    /// Where the next group goes.
    offset: u64,
    /// Length of the file.
    len: u64,
    has_groups: bool,
}

impl<'f> LogWriter<'f> {
    /// Begins a log behind `end`, in a new segment.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn begin(
        files: &'f dyn Files,
        id: SegmentId,
        end: LogEnd,
        history: &History,
        salts: Salts,
        segment_bytes: u64,
    ) -> Result<LogWriter<'f>, StorageError> {
        let first_bytes = FIRST_BYTES.min(segment_bytes);
        let current = Current::create(files, id, salts(), &end, history, (None, first_bytes))?;
        Ok(LogWriter::with(files, salts, segment_bytes, current, end))
    }

    /// Goes on behind what was recovered: in the last segment, or in a new one where the end of that was torn.
    /// `history` has the epochs of all records that were recovered. Everything that was recovered is durable then.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn recovered(
        files: &'f dyn Files,
        log: &Recovered,
        history: &History,
        salts: Salts,
        segment_bytes: u64,
    ) -> Result<LogWriter<'f>, StorageError> {
        // It was read, and is shown to others from now on.
        let name = log.place.id.name();
        let file = files.open(&name, true);
        let synced = file.and_then(|file| file.sync());
        synced.map_err(|error| StorageError::system(files, &name, "sync", error))?;
        let mut writer = if log.cut.is_some() {
            let id = log.place.id.next();
            LogWriter::begin(files, id, log.end, history, salts, segment_bytes)?
        } else {
            LogWriter::resume(files, log.end, log.place, salts, segment_bytes)?
        };
        let starts = log.segments.iter();
        let mut starts: VecDeque<_> = starts.map(|it| (it.id, it.first_index)).collect();
        if log.cut.is_some() {
            starts.extend(&writer.starts);
        }
        writer.starts = starts;
        // Files of an earlier process.
        let names = files.list();
        let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
        writer.spares = names
            .into_iter()
            .filter(|it| it.starts_with("spare-"))
            .collect();
        Ok(writer)
    }

    /// Goes on behind what was recovered, in the same segment.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn resume(
        files: &'f dyn Files,
        end: LogEnd,
        place: Place,
        salts: Salts,
        segment_bytes: u64,
    ) -> Result<LogWriter<'f>, StorageError> {
        let name = place.id.name();
        let failed = |operation| {
            let name = name.clone();
            move |error| StorageError::system(files, &name, operation, error)
        };
        let file = files.open(&name, true).map_err(failed("open"))?;
        let len = file.length().map_err(failed("read"))?;
        let current = Current {
            name,
            id: place.id,
            salt: place.salt,
            file,
            offset: place.offset,
            len,
            has_groups: true,
        };
        Ok(LogWriter::with(files, salts, segment_bytes, current, end))
    }

    fn with(
        files: &'f dyn Files,
        salts: Salts,
        segment_bytes: u64,
        current: Current,
        end: LogEnd,
    ) -> LogWriter<'f> {
        LogWriter {
            files,
            salts,
            segment_bytes,
            starts: VecDeque::from([(current.id, end.next_index)]),
            current,
            durable_to: end.last_index(),
            end,
            is_unsynced: false,
            is_sealed: true,
            spares: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// The chain that is written.
    #[must_use]
    pub const fn chain(&self) -> u32 {
        self.current.id.chain
    }

    /// Index of the last record that was written.
    #[must_use]
    pub const fn written_to(&self) -> u64 {
        self.end.last_index()
    }

    /// Index up to which the records are durable.
    #[must_use]
    pub const fn durable_to(&self) -> u64 {
        self.durable_to
    }

    /// Whether the last group has one behind it that says that it is durable.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// Writes the next records as one group. They are durable after the next [`sync`](Self::sync). `history` returns
    /// the epochs of the records that were written before, for the header of a new segment.
    ///
    /// # Errors
    ///
    /// Those of the system. Nothing may be written afterwards.
    pub fn append(
        &mut self,
        group: &NewGroup<'_>,
        history: impl FnOnce() -> History,
    ) -> Result<(), StorageError> {
        let body_len = u64::try_from(group.records.len()).unwrap_or(u64::MAX);
        let len = group_len(body_len);
        if self.current.has_groups && self.current.offset + len + END_LEN > self.segment_bytes {
            self.rotate(&history(), len)?;
        }
        let head = GroupHead {
            body_len: u32::try_from(body_len).unwrap_or(u32::MAX),
            count: group.count,
            first_index: self.end.next_index,
            epoch: group.epoch,
            committed: group.committed,
            durable_to: self.durable_to,
            time_ms: group.time_ms,
            digest: group.digest,
            previous: self.end.previous,
            body_checksum: body_checksum(group.records),
        };
        let (bytes, checksum) = head.encode(self.current.salt);
        self.buffer.clear();
        self.buffer.extend_from_slice(&bytes);
        self.buffer.extend_from_slice(group.records);
        self.buffer
            .resize(usize::try_from(len + END_LEN).unwrap_or(usize::MAX), 0);
        let written = self.current.write(&self.buffer, len, self.segment_bytes);
        written.map_err(|error| {
            StorageError::system(self.files, &self.current.name, "write", error)
        })?;
        self.is_unsynced = true;
        self.is_sealed = group.count == 0;
        self.end = LogEnd {
            next_index: head.first_index + u64::from(group.count),
            digest: group.digest,
            previous: checksum,
        };
        Ok(())
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    ///
    /// Those of the system. Nothing may be written afterwards.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        if self.is_unsynced {
            let name = &self.current.name;
            let synced = self.current.file.sync();
            synced.map_err(|error| StorageError::system(self.files, name, "sync", error))?;
            self.is_unsynced = false;
        }
        self.durable_to = self.written_to();
        Ok(())
    }

    /// Writes a group without records, which says that those before it are durable. Makes nothing durable.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append).
    pub fn seal(
        &mut self,
        (epoch, committed, time_ms): (u64, u64, u64),
        history: impl FnOnce() -> History,
    ) -> Result<(), StorageError> {
        let digest = self.end.digest;
        let group = NewGroup {
            records: &[],
            count: 0,
            digest,
            epoch,
            committed,
            time_ms,
        };
        self.append(&group, history)
    }

    /// Begins the next segment, which has room for a group of this length.
    fn rotate(&mut self, history: &History, len: u64) -> Result<(), StorageError> {
        // Before the next segment has its name.
        self.sync()?;
        let (id, salt) = (self.current.id.next(), (self.salts)());
        let spare = self.spares.pop();
        let needed = (
            spare.as_deref(),
            len.max(FIRST_BYTES.min(self.segment_bytes)),
        );
        self.current = Current::create(self.files, id, salt, &self.end, history, needed)?;
        self.starts.push_back((id, self.end.next_index));
        Ok(())
    }

    /// Removes the segments that only have records up to `index`, which no recovery needs any more, in ascending order.
    /// Each is durably gone before the next one goes, so that no recovery finds a gap. The current segment stays.
    ///
    /// # Errors
    ///
    /// Those of the system. The log stays as it is, with more files than it needs.
    pub fn forget(&mut self, index: u64) -> Result<(), StorageError> {
        let files = self.files;
        while let Some((id, _)) = self.starts.front().copied()
            && let Some((_, next_start)) = self.starts.get(1)
            && *next_start <= index + 1
        {
            let name = id.name();
            let failed = |operation| {
                let name = name.clone();
                move |error| StorageError::system(files, &name, operation, error)
            };
            if self.spares.len() < SPARES_MAX {
                let spare = format!("spare-{:08x}-{:016x}", id.chain, id.number);
                files.rename(&name, &spare).map_err(failed("rename"))?;
                self.spares.push(spare);
            } else {
                files.remove(&name).map_err(failed("remove"))?;
            }
            files.sync_directory().map_err(failed("remove"))?;
            self.starts.pop_front();
        }
        Ok(())
    }
}

impl std::fmt::Debug for LogWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter")
            .field("segment", &self.current.id)
            .field("end", &self.end)
            .field("durable_to", &self.durable_to)
            .finish_non_exhaustive()
    }
}

/// The newest chain of a directory; `None` where it has neither a segment nor a snapshot.
///
/// # Errors
///
/// Those of the system.
pub fn newest_chain(files: &dyn Files) -> Result<Option<u32>, StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    let chains = names.iter().filter_map(|name| {
        let segment = SegmentId::of_name(name).map(|id| id.chain);
        segment.or_else(|| SnapshotId::of_name(name).map(|id| id.chain))
    });
    Ok(chains.max())
}

/// Removes what no recovery needs: segments of other chains than `chain`, other snapshots than `snapshot`, and files
/// that were not finished.
///
/// # Errors
///
/// Those of the system. The directory has more files than it needs then.
pub fn remove_stale(
    files: &dyn Files,
    chain: Option<u32>,
    snapshot: Option<SnapshotId>,
) -> Result<(), StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    let is_stale = |name: &String| {
        let segment = SegmentId::of_name(name);
        let other = SnapshotId::of_name(name);
        segment.is_some_and(|id| Some(id.chain) != chain)
            || other.is_some_and(|id| Some(id) != snapshot)
            || name.starts_with("new-")
    };
    let mut stale: Vec<String> = names.into_iter().filter(is_stale).collect();
    // The last segment of a chain first: what is left of the chain begins with its first one.
    stale.sort_unstable_by(|one, other| other.cmp(one));
    for name in &stale {
        let removed = files.remove(name).and_then(|()| files.sync_directory());
        removed.map_err(|error| StorageError::system(files, name, "remove", error))?;
    }
    Ok(())
}

/// The place in a segment where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub id: SegmentId,
    /// Its salt.
    pub salt: u64,
    /// Offset behind the last group.
    pub offset: u64,
}

impl Current {
    /// Makes a segment: a file with a durable header, and then its durable name. Uses the file `spare` again where
    /// there is one.
    fn create(
        files: &dyn Files,
        id: SegmentId,
        salt: u64,
        end: &LogEnd,
        history: &History,
        (spare, needed): (Option<&str>, u64),
    ) -> Result<Current, StorageError> {
        let header = SegmentHeader {
            id,
            salt,
            first_index: end.next_index,
            digest: end.digest,
            previous: end.previous,
            history: history.clone(),
        };
        let header = header.encode();
        let offset = u64::try_from(header.len()).unwrap_or(u64::MAX);
        let temporary = format!("new-{:08x}-{:016x}", id.chain, id.number);
        let before = spare.unwrap_or(&temporary);
        let failed = |operation| move |error| StorageError::system(files, before, operation, error);
        let (file, mut len) = match spare {
            Some(spare) => {
                let file = files.open(spare, true).map_err(failed("open"))?;
                let len = file.length().map_err(failed("read"))?;
                (file, len)
            }
            None => {
                let created = files.create(&temporary).or_else(|error| {
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                    // A process ended while it made this segment.
                    files.remove(&temporary)?;
                    files.create(&temporary)
                });
                (created.map_err(failed("create"))?, 0)
            }
        };
        let needed = offset + needed + END_LEN;
        extend(&*file, &mut len, needed, 0).map_err(failed("write"))?;
        let header_with_end = [&header[..], &[0; 8]].concat();
        file.write_at(0, &header_with_end)
            .map_err(failed("write"))?;
        file.sync().map_err(failed("sync"))?;
        let name = id.name();
        files.rename(before, &name).map_err(failed("rename"))?;
        files
            .sync_directory()
            .map_err(failed("sync the directory of"))?;
        Ok(Current {
            name,
            id,
            salt,
            file,
            offset,
            len,
            has_groups: false,
        })
    }

    /// Writes a group of this length, with the zeros behind it.
    fn write(&mut self, bytes: &[u8], len: u64, segment_bytes: u64) -> io::Result<()> {
        let needed = self.offset + len + END_LEN;
        extend(&*self.file, &mut self.len, needed, segment_bytes)?;
        self.file.write_at(self.offset, bytes)?;
        self.offset += len;
        self.has_groups = true;
        Ok(())
    }
}

/// Extends a file with zeros to at least `needed` bytes: to twice its length, but to no more than a segment has.
fn extend(file: &dyn File, len: &mut u64, needed: u64, segment_bytes: u64) -> io::Result<()> {
    if needed <= *len {
        return Ok(());
    }
    let to = needed.max((*len * 2).min(segment_bytes));
    fill(file, *len, to)?;
    *len = to;
    Ok(())
}

/// Writes zeros.
fn fill(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
        file.write_at(at, &ZEROS[..len])?;
        at += u64::try_from(len).unwrap_or(u64::MAX);
    }
    Ok(())
}
