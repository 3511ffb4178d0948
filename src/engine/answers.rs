//! Answers on their way to a client.

use std::ops::Range;

use super::entry::{Entry, SHORT_BYTES};
use crate::wire::response::ResponseHeader;
use crate::wire::{Status, TOKEN_LEN, Token};

/// Longest value in bytes that is copied while its partition is locked: such a copy costs less than raising and
/// lowering the entry's count. A longer value is cloned under the lock, and copied or sent after it.
pub const COPIED_BYTES: usize = 1 << 10;

// Cloning an entry beyond this length must not copy it.
const _: () = assert!(COPIED_BYTES >= SHORT_BYTES);

/// Shortest value in bytes that is sent from its own memory and not copied behind the other answers.
pub const DIRECT_BYTES: usize = 16 << 10;

/// Answer frames one behind another, the last of which may have its value apart.
///
/// Invariant: nothing is added behind a value that is apart.
#[derive(Debug, Default)]
pub struct Answers {
    bytes: Vec<u8>,
    apart: Option<Apart>,
    /// Offset of a token in the newest answer, which has to be filled in.
    slot: Option<usize>,
}

/// A part of an answer's value.
pub(super) enum Part<'p> {
    Bytes(&'p [u8]),
    /// The token of the record that the command makes: filled in once the record has its index.
    Token,
    /// The value of an entry whose partition is locked. It is the last part.
    Value(&'p Entry),
}

/// A value that follows [`Answers::bytes`] and is not copied.
#[derive(Debug)]
enum Apart {
    Entry(Entry),
    Bytes(Vec<u8>),
}

impl Apart {
    fn value(&self) -> &[u8] {
        match self {
            Apart::Entry(entry) => entry.value(),
            Apart::Bytes(bytes) => bytes,
        }
    }
}

impl Answers {
    /// No answers and no memory.
    #[must_use]
    pub const fn new() -> Answers {
        Answers {
            bytes: Vec::new(),
            apart: None,
            slot: None,
        }
    }

    /// No answers, and memory for so many bytes of them.
    #[must_use]
    pub(super) fn with_capacity(bytes: usize) -> Answers {
        Answers {
            bytes: Vec::with_capacity(bytes),
            ..Answers::new()
        }
    }

    /// Adds an answer.
    #[inline]
    pub fn push(&mut self, status: Status, value: &[u8]) {
        debug_assert!(
            self.apart.is_none(),
            "an answer behind a value that is apart"
        );
        self.bytes.extend_from_slice(&header(status, value.len()));
        self.bytes.extend_from_slice(value);
    }

    /// Adds an answer with a value of any length, which is not copied where it is long.
    pub fn push_bytes(&mut self, status: Status, value: Vec<u8>) {
        if value.len() < DIRECT_BYTES {
            self.push(status, &value);
        } else {
            self.bytes.extend_from_slice(&header(status, value.len()));
            self.apart = Some(Apart::Bytes(value));
        }
    }

    /// Adds OK and the value of `entry`, whose partition is locked. Returns false where nothing may be added before
    /// [`settle`](Self::settle), which is to be called once nothing is locked.
    #[inline(always)]
    pub(super) fn push_value(&mut self, entry: &Entry) -> bool {
        let value = entry.value();
        let is_short = value.len() <= COPIED_BYTES;
        if is_short {
            self.push(Status::Ok, value);
        } else {
            self.push_long(entry);
        }
        is_short
    }

    /// Adds an answer whose value is made of parts. As [`push_value`](Self::push_value) where a long value is among
    /// them: then nothing may be added before [`settle`](Self::settle), as [`has_apart`](Self::has_apart) says.
    pub(super) fn push_parts(&mut self, status: Status, parts: &[Part<'_>]) {
        debug_assert!(
            self.apart.is_none(),
            "an answer behind a value that is apart"
        );
        let len = |part: &Part<'_>| match part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Token => TOKEN_LEN,
            Part::Value(entry) => entry.value().len(),
        };
        let header = header(status, parts.iter().map(len).sum());
        self.bytes.extend_from_slice(&header);
        for part in parts {
            match part {
                Part::Bytes(bytes) => self.bytes.extend_from_slice(bytes),
                Part::Token => {
                    self.slot = Some(self.bytes.len());
                    self.bytes.extend_from_slice(&[0; TOKEN_LEN]);
                }
                Part::Value(entry) if entry.value().len() <= COPIED_BYTES => {
                    self.bytes.extend_from_slice(entry.value());
                }
                Part::Value(entry) => self.apart = Some(Apart::Entry(Entry::clone(entry))),
            }
        }
    }

    /// The entry whose value is apart, which is then the caller's to add.
    pub(super) fn take_apart(&mut self) -> Option<Entry> {
        match self.apart.take()? {
            Apart::Entry(entry) => Some(entry),
            Apart::Bytes(_) => unreachable!("a command answers with values of entries"),
        }
    }

    /// The place of a token in the newest answer, which is then the caller's to [fill](Self::fill).
    pub(super) const fn take_slot(&mut self) -> Option<usize> {
        self.slot.take()
    }

    /// Fills in a token.
    pub(super) fn fill(&mut self, slot: usize, token: Token) {
        if let Some(place) = self.bytes.get_mut(slot..slot + TOKEN_LEN) {
            place.copy_from_slice(&token.encode());
        }
    }

    #[cold]
    fn push_long(&mut self, entry: &Entry) {
        let header = header(Status::Ok, entry.value().len());
        self.bytes.extend_from_slice(&header);
        self.apart = Some(Apart::Entry(entry.clone()));
    }

    /// Copies a value that is apart and shorter than [`DIRECT_BYTES`].
    #[inline]
    pub(super) fn settle(&mut self) {
        if self.apart.is_some() {
            self.copy_apart();
        }
    }

    #[cold]
    fn copy_apart(&mut self) {
        let is_short = |apart: &mut Apart| apart.value().len() < DIRECT_BYTES;
        if let Some(apart) = self.apart.take_if(is_short) {
            self.bytes.extend_from_slice(apart.value());
        }
    }

    /// Whether the end of the last frame is [apart](Self::apart).
    #[must_use]
    pub const fn has_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// Frames, except for a value that is [apart](Self::apart).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The end of the last frame, where it is apart from the others.
    #[must_use]
    pub fn apart(&self) -> Option<&[u8]> {
        self.apart.as_ref().map(Apart::value)
    }

    /// Whether nothing is left to be sent.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.apart.is_none()
    }

    /// Bytes of memory held for frames.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Removes the first `count` of [`bytes`](Self::bytes), which are sent.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Removes everything behind the first `len` of [`bytes`](Self::bytes).
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.apart = None;
        self.slot = None;
    }

    /// Adds whole frames.
    pub fn push_frames(&mut self, frames: &[u8]) {
        debug_assert!(
            self.apart.is_none(),
            "an answer behind a value that is apart"
        );
        self.bytes.extend_from_slice(frames);
    }

    /// Puts `frames` in the place of those at `range` of [`bytes`](Self::bytes). A value that is apart goes with its
    /// frame.
    pub fn replace(&mut self, range: Range<usize>, frames: &[u8]) {
        if range.end == self.bytes.len() {
            self.apart = None;
        }
        self.bytes.splice(range, frames.iter().copied());
    }

    /// Removes everything and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Frees the memory of answers that are sent.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

#[inline]
fn header(status: Status, value_len: usize) -> [u8; crate::wire::response::HEADER_LEN] {
    match ResponseHeader::new(status, value_len) {
        Ok(header) => header.encode(),
        Err(_) => unreachable!("a stored value came in a frame whose length field is as wide"),
    }
}
