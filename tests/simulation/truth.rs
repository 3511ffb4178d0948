//! The truth about a run: every record that was ever written, and what follows from it.
//!
//! A record is known from the answer to the request that made it, by a rule of its own that knows nothing of the store
//! or the log. The records of all epochs are a tree: an epoch begins behind a record of another one. So for each
//! position, `(epoch, nonce, index)`, the truth has the one data set that it names, and its digest.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::load::Number;
use crate::engine::digest::Digest;
use crate::history::{EpochStart, History};
use crate::wire::request::RequestFrame;
use crate::wire::{Request, Status};

/// Number and nonce of an epoch.
pub(super) type EpochKey = (u64, u64);

/// A position: the epoch of a record, and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) epoch: EpochKey,
    pub(super) index: u64,
}

/// Something that must not be.
pub(super) type Violation = String;

/// The data set of a node, as the truth has it: its keys and values at a position.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    place: Option<Place>,
    map: BTreeMap<Rc<[u8]>, Rc<[u8]>>,
}

/// The data set after a record.
#[derive(Clone, Debug)]
struct Record {
    effect: Effect,
    digest: Digest,
    /// The request that made it.
    number: Option<Number>,
}

#[derive(Clone, Debug)]
enum Effect {
    Epoch,
    Set(Rc<[u8]>, Rc<[u8]>),
    Del(Rc<[u8]>),
}

/// One epoch.
#[derive(Debug)]
struct Epoch {
    /// The process that opened it.
    author: usize,
    /// The epoch of the record before its first one.
    parent: Option<EpochKey>,
    start_index: u64,
    records: Vec<Record>,
}

/// All records.
#[derive(Debug, Default)]
pub(super) struct Truth {
    epochs: BTreeMap<EpochKey, Epoch>,
    /// Where each request was executed.
    executed: BTreeMap<Number, Place>,
}

impl Truth {
    /// A process opens the last epoch of a history. The epoch's first record is its EPOCH.
    pub(super) fn open(&mut self, author: usize, history: &History) -> Result<(), Violation> {
        let [.., last] = history.epochs() else {
            return Err("it leads without an epoch".to_owned());
        };
        let key = (last.epoch, last.nonce);
        let before = last.start_index - 1;
        let parent = history
            .epoch_of(before)
            .map(|start| (start.epoch, start.nonce));
        if let Some(known) = self.epochs.get(&key) {
            return Err(format!(
                "epoch {key:?} is opened by process {author}, and was by process {} before",
                known.author
            ));
        }
        if let Some(parent) = parent
            && before > self.last_of(parent)
        {
            return Err(format!(
                "epoch {key:?} begins behind record {before}, which never was"
            ));
        }
        let digest = self.digest_at(parent.map(|epoch| Place {
            epoch,
            index: before,
        }))?;
        let first = Record {
            effect: Effect::Epoch,
            digest,
            number: None,
        };
        self.epochs.insert(
            key,
            Epoch {
                author,
                parent,
                start_index: last.start_index,
                records: vec![first],
            },
        );
        Ok(())
    }

    /// Whether the epoch is known.
    pub(super) fn knows(&self, start: EpochStart) -> bool {
        self.epochs.contains_key(&(start.epoch, start.nonce))
    }

    /// Number of epochs.
    pub(super) fn epochs(&self) -> usize {
        self.epochs.len()
    }

    /// The position of a node with this history whose last record has `index`; `None` where it holds nothing.
    pub(super) fn place_of(history: &History, index: u64) -> Option<Place> {
        let start = history.epoch_of(index)?;
        Some(Place {
            epoch: (start.epoch, start.nonce),
            index,
        })
    }

