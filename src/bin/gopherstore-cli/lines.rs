//! Commands line by line from a pipe or a file. The prompt shares the parsing of lines and the format of responses.

use std::io::{self, BufRead, IsTerminal, Read};

use gopherstore::Client;

use crate::{
    command::{Command, OFFERS, Response, shown_left, shown_status},
    quote,
    report::{self, Failure, Outcome},
};

/// Syntax of words and format of values.
pub(crate) const QUOTING: &str = "\
A word with spaces stands in quotes. In double quotes \\n \\r \\t \\\\ \\\" \\xHH are escapes, in single
quotes every byte stands for itself. Lines that begin with # are skipped. A value prints in double quotes
where it is empty, begins with ( or \", or could not be read plain. A line has 128 MiB at most; a longer
value is for gopherstore-cli set KEY - < FILE.
";

/// Longest line in bytes, with its end: enough for an escaped value of 64 MiB, the default limit of nodes.
const LINE_LEN_MAX: usize = 128 << 20;

/// Byte order mark that some editors and shells put before text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Nothing,
    Help,
    Exit,
    Command(Command),
}

/// The words of a line; a comment has none. A byte order mark is skipped on every line, since concatenated files have
/// it on later lines too.
pub(crate) fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    if line.trim_ascii_start().starts_with(b"#") {
        return Ok(Vec::new());
    }
    quote::words(line).map_err(|error| error.to_string())
}

/// Parses the words of a line.
pub(crate) fn parse(words: Vec<Vec<u8>>) -> Result<Line, String> {
    match words.as_slice() {
        [] => Ok(Line::Nothing),
        // Also after `help COMMAND`: the help of all commands fits a screen.
        [word] | [word, _] if word.eq_ignore_ascii_case(b"help") => Ok(Line::Help),
        [word] if word.eq_ignore_ascii_case(b"exit") || word.eq_ignore_ascii_case(b"quit") => {
            Ok(Line::Exit)
        }
        _ => Command::from_words(words).map(Line::Command),
    }
}

/// Runs commands until standard input ends. Returns the outcome of the first failing line.
pub(crate) fn run(client: &mut Client, node: Option<&str>) -> Outcome {
    let mut input = io::stdin().lock();
    let mut first_failure = Outcome::Done;
    let mut number = 0_u64;
    let mut line = Vec::new();
    loop {
        number += 1;
        let (outcome, is_over) = match read_line(&mut input, &mut line) {
            Ok(false) => break,
            Ok(true) => match step(client, node, &line) {
                Ok(None) => break,
                Ok(Some(outcome)) => (outcome, false),
                Err(failure) => {
                    failure.print(Some(number));
                    (failure.outcome, false)
                }
            },
            Err(failure) => {
                failure.print(Some(number));
                (failure.outcome, true)
            }
        };
        if first_failure == Outcome::Done {
            first_failure = outcome;
        }
        if is_over || outcome.is_connection_failure() || outcome == Outcome::LocalInput {
            break;
        }
    }
    first_failure
}

/// Reads a line with its end. Returns false at the end of input. After a line that is too long, no line can be read.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, Failure> {
    line.clear();
    let len_max = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
    let result = input.take(len_max).read_until(b'\n', line);
    result.map_err(|error| unreadable(&error))?;
    if line.len() == LINE_LEN_MAX && !line.ends_with(b"\n") {
        let message = format!(
            "longer than {} MiB, so it and all behind it is left out; a long value is for set KEY - < FILE",
            LINE_LEN_MAX >> 20
        );
        return Err(Failure::new(Outcome::Usage, message));
    }
    Ok(!line.is_empty())
}

/// The failure of standard input.
pub(crate) fn unreadable(error: &io::Error) -> Failure {
    let message = format!("cannot read standard input: {error}; redirect a file into it");
    Failure::new(Outcome::LocalInput, message)
}

/// Executes one line; `None` if it ends the session.
fn step(client: &mut Client, node: Option<&str>, line: &[u8]) -> Result<Option<Outcome>, Failure> {
    let usage = |message| Failure::new(Outcome::Usage, message);
    let command = match words(line).and_then(parse).map_err(usage)? {
        Line::Nothing => return Ok(Some(Outcome::Done)),
        Line::Exit => return Ok(None),
        Line::Help => return print(help().as_bytes()),
        Line::Command(command) => command,
    };
    let response = command
        .run_in_session(client)
        .map_err(|error| report::failure(&error, command.opcode(), node))?;
    let (text, outcome) = shown(response);
    Ok(print(format!("{text}\n").as_bytes())?.map(|_| outcome))
}

