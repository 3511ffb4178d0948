//! The log under real threads. Its order is tested in `tests/order`, against a scheduler; these tests are not in
//! `src/log.rs` because that file is compiled there too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::log::backlog::Frames;
use gopherstore::log::{Cursor, Found, Head, Log};

use crate::entry;

/// For what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// For what must not come: long enough for a thread that is not stopped to get there.
const BLOCKED: Duration = Duration::from_millis(50);

/// What the channel to the log takes.
const ROOM: u64 = 8 << 20;

fn cost(entry: &Entry) -> u64 {
    Frames::cost(entry.frame().len())
}

fn append(log: &Log, entry: &Entry) {
    log.reserve(cost(entry));
    log.append(Frames::Entry(entry.clone()), 1, Digest::of(entry));
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
fn kept(log: &Log, f: impl FnOnce()) {
    thread::scope(|scope| {
        scope.spawn(|| log.keep());
        f();
        log.end();
    });
}

#[test]
fn room_is_taken_up_to_a_bound_and_given_back() {
    let log = Log::new(1 << 20);
    log.reserve(ROOM - 10);
    log.reserve(10);
    thread::scope(|scope| {
        let (done, taken) = mpsc::channel();
        scope.spawn({
            let log = &log;
            move || {
                log.reserve(20);
                done.send(()).unwrap();
            }
        });
        assert!(taken.recv_timeout(BLOCKED).is_err(), "no room for 20");
        log.release(19);
        assert!(taken.recv_timeout(BLOCKED).is_err(), "19 of 20");
        log.release(1);
        taken.recv_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn what_is_larger_than_all_room_waits_until_half_of_it_is_free() {
    let log = Log::new(1 << 20);
    log.reserve(ROOM / 2 + 1);
    thread::scope(|scope| {
        let (done, taken) = mpsc::channel();
        scope.spawn({
            let log = &log;
            move || {
                log.reserve(2 * ROOM);
                done.send(()).unwrap();
            }
        });
        assert!(
            taken.recv_timeout(BLOCKED).is_err(),
            "half of it is taken, and one"
        );
        log.release(1);
        taken.recv_timeout(PATIENCE).unwrap();
    });
}

/// A follower's link may be in the middle of a batch when its node stops.
#[test]
fn nobody_waits_for_room_once_the_journal_has_ended() {
    let log = Log::new(1 << 20);
    log.reserve(2 * ROOM);
    thread::scope(|scope| {
        let (done, taken) = mpsc::channel();
        scope.spawn({
            let log = &log;
            move || {
                log.reserve(1);
                done.send(()).unwrap();
            }
        });
        assert!(taken.recv_timeout(BLOCKED).is_err(), "no room");
        log.end();
        log.keep();
        taken.recv_timeout(PATIENCE).unwrap();
    });
    log.reserve(ROOM);
}

#[test]
fn the_replication_thread_gives_back_the_room_of_what_it_moves() {
    let log = Log::new(1 << 20);
    let large = entry(b"key", &vec![7; 1 << 20]);
    kept(&log, || {
        // Four times what the channel takes.
        for _ in 0..32 {
            append(&log, &large);
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
fn a_reader_gets_entries_in_their_order_then_nothing_and_then_the_end() {
    let log = Log::new(1 << 20);
    let entries = [b"1", b"2", b"3"].map(|value| entry(b"key", value));
    kept(&log, || {
        let mut cursor = log.cursor_after(0).unwrap();
        let (nothing, _) = read(&log, &mut cursor, Instant::now());
        assert!(matches!(nothing, Found::Nothing), "{nothing:?}");
        for (index, entry) in (1..).zip(&entries) {
            append(&log, entry);
            let (found, frames) = read(&log, &mut cursor, later());
            assert!(matches!(found, Found::Small(1)), "{found:?}");
            assert_eq!(frames, entry.frame());
            assert_eq!(cursor.next, index + 1);
        }
        assert!(log.cursor_after(3).is_some());
        assert!(log.cursor_after(4).is_none(), "beyond the head");
    });
    // Ended, but what is in the log can still be read.
    let mut cursor = log.cursor_after(1).unwrap();
    for _ in 0..2 {
        let (found, _) = read(&log, &mut cursor, later());
        assert!(matches!(found, Found::Small(1)), "{found:?}");
    }
    let (end, _) = read(&log, &mut cursor, later());
    assert!(matches!(end, Found::Ended), "{end:?}");
}

#[test]
fn the_end_wakes_a_reader_that_waits() {
    let log = Log::new(1 << 20);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut cursor = log.cursor_after(0).unwrap();
            read(&log, &mut cursor, later()).0
        });
        scope.spawn(|| log.keep());
        log.end();
        let found = reader.join().unwrap();
        assert!(matches!(found, Found::Ended), "{found:?}");
    });
}

#[test]
fn a_reset_takes_readers_their_place_and_begins_after_the_new_head() {
    let log = Log::new(1 << 20);
    let head = Head {
        index: 2,
        digest: Digest::from_u128(77),
    };
    kept(&log, || {
        for value in [b"1", b"2", b"3"] {
            append(&log, &entry(b"key", value));
        }
        let mut old = log.cursor_after(1).unwrap();
        assert!(matches!(read(&log, &mut old, later()).0, Found::Small(1)));
        log.reset(head);
        assert_eq!(log.head(), head);
        let deadline = later();
        while log.kept_head() != head {
            assert!(Instant::now() < deadline, "the reset does not come");
            thread::yield_now();
        }
        // The log has entry 3 again before the old reader looks: it is not the one that it waits for.
        append(&log, &entry(b"key", b"another"));
        let (found, _) = read(&log, &mut old, later());
        assert!(matches!(found, Found::Gone), "{found:?}");
        assert!(log.cursor_after(1).is_none(), "before the log begins");
        let mut new = log.cursor_after(2).unwrap();
        let (found, frames) = read(&log, &mut new, later());
        assert!(matches!(found, Found::Small(1)), "{found:?}");
        assert_eq!(frames, entry(b"key", b"another").frame());
    });
    assert_eq!(log.digest_at(2), Some(head.digest));
    assert_eq!(log.digest_at(1), None);
}

/// A sender whose follower is gone waits for no further entry, and no heartbeat.
#[test]
fn a_reader_that_is_woken_looks_whether_it_is_over() {
    let log = Log::new(1 << 20);
    let mut cursor = log.cursor_after(0).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, found) = mpsc::channel();
        scope.spawn({
            let (log, is_over) = (&log, &is_over);
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
    let log = Log::new(1 << 20);
    let one = entry(b"k", b"v");
    let begin = Instant::now();
    kept(&log, || {
        append(&log, &one);
        let mut cursor = log.cursor_after(0).unwrap();
        let (found, _) = read(&log, &mut cursor, later());
        assert!(matches!(found, Found::Small(1)), "{found:?}");
        let at = log.appended_at(1).unwrap();
        assert!(begin <= at && at <= Instant::now());
        assert_eq!(log.appended_at(2), None);
    });
}