    /// Checks that a history is one of the tree's branches.
    pub(super) fn check_history(&self, history: &History) -> Result<(), Violation> {
        let mut before: Option<EpochKey> = None;
        for start in history.epochs() {
            let key = (start.epoch, start.nonce);
            let Some(epoch) = self.epochs.get(&key) else {
                return Err(format!(
                    "its history has epoch {key:?}, which nobody opened"
                ));
            };
            if epoch.start_index != start.start_index {
                let (theirs, own) = (start.start_index, epoch.start_index);
                return Err(format!(
                    "its history begins epoch {key:?} at {theirs}, not at {own}"
                ));
            }
            if before.is_some() && epoch.parent != before {
                return Err(format!("in its history {before:?} comes before {key:?}"));
            }
            before = Some(key);
        }
        Ok(())
    }

    /// Checks that a node at a position has the right digest.
    pub(super) fn check_digest(&self, place: Place, digest: Digest) -> Result<(), Violation> {
        let right = self.digest_at(Some(place))?;
        if digest == right {
            Ok(())
        } else {
            Err(format!(
                "the digest at {place:?} is {digest}, and was {right}"
            ))
        }
    }

    /// The index of the last record of an epoch.
    pub(super) fn last_of(&self, epoch: EpochKey) -> u64 {
        self.epochs.get(&epoch).map_or(0, |epoch| {
            let count = u64::try_from(epoch.records.len()).unwrap_or(u64::MAX);
            epoch.start_index + count - 1
        })
    }

    /// Whether a data set at `later` went through `place`.
    pub(super) fn holds(&self, later: Place, place: Place) -> bool {
        self.within(later, place.epoch)
            .is_some_and(|end| place.index <= end)
    }

    /// The last index that a data set at `later` has of an epoch; `None` where it has none.
    fn within(&self, later: Place, epoch: EpochKey) -> Option<u64> {
        let (mut key, mut end) = (later.epoch, later.index);
        while key != epoch {
            let found = self.epochs.get(&key)?;
            end = end.min(found.start_index - 1);
            key = found.parent?;
        }
        Some(end)
    }

    /// The record with an index in a data set at `place`.
    fn record(&self, place: Place, index: u64) -> Result<&Record, Violation> {
        let mut key = place.epoch;
        loop {
            let Some(epoch) = self.epochs.get(&key) else {
                return Err(format!("nobody opened epoch {key:?}"));
            };
            if let Some(at) = index.checked_sub(epoch.start_index) {
                let record = usize::try_from(at)
                    .ok()
                    .and_then(|at| epoch.records.get(at));
                return record.ok_or_else(|| format!("record {index} of epoch {key:?} never was"));
            }
            let Some(parent) = epoch.parent else {
                return Err(format!("record {index} lies before the first epoch"));
            };
            key = parent;
        }
    }

    fn digest_at(&self, place: Option<Place>) -> Result<Digest, Violation> {
        let Some(place) = place.filter(|place| place.index > 0) else {
            return Ok(Digest::EMPTY);
        };
        Ok(self.record(place, place.index)?.digest)
    }

    /// Moves a model to a position.
    pub(super) fn advance(&self, model: &mut Model, place: Option<Place>) -> Result<(), Violation> {
        if model.place == place {
            return Ok(());
        }
        let Some(place) = place else {
            *model = Model::default();
            return Ok(());
        };
        if !model
            .place
            .is_some_and(|earlier| self.holds(place, earlier))
        {
            *model = Model::default();
        }
        let from = model.place.map_or(1, |earlier| earlier.index + 1);
        for index in from..=place.index {
            match &self.record(place, index)?.effect {
                Effect::Epoch => {}
                Effect::Set(key, value) => drop(model.map.insert(key.clone(), value.clone())),
                Effect::Del(key) => drop(model.map.remove(key)),
            }
        }
        model.place = Some(place);
        Ok(())
    }

