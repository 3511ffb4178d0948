//! When log entries were appended.

use std::time::{Duration, Instant};

/// Entries that were appended within this time of each other share one slot of [`AppendTimes`].
const SLOT: Duration = Duration::from_millis(10);

/// Slots are merged up to this length, and up to a thousandth of their age.
const MERGED: Duration = Duration::from_millis(100);

/// Slots that are kept before any are merged.
const SLOTS_MIN: usize = 1_024;

/// When the entries of a log were appended, with a resolution of 10 ms for new entries and of a thousandth of their age
/// for old ones.
///
/// Memory is bounded: with writes all the time there are some 12,000 slots after a month.
#[derive(Clone, Debug, Default)]
pub struct AppendTimes {
    /// The first index of each slot, and when it was appended; both rise.
    slots: Vec<(u64, Instant)>,
    /// The last index that was noted.
    last_index: u64,
    /// How many slots there may be before old ones are merged.
    merge_at: usize,
}

impl AppendTimes {
    /// Entries from `first_index` to `last_index` were appended just now.
    pub fn note(&mut self, first_index: u64, last_index: u64, now: Instant) {
        self.last_index = last_index;
        let last = self.slots.last();
        if last.is_some_and(|(_, begun)| now.saturating_duration_since(*begun) < SLOT) {
            return;
        }
        self.slots.push((first_index, now));
        if self.slots.len() > self.merge_at.max(SLOTS_MIN) {
            self.merge(now);
            self.merge_at = 2 * self.slots.len();
        }
    }

    /// The log begins anew after `index`. The times of the entries up to there are not known; they count as appended
    /// now.
    pub fn reset(&mut self, index: u64, now: Instant) {
        *self = AppendTimes {
            slots: vec![(0, now)],
            last_index: index,
            merge_at: 0,
        };
    }

    /// When the entry with this index was appended, or a little before; `None` where it has not been noted yet.
    #[must_use]
    pub fn of(&self, index: u64) -> Option<Instant> {
        let count = self.slots.partition_point(|(first, _)| *first <= index);
        let (_, begun) = self.slots.get(count.checked_sub(1)?)?;
        (index <= self.last_index).then_some(*begun)
    }

    /// Merges each slot into the one before it if the result is not too long. Keeps the first and the last one.
    fn merge(&mut self, now: Instant) {
        let old = std::mem::take(&mut self.slots);
        for (at, slot) in old.iter().enumerate() {
            let merges = match (self.slots.last(), old.get(at + 1)) {
                (Some((_, begun)), Some((_, end))) => {
                    let longest = MERGED.max(now.saturating_duration_since(*begun) / 1_000);
                    end.saturating_duration_since(*begun) <= longest
                }
                (Some(_), None) | (None, _) => false,
            };
            if !merges {
                self.slots.push(*slot);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_time_of_an_entry_is_that_of_its_slot() {
        let start = Instant::now();
        let mut times = AppendTimes::default();
        assert_eq!(times.of(1), None);
        times.note(1, 3, start);
        times.note(4, 4, start + ms(9));
        times.note(5, 9, start + ms(10));
        // After an hour without writes.
        times.note(10, 10, start + ms(3_600_000));
        for (index, at) in [(1, 0), (4, 0), (5, 10), (9, 10), (10, 3_600_000)] {
            assert_eq!(times.of(index), Some(start + ms(at)), "{index}");
        }
        assert_eq!(times.of(11), None, "it is on its way to the log");
        times.reset(20, start + ms(4_000_000));
        assert_eq!(times.of(7), Some(start + ms(4_000_000)));
        assert_eq!(times.of(20), Some(start + ms(4_000_000)));
        assert_eq!(times.of(21), None);
    }

    #[test]
    fn times_are_exact_to_a_thousandth_of_their_age_and_bounded() {
        let start = Instant::now();
        let mut times = AppendTimes::default();
        // 12 hours of a write each 10 ms.
        let count = 12 * 360_000;
        for index in 1..=count {
            times.note(index, index, start + ms(10 * index));
        }
        assert!(times.slots.len() < 20_000, "{}", times.slots.len());
        let now = start + ms(10 * count);
        for index in (1..=count).step_by(997) {
            let at = start + ms(10 * index);
            let told = times.of(index).unwrap();
            let age = now - at;
            assert!(told <= at, "{index}");
            assert!(
                at - told <= ms(100).max(age / 900),
                "{index}: {:?} of {age:?}",
                at - told
            );
        }
    }
}
