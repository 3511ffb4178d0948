//! The store, the log and the node, without sockets but for two nodes with different data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod comparison;
mod differences;
mod execute;
mod log;
mod model;
mod threads;

use gopherstore::engine::entry::Entry;
use gopherstore::wire::Request;
use gopherstore::wire::request::{Limits, Parsed, parse};

/// An entry as it comes in from a client.
fn entry(key: &[u8], value: &[u8]) -> Entry {
    with_frame(&Request::Set { key, value }, Entry::copy_of)
}

/// Calls `f` with the request as it would come out of a connection's buffer.
fn with_frame<T>(
    request: &Request<'_>,
    f: impl FnOnce(&gopherstore::wire::RequestFrame<'_>) -> T,
) -> T {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    match parse(&bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => f(&frame),
        Parsed::Incomplete { needed } => panic!("{needed} bytes needed"),
    }
}
