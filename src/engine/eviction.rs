//! Which entries make room for others, where `when_full = "evict"`.
//!
//! The policy is a clock with one bit for each place of a table. A hit sets the bit of its entry. A hand goes through
//! all places of all partitions, over and over: it clears the bits that are set, and removes the entries whose bits
//! are not. A new entry's bit is not set, so an entry that is never asked for goes at the hand's next visit, and a scan
//! of many keys does not push out those that are in use. `cargo bench --bench eviction` compares hit ratios.
//!
//! An entry that is evicted is removed by a DEL in the log. Only the leader evicts.

use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;

use super::Engine;
use super::change::{Change, LongOld};
use super::command::may_store;
use super::entry::Entry;
use super::execute::NotDone;
use super::memory::{Full, Memory, MemoryLimit, allocation_bytes};
use super::store::{Entries, Store};
use crate::log::backlog::Records;
use crate::wire::request::HEADER_LEN;
use crate::wire::{KEY_LEN_MAX, Request, Run};

/// Bits of a word.
const WORD: usize = 64;

/// The bits of a table's places. They are read and set with the partition locked for reading, and moved with it locked
/// for writing.
#[derive(Debug, Default)]
pub(super) struct Marks {
    words: Vec<AtomicU64>,
    len: usize,
}

impl Marks {
    /// Bits for a table of `buckets` places, none of them set.
    pub(super) fn new(buckets: usize) -> Marks {
        let words = 0..buckets.div_ceil(WORD);
        Marks {
            words: words.map(|_| AtomicU64::new(0)).collect(),
            len: buckets,
        }
    }

    /// Places of a partition's table.
    pub(super) fn len_of(entries: &Entries) -> usize {
        entries.table.num_buckets()
    }

    /// Places of the table.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Sets the bit of a place.
    #[inline]
    pub(super) fn set(&self, bucket: usize) {
        let Some(word) = self.words.get(bucket / WORD) else {
            return;
        };
        let bit = 1 << (bucket % WORD);
        // Entries in use have their bits set most of the time; a write would take the cache line from other readers.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether the bit of a place is set.
    pub(super) fn is_set(&self, bucket: usize) -> bool {
        let word = self.words.get(bucket / WORD);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (bucket % WORD) & 1 == 1)
    }

    /// Clears the bit of a place, and returns whether it was set. The partition is locked for writing.
    pub(super) fn clear(&mut self, bucket: usize) -> bool {
        let was_set = self.is_set(bucket);
        if was_set && let Some(word) = self.words.get_mut(bucket / WORD) {
            *word.get_mut() &= !(1 << (bucket % WORD));
        }
        was_set
    }
}

/// The place that the hand points at: a partition, and a place in its table. It moves only while that partition is
/// locked for writing.
#[derive(Debug, Default)]
pub(super) struct Hand(AtomicU64);

/// Bits of the place in a [`Hand`]; those above are the partition.
const BUCKET_BITS: u32 = 48;

impl Hand {
    /// Partition and place.
    pub(super) fn get(&self) -> (usize, usize) {
        let at = self.0.load(Ordering::Relaxed);
        let bucket = at & ((1 << BUCKET_BITS) - 1);
        let whole = |number| usize::try_from(number).unwrap_or(0);
        (whole(at >> BUCKET_BITS), whole(bucket))
    }

    /// Moves it.
    pub(super) fn set(&self, partition: usize, bucket: usize) {
        self.0.store(
            (partition as u64) << BUCKET_BITS | bucket as u64,
            Ordering::Relaxed,
        );
    }

    /// Moves it behind the last place of a partition, if it points into that partition, which is locked for writing.
    pub(super) fn leave(&self, partition: usize) {
        if self.get().0 == partition {
            self.set(partition, (1 << BUCKET_BITS) - 1);
        }
    }
}

/// Most entries that are removed with their partition locked.
const EVICTED_MAX: usize = 16;

/// Places that the hand passes with their partition locked.
const PASSED_MAX: usize = 1 << 10;

/// Bytes of the DELs of one append, but for the first. A key has no more.
const RECORDS_BYTES: usize = 1 << 10;

