//! Clients that came when there was no room, until their first request shows whether they may use the reserve.
//!
//! They have no thread, and hold no place that others need: FOLLOW or STATUS, whole within [`FIRST_WITHIN`], lets them
//! in; anything else, or silence, gets them the ERROR of the limit.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Peer;
use super::transport::Mode;
use crate::wire::request::{self, Limits, Parsed};
use crate::wire::{Opcode, Request};

/// How long a client has for its first request.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Clients that wait at the most, or fewer where descriptors are few. Beyond it the oldest is told of the limit,
/// however much time it has left.
pub(super) const WAITING_MAX: usize = 256;

/// Longest first request in bytes: a FOLLOW with the longest names has 161.
const FIRST_BYTES_MAX: usize = 256;

/// First bytes of what lets in.
const MAY_BEGIN: [u8; 2] = [Opcode::Status as u8, Opcode::Follow as u8];

/// A client that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: u64,
    pub(super) peer: Arc<Peer>,
    pub(super) addr: SocketAddr,
    /// What came.
    pub(super) first: Vec<u8>,
    until: Instant,
}

/// What is to become of a client.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It has asked FOLLOW or STATUS.
    LetIn,
    TurnAway,
    /// It has left.
    Gone,
    Wait,
}

/// The clients that wait, in the order in which they came.
#[derive(Debug)]
pub(super) struct Door {
    waiting: VecDeque<Waiting>,
    waiting_max: usize,
}

impl Door {
    /// A door at which at most so many wait.
    pub(super) const fn new(waiting_max: usize) -> Door {
        Door {
            waiting: VecDeque::new(),
            waiting_max,
        }
    }

    /// Has a client wait. Gives the one that has to go for it.
    pub(super) fn push(&mut self, id: u64, peer: Arc<Peer>, addr: SocketAddr) -> Option<Waiting> {
        self.waiting.push_back(Waiting {
            id,
            peer,
            addr,
            first: Vec::new(),
            until: Instant::now() + FIRST_WITHIN,
        });
        (self.waiting.len() > self.waiting_max)
            .then(|| self.waiting.pop_front())
            .flatten()
    }

    /// The sockets to be waited for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting.iter().map(|client| client.peer.stream.as_fd())
    }

    /// When the next one's time is over.
    pub(super) fn until(&self) -> Option<Instant> {
        self.waiting.front().map(|client| client.until)
    }

    /// Reads from those that `are_ready`, in the order of [`sockets`](Self::sockets). Gives those that are to be let
    /// in, and those that are to be turned away.
    pub(super) fn look(&mut self, are_ready: &[bool]) -> (Vec<Waiting>, Vec<Waiting>) {
        let (mut let_in, mut turned_away) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let mut are_ready = are_ready.iter();
        for mut client in std::mem::take(&mut self.waiting) {
            let is_ready = are_ready.next().is_some_and(|is_ready| *is_ready);
            let verdict = if is_ready {
                client.read()
            } else {
                Verdict::Wait
            };
            match verdict {
                Verdict::LetIn => let_in.push(client),
                Verdict::TurnAway => turned_away.push(client),
                Verdict::Gone => {}
                Verdict::Wait if client.until <= now => turned_away.push(client),
                Verdict::Wait => self.waiting.push_back(client),
            }
        }
        (let_in, turned_away)
    }
}

impl Waiting {
    /// Reads what is there.
    fn read(&mut self) -> Verdict {
        let mut bytes = [0; FIRST_BYTES_MAX];
        let room = FIRST_BYTES_MAX - self.first.len();
        match self.peer.stream.receive(&mut bytes[..room], Mode::Now) {
            // It may be reading still.
            Ok(0) => Verdict::TurnAway,
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

/// Judges a client by its first bytes.
fn judge(first: &[u8]) -> Verdict {
    let limits = Limits::default();
    match request::parse(first, &limits) {
        Ok(Parsed::Whole(frame)) => match frame.request() {
            Request::Follow { .. } | Request::Status => Verdict::LetIn,
            _ => Verdict::TurnAway,
        },
        Ok(Parsed::Incomplete { needed }) => {
            let may_be = first.first().is_none_or(|first| MAY_BEGIN.contains(first));
            if may_be && needed <= FIRST_BYTES_MAX {
                Verdict::Wait
            } else {
                Verdict::TurnAway
            }
        }
        Err(_) => Verdict::TurnAway,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_follow_or_status_lets_in_and_the_first_wrong_byte_turns_away() {
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
            assert_eq!(judge(&bytes), Verdict::LetIn);
            // Another one behind it is for later.
            assert_eq!(judge(&[&bytes[..], &bytes].concat()), Verdict::LetIn);
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
            assert_eq!(judge(&bytes), Verdict::TurnAway, "{bytes:?}");
            let first = judge(&bytes[..1]);
            let may_be = matches!(bytes[0], 0x40 | 0x60);
            assert_eq!(first == Verdict::Wait, may_be, "{bytes:?}");
        }
    }
}
