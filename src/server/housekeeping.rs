//! What has to be done later, by one thread for all connections: draining refused sockets, and giving memory back.
//!
//! Closing a socket with unread input resets the connection, and the reset can overtake the answer. So the socket of a
//! client that was refused first has its writing side shut down, which tells the client that this was all, and is then
//! read until the client has closed, for a bounded time. A refused client so costs neither a thread nor one of the
//! `max_connections`.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use log::debug;

use super::registry::Peer;
use super::system;

/// Sockets held at the most; beyond it the oldest is closed, whatever its client still sends.
pub(super) const SOCKETS_MAX: usize = 1_024;

/// Chores that wait for the thread at the most.
const QUEUE_MAX: usize = 1_024;

/// How long a socket is held while its client goes on sending.
const HOLD: Duration = Duration::from_secs(30);

/// How long a socket is held while its client says nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// How long the sockets that are left are held once the server stops.
const HOLD_AT_STOP: Duration = Duration::from_millis(200);

/// Between two looks at the sockets: while bytes come, and while none do.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// From the first connection that gave memory back to when the allocator is asked to; others join in meanwhile.
const TRIM_AFTER: Duration = Duration::from_secs(1);

enum Chore {
    Drain(Arc<Peer>),
    Trim,
}

/// Where chores are handed in. The thread ends once every handle is gone.
#[derive(Clone, Debug)]
pub(super) struct Housekeeper {
    chores: SyncSender<Chore>,
}

impl Housekeeper {
    /// A handle, and what the thread has to [`run`](Chores::run).
    pub(super) fn new() -> (Housekeeper, Chores) {
        let (chores, incoming) = sync_channel(QUEUE_MAX);
        (Housekeeper { chores }, Chores { incoming })
    }

    /// Has a socket drained and closed; closes it at once where too many are waiting for that.
    pub(super) fn drain(&self, peer: Arc<Peer>) {
        if self.chores.try_send(Chore::Drain(peer)).is_err() {
            debug!("too many refused clients at once; closing one without draining it");
        }
    }

    /// Has freed memory given back to the system before long.
    pub(super) fn trim(&self) {
        // Where the queue is full, others have asked.
        let _ = self.chores.try_send(Chore::Trim);
    }
}

/// The receiving end.
pub(super) struct Chores {
    incoming: Receiver<Chore>,
}

struct Held {
    peer: Arc<Peer>,
    until: Instant,
    heard: Instant,
}

impl Chores {
    /// Does what is asked until every handle is gone.
    pub(super) fn run(&self) {
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut scratch = vec![0; 64 << 10];
        let mut pause = PAUSE.1;
        let mut trim_at: Option<Instant> = None;
        let mut stop_at: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if stop_at.is_some_and(|at| at <= now || held.is_empty()) {
                return;
            }
            let sweep_in = (!held.is_empty()).then_some(pause);
            let trim_in = trim_at.map(|at| at.saturating_duration_since(now));
            let wait = match (sweep_in, trim_in) {
                (Some(sweep), Some(trim)) => Some(sweep.min(trim)),
                (some, None) | (None, some) => some,
            };
            let first = match wait {
                _ if stop_at.is_some() => {
                    std::thread::sleep(pause);
                    Err(RecvTimeoutError::Timeout)
                }
                None => self.incoming.recv().map_err(RecvTimeoutError::from),
                Some(wait) => self.incoming.recv_timeout(wait),
            };
            let now = Instant::now();
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                stop_at = Some(now + HOLD_AT_STOP);
            }
            // All that have come, before the sockets are looked at again: a rush must not wait for that each time.
            for chore in first
                .into_iter()
                .chain(self.incoming.try_iter().take(QUEUE_MAX))
            {
                match chore {
                    Chore::Trim => {
                        trim_at.get_or_insert(now + TRIM_AFTER);
                    }
                    Chore::Drain(peer) => {
                        // Where either fails the client is gone, which the first read will show.
                        let _ = peer.stream.shutdown(Shutdown::Write);
                        let _ = peer.stream.set_nonblocking(true);
                        if held.len() >= SOCKETS_MAX {
                            held.pop_front();
                        }
                        held.push_back(Held {
                            peer,
                            until: now + HOLD,
                            heard: now,
                        });
                    }
                }
            }
            let mut came = false;
            held.retain_mut(|held| {
                let (gone, bytes) = drain(&held.peer.stream, &mut scratch);
                if bytes {
                    held.heard = now;
                    came = true;
                }
                !gone && now < held.until && now < held.heard + SILENCE
            });
            pause = if came { PAUSE.0 } else { PAUSE.1 };
            if trim_at.is_some_and(|at| at <= now) {
                trim_at = None;
                system::trim_memory();
            }
        }
    }
}

/// Reads what is there, up to a few buffers so that one client cannot keep the others waiting. Returns whether the
/// client is gone, and whether anything came.
fn drain(mut stream: &TcpStream, scratch: &mut [u8]) -> (bool, bool) {
    let mut came = false;
    for _ in 0..16 {
        match stream.read(scratch) {
            Ok(0) => return (true, came),
            Ok(_) => came = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (error.kind() != ErrorKind::WouldBlock, came),
        }
    }
    (false, came)
}
