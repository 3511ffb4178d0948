//! SET, GET and DEL (GBP §4).

use super::Effect;
use crate::engine::answers::Answers;
use crate::engine::entry::Entry;
use crate::wire::Status;

/// SET: stores the value, whatever was there before.
#[inline(always)]
pub(in crate::engine) fn set(answers: &mut Answers) -> Effect<'static> {
    answers.push(Status::Ok, b"");
    Effect::AsSent
}

/// GET: answers the value. Returns false where it is long and ends the run.
#[inline(always)]
pub(in crate::engine) fn get(old: Option<&Entry>, answers: &mut Answers) -> bool {
    match old {
        Some(entry) => answers.push_value(entry),
        None => {
            answers.push(Status::NotFound, b"");
            true
        }
    }
}

/// DEL: removes the key. `is_there` says whether it exists.
#[inline(always)]
pub(in crate::engine) fn del(is_there: bool, answers: &mut Answers) -> Effect<'static> {
    if is_there {
        answers.push(Status::Ok, b"");
        Effect::Remove
    } else {
        answers.push(Status::NotFound, b"");
        Effect::None
    }
}
