//! The server's log: a bounded queue between the threads that log and the thread that writes to standard error.
//!
//! Standard error may be a pipe that is not read, a terminal held by Ctrl-S, or a file on a full disk. A thread that
//! logs copies its line into the queue and never waits for a reader. When the queue is full, new lines are dropped and
//! counted; the writer reports the count in a line of its own as soon as standard error takes bytes again.
//!
//! | thread | one per | owns                                | blocks on              | ends             |
//! |--------|---------|-------------------------------------|------------------------|------------------|
//! | log    | process | the writing end of standard error   | the queue, write       | with the process |
//!
//! # Known limits
//!
//! * A message that the standard library itself prints as it aborts the process ("memory allocation failed", a stack
//!   overflow) goes to standard error directly.
//! * `SIGKILL`, an abort and a second signal lose the lines that are in the queue.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use std::{env, process, thread};

use env_logger::{Target, WriteStyle};
use log::{Level, LevelFilter};
use parking_lot::{Condvar, Mutex};

use crate::service;

const RUST_LOG: &str = "RUST_LOG";
const RUST_LOG_STYLE: &str = "RUST_LOG_STYLE";

/// The filter where `$RUST_LOG` sets none.
const FILTER_DEFAULT: &str = "info";

/// Bytes of lines that wait for the writer, at most. The writer holds as many again.
const QUEUE_BYTES_MAX: usize = 256 << 10;

/// Most bytes in one write, unless a line is longer. A pipe takes this many as a whole (`PIPE_BUF`), so lines of
/// several processes that share it are not mixed.
const WRITE_BYTES_MAX: usize = 4_096;

/// Pause before a write is tried again on a descriptor that another process made non-blocking.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Longest time that the end of the process waits for the log to be written.
pub const END_PATIENCE: Duration = Duration::from_secs(1);

/// The log of the process. All clones and the logger of the `log` macros share one queue.
#[derive(Clone, Debug)]
pub struct Log {
    queue: Arc<Queue>,
}

impl Log {
    /// Installs the logger that `$RUST_LOG` and `$RUST_LOG_STYLE` describe, starts its writer, and has a panic abort
    /// the process with a message in the log. A variable that cannot be parsed is reported in the log, and the default
    /// applies.
    ///
    /// # Errors
    ///
    /// When no thread can be started, or the process has a logger already.
    pub fn start() -> io::Result<Log> {
        let queue = Arc::new(Queue::default());
        let log = Log {
            queue: Arc::clone(&queue),
        };
        let is_journal = service::is_journal(io::stderr());
        let writer = Writer::new(queue, io::stderr(), is_journal);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())?;
        let remarks = log.install(is_journal).map_err(io::Error::other)?;
        for remark in remarks {
            log.say(&line(is_journal, Level::Warn, &remark));
        }
        let hook = log.clone();
        panic::set_hook(Box::new(move |panic| {
            hook.say(&panic_message(is_journal, panic));
            hook.end(Instant::now() + END_PATIENCE);
            process::abort();
        }));
        Ok(log)
    }

    /// Makes the `log` macros use the queue, and returns faults of the environment.
    fn install(&self, is_journal: bool) -> Result<Vec<String>, log::SetLoggerError> {
        let filter = Choice::of_filter(env::var_os(RUST_LOG));
        let (style, style_remark) = style(env::var_os(RUST_LOG_STYLE));
        let mut builder = env_logger::Builder::new();
        builder
            .parse_filters(&filter.value)
            .write_style(style)
            .target(Target::Pipe(Box::new(Sink(Arc::clone(&self.queue)))));
        if is_journal {
            builder.format(|out, record| {
                let line = service::prefixed(record.level(), &record.args().to_string());
                out.write_all(line.as_bytes())
            });
        }
        builder.try_init()?;
        Ok(filter.remark.into_iter().chain(style_remark).collect())
    }

    /// Writes a text, regardless of filters and the limit of the queue. Returns at once.
    pub fn say(&self, text: &str) {
        self.queue.push(text.as_bytes());
    }

    /// Waits until everything is written, at most until the given time.
    pub fn end(&self, until: Instant) {
        self.queue.wait_until_written(until);
    }
}

/// A line as the logger writes it, without its colours.
fn line(is_journal: bool, level: Level, text: &str) -> String {
    if is_journal {
        service::prefixed(level, text)
    } else {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        format!("[{time} {level:<5} {}] {text}\n", module_path!())
    }
}

