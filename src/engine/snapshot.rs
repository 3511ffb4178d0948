//! Snapshots: the data set, copied out partition by partition beside writers, and loaded again.

use std::hint::black_box;
use std::time::Instant;

use arrayvec::ArrayVec;

use super::Engine;
use super::change::Change;
use super::command::Record;
use super::digest::Digest;
use super::entry::{Entry, SHORT_BYTES};
use super::store::Store;
use crate::history::History;
use crate::log::Head;
use crate::wire::RequestFrame;
use crate::wire::request::{HEADER_LEN, frames};
use crate::wire::run::RUN_MAX;

/// Entries of a snapshot that are stored together: a few dozen for each partition.
const STAGED_MAX: usize = 1 << 15;

/// Bytes of their frames, about. A key may come several times, and each time counts until the entries are stored.
const STAGED_BYTES_MAX: usize = 4 << 20;

/// Keys that a load makes room for in advance, whatever was announced: half a gigabyte of empty table.
const EXPECTED_MAX: usize = 1 << 26;

/// The entries of one partition at one moment, in no order ([`Engine::copy_partition`]).
#[derive(Debug, Default)]
pub struct PartitionCopy {
    len: usize,
    short: Vec<u8>,
    long: Vec<Entry>,
}

impl PartitionCopy {
    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frames of the short entries, one after another.
    #[must_use]
    pub fn short(&self) -> &[u8] {
        &self.short
    }

    /// The [long](Entry::is_long) entries.
    #[must_use]
    pub fn long(&self) -> &[Entry] {
        &self.long
    }

    /// The frames of all entries.
    pub fn frames(&self) -> impl Iterator<Item = RequestFrame<'_>> {
        let long = self.long.iter();
        frames(&self.short).chain(long.flat_map(|entry| frames(entry.frame())))
    }
}

impl Store {
    /// Replaces the contents of `copy` by the entries of one partition, and returns what `at` returns while nothing
    /// writes there. A caller that copies one partition after another passes the same `copy`: getting memory from the
    /// system takes longer than filling it, and the partition is locked meanwhile.
    pub fn copy_partition<T>(
        &self,
        partition: usize,
        copy: &mut PartitionCopy,
        at: impl FnOnce() -> T,
    ) -> T {
        let PartitionCopy { len, short, long } = copy;
        short.clear();
        long.clear();
        let entries = self.read_partition(partition);
        *len = entries.table.len();
        let bytes = usize::try_from(entries.sizes.bytes()).unwrap_or(usize::MAX);
        // The most that short entries can take.
        short.reserve(bytes.min(*len * SHORT_BYTES) + *len * HEADER_LEN);
        let mut rest = entries.table.iter();
        loop {
            // As in a run: the processor overlaps the misses.
            let some: ArrayVec<&Entry, RUN_MAX> = rest.by_ref().take(RUN_MAX).collect();
            if some.is_empty() {
                return at();
            }
            black_box(some.iter().fold(0, |sum, entry| sum ^ entry.touch()));
            for entry in some {
                if entry.is_long() {
                    long.push(entry.clone());
                } else {
                    short.extend_from_slice(entry.frame());
                }
            }
        }
    }

    /// Keeps `entry` to be stored with others.
    pub fn stage(&self, staged: &mut Staged, entry: Entry) {
        staged.entries.push(StagedEntry {
            hash: self.hash(entry.key()),
            entry: Some(entry),
        });
    }

    /// Stores everything that is staged, as if one entry after another in the order in which they came. Calls
    /// `replaced` with each entry that was replaced, while nothing is locked.
    pub fn put_staged(&self, staged: &mut Staged, mut replaced: impl FnMut(&Entry)) {
        let Staged {
            entries: all,
            ends,
            order,
        } = staged;
        ends.clear();
        ends.resize(self.partitions() + 1, 0);
        for entry in &*all {
            ends[usize::from(self.place(entry.hash)) + 1] += 1;
        }
        for at in 1..ends.len() {
            ends[at] += ends[at - 1];
        }
        order.clear();
        order.resize(all.len(), 0);
        for (at, entry) in all.iter().enumerate() {
            // The end of the partition before it becomes the partition's own.
            let end = &mut ends[usize::from(self.place(entry.hash))];
            order[*end] = at;
            *end += 1;
        }
        let mut start = 0;
        for (partition, &end) in (0..self.partitions()).zip(&*ends) {
            if start == end {
                continue;
            }
            let entries = &mut *self.write_partition(partition);
            for &at in &order[start..end] {
                let StagedEntry { hash, entry } = &mut all[at];
                if let Some(new) = entry.take() {
                    let put = self.put_entry(entries, *hash, new, &mut Change::unlogged());
                    *entry = put.unwrap_or_default();
                }
            }
            start = end;
        }
        for entry in all.drain(..) {
            entry.entry.iter().for_each(&mut replaced);
        }
    }
}

/// Entries that are to be stored together ([`Store::put_staged`]). Nothing is allocated or locked between two of one
/// partition, so the processor overlaps the misses of many.
#[derive(Debug, Default)]
pub struct Staged {
    /// In the order in which they came.
    entries: Vec<StagedEntry>,
    /// The end of each partition's entries in `order`; one more than there are partitions.
    ends: Vec<usize>,
    /// Indexes of `entries`, by partition, and within one in the order in which they came.
    order: Vec<usize>,
}

