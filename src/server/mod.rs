//! The server: listener, a thread per connection, and how it all stops.
//!
//! | thread       | one per | owns                      | blocks on          | ends                                 |
//! |--------------|---------|---------------------------|--------------------|--------------------------------------|
//! | accept       | server  | the listening sockets     | a client at any    | when [`Stopper::stop`] shuts them down |
//! | connection   | client  | the client's socket       | read, write        | with its client, or at the stop      |
//! | handover     | leader  | nothing                   | a condition        | when followers have everything       |
//! | housekeeping | server  | sockets of refused clients | a channel, a timer | when every other thread has ended   |
//!
//! Connections with small, frequent requests share a thread (`poller.rs`).
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

mod accept;
mod allowance;
mod connection;
mod door;
mod housekeeping;
mod listener;
mod poller;
mod registry;
mod session;
mod system;
mod transport;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::{Condvar, Mutex};
use socket2::{SockRef, TcpKeepalive};

use crate::config::LimitsConfig;
use crate::node::Node;
use crate::replication::{self, Ending, Stop};
use crate::wire::request::Limits;
use accept::Acceptor;
use allowance::Allowance;
use connection::{Connection, Context, End, Timeouts};
use housekeeping::Housekeeper;
pub use listener::BindError;
use listener::Listeners;
use poller::{Polled, Poller};
use registry::{Peer, Registry};

/// Stack of a connection's thread, in bytes. Only pages that are touched cost memory.
const STACK_BYTES: usize = 128 << 10;

/// How long a connection that has nothing to do keeps the memory that a busier time gave it.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// Interval at which a poller looks for connections that have become idle and gives them back to their own threads.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// How long requests in flight may take once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a stop takes at the most: for requests in flight, for the hand-over, for clients that came meanwhile, and
/// for followers to say that they have the rest. A service manager has to wait longer before it kills.
pub const STOP_MAX: Duration = STOP_GRACE
    .saturating_mul(3)
    .saturating_add(replication::handover::PATIENCE_WHERE_ALONE);

/// A client that is silent for so long is asked by the system whether it is still there, so that a machine that
/// vanished does not keep its connections for ever. As in Redis (`tcp-keepalive 300`).
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Between two looks at whether a stopped client has taken its answers.
const TAKEN_PAUSE: Duration = Duration::from_millis(2);

/// A node with its listening sockets.
#[derive(Debug)]
pub struct Server {
    node: Node,
    limits: LimitsConfig,
    allowance: Allowance,
    shared: Arc<Shared>,
    /// Of the node's own threads.
    stop: Stop,
}

/// Stops a [`Server`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listeners: Listeners,
    registry: Registry,
    /// A client has left.
    left: Condvar,
    /// The server is to stop: set under the lock of `registry`, so that whoever is admitted later sees it.
    stopping: AtomicBool,
    /// Whether this node has peers, and lets connections in behind the stop until the data stays with another node.
    hands_over: bool,
    /// Nobody writes any more, so clients behind the stop are let in. Set under that lock too.
    handing_over: AtomicBool,
    /// Nobody is let in any more. Set under that lock too.
    closing: AtomicBool,
    /// One of these has changed.
    advanced: Condvar,
}

/// A client that is let in.
struct Client {
    id: u64,
    peer: Arc<Peer>,
    addr: SocketAddr,
    /// What has come already.
    first: Vec<u8>,
}

impl Client {
    /// Has the system ask a client that is silent for long whether it is still there.
    fn keep_alive(&self) {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 3)
            .with_retries(3);
        if let Err(error) = SockRef::from(self.peer.stream.tcp()).set_tcp_keepalive(&keepalive) {
            debug!("client {}: no keepalive: {error}", self.addr);
        }
    }
}

impl Server {
    /// Listens at every address of `addr` (`host:port`; port 0 has the system choose one for all of them). Clients can
    /// connect from now on and are served once [`run`](Server::run) is called.
    ///
    /// # Errors
    ///
    /// When the name is unknown, or the port is in use or not allowed.
    pub fn bind(addr: &str, node: Node, limits: LimitsConfig) -> Result<Server, BindError> {
        let listeners = Listeners::bind(addr)?;
        let allowance = Allowance::new(limits.max_connections);
        let registry = Registry::new(allowance.connections);
        let hands_over = node.log().is_some();
        Ok(Server {
            node,
            limits,
            allowance,
            stop: Stop::default(),
            shared: Arc::new(Shared {
                listeners,
                registry,
                left: Condvar::new(),
                stopping: AtomicBool::new(false),
                hands_over,
                handing_over: AtomicBool::new(false),
                closing: AtomicBool::new(false),
                advanced: Condvar::new(),
            }),
        })
    }

