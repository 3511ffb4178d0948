//! Opens a data directory at the start of a node.

use std::time::Instant;

use super::{Recovery, recover};
use crate::config::SyncPolicy;
use crate::engine::Engine;
use crate::log::Mark;
use crate::storage::error::StorageError;
use crate::storage::files::Files;
use crate::storage::writer::make_durable;

/// The watermark that the answers of a node with this policy wait for.
#[must_use]
pub const fn acknowledged_at(sync: SyncPolicy) -> Mark {
    match sync {
        SyncPolicy::Always => Mark::Durable,
        SyncPolicy::Interval | SyncPolicy::Never => Mark::Written,
    }
}

/// Reads a directory into an engine ([`recover`]), makes durable what was read, since it is shown to clients from now
/// on, and has the log keep its records until they are written. The watermarks of the disk are at the end of what was
/// read. `mark` is the watermark that answers wait for. `threads` is for [`recover`].
///
/// # Errors
///
/// Those of [`recover`], and of the system.
pub fn open(
    files: &dyn Files,
    engine: &Engine,
    mark: Mark,
    now: Instant,
    threads: usize,
) -> Result<Recovery, StorageError> {
    let mut recovery = recover(files, engine, now, threads)?;
    if let Some(log) = &mut recovery.log {
        make_durable(files, log)?;
    }
    if let Some(log) = engine.log() {
        log.begin_writing(log.last_index(), mark);
        if let Some(recovered) = &recovery.log {
            for mark in [Mark::Written, Mark::Durable] {
                log.advance(mark, recovered.end.last_index());
            }
        }
        recovery.unwritten = Some(log.unwritten());
    }
    Ok(recovery)
}
