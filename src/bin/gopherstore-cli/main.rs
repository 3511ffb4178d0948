//! The command-line client: one command, or many line by line.

mod command;
mod lines;
mod quote;
mod report;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use argh::FromArgs;
use gopherstore::{
    Client,
    arguments::{self, Bytes, Exit, Program},
    client::{ClientOptions, Direction, Frame, FrameHook},
    config::Config,
    wire::annotate,
};

use command::{Answer, Command};
use report::{Failure, Outcome};

const PROGRAM: Program = Program {
    name: "gopherstore-cli",
    options: &["--addr", "--config", "--node", "--timeout"],
    switches: &["--no-redirect", "--hex", "--discard"],
    commands: &["set", "get", "del", "ping", "status", "resync"],
};

const ADDR_DEFAULT: &str = "127.0.0.1:8000";
const ADDR_VARIABLE: &str = "GOPHERSTORE_ADDR";

/// Talks to a GopherStore node: one command, or without one, commands line by line from standard input.
#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "{command_name} set user123 active\n\
        {command_name} get user123 --addr 127.0.0.1:8001\n\
        {command_name} set photo - < photo.jpg\n\
        {command_name} set temperature -5\n\
        {command_name} set option -- --weird\n\
        printf 'set k \"two words\\\\x00\"\\nget k\\n' | {command_name}",
    note = "Options may stand before or after the command. Into a pipe, get prints the value's\n\
        bytes and no more, and set and del print nothing; on a terminal each answer is a line.\n\
        Line by line, type help for how to quote; the exit code is the first failing line's.",
    error_code(0, "done"),
    error_code(1, "not found"),
    error_code(2, "usage, or a bad cluster.toml"),
    error_code(3, "the node answered with an error, or is loading"),
    error_code(4, "the node is not the leader"),
    error_code(5, "cannot connect, or the connection was lost"),
    error_code(6, "timeout"),
    error_code(7, "what answers does not keep to the protocol"),
    error_code(8, "cannot read standard input or write standard output")
)]
struct Arguments {
    /// address of the node, HOST:PORT; by default $GOPHERSTORE_ADDR, or else 127.0.0.1:8000
    #[argh(option, from_str_fn(arguments::text), arg_name = "HOST:PORT")]
    addr: Option<String>,
    /// a cluster.toml that has the node's address; goes with --node
    #[argh(option, from_str_fn(arguments::path), arg_name = "FILE")]
    config: Option<PathBuf>,
    /// name of the node in that file
    #[argh(option, from_str_fn(arguments::text), arg_name = "NAME")]
    node: Option<String>,
    /// limit for connecting, and for each answer, such as 200ms; by default 5s
    #[argh(
        option,
        from_str_fn(timeout),
        arg_name = "TIME",
        default = "TIMEOUT_DEFAULT"
    )]
    timeout: Duration,
    /// when the node is not the leader, fail instead of asking the leader
    #[argh(switch)]
    no_redirect: bool,
    /// dump every frame, sent (>) and received (<), to standard error
    #[argh(switch)]
    hex: bool,
    /// with resync: the order to give up the node's data
    #[argh(switch)]
    discard: bool,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code, reason = "for the help; Program::parse answers it")]
    version: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Set(Set),
    Get(Get),
    Del(Del),
    Ping(Ping),
    Status(Status),
    Resync(Resync),
}

/// Store a value under a key, whatever was there before.
#[derive(FromArgs)]
#[argh(subcommand, name = "set", help_triggers("-h", "--help"))]
#[argh(note = "For options such as --addr see gopherstore-cli --help.")]
struct Set {
    /// any bytes, 65,535 at most
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// any bytes; - reads them from standard input
    #[argh(positional, from_str_fn(arguments::bytes))]
    value: Bytes,
}

/// Print the value of a key.
#[derive(FromArgs)]
#[argh(subcommand, name = "get", help_triggers("-h", "--help"))]
#[argh(note = "For options such as --addr see gopherstore-cli --help.")]
struct Get {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// Remove a key.
#[derive(FromArgs)]
#[argh(subcommand, name = "del", help_triggers("-h", "--help"))]
#[argh(note = "For options such as --addr see gopherstore-cli --help.")]
struct Del {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// Ask whether the node is there.
#[derive(FromArgs)]
#[argh(subcommand, name = "ping", help_triggers("-h", "--help"))]
#[argh(note = "For options such as --addr see gopherstore-cli --help.")]
struct Ping {}

/// Print how the node is, a line for each fact; docs/GBP.md explains them.
#[derive(FromArgs)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help"))]
#[argh(note = "For options such as --addr see gopherstore-cli --help.")]
struct Status {}

/// Order a follower that refuses its leader to give up its data and take a full copy of the leader's.
#[derive(FromArgs)]
#[argh(subcommand, name = "resync", help_triggers("-h", "--help"))]
#[argh(
    note = "A follower refuses (state refused in its status) where it holds entries that the leader\n\
        lacks. They are lost with this order, so it is given only together with --discard.\n\
        For options such as --addr see gopherstore-cli --help."
)]
struct Resync {}

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

