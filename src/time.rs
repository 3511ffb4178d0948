//! The machine's clocks, as the engine's [`Clock`] reads them.

use std::time::{Instant, SystemTime};

use crate::engine::clock::{Clock, Reading, TimeSource};

/// The machine's wall clock and its monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MachineTime {
    started: Instant,
}

impl Default for MachineTime {
    fn default() -> MachineTime {
        MachineTime {
            started: Instant::now(),
        }
    }
}

impl MachineTime {
    /// A clock for an engine that goes by the machine's time.
    #[must_use]
    pub fn clock() -> Clock {
        Clock::new(Box::new(MachineTime::default()))
    }
}

impl TimeSource for MachineTime {
    fn read(&self) -> Reading {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let ms =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Reading {
            // Before 1970 it is 1970.
            wall: since_1970.map_or(0, ms),
            monotonic: ms(self.started.elapsed()),
        }
    }
}
