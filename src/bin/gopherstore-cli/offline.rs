//! The data directory of a node that does not run, read as a node does at its start.

use std::thread;
use std::time::Instant;

use gopherstore::{
    engine::Engine,
    persistence::{Recovery, recover},
    server::data_dir::Reading,
    storage::error::{Problem, StorageError},
    storage::identity,
    time::MachineTime,
};

use crate::report::{Failure, Outcome};

/// Bytes of log that are kept in memory meanwhile.
const BACKLOG_BYTES: u64 = 1 << 20;

/// The data of a directory.
pub(crate) struct Data {
    pub(crate) engine: Engine,
    pub(crate) recovery: Recovery,
}

impl Data {
    /// Recovers the data of a directory, and changes nothing there.
    pub(crate) fn of(directory: &Reading) -> Result<Data, StorageError> {
        identity::read(&directory.files)?;
        let engine = Engine::new(Some(BACKLOG_BYTES), MachineTime::clock());
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let recovery = recover(&directory.files, &engine, Instant::now(), threads)?;
        Ok(Data { engine, recovery })
    }

    /// Whether the directory has a data set. It has none before a node has begun its log there, or its first copy of
    /// another node is whole.
    pub(crate) const fn is_there(&self) -> bool {
        self.recovery.snapshot.is_some() || self.recovery.log.is_some()
    }
}

/// The failure to read a directory.
pub(crate) fn failure(error: StorageError) -> Failure {
    match error.problem {
        Problem::Damaged(_) | Problem::Foreign(_) => {
            Failure::new(Outcome::Protocol, error.to_string())
        }
        Problem::System(..) | Problem::Full(_) | Problem::NoFiles => {
            Failure::new(Outcome::LocalInput, error.to_string())
        }
        Problem::InUse => {
            let next = "stop it first, or copy the data of the running node with dump";
            Failure::new(Outcome::LocalInput, format!("{error}; {next}"))
        }
    }
}
