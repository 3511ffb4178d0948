//! The map: which entry every key has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::hint::{black_box, spin_loop};
use std::ops::Deref;

use arrayvec::ArrayVec;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::engine::entry::{Entry, SHORT_BYTES};
use crate::wire::request::{HEADER_LEN, frames};
use crate::wire::run::{RUN_FRAME_BYTES_MAX, RUN_MAX, Run};
use crate::wire::{Request, RequestFrame};

/// Partitions of a node's store.
///
/// A table that grows moves all that it holds while its lock is held, so what one client can cost another is bounded
/// by the size of a partition and not of the store. `cargo bench --bench growth` shows the difference.
pub const PARTITIONS: usize = 1 << 10;

/// How often a partition of a run is tried.
const SPINS: u32 = 100;

/// A concurrent map from keys to entries, split into partitions with a lock each.
///
/// # Invariants
///
/// 1. A key lives in the partition that its hash names, and in no other.
/// 2. Nothing is freed or sent while a partition is locked, and no [long](Entry::is_long) entry copied, except that its
///    own table may grow or shrink: of short entries [`get`](Store::get) and [`copy_partition`](Store::copy_partition)
///    give copies, of long ones they clone a pointer; GETs copy values up to 1 KiB and clone the entries of longer
///    ones; [`set`](Store::set) and [`remove`](Store::remove) return what they replaced so that it is dropped
///    outside, and [`put`](Store::put) keeps it until nothing is locked; [`write`](Store::write) and runs are for
///    entries of a few KiB at the most and copy them under the lock, for then most can be overwritten where they are.
///    What is passed to be called under the lock may take the digest of a long entry, but of one alone.
/// 3. Who takes several partitions takes them in ascending order, and takes no other lock of the store's before.
///
/// # Runs
///
/// What a client asks for in one breath is carried out together ([`carry_out`](Store::carry_out)): all partitions of
/// a run are locked, for writing where it writes, then all its places are looked at, and only then is each request
/// carried out. Where the entries are not in the cache, the processor so waits for many of them
/// at once and not for one after the other.
///
/// # Hashing
///
/// SipHash under a key drawn at the start of the process: whoever chooses the keys of the entries cannot choose their
/// partition or their place in it.
#[derive(Debug)]
pub struct Store {
    partitions: Box<[Partition]>,
    hashing: RandomState,
}

/// One table, on cache lines of its own so that two cores with different partitions do not contend for a line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Partition(RwLock<Entries>);

/// Entries of one partition.
#[derive(Debug, Default)]
struct Entries {
    table: HashTable<Entry>,
    /// Bytes of all keys and values.
    bytes: u64,
}

/// The entries of a partition as they were at one moment, in no order ([`Store::copy_partition`]).
#[derive(Debug, Default)]
pub struct Copied {
    len: usize,
    short: Vec<u8>,
    long: Vec<Entry>,
}

impl Copied {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frames of the short ones, one after another.
    #[must_use]
    pub fn short(&self) -> &[u8] {
        &self.short
    }

    /// The [long](Entry::is_long) ones.
    #[must_use]
    pub fn long(&self) -> &[Entry] {
        &self.long
    }

    /// All of them.
    pub fn frames(&self) -> impl Iterator<Item = RequestFrame<'_>> {
        let long = self.long.iter();
        frames(&self.short).chain(long.flat_map(|entry| frames(entry.frame())))
    }
}

/// Entries that are to be put into a store together ([`Store::put`]). Nothing is allocated or locked between two that
/// go into one partition, so the processor waits for the places of many at once.
#[derive(Debug, Default)]
pub struct Staged {
    /// In the order in which they came.
    entries: Vec<StagedEntry>,
    /// Of each partition where the places of its entries end in `order`; one more than there are partitions.
    ends: Vec<usize>,
    /// Places in `entries`, by partition, and those of a partition in the order in which they came.
    order: Vec<usize>,
}

/// What putting an entry in needs to know of it, beside it: looking it up there would be to wait for it once more.
#[derive(Debug)]
struct StagedEntry {
    hash: u64,
    size: u64,
    /// The one that it has replaced, once it is put in.
    entry: Option<Entry>,
}

impl Staged {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Bytes of an entry's key and value.
fn size(entry: &Entry) -> u64 {
    u64::try_from(entry.key().len() + entry.value().len()).unwrap_or(u64::MAX)
}

/// The partitions of a run.
struct Locked<'a> {
    guards: ArrayVec<Guard<'a>, RUN_MAX>,
    /// Which of them each request of the run needs.
    guard_of: [u8; RUN_MAX],
}

