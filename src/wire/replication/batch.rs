//! Batches: records one after another, the value of ENTRIES and SNAPSHOT_CHUNK.

use super::{Fields, Head, ReplicationError, StreamOpcode};
use crate::wire::batch::Batch;
use crate::wire::expiry::{DEADLINE_LEN, recorded_expiry};
use crate::wire::request::{self, ANY_VALUE, Parsed};
use crate::wire::{Opcode, RequestFrame, Run, size};

/// Longest value in bytes of a batch of more than one frame. A batch of one frame may be longer.
pub const BATCH_LEN_MAX: u32 = 1 << 20;

/// The records of a batch: whole frames, one after another. SET, SETAT, DEL and EXPIRE, and in ENTRIES also EPOCH.
///
/// Reading a batch is the only way to make them, so every one of them is acceptable, whatever this node's limit on
/// values is: a follower cannot leave out a record that its leader accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    count: u32,
    has_epochs: bool,
}

impl<'a> Frames<'a> {
    /// Reads the value of a batch with these fields, all of it.
    pub(super) fn of_value(
        fields: &Fields,
        value: &'a [u8],
    ) -> Result<Frames<'a>, ReplicationError> {
        Frames::check(fields.opcode(), fields.count().unwrap_or(0), value)
    }

    /// Reads `count` records of a log that was on a disk.
    ///
    /// # Errors
    ///
    /// Where they are none, or not so many.
    pub fn of_log(count: u32, bytes: &'a [u8]) -> Result<Frames<'a>, ReplicationError> {
        Frames::check(StreamOpcode::Entries, count, bytes)
    }

    /// Reads `count` entries of a snapshot that was on a disk.
    ///
    /// # Errors
    ///
    /// Where they are none, or not so many.
    pub fn of_snapshot(count: u32, bytes: &'a [u8]) -> Result<Frames<'a>, ReplicationError> {
        Frames::check(StreamOpcode::SnapshotChunk, count, bytes)
    }

    /// Appends the frames to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes);
    }

    /// Judges a batch's value, all of it.
    fn check(
        opcode: StreamOpcode,
        count: u32,
        bytes: &'a [u8],
    ) -> Result<Frames<'a>, ReplicationError> {
        // A snapshot has the effects of a BATCH one by one, and its epochs in its history.
        let takes_epochs = opcode == StreamOpcode::Entries;
        let (mut rest, mut at, mut has_epochs) = (bytes, 0_u32, false);
        while !rest.is_empty() {
            match request::parse(rest, &ANY_VALUE) {
                Ok(Parsed::Whole(frame)) => {
                    let (operation, traits) = (frame.opcode(), frame.traits());
                    // The one record that is no write is EPOCH.
                    let is_epoch = traits.is_record() && !traits.writes();
                    let is_of_log = is_epoch || operation == Opcode::Batch;
                    if !traits.is_record() || is_of_log && !takes_epochs {
                        return Err(ReplicationError::NotARecord {
                            opcode,
                            at,
                            operation,
                        });
                    }
                    let got = frame.value().len();
                    if got < operation.spec().operands_len() {
                        return Err(ReplicationError::RecordLen { at, operation, got });
                    }
                    if traits.is_computed() && !is_record(operation, frame.value()) {
                        return Err(ReplicationError::BadRecord { at, operation });
                    }
                    has_epochs |= is_epoch;
                    rest = &rest[frame.bytes().len()..];
                }
                Ok(Parsed::Incomplete { needed }) => {
                    let got = rest.len();
                    return Err(ReplicationError::CutFrame { at, got, needed });
                }
                Err(error) => return Err(ReplicationError::BadFrame { at, error }),
            }
            // A frame has 7 bytes at least, and the value's length fits in 32 bits.
            at = at.saturating_add(1);
        }
        if at != count {
            return Err(ReplicationError::Count {
                opcode,
                got: at,
                expected: count,
            });
        }
        Ok(Frames {
            bytes,
            count,
            has_epochs,
        })
    }

    /// The number of frames, at least 1.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The frames, one behind the other.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether an EPOCH is among them.
    #[must_use]
    pub const fn has_epochs(&self) -> bool {
        self.has_epochs
    }

    /// The frames in order, as runs that may be executed together. An EPOCH is a run of its own.
    pub fn runs(&self) -> impl Iterator<Item = Run<'a>> {
        runs(self.bytes)
    }

    /// The frames, in order.
    #[must_use]
    pub const fn iter(&self) -> FrameIter<'a> {
        FrameIter {
            rest: self.bytes,
            count: self.count,
        }
    }
}

