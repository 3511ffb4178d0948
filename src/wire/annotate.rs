//! A frame as an annotated hex dump, for people.
//!
//! Takes any bytes: several frames, the beginning of one, and bytes that are no frame at all. What is missing or wrong
//! stands at the end, on lines of its own that begin with `!`.
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
//! [`answer_to_follow`] for what the leader sends, both from the connection's start, and by [`stream`] for either from
//! any frame on. [`sent`] and [`received`] see by themselves which of these a frame is; [`frame`](fn@frame) is told.

use std::fmt::Write;

use super::{
    CommandSpec, Field, Form, Opcode, Status, is_text,
    replication::{self, ERA_LEN, FollowAnswer, MessageValue, ReplicationError, StreamOpcode},
    request::{self, ANY_VALUE, RequestHeader},
    response::{self, ResponseHeader},
    transcript::{Kind, Side, Transcript, opens_stream, value_fault},
};

/// The names of the columns, aligned with the rows.
pub const HEADING: &str = "offset  bytes                    field      meaning\n";

/// Bytes in a row.
const ROW_LEN: usize = 8;
/// A longer field is cut in the middle.
const FIELD_LEN_MAX: usize = 8 * ROW_LEN;
/// What is shown of a cut field's beginning and end.
const HEAD_LEN: usize = 4 * ROW_LEN;
const TAIL_LEN: usize = 2 * ROW_LEN;

/// Frames of a batch, and eras of a history, that are shown; the rest is counted.
const ITEMS_MAX: usize = 16;

/// Describes what a client sent, or what a follower did: FOLLOW, then frames of the stream.
#[must_use]
pub fn request(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes);
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

/// Describes frames of the replication stream, whoever sent them, from the start of one.
#[must_use]
pub fn stream(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes);
    dump.stream();
    dump.finish()
}

/// Describes what a node sent to one that sent FOLLOW and nothing before it: the answer, and where that begins one the
/// replication stream.
#[must_use]
pub fn answer_to_follow(bytes: &[u8]) -> String {
    if bytes.first() != Some(&Status::Ok.byte()) || bytes.len() < response::HEADER_LEN {
        return response(bytes);
    }
    let mut dump = Dump::new(bytes);
    dump.answer_to_follow_frame();
    // No stream comes behind an unknown data set.
    if bytes.get(response::HEADER_LEN) != Some(&2) {
        dump.stream();
    }
    dump.finish()
}

/// Describes what a node answered to a SUMS alone.
#[must_use]
pub fn answer_to_sums(bytes: &[u8]) -> String {
    answer_to_comparison(bytes, |dump| {
        for _ in 0..ITEMS_MAX {
            if dump.has_more() {
                dump.wide_field("sum", 16, hexadecimal);
            }
        }
    })
}

/// Describes what a node answered to a LIST alone.
#[must_use]
pub fn answer_to_list(bytes: &[u8]) -> String {
    answer_to_comparison(bytes, |dump| {
        for _ in 0..ITEMS_MAX {
            if dump.has_more() {
                let key_len = dump.len_field("key_len");
                dump.field("value_len", 4, number);
                dump.wide_field("hash", 16, hexadecimal);
                dump.rows("key", key_len);
            }
        }
    })
}

/// Describes an answer to SUMS or LIST, with `rest` for what stands behind the fields that both have.
fn answer_to_comparison(bytes: &[u8], rest: impl FnOnce(&mut Dump<'_>)) -> String {
    let (Some((header, _)), Some(0)) = (
        bytes.split_first_chunk::<{ response::HEADER_LEN }>(),
        bytes.first(),
    ) else {
        return response(bytes);
    };
    let frame_len = ResponseHeader::decode(*header).frame_len();
    let mut dump = Dump::new(bytes);
    dump.field("status", 1, |_| Status::Ok.name().to_owned());
    dump.field("value_len", 4, number);
    dump.within(frame_len, |dump| {
        dump.field("run", 8, hexadecimal);
        dump.field("partitions", 4, number);
        dump.field("partition", 4, number);
        let from_len = dump.len_field("from_len");
        dump.rows("from", from_len);
        rest(dump);
        dump.leave_out();
    });
    dump.missing(0, frame_len, "");
    dump.finish()
}

/// Describes what a node answered.
#[must_use]
pub fn response(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes);
    while dump.has_more() && dump.answer_frame() {}
    dump.finish()
}

/// Describes a frame that a client sent, whatever it was, where its connection is not known.
#[must_use]
pub fn sent(frame: &[u8]) -> String {
    if is_stream(frame) {
        stream(frame)
    } else {
        request(frame)
    }
}

