//! The newest part of the log in memory: plain data, no lock, no thread, no clock.

use std::collections::VecDeque;

use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::wire::request::RequestHeader;

/// Most bytes of frames in one segment.
const SEGMENT_BYTES: usize = 256 << 10;

/// A frame longer than this is kept as its entry and not copied.
const LARGE_BYTES: usize = 32 << 10;

/// Bytes that an append counts for beside its frames: its end within the segment, and the digest after it.
const OVERHEAD_BYTES: u64 = 24;

/// One append: the record of one write, or those of several that were executed together.
#[derive(Clone, Debug)]
pub struct Append {
    /// The records.
    pub records: Records,
    /// Number of records, at least 1.
    pub count: u32,
    /// Digest of the data set after the last of them.
    pub digest: Digest,
}

/// Records: the frames that state the effects of writes, and EPOCHs. A record has one index.
#[derive(Clone, Debug)]
pub enum Records {
    /// Frames one after another.
    Frames(Vec<u8>),
    /// A single frame, shared with the store.
    Entry(Entry),
}

impl Records {
    /// The frames, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Records::Frames(bytes) => bytes,
            Records::Entry(entry) => entry.frame(),
        }
    }

    /// Bytes that an append of frames of this length counts for.
    #[must_use]
    pub fn cost(len: usize) -> u64 {
        u64::try_from(len)
            .unwrap_or(u64::MAX)
            .saturating_add(OVERHEAD_BYTES)
    }
}

/// The newest records of the log: a ring of segments, bounded in bytes.
///
/// Frames lie one after another in a segment, in the form in which followers are sent them. They are copies: a backlog
/// that kept the store's own entries alive would scatter replaced ones all over the memory, and nearly every access of
/// the store would then miss the cache.
///
/// # Invariants
///
/// 1. Indexes have no gaps: the records held are `first_index()..=last_index()`.
/// 2. The records held count for at most `bytes_max` plus one segment, but the newest record is always held, and so are
///    those that [wait](Self::hold_from).
/// 3. Readers pin nothing: a reader that is too slow finds its record [gone](After::Gone).
/// 4. An append is evicted as a whole, and the digest is known at its end alone.
#[derive(Debug)]
pub struct Backlog {
    /// Index before the first that is held.
    base_index: u64,
    /// Digest of the data set at `base_index`.
    base_digest: Option<Digest>,
    /// Each has at least one record.
    segments: VecDeque<Segment>,
    last_index: u64,
    /// The records from this index on are not evicted.
    held_from: u64,
    bytes: u64,
    bytes_max: u64,
    /// Bytes of frames in one segment. Of a small backlog a segment is a quarter, so that a part of it can be evicted.
    segment_bytes: usize,
    /// The frames of a segment that was evicted, for the next one.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    first_index: u64,
    held: Held,
    /// The ends of its appends, at least one.
    ends: Vec<End>,
}

#[derive(Debug)]
enum Held {
    /// Frames one after another.
    Small(Vec<u8>),
    /// A single one.
    Large(Entry),
}

#[derive(Clone, Copy, Debug)]
struct End {
    /// Bytes of the segment up to this end.
    bytes: u32,
    /// Records of the segment up to this end.
    entries: u32,
    digest: [u8; 16],
}

/// The result of [`Backlog::read`]. With records comes the digest of the data set after the last of them.
#[derive(Debug)]
pub enum After {
    /// This many records, the first with the index asked for. Their frames are in the buffer.
    Small(u32, Digest),
    /// The record with the index asked for, which is a large one.
    Large(Entry, Digest),
    /// There is no such record yet.
    Nothing,
    /// The backlog no longer holds the record.
    Gone,
}

impl Backlog {
    /// An empty backlog of at most `bytes_max` bytes that begins after index 0.
    #[must_use]
    pub fn new(bytes_max: u64) -> Backlog {
        let quarter = usize::try_from(bytes_max / 4).unwrap_or(usize::MAX);
        Backlog {
            segment_bytes: quarter.min(SEGMENT_BYTES),
            base_index: 0,
            base_digest: Some(Digest::EMPTY),
            segments: VecDeque::new(),
            last_index: 0,
            held_from: u64::MAX,
            bytes: 0,
            bytes_max,
            spare: Vec::new(),
        }
    }

    /// Removes everything and begins after `index`, where the data set has this digest; `None` where it is not known.
    pub fn reset(&mut self, index: u64, digest: Option<Digest>) {
        *self = Backlog {
            base_index: index,
            base_digest: digest,
            last_index: index,
            ..Backlog::new(self.bytes_max)
        };
    }

    /// Index of the oldest record held; one past the last where none is.
    #[must_use]
    pub const fn first_index(&self) -> u64 {
        self.base_index + 1
    }

