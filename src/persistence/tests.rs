//! The writing of a log, step by step: a disk that is full, snapshots beside it, and the end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod failed_snapshots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Copying, Exchange, Next, Progress, Recovery, Settings, Sync, Writing, open, recover};
use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::clock::{Clock, Reading, TimeSource};
use crate::engine::{Admission, Answers, Engine};
use crate::history::EpochStart;
use crate::log::{Cursor, Mark, Space};
use crate::storage::files::Files;
use crate::storage::simulated::Disk;
use crate::storage::snapshot::{SnapshotId, read_snapshot};
use crate::wire::request::{Limits, frames};
use crate::wire::{Request, Run, Status};

/// Bytes of a segment here.
const SEGMENT: u64 = 16 << 10;

/// A clock that stands.
#[derive(Debug)]
struct Still;

impl TimeSource for Still {
    fn read(&self) -> Reading {
        Reading::default()
    }
}

fn engine() -> Engine {
    Engine::new(Some(1 << 20), Clock::new(Box::new(Still)))
}

/// A leader.
fn lead(engine: &Engine) {
    let start = EpochStart {
        epoch: 1,
        nonce: 7,
        start_index: 1,
    };
    let admission = Admission {
        reads: true,
        writes: true,
    };
    engine.open_epoch(start, admission).unwrap();
}

/// The writing of the log of a node that acknowledges at `mark`, on a disk without files, by these
/// [settings](settings).
fn begin<'d>(
    disk: &'d Disk,
    engine: &'d Engine,
    mark: Mark,
    sync: SyncPolicy,
    now: Instant,
) -> Writing<'d> {
    begin_with(disk, engine, mark, settings(sync), now)
}

/// The same by others.
fn begin_with<'d>(
    disk: &'d Disk,
    engine: &'d Engine,
    mark: Mark,
    settings: Settings,
    now: Instant,
) -> Writing<'d> {
    let log = engine.log().unwrap();
    log.begin_writing(0, mark);
    Writing::new(disk, (engine, log), settings, Recovery::default(), now).unwrap()
}

fn settings(sync: SyncPolicy) -> Settings {
    let salt = AtomicU64::new(1);
    Settings {
        config: StorageConfig {
            data_dir: None,
            sync,
            sync_interval: Duration::from_secs(1),
        },
        segment_bytes: SEGMENT,
        snapshot_log_bytes: u64::MAX,
        salts: Arc::new(move || salt.fetch_add(1, Ordering::Relaxed)),
    }
}

