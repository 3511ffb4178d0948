//! The accept thread: takes clients in, as far as there is room, and tells the others why not.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Scope;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::door::Door;
use super::housekeeping::Housekeeper;
use super::poller::Poller;
use super::registry::Peer;
use super::transport::Mode;
use super::{Admission, Client, Server};
use crate::node::Reply;

/// Pause after an accept that failed, doubled for each further one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// At least so long between two lines in the log that say that clients are turned away.
const TURN_AWAY_LOG: Duration = Duration::from_secs(10);

/// The accept thread's state.
pub(super) struct Acceptor<'scope, 'env, 'a> {
    server: &'a Server,
    scope: &'scope Scope<'scope, 'env>,
    housekeeper: Housekeeper,
    pollers: &'scope [Poller<Connection<'a>>],
    /// Of the next client.
    id: u64,
    /// Those that there was no room for, until it is known what they want.
    door: Door,
    /// After the next accept that fails.
    pause: Duration,
    turned_away: u64,
    logged: Option<Instant>,
}

/// The server has stopped accepting.
struct Closing;

impl<'scope, 'env, 'a: 'scope> Acceptor<'scope, 'env, 'a> {
    pub(super) fn new(
        server: &'a Server,
        scope: &'scope Scope<'scope, 'env>,
        housekeeper: Housekeeper,
        pollers: &'scope [Poller<Connection<'a>>],
    ) -> Acceptor<'scope, 'env, 'a> {
        Acceptor {
            server,
            scope,
            housekeeper,
            pollers,
            id: 0,
            door: Door::new(server.allowance.waiting),
            pause: PAUSE.0,
            turned_away: 0,
            logged: None,
        }
    }

    /// Accepts clients until the server stops.
    pub(super) fn run(mut self) {
        while self.turn().is_ok() {}
    }

    /// Waits for clients, and does what can be done for those that have come.
    fn turn(&mut self) -> Result<(), Closing> {
        let listeners = self.server.shared.listeners.sockets();
        let mut ready = Vec::new();
        if let Err(error) = self.wait(listeners, &mut ready) {
            return self.cannot_accept(&error);
        }
        let (at_listeners, at_door) = ready.split_at(listeners.len());
        let (let_in, turned_away) = self.door.look(at_door);
        for client in let_in {
            self.take_in(client.id, client.peer, client.addr, Some(client.first))?;
        }
        for client in turned_away {
            self.turn_away(client.peer, self.server.shared.registry.refusal());
        }
        // One of each, so that none has to wait for the clients of another.
        for (listener, _) in listeners
            .iter()
            .zip(at_listeners)
            .filter(|(_, ready)| **ready)
        {
            self.accept(listener)?;
        }
        Ok(())
    }

    /// Waits until there is something to do. `ready` then says of each listener, and after those of each client at the
    /// door, whether it is to be asked.
    fn wait(&self, listeners: &[TcpListener], ready: &mut Vec<bool>) -> io::Result<()> {
        let sockets = listeners.iter().map(AsFd::as_fd).chain(self.door.sockets());
        let mut polled: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        let timeout = self
            .door
            .until()
            .map(|until| until.saturating_duration_since(Instant::now()))
            .and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(polled.iter().map(|polled| !polled.revents().is_empty()));
        Ok(())
    }

    /// Accepts one client.
    fn accept(&mut self, listener: &TcpListener) -> Result<(), Closing> {
        let (stream, addr) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(_) if self.server.shared.closing.load(Ordering::SeqCst) => return Err(Closing),
            Err(error) if is_about_one_client(&error) => {
                debug!("client gone before it was accepted: {error}");
                return Ok(());
            }
            Err(error) => return self.cannot_accept(&error),
        };
        if self.pause > PAUSE.0 {
            info!("accepting clients again");
            self.pause = PAUSE.0;
        }
        let id = self.id;
        self.id += 1;
        self.take_in(id, Arc::new(Peer::new(stream)), addr, None)
    }

    /// Pauses after a failure that is not about one client, such as too few descriptors; the stop ends the pause.
    fn cannot_accept(&mut self, error: &io::Error) -> Result<(), Closing> {
        if self.pause == PAUSE.0 {
            warn!("cannot accept clients: {error}; trying again until it works");
        }
        let shared = &self.server.shared;
        let mut clients = shared.registry.lock();
        if !shared.closing.load(Ordering::SeqCst) {
            shared.advanced.wait_for(&mut clients, self.pause);
        }
        self.pause = (self.pause * 2).min(PAUSE.1);
        if shared.closing.load(Ordering::SeqCst) {
            return Err(Closing);
        }
        Ok(())
    }

    /// Has a client served, or wait at the door, or tells it why not. `first` is what has come of one at the door.
    fn take_in(
        &mut self,
        id: u64,
        peer: Arc<Peer>,
        addr: SocketAddr,
        first: Option<Vec<u8>>,
    ) -> Result<(), Closing> {
        let was_at_door = first.is_some();
        match self.server.admit(id, &peer, was_at_door) {
            Admission::Stopping => return Err(Closing),
            Admission::Full if was_at_door => {
                self.turn_away(peer, self.server.shared.registry.refusal());
            }
            Admission::Full => {
                if let Some(oldest) = self.door.push(id, peer, addr) {
                    self.turn_away(oldest.peer, self.server.shared.registry.refusal());
                }
            }
            Admission::Admitted => {
                let at = usize::try_from(id).unwrap_or(0) % self.pollers.len();
                let client = Client {
                    id,
                    peer: Arc::clone(&peer),
                    addr,
                    first: first.unwrap_or_default(),
                };
                let (scope, poller) = (self.scope, &self.pollers[at]);
                let housekeeper = self.housekeeper.clone();
                if let Err(error) = self.server.spawn(scope, poller, client, housekeeper) {
                    self.server.release(id);
                    let message = format!("cannot start a thread for this connection: {error}");
                    self.turn_away(peer, message);
                }
            }
        }
        Ok(())
    }

    /// Tells a client why it is not served.
    fn turn_away(&mut self, peer: Arc<Peer>, message: String) {
        self.turned_away += 1;
        let now = Instant::now();
        if self
            .logged
            .is_none_or(|logged| now - logged >= TURN_AWAY_LOG)
        {
            self.logged = Some(now);
            let count = self.turned_away;
            warn!("turning clients away, {count} so far: {message}");
        }
        let reply = Reply::Error(message);
        let mut answer = reply.header().encode().to_vec();
        answer.extend_from_slice(reply.value());
        // A fresh socket's send buffer takes this whole; the accept thread must not wait for anyone all the same.
        let sent = peer.stream.send(&answer, &[], Mode::Now);
        match sent {
            Ok(_) => self.housekeeper.drain(peer),
            Err(error) => debug!("client gone before it was turned away: {error}"),
        }
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
