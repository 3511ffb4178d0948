//! How far the log has come in each respect that an answer can wait for.
//!
//! A watermark is the greatest index of which something holds: that it is appended, that it is written or durable on
//! this node's disk, or that the leader has committed it. Watermarks belong to an epoch: when an epoch is given up, the
//! positions in it that were not reached never will be, and their subscribers are woken.
//!
//! [`Watermarks::advance`] moves them. An index up to `committed` counts as reached for the others too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::waits::{Wait, Waits};
use super::writer_signal::WriterSignal;

/// A place in the log. No two writes of one history have the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Epoch of the leader that wrote there.
    pub epoch: u64,
    /// Index of the record; 0 before the first.
    pub index: u64,
}

/// A watermark: the state of a record that an answer can wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// The record has its index. Every answer is about records of that state, so this never waits.
    #[default]
    Appended,
    /// This node has given the record to the system to be written: it survives the end of the process.
    Written,
    /// This node's disk holds the record: it survives a power failure.
    Durable,
    /// The leader has committed the record. Today it does that alone, when it acknowledges the record.
    Committed,
}

/// Whether a watermark has reached a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It has reached the position.
    Yes,
    /// It has not reached the position yet.
    NotYet,
    /// It never will: the epoch was given up before.
    Never,
}

/// Identifies a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

/// Called when a watermark has reached an awaited index, or the epoch has ended. It must not block, and must not call
/// [`Watermarks`].
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The watermarks of a log, and the subscribers that wait for them.
pub struct Watermarks {
    state: Mutex<State>,
    /// Requests that wait until the records up to an index are durable, whatever answers wait for.
    durable_waits: Waits,
    /// Wakes the thread that moves them.
    writer_signal: WriterSignal,
}

#[derive(Default)]
struct State {
    epoch: u64,
    /// Set when the epoch was given up, until this node begins one.
    is_given_up: bool,
    written: u64,
    durable: u64,
    committed: u64,
    /// The last record of a leader that is committed, and applied or being applied. Reads may find it already.
    applying: u64,
    next_id: u64,
    subscriptions: BTreeMap<SubscriptionId, Subscription>,
}

struct Subscription {
    wake: Wake,
    /// The index that it waits for. It is woken once, and then waits for nothing.
    awaits: Option<(Mark, u64)>,
}

impl State {
    /// `None` for a mark that every record has reached.
    const fn of(&self, mark: Mark) -> Option<u64> {
        match mark {
            Mark::Appended => None,
            Mark::Written => Some(self.written),
            Mark::Durable => Some(self.durable),
            Mark::Committed => Some(self.committed),
        }
    }

    fn reached(&self, mark: Mark, position: Position) -> Reached {
        let Some(watermark) = self.of(mark) else {
            return Reached::Yes;
        };
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::WatermarkSurvives) {
            return if position.index <= watermark {
                Reached::Yes
            } else {
                Reached::NotYet
            };
        }
        if position.index == 0 {
            // Nothing was ever written there.
            Reached::Yes
        } else if position.epoch < self.epoch {
            // The index may be another record's by now.
            Reached::Never
        } else if position.index <= watermark.max(self.applying) {
            // The disk of a leader has all that it has sent as committed: a follower's answers do not wait for the
            // follower's.
            Reached::Yes
        } else if self.is_given_up {
            Reached::Never
        } else {
            Reached::NotYet
        }
    }

    /// Wakes the subscribers whose index is reached, or all of them.
    fn wake(&mut self, all: bool) {
        let (written, durable, committed) = (self.written, self.durable, self.committed);
        for subscription in self.subscriptions.values_mut() {
            let is_reached = match subscription.awaits {
                None => false,
                Some((Mark::Appended, _)) => true,
                Some((Mark::Written, index)) => all || index <= written.max(committed),
                Some((Mark::Durable, index)) => all || index <= durable.max(committed),
                Some((Mark::Committed, index)) => all || index <= committed,
            };
            if is_reached {
                subscription.awaits = None;
                (subscription.wake)();
            }
        }
    }
}

impl Default for Watermarks {
    fn default() -> Watermarks {
        Watermarks {
            state: Mutex::default(),
            durable_waits: Waits::new(),
            writer_signal: WriterSignal::new(),
        }
    }
}

impl Watermarks {
    /// The signal that wakes the log-writer thread, which moves the watermarks of the disk.
    #[must_use]
    pub const fn writer_signal(&self) -> &WriterSignal {
        &self.writer_signal
    }

