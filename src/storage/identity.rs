//! Whose data a directory holds: the file `identity`.

use std::fmt::Write as _;

use super::error::StorageError;
use super::files::Files;

/// Name of the file.
const IDENTITY: &str = "identity";

/// Its name while it is written.
const TEMPORARY: &str = "new-identity";

/// The file whose lock says that a process uses the directory.
pub const LOCK: &str = "lock";

/// The folder that some file systems have in their root, for what their check has found.
const LOST_AND_FOUND: &str = "lost+found";

/// First line of the file; the number is the version of the directory's format.
pub(super) const FIRST_LINE: &str = "gopherstore data directory, format 1";

/// Longest file in bytes that is looked at.
const LEN_MAX: u64 = 4_096;

/// The owner of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
}

impl Identity {
    pub(super) fn text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        // Writing to a string does not fail. Names have no quotes.
        let _ = writeln!(text, "cluster = \"{}\"", self.cluster);
        let _ = writeln!(text, "node = \"{}\"", self.node);
        text
    }
}

/// Checks that the directory is this node's, or makes it so where it is new.
///
/// # Errors
///
/// Where it is another node's, where it has other files and no identity, or where the system refuses it.
pub fn check(files: &dyn Files, own: &Identity) -> Result<(), StorageError> {
    let failed = |operation| move |error| StorageError::system(files, IDENTITY, operation, error);
    let names = files.list().map_err(failed("read"))?;
    if names.iter().any(|name| name == IDENTITY) {
        return judge(files, &bytes(files)?, own);
    }
    without_owner(files, &names)?;
    if names.iter().any(|name| name == TEMPORARY) {
        files.remove(TEMPORARY).map_err(failed("remove"))?;
    }
    let file = files.create(TEMPORARY).map_err(failed("create"))?;
    file.write_at(0, own.text().as_bytes())
        .map_err(failed("write"))?;
    file.sync().map_err(failed("sync"))?;
    files
        .rename(TEMPORARY, IDENTITY)
        .map_err(failed("create"))?;
    files.sync_directory().map_err(failed("create"))
}

/// Refuses a directory that belongs to no node and has files of other programs. Changes nothing.
///
/// # Errors
///
/// Where it is such a directory, or where the system refuses to read it.
pub fn refuse_foreign(files: &dyn Files) -> Result<(), StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    if names.iter().any(|name| name == IDENTITY) {
        return Ok(());
    }
    without_owner(files, &names)
}

/// Whether a file of this name makes a directory a data directory.
#[must_use]
pub fn is_of_directory(name: &str) -> bool {
    name == IDENTITY || holds_data(name)
}

fn holds_data(name: &str) -> bool {
    name.starts_with("log-") || name.starts_with("snapshot-")
}

/// The owner of a directory; `None` where it has no owner and no data.
///
/// # Errors
///
/// Where it has data and no owner, where it is of another version, or where the system refuses it. A node refuses such
/// a directory.
pub fn read(files: &dyn Files) -> Result<Option<Identity>, StorageError> {
    let names = files.list();
    let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
    if names.iter().all(|name| name != IDENTITY) {
        return without_owner(files, &names).map(|()| None);
    }
    let bytes = bytes(files)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().skip(1);
    let mut name = |before: &str| {
        let line = lines.next().unwrap_or_default();
        let name = line.strip_prefix(before).unwrap_or_default();
        name.strip_suffix('"').unwrap_or_default().to_owned()
    };
    let found = Identity {
        cluster: name("cluster = \""),
        node: name("node = \""),
    };
    if text == found.text() {
        return Ok(Some(found));
    }
    let why = match text.lines().next() {
        Some(FIRST_LINE) => "it does not name a cluster and a node".to_owned(),
        first => another_version(first.unwrap_or_default()),
    };
    Err(StorageError::foreign(files, IDENTITY, why))
}

/// Refuses a directory without an owner that has data, or files of other programs.
fn without_owner(files: &dyn Files, names: &[String]) -> Result<(), StorageError> {
    if names.iter().any(|name| holds_data(name)) {
        let why = "it has a log or a snapshot and no file identity, which names their node; restore that file from a \
                   backup of the directory, or write it again: three lines, as docs/FORMAT.md shows";
        return Err(StorageError::foreign(files, "", why.to_owned()));
    }
    let others = names
        .iter()
        .filter(|name| ![LOCK, TEMPORARY, LOST_AND_FOUND].contains(&&***name));
    if let Some(other) = others.min() {
        let why = format!(
            "it has the file {other:?}, which no node has written; name an empty directory, or one that does not exist"
        );
        return Err(StorageError::foreign(files, "", why));
    }
    Ok(())
}

fn bytes(files: &dyn Files) -> Result<Vec<u8>, StorageError> {
    let failed = |operation| move |error| StorageError::system(files, IDENTITY, operation, error);
    let file = files.open(IDENTITY, false).map_err(failed("open"))?;
    let len = file.length().map_err(failed("read"))?.min(LEN_MAX);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = file.read_at(0, &mut bytes).map_err(failed("read"))?;
    bytes.truncate(read);
    Ok(bytes)
}

fn another_version(first: &str) -> String {
    format!("its first line is {first:.60?}, and this program reads {FIRST_LINE:?}")
}

fn judge(files: &dyn Files, bytes: &[u8], own: &Identity) -> Result<(), StorageError> {
    let text = String::from_utf8_lossy(bytes);
    if text == own.text() {
        return Ok(());
    }
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let why = if first != FIRST_LINE {
        another_version(first)
    } else {
        let theirs = lines.collect::<Vec<_>>().join(", ");
        format!(
            "the data directory is that of {theirs}, and this is node {:?} of cluster {:?}; name another directory",
            own.node, own.cluster
        )
    };
    Err(StorageError::foreign(files, IDENTITY, why))
}
