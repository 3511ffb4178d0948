//! Writes the log of a node to its data directory.
//!
//! [`Writing::step`] reads the log as a sender to a follower does, writes the new records as one group, and moves the
//! watermarks that answers wait for. Records that are appended during a sync are the next group. So one sync serves all
//! writes that have gathered.
//!
//! A full copy from another node replaces the data set. The log behind it is another chain of segments, beside the old
//! snapshot and its chain. Until a snapshot of the new data set has its name, a recovery finds the old data set, so no
//! record of the new chain counts as written.

use std::fmt;
use std::time::{Duration, Instant};

use super::Recovery;
use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::Engine;
use crate::engine::digest::Digest;
use crate::log::{Cursor, Found, Log, Mark, Space, Unwritten};
use crate::storage::error::StorageError;
use crate::storage::files::Files;
use crate::storage::recovery::LogEnd;
use crate::storage::segment::SegmentId;
use crate::storage::snapshot::SnapshotId;
use crate::storage::writer::{
    Layout, LogWriter, NewGroup, PendingSync, Salts, Synced, newest_chain, remove_stale,
};

/// Most bytes of records in a group, but for a single longer one.
const GROUP_BYTES: usize = 1 << 20;

/// Time between two attempts to get space from a disk that is full.
const RETRY: Duration = Duration::from_secs(1);

/// A segment divided by this number is the part that only the node itself may use where the disk is full.
const OWN_PART: u64 = 4;

/// A segment divided by this number is the part that is left where the disk counts as full though a snapshot is being
/// written.
const BESIDE_SNAPSHOT_PART: u64 = 2;

/// Bytes of groups with which a sync is begun before the policy wants one. So the sync of a whole segment, for which
/// the next one waits, has little left to do.
const UNSYNCED_BYTES: u64 = 4 << 20;

/// Idle time after which the last group is sealed, where it is durable.
const SEAL_AFTER: Duration = Duration::from_millis(100);

/// Longest wait for a log in which nothing happens. Any change wakes the reader before.
const IDLE: Duration = Duration::from_secs(3_600);

/// Settings of the writing.
#[derive(Clone)]
pub struct Settings {
    /// When the log is made durable.
    pub config: StorageConfig,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of log after which there is another snapshot, where the last one is not longer.
    pub snapshot_log_bytes: u64,
    /// Draws the salts of segments.
    pub salts: Salts,
}

impl Settings {
    /// The shape of segments. Where each write waits for a sync, that is to have little to do.
    fn layout(&self) -> Layout {
        Layout {
            segment_bytes: self.segment_bytes,
            is_filled: self.config.sync == SyncPolicy::Always,
        }
    }
}

/// The action that follows a step.
#[derive(Debug)]
pub enum Next {
    /// The next step.
    Again,
    /// The next step, and this sync, which another thread may make meanwhile. What it returns goes to
    /// [`Writing::synced`].
    Sync(Sync),
    /// Nothing before this time, unless the log grows or something else has happened.
    Wait(Instant),
    /// Nothing: the log has ended, and all of it is durable. A [last snapshot](Writing::wants_snapshot) may be wanted.
    Ended,
}

/// A sync that is to be made.
#[derive(Debug)]
pub struct Sync {
    /// Counts the syncs.
    number: u64,
    pending: PendingSync,
}

/// A sync that was made.
#[derive(Clone, Copy, Debug)]
pub struct SyncDone {
    number: u64,
    synced: Synced,
}

impl Sync {
    /// Makes it. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Those of the system. No further answer may be sent then.
    pub fn run(self) -> Result<SyncDone, StorageError> {
        let Sync { number, pending } = self;
        let synced = pending.run()?;
        Ok(SyncDone { number, synced })
    }
}

/// The writer of a node's log.
pub struct Writing<'d> {
    files: &'d dyn Files,
    engine: &'d Engine,
    log: &'d Log,
    settings: Settings,
    /// `None` while the node holds no data set.
    writer: Option<LogWriter<'d>>,
    /// The next record.
    cursor: Cursor,
    /// A recovery finds what is written: the chain begins with the first record of all, or behind a snapshot that has
    /// its name.
    is_based: bool,
    synced_at: Instant,
    /// Syncs that were begun.
    syncs: u64,
    /// The number of the one that is under way.
    running: Option<u64>,
    /// When a group was last written.
    wrote_at: Instant,
    /// Bytes of log since the last snapshot was begun.
    log_bytes: u64,
    /// Of the last snapshot.
    snapshot_bytes: u64,
    /// When the disk, which was full, is asked for space again.
    retry_at: Option<Instant>,
    /// Why it was full.
    why_full: String,
    /// A snapshot is being written. Its file may be what takes the space, and may be removed.
    is_beside_snapshot: bool,
    /// Nothing is written, since there is no space for the next record.
    is_stalled: bool,
    /// The log has ended, and all of it is durable.
    has_ended: bool,
    /// Frames read from the log.
    buffer: Vec<u8>,
}

