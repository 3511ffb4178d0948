//! The stop of the threads of replication.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Stops the threads of replication: wakes those that wait, and shuts the open connection down.
#[derive(Debug, Default)]
pub struct Stop {
    state: Mutex<StopState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct StopState {
    is_stopped: bool,
    /// The node waits for the answers of its peers.
    is_hurried: bool,
    /// Rises with each [`wake`](Stop::wake).
    news: u64,
    /// The connection to the node that is followed.
    connection: Option<Arc<TcpStream>>,
}

impl Stop {
    /// Stops every thread that uses this.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        if let Some(connection) = state.connection.take() {
            // Fails only for a connection that has ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Whether the threads are to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped
    }

    /// Wakes the thread that waits for news: a peer has said something, or the node's role has changed.
    pub(super) fn wake(&self) {
        self.state.lock().news += 1;
        self.changed.notify_all();
    }

    /// Number of the last news.
    pub(super) fn news(&self) -> u64 {
        self.state.lock().news
    }

    /// Waits until there are news after those of number `seen`, until `until`, or until the stop.
    pub(super) fn wait_for_news(&self, seen: u64, until: Instant) {
        let mut state = self.state.lock();
        while !state.is_stopped
            && state.news == seen
            && !self.changed.wait_until(&mut state, until).timed_out()
        {}
    }

    /// Ends the stream from the node that is followed.
    pub(super) fn end_stream(&self) {
        if let Some(connection) = &self.state.lock().connection {
            // Fails only for a connection that has ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Has the peers asked at once and often, or at their interval again. A node that starts to lead or stops depends
    /// on their answers.
    pub fn hurry(&self, is_hurried: bool) {
        self.state.lock().is_hurried = is_hurried;
        self.changed.notify_all();
    }

    /// Whether [`hurry`](Self::hurry) is in force.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.state.lock().is_hurried
    }

    /// Waits for `time`, or for `hurried` at most while [`hurry`](Self::hurry) is in force. Returns whether the threads
    /// are to end.
    pub(super) fn wait_for_turn(&self, time: Duration, hurried: Duration) -> bool {
        let begin = Instant::now();
        let mut state = self.state.lock();
        loop {
            let time = if state.is_hurried { hurried } else { time };
            if state.is_stopped || begin.elapsed() >= time {
                return state.is_stopped;
            }
            let _ = self.changed.wait_until(&mut state, begin + time);
        }
    }

    /// Waits for `time`. Returns early, and `true`, where the threads are to end.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.is_stopped && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        state.is_stopped
    }

    /// Sets the connection that the stop shuts down.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Interrupted`] after the stop.
    pub(in crate::replication) fn watch(
        &self,
        connection: Option<&Arc<TcpStream>>,
    ) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.is_stopped && connection.is_some() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        state.connection = connection.cloned();
        Ok(())
    }
}
