//! Blocking client of a node.
//!
//! ```
//! use gopherstore::client::Client;
//! # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
//! # let node = Node::alone();
//! # let server = Server::bind("127.0.0.1:0", node, LimitsConfig::default())?;
//! # let addr = &server.local_addr().to_string();
//! # std::thread::spawn(|| server.run());
//!
//! let mut client = Client::connect(addr)?; // such as "127.0.0.1:8000"
//! client.set(b"user123", b"active")?;
//! assert_eq!(client.get(b"user123")?, Some(b"active".to_vec()));
//! assert!(client.del(b"user123")?);
//! assert_eq!(client.get(b"user123")?, None);
//! client.ping()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # After a fault
//!
//! A timeout, a broken connection and bytes that break the protocol end the connection, so that a late response is
//! never taken for the response to another request. The next call connects again. The client never repeats a request
//! with an unknown outcome: after such an [`Error`] a write may have been executed, and only the caller knows whether a
//! repetition does harm. A connection that the node closed between two requests is replaced before the next one is
//! sent.
//!
//! # Redirects
//!
//! A follower answers reads, and refuses writes with the leader's address. The client then sends the write to the
//! leader, on a second connection that it keeps for later writes. Reads still go to the client's own node, so a read
//! may miss the write before it: followers lag. After [`Client::stay_with_leader`] reads go to the leader too.
//! [`ClientOptions::follow_redirects`] turns redirects off; one call follows at most [`REDIRECTS_MAX`] of them.
//!
//! # Known limits
//!
//! A look-up of a host name cannot be cancelled. A call whose timeout ends before the name is resolved leaves a thread
//! running, one for each name, until the system's resolver returns.

#![deny(clippy::wildcard_enum_match_arm)]

use std::{fmt, mem, sync::Arc, time::Duration};

use crate::wire::{
    Access, Opcode, Request, SyncRequest,
    comparison::{ComparisonError, List, ListAnswer, Place, Sums, SumsAnswer},
};

mod batch;
pub mod cluster;
mod connection;
mod error;
mod keys;
mod pipeline;
mod response;
mod scan;
mod status;
mod sync;
mod watch;

pub use batch::{Batch, BatchOutcome, BatchResult};
pub use cluster::{Cluster, ClusterError, ClusterOptions, ClusterResult};
pub use error::{Error, PipelineError, ProtocolError, Result, Wait};
pub use keys::{
    AddOptions, Added, Conflict, PutOptions, PutOutcome, TakeOptions, TakeOutcome, TimeLeft,
    Written,
};
pub use pipeline::{Pipeline, Timed};
pub use response::Response;
pub use scan::{Scan, ScanItem, ScanOptions};
pub use status::{FollowerStatus, NodeRole, NodeState, NodeStatus, PeerStatus};
pub use watch::{Event, Watch, Watched, Watcher};

pub use crate::wire::{
    conditional::Condition,
    expiry::Expiry,
    replication::{Change, WatchFrom},
};

use connection::{Connection, Deadline};

/// Most redirects that one call follows. One is enough while the leader stays the same; the limit ends a loop between
/// two nodes that name each other.
pub const REDIRECTS_MAX: u32 = 3;

/// Options of a [`Client`].
///
/// ```
/// use std::time::Duration;
/// use gopherstore::client::ClientOptions;
///
/// let options = ClientOptions {
///     timeout: Duration::from_millis(200),
///     follow_redirects: false,
///     ..ClientOptions::default()
/// };
/// assert_eq!(options.connect_timeout, Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Limit for connecting: the look-up of the name, and all of its addresses. Default 5 s.
    pub connect_timeout: Duration,
    /// Limit for a whole call, connecting and redirects included, up to the last byte of its response. In a pipeline it
    /// starts again with each response. Default 5 s.
    pub timeout: Duration,
    /// Whether a write that is refused with the leader's address is sent to the leader. Default true.
    pub follow_redirects: bool,
    /// Called with each frame sent and received.
    pub on_frame: Option<FrameHook>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            follow_redirects: true,
            on_frame: None,
        }
    }
}

/// Direction of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the node.
    Sent,
    /// From the node.
    Received,
}

