//! The truth about a run: every record that was ever written, and what follows from it.
//!
//! A record is known from the answer to the request that made it, by a rule of its own that knows nothing of the store
//! or the log. The log has to have that record next; a leader adds others by itself where entries have expired. The
//! records of all epochs are a tree: an epoch begins behind a record of another one. So for each position, `(epoch,
//! nonce, index)`, the truth has the one data set that it names, and its digest.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use super::load::Number;
use super::reference::{At, Effect, Effects, Expected, Item};
use super::trace::line_of;
use crate::engine::digest::Digest;
use crate::history::{EpochStart, History};
use crate::log::tap;
use crate::wire::batch::Batch;
use crate::wire::expiry::DEADLINE_LEN;
use crate::wire::request::{RequestFrame, frames};
use crate::wire::{Opcode, Status, Token};

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
    map: BTreeMap<Rc<[u8]>, Item>,
}

/// A record, and the data set after it.
#[derive(Clone, Debug)]
struct Record {
    /// None of an EPOCH.
    changes: Effects,
    digest: Digest,
    /// The request that made it.
    number: Option<Number>,
}

/// A process that executes requests.
pub(super) struct Executing<'m> {
    /// Its number.
    pub(super) process: usize,
    /// Its data set.
    pub(super) model: &'m mut Model,
    /// The entries that it has logged.
    pub(super) written: &'m mut Written,
    /// The time of its clock, in milliseconds.
    pub(super) now: u64,
    /// The rule for writes for which there is no memory.
    pub(super) limit: Limit,
}

/// The memory limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    None,
    /// Writes are answered by FULL.
    Refuses,
    /// Other entries are removed, and only writes that are too large are answered by FULL.
    Evicts,
}

/// Records that a process has logged, and that the truth does not know yet.
#[derive(Debug, Default)]
pub(super) struct Written {
    frames: Vec<u8>,
    /// Bytes that are known.
    known: usize,
}

impl Written {
    /// Takes what was logged since the last call.
    pub(super) fn gather(&mut self) {
        if self.known == self.frames.len() {
            self.frames.clear();
            self.known = 0;
        }
        self.frames.append(&mut tap::take());
    }

    fn rest(&self) -> &[u8] {
        &self.frames[self.known..]
    }

    /// The next record.
    fn next(&self) -> Option<&[u8]> {
        frames(self.rest()).next().map(|frame| frame.bytes())
    }

