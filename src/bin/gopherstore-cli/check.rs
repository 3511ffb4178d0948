//! `check`: reads a data directory, and says what a node would recover from it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gopherstore::{
    arguments,
    server::data_dir,
    storage::error::{Problem, StorageError},
    storage::files::{Directory, Files as _},
    storage::identity,
    storage::recovery::{SegmentInfo, read_segment},
    storage::segment::SegmentId,
    storage::snapshot::{SnapshotId, read_snapshot},
};
use indicatif::HumanCount;

use crate::{
    offline::{self, Data},
    quote,
    report::{Failure, Outcome},
    write_out,
};

/// Check the data directory of a node that does not run, and print what it would recover.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} data",
    note = "The command reads the snapshot and every segment of the log, as a node does at its start: all\n\
        checksums, the order of records, and the digest of the data after each group. It changes no file.\n\
        On a terminal it prints a table of the files, and otherwise a line for each; below, what a node would\n\
        recover. A torn end, as a crash leaves it, is no damage: a node cuts it off. It prints the node and the\n\
        cluster that the directory names; a node refuses a directory that names others, and nothing here\n\
        compares the names.\n\
        Exit code 0: a node would recover the data. 1: the directory has no data set, or no file of a node.\n\
        7: it is damaged, with file and offset, or of another format. 8: it cannot be read, or a node uses it.\n\
        It asks no node, so options such as --addr have no effect."
)]
pub(crate) struct Check {
    /// the directory
    #[argh(positional, from_str_fn(arguments::path))]
    dir: PathBuf,
}

pub(crate) fn run(command: &Check) -> Result<Outcome, Failure> {
    let directory = match data_dir::open_to_read(&command.dir) {
        Err(error) if matches!(error.problem, Problem::NoFiles) => {
            return Err(Failure::new(Outcome::NotFound, error.to_string()));
        }
        opened => opened.map_err(offline::failure)?,
    };
    let files = &directory.files;
    let data = Data::of(&directory);
    let rows = Survey::new(files, &data).rows().map_err(offline::failure)?;
    let mut text = if io::stdout().is_terminal() {
        table(&rows)
    } else {
        lines(&rows)
    };
    let owner = owner(files);
    match &data {
        Ok(data) => text += &(cut(data) + &owner + &recovered(data)),
        Err(_) => text += &(owner + "a node would recover nothing\n"),
    }
    write_out(text.as_bytes())?;
    let data = data.map_err(offline::failure)?;
    Ok(if data.is_there() {
        Outcome::Done
    } else {
        Outcome::NotFound
    })
}

/// The line about the bytes that a node would cut off, if there are some.
fn cut(data: &Data) -> String {
    let log = data.recovery.log.as_ref();
    let Some(cut) = log.and_then(|log| log.cut.as_ref()) else {
        return String::new();
    };
    format!(
        "a node would cut off {} bytes at least of {}, from offset {} on: the last write was torn\n",
        cut.bytes, cut.name, cut.offset
    )
}

/// The line about the node and the cluster that the directory names, if it names some.
fn owner(files: &Directory) -> String {
    let Ok(Some(owner)) = identity::read(files) else {
        return String::new();
    };
    let (node, cluster) = (
        quote::one_line(&owner.node),
        quote::one_line(&owner.cluster),
    );
    format!("data of node {node:?} of cluster {cluster:?}\n")
}

/// The line about the data set that a node would recover.
fn recovered(data: &Data) -> String {
    if !data.is_there() {
        return "no data set\n".to_owned();
    }
    let (keys, head) = (data.engine.len(), data.engine.head());
    format!(
        "{keys} keys up to index {}, digest {}\n",
        head.index, head.digest
    )
}

/// A file of the directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    file: String,
    /// Indexes of the first and the last record of a segment.
    records: Option<(u64, u64)>,
    /// Entries of a snapshot, and the index at which it begins.
    keys: Option<(u64, u64)>,
    /// Bytes up to the end of what was read.
    bytes: u64,
    state: String,
}

/// The report on the files.
struct Survey<'a> {
    files: &'a Directory,
    data: &'a Result<Data, StorageError>,
    names: Vec<String>,
    /// The newest snapshot.
    newest: Option<SnapshotId>,
    /// The chain that a recovery reads.
    chain: Option<u32>,
}

