//! One key with its value, as it lies in the store.
//!
//! # Why there is `unsafe` here, and what was measured
//!
//! An entry is a reference-counted block that can still grow while its bytes arrive. `triomphe::ThinArc`, which this
//! replaced, cannot: a large value was gathered in a buffer and then copied, so that for a moment it was there twice. A
//! SET of 64 MiB raised the process by 128 MiB and overwriting one by 192; now by 64 and 128
//! (`tests/server/requests.rs` holds it there). Every entry is 8 bytes smaller as well.
//!
//! # Proof
//!
//! A `Block` is the start of one allocation of `layout(capacity)`: the count, then `capacity` bytes, all of them
//! initialised from the start. It is unshared until [`EntryBuilder::finish`] or [`Entry::copy_of`] turns it into an
//! [`Entry`]; from then on its bytes are written only by [`Entry::overwrite`], through a `&mut` of an entry that is the
//! only one of its block, so nobody reads them meanwhile and sharing them between threads is sound (`Send` and `Sync`);
//! and its capacity is the length that its own header states, so the layout for freeing it can be told from its bytes.
//! That the entry is the only one is told by a count of 1, read with acquire ordering, as `Arc::get_mut` does: nobody
//! can clone it meanwhile, since the only entry to clone is borrowed, and what others did before they dropped theirs
//! happens before. The count is that of `std`'s `Arc`: a clone adds one, relaxed, since whoever clones already
//! keeps the block alive; a drop takes one with release ordering, and the last one acquires before it frees, so
//! every access of every owner happens before. A count past `isize::MAX` aborts, as it could otherwise wrap.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::{GROWTH_BYTES_MAX, Opcode, RequestFrame};

/// A client's frame, kept byte for byte in one reference-counted allocation.
///
/// A SET frame already holds the lengths, the key and the value one after another, which is just what the store needs
/// of an entry; so a SET costs one copy from the receive buffer (none where it is large, see [`EntryBuilder`]), and
/// what replication sends is what the client sent. Cloning copies a pointer: a reader takes a clone under a lock and
/// looks at the bytes outside it.
///
/// Memory: 8 bytes of count, 7 of header, the key and the value, and whatever the allocator rounds up.
///
/// Invariant: the bytes are exactly as many as their header announces.
pub struct Entry {
    block: Block,
}

/// The start of an allocation: a count, then the bytes. Whoever holds one says how many bytes there are.
struct Block(NonNull<AtomicUsize>);

// SAFETY: see the module's proof. The count is atomic and the bytes are never written while a block is shared.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// Bytes of a line of the cache.
const CACHE_LINE: usize = 64;

const COUNT_LEN: usize = size_of::<AtomicUsize>();

/// The layout of a block with `capacity` bytes.
fn layout(capacity: usize) -> Layout {
    let size = COUNT_LEN.saturating_add(capacity);
    match Layout::from_size_align(size, align_of::<AtomicUsize>()) {
        Ok(layout) => layout,
        // As `Vec` does; no frame of the protocol is so long on a 64-bit machine.
        Err(_) => handle_alloc_error(Layout::new::<AtomicUsize>()),
    }
}

