//! The operation log as far as it is kept: plain data, no lock, no thread, no clock.

use std::collections::VecDeque;

use crate::digest::Digest;
use crate::entry::Entry;

/// Bytes of frames in one segment.
const SEGMENT_BYTES: usize = 256 << 10;

/// A frame longer than this is kept as the entry that it is, and not copied.
const LARGE_BYTES: usize = 32 << 10;

/// What an entry costs beside its frame: where it ends in its segment, and the digest after it.
const OVERHEAD_BYTES: u64 = 20;

/// One entry on its way to the log: a SET or DEL frame as the client sent it, and the digest of the data set after it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The frame.
    pub entry: Entry,
    /// Of the data set once this entry and all before it are applied.
    pub digest: Digest,
}

impl Logged {
    /// Bytes that an entry counts for in a log.
    #[must_use]
    pub fn cost_of(entry: &Entry) -> u64 {
        cost(entry.frame().len())
    }
}

fn cost(frame_len: usize) -> u64 {
    u64::try_from(frame_len)
        .unwrap_or(u64::MAX)
        .saturating_add(OVERHEAD_BYTES)
}

/// The newest entries of the log, a ring of segments that is bounded in bytes.
///
/// Frames lie one after another in a segment, just as followers are sent them. They are copies: a log that held on to
/// the store's own entries would keep replaced ones alive all over the memory, and nearly every access of the store was
/// then a miss of the cache.
///
/// # Invariants
///
/// 1. Indexes are without gaps: the entries held are `first_index()..=last_index()`.
/// 2. What is held counts for `bytes_max` at the most, and a segment; but the newest entry always stays.
/// 3. Nobody pins an entry: who reads too slowly finds it gone.
#[derive(Debug)]
pub struct OpLog {
    /// Index before the first that is held.
    base_index: u64,
    /// Digest of the data set at `base_index`.
    base_digest: Digest,
    /// None of them empty.
    segments: VecDeque<Segment>,
    last_index: u64,
    bytes: u64,
    bytes_max: u64,
    /// The frames of a segment that was evicted, for the next one.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    first_index: u64,
    frames: Frames,
    /// After each entry.
    digests: Vec<[u8; 16]>,
}

#[derive(Debug)]
enum Frames {
    /// One after another, and where each ends.
    Small { bytes: Vec<u8>, ends: Vec<u32> },
    /// A single one.
    Large(Entry),
}

/// What follows an index in the log.
#[derive(Debug)]
pub enum After {
    /// So many entries, the first with the index asked for; their frames are in the buffer.
    Small(u32),
    /// The entry with the index asked for, which is a large one.
    Large(Entry),
    /// Nothing yet.
    Nothing,
    /// Entries that the log no longer holds.
    Gone,
}

impl OpLog {
    /// An empty log of at most `bytes_max` bytes that begins after index 0.
    #[must_use]
    pub const fn new(bytes_max: u64) -> OpLog {
        OpLog {
            base_index: 0,
            base_digest: Digest::EMPTY,
            segments: VecDeque::new(),
            last_index: 0,
            bytes: 0,
            bytes_max,
            spare: Vec::new(),
        }
    }

    /// Forgets everything and begins after `index`, where the data set has this digest.
    pub fn reset(&mut self, index: u64, digest: Digest) {
        *self = OpLog {
            base_index: index,
            base_digest: digest,
            last_index: index,
            ..OpLog::new(self.bytes_max)
        };
    }

    /// Index of the oldest entry that is held; one past the last where none is.
    #[must_use]
    pub const fn first_index(&self) -> u64 {
        self.base_index + 1
    }

    /// Index of the newest entry; 0 where there never was one.
    #[must_use]
    pub const fn last_index(&self) -> u64 {
        self.last_index
    }

