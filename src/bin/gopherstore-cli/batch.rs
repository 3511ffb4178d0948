//! `batch`: commands of a file or of standard input that are executed together or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use gopherstore::arguments;
use gopherstore::client::{Client, Error, Response as Answer};
use gopherstore::wire::Opcode;
use gopherstore::wire::batch::{Batch, BatchAnswer};

use crate::{
    command::{self, Command, Response},
    context::Context,
    lines::{self, Line},
    mistake,
    report::{Failure, Outcome},
};

/// Execute the commands of a file, or of standard input, together or not at all.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "batch", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} payment.txt\n\
        printf 'incr visits\\nexpire visits 30s\\nget visits\\n' | {command_name}\n\
        printf 'get user123\\nget photo\\n' | {command_name} --addr 127.0.0.1:8001",
    note = "A line is a command as in lines: set, get, del, put, take, incr, decr, expire, persist, ttl or exists,\n\
        up to 64 of them, of 4,096 bytes each. Each sees the changes of those before it; other clients see\n\
        all changes or none. Prints a line for each response, as in lines. Where the condition of a put or take\n\
        is not met, or a command is refused, nothing is changed and the message names the line. A key that is\n\
        not found is no failure.\n\
        For options such as --addr see gopherstore-cli --help.",
    error_code(9, "a condition is not met")
)]
pub(crate) struct Arguments {
    /// the file; - or none is standard input
    #[argh(positional, from_str_fn(arguments::path), arg_name = "file")]
    file: Option<PathBuf>,
}

/// Most bytes that are read: the most commands of the greatest length, with every byte escaped, and comments.
const INPUT_BYTES_MAX: u64 = 4 << 20;

/// A command of a batch, and the number of its line, from 1.
pub(crate) type Part = (u64, Command);

pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome, Failure> {
    // Before standard input is read.
    context.addr()?;
    let file = arguments.file.filter(|file| file.as_os_str() != "-");
    let text = match &file {
        Some(file) => read_file(file).map_err(|why| Failure::new(Outcome::LocalInput, why))?,
        None => standard_input()?,
    };
    let command = command(&text).map_err(|message| mistake(&message))?;
    crate::once(context, &command)
}

/// The command of the words `batch` and FILE in a line.
pub(crate) fn of_file(mut operands: Vec<Vec<u8>>) -> Result<Command, String> {
    let name = operands.pop().unwrap_or_default();
    if name == b"-" {
        return Err(
            "- is standard input, which has the lines already; write batch FILE".to_owned(),
        );
    }
    command(&read_file(&PathBuf::from(OsString::from_vec(name)))?)
}

/// All of standard input.
pub(crate) fn standard_input() -> Result<Vec<u8>, Failure> {
    let text = read(io::stdin().lock()).map_err(|error| lines::unreadable(&error))?;
    text.map_err(|message| mistake(&message))
}

fn read_file(file: &PathBuf) -> Result<Vec<u8>, String> {
    let text = File::open(file).and_then(read);
    text.unwrap_or_else(|error| {
        Err(format!(
            "cannot read {}: {error}; name a file with a command on each line",
            file.display()
        ))
    })
}

/// All bytes of `input`, or why there are too many.
fn read(input: impl Read) -> io::Result<Result<Vec<u8>, String>> {
    let mut text = Vec::new();
    input.take(INPUT_BYTES_MAX + 1).read_to_end(&mut text)?;
    let is_too_long = u64::try_from(text.len()).unwrap_or(u64::MAX) > INPUT_BYTES_MAX;
    Ok(if is_too_long {
        Err(format!(
            "the commands have more than {INPUT_BYTES_MAX} bytes; a batch has 64 at most"
        ))
    } else {
        Ok(text)
    })
}

/// The batch of the commands in a text.
pub(crate) fn command(text: &[u8]) -> Result<Command, String> {
    let mut parts: Vec<Part> = Vec::new();
    for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        let part = part(line).map_err(|message| format!("line {number}: {message}"))?;
        parts.extend(part.map(|command| (number, command)));
    }
    if parts.is_empty() {
        return Err("no commands for a batch; write one on each line, such as set k v".to_owned());
    }
    let mut value = Vec::new();
    for (number, command) in &parts {
        let encoded = command.request().encode(&mut value);
        encoded.map_err(|error| format!("line {number}: {error}"))?;
    }
    Batch::decode(&value).map_err(|error| with_line(&error.reason, &parts))?;
    Ok(Command::batch(value, parts))
}

