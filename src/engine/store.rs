//! The map from keys to entries, in partitions with a lock each.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::hint::{black_box, spin_loop};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arrayvec::ArrayVec;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::change::{Change, LongOld, NotPut};
use super::clock::Now;
use super::compute::is_live;
use super::entry::Entry;
use super::expiring::Expiring;
use super::memory::{Memory, Sizes};
use crate::wire::expiry::DEADLINE_LEN;
use crate::wire::request::HEADER_LEN;
use crate::wire::run::RUN_MAX;
use crate::wire::{Opcode, RequestFrame};

/// Partitions of a node's store.
///
/// A table that grows moves all its entries under its lock, so the size of a partition bounds how long one client can
/// delay another. `cargo bench --bench growth` shows the difference.
pub const PARTITIONS: usize = 1 << 10;

/// Attempts to lock a partition of a run.
const SPINS: u32 = 100;

/// A concurrent map from keys to entries, split into partitions with a lock each.
///
/// # Invariants
///
/// 1. A key lives in the partition that its hash names, and in no other.
/// 2. While a partition is locked nothing is sent, nothing of more than a few KiB is copied or freed, and no lock is
///    waited for, but for one BATCH at a time, which waits for its partitions in ascending order. The table of a
///    partition may grow or shrink. Replaced entries are returned, so that they are freed after the unlock.
/// 3. Partitions are locked in ascending order.
///
/// # Hashing
///
/// SipHash under a key drawn at the start of the process, so that a client which chooses keys cannot choose their
/// partition or their place in it. Only a [seeded](Store::seeded) store has a known one.
#[derive(Debug)]
pub struct Store {
    partitions: Box<[Partition]>,
    /// Of each partition: how often its entries may have changed their buckets otherwise than by being removed and
    /// stored again. Changed with the partition locked.
    rehashes: Box<[AtomicU32]>,
    /// A hasher with the key, and nothing hashed yet.
    hashing: DefaultHasher,
    /// Whether an entry ever had a deadline.
    pub(super) has_expiring: AtomicBool,
    /// The memory of the data set, where that has a limit.
    pub(super) memory: Option<Box<Memory>>,
}

/// One table, on a cache line of its own: two cores with different partitions do not contend for a line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Partition(RwLock<Entries>);

// A second line would be a second cache miss for each request. Tests may have other locks.
#[cfg(not(test))]
const _: () = assert!(size_of::<Partition>() == 64);

/// The entries of one partition.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) table: HashTable<Entry>,
    /// Bytes of the entries.
    pub(super) sizes: Sizes,
    /// Index of the last record that changed the partition; 0 without a log. It lies in the cache line of the lock.
    pub(super) last_index: u64,
    /// The deadlines of entries that expire; `None` while no entry does.
    pub(super) expiring: Option<Box<Expiring>>,
}

impl Entries {
    /// The entry of `key`.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.table.find(hash, |entry| entry.key() == key)
    }

    /// The entry of `key`, unless its deadline has passed.
    #[inline]
    pub(super) fn find_live(&self, hash: u64, key: &[u8], clock: &Now<'_>) -> Option<&Entry> {
        self.find(hash, key).filter(|entry| is_live(entry, clock))
    }

    /// The bucket of the entry of `key` in the table.
    #[inline]
    pub(super) fn bucket_of(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table
            .find_bucket_index(hash, |entry| entry.key() == key)
    }

    /// The entry of `key`, to be changed.
    pub(super) fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Entry> {
        self.table.find_mut(hash, |entry| entry.key() == key)
    }
}

/// Whether a table should shrink.
#[inline(always)]
pub(super) fn is_sparse(table: &HashTable<Entry>) -> bool {
    // An eighth: far enough below the point of growth that a client cannot cause both in turn.
    table.len() < table.capacity() / 8
}

/// Bytes of key and value of the entry that a frame becomes.
#[inline]
fn put_size(frame: &RequestFrame<'_>) -> u64 {
    let deadline_len = if frame.opcode() == Opcode::SetAt {
        DEADLINE_LEN
    } else {
        0
    };
    let len = frame.bytes().len() - HEADER_LEN - deadline_len;
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The locked partitions of a run, or of a batch of at most `N` requests.
pub(super) struct Locked<'a, const N: usize = RUN_MAX> {
    guards: ArrayVec<Guard<'a>, N>,
    /// The guard of each request.
    guard_of: [u8; N],
}

