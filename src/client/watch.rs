//! Watchers: clients that are told of changes.

use std::{
    mem, thread,
    time::{Duration, Instant},
};

use crate::{
    history::History,
    wire::{
        Opcode, Token,
        replication::{
            self, Change, Changes, FollowAnswer, Frames, Head, Message, Parsed, ParsedHead, Start,
            WatchFrom, parse,
        },
    },
};

use super::{
    ClientOptions, Direction, Error, Response,
    connection::{Connection, Deadline},
    error::{ProtocolError, Result},
};

/// First and longest pause between two attempts to resume; it doubles each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The changes that a [`Watcher`] is told of. By default those of all keys from now on, without values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Prefix of the keys; empty for all keys.
    pub prefix: Vec<u8>,
    /// Whether events carry values.
    pub values: bool,
    /// Where the events begin.
    pub from: WatchFrom,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            prefix: Vec::new(),
            values: false,
            from: WatchFrom::Now,
        }
    }
}

/// A message to a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watched<'a> {
    /// A snapshot begins. The watcher discards what it knew of the keys before.
    SnapshotBegin {
        /// Approximate number of keys in the whole data set.
        keys: u64,
    },
    /// Keys and values of the snapshot, and writes that were made while it was sent, to be applied in their order. They
    /// have values, whether those were asked for or not.
    Snapshot(Frames<'a>),
    /// The snapshot is complete: it is the data of this position. Events follow.
    SnapshotEnd {
        /// The position.
        position: Token,
        /// Digest of the whole data set there.
        digest: u128,
    },
    /// A record of the log has changed watched keys.
    Event(Event<'a>),
    /// The node is alive. Every event up to the [position](Watcher::position) was received.
    Heartbeat {
        /// An index, for most heartbeats that of the position.
        digest_index: u64,
        /// Digest of the whole data set at that index.
        digest: u128,
    },
}

/// The changes of one record of the log. They took effect together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    position: Token,
    changes: Changes<'a>,
}

impl<'a> Event<'a> {
    /// The position of the record. A watch [after](WatchFrom::After) it continues with the next one.
    #[must_use]
    pub const fn position(&self) -> Token {
        self.position
    }

    /// The changes of watched keys, at least one, in their order.
    pub fn changes(&self) -> impl Iterator<Item = Change<'a>> + use<'a> {
        self.changes.iter()
    }
}

/// A stream of events: every record of a node's log about watched keys, in order, checked.
///
/// Any node that serves has a stream, a follower too. Nothing waits for a watcher. It may pause for as long as the
/// node's log (`backlog_bytes`) holds the next record, also during a snapshot. A watcher that is too slow for that
/// loses its connection, and learns it when it [resumes](Self::resume): [`Error::Compacted`] names the oldest index
/// that is left.
///
/// The stream has no end. Where the node stops, takes another data set, or follows a new leader, the connection ends.
/// [`resume`](Self::resume) continues with exactly the next record, at any node whose history has the position.
///
/// ```
/// use gopherstore::client::{Client, ClientOptions, Error, Watch, Watched, Watcher};
/// use std::time::Duration;
///
/// # use gopherstore::{config::{Config, LimitsConfig}, node::Node, server::Server};
/// # let config = Config::parse(
/// #     "cluster = 'c'\nleader = 'n1'\n[[node]]\nname = 'n1'\naddr = '127.0.0.1:1'\n\
/// #     [[node]]\nname = 'n2'\naddr = '127.0.0.1:2'\n\
/// #     [replication]\nheartbeat_interval_ms = 50\nleader_timeout_ms = 200\n",
/// #     "cluster.toml",
/// # )?;
/// # let node = Node::of_cluster(&config, &config.nodes[0]);
/// # let server = Server::bind("127.0.0.1:0", node, LimitsConfig::default())?;
/// # let addr = &server.local_addr().to_string();
/// # std::thread::spawn(|| server.run());
/// # while let Err(Error::Loading { .. }) = Client::connect(addr)?.get(b"user:7") {
/// #     std::thread::sleep(Duration::from_millis(10));
/// # }
/// let watch = Watch { prefix: b"user:".to_vec(), values: true, ..Watch::default() };
/// let mut watcher = Watcher::open(addr, &ClientOptions::default(), watch)?;
/// Client::connect(addr)?.set(b"user:7", b"active")?;
/// let (key, value) = loop {
///     match watcher.receive() {
///         Ok(Watched::Event(event)) => {
///             let change = event.changes().next().expect("at least one");
///             break (change.key().to_vec(), change.value().map(<[u8]>::to_vec));
///         }
///         Ok(_) => {}
///         // After a lost connection, at this node or another one of the cluster.
///         Err(Error::Connection { .. } | Error::Timeout { .. }) => {
///             watcher.resume(&[addr], Duration::from_secs(30))?;
///         }
///         Err(error) => return Err(error.into()),
///     }
/// };
/// assert_eq!((&key[..], value), (&b"user:7"[..], Some(b"active".to_vec())));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Watcher {
    connection: Connection,
    options: ClientOptions,
    watch: Watch,
    start: Start,
    history: History,
    /// Bytes of the message that was returned last. The next call consumes them.
    taken: usize,
    expected: Expected,
}

