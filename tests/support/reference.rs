//! The answer and the effects of each operation on keys, written a second time: the reference of the tests.
//!
//! It knows neither the store nor the log. The module that has it imports `wire`.

use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

use super::wire::batch::{Batch, effects};
use super::wire::conditional::{Add, Condition, Put, Take, Want};
use super::wire::expiry::{SetAt, expire_value, expiry_of};
use super::wire::request::frames;
use super::wire::response::Response;
use super::wire::{Opcode, Request, RequestFrame, Status, Token};

/// A value and its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) value: Rc<[u8]>,
    /// Milliseconds since 1970 UTC.
    pub(crate) deadline: Option<u64>,
}

/// The change that an operation makes to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Put(Item),
    Remove,
    Expire(Option<u64>),
}

/// Keys, and the effects on them, each key once.
pub(crate) type Effects = Vec<(Rc<[u8]>, Effect)>;

/// The only right answer to a request, and its effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: Status,
    pub(crate) value: Vec<u8>,
    pub(crate) effects: Effects,
}

/// The time and the position at which a request is executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Milliseconds since 1970 UTC.
    pub(crate) now: u64,
    /// The token of the next record; `None` where there is no log.
    pub(crate) token: Option<Token>,
    /// The token of the last record.
    pub(crate) last: Option<Token>,
}

impl Item {
    #[allow(dead_code)] // not used by all tests
    /// The item of a SET or SETAT frame, as a store has it.
    pub(crate) fn of(frame: &RequestFrame<'_>) -> Item {
        let (value, deadline) = match frame.opcode() {
            Opcode::SetAt => {
                let (deadline, value) = frame.value().split_first_chunk().expect("a deadline");
                (value, Some(u64::from_be_bytes(*deadline)))
            }
            opcode => {
                assert_eq!(opcode, Opcode::Set, "no entry");
                (frame.value(), None)
            }
        };
        let value = Rc::from(value);
        Item { value, deadline }
    }

    /// Whether the item's deadline has passed.
    pub(crate) fn has_expired(&self, now: u64) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// The sum of the hashes that the item adds to the digest of a data set: of its SET frame, and where it has a
    /// deadline of its EXPIRE frame.
    pub(crate) fn hash(&self, key: &[u8]) -> u128 {
        let put = encoded(&Request::Set {
            key,
            value: &self.value,
        });
        let expire = self.deadline.map_or(0, |deadline| {
            let value = &[&[3], &deadline.to_be_bytes()[..]].concat()[..];
            xxh3_128(&encoded(&Request::Expire { key, value }))
        });
        xxh3_128(&put).wrapping_add(expire)
    }
}

impl Effect {
    /// The record of the effect on a key.
    pub(crate) fn record(&self, key: &[u8]) -> Vec<u8> {
        match self {
            Effect::Put(Item { value, deadline }) => match deadline {
                None => encoded(&Request::Set { key, value }),
                Some(deadline) => {
                    let value = &[&deadline.to_be_bytes()[..], value].concat()[..];
                    encoded(&Request::SetAt { key, value })
                }
            },
            Effect::Remove => encoded(&Request::Del { key }),
            Effect::Expire(deadline) => {
                let value = &expire_value(*deadline)[..];
                encoded(&Request::Expire { key, value })
            }
        }
    }

    /// The item of the key after the effect on this one.
    pub(crate) fn on(&self, item: Option<&Item>) -> Option<Item> {
        match self {
            Effect::Put(new) => Some(new.clone()),
            Effect::Remove => None,
            Effect::Expire(deadline) => item.map(|item| Item {
                value: Rc::clone(&item.value),
                deadline: *deadline,
            }),
        }
    }
}

/// The right answer to a request about one key, and its effect.
struct Answer {
    status: Status,
    value: Vec<u8>,
    effect: Option<Effect>,
}

