//! Where the prompt's lines come from: an editor with history, completion and hints, or on a terminal that can do no
//! more, or whose output goes elsewhere, the terminal's own line.

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

/// Lines that the history keeps.
const HISTORY_LINES_MAX: usize = 1000;
/// A longer line is not kept: values of megabytes can be pasted.
const HISTORY_LINE_LEN_MAX: usize = 4096;
/// Of a terminal that does not say.
const COLUMNS_DEFAULT: usize = 80;
/// Ends bracketed paste, which the editor begins. Source: xterm's control sequences, DECRST 2004.
const PASTE_OFF: &[u8] = b"\x1b[?2004l\n";
/// Columns that the prompt leaves for the line, or else it becomes short.
const LINE_COLUMNS_MIN: usize = 12;

/// Input from the keyboard.
#[derive(Debug)]
pub(super) enum Input {
    Line(Vec<u8>),
    /// Ctrl-C: what was typed is of no interest any more.
    Abandoned,
    /// Ctrl-D.
    End,
}

pub(super) enum Reader {
    Edited(Box<Editing>),
    Plain(Plain),
}

impl Reader {
    /// The editor, where the terminal is up to it.
    pub(super) fn new() -> Reader {
        // Without a name nothing is known of the terminal; `dumb` and these two know no cursor.
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

    /// Names of nodes, for the completion.
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

    /// Asks for a line with `prompt`, or where that leaves too little room, with `short`.
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
    /// None where it cannot be kept.
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

    /// Keeps a line, in the file at once: other sessions append to it too, and this one may be killed.
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

    /// Says once that the history is not kept.
    fn forget(&mut self, path: &std::path::Path, error: &ReadlineError) {
        self.history = None;
        note(&format!(
            "the history ends with this session: {}: {error}",
            path.display()
        ));
    }
}

/// Makes a signal that ends the program leave the terminal as it is now. While a line is edited, the terminal does not
/// show what is typed, and SIGINT is the editor's.
fn restore_terminal_before_end() -> io::Result<()> {
    let settings = tcgetattr(io::stdin())?;
    stop::before_end(move || {
        // A program in the background is stopped where it changes the terminal; the terminal is the shell's then.
        if tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp()) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &settings);
            if is_writable(&io::stdout()) {
                let _ = rustix::io::write(io::stdout(), PASTE_OFF);
            }
        }
    })
}

/// Whether a write returns at once. That to a terminal that is stopped does not.
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

/// The history's file, in a folder that is there. Source: XDG Base Directory Specification, `XDG_STATE_HOME`.
fn history_file() -> Result<PathBuf, String> {
    let absolute = |name: &str| {
        let path = env::var_os(name).map(PathBuf::from);
        // A relative one is to be passed over.
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

/// Completes and hints.
#[derive(Default)]
struct LineHelper {
    nodes: Vec<String>,
}

/// Operands that are still to come. It shows what they are and completes to nothing.
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

/// Asked only where colours are welcome: on a terminal without NO_COLOR.
impl Highlighter for LineHelper {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[90m{hint}\x1b[0m")) // bright black, which is grey
    }
}

impl Validator for LineHelper {}

impl Helper for LineHelper {}

/// The terminal's own line.
pub(super) struct Plain {
    /// The prompt while a line is awaited, for the handler of Ctrl-C.
    awaited: Arc<Mutex<Option<String>>>,
}

impl Plain {
    fn new() -> Plain {
        let awaited = Arc::new(Mutex::new(None::<String>));
        let handled = Arc::clone(&awaited);
        // Where there can be no such thread, Ctrl-C ends the program as it ends others.
        let _ = stop::on_each(&[SIGINT], move |signal| match &*handled.lock() {
            // The terminal has thrown away what was typed.
            Some(prompt) => show(&format!("\n{prompt}")),
            // A command runs, which Ctrl-C ends as it does elsewhere.
            None => stop::end_by(signal),
        });
        Plain { awaited }
    }

    fn read(&self, prompt: &str) -> Result<Input, Failure> {
        // Before a user can answer the prompt with Ctrl-C.
        *self.awaited.lock() = Some(prompt.to_owned());
        // As a shell does it: standard output is for responses alone.
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

/// If even that fails, there is nowhere to report it.
fn show(text: &str) {
    let mut out = io::stderr();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
