//! `load` where it ends before it is done, and what `load` and `dump` say of one file.

use std::{
    fs,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
};

use gopherstore::client::{Client, TimeLeft};
use gopherstore::wire::expiry::{SetAt, expire_value};
use gopherstore::wire::{Request, Status};
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

/// The deadline of a key, as its node holds it: what TTL leaves, and the time now, in milliseconds since 1970.
fn deadline(client: &mut Client, key: &[u8]) -> Option<u64> {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    match client.ttl(key).unwrap() {
        TimeLeft::Limited(left) => Some(u64::try_from((now + left).as_millis()).unwrap()),
        TimeLeft::Unlimited | TimeLeft::NotFound => None,
    }
}

#[test]
fn deadlines_are_loaded_as_the_file_has_them() {
    const FAR: u64 = 4_102_444_800_000;
    let node = Node::start();
    let addr = node.addr.to_string();
    let frame = |request: Request<'_>| {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        bytes
    };
    let set_at = |key: &[u8], deadline, value: &[u8]| {
        let value = &SetAt { deadline, value }.encode();
        frame(Request::SetAt { key, value })
    };
    let expire = |key: &[u8], deadline| {
        let value = &expire_value(deadline);
        frame(Request::Expire { key, value })
    };
    let frames = [
        set_at(b"session", FAR, b"alice"),
        set_at(b"past", 1, b"v"),
        set(b"later", b"v"),
        expire(b"later", Some(FAR)),
        set_at(b"kept", FAR, b"v"),
        expire(b"kept", None),
        expire(b"nobody", Some(FAR)),
    ];
    let run = run_at(&addr, &["load", "--no-end-mark", "-"], &frames.concat());
    run.expect(0, "", "");
    let mut client = Client::connect(&addr).unwrap();
    for key in [&b"session"[..], b"later"] {
        let found = deadline(&mut client, key).unwrap();
        assert!(found.abs_diff(FAR) < 5_000, "{found}");
    }
    assert_eq!(
        client.get(b"session").unwrap().as_deref(),
        Some(&b"alice"[..])
    );
    assert_eq!(client.get(b"past").unwrap(), None);
    assert_eq!(client.ttl(b"kept").unwrap(), TimeLeft::Unlimited);
    assert_eq!(client.ttl(b"nobody").unwrap(), TimeLeft::NotFound);

    let ttl = [&b"\x0b\0\x01\0\0\0\x09k\x01"[..], &1_000_u64.to_be_bytes()].concat();
    for (wrong, why) in [
        (set_at(b"k", 0, b"v"), "deadline 0, must be 1 at least"),
        (
            ttl,
            "EXPIRE with a time from now, where only a deadline belongs",
        ),
        (
            frame(Request::Put {
                key: b"k",
                value: &[0; 13],
            }),
            "PUT, where only SET, SETAT, DEL and EXPIRE belong",
        ),
    ] {
        let run = run_at(&addr, &["load", "--no-end-mark", "-"], &wrong);
        run.expect_failure(8, &["is damaged at byte 0", why, "nothing was written"]);
    }
    assert_eq!(client.get(b"k").unwrap(), None);
}
