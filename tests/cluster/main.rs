//! Several nodes, each a process of its own, with the network between them and faults in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod proxy;

/// What these tests are made of.
#[path = "../support"]
mod support {
    pub(crate) mod node;
    #[allow(dead_code)] // some of it serves tests that wait for replication
    pub(crate) mod proxy;
}
