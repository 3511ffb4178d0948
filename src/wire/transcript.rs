//! The frames that one side of a connection sent, up to the first wrong byte.
//!
//! For people who read recorded bytes. Unlike a node, a transcript skips nothing: it ends at the first fault, with its
//! offset and the reason.
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
use super::replication::{
    self, FollowAnswer, Head, ParsedHead, ReplicationError, StreamOpcode, sent_value_len,
};
use super::request::{self, ANY_VALUE, KEY_LEN_AT, RequestError, RequestHeader, VALUE_LEN_AT};
use super::response::{self, Response};
use super::{Opcode, Status, StatusValue, is_text, size};

/// The side that sent the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client: requests, and behind a FOLLOW frames of the replication stream. A file of `dump` too: SET and DEL, and
    /// a SNAPSHOT_END.
    Requests,
    /// A node: responses, and behind one to FOLLOW frames of the replication stream.
    Responses,
    /// Either side of a replication stream.
    Stream,
}

impl Side {
    /// Every side, the most likely first.
    pub const ALL: [Side; 3] = [Side::Requests, Side::Responses, Side::Stream];

    /// The side that most likely sent `bytes`: one from which they are whole frames, or else whole frames and the
    /// beginning of one, or else the one whose frames reach furthest. Of equals it is the first of [`Side::ALL`].
    ///
    /// Rarely bytes are whole frames of two sides: an ERROR without a message, or with one of 253 bytes, may be a SET
    /// of the empty key.
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

/// Degree to which bytes fit a side; the greatest fits best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    /// The byte at this offset is wrong.
    Wrong(usize),
    /// The last frame is cut, and this many bytes are missing.
    Cut(std::cmp::Reverse<usize>),
    Whole,
}

impl Likeness {
    /// Largest ratio of a cut frame's length to the bytes of it that are there. Beyond it the length is taken for
    /// wrong.
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
            // Only its first byte is plausible.
            Some(_) => Likeness::Wrong(fault.frame_at.saturating_add(1)),
        }
    }
}

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// A response.
    Response,
    /// An OK whose value is that of an OK to FOLLOW.
    FollowResponse,
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
    /// Its kind.
    pub kind: Kind,
    /// The whole frame.
    pub bytes: &'a [u8],
}

impl Frame<'_> {
    /// The name of its operation, its status or its message.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let first = self.bytes.first().copied().unwrap_or_default();
        let name = match self.kind {
            Kind::Request => Opcode::try_from(first).map(Opcode::name),
            Kind::Response | Kind::FollowResponse => Status::try_from(first).map(Status::name),
            Kind::Stream => StreamOpcode::try_from(first).map(StreamOpcode::name),
        };
        name.unwrap_or("unknown")
    }
}

/// The first fault in the bytes: where it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the frame that is wrong or cut, from 1.
    pub number: u64,
    /// Offset of its first byte.
    pub frame_at: usize,
    /// Its kind.
    pub kind: Kind,
    /// Offset of the wrong field; the end of all bytes where the frame is cut. For a wrong checksum it is that of the
    /// checksum, since any byte that it covers may have changed.
    pub at: usize,
    /// Where the frame is cut and nothing else is wrong: its whole length in bytes, as far as known.
    pub needed: Option<usize>,
    /// The reason, for people.
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

