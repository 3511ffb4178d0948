//! Changes: the effects of one record, the value of EVENT.

use super::batch::{BATCH_LEN_MAX, is_record};
use super::{Fields, Frames, Head, ReplicationError, StreamOpcode};
use crate::wire::command::Limit;
use crate::wire::expiry::recorded_expiry;
use crate::wire::request::{self, ANY_VALUE, HEADER_LEN, RequestHeader};
use crate::wire::{CommandSpec, EncodeError, Opcode, RequestFrame, size};

/// `values` of an EVENT whose frames are whole.
const WHOLE: u8 = 1;

/// The effects of one record on the keys that are watched, at least one: frames of records, one after another.
///
/// Where values were not asked for, a frame ends behind its operands. Its header has the length of the whole frame's
/// value all the same. Reading an EVENT is the only way to make them, so every one of them is acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes<'a> {
    bytes: &'a [u8],
    count: u32,
    has_values: bool,
}

impl Fields {
    /// Whether the frames in the value are whole: in all messages but an EVENT without values.
    #[must_use]
    pub const fn has_values(&self) -> bool {
        match *self {
            Fields::Event { values, .. } => values == WHOLE,
            Fields::Entries { .. }
            | Fields::SnapshotBegin { .. }
            | Fields::SnapshotChunk { .. }
            | Fields::SnapshotEnd { .. }
            | Fields::Heartbeat { .. }
            | Fields::Ack { .. }
            | Fields::Lead { .. } => true,
        }
    }
}

impl<'a> Frames<'a> {
    /// The records as changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = Change<'a>> + use<'a> {
        changes(self.bytes(), true)
    }
}

/// The changes of frames that were accepted.
fn changes(bytes: &[u8], has_values: bool) -> impl Iterator<Item = Change<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (change, after) = Change::split(rest, has_values, 0).ok()?;
        rest = after;
        Some(change)
    })
}

impl<'a> Changes<'a> {
    /// Reads the value of an EVENT with these fields, all of it.
    pub(super) fn of_value(
        fields: &Fields,
        value: &'a [u8],
    ) -> Result<Changes<'a>, ReplicationError> {
        let (has_values, count) = (fields.has_values(), fields.count().unwrap_or(0));
        let (mut rest, mut at) = (value, 0_u32);
        while !rest.is_empty() {
            let (_, after) = Change::split(rest, has_values, at)?;
            rest = after;
            at = at.saturating_add(1);
        }
        if at != count {
            return Err(ReplicationError::Count {
                opcode: StreamOpcode::Event,
                got: at,
                expected: count,
            });
        }
        Ok(Changes {
            bytes: value,
            count,
            has_values,
        })
    }

    /// Appends the frames to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes);
    }

    /// The number of changes, at least 1.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The frames, one behind the other.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The changes, in order.
    pub fn iter(&self) -> impl Iterator<Item = Change<'a>> + use<'a> {
        changes(self.bytes, self.has_values)
    }
}

/// One effect of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    opcode: Opcode,
    key: &'a [u8],
    operands: &'a [u8],
    value: Option<&'a [u8]>,
    value_len: usize,
}

impl<'a> Change<'a> {
    /// Reads the change at the start of `bytes`, behind `at` others. Returns what is behind it.
    fn split(
        bytes: &'a [u8],
        has_values: bool,
        at: u32,
    ) -> Result<(Change<'a>, &'a [u8]), ReplicationError> {
        let cut = |needed| ReplicationError::CutFrame {
            at,
            got: bytes.len(),
            needed,
        };
        let header = bytes.first_chunk().ok_or(cut(HEADER_LEN))?;
        // The header alone says whether the frame is acceptable.
        if let Err(error) = request::parse(header, &ANY_VALUE) {
            return Err(ReplicationError::BadFrame { at, error });
        }
        let header = RequestHeader::decode(*header);
        let operation = Opcode::try_from(header.opcode)
            .map_err(|opcode| ReplicationError::UnknownOpcode { opcode })?;
        let spec = operation.spec();
        if !spec.is_record {
            return Err(ReplicationError::NotARecord {
                opcode: StreamOpcode::Event,
                at,
                operation,
            });
        }
        let (key_len, value_len) = (usize::from(header.key_len), size(header.value_len));
        if value_len < spec.operands_len() {
            return Err(ReplicationError::RecordLen {
                at,
                operation,
                got: value_len,
            });
        }
        let value_at = HEADER_LEN + key_len;
        let end = value_at.saturating_add(sent_value_len(header, has_values));
        let (frame, rest) = bytes.split_at_checked(end).ok_or(cut(end))?;
        let key = &frame[HEADER_LEN..value_at];
        let (operands, value) = frame[value_at..].split_at(spec.operands_len());
        if spec.writes && !is_record(operation, operands) {
            return Err(ReplicationError::BadRecord { at, operation });
        }
        let has_value = uses_rest(spec);
        let change = Change {
            opcode: operation,
            key,
            operands,
            value: (has_value && has_values).then_some(value),
            value_len: value_len - spec.operands_len(),
        };
        Ok((change, rest))
    }

