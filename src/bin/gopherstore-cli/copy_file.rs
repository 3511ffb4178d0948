//! The file of `dump` and `load` (GBP §11): records and an end mark.

use std::{
    fmt,
    io::{self, ErrorKind, Read},
    time::Duration,
};

use gopherstore::engine::digest::Digest;
use gopherstore::wire::{
    Buffer, Opcode, RequestFrame,
    expiry::recorded_expiry,
    replication::{self, Message, StreamOpcode},
    request::{self, ANY_VALUE, Parsed},
};
use indicatif::HumanCount;

/// Number and digest of the frames, as in the end mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Number of frames.
    pub(crate) frames: u64,
    /// Sum modulo 2^128 of the hash of each record. It is the digest of the data set if each key has one record.
    pub(crate) digest: u128,
}

/// A number of entries, in words.
pub(crate) fn entries(count: u64) -> String {
    let noun = if count == 1 { "entry" } else { "entries" };
    format!("{} {noun}", HumanCount(count))
}

/// A duration, in words.
pub(crate) fn duration(took: Duration) -> String {
    match took.as_millis() {
        0 => "less than 1 ms".to_owned(),
        ms @ 1..1_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", took.as_secs_f64()),
    }
}

impl Sum {
    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        let hash = Digest::of_frame(frame).to_u128();
        self.digest = self.digest.wrapping_add(hash);
    }

    /// The end mark of a file with these frames, whose snapshot ends at this index.
    pub(crate) fn end_mark(self, epoch: u64, index: u64) -> Vec<u8> {
        let mut mark = Vec::new();
        // It has no value, so it is never too long.
        let _ = Message::SnapshotEnd {
            epoch,
            index,
            digest: self.digest,
            chunks: self.frames,
        }
        .encode(&mut mark);
        mark
    }
}

/// Reads a file frame by frame, with memory for the longest frame.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    buffer: Buffer,
    /// Offset in the file of the buffer's first byte.
    at: u64,
    /// Bytes of the frame that was returned last.
    taken: usize,
    is_at_end: bool,
    sum: Sum,
    needs_end_mark: bool,
}

/// Fault of a file, and the offset of the wrong byte.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The system cannot read it.
    Read(io::Error),
    /// It ends inside a frame.
    Cut { at: u64, got: usize, needed: usize },
    /// It ends between frames, without an end mark.
    NoEndMark { at: u64 },
    /// The bytes are no record.
    Bad { at: u64, why: String },
    /// The end mark does not match the frames.
    Sum { told: Sum, found: Sum },
    /// Bytes follow the end mark.
    Behind { at: u64 },
}

impl<R: Read> Reader<R> {
    /// A reader from the file's start.
    pub(crate) fn new(input: R, needs_end_mark: bool) -> Reader<R> {
        Reader {
            input,
            buffer: Buffer::new(),
            at: 0,
            taken: 0,
            is_at_end: false,
            sum: Sum::default(),
            needs_end_mark,
        }
    }

    /// Offset of the next frame.
    pub(crate) fn offset(&self) -> u64 {
        self.at + u64::try_from(self.taken).unwrap_or(u64::MAX)
    }

