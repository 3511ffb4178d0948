//! `dump`: writes a snapshot of a node's data to a file.

use std::{
    fs::File,
    io::{self, BufWriter, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    Client, arguments,
    client::{
        ClientOptions, Error, NodeState, NodeStatus, ScanItem, ScanOptions, Watch, WatchFrom,
        Watched, Watcher,
    },
    engine::{Engine, PartitionCopy},
    log::Log,
    server::data_dir,
    wire::{EncodeError, Opcode, Request, expiry::SetAt},
};
use indicatif::{HumanBytes, ProgressBar};

use crate::{
    context::Context,
    copy_file::{self, Sum},
    mistake,
    new_file::{Output, unwritable},
    offline::{self, Data},
    report::{self, Failure, Outcome, UNKNOWN_OPCODE},
};

/// Size of the output buffer.
const GATHERED_BYTES: usize = 1 << 20;

const PROGRESS: &str =
    "{percent:>3}%  {human_pos} of about {human_len} entries, {rate}, {left} left";

/// Time limit of a STATUS that is only used to explain the end of a stream.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// Write all data of a node, leader or follower, to a file for load.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "dump", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} monday.gbp\n\
        {command_name} --addr 127.0.0.1:8001 | zstd > monday.gbp.zst\n\
        {command_name} --data-dir data stopped.gbp",
    note = "The file holds the data as of one entry of the log, although clients may write meanwhile. A\n\
        node in a cluster of one without a data directory has no log, so there the file may hold some\n\
        later writes.\n\
        A slow reader of a pipe must not fall behind the node's log (backlog_bytes).\n\
        The file gets its name when it is complete and on the disk. It consists of SET and SETAT\n\
        frames, DEL and EXPIRE frames of changes that were made meanwhile, and an end mark\n\
        (docs/GBP.md, section 11). A new file has mode 0600; a file that replaces another keeps its\n\
        mode.\n\
        With --data-dir it reads the data directory of a node that does not run, as the node does at its\n\
        start, and changes nothing there. It asks no node. It needs as much memory as the node.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Dump {
    /// the file; without it, or with -, standard output, unless that is a terminal
    #[argh(positional, from_str_fn(arguments::path), arg_name = "file")]
    file: Option<PathBuf>,
    /// replace the file if it exists
    #[argh(switch)]
    force: bool,
    /// read this data directory of a node that does not run, and ask no node
    #[argh(option, from_str_fn(arguments::path), arg_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(crate) fn run(command: Dump, context: &Context) -> Result<Outcome, Failure> {
    let addr = match &command.data_dir {
        Some(_) if !context.place().is_empty() => {
            let place = context.place();
            let why = format!("--data-dir asks no node; leave out {}", place.trim_end());
            return Err(mistake(&why));
        }
        Some(_) => String::new(),
        None => context.addr()?,
    };
    let file = command.file.filter(|file| file.as_os_str() != "-");
    if file.is_none() && io::stdout().is_terminal() {
        return Err(mistake(
            "a dump is binary and would garble the terminal; name a file, or direct standard output into one",
        ));
    }
    // Before the node is asked.
    let output = Output::open(file.as_deref(), command.force)?;
    let started = Instant::now();
    if let Some(dir) = &command.data_dir {
        let mut copy = Copy::new(output.file());
        let end = copy.directory(dir, output.name(), context);
        copy.bar.finish_and_clear();
        let (end, written) = (end?, (copy.sum, copy.bytes));
        drop(copy);
        return finish(output, written, &end, started);
    }
    let mut source = Source::open(&addr, context).map_err(|error| failure(&error, context))?;
    if let Source::Alone(_) = source {
        let _ = writeln!(
            io::stderr(),
            "gopherstore-cli: this node keeps no log, so the copy may lack writes that are made meanwhile"
        );
    }
    let mut copy = Copy::new(output.file());
    let before = status(&addr, context).unwrap_or_default();
    let end = source.copy(&mut copy, context);
    copy.bar.finish_and_clear();
    let end = match end {
        Ok(end) => end,
        Err(Fault::Node(error)) => {
            return Err(copy.incomplete(&error, &addr, &before, &output, context));
        }
        Err(Fault::Output(error)) => return Err(unfinished(output.name(), &error)),
    };
    let written = (copy.sum, copy.bytes);
    drop(copy);
    finish(output, written, &end, started)
}

/// The failure of a write to the output.
fn unfinished(name: &str, error: &io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        let message = format!("the copy is not complete: {name} is not read any more");
        return Failure::new(Outcome::LocalInput, message);
    }
    unwritable(name, error)
}

