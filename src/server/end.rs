//! How connections end, and why they are refused.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::wire::RequestError;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client shut down its side between two requests; every answer is sent.
    Done,
    /// The client shut down its side inside a frame, of which nothing was applied; every answer is sent.
    Truncated {
        /// Bytes of the frame that came.
        len: usize,
        /// Bytes that were needed.
        needed: usize,
    },
    /// The last answer is sent and the client may still be sending: its input has to be drained before the socket is
    /// closed, since closing with unread input resets the connection and the answer would be lost.
    Refused(Refusal),
    /// No request came for the idle timeout.
    Idle,
    /// The client was a follower, and its stream has ended.
    Followed,
    /// The client was a watcher, and its stream has ended, however it did.
    Watched,
    /// The socket failed, or the client took no byte of its answers for the request timeout.
    Failed(io::Error),
}

/// Why a connection was refused; the text of the ERROR that the client was sent.
#[derive(Debug)]
pub(super) enum Refusal {
    Request(RequestError),
    /// A request was not whole in time.
    TooSlow(Duration),
    /// A connection of the reserve sent a request that is not allowed there.
    NoRoom(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Request(error) => error.fmt(f),
            Refusal::TooSlow(limit) => write!(
                f,
                "request not whole after {} ms, the limit",
                limit.as_millis()
            ),
            Refusal::NoRoom(text) => f.write_str(text),
        }
    }
}
