//! Judges a response to a request. Pure.

use crate::wire::command::OkValue;
use crate::wire::conditional::{Found, sum_of};
use crate::wire::expiry::ttl_of;
use crate::wire::{self, Opcode, Status, TOKEN_LEN};

use super::error::{Error, ProtocolError, Result};

/// Result of a request that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A SET, a DEL or another operation whose OK has no value.
    Done,
    /// The value of another OK: that of a GET, the text of a STATUS, or fields such as those of a LIST.
    Value(Vec<u8>),
    /// NOT_FOUND: there is no such key.
    NotFound,
    /// CONFLICT: a condition of the request is not met. The value is the key's state, as the operation defines it.
    Conflict(Vec<u8>),
    /// OK to a PING.
    Pong,
}

impl Response {
    /// Reads a response in the answer to a BATCH, to a request with `opcode`; `None` where it is none.
    #[must_use]
    pub fn in_batch(opcode: Opcode, response: &wire::Response<'_>) -> Option<Response> {
        read(opcode, response).ok()?.ok()
    }
}

/// Value of the OK to a PING.
const PONG: &[u8] = b"PONG";
/// Most wrong bytes that an error keeps.
pub(super) const SAMPLE_LEN: usize = 32;

/// Judges `response` as the response to a request with `opcode`.
///
/// # Errors
///
/// The outer error is a violation of the protocol, after which the connection cannot be used. The inner one is a
/// refusal by the node.
pub(super) fn read(
    opcode: Opcode,
    response: &wire::Response<'_>,
) -> std::result::Result<Result<Response>, ProtocolError> {
    let wire::Response { status, value } = *response;
    let message = || String::from_utf8_lossy(value).into_owned();
    let sample = || value[..value.len().min(SAMPLE_LEN)].to_vec();
    let empty = |response: Response| {
        if value.is_empty() {
            Ok(Ok(response))
        } else {
            Err(ProtocolError::UnexpectedValue {
                opcode,
                status,
                len: value.len(),
            })
        }
    };
    let spec = opcode.spec();
    match Status::try_from(status) {
        Ok(Status::Ok) => match spec.ok {
            OkValue::Empty => empty(Response::Done),
            OkValue::Bytes
            | OkValue::Batch
            | OkValue::Sums
            | OkValue::Items
            | OkValue::Entries
            | OkValue::Stream => Ok(Ok(Response::Value(value.to_vec()))),
            OkValue::Text if str::from_utf8(value).is_ok() => {
                Ok(Ok(Response::Value(value.to_vec())))
            }
            OkValue::Text => Err(ProtocolError::NotText { value: sample() }),
            OkValue::Number if sum_of(value).is_some() => Ok(Ok(Response::Value(value.to_vec()))),
            OkValue::Number => Err(ProtocolError::NotNumber { value: sample() }),
            OkValue::Found if value.is_empty() => Ok(Ok(Response::Done)),
            OkValue::Found if value[0] & !Found::EXISTED == 0 => {
                Ok(Ok(Response::Value(value.to_vec())))
            }
            OkValue::Remaining if ttl_of(value).is_some() => {
                Ok(Ok(Response::Value(value.to_vec())))
            }
            OkValue::Token if value.len() == TOKEN_LEN => Ok(Ok(Response::Value(value.to_vec()))),
            OkValue::Found | OkValue::Remaining | OkValue::Token => Err(ProtocolError::Fields {
                opcode,
                value: sample(),
            }),
            OkValue::Pong if value == PONG => Ok(Ok(Response::Pong)),
            OkValue::Pong => Err(ProtocolError::NotPong { value: sample() }),
        },
        Ok(Status::NotFound) if spec.answers(Status::NotFound) => empty(Response::NotFound),
        Ok(Status::NotFound) => Err(ProtocolError::NothingToFind { opcode }),
        Ok(Status::NotLeader) => match leader(value) {
            Some(leader) => Ok(Err(Error::NotLeader { leader })),
            None => Err(ProtocolError::LeaderAddress { value: sample() }),
        },
        Ok(Status::Error) => Ok(Err(Error::Server { message: message() })),
        Ok(Status::Loading) => Ok(Err(Error::Loading { message: message() })),
        Ok(Status::Conflict) if spec.answers(Status::Conflict) => {
            Ok(Ok(Response::Conflict(value.to_vec())))
        }
        Ok(Status::Conflict) => Err(ProtocolError::NoCondition { opcode }),
        Ok(Status::Full) => Ok(Err(Error::Full { message: message() })),
        Ok(Status::Lost) => Ok(Err(Error::Lost { message: message() })),
        Ok(Status::Compacted) => match value.try_into() {
            Ok(oldest) => Ok(Err(Error::Compacted {
                oldest: u64::from_be_bytes(oldest),
            })),
            Err(_) => Err(ProtocolError::OldestIndex { value: sample() }),
        },
        Ok(Status::Timeout) if opcode == Opcode::Sync => {
            Ok(Err(Error::NotReached { message: message() }))
        }
        Ok(Status::Timeout) => Ok(Err(Error::OutcomeUnknown { message: message() })),
        Err(status) => Ok(Err(Error::UnknownStatus {
            status,
            message: message(),
        })),
    }
}