impl<'a> Survey<'a> {
    fn new(files: &'a Directory, data: &'a Result<Data, StorageError>) -> Survey<'a> {
        let mut names = files.list().unwrap_or_default();
        names.sort_unstable();
        let newest = names
            .iter()
            .filter_map(|name| SnapshotId::of_name(name))
            .max();
        let lowest = names
            .iter()
            .filter_map(|name| SegmentId::of_name(name))
            .min();
        let chain = newest.map(|id| id.chain).or(lowest.map(|id| id.chain));
        Survey {
            files,
            data,
            names,
            newest,
            chain,
        }
    }

    /// The snapshots, the segments, and then the other files.
    fn rows(&self) -> Result<Vec<Row>, StorageError> {
        let (mut snapshots, mut segments, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for name in &self.names {
            if let Some(id) = SnapshotId::of_name(name) {
                snapshots.push(self.snapshot(id)?);
            } else if let Some(id) = SegmentId::of_name(name) {
                segments.push(self.segment(id)?);
            } else if name.starts_with("spare-") {
                others.push(self.other(name, "space for a segment, not read")?);
            } else if name.starts_with("new-") {
                others.push(self.other(name, "not finished, not read")?);
            }
        }
        snapshots.append(&mut segments);
        snapshots.append(&mut others);
        Ok(snapshots)
    }

    /// A file that is not read.
    fn other(&self, name: &str, state: &str) -> Result<Row, StorageError> {
        let len = self.files.open(name, false).and_then(|file| file.length());
        let bytes = len.map_err(|error| StorageError {
            path: self.files.path().join(name),
            offset: None,
            problem: Problem::System("read", error),
        })?;
        Ok(Row {
            file: name.to_owned(),
            bytes,
            state: state.to_owned(),
            ..Row::default()
        })
    }

    fn snapshot(&self, id: SnapshotId) -> Result<Row, StorageError> {
        let name = id.name();
        if Some(id) != self.newest {
            return self.other(&name, "older, not read");
        }
        let read = match self.data {
            Ok(data) => Ok(data.recovery.snapshot.clone()),
            Err(_) => read_snapshot(self.files, &mut |_, _| Ok(())),
        };
        match read {
            Ok(Some(snapshot)) => Ok(Row {
                file: name,
                records: None,
                keys: Some((snapshot.keys, id.begin)),
                bytes: snapshot.bytes,
                state: match self.damage_in(&id.name()) {
                    Some(damage) => damage,
                    None => format!("whole, needs the log up to index {}", snapshot.end),
                },
            }),
            Ok(None) => self.other(&name, "not read"),
            Err(error) => self.other(&name, &damage(&error)),
        }
    }

    fn segment(&self, id: SegmentId) -> Result<Row, StorageError> {
        let name = id.name();
        if Some(id.chain) != self.chain {
            return self.other(&name, "of another chain, not read");
        }
        let (info, state) = match self.data {
            Ok(data) => {
                let log = data.recovery.log.as_ref();
                let found = log.and_then(|log| log.segments.iter().find(|it| it.id == id));
                let Some(info) = found else {
                    return self.other(&name, "behind a full copy that was not finished, not read");
                };
                (info.clone(), self.state(data, info))
            }
            Err(_) => match read_segment(self.files, id) {
                Ok(info) => (info, self.state_beside_damage(&name)),
                Err(error) => return self.other(&name, &damage(&error)),
            },
        };
        Ok(Row {
            file: name,
            records: Some((info.first_index, info.last_index)),
            keys: None,
            bytes: info.bytes,
            state,
        })
    }

    /// The state of a segment that a recovery has read.
    fn state(&self, data: &Data, info: &SegmentInfo) -> String {
        let log = data.recovery.log.as_ref();
        let is_last = log.is_some_and(|log| log.place.id == info.id);
        let cut = log.and_then(|log| log.cut.as_ref());
        if let Some(cut) = cut.filter(|cut| cut.name == info.id.name()) {
            format!("torn at offset {}", cut.offset)
        } else if is_last && log.is_some_and(|log| log.is_sealed) {
            "whole, sealed".to_owned()
        } else if !is_last && self.newest.is_some_and(|id| info.last_index <= id.begin) {
            "whole, not needed".to_owned()
        } else {
            "whole".to_owned()
        }
    }

    /// The state of a segment, where a recovery has found damage.
    fn state_beside_damage(&self, name: &str) -> String {
        if let Some(damage) = self.damage_in(name) {
            return damage;
        }
        let Err(error) = self.data else {
            return String::new();
        };
        let damaged = error.path.file_name().and_then(|file| file.to_str());
        let is_before =
            damaged.is_some_and(|damaged| SegmentId::of_name(damaged).is_some() && name < damaged);
        (if is_before { "whole" } else { "not judged" }).to_owned()
    }

    /// The damage that a recovery has found in the file of this name.
    fn damage_in(&self, name: &str) -> Option<String> {
        let error = self.data.as_ref().err()?;
        let file: &Path = error.path.as_ref();
        (file.file_name()? == name).then(|| damage(error))
    }
}

