//! The files of a node: its log on disk (`docs/FORMAT.md`).
//!
//! | file           | what it does                                                       |
//! |----------------|--------------------------------------------------------------------|
//! | `files.rs`     | the directory and its files, behind a trait                        |
//! | `segment.rs`   | the bytes of a segment: its header, and groups of records          |
//! | `spares.rs`    | files with their space, which become the next segments             |
//! | `writer.rs`    | writes groups, makes them durable, begins and removes segments     |
//! | `recovery.rs`  | reads a log back, and tells a torn end from damage                 |
//! | `snapshot.rs`  | writes and reads a snapshot of the data set                        |
//! | `identity.rs`  | whose data a directory holds                                       |
//! | `annotate/`    | shows a file field by field, for people                            |
//! | `error.rs`     | why a data directory cannot be used                                |
//!
//! Nothing here knows a thread, a socket or a clock.

#![deny(clippy::wildcard_enum_match_arm)]

pub mod annotate;
pub mod error;
pub mod files;
pub mod identity;
pub mod recovery;
pub mod segment;
#[cfg(test)]
pub(crate) mod simulated;
pub mod snapshot;
mod spares;
#[cfg(test)]
pub(crate) mod tests;
pub mod writer;
