//! The checks of a node's clock.

use super::events::Timeline;
use super::truth::Violation;
use crate::engine::clock::Clock;

/// The times at which a process's clock was read.
#[derive(Debug, Default)]
pub(super) struct ClockCheck {
    /// Milliseconds of the run, and what the clock said then at least.
    seen: Option<(u64, u64)>,
}

impl ClockCheck {
    /// Reads the clock, which never runs backward, nor slower than time, and is never ahead of all machines.
    pub(super) fn read<E>(
        &mut self,
        clock: &Clock,
        timeline: &Timeline<E>,
    ) -> Result<u64, Violation> {
        let (now, latest) = (clock.now(), timeline.latest_ms());
        if let Some((at, seen)) = self.seen
            && now < seen + (timeline.ms() - at)
        {
            let passed = timeline.ms() - at;
            return Err(format!(
                "its clock says {now} ms, and it or its leader's said {seen} ms {passed} ms ago"
            ));
        }
        if now > latest {
            return Err(format!(
                "its clock says {now} ms, and no machine is beyond {latest} ms"
            ));
        }
        self.seen = Some((timeline.ms(), now));
        Ok(now)
    }

    /// The node has got a message whose sender's clock said this.
    pub(super) fn pulled<E>(&mut self, time_ms: u64, timeline: &Timeline<E>) {
        let at_least = (timeline.ms(), time_ms);
        if self
            .seen
            .is_none_or(|(at, seen)| seen + (timeline.ms() - at) < time_ms)
        {
            self.seen = Some(at_least);
        }
    }
}
