//! ADD (GBP §4).

use arrayvec::ArrayVec;

use super::{DECIMAL_LEN_MAX, Effect, Input, NO_TOKEN, Needs, NewValue};
use crate::engine::answers::{Answers, Part};
use crate::wire::Status;
use crate::wire::conditional::Add;

/// ADD: adds to the decimal value of the key, which is `start` where there is none, and answers the sum. A value that
/// is there keeps its deadline.
pub(super) fn add<'a>(input: &Input<'_, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs> {
    match sum(input) {
        Ok((sum, deadline, want_token)) => {
            let text = text_of(sum);
            if want_token {
                answers.push_parts(Status::Ok, &[Part::Token, Part::Bytes(&text)]);
            } else {
                answers.push(Status::Ok, &text);
            }
            let value = NewValue::Number(text);
            Ok(Effect::Put { value, deadline })
        }
        Err(message) => {
            answers.push(Status::Error, message.as_bytes());
            Ok(Effect::None)
        }
    }
}

/// The sum that an ADD stores, the deadline of its key, and whether a token is wanted.
fn sum(input: &Input<'_, '_>) -> Result<(i64, Option<u64>, bool), String> {
    let frame = input.frame;
    let add = Add::decode(frame.key(), frame.value()).map_err(|error| error.reason)?;
    if add.want_token && !input.has_log {
        return Err(NO_TOKEN.to_owned());
    }
    let (number, deadline) = match input.old {
        Some(entry) => {
            let number =
                decimal(entry.value()).ok_or("the value is no decimal number of 64 bits")?;
            (number, input.deadline)
        }
        None => (add.start, add.expiry.deadline(|| input.clock.now(), None)?),
    };
    let delta = add.delta;
    let sum = number.checked_add(delta);
    let sum = sum.ok_or_else(|| format!("{number} and {delta} add up to no number of 64 bits"))?;
    Ok((sum, deadline, add.want_token))
}

/// The decimal form of a number.
fn text_of(number: i64) -> ArrayVec<u8, DECIMAL_LEN_MAX> {
    let (mut digits, mut start) = ([0; DECIMAL_LEN_MAX], DECIMAL_LEN_MAX);
    let mut rest = number.unsigned_abs();
    // The digits from the last one on.
    loop {
        start -= 1;
        digits[start] = DIGITS[usize::try_from(rest % 10).unwrap_or(0)];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        digits[start] = b'-';
    }
    let mut text = ArrayVec::new();
    // It is as long as the longest number.
    let _ = text.try_extend_from_slice(&digits[start..]);
    text
}

const DIGITS: [u8; 10] = *b"0123456789";

/// The number that `text` is the decimal form of: digits without leading zeros, behind a `-` where it is negative.
fn decimal(text: &[u8]) -> Option<i64> {
    // Before anything looks at a value of megabytes, under the lock.
    if text.len() > DECIMAL_LEN_MAX {
        return None;
    }
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let is_canonical = match digits {
        [] => false,
        [b'0'] => !is_negative,
        [first, ..] => *first != b'0',
    };
    if !is_canonical {
        return None;
    }
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Negative numbers reach further. So many digits overflow nothing.
    let (start, rest) = digits.split_at(digits.len().min(18));
    let digit = |byte: &u8| i64::from(byte - b'0');
    let number = start
        .iter()
        .fold(0, |number: i64, byte| number * 10 - digit(byte));
    let number = rest.iter().try_fold(number, |number, byte| {
        number.checked_mul(10)?.checked_sub(digit(byte))
    })?;
    if is_negative {
        Some(number)
    } else {
        number.checked_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_is_written_and_nothing_else_is() {
        let near = |number: i64| (-12..=12).filter_map(move |by| number.checked_add(by));
        let powers = (0..19).map(|power| 10_i64.pow(power));
        let all = powers.flat_map(|power| [power, -power]);
        for number in all.chain([i64::MIN, i64::MAX, 0]).flat_map(near) {
            let text = text_of(number);
            assert_eq!(text[..], *number.to_string().as_bytes());
            assert_eq!(decimal(&text), Some(number));
            for wrong in [&b"+"[..], b" ", b"0", b"--"] {
                assert_eq!(decimal(&[wrong, &text].concat()), None, "{number}");
            }
            for wrong in [&b" "[..], b"x", b".0"] {
                assert_eq!(decimal(&[&text[..], wrong].concat()), None, "{number}");
            }
        }
        for wrong in [
            "",
            "-",
            "-0",
            "00",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
        ] {
            assert_eq!(decimal(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
