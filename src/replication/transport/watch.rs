//! Carries out the node's side of a watch, on the connection that asked for it.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Instant;

use log::info;

use super::serve::write;
use crate::replication::stream::link::StreamEnd;
use crate::replication::stream::sending::Sending;
use crate::replication::stream::watching::{AcceptedWatch, WatchStream};

/// Sends the stream until the watcher is gone, falls behind the backlog, or the node stops. Nothing is read: a watcher
/// that has gone is noticed by the next heartbeats.
///
/// # Errors
///
/// Where the socket cannot be set up.
pub(crate) fn serve_watch(socket: &TcpStream, accepted: AcceptedWatch<'_>) -> io::Result<()> {
    info!("{}", accepted.line());
    let addr = accepted.addr().to_owned();
    let mut stream = WatchStream::new(accepted, Instant::now());
    socket.set_write_timeout(Some(stream.stall_turn()))?;
    let result = send(&mut stream, socket);
    // The end of a watch is nothing unusual.
    info!("{}", AcceptedWatch::end_line(&addr, result.as_ref().err()));
    let _ = socket.shutdown(Shutdown::Both);
    Ok(())
}

/// Does what the stream says, until it ends.
fn send(stream: &mut WatchStream<'_>, socket: &TcpStream) -> Result<(), StreamEnd> {
    let log = stream.log();
    let mut out = Vec::new();
    loop {
        let sending = stream.next(Instant::now(), &mut out);
        for note in stream.take_notes() {
            info!("{note}");
        }
        match sending? {
            Sending::Frames { large } => {
                let check = |_, _| stream.check_stall();
                write(socket, &out, check)?;
                if let Some(entry) = large {
                    write(socket, entry.frame(), check)?;
                }
                if stream.is_in_snapshot() {
                    thread::yield_now();
                }
            }
            Sending::Wait { cursor, until } => {
                log.wait_committed(&cursor, until, || stream.has_news());
            }
            Sending::Gather(time) => thread::sleep(time),
            // A watcher acknowledges nothing.
            Sending::AwaitAck { .. } | Sending::End => return Ok(()),
        }
    }
}
