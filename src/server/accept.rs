//! The accept thread: admits clients while there are places, and rejects the others with a reason.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Server;
use super::client::Client;
use super::connection::Connection;
use super::housekeeping::Housekeeper;
use super::lifecycle::State;
use super::pending::PendingConnections;
use super::poller::Poller;
use super::registry::Peer;
use super::transport::Mode;
use crate::node::Reply;

/// Shortest and longest pause after an accept that failed. It doubles with each further failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Shortest time between two lines of the log that say that clients are rejected.
const REJECTION_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The accept thread's state.
pub(super) struct Acceptor<'scope, 'env, 'a> {
    server: &'a Server,
    scope: &'scope Scope<'scope, 'env>,
    housekeeper: Housekeeper,
    pollers: &'scope [Poller<'a, Connection<'a>>],
    /// Number of the next client.
    next_id: u64,
    pending: PendingConnections,
    /// Pause after the next accept that fails.
    pause: Duration,
    /// Clients rejected so far.
    rejected: u64,
    /// When a rejection was last logged.
    logged: Option<Instant>,
}

/// The server is closing, and accepts no client any more.
struct Closing;

/// Outcome of a request to admit a client.
enum Admission {
    /// It holds a place, which it got in this state of the server.
    Admitted(State),
    /// No place that it may have is free.
    Full,
}

