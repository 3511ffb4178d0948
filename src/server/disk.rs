//! The node's data directory: opening and recovering it at the start, and the thread that writes the log to it.
//!
//! The log-writer thread reads the log as a sender to a follower does, writes what it finds as one group, and moves the
//! watermarks that answers wait for. What is appended while it waits for the disk is its next group, so one sync serves
//! all writes that have gathered.
//!
//! The snapshot thread copies the data set to a file once the log has grown by as much as the last snapshot has, and by
//! 64 MiB at least. Then the log-writer thread removes the segments before it.

use std::fs::{self, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use parking_lot::{Condvar, Mutex};

use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::digest::Digest;
use crate::engine::{Engine, Group, PartitionCopy};
use crate::history::History;
use crate::log::{Cursor, Found, Head, Log, Mark};
use crate::node::Node;
use crate::storage::error::{Problem, StorageError};
use crate::storage::files::{Directory, Files};
use crate::storage::recovery::{LogEnd, Recovered, read_log};
use crate::storage::snapshot::{ReadSnapshot, SnapshotWriter, read_snapshot};
use crate::storage::writer::{LogWriter, NewGroup, SEGMENT_BYTES, Salts};
use crate::storage::{identity, identity::Identity};
use crate::wire::replication::Frames;
use crate::wire::request::frames;

/// Most bytes of records in a group, but for a single longer one.
const GROUP_BYTES: usize = 1 << 20;

/// Idle time after which the last group is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(100);

/// Bytes of log after which there is another snapshot, where the last one is not longer.
const SNAPSHOT_LOG_BYTES_MIN: u64 = 64 << 20;

/// Bytes of entries in a chunk of a snapshot, about.
const CHUNK_BYTES: usize = 1 << 20;

/// Interval at which the snapshot thread looks whether the log is durable.
const DURABLE_POLL: Duration = Duration::from_millis(10);

/// The file whose lock says that a process uses the directory.
const LOCK: &str = "lock";

/// A data directory that this process uses.
#[derive(Debug)]
pub struct Disk {
    directory: Directory,
    /// Locked as long as it is open.
    _lock: fs::File,
    config: StorageConfig,
    recovered: Option<Recovered>,
    /// The data set's position after the recovery.
    head: Head,
    /// The index at which the snapshot begins that was recovered, and its bytes.
    snapshot: Option<(u64, u64)>,
    /// Bytes of log after which there is another snapshot.
    snapshot_log_bytes: u64,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What the log-writer and the snapshot thread tell each other.
#[derive(Debug, Default)]
struct Shared {
    /// A snapshot is to be written.
    is_wanted: bool,
    /// One is being written.
    is_running: bool,
    /// A snapshot that begins at this index, and has so many bytes, has its name.
    done: Option<(u64, u64)>,
    /// Index up to which the log is to be durable soon, whatever the policy is.
    sync_to: u64,
    /// Index up to which it is.
    durable_to: u64,
    /// The log has ended, or the disk has failed.
    is_over: bool,
}

impl Disk {
    /// Opens the directory of a node, and locks it. Creates it where there is none.
    ///
    /// # Errors
    ///
    /// Where another process uses it, where it is another node's, or where the system refuses it.
    pub fn open(path: &Path, own: &Identity, config: StorageConfig) -> Result<Disk, StorageError> {
        let failed = |operation| {
            move |error| StorageError {
                path: path.to_owned(),
                offset: None,
                problem: Problem::System(operation, error),
            }
        };
        let directory = Directory::open(path).map_err(failed("open the data directory"))?;
        let lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK));
        let lock = lock.map_err(failed("create the lock file in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError {
                    path: path.to_owned(),
                    offset: None,
                    problem: Problem::InUse,
                });
            }
            Err(TryLockError::Error(error)) => {
                return Err(failed("lock the data directory")(error));
            }
        }
        identity::check(&directory, own)?;
        Ok(Disk {
            directory,
            _lock: lock,
            config,
            recovered: None,
            head: Head::default(),
            snapshot: None,
            snapshot_log_bytes: snapshot_log_bytes(),
            shared: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Reads the newest snapshot and the log behind it into a node, which admits nothing yet and holds no data set.
    ///
    /// # Errors
    ///
    /// Those of [`recover`].
    pub fn recover(&mut self, node: &Node) -> Result<(), StorageError> {
        let (began, engine) = (Instant::now(), node.engine());
        let Recovery {
            snapshot,
            log: recovered,
            records,
        } = recover(&self.directory, engine)?;
        self.report(node, recovered.as_ref(), records, began);
        if let Some(log) = engine.log() {
            log.begin_writing(log.last_index());
        }
        self.head = engine.head();
        self.snapshot = snapshot.map(|snapshot| (snapshot.begin, snapshot.bytes));
        self.recovered = recovered;
        Ok(())
    }

    fn report(&self, node: &Node, log: Option<&Recovered>, records: u64, began: Instant) {
        let Some(log) = log else { return };
        if let Some(cut) = &log.cut {
            warn!(
                "{}: the last write was torn at offset {}: {} bytes at least are cut off; nothing that was synced is \
                 lost",
                self.directory_path().join(&cut.name).display(),
                cut.offset,
                cut.bytes
            );
        }
        info!(
            "recovered {} keys, with {records} records of the log, in {} ms, up to index {}",
            node.engine().len(),
            began.elapsed().as_millis(),
            log.end.last_index()
        );
    }

    fn directory_path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Writes the log to the directory until it ends. The log-writer thread runs this.
    ///
    /// # Errors
    ///
    /// Those of the system. It is then unknown what the disk has, so no further answer may be sent.
    pub(super) fn write(&self, node: &Node, log: &Log) -> Result<(), StorageError> {
        let mut writing = Writing {
            writer: self.writer(log)?,
            node,
            log,
            config: &self.config,
            synced_at: Instant::now(),
            is_unsynced: false,
            log_bytes: self.log_bytes_recovered(),
            snapshot_bytes: self.snapshot.map_or(0, |(_, bytes)| bytes),
            disk: self,
        };
        let durable = writing.writer.durable_to();
        log.watermarks().advance(Mark::Written, durable);
        log.watermarks().advance(Mark::Durable, durable);
        // Everything that was recovered is in the log, and nothing has been evicted behind it yet.
        let cursor = log.cursor_after(durable);
        let result = writing.run(cursor.unwrap_or_else(|| unreachable!("the log begins there")));
        self.shared.lock().is_over = true;
        self.changed.notify_all();
        result
    }

    /// Writes snapshots as they are wanted, until the log ends. The snapshot thread runs this. One that fails is
    /// an error in the log of the node: the log on the disk is whole without it.
    pub(super) fn write_snapshots(&self, node: &Node, log: &Log) {
        loop {
            {
                let mut shared = self.shared.lock();
                while !shared.is_wanted && !shared.is_over {
                    self.changed.wait(&mut shared);
                }
                if shared.is_over {
                    return;
                }
                (shared.is_wanted, shared.is_running) = (false, true);
            }
            let done = self.write_snapshot(node, log);
            let mut shared = self.shared.lock();
            shared.is_running = false;
            match done {
                Ok(done) => shared.done = done,
                Err(error) => error!("{error}; there is no new snapshot, and the log goes on"),
            }
            drop(shared);
            // The log-writer thread looks at it.
            log.wake_readers();
        }
    }

    /// Writes a snapshot. Returns the index at which it begins, and its bytes; `None` where the log ends meanwhile.
    fn write_snapshot(&self, node: &Node, log: &Log) -> Result<Option<(u64, u64)>, StorageError> {
        let (began, engine) = (Instant::now(), node.engine());
        let begin = engine.head().index;
        let history = history_before(&log.history(), begin + 1);
        let salt = RandomState::new().build_hasher().finish();
        let mut writer = SnapshotWriter::begin(&self.directory, begin, &history, salt)?;
        let (mut copy, mut chunk, mut count) = (PartitionCopy::default(), Vec::new(), 0);
        for partition in 0..engine.partitions() {
            engine.copy_partition(partition, &mut copy);
            let short = copy.len() - copy.long().len();
            chunk.extend_from_slice(copy.short());
            count += u64::try_from(short).unwrap_or(u64::MAX);
            if chunk.len() >= CHUNK_BYTES {
                writer.add(&chunk, count)?;
                chunk.clear();
                count = 0;
            }
            for entry in copy.long() {
                writer.add(entry.frame(), 1)?;
            }
            if self.shared.lock().is_over {
                return Ok(None);
            }
            thread::yield_now();
        }
        if count > 0 {
            writer.add(&chunk, count)?;
        }
        let end = engine.head().index;
        writer.end(end)?;
        if !self.wait_durable(end, log) {
            return Ok(None);
        }
        let bytes = writer.len();
        writer.finish()?;
        info!(
            "wrote a snapshot of {} keys, {bytes} bytes, in {} ms: the log before index {begin} is not needed any more",
            engine.len(),
            began.elapsed().as_millis()
        );
        Ok(Some((begin, bytes)))
    }

    /// Waits until the log is durable up to `index`. Returns false where it has ended before.
    fn wait_durable(&self, index: u64, log: &Log) -> bool {
        let mut shared = self.shared.lock();
        shared.sync_to = shared.sync_to.max(index);
        drop(shared);
        log.wake_readers();
        let mut shared = self.shared.lock();
        while shared.durable_to < index && !shared.is_over {
            self.changed.wait_for(&mut shared, DURABLE_POLL);
        }
        shared.durable_to >= index
    }

    /// Bytes of the log behind the snapshot that was recovered.
    fn log_bytes_recovered(&self) -> u64 {
        let segments = self.recovered.iter().flat_map(|log| &log.segments);
        let begin = self.snapshot.map_or(0, |(begin, _)| begin);
        let behind = segments.filter(|segment| segment.last_index > begin);
        behind.map(|segment| segment.bytes).sum()
    }

    fn writer(&self, log: &Log) -> Result<LogWriter<'_>, StorageError> {
        let salts: Salts = Box::new(|| RandomState::new().build_hasher().finish());
        let history = log.history();
        let segment_bytes = SEGMENT_BYTES.min(self.snapshot_log_bytes);
        match &self.recovered {
            Some(recovered) => {
                let end = recovered.end.next_index;
                let before = history_before(&history, end);
                LogWriter::recovered(&self.directory, recovered, &before, salts, segment_bytes)
            }
            None => {
                let Head { index, digest } = self.head;
                let start = LogEnd {
                    next_index: index + 1,
                    digest,
                    previous: 0,
                };
                let before = history_before(&history, index + 1);
                LogWriter::begin(&self.directory, 1, start, &before, salts, segment_bytes)
            }
        }
    }
}

