//! Header and key of a frame of the stream.

use byteorder::{BigEndian, ByteOrder};

use super::batch::BATCH_LEN_MAX;
use super::epochs::EPOCHS_LEN_MAX;
use super::messages::MessageValue;
use super::{Fields, Message, ReplicationError, StreamOpcode};
use crate::wire::request::{HEADER_LEN, RequestHeader};
use crate::wire::{EncodeError, size};

/// Bytes of the two checksums that end every key.
const CHECKSUMS_LEN: usize = 8;
/// Bytes of `head_crc`, the one checksum that does not cover itself.
const HEAD_CRC_LEN: usize = 4;

impl Fields {
    /// Judges the fields, and the length of the value.
    fn check(&self, value_len: u32) -> Result<(), ReplicationError> {
        let opcode = self.opcode();
        let max = match (opcode.spec().value, self.count()) {
            (MessageValue::Frames | MessageValue::Changes, None | Some(0)) => {
                return Err(ReplicationError::NoFrames { opcode });
            }
            // One frame may have any length that a frame can have.
            (MessageValue::Frames | MessageValue::Changes, Some(1)) => u32::MAX,
            (MessageValue::Frames | MessageValue::Changes, Some(_)) => BATCH_LEN_MAX,
            (MessageValue::History, _) => EPOCHS_LEN_MAX,
            (MessageValue::Empty, _) => 0,
        };
        if let Fields::Entries {
            first_index, count, ..
        } = *self
            && (first_index == 0 || first_index.checked_add(u64::from(count) - 1).is_none())
        {
            return Err(ReplicationError::Index { first_index, count });
        }
        if let Fields::Event { index, values, .. } = *self {
            if index == 0 {
                return Err(ReplicationError::EventIndex);
            }
            if values > 1 {
                return Err(ReplicationError::EventValues { got: values });
            }
        }
        if value_len > max {
            return Err(ReplicationError::ValueTooLong {
                opcode,
                len: value_len,
                max,
            });
        }
        Ok(())
    }
}

/// Header and key of a frame of the stream, intact and acceptable.
///
/// | offset        | size | field       | meaning                                                          |
/// |---------------|------|-------------|------------------------------------------------------------------|
/// | 0             | 1    | `opcode`    | a [`StreamOpcode`]                                               |
/// | 1             | 2    | `key_len`   | as the opcode has it: [`StreamOpcode::key_len`]                  |
/// | 3             | 4    | `value_len` | bytes of value that follow the key                               |
/// | 7             |      |             | the opcode's [`Fields`]                                          |
/// | `key_len` − 1 | 4    | `value_crc` | CRC-32C over the value; 0 for an empty one                       |
/// | `key_len` + 3 | 4    | `head_crc`  | CRC-32C over all that stands before it: offsets 0..`key_len` + 3 |
///
/// # Source
///
/// GBP §6 "The replication stream".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    fields: Fields,
    value_len: u32,
    value_crc: u32,
}

/// Result of [`Head::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedHead {
    /// The bytes end inside a head.
    Incomplete {
        /// Bytes of the head, as far as known; at least one more than there are.
        needed: usize,
    },
    /// A whole head.
    Whole(Head),
}

impl Head {
    /// The head of a frame with these fields and this value.
    ///
    /// For a value that is sent without a copy, as a large record is. The caller is responsible for its contents.
    /// [`Message::encode`] and [`BatchEncoder`](super::BatchEncoder) write head and value together.
    ///
    /// # Errors
    ///
    /// When the value is too long for the length field.
    pub fn new(fields: Fields, value: &[u8]) -> Result<Head, EncodeError> {
        Head::with_crc(fields, value.len(), crc32c::crc32c(value))
    }

    /// The same, for a value whose checksum is known.
    pub(super) fn with_crc(
        fields: Fields,
        value_len: usize,
        value_crc: u32,
    ) -> Result<Head, EncodeError> {
        Ok(Head {
            fields,
            value_len: u32::try_from(value_len)
                .map_err(|_| EncodeError::ValueTooLong { len: value_len })?,
            value_crc,
        })
    }

