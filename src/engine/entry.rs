//! An entry: one key with its value, as it lies in the store.
//!
//! # Why this file has `unsafe` code
//!
//! An entry is one pointer to one block. The header at the start of the block states its length and its kind. A
//! `Box<[u8]>` is twice as wide, which at the load of a table is 17 bytes for each entry. A reference count before each
//! frame would be 8 bytes more, which the allocator rounds up to 16: entries of 16 + 64 bytes take 115 bytes without a
//! count and 131 with one. Long entries have a count all the same, since copying them under a lock would delay other
//! clients.
//!
//! A block can grow while its bytes arrive. `triomphe::ThinArc`, which was used at first, cannot: a large value was
//! gathered in a buffer and then copied, so it was in memory twice for a moment. A SET of 64 MiB took 128 MiB, and
//! overwriting one took 192 MiB; now they take 64 and 128 MiB (`tests/server/requests.rs` checks it).
//!
//! # Proof
//!
//! *Layout.* A block is one allocation of `layout(kind, capacity)`: for `Kind::Counted` a count, then `capacity` bytes
//! for a frame. A `Block` points at the first byte of the frame. All bytes of an entry's block are initialised. Of a
//! builder's block the first `len` bytes are, and `len` grows only by bytes that [`EntryBuilder::read_with`] was shown
//! as initialised.
//!
//! *Kind.* The kind follows from the length of the whole frame (`Kind::of`), which the header at the start of the block
//! states. So the bytes of an entry determine its kind and its capacity, and these the layout for freeing it. A builder
//! determines the kind from the same header before it allocates, and the header does not change until the block is an
//! entry. [`Entry::overwrite`] writes only a header that states the same length, hence the same kind. A builder made
//! from an entry ([`Entry::into_room`]) has the block of that entry, and keeps the header whose length determines the
//! layout. It becomes an entry only if the bytes that have arrived begin with that header ([`EntryBuilder::finish`]).
//!
//! *Deadline.* An entry whose header says SETAT has the 8 bytes of a deadline behind its key: each function that makes
//! an entry of bytes, or puts other bytes in their place, checks that (`checked`). A builder takes SET frames alone.
//! [`Entry::set_deadline`] writes these 8 bytes, and [`Entry::overwrite_value`] leaves an entry with a deadline alone.
//! Both change only bytes behind the key, so the header, and with it the kind, stays as it is.
//!
//! *Blocks without a count.* Such a block has one entry, from [`EntryBuilder::finish`] or [`Entry::copy_of`] until that
//! entry is dropped: [`Entry::clone`] copies the bytes to another block. It is owned like a `Box<[u8]>`, written only
//! through `&mut Entry` and read only through `&Entry`, so it may be sent to and shared between threads.
//!
//! *Blocks with a count.* A block is unshared until it becomes an [`Entry`]. After that its bytes are written only by
//! [`Entry::overwrite`], [`Entry::set_deadline`] and [`Entry::overwrite_value`], through a `&mut` of an entry that is
//! the only one of its block, and by a builder that has taken the place of such an entry ([`Entry::into_room`]). No
//! other thread reads them meanwhile, so sharing them between threads is sound (`Send` and `Sync`).
//!
//! A count of 1, read with acquire ordering as in `Arc::get_mut`, shows that an entry is the only one. No thread can
//! clone it meanwhile, since the only entry is borrowed or consumed. Every access by other owners happens before they
//! drop their entries, and so before that read.
//!
//! The count follows `std`'s `Arc`. A clone adds one, relaxed, since the cloned entry keeps the block alive. A drop
//! subtracts one with release ordering, and the last one acquires before it frees, so every access by every owner
//! happens before. A drop reads the header before it subtracts, since another owner may free the block afterwards. A
//! count above `isize::MAX` aborts the process, since it could wrap.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::wire::expiry::DEADLINE_LEN;
use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::{EncodeError, GROWTH_BYTES_MAX, Opcode, RequestFrame};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Longest frame in bytes that has no count. It takes few enough cache lines to be copied under a lock, in a snapshot
/// together with all others of its partition. In a longer frame the 8 bytes of the count are 3 % at most.
pub const SHORT_BYTES: usize = 4 * CACHE_LINE;