/// Messages that may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// SNAPSHOT_BEGIN.
    Begin,
    /// SNAPSHOT_CHUNK with this sequence, or SNAPSHOT_END.
    Chunk(u64),
    /// EVENT of this index, or of a later one where only some keys are watched.
    Event(u64),
}

impl Watcher {
    /// Requests the stream of the node at `addr`, a `host:port`.
    ///
    /// Of the options, the [timeout](ClientOptions::timeout) limits the response, connecting included, and then the
    /// node's silence: it sends a heartbeat every half second, or as its cluster.toml says. There are no redirects,
    /// since any node serves watchers.
    ///
    /// # Errors
    ///
    /// * [`Error::Compacted`] where the node's log no longer holds the first record of the watch.
    /// * [`Error::Lost`] where the position is not of this node's history.
    /// * [`Error::Loading`] where the node has no complete data set, or has not come so far yet.
    /// * [`Error::Server`] where the node has no log, or has not the index yet.
    /// * Any other.
    pub fn open(addr: &str, options: &ClientOptions, watch: Watch) -> Result<Watcher> {
        let deadline = Deadline::after(options.timeout);
        let mut frame = Vec::new();
        let request = replication::Watch {
            prefix: &watch.prefix,
            wants_values: watch.values,
            from: watch.from,
        };
        request.encode(&mut frame).map_err(Error::TooLong)?;
        let mut connection = Connection::open(addr, options, Some(deadline))?;
        connection.show(Direction::Sent, &frame);
        connection.write_all(&frame, deadline)?;
        let value = match connection.receive(Opcode::Watch, deadline)?? {
            Response::Value(value) => value,
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => {
                Vec::new()
            }
        };
        let answer = FollowAnswer::decode(&value)
            .map_err(|error| connection.protocol(ProtocolError::FollowAnswer(error)))?;
        let (start, history) = (answer.start, answer.history.to_history());
        let Some(expected) = first_of(watch.from, start) else {
            return Err(connection.protocol(ProtocolError::OtherStart { start }));
        };
        Ok(Watcher {
            connection,
            options: options.clone(),
            watch,
            start,
            history,
            taken: 0,
            expected,
        })
    }

    /// Start of the stream.
    #[must_use]
    pub const fn start(&self) -> Start {
        self.start
    }

    /// The node's history when the stream began.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// `host:port` of the node.
    #[must_use]
    pub fn addr(&self) -> &str {
        self.connection.addr()
    }

    /// The position up to which every event was received. `None` during a snapshot, which can only begin again.
    #[must_use]
    pub fn position(&self) -> Option<Token> {
        match self.expected {
            Expected::Event(next) => Some(self.token_of(next - 1)),
            Expected::Begin | Expected::Chunk(_) => None,
        }
    }

    /// The position of the record with this index, of the stream's history.
    fn token_of(&self, index: u64) -> Token {
        let oldest = self.history.epochs().first().copied();
        let start = self.history.epoch_of(index).or(oldest);
        start.map_or_else(Token::default, |start| Token {
            epoch: start.epoch,
            index,
            nonce: start.nonce,
        })
    }

