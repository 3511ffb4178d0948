//! The stop of a process in good order, as `server::shutdown` does it.

use super::events::{Micros, SECOND};
use super::network::End;
use super::process::{Process, Wake};
use super::shared::Shared;
use super::storing::Storing;
use crate::replication::Ending;
use crate::replication::shutdown_sync::{Next, ShutdownSync};

/// How long clients are waited for, before and after the synchronization.
const STOP_GRACE: Micros = 5 * SECOND;

/// How long clients have, of that, to take answers whose wait for a position has ended.
const LOST_ANSWERS_GRACE: Micros = SECOND;

/// How far a stop has come.
pub(super) enum Stopping<'a> {
    /// Clients finish the requests that have begun, until this time.
    Draining(Micros),
    /// Another node is to hold the data.
    Synchronizing(ShutdownSync<'a>),
    /// Clients and streams take what they are being sent, until this time.
    Closing(Micros, Ending),
    /// The process ends.
    Over(Ending),
}

impl Process<'_> {
    /// A person or the system asks the node to stop.
    pub(super) fn stop(&mut self, shared: &mut Shared) {
        if self.stopping.is_some() {
            return;
        }
        let until = shared.timeline.now() + STOP_GRACE;
        shared.note(self.host, || "begins to stop".to_owned());
        self.stopping = Some(Stopping::Draining(until));
        self.drain_sessions(shared);
        self.settle(shared);
    }

    /// How the process ends, once it does.
    pub(super) fn ending(&self) -> Option<Ending> {
        match self.stopping {
            Some(Stopping::Over(ending)) => Some(ending),
            Some(Stopping::Draining(_) | Stopping::Synchronizing(_) | Stopping::Closing(..))
            | None => None,
        }
    }

    /// Whether connections that come are served.
    pub(super) const fn admits(&self) -> bool {
        matches!(self.stopping, None | Some(Stopping::Synchronizing(_)))
    }

    fn drain_sessions(&mut self, shared: &mut Shared) {
        let ends: Vec<End> = self.connections.keys().copied().collect();
        for end in ends {
            if let Some(connection) = self.connections.get_mut(&end) {
                connection.drain();
                self.serve(end, None, shared);
            }
        }
    }

    /// Goes on with the stop.
    pub(super) fn go_on_stopping(&mut self, shared: &mut Shared) {
        let now = shared.timeline.now();
        match &mut self.stopping {
            Some(Stopping::Draining(until)) => {
                let until = *until;
                self.go_on_draining(until, shared);
            }
            Some(Stopping::Synchronizing(sync)) => match sync.next(shared.timeline.instant()) {
                Next::Wait(until) => {
                    let until = shared.timeline.micros_of(until);
                    self.wake_at(Wake::Stop, until, shared);
                }
                Next::End(ending) => self.begin_to_close(ending, shared),
            },
            Some(Stopping::Closing(until, ending)) => {
                let is_written = self.storing.as_ref().is_none_or(Storing::is_over);
                if is_written && (self.connections.is_empty() || now >= *until) {
                    let ending = *ending;
                    shared.note(self.host, || "ends".to_owned());
                    self.stopping = Some(Stopping::Over(ending));
                    self.close_all(shared);
                    self.end_disk(false, shared);
                }
            }
            Some(Stopping::Over(_)) | None => {}
        }
    }

    /// Waits for the requests that have begun. A little before the end of the time, the wait of answers for positions
    /// that are not reached ends.
    fn go_on_draining(&mut self, until: Micros, shared: &mut Shared) {
        let now = shared.timeline.now();
        if now >= until - LOST_ANSWERS_GRACE {
            self.node().give_up_positions();
        } else {
            self.wake_at(Wake::Stop, until - LOST_ANSWERS_GRACE, shared);
        }
        let sessions = self.connections.values_mut();
        let mut is_over = true;
        for connection in sessions.filter(|found| !found.is_stream()) {
            if now >= until {
                connection.close(shared);
            } else {
                is_over = false;
            }
        }
        if !is_over {
            return self.wake_at(Wake::Stop, until, shared);
        }
        self.connections
            .retain(|_, connection| !connection.is_closed());
        let took_writes = self.node().end_writes();
        shared.note(self.host, || {
            format!("takes no more writes; took some: {took_writes}")
        });
        let sync = ShutdownSync::new(self.replica, took_writes, shared.timeline.instant());
        self.stopping = Some(Stopping::Synchronizing(sync));
        self.admit_waiting(shared);
        self.go_on_stopping(shared);
    }

    /// The port is closed, and the log ends.
    fn begin_to_close(&mut self, ending: Ending, shared: &mut Shared) {
        shared.note(self.host, || format!("closes: {ending:?}"));
        shared.count(match ending {
            Ending::Kept => "stops",
            Ending::Lost { .. } => "stops with a loss",
        });
        let until = shared.timeline.now() + STOP_GRACE;
        self.stopping = Some(Stopping::Closing(until, ending));
        shared.network.listen(self.host, false);
        self.end_threads(shared);
        self.node().engine().end_log();
        if let Some(log) = self.node().engine().log() {
            log.drain(shared.timeline.instant());
        }
        self.wake_at(Wake::Stop, until, shared);
        self.drain_sessions(shared);
    }
}
