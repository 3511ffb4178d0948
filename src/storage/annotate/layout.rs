//! The fields of headers and heads, in their order (`docs/FORMAT.md`).

use std::time::{Duration, UNIX_EPOCH};

use crate::wire::annotate::dump::Dump;
use crate::wire::annotate::text::{hexadecimal, number, quoted};

/// A field: its name, its size in bytes, and its meaning for people.
type Field = (&'static str, usize, fn(&[u8]) -> String);

/// Fields, one behind the other.
pub(super) type Layout = &'static [Field];

/// The header of a segment, before its epochs.
pub(super) const SEGMENT: Layout = &[
    ("magic", 7, quoted),
    ("version", 1, number),
    ("header_len", 4, number),
    ("checksum", 4, hexadecimal),
    ("number", 8, number),
    ("salt", 8, hexadecimal),
    ("first_index", 8, number),
    ("digest", 16, hexadecimal),
    ("previous", 4, hexadecimal),
    ("epochs", 4, number),
    ("chain", 4, number),
    ("reserved", 4, zeros),
];

/// An epoch of a header.
pub(super) const EPOCH: Layout = &[
    ("epoch", 8, number),
    ("nonce", 8, hexadecimal),
    ("start_index", 8, number),
];

/// The head of a group.
pub(super) const GROUP: Layout = &[
    ("magic", 4, quoted),
    ("body_len", 4, number),
    ("count", 4, number),
    ("previous", 4, hexadecimal),
    ("first_index", 8, number),
    ("epoch", 8, number),
    ("committed", 8, number),
    ("durable_to", 8, number),
    ("time", 8, time),
    ("digest", 16, hexadecimal),
    ("reserved", 8, zeros),
    ("body_checksum", 4, hexadecimal),
    ("checksum", 4, hexadecimal),
];

/// The header of a snapshot, before its epochs.
pub(super) const SNAPSHOT: Layout = &[
    ("magic", 7, quoted),
    ("version", 1, number),
    ("header_len", 4, number),
    ("checksum", 4, hexadecimal),
    ("salt", 8, hexadecimal),
    ("begin", 8, number),
    ("chain", 4, number),
    ("epochs", 4, number),
];

/// The head of a chunk.
pub(super) const CHUNK: Layout = &[
    ("magic", 4, quoted),
    ("previous", 4, hexadecimal),
    ("len", 8, number),
    ("count", 8, entries),
    ("body_checksum", 4, hexadecimal),
    ("checksum", 4, hexadecimal),
];

/// The contents of the last chunk.
pub(super) const LAST_CHUNK: Layout = &[("keys", 8, number), ("end", 8, number)];

/// Bytes of all fields.
pub(super) fn len(layout: Layout) -> usize {
    layout.iter().map(|(_, size, _)| size).sum()
}

/// Offset of a field.
pub(super) fn offset(layout: Layout, name: &str) -> usize {
    let before = layout.iter().take_while(|(field, ..)| *field != name);
    before.map(|(_, size, _)| size).sum()
}

/// The number in a field of `bytes`; `None` where that is cut.
pub(super) fn value(layout: Layout, bytes: &[u8], name: &str) -> Option<u64> {
    let (_, size, _) = layout.iter().find(|(field, ..)| *field == name)?;
    let field = bytes.get(offset(layout, name)..)?.get(..*size)?;
    Some(of(field))
}

/// Shows the fields, as far as they are there.
pub(super) fn rows(dump: &mut Dump<'_>, layout: Layout) {
    for (name, size, meaning) in layout {
        dump.field(name, *size, meaning);
    }
}

/// The meaning of bytes that are to be zeros.
pub(super) fn zeros(bytes: &[u8]) -> String {
    let is_zero = bytes.iter().all(|byte| *byte == 0);
    (if is_zero { "zeros" } else { "not zeros" }).to_owned()
}

fn of(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn entries(bytes: &[u8]) -> String {
    if of(bytes) == u64::MAX {
        "the last chunk".to_owned()
    } else {
        number(bytes)
    }
}

/// A time in milliseconds since 1970 UTC.
fn time(bytes: &[u8]) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(of(bytes)));
    // The formatter knows four digits of a year.
    let year_10000 = 253_402_300_800_000;
    match time.filter(|_| of(bytes) < year_10000) {
        Some(time) => format!("{}, {}", of(bytes), humantime::format_rfc3339_millis(time)),
        None => number(bytes),
    }
}
