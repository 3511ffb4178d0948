//! What one side of a connection sent, frame by frame, up to the first byte that is wrong.
//!
//! For people who hold bytes and want to know what they say: nothing is skipped, whatever a node would do, and what is
//! wrong is told with its place.
//!
//! ```
//! use gopherstore::wire::transcript::{Kind, Side, Transcript};
//!
//! let mut frames = Transcript::new(Side::Requests, b"\x04\0\0\0\0\0\0\x04\0\x01\0\0\0\0k");
//! assert!(matches!(frames.next(), Some(Ok(frame)) if frame.kind == Kind::Request && frame.bytes.len() == 7));
//! let Some(Err(fault)) = frames.next() else { panic!("no fault") };
//! assert_eq!(
//!     fault.to_string(),
//!     "frame 2, from offset 0x7: wrong at offset 0x8: key of 1 bytes, limit 0: PING has no key"
//! );
//! assert!(frames.next().is_none());
//! ```

use std::fmt;

use super::command::OkValue;
use super::replication::{self, FollowAnswer, Head, ReplicationError, StreamOpcode};
use super::request::{self, ANY_VALUE, KEY_LEN_AT, RequestError, RequestHeader, VALUE_LEN_AT};
use super::response::{self, Response};
use super::{Opcode, Status, StatusValue, is_text, size};

/// Who sent the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client; behind a FOLLOW, frames of the replication stream may come. Or nobody, since they are a file of
    /// `dump`: SET and DEL, and a SNAPSHOT_END.
    Requests,
    /// A node; behind an answer to FOLLOW, frames of the replication stream may come.
    Answers,
    /// Either, once the connection follows.
    Stream,
}

impl Side {
    /// Every side, the likeliest first.
    pub const ALL: [Side; 3] = [Side::Requests, Side::Answers, Side::Stream];

    /// The side that could have sent `bytes`: from one of them they are frames throughout, or begin as frames and are
    /// cut. Where that does not tell, as for bytes that are wrong whoever sent them, it is the side which gets
    /// furthest, and of equals the first of [`Side::ALL`].
    ///
    /// Rarely bytes are whole frames of two sides: an ERROR without a message and one of 253 bytes may be a SET of the
    /// empty key.
    #[must_use]
    pub fn guess(bytes: &[u8]) -> Side {
        let [mut best, rest @ ..] = Side::ALL.map(|side| (Likeness::of(side, bytes), side));
        for next in rest {
            if next.0 > best.0 {
                best = next;
            }
        }
        best.1
    }
}

/// How well bytes fit a side; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    /// Something is wrong after so many bytes.
    Wrong(usize),
    /// Cut, and so many bytes are missing.
    Cut(std::cmp::Reverse<usize>),
    Whole,
}

impl Likeness {
    /// A frame that is cut has one part in so many at least, or its length is not believed.
    const CUT_PARTS_MAX: usize = 64;

    fn of(side: Side, bytes: &[u8]) -> Likeness {
        let Some(Err(fault)) = Transcript::new(side, bytes).find(Result::is_err) else {
            return Likeness::Whole;
        };
        let there = bytes.len() - fault.frame_at;
        match fault.needed {
            None => Likeness::Wrong(fault.at),
            Some(_) if there < request::HEADER_LEN => Likeness::Cut(std::cmp::Reverse(0)),
            Some(needed) if there.saturating_mul(Self::CUT_PARTS_MAX) >= needed => {
                Likeness::Cut(std::cmp::Reverse(needed - there))
            }
            // Its first byte alone is what it seems to be.
            Some(_) => Likeness::Wrong(fault.frame_at.saturating_add(1)),
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// An answer.
    Answer,
    /// An OK whose value is what FOLLOW is answered with.
    AnswerToFollow,
    /// A frame of the replication stream.
    Stream,
}

/// A whole, acceptable frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// Offset of its first byte.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
    /// All of it.
    pub bytes: &'a [u8],
}

impl Frame<'_> {
    /// The name of its operation, its status, or what else its first byte says.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let first = self.bytes.first().copied().unwrap_or_default();
        let name = match self.kind {
            Kind::Request => Opcode::try_from(first).map(Opcode::name),
            Kind::Answer | Kind::AnswerToFollow => Status::try_from(first).map(Status::name),
            Kind::Stream => StreamOpcode::try_from(first).map(StreamOpcode::name),
        };
        name.unwrap_or("unknown")
    }
}

