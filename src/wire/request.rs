//! Requests: header, limits, and the faults of bad ones.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::command::Limit;
use super::traits::Traits;
use super::{KEY_LEN_MAX, Opcode, Request, VALUE_LEN_MAX, is_text, size};

/// Bytes of a request's header.
pub const HEADER_LEN: usize = 7;

/// Offset of `key_len` in the header.
pub(super) const KEY_LEN_AT: usize = 1;

/// Offset of `value_len` in the header.
pub(super) const VALUE_LEN_AT: usize = 3;

/// Limits that accept a value of any length. For frames of the log, which another node has accepted, and for frames
/// that people look at.
pub const ANY_VALUE: Limits = Limits {
    value_len_max: u32::MAX,
};

/// Request header: 7 bytes, integers big-endian.
///
/// | offset | size | field       | meaning                                        |
/// |--------|------|-------------|------------------------------------------------|
/// | 0      | 1    | `opcode`    | the operation: [`Opcode`]                      |
/// | 1      | 2    | `key_len`   | bytes of key that follow, 0..=65,535           |
/// | 3      | 4    | `value_len` | bytes of value that follow, 0..=4,294,967,295  |
///
/// The opcode is kept as a byte. The lengths of an unknown operation too say where the next frame starts, so a header
/// is read whole before it is judged.
///
/// # Source
///
/// GBP §2 "Request".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Byte 0.
    pub opcode: u8,
    /// Bytes of key that follow the header.
    pub key_len: u16,
    /// Bytes of value that follow the key.
    pub value_len: u32,
}

impl RequestHeader {
    /// Reads a header. Every 7 bytes are a header; [`parse`] judges it.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_LEN]) -> RequestHeader {
        RequestHeader {
            opcode: bytes[0],
            key_len: BigEndian::read_u16(&bytes[1..3]),
            value_len: BigEndian::read_u32(&bytes[3..7]),
        }
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [self.opcode, 0, 0, 0, 0, 0, 0];
        BigEndian::write_u16(&mut bytes[1..3], self.key_len);
        BigEndian::write_u32(&mut bytes[3..7], self.value_len);
        bytes
    }

    /// Bytes of the whole frame: header, key and value.
    #[must_use]
    pub fn frame_len(self) -> usize {
        size(self.value_len).saturating_add(HEADER_LEN + usize::from(self.key_len))
    }
}

impl Request<'_> {
    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the key or the value is too long for its length field; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (key, value) = (self.key(), self.value());
        let header = RequestHeader {
            opcode: self.opcode().byte(),
            key_len: u16::try_from(key.len())
                .map_err(|_| EncodeError::KeyTooLong { len: key.len() })?,
            value_len: u32::try_from(value.len())
                .map_err(|_| EncodeError::ValueTooLong { len: value.len() })?,
        };
        out.reserve(header.frame_len());
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
        Ok(())
    }
}

/// A key or value that no frame can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The key has more than [`KEY_LEN_MAX`] bytes.
    KeyTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The value has more than [`VALUE_LEN_MAX`] bytes.
    ValueTooLong {
        /// Its length in bytes.
        len: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::KeyTooLong { len } => {
                write!(f, "key of {len} bytes, limit {KEY_LEN_MAX}")
            }
            EncodeError::ValueTooLong { len } => {
                write!(f, "value of {len} bytes, limit {VALUE_LEN_MAX}")
            }
        }
    }
}

impl std::error::Error for EncodeError {}

/// A whole, acceptable request together with the bytes that it came in.
///
/// Only [`parse`] makes one, so its [`bytes`](Self::bytes) are exactly one valid frame. The store and the log therefore
/// keep the client's frame unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFrame<'a> {
    bytes: &'a [u8],
    opcode: Opcode,
    key_len: u16,
}