    /// The first address at which the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs()[0]
    }

    /// Where the server listens: every address of the name that it was given, in the resolver's order; at least one.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        self.shared.listeners.addrs()
    }

    /// A handle that stops this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Serves clients until [`Stopper::stop`] is called, then lets requests in flight finish for 5 seconds at most,
    /// and a leader hand over; [`STOP_MAX`] bounds it all. Every thread that it started is joined when it returns.
    ///
    /// # Errors
    ///
    /// When a thread that the server needs cannot be started.
    pub fn run(self) -> io::Result<Ending> {
        let (housekeeper, chores) = Housekeeper::new(self.allowance.refused);
        let pollers = pollers()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot use epoll: {error}")))?;
        let ending = Mutex::new(Ending::Kept);
        thread::scope(|scope| {
            // Dropped before the scope waits for its threads: this one ends once no one can ask it for anything.
            let housekeeper = housekeeper;
            let node = &self.node;
            start(scope, "housekeeping", move || chores.run(node))?;
            let mut started = replication::start(scope, node, &self.stop)
                .map_err(|error| cannot_start("the threads of replication", &error));
            if started.is_ok() && self.shared.hands_over {
                started = start(scope, "handover", || *ending.lock() = self.hand_over());
            }
            if started.is_ok() {
                Acceptor::new(&self, scope, housekeeper, &pollers).run();
            }
            self.stop.stop();
            self.wait_for_clients(|peer| !peer.follows.load(Ordering::SeqCst));
            if let Some(log) = self.node.log() {
                // Clients write no more, so followers have everything once they have all that is in the log.
                log.end();
            }
            self.wait_for_clients(|_| true);
            started
        })?;
        Ok(ending.into_inner())
    }

    /// What a node with peers does once it is to stop: when nobody writes any more it lets connections in until its
    /// data stays with another node, and then nobody.
    fn hand_over(&self) -> Ending {
        let mut clients = self.shared.registry.lock();
        while !self.shared.stopping.load(Ordering::SeqCst) {
            self.shared.advanced.wait(&mut clients);
        }
        drop(clients);
        self.wait_for_clients(|peer| !peer.follows.load(Ordering::SeqCst));
        let took_writes = self.node.end_writes();
        let clients = self.shared.registry.lock();
        self.shared.handing_over.store(true, Ordering::SeqCst);
        drop(clients);
        self.shared.advanced.notify_all();
        let ending = replication::handover::run(&self.node, &self.stop, took_writes);
        self.shared.end(true);
        ending
    }

    /// Counts a client in, if there is room. Only the accept thread admits, and it does so under the lock under which
    /// clients leave, so the limit is exact. A client that comes behind the stop waits until the last write is made.
    fn admit(&self, id: u64, peer: &Arc<Peer>, may_use_reserve: bool) -> Admission {
        let shared = &self.shared;
        let mut clients = shared.registry.lock();
        while shared.stopping.load(Ordering::SeqCst)
            && !shared.handing_over.load(Ordering::SeqCst)
            && !shared.closing.load(Ordering::SeqCst)
        {
            shared.advanced.wait(&mut clients);
        }
        if shared.closing.load(Ordering::SeqCst) {
            return Admission::Stopping;
        }
        let is_late = shared.stopping.load(Ordering::SeqCst);
        peer.is_late.store(is_late, Ordering::SeqCst);
        if shared
            .registry
            .admit(&mut clients, id, peer, may_use_reserve)
        {
            Admission::Admitted
        } else {
            Admission::Full
        }
    }

    /// Counts a client out.
    fn release(&self, id: u64) {
        self.shared.registry.release(id);
        self.shared.left.notify_all();
    }

    fn spawn<'scope, 'a: 'scope>(
        &'a self,
        scope: &'scope thread::Scope<'scope, '_>,
        poller: &'scope Poller<Connection<'a>>,
        client: Client,
        housekeeper: Housekeeper,
    ) -> io::Result<()> {
        let id = client.id;
        let body = move || {
            let end = self.serve(&client, poller, &housekeeper);
            self.part(client, end, &housekeeper);
        };
        thread::Builder::new()
            .name(format!("client-{id}"))
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map(drop)
    }

    /// Serves a client until it leaves or has to. Apart from what follows, so that an idle connection's stack does not
    /// have room for that.
    fn serve<'a>(
        &'a self,
        client: &Client,
        poller: &Poller<Connection<'a>>,
        housekeeper: &Housekeeper,
    ) -> End {
        client.keep_alive();
        self.node.count_connection(true);
        let peer = Arc::clone(&client.peer);
        let stopping = if peer.is_late.load(Ordering::SeqCst) {
            &self.shared.closing
        } else {
            &self.shared.stopping
        };
        let context = Context {
            peer,
            node: &self.node,
            limits: Limits {
                value_len_max: self.limits.max_value_bytes,
            },
            timeouts: Timeouts {
                request: self.limits.request_timeout,
                idle: self.limits.idle_timeout,
                release: RELEASE_AFTER,
            },
            stopping,
            registry: &self.shared.registry,
            housekeeper: housekeeper.clone(),
        };
        connection::serve(context, &client.first, poller)
    }

    /// Counts a client out whose connection has ended.
    fn part(&self, client: Client, end: End, housekeeper: &Housekeeper) {
        let Client { id, peer, addr, .. } = client;
        let is_waited_for = !matches!(end, End::Observed);
        if is_waited_for && self.shared.stopping.load(Ordering::SeqCst) {
            wait_until_taken(&peer);
        }
        self.node.count_connection(false);
        // The place is free before the client can see that its connection is closed.
        self.release(id);
        match end {
            End::Done | End::Followed | End::Observed => {}
            End::Truncated { len, needed } => {
                debug!("client {addr}: end of stream inside a frame, {len} of {needed} bytes");
            }
            End::Idle => debug!("client {addr}: closed, idle"),
            End::Failed(error) => debug!("client {addr}: {error}"),
            End::Refused(refusal) => {
                debug!("client {addr}: {refusal}");
                housekeeper.drain(peer);
            }
        }
    }

    /// Waits until all clients that are meant have left; those that have not after [`STOP_GRACE`] are cut off.
    fn wait_for_clients(&self, is_meant: impl Fn(&Peer) -> bool) {
        let deadline = Instant::now() + STOP_GRACE;
        let mut clients = self.shared.registry.lock();
        while clients.peers().any(|peer| is_meant(peer)) {
            let timed_out = self
                .shared
                .left
                .wait_until(&mut clients, deadline)
                .timed_out();
            let late: Vec<&Arc<Peer>> = clients.peers().filter(|peer| is_meant(peer)).collect();
            if timed_out && !late.is_empty() {
                warn!(
                    "cutting off clients whose requests did not finish in time: {}",
                    late.len()
                );
                for peer in late {
                    peer.is_cut.store(true, Ordering::SeqCst);
                    peer.stream.shut_down(Shutdown::Both);
                }
                return;
            }
        }
    }
}

