//! SCAN: the keys of a node's data set, or their entries, piece by piece.
//!
//! As with SUMS and LIST, one request covers a limited part of the data set, and its response has the [`Place`] where
//! the next request continues.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::command::OperandError;
use super::comparison::{ComparisonError, Place, decode_next, encode_next};
use super::expiry::SetAt;
use super::request::{self, ANY_VALUE, Parsed, VALUE_LEN_AT};
use super::{EncodeError, Opcode, Request};

/// Bytes of a SCAN's value before `from`.
pub const SCAN_FIELDS_LEN: usize = 17;

/// The bit of `want` for values.
pub const WANT_VALUES: u8 = 1;

/// Bytes of an item before its key, where the items are keys.
pub const KEY_LEN_BYTES: usize = 2;

/// Key and value of a [`Request::Scan`]. Its key is the prefix.
///
/// | offset | size | field         | meaning                                                              |
/// |--------|------|---------------|----------------------------------------------------------------------|
/// | 0      | 1    | `want`        | 0x01: entries with their values; 0: keys                             |
/// | 1      | 4    | `max`         | most items of the response; 0: the node's choice                     |
/// | 5      | 8    | `incarnation` | of the place                                                         |
/// | 13     | 4    | `partition`   | of the place                                                         |
/// | 17     | rest | `from`        | of the place, 0..=65,535 bytes                                       |
///
/// # Source
///
/// GBP §4 "SCAN".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// First bytes of the keys that are wanted; empty for all keys.
    pub prefix: Vec<u8>,
    /// Whether the response has entries; otherwise it has keys alone.
    pub with_values: bool,
    /// Most items of the response; 0 where the node chooses.
    pub max: u32,
    /// Where the request begins.
    pub place: Place,
}

/// The value of the OK to a SCAN.
///
/// | offset          | size       | field         | meaning                                              |
/// |-----------------|------------|---------------|------------------------------------------------------|
/// | 0               | 8          | `incarnation` | of the next request's place                          |
/// | 8               | 4          | `partitions`  | partitions of the node, at least 1                   |
/// | 12              | 4          | `partition`   | of the next request's place; `partitions` at the end |
/// | 16              | 2          | `from_len`    | bytes of `from`                                      |
/// | 18              | `from_len` | `from`        | of the next request's place                          |
/// | 18 + `from_len` | 1          | `want`        | of the request                                       |
/// | 19 + `from_len` | rest       | items         |                                                      |
///
/// An item is a key behind its length in 2 bytes, or with values the frame that stores the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanAnswer<'a> {
    /// Partitions of the node.
    pub partitions: u32,
    /// Where the next request continues.
    pub next: Place,
    /// Whether the items are entries.
    pub with_values: bool,
    /// The items. [`items`](Self::items) reads them.
    items: &'a [u8],
}

/// One item of a [`ScanAnswer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value; `None` where keys were requested.
    pub value: Option<&'a [u8]>,
    /// When the key expires, in milliseconds since 1970 UTC; `None` where it does not, or where keys were requested.
    pub deadline: Option<u64>,
}

impl Scan {
    /// Reads the key and the value of a [`Request::Scan`].
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The request is answered with ERROR, and the connection goes on.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Scan, ScanError> {
        let Some((fields, from)) = value.split_first_chunk::<SCAN_FIELDS_LEN>() else {
            return Err(ScanError::ValueLen { len: value.len() });
        };
        Ok(Scan {
            prefix: key.to_vec(),
            with_values: wants_values(fields[0])?,
            max: BigEndian::read_u32(&fields[1..5]),
            place: Place {
                incarnation: BigEndian::read_u64(&fields[5..13]),
                partition: BigEndian::read_u32(&fields[13..17]),
                from: from.to_vec(),
            },
        })
    }

    /// Judges the key and the value for the command table.
    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Scan::decode(key, value)
            .map(drop)
            .map_err(|error| OperandError {
                at: VALUE_LEN_AT,
                reason: error.to_string(),
            })
    }

    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the prefix is longer than a frame can carry; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (key, value) = (&self.prefix, &self.value());
        Request::Scan { key, value }.encode(out)
    }

    /// The request's value.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(SCAN_FIELDS_LEN + self.place.from.len());
        value.push(want(self.with_values));
        value.extend_from_slice(&self.max.to_be_bytes());
        value.extend_from_slice(&self.place.incarnation.to_be_bytes());
        value.extend_from_slice(&self.place.partition.to_be_bytes());
        value.extend_from_slice(&self.place.from);
        value
    }
}

const fn want(with_values: bool) -> u8 {
    if with_values { WANT_VALUES } else { 0 }
}

const fn wants_values(want: u8) -> Result<bool, ScanError> {
    match want {
        0 => Ok(false),
        WANT_VALUES => Ok(true),
        _ => Err(ScanError::Want { want }),
    }
}

