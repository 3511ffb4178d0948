//! A snapshot: its header and its chunks.

use super::layout::{self, CHUNK, EPOCH, LAST_CHUNK, SNAPSHOT};
use super::{Damage, Next, Part, Parts, count, frame_rows, header_rows};
use crate::history::EPOCHS_MAX;
use crate::storage::segment::{epochs_of, salted};
use crate::storage::snapshot::{CHUNK_MAGIC, MAGIC, SnapshotId};
use crate::wire::annotate::dump::Dump;
use crate::wire::replication::Frames;

impl Parts<'_> {
    /// The header.
    pub(super) fn snapshot_header(&mut self) -> Part {
        let fixed = layout::len(SNAPSHOT);
        let value = |field| layout::value(SNAPSHOT, self.bytes, field);
        let at = |field| layout::offset(SNAPSHOT, field);
        let version = MAGIC.last().copied().map(u64::from);
        let told = value("header_len").and_then(|len| usize::try_from(len).ok());
        let longest = fixed + EPOCHS_MAX * layout::len(EPOCH);
        let len = told.filter(|len| (fixed..=longest).contains(len));
        let mut shown = self.up_to(len.unwrap_or(fixed));
        let mut magic = MAGIC.iter().zip(self.bytes).take(MAGIC.len() - 1);
        let damage = if magic.any(|(own, found)| own != found) {
            Some(Damage::new(0, "this is no header of a snapshot"))
        } else if value("version").is_some_and(|found| Some(found) != version) {
            shown = self.up_to(MAGIC.len());
            let found = value("version").unwrap_or_default();
            let why = format!("version {found} of the format is unknown to this program");
            Some(Damage::new(at("version"), why))
        } else if let Some(len) = told.filter(|_| len.is_none()) {
            Some(Damage::new(
                at("header_len"),
                format!("no header has {len} bytes"),
            ))
        } else if self.bytes.len() < len.unwrap_or(fixed) {
            Some(Damage::cut(0, self.bytes.len(), len.unwrap_or(fixed)))
        } else {
            header_damage(shown)
        };
        let rows = header_rows(shown, SNAPSHOT);
        let id = value("begin").zip(value("chain"));
        let chain = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let id = id.map(|(begin, number)| SnapshotId {
            chain: chain(number),
            begin,
        });
        let (Some(salt), Some(previous), Some(id), None) =
            (value("salt"), value("checksum"), id, &damage)
        else {
            let text = format!("no whole header of a snapshot\n{rows}");
            return Part { text, damage };
        };
        self.at = shown.len();
        self.next = Next::Chunk {
            salt,
            previous,
            keys: 0,
        };
        Part {
            text: format!("header of {}, {} bytes\n{rows}", id.name(), shown.len()),
            damage: None,
        }
    }

    /// The next chunk.
    pub(super) fn chunk(&mut self, salt: u64, previous: u64, keys: u64) -> Part {
        self.number += 1;
        let (start, head_len) = (self.at, layout::len(CHUNK));
        let head = self.up_to(head_len);
        let own = salted(salt, &head[..head.len().min(head_len - 4)]);
        let mut dump = Dump::new(head, start);
        if !begins_chunk(head) {
            dump.rows("bytes", head.len());
        }
        layout::rows(&mut dump, CHUNK);
        let rows = dump.into_rows();
        if let Some(damage) = self.chunk_head_damage(head, own, previous) {
            return Part {
                text: format!("chunk {}: no whole chunk\n{rows}", self.number),
                damage: Some(damage),
            };
        }
        let value = |field| layout::value(CHUNK, head, field).unwrap_or_default();
        let len = usize::try_from(value("len")).unwrap_or(usize::MAX);
        let needed = head_len.saturating_add(len);
        let body = &self.up_to(needed)[head_len..];
        let (entries, body_at) = (value("count"), start + head_len);
        let is_last = entries == u64::MAX;
        let damage = if body.len() < len {
            Some(Damage::cut(start, self.bytes.len(), needed))
        } else if value("body_checksum") != u64::from(crc32c::crc32c(body)) {
            let why = format!(
                "the bytes of the chunk have checksum 0x{:08x}",
                crc32c::crc32c(body)
            );
            let at = start + layout::offset(CHUNK, "body_checksum");
            Some(Damage::new(at, why))
        } else if is_last {
            last_chunk_damage(body, keys, body_at)
        } else {
            let frames = Frames::of_snapshot(u32::try_from(entries).unwrap_or(u32::MAX), body);
            frames
                .err()
                .map(|error| Damage::new(body_at, error.to_string()))
        };
        let (name, below) = if is_last {
            let mut dump = Dump::new(body, body_at);
            layout::rows(&mut dump, LAST_CHUNK);
            dump.rows("behind", dump.rest());
            ("end of the snapshot".to_owned(), dump.into_rows())
        } else {
            let name = count(usize::try_from(entries).unwrap_or(usize::MAX), "key");
            let first = keys.saturating_add(1);
            (name, frame_rows("entry", first, body, body_at))
        };
        self.at = start + head_len + body.len();
        self.next = if is_last {
            Next::BehindSnapshot
        } else {
            Next::Chunk {
                salt,
                previous: u64::from(own),
                keys: keys.saturating_add(entries),
            }
        };
        let number = self.number;
        let text = format!("chunk {number}: {name}, {needed} bytes\n{rows}{below}");
        Part { text, damage }
    }

    /// The fault of the head of a chunk, which begins at the next byte. `own` is its checksum, and `previous` that of
    /// the head before.
    fn chunk_head_damage(&self, head: &[u8], own: u32, previous: u64) -> Option<Damage> {
        let (start, head_len) = (self.at, layout::len(CHUNK));
        let value = |field| layout::value(CHUNK, head, field).unwrap_or_default();
        let at = |field| start + layout::offset(CHUNK, field);
        if !begins_chunk(head) {
            Some(Damage::new(start, "no chunk begins here"))
        } else if head.len() < head_len {
            Some(Damage::cut(start, self.bytes.len(), head_len))
        } else if value("checksum") != u64::from(own) {
            let why = format!("the head of the chunk has checksum 0x{own:08x}");
            Some(Damage::new(at("checksum"), why))
        } else if value("previous") != previous {
            let why = format!("the head before this chunk has checksum 0x{previous:08x}");
            Some(Damage::new(at("previous"), why))
        } else {
            None
        }
    }

    /// Bytes behind the last chunk, if there are any.
    pub(super) fn behind_snapshot(&mut self) -> Option<Part> {
        self.next = Next::Nothing;
        let rest = self.rest();
        if rest.is_empty() {
            return None;
        }
        let mut dump = Dump::new(rest, self.at);
        dump.rows("behind", rest.len());
        Some(Part {
            text: format!(
                "{} behind the end, not read\n{}",
                count(rest.len(), "byte"),
                dump.into_rows()
            ),
            damage: None,
        })
    }
}