    /// Receives the next message, and checks its checksums, its frames, and that none is missing before it.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] where the stream has ended, [`Error::Timeout`] where nothing came, [`Error::Protocol`] for
    /// damage. After any of them [`resume`](Self::resume) begins a new stream.
    pub fn receive(&mut self) -> Result<Watched<'_>> {
        self.connection.consume(mem::take(&mut self.taken));
        let frame_len = loop {
            let needed = match Head::parse(self.connection.received()) {
                Ok(ParsedHead::Whole(head)) => head.frame_len(),
                Ok(ParsedHead::Incomplete { needed }) => needed,
                Err(error) => return Err(self.connection.protocol(ProtocolError::Stream(error))),
            };
            if self.connection.received().len() >= needed {
                if self.skips(needed)? {
                    continue;
                }
                break needed;
            }
            // Any byte shows that the node is alive, so a long value may take longer than the timeout.
            self.connection.fill(needed, self.connection.deadline())?;
        };
        let connection = &self.connection;
        let refused = |error| Err(connection.protocol(error));
        match parse(&connection.received()[..frame_len]) {
            Ok(Parsed::Whole { message, .. }) => {
                let what = message.opcode();
                let epoch = self.history.last().map(|start| start.epoch);
                let expected = after(self.expected, &message, self.watch.prefix.is_empty());
                let Some(expected) = expected.filter(|_| epoch == Some(message.epoch())) else {
                    return refused(ProtocolError::OutOfPlace { what });
                };
                connection.show(Direction::Received, &connection.received()[..frame_len]);
                self.expected = expected;
                self.taken = frame_len;
                let watched = self.watched(message);
                watched.ok_or_else(|| self.connection.protocol(ProtocolError::OutOfPlace { what }))
            }
            // The head said how long the frame is.
            Ok(Parsed::Incomplete { .. }) => refused(ProtocolError::Unrequested { len: frame_len }),
            Err(error) => refused(ProtocolError::Stream(error)),
        }
    }

    /// Consumes the frame at the start of what was received, where it is a HEARTBEAT within a snapshot, which says only
    /// that the node is alive. Returns whether it did.
    fn skips(&mut self, frame_len: usize) -> Result<bool> {
        let frame = &self.connection.received()[..frame_len];
        let is_beat =
            frame.first() == Some(&crate::wire::replication::StreamOpcode::Heartbeat.byte());
        if !is_beat || !matches!(self.expected, Expected::Chunk(_)) {
            return Ok(false);
        }
        if let Err(error) = parse(frame) {
            return Err(self.connection.protocol(ProtocolError::Stream(error)));
        }
        self.connection.show(Direction::Received, frame);
        self.connection.consume(frame_len);
        Ok(true)
    }

    /// The message as it is returned; `None` for one that no watcher is sent.
    fn watched<'a>(&self, message: Message<'a>) -> Option<Watched<'a>> {
        Some(match message {
            Message::SnapshotBegin { keys, .. } => Watched::SnapshotBegin { keys },
            Message::SnapshotChunk { frames, .. } => Watched::Snapshot(frames),
            Message::SnapshotEnd { index, digest, .. } => Watched::SnapshotEnd {
                position: self.token_of(index),
                digest,
            },
            Message::Event { index, changes, .. } => Watched::Event(Event {
                position: self.token_of(index),
                changes,
            }),
            Message::Heartbeat {
                digest_index,
                digest,
                ..
            } => Watched::Heartbeat {
                digest_index,
                digest,
            },
            Message::Entries { .. } | Message::Ack { .. } | Message::Lead { .. } => return None,
        })
    }

    /// Requests the stream again where this one was, from each of these nodes in turn, until one has it or `timeout`
    /// has passed. A stream that was in its snapshot begins with another snapshot.
    ///
    /// The call goes on after errors that may pass: where a node does not respond, or is loading. Other errors end it
    /// where every node has one, since the log of another node may reach further back; at the end of `timeout` they
    /// come first.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] where the watcher was too slow, or was away for too long: records between its position and
    /// the oldest index that is left were not received. [`Error::Lost`] where records that it has received are not part
    /// of the node's data. Otherwise the last error; the watcher is then as it was.
    pub fn resume(&mut self, addrs: &[impl AsRef<str>], timeout: Duration) -> Result<()> {
        if addrs.is_empty() {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "no address is given");
            let addr = String::new();
            return Err(Error::Connect { addr, source });
        }
        let until = Instant::now() + timeout;
        let from = match self.position() {
            Some(position) => WatchFrom::After(position),
            None => WatchFrom::Snapshot,
        };
        let watch = Watch {
            from,
            ..self.watch.clone()
        };
        let mut pause = PAUSES.0;
        loop {
            let (mut last, mut refusal) = (None, None);
            for addr in addrs {
                match Watcher::open(addr.as_ref(), &self.options, watch.clone()) {
                    Ok(watcher) => {
                        *self = watcher;
                        return Ok(());
                    }
                    Err(error) if may_pass(&error) => last = Some(error),
                    Err(error) => {
                        refusal.get_or_insert(error);
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            match (refusal, last) {
                (Some(error), None) => return Err(error),
                (Some(error), Some(_)) | (None, Some(error)) if left.is_zero() => {
                    return Err(error);
                }
                (Some(_) | None, Some(_)) | (None, None) => {}
            }
            thread::sleep(pause.min(left));
            pause = PAUSES.1.min(pause * 2);
        }
    }
}

/// Whether the same request may succeed later.
const fn may_pass(error: &Error) -> bool {
    matches!(
        error,
        Error::Loading { .. }
            | Error::Connect { .. }
            | Error::Connection { .. }
            | Error::Timeout { .. }
    )
}

/// The message that a stream begins with; `None` where it is not the one that was asked for.
fn first_of(from: WatchFrom, start: Start) -> Option<Expected> {
    let wanted = match from {
        WatchFrom::Snapshot => None,
        WatchFrom::Now => Some(None),
        WatchFrom::Index(index) => Some(Some(index)),
        WatchFrom::After(token) => Some(Some(token.index.saturating_add(1))),
    };
    match (wanted, start) {
        (None, Start::Snapshot) => Some(Expected::Begin),
        (Some(None), Start::Resume { from_index }) => Some(Expected::Event(from_index)),
        (Some(Some(wanted)), Start::Resume { from_index }) if wanted == from_index => {
            Some(Expected::Event(from_index))
        }
        (_, Start::Resume { .. } | Start::Snapshot | Start::Unknown) => None,
    }
}

/// The messages that may follow `message`; `None` where `message` itself is not `expected`. `is_all` where all keys are
/// watched.
fn after(expected: Expected, message: &Message<'_>, is_all: bool) -> Option<Expected> {
    match (*message, expected) {
        (Message::SnapshotBegin { .. }, Expected::Begin) => Some(Expected::Chunk(0)),
        (Message::SnapshotChunk { sequence, .. }, Expected::Chunk(next)) if sequence == next => {
            Some(Expected::Chunk(next.saturating_add(1)))
        }
        (Message::SnapshotEnd { index, chunks, .. }, Expected::Chunk(next)) if chunks == next => {
            Some(Expected::Event(index.saturating_add(1)))
        }
        (Message::Event { index, .. }, Expected::Event(next))
            if index == next || (index > next && !is_all) =>
        {
            Some(Expected::Event(index.saturating_add(1)))
        }
        (Message::Heartbeat { last_index, .. }, Expected::Event(next)) => {
            let then = last_index.saturating_add(1);
            (then == next || (then > next && !is_all)).then_some(Expected::Event(then))
        }
        (
            Message::Entries { .. }
            | Message::SnapshotBegin { .. }
            | Message::SnapshotChunk { .. }
            | Message::SnapshotEnd { .. }
            | Message::Heartbeat { .. }
            | Message::Ack { .. }
            | Message::Lead { .. }
            | Message::Event { .. },
            Expected::Begin | Expected::Chunk(_) | Expected::Event(_),
        ) => None,
    }
}
