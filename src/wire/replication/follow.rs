//! FOLLOW and its answer, which begin a replication stream.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::{Epochs, EpochsError};
use crate::wire::command::OperandError;
use crate::wire::request::{HEADER_LEN, KEY_LEN_AT, VALUE_LEN_AT};
use crate::wire::{EncodeError, Request};

/// Version of the stream that this code implements.
pub const FOLLOW_VERSION: u8 = 2;

/// Longest name of a node in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// Bytes of a FOLLOW's value before the cluster id.
pub const FOLLOW_FIELDS_LEN: usize = 26;

/// Longest cluster id in bytes.
pub const CLUSTER_ID_LEN_MAX: usize = 1_024;

/// Bits of `flags`.
const SNAPSHOT: u8 = 0b0000_0010;
const TO_LEAD: u8 = 0b0000_0100;
const FLAGS: u8 = SNAPSHOT | TO_LEAD;

/// Key and value of a FOLLOW. The key is the node's name; the value:
///
/// | offset | size | field        | meaning                                                              |
/// |--------|------|--------------|----------------------------------------------------------------------|
/// | 0      | 1    | `version`    | 2                                                                    |
/// | 1      | 1    | `flags`      | bit 1 `wants_snapshot`, 2 `is_to_lead`; the others are 0 |
/// | 2      | 8    | `epoch`      | of the epoch that the node's last record belongs to; 0 where it holds nothing |
/// | 10     | 8    | `nonce`      | of that epoch; 0 where it holds nothing                                 |
/// | 18     | 8    | `last_index` | index of the node's last record; 0 where it holds nothing              |
/// | 26     | rest | `cluster_id` | of the cluster that the node belongs to, 0..=1,024 bytes              |
///
/// # Source
///
/// GBP §5 "Following".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow<'a> {
    /// The node's name, 1..=64 bytes.
    pub name: &'a [u8],
    /// The node requests a snapshot, whatever its position is.
    pub wants_snapshot: bool,
    /// The node is about to lead and needs data. A follower serves it too.
    pub is_to_lead: bool,
    /// Epoch that its last record belongs to.
    pub epoch: u64,
    /// Nonce of that epoch.
    pub nonce: u64,
    /// Index of its last record.
    pub last_index: u64,
    /// Identifier of the cluster that the node belongs to.
    pub cluster_id: &'a [u8],
}

impl<'a> Follow<'a> {
    /// Reads the key and the value of a [`Request::Follow`].
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The frame is whole, so the request is answered with ERROR, and the connection
    /// goes on.
    pub fn decode(key: &'a [u8], value: &'a [u8]) -> Result<Follow<'a>, FollowError> {
        // First of all, since another version may have other fields.
        if let Some(&version) = value.first()
            && version != FOLLOW_VERSION
        {
            return Err(FollowError::Version { got: version });
        }
        let Some((fields, cluster_id)) = value.split_first_chunk::<FOLLOW_FIELDS_LEN>() else {
            return Err(FollowError::TooShort { len: value.len() });
        };
        let flags = fields[1];
        if flags & !FLAGS != 0 {
            return Err(FollowError::Flags { got: flags });
        }
        let follow = Follow {
            name: key,
            wants_snapshot: flags & SNAPSHOT != 0,
            is_to_lead: flags & TO_LEAD != 0,
            epoch: BigEndian::read_u64(&fields[2..10]),
            nonce: BigEndian::read_u64(&fields[10..18]),
            last_index: BigEndian::read_u64(&fields[18..26]),
            cluster_id,
        };
        follow.check()?;
        Ok(follow)
    }

    /// Appends the request's frame to `out`.
    ///
    /// # Errors
    ///
    /// When name or cluster id is too long, or the name is empty; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FollowError> {
        self.check()?;
        let mut value = vec![0; FOLLOW_FIELDS_LEN];
        value[0] = FOLLOW_VERSION;
        value[1] = if self.wants_snapshot { SNAPSHOT } else { 0 }
            | if self.is_to_lead { TO_LEAD } else { 0 };
        BigEndian::write_u64(&mut value[2..10], self.epoch);
        BigEndian::write_u64(&mut value[10..18], self.nonce);
        BigEndian::write_u64(&mut value[18..26], self.last_index);
        value.extend_from_slice(self.cluster_id);
        let request = Request::Follow {
            key: self.name,
            value: &value,
        };
        request.encode(out).map_err(FollowError::Encode)
    }

    /// Judges the key and the value for the command table.
    pub(in crate::wire) fn check_operands(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        let Err(error) = Follow::decode(key, value) else {
            return Ok(());
        };
        let value_at = HEADER_LEN + key.len();
        let at = match error {
            FollowError::Version { .. } => value_at,
            FollowError::Flags { .. } => value_at + 1,
            FollowError::ClusterIdLen { .. } => value_at + FOLLOW_FIELDS_LEN,
            FollowError::NameLen { .. } => KEY_LEN_AT,
            FollowError::TooShort { .. } | FollowError::Encode(_) => VALUE_LEN_AT,
        };
        let reason = error.to_string();
        Err(OperandError { at, reason })
    }

    fn check(&self) -> Result<(), FollowError> {
        if self.name.is_empty() || self.name.len() > NAME_LEN_MAX {
            let len = self.name.len();
            return Err(FollowError::NameLen { len });
        }
        if self.cluster_id.len() > CLUSTER_ID_LEN_MAX {
            let len = self.cluster_id.len();
            return Err(FollowError::ClusterIdLen { len });
        }
        Ok(())
    }
}

