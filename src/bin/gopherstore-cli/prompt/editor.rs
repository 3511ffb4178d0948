//! The source of the prompt's lines: an editor with history, completion and hints; or the terminal's own line, if the
//! terminal has no cursor or the output goes elsewhere.

use std::{
    borrow::Cow,
    env,
    fs::DirBuilder,
    io::{self, BufRead, IsTerminal, Write},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::getpgrp,
    termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr},
};
use rustyline::{
    CompletionType, Config, Context, Editor, Helper,
    completion::{Completer, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::{Hint, Hinter},
    history::FileHistory,
    validate::Validator,
};
use signal_hook::consts::SIGINT;

use crate::{
    lines,
    report::{Failure, Outcome, note},
    stop,
};

use super::line;

/// Most lines of the history.
const HISTORY_LINES_MAX: usize = 1000;
/// Longest line of the history in bytes, since values of megabytes can be pasted.
const HISTORY_LINE_LEN_MAX: usize = 4096;
/// Width of a terminal that does not report it.
const COLUMNS_DEFAULT: usize = 80;
/// Ends bracketed paste, which the editor starts. Source: xterm's control sequences, DECRST 2004.
const PASTE_OFF: &[u8] = b"\x1b[?2004l\n";
/// Fewest columns for the line; with fewer, the short prompt is used.
const LINE_COLUMNS_MIN: usize = 12;

/// Input from the keyboard.
#[derive(Debug)]
pub(super) enum Input {
    Line(Vec<u8>),
    /// Ctrl-C: the typed line is abandoned.
    Abandoned,
    /// Ctrl-D.
    End,
}

pub(super) enum Reader {
    Edited(Box<Editing>),
    Plain(Plain),
}

impl Reader {
    /// The editor, if the terminal supports it.
    pub(super) fn new() -> Reader {
        // A terminal without a name is unknown; `dumb` and these two have no cursor.
        let term = env::var("TERM").unwrap_or_default().to_ascii_lowercase();
        let is_dumb = matches!(&*term, "" | "dumb" | "cons25" | "emacs");
        if is_dumb || !io::stdout().is_terminal() {
            return Reader::Plain(Plain::new());
        }
        Editing::new().map_or_else(
            |error| {
                note(&format!("no line editing: {error}"));
                Reader::Plain(Plain::new())
            },
            |editing| Reader::Edited(Box::new(editing)),
        )
    }

    /// Names of nodes for completion.
    pub(super) fn set_nodes(&mut self, nodes: Vec<String>) {
        if let Reader::Edited(editing) = self
            && let Some(help) = editing.editor.helper_mut()
        {
            help.nodes = nodes;
        }
    }

    pub(super) fn columns(&mut self) -> usize {
        match self {
            Reader::Edited(editing) => editing.columns(),
            Reader::Plain(_) => COLUMNS_DEFAULT,
        }
    }

    /// Reads a line with `prompt`, or with `short` on a narrow terminal.
    pub(super) fn read(&mut self, prompt: &str, short: &str) -> Result<Input, Failure> {
        match self {
            Reader::Edited(editing) => {
                let width = prompt.chars().count();
                let fits = width + LINE_COLUMNS_MIN <= editing.columns();
                editing.read(if fits { prompt } else { short })
            }
            Reader::Plain(plain) => plain.read(prompt),
        }
    }
}

/// The editor.
pub(super) struct Editing {
    editor: Editor<LineHelper, FileHistory>,
    /// `None` if it cannot be kept.
    history: Option<PathBuf>,
}

impl Editing {
    fn new() -> Result<Editing, ReadlineError> {
        restore_terminal_before_end()?;
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(LineHelper::default()));
        let mut editing = Editing {
            editor,
            history: None,
        };
        match history_file() {
            Ok(path) => match editing.editor.load_history(&path) {
                Err(error) if !is_not_found(&error) => editing.forget(&path, &error),
                _ => editing.history = Some(path),
            },
            Err(why) => note(&format!("the history ends with this session: {why}")),
        }
        Ok(editing)
    }

    fn columns(&mut self) -> usize {
        match self.editor.dimensions() {
            Some((columns, _)) if columns > 0 => columns.into(),
            _ => COLUMNS_DEFAULT,
        }
    }

    fn read(&mut self, prompt: &str) -> Result<Input, Failure> {
        match self.editor.readline(prompt) {
            Ok(line) => {
                self.remember(&line);
                Ok(Input::Line(line.into_bytes()))
            }
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(ReadlineError::Interrupted) => Ok(Input::Abandoned),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                note(
                    "what was typed is not UTF-8, so the line is dropped; write such bytes as \"\\xHH\"",
                );
                Ok(Input::Abandoned)
            }
            Err(ReadlineError::Io(error)) => Err(lines::unreadable(&error)),
            Err(error) => Err(Failure::new(
                Outcome::LocalInput,
                format!("cannot read from the terminal: {error}; TERM=dumb may do"),
            )),
        }
    }

    /// Appends a line to the file at once: other sessions append too, and this one may be killed.
    fn remember(&mut self, line: &str) {
        if line.len() > HISTORY_LINE_LEN_MAX || line.trim().is_empty() {
            return;
        }
        let added = self.editor.add_history_entry(line);
        let Some(path) = self.history.take() else {
            return;
        };
        match added.and_then(|_| self.editor.append_history(&path)) {
            Ok(()) => self.history = Some(path),
            Err(error) => self.forget(&path, &error),
        }
    }

    /// Reports once that the history is not kept.
    fn forget(&mut self, path: &std::path::Path, error: &ReadlineError) {
        self.history = None;
        note(&format!(
            "the history ends with this session: {}: {error}",
            path.display()
        ));
    }
}

