//! How far one follower has come, as its source knows it. Plain data, time passed in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Marks kept for telling how long a follower lags. Beyond it the newest one is moved, so the lag is told as longer.
const MARKS_MAX: usize = 1_024;

/// How long a full copy keeps others waiting. One over a slow link takes longer, and must not cost them more.
const TURN: Duration = Duration::from_secs(30);

/// The full copies that a source is sending.
///
/// A follower gives up what it holds as its copy begins. Where all did that at once, a leader that dies would take all
/// data with it; so one that holds data waits until no other copy is under way.
#[derive(Debug, Default)]
pub struct Copies(Arc<Mutex<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    count: usize,
    /// When the last of them began.
    began: Option<Instant>,
}

/// A full copy that is under way, until it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Mutex<UnderWay>>);

impl Copies {
    /// Begins a copy, for a follower that holds data, or none; `None` where it has to wait.
    #[must_use]
    pub fn begin(&self, holds_data: bool, now: Instant) -> Option<Turn> {
        let mut under_way = self.0.lock();
        let is_recent =
            |began: Instant| under_way.count > 0 && now.saturating_duration_since(began) < TURN;
        if holds_data && under_way.began.is_some_and(is_recent) {
            return None;
        }
        under_way.count += 1;
        under_way.began = Some(now);
        Some(Turn(Arc::clone(&self.0)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().count -= 1;
    }
}

/// How far one follower has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Index that the follower said it has applied.
    applied_index: u64,
    /// When it last said anything.
    heard: Instant,
    /// What was sent and not yet acknowledged: the last index of a batch, and when it was sent; rising in both.
    marks: VecDeque<(u64, Instant)>,
}

impl Progress {
    /// Of a follower that has applied everything up to `applied_index`.
    #[must_use]
    pub const fn new(applied_index: u64, now: Instant) -> Progress {
        Progress {
            applied_index,
            heard: now,
            marks: VecDeque::new(),
        }
    }

    /// Entries up to `last_index` are being sent.
    pub fn sent(&mut self, last_index: u64, now: Instant) {
        if self.marks.len() == MARKS_MAX {
            if let Some((index, _)) = self.marks.back_mut() {
                *index = last_index;
            }
        } else {
            self.marks.push_back((last_index, now));
        }
    }

    /// The follower says that it has applied everything up to `index`. An older figure than it gave before is one of
    /// another data set, after a copy, and holds.
    pub fn acknowledged(&mut self, index: u64, now: Instant) {
        self.applied_index = index;
        self.heard = now;
        while self.marks.front().is_some_and(|(sent, _)| *sent <= index) {
            self.marks.pop_front();
        }
    }

    /// Index that the follower said it has applied.
    #[must_use]
    pub const fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Entries that the follower lacks of a log that ends at `last_index`.
    #[must_use]
    pub const fn lag_entries(&self, last_index: u64) -> u64 {
        last_index.saturating_sub(self.applied_index)
    }

    /// How long the oldest entry that was sent has been unacknowledged.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Duration {
        self.marks.front().map_or(Duration::ZERO, |(_, sent)| {
            now.saturating_duration_since(*sent)
        })
    }

    /// How long the follower has said nothing.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_entry_that_is_not_acknowledged() {
        let start = Instant::now();
        let mut follower = Progress::new(10, start);
        assert_eq!(follower.lag(start + ms(900)), Duration::ZERO);
        follower.sent(12, start + ms(100));
        follower.sent(15, start + ms(200));
        assert_eq!(follower.lag(start + ms(300)), ms(200));
        follower.acknowledged(11, start + ms(300));
        assert_eq!(follower.lag(start + ms(300)), ms(200), "12 is missing");
        follower.acknowledged(14, start + ms(400));
        assert_eq!(follower.lag(start + ms(400)), ms(200), "15 is missing");
        follower.acknowledged(15, start + ms(500));
        assert_eq!(follower.lag(start + ms(500)), Duration::ZERO);
        assert_eq!(follower.applied_index(), 15);
    }

    #[test]
    fn a_follower_that_holds_data_waits_for_the_copy_of_another_but_not_for_a_slow_one() {
        let start = Instant::now();
        let copies = Copies::default();
        let first = copies.begin(true, start);
        assert!(first.is_some(), "none is under way");
        assert!(copies.begin(true, start).is_none());
        let empty = copies.begin(false, start + ms(10));
        assert!(empty.is_some(), "it has nothing to lose");
        drop(first);
        assert!(copies.begin(true, start + ms(20)).is_none());
        drop(empty);
        let slow = copies.begin(true, start + ms(30));
        assert!(slow.is_some(), "the others have ended");
        assert!(copies.begin(true, start + TURN).is_none());
        assert!(copies.begin(true, start + TURN + ms(30)).is_some());
    }

    #[test]
    fn lag_in_entries_is_never_below_none() {
        let follower = Progress::new(10, Instant::now());
        assert_eq!(follower.lag_entries(14), 4);
        assert_eq!(follower.lag_entries(9), 0, "the figures are of two moments");
    }

    #[test]
    fn silence_begins_with_the_last_word() {
        let start = Instant::now();
        let mut follower = Progress::new(0, start);
        follower.sent(1, start + ms(100));
        assert_eq!(
            follower.silence(start + ms(300)),
            ms(300),
            "what it was sent is no word"
        );
        follower.acknowledged(0, start + ms(300));
        assert_eq!(follower.silence(start + ms(700)), ms(400));
        assert_eq!(follower.silence(start), Duration::ZERO, "a clock of before");
    }

    #[test]
    fn a_figure_below_the_one_before_holds() {
        let now = Instant::now();
        let mut follower = Progress::new(10, now);
        follower.acknowledged(3, now);
        assert_eq!(follower.applied_index(), 3);
    }

    #[test]
    fn marks_are_bounded_and_what_is_beyond_them_counts_as_older() {
        let start = Instant::now();
        let mut follower = Progress::new(0, start);
        for index in 1..=5_000 {
            follower.sent(index, start + ms(index));
        }
        assert_eq!(follower.marks.len(), MARKS_MAX);
        follower.acknowledged(4_999, start + ms(5_000));
        // Sent at 5,000 ms, under a mark of 1,024 ms.
        assert_eq!(follower.lag(start + ms(5_000)), ms(5_000 - 1_024));
        follower.acknowledged(5_000, start + ms(5_000));
        assert_eq!(follower.lag(start + ms(6_000)), Duration::ZERO);
    }
}
