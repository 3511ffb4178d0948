//! Replication: the FOLLOW request, its answer, and the frames that the connection carries from then on.
//!
//! A follower connects like any client and sends FOLLOW ([`Follow`]). A leader that accepts it answers OK with a
//! [`FollowAnswer`]; after that both sides send frames of the stream and nothing else: the leader everything but
//! ACK, the follower ACK alone. A frame of the stream has the header of a request, a key of a fixed length, which
//! holds its fields and two checksums, and where it has one a value.
//!
//! * [`Head`] is header and key: what can be judged, and is, before a byte of the value is waited for.
//! * [`Message`] is a whole frame. [`parse`] turns received bytes into one, borrowed.
//! * [`Frames`] are the client frames of a batch, every one of them checked before the first is handed out, so that a
//!   batch is applied whole or not at all.
//! * [`BatchEncoder`] writes a batch into a buffer, each client frame copied once.
//!
//! # Why two checksums
//!
//! TCP's own checksum misses about one damaged segment in 65,536, and what a follower applies wrongly it serves
//! wrongly until the digests are compared. `value_crc` covers the value. `head_crc` covers header and key, `value_crc`
//! included, and is judged first: a damaged length cannot make a receiver wait for bytes that never come or take
//! memory for them, and no field is believed that was not sent. The key's length is fixed for each opcode, so it is
//! known where `head_crc` lies without believing anything.
//!
//! # Errors
//!
//! There is nothing to skip to after a bad frame: whatever is wrong, the receiver drops the connection, and the
//! follower asks again from where it stands.
//!
//! # Known limits
//!
//! * One entry travels in one batch, so its frame has 4,294,967,295 bytes at most, 65,542 fewer than key and value
//!   could have together ([`BatchEncoder::push`] refuses it).
//! * A checksum is for damage by accident; it keeps nobody out who wants in.
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
mod eras;
mod error;
mod follow;
mod head;
mod opcode;

use crate::wire::EncodeError;

pub use batch::{BATCH_LEN_MAX, BatchEncoder, FrameIter, Frames};
pub use eras::{ERA_LEN, Eras, ErasError};
pub use error::ReplicationError;
pub use follow::{
    CLUSTER_ID_LEN_MAX, FOLLOW_FIELDS_LEN, FOLLOW_VERSION, Follow, FollowAnswer, FollowAnswerError,
    FollowError, NAME_LEN_MAX, Start,
};
pub use head::{Fields, Head, ParsedHead};
pub use opcode::{MessageSpec, MessageValue, Sender, StreamOpcode};

/// One frame of the stream, what is long borrowed from wherever it lies.
///
/// Every message carries the epoch that its sender is in: a receiver that knows a higher one refuses it, and a leader
/// that hears of a higher one is no longer the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Leader to follower: the entries `first_index`, `first_index + 1` and so on.
    Entries {
        /// The leader's epoch.
        epoch: u64,
        /// Index of the first frame, 1 at least. The follower's next one, or the link is dropped.
        first_index: u64,
        /// The clients' frames, one for each entry.
        frames: Frames<'a>,
    },
    /// Leader to follower: forget your data and your history, here comes a full copy.
    SnapshotBegin {
        /// The leader's epoch.
        epoch: u64,
        /// How many keys will come, about: writes go on meanwhile.
        keys: u64,
        /// How many bytes of keys and values will come, about.
        bytes: u64,
        /// The copy's history.
        history: Eras<'a>,
    },
    /// Leader to follower: a part of the copy, to be applied in the order in which it comes.
    SnapshotChunk {
        /// The leader's epoch.
        epoch: u64,
        /// How many chunks of this copy came before.
        sequence: u64,
        /// Keys and values, and writes that came in meanwhile.
        frames: Frames<'a>,
    },
    /// Leader to follower: the copy is exact now.
    SnapshotEnd {
        /// The leader's epoch.
        epoch: u64,
        /// Index of the last entry that the copy holds; 0 where there is none.
        index: u64,
        /// The digest at that index.
        digest: u128,
        /// How many chunks there were.
        chunks: u64,
    },
    /// Leader to follower: a sign of life, and where the leader stands.
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
    /// Follower to leader: a sign of life, and how far the follower is.
    Ack {
        /// The epoch that the follower knows the leader to be in.
        epoch: u64,
        /// Index of the last entry that the follower has applied; 0 where it holds no complete data set.
        applied_index: u64,
    },
}

impl<'a> Message<'a> {
    /// What the frame is.
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

    /// The epoch that the sender is in.
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

    /// Appends the message's frame to `out`.
    ///
    /// Batches that are written anew come from a [`BatchEncoder`].
    ///
    /// # Errors
    ///
    /// When the value is longer than its length field can say; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let fields = match *self {
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
        };
        let start = out.len();
        // The head is as long whatever the value, and its place is filled in once the value and its checksum are known.
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

/// What stands at the start of the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The beginning of a frame.
    Incomplete {
        /// Bytes of the whole frame as far as is known; at least one more than there are. A number beyond a head's
        /// length is one that `head_crc` vouches for.
        needed: usize,
    },
    /// A whole frame.
    Whole {
        /// What it says.
        message: Message<'a>,
        /// Its length in bytes.
        frame_len: usize,
    },
}

/// Reads the frame of the stream at the start of `bytes`.
///
/// Judges header and key as soon as they are there, and the value as soon as it is. Allocates nothing. A receiver that
/// wants a long value elsewhere than behind its head takes the two steps itself: [`Head::parse`], [`Head::message`].
///
/// # Errors
///
/// What is wrong with the frame; the connection is then of no more use.
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
