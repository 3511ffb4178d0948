//! The client library against scripted peers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod cluster;
mod faults;
mod pipelines;
mod redirects;
mod scan;
#[path = "../support/mod.rs"]
mod support;
mod watchers;

use std::time::Duration;

use gopherstore::client::{Client, ClientOptions};

/// A client whose own limits never strike in a test that is about something else.
fn patient(addr: &str) -> Client {
    with_timeout(addr, support::PATIENCE)
}

fn with_timeout(addr: &str, timeout: Duration) -> Client {
    let options = ClientOptions {
        timeout,
        connect_timeout: support::PATIENCE,
        ..ClientOptions::default()
    };
    Client::connect_with(addr, options).expect("a connection")
}