impl Block {
    /// A block with a copy of `bytes` and a count of one.
    fn copy_of(bytes: &[u8]) -> Block {
        let layout = layout(bytes.len());
        // SAFETY: the layout's size is at least that of the count, hence not 0.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        let block = Block(start.cast());
        // SAFETY: the allocation has room and alignment for a count and as many bytes behind it; it is ours alone, so
        // it does not overlap `bytes`.
        unsafe {
            block.0.write(AtomicUsize::new(1));
            block
                .bytes()
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        block
    }

    /// Where the bytes begin.
    const fn bytes(&self) -> NonNull<u8> {
        // SAFETY: the allocation begins with a count, so one past it is within or at the end of it.
        unsafe { self.0.add(1).cast() }
    }

    /// Makes an unshared block of `from` bytes one of `to` bytes, the new ones 0.
    ///
    /// # Safety
    ///
    /// The block has `from` bytes and is shared with nobody; `to >= from`.
    unsafe fn grow(&mut self, from: usize, to: usize) {
        let new = layout(to);
        // SAFETY: the block was allocated with `layout(from)`, and the new size was checked in making its layout.
        let moved = unsafe { realloc(self.0.as_ptr().cast(), layout(from), new.size()) };
        let Some(moved) = NonNull::new(moved) else {
            handle_alloc_error(new)
        };
        *self = Block(moved.cast());
        // SAFETY: bytes `from..to` are within the allocation, which nobody else has.
        unsafe { self.bytes().add(from).write_bytes(0, to - from) };
    }

    /// Frees the block.
    ///
    /// # Safety
    ///
    /// The block has `capacity` bytes, and nobody uses it any more.
    unsafe fn free(&mut self, capacity: usize) {
        // SAFETY: the block was allocated with this layout.
        unsafe { dealloc(self.0.as_ptr().cast(), layout(capacity)) };
    }
}

impl Entry {
    /// Copies a request out of the buffer that it lies in.
    #[must_use]
    pub fn copy_of(frame: &RequestFrame<'_>) -> Entry {
        Entry {
            block: Block::copy_of(frame.bytes()),
        }
    }

    /// The frame, byte for byte as the client sent it.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        let len = self.header().frame_len();
        // SAFETY: an entry's block has just as many bytes as its header announces, initialised, and never written while
        // an entry of it is borrowed.
        unsafe { slice::from_raw_parts(self.block.bytes().as_ptr(), len) }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let key_len = usize::from(self.header().key_len);
        &self.frame()[HEADER_LEN..HEADER_LEN + key_len]
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        let key_len = usize::from(self.header().key_len);
        &self.frame()[HEADER_LEN + key_len..]
    }

    /// Puts another frame in the place of this one, where that is as long and no other clone of the entry is about.
    /// False, and nothing done, otherwise.
    ///
    /// Saves an allocation for what is overwritten by its like again and again: with 4 connections x 128 requests in
    /// flight a server alone takes 1.35 times the SETs so, each for a third less processor time.
    pub fn overwrite(&mut self, frame: &RequestFrame<'_>) -> bool {
        let new = frame.bytes();
        if self.header().frame_len() != new.len() || self.count().load(Ordering::Acquire) != 1 {
            return false;
        }
        let to = self.block.bytes();
        // SAFETY: the block has as many bytes as its header announces, which are as many as `new` has. This is its only
        // entry, borrowed for changing it, so nobody else reads or writes them, and `new` cannot lie among them. The
        // new header announces the same length.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(new).cast(), new.len()) };
        true
    }

    /// Reads a byte of each line of the cache that the entry begins with, for no other purpose than to have them there.
    #[must_use]
    pub fn touch(&self) -> u8 {
        let frame = self.frame();
        let start = &frame[..frame.len().min(4 * CACHE_LINE)];
        let last = start[start.len() - 1];
        let lines = start.iter().step_by(CACHE_LINE);
        lines.fold(last, |sum, byte| sum ^ byte)
    }

    fn header(&self) -> RequestHeader {
        // SAFETY: an entry's block has a header at least, initialised, and never written while an entry of it is
        // borrowed; an array of bytes may lie anywhere.
        RequestHeader::decode(unsafe { self.block.bytes().cast().read() })
    }

    fn count(&self) -> &AtomicUsize {
        // SAFETY: the block lives as long as its entry, and after `finish` its count is only used as an atomic.
        unsafe { self.block.0.as_ref() }
    }
}

