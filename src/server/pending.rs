//! Connections that came when every ordinary place was taken, until their first request shows whether they may use the
//! reserve.
//!
//! They have no thread and hold no place. A connection whose FOLLOW or STATUS is whole within [`FIRST_WITHIN`] is
//! admitted to the reserve; any other is rejected with the ERROR of the limit.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Peer;
use super::transport::Mode;
use crate::wire::Opcode;
use crate::wire::command::Reserve;
use crate::wire::request::{self, Limits, Parsed};

/// How long a client has for its first request.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Most connections that are pending; fewer where descriptors are few. Beyond it the oldest is rejected, however much
/// of its time is left.
pub(super) const PENDING_MAX: usize = 256;

/// Longest first request in bytes: a FOLLOW with the longest names has 161.
const FIRST_BYTES_MAX: usize = 256;

/// A pending connection.
#[derive(Debug)]
pub(super) struct PendingConnection {
    pub(super) id: u64,
    pub(super) peer: Arc<Peer>,
    pub(super) addr: SocketAddr,
    /// Bytes that were read of it.
    pub(super) first: Vec<u8>,
    deadline: Instant,
}

/// Decision about a connection by the bytes that it has sent.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It has asked FOLLOW or STATUS.
    Admit,
    Reject,
    /// Its client has left.
    Gone,
    /// Its bytes are the beginning of a FOLLOW or a STATUS, or there are none.
    Wait,
}

/// Connections that are pending no more.
#[derive(Debug, Default)]
pub(super) struct Decided {
    pub(super) to_admit: Vec<PendingConnection>,
    pub(super) to_reject: Vec<PendingConnection>,
}

/// The pending connections, in the order in which they came.
#[derive(Debug)]
pub(super) struct PendingConnections {
    queue: VecDeque<PendingConnection>,
    len_max: usize,
}

impl PendingConnections {
    /// No connections, and room for `len_max`.
    pub(super) const fn new(len_max: usize) -> PendingConnections {
        PendingConnections {
            queue: VecDeque::new(),
            len_max,
        }
    }

    /// Adds a connection. Returns the oldest one where they are too many.
    pub(super) fn push(
        &mut self,
        id: u64,
        peer: Arc<Peer>,
        addr: SocketAddr,
    ) -> Option<PendingConnection> {
        self.queue.push_back(PendingConnection {
            id,
            peer,
            addr,
            first: Vec::new(),
            deadline: Instant::now() + FIRST_WITHIN,
        });
        (self.queue.len() > self.len_max)
            .then(|| self.queue.pop_front())
            .flatten()
    }

    /// The sockets to poll for input, in order.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queue.iter().map(|client| client.peer.stream.as_fd())
    }

    /// The end of the oldest connection's time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|client| client.deadline)
    }

    /// Reads from the connections that are ready, and removes those that are decided. `are_ready` has an element for
    /// each of [`sockets`](Self::sockets).
    pub(super) fn read(&mut self, are_ready: &[bool]) -> Decided {
        let mut decided = Decided::default();
        let now = Instant::now();
        let mut are_ready = are_ready.iter();
        for mut client in std::mem::take(&mut self.queue) {
            let is_ready = are_ready.next().is_some_and(|is_ready| *is_ready);
            let verdict = if is_ready {
                client.read()
            } else {
                Verdict::Wait
            };
            match verdict {
                Verdict::Admit => decided.to_admit.push(client),
                Verdict::Reject => decided.to_reject.push(client),
                Verdict::Gone => {}
                Verdict::Wait if client.deadline <= now => decided.to_reject.push(client),
                Verdict::Wait => self.queue.push_back(client),
            }
        }
        decided
    }
}

impl PendingConnection {
    /// Reads the bytes that have come, and judges them.
    fn read(&mut self) -> Verdict {
        let mut bytes = [0; FIRST_BYTES_MAX];
        let room = FIRST_BYTES_MAX - self.first.len();
        match self.peer.stream.receive(&mut bytes[..room], Mode::Now) {
            // The end of its stream; it may still read the ERROR.
            Ok(0) => Verdict::Reject,
            Ok(count) => {
                self.first.extend_from_slice(&bytes[..count.min(room)]);
                judge(&self.first)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Verdict::Wait
            }
            Err(_) => Verdict::Gone,
        }
    }
}

/// Judges a connection by its first bytes.
fn judge(first: &[u8]) -> Verdict {
    let is_admitted = |&byte: &u8| {
        let opcode = Opcode::try_from(byte);
        opcode.is_ok_and(|opcode| opcode.spec().reserve == Reserve::Admitted)
    };
    if !first.first().is_none_or(is_admitted) {
        return Verdict::Reject;
    }
    match request::parse(first, &Limits::default()) {
        Ok(Parsed::Whole(_)) => Verdict::Admit,
        Ok(Parsed::Incomplete { needed }) if needed <= FIRST_BYTES_MAX => Verdict::Wait,
        Ok(Parsed::Incomplete { .. }) | Err(_) => Verdict::Reject,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::Request;

    #[test]
    fn a_whole_follow_or_status_is_admitted_and_the_first_wrong_byte_rejects() {
        let encoded = |request: Request<'_>| {
            let mut bytes = Vec::new();
            request.encode(&mut bytes).unwrap();
            bytes
        };
        let names = [b'n'; 64];
        let value = [1; 26 + 64];
        let follow = encoded(Request::Follow {
            key: &names,
            value: &value,
        });
        for bytes in [encoded(Request::Status), follow] {
            for len in 0..bytes.len() {
                assert_eq!(judge(&bytes[..len]), Verdict::Wait, "{len}");
            }
            assert_eq!(judge(&bytes), Verdict::Admit);
            // Another one behind it is for later.
            assert_eq!(judge(&[&bytes[..], &bytes].concat()), Verdict::Admit);
        }
        let others = [
            encoded(Request::Ping),
            encoded(Request::Get { key: b"k" }),
            encoded(Request::Discard),
            b"GET / HTTP/1.1\r\n".to_vec(),
            // A STATUS with a key, and a FOLLOW with too long a value.
            vec![0x40, 0, 1, 0, 0, 0, 0],
            vec![0x60, 0, 64, 0, 0, 1, 0],
        ];
        for bytes in others {
            assert_eq!(judge(&bytes), Verdict::Reject, "{bytes:?}");
            let first = judge(&bytes[..1]);
            let may_be = matches!(bytes[0], 0x40 | 0x60);
            assert_eq!(first == Verdict::Wait, may_be, "{bytes:?}");
        }
    }
}