/// The status of the answer to each of these requests, which are executed as one run.
fn ask(engine: &Engine, requests: &[Request<'_>]) -> Vec<Status> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    let mut answers = Answers::new();
    let run = Run::of(&bytes, &Limits::default());
    engine.execute(&run, None, &mut answers).unwrap();
    statuses(answers.bytes())
}

fn statuses(mut bytes: &[u8]) -> Vec<Status> {
    let mut found = Vec::new();
    while let [status, a, b, c, d, rest @ ..] = bytes {
        found.push(Status::try_from(*status).unwrap());
        let len = u32::from_be_bytes([*a, *b, *c, *d]);
        bytes = &rest[usize::try_from(len).unwrap()..];
    }
    found
}

/// The status of the answer to a BATCH.
fn batch(engine: &Engine, requests: &[Request<'_>]) -> Status {
    let mut value = Vec::new();
    for request in requests {
        request.encode(&mut value).unwrap();
    }
    let mut bytes = Vec::new();
    Request::Batch { value: &value }.encode(&mut bytes).unwrap();
    let frame = frames(&bytes).next().unwrap();
    let limits = Limits::default();
    let batch = crate::wire::batch::Batch::decode_within(frame.value(), &limits).unwrap();
    let mut answers = Answers::new();
    engine.execute_batch(&batch, None, &mut answers).unwrap();
    statuses(answers.bytes())[0]
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Set { key, value }
}

/// Takes steps until there is nothing to do. Returns until when.
fn settle(engine: &Engine, writing: &mut Writing<'_>, now: Instant) -> Instant {
    engine.log().unwrap().drain(now);
    for _ in 0..1_000 {
        match writing.step(now).unwrap() {
            Next::Again => {}
            Next::Sync(sync) => writing.synced(sync.run().unwrap()),
            Next::Wait(until) => return until,
            Next::Ended => panic!("it has ended"),
        }
    }
    panic!("there is always something to do");
}

#[test]
fn a_full_disk_refuses_what_stores_until_there_is_space() {
    for sync in [SyncPolicy::Always, SyncPolicy::Never] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        disk.limit(Some(2 * SEGMENT));
        let mut writing = begin(&disk, &engine, Mark::Written, sync, now);
        lead(&engine);
        let mut keys = 0_u32;
        let mut at = now;
        while log.space().0 == Space::Enough {
            let key = keys.to_be_bytes();
            assert_eq!(ask(&engine, &[set(&key, &[1; 300])]), [Status::Ok]);
            keys += 1;
            settle(&engine, &mut writing, at);
            at += Duration::from_millis(1);
            assert!(keys < 1_000, "the disk is never full");
        }
        assert_eq!(log.space().0, Space::Reserve);
        assert!(!writing.is_stalled() && disk.used() <= 2 * SEGMENT);
        // A run with both: each for itself.
        let [del, take] = [0_u32, 1].map(u32::to_be_bytes);
        let (del, take) = (Request::Del { key: &del }, Request::Del { key: &take });
        let get = Request::Get { key: b"x" };
        let expected = [Status::Full, Status::Ok, Status::NotFound];
        assert_eq!(ask(&engine, &[set(b"x", b""), del, get]), expected);
        assert_eq!(batch(&engine, &[set(b"x", b""), take]), Status::Full);
        assert_eq!(batch(&engine, &[take]), Status::Ok);
        assert_eq!(engine.evicted_and_refused()[1], 2);
        settle(&engine, &mut writing, at);
        assert_eq!(
            log.watermarks().index(Mark::Written),
            Some(log.last_index())
        );
        // It is tried again, after a second.
        let until = settle(&engine, &mut writing, at);
        assert!(until <= at + Duration::from_secs(1));
        disk.limit(Some(4 * SEGMENT));
        at += Duration::from_secs(1);
        settle(&engine, &mut writing, at);
        assert_eq!(log.space().0, Space::Enough);
        assert_eq!(ask(&engine, &[set(b"x", b"")]), [Status::Ok]);
        settle(&engine, &mut writing, at);
        is_recovered(&disk.after_kill(), &engine);
    }
}

/// The data set of a disk is that of an engine.
fn is_recovered(disk: &Disk, expected: &Engine) {
    let engine = engine();
    recover(disk, &engine, Instant::now(), 1).unwrap();
    assert_eq!(engine.head(), expected.head());
}

/// Records that the node has taken, from a client or its leader, wait where even the reserve has no room for them.
#[test]
fn what_has_no_space_at_all_is_not_acknowledged_and_is_written_later() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    disk.limit(Some(2 * SEGMENT));
    let settings = settings(SyncPolicy::Always);
    let mut writing = begin_with(&disk, &engine, Mark::Durable, settings, now);
    lead(&engine);
    settle(&engine, &mut writing, now);
    for key in 0..20_u32 {
        let key = key.to_be_bytes();
        assert_eq!(ask(&engine, &[set(&key, &[1; 3_000])]), [Status::Ok]);
    }
    // Taken before the disk was known to be full.
    let until = now + Duration::from_secs(1);
    assert!(settle(&engine, &mut writing, now) <= until && writing.is_stalled());
    assert_eq!(log.space().0, Space::UsedUp);
    let durable = log.watermarks().index(Mark::Durable).unwrap();
    assert!((1..21).contains(&durable), "{durable}");
    assert_eq!(log.committed_index(), durable);
    let key = 0_u32.to_be_bytes();
    assert_eq!(ask(&engine, &[Request::Del { key: &key }]), [Status::Full]);
    let get = Request::Get { key: &key };
    assert_eq!(ask(&engine, &[get]), [Status::Ok]);
    // Nothing happens before a second has passed, and nothing where the disk is full yet.
    settle(&engine, &mut writing, now + Duration::from_millis(999));
    settle(&engine, &mut writing, until);
    assert_eq!(log.watermarks().index(Mark::Durable), Some(durable));
    disk.limit(None);
    settle(&engine, &mut writing, until + Duration::from_secs(1));
    assert!(!writing.is_stalled());
    assert_eq!(log.space().0, Space::Enough);
    assert_eq!(log.watermarks().index(Mark::Durable), Some(21));
    is_recovered(&disk.after_power_failure(3), &engine);
    assert!(
        disk.list()
            .unwrap()
            .iter()
            .all(|name| !name.starts_with("new-"))
    );
}

