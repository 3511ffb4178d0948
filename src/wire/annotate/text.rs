//! Bytes as text: numbers and quoted strings.

use std::fmt::Write;

/// Bytes in hexadecimal, for a number whose size says nothing.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// An unsigned number of up to 8 bytes in decimal.
pub(crate) fn number(bytes: &[u8]) -> String {
    let number = bytes
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    grouped(number)
}

/// A number of up to 8 bytes in two's complement, in decimal.
pub(crate) fn signed(bytes: &[u8]) -> String {
    let is_negative = bytes.first().is_some_and(|&first| first & 0x80 != 0);
    if !is_negative {
        return number(bytes);
    }
    let inverted = bytes
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(!byte));
    format!("-{}", grouped(inverted.saturating_add(1)))
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
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

/// Bytes as quoted ASCII. A row may end inside a longer character, so those are escaped too.
pub(crate) fn quoted(bytes: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_their_own_size() {
        assert_eq!(number(&[0x01, 0x00, 0x00]), "65,536");
        assert_eq!(
            number(&u64::MAX.to_be_bytes()),
            "18,446,744,073,709,551,615"
        );
        for (value, text) in [
            (0, "0"),
            (1_000, "1,000"),
            (-1, "-1"),
            (-1_000, "-1,000"),
            (i64::MAX, "9,223,372,036,854,775,807"),
            (i64::MIN, "-9,223,372,036,854,775,808"),
        ] {
            assert_eq!(signed(&value.to_be_bytes()), text);
        }
        assert_eq!(signed(&[0xFE]), "-2");
        assert_eq!(hexadecimal(&[0x0A, 0xBC]), "0x0abc");
    }
}