/// A partition that is locked, for what a run needs it for.
enum Guard<'a> {
    Read(RwLockReadGuard<'a, Entries>),
    Write(RwLockWriteGuard<'a, Entries>),
}

impl Deref for Guard<'_> {
    type Target = Entries;

    fn deref(&self) -> &Entries {
        match self {
            Guard::Read(entries) => entries,
            Guard::Write(entries) => entries,
        }
    }
}

/// A run that was not carried out, none of it: another thread holds a partition of it and seems not to run. Its
/// requests are to be carried out one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

/// Tries for as long as a run takes somebody who is running, about.
fn spin<G>(mut lock: impl FnMut() -> Option<G>) -> Option<G> {
    for _ in 0..SPINS {
        if let Some(guard) = lock() {
            return Some(guard);
        }
        spin_loop();
    }
    lock()
}

impl Locked<'_> {
    fn of(&self, at: usize) -> &Entries {
        &self.guards[usize::from(self.guard_of[at])]
    }

    fn of_mut(&mut self, at: usize) -> &mut Entries {
        match &mut self.guards[usize::from(self.guard_of[at])] {
            Guard::Write(entries) => entries,
            Guard::Read(_) => {
                unreachable!("locked for writing, as a request of the run writes there")
            }
        }
    }

    /// Has all that the run needs brought into the cache at once: two short loops whose rounds do not depend on each
    /// other, so the processor runs ahead of the misses.
    /// Gives the length of the longest frame among what the writes of the run seem to touch, and a bit for each request
    /// whose key has no entry.
    fn touch(&self, hashes: &ArrayVec<u64, RUN_MAX>, writes: u16) -> (usize, u16) {
        let places = hashes.iter().enumerate();
        let found: ArrayVec<Option<&Entry>, RUN_MAX> = places
            .map(|(at, &hash)| self.of(at).table.iter_hash(hash).next())
            .collect();
        let (mut longest, mut sum, mut vacant) = (0, 0, 0);
        for (at, entry) in found.into_iter().enumerate() {
            let Some(entry) = entry else {
                vacant |= 1 << at;
                continue;
            };
            if writes >> at & 1 == 1 {
                longest = longest.max(entry.frame().len());
            }
            sum ^= entry.touch();
        }
        black_box(sum);
        (longest, vacant)
    }
}

/// Entries for those SETs of a run whose bit in `vacant` is set.
///
/// All before the first is put in: the allocator's lock waits for all stores before it, and one into a table's place
/// mostly misses the cache.
fn new_entries(run: &Run<'_>, vacant: u16) -> ArrayVec<Option<Entry>, RUN_MAX> {
    if vacant & run.writes() == 0 {
        return ArrayVec::new();
    }
    let entry = |(at, frame): (usize, RequestFrame<'_>)| {
        let is_set = matches!(frame.request(), Request::Set { .. });
        (is_set && vacant >> at & 1 == 1).then(|| Entry::copy_of(&frame))
    };
    run.frames().enumerate().map(entry).collect()
}

impl Default for Store {
    fn default() -> Store {
        Store::with_partitions(PARTITIONS)
    }
}

impl Store {
    /// An empty store of [`PARTITIONS`] partitions.
    #[must_use]
    pub fn new() -> Store {
        Store::default()
    }

    /// An empty store of `count` partitions, rounded up to a power of two; at most 2^16. For measurements.
    #[must_use]
    pub fn with_partitions(count: usize) -> Store {
        let count = count.clamp(1, 1 << 16).next_power_of_two();
        Store {
            partitions: (0..count).map(|_| Partition::default()).collect(),
            hashing: RandomState::new(),
        }
    }

