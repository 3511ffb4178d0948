//! Connects to `host:port`: looks up the name, and tries all of its addresses, by one deadline.
//!
//! No wait is longer than 50 ms without a check of the deadline and the caller's `is_over`. A connect uses non-blocking
//! sockets and is cancelled by closing them. A look-up (`getaddrinfo`) cannot be cancelled, so it runs in a
//! thread of its own, which may outlive its caller: the one exception to the rule that all threads are joined. There is
//! at most one such thread per name, so a resolver that is silent for hours holds one for each name. Literal IP
//! addresses need no look-up and no thread.

use std::collections::BTreeMap;
use std::error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

/// Longest wait between two checks of the deadline and `is_over`.
const TURN: Duration = Duration::from_millis(50);

/// Time that an address has before the next one is tried as well.
const STAGGER: Duration = Duration::from_millis(250);

/// Look-ups in flight at most, each of another name.
const LOOK_UPS_MAX: usize = 64;

/// Time for which a result that came too late for its callers is kept for the next one.
const ANSWER_KEPT: Duration = Duration::from_secs(10);

static SYSTEM: Resolver = Resolver::new(|host| {
    let found = (host, 0).to_socket_addrs()?;
    Ok(found.collect())
});

/// Resolves `host:port` by `deadline`; stops when `is_over` becomes true. Addresses come in the system's order, each
/// once.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] at the deadline, [`ErrorKind::Interrupted`] where it is over, [`ErrorKind::NotFound`] for a
/// name without an address, [`ErrorKind::InvalidInput`] for a text that is no `host:port`; else the resolver's error,
/// or that of a system that gives no thread.
pub fn resolve(
    addr: &str,
    deadline: Instant,
    is_over: &dyn Fn() -> bool,
) -> io::Result<Vec<SocketAddr>> {
    SYSTEM.resolve(addr, deadline, is_over)
}

/// Connects to `host:port`, at the first of its addresses that takes the connection, by `deadline`; stops within 100 ms
/// after `is_over` becomes true. The stream blocks and has `TCP_NODELAY`.
///
/// # Errors
///
/// Those of [`resolve`] and [`connect_any`].
pub fn connect(addr: &str, deadline: Instant, is_over: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    connect_any(&resolve(addr, deadline, is_over)?, deadline, is_over)
}

/// Connects to the first of `addresses` that takes the connection. The next address is tried when one has failed, and
/// after 250 ms beside those that have not responded yet; with less time each gets an equal share.
///
/// # Errors
///
/// - [`ErrorKind::ConnectionRefused`]: every address refused, so no process listens there. A connection that reached
///   itself (loopback, where the own port happened to be the requested one) counts as refused.
/// - [`ErrorKind::TimedOut`]: at least one address was silent. Without an inner error where all of them were.
/// - [`ErrorKind::Interrupted`]: it is over.
/// - The system's error where it has no room for a socket.
/// - Otherwise the kind of the first failure that is no refusal.
///
/// Where several addresses were tried, the inner error names each with its failure.
pub fn connect_any(
    addresses: &[SocketAddr],
    deadline: Instant,
    is_over: &dyn Fn() -> bool,
) -> io::Result<TcpStream> {
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let share = deadline.saturating_duration_since(Instant::now()) / count;
    let stagger = share.min(STAGGER);
    let mut untried = addresses.iter();
    let mut pending: Vec<(SocketAddr, Socket)> = Vec::new();
    let mut failures = Failures::default();
    let mut next_at = Instant::now();
    loop {
        if is_over() {
            return Err(ErrorKind::Interrupted.into());
        }
        let now = Instant::now();
        if now >= deadline {
            let silent = pending.into_iter().map(|(addr, _)| addr);
            let silent = silent.chain(untried.copied());
            failures.0.extend(silent.map(|addr| (addr, None)));
            return Err(failures.into_error());
        }
        let mut turn = TURN.min(deadline - now);
        if now >= next_at || pending.is_empty() {
            match untried.next() {
                Some(&addr) => {
                    match begin(addr) {
                        Ok(socket) => pending.push((addr, socket)),
                        Err(error) if pending.is_empty() && is_shortage(&error) => {
                            return Err(error);
                        }
                        Err(error) => {
                            failures.0.push((addr, Some(error)));
                            continue;
                        }
                    }
                    next_at = now + stagger;
                }
                None if pending.is_empty() => return Err(failures.into_error()),
                None => {}
            }
        }
        if untried.len() > 0 {
            turn = turn.min(next_at.saturating_duration_since(now));
        }
        for at in wait_for_any(&pending, turn)?.into_iter().rev() {
            let (addr, socket) = pending.swap_remove(at);
            match finish(socket) {
                Ok(stream) => return Ok(stream),
                Err(error) => failures.0.push((addr, Some(error))),
            }
            next_at = now;
        }
    }
}

