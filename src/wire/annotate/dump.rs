//! Rows and notes of a dump, whatever the frames are.

use std::fmt::Write;

use super::text::{grouped, hexadecimal, number, quoted, signed};
use crate::wire::{Field, Form};

/// Bytes in a row.
const ROW_LEN: usize = 8;
/// Longest field that is shown whole. A longer one is cut in the middle.
pub(super) const FIELD_LEN_MAX: usize = 8 * ROW_LEN;
/// Bytes of a cut field that are shown at its beginning, and at its end.
const HEAD_LEN: usize = 4 * ROW_LEN;
const TAIL_LEN: usize = 2 * ROW_LEN;

/// A dump that is being written.
pub(crate) struct Dump<'a> {
    /// All bytes, or, inside [`Dump::within`], those before its end.
    pub(crate) bytes: &'a [u8],
    /// Offset of the next byte to be shown; at most `bytes.len()`.
    pub(crate) at: usize,
    /// Offset that is printed for the first byte.
    pub(super) base: usize,
    /// Whether these are the requests of a BATCH.
    pub(super) is_nested: bool,
    out: String,
    notes: String,
}

impl<'a> Dump<'a> {
    /// An empty dump of `bytes`; `base` is the offset that is printed for the first of them.
    pub(crate) fn new(bytes: &'a [u8], base: usize) -> Dump<'a> {
        let mut notes = String::new();
        if bytes.is_empty() {
            notes.push_str("! no bytes\n");
        }
        Dump {
            bytes,
            at: 0,
            base,
            is_nested: false,
            out: String::new(),
            notes,
        }
    }

    pub(crate) fn has_more(&self) -> bool {
        self.at < self.bytes.len()
    }

    /// The number of bytes that have not been shown.
    pub(crate) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Takes the next `len` bytes, or as many as there are.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let end = self.at.saturating_add(len).min(self.bytes.len());
        let taken = &self.bytes[self.at..end];
        self.at = end;
        taken
    }

    fn row(&mut self, offset: usize, bytes: &[u8], field: &str, meaning: &str) {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.join(" ");
        let offset = self.base.saturating_add(offset);
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{offset:06x}  {hex:<23}  {field:<9}  {meaning}");
    }

    /// A row for bytes that are left out.
    fn left_out(&mut self, len: usize) {
        let (dots, len) = ("...", grouped(u64::try_from(len).unwrap_or(u64::MAX)));
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.out,
            "{dots:<6}  {dots:<23}  {:<9}  ({len} bytes left out)",
            ""
        );
    }

    /// Shows a field of `len` bytes in rows, with its meaning in the first.
    pub(crate) fn field(&mut self, name: &str, len: usize, meaning: impl FnOnce(&[u8]) -> String) {
        let offset = self.at;
        let bytes = self.take(len);
        let meaning = if bytes.len() == len {
            meaning(bytes)
        } else {
            format!("cut: {} of {len} bytes", bytes.len())
        };
        for (row, chunk) in bytes.chunks(ROW_LEN).enumerate() {
            let (name, meaning) = if row == 0 {
                (name, &*meaning)
            } else {
                ("", "")
            };
            self.row(offset + row * ROW_LEN, chunk, name, meaning);
        }
    }

    /// Shows a field of one of the protocol's tables.
    pub(super) fn operand(&mut self, field: &Field) {
        match field.form {
            Form::Number | Form::Length(_) => self.field(field.name, field.size, number),
            Form::Signed => self.field(field.name, field.size, signed),
            Form::Hex => self.field(field.name, field.size, hexadecimal),
            Form::Flags(bits) => self.field(field.name, field.size, |flags| {
                let flags = flags.first().copied().unwrap_or_default();
                let set = bits.iter().filter(|(bit, _)| flags & bit != 0);
                let mut names: Vec<String> = set.map(|(_, name)| (*name).to_owned()).collect();
                // Bits without a name, and a byte without any bit, are shown as a number.
                let unnamed = bits.iter().fold(flags, |rest, (bit, _)| rest & !bit);
                if unnamed != 0 || names.is_empty() {
                    names.push(format!("0x{unnamed:02x}"));
                }
                names.join(", ")
            }),
            Form::Choice(names) => self.field(field.name, field.size, |choice| {
                let choice = choice.first().copied().unwrap_or_default();
                let name = names.get(usize::from(choice));
                name.map_or_else(|| number(&[choice]), |&name| name.to_owned())
            }),
        }
    }

    /// Shows a length of two bytes, and returns it as far as it is there.
    pub(super) fn len_field(&mut self, name: &str) -> usize {
        let start = self.at;
        self.field(name, 2, number);
        let len = self.bytes[start..].first_chunk().copied();
        len.map_or(0, |len| usize::from(u16::from_be_bytes(len)))
    }

    /// Shows `len` bytes of user data, as far as they are there.
    pub(crate) fn rows(&mut self, name: &str, len: usize) {
        let offset = self.at;
        let bytes = self.take(len);
        let (head, tail) = if bytes.len() > FIELD_LEN_MAX {
            (HEAD_LEN, bytes.len() - TAIL_LEN)
        } else {
            (bytes.len(), bytes.len())
        };
        let mut field = name;
        for (row, chunk) in bytes[..head].chunks(ROW_LEN).enumerate() {
            self.row(offset + row * ROW_LEN, chunk, field, &quoted(chunk));
            field = "";
        }
        if tail > head {
            self.left_out(tail - head);
        }
        for (row, chunk) in bytes[tail..].chunks(ROW_LEN).enumerate() {
            self.row(offset + tail + row * ROW_LEN, chunk, "", &quoted(chunk));
        }
    }

    /// Shows the next `len` bytes in one row, which says what they are.
    pub(crate) fn summary(&mut self, name: &str, len: usize, meaning: &str) {
        let offset = self.base.saturating_add(self.at);
        self.take(len);
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.out,
            "{offset:06x}  {:<23}  {name:<9}  {meaning}",
            "..."
        );
    }

    /// Describes the bytes before `end` with `describe`, and continues at `end`, however many were described.
    pub(super) fn within(&mut self, end: usize, describe: impl FnOnce(&mut Self)) {
        let bytes = self.bytes;
        let end = end.min(bytes.len());
        self.bytes = &bytes[..end];
        describe(self);
        self.at = end;
        self.bytes = bytes;
    }

    /// Says that the rest of a list is not shown, where there is a rest.
    pub(super) fn leave_out(&mut self) {
        if self.has_more() {
            self.left_out(self.rest());
        }
    }

    /// Adds a line below the rows.
    pub(super) fn note(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.notes, "! {text}");
    }

    /// Says how much of the frame at `start` is missing, if any of it is.
    pub(super) fn missing(&mut self, start: usize, frame_len: usize, at_least: &str) {
        let there = self.bytes.len() - start;
        if there < frame_len {
            self.note(&format!(
                "incomplete: {there} of {at_least}{frame_len} bytes, {at_least}{} missing",
                frame_len - there
            ));
        }
    }

    /// The rows alone.
    pub(crate) fn into_rows(self) -> String {
        self.out
    }

    /// The rows, and the notes below them.
    pub(super) fn finish(mut self) -> String {
        self.out.push_str(&self.notes);
        self.out
    }
}
