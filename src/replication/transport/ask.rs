//! Asks a peer for STATUS, on one connection that is kept between questions.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Stop, connect};
use crate::node::Member;
use crate::replication::core::report::{Contact, Expected};
use crate::wire::response::{self, Parsed};
use crate::wire::{Buffer, Request, Status, is_text};

/// Longest wait in one read, so that a stop is noticed soon.
const READ_TURN: Duration = Duration::from_millis(50);

/// Longest answer to STATUS in bytes: some hundred lines for each of a thousand nodes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The connection on which a peer is asked for STATUS.
pub(super) struct Inquiry<'a> {
    member: &'a Member,
    name: &'a str,
    addr: &'a str,
    stream: Option<TcpStream>,
}

impl<'a> Inquiry<'a> {
    pub(super) const fn new(member: &'a Member, name: &'a str, addr: &'a str) -> Inquiry<'a> {
        Inquiry {
            member,
            name,
            addr,
            stream: None,
        }
    }

    /// Asks once. Ends by `deadline`, or within 100 ms of the stop.
    ///
    /// A connection from an earlier question may have ended since; then it asks again over a new one.
    pub(super) fn ask(&mut self, deadline: Instant, stop: &Stop) -> Contact {
        if let Some(stream) = self.stream.take() {
            let (contact, is_fresh) = self.ask_over(stream, deadline, stop);
            if is_fresh {
                return contact;
            }
        }
        match connect(self.addr, deadline, stop) {
            Ok(stream) => self.ask_over(stream, deadline, stop).0,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Contact::NoProcess,
            Err(error) => Contact::Silent(error.to_string()),
        }
    }

    /// Asks on this connection, and keeps it where it is still usable. Also returns whether the result is of this
    /// question: where no byte of an answer came, the connection may have ended before.
    fn ask_over(&mut self, stream: TcpStream, deadline: Instant, stop: &Stop) -> (Contact, bool) {
        let expected = Expected {
            cluster: &self.member.cluster,
            own: &self.member.name,
            peer: self.name,
        };
        let (contact, is_fresh) = identify(&stream, expected, self.addr, deadline, stop);
        if matches!(contact, Contact::Report(_) | Contact::Stranger(_)) {
            self.stream = Some(stream);
        }
        (contact, is_fresh)
    }
}

/// Asks for STATUS on a connection without other requests, and judges whether the expected node answers. Also returns
/// whether an answer came or the deadline passed.
pub(super) fn identify(
    stream: &TcpStream,
    expected: Expected<'_>,
    addr: &str,
    deadline: Instant,
    stop: &Stop,
) -> (Contact, bool) {
    let mut buffer = Buffer::new();
    let result = exchange(stream, &mut buffer, deadline, stop);
    let contact = match result {
        // No status is text (GBP §7).
        _ if buffer.bytes().first().is_some_and(|&byte| is_text(byte)) => {
            Contact::Stranger(format!("no GopherStore node answers at {addr}"))
        }
        Ok(answer) if answer.0 == Status::Ok.byte() => expected.judge(addr, &answer.1),
        Ok((status, text)) => {
            let name = Status::try_from(status).map_or("an unknown status", Status::name);
            Contact::Unclear(format!("{addr} answers {name}: {text}"))
        }
        Err(error) if !buffer.bytes().is_empty() => {
            Contact::Unclear(format!("the answer of {addr} is cut off: {error}"))
        }
        Err(error) => {
            let is_fresh = error.kind() == ErrorKind::TimedOut;
            let contact = Contact::Silent(format!("{addr} does not answer: {error}"));
            return (contact, is_fresh);
        }
    };
    (contact, true)
}

/// Sends STATUS and reads the answer: its status and its text. `buffer` has the bytes received, also after an error.
fn exchange(
    mut stream: &TcpStream,
    buffer: &mut Buffer,
    deadline: Instant,
    stop: &Stop,
) -> io::Result<(u8, String)> {
    let mut request = Vec::new();
    Request::Status
        .encode(&mut request)
        .map_err(io::Error::other)?;
    stream.set_write_timeout(Some(READ_TURN))?;
    stream.write_all(&request)?;
    stream.set_read_timeout(Some(READ_TURN))?;
    loop {
        let needed = match response::parse(buffer.bytes()).map_err(io::Error::other)? {
            Parsed::Whole(answer) => {
                let text = String::from_utf8_lossy(answer.value).into_owned();
                return Ok((answer.status, text));
            }
            Parsed::Incomplete { needed } if needed > ANSWER_BYTES_MAX => {
                return Err(io::Error::other(format!("it has {needed} bytes")));
            }
            Parsed::Incomplete { needed } => needed,
        };
        match stream.read(buffer.space(needed)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer.filled(count),
            // The loop looks at the stop and at the deadline.
            Err(error) if is_temporary(&error) => {}
            Err(error) => return Err(error),
        }
        if stop.is_stopped() {
            return Err(ErrorKind::Interrupted.into());
        }
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

/// Whether a read may be tried again on the same connection.
fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
