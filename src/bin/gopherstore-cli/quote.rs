//! Words of a line: their syntax, and the output of values in the same syntax.

use std::fmt;

/// Fault of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuoteError {
    /// An unclosed quote.
    Unclosed(char),
    /// A closing quote without a space behind it.
    Joined(char),
    /// A backslash before a character that is no escape.
    UnknownEscape(u8),
    /// `\x` without two hexadecimal digits.
    BadHex,
}

impl fmt::Display for QuoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuoteError::Unclosed(quote) => {
                write!(f, "no closing {quote}; end the quoted word with {quote}")
            }
            QuoteError::Joined(quote) => {
                write!(f, "text right after a closing {quote}; put a space between")
            }
            QuoteError::UnknownEscape(byte) => write!(
                f,
                r#"unknown escape \{}; there are \n \r \t \\ \" \xHH, or use single quotes"#,
                byte.escape_ascii()
            ),
            QuoteError::BadHex => {
                f.write_str(r"two hexadecimal digits belong after \x, as in \x00")
            }
        }
    }
}

/// Splits a line into words, at spaces and tabs.
///
/// In double quotes `\n \r \t \\ \" \xHH` are escapes for a byte. In single quotes and outside of quotes every byte is
/// literal.
pub(crate) fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, QuoteError> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        match rest {
            [] => return Ok(words),
            [b'"', inside @ ..] => {
                let (word, after) = double_quoted(inside)?;
                words.push(word);
                rest = spaced(after, '"')?;
            }
            [b'\'', inside @ ..] => {
                let end = inside
                    .iter()
                    .position(|&byte| byte == b'\'')
                    .ok_or(QuoteError::Unclosed('\''))?;
                words.push(inside[..end].to_vec());
                rest = spaced(&inside[end + 1..], '\'')?;
            }
            _ => {
                let end = rest
                    .iter()
                    .position(u8::is_ascii_whitespace)
                    .unwrap_or(rest.len());
                words.push(rest[..end].to_vec());
                rest = &rest[end..];
            }
        }
    }
}

fn spaced(after: &[u8], quote: char) -> Result<&[u8], QuoteError> {
    match after.first() {
        Some(byte) if !byte.is_ascii_whitespace() => Err(QuoteError::Joined(quote)),
        _ => Ok(after),
    }
}

/// Reads up to the closing quote. Also returns the bytes behind it.
fn double_quoted(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), QuoteError> {
    let mut word = Vec::new();
    loop {
        let (byte, after) = match rest {
            [b'"', after @ ..] => return Ok((word, after)),
            [b'\\', b'n', after @ ..] => (b'\n', after),
            [b'\\', b'r', after @ ..] => (b'\r', after),
            [b'\\', b't', after @ ..] => (b'\t', after),
            [b'\\', byte @ (b'\\' | b'"'), after @ ..] => (*byte, after),
            [b'\\', b'x', after @ ..] => {
                let [high, low, after @ ..] = after else {
                    return Err(QuoteError::BadHex);
                };
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                    return Err(QuoteError::BadHex);
                };
                let byte = u8::try_from(high * 16 + low).map_err(|_| QuoteError::BadHex)?;
                (byte, after)
            }
            [b'\\', byte, ..] => return Err(QuoteError::UnknownEscape(*byte)),
            [b'\\'] | [] => return Err(QuoteError::Unclosed('"')),
            [byte, after @ ..] => (*byte, after),
        };
        word.push(byte);
        rest = after;
    }
}

/// A value on one line: literal if that is unambiguous, otherwise in double quotes, with the escapes of [`words`].
pub(crate) fn shown(value: &[u8]) -> String {
    match str::from_utf8(value) {
        Ok(text) if is_plain(text) => text.to_owned(),
        _ => quoted(value),
    }
}

/// A value as one word of a line: literal if [`words`] reads it so, otherwise in double quotes.
pub(crate) fn word(value: &[u8]) -> String {
    match str::from_utf8(value) {
        Ok(text)
            if is_plain(text) && !text.starts_with('\'') && !text.contains(char::is_whitespace) =>
        {
            text.to_owned()
        }
        _ => quoted(value),
    }
}

/// Whether text is unambiguous on its line, and every character of it is visible.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['(', '"', ' '])
        && !text.ends_with(' ')
        && text.chars().all(is_visible)
}

/// Whether a character is visible and has no effect on a terminal, by the rules of `Debug`.
fn is_visible(c: char) -> bool {
    matches!(c, '\\' | '"' | '\'') || c.escape_debug().len() == 1
}

/// A value in double quotes.
pub(crate) fn quoted(value: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                c if is_visible(c) => out.push(c),
                c => push_hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    out.push('"');
    out
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str(&format!("\\x{byte:02x}"));
    }
}