/// The place of a fault in its file.
fn damage(error: &StorageError) -> String {
    match (&error.problem, error.offset) {
        (Problem::Damaged(_), Some(offset)) => format!("damaged at offset {offset}"),
        (Problem::Damaged(_), None) => "damaged".to_owned(),
        (Problem::Foreign(_), _) => "of another format".to_owned(),
        (Problem::System(..) | Problem::Full(_) | Problem::InUse | Problem::NoFiles, _) => {
            "cannot be read".to_owned()
        }
    }
}

/// A line for each file.
fn lines(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        // Writing to a string does not fail.
        let _ = write!(text, "{}: ", row.file);
        if let Some((keys, index)) = row.keys {
            let _ = write!(text, "{keys} keys of index {index}, ");
        }
        let _ = match row.records {
            Some((first, last)) if last < first => write!(text, "no records, "),
            Some((first, last)) => write!(text, "records {first} to {last}, "),
            None => Ok(()),
        };
        let _ = writeln!(text, "{} bytes, {}", row.bytes, row.state);
    }
    text
}

/// The columns of the table, and whether they hold numbers.
const COLUMNS: [(&str, bool); 6] = [
    ("file", false),
    ("first", true),
    ("last", true),
    ("keys", true),
    ("bytes", true),
    ("state", false),
];

/// A table of the files. The last record of a snapshot is that at which it begins.
fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(COLUMNS.map(|(heading, _)| heading));
    let shown = |number: Option<u64>| match number {
        Some(number) => HumanCount(number).to_string(),
        None => "-".to_owned(),
    };
    for row in rows {
        let records = row.records.filter(|(first, last)| first <= last);
        let last = records.map(|(_, last)| last);
        table.add_row([
            row.file.clone(),
            shown(records.map(|(first, _)| first)),
            shown(last.or(row.keys.map(|(_, index)| index))),
            shown(row.keys.map(|(keys, _)| keys)),
            shown(Some(row.bytes)),
            row.state.clone(),
        ]);
    }
    for (column, (_, is_number)) in table.column_iter_mut().zip(COLUMNS) {
        column.set_padding((0, 2));
        if is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_file_and_lines_have_the_same() {
        let rows = [
            Row {
                file: "snapshot-00000001-0000000000000064".to_owned(),
                keys: Some((2_000, 100)),
                bytes: 12_345,
                state: "whole, needs the log up to index 107".to_owned(),
                ..Row::default()
            },
            Row {
                file: "log-00000001-0000000000000002".to_owned(),
                records: Some((90, 1_205)),
                bytes: 7_000,
                state: "torn at offset 7000".to_owned(),
                ..Row::default()
            },
            Row {
                file: "log-00000001-0000000000000003".to_owned(),
                records: Some((1_206, 1_205)),
                bytes: 512,
                state: "whole".to_owned(),
                ..Row::default()
            },
        ];
        assert_eq!(
            table(&rows),
            "\
file                                first   last   keys   bytes  state
snapshot-00000001-0000000000000064      -    100  2,000  12,345  whole, needs the log up to index 107
log-00000001-0000000000000002          90  1,205      -   7,000  torn at offset 7000
log-00000001-0000000000000003           -      -      -     512  whole
"
        );
        assert_eq!(
            lines(&rows),
            "\
snapshot-00000001-0000000000000064: 2000 keys of index 100, 12345 bytes, whole, needs the log up to index 107
log-00000001-0000000000000002: records 90 to 1205, 7000 bytes, torn at offset 7000
log-00000001-0000000000000003: no records, 512 bytes, whole
"
        );
    }
}