/// The fault of a snapshot's header, which is there as a whole.
fn header_damage(header: &[u8]) -> Option<Damage> {
    let at = |field| layout::offset(SNAPSHOT, field);
    let mut zeroed = header.to_vec();
    zeroed[at("checksum")..][..4].fill(0);
    let found = salted(0, &zeroed);
    if layout::value(SNAPSHOT, header, "checksum") != Some(u64::from(found)) {
        let why = format!("the header has checksum 0x{found:08x}");
        return Some(Damage::new(at("checksum"), why));
    }
    let count = layout::value(SNAPSHOT, header, "epochs").unwrap_or_default();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let epochs = &header[layout::len(SNAPSHOT)..];
    let why = "the epochs of the header do not follow each other";
    epochs_of(epochs, count)
        .is_none()
        .then(|| Damage::new(at("epochs"), why))
}

/// Whether these bytes may be the begin of a chunk.
fn begins_chunk(bytes: &[u8]) -> bool {
    CHUNK_MAGIC.starts_with(&bytes[..bytes.len().min(CHUNK_MAGIC.len())])
}

/// The fault of the last chunk of a snapshot, behind `keys` entries.
fn last_chunk_damage(body: &[u8], keys: u64, at: usize) -> Option<Damage> {
    if body.len() < layout::len(LAST_CHUNK) {
        return Some(Damage::new(at, "the end of the snapshot is too short"));
    }
    let told = layout::value(LAST_CHUNK, body, "keys");
    let why = format!("the snapshot has {keys} keys");
    (told != Some(keys)).then(|| Damage::new(at, why))
}
