//! A TCP proxy in front of one node. The test controls how it passes bytes on.
//!
//! Each connection has a thread per [`Way`], which waits in reads and writes of at most [`TICK`] and looks at the
//! controls in between; what passes is not slowed by that. Every thread is joined when the proxy is dropped.
//!
//! # What is exact
//!
//! * When [`Proxy::hold`] returns, not one byte more is delivered that way until it is released; nothing is lost.
//! * [`Proxy::cut_after`] with [`Cut::End`] delivers exactly that many bytes, and then the end of the stream. With
//!   [`Cut::Reset`] the receiver's system may throw away what its process has not read yet.
//! * [`Proxy::flip`] changes one bit of one frame, and only of a frame that is long enough to have that byte.
//!
//! # Known limits
//!
//! * A node that has ended refuses connections, but a listening proxy accepts and resets. So the test calls
//!   [`Proxy::set_target_gone`] when it ends a node, which makes the proxy refuse.
//! * A held proxy accepts connections, where a cut network does not respond.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// The longest wait in one system call.
const TICK: Duration = Duration::from_millis(20);
/// Bytes read at once.
const CHUNK_LEN: usize = 64 << 10;
/// Most bytes in transit with a delay. Without one, nothing is read before the last bytes are delivered.
const DELAYED_LEN_MAX: usize = 8 << 20;
/// Buffers of the sockets: small, so that the sender soon notices a held or slow connection.
const SOCKET_BUFFER_LEN: usize = 256 << 10;
/// How long the rest of a cut connection's input is read, so that closing it does not reset it.
const DRAIN: Duration = Duration::from_millis(200);
/// No such request.
const NONE: u64 = u64::MAX;

/// Direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the connecting side to the node: requests, and a follower's ACKs.
    Up,
    /// From the node to the connecting side: responses, and the leader's stream.
    Down,
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// An end of stream on both sides.
    End,
    /// A reset on both sides.
    Reset,
}

/// The events so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections accepted.
    pub(crate) accepted: u64,
    /// Those of them with a request that [`Proxy::watch`] names, or any.
    pub(crate) watched: u64,
    /// Connections that are open now.
    pub(crate) open: u64,
    /// Bytes delivered to the node.
    pub(crate) up: u64,
    /// Bytes delivered to the connecting side.
    pub(crate) down: u64,
    /// How often [`Proxy::cut_after`] has cut.
    pub(crate) cuts: u64,
    /// How often [`Proxy::flip`] has flipped.
    pub(crate) flips: u64,
}

/// A proxy on a port of its own, in front of one address.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// Bound and never listening, so that the port stays ours, and refuses, while nothing listens.
    _reserved: Socket,
    listening: Mutex<Option<Listening>>,
}

#[derive(Debug)]
struct Listening {
    listener: Arc<TcpListener>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// Whenever something in `state` has changed that a thread may wait for.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_stopping: bool,
    is_refusing: bool,
    is_target_gone: bool,
    ways: [Controls; 2],
    connections: HashMap<u64, Arc<Connection>>,
    threads: Vec<JoinHandle<()>>,
    /// None: every connection.
    watched_opcode: Option<u8>,
    counts: Counts,
}

/// The treatment of the bytes in one direction.
#[derive(Debug, Default)]
struct Controls {
    is_held: bool,
    /// Writes that are being carried out.
    delivering: usize,
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// When the rate allows the next byte.
    next_at: Option<Instant>,
    cut_after: Option<(u64, Cut)>,
    flip: Option<Flip>,
}

#[derive(Clone, Copy, Debug)]
struct Flip {
    opcode: u8,
    offset: usize,
    mask: u8,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    node: OnceLock<TcpStream>,
    cut: OnceLock<Cut>,
    /// Whether a request has begun that [`Proxy::watch`] names, or any.
    is_watched: AtomicBool,
    /// Number of the response after which the node's side speaks in requests, as the leader does after FOLLOW.
    stream_begins_after: AtomicU64,
}

