//! Signals that end the program. Commands first remove keys and files, and restore the terminal's settings.
//!
//! SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGQUIT are treated alike. After the clean-up the program ends by the same
//! signal, so that a shell reports 128 plus its number. A SIGHUP that is ignored when the program starts, as under
//! `nohup`, stays ignored.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use gopherstore::signals;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
    low_level,
};

use crate::report::{Failure, Outcome};

/// Time after the first signal in which further ones are ignored: `timeout` sends SIGTERM twice, and a closing terminal
/// sends SIGHUP twice.
const REPEATED: Duration = Duration::from_millis(300);

/// Whether to continue work, for commands that clean up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// The signal that came; 0 before one.
    signal: Arc<AtomicI32>,
    /// Whether some of the work has failed.
    has_failed: Arc<AtomicBool>,
}

impl Stop {
    /// From now on the first signal is only noted. A later SIGINT, SIGTERM or SIGQUIT ends the program at once.
    pub(crate) fn on_signals() -> Result<Stop, Failure> {
        let stop = Stop::default();
        let noted = Arc::clone(&stop.signal);
        let mut first = None;
        on_each_signal(move |signal| match first {
            None => {
                first = Some(Instant::now());
                noted.store(signal, Ordering::Relaxed);
            }
            Some(first) if signal != SIGHUP && first.elapsed() > REPEATED => end_by(signal),
            Some(_) => {}
        })
        .map_err(|error| {
            let message = format!("cannot handle signals: {error}; try again");
            Failure::new(Outcome::LocalInput, message)
        })?;
        Ok(stop)
    }

    /// Ends the command after its clean-up, by the signal if one came.
    pub(crate) fn end(&self, outcome: Result<(), Failure>) -> Result<Outcome, Failure> {
        if let Some(signal) = self.signal() {
            if let Err(failure) = &outcome {
                failure.print(None);
            }
            end_by(signal);
        }
        outcome.map(|()| Outcome::Done)
    }

    fn signal(&self) -> Option<i32> {
        let signal = self.signal.load(Ordering::Relaxed);
        (signal != 0).then_some(signal)
    }

    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.signal().is_some() || self.has_failed.load(Ordering::Relaxed)
    }
}

/// Runs `clean_up` when a signal comes, and then ends the program by that signal. For work that blocks where it cannot
/// check a [`Stop`].
///
/// # Errors
///
/// When no thread can be started. Signals then end the program without a clean-up.
pub(crate) fn before_end(clean_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut clean_up = Some(clean_up);
    on_each_signal(move |signal| {
        if let Some(clean_up) = clean_up.take() {
            clean_up();
        }
        end_by(signal);
    })
}

/// Calls `act` with each signal that would end the program, except an ignored SIGHUP.
fn on_each_signal(act: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    let mut handled = vec![SIGINT, SIGTERM, SIGQUIT];
    if !signals::is_ignored(SIGHUP) {
        handled.push(SIGHUP);
    }
    on_each(&handled, act)
}

/// Calls `act` with each of these signals, in its own thread.
///
/// # Errors
///
/// When no thread can be started. The signals then keep their effect.
pub(crate) fn on_each(
    handled: &[i32],
    mut act: impl FnMut(i32) + Send + 'static,
) -> io::Result<()> {
    // The thread is started first: without it a handled signal would have no effect.
    let (sender, receiver) = mpsc::channel::<Signals>();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for mut signals in receiver {
                signals.forever().for_each(&mut act);
            }
        })?;
    // The thread waits for this one.
    let _ = sender.send(Signals::new(handled)?);
    Ok(())
}

/// Ends the program by `signal`, as if it had not been handled.
pub(crate) fn end_by(signal: i32) {
    // It fails only for signals without a default action.
    let _ = low_level::emulate_default_handler(signal);
}