    /// The next frame and its offset; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, RequestFrame<'_>)>, Fault> {
        self.at = self.offset();
        self.buffer.consume(std::mem::take(&mut self.taken));
        let at = self.at;
        loop {
            let bytes = self.buffer.bytes();
            let bad = |why: String| Fault::Bad { at, why };
            let needed = match bytes.first() {
                Some(&first) if first == StreamOpcode::SnapshotEnd.byte() => {
                    match replication::parse(bytes).map_err(|error| bad(error.to_string()))? {
                        replication::Parsed::Incomplete { needed } => needed,
                        replication::Parsed::Whole { message, frame_len } => {
                            let told = match message {
                                Message::SnapshotEnd { digest, chunks, .. } => Sum {
                                    frames: chunks,
                                    digest,
                                },
                                Message::Entries { .. }
                                | Message::SnapshotBegin { .. }
                                | Message::SnapshotChunk { .. }
                                | Message::Heartbeat { .. }
                                | Message::Ack { .. }
                                | Message::Lead { .. }
                                | Message::Event { .. } => Sum::default(),
                            };
                            return self.end(told, frame_len);
                        }
                    }
                }
                _ => match request::parse(bytes, &ANY_VALUE) {
                    Ok(Parsed::Incomplete { needed }) => needed,
                    Ok(Parsed::Whole(frame)) => {
                        judge(&frame).map_err(bad)?;
                        break;
                    }
                    Err(error) => return Err(bad(error.to_string())),
                },
            };
            if !self.fill(needed)? {
                let got = self.buffer.bytes().len();
                return match got {
                    0 if self.needs_end_mark => Err(Fault::NoEndMark { at }),
                    0 => Ok(None),
                    _ => Err(Fault::Cut { at, got, needed }),
                };
            }
        }
        match request::parse(self.buffer.bytes(), &ANY_VALUE) {
            Ok(Parsed::Whole(frame)) => {
                self.taken = frame.bytes().len();
                self.sum.add(frame.bytes());
                Ok(Some((at, frame)))
            }
            // It was complete before.
            _ => Err(Fault::NoEndMark { at }),
        }
    }

    fn end(
        &mut self,
        told: Sum,
        frame_len: usize,
    ) -> Result<Option<(u64, RequestFrame<'_>)>, Fault> {
        self.taken = frame_len;
        if told != self.sum {
            let found = self.sum;
            return Err(Fault::Sum { told, found });
        }
        let at = self.offset();
        self.buffer.consume(std::mem::take(&mut self.taken));
        self.at = at;
        if !self.buffer.is_empty() || self.fill(1)? {
            return Err(Fault::Behind { at });
        }
        Ok(None)
    }

    /// Reads more. Returns false at the end of the file.
    fn fill(&mut self, needed: usize) -> Result<bool, Fault> {
        while !self.is_at_end {
            match self.input.read(self.buffer.space(needed)) {
                Ok(0) => self.is_at_end = true,
                Ok(count) => {
                    self.buffer.filled(count);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Read(error)),
            }
        }
        Ok(false)
    }
}

