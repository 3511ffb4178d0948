//! The wait of a SYNC, on the connection's own thread.
//!
//! The thread sleeps until the log wakes it, the request's time is over, or the next look at the stop and at the client
//! is due. It holds no lock but that of its own connection, so no other client waits with it.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lifecycle::StopSignal;
use crate::log::{Position, Wake};
use crate::node::{Awaited, Node, Reply, Synced};

/// Interval at which a waiting thread looks whether the server stops, and whether its client has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The answer where the server stops.
const STOPS: &str = "this node is stopping; ask another one";

/// A SYNC that waits.
pub(super) struct SyncWait<'a> {
    pub(super) node: &'a Node,
    /// The state that it waits for.
    pub(super) awaited: Awaited,
    /// How long it may wait.
    pub(super) timeout: Duration,
    /// Says that the client is to leave.
    pub(super) stop: StopSignal<'a>,
}

impl SyncWait<'_> {
    /// Waits, and returns the answer and the position that the answer itself waits for.
    ///
    /// # Errors
    ///
    /// Where the client at `socket` has reset its connection.
    pub(super) fn run(&self, socket: impl AsFd) -> io::Result<(Reply, Position)> {
        let deadline = Instant::now() + self.timeout;
        let thread = thread::current();
        let wake: Wake = Arc::new(move || thread.unpark());
        loop {
            // Before the look at the data set, so that no change is missed in between.
            let _wait = self.node.await_sync(self.awaited, Arc::clone(&wake));
            let too_late = match self.node.sync_again(self.awaited, self.timeout) {
                Synced::Done(reply, position) => return Ok((reply, position)),
                Synced::NotYet { reply, .. } => reply,
            };
            if self.stop.is_raised() {
                let reply = Reply::Loading(Arc::from(STOPS));
                return Ok((reply, Position::default()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok((too_late, Position::default()));
            }
            thread::park_timeout(left.min(LOOK_INTERVAL));
            if has_reset(&socket)? {
                return Err(ErrorKind::ConnectionReset.into());
            }
        }
    }
}

/// Whether the client has reset the connection, or both sides of its socket were shut down. A client that has only shut
/// down its writing side waits for its answer.
fn has_reset(socket: &impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP))
}
