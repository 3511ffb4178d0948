//! A client of a whole cluster: finds the leader, follows it when it moves, and repeats what is safe to repeat.
//!
//! # Policy
//!
//! [`Cluster`] repeats a request at another node, or at the same one after a pause, until its
//! [timeout](ClusterOptions::timeout) is over. This table is the whole policy:
//!
//! | a node's answer, or a failure         | a read                  | a write                         |
//! |----------------------------------------|-------------------------|---------------------------------|
//! | NOT_LEADER                             | repeated at the leader that it names, or at the next node | the same |
//! | LOADING                                | repeated at the next node | the same                      |
//! | no connection: refused, no address, no time | repeated at the next node | the same                 |
//! | the request was not sent whole         | repeated at the next node | the same                      |
//! | no response in time, a lost connection, bytes that break the protocol | repeated at the next node | unknown |
//! | TIMEOUT, or a status of a later version | repeated at the next node | unknown                      |
//! | ERROR, FULL, LOST, COMPACTED, a SYNC that is not reached, a frame that is too long | refused | refused |
//! | any other answer                       | returned                | returned                        |
//!
//! The first four say that the request was not executed. ERROR may also mean that the node has no place for another
//! connection; the request was not executed then, and another node may execute it. *Unknown* is
//! [`ClusterError::OutcomeUnknown`], *refused* [`ClusterError::Refused`].
//!
//! A write with an unknown outcome may have been executed, or may still be. The caller decides whether a repetition
//! does harm. That of a SET, a SETAT or a DEL does none unless others write the key too; an ADD adds twice. GBP §1 has
//! the table of all operations.
//!
//! **Time.** A call ends after [`ClusterOptions::timeout`], whatever it tried. One attempt to connect takes
//! [`connect_timeout`](ClusterOptions::connect_timeout) at most, and one read [`attempt_timeout`], so that a silent
//! node leaves time for another one. A write that was sent waits for its response as long as the call may take: it
//! cannot be repeated. After a failure at every node the client pauses for 10 ms, the next time for twice as long, up
//! to half a second, each time less a random part of up to a half.
//!
//! **Reads** go to the leader, so they see every write before them. A client that has not written through the leader
//! yet asks for its role first, with STATUS. [`Cluster::read_at`] reads at any node instead that has a certain
//! position.
//!
//! [`attempt_timeout`]: ClusterOptions::attempt_timeout
//!
//! # Known limits
//!
//! A leader that has ceased to lead without the client's knowledge still answers its reads, which may then be old,
//! until a write tells the client.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use std::{error, fmt, mem, thread};

use super::connection::Deadline;
use super::{
    Client, ClientOptions, Error, FrameHook, NodeRole, NodeState, NodeStatus, Result, Wait,
};
use crate::config::Config;
use crate::wire::Token;

/// The first pause after a failure at every node.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Most addresses that are kept of leaders that nodes named and the caller did not.
const LEARNED_MAX: usize = 8;

/// Limits of a [`Cluster`].
///
/// ```
/// use std::time::Duration;
/// use gopherstore::client::ClusterOptions;
///
/// let options = ClusterOptions { timeout: Duration::from_secs(30), ..ClusterOptions::default() };
/// assert_eq!(options.attempt_timeout, Duration::from_secs(2));
/// ```
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Limit for a whole call, with all its repetitions and pauses. Default 10 s.
    pub timeout: Duration,
    /// Limit for one read at one node, connecting included. Default 2 s.
    pub attempt_timeout: Duration,
    /// Limit for connecting to one node. Default 1 s.
    pub connect_timeout: Duration,
    /// Called with each frame sent and received.
    pub on_frame: Option<FrameHook>,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            on_frame: None,
        }
    }
}