/// A FOLLOW whose fields are not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowError {
    /// A version of the stream that this node does not implement.
    Version {
        /// The version asked for.
        got: u8,
    },
    /// The value ends before the cluster id.
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// A flag that this version does not know.
    Flags {
        /// All flags.
        got: u8,
    },
    /// The name is empty, or has more than [`NAME_LEN_MAX`] bytes.
    NameLen {
        /// Its length in bytes.
        len: usize,
    },
    /// The cluster id has more than [`CLUSTER_ID_LEN_MAX`] bytes.
    ClusterIdLen {
        /// Its length in bytes.
        len: usize,
    },
    /// Too long for a frame.
    Encode(EncodeError),
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FollowError::Version { got } => write!(
                f,
                "version {got} of the replication stream, this node speaks {FOLLOW_VERSION}"
            ),
            FollowError::TooShort { len } => write!(
                f,
                "value of {len} bytes, FOLLOW has {FOLLOW_FIELDS_LEN} at least"
            ),
            FollowError::Flags { got } => write!(
                f,
                "flags 0x{got:02x}, version {FOLLOW_VERSION} knows 0x{:02x}",
                FLAGS
            ),
            FollowError::NameLen { len } => {
                write!(f, "node name of {len} bytes, must have 1 to {NAME_LEN_MAX}")
            }
            FollowError::ClusterIdLen { len } => {
                write!(f, "cluster id of {len} bytes, limit {CLUSTER_ID_LEN_MAX}")
            }
            FollowError::Encode(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FollowError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FollowError::Encode(error) => Some(error),
            FollowError::Version { .. }
            | FollowError::TooShort { .. }
            | FollowError::Flags { .. }
            | FollowError::NameLen { .. }
            | FollowError::ClusterIdLen { .. } => None,
        }
    }
}

/// Start of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Resume: the stream starts with the follower's next record.
    Resume {
        /// Index of the first record of the stream, at least 1.
        from_index: u64,
    },
    /// Snapshot: the stream starts with a SNAPSHOT_BEGIN.
    Snapshot,
    /// No stream: the follower's data set, which a snapshot would replace, is not part of the leader's history. The
    /// connection stays an ordinary one.
    Unknown,
}

