//! Writes the log to segments.
//!
//! # Invariants
//!
//! 1. A segment has its name `log-…` only once its header is durable, and every record before it is durable then. So
//!    only the last segment can end in records that were cut by a crash.
//! 2. Behind the last group there are eight zeros, or the end of the file. Behind these there may be groups of an
//!    earlier use of the file, which have another salt.
//! 3. A segment whose end was cut is not written any more: the log goes on in a new one.
//! 4. A segment has space for all of its bytes before it has its name, so writing to it does not run into a full disk.
//! 5. After an error of a write or a sync nothing is written any more: it is unknown what the disk has. Only where the
//!    next segment has [no space](StorageError::is_full) nothing was changed.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::{Problem, StorageError};
use super::files::{File, Files};
use super::recovery::{LogEnd, Recovered};
use super::segment::{GroupHead, SegmentHeader, SegmentId, body_checksum, group_len};
use super::snapshot::SnapshotId;
use super::spares::{Spare, Spares, fill, is_no_space};
use crate::engine::digest::Digest;
use crate::history::History;

/// Bytes of a segment. A record that needs more has a segment of its own.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Bytes of a new segment that are filled with zeros at once. They are doubled whenever the records reach their end.
const FIRST_BYTES: u64 = 256 << 10;

/// Most zeros that are written at a time.
const FILL_BYTES_MAX: u64 = 4 << 20;

/// Bytes of zeros behind the last group.
pub(super) const END_LEN: u64 = 8;

/// Parts of a segment: the next one is prepared when one of them is in use.
const PREPARED_AFTER: u64 = 4;

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

/// The shape of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// The bytes of a segment are zeros before they are written, so that a sync of a few records has no new extent or
    /// length to write. The others are only set aside: everything is written once.
    pub is_filled: bool,
}

/// The writer of a log.
pub struct LogWriter<'f> {
    files: &'f dyn Files,
    salts: Salts,
    layout: Layout,
    /// The newest segment.
    id: SegmentId,
    /// The segment that is written. `None` where the newest one is not written any more, and the disk has no space for
    /// the next one.
    current: Option<Current>,
    /// The segments.
    starts: VecDeque<Start>,
    /// Where the next group goes.
    end: LogEnd,
    /// Index up to which the records are durable.
    durable_to: u64,
    /// Whether anything was written since the last sync.
    is_unsynced: bool,
    /// Bytes that were written since the last sync, and the number of writes of all time.
    unsynced_bytes: u64,
    writes: u64,
    /// The last group was written with the records before it durable, and none is behind it.
    is_sealed: bool,
    spares: Spares<'f>,
    /// A group on its way to the file.
    buffer: Vec<u8>,
}

/// A sync of a log, which is to be made. Any thread may do that.
#[derive(Debug)]
pub struct PendingSync {
    file: Arc<LogFile>,
    path: PathBuf,
    synced: Synced,
}

/// The part of a log that a sync has made durable.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    index: u64,
    /// Writes before it.
    writes: u64,
}

impl PendingSync {
    /// Makes it. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Those of the system. Nothing may be written to the log afterwards.
    pub fn run(self) -> Result<Synced, StorageError> {
        let PendingSync { file, path, synced } = self;
        match file.sync() {
            Ok(()) => Ok(synced),
            Err(error) => Err(StorageError {
                path,
                offset: None,
                problem: Problem::System("sync", error),
            }),
        }
    }
}

/// The file of a segment that is written. Its syncs are made one after another, and each fails once one has failed: the
/// system reports an error to one call, and either thread may make that call.
#[derive(Debug)]
struct LogFile {
    file: Box<dyn File>,
    has_failed: Mutex<bool>,
}

