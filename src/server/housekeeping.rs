//! What one thread does for all connections, later: it drains refused sockets, and gives memory back to the system.
//!
//! Closing a socket with unread input resets the connection, and the reset can overtake the answer. So the socket of a
//! client that was refused first has its writing side shut down, which tells the client that this was all, and is then
//! read until the client has closed, for a bounded time. A refused client so costs neither a thread nor one of the
//! `max_connections`.
//!
//! The allocator keeps most of what is freed, unless it is told to give it back ([`system::trim_memory`]). Two things
//! have it told so: a connection that has freed buffers asks for it; and once a second the thread looks at how much the
//! node holds, and acts when that has fallen by much, whatever freed it: writes of clients or of the leader, a data set
//! that is given up, the log's end.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use log::debug;

use super::registry::Peer;
use super::system;
use super::transport::{Mode, Transport};
use crate::node::Node;

/// Sockets held at the most; beyond it the oldest is closed, whatever its client still sends.
pub(super) const SOCKETS_MAX: usize = 1_024;

/// Chores that wait for the thread at the most.
const QUEUE_MAX: usize = 1_024;

/// How long a socket is held while its client goes on sending.
const HOLD: Duration = Duration::from_secs(30);

/// How long a socket is held while its client says nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// How long the sockets that are left are held once the server stops.
const HOLD_AT_STOP: Duration = Duration::from_millis(60);

/// Between two looks at the sockets: while bytes come, and while none do.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Between two looks at how much the node holds.
const LOOK: Duration = Duration::from_secs(1);

/// So much has to be freed, and a sixteenth of what was held, before the allocator is told to give it back.
const FREED_MIN: u64 = 4 << 20;

/// Bytes that an entry takes beside its key and value, about: its header, its place in a table, the allocator's.
const ENTRY_BYTES: u64 = 32;

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
    /// A handle, and what the thread has to [`run`](Chores::run), with at most `sockets_max` sockets held.
    pub(super) fn new(sockets_max: usize) -> (Housekeeper, Chores) {
        let (chores, incoming) = sync_channel(QUEUE_MAX);
        let chores_to_do = Chores {
            incoming,
            sockets_max,
        };
        (Housekeeper { chores }, chores_to_do)
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
    sockets_max: usize,
}

struct Held {
    peer: Arc<Peer>,
    until: Instant,
    heard: Instant,
}

/// What the node has held.
#[derive(Debug, Default)]
struct Holdings {
    /// At the most since memory was last given back.
    peak: u64,
    /// At the last look.
    last: u64,
}

impl Holdings {
    /// Whether memory is to be given back: much has been freed since this was last true, and either no more is being
    /// freed, or it is half already. The allocator takes time for each freed block, and its locks with it.
    fn look(&mut self, held: u64) -> bool {
        let freed = self.peak.saturating_sub(held);
        let is_much = freed >= FREED_MIN && freed >= self.peak / 16;
        let is_falling = self.last.saturating_sub(held) >= FREED_MIN;
        let is_due = is_much && (!is_falling || freed >= self.peak / 2);
        self.last = held;
        if is_due || freed == 0 {
            self.peak = held;
        }
        is_due
    }
}

/// Bytes that the node's data and log take, about.
fn held_bytes(node: &Node) -> u64 {
    let entries = u64::try_from(node.store().len()).unwrap_or(u64::MAX);
    let log = node.log().map_or(0, |log| log.kept_bytes());
    let store = node.store().bytes();
    store
        .saturating_add(entries.saturating_mul(ENTRY_BYTES))
        .saturating_add(log)
}

impl Chores {
    /// Does what is asked until every handle is gone, and looks after the memory of `node`.
    pub(super) fn run(&self, node: &Node) {
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut scratch = vec![0; 64 << 10];
        let mut pause = PAUSE.1;
        let mut trim_at: Option<Instant> = None;
        let mut holdings = Holdings::default();
        let mut look_at = Instant::now() + LOOK;
        let mut stop_at: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if stop_at.is_some_and(|at| at <= now || held.is_empty()) {
                return;
            }
            let sweep_in = (!held.is_empty()).then_some(pause);
            let next_at = trim_at.map_or(look_at, |at| at.min(look_at));
            let next_in = next_at.saturating_duration_since(now);
            let first = if stop_at.is_some() {
                std::thread::sleep(pause);
                Err(RecvTimeoutError::Timeout)
            } else {
                let wait = sweep_in.map_or(next_in, |sweep| sweep.min(next_in));
                self.incoming.recv_timeout(wait)
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
                        peer.stream.shut_down(Shutdown::Write);
                        if held.len() >= self.sockets_max {
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
            let mut is_trim_due = trim_at.is_some_and(|at| at <= now);
            if look_at <= now {
                look_at = now + LOOK;
                is_trim_due |= holdings.look(held_bytes(node));
            }
            // The memory of a node that stops goes with it.
            if is_trim_due && stop_at.is_none() {
                trim_at = None;
                system::trim_memory();
                debug!(
                    "gave memory back to the system in {} us",
                    now.elapsed().as_micros()
                );
            }
        }
    }
}

/// Reads what is there, up to a few buffers so that one client cannot keep the others waiting. Returns whether the
/// client is gone, and whether anything came.
fn drain(stream: &Transport, scratch: &mut [u8]) -> (bool, bool) {
    let mut came = false;
    for _ in 0..16 {
        match stream.receive(scratch, Mode::Now) {
            Ok(0) => return (true, came),
            Ok(_) => came = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (error.kind() != ErrorKind::WouldBlock, came),
        }
    }
    (false, came)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_much_is_freed_and_no_more_is_being_freed() {
        const MIB: u64 = 1 << 20;
        let mut holdings = Holdings::default();
        let mut look = |held: u64| holdings.look(held * MIB);
        for held in [0, 100, 1_600] {
            assert!(!look(held), "{held}");
        }
        // A sixteenth, however slowly, and then a sixteenth of what is left.
        for held in (1_501..1_600).rev() {
            assert!(!look(held), "{held}");
        }
        assert!(look(1_500));
        assert!(!look(1_499));
        // While more and more is freed it is half first.
        assert!(!look(1_300));
        assert!(!look(900));
        assert!(look(700));
        assert!(!look(400));
        assert!(look(398));
        // What grows again has freed nothing.
        assert!(!look(2_000));
        assert!(look(0));
        assert!(!look(0));
        // Of little it has to be more than a sixteenth.
        assert!(!look(5));
        assert!(!look(2));
        assert!(look(1));
    }
}