/// Where the bytes stop being frames, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the frame that is wrong or cut, from 1.
    pub number: u64,
    /// Offset of its first byte.
    pub frame_at: usize,
    /// What it would be.
    pub kind: Kind,
    /// Offset of the first byte of the field that is wrong; the end of all bytes where the frame is cut. In a frame
    /// whose checksum is wrong it is the checksum: nobody knows which of the bytes that it covers was changed.
    pub at: usize,
    /// Where nothing is wrong but the end comes too soon: length of the whole frame, as far as is known.
    pub needed: Option<usize>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "frame {}, from offset {:#x}: ",
            self.number, self.frame_at
        )?;
        if self.needed.is_none() {
            write!(f, "wrong at offset {:#x}: ", self.at)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

/// The frames of one side, in order; the last item is the fault, where there is one.
#[derive(Clone, Debug)]
pub struct Transcript<'a> {
    bytes: &'a [u8],
    at: usize,
    number: u64,
    side: Side,
    /// A FOLLOW, or what looks like an answer to one, was there.
    follows: bool,
}

impl<'a> Transcript<'a> {
    /// The frames of `bytes`, which begin with one.
    #[must_use]
    pub const fn new(side: Side, bytes: &'a [u8]) -> Transcript<'a> {
        Transcript {
            bytes,
            at: 0,
            number: 0,
            side,
            follows: false,
        }
    }
}

impl<'a> Iterator for Transcript<'a> {
    type Item = Result<Frame<'a>, Fault>;

    fn next(&mut self) -> Option<Result<Frame<'a>, Fault>> {
        let at = self.at;
        let rest = &self.bytes[at..];
        let first = *rest.first()?;
        self.number = self.number.saturating_add(1);
        if self.follows && StreamOpcode::try_from(first).is_ok() {
            self.side = Side::Stream;
        }
        let (kind, judged) = match self.side {
            // The end of a file of `dump` (GBP §11).
            Side::Requests if at > 0 && first == StreamOpcode::SnapshotEnd.byte() => {
                (Kind::Stream, judge_stream(rest))
            }
            Side::Requests => (Kind::Request, judge_request(rest, at == 0)),
            Side::Answers => judge_answer(rest),
            Side::Stream => (Kind::Stream, judge_stream(rest)),
        };
        Some(match judged {
            Ok(len) => {
                self.at += len;
                self.follows |=
                    kind == Kind::AnswerToFollow || (kind == Kind::Request && opens_stream(first));
                Ok(Frame {
                    number: self.number,
                    at,
                    kind,
                    bytes: &rest[..len],
                })
            }
            Err(wrong) => {
                let needed = match wrong {
                    Wrong::Field { .. } => None,
                    Wrong::Cut { needed } => Some(needed),
                };
                self.at = self.bytes.len();
                Err(Fault {
                    number: self.number,
                    frame_at: at,
                    kind,
                    at: match wrong {
                        Wrong::Field { at: inside, .. } => at + inside.min(rest.len()),
                        Wrong::Cut { .. } => self.bytes.len(),
                    },
                    needed,
                    reason: match wrong {
                        Wrong::Field { reason, .. } => reason,
                        Wrong::Cut { needed } => cut(kind, rest.len(), needed),
                    },
                })
            }
        })
    }
}

/// Says how much of a frame is missing.
fn cut(kind: Kind, there: usize, needed: usize) -> String {
    let header_len = match kind {
        Kind::Answer | Kind::AnswerToFollow => response::HEADER_LEN,
        Kind::Request | Kind::Stream => request::HEADER_LEN,
    };
    let at_least = if there < header_len { "at least " } else { "" };
    let missing = needed.saturating_sub(there);
    format!("cut: {there} of {at_least}{needed} bytes, {at_least}{missing} missing")
}

/// Why the bytes at a frame's start are none.
enum Wrong {
    /// The field at this offset in the frame.
    Field { at: usize, reason: String },
    /// They end, and the frame has so many, as far as is known.
    Cut { needed: usize },
}

impl Wrong {
    fn at(at: usize, reason: &impl fmt::Display) -> Wrong {
        Wrong::Field {
            at,
            reason: reason.to_string(),
        }
    }
}

/// The length of the request at the start of `bytes`.
fn judge_request(bytes: &[u8], is_first: bool) -> Result<usize, Wrong> {
    let first = bytes.first().copied().unwrap_or_default();
    if is_first {
        request::reject_text(first).map_err(|error| Wrong::at(0, &error))?;
    }
    // Though a node waits for a whole header before it says so.
    Opcode::try_from(first).map_err(|opcode| {
        let error = RequestError::UnknownOpcode { opcode, skip: None };
        Wrong::at(0, &error)
    })?;
    match request::parse(bytes, &ANY_VALUE) {
        Ok(request::Parsed::Incomplete { needed }) => Err(Wrong::Cut { needed }),
        Err(error) => {
            let at = request_error_at(&error);
            Err(Wrong::at(at, &error))
        }
        Ok(request::Parsed::Whole(frame)) => {
            let (spec, request) = (frame.opcode().spec(), frame.request());
            // The fields of a request for a stream decide what the bytes behind it are.
            if spec.ok == OkValue::Stream {
                let judged = spec.check(request.key(), request.value());
                judged.map_err(|error| Wrong::at(error.at, &error.reason))?;
            }
            Ok(frame.bytes().len())
        }
    }
}

