//! A snapshot of a data set in a file (`docs/FORMAT.md`).
//!
//! A snapshot is copied while writes go on, so its parts are of different moments: it has every entry as it was at some
//! index from `begin` to `end`. The log from `begin` on makes it exact: its records state effects, which are the same
//! however often they are applied. So a snapshot may be used once the log is durable up to `end`, and it gets its name
//! only then.

use std::io;

use super::error::StorageError;
use super::files::{File, Files, read_more};
use super::segment::{epochs_of, push_epochs, salted, u32_at, u64_at};
use super::spares::is_no_space;
use crate::history::History;

/// First bytes of a snapshot; the last one is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"GOPHSNP\x01";

/// First bytes of a chunk.
pub(super) const CHUNK_MAGIC: [u8; 4] = *b"CHK\x01";

/// Bytes of the header before its epochs.
const HEADER_FIXED_LEN: usize = 40;

/// Bytes of a chunk before its frames.
const CHUNK_HEAD_LEN: usize = 32;

/// Most bytes of the frames of a chunk: the longest frame alone may have more than 4 GiB, and a chunk that has several
/// frames is shorter.
const CHUNK_LEN_MAX: u64 = 5 << 30;

/// Bytes of the last chunk behind its head: the number of keys, and the index that makes the snapshot exact.
const END_LEN: usize = 16;

/// Name of a snapshot while it is written.
pub const UNFINISHED: &str = "new-snapshot";

/// Identifies a snapshot of a directory, and names its file. A recovery reads the greatest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The chain of segments that continues it.
    pub chain: u32,
    /// Index at which it begins.
    pub begin: u64,
}

impl SnapshotId {
    /// Name of the file.
    #[must_use]
    pub fn name(&self) -> String {
        format!("snapshot-{:08x}-{:016x}", self.chain, self.begin)
    }

    /// The snapshot whose file has this name; `None` where it is no snapshot's.
    #[must_use]
    pub fn of_name(name: &str) -> Option<SnapshotId> {
        let (chain, begin) = name.strip_prefix("snapshot-")?.split_once('-')?;
        let id = SnapshotId {
            chain: u32::from_str_radix(chain, 16).ok()?,
            begin: u64::from_str_radix(begin, 16).ok()?,
        };
        (id.name() == name).then_some(id)
    }
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct SnapshotWriter<'f> {
    files: &'f dyn Files,
    file: Box<dyn File>,
    salt: u64,
    id: SnapshotId,
    offset: u64,
    /// Checksum of the last head.
    previous: u32,
    keys: u64,
}