    /// Bytes that the entries held count for.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the next entry; what has to go for it goes.
    pub fn push(&mut self, logged: &Logged) {
        let frame = logged.entry.frame();
        self.last_index += 1;
        self.bytes = self.bytes.saturating_add(cost(frame.len()));
        let digest = logged.digest.to_u128().to_be_bytes();
        match self.segments.back_mut() {
            Some(Segment {
                frames: Frames::Small { bytes, ends },
                digests,
                ..
            }) if frame.len() <= LARGE_BYTES && bytes.len() + frame.len() <= SEGMENT_BYTES => {
                bytes.extend_from_slice(frame);
                ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                digests.push(digest);
            }
            _ => {
                self.evict();
                let frames = if frame.len() > LARGE_BYTES {
                    Frames::Large(logged.entry.clone())
                } else {
                    let mut bytes = std::mem::take(&mut self.spare);
                    bytes.reserve_exact(SEGMENT_BYTES);
                    bytes.extend_from_slice(frame);
                    let ends = vec![u32::try_from(bytes.len()).unwrap_or(u32::MAX)];
                    Frames::Small { bytes, ends }
                };
                self.segments.push_back(Segment {
                    first_index: self.last_index,
                    frames,
                    digests: vec![digest],
                });
            }
        }
    }

    /// Gives up the oldest segments until what is held is within its bound.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.segments.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.base_index = oldest.last_index();
            if let Some(digest) = oldest.digests.last() {
                self.base_digest = Digest::from_u128(u128::from_be_bytes(*digest));
            }
            if let Frames::Small { mut bytes, .. } = oldest.frames {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }

    /// The digest of the data set at `index`, where the log reaches back so far.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        if index == self.base_index {
            return Some(self.base_digest);
        }
        let segment = self.segment_of(index)?;
        let at = usize::try_from(index - segment.first_index).ok()?;
        let digest = segment.digests.get(at)?;
        Some(Digest::from_u128(u128::from_be_bytes(*digest)))
    }

    /// Reads from the entry with this index on: large ones alone, small ones as many as `bytes_max` allows and one
    /// segment holds, but at least one, into `buffer` in place of what was there.
    pub fn read(&self, index: u64, bytes_max: usize, buffer: &mut Vec<u8>) -> After {
        if index > self.last_index {
            return After::Nothing;
        }
        let Some(segment) = self.segment_of(index) else {
            return After::Gone;
        };
        let at = usize::try_from(index - segment.first_index).unwrap_or(usize::MAX);
        match &segment.frames {
            Frames::Large(entry) => After::Large(entry.clone()),
            Frames::Small { bytes, ends } => {
                let end = |at: usize| usize::try_from(ends[at]).unwrap_or(usize::MAX);
                let start = at.checked_sub(1).map_or(0, end);
                let fits = |&&to: &&u32| {
                    usize::try_from(to).unwrap_or(usize::MAX) <= start.saturating_add(bytes_max)
                };
                let count = ends[at..].iter().take_while(fits).count().max(1);
                buffer.clear();
                buffer.extend_from_slice(&bytes[start..end(at + count - 1)]);
                After::Small(u32::try_from(count).unwrap_or(u32::MAX))
            }
        }
    }

    /// The segment that holds this index.
    fn segment_of(&self, index: u64) -> Option<&Segment> {
        if index < self.first_index() || index > self.last_index {
            return None;
        }
        let after = self
            .segments
            .partition_point(|segment| segment.first_index <= index);
        self.segments.get(after.checked_sub(1)?)
    }
}

impl Segment {
    fn last_index(&self) -> u64 {
        self.first_index + u64::try_from(self.digests.len()).unwrap_or(0) - 1
    }

