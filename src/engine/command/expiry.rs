//! SETAT and EXPIRE (GBP §4).

use std::borrow::Cow;

use super::{Effect, Input, Needs};
use crate::engine::answers::Answers;
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
                value: Cow::Borrowed(value),
                deadline: Some(deadline),
            })
        }
        Err(error) => {
            answers.push(Status::Error, error.reason.as_bytes());
            Ok(Effect::None)
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
        (Ok(deadline), Some(old)) => {
            answers.push(Status::Ok, b"");
            if deadline != old.deadline() {
                return Ok(Effect::Expire { deadline });
            }
        }
    }
    Ok(Effect::None)
}