/// Longest record of an eviction.
const RECORD_BYTES_MAX: usize = HEADER_LEN + KEY_LEN_MAX;

/// Entries that are removed at a time, about. A request does that twice at most: before it locks anything, and where it
/// is not executed for want of room. More of them are needed where a node recovers a data set above its own limit, or
/// begins to lead with one: each write removes some then, and gets FULL, until the rest fits.
const EVICTED_AT_ONCE: u32 = 16 << 10;

/// The result of a visit of the hand.
#[derive(Default)]
struct Visit {
    evicted: ArrayVec<Entry, EVICTED_MAX>,
    /// Their DELs.
    records: Vec<u8>,
    /// An entry that is to be removed, and whose digest is needed first.
    long: Option<LongOld>,
}

impl Engine {
    /// Makes room for the writes of a run, where entries are evicted: before they lock anything, since nothing is
    /// removed from other partitions with theirs locked.
    #[cold]
    #[inline(never)]
    pub(super) fn make_room_ahead(&self, run: &Run<'_>) -> Result<(), NotDone> {
        match self.store.memory() {
            // Nothing makes room for writes that are refused.
            Some(_) if self.log().is_some_and(|log| !log.has_space(false)) => Ok(()),
            Some(memory) if memory.limit.evicts && run.writes() != 0 => {
                // About what they need if all their keys are new.
                let storing = run.frames().filter(|frame| may_store(frame.opcode()));
                let len: usize = storing.map(|frame| frame.bytes().len()).sum();
                let needed = allocation_bytes(len);
                if len == 0 || needed > memory.evicted_max() {
                    return Ok(());
                }
                match self.evict(memory, needed) {
                    // Its reads may be admitted where its writes are not.
                    Ok(_) | Err(NotDone::Refused) => Ok(()),
                    Err(not_done) => Err(not_done),
                }
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes room for a write that was not executed for want of it. Nothing is locked.
    ///
    /// # Errors
    ///
    /// Where there can be none, and while writes are held.
    #[cold]
    pub(super) fn make_room(&self, full: Full) -> Result<(), NotDone> {
        if let Some(memory) = self.store.memory() {
            if memory.limit.evicts
                && full.needed <= memory.evicted_max()
                && self.evict(memory, full.needed)?
            {
                return Ok(());
            }
            memory.count_refused();
        }
        Err(NotDone::Full(full))
    }

    /// Removes entries until `needed` more bytes fit. Returns false where nothing is left to be removed, and where that
    /// takes more than are removed at a time.
    ///
    /// The records take room in the log beyond its capacity: the writer may hold so much of it that there is none left,
    /// and they are fewer bytes than what they remove.
    fn evict(&self, memory: &Memory, needed: u64) -> Result<bool, NotDone> {
        let mut change = Change::new(self.sequencer.is_some());
        // The hand may clear all bits in one turn, and has to pass the place where it began in the next.
        let (mut turns, mut evicted) = (0, 0);
        while memory.excess(needed) > 0 {
            if evicted > EVICTED_AT_ONCE {
                return Ok(false);
            }
            let (partition, from) = memory.hand.get();
            let room = match &self.sequencer {
                Some(sequencer) => {
                    let cost = Records::cost(RECORDS_BYTES + RECORD_BYTES_MAX);
                    let room = sequencer.reserve_beyond(cost);
                    Some((sequencer, room.ok_or(NotDone::NoRoom { cost })?))
                }
                None => None,
            };
            let mut entries = self.store.write_partition(partition);
            if memory.hand.get() != (partition, from) {
                continue;
            }
            let epoch = self.admitted(true)?;
            let (visit, to) = self.store.visit(
                (memory, needed),
                &mut entries,
                (partition, from),
                &mut change,
            );
            match to {
                Some(bucket) => memory.hand.set(partition, bucket),
                None => {
                    let next = (partition + 1) % self.store.partitions();
                    memory.hand.set(next, 0);
                    turns += u32::from(next == 0);
                }
            }
            let count = u32::try_from(visit.evicted.len()).unwrap_or(u32::MAX);
            if count > 0 {
                if let Some((sequencer, room)) = room {
                    let records = Records::Frames(visit.records);
                    entries.last_index =
                        sequencer.append(epoch, records, count, change.digest(), room);
                }
                change = Change::new(self.sequencer.is_some());
                memory.count_evicted(count.into());
                evicted += count;
                turns = 0;
            }
            let index = entries.last_index;
            drop(entries);
            self.reached(index);
            drop(visit.evicted);
            if let Some(long) = visit.long {
                change.learn(long);
            }
            if turns > 2 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Entries that made room for others, and writes that were refused, so far.
    #[must_use]
    pub fn evicted_and_refused(&self) -> [u64; 2] {
        let [evicted, refused] = self.store.memory().map_or([0; 2], Memory::counts);
        let for_space = self.refused_for_space.load(Ordering::Relaxed);
        [evicted, refused + for_space]
    }

    /// The message of FULL (GBP §7).
    #[must_use]
    pub fn message_of(&self, full: Full) -> String {
        let memory = self.store.memory();
        memory.map_or_else(String::new, |memory| memory.message(full))
    }

    /// Bytes of memory that the data set takes; as exact as [`len`](Self::len).
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.store.memory_bytes()
    }

    /// The limit of that; `None` where there is none.
    #[must_use]
    pub fn memory_limit(&self) -> Option<MemoryLimit> {
        self.store.memory().map(|memory| memory.limit)
    }
}

impl Store {
    /// Has the hand pass places of a locked partition from `from` on, until `needed` more bytes fit, or for as long as
    /// a visit may last. Returns the place where it stands then; `None` at the end of the table.
    fn visit(
        &self,
        (memory, needed): (&Memory, u64),
        entries: &mut Entries,
        (partition, from): (usize, usize),
        change: &mut Change,
    ) -> (Visit, Option<usize>) {
        let mut visit = Visit::default();
        let place = u16::try_from(partition).unwrap_or(u16::MAX);
        let (mut bucket, rehashes) = (from, self.rehashes(partition));
        while bucket < entries.table.num_buckets() {
            let is_over = visit.evicted.is_full()
                || visit.records.len() >= RECORDS_BYTES
                || bucket - from >= PASSED_MAX
                || memory.excess(needed) == 0;
            if is_over {
                return (visit, Some(bucket));
            }
            let len = Marks::len_of(entries);
            if memory.marks_mut(place, len).clear(bucket) {
                bucket += 1;
                continue;
            }
            let Some(entry) = entries.table.get_bucket(bucket) else {
                bucket += 1;
                continue;
            };
            let (start, hash) = (visit.records.len(), self.hash(entry.key()));
            let del = Request::Del { key: entry.key() };
            del.encode(&mut visit.records)
                .unwrap_or_else(|_| unreachable!("a stored key came in a frame"));
            let key = &visit.records[start + HEADER_LEN..];
            match self.take(entries, hash, key, None, change) {
                Ok(removed) => visit.evicted.extend(removed),
                // Its place is where the hand stands when the digest is known.
                Err(long) => {
                    visit.records.truncate(start);
                    visit.long = Some(long);
                    return (visit, Some(bucket));
                }
            }
            // The table has shrunk: its entries have other places now.
            if self.rehashes(partition) != rehashes {
                return (visit, None);
            }
            bucket += 1;
        }
        (visit, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_set_and_cleared_alone() {
        let mut marks = Marks::new(130);
        for bucket in [0, 63, 64, 129] {
            assert!(!marks.is_set(bucket));
            marks.set(bucket);
            marks.set(bucket);
        }
        let set: Vec<usize> = (0..200).filter(|&bucket| marks.is_set(bucket)).collect();
        assert_eq!(set, [0, 63, 64, 129]);
        assert!(marks.clear(64) && !marks.clear(64) && !marks.clear(1));
        assert!(marks.is_set(63) && marks.is_set(129));
        // Beyond the table there is none.
        marks.set(1_000);
        assert!(!marks.is_set(1_000) && !marks.clear(1_000));
    }

    #[test]
    fn a_hand_holds_a_partition_and_a_place() {
        let hand = Hand::default();
        assert_eq!(hand.get(), (0, 0));
        hand.set(65_535, 1 << 40);
        assert_eq!(hand.get(), (65_535, 1 << 40));
    }
}
