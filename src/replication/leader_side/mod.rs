//! The sending side: one follower's stream, on the connection that asked for it, or one observer's.
//!
//! An observer is sent what a follower is, by the same code and within the same bounds, and counts as nobody's
//! follower: it is in no table and no figure of the node's, it need not say anything, and the stop does not wait for
//! it. Unlike a follower's its source may itself be a follower, whose data set can be replaced while it is read, and
//! whose history grows when its leader restarts. The stream then ends before the first entry of the other data set or
//! of the new epoch, and the observer asks again.

pub(crate) mod accept;
mod acks_in;
mod send;
mod snapshot_out;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use log::{info, warn};

use crate::replication::Replica;
use crate::replication::core::liveness::SILENT_HEARTBEATS;
use crate::wire::replication::Start;

use accept::Accepted;
use acks_in::{StreamEnd, read_acks};
use send::Sender;

/// How long an observer of a node that stops may take nothing.
const PAUSE_AT_STOP: Duration = Duration::from_millis(500);

/// Sends the stream until the follower is gone, falls too far behind, or the node stops. `early` are bytes that came
/// behind the request.
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
    let place = accepted.place.as_ref();
    // An observer may pause for longer; in between the sender looks whether it may pause on.
    let write_timeout = match place {
        Some(_) => silence,
        None => interval.min(PAUSE_AT_STOP),
    };
    stream.set_write_timeout(Some(write_timeout))?;
    // An observer may be silent. TCP's retransmissions or its keepalive end one that has vanished.
    stream.set_read_timeout(place.map(|_| silence))?;
    let name = accepted.name.as_str();
    let (verb, thread) = match place {
        Some(_) => ("follow", name),
        None => ("observe", "observer"),
    };
    match accepted.start {
        Start::FullCopy | Start::Unknown => info!("{name} {verb}s: full copy"),
        Start::Resume { from_index } => info!("{name} {verb}s: from index {from_index}"),
    }
    if place.is_some() {
        node.count_stream(accepted.start == Start::FullCopy);
    }
    let end = OnceLock::new();
    let mut sender = Sender {
        node,
        peers,
        log,
        stream,
        name,
        place,
        end: &end,
        dataset: accepted.dataset,
        epoch: accepted.history.last().map_or(0, |start| start.epoch),
        history: &accepted.history,
        cursor: accepted.cursor,
        interval,
        permit: accepted.permit.take(),
        out: Vec::new(),
        run: Vec::new(),
    };
    let result = thread::scope(|scope| {
        thread::Builder::new()
            .name(format!("acks-{thread}"))
            .spawn_scoped(scope, || {
                let why = read_acks(name, place, stream, early);
                let _ = end.set(why);
                // At once, so that the follower is let in again.
                if let Some(place) = place {
                    place.leave();
                }
                // Both wake the sender, out of a write or out of its wait for entries.
                let _ = stream.shutdown(Shutdown::Both);
                log.wake_readers();
            })
            .map_err(|error| io::Error::new(error.kind(), format!("no thread for it: {error}")))?;
        let result = sender.run(accepted.cursor);
        // Where the other side ended the stream, that is why the sender failed.
        let result = result.map_err(|error| end.get().map_or(error, StreamEnd::to_error));
        let _ = stream.shutdown(Shutdown::Both);
        result
    });
    match &result {
        Ok(()) => info!("{name} no longer {verb}s"),
        // Observers come and go as they like.
        Err(error) if place.is_none() => info!("{name} no longer {verb}s: {error}"),
        Err(error) => warn!("{name} no longer {verb}s: {error}"),
    }
    result
}
