//! BATCH: requests that are carried out together or not at all.
//!
//! # Source
//!
//! GBP §4 "BATCH".

use super::command::OperandError;
use super::expiry::{DEADLINE_LEN, recorded_expiry};
use super::request::{HEADER_LEN, Limits, Parsed, VALUE_LEN_AT, frames, parse};
use super::response::{self, Response};
use super::{Opcode, RequestFrame, Status};

/// Most requests in a BATCH.
pub const BATCH_MAX: usize = 64;

/// Requests that there is memory for at first.
const FRAMES: usize = 16;

/// Longest request in a BATCH, in bytes of its frame.
pub const BATCH_FRAME_BYTES_MAX: usize = 4 << 10;

/// Longest value of a BATCH in bytes: room for the most requests of the greatest length.
pub const BATCH_BYTES_MAX: u32 = 256 << 10;

/// Longest value of a BATCH as a record of the log: each of its effects may have a deadline more than its request.
pub const BATCH_RECORD_BYTES_MAX: u32 = BATCH_BYTES_MAX + 64 * 8;

/// Bytes by which the effect of a BATCH may be longer than the BATCH: 3 for each ADD of a key that expires.
pub(super) const EFFECT_EXTRA: usize = 3 * BATCH_MAX;

/// The requests of a BATCH: whole, acceptable frames, of operations that may be in one.
///
/// ```
/// use gopherstore::wire::{Request, batch::Batch};
///
/// let mut value = Vec::new();
/// Request::Set { key: b"a", value: b"1" }.encode(&mut value)?;
/// Request::Del { key: b"b" }.encode(&mut value)?;
/// let batch = Batch::decode(&value).expect("two requests");
/// assert_eq!(batch.frames().len(), 2);
/// assert!(batch.writes());
/// # Ok::<(), gopherstore::wire::EncodeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    frames: Vec<RequestFrame<'a>>,
    writes: u64,
}

impl<'a> Batch<'a> {
    /// Reads the value of a request.
    ///
    /// # Errors
    ///
    /// The first fault. It names the number of the request, from 1, and what is wrong with it.
    pub fn decode(value: &'a [u8]) -> Result<Batch<'a>, OperandError> {
        Batch::decode_within(value, &Limits::default())
    }

    /// The same on a node with these limits, which hold for each value.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_within(value: &'a [u8], limits: &Limits) -> Result<Batch<'a>, OperandError> {
        if u32::try_from(value.len()).is_ok_and(|len| len > BATCH_BYTES_MAX) {
            let len = value.len();
            return Err(OperandError {
                at: VALUE_LEN_AT,
                reason: format!("value of {len} bytes in BATCH, limit {BATCH_BYTES_MAX}"),
            });
        }
        let (mut frames, mut writes, mut at) = (Vec::with_capacity(FRAMES), 0, 0);
        while at < value.len() {
            let number = frames.len() + 1;
            let wrong = |reason: String| {
                let reason = format!("request {number}: {reason}");
                Err(OperandError {
                    at: HEADER_LEN + at,
                    reason,
                })
            };
            if frames.len() == BATCH_MAX {
                return wrong(format!("a BATCH has {BATCH_MAX} at most"));
            }
            let too_long = |len| format!("frame of {len} bytes, limit {BATCH_FRAME_BYTES_MAX}");
            let frame = match parse(&value[at..], limits) {
                Ok(Parsed::Whole(frame)) => frame,
                Ok(Parsed::Incomplete { needed }) if needed > BATCH_FRAME_BYTES_MAX => {
                    return wrong(too_long(needed));
                }
                Ok(Parsed::Incomplete { needed }) => {
                    let there = value.len() - at;
                    return wrong(format!("frame of {needed} bytes, and {there} are there"));
                }
                Err(error) => return wrong(error.to_string()),
            };
            let (spec, len) = (frame.opcode().spec(), frame.bytes().len());
            if !spec.batchable {
                return wrong(format!("{} may not be in a BATCH", spec.name));
            }
            if len > BATCH_FRAME_BYTES_MAX {
                return wrong(too_long(len));
            }
            if let Err(error) = spec.check(frame.key(), frame.value()) {
                return wrong(error.reason);
            }
            writes |= u64::from(spec.writes) << frames.len();
            frames.push(frame);
            at += len;
        }
        if frames.is_empty() {
            return Err(OperandError {
                at: VALUE_LEN_AT,
                reason: "value of 0 bytes in BATCH, must have 1 request at least".to_owned(),
            });
        }
        Ok(Batch { frames, writes })
    }