/// Whether the operands at the start of a value are those of a record. Records say the same at every time.
pub(super) fn is_record(opcode: Opcode, value: &[u8]) -> bool {
    if opcode == Opcode::Batch {
        return Batch::of_record(value).is_some();
    }
    if opcode == Opcode::Expire {
        return recorded_expiry(value).is_some();
    }
    if opcode == Opcode::SetAt {
        let deadline = value.first_chunk();
        return deadline.is_some_and(|deadline| *deadline != [0; DEADLINE_LEN]);
    }
    opcode.spec().is_record
}

/// Records that were accepted before, as runs that may be executed together. An EPOCH is a run of its own.
pub fn runs(records: &[u8]) -> impl Iterator<Item = Run<'_>> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut run = Run::of(rest, &ANY_VALUE);
        if run.is_empty()
            && let Ok(Parsed::Whole(frame)) = request::parse(rest, &ANY_VALUE)
        {
            run = Run::of_one(&frame);
        }
        rest = &rest[run.bytes().len()..];
        (!run.is_empty()).then_some(run)
    })
}

impl<'a> IntoIterator for Frames<'a> {
    type Item = RequestFrame<'a>;
    type IntoIter = FrameIter<'a>;

    fn into_iter(self) -> FrameIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Frames<'a> {
    type Item = RequestFrame<'a>;
    type IntoIter = FrameIter<'a>;

    fn into_iter(self) -> FrameIter<'a> {
        self.iter()
    }
}

/// Iterator over the frames of a batch.
#[derive(Clone, Debug)]
pub struct FrameIter<'a> {
    rest: &'a [u8],
    count: u32,
}

impl<'a> Iterator for FrameIter<'a> {
    type Item = RequestFrame<'a>;

    fn next(&mut self) -> Option<RequestFrame<'a>> {
        match request::parse(self.rest, &ANY_VALUE) {
            Ok(Parsed::Whole(frame)) => {
                self.rest = &self.rest[frame.bytes().len()..];
                self.count = self.count.saturating_sub(1);
                Some(frame)
            }
            // `check` has accepted the frames, so this is their end.
            Ok(Parsed::Incomplete { .. }) | Err(_) => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (size(self.count), Some(size(self.count)))
    }
}

impl ExactSizeIterator for FrameIter<'_> {}

/// Writes a batch to the end of a buffer: an ENTRIES or a SNAPSHOT_CHUNK.
///
/// Each record is copied once; [`finish`](Self::finish) fills in the head, whose fields are then known. A batch that is
/// dropped before leaves the buffer unchanged.
#[derive(Debug)]
pub struct BatchEncoder<'a> {
    out: &'a mut Vec<u8>,
    opcode: StreamOpcode,
    /// Offsets of the head and of the value.
    head_at: usize,
    value_at: usize,
    /// Records pushed.
    count: u32,
    value_crc: u32,
    is_finished: bool,
}

impl<'a> BatchEncoder<'a> {
    /// Begins a frame with this opcode at the end of `out`.
    #[must_use]
    pub fn new(out: &'a mut Vec<u8>, opcode: StreamOpcode) -> BatchEncoder<'a> {
        let head_at = out.len();
        let value_at = head_at.saturating_add(Head::len_of(opcode));
        out.resize(value_at, 0);
        BatchEncoder {
            out,
            opcode,
            head_at,
            value_at,
            count: 0,
            value_crc: 0,
            is_finished: false,
        }
    }

    /// The number of records pushed.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the records pushed.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.out.len() - self.value_at
    }

    /// Adds the whole frame of a record. Returns false, and adds nothing, where the batch would become longer than
    /// [`BATCH_LEN_MAX`]. An empty batch takes any frame of up to 4,294,967,295 bytes.
    #[must_use = "a frame that does not fit belongs into the next batch"]
    pub fn push(&mut self, frame: &[u8]) -> bool {
        self.push_run(frame, 1)
    }

    /// Adds `run` whole records, which lie one behind the other in `frame`, like [`push`](Self::push). Only a
    /// single frame may be longer than [`BATCH_LEN_MAX`].
    #[must_use = "frames that do not fit belong into the next batch"]
    pub fn push_run(&mut self, frame: &[u8], run: u32) -> bool {
        debug_assert!(
            Frames::check(self.opcode, run, frame).is_ok(),
            "a batch is made of whole records"
        );
        let max = if self.count == 0 && run == 1 {
            u32::MAX
        } else {
            BATCH_LEN_MAX
        };
        if self.value_len().saturating_add(frame.len()) > size(max) {
            return false;
        }
        self.count = self.count.saturating_add(run);
        self.value_crc = crc32c::crc32c_append(self.value_crc, frame);
        self.out.extend_from_slice(frame);
        true
    }

