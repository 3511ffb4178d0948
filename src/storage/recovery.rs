//! Reads a log back from its segments, and changes nothing.
//!
//! The segments are read in their order, group by group. Each group has to follow the one before it: by its index, by
//! the checksum of the head before it, and by its own checksums. Where one does not,
//!
//! * a segment that is followed by another one, whose header continues the last good group, was cut there by an earlier
//!   recovery: the log goes on in the next segment;
//! * in the last segment it may be a write that a crash has torn. It is, unless a later group says that the records at
//!   that place were durable. Then the log is damaged.

use std::collections::VecDeque;

use super::error::StorageError;
use super::files::{Files, read_more};
use super::segment::{
    ALIGNMENT, GROUP_MAGIC, GroupHead, HEAD_LEN, HeaderFault, SegmentHeader, SegmentId,
};
use super::snapshot::SnapshotId;
use super::writer::{END_LEN, Place, SEGMENT_BYTES};
use crate::engine::digest::Digest;
use crate::history::History;

/// The end of a log: what the next group has to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Index of the next record.
    pub next_index: u64,
    /// Digest of the data set before it.
    pub digest: Digest,
    /// Checksum of the last head.
    pub previous: u32,
}

impl LogEnd {
    /// Index of the last record; 0 before the first.
    #[must_use]
    pub const fn last_index(&self) -> u64 {
        self.next_index.saturating_sub(1)
    }
}

/// A group that was read.
#[derive(Clone, Copy, Debug)]
pub struct ReadGroup<'a> {
    /// Its head.
    pub head: GroupHead,
    /// The frames of its records.
    pub records: &'a [u8],
    /// The segment that has it.
    pub segment: SegmentId,
    /// Offset of its head there.
    pub offset: u64,
}

/// A segment that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its name.
    pub id: SegmentId,
    /// Index of its first record.
    pub first_index: u64,
    /// Index of its last record; one less than that of the first where it has none.
    pub last_index: u64,
    /// Bytes of the file up to the end of its last group.
    pub bytes: u64,
}

/// Bytes behind the last group that a crash has torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub name: String,
    /// Where they begin.
    pub offset: u64,
    /// How many bytes at least: up to the last group of this segment that is found behind them, or 1.
    pub bytes: u64,
}

/// A log that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its segments, in their order; at least one.
    pub segments: Vec<SegmentInfo>,
    /// The epochs before the first record of the first segment.
    pub base: History,
    /// The end of the log.
    pub end: LogEnd,
    /// The place where it goes on.
    pub place: Place,
    /// Offset in the last segment behind the groups that are known to have been durable.
    pub proven: u64,
    /// Index up to which records are known to be committed.
    pub committed: u64,
    /// Index up to which the records are known to have been durable.
    pub durable_to: u64,
    /// The greatest time of a group, in milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// The last group has no records, and seals the others: the writer was idle, or ended in good order.
    pub is_sealed: bool,
    /// The end that was torn; `None` where there is none.
    pub cut: Option<Cut>,
}

/// Reads the log of a directory that continues its newest snapshot, or that begins with the first record of all where
/// there is no snapshot. Calls `visit` with each group, in their order. Returns `None` where the directory has no such
/// log.
///
/// # Errors
///
/// Where the log is damaged, where the system refuses a read, or where `visit` fails.
pub fn read_log(
    files: &dyn Files,
    snapshot: Option<SnapshotId>,
    visit: &mut dyn FnMut(ReadGroup<'_>) -> Result<(), StorageError>,
) -> Result<Option<Recovered>, StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    let ids = segments_to_read(&names, snapshot);
    let mut reader = Reader {
        files,
        state: None,
        bytes: Vec::new(),
    };
    if let (None, Some(first)) = (snapshot, ids.first())
        && first.number == 1
        && reader.first_index(*first)? > 1
    {
        // The snapshot that it continues was not finished.
        return Ok(None);
    }
    for (at, &id) in ids.iter().enumerate() {
        reader.segment(id, at + 1 == ids.len(), visit)?;
    }
    Ok(reader.state)
}

/// The segments of the chain that is read, in their order.
fn segments_to_read(names: &[String], snapshot: Option<SnapshotId>) -> Vec<SegmentId> {
    let ids = names.iter().filter_map(|it| SegmentId::of_name(it));
    let lowest = ids.clone().min().map(|id| id.chain);
    let chain = snapshot.map(|id| id.chain).or(lowest);
    let mut ids: Vec<SegmentId> = ids.filter(|id| Some(id.chain) == chain).collect();
    ids.sort_unstable();
    ids
}

/// The names of those files of a directory that a recovery reads.
#[must_use]
pub fn files_to_read(names: &[String]) -> Vec<String> {
    let snapshot = names.iter().filter_map(|it| SnapshotId::of_name(it)).max();
    let segments = segments_to_read(names, snapshot);
    let segments = segments.iter().map(SegmentId::name);
    snapshot
        .iter()
        .map(SnapshotId::name)
        .chain(segments)
        .collect()
}

