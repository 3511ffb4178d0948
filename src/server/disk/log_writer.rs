//! Writes the log of a node to its data directory: the log-writer thread, and a client's own thread in its place.
//!
//! Both take *turns*, one at a time: steps of [`Writing`]. A client that sends one request at a time, while no other
//! connection is active, would wait for two switches of threads beside its sync: to the log-writer thread and back. So
//! its own thread takes the turns that write its records, where they do nothing but write and sync. All else is left to
//! the log-writer thread: space for the log, full disks, the requests of the sync thread and the snapshot thread, the
//! end.
//!
//! # Invariants
//!
//! * A turn that has failed, in whatever thread, is the last one. The log-writer thread ends with its error.
//! * The log-writer thread sleeps until something is due at the latest. A turn in its place wakes it where something is
//!   due before then.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use log::{error, info};
use parking_lot::Mutex;

use super::{Disk, Restore, SEGMENT_BYTES, Snapshots, salt};
use crate::engine::Engine;
use crate::log::{Log, Space};
use crate::persistence::{Next, Settings, Sync, Writing};
use crate::storage::error::StorageError;

/// The writing of a node's log to its data directory.
#[derive(Debug)]
pub(in crate::server) struct LogWriting<'a> {
    disk: &'a Disk,
    engine: &'a Engine,
    log: &'a Log,
    /// Set once the log-writer thread has begun.
    state: OnceLock<Mutex<State<'a>>>,
}

/// The state of the writing. The thread whose turn it is has it locked.
#[derive(Debug)]
struct State<'a> {
    writing: Writing<'a>,
    /// When the log-writer thread takes a turn without being woken, if it sleeps.
    due_at: Instant,
    /// Why a turn in the place of the log-writer thread has failed.
    failed: Option<StorageError>,
    /// A turn has failed.
    is_over: bool,
}

impl<'a> LogWriting<'a> {
    /// The writing of a log, which begins with [`run`](Self::run).
    pub(in crate::server) const fn new(
        disk: &'a Disk,
        engine: &'a Engine,
        log: &'a Log,
    ) -> LogWriting<'a> {
        LogWriting {
            disk,
            engine,
            log,
            state: OnceLock::new(),
        }
    }

    /// Writes the log to the directory until it ends, and waits for the last snapshot. The log-writer thread runs this.
    ///
    /// # Errors
    ///
    /// Those of the system. It is then unknown what the disk has, so no further answer may be sent.
    pub(in crate::server) fn run(&self) -> Result<(), StorageError> {
        let result = self.run_until_end();
        self.disk.shared.lock().is_over = true;
        self.disk.changed.notify_all();
        result
    }

    fn run_until_end(&self) -> Result<(), StorageError> {
        let (disk, log) = (self.disk, self.log);
        let settings = Settings {
            config: disk.config.clone(),
            segment_bytes: SEGMENT_BYTES.min(disk.snapshot_log_bytes),
            snapshot_log_bytes: disk.snapshot_log_bytes,
            salts: Arc::new(salt),
        };
        let recovery = disk.recovered.lock().take().unwrap_or_default();
        let (files, now) = (&disk.directory.files, Instant::now());
        let writing = Writing::new(files, (self.engine, log), settings, recovery, now)?;
        let state = self.state.get_or_init(|| {
            Mutex::new(State {
                writing,
                due_at: now,
                failed: None,
                is_over: false,
            })
        });
        let mut space = Space::Enough;
        loop {
            let mut turn = state.lock();
            if let Some(error) = turn.failed.take() {
                return Err(error);
            }
            let durable = turn.writing.durable_to();
            let next = self.take_turn(&mut turn)?;
            let is_group = turn.writing.durable_to() > durable + 1;
            let cursor = (!turn.writing.is_stalled()).then(|| turn.writing.cursor());
            if let Next::Wait(until) = next {
                turn.due_at = until;
            }
            drop(turn);
            if is_group {
                // The threads that wait for these records run first, so that the next requests of their clients are in
                // the next group. Without it that group is smaller, and there are more syncs.
                thread::yield_now();
            }
            if report_space(log, &mut space) {
                // A snapshot that has failed may be written now.
                drop(disk.shared.lock());
                disk.changed.notify_all();
            }
            match next {
                Next::Again => {}
                Next::Sync(sync) => disk.begin_sync(sync),
                Next::Wait(until) => {
                    log.wait_to_write(cursor.as_ref(), until, || disk.has_requests(log));
                }
                Next::Ended => break,
            }
        }
        if let Err(error) = disk.wait_for_last_snapshot(&mut state.lock().writing) {
            error!(
                "{error}; all of the data is on the disk, and the next start removes what is not needed"
            );
        }
        Ok(())
    }

    /// Takes a turn of the log-writer thread.
    fn take_turn(&self, turn: &mut State<'a>) -> Result<Next, StorageError> {
        let next = self.exchange_and_step(&mut turn.writing);
        turn.is_over = next.is_err();
        next
    }

    fn exchange_and_step(&self, writing: &mut Writing<'a>) -> Result<Next, StorageError> {
        self.disk.exchange(writing)?;
        let next = self.step(writing)?;
        if let Next::Wait(_) = next {
            self.disk.exchange(writing)?;
        }
        Ok(next)
    }

    /// Drains the append queue, and takes a step of the writing.
    fn step(&self, writing: &mut Writing<'a>) -> Result<Next, StorageError> {
        let now = Instant::now();
        self.log.drain(now);
        writing.step(now)
    }

    /// Writes the records that are appended, and makes durable what has to be, in the place of the log-writer thread.
    /// Wakes that thread where it has to go on.
    pub(in crate::server) fn write_in_place(&self) {
        if !self.try_write() {
            self.log.wake_writer();
        }
    }

    /// Writes in the place of the log-writer thread. Returns false where that has to go on: it is taking a turn, or the
    /// next one may do more than to write and sync.
    fn try_write(&self) -> bool {
        let turn = self.state.get().and_then(Mutex::try_lock);
        turn.is_some_and(|mut turn| self.write_by_turns(&mut turn))
    }

    /// Takes turns until all is written. Returns false where the log-writer thread has to go on.
    fn write_by_turns(&self, turn: &mut State<'a>) -> bool {
        while !turn.is_over && turn.writing.is_ready() && !self.disk.has_requests(self.log) {
            let next = self.step(&mut turn.writing);
            self.disk.publish(&mut turn.writing);
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Sync(sync)) => self.disk.begin_sync(sync),
                Ok(Next::Wait(until)) => return until >= turn.due_at,
                Ok(Next::Ended) => return false,
                Err(error) => {
                    turn.is_over = true;
                    turn.failed = Some(error);
                }
            }
        }
        false
    }
}

