//! Commands: an operation of the protocol's table with a key and a value.

use std::io::{self, Read};
use std::time::Duration;

use gopherstore::client::{Error, ProtocolError};
use gopherstore::wire::scan::Scan;
use gopherstore::wire::{
    Opcode, Request, SYNC_TIMEOUT_MAX_MS, SyncRequest, Token, TokenError,
    command::OkValue,
    conditional::{Condition, Found, Put, Take, Want},
    expiry::ttl_of,
};
use gopherstore::{Client, client};

use crate::{
    batch, keys, quote,
    report::{self, Failure, Outcome},
    scan,
};

/// A request of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    opcode: Opcode,
    key: Vec<u8>,
    value: Vec<u8>,
    /// Whether only the existence of the key is asked for.
    is_for_existence: bool,
    /// The commands of a batch.
    parts: Vec<batch::Part>,
}

/// The state that a SYNC waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// It asks for the position now.
    Nothing,
    /// The data set has this position.
    At(Token),
    /// The disk has the data set.
    Durable,
}

/// A successful response to a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Done,
    Value(Vec<u8>),
    NotFound,
    /// The parts that a PUT or TAKE asked for.
    Found {
        token: Option<Token>,
        value: Option<Vec<u8>>,
    },
    /// A condition is not met: whether the key exists, and its value where that was asked for.
    Conflict {
        exists: bool,
        value: Option<Vec<u8>>,
    },
    /// The time that a key has left, in milliseconds; `None` where it does not expire.
    Left(Option<u64>),
    Pong,
    /// A number in decimal.
    Number(String),
    /// A position of the log.
    Token(Token),
    /// Keys, a line each.
    Keys(String),
    /// The text of a STATUS.
    Status(String),
    /// The responses to the commands of a batch.
    Batch(Vec<Response>),
    /// A condition in a batch is not met, that of the command in this line.
    BatchConflict {
        line: u64,
        exists: bool,
        value: Option<Vec<u8>>,
    },
}

/// A command for lines.
pub(crate) struct Offer {
    /// Name and operands; optional ones are in brackets.
    pub(crate) synopsis: &'static str,
    /// Its effect, for the help.
    pub(crate) meaning: &'static str,
    /// Makes the command from its operands, whose number the synopsis allows.
    make: fn(Vec<Vec<u8>>) -> Result<Command, String>,
}

/// The end of a synopsis with options.
pub(crate) const OPTIONS: &str = "[OPTIONS]";

/// The commands for lines. The orders to a node, DISCARD and SNAPSHOT, are none of them: DISCARD removes data.
pub(crate) const OFFERS: &[Offer] = &[
    Offer {
        synopsis: "set KEY VALUE",
        meaning: "store VALUE under KEY",
        make: |operands| Ok(Command::plain(Opcode::Set, operands)),
    },
    Offer {
        synopsis: "get KEY",
        meaning: "print the value of KEY",
        make: |operands| Ok(Command::plain(Opcode::Get, operands)),
    },
    Offer {
        synopsis: "del KEY",
        meaning: "remove KEY",
        make: |operands| Ok(Command::plain(Opcode::Del, operands)),
    },
    Offer {
        synopsis: "put KEY VALUE [OPTIONS]",
        meaning: "store VALUE with conditions, expiry",
        make: |operands| keys::command("put", operands, "put KEY VALUE [OPTIONS]"),
    },
    Offer {
        synopsis: "take KEY [OPTIONS]",
        meaning: "remove KEY and print its value",
        make: |operands| keys::command("take", operands, "take KEY [OPTIONS]"),
    },
    Offer {
        synopsis: "incr KEY [BY] [OPTIONS]",
        meaning: "add BY, or 1, to a number",
        make: |operands| keys::command("incr", operands, "incr KEY [BY] [OPTIONS]"),
    },
    Offer {
        synopsis: "decr KEY [BY] [OPTIONS]",
        meaning: "subtract BY, or 1",
        make: |operands| keys::command("decr", operands, "decr KEY [BY] [OPTIONS]"),
    },
    Offer {
        synopsis: "expire KEY TIME",
        meaning: "let KEY expire after TIME, such as 30s",
        make: |operands| keys::command("expire", operands, "expire KEY TIME"),
    },
    Offer {
        synopsis: "persist KEY",
        meaning: "let KEY no longer expire",
        make: |operands| keys::command("persist", operands, "persist KEY"),
    },
    Offer {
        synopsis: "ttl KEY",
        meaning: "print the time until KEY expires",
        make: |operands| keys::command("ttl", operands, "ttl KEY"),
    },
    Offer {
        synopsis: "exists KEY",
        meaning: "check whether KEY exists",
        make: |operands| keys::command("exists", operands, "exists KEY"),
    },
    Offer {
        synopsis: "sync [GOAL] [TIME]",
        meaning: "wait for GOAL: a token, or durable",
        make: |operands| {
            let mut operands = operands.into_iter();
            let mut next = || operands.next();
            let goal = match next() {
                None => Goal::Nothing,
                Some(word) if word.eq_ignore_ascii_case(b"durable") => Goal::Durable,
                Some(token) => Goal::At(parsed_token(&token)?),
            };
            let time = next().map(|time| crate::duration(&String::from_utf8_lossy(&time)));
            let time = time.transpose()?;
            Ok(Command::sync(goal, time.unwrap_or(crate::TIMEOUT_DEFAULT)))
        },
    },
    Offer {
        synopsis: "scan [PREFIX]",
        meaning: "print the keys that begin with PREFIX",
        make: |operands| match operands.first() {
            // Taken for a prefix, it would find nothing and say so.
            Some(option) if option.starts_with(b"--") => {
                let option = String::from_utf8_lossy(option);
                Err(format!(
                    "scan has no {option} in lines; gopherstore-cli scan has options"
                ))
            }
            Some(_) | None => Ok(Command::scan(operands)),
        },
    },
    Offer {
        synopsis: "batch FILE",
        meaning: "carry out FILE together, or not at all",
        make: batch::of_file,
    },
    Offer {
        synopsis: "ping",
        meaning: "ask whether the node is there",
        make: |operands| Ok(Command::plain(Opcode::Ping, operands)),
    },
    Offer {
        synopsis: "status",
        meaning: "print how the node is",
        make: |operands| Ok(Command::plain(Opcode::Status, operands)),
    },
];

