//! One connection: whole requests out, whole answers in, each by a deadline.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use crate::wire::{
    Buffer, Opcode,
    response::{self, Parsed},
};

use super::{
    ClientOptions, Direction, Frame,
    answer::{self, Answer},
    error::{Error, ProtocolError, Result, Wait},
};

/// How long a write makes no headway before the client looks whether the node has answered already.
const STALL: Duration = Duration::from_millis(100);

/// When a wait ends. None where the clock cannot say so large a time, which is as good as never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Option<Instant>,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Deadline {
        Deadline {
            at: Instant::now().checked_add(timeout),
        }
    }

    /// What is left, in the form in which sockets take it (`None` waits for ever); nothing where it has passed.
    fn left(self) -> Option<Option<Duration>> {
        match self.at {
            None => Some(None),
            Some(at) => match at.saturating_duration_since(Instant::now()) {
                Duration::ZERO => None,
                left => Some(Some(left)),
            },
        }
    }
}

/// Invariant: between calls the socket blocks, and the buffer is empty or the connection is not used again.
///
/// Whoever gets a fault from a method drops the connection: an answer that is still on its way would be taken for the
/// answer to the next request.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    addr: String,
    buffer: Buffer,
    options: ClientOptions,
    /// Nothing can be sent any more, though answers may still have come.
    is_broken: bool,
}

