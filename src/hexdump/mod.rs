//! Reads bytes from text: hex dumps, captures and `printf` strings.
//!
//! [`read`] recognises the form. In this order, an input is
//!
//! 1. raw bytes, where it holds a byte that no text holds: a control byte other than tab, line feed and carriage
//!    return, or one that is not UTF-8. Every whole GBP frame holds one, at least a zero.
//! 2. packets ([`Form::Packets`]), where a line begins with an offset such as `0x0010:`, as `tcpdump -x` and `-X` write
//!    it. Their payload is put together for each connection and direction.
//! 3. lines of `xxd` or of `hexdump -C`, where the first line that is not empty begins with an offset as those write
//!    it. Offsets are checked, so that a line lost in pasting is noticed.
//! 4. a [`printf`] string, where there is a backslash, or the first word is `printf`.
//! 5. else hexadecimal digits, with or without spaces, commas, colons and `0x` between bytes; `#` begins a comment.
//!
//! ```
//! use gopherstore::hexdump;
//!
//! for text in [
//!     "0400 0000 0000 00",
//!     "00000000: 0400 0000 0000 00  .......",
//!     r"printf '\4\0\0\0\0\0\0' | nc -N ::1 8000",
//! ] {
//!     assert_eq!(hexdump::read(text.as_bytes())?.flows[0].bytes[..], [4, 0, 0, 0, 0, 0, 0]);
//! }
//! let error = hexdump::read(b"04 0g").err().map(|error| error.to_string());
//! assert_eq!(error.as_deref(), Some("line 1, column 5: 'g' is no hexadecimal digit"));
//! # Ok::<(), hexdump::TextError>(())
//! ```

mod packets;
pub mod printf;

use std::{borrow::Cow, fmt};

/// The form of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The bytes themselves.
    Raw,
    /// Hexadecimal digits.
    Digits,
    /// Lines of `xxd`.
    Xxd,
    /// Lines of `hexdump -C`.
    Canonical,
    /// Lines of `tcpdump -x`, `-X`, `-xx` or `-XX`.
    Packets,
    /// A string for `printf`, or commands that hold one.
    Printf,
}

/// The bytes that an input holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents<'a> {
    /// Its form.
    pub form: Form,
    /// Its bytes: one flow, or of packets one for each direction of each connection that carried any, in the order in
    /// which they began.
    pub flows: Vec<Flow<'a>>,
}

/// Bytes one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// Source and target, if known: `127.0.0.1:40000 > 127.0.0.1:8000`.
    pub name: Option<String>,
    /// All bytes up to the first that is missing.
    pub bytes: Cow<'a, [u8]>,
    /// Number of bytes behind them that the packets had on the wire, but the capture lacks.
    pub missing: u64,
}

/// A text that is none of the forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Line of the text, from 1.
    pub line: usize,
    /// Byte in that line, from 1; 0 for the whole line.
    pub column: usize,
    /// The fault there.
    pub what: String,
}

