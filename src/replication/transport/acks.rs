//! Sends the acknowledgements of a follower.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::replication::stream::acks_out::{AckTurn, AcksOut};

/// Wakes the thread that acknowledges.
#[derive(Default)]
pub(super) struct AckSignal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    /// Something was received since the thread last looked.
    has_news: bool,
    is_over: bool,
}

impl AckSignal {
    /// Something was received.
    pub(super) fn notify(&self) {
        self.state.lock().has_news = true;
        self.changed.notify_all();
    }

    /// Ends [`send`](Self::send).
    pub(super) fn end(&self) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Sends each ACK when it is due, until [`end`](Self::end) or until the connection fails.
    pub(super) fn send(&self, acks: &AcksOut, mut stream: &TcpStream) {
        let mut out = Vec::new();
        loop {
            let now = Instant::now();
            match acks.next(now) {
                AckTurn::Send(ack) => {
                    out.clear();
                    // The receiving thread notices a connection that has failed.
                    if ack.encode(&mut out).is_err() || stream.write_all(&out).is_err() {
                        return;
                    }
                }
                AckTurn::NotBefore(time) => thread::sleep(time - now),
                AckTurn::OnChange(at_latest) => self.wait(at_latest),
            }
            if self.state.lock().is_over {
                return;
            }
        }
    }

    /// Waits until something is received, or for the time or the end.
    fn wait(&self, at_latest: Option<Instant>) {
        let mut state = self.state.lock();
        while !state.has_news && !state.is_over {
            match at_latest {
                None => self.changed.wait(&mut state),
                Some(time) if self.changed.wait_until(&mut state, time).timed_out() => break,
                Some(_) => {}
            }
        }
        state.has_news = false;
    }
}