    /// A process that leads has executed a request, and its answer is this. `model` is the node's data set before it,
    /// and then the one after it.
    pub(super) fn executed(
        &mut self,
        author: usize,
        model: &mut Model,
        number: Option<Number>,
        frame: &RequestFrame<'_>,
        status: Status,
        value: &[u8],
    ) -> Result<(), Violation> {
        let request = frame.request();
        let (key, old) = (frame.key(), model.map.get(frame.key()));
        let wrong = |right: &[u8]| {
            let name = frame.opcode().name();
            let (key, place) = (key.escape_ascii(), model.place);
            let (value, right) = (value.escape_ascii(), right.escape_ascii());
            let text = format!(
                "{name} {key} is answered by {} {value:.60}, and is {right:.60} at {place:?}",
                status.name()
            );
            Err(text)
        };
        let effect = match (request, status, old) {
            (
                _,
                Status::NotLeader
                | Status::Loading
                | Status::Error
                | Status::Full
                | Status::Timeout,
                _,
            ) => {
                return Ok(());
            }
            (Request::Get { .. }, Status::Ok, Some(old)) if old[..] == *value => return Ok(()),
            (Request::Get { .. } | Request::Del { .. }, Status::NotFound, None) => return Ok(()),
            (Request::Set { value, .. }, Status::Ok, _) => {
                Effect::Set(Rc::from(key), Rc::from(value))
            }
            (Request::Del { .. }, Status::Ok, Some(_)) => Effect::Del(Rc::from(key)),
            (
                Request::Add {
                    value: operands, ..
                },
                Status::Ok,
                old,
            ) => {
                let delta = operands[1..9].try_into().map_or(0, i64::from_be_bytes);
                let old = old.map_or("0", |old| std::str::from_utf8(old).unwrap_or("?"));
                let sum = old.parse::<i64>().map_or(0, |old| old + delta).to_string();
                if sum.as_bytes() != value {
                    return wrong(sum.as_bytes());
                }
                Effect::Set(Rc::from(key), Rc::from(value))
            }
            (_, _, old) => return wrong(old.map_or(b"absent", |old| old)),
        };
        self.add(author, model, number, effect)
    }

    /// Adds a record behind the model's position.
    fn add(
        &mut self,
        author: usize,
        model: &mut Model,
        number: Option<Number>,
        effect: Effect,
    ) -> Result<(), Violation> {
        let Some(mut place) = model.place else {
            return Err("a write is executed in no epoch".to_owned());
        };
        let digest = self.digest_at(model.place)?;
        let Some(epoch) = self.epochs.get_mut(&place.epoch) else {
            return Err(format!(
                "a write is executed in {place:?}, which nobody opened"
            ));
        };
        if epoch.author != author {
            return Err(format!(
                "a write is executed in {place:?} by process {author}, and not by {}, which opened that epoch",
                epoch.author
            ));
        }
        let digest_of = |key: &[u8], value: Option<&Rc<[u8]>>| {
            value.map_or(Digest::EMPTY, |value| {
                let mut frame = Vec::new();
                let (encoded, value) = (&mut frame, &value[..]);
                Request::Set { key, value }
                    .encode(encoded)
                    .expect("it came in a frame");
                Digest::of_frame(&frame)
            })
        };
        let (key, new) = match &effect {
            Effect::Epoch => unreachable!("it is opened"),
            Effect::Set(key, value) => (key.clone(), Some(value.clone())),
            Effect::Del(key) => (key.clone(), None),
        };
        let old = model.map.get(&key);
        let digest = digest.changed(digest_of(&key, old), digest_of(&key, new.as_ref()));
        match new {
            Some(value) => drop(model.map.insert(key, value)),
            None => drop(model.map.remove(&key)),
        }
        epoch.records.push(Record {
            effect,
            digest,
            number,
        });
        place.index += 1;
        model.place = Some(place);
        if self.last_of(place.epoch) != place.index {
            let last = self.last_of(place.epoch) - 1;
            return Err(format!(
                "a write is executed at {place:?}, and record {last} was before it"
            ));
        }
        if let Some(number) = number
            && let Some(before) = self.executed.insert(number, place)
        {
            return Err(format!(
                "request #{number} is executed at {place:?}, and was at {before:?}"
            ));
        }
        Ok(())
    }

    /// Where a request was executed.
    pub(super) fn place_of_request(&self, number: Number) -> Option<Place> {
        self.executed.get(&number).copied()
    }

