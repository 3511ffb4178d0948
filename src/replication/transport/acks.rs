//! Acknowledgements: tells the node that is followed how far this node has applied the log.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::wire::replication::Message;

/// Least time between two acknowledgements, so that a busy stream does not have one for each batch.
const ACK_PAUSE: Duration = Duration::from_millis(1);

/// The state that the receiving thread shares with the thread that acknowledges.
pub(in crate::replication) struct Acks {
    state: Mutex<AckState>,
    changed: Condvar,
}

struct AckState {
    applied_index: u64,
    /// A snapshot is complete. The other side must learn that even where the index is the one acknowledged last.
    is_due: bool,
    is_over: bool,
}

impl Acks {
    /// Of a node that has applied everything up to `applied_index`.
    pub(in crate::replication) const fn new(applied_index: u64) -> Acks {
        Acks {
            state: Mutex::new(AckState {
                applied_index,
                is_due: false,
                is_over: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The node has applied everything up to `index`. `is_due` has that acknowledged even where it was before.
    pub(in crate::replication) fn applied(&self, index: u64, is_due: bool) {
        let mut state = self.state.lock();
        state.applied_index = index;
        state.is_due |= is_due;
        drop(state);
        self.changed.notify_all();
    }

    /// Ends [`send`](Self::send).
    pub(in crate::replication) fn end(&self) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Sends an ACK when the applied index changes, when one is due, and once per `interval`, until [`end`](Self::end)
    /// or until the connection fails.
    pub(in crate::replication) fn send(
        &self,
        mut stream: &TcpStream,
        interval: Duration,
        epoch: u64,
    ) {
        let (mut acknowledged, mut out) = (None, Vec::new());
        loop {
            let deadline = Instant::now() + interval;
            let mut state = self.state.lock();
            while !state.is_over && !state.is_due && acknowledged == Some(state.applied_index) {
                if self.changed.wait_until(&mut state, deadline).timed_out() {
                    break;
                }
            }
            if state.is_over {
                return;
            }
            let applied_index = state.applied_index;
            state.is_due = false;
            drop(state);
            acknowledged = Some(applied_index);
            out.clear();
            let ack = Message::Ack {
                epoch,
                applied_index,
            };
            // The receiving thread notices a connection that has failed.
            if ack.encode(&mut out).is_err() || stream.write_all(&out).is_err() {
                return;
            }
            thread::sleep(ACK_PAUSE);
        }
    }
}
