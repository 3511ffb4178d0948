//! A simulated node: its data set, its log, and its stream from the leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::history::{EpochStart, History};
use gopherstore::log::Head;
use gopherstore::log::append_times::AppendTimes;
use gopherstore::log::backlog::{After, Append, Backlog, Records};
use gopherstore::replication::core::liveness::{Liveness, SILENT_HEARTBEATS};
use gopherstore::replication::core::progress::Progress;
use gopherstore::replication::core::rules::{Position, SnapshotRule};
use gopherstore::replication::core::snapshot_permits::{Permit, SnapshotPermits};
use gopherstore::wire::request::{Limits, Parsed, parse};
use gopherstore::wire::{Opcode, Request};

use crate::world::HEARTBEAT;

/// The state of a node's data set.
#[derive(PartialEq, Eq)]
pub(crate) enum Phase {
    Loading(Arc<str>),
    Serving,
    Refusing(Arc<str>),
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) is_running: bool,
    pub(crate) is_cut_off: bool,
    pub(crate) phase: Phase,
    pub(crate) history: History,
    /// Whether it was ordered to give up its data.
    pub(crate) discards: bool,
    /// Whether it found its data to be wrong.
    pub(crate) has_diverged: bool,
    pub(crate) map: BTreeMap<Vec<u8>, Entry>,
    pub(crate) head: Head,
    pub(crate) log: Backlog,
    pub(crate) times: AppendTimes,
    pub(crate) liveness: Liveness,
    /// Of a follower: its connection to the leader.
    pub(crate) link: Option<Link>,
    /// Of the leader.
    pub(crate) followers: BTreeMap<usize, Progress>,
    pub(crate) permits: SnapshotPermits,
}

pub(crate) struct Link {
    /// Next index that the leader sends.
    pub(crate) next: u64,
    pub(crate) heard: Instant,
    pub(crate) copy: Option<Copy>,
    /// Sent, and not applied yet.
    pub(crate) on_its_way: VecDeque<Entry>,
}

pub(crate) struct Copy {
    pub(crate) rule: SnapshotRule,
    pub(crate) partition: usize,
    pub(crate) history: History,
    pub(crate) _permit: Permit,
}

/// A SET, or without a value a DEL.
pub(crate) fn entry(key: &str, value: Option<&str>) -> Entry {
    let key = key.as_bytes();
    // `a=1+` is a large entry, which lies in the log by itself.
    let len = if value.is_some_and(|value| value.ends_with('+')) {
        40_000
    } else {
        0
    };
    let value = value.map(|value| format!("{value:len$}"));
    let request = match &value {
        Some(value) => Request::Set {
            key,
            value: value.as_bytes(),
        },
        None => Request::Del { key },
    };
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    match parse(&bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => Entry::copy_of(&frame),
        Parsed::Incomplete { .. } => unreachable!(),
    }
}

/// The content of a log at an index.
pub(crate) enum Next {
    Entry(Entry),
    Nothing,
    Gone,
}

pub(crate) fn entry_at(log: &Backlog, index: u64) -> Next {
    let mut frame = Vec::new();
    match log.read(index, 0, &mut frame) {
        After::Large(entry, _) => Next::Entry(entry),
        After::Small(..) => match parse(&frame, &Limits::default()).unwrap() {
            Parsed::Whole(frame) => Next::Entry(Entry::copy_of(&frame)),
            Parsed::Incomplete { .. } => unreachable!(),
        },
        After::Nothing => Next::Nothing,
        After::Gone => Next::Gone,
    }
}

pub(crate) fn is_del(entry: &Entry) -> bool {
    matches!(
        parse(entry.frame(), &Limits::default()),
        Ok(Parsed::Whole(frame)) if matches!(frame.request(), Request::Del { .. })
    )
}