/// Begins to connect.
fn begin(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&addr.into()) {
        Err(error)
            if error.raw_os_error() != Some(libc::EINPROGRESS)
                && error.kind() != ErrorKind::WouldBlock =>
        {
            Err(error)
        }
        _ => Ok(socket),
    }
}

/// Whether this process or machine has no room for another socket, which is no failure of an address.
fn is_shortage(error: &io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Waits until a connect has come to its end, for `turn` at most. Returns the positions of those that have, ascending.
fn wait_for_any(pending: &[(SocketAddr, Socket)], turn: Duration) -> io::Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = pending
        .iter()
        .map(|(_, socket)| PollFd::new(socket, PollFlags::OUT))
        .collect();
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: turn.subsec_nanos().into(),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let ended = (0..).zip(&polled);
    let ended = ended.filter(|(_, polled)| !polled.revents().is_empty());
    Ok(ended.map(|(at, _)| at).collect())
}

/// Makes a stream of a socket after its connect has ended.
fn finish(socket: Socket) -> io::Result<TcpStream> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let stream = TcpStream::from(socket);
    if stream.local_addr()? == stream.peer_addr()? {
        // Ended with a reset, so that the port is free at once for the node that will listen there.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The result of each address; `None` for one that was silent.
#[derive(Debug, Default)]
struct Failures(Vec<(SocketAddr, Option<io::Error>)>);

impl Failures {
    fn into_error(mut self) -> io::Error {
        let kinds = self.0.iter().map(|(_, error)| kind(error.as_ref()));
        let is_silent = |kind: &ErrorKind| *kind == ErrorKind::TimedOut;
        let is_refusal = |kind: &ErrorKind| *kind == ErrorKind::ConnectionRefused;
        let Some(first) = kinds.clone().next() else {
            return no_address();
        };
        if self.0.iter().all(|(_, error)| error.is_none()) {
            return ErrorKind::TimedOut.into();
        }
        if self.0.len() == 1 {
            let only = self.0.pop().and_then(|(_, error)| error);
            return only.unwrap_or_else(|| first.into());
        }
        let kind = kinds.clone().find(is_silent);
        let kind = kind.or_else(|| kinds.clone().find(|kind| !is_refusal(kind)));
        io::Error::new(kind.unwrap_or(first), self)
    }
}

fn kind(error: Option<&io::Error>) -> ErrorKind {
    error.map_or(ErrorKind::TimedOut, io::Error::kind)
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (addr, error)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match error {
                Some(error) => write!(f, "{comma}{addr}: {}", system_text(error))?,
                None => write!(f, "{comma}{addr}: no response")?,
            }
        }
        Ok(())
    }
}

impl error::Error for Failures {
    /// The failure that gives the whole its kind, or else the first.
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        let mut failures = self.0.iter().filter_map(|(_, error)| error.as_ref());
        let first = failures.clone().next();
        let telling = failures.find(|error| error.kind() != ErrorKind::ConnectionRefused);
        telling.or(first).map(|error| error as _)
    }
}

/// A system's message in the form of this project's: lower case, without the error's number.
#[must_use]
pub fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        // Only a first word that is a word: `I/O error` stays.
        Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
            format!("{}{}", first.to_lowercase(), letters.as_str())
        }
        _ => text.to_owned(),
    }
}

fn no_address() -> io::Error {
    io::Error::new(ErrorKind::NotFound, "the name has no address")
}

