//! Byte budget of the append queue.
//!
//! A writer reserves room for its records before it takes any lock, so nothing that holds a lock ever waits for the
//! replication thread. The count of reserved bytes and the writers that wait are under one mutex; waiting writers are
//! served in the order in which they came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::{Condvar, Mutex};

/// Capacity of the append queue in bytes, as [`Records::cost`](super::backlog::Records::cost) counts them. A single
/// reservation may exceed it: it is granted once half of the capacity is free.
pub const ROOM_BYTES: u64 = 8 << 20;

/// Bytes that count as used while the budget is paused: more than there can ever be.
const PAUSED: u64 = 1 << 62;

/// The writes of clients that the space of the node's disk admits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// All of them.
    #[default]
    Enough,
    /// The disk is full, and a reserve is left: those that only remove.
    Reserve,
    /// The reserve is used up: none.
    UsedUp,
}

impl Space {
    /// The word of STATUS.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Space::Enough => "enough",
            Space::Reserve => "full",
            Space::UsedUp => "used_up",
        }
    }

    /// Whether a write is admitted.
    #[inline]
    pub(super) const fn admits(self, only_removes: bool) -> bool {
        match self {
            Space::Enough => true,
            Space::Reserve => only_removes,
            Space::UsedUp => false,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Space::Enough => 0,
            Space::Reserve => 1,
            Space::UsedUp => 2,
        }
    }

    const fn of_number(number: u8) -> Space {
        match number {
            0 => Space::Enough,
            1 => Space::Reserve,
            _ => Space::UsedUp,
        }
    }
}

/// The budget.
#[derive(Debug)]
pub(super) struct Room {
    state: Mutex<State>,
    /// [`Space`], to be read without the lock.
    space: AtomicU8,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes reserved or queued.
    used: u64,
    /// Writers without room, the first of them first.
    waiting: VecDeque<Arc<Waiter>>,
    /// Room no longer matters: the log has ended.
    is_over: bool,
    /// Why the disk is full, or last was.
    why: Arc<str>,
}

/// A writer that waits.
#[derive(Debug)]
struct Waiter {
    cost: u64,
    granted: Mutex<bool>,
    changed: Condvar,
}

/// Bytes of the budget that a writer holds. Dropping it gives them back.
#[derive(Debug)]
pub struct Reservation<'a> {
    room: &'a Room,
    bytes: u64,
}

impl State {
    fn fits(&self, cost: u64) -> bool {
        let after = self.used.saturating_add(cost);
        self.is_over || after <= ROOM_BYTES || self.used <= ROOM_BYTES / 2
    }

    /// Grants room to waiting writers, in their order, as far as there is any.
    fn grant(&mut self) {
        while self
            .waiting
            .front()
            .is_some_and(|first| self.fits(first.cost))
        {
            self.grant_first();
        }
    }

    /// Grants room to all waiting writers, unless the budget is paused.
    fn grant_all(&mut self) {
        while self.used < PAUSED && !self.waiting.is_empty() {
            self.grant_first();
        }
    }

    fn grant_first(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.used = self.used.saturating_add(first.cost);
            *first.granted.lock() = true;
            first.changed.notify_all();
            self.waiting.pop_front();
        }
    }
}

impl Room {
    pub(super) fn new() -> Room {
        Room {
            state: Mutex::default(),
            space: AtomicU8::new(0),
        }
    }

    /// The space of the disk.
    #[inline]
    pub(super) fn space(&self) -> Space {
        Space::of_number(self.space.load(Ordering::Relaxed))
    }

    /// The space of the disk, and why it is full, or last was.
    pub(super) fn space_and_why(&self) -> (Space, Arc<str>) {
        let state = self.state.lock();
        (self.space(), Arc::clone(&state.why))
    }

    /// Sets the space of the disk. Where it becomes full the writers that wait go on, and find that they are not
    /// admitted. `why` is that of the time when it became full.
    pub(super) fn set_space(&self, space: Space, why: &str) {
        if self.space() == space {
            return;
        }
        let mut state = self.state.lock();
        // It stays where the disk has space again: a writer that was refused may ask just then.
        if self.space() == Space::Enough && space != Space::Enough {
            state.why = Arc::from(why);
        }
        self.space.store(space.number(), Ordering::Relaxed);
        if space != Space::Enough {
            state.grant_all();
        }
    }

    /// Reserves `cost` bytes, or returns `None` where there is no room or others wait for some.
    pub(super) fn try_reserve(&self, cost: u64) -> Option<Reservation<'_>> {
        let mut state = self.state.lock();
        if !state.waiting.is_empty() || !state.fits(cost) {
            return None;
        }
        state.used = state.used.saturating_add(cost);
        Some(Reservation {
            room: self,
            bytes: cost,
        })
    }

    /// Reserves `cost` bytes, whether there is room or not. For the few short records that cannot wait.
    pub(super) fn take(&self, cost: u64) -> Reservation<'_> {
        let mut state = self.state.lock();
        state.used = state.used.saturating_add(cost);
        Reservation {
            room: self,
            bytes: cost,
        }
    }

    /// Reserves `cost` bytes beyond the capacity, or returns `None` while the budget is paused.
    pub(super) fn take_unless_paused(&self, cost: u64) -> Option<Reservation<'_>> {
        let mut state = self.state.lock();
        if state.used >= PAUSED {
            return None;
        }
        state.used = state.used.saturating_add(cost);
        Some(Reservation {
            room: self,
            bytes: cost,
        })
    }

    /// Waits until `cost` bytes are reserved. The caller holds no lock.
    pub(super) fn reserve(&self, cost: u64) -> Reservation<'_> {
        let mut state = self.state.lock();
        let waiter = Arc::new(Waiter {
            cost,
            granted: Mutex::new(false),
            changed: Condvar::new(),
        });
        state.waiting.push_back(Arc::clone(&waiter));
        state.grant();
        drop(state);
        let mut granted = waiter.granted.lock();
        while !*granted {
            waiter.changed.wait(&mut granted);
        }
        Reservation {
            room: self,
            bytes: cost,
        }
    }

    /// Grants no room until [`resume`](Self::resume): writers wait, with nothing done. Calls do not nest.
    pub(super) fn pause(&self) {
        let mut state = self.state.lock();
        if state.used < PAUSED {
            state.used += PAUSED;
        }
    }

    /// Grants room again.
    pub(super) fn resume(&self) {
        let mut state = self.state.lock();
        if state.used >= PAUSED {
            state.used -= PAUSED;
        }
        state.grant();
    }

    /// Gives `bytes` back.
    pub(super) fn release(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        debug_assert!(state.used >= bytes, "more is released than was reserved");
        state.used = state.used.saturating_sub(bytes);
        state.grant();
    }

    /// Grants every reservation from now on.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        state.grant();
    }
}

impl<'a> Reservation<'a> {
    /// Bytes held.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` out of this reservation as one of its own; `None` where it holds fewer.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Option<Reservation<'a>> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Reservation {
            room: self.room,
            bytes,
        })
    }

    /// Adds another reservation of the same queue to this one.
    pub fn join(&mut self, mut other: Reservation<'a>) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Hands `bytes` over to the append queue, which releases them once the backlog holds the records, and gives the
    /// rest back.
    pub(super) fn spend(mut self, bytes: u64) {
        debug_assert!(self.bytes >= bytes, "more is appended than was reserved");
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.room.release(self.bytes);
    }
}
