//! The commands: what they are, and what they do.

use std::io::{self, Read};

use gopherstore::{Client, client::Error};

use crate::{
    quote,
    report::{self, Failure, Outcome},
};

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Set {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Get {
        key: Vec<u8>,
    },
    Del {
        key: Vec<u8>,
    },
    Ping,
    Status,
    /// Gives up the node's data.
    Resync,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Value(Vec<u8>),
    NotFound,
    Pong,
    Status(String),
}

impl Command {
    /// Names, operands and what they do, for the help. An order that gives up data is not for lines.
    pub(crate) const SYNOPSES: [(&str, &str); 5] = [
        ("set KEY VALUE", "store VALUE under KEY"),
        ("get KEY", "print the value of KEY"),
        ("del KEY", "remove KEY"),
        ("ping", "ask whether the node is there"),
        ("status", "print how the node is"),
    ];

    /// The command in the words of a line, if they make one.
    pub(crate) fn from_words(words: Vec<Vec<u8>>) -> Result<Command, String> {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
        let operands: Vec<Vec<u8>> = words.collect();
        let known = |(synopsis, _): &&(&str, &str)| synopsis.split(' ').next() == Some(&*name);
        let Some((synopsis, _)) = Command::SYNOPSES.iter().find(known) else {
            if crate::has_command(&name) {
                return Err(format!(
                    "{name} is no command for lines; in a shell, write gopherstore-cli {name}"
                ));
            }
            return Err(format!(
                "unknown command {name}; help lists those that there are"
            ));
        };
        let count = operands.len();
        let mut operands = operands.into_iter();
        match (&*name, operands.next(), operands.next(), count) {
            ("set", Some(key), Some(value), 2) => Ok(Command::Set { key, value }),
            ("get", Some(key), None, 1) => Ok(Command::Get { key }),
            ("del", Some(key), None, 1) => Ok(Command::Del { key }),
            ("ping", None, None, 0) => Ok(Command::Ping),
            ("status", None, None, 0) => Ok(Command::Status),
            _ => Err(format!(
                "{count} given after {name}; write {synopsis}, with quotes around what holds spaces"
            )),
        }
    }

    pub(crate) const fn is_write(&self) -> bool {
        matches!(self, Command::Set { .. } | Command::Del { .. })
    }

    /// The key, for messages.
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Command::Set { key, .. } | Command::Get { key } | Command::Del { key } => key,
            Command::Ping | Command::Status | Command::Resync => &[],
        }
    }

    /// Runs it as one of several, which may read what those before it wrote. A write that a follower refuses goes to
    /// the leader, and the follower may not have it yet when it is read; so the client stays with the leader from then
    /// on.
    pub(crate) fn run_in_session(&self, client: &mut Client) -> Result<Answer, Error> {
        let follower = client.addr().to_owned();
        let answer = self.run(client)?;
        if self.is_write() && client.stay_with_leader() {
            report::note(&format!(
                "{follower} follows and may not show a write at once; this session goes on with the leader at {}",
                client.addr()
            ));
        }
        Ok(answer)
    }

    pub(crate) fn run(&self, client: &mut Client) -> Result<Answer, Error> {
        Ok(match self {
            Command::Set { key, value } => {
                client.set(key, value)?;
                Answer::Done
            }
            Command::Get { key } => match client.get(key)? {
                Some(value) => Answer::Value(value),
                None => Answer::NotFound,
            },
            Command::Del { key } if client.del(key)? => Answer::Done,
            Command::Del { .. } => Answer::NotFound,
            Command::Ping => {
                client.ping()?;
                Answer::Pong
            }
            Command::Status => Answer::Status(client.status()?),
            Command::Resync => {
                client.discard()?;
                Answer::Done
            }
        })
    }
}

/// A status as it is printed: as it came, and on a terminal with all values in one column.
pub(crate) fn shown_status(text: &str, is_terminal: bool) -> String {
    if !is_terminal {
        return text.to_owned();
    }
    let pairs: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once(": ").unwrap_or((line, "")))
        .collect();
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut shown = String::new();
    for (key, value) in pairs {
        // What a terminal would take for an order does not reach it.
        let line = quote::one_line(&format!("{key:<width$}  {value}"));
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}

/// Bytes of the longest value that a frame can carry. Source: docs/GBP.md, section 2.
const VALUE_LEN_MAX: u64 = 0xFFFF_FFFF;

/// All of standard input, as a value.
pub(crate) fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let mut input = io::stdin().lock().take(VALUE_LEN_MAX + 1);
    match input.read_to_end(&mut value) {
        Ok(_) if input.limit() == 0 => Err(Failure::new(
            Outcome::Usage,
            format!(
                "the value on standard input is longer than {VALUE_LEN_MAX} bytes, and no frame carries it"
            ),
        )),
        Ok(_) => Ok(value),
        Err(error) => Err(Failure::new(
            Outcome::LocalInput,
            format!("cannot read the value from standard input: {error}; redirect a file into it"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, String> {
        Command::from_words(quote::words(line.as_bytes()).map_err(|error| error.to_string())?)
    }

    #[test]
    fn lines_are_commands_in_any_case() {
        let set = Command::Set {
            key: b"k".to_vec(),
            value: b"-".to_vec(),
        };
        assert_eq!(command("set k -"), Ok(set.clone()));
        assert_eq!(command("SET k \"-\""), Ok(set));
        assert_eq!(command("ping"), Ok(Command::Ping));
        assert_eq!(command("Status"), Ok(Command::Status));
        let help = Command::Get {
            key: b"help".to_vec(),
        };
        assert_eq!(command("get help"), Ok(help));
    }

    #[test]
    fn a_status_is_a_table_on_a_terminal_alone() {
        let text = "node: n1\nreason: it says: no\x1b[31m\nodd\n";
        assert_eq!(shown_status(text, false), text);
        let table = "node    n1\nreason  it says: no\\u{1b}[31m\nodd\n";
        assert_eq!(shown_status(text, true), table);
        assert_eq!(shown_status("", true), "");
    }

    #[test]
    fn wrong_lines_say_how_to_write_them() {
        for line in [
            "set",
            "set k",
            "set k v w",
            "get",
            "get a b",
            "del",
            "ping x",
            "status x",
        ] {
            let message = command(line).err().unwrap_or_default();
            let name = line.split(' ').next().unwrap_or_default();
            assert!(message.contains(&format!("; write {name}")), "{message}");
        }
        let message = command("tail").err().unwrap_or_default();
        assert!(message.ends_with("write gopherstore-cli tail"), "{message}");
        let message = command("flush all").err().unwrap_or_default();
        assert!(message.starts_with("unknown command flush;"), "{message}");
    }
}
