//! The listening sockets: one for each address that the name has.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use log::info;
use socket2::{Domain, SockRef, Socket, Type};

use crate::dial;

/// Connections that the system completes before the server has accepted them. A rush of clients beyond it is slowed by
/// retransmissions, not refused; the system may cut it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// How long the look-up of the name may take. A service manager starts the node again where a resolver is silent.
const RESOLVED_WITHIN: Duration = Duration::from_secs(10);

/// How many ports of the system's choice are tried until one is free at every address.
const PORTS_TRIED: u32 = 64;

/// The server cannot listen where it should.
#[derive(Debug)]
pub struct BindError {
    /// The address that the server was given.
    pub addr: String,
    /// The one of its addresses that failed; `None` where the name was not resolved.
    pub at: Option<SocketAddr>,
    /// The system's error.
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}", self.addr)?;
        match self.at.map(|at| at.to_string()) {
            Some(at) if at != self.addr => write!(f, ", which is {at}: {}", self.source),
            Some(_) | None => write!(f, ": {}", self.source),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// One socket for each address that the server listens at; at least one.
#[derive(Debug)]
pub(super) struct Listeners {
    sockets: Vec<TcpListener>,
    addrs: Vec<SocketAddr>,
}

impl Listeners {
    /// Listens at every address of `addr` (`host:port`). For port 0 the system chooses one, the same for all of them.
    /// An address that this machine does not have, such as `::1` without IPv6, is skipped where another one works.
    pub(super) fn bind(addr: &str) -> Result<Listeners, BindError> {
        let failed = |at, source| BindError {
            addr: addr.to_owned(),
            at,
            source,
        };
        let addrs = dial::resolve(addr, Instant::now() + RESOLVED_WITHIN, &|| false)
            .map_err(|source| failed(None, source))?;
        let mut tries_left = PORTS_TRIED;
        loop {
            tries_left -= 1;
            match Listeners::bind_all(&addrs) {
                Ok(listeners) => return Ok(listeners),
                // The port that the first address was given is in use at another one.
                Err((Some(at), error))
                    if tries_left > 0
                        && error.kind() == ErrorKind::AddrInUse
                        && addrs.iter().any(|addr| addr.port() == 0)
                        && addrs.first().is_some_and(|first| first.ip() != at.ip()) => {}
                Err((at, source)) => return Err(failed(at, source)),
            }
        }
    }

    fn bind_all(addrs: &[SocketAddr]) -> Result<Listeners, (Option<SocketAddr>, io::Error)> {
        let mut listeners = Listeners {
            sockets: Vec::new(),
            addrs: Vec::new(),
        };
        let mut skipped = Vec::new();
        for &wanted in addrs {
            let mut at = wanted;
            if let (0, Some(first)) = (at.port(), listeners.addrs.first()) {
                at.set_port(first.port());
            }
            let bound = listen(at, addrs.len() > 1);
            match bound.and_then(|socket| Ok((socket.local_addr()?, socket))) {
                Ok((addr, socket)) => {
                    listeners.addrs.push(addr);
                    listeners.sockets.push(socket);
                }
                Err(error) if is_not_here(&error) => skipped.push((at, error)),
                Err(error) => return Err((Some(at), error)),
            }
        }
        if listeners.sockets.is_empty() {
            let no_address = || io::Error::new(ErrorKind::NotFound, "the name has no address");
            let mut skipped = skipped.into_iter();
            return Err(skipped
                .next()
                .map_or_else(|| (None, no_address()), |(at, error)| (Some(at), error)));
        }
        for (at, error) in skipped {
            info!("not listening on {at}, which this machine does not have: {error}");
        }
        Ok(listeners)
    }

    /// The addresses, in the resolver's order.
    pub(super) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The sockets, in the same order.
    pub(super) fn sockets(&self) -> &[TcpListener] {
        &self.sockets
    }

    /// Shuts the sockets down, so that they accept no client any more. This makes them readable, which wakes a poll.
    pub(super) fn shut_down(&self) {
        for socket in &self.sockets {
            // Fails only for one that is shut down already.
            let _ = SockRef::from(socket).shutdown(Shutdown::Both);
        }
    }
}

fn listen(addr: SocketAddr, is_one_of_several: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A restarted server gets its port back while connections of the last one are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() && is_one_of_several {
        // `[::]` would take IPv4 too, which another socket is for.
        socket.set_only_v6(true)?;
    }
    // A client may leave between the poll that reports it and the accept.
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether the error says that the machine does not have the address, or its family.
fn is_not_here(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn bind_all(addrs: &[(&str, u16)]) -> Result<Listeners, (Option<SocketAddr>, io::Error)> {
        let addrs: Vec<SocketAddr> = addrs
            .iter()
            .map(|&(ip, port)| SocketAddr::new(ip.parse().unwrap(), port))
            .collect();
        Listeners::bind_all(&addrs)
    }

    #[test]
    fn port_0_is_one_port_for_all_addresses() {
        for _ in 0..20 {
            let listeners = bind_all(&[("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.3", 0)]);
            // Another program may have the port at one of them, which the next test is about.
            let Ok(listeners) = listeners else { continue };
            let [first, rest @ ..] = listeners.addrs() else {
                panic!("no address")
            };
            assert_eq!(rest.len(), 2);
            assert!(rest.iter().all(|addr| addr.port() == first.port()));
            assert_ne!(first.port(), 0);
            for addr in listeners.addrs() {
                TcpStream::connect(addr).unwrap();
            }
            return;
        }
        panic!("no port in 20 tries");
    }

    #[test]
    fn an_address_in_use_is_an_error_that_names_it_and_one_that_is_not_here_is_skipped() {
        let taken = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
        let at = taken.local_addr().unwrap();
        let (failed, error) = bind_all(&[("127.0.0.1", at.port()), ("127.0.0.2", at.port())])
            .map(drop)
            .unwrap_err();
        assert_eq!((failed, error.kind()), (Some(at), ErrorKind::AddrInUse));
        // Of TEST-NET-1, which no machine has.
        let listeners = bind_all(&[("192.0.2.1", 0), ("127.0.0.1", 0)]).unwrap();
        assert_eq!(listeners.addrs().len(), 1);
        let (failed, error) = bind_all(&[("192.0.2.1", 7)]).map(drop).unwrap_err();
        assert_eq!(failed, Some(([192, 0, 2, 1], 7).into()));
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        let (_, error) = bind_all(&[("192.0.2.1", 0), ("127.0.0.2", at.port())])
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn both_wildcards_are_listened_at_where_the_name_has_both() {
        let Ok(listeners) = bind_all(&[("::", 0), ("0.0.0.0", 0)]) else {
            panic!("the wildcards exclude each other")
        };
        let port = listeners.addrs()[0].port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
