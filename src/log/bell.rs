//! Wakes the log-writer thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A bell that one thread, the log-writer thread, waits for.
///
/// A thread that executes many requests before it waits for their records [defers](Self::defer) the bell meanwhile:
/// the writer then finds the records of all of them, and one sync serves them.
///
/// # Invariants
///
/// A ring that follows an append is heard: the writer looks at the log after it. One that is deferred is noted before
/// the deferrals are looked for, and a deferral looks for that note after it has ended: one of the two rings.
#[derive(Debug)]
pub struct Bell {
    is_rung: AtomicBool,
    /// It is to be rung, by the thread that finds no deferral, or by the last one that ends one.
    is_wanted: AtomicBool,
    /// Threads that defer it.
    deferring: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

/// A deferral of the [`Bell`]. When it is dropped, the bell is rung if it was to be.
#[derive(Debug)]
pub struct Deferral<'a> {
    bell: &'a Bell,
}

impl Bell {
    /// A bell that was not rung.
    #[must_use]
    pub fn new() -> Bell {
        Bell {
            is_rung: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
            deferring: AtomicUsize::new(0),
            lock: Mutex::new(()),
            rung: Condvar::new(),
        }
    }

    /// Wakes the log-writer thread, unless a thread defers that.
    pub fn ring(&self) {
        self.is_wanted.store(true, Ordering::SeqCst);
        self.ring_if_wanted();
    }

    /// Rings it where that is wanted and no thread defers it.
    fn ring_if_wanted(&self) {
        if self.deferring.load(Ordering::SeqCst) == 0
            && self.is_wanted.swap(false, Ordering::SeqCst)
        {
            self.ring_now();
        }
    }

    /// Wakes the log-writer thread.
    pub fn ring_now(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // With the lock, so that the thread is not between looking and waiting.
            drop(self.lock.lock());
            self.rung.notify_all();
        }
    }

    /// Defers the bell until the result is dropped. The caller waits for nothing meanwhile.
    #[must_use]
    pub fn defer(&self) -> Deferral<'_> {
        self.deferring.fetch_add(1, Ordering::SeqCst);
        Deferral { bell: self }
    }

    /// Waits until it is rung, or has been since the last call; until `deadline` at most. Returns whether it was.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut lock = self.lock.lock();
        while !self.is_rung.swap(false, Ordering::SeqCst) {
            if self.rung.wait_until(&mut lock, deadline).timed_out() {
                return self.is_rung.swap(false, Ordering::SeqCst);
            }
        }
        true
    }
}

impl Default for Bell {
    fn default() -> Bell {
        Bell::new()
    }
}

impl Drop for Deferral<'_> {
    fn drop(&mut self) {
        self.bell.deferring.fetch_sub(1, Ordering::SeqCst);
        self.bell.ring_if_wanted();
    }
}
