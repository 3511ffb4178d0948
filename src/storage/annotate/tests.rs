#![allow(clippy::unwrap_used, clippy::panic)]

use super::super::identity::Identity;
use super::super::segment::SegmentId;
use super::super::simulated::Disk;
use super::super::snapshot::{SnapshotId, SnapshotWriter};
use super::super::tests::documented;
use super::super::writer::{Layout, LogWriter, NewGroup};
use super::*;
use crate::engine::digest::Digest;
use crate::history::{EpochStart, History};
use crate::wire::Request;

/// The text of all parts, and the damage.
fn annotated(bytes: &[u8]) -> (String, Option<Damage>) {
    let kind = FileKind::of(bytes).unwrap();
    let parts: Vec<Part> = Parts::new(kind, bytes).collect();
    let text = parts.iter().map(|part| &*part.text).collect();
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|part| part.damage.is_none()), "{text}");
    (text, last.damage.clone())
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Set { key, value }.encode(&mut bytes).unwrap();
    bytes
}

fn history() -> History {
    let start = |epoch, start_index| EpochStart {
        epoch,
        nonce: 7,
        start_index,
    };
    History::new(vec![start(3, 1), start(5, 2)]).unwrap()
}

/// A segment of three groups, of which the last one seals the others, as the writer has it.
fn segment() -> Vec<u8> {
    let disk = Disk::default();
    let start = LogEnd {
        next_index: 10,
        previous: 77,
        ..LogEnd::default()
    };
    let salts = std::sync::Arc::new(|| 9);
    let id = SegmentId {
        chain: 2,
        number: 4,
    };
    let layout = Layout {
        segment_bytes: 1_000,
        is_filled: true,
    };
    let mut writer = LogWriter::begin(&disk, id, start, &history(), salts, layout).unwrap();
    for (records, count) in [
        ([set(b"a", b"1"), set(b"b", b"")].concat(), 2),
        (set(b"key", b"value"), 1),
    ] {
        let group = NewGroup {
            records: &records,
            count,
            digest: Digest::from_u128(5),
            epoch: 5,
            committed: 9,
            time_ms: 1_000,
        };
        writer.append(&group, history).unwrap();
        writer.sync().unwrap();
    }
    writer.seal((5, 12, 2_000), history).unwrap();
    disk.bytes(&id.name())
}

fn snapshot() -> Vec<u8> {
    let disk = Disk::default();
    let id = SnapshotId {
        chain: 2,
        begin: 10,
    };
    let mut writer = SnapshotWriter::begin(&disk, id, &history(), 9).unwrap();
    writer
        .add(&[set(b"a", b"1"), set(b"b", b"")].concat(), 2)
        .unwrap();
    writer.add(&set(b"key", b"value"), 1).unwrap();
    writer.end(12).unwrap();
    writer.finish().unwrap();
    disk.bytes(&id.name())
}

fn identity() -> Vec<u8> {
    let owner = Identity {
        cluster: "main".to_owned(),
        node: "n1".to_owned(),
    };
    owner.text().into_bytes()
}

