//! A value at the prompt: on one line, and cut if it is long. Pure.

use crate::quote;

/// Longest value in bytes, and in columns of its escaped form, that is printed in full.
const WHOLE_MAX: usize = 4096;
/// Fewest columns of a cut value, and most columns of a key.
const EXCERPT_MIN: usize = 16;

/// The value of `key`, for a terminal of this width in columns.
pub(super) fn shown(key: &[u8], value: &[u8], columns: usize) -> String {
    if value.len() <= WHOLE_MAX {
        let shown = quote::shown(value);
        if shown.chars().count() <= WHOLE_MAX {
            return shown;
        }
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte);
    let key = match str::from_utf8(key) {
        // The quoting is valid at the prompt and in a shell.
        Ok(key) if (1..=EXCERPT_MIN).contains(&key.len()) && key.bytes().all(|b| is_plain(&b)) => {
            key
        }
        _ => "KEY",
    };
    // It begins like `(not found)`; no value does.
    let head = format!(
        "({} bytes; :raw get {key} prints all, gopherstore-cli get {key} > FILE in a shell keeps it) ",
        value.len()
    );
    // Up to the end of a row.
    let used = (head.chars().count() + "\"\"...".len()) % columns.max(1);
    let room = match columns.saturating_sub(used) {
        room if room < EXCERPT_MIN => room + columns,
        room => room,
    };
    format!("{head}{}...", excerpt(value, room))
}

/// The beginning of a value in double quotes, with at most `room` columns between them.
fn excerpt(value: &[u8], room: usize) -> String {
    // Each byte takes at least a column, except up to 3 further bytes of a character.
    let mut len = value.len().min(4 * room);
    loop {
        let quoted = quote::quoted(whole_characters(&value[..len]));
        let columns = quoted.chars().count() - 2;
        if columns <= room || len == 0 {
            return quoted;
        }
        // An escaped byte takes 4 columns, so this removes no more than necessary, except for long characters.
        len -= (columns - room).div_ceil(4).min(len);
    }
}

/// The bytes without an incomplete character at their end.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_are_whole_and_escaped() {
        assert_eq!(shown(b"k", b"two words", 40), "two words");
        assert_eq!(shown(b"k", b"\x00\xff", 40), r#""\x00\xff""#);
        assert_eq!(shown(b"k", &[b'x'; WHOLE_MAX], 40).len(), WHOLE_MAX);
    }

    #[test]
    fn long_values_are_cut_to_a_line() {
        let head = "(67108864 bytes; :raw get k prints all, gopherstore-cli get k > FILE in a shell keeps it) ";
        let text = shown(b"k", &vec![b'x'; 64 << 20], 80);
        let count = 2 * 80 - head.len() - 5;
        assert_eq!(text, format!("{head}\"{}\"...", "x".repeat(count)));
        let text = shown(b"k", &vec![0; 64 << 20], 40);
        assert_eq!(text.len().div_ceil(40), 3, "{text}");
        assert!(
            text.starts_with(head) && text.ends_with(r#"\x00"..."#),
            "{text}"
        );
        // Short, but not once it is escaped.
        for key in [[b'k'; 100].as_slice(), b"a b", b"\xff", b""] {
            let text = shown(key, &[0; WHOLE_MAX], 80);
            assert!(
                text.starts_with("(4096 bytes; :raw get KEY prints all, "),
                "{text}"
            );
            assert!(text.len() <= 160, "{text}");
        }
        let text = shown(b"k", "\u{e4}".repeat(5_000).as_bytes(), 80);
        assert!(text.contains('\u{e4}') && !text.contains("\\x"), "{text}");
    }
}
