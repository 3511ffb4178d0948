//! Why a data directory cannot be used.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::files::Files;

/// A fault of a data directory.
#[derive(Debug)]
pub struct StorageError {
    /// The file, or the directory itself.
    pub path: PathBuf,
    /// Offset in the file, where the fault has one.
    pub offset: Option<u64>,
    /// The kind of fault.
    pub problem: Problem,
}

/// The kinds of faults.
#[derive(Debug)]
pub enum Problem {
    /// The system refused an operation, which is named.
    System(&'static str, io::Error),
    /// The disk has too little space for what was to be written. Nothing was changed, so it may be tried again.
    Full(io::Error),
    /// Bytes that were durable are not those that were written. The text says what was found.
    Damaged(String),
    /// The directory belongs to another node or cluster, or to another version of the format.
    Foreign(String),
    /// Another process uses the directory.
    InUse,
    /// The directory has no file of a node.
    NoFiles,
}

impl StorageError {
    /// The system refused `operation` on a file of the directory.
    pub(crate) fn system(
        files: &dyn Files,
        name: &str,
        operation: &'static str,
        error: io::Error,
    ) -> StorageError {
        StorageError {
            path: files.path().join(name),
            offset: None,
            problem: Problem::System(operation, error),
        }
    }

    /// The disk of a directory has too little space.
    pub(super) fn full(files: &dyn Files, error: io::Error) -> StorageError {
        StorageError {
            path: files.path().to_owned(),
            offset: None,
            problem: Problem::Full(error),
        }
    }

    /// Whether the disk has too little space, and nothing was changed.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self.problem, Problem::Full(_))
    }

    /// A file is not this node's, or of another version.
    pub(super) fn foreign(files: &dyn Files, name: &str, why: String) -> StorageError {
        StorageError {
            path: files.path().join(name),
            offset: None,
            problem: Problem::Foreign(why),
        }
    }

    /// A file is damaged at an offset.
    pub(super) fn damaged(
        files: &dyn Files,
        name: &str,
        offset: u64,
        found: String,
    ) -> StorageError {
        StorageError {
            path: files.path().join(name),
            offset: Some(offset),
            problem: Problem::Damaged(found),
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        match &self.problem {
            Problem::System(operation, error) => write!(f, ": cannot {operation}: {error}"),
            Problem::Full(error) => write!(f, ": the disk is full: {error}"),
            Problem::Damaged(found) => write!(
                f,
                ": {found}; restore the directory from a backup, or, while the other nodes of its cluster run, move \
                 its files away and start the node: it copies their data"
            ),
            Problem::Foreign(why) => write!(f, ": {why}"),
            Problem::InUse => f.write_str(": another process uses this data directory"),
            Problem::NoFiles => f.write_str(": it has none of a node's files"),
        }
    }
}

impl std::error::Error for StorageError {}
