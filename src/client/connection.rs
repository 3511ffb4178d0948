//! One connection: sends whole requests and receives whole responses, each within a deadline.

use std::{
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::TcpStream,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    dial,
    wire::{
        Buffer, Opcode,
        response::{Parsed, parse},
    },
};

use super::{
    ClientOptions, Direction, Frame,
    error::{Error, ProtocolError, Result, Wait},
    response::{self, Response},
};

/// Time without progress of a write after which the client checks whether the node has already answered.
const STALL: Duration = Duration::from_millis(100);

/// Flag for a call that does not wait, whatever the socket's timeouts are. Switching the socket to non-blocking and
/// back would take three calls.
const AT_ONCE: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Remaining time up to which a socket's timeout is set exactly. Above it, it is set to a part, so that the next reads
/// need no new setting.
const EXACT_WAIT_MAX: Duration = Duration::from_millis(20);

const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// End of a wait; `None` for never, where the clock has no number for so late a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    at: Option<Instant>,
}

impl Deadline {
    /// No end.
    pub(super) const NEVER: Deadline = Deadline { at: None };

    pub(super) fn after(timeout: Duration) -> Deadline {
        Deadline {
            at: Instant::now().checked_add(timeout),
        }
    }

    /// The same with more time.
    pub(super) fn plus(self, more: Duration) -> Deadline {
        let at = self.at.and_then(|at| at.checked_add(more));
        Deadline { at }
    }

    /// The earlier of the two.
    pub(super) fn sooner(self, other: Deadline) -> Deadline {
        let at = match (self.at, other.at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Deadline { at }
    }

    /// The same as a duration; never is a year.
    fn instant(self) -> Instant {
        self.at.unwrap_or_else(|| Instant::now() + A_YEAR)
    }

    /// The remaining time as a socket's timeout (`None` waits for ever); an outer `None` where it has passed.
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

/// Invariants: the socket blocks, and has the timeouts that the fields name; between calls the buffer is empty, or the
/// connection is not used again.
///
/// After a fault the caller drops the connection: a late response would be taken for the response to the next request.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    addr: String,
    /// The node that named this one as the leader; `None` for the client's own node.
    named_by: Option<String>,
    buffer: Buffer,
    options: ClientOptions,
    /// The socket's timeouts, kept since setting them costs as much as a small write.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// Time at which the last bytes were received.
    read_at: Instant,
    /// Whether sending has failed. Responses may still have been received.
    is_broken: bool,
    /// Whether the last request was not sent whole, so that the node cannot have executed it (GBP §1).
    is_unsent: bool,
}

impl Connection {
    /// Connects to the client's own node, at any address of `addr`, by `deadline` and within the options' limit.
    pub(super) fn open(
        addr: &str,
        options: &ClientOptions,
        deadline: Option<Deadline>,
    ) -> Result<Connection> {
        Connection::dial(addr, options, deadline).map(|stream| Connection {
            stream,
            addr: addr.to_owned(),
            named_by: None,
            buffer: Buffer::new(),
            options: options.clone(),
            read_timeout: None,
            write_timeout: None,
            read_at: Instant::now(),
            is_broken: false,
            is_unsent: false,
        })
    }