/// Has a signal that ends the program restore the terminal to its present settings. While a line is edited, the
/// terminal does not echo, and the editor handles SIGINT.
fn restore_terminal_before_end() -> io::Result<()> {
    let settings = tcgetattr(io::stdin())?;
    stop::before_end(move || {
        // Changing the terminal stops a program in the background; the terminal is the shell's then.
        if tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp()) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &settings);
            if is_writable(&io::stdout()) {
                let _ = rustix::io::write(io::stdout(), PASTE_OFF);
            }
        }
    })
}

/// Whether a write returns at once. A write to a stopped terminal does not.
fn is_writable(out: &io::Stdout) -> bool {
    let mut polled = [PollFd::new(out, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().contains(PollFlags::OUT)
}

fn is_not_found(error: &ReadlineError) -> bool {
    matches!(error, ReadlineError::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// The file of the history; its folder is created. Source: XDG Base Directory Specification, `XDG_STATE_HOME`.
fn history_file() -> Result<PathBuf, String> {
    let absolute = |name: &str| {
        let path = env::var_os(name).map(PathBuf::from);
        // A relative path is to be ignored.
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .ok_or("neither XDG_STATE_HOME nor HOME names a folder")?;
    let folder = state.join("gopherstore");
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder);
    made.map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder.join("history"))
}

/// Completion and hints.
#[derive(Default)]
struct LineHelper {
    nodes: Vec<String>,
}

/// A hint with the missing operands. It completes to nothing.
struct Operands(String);

impl Hint for Operands {
    fn display(&self) -> &str {
        &self.0
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for LineHelper {
    type Hint = Operands;

    fn hint(&self, line: &str, pos: usize, _: &Context<'_>) -> Option<Operands> {
        (pos == line.len()).then(|| line::hint(line).map(Operands))?
    }
}

impl Completer for LineHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = line::completions(line.get(..pos).unwrap_or_default(), &self.nodes);
        let pair = |word: String| Pair {
            display: word.trim_end().to_owned(),
            replacement: word,
        };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

/// Only called where colours are allowed: on a terminal without NO_COLOR.
impl Highlighter for LineHelper {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[90m{hint}\x1b[0m")) // bright black, which is grey
    }
}

impl Validator for LineHelper {}

impl Helper for LineHelper {}

/// The terminal's own line.
pub(super) struct Plain {
    /// The prompt while a line is read, for the handler of Ctrl-C.
    awaited: Arc<Mutex<Option<String>>>,
}

impl Plain {
    fn new() -> Plain {
        let awaited = Arc::new(Mutex::new(None::<String>));
        let handled = Arc::clone(&awaited);
        // Without this thread, Ctrl-C ends the program.
        let _ = stop::on_each(&[SIGINT], move |signal| match &*handled.lock() {
            // The terminal has discarded the typed line.
            Some(prompt) => show(&format!("\n{prompt}")),
            // A command is running, which Ctrl-C ends.
            None => stop::end_by(signal),
        });
        Plain { awaited }
    }

    fn read(&self, prompt: &str) -> Result<Input, Failure> {
        // Before the user can press Ctrl-C.
        *self.awaited.lock() = Some(prompt.to_owned());
        // Like a shell, since standard output is for responses.
        show(prompt);
        let mut line = Vec::new();
        let read = io::stdin().lock().read_until(b'\n', &mut line);
        *self.awaited.lock() = None;
        match read {
            Ok(0) => {
                show("\n");
                Ok(Input::End)
            }
            Ok(_) => Ok(Input::Line(line)),
            Err(error) => Err(lines::unreadable(&error)),
        }
    }
}

/// A failure of that cannot be reported.
fn show(text: &str) {
    let mut out = io::stderr();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
