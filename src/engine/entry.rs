//! One key with its value, as it lies in the store.
//!
//! # Why there is `unsafe` here, and what was measured
//!
//! An entry is one pointer to one block, whose length and kind its own header tells. A `Box<[u8]>` is twice as wide,
//! which at the load of a table is 17 bytes an entry; and a count of references before each frame is 8 bytes more,
//! which the allocator makes 16: entries of 16 + 64 bytes take 115 so, and 131 with a count in each of them. Long
//! entries have one all the same, since copying them under a lock would stall everybody else.
//!
//! A block can still grow while its bytes arrive. `triomphe::ThinArc`, which was here at first, cannot: a large value
//! was gathered in a buffer and then copied, so that for a moment it was there twice. A SET of 64 MiB raised the
//! process by 128 MiB and overwriting one by 192; now by 64 and 128 (`tests/server/requests.rs` holds it there).
//!
//! # Proof
//!
//! A block is one allocation of `layout(kind, capacity)`: for `Kind::Counted` a count, then `capacity` bytes of a
//! frame, all of them initialised once it is an entry's; of a builder's only the first `len` are, and `len` grows by
//! bytes alone that whoever put them there shows as initialised ([`EntryBuilder::read_with`]). A `Block` points at the
//! first of these bytes. The kind follows from the length of the whole frame alone (`Kind::of`), which the frame's
//! header states, and with which a block begins: so whoever has an entry can tell its kind and its capacity, hence the
//! layout for freeing it, from its bytes. A builder tells the kind from the same header before it allocates, and that
//! header's bytes never change until it is an entry; [`Entry::overwrite`] changes them for others that state the same
//! length, hence the same kind. A builder that was made of an entry ([`Entry::into_room`]) has the block of that, and
//! keeps the header whose length tells the layout; it becomes an entry only where what has arrived begins with that
//! header ([`EntryBuilder::finish`]).
//!
//! *One owner.* A block that is not counted has one entry, from [`EntryBuilder::finish`] or [`Entry::copy_of`] on until
//! that is dropped: nothing makes a second one of it, as [`Entry::clone`] copies the bytes. It is owned as a
//! `Box<[u8]>` is, written through `&mut Entry` alone and read through `&Entry`, so it may be sent to and shared
//! between threads.
//!
//! *Counted.* A block is unshared until it becomes an [`Entry`]; from then on its bytes are written only by
//! [`Entry::overwrite`], through a `&mut` of an entry that is the only one of its block, and by a builder that has
//! taken such an entry's place ([`Entry::into_room`]), so nobody else reads them meanwhile, and sharing them between
//! threads is sound (`Send` and `Sync`). That the entry is the only one is told by a count of 1, read with acquire
//! ordering, as `Arc::get_mut` does: nobody can clone it meanwhile, since the only entry to clone is borrowed or has
//! been given up, and what others did before they dropped theirs happens before. The count is that of `std`'s `Arc`: a
//! clone adds one, relaxed, since whoever clones already keeps the block alive; a drop takes one with release ordering,
//! and the last one acquires before it frees, so every access of every owner happens before. A drop reads the header
//! before it takes its own one, as afterwards another owner may free it. A count past `isize::MAX` aborts, as it could
//! otherwise wrap.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::{GROWTH_BYTES_MAX, Opcode, RequestFrame};

/// Bytes of a line of the cache.
const CACHE_LINE: usize = 64;

/// Longest frame in bytes that has no count: few enough lines of the cache to be copied under a lock, in a full copy
/// with all others of a partition. For a longer one 8 bytes of count are 3 % at the most.
pub const SHORT_BYTES: usize = 4 * CACHE_LINE;

/// A client's frame, kept byte for byte in one allocation.
///
/// A SET frame already holds the lengths, the key and the value one after another, which is just what the store needs
/// of an entry; so a SET costs one copy from the receive buffer (none where it is large, see [`EntryBuilder`]), and
/// what replication sends is what the client sent.
///
/// Cloning an entry of at most [`SHORT_BYTES`] copies it, and cloning a [long](Self::is_long) one counts the clone and
/// copies a pointer: a reader takes a clone of it under a lock and looks at the bytes outside.
///
/// Memory: 7 bytes of header, the key and the value, and whatever the allocator rounds up; 8 of count in a long one.
///
/// Invariant: the bytes are exactly as many as their header announces.
pub struct Entry {
    block: Block,
}

/// Where the bytes of a frame begin, in an allocation. Whoever holds one says how many bytes there are, and of what
/// kind the block is.
struct Block(NonNull<u8>);

