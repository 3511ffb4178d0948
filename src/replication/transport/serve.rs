//! Carries out the leader side of a stream, on the connection that asked for it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::is_timeout;
use crate::node::Reply;
use crate::replication::Replica;
use crate::replication::stream::accept::{self, Accepted, NotAccepted};
use crate::replication::stream::acks_in::AckReader;
use crate::replication::stream::link::StreamEnd;
use crate::replication::stream::sending::{LeaderStream, Sending};
use crate::wire::Buffer;

/// How long a follower that comes back waits for this node to notice the end of its last stream. Where the stream is
/// another node's of the same name, it does not end, and the follower is refused.
const OLDER_STREAM_ENDS: Duration = Duration::from_millis(100);

/// Judges a FOLLOW request from `addr`. Where the name has a stream already, waits for its end and judges again.
///
/// # Errors
///
/// The answer that refuses it.
pub(crate) fn accept<'a>(
    replica: Replica<'a>,
    addr: SocketAddr,
    key: &[u8],
    value: &[u8],
) -> Result<Box<Accepted<'a>>, Reply> {
    let text = addr.to_string();
    let judge = || accept::accept(replica, &text, key, value, Instant::now());
    let mut result = judge();
    if let Err(NotAccepted::SecondNode { name, .. }) = &result
        && replica.peers.wait_for_end_of(name, OLDER_STREAM_ENDS)
    {
        result = judge();
    }
    result.map_err(|not_accepted| match not_accepted {
        NotAccepted::Refused(reply) => reply,
        NotAccepted::SecondNode { name, older } => refuse_second(replica, &name, &older, addr),
    })
}

/// Refuses a node at `addr` whose name already has a stream, and logs it once for each such node.
fn refuse_second(replica: Replica<'_>, name: &str, older: &str, addr: SocketAddr) -> Reply {
    let text = format!(
        "two nodes are called {name}: the one at {older} follows and stays, the one at {addr} is refused"
    );
    if replica.peers.refuse_follower(name, &addr.ip().to_string()) {
        warn!("{text}");
    }
    Reply::Error(text)
}

/// Sends the stream until the other side is gone, falls behind the backlog, or the node stops. `early` are bytes that
/// arrived after the request.
///
/// # Errors
///
/// A [`StreamEnd`], where the stream did not end with the node, or an error of the system.
pub(crate) fn serve(
    socket: &TcpStream,
    accepted: Box<Accepted<'_>>,
    early: &[u8],
) -> io::Result<()> {
    info!("{}", accepted.line());
    let stream = LeaderStream::new(*accepted, Instant::now());
    let link = Arc::clone(stream.link());
    let result = run(socket, stream, early);
    match &result {
        Ok(()) => info!("{}", link.end_line(None)),
        Err(error) => warn!("{}", link.end_line(Some(error))),
    }
    result
}

/// Sends, and beside it reads acknowledgements in another thread.
fn run(socket: &TcpStream, mut stream: LeaderStream<'_>, early: &[u8]) -> io::Result<()> {
    let (link, log) = (Arc::clone(stream.link()), stream.log());
    let mut acks = stream.ack_reader(Instant::now());
    socket.set_write_timeout(Some(stream.stall_turn()))?;
    socket.set_read_timeout(Some(acks.silence_max()))?;
    let thread_name = format!("acks-{}", link.name());
    thread::scope(|scope| {
        thread::Builder::new()
            .name(thread_name)
            .spawn_scoped(scope, move || {
                let why = read_acks(&mut acks, socket, early);
                acks.end(why);
                // Both wake the sender, from a write or from its wait for entries.
                let _ = socket.shutdown(Shutdown::Both);
                log.wake_readers();
            })
            .map_err(|error| io::Error::new(error.kind(), format!("no thread for it: {error}")))?;
        let result = send(&mut stream, socket);
        // Where the other side ended the stream, that is why the sender failed.
        let result = result.map_err(|why| link.end().cloned().unwrap_or(why));
        let _ = socket.shutdown(Shutdown::Both);
        result.map_err(io::Error::other)
    })
}

/// Does what the stream says, until it ends.
fn send(stream: &mut LeaderStream<'_>, socket: &TcpStream) -> Result<(), StreamEnd> {
    let (link, log) = (Arc::clone(stream.link()), stream.log());
    let peers = link.replica().peers;
    let mut out = Vec::new();
    loop {
        let sending = stream.next(Instant::now(), &mut out);
        for note in stream.take_notes() {
            info!("{note}");
        }
        match sending? {
            Sending::Frames { large } => {
                let check = |since, now| stream.check_stall(since, now);
                write(socket, &out, check)?;
                if let Some(entry) = large {
                    write(socket, entry.frame(), check)?;
                }
                if stream.is_in_snapshot() {
                    thread::yield_now();
                }
            }
            Sending::Wait { cursor, until } => {
                log.wait(&cursor, until, || stream.has_news());
            }
            Sending::Gather(time) => thread::sleep(time),
            Sending::AwaitAck { index, until } => {
                let _ = peers.wait_for_follower(link.name(), link.number(), index, until);
            }
            Sending::End => return Ok(()),
        }
    }
}

/// Writes all of `bytes`. Where the other side takes none, asks `check_stall`, with the time since it does not and the
/// time now.
pub(super) fn write(
    mut socket: &TcpStream,
    mut bytes: &[u8],
    check_stall: impl Fn(Instant, Instant) -> Result<(), StreamEnd>,
) -> Result<(), StreamEnd> {
    let mut since = Instant::now();
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(lost(&ErrorKind::WriteZero.into())),
            Ok(count) => {
                bytes = &bytes[count..];
                since = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => check_stall(since, Instant::now())?,
            Err(error) => return Err(lost(&error)),
        }
    }
    Ok(())
}

/// Reads acknowledgements until the stream ends, and returns why it ended.
fn read_acks(acks: &mut AckReader<'_>, mut socket: &TcpStream, early: &[u8]) -> StreamEnd {
    let mut buffer = Buffer::new();
    buffer.extend(early);
    loop {
        let needed = match acks.receive(&mut buffer, Instant::now()) {
            Ok(needed) => needed,
            Err(why) => return why,
        };
        let count = loop {
            match socket.read(buffer.space(needed)) {
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    if let Err(why) = acks.check_silence(Instant::now()) {
                        return why;
                    }
                }
                Err(error) => return lost(&error),
            }
        };
        if count == 0 {
            return StreamEnd::Closed;
        }
        buffer.filled(count);
    }
}

/// The end of a stream whose connection failed.
fn lost(error: &io::Error) -> StreamEnd {
    StreamEnd::Lost(error.to_string())
}
