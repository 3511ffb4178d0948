//! The trace of a run: what happened when, in lines for people.
//!
//! It is written only where it is wanted, since it costs more than the run. A run that fails is repeated with it.

use std::collections::VecDeque;

use super::events::Micros;

/// Lines that are kept.
const LINES_MAX: usize = 400;

/// The newest lines of a trace, or none.
#[derive(Debug)]
pub(super) struct Trace {
    lines: VecDeque<String>,
    mode: Mode,
    /// A sum of all lines.
    sum: u64,
}

/// What becomes of lines.
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

    /// Whether lines are made.
    pub(super) fn is_on(&self) -> bool {
        self.mode != Mode::Off
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