/// The value of the OK to a FOLLOW.
///
/// | offset | size | field        | meaning                                                       |
/// |--------|------|--------------|---------------------------------------------------------------|
/// | 0      | 1    | `mode`       | 0 resume, 1 snapshot, 2 unknown data set                     |
/// | 1      | 8    | `from_index` | index of the first record of the stream, at least 1; 0 with the other modes |
/// | 9      | rest | `history`    | the leader's: [`Epochs`]                                         |
///
/// # Source
///
/// GBP §5 "Following".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowAnswer<'a> {
    /// Start of the stream.
    pub start: Start,
    /// The leader's history.
    pub history: Epochs<'a>,
}

/// Bytes before the history.
const ANSWER_FIELDS_LEN: usize = 9;
const RESUME: u8 = 0;
const FULL: u8 = 1;
const UNKNOWN: u8 = 2;

impl<'a> FollowAnswer<'a> {
    /// Reads the value of an OK.
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The connection cannot be used further.
    pub fn decode(value: &'a [u8]) -> Result<FollowAnswer<'a>, FollowAnswerError> {
        let Some((fields, history)) = value.split_first_chunk::<ANSWER_FIELDS_LEN>() else {
            return Err(FollowAnswerError::TooShort { len: value.len() });
        };
        let (mode, from_index) = (fields[0], BigEndian::read_u64(&fields[1..9]));
        let start = match (mode, from_index) {
            (RESUME, 1..) => Start::Resume { from_index },
            (FULL, 0) => Start::Snapshot,
            (UNKNOWN, 0) => Start::Unknown,
            (RESUME | FULL | UNKNOWN, _) => {
                return Err(FollowAnswerError::FromIndex { mode, from_index });
            }
            _ => return Err(FollowAnswerError::Mode { got: mode }),
        };
        let history = Epochs::decode(history).map_err(FollowAnswerError::History)?;
        Ok(FollowAnswer { start, history })
    }

    /// Appends the value to `out`. The frame is an OK [`Response`](crate::wire::Response) with it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (mode, from_index) = match self.start {
            Start::Resume { from_index } => (RESUME, from_index),
            Start::Snapshot => (FULL, 0),
            Start::Unknown => (UNKNOWN, 0),
        };
        out.push(mode);
        out.extend_from_slice(&from_index.to_be_bytes());
        self.history.encode(out);
    }
}

/// Reason why the value of an OK is no answer to a FOLLOW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowAnswerError {
    /// It ends before the history.
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// A mode that this version does not know.
    Mode {
        /// Byte 0.
        got: u8,
    },
    /// An index that does not belong to the mode.
    FromIndex {
        /// Byte 0.
        mode: u8,
        /// The index.
        from_index: u64,
    },
    /// The history is not valid.
    History(EpochsError),
}

impl fmt::Display for FollowAnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FollowAnswerError::TooShort { len } => write!(
                f,
                "value of {len} bytes, the response to FOLLOW has {ANSWER_FIELDS_LEN} and a history"
            ),
            FollowAnswerError::Mode { got } => {
                write!(
                    f,
                    "mode {got}, must be 0 (resume), 1 (snapshot) or 2 (unknown data set)"
                )
            }
            FollowAnswerError::FromIndex { mode, from_index } => write!(
                f,
                "from_index {from_index} with mode {mode}, must be 1 at least for resuming and 0 else"
            ),
            FollowAnswerError::History(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FollowAnswerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FollowAnswerError::History(error) => Some(error),
            FollowAnswerError::TooShort { .. }
            | FollowAnswerError::Mode { .. }
            | FollowAnswerError::FromIndex { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Opcode;
    use crate::wire::request::Limits;

    #[test]
    fn the_limit_that_a_header_is_judged_by_is_that_of_the_fields() {
        let spec = Opcode::Follow.spec();
        assert_eq!(spec.operands_len(), FOLLOW_FIELDS_LEN);
        let len_max = spec.value_len_max(&Limits { value_len_max: 0 });
        assert_eq!(
            usize::try_from(len_max),
            Ok(FOLLOW_FIELDS_LEN + CLUSTER_ID_LEN_MAX)
        );
    }
}