/// A locked partition.
enum Guard<'a> {
    Read(RwLockReadGuard<'a, Entries>),
    Write(RwLockWriteGuard<'a, Entries>),
}

impl Deref for Guard<'_> {
    type Target = Entries;

    #[inline]
    fn deref(&self) -> &Entries {
        match self {
            Guard::Read(entries) => entries,
            Guard::Write(entries) => entries,
        }
    }
}

/// A partition of the run is locked by another thread, which holds it for longer than a running thread would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contended;

/// The entries that a run is about to use.
pub(super) struct Touched {
    /// Length in bytes of the longest frame that a write of the run may replace.
    pub(super) longest: usize,
    /// A bit for each request whose key has no entry.
    pub(super) vacant: u16,
}

/// Tries for about as long as a running thread holds the partitions of a run.
fn spin<G>(mut lock: impl FnMut() -> Option<G>) -> Option<G> {
    for _ in 0..SPINS {
        if let Some(guard) = lock() {
            return Some(guard);
        }
        spin_loop();
    }
    lock()
}

impl<const N: usize> Locked<'_, N> {
    /// The partition of the request with this number.
    #[inline]
    pub(super) fn of(&self, at: usize) -> &Entries {
        &self.guards[usize::from(self.guard_of[at])]
    }

    /// The partition of the write with this number.
    #[inline]
    pub(super) fn of_mut(&mut self, at: usize) -> &mut Entries {
        match &mut self.guards[usize::from(self.guard_of[at])] {
            Guard::Write(entries) => entries,
            Guard::Read(_) => {
                unreachable!("a partition that is written is locked for writing")
            }
        }
    }

    /// The greatest index of a record that changed one of the partitions.
    pub(super) fn last_index(&self) -> u64 {
        let indexes = self.guards.iter().map(|entries| entries.last_index);
        indexes.max().unwrap_or(0)
    }

    /// Notes the last index that was written in the partitions that are locked for writing.
    pub(super) fn set_last_index(&mut self, index: u64) {
        for guard in &mut self.guards {
            match guard {
                Guard::Write(entries) => entries.last_index = index,
                Guard::Read(_) => {}
            }
        }
    }
}

impl<const N: usize> Locked<'_, N> {
    /// The entries that these keys seem to have, read into the cache as [`touch`](Locked::touch) does. Another entry
    /// may have the tag of one that a key has.
    pub(super) fn warm(&self, hashes: &ArrayVec<u64, N>) -> ArrayVec<Option<&Entry>, N> {
        let places = hashes.iter().enumerate();
        let found: ArrayVec<Option<&Entry>, N> = places
            .map(|(at, &hash)| self.of(at).table.iter_hash(hash).next())
            .collect();
        let touched = found.iter().flatten();
        black_box(touched.fold(0, |sum, entry| sum ^ entry.touch()));
        found
    }
}