impl Connection {
    /// Connects to the first address of `addr` that takes the connection.
    pub(super) fn open(addr: &str, options: &ClientOptions) -> Result<Connection> {
        let failed = |source| Error::Connect {
            addr: addr.to_owned(),
            source,
        };
        let addresses: Vec<_> = addr.to_socket_addrs().map_err(failed)?.collect();
        let deadline = Deadline::after(options.connect_timeout);
        let mut refused = None;
        let mut count_left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        if addresses.is_empty() {
            let why = "the name has no address";
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, why)));
        }
        for address in addresses {
            let Some(left) = deadline.left() else {
                break;
            };
            // Each gets its share of the time, so that a silent first one leaves some for the others.
            let stream = match left {
                Some(left) => {
                    let share = (left / count_left.max(1)).max(Duration::from_millis(1));
                    TcpStream::connect_timeout(&address, share)
                }
                None => TcpStream::connect(address),
            };
            count_left = count_left.saturating_sub(1);
            match stream {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(Connection {
                        stream,
                        addr: addr.to_owned(),
                        buffer: Buffer::new(),
                        options: options.clone(),
                        is_broken: false,
                    });
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(match refused {
            Some(source) => failed(source),
            None => Error::Timeout {
                what: Wait::Connection,
                addr: addr.to_owned(),
                after: options.connect_timeout,
            },
        })
    }

    /// Whether something came while nothing was asked for: the peer's goodbye, or bytes that belong to no request. Then
    /// a new connection takes this one's place before anything is sent, which repeats nothing.
    pub(super) fn is_stale(&self) -> bool {
        self.has_arrivals().unwrap_or(true)
    }

    /// Whether there is something to read, be it the end of the stream.
    fn has_arrivals(&self) -> io::Result<bool> {
        self.stream.set_nonblocking(true)?;
        let found = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match found {
            Ok(_) => Ok(true),
            Err(error) if is_timeout(&error) || is_interrupted(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the connection can take another request.
    pub(super) const fn is_usable(&self) -> bool {
        !self.is_broken
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.options.timeout)
    }

    /// Sends one request and waits for its answer. The outer error is a fault, the inner one an answer.
    pub(super) fn exchange(&mut self, opcode: Opcode, frame: &[u8]) -> Result<Result<Answer>> {
        let deadline = self.deadline();
        self.show(Direction::Sent, frame);
        if let Err(fault) = self.write_all(frame, deadline) {
            return match self.last_words(opcode, &fault, deadline) {
                Some(refusal) => Ok(Err(refusal)),
                None => Err(fault),
            };
        }
        let answer = self.receive(opcode, deadline)?;
        self.expect_quiet()?;
        Ok(answer)
    }

    /// What the node said before it closed on a request that it did not want to the end, such as one that is too long.
    /// Nothing but a refusal is believed, since the request did not go out whole.
    pub(super) fn last_words(
        &mut self,
        opcode: Opcode,
        fault: &Error,
        deadline: Deadline,
    ) -> Option<Error> {
        self.is_broken = true;
        if !matches!(fault, Error::Connection { .. }) {
            return None;
        }
        self.receive(opcode, deadline).ok()?.err()
    }

    /// Faults where bytes came that nobody asked for: then the answers before them may have been another request's.
    pub(super) fn expect_quiet(&self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.show(Direction::Received, self.buffer.bytes());
        Err(self.protocol(ProtocolError::Unrequested {
            len: self.buffer.bytes().len(),
        }))
    }

    /// Sends all of `bytes`, the rest of the one request that is not answered, waiting as long as it must.
    ///
    /// A node that does not want the request answers before it has it, and may read no more. So where it takes no bytes
    /// for a while, an answer counts as the end of the connection, and is there to be read.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Deadline) -> Result<()> {
        while !bytes.is_empty() {
            let left = deadline.left().ok_or_else(|| self.timeout(Wait::Request))?;
            let turn = left.map_or(STALL, |left| left.min(STALL));
            let written = self
                .stream
                .set_write_timeout(Some(turn))
                .and_then(|()| self.stream.write(bytes));
            match written {
                Ok(0) => return Err(self.lost(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_interrupted(&error) => {}
                Err(error) if is_timeout(&error) => {
                    if self.has_arrivals().map_err(|error| self.lost(error))? {
                        return Err(self.lost(io::ErrorKind::BrokenPipe.into()));
                    }
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
        Ok(())
    }

    /// Sends what of `bytes` the system takes at once, which may be nothing, and says how much that was.
    pub(super) fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.stream.set_nonblocking(true).and_then(|()| {
            let written = self.stream.write(bytes);
            self.stream.set_nonblocking(false)?;
            written
        });
        match written {
            Ok(0) if !bytes.is_empty() => Err(self.lost(io::ErrorKind::WriteZero.into())),
            Ok(count) => Ok(count),
            Err(error) if is_timeout(&error) || is_interrupted(&error) => Ok(0),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Waits for the next answer, which must be to a request with `opcode`.
    pub(super) fn receive(&mut self, opcode: Opcode, deadline: Deadline) -> Result<Result<Answer>> {
        let answer = self.receive_unseen(opcode, deadline);
        if answer.is_err() && !self.buffer.is_empty() {
            self.show(Direction::Received, self.buffer.bytes());
        }
        answer
    }

    fn receive_unseen(&mut self, opcode: Opcode, deadline: Deadline) -> Result<Result<Answer>> {
        loop {
            let needed = match response::parse(self.buffer.bytes()) {
                Ok(Parsed::Incomplete { needed }) => needed,
                Ok(Parsed::Whole(response)) => {
                    let len = response.frame_len();
                    let answer =
                        answer::read(opcode, &response).map_err(|error| self.protocol(error))?;
                    self.show(Direction::Received, &self.buffer.bytes()[..len]);
                    self.buffer.consume(len);
                    return Ok(answer);
                }
                Err(error) => return Err(self.protocol(ProtocolError::Response(error))),
            };
            self.fill(needed, deadline)?;
        }
    }

    /// What has come and is not consumed.
    pub(super) fn received(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Marks the first `count` received bytes as used up.
    pub(super) fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }

    /// Waits for bytes that belong to what is received already, `needed` of them in all as far as is known.
    pub(super) fn fill(&mut self, needed: usize, deadline: Deadline) -> Result<()> {
        loop {
            let left = deadline.left().ok_or_else(|| self.timeout(Wait::Answer))?;
            let read = self
                .stream
                .set_read_timeout(left)
                .and_then(|()| self.stream.read(self.buffer.space(needed)));
            match read {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.buffer.filled(count);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) || is_interrupted(&error) => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    /// Hands a frame to the hook.
    pub(super) fn show(&self, direction: Direction, bytes: &[u8]) {
        if let Some(hook) = &self.options.on_frame {
            hook.call(&Frame {
                direction,
                addr: &self.addr,
                bytes,
            });
        }
    }

    fn timeout(&self, what: Wait) -> Error {
        Error::Timeout {
            what,
            addr: self.addr.clone(),
            after: self.options.timeout,
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Connection {
            addr: self.addr.clone(),
            source,
        }
    }

    pub(super) fn protocol(&self, source: ProtocolError) -> Error {
        Error::Protocol {
            addr: self.addr.clone(),
            source,
        }
    }

    #[cfg(test)]
    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Both kinds, since systems differ in which one a socket's timeout gives.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}