impl TextError {
    fn new(line: usize, column: usize, what: impl Into<String>) -> TextError {
        TextError {
            line,
            column,
            what: what.into(),
        }
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if self.column > 0 {
            write!(f, ", column {}", self.column)?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for TextError {}

/// Most bytes that a `*` of a dump may mean. Without a limit a few bytes of text could mean any number.
pub const REPEATED_MAX: usize = 256 << 20;

/// Reads an input of any form.
///
/// # Errors
///
/// When it is text, and a part of it has another form.
pub fn read(input: &[u8]) -> Result<Contents<'_>, TextError> {
    let Some(text) = as_text(input) else {
        return Ok(Contents {
            form: Form::Raw,
            flows: vec![flow(Cow::Borrowed(input))],
        });
    };
    let form = recognise(text);
    let flows = match form {
        Form::Raw | Form::Digits => vec![flow(Cow::Owned(digits(text)?))],
        Form::Printf => vec![flow(Cow::Owned(printf::read(text)?))],
        Form::Xxd | Form::Canonical => vec![flow(Cow::Owned(dump(text, form)?))],
        Form::Packets => packets::flows(&packet_lines(text)?)?,
    };
    Ok(Contents { form, flows })
}

/// Whether an input is raw bytes, which [`read`] returns unchanged.
#[must_use]
pub fn is_raw(input: &[u8]) -> bool {
    as_text(input).is_none()
}

fn flow(bytes: Cow<'_, [u8]>) -> Flow<'_> {
    Flow {
        name: None,
        bytes,
        missing: 0,
    }
}

/// The input without a byte order mark, if it is text.
fn as_text(input: &[u8]) -> Option<&str> {
    let is_control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r');
    if input.iter().any(is_control) {
        return None;
    }
    let text = str::from_utf8(input).ok()?;
    Some(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn recognise(text: &str) -> Form {
    let first = text.lines().find(|line| !line.trim().is_empty());
    let first = first.unwrap_or_default();
    if text.lines().any(|line| packet_offset(line).is_some()) {
        Form::Packets
    } else if offset(first, Form::Xxd).is_some() {
        Form::Xxd
    } else if first.contains('|') && offset(first, Form::Canonical).is_some() {
        Form::Canonical
    } else if text.contains('\\') || printf::is_command(text) {
        Form::Printf
    } else {
        Form::Digits
    }
}

/// The number at the start of a line of a dump, and the start of the rest.
fn offset(line: &str, form: Form) -> Option<(u64, usize)> {
    let indent = line.len() - line.trim_start().len();
    let text = &line[indent..];
    let len = text
        .bytes()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    // Fewer digits than the program writes, or 17 and more, are no offset.
    let (least, colon) = match form {
        Form::Canonical => (7, ""),
        Form::Raw | Form::Digits | Form::Xxd | Form::Packets | Form::Printf => (4, ":"),
    };
    let rest = text[len..].strip_prefix(colon)?;
    let is_offset = (least..=16).contains(&len)
        && rest
            .bytes()
            .next()
            .is_none_or(|byte| byte.is_ascii_whitespace());
    let number = u64::from_str_radix(&text[..len], 16).ok()?;
    is_offset.then_some((number, line.len() - rest.len()))
}

/// The same for a line of `tcpdump -x`.
fn packet_offset(line: &str) -> Option<(u64, usize)> {
    let text = line.trim_start().strip_prefix("0x")?;
    let (number, at) = offset(text, Form::Xxd)?;
    Some((number, line.len() - text.len() + at))
}

/// Appends the bytes of the groups of digits from `line[at..]` on: up to two spaces, where the dump shows them as text
/// again, or for `hexdump -C` up to a bar.
fn groups(
    line: &str,
    at: usize,
    form: Form,
    number: usize,
    out: &mut Vec<u8>,
) -> Result<(), TextError> {
    let mut line = line;
    let mut at = at;
    if form == Form::Canonical {
        line = line.split('|').next().unwrap_or_default();
    }
    loop {
        let rest = &line[at..];
        at += rest.len() - rest.trim_start().len();
        let rest = &line.as_bytes()[at..];
        let end = rest
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(rest.len());
        pairs(&rest[..end], number, at, out)?;
        at += end;
        let gap = &rest[end..];
        if gap.is_empty() || (form != Form::Canonical && gap.starts_with(b"  ")) {
            return Ok(());
        }
    }
}

/// Appends the bytes of `digits`, which are at `at` of the line with this number and must be digits.
fn pairs(digits: &[u8], line: usize, at: usize, out: &mut Vec<u8>) -> Result<(), TextError> {
    let mut high = None;
    for (index, &byte) in digits.iter().enumerate() {
        let Some(digit) = digit(byte) else {
            // The whole character, where the byte is the first of several.
            let rest = String::from_utf8_lossy(&digits[index..]);
            let char = rest.chars().next().unwrap_or_default();
            return Err(TextError::new(
                line,
                at + index + 1,
                format!("{char:?} is no hexadecimal digit"),
            ));
        };
        match high.take() {
            None => high = Some(digit),
            Some(high) => out.push(high << 4 | digit),
        }
    }
    match high {
        None => Ok(()),
        Some(_) => Err(TextError::new(
            line,
            at + digits.len(),
            "half a byte: two hexadecimal digits belong to each",
        )),
    }
}

/// The value of a hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Reads bare digits.
fn digits(text: &str) -> Result<Vec<u8>, TextError> {
    let mut out = Vec::with_capacity(text.len() / 2);
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split('#').next().unwrap_or_default();
        let mut at = 0;
        for token in code.split_inclusive([' ', '\t', '\r', ',', ':']) {
            let word = token.trim_end_matches([' ', '\t', '\r', ',', ':']);
            match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
                // A byte of a list, as in C.
                Some(one) if one.len() == 1 => match digit(one.as_bytes()[0]) {
                    Some(digit) => out.push(digit),
                    None => pairs(one.as_bytes(), number, at + 2, &mut out)?,
                },
                Some("") => {
                    let what = "digits belong behind 0x";
                    return Err(TextError::new(number, at + 2, what));
                }
                Some(digits) => pairs(digits.as_bytes(), number, at + 2, &mut out)?,
                None => pairs(word.as_bytes(), number, at, &mut out)?,
            }
            at += token.len();
        }
    }
    Ok(out)
}

/// Reads the lines of `xxd` or of `hexdump -C`.
fn dump(text: &str, form: Form) -> Result<Vec<u8>, TextError> {
    let mut out: Vec<u8> = Vec::with_capacity(text.len() / 4);
    let mut base = None;
    // The start of the line before, which a `*` repeats.
    let mut last = 0;
    let mut is_repeated = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        if line.trim() == "*" {
            is_repeated = true;
            continue;
        }
        let Some((offset, at)) = offset(line, form) else {
            let what = "no offset, such as 00000010:, and the lines before have one";
            return Err(TextError::new(number, 0, what));
        };
        let base = *base.get_or_insert(offset);
        let expected = base.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
        if is_repeated && offset > expected {
            let count = usize::try_from(offset - expected).unwrap_or(usize::MAX);
            repeat(&mut out, last, count).map_err(|what| TextError::new(number, 0, what))?;
        } else if offset != expected {
            return Err(TextError::new(
                number,
                1,
                format!(
                    "offset {offset:#x}, {expected:#x} comes next; is a line missing, or are these two dumps?"
                ),
            ));
        }
        is_repeated = false;
        last = out.len();
        groups(line, at, form, number, &mut out)?;
    }
    Ok(out)
}

/// Appends `count` bytes by repeating those from `last` on.
fn repeat(out: &mut Vec<u8>, last: usize, count: usize) -> Result<(), String> {
    let unit = out[last..].to_vec();
    if unit.is_empty() || !count.is_multiple_of(unit.len()) {
        return Err("a * with no whole lines to repeat before this offset".to_owned());
    }
    if count > REPEATED_MAX {
        return Err(format!(
            "a * for {count} bytes, limit {REPEATED_MAX}; give the bytes themselves"
        ));
    }
    out.reserve(count);
    for _ in 0..count / unit.len() {
        out.extend_from_slice(&unit);
    }
    Ok(())
}

/// A packet as it was captured.
struct Packet {
    /// The line that it begins in, from 1.
    line: usize,
    bytes: Vec<u8>,
}

/// The packets of a `tcpdump -x`. Lines without an offset describe the packet in words, and are skipped.
fn packet_lines(text: &str) -> Result<Vec<Packet>, TextError> {
    let mut packets: Vec<Packet> = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let Some((offset, at)) = packet_offset(content) else {
            continue;
        };
        if offset == 0 {
            packets.push(Packet {
                line,
                bytes: Vec::new(),
            });
        }
        let expected = packets.last().map_or(0, |packet| packet.bytes.len());
        match packets.last_mut() {
            Some(packet) if u64::try_from(expected) == Ok(offset) => {
                groups(content, at, Form::Packets, line, &mut packet.bytes)?;
            }
            _ => {
                let what =
                    format!("offset {offset:#x}, {expected:#x} comes next; a line is missing");
                return Err(TextError::new(line, 1, what));
            }
        }
    }
    Ok(packets)
}
