//! SCAN (GBP §4): reads the keys of a store, or its entries, piece by piece.
//!
//! # Contract
//!
//! A scan returns each key exactly once that exists throughout, whatever is written meanwhile.
//!
//! It visits one partition after another, and a key never leaves its partition. Within a partition, one request returns
//! the keys from `from` on and below the `from` of its answer, in the order of the keys' bytes, which writes do not
//! change. So what remains to be shown is that a request misses no key of that range and returns none twice.
//!
//! A request visits the buckets of the partition's table in their order, a few under each read lock
//! (`BUCKETS_PER_LOCK`). An entry stays in its bucket as long as its key exists, except where the table is rehashed:
//! to grow, to shrink, or to reuse the buckets of removed entries. The store counts these, and the request begins the
//! partition again where the count has changed, before anything of it is answered. After `RESTARTS_MAX` such restarts
//! it visits the partition under one lock, so that it ends whatever is written. A table that was rehashed as often has
//! delayed its clients by more.
//!
//! # Bounds
//!
//! A request ends between two partitions where it has reached one of its [`Bounds`]. Where the answer would exceed its
//! hard limits within one, the request returns the lowest keys that fit, and the next request visits the partition
//! again for the others. The gathered items are cut down to these limits whenever there are twice as many.

use std::hint::black_box;
use std::ops::Range;

use arrayvec::ArrayVec;

use super::Engine;
use super::clock::Now;
use super::comparison::{begin, partitions};
use super::compute::is_live;
use super::entry::{Entry, SHORT_BYTES};
use super::store::Entries;
use crate::log::Position;
use crate::wire::comparison::{ComparisonError, Place};
use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::run::RUN_MAX;
use crate::wire::scan::{KEY_LEN_BYTES, Scan, ScanError, encode_head};

/// Buckets of a table that are visited under one lock.
const BUCKETS_PER_LOCK: usize = 1 << 10;

/// Restarts of a partition after which it is visited under one lock.
const RESTARTS_MAX: u32 = 4;

/// Bytes of an answer before its items, with a key of the length that most have.
const ANSWER_HEAD_BYTES: usize = 64;

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Items after which no further partition is visited.
    pub items: usize,
    /// Bytes of items after which no further partition is visited. Twice as many end the answer within one.
    pub bytes: usize,
    /// Entries after which no further partition is visited, be they wanted or not.
    pub visited: usize,
    /// Buckets of a table that are visited under one lock.
    pub buckets_per_lock: usize,
    /// Called after each lock. Nothing by default; tests write to the store there.
    pub between_locks: fn(),
}

impl Default for Bounds {
    /// The bounds in GBP §4: 8,192 items, 512 KiB and 131,072 entries.
    fn default() -> Bounds {
        Bounds {
            items: 1 << 13,
            bytes: 512 << 10,
            visited: 1 << 17,
            buckets_per_lock: BUCKETS_PER_LOCK,
            between_locks: || {},
        }
    }
}

/// Why a SCAN was not carried out.
#[derive(Debug)]
pub enum NotScanned {
    /// No reads are admitted.
    Refused,
    /// The request is not acceptable.
    Fault(ScanError),
}

impl From<ScanError> for NotScanned {
    fn from(error: ScanError) -> NotScanned {
        NotScanned::Fault(error)
    }
}

impl Engine {
    /// Carries out a SCAN. Returns the value of its OK, and the position that the answer waits for.
    ///
    /// # Errors
    ///
    /// Where no reads are admitted, or the request is not acceptable.
    pub fn scan(&self, request: &Scan, bounds: Bounds) -> Result<(Vec<u8>, Position), NotScanned> {
        let store = &self.store;
        let mut next = begin(store, &request.place).map_err(|error| {
            let incarnation = request.place.incarnation;
            if error == ComparisonError::Incarnation {
                ScanError::Incarnation { incarnation }
            } else {
                ScanError::Place(error)
            }
        })?;
        let partitions = partitions(store);
        let mut piece = Piece::new(self, request, bounds);
        while !next.is_end(partitions) && !piece.is_full() {
            let partition = usize::try_from(next.partition).unwrap_or(usize::MAX);
            match piece.visit(partition, &next.from)? {
                Some(from) => {
                    next.from = from;
                    break;
                }
                None => {
                    next.partition += 1;
                    next.from.clear();
                }
            }
        }
        Ok((piece.answer(partitions, &next)?, piece.position))
    }
}

