//! `load`: writes all entries of a file of frames to a node.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    Client, arguments,
    client::{Error, Pipeline},
    wire::{Opcode, RequestFrame},
};
use indicatif::{HumanBytes, ProgressBar};
use parking_lot::Mutex;

use crate::{
    context::Context,
    copy_file::{self, Fault, Reader},
    quote,
    report::{self, Failure, Outcome},
    stop,
};

/// Most bytes and entries that are sent before their responses are checked. A single larger entry is sent alone.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ENTRIES: usize = 32 << 10;

/// Start of a node's ERROR to an entry that is too long. Source: docs/GBP.md, section 8.
const VALUE_TOO_LONG: &str = "value of ";

/// Write all entries of a file from dump, or of any sequence of SET, SETAT, DEL and EXPIRE frames.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "load", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} monday.gbp\n\
        zstd -dc monday.gbp.zst | {command_name} -",
    note = "The whole file is checked before the first entry is written, so a damaged or incomplete file\n\
        changes nothing. Standard input is checked while it is written. Keys that are not in the file\n\
        keep their values. Keys that expire do so at the time that the file has, at once if it has\n\
        passed. A failure names the byte to continue from: all entries before it are written, and\n\
        writing an entry twice does no harm. If the node refuses an entry because its value is too\n\
        long, that byte is behind the entry, so continuing there skips it.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Load {
    /// the file; - is standard input
    #[argh(positional, from_str_fn(arguments::path), arg_name = "file")]
    file: PathBuf,
    /// skip the entries before this byte of the file
    #[argh(option, from_str_fn(offset), arg_name = "OFFSET", default = "0")]
    from: u64,
    /// accept a file without the end mark of dump
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
        context,
    };
    if command.file.as_os_str() == "-" {
        return loading.load(&mut client, io::stdin().lock(), None);
    }
    let unreadable = |error| loading.nothing_written(&Fault::Read(error));
    let mut file = File::open(&command.file).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        // A named pipe can be read only once.
        return loading.load(&mut client, file, None);
    }
    loading.test(&file)?;
    // The same open file: its name may belong to another file by now.
    file.rewind().map_err(unreadable)?;
    loading.load(&mut client, file, Some(metadata.len()))
}

struct Loading<'a> {
    file: &'a Path,
    from: u64,
    needs_end_mark: bool,
    context: &'a Context,
}

/// Progress of a load: written entries, and the byte behind the last of them.
#[derive(Clone, Copy, Debug)]
struct Written {
    count: u64,
    to: u64,
}