/// The command of a line, if it has one.
fn part(line: &[u8]) -> Result<Option<Command>, String> {
    let words = lines::words(line)?;
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let no_part = |name: &[u8]| {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        Err(format!("{name} may not be in a batch"))
    };
    if name.eq_ignore_ascii_case(b"batch") {
        // Its file might be this one.
        return no_part(name);
    }
    let name = name.to_vec();
    match lines::parse(words)? {
        Line::Nothing => Ok(None),
        Line::Command(command) if command.opcode().spec().batchable => Ok(Some(command)),
        Line::Command(_) | Line::Help | Line::Exit => no_part(&name),
    }
}

/// A message about a request of a batch, with the number of its line.
fn with_line(message: &str, parts: &[Part]) -> String {
    let named = message
        .strip_prefix("request ")
        .and_then(|rest| rest.split_once(": "));
    let place = named.and_then(|(number, reason)| {
        let at = number.parse::<usize>().ok()?.checked_sub(1)?;
        Some((parts.get(at)?.0, reason))
    });
    match place {
        Some((line, reason)) => format!("line {line}: {reason}"),
        None => message.to_owned(),
    }
}

/// Sends a batch.
pub(crate) fn send(
    batch: &Command,
    parts: &[Part],
    client: &mut Client,
) -> Result<Response, Error> {
    let answer = client.request(batch.request()).map_err(|error| {
        if let Error::Server { message } = error {
            let message = with_line(&message, parts);
            return Error::Server { message };
        }
        error
    })?;
    let sample = command::sample(&answer);
    let response = match answer {
        Answer::Value(value) => done(&value, parts),
        Answer::Conflict(value) => conflict(&value, parts),
        Answer::Done | Answer::NotFound | Answer::Pong => None,
    };
    response.ok_or_else(|| command::malformed(client, Opcode::Batch, sample))
}

/// The responses of a batch that was executed; `None` where they are not those of its commands.
fn done(value: &[u8], parts: &[Part]) -> Option<Response> {
    let BatchAnswer::Done(responses) = BatchAnswer::of_ok(value, parts.len())? else {
        return None;
    };
    let responses = parts.iter().zip(&responses);
    let read = responses.map(|((_, command), response)| {
        command.response(Answer::in_batch(command.opcode(), response)?)
    });
    Some(Response::Batch(read.collect::<Option<_>>()?))
}

/// The response of the command whose condition was not met; `None` where it is none.
fn conflict(value: &[u8], parts: &[Part]) -> Option<Response> {
    let BatchAnswer::Conflict { position, response } =
        BatchAnswer::of_conflict(value, parts.len())?
    else {
        return None;
    };
    let (line, command) = parts.get(usize::from(position))?;
    let answer = Answer::in_batch(command.opcode(), &response)?;
    let Response::Conflict { exists, value } = command.response(answer)? else {
        return None;
    };
    Some(Response::BatchConflict {
        line: *line,
        exists,
        value,
    })
}

#[cfg(test)]
mod tests {
    use gopherstore::wire::Opcode;

    use super::*;

    #[test]
    fn the_commands_of_a_batch_are_frames_one_behind_the_other() {
        let text = b"\xef\xbb\xbf# two\nset k \"v w\"\r\n\n  GET k";
        let Ok(batch) = command(text) else {
            unreachable!("two commands")
        };
        let expected = b"\x01\0\x01\0\0\0\x03kv w\x02\0\x01\0\0\0\0k";
        assert_eq!(batch.opcode(), Opcode::Batch);
        assert_eq!(
            batch.request(),
            gopherstore::wire::Request::Batch { value: expected }
        );
    }

    #[test]
    fn a_line_that_is_no_command_of_a_batch_is_named() {
        let many = "get k\n".repeat(65);
        let long = format!("# v\nset k {}", "v".repeat(4_089));
        for (text, expected) in [
            ("", "no commands for a batch"),
            ("# none\n\n", "no commands for a batch"),
            ("get k\n\nset k\n", "line 3: 1 given after set"),
            ("get k\nping", "line 2: ping may not be in a batch"),
            ("Help", "line 1: help may not be in a batch"),
            ("scan", "line 1: scan may not be in a batch"),
            ("batch other", "line 1: batch may not be in a batch"),
            ("get \"k", "line 1: no closing \""),
            (&many, "line 65: "),
            (&long, "line 2: frame of 4097 bytes, limit 4096"),
        ] {
            let message = command(text.as_bytes()).err().unwrap_or_default();
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(read(io::repeat(b'#')).is_ok_and(|text| text.is_err()));
    }
}
