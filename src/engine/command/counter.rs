//! ADD (GBP §4).

use std::borrow::Cow;

use super::Effect;
use crate::engine::answers::Answers;
use crate::engine::entry::Entry;
use crate::wire::{RequestFrame, Status};

/// ADD: adds to the decimal value of the key, which is `start` where there is none, and answers the sum.
pub(super) fn add<'a>(
    frame: &RequestFrame<'a>,
    old: Option<&Entry>,
    answers: &mut Answers,
) -> Effect<'a> {
    match sum(frame, old) {
        Ok(sum) => {
            let text = sum.to_string().into_bytes();
            answers.push(Status::Ok, &text);
            Effect::Put(Cow::Owned(text))
        }
        Err(message) => {
            answers.push(Status::Error, message.as_bytes());
            Effect::None
        }
    }
}

/// The sum that an ADD stores.
fn sum(frame: &RequestFrame<'_>, old: Option<&Entry>) -> Result<i64, String> {
    let operands = frame.opcode().spec().operands_of(frame.request().value());
    let [want, delta, start, ttl] = operands.map_err(|error| error.reason)?;
    if want != 0 {
        return Err(format!("want 0x{want:02x}, must be 0x00"));
    }
    if ttl != 0 {
        return Err(format!("ttl of {ttl} ms, must be 0: keys do not expire"));
    }
    let number = match old {
        Some(entry) => decimal(entry.value()).ok_or("the value is no decimal number of 64 bits")?,
        None => start.cast_signed(),
    };
    let delta = delta.cast_signed();
    let sum = number.checked_add(delta);
    sum.ok_or_else(|| format!("{number} and {delta} add up to no number of 64 bits"))
}

/// Length of the longest decimal number of 64 bits, that of -2^63.
const DECIMAL_LEN_MAX: usize = 20;

/// The number that `text` is the decimal form of: digits without leading zeros, behind a `-` where it is negative.
fn decimal(text: &[u8]) -> Option<i64> {
    // Before anything looks at a value of megabytes, under the lock.
    if text.len() > DECIMAL_LEN_MAX {
        return None;
    }
    let number: i64 = str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}
