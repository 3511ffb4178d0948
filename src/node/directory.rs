//! The node's data directory, as far as the node knows of it.

use std::fmt;
use std::sync::Arc;

use super::{Node, Reply, StorageStatus};
use crate::engine::Engine;
use crate::log::{Log, Mark, Space};

/// The answer to a SNAPSHOT where the node has no disk.
const NO_DISK: &str = "SNAPSHOT needs a disk, which a node has with --data-dir, or with data_dir in \
                       [storage] of cluster.toml";

/// A data directory: it has the data set that a recovery finds.
pub trait DataDirectory: fmt::Debug + Send + Sync {
    /// Reads the data set of the directory into the node's engine, which holds none and receives nothing. Returns
    /// whether it has been read; there may be none.
    fn restore(&self, engine: &Engine) -> bool;

    /// Begins a snapshot of the data set, unless one is under way. Returns false where the node no longer writes to the
    /// directory.
    fn begin_snapshot(&self, log: &Log) -> bool;

    /// Its state, for STATUS.
    fn status(&self) -> &StorageStatus;
}

impl Node {
    /// Gives the node its data directory. To be called before the node is served.
    pub fn keep_in(&mut self, directory: Arc<dyn DataDirectory>) {
        self.directory = Some(directory);
    }

    /// Whether the node has a data directory.
    #[must_use]
    pub const fn has_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether the data directory has the entries up to `index`, or gets them as the node ends. It does not where a
    /// full copy from another node is not on the disk yet, and where a full disk has no space for them.
    #[must_use]
    pub fn keeps_on_disk(&self, index: u64) -> bool {
        let Some(log) = self.engine.log().filter(|_| self.has_directory()) else {
            return false;
        };
        let written = log.watermarks().index(Mark::Written).unwrap_or(0);
        written >= index || (written > 0 && log.space().0 == Space::Enough)
    }

    /// Carries out an operator's order to begin a snapshot.
    pub(super) fn order_snapshot(&self) -> Reply {
        let error = |why: &str| Reply::Error(why.to_owned());
        let (Some(directory), Some(log)) = (&self.directory, self.engine.log()) else {
            return error(NO_DISK);
        };
        if !self.holds_data() {
            return error("SNAPSHOT: this node holds no data set");
        }
        if !directory.begin_snapshot(log) {
            return error("SNAPSHOT: this node is stopping");
        }
        Reply::Done
    }

    /// Discards a part of a snapshot, which is no data set, and goes back to the data set of the data directory, where
    /// there is one. `why` is the answer to reads meanwhile.
    pub fn discard_copy(&self, why: &str) {
        self.discard_dataset(why);
        if let Some(directory) = &self.directory
            && directory.restore(&self.engine)
        {
            self.restored();
        }
    }
}
