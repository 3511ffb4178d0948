//! The built gopherstore-cli against small nodes in this process, and against real ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod arguments;
mod batch;
mod bench;
mod commands;
mod decode;
mod diff;
mod dissector;
mod dump;
mod dump_target;
mod encode;
mod failures;
mod keys;
mod lines;
mod load;
/// Real nodes.
#[path = "../support"]
#[allow(dead_code)] // some of it serves only `cluster`
mod nodes {
    pub(crate) mod cluster;
    pub(crate) mod documented;
    pub(crate) mod durable;
    pub(crate) mod load;
    pub(crate) mod names;
    pub(crate) mod node;
    pub(crate) mod proxy;
    pub(crate) mod tools;
}
mod offline;
mod race;
mod scan;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod sync;
mod tail;
mod tail_on_disk;
#[path = "../protocol/vectors.rs"]
mod vectors;

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use gopherstore::wire::Request;

/// How a run of the program ended.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Run {
    #[track_caller]
    fn expect(&self, code: i32, out: &str, err: &str) {
        let run = (self.code, String::from_utf8_lossy(&self.out), &*self.err);
        assert_eq!(run, (code, out.into(), err));
    }

    /// That it failed with `code`, printed nothing, and said so in one line with each of `parts` in it.
    #[track_caller]
    fn expect_failure(&self, code: i32, parts: &[&str]) {
        assert_eq!((self.code, &*self.out), (code, b"".as_slice()), "{self:?}");
        assert!(self.err.starts_with("gopherstore-cli: "), "{self:?}");
        assert!(self.err.ends_with('\n'), "{self:?}");
        assert_eq!(self.err.matches('\n').count(), 1, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {self:?}");
        }
    }
}

/// A SET as bytes.
fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Set { key, value }.encode(&mut bytes).unwrap();
    bytes
}

/// A path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"));
    command
        .env_remove("GOPHERSTORE_ADDR")
        .env_remove("RUST_LOG")
        .env_remove("CLICOLOR_FORCE");
    command
}

/// Runs the program to its end with `input` as standard input; an end of its own bounds every wait of it.
fn run<S: AsRef<OsStr>>(arguments: &[S], input: &[u8]) -> Run {
    finish(program().args(arguments), input)
}

/// The same against the node at `addr`.
fn run_at<S: AsRef<OsStr>>(addr: &str, arguments: &[S], input: &[u8]) -> Run {
    finish(program().args(["--addr", addr]).args(arguments), input)
}

fn finish(command: &mut Command, input: &[u8]) -> Run {
    let mut child = start(command);
    let mut stdin = child.stdin.take().expect("standard input");
    let input = input.to_vec();
    // The program may end without reading it all.
    let writing = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("the program's end");
    writing.join().expect("the writer");
    Run {
        code: output.status.code().expect("an exit code and no signal"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

/// Runs the program on input without an end: `begin`, and then `part` until the program stops reading.
fn finish_endless(command: &mut Command, begin: &[u8], part: Vec<u8>) -> Run {
    let mut child = start(command);
    let mut stdin = child.stdin.take().expect("standard input");
    stdin.write_all(begin).expect("a reader");
    let writing = thread::spawn(move || while stdin.write_all(&part).is_ok() {});
    let run = ended(child);
    writing.join().expect("the writer");
    run
}

/// How a program ends that was started, and does end.
fn ended(child: Child) -> Run {
    let output = support::in_time(move || child.wait_with_output().expect("the program's end"));
    Run {
        code: output.status.code().expect("an exit code and no signal"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built program")
}
