//! Replication: a node's stream from its leader, its streams to followers, and what it knows of its peers.
//!
//! | thread      | one per               | owns                                    | blocks on             |
//! |-------------|-----------------------|-----------------------------------------|-----------------------|
//! | client-N    | following connection  | that socket's writing side, a cursor    | the log, write        |
//! | acks-NAME   | following connection  | that socket's reading side              | read                  |
//! | role        | node                  | the connection to the node it follows   | read, news of peers   |
//! | follower-acks | stream from a leader | that connection's writing side         | a timer, write        |
//! | heartbeat   | node                  | nothing; checks which peers are up      | a timer               |
//! | probe-NAME  | peer                  | a connection to that peer               | a timer, read         |
//!
//! A follower asks for the stream on an ordinary connection, and the node that it follows sends it: `stream` has both
//! sides. [`core`] makes the decisions. `transport` has the sockets and the threads. A leader that starts first copies
//! the peer that is most up to date (`transport::recover`). One that stops waits until the others have everything
//! (`shutdown_sync`). [`Peers`] is what all threads share.

#![deny(clippy::wildcard_enum_match_arm)]

pub mod core;
pub(crate) mod driver;
mod peers;
pub(crate) mod shutdown_sync;
pub(crate) mod stream;
pub(crate) mod transfer;
pub(crate) mod transport;
pub(crate) mod watch;

pub use peers::Peers;
pub(crate) use peers::Replica;
pub use shutdown_sync::Ending;
pub use transfer::TransferError;
pub use transport::Stop;
pub use transport::Transferrer;
