//! Connections with small, frequent requests, served by the thread of one of them while the other threads sleep.
//!
//! A thread for each connection costs a context switch for each request; one thread that waits for many sockets with
//! epoll has none. So while several connections are active they share a *poller*: each takes a *slot*, and all their
//! threads sleep but one, the *polling thread*, which waits for all sockets and answers the requests that arrive.
//! The polling thread never waits for a client and never does long work: it wakes that connection's own thread, which
//! continues. It also wakes the thread of a connection that has become idle, which then waits for its client alone. A
//! polling thread whose own connection leaves makes another thread the polling thread. The pattern is Leader/Followers
//! (Schmidt and others, Pattern-Oriented Software Architecture 2) under other names, since those words have a meaning
//! here already.
//!
//! # Invariants
//!
//! * A connection with a slot is in [`Slots`] and in the epoll set, until its own thread is woken.
//! * There is one polling thread while any slot is taken: a thread that takes a slot when there is none becomes it, and
//!   a polling thread that leaves appoints another one before it does.
//! * Only the polling thread frees slots, so a slot that it has looked up stays taken until it frees it.
//! * The lock of a connection may be held when that of the slots is taken, never the other way round.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// Connections that must be active before they share a poller. With two, one thread for both is slower than two
/// threads.
const ACTIVE_MIN: usize = 3;

/// Most sockets that one call of epoll reports.
const READY_MAX: usize = 64;

/// A connection that a poller can serve: its socket, and what serving its client takes.
pub(super) trait Polled: AsFd {
    /// Answers the requests that have arrived, without waiting for anything. Returns whether that was all; otherwise
    /// the connection's own thread has to continue.
    fn serve(&mut self) -> bool;
}

/// A connection, shared between its own thread and a polling thread.
pub(super) struct Handle<C> {
    state: Mutex<State<C>>,
    woken: Condvar,
}

/// A connection, locked by the thread that serves it.
pub(super) struct State<C> {
    pub(super) connection: C,
    duty: Duty,
}

/// What a connection's own thread does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Serves its client.
    Serve,
    /// Sleeps; the connection has a slot.
    Sleep,
    /// Serves all connections that have a slot, its own among them.
    Poll,
}

impl<C> Handle<C> {
    pub(super) fn new(connection: C) -> Arc<Handle<C>> {
        let duty = Duty::Serve;
        Arc::new(Handle {
            state: Mutex::new(State { connection, duty }),
            woken: Condvar::new(),
        })
    }

    /// Locks the connection. Its own thread locks it once, and unlocks it only while it shares.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock()
    }

    /// Gives the connection's own thread a duty and wakes it.
    fn wake(&self, mut state: MutexGuard<'_, State<C>>, duty: Duty) {
        state.duty = duty;
        drop(state);
        self.woken.notify_one();
    }
}

/// A group of connections that may share a thread.
pub(super) struct Poller<C> {
    epoll: OwnedFd,
    /// Connections that have a slot, or whose thread is awake.
    active: AtomicUsize,
    /// Those of them that send a stream; they never take a slot.
    streams: AtomicUsize,
    /// Interval at which idle connections are looked for.
    sweep_interval: Duration,
    slots: Mutex<Slots<C>>,
}

struct Slots<C> {
    /// A slot's number is its index.
    taken: Vec<Option<Taken<C>>>,
    free: Vec<usize>,
    has_polling_thread: bool,
}

struct Taken<C> {
    handle: Arc<Handle<C>>,
    /// Input has arrived since the last sweep, or the slot was taken since.
    was_active: bool,
}

/// A slot that the polling thread has looked up: its number and its connection.
type Found<C> = (usize, Arc<Handle<C>>);