impl<'a> RequestFrame<'a> {
    /// The frame of a request that [`parse`] has judged before, and that is all of `bytes`.
    #[inline(always)]
    pub(super) fn of_whole(bytes: &'a [u8]) -> RequestFrame<'a> {
        let key_len = bytes.get(1..3).map_or(0, BigEndian::read_u16);
        let opcode = bytes.first().map(|&byte| Opcode::try_from(byte));
        let Some(Ok(opcode)) = opcode else {
            unreachable!("judged before")
        };
        RequestFrame {
            bytes,
            opcode,
            key_len,
        }
    }

    /// The frame of a request that the caller has just [encoded](Request::encode), which is all of `bytes`: what
    /// [`parse`] would find.
    ///
    /// # Panics
    ///
    /// Where the bytes begin with no opcode.
    #[inline]
    #[must_use]
    pub fn of_encoded(bytes: &'a [u8]) -> RequestFrame<'a> {
        let frame = RequestFrame::of_whole(bytes);
        debug_assert_eq!(
            parse(bytes, &ANY_VALUE),
            Ok(Parsed::Whole(frame)),
            "it was encoded"
        );
        frame
    }

    /// The operation and its operands.
    #[must_use]
    pub fn request(&self) -> Request<'a> {
        Request::new(self.opcode, self.key(), self.value())
    }

    /// The operation.
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The key, empty for an operation without one.
    #[inline]
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..HEADER_LEN + usize::from(self.key_len)]
    }

    /// The value, empty for an operation without one.
    #[inline]
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN + usize::from(self.key_len)..]
    }

    /// The traits of the operation.
    pub(super) fn traits(&self) -> Traits {
        Traits::of(self.opcode.byte())
    }

    /// The frame, byte for byte.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Limits that a node sets for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value in bytes; `max_value_bytes` in `cluster.toml`.
    pub value_len_max: u32,
}

impl Default for Limits {
    /// 64 MiB, the default of `max_value_bytes`.
    fn default() -> Limits {
        Limits {
            value_len_max: 64 << 20,
        }
    }
}

/// Result of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The bytes end inside a frame.
    Incomplete {
        /// Bytes of the whole frame, as far as known; at least one more than there are.
        needed: usize,
    },
    /// A whole request.
    Whole(RequestFrame<'a>),
}

/// Reason why a request is refused; its text is the value of the ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The first byte of a connection is text, and no opcode. Only [`reject_text`] returns it.
    Text {
        /// That byte.
        first: u8,
    },
    /// The value is longer than the node, or the operation, accepts.
    ValueTooLong {
        /// Its declared length in bytes.
        len: u32,
        /// The limit in bytes: the node's, or the operation's own.
        max: u32,
        /// Bytes of the whole frame, to be skipped; `None` where its value is longer than the node accepts.
        skip: Option<usize>,
    },
    /// The opcode is not one of this version.
    UnknownOpcode {
        /// Byte 0 of the frame.
        opcode: u8,
        /// Bytes of the whole frame, to be skipped; `None` where its value is longer than the node accepts.
        skip: Option<usize>,
    },
    /// A key with an operation that has none.
    UnusedKey {
        /// The operation.
        opcode: Opcode,
        /// The key's declared length in bytes.
        key_len: u16,
        /// Bytes of the whole frame, to be skipped; `None` where its value is longer than the node accepts.
        skip: Option<usize>,
    },
    /// A value with an operation that has none.
    UnusedValue {
        /// The operation.
        opcode: Opcode,
        /// The value's declared length in bytes.
        value_len: u32,
        /// Bytes of the whole frame, to be skipped; `None` where its value is longer than the node accepts.
        skip: Option<usize>,
    },
}

/// Action of the connection after the ERROR for a [`RequestError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Skip this many bytes from the refused frame's start, some of which may not have arrived, and continue.
    Skip(usize),
    /// Close: the start of the next frame is unknown, or too far away to wait for.
    Close,
}

impl RequestError {
    /// Action of the connection after the ERROR (GBP §8).
    #[must_use]
    pub const fn disposition(&self) -> Disposition {
        match *self {
            RequestError::ValueTooLong {
                skip: Some(len), ..
            }
            | RequestError::UnknownOpcode {
                skip: Some(len), ..
            }
            | RequestError::UnusedKey {
                skip: Some(len), ..
            }
            | RequestError::UnusedValue {
                skip: Some(len), ..
            } => Disposition::Skip(len),
            RequestError::Text { .. }
            | RequestError::ValueTooLong { skip: None, .. }
            | RequestError::UnknownOpcode { skip: None, .. }
            | RequestError::UnusedKey { skip: None, .. }
            | RequestError::UnusedValue { skip: None, .. } => Disposition::Close,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Text { first } => write!(
                f,
                "the first byte is {:?}, which is text; this port speaks GBP, a binary protocol",
                char::from(*first)
            ),
            RequestError::ValueTooLong { len, max, .. } => {
                write!(f, "value of {len} bytes, limit {max}")
            }
            RequestError::UnknownOpcode { opcode, .. } => {
                write!(f, "unknown opcode 0x{opcode:02x}")
            }
            RequestError::UnusedKey {
                opcode, key_len, ..
            } => write!(
                f,
                "key of {key_len} bytes, limit 0: {} has no key",
                opcode.name()
            ),
            RequestError::UnusedValue {
                opcode, value_len, ..
            } => write!(
                f,
                "value of {value_len} bytes, limit 0: {} has no value",
                opcode.name()
            ),
        }
    }
}

