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
//! A connection with answers that wait for a [position](Position) of the log has a slot too, however few connections
//! there are, so that no thread waits for one client's position while others need it. The polling thread keeps such
//! connections in the order of their positions; the watermark wakes it through an eventfd when it has passed the
//! lowest. The only connection that is active has no slot for that, where its own thread can
//! [write its records](Poller::begin_alone) in the place of the log-writer thread.
//!
//! # Invariants
//!
//! * A connection with a slot is in [`Slots`] and in the epoll set, until its own thread is woken.
//! * There is one polling thread while any slot is taken: a thread that takes a slot when there is none becomes it, and
//!   a polling thread that leaves appoints another one before it does.
//! * Only the polling thread frees slots, so a slot that it has looked up stays taken until it frees it.
//! * The lock of a connection may be held when that of the slots is taken, never the other way round.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::log::{Deferral, Mark, Position, Reached, SubscriptionId, Watermarks, WriterSignal};

/// Connections that must be active before they share a poller. Two clients with one GET each get 0.85 times the answers
/// from one thread. With three and more, 50 get 1.28 and 200 get 1.48 times those from a thread for each.
const ACTIVE_MIN: usize = 3;

/// Most sockets that one call of epoll reports.
const READY_MAX: usize = 64;

/// Requests after which the log-writer thread is woken while others are served.
const DEFERRED_MAX: usize = 128;

/// The eventfd's number among the slots.
const WATERMARK: u64 = u64::MAX;

/// A connection that a poller can serve: its socket, and what serving its client takes.
pub(super) trait Polled: AsFd {
    /// Reads where `is_readable`, answers the requests that have arrived, and sends what can be sent, without waiting
    /// for anything. Returns whether that was all; otherwise the connection's own thread has to continue.
    fn serve(&mut self, is_readable: bool) -> bool;

    /// Requests that the last call of [`serve`](Self::serve) has executed.
    fn executed(&self) -> usize;

    /// The position that the first answer to be sent waits for.
    fn awaits(&self) -> Option<Position>;

    /// Whether input is read. Where it is not, the connection waits for a position.
    fn reads(&self) -> bool;

    /// Whether the connection's own thread has to continue, since a deadline has passed.
    fn is_overdue(&mut self, now: Instant) -> bool;
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

/// The duty of a connection's own thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Serves its client.
    Serve,
    /// Sleeps; the connection has a slot.
    Sleep,
    /// Serves all connections that have a slot, its own among them.
    Poll,
}

/// The execution of requests of the only connection that is active. The log-writer thread is not woken meanwhile.
pub(super) struct Alone<'a> {
    deferral: Deferral<'a>,
    write: &'a (dyn Fn() + Sync),
}

impl Alone<'_> {
    /// Writes the records of the requests, or has the log-writer thread do it.
    pub(super) fn write(self) {
        if self.deferral.take() {
            (self.write)();
        }
    }
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
pub(super) struct Poller<'a, C> {
    epoll: OwnedFd,
    /// `None` where no answer waits for a position.
    watermark: Option<Watermark<'a>>,
    /// Writes the log in the place of the log-writer thread, or wakes that.
    write: Option<&'a (dyn Fn() + Sync)>,
    /// Connections that have a slot, or whose thread is awake.
    active: AtomicUsize,
    /// Those of them that send a stream; they never take a slot.
    streams: AtomicUsize,
    /// Interval at which idle connections are looked for.
    sweep_interval: Duration,
    slots: Mutex<Slots<C>>,
}

/// A watermark that answers wait for, and how it wakes the polling thread.
struct Watermark<'a> {
    watermarks: &'a Watermarks,
    mark: Mark,
    subscription: SubscriptionId,
    eventfd: Arc<OwnedFd>,
}

struct Slots<C> {
    /// A slot's number is its index.
    taken: Vec<Option<Taken<C>>>,
    free: Vec<usize>,
    has_polling_thread: bool,
    /// Slots of the connections that wait for a position, by that.
    awaiting: BTreeSet<(Position, usize)>,
}

