//! The stop of a server, in the states of [`super::lifecycle`].
//!
//! 1. The reading side of every client's socket is shut down, except where a request has begun to arrive. Input that
//!    the system has received can still be read, so requests in it are answered.
//! 2. `Draining`: clients have [`STOP_GRACE`] to finish; the rest is cut off. Then the node takes no more writes. A
//!    node without peers does this in `Closing`.
//! 3. `Synchronizing`: clients are admitted again, to read and to follow, until another node holds the data.
//! 4. `Closing`: the port is closed, and the log ends. Clients and streams have [`STOP_GRACE`] to take what they are
//!    being sent. Clients that were admitted in `Synchronizing` have no write under way, so none of their requests that
//!    has not arrived whole is waited for. A node with a data directory writes the rest of its log meanwhile, and its
//!    last snapshot.
//!
//! So each client has one grace period: in 2 if it came before the stop, else in 4.

use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use super::disk::LAST_SNAPSHOT_MAX;
use super::lifecycle::{Event, State};
use super::registry::{Activity, Peer};
use super::{Server, Shared};
use crate::node::Node;
use crate::replication::core::report::Stopping;
use crate::replication::core::shutdown::{PEER_TIMEOUT, SENDING_TIMEOUT};
use crate::replication::{Ending, transport};

/// How long clients are waited for at a stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long clients have, of that, to take answers whose wait for a position the stop has ended.
const LOST_ANSWERS_GRACE: Duration = Duration::from_secs(1);

/// Longest time that a stop takes: for clients of before it, for the synchronization with peers, and for clients and
/// streams that came during that. A service manager has to wait longer before it kills the process. The last snapshot
/// of a node with a data directory is within it, since such a node needs no peer that holds its data; the time of the
/// last syncs of its disk is not.
pub const STOP_MAX: Duration = STOP_GRACE.saturating_mul(2).saturating_add(SENDING_TIMEOUT);

const _: () = assert!(
    STOP_GRACE.as_secs() + PEER_TIMEOUT.as_secs() + LAST_SNAPSHOT_MAX.as_secs()
        <= STOP_MAX.as_secs()
);

/// Pause between two checks whether a client's system has acknowledged the answers.
const TAKEN_PAUSE: Duration = Duration::from_millis(2);

/// Stops a [`Server`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    pub(super) shared: Arc<Shared>,
}

impl Stopper {
    /// Has the server finish the requests that have begun, accept no more clients, and end; a node with peers first
    /// synchronizes its data with them. Returns at once; may be called any number of times.
    pub fn stop(&self) {
        let has_peers = self.shared.has_peers;
        self.shared.advance(Event::StopRequested { has_peers });
    }
}

impl Shared {
    /// Changes the state of the lifecycle, and carries out what the new state asks for.
    pub(super) fn advance(&self, event: Event) {
        let clients = self.registry.lock();
        let Some((left, entered)) = self.lifecycle.advance(event) else {
            return;
        };
        if entered == State::Closing {
            // Wakes the accept thread.
            self.listeners.shut_down();
        }
        let spares_receiving = left == State::Running;
        for peer in clients.peers() {
            let is_spared = match peer.activity() {
                Activity::BetweenRequests => false,
                Activity::Receiving => spares_receiving,
                Activity::Following | Activity::Watching => true,
            };
            if !is_spared {
                // A blocked read returns. A spared client's thread does this once the request is whole.
                peer.stream.shut_down(Shutdown::Read);
            }
        }
        drop(clients);
        self.state_changed.notify_all();
    }

    /// Waits until all clients with such an activity have left; cuts off those that have not after [`STOP_GRACE`]. A
    /// little earlier it ends the wait of answers for positions that are not reached by then.
    fn wait_for_clients(&self, node: &Node, is_meant: impl Fn(Activity) -> bool) {
        let mut deadline = Instant::now() + STOP_GRACE;
        let mut may_wait_for_positions = node.awaited().is_some();
        if may_wait_for_positions {
            deadline -= LOST_ANSWERS_GRACE;
        }
        let is_meant = |peer: &Peer| is_meant(peer.activity());
        let mut clients = self.registry.lock();
        while clients.peers().any(|peer| is_meant(peer)) {
            let wait = self.client_left.wait_until(&mut clients, deadline);
            if wait.timed_out() && std::mem::take(&mut may_wait_for_positions) {
                node.give_up_positions();
                deadline += LOST_ANSWERS_GRACE;
            } else if wait.timed_out() {
                let count = clients.cut(is_meant);
                if count > 0 {
                    warn!("cutting off clients whose requests did not finish in time: {count}");
                }
                return;
            }
        }
    }
}

impl Server {
    /// Carries out the stop of a node with peers, once it is requested, until the server is to close.
    pub(super) fn synchronize(&self) -> Ending {
        let shared = &self.shared;
        let mut clients = shared.registry.lock();
        while shared.lifecycle.state() == State::Running {
            shared.state_changed.wait(&mut clients);
        }
        drop(clients);
        // From now on the node does not begin to lead.
        self.peers.set_stopping(Stopping::Waiting);
        shared.wait_for_clients(&self.node, |activity| !activity.is_stream());
        let took_writes = self.node.end_writes();
        shared.advance(Event::WritesEnded);
        let ending = transport::shutdown::run(self.replica(), &self.stop, took_writes);
        shared.advance(Event::Synchronized);
        ending
    }

    /// Ends the node's threads and waits for the clients that are left. The server accepts none any more.
    pub(super) fn close(&self) {
        self.stop.stop();
        if !self.shared.has_peers {
            // A write that is executed has to get into the log, or its answer would wait for a position in vain.
            let shared = &self.shared;
            shared.wait_for_clients(&self.node, |activity| !activity.is_stream());
            self.node.end_writes();
        }
        // Writes have ended, so followers have everything once they have all that is in the log.
        self.node.engine().end_log();
        self.shared.wait_for_clients(&self.node, |_| true);
    }
}

/// Waits until the client's system has acknowledged all that was written. The stop has shut down the reading side, so
/// anything that the client sends after the socket is closed resets the connection, and answers on their way would be
/// lost.
pub(super) fn wait_until_taken(peer: &Peer) {
    let is_waiting = || {
        peer.stream
            .unacknowledged_bytes()
            .is_ok_and(|count| count > 0)
    };
    while is_waiting() && !peer.is_cut() {
        thread::sleep(TAKEN_PAUSE);
    }
}
