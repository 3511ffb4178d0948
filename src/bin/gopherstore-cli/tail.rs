//! `tail`: prints the replication stream of a node.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments,
    client::{Client, ClientOptions, Error, NodeStatus, Observer, Watch},
    history::History,
    wire::{
        Opcode, Request,
        replication::{Frames, Message, Start},
    },
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use crate::{
    ListForm,
    context::Context,
    list_form, quote,
    report::{self, Failure, Outcome, UNKNOWN_OPCODE},
    write_out,
};

/// First and longest pause between two attempts to reconnect; it doubles each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Most bytes of a value on a line.
const SHOWN_BYTES: usize = 64;

/// Print each write as it enters the log of a node, leader or follower.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "tail", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} --from 1 --values\n\
        {command_name} --addr 127.0.0.1:8001 -w json | jq .key",
    note = "Each line has index, operation, key and the length of the value. A line with EPOCH, a number\n\
        and a nonce shows that a leader begins. After a lost connection the output continues where it\n\
        was. Messages name entries that the node's log no longer holds, and entries that were shown\n\
        but are no longer part of the node's data. The node does not wait for this command, and ends\n\
        a stream that is too slow for its log. Ctrl-C ends the command.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Tail {
    /// index of the first entry to show, from 1; by default the next new entry
    #[argh(option, from_str_fn(positive), arg_name = "INDEX")]
    from: Option<u64>,
    /// end after this number of entries
    #[argh(option, from_str_fn(positive), arg_name = "N")]
    count: Option<u64>,
    /// show values too; lines show their first 64 bytes, json all of them
    #[argh(switch)]
    values: bool,
    /// lines (default) or json: an object on a line for each entry
    #[argh(
        option,
        short = 'w',
        long = "write-out",
        from_str_fn(list_form),
        arg_name = "FORM",
        default = "ListForm::Lines"
    )]
    form: ListForm,
}

fn positive(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 1, u64::MAX)
}

pub(crate) fn run(command: Tail, context: &Context) -> Result<Outcome, Failure> {
    let addr = context.addr()?;
    let options = context.options();
    let watch = command.from.map_or(Watch::New, Watch::From);
    let first = Observer::open(&addr, &options, watch)
        .map_err(|error| failure(&error, command.from.is_some(), context))?;
    if io::stderr().is_terminal() {
        say(&format!(
            "watching {addr} from index {}",
            from_index(&first)
        ));
    }
    let mut view = View {
        form: command.form,
        values: command.values,
        left: command.count,
        out: Vec::new(),
    };
    let mut observer = first;
    let mut pause = PAUSES.0;
    loop {
        let begun = from_index(&observer);
        let lost = match view.show(&mut observer) {
            Ok(()) => return Ok(Outcome::Done),
            Err(End::Failed(failure)) => return Err(failure),
            Err(End::Lost(error)) => error,
        };
        let next = next_index(&observer);
        say(&format!("{lost}; trying again, from index {next} on"));
        // A stream that ends at once is not requested again at once.
        pause = if next > begun {
            PAUSES.0
        } else {
            PAUSES.1.min(pause * 2)
        };
        thread::sleep(pause);
        let (found, shared) = again(&addr, &options, &observer);
        say(&connected_again(shared, next, from_index(&found)));
        observer = found;
    }
}

/// Message after a reconnection. The stream begins with `start`, `next` was expected, and the shown entries up to
/// `shared` are part of the node's data set.
fn connected_again(shared: u64, next: u64, start: u64) -> String {
    let mut text = "connected again".to_owned();
    let first = next.min(shared.saturating_add(1));
    if first < next {
        let last = next - 1;
        text += &format!("; the node's data no longer has entries {first} to {last}");
    }
    if first < start {
        let last = start - 1;
        text += &format!("; missed entries {first} to {last}");
    } else {
        text += &format!(", going on from index {start}");
    }
    text
}

/// Reconnects without a time limit. Also returns the last shown entry that is still in the node's data set.
fn again(addr: &str, options: &ClientOptions, lost: &Observer) -> (Observer, u64) {
    let mut pause = PAUSES.0;
    let mut said = String::new();
    loop {
        let error = match resume(addr, options, lost) {
            Ok(found) => return found,
            Err(error) => error,
        };
        let text = error.to_string();
        if text != said {
            // The same failure is reported once.
            if !matches!(error, Error::Connect { .. } | Error::Timeout { .. }) {
                say(&text);
            }
            said = text;
        }
        thread::sleep(pause);
        pause = PAUSES.1.min(pause * 2);
    }
}

