//! One key with its value, as it lies in the store.

use std::fmt;

use triomphe::ThinArc;

use crate::wire::RequestFrame;
use crate::wire::request::{HEADER_LEN, RequestHeader};

/// A client's frame, kept byte for byte in one reference-counted allocation.
///
/// A SET frame already holds the lengths, the key and the value one after another, which is just what the store needs
/// of an entry; so a SET costs one copy from the receive buffer, and what replication sends is what the client sent.
/// Cloning copies a pointer: a reader takes a clone under a lock and looks at the bytes outside it.
///
/// Memory: 16 bytes of counts, 7 of header, the key and the value, and whatever the allocator rounds up.
///
/// Invariant: the bytes are exactly one valid frame, since [`Entry::copy_of`] is the only way to make an entry.
#[derive(Clone)]
pub struct Entry {
    frame: ThinArc<(), u8>,
}

impl Entry {
    /// Copies a request out of the buffer that it lies in.
    #[must_use]
    pub fn copy_of(frame: &RequestFrame<'_>) -> Entry {
        Entry {
            frame: ThinArc::from_header_and_slice((), frame.bytes()),
        }
    }

    /// The frame, byte for byte as the client sent it.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.frame.slice
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.frame()[HEADER_LEN..self.value_at()]
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.frame()[self.value_at()..]
    }

    fn value_at(&self) -> usize {
        match self.frame().first_chunk() {
            Some(header) => HEADER_LEN + usize::from(RequestHeader::decode(*header).key_len),
            None => unreachable!("an entry holds a whole frame"),
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
