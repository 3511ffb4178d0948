//! GopherStore: a distributed, in-memory key-value store with a binary protocol that one can read in a hex dump.

pub mod arguments;
pub mod client;
pub mod config;
pub mod entry;
pub mod node;
pub mod server;
pub mod store;
pub mod wire;

pub use client::Client;
