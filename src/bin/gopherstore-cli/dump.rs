//! `dump`: a full copy of a node's data set, as a file.

use std::{
    env, fs,
    fs::{File, OpenOptions},
    io::{self, BufWriter, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
    process, thread,
    time::Instant,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments,
    client::{Error, Observer, Watch},
    wire::replication::Message,
};
use indicatif::{HumanBytes, ProgressBar};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    command::Command,
    context::Context,
    copy_file::{self, Sum},
    mistake,
    report::{self, Failure, Outcome, UNKNOWN_OPCODE},
};

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 1 << 20;

const PROGRESS: &str =
    "{percent:>3}%  {human_pos} of about {human_len} entries, {per_sec}, {eta} left";

/// Write all data of a node, leader or follower, into a file that load reads.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "dump", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} monday.gbp\n\
        {command_name} --addr 127.0.0.1:8001 | zstd > monday.gbp.zst",
    note = "The copy is consistent: all that was written up to one entry of the log, and nothing\n\
        after it. The node goes on meanwhile. The file gets its name once it is whole and on\n\
        the disk; it is a sequence of SET frames with an end mark (docs/GBP.md, section 11).\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Dump {
    /// where to; by default, or for -, standard output, but not to a terminal
    #[argh(positional, from_str_fn(arguments::path), arg_name = "file")]
    file: Option<PathBuf>,
}

pub(crate) fn run(command: Dump, context: &Context) -> Result<Outcome, Failure> {
    let addr = context.addr()?;
    let file = command.file.filter(|file| file.as_os_str() != "-");
    if file.is_none() && io::stdout().is_terminal() {
        return Err(mistake(
            "a dump is binary and would garble the terminal; name a file, or direct standard output into one",
        ));
    }
    let started = Instant::now();
    let mut observer = Observer::open(&addr, &context.options(), Watch::Copy)
        .map_err(|error| failure(&error, context))?;
    let copied = match &file {
        None => copy(&mut observer, io::stdout().lock(), context).map(|(copied, _)| copied),
        Some(file) => into_file(&mut observer, file, context),
    };
    let copied = match copied {
        Ok(copied) => copied,
        Err(Fault::Node(error)) => return Err(failure(&error, context)),
        // That is how a reader says 'enough'.
        Err(Fault::Output(error)) if file.is_none() && error.kind() == ErrorKind::BrokenPipe => {
            return Ok(Outcome::Done);
        }
        Err(Fault::Output(error)) => {
            let name = file
                .as_deref()
                .map_or("standard output".to_owned(), |file| {
                    file.display().to_string()
                });
            return Err(Failure::new(
                Outcome::LocalInput,
                format!("cannot write to {name}: {error}; make room there, or name another file"),
            ));
        }
    };
    if io::stderr().is_terminal() {
        let seconds = started.elapsed().as_secs_f64();
        let _ = writeln!(
            io::stderr(),
            "{}, {} in {seconds:.1} s, at index {}, digest {:032x}",
            copy_file::entries(copied.sum.frames),
            HumanBytes(copied.bytes),
            copied.index,
            copied.digest
        );
    }
    Ok(Outcome::Done)
}

/// What was written.
struct Copied {
    sum: Sum,
    bytes: u64,
    index: u64,
    /// Of the data set at that index, as the node has it.
    digest: u128,
}

enum Fault {
    Node(Error),
    Output(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Output(error)
    }
}

fn failure(error: &Error, context: &Context) -> Failure {
    if let Error::Server { message } = error
        && !message.starts_with(UNKNOWN_OPCODE)
    {
        return Failure::new(
            Outcome::ServerError,
            format!("nothing to copy: {message}; name another node with --addr"),
        );
    }
    if let Error::Connection { .. } = error {
        return Failure::new(
            Outcome::NoConnection,
            format!(
                "{error}: the copy is not complete, so no file was made; the node stopped, or its log did not reach \
                 back as far as the copy took, in which case its own log says so; try again"
            ),
        );
    }
    report::failure(error, &Command::Status, context.node.as_deref())
}

/// Writes a file under another name, which it has until it is whole and on the disk.
fn into_file(observer: &mut Observer, file: &Path, context: &Context) -> Result<Copied, Fault> {
    // A link stays one, and what is no plain file, such as /dev/null, is written as it is.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        let output = OpenOptions::new().write(true).open(&target)?;
        return copy(observer, output, context).map(|(copied, _)| copied);
    }
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no name of a file"))?;
    let mut part = name.to_owned();
    part.push(format!(".{}.part", process::id()));
    let part = target.with_file_name(part);
    let output = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&part)?;
    remove_when_stopped(&part)?;
    let result = copy(observer, output, context).and_then(|(copied, output)| {
        output.sync_all()?;
        fs::rename(&part, &target)?;
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => env::current_dir()?,
        };
        // So that the name survives a loss of power as well as the bytes.
        File::open(folder)?.sync_all()?;
        Ok(copied)
    });
    if result.is_err() {
        let _ = fs::remove_file(&part);
    }
    result
}

/// Leaves no unfinished file behind where somebody ends the program.
fn remove_when_stopped(part: &Path) -> io::Result<()> {
    let part = part.to_owned();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _ = fs::remove_file(part);
                // As a shell has it.
                process::exit(128 + signal);
            }
        })
        .map(drop)
}

/// Writes the copy that the stream begins with.
fn copy<W: Write>(
    observer: &mut Observer,
    output: W,
    context: &Context,
) -> Result<(Copied, W), Fault> {
    let mut output = BufWriter::with_capacity(GATHERED_BYTES, output);
    let mut bar = ProgressBar::hidden();
    let (mut sum, mut bytes) = (Sum::default(), 0_u64);
    loop {
        match observer.receive().map_err(Fault::Node)? {
            Message::SnapshotBegin { keys, .. } => {
                bar = context.progress(Some(keys), PROGRESS);
            }
            Message::SnapshotChunk { frames, .. } => {
                for frame in frames {
                    sum.add(frame.bytes());
                }
                output.write_all(frames.bytes())?;
                bytes += u64::try_from(frames.bytes().len()).unwrap_or(u64::MAX);
                bar.set_position(sum.frames);
            }
            Message::SnapshotEnd {
                epoch,
                index,
                digest,
                ..
            } => {
                output.write_all(&sum.end_mark(epoch, index))?;
                bar.finish_and_clear();
                let output = output
                    .into_inner()
                    .map_err(|error| Fault::Output(error.into_error()))?;
                let copied = Copied {
                    sum,
                    bytes,
                    index,
                    digest,
                };
                return Ok((copied, output));
            }
            Message::Heartbeat { .. } | Message::Entries { .. } | Message::Ack { .. } => {}
        }
    }
}
