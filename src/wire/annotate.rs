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
//! still fit a terminal of 80: six of offset, eight bytes, nine of field, and eight bytes escaped.

use std::fmt::Write;

use super::{
    is_text,
    request::{self, Limits, Opcode, RequestHeader},
    response::{self, ResponseHeader, Status},
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

/// Describes what a client sent.
#[must_use]
pub fn request(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes);
    while dump.has_more() {
        let start = dump.at;
        let first = bytes[start];
        // A node judges the first byte of a connection so; later it knows where a frame starts.
        if start == 0
            && let Err(error) = request::reject_text(first)
        {
            dump.rows("text", dump.rest());
            dump.note(&error.to_string());
            break;
        }
        dump.field("opcode", 1, |byte| match Opcode::try_from(byte[0]) {
            Ok(opcode) => opcode.name().to_owned(),
            Err(_) => "unknown".to_owned(),
        });
        dump.field("key_len", 2, number);
        dump.field("value_len", 4, number);
        let Some((header, _)) = bytes[start..].split_first_chunk() else {
            dump.missing(start, request::HEADER_LEN, "at least ");
            break;
        };
        let header = RequestHeader::decode(*header);
        dump.rows("key", usize::from(header.key_len));
        let value_len = header
            .frame_len()
            .saturating_sub(request::HEADER_LEN + usize::from(header.key_len));
        dump.rows("value", value_len);
        let limits = Limits {
            value_len_max: u32::MAX,
        };
        if let Err(error) = request::parse(&bytes[start..], &limits) {
            dump.note(&error.to_string());
        }
        dump.missing(start, header.frame_len(), "");
    }
    dump.finish()
}

/// Describes what a node answered.
#[must_use]
pub fn response(bytes: &[u8]) -> String {
    let mut dump = Dump::new(bytes);
    while dump.has_more() {
        let start = dump.at;
        let first = bytes[start];
        if is_text(first) {
            dump.rows("text", dump.rest());
            if let Err(error) = response::parse(&bytes[start..]) {
                dump.note(&error.to_string());
            }
            break;
        }
        let status = Status::try_from(first);
        dump.field("status", 1, |_| match status {
            Ok(status) => status.name().to_owned(),
            Err(_) => "unknown".to_owned(),
        });
        dump.field("value_len", 4, number);
        if status.is_err() {
            dump.note(&format!(
                "unknown status 0x{first:02x}; a client takes its value for a message"
            ));
        }
        let Some((header, _)) = bytes[start..].split_first_chunk() else {
            dump.missing(start, response::HEADER_LEN, "at least ");
            break;
        };
        let header = ResponseHeader::decode(*header);
        let value_len = header.frame_len().saturating_sub(response::HEADER_LEN);
        dump.rows("value", value_len);
        if status == Ok(Status::NotFound) && value_len > 0 {
            dump.note(&format!(
                "value of {value_len} bytes, limit 0: NOT_FOUND has no value"
            ));
        }
        dump.missing(start, header.frame_len(), "");
    }
    dump.finish()
}

/// A length field's meaning.
fn number(bytes: &[u8]) -> String {
    let number = bytes
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    grouped(number)
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
    bytes: &'a [u8],
    /// Offset of the next byte to be shown; at most `bytes.len()`.
    at: usize,
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
            for dump in [request(&bytes), response(&bytes)] {
                for line in dump.lines().filter(|line| !line.starts_with('!')) {
                    assert!(line.chars().count() <= 78, "{line}");
                }
            }
        }
    }
}
