//! Replication: the FOLLOW request, its answer, and the frames that the connection carries from then on.
//!
//! A follower connects like any client and sends FOLLOW ([`Follow`]). A leader that accepts it responds with OK and a
//! [`FollowAnswer`]. From then on both sides send only frames of the stream: the follower ACK, the leader all others. A
//! frame of the stream has the header of a request, a key of fixed length that holds its fields and two checksums, and
//! a value where its opcode has one.
//!
//! * `messages.rs` is the table of messages: one row makes a [`StreamOpcode`], its [`MessageSpec`], its [`Fields`] and
//!   its [`Message`].
//! * [`Head`] is header and key. It is judged before any byte of the value arrives.
//! * [`Message`] is a whole frame. [`parse`] turns received bytes into one, borrowed.
//! * [`Frames`] are the records of a batch: one frame each. All are checked before the first is returned, so that a
//!   receiver takes a batch whole or not at all.
//! * [`BatchEncoder`] writes a batch into a buffer, each record copied once.
//!
//! # Why two checksums
//!
//! TCP's own checksum misses about one damaged segment in 65,536, and a follower would serve damaged records until the
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
//! * The frame of a record is the value of a batch, so it has at most 4,294,967,295 bytes, 65,542 fewer than the
//!   longest request ([`BatchEncoder::push`] refuses a longer one).
//! * Checksums find accidental damage; they are no protection against forged frames.
//!
//! # Example
//!
//! ```
//! use gopherstore::wire::Request;
//! use gopherstore::wire::replication::{BatchEncoder, Fields, Message, Parsed, StreamOpcode, parse};
//!
//! let (mut frame, mut bytes) = (Vec::new(), Vec::new());
//! Request::Set { key: b"k", value: b"v" }.encode(&mut frame)?;
//! let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
//! assert!(batch.push(&frame));
//! let (epoch, first_index, committed_index, time_ms, digest) = (3, 8, 8, 1_700_000_000_000, 7);
//! batch.finish(|count| Fields::Entries { epoch, first_index, count, committed_index, time_ms, digest });
//!
//! let Ok(Parsed::Whole { message, frame_len }) = parse(&bytes) else { panic!("not whole") };
//! let Message::Entries { epoch: 3, first_index: 8, frames, .. } = message else { panic!("not those") };
//! assert_eq!(frames.iter().map(|frame| frame.bytes()).collect::<Vec<_>>(), [&frame[..]]);
//! assert_eq!(frame_len, bytes.len());
//! # Ok::<(), gopherstore::wire::EncodeError>(())
//! ```
//!
//! # Source
//!
//! GBP §5 "Following", §6 "The replication stream".

mod batch;
mod changes;
mod epochs;
mod error;
mod follow;
mod head;
mod messages;
mod watch;

use crate::wire::EncodeError;

pub use batch::{BATCH_LEN_MAX, BatchEncoder, FrameIter, Frames, runs};
pub(in crate::wire) use changes::sent_value_len;
pub use changes::{Change, Changes, EventEncoder, event_head};
pub use epochs::{EPOCH_LEN, Epochs, EpochsError};
pub use error::ReplicationError;
pub use follow::{
    CLUSTER_ID_LEN_MAX, FOLLOW_FIELDS_LEN, FOLLOW_VERSION, Follow, FollowAnswer, FollowAnswerError,
    FollowError, NAME_LEN_MAX, Start,
};
pub use head::{Head, ParsedHead};
pub use messages::{Fields, Message, MessageSpec, MessageValue, Sender, StreamOpcode};
pub use watch::{WATCH_LEN, Watch, WatchError, WatchFrom};

impl Message<'_> {
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
        self.encode_value(out);
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
