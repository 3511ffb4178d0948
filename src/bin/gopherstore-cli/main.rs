//! The command-line client: one command, or commands line by line.

mod batch;
mod bench;
mod check;
mod command;
mod context;
mod copy_file;
mod decode;
mod diff;
mod dump;
mod encode;
mod keys;
mod lines;
mod load;
mod new_file;
mod offline;
mod prompt;
mod quote;
mod race;
mod removal;
mod report;
mod scan;
mod snapshot;
mod status;
mod stop;
mod tail;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::arguments::{self, Bytes, Exit, Program};
use gopherstore::wire::{Opcode, Token};

use command::{Command, Goal, Response};
use context::Context;
use report::{Failure, Outcome};

const PROGRAM: Program = Program {
    name: "gopherstore-cli",
};

/// Talks to a GopherStore node: one command, or without one, commands line by line from standard input.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "{command_name} set user123 active\n\
        {command_name} get user123 --addr 127.0.0.1:8001\n\
        {command_name} set photo - < photo.jpg\n\
        {command_name} set temperature -5\n\
        {command_name} set option -- --weird\n\
        printf 'set k \"two words\\\\x00\"\\nget k\\n' | {command_name}",
    note = "Options may come before or after the command. On a terminal each response is a line. Into a\n\
        pipe, get prints only the bytes of the value, and set and del print nothing.\n\
        Without a command, lines are commands: help explains how to quote, and the exit code is\n\
        that of the first line that fails. On a terminal there is a prompt with a history and\n\
        completion by Tab; :help explains it.",
    error_code(0, "done"),
    error_code(1, "not found, or different"),
    error_code(2, "usage, or a bad cluster.toml"),
    error_code(3, "the node answered ERROR or LOADING; status: there is a fault"),
    error_code(4, "the node is not the leader"),
    error_code(5, "cannot connect, or the connection was lost"),
    error_code(6, "timeout"),
    error_code(
        7,
        "a response, decoded bytes or a data directory are damaged or not as specified"
    ),
    error_code(
        8,
        "cannot read standard input or a file, or write standard output or a file"
    ),
    error_code(9, "a condition is not met"),
    error_code(10, "the node has no memory, or no space on its disk, for the write"),
    error_code(11, "the node no longer knows the position, or what came after it"),
    error_code(12, "the position was never part of the node's history")
)]
struct Arguments {
    /// address of the node, HOST:PORT; several with commas or repeated options: the first node that responds; by
    /// default $GOPHERSTORE_ADDR, or 127.0.0.1:8000 if that is not set
    #[argh(option, from_str_fn(arguments::text), arg_name = "HOST:PORT")]
    addr: Vec<String>,
    /// a cluster.toml with the nodes' addresses; without --node commands go to the leader, and status to all nodes
    #[argh(option, from_str_fn(arguments::path), arg_name = "FILE")]
    config: Option<PathBuf>,
    /// name of the node in that file
    #[argh(option, from_str_fn(arguments::text), arg_name = "NAME")]
    node: Option<String>,
    /// time limit for a response, with connecting and redirects, such as 200ms; by default 5s
    #[argh(
        option,
        from_str_fn(timeout),
        arg_name = "TIME",
        default = "TIMEOUT_DEFAULT"
    )]
    timeout: Duration,
    /// do not send a write to the leader if the node is a follower; fail instead
    #[argh(switch)]
    no_redirect: bool,
    /// dump every frame, sent (>) and received (<), to standard error
    #[argh(switch)]
    hex: bool,
    /// print neither OK nor a message where a key is not found or a condition is not met; the exit code says so
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// print the man page (man) or a completion script (complete-bash, complete-zsh, complete-fish)
    #[argh(option, from_str_fn(arguments::text), arg_name = "WHAT")]
    #[allow(dead_code, reason = "for the help; Program::parse answers it")]
    generate: Option<String>,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code, reason = "for the help; Program::parse answers it")]
    version: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Set(Set),
    Get(Get),
    Del(Del),
    Put(keys::Put),
    Take(keys::Take),
    Incr(keys::Incr),
    Decr(keys::Decr),
    Expire(keys::Expire),
    Persist(keys::Persist),
    Ttl(keys::Ttl),
    Exists(keys::Exists),
    Batch(batch::Arguments),
    Sync(Sync),
    Ping(Ping),
    Status(status::Status),
    Resync(Resync),
    Snapshot(snapshot::Snapshot),
    Scan(scan::Scan),
    Flush(removal::Flush),
    Tail(tail::Tail),
    Dump(dump::Dump),
    Load(load::Load),
    Diff(diff::Diff),
    Race(race::Race),
    Check(check::Check),
    Decode(decode::Decode),
    Encode(encode::Encode),
    Bench(bench::Bench),
}

