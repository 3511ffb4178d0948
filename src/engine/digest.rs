//! Incremental 128-bit checksum of a data set.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

use crate::engine::entry::Entry;

/// The sum, modulo 2^128, of a hash over each entry of a data set: XXH3-128 of its SET frame.
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
    #[must_use]
    pub fn of(entry: &Entry) -> Digest {
        Digest::of_frame(entry.frame())
    }

    /// The digest of a data set with the entry of this SET frame alone.
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Digest {
        Digest(xxh3_128(frame))
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
