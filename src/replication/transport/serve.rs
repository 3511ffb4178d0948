//! The leader side of a stream: sends a follower or an observer what it lacks, on the connection that asked for it.
//!
//! The same code serves observers, within the same bounds. An observer is no follower: it is not in the registry and
//! not in STATUS, it need not acknowledge, and a stop does not wait for it. A follower may serve observers as well. Its
//! data set can be replaced while it is read, and its history grows when its leader restarts. The stream then ends
//! before the first entry of the other data set or of the new epoch, and the observer asks again.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use log::{info, warn};

use crate::log::Cursor;
use crate::replication::Replica;
use crate::replication::core::liveness::SILENT_HEARTBEATS;
use crate::replication::stream::accept::Accepted;
use crate::replication::stream::acks_in::{StreamEnd, read_acks};
use crate::replication::stream::sending::Sender;
use crate::wire::replication::Start;

/// Longest time that an observer of a node that stops may accept no bytes.
const PAUSE_AT_STOP: Duration = Duration::from_millis(500);

/// Sends the stream until the other side is gone, falls behind the backlog, or the node stops. `early` are bytes that
/// arrived after the request.
pub(crate) fn serve(
    replica: Replica<'_>,
    stream: &TcpStream,
    accepted: &mut Accepted<'_>,
    early: &[u8],
) -> io::Result<()> {
    let Replica { node, peers } = replica;
    let (Some(log), Some(member)) = (node.engine().log(), node.member()) else {
        return Ok(());
    };
    let interval = member.replication.heartbeat_interval;
    let silence = interval * SILENT_HEARTBEATS;
    let registration = accepted.registration.as_ref();
    // An observer may pause for longer. After each timeout the sender checks whether it may pause on.
    let write_timeout = match registration {
        Some(_) => silence,
        None => interval.min(PAUSE_AT_STOP),
    };
    stream.set_write_timeout(Some(write_timeout))?;
    // An observer may be silent. TCP's retransmissions or its keepalive end a connection whose observer has vanished.
    stream.set_read_timeout(registration.map(|_| silence))?;
    let name = accepted.name.as_str();
    let (verb, thread) = match registration {
        Some(_) => ("follow", name),
        None => ("observe", "observer"),
    };
    match accepted.start {
        Start::Snapshot | Start::Unknown => info!("{name} {verb}s: full copy"),
        Start::Resume { from_index } => info!("{name} {verb}s: from index {from_index}"),
    }
    if registration.is_some() {
        node.count_stream(accepted.start == Start::Snapshot);
    }
    let end = OnceLock::new();
    let mut sender = Sender {
        node,
        peers,
        log,
        stream,
        name,
        registration,
        end: &end,
        generation: accepted.generation,
        epoch: accepted.history.last().map_or(0, |start| start.epoch),
        history: &accepted.history,
        cursor: accepted.cursor,
        interval,
        permit: accepted.permit.take(),
        out: Vec::new(),
        run: Vec::new(),
    };
    let result = run(
        &mut sender,
        accepted.cursor,
        &format!("acks-{thread}"),
        early,
    );
    match &result {
        Ok(()) => info!("{name} no longer {verb}s"),
        // The end of an observer is nothing unusual.
        Err(error) if registration.is_none() => info!("{name} no longer {verb}s: {error}"),
        Err(error) => warn!("{name} no longer {verb}s: {error}"),
    }
    result
}

/// Runs the sender, and beside it a thread that reads acknowledgements.
fn run(
    sender: &mut Sender<'_>,
    cursor: Option<Cursor>,
    thread_name: &str,
    early: &[u8],
) -> io::Result<()> {
    let (name, registration, stream) = (sender.name, sender.registration, sender.stream);
    let (end, log) = (sender.end, sender.log);
    thread::scope(|scope| {
        thread::Builder::new()
            .name(thread_name.to_owned())
            .spawn_scoped(scope, move || {
                let _ = end.set(read_acks(name, registration, stream, early));
                // At once, so that the follower can come back.
                if let Some(registration) = registration {
                    registration.leave();
                }
                // Both wake the sender, from a write or from its wait for entries.
                let _ = stream.shutdown(Shutdown::Both);
                log.wake_readers();
            })
            .map_err(|error| io::Error::new(error.kind(), format!("no thread for it: {error}")))?;
        let result = sender.run(cursor);
        // Where the other side ended the stream, that is why the sender failed.
        let result = result.map_err(|error| end.get().map_or(error, StreamEnd::to_error));
        let _ = stream.shutdown(Shutdown::Both);
        result
    })
}
