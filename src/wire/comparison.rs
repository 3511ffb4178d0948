//! SUMS and LIST: checksums and keys of a node's entries, without their values.
//!
//! Both scan the node's entries, partition by partition. One request covers a limited part of the scan, and its
//! response has the [`Place`] where the next request continues. Only the node that made a place can read it.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::command::OperandError;
use super::request::VALUE_LEN_AT;
use super::{EncodeError, Opcode, Request};

/// Most bits of a bucket's number: 4,096 buckets, whose sums are 64 KiB.
pub const BITS_MAX: u8 = 12;

/// Bytes of a SUMS's value, and of a LIST's before its set of buckets.
pub const COMPARISON_FIELDS_LEN: usize = 13;

/// Bytes of an answer before `from`.
const ANSWER_FIELDS_LEN: usize = 18;

/// Bytes of an item in the answer to LIST, before its key.
pub const ITEM_FIELDS_LEN: usize = 22;

/// Bytes of one sum.
const SUM_LEN: usize = 16;

/// Position of a scan through a node's entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Incarnation of the node that made the place, since a node's partitions change with each start. 0 to begin.
    pub incarnation: u64,
    /// The partition that the scan is in, counted from 0; the number of partitions at the end.
    pub partition: u32,
    /// First key in that partition that has not been visited, in the order of the keys' bytes; empty for all keys.
    pub from: Vec<u8>,
}

/// A set of buckets. The bucket of a key is the number that the first `bits` bits of its hash form (GBP §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    bits: u8,
    /// A bit for each bucket, the most significant of the first byte for bucket 0.
    set: Vec<u8>,
}

/// The value of a [`Request::Sums`]; its key is [`Place::from`].
///
/// | offset | size | field         | meaning                                             |
/// |--------|------|---------------|-----------------------------------------------------|
/// | 0      | 8    | `incarnation` | of the place                                        |
/// | 8      | 4    | `partition`   | of the place                                        |
/// | 12     | 1    | `bits`        | of a bucket's number, 0..=12; there are 2^`bits`    |
///
/// # Source
///
/// GBP §4 "SUMS".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Where the request begins.
    pub place: Place,
    /// Bits of a bucket's number, 0..=[`BITS_MAX`].
    pub bits: u8,
}

/// Key and value of a [`Request::List`]. With an empty value it requests the entry of its key. Otherwise its key is
/// [`Place::from`], and its value that of a [`Sums`], followed by a bit for each bucket.
///
/// # Source
///
/// GBP §4 "LIST".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// The entry of this key.
    One(Vec<u8>),
    /// The entries of some buckets.
    Some {
        /// Where the request begins.
        place: Place,
        /// The buckets.
        buckets: Buckets,
    },
}

/// The value of the OK to a SUMS.
///
/// | offset          | size          | field         | meaning                                            |
/// |-----------------|---------------|---------------|----------------------------------------------------|
/// | 0               | 8             | `incarnation` | of the next request's place                        |
/// | 8               | 4             | `partitions`  | partitions of the node, at least 1                 |
/// | 12              | 4             | `partition`   | of the next request's place; `partitions` at the end |
/// | 16              | 2             | `from_len`    | bytes of `from`                                    |
/// | 18              | `from_len`    | `from`        | of the next request's place                        |
/// | 18 + `from_len` | 16 × 2^`bits` | `sums`        | of each bucket, over the entries that were visited |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumsAnswer {
    /// Partitions of the node.
    pub partitions: u32,
    /// Where the next request continues.
    pub next: Place,
    /// A sum for each bucket.
    pub sums: Vec<u128>,
}

/// The value of the OK to a LIST: the first five fields of [`SumsAnswer`], then items to the end.
///
/// | offset in an item | size      | field       | meaning                                   |
/// |-------------------|-----------|-------------|-------------------------------------------|
/// | 0                 | 2         | `key_len`   | bytes of the key                          |
/// | 2                 | 4         | `value_len` | bytes of the value, which is not sent     |
/// | 6                 | 16        | `hash`      | of the entry                              |
/// | 22                | `key_len` | `key`       |                                           |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListAnswer {
    /// Partitions of the node.
    pub partitions: u32,
    /// Where the next request continues.
    pub next: Place,
    /// The entries, in no order.
    pub items: Vec<Item>,
}

