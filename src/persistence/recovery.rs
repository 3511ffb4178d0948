//! Reads a data directory into an engine.

use std::hint::black_box;
use std::panic::resume_unwind;
use std::thread;
use std::time::Instant;

use crate::engine::digest::Digest;
use crate::engine::{ApplyError, Engine, Group, Load};
use crate::log::Unwritten;
use crate::storage::error::{Problem, StorageError};
use crate::storage::files::Files;
use crate::storage::recovery::{ReadGroup, Recovered, read_log};
use crate::storage::snapshot::{ReadSnapshot, announced_keys, read_snapshot};
use crate::wire::replication::Frames;
use crate::wire::request::frames;

/// The contents of a data directory.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The newest snapshot, if there is one.
    pub snapshot: Option<ReadSnapshot>,
    /// The log behind it, if there is one.
    pub log: Option<Recovered>,
    /// Records of the log that were applied.
    pub records: u64,
    /// The place in the node's log behind them, where the node goes on writing later: another data set may have
    /// replaced this one by then.
    pub unwritten: Option<Unwritten>,
}

/// Reads the newest snapshot of a directory and the log behind it into an engine, which is empty and admits nothing.
/// Changes no file. With several `threads`, each stores chunks of the snapshot, while the calling one reads them; with
/// 1 no thread is started.
///
/// # Errors
///
/// Where one of them is damaged, where they do not lead to the data set that the log says, or where the system refuses
/// a read.
pub fn recover(
    files: &dyn Files,
    engine: &Engine,
    now: Instant,
    threads: usize,
) -> Result<Recovery, StorageError> {
    let damaged = |why: String| damaged(files, why);
    let (snapshot, mut load) = load_snapshot(files, engine, threads)?;
    let (begin, exact_from) = match &snapshot {
        Some(snapshot) => {
            let (begin, history) = (snapshot.id.begin, snapshot.history.clone());
            let is_exact = snapshot.end == begin;
            load.finish_unchecked(begin, is_exact, history, now);
            (begin, snapshot.end)
        }
        None => (0, 0),
    };
    let mut replay = Replay {
        files,
        engine,
        begin,
        exact_from,
        records: 0,
        now,
    };
    let id = snapshot.as_ref().map(|snapshot| snapshot.id);
    let log = read_log(files, id, &mut |read| replay.group(&read))?;
    let records = replay.records;
    let head = engine.head().index;
    match &log {
        Some(log) => {
            let last = log.end.last_index();
            if last < exact_from {
                let why = format!(
                    "the snapshot needs the log up to index {exact_from}, which ends at {last}"
                );
                return Err(damaged(why));
            }
            let (own, theirs) = (engine.head().digest, log.end.digest);
            if snapshot.is_some() && last == begin && begin == exact_from && own != theirs {
                // No group behind the snapshot is compared with it.
                let why = format!("the snapshot: {}", other_digest(begin, own, theirs));
                return Err(damaged(why));
            }
            if last != head {
                let (first, next) = (
                    log.segments.first().map_or(0, |it| it.first_index),
                    head + 1,
                );
                let why =
                    format!("the log begins at index {first}, and record {next} is not there");
                return Err(damaged(why));
            }
        }
        None if snapshot.is_some() => {
            let why =
                format!("the snapshot needs the log up to index {exact_from}, and there is none");
            return Err(damaged(why));
        }
        None => {}
    }
    Ok(Recovery {
        snapshot,
        log,
        records,
        unwritten: None,
    })
}

