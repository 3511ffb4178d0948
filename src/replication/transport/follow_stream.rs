//! The connection to the node that is followed: carries out the follower side of a stream.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::info;

use super::acks::AckSignal;
use super::ask::identify;
use super::{Stop, connect, is_timeout};
use crate::replication::core::report::{Contact, Expected};
use crate::replication::core::role::LeadOrder;
use crate::replication::stream::FollowError;
use crate::replication::stream::acks_out::AcksOut;
use crate::replication::stream::following::{FollowerStream, Need};
use crate::wire::Buffer;
use crate::wire::response::HEADER_LEN;

/// Longest wait in one read until the stream is accepted, and for the disk.
const ANSWER_TURN: Duration = Duration::from_millis(50);

/// Connects to `addr`, asks for the stream, and receives it until it ends. `Ok` is a goal that is reached, or the
/// leader's order to lead.
pub(super) fn run(
    stream: &mut FollowerStream<'_>,
    addr: &str,
    stop: &Stop,
) -> Result<Option<LeadOrder>, FollowError> {
    let result = follow(stream, addr, stop);
    stop.watch(None).map_err(lost)?;
    result
}

fn follow(
    stream: &mut FollowerStream<'_>,
    addr: &str,
    stop: &Stop,
) -> Result<Option<LeadOrder>, FollowError> {
    if !stream.wait_for_disk(Instant::now() + ANSWER_TURN) {
        stream.check_disk(Instant::now())?;
    }
    let timeout = stream.member().replication.leader_timeout;
    let deadline = Instant::now() + timeout;
    let failed = |error: io::Error| {
        if is_timeout(&error) {
            FollowError::Silent(timeout)
        } else {
            lost(error)
        }
    };
    let socket = connect(addr, deadline, stop).map_err(failed)?;
    let socket = Arc::new(socket);
    stop.watch(Some(&socket)).map_err(lost)?;
    check_identity(stream, &socket, addr, deadline, stop)?;
    socket.set_write_timeout(Some(timeout)).map_err(lost)?;
    let request = stream.request(Instant::now())?;
    (&*socket).write_all(&request).map_err(failed)?;
    let signal = AckSignal::default();
    thread::scope(|scope| {
        let result = receive(
            stream,
            &socket,
            |acks| {
                // Each read ends then, and the stream judges the silence.
                socket.set_read_timeout(Some(timeout))?;
                let (socket, signal) = (&*socket, &signal);
                let thread = thread::Builder::new().name("follower-acks".to_owned());
                thread.spawn_scoped(scope, move || signal.send(&acks, socket))?;
                Ok(())
            },
            &signal,
            stop,
        );
        signal.end();
        result
    })
}

/// Asks for STATUS first, so that no other node is taken for the expected one.
fn check_identity(
    stream: &FollowerStream<'_>,
    socket: &TcpStream,
    addr: &str,
    deadline: Instant,
    stop: &Stop,
) -> Result<(), FollowError> {
    let member = stream.member();
    let expected = Expected {
        cluster: &member.cluster,
        own: &member.name,
        peer: stream.peer(),
    };
    match identify(socket, expected, addr, deadline, stop).0 {
        Contact::Report(_) => Ok(()),
        Contact::Stranger(text) => Err(FollowError::WrongNode(text)),
        Contact::Unclear(text) => Err(FollowError::NotYet(text)),
        Contact::Silent(text) => Err(FollowError::Rejected(text)),
        Contact::NoProcess => Err(lost(ErrorKind::ConnectionRefused.into())),
    }
}

/// Reads until the stream ends, or until its goal is reached. Calls `accepted` once when the peer has accepted it, and
/// then `signal` after each read.
fn receive(
    stream: &mut FollowerStream<'_>,
    mut socket: &TcpStream,
    accepted: impl FnOnce(Arc<AcksOut>) -> io::Result<()>,
    signal: &AckSignal,
    stop: &Stop,
) -> Result<Option<LeadOrder>, FollowError> {
    socket.set_read_timeout(Some(ANSWER_TURN)).map_err(lost)?;
    let (mut buffer, mut needed, mut accepted) = (Buffer::new(), HEADER_LEN, Some(accepted));
    loop {
        // Records that are not read wait at the leader.
        while !stream.wait_for_disk(Instant::now() + ANSWER_TURN) && !stop.is_stopped() {
            stream.check_disk(Instant::now())?;
        }
        match socket.read(buffer.space(needed)) {
            Ok(0) => return Err(stream.closed()),
            Ok(count) => buffer.filled(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if is_timeout(&error) => {
                stream.check_silence(Instant::now())?;
                continue;
            }
            Err(error) => return Err(lost(error)),
        }
        let result = stream.receive(&mut buffer, Instant::now());
        for note in stream.take_notes() {
            info!("{note}");
        }
        match result? {
            Need::Bytes(count) => needed = count,
            Need::Done => return Ok(None),
            Need::Lead(order) => return Ok(Some(order)),
        }
        if stream.is_accepted()
            && let Some(accepted) = accepted.take()
        {
            accepted(Arc::clone(stream.acks())).map_err(lost)?;
        }
        signal.notify();
        if stream.is_in_snapshot() {
            // Other threads may have more urgent work. Once for each read, a third of a millisecond: each call gives
            // away what the scheduler would have let this thread run.
            thread::yield_now();
        }
    }
}

/// A connection that failed, or could not be made.
fn lost(error: io::Error) -> FollowError {
    let text = error.to_string();
    if error.kind() == ErrorKind::ConnectionRefused {
        FollowError::NoProcess(text)
    } else {
        FollowError::Lost(text)
    }
}
