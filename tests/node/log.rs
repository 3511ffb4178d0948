//! The log under real threads. Its order is tested in `tests/order`, against a scheduler; these tests are not in
//! `src/log` because its files are compiled there too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::history::{EpochStart, History, HistoryError};
use gopherstore::log::backlog::Records;
use gopherstore::log::{
    Cursor, Found, Head, Log, Mark, NotLogged, Position, ROOM_BYTES as ROOM, Reached, Reservation,
    Sequencer, Wake, Watermarks, WriterSignal,
};

use gopherstore::engine::{ApplyError, Engine};
use gopherstore::wire::Request;

use crate::{entry, epoch_record};

/// Longest wait for an event that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Wait for an event that must not come: long enough for a thread that is not stopped to cause it.
const BLOCKED: Duration = Duration::from_millis(50);

fn cost(entry: &Entry) -> u64 {
    Records::cost(entry.frame().len())
}

fn append(sequencer: &Sequencer, entry: &Entry) {
    let reservation = sequencer.reserve(cost(entry));
    let records = Records::Entry(entry.clone());
    sequencer.append(0, records, 1, Digest::of(entry), reservation);
}

fn read(log: &Log, cursor: &mut Cursor, deadline: Instant) -> (Found, Vec<u8>) {
    let mut frames = Vec::new();
    let found = log.read(cursor, 0, &mut frames, deadline, || false);
    (found, frames)
}

fn later() -> Instant {
    Instant::now() + PATIENCE
}

/// Calls `f` while the replication thread runs, ends the log, and waits for that thread.
fn kept(sequencer: &Sequencer, f: impl FnOnce()) {
    thread::scope(|scope| {
        scope.spawn(|| sequencer.log().keep());
        f();
        sequencer.end();
    });
}

/// Starts a thread that reserves room, and tells when it has it.
fn reserve<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    sequencer: &'scope Sequencer,
    cost: u64,
) -> mpsc::Receiver<Reservation<'scope>> {
    let (done, taken) = mpsc::channel();
    scope.spawn(move || done.send(sequencer.reserve(cost)));
    taken
}

