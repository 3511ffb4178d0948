//! `load`: writes all that a file of frames holds.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    Client, arguments,
    client::{Error, Pipeline},
    wire::Request,
};
use indicatif::{HumanBytes, ProgressBar};
use signal_hook::{consts::SIGINT, flag};

use crate::{
    command::Command,
    context::Context,
    copy_file::{self, Fault, Reader},
    quote,
    report::{self, Failure, Outcome},
};

/// What is sent before its answers are judged, in bytes but for a single larger entry, and in entries.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ENTRIES: usize = 32 << 10;

/// The shell's exit code for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Write all entries of a file that dump made, or of any sequence of SET and DEL frames.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "load", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} monday.gbp\n\
        zstd -dc monday.gbp.zst | {command_name} -",
    note = "A file is judged whole before its first entry is written: one that is cut off or damaged\n\
        changes nothing. Of standard input that shows only at its end. What was there before under\n\
        other keys stays. Where it fails, it says from which byte to go on: all entries before that\n\
        are written, and to write one twice does no harm.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Load {
    /// the file; - is standard input
    #[argh(positional, from_str_fn(arguments::path), arg_name = "file")]
    file: PathBuf,
    /// begin with the entry at this byte of the file; those before it are not written
    #[argh(option, from_str_fn(offset), arg_name = "OFFSET", default = "0")]
    from: u64,
    /// take a file that ends without the end mark of dump
    #[argh(switch)]
    no_end_mark: bool,
}

fn offset(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 0, u64::MAX)
}

pub(crate) fn run(command: Load, context: &Context) -> Result<Outcome, Failure> {
    let mut client = context.client()?;
    let loading = Loading {
        file: &command.file,
        from: command.from,
        needs_end_mark: !command.no_end_mark,
        has_tested: command.file.as_os_str() != "-",
        context,
    };
    if !loading.has_tested {
        return loading.load(&mut client, io::stdin().lock(), None);
    }
    let unreadable = |error| loading.fault(&Fault::Read(error));
    let file = File::open(&command.file).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        // A pipe with a name can be read once only.
        let loading = Loading {
            has_tested: false,
            ..loading
        };
        return loading.load(&mut client, file, None);
    }
    loading.test(file)?;
    let file = File::open(&command.file).map_err(unreadable)?;
    loading.load(&mut client, file, Some(metadata.len()))
}

struct Loading<'a> {
    file: &'a Path,
    from: u64,
    needs_end_mark: bool,
    /// The file was read to its end before.
    has_tested: bool,
    context: &'a Context,
}