/// Loads the newest snapshot of a directory into an engine.
fn load_snapshot<'e>(
    files: &dyn Files,
    engine: &'e Engine,
    threads: usize,
) -> Result<(Option<ReadSnapshot>, Load<'e>), StorageError> {
    let mut load = engine.load(announced_keys(files));
    if threads <= 1 {
        let visit = &mut |frames: Vec<u8>, count| add_chunk(files, &mut load, &frames, count);
        return Ok((read_snapshot(files, visit)?, load));
    }
    let (chunks, queue) = crossbeam_channel::bounded::<(Vec<u8>, u64)>(threads);
    thread::scope(|scope| {
        let start_part = |_| {
            let (mut part, queue) = (load.part(), queue.clone());
            scope.spawn(move || {
                for (frames, count) in queue {
                    // glibc grows the heap of a thread by a page at a time, with a system call for each. A block that
                    // is given back at once grows it by the memory of a chunk.
                    drop(black_box(Vec::<u8>::with_capacity(frames.len() * 3 / 2)));
                    add_chunk(files, &mut part, &frames, count)?;
                }
                Ok(part)
            })
        };
        let parts: Vec<_> = (0..threads).map(start_part).collect();
        drop(queue);
        let read = read_snapshot(files, &mut |frames, count| {
            // Once every thread has ended with an error, nothing takes chunks, and the error is returned below.
            let _ = chunks.send((frames, count));
            Ok(())
        });
        drop(chunks);
        for part in parts {
            let part = part.join().unwrap_or_else(|panic| resume_unwind(panic));
            load.join(part?);
        }
        Ok((read?, load))
    })
}

fn add_chunk(
    files: &dyn Files,
    load: &mut Load<'_>,
    frames: &[u8],
    count: u64,
) -> Result<(), StorageError> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let frames = Frames::of_snapshot(count, frames);
    let frames = frames.map_err(|error| damaged(files, format!("the snapshot: {error}")))?;
    load.add(frames.iter());
    Ok(())
}

/// The log of a directory on its way to an engine.
struct Replay<'a> {
    files: &'a dyn Files,
    engine: &'a Engine,
    /// Index at which the snapshot begins.
    begin: u64,
    /// Index from which on the data set is exact.
    exact_from: u64,
    /// Records that were applied.
    records: u64,
    now: Instant,
}

impl Replay<'_> {
    fn group(&mut self, read: &ReadGroup<'_>) -> Result<(), StorageError> {
        let (engine, begin) = (self.engine, self.begin);
        engine.clock().pull(read.head.time_ms);
        let (first, last) = (read.head.first_index, read.head.last_index());
        if read.head.count == 0 || last <= begin {
            return Ok(());
        }
        let next = engine.head().index + 1;
        if first > next {
            let why = format!("the log begins at index {first}, and record {next} is not there");
            return Err(damaged_at(self.files, read, why));
        }
        // The snapshot may begin within a group.
        let skipped = (begin + 1).saturating_sub(first);
        let rest = behind(read.records, usize::try_from(skipped).unwrap_or(usize::MAX));
        let count = read.head.count - u32::try_from(skipped).unwrap_or(read.head.count);
        let in_group = |why: String| {
            damaged_at(
                self.files,
                read,
                format!("records {first} to {last}: {why}"),
            )
        };
        let group = Group {
            first_index: first.max(begin + 1),
            records: Frames::of_log(count, rest).map_err(|error| in_group(error.to_string()))?,
            committed: last,
            digest: read.head.digest,
        };
        let replayed = engine.replay(&group, self.now, self.exact_from);
        replayed.map_err(|error| in_group(not_replayed(&error)))?;
        if let Some(log) = engine.log() {
            log.written(last);
        }
        self.records += u64::from(count);
        Ok(())
    }
}

/// Why a group was not replayed. The records are those of this directory, and not sent by a leader.
fn not_replayed(error: &ApplyError) -> String {
    match error {
        ApplyError::Missing { key } => {
            let key = key.escape_ascii().to_string();
            format!("the key {key:.40} is removed, which is not there")
        }
        ApplyError::Diverged { index, own, theirs } => other_digest(*index, *own, *theirs),
        ApplyError::NotLogged(_) | ApplyError::NoLog | ApplyError::Lost { .. } => error.to_string(),
    }
}

fn other_digest(index: u64, own: Digest, theirs: Digest) -> String {
    format!("the digest of the data at index {index} is {own}, and the log says {theirs}")
}

fn damaged_at(files: &dyn Files, group: &ReadGroup<'_>, why: String) -> StorageError {
    StorageError {
        path: files.path().join(group.segment.name()),
        offset: Some(group.offset),
        problem: Problem::Damaged(why),
    }
}