    /// The requests whose records a data set at `place` has, and one at each of `others` has not.
    pub(super) fn only_at(&self, place: Place, others: &[Place]) -> Vec<Number> {
        let is_elsewhere = |record: Place| others.iter().any(|other| self.holds(*other, record));
        let mut found = Vec::new();
        let mut at = place;
        while at.index > 0 && !is_elsewhere(at) {
            let Ok(record) = self.record(at, at.index) else {
                break;
            };
            found.extend(record.number);
            at.index -= 1;
            let epoch = &self.epochs[&at.epoch];
            if at.index < epoch.start_index {
                match epoch.parent {
                    Some(parent) => at.epoch = parent,
                    None => break,
                }
            }
        }
        found
    }
}

impl Model {
    /// The value of a key.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.map.get(key).map(|value| &value[..])
    }

    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::{Limits, Parsed, parse};

    fn history(epochs: &[(u64, u64, u64)]) -> History {
        let starts = epochs
            .iter()
            .map(|&(epoch, nonce, start_index)| EpochStart {
                epoch,
                nonce,
                start_index,
            });
        History::new(starts.collect()).unwrap()
    }

    fn answer(
        truth: &mut Truth,
        author: usize,
        model: &mut Model,
        request: Request<'_>,
        answer: (Status, &str),
    ) -> Result<(), Violation> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        let Ok(Parsed::Whole(frame)) = parse(&bytes, &Limits::default()) else {
            panic!("it is whole");
        };
        let number = Some(truth.executed.len());
        truth.executed(author, model, number, &frame, answer.0, answer.1.as_bytes())
    }

    fn set<'a>(value: &'a str) -> Request<'a> {
        Request::Set {
            key: b"k",
            value: value.as_bytes(),
        }
    }

    #[test]
    fn it_knows_the_data_set_of_each_position_and_who_wrote_it() {
        let mut truth = Truth::default();
        let first = history(&[(1, 7, 1)]);
        truth.open(0, &first).unwrap();
        let mut model = Model::default();
        truth
            .advance(&mut model, Truth::place_of(&first, 1))
            .unwrap();
        let get = Request::Get { key: b"k" };
        answer(&mut truth, 0, &mut model, set("a"), (Status::Ok, "")).unwrap();
        answer(&mut truth, 0, &mut model, set("b"), (Status::Ok, "")).unwrap();
        answer(&mut truth, 0, &mut model, get, (Status::Ok, "b")).unwrap();
        let stale = answer(&mut truth, 0, &mut model, get, (Status::Ok, "a"));
        assert!(stale.unwrap_err().contains("and is b at"));
        let other = answer(&mut truth, 1, &mut model, set("c"), (Status::Ok, ""));
        assert!(other.unwrap_err().contains("by process 1, and not by 0"));
        // A second epoch begins behind the first write.
        let second = history(&[(1, 7, 1), (2, 8, 3)]);
        truth.open(1, &second).unwrap();
        assert!(
            truth
                .open(2, &second)
                .unwrap_err()
                .contains("was by process 1 before")
        );
        truth.check_history(&second).unwrap();
        let wrong = truth.check_history(&history(&[(1, 7, 1), (2, 8, 2)]));
        assert!(wrong.unwrap_err().contains("at 2, not at 3"));
        let mut other = Model::default();
        truth
            .advance(&mut other, Truth::place_of(&second, 3))
            .unwrap();
        assert_eq!(other.value(b"k"), Some(&b"a"[..]));
        let del = Request::Del { key: b"k" };
        answer(&mut truth, 1, &mut other, del, (Status::Ok, "")).unwrap();
        answer(&mut truth, 1, &mut other, get, (Status::NotFound, "")).unwrap();
        let (left, right) = (model.place.unwrap(), other.place.unwrap());
        assert_eq!(truth.only_at(left, &[right]), [1]);
        assert_eq!(truth.only_at(right, &[left]), [2]);
        assert!(truth.check_digest(right, Digest::EMPTY).is_ok());
        assert!(truth.check_digest(left, Digest::EMPTY).is_err());
    }
}
