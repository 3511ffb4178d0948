//! Errors of the client, and the caller's conclusions from them.

use std::{error, fmt, io, time::Duration};

use crate::{
    dial::system_text,
    wire::{
        EncodeError, Opcode, ResponseError,
        comparison::ComparisonError,
        replication::{FollowAnswerError, ReplicationError, Start, StreamOpcode},
        scan::ScanError,
    },
};

/// Reason why a call has no response.
///
/// | variant | was a write executed? | the connection |
/// |---|---|---|
/// | `NotLeader`, `Loading`, `Server`, `Full`, `Lost`, `Compacted`, `NotReached` | no | goes on |
/// | `OutcomeUnknown`, `UnknownStatus` | unknown | goes on |
/// | `TooLong`, `Connect` | no, nothing was sent | – |
/// | `Timeout`, `Connection`, `Protocol` | unknown, unless it failed while connecting | dropped, and made anew |
/// | `Redirect` | as for its source | dropped, and made anew |
///
/// [`is_outcome_unknown`](Error::is_outcome_unknown) tells the two apart. The client repeats no request whose outcome
/// is unknown. A caller may repeat a SET or DEL, which may replace a value that another client has written meanwhile.
/// A repeated ADD may add twice.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The node takes no writes, and redirects are off, lead in circles, or lead nowhere.
    NotLeader {
        /// `host:port` of the leader, where the node knows it.
        leader: Option<String>,
    },
    /// The node holds no complete data set yet.
    Loading {
        /// The node's message.
        message: String,
    },
    /// The node refused the request.
    Server {
        /// Why.
        message: String,
    },
    /// The write needs more memory than the node's `max_memory_bytes` leaves, or the node's disk is full.
    Full {
        /// The node's message: both numbers, or which disk is full.
        message: String,
    },
    /// The position was never part of the node's history: another leader's records took its place.
    Lost {
        /// The node's message.
        message: String,
    },
    /// The node's log no longer reaches back to the position.
    Compacted {
        /// Index of the oldest record that is left.
        oldest: u64,
    },
    /// The node's data set did not get to the position in time, as [`Client::sync_at`](super::Client::sync_at) asks.
    NotReached {
        /// The node's message, with both positions.
        message: String,
    },
    /// The node cannot tell the outcome: a write was executed or will be, or it is lost.
    OutcomeUnknown {
        /// Why.
        message: String,
    },
    /// A status of a later version of the protocol.
    UnknownStatus {
        /// Byte 0 of the response.
        status: u8,
        /// The response's value, taken for a message.
        message: String,
    },
    /// A limit of the [options](super::ClientOptions) was exceeded.
    Timeout {
        /// The awaited event.
        what: Wait,
        /// `host:port` of the node.
        addr: String,
        /// The limit.
        after: Duration,
    },
    /// No address of the name accepts a connection.
    Connect {
        /// `host:port` of the node.
        addr: String,
        /// The reason. Where several addresses were tried, its text names each with its failure.
        source: io::Error,
    },
    /// The connection broke. Its end before a response's last byte is an [`io::ErrorKind::UnexpectedEof`].
    Connection {
        /// `host:port` of the node.
        addr: String,
        /// How.
        source: io::Error,
    },
    /// The peer sent bytes that are no response to the request.
    Protocol {
        /// `host:port` of the node.
        addr: String,
        /// The violation.
        source: ProtocolError,
    },
    /// The request was redirected to the node that was named as the leader, and failed there.
    Redirect {
        /// `host:port` of the node that named it.
        named_by: String,
        /// `host:port` of the leader, as that node has it.
        leader: String,
        /// The failure there: `Connect`, `Timeout`, `Connection` or `Protocol`.
        source: Box<Error>,
    },
    /// The key or the value is longer than a frame can carry.
    TooLong(EncodeError),
}

impl Error {
    /// The error without the redirect on the way to it.
    #[must_use]
    pub fn innermost(&self) -> &Error {
        if let Error::Redirect { source, .. } = self {
            return source.innermost();
        }
        self
    }

    /// Whether a write that failed with this error may have been executed.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        match self.innermost() {
            Error::OutcomeUnknown { .. }
            | Error::UnknownStatus { .. }
            | Error::Connection { .. }
            | Error::Protocol { .. } => true,
            Error::Timeout { what, .. } => match what {
                Wait::Request | Wait::Response => true,
                Wait::Resolution | Wait::Connection => false,
            },
            Error::NotLeader { .. }
            | Error::Loading { .. }
            | Error::Server { .. }
            | Error::Full { .. }
            | Error::Lost { .. }
            | Error::Compacted { .. }
            | Error::NotReached { .. }
            | Error::Connect { .. }
            | Error::Redirect { .. }
            | Error::TooLong(_) => false,
        }
    }
}

