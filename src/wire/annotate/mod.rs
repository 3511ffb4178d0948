//! A frame as an annotated hex dump, for people.
//!
//! Takes any bytes: several frames, the beginning of one, and bytes that are no frame at all. Below the rows, lines
//! that begin with `!` say what is missing or wrong.
//!
//! ```
//! use gopherstore::wire::annotate;
//!
//! assert_eq!(
//!     annotate::request(b"\x02\x00\x02\x00\x00\x00\x00hi"),
//!     "\
//! 000000  02                       opcode     GET
//! 000001  00 02                    key_len    2
//! 000003  00 00 00 00              value_len  0
//! 000007  68 69                    key        \"hi\"
//! "
//! );
//! ```
//!
//! A line has at most 78 columns while offsets have six digits, that is below 16 MiB, so that two more for a direction
//! still fit a terminal of 80: six of offset, eight bytes, nine of field, and eight bytes escaped. The few fields
//! with a longer name push their meaning to the right.
//!
//! A connection that follows (GBP §5, §6) is described by [`request`](fn@request) for what the follower sends and by
//! [`response_to`] for what the leader sends, both from the connection's start, and by [`stream`] for either from
//! any frame on. [`sent`] and [`received`] see by themselves which of these a frame is; [`frame`](fn@frame) is told.

pub(crate) mod dump;
mod frames;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use super::{
    Opcode, Status,
    command::OkValue,
    replication::StreamOpcode,
    request::RequestHeader,
    response::HEADER_LEN,
    transcript::{Kind, Side, Transcript, opens_stream},
};
use dump::Dump;

/// The names of the columns, aligned with the rows.
pub const HEADING: &str = "offset  bytes                    field      meaning\n";

/// Describes bytes that a client sent; behind a FOLLOW, frames of the stream may come.
#[must_use]
pub fn request(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes, 0);
    let mut follows = false;
    while dump.has_more() {
        if follows && StreamOpcode::try_from(bytes[dump.at]).is_ok() {
            dump.stream();
            break;
        }
        follows |= opens_stream(bytes[dump.at]);
        if !dump.request_frame() {
            break;
        }
    }
    dump.finish()
}

/// Describes frames of the replication stream, from the start of one, whichever side sent them.
#[must_use]
pub fn stream(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes, 0);
    dump.stream();
    dump.finish()
}

/// Describes bytes that a node responded with.
#[must_use]
pub fn response(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes, 0);
    while dump.has_more() && dump.response_frame() {}
    dump.finish()
}

/// Describes bytes that a node responded with to one request with `opcode`: the response, and the stream that it
/// begins, where it begins one.
#[must_use]
pub fn response_to(opcode: Opcode, bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes, 0);
    if opcode == Opcode::Batch && bytes.first() == Some(&Status::Conflict.byte()) {
        dump.batch_conflict();
        return dump.finish();
    }
    if bytes.first() != Some(&Status::Ok.byte()) {
        return response(bytes);
    }
    match opcode.spec().ok {
        OkValue::Sums => dump.sums_response(),
        OkValue::Items => dump.list_response(),
        OkValue::Entries => dump.scan_response(),
        OkValue::Token => dump.token_response(),
        OkValue::Stream => {
            // No stream follows where the follower's data set is unknown (mode 2).
            if dump.follow_response_frame() && bytes.get(HEADER_LEN) != Some(&2) {
                dump.stream();
            }
        }
        OkValue::Found => dump.found_response(),
        OkValue::Remaining => dump.ttl_response(),
        OkValue::Batch => dump.batch_response(),
        OkValue::Empty | OkValue::Bytes | OkValue::Text | OkValue::Number | OkValue::Pong => {
            return response(bytes);
        }
    }
    dump.finish()
}

/// Describes a frame that a client sent, where nothing else is known of its connection.
#[must_use]
pub fn sent(frame: &[u8]) -> String {
    if is_stream(frame) {
        stream(frame)
    } else {
        request(frame)
    }
}

/// Describes a frame that a client received, where nothing else is known of its connection.
#[must_use]
pub fn received(frame: &[u8]) -> String {
    if let Some(Ok(first)) = Transcript::new(Side::Responses, frame).next()
        && first.kind == Kind::FollowResponse
    {
        return response_to(Opcode::Follow, frame);
    }
    if is_stream(frame) {
        stream(frame)
    } else {
        response(frame)
    }
}

/// Whether bytes begin with a header that only frames of the stream have. Text of another server may begin with such
/// an opcode, but not with the key length of one.
fn is_stream(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|header| {
        let header = RequestHeader::decode(*header);
        StreamOpcode::try_from(header.opcode).map(StreamOpcode::key_len) == Ok(header.key_len)
    })
}

/// Describes the one frame that `bytes` begin with, or as much of it as there is, without notes: a [`Transcript`] notes
/// errors. The offset of the first byte is printed as `offset`.
#[must_use]
pub fn frame(kind: Kind, bytes: &[u8], offset: usize) -> String {
    let mut dump = Dump::new(bytes, offset);
    if dump.has_more() {
        match kind {
            Kind::Request => dump.request_frame(),
            Kind::Response => dump.response_frame(),
            Kind::FollowResponse => dump.follow_response_frame(),
            Kind::Stream => dump.stream_frame(),
        };
    }
    dump.into_rows()
}