/// Store a value under a key, and replace an earlier value.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "set", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123 active\n\
        {command_name} photo - < photo.jpg\n\
        {command_name} temperature -5\n\
        {command_name} option -- --weird\n\
        {command_name} 'two words' 'a value with spaces' --timeout 200ms",
    note = "For options such as --addr see gopherstore-cli --help."
)]
struct Set {
    /// any bytes, 65,535 at most
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// any bytes; - reads them from standard input
    #[argh(positional, from_str_fn(arguments::bytes))]
    value: Bytes,
}

/// Print the value of a key.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "get", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123\n\
        {command_name} user123 --addr 127.0.0.1:8001\n\
        {command_name} photo > photo.jpg\n\
        {command_name} nobody || echo \"not there: $?\"",
    note = "For options such as --addr see gopherstore-cli --help."
)]
struct Get {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// Remove a key, or all keys that begin with a prefix.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "del", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123\n\
        {command_name} --prefix user --yes",
    note = "With --prefix the command counts the keys and asks on the terminal. Without a terminal it needs\n\
        --yes. It removes one key after another, through the leader. Keys that clients store meanwhile\n\
        may stay. If no key begins with the prefix, the exit code is 1.\n\
        For options such as --addr see gopherstore-cli --help."
)]
struct Del {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Option<Bytes>,
    /// remove all keys that begin with this
    #[argh(option, from_str_fn(arguments::bytes), arg_name = "PREFIX")]
    prefix: Option<Bytes>,
    /// do not ask
    #[argh(switch)]
    yes: bool,
}

/// Print the position of the node's data, or wait until it has a position, or has its data on its disk.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "sync", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name}\n\
        {command_name} --addr 127.0.0.1:8001 --timeout 10s --at \"$(gopherstore-cli sync)\"\n\
        {command_name} --durable",
    note = "The position is a token of 48 hexadecimal digits. A node that has the position of a token shows\n\
        every write before it: set at the leader, sync there, and sync --at that token at a follower, before\n\
        get there. With --durable the node's disk has every write before it, whatever --sync says there.\n\
        --timeout bounds the wait, by an hour at most; after it the exit code is 6. A node that does not\n\
        respond is waited for twice as long. A node without peers and without a disk has no positions.\n\
        For options such as --addr see gopherstore-cli --help."
)]
struct Sync {
    /// wait until the node has this position
    #[argh(option, from_str_fn(token), arg_name = "TOKEN")]
    at: Option<Token>,
    /// wait until the disk of the node has the data that the node holds now
    #[argh(switch)]
    durable: bool,
}

/// Check that the node responds.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "ping", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} --addr 127.0.0.1:8001\n\
        {command_name} --config cluster.toml --node n2",
    note = "For options such as --addr see gopherstore-cli --help."
)]
struct Ping {}

/// Order a follower that refuses its leader to discard its data and take a snapshot of the leader's.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "resync", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} --discard --addr 127.0.0.1:8002",
    note = "A follower that holds entries which its leader lacks is in state refused. The order discards\n\
        these entries for good, so it needs --discard. docs/operating.md explains how to save them.\n\
        For options such as --addr see gopherstore-cli --help."
)]
struct Resync {
    /// confirm that the node discards its data
    #[argh(switch)]
    discard: bool,
}

/// Form of an output that is a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListForm {
    /// A line of text for each item.
    Lines,
    /// An object on a line for each item.
    Json,
}

fn list_form(encoded: &str) -> Result<ListForm, String> {
    let forms = [("lines", ListForm::Lines), ("json", ListForm::Json)];
    arguments::one_of(encoded, &forms)
}

