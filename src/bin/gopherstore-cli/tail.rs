//! `tail`: prints the events of a node's log.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments::{self, Bytes},
    client::{Change, Error, Watch, WatchFrom, Watched, Watcher},
    wire::{Opcode, Token, TokenError, replication::Start},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use crate::{
    ListForm,
    context::Context,
    list_form, mistake, quote,
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
        {command_name} --prefix config: --from-snapshot --values\n\
        {command_name} --addr 127.0.0.1:8001 -w json | jq .key",
    note = "Each line has index, operation, key, the length of the value, and the deadline of SETAT and EXPIRE in\n\
        milliseconds since 1970. A line with EPOCH, a number and a nonce shows that a leader begins. In a\n\
        snapshot a line has - for the index, and SNAPSHOT_END shows the index that it is of.\n\
        After a lost connection the output continues where it was. Where that is impossible the command\n\
        ends: with exit code 11 where the log no longer holds the next entry, and the message names the\n\
        oldest index that is left; with 12 where entries that were shown are no longer part of the node's\n\
        data. The node does not wait for this command, and ends a stream that is too slow for its log.\n\
        A node with a disk that has restarted has the entries behind its last snapshot.\n\
        Ctrl-C ends the command.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Tail {
    /// show only keys that begin with this
    #[argh(
        option,
        from_str_fn(arguments::bytes),
        arg_name = "PREFIX",
        default = "Bytes::default()"
    )]
    prefix: Bytes,
    /// index of the first entry to show, from 1; by default the next new entry
    #[argh(option, from_str_fn(positive), arg_name = "INDEX")]
    from: Option<u64>,
    /// show the entries after this position, 48 digits as json has them
    #[argh(option, from_str_fn(token), arg_name = "TOKEN")]
    token: Option<Token>,
    /// show all keys first, as they are now, and then each entry after that; --values shows the values too
    #[argh(switch)]
    from_snapshot: bool,
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

fn token(encoded: &str) -> Result<Token, String> {
    let text = arguments::text(encoded)?;
    text.parse().map_err(|error: TokenError| error.to_string())
}

/// Where the output begins.
fn first(command: &Tail) -> Result<WatchFrom, Failure> {
    match (command.from, command.token, command.from_snapshot) {
        (None, None, false) => Ok(WatchFrom::Now),
        (Some(index), None, false) => Ok(WatchFrom::Index(index)),
        (None, Some(token), false) => Ok(WatchFrom::After(token)),
        (None, None, true) => Ok(WatchFrom::Snapshot),
        _ => Err(mistake(
            "--from, --token and --from-snapshot each say where to begin; give one of them",
        )),
    }
}

pub(crate) fn run(command: Tail, context: &Context) -> Result<Outcome, Failure> {
    let from = first(&command)?;
    let addrs = context.addrs()?;
    let addr = &addrs[0];
    let watch = Watch {
        prefix: command.prefix,
        values: command.values,
        from,
    };
    let mut watcher = Watcher::open(addr, &context.options(), watch)
        .map_err(|error| failure(&error, from, context))?;
    if io::stderr().is_terminal() {
        say(&match watcher.start() {
            Start::Resume { from_index } => format!("watching {addr} from index {from_index}"),
            Start::Snapshot | Start::Unknown => format!("watching {addr} from a snapshot on"),
        });
    }
    let mut view = View {
        form: command.form,
        values: command.values,
        left: command.count,
        out: Vec::new(),
    };
    let mut pause = PAUSES.0;
    loop {
        let begun = next_index(&watcher);
        let lost = match view.show(&mut watcher) {
            Ok(()) => return Ok(Outcome::Done),
            Err(End::Failed(failure)) => return Err(failure),
            Err(End::Lost(error)) => error,
        };
        let next = next_index(&watcher);
        let place = next.map_or_else(
            || "with another snapshot".to_owned(),
            |next| format!("from index {next} on"),
        );
        say(&format!("{lost}; trying again, {place}"));
        // A stream that ends at once is not requested again at once.
        pause = if next > begun {
            PAUSES.0
        } else {
            PAUSES.1.min(pause * 2)
        };
        thread::sleep(pause);
        resume(&addrs, &mut watcher)?;
        let place = next_index(&watcher).map_or_else(
            || "beginning with another snapshot".to_owned(),
            |next| format!("going on from index {next}"),
        );
        say(&format!("connected again, {place}"));
    }
}

