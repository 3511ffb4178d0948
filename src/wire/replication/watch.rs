//! WATCH, which requests a stream of events.

use std::fmt;

use crate::wire::command::OperandError;
use crate::wire::request::{HEADER_LEN, VALUE_LEN_AT};
use crate::wire::{EncodeError, Request, TOKEN_LEN, Token};

/// Bytes of a WATCH's value.
pub const WATCH_LEN: usize = 1 + TOKEN_LEN;

/// Bits of `want`.
const VALUES: u8 = 0b0000_0001;
const SNAPSHOT: u8 = 0b0000_0010;
const WANT: u8 = VALUES | SNAPSHOT;

/// Key and value of a WATCH. The key is the prefix of the keys that are watched; the value:
///
/// | offset | size | field   | meaning                                                                   |
/// |--------|------|---------|---------------------------------------------------------------------------|
/// | 0      | 1    | `want`  | bit 0: values too; bit 1: a snapshot first                                |
/// | 1      | 24   | `token` | where the events begin: a [`WatchFrom`]                                   |
///
/// # Source
///
/// GBP §5 "Watching".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch<'a> {
    /// Prefix of the keys; empty for all keys.
    pub prefix: &'a [u8],
    /// Whether events carry values.
    pub wants_values: bool,
    /// Where the events begin.
    pub from: WatchFrom,
}

/// The first event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFrom {
    /// That of the next record: a token of zeros.
    Now,
    /// That of the record with this index, 1 at least, whatever epoch it belongs to: a token with epoch and nonce 0.
    Index(u64),
    /// That of the record after this position.
    After(Token),
    /// That of the record after a snapshot, which comes first: bit 1 of `want`, and a token of zeros.
    Snapshot,
}

impl<'a> Watch<'a> {
    /// Reads the key and the value of a [`Request::Watch`].
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The frame is whole, so the request is answered with ERROR, and the connection
    /// goes on.
    pub fn decode(key: &'a [u8], value: &[u8]) -> Result<Watch<'a>, WatchError> {
        let Some((&[want], Some(token))) = value
            .split_first_chunk()
            .map(|(want, token)| (want, token.first_chunk()))
        else {
            return Err(WatchError::TooShort { len: value.len() });
        };
        let token = Token::decode(*token);
        if want & !WANT != 0 {
            return Err(WatchError::Want { got: want });
        }
        let from = match (want & SNAPSHOT != 0, token) {
            (true, token) if token == Token::default() => WatchFrom::Snapshot,
            (true, token) => return Err(WatchError::SnapshotAt { token }),
            (
                false,
                Token {
                    epoch: 0,
                    nonce: 0,
                    index,
                },
            ) => match index {
                0 => WatchFrom::Now,
                index => WatchFrom::Index(index),
            },
            (false, token) => WatchFrom::After(token),
        };
        Ok(Watch {
            prefix: key,
            wants_values: want & VALUES != 0,
            from,
        })
    }

    /// The value of the request.
    #[must_use]
    pub fn value(&self) -> [u8; WATCH_LEN] {
        let (snapshot, token) = match self.from {
            WatchFrom::Now => (0, Token::default()),
            WatchFrom::Index(index) => (
                0,
                Token {
                    index,
                    ..Token::default()
                },
            ),
            WatchFrom::After(token) => (0, token),
            WatchFrom::Snapshot => (SNAPSHOT, Token::default()),
        };
        let mut value = [0; WATCH_LEN];
        value[0] = snapshot | if self.wants_values { VALUES } else { 0 };
        value[1..].copy_from_slice(&token.encode());
        value
    }

    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the prefix is longer than a key; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let request = Request::Watch {
            key: self.prefix,
            value: &self.value(),
        };
        request.encode(out)
    }

    /// Judges the key and the value for the command table.
    pub(in crate::wire) fn check_operands(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        let Err(error) = Watch::decode(key, value) else {
            return Ok(());
        };
        let value_at = HEADER_LEN + key.len();
        let at = match error {
            WatchError::TooShort { .. } => VALUE_LEN_AT,
            WatchError::Want { .. } => value_at,
            WatchError::SnapshotAt { .. } => value_at + 1,
        };
        let reason = error.to_string();
        Err(OperandError { at, reason })
    }
}

/// A WATCH whose fields are not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchError {
    /// The value ends before the token does.
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// A bit of `want` that this version does not know.
    Want {
        /// All bits.
        got: u8,
    },
    /// A token with a snapshot, which has its own position.
    SnapshotAt {
        /// The token.
        token: Token,
    },
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatchError::TooShort { len } => {
                write!(f, "value of {len} bytes in WATCH, must have {WATCH_LEN}")
            }
            WatchError::Want { got } => write!(f, "want 0x{got:02x}, WATCH knows 0x{WANT:02x}"),
            WatchError::SnapshotAt { token } => write!(
                f,
                "token {token} with want 0x{SNAPSHOT:02x}, must be 0: a snapshot has its own position"
            ),
        }
    }
}

impl std::error::Error for WatchError {}
