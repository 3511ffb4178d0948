//! The sizes of the files of a data directory, for STATUS. The log-writer thread looks at them, so that a disk that
//! hangs delays no STATUS.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::node::{DiskBytes, StorageStatus};

/// Time between two looks while the files change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the files once they may have changed.
#[derive(Debug)]
pub(super) struct Looks<C> {
    looked: Option<(Instant, C)>,
}

impl<C: PartialEq> Looks<C> {
    pub(super) const fn new() -> Looks<C> {
        Looks { looked: None }
    }

    /// Looks at the files, unless that was done just before, or nothing has changed since: `cause` is as it was, and
    /// they do not change all the time. Returns when it has to be called again.
    pub(super) fn look(
        &mut self,
        (path, status): (&Path, &StorageStatus),
        cause: C,
        changes: bool,
        now: Instant,
    ) -> Option<Instant> {
        if let Some((at, before)) = &self.looked {
            if *before == cause && !changes {
                return None;
            }
            let next = *at + LOOK_INTERVAL;
            if now < next {
                return Some(next);
            }
        }
        // The figures stay as they are where the system does not say: it is the writer that reports such a disk.
        if let Ok(bytes) = bytes_of(path) {
            status.takes(bytes);
        }
        self.looked = Some((now, cause));
        changes.then(|| now + LOOK_INTERVAL)
    }
}

fn bytes_of(path: &Path) -> io::Result<DiskBytes> {
    let mut bytes = DiskBytes::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let sum = if name.contains("snapshot") {
            &mut bytes.snapshots
        } else if ["log-", "spare-", "new-"]
            .iter()
            .any(|it| name.starts_with(it))
        {
            &mut bytes.log
        } else {
            continue;
        };
        // It may have got another name by now.
        *sum += entry.metadata().map_or(0, |file| file.len());
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_at_when_they_have_changed_and_once_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("log-00000001-0000000000000001", 100),
            ("spare-00000001-0000000000000002", 20),
            ("new-00000001-0000000000000003", 3),
            ("snapshot-00000001-0000000000000007", 1_000),
            ("new-snapshot", 200),
            ("identity", 50_000),
        ];
        for (name, len) in files {
            fs::write(dir.path().join(name), vec![0; len]).unwrap();
        }
        let expected = DiskBytes {
            log: 123,
            snapshots: 1_200,
        };
        assert_eq!(bytes_of(dir.path()).unwrap(), expected);
        let status = StorageStatus::default();
        let target = (dir.path(), &status);
        let (mut looks, began) = (Looks::new(), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!(looks.look(target, 1, false, at(0)), None);
        assert_eq!(looks.look(target, 1, false, at(5_000)), None);
        assert_eq!(looks.look(target, 2, false, at(999)), Some(at(1_000)));
        assert_eq!(looks.look(target, 2, false, at(1_000)), None);
        assert_eq!(looks.look(target, 2, true, at(1_500)), Some(at(2_000)));
        assert_eq!(looks.look(target, 2, true, at(2_000)), Some(at(3_000)));
        assert_eq!(looks.look(target, 2, false, at(2_100)), None);
    }
}
