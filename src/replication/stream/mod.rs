//! Both sides of one replication stream, as values without sockets, threads or clocks.
//!
//! Bytes go in and come out, and the time is passed in. Both sides read from the log and write to the engine directly.
//! `transport` carries them out on a connection.
//!
//! | file              | what it does                                                           |
//! |-------------------|------------------------------------------------------------------------|
//! | `accept.rs`       | answers FOLLOW, and registers the follower                             |
//! | `sending.rs`      | the leader side: entries and heartbeats                                |
//! | `source.rs`       | the leader side: reads of one data set, for followers and watchers     |
//! | `snapshot_out.rs` | the leader side: a snapshot before them                                |
//! | `watching.rs`     | answers WATCH, and sends events                                        |
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
mod source;
#[cfg(test)]
mod tests;
pub(crate) mod watching;

pub(crate) use super::core::machine::FollowError;