/// Iterator over the frames of one side, in order. Its last item is the fault, where there is one.
#[derive(Clone, Debug)]
pub struct Transcript<'a> {
    bytes: &'a [u8],
    at: usize,
    number: u64,
    side: Side,
    /// Whether there was a FOLLOW, or a response that looks like one to FOLLOW.
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
            Side::Responses => judge_response(rest),
            Side::Stream => (Kind::Stream, judge_stream(rest)),
        };
        Some(match judged {
            Ok(len) => {
                self.at += len;
                self.follows |=
                    kind == Kind::FollowResponse || (kind == Kind::Request && opens_stream(first));
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
        Kind::Response | Kind::FollowResponse => response::HEADER_LEN,
        Kind::Request | Kind::Stream => request::HEADER_LEN,
    };
    let at_least = if there < header_len { "at least " } else { "" };
    let missing = needed.saturating_sub(there);
    format!("cut: {there} of {at_least}{needed} bytes, {at_least}{missing} missing")
}

/// The reason why bytes are no frame.
enum Wrong {
    /// The field at this offset in the frame is wrong.
    Field { at: usize, reason: String },
    /// The bytes end inside the frame, which has this many, as far as known.
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
    // A node waits for a whole header before it judges the opcode.
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

/// Offset in a request of the field that an error is about.
const fn request_error_at(error: &RequestError) -> usize {
    match error {
        RequestError::Text { .. } | RequestError::UnknownOpcode { .. } => 0,
        RequestError::UnusedKey { .. } => KEY_LEN_AT,
        RequestError::UnusedValue { .. } | RequestError::ValueTooLong { .. } => VALUE_LEN_AT,
    }
}

/// The kind of the response at the start of `bytes`, and its length.
fn judge_response(bytes: &[u8]) -> (Kind, Result<usize, Wrong>) {
    let first = bytes.first().copied().unwrap_or_default();
    let status = Status::try_from(first);
    if status.is_err() && !is_text(first) {
        let reason = format!("unknown status 0x{first:02x}");
        return (Kind::Response, Err(Wrong::at(0, &reason)));
    }
    match response::parse(bytes) {
        Err(error) => (Kind::Response, Err(Wrong::at(0, &error))),
        Ok(response::Parsed::Incomplete { needed }) => (Kind::Response, Err(Wrong::Cut { needed })),
        Ok(response::Parsed::Whole(answer)) => {
            let len = answer.frame_len();
            if let Ok(status) = status
                && let Some(reason) = value_fault(status, answer.value.len())
            {
                return (Kind::Response, Err(Wrong::at(1, &reason)));
            }
            let kind = if is_follow_response(&answer) {
                Kind::FollowResponse
            } else {
                Kind::Response
            };
            (kind, Ok(len))
        }
    }
}

/// The fault of a value of this length in a response with this status, if there is one.
pub(super) fn value_fault(status: Status, len: usize) -> Option<String> {
    let spec = status.spec();
    match spec.value {
        StatusValue::Empty if len > 0 => Some(format!(
            "value of {len} bytes, limit 0: {} has no value",
            spec.name
        )),
        StatusValue::Index if len != size_of::<u64>() => Some(format!(
            "value of {len} bytes in {}, must have 8",
            spec.name
        )),
        StatusValue::Empty
        | StatusValue::Index
        | StatusValue::Result
        | StatusValue::State
        | StatusValue::Message
        | StatusValue::Address => None,
    }
}

/// Whether a response looks like one to FOLLOW. A stored value hardly looks so by accident: it would begin with 0, 1 or
/// 2, and hold rising epochs, as many as it says.
fn is_follow_response(answer: &Response) -> bool {
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
        ReplicationError::EventIndex => field("index"),
        ReplicationError::EventValues { .. } => field("values"),
        ReplicationError::History(_) => value_at,
        ReplicationError::CutFrame { at, .. }
        | ReplicationError::NotARecord { at, .. }
        | ReplicationError::BadRecord { at, .. } => nested_at(bytes, value_at, at),
        ReplicationError::RecordLen { at, .. } => nested_at(bytes, value_at, at) + VALUE_LEN_AT,
        ReplicationError::BadFrame { at, error } => {
            nested_at(bytes, value_at, at) + request_error_at(&error)
        }
    };
    Err(Wrong::at(at, &error))
}

/// Offset of the client frame with this number, from 0, in the stream frame whose value begins at `value_at`.
fn nested_at(bytes: &[u8], value_at: usize, number: u32) -> usize {
    let mut at = value_at;
    let has_values = match Head::parse(bytes) {
        Ok(ParsedHead::Whole(head)) => head.fields().has_values(),
        Ok(ParsedHead::Incomplete { .. }) | Err(_) => true,
    };
    for _ in 0..size(number) {
        let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else {
            break;
        };
        let header = RequestHeader::decode(*header);
        let value_len = sent_value_len(header, has_values);
        let before = request::HEADER_LEN + usize::from(header.key_len);
        at = at.saturating_add(before).saturating_add(value_len);
    }
    at
}