    fn pass(&mut self) {
        self.known += self.next().map_or(0, <[u8]>::len);
    }
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
            changes: Vec::new(),
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
            for (key, effect) in &self.record(place, index)?.changes {
                model.change(key, effect);
            }
        }
        model.place = Some(place);
        Ok(())
    }

    /// A process has executed a request, and its answer is this. The model is the node's data set before it, and then
    /// the one after it.
    pub(super) fn executed(
        &mut self,
        by: &mut Executing<'_>,
        number: Option<Number>,
        frame: &RequestFrame<'_>,
        (status, value): (Status, &[u8]),
    ) -> Result<(), Violation> {
        match status {
            Status::NotLeader
            | Status::Loading
            | Status::Timeout
            | Status::Lost
            | Status::Compacted => return Ok(()),
            Status::Full if by.limit != Limit::None => {
                return if may_be_full(by, frame) {
                    Ok(())
                } else {
                    let name = frame.opcode().name();
                    Err(format!("{name} is answered by FULL, and needs no memory"))
                };
            }
            Status::Full | Status::Ok | Status::NotFound | Status::Conflict | Status::Error => {}
        }
        let key = frame.key();
        loop {
            let last = by.model.place.map(|place| Token {
                epoch: place.epoch.0,
                index: place.index,
                nonce: place.epoch.1,
            });
            let token = last.map(|last| Token {
                index: last.index + 1,
                ..last
            });
            let at = At {
                now: by.now,
                token,
                last,
            };
            let expected = Expected::of(frame, |key| by.model.map.get(key), at);
            let is_right = (expected.status, &expected.value[..]) == (status, value);
            let is_batch = frame.opcode() == Opcode::Batch;
            if is_right && expected.is_recorded(is_batch, by.written.next()) {
                if expected.effects.is_empty() {
                    return Ok(());
                }
                by.written.pass();
                return self.add(by, number, expected.effects);
            }
            // The node may have removed something before.
            if self.removed(by)? {
                continue;
            }
            let (name, place, now) = (frame.opcode().name(), by.model.place, by.now);
            let (key, value) = (key.escape_ascii(), value.escape_ascii());
            let right = expected.value.escape_ascii();
            let (status, due) = (status.name(), expected.status.name());
            return Err(format!(
                "{name} {key} is answered by {status} {value:.80}, and is {due} {right:.80} at {place:?}, {now} ms; \
                 its effects are {:.300?}, and the next record is {}",
                expected.effects,
                line_of(by.written.next().unwrap_or_default())
            ));
        }
    }

    /// All requests that a process was asked are judged: the records that are left are of its own.
    pub(super) fn settled(&mut self, by: &mut Executing<'_>) -> Result<(), Violation> {
        while self.removed(by)? {}
        match by.written.next() {
            None => Ok(()),
            Some(record) => Err(format!(
                "it has written {}, and was not asked to, at {:?}, {} ms",
                line_of(record),
                by.model.place,
                by.now
            )),
        }
    }

    /// Takes the next record where it removes an entry that a leader may remove by itself: one that has expired, or any
    /// where entries are evicted.
    fn removed(&mut self, by: &mut Executing<'_>) -> Result<bool, Violation> {
        let Some(frame) = frames(by.written.rest()).next() else {
            return Ok(false);
        };
        let key = Rc::from(frame.key());
        let may_remove = |item: &Item| by.limit == Limit::Evicts || item.has_expired(by.now);
        if frame.opcode() != Opcode::Del || !by.model.map.get(&key).is_some_and(may_remove) {
            return Ok(false);
        }
        by.written.pass();
        self.add(by, None, vec![(key, Effect::Remove)])?;
        Ok(true)
    }

    /// Adds a record behind the model's position.
    fn add(
        &mut self,
        by: &mut Executing<'_>,
        number: Option<Number>,
        changes: Effects,
    ) -> Result<(), Violation> {
        let Some(mut place) = by.model.place else {
            return Err("a write is executed in no epoch".to_owned());
        };
        let mut digest = self.digest_at(by.model.place)?.to_u128();
        let Some(epoch) = self.epochs.get_mut(&place.epoch) else {
            return Err(format!(
                "a write is executed in {place:?}, which nobody opened"
            ));
        };
        if epoch.author != by.process {
            return Err(format!(
                "a write is executed in {place:?} by process {}, and not by {}, which opened that epoch",
                by.process, epoch.author
            ));
        }
        for (key, effect) in &changes {
            let hash = |item: Option<&Item>| item.map_or(0, |item| item.hash(key));
            let before = hash(by.model.map.get(key));
            by.model.change(key, effect);
            let after = hash(by.model.map.get(key));
            digest = digest.wrapping_sub(before).wrapping_add(after);
        }
        epoch.records.push(Record {
            changes,
            digest: Digest::from_u128(digest),
            number,
        });
        place.index += 1;
        by.model.place = Some(place);
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

    /// The last record up to `place` that changed a key.
    pub(super) fn last_change(&self, place: Place, key: &[u8]) -> Option<Place> {
        let mut at = place;
        while at.index > 0 {
            let changes = &self.record(at, at.index).ok()?.changes;
            if changes.iter().any(|(changed, _)| **changed == *key) {
                return Some(at);
            }
            at.index -= 1;
            let epoch = self.epochs.get(&at.epoch)?;
            if at.index < epoch.start_index {
                at.epoch = epoch.parent?;
            }
        }
        None
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

/// Whether a request may need memory beyond that of the entries that it replaces (GBP §7).
fn may_be_full(by: &Executing<'_>, frame: &RequestFrame<'_>) -> bool {
    let item = by.model.item(frame.key());
    // An entry that has expired or was evicted may be removed already.
    let item = item.filter(|item| !item.has_expired(by.now) && by.limit == Limit::Refuses);
    match frame.opcode() {
        Opcode::Set => item.is_none_or(|item| item.value.len() < frame.value().len()),
        Opcode::SetAt => item.is_none_or(|item| {
            let len = frame.value().len() - DEADLINE_LEN;
            item.deadline.is_none() || item.value.len() < len
        }),
        Opcode::Expire => item.is_none_or(|item| item.deadline.is_none()),
        Opcode::Put | Opcode::Add => true,
        Opcode::Batch => Batch::decode(frame.value()).is_ok_and(|batch| {
            let mut opcodes = batch.frames().iter().map(RequestFrame::opcode);
            opcodes
                .any(|opcode| opcode.spec().writes && !matches!(opcode, Opcode::Del | Opcode::Take))
        }),
        Opcode::Get
        | Opcode::Del
        | Opcode::Ping
        | Opcode::Take
        | Opcode::Ttl
        | Opcode::Scan
        | Opcode::Sync
        | Opcode::Watch
        | Opcode::Status
        | Opcode::Discard
        | Opcode::Sums
        | Opcode::List
        | Opcode::Snapshot
        | Opcode::Follow
        | Opcode::Epoch => false,
    }
}

impl Model {
    fn change(&mut self, key: &Rc<[u8]>, effect: &Effect) {
        match effect.on(self.map.get(key)) {
            Some(item) => drop(self.map.insert(Rc::clone(key), item)),
            None => drop(self.map.remove(key)),
        }
    }

    /// Its position.
    pub(super) const fn place(&self) -> Option<Place> {
        self.place
    }

    /// The value of a key, and its deadline.
    pub(super) fn item(&self, key: &[u8]) -> Option<&Item> {
        self.map.get(key)
    }

    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}
