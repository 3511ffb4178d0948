//! Permits for snapshots: limits how many followers that hold data replace it at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time after which a snapshot that is still under way no longer delays others: one over a slow connection must not
/// cost them more.
const DELAYS_OTHERS: Duration = Duration::from_secs(30);

/// The snapshots that a node is sending to followers.
///
/// A follower discards its data set when its snapshot begins. If all followers did that at the same time, a leader that
/// dies would take all data with it. A follower that holds data therefore waits until no other snapshot is under way.
#[derive(Debug, Default)]
pub struct SnapshotPermits(Arc<Mutex<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    count: usize,
    /// Start of the newest of them.
    began: Option<Instant>,
}

/// The right to send one snapshot. Dropping it returns it.
#[derive(Debug)]
pub struct Permit(Arc<Mutex<UnderWay>>);

impl SnapshotPermits {
    /// Returns a permit for a snapshot to a follower that holds data, or none; `None` where the follower has to wait.
    #[must_use]
    pub fn begin(&self, holds_data: bool, now: Instant) -> Option<Permit> {
        let mut under_way = self.0.lock();
        let is_recent = |began: Instant| {
            under_way.count > 0 && now.saturating_duration_since(began) < DELAYS_OTHERS
        };
        if holds_data && under_way.began.is_some_and(is_recent) {
            return None;
        }
        under_way.count += 1;
        under_way.began = Some(now);
        Some(Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_follower_that_holds_data_waits_for_the_snapshot_of_another_but_not_for_a_slow_one() {
        let start = Instant::now();
        let permits = SnapshotPermits::default();
        let first = permits.begin(true, start);
        assert!(first.is_some(), "none is under way");
        assert!(permits.begin(true, start).is_none());
        let empty = permits.begin(false, start + ms(10));
        assert!(empty.is_some(), "it has nothing to lose");
        drop(first);
        assert!(permits.begin(true, start + ms(20)).is_none());
        drop(empty);
        let slow = permits.begin(true, start + ms(30));
        assert!(slow.is_some(), "the others have ended");
        assert!(permits.begin(true, start + DELAYS_OTHERS).is_none());
        assert!(
            permits
                .begin(true, start + DELAYS_OTHERS + ms(30))
                .is_some()
        );
    }
}