/// One entry in a [`ListAnswer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its key.
    pub key: Vec<u8>,
    /// Bytes of its value.
    pub value_len: u32,
    /// Its hash, which is also what it adds to its bucket's sum.
    pub hash: u128,
}

impl Place {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.extend_from_slice(&self.partition.to_be_bytes());
    }

    /// Whether the scan is complete.
    #[must_use]
    pub const fn is_end(&self, partitions: u32) -> bool {
        self.partition >= partitions
    }

    /// Whether the place is behind `other`. A scan whose places each are behind the one before it ends.
    #[must_use]
    pub fn is_after(&self, other: &Place) -> bool {
        (self.partition, &self.from) > (other.partition, &other.from)
    }
}

impl Buckets {
    /// An empty set of 2^`bits` buckets, at most 2^[`BITS_MAX`].
    #[must_use]
    pub fn none(bits: u8) -> Buckets {
        let bits = bits.min(BITS_MAX);
        Buckets {
            bits,
            set: vec![0; set_len(bits)],
        }
    }

    /// Bits of a bucket's number.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Adds a bucket, if there is such a bucket.
    pub fn insert(&mut self, bucket: usize) {
        if bucket < 1 << self.bits {
            self.set[bucket / 8] |= 0x80 >> (bucket % 8);
        }
    }

    /// Whether the set has the bucket.
    #[must_use]
    pub fn contains(&self, bucket: usize) -> bool {
        let byte = self.set.get(bucket / 8);
        byte.is_some_and(|byte| byte & 0x80 >> (bucket % 8) != 0)
    }
}

const fn set_len(bits: u8) -> usize {
    (1_usize << bits).div_ceil(8)
}

/// Reads the fields that SUMS and LIST share.
fn fields(opcode: Opcode, key: &[u8], value: &[u8]) -> Result<(Place, u8, usize), ComparisonError> {
    let wrong_len = |needed| ComparisonError::ValueLen {
        name: opcode.name(),
        len: value.len(),
        needed,
    };
    let Some(fields) = value.first_chunk::<COMPARISON_FIELDS_LEN>() else {
        return Err(wrong_len(COMPARISON_FIELDS_LEN));
    };
    let place = Place {
        incarnation: BigEndian::read_u64(&fields[..8]),
        partition: BigEndian::read_u32(&fields[8..12]),
        from: key.to_vec(),
    };
    let bits = fields[12];
    if bits > BITS_MAX {
        return Err(ComparisonError::Bits { bits });
    }
    Ok((place, bits, value.len()))
}

/// The error as the command table has it.
fn operand_error(error: ComparisonError) -> OperandError {
    OperandError {
        at: VALUE_LEN_AT,
        reason: error.to_string(),
    }
}

impl Sums {
    /// Reads the key and the value of a [`Request::Sums`].
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The request is answered with ERROR, and the connection goes on.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Sums, ComparisonError> {
        let (place, bits, len) = fields(Opcode::Sums, key, value)?;
        if len != COMPARISON_FIELDS_LEN {
            return Err(ComparisonError::ValueLen {
                name: Opcode::Sums.name(),
                len,
                needed: COMPARISON_FIELDS_LEN,
            });
        }
        Ok(Sums { place, bits })
    }

    /// Judges the key and the value for the command table.
    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Sums::decode(key, value).map(drop).map_err(operand_error)
    }

    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the place's key is longer than a frame can carry; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let key = &self.place.from;
        let value = &self.value();
        Request::Sums { key, value }.encode(out)
    }

    /// The request's value.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(COMPARISON_FIELDS_LEN);
        self.place.encode(&mut value);
        value.push(self.bits);
        value
    }
}

impl List {
    /// Reads the key and the value of a [`Request::List`].
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The request is answered with ERROR, and the connection goes on.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<List, ComparisonError> {
        if value.is_empty() {
            return Ok(List::One(key.to_vec()));
        }
        let (place, bits, len) = fields(Opcode::List, key, value)?;
        let needed = COMPARISON_FIELDS_LEN + set_len(bits);
        if len != needed {
            return Err(ComparisonError::ValueLen {
                name: Opcode::List.name(),
                len,
                needed,
            });
        }
        let set = value[COMPARISON_FIELDS_LEN..].to_vec();
        let buckets = Buckets { bits, set };
        Ok(List::Some { place, buckets })
    }

