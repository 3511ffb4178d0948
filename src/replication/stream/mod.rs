//! Both sides of one replication stream.
//!
//! | file              | what it does                                                             |
//! |-------------------|--------------------------------------------------------------------------|
//! | `accept.rs`       | answers FOLLOW, and registers the follower                               |
//! | `sending.rs`      | the leader side: entries and heartbeats                                  |
//! | `snapshot_out.rs` | the leader side: a snapshot before them                                  |
//! | `acks_in.rs`      | the leader side: acknowledgements of the follower                        |
//! | `following.rs`    | the follower side: FOLLOW, its answer, and one method for each message   |
//! | `snapshot_in.rs`  | the follower side: a snapshot                                            |

pub(crate) mod accept;
pub(super) mod acks_in;
pub(super) mod following;
pub(super) mod sending;
mod snapshot_in;
mod snapshot_out;

use std::io;

/// Why a stream ended, or did not begin.
#[derive(Debug)]
pub(super) enum FollowError {
    Io(io::Error),
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

impl From<io::Error> for FollowError {
    fn from(error: io::Error) -> FollowError {
        FollowError::Io(error)
    }
}
