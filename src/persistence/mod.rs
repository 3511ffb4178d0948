//! Carries a node's data set to its data directory and back ([`storage`](crate::storage) has the files).
//!
//! | file          | what it does                                                                   |
//! |---------------|--------------------------------------------------------------------------------|
//! | `recovery.rs` | reads the newest snapshot and the log behind it into an engine                 |
//! | `writing.rs`  | writes the log as it grows, makes it durable, begins a chain after a full copy |
//! | `copying.rs`  | copies the data set to a snapshot while writes go on                           |
//! | `exchange.rs` | what the writing of the log and the writing of snapshots tell each other       |
//! | `opening.rs`  | what a node does with its directory when it starts                             |
//!
//! Nothing here knows a thread, a socket or a clock: the server's threads and the simulator drive the same steps.

#![deny(clippy::wildcard_enum_match_arm)]

mod copying;
mod exchange;
mod opening;
mod recovery;
#[cfg(test)]
mod tests;
mod writing;

pub use copying::{Copying, Progress};
pub use exchange::{Exchange, Noted, Snapshots};
pub use opening::{acknowledged_at, open};
pub use recovery::{Recovery, recover};
pub use writing::{Next, Settings, Sync, SyncDone, Writing};
