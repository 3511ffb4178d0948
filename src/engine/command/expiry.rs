//! SETAT, EXPIRE and TTL (GBP §4).

use super::{Effect, Input, Needs, NewValue};
use crate::engine::answers::Answers;
use crate::engine::clock::Now;
use crate::wire::Status;
use crate::wire::expiry::{SetAt, expiry_of};

/// SETAT: stores the value with a deadline, whatever was there before. A deadline that has passed is accepted.
pub(super) fn set_at<'a>(
    input: &Input<'_, 'a>,
    answers: &mut Answers,
) -> Result<Effect<'a>, Needs> {
    let frame = input.frame;
    match SetAt::decode(frame.key(), frame.value()) {
        Ok(SetAt { deadline, value }) => {
            answers.push(Status::Ok, b"");
            Ok(Effect::Put {
                value: NewValue::Sent(value),
                deadline: Some(deadline),
            })
        }
        Err(error) => {
            answers.push(Status::Error, error.reason.as_bytes());
            Ok(Effect::None)
        }
    }
}

/// TTL: answers the time that the key has left, where it `is_there` and has not expired.
#[inline(never)]
pub(in crate::engine) fn ttl(
    is_there: bool,
    deadline: Option<u64>,
    clock: &Now<'_>,
    answers: &mut Answers,
) {
    match deadline {
        _ if !is_there => answers.push(Status::NotFound, b""),
        None => answers.push(Status::Ok, b""),
        Some(deadline) => {
            let left = deadline.saturating_sub(clock.now());
            answers.push(Status::Ok, &left.to_be_bytes());
        }
    }
}

/// EXPIRE: sets, changes or removes the deadline of a key that exists.
pub(super) fn expire<'a>(
    input: &Input<'_, 'a>,
    answers: &mut Answers,
) -> Result<Effect<'a>, Needs> {
    let expiry = expiry_of(input.frame.value());
    let deadline = expiry.and_then(|expiry| expiry.deadline(|| input.clock.now(), None));
    match (deadline, input.old) {
        (Err(reason), _) => answers.push(Status::Error, reason.as_bytes()),
        (Ok(_), None) => answers.push(Status::NotFound, b""),
        (Ok(deadline), Some(_)) => {
            answers.push(Status::Ok, b"");
            if deadline != input.deadline {
                return Ok(Effect::Expire { deadline });
            }
        }
    }
    Ok(Effect::None)
}