/// A frame that was sent or received, for a [`FrameHook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its direction.
    pub direction: Direction,
    /// `host:port` of the node.
    pub addr: &'a str,
    /// The frame. Bytes that were received before a fault are passed too, and may not be a whole frame.
    pub bytes: &'a [u8],
}

/// A function that is called with each frame that a client sends or receives.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use gopherstore::client::{Client, ClientOptions, Direction, FrameHook};
/// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
/// # let node = Node::alone();
/// # let server = Server::bind("127.0.0.1:0", node, LimitsConfig::default())?;
/// # let addr = &server.local_addr().to_string();
/// # std::thread::spawn(|| server.run());
///
/// let sent = Arc::new(Mutex::new(Vec::new()));
/// let hook = FrameHook::new({
///     let sent = Arc::clone(&sent);
///     move |frame| {
///         if frame.direction == Direction::Sent {
///             sent.lock().unwrap().extend_from_slice(frame.bytes);
///         }
///     }
/// });
/// let options = ClientOptions { on_frame: Some(hook), ..ClientOptions::default() };
/// Client::connect_with(addr, options)?.ping()?;
/// assert_eq!(*sent.lock().unwrap(), b"\x04\x00\x00\x00\x00\x00\x00");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FrameHook(Arc<dyn Fn(&Frame<'_>) + Send + Sync>);

impl FrameHook {
    /// A hook that calls `see`.
    pub fn new(see: impl Fn(&Frame<'_>) + Send + Sync + 'static) -> FrameHook {
        FrameHook(Arc::new(see))
    }

    fn call(&self, frame: &Frame<'_>) {
        (self.0)(frame);
    }
}

impl fmt::Debug for FrameHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameHook")
    }
}

/// A blocking client of one node. The [module](self) describes faults and redirects.
#[derive(Debug)]
pub struct Client {
    addr: String,
    options: ClientOptions,
    home: Option<Connection>,
    /// To the node that `home` named as the leader, for writes.
    leader: Option<Connection>,
    /// The last request's frame, kept for its memory.
    frame: Vec<u8>,
    /// Whether the last request failed before it was sent whole: no node can have executed it.
    was_unsent: bool,
    /// The end of all requests, whatever time the options give each of them.
    until: Deadline,
}

/// Connection that a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Home,
    Leader,
}

impl Client {
    /// Most bytes of memory that a client keeps for its next frame.
    const FRAME_KEPT_MAX: usize = 64 << 10;

    /// Connects to `addr`, a `host:port`.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::Timeout`] when no address of the host accepts the connection.
    pub fn connect(addr: &str) -> Result<Client> {
        Client::connect_with(addr, ClientOptions::default())
    }

