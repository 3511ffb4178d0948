//! Peers of tests: a scripted peer, and a node as small as can be.
//!
//! A test crate takes this in with `#[path = "../support/mod.rs"] mod support;` and uses what it needs.

#![allow(dead_code)]

pub mod silent;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gopherstore::wire::{
    Request, Response, Status,
    request::{HEADER_LEN, Limits, Parsed, RequestHeader, parse},
};

/// After so long a test has hung. Generous, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A listener on a free port that serves each connection as a test says. Ends, and closes everything, when it is
/// dropped.
pub struct Peer {
    pub addr: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_stopping: AtomicBool,
    /// Open connections, by number.
    streams: Mutex<HashMap<usize, TcpStream>>,
    count: AtomicUsize,
}

impl Peer {
    /// Calls `serve` in a thread of its own with the number of each connection, from 0, and the connection.
    pub fn start(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            let serve = Arc::new(serve);
            move || {
                let mut serving = Vec::new();
                loop {
                    let (stream, _) = listener.accept().expect("a connection");
                    if shared.is_stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    let number = shared.count.fetch_add(1, Ordering::SeqCst);
                    stream.set_nodelay(true).expect("an option");
                    let clone = stream.try_clone().expect("a clone");
                    shared
                        .streams
                        .lock()
                        .expect("the streams")
                        .insert(number, clone);
                    let (serve, shared) = (Arc::clone(&serve), Arc::clone(&shared));
                    serving.push(thread::spawn(move || {
                        serve(number, stream);
                        // The last one: the socket is closed now.
                        shared.streams.lock().expect("the streams").remove(&number);
                    }));
                }
                drop(listener);
                for stream in shared.streams.lock().expect("the streams").values() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                for thread in serving {
                    thread.join().expect("a script that ran to its end");
                }
            }
        });
        Peer {
            addr,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }
}

impl Peer {
    /// Connections that are not closed yet on this side.
    pub fn open_connections(&self) -> usize {
        self.shared.streams.lock().expect("the streams").len()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(&self.addr);
        let joined = self.accepting.take().map(JoinHandle::join);
        if matches!(joined, Some(Err(_))) && !thread::panicking() {
            panic!("a peer's script failed, see above");
        }
    }
}

/// Reads the next request's frame; nothing at the end of the stream.
pub fn next_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).ok()?;
    let len = RequestHeader::decode(header).frame_len();
    let mut frame = header.to_vec();
    frame.resize(len, 0);
    stream.read_exact(&mut frame[HEADER_LEN..]).ok()?;
    Some(frame)
}

/// Waits until the other side closes.
pub fn wait_for_close(stream: &mut TcpStream) {
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest), Ok(count) if count > 0) {}
}

/// A response's frame.
pub fn response(status: u8, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Response { status, value }
        .encode(&mut out)
        .expect("a frame");
    out
}

/// The request in a whole frame.
pub fn request(frame: &[u8]) -> Request<'_> {
    match parse(frame, &Limits::default()) {
        Ok(Parsed::Whole(frame)) => frame.request(),
        other => panic!("no whole request: {other:?}"),
    }
}

/// A node that does what the protocol says, one request after another, with everything that it was asked on record.
pub struct StubNode {
    pub peer: Peer,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    map: HashMap<Vec<u8>, Vec<u8>>,
    /// Where writes are sent; `Some("")` is a follower that knows no leader.
    leader: Option<String>,
    is_loading: bool,
    /// It holds what its leader lacks, and takes the order to give that up.
    is_refusing: bool,
    discards: usize,
    writes: usize,
    reads: usize,
}

impl StubNode {
    pub fn start() -> StubNode {
        let state = Arc::new(Mutex::new(State::default()));
        let peer = Peer::start({
            let state = Arc::clone(&state);
            move |_, mut stream| {
                while let Some(frame) = next_frame(&mut stream) {
                    let out = state.lock().expect("the state").response(&frame);
                    if stream.write_all(&out).is_err() {
                        break;
                    }
                }
            }
        });
        StubNode { peer, state }
    }

