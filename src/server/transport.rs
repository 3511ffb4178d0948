//! The byte stream between this node and a client: TCP. TLS becomes a second kind of it.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::session::Source;
use super::system;

/// Whether a call waits for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Until it can do something, or the timeout of its direction is over; it then fails with
    /// [`WouldBlock`](ErrorKind::WouldBlock).
    Wait,
    /// Fails with [`WouldBlock`](ErrorKind::WouldBlock) where it would have to wait.
    Now,
}

/// A client's socket. Threads share it by reference: one serves the client, others shut it down.
#[derive(Debug)]
pub(super) struct Transport {
    stream: TcpStream,
}

impl Transport {
    pub(super) const fn new(stream: TcpStream) -> Transport {
        Transport { stream }
    }

    /// Prepares the socket for requests and responses: nothing is delayed, and a send waits for `send_timeout` at most.
    pub(super) fn prepare(&self, send_timeout: Duration) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_write_timeout(Some(send_timeout))
    }

    /// Sets for how long [`Mode::Wait`] waits for input; `None` for ever.
    pub(super) fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Puts bytes that have arrived at the start of `room`, and returns how many. 0 is the end of the stream.
    pub(super) fn receive(&self, room: &mut [u8], mode: Mode) -> io::Result<usize> {
        let (count, _) = rustix::net::recv(&self.stream, room, receive_flags(mode))?;
        Ok(count)
    }

    /// The same where `room` need not be initialised; returns its part that is, by then.
    fn receive_uninit<'r>(
        &self,
        room: &'r mut [MaybeUninit<u8>],
        mode: Mode,
    ) -> io::Result<&'r mut [u8]> {
        let ((filled, _), _) = rustix::net::recv(&self.stream, room, receive_flags(mode))?;
        Ok(filled)
    }

    /// A view of this from which a session reads.
    pub(super) const fn source(&self, mode: Mode) -> Incoming<'_> {
        let transport = self;
        Incoming { transport, mode }
    }

    /// Sends the beginning of `first` and `second`, one behind the other; returns how many bytes. Nothing joins them in
    /// memory.
    pub(super) fn send(&self, first: &[u8], second: &[u8], mode: Mode) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL
            | match mode {
                Mode::Wait => SendFlags::empty(),
                Mode::Now => SendFlags::DONTWAIT,
            };
        let sent = if second.is_empty() {
            rustix::net::send(&self.stream, first, flags)
        } else {
            let slices = [IoSlice::new(first), IoSlice::new(second)];
            let mut ancillary = SendAncillaryBuffer::default();
            rustix::net::sendmsg(&self.stream, &slices, &mut ancillary, flags)
        };
        match sent? {
            0 => Err(ErrorKind::WriteZero.into()),
            count => Ok(count),
        }
    }

    /// Ends a direction, or both, for every thread. The error of a client that has left by itself is left out: the next
    /// call shows it.
    pub(super) fn shut_down(&self, how: Shutdown) {
        let _ = self.stream.shutdown(how);
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Bytes that were sent and that the client's system has not acknowledged.
    ///
    /// # Errors
    ///
    /// When the socket is no longer connected.
    pub(super) fn unacknowledged_bytes(&self) -> io::Result<usize> {
        system::unacknowledged_bytes(&self.stream)
    }

    /// The TCP socket below, for its options and for a replication stream.
    pub(super) const fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

const fn receive_flags(mode: Mode) -> RecvFlags {
    match mode {
        Mode::Wait => RecvFlags::empty(),
        Mode::Now => RecvFlags::DONTWAIT,
    }
}

/// The input of a transport, as a session reads it.
pub(super) struct Incoming<'t> {
    transport: &'t Transport,
    mode: Mode,
}

impl Source for Incoming<'_> {
    type Error = io::Error;

    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.transport.receive(room, self.mode)
    }

    fn read_uninit<'r>(&mut self, room: &'r mut [MaybeUninit<u8>]) -> io::Result<&'r mut [u8]> {
        self.transport.receive_uninit(room, self.mode)
    }
}