impl LogFile {
    fn new(file: Box<dyn File>) -> Arc<LogFile> {
        Arc::new(LogFile {
            file,
            has_failed: Mutex::new(false),
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut has_failed = self.has_failed.lock();
        if *has_failed {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        let synced = self.file.sync();
        *has_failed = synced.is_err();
        synced
    }
}

/// A segment.
#[derive(Clone, Copy, Debug)]
struct Start {
    id: SegmentId,
    first_index: u64,
    /// Bytes that it has at least.
    bytes: u64,
}

/// The segment that is written.
struct Current {
    name: String,
    salt: u64,
    file: Arc<LogFile>,
    /// Where the next group goes.
    offset: u64,
    /// Length of the file, or more where it is not filled.
    len: u64,
    /// Bytes that have their space.
    space: u64,
    has_groups: bool,
}

impl<'f> LogWriter<'f> {
    /// Begins a log behind `end`, in a new segment.
    ///
    /// # Errors
    ///
    /// Those of the system. The disk may have [no space](StorageError::is_full).
    pub fn begin(
        files: &'f dyn Files,
        id: SegmentId,
        end: LogEnd,
        history: &History,
        salts: Salts,
        layout: Layout,
    ) -> Result<LogWriter<'f>, StorageError> {
        let mut writer = LogWriter::new(files, id, end, salts, layout)?;
        writer.create(id, history, 0)?;
        Ok(writer)
    }

    /// Goes on writing behind the recovered log: in the last segment, or in a new one where the end of the last one was
    /// torn. Where the disk has no space for that, it is made later. `history` has the epochs of all records that were
    /// recovered. Everything that was recovered is durable then.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn recovered(
        files: &'f dyn Files,
        log: &mut Recovered,
        history: &History,
        salts: Salts,
        layout: Layout,
    ) -> Result<LogWriter<'f>, StorageError> {
        let file = make_durable(files, log)?;
        let (id, name) = (log.place.id, log.place.id.name());
        let failed = |operation| {
            let name = name.clone();
            move |error| StorageError::system(files, &name, operation, error)
        };
        let mut writer = LogWriter::new(files, id, log.end, salts, layout)?;
        writer.is_sealed = log.is_sealed && log.durable_to >= log.end.last_index();
        writer.starts.extend(log.segments.iter().map(|it| Start {
            id: it.id,
            first_index: it.first_index,
            bytes: it.bytes,
        }));
        if log.cut.is_some() {
            match writer.create(id.next(), history, 0) {
                Err(error) if !error.is_full() => return Err(error),
                Ok(()) | Err(_) => {}
            }
            return Ok(writer);
        }
        let len = file.length().map_err(failed("read"))?;
        // Only the first group of a segment ends beyond them.
        let space = match file.allocate(layout.segment_bytes) {
            Ok(true) => layout.segment_bytes,
            Ok(false) => len.min(layout.segment_bytes),
            Err(error) if is_no_space(&error) => len.min(layout.segment_bytes),
            Err(error) => return Err(failed("write")(error)),
        };
        writer.current = Some(Current {
            name,
            salt: log.place.salt,
            file: LogFile::new(file),
            offset: log.place.offset,
            len,
            space,
            has_groups: true,
        });
        Ok(writer)
    }

