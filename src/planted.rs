//! Faults that the simulator has to find. They are in builds for tests alone, and only a test plants one.
//!
//! Beside a rule that a fault breaks stands a line `if crate::planted::is(…)`, in builds for tests.
//! `tests/simulation/planted.rs` has a seed for each.

use std::cell::Cell;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A leader leaves out a record where a stream resumes.
    SkippedOnResume,
    /// A follower logs and applies each group twice.
    AppliedTwice,
    /// A snapshot lacks what the log gained in the first partition since that was copied.
    TailOfSnapshot,
    /// The same, and a follower compares no digests.
    DigestNotCompared,
    /// A leader goes on in the epoch of the one before it.
    EpochReused,
    /// A leader offers a snapshot to a follower whose data set it does not know, and the follower takes it.
    RefusingEmptied,
    /// A position counts as reached by the watermark of another epoch.
    WatermarkSurvives,
    /// A group ends in the middle of an append.
    RecordTorn,
    /// An ACK of an older stream counts.
    OldAckCounts,
    /// A node that stops does not wait until another one has its data.
    StopDoesNotWait,
    /// An operation takes a key whose deadline has passed for one that exists.
    HiddenIsPresent,
    /// A follower removes expired entries by itself.
    FollowerExpires,
    /// The clock by which entries expire goes back with the wall clock.
    ClockGoesBack,
    /// The clock of a follower is not pulled by its leader's.
    ClockNotPulled,
    /// The digest does not include deadlines.
    DeadlineNotInDigest,
    /// A record counts as durable when it is written.
    AcknowledgedBeforeSync,
    /// A sync that fails counts as done.
    SyncErrorIgnored,
    /// The directory is not synced after a segment has got its name.
    DirectoryNotSynced,
    /// A segment need not begin with the checksum that the one before ends with.
    ChainNotCompared,
    /// A snapshot gets its name before all of it is on the disk.
    SnapshotNotWhole,
    /// The log that a snapshot replaces is removed when the snapshot begins.
    LogRemovedBeforeSnapshot,
    /// Reads of a data set that was copied do not wait for the disk.
    CopyShownAtOnce,
    /// The token in an answer names the last record of the run.
    TokenOfRun,
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether this fault is planted in the current thread.
pub(crate) fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Whether a fault is planted with which a snapshot lacks records.
pub(crate) fn lacks_tail_of_snapshot() -> bool {
    is(Fault::TailOfSnapshot) || is(Fault::DigestNotCompared)
}

/// Plants a fault in the current thread, or none.
pub(crate) fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}
