//! Keeping copies: the threads that a node of a cluster has beside its clients'.
//!
//! | thread      | one per               | owns                                    | blocks on             |
//! |-------------|-----------------------|-----------------------------------------|-----------------------|
//! | replication | node                  | the channel's receiving end, the log    | the channel           |
//! | sender      | following connection  | that socket's writing side, a cursor    | the log, write        |
//! | acks        | following connection  | that socket's reading side              | read                  |
//! | link        | node                  | the connection to the node it copies    | read, a timer         |
//! | link-acks   | link                  | that connection's writing side          | a timer, write        |
//! | heartbeat   | node                  | the table of peers                      | a timer               |
//! | probe-NAME  | peer                  | a connection to that peer               | a timer, read         |
//!
//! A follower asks for the stream on an ordinary connection (`follower_side`), and the node that it follows sends it
//! (`leader_side`). [`core`] makes the decisions of both. A leader that starts first copies the peer that is most up to
//! date (`follower_side::recover`). One that stops waits until the others have everything (`shutdown_sync`).

#![deny(clippy::wildcard_enum_match_arm)]

mod ask;
pub mod core;
mod follower_side;
mod heartbeat;
pub(crate) mod leader_side;
mod peers;
pub(crate) mod shutdown_sync;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::dial;
pub use peers::Peers;
pub(crate) use peers::Replica;
pub use shutdown_sync::Ending;

/// What stops a node's own threads: whoever sleeps wakes, and the connection that is open is shut down.
#[derive(Debug, Default)]
pub struct Stop {
    state: Mutex<StopState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct StopState {
    is_stopped: bool,
    /// Somebody waits for what the peers say.
    is_hurried: bool,
    link: Option<Arc<TcpStream>>,
}

impl Stop {
    /// Stops everything that asks this.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        if let Some(link) = state.link.take() {
            // Fails only for a connection that has ended by itself.
            let _ = link.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped
    }

    /// Whether the peers are to be asked at once and often, as a node that starts to lead or stops needs it. Wakes the
    /// threads that wait for their turn.
    pub fn hurry(&self, is_hurried: bool) {
        self.state.lock().is_hurried = is_hurried;
        self.changed.notify_all();
    }

    /// Whether [`hurry`](Self::hurry) is in force.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.state.lock().is_hurried
    }

    /// Waits for `time`, or for no longer than `hurried` while the peers are to be asked often. Returns whether it is
    /// over.
    fn wait_for_turn(&self, time: Duration, hurried: Duration) -> bool {
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

    /// Waits, and says whether it is over.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.is_stopped && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        state.is_stopped
    }

    /// The connection that is to be shut down with everything; an error where it is over already.
    fn watch(&self, link: Option<&Arc<TcpStream>>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.is_stopped && link.is_some() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        state.link = link.cloned();
        Ok(())
    }
}

/// Starts the node's own threads; they end with [`Stop::stop`], the replication thread with
/// [`Log::end`](crate::log::Log::end).
///
/// # Errors
///
/// When the system gives no thread.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    replica: Replica<'scope>,
    stop: &'scope Stop,
) -> io::Result<()> {
    let (Some(log), Some(member)) = (replica.node.engine().log(), replica.node.member()) else {
        return Ok(());
    };
    let spawn = |name: String, body: Box<dyn FnOnce() + Send + 'scope>| {
        thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, body)
            .map(drop)
    };
    spawn("replication".to_owned(), Box::new(|| log.keep()))?;
    spawn(
        "link".to_owned(),
        Box::new(move || follower_side::run(replica, member, stop)),
    )?;
    spawn(
        "heartbeat".to_owned(),
        Box::new(move || heartbeat::run(replica, member, stop)),
    )?;
    for peer in &member.peers {
        let body = move || heartbeat::probe(replica, member, peer, stop);
        spawn(format!("probe-{}", peer.name), Box::new(body))?;
    }
    Ok(())
}

/// Connects to `host:port`, at any address that the name has, by `deadline`, and no longer than until the stop.
fn connect(addr: &str, deadline: Instant, stop: &Stop) -> io::Result<TcpStream> {
    dial::connect(addr, deadline, &|| stop.is_stopped())
}