#[test]
fn room_is_taken_up_to_a_bound_and_given_back() {
    let sequencer = Sequencer::new(1 << 20);
    let mut most = sequencer.reserve(ROOM - 10);
    let _rest = sequencer.reserve(10);
    assert!(sequencer.try_reserve(1).is_none());
    thread::scope(|scope| {
        let taken = reserve(scope, &sequencer, 20);
        assert!(taken.recv_timeout(BLOCKED).is_err(), "no room for 20");
        drop(most.split(19));
        assert!(taken.recv_timeout(BLOCKED).is_err(), "19 of 20");
        drop(most.split(1));
        taken.recv_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn a_write_larger_than_all_room_waits_until_half_of_it_is_free() {
    let sequencer = Sequencer::new(1 << 20);
    let mut held = sequencer.reserve(ROOM / 2 + 1);
    thread::scope(|scope| {
        let taken = reserve(scope, &sequencer, 2 * ROOM);
        assert!(
            taken.recv_timeout(BLOCKED).is_err(),
            "half of it is taken, and one"
        );
        drop(held.split(1));
        taken.recv_timeout(PATIENCE).unwrap();
    });
}

/// Otherwise writers of short records would always get ahead of a writer of long ones.
#[test]
fn writers_get_room_in_the_order_in_which_they_came() {
    let sequencer = Sequencer::new(1 << 20);
    let mut held = sequencer.reserve(ROOM);
    thread::scope(|scope| {
        let large = reserve(scope, &sequencer, ROOM / 2);
        assert!(large.recv_timeout(BLOCKED).is_err(), "no room");
        let small = reserve(scope, &sequencer, 1);
        drop(held.split(1));
        assert!(small.recv_timeout(BLOCKED).is_err(), "another is first");
        assert!(sequencer.try_reserve(1).is_none(), "nor without waiting");
        drop(held.split(ROOM / 2 - 1));
        let _large = large.recv_timeout(PATIENCE).unwrap();
        assert!(
            small.recv_timeout(BLOCKED).is_err(),
            "its turn, but no room"
        );
        drop(held.split(1));
        small.recv_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn a_reservation_gives_back_what_is_not_spent() {
    let sequencer = Sequencer::new(1 << 20);
    let entry = entry(b"key", b"value");
    {
        let mut reservation = sequencer.reserve(ROOM);
        assert_eq!(reservation.bytes(), ROOM);
        assert!(reservation.split(ROOM + 1).is_none());
    }
    let reservation = sequencer.reserve(ROOM);
    let records = Records::Entry(entry.clone());
    sequencer.append(0, records, 1, Digest::of(&entry), reservation);
    // Beyond half of it, room is granted byte by byte.
    let _half = sequencer.try_reserve(ROOM / 2).unwrap();
    let rest = ROOM / 2 - cost(&entry);
    assert!(sequencer.try_reserve(rest + 1).is_none());
    assert_eq!(sequencer.try_reserve(rest).unwrap().bytes(), rest);
}

/// A follower may be in the middle of a group when its node stops.
#[test]
fn nobody_waits_for_room_once_the_log_has_ended() {
    let sequencer = Sequencer::new(1 << 20);
    let _all = sequencer.reserve(2 * ROOM);
    thread::scope(|scope| {
        let taken = reserve(scope, &sequencer, 1);
        assert!(taken.recv_timeout(BLOCKED).is_err(), "no room");
        sequencer.end();
        sequencer.log().keep();
        taken.recv_timeout(PATIENCE).unwrap();
    });
    let _more = sequencer.reserve(ROOM);
}

#[test]
fn the_replication_thread_gives_back_the_room_of_what_it_moves() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let large = entry(b"key", &vec![7; 1 << 20]);
    kept(&sequencer, || {
        // Four times the capacity of the append queue.
        for _ in 0..32 {
            append(&sequencer, &large);
        }
    });
    assert_eq!(log.kept_head(), log.head());
    assert_eq!(log.head().index, 32);
    assert!(
        log.kept_bytes() <= cost(&large),
        "the newest entry, which is larger than the log, and no other"
    );
}

#[test]
fn a_log_that_no_thread_keeps_is_drained_and_read_without_waiting() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let mut cursor = log.cursor_after(0).unwrap();
    let mut frames = Vec::new();
    log.drain(Instant::now());
    for number in 0..3 * 128_u64 {
        append(&sequencer, &entry(b"key", &number.to_be_bytes()));
    }
    let found = log.try_read(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(found, Found::Nothing), "{found:?}");
    log.drain(Instant::now());
    assert_eq!(log.kept_head(), log.head());
    log.wait(&cursor, later(), || false);
    let found = log.try_read(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(found, Found::Small(384, _)), "{found:?}");
    // All room is free again.
    drop(sequencer.try_reserve(ROOM).unwrap());
    sequencer.end();
    log.drain(Instant::now());
    let found = log.try_read(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(found, Found::Ended), "{found:?}");
}

#[test]
fn a_reader_gets_entries_in_their_order_then_nothing_and_then_the_end() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let entries = [b"1", b"2", b"3"].map(|value| entry(b"key", value));
    kept(&sequencer, || {
        let mut cursor = log.cursor_after(0).unwrap();
        let (nothing, _) = read(log, &mut cursor, Instant::now());
        assert!(matches!(nothing, Found::Nothing), "{nothing:?}");
        for (index, entry) in (1..).zip(&entries) {
            append(&sequencer, entry);
            let (found, frames) = read(log, &mut cursor, later());
            assert!(matches!(found, Found::Small(1, _)), "{found:?}");
            assert_eq!(frames, entry.frame());
            assert_eq!(cursor.next, index + 1);
        }
        assert!(log.cursor_after(3).is_some());
        assert!(log.cursor_after(4).is_none(), "beyond the head");
    });
    // The log has ended, but its records can still be read.
    let mut cursor = log.cursor_after(1).unwrap();
    for _ in 0..2 {
        let (found, _) = read(log, &mut cursor, later());
        assert!(matches!(found, Found::Small(1, _)), "{found:?}");
    }
    let (end, _) = read(log, &mut cursor, later());
    assert!(matches!(end, Found::Ended), "{end:?}");
}

#[test]
fn the_end_wakes_a_reader_that_waits() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut cursor = log.cursor_after(0).unwrap();
            read(log, &mut cursor, later()).0
        });
        scope.spawn(|| log.keep());
        sequencer.end();
        let found = reader.join().unwrap();
        assert!(matches!(found, Found::Ended), "{found:?}");
    });
}

