//! Incremental 128-bit checksum of a data set.

use std::fmt;

use arrayvec::ArrayVec;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::engine::entry::Entry;
use crate::wire::expiry::{DEADLINE_LEN, expire_value};
use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::{KEY_LEN_MAX, Opcode};

/// Longest SETAT frame in bytes whose SET form is put together on the stack to be hashed. A longer one is hashed in
/// parts, which costs more for short ones.
const COPIED_BYTES: usize = 512;

/// The sum, modulo 2^128, of a hash over each entry of a data set: XXH3-128 of its SET frame, and for one with a
/// deadline that of its EXPIRE frame too.
///
/// So a new deadline changes the digest without a look at the value.
///
/// The sum does not depend on the order of writes, and a write changes it by the new entry's hash less the old one's.
/// Equal data sets have equal digests on every node. Different data sets have equal digests with the probability that
/// two random 128-bit numbers are equal, unless they were constructed for it: XXH3 is no cryptographic hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// The digest of a data set without entries.
    pub const EMPTY: Digest = Digest(0);

    /// The digest of a data set with this entry alone.
    #[inline]
    #[must_use]
    pub fn of(entry: &Entry) -> Digest {
        Digest::of_frame(entry.frame())
    }

    /// The digest of a data set with the entry of this SET or SETAT frame alone.
    #[inline]
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Digest {
        if frame.first() == Some(&Opcode::SetAt.byte()) {
            return Digest::of_expiring(frame);
        }
        Digest(xxh3_128(frame))
    }

    /// The same of a SETAT frame.
    #[inline(never)]
    fn of_expiring(frame: &[u8]) -> Digest {
        let (head, rest) = frame.split_first_chunk().unwrap_or((&[0; HEADER_LEN], &[]));
        let mut header = RequestHeader::decode(*head);
        let (key, rest) = rest
            .split_at_checked(usize::from(header.key_len))
            .unwrap_or((rest, &[]));
        let (deadline, value) = rest
            .split_first_chunk()
            .unwrap_or((&[0; DEADLINE_LEN], &[]));
        header.opcode = Opcode::Set.byte();
        header.value_len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let parts = [&header.encode()[..], key, value];
        let put = if frame.len() <= COPIED_BYTES {
            let mut copy = ArrayVec::<u8, COPIED_BYTES>::new();
            for part in parts {
                // The three are shorter than the frame.
                let _ = copy.try_extend_from_slice(part);
            }
            xxh3_128(&copy)
        } else {
            let mut hasher = Xxh3::new();
            for part in parts {
                hasher.update(part);
            }
            hasher.digest128()
        };
        Digest(put).plus(Digest::of_deadline(
            key,
            Some(u64::from_be_bytes(*deadline)),
        ))
    }

    /// The part of an entry's digest that its deadline adds: nothing where it has none.
    #[must_use]
    pub fn of_deadline(key: &[u8], deadline: Option<u64>) -> Digest {
        let Some(deadline) = deadline else {
            return Digest::EMPTY;
        };
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::DeadlineNotInDigest) {
            return Digest::EMPTY;
        }
        let value = expire_value(Some(deadline));
        let header = RequestHeader {
            opcode: Opcode::Expire.byte(),
            key_len: u16::try_from(key.len()).unwrap_or(u16::MAX),
            value_len: 9,
        };
        if key.len() <= COPIED_BYTES {
            let mut frame = ArrayVec::<u8, { COPIED_BYTES + 16 }>::new();
            for part in [&header.encode()[..], key, &value] {
                let _ = frame.try_extend_from_slice(part);
            }
            return Digest(xxh3_128(&frame));
        }
        debug_assert!(key.len() <= KEY_LEN_MAX);
        let mut hasher = Xxh3::new();
        for part in [&header.encode()[..], key, &value] {
            hasher.update(part);
        }
        Digest(hasher.digest128())
    }

    /// The digest of the union of two data sets without a common key; also the digest of a data set after changes,
    /// where `other` is the sum of the changes.
    #[must_use]
    pub const fn plus(self, other: Digest) -> Digest {
        Digest(self.0.wrapping_add(other.0))
    }

    /// From its number on the wire.
    #[must_use]
    pub const fn from_u128(number: u128) -> Digest {
        Digest(number)
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// The digest after `new` has replaced `old`, either of which may be [`EMPTY`](Self::EMPTY).
    #[must_use]
    pub const fn changed(self, old: Digest, new: Digest) -> Digest {
        Digest(self.0.wrapping_sub(old.0).wrapping_add(new.0))
    }
}

impl fmt::Display for Digest {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
