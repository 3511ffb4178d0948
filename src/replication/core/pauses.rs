//! Pauses between attempts to follow.

use std::time::{Duration, Instant};

/// First and longest pause; each pause is twice the one before it.
pub const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pause while the peer may be starting, and for how long that pause is used.
const EAGER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The pauses between attempts: short ones at first where the peer may be starting, then doubling ones. Jitter keeps
/// the followers of one leader from coming back at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    eager_since: Option<Instant>,
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses {
            eager_since: None,
            next: BACK_OFF.0,
        }
    }
}

impl Pauses {
    /// The pause before the next attempt, `longest` at most. `is_eager` says that the peer may be starting, and
    /// `random` gives the jitter.
    pub fn next(
        &mut self,
        is_eager: bool,
        longest: Duration,
        random: u64,
        now: Instant,
    ) -> Duration {
        let eager_since = *self.eager_since.get_or_insert(now);
        if is_eager && now.saturating_duration_since(eager_since) < EAGER.1 {
            return EAGER.0.min(longest);
        }
        let pause = self.next.min(longest);
        self.next = (self.next * 2).min(BACK_OFF.1);
        let jitter = u32::try_from(random % 256).unwrap_or(0);
        pause * (768 + jitter) / 1_024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_short_for_a_second_and_then_double_up_to_the_longest() {
        let start = Instant::now();
        let mut pauses = Pauses::default();
        let ms = |pause: Duration| pause.as_millis();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(ms(pauses.next(true, BACK_OFF.1, 255, start)), 20);
        assert_eq!(ms(pauses.next(true, BACK_OFF.1, 255, at(999))), 20);
        // 1,023 of 1,024.
        for expected in [99, 199, 399, 799, 1_598, 3_196, 4_995, 4_995] {
            let pause = pauses.next(true, BACK_OFF.1, 255, at(1_000));
            assert_eq!(ms(pause), expected);
        }
        assert_eq!(
            ms(pauses.next(false, Duration::from_millis(500), 0, at(9_000))),
            375
        );
    }
}
