//! Pauses between attempts to follow.

use std::time::{Duration, Instant};

use super::Stop;
use super::follow::random;
use crate::replication::Peers;

/// First and longest pause; each pause is twice the one before it.
pub(super) const BACK_OFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(5));

/// Pause while the peer may be starting, and for how long that pause is used.
const EAGER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The pauses between attempts: short ones at first where the peer may be starting, then doubling ones. Jitter keeps
/// the followers of one leader from coming back at the same time.
pub(super) struct Pauses {
    eager_since: Option<Instant>,
    next: Duration,
}

impl Pauses {
    pub(super) const fn new() -> Pauses {
        Pauses {
            eager_since: None,
            next: BACK_OFF.0,
        }
    }

    /// The pause before the next attempt, `longest` at most.
    pub(super) fn next(&mut self, is_eager: bool, longest: Duration, now: Instant) -> Duration {
        if is_eager && now - *self.eager_since.get_or_insert(now) < EAGER.1 {
            return EAGER.0.min(longest);
        }
        let pause = self.next.min(longest);
        self.next = (self.next * 2).min(BACK_OFF.1);
        let jitter = u32::try_from(random() % 256).unwrap_or(0);
        pause * (768 + jitter) / 1_024
    }
}

/// Pauses for `time`, or until the leader comes up again. Returns whether the node stops.
pub(super) fn pause_for(peers: &Peers, leader: &str, stop: &Stop, time: Duration) -> bool {
    let begin = Instant::now();
    let has_come = || {
        let liveness = peers.liveness().lock();
        let mut peers = liveness.peers().iter();
        peers.any(|peer| peer.name == leader && peer.is_up && peer.since > begin)
    };
    loop {
        let left = time.saturating_sub(begin.elapsed());
        if stop.wait(left.min(BACK_OFF.0)) {
            return true;
        }
        if left <= BACK_OFF.0 || has_come() {
            return false;
        }
    }
}
