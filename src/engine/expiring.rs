//! The deadlines of one partition's entries, the earliest first.
//!
//! A heap holds items of a deadline and the hash of a key, 16 bytes each. It is corrected lazily: a deadline that is
//! put off leaves its item as it is, and an entry that is removed leaves its item behind. An item states when its entry
//! is looked at next, and nothing else.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Items that a change looks at while stale ones are cleaned away.
const CLEANED_PER_CHANGE: usize = 8;

/// Stale items that are always allowed beside as many as there are entries with a deadline.
const STALE_MIN: usize = 64;

/// Capacity in items below which a heap does not shrink.
const CAPACITY_MIN: usize = 64;

/// An entry of this hash is looked at when this deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    /// Milliseconds since 1970 UTC.
    pub(super) deadline: u64,
    /// Of the entry's key.
    pub(super) hash: u64,
}

/// The deadlines of the entries of one partition.
///
/// # Invariants
///
/// 1. For each hash whose entries have deadlines, there is an item whose deadline is not later than the earliest of
///    them.
/// 2. There are at most four times as many items as entries with a deadline, plus 256: beyond twice as many,
///    each change cleans a few items away.
///
/// # Cleaning
///
/// The heap becomes `old`, and a new one begins. Each change moves the first items of `old` to the new heap: with the
/// deadline that their entry has, and not twice. They come in ascending order, so equal ones follow each other, and
/// each is added to the new heap in a few instructions.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    /// Entries with a deadline.
    live: usize,
    items: BinaryHeap<Reverse<Item>>,
    /// Items that are not cleaned yet; empty while nothing is to be cleaned.
    old: BinaryHeap<Reverse<Item>>,
    /// The last item that was moved from `old`.
    moved: Option<Item>,
}