/// Why a call has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClusterError {
    /// The write was sent, and may have been executed or may still be. It was not repeated.
    OutcomeUnknown {
        /// The failure after it was sent.
        source: Error,
    },
    /// A node refused the request, which was not executed.
    Refused {
        /// The refusal.
        source: Error,
    },
    /// No node executed the request in time. A write was certainly not executed.
    Unavailable {
        /// The limit.
        after: Duration,
        /// The last failure of each node that was asked, by its `host:port`.
        failures: Vec<(String, Error)>,
    },
}

/// The result of a call.
pub type ClusterResult<T> = std::result::Result<T, ClusterError>;

/// The node that a request needs, and what a repetition of it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A read at the leader. A repetition does no harm.
    Read,
    /// A write, which only the leader executes. It is repeated only where it was certainly not executed.
    Write,
}

/// The conclusion from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The request is sent again, to another node or later.
    Repeat,
    /// [`ClusterError::OutcomeUnknown`].
    Unknown,
    /// [`ClusterError::Refused`].
    Refused,
}

/// A blocking client of a cluster. The [module](self) describes what it repeats, and for how long.
///
/// It connects to nodes as it needs them, and keeps one connection to each.
///
/// ```no_run
/// use gopherstore::client::{Cluster, ClusterError};
///
/// let mut cluster = Cluster::new(["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]);
/// cluster.set(b"user123", b"active")?;
/// assert_eq!(cluster.get(b"user123")?, Some(b"active".to_vec()));
/// match cluster.write(|leader| leader.add(b"visits", 1, 0)) {
///     Ok(visits) => println!("{visits}"),
///     // It may have been counted, or not. To count it again might count it twice.
///     Err(ClusterError::OutcomeUnknown { source }) => eprintln!("not sure: {source}"),
///     Err(error) => return Err(error),
/// }
/// # Ok::<(), ClusterError>(())
/// ```
///
/// A node on its own is a cluster too:
///
/// ```
/// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
/// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
/// # let addr = server.local_addr().to_string();
/// # std::thread::spawn(|| server.run());
/// use gopherstore::client::Cluster;
///
/// let mut cluster = Cluster::new([addr.clone()]);
/// cluster.set(b"k", b"v")?;
/// assert_eq!(cluster.get(b"k")?, Some(b"v".to_vec()));
/// assert!(cluster.del(b"k")?);
/// assert_eq!(cluster.leader(), Some(addr.as_str()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Cluster {
    /// A client of each node: the given ones, then those that were learned.
    nodes: Vec<Client>,
    /// How many were given.
    given: usize,
    options: ClusterOptions,
    /// The node that is asked next.
    at: usize,
    /// Whether that node is known to lead.
    is_leader: bool,
    /// The given node that was asked last without being named by another one.
    rotation: usize,
    /// The given node that [`read_at`](Cluster::read_at) asks first.
    reader: usize,
}

impl Cluster {
    /// A client of the cluster with these nodes, `host:port` each, at least one. It connects with its first request.
    ///
    /// Nodes that are left out are found if they lead: the others name them.
    ///
    /// # Panics
    ///
    /// Where there is no address.
    pub fn new<A: Into<String>>(addrs: impl IntoIterator<Item = A>) -> Cluster {
        Cluster::with_options(addrs, ClusterOptions::default())
    }

    /// The same with other limits.
    ///
    /// # Panics
    ///
    /// Where there is no address.
    pub fn with_options<A: Into<String>>(
        addrs: impl IntoIterator<Item = A>,
        options: ClusterOptions,
    ) -> Cluster {
        let addrs = addrs.into_iter().map(Into::into);
        let nodes: Vec<Client> = addrs
            .map(|addr: String| client_of(&addr, &options))
            .collect();
        assert!(!nodes.is_empty(), "a cluster has at least one node");
        Cluster {
            given: nodes.len(),
            reader: nodes.len() - 1,
            nodes,
            options,
            at: 0,
            is_leader: false,
            rotation: 0,
        }
    }