#[test]
fn a_reset_takes_readers_their_place_and_begins_after_the_new_head() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let head = Head {
        index: 2,
        digest: Digest::from_u128(77),
    };
    kept(&sequencer, || {
        for value in [b"1", b"2", b"3"] {
            append(&sequencer, &entry(b"key", value));
        }
        let mut old = log.cursor_after(1).unwrap();
        assert!(matches!(read(log, &mut old, later()).0, Found::Small(1, _)));
        sequencer.reset(head, History::default(), Instant::now());
        assert_eq!(log.head(), head);
        let deadline = later();
        while log.kept_head() != head {
            assert!(Instant::now() < deadline, "the reset does not come");
            thread::yield_now();
        }
        // The log has another entry 3 before the old reader reads again. It is not the one that the reader waits for.
        append(&sequencer, &entry(b"key", b"another"));
        let (found, _) = read(log, &mut old, later());
        assert!(matches!(found, Found::Gone), "{found:?}");
        assert!(log.cursor_after(1).is_none(), "before the log begins");
        let mut new = log.cursor_after(2).unwrap();
        let (found, frames) = read(log, &mut new, later());
        assert!(matches!(found, Found::Small(1, _)), "{found:?}");
        assert_eq!(frames, entry(b"key", b"another").frame());
    });
    assert_eq!(log.digest_at(2), Some(head.digest));
    assert_eq!(log.digest_at(1), None);
}

/// A sender whose follower is gone waits for no further entry, and no heartbeat.
#[test]
fn a_reader_that_is_woken_looks_whether_it_is_over() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let mut cursor = log.cursor_after(0).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, found) = mpsc::channel();
        scope.spawn({
            let is_over = &is_over;
            move || {
                let over = || is_over.load(Ordering::SeqCst);
                let found = log.read(&mut cursor, 0, &mut Vec::new(), later(), over);
                done.send(matches!(found, Found::Nothing)).unwrap();
            }
        });
        log.wake_readers();
        assert!(found.recv_timeout(BLOCKED).is_err(), "it is not over");
        is_over.store(true, Ordering::SeqCst);
        log.wake_readers();
        assert_eq!(found.recv_timeout(PATIENCE), Ok(true));
    });
}

#[test]
fn the_log_knows_when_its_entries_were_appended() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let one = entry(b"k", b"v");
    let begin = Instant::now();
    kept(&sequencer, || {
        append(&sequencer, &one);
        let mut cursor = log.cursor_after(0).unwrap();
        let (found, _) = read(log, &mut cursor, later());
        assert!(matches!(found, Found::Small(1, _)), "{found:?}");
        let at = log.appended_at(1).unwrap();
        assert!(begin <= at && at <= Instant::now());
        assert_eq!(log.appended_at(2), None);
    });
}

#[test]
fn a_watermark_reaches_positions_in_order_and_wakes_their_waiters() {
    let watermarks = Watermarks::default();
    let woken = Arc::new(AtomicU64::new(0));
    let wake: Wake = Arc::new({
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }
    });
    let id = watermarks.subscribe(wake);
    let at = |index| Position { epoch: 0, index };
    assert_eq!(watermarks.reached(Mark::Appended, at(9)), Reached::Yes);
    for mark in [Mark::Durable, Mark::Committed] {
        woken.store(0, Ordering::SeqCst);
        assert_eq!(watermarks.reached(mark, at(0)), Reached::Yes, "no record");
        assert_eq!(watermarks.await_position(id, mark, at(3)), Reached::NotYet);
        watermarks.advance(mark, 2);
        assert_eq!(watermarks.reached(mark, at(2)), Reached::Yes);
        assert_eq!(watermarks.reached(mark, at(3)), Reached::NotYet);
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        watermarks.advance(mark, 5);
        watermarks.advance(mark, 4);
        watermarks.advance(mark, 6);
        assert_eq!(watermarks.reached(mark, at(6)), Reached::Yes);
        assert_eq!(woken.load(Ordering::SeqCst), 1, "once for each wait");
        assert_eq!(watermarks.await_position(id, mark, at(6)), Reached::Yes);
    }
}

