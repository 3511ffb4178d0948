//! Both sides of one replication stream, as values without sockets, threads or clocks.
//!
//! Bytes go in and come out, and the time is passed in. Both sides read from the log and write to the engine directly.
//! `transport` carries them out on a connection.
//!
//! | file              | what it does                                                           |
//! |-------------------|------------------------------------------------------------------------|
//! | `accept.rs`       | answers FOLLOW, and registers the follower                             |
//! | `sending.rs`      | the leader side: entries and heartbeats                                |
//! | `snapshot_out.rs` | the leader side: a snapshot before them                                |
//! | `acks_in.rs`      | the leader side: acknowledgements of the follower                      |
//! | `link.rs`         | the leader side: the state that its two halves share                   |
//! | `following.rs`    | the follower side: FOLLOW, its answer, and one method for each message |
//! | `snapshot_in.rs`  | the follower side: a snapshot                                          |
//! | `acks_out.rs`     | the follower side: which acknowledgement is due when                   |

pub(crate) mod accept;
pub(crate) mod acks_in;
pub(crate) mod acks_out;
pub(crate) mod following;
pub(crate) mod link;
pub(crate) mod sending;
mod snapshot_in;
mod snapshot_out;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

/// Why the follower side of a stream ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FollowError {
    /// No process listens at the peer's address.
    NoProcess(String),
    /// Nothing came from the peer for the leader timeout, which is given.
    Silent(Duration),
    /// The connection failed.
    Lost(String),
    /// The peer refuses to be followed.
    Rejected(String),
    /// The peer cannot be followed yet: it has no data set, or is sending a snapshot to another follower.
    NotYet(String),
    /// Another node than the expected one answers.
    WrongNode(String),
    /// The stream breaks the protocol, or has ended.
    Protocol(String),
    /// The data set differs from the leader's.
    Diverged(String),
    /// The leader does not know the node's data set. The node keeps it and does not follow.
    KeepsData(String),
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FollowError::Silent(limit) => {
                write!(f, "it said nothing for {} ms", limit.as_millis())
            }
            FollowError::NoProcess(text)
            | FollowError::Lost(text)
            | FollowError::Rejected(text)
            | FollowError::NotYet(text)
            | FollowError::WrongNode(text)
            | FollowError::Protocol(text)
            | FollowError::Diverged(text)
            | FollowError::KeepsData(text) => f.write_str(text),
        }
    }
}