    /// A client of the cluster that a `cluster.toml` describes. The leader in the file is asked first.
    ///
    /// ```
    /// use gopherstore::{client::{Cluster, ClusterOptions}, config::Config};
    ///
    /// let text = "cluster = \"c\"\nleader = \"n2\"\n\
    ///             [[node]]\nname = \"n1\"\naddr = \"10.0.0.1:8000\"\n\
    ///             [[node]]\nname = \"n2\"\naddr = \"10.0.0.2:8000\"\n";
    /// let cluster = Cluster::of(&Config::parse(text, "cluster.toml")?, ClusterOptions::default());
    /// assert_eq!(cluster.leader(), None, "it has not asked yet");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn of(config: &Config, options: ClusterOptions) -> Cluster {
        let first = &config.leader().addr;
        let addrs = config.nodes.iter().map(|node| &node.addr);
        let others = addrs.filter(|addr| *addr != first);
        Cluster::with_options(std::iter::once(first).chain(others).cloned(), options)
    }

    /// The `host:port` of the leader, while one is known.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        self.is_leader.then(|| self.nodes[self.at].addr())
    }

    /// Stores `value` under `key`, and replaces an earlier value.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> ClusterResult<()> {
        self.write(|leader| leader.set(key, value))
    }

    /// The value of `key` at the leader, if there is one.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn get(&mut self, key: &[u8]) -> ClusterResult<Option<Vec<u8>>> {
        self.read(|leader| leader.get(key))
    }

    /// Removes `key`, and returns whether it existed.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn del(&mut self, key: &[u8]) -> ClusterResult<bool> {
        self.write(|leader| leader.del(key))
    }

    /// Has `call` read from the leader: one request that changes nothing. It is called again after each failure that
    /// the [policy](self) repeats.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Unavailable`] or [`ClusterError::Refused`].
    pub fn read<T>(&mut self, call: impl FnMut(&mut Client) -> Result<T>) -> ClusterResult<T> {
        self.run(Kind::Read, call)
    }

    /// Has `call` write at the leader: one request, of any operation. It is called again only where the request was
    /// certainly not executed.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`]; only after [`ClusterError::OutcomeUnknown`] may the write have been executed.
    pub fn write<T>(&mut self, call: impl FnMut(&mut Client) -> Result<T>) -> ClusterResult<T> {
        self.run(Kind::Write, call)
    }

    /// The leader's position now, which covers every write that was acknowledged before: for
    /// [`read_at`](Self::read_at).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read). A node without peers and without a disk has no positions, and refuses.
    pub fn position(&mut self) -> ClusterResult<Token> {
        self.read(Client::position)
    }

    /// Has `call` read from any node whose data set has the position of `token`: reads of one's own writes that spare
    /// the leader. The nodes are asked one after another, the one that answered last first. Each may take
    /// [`attempt_timeout`](ClusterOptions::attempt_timeout) to get to the position. Where none of them can read there,
    /// the leader is asked, as [`read`](Self::read) does, and its answer counts.
    ///
    /// ```no_run
    /// use gopherstore::client::Cluster;
    ///
    /// let mut cluster = Cluster::new(["10.0.0.1:8000", "10.0.0.2:8000"]);
    /// cluster.set(b"user123", b"active")?;
    /// let token = cluster.position()?;
    /// let value = cluster.read_at(token, |node| node.get(b"user123"))?;
    /// assert_eq!(value, Some(b"active".to_vec()));
    /// # Ok::<(), gopherstore::client::ClusterError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ClusterError::Refused`] with [`Error::Lost`] where the leader never had that position: the writes that the
    /// token covers were not kept. Otherwise as [`read`](Self::read).
    pub fn read_at<T>(
        &mut self,
        token: Token,
        mut call: impl FnMut(&mut Client) -> Result<T>,
    ) -> ClusterResult<T> {
        let mut attempts = Attempts::new(&self.options);
        for _ in 0..self.given {
            let Some(left) = attempts.left() else {
                return Err(attempts.unavailable());
            };
            // The other half is for the read.
            let wait = self.options.attempt_timeout.min(left) / 2;
            let client = limited(&mut self.nodes[self.reader], &self.options, left);
            let read = client.sync_at(token, wait).and_then(|_| call(client));
            match read {
                Ok(value) => return Ok(value),
                Err(error) => attempts.note(client.addr(), error),
            }
            self.reader = (self.reader + 1) % self.given;
        }
        let no_wait = Duration::ZERO;
        self.run_within(attempts, Kind::Read, |leader| {
            leader.sync_at(token, no_wait)?;
            call(leader)
        })
    }

    fn run<T>(
        &mut self,
        kind: Kind,
        call: impl FnMut(&mut Client) -> Result<T>,
    ) -> ClusterResult<T> {
        let attempts = Attempts::new(&self.options);
        self.run_within(attempts, kind, call)
    }

    fn run_within<T>(
        &mut self,
        mut attempts: Attempts,
        kind: Kind,
        mut call: impl FnMut(&mut Client) -> Result<T>,
    ) -> ClusterResult<T> {
        while let Some(left) = attempts.left() {
            let source = match self.attempt(kind, left, &mut call) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let is_unsent = self.nodes[self.at].was_unsent;
            match judge(kind, &source) {
                Verdict::Repeat => {}
                Verdict::Unknown if is_unsent => {}
                Verdict::Unknown => {
                    self.leave(None);
                    return Err(ClusterError::OutcomeUnknown { source });
                }
                Verdict::Refused => return Err(ClusterError::Refused { source }),
            }
            let mut leader = None;
            if let Error::NotLeader { leader: named } = &source {
                leader.clone_from(named);
            }
            attempts.note(self.nodes[self.at].addr(), source);
            self.leave(leader);
            attempts.pause(self.nodes.len());
        }
        Err(attempts.unavailable())
    }

    /// Sends the request to the node that is asked next.
    fn attempt<T>(
        &mut self,
        kind: Kind,
        left: Duration,
        call: &mut impl FnMut(&mut Client) -> Result<T>,
    ) -> Result<T> {
        let client = limited(&mut self.nodes[self.at], &self.options, left);
        client.was_unsent = false;
        match kind {
            Kind::Read if !self.is_leader => confirm(client)?,
            Kind::Read => {}
            // It is not repeated once it is sent, so it has all the time that is left.
            Kind::Write => {
                client.options.timeout = left;
                client.until = Deadline::after(left);
            }
        }
        let value = call(client)?;
        self.is_leader = true;
        Ok(value)
    }

    /// Asks another node next: the one that was named as the leader, or the next one.
    fn leave(&mut self, named: Option<String>) {
        self.is_leader = false;
        let Some(addr) = named else {
            self.rotation = (self.rotation + 1) % self.given;
            self.at = self.rotation;
            return;
        };
        let known = self.nodes.iter().position(|node| node.addr() == addr);
        self.at = known.unwrap_or_else(|| {
            if self.nodes.len() >= self.given + LEARNED_MAX {
                self.nodes.truncate(self.given);
            }
            self.nodes.push(client_of(&addr, &self.options));
            self.nodes.len() - 1
        });
    }
}