fn token(encoded: &str) -> Result<Token, String> {
    command::parsed_token(&arguments::bytes(encoded)?)
}

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

fn timeout(encoded: &str) -> Result<Duration, String> {
    duration(&arguments::text(encoded)?)
}

/// A time limit, such as 200ms.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("nothing takes no time; write a time such as 5s".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{error}; write a time such as 5s or 200ms")),
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = match PROGRAM.parse(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(exit) => return exit.finish(PROGRAM.name, Outcome::LocalInput.code()),
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
    let context = Context {
        addr: (!arguments.addr.is_empty()).then(|| arguments.addr.join(",")),
        config: arguments.config,
        node: arguments.node,
        timeout: arguments.timeout,
        follow_redirects: !arguments.no_redirect,
        hex: arguments.hex,
        quiet: arguments.quiet,
        ..Context::default()
    };
    match arguments.command {
        None if io::stdin().is_terminal() => prompt::run(&context),
        None => {
            let mut client = context.client()?;
            Ok(lines::run(&mut client, context.node.as_deref()))
        }
        Some(Subcommand::Set(Set { key, value })) => {
            let value = if value == b"-" {
                // After the node is known.
                context.addr()?;
                command::standard_input()?
            } else {
                value
            };
            once(&context, &Command::new(Opcode::Set, key, value))
        }
        Some(Subcommand::Get(Get { key })) => {
            once(&context, &Command::new(Opcode::Get, key, Vec::new()))
        }
        Some(Subcommand::Del(command)) => del(command, &context),
        Some(Subcommand::Scan(command)) => scan::run(command, &context),
        Some(Subcommand::Flush(command)) => removal::flush(&command, &context),
        Some(Subcommand::Put(mut put)) => {
            if put.value == b"-" {
                // After the node is known.
                context.addr()?;
                put.value = command::standard_input()?;
            }
            once_made(&context, put.command())
        }
        Some(Subcommand::Take(take)) => once_made(&context, take.command()),
        Some(Subcommand::Incr(incr)) => once_made(&context, incr.command()),
        Some(Subcommand::Decr(decr)) => once_made(&context, decr.command()),
        Some(Subcommand::Expire(expire)) => once(&context, &expire.command()),
        Some(Subcommand::Persist(persist)) => once(&context, &persist.command()),
        Some(Subcommand::Ttl(ttl)) => once(&context, &ttl.command()),
        Some(Subcommand::Exists(exists)) => once(&context, &exists.command()),
        Some(Subcommand::Batch(command)) => batch::run(command, &context),
        Some(Subcommand::Sync(Sync { at, durable })) => {
            let goal = match (at, durable) {
                (None, false) => Goal::Nothing,
                (None, true) => Goal::Durable,
                (Some(token), false) => Goal::At(token),
                (Some(_), true) => {
                    let message = "--at and --durable contradict each other; leave one of them out";
                    return Err(Failure::new(Outcome::Usage, message));
                }
            };
            once(&context, &Command::sync(goal, context.timeout))
        }
        Some(Subcommand::Ping(Ping {})) => once(
            &context,
            &Command::new(Opcode::Ping, Vec::new(), Vec::new()),
        ),
        Some(Subcommand::Tail(command)) => tail::run(command, &context),
        Some(Subcommand::Dump(command)) => dump::run(command, &context),
        Some(Subcommand::Load(command)) => load::run(command, &context),
        Some(Subcommand::Diff(command)) => diff::run(&command, &context),
        Some(Subcommand::Status(command)) => status::run(command, &context),
        Some(Subcommand::Race(command)) => race::run(command, &context),
        Some(Subcommand::Check(command)) => check::run(&command),
        Some(Subcommand::Decode(command)) => decode::run(&command),
        Some(Subcommand::Encode(command)) => encode::run(command, &context),
        Some(Subcommand::Bench(command)) => bench::run(&command, &context),
        Some(Subcommand::Resync(Resync { discard: true })) => {
            context.name_one("resync")?;
            once(
                &context,
                &Command::new(Opcode::Discard, Vec::new(), Vec::new()),
            )
        }
        Some(Subcommand::Snapshot(snapshot::Snapshot {})) => snapshot::run(&context),
        Some(Subcommand::Resync(Resync { discard: false })) => Err(mistake(
            "resync discards all data of a follower, and entries that its leader lacks are lost for good; confirm that \
             with --discard",
        )),
    }
}

