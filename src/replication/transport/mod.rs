//! The sockets and the threads of replication.
//!
//! | file               | what it does                                                 |
//! |--------------------|--------------------------------------------------------------|
//! | `serve.rs`         | sends a stream on the connection that asked for it           |
//! | `watch.rs`         | sends the events of a watch on the connection that asked     |
//! | `follow.rs`        | gets the streams that the driver of the node's role asks for |
//! | `follow_stream.rs` | the connection of one stream from the node that is followed  |
//! | `acks.rs`          | sends the acknowledgements of such a stream                  |
//! | `heartbeat.rs`     | asks each peer for STATUS at every heartbeat                 |
//! | `ask.rs`           | one such question                                            |
//! | `transfer.rs`      | transfers leadership, on the thread that asks for it         |
//! | `shutdown.rs`      | waits for the synchronization of a node that stops           |
//! | `stop.rs`          | the stop of the threads                                      |

mod acks;
mod ask;
mod follow;
mod follow_stream;
mod heartbeat;
pub(crate) mod serve;
pub(crate) mod shutdown;
mod stop;
mod transfer;
pub(crate) mod watch;

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::thread::{self, Scope};
use std::time::Instant;

use super::Replica;
use crate::dial;
pub use stop::Stop;
pub use transfer::Transferrer;

/// Starts the threads of replication, beside the one that [keeps the log](crate::log::Log::keep). They end with
/// [`Stop::stop`].
///
/// # Errors
///
/// Where a thread cannot be started.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    replica: Replica<'scope>,
    stop: &'scope Stop,
) -> io::Result<()> {
    let Some(member) = replica
        .node
        .member()
        .filter(|_| replica.node.engine().log().is_some())
    else {
        return Ok(());
    };
    let spawn = |name: String, body: Box<dyn FnOnce() + Send + 'scope>| {
        thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, body)
            .map(drop)
    };
    spawn(
        "heartbeat".to_owned(),
        Box::new(move || heartbeat::run(replica, member, stop)),
    )?;
    for peer in &member.peers {
        let body = move || heartbeat::probe(replica, member, peer, stop);
        spawn(format!("probe-{}", peer.name), Box::new(body))?;
    }
    // The last one: a node without peers leads at once.
    spawn(
        "role".to_owned(),
        Box::new(move || follow::run(replica, member, stop)),
    )
}

/// Whether a timeout of the socket has passed. Systems differ in the kind of error.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Connects to `host:port` at any address of the name, until `deadline` or the stop.
fn connect(addr: &str, deadline: Instant, stop: &Stop) -> io::Result<TcpStream> {
    dial::connect(addr, deadline, &|| stop.is_stopped())
}