struct Taken<C> {
    handle: Arc<Handle<C>>,
    /// Input has arrived since the last sweep, or the slot was taken since.
    was_active: bool,
    /// Its place in [`Slots::awaiting`].
    awaits: Option<Position>,
    /// Whether the epoll set reports its input.
    reads: bool,
}

/// A slot that the polling thread has looked up: its number and its connection.
type Found<C> = (usize, Arc<Handle<C>>);

impl<'a> Watermark<'a> {
    fn new(watermarks: &'a Watermarks, mark: Mark, epoll: &OwnedFd) -> io::Result<Watermark<'a>> {
        let eventfd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let data = epoll::EventData::new_u64(WATERMARK);
        epoll::add(epoll, &eventfd, data, epoll::EventFlags::IN)?;
        let woken = Arc::clone(&eventfd);
        Ok(Watermark {
            watermarks,
            mark,
            subscription: watermarks.subscribe(Arc::new(move || notify(&woken))),
            eventfd,
        })
    }

    /// Whether a wait for `position` is over.
    fn is_over(&self, position: Position) -> bool {
        self.watermarks.reached(self.mark, position) != Reached::NotYet
    }

    /// Has the polling thread woken once a wait for `position` is over; returns whether it is over already.
    fn arm(&self, position: Position) -> bool {
        let reached = self
            .watermarks
            .await_position(self.subscription, self.mark, position);
        reached != Reached::NotYet
    }

    /// Forgets earlier notifications.
    fn clear(&self) {
        let mut count = [0; 8];
        // Fails only where there was none.
        let _ = rustix::io::read(&self.eventfd, &mut count);
    }
}

impl Drop for Watermark<'_> {
    fn drop(&mut self) {
        self.watermarks.unsubscribe(self.subscription);
    }
}

