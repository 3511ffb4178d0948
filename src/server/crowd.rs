//! Connections whose clients ask for little and often, served by the thread of one of them while the others sleep.
//!
//! A thread for each connection costs a switch of threads for each request, where a thread that waits for many sockets
//! at once has none. So while several connections keep asking, they *share*: each takes a seat, and their threads sleep
//! but for one, the *host*, which waits for the sockets of all and answers whoever asks. What may have to wait for a
//! client, or takes long, is never the host's business: it calls that connection's own thread, which goes on from
//! there. Who has been quiet is called too, and waits for its client alone again. A host whose own connection is called
//! makes another thread the host. This is Leader/Followers (Schmidt and others, Pattern-Oriented Software Architecture
//! 2) under other names, as those have a meaning here already.
//!
//! # Invariants
//!
//! * Whoever sits is at the [`Table`] and known to epoll, until called.
//! * There is one host while anybody sits: who takes a seat at a table without one becomes it, and a host that leaves
//!   makes another one while it still is.
//! * Only the host calls, so whom it has looked up at the table stays there until it calls.
//! * The lock of a seat may be held when the table's is taken, never the other way round.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// So many make a crowd: with two, one thread for both is slower than one for each.
const CROWD_MIN: usize = 3;

/// Sockets that the host is told of at once.
const READY_MAX: usize = 64;

/// What can take a seat: a client's socket, and what its client is served with.
pub(super) trait Guest: AsFd {
    /// Answers what has come, without waiting for anything; says whether that was all. Otherwise its own thread has to
    /// go on.
    fn serve(&mut self) -> bool;
}

/// One connection, whoever serves it.
pub(super) struct Seat<G> {
    place: Mutex<Place<G>>,
    called: Condvar,
}

/// A connection in the hands of the thread that serves it.
pub(super) struct Place<G> {
    pub(super) guest: G,
    part: Part,
}

/// What a connection's own thread does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Serves its client.
    Own,
    /// Sleeps.
    Sit,
    /// Serves all that sit.
    Host,
}

impl<G> Seat<G> {
    pub(super) fn new(guest: G) -> Arc<Seat<G>> {
        let part = Part::Own;
        Arc::new(Seat {
            place: Mutex::new(Place { guest, part }),
            called: Condvar::new(),
        })
    }

    /// Takes the connection into one's hands. Its own thread does so once, and lets go of it to share.
    pub(super) fn lock(&self) -> MutexGuard<'_, Place<G>> {
        self.place.lock()
    }

    fn call(&self, mut place: MutexGuard<'_, Place<G>>, part: Part) {
        place.part = part;
        drop(place);
        self.called.notify_one();
    }
}

/// Connections that may share.
pub(super) struct Crowd<G> {
    epoll: OwnedFd,
    /// Those that share, and those that do not sleep.
    awake: AtomicUsize,
    /// Those of them that send a stream, and share with nobody.
    streams: AtomicUsize,
    /// Between two looks at who has been quiet since the last.
    patience: Duration,
    table: Mutex<Table<G>>,
}

struct Table<G> {
    /// A seat's number is its index.
    taken: Vec<Option<Taken<G>>>,
    free: Vec<usize>,
    has_host: bool,
}

struct Taken<G> {
    seat: Arc<Seat<G>>,
    /// Its client has asked since the host has last looked, or it has come since.
    asked: bool,
}

/// A seat that the host has looked up.
type Found<G> = (usize, Arc<Seat<G>>);

