//! The bytes of a segment of the log: a header, and groups of records behind it (`docs/FORMAT.md`).
//!
//! A group is records that were written together, with one index each. Its head proves itself: its checksum begins with
//! the salt of the segment, which is drawn anew for each use of a file, so nothing of an earlier use counts. The heads
//! are a chain: each holds the checksum of the one before it, across segments too.

use crate::engine::digest::Digest;
use crate::history::{EpochStart, History};

/// First bytes of a segment; the last one is the version of the format.
pub const SEGMENT_MAGIC: [u8; 8] = *b"GOPHLOG\x01";

/// First bytes of a group.
pub const GROUP_MAGIC: [u8; 4] = *b"GRP\x01";

/// Bytes of a segment's header before its epochs.
const HEADER_FIXED_LEN: usize = 72;

/// Bytes of an epoch in a segment's header.
const EPOCH_LEN: usize = 24;

/// Bytes of a group before its records.
pub const HEAD_LEN: usize = 88;

/// Groups begin at multiples of this many bytes.
pub const ALIGNMENT: u64 = 8;

/// Headers end at multiples of this many bytes.
pub(super) const HEADER_ALIGNMENT: usize = 512;

/// Identifies a segment of a directory, and names its file.
///
/// The segments of a chain continue each other. A directory has one chain, and another one while a full copy replaces
/// the data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId {
    /// Number of the chain, from 1.
    pub chain: u32,
    /// Number of the segment in its chain, from 1.
    pub number: u64,
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its name.
    pub id: SegmentId,
    /// Drawn for each use of a file.
    pub salt: u64,
    /// Index of the first record.
    pub first_index: u64,
    /// Digest of the data set before it.
    pub digest: Digest,
    /// Checksum of the last head of the segment before; 0 in the first segment of a chain.
    pub previous: u32,
    /// The epochs of the records before `first_index`.
    pub history: History,
}

/// Why bytes are no header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// They begin otherwise.
    Magic,
    /// They are of a version of the format that this program does not know.
    Version(u8),
    /// There are fewer bytes than the header has.
    Short,
    /// The checksum is another one.
    Checksum,
    /// The epochs do not follow each other.
    History,
}

/// The head of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHead {
    /// Bytes of its records.
    pub body_len: u32,
    /// Records; 0 in an end mark, which says that those before it are durable.
    pub count: u32,
    /// Index of the first record; of a group without records the next one.
    pub first_index: u64,
    /// The newest epoch that the group's leader had.
    pub epoch: u64,
    /// Index up to which records were committed when the group was written.
    pub committed: u64,
    /// Index up to which the records of this log were durable when the group was written.
    pub durable_to: u64,
    /// Time of the node's clock, in milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Digest of the data set after the last record.
    pub digest: Digest,
    /// Checksum of the head before it.
    pub previous: u32,
    /// Checksum (CRC-32C) of the records.
    pub body_checksum: u32,
}

pub(super) fn salted(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_be_bytes()), bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_be_bytes(*bytes))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

fn digest_at(bytes: &[u8], at: usize) -> Option<Digest> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(Digest::from_u128(u128::from_be_bytes(*bytes)))
}