    /// Fills in the head with the fields that `fields` gives for the number of records, and returns that number. Where
    /// there is no record, `fields` is not called and the buffer is unchanged.
    pub fn finish(mut self, fields: impl FnOnce(u32) -> Fields) -> u32 {
        if self.count == 0 {
            return 0;
        }
        let fields = fields(self.count);
        debug_assert_eq!(
            (fields.opcode(), fields.count()),
            (self.opcode, Some(self.count)),
            "the fields are those of this batch"
        );
        // `push` keeps the length within 32 bits.
        if let Ok(head) = Head::with_crc(fields, self.value_len(), self.value_crc) {
            head.write(&mut self.out[self.head_at..self.value_at]);
            self.is_finished = true;
        }
        self.count
    }
}

impl Drop for BatchEncoder<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.out.truncate(self.head_at);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::Request;
    use crate::wire::replication::{Message, Parsed as ParsedMessage, parse};

    fn set_of(len: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        let value = vec![7; len - 7];
        let request = Request::Set {
            key: b"",
            value: &value,
        };
        request.encode(&mut frame).unwrap();
        assert_eq!(frame.len(), len);
        frame
    }

    const fn entries(count: u32) -> Fields {
        Fields::Entries {
            epoch: 1,
            first_index: 1,
            count,
            committed_index: 9,
            time_ms: 5,
            digest: 7,
        }
    }

    const fn chunk(count: u32) -> Fields {
        Fields::SnapshotChunk {
            epoch: 1,
            sequence: 0,
            count,
        }
    }

    fn count_of(bytes: &[u8]) -> u32 {
        match parse(bytes) {
            Ok(ParsedMessage::Whole {
                message: Message::Entries { frames, .. } | Message::SnapshotChunk { frames, .. },
                frame_len,
            }) if frame_len == bytes.len() => frames.count(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_has_1_mib_at_most_or_one_frame_of_any_length() {
        let mut out = Vec::new();
        let mut batch = BatchEncoder::new(&mut out, StreamOpcode::Entries);
        assert!(batch.push(&set_of((1 << 20) - 100)));
        assert!(!batch.push(&set_of(101)), "one byte too many");
        assert!(batch.push(&set_of(100)));
        assert!(!batch.push(&set_of(7)));
        assert_eq!((batch.count(), batch.value_len()), (2, 1 << 20));
        assert_eq!(batch.finish(entries), 2);
        assert_eq!(count_of(&out), 2);

        out.clear();
        let mut batch = BatchEncoder::new(&mut out, StreamOpcode::SnapshotChunk);
        assert!(batch.push(&set_of(3 << 20)));
        assert!(!batch.push(&set_of(7)), "a long one travels alone");
        assert_eq!(batch.finish(chunk), 1);
        assert_eq!(count_of(&out), 1);
    }

    #[test]
    fn a_batch_that_is_empty_or_given_up_leaves_no_trace() {
        let mut out = b"before".to_vec();
        assert_eq!(
            BatchEncoder::new(&mut out, StreamOpcode::Entries).finish(entries),
            0
        );
        assert_eq!(out, b"before");
        let mut batch = BatchEncoder::new(&mut out, StreamOpcode::SnapshotChunk);
        assert!(batch.push(&set_of(7)));
        drop(batch);
        assert_eq!(out, b"before");
    }

    #[test]
    fn an_epoch_is_a_record_of_entries_and_of_no_copy() {
        let mut epoch = Vec::new();
        let request = Request::Epoch { value: &[7; 16] };
        request.encode(&mut epoch).unwrap();
        let set = set_of(9);
        let value = [&set[..], &set, &epoch, &epoch, &set].concat();
        let frames = Frames::check(StreamOpcode::Entries, 5, &value).unwrap();
        assert!(frames.has_epochs());
        let runs: Vec<_> = frames.runs().map(|run| run.len()).collect();
        assert_eq!(runs, [2, 1, 1, 1]);
        let runs: Vec<_> = frames.runs().flat_map(|run| run.bytes().to_vec()).collect();
        assert_eq!(runs, value);
        let frames = Frames::check(StreamOpcode::Entries, 1, &set).unwrap();
        assert!(!frames.has_epochs());

        let message = |opcode, value: &[u8]| {
            let error = Frames::check(opcode, 2, value).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            message(StreamOpcode::SnapshotChunk, &[&set[..], &epoch].concat()),
            "operation EPOCH after 1 others, SNAPSHOT_CHUNK has only SET, SETAT, DEL and EXPIRE"
        );
        let mut short = Vec::new();
        let request = Request::Epoch { value: &[7; 15] };
        request.encode(&mut short).unwrap();
        assert_eq!(
            message(StreamOpcode::Entries, &[&set[..], &short].concat()),
            "value of 15 bytes in EPOCH after 1 others, must have 16"
        );
    }

    #[test]
    fn a_large_entry_may_be_sent_from_where_it_lies() {
        let frame = set_of(2 << 20);
        let mut out = Vec::new();
        Head::new(entries(1), &frame).unwrap().encode(&mut out);
        out.extend_from_slice(&frame);
        assert_eq!(count_of(&out), 1);
    }
}