// SAFETY: see the module's proof. The count is atomic and the bytes are never written while a block is shared.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// What an allocation holds.
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
    /// A block with room for `capacity` bytes, or for as many as `bytes` has where that is more. It begins with a copy
    /// of these, and these with a header; and it has a count of one where its kind has a count.
    fn copy_of(kind: Kind, bytes: &[u8], capacity: usize) -> Block {
        debug_assert!(bytes.len() >= HEADER_LEN);
        let layout = kind.layout(capacity.max(bytes.len()));
        // SAFETY: the layout's size is not 0, since whoever calls this has a header at least.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the allocation has room and alignment for what its kind has before the bytes, and for as many bytes
        // behind it; it is ours alone, so it does not overlap `bytes`.
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

    /// Where the allocation begins.
    ///
    /// # Safety
    ///
    /// The block is of this kind.
    unsafe fn start(&self, kind: Kind) -> NonNull<u8> {
        // SAFETY: the allocation has so many bytes before those that the block points at.
        unsafe { self.0.sub(kind.prefix()) }
    }

    /// Makes an unshared block of `from` bytes one of `to` bytes, the new ones not initialised.
    ///
    /// # Safety
    ///
    /// The block is of this kind, has `from` bytes and is shared with nobody; `to >= from`.
    unsafe fn grow(&mut self, kind: Kind, from: usize, to: usize) {
        let new = kind.layout(to);
        // SAFETY: the block was allocated with this layout, and the new size was checked in making its layout.
        let moved = unsafe { realloc(self.start(kind).as_ptr(), kind.layout(from), new.size()) };
        let Some(moved) = NonNull::new(moved) else {
            handle_alloc_error(new)
        };
        // SAFETY: the allocation is of `to` bytes behind its prefix, and nobody else has it.
        *self = Block(unsafe { moved.add(kind.prefix()) });
    }

    /// Frees the block.
    ///
    /// # Safety
    ///
    /// The block is of this kind, has `capacity` bytes, and nobody uses it any more.
    unsafe fn free(&mut self, kind: Kind, capacity: usize) {
        // SAFETY: the block was allocated with this layout.
        unsafe { dealloc(self.start(kind).as_ptr(), kind.layout(capacity)) };
    }
}

impl Entry {
    /// Copies a request out of the buffer that it lies in.
    #[must_use]
    pub fn copy_of(frame: &RequestFrame<'_>) -> Entry {
        Entry::of_bytes(frame.bytes())
    }

    /// Of a whole frame.
    fn of_bytes(frame: &[u8]) -> Entry {
        Entry {
            block: Block::copy_of(Kind::of(frame.len()), frame, frame.len()),
        }
    }

    /// The frame, byte for byte as the client sent it.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        let len = self.header().frame_len();
        // SAFETY: an entry's block has just as many bytes as its header announces, initialised, and never written while
        // an entry of it is borrowed.
        unsafe { slice::from_raw_parts(self.block.0.as_ptr(), len) }
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

    /// Whether it is longer than [`SHORT_BYTES`], so that cloning it copies none of its bytes.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.frame().len() > SHORT_BYTES
    }

    /// Whether both are clones of one [long](Self::is_long) entry. While both live, neither's bytes change.
    #[must_use]
    pub fn is_same_block(&self, other: &Entry) -> bool {
        self.block.0 == other.block.0
    }

    /// Puts another frame in the place of this one, where that is as long and no other clone shares the entry's bytes.
    /// False, and nothing done, otherwise.
    ///
    /// Saves an allocation for what is overwritten by its like again and again: with 4 connections x 128 requests in
    /// flight a server alone takes 1.35 times the SETs so, each for a third less processor time.
    pub fn overwrite(&mut self, frame: &RequestFrame<'_>) -> bool {
        let new = frame.bytes();
        if self.header().frame_len() != new.len()
            || self
                .count()
                .is_some_and(|count| count.load(Ordering::Acquire) != 1)
        {
            return false;
        }
        let to = self.block.0;
        // SAFETY: the block has as many bytes as its header announces, which are as many as `new` has. This is its only
        // entry, borrowed for changing it, so nobody else reads or writes them, and `new` cannot lie among them. The
        // new header announces the same length, hence the same kind.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(new).cast(), new.len()) };
        true
    }

    /// The entry's block as the room for another frame with the same header, where it has a count and no other clone
    /// shares it. Saves a large value's memory a way through the allocator, and to the system where that gives it back.
    #[must_use]
    pub fn into_room(self) -> Option<EntryBuilder> {
        if self.count()?.load(Ordering::Acquire) != 1 {
            return None;
        }
        let header = self.header();
        let entry = ManuallyDrop::new(self);
        Some(EntryBuilder {
            block: Block(entry.block.0),
            capacity: header.frame_len(),
            len: 0,
            header,
        })
    }

    /// Reads a byte of each line of the cache that the entry begins with, for no other purpose than to have them there.
    #[must_use]
    pub fn touch(&self) -> u8 {
        let frame = self.frame();
        let start = &frame[..frame.len().min(SHORT_BYTES)];
        let last = start[start.len() - 1];
        let lines = start.iter().step_by(CACHE_LINE);
        lines.fold(last, |sum, byte| sum ^ byte)
    }

    fn header(&self) -> RequestHeader {
        // SAFETY: an entry's block has a header at least, initialised, and never written while an entry of it is
        // borrowed; an array of bytes may lie anywhere.
        RequestHeader::decode(unsafe { self.block.0.cast().read() })
    }

    /// The count of the block's owners, where it has one.
    fn count(&self) -> Option<&AtomicUsize> {
        match Kind::of(self.header().frame_len()) {
            Kind::Plain => None,
            // SAFETY: a counted block begins with its count, aligned; it lives as long as its entry, and once it is an
            // entry's the count is only used as an atomic.
            Kind::Counted => Some(unsafe { self.block.start(Kind::Counted).cast().as_ref() }),
        }
    }
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
        // SAFETY: this was the last owner, and an entry's block has as many bytes as its header announces, and is of
        // the kind that follows from that.
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

