//! Commands on a key that take options: `put`, `take`, `incr`, `decr`, `expire`, `persist`, `ttl` and `exists`. In a
//! shell and in lines they are read in the same way.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use argh::{ArgsInfo, FlagInfoKind, FromArgs};
use gopherstore::arguments::{self, Bytes, Exit};
use gopherstore::wire::Opcode;
use gopherstore::wire::conditional::{self, Condition, Want};
use gopherstore::wire::expiry::Expiry;

use crate::PROGRAM;
use crate::command::Command;

/// Store a value under a key where a condition is met, and set when the key expires.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "put", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} session:7 alice --ttl 30m\n\
        {command_name} lock:backup host1 --if-absent --ttl 30s --token\n\
        {command_name} user123 idle --if-equals active --return-old\n\
        {command_name} user123 idle --if-present --keep-ttl\n\
        {command_name} photo - < photo.jpg",
    note = "Without options it is set. Where the condition is not met, nothing is changed and the exit code\n\
        is 9; with --return-old the value that the key has is printed. --token needs a cluster of more\n\
        than one node. The token of a later write is greater, also as text, so it is a fencing token.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(9, "the condition is not met")
)]
pub(crate) struct Put {
    /// any bytes, 65,535 at most
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// any bytes; - reads them from standard input
    #[argh(positional, from_str_fn(arguments::bytes))]
    pub(crate) value: Bytes,
    /// only if there is no such key
    #[argh(switch)]
    if_absent: bool,
    /// only if there is such a key
    #[argh(switch)]
    if_present: bool,
    /// only if the key has this value, of 4,096 bytes at most
    #[argh(option, from_str_fn(arguments::bytes), arg_name = "VALUE")]
    if_equals: Option<Bytes>,
    /// only if the value of the key has this XXH3-128: 32 digits, as xxhsum -H2 prints them
    #[argh(option, from_str_fn(hash), arg_name = "HASH")]
    if_hash: Option<u128>,
    /// the key expires after this time, such as 30s; by default it does not
    #[argh(option, from_str_fn(ttl), arg_name = "TIME")]
    ttl: Option<Expiry>,
    /// the key expires at this time, such as 2030-01-01T00:00:00Z
    #[argh(option, from_str_fn(deadline), arg_name = "DATE")]
    at: Option<Expiry>,
    /// the key expires when its earlier value would have
    #[argh(switch)]
    keep_ttl: bool,
    /// print the value that the key had
    #[argh(switch)]
    return_old: bool,
    /// print the token of the write: 48 digits on a line
    #[argh(switch)]
    token: bool,
}

/// Remove a key, where a condition is met, and print its value.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "take", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123\n\
        {command_name} user123 --if-equals active\n\
        {command_name} photo > photo.jpg",
    note = "Of several clients that take a key at once, one gets it. Where the condition is not met, nothing\n\
        is changed, the value that the key has is printed, and the exit code is 9.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(1, "there is no such key"),
    error_code(9, "the condition is not met")
)]
pub(crate) struct Take {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// only if the key has this value, of 4,096 bytes at most
    #[argh(option, from_str_fn(arguments::bytes), arg_name = "VALUE")]
    if_equals: Option<Bytes>,
    /// only if the value of the key has this XXH3-128: 32 digits, as xxhsum -H2 prints them
    #[argh(option, from_str_fn(hash), arg_name = "HASH")]
    if_hash: Option<u128>,
    /// do not print the value
    #[argh(switch)]
    no_value: bool,
    /// print the token of the write first: 48 digits on a line
    #[argh(switch)]
    token: bool,
}

/// Add to the number in a key, and print the sum. A key that does not exist counts as 0.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "incr", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} visits\n\
        {command_name} visits 10\n\
        {command_name} balance -5\n\
        {command_name} rate:10.0.0.1 --ttl 60s",
    note = "The value must be a decimal number of 64 bits, and so must the sum; otherwise the node refuses.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Incr {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// number to add; by default 1
    #[argh(positional, from_str_fn(arguments::bytes))]
    by: Option<Bytes>,
    /// if the key does not exist, it begins with this number; by default 0
    #[argh(option, from_str_fn(number), arg_name = "N", default = "0")]
    start: i64,
    /// if the key does not exist, it expires after this time, such as 60s; otherwise nothing is changed about that
    #[argh(option, from_str_fn(ttl), arg_name = "TIME")]
    ttl: Option<Expiry>,
}

/// Subtract from the number in a key, and print the difference. A key that does not exist counts as 0.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "decr", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} stock\n\
        {command_name} stock 3\n\
        {command_name} tickets --start 500",
    note = "The value must be a decimal number of 64 bits, and so must the difference; otherwise the node\n\
        refuses.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Decr {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// number to subtract; by default 1
    #[argh(positional, from_str_fn(arguments::bytes))]
    by: Option<Bytes>,
    /// if the key does not exist, it begins with this number; by default 0
    #[argh(option, from_str_fn(number), arg_name = "N", default = "0")]
    start: i64,
    /// if the key does not exist, it expires after this time, such as 60s; otherwise nothing is changed about that
    #[argh(option, from_str_fn(ttl), arg_name = "TIME")]
    ttl: Option<Expiry>,
}

