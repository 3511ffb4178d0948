//! Replication: the FOLLOW request, its answer, and the frames that the connection carries from then on.
//!
//! A follower connects like any client and sends FOLLOW ([`Follow`]). A leader that accepts it responds with OK and a
//! [`FollowAnswer`]. From then on both sides send only frames of the stream: the follower ACK, the leader all others. A
//! frame of the stream has the header of a request, a key of fixed length that holds its fields and two checksums, and
//! a value where its opcode has one.
//!
//! * [`StreamOpcode`] and its [`MessageSpec`] are the table of messages.
//! * [`Head`] is header and key. It is judged before any byte of the value arrives.
//! * [`Message`] is a whole frame. [`parse`] turns received bytes into one, borrowed.
//! * [`Frames`] are the client frames of a batch. All are checked before the first is returned, so that a batch is
//!   applied whole or not at all.
//! * [`BatchEncoder`] writes a batch into a buffer, each client frame copied once.
//!
//! # Why two checksums
//!
//! TCP's own checksum misses about one damaged segment in 65,536, and a follower would serve damaged entries until the
//! digests are compared. `value_crc` covers the value. `head_crc` covers header and key, `value_crc` included, and is
//! judged first, so that a receiver never waits or takes memory for a damaged length. The key's length is fixed for
//! each opcode, so the place of `head_crc` is known beforehand.
//!
//! # Errors
//!
//! After a bad frame the start of the next one is unknown. The receiver drops the connection, and the follower sends
//! FOLLOW with its position again.
//!
//! # Known limits
//!
//! * The frame of an entry is the value of a batch, so it has at most 4,294,967,295 bytes, 65,542 fewer than the
//!   longest request ([`BatchEncoder::push`] refuses a longer one).
//! * Checksums find accidental damage; they are no protection against forged frames.
//!
//! # Example
//!
//! ```
//! use gopherstore::wire::Request;
//! use gopherstore::wire::replication::{BatchEncoder, Message, Parsed, parse};
//!
//! let (mut frame, mut bytes) = (Vec::new(), Vec::new());
//! Request::Set { key: b"k", value: b"v" }.encode(&mut frame)?;
//! let mut batch = BatchEncoder::entries(&mut bytes, 3, 8);
//! assert!(batch.push(&frame));
//! batch.finish();
//!
//! let Ok(Parsed::Whole { message, frame_len }) = parse(&bytes) else { panic!("not whole") };
//! let Message::Entries { epoch: 3, first_index: 8, frames } = message else { panic!("not those") };
//! assert_eq!(frames.iter().map(|frame| frame.bytes()).collect::<Vec<_>>(), [&frame[..]]);
//! assert_eq!(frame_len, bytes.len());
//! # Ok::<(), gopherstore::wire::EncodeError>(())
//! ```
//!
//! # Source
//!
//! GBP §5 "Following", §6 "The replication stream".

mod batch;
mod epochs;
mod error;
mod follow;
mod head;
mod opcode;

use crate::wire::EncodeError;

pub use batch::{BATCH_LEN_MAX, BatchEncoder, FrameIter, Frames};
pub use epochs::{EPOCH_LEN, Epochs, EpochsError};
pub use error::ReplicationError;
pub use follow::{
    CLUSTER_ID_LEN_MAX, FOLLOW_FIELDS_LEN, FOLLOW_VERSION, Follow, FollowAnswer, FollowAnswerError,
    FollowError, NAME_LEN_MAX, Start,
};
pub use head::{Fields, Head, ParsedHead};
pub use opcode::{MessageSpec, MessageValue, Sender, StreamOpcode};

/// One frame of the stream, its value borrowed.
///
/// Every message carries the epoch of its sender. A receiver that knows a higher one refuses the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Leader to follower: the entries `first_index`, `first_index + 1` and so on.
    Entries {
        /// The leader's epoch.
        epoch: u64,
        /// Index of the first frame, at least 1. It must be the follower's next index.
        first_index: u64,
        /// The clients' frames, one per entry.
        frames: Frames<'a>,
    },
    /// Leader to follower: a full copy begins, and the follower discards its data and its history.
    SnapshotBegin {
        /// The leader's epoch.
        epoch: u64,
        /// Approximate number of keys in the copy, since writes go on.
        keys: u64,
        /// Approximate bytes of keys and values in the copy.
        bytes: u64,
        /// The copy's history.
        history: Epochs<'a>,
    },
    /// Leader to follower: a part of the copy. Parts are applied in their order.
    SnapshotChunk {
        /// The leader's epoch.
        epoch: u64,
        /// The number of chunks before this one.
        sequence: u64,
        /// Keys and values of the copy, and writes that were made during the copy.
        frames: Frames<'a>,
    },
    /// Leader to follower: the copy is complete.
    SnapshotEnd {
        /// The leader's epoch.
        epoch: u64,
        /// Index of the last entry that the copy holds; 0 where there is none.
        index: u64,
        /// The digest at that index.
        digest: u128,
        /// The number of chunks.
        chunks: u64,
    },
    /// Leader to follower: the leader is alive; its position and its digest.
    Heartbeat {
        /// The leader's epoch.
        epoch: u64,
        /// Index of the leader's last entry; 0 where there is none.
        last_index: u64,
        /// The index that the digest belongs to.
        digest_index: u64,
        /// The leader's digest at that index.
        digest: u128,
    },
    /// Follower to leader: the follower is alive; its position.
    Ack {
        /// The leader's epoch, as the follower knows it.
        epoch: u64,
        /// Index of the last entry that the follower has applied; 0 where it holds no complete data set.
        applied_index: u64,
    },
}

