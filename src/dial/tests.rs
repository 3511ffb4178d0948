use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// The silent address of the integration tests.
#[path = "../../tests/support/silent.rs"]
#[allow(clippy::unwrap_used, unreachable_pub)]
mod silent_address;
use silent_address::Silent;

const LONG: Duration = Duration::from_secs(20);
/// A stop is seen within 100 ms; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(2);

fn never() -> bool {
    false
}

fn in_time(time: Duration) -> Instant {
    Instant::now() + time
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok();
    let addr = listener.as_ref().and_then(|it| it.local_addr().ok());
    let (Some(listener), Some(addr)) = (listener, addr) else {
        unreachable!("no listener")
    };
    (listener, addr)
}

/// An address that refuses.
fn closed() -> SocketAddr {
    listener().1
}

/// The kind and the text of a failure.
fn failure<T>(result: io::Result<T>) -> (ErrorKind, String) {
    match result {
        Ok(_) => unreachable!("it worked"),
        Err(error) => (error.kind(), error.to_string()),
    }
}

#[test]
fn a_silent_first_address_leaves_time_for_the_others() {
    let silent = Silent::start();
    let (listener, addr) = listener();
    // The second one is tried after a quarter of a second, and after its share of less.
    for time in [LONG, Duration::from_millis(400)] {
        let begin = Instant::now();
        let stream = connect_any(&[silent.addr, addr], begin + time, &never);
        let Ok(stream) = stream else {
            unreachable!("no connection within {time:?}: {stream:?}")
        };
        assert_eq!(stream.peer_addr().ok(), Some(addr));
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
        assert_eq!(stream.nodelay().ok(), Some(true));
        let is_nonblocking = socket2::SockRef::from(&stream).nonblocking();
        assert_eq!(is_nonblocking.ok(), Some(false));
        assert!(listener.accept().is_ok());
    }
}

#[test]
fn an_address_that_refuses_is_followed_by_the_next_at_once() {
    let (listener, addr) = listener();
    let refusing: Vec<SocketAddr> = (0..40).map(|_| closed()).collect();
    let begin = Instant::now();
    let stream = connect_any(&[&*refusing, &[addr]].concat(), begin + LONG, &never);
    assert!(stream.is_ok(), "{stream:?}");
    assert!(listener.accept().is_ok());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn refused_means_that_every_address_refused() {
    let silent = Silent::start();
    let short = Duration::from_millis(300);
    let (one, other) = (closed(), closed());
    let (kind, text) = failure(connect_any(&[one], in_time(LONG), &never));
    assert_eq!(kind, ErrorKind::ConnectionRefused);
    assert!(text.contains("refused (os error"), "{text}");

    let (kind, text) = failure(connect_any(&[one, other], in_time(LONG), &never));
    assert_eq!(kind, ErrorKind::ConnectionRefused);
    assert_eq!(
        text,
        format!("{one}: connection refused, {other}: connection refused")
    );

    for addresses in [[one, silent.addr], [silent.addr, one]] {
        let error = connect_any(&addresses, in_time(short), &never);
        let (kind, text) = failure(error);
        assert_eq!(kind, ErrorKind::TimedOut, "{text}");
        assert!(text.contains(&format!("{}: no response", silent.addr)));
        assert!(text.contains(&format!("{one}: connection refused")));
    }

    // No connection can be made to a multicast address; how the system says so does not matter.
    let unreachable = SocketAddr::from(([224, 0, 0, 1], 9));
    let (kind, text) = failure(connect_any(&[one, unreachable], in_time(short), &never));
    assert_ne!(kind, ErrorKind::ConnectionRefused, "{text}");

    let silent = connect_any(&[silent.addr], in_time(short), &never);
    let is_plain = |error: io::Error| error.get_ref().is_none();
    assert_eq!(silent.map_err(is_plain).err(), Some(true));
    assert_eq!(
        failure(connect_any(&[], in_time(short), &never)).0,
        ErrorKind::NotFound
    );
}

#[test]
fn a_connect_ends_at_the_stop_and_at_the_deadline() {
    let silent = Silent::start();
    let addr = silent.addr.to_string();
    let begin = Instant::now();
    let is_over = || begin.elapsed() > Duration::from_millis(100);
    let (kind, _) = failure(connect(&addr, begin + LONG, &is_over));
    assert_eq!(kind, ErrorKind::Interrupted);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());

    let begin = Instant::now();
    let (kind, _) = failure(connect(&addr, begin + Duration::from_millis(100), &never));
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let (kind, _) = failure(connect(&addr, Instant::now(), &never));
    assert_eq!(kind, ErrorKind::TimedOut);
}

#[test]
fn a_connection_to_itself_counts_as_refused() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else {
        unreachable!("no socket")
    };
    assert!(socket.bind(&any.into()).is_ok());
    let Ok(own) = socket.local_addr() else {
        unreachable!("no address")
    };
    assert!(socket.connect(&own).is_ok());
    assert_eq!(failure(finish(socket)).0, ErrorKind::ConnectionRefused);
    // Without SO_REUSEADDR, so that the port must be quite free.
    let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else {
        unreachable!("no socket")
    };
    assert!(socket.bind(&own).is_ok(), "the port is held");
}