/// Set when a key expires.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "expire", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123 30s\n\
        {command_name} user123 2030-01-01T00:00:00Z",
    note = "A key that has expired does not exist: get, and every other command, finds none. A date in the\n\
        past is accepted, and the key expires at once. persist lets a key no longer expire.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(1, "there is no such key")
)]
pub(crate) struct Expire {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
    /// a time from now, such as 30s, or a date, such as 2030-01-01T00:00:00Z
    #[argh(positional, from_str_fn(ttl_or_deadline))]
    time: Expiry,
}

/// Let a key no longer expire.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "persist", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123",
    note = "For options such as --addr see gopherstore-cli --help.",
    error_code(1, "there is no such key")
)]
pub(crate) struct Persist {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// Print the time until a key expires.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "ttl", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123",
    note = "Prints the time in milliseconds, such as 29512ms, or never.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(1, "there is no such key")
)]
pub(crate) struct Ttl {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// Check whether a key exists.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "exists", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user123 && echo there\n\
        {command_name} nobody || echo \"not there: $?\"",
    note = "Prints nothing into a pipe; the exit code says whether the key exists.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(1, "there is no such key")
)]
pub(crate) struct Exists {
    /// any bytes
    #[argh(positional, from_str_fn(arguments::bytes))]
    key: Bytes,
}

