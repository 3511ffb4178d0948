//! The lifecycle of a server: its states, the events that change them, and the one table of transitions.
//!
//! | state \ event   | stop, with peers | stop, no peers | writes ended    | synchronized | start failed |
//! |-----------------|------------------|----------------|-----------------|--------------|--------------|
//! | `Running`       | `Draining`       | `Closing`      | bug             | bug          | `Closing`    |
//! | `Draining`      | stays            | stays          | `Synchronizing` | bug          | `Closing`    |
//! | `Synchronizing` | stays            | stays          | bug             | `Closing`    | bug          |
//! | `Closing`       | stays            | stays          | bug             | bug          | stays        |
//!
//! The state changes under the registry's lock, so a client is admitted either before a change or after it. Connections
//! read it without the lock, from an atomic.

use std::sync::atomic::{AtomicU8, Ordering};

/// Where a server is between its start and its end. It never returns to an earlier state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Clients are admitted and served.
    Running,
    /// A stop was requested of a node with peers: requests that have begun are finished, and new clients wait.
    Draining,
    /// Writes have ended and the data is being synchronized with peers: new clients are admitted, and may only read.
    Synchronizing,
    /// No client is admitted any more: answers and streams that have begun are finished.
    Closing,
}

/// Something that may change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A stop was requested. Any number of requests may come, at any time.
    StopRequested {
        /// Whether there are peers to synchronize with.
        has_peers: bool,
    },
    /// The clients of before the stop have left or were cut off, and the node takes no more writes.
    WritesEnded,
    /// The synchronization with the peers has ended, however it did.
    Synchronized,
    /// A thread that the server needs could not be started. Then none synchronizes.
    StartFailed,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    To(State),
    /// The event changes nothing in this state.
    Stays,
    /// The event cannot come in this state.
    Bug,
}

impl State {
    /// Every state, at the index of its code.
    const ALL: [State; 4] = [
        State::Running,
        State::Draining,
        State::Synchronizing,
        State::Closing,
    ];

    /// The table of transitions.
    const fn on(self, event: Event) -> Transition {
        use Transition::{Bug, Stays, To};
        match (self, event) {
            (State::Running, Event::StopRequested { has_peers: true }) => To(State::Draining),
            (State::Running, Event::StopRequested { has_peers: false })
            | (State::Running | State::Draining, Event::StartFailed)
            | (State::Synchronizing, Event::Synchronized) => To(State::Closing),
            (State::Draining, Event::WritesEnded) => To(State::Synchronizing),
            (
                State::Draining | State::Synchronizing | State::Closing,
                Event::StopRequested { .. },
            )
            | (State::Closing, Event::StartFailed) => Stays,
            (State::Running | State::Synchronizing | State::Closing, Event::WritesEnded)
            | (State::Running | State::Draining | State::Closing, Event::Synchronized)
            | (State::Synchronizing, Event::StartFailed) => Bug,
        }
    }
}

/// A server's state, which threads share.
#[derive(Debug)]
pub(super) struct Lifecycle {
    /// Code of the state.
    code: AtomicU8,
}

impl Lifecycle {
    /// The lifecycle of a server that is running.
    pub(super) const fn new() -> Lifecycle {
        Lifecycle {
            code: AtomicU8::new(State::Running as u8),
        }
    }

    pub(super) fn state(&self) -> State {
        let code = usize::from(self.code.load(Ordering::SeqCst));
        State::ALL[code % State::ALL.len()]
    }

    /// Changes the state as the table says. Returns the state that was left and the one that was entered, or `None`
    /// where the event changes nothing. To be called by one thread at a time.
    pub(super) fn advance(&self, event: Event) -> Option<(State, State)> {
        let left = self.state();
        match left.on(event) {
            Transition::To(entered) => {
                self.code.store(entered as u8, Ordering::SeqCst);
                Some((left, entered))
            }
            Transition::Stays => None,
            Transition::Bug => {
                debug_assert!(false, "{event:?} cannot come in state {left:?}");
                None
            }
        }
    }

    /// The signal to stop for a client that was admitted in the state `admitted_in`.
    pub(super) const fn signal(&self, admitted_in: State) -> StopSignal<'_> {
        StopSignal {
            lifecycle: self,
            admitted_in,
        }
    }
}

/// Tells a connection that its client is to leave: the server has left the state in which it admitted that client.
#[derive(Clone, Copy, Debug)]
pub(super) struct StopSignal<'a> {
    lifecycle: &'a Lifecycle,
    admitted_in: State,
}

impl StopSignal<'_> {
    /// Whether the client is to leave between two requests.
    ///
    /// A connection writes its activity and then asks this; a stop changes the state and then reads the activity. All
    /// four are sequentially consistent, so at least one of the two sees the other.
    pub(super) fn is_raised(self) -> bool {
        self.lifecycle.code.load(Ordering::SeqCst) != self.admitted_in as u8
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EVENTS: [Event; 5] = [
        Event::StopRequested { has_peers: true },
        Event::StopRequested { has_peers: false },
        Event::WritesEnded,
        Event::Synchronized,
        Event::StartFailed,
    ];

    /// The table of the module's documentation, by state and event.
    fn documented() -> Vec<Vec<Transition>> {
        let rows = include_str!("lifecycle.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `"));
        let cell = |text: &str| match text.trim().trim_matches('`') {
            "stays" => Transition::Stays,
            "bug" => Transition::Bug,
            name => {
                let named = |state: &&State| format!("{state:?}") == name;
                Transition::To(*State::ALL.iter().find(named).unwrap())
            }
        };
        let cells = |row: &str| {
            let inner = row.trim_end().trim_end_matches('|');
            inner.split('|').skip(1).map(cell).collect()
        };
        rows.map(cells).collect()
    }

    #[test]
    fn every_pair_of_state_and_event_is_as_documented() {
        let table = documented();
        assert_eq!(table.len(), State::ALL.len());
        for (state, row) in State::ALL.into_iter().zip(table) {
            let transitions = EVENTS.map(|event| state.on(event));
            assert_eq!(row, transitions, "{state:?}");
        }
    }

    #[test]
    fn no_state_is_entered_twice_and_closing_is_the_last() {
        for state in State::ALL {
            for event in EVENTS {
                if let Transition::To(entered) = state.on(event) {
                    assert!(entered as u8 > state as u8, "{state:?} {event:?}");
                }
            }
        }
        let ends = |event| !matches!(State::Closing.on(event), Transition::To(_));
        assert!(EVENTS.into_iter().all(ends));
    }

    #[test]
    fn a_code_is_the_index_of_its_state() {
        for (code, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state as u8), code);
        }
    }

    #[test]
    fn a_signal_is_raised_once_the_state_of_the_admission_is_left() {
        let lifecycle = Lifecycle::new();
        let first = lifecycle.signal(lifecycle.state());
        assert!(!first.is_raised());
        let stop = Event::StopRequested { has_peers: true };
        let entered = lifecycle.advance(stop);
        assert_eq!(entered, Some((State::Running, State::Draining)));
        assert!(first.is_raised());
        assert_eq!(lifecycle.advance(stop), None);
        lifecycle.advance(Event::WritesEnded);
        let second = lifecycle.signal(lifecycle.state());
        assert!(first.is_raised() && !second.is_raised());
        let entered = lifecycle.advance(Event::Synchronized);
        assert_eq!(entered, Some((State::Synchronizing, State::Closing)));
        assert!(second.is_raised());
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "Synchronized cannot come in state Running")]
    fn an_event_that_cannot_come_is_named() {
        Lifecycle::new().advance(Event::Synchronized);
    }
}
