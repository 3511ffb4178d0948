#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
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
    fn serve(&mut self, _is_readable: bool) -> bool {
        let mut byte = [0];
        self.served_by.push(thread::current().id());
        self.stream.read_exact(&mut byte).unwrap();
        self.stream.write_all(&byte).unwrap();
        byte != *b"!"
    }

    fn executed(&self) -> usize {
        1
    }

    fn awaits(&self) -> Option<Position> {
        None
    }

    fn reads(&self) -> bool {
        true
    }

    fn is_overdue(&mut self, _now: Instant) -> bool {
        false
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
) -> (
    Arc<Poller<'static, Mirror>>,
    Vec<UnixStream>,
    mpsc::Receiver<Woken>,
) {
    let poller = Arc::new(Poller::new(sweep_interval, None, None).unwrap());
    let (woken, wakes) = mpsc::channel();
    let clients = (0..count).map(|number| join(&poller, number, &woken));
    (Arc::clone(&poller), clients.collect(), wakes)
}

fn join(poller: &Arc<Poller<'static, Mirror>>, number: usize, woken: &Sender<Woken>) -> UnixStream {
    let (client, stream) = UnixStream::pair().unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let (poller, woken) = (Arc::clone(poller), woken.clone());
    thread::spawn(move || {
        let served_by = Vec::new();
        let handle = Handle::new(Mirror { stream, served_by });
        let mut state = handle.lock();
        assert!(poller.share(&handle, &mut state));
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
    let poller: Poller<'static, Mirror> = Poller::new(NEVER, None, None).unwrap();
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

/// A position of epoch 0.
fn at(index: u64) -> Position {
    Position { epoch: 0, index }
}

/// Sends an answer of one byte for each that it has been sent, once the watermark is there.
struct Waiting<'a> {
    stream: UnixStream,
    watermarks: &'a Watermarks,
    positions: VecDeque<Position>,
    /// Input is read.
    reads: bool,
    is_overdue: bool,
}

impl AsFd for Waiting<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Polled for Waiting<'_> {
    fn serve(&mut self, is_readable: bool) -> bool {
        if is_readable {
            let mut index = [0];
            self.stream.read_exact(&mut index).unwrap();
            if index == *b"!" {
                return false;
            }
            self.positions.push_back(at(index[0].into()));
        }
        while let Some(first) = self.positions.front() {
            let answer = match self.watermarks.reached(Mark::Committed, *first) {
                Reached::NotYet => break,
                Reached::Yes => u8::try_from(first.index).unwrap(),
                Reached::Never => b'?',
            };
            self.stream.write_all(&[answer]).unwrap();
            self.positions.pop_front();
        }
        true
    }

    fn executed(&self) -> usize {
        1
    }

    fn awaits(&self) -> Option<Position> {
        self.positions.front().copied()
    }

    fn reads(&self) -> bool {
        self.reads
    }

    fn is_overdue(&mut self, _now: Instant) -> bool {
        self.is_overdue
    }
}

/// Threads that wait with these positions, on one poller.
fn with_waiting(
    positions: &[&[u64]],
    change: impl Fn(usize, &mut Waiting<'_>) + Sync,
    test: impl FnOnce(&Watermarks, &mut [UnixStream], &mpsc::Receiver<usize>),
) {
    let watermarks = Watermarks::default();
    let committed = Some((&watermarks, Mark::Committed));
    let interval = Duration::from_millis(2);
    let poller: Poller<'_, Waiting<'_>> = Poller::new(interval, committed, None).unwrap();
    let (woken, wakes) = mpsc::channel();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for (number, positions) in positions.iter().enumerate() {
            let (client, stream) = UnixStream::pair().unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            clients.push(client);
            let mut waiting = Waiting {
                stream,
                watermarks: &watermarks,
                positions: positions.iter().copied().map(at).collect(),
                reads: true,
                is_overdue: false,
            };
            change(number, &mut waiting);
            let (poller, woken) = (&poller, woken.clone());
            scope.spawn(move || {
                let handle = Handle::new(waiting);
                let mut state = handle.lock();
                assert!(poller.share(&handle, &mut state));
                let _ = woken.send(number);
            });
        }
        test(&watermarks, &mut clients, &wakes);
        drop(clients);
    });
    assert!(poller.slots.lock().awaiting.is_empty());
}

fn receive(client: &mut UnixStream, answers: &[u8]) {
    let mut received = vec![0; answers.len()];
    client.read_exact(&mut received).unwrap();
    assert_eq!(received, answers);
}

/// Whether an answer has come.
fn has_answer(client: &UnixStream) -> bool {
    let flags = rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::PEEK;
    rustix::net::recv(client, &mut [0_u8], flags).is_ok()
}

#[test]
fn each_connection_is_served_when_its_position_is_reached() {
    let positions: [&[u64]; 4] = [&[3, 5], &[2], &[9], &[4, 4]];
    with_waiting(
        &positions,
        |_, _| {},
        |watermarks, clients, wakes| {
            watermarks.advance(Mark::Committed, 2);
            receive(&mut clients[1], &[2]);
            watermarks.advance(Mark::Committed, 4);
            receive(&mut clients[3], &[4, 4]);
            receive(&mut clients[0], &[3]);
            assert!(!has_answer(&clients[0]) && !has_answer(&clients[2]));
            // A lower position than the one that is armed, and one that is reached already.
            clients[3].write_all(&[4, 5, 6]).unwrap();
            receive(&mut clients[3], &[4]);
            watermarks.advance(Mark::Committed, 6);
            receive(&mut clients[3], &[5, 6]);
            receive(&mut clients[0], &[5]);
            assert!(!has_answer(&clients[2]));
            watermarks.advance(Mark::Committed, 9);
            receive(&mut clients[2], &[9]);
            // Nothing is left to wait for, so all leave as idle.
            assert_eq!(wakes.iter().take(4).count(), 4);
        },
    );
}

