//! The node's data directory: opening and recovering it at the start, and the threads that write to it.
//!
//! The log-writer thread writes the log (`log_writer.rs`). The snapshot thread takes the steps of [`Copying`], once the
//! log has grown by as much as the last snapshot has, and by 64 MiB at least. `Shared` is what they tell each other.
//!
//! When the log ends, all of it is synced first. Then a snapshot that is under way is finished, or one is written where
//! there is much log behind the last one. The directory does not need it, so the process may be killed meanwhile.

mod log_writer;

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, error, info, log, warn};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub(super) use self::log_writer::LogWriting;
use super::data_dir::{self, Owned};
use crate::config::StorageConfig;
use crate::engine::Engine;
use crate::log::{Cursor, Log, Mark, Space};
use crate::node::{DataDirectory, Node, RecoveryFigures, SnapshotFigures, StorageStatus};
use crate::persistence::{self, Copying, Exchange, Progress, Recovery, Snapshots, Sync, SyncDone};
use crate::storage::error::{Problem, StorageError};
use crate::storage::files::Files as _;
use crate::storage::identity::Identity;
use crate::storage::recovery::files_to_read;
use crate::storage::snapshot::{ReadSnapshot, SnapshotId};
use crate::storage::writer::SEGMENT_BYTES;

/// Bytes of log after which there is another snapshot, where the last one is not longer.
const SNAPSHOT_LOG_BYTES_MIN: u64 = 64 << 20;

/// A start that reads this many times the bytes of log after which there is another snapshot says so before: 256 MiB.
const ANNOUNCED_PARTS: u64 = 4;

/// Interval at which the snapshot thread looks whether the data set that it copied is still there.
const REPLACED_POLL: Duration = Duration::from_millis(10);

/// Pauses before another snapshot, where one has failed: the first, and the longest. Each is twice the one before.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// Time for which a snapshot waits for the log on a disk that is full.
const FULL_WAIT: Duration = Duration::from_secs(5);

/// Longest time that a snapshot is copied behind the end of the log. Then the node ends without it.
pub(super) const LAST_SNAPSHOT_MAX: Duration = Duration::from_secs(50);

/// A data directory that this process uses.
#[derive(Debug)]
pub struct Disk {
    directory: Owned,
    config: StorageConfig,
    /// The result of the recovery, until the log-writer thread takes it.
    recovered: Mutex<Option<Recovery>>,
    /// Bytes of log after which there is another snapshot.
    snapshot_log_bytes: u64,
    status: StorageStatus,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// The state that the threads share.
#[derive(Debug, Default)]
struct Shared {
    exchange: Exchange,
    /// Another thread waits until the directory is read into the engine again.
    restore: Restore,
    /// A snapshot is ordered: one that has failed is tried again now.
    is_retry_ordered: bool,
    /// No thread writes snapshots: it could not be started.
    expects_no_snapshot: bool,
    /// When the log had ended, and all of it was durable.
    ended_at: Option<Instant>,
    /// A sync that the sync thread is to make, and the result of the last one.
    sync: Option<Sync>,
    synced: Option<Result<SyncDone, StorageError>>,
    /// Nothing is written any more, or the disk has failed.
    is_over: bool,
}

impl Shared {
    /// Whether the directory takes no orders any more.
    const fn is_closed(&self) -> bool {
        self.ended_at.is_some() || self.is_over
    }

    /// Whether the directory is to be read into the engine again now. A snapshot of the data set before ends at once;
    /// it may get its name and remove the one before, so nothing is read until then.
    fn may_restore(&self) -> bool {
        let is_ordered = self.restore == Restore::Ordered && !self.is_closed();
        is_ordered && self.exchange.snapshot() != Snapshots::Running
    }
}

/// The state of an order to read the directory again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Restore {
    #[default]
    None,
    Ordered,
    Done,
}

