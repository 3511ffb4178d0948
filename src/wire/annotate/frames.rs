//! Frames, field by field.

use super::dump::Dump;
use super::text::{hexadecimal, number};
use crate::wire::conditional::Found;
use crate::wire::replication::{
    self, EPOCH_LEN, FollowAnswer, Head, MessageValue, ParsedHead, ReplicationError, StreamOpcode,
    sent_value_len,
};
use crate::wire::request::{self, ANY_VALUE, RequestHeader};
use crate::wire::response::{self, ResponseHeader};
use crate::wire::scan::{ScanAnswer, WANT_VALUES};
use crate::wire::transcript::value_fault;
use crate::wire::{CommandSpec, Field, Form, Opcode, Status, is_text};

/// Client frames of a batch, epochs of a history, and items of a list that are shown. The rest is counted.
const ITEMS_MAX: usize = 16;

impl Dump<'_> {
    /// A request. False where it does not say where the next one starts.
    pub(super) fn request_frame(&mut self) -> bool {
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
        self.request_fields();
        let Some(header) = self.header_from(start) else {
            return false;
        };
        self.key_and_value(header, sent_value_len(header, true));
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

    /// The fields of a request's header, as far as they are there.
    fn request_fields(&mut self) {
        self.field("opcode", 1, |byte| {
            let name = Opcode::try_from(byte[0]).map(Opcode::name);
            name.unwrap_or("unknown").to_owned()
        });
        self.field("key_len", 2, number);
        self.field("value_len", 4, number);
    }

    /// The header at `start`; `None`, and a note, where it is cut.
    fn header_from(&mut self, start: usize) -> Option<RequestHeader> {
        let header = self.bytes[start..].first_chunk().copied();
        if header.is_none() {
            self.missing(start, request::HEADER_LEN, "at least ");
        }
        header.map(RequestHeader::decode)
    }

    /// Key and value of a request with this header, as far as they are there. The value has `value_len` bytes.
    fn key_and_value(&mut self, header: RequestHeader, value_len: usize) {
        self.rows("key", usize::from(header.key_len));
        match Opcode::try_from(header.opcode) {
            Ok(opcode) => self.value(opcode.spec(), value_len),
            Err(_) => self.rows("value", value_len),
        }
    }

    /// The value of a request: operands, and the rest.
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
            if let Some((name, len)) = counted(spec, &dump.bytes[..dump.at]) {
                dump.rows(name, len);
            }
            if spec.opcode == Opcode::Sync && dump.has_more() {
                dump.token();
            }
            // A batch in a batch is refused, so nobody asks what is in it.
            if spec.opcode == Opcode::Batch && !dump.is_nested {
                dump.is_nested = true;
                dump.frames(true);
                dump.is_nested = false;
                return;
            }
            dump.rows(spec.rest, dump.rest());
        });
    }

    /// The fields of a token.
    fn token(&mut self) {
        self.field("epoch", 8, number);
        self.field("index", 8, number);
        self.field("nonce", 8, hexadecimal);
    }

    /// A response. False where it does not say where the next one starts.
    pub(super) fn response_frame(&mut self) -> bool {
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
        self.response_fields();
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

    /// The fields of a response's header, as far as they are there.
    fn response_fields(&mut self) {
        self.field("status", 1, |byte| {
            let name = Status::try_from(byte[0]).map(Status::name);
            name.unwrap_or("unknown").to_owned()
        });
        self.field("value_len", 4, number);
    }

    /// An OK to a FOLLOW. False where its header is cut.
    pub(super) fn follow_response_frame(&mut self) -> bool {
        let start = self.at;
        let frame = &self.bytes[start..];
        self.response_fields();
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
                    1 => "snapshot",
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

    /// An OK to a SUMS.
    pub(super) fn sums_response(&mut self) {
        self.comparison_response(|dump| {
            for _ in 0..ITEMS_MAX {
                if dump.has_more() {
                    dump.field("sum", 16, hexadecimal);
                }
            }
        });
    }

    /// An OK to a LIST.
    pub(super) fn list_response(&mut self) {
        self.comparison_response(|dump| {
            for _ in 0..ITEMS_MAX {
                if dump.has_more() {
                    let key_len = dump.len_field("key_len");
                    dump.field("value_len", 4, number);
                    dump.field("hash", 16, hexadecimal);
                    dump.rows("key", key_len);
                }
            }
        });
    }

    /// An OK to a PUT or TAKE. Only the request says whether a token comes before the value.
    pub(super) fn found_response(&mut self) {
        self.value_of_response(|dump| {
            if dump.has_more() {
                dump.operand(&Field::flags("flags", &[(Found::EXISTED, "existed")]));
            }
            dump.rows("rest", dump.rest());
        });
    }

    /// An OK to a TTL.
    pub(super) fn ttl_response(&mut self) {
        self.value_of_response(|dump| {
            if dump.has_more() {
                dump.field("ms", 8, number);
            }
            dump.rows("rest", dump.rest());
        });
    }

    /// An OK to a BATCH: the responses to its requests.
    pub(super) fn batch_response(&mut self) {
        self.value_of_response(|dump| {
            for _ in 0..ITEMS_MAX {
                if !dump.has_more() || !dump.response_frame() {
                    break;
                }
            }
            dump.leave_out();
        });
    }

    /// A CONFLICT to a BATCH: the number of a request, from 0, and the response to it.
    pub(super) fn batch_conflict(&mut self) {
        self.value_of_response(|dump| {
            dump.field("position", 1, number);
            if dump.has_more() {
                dump.response_frame();
            }
            dump.leave_out();
        });
    }

    /// An OK whose value is a token.
    pub(super) fn token_response(&mut self) {
        self.value_of_response(|dump| {
            dump.token();
            dump.leave_out();
        });
    }

    /// An OK to a SCAN.
    pub(super) fn scan_response(&mut self) {
        let start = self.at;
        self.comparison_response(|dump| {
            let mut has_frames = false;
            dump.field("want", 1, |want| {
                has_frames = want[0] == WANT_VALUES;
                if has_frames { "values" } else { "keys" }.to_owned()
            });
            if has_frames {
                dump.some_frames(true);
                return;
            }
            for _ in 0..ITEMS_MAX {
                if dump.has_more() {
                    let key_len = dump.len_field("key_len");
                    dump.rows("key", key_len);
                }
            }
        });
        if let Ok(response::Parsed::Whole(response)) = response::parse(&self.bytes[start..])
            && let Err(error) = ScanAnswer::decode(response.value)
        {
            self.note(&error.to_string());
        }
    }

    /// An OK to a SUMS, LIST or SCAN, with `rest` for what follows the fields that both have.
    fn comparison_response(&mut self, rest: impl FnOnce(&mut Self)) {
        self.value_of_response(|dump| {
            dump.field("incarnation", 8, hexadecimal);
            dump.field("partitions", 4, number);
            dump.field("partition", 4, number);
            let from_len = dump.len_field("from_len");
            dump.rows("from", from_len);
            rest(dump);
            dump.leave_out();
        });
    }

    /// A response whose value is shown by `describe`.
    fn value_of_response(&mut self, describe: impl FnOnce(&mut Self)) {
        let start = self.at;
        let header = self.bytes[start..].first_chunk().copied();
        self.response_fields();
        let Some(header) = header else {
            self.missing(start, response::HEADER_LEN, "at least ");
            return;
        };
        let frame_len = ResponseHeader::decode(header).frame_len();
        self.within(start.saturating_add(frame_len), describe);
        self.missing(start, frame_len, "");
    }

    /// Frames of the replication stream up to the end, or to one that does not say where the next one starts.
    pub(super) fn stream(&mut self) {
        while self.has_more() && self.stream_frame() {}
    }

    /// A frame of the replication stream. False where it does not say where the next one starts.
    pub(super) fn stream_frame(&mut self) -> bool {
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
            // The value's length may be wrong too.
            self.rows("bytes", self.rest());
            return false;
        }
        let (value, frame_len) = (opcode.spec().value, header.frame_len());
        let has_values = match Head::parse(&self.bytes[start..]) {
            Ok(ParsedHead::Whole(head)) => head.fields().has_values(),
            Ok(ParsedHead::Incomplete { .. }) | Err(_) => true,
        };
        self.within(start.saturating_add(frame_len), |dump| match value {
            MessageValue::Frames => dump.frames(true),
            MessageValue::Changes => dump.frames(has_values),
            MessageValue::History if header.value_len > 0 => dump.history(),
            MessageValue::History | MessageValue::Empty => dump.rows("value", dump.rest()),
        });
        self.missing(start, frame_len, "");
        true
    }

    /// A history, as far as the bytes go.
    fn history(&mut self) {
        self.field("epochs", 2, number);
        for _ in 0..ITEMS_MAX {
            if self.has_more() {
                self.field("epoch", 8, number);
                self.field("nonce", 8, hexadecimal);
                self.field("start_index", EPOCH_LEN - 16, number);
            }
        }
        self.leave_out();
    }

    /// The client frames of a batch, as far as the bytes go; without what is behind their operands, unless
    /// `has_values`.
    fn frames(&mut self, has_values: bool) {
        self.some_frames(has_values);
        self.leave_out();
    }

    /// The first of some client frames.
    fn some_frames(&mut self, has_values: bool) {
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
            self.key_and_value(header, sent_value_len(header, has_values));
        }
    }
}

/// Name and length of the field behind the operands whose length the last of them states; `bytes` end with that.
fn counted(spec: &CommandSpec, bytes: &[u8]) -> Option<(&'static str, usize)> {
    let last = spec.operands.last()?;
    let Form::Length(name) = last.form else {
        return None;
    };
    let len = bytes.get(bytes.len().checked_sub(last.size)?..)?;
    let len = len
        .iter()
        .fold(0, |len, &byte| len << 8 | usize::from(byte));
    Some((name, len))
}