/// Begins an epoch at the end of the log.
fn begin_epoch(sequencer: &Sequencer, epoch: u64) -> EpochStart {
    let start = EpochStart {
        epoch,
        nonce: epoch,
        start_index: sequencer.log().head().index + 1,
    };
    sequencer.begin_epoch(start).unwrap();
    start
}

#[test]
fn an_epoch_begins_with_a_record_that_leaves_the_digest_as_it_is() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let starts = [1, 4].map(|epoch| {
        let (before, generation) = (log.head(), log.dataset_generation());
        let start = begin_epoch(&sequencer, epoch);
        assert_eq!(log.head().index, before.index + 1);
        assert_eq!(log.head().digest, before.digest);
        assert_eq!(log.dataset_generation(), generation + 1);
        let reservation = sequencer.reserve(cost(&entry(b"k", b"v")));
        let records = Records::Entry(entry(b"k", b"v"));
        sequencer.append(epoch, records, 1, Digest::EMPTY, reservation);
        start
    });
    assert_eq!(log.history().epochs(), starts);
    assert_eq!(log.head_in_epoch(), (log.head(), 4));
    let again = sequencer.begin_epoch(starts[1]);
    let (got, next) = (3, 5);
    assert_eq!(again, Err(HistoryError::NotNext { got, next }));
    let low = EpochStart {
        start_index: 5,
        ..starts[1]
    };
    let (got, previous) = (4, 4);
    let refused = sequencer.begin_epoch(low);
    assert_eq!(refused, Err(HistoryError::Epoch { got, previous }));
    assert_eq!((log.head().index, log.history().epochs().len()), (4, 2));
    kept(&sequencer, || {});
    assert_eq!(log.kept_head(), log.head());
    // All room is free again.
    drop(sequencer.try_reserve(ROOM).unwrap());
    let mut cursor = log.cursor_after(2).unwrap();
    let (_, frames) = read(log, &mut cursor, later());
    let operands = [4_u64.to_be_bytes(), 4_u64.to_be_bytes()].concat();
    assert_eq!(frames, [&[0x67, 0, 0, 0, 0, 0, 16], &operands[..]].concat());
}

/// A follower that lacks nothing else resumes, though the data set has come as a snapshot.
#[test]
fn the_last_epochs_of_a_snapshot_are_in_the_log_again() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    let start = |epoch, start_index| EpochStart {
        epoch,
        nonce: epoch,
        start_index,
    };
    let history = History::new(vec![start(1, 1), start(3, 6), start(4, 7)]).unwrap();
    let digest = Digest::from_u128(5);
    for (index, first_index) in [(7, 6), (8, 9)] {
        let head = Head { index, digest };
        sequencer.reset(head, history.clone(), Instant::now());
        assert_eq!((log.head(), log.history()), (head, history.clone()));
        log.drain(Instant::now());
        assert_eq!((log.kept_head(), log.first_index()), (head, first_index));
    }
    sequencer.reset(Head { index: 7, digest }, history, Instant::now());
    log.drain(Instant::now());
    let mut cursor = log.cursor_after(5).unwrap();
    for epoch in [3, 4] {
        assert_eq!(log.digest_at(cursor.next - 1), Some(digest));
        let (_, frames) = read(log, &mut cursor, later());
        assert_eq!(frames, epoch_record(start(epoch, 0)));
    }
    // All room is free again.
    drop(sequencer.try_reserve(ROOM).unwrap());
}

#[test]
fn positions_of_an_epoch_that_was_given_up_are_never_reached() {
    let sequencer = Sequencer::new(1 << 20);
    let watermarks = sequencer.log().watermarks();
    let woken = Arc::new(AtomicU64::new(0));
    let wake: Wake = Arc::new({
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }
    });
    let (id, mark) = (watermarks.subscribe(wake), Mark::Committed);
    let at = |epoch, index| Position { epoch, index };
    begin_epoch(&sequencer, 1);
    watermarks.advance(mark, 4);
    assert_eq!(
        watermarks.await_position(id, mark, at(1, 5)),
        Reached::NotYet
    );
    watermarks.give_up_epoch();
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert_eq!(
        watermarks.await_position(id, mark, at(1, 5)),
        Reached::Never
    );
    assert_eq!(
        watermarks.reached(mark, at(1, 4)),
        Reached::Yes,
        "before it was given up"
    );
    begin_epoch(&sequencer, 2);
    watermarks.advance(mark, 8);
    assert_eq!(
        watermarks.reached(mark, at(1, 5)),
        Reached::Never,
        "another record"
    );
    assert_eq!(watermarks.reached(mark, at(2, 5)), Reached::Yes);
    assert_eq!(
        watermarks.reached(mark, at(1, 0)),
        Reached::Yes,
        "no record"
    );
    watermarks.unsubscribe(id);
    watermarks.give_up_epoch();
    assert_eq!(woken.load(Ordering::SeqCst), 1);
}

