//! Errors: a line with the fault and advice, and the exit code.

use std::io::{self, Write};

use gopherstore::client::{Error, REDIRECTS_MAX};
use gopherstore::wire::Opcode;

use crate::quote;

/// Result of a command, in the order of the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Outcome {
    Done = 0,
    /// Not found, or different.
    NotFound = 1,
    Usage = 2,
    ServerError = 3,
    NotLeader = 4,
    NoConnection = 5,
    Timeout = 6,
    Protocol = 7,
    /// Standard input or a file cannot be read, or standard output or a file cannot be written.
    LocalInput = 8,
    /// A condition is not met.
    Conflict = 9,
    /// The node has no memory, or no space on its disk, for the write.
    Full = 10,
    /// The log no longer reaches back to the position.
    Compacted = 11,
    /// The position was never part of the node's history.
    Lost = 12,
}

impl Outcome {
    pub(crate) const fn code(self) -> u8 {
        // The discriminants are the exit codes.
        self as u8
    }

    /// Whether the next command would fail too.
    pub(crate) const fn is_connection_failure(self) -> bool {
        matches!(
            self,
            Outcome::NoConnection | Outcome::Timeout | Outcome::Protocol
        )
    }
}

/// A failure: its message and exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(outcome: Outcome, message: impl Into<String>) -> Failure {
        Failure {
            outcome,
            message: message.into(),
        }
    }

    /// Prints one line on standard error. A failure of that cannot be reported.
    pub(crate) fn print(&self, line: Option<u64>) {
        let message = quote::one_line(&self.message);
        let place = line
            .map(|line| format!("line {line}: "))
            .unwrap_or_default();
        let _ = writeln!(io::stderr(), "gopherstore-cli: {place}{message}");
    }
}

/// Prints a message about the session on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "gopherstore-cli: {}", quote::one_line(text));
}

/// Start of a node's ERROR to an unknown operation. Source: docs/GBP.md, section 8.
pub(crate) const UNKNOWN_OPCODE: &str = "unknown opcode";

/// Part of a node's FULL, and of `snapshot_error` in STATUS, where its disk is full, behind the directory. The rest
/// says what helps. Source: docs/GBP.md, sections 4 and 7.
pub(crate) const DISK_FULL: &str = ": the disk is full: ";

/// The failure of a request with `opcode`, as text for the user. `node` is the user's name for the node.
pub(crate) fn failure(error: &Error, opcode: Opcode, node: Option<&str>) -> Failure {
    let is_write = opcode.spec().writes;
    let (outcome, next) = match error {
        Error::NotLeader { leader: Some(addr) } => (
            Outcome::NotLeader,
            format!(
                "write there with --addr {addr}, or leave out --no-redirect ({REDIRECTS_MAX} redirects are followed)"
            ),
        ),
        Error::NotLeader { leader: None } => (
            Outcome::NotLeader,
            "name another node with --addr".to_owned(),
        ),
        Error::Loading { .. } => (
            Outcome::ServerError,
            "try again in a moment, or ask another node with --addr".to_owned(),
        ),
        Error::Full { message } if message.contains(DISK_FULL) => (
            Outcome::Full,
            "reads go on".to_owned(),
        ),
        Error::Full { .. } => (
            Outcome::Full,
            "remove keys, or raise max_memory_bytes; reads and del go on".to_owned(),
        ),
        Error::Lost { .. } => (
            Outcome::Lost,
            "the write was not kept; read the key again".to_owned(),
        ),
        Error::NotReached { .. } => (
            Outcome::Timeout,
            "allow more with --timeout, or ask the leader".to_owned(),
        ),
        Error::Compacted { .. } if opcode == Opcode::Sync => (
            Outcome::Compacted,
            "the position is too old for this node to judge; read the keys again".to_owned(),
        ),
        Error::Compacted { .. } => (
            Outcome::Compacted,
            "begin with a snapshot, or at that index".to_owned(),
        ),
        Error::Server { message } if message.starts_with(UNKNOWN_OPCODE) => (
            Outcome::ServerError,
            "the node is of another version, which cannot do that; use its gopherstore-cli, or upgrade it".to_owned(),
        ),
        Error::Server { message } if opcode == Opcode::Discard => {
            return Failure::new(
                Outcome::ServerError,
                format!(
                    "the node refused the order: {message}; it keeps its data, and status shows how it is"
                ),
            );
        }
        Error::Server { message } => {
            return Failure::new(
                Outcome::ServerError,
                format!(
                    "the node refused the request: {message}; nothing was changed, so correct it and try again"
                ),
            );
        }
        Error::OutcomeUnknown { .. } if is_write => {
            (Outcome::ServerError, "check with get before repeating it".to_owned())
        }
        Error::OutcomeUnknown { .. } => (Outcome::ServerError, "try again".to_owned()),
        Error::UnknownStatus { .. } => {
            let unknown = if is_write {
                "it is unknown whether the write was executed; "
            } else {
                ""
            };
            (
                Outcome::ServerError,
                format!("{unknown}the node speaks a later version of the protocol; use its gopherstore-cli"),
            )
        }
        Error::TooLong(_) => (Outcome::Usage, "store less at once".to_owned()),
        error => (fault(error), after_fault(error, opcode, node)),
    };
    Failure::new(outcome, format!("{error}; {next}"))
}

/// Exit code of a command without a response.
fn fault(error: &Error) -> Outcome {
    match error.innermost() {
        Error::Timeout { .. } => Outcome::Timeout,
        Error::Connect { .. } | Error::Connection { .. } => Outcome::NoConnection,
        // The enum is non-exhaustive.
        _ => Outcome::Protocol,
    }
}

/// Advice to the user after a request without a response.
fn after_fault(error: &Error, opcode: Opcode, node: Option<&str>) -> String {
    let is_write = opcode.spec().writes;
    let unknown = if opcode == Opcode::Discard {
        "it is unknown whether the node executed the order, so check with status before repeating it"
    } else if is_write {
        "it is unknown whether the write was executed, so check with get before repeating it"
    } else {
        "try again"
    };
    let is_redirect = matches!(error, Error::Redirect { .. });
    match error.innermost() {
        Error::Connect { .. } if is_redirect => {
            "nothing was written; is the leader running, and does that address lead to it from here? if not, name it \
             by one that does, with --addr"
                .to_owned()
        }
        Error::Timeout { .. } if is_redirect && !error.is_outcome_unknown() => {
            "nothing was written; does that address lead to the leader from here? if not, name it by one that does, \
             with --addr; or allow more with --timeout"
                .to_owned()
        }
        Error::Timeout { .. } if error.is_outcome_unknown() => {
            format!("{unknown}; allow more with --timeout")
        }
        Error::Timeout { .. } => {
            "is the address right? name another with --addr, or allow more with --timeout".to_owned()
        }
        Error::Connect { .. } => match node {
            Some(name) => format!("is {name} running? start it, or name another node"),
            None => "is the node running? start it, or name another with --addr".to_owned(),
        },
        Error::Connection { .. } => unknown.to_owned(),
        Error::Protocol { .. } if error.is_outcome_unknown() && is_write => {
            format!("{unknown}; is it a GopherStore node? --hex shows what it sends")
        }
        Error::Protocol { .. } => "is it a GopherStore node? --hex shows what it sends".to_owned(),
        _ => "see --hex".to_owned(),
    }
}