    /// The effects in the value of a record of the log: SET, SETAT, DEL and EXPIRE. `None` where they are none. They
    /// may be longer than the requests of a BATCH, whose effects they are.
    #[must_use]
    pub fn of_record(value: &'a [u8]) -> Option<Batch<'a>> {
        let (mut effects, mut writes, mut len) = (Vec::with_capacity(FRAMES), 0, 0);
        for frame in frames(value) {
            let is_too_long = frame.bytes().len() > BATCH_FRAME_BYTES_MAX + DEADLINE_LEN;
            if !is_effect(&frame) || is_too_long || effects.len() == BATCH_MAX {
                return None;
            }
            len += frame.bytes().len();
            writes |= 1 << effects.len();
            effects.push(frame);
        }
        let is_whole = len == value.len() && !effects.is_empty();
        is_whole.then_some(Batch {
            frames: effects,
            writes,
        })
    }

    /// The requests, in their order.
    #[must_use]
    pub fn frames(&self) -> &[RequestFrame<'a>] {
        &self.frames
    }

    /// Whether one of the requests writes. A BATCH without is a read.
    #[must_use]
    pub const fn writes(&self) -> bool {
        self.writes != 0
    }

    /// A bit for each request, the lowest for the first: 1 for a write.
    #[must_use]
    pub const fn write_bits(&self) -> u64 {
        self.writes
    }

    pub(super) fn check(_key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Batch::decode(value).map(drop)
    }
}

/// Whether a frame may be an effect of a batch.
fn is_effect(frame: &RequestFrame<'_>) -> bool {
    let (opcode, value) = (frame.opcode(), frame.value());
    let is_absolute = opcode != Opcode::Expire || recorded_expiry(value).is_some();
    let spec = opcode.spec();
    spec.is_record && spec.batchable && is_absolute && spec.check(frame.key(), value).is_ok()
}

/// The effects in a record of the log, each on one key: those of a BATCH, none of an EPOCH, and else the record itself.
pub fn effects<'a>(record: &RequestFrame<'a>) -> impl Iterator<Item = RequestFrame<'a>> {
    let opcode = record.opcode();
    let of_batch = if opcode == Opcode::Batch {
        record.value()
    } else {
        &[]
    };
    let own = (opcode != Opcode::Batch && opcode != Opcode::Epoch).then_some(*record);
    own.into_iter().chain(frames(of_batch))
}

/// The answer to a BATCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchAnswer<'a> {
    /// All requests were carried out: their responses, in their order.
    Done(Vec<Response<'a>>),
    /// A condition is not met, and nothing was carried out.
    Conflict {
        /// The number of the request, from 0.
        position: u8,
        /// Its CONFLICT.
        response: Response<'a>,
    },
}

impl<'a> BatchAnswer<'a> {
    /// Reads the value of an OK to a BATCH of `count` requests; `None` where it is none.
    #[must_use]
    pub fn of_ok(value: &'a [u8], count: usize) -> Option<BatchAnswer<'a>> {
        let (mut responses, mut rest) = (Vec::new(), value);
        while let Ok(response::Parsed::Whole(response)) = response::parse(rest) {
            rest = &rest[response.frame_len()..];
            responses.push(response);
        }
        (rest.is_empty() && responses.len() == count).then_some(BatchAnswer::Done(responses))
    }

    /// Reads the value of a CONFLICT to a BATCH of `count` requests; `None` where it is none.
    #[must_use]
    pub fn of_conflict(value: &'a [u8], count: usize) -> Option<BatchAnswer<'a>> {
        let (&position, rest) = value.split_first()?;
        let Ok(response::Parsed::Whole(response)) = response::parse(rest) else {
            return None;
        };
        let is_it = response.frame_len() == rest.len()
            && response.status == Status::Conflict.byte()
            && usize::from(position) < count;
        is_it.then_some(BatchAnswer::Conflict { position, response })
    }
}
