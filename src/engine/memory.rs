//! The memory of the data set, and its limit (`max_memory_bytes`).
//!
//! Counted are the blocks of the entries, as large as the allocator makes them ([`block_bytes`]), and the tables
//! (`table_bytes`). Not counted are the log's backlog and append queue, which have limits of their own, buffers of
//! connections, and values that are on their way in or out. `cargo bench --bench memory` compares the sum with the
//! growth of the process.
//!
//! Each partition counts for itself, under its lock. Only where there is a limit, a global sum follows, by one atomic
//! addition for each write that changes it. A write reserves what it needs before it changes anything, so the sum
//! never exceeds the limit by what clients store. Records of a leader are applied whatever the limit: a follower that
//! refused one would have another data set.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};

use super::entry::{Entry, SHORT_BYTES};
use super::eviction::{Hand, Marks};

/// Smallest block of the allocator in bytes.
const BLOCK_BYTES_MIN: u64 = 32;

/// Unit of the allocator's blocks in bytes.
const BLOCK_UNIT: u64 = 16;

/// Bytes of the allocator's own in each block.
const BLOCK_HEADER: u64 = 8;

/// Shortest allocation in bytes that the allocator gets from the system by itself, in whole pages.
const MAPPED_BYTES: u64 = 128 << 10;

/// Bytes of a page of memory.
const PAGE_BYTES: u64 = 4096;

/// Control bytes of a table beside one for each bucket: those of one group.
const GROUP_BYTES: usize = 16;

/// Bytes of memory that an allocation of `len` bytes takes.
///
/// So does glibc's allocator on 64-bit machines: 8 bytes of its own, rounded up to a multiple of 16, and 32 at least;
/// whole pages from 128 KiB on. That threshold rises as large blocks are freed, and a block then takes up to a page
/// less, which is 3 % at most. Other allocators round in a similar way.
#[inline]
#[must_use]
pub const fn allocation_bytes(len: usize) -> u64 {
    // No allocation is so long that this overflows.
    let len = len as u64;
    if len >= MAPPED_BYTES {
        return (len + 2 * BLOCK_HEADER).next_multiple_of(PAGE_BYTES);
    }
    let block = (len + BLOCK_HEADER + BLOCK_UNIT - 1) & !(BLOCK_UNIT - 1);
    if block < BLOCK_BYTES_MIN {
        BLOCK_BYTES_MIN
    } else {
        block
    }
}

/// Bytes of memory that an entry takes whose frame has `frame_len` bytes, without its place in a table.
#[inline]
#[must_use]
pub const fn block_bytes(frame_len: usize) -> u64 {
    let count = if frame_len > SHORT_BYTES {
        size_of::<usize>()
    } else {
        0
    };
    allocation_bytes(frame_len + count)
}

/// Bytes of memory that a table with this many buckets takes: a pointer and a control byte for each, and a bit where
/// entries are evicted. One bucket is the table that is not allocated.
#[inline]
#[must_use]
pub(super) const fn table_bytes(buckets: usize, evicts: bool) -> u64 {
    if buckets <= 1 {
        return 0;
    }
    let table = allocation_bytes(buckets * (size_of::<usize>() + 1) + GROUP_BYTES);
    let marks = if evicts {
        allocation_bytes(buckets.div_ceil(64) * size_of::<u64>())
    } else {
        0
    };
    table + marks
}

/// Bytes by which a table grows when an entry is added to it.
#[inline]
#[must_use]
pub(super) const fn table_growth(len: usize, capacity: usize, buckets: usize, evicts: bool) -> u64 {
    if len < capacity {
        return 0;
    }
    // As the table does: it tidies up where half of it suffices, and otherwise doubles.
    let full = if buckets < 8 {
        buckets - 1
    } else {
        buckets / 8 * 7
    };
    if len < full / 2 {
        return 0;
    }
    let grown = if buckets <= 1 { 4 } else { buckets * 2 };
    table_bytes(grown, evicts) - table_bytes(buckets, evicts)
}

/// Bytes of a partition's entries: those of their keys and values, and those of their blocks, in one number, so that a
/// write pays for one addition. The low [`SLACK_BITS`] bits hold by how much the blocks are longer.
///
/// That leaves 64 GiB for the keys and values of one partition, and 256 MiB for what its blocks have beyond: about 11
/// million entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes(u64);

const SLACK_BITS: u32 = 28;

impl Sizes {
    /// Of an entry whose frame has `frame_len` bytes, and its key and value together `size`.
    #[inline]
    const fn of(frame_len: usize, size: u64) -> u64 {
        (size << SLACK_BITS).wrapping_add(block_bytes(frame_len).wrapping_sub(size))
    }

    /// An entry is added.
    #[inline]
    pub(super) const fn add(&mut self, frame_len: usize, size: u64) {
        self.0 = self.0.wrapping_add(Sizes::of(frame_len, size));
    }