fn damaged(files: &dyn Files, why: String) -> StorageError {
    StorageError {
        path: files.path().to_owned(),
        offset: None,
        problem: Problem::Damaged(why),
    }
}

/// The bytes behind the first `count` frames.
fn behind(records: &[u8], count: usize) -> &[u8] {
    let skipped = frames(records).take(count).map(|frame| frame.bytes().len());
    &records[skipped.sum::<usize>().min(records.len())..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::history::{EpochStart, History};
    use crate::storage::recovery::LogEnd;
    use crate::storage::segment::SegmentId;
    use crate::storage::simulated::Disk;
    use crate::storage::snapshot::{SnapshotId, SnapshotWriter};
    use crate::storage::tests::layout;
    use crate::storage::writer::{LogWriter, NewGroup};
    use crate::time::MachineTime;
    use crate::wire::Request;

    fn frame(request: Request<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        bytes
    }

    fn set(key: &[u8]) -> Vec<u8> {
        frame(Request::Set { key, value: b"v" })
    }

    fn history() -> History {
        let start = EpochStart {
            epoch: 1,
            nonce: 7,
            start_index: 1,
        };
        History::new(vec![start]).unwrap()
    }

    /// Time of the node's clock in each group, in milliseconds since 1970 UTC: later than this machine's clock.
    const TIME_MS: u64 = 4_102_444_800_000;

    /// The log of SET a, SET b, DEL a, SET c in groups of these numbers of records, and a snapshot of `keys` from index
    /// `begin` to `end`.
    fn disk(groups: &[usize], (begin, end): (u64, u64), keys: &[&[u8]]) -> Disk {
        let disk = Disk::default();
        let records = [
            set(b"a"),
            set(b"b"),
            frame(Request::Del { key: b"a" }),
            set(b"c"),
        ];
        let sums: [&[&[u8]]; 5] = [&[], &[b"a"], &[b"a", b"b"], &[b"b"], &[b"b", b"c"]];
        let start = LogEnd {
            next_index: 1,
            ..LogEnd::default()
        };
        let id = SegmentId {
            chain: 1,
            number: 1,
        };
        let salts = Arc::new(|| 5);
        let mut log = LogWriter::begin(&disk, id, start, &history(), salts, layout(0)).unwrap();
        let mut written = 0;
        for &count in groups {
            let digests = sums[written + count]
                .iter()
                .map(|key| Digest::of_frame(&set(key)));
            let digest = digests.fold(0_u128, |sum, it| sum.wrapping_add(it.to_u128()));
            let group = NewGroup {
                records: &records[written..written + count].concat(),
                count: u32::try_from(count).unwrap(),
                digest: Digest::from_u128(digest),
                epoch: 1,
                committed: 0,
                time_ms: TIME_MS,
            };
            log.append(&group, history).unwrap();
            written += count;
        }
        let id = SnapshotId { chain: 1, begin };
        let mut snapshot = SnapshotWriter::begin(&disk, id, &history(), 6).unwrap();
        for key in keys {
            snapshot.add(&set(key), 1).unwrap();
        }
        snapshot.end(end).unwrap();
        snapshot.finish().unwrap();
        disk
    }

    /// The number of keys that a disk has, and their last index.
    fn recovered(disk: &Disk) -> Result<(usize, u64), String> {
        let with = |threads| {
            let engine = Engine::new(Some(1 << 20), MachineTime::clock());
            let recovery = recover(disk, &engine, Instant::now(), threads);
            recovery.map_err(|error| error.to_string())?;
            Ok((engine.len(), engine.head().index))
        };
        let (one, several) = (with(1), with(3));
        assert_eq!(one, several);
        one
    }

    #[test]
    fn a_removal_up_to_the_end_of_a_snapshot_may_be_in_it() {
        for groups in [&[1, 1, 1, 1][..], &[1, 2, 1], &[1, 1, 2], &[4]] {
            for (keys, end) in [
                (&[&b"a"[..]][..], 2),
                (&[b"a", b"b"], 3),
                (&[b"b"], 3),
                (&[], 4),
            ] {
                let disk = disk(groups, (1, end), keys);
                assert_eq!(recovered(&disk), Ok((2, 4)), "{groups:?}, {keys:?}, {end}");
            }
        }
        // Behind the end of the snapshot, it is damage.
        let error = recovered(&disk(&[1, 1, 1, 1], (1, 2), &[b"b"])).unwrap_err();
        assert!(error.contains("records 2 to 2: "), "{error}");
        assert!(
            error.contains("the digest of the data at index 2 is ")
                && error.contains(", and the log says "),
            "{error}"
        );
        let error = recovered(&disk(&[1, 1, 1, 1], (2, 2), &[b"b"])).unwrap_err();
        assert!(
            error.contains("the key a is removed, which is not there"),
            "{error}"
        );
    }

    /// A key that had expired does not come back where the machine's clock was set back meanwhile. The snapshot may
    /// have all records of the log.
    #[test]
    fn the_clock_goes_on_from_the_latest_time_of_the_log() {
        for (begin, keys) in [(1, &[&b"a"[..]][..]), (4, &[b"b", b"c"])] {
            let engine = Engine::new(Some(1 << 20), MachineTime::clock());
            assert!(engine.clock().now() < TIME_MS);
            let disk = disk(&[1, 1, 1, 1], (begin, 4), keys);
            recover(&disk, &engine, Instant::now(), 1).unwrap();
            assert!(engine.clock().now() >= TIME_MS, "{begin}");
        }
    }

    /// The digest of the entries is that of no index: a follower that is where the snapshot begins would find another
    /// one, and give up its data set.
    #[test]
    fn the_digest_where_a_snapshot_begins_is_known_only_if_nothing_changed_behind() {
        let digest_at = |begin, disk: &Disk| {
            let engine = Engine::new(Some(1 << 20), MachineTime::clock());
            recover(disk, &engine, Instant::now(), 1).unwrap();
            engine.log().unwrap().digest_at(begin)
        };
        let expected = Digest::of_frame(&set(b"b"));
        for groups in [&[1, 1, 1, 1][..], &[4]] {
            assert_eq!(digest_at(1, &disk(groups, (1, 2), &[b"a", b"b"])), None);
            assert_eq!(digest_at(3, &disk(groups, (3, 3), &[b"b"])), Some(expected));
        }
    }

    #[test]
    fn a_snapshot_of_another_data_set_is_refused_also_at_the_end_of_the_log() {
        for groups in [&[1, 1, 1, 1][..], &[4]] {
            assert_eq!(recovered(&disk(groups, (4, 4), &[b"b", b"c"])), Ok((2, 4)));
            let error = recovered(&disk(groups, (4, 4), &[b"b", b"x"])).unwrap_err();
            assert!(
                error.contains("the snapshot: the digest of the data at index 4 is "),
                "{error}"
            );
        }
    }

    #[test]
    fn a_log_that_does_not_reach_the_snapshot_or_begins_behind_it_is_refused() {
        let error = recovered(&disk(&[1, 1], (3, 3), &[b"b"])).unwrap_err();
        assert!(
            error.contains("needs the log up to index 3, which ends at 2"),
            "{error}"
        );
        let whole = disk(&[4], (3, 3), &[b"b"]);
        let id = SegmentId {
            chain: 1,
            number: 1,
        };
        whole.remove(&id.name()).unwrap();
        let error = recovered(&whole).unwrap_err();
        assert!(
            error.contains("needs the log up to index 3, and there is none"),
            "{error}"
        );
        // A segment without records says that there are records before it.
        let end = LogEnd {
            next_index: 9,
            ..LogEnd::default()
        };
        drop(
            LogWriter::begin(
                &whole,
                id.next(),
                end,
                &history(),
                Arc::new(|| 7),
                layout(0),
            )
            .unwrap(),
        );
        let error = recovered(&whole).unwrap_err();
        assert!(
            error.contains("begins at index 9, and record 4 is not there"),
            "{error}"
        );
        let alone = SnapshotId { chain: 1, begin: 3 };
        whole.remove(&alone.name()).unwrap();
        let error = recovered(&whole).unwrap_err();
        assert!(
            error.contains("begins at index 9, and record 1 is not there"),
            "{error}"
        );
    }
}
