//! GopherStore: a distributed, in-memory key-value store with a binary protocol that one can read in a hex dump.
//!
//! This library is what the two binaries are made of: `gopherstore-server` ([`server`]) and `gopherstore-cli`
//! ([`client`]). The protocol is specified in `docs/GBP.md`; `docs/architecture.md` follows one request through the
//! code and says which locks and threads there are, and what must always hold.
//!
//! # Map
//!
//! | module        | what it is for                                                                      |
//! |---------------|-------------------------------------------------------------------------------------|
//! | [`history`]   | which leader wrote which entries; pure                                              |
//! | [`wire`]      | GBP: bytes to requests and answers and back; pure                                   |
//! | [`entry`]     | a client's frame as it is kept: one allocation, reference-counted                   |
//! | [`store`]     | the map from keys to entries, in partitions with a lock each                        |
//! | [`node`]      | what a node answers to a request, by its role                                       |
//! | [`server`]    | listener, a thread per connection, limits, shutdown                                 |
//! | [`client`]    | the blocking client                                                                 |
//! | [`config`]    | `cluster.toml`                                                                      |
//! | [`arguments`] | command lines                                                                       |
//!
//! Data flows one way, history → wire → entry → store → node → server, and `use` lines point only backwards along it
//! (`tests/tidy.rs`).

pub mod arguments;
pub mod client;
pub mod config;
pub mod entry;
pub mod history;
pub mod node;
pub mod server;
pub mod store;
pub mod wire;

pub use client::Client;
