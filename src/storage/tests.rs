//! The log on a simulated disk: what is durable survives every crash, and damage is never taken for a torn end.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::ErrorKind;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::error::{Problem, StorageError};
use super::files::Files;
use super::recovery::{LogEnd, Recovered, files_to_read, read_log};
use super::segment::SegmentId;
use super::simulated::Disk;
use super::snapshot::{SnapshotId, SnapshotWriter, announced_keys, read_snapshot};
use super::writer::{Layout, LogWriter, NewGroup, SEGMENT_BYTES, Salts};
use crate::engine::digest::Digest;
use crate::history::{EpochStart, History};
use crate::planted::{Fault, plant};

#[path = "../../tests/support/documented.rs"]
mod documented;
pub(crate) use documented::documented;

/// Bytes of a segment here, so that there are many.
pub(super) const SEGMENT: u64 = 4_096;

/// The shape of segments here. Those of every second seed are filled.
pub(crate) const fn layout(seed: u64) -> Layout {
    Layout {
        segment_bytes: SEGMENT,
        is_filled: seed.is_multiple_of(2),
    }
}

/// A group as it was written: its first index, and its records.
pub(super) type Written = (u64, Vec<u8>);

pub(super) fn start() -> LogEnd {
    LogEnd {
        next_index: 1,
        ..LogEnd::default()
    }
}

/// The first segment.
pub(super) fn first() -> SegmentId {
    SegmentId {
        chain: 1,
        number: 1,
    }
}

fn snapshot_id(begin: u64) -> SnapshotId {
    SnapshotId { chain: 1, begin }
}

pub(super) fn history() -> History {
    let start = EpochStart {
        epoch: 3,
        nonce: 7,
        start_index: 1,
    };
    History::new(vec![start]).unwrap()
}

pub(super) fn salts(seed: u64) -> Salts {
    let random = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
    Arc::new(move || random.lock().random())
}

/// Reads a log: what it is, and its groups with records.
pub(super) fn read(disk: &Disk) -> Result<(Option<Recovered>, Vec<Written>), StorageError> {
    let mut groups = Vec::new();
    let recovered = read_log(disk, None, &mut |group| {
        if group.head.count > 0 {
            groups.push((group.head.first_index, group.records.to_vec()));
        }
        Ok(())
    })?;
    Ok((recovered, groups))
}

/// Opens the log of a disk for writing, as a node does.
pub(super) fn open(disk: &Disk, seed: u64) -> Result<(LogWriter<'_>, Vec<Written>), StorageError> {
    let (mut recovered, groups) = read(disk)?;
    let writer = match &mut recovered {
        None => LogWriter::begin(
            disk,
            first(),
            start(),
            &History::default(),
            salts(seed),
            layout(seed),
        )?,
        Some(log) => LogWriter::recovered(disk, log, &history(), salts(seed), layout(seed))?,
    };
    Ok((writer, groups))
}

/// Appends a group of this many records, with these bytes. They are no frames: nothing looks at them here.
pub(super) fn append(
    writer: &mut LogWriter<'_>,
    count: u32,
    records: &[u8],
) -> Result<(), StorageError> {
    let group = NewGroup {
        records,
        count,
        digest: Digest::from_u128(u128::from(writer.written_to()) << 64 | 5),
        epoch: 3,
        committed: writer.written_to(),
        time_ms: 1_000 + writer.written_to(),
    };
    writer.append(&group, history)
}

fn seal(writer: &mut LogWriter<'_>) -> Result<(), StorageError> {
    let state = (3, writer.written_to(), 1_000 + writer.written_to());
    writer.seal(state, history)
}