impl Expiring {
    /// Number of entries with a deadline.
    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Bytes of memory that the heap takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let heaps = [&self.items, &self.old];
        let items: usize = heaps.into_iter().map(BinaryHeap::capacity).sum();
        u64::try_from(size_of::<Expiring>() + items * size_of::<Item>()).unwrap_or(u64::MAX)
    }

    /// Number of items.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.items.len() + self.old.len()
    }

    /// The item with the earliest deadline.
    pub(super) fn first(&self) -> Option<Item> {
        let first = |heap: &BinaryHeap<Reverse<Item>>| heap.peek().map(|&Reverse(item)| item);
        match (first(&self.items), first(&self.old)) {
            (Some(new), Some(old)) => Some(new.min(old)),
            (new, old) => new.or(old),
        }
    }

    /// The deadline of an entry of `hash` was `old` and is `new`; `None` where it had or has none, or is not there.
    /// `earliest` returns the earliest deadline of the entries of a hash, after the change.
    pub(super) fn change(
        &mut self,
        hash: u64,
        old: Option<u64>,
        new: Option<u64>,
        earliest: impl Fn(u64) -> Option<u64>,
    ) {
        match (old, new) {
            (None, None) => return,
            (None, Some(deadline)) => {
                self.live += 1;
                self.push(Item { deadline, hash });
            }
            (Some(old), Some(deadline)) if deadline < old => self.push(Item { deadline, hash }),
            // An item that is not later than the old deadline is not later than the new one either.
            (Some(_), Some(_)) => return,
            (Some(_), None) => self.live -= 1,
        }
        self.clean(earliest);
    }

    /// An entry is removed whose deadline was that of the [first](Self::first) item, or before it.
    pub(super) const fn remove(&mut self) {
        self.live -= 1;
    }

    /// Removes the [first](Self::first) item, whose deadline has passed and whose entries of an earlier deadline are
    /// removed. `earliest` is the earliest deadline of the others of its hash.
    pub(super) fn correct_first(&mut self, earliest: Option<u64>) {
        let is_old = match (self.items.peek(), self.old.peek()) {
            // The heaps are of reversed order.
            (Some(new), Some(old)) => old > new,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let heap = if is_old {
            &mut self.old
        } else {
            &mut self.items
        };
        if let Some(Reverse(Item { hash, .. })) = heap.pop()
            && let Some(deadline) = earliest
        {
            heap.push(Reverse(Item { deadline, hash }));
        }
    }

    /// Where the heap is sparse: the number of items that [`shrink_into`](Self::shrink_into) is to be given memory for.
    pub(super) fn to_shrink(&self) -> Option<usize> {
        let (len, capacity) = (self.items.len(), self.items.capacity());
        (capacity > CAPACITY_MIN && len < capacity / 8).then_some(len * 2)
    }

    /// Moves the items into this memory, where they have room there. Returns memory that is free.
    pub(super) fn shrink_into(&mut self, mut memory: Vec<Reverse<Item>>) -> Vec<Reverse<Item>> {
        if memory.capacity() < self.items.len() {
            return memory;
        }
        let old = std::mem::take(&mut self.items).into_vec();
        memory.extend_from_slice(&old);
        self.items = BinaryHeap::from(memory);
        old
    }

    fn push(&mut self, item: Item) {
        self.items.push(Reverse(item));
    }

    /// Cleans a few items where there are too many stale ones.
    fn clean(&mut self, earliest: impl Fn(u64) -> Option<u64>) {
        if self.old.is_empty() {
            if self.items.len() <= 2 * self.live + STALE_MIN {
                return;
            }
            self.old = std::mem::take(&mut self.items);
            self.moved = None;
        }
        for _ in 0..CLEANED_PER_CHANGE {
            let Some(Reverse(item)) = self.old.pop() else {
                break;
            };
            let Some(deadline) = earliest(item.hash) else {
                continue;
            };
            match deadline.cmp(&item.deadline) {
                // Corrected, it comes again beside others of its entry.
                Ordering::Greater => self.old.push(Reverse(Item { deadline, ..item })),
                Ordering::Equal if self.moved != Some(item) => {
                    self.moved = Some(item);
                    self.push(item);
                }
                // There is another item for the entry.
                Ordering::Equal | Ordering::Less => {}
            }
        }
        if self.old.is_empty() {
            self.old = BinaryHeap::new();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Entries with the deadlines that they have, and the heap that is to know of them. A few keys share a hash.
    #[derive(Default)]
    struct Model {
        entries: BTreeMap<u64, u64>,
        expiring: Expiring,
        now: u64,
    }

    fn hash(key: u64) -> u64 {
        if key.is_multiple_of(7) { 7 } else { key }
    }

    impl Model {
        fn set(&mut self, key: u64, new: Option<u64>) {
            let old = match new {
                Some(deadline) => self.entries.insert(key, deadline),
                None => self.entries.remove(&key),
            };
            let earliest = |hash| earliest(&self.entries, hash);
            self.expiring.change(hash(key), old, new, earliest);
        }

        /// Removes what has expired, as the engine does. Returns how many items it looked at.
        fn sweep(&mut self) -> usize {
            let mut looks = 0;
            while let Some(first) = self.expiring.first()
                && first.deadline <= self.now
            {
                looks += 1;
                let mut entries = self.entries.iter();
                let due = entries
                    .find(|&(&key, &deadline)| hash(key) == first.hash && deadline <= self.now);
                match due.map(|(&key, _)| key) {
                    Some(key) => {
                        self.entries.remove(&key);
                        self.expiring.remove();
                    }
                    None => self
                        .expiring
                        .correct_first(earliest(&self.entries, first.hash)),
                }
            }
            looks
        }

        fn check(&self, seed: u64) {
            let Expiring {
                items, old, live, ..
            } = &self.expiring;
            assert_eq!(*live, self.entries.len(), "seed {seed}");
            let mut first = BTreeMap::new();
            for &Reverse(item) in items.iter().chain(old) {
                let deadline = first.entry(item.hash).or_insert(item.deadline);
                *deadline = item.deadline.min(*deadline);
            }
            for (&key, &deadline) in &self.entries {
                let item = first.get(&hash(key));
                assert!(
                    item.is_some_and(|item| *item <= deadline),
                    "seed {seed}: {key} {deadline} {item:?}"
                );
            }
        }

        fn check_len(&self, seed: u64) {
            let (len, live) = (self.expiring.len(), self.expiring.live());
            assert!(len <= 4 * live + 256, "seed {seed}: {len} items for {live}");
        }
    }

    fn earliest(entries: &BTreeMap<u64, u64>, wanted: u64) -> Option<u64> {
        if wanted != hash(0) {
            return entries.get(&wanted).copied();
        }
        let of_hash = entries.iter().filter(|&(&key, _)| hash(key) == wanted);
        of_hash.map(|(_, &deadline)| deadline).min()
    }

    #[test]
    fn every_entry_has_an_item_and_nothing_expired_stays() {
        for seed in 0..60 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut model = Model::default();
            let keys = random.random_range(1..400);
            let span = random.random_range(1..2_000);
            for _ in 0..2_000 {
                let key = random.random_range(0..keys);
                match random.random_range(0..10) {
                    0..6 => {
                        let deadline = model.now + random.random_range(0..span);
                        model.set(key, Some(deadline));
                    }
                    6..9 => model.set(key, None),
                    _ => {
                        model.now += random.random_range(0..span / 4 + 1);
                        model.sweep();
                        let now = model.now;
                        assert!(
                            model.entries.values().all(|deadline| *deadline > now),
                            "seed {seed}"
                        );
                    }
                }
                model.check_len(seed);
            }
            model.check(seed);
            model.now += span;
            model.sweep();
            assert!(model.entries.is_empty(), "seed {seed}");
            assert_eq!(model.expiring.len(), 0, "seed {seed}");
        }
    }

    #[test]
    fn the_invariant_holds_after_every_change() {
        for seed in 100..140 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut model = Model::default();
            for _ in 0..400 {
                let key = random.random_range(0..12);
                let is_set = random.random_bool(0.8);
                let deadline = is_set.then(|| model.now + random.random_range(0..20));
                model.set(key, deadline);
                model.check(seed);
                if random.random_bool(0.1) {
                    model.now += random.random_range(0..10);
                    model.sweep();
                    model.check(seed);
                }
            }
        }
    }

    #[test]
    fn a_deadline_that_is_put_off_adds_no_item_and_is_corrected_once() {
        let mut model = Model::default();
        for deadline in 100..10_000 {
            model.set(1, Some(deadline));
        }
        assert_eq!(model.expiring.len(), 1);
        model.now = 5_000;
        assert_eq!(model.sweep(), 1);
        assert_eq!(model.expiring.first().unwrap().deadline, 9_999);
        model.now = 9_998;
        assert_eq!(model.sweep(), 0);
        model.now = 9_999;
        model.sweep();
        assert!(model.entries.is_empty());
    }

    #[test]
    fn items_that_changes_leave_behind_are_bounded() {
        // One deadline that goes to and fro; entries that come and go; many that go, until few are left.
        let mut model = Model::default();
        for round in 0..5_000 {
            model.set(1, Some(1_000_000));
            model.set(1, Some(500_000 + round % 3));
            model.check_len(round);
        }
        for round in 0..5_000 {
            model.set(2, Some(2_000_000 + round));
            model.set(2, None);
            model.check_len(round);
        }
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for key in 1_000..4_000 {
            model.set(key, Some(random.random_range(1_000..2_000)));
        }
        for key in (1_000..4_000).rev() {
            model.set(key, None);
            model.check_len(key);
        }
        model.check(3);
    }

    #[test]
    fn memory_of_items_is_given_back_as_they_are_due() {
        let mut model = Model::default();
        for number in 0..10_000 {
            // No two of them share a hash.
            model.set(7 * number + 1, Some(1_000 + number));
        }
        let most = model.expiring.items.capacity();
        assert!(most >= 10_000);
        assert_eq!(model.expiring.to_shrink(), None);
        model.now = 10_900;
        model.sweep();
        let room = Vec::with_capacity(model.expiring.to_shrink().unwrap());
        let freed = model.expiring.shrink_into(room);
        let left = model.expiring.items.capacity();
        assert!(freed.capacity() >= most && left < most / 8, "{left}");
        model.check(0);
        // Items that have come meanwhile may have no room.
        assert_eq!(model.expiring.shrink_into(Vec::new()), Vec::new());
        model.check(0);
    }
}