/// A full copy replaces the data set, and has no space either. Nobody has looked whether the disk has space meanwhile.
#[test]
fn a_disk_that_is_full_is_so_until_the_next_chain_has_its_space() {
    for is_stalled in [false, true] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        disk.limit(Some(SEGMENT));
        let mut writing = begin(&disk, &engine, Mark::Written, SyncPolicy::Always, now);
        lead(&engine);
        settle(&engine, &mut writing, now);
        let keys = if is_stalled { 20_u32 } else { 1 };
        for key in 0..keys {
            let key = key.to_be_bytes();
            // FULL where the reserve is used up.
            ask(&engine, &[set(&key, &[1; 3_000])]);
        }
        settle(&engine, &mut writing, now);
        assert_ne!(log.space().0, Space::Enough);
        let later = |ms| now + Duration::from_millis(ms);
        engine.admit(Admission::default());
        engine.clear();
        for ms in [10, 2_000, 4_000] {
            settle(&engine, &mut writing, later(ms));
            assert_ne!(log.space().0, Space::Enough, "{ms}");
        }
        // The next chain has no space.
        lead(&engine);
        for ms in [5_000, 7_000] {
            settle(&engine, &mut writing, later(ms));
            assert_ne!(log.space().0, Space::Enough, "{ms}");
        }
        // Then it has, but the segment behind it has none.
        disk.limit(Some(disk.used() + SEGMENT));
        for ms in [9_000, 11_000] {
            settle(&engine, &mut writing, later(ms));
            assert_eq!(log.space().0, Space::Reserve, "{ms}");
        }
        disk.limit(None);
        settle(&engine, &mut writing, later(13_000));
        assert_eq!(log.space().0, Space::Enough);
        assert_eq!(ask(&engine, &[set(b"x", b"")]), [Status::Ok]);
        settle(&engine, &mut writing, later(13_000));
        assert!(!writing.is_stalled());
    }
}

/// Takes steps until one begins a sync, or until there is nothing to do.
fn next_sync(engine: &Engine, writing: &mut Writing<'_>, now: Instant) -> Option<Sync> {
    engine.log().unwrap().drain(now);
    for _ in 0..1_000 {
        match writing.step(now).unwrap() {
            Next::Again => {}
            Next::Sync(sync) => return Some(sync),
            Next::Wait(_) => return None,
            Next::Ended => panic!("it has ended"),
        }
    }
    panic!("there is always something to do");
}

#[test]
fn a_sync_of_interval_covers_what_was_written_before_it_and_more_is_written_meanwhile() {
    let (disk, engine, start) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    let mut writing = begin(&disk, &engine, Mark::Written, SyncPolicy::Interval, start);
    let marks = || [Mark::Written, Mark::Durable].map(|mark| log.watermarks().index(mark).unwrap());
    lead(&engine);
    assert!(next_sync(&engine, &mut writing, start).is_none());
    assert_eq!(marks(), [1, 0]);
    let due = start + Duration::from_secs(1);
    let sync = next_sync(&engine, &mut writing, due).unwrap();
    assert_eq!(ask(&engine, &[set(b"a", b"1")]), [Status::Ok]);
    // None is begun while one is under way, though one is wanted.
    log.want_durable(2);
    assert!(next_sync(&engine, &mut writing, due).is_none());
    assert_eq!(marks(), [2, 0]);
    writing.synced(sync.run().unwrap());
    assert_eq!(marks(), [2, 1], "the second record came later");
    let sync = next_sync(&engine, &mut writing, due).unwrap();
    writing.synced(sync.run().unwrap());
    assert_eq!(marks(), [2, 2]);
    let later = due + Duration::from_secs(5);
    assert!(
        next_sync(&engine, &mut writing, later).is_none(),
        "nothing is left"
    );
    // The result of a sync of the log before is ignored once another log is written.
    assert_eq!(ask(&engine, &[set(b"b", b"2")]), [Status::Ok]);
    let stale = next_sync(&engine, &mut writing, later).unwrap();
    let stale = stale.run().unwrap();
    engine.admit(Admission::default());
    engine.clear();
    lead(&engine);
    assert!(next_sync(&engine, &mut writing, later).is_none());
    writing.synced(stale);
    assert_eq!((writing.durable_to(), marks()), (0, [0, 0]));
}

