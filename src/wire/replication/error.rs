//! Faults of a frame of the stream.

use std::fmt;

use super::{EpochsError, StreamOpcode};
use crate::wire::{Opcode, RequestError};

/// Reason why a frame of the stream is refused. The receiver then drops the connection. In a checksum's error `got` is
/// the checksum in the frame, and `expected` the checksum of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationError {
    /// The opcode is not one of the stream.
    UnknownOpcode {
        /// Byte 0 of the frame.
        opcode: u8,
    },
    /// The key has another length than its opcode requires.
    KeyLen {
        /// Its opcode.
        opcode: StreamOpcode,
        /// The declared length in bytes.
        got: u16,
        /// The length that it must have.
        expected: u16,
    },
    /// Header or key is damaged.
    HeadChecksum {
        /// Its opcode, which may be damaged too.
        opcode: StreamOpcode,
        /// The checksum in the frame.
        got: u32,
        /// The checksum of its bytes.
        expected: u32,
    },
    /// A batch without frames.
    NoFrames {
        /// Its opcode.
        opcode: StreamOpcode,
    },
    /// An index out of range: 0, or above the largest number of 64 bits.
    Index {
        /// The index of the first record.
        first_index: u64,
        /// The number of records.
        count: u32,
    },
    /// An EVENT of index 0.
    EventIndex,
    /// An EVENT whose `values` is neither 0 nor 1.
    EventValues {
        /// That number.
        got: u8,
    },
    /// The value is longer than a frame with this opcode allows.
    ValueTooLong {
        /// Its opcode.
        opcode: StreamOpcode,
        /// Its declared length in bytes.
        len: u32,
        /// The limit in bytes.
        max: u32,
    },
    /// [`Head::message`](super::Head::message) was called with a value of another length than the head's.
    ValueLen {
        /// Its opcode.
        opcode: StreamOpcode,
        /// Bytes given.
        got: usize,
        /// Bytes announced.
        expected: u32,
    },
    /// The value is damaged.
    ValueChecksum {
        /// Its opcode.
        opcode: StreamOpcode,
        /// The checksum in the frame.
        got: u32,
        /// The checksum of its bytes.
        expected: u32,
    },
    /// A batch with another number of frames than its head says.
    Count {
        /// Its opcode.
        opcode: StreamOpcode,
        /// The number of frames in the value.
        got: u32,
        /// The number in the head.
        expected: u32,
    },
    /// A batch that ends inside a frame.
    CutFrame {
        /// The number of frames before it.
        at: u32,
        /// Bytes of the frame that are there.
        got: usize,
        /// Bytes that it needs, as far as is known.
        needed: usize,
    },
    /// A batch with a frame that no node accepts.
    BadFrame {
        /// The number of frames before it.
        at: u32,
        /// The reason.
        error: RequestError,
    },
    /// A batch with a frame that is no record, or an EPOCH in a snapshot.
    NotARecord {
        /// The batch's opcode.
        opcode: StreamOpcode,
        /// The number of frames before it.
        at: u32,
        /// The operation.
        operation: Opcode,
    },
    /// The operands of a record are those of none: they are wrong, or mean a time from now.
    BadRecord {
        /// Its place in the value, from 0.
        at: u32,
        /// The operation.
        operation: Opcode,
    },
    /// A batch with a record whose value is shorter than its fields.
    RecordLen {
        /// The number of frames before it.
        at: u32,
        /// The operation.
        operation: Opcode,
        /// Bytes of its value.
        got: usize,
    },
    /// The value of SNAPSHOT_BEGIN is not a valid history.
    History(EpochsError),
}