    fn bytes(&self) -> u64 {
        let entries = u64::try_from(self.digests.len()).unwrap_or(0);
        let len = match &self.frames {
            Frames::Small { bytes, .. } => bytes.len(),
            Frames::Large(entry) => entry.frame().len(),
        };
        u64::try_from(len).unwrap_or(u64::MAX) + entries * OVERHEAD_BYTES
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::Request;
    use crate::wire::request::{Limits, Parsed, parse};

    /// An entry whose value is so many bytes of its number, and a digest that names it.
    fn logged(number: u8, len: usize) -> Logged {
        let mut bytes = Vec::new();
        let value = &vec![number; len];
        let request = Request::Set { key: b"k", value };
        request.encode(&mut bytes).unwrap();
        match parse(&bytes, &Limits::default()).unwrap() {
            Parsed::Whole(frame) => Logged {
                entry: Entry::copy_of(&frame),
                digest: Digest::from_u128(u128::from(number)),
            },
            Parsed::Incomplete { .. } => panic!("a whole frame"),
        }
    }

    fn log(entries: u8, len: usize, bytes_max: u64) -> OpLog {
        let mut log = OpLog::new(bytes_max);
        for number in 1..=entries {
            log.push(&logged(number, len));
        }
        log
    }

    #[test]
    fn an_empty_log_holds_its_start_and_nothing_else() {
        let log = OpLog::new(100);
        assert_eq!(
            (log.first_index(), log.last_index(), log.bytes()),
            (1, 0, 0)
        );
        assert_eq!(log.digest_at(0), Some(Digest::EMPTY));
        assert_eq!(log.digest_at(1), None);
        let mut buffer = Vec::new();
        assert!(matches!(log.read(1, 100, &mut buffer), After::Nothing));
        assert!(
            matches!(log.read(0, 100, &mut buffer), After::Gone),
            "no entry"
        );
    }

    #[test]
    fn the_oldest_large_ones_go_for_the_newest_and_the_digest_before_them_stays_known() {
        let cost = Logged::cost_of(&logged(1, 40_000).entry);
        let log = log(4, 40_000, 3 * cost);
        assert_eq!((log.first_index(), log.last_index()), (2, 4));
        assert_eq!(log.bytes(), 3 * cost);
        let known = |number| Some(Digest::from_u128(number));
        let digests: Vec<_> = (0..=5).map(|index| log.digest_at(index)).collect();
        assert_eq!(
            digests,
            [None, known(1), known(2), known(3), known(4), None]
        );
        let mut buffer = Vec::new();
        assert!(matches!(log.read(1, 1, &mut buffer), After::Gone));
        assert!(
            matches!(log.read(2, 1, &mut buffer), After::Large(entry) if entry.value()[0] == 2)
        );
    }

    #[test]
    fn the_newest_entry_stays_however_small_the_log() {
        let log = log(5, 40_000, 1);
        assert_eq!((log.first_index(), log.last_index()), (5, 5));
        assert!(matches!(log.read(5, 0, &mut Vec::new()), After::Large(_)));
    }

    #[test]
    fn a_reader_gets_one_entry_at_least_and_no_more_than_it_has_room_for() {
        let log = log(5, 1, 1_000);
        let frame_len = logged(1, 1).entry.frame().len();
        let mut buffer = vec![9];
        for (index, room, count) in [
            (2, 0, 1),
            (2, frame_len, 1),
            (2, 2 * frame_len - 1, 1),
            (2, 2 * frame_len, 2),
            (2, 1_000, 4),
            (5, 1_000, 1),
        ] {
            let after = log.read(index, room, &mut buffer);
            assert!(
                matches!(after, After::Small(got) if got == count),
                "{after:?}"
            );
            assert_eq!(buffer.len(), usize::try_from(count).unwrap() * frame_len);
            assert_eq!(u64::from(buffer[frame_len - 1]), index, "the first of them");
        }
        assert!(matches!(log.read(6, 1_000, &mut buffer), After::Nothing));
    }

    #[test]
    fn a_reset_log_begins_after_its_new_start() {
        let mut log = log(3, 1, 1_000);
        log.reset(7, Digest::from_u128(70));
        assert_eq!(
            (log.first_index(), log.last_index(), log.bytes()),
            (8, 7, 0)
        );
        assert_eq!(log.digest_at(7), Some(Digest::from_u128(70)));
        assert_eq!(log.digest_at(3), None);
        let mut buffer = Vec::new();
        assert!(matches!(log.read(8, 1, &mut buffer), After::Nothing));
        log.push(&logged(8, 1));
        assert!(matches!(log.read(8, 1, &mut buffer), After::Small(1)));
        assert!(matches!(log.read(7, 1, &mut buffer), After::Gone));
    }
}