/// A client's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Event that a [`Timeout`](Error::Timeout) was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// The addresses of a name; nothing was sent.
    Resolution,
    /// A connection; nothing was sent.
    Connection,
    /// The peer accepts the bytes of a request.
    Request,
    /// The last byte of a response.
    Response,
}

/// Bytes that are no response to the request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The bytes are no response of a GopherStore node.
    Response(ResponseError),
    /// NOT_FOUND to an operation that finds nothing.
    NothingToFind {
        /// The operation.
        opcode: Opcode,
    },
    /// CONFLICT to an operation without a condition.
    NoCondition {
        /// The operation.
        opcode: Opcode,
    },
    /// COMPACTED with a value that is no index.
    OldestIndex {
        /// The first bytes of the value.
        value: Vec<u8>,
    },
    /// A value with a status or an operation that has none.
    UnexpectedValue {
        /// The operation.
        opcode: Opcode,
        /// The response's status byte.
        status: u8,
        /// The value's length in bytes.
        len: usize,
    },
    /// OK to a PING, but not with `PONG`.
    NotPong {
        /// The first bytes of what came instead.
        value: Vec<u8>,
    },
    /// OK to a STATUS, but not with text in UTF-8.
    NotText {
        /// The first bytes of what came instead.
        value: Vec<u8>,
    },
    /// OK to an operation that answers a number, but not with one.
    NotNumber {
        /// The first bytes of what came instead.
        value: Vec<u8>,
    },
    /// OK or CONFLICT to an operation whose value has fields, but not with these fields.
    Fields {
        /// The operation.
        opcode: Opcode,
        /// The first bytes of what came instead.
        value: Vec<u8>,
    },
    /// NOT_LEADER with a value that is no `host:port`.
    LeaderAddress {
        /// The first bytes of the value.
        value: Vec<u8>,
    },
    /// OK to a request for a stream, but not with the start of a stream.
    FollowAnswer(FollowAnswerError),
    /// OK to a request for a stream, but with another start than requested.
    OtherStart {
        /// The start.
        start: Start,
    },
    /// A damaged message of a replication stream.
    Stream(ReplicationError),
    /// A message of a replication stream in the wrong place: others are missing before it, or it is of another epoch.
    OutOfPlace {
        /// The message.
        what: StreamOpcode,
    },
    /// OK to a SUMS or LIST, but with a value that is no response to it.
    Comparison(ComparisonError),
    /// OK to a SCAN, but with a value that is no response to it.
    Scan(ScanError),
    /// More bytes after the last response.
    Unrequested {
        /// The number of bytes received.
        len: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotLeader { leader: Some(addr) } => {
                write!(f, "the node is not the leader, which is at {addr}")
            }
            Error::NotLeader { leader: None } => {
                f.write_str("the node is not the leader and knows none")
            }
            Error::Loading { message } => write!(f, "the node is loading: {message}"),
            Error::Server { message } => f.write_str(message),
            Error::Full { message } => write!(f, "the node is full: {message}"),
            Error::Lost { message } => write!(f, "the position is lost: {message}"),
            Error::Compacted { oldest } => {
                write!(
                    f,
                    "the node no longer knows the position; the oldest index that it knows is {oldest}"
                )
            }
            Error::NotReached { message } => write!(f, "not reached: {message}"),
            Error::OutcomeUnknown { message } => write!(f, "outcome unknown: {message}"),
            Error::UnknownStatus { status, message } => {
                write!(f, "unknown status 0x{status:02x}: {message}")
            }
            Error::Timeout { what, addr, after } => {
                let what = match what {
                    Wait::Resolution => "no response from the resolver for",
                    Wait::Connection => "no connection to",
                    Wait::Request => "request not taken by",
                    Wait::Response => "no response from",
                };
                write!(f, "{what} {addr} within {after:?}")
            }
            Error::Connect { addr, source } => {
                write!(f, "cannot connect to {addr}: {}", system_text(source))
            }
            Error::Connection { addr, source } => {
                write!(f, "connection to {addr} lost: {}", system_text(source))
            }
            Error::Protocol { addr, source } => {
                write!(f, "{addr} violates the protocol: {source}")
            }
            Error::Redirect {
                named_by,
                leader,
                source,
            } => {
                write!(
                    f,
                    "the node at {named_by} named {leader} as the leader, and that address failed: {source}"
                )
            }
            Error::TooLong(source) => source.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Error::Connect { source, .. } | Error::Connection { source, .. } => Some(source),
            Error::Protocol { source, .. } => Some(source),
            Error::Redirect { source, .. } => Some(source),
            Error::TooLong(source) => Some(source),
            Error::NotLeader { .. }
            | Error::Loading { .. }
            | Error::Server { .. }
            | Error::Full { .. }
            | Error::Lost { .. }
            | Error::Compacted { .. }
            | Error::NotReached { .. }
            | Error::OutcomeUnknown { .. }
            | Error::UnknownStatus { .. }
            | Error::Timeout { .. } => None,
        }
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Error {
        Error::TooLong(error)
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Response(error) => error.fmt(f),
            ProtocolError::NothingToFind { opcode } => {
                write!(f, "NOT_FOUND to a {}", opcode.name())
            }
            ProtocolError::NoCondition { opcode } => {
                write!(f, "CONFLICT to a {}", opcode.name())
            }
            ProtocolError::OldestIndex { value } => {
                write!(f, "\"{}\" is no index of 8 bytes", value.escape_ascii())
            }
            ProtocolError::UnexpectedValue {
                opcode,
                status,
                len,
            } => write!(
                f,
                "value of {len} bytes, limit 0, in the response with status 0x{status:02x} to a {}",
                opcode.name()
            ),
            ProtocolError::NotPong { value } => {
                write!(f, "\"{}\" to a PING, not PONG", value.escape_ascii())
            }
            ProtocolError::NotText { value } => {
                write!(f, "\"{}\" to a STATUS, not text", value.escape_ascii())
            }
            ProtocolError::NotNumber { value } => {
                write!(f, "\"{}\", not a number", value.escape_ascii())
            }
            ProtocolError::Fields { opcode, value } => {
                let (value, name) = (value.escape_ascii(), opcode.name());
                write!(f, "\"{value}\" to a {name}, not its fields")
            }
            ProtocolError::LeaderAddress { value } => {
                write!(f, "\"{}\" is no address of a leader", value.escape_ascii())
            }
            ProtocolError::FollowAnswer(error) => error.fmt(f),
            ProtocolError::OtherStart { start } => match start {
                Start::Resume { from_index } => {
                    write!(
                        f,
                        "a stream from index {from_index}, which was not requested"
                    )
                }
                Start::Snapshot => f.write_str("a snapshot, which was not requested"),
                Start::Unknown => f.write_str("nothing, as to a follower of other data"),
            },
            ProtocolError::Stream(error) => error.fmt(f),
            ProtocolError::OutOfPlace { what } => {
                write!(f, "{} where another message belongs", what.name())
            }
            ProtocolError::Comparison(error) => error.fmt(f),
            ProtocolError::Scan(error) => error.fmt(f),
            ProtocolError::Unrequested { len } => {
                write!(f, "{len} bytes came after the last response")
            }
        }
    }
}