    /// Has `wake` called once, when the records up to `index` are durable, or the data set becomes another one. The
    /// caller looks at the [watermark](Self::index) after this call, and again when it is woken.
    pub fn await_durable(&self, index: u64, wake: Wake) -> Wait<'_> {
        self.durable_waits.register(index, wake)
    }

    /// Whether `mark` has reached `position`.
    #[must_use]
    pub fn reached(&self, mark: Mark, position: Position) -> Reached {
        match mark {
            Mark::Appended => Reached::Yes,
            Mark::Written | Mark::Durable | Mark::Committed => {
                self.state.lock().reached(mark, position)
            }
        }
    }

    /// The index of a watermark; `None` for [`Mark::Appended`].
    #[must_use]
    pub fn index(&self, mark: Mark) -> Option<u64> {
        self.state.lock().of(mark)
    }

    /// The index up to which answers that wait for `mark` are sent: that of the watermark, or what the node's leader
    /// has committed. `None` for [`Mark::Appended`].
    #[must_use]
    pub(super) fn reached_index(&self, mark: Mark) -> Option<u64> {
        let state = self.state.lock();
        state.of(mark).map(|index| index.max(state.committed))
    }

    /// Moves a watermark forward to `index`; an index below it changes nothing. [`Mark::Appended`] moves by itself.
    pub fn advance(&self, mark: Mark, index: u64) {
        let mut state = self.state.lock();
        match mark {
            Mark::Appended => return,
            Mark::Written => state.written = state.written.max(index),
            Mark::Durable => state.durable = state.durable.max(index),
            Mark::Committed => {
                state.committed = state.committed.max(index);
                state.applying = state.applying.max(index);
            }
        }
        state.wake(false);
        let durable = state.durable;
        drop(state);
        if mark == Mark::Durable {
            self.durable_waits.reach(durable);
        }
    }

    /// Notes that the records up to `index`, which a leader has committed, are about to be applied. A read that finds
    /// one of them before [`Mark::Committed`] moves there is answered.
    pub(crate) fn begin_applying(&self, index: u64) {
        let mut state = self.state.lock();
        state.applying = state.applying.max(index);
    }

    /// Registers a subscriber, which waits for nothing until [`await_position`](Self::await_position).
    #[must_use]
    pub fn subscribe(&self, wake: Wake) -> SubscriptionId {
        let mut state = self.state.lock();
        let id = SubscriptionId(state.next_id);
        state.next_id += 1;
        let awaits = None;
        state
            .subscriptions
            .insert(id, Subscription { wake, awaits });
        id
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.state.lock().subscriptions.remove(&id);
    }

    /// Has a subscriber woken once `mark` reaches `position`, or the position's epoch ends. Replaces what it waited
    /// for. Returns the state now: the subscriber is woken only after [`Reached::NotYet`].
    pub fn await_position(&self, id: SubscriptionId, mark: Mark, position: Position) -> Reached {
        let mut state = self.state.lock();
        let reached = state.reached(mark, position);
        if let Some(subscription) = state.subscriptions.get_mut(&id) {
            subscription.awaits = match reached {
                Reached::NotYet => Some((mark, position.index)),
                Reached::Yes | Reached::Never => None,
            };
        }
        reached
    }

    /// Gives up the epoch: no position of it that is not reached by now ever will be. Wakes every subscriber.
    pub fn give_up_epoch(&self) {
        let mut state = self.state.lock();
        state.is_given_up = true;
        state.wake(true);
    }

    /// The data set is another one, of this epoch, and ends at `index`. It was received as committed, and no disk holds
    /// it. No position behind it is reached any more.
    pub(super) fn reset(&self, epoch: u64, index: u64) {
        let mut state = self.state.lock();
        state.epoch = epoch;
        state.is_given_up = true;
        state.written = 0;
        state.durable = 0;
        state.committed = index;
        state.applying = index;
        state.wake(true);
        drop(state);
        self.durable_waits.wake_all();
    }

    /// Begins an epoch of this node, and ends the one before. Records that another leader has committed no longer count
    /// as reached: this node answers for them from now on, and the disk of the other one may be lost.
    pub(super) fn begin_epoch(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.epoch = epoch;
        state.is_given_up = false;
        state.committed = 0;
        state.applying = 0;
        state.wake(true);
    }
}

impl fmt::Debug for Watermarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Watermarks")
            .field("epoch", &state.epoch)
            .field("written", &state.written)
            .field("durable", &state.durable)
            .field("committed", &state.committed)
            .field("subscriptions", &state.subscriptions.len())
            .finish()
    }
}