/// Wakes the polling thread.
fn notify(eventfd: &OwnedFd) {
    // Fails only where 2^64 - 2 notifications are pending.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

impl<'a, C: Polled> Poller<'a, C> {
    /// A poller whose connections leave after they have been idle for one to two times `sweep_interval`. `watermark` is
    /// the one that their answers wait for, if they do. `write` writes the log in the place of the log-writer thread,
    /// where there is one.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub(super) fn new(
        sweep_interval: Duration,
        watermark: Option<(&'a Watermarks, Mark)>,
        write: Option<&'a (dyn Fn() + Sync)>,
    ) -> io::Result<Poller<'a, C>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watermark =
            watermark.map(|(watermarks, mark)| Watermark::new(watermarks, mark, &epoll));
        Ok(Poller {
            watermark: watermark.transpose()?,
            write,
            epoll,
            active: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            sweep_interval,
            slots: Mutex::new(Slots {
                taken: Vec::new(),
                free: Vec::new(),
                has_polling_thread: false,
                awaiting: BTreeSet::new(),
            }),
        })
    }

    /// Interval at which idle connections are looked for.
    pub(super) const fn sweep_interval(&self) -> Duration {
        self.sweep_interval
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

    /// Begins the execution of requests whose records the caller may write itself, since no other connection is active.
    /// `None` where others are, and where answers wait for no position. The caller waits for nothing until the end.
    pub(super) fn begin_alone(&self) -> Option<Alone<'_>> {
        let (watermark, write) = (self.watermark.as_ref()?, self.write?);
        self.writes_alone().then(|| Alone {
            deferral: watermark.watermarks.writer_signal().defer(),
            write,
        })
    }

    /// Whether the only connection that is active writes its records itself.
    fn writes_alone(&self) -> bool {
        let streams = self.streams.load(Ordering::Relaxed);
        self.write.is_some() && self.active.load(Ordering::Relaxed) <= 1 + streams
    }

    /// Takes a slot for a connection and returns when its own thread is woken. All that can be done for its client is
    /// done. False where there is no slot to be had.
    pub(super) fn share(
        &self,
        handle: &Arc<Handle<C>>,
        state: &mut MutexGuard<'_, State<C>>,
    ) -> bool {
        let connection = &state.connection;
        let (reads, awaits) = (connection.reads(), connection.awaits());
        let mut slots = self.slots.lock();
        let number = slots.next_number();
        let data = epoll::EventData::new_u64(number as u64);
        if epoll::add(&self.epoll, connection.as_fd(), data, interest(reads)).is_err() {
            // No memory, or the user's limit of watched sockets: the thread waits alone.
            return false;
        }
        slots.take(number, handle, reads);
        let is_first = slots.set_awaits(number, awaits);
        let is_polled = mem::replace(&mut slots.has_polling_thread, true);
        drop(slots);
        if let Some(watermark) = &self.watermark
            && is_first
            && is_polled
        {
            // So that the polling thread waits for this position instead.
            notify(&watermark.eventfd);
        }
        state.duty = if is_polled { Duty::Sleep } else { Duty::Poll };
        loop {
            match state.duty {
                Duty::Serve => return true,
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
        let (mut swept, mut armed) = (Instant::now(), None);
        loop {
            let mut own_leaves = false;
            if let Some(watermark) = &self.watermark {
                if events.iter().any(|event| event.data.u64() == WATERMARK) {
                    watermark.clear();
                    armed = None;
                }
                own_leaves |= self.serve_reached(watermark, &mut armed, own, &mut found);
            }
            events.clear();
            if !own_leaves {
                // After an interruption, or any other error, no socket counts as ready.
                let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout));
            }
            self.slots.lock().find_ready(&events, &mut found);
            own_leaves |= self.serve_ready(&mut found, own);
            if swept.elapsed() >= self.sweep_interval {
                swept = Instant::now();
                own_leaves |= self.sweep(swept, own, &mut found);
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

    /// Serves the connections whose input is ready. The log-writer thread is woken once many requests are executed, and
    /// at the end: so one sync serves all that they write.
    fn serve_ready(&self, found: &mut Vec<Found<C>>, own: &Arc<Handle<C>>) -> bool {
        let watermark = self.watermark.as_ref();
        let signal = watermark.map(|it| it.watermarks.writer_signal());
        let (mut own_leaves, mut executed) = (false, 0);
        let mut deferral = signal.map(WriterSignal::defer);
        for (number, handle) in found.drain(..) {
            let served = self.serve(number, &handle, true);
            own_leaves |= served.is_none() && Arc::ptr_eq(&handle, own);
            executed += served.unwrap_or(0);
            if executed >= DEFERRED_MAX {
                executed = 0;
                drop(deferral);
                deferral = signal.map(WriterSignal::defer);
            }
        }
        own_leaves
    }

    /// Serves a connection, whose slot is freed where its own thread has to continue. Returns the number of requests
    /// that were executed; `None` where the slot is free.
    fn serve(&self, number: usize, handle: &Handle<C>, is_readable: bool) -> Option<usize> {
        let mut state = handle.lock();
        if !state.connection.serve(is_readable) {
            self.dismiss(number, handle, state);
            return None;
        }
        if !is_readable && state.connection.awaits().is_none() && self.writes_alone() {
            // Its own thread writes the next records at once.
            self.dismiss(number, handle, state);
            return None;
        }
        let executed = state.connection.executed();
        if self.watermark.is_some() {
            let connection = &state.connection;
            let (reads, awaits) = (connection.reads(), connection.awaits());
            let mut slots = self.slots.lock();
            slots.set_awaits(number, awaits);
            if slots.set_reads(number, reads) {
                let data = epoll::EventData::new_u64(number as u64);
                // Fails only for a socket that was not added.
                let _ = epoll::modify(&self.epoll, connection.as_fd(), data, interest(reads));
            }
        }
        Some(executed)
    }

    /// Serves the connections whose wait for a position is over, until the lowest position that is left is `armed`.
    /// Returns whether `own` leaves.
    fn serve_reached(
        &self,
        watermark: &Watermark<'_>,
        armed: &mut Option<Position>,
        own: &Arc<Handle<C>>,
        found: &mut Vec<Found<C>>,
    ) -> bool {
        let mut own_leaves = false;
        loop {
            let lowest = self.slots.lock().lowest_awaited();
            let is_over_already = match lowest {
                Some(position) if lowest != *armed => watermark.arm(position),
                Some(_) | None => false,
            };
            *armed = lowest;
            if !is_over_already {
                return own_leaves;
            }
            let is_over = |position| watermark.is_over(position);
            self.slots.lock().find_reached(is_over, found);
            for (number, handle) in found.drain(..) {
                own_leaves |=
                    self.serve(number, &handle, false).is_none() && Arc::ptr_eq(&handle, own);
            }
        }
    }

    /// Gives idle connections, and those with a deadline that has passed, back to their threads. Returns whether `own`
    /// is one of them.
    fn sweep(&self, now: Instant, own: &Arc<Handle<C>>, found: &mut Vec<Found<C>>) -> bool {
        let mut own_leaves = false;
        self.slots.lock().find_idle(found);
        for (number, handle) in found.drain(..) {
            let mut state = handle.lock();
            if state.connection.awaits().is_none() || state.connection.is_overdue(now) {
                own_leaves |= Arc::ptr_eq(&handle, own);
                self.dismiss(number, &handle, state);
            }
        }
        own_leaves
    }

    /// Frees a slot and wakes its connection's own thread.
    fn dismiss(&self, number: usize, handle: &Handle<C>, state: MutexGuard<'_, State<C>>) {
        // Fails only for a socket that was not added.
        let _ = epoll::delete(&self.epoll, state.connection.as_fd());
        self.slots.lock().release(number);
        handle.wake(state, Duty::Serve);
    }
}

/// The events of a socket that the epoll set reports, beside errors.
const fn interest(reads: bool) -> epoll::EventFlags {
    if reads {
        epoll::EventFlags::IN
    } else {
        epoll::EventFlags::empty()
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

    fn take(&mut self, number: usize, handle: &Arc<Handle<C>>, reads: bool) {
        self.free.pop();
        self.taken[number] = Some(Taken {
            handle: Arc::clone(handle),
            was_active: true,
            awaits: None,
            reads,
        });
    }

    /// Notes the position that a connection waits for; returns whether that is the lowest of all.
    fn set_awaits(&mut self, number: usize, awaits: Option<Position>) -> bool {
        let Some(Some(taken)) = self.taken.get_mut(number) else {
            return false;
        };
        if taken.awaits != awaits {
            if let Some(before) = mem::replace(&mut taken.awaits, awaits) {
                self.awaiting.remove(&(before, number));
            }
            if let Some(position) = awaits {
                self.awaiting.insert((position, number));
            }
        }
        awaits.is_some_and(|awaits| self.awaiting.first() == Some(&(awaits, number)))
    }

    /// Notes whether a connection's input is read; returns whether that has changed.
    fn set_reads(&mut self, number: usize, reads: bool) -> bool {
        let taken = self.taken.get_mut(number).and_then(Option::as_mut);
        taken.is_some_and(|taken| mem::replace(&mut taken.reads, reads) != reads)
    }

    /// The lowest position that a connection waits for.
    fn lowest_awaited(&self) -> Option<Position> {
        self.awaiting.first().map(|(position, _)| *position)
    }

    /// Adds the connections to `found` whose wait for a position `is_over`. They wait for none then.
    fn find_reached(&mut self, is_over: impl Fn(Position) -> bool, found: &mut Vec<Found<C>>) {
        while let Some(&(position, number)) = self.awaiting.first()
            && is_over(position)
        {
            self.awaiting.pop_first();
            if let Some(Some(taken)) = self.taken.get_mut(number) {
                taken.awaits = None;
                taken.was_active = true;
                found.push((number, Arc::clone(&taken.handle)));
            }
        }
    }

    fn release(&mut self, number: usize) {
        self.set_awaits(number, None);
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

    /// Adds the connections without input since the last call to `found`; also those that wait for a position, which
    /// may have deadlines, and the only one that is left, which has nothing to share.
    fn find_idle(&mut self, found: &mut Vec<Found<C>>) {
        let is_last = self.taken.len() - self.free.len() == 1;
        for (number, taken) in self.taken.iter_mut().enumerate() {
            if let Some(taken) = taken
                && (!mem::take(&mut taken.was_active) || taken.awaits.is_some() || is_last)
            {
                found.push((number, Arc::clone(&taken.handle)));
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
mod tests;