/// The text of a response, without the last line feed.
pub(crate) fn shown(response: Response) -> (String, Outcome) {
    match response {
        Response::Done => ("OK".to_owned(), Outcome::Done),
        Response::Pong => ("PONG".to_owned(), Outcome::Done),
        Response::NotFound => ("(not found)".to_owned(), Outcome::NotFound),
        Response::Found { token, value } => {
            let token = token.map(|token| token.to_string());
            let value = value.map(|value| quote::shown(&value));
            let words: Vec<String> = token.into_iter().chain(value).collect();
            let text = match words.is_empty() {
                true => "(none)".to_owned(),
                false => words.join(" "),
            };
            (text, Outcome::Done)
        }
        Response::Left(left) => (shown_left(left), Outcome::Done),
        Response::Conflict { value, .. } => {
            let value = value.map(|value| format!(" {}", quote::shown(&value)));
            let text = format!("(conflict){}", value.unwrap_or_default());
            (text, Outcome::Conflict)
        }
        Response::Batch(responses) => {
            let lines = responses.into_iter().map(|response| shown(response).0);
            // A key of a batch that is not found is no failure.
            (lines.collect::<Vec<_>>().join("\n"), Outcome::Done)
        }
        Response::BatchConflict {
            line,
            exists,
            value,
        } => {
            let (text, outcome) = shown(Response::Conflict { exists, value });
            (format!("(line {line}) {text}"), outcome)
        }
        Response::Value(value) => (quote::shown(&value), Outcome::Done),
        Response::Number(text) => (text, Outcome::Done),
        Response::Keys(text) if text.is_empty() => ("(no keys)".to_owned(), Outcome::Done),
        Response::Keys(text) => (text, Outcome::Done),
        Response::Token(token) => (token.to_string(), Outcome::Done),
        Response::Status(text) => {
            let text = shown_status(&text, io::stdout().is_terminal());
            (text.trim_end().to_owned(), Outcome::Done)
        }
    }
}

/// Prints a response and flushes; `None` if the output has no reader.
pub(crate) fn print(text: &[u8]) -> Result<Option<Outcome>, Failure> {
    match crate::write_out(text) {
        Ok(true) => Ok(Some(Outcome::Done)),
        Ok(false) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn help() -> String {
    let mut text = String::new();
    let more = [
        ("help", "print this"),
        ("exit, quit", "leave; so does the end of input"),
    ];
    let offers = OFFERS.iter().map(|offer| (offer.synopsis, offer.meaning));
    for (synopsis, meaning) in offers.chain(more) {
        text.push_str(&format!("{synopsis:<23} {meaning}\n"));
    }
    text.push('\n');
    text.push_str(QUOTING);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use gopherstore::wire::Opcode;

    fn parse(line: &[u8]) -> Result<Line, String> {
        super::parse(words(line)?)
    }

    #[test]
    fn lines_are_told_apart() {
        for nothing in ["", "\n", "  \r\n", "# set k v\n", "  # \"", "#\n"] {
            assert_eq!(parse(nothing.as_bytes()), Ok(Line::Nothing), "{nothing}");
        }
        assert_eq!(parse(b"help\n"), Ok(Line::Help));
        assert_eq!(parse(b"help set\n"), Ok(Line::Help));
        assert_eq!(parse(b"EXIT\r\n"), Ok(Line::Exit));
        assert_eq!(parse(b" quit"), Ok(Line::Exit));
        let get = Command::new(Opcode::Get, b"#1".to_vec(), Vec::new());
        assert_eq!(parse(b"get #1\r\n"), Ok(Line::Command(get)));
        assert!(parse(b"get \"k").is_err());
    }

    #[test]
    fn the_help_fits_a_terminal_and_names_every_command() {
        let text = help();
        for offer in OFFERS {
            assert!(text.contains(offer.synopsis));
        }
        assert!(text.lines().all(|line| line.len() <= 110));
    }
}