/// Whether a frame may be in a file.
fn judge(frame: &RequestFrame<'_>) -> Result<(), String> {
    let spec = frame.opcode().spec();
    let is_record = spec.writes && spec.is_record;
    if !is_record || spec.opcode == Opcode::Batch {
        return Err(format!(
            "{}, where only SET, SETAT, DEL and EXPIRE belong",
            spec.name
        ));
    }
    let judged = spec.check(frame.key(), frame.value());
    judged.map_err(|error| error.reason)?;
    if frame.opcode() == Opcode::Expire && recorded_expiry(frame.value()).is_none() {
        return Err("EXPIRE with a time from now, where only a deadline belongs".to_owned());
    }
    Ok(())
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Read(error) => write!(f, "cannot be read: {error}"),
            Fault::Cut { at, got, needed } => write!(
                f,
                "is cut off: the entry at byte {at} has {needed} bytes at least, and {got} are there"
            ),
            Fault::NoEndMark { at } => write!(
                f,
                "ends at byte {at} without an end mark, so it may be cut off; if it is a file of your own making, add \
                 --no-end-mark"
            ),
            Fault::Bad { at, why } => write!(f, "is damaged at byte {at}: {why}"),
            Fault::Sum { told, found } => write!(
                f,
                "is damaged: its end mark tells of {} entries with digest {:032x}, and there are {} with {:032x}",
                told.frames, told.digest, found.frames, found.digest
            ),
            Fault::Behind { at } => write!(f, "goes on behind its end mark, at byte {at}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gopherstore::wire::Request;

    use super::*;

    fn frame(request: Request<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        bytes
    }

    fn file() -> Vec<u8> {
        let long = vec![b'v'; 300_000];
        let frames = [
            frame(Request::Set {
                key: b"a",
                value: b"1",
            }),
            frame(Request::Set {
                key: b"",
                value: &long,
            }),
            frame(Request::Del { key: b"a" }),
        ];
        let mut sum = Sum::default();
        frames.iter().for_each(|frame| sum.add(frame));
        let mut bytes = frames.concat();
        bytes.extend_from_slice(&sum.end_mark(3, 9));
        bytes
    }

    /// Offsets of the frames, or the fault.
    fn read(bytes: &[u8], needs_end_mark: bool) -> Result<Vec<u64>, String> {
        let mut reader = Reader::new(bytes, needs_end_mark);
        let mut offsets = Vec::new();
        while let Some((at, _)) = reader.next().map_err(|fault| fault.to_string())? {
            offsets.push(at);
        }
        assert_eq!(
            reader.offset(),
            u64::try_from(bytes.len()).unwrap(),
            "all of it"
        );
        Ok(offsets)
    }

    #[test]
    fn the_example_in_the_document_is_one() {
        let (key, value) = (b"user123", b"active");
        let frames = [
            frame(Request::Set { key, value }),
            frame(Request::Set {
                key: b"k",
                value: b"",
            }),
        ];
        let mut sum = Sum::default();
        frames.iter().for_each(|frame| sum.add(frame));
        let mark = sum.end_mark(3, 9);
        assert_eq!(
            read(&[&frames.concat()[..], &mark].concat(), true),
            Ok(vec![0, 20])
        );
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let document = include_str!("../../../docs/GBP.md");
        let (_, section) = document.split_once("\n## 11. ").unwrap();
        let (_, block) = section.split_once("```gbp\n").unwrap();
        let lines = block.split('\n').take_while(|line| *line != "```");
        let digits = lines
            .flat_map(|line| line.split('#').next())
            .flat_map(str::chars);
        let shown: String = digits.filter(char::is_ascii_hexdigit).collect();
        assert_eq!(shown, hex(&frames.concat()) + &hex(&mark));
    }

    #[test]
    fn a_whole_file_is_read_to_its_end() {
        assert_eq!(read(&file(), true), Ok(vec![0, 9, 300_016]));
        assert_eq!(read(&Sum::default().end_mark(1, 0), true), Ok(vec![]));
    }

    #[test]
    fn a_cut_anywhere_is_noticed() {
        let file = file();
        let cuts = (0..40).chain(300_000..file.len());
        for cut in cuts {
            let fault = read(&file[..cut], true).unwrap_err();
            let expected = if [0, 9, 300_016, 300_024].contains(&cut) {
                format!("ends at byte {cut} without an end mark")
            } else {
                "is cut off: the entry at byte ".to_owned()
            };
            assert!(fault.starts_with(&expected), "{cut}: {fault}");
        }
        assert_eq!(read(&file[..300_016], false), Ok(vec![0, 9]));
        assert!(read(&file[..300_015], false).is_err());
    }

    #[test]
    fn any_byte_that_is_changed_is_noticed() {
        let file = file();
        for at in (0..40)
            .chain((40..300_000).step_by(9_973))
            .chain(300_000..file.len())
        {
            let mut damaged = file.clone();
            damaged[at] ^= 0x04;
            let fault = read(&damaged, true);
            // Index and epoch of the end mark are covered by its own checksum.
            assert!(fault.is_err(), "{at}");
        }
    }

    #[test]
    fn wrong_frames_in_a_file_are_reported_with_their_place() {
        let end = Sum::default().end_mark(3, 9);
        for (bytes, expected) in [
            (
                frame(Request::Get { key: b"k" }),
                "is damaged at byte 0: GET, where only SET, SETAT, DEL and EXPIRE belong",
            ),
            (
                [end.clone(), b"\n".to_vec()].concat(),
                "goes on behind its end mark, at byte 55",
            ),
            (
                [frame(Request::Del { key: b"k" }), end].concat(),
                "is damaged: its end mark tells of 0 entries with digest 00000000000000000000000000000000, and there \
                 are 1 with ",
            ),
            (b"hello world".to_vec(), "is damaged at byte 0: "),
        ] {
            let fault = read(&bytes, true).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
        }
    }
}