impl<'a> ScanAnswer<'a> {
    /// Reads the value of the OK to a SCAN, and judges every item.
    ///
    /// # Errors
    ///
    /// When the value is not the answer to a SCAN.
    pub fn decode(value: &'a [u8]) -> Result<ScanAnswer<'a>, ScanError> {
        let (partitions, next, rest) = decode_next(value)?;
        let Some((&want, items)) = rest.split_first() else {
            let len = value.len();
            return Err(ComparisonError::Cut {
                len,
                needed: len + 1,
            }
            .into());
        };
        let answer = ScanAnswer {
            partitions,
            next,
            with_values: wants_values(want)?,
            items,
        };
        let (before, mut rest) = (value.len() - items.len(), items);
        while !rest.is_empty() {
            let at = before + (items.len() - rest.len());
            (_, rest) = item(rest, answer.with_values).map_err(|fault| match fault {
                ItemFault::Cut { needed } => ScanError::Place(ComparisonError::Cut {
                    len: value.len(),
                    needed: at + needed,
                }),
                ItemFault::Opcode { opcode } => ScanError::Item { opcode, at },
            })?;
        }
        Ok(answer)
    }

    /// The items, in no order.
    pub fn items(&self) -> impl Iterator<Item = ScanItem<'a>> + use<'a> {
        let (mut rest, with_values) = (self.items, self.with_values);
        std::iter::from_fn(move || {
            let (next, after) = item(rest, with_values).ok()?;
            rest = after;
            Some(next)
        })
    }

    /// Appends the value to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_head(self.partitions, &self.next, self.with_values, out);
        out.extend_from_slice(self.items);
    }
}

/// Appends the fields before the items.
pub fn encode_head(partitions: u32, next: &Place, with_values: bool, out: &mut Vec<u8>) {
    encode_next(partitions, next, out);
    out.push(want(with_values));
}

/// Why bytes do not begin with an item.
enum ItemFault {
    /// They end within it.
    Cut {
        /// Bytes of it that are known to be needed.
        needed: usize,
    },
    /// The frame stores no entry.
    Opcode {
        /// Its first byte.
        opcode: u8,
    },
}

/// Reads an item at the start of `bytes`, and returns it with the bytes behind it.
fn item(bytes: &[u8], with_values: bool) -> Result<(ScanItem<'_>, &[u8]), ItemFault> {
    if with_values {
        return entry(bytes);
    }
    let Some((len, rest)) = bytes.split_first_chunk::<KEY_LEN_BYTES>() else {
        let needed = KEY_LEN_BYTES;
        return Err(ItemFault::Cut { needed });
    };
    let key_len = usize::from(u16::from_be_bytes(*len));
    let Some((key, rest)) = rest.split_at_checked(key_len) else {
        let needed = KEY_LEN_BYTES + key_len;
        return Err(ItemFault::Cut { needed });
    };
    let (value, deadline) = (None, None);
    Ok((
        ScanItem {
            key,
            value,
            deadline,
        },
        rest,
    ))
}

/// The same for an item with a value.
fn entry(bytes: &[u8]) -> Result<(ScanItem<'_>, &[u8]), ItemFault> {
    let opcode = bytes.first().copied().unwrap_or_default();
    let wrong = ItemFault::Opcode { opcode };
    let frame = match request::parse(bytes, &ANY_VALUE) {
        Ok(Parsed::Whole(frame)) => frame,
        Ok(Parsed::Incomplete { needed }) => return Err(ItemFault::Cut { needed }),
        Err(_) => return Err(wrong),
    };
    let (key, value) = (frame.key(), frame.value());
    let (value, deadline) = if opcode == Opcode::Set.byte() {
        (value, None)
    } else if opcode == Opcode::SetAt.byte() {
        let SetAt { deadline, value } = SetAt::decode(key, value).map_err(|_| wrong)?;
        (value, Some(deadline))
    } else {
        return Err(wrong);
    };
    let value = Some(value);
    let item = ScanItem {
        key,
        value,
        deadline,
    };
    Ok((item, &bytes[frame.bytes().len()..]))
}

/// Fields of a SCAN or of an answer to one that are not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// A request's value is shorter than its fields.
    ValueLen {
        /// Its length in bytes.
        len: usize,
    },
    /// A bit of `want` that means nothing.
    Want {
        /// The field.
        want: u8,
    },
    /// An answer with items of the other form than was requested.
    OtherWant {
        /// Its field `want`.
        want: u8,
    },
    /// A place of another incarnation of the node.
    Incarnation {
        /// That of the place.
        incarnation: u64,
    },
    /// A place that is none, or an answer that is cut.
    Place(ComparisonError),
    /// An item of an answer is no frame that stores an entry.
    Item {
        /// Its first byte.
        opcode: u8,
        /// Where it begins in the answer.
        at: usize,
    },
    /// An entry is longer than a response can be.
    TooLong {
        /// Length of its frame in bytes.
        len: usize,
    },
}

impl From<ComparisonError> for ScanError {
    fn from(error: ComparisonError) -> ScanError {
        ScanError::Place(error)
    }
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanError::ValueLen { len } => {
                write!(
                    f,
                    "value of {len} bytes in SCAN, must have at least {SCAN_FIELDS_LEN}"
                )
            }
            ScanError::Want { want } => write!(f, "want 0x{want:02x}, must be 0x00 or 0x01"),
            ScanError::OtherWant { want } => {
                write!(f, "want 0x{want:02x}, which was not requested")
            }
            ScanError::Incarnation { incarnation } => write!(
                f,
                "incarnation 0x{incarnation:016x}: the place is of another process of this node; begin again"
            ),
            ScanError::Place(error) => error.fmt(f),
            ScanError::Item { opcode, at } => {
                write!(
                    f,
                    "item at {at} with opcode 0x{opcode:02x}, must be a SET or SETAT"
                )
            }
            ScanError::TooLong { len } => write!(
                f,
                "an entry of {len} bytes is too long for a response; scan without values, and read it with GET"
            ),
        }
    }
}

impl std::error::Error for ScanError {}