impl Clone for Entry {
    fn clone(&self) -> Entry {
        if self.count().fetch_add(1, Ordering::Relaxed) > isize::MAX.unsigned_abs() {
            std::process::abort();
        }
        Entry {
            block: Block(self.block.0),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.count().fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            let capacity = self.header().frame_len();
            // SAFETY: this was the last owner, and an entry's block has as many bytes as its header announces.
            unsafe { self.block.free(capacity) };
        }
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

/// An entry whose frame is still arriving: a large value goes from the socket straight into the memory where it stays.
///
/// It grows by [`GROWTH_BYTES_MAX`] at a time, as the bytes come, so that a header's claim takes no memory.
pub struct EntryBuilder {
    block: Block,
    /// Bytes in the block; never more than `needed`.
    capacity: usize,
    /// Bytes of the frame that have arrived; never more than `capacity`.
    len: usize,
    /// Bytes of the whole frame, as its header says.
    needed: usize,
}

impl EntryBuilder {
    /// Takes over a SET frame of which `start` has arrived; `None` where that is not even its header, is more than the
    /// frame, or is another operation's.
    #[must_use]
    pub fn new(start: &[u8]) -> Option<EntryBuilder> {
        let header = RequestHeader::decode(*start.first_chunk()?);
        let needed = header.frame_len();
        if start.len() > needed || header.opcode != Opcode::Set.byte() {
            return None;
        }
        Some(EntryBuilder {
            block: Block::copy_of(start),
            capacity: start.len(),
            len: start.len(),
            needed,
        })
    }

    /// Bytes of the frame that have arrived.
    #[must_use]
    pub const fn arrived(&self) -> usize {
        self.len
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub const fn needed(&self) -> usize {
        self.needed
    }

    /// Room for the next bytes of the frame; empty once it is whole.
    pub fn space(&mut self) -> &mut [u8] {
        let to = self.needed.min(self.len.saturating_add(GROWTH_BYTES_MAX));
        if self.len == self.capacity && to > self.capacity {
            // SAFETY: the block has `capacity` bytes, fewer than `to`, and is shared with nobody.
            unsafe { self.block.grow(self.capacity, to) };
            self.capacity = to;
        }
        // SAFETY: the block has `capacity` initialised bytes, `len` of which are taken, and is shared with nobody.
        unsafe {
            let start = self.block.bytes().add(self.len);
            slice::from_raw_parts_mut(start.as_ptr(), self.capacity - self.len)
        }
    }

    /// Takes note that the first `count` bytes of the last [`space`](Self::space) are filled; all of it where it was
    /// shorter.
    pub fn filled(&mut self, count: usize) {
        self.len = self.capacity.min(self.len.saturating_add(count));
    }

    /// The entry, once the frame is whole; until then the builder itself.
    ///
    /// # Errors
    ///
    /// The builder, where bytes of the frame are still to come.
    pub fn finish(self) -> Result<Entry, EntryBuilder> {
        if self.len < self.needed {
            return Err(self);
        }
        // `len <= capacity <= needed`, so the block is just as long as its frame. It changes owners, and the builder
        // must not free it.
        let builder = ManuallyDrop::new(self);
        Ok(Entry {
            block: Block(builder.block.0),
        })
    }
}

impl Drop for EntryBuilder {
    fn drop(&mut self) {
        // SAFETY: the block has `capacity` bytes and no other owner.
        unsafe { self.block.free(self.capacity) };
    }
}

impl fmt::Debug for EntryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryBuilder")
            .field("len", &self.len)
            .field("needed", &self.needed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
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
    fn an_entry_is_overwritten_by_a_frame_that_fits_where_it_has_no_clone() {
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
        let clone = entry.clone();
        assert!(!overwrite(&mut entry, b"key", b"again"));
        assert_eq!(clone.value(), b"yother");
        drop(clone);
        assert!(overwrite(&mut entry, b"key", b"again"));
        assert_eq!(entry.value(), b"again");
    }

    #[test]
    fn an_entry_lives_as_long_as_its_last_clone_on_whatever_thread() {
        let frame = set_frame(b"key", &[7; 100]);
        for _ in 0..200 {
            let entry = copied(&frame);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    let clone = entry.clone();
                    let frame = &frame;
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
                let space = builder.space();
                assert!(!space.is_empty() && space.len() <= GROWTH_BYTES_MAX);
                let count = space.len().min(step);
                space[..count].copy_from_slice(&frame[at..at + count]);
                builder.filled(count);
            };
            assert!(entry.frame() == frame && entry.value() == value);
        }
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
        // One that never becomes whole is freed all the same.
        assert!(EntryBuilder::new(&frame[..8]).unwrap().finish().is_err());
    }
}