    /// An entry is removed.
    #[inline]
    pub(super) fn subtract(&mut self, entry: &Entry) {
        let (frame_len, size) = entry.lens();
        let of_entry = Sizes::of(frame_len, size);
        self.0 = self.0.wrapping_sub(of_entry);
    }

    /// An entry's frame is replaced by one of the same length.
    #[inline]
    pub(super) const fn overwrite(&mut self, old_size: u64, new_size: u64) {
        let more = new_size.wrapping_sub(old_size);
        self.0 = self.0.wrapping_add((more << SLACK_BITS).wrapping_sub(more));
    }

    /// Bytes of keys and values.
    pub(super) const fn bytes(self) -> u64 {
        self.0 >> SLACK_BITS
    }

    /// Bytes of blocks.
    #[inline]
    pub(super) const fn block_bytes(self) -> u64 {
        self.bytes() + (self.0 & ((1 << SLACK_BITS) - 1))
    }
}

/// A write needs more memory than the limit leaves. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes that it needs more than before.
    pub needed: u64,
}

/// The limit of a data set's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Most bytes that the data set may take.
    pub max_bytes: u64,
    /// Whether entries make room for new ones. Otherwise writes that need more are refused.
    pub evicts: bool,
}

/// The memory of a data set with a limit.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Memory {
    /// Bytes that the partitions take, and those reserved by writes that are under way.
    used: AtomicU64,
    pub(super) limit: MemoryLimit,
    pub(super) hand: Hand,
    /// Which entries of each partition are in use, where others are evicted. Only a thread that has the partition
    /// locked takes one, and holds it for a few instructions, or while the table grows.
    marks: Box<[RwLock<Marks>]>,
    /// Entries that made room for others so far.
    evicted: AtomicU64,
    /// Writes that were refused so far.
    refused: AtomicU64,
}

impl Memory {
    /// Nothing is used, in this many partitions.
    pub(super) fn new(limit: MemoryLimit, partitions: usize) -> Memory {
        let partitions = if limit.evicts { 0..partitions } else { 0..0 };
        Memory {
            used: AtomicU64::new(0),
            limit,
            hand: Hand::default(),
            marks: partitions.map(|_| RwLock::default()).collect(),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Notes that the entry at a place of a partition is in use. The partition's table has `len` places.
    pub(super) fn mark(&self, partition: u16, len: usize, bucket: usize) {
        let marks = &self.marks[usize::from(partition)];
        {
            let marks = marks.read();
            if marks.len() == len {
                marks.set(bucket);
                return;
            }
        }
        self.marks_mut(partition, len).set(bucket);
    }

    /// The marks of a partition, whose table has `len` places: none is set where it had others.
    pub(super) fn marks_mut(&self, partition: u16, len: usize) -> RwLockWriteGuard<'_, Marks> {
        let mut marks = self.marks[usize::from(partition)].write();
        if marks.len() != len {
            *marks = Marks::new(len);
        }
        marks
    }

    /// Counts entries that made room.
    pub(super) fn count_evicted(&self, count: u64) {
        self.evicted.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a write that is refused.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Entries that made room, and writes that were refused, so far.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.evicted, &self.refused].map(|count| count.load(Ordering::Relaxed))
    }

    /// Bytes that the data set takes.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Most bytes that other entries make room for: half of the limit. A greater value would push out nearly
    /// everything, and might not fit even then.
    pub(super) const fn evicted_max(&self) -> u64 {
        self.limit.max_bytes / 2
    }

    /// Bytes above the limit, if `needed` more are used.
    pub(super) fn excess(&self, needed: u64) -> u64 {
        let after = self.used().saturating_add(needed);
        after.saturating_sub(self.limit.max_bytes)
    }

    /// Reserves bytes for a write, whose partition is locked. They are in use from then on.
    ///
    /// # Errors
    ///
    /// Where the limit leaves too few. A write that needs none is never refused.
    #[inline]
    pub(super) fn reserve(&self, needed: u64) -> Result<(), Full> {
        if needed == 0 {
            return Ok(());
        }
        let used = self.used.fetch_add(needed, Ordering::Relaxed);
        if used.saturating_add(needed) > self.limit.max_bytes {
            self.used.fetch_sub(needed, Ordering::Relaxed);
            return Err(Full { needed });
        }
        Ok(())
    }

    /// The message of FULL (GBP §7).
    pub(super) fn message(&self, Full { needed }: Full) -> String {
        let (used, max) = (self.used(), self.limit.max_bytes);
        format!(
            "the data set takes {used} of {max} bytes (max_memory_bytes), and this needs {needed} more"
        )
    }