    /// Index of the newest record; 0 where there never was one.
    #[must_use]
    pub const fn last_index(&self) -> u64 {
        self.last_index
    }

    /// Bytes that the records held count for.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds the records from `index` on, whatever they count for, until it is called again; `None` for no records.
    pub fn hold_from(&mut self, index: Option<u64>) {
        self.held_from = index.unwrap_or(u64::MAX);
    }

    /// Whether the backlog counts for more than it may have, though it has no records before `held_from`.
    #[must_use]
    pub fn is_overfull(&self, held_from: u64) -> bool {
        let oldest = self.segments.front();
        self.bytes > self.bytes_max && oldest.is_some_and(|oldest| oldest.last_index() >= held_from)
    }

    /// Adds the next records. Evicts the oldest segments for them.
    pub fn push(&mut self, append: &Append) {
        let entry = match &append.records {
            Records::Entry(entry) => Some(entry),
            Records::Frames(_) => None,
        };
        self.push_frames(append.records.bytes(), entry, append.count, append.digest);
    }

    /// The same for `count` records whose frames are `new`, with the digest after them. `entry` is the one frame that
    /// there is, where that is shared with the store.
    pub fn push_frames(&mut self, new: &[u8], entry: Option<&Entry>, count: u32, digest: Digest) {
        self.last_index += u64::from(count);
        self.bytes = self.bytes.saturating_add(Records::cost(new.len()));
        let end = |bytes: usize, entries: u32| End {
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            entries,
            digest: digest.to_u128().to_be_bytes(),
        };
        let large = entry.filter(|_| new.len() > LARGE_BYTES);
        if large.is_none()
            && let Some(segment) = self.segments.back_mut()
            && let Held::Small(bytes) = &mut segment.held
            && bytes.len() + new.len() <= bytes.capacity().min(self.segment_bytes)
        {
            let before = segment.ends.last().map_or(0, |end| end.entries);
            bytes.extend_from_slice(new);
            segment.ends.push(end(bytes.len(), before + count));
            return;
        }
        self.evict();
        let held = if let Some(entry) = large {
            Held::Large(entry.clone())
        } else if new.len() > self.segment_bytes / 4 {
            // It has its own segment: behind it would be memory that no later append of its size fits in.
            Held::Small(new.to_vec())
        } else {
            let mut bytes = std::mem::take(&mut self.spare);
            bytes.reserve_exact(self.segment_bytes);
            bytes.extend_from_slice(new);
            Held::Small(bytes)
        };
        self.segments.push_back(Segment {
            first_index: self.last_index + 1 - u64::from(count),
            held,
            ends: vec![end(new.len(), count)],
        });
    }

    /// Evicts the oldest segments until the records held are within the bound.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(oldest) = self
                .segments
                .pop_front_if(|oldest| oldest.last_index() < self.held_from)
        {
            self.bytes -= oldest.bytes();
            self.base_index = oldest.last_index();
            if let Some(end) = oldest.ends.last() {
                self.base_digest = Some(end.digest());
            }
            if let Held::Small(mut bytes) = oldest.held {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }

    /// The digest of the data set at `index`, where the backlog reaches back so far and an append ended there.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        if index == self.base_index {
            return self.base_digest;
        }
        let segment = self.segment_of(index)?;
        let entries = index + 1 - segment.first_index;
        let ends = &segment.ends;
        let at = ends.binary_search_by_key(&entries, |end| u64::from(end.entries));
        at.ok().map(|at| ends[at].digest())
    }

    /// Reads the record with this index and those behind it, up to the end of an append that has none behind `up_to`. A
    /// large record comes alone. Of small ones the frames replace the contents of `buffer`: as many as `bytes_max`
    /// allows and one segment holds, but at least one append.
    pub fn read(&self, index: u64, up_to: u64, bytes_max: usize, buffer: &mut Vec<u8>) -> After {
        if index > self.last_index.min(up_to) {
            return After::Nothing;
        }
        let Some(segment) = self.segment_of(index) else {
            return After::Gone;
        };
        let before = index - segment.first_index;
        // The first end behind the record, and the last one that there is room for.
        let ends = &segment.ends;
        let first = ends.partition_point(|end| u64::from(end.entries) <= before);
        let bytes = match &segment.held {
            Held::Large(entry) => return After::Large(entry.clone(), ends[first].digest()),
            Held::Small(bytes) => bytes,
        };
        let (mut start, mut skipped) = match first.checked_sub(1) {
            Some(at) => (ends[at].len(), ends[at].entries),
            None => (0, 0),
        };
        while u64::from(skipped) < before {
            start += frame_len(&bytes[start..]);
            skipped += 1;
        }
        let allowed = (up_to - segment.first_index).saturating_add(1);
        if u64::from(ends[first].entries) > allowed {
            return After::Nothing;
        }
        let fit = ends[first..].partition_point(|end| {
            end.len() <= start.saturating_add(bytes_max) && u64::from(end.entries) <= allowed
        });
        let last = ends[first + fit.saturating_sub(1)];
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::RecordTorn) && last.entries - skipped > 1 {
            buffer.clear();
            buffer.extend_from_slice(&bytes[start..start + frame_len(&bytes[start..])]);
            return After::Small(1, last.digest());
        }
        buffer.clear();
        buffer.extend_from_slice(&bytes[start..last.len()]);
        After::Small(last.entries - skipped, last.digest())
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
        let entries = self.ends.last().map_or(0, |end| end.entries);
        self.first_index + u64::from(entries) - 1
    }

    fn bytes(&self) -> u64 {
        let ends = u64::try_from(self.ends.len()).unwrap_or(0);
        let len = match &self.held {
            Held::Small(bytes) => bytes.len(),
            Held::Large(entry) => entry.frame().len(),
        };
        u64::try_from(len).unwrap_or(u64::MAX) + ends * OVERHEAD_BYTES
    }
}