/// The contents of a data directory.
#[derive(Debug)]
pub struct Recovery {
    /// The newest snapshot, if there is one.
    pub snapshot: Option<ReadSnapshot>,
    /// The log, if there is one.
    pub log: Option<Recovered>,
    /// Records of the log that were applied.
    pub records: u64,
}

/// Reads the newest snapshot of a directory and the log behind it into an engine, which admits nothing. Changes no
/// file.
///
/// # Errors
///
/// Where one of them is damaged, where they do not lead to the data set that the log says, or where the system refuses
/// a read.
pub fn recover(files: &dyn Files, engine: &Engine) -> Result<Recovery, StorageError> {
    let damaged = |why: String| StorageError {
        path: files.path().to_owned(),
        offset: None,
        problem: Problem::Damaged(why),
    };
    let mut load = engine.load(0);
    let snapshot = read_snapshot(files, &mut |frames, count| {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let frames = Frames::of_snapshot(count, frames);
        let frames = frames.map_err(|error| damaged(format!("the snapshot: {error}")))?;
        load.add(frames.iter());
        Ok(())
    })?;
    let (begin, exact_from) = match &snapshot {
        Some(snapshot) => {
            let (begin, history) = (snapshot.begin, snapshot.history.clone());
            load.finish_inexact(begin, history, Instant::now());
            (begin, snapshot.end)
        }
        None => (0, 0),
    };
    let mut records = 0_u64;
    let log = read_log(files, &mut |read| {
        engine.clock().pull(read.head.time_ms);
        let (first, last) = (read.head.first_index, read.head.last_index());
        if read.head.count == 0 || last <= begin {
            return Ok(());
        }
        let next = engine.head().index + 1;
        if first > next {
            return Err(damaged(format!(
                "the log begins at index {first}, and record {next} is not there"
            )));
        }
        // The snapshot may begin within a group.
        let skipped = (begin + 1).saturating_sub(first);
        let rest = behind(read.records, usize::try_from(skipped).unwrap_or(usize::MAX));
        let count = read.head.count - u32::try_from(skipped).unwrap_or(read.head.count);
        let in_group = |why: String| damaged(format!("records {first} to {last}: {why}"));
        let group = Group {
            first_index: first.max(begin + 1),
            records: Frames::of_log(count, rest).map_err(|error| in_group(error.to_string()))?,
            committed: last,
            digest: read.head.digest,
        };
        let replayed = engine.replay(&group, Instant::now(), last >= exact_from);
        replayed.map_err(|error| in_group(error.to_string()))?;
        records += u64::from(count);
        Ok(())
    })?;
    let last = engine.head().index;
    if last < exact_from {
        return Err(damaged(format!(
            "the snapshot needs the log up to index {exact_from}, which ends at {last}"
        )));
    }
    Ok(Recovery {
        snapshot,
        log,
        records,
    })
}

