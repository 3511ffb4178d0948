//! The commands: what they are, and what they do.

use std::io::{self, Read};

use gopherstore::{Client, client::Error};

use crate::report::{Failure, Outcome};

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Set { key: Vec<u8>, value: Vec<u8> },
    Get { key: Vec<u8> },
    Del { key: Vec<u8> },
    Ping,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Value(Vec<u8>),
    NotFound,
    Pong,
}

impl Command {
    /// Names, operands and what they do, for the help.
    pub(crate) const SYNOPSES: [(&str, &str); 4] = [
        ("set KEY VALUE", "store VALUE under KEY"),
        ("get KEY", "print the value of KEY"),
        ("del KEY", "remove KEY"),
        ("ping", "ask whether the node is there"),
    ];

    /// The command in the words of a line, if they make one.
    pub(crate) fn from_words(words: Vec<Vec<u8>>) -> Result<Command, String> {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
        let operands: Vec<Vec<u8>> = words.collect();
        let known = |(synopsis, _): &&(&str, &str)| synopsis.split(' ').next() == Some(&*name);
        let Some((synopsis, _)) = Command::SYNOPSES.iter().find(known) else {
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
            Command::Ping => &[],
        }
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
        })
    }
}

/// All of standard input, as a value.
pub(crate) fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    match io::stdin().lock().read_to_end(&mut value) {
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
    use crate::quote;

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
        let help = Command::Get {
            key: b"help".to_vec(),
        };
        assert_eq!(command("get help"), Ok(help));
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
        ] {
            let message = command(line).err().unwrap_or_default();
            let name = line.split(' ').next().unwrap_or_default();
            assert!(message.contains(&format!("; write {name}")), "{message}");
        }
        let message = command("flush all").err().unwrap_or_default();
        assert!(message.starts_with("unknown command flush;"), "{message}");
    }
}
