//! State shared by the sending and the receiving half of the leader side.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::replication::core::progress::Progress;
use crate::replication::core::role::LeadOrder;
use crate::replication::core::snapshot_permits::Permit;
use crate::replication::peers::Replica;
use crate::wire::replication::ReplicationError;

/// Why the leader side of a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The other side has closed the connection.
    Closed,
    /// The connection failed.
    Lost(String),
    /// Nothing came for three heartbeat intervals.
    Silent,
    /// The other side took no byte for three heartbeat intervals.
    TookNothing,
    /// The other side sent a message that only a leader sends.
    NotAnAck(&'static str),
    /// The other side sent bytes that are no frame.
    BadFrame(ReplicationError),
    /// A follower has acknowledged more than it was sent.
    AckBeyond {
        /// The index that it acknowledged.
        index: u64,
        /// The last index that it can have.
        matched: u64,
    },
    /// The follower has a newer stream.
    Replaced,
    /// The backlog no longer holds the next record.
    FellBehind,
    /// This node does not lead any more.
    NotLeading,
    /// This node holds another data set now, or the same one with another history.
    OtherData,
    /// A record is too long for a frame of the stream.
    TooLong,
    /// This node stops.
    NodeStops,
    /// This node stops, and the follower has not acknowledged this index.
    NoLastAck(u64),
}

impl fmt::Display for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamEnd::Closed => f.write_str("it closed the connection"),
            StreamEnd::Lost(text) => f.write_str(text),
            StreamEnd::Silent => f.write_str("it said nothing for three heartbeats"),
            StreamEnd::TookNothing => f.write_str("it took nothing for three heartbeats"),
            StreamEnd::NotAnAck(what) => write!(f, "it sent {what}, which a follower does not"),
            StreamEnd::BadFrame(error) => write!(f, "it sent no frame: {error}"),
            StreamEnd::AckBeyond { index, matched } => write!(
                f,
                "it acknowledged index {index}, and has been sent no more than {matched}"
            ),
            StreamEnd::Replaced => f.write_str("a newer stream of this follower exists"),
            StreamEnd::FellBehind => {
                f.write_str("it fell behind what backlog_bytes keeps of the log")
            }
            StreamEnd::NotLeading => f.write_str("this node does not lead any more"),
            StreamEnd::OtherData => f.write_str("this node's data set is another now"),
            StreamEnd::TooLong => f.write_str("an entry is longer than a batch can carry"),
            StreamEnd::NodeStops => f.write_str("this node stops"),
            StreamEnd::NoLastAck(index) => write!(
                f,
                "it has not said that it has everything up to index {index}"
            ),
        }
    }
}

impl std::error::Error for StreamEnd {}

/// The other side of a stream, as this node knows it. A follower is in the registry until this is dropped.
#[derive(Debug)]
pub(crate) struct Link<'a> {
    replica: Replica<'a>,
    name: String,
    /// Number of the stream among all that the node has had.
    number: u64,
    /// Permit for the snapshot that the stream began with, until the follower has acknowledged all of it.
    permit: Mutex<Option<Permit>>,
    /// Last index that the other side can have: where the stream began, and then what was sent.
    matched: AtomicU64,
    /// Set once the other side has ended the stream.
    end: OnceLock<StreamEnd>,
}

impl<'a> Link<'a> {
    /// The link to a follower that holds everything up to `matched`.
    pub(super) const fn new(
        replica: Replica<'a>,
        name: String,
        number: u64,
        matched: u64,
        permit: Option<Permit>,
    ) -> Link<'a> {
        Link {
            replica,
            name,
            number,
            permit: Mutex::new(permit),
            matched: AtomicU64::new(matched),
            end: OnceLock::new(),
        }
    }

    /// This node.
    pub(crate) const fn replica(&self) -> Replica<'a> {
        self.replica
    }

    /// The name of the other side.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Number of the stream among all that the node has had.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// The line for the log when the stream has ended. `why` says how, where it is not complete.
    pub(crate) fn end_line(&self, why: Option<&dyn fmt::Display>) -> String {
        let name = self.name();
        match why {
            None => format!("{name} no longer follows"),
            Some(why) => format!("{name} no longer follows: {why}"),
        }
    }

    /// Looks at or changes the follower's progress.
    ///
    /// # Errors
    ///
    /// [`StreamEnd::Replaced`], where the follower has left, or has another stream by now.
    pub(super) fn progress<T>(&self, f: impl FnOnce(&mut Progress) -> T) -> Result<T, StreamEnd> {
        let peers = self.replica.peers;
        let result = peers.with_follower(&self.name, self.number, f);
        result.ok_or(StreamEnd::Replaced)
    }

    /// A follower has acknowledged everything up to `index`. Its snapshot no longer delays others, once it has all of
    /// that.
    ///
    /// # Errors
    ///
    /// [`StreamEnd::Replaced`], as above.
    pub(super) fn acknowledged(&self, index: u64, now: Instant) -> Result<(), StreamEnd> {
        let is_copying = self.progress(|follower| {
            follower.acknowledged(index, now);
            follower.is_copying()
        })?;
        if !is_copying {
            self.return_permit();
        }
        Ok(())
    }

    /// The order to lead that this stream carries to its follower, once that is given.
    pub(crate) fn order(&self) -> Option<LeadOrder> {
        self.replica.peers.order_of(&self.name, self.number)
    }

    /// Everything up to `index` is sent. To be called before the other side can acknowledge it.
    pub(super) fn sent(&self, index: u64) {
        self.matched.store(index, Ordering::Release);
    }

    /// Last index that the other side can have.
    pub(crate) fn matched(&self) -> u64 {
        self.matched.load(Ordering::Acquire)
    }

    /// Why the other side has ended the stream, once it has.
    pub(crate) fn end(&self) -> Option<&StreamEnd> {
        self.end.get()
    }

    /// The other side has ended the stream. A follower may come back at once.
    pub(super) fn set_end(&self, why: StreamEnd) {
        let _ = self.end.set(why);
        self.leave();
    }

    /// Returns the permit for the snapshot, if the stream has it still.
    fn return_permit(&self) {
        let permit = self.permit.lock().take();
        drop(permit);
    }

    /// Takes a follower out of the registry, and returns its permit. A second call changes nothing.
    fn leave(&self) {
        self.return_permit();
        // A leader keeps it in STATUS, with its last figures.
        let keeps = self.replica.node.leads();
        let peers = self.replica.peers;
        peers.follower_left(&self.name, self.number, keeps);
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