#[test]
fn the_examples_of_the_document_are_described() {
    let mut bytes = documented("segment");
    bytes.resize(512, 0);
    bytes.extend(documented("group"));
    bytes.extend([0; 24]);
    let (text, damage) = annotated(&bytes);
    assert_eq!(damage, None, "{text}");
    for part in [
        "header of log-00000001-0000000000000001, 512 bytes\n000000  47 4f 50 48 4c 4f 47     magic      \"GOPHLOG\"\n",
        "\n000010  00 00 00 00 00 00 00 01  number     1\n",
        "\ngroup 1: record 1, 104 bytes\n000200  47 52 50 01              magic      \"GRP\\x01\"\n",
        "  time       1717986918400, 2024-06-10T02:35:18.400Z\n",
        "\nrecord 1: SET, 9 bytes\n000258  01                       opcode     SET\n",
        "\nend of the segment: 1 group, records up to 1\n000268  ...                      zeros      24 bytes\n",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let (text, damage) = annotated(&documented("snapshot"));
    assert_eq!(damage, None, "{text}");
    for part in [
        "header of snapshot-00000001-0000000000000005, ",
        "\nchunk 1: 1 key, 41 bytes\n",
        "\nentry 1: SET, 9 bytes\n",
        "\nchunk 2: end of the snapshot, 48 bytes\n",
        "  end        7\n",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn what_the_writer_writes_is_described_without_damage() {
    let (text, damage) = annotated(&segment());
    assert_eq!(damage, None, "{text}");
    for part in [
        "header of log-00000002-0000000000000004, ",
        "  epoch      5\n",
        "\ngroup 1: records 10 to 11, ",
        "\nrecord 11: SET, 8 bytes\n",
        "\ngroup 2: record 12, ",
        "\ngroup 3: no records, ",
        "\nend of the segment: 3 groups, records up to 12\n",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let (text, damage) = annotated(&snapshot());
    assert_eq!(damage, None, "{text}");
    assert!(text.contains("\nentry 3: SET, 15 bytes\n"), "{text}");
    assert!(text.contains("  keys       3\n"), "{text}");
    let (text, damage) = annotated(&identity());
    assert_eq!(damage, None, "{text}");
    assert!(text.contains("  node       \"node = \\\"\"\n"), "{text}");
}

#[test]
fn a_prefix_is_cut_where_a_part_does_not_end() {
    for bytes in [segment(), snapshot(), identity()] {
        let mut whole = 0;
        for len in 0..bytes.len() {
            let prefix = &bytes[..len];
            if len < KIND_LEN {
                assert_eq!(FileKind::of(prefix), None);
                continue;
            }
            match annotated(prefix) {
                // Behind a group of a segment.
                (text, None) => {
                    assert!(text.contains("end of the segment: "), "{len}: {text}");
                    whole += usize::from(text.contains("the file ends without zeros"));
                }
                (text, Some(damage)) => {
                    assert!(damage.is_cut, "{len}: {damage}, {text}");
                    assert_eq!(damage.at, len, "{damage}");
                }
            }
        }
        // Behind the header and each group, and within the padding of these.
        let expected = if bytes == segment() { 4 + 8 } else { 0 };
        assert_eq!(whole, expected);
    }
}

#[test]
fn a_flipped_byte_is_damage_or_another_value() {
    for bytes in [segment(), snapshot(), identity()] {
        let (whole, _) = annotated(&bytes);
        let mut damaged = 0;
        for at in 0..bytes.len() {
            for mask in [1, 0x80] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                if FileKind::of(&flipped).is_none() {
                    assert!(at < FIRST_LINE.len(), "{at}");
                    continue;
                }
                let (text, damage) = annotated(&flipped);
                assert!(damage.is_some() || text != whole, "{at}: {text}");
                damaged += usize::from(damage.is_some());
                if let Some(damage) = damage {
                    assert!(damage.at <= flipped.len(), "{at}: {damage}");
                }
            }
        }
        // Not under a checksum are padding and zeros of a segment, and the names of an identity.
        let free = if bytes[4] == b'L' { 500 } else { 40 };
        assert!(damaged + free > bytes.len(), "{damaged} of {}", bytes.len());
    }
}

#[test]
fn damage_that_a_later_group_proves_is_told_from_a_torn_end() {
    let bytes = segment();
    let groups: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at..].starts_with(b"GRP\x01"))
        .collect();
    let [_, second, third] = groups[..] else {
        panic!("{groups:?}")
    };
    let mut flipped = bytes.clone();
    flipped[second + HEAD] ^= 1;
    let (text, damage) = annotated(&flipped);
    let damage = damage.unwrap().to_string();
    assert!(
        damage.starts_with(&format!("offset {:#x} ({0}): ", second + 80)),
        "{damage}, {text}"
    );
    assert!(
        damage.ends_with("; a later group says that records up to 12 were durable"),
        "{damage}"
    );
    let mut flipped = bytes.clone();
    flipped[third + 84] ^= 1;
    let damage = annotated(&flipped).1.unwrap().to_string();
    assert!(
        damage.ends_with("; no later group says that it was durable"),
        "{damage}"
    );
    // A group that is gone as a whole.
    let mut zeroed = bytes;
    zeroed[second..third].fill(0);
    let damage = annotated(&zeroed).1.unwrap();
    assert_eq!(damage.at, second);
    assert!(
        damage
            .reason
            .contains("a group of it with record 13 is behind"),
        "{damage}"
    );
}

/// Bytes of a group before its records.
const HEAD: usize = 88;

#[test]
fn groups_of_an_earlier_use_are_no_part_of_the_log() {
    let mut bytes = segment();
    let at = (512..).find(|at| bytes[*at..*at + 32].iter().all(|byte| *byte == 0));
    let at = at.unwrap() + 16;
    bytes[at..at + 4].copy_from_slice(b"GRP\x01");
    let (text, damage) = annotated(&bytes);
    assert_eq!(damage, None, "{text}");
    assert!(
        text.contains(" bytes of an earlier use of the file\n"),
        "{text}"
    );
}

#[test]
fn other_bytes_are_no_files_of_a_directory() {
    for bytes in [
        &b""[..],
        b"GOPH",
        b"GOPHX",
        b"GOPHLOX\x01",
        b"gopherstore-cli --addr",
        b"\x01\0\0",
    ] {
        assert_eq!(FileKind::of(bytes), None, "{bytes:?}");
    }
    for (bytes, kind) in [
        (&b"GOPHL"[..], FileKind::Segment),
        (b"GOPHLOG\x02", FileKind::Segment),
        (b"GOPHSNP", FileKind::Snapshot),
        (b"gopherstore data", FileKind::Identity),
        (
            b"gopherstore data directory, format 2\n",
            FileKind::Identity,
        ),
    ] {
        assert_eq!(FileKind::of(bytes), Some(kind), "{bytes:?}");
    }
    let (_, damage) = annotated(b"GOPHLOG\x02");
    assert!(damage.unwrap().reason.contains("version 2"));
    let (_, damage) = annotated(b"gopherstore data directory, format 12\n");
    assert!(damage.is_some());
}
