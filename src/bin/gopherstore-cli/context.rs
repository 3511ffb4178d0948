//! Options that every command shares: the node's address, and how to connect.

mod search;

use std::{
    collections::VecDeque,
    env,
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use gopherstore::{
    Client,
    client::{ClientOptions, Direction, Frame, FrameHook},
    config::Config,
    wire::{Opcode, annotate},
};
use indicatif::{
    BinaryBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState,
    ProgressStyle,
};
use parking_lot::Mutex;

use crate::{
    quote,
    report::{Failure, Outcome},
};

const ADDR_DEFAULT: &str = "127.0.0.1:8000";
/// Shortest time over which a rate is shown.
const RATE_AFTER: Duration = Duration::from_millis(500);

const ADDR_VARIABLE: &str = "GOPHERSTORE_ADDR";

/// The options of every command, as typed.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// One address, or several with commas between them.
    pub(crate) addr: Option<String>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) node: Option<String>,
    /// Limit for each response, with connecting and redirects.
    pub(crate) timeout: Duration,
    pub(crate) follow_redirects: bool,
    /// Dump every frame to standard error.
    pub(crate) hex: bool,
    /// Whether an OK, a key that is not found and a condition that is not met print nothing.
    pub(crate) quiet: bool,
    /// The address of the node that was found among several.
    pub(crate) found: OnceLock<String>,
}

impl Context {
    /// A client of the node that the options name. It connects with its first request.
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

    /// A progress bar for long work on a terminal. There is none with --hex, or on a terminal that cannot erase a line.
    /// The template is indicatif's, with the keys `rate`, `byte_rate` and `left`, which are `-` until they are known.
    pub(crate) fn progress(&self, len: Option<u64>, template: &str) -> ProgressBar {
        let target = if self.hex || is_dumb_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            // Hidden if standard error is no terminal.
            ProgressDrawTarget::stderr_with_hz(5)
        };
        let bar = ProgressBar::with_draw_target(len, target);
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style
            .progress_chars("=> ")
            .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = match rate(state) {
                    Some(rate) => write!(out, "{}/s", HumanCount(rate)),
                    None => out.write_str("-"),
                };
            })
            .with_key(
                "byte_rate",
                |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = match rate(state) {
                        Some(rate) => write!(out, "{}/s", BinaryBytes(rate)),
                        None => out.write_str("-"),
                    };
                },
            )
            .with_key("left", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = match rate(state) {
                    Some(1..) => write!(out, "{:#}", HumanDuration(state.eta())),
                    _ => out.write_str("-"),
                };
            });
        bar.with_style(style)
    }

    /// The options that name the node, each followed by a space, for a command line in a message.
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

    /// Options of the clients.
    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions {
            connect_timeout: self.timeout,
            timeout: self.timeout,
            follow_redirects: self.follow_redirects,
            on_frame: self.hex.then(dumping),
        }
    }

    /// The address of the node: the first of several addresses that responds, or the leader of a file without --node.
    /// It is searched once.
    pub(crate) fn addr(&self) -> Result<String, Failure> {
        if let Some(found) = self.found.get() {
            return Ok(found.clone());
        }
        let found = match (&self.addr, &self.config, &self.node) {
            (Some(addrs), None, None) => self.first_of(addrs, "--addr")?,
            (Some(_), _, _) => {
                return Err(crate::mistake(
                    "--addr together with --config or --node; leave one of them out",
                ));
            }
            (None, Some(file), Some(node)) => return configured(file, node),
            (None, Some(file), None) => search::leader(self, file)?,
            (None, None, Some(_)) => {
                return Err(crate::mistake(
                    "--node without --config; name the cluster.toml",
                ));
            }
            (None, None, None) => match variable(ADDR_VARIABLE).map(OsString::into_string) {
                None => return Ok(ADDR_DEFAULT.to_owned()),
                Some(Ok(addrs)) => self.first_of(&addrs, ADDR_VARIABLE)?,
                Some(Err(_)) => {
                    let message = format!("{ADDR_VARIABLE} is not UTF-8; write HOST:PORT");
                    return Err(crate::mistake(&message));
                }
            },
        };
        Ok(self.found.get_or_init(|| found).clone())
    }

    /// Checks that the options name one node, for an order that must not go to another one.
    pub(crate) fn name_one(&self, command: &str) -> Result<(), Failure> {
        let is_one = match (&self.addr, &self.config, &self.node) {
            (Some(addrs), _, _) => !addrs.contains(','),
            (None, Some(_), None) => false,
            (None, None, None) => variable(ADDR_VARIABLE)
                .is_none_or(|addrs| !addrs.as_encoded_bytes().contains(&b',')),
            _ => true,
        };
        if is_one {
            return Ok(());
        }
        Err(crate::mistake(&format!(
            "{command} is an order to one node; name it with one --addr, or with --config and --node"
        )))
    }

    /// The address that is used, and behind it the others that were given: with --config and without --node those of
    /// all nodes in the file.
    pub(crate) fn addrs(&self) -> Result<Vec<String>, Failure> {
        let first = self.addr()?;
        let split = |given: String| {
            let addrs = given.split(',').map(|addr| addr.trim().to_owned());
            addrs.filter(|addr| is_address(addr)).collect()
        };
        let given: Vec<String> = match (&self.addr, &self.config, &self.node) {
            (Some(addrs), _, _) => split(addrs.clone()),
            (None, Some(file), None) => {
                let config = Config::load(file)
                    .map_err(|error| Failure::new(Outcome::Usage, error.to_string()))?;
                config.nodes.into_iter().map(|node| node.addr).collect()
            }
            (None, Some(_) | None, Some(_)) => Vec::new(),
            (None, None, None) => {
                let addrs = variable(ADDR_VARIABLE).and_then(|addrs| addrs.into_string().ok());
                split(addrs.unwrap_or_default())
            }
        };
        let others = given.into_iter().filter(|addr| *addr != first);
        Ok(std::iter::once(first.clone()).chain(others).collect())
    }

    /// The first address of a comma-separated list that responds.
    fn first_of(&self, addrs: &str, origin: &str) -> Result<String, Failure> {
        let addrs: Vec<&str> = addrs.split(',').map(str::trim).collect();
        if let Some(odd) = addrs.iter().find(|addr| !is_address(addr)) {
            return Err(crate::mistake(&format!(
                "{origin} {odd:?} is no address; write HOST:PORT, such as {ADDR_DEFAULT}"
            )));
        }
        match addrs.as_slice() {
            // The request itself shows whether the node responds.
            [addr] => Ok((*addr).to_owned()),
            addrs => search::first_that_responses(self, addrs),
        }
    }
}