/// Describes a frame that a client received, whatever it was, where its connection is not known.
#[must_use]
pub fn received(frame: &[u8]) -> String {
    let first = Transcript::new(Side::Answers, frame).next();
    match first {
        Some(Ok(first)) if first.kind == Kind::AnswerToFollow => answer_to_follow(frame),
        _ if is_stream(frame) => stream(frame),
        _ => response(frame),
    }
}

/// Whether bytes begin with a header that the stream's frames alone have. Text of another server may begin with such an
/// opcode, and then has no such length.
fn is_stream(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|header| {
        let header = RequestHeader::decode(*header);
        StreamOpcode::try_from(header.opcode).map(StreamOpcode::key_len) == Ok(header.key_len)
    })
}

/// Describes one frame, where `bytes` begin with it, or as much of it as there is. Its first byte is at `offset` of
/// whatever it was taken from; what is wrong with it is for a [`Transcript`] to say.
#[must_use]
pub fn frame(kind: Kind, bytes: &[u8], offset: usize) -> String {
    let mut dump = Dump::new(bytes);
    dump.base = offset;
    if dump.has_more() {
        match kind {
            Kind::Request => dump.request_frame(),
            Kind::Answer => dump.answer_frame(),
            Kind::AnswerToFollow => dump.answer_to_follow_frame(),
            Kind::Stream => dump.stream_frame(),
        };
    }
    dump.out
}

/// A number that tells nothing by its size.
fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// A length field's meaning.
fn number(bytes: &[u8]) -> String {
    let number = bytes
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    grouped(number)
}

/// A number in two's complement.
fn signed(bytes: &[u8]) -> String {
    let is_negative = bytes.first().is_some_and(|&first| first & 0x80 != 0);
    if !is_negative {
        return number(bytes);
    }
    let magnitude = bytes
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(!byte));
    // The two's complement of the field's own size: all bits turned, and one more.
    format!("-{}", grouped(magnitude.saturating_add(1)))
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as quoted ASCII. A row may end in the middle of a longer character, so those are escaped too.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            0x20..=0x7E => text.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
    text
}

/// A dump in the making.
struct Dump<'a> {
    /// All bytes, or, inside of [`Dump::within`], those before its end.
    bytes: &'a [u8],
    /// Offset of the next byte to be shown; at most `bytes.len()`.
    at: usize,
    /// What the first byte's offset is called.
    base: usize,
    out: String,
    notes: String,
}

impl<'a> Dump<'a> {
    fn new(bytes: &'a [u8]) -> Dump<'a> {
        let mut notes = String::new();
        if bytes.is_empty() {
            notes.push_str("! no bytes\n");
        }
        Dump {
            bytes,
            at: 0,
            base: 0,
            out: String::new(),
            notes,
        }
    }

    fn has_more(&self) -> bool {
        self.at < self.bytes.len()
    }

    fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes, or as many as there are.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let end = self.at.saturating_add(len).min(self.bytes.len());
        let taken = &self.bytes[self.at..end];
        self.at = end;
        taken
    }

    fn row(&mut self, offset: usize, bytes: &[u8], field: &str, meaning: &str) {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.join(" ");
        let offset = self.base.saturating_add(offset);
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{offset:06x}  {hex:<23}  {field:<9}  {meaning}");
    }

    /// A field of the header.
    fn field(&mut self, name: &str, len: usize, meaning: impl FnOnce(&[u8]) -> String) {
        let offset = self.at;
        let bytes = self.take(len);
        if bytes.len() == len {
            self.row(offset, bytes, name, &meaning(bytes));
        } else if !bytes.is_empty() {
            let meaning = format!("cut: {} of {len} bytes", bytes.len());
            self.row(offset, bytes, name, &meaning);
        }
    }

    /// A field of `len` bytes that are the user's, as far as they are there.
    fn rows(&mut self, name: &str, len: usize) {
        let offset = self.at;
        let bytes = self.take(len);
        let (head, tail) = if bytes.len() > FIELD_LEN_MAX {
            (HEAD_LEN, bytes.len() - TAIL_LEN)
        } else {
            (bytes.len(), bytes.len())
        };
        let mut field = name;
        for (row, chunk) in bytes[..head].chunks(ROW_LEN).enumerate() {
            self.row(offset + row * ROW_LEN, chunk, field, &quoted(chunk));
            field = "";
        }
        if tail > head {
            let left_out = u64::try_from(tail - head).unwrap_or(u64::MAX);
            let _ = writeln!(
                self.out,
                "{:<6}  {:<23}  {:<9}  ({} bytes left out)",
                "...",
                "...",
                "",
                grouped(left_out)
            );
        }
        for (row, chunk) in bytes[tail..].chunks(ROW_LEN).enumerate() {
            self.row(offset + tail + row * ROW_LEN, chunk, "", &quoted(chunk));
        }
    }