/// The standard library's message of a panic; for the journal each line is critical.
fn panic_message(is_journal: bool, panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    let trace = match backtrace.status() {
        BacktraceStatus::Captured => backtrace.to_string(),
        _ => "note: RUST_BACKTRACE=1 in the environment adds a backtrace\n".to_owned(),
    };
    let text = format!("thread '{name}' {panic}\n{trace}");
    if is_journal {
        let lines = text.lines().map(|line| format!("<2>{line}\n"));
        lines.collect()
    } else {
        text
    }
}

/// A setting from the environment, and its faults.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    value: Cow<'static, str>,
    remark: Option<String>,
}

impl Choice {
    fn of_filter(value: Option<OsString>) -> Choice {
        let default = Cow::Borrowed(FILTER_DEFAULT);
        let Some(value) = value else {
            return Choice {
                value: default,
                remark: None,
            };
        };
        let judged = value.to_str().ok_or("it is not UTF-8".to_owned());
        match judged.and_then(|text| Ok((text.to_owned(), judge_filter(text)?))) {
            Ok((_, Scope::Empty)) => Choice {
                value: default,
                remark: None,
            },
            Ok((text, scope)) => {
                let remark = (scope == Scope::Modules)
                    .then(|| format!("{RUST_LOG}={text}: nothing but what it names is logged"));
                Choice {
                    value: text.into(),
                    remark,
                }
            }
            Err(fault) => {
                let remark = format!(
                    "{}: {fault}; using {FILTER_DEFAULT}. Write a level (off, error, warn, info, debug, trace), or \
                     MODULE=LEVEL, with commas between them",
                    shown(RUST_LOG, &value)
                );
                Choice {
                    value: default,
                    remark: Some(remark),
                }
            }
        }
    }
}

/// The lines that a filter passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// None, since the filter is empty.
    Empty,
    /// Lines of some modules.
    Modules,
    /// Lines of all modules.
    All,
}

/// Checks a filter by env_logger's grammar, `directive,…/text`. env_logger takes an unknown word for the name of a
/// module, and then logs nothing.
fn judge_filter(filter: &str) -> Result<Scope, String> {
    let (directives, text) = filter.split_once('/').unwrap_or((filter, ""));
    if text.contains('/') {
        return Err("it has more than one '/'".to_owned());
    }
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let mut scope = Scope::Empty;
    let mut others = None;
    for directive in directives.split(',').map(str::trim) {
        let (module, level) = match directive.split_once('=') {
            _ if directive.is_empty() => continue,
            Some((module, level)) => (module, Some(level.trim())),
            None if is_level(directive) => ("", None),
            None if is_own(directive) => (directive, None),
            None => {
                return Err(format!(
                    "{directive:?} is neither a level nor a module of this program"
                ));
            }
        };
        if let Some(level) = level.filter(|level| !level.is_empty() && !is_level(level)) {
            return Err(format!("{level:?} is no level"));
        }
        if "gopherstore".starts_with(module) {
            scope = Scope::All;
        } else if !is_own(module) {
            others = Some(module);
        } else if scope == Scope::Empty {
            scope = Scope::Modules;
        }
    }
    match others {
        Some(module) if scope == Scope::Empty => {
            Err(format!("{module:?} is no module of this program"))
        }
        _ => Ok(scope),
    }
}

/// Whether lines of this library or the server can come from a module of this name, or one that begins so.
fn is_own(module: &str) -> bool {
    "gopherstore_server".starts_with(module) || module.starts_with("gopherstore::")
}

/// Whether lines have colours, and faults of the setting.
fn style(value: Option<OsString>) -> (WriteStyle, Option<String>) {
    let value = value.unwrap_or_default();
    let remark = match value.to_str() {
        Some("always") => return (WriteStyle::Always, None),
        Some("never") => return (WriteStyle::Never, None),
        Some("auto" | "") => None,
        _ => Some(format!(
            "{}: write auto, always or never; using auto",
            shown(RUST_LOG_STYLE, &value)
        )),
    };
    // The logger does not write to standard error itself, so it cannot look.
    let style = match anstream::AutoStream::choice(&io::stderr()) {
        anstream::ColorChoice::Never => WriteStyle::Never,
        _ => WriteStyle::Always,
    };
    (style, remark)
}