impl Disk {
    /// Waits for the snapshot that is wanted or under way, once the log has ended and all of it is durable.
    fn wait_for_last_snapshot(&self, writing: &mut Writing<'_>) -> Result<(), StorageError> {
        self.shared.lock().ended_at = Some(Instant::now());
        let mut is_said = false;
        loop {
            self.exchange(writing)?;
            self.changed.notify_all();
            let mut shared = self.shared.lock();
            if shared.exchange.is_over() || shared.expects_no_snapshot {
                return Ok(());
            }
            if !std::mem::replace(&mut is_said, true) {
                info!(
                    "all of the log is on the disk; the node ends once a snapshot is written, and {}",
                    if shared.exchange.is_based() {
                        "may be killed"
                    } else {
                        "has the data from before its copy if it is killed"
                    }
                );
            }
            while shared.exchange.is_busy() && !shared.expects_no_snapshot {
                self.changed.wait(&mut shared);
            }
        }
    }

    /// Whether another thread has a request to the log-writer thread.
    fn has_requests(&self, log: &Log) -> bool {
        let shared = self.shared.lock();
        shared.may_restore() || shared.synced.is_some() || shared.exchange.has_news(log)
    }

    /// Carries out the requests of other threads to the log-writer thread, and publishes its state.
    fn exchange(&self, writing: &mut Writing<'_>) -> Result<(), StorageError> {
        let mut shared = self.shared.lock();
        if shared.may_restore() {
            drop(shared);
            writing.restore(Instant::now())?;
            shared = self.shared.lock();
            shared.restore = Restore::Done;
            self.changed.notify_all();
        }
        if let Some(done) = shared.synced.take() {
            writing.synced(done?);
        }
        let done = shared.exchange.take_done();
        drop(shared);
        if let Some((id, bytes)) = done {
            writing.snapshot_done(id, bytes)?;
        }
        self.publish(writing);
        Ok(())
    }

    /// Publishes the state of the writing.
    fn publish(&self, writing: &mut Writing<'_>) {
        let mut shared = self.shared.lock();
        let noted = shared.exchange.note(writing);
        self.status.log_takes(writing.bytes());
        // A snapshot that is written waits until the log is durable. Nothing else waits for that here.
        let is_awaited = shared.exchange.snapshot() == Snapshots::Running;
        if noted.wants_snapshot || (noted.has_moved && is_awaited) {
            self.changed.notify_all();
        }
        if noted.has_moved && writing.chain().is_some() {
            self.status.synced(Instant::now());
        }
    }

    /// Has the sync thread make a sync.
    fn begin_sync(&self, sync: Sync) {
        self.shared.lock().sync = Some(sync);
        self.changed.notify_all();
    }
}

/// Logs that the disk is full, or has space again. Returns whether it has space again.
fn report_space(log: &Log, reported: &mut Space) -> bool {
    let (space, why) = log.space();
    match (std::mem::replace(reported, space), space) {
        (Space::Enough, Space::Reserve | Space::UsedUp) => error!(
            "{why}; a leader answers FULL to writes that store something, and executes DEL while its reserve lasts; \
             the node looks for space each second"
        ),
        (Space::Reserve | Space::UsedUp, Space::Enough) => {
            error!("the disk has space again: writes go on");
            return true;
        }
        (Space::Enough, Space::Enough)
        | (Space::Reserve | Space::UsedUp, Space::Reserve | Space::UsedUp) => {}
    }
    false
}

#[cfg(test)]
mod tests;
