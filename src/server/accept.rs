//! The accept thread: takes clients in, as far as there is room, and tells the others why not.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Scope;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::connection::Connection;
use super::crowd::Crowd;
use super::housekeeping::Housekeeper;
use super::{Admission, Peer, Server};
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
    crowds: &'scope [Crowd<Connection<'a>>],
    /// Of the next client.
    id: u64,
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
        crowds: &'scope [Crowd<Connection<'a>>],
    ) -> Acceptor<'scope, 'env, 'a> {
        Acceptor {
            server,
            scope,
            housekeeper,
            crowds,
            id: 0,
            pause: PAUSE.0,
            turned_away: 0,
            logged: None,
        }
    }

    /// Accepts clients until the server stops.
    pub(super) fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            let waited = self.server.shared.listeners.wait(None, &mut ready);
            let result = match waited {
                // One of each, so that none has to wait for the clients of another.
                Ok(()) => ready.iter().try_for_each(|listener| self.accept(listener)),
                Err(error) => self.cannot_accept(&error),
            };
            if let Err(Closing) = result {
                return;
            }
        }
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
        self.take_in(stream, addr)
    }

    /// Pauses after a failure that is not about one client, such as too few descriptors; the stop ends the pause.
    fn cannot_accept(&mut self, error: &io::Error) -> Result<(), Closing> {
        if self.pause == PAUSE.0 {
            warn!("cannot accept clients: {error}; trying again until it works");
        }
        let shared = &self.server.shared;
        let mut clients = shared.clients.lock();
        if !shared.closing.load(Ordering::SeqCst) {
            shared.advanced.wait_for(&mut clients, self.pause);
        }
        self.pause = (self.pause * 2).min(PAUSE.1);
        if shared.closing.load(Ordering::SeqCst) {
            return Err(Closing);
        }
        Ok(())
    }

    /// Has a client served, or tells it why not.
    fn take_in(&mut self, stream: TcpStream, addr: SocketAddr) -> Result<(), Closing> {
        let id = self.id;
        self.id += 1;
        let at = usize::try_from(id).unwrap_or(0) % self.crowds.len();
        let peer = Arc::new(Peer::new(stream));
        let outcome = match self.server.admit(id, &peer) {
            Admission::Stopping => return Err(Closing),
            Admission::Full => Err(format!(
                "too many connections, limit {}",
                self.server.limits.max_connections
            )),
            Admission::Admitted => self
                .server
                .spawn(
                    self.scope,
                    &self.crowds[at],
                    id,
                    Arc::clone(&peer),
                    addr,
                    self.housekeeper.clone(),
                )
                .map_err(|error| {
                    self.server.release(id);
                    format!("cannot start a thread for this connection: {error}")
                }),
        };
        if let Err(message) = outcome {
            self.turn_away(peer, message);
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
        let sent = peer
            .stream
            .set_nonblocking(true)
            .and_then(|()| (&peer.stream).write_all(&answer));
        match sent {
            Ok(()) => self.housekeeper.drain(peer),
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
