//! GBP, the GopherStore Binary Protocol, as pure functions between bytes and values.
//!
//! Nothing here knows a socket, a thread, a clock or a log. The byte-exact specification is `docs/GBP.md`; its
//! vectors are read by `tests/protocol/vectors.rs`, so the text and this code cannot drift apart.
//!
//! * [`command`]: the command table, which says of every operation what the rest of the code has to know.
//! * [`request`]: what a client sends. [`request::parse`] turns received bytes into a [`RequestFrame`].
//! * [`response`]: what a node answers. [`response::parse`] turns received bytes into a [`Response`].
//! * [`replication`]: how a follower asks for its leader's log, and the frames that it is sent then.
//! * [`run`]: requests that are carried out together.
//! * [`comparison`]: SUMS and LIST, with which two nodes are compared.
//! * [`Buffer`]: the received bytes themselves, and the bound on how far memory may run ahead of them.
//! * [`annotate`]: a frame as an annotated hex dump, for people.
//! * [`transcript`]: what one side sent, frame by frame, up to the first byte that is wrong.
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
mod buffer;
pub mod command;
pub mod comparison;
mod field;
pub mod replication;
pub mod request;
pub mod response;
pub mod run;
mod status;
pub mod transcript;

pub use buffer::{Buffer, GROWTH_BYTES_MAX};
pub use command::{Access, CommandSpec, Opcode, Request};
pub use field::{Field, Form};
pub use request::{EncodeError, RequestError, RequestFrame};
pub use response::{Response, ResponseError};
pub use run::Run;
pub use status::{Status, StatusSpec, StatusValue};

/// Longest key in bytes: what the header's 16-bit length can say.
pub const KEY_LEN_MAX: usize = 65_535;

/// Longest value in bytes that a header's 32-bit length can say; a node's own limit is lower
/// ([`request::Limits`]).
pub const VALUE_LEN_MAX: usize = 4_294_967_295;

/// Whether `byte`, as the first byte of a connection, shows that the peer speaks a text protocol: printable ASCII,
/// tab, line feed or carriage return.
///
/// Requests ask this only for bytes that are not an opcode, answers only for bytes that are not a status; no status
/// is ever taken from this range (GBP §7).
#[must_use]
pub const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E)
}

/// A length from the wire as a size in memory. On a platform whose `usize` is narrower than the length it saturates,
/// and so fails every limit instead of wrapping.
fn size(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
