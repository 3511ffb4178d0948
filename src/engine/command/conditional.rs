//! PUT and TAKE (GBP §4).

use super::{Effect, Input, NO_TOKEN, Needs, NewValue, refused};
use crate::engine::answers::{Answers, Part};
use crate::engine::entry::Entry;
use crate::wire::Status;
use crate::wire::conditional::{Condition, Found, Put, Take, Want};

/// Longest value in bytes whose hash is taken under the lock.
const HASHED_BYTES: usize = 4 << 10;

/// PUT: stores the value where a condition is met.
pub(super) fn put<'a>(input: &Input<'_, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs> {
    let frame = input.frame;
    let put = match Put::decode(frame.key(), frame.value()) {
        Ok(put) => put,
        Err(error) => return refused(answers, &error.reason),
    };
    if put.want.token && !input.has_log {
        return refused(answers, NO_TOKEN);
    }
    if !is_met(&put.condition, input)? {
        conflict(input.old, put.want, answers);
        return Ok(Effect::None);
    }
    match put.expiry.deadline(|| input.clock.now(), input.deadline) {
        Ok(deadline) => {
            done(input.old, put.want, answers);
            let value = NewValue::Sent(put.value);
            Ok(Effect::Put { value, deadline })
        }
        Err(reason) => refused(answers, &reason),
    }
}

/// TAKE: removes the key where a condition is met, and answers what it had.
pub(super) fn take<'a>(input: &Input<'_, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs> {
    let frame = input.frame;
    let take = match Take::decode(frame.key(), frame.value()) {
        Ok(take) => take,
        Err(error) => return refused(answers, &error.reason),
    };
    if take.want.token && !input.has_log {
        return refused(answers, NO_TOKEN);
    }
    if input.old.is_none() && take.condition == Condition::Always {
        answers.push(Status::NotFound, b"");
        return Ok(Effect::None);
    }
    if !is_met(&take.condition, input)? {
        conflict(input.old, take.want, answers);
        return Ok(Effect::None);
    }
    done(input.old, take.want, answers);
    Ok(Effect::Remove)
}

/// Whether the condition is met by the old entry.
#[inline]
fn is_met(condition: &Condition<'_>, input: &Input<'_, '_>) -> Result<bool, Needs> {
    let Some(old) = input.old else {
        return Ok(matches!(condition, Condition::Always | Condition::Absent));
    };
    Ok(match condition {
        Condition::Always | Condition::Present => true,
        Condition::Absent => false,
        Condition::Equal(expected) => old.value() == *expected,
        Condition::EqualHash(expected) => match input.old_hash {
            Some(hash) => hash == *expected,
            None if old.value().len() <= HASHED_BYTES => {
                xxhash_rust::xxh3::xxh3_128(old.value()) == *expected
            }
            None => return Err(Needs::OldHash),
        },
    })
}

/// The answer to a request whose condition is met.
#[inline]
fn done(old: Option<&Entry>, want: Want, answers: &mut Answers) {
    if want.is_nothing() {
        answers.push(Status::Ok, b"");
    } else {
        found(Status::Ok, old, want, answers);
    }
}

/// The answer to a request whose condition is not met.
fn conflict(old: Option<&Entry>, want: Want, answers: &mut Answers) {
    let token = false;
    found(Status::Conflict, old, Want { token, ..want }, answers);
}

/// An answer with what a key has, and the token of the write.
fn found(status: Status, old: Option<&Entry>, want: Want, answers: &mut Answers) {
    let flags = [if old.is_some() { Found::EXISTED } else { 0 }];
    let flags = Part::Bytes(&flags);
    match (want.token, old.filter(|_| want.value)) {
        (false, None) => answers.push_parts(status, &[flags]),
        (false, Some(old)) => answers.push_parts(status, &[flags, Part::Value(old)]),
        (true, None) => answers.push_parts(status, &[flags, Part::Token]),
        (true, Some(old)) => answers.push_parts(status, &[flags, Part::Token, Part::Value(old)]),
    }
}