impl End {
    fn len(self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }

    const fn digest(self) -> Digest {
        Digest::from_u128(u128::from_be_bytes(self.digest))
    }
}

/// The length of the frame that `bytes` begin with; the backlog holds whole frames.
fn frame_len(bytes: &[u8]) -> usize {
    let header = bytes.first_chunk().copied().map(RequestHeader::decode);
    header.map_or(bytes.len(), RequestHeader::frame_len)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::Request;
    use crate::wire::request::{Limits, Parsed, parse};

    /// A SET frame whose value is `len` bytes of its number.
    fn set(number: u8, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let value = &vec![number; len];
        let request = Request::Set { key: b"k", value };
        request.encode(&mut bytes).unwrap();
        bytes
    }

    /// An entry of that frame, and a digest that names it.
    fn logged(number: u8, len: usize) -> Append {
        match parse(&set(number, len), &Limits::default()).unwrap() {
            Parsed::Whole(frame) => Append {
                records: Records::Entry(Entry::copy_of(&frame)),
                count: 1,
                digest: digest(number),
            },
            Parsed::Incomplete { .. } => panic!("a whole frame"),
        }
    }

    /// Entries with these numbers, added in one go.
    fn run(numbers: std::ops::RangeInclusive<u8>, len: usize) -> Append {
        Append {
            records: Records::Frames(
                numbers
                    .clone()
                    .flat_map(|number| set(number, len))
                    .collect(),
            ),
            count: u32::try_from(numbers.clone().count()).unwrap(),
            digest: digest(*numbers.end()),
        }
    }

    fn digest(number: u8) -> Digest {
        Digest::from_u128(u128::from(number))
    }

    fn log(entries: u8, len: usize, bytes_max: u64) -> Backlog {
        let mut log = Backlog::new(bytes_max);
        for number in 1..=entries {
            log.push(&logged(number, len));
        }
        log
    }

    #[test]
    fn an_empty_log_holds_its_start_and_nothing_else() {
        let log = Backlog::new(100);
        assert_eq!(
            (log.first_index(), log.last_index(), log.bytes()),
            (1, 0, 0)
        );
        assert_eq!(log.digest_at(0), Some(Digest::EMPTY));
        assert_eq!(log.digest_at(1), None);
        let mut buffer = Vec::new();
        assert!(matches!(
            log.read(1, u64::MAX, 100, &mut buffer),
            After::Nothing
        ));
        assert!(
            matches!(log.read(0, u64::MAX, 100, &mut buffer), After::Gone),
            "no entry"
        );
    }

    #[test]
    fn the_oldest_large_ones_go_for_the_newest_and_the_digest_before_them_stays_known() {
        let cost = Records::cost(set(1, 40_000).len());
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
        assert!(matches!(log.read(1, u64::MAX, 1, &mut buffer), After::Gone));
        assert!(
            matches!(log.read(2, u64::MAX, 1, &mut buffer), After::Large(entry, _) if entry.value()[0] == 2)
        );
    }

    #[test]
    fn the_newest_entry_stays_however_small_the_log() {
        let log = log(5, 40_000, 1);
        assert_eq!((log.first_index(), log.last_index()), (5, 5));
        assert!(matches!(
            log.read(5, u64::MAX, 0, &mut Vec::new()),
            After::Large(..)
        ));
    }

    #[test]
    fn a_reader_gets_one_entry_at_least_and_no_more_than_it_has_room_for() {
        let log = log(5, 1, 1_000);
        let frame_len = set(1, 1).len();
        let mut buffer = vec![9];
        for (index, room, count) in [
            (2, 0, 1),
            (2, frame_len, 1),
            (2, 2 * frame_len - 1, 1),
            (2, 2 * frame_len, 2),
            (2, 1_000, 4),
            (5, 1_000, 1),
        ] {
            let after = log.read(index, u64::MAX, room, &mut buffer);
            assert!(
                matches!(after, After::Small(got, _) if got == count),
                "{after:?}"
            );
            assert_eq!(buffer.len(), usize::try_from(count).unwrap() * frame_len);
            assert_eq!(u64::from(buffer[frame_len - 1]), index, "the first of them");
        }
        assert!(matches!(
            log.read(6, u64::MAX, 1_000, &mut buffer),
            After::Nothing
        ));
    }

    #[test]
    fn what_waits_is_held_however_small_the_log() {
        let cost = Records::cost(set(1, 40_000).len());
        let mut log = log(2, 40_000, 2 * cost);
        log.hold_from(Some(2));
        log.push(&logged(3, 40_000));
        assert!(!log.is_overfull(2), "the first one has gone");
        log.push(&logged(4, 40_000));
        assert_eq!((log.first_index(), log.last_index()), (2, 4));
        assert!(log.is_overfull(2));
        log.hold_from(Some(4));
        assert!(!log.is_overfull(4));
        log.push(&logged(5, 40_000));
        assert_eq!((log.first_index(), log.last_index()), (4, 5));
        log.hold_from(None);
        log.push(&logged(6, 40_000));
        assert_eq!(log.first_index(), 5);
        log.hold_from(Some(5));
        log.reset(9, Some(Digest::EMPTY));
        log.push(&logged(1, 40_000));
        log.push(&logged(2, 40_000));
        log.push(&logged(3, 40_000));
        assert_eq!(log.first_index(), 11, "nothing waits after a reset");
    }

    #[test]
    fn a_reset_log_begins_after_its_new_start() {
        let mut log = log(3, 1, 1_000);
        log.reset(7, Some(Digest::from_u128(70)));
        assert_eq!(
            (log.first_index(), log.last_index(), log.bytes()),
            (8, 7, 0)
        );
        assert_eq!(log.digest_at(7), Some(Digest::from_u128(70)));
        assert_eq!(log.digest_at(3), None);
        let mut buffer = Vec::new();
        assert!(matches!(
            log.read(8, u64::MAX, 1, &mut buffer),
            After::Nothing
        ));
        log.push(&logged(8, 1));
        assert!(matches!(
            log.read(8, u64::MAX, 1, &mut buffer),
            After::Small(1, _)
        ));
        assert!(matches!(log.read(7, u64::MAX, 1, &mut buffer), After::Gone));
    }

    #[test]
    fn what_was_added_in_one_go_is_read_to_its_end_from_any_of_its_entries() {
        let mut log = Backlog::new(10_000);
        log.push(&run(1..=2, 1));
        log.push(&run(3..=7, 1));
        log.push(&run(8..=8, 1));
        let digests: Vec<_> = (0..=8).map(|index| log.digest_at(index)).collect();
        let mut expected = vec![None; 9];
        for number in [0, 2, 7, 8] {
            expected[usize::from(number)] = Some(digest(number));
        }
        assert_eq!(digests, expected);
        let frame_len = set(1, 1).len();
        let mut buffer = Vec::new();
        for (index, room, last) in [
            (1, 0, 2),
            (1, 6 * frame_len, 2),
            (1, 7 * frame_len, 7),
            (2, 0, 2),
            (2, 6 * frame_len, 7),
            (3, 0, 7),
            (5, 0, 7),
            (5, 4 * frame_len, 8),
            (7, frame_len, 7),
            (8, 0, 8),
        ] {
            let after = log.read(index, u64::MAX, room, &mut buffer);
            let count = u32::try_from(last + 1 - index).unwrap();
            assert!(
                matches!(after, After::Small(got, _) if got == count),
                "{index}: {after:?}"
            );
            let numbers = u8::try_from(index).unwrap()..=u8::try_from(last).unwrap();
            assert_eq!(buffer, run(numbers, 1).records.bytes(), "from {index}");
        }
    }

    #[test]
    fn what_was_added_in_one_go_goes_in_one_go() {
        let in_one_go = run(1..=32, 4_000);
        let cost = Records::cost(in_one_go.records.bytes().len());
        let mut log = Backlog::new(3 * cost);
        for _ in 0..10 {
            log.push(&in_one_go);
        }
        assert_eq!(log.last_index(), 320);
        assert_eq!(log.first_index() % 32, 1);
        assert!(log.first_index() > 1 && log.bytes() <= 4 * cost);
        assert_eq!(log.digest_at(log.first_index() - 1), Some(digest(32)));
    }
}
