//! Strings for `printf`: backslash, then an octal number, `x` and a hexadecimal one, or a letter.

use super::{TextError, digit};

/// `bytes` as a format for `printf` in single quotes: letters, digits and other characters without a meaning there as
/// they are, all others in octal, which every shell's `printf` reads.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for &byte in bytes {
        match byte {
            b'%' | b'\\' | b'\'' => push_octal(&mut text, byte),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => push_octal(&mut text, byte),
        }
    }
    text
}

fn push_octal(text: &mut String, byte: u8) {
    text.push('\\');
    for shift in [6, 3, 0] {
        text.push(char::from(b'0' + (byte >> shift & 7)));
    }
}

/// Whether the text is lines for a shell, of which the first that is no comment begins with `printf`, perhaps behind a
/// prompt.
pub(super) fn is_command(text: &str) -> bool {
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let text = text.lines().map(str::trim_start).find(is_code);
    let text = text.unwrap_or_default();
    let text = text.strip_prefix("$ ").unwrap_or(text).trim_start();
    text.strip_prefix("printf")
        .is_some_and(|rest| rest.starts_with([' ', '\t']))
}

/// The bytes of a string, or the output of each `printf` in a shell's lines, one after another.
///
/// A string may be in quotes, also as `b'…'` or `$'…'`. In a `printf` command the string is a format, so that `%%` is
/// one `%`; text behind the command, such as `| nc`, is skipped.
pub(super) fn read(text: &str) -> Result<Vec<u8>, TextError> {
    let mut reader = Reader {
        text: text.as_bytes(),
        at: 0,
    };
    let mut out = Vec::new();
    if !is_command(text) {
        let string = reader.string()?;
        unescape(&reader, &string, Style::Plain, &mut out)?;
        return Ok(out);
    }
    loop {
        reader.skip_blank();
        if reader.peek() == Some(b'$') {
            reader.at += 1;
            reader.skip_blank();
        }
        if reader.peek().is_none() {
            return Ok(out);
        }
        let start = reader.at;
        if reader.peek() == Some(b'#') {
            reader.skip_line();
            continue;
        }
        if reader.word()?.is_none_or(|word| !word.is("printf")) {
            return Err(reader.error(start, "not a printf command, and the lines before are"));
        }
        command(&mut reader, &mut out)?;
        reader.skip_line();
    }
}

/// Reads the operands of `printf`.
fn command(reader: &mut Reader, out: &mut Vec<u8>) -> Result<(), TextError> {
    let start = reader.at;
    let mut word = reader.word()?;
    if word.as_ref().is_some_and(|word| word.is("--")) {
        word = reader.word()?;
    }
    let Some(mut format) = word else {
        return Err(reader.error(start, "a string belongs behind printf, in single quotes"));
    };
    let mut style = Style::Format;
    if format.is("%b") {
        style = Style::Operand;
        let Some(operand) = reader.word()? else {
            return Err(reader.error(start, "a string belongs behind %b, in single quotes"));
        };
        format = operand;
    }
    unescape(reader, &format, style, out)?;
    let behind = reader.at;
    match reader.word()? {
        None => Ok(()),
        Some(_) => Err(reader.error(
            behind + 1,
            "one string belongs behind printf; put quotes around all of it",
        )),
    }
}

/// The meaning of a backslash and a percent sign.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Of a string alone: `%` is nothing special.
    Plain,
    /// Of `printf`'s first operand.
    Format,
    /// Of what `%b` prints: octal numbers may have a zero before three digits.
    Operand,
}

/// Characters of a word, each with its place in the text.
struct Word(Vec<(u8, usize)>);