/// The frame of a put, kept byte for byte in one allocation: a SET, or a SETAT where the key has a deadline.
///
/// A SET frame holds the lengths, the key and the value one after another, which is all that the store needs. So a SET
/// costs one copy from the receive buffer (none if it is large, see [`EntryBuilder`]), and replication sends the bytes
/// that the client sent. A SETAT frame has the 8 bytes of the deadline between key and value.
///
/// Cloning an entry of at most [`SHORT_BYTES`] copies it. Cloning a [long](Self::is_long) one increments its count and
/// copies a pointer: a reader clones it under a lock and uses the bytes after the unlock.
///
/// Memory: 7 bytes of header, the key and the value, the allocator's rounding, and 8 bytes of count in a long entry.
///
/// Invariant: the block has exactly as many bytes as its header states.
pub struct Entry {
    block: Block,
}

/// Points at the first byte of a frame in an allocation. Its owner knows the number of bytes and the kind.
struct Block(NonNull<u8>);

// SAFETY: see the module's proof. The count is atomic and the bytes are never written while a block is shared.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// The contents of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The frame alone. It has one owner.
    Plain,
    /// A count of its owners, then the frame.
    Counted,
}

impl Kind {
    /// Of a block for a whole frame of `frame_len` bytes.
    const fn of(frame_len: usize) -> Kind {
        if frame_len > SHORT_BYTES {
            Kind::Counted
        } else {
            Kind::Plain
        }
    }

    /// Bytes before the frame.
    const fn prefix(self) -> usize {
        match self {
            Kind::Plain => 0,
            Kind::Counted => size_of::<AtomicUsize>(),
        }
    }

    /// Of an allocation with `capacity` bytes of a frame.
    fn layout(self, capacity: usize) -> Layout {
        let align = match self {
            Kind::Plain => 1,
            Kind::Counted => align_of::<AtomicUsize>(),
        };
        match Layout::from_size_align(self.prefix().saturating_add(capacity), align) {
            Ok(layout) => layout,
            // As `Vec` does; no frame of the protocol is so long on a 64-bit machine.
            Err(_) => handle_alloc_error(Layout::new::<AtomicUsize>()),
        }
    }
}

impl Block {
    /// Allocates a block for `capacity` bytes of a frame, or for the length of `bytes` if that is more, and copies
    /// `bytes` to its start. `bytes` begins with a header. A count is 1.
    fn copy_of(kind: Kind, bytes: &[u8], capacity: usize) -> Block {
        debug_assert!(bytes.len() >= HEADER_LEN);
        let layout = kind.layout(capacity.max(bytes.len()));
        // SAFETY: the layout's size is not 0, since `bytes` has a header at least.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the allocation has room and alignment for the prefix of its kind and for `bytes` behind it. It is
        // new, so it does not overlap `bytes`.
        unsafe {
            if kind == Kind::Counted {
                start.cast().write(AtomicUsize::new(1));
            }
            let block = Block(start.add(kind.prefix()));
            let from = NonNull::from(bytes).cast();
            block.0.copy_from_nonoverlapping(from, bytes.len());
            block
        }
    }

    /// The start of the allocation.
    ///
    /// # Safety
    ///
    /// The block is of this kind.
    unsafe fn start(&self, kind: Kind) -> NonNull<u8> {
        // SAFETY: the allocation has `kind.prefix()` bytes before the byte that the block points at.
        unsafe { self.0.sub(kind.prefix()) }
    }

    /// Grows an unshared block from `from` to `to` bytes. The new bytes are not initialised.
    ///
    /// # Safety
    ///
    /// The block is of this kind, has `from` bytes and is unshared; `to >= from`.
    unsafe fn grow(&mut self, kind: Kind, from: usize, to: usize) {
        let new = kind.layout(to);
        // SAFETY: the block was allocated with this layout, and `Kind::layout` has checked the new size.
        let moved = unsafe { realloc(self.start(kind).as_ptr(), kind.layout(from), new.size()) };
        let Some(moved) = NonNull::new(moved) else {
            handle_alloc_error(new)
        };
        // SAFETY: the allocation has `to` bytes behind its prefix, and no other owner.
        *self = Block(unsafe { moved.add(kind.prefix()) });
    }

