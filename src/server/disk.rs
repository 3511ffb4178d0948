//! The node's data directory: opening and recovering it at the start, and the thread that writes the log to it.
//!
//! The log-writer thread reads the log as a sender to a follower does, writes what it finds as one group, and moves the
//! watermarks that answers wait for. What is appended while it waits for the disk is its next group, so one sync serves
//! all writes that have gathered.

use std::fs::{self, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::Group;
use crate::engine::digest::Digest;
use crate::history::History;
use crate::log::{Cursor, Found, Log, Mark};
use crate::node::Node;
use crate::storage::error::{Problem, StorageError};
use crate::storage::files::{Directory, Files};
use crate::storage::recovery::{LogEnd, Recovered, read_log};
use crate::storage::writer::{LogWriter, NewGroup, SEGMENT_BYTES, Salts};
use crate::storage::{identity, identity::Identity};
use crate::wire::replication::Frames;

/// Most bytes of records in a group, but for a single longer one.
const GROUP_BYTES: usize = 1 << 20;

/// Idle time after which the last group is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(100);

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
        })
    }

    /// Reads the log back into a node, which admits nothing yet and holds no data set.
    ///
    /// # Errors
    ///
    /// Where the log is damaged, or does not lead to the data set that it says.
    pub fn recover(&mut self, node: &Node) -> Result<(), StorageError> {
        let begin = Instant::now();
        let engine = node.engine();
        let files = &self.directory;
        let mut records = 0_u64;
        let recovered = read_log(files, &mut |read| {
            if read.head.count == 0 {
                engine.clock().pull(read.head.time_ms);
                return Ok(());
            }
            let (first, count) = (read.head.first_index, read.head.count);
            let damaged = |why: String| StorageError {
                path: self.directory_path(),
                offset: None,
                problem: Problem::Damaged(format!(
                    "records {first} to {}: {why}",
                    read.head.last_index()
                )),
            };
            let frames = Frames::of_log(count, read.records);
            let group = Group {
                first_index: first,
                records: frames.map_err(|error| damaged(error.to_string()))?,
                committed: read.head.last_index(),
                digest: read.head.digest,
            };
            let received = engine.receive(&group, Instant::now());
            received.map_err(|error| damaged(error.to_string()))?;
            engine.clock().pull(read.head.time_ms);
            records += u64::from(count);
            Ok(())
        })?;
        if let Some(log) = &recovered {
            if let Some(cut) = &log.cut {
                warn!(
                    "{}: the last write was torn at offset {}: {} bytes at least are cut off; nothing that was synced \
                     is lost",
                    self.directory_path().join(&cut.name).display(),
                    cut.offset,
                    cut.bytes
                );
            }
            info!(
                "recovered {} keys from {records} records of the log in {} ms, up to index {}",
                engine.len(),
                begin.elapsed().as_millis(),
                log.end.last_index()
            );
        }
        if let Some(log) = engine.log() {
            log.begin_writing(log.last_index());
        }
        self.recovered = recovered;
        Ok(())
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
        };
        let durable = writing.writer.durable_to();
        log.watermarks().advance(Mark::Written, durable);
        log.watermarks().advance(Mark::Durable, durable);
        // Everything that was recovered is in the log, and nothing has been evicted behind it yet.
        let cursor = log.cursor_after(durable);
        writing.run(cursor.unwrap_or_else(|| unreachable!("the log begins there")))
    }

    fn writer(&self, log: &Log) -> Result<LogWriter<'_>, StorageError> {
        let salts: Salts = Box::new(|| RandomState::new().build_hasher().finish());
        let history = log.history();
        match &self.recovered {
            Some(recovered) => {
                let end = recovered.end.next_index;
                let before = history_before(&history, end);
                LogWriter::recovered(&self.directory, recovered, &before, salts, SEGMENT_BYTES)
            }
            None => {
                let start = LogEnd {
                    next_index: 1,
                    ..LogEnd::default()
                };
                let none = History::default();
                LogWriter::begin(&self.directory, 1, start, &none, salts, SEGMENT_BYTES)
            }
        }
    }
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
}

impl Writing<'_> {
    fn run(&mut self, mut cursor: Cursor) -> Result<(), StorageError> {
        let mut buffer = Vec::new();
        loop {
            let until = self.wakes_at();
            self.log.wait(&cursor, until, || false);
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