#[test]
fn much_that_is_not_synced_begins_a_sync_before_its_time() {
    for sync in [SyncPolicy::Interval, SyncPolicy::Never] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let mut settings = settings(sync);
        settings.segment_bytes = 64 << 20;
        let mut writing = begin_with(&disk, &engine, Mark::Written, settings, now);
        lead(&engine);
        let value = vec![1; 1 << 20];
        let syncs = (0..10_u32).filter(|key| {
            let key = key.to_be_bytes();
            assert_eq!(ask(&engine, &[set(&key, &value)]), [Status::Ok]);
            let sync = next_sync(&engine, &mut writing, now);
            let is_begun = sync.is_some();
            if let Some(sync) = sync {
                writing.synced(sync.run().unwrap());
            }
            is_begun
        });
        // With the fifth value there are more than 4 MiB, and with the tenth.
        assert_eq!(syncs.collect::<Vec<_>>(), [3, 7], "{sync:?}");
    }
}

#[test]
fn a_log_that_ends_while_there_is_no_space_for_it_is_an_error() {
    // Not even the first segment has its space, or the next one has none.
    for limit in [100, 2 * SEGMENT] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        disk.limit(Some(limit));
        let settings = settings(SyncPolicy::Always);
        let mut writing = begin_with(&disk, &engine, Mark::Durable, settings, now);
        lead(&engine);
        for key in 0..20_u32 {
            ask(&engine, &[set(&key.to_be_bytes(), &[1; 3_000])]);
        }
        settle(&engine, &mut writing, now);
        assert!(writing.is_stalled());
        assert_eq!(log.space().0, Space::UsedUp);
        engine.end_log();
        log.drain(now);
        // Also before the disk is asked again.
        let error = writing.step(now).unwrap_err();
        assert!(error.is_full(), "{error}");
    }
}

/// Copies the data set that a chain is of. Returns the index up to which the log has to be durable.
fn copied<'d>(disk: &'d Disk, engine: &'d Engine, chain: (u32, Cursor)) -> (Copying<'d>, u64) {
    let log = engine.log().unwrap();
    let mut copying = Copying::begin(disk, (engine, log), chain, 5).unwrap();
    loop {
        match copying.step().unwrap() {
            Progress::More => {}
            Progress::Copied(end) => return (copying, end),
            Progress::Replaced => panic!("no other data set"),
        }
    }
}

/// Writes a snapshot if one is wanted. Returns it.
fn snapshot(
    disk: &Disk,
    engine: &Engine,
    writing: &mut Writing<'_>,
    exchange: &mut Exchange,
) -> Option<SnapshotId> {
    exchange.note(writing);
    let chain = exchange.begin_snapshot()?;
    let (copying, end) = copied(disk, engine, chain);
    assert_eq!(exchange.may_finish(end, chain.0, &copying), Some(true));
    let bytes = copying.len();
    let id = copying.finish().unwrap();
    exchange.end_snapshot(Some((id, bytes)));
    let (id, bytes) = exchange.take_done().unwrap();
    writing.snapshot_done(id, bytes).unwrap();
    exchange.note(writing);
    Some(id)
}