impl Loading<'_> {
    /// Checks the file to its end, and writes nothing.
    fn test(&self, file: &File) -> Result<(), Failure> {
        let mut reader = Reader::new(file, self.needs_end_mark);
        let mut from = None;
        loop {
            let at = reader.offset();
            if at >= self.from {
                from.get_or_insert(at);
            }
            let next = reader.next();
            if next
                .map_err(|fault| self.nothing_written(&fault))?
                .is_none()
            {
                break;
            }
        }
        self.check_start(from)
    }

    /// Whether an entry begins at `--from`. `begins` is the first place at or behind it where one does.
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
        let bar = self.bar(len);
        let written = self.tell_when_stopped(&bar)?;
        let mut reader = Reader::new(input, self.needs_end_mark);
        let mut batch = Batch {
            pipeline: client.pipeline(),
            spans: Vec::new(),
            written: *written.lock(),
        };
        let mut has_begun = false;
        loop {
            let next = reader.next();
            if let Ok(Some((at, frame))) = &next {
                if *at < self.from {
                    continue;
                }
                if !has_begun {
                    self.check_start(Some(*at))?;
                    has_begun = true;
                }
                batch.push(*at, frame);
                if !batch.is_full() {
                    continue;
                }
            }
            // The entries before a fault are written first, so that the message can name the byte to continue from.
            let result = batch.run();
            *written.lock() = batch.written;
            if result.is_err() || !matches!(next, Ok(Some(_))) {
                bar.finish_and_clear();
            }
            result.map_err(|refused| self.stopped(&refused, batch.written))?;
            match next {
                Ok(Some(_)) => bar.set_position(batch.written.to),
                Ok(None) => break,
                Err(fault) if batch.written.count == 0 => return Err(self.nothing_written(&fault)),
                Err(fault) => {
                    let count = written_entries(batch.written.count);
                    let message = format!("{} {fault}; before that, {count}", self.name());
                    return Err(Failure::new(Outcome::LocalInput, message));
                }
            }
        }
        if !has_begun && self.from > reader.offset() {
            self.check_start(None)?;
        }
        if io::stderr().is_terminal() {
            let _ = writeln!(
                io::stderr(),
                "{} in {}, {} of file",
                copy_file::entries(batch.written.count),
                copy_file::duration(started.elapsed()),
                HumanBytes(reader.offset().saturating_sub(self.from))
            );
        }
        Ok(Outcome::Done)
    }

    /// Has a signal that ends the program print first where to continue: at the returned offset, which the caller
    /// updates. Entries behind it that have been sent may be written too.
    fn tell_when_stopped(&self, bar: &ProgressBar) -> Result<Arc<Mutex<Written>>, Failure> {
        let written = Arc::new(Mutex::new(Written {
            count: 0,
            to: self.from,
        }));
        let (shared, bar, again) = (Arc::clone(&written), bar.clone(), self.again());
        stop::before_end(move || {
            let written = *shared.lock();
            bar.finish_and_clear();
            let message = format!("interrupted; {}", go_on(&again, written));
            Failure::new(Outcome::Done, message).print(None);
        })
        .map_err(|error| {
            let message = format!("cannot handle signals: {error}; try again");
            Failure::new(Outcome::LocalInput, message)
        })?;
        Ok(written)
    }

    fn name(&self) -> String {
        if self.file.as_os_str() == "-" {
            return "standard input".to_owned();
        }
        self.file.display().to_string()
    }

    /// The failure when nothing was written.
    fn nothing_written(&self, fault: &Fault) -> Failure {
        let message = format!("{} {fault}; nothing was written", self.name());
        Failure::new(Outcome::LocalInput, message)
    }

    /// The failure when the node refused an entry.
    fn stopped(&self, refused: &Refused, written: Written) -> Failure {
        let (error, again) = (&refused.error, self.again());
        let node = self.context.node.as_deref();
        let outcome = report::failure(error, Opcode::Status, node).outcome;
        let message = match error {
            Error::Server { message } if message.starts_with(VALUE_TOO_LONG) => format!(
                "the entry at byte {} is refused: {message}; {} before it; go on without it with: {again} --from {}",
                refused.at,
                written_entries(written.count),
                refused.end
            ),
            _ => format!("{error}; {}", go_on(&again, written)),
        };
        Failure::new(outcome, message)
    }

    /// The command line to continue with, without the offset.
    fn again(&self) -> String {
        format!(
            "gopherstore-cli {}load {}{}",
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
                "{percent:>3}%  {binary_bytes} of {binary_total_bytes}, {byte_rate}, {left} left"
            }
            None => "{binary_bytes}, {byte_rate}",
        };
        self.context.progress(len, template)
    }
}

fn go_on(again: &str, written: Written) -> String {
    format!(
        "{}; go on with: {again} --from {}",
        written_entries(written.count),
        written.to
    )
}

fn written_entries(count: u64) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb} written", copy_file::entries(count))
}

/// Entries that are sent together.
struct Batch<'a> {
    pipeline: Pipeline<'a>,
    /// Start and end of each of them in the file.
    spans: Vec<(u64, u64)>,
    /// Offset in the file before which every entry is written.
    written: Written,
}

/// The first entry that was not written.
struct Refused {
    at: u64,
    end: u64,
    error: Error,
}

impl Batch<'_> {
    fn push(&mut self, at: u64, frame: &RequestFrame<'_>) {
        self.pipeline.request(&frame.request());
        let len = u64::try_from(frame.bytes().len()).unwrap_or(u64::MAX);
        self.spans.push((at, at.saturating_add(len)));
    }

    fn is_full(&self) -> bool {
        let (Some((first, _)), Some((last, _))) = (self.spans.first(), self.spans.last()) else {
            return false;
        };
        self.spans.len() >= BATCH_ENTRIES || last - first >= BATCH_BYTES
    }

    /// Writes the entries, up to the first one that fails.
    fn run(&mut self) -> Result<(), Refused> {
        if self.spans.is_empty() {
            return Ok(());
        }
        let (responses, fault) = match self.pipeline.run() {
            Ok(responses) => (responses, None),
            Err(fault) => (fault.responses, Some(fault.error)),
        };
        let spans = std::mem::take(&mut self.spans);
        // The first missing response belongs to the entry that failed.
        let responses = responses.into_iter().chain(fault.map(Err));
        for ((at, end), response) in spans.into_iter().zip(responses) {
            // NOT_FOUND to a DEL or EXPIRE is a success.
            if let Err(error) = response {
                return Err(Refused { at, end, error });
            }
            self.written.count += 1;
            self.written.to = end;
        }
        Ok(())
    }
}
