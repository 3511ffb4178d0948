//! Reading the acknowledgements of a follower, until the stream ends.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::Instant;

use log::debug;

use super::accept::Registration;
use super::sending::{is_timeout, silent};
use crate::wire::Buffer;
use crate::wire::replication::{Message, Parsed, parse};

/// Why the other side has ended the stream.
#[derive(Debug)]
pub(in crate::replication) struct StreamEnd(ErrorKind, String);

impl StreamEnd {
    pub(in crate::replication) fn to_error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

/// Reads acknowledgements until the stream ends, and returns why it ended. Those of an observer change nothing.
pub(in crate::replication) fn read_acks(
    name: &str,
    registration: Option<&Registration<'_>>,
    mut stream: &TcpStream,
    early: &[u8],
) -> StreamEnd {
    let mut buffer = Buffer::new();
    let space = buffer.space(early.len());
    let count = space.len().min(early.len());
    space[..count].copy_from_slice(&early[..count]);
    buffer.filled(count);
    loop {
        let needed = match parse(buffer.bytes()) {
            Ok(Parsed::Whole { message, frame_len }) => {
                let Message::Ack { applied_index, .. } = message else {
                    let what = message.opcode().name();
                    let text = format!("it sent {what}, which a follower does not");
                    return StreamEnd(ErrorKind::InvalidData, text);
                };
                let now = Instant::now();
                if let Some(registration) = registration
                    && registration
                        .progress(|follower| follower.acknowledged(applied_index, now))
                        .is_none()
                {
                    return StreamEnd(
                        ErrorKind::TimedOut,
                        "a newer stream of it is there".to_owned(),
                    );
                }
                buffer.consume(frame_len);
                continue;
            }
            Ok(Parsed::Incomplete { needed }) => needed,
            Err(error) => {
                return StreamEnd(ErrorKind::InvalidData, format!("it sent no frame: {error}"));
            }
        };
        match stream.read(buffer.space(needed)) {
            Ok(0) => {
                let text = "it closed the connection".to_owned();
                return StreamEnd(ErrorKind::UnexpectedEof, text);
            }
            Ok(count) => buffer.filled(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                let error = silent();
                return StreamEnd(error.kind(), error.to_string());
            }
            Err(error) => {
                debug!("{name}: {error}");
                return StreamEnd(error.kind(), error.to_string());
            }
        }
    }
}
