//! The prompt of the built gopherstore-cli in a pseudo-terminal, against real nodes, and against peers that break the
//! connection where real nodes cannot do so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod editing;
mod nodes;
mod terminal;

/// The parts of these tests.
#[path = "../support"]
#[allow(dead_code)] // most of it serves other tests
mod support {
    pub(crate) mod cluster;
    pub(crate) mod names;
    pub(crate) mod node;
    pub(crate) mod proxy;
    pub(crate) mod tools;
}

#[path = "../support/mod.rs"]
mod stub;

use std::fmt::Write as _;
use std::path::Path;

use support::cluster::Cluster;

/// A `cluster.toml` for the client, in the folder `dir`.
fn config(cluster: &Cluster, dir: &Path) -> String {
    let mut config = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
    for at in 0..cluster.len() {
        let (name, addr) = (cluster.name(at), cluster.addr(at));
        write!(config, "[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n").unwrap();
    }
    let path = dir.join("cluster.toml");
    std::fs::write(&path, config).unwrap();
    path.to_str().unwrap().to_owned()
}