/// Gives the file, which is whole, its name.
fn finish(
    output: Output,
    (sum, bytes): (Sum, u64),
    end: &End,
    started: Instant,
) -> Result<Outcome, Failure> {
    output.finish()?;
    if io::stderr().is_terminal() {
        let _ = writeln!(
            io::stderr(),
            "{} in {}, {} of file, at index {}, digest {:032x}",
            copy_file::entries(sum.frames),
            copy_file::duration(started.elapsed()),
            HumanBytes(bytes),
            end.index,
            end.digest
        );
    }
    Ok(Outcome::Done)
}

/// End of a snapshot.
struct End {
    epoch: u64,
    index: u64,
    /// Digest of the data set at that index, from the node.
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

/// The failure when no snapshot begins.
fn failure(error: &Error, context: &Context) -> Failure {
    if let Error::Server { message } = error
        && !message.starts_with(UNKNOWN_OPCODE)
    {
        return Failure::new(
            Outcome::ServerError,
            format!("nothing to copy: {message}; name another node with --addr"),
        );
    }
    report::failure(error, Opcode::Status, context.node.as_deref())
}

/// The status of the node, if it responds within the limit.
fn status(addr: &str, context: &Context) -> Result<NodeStatus, Error> {
    let timeout = context.timeout.min(STATUS_TIMEOUT);
    let options = ClientOptions {
        connect_timeout: timeout,
        timeout,
        ..context.options()
    };
    let text = Client::unconnected(addr, options).status()?;
    Ok(NodeStatus::parse(&text))
}

/// Source of the data.
enum Source {
    /// A stream that begins with a snapshot.
    Stream(Box<Watcher>),
    /// A node without a log, which has no stream: it is scanned.
    Alone(Box<Client>),
}

impl Source {
    fn open(addr: &str, context: &Context) -> Result<Source, Error> {
        let watch = Watch {
            values: true,
            from: WatchFrom::Snapshot,
            ..Watch::default()
        };
        match Watcher::open(addr, &context.options(), watch) {
            Ok(watcher) => Ok(Source::Stream(Box::new(watcher))),
            Err(error @ Error::Server { .. }) => {
                let mut client = context.client_of(addr);
                let status = NodeStatus::parse(&client.status()?);
                if status.peers.is_empty() && status.epoch == Some(0) {
                    Ok(Source::Alone(Box::new(client)))
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Writes all data and an end mark.
    fn copy(&mut self, copy: &mut Copy<'_>, context: &Context) -> Result<End, Fault> {
        let end = match self {
            Source::Stream(watcher) => copy.stream(watcher, context)?,
            Source::Alone(client) => copy.entries(client, context)?,
        };
        copy.put(&copy.sum.end_mark(end.epoch, end.index))?;
        copy.output.flush()?;
        Ok(end)
    }
}

/// The record of an entry.
fn frame_of(item: &ScanItem) -> Result<Vec<u8>, EncodeError> {
    let (key, value) = (&item.key[..], item.value.as_deref().unwrap_or_default());
    let mut frame = Vec::new();
    match item.deadline {
        None => Request::Set { key, value }.encode(&mut frame)?,
        Some(deadline) => {
            let value = &SetAt { deadline, value }.encode();
            Request::SetAt { key, value }.encode(&mut frame)?;
        }
    }
    Ok(frame)
}

/// A snapshot that is being written.
struct Copy<'a> {
    output: BufWriter<&'a File>,
    bar: ProgressBar,
    sum: Sum,
    bytes: u64,
    started: Instant,
    /// Time that writing the output took.
    waited: Duration,
}

impl Copy<'_> {
    fn new(output: &File) -> Copy<'_> {
        Copy {
            output: BufWriter::with_capacity(GATHERED_BYTES, output),
            bar: ProgressBar::hidden(),
            sum: Sum::default(),
            bytes: 0,
            started: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    fn begin(&mut self, keys: u64, context: &Context) {
        self.bar = context.progress(Some(keys), PROGRESS);
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let begin = Instant::now();
        self.output.write_all(bytes)?;
        self.waited += begin.elapsed();
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bar.set_position(self.sum.frames);
        Ok(())
    }

    /// Writes the snapshot of a stream.
    fn stream(&mut self, watcher: &mut Watcher, context: &Context) -> Result<End, Fault> {
        loop {
            match watcher.receive().map_err(Fault::Node)? {
                Watched::SnapshotBegin { keys } => self.begin(keys, context),
                Watched::Snapshot(frames) => {
                    for frame in frames {
                        self.sum.add(frame.bytes());
                    }
                    self.put(frames.bytes())?;
                }
                Watched::SnapshotEnd { position, digest } => {
                    return Ok(End {
                        epoch: position.epoch,
                        index: position.index,
                        digest,
                    });
                }
                // Nothing else comes before the end of the snapshot.
                _ => {}
            }
        }
    }

    /// Writes all entries of a data directory, and an end mark. `name` is that of the output.
    fn directory(&mut self, dir: &Path, name: &str, context: &Context) -> Result<End, Failure> {
        let directory = data_dir::open_to_read(dir).map_err(offline::failure)?;
        let data = Data::of(&directory).map_err(offline::failure)?;
        let engine = &data.engine;
        if !data.is_there() {
            let message = format!("nothing to copy: {} has no data set", dir.display());
            return Err(Failure::new(Outcome::LocalInput, message));
        }
        self.begin(u64::try_from(engine.len()).unwrap_or(u64::MAX), context);
        let written = self.partitions(engine);
        written.map_err(|error| unfinished(name, &error))?;
        let head = engine.head();
        let epoch = engine.log().and_then(Log::last_epoch);
        let end = End {
            epoch: epoch.map_or(0, |start| start.epoch),
            index: head.index,
            digest: head.digest.to_u128(),
        };
        let mark = self.sum.end_mark(end.epoch, end.index);
        let ended = self.put(&mark).and_then(|()| self.output.flush());
        ended.map_err(|error| unfinished(name, &error))?;
        Ok(end)
    }

    /// Writes all entries of an engine that nothing changes.
    fn partitions(&mut self, engine: &Engine) -> io::Result<()> {
        let mut copied = PartitionCopy::default();
        for partition in 0..engine.partitions() {
            engine.copy_partition(partition, &mut copied);
            for frame in copied.frames() {
                self.sum.add(frame.bytes());
                self.put(frame.bytes())?;
            }
        }
        Ok(())
    }

    /// Writes every entry of a scan, as it is when it is read.
    fn entries(&mut self, client: &mut Client, context: &Context) -> Result<End, Fault> {
        let status = NodeStatus::parse(&client.status().map_err(Fault::Node)?);
        self.begin(status.keys.unwrap_or(0), context);
        let options = ScanOptions {
            values: true,
            ..ScanOptions::default()
        };
        for item in client.scan(options) {
            let frame = frame_of(&item.map_err(Fault::Node)?);
            let frame = frame.map_err(|error| Fault::Node(error.into()))?;
            self.sum.add(&frame);
            self.put(&frame)?;
        }
        Ok(End {
            epoch: 0,
            index: 0,
            digest: self.sum.digest,
        })
    }

    /// The failure of a snapshot that the node has ended. `before` is the node's status when it began.
    fn incomplete(
        &self,
        error: &Error,
        addr: &str,
        before: &NodeStatus,
        output: &Output,
        context: &Context,
    ) -> Failure {
        let next = match error {
            Error::Connection { .. } => self.why_lost(addr, before, output.name(), context),
            Error::Timeout { .. } => {
                "the node may be suspended; try again, or allow more with --timeout".to_owned()
            }
            _ => "try again".to_owned(),
        };
        let outcome = report::failure(error, Opcode::Status, None).outcome;
        let unfinished = output.unfinished();
        Failure::new(
            outcome,
            format!("{error}: the copy is not complete, {unfinished}; {next}"),
        )
    }

    /// Reason why the node has ended the stream, by its present status. The stream itself does not tell it.
    fn why_lost(&self, addr: &str, before: &NodeStatus, name: &str, context: &Context) -> String {
        let now = match status(addr, context) {
            Ok(now) => now,
            Err(error) => {
                return format!("the node gives no reason ({error}); try again once it serves");
            }
        };
        if now.state == Some(NodeState::Loading) {
            let reason = now.reason.unwrap_or_default();
            return format!("the node is loading: {reason}; try again once it serves");
        }
        let epochs = before.epoch.zip(now.epoch);
        let uptimes = before.uptime_ms.zip(now.uptime_ms);
        if epochs.is_some_and(|(before, now)| before != now)
            || uptimes.is_some_and(|(before, now)| now < before)
        {
            return "the node was restarted, or follows a leader that was; try again".to_owned();
        }
        let (index, first) = (before.index, now.backlog_first_index);
        let Some((index, first)) = index
            .zip(first)
            .filter(|(index, first)| *first > index.saturating_add(1))
        else {
            return "the node's log says why; try again".to_owned();
        };
        let took = copy_file::duration(self.started.elapsed());
        let waited = copy_file::duration(self.waited);
        format!(
            "the copy fell behind the node's log: it began at about index {index} and took {took}, {waited} of it to \
             write to {name}, and the log begins at index {first} now; read faster, dump into a file, or raise \
             backlog_bytes"
        )
    }
}