/// The words of a line.
#[derive(ArgsInfo, FromArgs)]
#[argh(description = "A command on a key.")]
struct Line {
    #[argh(subcommand)]
    command: KeyCommand,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
enum KeyCommand {
    Put(Put),
    Take(Take),
    Incr(Incr),
    Decr(Decr),
    Expire(Expire),
    Persist(Persist),
    Ttl(Ttl),
    Exists(Exists),
}

/// The command with this name and these words behind it.
pub(crate) fn command(name: &str, words: Vec<Vec<u8>>, synopsis: &str) -> Result<Command, String> {
    let words = words.into_iter().map(OsString::from_vec);
    let line: Line = PROGRAM
        .parse(std::iter::once(name.into()).chain(words))
        .map_err(|exit| {
            let advice = format!("write {synopsis}");
            match exit {
                Exit::Usage(message) => {
                    let what = message
                        .rsplit_once("; see ")
                        .map_or(&*message, |(what, _)| what);
                    format!("{what}; {advice}")
                }
                Exit::Help(_) | Exit::Version(_) => advice,
            }
        })?;
    match line.command {
        KeyCommand::Put(put) => put.command(),
        KeyCommand::Take(take) => take.command(),
        KeyCommand::Incr(incr) => incr.command(),
        KeyCommand::Decr(decr) => decr.command(),
        KeyCommand::Expire(expire) => Ok(expire.command()),
        KeyCommand::Persist(persist) => Ok(persist.command()),
        KeyCommand::Ttl(ttl) => Ok(ttl.command()),
        KeyCommand::Exists(exists) => Ok(exists.command()),
    }
}

/// The options of the command with this name, and whether each takes a value.
pub(crate) fn options(name: &str) -> Vec<(String, bool)> {
    let commands = Line::get_args_info().commands;
    let command = commands.iter().find(|command| command.name == name);
    let flags = command
        .into_iter()
        .flat_map(|command| command.command.flags);
    let flags = flags.filter(|flag| flag.long != "--help");
    let options = flags.map(|flag| {
        let takes_value = matches!(flag.kind, FlagInfoKind::Option { .. });
        (flag.long.to_owned(), takes_value)
    });
    options.collect()
}

/// The one of some options that is given. The error names two that contradict each other.
fn one_of<T: Copy>(options: &[(&str, Option<T>)]) -> Result<Option<T>, String> {
    let mut given = options.iter().filter(|(_, value)| value.is_some());
    match (given.next(), given.next()) {
        (Some((first, _)), Some((second, _))) => Err(format!(
            "{first} and {second} contradict each other; leave one of them out"
        )),
        (first, _) => Ok(first.and_then(|(_, value)| *value)),
    }
}

impl Put {
    pub(crate) fn command(self) -> Result<Command, String> {
        let conditions = [
            ("--if-absent", self.if_absent.then_some(Condition::Absent)),
            (
                "--if-present",
                self.if_present.then_some(Condition::Present),
            ),
            (
                "--if-equals",
                self.if_equals.as_deref().map(Condition::Equal),
            ),
            ("--if-hash", self.if_hash.map(Condition::EqualHash)),
        ];
        let expiries = [
            ("--ttl", self.ttl),
            ("--at", self.at),
            ("--keep-ttl", self.keep_ttl.then_some(Expiry::Keep)),
        ];
        let put = conditional::Put {
            condition: one_of(&conditions)?.unwrap_or_default(),
            expiry: one_of(&expiries)?.unwrap_or_default(),
            want: Want {
                value: self.return_old,
                token: self.token,
            },
            value: &self.value,
        };
        if (put.condition, put.expiry) == (Condition::Absent, Expiry::Keep) {
            let message = "--if-absent and --keep-ttl contradict each other; leave one of them out";
            return Err(message.to_owned());
        }
        checked(Opcode::Put, self.key, put.encode())
    }
}

impl Take {
    pub(crate) fn command(self) -> Result<Command, String> {
        let conditions = [
            (
                "--if-equals",
                self.if_equals.as_deref().map(Condition::Equal),
            ),
            ("--if-hash", self.if_hash.map(Condition::EqualHash)),
        ];
        let take = conditional::Take {
            condition: one_of(&conditions)?.unwrap_or_default(),
            want: Want {
                value: !self.no_value,
                token: self.token,
            },
        };
        checked(Opcode::Take, self.key, take.encode())
    }
}

impl Incr {
    pub(crate) fn command(self) -> Result<Command, String> {
        add(self.key, self.by, 1, self.start, self.ttl)
    }
}

impl Decr {
    pub(crate) fn command(self) -> Result<Command, String> {
        add(self.key, self.by, -1, self.start, self.ttl)
    }
}

/// An ADD of `by`, or of 1, times `sign`.
fn add(
    key: Bytes,
    by: Option<Bytes>,
    sign: i64,
    start: i64,
    ttl: Option<Expiry>,
) -> Result<Command, String> {
    let by = by.unwrap_or_else(|| b"1".to_vec());
    let number = str::from_utf8(&by).ok().and_then(|text| text.parse().ok());
    let delta = number.and_then(|number: i64| number.checked_mul(sign));
    let delta = delta.ok_or_else(|| {
        let by = String::from_utf8_lossy(&by).into_owned();
        format!("{by:?} is out of range, or no number")
    })?;
    let add = conditional::Add {
        want_token: false,
        delta,
        start,
        expiry: ttl.unwrap_or_default(),
    };
    Ok(Command::new(Opcode::Add, key, add.encode()))
}

impl Expire {
    pub(crate) fn command(self) -> Command {
        expire(self.key, self.time)
    }
}

impl Persist {
    pub(crate) fn command(self) -> Command {
        expire(self.key, Expiry::None)
    }
}

fn expire(key: Bytes, expiry: Expiry) -> Command {
    let (expiry, time) = expiry.operands();
    let value = Opcode::Expire.spec().value_of([u64::from(expiry), time]);
    Command::new(Opcode::Expire, key, value)
}

impl Ttl {
    pub(crate) fn command(self) -> Command {
        Command::new(Opcode::Ttl, self.key, Vec::new())
    }
}

impl Exists {
    pub(crate) fn command(self) -> Command {
        Command::new(Opcode::Ttl, self.key, Vec::new()).for_existence()
    }
}

/// A command whose operands a node accepts.
fn checked(opcode: Opcode, key: Bytes, value: Vec<u8>) -> Result<Command, String> {
    let judged = opcode.spec().check(&key, &value);
    judged.map_err(|error| error.reason)?;
    Ok(Command::new(opcode, key, value))
}

fn number(encoded: &str) -> Result<i64, String> {
    arguments::whole(encoded, i64::MIN, i64::MAX)
}

fn hash(encoded: &str) -> Result<u128, String> {
    let text = arguments::text(encoded)?;
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = is_hex.then(|| u128::from_str_radix(&text, 16).ok());
    hash.flatten()
        .ok_or_else(|| "write 32 hexadecimal digits".to_owned())
}

/// A time from now.
fn ttl(encoded: &str) -> Result<Expiry, String> {
    ttl_of(&arguments::text(encoded)?).map_err(|error| format!("{error}; write a time such as 30s"))
}

fn ttl_of(text: &str) -> Result<Expiry, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a key that expires after no time is not stored".to_owned()),
        Ok(ttl) => Ok(Expiry::after(ttl)),
        Err(error) => Err(error.to_string()),
    }
}

/// A date.
fn deadline(encoded: &str) -> Result<Expiry, String> {
    let text = arguments::text(encoded)?;
    deadline_of(&text).ok_or_else(|| no_date(&text))
}

fn no_date(text: &str) -> String {
    format!("{text:?} is no date from 1970 on; write one such as 2030-01-01T00:00:00Z")
}

fn deadline_of(text: &str) -> Option<Expiry> {
    let date: SystemTime = humantime::parse_rfc3339_weak(text).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    let ms = u64::try_from(since.as_millis()).ok()?;
    Some(Expiry::Deadline(ms.max(1)))
}

/// A time from now, or a date.
fn ttl_or_deadline(encoded: &str) -> Result<Expiry, String> {
    let text = arguments::text(encoded)?;
    let date = deadline_of(&text).map(Ok);
    if date.is_none() && text.as_bytes().get(4) == Some(&b'-') {
        return Err(no_date(&text));
    }
    date.unwrap_or_else(|| ttl_of(&text)).map_err(|error| {
        format!("{error}; write a time such as 30s, or a date such as 2030-01-01T00:00:00Z")
    })
}