impl<G: Guest> Crowd<G> {
    /// A crowd whose members are called when they have been quiet for `patience`, or a little longer.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub(super) fn new(patience: Duration) -> io::Result<Crowd<G>> {
        Ok(Crowd {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            awake: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            patience,
            table: Mutex::new(Table {
                taken: Vec::new(),
                free: Vec::new(),
                has_host: false,
            }),
        })
    }

    /// Counts one that is served from now on.
    pub(super) fn wake(&self) {
        self.awake.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that sleeps until its client asks, or has ended.
    pub(super) fn rest(&self) {
        self.awake.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one that is awake and sends a stream from now on, or no more.
    pub(super) fn stream(&self, begins: bool) {
        if begins {
            self.streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether there are others than the one that asks, streams too: those have work while there are writes. A thread
    /// that gave its turn away without them would give it to other programs, and its client would wait for those.
    pub(super) fn has_others(&self) -> bool {
        self.awake.load(Ordering::Relaxed) > 1
    }

    /// Whether there are enough for the one that asks to share with.
    pub(super) fn is_there(&self) -> bool {
        let streams = self.streams.load(Ordering::Relaxed);
        self.awake.load(Ordering::Relaxed) >= CROWD_MIN + streams
    }

    /// Has a connection share until its own thread is called. All that its client has asked for is answered.
    pub(super) fn share(&self, seat: &Arc<Seat<G>>, place: &mut MutexGuard<'_, Place<G>>) {
        let mut table = self.table.lock();
        let number = table.next_number();
        let (data, flags) = (
            epoll::EventData::new_u64(number as u64),
            epoll::EventFlags::IN,
        );
        if epoll::add(&self.epoll, place.guest.as_fd(), data, flags).is_err() {
            // No memory, or too many watched by this user: it goes on alone.
            return;
        }
        table.take(number, seat);
        place.part = if mem::replace(&mut table.has_host, true) {
            Part::Sit
        } else {
            Part::Host
        };
        drop(table);
        loop {
            match place.part {
                Part::Own => return,
                Part::Sit => seat.called.wait(place),
                Part::Host => MutexGuard::unlocked(place, || self.host(seat)),
            }
        }
    }

    /// Serves all that sit until `own` is called.
    fn host(&self, own: &Arc<Seat<G>>) {
        let pause = Timespec::try_from(self.patience).unwrap_or_default();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(READY_MAX);
        let mut found: Vec<Found<G>> = Vec::with_capacity(READY_MAX);
        let mut swept = Instant::now();
        loop {
            events.clear();
            // An interruption and whatever else may come of it are as if nobody asked: then all are called for quiet.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&pause));
            let mut is_called = false;
            self.table.lock().asking(&events, &mut found);
            for (number, seat) in found.drain(..) {
                let mut place = seat.lock();
                if !place.guest.serve() {
                    is_called |= Arc::ptr_eq(&seat, own);
                    self.dismiss(number, &seat, place);
                }
            }
            if swept.elapsed() >= self.patience {
                swept = Instant::now();
                self.table.lock().quiet(&mut found);
                for (number, seat) in found.drain(..) {
                    is_called |= Arc::ptr_eq(&seat, own);
                    self.dismiss(number, &seat, seat.lock());
                }
            }
            if is_called {
                break;
            }
        }
        let next = self.table.lock().next_host();
        if let Some(seat) = next {
            seat.call(seat.lock(), Part::Host);
        }
    }

    /// Takes a seat back and calls its thread.
    fn dismiss(&self, number: usize, seat: &Seat<G>, place: MutexGuard<'_, Place<G>>) {
        // Fails only for what was not added.
        let _ = epoll::delete(&self.epoll, place.guest.as_fd());
        self.table.lock().give_back(number);
        seat.call(place, Part::Own);
    }
}

impl<G> Table<G> {
    /// The number of the next seat to be taken.
    fn next_number(&mut self) -> usize {
        if self.free.is_empty() {
            self.free.push(self.taken.len());
            self.taken.push(None);
        }
        self.free[self.free.len() - 1]
    }

    fn take(&mut self, number: usize, seat: &Arc<Seat<G>>) {
        self.free.pop();
        let (seat, asked) = (Arc::clone(seat), true);
        self.taken[number] = Some(Taken { seat, asked });
    }

    fn give_back(&mut self, number: usize) {
        self.taken[number] = None;
        self.free.push(number);
    }

    /// Adds those whose clients have asked.
    fn asking(&mut self, events: &[epoll::Event], found: &mut Vec<Found<G>>) {
        for event in events {
            let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if let Some(Some(taken)) = self.taken.get_mut(number) {
                taken.asked = true;
                found.push((number, Arc::clone(&taken.seat)));
            }
        }
    }

    /// Adds those whose clients have not asked since this was called last; also the last one, who has nobody to share
    /// with.
    fn quiet(&mut self, found: &mut Vec<Found<G>>) {
        let is_last = self.taken.len() - self.free.len() == 1;
        for (number, taken) in self.taken.iter_mut().enumerate() {
            if let Some(Taken { seat, asked }) = taken
                && (!mem::take(asked) || is_last)
            {
                found.push((number, Arc::clone(seat)));
            }
        }
    }

    /// Who is to be the host, where anybody sits.
    fn next_host(&mut self) -> Option<Arc<Seat<G>>> {
        let next = self.taken.iter().flatten().next();
        self.has_host = next.is_some();
        next.map(|taken| Arc::clone(&taken.seat))
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

    /// Sends back each byte, and has its own thread called by a `!`.
    struct Mirror {
        stream: UnixStream,
        served_by: Vec<ThreadId>,
    }

    impl AsFd for Mirror {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }
    }

    impl Guest for Mirror {
        fn serve(&mut self) -> bool {
            let mut byte = [0];
            self.served_by.push(thread::current().id());
            self.stream.read_exact(&mut byte).unwrap();
            self.stream.write_all(&byte).unwrap();
            byte != *b"!"
        }
    }

    /// What a thread says of its connection once it was called: its number, and which threads have served it.
    type Called = (usize, ThreadId, Vec<ThreadId>);

    /// Longer than any test takes.
    const FOR_EVER: Duration = Duration::from_secs(3_600);

    /// Has a thread share for each of `count` clients; they run until called.
    fn crowd_of(
        count: usize,
        patience: Duration,
    ) -> (Arc<Crowd<Mirror>>, Vec<UnixStream>, mpsc::Receiver<Called>) {
        let crowd = Arc::new(Crowd::new(patience).unwrap());
        let (called, calls) = mpsc::channel();
        let clients = (0..count).map(|number| join(&crowd, number, &called));
        (Arc::clone(&crowd), clients.collect(), calls)
    }

    fn join(crowd: &Arc<Crowd<Mirror>>, number: usize, called: &Sender<Called>) -> UnixStream {
        let (client, stream) = UnixStream::pair().unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let (crowd, called) = (Arc::clone(crowd), called.clone());
        thread::spawn(move || {
            let served_by = Vec::new();
            let seat = Seat::new(Mirror { stream, served_by });
            let mut place = seat.lock();
            crowd.share(&seat, &mut place);
            let served_by = mem::take(&mut place.guest.served_by);
            let _ = called.send((number, thread::current().id(), served_by));
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
    fn all_that_share_are_served_by_one_of_their_threads() {
        let (_, mut clients, calls) = crowd_of(4, FOR_EVER);
        for _ in 0..10 {
            for client in &mut clients {
                ask(client, b'.');
            }
        }
        for client in &mut clients {
            ask(client, b'!');
        }
        let calls: Vec<Called> = calls.iter().take(4).collect();
        // By the time of the last byte hosts had left.
        let mut hosts: Vec<ThreadId> = calls
            .iter()
            .flat_map(|call| call.2[..10].to_vec())
            .collect();
        hosts.dedup();
        assert_eq!(hosts.len(), 1);
        assert!(calls.iter().any(|call| call.1 == hosts[0]));
    }

    #[test]
    fn a_host_whose_own_connection_is_called_makes_another_one_the_host() {
        let (crowd, mut clients, calls) = crowd_of(8, FOR_EVER);
        // Whoever is the host is called sooner or later, and the others are served after that.
        for called in 0..8 {
            for client in &mut clients[called..] {
                ask(client, b'.');
            }
            ask(&mut clients[called], b'!');
            assert_eq!(calls.recv().unwrap().0, called);
        }
        assert_eq!(crowd.table.lock().free.len(), 8);
    }

    #[test]
    fn those_whose_clients_are_quiet_are_called() {
        let (crowd, _clients, calls) = crowd_of(3, Duration::from_millis(1));
        let mut called: Vec<usize> = calls.iter().take(3).map(|call| call.0).collect();
        called.sort_unstable();
        assert_eq!(called, [0, 1, 2]);
        let table = crowd.table.lock();
        assert_eq!(table.free.len(), table.taken.len());
    }

    #[test]
    fn quiet_are_those_who_have_not_asked_since_the_last_look_and_the_last_one() {
        let (crowd, mut clients, _calls) = crowd_of(3, FOR_EVER);
        for client in &mut clients {
            ask(client, b'.');
        }
        let numbers = |table: &mut Table<Mirror>| -> Vec<usize> {
            let mut found = Vec::new();
            table.quiet(&mut found);
            found.into_iter().map(|(number, _)| number).collect()
        };
        let mut table = crowd.table.lock();
        assert_eq!(numbers(&mut table), [0; 0]);
        table.taken[1].as_mut().unwrap().asked = true;
        assert_eq!(numbers(&mut table), [0, 2]);
        table.give_back(0);
        table.give_back(2);
        table.taken[1].as_mut().unwrap().asked = true;
        assert_eq!(numbers(&mut table), [1]);
    }

    #[test]
    fn the_last_one_is_called_even_though_its_client_asks() {
        let (crowd, mut clients, calls) = crowd_of(1, Duration::from_millis(1));
        // Once its thread is called, that ends, and its socket with it.
        let mut answer = [0];
        while clients[0].write_all(b".").is_ok()
            && clients[0].read(&mut answer).is_ok_and(|len| len == 1)
        {}
        assert_eq!(calls.recv().unwrap().0, 0);
        assert!(!crowd.table.lock().has_host);
    }

    #[test]
    fn streams_are_worth_a_turn_and_make_no_crowd() {
        let crowd: Crowd<Mirror> = Crowd::new(FOR_EVER).unwrap();
        let seen = || (crowd.has_others(), crowd.is_there());
        crowd.wake();
        assert_eq!(seen(), (false, false));
        for _ in 0..2 {
            crowd.wake();
            crowd.stream(true);
        }
        assert_eq!(seen(), (true, false));
        crowd.stream(false);
        crowd.stream(false);
        assert_eq!(seen(), (true, true));
        crowd.rest();
        assert_eq!(seen(), (true, false));
    }

    #[test]
    fn seats_are_used_again() {
        let (crowd, mut clients, calls) = crowd_of(1, FOR_EVER);
        let (called, more) = mpsc::channel();
        ask(&mut clients[0], b'!');
        calls.recv().unwrap();
        for number in 0..100 {
            let mut client = join(&crowd, number, &called);
            ask(&mut client, b'!');
            assert_eq!(more.recv().unwrap().0, number);
        }
        assert_eq!(crowd.table.lock().taken.len(), 1);
    }
}
