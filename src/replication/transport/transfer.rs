//! Transfers leadership on the thread that asks for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Stop;
use crate::node::Node;
use crate::replication::transfer::{Next, Transfer, TransferError};
use crate::replication::{Peers, Replica};

/// Transfers leadership from a node to one of its followers.
#[derive(Clone, Debug)]
pub struct Transferrer {
    node: Arc<Node>,
    peers: Arc<Peers>,
    stop: Arc<Stop>,
}

impl Transferrer {
    pub(crate) const fn new(node: Arc<Node>, peers: Arc<Peers>, stop: Arc<Stop>) -> Transferrer {
        Transferrer { node, peers, stop }
    }

    /// Has the follower `target` lead, and waits until it does, for `timeout` at most. Writes wait meanwhile, and are
    /// then answered NOT_LEADER with the target's address. No acknowledged write is lost.
    ///
    /// # Errors
    ///
    /// Where the node does not lead any more, or still does, as the error says.
    pub fn transfer(&self, target: &str, timeout: Duration) -> Result<(), TransferError> {
        let replica = Replica {
            node: &self.node,
            peers: &self.peers,
        };
        let mut transfer = Transfer::begin(replica, target, Instant::now() + timeout)?;
        loop {
            match transfer.next(Instant::now()) {
                Next::Wait(until) => {
                    self.stop.wake();
                    self.peers.wait_for_progress(until);
                }
                Next::End(result) => return result,
            }
        }
    }
}