/// A resolver that is silent until it is told to answer.
static IS_SILENT: AtomicBool = AtomicBool::new(true);
static ASKED: AtomicUsize = AtomicUsize::new(0);
static SLOW: Resolver = Resolver::new(|_| {
    ASKED.fetch_add(1, Ordering::SeqCst);
    while IS_SILENT.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(vec![SocketAddr::from(([192, 0, 2, 1], 0))])
});

#[test]
fn a_silent_resolver_holds_no_caller_and_one_thread_per_name() {
    let short = Duration::from_millis(100);
    for _ in 0..5 {
        let begin = Instant::now();
        let (kind, text) = failure(SLOW.resolve("slow.test:1", begin + short, &never));
        assert_eq!(kind, ErrorKind::TimedOut, "{text}");
        assert!(text.contains("slow.test"), "{text}");
        let is_over = || begin.elapsed() > short;
        let stopped = SLOW.resolve("slow.test:2", begin + LONG, &is_over);
        assert_eq!(failure(stopped).0, ErrorKind::Interrupted);
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
    assert_eq!(ASKED.load(Ordering::SeqCst), 1);
    // Addresses in digits do not ask it.
    for literal in ["127.0.0.1:7", "[::1]:7", "::1:7"] {
        let found = SLOW.resolve(literal, Instant::now(), &never);
        assert_eq!(found.map(|found| found.len()).ok(), Some(1), "{literal}");
    }
    // An answer that comes when no caller waits is the next caller's, with its own port.
    IS_SILENT.store(false, Ordering::SeqCst);
    let has_answer = || {
        let look_ups = SLOW.look_ups.lock();
        look_ups.values().all(|look_up| look_up.found.is_some())
    };
    let deadline = in_time(LONG);
    while !has_answer() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    let expected = vec![SocketAddr::from(([192, 0, 2, 1], 3))];
    let found = SLOW.resolve("slow.test:3", Instant::now(), &never);
    assert_eq!(found.ok(), Some(expected));
    assert_eq!(ASKED.load(Ordering::SeqCst), 1);
    // After that the name is looked up anew.
    assert!(SLOW.resolve("slow.test:4", in_time(LONG), &never).is_ok());
    assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    assert!(SLOW.look_ups.lock().is_empty());
}

static GATE: AtomicBool = AtomicBool::new(false);
static SHARED: Resolver = Resolver::new(|_| {
    while !GATE.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::ENOENT))
});

#[test]
fn callers_of_one_name_share_its_answer() {
    let ask = || thread::spawn(|| failure(SHARED.resolve("h:1", in_time(LONG), &never)));
    let callers: Vec<_> = (0..8).map(|_| ask()).collect();
    let count = || SHARED.look_ups.lock().get("h").map_or(0, |it| it.callers);
    let deadline = in_time(LONG);
    while count() < callers.len() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    GATE.store(true, Ordering::SeqCst);
    for caller in callers {
        let failed = caller.join().ok();
        let text = "no such file or directory".to_owned();
        assert_eq!(failed, Some((ErrorKind::NotFound, text)));
    }
    assert!(SHARED.look_ups.lock().is_empty());
}

static STUCK: Resolver = Resolver::new(|_| {
    loop {
        thread::park();
    }
});

#[test]
fn unresolved_names_do_not_accumulate_threads() {
    for at in 0..LOOK_UPS_MAX {
        let (kind, _) = failure(STUCK.resolve(&format!("h{at}:1"), Instant::now(), &never));
        assert_eq!(kind, ErrorKind::TimedOut);
    }
    let (kind, text) = failure(STUCK.resolve("one-more:1", in_time(LONG), &never));
    assert_eq!(kind, ErrorKind::Other);
    assert!(text.contains("one-more"), "{text}");
    assert_eq!(STUCK.look_ups.lock().len(), LOOK_UPS_MAX);
}

static SEVERAL: Resolver = Resolver::new(|host| match host {
    "several" => {
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| SocketAddr::from((ip, 0)));
        Ok(vec![one, other, one])
    }
    "none" => Ok(Vec::new()),
    _ => Err(io::Error::from_raw_os_error(libc::ENOENT)),
});

#[test]
fn a_name_has_each_of_its_addresses_once_or_an_error() {
    let resolve = |addr| SEVERAL.resolve(addr, in_time(LONG), &never);
    let expected = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| SocketAddr::from((ip, 80)));
    assert_eq!(resolve("several:80").ok(), Some(expected.to_vec()));
    assert_eq!(failure(resolve("none:80")).0, ErrorKind::NotFound);
    let (kind, text) = failure(resolve("wrong:80"));
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(text, "no such file or directory");
    for addr in ["", "several", "several:", "several:65536", "several:x", ":"] {
        assert_eq!(
            failure(resolve(addr)).0,
            ErrorKind::InvalidInput,
            "{addr:?}"
        );
    }
}

#[test]
fn the_system_resolves_names() {
    let found = resolve("localhost:7", in_time(LONG), &never);
    let Ok(found) = found else {
        unreachable!("{found:?}")
    };
    assert!(
        found
            .iter()
            .all(|addr| addr.ip().is_loopback() && addr.port() == 7)
    );
    assert!(!found.is_empty());
    let (listener, addr) = listener();
    let name = format!("localhost:{}", addr.port());
    let stream = connect(&name, in_time(LONG), &never);
    assert!(stream.is_ok(), "{stream:?}");
    assert!(listener.accept().is_ok());
}