/// The part of a scan that one request covers.
struct Piece<'r> {
    engine: &'r Engine,
    request: &'r Scan,
    bounds: Bounds,
    now: Now<'r>,
    form: Form,
    /// Items that were copied under a lock, as the answer has them.
    short: Vec<u8>,
    /// Entries whose items are copied once nothing is locked.
    long: Vec<Entry>,
    size: Size,
    /// Entries that were visited, be they wanted or not.
    visited: usize,
    position: Position,
}

/// Number of items, and their bytes in the answer.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    items: usize,
    bytes: usize,
}

/// The lengths of a piece before a partition was added to it.
#[derive(Clone, Copy)]
struct Mark {
    short: usize,
    long: usize,
    size: Size,
    visited: usize,
}

/// The table was rehashed between two of its locks.
struct Rehashed;

impl<'r> Piece<'r> {
    fn new(engine: &'r Engine, request: &'r Scan, bounds: Bounds) -> Piece<'r> {
        Piece {
            engine,
            request,
            bounds,
            now: Now::of(&engine.clock),
            form: if request.with_values {
                Form::Frames
            } else {
                Form::Keys
            },
            short: Vec::new(),
            long: Vec::new(),
            size: Size::default(),
            visited: 0,
            position: Position::default(),
        }
    }

    /// Most items of the answer.
    fn items_max(&self) -> usize {
        match self.request.max {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        }
    }

    /// Whether no further partition is visited.
    fn is_full(&self) -> bool {
        self.size.items >= self.bounds.items.min(self.items_max())
            || self.size.bytes >= self.bounds.bytes
            || self.visited >= self.bounds.visited
    }

    /// Whether the answer may have these items, and is not cut within a partition.
    fn has_room_for(&self, size: Size) -> bool {
        let bytes_max = 2 * self.bounds.bytes;
        size.items <= 1 || (size.items <= self.items_max() && size.bytes <= bytes_max)
    }

    /// Takes the wanted keys of a partition from `from` on. Returns the first one that has no room.
    fn visit(&mut self, partition: usize, from: &[u8]) -> Result<Option<Vec<u8>>, NotScanned> {
        let mark = Mark {
            short: self.short.len(),
            long: self.long.len(),
            size: self.size,
            visited: self.visited,
        };
        let mut restarts = 0;
        loop {
            let count = match restarts {
                RESTARTS_MAX.. => usize::MAX,
                _ => self.bounds.buckets_per_lock,
            };
            match self.pass(partition, from, mark, count)? {
                Ok(end) => return Ok(self.cut(mark).or(end)),
                Err(Rehashed) => {
                    restarts += 1;
                    self.short.truncate(mark.short);
                    self.long.truncate(mark.long);
                    (self.size, self.visited) = (mark.size, mark.visited);
                }
            }
        }
    }

    /// Visits all buckets of a partition, `count` under each lock. Returns the first key that was gathered and had no
    /// room.
    fn pass(
        &mut self,
        partition: usize,
        from: &[u8],
        mark: Mark,
        count: usize,
    ) -> Result<Result<Option<Vec<u8>>, Rehashed>, NotScanned> {
        let store = &self.engine.store;
        let (mut at, mut rehashes, mut end) = (0_usize, None, None::<Vec<u8>>);
        loop {
            // Getting memory from the system takes longer than filling it.
            let most = count.min(self.bounds.buckets_per_lock);
            self.short.reserve(most * (SHORT_BYTES + KEY_LEN_BYTES));
            let gathered = self.long.len();
            let range = Wanted {
                prefix: &self.request.prefix,
                from,
                end: end.as_deref(),
            };
            let entries = store.read_partition(partition);
            let Ok(epoch) = self.engine.admitted(false) else {
                return Err(NotScanned::Refused);
            };
            let now = store.rehashes(partition);
            if *rehashes.get_or_insert(now) != now {
                return Ok(Err(Rehashed));
            }
            let buckets = entries.table.num_buckets();
            let until = buckets.min(at.saturating_add(count));
            self.gather(&entries, at..until, &range);
            self.note(&entries, epoch, at == 0);
            drop(entries);
            (self.bounds.between_locks)();
            self.weigh_long(gathered, &range);
            at = until;
            if at == buckets {
                return Ok(Ok(end));
            }
            if !self.has_room_for(self.size.half()) {
                end = self.cut(mark).or(end);
            }
        }
    }

    /// Copies the wanted entries of some buckets of a locked partition. Long ones are cloned, wanted or not.
    fn gather(&mut self, entries: &Entries, buckets: Range<usize>, wanted: &Wanted<'_>) {
        let mut rest = buckets.filter_map(|bucket| entries.table.get_bucket(bucket));
        loop {
            // As in a run: the processor overlaps the misses.
            let some: ArrayVec<&Entry, RUN_MAX> = rest.by_ref().take(RUN_MAX).collect();
            if some.is_empty() {
                return;
            }
            match self.form {
                Form::Frames => {
                    black_box(some.iter().fold(0, |sum, entry| sum ^ entry.touch()));
                }
                Form::Keys => {
                    let ends = some.iter().filter_map(|entry| entry.key().last());
                    black_box(ends.fold(0, |sum, byte| sum ^ byte));
                }
            }
            for entry in some {
                if !is_live(entry, &self.now) {
                    continue;
                }
                let item = self.form.of(entry);
                if item.len() > SHORT_BYTES {
                    self.long.push(entry.clone());
                } else if wanted.has(entry.key()) {
                    self.form.push(item, &mut self.short);
                    self.size = self.size.with(self.form, item);
                }
            }
        }
    }

    /// Notes that a locked partition was visited.
    fn note(&mut self, entries: &Entries, epoch: u64, is_first: bool) {
        if is_first {
            self.visited += entries.table.len();
        }
        if self.position == Position::default() {
            self.position.epoch = epoch;
        }
        self.position.index = self.position.index.max(entries.last_index);
    }

    /// Keeps those of the long entries from `gathered` on that are wanted.
    fn weigh_long(&mut self, gathered: usize, wanted: &Wanted<'_>) {
        for entry in self.long.split_off(gathered) {
            if wanted.has(entry.key()) {
                self.size = self.size.with(self.form, self.form.of(&entry));
                self.long.push(entry);
            }
        }
    }

    /// Removes the highest keys of a partition for which there is no room, and returns the lowest of these.
    fn cut(&mut self, mark: Mark) -> Option<Vec<u8>> {
        if self.has_room_for(self.size) {
            return None;
        }
        let mut items = self.form.gathered(&self.short[mark.short..]);
        items.extend(self.long[mark.long..].iter().map(Gathered::Long));
        items.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        // A key that was removed and stored again may lie in two of the buckets.
        items.dedup_by(|a, b| a.key() == b.key());
        let (mut size, mut short, mut long, mut end) = (mark.size, Vec::new(), Vec::new(), None);
        for gathered in items {
            let whole = match gathered {
                Gathered::Short { item, .. } => size.with(self.form, item),
                Gathered::Long(entry) => size.with(self.form, self.form.of(entry)),
            };
            if !self.has_room_for(whole) {
                end = Some(gathered.key().to_vec());
                break;
            }
            size = whole;
            match gathered {
                Gathered::Short { item, .. } => self.form.push(item, &mut short),
                Gathered::Long(entry) => long.push(entry.clone()),
            }
        }
        self.short.truncate(mark.short);
        self.short.extend_from_slice(&short);
        self.long.truncate(mark.long);
        self.long.append(&mut long);
        self.size = size;
        end
    }

    /// The value of the OK.
    fn answer(&self, partitions: u32, next: &Place) -> Result<Vec<u8>, ScanError> {
        let mut answer = Vec::with_capacity(self.size.bytes + ANSWER_HEAD_BYTES);
        encode_head(partitions, next, self.request.with_values, &mut answer);
        answer.extend_from_slice(&self.short);
        for entry in &self.long {
            self.form.push(self.form.of(entry), &mut answer);
        }
        if u32::try_from(answer.len()).is_err() {
            let len = self.long.first().map_or(0, |entry| entry.frame().len());
            return Err(ScanError::TooLong { len });
        }
        Ok(answer)
    }
}

