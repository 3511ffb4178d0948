//! Opens a data directory: for the node that keeps its data there, or to read it while no node does.

use std::fs::{self, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use log::warn;
use rustix::fs::{Access, access};

use crate::storage::error::{Problem, StorageError};
use crate::storage::files::{Directory, Files as _, open_regular};
use crate::storage::identity::{self, Identity, LOCK};

/// A data directory that this process has locked.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) files: Directory,
    /// Locked as long as it is open.
    _lock: fs::File,
}

/// Opens the directory of a node, and locks it. Creates it where there is none.
///
/// # Errors
///
/// Where another process uses it, where it is another node's or has files of other programs, or where the system does
/// not let this process read it and write there.
pub(super) fn open(path: &Path, own: &Identity) -> Result<Owned, StorageError> {
    let files = Directory::open(path).map_err(failed(path, "open the data directory"))?;
    // Otherwise the first file that the log-writer thread creates or removes ends a node that serves.
    access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| failed(path, "write to the data directory")(error.into()))?;
    identity::refuse_foreign(&files)?;
    let mut options = fs::File::options();
    options.create(true).truncate(false).read(true).write(true);
    let lock = open_regular(options.mode(0o600), &path.join(LOCK))
        .map_err(failed(path, "open the lock file of the data directory"))?;
    locked(path, lock.try_lock())?;
    identity::check(&files, own)?;
    warn_of_others(path);
    Ok(Owned { files, _lock: lock })
}

/// Logs a warning where other users can use the directory. A node creates it for its own user alone.
fn warn_of_others(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        warn!("{path}: other users can use this data directory (mode {mode:o}): chmod 700 {path}");
    }
}

/// A data directory that is read. No process uses it meanwhile.
#[derive(Debug)]
pub struct Reading {
    /// Its files.
    pub files: Directory,
    /// Locked as long as it is open; `None` in a copy without this file.
    _lock: Option<fs::File>,
}

/// Opens a data directory to be read, which no process uses.
///
/// # Errors
///
/// Where it is none, or where a process uses it.
pub fn open_to_read(path: &Path) -> Result<Reading, StorageError> {
    let files = Directory::existing(path).map_err(failed(path, "open the data directory"))?;
    let lock = match open_regular(fs::File::options().read(true), &path.join(LOCK)) {
        Ok(lock) => lock,
        // A node creates it before all others.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let names = files
                .list()
                .map_err(failed(path, "read the data directory"))?;
            if names.iter().any(|name| identity::is_of_directory(name)) {
                let _lock = None;
                return Ok(Reading { files, _lock });
            }
            return Err(of(path, Problem::NoFiles));
        }
        Err(error) => {
            return Err(failed(path, "open the lock file of the data directory")(
                error,
            ));
        }
    };
    locked(path, lock.try_lock_shared())?;
    Ok(Reading {
        files,
        _lock: Some(lock),
    })
}

fn locked(path: &Path, result: Result<(), TryLockError>) -> Result<(), StorageError> {
    result.map_err(|error| match error {
        TryLockError::WouldBlock => of(path, Problem::InUse),
        TryLockError::Error(error) => failed(path, "lock the data directory")(error),
    })
}

fn of(path: &Path, problem: Problem) -> StorageError {
    StorageError {
        path: path.to_owned(),
        offset: None,
        problem,
    }
}

/// The system refused `operation` on the directory. The error says what helps.
fn failed(path: &Path, operation: &'static str) -> impl Fn(io::Error) -> StorageError {
    move |error| {
        let kind = error.kind();
        let remedy = if kind == ErrorKind::PermissionDenied {
            "; the user of this process needs to own the directory, its mode 700, and its files"
        } else if kind == ErrorKind::ReadOnlyFilesystem {
            "; mount the file system for writing"
        } else {
            ""
        };
        let error = io::Error::new(kind, format!("{error}{remedy}"));
        of(path, Problem::System(operation, error))
    }
}