fn timeout(encoded: &str) -> Result<Duration, String> {
    let text = arguments::text(encoded)?;
    match humantime::parse_duration(&text) {
        Ok(Duration::ZERO) => Err("nothing takes no time; write a time such as 5s".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{error}; write a time such as 5s or 200ms")),
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = match PROGRAM.parse(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(exit) => return exit.finish(PROGRAM.name),
    };
    let outcome = match run(arguments) {
        Ok(outcome) => outcome,
        Err(failure) => {
            failure.print(None);
            failure.outcome
        }
    };
    ExitCode::from(outcome.code())
}

fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    let addr = address(&arguments)?;
    judge_discard(&arguments)?;
    let options = ClientOptions {
        connect_timeout: arguments.timeout,
        timeout: arguments.timeout,
        follow_redirects: !arguments.no_redirect,
        on_frame: arguments.hex.then(|| FrameHook::new(dump)),
    };
    let mut client = Client::unconnected(&addr, options);
    let node = arguments.node.as_deref();
    let Some(subcommand) = arguments.command else {
        return Ok(lines::run(&mut client, node));
    };
    let command = match subcommand {
        Subcommand::Set(Set { key, value }) if value == b"-" => Command::Set {
            key,
            value: command::standard_input()?,
        },
        Subcommand::Set(Set { key, value }) => Command::Set { key, value },
        Subcommand::Get(Get { key }) => Command::Get { key },
        Subcommand::Del(Del { key }) => Command::Del { key },
        Subcommand::Ping(Ping {}) => Command::Ping,
        Subcommand::Status(Status {}) => Command::Status,
        Subcommand::Resync(Resync {}) => Command::Resync,
    };
    let answer = command
        .run(&mut client)
        .map_err(|error| report::failure(&error, &command, node))?;
    let is_terminal = io::stdout().is_terminal();
    let (mut text, end) = match answer {
        Answer::Value(value) => (value, is_terminal),
        Answer::Pong => (b"PONG".to_vec(), true),
        Answer::Status(text) => {
            let text = command::shown_status(&text, is_terminal);
            (text.into_bytes(), false)
        }
        Answer::Done if is_terminal => (b"OK".to_vec(), true),
        Answer::Done => (Vec::new(), false),
        Answer::NotFound => {
            let key = quote::quoted(command.key());
            return Err(Failure::new(
                Outcome::NotFound,
                format!("not found: {key}; set gives it a value"),
            ));
        }
    };
    if end {
        text.push(b'\n');
    }
    write_out(&text).map(|_| Outcome::Done)
}

/// Nothing gives up data but the whole order, and no other command takes it for its own.
fn judge_discard(arguments: &Arguments) -> Result<(), Failure> {
    match (&arguments.command, arguments.discard) {
        (Some(Subcommand::Resync(Resync {})), false) => Err(mistake(
            "resync gives up all data of a follower, and what its leader lacks of it is lost for good; nothing is done \
             without --discard, which is the order",
        )),
        (Some(Subcommand::Resync(Resync {})), true) | (_, false) => Ok(()),
        (_, true) => Err(mistake("--discard goes with resync alone")),
    }
}

fn mistake(message: &str) -> Failure {
    match PROGRAM.mistake(message) {
        Exit::Usage(message) | Exit::Help(message) | Exit::Version(message) => {
            Failure::new(Outcome::Usage, message)
        }
    }
}

/// The node to talk to.
fn address(arguments: &Arguments) -> Result<String, Failure> {
    let usage = |message: String| mistake(&message);
    let (addr, origin) = match (&arguments.addr, &arguments.config, &arguments.node) {
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
    let is_address = addr.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if is_address {
        Ok(addr)
    } else {
        Err(usage(format!(
            "{origin} {addr:?} is no address; write HOST:PORT, such as {ADDR_DEFAULT}"
        )))
    }
}

fn configured(file: &Path, name: &str) -> Result<String, Failure> {
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

/// Writes to standard output at once. False where nobody reads it any more, which is how `head` says 'enough'.
fn write_out(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(
            Outcome::LocalInput,
            format!("cannot write to standard output: {error}; make room there and try again"),
        )),
    }
}

/// Dumps a frame in the manner of `curl -v`, on standard error so that standard output stays exact.
fn dump(frame: &Frame<'_>) {
    let (mark, way, rows) = match frame.direction {
        Direction::Sent => ('>', "to", annotate::request(frame.bytes)),
        Direction::Received => ('<', "from", annotate::response(frame.bytes)),
    };
    let mut text = format!("{mark} {way} {}, {} bytes\n", frame.addr, frame.bytes.len());
    for line in rows.lines() {
        text.push_str(&format!("{mark} {line}\n"));
    }
    // In one write, so that the two streams mix by whole dumps if they mix.
    let _ = io::stderr().write_all(text.as_bytes());
}