/// Records are logged at their receipt and applied once they are committed, also where that is told later, within a
/// group, and over the begin of an epoch.
#[test]
fn records_are_applied_up_to_the_committed_index() {
    let (leader, follower) = (
        Engine::new(Some(1 << 20), gopherstore::time::MachineTime::clock()),
        Engine::new(Some(1 << 20), gopherstore::time::MachineTime::clock()),
    );
    let set = |key: &[u8], value: &[u8]| {
        let mut bytes = Vec::new();
        Request::Set { key, value }.encode(&mut bytes).unwrap();
        bytes
    };
    let start = |epoch, start_index| EpochStart {
        epoch,
        nonce: epoch,
        start_index,
    };
    let first = [epoch_record(start(1, 1)), set(b"a", b"1"), set(b"b", b"1")].concat();
    let second = [set(b"a", b"2"), epoch_record(start(2, 5)), set(b"b", b"2")].concat();
    for records in [&first, &second] {
        crate::apply(&leader, records).unwrap();
    }
    let value = |key: &[u8]| follower.get(key).map(|entry| entry.value().to_vec());
    let places = || {
        let log = follower.log().unwrap();
        (follower.head().index, log.last_index())
    };
    let digest = |records: &[u8]| {
        crate::digest_after(
            &Engine::new(Some(1 << 20), gopherstore::time::MachineTime::clock()),
            records,
        )
    };
    let ends = [
        digest(&first),
        digest(&[first.clone(), second.clone()].concat()),
    ];
    let receive = |records: &[u8], committed, digest| {
        crate::receive(&follower, records, committed, digest).unwrap();
    };
    receive(&first, 2, ends[0]);
    assert_eq!(places(), (2, 3));
    assert_eq!((value(b"a"), value(b"b")), (Some(b"1".to_vec()), None));
    assert_eq!(follower.log().unwrap().history().last(), Some(start(1, 1)));
    receive(&second, 3, ends[1]);
    assert_eq!(places(), (3, 6));
    assert_eq!(value(b"b"), Some(b"1".to_vec()));
    let history = follower.log().unwrap().history();
    assert_eq!(history.last(), Some(start(2, 5)), "it follows from the log");
    follower.apply(4).unwrap();
    assert_eq!((places(), value(b"a")), ((4, 6), Some(b"2".to_vec())));
    follower.apply(u64::MAX).unwrap();
    assert_eq!(places(), (6, 6));
    assert_eq!(follower.head(), leader.head());
    follower.apply(u64::MAX).unwrap();
    assert_eq!(places(), (6, 6), "there is nothing more");
    // A group that does not follow on what is logged changes nothing.
    follower.clear();
    receive(&first, 1, ends[0]);
    let gap = crate::receive_at(&follower, 3, &second, 9, Digest::EMPTY);
    let (expected, got) = (4, 3);
    let gap_at = NotLogged::Gap { expected, got };
    assert_eq!(gap, Err(ApplyError::NotLogged(gap_at)));
    assert_eq!(places(), (1, 3));
}

/// A leader's answers wait for its disk. A follower's answers do not: its leader sends a record once that is on its own
/// disk.
#[test]
fn records_that_a_leader_sent_wait_for_no_disk() {
    let watermarks = Watermarks::default();
    let at = |epoch, index| Position { epoch, index };
    watermarks.give_up_epoch();
    watermarks.advance(Mark::Written, 3);
    for mark in [Mark::Written, Mark::Durable] {
        assert_eq!(watermarks.reached(mark, at(1, 7)), Reached::Never);
    }
    watermarks.advance(Mark::Committed, 7);
    for mark in [Mark::Written, Mark::Durable] {
        assert_eq!(watermarks.reached(mark, at(1, 7)), Reached::Yes, "{mark:?}");
        assert_eq!(watermarks.reached(mark, at(1, 8)), Reached::Never);
    }
}

