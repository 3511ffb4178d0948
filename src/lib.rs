//! GopherStore: a distributed, in-memory key-value store with a binary protocol that one can read in a hex dump.
//!
//! The two binaries, `gopherstore-server` ([`server`]) and `gopherstore-cli` ([`client`]), are made of this library.
//! `docs/GBP.md` specifies the protocol. `docs/architecture.md` follows a request through the code and describes the
//! threads, the locks and the invariants.
//!
//! # Map
//!
//! | module                | purpose                                                                           |
//! |-----------------------|-----------------------------------------------------------------------------------|
//! | [`wire`]              | GBP: the command table, requests, responses and stream frames; pure               |
//! | [`history`]           | epochs, and the data set that a position names; pure                              |
//! | [`engine`]            | the data set: store, commands and their effects, snapshots, comparison; pure      |
//! | [`log`]               | the order of all writes: sequencer, backlog, watermarks                           |
//! | [`storage`]           | the files of a data directory: segments of the log, and snapshots                 |
//! | [`persistence`]       | carries the data set to the data directory and back                               |
//! | [`replication::core`] | the decisions of replication as values; pure                                      |
//! | [`node`]              | role, phase, admission, counters and STATUS of one node                           |
//! | [`replication`]       | streams between nodes, their threads, and the registry of followers               |
//! | [`server`]            | listener, a thread for each connection, sessions, pollers, limits, stop           |
//! | [`client`]            | the blocking client                                                               |
//! | [`dial`]              | connecting to any address of a name, within a deadline                            |
//! | [`config`]            | `cluster.toml`                                                                    |
//! | [`arguments`]         | command lines, with their completions and man pages                               |
//! | [`hexdump`]           | bytes as people paste them: dumps, captures, `printf` strings; pure               |
//! | [`service`]           | notifications of the service manager, and priorities of log lines                 |
//! | [`signals`]           | signals that the process was started with                                         |
//! | [`time`]              | the machine's clocks                                                              |
//! | [`logging`]           | the server's log, which no thread waits for                                       |
//!
//! # Arrows
//!
//! ```text
//! wire ←─ engine::{entry, digest} ←─ log ←─ engine ←─ node ←─ replication ←─ server
//!   ↑                                                │           │
//! history ←──────────── replication::core ←──────────┴───────────┘         client ─→ config, dial, wire
//! ```
//!
//! `use` lines point only in the direction of these arrows. `MAY_USE` in `tests/tidy.rs` has all of them, and `PURE`
//! the modules without sockets, threads, clocks, files and logs.

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
pub mod persistence;
#[cfg(test)]
pub(crate) mod planted;
pub mod replication;
pub mod server;
pub mod service;
pub mod signals;
pub mod storage;
pub mod time;
pub mod wire;

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

pub use client::Client;
