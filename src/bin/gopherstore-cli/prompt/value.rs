//! A value at the prompt: on a line of its own, and cut where it would flood the terminal. Pure.

use crate::quote;

/// Bytes of a value, and columns of its escaped form, that are printed in full.
const WHOLE_MAX: usize = 4096;
/// Columns of a cut value that are shown at the least, and of a key at the most.
const EXCERPT_MIN: usize = 16;

/// The value of `key`, as it is printed in a terminal of so many columns.
pub(super) fn shown(key: &[u8], value: &[u8], columns: usize) -> String {
    if value.len() <= WHOLE_MAX {
        let shown = quote::shown(value);
        if shown.chars().count() <= WHOLE_MAX {
            return shown;
        }
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte);
    let key = match str::from_utf8(key) {
        // It means the same at the prompt and in a shell.
        Ok(key) if (1..=EXCERPT_MIN).contains(&key.len()) && key.bytes().all(|b| is_plain(&b)) => {
            key
        }
        _ => "KEY",
    };
    // It begins like `(not found)`, and as no value does.
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

/// The beginning of a value in double quotes, in `room` columns within them at the most.
fn excerpt(value: &[u8], room: usize) -> String {
    // Each byte takes a column at least, but for those that a character has beyond its first: 3 at most.
    let mut len = value.len().min(4 * room);
    loop {
        let quoted = quote::quoted(whole_characters(&value[..len]));
        let columns = quoted.chars().count() - 2;
        if columns <= room || len == 0 {
            return quoted;
        }
        // An escaped byte takes 4 columns, so this never takes more away than need be, but for long characters.
        len -= (columns - room).div_ceil(4).min(len);
    }
}

/// The bytes without the beginning of a character that stands at their end, which would look like no character at all.
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