impl<'a> Message<'a> {
    /// The opcode of the frame.
    #[must_use]
    pub const fn opcode(&self) -> StreamOpcode {
        match self {
            Message::Entries { .. } => StreamOpcode::Entries,
            Message::SnapshotBegin { .. } => StreamOpcode::SnapshotBegin,
            Message::SnapshotChunk { .. } => StreamOpcode::SnapshotChunk,
            Message::SnapshotEnd { .. } => StreamOpcode::SnapshotEnd,
            Message::Heartbeat { .. } => StreamOpcode::Heartbeat,
            Message::Ack { .. } => StreamOpcode::Ack,
        }
    }

    /// The sender's epoch.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        match *self {
            Message::Entries { epoch, .. }
            | Message::SnapshotBegin { epoch, .. }
            | Message::SnapshotChunk { epoch, .. }
            | Message::SnapshotEnd { epoch, .. }
            | Message::Heartbeat { epoch, .. }
            | Message::Ack { epoch, .. } => epoch,
        }
    }

    /// The fields of the frame's key.
    fn fields(&self) -> Fields {
        match *self {
            Message::Entries {
                epoch,
                first_index,
                frames,
            } => Fields::Entries {
                epoch,
                first_index,
                count: frames.count(),
            },
            Message::SnapshotBegin {
                epoch, keys, bytes, ..
            } => Fields::SnapshotBegin { epoch, keys, bytes },
            Message::SnapshotChunk {
                epoch,
                sequence,
                frames,
            } => Fields::SnapshotChunk {
                epoch,
                sequence,
                count: frames.count(),
            },
            Message::SnapshotEnd {
                epoch,
                index,
                digest,
                chunks,
            } => Fields::SnapshotEnd {
                epoch,
                index,
                digest,
                chunks,
            },
            Message::Heartbeat {
                epoch,
                last_index,
                digest_index,
                digest,
            } => Fields::Heartbeat {
                epoch,
                last_index,
                digest_index,
                digest,
            },
            Message::Ack {
                epoch,
                applied_index,
            } => Fields::Ack {
                epoch,
                applied_index,
            },
        }
    }

    /// Appends the message's frame to `out`.
    ///
    /// Batches that are written anew come from a [`BatchEncoder`].
    ///
    /// # Errors
    ///
    /// When the value is too long for its length field; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let fields = self.fields();
        let start = out.len();
        // The head has a fixed length. It is filled in once the value and its checksum are known.
        let head_len = Head::len_of(fields.opcode());
        out.resize(start.saturating_add(head_len), 0);
        match self {
            Message::Entries { frames, .. } | Message::SnapshotChunk { frames, .. } => {
                out.extend_from_slice(frames.bytes());
            }
            Message::SnapshotBegin { history, .. } => history.encode(out),
            Message::SnapshotEnd { .. } | Message::Heartbeat { .. } | Message::Ack { .. } => {}
        }
        let (head, value) = out[start..].split_at_mut(head_len);
        match Head::new(fields, value) {
            Ok(encoded) => {
                encoded.write(head);
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }
}

/// Result of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The bytes end inside a frame.
    Incomplete {
        /// Bytes of the whole frame, as far as known; at least one more than there are. The length of a value is only
        /// taken from a head whose `head_crc` is right.
        needed: usize,
    },
    /// A whole frame.
    Whole {
        /// The message.
        message: Message<'a>,
        /// Its length in bytes.
        frame_len: usize,
    },
}

/// Reads the frame of the stream at the start of `bytes`.
///
/// Judges header and key as soon as they have arrived, and then the value. Allocates nothing. A receiver that reads a
/// long value into other memory takes the two steps itself: [`Head::parse`], [`Head::message`].
///
/// # Errors
///
/// The first fault of the frame. The connection cannot be used further.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, ReplicationError> {
    let head = match Head::parse(bytes)? {
        ParsedHead::Incomplete { needed } => return Ok(Parsed::Incomplete { needed }),
        ParsedHead::Whole(head) => head,
    };
    let frame_len = head.frame_len();
    match bytes.get(head.len()..frame_len) {
        None => Ok(Parsed::Incomplete { needed: frame_len }),
        Some(value) => {
            let message = head.message(value)?;
            Ok(Parsed::Whole { message, frame_len })
        }
    }
}