    /// Judges the key and the value for the command table.
    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        List::decode(key, value).map(drop).map_err(operand_error)
    }

    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the key is longer than a frame can carry; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let value = &self.value();
        Request::List {
            key: self.key(),
            value,
        }
        .encode(out)
    }

    /// The request's key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            List::One(key) => key,
            List::Some { place, .. } => &place.from,
        }
    }

    /// The request's value.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::new();
        if let List::Some { place, buckets } = self {
            place.encode(&mut value);
            value.push(buckets.bits);
            value.extend_from_slice(&buckets.set);
        }
        value
    }
}

/// Appends the fields that both answers begin with. The place's key came in a frame, whose length field is as wide.
pub(super) fn encode_next(partitions: u32, next: &Place, out: &mut Vec<u8>) {
    let from_len = u16::try_from(next.from.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&next.incarnation.to_be_bytes());
    out.extend_from_slice(&partitions.to_be_bytes());
    out.extend_from_slice(&next.partition.to_be_bytes());
    out.extend_from_slice(&from_len.to_be_bytes());
    out.extend_from_slice(&next.from[..usize::from(from_len)]);
}

/// Reads the fields that both answers begin with, and returns them with the bytes behind them.
pub(super) fn decode_next(value: &[u8]) -> Result<(u32, Place, &[u8]), ComparisonError> {
    let len = value.len();
    let cut = |needed| ComparisonError::Cut { len, needed };
    let Some((fields, rest)) = value.split_first_chunk::<ANSWER_FIELDS_LEN>() else {
        return Err(cut(ANSWER_FIELDS_LEN));
    };
    let from_len = usize::from(BigEndian::read_u16(&fields[16..18]));
    let Some((from, rest)) = rest.split_at_checked(from_len) else {
        return Err(cut(ANSWER_FIELDS_LEN + from_len));
    };
    let partitions = BigEndian::read_u32(&fields[8..12]);
    let next = Place {
        incarnation: BigEndian::read_u64(&fields[..8]),
        partition: BigEndian::read_u32(&fields[12..16]),
        from: from.to_vec(),
    };
    if partitions == 0 || next.partition > partitions {
        return Err(ComparisonError::Partition {
            partition: next.partition,
            partitions,
        });
    }
    Ok((partitions, next, rest))
}

impl SumsAnswer {
    /// Reads the value of the OK to a SUMS with so many bits.
    ///
    /// # Errors
    ///
    /// When the value is not the answer to such a request.
    pub fn decode(value: &[u8], bits: u8) -> Result<SumsAnswer, ComparisonError> {
        let (partitions, next, rest) = decode_next(value)?;
        let needed = (value.len() - rest.len()) + (SUM_LEN << bits.min(BITS_MAX));
        if value.len() != needed {
            let len = value.len();
            return Err(ComparisonError::Cut { len, needed });
        }
        let (sums, _) = rest.as_chunks();
        let sums = sums.iter().map(|sum| u128::from_be_bytes(*sum)).collect();
        Ok(SumsAnswer {
            partitions,
            next,
            sums,
        })
    }

    /// Appends the value to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_next(self.partitions, &self.next, out);
        for sum in &self.sums {
            out.extend_from_slice(&sum.to_be_bytes());
        }
    }
}

impl ListAnswer {
    /// Reads the value of the OK to a LIST.
    ///
    /// # Errors
    ///
    /// When the value is not the answer to a LIST.
    pub fn decode(value: &[u8]) -> Result<ListAnswer, ComparisonError> {
        let (partitions, next, mut rest) = decode_next(value)?;
        let mut items = Vec::new();
        while !rest.is_empty() {
            let at = value.len() - rest.len();
            let cut = |needed| ComparisonError::Cut {
                len: value.len(),
                needed: at + needed,
            };
            let Some((fields, after)) = rest.split_first_chunk::<ITEM_FIELDS_LEN>() else {
                return Err(cut(ITEM_FIELDS_LEN));
            };
            let key_len = usize::from(BigEndian::read_u16(&fields[..2]));
            let Some((key, after)) = after.split_at_checked(key_len) else {
                return Err(cut(ITEM_FIELDS_LEN + key_len));
            };
            items.push(Item {
                key: key.to_vec(),
                value_len: BigEndian::read_u32(&fields[2..6]),
                hash: BigEndian::read_u128(&fields[6..22]),
            });
            rest = after;
        }
        Ok(ListAnswer {
            partitions,
            next,
            items,
        })
    }

