//! The state of the node's disk, for STATUS.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Lines;
use crate::config::SyncPolicy;
use crate::log::{Log, Mark};

/// The state of a data directory, as STATUS shows it. The threads of the directory update it. Nothing waits while it is
/// locked.
#[derive(Debug, Default)]
pub struct StorageStatus {
    sync: SyncPolicy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    recovery: RecoveryFigures,
    log_bytes: u64,
    synced_at: Option<Instant>,
    snapshot: Option<SnapshotFigures>,
    /// Snapshots that this process has written, and those that it could not write.
    snapshots: u64,
    failed_snapshots: u64,
    /// Why the last one could not be written; empty where it was.
    snapshot_error: String,
}

/// Figures of the recovery at the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryFigures {
    /// Duration of the recovery.
    pub took: Duration,
    /// Records of the log that were applied.
    pub records: u64,
    /// Least number of bytes of a torn write that were cut off.
    pub cut_bytes: u64,
}

/// The last snapshot of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFigures {
    /// Index at which it begins.
    pub index: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// When it was written, if that is known.
    pub written_at: Option<Instant>,
}

impl StorageStatus {
    /// The state of a directory whose log is made durable by this policy.
    #[must_use]
    pub fn new(sync: SyncPolicy) -> StorageStatus {
        StorageStatus {
            sync,
            ..StorageStatus::default()
        }
    }

    /// Sets the figures of the recovery.
    pub fn recovered(&self, figures: RecoveryFigures) {
        self.state.lock().recovery = figures;
    }

    /// Sets the bytes of the segments of the log.
    pub fn log_takes(&self, bytes: u64) {
        self.state.lock().log_bytes = bytes;
    }

    /// Notes that the log was made durable at `now`.
    pub fn synced(&self, now: Instant) {
        self.state.lock().synced_at = Some(now);
    }

    /// Sets the figures of the snapshot that was recovered.
    pub fn has_snapshot(&self, figures: SnapshotFigures) {
        self.state.lock().snapshot = Some(figures);
    }

    /// Notes that a snapshot was written.
    pub fn wrote_snapshot(&self, figures: SnapshotFigures) {
        let mut state = self.state.lock();
        state.snapshot = Some(figures);
        state.snapshots += 1;
        state.snapshot_error.clear();
    }

    /// Notes that a snapshot could not be written, and why.
    pub fn wrote_no_snapshot(&self, why: String) {
        let mut state = self.state.lock();
        state.failed_snapshots += 1;
        state.snapshot_error = why;
    }

    /// Adds the lines of a node with a disk.
    pub(super) fn write(&self, log: Option<&Log>, now: Instant, lines: &mut Lines) {
        let index = |mark| {
            log.and_then(|log| log.watermarks().index(mark))
                .unwrap_or(0)
        };
        let since = |at: Instant| now.saturating_duration_since(at).as_millis();
        let words = SyncPolicy::ALL.iter();
        let word = words.clone().find(|(_, policy)| *policy == self.sync);
        lines.add_or_dash("sync", word.map(|(word, _)| word));
        lines.add("written_index", &index(Mark::Written));
        lines.add("durable_index", &index(Mark::Durable));
        let space = log.map(|log| log.space().0).unwrap_or_default();
        lines.add("disk_space", &space.as_str());
        let state = self.state.lock();
        lines.add_or_dash("synced_ms", state.synced_at.map(since));
        lines.add("log_bytes", &state.log_bytes);
        let snapshot = state.snapshot;
        lines.add("snapshot_bytes", &snapshot.map_or(0, |it| it.bytes));
        lines.add_or_dash("snapshot_index", snapshot.map(|it| it.index));
        let written_at = snapshot.and_then(|it| it.written_at);
        lines.add_or_dash("snapshot_age_ms", written_at.map(since));
        lines.add("snapshots", &state.snapshots);
        lines.add("failed_snapshots", &state.failed_snapshots);
        let error = Some(&*state.snapshot_error).filter(|text| !text.is_empty());
        lines.add_text("snapshot_error", error.unwrap_or("-"));
        lines.add("recovery_ms", &state.recovery.took.as_millis());
        lines.add("recovered_records", &state.recovery.records);
        lines.add("cut_bytes", &state.recovery.cut_bytes);
    }
}
