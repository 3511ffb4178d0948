//! The server: listening sockets, a thread for each connection, and a stop in good order.
//!
//! | thread        | one per         | owns                       | blocks on          | ends                       |
//! |---------------|-----------------|----------------------------|--------------------|----------------------------|
//! | accept        | server          | the listening sockets      | a client at any    | when the server closes     |
//! | client-N      | client          | the client's socket        | read, write        | with its client, at a stop |
//! | shutdown-sync | node with peers | nothing                    | a condition        | when the server closes     |
//! | replication   | node with a log | the backlog's writing side | the append queue   | when the log has ended     |
//! | log-writer    | data directory  | the log's files            | the backlog, disk  | behind the last snapshot   |
//! | snapshot      | data directory  | the snapshot's file        | a condition, disk  | with log-writer            |
//! | expiry        | server          | nothing                    | a timer, log room  | when the server closes     |
//! | housekeeping  | server          | sockets of refused clients | a channel, a timer | when every other has ended |
//!
//! Connections with small, frequent requests share a thread (`poller.rs`).
//!
//! The accept thread is the one that calls [`Server::run`]. All others are scoped to that call, so they are joined when
//! it returns. A stop follows the states of `lifecycle.rs`; `shutdown.rs` carries it out.
//!
//! # Known limits
//!
//! * A client that takes one byte of its answers just before each write timeout keeps its thread and its place without
//!   limit. Its cost stays bounded: one connection, one answer and 64 KiB of others.
//! * The requests of a rejected client are not parsed, only drained. It gets the ERROR of the limit, and no other.

#![deny(clippy::wildcard_enum_match_arm)]

mod accept;
mod allowance;
mod back_off;
mod client;
mod connection;
pub mod data_dir;
pub mod disk;
mod end;
mod expiry;
mod housekeeping;
mod lifecycle;
mod listener;
mod pending;
mod poller;
mod registry;
pub(crate) mod session;
mod shutdown;
mod sync_wait;
mod system;
#[cfg(test)]
mod tests;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::error;
use parking_lot::{Condvar, Mutex};

use crate::config::LimitsConfig;
use crate::log::{Log, Mark, Watermarks};
use crate::node::Node;
use crate::replication::{self, Ending, Peers, Replica, Stop, Transferrer};
use crate::storage::error::StorageError;
use accept::Acceptor;
use allowance::Allowance;
use disk::{Disk, LogWriting};
use housekeeping::Housekeeper;
use lifecycle::{Event, Lifecycle};
pub use listener::BindError;
use listener::Listeners;
use poller::{Polled, Poller};
use registry::Registry;
pub use shutdown::{STOP_MAX, Stopper};

/// Interval at which a poller looks for connections that have become idle and gives them back to their own threads.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// A node with its listening sockets.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    peers: Arc<Peers>,
    limits: LimitsConfig,
    allowance: Allowance,
    shared: Arc<Shared>,
    /// Stops the threads of replication.
    stop: Arc<Stop>,
    /// The node's data directory, from which it has recovered.
    disk: Option<Arc<Disk>>,
}

/// The part of a server that its [`Stopper`]s use too.
#[derive(Debug)]
struct Shared {
    listeners: Listeners,
    registry: Registry,
    /// Changed under the lock of `registry`.
    lifecycle: Lifecycle,
    /// Whether the node has peers to synchronize with at a stop.
    has_peers: bool,
    /// A client has left the registry.
    client_left: Condvar,
    /// The state of `lifecycle` has changed.
    state_changed: Condvar,
}

impl Server {
    /// Listens at every address of `addr` (`host:port`; port 0 has the system choose one for all of them). Clients can
    /// connect from now on and are served once [`run`](Server::run) is called.
    ///
    /// # Errors
    ///
    /// When the name is unknown, or the port is in use or not allowed.
    pub fn bind(addr: &str, mut node: Node, limits: LimitsConfig) -> Result<Server, BindError> {
        if limits.max_memory_bytes.is_some() {
            system::use_one_heap();
        }
        let listeners = Listeners::bind(addr)?;
        let allowance = Allowance::new(limits.max_connections);
        let registry = Registry::new(allowance.connections);
        let has_peers = node.member().is_some_and(|member| !member.peers.is_empty());
        Ok(Server {
            disk: None,
            peers: Peers::attach(&mut node),
            node: Arc::new(node),
            limits,
            allowance,
            stop: Arc::default(),
            shared: Arc::new(Shared {
                listeners,
                registry,
                lifecycle: Lifecycle::new(),
                has_peers,
                client_left: Condvar::new(),
                state_changed: Condvar::new(),
            }),
        })
    }

    /// Has the server write the node's log to a data directory, from which the node has recovered.
    #[must_use]
    pub fn writing_to(mut self, disk: Arc<Disk>) -> Server {
        self.disk = Some(disk);
        self
    }

