//! The data set of a node: the store, the commands that change it, and the order of their writes.
//!
//! [`Engine`] is the only thing that writes to the store and to the log. It knows no sockets, threads, roles or files.
//!
//! | file            | question                                                            |
//! |-----------------|---------------------------------------------------------------------|
//! | `execute.rs`    | how are requests of clients executed?                               |
//! | `prepared.rs`   | what is done for them before anything is locked?                    |
//! | `work.rs`       | what is done with all partitions of a run locked?                   |
//! | `single.rs`     | how is a write executed that goes alone?                            |
//! | `command/`      | what does an operation answer, and what is its effect?              |
//! | `compute.rs`   | how is a command executed whose effect follows from the old entry?  |
//! | `clock.rs`     | by which clock do entries expire?                                   |
//! | `atomic.rs`    | how are commands executed that go together or not at all?           |
//! | `expire.rs`     | how are entries removed whose deadline has passed?                  |
//! | `deadlines.rs`  | how does a partition know the deadlines of its entries?             |
//! | `expiring.rs`   | which of them are the next?                                         |
//! | `apply.rs`      | how are a leader's records logged, and applied once committed?      |
//! | `memory.rs`     | how much memory do entries and tables take?                         |
//! | `limited.rs`    | how do writes keep a limit of the memory?                           |
//! | `eviction.rs`   | which entries make room for others?                                 |
//! | `gate.rs`       | which requests are executed now, and under which epoch?             |
//! | `snapshot.rs`   | how is the data set copied out beside writers, and loaded?          |
//! | `store.rs`      | which entry has a key, and how are partitions locked?               |
//! | `entry.rs`      | how does an entry lie in memory?                                    |
//! | `change.rs`     | how does the digest follow the writes?                              |
//! | `digest.rs`     | which checksum do equal data sets share?                            |
//! | `comparison.rs` | how do two nodes find out which entries differ?                     |
//! | `scan.rs`       | how are keys and entries read piece by piece?                       |
//! | `answers.rs`    | where do answers gather?                                            |

#![deny(clippy::wildcard_enum_match_arm)]

mod answers;
mod apply;
mod atomic;
mod change;
pub mod clock;
mod command;
pub mod comparison;
mod compute;
mod deadlines;
pub mod digest;
pub mod entry;
mod eviction;
mod execute;
mod expire;
mod expiring;
mod gate;
mod limited;
pub mod memory;
#[cfg(test)]
pub(crate) mod planted;
mod prepared;
pub mod scan;
mod single;
mod snapshot;
pub mod store;
mod work;

pub use answers::{Answers, COPIED_BYTES, DIRECT_BYTES};
pub use apply::{ApplyError, Group};
pub use atomic::{BATCH_ANSWER_BYTES_MAX, BATCH_COPIES_BYTES_MAX, NotShort};
pub use execute::{NotDone, NotTogether, Outcome};
pub use expire::{EXPIRED_MAX, Expired};
pub use gate::Admission;
pub use snapshot::{Load, PartitionCopy, Staged};

use parking_lot::Mutex;
use std::sync::atomic::AtomicU64;

use crate::history::{EpochStart, HistoryError};
use crate::log::{Head, Log, Sequencer};
use crate::wire::comparison::{ComparisonError, List, ListAnswer, Sums, SumsAnswer};
use clock::Clock;
use comparison::Budget;
use gate::Gate;
use store::Store;

/// Whether locks are those of `parking_lot`. In `tests/order` these files have others, which work under a scheduler
/// alone, so tests inside them that take locks do nothing there.
#[cfg(test)]
const HAS_PLAIN_LOCKS: bool = matches!(module_path!().as_bytes(), [b'g', ..]);

/// A node's data set and the order of its writes.
///
/// # Invariants
///
/// 1. For each key, the order of the log is the order of the store.
/// 2. The digest of the log's head is the digest of the store's entries, while nothing is written or applied.
/// 3. A request is executed under the [`Admission`] that is in force while its partitions are locked.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    /// `None` of a node without peers, which pays nothing for a log.
    sequencer: Option<Sequencer>,
    gate: Gate,
    clock: Clock,
    /// Entries removed because their deadline had passed.
    expired: AtomicU64,
    /// Writes refused because the disk is full.
    refused_for_space: AtomicU64,
    /// Of batches that wait for their partitions, one at a time.
    batch_turn: Mutex<()>,
}

impl Engine {
    /// An empty data set, which admits nothing. It has a log where `backlog_bytes` says how much of it is kept. Entries
    /// expire by `clock`.
    #[must_use]
    pub fn new(backlog_bytes: Option<u64>, clock: Clock) -> Engine {
        Engine::with_store(Store::new(), backlog_bytes, clock)
    }