/// Whether a stream may follow the response to a request with this opcode.
pub(super) fn opens_stream(opcode: u8) -> bool {
    Opcode::try_from(opcode).is_ok_and(|opcode| opcode.spec().ok == OkValue::Stream)
}

/// Where in a request the field is that an error speaks of.
const fn request_error_at(error: &RequestError) -> usize {
    match error {
        RequestError::Text { .. } | RequestError::UnknownOpcode { .. } => 0,
        RequestError::UnusedKey { .. } => KEY_LEN_AT,
        RequestError::UnusedValue { .. } | RequestError::ValueTooLong { .. } => VALUE_LEN_AT,
    }
}

/// What the answer at the start of `bytes` is, and its length.
fn judge_answer(bytes: &[u8]) -> (Kind, Result<usize, Wrong>) {
    let first = bytes.first().copied().unwrap_or_default();
    let status = Status::try_from(first);
    if status.is_err() && !is_text(first) {
        let reason = format!("unknown status 0x{first:02x}");
        return (Kind::Answer, Err(Wrong::at(0, &reason)));
    }
    match response::parse(bytes) {
        Err(error) => (Kind::Answer, Err(Wrong::at(0, &error))),
        Ok(response::Parsed::Incomplete { needed }) => (Kind::Answer, Err(Wrong::Cut { needed })),
        Ok(response::Parsed::Whole(answer)) => {
            let len = answer.frame_len();
            if let Ok(status) = status
                && let Some(reason) = value_fault(status, answer.value.len())
            {
                return (Kind::Answer, Err(Wrong::at(1, &reason)));
            }
            let kind = if is_answer_to_follow(&answer) {
                Kind::AnswerToFollow
            } else {
                Kind::Answer
            };
            (kind, Ok(len))
        }
    }
}

/// Says what is wrong with a value of this length in a response with this status.
pub(super) fn value_fault(status: Status, len: usize) -> Option<String> {
    let spec = status.spec();
    let must_be_empty = match spec.value {
        StatusValue::Empty => true,
        StatusValue::Result | StatusValue::Message | StatusValue::Address => false,
    };
    (must_be_empty && len > 0)
        .then(|| format!("value of {len} bytes, limit 0: {} has no value", spec.name))
}

/// Whether an answer is what FOLLOW is answered with. A value that somebody stored can look so, but not by accident: it
/// begins with 0, 1 or 2, and holds rising epochs, as many as it says.
fn is_answer_to_follow(answer: &Response) -> bool {
    answer.status == Status::Ok.byte() && FollowAnswer::decode(answer.value).is_ok()
}

/// The length of the frame of the stream at the start of `bytes`.
fn judge_stream(bytes: &[u8]) -> Result<usize, Wrong> {
    let first = bytes.first().copied().unwrap_or_default();
    let opcode = StreamOpcode::try_from(first).map_err(|opcode| {
        let error = ReplicationError::UnknownOpcode { opcode };
        Wrong::at(0, &error)
    })?;
    let error = match replication::parse(bytes) {
        Ok(replication::Parsed::Whole { frame_len, .. }) => return Ok(frame_len),
        Ok(replication::Parsed::Incomplete { needed }) => return Err(Wrong::Cut { needed }),
        Err(error) => error,
    };
    let field = |wanted: &str| {
        let fields = opcode.fields().iter();
        let before = fields.take_while(|field| field.name != wanted);
        request::HEADER_LEN + before.map(|field| field.size).sum::<usize>()
    };
    let value_at = Head::len_of(opcode);
    let at = match error {
        ReplicationError::UnknownOpcode { .. } => 0,
        ReplicationError::KeyLen { .. } => KEY_LEN_AT,
        ReplicationError::ValueTooLong { .. } | ReplicationError::ValueLen { .. } => VALUE_LEN_AT,
        ReplicationError::HeadChecksum { .. } => field("head_crc"),
        ReplicationError::ValueChecksum { .. } => field("value_crc"),
        ReplicationError::NoFrames { .. } | ReplicationError::Count { .. } => field("count"),
        ReplicationError::Index { .. } => field("first_index"),
        ReplicationError::History(_) => value_at,
        ReplicationError::CutFrame { at, .. } | ReplicationError::NotAWrite { at, .. } => {
            nested_at(bytes, value_at, at)
        }
        ReplicationError::BadFrame { at, error } => {
            nested_at(bytes, value_at, at) + request_error_at(&error)
        }
    };
    Err(Wrong::at(at, &error))
}

/// Where the client frame of this number, from 0, begins in the batch whose value begins at `value_at`.
fn nested_at(bytes: &[u8], value_at: usize, number: u32) -> usize {
    let mut at = value_at;
    for _ in 0..size(number) {
        let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else {
            break;
        };
        at = at.saturating_add(RequestHeader::decode(*header).frame_len());
    }
    at
}
