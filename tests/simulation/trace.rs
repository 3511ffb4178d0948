//! The trace of a run: what happened when, in lines for people.
//!
//! It is written only where it is wanted, since it costs more than the run. A run that fails is repeated with it.

use std::collections::VecDeque;

use super::events::Micros;
use crate::wire::annotate;

/// Lines that are kept.
const LINES_MAX: usize = 400;

/// The column of a dump in which the name of a field begins.
const FIELD_COLUMN: usize = 33;

/// Fields that say nothing about a run.
const UNTOLD: [&str; 6] = [
    "key_len",
    "value_len",
    "value_crc",
    "head_crc",
    "value_crc4",
    "head_crc4",
];

/// Length of a line at which no more of a message is added.
const LINE_LEN_MAX: usize = 300;

/// The newest lines of a trace, or none.
#[derive(Debug)]
pub(super) struct Trace {
    lines: VecDeque<String>,
    mode: Mode,
    /// A sum of all lines.
    sum: u64,
}

/// The use of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are not even made.
    Off,
    /// The newest are kept.
    Kept,
    /// They are printed at once.
    Printed,
}

impl Trace {
    pub(super) const fn new(mode: Mode) -> Trace {
        Trace {
            lines: VecDeque::new(),
            mode,
            sum: 0,
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, now: Micros, line: impl FnOnce() -> String) {
        if self.mode == Mode::Off {
            return;
        }
        let line = format!("{:>6}.{:03} ms  {}", now / 1_000, now % 1_000, line());
        let mix = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        self.sum = line.as_bytes().iter().fold(self.sum, mix);
        if self.mode == Mode::Printed {
            println!("{line}");
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// A number that two runs with the same lines share.
    pub(super) const fn sum(&self) -> u64 {
        self.sum
    }

    /// The newest lines.
    pub(super) fn text(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

/// Describes bytes that a node sends, in one line.
pub(super) fn line_of(bytes: &[u8]) -> String {
    let mut line = String::new();
    for row in annotate::sent(bytes).lines() {
        // Offset and bytes stand in front of the field.
        let meaning: String = row.chars().skip(FIELD_COLUMN).collect();
        let words: Vec<&str> = meaning.split_whitespace().collect();
        let is_told = words.first().is_some_and(|field| !UNTOLD.contains(field));
        if is_told && line.len() < LINE_LEN_MAX {
            line += &words.join(" ");
            line += ", ";
        }
    }
    line.trim_end_matches(", ").to_owned()
}