    /// Frees the block.
    ///
    /// # Safety
    ///
    /// The block is of this kind, has `capacity` bytes, and is not used afterwards.
    unsafe fn free(&mut self, kind: Kind, capacity: usize) {
        // SAFETY: the block was allocated with this layout.
        unsafe { dealloc(self.start(kind).as_ptr(), kind.layout(capacity)) };
    }
}

impl Entry {
    /// Copies a put, SET or SETAT, from the receive buffer.
    #[must_use]
    pub fn copy_of(frame: &RequestFrame<'_>) -> Entry {
        Entry::of_bytes(frame.bytes())
    }

    /// Copies a whole frame of a put.
    fn of_bytes(frame: &[u8]) -> Entry {
        checked(frame);
        Entry {
            block: Block::copy_of(Kind::of(frame.len()), frame, frame.len()),
        }
    }

    /// The entry of a key with this value and deadline.
    ///
    /// # Errors
    ///
    /// Where key or value are longer than a frame can carry.
    pub fn of_put(key: &[u8], value: &[u8], deadline: Option<u64>) -> Result<Entry, EncodeError> {
        let mut frame = Vec::new();
        encode_put(key, value, deadline, &mut frame)?;
        Ok(Entry::of_bytes(&frame))
    }

    /// The frame of the put, byte for byte: SET, or SETAT where there is a deadline.
    #[inline]
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        let len = self.header().frame_len();
        // SAFETY: an entry's block has exactly as many bytes as its header states. They are initialised, and not
        // written while an entry of the block is borrowed.
        unsafe { slice::from_raw_parts(self.block.0.as_ptr(), len) }
    }

    /// The key.
    #[inline]
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let key_len = usize::from(self.header().key_len);
        &self.frame()[HEADER_LEN..HEADER_LEN + key_len]
    }

    /// The value.
    #[inline]
    #[must_use]
    pub fn value(&self) -> &[u8] {
        let header = self.header();
        let start = HEADER_LEN + usize::from(header.key_len);
        if header.opcode == SETAT {
            return &self.frame()[start + DEADLINE_LEN..];
        }
        &self.frame()[start..]
    }

    /// The deadline, in milliseconds since 1970 UTC; `None` where the entry does not expire.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let header = self.header();
        (header.opcode == SETAT).then(|| self.deadline_in(header))
    }

    #[cold]
    fn deadline_in(&self, header: RequestHeader) -> u64 {
        let start = HEADER_LEN + usize::from(header.key_len);
        let field = self.frame()[start..].first_chunk();
        u64::from_be_bytes(field.copied().unwrap_or_default())
    }

    /// The bytes behind the key, to be changed: the value, and before it the deadline of a SETAT. `None` where a clone
    /// shares them.
    #[inline]
    fn behind_key(&mut self) -> Option<&mut [u8]> {
        let is_shared = |count: &AtomicUsize| count.load(Ordering::Acquire) != 1;
        if self.count().is_some_and(is_shared) {
            return None;
        }
        let header = self.header();
        let start = HEADER_LEN + usize::from(header.key_len);
        // SAFETY: the block has as many initialized bytes as its header states, so `start` is not behind their end.
        // This is the block's only entry, and it is borrowed mutably as long as the slice, so nothing else reads or
        // writes the bytes. The header is not among them.
        Some(unsafe {
            let to = self.block.0.add(start);
            slice::from_raw_parts_mut(to.as_ptr(), header.frame_len() - start)
        })
    }

    /// Changes the deadline in place, if the entry has one and no clone shares its bytes. Otherwise does nothing and
    /// returns false.
    pub fn set_deadline(&mut self, deadline: u64) -> bool {
        if self.header().opcode != SETAT {
            return false;
        }
        let field = self.behind_key().and_then(<[u8]>::first_chunk_mut);
        let is_there = field.is_some();
        if let Some(field) = field {
            *field = deadline.to_be_bytes();
        }
        is_there
    }

    /// Replaces the value by another of the same length, if the entry has no deadline and no clone shares its bytes.
    /// Otherwise does nothing and returns false.
    #[inline]
    pub fn overwrite_value(&mut self, value: &[u8]) -> bool {
        if self.header().opcode == SETAT {
            return false;
        }
        let old = self.behind_key().filter(|old| old.len() == value.len());
        let is_there = old.is_some();
        if let Some(old) = old {
            old.copy_from_slice(value);
        }
        is_there
    }

    /// A copy with this deadline, or without one.
    ///
    /// # Errors
    ///
    /// Where the value is so long that a frame cannot carry a deadline with it.
    pub fn with_deadline(&self, deadline: Option<u64>) -> Result<Entry, EncodeError> {
        Entry::of_put(self.key(), self.value(), deadline)
    }

    /// Bytes of the frame, and of key and value.
    #[inline]
    pub(super) fn lens(&self) -> (usize, u64) {
        let header = self.header();
        let frame_len = header.frame_len();
        let deadline_len = if header.opcode == SETAT {
            DEADLINE_LEN
        } else {
            0
        };
        let size = frame_len - HEADER_LEN - deadline_len;
        (frame_len, u64::try_from(size).unwrap_or(u64::MAX))
    }

    /// Bytes of key and value.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u64 {
        self.lens().1
    }

    /// Whether the frame is longer than [`SHORT_BYTES`]. Cloning a long entry copies none of its bytes.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.frame().len() > SHORT_BYTES
    }

    /// Whether both are clones of one [long](Self::is_long) entry. While both exist, their bytes do not change.
    #[must_use]
    pub fn is_same_block(&self, other: &Entry) -> bool {
        self.block.0 == other.block.0
    }

    /// Replaces the frame by that of another put of the same length, if no clone shares the entry's bytes. Otherwise
    /// does nothing and returns false.
    ///
    /// Saves an allocation for each overwrite: with 4 connections x 128 requests in flight a single server executes
    /// 1.35 times as many SETs, each with a third less processor time.
    #[inline]
    pub fn overwrite(&mut self, frame: &RequestFrame<'_>) -> bool {
        let new = frame.bytes();
        checked(new);
        if self.header().frame_len() != new.len()
            || self
                .count()
                .is_some_and(|count| count.load(Ordering::Acquire) != 1)
        {
            return false;
        }
        let to = self.block.0;
        // SAFETY: the block has as many bytes as its header states, which is the length of `new`. This is its only
        // entry, and it is borrowed mutably, so nothing else reads or writes the bytes, and `new` does not overlap
        // them. The new header states the same length, hence the same kind.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(new).cast(), new.len()) };
        true
    }

    /// Reuses the entry's block for another frame with the same header. `None` if the block has no count or is shared.
    /// A large value that replaces its like then needs no allocation, and no memory from the system.
    #[must_use]
    pub fn into_room(self) -> Option<EntryBuilder> {
        let header = self.header();
        if header.opcode != Opcode::Set.byte() || self.count()?.load(Ordering::Acquire) != 1 {
            return None;
        }
        let entry = ManuallyDrop::new(self);
        Some(EntryBuilder {
            block: Block(entry.block.0),
            capacity: header.frame_len(),
            len: 0,
            header,
        })
    }

    /// Reads a byte of each cache line at the start of the entry, to bring these lines into the cache.
    #[must_use]
    pub fn touch(&self) -> u8 {
        let frame = self.frame();
        let start = &frame[..frame.len().min(SHORT_BYTES)];
        let last = start[start.len() - 1];
        let lines = start.iter().step_by(CACHE_LINE);
        lines.fold(last, |sum, byte| sum ^ byte)
    }

    #[inline(always)]
    fn header(&self) -> RequestHeader {
        // SAFETY: an entry's block has a header at least. It is initialised, and not written while an entry of the
        // block is borrowed; an array of bytes needs no alignment.
        let bytes: [u8; HEADER_LEN] = unsafe { self.block.0.cast().read() };
        // As `RequestHeader::decode`, whose calls from here the compiler does not inline.
        RequestHeader {
            opcode: bytes[0],
            key_len: u16::from_be_bytes([bytes[1], bytes[2]]),
            value_len: u32::from_be_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]),
        }
    }

    /// The count of the block's owners; `None` for a block without a count.
    fn count(&self) -> Option<&AtomicUsize> {
        match Kind::of(self.header().frame_len()) {
            Kind::Plain => None,
            // SAFETY: a counted block begins with its aligned count and lives as long as its entry. The count of an
            // entry's block is used only as an atomic.
            Kind::Counted => Some(unsafe { self.block.start(Kind::Counted).cast().as_ref() }),
        }
    }
}

