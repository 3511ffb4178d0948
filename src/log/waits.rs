//! Waits until the data set, or what is durable of it, gets to an index.
//!
//! A request that waits for a position of the log registers a [`Wait`] and then looks whether the data set is there.
//! Every change of the data set's position comes with a look at the lowest index that is waited for, which costs one
//! comparison where nobody waits. Nothing here blocks: a waiter is woken by its [`Wake`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Wake;

/// The lowest awaited index where nobody waits.
const NOBODY: u64 = u64::MAX;

/// The waits for positions of one log.
pub(super) struct Waits {
    /// The lowest index that is waited for. Written with `state` locked.
    lowest: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// By index, then in the order in which they came.
    waiting: BTreeMap<(u64, u64), Wake>,
}

/// A registered wait, which ends when it is dropped.
#[must_use]
pub struct Wait<'a> {
    waits: &'a Waits,
    key: (u64, u64),
}

impl Waits {
    pub(super) fn new() -> Waits {
        Waits {
            lowest: AtomicU64::new(NOBODY),
            state: Mutex::default(),
        }
    }

    /// Has `wake` called once, when the data set gets to `index` or everyone is woken.
    pub(super) fn register(&self, index: u64, wake: Wake) -> Wait<'_> {
        let mut state = self.state.lock();
        let key = (index, state.next_id);
        state.next_id += 1;
        state.waiting.insert(key, wake);
        self.note_lowest(&state);
        Wait { waits: self, key }
    }

    /// Wakes those that wait for `index` or less. To be called after the position was moved to `index` under the lock
    /// with which waiters look at it: a waiter that registered before its look at the position is then seen here.
    #[inline]
    pub(super) fn reach(&self, index: u64) {
        if index >= self.lowest.load(Ordering::Relaxed) {
            self.wake_up_to(index);
        }
    }

    /// Wakes everyone. To be called as [`reach`](Self::reach).
    pub(super) fn wake_all(&self) {
        if self.lowest.load(Ordering::Relaxed) != NOBODY {
            self.wake_up_to(u64::MAX);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_up_to(&self, index: u64) {
        let mut state = self.state.lock();
        while let Some(first) = state.waiting.first_entry()
            && first.key().0 <= index
        {
            let wake = first.remove();
            wake();
        }
        self.note_lowest(&state);
    }

    fn note_lowest(&self, state: &State) {
        let lowest = state.waiting.keys().next();
        let lowest = lowest.map_or(NOBODY, |(index, _)| *index);
        self.lowest.store(lowest, Ordering::Relaxed);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.waits.state.lock();
        state.waiting.remove(&self.key);
        self.waits.note_lowest(&state);
    }
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("index", &self.key.0).finish()
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.state.lock().waiting.len();
        f.debug_struct("Waits").field("count", &count).finish()
    }
}
