//! Several nodes, each a process of its own, with the network between them and faults in it.
//!
//! `GOPHERSTORE_LONG=1` runs each fault as often as the long run asks for, which takes hours and wants `--release`;
//! `GOPHERSTORE_LONG=10%` a tenth of that.
//! `GOPHERSTORE_SEED=N` repeats what a failed test drew; it printed its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod batches;
mod copying;
mod durability;
mod expiry;
mod faults;
mod followers;
mod harness;
mod memory;
mod namespaces;
mod power;
mod proxy;
mod reserve;
mod roles;
mod snapshots;
mod status;
mod stops;
mod sync;
mod transfer;
mod watchers;

/// Helpers of these tests.
#[path = "../support"]
#[allow(dead_code)] // some of it serves only `faults`
mod support {
    pub(crate) mod cluster;
    pub(crate) mod load;
    pub(crate) mod names;
    pub(crate) mod node;
    pub(crate) mod proxy;
    pub(crate) mod quick;
    pub(crate) mod recorder;
    pub(crate) mod tools;
    pub(crate) mod writes;
}