impl Loading<'_> {
    /// Reads the file to its end, and writes nothing.
    fn test(&self, file: File) -> Result<(), Failure> {
        let mut reader = Reader::new(file, self.needs_end_mark);
        let mut from = None;
        loop {
            let at = reader.offset();
            if at >= self.from {
                from.get_or_insert(at);
            }
            if reader.next().map_err(|fault| self.fault(&fault))?.is_none() {
                break;
            }
        }
        self.check_start(from)
    }

    /// Whether `--from` is where an entry begins, given the first place at or behind it where one does.
    fn check_start(&self, next: Option<u64>) -> Result<(), Failure> {
        let message = match next {
            Some(next) if next == self.from => return Ok(()),
            Some(next) => format!(
                "--from {}: no entry of {} begins at that byte; the next one begins at {next}",
                self.from,
                self.name()
            ),
            None => format!("--from {}: {} is shorter", self.from, self.name()),
        };
        Err(Failure::new(Outcome::Usage, message))
    }

    fn load(
        &self,
        client: &mut Client,
        input: impl Read,
        len: Option<u64>,
    ) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let stop = interrupted();
        let bar = self.bar(len);
        let mut reader = Reader::new(input, self.needs_end_mark);
        let mut batch = Batch {
            pipeline: client.pipeline(),
            starts: Vec::new(),
            loaded: 0,
        };
        let mut has_begun = false;
        loop {
            let next = reader.next();
            let is_full = match &next {
                Ok(Some((at, _))) if *at < self.from => continue,
                Ok(Some((at, frame))) => {
                    if !has_begun {
                        self.check_start(Some(*at))?;
                        has_begun = true;
                    }
                    batch.push(*at, &frame.request());
                    batch.is_full(*at)
                }
                _ => true,
            };
            if !is_full {
                continue;
            }
            // Before a fault is told of, what stands before it is written, so that it can be said what is.
            batch.run().map_err(|(at, error)| {
                bar.finish_and_clear();
                self.stopped(at, batch.loaded, &error)
            })?;
            match next {
                Ok(Some((at, _))) => bar.set_position(at),
                Ok(None) => break,
                Err(fault) => {
                    bar.finish_and_clear();
                    let mut failure = self.fault(&fault);
                    let before = match batch.loaded {
                        // Said already of a file that was read to its end before.
                        0 if self.has_tested => String::new(),
                        0 => "; nothing was written".to_owned(),
                        loaded => format!("; before that, {} written", written(loaded)),
                    };
                    failure.message += &before;
                    return Err(failure);
                }
            }
            if stop.load(Ordering::SeqCst) {
                bar.finish_and_clear();
                let at = reader.offset();
                Failure::new(
                    Outcome::Done,
                    format!("interrupted; {}", self.go_on(at, batch.loaded)),
                )
                .print(None);
                process::exit(INTERRUPTED);
            }
        }
        bar.finish_and_clear();
        if !has_begun && self.from > reader.offset() {
            return Err(self.check_start(None).err().unwrap_or_else(|| {
                Failure::new(Outcome::Usage, format!("{} is shorter", self.name()))
            }));
        }
        if io::stderr().is_terminal() {
            let seconds = started.elapsed().as_secs_f64();
            let _ = writeln!(
                io::stderr(),
                "{}, {} in {seconds:.1} s",
                copy_file::entries(batch.loaded),
                HumanBytes(reader.offset() - self.from)
            );
        }
        Ok(Outcome::Done)
    }

    fn name(&self) -> String {
        if self.file.as_os_str() == "-" {
            return "standard input".to_owned();
        }
        self.file.display().to_string()
    }

    fn fault(&self, fault: &Fault) -> Failure {
        let nothing = if self.has_tested {
            "; nothing was written"
        } else {
            ""
        };
        Failure::new(
            Outcome::LocalInput,
            format!("{} {fault}{nothing}", self.name()),
        )
    }

    /// The node did not take the entry at this byte.
    fn stopped(&self, at: u64, loaded: u64, error: &Error) -> Failure {
        let node = self.context.node.as_deref();
        let outcome = report::failure(error, &Command::Status, node).outcome;
        Failure::new(outcome, format!("{error}; {}", self.go_on(at, loaded)))
    }

    fn go_on(&self, at: u64, loaded: u64) -> String {
        format!(
            "{} written; go on with: gopherstore-cli {}load {}{} --from {at}",
            written(loaded),
            self.context.place(),
            quote::shell_word(self.file.as_os_str().as_encoded_bytes()),
            if self.needs_end_mark {
                ""
            } else {
                " --no-end-mark"
            },
        )
    }

    fn bar(&self, len: Option<u64>) -> ProgressBar {
        let template = match len {
            Some(_) => {
                "{percent:>3}%  {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
            }
            None => "{binary_bytes}, {binary_bytes_per_sec}",
        };
        self.context.progress(len, template)
    }
}

fn written(count: u64) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", copy_file::entries(count))
}

/// Becomes true at the first Ctrl-C; the second ends the program where it is.
fn interrupted() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    // Without them Ctrl-C just ends the program.
    let _ = flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&stop));
    let _ = flag::register(SIGINT, Arc::clone(&stop));
    stop
}

/// Entries that are sent together.
struct Batch<'a> {
    pipeline: Pipeline<'a>,
    /// Where each of them begins.
    starts: Vec<u64>,
    /// Entries of earlier batches, and of this one those that were written.
    loaded: u64,
}

impl Batch<'_> {
    fn push(&mut self, at: u64, request: &Request<'_>) {
        match request {
            Request::Set { key, value } => self.pipeline.set(key, value),
            request => self.pipeline.del(request.key()),
        };
        self.starts.push(at);
    }

    fn is_full(&self, at: u64) -> bool {
        let first = self.starts.first().copied().unwrap_or(at);
        self.starts.len() >= BATCH_ENTRIES || at - first >= BATCH_BYTES
    }

    /// Writes them. Where one is not written, where it begins and why; all before it are.
    fn run(&mut self) -> Result<(), (u64, Error)> {
        if self.starts.is_empty() {
            return Ok(());
        }
        let (answers, fault) = match self.pipeline.run() {
            Ok(answers) => (answers, None),
            Err(fault) => (fault.answers, Some(fault.error)),
        };
        let mut starts = std::mem::take(&mut self.starts).into_iter();
        for answer in answers {
            let start = starts.next();
            match (answer, start) {
                // A DEL of a key that is not there is as good as one of a key that is.
                (Ok(_), _) => self.loaded += 1,
                (Err(error), Some(at)) => return Err((at, error)),
                (Err(_), None) => {}
            }
        }
        match (fault, starts.next()) {
            (Some(error), Some(at)) => Err((at, error)),
            _ => Ok(()),
        }
    }
}