impl<'f> SnapshotWriter<'f> {
    /// Begins a snapshot. The entries that are added include every change up to index `id.begin`. `history` has the
    /// epochs up to there.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn begin(
        files: &'f dyn Files,
        id: SnapshotId,
        history: &History,
        salt: u64,
    ) -> Result<SnapshotWriter<'f>, StorageError> {
        let failed = |operation| move |error| refused(files, operation, error);
        let names = files.list().map_err(failed("read the directory of"))?;
        if names.iter().any(|name| name == UNFINISHED) {
            files.remove(UNFINISHED).map_err(failed("remove"))?;
        }
        let file = files.create(UNFINISHED).map_err(failed("create"))?;
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&salt.to_be_bytes());
        header.extend_from_slice(&id.begin.to_be_bytes());
        header.extend_from_slice(&id.chain.to_be_bytes());
        let epochs = history.epochs();
        let count = u32::try_from(epochs.len()).unwrap_or(u32::MAX);
        header.extend_from_slice(&count.to_be_bytes());
        push_epochs(epochs, &mut header);
        let len = u32::try_from(header.len()).unwrap_or(u32::MAX);
        header[8..12].copy_from_slice(&len.to_be_bytes());
        let checksum = salted(0, &header);
        header[12..16].copy_from_slice(&checksum.to_be_bytes());
        if let Err(error) = file.write_at(0, &header) {
            discard(files);
            return Err(failed("write")(error));
        }
        Ok(SnapshotWriter {
            files,
            file,
            salt,
            id,
            offset: u64::from(len),
            previous: checksum,
            keys: 0,
        })
    }

    /// Removes the snapshot, which gets no name. Its space is free then.
    pub fn discard(self) {
        let SnapshotWriter { files, file, .. } = self;
        drop(file);
        discard(files);
    }

    /// Bytes written.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.offset
    }

    /// Whether no entry was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Adds frames of entries, one behind the other, and how many they are.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn add(&mut self, frames: &[u8], count: u64) -> Result<(), StorageError> {
        self.keys += count;
        self.chunk(frames, count)
    }

    fn chunk(&mut self, frames: &[u8], count: u64) -> Result<(), StorageError> {
        let len = u64::try_from(frames.len()).unwrap_or(u64::MAX);
        let mut head = [0; CHUNK_HEAD_LEN];
        head[..4].copy_from_slice(&CHUNK_MAGIC);
        head[4..8].copy_from_slice(&self.previous.to_be_bytes());
        head[8..16].copy_from_slice(&len.to_be_bytes());
        head[16..24].copy_from_slice(&count.to_be_bytes());
        head[24..28].copy_from_slice(&crc32c::crc32c(frames).to_be_bytes());
        let checksum = salted(self.salt, &head[..28]);
        head[28..].copy_from_slice(&checksum.to_be_bytes());
        let failed = |error| refused(self.files, "write", error);
        self.file.write_at(self.offset, &head).map_err(failed)?;
        let at = self.offset + u64::try_from(CHUNK_HEAD_LEN).unwrap_or(0);
        if !frames.is_empty() {
            self.file.write_at(at, frames).map_err(failed)?;
        }
        self.offset = at + len;
        self.previous = checksum;
        Ok(())
    }

    /// Ends the snapshot: the log from its begin to `end` makes it exact. Makes it durable, under its temporary name.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn end(&mut self, end: u64) -> Result<(), StorageError> {
        let (keys, end) = (self.keys.to_be_bytes(), end.to_be_bytes());
        self.chunk(&[&keys[..], &end[..]].concat(), u64::MAX)?;
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::SnapshotNotWhole) {
            return Ok(());
        }
        let synced = self.file.sync();
        synced.map_err(|error| refused(self.files, "sync", error))
    }

    /// Gives the snapshot, which has [ended](Self::end), its name, and removes the others. The log is durable up to its
    /// end. The log up to its begin is needed no more, and no other chain.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn finish(self) -> Result<(), StorageError> {
        let files = self.files;
        let failed =
            |operation| move |error| StorageError::system(files, UNFINISHED, operation, error);
        let name = self.id.name();
        if let Err(error) = files.rename(UNFINISHED, &name) {
            discard(files);
            return Err(refused(files, "rename", error));
        }
        files.sync_directory().map_err(failed("rename"))?;
        let names = files.list().map_err(failed("read the directory of"))?;
        for old in names {
            if SnapshotId::of_name(&old).is_some() && old != name {
                files
                    .remove(&old)
                    .map_err(failed("remove the one before"))?;
            }
        }
        Ok(())
    }
}

/// The error where the system has refused an operation on the snapshot that is not finished.
fn refused(files: &dyn Files, operation: &'static str, error: io::Error) -> StorageError {
    if is_no_space(&error) {
        StorageError::full(files, error)
    } else {
        StorageError::system(files, UNFINISHED, operation, error)
    }
}

/// Removes the snapshot that is not finished. Where that fails the next one removes it.
fn discard(files: &dyn Files) {
    let _ = files.remove(UNFINISHED);
}

/// A snapshot that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSnapshot {
    /// Its name.
    pub id: SnapshotId,
    /// Index at which it is exact once the log was applied up to there.
    pub end: u64,
    /// The epochs up to its begin.
    pub history: History,
    /// Its entries.
    pub keys: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Called with the frames of a chunk, and their number.
pub type Visit<'v> = dyn FnMut(Vec<u8>, u64) -> Result<(), StorageError> + 'v;

/// Number of keys that the newest snapshot of a directory announces at its end, to make room for them; 0 where it does
/// not. Nothing of the file is checked.
#[must_use]
pub fn announced_keys(files: &dyn Files) -> u64 {
    let read = || {
        let names = files.list().ok()?;
        let id = names
            .iter()
            .filter_map(|it| SnapshotId::of_name(it))
            .max()?;
        let file = files.open(&id.name(), false).ok()?;
        let (mut end, len) = ([0; CHUNK_HEAD_LEN + END_LEN], file.length().ok()?);
        let at = len.checked_sub(u64::try_from(end.len()).ok()?)?;
        let is_whole = file.read_at(at, &mut end).ok()? == end.len();
        let is_end = is_whole && end[..4] == CHUNK_MAGIC && u64_at(&end, 16) == Some(u64::MAX);
        // Each key takes a header and a byte at least.
        u64_at(&end, CHUNK_HEAD_LEN).filter(|keys| is_end && *keys <= len / 8)
    };
    read().unwrap_or(0)
}

/// Reads the newest snapshot of a directory. Calls `visit` with each chunk; no key is in two of them. Returns `None`
/// where there is no snapshot.
///
/// # Errors
///
/// Where it is damaged, where the system refuses a read, or where `visit` fails.
pub fn read_snapshot(
    files: &dyn Files,
    visit: &mut Visit<'_>,
) -> Result<Option<ReadSnapshot>, StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    let Some(id) = names.iter().filter_map(|it| SnapshotId::of_name(it)).max() else {
        return Ok(None);
    };
    let name = id.name();
    let file = files.open(&name, false);
    let mut reader = Reader {
        files,
        file: file.map_err(|error| StorageError::system(files, &name, "open", error))?,
        name,
        offset: 0,
    };
    reader.read(id, visit).map(Some)
}