#[test]
fn a_connection_that_waits_stays_and_its_client_goes_on() {
    with_waiting(
        &[&[8]],
        |_, _| {},
        |watermarks, clients, wakes| {
            for index in 9..20 {
                clients[0].write_all(&[index]).unwrap();
            }
            // Longer than an idle connection, or the only one, keeps its slot.
            assert!(wakes.recv_timeout(Duration::from_millis(30)).is_err());
            assert!(!has_answer(&clients[0]));
            watermarks.advance(Mark::Committed, 10);
            receive(&mut clients[0], &[8, 9, 10]);
            watermarks.advance(Mark::Committed, 100);
            receive(&mut clients[0], &(11..20).collect::<Vec<u8>>());
            assert_eq!(wakes.recv().unwrap(), 0);
        },
    );
}

#[test]
fn the_end_of_an_epoch_ends_every_wait() {
    let positions: [&[u64]; 3] = [&[1, 2], &[3], &[4]];
    with_waiting(
        &positions,
        |_, _| {},
        |watermarks, clients, wakes| {
            watermarks.give_up_epoch();
            receive(&mut clients[0], b"??");
            receive(&mut clients[1], b"?");
            receive(&mut clients[2], b"?");
            assert_eq!(wakes.iter().take(3).count(), 3);
        },
    );
}

#[test]
fn a_connection_with_a_passed_deadline_leaves_and_others_stay() {
    let change = |number: usize, waiting: &mut Waiting<'_>| waiting.is_overdue = number == 1;
    with_waiting(&[&[1], &[2]], change, |watermarks, _, wakes| {
        assert_eq!(wakes.recv().unwrap(), 1);
        assert!(wakes.recv_timeout(Duration::from_millis(20)).is_err());
        watermarks.advance(Mark::Committed, 1);
        assert_eq!(wakes.recv().unwrap(), 0);
    });
}

#[test]
fn input_that_is_not_read_does_not_wake_the_polling_thread() {
    let change = |_: usize, waiting: &mut Waiting<'_>| waiting.reads = false;
    with_waiting(&[&[1]], change, |watermarks, clients, wakes| {
        clients[0].write_all(b"!").unwrap();
        assert!(wakes.recv_timeout(Duration::from_millis(20)).is_err());
        watermarks.advance(Mark::Committed, 1);
        receive(&mut clients[0], &[1]);
        assert_eq!(wakes.recv().unwrap(), 0);
    });
}

#[test]
fn the_only_active_connection_may_write_its_records_itself() {
    let (watermarks, written) = (Watermarks::default(), AtomicUsize::new(0));
    let write = || {
        written.fetch_add(1, Ordering::Relaxed);
    };
    let committed = Some((&watermarks, Mark::Committed));
    let poller: Poller<'_, Waiting<'_>> = Poller::new(NEVER, committed, Some(&write)).unwrap();
    let signal = watermarks.writer_signal();
    let is_sent = || signal.wait(Instant::now());
    poller.enter();
    // It has written something, and is not asked to write where it has not.
    let alone = poller.begin_alone().unwrap();
    signal.send();
    alone.write();
    assert_eq!((written.load(Ordering::Relaxed), is_sent()), (1, false));
    poller.begin_alone().unwrap().write();
    assert_eq!((written.load(Ordering::Relaxed), is_sent()), (1, false));
    // The log-writer thread is woken where it does not.
    let alone = poller.begin_alone().unwrap();
    signal.send();
    assert!(!is_sent());
    drop(alone);
    assert!(is_sent());
    // Others are active, be it that they send streams.
    poller.enter();
    assert!(poller.begin_alone().is_none());
    poller.count_stream(true);
    assert!(poller.begin_alone().is_some());
    poller.count_stream(false);
    poller.leave();
    assert!(poller.begin_alone().is_some());
    // Without a disk nothing is written.
    let poller: Poller<'_, Waiting<'_>> = Poller::new(NEVER, committed, None).unwrap();
    poller.enter();
    assert!(poller.begin_alone().is_none());
}

#[test]
fn the_only_active_connection_leaves_once_its_answers_are_sent() {
    let (watermarks, write) = (Watermarks::default(), || ());
    let committed = Some((&watermarks, Mark::Committed));
    let poller: Poller<'_, Waiting<'_>> = Poller::new(NEVER, committed, Some(&write)).unwrap();
    let (mut client, stream) = UnixStream::pair().unwrap();
    let handle = Handle::new(Waiting {
        stream,
        watermarks: &watermarks,
        positions: [3, 4].map(at).into(),
        reads: true,
        is_overdue: false,
    });
    poller.enter();
    thread::scope(|scope| {
        let thread = scope.spawn(|| poller.share(&handle, &mut handle.lock()));
        watermarks.advance(Mark::Committed, 3);
        receive(&mut client, &[3]);
        assert!(!thread.is_finished());
        watermarks.advance(Mark::Committed, 4);
        receive(&mut client, &[4]);
        // Long before it counts as idle.
        assert!(thread.join().unwrap());
    });
}