impl<'d> Writing<'d> {
    /// Goes on writing behind the recovered log. Removes files that no recovery needs.
    ///
    /// # Errors
    ///
    /// Those of the system. It is then unknown what the disk has, so no further answer may be sent. This holds for all
    /// functions here.
    pub fn new(
        files: &'d dyn Files,
        (engine, log): (&'d Engine, &'d Log),
        settings: Settings,
        recovery: Recovery,
        now: Instant,
    ) -> Result<Writing<'d>, StorageError> {
        let mut writing = Writing {
            files,
            engine,
            log,
            settings,
            writer: None,
            cursor: log.unwritten().cursor,
            is_based: false,
            synced_at: now,
            syncs: 0,
            running: None,
            wrote_at: now,
            log_bytes: 0,
            snapshot_bytes: 0,
            retry_at: None,
            why_full: String::new(),
            is_beside_snapshot: false,
            is_stalled: false,
            has_ended: false,
            buffer: Vec::new(),
        };
        writing.resume(recovery)?;
        Ok(writing)
    }

    /// Goes on behind what was recovered into the engine, which had no data set before.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn resume(&mut self, recovery: Recovery) -> Result<(), StorageError> {
        let Recovery {
            snapshot,
            mut log,
            unwritten,
            ..
        } = recovery;
        let unwritten = unwritten.unwrap_or_else(|| self.log.unwritten());
        let id = snapshot.as_ref().map(|snapshot| snapshot.id);
        let (files, settings) = (self.files, &self.settings);
        let (salts, layout) = (settings.salts.clone(), settings.layout());
        let history = &unwritten.history;
        let writer = match (&mut log, id) {
            (Some(log), _) => Some(LogWriter::recovered(files, log, history, salts, layout)?),
            // A directory without data.
            (None, None) => None,
            // Nothing was written behind the snapshot.
            (None, Some(id)) => {
                let first = SegmentId {
                    chain: id.chain,
                    number: 1,
                };
                let end = end_at(&unwritten);
                Some(LogWriter::begin(files, first, end, history, salts, layout)?)
            }
        };
        if let Some(writer) = &writer {
            remove_stale(files, Some(writer.chain()), id)?;
        }
        let begin = id.map_or(0, |id| id.begin);
        let segments = log.iter().flat_map(|log| &log.segments);
        let behind = segments.filter(|segment| segment.last_index > begin);
        self.log_bytes = behind.map(|segment| segment.bytes).sum();
        self.snapshot_bytes = snapshot.map_or(0, |snapshot| snapshot.bytes);
        self.is_based = writer.is_some();
        self.running = None;
        self.writer = writer;
        self.cursor = unwritten.cursor;
        self.look_for_space();
        self.acknowledge();
        Ok(())
    }

    /// Reads the directory into the engine again, which is empty and receives nothing meanwhile. Goes on behind the end
    /// of the data set that is recovered.
    ///
    /// # Errors
    ///
    /// Those of [`recover`](super::recover), and of the system.
    pub fn restore(&mut self, now: Instant) -> Result<(), StorageError> {
        let recovery = super::recover(self.files, self.engine, now, 1)?;
        self.resume(recovery)
    }

    /// Writes the next group, if the log has one, makes durable what has to be or what is
    /// [wanted](Log::want_durable), or says how long there is nothing to do.
    ///
    /// Where the disk is full the node goes on in the segment that has its space, and says so
    /// ([`Log::set_space`]). Once that is full too nothing is written, and nothing acknowledged. The disk is asked for
    /// space again each second. [Beside a snapshot](Self::set_beside_snapshot) the node says so only once half of the
    /// segment is used.
    ///
    /// # Errors
    ///
    /// Those of the system, and where the log has ended and the disk has no space for all of it.
    pub fn step(&mut self, now: Instant) -> Result<Next, StorageError> {
        self.get_space(now)?;
        // A log that has ended waits for no space.
        let waits = self.is_stalled && !self.log.has_ended();
        if waits && self.retry_at.is_some_and(|at| now < at) {
            return self.rest(now);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let before = self.cursor;
        let found = self
            .log
            .try_read(&mut self.cursor, GROUP_BYTES, &mut buffer);
        let next = match &found {
            Found::Small(count, digest) => self.append((&buffer, *count), *digest, now),
            Found::Large(entry, digest) => self.append((entry.frame(), 1), *digest, now),
            Found::Nothing => self.rest(now),
            Found::Ended => self.end().map(|()| Next::Ended),
            Found::Gone => self.restart().map(|()| Next::Again),
        };
        self.buffer = buffer;
        match next {
            Err(error) if error.is_full() && !self.log.has_ended() => {
                self.is_stalled = true;
                // The same again.
                self.cursor = before;
                self.is_full(&error, now);
                Ok(Next::Again)
            }
            next => next,
        }
    }

    /// Takes a step of the preparation of the next segment, where it is time for that.
    fn get_space(&mut self, now: Instant) -> Result<(), StorageError> {
        let is_due = match self.retry_at {
            Some(at) => now >= at,
            None => self.writer.as_ref().is_some_and(LogWriter::is_to_prepare),
        };
        if is_due { self.prepare(now) } else { Ok(()) }
    }

    /// Takes a step of the preparation of the next segment.
    fn prepare(&mut self, now: Instant) -> Result<(), StorageError> {
        let Some(writer) = &mut self.writer else {
            // A chain is begun with its first record, or when the log is read again.
            self.is_stalled = false;
            self.retry_at = None;
            return Ok(());
        };
        match writer.prepare() {
            Ok(false) => {}
            Ok(true) => {
                self.retry_at = None;
                self.is_stalled = false;
                self.log.set_space(Space::Enough, "");
            }
            Err(error) if error.is_full() => self.is_full(&error, now),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notes that the disk has no space for the next segment.
    fn is_full(&mut self, error: &StorageError, now: Instant) {
        self.retry_at = Some(now + RETRY);
        self.why_full = error.to_string();
        self.judge_space();
    }

    /// Publishes how much space is left on a disk that has none for the next segment.
    fn judge_space(&self) {
        let reserve = self.writer.as_ref().map(LogWriter::reserve);
        let is_left = |part| reserve.is_some_and(|(left, segment)| left >= segment / part);
        let space = if self.is_stalled || !is_left(OWN_PART) {
            Space::UsedUp
        } else if self.is_beside_snapshot && is_left(BESIDE_SNAPSHOT_PART) {
            // The end of the snapshot may give the space.
            return;
        } else {
            Space::Reserve
        };
        self.log.set_space(space, &self.why_full);
    }

    /// Notes whether a snapshot is being written. Once it is not, the disk is asked for space again.
    pub fn set_beside_snapshot(&mut self, is_beside: bool) {
        if std::mem::replace(&mut self.is_beside_snapshot, is_beside) && !is_beside {
            self.ask_again();
        }
    }

    /// Has a disk that was full asked for space in the next step.
    fn ask_again(&mut self) {
        self.retry_at = self.retry_at.map(|_| self.wrote_at);
    }

    /// Has a disk that was full when the chain before was written asked for space in the next step. Until then, and
    /// without a chain, it is not known to have any.
    fn look_for_space(&mut self) {
        if self.writer.is_some() && self.log.space().0 != Space::Enough {
            self.retry_at = Some(self.wrote_at);
        }
    }

    /// Whether the next step does nothing but write and sync: the next segment has its space, and the disk is not full.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.retry_at.is_none() && self.writer.as_ref().is_some_and(LogWriter::is_prepared)
    }

    /// Whether nothing is written until the disk has space again, though the log may have more.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// The log begins anew: another data set has replaced the one before, or the node holds none.
    fn restart(&mut self) -> Result<(), StorageError> {
        if self.is_unsynced() {
            // A recovery may need it yet.
            self.sync()?;
        }
        let unwritten = self.log.unwritten();
        self.cursor = unwritten.cursor;
        self.writer = None;
        self.running = None;
        self.log_bytes = 0;
        self.snapshot_bytes = 0;
        if unwritten.history.last().is_none() {
            return Ok(());
        }
        self.begin_chain(&unwritten)
    }

    /// Begins a chain behind what is written.
    fn begin_chain(&mut self, place: &Unwritten) -> Result<(), StorageError> {
        let newest = newest_chain(self.files)?;
        let first = SegmentId {
            chain: newest.unwrap_or(0) + 1,
            number: 1,
        };
        let settings = &self.settings;
        let writer = LogWriter::begin(
            self.files,
            first,
            end_at(place),
            &place.history,
            settings.salts.clone(),
            settings.layout(),
        )?;
        self.is_based = newest.is_none() && place.head.index == 0;
        self.writer = Some(writer);
        self.look_for_space();
        Ok(())
    }

    fn append(
        &mut self,
        (records, count): (&[u8], u32),
        digest: Digest,
        now: Instant,
    ) -> Result<Next, StorageError> {
        let (epoch, committed) = self.state();
        let group = NewGroup {
            records,
            count,
            digest,
            epoch,
            committed,
            time_ms: self.engine.clock().now(),
        };
        let log = self.log;
        if self.writer.is_none() {
            self.begin_chain(&log.unwritten())?;
        }
        let Some(writer) = &mut self.writer else {
            unreachable!("it was begun")
        };
        let written = writer.written_to();
        writer.append(&group, || log.history().up_to(written))?;
        let written = writer.written_to();
        self.wrote_at = now;
        self.log_bytes += u64::try_from(records.len()).unwrap_or(u64::MAX);
        if self.is_based {
            self.log.advance_at(&self.cursor, Mark::Written, written);
        }
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::AcknowledgedBeforeSync) {
            self.log.advance_at(&self.cursor, Mark::Durable, written);
        }
        self.log.written_at(&self.cursor, written);
        if self.retry_at.is_some() {
            self.judge_space();
        }
        match self.settings.config.sync {
            SyncPolicy::Always => {
                self.sync()?;
                Ok(Next::Again)
            }
            SyncPolicy::Interval | SyncPolicy::Never => {
                Ok(self.begin_sync(now).map_or(Next::Again, Next::Sync))
            }
        }
    }

    /// Begins a sync where one is due and none is under way.
    fn begin_sync(&mut self, now: Instant) -> Option<Sync> {
        if !self.can_sync() || !self.is_sync_due(now) {
            return None;
        }
        let pending = self.writer.as_mut()?.begin_sync()?;
        self.synced_at = now;
        self.syncs += 1;
        let number = self.syncs;
        self.running = Some(number);
        Some(Sync { number, pending })
    }

    /// A sync is made.
    pub fn synced(&mut self, done: SyncDone) {
        if self.running != Some(done.number) {
            // Of a log that is not written any more.
            return;
        }
        self.running = None;
        if let Some(writer) = &mut self.writer {
            writer.synced(done.synced);
        }
        self.acknowledge();
    }

    /// The newest epoch, and the index up to which records are committed.
    fn state(&self) -> (u64, u64) {
        let epoch = self.log.last_epoch().map_or(0, |start| start.epoch);
        (epoch, self.log.committed_index())
    }

    /// Whether a sync is due now, where something is not synced.
    fn is_sync_due(&self, now: Instant) -> bool {
        let config = &self.settings.config;
        let is_due_by_policy = match config.sync {
            SyncPolicy::Always => true,
            SyncPolicy::Interval => {
                now.saturating_duration_since(self.synced_at) >= config.sync_interval
            }
            SyncPolicy::Never => false,
        };
        let unsynced = self.writer.as_ref().map_or(0, LogWriter::unsynced_bytes);
        let is_wanted = self.log.wanted_durable() > self.durable_to();
        is_due_by_policy || is_wanted || unsynced >= UNSYNCED_BYTES
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if let Some(writer) = &mut self.writer {
            writer.sync()?;
        }
        self.acknowledge();
        Ok(())
    }

    /// Moves the watermarks to what a recovery finds, unless another data set has replaced the one that is written.
    fn acknowledge(&self) {
        if let Some(writer) = &self.writer
            && self.is_based
        {
            let (log, cursor) = (self.log, &self.cursor);
            log.advance_at(cursor, Mark::Written, writer.written_to());
            log.advance_at(cursor, Mark::Durable, writer.durable_to());
        }
    }

    /// Syncs the records that wait for that, or seals the last group, where nothing is appended.
    fn rest(&mut self, now: Instant) -> Result<Next, StorageError> {
        if let Some(sync) = self.begin_sync(now) {
            return Ok(Next::Sync(sync));
        }
        match &self.writer {
            Some(writer) if !writer.is_prepared() && self.retry_at.is_none() => {
                self.prepare(now)?;
                return Ok(Next::Again);
            }
            Some(_) | None => {}
        }
        let mut until = self.retry_at.unwrap_or(now + IDLE);
        if self.can_sync() && self.settings.config.sync == SyncPolicy::Interval {
            until = until.min(self.synced_at + self.settings.config.sync_interval);
        }
        // A seal says what is durable. Behind a group that is not, it would say nothing of that for good.
        let is_sealed = self.writer.as_ref().is_none_or(LogWriter::is_sealed);
        if !is_sealed && !self.is_unsynced() {
            let seal_at = self.wrote_at + SEAL_AFTER;
            if now >= seal_at {
                self.seal()?;
            } else {
                until = until.min(seal_at);
            }
        }
        Ok(Next::Wait(until))
    }

    fn seal(&mut self) -> Result<(), StorageError> {
        let (epoch, committed) = self.state();
        let (log, time_ms) = (self.log, self.engine.clock().now());
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let written = writer.written_to();
        match writer.seal((epoch, committed, time_ms), || log.history().up_to(written)) {
            // It is not needed.
            Err(error) if error.is_full() => Ok(()),
            sealed => sealed,
        }
    }

    /// Makes the whole log durable once it has ended.
    fn end(&mut self) -> Result<(), StorageError> {
        if !self.has_ended {
            self.sync()?;
            self.seal()?;
            self.sync()?;
            self.has_ended = true;
        }
        Ok(())
    }

    /// Whether the log has [ended](Next::Ended). The data directory needs nothing more.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Index up to which the chain is durable; 0 where there is none.
    #[must_use]
    pub fn durable_to(&self) -> u64 {
        self.writer.as_ref().map_or(0, LogWriter::durable_to)
    }

    /// Whether a recovery finds the chain that is written, as it does not before a full copy has its snapshot.
    #[must_use]
    pub const fn is_based(&self) -> bool {
        self.is_based
    }

    /// Whether something is written that is not durable.
    fn is_unsynced(&self) -> bool {
        self.writer.as_ref().is_some_and(LogWriter::is_unsynced)
    }

    /// Whether a sync can begin: something is written that is not durable, and none is under way.
    #[must_use]
    pub fn can_sync(&self) -> bool {
        self.is_unsynced() && self.running.is_none()
    }

    /// The chain that is written; `None` while the node holds no data set.
    #[must_use]
    pub fn chain(&self) -> Option<u32> {
        self.writer.as_ref().map(LogWriter::chain)
    }

    /// Bytes of the segments of the chain that is written; 0 where there is none.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, LogWriter::bytes)
    }

    /// The place in the log behind what is written.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether a snapshot is wanted: the log is long, or its chain begins behind a full copy. Once the log has ended,
    /// its length alone counts, whatever the length of the last snapshot is: the next start reads the log.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        let least = self.settings.snapshot_log_bytes;
        let is_wanted = if self.has_ended {
            self.log_bytes > least
        } else {
            !self.is_based || self.log_bytes > least.max(self.snapshot_bytes)
        };
        self.writer.is_some() && is_wanted
    }

    /// Notes that a snapshot is begun. The log from here on counts for the next one.
    pub fn snapshot_began(&mut self) {
        #[cfg(test)]
        if let (true, Some(writer)) = (
            crate::planted::is(crate::planted::Fault::LogRemovedBeforeSnapshot),
            &mut self.writer,
        ) {
            let _ = writer.forget(writer.durable_to());
        }
        self.log_bytes = 0;
    }

    /// Removes the files that a finished snapshot of this many bytes replaces.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn snapshot_done(&mut self, id: SnapshotId, bytes: u64) -> Result<(), StorageError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        if writer.chain() != id.chain {
            return Ok(());
        }
        writer.forget(id.begin)?;
        // The removed files may give the space for the next segment.
        self.ask_again();
        self.snapshot_bytes = bytes;
        if !self.is_based {
            self.is_based = true;
            remove_stale(self.files, Some(id.chain), Some(id))?;
            self.acknowledge();
        }
        Ok(())
    }
}

/// The end of a log that a chain begins behind.
fn end_at(place: &Unwritten) -> LogEnd {
    let Unwritten { head, .. } = place;
    LogEnd {
        next_index: head.index + 1,
        digest: head.digest,
        previous: 0,
    }
}

impl fmt::Debug for Writing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing")
            .field("writer", &self.writer)
            .field("cursor", &self.cursor)
            .field("is_based", &self.is_based)
            .finish_non_exhaustive()
    }
}
