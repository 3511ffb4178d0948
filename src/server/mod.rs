//! The server: listener, a thread per connection, and how it all stops.
//!
//! | thread     | one per | owns                          | blocks on        | ends                              |
//! |------------|---------|-------------------------------|------------------|-----------------------------------|
//! | accept     | server  | the listening socket          | accept           | when [`Stopper::stop`] shuts it down |
//! | connection | client  | the client's socket           | read, write      | with its client, or at the stop   |
//! | linger     | server  | sockets of refused clients    | a channel, a timer | when every other thread has ended |
//!
//! The accept thread is the one that calls [`Server::run`]. All others are scoped to that call, so when it returns they
//! are joined.
//!
//! # Known limits
//!
//! * A client that takes one byte of its answers just before each write timeout keeps its thread and its place for as
//!   long as it likes. What it costs stays bounded: one connection, one answer and 64 KiB of others.
//! * A turned-away client's own requests are not read, only drained, so it is told of the limit and not of anything
//!   that is wrong with them.

mod connection;
mod linger;

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use parking_lot::{Condvar, Mutex};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::config::LimitsConfig;
use crate::node::{Node, Reply};
use crate::wire::request::Limits;
use connection::{End, Timeouts};

/// Connections that the system completes before the server has accepted them. A rush of clients beyond it is slowed by
/// retransmissions, not refused; the system may cut it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// Stack of a connection's thread, in bytes. Only pages that are touched cost memory.
const STACK_BYTES: usize = 128 << 10;

/// How long a connection that has nothing to do keeps the memory that a busier time gave it.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// How long requests in flight may take once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Pause after an accept that failed, doubled for each further one.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A client that is silent for so long is asked by the system whether it is still there, so that a machine that
/// vanished does not keep its connections for ever. As in Redis (`tcp-keepalive 300`).
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Refused sockets waiting to be drained; see [`linger`].
const LINGER_QUEUE: usize = 256;

/// A node with its listening socket.
#[derive(Debug)]
pub struct Server {
    node: Node,
    limits: LimitsConfig,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

/// Stops a [`Server`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    clients: Mutex<Clients>,
    /// A client has left.
    left: Condvar,
}

/// Who is connected. Every socket that is served is in here, so that the stop reaches it; `stopping` is under the same
/// lock, so that none comes in after the stop has been through.
#[derive(Debug, Default)]
struct Clients {
    sockets: HashMap<u64, Arc<TcpStream>>,
    stopping: bool,
}

