//! The clock by which entries expire.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Two clocks of a machine, read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock: milliseconds since 1970 UTC. It may be set, forward or backward.
    pub wall: u64,
    /// Milliseconds since some moment. It never runs backward.
    pub monotonic: u64,
}

/// A source of time: the machine's, or a simulation's.
pub trait TimeSource: fmt::Debug + Send + Sync {
    /// Reads both clocks.
    fn read(&self) -> Reading;
}

/// The clock by which a node's entries expire, in milliseconds since 1970 UTC. It never runs backward.
///
/// It goes on with the monotonic clock, and is pulled forward by the wall clock and by the leader's clock. So an entry
/// that has expired stays expired: where the wall clock is set back, and where another node begins to lead whose wall
/// clock is behind. A step back stops nothing either, since time goes on from there. The clock knows of a time when it
/// is read, so it is to be read now and then: a step back after that may take back what has passed since.
#[derive(Debug)]
pub struct Clock {
    source: Box<dyn TimeSource>,
    /// Milliseconds that this clock is ahead of the monotonic one. It only rises.
    ahead: AtomicU64,
}

impl Clock {
    /// A clock with this source.
    #[must_use]
    pub fn new(source: Box<dyn TimeSource>) -> Clock {
        let clock = Clock {
            source,
            ahead: AtomicU64::new(0),
        };
        let _ = clock.now();
        clock
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> u64 {
        let Reading { wall, monotonic } = self.source.read();
        monotonic.saturating_add(self.raise(wall.saturating_sub(monotonic)))
    }

    /// Pulls the clock forward to a time that another node has reached; a time that has passed changes nothing.
    pub fn pull(&self, time_ms: u64) {
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::ClockNotPulled) {
            return;
        }
        let Reading { monotonic, .. } = self.source.read();
        self.raise(time_ms.saturating_sub(monotonic));
    }

    /// Whether a deadline has passed.
    #[must_use]
    pub fn has_passed(&self, deadline: u64) -> bool {
        deadline <= self.now()
    }

    fn raise(&self, ahead: u64) -> u64 {
        let before = self.ahead.load(Ordering::Relaxed);
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::ClockGoesBack) {
            self.ahead.store(ahead, Ordering::Relaxed);
            return ahead;
        }
        if ahead <= before {
            return before;
        }
        ahead.max(self.ahead.fetch_max(ahead, Ordering::Relaxed))
    }
}

/// The time of one run of requests: read once, where something asks for it.
#[derive(Debug)]
pub struct Now<'c> {
    clock: &'c Clock,
    read: Cell<Option<u64>>,
}

impl<'c> Now<'c> {
    /// The time at which it is first asked for.
    #[must_use]
    pub const fn of(clock: &'c Clock) -> Now<'c> {
        let read = Cell::new(None);
        Now { clock, read }
    }

    /// The time, in milliseconds since 1970 UTC.
    #[must_use]
    pub fn now(&self) -> u64 {
        let now = self.read.get().unwrap_or_else(|| self.clock.now());
        self.read.set(Some(now));
        now
    }

    /// Whether a deadline has passed.
    #[inline(never)]
    #[must_use]
    pub fn has_passed(&self, deadline: u64) -> bool {
        deadline <= self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Debug, Default)]
    struct Manual(Arc<[AtomicU64; 2]>);

    impl TimeSource for Manual {
        fn read(&self) -> Reading {
            let [wall, monotonic] = self.0.each_ref().map(|clock| clock.load(Ordering::Relaxed));
            Reading { wall, monotonic }
        }
    }

    #[test]
    fn the_clock_follows_the_wall_forward_and_never_runs_backward() {
        let source = Manual::default();
        let clock = Clock::new(Box::new(source.clone()));
        let set = |wall, monotonic| {
            source.0[0].store(wall, Ordering::Relaxed);
            source.0[1].store(monotonic, Ordering::Relaxed);
        };
        set(1_000, 50);
        assert_eq!(clock.now(), 1_000);
        // The wall clock is set back: time goes on by the monotonic clock.
        set(400, 60);
        assert_eq!(clock.now(), 1_010);
        // And forward: it follows.
        set(5_000, 70);
        assert_eq!(clock.now(), 5_000);
        assert!(clock.has_passed(5_000) && !clock.has_passed(5_001));
        // Another node is ahead, or behind.
        clock.pull(6_000);
        assert_eq!(clock.now(), 6_000);
        clock.pull(5_500);
        set(5_001, 71);
        assert_eq!(clock.now(), 6_001);
    }
}