    /// Appends the value to `out`. Keys came in frames, whose length field is as wide.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_next(self.partitions, &self.next, out);
        for item in &self.items {
            let key_len = u16::try_from(item.key.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&key_len.to_be_bytes());
            out.extend_from_slice(&item.value_len.to_be_bytes());
            out.extend_from_slice(&item.hash.to_be_bytes());
            out.extend_from_slice(&item.key[..usize::from(key_len)]);
        }
    }
}

/// Fields of a SUMS, of a LIST or of an answer to one that are not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComparisonError {
    /// A request's value has another length than its fields say.
    ValueLen {
        /// The operation.
        name: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The length that it must have, or the shortest that is known to be needed.
        needed: usize,
    },
    /// Too many buckets.
    Bits {
        /// Bits of a bucket's number.
        bits: u8,
    },
    /// A place beyond the last partition, or an answer from a node without partitions.
    Partition {
        /// The partition.
        partition: u32,
        /// Partitions of the node.
        partitions: u32,
    },
    /// A place of another incarnation of the node.
    Incarnation,
    /// An answer with another length than its fields say.
    Cut {
        /// Its length in bytes.
        len: usize,
        /// The length that it must have, or the shortest that is known to be needed.
        needed: usize,
    },
    /// The answer's place is not behind the request's, so the scan would not end.
    Standstill,
}

impl fmt::Display for ComparisonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ComparisonError::ValueLen { name, len, needed } => {
                write!(f, "value of {len} bytes in {name}, must have {needed}")
            }
            ComparisonError::Bits { bits } => write!(f, "bits {bits}, limit {BITS_MAX}"),
            ComparisonError::Partition {
                partition,
                partitions,
            } => write!(f, "partition {partition}, limit {partitions}"),
            ComparisonError::Incarnation => {
                f.write_str("the place is of an earlier process of this node; begin again")
            }
            ComparisonError::Cut { len, needed } => {
                write!(f, "value of {len} bytes, its fields say {needed}")
            }
            ComparisonError::Standstill => {
                f.write_str("the response goes on where the request began, or before it")
            }
        }
    }
}

impl std::error::Error for ComparisonError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::Limits;

    #[test]
    fn the_limits_that_a_header_is_judged_by_are_those_of_the_fields() {
        let len_max = |opcode: Opcode| opcode.spec().value_len_max(&Limits { value_len_max: 0 });
        assert_eq!(Opcode::Sums.spec().operands_len(), COMPARISON_FIELDS_LEN);
        assert_eq!(
            usize::try_from(len_max(Opcode::Sums)),
            Ok(COMPARISON_FIELDS_LEN)
        );
        let longest = COMPARISON_FIELDS_LEN + set_len(BITS_MAX);
        assert_eq!(usize::try_from(len_max(Opcode::List)), Ok(longest));
    }

    #[test]
    fn a_set_of_buckets_has_those_that_were_put_in() {
        let mut buckets = Buckets::none(4);
        for bucket in [0, 7, 9, 15, 16, usize::MAX] {
            buckets.insert(bucket);
        }
        assert_eq!(buckets.set, [0x81, 0x41]);
        let has: Vec<_> = (0..40).filter(|bucket| buckets.contains(*bucket)).collect();
        assert_eq!(has, [0, 7, 9, 15]);
        assert_eq!(Buckets::none(0).set, [0]);
        assert_eq!(Buckets::none(200).bits(), BITS_MAX);
    }

    #[test]
    fn a_scan_moves_on_by_partitions_and_within_one_by_keys() {
        let place = |partition, from: &[u8]| Place {
            incarnation: 1,
            partition,
            from: from.to_vec(),
        };
        assert!(place(1, b"").is_after(&place(0, b"z")));
        assert!(place(1, b"b").is_after(&place(1, b"a")));
        assert!(!place(1, b"a").is_after(&place(1, b"a")));
        assert!(!place(0, b"z").is_after(&place(1, b"")));
        assert!(place(4, b"").is_end(4) && !place(3, b"z").is_end(4));
    }
}
