//! Snapshots that fail: the space that they take from the log meanwhile, and the last one of a node that stops.

use super::*;

/// Writes keys of some 400 bytes of log each until a segment is begun for which no next one is ready.
fn begin_second_segment(disk: &Disk, engine: &Engine, writing: &mut Writing<'_>, now: Instant) {
    let segments = || {
        let names = disk.list().unwrap();
        names.iter().filter(|name| name.starts_with("log-")).count()
    };
    disk.limit(Some(disk.used()));
    while segments() < 2 {
        assert_eq!(write(0, engine, writing, now), Status::Ok);
    }
}

/// A leader that has written its first record.
fn begin_leading<'d>(disk: &'d Disk, engine: &'d Engine, now: Instant) -> Writing<'d> {
    let settings = settings(SyncPolicy::Always);
    let mut writing = begin_with(disk, engine, Mark::Written, settings, now);
    lead(engine);
    settle(engine, &mut writing, now);
    writing
}

fn write(key: u32, engine: &Engine, writing: &mut Writing<'_>, now: Instant) -> Status {
    let status = ask(engine, &[set(&key.to_be_bytes(), &[1; 300])])[0];
    settle(engine, writing, now);
    status
}

/// A snapshot that is being written may take the last space. It is given back where the snapshot fails.
#[test]
fn a_disk_is_full_of_a_snapshot_only_once_half_of_the_segment_is_used() {
    for (keys, expected) in [(15, Space::Enough), (25, Space::Reserve)] {
        let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
        let log = engine.log().unwrap();
        let mut writing = begin_leading(&disk, &engine, now);
        let mut exchange = Exchange::default();
        exchange.order_snapshot();
        exchange.note(&mut writing);
        assert!(exchange.begin_snapshot().is_some());
        exchange.note(&mut writing);
        begin_second_segment(&disk, &engine, &mut writing, now);
        let statuses = (0..keys).map(|key| write(key, &engine, &mut writing, now));
        let refused = statuses.filter(|status| *status == Status::Full).count();
        assert_eq!(log.space().0, expected);
        assert_eq!(refused > 0, expected == Space::Reserve);
        assert_eq!(log.space().1.contains("the disk is full"), refused > 0);
        // Its file is removed: the disk is asked again at once.
        exchange.want_snapshot();
        disk.limit(None);
        assert!(exchange.has_news(log));
        exchange.note(&mut writing);
        assert!(!exchange.has_news(log));
        settle(&engine, &mut writing, now);
        assert_eq!(log.space().0, Space::Enough);
        let mut statuses = (0..40).map(|key| write(key, &engine, &mut writing, now));
        assert!(statuses.all(|status| status == Status::Ok));
    }
}

#[test]
fn a_disk_that_is_full_without_the_snapshot_is_full_at_its_end() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    let mut writing = begin_leading(&disk, &engine, now);
    writing.set_beside_snapshot(true);
    begin_second_segment(&disk, &engine, &mut writing, now);
    assert_eq!(log.space().0, Space::Enough);
    writing.set_beside_snapshot(false);
    settle(&engine, &mut writing, now);
    assert_eq!(log.space().0, Space::Reserve);
    // Another snapshot changes nothing.
    writing.set_beside_snapshot(true);
    settle(&engine, &mut writing, now + Duration::from_secs(1));
    assert_eq!(log.space().0, Space::Reserve);
}

/// The log behind a snapshot that has failed would want another one.
#[test]
fn a_last_snapshot_that_fails_is_not_tried_again() {
    let (disk, engine, now) = (Disk::default(), engine(), Instant::now());
    let log = engine.log().unwrap();
    let mut settings = settings(SyncPolicy::Always);
    settings.snapshot_log_bytes = 2_000;
    let mut writing = begin_with(&disk, &engine, Mark::Durable, settings, now);
    let mut exchange = Exchange::default();
    lead(&engine);
    let write = |writing: &mut Writing<'_>| {
        for key in 0..20_u32 {
            ask(&engine, &[set(&key.to_be_bytes(), &[1; 300])]);
        }
        settle(&engine, writing, now);
    };
    write(&mut writing);
    assert!(exchange.note(&mut writing).wants_snapshot);
    assert!(exchange.begin_snapshot().is_some());
    write(&mut writing);
    engine.end_log();
    log.drain(now);
    assert!(matches!(writing.step(now).unwrap(), Next::Ended));
    // It fails, perhaps before the end is noted.
    for is_noted in [true, false] {
        if is_noted {
            exchange.note(&mut writing);
        }
        exchange.give_up_snapshot();
        assert!(!exchange.note(&mut writing).wants_snapshot);
        assert!(exchange.is_over());
    }
}