/// Appends epochs to a header.
pub(super) fn push_epochs(epochs: &[EpochStart], out: &mut Vec<u8>) {
    for start in epochs {
        for number in [start.epoch, start.nonce, start.start_index] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Reads this number of epochs of a header.
pub(super) fn epochs_of(bytes: &[u8], count: usize) -> Option<History> {
    let epochs = bytes.get(..count.checked_mul(EPOCH_LEN)?)?;
    let starts = epochs.chunks_exact(EPOCH_LEN).map(|epoch| {
        Some(EpochStart {
            epoch: u64_at(epoch, 0)?,
            nonce: u64_at(epoch, 8)?,
            start_index: u64_at(epoch, 16)?,
        })
    });
    History::new(starts.collect::<Option<Vec<_>>>()?).ok()
}

impl SegmentId {
    /// Name of the file.
    #[must_use]
    pub fn name(&self) -> String {
        format!("log-{:08x}-{:016x}", self.chain, self.number)
    }

    /// The segment whose file has this name; `None` where it is no segment's.
    #[must_use]
    pub fn of_name(name: &str) -> Option<SegmentId> {
        let (chain, number) = name.strip_prefix("log-")?.split_once('-')?;
        let id = SegmentId {
            chain: u32::from_str_radix(chain, 16).ok()?,
            number: u64::from_str_radix(number, 16).ok()?,
        };
        (id.name() == name).then_some(id)
    }

    /// The segment behind this one.
    #[must_use]
    pub const fn next(&self) -> SegmentId {
        SegmentId {
            chain: self.chain,
            number: self.number + 1,
        }
    }
}

impl SegmentHeader {
    /// The bytes of the header, with zeros to its end.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let epochs = self.history.epochs();
        let len = (HEADER_FIXED_LEN + epochs.len() * EPOCH_LEN).next_multiple_of(HEADER_ALIGNMENT);
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [self.id.number, self.salt, self.first_index] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.digest.to_u128().to_be_bytes());
        out.extend_from_slice(&self.previous.to_be_bytes());
        let count = u32::try_from(epochs.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&self.id.chain.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        push_epochs(epochs, &mut out);
        out.resize(len, 0);
        let checksum = salted(0, &out);
        out[12..16].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    /// Bytes of the header that begins with `start`, as far as that tells: [`SegmentHeader::decode`] needs them.
    #[must_use]
    pub fn len_of(start: &[u8]) -> Option<usize> {
        let len = usize::try_from(u32_at(start, 8)?).ok()?;
        let longest = HEADER_FIXED_LEN + crate::history::EPOCHS_MAX * EPOCH_LEN;
        let longest = longest.next_multiple_of(HEADER_ALIGNMENT);
        (HEADER_FIXED_LEN..=longest).contains(&len).then_some(len)
    }

    /// Reads a header at the start of `bytes`. Returns its length too.
    ///
    /// # Errors
    ///
    /// Where it is none.
    pub fn decode(bytes: &[u8]) -> Result<(SegmentHeader, usize), HeaderFault> {
        let Some(magic) = bytes.first_chunk::<8>() else {
            return Err(HeaderFault::Short);
        };
        if magic[..7] != SEGMENT_MAGIC[..7] {
            return Err(HeaderFault::Magic);
        }
        if magic[7] != SEGMENT_MAGIC[7] {
            return Err(HeaderFault::Version(magic[7]));
        }
        let len = SegmentHeader::len_of(bytes).ok_or(HeaderFault::Checksum)?;
        let header = bytes.get(..len).ok_or(HeaderFault::Short)?;
        let mut zeroed = header.to_vec();
        zeroed[12..16].fill(0);
        if u32_at(header, 12) != Some(salted(0, &zeroed)) {
            return Err(HeaderFault::Checksum);
        }
        let decoded = SegmentHeader::fields(header).ok_or(HeaderFault::History)?;
        Ok((decoded, len))
    }

    fn fields(header: &[u8]) -> Option<SegmentHeader> {
        let count = usize::try_from(u32_at(header, 60)?).ok()?;
        let history = epochs_of(header.get(HEADER_FIXED_LEN..)?, count)?;
        Some(SegmentHeader {
            id: SegmentId {
                chain: u32_at(header, 64)?,
                number: u64_at(header, 16)?,
            },
            salt: u64_at(header, 24)?,
            first_index: u64_at(header, 32)?,
            digest: digest_at(header, 40)?,
            previous: u32_at(header, 56)?,
            history,
        })
    }
}

impl GroupHead {
    /// The bytes of the head in a segment of this salt, and their checksum, which the next head holds.
    #[must_use]
    pub fn encode(&self, salt: u64) -> ([u8; HEAD_LEN], u32) {
        let mut out = [0; HEAD_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&GROUP_MAGIC);
        put(&self.body_len.to_be_bytes());
        put(&self.count.to_be_bytes());
        put(&self.previous.to_be_bytes());
        put(&self.first_index.to_be_bytes());
        put(&self.epoch.to_be_bytes());
        put(&self.committed.to_be_bytes());
        put(&self.durable_to.to_be_bytes());
        put(&self.time_ms.to_be_bytes());
        put(&self.digest.to_u128().to_be_bytes());
        put(&[0; 8]);
        put(&self.body_checksum.to_be_bytes());
        let checksum = salted(salt, &out[..HEAD_LEN - 4]);
        out[HEAD_LEN - 4..].copy_from_slice(&checksum.to_be_bytes());
        (out, checksum)
    }

    /// Reads the head of a group at the start of `bytes`, and its checksum. `None` where there is none of this salt.
    #[must_use]
    pub fn decode(bytes: &[u8], salt: u64) -> Option<(GroupHead, u32)> {
        let head: &[u8; HEAD_LEN] = bytes.first_chunk()?;
        if head[..4] != GROUP_MAGIC {
            return None;
        }
        let checksum = u32_at(head, HEAD_LEN - 4)?;
        if checksum != salted(salt, &head[..HEAD_LEN - 4]) {
            return None;
        }
        let head = GroupHead {
            body_len: u32_at(head, 4)?,
            count: u32_at(head, 8)?,
            previous: u32_at(head, 12)?,
            first_index: u64_at(head, 16)?,
            epoch: u64_at(head, 24)?,
            committed: u64_at(head, 32)?,
            durable_to: u64_at(head, 40)?,
            time_ms: u64_at(head, 48)?,
            digest: digest_at(head, 56)?,
            body_checksum: u32_at(head, 80)?,
        };
        Some((head, checksum))
    }

    /// Index of the last record; of a group without records the one before the next.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        (self.first_index + u64::from(self.count)).saturating_sub(1)
    }

    /// Bytes of the group with its padding.
    #[must_use]
    pub fn group_len(&self) -> u64 {
        group_len(u64::from(self.body_len))
    }

    /// Whether these are the records.
    #[must_use]
    pub fn has_body(&self, body: &[u8]) -> bool {
        body_checksum(body) == self.body_checksum
    }
}

/// The checksum of the records of a group.
#[must_use]
pub fn body_checksum(body: &[u8]) -> u32 {
    crc32c::crc32c(body)
}

/// Bytes of a group whose records have this length.
#[must_use]
pub fn group_len(body_len: u64) -> u64 {
    (u64::try_from(HEAD_LEN).unwrap_or(u64::MAX) + body_len).next_multiple_of(ALIGNMENT)
}