/// Opens a data directory to be read, which no process uses.
///
/// # Errors
///
/// Where it is none, or where a process uses it.
pub fn open_to_read(path: &Path) -> Result<Directory, StorageError> {
    let failed = |operation| {
        move |error| StorageError {
            path: path.to_owned(),
            offset: None,
            problem: Problem::System(operation, error),
        }
    };
    let directory = Directory::existing(path).map_err(failed("open the data directory"))?;
    // Without it, no node has used the directory.
    let lock = fs::File::open(path.join(LOCK)).map_err(failed("open the lock file of"))?;
    match lock.try_lock_shared() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(StorageError {
            path: path.to_owned(),
            offset: None,
            problem: Problem::InUse,
        }),
        Err(TryLockError::Error(error)) => Err(failed("lock the data directory")(error)),
    }
}

/// Bytes of log after which there is another snapshot. Tests have them sooner.
fn snapshot_log_bytes() -> u64 {
    let variable = std::env::var("GOPHERSTORE_SNAPSHOT_LOG_BYTES");
    let bytes = variable.ok().and_then(|text| text.parse().ok());
    bytes.unwrap_or(SNAPSHOT_LOG_BYTES_MIN)
}

/// The bytes behind the first `count` frames.
fn behind(records: &[u8], count: usize) -> &[u8] {
    let skipped = frames(records).take(count).map(|frame| frame.bytes().len());
    &records[skipped.sum::<usize>().min(records.len())..]
}

