//! SYNC: the position of a node's data set, and the wait until it has a position, or has it on its disk.

use std::time::Duration;

use super::command::OperandError;
use super::request::{HEADER_LEN, VALUE_LEN_AT};
use super::{Opcode, Request, TOKEN_LEN, Token};

/// Longest time that a SYNC waits, in milliseconds: an hour. A longer one is ERROR.
pub const SYNC_TIMEOUT_MAX_MS: u32 = 3_600_000;

/// Names of the modes.
pub(super) const SYNC_MODES: &[&str] = &["position", "at token", "durable"];

/// Bytes of a SYNC's value before its token.
const FIELDS_LEN: usize = 5;

/// The value of a [`Request::Sync`].
///
/// | offset | size    | field     | meaning                                                           |
/// |--------|---------|-----------|-------------------------------------------------------------------|
/// | 0      | 1       | `mode`    | 0 position, 1 at a token, 2 durable                               |
/// | 1      | 4       | `timeout` | longest wait in milliseconds, 0..=3,600,000; 0 with mode 0        |
/// | 5      | 0 or 24 | `token`   | the position to wait for; with mode 1 only                        |
///
/// ```
/// use gopherstore::wire::{SyncRequest, Token};
///
/// let token = Token { epoch: 1, index: 42, nonce: 7 };
/// let request = SyncRequest::At { token, timeout_ms: 5_000 };
/// assert_eq!(SyncRequest::decode(&request.value()), Ok(request));
/// ```
///
/// # Source
///
/// GBP §4 "SYNC".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncRequest {
    /// Asks for the position of the node's data set.
    Position,
    /// Waits until the node's data set has the position of the token.
    At {
        /// The position.
        token: Token,
        /// Longest wait in milliseconds; 0 does not wait.
        timeout_ms: u32,
    },
    /// Waits until the node's disk holds all that the data set holds now.
    Durable {
        /// Longest wait in milliseconds; 0 does not wait.
        timeout_ms: u32,
    },
}

impl SyncRequest {
    /// Reads the value of a SYNC.
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The request is answered with ERROR, and the connection goes on.
    pub fn decode(value: &[u8]) -> Result<SyncRequest, OperandError> {
        let Some((fields, token)) = value.split_first_chunk::<FIELDS_LEN>() else {
            return Err(wrong_len(value.len(), "", FIELDS_LEN));
        };
        let [mode, timeout @ ..] = *fields;
        let timeout_ms = u32::from_be_bytes(timeout);
        let wrong = |at, reason| {
            let at = HEADER_LEN + at;
            Err(OperandError { at, reason })
        };
        let needed = match mode {
            0 | 2 => FIELDS_LEN,
            1 => FIELDS_LEN + TOKEN_LEN,
            mode => return wrong(0, format!("mode {mode}, must be 0, 1 or 2")),
        };
        if value.len() != needed {
            let mode = format!(" with mode {mode}");
            return Err(wrong_len(value.len(), &mode, needed));
        }
        if mode == 0 && timeout_ms > 0 {
            return wrong(1, format!("timeout {timeout_ms} with mode 0, must be 0"));
        }
        if timeout_ms > SYNC_TIMEOUT_MAX_MS {
            let limit = SYNC_TIMEOUT_MAX_MS;
            return wrong(1, format!("timeout {timeout_ms}, limit {limit}"));
        }
        let Some(bytes) = token.first_chunk() else {
            return Ok(match mode {
                0 => SyncRequest::Position,
                _ => SyncRequest::Durable { timeout_ms },
            });
        };
        let token = Token::decode(*bytes);
        if token.epoch == 0 {
            return wrong(5, "token of epoch 0, must be 1 or more".to_owned());
        }
        if token.index == 0 {
            return wrong(13, "token of index 0, must be 1 or more".to_owned());
        }
        Ok(SyncRequest::At { token, timeout_ms })
    }

    /// Judges the value for the command table.
    pub(super) fn check(_key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        SyncRequest::decode(value).map(drop)
    }

    /// The value of the request.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let (mode, timeout_ms, token) = match *self {
            SyncRequest::Position => (0, 0, None),
            SyncRequest::At { token, timeout_ms } => (1, timeout_ms, Some(token.encode())),
            SyncRequest::Durable { timeout_ms } => (2, timeout_ms, None),
        };
        let mut value = vec![mode];
        value.extend_from_slice(&u32::to_be_bytes(timeout_ms));
        value.extend(token.into_iter().flatten());
        value
    }

    /// How long a request may wait at the node by itself, in addition to the time that any answer takes.
    #[must_use]
    pub fn wait_of(request: &Request<'_>) -> Duration {
        if request.opcode() == Opcode::Sync
            && let Ok(SyncRequest::At { timeout_ms, .. } | SyncRequest::Durable { timeout_ms }) =
                SyncRequest::decode(request.value())
        {
            return Duration::from_millis(timeout_ms.into());
        }
        Duration::ZERO
    }
}

fn wrong_len(len: usize, mode: &str, needed: usize) -> OperandError {
    OperandError {
        at: VALUE_LEN_AT,
        reason: format!("value of {len} bytes in SYNC{mode}, must have {needed}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_length_but_the_right_one_is_refused() {
        let token = Token {
            epoch: 1,
            index: 2,
            nonce: 3,
        };
        let requests = [
            SyncRequest::Position,
            SyncRequest::At {
                token,
                timeout_ms: 7,
            },
            SyncRequest::Durable { timeout_ms: 7 },
        ];
        for request in requests {
            let value = [&request.value()[..], &[0; 30]].concat();
            let len = request.value().len();
            for cut in 0..value.len() {
                let decoded = SyncRequest::decode(&value[..cut]);
                assert_eq!(decoded.is_ok(), cut == len, "{cut} of {len}");
            }
        }
    }

    #[test]
    fn a_request_waits_at_most_for_its_timeout() {
        let token = Token {
            epoch: 1,
            index: 2,
            nonce: 3,
        };
        let timeout_ms = 1_500;
        for request in [
            SyncRequest::At { token, timeout_ms },
            SyncRequest::Durable { timeout_ms },
        ] {
            let value = &request.value();
            let wait = SyncRequest::wait_of(&Request::Sync { value });
            assert_eq!(wait, Duration::from_millis(1_500));
        }
        for request in [Request::Ping, Request::Sync { value: b"\x01" }] {
            assert_eq!(SyncRequest::wait_of(&request), Duration::ZERO);
        }
    }
}
