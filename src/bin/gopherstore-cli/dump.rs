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
    Client, arguments,
    client::{Answer, Error, NodeStatus, Observer, Watch},
    wire::{
        Request,
        census::{Buckets, Item, List, Place},
        replication::Message,
    },
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

/// Bytes of values that are asked for in one go where keys are read one by one, and what each counts for beside.
const ASKED_BYTES: u64 = 4 << 20;
const ITEM_BYTES: u64 = 1 << 10;

/// Write all data of a node, leader or follower, into a file that load reads.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "dump", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} monday.gbp\n\
        {command_name} --addr 127.0.0.1:8001 | zstd > monday.gbp.zst",
    note = "The copy is consistent: all that was written up to one entry of the log, and nothing\n\
        after it; but for a node in a cluster of one, which keeps no log. The node goes on\n\
        meanwhile. The file gets its name once it is whole and on the disk; it is a sequence of\n\
        SET frames with an end mark (docs/GBP.md, section 11).\n\
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
    let mut source = Source::open(&addr, context).map_err(|error| failure(&error, context))?;
    if let Source::Alone(_) = source {
        let _ = writeln!(
            io::stderr(),
            "gopherstore-cli: a node on its own keeps no log, so what is written meanwhile is in the copy or is not"
        );
    }
    let copied = match &file {
        None => source
            .copy(io::stdout().lock(), context)
            .map(|(copied, _)| copied),
        Some(file) => into_file(&mut source, file, context),
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
fn into_file(source: &mut Source, file: &Path, context: &Context) -> Result<Copied, Fault> {
    // A link stays one, and what is no plain file, such as /dev/null, is written as it is.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        let output = OpenOptions::new().write(true).open(&target)?;
        return source.copy(output, context).map(|(copied, _)| copied);
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
    let result = source.copy(output, context).and_then(|(copied, output)| {
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

/// Where the data comes from.
enum Source {
    /// A stream that begins with a copy.
    Stream(Box<Observer>),
    /// A node in a cluster of one, which streams nothing: its keys are listed, and each is read.
    Alone(Box<Client>),
}

impl Source {
    fn open(addr: &str, context: &Context) -> Result<Source, Error> {
        match Observer::open(addr, &context.options(), Watch::Copy) {
            Ok(observer) => Ok(Source::Stream(Box::new(observer))),
            Err(error @ Error::Server { .. }) => {
                let mut client = context.client_of(addr);
                let status = NodeStatus::parse(&client.status()?);
                if status.peers.is_empty() && status.epoch.unwrap_or(0) == 0 {
                    Ok(Source::Alone(Box::new(client)))
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Writes all of it, with an end mark.
    fn copy<W: Write>(&mut self, output: W, context: &Context) -> Result<(Copied, W), Fault> {
        let mut copy = Copy {
            output: BufWriter::with_capacity(GATHERED_BYTES, output),
            bar: ProgressBar::hidden(),
            sum: Sum::default(),
            bytes: 0,
        };
        let (epoch, index, digest) = match self {
            Source::Stream(observer) => copy.stream(observer, context)?,
            Source::Alone(client) => copy.keys(client, context)?,
        };
        copy.output.write_all(&copy.sum.end_mark(epoch, index))?;
        copy.bar.finish_and_clear();
        let output = copy.output.into_inner();
        let output = output.map_err(|error| Fault::Output(error.into_error()))?;
        let copied = Copied {
            sum: copy.sum,
            bytes: copy.bytes,
            index,
            digest: digest.unwrap_or(copy.sum.digest),
        };
        Ok((copied, output))
    }
}

/// A copy in the making.
struct Copy<W: Write> {
    output: BufWriter<W>,
    bar: ProgressBar,
    sum: Sum,
    bytes: u64,
}

impl<W: Write> Copy<W> {
    fn begin(&mut self, keys: u64, context: &Context) {
        self.bar = context.progress(Some(keys), PROGRESS);
    }

    /// The copy that a stream begins with: its epoch, index and digest.
    fn stream(
        &mut self,
        observer: &mut Observer,
        context: &Context,
    ) -> Result<(u64, u64, Option<u128>), Fault> {
        loop {
            match observer.receive().map_err(Fault::Node)? {
                Message::SnapshotBegin { keys, .. } => self.begin(keys, context),
                Message::SnapshotChunk { frames, .. } => {
                    for frame in frames {
                        self.sum.add(frame.bytes());
                    }
                    self.output.write_all(frames.bytes())?;
                    self.bytes += u64::try_from(frames.bytes().len()).unwrap_or(u64::MAX);
                    self.bar.set_position(self.sum.frames);
                }
                Message::SnapshotEnd {
                    epoch,
                    index,
                    digest,
                    ..
                } => return Ok((epoch, index, Some(digest))),
                Message::Heartbeat { .. } | Message::Entries { .. } | Message::Ack { .. } => {}
            }
        }
    }

    /// Every key that is listed, with the value that it has when it is read.
    fn keys(
        &mut self,
        client: &mut Client,
        context: &Context,
    ) -> Result<(u64, u64, Option<u128>), Fault> {
        let status = NodeStatus::parse(&client.status().map_err(Fault::Node)?);
        self.begin(status.keys.unwrap_or(0), context);
        let mut buckets = Buckets::none(0);
        buckets.insert(0);
        let mut place = Place::default();
        loop {
            let request = List::Some {
                place,
                buckets: buckets.clone(),
            };
            let answer = client.list(&request).map_err(Fault::Node)?;
            let (mut from, mut asked) = (0, 0);
            for (at, item) in answer.items.iter().enumerate() {
                asked += u64::from(item.value_len) + ITEM_BYTES;
                if asked >= ASKED_BYTES || at + 1 == answer.items.len() {
                    self.read(client, &answer.items[from..=at])?;
                    (from, asked) = (at + 1, 0);
                }
            }
            if answer.next.is_end(answer.partitions) {
                return Ok((0, 0, None));
            }
            place = answer.next;
        }
    }
}

impl<W: Write> Copy<W> {
    /// Reads these keys in one pipeline. One that is not there any more was removed meanwhile.
    fn read(&mut self, client: &mut Client, items: &[Item]) -> Result<(), Fault> {
        let mut pipeline = client.pipeline();
        for item in items {
            pipeline.get(&item.key);
        }
        let answers = pipeline.run().map_err(|error| Fault::Node(error.into()))?;
        for (item, answer) in items.iter().zip(answers) {
            let Answer::Value(value) = answer.map_err(Fault::Node)? else {
                continue;
            };
            let mut frame = Vec::new();
            let (key, value) = (&item.key[..], &value[..]);
            let encoded = Request::Set { key, value }.encode(&mut frame);
            encoded.map_err(|error| Fault::Node(error.into()))?;
            self.sum.add(&frame);
            self.output.write_all(&frame)?;
            self.bytes += u64::try_from(frame.len()).unwrap_or(u64::MAX);
        }
        self.bar.set_position(self.sum.frames);
        Ok(())
    }
}