impl<'scope, 'env, 'a: 'scope> Acceptor<'scope, 'env, 'a> {
    pub(super) fn new(
        server: &'a Server,
        scope: &'scope Scope<'scope, 'env>,
        housekeeper: Housekeeper,
        pollers: &'scope [Poller<'a, Connection<'a>>],
    ) -> Acceptor<'scope, 'env, 'a> {
        Acceptor {
            server,
            scope,
            housekeeper,
            pollers,
            next_id: 0,
            pending: PendingConnections::new(server.allowance.pending),
            pause: PAUSE.0,
            rejected: 0,
            logged: None,
        }
    }

    /// Accepts clients until the server closes.
    pub(super) fn run(mut self) {
        while self.step().is_ok() {}
    }

    /// Waits until a socket is ready, then serves each ready socket once.
    fn step(&mut self) -> Result<(), Closing> {
        let listeners = self.server.shared.listeners.sockets();
        let ready = match self.wait(listeners) {
            Ok(ready) => ready,
            Err(error) => return self.pause_after(&error),
        };
        let (ready_listeners, ready_pending) = ready.split_at(listeners.len());
        let decided = self.pending.read(ready_pending);
        for client in decided.to_admit {
            self.admit(client.id, client.peer, client.addr, Some(client.first))?;
        }
        for client in decided.to_reject {
            self.reject(client.peer, self.server.shared.registry.refusal());
        }
        // One client of each listener, so that none has to wait for the clients of another.
        for (listener, _) in listeners
            .iter()
            .zip(ready_listeners)
            .filter(|(_, is_ready)| **is_ready)
        {
            self.accept(listener)?;
        }
        Ok(())
    }

    /// Waits until a socket is ready, or the time of a pending connection is over. Returns for each listener, and then
    /// for each pending connection, whether it is ready.
    fn wait(&self, listeners: &[TcpListener]) -> io::Result<Vec<bool>> {
        let pending = self.pending.sockets();
        let mut polled: Vec<PollFd<'_>> = listeners
            .iter()
            .map(AsFd::as_fd)
            .chain(pending)
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        let timeout = self
            .pending
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
        Ok(polled.iter().map(is_ready).collect())
    }

    /// Accepts one client.
    fn accept(&mut self, listener: &TcpListener) -> Result<(), Closing> {
        let (stream, addr) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(_) if self.is_closing() => return Err(Closing),
            Err(error) if is_about_one_client(&error) => {
                debug!("client gone before it was accepted: {error}");
                return Ok(());
            }
            Err(error) => return self.pause_after(&error),
        };
        if self.pause > PAUSE.0 {
            info!("accepting clients again");
            self.pause = PAUSE.0;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.admit(id, Arc::new(Peer::new(stream)), addr, None)
    }

    fn is_closing(&self) -> bool {
        self.server.shared.lifecycle.state() == State::Closing
    }

    /// Pauses after a failure that is not about one client, such as too few descriptors. Closing ends the pause.
    fn pause_after(&mut self, error: &io::Error) -> Result<(), Closing> {
        if self.pause == PAUSE.0 {
            warn!("cannot accept clients: {error}; trying again until it works");
        }
        debug!(
            "the next accept is in {} ms: {error}",
            self.pause.as_millis()
        );
        let shared = &self.server.shared;
        let mut clients = shared.registry.lock();
        if !self.is_closing() {
            shared.state_changed.wait_for(&mut clients, self.pause);
        }
        drop(clients);
        self.pause = (self.pause * 2).min(PAUSE.1);
        if self.is_closing() {
            return Err(Closing);
        }
        Ok(())
    }

    /// Starts a client's thread where it gets a place. Otherwise it becomes pending, or is rejected where it was:
    /// `first` holds the bytes that were read of a pending connection.
    fn admit(
        &mut self,
        id: u64,
        peer: Arc<Peer>,
        addr: SocketAddr,
        first: Option<Vec<u8>>,
    ) -> Result<(), Closing> {
        let was_pending = first.is_some();
        match self.server.admit(id, &peer, was_pending)? {
            Admission::Full if was_pending => {
                self.reject(peer, self.server.shared.registry.refusal());
            }
            Admission::Full => {
                if let Some(oldest) = self.pending.push(id, peer, addr) {
                    self.reject(oldest.peer, self.server.shared.registry.refusal());
                }
            }
            Admission::Admitted(admitted_in) => {
                let at = usize::try_from(id).unwrap_or(0) % self.pollers.len();
                let client = Client {
                    id,
                    peer: Arc::clone(&peer),
                    addr,
                    admitted_in,
                    first: first.unwrap_or_default(),
                };
                let (scope, poller) = (self.scope, &self.pollers[at]);
                let housekeeper = self.housekeeper.clone();
                if let Err(error) = self.server.spawn(scope, poller, client, housekeeper) {
                    self.server.release(id);
                    let message = format!("cannot start a thread for this connection: {error}");
                    self.reject(peer, message);
                }
            }
        }
        Ok(())
    }

    /// Sends a client the reason why it is not served.
    fn reject(&mut self, peer: Arc<Peer>, message: String) {
        self.rejected += 1;
        let now = Instant::now();
        let is_log_due = self
            .logged
            .is_none_or(|logged| now - logged >= REJECTION_LOG_INTERVAL);
        if is_log_due {
            self.logged = Some(now);
            warn!("rejecting clients, {} so far: {message}", self.rejected);
        }
        let reply = Reply::Error(message);
        let mut answer = reply.header().encode().to_vec();
        answer.extend_from_slice(reply.value());
        // The send buffer of a new socket takes this whole. The accept thread must never wait for a client, so where it
        // does not, the rest is not sent.
        match peer.stream.send(&answer, &[], Mode::Now) {
            Ok(_) => self.housekeeper.drain(peer),
            Err(error) => debug!("client gone before it was rejected: {error}"),
        }
    }
}

impl Server {
    /// Adds a client to the registry, if there is a place. Only the accept thread does so, under the lock under which
    /// clients leave, so the limit is exact. While the server drains, clients wait here for the end of the writes.
    fn admit(
        &self,
        id: u64,
        peer: &Arc<Peer>,
        may_use_reserve: bool,
    ) -> Result<Admission, Closing> {
        let shared = &self.shared;
        let mut clients = shared.registry.lock();
        let state = loop {
            match shared.lifecycle.state() {
                State::Draining => shared.state_changed.wait(&mut clients),
                State::Closing => return Err(Closing),
                state @ (State::Running | State::Synchronizing) => break state,
            }
        };
        let is_admitted = shared
            .registry
            .admit(&mut clients, id, peer, may_use_reserve);
        Ok(if is_admitted {
            Admission::Admitted(state)
        } else {
            Admission::Full
        })
    }
}

/// Whether an accept failed for a reason that ended with that one client (accept(2), "Error handling").
fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | WouldBlock
    )
}