    /// A field that is wider than a row, with its meaning in the first.
    fn wide_field(&mut self, name: &str, len: usize, meaning: impl FnOnce(&[u8]) -> String) {
        let offset = self.at;
        let bytes = self.take(len);
        let meaning = if bytes.len() == len {
            meaning(bytes)
        } else {
            format!("cut: {} of {len} bytes", bytes.len())
        };
        for (row, chunk) in bytes.chunks(ROW_LEN).enumerate() {
            let (name, meaning) = if row == 0 {
                (name, &*meaning)
            } else {
                ("", "")
            };
            self.row(offset + row * ROW_LEN, chunk, name, meaning);
        }
    }

    /// A request's header; none where it is cut.
    fn request_header(&mut self) -> Option<RequestHeader> {
        let start = self.at;
        self.request_fields();
        self.header_from(start)
    }

    /// The fields of a request's header, as far as they are there.
    fn request_fields(&mut self) {
        self.field("opcode", 1, |byte| {
            let name = Opcode::try_from(byte[0]).map(Opcode::name);
            name.unwrap_or("unknown").to_owned()
        });
        self.field("key_len", 2, number);
        self.field("value_len", 4, number);
    }

    /// The header at `start`; none, and a note, where it is cut.
    fn header_from(&mut self, start: usize) -> Option<RequestHeader> {
        let header = self.bytes[start..].first_chunk().copied();
        if header.is_none() {
            self.missing(start, request::HEADER_LEN, "at least ");
        }
        header.map(RequestHeader::decode)
    }

    /// Describes with `describe` what lies before `end`, and leaves off there, whatever was described.
    fn within(&mut self, end: usize, describe: impl FnOnce(&mut Self)) {
        let bytes = self.bytes;
        let end = end.min(bytes.len());
        self.bytes = &bytes[..end];
        describe(self);
        self.at = end;
        self.bytes = bytes;
    }

    /// Says that what is left of a list is not shown.
    fn leave_out(&mut self) {
        let left_out = u64::try_from(self.rest()).unwrap_or(u64::MAX);
        if left_out > 0 {
            let (dots, left_out) = ("...", grouped(left_out));
            // Writing to a string cannot fail.
            let _ = writeln!(
                self.out,
                "{dots:<6}  {dots:<23}  {:<9}  ({left_out} bytes left out)",
                ""
            );
        }
    }

    /// The value of a request: its operands, and what is behind them.
    fn value(&mut self, spec: &CommandSpec, value_len: usize) {
        let end = self.at.saturating_add(value_len);
        self.within(end, |dump| {
            if value_len < spec.operands_len() {
                dump.rows("value", value_len);
                return;
            }
            for field in spec.operands {
                dump.operand(field);
            }
            dump.rows(spec.rest, dump.rest());
        });
    }

    /// A field of the command table.
    fn operand(&mut self, field: &Field) {
        match field.form {
            Form::Number => self.wide_field(field.name, field.size, number),
            Form::Signed => self.wide_field(field.name, field.size, signed),
            Form::Hex => self.wide_field(field.name, field.size, hexadecimal),
            Form::Flags(bits) => self.wide_field(field.name, field.size, |flags| {
                let flags = flags.first().copied().unwrap_or_default();
                let set = bits.iter().filter(|(bit, _)| flags & bit != 0);
                let names: Vec<&str> = set.map(|&(_, name)| name).collect();
                names.join(", ")
            }),
        }
    }

    /// A length of two bytes, as far as it is there.
    fn len_field(&mut self, name: &str) -> usize {
        let start = self.at;
        self.field(name, 2, number);
        let len = self.bytes[start..].first_chunk().copied();
        len.map_or(0, |len| usize::from(u16::from_be_bytes(len)))
    }

    /// A history, as far as the bytes go.
    fn history(&mut self) {
        self.field("eras", 2, number);
        for _ in 0..ITEMS_MAX {
            if self.has_more() {
                self.field("epoch", 8, number);
                self.field("nonce", 8, hexadecimal);
                self.field("start_index", ERA_LEN - 16, number);
            }
        }
        self.leave_out();
    }

    /// The frames of a batch, as far as the bytes go.
    fn frames(&mut self) {
        for _ in 0..ITEMS_MAX {
            if !self.has_more() {
                break;
            }
            let start = self.at;
            self.request_fields();
            let Some(header) = self.bytes[start..].first_chunk() else {
                break;
            };
            let header = RequestHeader::decode(*header);
            let key_len = usize::from(header.key_len);
            self.rows("key", key_len);
            self.rows(
                "value",
                header
                    .frame_len()
                    .saturating_sub(request::HEADER_LEN + key_len),
            );
        }
        self.leave_out();
    }

