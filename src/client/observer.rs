//! Observers: clients that watch a node's replication stream.

use std::mem;

use crate::{
    history::History,
    wire::{
        Opcode,
        replication::{Follow, FollowAnswer, Head, Message, Parsed, ParsedHead, Start, parse},
    },
};

use super::{
    ClientOptions, Direction, Response,
    connection::{Connection, Deadline},
    error::{ProtocolError, Result},
};

/// Part of the stream that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The entries after the node's last one.
    New,
    /// The entries from this index on, of any epoch; 0 is taken for 1.
    From(u64),
    /// The entries after `index` in the data set that this epoch and nonce name ([`Observer::position`]). The node
    /// refuses where it does not know that data set.
    After {
        /// Number of the epoch.
        epoch: u64,
        /// Nonce of the epoch.
        nonce: u64,
        /// Index of the last entry received.
        index: u64,
    },
    /// The whole data set, and then the entries after it.
    Copy,
}

/// Name in the library's FOLLOW. A node ignores the name of an observer.
const NAME: &[u8] = b"observer";

/// A watched replication stream: every record of a node's log in order, checked.
///
/// Any node that serves has a stream, a follower too. An observer costs the node what a follower costs. Nothing waits
/// for an observer, and STATUS does not show it. The node drops an observer that falls behind the oldest entry of the
/// log; until then an observer may pause, also during a copy. It sends nothing after its request.
///
/// The stream has no end. Where the node stops, drops the observer, or takes another data set, the connection ends.
/// [`position`](Self::position) is then the place to continue from, and the node says whether it can.
///
/// ```no_run
/// use gopherstore::client::{ClientOptions, Observer, Watch};
/// use gopherstore::wire::replication::Message;
///
/// let mut observer = Observer::open("127.0.0.1:8001", &ClientOptions::default(), Watch::New)?;
/// loop {
///     if let Message::Entries { first_index, frames, .. } = observer.receive()? {
///         for (index, frame) in (first_index..).zip(frames) {
///             println!("{index} {:?}", frame.request());
///         }
///     }
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), gopherstore::client::Error>(())
/// ```
#[derive(Debug)]
pub struct Observer {
    connection: Connection,
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
    /// ENTRIES with this first index.
    Entry(u64),
}

