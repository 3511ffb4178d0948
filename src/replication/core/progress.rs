//! Progress of a follower: as the node that it follows knows it, and as it knows itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Indexes of the leader that a follower remembers until it has reached them. Beyond this limit the newest one is
/// replaced.
const REPORTED_MAX: usize = 1_024;

/// Smallest age of an entry that is lacking: 0 means that none is lacking.
const LAG_MIN: Duration = Duration::from_millis(1);

/// Progress of one follower, by its acknowledgements.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Index that the follower last acknowledged.
    applied_index: u64,
    /// Time of its last acknowledgement.
    heard: Instant,
    snapshot: Option<Unconfirmed>,
}

/// A snapshot that the follower has not confirmed yet.
#[derive(Clone, Copy, Debug)]
struct Unconfirmed {
    /// Index at which the snapshot ends, once all of it is sent.
    ends_at: Option<u64>,
}

impl Progress {
    /// The progress of a follower that has applied everything up to `applied_index`.
    #[must_use]
    pub const fn new(applied_index: u64, now: Instant) -> Progress {
        Progress {
            applied_index,
            heard: now,
            snapshot: None,
        }
    }

    /// The progress of a follower that begins to receive a snapshot, and holds nothing until that is complete.
    #[must_use]
    pub const fn copying(now: Instant) -> Progress {
        Progress {
            applied_index: 0,
            heard: now,
            snapshot: Some(Unconfirmed { ends_at: None }),
        }
    }

    /// All of the snapshot was sent, and ends at this index.
    pub const fn snapshot_ends_at(&mut self, index: u64) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.ends_at = Some(index);
        }
    }

    /// The follower has acknowledged everything up to `index`. A lower index than before is one of another data set,
    /// after a snapshot, and is valid.
    pub fn acknowledged(&mut self, index: u64, now: Instant) {
        self.applied_index = index;
        self.heard = now;
        let ends_at = self.snapshot.and_then(|snapshot| snapshot.ends_at);
        if ends_at.is_some_and(|ends_at| ends_at <= index) {
            self.snapshot = None;
        }
    }

    /// Whether the follower receives a snapshot that it has not confirmed yet.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Index that the follower last acknowledged.
    #[must_use]
    pub const fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Entries that the follower lacks of a log that ends at `last_index`.
    #[must_use]
    pub const fn lag_entries(&self, last_index: u64) -> u64 {
        last_index.saturating_sub(self.applied_index)
    }

    /// Time since the last acknowledgement.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

/// The age of an entry that is lacking and was appended at `since`; never 0.
#[must_use]
pub fn lag_since(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since).max(LAG_MIN)
}

/// Lag of a follower behind its leader, by the leader's last index and the follower's clock.
///
/// The leader reports its last index in heartbeats and in answers to probes. A heartbeat arrives after the entries that
/// were sent before it, so it is late over a slow connection; an answer is not.
#[derive(Clone, Debug)]
pub struct Behind {
    /// Last time at which it had everything that its leader had.
    level: Instant,
    /// Last indexes that the leader reported and the follower has not reached, rising, and when they were reported.
    reported: VecDeque<(u64, Instant)>,
    /// The highest index reported.
    last_index: Option<u64>,
    /// That index was reported before the last stream ended.
    is_old: bool,
}

impl Behind {
    /// The lag of a follower that starts.
    #[must_use]
    pub const fn new(now: Instant) -> Behind {
        Behind {
            level: now,
            reported: VecDeque::new(),
            last_index: None,
            is_old: false,
        }
    }

    /// The leader reports that its last index is `last_index`; this follower's is `head`. A lower index than before was
    /// delayed on its way, and does not count.
    pub fn heard(&mut self, last_index: u64, head: u64, now: Instant) {
        if !self.is_old && self.last_index.is_some_and(|last| last_index < last) {
            return;
        }
        self.last_index = Some(last_index);
        self.is_old = false;
        if self.reported.len() == REPORTED_MAX {
            self.reported.pop_back();
        }
        self.reported.push_back((last_index, now));
        self.reach(head);
    }

    /// The stream has ended. The indexes reported say nothing about the next stream, which may be another leader's.
    pub fn lost(&mut self, head: u64) {
        self.reach(head);
        self.reported.clear();
        self.is_old = true;
    }

    /// The follower has applied everything up to `head`.
    fn reach(&mut self, head: u64) {
        while let Some((_, at)) = self.reported.pop_front_if(|(index, _)| *index <= head) {
            self.level = at;
        }
    }