/// Reads one segment, whatever is before it: its records up to the first group that does not follow the one before.
///
/// # Errors
///
/// Where its header is damaged, or where the system refuses a read.
pub fn read_segment(files: &dyn Files, id: SegmentId) -> Result<SegmentInfo, StorageError> {
    let mut reader = Reader {
        files,
        state: None,
        bytes: Vec::new(),
    };
    let name = id.name();
    reader.read_file(&name)?;
    let (header, header_len) = reader.header(id, &name)?;
    let mut state = Recovered::before(&header);
    let end = reader.groups(&header, &mut state, header_len, &mut |_| Ok(()))?;
    Ok(SegmentInfo {
        id,
        first_index: header.first_index,
        last_index: state.end.last_index(),
        bytes: u64_of(end),
    })
}

impl Recovered {
    /// Bytes of its segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|it| it.bytes + END_LEN).sum()
    }

    /// A log that begins with this segment, before anything of it is read.
    fn before(header: &SegmentHeader) -> Recovered {
        Recovered {
            segments: Vec::new(),
            base: header.history.clone(),
            end: LogEnd {
                next_index: header.first_index,
                digest: header.digest,
                previous: header.previous,
            },
            place: Place {
                id: header.id,
                salt: header.salt,
                offset: 0,
            },
            proven: 0,
            committed: 0,
            durable_to: 0,
            time_ms: 0,
            is_sealed: false,
            cut: None,
        }
    }
}

struct Reader<'f> {
    files: &'f dyn Files,
    state: Option<Recovered>,
    /// The bytes of the segment that is read, as far as they can hold its groups.
    bytes: Vec<u8>,
}

