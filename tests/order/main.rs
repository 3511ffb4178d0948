//! The one order of writes under every interleaving that a random scheduler finds.
//!
//! What runs here is the text of `src/store.rs` and `src/journal.rs` itself, compiled a second time: in this crate
//! `parking_lot` and `crossbeam_channel` are the crate itself, whose root offers the same names made of `shuttle`'s
//! locks ([`primitives`]). Tests inside those two files would run here as well, without a scheduler, and fail; those
//! of the journal are in `tests/node/journal.rs`.
//!
//! A failure prints a seed and a schedule, which `shuttle::replay` runs again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(unreachable_pub)] // the two files are written for a library

extern crate self as crossbeam_channel;
extern crate self as parking_lot;

mod model;
mod primitives;

#[path = "../../src/journal.rs"]
#[allow(dead_code)]
mod journal;
#[path = "../../src/store.rs"]
#[allow(dead_code)]
mod store;

pub use gopherstore::{digest, entry, oplog, progress, wire};
pub use primitives::{Condvar, Mutex, Receiver, RwLock, Sender, unbounded};
pub use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};
