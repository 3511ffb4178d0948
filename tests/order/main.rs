//! The one order of writes under every interleaving that a random scheduler finds.
//!
//! These tests compile the text of `src/engine` and `src/log` a second time: in this crate `parking_lot` and
//! `crossbeam_channel` are the crate itself: its root offers the same names, made of `shuttle`'s locks
//! ([`primitives`]). Tests inside those files run here as well, without a scheduler, so those that take locks are in
//! `tests/node`.
//!
//! A failure prints a seed and a schedule, which `shuttle::replay` runs again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(unreachable_pub)] // the files are written for a library

extern crate self as crossbeam_channel;
extern crate self as parking_lot;

mod model;
mod primitives;

#[path = "../../src/engine/mod.rs"]
#[allow(dead_code, unused_imports)]
mod engine;
#[path = "../../src/log/mod.rs"]
#[allow(dead_code, unused_imports)]
mod log;
#[path = "../../src/planted.rs"]
#[allow(dead_code)]
mod planted;
#[path = "../../src/time.rs"]
#[allow(dead_code)]
mod time;

pub use gopherstore::{history, wire};
pub use primitives::{Condvar, Mutex, MutexGuard, Receiver, RwLock, Select, Sender, unbounded};
pub use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};
