//! Carries a node's data set to its data directory and back ([`storage`](crate::storage) has the files).
//!
//! | file          | what it does                                                                   |
//! |---------------|--------------------------------------------------------------------------------|
//! | `recovery.rs` | reads the newest snapshot and the log behind it into an engine                 |
//! | `writing.rs`  | writes the log as it grows, makes it durable, begins a chain after a full copy |
//! | `copying.rs`  | copies the data set to a snapshot while writes go on                           |
//!
//! Nothing here knows a thread, a socket or a clock: the server's threads and the simulator drive the same steps.

#![deny(clippy::wildcard_enum_match_arm)]

mod copying;
mod recovery;
mod writing;

pub use copying::{Copying, Progress};
pub use recovery::{Recovery, recover};
pub use writing::{Next, Settings, Writing};
