//! The housekeeping thread: drains the sockets of refused clients, and returns freed memory to the system.
//!
//! Closing a socket with unread input resets the connection, and the reset can overtake the last answer. So the writing
//! side of a refused client's socket is shut down first, which tells the client that no more comes, and the socket is
//! read until the client has closed, for a bounded time. A refused client costs neither a thread nor one of
//! `max_connections` meanwhile.
//!
//! The allocator keeps most freed memory unless it is told to return it ([`system::trim_memory`]). It is told so when a
//! connection that has freed buffers asks for it, and when a check, made once a second, finds that the node holds much
//! less than before. The check covers every cause: writes of clients or of the leader, a data set that is discarded,
//! the end of the log.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;

use super::registry::Peer;
use super::system;
use super::transport::{Mode, Transport};
use crate::node::Node;

/// Most sockets that are drained at a time. Beyond it the oldest is closed, whatever its client still sends.
pub(super) const SOCKETS_MAX: usize = 1_024;

/// Most tasks that are queued.
const QUEUE_MAX: usize = 1_024;

/// How long a socket is drained while its client goes on sending.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long a socket is drained while its client sends nothing.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// How long the remaining sockets are drained once the server has stopped.
const DRAIN_AT_STOP: Duration = Duration::from_millis(60);

/// Pause between two reads of the sockets: where the last ones gave bytes, and where they did not.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Interval of the check how much the node holds.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes that must have been freed, together with a sixteenth of what was held, before the allocator is told to return
/// them.
const FREED_MIN: u64 = 4 << 20;

/// Time between the first request of a connection to return memory and the call of the allocator, which serves all
/// requests that come meanwhile.
const TRIM_AFTER: Duration = Duration::from_secs(1);

enum Task {
    Drain(Arc<Peer>),
    Trim,
}

/// Queues tasks for the thread. That ends once every handle is dropped.
#[derive(Clone, Debug)]
pub(super) struct Housekeeper {
    tasks: SyncSender<Task>,
}

impl Housekeeper {
    /// A handle, and the body of the thread, which drains at most `sockets_max` sockets at a time.
    pub(super) fn new(sockets_max: usize) -> (Housekeeper, Maintenance) {
        let (tasks, incoming) = sync_channel(QUEUE_MAX);
        let maintenance = Maintenance {
            incoming,
            draining: Draining {
                sockets: VecDeque::new(),
                len_max: sockets_max,
                scratch: Vec::new(),
                pause: PAUSE.1,
            },
            trim_at: None,
        };
        (Housekeeper { tasks }, maintenance)
    }

    /// Has a socket drained and closed. Closes it at once where too many tasks are queued.
    pub(super) fn drain(&self, peer: Arc<Peer>) {
        if self.tasks.try_send(Task::Drain(peer)).is_err() {
            debug!("too many refused clients at once; closing one without draining it");
        }
    }

    /// Has freed memory returned to the system soon.
    pub(super) fn trim(&self) {
        // Where the queue is full, others have asked.
        let _ = self.tasks.try_send(Task::Trim);
    }
}

/// The body of the thread.
pub(super) struct Maintenance {
    incoming: Receiver<Task>,
    draining: Draining,
    /// When to return memory that connections have freed.
    trim_at: Option<Instant>,
}

/// Sockets that are drained, the oldest first.
struct Draining {
    sockets: VecDeque<DrainedSocket>,
    len_max: usize,
    scratch: Vec<u8>,
    /// Until the next read.
    pause: Duration,
}

struct DrainedSocket {
    peer: Arc<Peer>,
    deadline: Instant,
    /// When the last bytes came.
    heard: Instant,
}

/// How many bytes the node has held.
#[derive(Debug, Default)]
struct Holdings {
    /// Most since memory was last returned.
    peak: u64,
    /// At the last check.
    last: u64,
}

