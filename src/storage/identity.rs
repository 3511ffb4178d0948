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

/// Remedy where the file is missing or damaged.
const REMEDY: &str = "; restore that file from a backup of the directory, or write it again: three lines, as \
                      docs/FORMAT.md shows";

/// Most bytes of the file that are read. No identity has more.
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
    parse(files, &bytes(files)?).map(Some)
}

/// Reads the bytes of the file.
///
/// # Errors
///
/// Where they are of another version, or not those of an identity.
fn parse(files: &dyn Files, bytes: &[u8]) -> Result<Identity, StorageError> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first != FIRST_LINE && is_of_a_version(first) {
        let why = format!("its first line is {first:?}, and this program reads {FIRST_LINE:?}");
        return Err(StorageError::foreign(files, IDENTITY, why));
    }
    let mut name = |before: &str| {
        let line = lines.next().unwrap_or_default();
        let name = line.strip_prefix(before).unwrap_or_default();
        let name = name.split_once('"').map_or("", |(name, _)| name);
        let is_name = name.bytes().all(|byte| byte.is_ascii_graphic());
        (if is_name { name } else { "" }).to_owned()
    };
    let found = Identity {
        cluster: name("cluster = \""),
        node: name("node = \""),
    };
    let right = found.text();
    let has_names = !found.cluster.is_empty() && !found.node.is_empty();
    if has_names && bytes == right.as_bytes() {
        return Ok(found);
    }
    let same = bytes
        .iter()
        .zip(right.as_bytes())
        .take_while(|(one, other)| one == other);
    let mut error = StorageError::foreign(files, IDENTITY, format!("the file is damaged{REMEDY}"));
    error.offset = u64::try_from(same.count()).ok();
    Err(error)
}

/// Whether a first line is that of this format in some version.
fn is_of_a_version(first: &str) -> bool {
    let version = first.strip_prefix(FIRST_LINE.trim_end_matches('1'));
    version
        .is_some_and(|it| (1..10).contains(&it.len()) && it.bytes().all(|it| it.is_ascii_digit()))
}

/// Refuses a directory without an owner that has data, or files of other programs.
fn without_owner(files: &dyn Files, names: &[String]) -> Result<(), StorageError> {
    if names.iter().any(|name| holds_data(name)) {
        let why = format!(
            "it has a log or a snapshot and no file identity, which names their node{REMEDY}"
        );
        return Err(StorageError::foreign(files, "", why));
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

fn judge(files: &dyn Files, bytes: &[u8], own: &Identity) -> Result<(), StorageError> {
    let found = parse(files, bytes)?;
    if found == *own {
        return Ok(());
    }
    let why = format!(
        "the data directory is that of cluster = {:?}, node = {:?}, and this is node {:?} of cluster {:?}; name \
         another directory",
        found.cluster, found.node, own.node, own.cluster
    );
    Err(StorageError::foreign(files, IDENTITY, why))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::storage::simulated::Disk;

    fn own() -> Identity {
        Identity {
            cluster: "c".to_owned(),
            node: "single".to_owned(),
        }
    }

    /// The errors of a node and a reader for a directory whose identity has these bytes. Neither takes it.
    fn refused(bytes: &[u8]) -> [String; 2] {
        let disk = Disk::default();
        let file = disk.create(IDENTITY).unwrap();
        file.write_at(0, bytes).unwrap();
        let errors = [check(&disk, &own()).unwrap_err(), read(&disk).unwrap_err()];
        errors.map(|error| error.to_string())
    }

    #[test]
    fn a_damaged_identity_is_no_other_nodes_and_nothing_of_it_is_printed() {
        let right = own().text().into_bytes();
        let [.., name, _, _] = right[..] else {
            unreachable!("it has a name")
        };
        assert_eq!(name, b'e');
        let mut damaged: Vec<Vec<u8>> = (0..right.len()).map(|len| right[..len].to_vec()).collect();
        let behind = [&[0; 5_000][..], b"\n", b"node = \"two\"\n"];
        damaged.extend(behind.map(|behind| [&right, behind].concat()));
        for byte in [0, b' ', b'\x1b', 0xff] {
            let mut changed = right.clone();
            let at = changed.len() - 3;
            changed[at] = byte;
            damaged.push(changed);
        }
        for bytes in damaged {
            let shown = bytes.escape_ascii();
            for said in refused(&bytes) {
                assert!(
                    said.contains(": the file is damaged; restore that file"),
                    "{shown}: {said}"
                );
                assert!(
                    said.bytes()
                        .all(|byte| byte == b' ' || byte.is_ascii_graphic()),
                    "{shown}: {said}"
                );
            }
        }
        let told = refused(&[&right[..], b"more"].concat());
        assert!(
            told.iter().all(|said| said.contains(", offset 67: ")),
            "{told:?}"
        );
    }

    #[test]
    fn another_version_and_another_node_are_named() {
        let text = own().text();
        for said in refused(text.replace("format 1", "format 12").as_bytes()) {
            assert!(
                said.contains("first line is \"gopherstore data directory, format 12\""),
                "{said}"
            );
        }
        let disk = Disk::default();
        let file = disk.create(IDENTITY).unwrap();
        file.write_at(0, text.replace("single", "n2").as_bytes())
            .unwrap();
        let other = read(&disk).unwrap().unwrap();
        assert_eq!((&*other.cluster, &*other.node), ("c", "n2"));
        let said = check(&disk, &own()).unwrap_err().to_string();
        assert!(
            said.contains("that of cluster = \"c\", node = \"n2\", and this is node \"single\""),
            "{said}"
        );
    }
}
