//! The files of a data directory, field by field, for people (`docs/FORMAT.md`).
//!
//! Takes any bytes: a whole file, the beginning of one, and damaged ones. It reads one file alone, so an end that a
//! crash has torn is damage here. A recovery reads all files, and tells them apart.
//!
//! ```
//! use gopherstore::storage::annotate::{FileKind, Parts};
//!
//! let text = b"gopherstore data directory, format 1\ncluster = \"c\"\n";
//! assert_eq!(FileKind::of(text), Some(FileKind::Identity));
//! let part = Parts::new(FileKind::Identity, text).next().expect("a part");
//! assert!(part.text.contains("000025  63 6c 75 73 74 65 72 20  cluster    \"cluster \"\n"));
//! let damage = part.damage.expect("the name of the node is missing");
//! assert!(damage.is_cut);
//! ```

mod identity;
mod layout;
mod segment;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt;

use super::identity::FIRST_LINE;
use super::recovery::LogEnd;
use super::segment::{SEGMENT_MAGIC, SegmentId};
use super::snapshot::{MAGIC as SNAPSHOT_MAGIC, SnapshotId};
use crate::wire::annotate::{self, dump::Dump, text::grouped};
use crate::wire::request::frames;
use crate::wire::transcript::Kind;
use layout::{EPOCH, Layout};

/// First bytes of a file that tell its kind.
const KIND_LEN: usize = 5;

/// The kinds of files that a data directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// The names of the cluster and the node.
    Identity,
    /// A part of the log.
    Segment,
    /// All entries of a data set.
    Snapshot,
}

impl FileKind {
    /// The kind of the file that begins with `bytes`; `None` where it is none of these, or where there are fewer than 5
    /// bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<FileKind> {
        let kinds: [(&[u8], FileKind); 3] = [
            (FIRST_LINE.as_bytes(), FileKind::Identity),
            (&SEGMENT_MAGIC, FileKind::Segment),
            (&SNAPSHOT_MAGIC, FileKind::Snapshot),
        ];
        let start = bytes.get(..KIND_LEN)?;
        let found = kinds.iter().find(|(magic, _)| {
            // The last byte of a magic is a version, and the end of the first line too.
            let len = bytes.len().min(magic.len() - 1);
            magic.starts_with(start) && magic.starts_with(&bytes[..len])
        });
        found.map(|(_, kind)| *kind)
    }

    /// The kind of the file with this name, if it is that of a segment or a snapshot, whatever its bytes are.
    #[must_use]
    pub fn of_name(name: &str) -> Option<FileKind> {
        let segment = SegmentId::of_name(name).map(|_| FileKind::Segment);
        segment.or_else(|| SnapshotId::of_name(name).map(|_| FileKind::Snapshot))
    }

    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FileKind::Identity => "identity of a data directory",
            FileKind::Segment => "segment of the log",
            FileKind::Snapshot => "snapshot",
        }
    }
}

/// A part of a file: its header, a group, a chunk, or what is behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A line that names it, and rows with offset, bytes, field and meaning.
    pub text: String,
    /// The first byte that is wrong. No part follows.
    pub damage: Option<Damage>,
}

/// The first byte of a file that is wrong, or its early end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the field that is wrong, or of the end.
    pub at: usize,
    /// The part and its fault.
    pub reason: String,
    /// The bytes end too early, and those that are there are right as far as one can tell.
    pub is_cut: bool,
}

impl Damage {
    fn new(at: usize, reason: impl Into<String>) -> Damage {
        Damage {
            at,
            reason: reason.into(),
            is_cut: false,
        }
    }

    /// The bytes end at `end`, within a part that begins at `start` and has `needed` bytes at least.
    fn cut(start: usize, end: usize, needed: usize) -> Damage {
        let there = end - start;
        let missing = needed.saturating_sub(there);
        Damage {
            at: end,
            reason: format!("cut: {there} of {needed} bytes, {missing} missing"),
            is_cut: true,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x} ({}): {}", self.at, self.at, self.reason)
    }
}

/// The parts of a file.
#[derive(Debug)]
pub struct Parts<'a> {
    bytes: &'a [u8],
    /// Where the next part begins.
    at: usize,
    next: Next,
    /// Groups or chunks before the next part.
    number: u64,
}

/// The next part.
#[derive(Clone, Copy, Debug)]
enum Next {
    Identity,
    SegmentHeader,
    Group {
        salt: u64,
        end: LogEnd,
    },
    SnapshotHeader,
    /// A chunk of a snapshot, with the checksum of the head before it and the number of entries so far.
    Chunk {
        salt: u64,
        previous: u64,
        keys: u64,
    },
    BehindSnapshot,
    Nothing,
}

impl<'a> Parts<'a> {
    /// The parts of a file of this kind.
    #[must_use]
    pub const fn new(kind: FileKind, bytes: &'a [u8]) -> Parts<'a> {
        Parts {
            bytes,
            at: 0,
            next: match kind {
                FileKind::Identity => Next::Identity,
                FileKind::Segment => Next::SegmentHeader,
                FileKind::Snapshot => Next::SnapshotHeader,
            },
            number: 0,
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let part = match self.next {
            Next::Nothing => return None,
            Next::Identity => {
                self.next = Next::Nothing;
                self.identity()
            }
            Next::SegmentHeader => self.segment_header(),
            Next::Group { salt, end } => self.group(salt, end),
            Next::SnapshotHeader => self.snapshot_header(),
            Next::Chunk {
                salt,
                previous,
                keys,
            } => self.chunk(salt, previous, keys),
            Next::BehindSnapshot => self.behind_snapshot()?,
        };
        if part.damage.is_some() {
            self.next = Next::Nothing;
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// At most `len` of the next bytes.
    fn up_to(&self, len: usize) -> &'a [u8] {
        let rest = self.rest();
        &rest[..len.min(rest.len())]
    }
}

/// A number with a noun.
fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    let number = grouped(u64::try_from(number).unwrap_or(u64::MAX));
    format!("{number} {noun}{plural}")
}

/// The fields of a header, with its epochs and the zeros behind them, as far as they are there.
fn header_rows(bytes: &[u8], fields: Layout) -> String {
    let mut dump = Dump::new(bytes, 0);
    layout::rows(&mut dump, fields);
    let epochs = layout::value(fields, bytes, "epochs").unwrap_or_default();
    for _ in 0..epochs {
        if !dump.has_more() {
            break;
        }
        layout::rows(&mut dump, EPOCH);
    }
    let zeros = &bytes[dump.at..];
    if !zeros.is_empty() && zeros.iter().all(|byte| *byte == 0) {
        dump.summary("zeros", zeros.len(), &count(zeros.len(), "byte"));
    } else {
        dump.rows("rest", zeros.len());
    }
    dump.into_rows()
}

/// The whole frames that `bytes` begin with, and the rest. `first` is the number of the first one.
fn frame_rows(noun: &str, first: u64, bytes: &[u8], at: usize) -> String {
    let (mut text, mut shown, mut number) = (String::new(), 0, first);
    for frame in frames(bytes) {
        let (name, len) = (frame.opcode().name(), frame.bytes().len());
        text += &format!("{noun} {number}: {name}, {len} bytes\n");
        text += &annotate::frame(Kind::Request, frame.bytes(), at + shown);
        shown += len;
        number = number.saturating_add(1);
    }
    if shown < bytes.len() {
        let mut dump = Dump::new(&bytes[shown..], at + shown);
        dump.rows("bytes", bytes.len() - shown);
        text += &dump.into_rows();
    }
    text
}