/// Requests the stream after the last shown entry. If the node refuses that, requests it from the first entry in its
/// log that was not shown or differs from the shown one.
fn resume(addr: &str, options: &ClientOptions, lost: &Observer) -> Result<(Observer, u64), Error> {
    let shown = next_index(lost).saturating_sub(1);
    let position = lost.position().unwrap_or(Watch::New);
    let refused = match Observer::open(addr, options, position) {
        Err(error @ Error::Server { .. }) => error,
        result => return result.map(|observer| (observer, shown)),
    };
    // The text of a refusal is not a stable interface, so the node's history and log decide. A node that does not
    // respond is asked again later.
    let probe = Observer::open(addr, options, Watch::New)?;
    let status = Client::connect_with(addr, options.clone())?.status()?;
    let Some(start) = probe.history().last() else {
        return Err(refused);
    };
    let shared = lost.history().shared_with(probe.history(), shown);
    let oldest = NodeStatus::parse(&status).backlog_first_index;
    let watch = Watch::After {
        epoch: start.epoch,
        nonce: start.nonce,
        index: oldest
            .unwrap_or_else(|| from_index(&probe))
            .saturating_sub(1)
            .max(shared),
    };
    Observer::open(addr, options, watch).map(|observer| (observer, shared))
}

fn from_index(observer: &Observer) -> u64 {
    match observer.start() {
        Start::Resume { from_index } => from_index,
        Start::Snapshot | Start::Unknown => 0,
    }
}

/// Index of the next entry.
fn next_index(observer: &Observer) -> u64 {
    match observer.position() {
        Some(Watch::After { index, .. }) => index.saturating_add(1),
        Some(Watch::From(_) | Watch::New | Watch::Copy) | None => 0,
    }
}

fn failure(error: &Error, asked_from: bool, context: &Context) -> Failure {
    match error {
        Error::Server { message } if !message.starts_with(UNKNOWN_OPCODE) => {
            let next = if asked_from {
                "try without --from, for what is new, or name another node with --addr"
            } else {
                "name another node with --addr"
            };
            Failure::new(
                Outcome::ServerError,
                format!("nothing to watch: {message}; {next}"),
            )
        }
        error => report::failure(error, Opcode::Status, context.node.as_deref()),
    }
}

/// Reason why the output of a stream ends.
enum End {
    Lost(Error),
    Failed(Failure),
}

/// Output of entries.
struct View {
    form: ListForm,
    values: bool,
    /// Remaining number of entries, if that is limited.
    left: Option<u64>,
    out: Vec<u8>,
}

impl View {
    /// Prints a stream until the limit is reached or the output has no reader.
    fn show(&mut self, observer: &mut Observer) -> Result<(), End> {
        let history = observer.history().clone();
        while self.left != Some(0) {
            let is_read = match observer.receive().map_err(End::Lost)? {
                Message::Entries {
                    first_index,
                    frames,
                    ..
                } => {
                    self.put(first_index, frames, &history);
                    let written = write_out(&self.out).map_err(End::Failed);
                    self.out = Vec::new();
                    written?
                }
                Message::SnapshotBegin { .. }
                | Message::SnapshotChunk { .. }
                | Message::SnapshotEnd { .. }
                | Message::Heartbeat { .. }
                | Message::Ack { .. }
                | Message::Lead { .. }
                | Message::Event { .. } => !is_abandoned(),
            };
            if !is_read {
                break;
            }
        }
        Ok(())
    }

    fn put(&mut self, first_index: u64, frames: Frames<'_>, history: &History) {
        for (index, frame) in (first_index..).zip(frames) {
            match &mut self.left {
                Some(0) => return,
                Some(left) => *left -= 1,
                None => {}
            }
            match self.form {
                ListForm::Lines => {
                    let line = line(index, &frame.request(), self.values);
                    self.out.extend_from_slice(line.as_bytes());
                }
                ListForm::Json => {
                    let epoch = history.epoch_of(index).map_or(0, |start| start.epoch);
                    let object = object(index, epoch, &frame.request(), self.values);
                    self.out.extend_from_slice(object.to_string().as_bytes());
                }
            }
            self.out.push(b'\n');
        }
    }
}

fn line(index: u64, request: &Request<'_>, with_value: bool) -> String {
    if let Some([epoch, nonce]) = epoch(request) {
        return format!("{index} EPOCH {epoch} {nonce:016x}");
    }
    let key = word(request.key());
    let Request::Set { value, .. } = request else {
        return format!("{index} {} {key} -", request.opcode().name());
    };
    let len = value.len();
    let shown = match value.get(..SHOWN_BYTES) {
        _ if !with_value => String::new(),
        Some(start) if len > SHOWN_BYTES => format!(" {}...", quote::quoted(start)),
        _ => format!(" {}", word(value)),
    };
    format!("{index} SET {key} {len}{shown}")
}