impl Reader<'_> {
    fn segment(
        &mut self,
        id: SegmentId,
        is_last: bool,
        visit: &mut dyn FnMut(ReadGroup<'_>) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let name = id.name();
        self.read_file(&name)?;
        let (header, header_len) = self.header(id, &name)?;
        let mut state = match self.state.take() {
            None => Recovered::before(&header),
            Some(state) => self.continued(state, &header, &name)?,
        };
        let offset = self.groups(&header, &mut state, header_len, visit)?;
        state.place = Place {
            id,
            salt: header.salt,
            offset: u64_of(offset),
        };
        state.segments.push(SegmentInfo {
            id,
            first_index: header.first_index,
            last_index: state.end.last_index(),
            bytes: u64_of(offset),
        });
        if is_last {
            state.cut = self.cut(&header, &state, &name, offset)?;
        }
        self.state = Some(state);
        Ok(())
    }

    /// Reads the groups of a segment from an offset on, as long as each follows the one before. Returns the offset
    /// behind the last one.
    fn groups(
        &self,
        header: &SegmentHeader,
        state: &mut Recovered,
        mut offset: usize,
        visit: &mut dyn FnMut(ReadGroup<'_>) -> Result<(), StorageError>,
    ) -> Result<usize, StorageError> {
        let mut unproven = VecDeque::new();
        while let Some((head, checksum, end)) = self.group(header, &state.end, offset) {
            visit(ReadGroup {
                head,
                records: &self.bytes[offset + HEAD_LEN..][..usize_of(head.body_len.into())],
                segment: header.id,
                offset: u64_of(offset),
            })?;
            state.end = LogEnd {
                next_index: head.first_index + u64::from(head.count),
                digest: head.digest,
                previous: checksum,
            };
            state.committed = state.committed.max(head.committed);
            state.durable_to = state.durable_to.max(head.durable_to);
            state.time_ms = state.time_ms.max(head.time_ms);
            state.is_sealed = head.count == 0;
            // A record that is durable proves what was written before it, also a group without records.
            unproven.push_back((head.first_index + u64::from(head.count.max(1)) - 1, offset));
            while unproven
                .pop_front_if(|(last, _)| *last <= state.durable_to)
                .is_some()
            {}
            offset = end;
        }
        state.proven = u64_of(unproven.front().map_or(offset, |(_, offset)| *offset));
        Ok(offset)
    }

    /// Reads the bytes of a segment that can hold its groups. No writer writes more, however long the file is.
    fn read_file(&mut self, name: &str) -> Result<(), StorageError> {
        let files = self.files;
        let failed = |error| StorageError::system(files, name, "read", error);
        let file = files.open(name, false).map_err(failed)?;
        let len = file.length().map_err(failed)?;
        self.bytes.clear();
        let usual = len.min(SEGMENT_BYTES);
        read_more(&*file, 0, usual, &mut self.bytes).map_err(failed)?;
        let rest = self.first_group_end().min(len).saturating_sub(usual);
        read_more(&*file, usual, rest, &mut self.bytes).map_err(failed)
    }

    /// Offset behind the first group of the segment that is read, which alone may end beyond [`SEGMENT_BYTES`]; 0 where
    /// it has no such group.
    fn first_group_end(&self) -> u64 {
        let end = || {
            let (header, len) = SegmentHeader::decode(&self.bytes).ok()?;
            let (head, _) = GroupHead::decode(self.bytes.get(len..)?, header.salt)?;
            Some(u64_of(len) + head.group_len())
        };
        end().unwrap_or(0)
    }

    /// Index of the first record of a segment.
    fn first_index(&mut self, id: SegmentId) -> Result<u64, StorageError> {
        let name = id.name();
        self.read_file(&name)?;
        self.header(id, &name).map(|(header, _)| header.first_index)
    }

    fn header(&self, id: SegmentId, name: &str) -> Result<(SegmentHeader, usize), StorageError> {
        let decoded = SegmentHeader::decode(&self.bytes);
        let (header, len) = decoded.map_err(|fault| match fault {
            HeaderFault::Version(version) => StorageError::foreign(
                self.files,
                name,
                format!("version {version} of the format is unknown to this program"),
            ),
            HeaderFault::Magic
            | HeaderFault::Short
            | HeaderFault::Checksum
            | HeaderFault::History => StorageError::damaged(
                self.files,
                name,
                0,
                "the header of the segment is damaged".to_owned(),
            ),
        })?;
        if header.id != id {
            let found = format!("the header is that of {}", header.id.name());
            return Err(StorageError::damaged(self.files, name, 0, found));
        }
        Ok((header, len))
    }

    /// The state, where this segment continues what was read before.
    fn continued(
        &self,
        #[cfg_attr(not(test), allow(unused_mut))] mut state: Recovered,
        header: &SegmentHeader,
        name: &str,
    ) -> Result<Recovered, StorageError> {
        let before = state.place;
        if header.id != before.id.next() {
            let missing = before.id.next().name();
            let found = format!("segment {missing} is missing");
            return Err(StorageError::damaged(self.files, name, 0, found));
        }
        let end = LogEnd {
            next_index: header.first_index,
            digest: header.digest,
            previous: header.previous,
        };
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::ChainNotCompared) {
            state.end.previous = end.previous;
        }
        if end != state.end {
            let (next, has) = (state.end.next_index, header.first_index);
            let found = format!(
                "record {next} is damaged: the next segment begins with record {has}, and does not follow what is here"
            );
            let name = before.id.name();
            return Err(StorageError::damaged(
                self.files,
                &name,
                before.offset,
                found,
            ));
        }
        Ok(state)
    }

    /// The group at an offset, if it follows `end`: its head, the checksum of that, and the offset behind the group.
    fn group(
        &self,
        header: &SegmentHeader,
        end: &LogEnd,
        offset: usize,
    ) -> Option<(GroupHead, u32, usize)> {
        let bytes = self.bytes.get(offset..)?;
        let (head, checksum) = GroupHead::decode(bytes, header.salt)?;
        let body = bytes.get(HEAD_LEN..)?;
        let body = body.get(..usize_of(head.body_len.into()))?;
        let follows = head.first_index == end.next_index && head.previous == end.previous;
        let group_end = offset.checked_add(usize_of(head.group_len()))?;
        (follows && head.has_body(body)).then_some((head, checksum, group_end))
    }

    /// Judges what is behind the last good group of the last segment.
    fn cut(
        &self,
        header: &SegmentHeader,
        state: &Recovered,
        name: &str,
        offset: usize,
    ) -> Result<Option<Cut>, StorageError> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        if rest.iter().take(8).all(|byte| *byte == 0) && !self.has_later(header, offset) {
            return Ok(None);
        }
        let mut bytes = 1;
        for (at, head) in self.later(header, offset) {
            if head.durable_to >= state.end.next_index {
                let (next, to) = (state.end.next_index, head.durable_to);
                let found = format!(
                    "record {next} is damaged, and a later group says that records up to {to} were durable"
                );
                return Err(StorageError::damaged(
                    self.files,
                    name,
                    u64_of(offset),
                    found,
                ));
            }
            bytes = u64_of(at - offset) + head.group_len();
        }
        Ok(Some(Cut {
            name: name.to_owned(),
            offset: u64_of(offset),
            bytes,
        }))
    }

    fn has_later(&self, header: &SegmentHeader, offset: usize) -> bool {
        self.later(header, offset).next().is_some()
    }

    /// The heads of this use of the segment behind an offset, with their offsets.
    fn later(
        &self,
        header: &SegmentHeader,
        offset: usize,
    ) -> impl Iterator<Item = (usize, GroupHead)> {
        let salt = header.salt;
        let places = (offset..self.bytes.len()).step_by(usize_of(ALIGNMENT));
        places.filter_map(move |at| {
            let bytes = &self.bytes[at..];
            if !bytes.starts_with(&GROUP_MAGIC) {
                return None;
            }
            GroupHead::decode(bytes, salt).map(|(head, _)| (at, head))
        })
    }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn u64_of(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