impl Observer {
    /// Requests the stream of the node at `addr`, a `host:port`.
    ///
    /// Of the options, the [timeout](ClientOptions::timeout) limits the response, connecting included, and then the
    /// node's silence: it sends a heartbeat every half second, or as its cluster.toml says. There are no redirects,
    /// since any node serves observers.
    ///
    /// # Errors
    ///
    /// [`Error::Server`](super::Error::Server) where the node does not have these entries; its message says which it
    /// has. [`Error::Loading`](super::Error::Loading) where it has no complete data set. Any other.
    pub fn open(addr: &str, options: &ClientOptions, watch: Watch) -> Result<Observer> {
        let deadline = Deadline::after(options.timeout);
        let mut connection = Connection::open(addr, options, Some(deadline))?;
        let (epoch, nonce, last_index) = match watch {
            Watch::New => (0, 0, u64::MAX),
            Watch::From(index) => (0, 0, index.saturating_sub(1)),
            Watch::After {
                epoch,
                nonce,
                index,
            } => (epoch, nonce, index),
            Watch::Copy => (0, 0, 0),
        };
        let follow = Follow {
            name: NAME,
            is_observer: true,
            wants_snapshot: watch == Watch::Copy,
            is_to_lead: false,
            epoch,
            nonce,
            last_index,
            cluster_id: b"",
        };
        let mut frame = Vec::new();
        // Name and cluster id are within their limits, so this does not fail.
        let _ = follow.encode(&mut frame);
        connection.show(Direction::Sent, &frame);
        connection.write_all(&frame, deadline)?;
        let value = match connection.receive(Opcode::Follow, deadline)?? {
            Response::Value(value) => value,
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => {
                Vec::new()
            }
        };
        let response = FollowAnswer::decode(&value)
            .map_err(|error| connection.protocol(ProtocolError::FollowAnswer(error)))?;
        let expected = match response.start {
            Start::Snapshot | Start::Unknown => Expected::Begin,
            Start::Resume { from_index } => Expected::Entry(from_index),
        };
        let fits = match (watch, response.start) {
            (Watch::Copy, start) => start == Start::Snapshot,
            (Watch::New, Start::Resume { .. }) => true,
            (_, Start::Resume { from_index }) => from_index == last_index.saturating_add(1),
            (_, Start::Snapshot | Start::Unknown) => false,
        };
        if !fits {
            return Err(connection.protocol(ProtocolError::OtherStart {
                start: response.start,
            }));
        }
        Ok(Observer {
            start: response.start,
            history: response.history.to_history(),
            connection,
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

    /// The position from which another observer continues after the last message received. `None` during a copy, which
    /// can only begin again.
    #[must_use]
    pub fn position(&self) -> Option<Watch> {
        let Expected::Entry(next) = self.expected else {
            return None;
        };
        let held = self.history.epoch_of(next - 1);
        let start = held.or(self.history.epochs().first().copied())?;
        Some(Watch::After {
            epoch: start.epoch,
            nonce: start.nonce,
            index: next - 1,
        })
    }

    /// Receives the next message, and checks its checksums, its frames, and that none is missing before it.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`](super::Error::Connection) where the stream has ended,
    /// [`Error::Timeout`](super::Error::Timeout) where nothing came, [`Error::Protocol`](super::Error::Protocol) for
    /// damage. After any of them only [`position`](Self::position) is of use.
    pub fn receive(&mut self) -> Result<Message<'_>> {
        self.connection.consume(mem::take(&mut self.taken));
        let frame_len = loop {
            let needed = match Head::parse(self.connection.received()) {
                Ok(ParsedHead::Whole(head)) => head.frame_len(),
                Ok(ParsedHead::Incomplete { needed }) => needed,
                Err(error) => return Err(self.connection.protocol(ProtocolError::Stream(error))),
            };
            if self.connection.received().len() >= needed {
                break needed;
            }
            // Any byte shows that the node is alive, so a long value may take longer than the timeout.
            self.connection.fill(needed, self.connection.deadline())?;
        };
        let connection = &self.connection;
        let refused = |error| Err(connection.protocol(error));
        match parse(&connection.received()[..frame_len]) {
            Ok(Parsed::Whole { message, .. }) => {
                let Some(expected) = after(self.expected, &message, &self.history) else {
                    return refused(ProtocolError::OutOfPlace {
                        what: message.opcode(),
                    });
                };
                connection.show(Direction::Received, &connection.received()[..frame_len]);
                self.expected = expected;
                self.taken = frame_len;
                Ok(message)
            }
            // The head said how long the frame is.
            Ok(Parsed::Incomplete { .. }) => refused(ProtocolError::Unrequested { len: frame_len }),
            Err(error) => refused(ProtocolError::Stream(error)),
        }
    }
}

/// The messages that may follow `message`; `None` where `message` itself is not `expected`.
fn after(expected: Expected, message: &Message<'_>, history: &History) -> Option<Expected> {
    if history
        .last()
        .is_none_or(|start| message.epoch() != start.epoch)
    {
        return None;
    }
    match (*message, expected) {
        (Message::Heartbeat { .. }, _) => Some(expected),
        (Message::SnapshotBegin { .. }, Expected::Begin) => Some(Expected::Chunk(0)),
        (Message::SnapshotChunk { sequence, .. }, Expected::Chunk(next)) if sequence == next => {
            Some(Expected::Chunk(next.saturating_add(1)))
        }
        (Message::SnapshotEnd { index, chunks, .. }, Expected::Chunk(next)) if chunks == next => {
            Some(Expected::Entry(index.saturating_add(1)))
        }
        (
            Message::Entries {
                first_index,
                frames,
                ..
            },
            Expected::Entry(next),
        ) if first_index == next => Some(Expected::Entry(
            next.saturating_add(u64::from(frames.count())),
        )),
        (
            Message::Entries { .. }
            | Message::SnapshotBegin { .. }
            | Message::SnapshotChunk { .. }
            | Message::SnapshotEnd { .. }
            | Message::Ack { .. }
            | Message::Lead { .. }
            | Message::Event { .. },
            Expected::Begin | Expected::Chunk(_) | Expected::Entry(_),
        ) => None,
    }
}