/// The server cannot listen where it should.
#[derive(Debug)]
pub struct BindError {
    /// The address that it was given.
    pub addr: String,
    /// What the system said.
    pub source: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot listen on {}: {}", self.addr, self.source)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Server {
    /// Listens on `addr` (`host:port`; port 0 has the system choose one). Clients can connect from now on and are
    /// served once [`run`](Server::run) is called.
    ///
    /// # Errors
    ///
    /// When the name is unknown, or the port is in use or not allowed.
    pub fn bind(addr: &str, node: Node, limits: LimitsConfig) -> Result<Server, BindError> {
        let listen = || {
            let mut failed = io::ErrorKind::AddrNotAvailable.into();
            for addr in addr.to_socket_addrs()? {
                match listen(addr) {
                    Ok(listener) => return Ok((listener.local_addr()?, listener)),
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        };
        let (local_addr, listener) = listen().map_err(|source| BindError {
            addr: addr.to_owned(),
            source,
        })?;
        Ok(Server {
            node,
            limits,
            local_addr,
            shared: Arc::new(Shared {
                listener,
                clients: Mutex::default(),
                left: Condvar::new(),
            }),
        })
    }

    /// Where the server listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A handle that stops this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Serves clients until [`Stopper::stop`] is called, then lets requests in flight finish for 5 seconds at most.
    /// Every thread that it started is joined when it returns.
    ///
    /// # Errors
    ///
    /// When a thread that the server needs cannot be started.
    pub fn run(&self) -> io::Result<()> {
        let (refused, incoming) = sync_channel(LINGER_QUEUE);
        thread::scope(|scope| {
            // Dropped before the scope waits for its threads: the linger thread ends once no one can send to it.
            let refused = refused;
            thread::Builder::new()
                .name("linger".to_owned())
                .spawn_scoped(scope, move || linger::run(&incoming))?;
            self.accept(scope, &refused);
            self.wait_for_clients();
            Ok(())
        })
    }

    /// Accepts clients until the server stops.
    fn accept<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        refused: &SyncSender<Arc<TcpStream>>,
    ) {
        let mut pause = ACCEPT_PAUSE.0;
        let mut turned_away = 0_u64;
        for id in 0_u64.. {
            let (stream, peer) = match self.shared.listener.accept() {
                Ok(accepted) => accepted,
                Err(_) if self.shared.clients.lock().stopping => return,
                Err(error) if is_about_one_client(&error) => {
                    debug!("client gone before it was accepted: {error}");
                    continue;
                }
                Err(error) => {
                    if pause == ACCEPT_PAUSE.0 {
                        warn!("cannot accept clients: {error}; trying again until it works");
                    }
                    thread::sleep(pause);
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                    continue;
                }
            };
            if pause > ACCEPT_PAUSE.0 {
                info!("accepting clients again");
                pause = ACCEPT_PAUSE.0;
            }
            let stream = Arc::new(stream);
            let outcome = match self.admit(id, &stream) {
                Admission::Stopping => return,
                Admission::Full => Err(format!(
                    "too many connections, limit {}",
                    self.limits.max_connections
                )),
                Admission::Admitted => self
                    .spawn(scope, id, Arc::clone(&stream), peer, refused.clone())
                    .map_err(|error| {
                        self.release(id);
                        format!("cannot start a thread for this connection: {error}")
                    }),
            };
            match outcome {
                Ok(()) if turned_away > 0 => {
                    info!("serving new clients again; {turned_away} were turned away");
                    turned_away = 0;
                }
                Ok(()) => {}
                Err(message) => {
                    if turned_away == 0 {
                        warn!("turning clients away: {message}");
                    }
                    turned_away += 1;
                    turn_away(stream, message, refused);
                }
            }
        }
    }

    /// Counts a client in, if there is room. Only the accept thread admits, and it does so under the lock under which
    /// clients leave, so the limit is exact.
    fn admit(&self, id: u64, stream: &Arc<TcpStream>) -> Admission {
        let mut clients = self.shared.clients.lock();
        if clients.stopping {
            return Admission::Stopping;
        }
        if u64::try_from(clients.sockets.len())
            .is_ok_and(|n| n >= u64::from(self.limits.max_connections))
        {
            return Admission::Full;
        }
        clients.sockets.insert(id, Arc::clone(stream));
        Admission::Admitted
    }

    /// Counts a client out.
    fn release(&self, id: u64) {
        self.shared.clients.lock().sockets.remove(&id);
        self.shared.left.notify_all();
    }

    fn spawn<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        id: u64,
        stream: Arc<TcpStream>,
        peer: SocketAddr,
        refused: SyncSender<Arc<TcpStream>>,
    ) -> io::Result<()> {
        let body = move || {
            if let Err(error) = keep_alive(&stream) {
                debug!("client {peer}: no keepalive: {error}");
            }
            let limits = Limits {
                value_len_max: self.limits.max_value_bytes,
            };
            let timeouts = Timeouts {
                request: self.limits.request_timeout,
                idle: self.limits.idle_timeout,
                release: RELEASE_AFTER,
            };
            let end = connection::serve(&stream, &self.node, limits, timeouts);
            // The place is free before the client can see that its connection is closed.
            self.release(id);
            match end {
                End::Done => {}
                End::Truncated { len, needed } => {
                    debug!("client {peer}: end of stream inside a frame, {len} of {needed} bytes");
                }
                End::Idle => debug!("client {peer}: closed, idle"),
                End::Failed(error) => debug!("client {peer}: {error}"),
                End::Refused(refusal) => {
                    debug!("client {peer}: {refusal}");
                    linger(stream, &refused);
                }
            }
        };
        thread::Builder::new()
            .name(format!("client-{id}"))
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map(drop)
    }

    /// Waits until all clients have left; those that have not after [`STOP_GRACE`] are cut off.
    fn wait_for_clients(&self) {
        let deadline = Instant::now() + STOP_GRACE;
        let mut clients = self.shared.clients.lock();
        while !clients.sockets.is_empty() {
            if self
                .shared
                .left
                .wait_until(&mut clients, deadline)
                .timed_out()
            {
                warn!(
                    "cutting off {} clients whose requests did not finish in time",
                    clients.sockets.len()
                );
                for stream in clients.sockets.values() {
                    // Fails only for a client that has gone by itself.
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
        }
    }
}

impl Stopper {
    /// Has the server accept no more clients, finish the requests that have come, and end. Returns at once; may be
    /// called any number of times.
    pub fn stop(&self) {
        let mut clients = self.shared.clients.lock();
        clients.stopping = true;
        // Wakes the accept thread. Both kinds of socket fail here only when they are closed already.
        let _ = SockRef::from(&self.shared.listener).shutdown(Shutdown::Both);
        for stream in clients.sockets.values() {
            // A blocked read returns; what the system has already received is still read and answered.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

enum Admission {
    Admitted,
    Full,
    Stopping,
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A restarted server gets its port back although connections of the last one are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 3)
        .with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Whether an accept failed for a reason that ended with that one client (accept(2), "Error handling").
fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
    )
}

/// Tells a client why it is not served.
fn turn_away(stream: Arc<TcpStream>, message: String, refused: &SyncSender<Arc<TcpStream>>) {
    let reply = Reply::Error(message);
    let mut answer = reply.header().encode().to_vec();
    answer.extend_from_slice(reply.value());
    // A fresh socket's send buffer takes this whole; the accept thread must not wait for anyone all the same.
    let sent = stream
        .set_nonblocking(true)
        .and_then(|()| io::Write::write_all(&mut &*stream, &answer));
    match sent {
        Ok(()) => linger(stream, refused),
        Err(error) => debug!("client gone before it was turned away: {error}"),
    }
}

/// Hands a socket over to be drained and closed; closes it at once where too many are waiting for that.
fn linger(stream: Arc<TcpStream>, refused: &SyncSender<Arc<TcpStream>>) {
    if refused.try_send(stream).is_err() {
        debug!("too many refused clients at once; closing one without draining it");
    }
}
