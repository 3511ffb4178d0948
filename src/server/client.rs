//! The thread of one client, from its start to the end of its connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::debug;
use socket2::{SockRef, TcpKeepalive};

use super::connection::{self, Connection, Context, Timeouts};
use super::end::End;
use super::housekeeping::Housekeeper;
use super::lifecycle::State;
use super::poller::Poller;
use super::registry::Peer;
use super::{Server, shutdown};
use crate::wire::request::Limits;

/// Stack of a connection's thread, in bytes. Only pages that are touched cost memory.
const STACK_BYTES: usize = 128 << 10;

/// How long an idle connection keeps the memory that its buffers grew to.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// Time without a byte from a client after which the system probes whether its machine is still there, so that a
/// machine that vanished does not keep its connections. As in Redis (`tcp-keepalive 300`).
const KEEPALIVE: Duration = Duration::from_secs(300);

/// A client that was admitted.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) peer: Arc<Peer>,
    pub(super) addr: SocketAddr,
    /// State of the server when it admitted the client.
    pub(super) admitted_in: State,
    /// Bytes of the client that were read before it was admitted.
    pub(super) first: Vec<u8>,
}

impl Client {
    /// Has the system probe whether the client is still there, where it is silent for long.
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
    /// Starts a client's thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread left.
    pub(super) fn spawn<'scope, 'a: 'scope>(
        &'a self,
        scope: &'scope thread::Scope<'scope, '_>,
        poller: &'scope Poller<'a, Connection<'a>>,
        client: Client,
        housekeeper: Housekeeper,
    ) -> io::Result<()> {
        let id = client.id;
        let body = move || {
            let end = self.serve(&client, poller, &housekeeper);
            self.finish(client, end, &housekeeper);
        };
        thread::Builder::new()
            .name(format!("client-{id}"))
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map(drop)
    }

    /// Serves a client until its connection ends. Apart from [`finish`](Self::finish), so that the stack of an idle
    /// connection has no room for that.
    fn serve<'a>(
        &'a self,
        client: &Client,
        poller: &Poller<'a, Connection<'a>>,
        housekeeper: &Housekeeper,
    ) -> End {
        client.keep_alive();
        self.node.count_connection(true);
        let context = Context {
            peer: Arc::clone(&client.peer),
            replica: self.replica(),
            limits: Limits {
                value_len_max: self.limits.max_value_bytes,
            },
            timeouts: Timeouts {
                request: self.limits.request_timeout,
                idle: self.limits.idle_timeout,
                release: RELEASE_AFTER,
            },
            stop: self.shared.lifecycle.signal(client.admitted_in),
            registry: &self.shared.registry,
            housekeeper: housekeeper.clone(),
        };
        connection::serve(context, &client.first, poller)
    }

    /// Releases the place of a client whose connection has ended, and logs how it ended.
    fn finish(&self, client: Client, end: End, housekeeper: &Housekeeper) {
        let Client { id, peer, addr, .. } = client;
        let is_watcher = matches!(end, End::Watched);
        if !is_watcher && self.shared.lifecycle.state() != State::Running {
            shutdown::wait_until_taken(&peer);
        }
        self.node.count_connection(false);
        // The place is free before the client can see that its connection is closed.
        self.release(id);
        match end {
            End::Done | End::Followed | End::Watched => {}
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

    /// Removes a client from the registry.
    pub(super) fn release(&self, id: u64) {
        self.shared.registry.release(id);
        self.shared.client_left.notify_all();
    }
}