/// A client of one node of a cluster.
fn client_of(addr: &str, options: &ClusterOptions) -> Client {
    let options = ClientOptions {
        follow_redirects: false,
        on_frame: options.on_frame.clone(),
        ..ClientOptions::default()
    };
    Client::unconnected(addr, options)
}

/// Sets the limits of one attempt, of which `left` is all the time there is.
fn limited<'c>(client: &'c mut Client, options: &ClusterOptions, left: Duration) -> &'c mut Client {
    client.options.connect_timeout = options.connect_timeout.min(left);
    let timeout = options.attempt_timeout.min(left);
    client.options.timeout = timeout;
    // One attempt may send more than one request.
    client.until = Deadline::after(timeout);
    client
}

/// Checks that the node leads and serves. NOT_LEADER, as if a write had been refused, where it does not.
fn confirm(client: &mut Client) -> Result<()> {
    let status = NodeStatus::parse(&client.status()?);
    match (status.role, status.state) {
        // It led until it heard of a later epoch.
        (Some(NodeRole::Leader), Some(NodeState::Refused)) => {
            Err(Error::NotLeader { leader: None })
        }
        (Some(NodeRole::Leader), _) => Ok(()),
        (Some(NodeRole::Follower | NodeRole::Other(_)) | None, _) => Err(Error::NotLeader {
            leader: status.leader,
        }),
    }
}