    /// Connects to `addr`, a `host:port`.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_with(addr: &str, options: ClientOptions) -> Result<Client> {
        let mut client = Client::unconnected(addr, options);
        client.home = Some(Connection::open(addr, &client.options, None)?);
        Ok(client)
    }

    /// A client that connects with its first request.
    #[must_use]
    pub fn unconnected(addr: &str, options: ClientOptions) -> Client {
        Client {
            addr: addr.to_owned(),
            options,
            home: None,
            leader: None,
            frame: Vec::new(),
            was_unsent: false,
            until: Deadline::NEVER,
        }
    }

    /// The `host:port` of the client's own node.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The `host:port` of the leader that the last write was redirected to, while there is a connection to it.
    #[must_use]
    pub fn redirected_to(&self) -> Option<&str> {
        self.leader.as_ref().map(Connection::addr)
    }

    /// Makes the leader that the last write was redirected to the client's own node, so that reads see the write.
    /// Returns whether a write was redirected.
    pub fn stay_with_leader(&mut self) -> bool {
        let Some(leader) = self.leader.take() else {
            return false;
        };
        leader.addr().clone_into(&mut self.addr);
        self.home = Some(leader.into_home());
        true
    }

    /// Whether there is a connection to the client's own node that the node has not closed. Otherwise the next call
    /// connects.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// let mut client = gopherstore::Client::unconnected(addr, Default::default());
    /// assert!(!client.is_connected());
    /// client.ping()?;
    /// assert!(client.is_connected());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.home.as_ref().is_some_and(|home| !home.is_stale())
    }

    /// Stores `value` under `key`, and replaces an earlier value.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; its table says whether the write was executed.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.request(Request::Set { key, value }).map(drop)
    }

    /// The value of `key`, if there is one.
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(match self.request(Request::Get { key })? {
            Response::Value(value) => Some(value),
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => None,
        })
    }

    /// Removes `key`, and returns whether it existed.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; its table says whether the write was executed.
    pub fn del(&mut self, key: &[u8]) -> Result<bool> {
        Ok(self.request(Request::Del { key })? == Response::Done)
    }

    /// Checks that the node responds.
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    pub fn ping(&mut self) -> Result<()> {
        self.request(Request::Ping).map(drop)
    }

    /// The node's state, as lines of `key: value`. docs/GBP.md §4 lists the keys; a reader skips those that it does not
    /// know, as [`NodeStatus::parse`] does.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// let status = gopherstore::Client::connect(addr)?.status()?;
    /// assert!(status.lines().any(|line| line == "state: serving"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    pub fn status(&mut self) -> Result<String> {
        match self.request(Request::Status)? {
            Response::Value(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => {
                Ok(String::new())
            }
        }
    }

    /// Orders a follower that refuses its leader's data set to discard its own, with every entry that the leader lacks,
    /// and to take a snapshot. [`status`](Self::status) shows when the node serves again. The order is never
    /// redirected.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the node is in another state; any other [`Error`].
    pub fn discard(&mut self) -> Result<()> {
        self.request(Request::Discard).map(drop)
    }

    /// Orders a node with a disk to begin a snapshot of its data there, and returns when it has taken the order. Where
    /// a snapshot is under way, that one counts. [`NodeStatus::snapshots`] rises when there is a new one, and
    /// [`NodeStatus::failed_snapshots`] where it cannot be written. The order is never redirected.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the node has no disk, or holds no data; any other [`Error`].
    pub fn snapshot(&mut self) -> Result<()> {
        self.request(Request::Snapshot).map(drop)
    }

    /// Checksums of the node's data, by bucket, from a place on, as far as one request covers.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the place is of an earlier incarnation of the node; any other [`Error`].
    pub fn sums(&mut self, request: &Sums) -> Result<SumsAnswer> {
        let (key, value) = (&request.place.from, &request.value());
        let response = self.request(Request::Sums { key, value })?;
        let decode = |bytes: &[u8]| {
            let response = SumsAnswer::decode(bytes, request.bits)?;
            moves_on(&request.place, &response.next).map(|()| response)
        };
        self.comparison(&response, decode)
    }

    /// Keys of some buckets, with hashes, from a place on, as far as one request covers.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the place is of an earlier incarnation of the node; any other [`Error`].
    pub fn list(&mut self, request: &List) -> Result<ListAnswer> {
        let (key, value) = (request.key(), &request.value());
        let response = self.request(Request::List { key, value })?;
        let decode = |bytes: &[u8]| {
            let response = ListAnswer::decode(bytes)?;
            match request {
                List::Some { place, .. } => moves_on(place, &response.next).map(|()| response),
                List::One(_) => Ok(response),
            }
        };
        self.comparison(&response, decode)
    }

    /// Reads the response to a SUMS or LIST. A wrong one ends the connection.
    fn comparison<T>(
        &mut self,
        response: &Response,
        decode: impl FnOnce(&[u8]) -> std::result::Result<T, ComparisonError>,
    ) -> Result<T> {
        let bytes = match response {
            Response::Value(bytes) => bytes.as_slice(),
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => &[],
        };
        decode(bytes).map_err(|error| {
            self.home = None;
            Error::Protocol {
                addr: self.addr.clone(),
                source: ProtocolError::Comparison(error),
            }
        })
    }

    /// A queue of requests that are sent together.
    pub fn pipeline(&mut self) -> Pipeline<'_> {
        Pipeline::new(self)
    }

    /// Sends a request of any operation but FOLLOW and returns its response. A write that is refused with the leader's
    /// address is sent there, unless the [options](ClientOptions::follow_redirects) say otherwise.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use gopherstore::{client::{Response, Client}, wire::Request};
    ///
    /// let mut client = Client::connect(addr)?;
    /// assert_eq!(client.request(Request::Del { key: b"k" })?, Response::NotFound);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Any [`Error`]; its table says whether a write was executed.
    pub fn request(&mut self, request: Request<'_>) -> Result<Response> {
        self.request_as(request, request.opcode().spec().writes)
    }

    /// The same; `as_write` says whether it goes to the node that the last write was redirected to.
    fn request_as(&mut self, request: Request<'_>, as_write: bool) -> Result<Response> {
        let mut frame = mem::take(&mut self.frame);
        frame.clear();
        request.encode(&mut frame)?;
        let timeout = (self.options.timeout).saturating_add(SyncRequest::wait_of(&request));
        let deadline = Deadline::after(timeout).sooner(self.until);
        let route = self.route(as_write);
        let response = self.exchange(request.opcode(), &frame, route, deadline);
        if frame.capacity() <= Client::FRAME_KEPT_MAX {
            self.frame = frame;
        }
        response
    }

    fn exchange(
        &mut self,
        opcode: Opcode,
        frame: &[u8],
        mut route: Route,
        deadline: Deadline,
    ) -> Result<Response> {
        let mut redirects = 0;
        loop {
            let mut connection = self.open(route, deadline)?;
            let exchanged = connection.exchange(opcode, frame, deadline);
            self.was_unsent = connection.is_unsent();
            let response = exchanged?;
            let refused = matches!(response, Err(Error::NotLeader { .. }));
            let asked = refused.then(|| connection.addr().to_owned());
            // A leader that has ceased to lead is forgotten, so that the next write goes to the own node.
            if connection.is_usable() && !(refused && route == Route::Leader) {
                self.put_back(route, connection);
            }
            match response {
                Err(Error::NotLeader {
                    leader: Some(leader),
                }) if self.options.follow_redirects
                    && redirects < REDIRECTS_MAX
                    && may_be_redirected(opcode) =>
                {
                    redirects += 1;
                    route = self.follow(&leader, &asked.unwrap_or_default(), deadline)?;
                }
                response => return response,
            }
        }
    }

    /// The connection that a request uses first.
    fn route(&mut self, is_write: bool) -> Route {
        if !is_write {
            return Route::Home;
        }
        // A node that has closed the connection may have ceased to lead.
        match self.leader.take().filter(|leader| !leader.is_stale()) {
            Some(leader) => {
                self.leader = Some(leader);
                Route::Leader
            }
            None => Route::Home,
        }
    }

    /// Takes the connection, or makes a new one. It is put back only where no fault occurs.
    fn open(&mut self, route: Route, deadline: Deadline) -> Result<Connection> {
        if route == Route::Leader
            && let Some(connection) = self.leader.take()
        {
            return Ok(connection);
        }
        match self.home.take().filter(|home| !home.is_stale()) {
            Some(home) => Ok(home),
            None => Connection::open(&self.addr, &self.options, Some(deadline)),
        }
    }

    /// Keeps a connection for the next request.
    fn put_back(&mut self, route: Route, connection: Connection) {
        match route {
            Route::Home => self.home = Some(connection),
            Route::Leader => self.leader = Some(connection),
        }
    }

    /// Connects to `leader`, which the node at `named_by` named as the leader.
    fn follow(&mut self, leader: &str, named_by: &str, deadline: Deadline) -> Result<Route> {
        self.leader = None;
        if leader == self.addr {
            return Ok(Route::Home);
        }
        let connection = Connection::open_leader(leader, named_by, &self.options, deadline)?;
        self.leader = Some(connection);
        Ok(Route::Leader)
    }
}

/// Whether a request with this opcode means the data of the cluster, so that another node may answer it.
const fn may_be_redirected(opcode: Opcode) -> bool {
    match opcode.spec().access {
        Access::Read | Access::Write => true,
        Access::Admin | Access::Peer => false,
    }
}

/// Rejects a response that does not move the scan on, which would then not end.
fn moves_on(from: &Place, to: &Place) -> std::result::Result<(), ComparisonError> {
    if to.is_after(from) {
        Ok(())
    } else {
        Err(ComparisonError::Standstill)
    }
}