    /// The first address at which the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs()[0]
    }

    /// Every address at which the server listens, in the resolver's order; at least one.
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

    /// A handle that transfers leadership from this server's node to a follower.
    #[must_use]
    pub fn transferrer(&self) -> Transferrer {
        let (node, peers) = (Arc::clone(&self.node), Arc::clone(&self.peers));
        Transferrer::new(node, peers, Arc::clone(&self.stop))
    }

    /// Serves clients until [`Stopper::stop`] is called, then lets requests in flight finish for 5 seconds at most, and
    /// a node with peers synchronize with them; [`STOP_MAX`] bounds it all. Every thread that it started is joined when
    /// it returns.
    ///
    /// # Errors
    ///
    /// When a thread that the server needs cannot be started.
    pub fn run(self) -> io::Result<Ending> {
        self.run_until_stopped()
    }

    fn run_until_stopped(&self) -> io::Result<Ending> {
        let (housekeeper, maintenance) = Housekeeper::new(self.allowance.refused);
        let log_writing = self.log_writing();
        let write = log_writing
            .as_ref()
            .map(|writing| || writing.write_in_place());
        let write = write.as_ref().map(|write| write as &(dyn Fn() + Sync));
        let pollers = pollers(self.node.awaited(), write)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot use epoll: {error}")))?;
        let (ending, failure) = (Mutex::new(Ending::Kept), Mutex::new(None));
        thread::scope(|scope| {
            // Moved here, so that it is dropped before the scope joins the threads: housekeeping ends once every
            // handle is gone.
            let housekeeper = housekeeper;
            let node = &self.node;
            start(scope, "housekeeping", move || maintenance.run(node))?;
            let started = self.start_others(scope, log_writing.as_ref(), &ending, &failure);
            match started {
                Ok(()) => Acceptor::new(self, scope, housekeeper, &pollers).run(),
                Err(_) => self.shared.advance(Event::StartFailed),
            }
            self.close();
            started
        })?;
        match failure.into_inner() {
            None => Ok(ending.into_inner()),
            Some(error) => Err(io::Error::other(error)),
        }
    }

    /// The writing of the log, where the node has a disk.
    fn log_writing(&self) -> Option<LogWriting<'_>> {
        let (disk, engine) = (self.disk.as_ref()?, self.node.engine());
        Some(LogWriting::new(disk, engine, engine.log()?))
    }

    /// The node and its peers.
    fn replica(&self) -> Replica<'_> {
        Replica {
            node: &self.node,
            peers: &self.peers,
        }
    }

    /// Starts the threads of the log, its disk and replication, the one that removes expired entries, and for a node
    /// with peers the one that synchronizes with them at a stop.
    ///
    /// The one that keeps the log is first: without it, those of the disk would wait for the end of the log without
    /// limit. Those of replication come behind all that a leader needs, since a node without peers leads at once.
    fn start_others<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        log_writing: Option<&'scope LogWriting<'_>>,
        ending: &'scope Mutex<Ending>,
        failure: &'scope Mutex<Option<StorageError>>,
    ) -> io::Result<()> {
        let log = self.node.engine().log();
        if let (Some(disk), Some(writing), Some(log)) = (&self.disk, log_writing, log) {
            start(scope, "log-writer", || {
                self.write_log(writing, log, failure)
            })?;
            let engine = self.node.engine();
            let started = start(scope, "sync", || disk.sync(log));
            let started = started
                .and_then(|()| start(scope, "snapshot", || disk.write_snapshots(engine, log)));
            if started.is_err() {
                disk.expect_no_snapshot();
            }
            started?;
        } else if let Some(log) = log {
            start(scope, "replication", || log.keep())?;
        }
        start(scope, "expiry", || expiry::run(&self.node, &self.stop))?;
        replication::transport::start(scope, self.replica(), &self.stop)
            .map_err(|error| cannot_start("the threads of replication", &error))?;
        if self.shared.has_peers {
            start(scope, "shutdown-sync", || {
                *ending.lock() = self.synchronize();
            })?;
        }
        Ok(())
    }

    /// Writes the log to the disk until it ends. Where that fails, the node ends.
    fn write_log(
        &self,
        writing: &LogWriting<'_>,
        log: &Log,
        failure: &Mutex<Option<StorageError>>,
    ) {
        let Err(error) = writing.run() else {
            return;
        };
        if error.is_full() {
            error!("{error}; this node ends without writes that it has not acknowledged");
        } else {
            error!("{error}; this node ends, since it cannot tell what its disk has");
        }
        *failure.lock() = Some(error);
        // No answer is sent for a record that may be lost.
        self.node.give_up_positions();
        self.stopper().stop();
        // Readers of the log go on up to its end.
        log.keep();
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
    io::Error::other(text)
}

/// A poller for every two cores. Each has one polling thread; clients, the network stack and the node's other threads
/// need cores too.
fn pollers<'a, C: Polled>(
    watermark: Option<(&'a Watermarks, Mark)>,
    write: Option<&'a (dyn Fn() + Sync)>,
) -> io::Result<Vec<Poller<'a, C>>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (0..cores.div_ceil(2))
        .map(|_| Poller::new(SWEEP_INTERVAL, watermark, write))
        .collect()
}