/// Writes some random groups. Those that were written are added to `written`.
fn write_some(
    writer: &mut LogWriter<'_>,
    random: &mut ChaCha8Rng,
    written: &mut Vec<Written>,
) -> Result<(), StorageError> {
    for _ in 0..random.random_range(1..30) {
        let len = match random.random_range(0..10) {
            0 => random.random_range(3_000..9_000),
            _ => random.random_range(1..400),
        };
        let records: Vec<u8> = (0..len).map(|_| random.random()).collect();
        let first = writer.written_to() + 1;
        // Written, perhaps, where it fails.
        written.push((first, records.clone()));
        append(writer, random.random_range(1..5), &records)?;
        match random.random_range(0..6) {
            0 => writer.sync()?,
            1 => {
                writer.sync()?;
                seal(writer)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that a log has the groups of `written` up to somewhere, and all up to `durable`.
fn check(groups: &[Written], written: &[Written], durable: u64, what: &str) {
    assert!(groups.len() <= written.len(), "{what}: too many groups");
    assert_eq!(groups, &written[..groups.len()], "{what}");
    let lost = written[groups.len()..].first();
    assert!(
        lost.is_none_or(|(first, _)| *first > durable),
        "{what}: record {} is lost, and {durable} were durable",
        lost.unwrap().0
    );
}

#[test]
fn a_log_is_read_as_it_was_written_and_goes_on() {
    let disk = Disk::default();
    let mut written = Vec::new();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for round in 0..20 {
        let (mut writer, groups) = open(&disk, round).unwrap();
        assert_eq!(groups, written, "round {round}");
        write_some(&mut writer, &mut random, &mut written).unwrap();
        let last = writer.written_to();
        writer.sync().unwrap();
        assert_eq!(writer.durable_to(), last);
    }
    let (log, _) = read(&disk).unwrap();
    let log = log.unwrap();
    assert!(log.segments.len() > 10, "{}", log.segments.len());
    assert_eq!(log.cut, None);
    let ends = log.segments.windows(2);
    for pair in ends {
        let [before, after] = pair else { panic!() };
        assert_eq!(after.first_index, before.last_index + 1);
        assert_eq!(after.id, before.id.next());
    }
}

/// Crashes of either kind, again and again, on what the one before has left.
#[test]
fn what_is_durable_survives_every_crash() {
    let mut cuts = 0;
    for seed in 0..400 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let (mut written, mut durable) = (Vec::new(), 0);
        for round in 0..6 {
            let what = format!("seed {seed}, round {round}");
            let (log, _) = read(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            cuts += u32::from(log.is_some_and(|log| log.cut.is_some()));
            let (mut writer, groups) = open(&disk, seed).unwrap();
            check(&groups, &written, durable, &what);
            written = groups;
            write_some(&mut writer, &mut random, &mut written).unwrap();
            let is_power_failure = random.random_bool(0.7);
            (durable, disk) = if is_power_failure {
                let left = disk.after_power_failure(random.random());
                (writer.durable_to(), left)
            } else {
                (writer.written_to(), disk.after_kill())
            };
        }
    }
    assert!(cuts > 100, "{cuts}");
}

/// A log of a few segments, all durable, the last group of which is sealed or not.
fn small_log(is_sealed: bool) -> (Disk, Vec<Written>) {
    let disk = Disk::default();
    let mut written = Vec::new();
    let (mut writer, _) = open(&disk, 1).unwrap();
    for at in 0..6_u8 {
        let records = vec![at; 900];
        written.push((writer.written_to() + 1, records.clone()));
        append(&mut writer, 2, &records).unwrap();
        writer.sync().unwrap();
    }
    if is_sealed {
        seal(&mut writer).unwrap();
    }
    (disk.after_kill(), written)
}

#[test]
fn no_flipped_byte_is_taken_for_a_value_or_for_a_torn_end_that_was_durable() {
    for is_sealed in [false, true] {
        let (disk, written) = small_log(is_sealed);
        let (log, _) = read(&disk).unwrap();
        let log = log.unwrap();
        assert!(log.segments.len() > 1);
        let (mut refused, mut cut) = (0, 0);
        for segment in &log.segments {
            let name = segment.id.name();
            for at in 0..usize::try_from(segment.bytes).unwrap() {
                let flipped = disk.after_kill();
                flipped.flip(&name, at, 1 << (at % 8));
                match read(&flipped) {
                    Ok((log, groups)) => {
                        // Padding is in no checksum. Of an unsealed log the last group may be torn.
                        let is_cut = log.unwrap().cut.is_some();
                        let lost = written.len() - groups.len();
                        assert_eq!(groups, &written[..groups.len()], "{name} {at}");
                        assert!(lost <= usize::from(!is_sealed), "{name} {at}");
                        assert!(lost == 0 || is_cut, "{name} {at}");
                        cut += usize::from(is_cut);
                    }
                    Err(error) => {
                        assert!(matches!(
                            error.problem,
                            Problem::Damaged(_) | Problem::Foreign(_)
                        ));
                        assert!(
                            error.path.ends_with(&name) || error.offset.is_some(),
                            "{error}"
                        );
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 4_000 && cut > 80, "{refused} {cut}");
    }
}

#[test]
fn a_last_group_that_is_cut_anywhere_is_left_out() {
    let (disk, written) = small_log(false);
    let (log, _) = read(&disk).unwrap();
    let last = log.unwrap().segments.pop().unwrap();
    let name = last.id.name();
    let group = (88_u64 + 900).next_multiple_of(8);
    for cut in 1..=group {
        let disk = disk.after_kill();
        disk.truncate(&name, usize::try_from(last.bytes - cut).unwrap());
        let (log, groups) = read(&disk).unwrap();
        // The padding may be missing.
        let is_whole = cut <= group - 988;
        assert_eq!(
            groups.len(),
            written.len() - usize::from(!is_whole),
            "{cut}"
        );
        let is_torn = !is_whole && cut < group;
        assert_eq!(log.unwrap().cut.is_some(), is_torn, "{cut}");
        let (mut writer, _) = open(&disk, 9).unwrap();
        assert_eq!(
            writer.written_to(),
            2 * u64::try_from(groups.len()).unwrap()
        );
        append(&mut writer, 1, b"goes on").unwrap();
        writer.sync().unwrap();
        let (log, again) = read(&disk).unwrap();
        assert_eq!(log.unwrap().cut, None, "{cut}");
        assert_eq!(again.len(), groups.len() + 1);
    }
}

#[test]
fn a_group_that_is_longer_than_a_segment_is_read_whole() {
    let disk = Disk::default();
    let (mut writer, _) = open(&disk, 1).unwrap();
    let long = vec![7; usize::try_from(SEGMENT_BYTES).unwrap()];
    for records in [&b"before"[..], &long, b"behind"] {
        append(&mut writer, 1, records).unwrap();
    }
    writer.sync().unwrap();
    let (log, groups) = read(&disk).unwrap();
    assert_eq!(log.unwrap().cut, None);
    assert!(groups == [(1, b"before".to_vec()), (2, long), (3, b"behind".to_vec())]);
}

#[test]
fn segments_that_are_missing_or_of_another_use_are_refused() {
    let (disk, _) = small_log(true);
    let (log, _) = read(&disk).unwrap();
    let ids: Vec<SegmentId> = log.unwrap().segments.iter().map(|it| it.id).collect();
    assert!(ids.len() >= 2, "{ids:?}");
    let refused = |disk: &Disk, what: &str| {
        let error = read(disk).err().unwrap_or_else(|| panic!("{what}"));
        assert!(
            matches!(error.problem, Problem::Damaged(_)),
            "{what}: {error}"
        );
    };
    let without = disk.after_kill();
    without.rename(&ids[0].name(), "x").unwrap();
    // Whether the first one is needed is known by the snapshot alone.
    read(&without).unwrap();
    if let [_, middle, _, ..] = ids[..] {
        let without = disk.after_kill();
        without.remove(&middle.name()).unwrap();
        refused(&without, "a segment is missing");
    }
    let renamed = disk.after_kill();
    let last = *ids.last().unwrap();
    renamed.rename(&last.name(), &last.next().name()).unwrap();
    refused(&renamed, "a segment has another number");
    // The last segment of another log of the same numbers.
    let (other, _) = small_log(true);
    let bytes = other.bytes(&last.name());
    let (first, mixed) = (last.name(), disk.after_kill());
    mixed
        .open(&first, true)
        .unwrap()
        .write_at(0, &bytes)
        .unwrap();
    read(&mixed).unwrap();
    let foreign = {
        let disk = Disk::default();
        let (mut writer, _) = open(&disk, 77).unwrap();
        for _ in 0..6 {
            append(&mut writer, 2, &[9; 900]).unwrap();
            writer.sync().unwrap();
        }
        disk.bytes(&last.name())
    };
    mixed
        .open(&first, true)
        .unwrap()
        .write_at(0, &foreign)
        .unwrap();
    refused(&mixed, "a segment of another log");
    plant(Some(Fault::ChainNotCompared));
    let mixed_up = read(&mixed);
    plant(None);
    assert!(mixed_up.is_ok(), "the planted fault is not what finds it");
}

#[test]
fn a_call_that_fails_is_reported_and_loses_nothing_that_was_durable() {
    let kinds = [
        ErrorKind::StorageFull,
        ErrorKind::Other,
        ErrorKind::ReadOnlyFilesystem,
    ];
    let run = |disk: &Disk, written: &mut Vec<Written>, durable: &mut u64| {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let (mut writer, _) = open(disk, 5)?;
        for number in 1..=3 {
            let result = write_some(&mut writer, &mut random, written);
            *durable = writer.durable_to();
            result?;
            writer.sync()?;
            *durable = writer.durable_to();
            writer.forget(number * 20)?;
        }
        Ok::<(), StorageError>(())
    };
    let whole = Disk::default();
    run(&whole, &mut Vec::new(), &mut 0).unwrap();
    let calls = whole.calls();
    assert!(calls > 60, "{calls}");
    for call in 1..=calls {
        for kind in kinds {
            let disk = Disk::default();
            disk.fail(call, kind, call % 2 == 0);
            let (mut written, mut durable) = (Vec::new(), 0);
            let error = run(&disk, &mut written, &mut durable).unwrap_err();
            assert!(
                matches!(&error.problem, Problem::System(_, error) | Problem::Full(error) if error.kind() == kind),
                "call {call}: {error}"
            );
            for left in [disk.after_kill(), disk.after_power_failure(call)] {
                let what = format!("call {call}, {kind:?}");
                let (log, groups) = read(&left).unwrap_or_else(|error| panic!("{what}: {error}"));
                let removed = log.map_or(1, |log| log.segments[0].first_index);
                let written: Vec<Written> = (written.iter())
                    .filter(|(first, _)| *first >= removed)
                    .cloned()
                    .collect();
                check(&groups, &written, durable, &what);
                // The log goes on, whatever was being made.
                let (mut writer, _) =
                    open(&left, 6).unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut expected = groups.len();
                for more in [1, 8] {
                    for _ in 0..more {
                        let len = if more == 1 { 1 } else { 1_000 };
                        append(&mut writer, 1, &vec![1; len]).unwrap();
                    }
                    writer.sync().unwrap();
                    expected += more;
                    let (_, again) = read(&left).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(again.len(), expected, "{what}");
                    // All of it is durable, also what the process before had only written or named.
                    for seed in 0..4 {
                        let left = left.after_power_failure(seed);
                        let read = read(&left).unwrap_or_else(|error| panic!("{what}: {error}"));
                        assert_eq!(read.1, again, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn files_of_other_names_are_no_segments() {
    let id = SegmentId {
        chain: 0xc,
        number: 0xab,
    };
    assert_eq!(SegmentId::of_name(&id.name()), Some(id));
    for name in [
        "log-1",
        "log-0000000c-00000000000000AB",
        "log-c-00000000000000ab",
        "new-0000000c-0000000000000001",
        "log-0000000c-000000000000000g",
        "snapshot-0000000c-0000000000000001",
    ] {
        assert_eq!(SegmentId::of_name(name), None, "{name}");
    }
    let id = snapshot_id(0xab);
    assert_eq!(SnapshotId::of_name(&id.name()), Some(id));
    assert_eq!(SnapshotId::of_name("snapshot-00000000000000ab"), None);
}

#[test]
fn the_document_has_the_bytes_of_a_segment() {
    let disk = Disk::default();
    let salts: Salts = Arc::new(|| 0x0102_0304_0506_0708);
    let none = History::default();
    let mut writer = LogWriter::begin(&disk, first(), start(), &none, salts, layout(0)).unwrap();
    let record = b"\x01\0\x01\0\0\0\x01a1";
    let group = NewGroup {
        records: record,
        count: 1,
        digest: Digest::from_u128(0xd1),
        epoch: 3,
        committed: 1,
        time_ms: 0x0190_0000_0000,
    };
    writer.append(&group, History::default).unwrap();
    let bytes = disk.bytes(&first().name());
    let header = documented("segment");
    assert_eq!(bytes[..header.len()], header, "{}", hex(&bytes[..72]));
    assert!(bytes[header.len()..512].iter().all(|byte| *byte == 0));
    let group = documented("group");
    let end = 512 + group.len();
    assert_eq!(bytes[512..end], group, "{}", hex(&bytes[512..end.max(616)]));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a snapshot of two chunks on a disk.
fn write_snapshot(disk: &Disk, begin: u64) -> Result<(), StorageError> {
    let mut writer =
        SnapshotWriter::begin(disk, snapshot_id(begin), &history(), 0x0102_0304_0506_0708)?;
    writer.add(&[begin.to_be_bytes(), [7; 8]].concat(), 3)?;
    writer.add(b"the last one", 1)?;
    writer.end(begin + 5)?;
    writer.finish()
}

/// The begin of the snapshot of a disk, whose contents are those of [`write_snapshot`].
fn read_back(disk: &Disk) -> Result<Option<u64>, StorageError> {
    let mut chunks = Vec::new();
    let snapshot = read_snapshot(disk, &mut |frames, count| {
        chunks.push((frames, count));
        Ok(())
    })?;
    let Some(snapshot) = snapshot else {
        return Ok(None);
    };
    let begin = snapshot.id.begin;
    let first = [begin.to_be_bytes(), [7; 8]].concat();
    assert_eq!(chunks, [(first, 3), (b"the last one".to_vec(), 1)]);
    assert_eq!((snapshot.end, snapshot.keys), (begin + 5, 4));
    assert_eq!(announced_keys(disk), 4);
    assert_eq!(snapshot.history, history());
    Ok(Some(begin))
}

#[test]
fn a_snapshot_is_the_old_one_or_the_new_one_wherever_it_fails() {
    let disk = Disk::default();
    assert_eq!(read_back(&disk).unwrap(), None);
    write_snapshot(&disk, 10).unwrap();
    let calls = {
        let disk = disk.after_kill();
        write_snapshot(&disk, 20).unwrap();
        assert_eq!(read_back(&disk).unwrap(), Some(20));
        assert_eq!(disk.list().unwrap(), [snapshot_id(20).name()]);
        disk.calls()
    };
    let mut found = [0, 0];
    for call in 1..=calls {
        for seed in 0..20 {
            let disk = disk.after_kill();
            disk.fail(call, ErrorKind::Other, true);
            write_snapshot(&disk, 20).unwrap_err();
            for left in [disk.after_kill(), disk.after_power_failure(seed)] {
                let begin = read_back(&left).unwrap();
                assert!(matches!(begin, Some(10 | 20)), "call {call}: {begin:?}");
                found[usize::from(begin == Some(20))] += 1;
                // And another one may be written.
                write_snapshot(&left, 30).unwrap();
                assert_eq!(read_back(&left).unwrap(), Some(30));
            }
        }
    }
    assert!(found.iter().all(|count| *count > 30), "{found:?}");
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_found() {
    let disk = Disk::default();
    write_snapshot(&disk, 10).unwrap();
    let name = snapshot_id(10).name();
    for at in 0..disk.bytes(&name).len() {
        let flipped = disk.after_kill();
        flipped.flip(&name, at, 1 << (at % 8));
        let error = read_back(&flipped).unwrap_err();
        assert!(
            matches!(error.problem, Problem::Damaged(_)),
            "{at}: {error}"
        );
        assert!(error.offset.is_some(), "{at}: {error}");
    }
    for len in 0..disk.bytes(&name).len() {
        let cut = disk.after_kill();
        cut.truncate(&name, len);
        read_back(&cut).unwrap_err();
    }
}

#[test]
fn the_document_has_the_bytes_of_a_snapshot() {
    let disk = Disk::default();
    let none = History::default();
    let mut writer =
        SnapshotWriter::begin(&disk, snapshot_id(5), &none, 0x0102_0304_0506_0708).unwrap();
    writer.add(b"\x01\0\x01\0\0\0\x01a1", 1).unwrap();
    writer.end(7).unwrap();
    writer.finish().unwrap();
    let bytes = disk.bytes(&snapshot_id(5).name());
    assert_eq!(bytes, documented("snapshot"), "{}", hex(&bytes));
}

#[test]
fn a_recovery_reads_the_newest_snapshot_and_its_chain() {
    let read = |names: &str| {
        let names: Vec<String> = names.split(' ').map(str::to_owned).collect();
        files_to_read(&names).join(" ")
    };
    let [log, other] = [1, 2].map(|chain| {
        let number = |number| SegmentId { chain, number }.name();
        format!("{} {}", number(2), number(3))
    });
    let [snapshot, old] = [9, 7].map(|begin| snapshot_id(begin).name());
    let all = format!("{other} lock spare-1 {log} {old} new-snapshot identity {snapshot}");
    assert_eq!(read(&all), format!("{snapshot} {log}"));
    assert_eq!(read(&format!("{other} {log}")), log);
    assert_eq!(read("lock identity"), "");
}
