//! What every command has at hand: which node to talk to, and how.

use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use gopherstore::{
    Client,
    client::{ClientOptions, Direction, Frame, FrameHook},
    config::Config,
    wire::{Opcode, annotate},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use crate::{
    quote,
    report::{Failure, Outcome},
};

const ADDR_DEFAULT: &str = "127.0.0.1:8000";
const ADDR_VARIABLE: &str = "GOPHERSTORE_ADDR";

/// The options that every command understands, as they were typed.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) addr: Option<String>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) node: Option<String>,
    /// For each answer, connecting and redirects included.
    pub(crate) timeout: Duration,
    pub(crate) follow_redirects: bool,
    /// Dump every frame to standard error.
    pub(crate) hex: bool,
}

impl Context {
    /// A client of the node that was asked for, which connects when it is first used.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(self.client_of(&self.addr()?))
    }

    /// A client of the node at `addr`.
    pub(crate) fn client_of(&self, addr: &str) -> Client {
        Client::unconnected(addr, self.options())
    }

    /// The same, with a hook that sees its frames.
    pub(crate) fn client_seen_by(&self, addr: &str, on_frame: Option<FrameHook>) -> Client {
        let options = ClientOptions {
            on_frame,
            ..self.options()
        };
        Client::unconnected(addr, options)
    }

    /// What a person at a terminal sees of work that takes long: none elsewhere, on a terminal that cannot erase a
    /// line, and together with --hex, since the two would spoil each other. The template is indicatif's.
    pub(crate) fn progress(&self, len: Option<u64>, template: &str) -> ProgressBar {
        let is_dumb = env::var_os("TERM").is_some_and(|name| name == "dumb");
        let target = if self.hex || is_dumb {
            ProgressDrawTarget::hidden()
        } else {
            // Hidden where standard error is no terminal.
            ProgressDrawTarget::stderr_with_hz(5)
        };
        let bar = ProgressBar::with_draw_target(len, target);
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style.progress_chars("=> "))
    }

    /// The options that name the node again, for a line to paste, each with a space behind it.
    pub(crate) fn place(&self) -> String {
        let mut text = String::new();
        let config = self.config.as_ref().map(|file| file.as_os_str());
        for (name, value) in [
            ("--addr", self.addr.as_ref().map(OsStr::new)),
            ("--config", config),
            ("--node", self.node.as_ref().map(OsStr::new)),
        ] {
            if let Some(value) = value {
                let word = quote::shell_word(value.as_encoded_bytes());
                text.push_str(&format!("{name} {word} "));
            }
        }
        text
    }

    /// How a client of any node behaves.
    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions {
            connect_timeout: self.timeout,
            timeout: self.timeout,
            follow_redirects: self.follow_redirects,
            on_frame: self.hex.then(dumping),
        }
    }

    /// The node to talk to.
    pub(crate) fn addr(&self) -> Result<String, Failure> {
        let usage = |message: String| crate::mistake(&message);
        let (addr, origin) = match (&self.addr, &self.config, &self.node) {
            (Some(addr), None, None) => (addr.clone(), "--addr"),
            (Some(_), _, _) => {
                let message = "--addr together with --config or --node; leave one of them out";
                return Err(usage(message.to_owned()));
            }
            (None, Some(file), Some(node)) => return configured(file, node),
            (None, Some(_), None) => {
                return Err(usage(
                    "--config without --node; name a node of it".to_owned(),
                ));
            }
            (None, None, Some(_)) => {
                return Err(usage(
                    "--node without --config; name the cluster.toml".to_owned(),
                ));
            }
            (None, None, None) => match env::var(ADDR_VARIABLE) {
                Ok(addr) => (addr, ADDR_VARIABLE),
                Err(env::VarError::NotPresent) => return Ok(ADDR_DEFAULT.to_owned()),
                Err(env::VarError::NotUnicode(_)) => {
                    return Err(usage(format!(
                        "{ADDR_VARIABLE} is not UTF-8; write HOST:PORT"
                    )));
                }
            },
        };
        if is_address(&addr) {
            Ok(addr)
        } else {
            Err(usage(format!(
                "{origin} {addr:?} is no address; write HOST:PORT, such as {ADDR_DEFAULT}"
            )))
        }
    }
}

/// Whether a text is a `HOST:PORT` that one can connect to.
pub(crate) fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// The address of a node in a cluster.toml.
pub(crate) fn configured(file: &Path, name: &str) -> Result<String, Failure> {
    let usage = |message| Failure::new(Outcome::Usage, message);
    let config = Config::load(file).map_err(|error| usage(error.to_string()))?;
    match config.node(name) {
        Some(node) => Ok(node.addr.clone()),
        None => {
            let names: Vec<&str> = config.nodes.iter().map(|node| &*node.name).collect();
            Err(usage(format!(
                "no node {name:?} in {}; there are {}",
                file.display(),
                names.join(", ")
            )))
        }
    }
}

/// A hook that dumps the frames of one client. An answer to SUMS or LIST does not show that it is one, so what was
/// asked is kept until it is answered.
fn dumping() -> FrameHook {
    let asked = Mutex::new(VecDeque::new());
    FrameHook::new(move |frame| {
        let first = frame.bytes.first().copied();
        let opcode = first.and_then(|byte| Opcode::try_from(byte).ok());
        let rows = match frame.direction {
            Direction::Sent => {
                asked.lock().extend(opcode);
                annotate::sent(frame.bytes)
            }
            Direction::Received => match asked.lock().pop_front() {
                Some(Opcode::Sums) => annotate::answer_to_sums(frame.bytes),
                Some(Opcode::List) => annotate::answer_to_list(frame.bytes),
                _ => annotate::received(frame.bytes),
            },
        };
        print(frame, &rows);
    })
}

/// Dumps a frame, of a client that asks for no SUMS and no LIST.
pub(crate) fn dump(frame: &Frame<'_>) {
    let rows = match frame.direction {
        Direction::Sent => annotate::sent(frame.bytes),
        Direction::Received => annotate::received(frame.bytes),
    };
    print(frame, &rows);
}

/// Prints a frame in the manner of `curl -v`, on standard error so that standard output stays exact.
fn print(frame: &Frame<'_>, rows: &str) {
    let (mark, way) = match frame.direction {
        Direction::Sent => ('>', "to"),
        Direction::Received => ('<', "from"),
    };
    let mut text = format!("{mark} {way} {}, {} bytes\n", frame.addr, frame.bytes.len());
    for line in rows.lines() {
        text.push_str(&format!("{mark} {line}\n"));
    }
    // In one write, so that the two streams mix by whole dumps if they mix.
    let _ = io::stderr().write_all(text.as_bytes());
}