    /// A clone of the entry of `key`, which is a copy of a short one; [`look`](Self::look) makes none.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.look(key, |entry| entry.cloned())
    }

    /// What `at` makes of the entry of `key`, whose partition is locked for reading meanwhile.
    pub fn look<T>(&self, key: &[u8], at: impl FnOnce(Option<&Entry>) -> T) -> T {
        let hash = self.hash(key);
        let entries = self.partition(hash).read();
        at(entries.table.find(hash, |entry| entry.key() == key))
    }

    /// Carries out one SET or DEL, and returns the entry that it replaced. `before` is called with the entry that its
    /// key has, except for a DEL that finds none: that does nothing. The partition is then locked for writing, so
    /// what is done there has the same order for each key as the changes of the map.
    pub fn write(
        &self,
        frame: &RequestFrame<'_>,
        before: impl FnOnce(Option<&Entry>),
    ) -> Option<Entry> {
        let key = frame.request().key();
        let hash = self.hash(key);
        let entries = &mut *self.partition(hash).write();
        match frame.request() {
            Request::Del { .. } => self.take(entries, hash, key, |old| before(Some(old))),
            _ => self.overwrite(entries, hash, frame, || Entry::copy_of(frame), before),
        }
    }

    /// Carries out the requests of `run` in their order; nobody sees a part of it. Returns entries that were replaced.
    ///
    /// `each` is called for each request before it is carried out, with its place in the run and the entry that its key
    /// has. Where it gives false for a GET, that and what follows is left. `done` is called once all are carried out
    /// and while everything is still locked: what is done there has the same order for each key as the changes of the
    /// map. Both are given `state`.
    ///
    /// # Errors
    ///
    /// [`Contended`], where a partition is not to be had soon, or a long entry may be replaced; nothing is done then.
    pub fn carry_out<S>(
        &self,
        run: &Run<'_>,
        state: &mut S,
        mut each: impl FnMut(&mut S, usize, &RequestFrame<'_>, Option<&Entry>) -> bool,
        done: impl FnOnce(&mut S),
    ) -> Result<Vec<Entry>, Contended> {
        let keys = run.frames().map(|frame| frame.request().key());
        let hashes = keys.map(|key| self.hash(key)).collect();
        let mut locked = self.lock(&hashes, run.writes())?;
        let (longest, vacant) = locked.touch(&hashes, run.writes());
        if longest > RUN_FRAME_BYTES_MAX {
            return Err(Contended);
        }
        let mut new = new_entries(run, vacant);
        let mut replaced = Vec::new();
        for (at, (frame, &hash)) in run.frames().zip(&hashes).enumerate() {
            let key = frame.request().key();
            let mut each = |old: Option<&Entry>| each(state, at, &frame, old);
            match frame.request() {
                Request::Set { .. } => {
                    let before = |old: Option<&Entry>| _ = each(old);
                    let make = || {
                        let made = new.get_mut(at).and_then(Option::take);
                        made.unwrap_or_else(|| Entry::copy_of(&frame))
                    };
                    replaced.extend(self.overwrite(locked.of_mut(at), hash, &frame, make, before));
                }
                Request::Del { .. } => {
                    let before = |old: &Entry| _ = each(Some(old));
                    let removed = self.take(locked.of_mut(at), hash, key, before);
                    if removed.is_none() {
                        each(None);
                    }
                    replaced.extend(removed);
                }
                _ => {
                    if !each(locked.of(at).table.find(hash, |entry| entry.key() == key)) {
                        break;
                    }
                }
            }
        }
        done(state);
        drop(locked);
        Ok(replaced)
    }

    /// Puts the entry of a SET frame under its key: in the place of the old one if it fits there, else the one that
    /// `make` makes.
    fn overwrite(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        make: impl FnOnce() -> Entry,
        before: impl FnOnce(Option<&Entry>),
    ) -> Option<Entry> {
        let (key, value) = (frame.request().key(), frame.request().value());
        entries.bytes += u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        match self.slot(&mut entries.table, hash, |entry| entry.key() == key) {
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                before(Some(entry));
                entries.bytes -= size(entry);
                let fits = entry.overwrite(frame);
                (!fits).then(|| std::mem::replace(entry, make()))
            }
            Slot::Vacant(slot) => {
                before(None);
                slot.insert(make());
                None
            }
        }
    }

    /// The place of the entry that `is_it` in a table, or one for it.
    fn slot<'t>(
        &self,
        table: &'t mut HashTable<Entry>,
        hash: u64,
        is_it: impl FnMut(&Entry) -> bool,
    ) -> Slot<'t, Entry> {
        if table.len() == table.capacity() {
            // It grows now, and looks at each key that it holds. They lie all over memory: one after the other, each is
            // waited for, with its hashing between; here the processor waits for many at once.
            let ends = table.iter().filter_map(|entry| entry.key().last());
            black_box(ends.fold(0, |sum, byte| sum ^ byte));
        }
        table.entry(hash, is_it, |entry| self.hash(entry.key()))
    }

    /// Puts `entry` under its key and returns the one that it replaced.
    pub fn set(&self, entry: Entry) -> Option<Entry> {
        self.set_with(entry, |_, _| {})
    }

    /// Removes `key` and returns its entry.
    pub fn remove(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        self.take(&mut self.partition(hash).write(), hash, key, |_| {})
    }

    /// Puts `entry` under its key and returns the one that it replaced. Calls `before` with the new entry and the old
    /// one while the partition is locked for writing and the change is not made yet: what is done there has the same
    /// order for each key as the changes of the map.
    pub fn set_with(
        &self,
        entry: Entry,
        before: impl FnOnce(&Entry, Option<&Entry>),
    ) -> Option<Entry> {
        let hash = self.hash(entry.key());
        let entries = &mut *self.partition(hash).write();
        entries.bytes += size(&entry);
        let key = entry.key();
        match self.slot(&mut entries.table, hash, |old| old.key() == key) {
            Slot::Occupied(mut slot) => {
                before(&entry, Some(slot.get()));
                entries.bytes -= size(slot.get());
                Some(std::mem::replace(slot.get_mut(), entry))
            }
            Slot::Vacant(slot) => {
                before(&entry, None);
                slot.insert(entry);
                None
            }
        }
    }

    /// Keeps `entry` to be put in with others.
    pub fn stage(&self, staged: &mut Staged, entry: Entry) {
        staged.entries.push(StagedEntry {
            hash: self.hash(entry.key()),
            size: size(&entry),
            entry: Some(entry),
        });
    }

    /// Puts in all that is staged, as [`set`](Self::set) does with one after another in the order in which they came.
    /// `replaced` is called with those that were replaced, while nothing is locked.
    pub fn put(&self, staged: &mut Staged, mut replaced: impl FnMut(&Entry)) {
        let Staged {
            entries: all,
            ends,
            order,
        } = staged;
        ends.clear();
        ends.resize(self.partitions.len() + 1, 0);
        for entry in &*all {
            ends[usize::from(self.place(entry.hash)) + 1] += 1;
        }
        for at in 1..ends.len() {
            ends[at] += ends[at - 1];
        }
        order.clear();
        order.resize(all.len(), 0);
        for (at, entry) in all.iter().enumerate() {
            // What was the end of the partition before it becomes its own.
            let end = &mut ends[usize::from(self.place(entry.hash))];
            order[*end] = at;
            *end += 1;
        }
        let mut start = 0;
        for (partition, &end) in self.partitions.iter().zip(&*ends) {
            if start == end {
                continue;
            }
            let entries = &mut *partition.0.write();
            for &at in &order[start..end] {
                let StagedEntry {
                    hash,
                    size: bytes,
                    entry,
                } = &mut all[at];
                let Some(new) = entry.take() else { continue };
                entries.bytes += *bytes;
                let is_it = |old: &Entry| old.key() == new.key();
                match self.slot(&mut entries.table, *hash, is_it) {
                    Slot::Occupied(mut slot) => {
                        entries.bytes -= size(slot.get());
                        *entry = Some(std::mem::replace(slot.get_mut(), new));
                    }
                    Slot::Vacant(slot) => {
                        slot.insert(new);
                    }
                }
            }
            start = end;
        }
        for entry in all.drain(..) {
            entry.entry.iter().for_each(&mut replaced);
        }
    }

    fn take(
        &self,
        entries: &mut Entries,
        hash: u64,
        key: &[u8],
        before: impl FnOnce(&Entry),
    ) -> Option<Entry> {
        let table = &mut entries.table;
        let slot = table.find_entry(hash, |entry| entry.key() == key).ok()?;
        before(slot.get());
        entries.bytes -= size(slot.get());
        let (removed, _) = slot.remove();
        // An eighth: far enough from where a table grows that a client cannot make it do both in turn.
        if table.len() < table.capacity() / 8 {
            let twice = table.len() * 2;
            table.shrink_to(twice, |entry| self.hash(entry.key()));
        }
        Some(removed)
    }

    /// Removes everything, a partition at a time.
    pub fn clear(&self) {
        for partition in &self.partitions {
            // Freed after the lock is let go.
            let entries = std::mem::take(&mut *partition.0.write());
            drop(entries);
        }
    }

    /// Makes room for `count` entries in all, so that putting them in does not grow one table after the other.
    pub fn reserve(&self, count: usize) {
        // Keys spread evenly but not exactly; an eighth more than the mean is enough for any but the smallest shares.
        let each = count / self.partitions.len();
        for partition in &self.partitions {
            let entries = &mut *partition.0.write();
            let more = (each + each / 8).saturating_sub(entries.table.len());
            entries.table.reserve(more, |entry| self.hash(entry.key()));
        }
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// A number that is another one in every run of the program, as the partitions of keys are.
    #[must_use]
    pub fn run(&self) -> u64 {
        // One value of SipHash tells nothing of the others.
        self.hashing.hash_one(0_u64)
    }

    /// Which partition `key` lives in.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        usize::from(self.place(self.hash(key)))
    }

    /// Puts copies of all entries of one partition in the place of what `copied` has, and gives what `at` gives while
    /// no one writes there. Whoever copies one partition after another does it with the same `copied`: to have memory
    /// of the system takes longer than to fill it, and the partition is locked meanwhile.
    pub fn copy_partition<T>(
        &self,
        partition: usize,
        copied: &mut Copied,
        at: impl FnOnce() -> T,
    ) -> T {
        let Copied { len, short, long } = copied;
        short.clear();
        long.clear();
        let entries = self.partitions[partition].0.read();
        *len = entries.table.len();
        let bytes = usize::try_from(entries.bytes).unwrap_or(usize::MAX);
        // All that short ones can take.
        short.reserve(bytes.min(*len * SHORT_BYTES) + *len * HEADER_LEN);
        let mut rest = entries.table.iter();
        loop {
            // As in a run, so that the processor waits for many of them at once.
            let some: ArrayVec<&Entry, RUN_MAX> = rest.by_ref().take(RUN_MAX).collect();
            if some.is_empty() {
                return at();
            }
            black_box(some.iter().fold(0, |sum, entry| sum ^ entry.touch()));
            for entry in some {
                if entry.is_long() {
                    long.push(entry.clone());
                } else {
                    short.extend_from_slice(entry.frame());
                }
            }
        }
    }

    /// Number of entries. Partitions are counted one after another, so while others write it is near the truth.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = |part: &Partition| part.0.read().table.len();
        self.partitions.iter().map(len).sum()
    }

    /// Bytes of all keys and values; as exact as [`len`](Self::len).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|part| part.0.read().bytes).sum()
    }

    /// Whether there is no entry; as exact as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks the partitions of these hashes, each once and in ascending order.
    ///
    /// Who holds a partition and is not running, since there are more threads than cores, keeps all others out for as
    /// long as that lasts. Whoever waited for it with a part of a run locked would do the same to the rest, and soon
    /// every thread would wait for another one. So that is waited for only as long as one that runs may take.
    fn lock(&self, hashes: &ArrayVec<u64, RUN_MAX>, writes: u16) -> Result<Locked<'_>, Contended> {
        // Of the requests of one partition a write comes first, and decides how it is locked.
        let places = (0..).zip(hashes);
        let mut order: ArrayVec<(u16, bool, u8), RUN_MAX> = places
            .map(|(at, &hash)| (self.place(hash), writes >> at & 1 == 0, at))
            .collect();
        // Taking a lock waits for its line of the cache alone; looking at them all before waits for all at once.
        let held = order.iter().filter(|(place, ..)| {
            let partition = &self.partitions[usize::from(*place)];
            partition.0.is_locked()
        });
        black_box(held.count());
        order.sort_unstable();
        let mut locked = Locked {
            guards: ArrayVec::new(),
            guard_of: [0; RUN_MAX],
        };
        let mut last = None;
        let mut guard = 0;
        for (place, is_read, at) in order {
            if last != Some(place) {
                let partition = &self.partitions[usize::from(place)].0;
                guard = u8::try_from(locked.guards.len()).unwrap_or(u8::MAX);
                let held = if is_read {
                    spin(|| partition.try_read()).map(Guard::Read)
                } else {
                    spin(|| partition.try_write()).map(Guard::Write)
                };
                locked.guards.push(held.ok_or(Contended)?);
                last = Some(place);
            }
            locked.guard_of[usize::from(at)] = guard;
        }
        Ok(locked)
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    fn partition(&self, hash: u64) -> &RwLock<Entries> {
        &self.partitions[usize::from(self.place(hash))].0
    }

    fn place(&self, hash: u64) -> u16 {
        // A table takes its bucket from the lowest bits and a tag from the top seven; these lie between, so that the
        // entries of one partition still differ in both. Their number is at most 2^16 and fits every usize.
        #[allow(clippy::cast_possible_truncation)]
        let bits = (hash >> 41) as u16;
        let mask = self.partitions.len() - 1;
        bits & u16::try_from(mask).unwrap_or(u16::MAX)
    }
}
