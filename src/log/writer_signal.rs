//! Wakes the log-writer thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A signal that one thread, the log-writer thread, waits for. It is stored until that thread waits.
///
/// A thread that executes many requests before it waits for their records [defers](Self::defer) the signal meanwhile.
/// The log-writer thread then finds the records of all of them, and one sync serves them.
///
/// # Invariants
///
/// The log-writer thread looks at the log after each signal, so it finds the records that were appended before.
/// [`send`](Self::send) sets `is_wanted` and then reads `deferring`; the end of a deferral changes `deferring` and then
/// reads `is_wanted`. So one of the two sends a signal that was deferred.
///
/// A thread that [takes](Deferral::take) the signal looks at the log after that, so it finds the records of each signal
/// that it has taken.
#[derive(Debug)]
pub struct WriterSignal {
    is_set: AtomicBool,
    is_wanted: AtomicBool,
    /// Threads that defer it.
    deferring: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

/// A deferral of a [`WriterSignal`]. Its end sends the signal, if that was wanted meanwhile.
#[derive(Debug)]
pub struct Deferral<'a> {
    signal: &'a WriterSignal,
}

impl WriterSignal {
    /// A signal that is not set.
    #[must_use]
    pub fn new() -> WriterSignal {
        WriterSignal {
            is_set: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
            deferring: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Wakes the log-writer thread: now, or where threads defer that, when the last of them ends its deferral.
    pub fn send(&self) {
        self.is_wanted.store(true, Ordering::SeqCst);
        self.send_wanted();
    }

    fn send_wanted(&self) {
        if self.deferring.load(Ordering::SeqCst) == 0
            && self.is_wanted.swap(false, Ordering::SeqCst)
        {
            self.send_now();
        }
    }

    /// Wakes the log-writer thread, also where threads defer that.
    pub fn send_now(&self) {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            // With the lock, so that the thread is not between looking and waiting.
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }

    /// Defers the signal until the result is dropped. The caller waits for nothing meanwhile.
    #[must_use]
    pub fn defer(&self) -> Deferral<'_> {
        self.deferring.fetch_add(1, Ordering::SeqCst);
        Deferral { signal: self }
    }

    /// Waits for the signal, until `deadline` at most, and resets it. Returns whether it came.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut lock = self.lock.lock();
        while !self.is_set.swap(false, Ordering::SeqCst) {
            if self.changed.wait_until(&mut lock, deadline).timed_out() {
                return self.is_set.swap(false, Ordering::SeqCst);
            }
        }
        true
    }
}

impl Deferral<'_> {
    /// Takes the signal that is deferred, which is not sent then. Returns whether there was one. The caller looks at
    /// the log in the place of the log-writer thread, or wakes it.
    #[must_use]
    pub fn take(&self) -> bool {
        self.signal.is_wanted.swap(false, Ordering::SeqCst)
    }
}

impl Default for WriterSignal {
    fn default() -> WriterSignal {
        WriterSignal::new()
    }
}

impl Drop for Deferral<'_> {
    fn drop(&mut self) {
        self.signal.deferring.fetch_sub(1, Ordering::SeqCst);
        self.signal.send_wanted();
    }
}