/// The keys of a partition that are wanted.
struct Wanted<'w> {
    prefix: &'w [u8],
    /// The first key in the order of their bytes.
    from: &'w [u8],
    /// The first key behind them.
    end: Option<&'w [u8]>,
}

impl Wanted<'_> {
    fn has(&self, key: &[u8]) -> bool {
        // Comparing with nothing takes longer than looking at a key: `memcmp` is then called with an address where no
        // memory is, and its masked load is slow there.
        (self.prefix.is_empty() || key.starts_with(self.prefix))
            && (self.from.is_empty() || key >= self.from)
            && self.end.is_none_or(|end| key < end)
    }
}

impl Size {
    /// The size with one item more.
    const fn with(self, form: Form, item: &[u8]) -> Size {
        Size {
            items: self.items + 1,
            bytes: self.bytes + form.before() + item.len(),
        }
    }

    const fn half(self) -> Size {
        Size {
            items: self.items / 2,
            bytes: self.bytes / 2,
        }
    }
}

/// Form of the items.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Keys behind their lengths.
    Keys,
    /// The entries' frames.
    Frames,
}

/// An item that was gathered.
enum Gathered<'p> {
    Short { key: &'p [u8], item: &'p [u8] },
    Long(&'p Entry),
}

impl<'p> Gathered<'p> {
    fn key(&self) -> &'p [u8] {
        match self {
            Gathered::Short { key, .. } => key,
            Gathered::Long(entry) => entry.key(),
        }
    }
}

