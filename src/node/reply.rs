//! The answer to one request, whatever it came in by.

use std::sync::Arc;

use crate::engine::Answers;
use crate::log::Position;
use crate::wire::Status;
use crate::wire::response::ResponseHeader;

/// The message of TIMEOUT.
const OUTCOME_UNKNOWN: &str = "the epoch of the write has ended";

/// The answer to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// OK, empty.
    Done,
    /// OK and `PONG`.
    Pong,
    /// OK and a text.
    Text(String),
    /// OK and bytes.
    Answer(Vec<u8>),
    /// OK and entries, in the state that the data set had at a position.
    Entries(Vec<u8>, Position),
    /// NOT_LEADER and the leader's address.
    NotLeader(Arc<str>),
    /// LOADING and a message.
    Loading(Arc<str>),
    /// ERROR and a message.
    Error(String),
    /// FULL and a message.
    Full(String),
    /// TIMEOUT: it is unknown whether the write is kept.
    Timeout,
    /// TIMEOUT to a SYNC, and a message: the data set did not get to the position in time.
    NotReached(String),
    /// LOST and a message.
    Lost(String),
    /// COMPACTED and the oldest index, big-endian.
    Compacted([u8; 8]),
}

impl Reply {
    /// The answer's status.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Reply::Done | Reply::Pong | Reply::Text(_) | Reply::Answer(_) | Reply::Entries(..) => {
                Status::Ok
            }
            Reply::NotLeader(_) => Status::NotLeader,
            Reply::Loading(_) => Status::Loading,
            Reply::Error(_) => Status::Error,
            Reply::Full(_) => Status::Full,
            Reply::Timeout | Reply::NotReached(_) => Status::Timeout,
            Reply::Lost(_) => Status::Lost,
            Reply::Compacted(_) => Status::Compacted,
        }
    }

    /// The answer's value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self {
            Reply::Done => b"",
            Reply::Pong => b"PONG",
            Reply::Answer(bytes) | Reply::Entries(bytes, _) => bytes,
            Reply::NotLeader(text) | Reply::Loading(text) => text.as_bytes(),
            Reply::Text(text)
            | Reply::Error(text)
            | Reply::Full(text)
            | Reply::NotReached(text)
            | Reply::Lost(text) => text.as_bytes(),
            Reply::Compacted(index) => index,
            Reply::Timeout => OUTCOME_UNKNOWN.as_bytes(),
        }
    }

    /// The position that the answer waits for.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Reply::Entries(_, position) => *position,
            Reply::Done
            | Reply::Pong
            | Reply::Text(_)
            | Reply::Answer(_)
            | Reply::NotLeader(_)
            | Reply::Loading(_)
            | Reply::Error(_)
            | Reply::Full(_)
            | Reply::NotReached(_)
            | Reply::Lost(_)
            | Reply::Compacted(_)
            | Reply::Timeout => Position::default(),
        }
    }

    /// Adds the answer's frame.
    pub fn push_to(self, answers: &mut Answers) {
        let status = self.status();
        match self {
            Reply::Text(text)
            | Reply::Error(text)
            | Reply::Full(text)
            | Reply::NotReached(text)
            | Reply::Lost(text) => answers.push_bytes(status, text.into_bytes()),
            Reply::Answer(bytes) | Reply::Entries(bytes, _) => answers.push_bytes(status, bytes),
            Reply::Done
            | Reply::Pong
            | Reply::NotLeader(_)
            | Reply::Loading(_)
            | Reply::Compacted(_)
            | Reply::Timeout => {
                answers.push(status, self.value());
            }
        }
    }

    /// The header of the answer's frame.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        header(self.status(), self.value())
    }
}

fn header(status: Status, value: &[u8]) -> ResponseHeader {
    match ResponseHeader::new(status, value.len()) {
        Ok(header) => header,
        Err(_) => unreachable!("a stored value came in a frame whose length field is as wide"),
    }
}