/// An environment variable; `None` if it is empty or not set.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether the terminal cannot move its cursor, or has no name.
pub(crate) fn is_dumb_terminal() -> bool {
    variable("TERM").is_none_or(|name| name == "dumb")
}

/// The rate of some work, after the shortest time for a rate.
fn rate(state: &ProgressState) -> Option<u64> {
    let elapsed = state.elapsed();
    (elapsed >= RATE_AFTER).then(|| {
        let per_second = u128::from(state.pos()) * 1_000 / elapsed.as_millis();
        u64::try_from(per_second).unwrap_or(u64::MAX)
    })
}

/// Whether a text is a `HOST:PORT` to connect to.
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

/// A hook that dumps the frames of one client. The form of a response to SUMS or LIST depends on the request, so
/// requests are kept until their responses.
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
                Some(opcode) => annotate::response_to(opcode, frame.bytes),
                None => annotate::received(frame.bytes),
            },
        };
        print(frame, &rows);
    })
}

/// Dumps a frame of a client that sends no SUMS and no LIST.
pub(crate) fn dump(frame: &Frame<'_>) {
    let rows = match frame.direction {
        Direction::Sent => annotate::sent(frame.bytes),
        Direction::Received => annotate::received(frame.bytes),
    };
    print(frame, &rows);
}

/// Prints a frame on standard error, in the style of `curl -v`.
fn print(frame: &Frame<'_>, rows: &str) {
    let (mark, way) = match frame.direction {
        Direction::Sent => ('>', "to"),
        Direction::Received => ('<', "from"),
    };
    let mut text = format!("{mark} {way} {}, {} bytes\n", frame.addr, frame.bytes.len());
    for line in rows.lines() {
        text.push_str(&format!("{mark} {line}\n"));
    }
    // In one write, so that dumps do not mix with other lines.
    let _ = io::stderr().write_all(text.as_bytes());
}