impl Offer {
    pub(crate) fn name(&self) -> &'static str {
        self.synopsis.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn operands(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.synopsis.split(' ').skip(1)
    }

    /// Whether the command takes options, and judges the number of its operands itself.
    pub(crate) fn takes_options(&self) -> bool {
        self.synopsis.ends_with(OPTIONS)
    }

    /// Whether the command may have this number of operands.
    pub(crate) fn takes(&self, count: usize) -> bool {
        let required = self.operands().filter(|operand| !operand.starts_with('['));
        (required.count()..=self.operands().count()).contains(&count)
    }
}

impl Command {
    pub(crate) const fn new(opcode: Opcode, key: Vec<u8>, value: Vec<u8>) -> Command {
        Command {
            opcode,
            key,
            value,
            is_for_existence: false,
            parts: Vec::new(),
        }
    }

    /// A batch of these commands, whose frames are `value`.
    pub(crate) fn batch(value: Vec<u8>, parts: Vec<batch::Part>) -> Command {
        Command {
            parts,
            ..Command::new(Opcode::Batch, Vec::new(), value)
        }
    }

    /// The same command, asked only to learn whether the key exists.
    pub(crate) fn for_existence(self) -> Command {
        Command {
            is_for_existence: true,
            ..self
        }
    }

    /// A command whose operands are its key and its value, if it has them.
    fn plain(opcode: Opcode, operands: Vec<Vec<u8>>) -> Command {
        let mut operands = operands.into_iter();
        let mut next = || operands.next().unwrap_or_default();
        Command::new(opcode, next(), next())
    }

    /// A SYNC, which waits for `goal` that long.
    pub(crate) fn sync(goal: Goal, timeout: Duration) -> Command {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let timeout_ms = timeout_ms.min(SYNC_TIMEOUT_MAX_MS);
        let request = match goal {
            Goal::Nothing => SyncRequest::Position,
            Goal::At(token) => SyncRequest::At { token, timeout_ms },
            Goal::Durable => SyncRequest::Durable { timeout_ms },
        };
        Command::new(Opcode::Sync, Vec::new(), request.value())
    }

    /// A SCAN from the beginning, of the keys with this prefix.
    fn scan(mut operands: Vec<Vec<u8>>) -> Command {
        let prefix = operands.pop().unwrap_or_default();
        Command::new(Opcode::Scan, prefix, Scan::default().value())
    }

    /// The command that the words of a line form.
    pub(crate) fn from_words(words: Vec<Vec<u8>>) -> Result<Command, String> {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
        let operands: Vec<Vec<u8>> = words.collect();
        let Some(offer) = OFFERS.iter().find(|offer| offer.name() == name) else {
            if crate::has_command(&name) {
                return Err(format!(
                    "{name} is no command for lines; in a shell, write gopherstore-cli {name}"
                ));
            }
            return Err(format!(
                "unknown command {name}; help lists those that there are"
            ));
        };
        if !offer.takes_options() && !offer.takes(operands.len()) {
            return Err(wrong_count(operands.len(), offer.synopsis));
        }
        (offer.make)(operands)
    }

