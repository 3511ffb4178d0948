//! What is wrong with a frame of the stream.

use std::fmt;

use super::{ErasError, StreamOpcode};
use crate::wire::{Opcode, RequestError};

/// A frame of the stream that is refused, after which the receiver drops the connection. In a checksum's error `got` is
/// what the frame carries and `expected` what its bytes make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationError {
    /// The opcode is not one of the stream.
    UnknownOpcode {
        /// Byte 0 of the frame.
        opcode: u8,
    },
    /// The key has not the length that its opcode demands.
    KeyLen {
        /// What the frame is.
        opcode: StreamOpcode,
        /// The declared length in bytes.
        got: u16,
        /// The length that it must have.
        expected: u16,
    },
    /// Header or key are damaged.
    HeadChecksum {
        /// What the frame seems to be.
        opcode: StreamOpcode,
        /// What it carries.
        got: u32,
        /// What its bytes make.
        expected: u32,
    },
    /// A batch of no frames.
    NoFrames {
        /// What the frame is.
        opcode: StreamOpcode,
    },
    /// Entries at indexes that there are not: 0, or beyond the last that 64 bits can say.
    Index {
        /// The index of the first.
        first_index: u64,
        /// How many there are.
        count: u32,
    },
    /// The value is longer than this frame's may be.
    ValueTooLong {
        /// What the frame is.
        opcode: StreamOpcode,
        /// Its declared length in bytes.
        len: u32,
        /// The limit in bytes.
        max: u32,
    },
    /// [`Head::message`](super::Head::message) was given another value than the head's.
    ValueLen {
        /// What the frame is.
        opcode: StreamOpcode,
        /// Bytes given.
        got: usize,
        /// Bytes announced.
        expected: u32,
    },
    /// The value is damaged.
    ValueChecksum {
        /// What the frame is.
        opcode: StreamOpcode,
        /// What it carries.
        got: u32,
        /// What its bytes make.
        expected: u32,
    },
    /// A batch with more or fewer frames than it announces.
    Count {
        /// What the frame is.
        opcode: StreamOpcode,
        /// How many there are.
        got: u32,
        /// How many it announces.
        expected: u32,
    },
    /// A batch that ends inside a frame.
    CutFrame {
        /// How many frames come before it.
        at: u32,
        /// Bytes of the frame that are there.
        got: usize,
        /// Bytes that it needs, as far as is known.
        needed: usize,
    },
    /// A batch with a frame that no node accepts.
    BadFrame {
        /// How many frames come before it.
        at: u32,
        /// What is wrong with it.
        error: RequestError,
    },
    /// A batch with a frame that is neither SET nor DEL.
    NotAWrite {
        /// How many frames come before it.
        at: u32,
        /// What it is.
        operation: Opcode,
    },
    /// The value of SNAPSHOT_BEGIN is no history.
    History(ErasError),
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
            ReplicationError::NotAWrite { at, operation } => write!(
                f,
                "operation {} after {at} others, a batch has only SET and DEL",
                operation.name()
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
            | ReplicationError::ValueTooLong { .. }
            | ReplicationError::ValueLen { .. }
            | ReplicationError::ValueChecksum { .. }
            | ReplicationError::Count { .. }
            | ReplicationError::CutFrame { .. }
            | ReplicationError::NotAWrite { .. } => None,
        }
    }
}
