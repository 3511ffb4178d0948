//! The parts of `parking_lot` and `crossbeam_channel` that `src/engine` and `src/log` use, made of
//! locks of `shuttle`.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use shuttle::sync as inner;

#[derive(Debug, Default)]
pub struct RwLock<T>(inner::RwLock<T>);

impl<T> RwLock<T> {
    pub fn read(&self) -> inner::RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub fn write(&self) -> inner::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }

    /// Called only to bring the lock into the cache. The result is not used.
    pub fn is_locked(&self) -> bool {
        false
    }

    pub fn try_read(&self) -> Option<inner::RwLockReadGuard<'_, T>> {
        self.0.try_read().ok()
    }

    pub fn try_write(&self) -> Option<inner::RwLockWriteGuard<'_, T>> {
        self.0.try_write().ok()
    }
}

#[derive(Debug, Default)]
pub struct Mutex<T>(inner::Mutex<T>);

/// Empty only during a wait for its condition.
pub struct MutexGuard<'a, T>(Option<inner::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(inner::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap()))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

#[derive(Debug)]
pub struct Condvar(inner::Condvar);

/// Whether a wait ended by its deadline.
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    #[allow(clippy::new_without_default)] // as the original
    pub fn new() -> Condvar {
        Condvar(inner::Condvar::new())
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().unwrap();
        guard.0 = Some(self.0.wait(held).unwrap());
    }

    /// A scheduler knows no time: a deadline in the past has come, and any other never comes.
    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        let is_over = deadline <= Instant::now();
        if !is_over {
            self.wait(guard);
        }
        WaitTimeoutResult(is_over)
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[derive(Debug)]
struct Channel<T> {
    queue: Mutex<VecDeque<T>>,
    filled: Condvar,
}

#[derive(Debug)]
pub struct Sender<T>(Arc<Channel<T>>);

#[derive(Debug)]
pub struct Receiver<T>(Arc<Channel<T>>);

/// Never returned: the log holds both ends of its channel.
#[derive(Debug)]
pub struct Closed;

pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let channel = Arc::new(Channel {
        queue: Mutex::default(),
        filled: Condvar::new(),
    });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl<T> Sender<T> {
    pub fn send(&self, value: T) -> Result<(), Closed> {
        self.0.queue.lock().push_back(value);
        self.0.filled.notify_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub fn try_iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.0.queue.lock().pop_front())
    }
}

/// Waits for one receiver.
#[derive(Default)]
pub struct Select<'a>(Option<&'a dyn Ready>);

trait Ready {
    /// Waits until there is something to receive.
    fn await_some(&self);
}

impl<T> Ready for Receiver<T> {
    fn await_some(&self) {
        let mut queue = self.0.queue.lock();
        while queue.is_empty() {
            self.0.filled.wait(&mut queue);
        }
    }
}

impl<'a> Select<'a> {
    pub fn new() -> Select<'a> {
        Select::default()
    }

    pub fn recv<T>(&mut self, receiver: &'a Receiver<T>) -> usize {
        self.0 = Some(receiver);
        0
    }

    pub fn ready(&mut self) -> usize {
        self.0.unwrap().await_some();
        0
    }
}
