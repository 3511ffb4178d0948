//! GopherStore: a distributed, in-memory key-value store with a binary protocol that one can read in a hex dump.
//!
//! This library is what the two binaries are made of: `gopherstore-server` ([`server`]) and `gopherstore-cli`
//! ([`client`]). The protocol is specified in `docs/GBP.md`; `docs/architecture.md` follows one request through the
//! code and says which locks and threads there are, and what must always hold.
//!
//! # Map
//!
//! | module          | what it is for                                                                    |
//! |-----------------|-----------------------------------------------------------------------------------|
//! | [`wire`]        | GBP: bytes to requests, answers and stream frames, and back; pure                 |
//! | [`history`]     | epochs, and which data set a position names; pure                                 |
//! | [`engine`]      | the data set: store, entries, digest, comparison of nodes                         |
//! | [`log`]         | the order of all writes, and the newest part of the log                           |
//! | [`replication::core`] | the decisions of replication: who follows whom, and how far; pure            |
//! | [`node`]        | what a node is and holds, and what it answers to a request                        |
//! | [`replication`] | following, being followed, and what a leader does before it serves                |
//! | [`server`]      | listener, a thread per connection, limits, shutdown                               |
//! | [`client`]      | the blocking client                                                               |
//! | [`config`]      | `cluster.toml`                                                                    |
//! | [`arguments`]   | command lines                                                                     |
//! | [`hexdump`]     | bytes as people paste them: dumps, captures, `printf` strings; pure               |
//! | [`arguments`]   | command lines, and completions and man pages of the same                          |
//! | [`service`]     | what a service manager and its journal are told                                   |
//! | [`signals`]     | signals that a process is started with                                            |
//! | [`logging`]     | the server's log, which no thread waits for                                       |
//!
//! Data flows one way, wire → engine → log → node → replication → server, and `use` lines point only
//! backwards along it (`tests/tidy.rs`).

pub mod arguments;
pub mod client;
pub mod config;
pub mod dial;
pub mod engine;
pub mod hexdump;
pub mod history;
pub mod log;
pub mod logging;
pub mod node;
pub mod replication;
pub mod server;
pub mod service;
pub mod signals;
pub mod wire;

pub use client::Client;