impl std::error::Error for RequestError {}

/// Judges the first byte of a connection, before there is a whole header (GBP §8).
///
/// # Errors
///
/// [`RequestError::Text`] when the byte is text and no opcode. Its sender is a person or speaks a text protocol such as
/// HTTP, and may never send the seven bytes of a header.
pub fn reject_text(first: u8) -> Result<(), RequestError> {
    if is_text(first) && Opcode::try_from(first).is_err() {
        return Err(RequestError::Text { first });
    }
    Ok(())
}

/// Reads the request at the start of `bytes`.
///
/// Judges a frame as soon as its header has arrived, before its payload. Allocates nothing.
///
/// # Errors
///
/// The first fault of the frame; [`RequestError::disposition`] says how the connection continues.
#[inline]
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, RequestError> {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Parsed::Incomplete { needed: HEADER_LEN });
    };
    let header = RequestHeader::decode(*header);
    let frame_len = header.frame_len();
    let traits = Traits::of(header.opcode);
    let max = if traits.has_own_limit() {
        own_value_len_max(header.opcode, limits)
    } else {
        limits.value_len_max
    };
    // Only a frame whose length the node would accept is worth waiting for.
    let skip = (header.value_len <= limits.value_len_max).then_some(frame_len);
    let opcode = Opcode::try_from(header.opcode)
        .map_err(|opcode| RequestError::UnknownOpcode { opcode, skip })?;
    if header.key_len > 0 && !traits.has_key() {
        return Err(RequestError::UnusedKey {
            opcode,
            key_len: header.key_len,
            skip,
        });
    }
    if header.value_len > 0 && !traits.has_value() {
        return Err(RequestError::UnusedValue {
            opcode,
            value_len: header.value_len,
            skip,
        });
    }
    if header.value_len > max {
        return Err(RequestError::ValueTooLong {
            len: header.value_len,
            max,
            skip,
        });
    }
    if payload.len() < frame_len - HEADER_LEN {
        return Ok(Parsed::Incomplete { needed: frame_len });
    }
    Ok(Parsed::Whole(RequestFrame {
        bytes: &bytes[..frame_len],
        opcode,
        key_len: header.key_len,
    }))
}

/// The limit on the value of an operation whose limit is not just the node's.
#[inline(never)]
fn own_value_len_max(opcode: u8, limits: &Limits) -> u32 {
    /// For each opcode: whether the node's limit counts, and so many bytes more.
    static OWN: [(bool, u32); 256] = {
        let (mut own, mut at) = ([(true, 0); 256], 0);
        while at < Opcode::ALL.len() {
            let spec = Opcode::ALL[at].spec();
            let none = spec.value_len_max(&Limits { value_len_max: 0 });
            let is_node = matches!(spec.rest_max, Limit::Node);
            own[Opcode::ALL[at] as usize] = (is_node, none);
            at += 1;
        }
        own
    };
    let (is_node, more) = OWN[usize::from(opcode)];
    let node = if is_node { limits.value_len_max } else { 0 };
    node.saturating_add(more)
}

/// The requests at the start of `bytes`, one after another, with values of any length: up to the first bytes that are
/// not a whole, acceptable request.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = RequestFrame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || match parse(rest, &ANY_VALUE) {
        Ok(Parsed::Whole(frame)) => {
            rest = &rest[frame.bytes.len()..];
            Some(frame)
        }
        Ok(Parsed::Incomplete { .. }) | Err(_) => None,
    })
}