impl fmt::Display for ReplicationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplicationError::UnknownOpcode { opcode } => {
                write!(f, "unknown opcode 0x{opcode:02x} in a replication stream")
            }
            ReplicationError::KeyLen {
                opcode,
                got,
                expected,
            } => write!(
                f,
                "key of {got} bytes in {}, must have {expected}",
                opcode.name()
            ),
            ReplicationError::HeadChecksum {
                opcode,
                got,
                expected,
            } => write!(
                f,
                "damaged head of {}: it carries head_crc 0x{got:08x}, its bytes make 0x{expected:08x}",
                opcode.name()
            ),
            ReplicationError::NoFrames { opcode } => {
                write!(f, "count 0 in {}, must be 1 at least", opcode.name())
            }
            ReplicationError::Index { first_index, count } => write!(
                f,
                "first_index {first_index} and count {count} in ENTRIES, indexes go from 1 to {}",
                u64::MAX
            ),
            ReplicationError::EventIndex => f.write_str("index 0 in EVENT, must be 1 at least"),
            ReplicationError::EventValues { got } => {
                write!(f, "values {got} in EVENT, must be 0 or 1")
            }
            ReplicationError::ValueTooLong { opcode, len, max } => {
                write!(f, "value of {len} bytes in {}, limit {max}", opcode.name())
            }
            ReplicationError::ValueLen {
                opcode,
                got,
                expected,
            } => write!(
                f,
                "value of {got} bytes in {}, its head says {expected}",
                opcode.name()
            ),
            ReplicationError::ValueChecksum {
                opcode,
                got,
                expected,
            } => write!(
                f,
                "damaged value of {}: it carries value_crc 0x{got:08x}, its bytes make 0x{expected:08x}",
                opcode.name()
            ),
            ReplicationError::Count {
                opcode,
                got,
                expected,
            } => write!(
                f,
                "count {expected} in {}, its value holds {got}",
                opcode.name()
            ),
            ReplicationError::CutFrame { at, got, needed } => {
                write!(f, "cut frame after {at} others: {got} of {needed} bytes")
            }
            ReplicationError::BadFrame { at, error } => {
                write!(f, "bad frame after {at} others: {error}")
            }
            ReplicationError::NotARecord {
                opcode,
                at,
                operation,
            } => write!(
                f,
                "operation {} after {at} others, {} has only {}",
                operation.name(),
                opcode.name(),
                match opcode {
                    StreamOpcode::Entries => "SET, SETAT, DEL, EXPIRE, BATCH and EPOCH",
                    StreamOpcode::Event => "SET, SETAT, DEL, EXPIRE and EPOCH",
                    StreamOpcode::SnapshotBegin
                    | StreamOpcode::SnapshotChunk
                    | StreamOpcode::SnapshotEnd
                    | StreamOpcode::Heartbeat
                    | StreamOpcode::Ack
                    | StreamOpcode::Lead => "SET, SETAT, DEL and EXPIRE",
                }
            ),
            ReplicationError::BadRecord { at, operation } => write!(
                f,
                "operands of {} after {at} others that no record has",
                operation.name()
            ),
            ReplicationError::RecordLen { at, operation, got } => write!(
                f,
                "value of {got} bytes in {} after {at} others, must have {}",
                operation.name(),
                operation.spec().operands_len()
            ),
            ReplicationError::History(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReplicationError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReplicationError::BadFrame { error, .. } => Some(error),
            ReplicationError::History(error) => Some(error),
            ReplicationError::UnknownOpcode { .. }
            | ReplicationError::KeyLen { .. }
            | ReplicationError::HeadChecksum { .. }
            | ReplicationError::NoFrames { .. }
            | ReplicationError::Index { .. }
            | ReplicationError::EventIndex
            | ReplicationError::EventValues { .. }
            | ReplicationError::ValueTooLong { .. }
            | ReplicationError::ValueLen { .. }
            | ReplicationError::ValueChecksum { .. }
            | ReplicationError::Count { .. }
            | ReplicationError::CutFrame { .. }
            | ReplicationError::NotARecord { .. }
            | ReplicationError::BadRecord { .. }
            | ReplicationError::RecordLen { .. } => None,
        }
    }
}
