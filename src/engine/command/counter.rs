//! ADD (GBP §4).

use super::{Digits, Effect, Input, NO_TOKEN, Needs, NewValue};
use crate::engine::answers::{Answers, Part};
use crate::wire::Status;
use crate::wire::conditional::Add;

/// ADD: adds to the decimal value of the key, which is `start` where there is none, and answers the sum. A value that
/// is there keeps its deadline.
pub(super) fn add<'a>(input: &Input<'_, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs> {
    match sum(input) {
        Ok((sum, deadline, want_token)) => {
            let value = NewValue::Number(sum);
            let mut digits = Digits::new();
            let text = value.bytes(&mut digits);
            if want_token {
                answers.push_parts(Status::Ok, &[Part::Token, Part::Bytes(text)]);
            } else {
                answers.push(Status::Ok, text);
            }
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

/// Length of the longest decimal number of 64 bits, that of -2^63.
const DECIMAL_LEN_MAX: usize = 20;

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
    // 19 digits fit in an unsigned number, and 20 are beyond any signed one.
    if digits.len() > DECIMAL_LEN_MAX - 1 {
        return None;
    }
    let (mut number, mut is_decimal) = (0_u64, true);
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        is_decimal &= digit < 10;
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    match (is_decimal, is_negative) {
        (false, _) => None,
        (true, false) => i64::try_from(number).ok(),
        (true, true) => 0_i64.checked_sub_unsigned(number),
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
            let mut digits = Digits::new();
            let text = NewValue::Number(number).bytes(&mut digits).to_vec();
            assert_eq!(text, number.to_string().into_bytes());
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
