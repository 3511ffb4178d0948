//! Reads a data directory into an engine.

use std::time::Instant;

use crate::engine::{Engine, Group};
use crate::storage::error::{Problem, StorageError};
use crate::storage::files::Files;
use crate::storage::recovery::{ReadGroup, Recovered, read_log};
use crate::storage::snapshot::{ReadSnapshot, read_snapshot};
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
}

/// Reads the newest snapshot of a directory and the log behind it into an engine, which is empty and admits nothing.
/// Changes no file.
///
/// # Errors
///
/// Where one of them is damaged, where they do not lead to the data set that the log says, or where the system refuses
/// a read.
pub fn recover(files: &dyn Files, engine: &Engine, now: Instant) -> Result<Recovery, StorageError> {
    let damaged = |why: String| damaged(files, why);
    let mut load = engine.load(0);
    let snapshot = read_snapshot(files, &mut |frames, count| {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let frames = Frames::of_snapshot(count, frames);
        let frames = frames.map_err(|error| damaged(format!("the snapshot: {error}")))?;
        load.add(frames.iter());
        Ok(())
    })?;
    let (begin, exact_from) = match &snapshot {
        Some(snapshot) => {
            let (begin, history) = (snapshot.id.begin, snapshot.history.clone());
            load.finish_inexact(begin, history, now);
            (begin, snapshot.end)
        }
        None => (0, 0),
    };
    drop(load);
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
    let last = engine.head().index;
    if last < exact_from {
        return Err(damaged(format!(
            "the snapshot needs the log up to index {exact_from}, which ends at {last}"
        )));
    }
    Ok(Recovery {
        snapshot,
        log,
        records,
    })
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
            return Err(damaged(
                self.files,
                format!("the log begins at index {first}, and record {next} is not there"),
            ));
        }
        // The snapshot may begin within a group.
        let skipped = (begin + 1).saturating_sub(first);
        let rest = behind(read.records, usize::try_from(skipped).unwrap_or(usize::MAX));
        let count = read.head.count - u32::try_from(skipped).unwrap_or(read.head.count);
        let in_group =
            |why: String| damaged(self.files, format!("records {first} to {last}: {why}"));
        let group = Group {
            first_index: first.max(begin + 1),
            records: Frames::of_log(count, rest).map_err(|error| in_group(error.to_string()))?,
            committed: last,
            digest: read.head.digest,
        };
        let replayed = engine.replay(&group, self.now, last >= self.exact_from);
        replayed.map_err(|error| in_group(error.to_string()))?;
        if let Some(log) = engine.log() {
            log.written(last);
        }
        self.records += u64::from(count);
        Ok(())
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