    /// The operation of the frame: that of a record which is its own effect.
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The key; empty for an EPOCH, which has none.
    #[must_use]
    pub const fn key(&self) -> &'a [u8] {
        self.key
    }

    /// The operands of the frame, as they came.
    #[must_use]
    pub const fn operands(&self) -> &'a [u8] {
        self.operands
    }

    /// The value that the key has from here on; `None` where the operation stores none, or values were not asked for.
    #[must_use]
    pub const fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// Length in bytes of the value that the key has from here on, whether it was sent or not; `None` where the
    /// operation stores none.
    #[must_use]
    pub fn value_len(&self) -> Option<usize> {
        uses_rest(self.opcode.spec()).then_some(self.value_len)
    }

    /// The deadline that the key has from here on, in milliseconds since 1970 UTC; `None` where it has none.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match self.opcode {
            Opcode::SetAt => self.operands.first_chunk().copied().map(u64::from_be_bytes),
            Opcode::Expire => recorded_expiry(self.operands).flatten(),
            Opcode::Set
            | Opcode::Get
            | Opcode::Del
            | Opcode::Ping
            | Opcode::Put
            | Opcode::Take
            | Opcode::Add
            | Opcode::Ttl
            | Opcode::Batch
            | Opcode::Sync
            | Opcode::Watch
            | Opcode::Status
            | Opcode::Discard
            | Opcode::Snapshot
            | Opcode::Scan
            | Opcode::Sums
            | Opcode::List
            | Opcode::Follow
            | Opcode::Epoch => None,
        }
    }

    /// Number and nonce of the epoch that an EPOCH begins.
    #[must_use]
    pub fn epoch(&self) -> Option<[u64; 2]> {
        if self.opcode != Opcode::Epoch {
            return None;
        }
        self.opcode.spec().operands_of(self.operands).ok()
    }
}

/// Bytes of the value that are sent of a frame with this header in an EVENT.
pub(in crate::wire) fn sent_value_len(header: RequestHeader, has_values: bool) -> usize {
    let value_len = size(header.value_len);
    match Opcode::try_from(header.opcode) {
        Ok(opcode) if !has_values => value_len.min(opcode.spec().operands_len()),
        Ok(_) | Err(_) => value_len,
    }
}

/// Whether requests with this row have anything behind their operands.
const fn uses_rest(spec: &CommandSpec) -> bool {
    !matches!(spec.rest_max, Limit::Bytes(0))
}

/// Writes one EVENT to the end of a buffer.
///
/// Each frame is copied once; [`finish`](Self::finish) fills in the head.
#[derive(Debug)]
pub struct EventEncoder<'a> {
    out: &'a mut Vec<u8>,
    has_values: bool,
    /// Offsets of the head and of the value.
    head_at: usize,
    value_at: usize,
    /// Frames pushed.
    count: u32,
}

impl<'a> EventEncoder<'a> {
    /// Begins an EVENT at the end of `out`.
    #[must_use]
    pub fn new(out: &'a mut Vec<u8>, has_values: bool) -> EventEncoder<'a> {
        let head_at = out.len();
        let value_at = head_at.saturating_add(Head::len_of(StreamOpcode::Event));
        out.resize(value_at, 0);
        EventEncoder {
            out,
            has_values,
            head_at,
            value_at,
            count: 0,
        }
    }

    /// Adds the frame of an effect, without its value where values are not sent.
    pub fn push(&mut self, frame: &RequestFrame<'_>) {
        let bytes = if self.has_values {
            frame.bytes()
        } else {
            without_value(frame)
        };
        self.out.extend_from_slice(bytes);
        self.count = self.count.saturating_add(1);
    }

    /// Fills in the head of the event of the record with this index, in a stream of this epoch. Returns whether there
    /// is one: without a frame the buffer is unchanged.
    ///
    /// # Errors
    ///
    /// When the frames are longer than the value of an EVENT may be; the buffer is then unchanged.
    pub fn finish(self, epoch: u64, index: u64) -> Result<bool, EncodeError> {
        let len = self.out.len() - self.value_at;
        if self.count == 0 || (self.count > 1 && len > size(BATCH_LEN_MAX)) {
            self.out.truncate(self.head_at);
            return match self.count {
                0 => Ok(false),
                _ => Err(EncodeError::ValueTooLong { len }),
            };
        }
        let (head, value) = self.out[self.head_at..].split_at_mut(self.value_at - self.head_at);
        match event_head(epoch, index, self.has_values, self.count, value) {
            Ok(encoded) => {
                encoded.write(head);
                Ok(true)
            }
            Err(error) => {
                self.out.truncate(self.head_at);
                Err(error)
            }
        }
    }
}

/// The head of an EVENT with these frames, for one whose frame is sent without a copy.
///
/// # Errors
///
/// When the frames are too long for the length field.
pub fn event_head(
    epoch: u64,
    index: u64,
    has_values: bool,
    count: u32,
    frames: &[u8],
) -> Result<Head, EncodeError> {
    let fields = Fields::Event {
        epoch,
        index,
        values: u8::from(has_values),
        count,
    };
    Head::new(fields, frames)
}

/// The bytes of a record's frame up to the end of its operands.
fn without_value<'f>(frame: &RequestFrame<'f>) -> &'f [u8] {
    let bytes = frame.bytes();
    let end = HEADER_LEN + frame.key().len() + frame.opcode().spec().operands_len();
    bytes.get(..end).unwrap_or(bytes)
}