/// The address in the value of NOT_LEADER: `host:port`, or nothing. `None` where the value is neither.
fn leader(value: &[u8]) -> Option<Option<String>> {
    if value.is_empty() {
        return Some(None);
    }
    let addr = str::from_utf8(value).ok()?;
    let (host, port) = addr.rsplit_once(':')?;
    let plain = !host.is_empty() && addr.chars().all(|c| c.is_ascii_graphic());
    (plain && port.parse::<u16>().is_ok()).then(|| Some(addr.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_with_every_operation_is_a_response_or_a_fault() {
        let judge = |opcode, status: u8, value: &[u8]| {
            let response = wire::Response { status, value };
            match read(opcode, &response) {
                Ok(Ok(response)) => format!("{response:?}"),
                Ok(Err(error)) => format!("no: {error}"),
                Err(error) => format!("fault: {error}"),
            }
        };
        use Opcode::{Del, Discard, Follow, Get, Ping, Set, Status, Sync};
        assert_eq!(judge(Set, 0, b""), "Done");
        assert_eq!(judge(Del, 0, b""), "Done");
        assert_eq!(judge(Del, 3, b""), "NotFound");
        assert_eq!(judge(Get, 3, b""), "NotFound");
        assert_eq!(judge(Get, 0, b""), "Value([])");
        assert_eq!(judge(Get, 0, b"\xff"), "Value([255])");
        assert_eq!(judge(Ping, 0, b"PONG"), "Pong");
        assert_eq!(judge(Sync, 0, &[0; 24]), format!("Value({:?})", [0; 24]));
        assert_eq!(
            judge(Sync, 0, b"1"),
            "fault: \"1\" to a SYNC, not its fields"
        );
        assert_eq!(
            judge(Ping, 0, b"PANG"),
            "fault: \"PANG\" to a PING, not PONG"
        );
        assert_eq!(judge(Ping, 0, b""), "fault: \"\" to a PING, not PONG");
        assert_eq!(judge(Set, 3, b""), "fault: NOT_FOUND to a SET");
        assert_eq!(judge(Ping, 3, b""), "fault: NOT_FOUND to a PING");
        assert_eq!(judge(Status, 0, b"a: b\n"), "Value([97, 58, 32, 98, 10])");
        assert_eq!(
            judge(Status, 0, b"a\xff"),
            "fault: \"a\\xff\" to a STATUS, not text"
        );
        assert_eq!(judge(Discard, 0, b""), "Done");
        for opcode in [Status, Discard, Follow] {
            let name = opcode.name();
            assert_eq!(
                judge(opcode, 3, b""),
                format!("fault: NOT_FOUND to a {name}")
            );
        }
        for (opcode, status) in [(Set, 0), (Del, 0), (Discard, 0), (Get, 3), (Del, 3)] {
            let verdict = judge(opcode, status, b"x");
            assert!(verdict.starts_with("fault: value of 1 bytes"), "{verdict}");
        }
        for opcode in Opcode::ALL {
            assert_eq!(judge(opcode, 1, b"no"), "no: no");
            assert_eq!(judge(opcode, 4, b"m"), "no: the node is loading: m");
            // A SYNC changes nothing.
            let unknown = ["outcome unknown", "not reached"][usize::from(opcode == Sync)];
            assert_eq!(judge(opcode, 7, b"m"), format!("no: {unknown}: m"));
            assert_eq!(judge(opcode, 9 + 128, b"m"), "no: unknown status 0x89: m");
            assert_eq!(
                judge(opcode, 2, b"h:1"),
                "no: the node is not the leader, which is at h:1"
            );
        }
    }

    #[test]
    fn a_leader_has_an_address_or_there_is_none() {
        assert_eq!(leader(b""), Some(None));
        for good in ["127.0.0.1:8000", "[::1]:1", "host.example:65535"] {
            assert_eq!(leader(good.as_bytes()), Some(Some(good.to_owned())));
        }
        for bad in [
            "host", ":1", "h:", "h:65536", "h:-1", "h h:1", "h\n:1", "\u{e4}:1",
        ] {
            assert_eq!(leader(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(leader(b"\xff:1"), None);
    }
}