impl Word {
    fn is(&self, text: &str) -> bool {
        self.0.iter().map(|(byte, _)| *byte).eq(text.bytes())
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_blank(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    /// An error at that place of the text.
    fn error(&self, at: usize, what: &str) -> TextError {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.split(|&byte| byte == b'\n').count();
        let start = before.iter().rposition(|&byte| byte == b'\n');
        TextError::new(line, at - start.map_or(0, |start| start + 1) + 1, what)
    }

    /// All of the text as one string: without the quotes around it, and without the line's end.
    fn string(&mut self) -> Result<Word, TextError> {
        let mut start = 0;
        let mut end = self.text.len();
        while start < end && self.text[start].is_ascii_whitespace() {
            start += 1;
        }
        let is_quoted = [b"$'".as_slice(), b"b'", b"b\"", b"'", b"\""]
            .into_iter()
            .any(|quote| self.text[start..].starts_with(quote));
        if is_quoted {
            self.at = start + usize::from(matches!(self.text[start], b'$' | b'b'));
            let word = self.word()?;
            let behind = self.at;
            self.skip_blank();
            return match (word, self.peek()) {
                (Some(word), None) => Ok(word),
                _ => Err(self.error(behind, "text behind the closing quote; leave it out")),
            };
        }
        while end > start && matches!(self.text[end - 1], b'\n' | b'\r') {
            end -= 1;
        }
        Ok(Word((start..end).map(|at| (self.text[at], at)).collect()))
    }

    /// The next word of a shell's line; `None` where the command ends. A backslash outside of quotes stays, since a
    /// shell that took the quotes took it as well.
    fn word(&mut self) -> Result<Option<Word>, TextError> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r')) {
            self.at += 1;
        }
        let mut word = Vec::new();
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b'|' | b';' | b'>' | b'<' | b'&' => break,
                b'\'' | b'"' => self.quoted(byte, &mut word)?,
                // The quotes behind it are the string's.
                b'$' if self.text.get(self.at + 1) == Some(&b'\'') => self.at += 1,
                _ => {
                    word.push((byte, self.at));
                    self.at += 1;
                }
            }
        }
        Ok((self.at > start).then_some(Word(word)))
    }

    /// Reads from the opening quote to behind the closing one.
    fn quoted(&mut self, quote: u8, word: &mut Vec<(u8, usize)>) -> Result<(), TextError> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            let next = self.text.get(self.at + 1).copied();
            self.at += 1;
            if byte == quote {
                return Ok(());
            }
            // In double quotes a shell itself takes a backslash away before these.
            if let (b'"', b'\\', Some(next @ (b'"' | b'\\' | b'$' | b'`'))) = (quote, byte, next) {
                word.push((next, self.at));
                self.at += 1;
                continue;
            }
            word.push((byte, self.at - 1));
        }
        let quote = char::from(quote);
        Err(self.error(
            start,
            &format!("no closing {quote}; end the string with {quote}"),
        ))
    }
}

/// Appends the bytes of a word's characters.
fn unescape(
    reader: &Reader,
    word: &Word,
    style: Style,
    out: &mut Vec<u8>,
) -> Result<(), TextError> {
    let Word(chars) = word;
    let byte_at = |at: usize| chars.get(at).map(|(byte, _)| *byte);
    let mut at = 0;
    while let Some(&(byte, place)) = chars.get(at) {
        at += 1;
        if byte == b'%' && style == Style::Format {
            if byte_at(at) != Some(b'%') {
                let what = r"a directive of printf, which means no byte; write %% or \045 for a percent sign";
                return Err(reader.error(place, what));
            }
            at += 1;
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some(escape) = byte_at(at) else {
            return Err(reader.error(place, "a backslash at the end; an escape has more"));
        };
        at += 1;
        let plain = match escape {
            b'a' => 0x07,
            b'b' => 0x08,
            b'e' => 0x1B,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0B,
            b'\\' | b'\'' | b'"' => escape,
            b'0'..=b'7' => {
                let max = if escape == b'0' && style == Style::Operand {
                    4
                } else {
                    3
                };
                let mut number = u16::from(escape - b'0');
                let mut len = 1;
                while let Some(digit @ b'0'..=b'7') = byte_at(at).filter(|_| len < max) {
                    number = number * 8 + u16::from(digit - b'0');
                    at += 1;
                    len += 1;
                }
                u8::try_from(number)
                    .map_err(|_| reader.error(place, r"above \377, the largest byte in octal"))?
            }
            b'x' => {
                let mut number = None;
                for _ in 0..2 {
                    let Some(digit) = byte_at(at).and_then(digit) else {
                        break;
                    };
                    number = Some(number.unwrap_or(0) << 4 | digit);
                    at += 1;
                }
                number.ok_or_else(|| {
                    reader.error(place, r"hexadecimal digits belong behind \x, as in \x00")
                })?
            }
            _ => {
                let what = r"unknown escape; there are \NNN in octal, \xHH, and \a \b \e \f \n \r \t \v \\";
                return Err(reader.error(place, what));
            }
        };
        out.push(plain);
    }
    Ok(())
}