/// Senders to followers and watchers are given no record that the node does not acknowledge.
#[test]
fn a_log_with_a_disk_is_read_up_to_what_is_acknowledged() {
    let sequencer = Sequencer::new(1 << 20);
    let log = sequencer.log();
    log.begin_writing(0, Mark::Durable);
    for number in 0..3_u8 {
        append(&sequencer, &entry(&[number], b"v"));
    }
    log.drain(Instant::now());
    let mut cursor = log.cursor_after(0).unwrap();
    let mut frames = Vec::new();
    let mut try_read = || log.try_read_acknowledged(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(try_read(), Found::Nothing));
    log.written(3);
    log.advance(Mark::Written, 3);
    assert_eq!(log.committed_index(), 0);
    assert!(matches!(try_read(), Found::Nothing));
    log.advance(Mark::Durable, 2);
    assert_eq!(log.committed_index(), 2);
    assert!(matches!(try_read(), Found::Small(2, _)));
    assert!(matches!(try_read(), Found::Nothing));
    sequencer.end();
    log.drain(Instant::now());
    assert!(
        matches!(try_read(), Found::Nothing),
        "it waits for the disk"
    );
    log.advance(Mark::Durable, 3);
    assert!(matches!(try_read(), Found::Small(1, _)));
    assert!(matches!(try_read(), Found::Ended));
}

/// Whether a signal was sent since the last call.
fn is_received(signal: &WriterSignal) -> bool {
    signal.wait(Instant::now())
}

#[test]
fn a_signal_is_received_once_and_a_deferred_one_when_the_last_deferral_ends() {
    let signal = WriterSignal::new();
    assert!(!is_received(&signal));
    signal.send();
    assert!(is_received(&signal) && !is_received(&signal));
    let (first, second) = (signal.defer(), signal.defer());
    signal.send();
    drop(first);
    assert!(!is_received(&signal));
    drop(second);
    assert!(is_received(&signal) && !is_received(&signal));
    drop(signal.defer());
    assert!(!is_received(&signal), "nothing was wanted");
    let deferral = signal.defer();
    signal.send_now();
    assert!(is_received(&signal));
    drop(deferral);
}

#[test]
fn a_deferred_signal_that_is_taken_is_not_sent() {
    let signal = WriterSignal::new();
    let deferral = signal.defer();
    assert!(!deferral.take(), "there is none");
    signal.send();
    assert!(deferral.take() && !deferral.take());
    drop(deferral);
    assert!(!is_received(&signal));
    // The next one is another one.
    let deferral = signal.defer();
    signal.send();
    assert!(deferral.take());
    signal.send();
    drop(deferral);
    assert!(is_received(&signal));
}

#[test]
fn no_signal_of_many_threads_is_lost_while_some_defer_or_take_it() {
    const THREADS: u64 = 4;
    const SIGNALS: u64 = 5_000;
    let signal = WriterSignal::new();
    // Records, and those of them that a thread has found after a signal.
    let (appended, found) = (&AtomicU64::new(0), AtomicU64::new(0));
    let find = || found.fetch_max(appended.load(Ordering::SeqCst), Ordering::SeqCst);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (signal, find) = (&signal, &find);
            scope.spawn(move || {
                for number in 0..SIGNALS {
                    let deferral = (number % THREADS == thread).then(|| signal.defer());
                    appended.fetch_add(1, Ordering::SeqCst);
                    signal.send();
                    // Every other one is taken, so this thread looks.
                    if let Some(deferral) = deferral
                        && (number / THREADS).is_multiple_of(2)
                        && deferral.take()
                    {
                        find();
                    }
                }
            });
        }
        let until = Instant::now() + PATIENCE;
        while found.load(Ordering::SeqCst) < THREADS * SIGNALS {
            assert!(Instant::now() < until, "a signal is lost");
            if signal.wait(Instant::now() + Duration::from_millis(10)) {
                find();
            }
        }
    });
}

/// A thread may keep a log whose end another one has moved already.
#[test]
fn keeping_a_log_that_has_ended_returns() {
    let sequencer = Sequencer::new(1 << 20);
    append(&sequencer, &entry(b"k", b"v"));
    sequencer.end();
    sequencer.log().drain(Instant::now());
    sequencer.log().keep();
    assert!(sequencer.log().has_ended());
}