impl Stopper {
    /// Has the server finish the requests that have come or begun to, accept no more clients, and end; a leader first
    /// waits until its followers have everything. Returns at once; may be called any number of times.
    pub fn stop(&self) {
        if !self.shared.stopping.load(Ordering::SeqCst) {
            self.shared.end(!self.shared.hands_over);
        }
    }
}

impl Shared {
    /// Has all clients end, and where it `closes`, admits no more.
    fn end(&self, closes: bool) {
        let clients = self.registry.lock();
        self.stopping.store(true, Ordering::SeqCst);
        if closes {
            self.closing.store(true, Ordering::SeqCst);
            // Wakes the accept thread.
            self.listeners.shut_down();
        }
        for peer in clients.peers() {
            // A blocked read returns; what the system has already received is still read and answered. A client whose
            // request is not whole goes on, and its thread does this when it is.
            if !peer.in_frame.load(Ordering::SeqCst) && !peer.follows.load(Ordering::SeqCst) {
                peer.stream.shut_down(Shutdown::Read);
            }
        }
        drop(clients);
        self.advanced.notify_all();
    }
}

/// Starts a thread that the server needs.
fn start<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    let started = thread.spawn_scoped(scope, body).map(drop);
    started.map_err(|error| cannot_start(&format!("the thread {name:?}"), &error))
}

fn cannot_start(what: &str, error: &io::Error) -> io::Error {
    let text = format!(
        "cannot start {what}: {error}; allow more processes and threads (ulimit -u, TasksMax, pids.max), or free memory"
    );
    io::Error::new(error.kind(), text)
}

/// Waits until the client's system has all that was written. The stop has shut down the reading side, so whatever the
/// client sends after the socket is closed resets the connection, and answers on their way would be lost.
fn wait_until_taken(peer: &Peer) {
    while peer
        .stream
        .unacknowledged_bytes()
        .is_ok_and(|count| count > 0)
        && !peer.is_cut.load(Ordering::SeqCst)
    {
        thread::sleep(TAKEN_PAUSE);
    }
}

/// A poller for every two cores. Each has one polling thread; clients, the network stack and the node's other threads
/// need cores too.
fn pollers<C: Polled>() -> io::Result<Vec<Poller<C>>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (0..cores.div_ceil(2))
        .map(|_| Poller::new(SWEEP_INTERVAL))
        .collect()
}

enum Admission {
    Admitted,
    Full,
    Stopping,
}