/// Any bytes as a word for a shell. Invisible bytes have the form of bash, zsh and ksh.
pub(crate) fn shell_word(word: &[u8]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match str::from_utf8(word) {
        Ok(text) if !text.is_empty() && text.chars().all(is_plain) => text.to_owned(),
        Ok(text) if text.chars().all(is_visible) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut out = String::from("$'");
            for &byte in word {
                match byte {
                    b'\'' | b'\\' => out.extend(['\\', char::from(byte)]),
                    b' '..=b'~' => out.push(char::from(byte)),
                    // Octal, since it always ends after three digits.
                    _ => out.push_str(&format!("\\{byte:03o}")),
                }
            }
            out.push('\'');
            out
        }
    }
}

/// A text that may have several lines, such as a message of a node, as part of one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = !is_visible(c);
            let escape = escaped.then(|| c.escape_debug()).into_iter().flatten();
            escape.chain((!escaped).then_some(c))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<String>, QuoteError> {
        words(line.as_bytes()).map(|words| {
            words
                .iter()
                .map(|word| word.escape_ascii().to_string())
                .collect()
        })
    }

    #[test]
    fn words_are_split_as_the_help_says() {
        for (line, expected) in [
            ("", vec![]),
            ("  \t ", vec![]),
            ("set k v", vec!["set", "k", "v"]),
            (" set\tk  v ", vec!["set", "k", "v"]),
            (
                r#"set k "two words\x00""#,
                vec!["set", "k", r"two words\x00"],
            ),
            (r#""\n\r\t\\\"\xfF""#, vec![r#"\n\r\t\\\"\xff"#]),
            (r"'a \n b'", vec![r"a \\n b"]),
            (r"C:\new a'b a#b", vec![r"C:\\new", r"a\'b", "a#b"]),
            (r#""" ''"#, vec!["", ""]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(split(line), Ok(expected), "{line}");
        }
        assert_eq!(words(b"get \xff"), Ok(vec![b"get".to_vec(), vec![0xff]]));
    }

    #[test]
    fn bad_quoting_is_told_what_is_wrong_with_it() {
        for (line, expected) in [
            ("\"abc", QuoteError::Unclosed('"')),
            ("\"abc\\", QuoteError::Unclosed('"')),
            ("'abc", QuoteError::Unclosed('\'')),
            ("\"a\"b", QuoteError::Joined('"')),
            ("'a''b'", QuoteError::Joined('\'')),
            ("\"\\q\"", QuoteError::UnknownEscape(b'q')),
            ("\"\\x0\"", QuoteError::BadHex),
            ("\"\\x", QuoteError::BadHex),
            ("\"\\x+1\"", QuoteError::BadHex),
        ] {
            assert_eq!(words(line.as_bytes()), Err(expected), "{line}");
        }
    }

    #[test]
    fn values_are_unquoted_where_that_is_unambiguous() {
        for plain in [
            "active",
            "two words",
            "a\"b",
            "-5",
            "gr\u{fc}n",
            r"C:\x",
            "OK",
            "#",
        ] {
            assert_eq!(shown(plain.as_bytes()), plain);
        }
        for (value, expected) in [
            (b"".as_slice(), r#""""#),
            (b"(not found)", r#""(not found)""#),
            (b"\"q", r#""\"q""#),
            (b" a", r#"" a""#),
            (b"a ", r#""a ""#),
            (b"a\nb\r\t", r#""a\nb\r\t""#),
            (b"\x1b[31m", r#""\x1b[31m""#),
            (b"\xff\xc3\xa4", "\"\\xff\u{e4}\""),
            ("a\u{202e}b".as_bytes(), r#""a\xe2\x80\xaeb""#),
            (b"a\\b\n", r#""a\\b\n""#),
        ] {
            assert_eq!(shown(value), expected);
        }
    }

    #[test]
    fn quoted_words_can_be_typed_again() {
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let value = vec![first, second];
                assert_eq!(words(quoted(&value).as_bytes()), Ok(vec![value.clone()]));
                assert!(!shown(&value).contains(['\n', '\r', '\x1b']));
            }
        }
    }

    #[test]
    fn a_word_for_a_shell_is_one_line_and_holds_every_byte() {
        for (word, expected) in [
            (&b"plain/file-1.gbp"[..], "plain/file-1.gbp"),
            (b"", "''"),
            (b"two words", "'two words'"),
            (b"it's", r"'it'\''s'"),
            ("gr\u{fc}n".as_bytes(), "'gr\u{fc}n'"),
            (b"a\n1", r"$'a\0121'"),
            (b"\xff'\\b", r"$'\377\'\\b'"),
        ] {
            assert_eq!(shell_word(word), expected);
            assert_eq!(one_line(expected), expected, "as a part of a message");
        }
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(one_line("a\nb\x1b'\"\\"), "a\\nb\\u{1b}'\"\\");
    }
}