/// The opcode of an entry with a deadline.
const SETAT: u8 = Opcode::SetAt.byte();

/// Checks that a frame is one that an entry is made of: where it says SETAT, the deadline is there.
#[inline]
fn checked(frame: &[u8]) {
    if frame.first() == Some(&SETAT) {
        let header = frame.first_chunk().copied().map(RequestHeader::decode);
        let needed = header.map_or(usize::MAX, |header| {
            HEADER_LEN + usize::from(header.key_len) + DEADLINE_LEN
        });
        assert!(frame.len() >= needed, "a SETAT without its deadline");
    }
}

/// Appends the frame of a put to `out`: a SET, or a SETAT where there is a deadline.
///
/// # Errors
///
/// Where key or value are longer than a frame can carry; `out` is then unchanged.
pub fn encode_put(
    key: &[u8],
    value: &[u8],
    deadline: Option<u64>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let too_long = |_| EncodeError::ValueTooLong { len: value.len() };
    let (opcode, deadline_len) = match deadline {
        None => (Opcode::Set.byte(), 0),
        Some(_) => (SETAT, DEADLINE_LEN),
    };
    let header = RequestHeader {
        opcode,
        key_len: u16::try_from(key.len())
            .map_err(|_| EncodeError::KeyTooLong { len: key.len() })?,
        value_len: u32::try_from(value.len().saturating_add(deadline_len)).map_err(too_long)?,
    };
    out.reserve(header.frame_len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(key);
    if let Some(deadline) = deadline {
        out.extend_from_slice(&deadline.to_be_bytes());
    }
    out.extend_from_slice(value);
    Ok(())
}

impl Clone for Entry {
    fn clone(&self) -> Entry {
        let Some(count) = self.count() else {
            return Entry::of_bytes(self.frame());
        };
        if count.fetch_add(1, Ordering::Relaxed) > isize::MAX.unsigned_abs() {
            std::process::abort();
        }
        Entry {
            block: Block(self.block.0),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let capacity = self.header().frame_len();
        if let Some(count) = self.count() {
            if count.fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            fence(Ordering::Acquire);
        }
        // SAFETY: this was the last owner. An entry's block has as many bytes as its header states, and is of the kind
        // that follows from that.
        unsafe { self.block.free(Kind::of(capacity), capacity) };
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key().escape_ascii().to_string())
            .field("value_len", &self.value().len())
            .finish()
    }
}

/// An entry whose frame is still arriving. A large value is read from the socket directly into the block where it
/// stays.
///
/// The block grows by at most [`GROWTH_BYTES_MAX`] at a time, as bytes arrive, so a header alone takes no memory.
pub struct EntryBuilder {
    block: Block,
    /// Bytes in the block, at most `needed`.
    capacity: usize,
    /// Bytes of the frame that have arrived, at most `capacity`.
    len: usize,
    /// The header of the whole frame. Only in a [reused block](Entry::into_room) may the bytes that have arrived begin
    /// differently.
    header: RequestHeader,
}

impl EntryBuilder {
    /// Begins with the part of a SET frame that has arrived. `None` if `start` is shorter than a header, longer than
    /// the frame, or the start of another operation's frame.
    #[must_use]
    pub fn new(start: &[u8]) -> Option<EntryBuilder> {
        let header = RequestHeader::decode(*start.first_chunk()?);
        let needed = header.frame_len();
        if start.len() > needed || header.opcode != Opcode::Set.byte() {
            return None;
        }
        let capacity = needed.min(start.len().saturating_add(GROWTH_BYTES_MAX));
        Some(EntryBuilder {
            block: Block::copy_of(Kind::of(needed), start, capacity),
            capacity,
            len: start.len(),
            header,
        })
    }

    /// Bytes of the frame that have arrived.
    #[must_use]
    pub const fn arrived(&self) -> usize {
        self.len
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.header.frame_len()
    }

    /// The bytes that have arrived.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the first `len` bytes of the block are initialised, and writing needs a `&mut` of the builder.
        unsafe { slice::from_raw_parts(self.block.0.as_ptr(), self.len) }
    }

    /// Whether the bytes that have arrived begin with the header that this was made for. Otherwise they do not become
    /// its entry.
    #[must_use]
    pub fn is_of_its_header(&self) -> bool {
        let start = self.bytes().first_chunk();
        start.is_some_and(|&start| RequestHeader::decode(start) == self.header)
    }

    /// Calls `read` to write the next bytes of the frame to their place, and returns how many it wrote. `read` is given
    /// uninitialised memory, which is empty once the frame is whole, and returns the part at its start that it wrote.
    ///
    /// # Errors
    ///
    /// The error of `read`. Nothing has arrived then.
    pub fn read_with<E>(
        &mut self,
        read: impl for<'r> FnOnce(&'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8], E>,
    ) -> Result<usize, E> {
        let needed = self.needed();
        let to = needed.min(self.len.saturating_add(GROWTH_BYTES_MAX));
        if self.len == self.capacity && to > self.capacity {
            // SAFETY: the block is of this kind since `new`, has `capacity` bytes, fewer than `to`, and is unshared.
            unsafe { self.block.grow(Kind::of(needed), self.capacity, to) };
            self.capacity = to;
        }
        // SAFETY: the block has `capacity` bytes, `len` of them in use, and is unshared.
        let space = unsafe {
            let start = self.block.0.add(self.len).cast().as_ptr();
            slice::from_raw_parts_mut(start, self.capacity - self.len)
        };
        let (start, room) = (space.as_ptr(), space.len());
        let filled = read(space)?;
        // A slice of `u8` is initialised. One that begins at `start` shows that that many bytes of the room are
        // initialised.
        let is_there = ptr::eq(start.cast(), filled.as_ptr());
        let count = if is_there { filled.len().min(room) } else { 0 };
        self.len += count;
        Ok(count)
    }

    /// Returns the entry, if the frame is whole.
    ///
    /// # Errors
    ///
    /// Gives the builder back if bytes are missing, or the bytes do not begin with its header.
    pub fn finish(self) -> Result<Entry, EntryBuilder> {
        if self.len < self.needed() || !self.is_of_its_header() {
            return Err(self);
        }
        // `len <= capacity <= needed`, so the block is exactly as long as its frame, and of the kind that follows from
        // that. The entry owns it from here on, so the builder must not free it.
        let builder = ManuallyDrop::new(self);
        Ok(Entry {
            block: Block(builder.block.0),
        })
    }
}

