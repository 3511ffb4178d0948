//! `gopherstore-cli` on a terminal: a pseudo-terminal, and a screen that shows what a person would see.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pty_process::{
    Size,
    blocking::{Command, Pty},
};

use rustix::termios::{LocalModes, tcgetattr};

use crate::support::node::wait_for;
use crate::support::tools;

pub(crate) const CTRL_C: &str = "\x03";
pub(crate) const CTRL_D: &str = "\x04";
pub(crate) const UP: &str = "\x1b[A";
pub(crate) const TAB: &str = "\t";
pub(crate) const ENTER: &str = "\r";

/// More than any test fills, so that nothing scrolls away.
const ROWS: u16 = 60;

/// How a [`Terminal`] is started.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) columns: u16,
    /// Long, since the machine may be busy.
    pub(crate) timeout: &'a str,
    pub(crate) variables: Vec<(&'a str, &'a str)>,
    /// Where standard output goes instead.
    pub(crate) stdout: Option<Stdio>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            columns: 80,
            timeout: "60s",
            variables: Vec::new(),
            stdout: None,
        }
    }
}

/// A running prompt. It is gone when the test is.
pub(crate) struct Terminal {
    child: Child,
    pty: Arc<Pty>,
    seen: Arc<Mutex<Seen>>,
    reading: Option<JoinHandle<()>>,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts the program with its state in the folder `state`.
    pub(crate) fn start(state: &Path, arguments: &[&str], options: Options<'_>) -> Terminal {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(Size::new(ROWS, options.columns)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
            .args(arguments)
            .args(["--timeout", options.timeout])
            .env_remove("GOPHERSTORE_ADDR")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .env("TERM", "xterm-256color")
            .env("XDG_STATE_HOME", state)
            .env("HOME", state);
        for (name, value) in options.variables {
            command = match value {
                "" => command.env_remove(name),
                value => command.env(name, value),
            };
        }
        if let Some(stdout) = options.stdout {
            command = command.stdout(stdout);
        }
        let child = command.spawn(pts).unwrap();
        let size = |count| NonZeroU16::new(count).unwrap();
        let seen = Arc::new(Mutex::new(Seen {
            screen: vt100::Parser::new(size(ROWS), size(options.columns), 0),
            bytes: Vec::new(),
        }));
        let pty = Arc::new(pty);
        let reading = std::thread::spawn({
            let (pty, seen) = (Arc::clone(&pty), Arc::clone(&seen));
            move || {
                let mut bytes = [0; 4096];
                // An error once the other end is closed.
                while let Ok(count @ 1..) = (&*pty).read(&mut bytes) {
                    let mut seen = seen.lock().unwrap();
                    seen.screen.process(&bytes[..count]);
                    seen.bytes.extend_from_slice(&bytes[..count]);
                }
            }
        });
        Terminal {
            child,
            pty,
            seen,
            reading: Some(reading),
        }
    }

    /// The text on the screen, row by row, without spaces at their ends.
    pub(crate) fn screen(&self) -> String {
        let seen = self.seen.lock().unwrap();
        let rows = seen.screen.screen().rows(0, u16::MAX);
        let rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        rows.join("\n").trim_end().to_owned()
    }

    /// Every byte that came.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// The colour of the first place on the screen where `text` stands.
    #[track_caller]
    pub(crate) fn color_of(&self, text: &str) -> vt100::Color {
        let seen = self.seen.lock().unwrap();
        let screen = seen.screen.screen();
        let found = screen
            .rows(0, u16::MAX)
            .enumerate()
            .find_map(|(row, line)| {
                let at = line.find(text)?;
                Some((row, line[..at].chars().count()))
            });
        let (row, column) = found.unwrap_or_else(|| panic!("no {text:?} on the screen"));
        let place = |at: usize| u16::try_from(at).unwrap();
        screen.cell(place(row), place(column)).unwrap().fgcolor()
    }

    pub(crate) fn press(&self, keys: impl AsRef<[u8]>) {
        (&*self.pty).write_all(keys.as_ref()).unwrap();
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, mut is_met: impl FnMut(&str) -> bool) {
        let mut last = String::new();
        let wait = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, || {
                last = self.screen();
                is_met(&last).then_some(())
            });
        }));
        assert!(
            wait.is_ok(),
            "waited for {what}, and the screen is:\n{last}"
        );
    }

    /// Waits until the screen ends so.
    #[track_caller]
    pub(crate) fn wait_for_end(&self, end: &str) {
        let end = end.trim_end();
        self.wait_until(&format!("{end:?}"), |screen| screen.ends_with(end));
    }

    /// Types a line after `prompt`, and waits for just these lines of response, and the next prompt.
    #[track_caller]
    pub(crate) fn ask(&self, prompt: &str, line: &str, response: &str) {
        self.wait_for_end(prompt);
        self.press(line);
        self.press(ENTER);
        self.wait_for_end(&format!("{prompt} {line}\n{response}\n{prompt}"));
    }

    /// Sends the program a signal.
    pub(crate) fn signal(&self, name: &str) {
        assert!(tools::signal(self.child.id(), name));
    }

    /// Waits until a signal ends the program, and gives its number.
    #[track_caller]
    pub(crate) fn wait_killed(&mut self) -> i32 {
        let child = &mut self.child;
        let status = wait_for("the prompt's end", || child.try_wait().unwrap());
        status.signal().unwrap_or_else(|| panic!("{status}"))
    }

    /// Whether the terminal shows what is typed, edits a line by itself, and turns Ctrl-C into a signal.
    pub(crate) fn modes(&self) -> LocalModes {
        let modes = tcgetattr(&*self.pty).unwrap().local_modes;
        modes & (LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits until the program ends by itself, and gives its exit code.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> i32 {
        let child = &mut self.child;
        let status = wait_for("the prompt's end", || child.try_wait().unwrap());
        status.code().unwrap_or_else(|| panic!("{status}"))
    }

    /// Ctrl-D, and a good end.
    #[track_caller]
    pub(crate) fn leave(mut self) {
        // Before it the key would not be the prompt's.
        self.wait_for_end(">");
        self.press(CTRL_D);
        assert_eq!(self.wait(), 0);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}