impl Holdings {
    /// Notes how much is held now. Returns whether memory is to be returned: much was freed since this was last true,
    /// and either freeing has ended, or half is free. While an allocator returns memory others wait for its locks, so
    /// it is not asked all along.
    fn is_trim_due(&mut self, held: u64) -> bool {
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

/// Bytes of the node's data and log.
fn held_bytes(node: &Node) -> u64 {
    let log = node.engine().log().map_or(0, |log| log.kept_bytes());
    node.engine().memory_bytes().saturating_add(log)
}

impl Maintenance {
    /// Carries out tasks until every handle is dropped, and checks once a second how much `node` holds.
    pub(super) fn run(mut self, node: &Node) {
        let mut holdings = Holdings::default();
        let mut check_at = Instant::now() + CHECK_INTERVAL;
        loop {
            let wake_at = self.trim_at.map_or(check_at, |at| at.min(check_at));
            let received = self
                .incoming
                .recv_timeout(self.draining.time_until(wake_at));
            let now = Instant::now();
            match received {
                Ok(task) => self.start(task, now),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.draining.read(now);
            let mut is_trim_due = self.trim_at.is_some_and(|at| at <= now);
            if check_at <= now {
                check_at = now + CHECK_INTERVAL;
                is_trim_due |= holdings.is_trim_due(held_bytes(node));
            }
            if is_trim_due {
                self.trim_at = None;
                system::trim_memory();
                let micros = now.elapsed().as_micros();
                debug!("gave memory back to the system in {micros} us");
            }
        }
        self.draining.finish();
    }

    /// Starts a task, and all others that have come: a rush of them must not wait for the sockets each time.
    fn start(&mut self, first: Task, now: Instant) {
        let others = self.incoming.try_iter().take(QUEUE_MAX);
        for task in std::iter::once(first).chain(others) {
            match task {
                Task::Trim => {
                    self.trim_at.get_or_insert(now + TRIM_AFTER);
                }
                Task::Drain(peer) => self.draining.push(peer, now),
            }
        }
    }
}

impl Draining {
    fn push(&mut self, peer: Arc<Peer>, now: Instant) {
        peer.stream.shut_down(Shutdown::Write);
        if self.sockets.len() >= self.len_max {
            self.sockets.pop_front();
        }
        self.sockets.push_back(DrainedSocket {
            peer,
            deadline: now + DRAIN_MAX,
            heard: now,
        });
    }

    /// How long the thread may wait: until `wake_at`, or the next read of the sockets.
    fn time_until(&self, wake_at: Instant) -> Duration {
        let wait = wake_at.saturating_duration_since(Instant::now());
        if self.sockets.is_empty() {
            wait
        } else {
            wait.min(self.pause)
        }
    }

    /// Reads from every socket, and closes those whose client has closed or whose time is over.
    fn read(&mut self, now: Instant) {
        if self.sockets.is_empty() {
            return;
        }
        self.scratch.resize(64 << 10, 0);
        let mut came = false;
        self.sockets.retain_mut(|socket| {
            let (is_over, bytes_came) = drain(&socket.peer.stream, &mut self.scratch);
            if bytes_came {
                socket.heard = now;
                came = true;
            }
            !is_over && now < socket.deadline && now < socket.heard + SILENCE_MAX
        });
        self.pause = if came { PAUSE.0 } else { PAUSE.1 };
    }

    /// Drains the remaining sockets of a server that has stopped, for [`DRAIN_AT_STOP`] at most.
    fn finish(&mut self) {
        let end = Instant::now() + DRAIN_AT_STOP;
        loop {
            let now = Instant::now();
            self.read(now);
            if self.sockets.is_empty() || now >= end {
                return;
            }
            thread::sleep(self.pause);
        }
    }
}

/// Reads what has come, up to a few buffers, so that one client cannot keep the others waiting. Returns whether the
/// stream is over, and whether any bytes came.
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
        let mut look = |held: u64| holdings.is_trim_due(held * MIB);
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
        // Data that grows again has freed nothing.
        assert!(!look(2_000));
        assert!(look(0));
        assert!(!look(0));
        // Of little it has to be more than a sixteenth.
        assert!(!look(5));
        assert!(!look(2));
        assert!(look(1));
    }
}
