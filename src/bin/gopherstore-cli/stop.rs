//! Ctrl-C, for commands that print what they have and clean up before they end.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag, low_level,
};

use crate::report::{Failure, Outcome};

/// Whether to go on with work that has an end of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// The signal that came, 0 where none did.
    signal: Arc<AtomicUsize>,
    /// Some of the work has failed.
    has_failed: Arc<AtomicBool>,
}

impl Stop {
    /// From now on the first SIGINT or SIGTERM is only noted; a second one ends the program at once.
    pub(crate) fn on_signals() -> Result<Stop, Failure> {
        let stop = Stop::default();
        stop.register().map_err(|error| {
            Failure::new(
                Outcome::LocalInput,
                format!("cannot take note of Ctrl-C: {error}; try again"),
            )
        })?;
        Ok(stop)
    }

    fn register(&self) -> io::Result<()> {
        let second = Arc::new(AtomicBool::new(false));
        for (signal, number) in [(SIGINT, 2), (SIGTERM, 15)] {
            flag::register_conditional_default(signal, Arc::clone(&second))?;
            flag::register(signal, Arc::clone(&second))?;
            flag::register_usize(signal, Arc::clone(&self.signal), number)?;
        }
        Ok(())
    }

    /// Ends the command, when all is cleaned up: by the signal, where one came, so that whoever started the program
    /// sees that it was ended.
    pub(crate) fn end(&self, outcome: Result<(), Failure>) -> Result<Outcome, Failure> {
        if let Some(signal) = self.signal() {
            if let Err(failure) = outcome {
                failure.print(None);
            }
            let _ = low_level::emulate_default_handler(signal);
            return Ok(Outcome::Done);
        }
        outcome.map(|()| Outcome::Done)
    }

    fn signal(&self) -> Option<i32> {
        let signal = self.signal.load(Ordering::Relaxed);
        i32::try_from(signal).ok().filter(|&signal| signal != 0)
    }

    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.signal().is_some() || self.has_failed.load(Ordering::Relaxed)
    }
}
