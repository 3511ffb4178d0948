//! Decides which requests the engine executes now.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Kinds of requests that an engine executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Requests that read.
    pub reads: bool,
    /// Requests that write, and runs that do both.
    pub writes: bool,
}

impl Admission {
    const fn kinds(self) -> u8 {
        let reads = if self.reads { READS } else { 0 };
        let writes = if self.writes { WRITES } else { 0 };
        reads | writes
    }
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
    /// The epoch of the last record that is applied; 0 without one.
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

    /// The data set has come to this epoch, or is another one. No request that writes is admitted.
    pub(super) fn set_epoch(&self, epoch: u64) {
        debug_assert_eq!(
            self.admits(true),
            None,
            "an epoch that this node did not open"
        );
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Replaces the admission. `barrier` returns once no request is under way that began before it was called; it is
    /// called where the new admission admits less than the old one.
    pub(super) fn change(&self, new: Admission, barrier: impl FnOnce()) {
        let _changing = self.changing.lock();
        let old = self.kinds.load(Ordering::Acquire);
        let kinds = new.kinds();
        if kinds & old != old {
            self.kinds.store(kinds & old, Ordering::SeqCst);
            barrier();
        }
        self.kinds.store(kinds, Ordering::SeqCst);
    }

    /// Replaces the admission, and calls `begin` in between, while no write is under way: it begins this epoch. Writes
    /// of two epochs are thus never under way at once. `barrier` is as for [`change`](Self::change).
    ///
    /// # Errors
    ///
    /// Where `begin` fails. The admission is then as it was.
    pub(super) fn begin_epoch<E>(
        &self,
        epoch: u64,
        new: Admission,
        barrier: impl FnOnce(),
        begin: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _changing = self.changing.lock();
        let old = self.kinds.load(Ordering::Acquire);
        let kinds = new.kinds();
        self.kinds.store(kinds & old & READS, Ordering::SeqCst);
        barrier();
        let result = begin();
        let kinds = if result.is_ok() {
            self.epoch.store(epoch, Ordering::Relaxed);
            kinds
        } else {
            old
        };
        self.kinds.store(kinds, Ordering::SeqCst);
        result
    }
}
