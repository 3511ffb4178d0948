//! The protocol without sockets: vectors of `docs/GBP.md`, cuts and splits, properties, memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cuts;
mod dumps;
mod fuzz;
mod memory;
mod properties;
mod tables;
mod transcripts;
mod vectors;