    /// One request. False where it does not say where the next one starts.
    fn request_frame(&mut self) -> bool {
        let start = self.at;
        let frame = &self.bytes[start..];
        let first = frame.first().copied().unwrap_or_default();
        // A node judges the first byte of a connection so; later it knows where a frame starts.
        if self.base + start == 0
            && let Err(error) = request::reject_text(first)
        {
            self.rows("text", self.rest());
            self.note(&error.to_string());
            return false;
        }
        let Some(header) = self.request_header() else {
            return false;
        };
        self.rows("key", usize::from(header.key_len));
        let value_len = header
            .frame_len()
            .saturating_sub(request::HEADER_LEN + usize::from(header.key_len));
        match Opcode::try_from(first) {
            Ok(opcode) => self.value(opcode.spec(), value_len),
            Err(_) => self.rows("value", value_len),
        }
        match request::parse(frame, &ANY_VALUE) {
            Err(error) => self.note(&error.to_string()),
            Ok(request::Parsed::Whole(frame)) => {
                let request = frame.request();
                let judged = frame.opcode().spec().check(request.key(), request.value());
                if let Err(error) = judged {
                    self.note(&error.reason);
                }
            }
            Ok(request::Parsed::Incomplete { .. }) => {}
        }
        self.missing(start, header.frame_len(), "");
        true
    }

    /// One answer. False where it does not say where the next one starts.
    fn answer_frame(&mut self) -> bool {
        let start = self.at;
        let frame = &self.bytes[start..];
        let first = frame.first().copied().unwrap_or_default();
        if is_text(first) {
            self.rows("text", self.rest());
            if let Err(error) = response::parse(frame) {
                self.note(&error.to_string());
            }
            return false;
        }
        let status = Status::try_from(first);
        self.field("status", 1, |_| match status {
            Ok(status) => status.name().to_owned(),
            Err(_) => "unknown".to_owned(),
        });
        self.field("value_len", 4, number);
        if status.is_err() {
            self.note(&format!(
                "unknown status 0x{first:02x}; a client takes its value for a message"
            ));
        }
        let Some((header, _)) = frame.split_first_chunk() else {
            self.missing(start, response::HEADER_LEN, "at least ");
            return false;
        };
        let header = ResponseHeader::decode(*header);
        let value_len = header.frame_len().saturating_sub(response::HEADER_LEN);
        self.rows("value", value_len);
        if let Ok(status) = status
            && let Some(fault) = value_fault(status, value_len)
        {
            self.note(&fault);
        }
        self.missing(start, header.frame_len(), "");
        true
    }

    /// An OK to a FOLLOW. False where its header is cut.
    fn answer_to_follow_frame(&mut self) -> bool {
        let start = self.at;
        let frame = &self.bytes[start..];
        self.field("status", 1, |_| Status::Ok.name().to_owned());
        self.field("value_len", 4, number);
        let Some((header, rest)) = frame.split_first_chunk() else {
            self.missing(start, response::HEADER_LEN, "at least ");
            return false;
        };
        let header = ResponseHeader::decode(*header);
        let value_len = header.frame_len().saturating_sub(response::HEADER_LEN);
        let end = self.at.saturating_add(value_len);
        self.within(end, |dump| {
            dump.field("mode", 1, |mode| {
                match mode[0] {
                    0 => "resume",
                    1 => "full copy",
                    2 => "unknown data set",
                    _ => "unknown",
                }
                .to_owned()
            });
            dump.field("from_index", 8, number);
            dump.history();
        });
        match rest.get(..value_len) {
            None => self.missing(start, header.frame_len(), ""),
            Some(value) => {
                if let Err(error) = FollowAnswer::decode(value) {
                    self.note(&error.to_string());
                }
            }
        }
        true
    }

    /// Frames of the replication stream up to the end, or to one that does not say where the next one starts.
    fn stream(&mut self) {
        while self.has_more() && self.stream_frame() {}
    }

