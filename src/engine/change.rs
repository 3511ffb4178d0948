//! The change of the digest by writes, recorded for the log while their partitions are locked.

use super::digest::Digest;
use super::entry::Entry;
use super::memory::Full;
use crate::wire::run::RUN_FRAME_BYTES_MAX;

/// The change of a data set's digest by the writes of a run.
///
/// The digest of an old entry is taken when it is replaced. For an entry of more than [`RUN_FRAME_BYTES_MAX`] bytes
/// that would take too long under a lock. Its digest is taken from a clone after the unlock ([`LongOld`]), and then the
/// write is tried again.
#[derive(Debug)]
pub(super) struct Change {
    digest: Digest,
    /// A log needs the digest.
    is_logged: bool,
    /// The writes are a client's, which the memory limit may refuse.
    is_limited: bool,
    /// A clone of an old entry, and its digest. While it is here, the entry's bytes cannot change.
    known: Option<(Entry, Digest)>,
    /// Digests learned so far.
    learned: u8,
}

/// Digests learned for one write. An old entry that is replaced by others more often than this meanwhile is hashed
/// under the lock.
const LEARNED_MAX: u8 = 4;

/// Why an entry was not stored. Nothing was changed.
#[derive(Debug)]
pub(super) enum NotPut {
    /// The digest of the old entry is needed first.
    Long(LongOld),
    /// The memory limit leaves no room for it.
    Full(Full),
}

impl NotPut {
    /// Of a write that no limit refuses.
    pub(super) fn unlimited(self) -> LongOld {
        match self {
            NotPut::Long(long) => long,
            NotPut::Full(_) => unreachable!("only a client's write is refused"),
        }
    }
}

impl From<LongOld> for NotPut {
    fn from(long: LongOld) -> NotPut {
        NotPut::Long(long)
    }
}

/// The digest of this old entry has to be taken first, without the lock.
#[derive(Debug)]
pub(super) struct LongOld(pub(super) Entry);

impl Change {
    /// A change by writes that are not logged.
    #[inline]
    pub(super) const fn unlogged() -> Change {
        Change::new(false)
    }

    /// A change by writes that are logged if `is_logged`.
    #[inline]
    pub(super) const fn new(is_logged: bool) -> Change {
        Change {
            digest: Digest::EMPTY,
            is_logged,
            is_limited: false,
            known: None,
            learned: 0,
        }
    }

    /// The same by writes of a client, which the memory limit may refuse.
    #[inline]
    pub(super) const fn of_client(is_logged: bool) -> Change {
        let mut change = Change::new(is_logged);
        change.is_limited = true;
        change
    }

    /// Whether the memory limit may refuse the writes.
    pub(super) const fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Takes the digest of an old entry. Nothing is locked.
    pub(super) fn learn(&mut self, LongOld(old): LongOld) {
        let digest = Digest::of(&old);
        self.known = Some((old, digest));
        self.learned = self.learned.saturating_add(1);
    }

    /// Knows the digest of an old entry, whose clone this is.
    pub(super) fn know(&mut self, old: Entry, digest: Digest) {
        self.known = Some((old, digest));
    }

    /// Takes digests that are not known under the lock from now on.
    pub(super) const fn work_under_lock(&mut self) {
        self.learned = LEARNED_MAX;
    }

    /// Records that `old` is replaced or removed.
    ///
    /// # Errors
    ///
    /// [`LongOld`], where its digest has to be [learned](Self::learn) first.
    #[inline]
    pub(super) fn replaces(&mut self, old: &Entry) -> Result<(), LongOld> {
        if self.is_logged {
            let digest = if old.frame().len() <= RUN_FRAME_BYTES_MAX {
                Digest::of(old)
            } else {
                self.digest_of_long(old)?
            };
            self.digest = self.digest.changed(digest, Digest::EMPTY);
        }
        Ok(())
    }

    /// Fails where [`replaces`](Self::replaces) would fail, and records nothing.
    #[inline]
    pub(super) fn knows(&self, old: &Entry) -> Result<(), LongOld> {
        let needs = self.is_logged
            && old.frame().len() > RUN_FRAME_BYTES_MAX
            && self.learned < LEARNED_MAX
            && !matches!(&self.known, Some((known, _)) if known.is_same_block(old));
        if needs {
            return Err(LongOld(old.clone()));
        }
        Ok(())
    }

    fn digest_of_long(&mut self, old: &Entry) -> Result<Digest, LongOld> {
        match self.known.take() {
            // The clone is dropped here, before the entry's block is looked at again by its next user.
            Some((known, digest)) if known.is_same_block(old) => Ok(digest),
            Some(_) | None if self.learned >= LEARNED_MAX => Ok(Digest::of(old)),
            Some(_) | None => Err(LongOld(old.clone())),
        }
    }

    /// Records a new entry, whose digest was taken before the lock.
    #[inline]
    pub(super) const fn adds(&mut self, new: Digest) {
        self.digest = self.digest.plus(new);
    }

    /// Records that the deadline of `key` changes.
    pub(super) fn expires(&mut self, key: &[u8], old: Option<u64>, new: Option<u64>) {
        if self.is_logged {
            let of = |deadline| Digest::of_deadline(key, deadline);
            self.digest = self.digest.changed(of(old), of(new));
        }
    }

    /// Whether the digest is needed.
    #[inline]
    pub(super) const fn is_logged(&self) -> bool {
        self.is_logged
    }

    /// The sum of all changes.
    #[inline]
    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }
}