impl Disk {
    /// Opens the directory of a node, and locks it. Creates it where there is none.
    ///
    /// # Errors
    ///
    /// Where another process uses it, where it is another node's or has files of other programs, or where the system
    /// does not let this process read it and write there.
    pub fn open(path: &Path, own: &Identity, config: StorageConfig) -> Result<Disk, StorageError> {
        let directory = data_dir::open(path, own)?;
        Ok(Disk {
            directory,
            status: StorageStatus::new(config.sync),
            config,
            recovered: Mutex::default(),
            snapshot_log_bytes: snapshot_log_bytes(),
            shared: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The watermark that answers wait for.
    #[must_use]
    pub const fn acknowledges_at(&self) -> Mark {
        persistence::acknowledged_at(self.config.sync)
    }

    /// Reads the newest snapshot and the log behind it into a node, which admits nothing yet and holds no data set.
    ///
    /// # Errors
    ///
    /// Those of [`persistence::open`].
    pub fn recover(&self, node: &Node) -> Result<(), StorageError> {
        let (began, engine) = (Instant::now(), node.engine());
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mark = self.acknowledges_at();
        self.announce_reading();
        let recovery = persistence::open(&self.directory.files, engine, mark, began, threads)?;
        self.report(engine, &recovery, began);
        *self.recovered.lock() = Some(recovery);
        node.restored();
        Ok(())
    }

    /// Logs how much there is to read, where that takes some time.
    fn announce_reading(&self) {
        let files = &self.directory.files;
        // An error is one of the recovery too.
        let names = files_to_read(&files.list().unwrap_or_default());
        let len =
            |name: &String| fs::metadata(files.path().join(name)).map_or(0, |file| file.len());
        let bytes: u64 = names.iter().map(len).sum();
        if bytes >= self.snapshot_log_bytes.saturating_mul(ANNOUNCED_PARTS) {
            info!(
                "reading {} MB from {}",
                bytes / 1_000_000,
                files.path().display()
            );
        }
    }

    fn report(&self, engine: &Engine, recovery: &Recovery, began: Instant) {
        let cut = recovery.log.as_ref().and_then(|log| log.cut.as_ref());
        self.status.recovered(RecoveryFigures {
            took: began.elapsed(),
            records: recovery.records,
            cut_bytes: cut.map_or(0, |cut| cut.bytes),
        });
        if let Some(log) = &recovery.log {
            self.status.log_takes(log.bytes());
            self.status.synced(Instant::now());
        }
        if let Some(ReadSnapshot { id, bytes, .. }) = &recovery.snapshot {
            self.status.has_snapshot(SnapshotFigures {
                index: id.begin,
                bytes: *bytes,
                written_at: self.written_at(&id.name()),
            });
        }
        if let Some(cut) = cut {
            warn!(
                "{}: the last write was torn at offset {}: {} bytes at least are cut off; nothing that was synced is \
                 lost",
                self.directory_path().join(&cut.name).display(),
                cut.offset,
                cut.bytes
            );
        }
        if recovery.log.is_some() || recovery.snapshot.is_some() {
            info!(
                "recovered {} keys, with {} records of the log, in {} ms, up to index {}",
                engine.len(),
                recovery.records,
                began.elapsed().as_millis(),
                engine.head().index
            );
        }
    }

    /// When a file was written, by its time.
    fn written_at(&self, name: &str) -> Option<Instant> {
        let file = fs::metadata(self.directory.files.path().join(name)).ok()?;
        let age = file.modified().ok()?.elapsed().ok()?;
        Instant::now().checked_sub(age)
    }

    fn directory_path(&self) -> PathBuf {
        self.directory.files.path().to_owned()
    }

    /// Notes that no thread writes snapshots, since it could not be started. The node ends without a last one.
    pub(super) fn expect_no_snapshot(&self) {
        self.shared.lock().expects_no_snapshot = true;
        self.changed.notify_all();
    }

    /// Makes the syncs that do not have to be made before more is written, until the log is. The sync thread runs this.
    pub(super) fn sync(&self, log: &Log) {
        let mut shared = self.shared.lock();
        while !shared.is_over {
            let Some(sync) = shared.sync.take() else {
                self.changed.wait(&mut shared);
                continue;
            };
            drop(shared);
            let synced = sync.run();
            shared = self.shared.lock();
            shared.synced = Some(synced);
            self.changed.notify_all();
            log.wake_writer();
        }
    }

    /// Writes snapshots as they are wanted, until the log and the last of them have ended. The snapshot thread runs
    /// this. One that fails is an error in the log of the node: the log on the disk is whole without it.
    pub(super) fn write_snapshots(&self, engine: &Engine, log: &Log) {
        let (first_pause, longest_pause) = RETRY_PAUSES;
        let mut pause = first_pause;
        while let Some(chain) = self.next_snapshot() {
            let was_full = log.space().0 != Space::Enough;
            let done = self.write_snapshot((engine, log), chain);
            let mut shared = self.shared.lock();
            // Orders until now were for this one.
            shared.is_retry_ordered = false;
            match done {
                Ok(done) => {
                    // Under the same lock: an order after it is one for another snapshot.
                    self.end_snapshot(&mut shared, done);
                    pause = first_pause;
                }
                Err(error) if shared.ended_at.is_some() => give_up_last(&mut shared, &error),
                Err(error) => {
                    self.status.wrote_no_snapshot(error.to_string());
                    let level = if pause == first_pause {
                        Level::Error
                    } else {
                        Level::Debug
                    };
                    log!(
                        level,
                        "{error}; there is no new snapshot, the log goes on, and it is tried again"
                    );
                    shared.exchange.want_snapshot();
                    drop(shared);
                    log.wake_writer();
                    shared = self.shared.lock();
                    let is_early = self.wait_to_retry(&mut shared, log, pause, was_full);
                    pause = if is_early {
                        first_pause
                    } else {
                        (pause * 2).min(longest_pause)
                    };
                }
            }
            drop(shared);
            // The log-writer thread looks at it.
            self.changed.notify_all();
            log.wake_writer();
        }
    }

    /// Waits until a snapshot is wanted. Returns its chain, and a reader of that; `None` where there is no other one.
    fn next_snapshot(&self) -> Option<(u32, Cursor)> {
        let mut shared = self.shared.lock();
        while !shared.is_over {
            match shared.exchange.begin_snapshot() {
                Some(chain) => return Some(chain),
                None => self.changed.wait(&mut shared),
            }
        }
        None
    }

    /// Ends a snapshot. `done` has its name and bytes; `None` where it was discarded.
    fn end_snapshot(&self, shared: &mut Shared, done: Option<(SnapshotId, u64)>) {
        if let Some((id, bytes)) = done {
            self.status.wrote_snapshot(SnapshotFigures {
                index: id.begin,
                bytes,
                written_at: Some(Instant::now()),
            });
        } else if shared.ended_at.is_some() && !shared.is_over {
            warn!(
                "the data has changed behind the end of the log; there is no new snapshot, and the next start reads \
                 the log"
            );
        }
        shared.exchange.end_snapshot(done);
    }

    /// Waits before another snapshot, because one has failed. Returns true where that is worth a try before the end of
    /// the pause: one is ordered, or the disk was full without a snapshot too, and has space again. `was_full` says
    /// that it was before the snapshot.
    fn wait_to_retry(
        &self,
        shared: &mut MutexGuard<'_, Shared>,
        log: &Log,
        pause: Duration,
        mut was_full: bool,
    ) -> bool {
        let began = Instant::now();
        while !shared.is_closed() {
            if shared.is_retry_ordered {
                return true;
            }
            let (is_full, took) = (log.space().0 != Space::Enough, began.elapsed());
            if was_full && !is_full {
                return true;
            }
            // Before, the disk may be full of what the snapshot took.
            was_full |= is_full && took >= RETRY_PAUSES.0;
            if took >= pause {
                return false;
            }
            let until = if took < RETRY_PAUSES.0 {
                RETRY_PAUSES.0
            } else {
                pause
            };
            self.changed.wait_until(shared, began + until);
        }
        false
    }

    /// Writes a snapshot. Returns which one it is, and its bytes; `None` where the disk fails meanwhile, or another
    /// data set replaces this one.
    fn write_snapshot(
        &self,
        data: (&Engine, &Log),
        chain: (u32, Cursor),
    ) -> Result<Option<(SnapshotId, u64)>, StorageError> {
        let (began, (engine, log)) = (Instant::now(), data);
        let mut copying = Copying::begin(&self.directory.files, data, chain, salt())?;
        match self.copy(&mut copying, chain.0, log) {
            Ok(true) => {}
            failed => {
                copying.discard();
                return failed.map(|_| None);
            }
        }
        let bytes = copying.len();
        let id = copying.finish()?;
        info!(
            "wrote a snapshot of {} keys, {bytes} bytes, in {} ms: the log before index {} is not needed any more",
            engine.len(),
            began.elapsed().as_millis(),
            id.begin
        );
        Ok(Some((id, bytes)))
    }

    /// Copies the data set, and waits until the log of it is durable. Returns false where the disk has failed, or where
    /// another data set has replaced this one.
    fn copy(&self, copying: &mut Copying<'_>, chain: u32, log: &Log) -> Result<bool, StorageError> {
        let end = loop {
            match copying.step()? {
                Progress::More if self.is_cut_short()? => return Ok(false),
                Progress::More => thread::yield_now(),
                Progress::Copied(end) => break end,
                Progress::Replaced => return Ok(false),
            }
        };
        let until = Instant::now() + FULL_WAIT;
        let mut shared = self.shared.lock();
        while !shared.is_over {
            if let Some(may_finish) = shared.exchange.may_finish(end, chain, copying) {
                return Ok(may_finish);
            }
            if let (Space::UsedUp, why) = log.space()
                && Instant::now() >= until
            {
                // The log may need the space that this takes.
                return Err(self.failed("write the log to", io::Error::other(&*why)));
            }
            self.changed.wait_for(&mut shared, REPLACED_POLL);
        }
        Ok(false)
    }

    /// Whether the disk has failed, so that a copy is of no use. It is an error where it takes too long at the end.
    fn is_cut_short(&self) -> Result<bool, StorageError> {
        let shared = self.shared.lock();
        let time = shared.ended_at.map(|at| at.elapsed());
        if time.is_some_and(|time| time > LAST_SNAPSHOT_MAX) {
            let seconds = LAST_SNAPSHOT_MAX.as_secs();
            let why =
                format!("it takes more than the {seconds} s that a node that stops has for it");
            return Err(self.failed("write a snapshot to", io::Error::other(why)));
        }
        Ok(shared.is_over)
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> StorageError {
        StorageError {
            path: self.directory_path(),
            offset: None,
            problem: Problem::System(operation, error),
        }
    }
}

/// Gives up the last snapshot of a node that stops.
fn give_up_last(shared: &mut Shared, error: &StorageError) {
    if shared.exchange.is_based() {
        error!("{error}; there is no new snapshot, and the next start reads the log");
    } else {
        error!(
            "{error}; there is no new snapshot, and the next start has the data from before the copy"
        );
    }
    shared.exchange.give_up_snapshot();
}

impl DataDirectory for Disk {
    fn restore(&self, engine: &Engine) -> bool {
        let Some(log) = engine.log() else {
            return false;
        };
        let mut shared = self.shared.lock();
        shared.restore = Restore::Ordered;
        drop(shared);
        log.wake_writer();
        let mut shared = self.shared.lock();
        while shared.restore == Restore::Ordered && !shared.is_closed() {
            self.changed.wait(&mut shared);
        }
        std::mem::take(&mut shared.restore) == Restore::Done
    }

    fn begin_snapshot(&self, log: &Log) -> bool {
        let mut shared = self.shared.lock();
        if shared.is_closed() {
            return false;
        }
        shared.exchange.order_snapshot();
        shared.is_retry_ordered = true;
        drop(shared);
        self.changed.notify_all();
        log.wake_writer();
        true
    }

    fn status(&self) -> &StorageStatus {
        &self.status
    }
}

/// Draws a salt.
fn salt() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Bytes of log after which there is another snapshot. Tests have them sooner.
fn snapshot_log_bytes() -> u64 {
    let variable = std::env::var("GOPHERSTORE_SNAPSHOT_LOG_BYTES");
    let bytes = variable.ok().and_then(|text| text.parse().ok());
    bytes.unwrap_or(SNAPSHOT_LOG_BYTES_MIN)
}