/// An entry whose frame is still arriving: a large value goes from the socket straight into the memory where it stays.
///
/// It grows by [`GROWTH_BYTES_MAX`] at a time, as the bytes come, so that a header's claim takes no memory.
pub struct EntryBuilder {
    block: Block,
    /// Bytes in the block; never more than `needed`.
    capacity: usize,
    /// Bytes of the frame that have arrived; never more than `capacity`.
    len: usize,
    /// The header of the whole frame. What has arrived may begin otherwise in a [room](Entry::into_room) alone.
    header: RequestHeader,
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

    /// What has arrived.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes of the block have arrived, hence are initialised, and whoever writes more has a `&mut`.
        unsafe { slice::from_raw_parts(self.block.0.as_ptr(), self.len) }
    }

    /// Whether what has arrived begins with the header that this was made for. A frame that does not is not its entry.
    #[must_use]
    pub fn is_of_its_header(&self) -> bool {
        let start = self.bytes().first_chunk();
        start.is_some_and(|&start| RequestHeader::decode(start) == self.header)
    }

    /// Has `read` put the next bytes of the frame into their place, and returns how many these are. `read` is given
    /// room for some, none once the frame is whole, and returns the bytes that it has put at the room's start.
    ///
    /// # Errors
    ///
    /// That of `read`; nothing has arrived then.
    pub fn read_with<E>(
        &mut self,
        read: impl for<'r> FnOnce(&'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8], E>,
    ) -> Result<usize, E> {
        let needed = self.needed();
        let to = needed.min(self.len.saturating_add(GROWTH_BYTES_MAX));
        if self.len == self.capacity && to > self.capacity {
            // SAFETY: the block is of this kind since `new`, has `capacity` bytes, fewer than `to`, and is shared with
            // nobody.
            unsafe { self.block.grow(Kind::of(needed), self.capacity, to) };
            self.capacity = to;
        }
        // SAFETY: the block has room for `capacity` bytes, `len` of which are taken, and is shared with nobody.
        let space = unsafe {
            let start = self.block.0.add(self.len).cast().as_ptr();
            slice::from_raw_parts_mut(start, self.capacity - self.len)
        };
        let (start, room) = (space.as_ptr(), space.len());
        let filled = read(space)?;
        // Whoever has a slice of bytes that begins where the room does has initialised so many of it.
        let is_there = ptr::eq(start.cast(), filled.as_ptr());
        let count = if is_there { filled.len().min(room) } else { 0 };
        self.len += count;
        Ok(count)
    }

    /// The entry, once the frame is whole; until then the builder itself.
    ///
    /// # Errors
    ///
    /// The builder, where bytes of the frame are still to come.
    pub fn finish(self) -> Result<Entry, EntryBuilder> {
        if self.len < self.needed() || !self.is_of_its_header() {
            return Err(self);
        }
        // `len <= capacity <= needed`, so the block is just as long as its frame, and of the kind that follows from
        // that. It changes owners, and the builder must not free it.
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

    /// Entries of frames as long as can be short, and one byte longer.
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
        // Less than a header is no frame yet, and less than a frame no entry.
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
        // One that never becomes whole is freed all the same.
        assert!(EntryBuilder::new(&frame[..8]).unwrap().finish().is_err());
    }
}