    /// One of them. False where it does not say where the next one starts.
    fn stream_frame(&mut self) -> bool {
        let start = self.at;
        let opcode = StreamOpcode::try_from(self.bytes[start]);
        self.field("opcode", 1, |_| {
            opcode.map_or("unknown", StreamOpcode::name).to_owned()
        });
        self.field("key_len", 2, number);
        self.field("value_len", 4, number);
        let Some(header) = self.header_from(start) else {
            return false;
        };
        let verdict = replication::parse(&self.bytes[start..]);
        if let Err(error) = verdict {
            self.note(&error.to_string());
        }
        let opcode = match (opcode, verdict) {
            // Nothing says what these bytes are.
            (Err(_), _) | (_, Err(ReplicationError::KeyLen { .. })) => {
                self.rows("bytes", self.rest());
                return false;
            }
            (Ok(opcode), _) => opcode,
        };
        for field in opcode.fields() {
            self.operand(field);
        }
        if let Err(ReplicationError::HeadChecksum { .. }) = verdict {
            // The value's length is not to be believed.
            self.rows("bytes", self.rest());
            return false;
        }
        let frame_len = header.frame_len();
        let value = opcode.spec().value;
        self.within(start.saturating_add(frame_len), |dump| match value {
            MessageValue::Frames => dump.frames(),
            MessageValue::History if header.value_len > 0 => dump.history(),
            MessageValue::History | MessageValue::Empty => dump.rows("value", dump.rest()),
        });
        self.missing(start, frame_len, "");
        true
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(self.notes, "! {text}");
    }

    /// Says how much of the frame at `start` is missing, if any of it is.
    fn missing(&mut self, start: usize, frame_len: usize, at_least: &str) {
        let there = self.bytes.len() - start;
        if there < frame_len {
            self.note(&format!(
                "incomplete: {there} of {at_least}{frame_len} bytes, {at_least}{} missing",
                frame_len - there
            ));
        }
    }

    fn finish(mut self) -> String {
        self.out.push_str(&self.notes);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Era, History};
    use crate::wire::replication::{BatchEncoder, Eras, Follow, Message, Start};
    use crate::wire::{Request, Response};

    const SET: &[u8] = b"\x01\x00\x07\x00\x00\x00\x06user123active";