    pub(crate) const fn opcode(&self) -> Opcode {
        self.opcode
    }

    pub(crate) const fn request(&self) -> Request<'_> {
        Request::new(self.opcode, self.key.as_slice(), self.value.as_slice())
    }

    pub(crate) const fn is_write(&self) -> bool {
        self.opcode.spec().writes
    }

    /// The key, for messages.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Runs the command in a session. After a write that a follower redirects, the client stays with the leader, since
    /// a later read at the follower might miss the write.
    pub(crate) fn run_in_session(&self, client: &mut Client) -> Result<Response, Error> {
        let follower = client.addr().to_owned();
        let response = self.run(client)?;
        if self.is_write() && client.stay_with_leader() {
            report::note(&format!(
                "{follower} follows and may not show a write at once; this session goes on with the leader at {}",
                client.addr()
            ));
        }
        Ok(response)
    }

    pub(crate) fn run(&self, client: &mut Client) -> Result<Response, Error> {
        if self.opcode == Opcode::Scan {
            return scan::lines(client, &self.key).map(Response::Keys);
        }
        if !self.parts.is_empty() {
            return batch::send(self, &self.parts, client);
        }
        let answer = client.request(self.request())?;
        let sample = sample(&answer);
        let response = self.response(answer);
        response.ok_or_else(|| malformed(client, self.opcode, sample))
    }

    /// The response to the command; `None` where it lacks the fields that the command asks for.
    pub(crate) fn response(&self, answer: client::Response) -> Option<Response> {
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        Some(match answer {
            client::Response::Done if self.opcode.spec().ok == OkValue::Found => self.found(b"")?,
            client::Response::Done => Response::Done,
            client::Response::Value(_) if self.is_for_existence => Response::Done,
            client::Response::Value(value) => match self.opcode.spec().ok {
                OkValue::Text => Response::Status(text(value)),
                OkValue::Number => Response::Number(text(value)),
                OkValue::Found => self.found(&value)?,
                OkValue::Remaining => Response::Left(ttl_of(&value).flatten()),
                OkValue::Empty
                | OkValue::Bytes
                | OkValue::Batch
                | OkValue::Pong
                | OkValue::Sums
                | OkValue::Items
                | OkValue::Entries
                | OkValue::Stream => Response::Value(value),
                OkValue::Token => {
                    let bytes = value.first_chunk().copied();
                    // It was judged when it was read.
                    Response::Token(Token::decode(bytes.unwrap_or_default()))
                }
            },
            client::Response::NotFound => Response::NotFound,
            client::Response::Conflict(value) => {
                let found = Found::of_conflict(&value, self.want())?;
                Response::Conflict {
                    exists: found.existed,
                    value: found.value.map(<[u8]>::to_vec),
                }
            }
            client::Response::Pong => Response::Pong,
        })
    }

    /// The response whose OK has this value; `None` where it lacks a field.
    fn found(&self, value: &[u8]) -> Option<Response> {
        let want = self.want();
        if want.is_nothing() {
            return Some(Response::Done);
        }
        let found = Found::of_ok(value, want)?;
        Some(Response::Found {
            token: found.token,
            value: found.value.map(<[u8]>::to_vec),
        })
    }

    /// Returns the parts that a PUT or TAKE asks for.
    fn want(&self) -> Want {
        let put = || Put::decode(&self.key, &self.value).map(|put| put.want);
        let take = || Take::decode(&self.key, &self.value).map(|take| take.want);
        let want = if self.opcode == Opcode::Put {
            put()
        } else {
            take()
        };
        want.unwrap_or_default()
    }

    /// The message for a condition in a batch that is not met, that of the command in this line.
    pub(crate) fn conflict_in(&self, line: u64, exists: bool) -> String {
        let part = self.parts.iter().find(|part| part.0 == line);
        let message = part.map(|(_, command)| command.conflict(exists));
        let message = message.unwrap_or_else(|| self.conflict(exists));
        message.replacen("conflict: ", &format!("conflict: line {line}: "), 1)
    }

    /// The message for a condition that is not met.
    pub(crate) fn conflict(&self, exists: bool) -> String {
        let key = quote::quoted(&self.key);
        let condition = if self.opcode == Opcode::Put {
            Put::decode(&self.key, &self.value).map(|put| put.condition)
        } else {
            Take::decode(&self.key, &self.value).map(|take| take.condition)
        };
        let compares = matches!(condition, Ok(Condition::Equal(_) | Condition::EqualHash(_)));
        let state = match (exists, compares) {
            (true, true) => "has another value",
            (true, false) => "exists",
            (false, _) => "does not exist",
        };
        format!("conflict: {key} {state}; nothing was changed")
    }
}

/// Most bytes of a malformed response that an error keeps.
const SAMPLE_LEN: usize = 32;

