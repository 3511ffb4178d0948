//! ADD (GBP §4).

use std::borrow::Cow;

use super::{Effect, Input, NO_TOKEN, Needs};
use crate::engine::answers::{Answers, Part};
use crate::wire::Status;
use crate::wire::conditional::Add;

/// ADD: adds to the decimal value of the key, which is `start` where there is none, and answers the sum. A value that
/// is there keeps its deadline.
pub(super) fn add<'a>(input: &Input<'_, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs> {
    match sum(input) {
        Ok((sum, deadline, want_token)) => {
            let text = sum.to_string().into_bytes();
            if want_token {
                answers.push_parts(Status::Ok, &[Part::Token, Part::Bytes(&text)]);
            } else {
                answers.push(Status::Ok, &text);
            }
            let value = Cow::Owned(text);
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
            (number, entry.deadline())
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
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_plain = match digits {
        [b'0', ..] => text == b"0",
        [first, ..] => first.is_ascii_digit(),
        [] => false,
    };
    if !is_plain {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}