    /// Entries that it lacks, by the highest index reported; `None` before the first report.
    #[must_use]
    pub fn entries(&self, head: u64) -> Option<u64> {
        self.last_index.map(|last| last.saturating_sub(head))
    }

    /// Time since the follower, at `head`, last had everything that its leader had. 0 only where it `follows`, lacks no
    /// entry reported, and the last report is not older than `silence_max`.
    #[must_use]
    pub fn age(
        &mut self,
        head: u64,
        follows: bool,
        silence_max: Duration,
        now: Instant,
    ) -> Duration {
        self.reach(head);
        let age = now.saturating_duration_since(self.level);
        if follows && self.reported.is_empty() && age <= silence_max {
            Duration::ZERO
        } else {
            age.max(LAG_MIN)
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
    fn lag_in_entries_is_never_below_none() {
        let follower = Progress::new(10, Instant::now());
        assert_eq!(follower.lag_entries(14), 4);
        assert_eq!(follower.lag_entries(9), 0, "the figures are of two moments");
    }

    #[test]
    fn silence_begins_with_the_last_acknowledgement() {
        let start = Instant::now();
        let mut follower = Progress::new(0, start);
        assert_eq!(follower.silence(start + ms(300)), ms(300));
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
    fn a_snapshot_ends_with_the_acknowledgement_of_its_last_index() {
        let now = Instant::now();
        let mut follower = Progress::copying(now);
        follower.acknowledged(0, now);
        assert!(follower.is_copying(), "nothing says yet where it ends");
        follower.snapshot_ends_at(7);
        follower.acknowledged(0, now);
        assert!(follower.is_copying());
        follower.acknowledged(7, now);
        assert!(!follower.is_copying());
        let mut empty = Progress::copying(now);
        empty.snapshot_ends_at(0);
        assert!(empty.is_copying(), "it has not said so");
        empty.acknowledged(0, now);
        assert!(!empty.is_copying());
    }

    #[test]
    fn a_follower_is_behind_since_it_was_last_level() {
        let start = Instant::now();
        let age = |behind: &mut Behind, head, at| behind.age(head, true, ms(1_500), start + ms(at));
        let mut behind = Behind::new(start);
        assert_eq!(behind.entries(0), None);
        assert_eq!(age(&mut behind, 0, 0), Duration::ZERO);
        behind.heard(10, 10, start + ms(500));
        assert_eq!(age(&mut behind, 10, 900), Duration::ZERO);
        behind.heard(14, 11, start + ms(1_000));
        behind.heard(20, 12, start + ms(1_500));
        assert_eq!(behind.entries(12), Some(8));
        assert_eq!(age(&mut behind, 12, 1_600), ms(1_100), "level at 500 ms");
        assert_eq!(
            age(&mut behind, 14, 1_600),
            ms(600),
            "it has what there was at 1,000 ms"
        );
        assert_eq!(age(&mut behind, 20, 1_600), Duration::ZERO);
        assert_eq!(
            age(&mut behind, 20, 3_001),
            ms(1_501),
            "nothing was reported since"
        );
        behind.heard(17, 20, start + ms(1_600));
        assert_eq!(behind.entries(18), Some(2), "a delayed heartbeat");
        assert_eq!(
            age(&mut behind, 20, 3_100),
            ms(1_600),
            "a delayed heartbeat"
        );
        behind.lost(20);
        assert_eq!(behind.entries(18), Some(2));
        assert_eq!(
            behind.age(20, false, ms(1_500), start + ms(1_600)),
            ms(100),
            "it does not follow"
        );
        assert_eq!(
            behind.age(20, false, ms(1_500), start + ms(1_500)),
            LAG_MIN,
            "never 0 then"
        );
        behind.heard(5, 5, start + ms(4_000));
        assert_eq!(behind.entries(5), Some(0), "another leader's index");
        assert_eq!(age(&mut behind, 5, 4_100), Duration::ZERO);
    }

    #[test]
    fn what_a_leader_reported_is_kept_within_a_bound() {
        let start = Instant::now();
        let mut behind = Behind::new(start);
        for index in 1..=5_000 {
            behind.heard(index, 0, start + ms(index));
        }
        assert_eq!(behind.reported.len(), REPORTED_MAX);
        assert_eq!(behind.entries(0), Some(5_000));
        assert_eq!(behind.age(1_000, true, ms(1), start + ms(5_000)), ms(4_000));
        assert_eq!(
            behind.age(5_000, true, ms(1), start + ms(5_000)),
            Duration::ZERO
        );
    }
}
