//! Waits for the synchronization of a node that stops.

use std::time::Instant;

use super::Stop;
use crate::replication::Replica;
use crate::replication::shutdown_sync::{Ending, Next, ShutdownSync};

/// Waits until the node can end. To be called once writes have ended; `took_writes` says that the node accepted them
/// until then.
pub(crate) fn run(replica: Replica<'_>, stop: &Stop, took_writes: bool) -> Ending {
    let mut sync = ShutdownSync::new(replica, took_writes, Instant::now());
    stop.hurry(true);
    loop {
        match sync.next(Instant::now()) {
            Next::Wait(until) => replica.peers.wait_for_progress(until),
            Next::End(ending) => return ending,
        }
    }
}