impl Drop for EntryBuilder {
    fn drop(&mut self) {
        // SAFETY: the block is of this kind since `new`, has `capacity` bytes and no other owner.
        unsafe { self.block.free(Kind::of(self.needed()), self.capacity) };
    }
}

impl fmt::Debug for EntryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryBuilder")
            .field("len", &self.len)
            .field("needed", &self.needed())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::wire::Request;
    use crate::wire::request::{Limits, Parsed, parse};

    fn set_frame(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Request::Set { key, value }.encode(&mut bytes).unwrap();
        bytes
    }

    fn copied(bytes: &[u8]) -> Entry {
        match parse(bytes, &Limits::default()).unwrap() {
            Parsed::Whole(frame) => Entry::copy_of(&frame),
            Parsed::Incomplete { .. } => panic!("not whole"),
        }
    }

    #[test]
    fn an_entry_is_its_frame() {
        for (key, value) in [
            (&b""[..], &b""[..]),
            (b"k", b""),
            (b"", b"v"),
            (b"key", &[7; 1_000]),
        ] {
            let frame = set_frame(key, value);
            let entry = copied(&frame);
            assert_eq!(
                (entry.frame(), entry.key(), entry.value()),
                (&frame[..], key, value)
            );
        }
    }

    #[test]
    fn an_entry_is_overwritten_by_a_frame_that_fits() {
        let overwrite = |entry: &mut Entry, key: &[u8], value: &[u8]| {
            let frame = set_frame(key, value);
            match parse(&frame, &Limits::default()).unwrap() {
                Parsed::Whole(frame) => entry.overwrite(&frame),
                Parsed::Incomplete { .. } => panic!("not whole"),
            }
        };
        let mut entry = copied(&set_frame(b"key", b"value"));
        assert!(overwrite(&mut entry, b"key", b"other"));
        assert_eq!(entry.frame(), set_frame(b"key", b"other"));
        assert!(
            overwrite(&mut entry, b"ke", b"yother"),
            "as long, cut elsewhere"
        );
        assert_eq!((entry.key(), entry.value()), (&b"ke"[..], &b"yother"[..]));
        assert!(!overwrite(&mut entry, b"key", b"four"));
        assert!(!overwrite(&mut entry, b"key", b"sixsix"));
    }

    /// Entries of the longest short frame, and of one that is a byte longer.
    fn both_kinds() -> [Entry; 2] {
        let of = |len| copied(&set_frame(b"key", &vec![7; len - HEADER_LEN - 3]));
        let both = [of(SHORT_BYTES), of(SHORT_BYTES + 1)];
        assert_eq!(both.each_ref().map(Entry::is_long), [false, true]);
        both
    }

    #[test]
    fn a_clone_of_a_short_entry_is_a_copy_and_one_of_a_long_entry_shares_its_bytes() {
        for mut entry in both_kinds() {
            let clone = entry.clone();
            assert_eq!(clone.frame(), entry.frame());
            let shares = clone.frame().as_ptr() == entry.frame().as_ptr();
            assert_eq!(shares, entry.is_long());
            let before = entry.frame().to_vec();
            let after = set_frame(b"yek", &vec![8; before.len() - HEADER_LEN - 3]);
            let Parsed::Whole(frame) = parse(&after, &Limits::default()).unwrap() else {
                panic!("not whole")
            };
            assert_eq!(entry.overwrite(&frame), !entry.is_long());
            assert_eq!(clone.frame(), before);
            drop(clone);
            assert!(entry.overwrite(&frame));
            assert_eq!(entry.frame(), after);
        }
    }

    #[test]
    fn a_value_is_overwritten_where_nothing_else_changes() {
        for mut entry in both_kinds() {
            let new = vec![8; entry.value().len()];
            assert!(!entry.overwrite_value(&new[1..]), "another length");
            let clone = entry.clone();
            assert_eq!(entry.overwrite_value(&new), !entry.is_long());
            assert_eq!(clone.value(), vec![7; new.len()]);
            drop(clone);
            assert!(entry.overwrite_value(&new));
            assert_eq!(entry.frame(), set_frame(b"key", &new));
            let mut dated = entry.with_deadline(Some(5)).unwrap();
            assert!(!dated.overwrite_value(&new), "it has a deadline");
            assert!(!dated.overwrite_value(&vec![9; new.len() + DEADLINE_LEN]));
            assert!(dated.set_deadline(6));
            assert_eq!((dated.deadline(), dated.value()), (Some(6), &new[..]));
        }
    }

    #[test]
    fn a_builder_makes_entries_of_both_kinds() {
        for expected in both_kinds() {
            for start in [HEADER_LEN, 100, expected.frame().len()] {
                let mut builder = EntryBuilder::new(&expected.frame()[..start]).unwrap();
                let rest = &expected.frame()[start..];
                let read = builder.read_with(|room| {
                    assert_eq!(room.len(), rest.len());
                    Ok::<_, Infallible>(room.write_copy_of_slice(rest))
                });
                assert_eq!(read, Ok(rest.len()));
                let entry = builder.finish().unwrap();
                assert_eq!(entry.clone().frame(), expected.frame());
                assert_eq!(entry.is_long(), expected.is_long());
            }
        }
    }

    #[test]
    fn an_entry_lives_as_long_as_its_last_clone_on_whatever_thread() {
        for entry in (0..100).flat_map(|_| both_kinds()) {
            let frame = &entry.frame().to_vec();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    let clone = entry.clone();
                    scope.spawn(move || assert_eq!(clone.clone().frame(), frame));
                }
                drop(entry);
            });
        }
    }

    #[test]
    fn a_builder_takes_what_comes_and_no_more_memory_than_that_and_64_kib() {
        let value: Vec<u8> = (0_u32..100_000).flat_map(u32::to_le_bytes).collect();
        let frame = set_frame(b"large", &value);
        for (start, step) in [
            (7, 1_000),
            (100, 70_000),
            (frame.len(), 1),
            (70_000, 333_333),
        ] {
            let mut builder = EntryBuilder::new(&frame[..start]).unwrap();
            assert_eq!(builder.needed(), frame.len());
            let entry = loop {
                builder = match builder.finish() {
                    Ok(entry) => break entry,
                    Err(builder) => builder,
                };
                let at = builder.arrived();
                let read = builder.read_with(|room| {
                    assert!(!room.is_empty() && room.len() <= GROWTH_BYTES_MAX);
                    let count = room.len().min(step);
                    Ok::<_, Infallible>(room[..count].write_copy_of_slice(&frame[at..at + count]))
                });
                assert_eq!(read, Ok(builder.arrived() - at));
            };
            assert!(entry.frame() == frame && entry.value() == value);
        }
    }

    #[test]
    fn a_builder_takes_only_what_was_put_where_it_belongs() {
        let frame = set_frame(b"k", b"value");
        let mut builder = EntryBuilder::new(&frame[..8]).unwrap();
        let elsewhere = builder.read_with(|_| Ok::<_, Infallible>(Box::leak(Box::new([b'x'; 5]))));
        assert_eq!((elsewhere, builder.arrived()), (Ok(0), 8));
        let behind =
            builder.read_with(|room| Ok::<_, Infallible>(room[1..].write_copy_of_slice(b"alue")));
        assert_eq!((behind, builder.arrived()), (Ok(0), 8));
        let failed = builder.read_with(|room| {
            room[..5].write_copy_of_slice(b"wrong");
            Err("the socket failed")
        });
        assert_eq!((failed, builder.arrived()), (Err("the socket failed"), 8));
        let whole =
            builder.read_with(|room| Ok::<_, Infallible>(room.write_copy_of_slice(b"value")));
        assert_eq!(whole, Ok(5));
        let none = builder.read_with(|room| Ok::<_, Infallible>(room.write_copy_of_slice(b"")));
        assert_eq!(none, Ok(0));
        assert_eq!(builder.finish().unwrap().frame(), frame);
    }

    #[test]
    fn an_entry_of_its_own_is_room_for_a_frame_with_the_same_header() {
        let [short, long] = both_kinds();
        let mut next = long.frame().to_vec();
        next[HEADER_LEN..].fill(9);
        assert!(short.into_room().is_none());
        let (clone, at) = (long.clone(), long.frame().as_ptr());
        assert!(long.into_room().is_none(), "somebody else has it");
        let mut room = clone.into_room().unwrap();
        let (needed, half) = (next.len(), next.len() / 2);
        assert_eq!((room.needed(), room.arrived()), (needed, 0));
        let put = |room: &mut EntryBuilder, from: usize, to: usize| {
            let read = room.read_with(|room| {
                assert_eq!(room.len(), needed - from);
                Ok::<_, Infallible>(room[..to - from].write_copy_of_slice(&next[from..to]))
            });
            assert_eq!(read, Ok(to - from));
        };
        // Less than a header is no frame yet, and less than a frame is no entry.
        for (from, to) in [(0, HEADER_LEN - 1), (HEADER_LEN - 1, half)] {
            assert!(!room.is_of_its_header());
            put(&mut room, from, to);
            room = room.finish().unwrap_err();
        }
        assert!(room.is_of_its_header());
        put(&mut room, half, needed);
        let entry = room.finish().unwrap();
        assert_eq!((entry.frame(), entry.frame().as_ptr()), (&next[..], at));
        // As many bytes that begin otherwise are no entry.
        let mut room = entry.into_room().unwrap();
        next[6] ^= 1;
        let read = room.read_with(|room| Ok::<_, Infallible>(room.write_copy_of_slice(&next)));
        assert_eq!(read, Ok(needed));
        assert!(!room.is_of_its_header());
        assert_eq!(room.finish().unwrap_err().bytes(), next);
    }

    #[test]
    fn a_builder_takes_no_start_that_is_not_one() {
        let frame = set_frame(b"k", b"v");
        assert!(EntryBuilder::new(&frame[..6]).is_none());
        assert!(EntryBuilder::new(&[&frame[..], b"x"].concat()).is_none());
        assert!(
            EntryBuilder::new(b"\x02\x00\x09\x00\x00\x00\x00key").is_none(),
            "a GET"
        );
        // A builder whose frame never becomes whole is freed as well.
        assert!(EntryBuilder::new(&frame[..8]).unwrap().finish().is_err());
    }
}