#[derive(Debug)]
struct StagedEntry {
    hash: u64,
    /// The entry that it has replaced, once it is stored.
    entry: Option<Entry>,
}

impl Staged {
    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Engine {
    /// Copies the entries of one partition ([`Store::copy_partition`]). Returns the index of the log at that moment.
    pub fn copy_partition(&self, partition: usize, copy: &mut PartitionCopy) -> u64 {
        self.store
            .copy_partition(partition, copy, || self.head().index)
    }

    /// Removes the data set and begins to load a snapshot of about `keys` entries. No request is admitted, and nothing
    /// else loads or applies.
    #[must_use]
    pub fn load(&self, keys: u64) -> Load<'_> {
        self.clear();
        let expected = usize::try_from(keys).unwrap_or(usize::MAX);
        self.store.reserve(expected.min(EXPECTED_MAX));
        Load {
            engine: self,
            digest: Digest::EMPTY,
            staged: Staged::default(),
            staged_bytes: 0,
        }
    }
}

/// A snapshot that is being loaded.
#[derive(Debug)]
pub struct Load<'e> {
    engine: &'e Engine,
    /// Of everything that came, staged or stored. It counts entries that staged ones will replace as well.
    digest: Digest,
    staged: Staged,
    /// Bytes of the staged frames.
    staged_bytes: usize,
}

impl<'e> Load<'e> {
    /// Another part of the same load, which another thread may add to. No key is in two of the parts, and each part is
    /// [added](Self::join) in the end.
    #[must_use]
    pub fn part(&self) -> Load<'e> {
        Load {
            engine: self.engine,
            digest: Digest::EMPTY,
            staged: Staged::default(),
            staged_bytes: 0,
        }
    }

    /// Stores everything that was added to `part`, which counts as added to this one.
    pub fn join(&mut self, mut part: Load<'e>) {
        part.flush();
        self.digest = self.digest.plus(part.digest);
    }

    /// Adds SET, SETAT, DEL and EXPIRE frames in their order.
    pub fn add<'a>(&mut self, frames: impl Iterator<Item = RequestFrame<'a>>) {
        for frame in frames {
            let (key, store) = (frame.key(), &self.engine.store);
            match Record::of(&frame) {
                Record::Put => {
                    self.digest = self.digest.plus(Digest::of_frame(frame.bytes()));
                    let entry = Entry::copy_of(&frame);
                    store.stage(&mut self.staged, entry);
                    self.staged_bytes += frame.bytes().len();
                }
                Record::Remove => {
                    self.flush();
                    let old = store.remove(key);
                    let old = old.as_ref().map(Digest::of).unwrap_or_default();
                    self.digest = self.digest.changed(old, Digest::EMPTY);
                }
                Record::Expire(deadline) => {
                    self.flush();
                    // Nothing reads or writes meanwhile, so the copy of a long entry takes nobody's time.
                    let old = store.get(key);
                    let new = old.as_ref().map(|old| old.with_deadline(deadline));
                    if let (Some(old), Some(Ok(new))) = (old, new) {
                        let of = |entry: &Entry| Digest::of_deadline(key, entry.deadline());
                        self.digest = self.digest.changed(of(&old), of(&new));
                        store.set(new);
                    }
                }
                Record::Batch => unreachable!("a snapshot has the effects of a batch one by one"),
                Record::Epoch => unreachable!("a snapshot has its epochs in its history"),
            }
        }
        if self.staged.len() >= STAGED_MAX || self.staged_bytes >= STAGED_BYTES_MAX {
            self.flush();
        }
    }

    /// Stores everything that was added.
    pub fn flush(&mut self) {
        let sum = &mut self.digest;
        self.engine.store.put_staged(&mut self.staged, |old| {
            *sum = sum.changed(Digest::of(old), Digest::EMPTY);
        });
        self.staged_bytes = 0;
    }

    /// Ends the load of a snapshot whose digest is not known. Unless it `is_exact`, its parts are of different
    /// moments: each entry is that of `index` or of a later one, and [`Engine::replay`] makes the data set exact. The
    /// log goes on after `index`, with this history.
    pub fn finish_unchecked(&mut self, index: u64, is_exact: bool, history: History, now: Instant) {
        self.flush();
        if let Some(sequencer) = &self.engine.sequencer {
            let epoch = history.last().map_or(0, |start| start.epoch);
            self.engine.gate.set_epoch(epoch);
            let digest = self.digest;
            let head = Head { index, digest };
            if is_exact {
                sequencer.reset(head, history, now);
            } else {
                sequencer.reset_inexact(head, history, now);
            }
        }
    }

    /// Ends the load: the log goes on after `index`, with this history. Returns whether the data set has this digest;
    /// where it has not, the log stays empty.
    pub fn finish(&mut self, index: u64, digest: Digest, history: History, now: Instant) -> bool {
        self.flush();
        let is_whole = self.digest == digest;
        #[cfg(test)]
        let is_whole = is_whole || crate::planted::is(crate::planted::Fault::DigestNotCompared);
        if is_whole && let Some(sequencer) = &self.engine.sequencer {
            let epoch = history.last().map_or(0, |start| start.epoch);
            self.engine.gate.set_epoch(epoch);
            let changed = index;
            #[cfg(test)]
            let changed = if crate::planted::is(crate::planted::Fault::CopyShownAtOnce) {
                0
            } else {
                changed
            };
            self.engine.store.note_loaded(changed);
            sequencer.reset(Head { index, digest }, history, now);
        }
        is_whole
    }
}