    pub fn follower(leader: &str) -> StubNode {
        let node = StubNode::start();
        node.follow(Some(leader));
        node
    }

    pub fn addr(&self) -> &str {
        &self.peer.addr
    }

    /// Sends writes elsewhere from now on, or takes them itself.
    pub fn follow(&self, leader: Option<&str>) {
        self.state.lock().expect("the state").leader = leader.map(str::to_owned);
    }

    pub fn set_loading(&self) {
        self.state.lock().expect("the state").is_loading = true;
    }

    pub fn set_refusing(&self) {
        self.state.lock().expect("the state").is_refusing = true;
    }

    /// DISCARD requests so far, refused ones too.
    pub fn discards(&self) -> usize {
        self.state.lock().expect("the state").discards
    }

    pub fn insert(&self, key: &[u8], value: &[u8]) {
        let mut state = self.state.lock().expect("the state");
        state.map.insert(key.to_vec(), value.to_vec());
    }

    pub fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.lock().expect("the state").map.get(key).cloned()
    }

    /// SET and DEL requests so far, refused ones too.
    pub fn writes(&self) -> usize {
        self.state.lock().expect("the state").writes
    }

    pub fn reads(&self) -> usize {
        self.state.lock().expect("the state").reads
    }
}

impl State {
    fn response(&mut self, frame: &[u8]) -> Vec<u8> {
        let request = request(frame);
        let is_write = matches!(request, Request::Set { .. } | Request::Del { .. });
        if is_write {
            self.writes += 1;
            if let Some(leader) = &self.leader {
                return response(Status::NotLeader.byte(), leader.as_bytes());
            }
        }
        let found = match request {
            Request::Set { value, .. } if value.starts_with(b"refuse") => {
                return response(Status::Error.byte(), b"value of 9 bytes, limit 8");
            }
            Request::Set { key, value } => {
                self.map.insert(key.to_vec(), value.to_vec());
                Some(Vec::new())
            }
            Request::Get { key } => {
                self.reads += 1;
                if self.is_loading {
                    return response(Status::Loading.byte(), b"no complete data set yet");
                }
                self.map.get(key).cloned()
            }
            Request::Del { key } => self.map.remove(key).map(|_| Vec::new()),
            Request::Ping => Some(b"PONG".to_vec()),
            Request::Status => {
                let state = if self.is_refusing {
                    "refused"
                } else {
                    "serving"
                };
                Some(format!("node: n1\nstate: {state}\nkeys: {}\n", self.map.len()).into_bytes())
            }
            Request::Discard => {
                self.discards += 1;
                if !self.is_refusing {
                    return response(Status::Error.byte(), b"nothing to discard");
                }
                self.is_refusing = false;
                Some(Vec::new())
            }
            // As a node of a version before these.
            Request::SetAt { .. }
            | Request::Put { .. }
            | Request::Take { .. }
            | Request::Add { .. }
            | Request::Expire { .. }
            | Request::Ttl { .. }
            | Request::Scan { .. }
            | Request::Batch { .. }
            | Request::Sync { .. }
            | Request::Sums { .. }
            | Request::List { .. }
            | Request::Snapshot => {
                let message = format!("unknown opcode {:#04x}", frame[0]);
                return response(Status::Error.byte(), message.as_bytes());
            }
            Request::Watch { .. } | Request::Follow { .. } => {
                return response(Status::Error.byte(), b"a map has no such operation");
            }
            Request::Epoch { .. } => {
                return response(Status::Error.byte(), b"a record and not a request");
            }
        };
        match found {
            Some(value) => response(Status::Ok.byte(), &value),
            None => response(Status::NotFound.byte(), b""),
        }
    }
}

/// Runs `work` in a thread and gives what it returns, or fails the test where that takes too long.
pub fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hung: nothing came of it in {PATIENCE:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let _ = thread.join().map_err(std::panic::resume_unwind);
            unreachable!("the thread ended with neither a result nor a panic")
        }
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An address where nothing listens.
pub fn unused_addr() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}
