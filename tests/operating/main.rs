//! The tools and texts of operators: the scripts, the unit, the shells' completions, man pages, examples,
//! and the terminal sessions of the documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod checkout;
mod examples;
mod on_disk;
mod peers;
mod recipes;
mod service;
mod sessions;
mod shells;
mod starting;
mod stopping;

/// The parts of these tests.
#[path = "../support"]
#[allow(dead_code)] // they use a part of it
mod support {
    pub(crate) mod cluster;
    pub(crate) mod names;
    pub(crate) mod node;
    pub(crate) mod proxy;
    pub(crate) mod tools;
}

use std::path::Path;
use std::process::{Command, Output};

const CLI: &str = env!("CARGO_BIN_EXE_gopherstore-cli");
const SERVER: &str = env!("CARGO_BIN_EXE_gopherstore-server");

/// The programs by their names, for what is generated of each.
const PROGRAMS: [(&str, &str); 2] = [("gopherstore-cli", CLI), ("gopherstore-server", SERVER)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Standard output of a program that has to succeed.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard output and standard error.
fn both(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

/// `$PATH` with the built programs in front.
fn path() -> String {
    let built = Path::new(CLI).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", built.display())
}