    fn lines(lines: &[&str]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn the_golden_set_reads_as_the_document_explains_it() {
        let expected = lines(&[
            "000000  01                       opcode     SET",
            "000001  00 07                    key_len    7",
            "000003  00 00 00 06              value_len  6",
            "000007  75 73 65 72 31 32 33     key        \"user123\"",
            "00000e  61 63 74 69 76 65        value      \"active\"",
        ]);
        assert_eq!(request(SET), expected);
        assert_eq!(HEADING.find("meaning"), expected.find("SET"));
    }

    #[test]
    fn answers_have_a_status_and_a_value() {
        assert_eq!(
            response(b"\x00\x00\x00\x00\x04PONG"),
            lines(&[
                "000000  00                       status     OK",
                "000001  00 00 00 04              value_len  4",
                "000005  50 4f 4e 47              value      \"PONG\"",
            ])
        );
    }

    #[test]
    fn bytes_that_are_not_plain_text_are_escaped() {
        assert_eq!(
            response(b"\x00\x00\x00\x00\x09\"\\\n\r\t\x00\xc3\xa4~"),
            lines(&[
                "000000  00                       status     OK",
                "000001  00 00 00 09              value_len  9",
                r#"000005  22 5c 0a 0d 09 00 c3 a4  value      "\"\\\n\r\t\x00\xc3\xa4""#,
                "00000d  7e                                  \"~\"",
            ])
        );
    }

    #[test]
    fn a_long_field_is_cut_in_the_middle_and_no_byte_goes_uncounted() {
        let mut frame = Vec::new();
        let value: Vec<u8> = (b'a'..=b'z').cycle().take(2_000).collect();
        assert!(
            Request::Set {
                key: b"k",
                value: &value
            }
            .encode(&mut frame)
            .is_ok()
        );
        assert_eq!(
            request(&frame),
            lines(&[
                "000000  01                       opcode     SET",
                "000001  00 01                    key_len    1",
                "000003  00 00 07 d0              value_len  2,000",
                "000007  6b                       key        \"k\"",
                "000008  61 62 63 64 65 66 67 68  value      \"abcdefgh\"",
                "000010  69 6a 6b 6c 6d 6e 6f 70             \"ijklmnop\"",
                "000018  71 72 73 74 75 76 77 78             \"qrstuvwx\"",
                "000020  79 7a 61 62 63 64 65 66             \"yzabcdef\"",
                "...     ...                                 (1,952 bytes left out)",
                "0007c8  69 6a 6b 6c 6d 6e 6f 70             \"ijklmnop\"",
                "0007d0  71 72 73 74 75 76 77 78             \"qrstuvwx\"",
            ])
        );
    }

    #[test]
    fn a_field_of_the_longest_length_is_shown_whole() {
        let mut frame = Vec::new();
        let response_frame = Response {
            status: 0,
            value: &[b'v'; FIELD_LEN_MAX],
        };
        assert!(response_frame.encode(&mut frame).is_ok());
        assert!(!response(&frame).contains("..."));
        assert_eq!(response(&frame).lines().count(), 2 + 8);
    }

    #[test]
    fn a_cut_frame_says_what_is_missing() {
        assert_eq!(request(b""), "! no bytes\n");
        assert_eq!(
            request(&SET[..2]),
            lines(&[
                "000000  01                       opcode     SET",
                "000001  00                       key_len    cut: 1 of 2 bytes",
                "! incomplete: 2 of at least 7 bytes, at least 5 missing",
            ])
        );
        assert_eq!(
            request(&SET[..9]),
            lines(&[
                "000000  01                       opcode     SET",
                "000001  00 07                    key_len    7",
                "000003  00 00 00 06              value_len  6",
                "000007  75 73                    key        \"us\"",
                "! incomplete: 9 of 20 bytes, 11 missing",
            ])
        );
        assert_eq!(
            response(b"\x00\xff\xff\xff\xffx"),
            lines(&[
                "000000  00                       status     OK",
                "000001  ff ff ff ff              value_len  4,294,967,295",
                "000005  78                       value      \"x\"",
                "! incomplete: 6 of 4294967300 bytes, 4294967294 missing",
            ])
        );
    }

    #[test]
    fn what_is_wrong_is_said_at_the_end() {
        assert_eq!(
            request(b"GET k\r\n"),
            lines(&[
                "000000  47 45 54 20 6b 0d 0a     text       \"GET k\\r\\n\"",
                "! the first byte is 'G', which is text; this port speaks GBP, a binary protocol",
            ])
        );
        assert_eq!(
            request(b"\x7f\x00\x00\x00\x00\x00\x00"),
            lines(&[
                "000000  7f                       opcode     unknown",
                "000001  00 00                    key_len    0",
                "000003  00 00 00 00              value_len  0",
                "! unknown opcode 0x7f",
            ])
        );
        assert_eq!(
            request(b"\x04\x00\x01\x00\x00\x00\x00k"),
            lines(&[
                "000000  04                       opcode     PING",
                "000001  00 01                    key_len    1",
                "000003  00 00 00 00              value_len  0",
                "000007  6b                       key        \"k\"",
                "! key of 1 bytes, limit 0: PING has no key",
            ])
        );
        assert_eq!(
            response(b"\x99\x00\x00\x00\x02no"),
            lines(&[
                "000000  99                       status     unknown",
                "000001  00 00 00 02              value_len  2",
                "000005  6e 6f                    value      \"no\"",
                "! unknown status 0x99; a client takes its value for a message",
            ])
        );
        assert_eq!(
            response(b"HTTP"),
            lines(&[
                "000000  48 54 54 50              text       \"HTTP\"",
                "! the answer begins with 'H', which is text and not GBP",
            ])
        );
        assert!(response(b"\x03\x00\x00\x00\x01x").ends_with("NOT_FOUND has no value\n"));
    }

    fn era(epoch: u64, start_index: u64) -> Era {
        Era {
            epoch,
            nonce: 0xABC,
            start_index,
        }
    }

    #[test]
    fn a_follow_and_the_stream_behind_it_are_shown_field_by_field() {
        let follow = Follow {
            name: b"n2",
            is_observer: true,
            wants_full_copy: true,
            is_to_lead: false,
            epoch: 1,
            nonce: 0xABC,
            last_index: 1_000,
            cluster_id: b"demo",
        };
        let mut bytes = Vec::new();
        assert_eq!(follow.encode(&mut bytes), Ok(()));
        let message = Message::Ack {
            epoch: 1,
            applied_index: 1_000,
        };
        assert_eq!(message.encode(&mut bytes), Ok(()));
        let follow = [
            "000000  60                       opcode     FOLLOW",
            "000001  00 02                    key_len    2",
            "000003  00 00 00 1e              value_len  30",
            "000007  6e 32                    key        \"n2\"",
            "000009  01                       version    1",
            "00000a  03                       flags      observer, full copy",
            "00000b  00 00 00 00 00 00 00 01  epoch      1",
            "000013  00 00 00 00 00 00 0a bc  nonce      0x0000000000000abc",
            "00001b  00 00 00 00 00 00 03 e8  last_index  1,000",
            "000023  64 65 6d 6f              cluster_id  \"demo\"",
        ];
        let ack = [
            "000027  66                       opcode     ACK",
            "000028  00 18                    key_len    24",
            "00002a  00 00 00 00              value_len  0",
            "00002e  00 00 00 00 00 00 00 01  epoch      1",
            "000036  00 00 00 00 00 00 03 e8  applied_index  1,000",
            "00003e  00 00 00 00              value_crc  0x00000000",
            "000042  16 20 b4 ba              head_crc   0x1620b4ba",
        ];
        assert_eq!(request(&bytes), lines(&[&follow[..], &ack].concat()));
        bytes[9] = 2;
        assert!(
            request(&bytes[..0x27])
                .ends_with("! version 2 of the replication stream, this node speaks 1\n")
        );
        // Without a FOLLOW before it, it is what it looks like.
        assert!(request(b"foo").contains("the first byte is 'f'"));
    }

    #[test]
    fn an_answer_to_follow_and_the_stream_behind_it_are_shown_field_by_field() {
        let Ok(history) = History::new(vec![era(1, 1)]) else {
            unreachable!("a history")
        };
        let Some(eras) = Eras::of(&history) else {
            unreachable!("it has an era")
        };
        let (mut value, mut bytes) = (Vec::new(), Vec::new());
        let answer = FollowAnswer {
            start: Start::Resume { from_index: 8 },
            history: eras,
        };
        answer.encode(&mut value);
        let answer = Response {
            status: 0,
            value: &value,
        };
        assert_eq!(answer.encode(&mut bytes), Ok(()));
        let mut batch = BatchEncoder::entries(&mut bytes, 1, 8);
        assert!(batch.push(SET));
        assert_eq!(batch.finish(), 1);
        let answer = [
            "000000  00                       status     OK",
            "000001  00 00 00 23              value_len  35",
            "000005  00                       mode       resume",
            "000006  00 00 00 00 00 00 00 08  from_index  8",
            "00000e  00 01                    eras       1",
            "000010  00 00 00 00 00 00 00 01  epoch      1",
            "000018  00 00 00 00 00 00 0a bc  nonce      0x0000000000000abc",
            "000020  00 00 00 00 00 00 00 01  start_index  1",
        ];
        let entries = [
            "000028  61                       opcode     ENTRIES",
            "000029  00 1c                    key_len    28",
            "00002b  00 00 00 14              value_len  20",
            "00002f  00 00 00 00 00 00 00 01  epoch      1",
            "000037  00 00 00 00 00 00 00 08  first_index  8",
            "00003f  00 00 00 01              count      1",
            "000043  36 3c 72 1e              value_crc  0x363c721e",
            "000047  5b a7 d0 36              head_crc   0x5ba7d036",
            "00004b  01                       opcode     SET",
            "00004c  00 07                    key_len    7",
            "00004e  00 00 00 06              value_len  6",
            "000052  75 73 65 72 31 32 33     key        \"user123\"",
            "000059  61 63 74 69 76 65        value      \"active\"",
        ];
        let dump = answer_to_follow(&bytes);
        assert_eq!(dump, lines(&[&answer[..], &entries].concat()));

        // Cut in the batch: what is there is shown, and what is missing is counted.
        let dump = stream(&bytes[0x28..0x5b]);
        assert!(
            dump.ends_with("! incomplete: 51 of 55 bytes, 4 missing\n"),
            "{dump}"
        );
        // A refusal is like any other answer.
        assert_eq!(
            answer_to_follow(b"\x02\0\0\0\x01x"),
            response(b"\x02\0\0\0\x01x")
        );
        bytes[5] = 9;
        let dump = answer_to_follow(&bytes);
        assert!(
            dump.ends_with("! mode 9, must be 0 (resume), 1 (full copy) or 2 (unknown data set)\n"),
            "{dump}"
        );
    }

    #[test]
    fn a_list_and_its_answer_are_shown_field_by_field() {
        let bytes = b"\x43\0\x01\0\0\0\x0ek\0\0\0\0\0\0\x0a\xbc\0\0\0\x07\x01\x80";
        let expected = [
            "000000  43                       opcode     LIST",
            "000001  00 01                    key_len    1",
            "000003  00 00 00 0e              value_len  14",
            "000007  6b                       key        \"k\"",
            "000008  00 00 00 00 00 00 0a bc  run        0x0000000000000abc",
            "000010  00 00 00 07              partition  7",
            "000014  01                       bits       1",
            "000015  80                       buckets    \"\\x80\"",
        ];
        assert_eq!(request(bytes), lines(&expected));
        let dump = request(b"\x42\0\0\0\0\0\x0d\0\0\0\0\0\0\0\0\0\0\0\0\x0d");
        assert!(dump.ends_with("! bits 13, limit 12\n"), "{dump}");

        let mut bytes = b"\0\0\0\0\x29".to_vec();
        bytes.extend_from_slice(b"\0\0\0\0\0\0\x0a\xbc\0\0\x01\0\0\0\x01\0\0\0");
        bytes.extend_from_slice(b"\0\x01\0\0\0\x06");
        bytes.extend_from_slice(&(7_u128 << 64).to_be_bytes());
        bytes.push(b'k');
        let expected = [
            "000000  00                       status     OK",
            "000001  00 00 00 29              value_len  41",
            "000005  00 00 00 00 00 00 0a bc  run        0x0000000000000abc",
            "00000d  00 00 01 00              partitions  256",
            "000011  00 00 01 00              partition  256",
            "000015  00 00                    from_len   0",
            "000017  00 01                    key_len    1",
            "000019  00 00 00 06              value_len  6",
            "00001d  00 00 00 00 00 00 00 07  hash       0x00000000000000070000000000000000",
            "000025  00 00 00 00 00 00 00 00             ",
            "00002d  6b                       key        \"k\"",
        ];
        assert_eq!(answer_to_list(&bytes), lines(&expected));
        let dump = answer_to_sums(&bytes);
        assert!(
            dump.contains("000017  00 01 00 00 00 06 00 00  sum        0x000100000006"),
            "{dump}"
        );
        let cut = answer_to_list(&bytes[..40]);
        assert!(
            cut.ends_with("! incomplete: 40 of 46 bytes, 6 missing\n"),
            "{cut}"
        );
        // A refusal is like any other answer.
        let refusal = b"\x01\0\0\0\x01x";
        assert_eq!(answer_to_sums(refusal), response(refusal));
    }

    #[test]
    fn a_damaged_frame_of_the_stream_is_shown_as_far_as_it_can_be_believed() {
        let mut bytes = Vec::new();
        let message = Message::Heartbeat {
            epoch: 1,
            last_index: 2,
            digest_index: 2,
            digest: 7 << 64,
        };
        assert_eq!(message.encode(&mut bytes), Ok(()));
        let dump = stream(&bytes);
        assert!(
            dump.contains(
                "\
00001f  00 00 00 00 00 00 00 07  digest     0x00000000000000070000000000000000
000027  00 00 00 00 00 00 00 00             \n"
            ),
            "{dump}"
        );
        bytes[3] = 0x80;
        bytes.extend_from_slice(b"next");
        let dump = stream(&bytes);
        assert!(dump.contains("bytes      \"next\"\n! damaged head of HEARTBEAT"));
        let dump = stream(b"\x67\0\0\0\0\0\0rest");
        assert!(dump.contains("bytes      \"rest\"\n! unknown opcode 0x67"));
    }

    #[test]
    fn a_long_batch_is_cut_and_no_byte_goes_uncounted() {
        let mut bytes = Vec::new();
        let mut batch = BatchEncoder::chunk(&mut bytes, 1, 0);
        for _ in 0..100 {
            assert!(batch.push(SET));
        }
        assert_eq!(batch.finish(), 100);
        let dump = stream(&bytes);
        assert_eq!(dump.lines().count(), 8 + 16 * 5 + 1);
        assert!(dump.ends_with("(1,680 bytes left out)\n"), "{dump}");
    }

    #[test]
    fn frames_one_after_another_go_on_counting() {
        let dump = request(&[b"\x04\x00\x00\x00\x00\x00\x00".as_slice(), SET].concat());
        assert_eq!(
            dump.lines().nth(3),
            Some("000007  01                       opcode     SET")
        );
    }

    #[test]
    fn every_line_fits_78_columns_and_nothing_panics_on_any_bytes() {
        let mut seed = 1_u32;
        for len in 0..400 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Half of all bytes are zero, so that lengths are often small.
                    if seed & 0x8000 == 0 {
                        0
                    } else {
                        seed.to_be_bytes()[0]
                    }
                })
                .collect();
            let following = [b"\x60\0\0\0\0\0\0", &bytes[..]].concat();
            let dumps = [
                request(&bytes),
                response(&bytes),
                request(&following),
                answer_to_follow(&bytes),
                answer_to_sums(&[b"\0", &bytes[..]].concat()),
                answer_to_list(&[b"\0", &bytes[..]].concat()),
                request(&[b"\x43", &bytes[..]].concat()),
                stream(&[&[0x61 + bytes.len().to_le_bytes()[0] % 6], &bytes[..]].concat()),
                sent(&bytes),
                received(&bytes),
                frame(Kind::AnswerToFollow, &bytes, 0xFF_0000),
            ];
            for dump in dumps {
                for line in dump.lines().filter(|line| !line.starts_with('!')) {
                    assert!(line.chars().count() <= 78, "{line}");
                }
            }
        }
    }
}
