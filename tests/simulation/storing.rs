//! The work of a process on its disk: the shipped steps of the log writer and of the snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::events::{MS, Micros};
use super::shared::Shared;
use crate::engine::Engine;
use crate::log::Log;
use crate::node::{DataDirectory, Node, StorageStatus};
use crate::persistence::{
    self, Copying, Exchange, Next, Progress, Recovery, Settings, SyncDone, Writing,
};
use crate::storage::error::StorageError;
use crate::storage::files::Files as _;
use crate::storage::simulated::Disk;

/// Longest time between two steps of a snapshot that waits for the log.
const SNAPSHOT_POLL: Micros = 10 * MS;

/// A node's directory, as the node knows it.
#[derive(Debug)]
pub(super) struct Directory {
    disk: Disk,
    now: Mutex<Instant>,
    /// The result of an order to read it again.
    pub(super) restored: Mutex<Option<Result<Recovery, StorageError>>>,
    status: StorageStatus,
}

impl DataDirectory for Directory {
    fn restore(&self, engine: &Engine) -> bool {
        let restored = persistence::recover(&self.disk, engine, *self.now.lock(), 1);
        let is_done = restored.is_ok();
        *self.restored.lock() = Some(restored);
        is_done
    }

    /// No operator of a run orders one: they are wanted often enough.
    fn begin_snapshot(&self, _: &Log) -> bool {
        false
    }

    fn status(&self) -> &StorageStatus {
        &self.status
    }
}

/// The work of a process on its disk.
pub(super) struct Storing<'a> {
    pub(super) directory: &'a Directory,
    settings: Settings,
    pub(super) turn: Micros,
    /// The recovered data set, until the writing begins.
    pub(super) recovery: Option<Recovery>,
    pub(super) writing: Option<Writing<'a>>,
    pub(super) exchange: Exchange,
    /// A sync that was made, which the writing is not told of yet.
    pub(super) synced: Option<SyncDone>,
    pub(super) copying: Option<Copy<'a>>,
    /// The last snapshot has failed.
    pub(super) has_failed: bool,
    pub(super) is_over: bool,
    /// The process has died of a call that failed; with `true` the power has failed.
    pub(super) died: Option<bool>,
}

/// A snapshot that is being written.
pub(super) struct Copy<'a> {
    copying: Copying<'a>,
    chain: u32,
    /// Where it ends, once everything is copied.
    end: Option<u64>,
}

/// Opens the disk of a host for a node that starts, and recovers the node. Returns the directory, and what was
/// recovered.
pub(super) fn open(
    node: &mut Node,
    host: usize,
    now: Instant,
    shared: &mut Shared,
) -> Option<Arc<Directory>> {
    let machine = shared.disks.of(host)?;
    let mark = persistence::acknowledged_at(machine.plan.config.sync);
    let directory = Arc::new(Directory {
        disk: machine.disk.clone(),
        now: Mutex::new(now),
        restored: Mutex::default(),
        status: StorageStatus::new(machine.plan.config.sync),
    });
    node.acknowledge_at(mark);
    let opened = persistence::open(&directory.disk, node.engine(), mark, now, 1);
    match &opened {
        Ok(_) => node.restored(),
        Err(error) => {
            let names = directory.disk.list().unwrap_or_default();
            shared.fail(host, &format!("cannot recover: {error}; {names:?}"));
        }
    }
    *directory.restored.lock() = Some(opened);
    node.keep_in(Arc::clone(&directory) as Arc<dyn DataDirectory>);
    Some(directory)
}