/// The length of the last snapshot counts while the node runs, and not at its end.
#[test]
fn a_log_that_ends_with_much_behind_the_last_snapshot_wants_another_one() {
    for (behind, expected) in [(10, true), (3, false)] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        let mut settings = settings(SyncPolicy::Always);
        settings.snapshot_log_bytes = 2_000;
        let mut writing = begin_with(&disk, &engine, Mark::Durable, settings, now);
        let mut exchange = Exchange::default();
        lead(&engine);
        let write = |keys: std::ops::Range<u32>, writing: &mut Writing<'_>| {
            for key in keys {
                let key = key.to_be_bytes();
                assert_eq!(ask(&engine, &[set(&key, &[1; 300])]), [Status::Ok]);
            }
            settle(&engine, writing, now);
        };
        write(0..100, &mut writing);
        let first = snapshot(&disk, &engine, &mut writing, &mut exchange);
        assert_eq!(first.map(|id| id.begin), Some(101));
        write(0..behind, &mut writing);
        let none = snapshot(&disk, &engine, &mut writing, &mut exchange);
        assert_eq!(none, None, "the last one is longer");
        engine.end_log();
        log.drain(now);
        // It may be asked again.
        for _ in 0..2 {
            assert!(matches!(writing.step(now).unwrap(), Next::Ended));
        }
        // Nothing depends on what follows.
        is_recovered(&disk.after_power_failure(1), &engine);
        exchange.note(&mut writing);
        assert_eq!(
            (exchange.has_ended(), exchange.is_over()),
            (true, !expected)
        );
        let last = snapshot(&disk, &engine, &mut writing, &mut exchange);
        let begin = u64::from(behind) + 101;
        assert_eq!(last.map(|id| id.begin), expected.then_some(begin));
        assert!(exchange.is_over());
        let left = disk.after_power_failure(2);
        is_recovered(&left, &engine);
        let again = self::engine();
        let recovery = recover(&left, &again, now, 1).unwrap();
        assert_eq!(recovery.records == 0, expected, "{recovery:?}");
    }
}

/// A full copy has failed, and the node goes back to its data set just when a snapshot of that gets its name.
#[test]
fn a_snapshot_that_gets_its_name_while_the_directory_is_read_stays() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    log.begin_writing(0, Mark::Durable);
    let open = |engine, log, recovery| {
        let settings = settings(SyncPolicy::Always);
        Writing::new(&disk, (engine, log), settings, recovery, now).unwrap()
    };
    let copy = |writing: &Writing<'_>| {
        let chain = (writing.chain().unwrap(), writing.cursor());
        copied(&disk, &engine, chain).0
    };
    let mut writing = open(&engine, log, Recovery::default());
    lead(&engine);
    for key in 0..200_u32 {
        assert_eq!(
            ask(&engine, &[set(&key.to_be_bytes(), &[1; 300])]),
            [Status::Ok]
        );
        settle(&engine, &mut writing, now);
        if key == 100 {
            copy(&writing).finish().unwrap();
        }
    }
    let copying = copy(&writing);
    let again = self::engine();
    let recovery = recover(&disk, &again, now, 1).unwrap();
    let id = copying.finish().unwrap();
    let mut writing = open(&again, again.log().unwrap(), recovery);
    writing.snapshot_done(id, 100).unwrap();
    is_recovered(&disk, &engine);
    is_recovered(&disk.after_power_failure(3), &engine);
}

/// A new epoch ends the copy: its history is another one.
#[test]
fn a_snapshot_that_was_given_up_is_begun_again() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    let mut writing = begin(&disk, &engine, Mark::Durable, SyncPolicy::Always, now);
    lead(&engine);
    settle(&engine, &mut writing, now);
    let mut exchange = Exchange::default();
    exchange.order_snapshot();
    assert!(exchange.note(&mut writing).wants_snapshot);
    assert!(exchange.begin_snapshot().is_some() && !exchange.has_news(log));
    exchange.end_snapshot(None);
    // It wakes the writing of the log, which has nothing else to do.
    assert!(exchange.has_news(log));
    assert!(exchange.note(&mut writing).wants_snapshot);
    assert!(exchange.begin_snapshot().is_some());
}

/// STATUS shows them from the first moment on, before the writing begins.
#[test]
fn the_watermarks_are_at_the_end_of_what_was_recovered_at_once() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let mut writing = begin(&disk, &engine, Mark::Durable, SyncPolicy::Always, now);
    lead(&engine);
    assert_eq!(ask(&engine, &[set(b"k", b"v")]), [Status::Ok]);
    settle(&engine, &mut writing, now);
    for mark in [Mark::Written, Mark::Durable] {
        let again = self::engine();
        open(&disk.after_kill(), &again, mark, now, 1).unwrap();
        let log = again.log().unwrap();
        let marks = [Mark::Written, Mark::Durable].map(|mark| log.watermarks().index(mark));
        assert_eq!(marks, [Some(2); 2]);
        assert_eq!(log.committed_index(), 2);
    }
}