/// The opcode after whose response the node sends request-shaped frames.
const FOLLOW: u8 = 0x60;

impl Proxy {
    /// A proxy in front of `target`, which need not be there yet.
    pub(crate) fn start(target: SocketAddr) -> Proxy {
        let (reserved, addr) = reserve_port();
        let proxy = Proxy {
            addr,
            shared: Arc::new(Shared {
                target,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            _reserved: reserved,
            listening: Mutex::new(None),
        };
        proxy.listen_or_refuse();
        proxy
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.shared.state();
        let is_open = |connection: &&Arc<Connection>| connection.cut.get().is_none();
        let open = state.connections.values().filter(is_open).count();
        Counts {
            open: u64::try_from(open).unwrap(),
            ..state.counts
        }
    }

    /// Ends every hold, delay, limit and refusal, and takes back what was armed. Connections go on.
    pub(crate) fn pass(&self) {
        let mut state = self.shared.state();
        for way in &mut state.ways {
            *way = Controls {
                delivering: way.delivering,
                ..Controls::default()
            };
        }
        state.is_refusing = false;
        drop(state);
        self.shared.changed.notify_all();
        self.listen_or_refuse();
    }

    /// Delivers nothing that way, neither bytes nor an end, and keeps all sockets open, until it is
    /// [released](Self::release). Nothing is read either, so the sender's buffers fill. Upwards, new connections are
    /// accepted and go nowhere.
    pub(crate) fn hold(&self, way: Way) {
        let mut state = self.shared.state();
        state.control(way).is_held = true;
        while state.control(way).delivering > 0 {
            state = self.shared.changed.wait(state).unwrap();
        }
    }

    /// Holds both ways: the link is half-open, for both sides.
    pub(crate) fn hold_both(&self) {
        self.hold(Way::Up);
        self.hold(Way::Down);
    }

    /// Ends a hold: what was held back is delivered.
    pub(crate) fn release(&self, way: Way) {
        self.shared.state().control(way).is_held = false;
        self.shared.changed.notify_all();
    }

    /// Closes every connection now. New ones are welcome.
    pub(crate) fn cut(&self, how: Cut) {
        let mut state = self.shared.state();
        state.cut_all(how);
        self.shared.changed.notify_all();
        // A reset is sent when the last thread has let go of the socket.
        while how == Cut::Reset
            && state
                .connections
                .values()
                .any(|c| c.cut.get() == Some(&how))
        {
            state = self.shared.changed.wait(state).unwrap();
        }
    }

    /// Closes every connection once `len` more bytes of [watched](Self::watch) connections were delivered that way.
    pub(crate) fn cut_after(&self, way: Way, len: u64, how: Cut) {
        self.shared.state().control(way).cut_after = Some((len, how));
        self.shared.changed.notify_all();
    }

    /// Whether connections are refused; those that are open go on.
    pub(crate) fn refuse(&self, is_refusing: bool) {
        self.shared.state().is_refusing = is_refusing;
        self.listen_or_refuse();
    }

    /// Refuses connections, as the node's own port does while no process listens there. Outlasts [`pass`](Self::pass).
    pub(crate) fn set_target_gone(&self, is_gone: bool) {
        self.shared.state().is_target_gone = is_gone;
        self.listen_or_refuse();
    }

    /// Delivers each byte so much later. A delay that becomes shorter does not overtake what is on its way.
    pub(crate) fn delay(&self, way: Way, delay: Duration) {
        self.shared.state().control(way).delay = delay;
    }

    /// Delivers at most this number of bytes a second over all connections.
    pub(crate) fn throttle(&self, way: Way, bytes_per_second: Option<u64>) {
        let mut state = self.shared.state();
        let control = state.control(way);
        (control.bytes_per_second, control.next_at) = (bytes_per_second, None);
    }

    /// Flips the bits of `mask` in the byte at `offset` of the next request-shaped frame with `opcode` that begins to
    /// pass that way and has such a byte. Downwards that is a frame of a leader's stream.
    pub(crate) fn flip(&self, way: Way, opcode: u8, offset: usize, mask: u8) {
        self.shared.state().control(way).flip = Some(Flip {
            opcode,
            offset,
            mask,
        });
    }

    /// From now on [`cut_after`](Self::cut_after) counts only bytes of connections on which a request with `opcode`
    /// has begun.
    pub(crate) fn watch(&self, opcode: u8) {
        self.shared.state().watched_opcode = Some(opcode);
    }

    /// Makes the listener what the state asks for.
    fn listen_or_refuse(&self) {
        let mut listening = self.listening.lock().unwrap();
        let is_refusing = {
            let state = self.shared.state();
            state.is_stopping || state.is_refusing || state.is_target_gone
        };
        if is_refusing {
            if let Some(Listening { listener, thread }) = listening.take() {
                // Wakes the accept.
                SockRef::from(&*listener).shutdown(Shutdown::Both).unwrap();
                thread.join().unwrap();
            }
        } else if listening.is_none() {
            let listener = Arc::new(listen(self.addr));
            let shared = Arc::clone(&self.shared);
            let thread = thread::spawn({
                let listener = Arc::clone(&listener);
                move || accept(&listener, &shared)
            });
            *listening = Some(Listening { listener, thread });
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.is_stopping = true;
            state.cut_all(Cut::Reset);
            self.shared.changed.notify_all();
        }
        self.listen_or_refuse();
        let threads = std::mem::take(&mut self.shared.state().threads);
        for thread in threads {
            let joined = thread.join();
            assert!(
                joined.is_ok() || thread::panicking(),
                "a proxy's thread failed, see above"
            );
        }
    }
}

/// A port that stays ours and refuses connections, until a socket that may share it (`SO_REUSEADDR`) listens there. The
/// system does not assign such a port as a free one.
pub(crate) fn reserve_port() -> (Socket, SocketAddr) {
    let socket = socket();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

fn listen(addr: SocketAddr) -> TcpListener {
    let socket = socket();
    // Before `listen`, from which connections inherit it.
    socket.set_recv_buffer_size(SOCKET_BUFFER_LEN).unwrap();
    socket.set_send_buffer_size(SOCKET_BUFFER_LEN).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    // An error is the listener's end.
    while let Ok((client, _)) = listener.accept() {
        let connection = Arc::new(Connection {
            client,
            node: OnceLock::new(),
            cut: OnceLock::new(),
            is_watched: AtomicBool::new(false),
            stream_begins_after: AtomicU64::new(NONE),
        });
        let mut state = shared.state();
        if state.is_stopping {
            cut(&connection, Cut::Reset);
            break;
        }
        let number = state.counts.accepted;
        state.counts.accepted += 1;
        state.connections.insert(number, Arc::clone(&connection));
        let thread = thread::spawn({
            let shared = Arc::clone(shared);
            move || {
                // A fault of one side has been passed on to the other.
                let _ = serve(&shared, &connection);
                let mut state = shared.state();
                state.connections.remove(&number);
                drop(connection);
                drop(state);
                shared.changed.notify_all();
            }
        });
        let (ended, running) = std::mem::take(&mut state.threads)
            .into_iter()
            .partition(JoinHandle::is_finished);
        state.threads = running;
        state.threads.push(thread);
        drop(state);
        for thread in ended {
            thread.join().unwrap();
        }
    }
}

fn serve(shared: &Shared, connection: &Connection) -> io::Result<()> {
    let mut state = shared.state();
    while state.control(Way::Up).is_held && connection.cut.get().is_none() {
        state = shared.changed.wait(state).unwrap();
    }
    drop(state);
    if connection.cut.get().is_some() {
        return Ok(());
    }
    let node = match dial(shared.target) {
        Ok(node) => node,
        Err(error) => {
            cut(connection, Cut::Reset);
            return Err(error);
        }
    };
    for stream in [&connection.client, &node] {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(TICK))?;
    }
    {
        // Under the lock, so that a cut sees either both sockets, or none after this.
        let _state = shared.state();
        connection.node.set(node).unwrap();
        if let Some(how) = connection.cut.get() {
            prepare(connection, *how);
        }
    }
    thread::scope(|scope| {
        let down = scope.spawn(|| Pump::new(shared, connection, Way::Down).run());
        let up = Pump::new(shared, connection, Way::Up).run();
        up.and(down.join().unwrap())
    })
}

fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_LEN)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_LEN)?;
    socket.connect_timeout(&target.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// Marks a connection as cut; the first one to do so says how.
fn cut(connection: &Connection, how: Cut) {
    if connection.cut.set(how).is_ok() {
        prepare(connection, how);
    }
}

/// Lets nothing more out of the sockets of a connection that is cut, and wakes its threads.
fn prepare(connection: &Connection, how: Cut) {
    for stream in [Some(&connection.client), connection.node.get()]
        .into_iter()
        .flatten()
    {
        // Each fails where the other side was quicker.
        let _ = match how {
            Cut::End => stream.shutdown(Shutdown::Write),
            Cut::Reset => SockRef::from(stream)
                .set_linger(Some(Duration::ZERO))
                .and_then(|()| stream.shutdown(Shutdown::Read)),
        };
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn control(&mut self, way: Way) -> &mut Controls {
        &mut self.ways[usize::from(way == Way::Down)]
    }

    fn cut_all(&mut self, how: Cut) {
        for connection in self.connections.values() {
            cut(connection, how);
        }
    }
}

/// Carries bytes in one direction.
struct Pump<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    way: Way,
    source: &'a TcpStream,
    sink: &'a TcpStream,
    frames: Frames,
    /// The bytes that were read, and when they are due.
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued_len: usize,
    /// The source has ended.
    has_ended: bool,
}

/// The next step of a pump.
enum Turn {
    Deliver(usize, Option<Cut>),
    Wait(Duration),
    Stop,
}

impl<'a> Pump<'a> {
    fn new(shared: &'a Shared, connection: &'a Connection, way: Way) -> Pump<'a> {
        let node = connection.node.get().unwrap();
        let (source, sink) = match way {
            Way::Up => (&connection.client, node),
            Way::Down => (node, &connection.client),
        };
        Pump {
            shared,
            connection,
            way,
            source,
            sink,
            frames: Frames::default(),
            queue: VecDeque::new(),
            queued_len: 0,
            has_ended: false,
        }
    }

    fn run(mut self) -> io::Result<()> {
        let result = self.carry();
        if result.is_err() {
            // A break on one side breaks the other. Under the lock, as every cut.
            let _state = self.shared.state();
            cut(self.connection, Cut::Reset);
        }
        self.shared.changed.notify_all();
        if self.connection.cut.get() == Some(&Cut::End) {
            self.drain();
        }
        result
    }

    fn carry(&mut self) -> io::Result<()> {
        loop {
            match self.turn() {
                Turn::Stop => return Ok(()),
                Turn::Deliver(len, then_cut) => {
                    let is_whole = self.deliver(len, then_cut)?;
                    if let (Some(how), true) = (then_cut, is_whole) {
                        let mut state = self.shared.state();
                        state.counts.cuts += 1;
                        state.cut_all(how);
                        return Ok(());
                    }
                }
                Turn::Wait(_) if self.has_ended && self.queue.is_empty() => {
                    return self.sink.shutdown(Shutdown::Write);
                }
                Turn::Wait(longest) => self.read(longest)?,
            }
        }
    }

    /// Looks at the controls. A hold is waited for in here.
    fn turn(&mut self) -> Turn {
        let mut state = self.shared.state();
        loop {
            if self.connection.cut.get().is_some() {
                return Turn::Stop;
            }
            if !state.control(self.way).is_held {
                break;
            }
            state = self.shared.changed.wait(state).unwrap();
        }
        let now = Instant::now();
        let is_watched =
            state.watched_opcode.is_none() || self.connection.is_watched.load(Ordering::SeqCst);
        let control = state.control(self.way);
        if let (Some((0, how)), true) = (control.cut_after, is_watched) {
            control.cut_after = None;
            control.delivering += 1;
            return Turn::Deliver(0, Some(how));
        }
        let Some((due, bytes)) = self.queue.front() else {
            return Turn::Wait(TICK);
        };
        let next_at = control.next_at.map_or(*due, |next_at| next_at.max(*due));
        if let Some(wait) = next_at.checked_duration_since(now).filter(|w| !w.is_zero()) {
            return Turn::Wait(wait);
        }
        let mut len = bytes.len();
        if let Some(rate) = control.bytes_per_second {
            // Pieces of about 10 ms each.
            len = len.min(usize::try_from((rate / 100).max(1)).unwrap());
            let time = Duration::from_secs_f64(len as f64 / rate as f64);
            control.next_at = Some(control.next_at.map_or(now, |at| at.max(now - TICK)) + time);
        }
        let mut then_cut = None;
        if let (Some((left, how)), true) = (&mut control.cut_after, is_watched) {
            len = len.min(usize::try_from(*left).unwrap());
            *left -= u64::try_from(len).unwrap();
            if *left == 0 {
                then_cut = Some(*how);
                control.cut_after = None;
            }
        }
        control.delivering += 1;
        Turn::Deliver(len, then_cut)
    }

    /// Delivers so much of the first piece, unless the connection is cut or held meanwhile. Says whether it did.
    fn deliver(&mut self, len: usize, then_cut: Option<Cut>) -> io::Result<bool> {
        let mut written = 0;
        let result = loop {
            if written == len || self.connection.cut.get().is_some() {
                break Ok(());
            }
            match self.sink.write(&self.queue[0].1[written..len]) {
                Ok(count) => written += count,
                Err(error) if is_wait(&error) => {
                    // A hold waits for this write, which the sink may never take: the rest stays in the queue.
                    if self.shared.state().control(self.way).is_held {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let mut state = self.shared.state();
        let count = u64::try_from(written).unwrap();
        match self.way {
            Way::Up => state.counts.up += count,
            Way::Down => state.counts.down += count,
        }
        let control = state.control(self.way);
        control.delivering -= 1;
        // Bytes that were counted and not delivered.
        let missing = u64::try_from(len - written).unwrap();
        match (&mut control.cut_after, then_cut) {
            (Some((left, _)), _) => *left += missing,
            (none, Some(how)) if missing > 0 => *none = Some((missing, how)),
            (None, _) => {}
        }
        drop(state);
        self.shared.changed.notify_all();
        if written > 0 {
            self.queued_len -= written;
            let first = &mut self.queue[0].1;
            first.drain(..written);
            if first.is_empty() {
                self.queue.pop_front();
            }
        }
        result.map(|()| written == len)
    }

    /// Reads what comes within that time, or only waits where enough is on its way.
    fn read(&mut self, longest: Duration) -> io::Result<()> {
        let longest = longest.clamp(Duration::from_micros(100), TICK);
        let delay = self.shared.state().control(self.way).delay;
        let is_full =
            !self.queue.is_empty() && (delay.is_zero() || self.queued_len > DELAYED_LEN_MAX);
        if is_full || self.has_ended {
            let state = self.shared.state();
            let _ = self.shared.changed.wait_timeout(state, longest).unwrap();
            return Ok(());
        }
        self.source.set_read_timeout(Some(longest))?;
        let mut bytes = vec![0; CHUNK_LEN];
        let count = match self.source.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if is_wait(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if count == 0 {
            self.has_ended = true;
            return Ok(());
        }
        bytes.truncate(count);
        let mut state = self.shared.state();
        let watched = state.watched_opcode;
        let was_watched = self.connection.is_watched.load(Ordering::SeqCst);
        let flips = self.frames.pass(
            &mut bytes,
            self.way,
            self.connection,
            watched,
            &mut state.control(self.way).flip,
        );
        state.counts.flips += flips;
        let is_watched = self.connection.is_watched.load(Ordering::SeqCst);
        state.counts.watched += u64::from(self.way == Way::Up && is_watched && !was_watched);
        drop(state);
        // Never before what is already on its way.
        let due = Instant::now() + delay;
        let due = self.queue.back().map_or(due, |(last, _)| due.max(*last));
        self.queued_len += count;
        self.queue.push_back((due, bytes));
        Ok(())
    }

    fn drain(&self) {
        let deadline = Instant::now() + DRAIN;
        let mut rest = vec![0; CHUNK_LEN];
        let mut source = self.source;
        while Instant::now() < deadline && self.source.set_read_timeout(Some(TICK)).is_ok() {
            match source.read(&mut rest) {
                Ok(0) => break,
                Err(error) if !is_wait(&error) => break,
                _ => {}
            }
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Where one way's frames begin and end. Follows the bytes as they came, whatever is flipped in them.
#[derive(Debug, Default)]
struct Frames {
    /// Of the frame at hand, as much as has come.
    header: [u8; 7],
    offset: usize,
    /// Of the whole frame, once its header is there.
    len: Option<usize>,
    /// The flip meant for the frame at hand.
    armed: Option<Flip>,
    /// Whole frames so far.
    count: u64,
    /// Downwards: responses are over.
    is_stream: bool,
}

impl Frames {
    /// Follows the frames in `bytes`, flips what is armed, and says how often.
    fn pass(
        &mut self,
        bytes: &mut [u8],
        way: Way,
        connection: &Connection,
        watched: Option<u8>,
        flip: &mut Option<Flip>,
    ) -> u64 {
        let (mut at, mut flips) = (0, 0);
        while at < bytes.len() {
            let is_request = way == Way::Up || self.is_stream;
            let header_len = if is_request { 7 } else { 5 };
            if self.offset == 0 && is_request {
                self.armed = flip.filter(|flip| flip.opcode == bytes[at]);
                if way == Way::Up && watched.is_none_or(|opcode| opcode == bytes[at]) {
                    connection.is_watched.store(true, Ordering::SeqCst);
                }
            }
            // Byte by byte in the header, and what there is of the payload at once.
            let step = match self.len {
                None => 1,
                Some(len) => (len - self.offset).min(bytes.len() - at),
            };
            if self.len.is_none() {
                self.header[self.offset] = bytes[at];
            }
            if let Some(armed) = self.armed
                && (self.offset..self.offset + step).contains(&armed.offset)
            {
                bytes[at + armed.offset - self.offset] ^= armed.mask;
                (self.armed, *flip) = (None, None);
                flips += 1;
            }
            at += step;
            self.offset += step;
            if self.len.is_none() && self.offset == header_len {
                self.len = Some(header_len + payload_len(&self.header[..header_len]));
            }
            if self.len == Some(self.offset) {
                self.end(way, connection);
            }
        }
        flips
    }

    fn end(&mut self, way: Way, connection: &Connection) {
        let begins_after = &connection.stream_begins_after;
        match way {
            Way::Up if self.header[0] == FOLLOW => begins_after.store(self.count, Ordering::SeqCst),
            Way::Up => {}
            Way::Down => {
                let is_response = begins_after.load(Ordering::SeqCst) == self.count;
                self.is_stream |= is_response && self.header[0] == 0;
            }
        }
        *self = Frames {
            count: self.count + 1,
            is_stream: self.is_stream,
            ..Frames::default()
        };
    }
}

/// Bytes after a header of 7 bytes, a request's, or of 5, a response's.
fn payload_len(header: &[u8]) -> usize {
    let (key_len, value_len) = match header {
        [_, k1, k2, value_len @ ..] if header.len() == 7 => {
            (u16::from_be_bytes([*k1, *k2]), value_len)
        }
        [_, value_len @ ..] => (0, value_len),
        [] => unreachable!("a header"),
    };
    let value_len = u32::from_be_bytes(value_len.try_into().unwrap());
    usize::from(key_len) + usize::try_from(value_len).unwrap()
}
