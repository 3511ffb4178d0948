//! A figure that two data sets share exactly when they are the same.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

use crate::engine::entry::Entry;

/// The sum, modulo 2^128, of a hash over each entry of a data set: XXH3-128 of its SET frame.
///
/// A sum does not depend on the order in which entries came to be, and a change is the new entry's hash less the old
/// one's, so it is kept up to date with every write. Equal data sets have equal digests on every node; that different
/// ones do is as unlikely as two random 128-bit numbers being equal, as long as nobody looks for such data on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// Of the data set without entries.
    pub const EMPTY: Digest = Digest(0);

    /// Of a data set with just this entry.
    #[must_use]
    pub fn of(entry: &Entry) -> Digest {
        Digest::of_frame(entry.frame())
    }

    /// Of a data set with just the entry that this SET frame makes.
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Digest {
        Digest(xxh3_128(frame))
    }

    /// Of two data sets without a key in common, put together; and of a data set after changes, where the other is
    /// the sum of what they changed.
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

    /// What it becomes when `new` takes the place of `old`, either of which may be nothing.
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