/// The operands of an EPOCH: number and nonce.
fn epoch(request: &Request<'_>) -> Option<[u64; 2]> {
    match request {
        Request::Epoch { value } => Opcode::Epoch.spec().operands_of(value).ok(),
        _ => None,
    }
}

/// Bytes as one word, in quotes if necessary.
fn word(bytes: &[u8]) -> String {
    let shown = quote::shown(bytes);
    if shown.contains(char::is_whitespace) && !shown.starts_with('"') {
        return quote::quoted(bytes);
    }
    shown
}

fn object(index: u64, epoch: u64, request: &Request<'_>, with_value: bool) -> Value {
    let mut object = Map::new();
    object.insert("index".to_owned(), json!(index));
    object.insert("epoch".to_owned(), json!(epoch));
    object.insert("op".to_owned(), json!(request.opcode().name()));
    if let Some([_, nonce]) = self::epoch(request) {
        object.insert("nonce".to_owned(), json!(format!("{nonce:016x}")));
        return Value::Object(object);
    }
    insert_bytes(&mut object, "key", request.key());
    if let Request::Set { value, .. } = request {
        object.insert("size".to_owned(), json!(value.len()));
        if with_value {
            insert_bytes(&mut object, "value", value);
        }
    }
    Value::Object(object)
}

/// A JSON member for bytes. Bytes that are not UTF-8 become hexadecimal digits, under another name.
fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            object.insert(format!("{name}_hex"), json!(digits))
        }
    };
}

/// Whether standard output is a pipe without a reader.
fn is_abandoned() -> bool {
    let out = io::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

/// Prints a message on standard error, since standard output has only entries.
fn say(message: &str) {
    let message = quote::one_line(message);
    let _ = writeln!(io::stderr(), "gopherstore-cli: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_word_for_each_part_whatever_the_bytes() {
        let long = "x".repeat(65);
        for (key, value, expected) in [
            ("user123", "active", "8 SET user123 6 active"),
            ("two words", "", r#"8 SET "two words" 0 """#),
            ("a\u{a0}b", "-", r#"8 SET "a\xc2\xa0b" 1 -"#),
            ("", "\x00", r#"8 SET "" 1 "\x00""#),
            ("k", &long, &format!("8 SET k 65 \"{}\"...", "x".repeat(64))),
        ] {
            let (key, value) = (key.as_bytes(), value.as_bytes());
            assert_eq!(line(8, &Request::Set { key, value }, true), expected);
        }
        let set = Request::Set {
            key: b"k",
            value: b"v",
        };
        assert_eq!(line(1, &set, false), "1 SET k 1");
        assert_eq!(line(9, &Request::Del { key: b"k" }, true), "9 DEL k -");
        let value = &Opcode::Epoch.spec().value_of([2, 171]);
        let epoch = Request::Epoch { value };
        assert_eq!(line(7, &epoch, false), "7 EPOCH 2 00000000000000ab");
    }

    #[test]
    fn a_stream_that_is_back_is_compared_with_what_was_shown() {
        for (shared, next, start, expected) in [
            (7, 8, 8, ", going on from index 8"),
            (7, 8, 12, "; missed entries 8 to 11"),
            (
                4,
                8,
                5,
                "; the node's data no longer has entries 5 to 7, going on from index 5",
            ),
            (
                0,
                8,
                12,
                "; the node's data no longer has entries 1 to 7; missed entries 1 to 11",
            ),
        ] {
            let text = connected_again(shared, next, start);
            assert_eq!(text, format!("connected again{expected}"));
        }
    }

    #[test]
    fn an_object_says_which_bytes_are_no_text() {
        let set = Request::Set {
            key: b"\xff\x00",
            value: b"v\n",
        };
        assert_eq!(
            object(8, 2, &set, true).to_string(),
            r#"{"epoch":2,"index":8,"key_hex":"ff00","op":"SET","size":2,"value":"v\n"}"#
        );
        let del = Request::Del { key: b"k" };
        assert_eq!(
            object(9, 2, &del, true).to_string(),
            r#"{"epoch":2,"index":9,"key":"k","op":"DEL"}"#
        );
        let value = &Opcode::Epoch.spec().value_of([2, 171]);
        assert_eq!(
            object(7, 2, &Request::Epoch { value }, true).to_string(),
            r#"{"epoch":2,"index":7,"nonce":"00000000000000ab","op":"EPOCH"}"#
        );
    }
}