    /// A writer without a segment.
    fn new(
        files: &'f dyn Files,
        id: SegmentId,
        end: LogEnd,
        salts: Salts,
        layout: Layout,
    ) -> Result<LogWriter<'f>, StorageError> {
        Ok(LogWriter {
            files,
            spares: Spares::new(files, Arc::clone(&salts), layout.segment_bytes)?,
            salts,
            layout,
            id,
            current: None,
            starts: VecDeque::new(),
            durable_to: end.last_index(),
            end,
            is_unsynced: false,
            unsynced_bytes: 0,
            writes: 0,
            is_sealed: true,
            buffer: Vec::new(),
        })
    }

    /// The chain that is written.
    #[must_use]
    pub const fn chain(&self) -> u32 {
        self.id.chain
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

    /// Whether the next segment has its space.
    #[must_use]
    pub const fn is_prepared(&self) -> bool {
        self.spares.is_ready()
    }

    /// Whether the next segment is to be prepared now: the last one is in use for some time, or a step of it is done.
    #[must_use]
    pub fn is_to_prepare(&self) -> bool {
        let used = self
            .current
            .as_ref()
            .map_or(u64::MAX, |current| current.offset);
        !self.is_prepared()
            && (self.spares.is_making() || used > self.layout.segment_bytes / PREPARED_AFTER)
    }

    /// Takes a step of the preparation of the next segment. Returns whether that has its space.
    ///
    /// # Errors
    ///
    /// Those of the system. Where the disk has [no space](StorageError::is_full), the log goes on up to the end of the
    /// segment that is written.
    pub fn prepare(&mut self) -> Result<bool, StorageError> {
        self.spares.prepare()
    }

    /// Bytes of the segments, each up to the zeros behind its last group.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let open = self.current.as_ref().map(|current| current.offset);
        let closed = self.starts.len() - usize::from(open.is_some());
        let bytes = self.starts.iter().take(closed).map(|start| start.bytes);
        bytes.chain(open).map(|bytes| bytes + END_LEN).sum()
    }

    /// Bytes that can be written though the next segment has no space, and those that a segment has.
    #[must_use]
    pub fn reserve(&self) -> (u64, u64) {
        let current = self.current.as_ref();
        let left = current.map_or(0, |current| current.space.saturating_sub(current.offset));
        (left, self.layout.segment_bytes)
    }

    /// Writes the next records as one group. They are durable after the next [`sync`](Self::sync). `history` returns
    /// the epochs of the records that were written before, for the header of a new segment.
    ///
    /// # Errors
    ///
    /// Those of the system. Nothing may be written afterwards, unless the disk has [no space](StorageError::is_full)
    /// for the next segment: the same records may be tried again then.
    pub fn append(
        &mut self,
        group: &NewGroup<'_>,
        history: impl FnOnce() -> History,
    ) -> Result<(), StorageError> {
        let body_len = u64::try_from(group.records.len()).unwrap_or(u64::MAX);
        let len = group_len(body_len);
        let segment_bytes = self.layout.segment_bytes;
        let current = self.current.as_ref();
        if !current.is_some_and(|current| current.has_room(len, segment_bytes)) {
            self.rotate(&history(), len)?;
        }
        let Some(current) = &mut self.current else {
            unreachable!("it was begun")
        };
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
        let (bytes, checksum) = head.encode(current.salt);
        self.buffer.clear();
        self.buffer.extend_from_slice(&bytes);
        self.buffer.extend_from_slice(group.records);
        self.buffer
            .resize(usize::try_from(len + END_LEN).unwrap_or(usize::MAX), 0);
        let written = current.write(&self.buffer, len, self.layout);
        written.map_err(|error| StorageError::system(self.files, &current.name, "write", error))?;
        self.is_unsynced = true;
        self.unsynced_bytes += len;
        self.writes += 1;
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
        if let (true, Some(current)) = (self.is_unsynced, &self.current) {
            let synced = current.file.sync();
            #[cfg(test)]
            let synced = if crate::planted::is(crate::planted::Fault::SyncErrorIgnored) {
                Ok(())
            } else {
                synced
            };
            synced
                .map_err(|error| StorageError::system(self.files, &current.name, "sync", error))?;
            self.is_unsynced = false;
            self.unsynced_bytes = 0;
        }
        self.durable_to = self.written_to();
        Ok(())
    }

    /// Whether something is written that is not durable.
    #[must_use]
    pub const fn is_unsynced(&self) -> bool {
        self.is_unsynced
    }

    /// Bytes of groups for which no sync was begun.
    #[must_use]
    pub const fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Begins to make durable what is written: returns the sync, which another thread may make while more is written;
    /// `None` where everything is durable. What it returns goes to [`synced`](Self::synced).
    pub fn begin_sync(&mut self) -> Option<PendingSync> {
        let (true, Some(current)) = (self.is_unsynced, &self.current) else {
            return None;
        };
        self.unsynced_bytes = 0;
        Some(PendingSync {
            file: Arc::clone(&current.file),
            path: self.files.path().join(&current.name),
            synced: Synced {
                index: self.written_to(),
                writes: self.writes,
            },
        })
    }

    /// A sync that [was begun](Self::begin_sync) is made: what was written before it is durable.
    pub fn synced(&mut self, synced: Synced) {
        self.durable_to = self.durable_to.max(synced.index);
        if synced.writes == self.writes {
            self.is_unsynced = false;
        }
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
        self.create(self.id.next(), history, len)
    }

    /// Makes a segment, which has room for a group of this length: a file with space and a durable header, and then its
    /// durable name.
    fn create(&mut self, id: SegmentId, history: &History, len: u64) -> Result<(), StorageError> {
        let (files, salt) = (self.files, (self.salts)());
        let header = SegmentHeader {
            id,
            salt,
            first_index: self.end.next_index,
            digest: self.end.digest,
            previous: self.end.previous,
            history: history.clone(),
        };
        let header = header.encode();
        let offset = u64::try_from(header.len()).unwrap_or(u64::MAX);
        let needed = offset + len + END_LEN;
        let Spare {
            name: before,
            file,
            mut len,
            space,
            ..
        } = self.spares.take(needed.max(self.layout.segment_bytes))?;
        let before = &*before;
        let failed = |operation| move |error| StorageError::system(files, before, operation, error);
        let first_bytes = needed.max(FIRST_BYTES.min(self.layout.segment_bytes));
        extend(&*file, &mut len, first_bytes, self.layout).map_err(failed("write"))?;
        let header_with_end = [&header[..], &[0; 8]].concat();
        file.write_at(0, &header_with_end)
            .map_err(failed("write"))?;
        file.sync().map_err(failed("sync"))?;
        let name = id.name();
        files.rename(before, &name).map_err(failed("rename"))?;
        #[cfg(not(test))]
        let is_synced = true;
        #[cfg(test)]
        let is_synced = !crate::planted::is(crate::planted::Fault::DirectoryNotSynced);
        if is_synced {
            files
                .sync_directory()
                .map_err(failed("sync the directory of"))?;
        }
        if let (Some(last), Some(current)) = (self.starts.back_mut(), &self.current) {
            last.bytes = current.offset;
        }
        self.id = id;
        self.starts.push_back(Start {
            id,
            first_index: self.end.next_index,
            bytes: offset,
        });
        self.current = Some(Current {
            name,
            salt,
            file: LogFile::new(file),
            offset,
            len,
            space,
            has_groups: false,
        });
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
        while let Some(first) = self.starts.front().copied()
            && let Some(next) = self.starts.get(1)
            && next.first_index <= index + 1
        {
            let name = first.id.name();
            let failed = |operation| {
                let name = name.clone();
                move |error| StorageError::system(files, &name, operation, error)
            };
            let is_usual = first.bytes <= self.layout.segment_bytes;
            match self.spares.name_of_old(&name).filter(|_| is_usual) {
                Some(spare) => {
                    files.rename(&name, &spare).map_err(failed("rename"))?;
                    self.spares.add(spare);
                }
                None => files.remove(&name).map_err(failed("remove"))?,
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
            .field("segment", &self.id)
            .field("end", &self.end)
            .field("durable_to", &self.durable_to)
            .finish_non_exhaustive()
    }
}

/// Makes durable what was read, since it is shown to others from now on. Returns the last segment.
///
/// The process before may have ended between giving a file its name and syncing the directory. Or a sync has failed in
/// it: then the system may hold bytes that it takes for written and that the disk does not have, so what is not known
/// to have been durable is written again.
///
/// # Errors
///
/// Those of the system.
pub fn make_durable(files: &dyn Files, log: &mut Recovered) -> Result<Box<dyn File>, StorageError> {
    let name = log.place.id.name();
    let failed = |operation| {
        let name = &*name;
        move |error| StorageError::system(files, name, operation, error)
    };
    files
        .sync_directory()
        .map_err(failed("sync the directory of"))?;
    let file = files.open(&name, true).map_err(failed("open"))?;
    let mut bytes = Vec::new();
    while log.proven < log.place.offset {
        let len = (log.place.offset - log.proven).min(FILL_BYTES_MAX);
        bytes.resize(usize::try_from(len).unwrap_or(0), 0);
        let read = file.read_at(log.proven, &mut bytes);
        bytes.truncate(read.map_err(failed("read"))?);
        file.write_at(log.proven, &bytes).map_err(failed("write"))?;
        log.proven += len;
    }
    file.sync().map_err(failed("sync"))?;
    Ok(file)
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

/// Removes the files that no recovery needs: segments of other chains than `chain`, snapshots before `snapshot`, and
/// files that were not finished. A snapshot behind it may just have got its name, and the one before is gone then.
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
            || other.is_some_and(|id| Some(id) < snapshot)
            || name.starts_with("new-")
    };
    let mut stale: Vec<String> = names.into_iter().filter(is_stale).collect();
    // The last segment of a chain is removed first, so that the rest of the chain begins with its first one.
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
    /// Whether a group of this length goes into this segment.
    const fn has_room(&self, len: u64, segment_bytes: u64) -> bool {
        let end = self.offset + len + END_LEN;
        end <= self.space && (end <= segment_bytes || !self.has_groups)
    }

    /// Writes a group of this length, with the zeros behind it.
    fn write(&mut self, bytes: &[u8], len: u64, layout: Layout) -> io::Result<()> {
        let needed = self.offset + len + END_LEN;
        extend(&*self.file.file, &mut self.len, needed, layout)?;
        self.file.file.write_at(self.offset, bytes)?;
        self.offset += len;
        self.has_groups = true;
        Ok(())
    }
}

/// Extends a file that is filled with zeros to at least `needed` bytes: to twice its length, but to no more than a
/// segment has.
fn extend(file: &dyn File, len: &mut u64, needed: u64, layout: Layout) -> io::Result<()> {
    if needed <= *len || !layout.is_filled {
        return Ok(());
    }
    let twice = *len + (*len).min(FILL_BYTES_MAX);
    let to = needed.max(twice.min(layout.segment_bytes));
    fill(file, *len, to)?;
    *len = to;
    Ok(())
}