    /// Notes that a locked partition has changed from `before` to `after` bytes, of which `reserved` are counted
    /// already.
    #[inline]
    pub(super) fn changed(&self, before: u64, after: u64, reserved: u64) {
        let counted = before.saturating_add(reserved);
        if after > counted {
            self.used.fetch_add(after - counted, Ordering::Relaxed);
        } else if after < counted {
            self.used.fetch_sub(counted - after, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hashbrown::HashTable;

    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    #[allow(unsafe_code)]
    fn blocks_are_as_large_as_the_allocator_makes_them() {
        let mut exact = 0;
        for len in (1..2_000).chain([4_096, 10_023, 65_535, 130_000, 131_072, 500_000]) {
            let mut block: Vec<u8> = Vec::with_capacity(len);
            let start = block.as_mut_ptr();
            // SAFETY: the pointer is that of an allocation of the system's allocator, which lives.
            let usable = unsafe { libc::malloc_usable_size(start.cast()) } as u64;
            let (block, counted) = (usable + BLOCK_HEADER, allocation_bytes(len));
            if len < 131_072 {
                // A free block that is too small to be split is handed out whole.
                assert!(block == counted || block == counted + 16, "{len}: {block}");
                exact += u32::from(block == counted);
            } else {
                // Whether it is one of whole pages depends on what was freed before.
                assert!(block <= counted && counted < block + PAGE_BYTES, "{len}");
            }
        }
        assert!(exact > 1_500, "{exact}");
    }

    #[test]
    fn the_growth_of_a_table_is_known_before() {
        for evicts in [false, true] {
            let mut table: HashTable<*const u8> = HashTable::new();
            let size = |table: &HashTable<*const u8>| table_bytes(table.num_buckets(), evicts);
            let mut seed = 7_u64;
            for step in 0_usize..60_000 {
                // Phases of growth, and of entries that replace others, which leaves places that are not free.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let hash = seed.rotate_left(23);
                let before = size(&table);
                let (len, capacity) = (table.len(), table.capacity());
                let growth = table_growth(len, capacity, table.num_buckets(), evicts);
                table
                    .entry(hash, |_| false, |item| *item as u64)
                    .insert(hash as *const u8);
                assert_eq!(size(&table) - before, growth, "{len} of {capacity}");
                let allocated = allocation_bytes(table.allocation_size());
                assert_eq!(table_bytes(table.num_buckets(), false), allocated);
                if step % 12_000 > 6_000 {
                    let first = *table.iter().next().unwrap();
                    let slot = table.find_entry(first as u64, |item| *item == first);
                    slot.unwrap().remove();
                }
            }
        }
    }

    #[test]
    fn both_sums_of_sizes_are_exact() {
        let frame = |value_len: usize| {
            let mut frame = Vec::new();
            let value = &vec![b'v'; value_len];
            let set = crate::wire::Request::Set { key: b"key", value };
            set.encode(&mut frame).unwrap();
            frame
        };
        let mut sizes = Sizes::default();
        let mut entries = Vec::new();
        for value_len in [0, 1, 22, 23, 246, 247, 5_000, 200_000] {
            let frame = frame(value_len);
            let entry = crate::wire::request::frames(&frame).map(|frame| Entry::copy_of(&frame));
            entries.extend(entry);
            sizes.add(frame.len(), 3 + value_len as u64);
        }
        let sum = |of: fn(&Entry) -> u64| entries.iter().map(of).sum::<u64>();
        assert_eq!(sizes.bytes(), sum(Entry::size));
        assert_eq!(
            sizes.block_bytes(),
            sum(|entry| block_bytes(entry.frame().len()))
        );
        let (before, blocks) = (sizes, sizes.block_bytes());
        sizes.overwrite(20, 12);
        assert_eq!(
            (sizes.bytes(), sizes.block_bytes()),
            (before.bytes() - 8, blocks)
        );
        sizes.overwrite(12, 20);
        for entry in &entries {
            sizes.subtract(entry);
        }
        assert_eq!(sizes, Sizes::default());
    }

    #[test]
    fn what_is_reserved_and_changed_is_used() {
        let memory = Memory::new(
            MemoryLimit {
                max_bytes: 100,
                evicts: false,
            },
            0,
        );
        memory.reserve(60).unwrap();
        let full = Full { needed: 41 };
        assert_eq!(memory.reserve(41), Err(full));
        assert_eq!((memory.used(), memory.excess(41)), (60, 1));
        memory.reserve(0).unwrap();
        // It took 10 bytes less than was reserved.
        memory.changed(0, 50, 60);
        assert_eq!(memory.used(), 50);
        // A record of a leader is not refused.
        memory.changed(50, 200, 0);
        assert_eq!((memory.used(), memory.excess(0)), (200, 100));
        memory.reserve(0).unwrap();
        assert_eq!(memory.reserve(1), Err(Full { needed: 1 }));
        memory.changed(200, 0, 0);
        assert_eq!(memory.used(), 0);
        assert_eq!(
            memory.message(full),
            "the data set takes 0 of 100 bytes (max_memory_bytes), and this needs 41 more"
        );
    }
}