impl<'a> Storing<'a> {
    /// The work of a process that has opened its directory.
    pub(super) fn new(
        directory: &'a Directory,
        host: usize,
        shared: &mut Shared,
    ) -> Option<Storing<'a>> {
        let salt = AtomicU64::new(shared.disks.random.next());
        let plan = shared.disks.of(host)?.plan.clone();
        Some(Storing {
            directory,
            settings: Settings {
                config: plan.config,
                segment_bytes: plan.segment_bytes,
                snapshot_log_bytes: plan.snapshot_log_bytes,
                salts: Arc::new(move || salt.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed)),
            },
            turn: plan.turn,
            recovery: None,
            writing: None,
            exchange: Exchange::default(),
            synced: None,
            copying: None,
            has_failed: false,
            is_over: false,
            died: None,
        })
    }

    /// Whether nothing is written any more.
    pub(super) const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the process has died of it: with `true` the power has failed.
    pub(super) const fn died(&self) -> Option<bool> {
        self.died
    }

    /// Sets the time for what the node does by itself.
    pub(super) fn set_now(&self, now: Instant) {
        *self.directory.now.lock() = now;
    }

    /// Whether the log has something for it.
    pub(super) fn has_news(&self, engine: &Engine) -> bool {
        let (Some(log), Some(writing)) = (engine.log(), &self.writing) else {
            return false;
        };
        let cursor = writing.cursor();
        if writing.is_stalled() {
            return self.exchange.has_news(log);
        }
        log.kept_head().index >= cursor.next
            || !log.holds(&cursor)
            || log.has_ended()
            || self.exchange.has_news(log)
    }

    /// Whether everything in the backlog is written.
    pub(super) fn has_written_all(&self, engine: &Engine) -> bool {
        let (Some(log), Some(writing)) = (engine.log(), &self.writing) else {
            return false;
        };
        let is_written = !writing.is_stalled() && !self.has_news(engine);
        is_written && log.kept_head().index < writing.cursor().next
    }

    /// A step of the log-writer thread.
    pub(super) fn write(&mut self, engine: &'a Engine, now: Instant) -> Result<Next, StorageError> {
        let log = engine.log().expect("it has peers");
        let directory = self.directory;
        let writing = match &mut self.writing {
            Some(writing) => writing,
            None => {
                log.drain(now);
                let recovery = self.recovery.take().unwrap_or_default();
                let (files, settings) = (&directory.disk, self.settings.clone());
                let writing = Writing::new(files, (engine, log), settings, recovery, now)?;
                self.writing.insert(writing)
            }
        };
        exchange(&mut self.exchange, writing)?;
        // The replication thread runs at the same time: it waits for nothing that this step waits for.
        if writing.chain().is_none() || !log.holds(&writing.cursor()) {
            log.drain(now);
        }
        let next = writing.step(now)?;
        match next {
            Next::Again | Next::Sync(_) => {}
            Next::Wait(_) | Next::Ended => exchange(&mut self.exchange, writing)?,
        }
        Ok(next)
    }

    /// A step of the snapshot thread. Returns how long it waits then; `None` where it waits until a snapshot is wanted.
    pub(super) fn copy(
        &mut self,
        engine: &'a Engine,
        salt: u64,
    ) -> Result<Option<Micros>, StorageError> {
        let log = engine.log().expect("it has peers");
        if std::mem::take(&mut self.has_failed) {
            self.exchange.want_snapshot();
        }
        let Some(copy) = &mut self.copying else {
            let Some(chain) = self.exchange.begin_snapshot() else {
                return Ok(None);
            };
            let files = &self.directory.disk;
            self.copying = Some(Copy {
                copying: Copying::begin(files, (engine, log), chain, salt)?,
                chain: chain.0,
                end: None,
            });
            return Ok(Some(0));
        };
        let may_finish = match copy.end {
            None => match copy.copying.step()? {
                Progress::More => return Ok(Some(0)),
                Progress::Copied(end) => {
                    copy.end = Some(end);
                    None
                }
                Progress::Replaced => Some(false),
            },
            Some(end) => self.exchange.may_finish(end, copy.chain, &copy.copying),
        };
        let Some(may_finish) = may_finish else {
            return Ok(Some(SNAPSHOT_POLL));
        };
        let done = match self.copying.take() {
            Some(copy) if may_finish => {
                let bytes = copy.copying.len();
                Some((copy.copying.finish()?, bytes))
            }
            Some(copy) => {
                copy.copying.discard();
                None
            }
            None => None,
        };
        self.exchange.end_snapshot(done);
        Ok(None)
    }
}

/// The steps of the log-writer thread for the snapshot thread.
fn exchange(exchange: &mut Exchange, writing: &mut Writing<'_>) -> Result<(), StorageError> {
    if let Some((id, bytes)) = exchange.take_done() {
        writing.snapshot_done(id, bytes)?;
    }
    exchange.note(writing);
    Ok(())
}