/// The value of a variable, on one line.
fn shown(name: &str, value: &OsStr) -> String {
    format!("{name}={}", value.as_encoded_bytes().escape_ascii())
}

/// The queue of lines for the writer.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines, one behind the other.
    lines: Vec<u8>,
    /// Lines that came after these and found no room.
    dropped: u64,
    /// The writer holds lines that are not written yet.
    is_writing: bool,
}

impl Queue {
    /// Adds a line if there is room, and else counts it as dropped.
    fn offer(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let has_room = state.lines.len().saturating_add(line.len()) <= QUEUE_BYTES_MAX;
        // Once a line is dropped, shorter ones are too, so that the count is written where the lines are missing.
        if has_room && state.dropped == 0 {
            state.lines.extend_from_slice(line);
        } else {
            state.dropped += 1;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Adds lines, regardless of the limit.
    fn push(&self, lines: &[u8]) {
        self.state.lock().lines.extend_from_slice(lines);
        self.changed.notify_all();
    }

    /// Waits for lines, and takes them and the number of those that were dropped behind them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut state = self.state.lock();
        state.is_writing = false;
        self.changed.notify_all();
        while state.lines.is_empty() && state.dropped == 0 {
            self.changed.wait(&mut state);
        }
        state.is_writing = true;
        (
            std::mem::take(&mut state.lines),
            std::mem::take(&mut state.dropped),
        )
    }

    fn wait_until_written(&self, until: Instant) {
        let mut state = self.state.lock();
        while state.is_writing || !state.lines.is_empty() || state.dropped > 0 {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

/// The target of env_logger, which writes one whole record at a time.
struct Sink(Arc<Queue>);

impl Write for Sink {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.offer(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes.
struct Writer<W> {
    queue: Arc<Queue>,
    out: W,
    is_journal: bool,
    /// Lines that were dropped or could not be written since the last report of such.
    lost: u64,
    /// The last write failed within a line.
    is_in_line: bool,
}

impl<W: Write> Writer<W> {
    fn new(queue: Arc<Queue>, out: W, is_journal: bool) -> Writer<W> {
        Writer {
            queue,
            out,
            is_journal,
            lost: 0,
            is_in_line: false,
        }
    }

    fn run(mut self) {
        loop {
            let (lines, dropped) = self.queue.take();
            self.write(&lines);
            self.lost += dropped;
            self.report();
        }
    }

    /// Writes lines; those that cannot be written are lost.
    fn write(&mut self, lines: &[u8]) {
        self.report();
        let mut rest = lines;
        while self.lost == 0 && !rest.is_empty() {
            let (piece, behind) = rest.split_at(piece_len(rest));
            let unwritten = self.put(piece);
            self.lost += count_lines(unwritten);
            rest = behind;
        }
        self.lost += count_lines(rest);
    }

    /// Reports how many lines are lost, if any are.
    fn report(&mut self) {
        if self.lost == 0 {
            return;
        }
        let lines = if self.lost == 1 { "line" } else { "lines" };
        let text = format!(
            "{} {lines} dropped: the log could not be written as fast as it grew, or not at all",
            self.lost
        );
        let report = line(self.is_journal, Level::Warn, &text);
        if self.put(report.as_bytes()).is_empty() {
            self.lost = 0;
        }
    }

    /// Writes whole lines, and returns what could not be written.
    ///
    /// The descriptor may not block: it can be one open file with another process, which set that.
    fn put<'a>(&mut self, lines: &'a [u8]) -> &'a [u8] {
        if self.is_in_line {
            self.is_in_line = self.out.write(b"\n").is_err();
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(len) => {
                    let (written, behind) = rest.split_at(len.min(rest.len()));
                    self.is_in_line = !written.ends_with(b"\n");
                    rest = behind;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(RETRY_PAUSE);
                }
                Err(_) => break,
            }
        }
        rest
    }
}

/// As many whole lines as one write takes, or one line.
fn piece_len(lines: &[u8]) -> usize {
    let end = |bytes: &[u8]| bytes.iter().rposition(|&byte| byte == b'\n');
    let first = lines.get(..WRITE_BYTES_MAX).and_then(end);
    let first = first.or_else(|| lines.iter().position(|&byte| byte == b'\n'));
    match first {
        Some(at) if lines.len() > WRITE_BYTES_MAX => at + 1,
        _ => lines.len(),
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().map(|&byte| u64::from(byte == b'\n')).sum()
}

#[cfg(test)]
mod tests;
