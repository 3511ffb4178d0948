//! `load` where it ends before it is done, and what `load` and `dump` say of one file.

use std::{
    fs,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
};

use gopherstore::{client::Client, wire::Status};
use pty_process::blocking::{Command, open};

use crate::{
    bench,
    nodes::node::{self, Node},
    program, run_at, set, start,
    support::{Peer, in_time, next_frame, request, response},
    text,
};

/// Runs a `load` command as it was printed, in a shell.
fn run_in_a_shell(line: &str) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_gopherstore-cli");
    let line = line.replacen("gopherstore-cli", program, 1);
    std::process::Command::new("sh")
        .args(["-c", &line])
        .output()
        .unwrap()
}

/// The command that a message ends with.
fn told(message: &str) -> &str {
    message.trim_end().rsplit("with: ").next().unwrap()
}

#[test]
fn the_named_byte_skips_only_the_refused_entry() {
    let node = Node::start_with(&node::Options {
        limits: "max_value_bytes = 10",
        ..node::Options::default()
    });
    let addr = node.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("it's mine.gbp");
    let frames: Vec<_> = (0..100_u8)
        .map(|at| set(&[at], &vec![b'v'; if at % 40 == 20 { 11 } else { 10 }]))
        .collect();
    fs::write(&file, frames.concat()).unwrap();
    let first = run_at(&addr, &["load", "--no-end-mark", text(&file)], b"");
    assert_eq!(first.code, 3, "{first:?}");
    let mut message = first.err;
    for refused in [20, 60] {
        let at: usize = frames[..refused].iter().map(Vec::len).sum();
        assert!(
            message.contains(&format!("the entry at byte {at} is refused")),
            "{message}"
        );
        let output = run_in_a_shell(told(&message));
        message = String::from_utf8(output.stderr).unwrap();
    }
    assert_eq!(message, "", "the third one goes to the end");
    let mut client = Client::connect(&addr).unwrap();
    for at in 0..100 {
        let value = client.get(&[at]).unwrap();
        assert_eq!(value.is_some(), at % 40 != 20, "{at}");
    }
}

/// It is no fault of the entry's, so that to go on must not leave it out.
#[test]
fn an_entry_that_is_refused_for_another_reason_is_sent_again() {
    for (status, said) in [
        (Status::Error, "too many connections"),
        (Status::Loading, "it copies n1"),
        (Status::NotLeader, ""),
        (Status::Timeout, "it leads no more"),
    ] {
        let peer = Peer::start(move |_, mut stream| {
            let mut count = 0;
            while next_frame(&mut stream).is_some() {
                count += 1;
                let out = match count {
                    1 => response(Status::Ok.byte(), b""),
                    _ => response(status.byte(), said.as_bytes()),
                };
                if stream.write_all(&out).is_err() {
                    return;
                }
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.gbp");
        let frames = [set(b"a", b"1"), set(b"b", b"2"), set(b"c", b"3")];
        fs::write(&file, frames.concat()).unwrap();
        let run = run_at(&peer.addr, &["load", "--no-end-mark", text(&file)], b"");
        let from = frames[0].len();
        let rest = format!(
            "1 entry is written; go on with: gopherstore-cli --addr {} load ",
            peer.addr
        );
        assert!(run.code == 3 || run.code == 4, "{run:?}");
        assert!(run.err.contains(&rest), "{run:?}");
        assert!(run.err.ends_with(&format!(" --from {from}\n")), "{run:?}");
    }
}

#[test]
fn a_signal_ends_it_at_once_and_says_from_where_to_go_on() {
    // It answers all but the last entry, which is in a batch of its own.
    let (sender, asked) = std::sync::mpsc::channel();
    let node = Peer::start(move |_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            if request(&frame).value() == b"last" {
                let _ = sender.send(());
                continue;
            }
            if stream.write_all(&response(Status::Ok.byte(), b"")).is_err() {
                return;
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.gbp");
    // A batch ends with the first entry that begins 4 MiB behind its own first.
    let batch = [set(b"large", &vec![b'v'; 5 << 20]), set(b"k", b"")].concat();
    fs::write(&file, [&batch[..], &set(b"k", b"last")].concat()).unwrap();
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        if bench::cannot_receive(name) {
            continue;
        }
        let arguments = [
            "--addr",
            &node.addr,
            "--timeout",
            "60s",
            "load",
            "--no-end-mark",
        ];
        let child = start(program().args(arguments).arg(&file));
        asked.recv().unwrap();
        let err = ended_by(child, name, number);
        // The second batch is on its way, and it is not known what of it is written.
        let written = "gopherstore-cli: interrupted; 2 entries are written; go on with: gopherstore-cli --addr ";
        assert!(err.starts_with(written), "{err}");
        let behind = batch.len();
        assert!(err.ends_with(&format!(" --from {behind}\n")), "{err}");
    }
}

#[test]
fn a_signal_ends_it_while_nothing_comes_to_load() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let mut client = Client::connect(&addr).unwrap();
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let mut child = start(program().args(["--addr", &addr, "load", "-", "--no-end-mark"]));
        // More than a batch, so that it is seen that it has begun.
        let mut stdin = child.stdin.take().unwrap();
        let frame = set(name.as_bytes(), &vec![b'v'; 3 << 20]);
        stdin
            .write_all(&[&frame[..], &frame, &frame].concat())
            .unwrap();
        node::wait_for("what was sent", || client.get(name.as_bytes()).unwrap());
        let err = ended_by(child, name, number);
        assert!(err.contains(" load - --no-end-mark --from "), "{err}");
        drop(stdin);
    }
}

/// Sends a signal, and gives what was said on standard error.
fn ended_by(child: Child, name: &str, number: i32) -> String {
    bench::signal(&child, &[name]);
    let output = in_time(move || child.wait_with_output().unwrap());
    // A shell reports 128 and the signal's number.
    assert_eq!(output.status.signal(), Some(number), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The output for a person at a terminal.
fn on_a_terminal(addr: &str, arguments: &[&str]) -> String {
    let (mut pty, pts) = open().unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(["--addr", addr])
        .args(arguments)
        .env("TERM", "dumb")
        .stdout(Stdio::null());
    let mut child = command.spawn(pts).unwrap();
    let mut out = Vec::new();
    let mut part = [0; 4096];
    // An error once the other end is closed.
    while let Ok(count @ 1..) = pty.read(&mut part) {
        out.extend_from_slice(&part[..count]);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    String::from_utf8(out).unwrap()
}

#[test]
fn dump_and_load_say_the_same_of_a_file_and_it_is_true() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    for (count, entries) in [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")] {
        let file = dir.path().join(format!("{count}.gbp"));
        let dumped = on_a_terminal(&addr, &["dump", text(&file)]);
        let loaded = on_a_terminal(&addr, &["load", text(&file)]);
        let size = fs::metadata(&file).unwrap().len();
        for said in [dumped, loaded] {
            let line = said.lines().last().unwrap();
            assert!(line.starts_with(&format!("{entries} in ")), "{said}");
            assert!(line.contains(&format!(", {size} B of file")), "{said}");
            assert!(!line.contains("0.0 s") && !line.contains("NaN"), "{said}");
        }
        // Of a part, the part.
        let from = (size - 55).to_string();
        let said = on_a_terminal(&addr, &["load", text(&file), "--from", &from]);
        assert!(
            said.starts_with("0 entries in ") && said.contains(", 55 B of file"),
            "{said}"
        );
        let mut client = Client::connect(&addr).unwrap();
        client.set(format!("{count}").as_bytes(), b"value").unwrap();
    }
}