    /// The same with this store. For measurements and tests.
    #[must_use]
    pub fn with_store(store: Store, backlog_bytes: Option<u64>, clock: Clock) -> Engine {
        Engine {
            store,
            clock,
            batch_turn: Mutex::default(),
            sequencer: backlog_bytes.map(Sequencer::new),
            gate: Gate::default(),
            expired: AtomicU64::new(0),
            refused_for_space: AtomicU64::new(0),
        }
    }

    /// Replaces the admission. When it returns, no request is under way that was executed under the one before, unless
    /// that admitted no more than this one.
    pub fn admit(&self, admission: Admission) {
        self.gate.change(admission, || self.store.barrier());
    }

    /// Opens an epoch, and replaces the admission by the one that holds in it. The epoch's first record is appended
    /// while no write is under way. Without a log there are no epochs, and only the admission is replaced.
    ///
    /// # Errors
    ///
    /// Where the epoch cannot follow the log's history, or does not start at the log's next index. Nothing is changed
    /// then.
    pub fn open_epoch(&self, start: EpochStart, admission: Admission) -> Result<(), HistoryError> {
        let Some(sequencer) = &self.sequencer else {
            self.admit(admission);
            return Ok(());
        };
        let barrier = || self.store.barrier();
        let begin = || sequencer.begin_epoch(start);
        self.gate
            .begin_epoch(start.epoch, admission, barrier, begin)
    }

    /// The epoch under which a request is executed, with its partitions locked.
    #[inline]
    fn admitted(&self, writes: bool) -> Result<u64, NotDone> {
        self.gate.admits(writes).ok_or(NotDone::Refused)
    }

    /// Whether requests that read are admitted.
    #[must_use]
    pub fn admits_reads(&self) -> bool {
        self.gate.admits(false).is_some()
    }

    /// Whether requests that write are admitted.
    #[must_use]
    pub fn admits_writes(&self) -> bool {
        self.gate.admits(true).is_some()
    }

    /// The log; `None` of a node without peers.
    #[must_use]
    pub fn log(&self) -> Option<&Log> {
        self.sequencer.as_ref().map(Sequencer::log)
    }

    /// Wakes the requests that wait for a record, which is appended or applied. No partition is locked.
    #[inline]
    fn reached(&self, index: u64) {
        if let Some(log) = self.log() {
            log.reached(index);
        }
    }

    /// Has writes of clients wait for room in the append queue, with nothing done of them, or no longer. Writes that
    /// have room already are not held.
    pub fn hold_writes(&self, is_held: bool) {
        if let Some(sequencer) = &self.sequencer {
            sequencer.hold_writes(is_held);
        }
    }

    /// Ends the log: nothing is executed or applied any more.
    pub fn end_log(&self) {
        if let Some(sequencer) = &self.sequencer {
            sequencer.end();
        }
    }

    /// The last position of the data set; index 0 without a log.
    #[must_use]
    pub fn head(&self) -> Head {
        self.log().map(Log::head).unwrap_or_default()
    }

    /// The clock by which entries expire.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A clone of the entry of `key`, whatever is admitted, and also where its deadline has passed.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<entry::Entry> {
        self.store.get(key)
    }

    /// Removes all entries; the log begins anew, without a history. Nothing is admitted, and nothing loads or applies.
    pub fn clear(&self) {
        // First, so that readers of the log know before an entry is missing.
        if let Some(sequencer) = &self.sequencer {
            self.gate.set_epoch(0);
            sequencer.clear();
        }
        self.store.clear();
    }

    /// Number of entries; approximate beside writers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there is no entry; as exact as [`len`](Self::len).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// Bytes of all keys and values; as exact as [`len`](Self::len).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.store.partitions()
    }

    /// The partition of `key`.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        self.store.partition_of(key)
    }

    /// Answers a SUMS ([`comparison::sums`]).
    ///
    /// # Errors
    ///
    /// Where the request is not acceptable.
    pub fn sums(&self, request: &Sums, budget: Budget) -> Result<SumsAnswer, ComparisonError> {
        comparison::sums(&self.store, request, budget)
    }

    /// Answers a LIST ([`comparison::list`]).
    ///
    /// # Errors
    ///
    /// Where the request is not acceptable.
    pub fn list(&self, request: &List, budget: Budget) -> Result<ListAnswer, ComparisonError> {
        comparison::list(&self.store, request, budget)
    }
}