impl Expected {
    /// The answer to a request, where the keys have these items.
    pub(crate) fn of<'i>(
        frame: &RequestFrame<'_>,
        items: impl Fn(&[u8]) -> Option<&'i Item>,
        at: At,
    ) -> Expected {
        if frame.opcode() == Opcode::Batch {
            return match Batch::decode(frame.value()) {
                Ok(batch) => Expected::of_batch(&batch, items, at),
                Err(error) => Expected::refused(Status::Error, error.reason.into_bytes()),
            };
        }
        let key = Rc::from(frame.key());
        let answer = Answer::to(frame, items(frame.key()), at);
        Expected {
            status: answer.status,
            value: answer.value,
            effects: answer
                .effect
                .map(|effect| (key, effect))
                .into_iter()
                .collect(),
        }
    }

    fn refused(status: Status, value: Vec<u8>) -> Expected {
        Expected {
            status,
            value,
            effects: Vec::new(),
        }
    }

    /// The tokens in the answer are those of a record, unless the batch leaves everything as it was.
    fn of_batch<'i>(
        batch: &Batch<'_>,
        items: impl Fn(&[u8]) -> Option<&'i Item>,
        at: At,
    ) -> Expected {
        let expected = Expected::of_batch_at(batch, &items, at);
        if !expected.effects.is_empty() {
            return expected;
        }
        let token = at.last;
        Expected::of_batch_at(batch, &items, At { token, ..at })
    }

    fn of_batch_at<'i>(
        batch: &Batch<'_>,
        items: &impl Fn(&[u8]) -> Option<&'i Item>,
        at: At,
    ) -> Expected {
        let (mut value, mut effects) = (Vec::new(), Effects::new());
        for (number, frame) in batch.frames().iter().enumerate() {
            let key = frame.key();
            let raw = items(key);
            let before = effects.iter().position(|(changed, _)| **changed == *key);
            let item = match before {
                Some(before) => effects[before].1.on(raw),
                None => raw.cloned(),
            };
            let answer = Answer::to(frame, item.as_ref(), at);
            let response = Response {
                status: answer.status.byte(),
                value: &answer.value,
            };
            if answer.status == Status::Error {
                let reason = String::from_utf8_lossy(&answer.value);
                let reason = format!("request {}: {reason}", number + 1);
                return Expected::refused(Status::Error, reason.into_bytes());
            }
            if answer.status == Status::Conflict {
                value = vec![u8::try_from(number).expect("64 at most")];
                response.encode(&mut value).expect("it is short");
                return Expected::refused(Status::Conflict, value);
            }
            response.encode(&mut value).expect("it is short");
            let Some(effect) = answer.effect else {
                continue;
            };
            let is_put = before.is_some_and(|before| matches!(effects[before].1, Effect::Put(_)));
            let effect = match effect.on(item.as_ref()) {
                Some(item) if is_put => Effect::Put(item),
                Some(_) | None => effect,
            };
            if let Some(before) = before {
                effects.remove(before);
            }
            // Nothing is left of a key that the batch itself has made.
            if effect != Effect::Remove || raw.is_some() {
                effects.push((Rc::from(key), effect));
            }
        }
        Expected {
            status: Status::Ok,
            value,
            effects,
        }
    }

    /// Whether this is the record of the effects, of a request that is a BATCH or not. The effects of a BATCH come in
    /// any order.
    pub(crate) fn is_recorded(&self, is_batch: bool, record: Option<&[u8]>) -> bool {
        let mut own: Vec<Vec<u8>> = self
            .effects
            .iter()
            .map(|(key, effect)| effect.record(key))
            .collect();
        if own.is_empty() {
            return true;
        }
        let Some(record) = record.and_then(|record| frames(record).next()) else {
            return false;
        };
        let mut recorded: Vec<Vec<u8>> = effects(&record)
            .map(|frame| frame.bytes().to_vec())
            .collect();
        own.sort_unstable();
        recorded.sort_unstable();
        (record.opcode() == Opcode::Batch) == is_batch && own == recorded
    }
}

impl Answer {
    fn new(status: Status, value: &[u8], effect: Option<Effect>) -> Answer {
        let value = value.to_vec();
        Answer {
            status,
            value,
            effect,
        }
    }

    fn error(reason: &str) -> Answer {
        Answer::new(Status::Error, reason.as_bytes(), None)
    }

    fn not_found() -> Answer {
        Answer::new(Status::NotFound, b"", None)
    }

    /// The answer to a request about a key that has `item`.
    fn to(frame: &RequestFrame<'_>, item: Option<&Item>, at: At) -> Answer {
        let At { now, token, .. } = at;
        let item = item.filter(|item| !item.has_expired(now));
        let (key, value) = (frame.key(), frame.value());
        let put = |value: &[u8], deadline| {
            let value = Rc::from(value);
            Some(Effect::Put(Item { value, deadline }))
        };
        match frame.opcode() {
            Opcode::Set => Answer::new(Status::Ok, b"", put(value, None)),
            Opcode::Get => match item {
                Some(item) => Answer::new(Status::Ok, &item.value, None),
                None => Answer::not_found(),
            },
            Opcode::Del => match item {
                Some(_) => Answer::new(Status::Ok, b"", Some(Effect::Remove)),
                None => Answer::not_found(),
            },
            Opcode::SetAt => match SetAt::decode(key, value) {
                Ok(SetAt { deadline, value }) => {
                    Answer::new(Status::Ok, b"", put(value, Some(deadline)))
                }
                Err(error) => Answer::error(&error.reason),
            },
            Opcode::Put => match Put::decode(key, value) {
                Ok(put) => Answer::of_put(&put, item, now, token),
                Err(error) => Answer::error(&error.reason),
            },
            Opcode::Take => match Take::decode(key, value) {
                Ok(take) => Answer::of_take(&take, item, token),
                Err(error) => Answer::error(&error.reason),
            },
            Opcode::Add => match Add::decode(key, value) {
                Ok(add) => Answer::of_add(&add, item, now, token),
                Err(error) => Answer::error(&error.reason),
            },
            Opcode::Expire => {
                let expiry = expiry_of(value);
                match (
                    expiry.and_then(|expiry| expiry.deadline(|| now, None)),
                    item,
                ) {
                    (Err(reason), _) => Answer::error(&reason),
                    (Ok(_), None) => Answer::not_found(),
                    (Ok(deadline), Some(item)) => {
                        let effect = Effect::Expire(deadline);
                        let changes = deadline != item.deadline;
                        Answer::new(Status::Ok, b"", changes.then_some(effect))
                    }
                }
            }
            Opcode::Ttl => match item.map(|item| item.deadline) {
                None => Answer::not_found(),
                Some(None) => Answer::new(Status::Ok, b"", None),
                Some(Some(deadline)) => {
                    Answer::new(Status::Ok, &(deadline - now).to_be_bytes(), None)
                }
            },
            opcode => panic!("{opcode:?} is about no one key"),
        }
    }