/// Runs look-ups, at most one for each name at a time.
struct Resolver {
    look_up: fn(&str) -> io::Result<Vec<SocketAddr>>,
    look_ups: Mutex<BTreeMap<String, LookUp>>,
    /// One of them has a result.
    done: Condvar,
}

/// The look-up of one name: in flight, or with a result that not all of its callers have taken.
#[derive(Default)]
struct LookUp {
    found: Option<Found>,
    callers: usize,
}

struct Found {
    addresses: Result<Vec<SocketAddr>, (ErrorKind, String)>,
    at: Instant,
}

impl LookUp {
    /// Whether it is needed: it is in flight, or has a result that a caller waits for, or one that came after the last
    /// caller had stopped waiting. Without the last case a name would never resolve if its look-up takes longer than
    /// each caller waits.
    fn is_needed(&self) -> bool {
        let found = self.found.as_ref();
        self.callers > 0 || found.is_none_or(|found| found.at.elapsed() < ANSWER_KEPT)
    }
}

impl Resolver {
    const fn new(look_up: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Resolver {
        Resolver {
            look_up,
            look_ups: Mutex::new(BTreeMap::new()),
            done: Condvar::new(),
        }
    }

    fn resolve(
        &'static self,
        addr: &str,
        deadline: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = addr.parse::<SocketAddr>() {
            return Ok(vec![literal]);
        }
        let no_port = || io::Error::new(ErrorKind::InvalidInput, "not HOST:PORT");
        let (host, port) = addr.rsplit_once(':').ok_or_else(no_port)?;
        let port = port.parse::<u16>().map_err(|_| no_port())?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for mut found in self.find(host, deadline, is_over)? {
            found.set_port(port);
            if !addresses.contains(&found) {
                addresses.push(found);
            }
        }
        if addresses.is_empty() {
            return Err(no_address());
        }
        Ok(addresses)
    }

    /// Waits for the look-up of `host` that is in flight, or for a new one.
    fn find(
        &'static self,
        host: &str,
        deadline: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut look_ups = self.look_ups.lock();
        look_ups.retain(|_, look_up| look_up.is_needed());
        if !look_ups.contains_key(host) {
            self.begin(host, look_ups.len())?;
        }
        look_ups.entry(host.to_owned()).or_default().callers += 1;
        let result = loop {
            let found = look_ups.get(host).and_then(|it| it.found.as_ref());
            if let Some(found) = found {
                let error = |(kind, text)| io::Error::new(kind, text);
                break found.addresses.clone().map_err(error);
            }
            let now = Instant::now();
            if is_over() {
                break Err(ErrorKind::Interrupted.into());
            }
            if now >= deadline {
                let why = format!("the look-up of {host} got no response");
                break Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            let _ = self
                .done
                .wait_until(&mut look_ups, deadline.min(now + TURN));
        };
        if let Some(look_up) = look_ups.get_mut(host) {
            look_up.callers -= 1;
            if look_up.callers == 0 && look_up.found.is_some() {
                look_ups.remove(host);
            }
        }
        result
    }

    /// Starts the thread that looks up `host`, beside `others`.
    fn begin(&'static self, host: &str, others: usize) -> io::Result<()> {
        let cannot =
            |why: &dyn fmt::Display| io::Error::other(format!("cannot look up {host}: {why}"));
        if others >= LOOK_UPS_MAX {
            return Err(cannot(&format_args!(
                "{others} look-ups of other names are in flight, limit {LOOK_UPS_MAX}"
            )));
        }
        let host_asked = host.to_owned();
        let body = move || {
            let addresses = (self.look_up)(&host_asked);
            let found = Found {
                addresses: addresses.map_err(|error| (error.kind(), system_text(&error))),
                at: Instant::now(),
            };
            let mut look_ups = self.look_ups.lock();
            look_ups.entry(host_asked).or_default().found = Some(found);
            self.done.notify_all();
        };
        let thread = thread::Builder::new().name("look-up".to_owned());
        thread.spawn(body).map(drop).map_err(|error| cannot(&error))
    }
}

#[cfg(test)]
mod tests;
