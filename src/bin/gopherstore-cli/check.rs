//! `check`: reads a data directory, and says what a node would recover from it.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use gopherstore::{arguments, storage::files::Files as _};

use crate::{
    offline::{self, Data},
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
        Damage is exit code 7, with file and offset; a directory that cannot be read, or that a node uses, is\n\
        exit code 8. It asks no node, so options such as --addr have no effect."
)]
pub(crate) struct Check {
    /// the directory
    #[argh(positional, from_str_fn(arguments::path))]
    dir: PathBuf,
}

pub(crate) fn run(command: &Check) -> Result<Outcome, Failure> {
    let directory = offline::open(&command.dir)?;
    let names = directory.files.list().unwrap_or_default();
    let data = Data::of(&directory).map_err(offline::failure)?;
    write_out(report(&data, &names).as_bytes())?;
    Ok(Outcome::Done)
}

/// A line for each file that a node reads, and one for the data.
fn report(data: &Data, names: &[String]) -> String {
    let Data {
        owner,
        engine,
        recovery,
    } = data;
    let mut text = String::new();
    if let Some(snapshot) = &recovery.snapshot {
        text += &format!(
            "{}: {} keys of index {} to {}, {} bytes\n",
            snapshot.id.name(),
            snapshot.keys,
            snapshot.id.begin,
            snapshot.end,
            snapshot.bytes
        );
    }
    let segments = recovery.log.iter().flat_map(|log| &log.segments);
    for segment in segments {
        let records = if segment.last_index < segment.first_index {
            "no records".to_owned()
        } else {
            format!("records {} to {}", segment.first_index, segment.last_index)
        };
        text += &format!(
            "{}: {records}, {} bytes\n",
            segment.id.name(),
            segment.bytes
        );
    }
    let spares = names.iter().filter(|name| name.starts_with("spare-"));
    match spares.count() {
        0 => {}
        count => text += &format!("spare segments: {count}\n"),
    }
    if let Some(cut) = recovery.log.as_ref().and_then(|log| log.cut.as_ref()) {
        text += &format!(
            "{}: torn at offset {}, and not read from there\n",
            cut.name, cut.offset
        );
    }
    text += &format!(
        "data of node {:?} of cluster {:?}\n",
        owner.node, owner.cluster
    );
    text += &format!(
        "{} keys up to index {}, digest {}\n",
        engine.len(),
        engine.head().index,
        engine.head().digest
    );
    text
}