    /// The fields of the key.
    #[must_use]
    pub const fn fields(&self) -> Fields {
        self.fields
    }

    /// Bytes of the head of every frame with this opcode: header and key.
    #[must_use]
    pub fn len_of(opcode: StreamOpcode) -> usize {
        HEADER_LEN + usize::from(opcode.key_len())
    }

    /// Bytes of the head. There is always one, so it is never empty.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        Head::len_of(self.fields.opcode())
    }

    /// Bytes of the value that follows.
    #[must_use]
    pub fn value_len(&self) -> usize {
        size(self.value_len)
    }

    /// Bytes of the whole frame: head and value.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.len().saturating_add(self.value_len())
    }

    /// Reads the head at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// When it is damaged, or says what no frame may.
    pub fn parse(bytes: &[u8]) -> Result<ParsedHead, ReplicationError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(ParsedHead::Incomplete { needed: HEADER_LEN });
        };
        let header = RequestHeader::decode(*header);
        let opcode = StreamOpcode::try_from(header.opcode)
            .map_err(|opcode| ReplicationError::UnknownOpcode { opcode })?;
        if header.key_len != opcode.key_len() {
            return Err(ReplicationError::KeyLen {
                opcode,
                got: header.key_len,
                expected: opcode.key_len(),
            });
        }
        let needed = Head::len_of(opcode);
        let Some(head) = bytes.get(..needed) else {
            return Ok(ParsedHead::Incomplete { needed });
        };
        let (covered, head_crc) = head.split_at(needed - HEAD_CRC_LEN);
        let (got, expected) = (BigEndian::read_u32(head_crc), crc32c::crc32c(covered));
        if got != expected {
            return Err(ReplicationError::HeadChecksum {
                opcode,
                got,
                expected,
            });
        }
        let fields = Fields::decode(opcode, &head[HEADER_LEN..]);
        fields.check(header.value_len)?;
        Ok(ParsedHead::Whole(Head {
            fields,
            value_len: header.value_len,
            value_crc: BigEndian::read_u32(&head[needed - CHECKSUMS_LEN..needed - HEAD_CRC_LEN]),
        }))
    }

    /// The whole frame, once its value is there: all of it, and nothing behind it. The value is judged to its last byte
    /// before any of it is handed out.
    ///
    /// # Errors
    ///
    /// When the value is damaged, or is not what this frame carries.
    pub fn message<'a>(&self, value: &'a [u8]) -> Result<Message<'a>, ReplicationError> {
        let opcode = self.fields.opcode();
        if value.len() != self.value_len() {
            return Err(ReplicationError::ValueLen {
                opcode,
                got: value.len(),
                expected: self.value_len,
            });
        }
        let (got, expected) = (self.value_crc, crc32c::crc32c(value));
        if got != expected {
            return Err(ReplicationError::ValueChecksum {
                opcode,
                got,
                expected,
            });
        }
        self.fields.message(value)
    }

    /// Appends the head to `out`; the value's bytes come behind it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start.saturating_add(self.len()), 0);
        self.write(&mut out[start..]);
    }

    /// Writes the head over `head`, which is as long as it.
    pub(super) fn write(&self, head: &mut [u8]) {
        let opcode = self.fields.opcode();
        let header = RequestHeader {
            opcode: opcode.byte(),
            key_len: opcode.key_len(),
            value_len: self.value_len,
        };
        let (covered, head_crc) = head.split_at_mut(self.len() - HEAD_CRC_LEN);
        let value_crc_at = covered.len() - (CHECKSUMS_LEN - HEAD_CRC_LEN);
        covered[..HEADER_LEN].copy_from_slice(&header.encode());
        self.fields.write(&mut covered[HEADER_LEN..]);
        BigEndian::write_u32(&mut covered[value_crc_at..], self.value_crc);
        BigEndian::write_u32(head_crc, crc32c::crc32c(covered));
    }
}