/// The start of a response's value.
pub(crate) fn sample(answer: &client::Response) -> Vec<u8> {
    match answer {
        client::Response::Value(value) | client::Response::Conflict(value) => {
            value[..value.len().min(SAMPLE_LEN)].to_vec()
        }
        client::Response::Done | client::Response::NotFound | client::Response::Pong => Vec::new(),
    }
}

/// The error for a response that lacks fields. The start of its value is `sample`.
pub(crate) fn malformed(client: &Client, opcode: Opcode, sample: Vec<u8>) -> Error {
    let value = sample;
    Error::Protocol {
        addr: client.redirected_to().unwrap_or(client.addr()).to_owned(),
        source: ProtocolError::Fields { opcode, value },
    }
}

/// The time that a key has left.
pub(crate) fn shown_left(left: Option<u64>) -> String {
    left.map_or_else(|| "never".to_owned(), |ms| format!("{ms}ms"))
}

/// The token that a word states.
pub(crate) fn parsed_token(word: &[u8]) -> Result<Token, String> {
    let text = String::from_utf8_lossy(word);
    let token = text.parse();
    token.map_err(|error: TokenError| format!("{text:?} is no token: {error}, as sync prints it"))
}

/// The message for a wrong number of operands.
pub(crate) fn wrong_count(count: usize, synopsis: &str) -> String {
    let name = synopsis.split(' ').next().unwrap_or_default();
    format!("{count} given after {name}; write {synopsis}, with quotes around what holds spaces")
}

/// A status for output: unchanged, or on a terminal with all values in one column.
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
        // Control characters are escaped, so that the terminal does not execute them.
        let line = quote::one_line(&format!("{key:<width$}  {value}"));
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}

/// Longest value that a frame can carry, in bytes. Source: docs/GBP.md, section 2.
const VALUE_LEN_MAX: u64 = 0xFFFF_FFFF;

/// Reads a value from standard input.
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
        let set = Command::new(Opcode::Set, b"k".to_vec(), b"-".to_vec());
        assert_eq!(command("set k -"), Ok(set.clone()));
        assert_eq!(command("SET k \"-\""), Ok(set));
        assert_eq!(
            command("ping"),
            Ok(Command::new(Opcode::Ping, vec![], vec![]))
        );
        assert_eq!(
            command("Status"),
            Ok(Command::new(Opcode::Status, vec![], vec![]))
        );
        let add = |delta: i64| {
            let value = Opcode::Add
                .spec()
                .value_of([0, delta.cast_unsigned(), 0, 0]);
            Ok(Command::new(Opcode::Add, b"k".to_vec(), value))
        };
        assert_eq!((command("incr k"), command("decr k")), (add(1), add(-1)));
        assert_eq!(
            (command("INCR k -5"), command("decr k 7")),
            (add(-5), add(-7))
        );
        let help = Command::new(Opcode::Get, b"help".to_vec(), vec![]);
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
    fn errors_of_wrong_lines_give_the_correct_form() {
        for line in [
            "set",
            "set k",
            "set k v w",
            "get",
            "get a b",
            "del",
            "incr",
            "decr k 1 2",
            "ping x",
            "status x",
        ] {
            let message = command(line).err().unwrap_or_default();
            let name = line.split(' ').next().unwrap_or_default();
            assert!(message.contains(&format!("; write {name}")), "{message}");
        }
        let token = Token {
            epoch: 1,
            index: 2,
            nonce: 3,
        };
        let five_seconds = Duration::from_secs(5);
        assert_eq!(
            command("sync"),
            Ok(Command::sync(Goal::Nothing, five_seconds))
        );
        let at = Command::sync(Goal::At(token), five_seconds);
        assert_eq!(command(&format!("sync {token}")), Ok(at));
        let at = Command::sync(Goal::At(token), Duration::from_millis(200));
        assert_eq!(command(&format!("SYNC {token} 200ms")), Ok(at));
        let durable = Command::sync(Goal::Durable, Duration::from_secs(1));
        assert_eq!(command("sync Durable 1s"), Ok(durable));
        assert!(command("sync 12").is_err_and(|error| error.contains("48 hexadecimal digits")));
        for line in ["incr k one", "decr k -9223372036854775808"] {
            let message = command(line).err().unwrap_or_default();
            assert!(
                message.contains("is out of range, or no number"),
                "{message}"
            );
        }
        let message = command("tail").err().unwrap_or_default();
        assert!(message.ends_with("write gopherstore-cli tail"), "{message}");
        let message = command("flush all").err().unwrap_or_default();
        assert!(
            message.ends_with("write gopherstore-cli flush"),
            "{message}"
        );
        let message = command("purge all").err().unwrap_or_default();
        assert!(message.starts_with("unknown command purge;"), "{message}");
    }
}
