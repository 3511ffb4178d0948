//! The expiry thread: has a leader remove the entries whose deadline has passed ([`Engine::expire`]).
//!
//! It goes round the partitions. After a slice of work it pauses for a multiple of the time that this took, so that
//! many keys which expire at once leave the processor to clients. The longer ago the keys expired that it finds, the
//! shorter are its pauses. A node that takes no writes removes nothing, and looks again once a second.

use std::time::{Duration, Instant};

use log::debug;
use rustix::time::{ClockId, clock_gettime};

use crate::engine::{Engine, Expired, NotDone};
use crate::node::Node;
use crate::replication::Stop;

/// Pause where no entry ever had a deadline, or the node takes no writes.
const PAUSE_UNUSED: Duration = Duration::from_secs(1);

/// Pause after a round that has left nothing in a partition.
const PAUSE_IDLE: Duration = Duration::from_millis(100);

/// Time of work between two pauses, about.
const SLICE: Duration = Duration::from_micros(200);

/// The pause after a slice, in multiples of its time: of keys that expired less than so long ago.
const PAUSES: [(Duration, u32); 2] = [(Duration::from_secs(3), 3), (Duration::from_secs(6), 1)];

/// Removes the expired entries of `node`, until the stop.
pub(super) fn run(node: &Node, stop: &Stop) {
    let mut sweep = Sweep::default();
    let mut pause = PAUSE_UNUSED;
    while !stop.wait(pause) {
        pause = sweep.slice(node.engine());
    }
}

/// How far the thread is.
#[derive(Debug, Default)]
struct Sweep {
    /// The next partition of the round.
    partition: usize,
    /// Entries removed in this round.
    in_round: usize,
    /// A partition of this round had more to remove than it may at a time.
    is_more: bool,
    /// Entries removed since the last round that removed none.
    removed: usize,
    /// Longest time for which a partition was locked, since the same round.
    longest_lock: Duration,
    /// Longest processor time of this thread while a partition was locked, since the same round.
    longest_work: Duration,
}

impl Sweep {
    /// Works for about [`SLICE`], or to the end of a round that leaves nothing. Returns how long to pause.
    fn slice(&mut self, engine: &Engine) -> Duration {
        if !engine.has_expiring() || !engine.admits_writes() {
            return PAUSE_UNUSED;
        }
        let (mut worked, mut late_ms) = (Duration::ZERO, 0);
        while worked < SLICE {
            let Ok(expired) = self.expire(engine, &mut worked) else {
                return PAUSE_UNUSED;
            };
            late_ms = expired.late_ms.max(late_ms);
            self.in_round += expired.removed;
            self.is_more |= expired.is_more;
            self.partition += 1;
            if self.partition == engine.partitions() && !self.end_round() {
                return PAUSE_IDLE;
            }
        }
        pause_after(worked, Duration::from_millis(late_ms))
    }

    /// Removes entries of the next partition, and adds the time that it took to `worked`. Waits for room in the log.
    fn expire(&mut self, engine: &Engine, worked: &mut Duration) -> Result<Expired, NotDone> {
        let mut room = None;
        loop {
            let begin = Instant::now();
            let mut locked_at = None;
            let (lock, work) = (&mut self.longest_lock, &mut self.longest_work);
            let result = engine.expire(self.partition, room.take(), || match locked_at.take() {
                None => locked_at = Some((Instant::now(), processor_time())),
                Some((locked_at, before)) => {
                    *work = processor_time().saturating_sub(before).max(*work);
                    *lock = locked_at.elapsed().max(*lock);
                }
            });
            *worked += begin.elapsed();
            match result {
                Err(NotDone::NoRoom { cost }) => room = engine.wait_for_room(cost),
                Ok(_) | Err(NotDone::Refused | NotDone::Full(_) | NotDone::NoSpace) => {
                    return result;
                }
            }
        }
    }

    /// Begins the next round. Returns whether it is to begin at once.
    fn end_round(&mut self) -> bool {
        let in_round = std::mem::take(&mut self.in_round);
        self.partition = 0;
        self.removed += in_round;
        if in_round == 0 && self.removed > 0 {
            let longest = [self.longest_lock, self.longest_work];
            let (removed, [lock, work]) = (self.removed, longest.map(|time| time.as_micros()));
            debug!(
                "removed expired keys: {removed}; the longest lock was held for {lock} us, and the longest work \
                 under a lock took {work} us of the processor"
            );
            (self.removed, self.longest_lock) = (0, Duration::ZERO);
            self.longest_work = Duration::ZERO;
        }
        std::mem::take(&mut self.is_more)
    }
}

/// Processor time of this thread so far.
fn processor_time() -> Duration {
    // It is neither negative nor a fraction of more than a second.
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .unwrap_or_default()
}

/// The pause after work for this long on keys that had expired this long ago.
fn pause_after(worked: Duration, late: Duration) -> Duration {
    let row = PAUSES.iter().find(|(limit, _)| late < *limit);
    // The thread may have been off the processor for part of the time.
    row.map_or(Duration::ZERO, |(_, times)| worked.min(2 * SLICE) * *times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_shrink_as_keys_are_removed_late() {
        let ms = Duration::from_millis;
        let us = Duration::from_micros;
        assert_eq!(pause_after(us(250), ms(0)), us(750));
        assert_eq!(pause_after(ms(40), ms(2_999)), us(1_200));
        assert_eq!(pause_after(us(250), ms(3_000)), us(250));
        assert_eq!(pause_after(us(250), ms(6_000)), Duration::ZERO);
    }

    #[test]
    fn a_node_without_deadlines_is_looked_at_once_a_second() {
        let node = Node::alone();
        let mut sweep = Sweep::default();
        assert_eq!(sweep.slice(node.engine()), PAUSE_UNUSED);
        assert_eq!(sweep.partition, 0);
    }
}