/// The policy, for one failure.
fn judge(kind: Kind, error: &Error) -> Verdict {
    match error.innermost() {
        Error::NotLeader { .. } | Error::Loading { .. } | Error::Connect { .. } => Verdict::Repeat,
        Error::Timeout {
            what: Wait::Resolution | Wait::Connection,
            ..
        } => Verdict::Repeat,
        Error::Timeout {
            what: Wait::Request | Wait::Response,
            ..
        }
        | Error::Connection { .. }
        | Error::Protocol { .. }
        | Error::OutcomeUnknown { .. }
        | Error::UnknownStatus { .. } => match kind {
            Kind::Read => Verdict::Repeat,
            Kind::Write => Verdict::Unknown,
        },
        Error::Server { .. }
        | Error::Full { .. }
        | Error::Lost { .. }
        | Error::Compacted { .. }
        | Error::NotReached { .. }
        | Error::TooLong(_)
        // Clients of a cluster follow no redirects themselves.
        | Error::Redirect { .. } => Verdict::Refused,
    }
}

/// The time of one call, and its failures so far.
struct Attempts {
    began: Instant,
    limit: Duration,
    /// The last failure of each node.
    failures: Vec<(String, Error)>,
    /// Failures since the last pause.
    count: usize,
    next_pause: Duration,
}

impl Attempts {
    fn new(options: &ClusterOptions) -> Attempts {
        Attempts {
            began: Instant::now(),
            limit: options.timeout,
            failures: Vec::new(),
            count: 0,
            next_pause: PAUSE_MIN,
        }
    }

    /// The time that is left, if there is any.
    fn left(&self) -> Option<Duration> {
        let left = self.limit.saturating_sub(self.began.elapsed());
        (!left.is_zero()).then_some(left)
    }

    fn note(&mut self, addr: &str, error: Error) {
        self.count += 1;
        match self.failures.iter_mut().find(|(of, _)| of == addr) {
            Some((_, last)) => *last = error,
            None => self.failures.push((addr.to_owned(), error)),
        }
    }

    /// Pauses where each of so many nodes has failed since the last pause.
    fn pause(&mut self, nodes: usize) {
        if self.count < nodes {
            return;
        }
        self.count = 0;
        let pause = self.next_pause;
        self.next_pause = (pause * 2).min(PAUSE_MAX);
        // Clients that failed together do not come back together.
        let random = u32::try_from(RandomState::new().hash_one(0) % 1_000).unwrap_or(0);
        let pause = pause / 2 + pause / 2_000 * random;
        thread::sleep(pause.min(self.limit.saturating_sub(self.began.elapsed())));
    }

    fn unavailable(mut self) -> ClusterError {
        ClusterError::Unavailable {
            after: self.limit,
            failures: mem::take(&mut self.failures),
        }
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClusterError::OutcomeUnknown { source } => {
                write!(f, "it is unknown whether the write was executed: {source}")
            }
            ClusterError::Refused { source } => source.fmt(f),
            ClusterError::Unavailable { after, failures } => {
                write!(f, "no node executed the request within {after:?}")?;
                for (addr, error) in failures {
                    write!(f, "; {addr}: {error}")?;
                }
                Ok(())
            }
        }
    }
}

impl error::Error for ClusterError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            ClusterError::OutcomeUnknown { source } | ClusterError::Refused { source } => {
                Some(source)
            }
            ClusterError::Unavailable { failures, .. } => failures
                .last()
                .map(|(_, error)| error as &(dyn error::Error + 'static)),
        }
    }
}