impl Locked<'_> {
    /// Reads everything that the run needs into the cache: two short loops whose rounds do not depend on each other,
    /// so the processor overlaps the misses.
    pub(super) fn touch(&self, hashes: &ArrayVec<u64, RUN_MAX>, writes: u16) -> Touched {
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
        Touched { longest, vacant }
    }
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
        Store::with_hashing(count, RandomState::new().build_hasher())
    }

    /// The same under a key that follows from `seed`: two stores with one seed have every key in one place, in two runs
    /// of one program too. For simulations.
    #[must_use]
    pub fn seeded(count: usize, seed: u64) -> Store {
        let mut hashing = DefaultHasher::new();
        hashing.write_u64(seed);
        Store::with_hashing(count, hashing)
    }

    fn with_hashing(count: usize, hashing: DefaultHasher) -> Store {
        let count = count.clamp(1, 1 << 16).next_power_of_two();
        Store {
            partitions: (0..count).map(|_| Partition::default()).collect(),
            rehashes: (0..count).map(|_| AtomicU32::new(0)).collect(),
            hashing,
            has_expiring: AtomicBool::new(false),
            memory: None,
        }
    }

    /// A clone of the entry of `key`. A clone copies a short entry and shares a [long](Entry::is_long) one.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        self.read(hash).find(hash, key).cloned()
    }

    /// Stores `entry` under its key and returns the entry that it replaced.
    pub fn set(&self, entry: Entry) -> Option<Entry> {
        let hash = self.hash(entry.key());
        let entries = &mut *self.write(hash);
        let put = self.put_entry(entries, hash, entry, &mut Change::unlogged());
        put.unwrap_or_else(|_| {
            unreachable!("only a client's change is refused, or one that is logged")
        })
    }

    /// Removes `key` and returns its entry.
    pub fn remove(&self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        let entries = &mut *self.write(hash);
        let taken = self.take(entries, hash, key, None, &mut Change::unlogged());
        taken.unwrap_or_else(|_| unreachable!("only a change that is logged asks for old digests"))
    }

    /// Stores the entry of a SET or SETAT frame in a locked partition: in the memory of the old entry where it fits
    /// there, else as `new`, or as a copy where there is none. Returns the entry that it replaced.
    ///
    /// # Errors
    ///
    /// Where `change` needs the digest of the old entry first, or the memory limit leaves no room for a client's write.
    /// Nothing is changed then.
    #[inline(always)]
    pub(super) fn put_frame(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        new: Option<Entry>,
        change: &mut Change,
    ) -> Result<Option<Entry>, NotPut> {
        if let Some(memory) = self.memory() {
            return self.put_frame_counted(memory, entries, (hash, frame), new, change);
        }
        Ok(self.put_frame_uncounted(entries, hash, frame, new, change)?)
    }

    /// The same without regard to the memory limit.
    #[inline(always)]
    pub(super) fn put_frame_uncounted(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        new: Option<Entry>,
        change: &mut Change,
    ) -> Result<Option<Entry>, LongOld> {
        if entries.expiring.is_some() || frame.opcode() == Opcode::SetAt {
            return self.put_dated(entries, hash, frame, new, change);
        }
        self.put_after(entries, hash, frame, new, change, |_| ())
    }

    /// The same, without a note of deadlines. `replaces` is shown the old entry.
    #[inline(always)]
    pub(super) fn put_after(
        &self,
        entries: &mut Entries,
        hash: u64,
        frame: &RequestFrame<'_>,
        new: Option<Entry>,
        change: &mut Change,
        replaces: impl FnOnce(&Entry),
    ) -> Result<Option<Entry>, LongOld> {
        let (key, size) = (frame.key(), put_size(frame));
        match self.slot(&mut entries.table, hash, key) {
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                change.replaces(entry)?;
                replaces(entry);
                let old_size = entry.size();
                if entry.overwrite(frame) {
                    entries.sizes.overwrite(old_size, size);
                    return Ok(None);
                }
                entries.sizes.subtract(entry);
                entries.sizes.add(frame.bytes().len(), size);
                let new = new.unwrap_or_else(|| Entry::copy_of(frame));
                Ok(Some(std::mem::replace(entry, new)))
            }
            Slot::Vacant(slot) => {
                slot.insert(new.unwrap_or_else(|| Entry::copy_of(frame)));
                entries.sizes.add(frame.bytes().len(), size);
                Ok(None)
            }
        }
    }

    /// Stores `entry` in a locked partition and returns the entry that it replaced.
    ///
    /// # Errors
    ///
    /// As for [`put_frame`](Self::put_frame); with the entry.
    pub(super) fn put_entry(
        &self,
        entries: &mut Entries,
        hash: u64,
        entry: Entry,
        change: &mut Change,
    ) -> Result<Option<Entry>, (NotPut, Entry)> {
        if let Some(memory) = self.memory() {
            return self.put_entry_counted(memory, entries, hash, entry, change);
        }
        let put = self.put_entry_uncounted(entries, hash, entry, change);
        put.map_err(|(long, entry)| (NotPut::Long(long), entry))
    }

    /// The same without regard to the memory limit.
    pub(super) fn put_entry_uncounted(
        &self,
        entries: &mut Entries,
        hash: u64,
        entry: Entry,
        change: &mut Change,
    ) -> Result<Option<Entry>, (LongOld, Entry)> {
        let (frame_len, size, deadline) = (entry.frame().len(), entry.size(), entry.deadline());
        let mut old_deadline = None;
        let replaced = match self.slot(&mut entries.table, hash, entry.key()) {
            Slot::Occupied(mut slot) => {
                if let Err(long) = change.replaces(slot.get()) {
                    return Err((long, entry));
                }
                entries.sizes.subtract(slot.get());
                old_deadline = slot.get().deadline();
                Some(std::mem::replace(slot.get_mut(), entry))
            }
            Slot::Vacant(slot) => {
                slot.insert(entry);
                None
            }
        };
        entries.sizes.add(frame_len, size);
        self.note_deadline(entries, hash, old_deadline, deadline);
        Ok(replaced)
    }

    /// Removes `key` from a locked partition and returns its entry. With a clock, an entry whose deadline has passed is
    /// none.
    ///
    /// # Errors
    ///
    /// [`LongOld`], where `change` needs the digest of the old entry first. Nothing is changed then.
    #[inline(always)]
    pub(super) fn take(
        &self,
        entries: &mut Entries,
        hash: u64,
        key: &[u8],
        clock: Option<&Now<'_>>,
        change: &mut Change,
    ) -> Result<Option<Entry>, LongOld> {
        if entries.expiring.is_some() {
            return self.take_dated(entries, hash, key, clock, change);
        }
        let taken = self.take_where(entries, hash, change, |entry| entry.key() == key)?;
        if taken.is_some() && is_sparse(&entries.table) {
            self.shrink(entries, hash);
        }
        Ok(taken)
    }

    /// Shrinks the table of a hash, which is sparse.
    #[cold]
    #[inline(never)]
    pub(super) fn shrink(&self, entries: &mut Entries, hash: u64) {
        let twice = entries.table.len() * 2;
        self.counted(entries, |entries| {
            self.rehash(usize::from(self.place(hash)), entries, |table| {
                table.shrink_to(twice, |entry| self.hash(entry.key()));
            });
        });
    }

    /// Removes an entry of this hash that `is_meant` from a locked partition, without a note of its deadline. The table
    /// does not shrink.
    #[inline(always)]
    pub(super) fn take_where(
        &self,
        entries: &mut Entries,
        hash: u64,
        change: &mut Change,
        is_meant: impl FnMut(&Entry) -> bool,
    ) -> Result<Option<Entry>, LongOld> {
        if let Some(memory) = self.memory() {
            return self.take_counted(memory, entries, hash, change, is_meant);
        }
        self.take_uncounted(entries, hash, change, is_meant, |_| ())
    }

    /// The same without regard to the memory limit. `removes` is told the place of the entry in the table.
    #[inline(always)]
    pub(super) fn take_uncounted(
        &self,
        entries: &mut Entries,
        hash: u64,
        change: &mut Change,
        is_meant: impl FnMut(&Entry) -> bool,
        removes: impl FnOnce(usize),
    ) -> Result<Option<Entry>, LongOld> {
        let Ok(slot) = entries.table.find_entry(hash, is_meant) else {
            return Ok(None);
        };
        change.replaces(slot.get())?;
        removes(slot.bucket_index());
        entries.sizes.subtract(slot.get());
        let (removed, _) = slot.remove();
        Ok(Some(removed))
    }

    /// The place of `key` in a table, or one for it.
    #[inline]
    fn slot<'t>(&self, table: &'t mut HashTable<Entry>, hash: u64, key: &[u8]) -> Slot<'t, Entry> {
        if table.len() == table.capacity() {
            return self.slot_of_full(table, hash, key);
        }
        self.slot_with_room(table, hash, key)
    }

    #[inline(always)]
    fn slot_with_room<'t>(
        &self,
        table: &'t mut HashTable<Entry>,
        hash: u64,
        key: &[u8],
    ) -> Slot<'t, Entry> {
        table.entry(
            hash,
            |entry| entry.key() == key,
            |entry| self.hash(entry.key()),
        )
    }

    /// The same where the table is full. Not inlined, so that other writes do not pay for it.
    #[cold]
    #[inline(never)]
    fn slot_of_full<'t>(
        &self,
        table: &'t mut HashTable<Entry>,
        hash: u64,
        key: &[u8],
    ) -> Slot<'t, Entry> {
        let is_meant = |entry: &Entry| entry.key() == key;
        if let Some(bucket) = table.find_bucket_index(hash, is_meant) {
            // `entry` would make room for another one all the same.
            return match table.get_bucket_entry(bucket) {
                Ok(slot) => Slot::Occupied(slot),
                Err(_) => unreachable!("an entry was found there"),
            };
        }
        // The table grows now and hashes each of its keys. They lie all over memory; this loop overlaps the misses.
        let ends = table.iter().filter_map(|entry| entry.key().last());
        black_box(ends.fold(0, |sum, byte| sum ^ byte));
        self.count_rehash(usize::from(self.place(hash)));
        self.slot_with_room(table, hash, key)
    }

    /// Removes everything, one partition at a time.
    pub fn clear(&self) {
        for (number, partition) in self.partitions.iter().enumerate() {
            let mut entries = partition.0.write();
            self.count_rehash(number);
            let old = self.counted(&mut entries, |entries| {
                self.counted_heap(entries, std::mem::take)
            });
            // Freed after the unlock.
            drop(entries);
            drop(old);
        }
    }

    /// Sets the index of the last change of every partition to that of a loaded data set. Reads are then about that
    /// index.
    pub(super) fn note_loaded(&self, index: u64) {
        for partition in &self.partitions {
            partition.0.write().last_index = index;
        }
    }

    /// Locks and unlocks every partition once: afterwards no request is under way that held one before.
    pub(super) fn barrier(&self) {
        for partition in &self.partitions {
            drop(partition.0.write());
        }
    }

    /// Makes room for `count` entries in all, so that no table grows while they are stored.
    pub fn reserve(&self, count: usize) {
        // Keys spread evenly but not exactly; an eighth more than the mean suffices for nearly all partitions.
        let each = count / self.partitions.len();
        for (number, partition) in self.partitions.iter().enumerate() {
            let entries = &mut *partition.0.write();
            let more = (each + each / 8).saturating_sub(entries.table.len());
            self.counted(entries, |entries| {
                self.rehash(number, entries, |table| {
                    table.reserve(more, |entry| self.hash(entry.key()));
                });
            });
        }
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// A number that differs between incarnations of the store, as the partitions of keys do: places in it that
    /// were given out by another incarnation mean nothing.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        // One value of SipHash reveals nothing of the others.
        let mut hasher = self.hashing.clone();
        hasher.write_u64(0);
        hasher.finish()
    }

    /// The partition of `key`.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        usize::from(self.place(self.hash(key)))
    }

    /// Number of entries. Partitions are counted one after another, so beside writers it is approximate.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = |part: &Partition| part.0.read().table.len();
        self.partitions.iter().map(len).sum()
    }

    /// Bytes of all keys and values; as exact as [`len`](Self::len).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |part: &Partition| part.0.read().sizes.bytes();
        self.partitions.iter().map(bytes).sum()
    }

    /// Whether there is no entry; as exact as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks the partitions of these hashes, each once and in ascending order: for writing where the bit of one of its
    /// requests is set in `writes`.
    ///
    /// # Errors
    ///
    /// [`Contended`], where a partition is not free soon. With more threads than cores, a thread that holds a partition
    /// may not be running. A thread that waited for it with other partitions locked would delay their users as well,
    /// and soon every thread would wait for another one.
    pub(super) fn lock(
        &self,
        hashes: &ArrayVec<u64, RUN_MAX>,
        writes: u16,
    ) -> Result<Locked<'_>, Contended> {
        // Of the requests of one partition a write comes first, and decides how it is locked.
        let places = (0..).zip(hashes);
        let mut order: ArrayVec<(u16, bool, u8), RUN_MAX> = places
            .map(|(at, &hash)| (self.place(hash), writes >> at & 1 == 0, at))
            .collect();
        // Taking a lock waits for its cache line alone; looking at all of them before overlaps the misses.
        let held = order.iter().filter(|(place, ..)| {
            let partition = &self.partitions[usize::from(*place)];
            partition.0.is_locked()
        });
        black_box(held.count());
        order.sort_unstable();
        Store::lock_in_order(&order, |place, is_read| self.try_lock(place, is_read))
    }

    /// The same for a batch, whose bits are in `writes`.
    pub(super) fn lock_many<const N: usize>(
        &self,
        hashes: &ArrayVec<u64, N>,
        writes: u64,
    ) -> Result<Locked<'_, N>, Contended> {
        let order = self.order_of(hashes, writes);
        Store::lock_in_order(&order, |place, is_read| self.try_lock(place, is_read))
    }

    /// The same, but waits for each partition. One thread at a time may call this: every other one either waits for a
    /// partition with none locked, or does not wait.
    pub(super) fn wait_for_many<const N: usize>(
        &self,
        hashes: &ArrayVec<u64, N>,
        writes: u64,
    ) -> Locked<'_, N> {
        let order = self.order_of(hashes, writes);
        let locked = Store::lock_in_order(&order, |place, is_read| {
            let partition = &self.partitions[usize::from(place)].0;
            Some(if is_read {
                Guard::Read(partition.read())
            } else {
                Guard::Write(partition.write())
            })
        });
        locked.unwrap_or_else(|Contended| unreachable!("it waits"))
    }

    /// Partitions in ascending order. Of the requests of one partition a write comes first.
    fn order_of<const N: usize>(
        &self,
        hashes: &ArrayVec<u64, N>,
        writes: u64,
    ) -> ArrayVec<(u16, bool, u8), N> {
        let places = (0..).zip(hashes);
        let order = places.map(|(at, &hash)| (self.place(hash), writes >> at & 1 == 0, at));
        let mut order: ArrayVec<_, N> = order.collect();
        order.sort_unstable();
        order
    }

    #[inline(always)]
    fn try_lock(&self, place: u16, is_read: bool) -> Option<Guard<'_>> {
        let partition = &self.partitions[usize::from(place)].0;
        if is_read {
            spin(|| partition.try_read()).map(Guard::Read)
        } else {
            spin(|| partition.try_write()).map(Guard::Write)
        }
    }

    /// Locks each partition of the order once, by `lock`.
    #[inline(always)]
    fn lock_in_order<'a, const N: usize>(
        order: &ArrayVec<(u16, bool, u8), N>,
        lock: impl Fn(u16, bool) -> Option<Guard<'a>>,
    ) -> Result<Locked<'a, N>, Contended> {
        let mut locked = Locked {
            guards: ArrayVec::new(),
            guard_of: [0; N],
        };
        let mut last = None;
        let mut guard = 0;
        for &(place, is_read, at) in order {
            if last != Some(place) {
                guard = u8::try_from(locked.guards.len()).unwrap_or(u8::MAX);
                locked.guards.push(lock(place, is_read).ok_or(Contended)?);
                last = Some(place);
            }
            locked.guard_of[usize::from(at)] = guard;
        }
        Ok(locked)
    }

    /// Locks the partition of a hash for reading.
    #[inline]
    pub(super) fn read(&self, hash: u64) -> RwLockReadGuard<'_, Entries> {
        self.partitions[usize::from(self.place(hash))].0.read()
    }

    /// Locks the partition of a hash for writing.
    #[inline]
    pub(super) fn write(&self, hash: u64) -> RwLockWriteGuard<'_, Entries> {
        self.partitions[usize::from(self.place(hash))].0.write()
    }

    /// Locks the partition with this number for reading.
    pub(super) fn read_partition(&self, partition: usize) -> RwLockReadGuard<'_, Entries> {
        self.partitions[partition].0.read()
    }

    /// Number of times that the table of this partition, which is locked, was rehashed. While it stays the same, an
    /// entry stays in its bucket as long as its key exists.
    pub(super) fn rehashes(&self, partition: usize) -> u32 {
        self.rehashes[partition].load(Ordering::Relaxed)
    }

    /// Notes that the table of this partition, which is locked for writing, is about to be rehashed.
    ///
    /// A rehash may move an entry from behind the hand of the evictions to a bucket ahead of it, where the hand would
    /// remove it in the same turn that has cleared its mark. So the hand leaves the partition.
    #[cold]
    #[inline(never)]
    pub(super) fn count_rehash(&self, partition: usize) {
        self.rehashes[partition].fetch_add(1, Ordering::Relaxed);
        if let Some(memory) = self.memory() {
            memory.hand.leave(partition);
        }
    }

    /// Locks the partition with this number for writing.
    pub(super) fn write_partition(&self, partition: usize) -> RwLockWriteGuard<'_, Entries> {
        self.partitions[partition].0.write()
    }

    /// The hash of a key.
    #[inline(always)]
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hashing.clone();
        hasher.write(key);
        hasher.finish()
    }

    /// The partition of a hash.
    #[inline]
    pub(super) fn place(&self, hash: u64) -> u16 {
        // A table takes its bucket from the lowest bits and a tag from the top seven; these lie between, so that the
        // entries of one partition still differ in both. Their number is at most 2^16 and fits every usize.
        #[allow(clippy::cast_possible_truncation)]
        let bits = (hash >> 41) as u16;
        let mask = self.partitions.len() - 1;
        bits & u16::try_from(mask).unwrap_or(u16::MAX)
    }
}
