//! Decides which requests the engine executes now.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Kinds of requests that an engine executes, and the epoch of its writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Requests that read.
    pub reads: bool,
    /// Requests that write, and runs that do both.
    pub writes: bool,
    /// The epoch under which writes are logged.
    pub epoch: u64,
}

/// The admission of an engine, read under the locks of the partitions that a request needs.
///
/// # Invariant
///
/// A request is executed under the admission that it read. [`Engine::admit`](super::Engine::admit) stores a narrower
/// admission and then locks and unlocks every partition once; after that no request is under way that read the one
/// before.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// [`READS`] and [`WRITES`].
    kinds: AtomicU8,
    epoch: AtomicU64,
    /// Serializes changes.
    changing: Mutex<()>,
}

const READS: u8 = 1;
const WRITES: u8 = 2;

impl Gate {
    /// The epoch of the request, or `None` where it is not admitted. To be called with the request's partitions locked
    /// and before its first change.
    #[inline]
    pub(super) fn admits(&self, writes: bool) -> Option<u64> {
        let kind = if writes { WRITES } else { READS };
        let is_admitted = self.kinds.load(Ordering::Acquire) & kind != 0;
        is_admitted.then(|| self.epoch.load(Ordering::Relaxed))
    }

    /// The epoch of writes.
    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Replaces the admission. `barrier` returns once no request is under way that began before it was called; it is
    /// called where the new admission admits less than the old one, or another epoch.
    pub(super) fn change(
        &self,
        new: Admission,
        barrier: impl FnOnce(),
        begin_epoch: impl FnOnce(),
    ) {
        let _changing = self.changing.lock();
        let (old, epoch) = (
            self.kinds.load(Ordering::Acquire),
            self.epoch.load(Ordering::Relaxed),
        );
        let reads = if new.reads { READS } else { 0 };
        let writes = if new.writes { WRITES } else { 0 };
        let kinds = reads | writes;
        let is_new_epoch = epoch != new.epoch;
        // Writes of two epochs are never under way at once.
        let meanwhile = if is_new_epoch {
            kinds & old & READS
        } else {
            kinds & old
        };
        if meanwhile != old {
            self.kinds.store(meanwhile, Ordering::SeqCst);
            barrier();
        }
        if is_new_epoch {
            self.epoch.store(new.epoch, Ordering::Relaxed);
            begin_epoch();
        }
        self.kinds.store(kinds, Ordering::SeqCst);
    }
}
