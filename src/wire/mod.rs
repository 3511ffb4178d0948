//! GBP, the GopherStore Binary Protocol, as pure functions between bytes and values.
//!
//! The module is pure: no sockets, threads, clocks or logs. The byte-exact specification is `docs/GBP.md`. Tests hold
//! its tables (`tests/protocol/tables.rs`) and its vectors (`tests/protocol/vectors.rs`) against this code.
//!
//! * [`command`]: the command table, one row for each operation; every other module reads it.
//! * [`request`]: requests. [`request::parse`] turns received bytes into a [`RequestFrame`].
//! * [`response`]: responses. [`response::parse`] turns received bytes into a [`Response`]; [`Status`] is their table.
//! * [`replication`]: FOLLOW, and the messages of the replication stream.
//! * [`run`]: pipelined requests that are executed together.
//! * [`conditional`]: PUT, TAKE and ADD. [`expiry`]: SETAT, EXPIRE and TTL.
//! * [`batch`]: BATCH, whose requests are carried out together.
//! * [`comparison`]: SUMS and LIST, which compare the data of two nodes.
//! * [`scan`]: SCAN, which reads keys and entries piece by piece.
//! * [`Buffer`]: received bytes, with a bound on the memory that they may take.
//! * [`annotate`]: frames as an annotated hex dump, for people.
//! * [`transcript`]: the frames of one side of a connection, up to the first wrong byte.
//!
//! # Example
//!
//! ```
//! use gopherstore::wire::{Request, request::{Limits, Parsed, parse}};
//!
//! let mut bytes = Vec::new();
//! Request::Get { key: b"user123" }.encode(&mut bytes)?;
//! assert_eq!(bytes, b"\x02\x00\x07\x00\x00\x00\x00user123");
//!
//! let Ok(Parsed::Whole(frame)) = parse(&bytes, &Limits::default()) else { panic!("not whole") };
//! assert_eq!(frame.request(), Request::Get { key: b"user123" });
//! # Ok::<(), gopherstore::wire::EncodeError>(())
//! ```

#![deny(clippy::wildcard_enum_match_arm)]

pub mod annotate;
pub mod batch;
mod buffer;
pub mod command;
pub mod comparison;
pub mod conditional;
pub mod expiry;
mod field;
pub mod replication;
pub mod request;
pub mod response;
pub mod run;
pub mod scan;
mod status;
mod sync;
mod token;
mod traits;
pub mod transcript;

pub use buffer::{Buffer, GROWTH_BYTES_MAX};
pub use command::{Access, CommandSpec, Opcode, Request};
pub use field::{Field, Form};
pub use request::{EncodeError, RequestError, RequestFrame};
pub use response::{Response, ResponseError};
pub use run::Run;
pub use status::{Status, StatusSpec, StatusValue};
pub use sync::{SYNC_TIMEOUT_MAX_MS, SyncRequest};
pub use token::{TOKEN_LEN, Token, TokenError};

/// Longest key in bytes: the largest number of the header's 16-bit length.
pub const KEY_LEN_MAX: usize = 65_535;

/// Longest value in bytes: the largest number of the header's 32-bit length. A node's own limit is lower
/// ([`request::Limits`]).
pub const VALUE_LEN_MAX: usize = 4_294_967_295;

/// Whether `byte`, as the first byte of a connection, shows that the peer speaks a text protocol: printable ASCII,
/// tab, line feed or carriage return.
///
/// In a request only a byte that is no opcode counts as text. No status is ever taken from this range (GBP §7).
#[must_use]
pub const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E)
}

/// A length from the wire as a size in memory. Where `usize` is narrower than the length, the size saturates and so
/// exceeds every limit.
fn size(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