/// The epoch that the record at `index` begins, where it is an EPOCH.
fn epoch_of(entry: &Entry, index: u64) -> Option<EpochStart> {
    let Ok(Parsed::Whole(frame)) = parse(entry.frame(), &Limits::default()) else {
        return None;
    };
    let Request::Epoch { value } = frame.request() else {
        return None;
    };
    let [epoch, nonce] = Opcode::Epoch.spec().operands_of(value).unwrap();
    Some(EpochStart {
        epoch,
        nonce,
        start_index: index,
    })
}

/// The record with which an epoch begins.
pub(crate) fn epoch_entry(start: EpochStart) -> Entry {
    let value = &Opcode::Epoch.spec().value_of([start.epoch, start.nonce]);
    let mut bytes = Vec::new();
    Request::Epoch { value }.encode(&mut bytes).unwrap();
    match parse(&bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => Entry::copy_of(&frame),
        Parsed::Incomplete { .. } => unreachable!(),
    }
}

pub(crate) fn text(entry: &Entry) -> String {
    let key = String::from_utf8_lossy(entry.key()).into_owned();
    if is_del(entry) {
        format!("del {key}")
    } else {
        format!(
            "{key}={}",
            String::from_utf8_lossy(entry.value()).trim_end()
        )
    }
}

impl Node {
    pub(crate) fn new(name: String, backlog: u64, names: &[String], now: Instant) -> Node {
        let peers = names.iter().filter(|peer| **peer != name).cloned();
        Node {
            liveness: Liveness::new(peers, HEARTBEAT * SILENT_HEARTBEATS, now),
            name,
            is_running: true,
            is_cut_off: false,
            phase: Phase::Loading("no complete data set yet".into()),
            history: History::default(),
            discards: false,
            has_diverged: false,
            map: BTreeMap::new(),
            head: Head::default(),
            log: Backlog::new(backlog),
            times: AppendTimes::default(),
            link: None,
            followers: BTreeMap::new(),
            permits: SnapshotPermits::default(),
        }
    }

    pub(crate) fn position(&self) -> Position {
        Position::of(&self.history, self.head.index)
    }

    /// Changes the data and gives the digest after it.
    pub(crate) fn change(&mut self, entry: &Entry, digest: Digest) -> Digest {
        let (old, new) = if is_del(entry) {
            (self.map.remove(entry.key()), Digest::EMPTY)
        } else {
            let old = self.map.insert(entry.key().to_vec(), entry.clone());
            (old, Digest::of(entry))
        };
        digest.changed(old.as_ref().map(Digest::of).unwrap_or_default(), new)
    }

    pub(crate) fn apply(&mut self, entry: &Entry, now: Instant) {
        self.head.index += 1;
        match epoch_of(entry, self.head.index) {
            Some(start) => self.history.push(start).unwrap(),
            None => self.head.digest = self.change(entry, self.head.digest),
        }
        self.log.push(&Append {
            records: Records::Entry(entry.clone()),
            count: 1,
            digest: self.head.digest,
        });
        self.times.note(self.head.index, self.head.index, now);
    }

    pub(crate) fn serves(&self) -> bool {
        !matches!(self.phase, Phase::Loading(_))
    }

    /// As `Node::adopt`.
    pub(crate) fn adopt(&mut self) {
        self.phase = Phase::Serving;
        self.discards = false;
        self.has_diverged = false;
    }

    /// As `Node::discard_dataset`.
    pub(crate) fn discard_dataset(&mut self) {
        self.history = History::default();
        self.phase = Phase::Loading("receiving a full copy".into());
        self.map.clear();
        self.head.digest = Digest::EMPTY;
    }

    /// As `Sequencer::reset`.
    pub(crate) fn reset_log(&mut self, index: u64, history: History, now: Instant) {
        let digest = self.head.digest;
        self.head.index = index;
        self.times.reset(index, now);
        let last = history.last_records(index);
        self.log
            .reset(index - u64::try_from(last.len()).unwrap(), digest);
        for start in last {
            self.log.push(&Append {
                records: Records::Entry(epoch_entry(*start)),
                count: 1,
                digest,
            });
        }
        self.history = history;
    }
}