    /// Connects to the node that the one at `named_by` named as the leader.
    pub(super) fn open_leader(
        addr: &str,
        named_by: &str,
        options: &ClientOptions,
        deadline: Deadline,
    ) -> Result<Connection> {
        match Connection::open(addr, options, Some(deadline)) {
            Ok(connection) => Ok(Connection {
                named_by: Some(named_by.to_owned()),
                ..connection
            }),
            Err(source) => Err(Error::Redirect {
                named_by: named_by.to_owned(),
                leader: addr.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    fn dial(addr: &str, options: &ClientOptions, deadline: Option<Deadline>) -> Result<TcpStream> {
        let own = Deadline::after(options.connect_timeout);
        let limit = deadline.map_or(own, |deadline| own.sooner(deadline));
        let until = limit.instant();
        let failed = |what, source: io::Error| {
            // Where some addresses refused, the error names them instead of the timeout.
            let has_details = what == Wait::Connection && source.get_ref().is_some();
            if source.kind() != io::ErrorKind::TimedOut || has_details || Instant::now() < until {
                return Error::Connect {
                    addr: addr.to_owned(),
                    source,
                };
            }
            Error::Timeout {
                what,
                addr: addr.to_owned(),
                after: if limit == own {
                    options.connect_timeout
                } else {
                    options.timeout
                },
            }
        };
        let never = || false;
        let addresses =
            dial::resolve(addr, until, &never).map_err(|error| failed(Wait::Resolution, error))?;
        dial::connect_any(&addresses, until, &never)
            .map_err(|error| failed(Wait::Connection, error))
    }

    /// Whether something was received between two requests: the end of the stream, or bytes that belong to no request.
    /// A new connection then replaces this one before the next request is sent.
    pub(super) fn is_stale(&self) -> bool {
        self.has_arrivals().unwrap_or(true)
    }

    /// Whether there is something to read; the end of the stream counts.
    fn has_arrivals(&self) -> io::Result<bool> {
        let mut byte = [MaybeUninit::uninit()];
        let flags = AT_ONCE | libc::MSG_PEEK;
        match SockRef::from(&self.stream).recv_with_flags(&mut byte, flags) {
            Ok(_) => Ok(true),
            Err(error) if is_timeout(&error) || is_interrupted(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether another request can be sent on the connection.
    pub(super) const fn is_usable(&self) -> bool {
        !self.is_broken
    }

    /// Whether the last request was not sent whole.
    pub(super) const fn is_unsent(&self) -> bool {
        self.is_unsent
    }

    /// The same connection as one to the client's own node.
    pub(super) fn into_home(self) -> Connection {
        Connection {
            named_by: None,
            ..self
        }
    }

    /// `host:port` of the node.
    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.options.timeout)
    }

    /// Sends one request and waits for its response. The outer error is a fault, the inner one a refusal by the node.
    pub(super) fn exchange(
        &mut self,
        opcode: Opcode,
        frame: &[u8],
        deadline: Deadline,
    ) -> Result<Result<Response>> {
        self.show(Direction::Sent, frame);
        self.is_unsent = false;
        if let Err(fault) = self.write_all(frame, deadline) {
            self.is_unsent = true;
            return match self.last_words(opcode, &fault, deadline) {
                Some(refusal) => Ok(Err(refusal)),
                None => Err(fault),
            };
        }
        let response = self.receive(opcode, deadline)?;
        self.expect_quiet()?;
        Ok(response)
    }

    /// The refusal that the node sent before it closed inside a request, such as one that is too long. Only a refusal
    /// is accepted, since the request was not sent whole.
    pub(super) fn last_words(
        &mut self,
        opcode: Opcode,
        fault: &Error,
        deadline: Deadline,
    ) -> Option<Error> {
        self.is_broken = true;
        if !matches!(fault.innermost(), Error::Connection { .. }) {
            return None;
        }
        self.receive(opcode, deadline).ok()?.err()
    }

    /// Fails where more bytes were received than were requested: the responses before them may belong to other
    /// requests.
    pub(super) fn expect_quiet(&self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.show(Direction::Received, self.buffer.bytes());
        Err(self.protocol(ProtocolError::Unrequested {
            len: self.buffer.bytes().len(),
        }))
    }

    /// Sends all of `bytes`, the rest of the only request without a response, and waits as long as needed.
    ///
    /// A node that refuses the request answers before it has received it, and may read no more. So where the node takes
    /// no bytes for a while, a response ends the sending, and can be read.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Deadline) -> Result<()> {
        while !bytes.is_empty() {
            let left = deadline.left().ok_or_else(|| self.timeout(Wait::Request))?;
            let wait = left.map_or(STALL, |left| left.min(STALL));
            let written = self
                .wait_at_most(wait)
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

    /// Sends the part of `bytes` that the system accepts without waiting, which may be nothing, and returns its length.
    pub(super) fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        match SockRef::from(&self.stream).send_with_flags(bytes, AT_ONCE) {
            Ok(0) if !bytes.is_empty() => Err(self.lost(io::ErrorKind::WriteZero.into())),
            Ok(count) => Ok(count),
            Err(error) if is_timeout(&error) || is_interrupted(&error) => Ok(0),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Waits for the next response, which is the one to a request with `opcode`.
    pub(super) fn receive(
        &mut self,
        opcode: Opcode,
        deadline: Deadline,
    ) -> Result<Result<Response>> {
        let response = self.receive_unseen(opcode, deadline);
        if response.is_err() && !self.buffer.is_empty() {
            self.show(Direction::Received, self.buffer.bytes());
        }
        response
    }

    fn receive_unseen(&mut self, opcode: Opcode, deadline: Deadline) -> Result<Result<Response>> {
        loop {
            let needed = match parse(self.buffer.bytes()) {
                Ok(Parsed::Incomplete { needed }) => needed,
                Ok(Parsed::Whole(response)) => {
                    let len = response.frame_len();
                    let response =
                        response::read(opcode, &response).map_err(|error| self.protocol(error))?;
                    self.show(Direction::Received, &self.buffer.bytes()[..len]);
                    self.buffer.consume(len);
                    return Ok(response);
                }
                Err(error) => return Err(self.protocol(ProtocolError::Response(error))),
            };
            self.fill(needed, deadline)?;
        }
    }

    /// The bytes that were received and are not consumed.
    pub(super) fn received(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Consumes the first `count` received bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }

    /// Waits for more bytes of the frame at the start of the buffer, which has `needed` bytes as far as known.
    pub(super) fn fill(&mut self, needed: usize, deadline: Deadline) -> Result<()> {
        loop {
            let left = deadline
                .left()
                .ok_or_else(|| self.timeout(Wait::Response))?;
            let read = self
                .expect_within(left)
                .and_then(|()| self.stream.read(self.buffer.space(needed)));
            match read {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.read_at = Instant::now();
                    self.buffer.filled(count);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) || is_interrupted(&error) => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    /// Time at which the last byte of the last response was received.
    pub(super) const fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Bounds the next write.
    fn wait_at_most(&mut self, wait: Duration) -> io::Result<()> {
        if self.write_timeout != Some(wait) {
            self.stream.set_write_timeout(Some(wait))?;
            self.write_timeout = Some(wait);
        }
        Ok(())
    }

    /// Bounds the next read to the time `left`, or to a part of it: a read that ends early is repeated.
    fn expect_within(&mut self, left: Option<Duration>) -> io::Result<()> {
        if let Some(timeout) = next_timeout(self.read_timeout, left) {
            self.stream.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    /// Passes a frame to the hook.
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
        self.fault(Error::Timeout {
            what,
            addr: self.addr.clone(),
            after: self.options.timeout,
        })
    }

    fn lost(&self, source: io::Error) -> Error {
        self.fault(Error::Connection {
            addr: self.addr.clone(),
            source,
        })
    }

    pub(super) fn protocol(&self, source: ProtocolError) -> Error {
        self.fault(Error::Protocol {
            addr: self.addr.clone(),
            source,
        })
    }

    /// A fault of this connection, with the redirect to its node, where there was one.
    fn fault(&self, source: Error) -> Error {
        match &self.named_by {
            None => source,
            Some(named_by) => Error::Redirect {
                named_by: named_by.clone(),
                leader: self.addr.clone(),
                source: Box::new(source),
            },
        }
    }

    #[cfg(test)]
    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// The new timeout of a socket before a read that may take the time `left`; `None` where the one that is `set` will do.
///
/// A timeout will do that is at most the time left, so that no wait is too long, and at least half of it, so that few
/// wake-ups are useless. Every request starts with the full limit, so the setting stays while responses come within a
/// quarter of it.
fn next_timeout(set: Option<Duration>, left: Option<Duration>) -> Option<Option<Duration>> {
    match (set, left) {
        (None, None) => None,
        (Some(set), Some(left)) if set <= left && set >= left / 2 => None,
        (_, Some(left)) if left > EXACT_WAIT_MAX => Some(Some(left / 4 * 3)),
        (_, left) => Some(left),
    }
}

/// Whether a read ended at the socket's timeout. Systems differ in the kind of this error.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Option<Duration> {
        Some(Duration::from_millis(count))
    }

    #[test]
    fn a_timeout_is_set_once_for_many_reads_and_never_beyond_what_is_left() {
        assert_eq!(next_timeout(None, ms(5_000)), Some(ms(3_750)));
        for left in [5_000, 4_999, 3_750] {
            assert_eq!(next_timeout(ms(3_750), ms(left)), None);
        }
        assert_eq!(
            next_timeout(ms(3_750), ms(3_749)),
            Some(ms(2_811).map(|d| d + Duration::from_micros(750)))
        );
        assert_eq!(
            next_timeout(ms(2_000), ms(5_000)),
            Some(ms(3_750)),
            "it would wake up for nothing"
        );
        assert_eq!(next_timeout(ms(3_750), ms(20)), Some(ms(20)));
        assert_eq!(next_timeout(ms(20), ms(20)), None);
        assert_eq!(next_timeout(ms(20), None), Some(None));
        assert_eq!(next_timeout(None, None), None);
    }

    #[test]
    fn a_wait_takes_few_wake_ups_and_ends_when_it_must() {
        let (mut set, mut left, mut wakes) = (None, Duration::from_secs(3_600), 0);
        while !left.is_zero() {
            if let Some(changed) = next_timeout(set, Some(left)) {
                set = changed;
            }
            let Some(wait) = set else {
                unreachable!("no limit at {left:?}")
            };
            assert!(wait <= left, "{wait:?} of {left:?}");
            assert!(!wait.is_zero());
            left -= wait;
            wakes += 1;
        }
        assert!(wakes < 15, "{wakes}");
    }
}