impl Form {
    /// The item of an entry, without what is before it.
    fn of(self, entry: &Entry) -> &[u8] {
        match self {
            Form::Keys => entry.key(),
            Form::Frames => entry.frame(),
        }
    }

    /// Bytes before an item.
    const fn before(self) -> usize {
        match self {
            Form::Keys => KEY_LEN_BYTES,
            Form::Frames => 0,
        }
    }

    /// Appends an item and what is before it.
    fn push(self, item: &[u8], out: &mut Vec<u8>) {
        match self {
            Form::Keys => {
                // A key came in a frame, whose length field is as wide.
                let len = u16::try_from(item.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&len.to_be_bytes());
            }
            Form::Frames => {}
        }
        out.extend_from_slice(item);
    }

    /// Items that were pushed.
    fn gathered(self, mut bytes: &[u8]) -> Vec<Gathered<'_>> {
        let mut items = Vec::new();
        while let Some((key, item, rest)) = self.split(bytes) {
            items.push(Gathered::Short { key, item });
            bytes = rest;
        }
        items
    }

    /// The first item, with its key before it and the bytes behind it.
    fn split(self, bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
        match self {
            Form::Keys => {
                let (len, rest) = bytes.split_first_chunk()?;
                let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                Some((key, key, rest))
            }
            Form::Frames => {
                let header = RequestHeader::decode(*bytes.first_chunk()?);
                let (frame, rest) = bytes.split_at_checked(header.frame_len())?;
                let key = &frame[HEADER_LEN..HEADER_LEN + usize::from(header.key_len)];
                Some((key, frame, rest))
            }
        }
    }
}