impl<C: Polled> Poller<C> {
    /// A poller whose connections leave after they have been idle for one to two times `sweep_interval`.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub(super) fn new(sweep_interval: Duration) -> io::Result<Poller<C>> {
        Ok(Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            active: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            sweep_interval,
            slots: Mutex::new(Slots {
                taken: Vec::new(),
                free: Vec::new(),
                has_polling_thread: false,
            }),
        })
    }

    /// Counts a connection as active: its thread is awake.
    pub(super) fn enter(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as no longer active: its thread sleeps until input arrives, or it has ended.
    pub(super) fn leave(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts an active connection as one that sends a stream, or no longer.
    pub(super) fn count_stream(&self, begins: bool) {
        if begins {
            self.streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether connections other than the caller's are active. Streams count: they have work while there are writes. A
    /// thread that yields without others would yield to other programs, and its client would wait for those.
    pub(super) fn has_others(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 1
    }

    /// Whether enough connections are active for the caller's to share.
    pub(super) fn has_enough(&self) -> bool {
        let streams = self.streams.load(Ordering::Relaxed);
        self.active.load(Ordering::Relaxed) >= ACTIVE_MIN + streams
    }

    /// Takes a slot for a connection and returns when its own thread is woken. Every whole request of its client has to
    /// be answered.
    pub(super) fn share(&self, handle: &Arc<Handle<C>>, state: &mut MutexGuard<'_, State<C>>) {
        let mut slots = self.slots.lock();
        let number = slots.next_number();
        let (data, flags) = (
            epoll::EventData::new_u64(number as u64),
            epoll::EventFlags::IN,
        );
        if epoll::add(&self.epoll, state.connection.as_fd(), data, flags).is_err() {
            // No memory, or the user's limit of watched sockets: the thread waits alone.
            return;
        }
        slots.take(number, handle);
        state.duty = if mem::replace(&mut slots.has_polling_thread, true) {
            Duty::Sleep
        } else {
            Duty::Poll
        };
        drop(slots);
        loop {
            match state.duty {
                Duty::Serve => return,
                Duty::Sleep => handle.woken.wait(state),
                Duty::Poll => MutexGuard::unlocked(state, || self.poll(handle)),
            }
        }
    }

    /// The polling thread: serves all connections that have a slot until `own` leaves.
    fn poll(&self, own: &Arc<Handle<C>>) {
        let timeout = Timespec::try_from(self.sweep_interval).unwrap_or_default();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(READY_MAX);
        let mut found: Vec<Found<C>> = Vec::with_capacity(READY_MAX);
        let mut swept = Instant::now();
        loop {
            events.clear();
            // After an interruption, or any other error, no socket counts as ready.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout));
            let mut own_leaves = false;
            self.slots.lock().find_ready(&events, &mut found);
            for (number, handle) in found.drain(..) {
                let mut state = handle.lock();
                if !state.connection.serve() {
                    own_leaves |= Arc::ptr_eq(&handle, own);
                    self.dismiss(number, &handle, state);
                }
            }
            if swept.elapsed() >= self.sweep_interval {
                swept = Instant::now();
                self.slots.lock().find_idle(&mut found);
                for (number, handle) in found.drain(..) {
                    own_leaves |= Arc::ptr_eq(&handle, own);
                    self.dismiss(number, &handle, handle.lock());
                }
            }
            if own_leaves {
                break;
            }
        }
        let next = self.slots.lock().next_polling_thread();
        if let Some(handle) = next {
            handle.wake(handle.lock(), Duty::Poll);
        }
    }

    /// Frees a slot and wakes its connection's own thread.
    fn dismiss(&self, number: usize, handle: &Handle<C>, state: MutexGuard<'_, State<C>>) {
        // Fails only for a socket that was not added.
        let _ = epoll::delete(&self.epoll, state.connection.as_fd());
        self.slots.lock().release(number);
        handle.wake(state, Duty::Serve);
    }
}

impl<C> Slots<C> {
    /// The number of the slot that is taken next.
    fn next_number(&mut self) -> usize {
        if self.free.is_empty() {
            self.free.push(self.taken.len());
            self.taken.push(None);
        }
        self.free[self.free.len() - 1]
    }

    fn take(&mut self, number: usize, handle: &Arc<Handle<C>>) {
        self.free.pop();
        let (handle, was_active) = (Arc::clone(handle), true);
        self.taken[number] = Some(Taken { handle, was_active });
    }

    fn release(&mut self, number: usize) {
        self.taken[number] = None;
        self.free.push(number);
    }

    /// Adds the connections whose sockets are ready to `found`.
    fn find_ready(&mut self, events: &[epoll::Event], found: &mut Vec<Found<C>>) {
        for event in events {
            let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if let Some(Some(taken)) = self.taken.get_mut(number) {
                taken.was_active = true;
                found.push((number, Arc::clone(&taken.handle)));
            }
        }
    }

    /// Adds the connections without input since the last call to `found`; also the only one that is left, which has
    /// nothing to share.
    fn find_idle(&mut self, found: &mut Vec<Found<C>>) {
        let is_last = self.taken.len() - self.free.len() == 1;
        for (number, taken) in self.taken.iter_mut().enumerate() {
            if let Some(Taken { handle, was_active }) = taken
                && (!mem::take(was_active) || is_last)
            {
                found.push((number, Arc::clone(handle)));
            }
        }
    }

    /// The connection whose thread polls next; `None` where no slot is taken.
    fn next_polling_thread(&mut self) -> Option<Arc<Handle<C>>> {
        let next = self.taken.iter().flatten().next();
        self.has_polling_thread = next.is_some();
        next.map(|taken| Arc::clone(&taken.handle))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{self, Sender};
    use std::thread::{self, ThreadId};

    use super::*;

    /// Sends back each byte. Its own thread is woken for a `!`.
    struct Mirror {
        stream: UnixStream,
        served_by: Vec<ThreadId>,
    }

    impl AsFd for Mirror {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }
    }

    impl Polled for Mirror {
        fn serve(&mut self) -> bool {
            let mut byte = [0];
            self.served_by.push(thread::current().id());
            self.stream.read_exact(&mut byte).unwrap();
            self.stream.write_all(&byte).unwrap();
            byte != *b"!"
        }
    }

    /// Sent by a connection's thread when it was woken: its number, its thread, and the threads that have served it.
    type Woken = (usize, ThreadId, Vec<ThreadId>);

    /// Longer than any test takes.
    const NEVER: Duration = Duration::from_secs(3_600);

    /// Starts a thread that shares for each of `count` clients; it runs until it is woken.
    fn poller_of(
        count: usize,
        sweep_interval: Duration,
    ) -> (Arc<Poller<Mirror>>, Vec<UnixStream>, mpsc::Receiver<Woken>) {
        let poller = Arc::new(Poller::new(sweep_interval).unwrap());
        let (woken, wakes) = mpsc::channel();
        let clients = (0..count).map(|number| join(&poller, number, &woken));
        (Arc::clone(&poller), clients.collect(), wakes)
    }

    fn join(poller: &Arc<Poller<Mirror>>, number: usize, woken: &Sender<Woken>) -> UnixStream {
        let (client, stream) = UnixStream::pair().unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let (poller, woken) = (Arc::clone(poller), woken.clone());
        thread::spawn(move || {
            let served_by = Vec::new();
            let handle = Handle::new(Mirror { stream, served_by });
            let mut state = handle.lock();
            poller.share(&handle, &mut state);
            let served_by = mem::take(&mut state.connection.served_by);
            let _ = woken.send((number, thread::current().id(), served_by));
        });
        client
    }

    fn ask(client: &mut UnixStream, byte: u8) {
        let mut answer = [0];
        client.write_all(&[byte]).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [byte]);
    }

    #[test]
    fn one_thread_serves_all_connections_that_share() {
        let (_, mut clients, wakes) = poller_of(4, NEVER);
        for _ in 0..10 {
            for client in &mut clients {
                ask(client, b'.');
            }
        }
        for client in &mut clients {
            ask(client, b'!');
        }
        let wakes: Vec<Woken> = wakes.iter().take(4).collect();
        // At the last byte, polling threads had left.
        let mut pollers: Vec<ThreadId> = wakes
            .iter()
            .flat_map(|wake| wake.2[..10].to_vec())
            .collect();
        pollers.dedup();
        assert_eq!(pollers.len(), 1);
        assert!(wakes.iter().any(|wake| wake.1 == pollers[0]));
    }

    #[test]
    fn a_polling_thread_whose_own_connection_leaves_appoints_another() {
        let (poller, mut clients, wakes) = poller_of(8, NEVER);
        // Each is the polling thread at some time, and the others are served after it has left.
        for woken in 0..8 {
            for client in &mut clients[woken..] {
                ask(client, b'.');
            }
            ask(&mut clients[woken], b'!');
            assert_eq!(wakes.recv().unwrap().0, woken);
        }
        assert_eq!(poller.slots.lock().free.len(), 8);
    }

    #[test]
    fn idle_connections_leave() {
        let (poller, _clients, wakes) = poller_of(3, Duration::from_millis(1));
        let mut woken: Vec<usize> = wakes.iter().take(3).map(|wake| wake.0).collect();
        woken.sort_unstable();
        assert_eq!(woken, [0, 1, 2]);
        let slots = poller.slots.lock();
        assert_eq!(slots.free.len(), slots.taken.len());
    }

    #[test]
    fn idle_are_connections_without_input_since_the_last_sweep_and_the_last_one() {
        let (poller, mut clients, _wakes) = poller_of(3, NEVER);
        for client in &mut clients {
            ask(client, b'.');
        }
        let numbers = |slots: &mut Slots<Mirror>| -> Vec<usize> {
            let mut found = Vec::new();
            slots.find_idle(&mut found);
            found.into_iter().map(|(number, _)| number).collect()
        };
        let mut slots = poller.slots.lock();
        assert_eq!(numbers(&mut slots), [0; 0]);
        slots.taken[1].as_mut().unwrap().was_active = true;
        assert_eq!(numbers(&mut slots), [0, 2]);
        slots.release(0);
        slots.release(2);
        slots.taken[1].as_mut().unwrap().was_active = true;
        assert_eq!(numbers(&mut slots), [1]);
    }

    #[test]
    fn the_last_connection_leaves_even_though_its_client_is_active() {
        let (poller, mut clients, wakes) = poller_of(1, Duration::from_millis(1));
        // Once its thread is woken, that ends, and its socket with it.
        let mut answer = [0];
        while clients[0].write_all(b".").is_ok()
            && clients[0].read(&mut answer).is_ok_and(|len| len == 1)
        {}
        assert_eq!(wakes.recv().unwrap().0, 0);
        assert!(!poller.slots.lock().has_polling_thread);
    }

    #[test]
    fn streams_count_as_others_and_not_towards_sharing() {
        let poller: Poller<Mirror> = Poller::new(NEVER).unwrap();
        let seen = || (poller.has_others(), poller.has_enough());
        poller.enter();
        assert_eq!(seen(), (false, false));
        for _ in 0..2 {
            poller.enter();
            poller.count_stream(true);
        }
        assert_eq!(seen(), (true, false));
        poller.count_stream(false);
        poller.count_stream(false);
        assert_eq!(seen(), (true, true));
        poller.leave();
        assert_eq!(seen(), (true, false));
    }

    #[test]
    fn slots_are_used_again() {
        let (poller, mut clients, wakes) = poller_of(1, NEVER);
        let (woken, more) = mpsc::channel();
        ask(&mut clients[0], b'!');
        wakes.recv().unwrap();
        for number in 0..100 {
            let mut client = join(&poller, number, &woken);
            ask(&mut client, b'!');
            assert_eq!(more.recv().unwrap().0, number);
        }
        assert_eq!(poller.slots.lock().taken.len(), 1);
    }
}