/// Requests the stream again where it was, of each node in turn, without a time limit.
fn resume(addrs: &[String], watcher: &mut Watcher) -> Result<(), Failure> {
    let mut pause = PAUSES.0;
    let mut said = String::new();
    loop {
        let error = match watcher.resume(addrs, Duration::ZERO) {
            Ok(()) => return Ok(()),
            Err(Error::Compacted { oldest }) => {
                let next = next_index(watcher).unwrap_or(oldest);
                return Err(compacted(
                    next,
                    oldest,
                    "this command was too slow or away for too long, or the node has started again",
                ));
            }
            Err(error @ Error::Lost { .. }) => return Err(lost(&error)),
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

/// Index of the next entry; `None` during a snapshot.
fn next_index(watcher: &Watcher) -> Option<u64> {
    let position = watcher.position()?;
    Some(position.index.saturating_add(1))
}

/// The failure where the log no longer holds the entry with the index `next`.
fn compacted(next: u64, oldest: u64, why: &str) -> Failure {
    let missed = if next < oldest {
        format!("missed entries {next} to {}", oldest - 1)
    } else {
        "the node's history no longer reaches back to the position".to_owned()
    };
    Failure::new(
        Outcome::Compacted,
        format!(
            "{why}: {missed}, since the log begins at index {oldest} now; go on with --from {oldest}, begin anew with \
             --from-snapshot, or name another node with --addr"
        ),
    )
}

fn lost(error: &Error) -> Failure {
    let next = "the position is not in the history of the node's data; begin anew with --from-snapshot, or name \
                another node with --addr";
    Failure::new(Outcome::Lost, format!("{error}; {next}"))
}

/// The failure where no stream begins.
fn failure(error: &Error, from: WatchFrom, context: &Context) -> Failure {
    match error {
        Error::Compacted { oldest } => {
            let next = match from {
                WatchFrom::Index(index) => index,
                WatchFrom::After(token) => token.index.saturating_add(1),
                WatchFrom::Now | WatchFrom::Snapshot => *oldest,
            };
            compacted(next, *oldest, "nothing to watch")
        }
        Error::Lost { .. } => lost(error),
        Error::Server { message } if !message.starts_with(UNKNOWN_OPCODE) => {
            let next = match from {
                WatchFrom::Index(_) => {
                    "try without --from, for what is new, or name another node with --addr"
                }
                WatchFrom::Now | WatchFrom::After(_) | WatchFrom::Snapshot => {
                    "name another node with --addr"
                }
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
    fn show(&mut self, watcher: &mut Watcher) -> Result<(), End> {
        while self.left != Some(0) {
            match watcher.receive().map_err(End::Lost)? {
                Watched::Event(event) => {
                    let position = Some(event.position());
                    self.count();
                    for change in event.changes() {
                        self.put(position, &change);
                    }
                }
                Watched::SnapshotBegin { .. } => self.mark(None),
                Watched::Snapshot(frames) => {
                    for change in frames.changes() {
                        if self.left != Some(0) {
                            self.count();
                            self.put(None, &change);
                        }
                    }
                }
                Watched::SnapshotEnd { position, .. } => self.mark(Some(position)),
                // Heartbeats, and messages of a later version.
                _ if is_abandoned() => break,
                _ => {}
            }
            let is_read = write_out(&self.out).map_err(End::Failed)?;
            self.out.clear();
            if !is_read {
                break;
            }
        }
        Ok(())
    }

    /// Counts an entry that is shown.
    const fn count(&mut self) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
    }

    fn put(&mut self, position: Option<Token>, change: &Change<'_>) {
        let text = match self.form {
            ListForm::Lines => line(position, change, self.values),
            ListForm::Json => object(position, change, self.values).to_string(),
        };
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'\n');
    }

    /// Shows that a snapshot begins, or that one is complete that is of this position.
    fn mark(&mut self, end: Option<Token>) {
        let name = if end.is_some() {
            "SNAPSHOT_END"
        } else {
            "SNAPSHOT_BEGIN"
        };
        let text = match self.form {
            ListForm::Lines => format!("{} {name}", index_of(end)),
            ListForm::Json => Value::Object(members(end, name)).to_string(),
        };
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'\n');
    }
}

/// The first word of a line.
fn index_of(position: Option<Token>) -> String {
    position.map_or_else(|| "-".to_owned(), |token| token.index.to_string())
}

fn line(position: Option<Token>, change: &Change<'_>, with_value: bool) -> String {
    let (index, name) = (index_of(position), change.opcode().name());
    if let Some([epoch, nonce]) = change.epoch() {
        return format!("{index} {name} {epoch} {nonce:016x}");
    }
    let key = quote::word(change.key());
    let deadline = change.deadline().map(|deadline| deadline.to_string());
    let Some(len) = change.value_len() else {
        return format!(
            "{index} {name} {key} {}",
            deadline.as_deref().unwrap_or("-")
        );
    };
    let deadline = deadline
        .map(|deadline| format!(" {deadline}"))
        .unwrap_or_default();
    let shown = match change.value() {
        Some(value) if with_value => match value.get(..SHOWN_BYTES) {
            Some(start) if len > SHOWN_BYTES => format!(" {}...", quote::quoted(start)),
            _ => format!(" {}", quote::word(value)),
        },
        _ => String::new(),
    };
    format!("{index} {name} {key} {len}{deadline}{shown}")
}

/// The members that every object has.
fn members(position: Option<Token>, name: &str) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(token) = position {
        object.insert("index".to_owned(), json!(token.index));
        object.insert("epoch".to_owned(), json!(token.epoch));
        object.insert("token".to_owned(), json!(token.to_string()));
    }
    object.insert("op".to_owned(), json!(name));
    object
}

fn object(position: Option<Token>, change: &Change<'_>, with_value: bool) -> Value {
    let mut object = members(position, change.opcode().name());
    if let Some([_, nonce]) = change.epoch() {
        object.insert("nonce".to_owned(), json!(format!("{nonce:016x}")));
        return Value::Object(object);
    }
    insert_bytes(&mut object, "key", change.key());
    if let Some(len) = change.value_len() {
        object.insert("size".to_owned(), json!(len));
    }
    if let Some(deadline) = change.deadline() {
        object.insert("deadline".to_owned(), json!(deadline));
    }
    if let (Some(value), true) = (change.value(), with_value) {
        insert_bytes(&mut object, "value", value);
    }
    Value::Object(object)
}

/// A JSON member for bytes. Bytes that are not UTF-8 become hexadecimal digits, under another name.
pub(crate) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
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
    use gopherstore::wire::{
        Request,
        replication::{BatchEncoder, Fields, Message, Parsed, StreamOpcode, parse},
    };

    use super::*;

    /// Calls `f` with the change of this request.
    fn with_change<T>(request: &Request<'_>, f: impl FnOnce(&Change<'_>) -> T) -> Option<T> {
        let (mut frame, mut bytes) = (Vec::new(), Vec::new());
        request.encode(&mut frame).ok()?;
        let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
        assert!(batch.push(&frame));
        batch.finish(|count| Fields::Entries {
            epoch: 2,
            first_index: 1,
            count,
            committed_index: 1,
            time_ms: 0,
            digest: 0,
        });
        let Ok(Parsed::Whole {
            message: Message::Entries { frames, .. },
            ..
        }) = parse(&bytes)
        else {
            return None;
        };
        frames.changes().next().map(|change| f(&change))
    }

    const fn at(index: u64) -> Option<Token> {
        Some(Token {
            epoch: 2,
            index,
            nonce: 171,
        })
    }

    fn line_of(index: u64, request: &Request<'_>, with_value: bool) -> String {
        with_change(request, |change| line(at(index), change, with_value)).unwrap_or_default()
    }

    fn object_of(index: u64, request: &Request<'_>) -> String {
        with_change(request, |change| {
            object(at(index), change, true).to_string()
        })
        .unwrap_or_default()
    }

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
            assert_eq!(line_of(8, &Request::Set { key, value }, true), expected);
        }
        let set = Request::Set {
            key: b"k",
            value: b"v",
        };
        assert_eq!(line_of(1, &set, false), "1 SET k 1");
        let in_snapshot = with_change(&set, |change| line(None, change, true));
        assert_eq!(in_snapshot.as_deref(), Some("- SET k 1 v"));
        assert_eq!(line_of(9, &Request::Del { key: b"k" }, true), "9 DEL k -");
        let value = &Opcode::Epoch.spec().value_of([2, 171]);
        let epoch = Request::Epoch { value };
        assert_eq!(line_of(7, &epoch, false), "7 EPOCH 2 00000000000000ab");
    }

    #[test]
    fn a_deadline_is_shown_behind_the_length() {
        let deadline = 1_700_000_000_000_u64.to_be_bytes();
        let value = [&deadline[..], b"v"].concat();
        let set = Request::SetAt {
            key: b"k",
            value: &value,
        };
        assert_eq!(line_of(8, &set, true), "8 SETAT k 1 1700000000000 v");
        assert_eq!(line_of(8, &set, false), "8 SETAT k 1 1700000000000");
        let expire = |value: &[u8]| line_of(8, &Request::Expire { key: b"k", value }, true);
        assert_eq!(
            expire(&[&[3], &deadline[..]].concat()),
            "8 EXPIRE k 1700000000000"
        );
        assert_eq!(expire(&[0; 9]), "8 EXPIRE k -");
        let object = object_of(8, &set);
        assert!(object.contains(r#""deadline":1700000000000,"#), "{object}");
        assert!(object.ends_with(
            r#""size":1,"token":"0000000000000002000000000000000800000000000000ab","value":"v"}"#
        ));
    }

    #[test]
    fn entries_that_are_gone_are_named() {
        let text = |next, oldest| compacted(next, oldest, "why").message;
        assert!(
            text(8, 12)
                .starts_with("why: missed entries 8 to 11, since the log begins at index 12 now; ")
        );
        assert!(text(12, 12).starts_with("why: the node's history no longer reaches back"));
        assert!(text(8, 12).contains("--from 12"));
    }

    #[test]
    fn an_object_says_which_bytes_are_no_text() {
        let token = |index| format!("0000000000000002{index:016x}00000000000000ab");
        let set = Request::Set {
            key: b"\xff\x00",
            value: b"v\n",
        };
        let expected = format!(
            r#"{{"epoch":2,"index":8,"key_hex":"ff00","op":"SET","size":2,"token":"{}","value":"v\n"}}"#,
            token(8)
        );
        assert_eq!(object_of(8, &set), expected);
        let expected = format!(
            r#"{{"epoch":2,"index":9,"key":"k","op":"DEL","token":"{}"}}"#,
            token(9)
        );
        assert_eq!(object_of(9, &Request::Del { key: b"k" }), expected);
        let value = &Opcode::Epoch.spec().value_of([2, 171]);
        let expected = format!(
            r#"{{"epoch":2,"index":7,"nonce":"00000000000000ab","op":"EPOCH","token":"{}"}}"#,
            token(7)
        );
        assert_eq!(object_of(7, &Request::Epoch { value }), expected);
    }
}
