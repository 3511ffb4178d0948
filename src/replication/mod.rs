//! Replication: a node's stream from its leader, its streams to followers, and what it knows of its peers.
//!
//! | thread      | one per               | owns                                    | blocks on             |
//! |-------------|-----------------------|-----------------------------------------|-----------------------|
//! | replication | node                  | the append queue's reading end, the log | the queue             |
//! | client-N    | following connection  | that socket's writing side, a cursor    | the log, write        |
//! | acks-NAME   | following connection  | that socket's reading side              | read                  |
//! | follower    | node                  | the connection to the node it follows   | read, a timer         |
//! | follower-acks | stream from a leader | that connection's writing side         | a timer, write        |
//! | heartbeat   | node                  | nothing; checks which peers are up      | a timer               |
//! | probe-NAME  | peer                  | a connection to that peer               | a timer, read         |
//!
//! A follower asks for the stream on an ordinary connection (`follower_side`), and the node that it follows sends it
//! (`leader_side`). [`core`] makes the decisions of both. A leader that starts first copies the peer that is most up to
//! date (`follower_side::recover`). One that stops waits until the others have everything (`shutdown_sync`). [`Peers`]
//! is what all threads share.

#![deny(clippy::wildcard_enum_match_arm)]

mod ask;
pub mod core;
mod follower_side;
mod heartbeat;
pub(crate) mod leader_side;
mod peers;
pub(crate) mod shutdown_sync;
mod stop;

use std::io;
use std::net::TcpStream;
use std::thread::{self, Scope};
use std::time::Instant;

use crate::dial;
pub use peers::Peers;
pub(crate) use peers::Replica;
pub use shutdown_sync::Ending;
pub use stop::Stop;

/// Starts the threads of replication. They end with [`Stop::stop`], the replication thread with
/// [`Log::end`](crate::log::Log::end).
///
/// # Errors
///
/// Where a thread cannot be started.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    replica: Replica<'scope>,
    stop: &'scope Stop,
) -> io::Result<()> {
    let (Some(log), Some(member)) = (replica.node.engine().log(), replica.node.member()) else {
        return Ok(());
    };
    let spawn = |name: String, body: Box<dyn FnOnce() + Send + 'scope>| {
        thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, body)
            .map(drop)
    };
    spawn("replication".to_owned(), Box::new(|| log.keep()))?;
    spawn(
        "follower".to_owned(),
        Box::new(move || follower_side::run(replica, member, stop)),
    )?;
    spawn(
        "heartbeat".to_owned(),
        Box::new(move || heartbeat::run(replica, member, stop)),
    )?;
    for peer in &member.peers {
        let body = move || heartbeat::probe(replica, member, peer, stop);
        spawn(format!("probe-{}", peer.name), Box::new(body))?;
    }
    Ok(())
}

/// Connects to `host:port` at any address of the name, until `deadline` or the stop.
fn connect(addr: &str, deadline: Instant, stop: &Stop) -> io::Result<TcpStream> {
    dial::connect(addr, deadline, &|| stop.is_stopped())
}