struct Reader<'f> {
    files: &'f dyn Files,
    file: Box<dyn File>,
    name: String,
    offset: u64,
}

impl Reader<'_> {
    fn damaged(&self, found: &str) -> StorageError {
        StorageError::damaged(self.files, &self.name, self.offset, found.to_owned())
    }

    /// The next bytes, all of them.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, StorageError> {
        let failed = |error| StorageError::system(self.files, &self.name, "read", error);
        let rest = self
            .file
            .length()
            .map_err(failed)?
            .saturating_sub(self.offset);
        if rest < len {
            return Err(self.damaged("the file ends too early"));
        }
        let mut bytes = Vec::new();
        read_more(&*self.file, self.offset, len, &mut bytes).map_err(failed)?;
        if u64::try_from(bytes.len()) != Ok(len) {
            return Err(self.damaged("the file ends too early"));
        }
        self.offset += len;
        Ok(bytes)
    }

    /// Reads the whole snapshot. Calls `visit` with each chunk.
    fn read(
        &mut self,
        id: SnapshotId,
        visit: &mut Visit<'_>,
    ) -> Result<ReadSnapshot, StorageError> {
        let (salt, mut previous, history) = self.header(id)?;
        let mut keys = 0;
        loop {
            let (own, count, frames) = self.chunk(salt, previous)?;
            previous = own;
            if count != u64::MAX {
                keys += count;
                visit(frames, count)?;
                continue;
            }
            let (Some(all), Some(end)) = (u64_at(&frames, 0), u64_at(&frames, 8)) else {
                return Err(self.damaged("the end of the snapshot is damaged"));
            };
            if all != keys {
                return Err(self.damaged("the snapshot lacks entries"));
            }
            return Ok(ReadSnapshot {
                id,
                end,
                history,
                keys,
                bytes: self.offset,
            });
        }
    }

    /// Reads the header, which has to be that of `id`. Returns its salt, its checksum, and the epochs.
    fn header(&mut self, id: SnapshotId) -> Result<(u64, u32, History), StorageError> {
        let mut header = self.bytes(16)?;
        let len = u32_at(&header, 8).unwrap_or(0);
        let longest = HEADER_FIXED_LEN + 24 * crate::history::EPOCHS_MAX;
        let is_ours = header[..8] == MAGIC
            && (HEADER_FIXED_LEN..=longest).contains(&usize::try_from(len).unwrap_or(0));
        if !is_ours {
            self.offset = 0;
            return Err(self.damaged("this is no header of a snapshot of version 1"));
        }
        header.extend(self.bytes(u64::from(len) - 16)?);
        let stored = u32_at(&header, 12);
        header[12..16].fill(0);
        let checksum = salted(0, &header);
        let fields = || {
            let count = usize::try_from(u32_at(&header, 36)?).ok()?;
            let found = SnapshotId {
                chain: u32_at(&header, 32)?,
                begin: u64_at(&header, 24)?,
            };
            let history = epochs_of(header.get(HEADER_FIXED_LEN..)?, count)?;
            Some((u64_at(&header, 16)?, found, history))
        };
        let (Some((salt, found, history)), true) = (fields(), stored == Some(checksum)) else {
            self.offset = 0;
            return Err(self.damaged("the header of the snapshot is damaged"));
        };
        if found != id {
            return Err(self.damaged("the snapshot has the name of another one"));
        }
        Ok((salt, checksum, history))
    }

    /// Reads the next chunk, which has to be behind a head with the checksum `previous`. Returns the checksum of its
    /// own head, the number of its entries, and their frames.
    fn chunk(&mut self, salt: u64, previous: u32) -> Result<(u32, u64, Vec<u8>), StorageError> {
        let at = self.offset;
        let head = self.bytes(u64::try_from(CHUNK_HEAD_LEN).unwrap_or(0))?;
        let own = salted(salt, &head[..28]);
        let is_next = head[..4] == CHUNK_MAGIC
            && u32_at(&head, 4) == Some(previous)
            && u32_at(&head, 28) == Some(own);
        let len = u64_at(&head, 8).filter(|len| *len <= CHUNK_LEN_MAX);
        let (Some(len), Some(count), true) = (len, u64_at(&head, 16), is_next) else {
            self.offset = at;
            return Err(self.damaged("a chunk of the snapshot is damaged"));
        };
        let frames = self.bytes(len)?;
        if u32_at(&head, 24) != Some(crc32c::crc32c(&frames)) {
            self.offset = at;
            return Err(self.damaged("the entries of a chunk of the snapshot are damaged"));
        }
        Ok((own, count, frames))
    }
}