/// Runs `del`.
fn del(command: Del, context: &Context) -> Result<Outcome, Failure> {
    match (command.key, command.prefix) {
        (Some(_), None) if command.yes => Err(mistake("--yes without --prefix; leave it out")),
        (Some(key), None) => once(context, &Command::new(Opcode::Del, key, Vec::new())),
        (None, Some(prefix)) if prefix.is_empty() => Err(mistake(
            "--prefix is empty, and all keys begin with that; flush removes all",
        )),
        (None, Some(prefix)) => removal::with_prefix(prefix, command.yes, context),
        (None, None) => Err(mistake("no key after del; name one, or --prefix")),
        (Some(_), Some(_)) => Err(mistake(
            "a key together with --prefix; leave one of them out",
        )),
    }
}

/// Sends a command whose options may contradict each other.
fn once_made(context: &Context, command: Result<Command, String>) -> Result<Outcome, Failure> {
    once(context, &command.map_err(|message| mistake(&message))?)
}

/// Whether this is the name of a command.
fn has_command(name: &str) -> bool {
    let commands = Arguments::get_args_info().commands;
    commands.iter().any(|command| command.name == name)
}

/// Sends one command and prints its response.
fn once(context: &Context, command: &Command) -> Result<Outcome, Failure> {
    let mut client = context.client()?;
    let node = context.node.as_deref();
    let response = command
        .run(&mut client)
        .map_err(|error| report::failure(&error, command.opcode(), node))?;
    let is_terminal = io::stdout().is_terminal();
    let (mut text, end) = match response {
        Response::Value(value) => (value, is_terminal),
        Response::Pong => (b"PONG".to_vec(), true),
        Response::Keys(text) => (text.into_bytes(), true),
        Response::Number(text) => (text.into_bytes(), true),
        Response::Token(token) => (token.to_string().into_bytes(), true),
        Response::Status(text) => {
            let text = command::shown_status(&text, is_terminal);
            (text.into_bytes(), false)
        }
        Response::Done if is_terminal && !context.quiet => (b"OK".to_vec(), true),
        Response::Done => (Vec::new(), false),
        Response::Found { token, value } => {
            let token = token.map(|token| format!("{token}\n").into_bytes());
            let end = is_terminal && value.is_some();
            let parts = [token.unwrap_or_default(), value.unwrap_or_default()];
            (parts.concat(), end)
        }
        Response::Left(left) => (command::shown_left(left).into_bytes(), true),
        Response::Conflict { exists, value } => {
            let mut value = value.unwrap_or_default();
            value.extend((is_terminal && !value.is_empty()).then_some(b'\n'));
            write_out(&value)?;
            if context.quiet {
                return Ok(Outcome::Conflict);
            }
            let message = command.conflict(exists);
            return Err(Failure::new(Outcome::Conflict, message));
        }
        Response::BatchConflict {
            line,
            exists,
            value,
        } => {
            let value = value.map(|value| format!("{}\n", quote::shown(&value)));
            write_out(value.unwrap_or_default().as_bytes())?;
            if context.quiet {
                return Ok(Outcome::Conflict);
            }
            let message = command.conflict_in(line, exists);
            return Err(Failure::new(Outcome::Conflict, message));
        }
        response @ Response::Batch(_) => (lines::shown(response).0.into_bytes(), true),
        Response::NotFound if context.quiet => return Ok(Outcome::NotFound),
        Response::NotFound => {
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

/// A usage error that the program itself detects.
fn mistake(message: &str) -> Failure {
    match PROGRAM.mistake(message) {
        Exit::Usage(message) | Exit::Help(message) | Exit::Version(message) => {
            Failure::new(Outcome::Usage, message)
        }
    }
}

/// Writes to standard output and flushes. Returns false if it has no reader, as after `head` has ended.
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