/// The epochs of the records before an index.
fn history_before(history: &History, index: u64) -> History {
    let epochs = history.epochs().iter().copied();
    let before = epochs.filter(|start| start.start_index < index).collect();
    History::new(before).unwrap_or_default()
}

/// The log-writer thread at work.
struct Writing<'d> {
    writer: LogWriter<'d>,
    node: &'d Node,
    log: &'d Log,
    config: &'d StorageConfig,
    synced_at: Instant,
    is_unsynced: bool,
    /// Bytes of log since the last snapshot was wanted.
    log_bytes: u64,
    /// Of the last snapshot.
    snapshot_bytes: u64,
    disk: &'d Disk,
}

impl Writing<'_> {
    fn run(&mut self, mut cursor: Cursor) -> Result<(), StorageError> {
        let mut buffer = Vec::new();
        loop {
            let until = self.wakes_at();
            self.log.wait(&cursor, until, || self.has_news());
            self.snapshots()?;
            match self.log.try_read(&mut cursor, GROUP_BYTES, &mut buffer) {
                Found::Small(count, digest) => {
                    let group = self.group(&buffer, count, digest);
                    self.append(&group)?;
                }
                Found::Large(entry, digest) => {
                    let group = self.group(entry.frame(), 1, digest);
                    self.append(&group)?;
                }
                Found::Nothing => self.rest()?,
                Found::Ended => return self.end(),
                Found::Gone => unreachable!("the log keeps what is not written"),
            }
        }
    }

    /// Whether the snapshot thread has something for this one.
    fn has_news(&self) -> bool {
        let shared = self.disk.shared.lock();
        shared.done.is_some() || shared.sync_to > shared.durable_to
    }

    /// Does what the snapshot thread needs, and has it write a snapshot where the log is long.
    fn snapshots(&mut self) -> Result<(), StorageError> {
        let (done, needs_sync) = {
            let mut shared = self.disk.shared.lock();
            let needs_sync = shared.sync_to > shared.durable_to;
            (shared.done.take(), needs_sync)
        };
        if needs_sync {
            self.sync()?;
        }
        if let Some((begin, bytes)) = done {
            self.writer.forget(begin)?;
            self.snapshot_bytes = bytes;
        }
        if self.log_bytes > self.disk.snapshot_log_bytes.max(self.snapshot_bytes) {
            let mut shared = self.disk.shared.lock();
            if !shared.is_running && !shared.is_wanted {
                shared.is_wanted = true;
                self.log_bytes = 0;
                self.disk.changed.notify_all();
            }
        }
        Ok(())
    }

    fn group<'r>(&self, records: &'r [u8], count: u32, digest: Digest) -> NewGroup<'r> {
        NewGroup {
            records,
            count,
            digest,
            epoch: self.epoch(),
            committed: self.log.committed_index(),
            time_ms: self.node.engine().clock().now(),
        }
    }

    fn epoch(&self) -> u64 {
        self.log.last_epoch().map_or(0, |start| start.epoch)
    }

    fn append(&mut self, group: &NewGroup<'_>) -> Result<(), StorageError> {
        let next = self.writer.written_to() + 1;
        let log = self.log;
        self.writer
            .append(group, || history_before(&log.history(), next))?;
        self.is_unsynced = true;
        self.log_bytes += u64::try_from(group.records.len()).unwrap_or(u64::MAX);
        self.log.written(self.writer.written_to());
        match self.config.sync {
            SyncPolicy::Always => self.sync(),
            SyncPolicy::Interval if self.synced_at.elapsed() >= self.config.sync_interval => {
                self.sync()
            }
            SyncPolicy::Interval | SyncPolicy::Never => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.writer.sync()?;
        self.is_unsynced = false;
        self.synced_at = Instant::now();
        let durable = self.writer.durable_to();
        self.log.watermarks().advance(Mark::Durable, durable);
        self.disk.shared.lock().durable_to = durable;
        Ok(())
    }

    /// When the thread has something to do though nothing is appended.
    fn wakes_at(&self) -> Instant {
        let now = Instant::now();
        if self.is_unsynced && self.config.sync == SyncPolicy::Interval {
            self.synced_at + self.config.sync_interval
        } else if self.writer.is_sealed() {
            now + Duration::from_secs(3_600)
        } else {
            now + SEAL_AFTER
        }
    }

    /// Nothing is appended: syncs what waits for that, or seals the last group.
    fn rest(&mut self) -> Result<(), StorageError> {
        match self.config.sync {
            SyncPolicy::Interval if self.is_unsynced => {
                if self.synced_at.elapsed() >= self.config.sync_interval {
                    self.sync()?;
                }
                Ok(())
            }
            SyncPolicy::Always | SyncPolicy::Interval | SyncPolicy::Never => {
                if self.writer.is_sealed() {
                    return Ok(());
                }
                self.seal()
            }
        }
    }

    fn seal(&mut self) -> Result<(), StorageError> {
        let (log, next) = (self.log, self.writer.written_to() + 1);
        let state = (
            self.epoch(),
            self.log.committed_index(),
            self.node.engine().clock().now(),
        );
        self.writer
            .seal(state, || history_before(&log.history(), next))
    }

    /// The log has ended: makes all of it durable.
    fn end(&mut self) -> Result<(), StorageError> {
        self.sync()?;
        self.seal()?;
        self.writer.sync()
    }
}