/// The offset of the last group with records in a segment.
fn last_group(segment: &[u8]) -> usize {
    let heads = segment.windows(12).enumerate();
    let mut groups = heads.filter(|(_, it)| it.starts_with(b"GRP\x01") && it[8..] != [0; 4]);
    groups.next_back().unwrap().0
}

/// With each policy: the mark behind an idle log comes once all of it is synced, and says so.
#[test]
fn damage_of_the_last_group_of_an_idle_log_is_found_once_it_was_synced() {
    let tenths = |count: u64| Duration::from_millis(100 * count);
    for sync in [SyncPolicy::Always, SyncPolicy::Interval, SyncPolicy::Never] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        let mut writing = begin(&disk, &engine, Mark::Written, sync, now);
        lead(&engine);
        for key in 0..3_u32 {
            ask(&engine, &[set(&key.to_be_bytes(), &[1; 300])]);
            settle(&engine, &mut writing, now);
        }
        let name = "log-00000001-0000000000000001";
        let at = last_group(&disk.bytes(name));
        let damaged = || {
            let left = disk.after_kill();
            left.flip(name, at + 100, 1);
            recover(&left, &self::engine(), now, 1)
        };
        let before = disk.after_kill();
        // The disk may not have it.
        settle(&engine, &mut writing, now + tenths(2));
        let is_synced = sync == SyncPolicy::Always;
        assert_eq!(damaged().is_err(), is_synced, "{sync:?}");
        let until = settle(&engine, &mut writing, now + tenths(9));
        assert_eq!(damaged().is_err(), is_synced, "{sync:?}");
        let is_due = until <= now + tenths(10);
        assert_eq!(is_due, sync == SyncPolicy::Interval, "{sync:?}");
        if sync == SyncPolicy::Never {
            log.want_durable(log.last_index());
        }
        settle(&engine, &mut writing, now + tenths(10));
        settle(&engine, &mut writing, now + tenths(11));
        let text = damaged().unwrap_err().to_string();
        let place = format!("{name}, offset {at}: record 4 is damaged");
        assert!(text.contains(&place), "{sync:?}: {text}");
        is_recovered(&disk.after_kill(), &engine);
        // A start syncs what it reads.
        let again = self::engine();
        let recovery = open(&before, &again, Mark::Written, now, 1).unwrap();
        let log = again.log().unwrap();
        let settings = self::settings(sync);
        let mut writing = Writing::new(&before, (&again, log), settings, recovery, now).unwrap();
        settle(&again, &mut writing, now + tenths(1));
        before.flip(name, at + 100, 1);
        let error = recover(&before, &self::engine(), now, 1).unwrap_err();
        assert!(error.to_string().contains(&place), "{sync:?}: {error}");
    }
}

/// A start reads each chunk with calls of the system, so a chunk has many entries, also long ones.
#[test]
fn the_entries_of_a_snapshot_share_chunks_but_for_very_long_ones() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let mut writing = begin(&disk, &engine, Mark::Durable, SyncPolicy::Always, now);
    lead(&engine);
    for key in 0..1_000_u32 {
        let value = vec![1; if key == 500 { 100_000 } else { 400 }];
        let key = key.to_be_bytes();
        assert_eq!(ask(&engine, &[set(&key, &value)]), [Status::Ok]);
    }
    settle(&engine, &mut writing, now);
    let mut exchange = Exchange::default();
    exchange.note(&mut writing);
    exchange.order_snapshot();
    assert!(snapshot(&disk, &engine, &mut writing, &mut exchange).is_some());
    let mut counts = Vec::new();
    let mut visit = |_: Vec<u8>, count| {
        counts.push(count);
        Ok(())
    };
    assert!(read_snapshot(&disk, &mut visit).unwrap().is_some());
    counts.sort_unstable();
    assert_eq!(counts, [1, 999]);
    is_recovered(&disk.after_power_failure(1), &engine);
}