    fn of_put(put: &Put<'_>, item: Option<&Item>, now: u64, token: Option<Token>) -> Answer {
        if put.want.token && token.is_none() {
            return Answer::error(NO_TOKEN);
        }
        if !is_met(&put.condition, item) {
            return Answer::conflict(put.want, item);
        }
        let kept = item.and_then(|item| item.deadline);
        match put.expiry.deadline(|| now, kept) {
            Ok(deadline) => {
                let value = Rc::from(put.value);
                Answer::done(put.want, item, token, Effect::Put(Item { value, deadline }))
            }
            Err(reason) => Answer::error(&reason),
        }
    }

    fn of_take(take: &Take<'_>, item: Option<&Item>, token: Option<Token>) -> Answer {
        if take.want.token && token.is_none() {
            return Answer::error(NO_TOKEN);
        }
        match (take.condition, item) {
            (Condition::Always, None) => Answer::not_found(),
            (condition, item) if item.is_some() && is_met(&condition, item) => {
                Answer::done(take.want, item, token, Effect::Remove)
            }
            (_, item) => Answer::conflict(take.want, item),
        }
    }

    fn of_add(add: &Add, item: Option<&Item>, now: u64, token: Option<Token>) -> Answer {
        if add.want_token && token.is_none() {
            return Answer::error(NO_TOKEN);
        }
        let (number, deadline) = match item {
            None => match add.expiry.deadline(|| now, None) {
                Ok(deadline) => (Some(add.start), deadline),
                Err(reason) => return Answer::error(&reason),
            },
            Some(item) => {
                let text = std::str::from_utf8(&item.value);
                let number = text.ok().and_then(|text| text.parse::<i64>().ok());
                let is_plain = |number: &i64| number.to_string().as_bytes() == &item.value[..];
                (number.filter(is_plain), item.deadline)
            }
        };
        let Some(number) = number else {
            return Answer::error("the value is no decimal number of 64 bits");
        };
        let Some(sum) = number.checked_add(add.delta) else {
            let delta = add.delta;
            let reason = format!("{number} and {delta} add up to no number of 64 bits");
            return Answer::error(&reason);
        };
        let text = sum.to_string().into_bytes();
        let token = token.filter(|_| add.want_token).map(Token::encode);
        let answer = [token.as_ref().map_or(&[][..], |token| token), &text].concat();
        let value = Rc::from(text);
        Answer::new(
            Status::Ok,
            &answer,
            Some(Effect::Put(Item { value, deadline })),
        )
    }

    fn done(want: Want, item: Option<&Item>, token: Option<Token>, effect: Effect) -> Answer {
        let mut answer = Vec::new();
        if want.value || want.token {
            answer.push(u8::from(item.is_some()));
        }
        if let Some(token) = token.filter(|_| want.token) {
            answer.extend(token.encode());
        }
        if let Some(item) = item.filter(|_| want.value) {
            answer.extend_from_slice(&item.value);
        }
        Answer::new(Status::Ok, &answer, Some(effect))
    }

    fn conflict(want: Want, item: Option<&Item>) -> Answer {
        let mut answer = vec![u8::from(item.is_some())];
        if let Some(item) = item.filter(|_| want.value) {
            answer.extend_from_slice(&item.value);
        }
        Answer::new(Status::Conflict, &answer, None)
    }
}

const NO_TOKEN: &str =
    "want 0x02: a token needs a log, which a node has with peers in cluster.toml";

fn is_met(condition: &Condition<'_>, item: Option<&Item>) -> bool {
    match (condition, item) {
        (Condition::Always, _) | (Condition::Absent, None) | (Condition::Present, Some(_)) => true,
        (Condition::Equal(expected), Some(item)) => item.value[..] == **expected,
        (Condition::EqualHash(expected), Some(item)) => xxh3_128(&item.value) == *expected,
        (Condition::Absent, Some(_)) => false,
        (Condition::Present | Condition::Equal(_) | Condition::EqualHash(_), None) => false,
    }
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).expect("it came in a frame");
    bytes
}