impl error::Error for ProtocolError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            ProtocolError::Response(error) => Some(error),
            ProtocolError::FollowAnswer(error) => Some(error),
            ProtocolError::Stream(error) => Some(error),
            ProtocolError::Comparison(error) => Some(error),
            ProtocolError::Scan(error) => Some(error),
            ProtocolError::NothingToFind { .. }
            | ProtocolError::NoCondition { .. }
            | ProtocolError::OldestIndex { .. }
            | ProtocolError::UnexpectedValue { .. }
            | ProtocolError::NotPong { .. }
            | ProtocolError::NotText { .. }
            | ProtocolError::NotNumber { .. }
            | ProtocolError::Fields { .. }
            | ProtocolError::LeaderAddress { .. }
            | ProtocolError::OtherStart { .. }
            | ProtocolError::OutOfPlace { .. }
            | ProtocolError::Unrequested { .. } => None,
        }
    }
}

/// Error of [`Pipeline::run`](super::Pipeline::run), with the responses before the fault.
#[derive(Debug)]
pub struct PipelineError {
    /// The responses before the fault, in order. Any number of the requests after them may have been executed.
    pub responses: Vec<Result<super::Response>>,
    /// The fault.
    pub error: Error,
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} responses: {}",
            self.responses.len(),
            self.error
        )
    }
}

impl error::Error for PipelineError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<PipelineError> for Error {
    fn from(error: PipelineError) -> Error {
        error.error
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn texts_are_lower_case_and_name_value_and_limit() {
        let refused = io::Error::from_raw_os_error(111);
        let error = Error::Connect {
            addr: "h:1".to_owned(),
            source: refused,
        };
        assert_eq!(
            error.to_string(),
            "cannot connect to h:1: connection refused"
        );
        assert!(error.source().is_some());
        let error = Error::Timeout {
            what: Wait::Response,
            addr: "h:1".to_owned(),
            after: Duration::from_millis(1_500),
        };
        assert_eq!(error.to_string(), "no response from h:1 within 1.5s");
        let error = Error::Redirect {
            named_by: "f:2".to_owned(),
            leader: "h:1".to_owned(),
            source: Box::new(error),
        };
        assert_eq!(
            error.to_string(),
            "the node at f:2 named h:1 as the leader, and that address failed: no response from h:1 within 1.5s"
        );
        assert!(error.is_outcome_unknown());
        let error = Error::from(EncodeError::KeyTooLong { len: 70_000 });
        assert_eq!(error.to_string(), "key of 70000 bytes, limit 65535");
    }
}
