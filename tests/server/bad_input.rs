//! Bad input gets a clear answer, and nothing is lost.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::thread;
use std::time::Duration;

use gopherstore::wire::{Request, Status, request};

use crate::node::{Node, Options, wait_for};
use crate::tools;
use crate::vectors;
use crate::{answer, closed, done, error, frames, pong, set_k};

/// The length of a frame that is refused and skipped.
fn skipped(vector: &vectors::Vector) -> Option<usize> {
    let rest = vector.meaning.strip_prefix("refused, skip ")?;
    let (len, _) = rest.split_once(':').unwrap();
    Some(len.parse().unwrap())
}

#[test]
fn frames_that_the_document_skips_are_answered_and_skipped() {
    let node = Node::start();
    let stream = node.connect();
    (&stream).write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    let mut count = 0;
    for vector in vectors::all() {
        let Some(rest) = vector.meaning.strip_prefix("refused, skip ") else {
            continue;
        };
        // The answer comes with the header; the rest of the frame may take its time.
        let (header, payload) = vector.bytes.split_at(request::HEADER_LEN);
        (&stream).write_all(header).unwrap();
        assert_eq!(
            error(&stream),
            rest.split_once(": ").unwrap().1,
            "line {}",
            vector.line
        );
        (&stream).write_all(payload).unwrap();
        // Of some frames the document has the header alone.
        let left = skipped(&vector).unwrap() - vector.bytes.len();
        (&stream).write_all(&vec![b'x'; left]).unwrap();
        (&stream).write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&stream), pong(), "after line {}", vector.line);
        count += 1;
    }
    assert!(count >= 7);
}

#[test]
fn a_large_unknown_frame_is_skipped_without_being_held() {
    let node = Node::start();
    let mut stream = node.connect();
    let before = node.memory_kib("VmHWM");
    let mut frame = b"\x7f\0\0\x02\0\0\0".to_vec();
    frame.resize(frame.len() + (32 << 20), b'x');
    stream.write_all(&frame).unwrap();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(error(&stream), "unknown opcode 0x7f");
    assert_eq!(answer(&stream), pong());
    let grown = node.memory_kib("VmHWM") - before;
    assert!(grown < 4 << 10, "{grown} KiB");
}

#[test]
fn text_is_answered_on_its_first_byte_with_a_line_that_works() {
    let can_run = tools::are_there(&["nc", "xxd"]);
    let node = Node::start();
    for text in [
        "P",
        "PING\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "{",
        "\n",
    ] {
        let mut stream = node.connect();
        stream.write_all(text.as_bytes()).unwrap();
        // The writing side stays open: the node has to answer and close by itself.
        let message = error(&stream);
        assert!(message.starts_with(&format!(
            "the first byte is {:?}",
            text.chars().next().unwrap()
        )));
        closed(&stream);

        let line = message.split("; try: ").nth(1).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        if !can_run {
            continue;
        }
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(
            shown.contains("0000 0000 0450 4f4e 47"),
            "{line} printed {shown}"
        );
    }
}

#[test]
fn opcodes_in_the_range_of_text_are_only_unknown_once_a_frame_has_come() {
    let node = Node::start();
    let mut stream = node.connect();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    stream.write_all(b"\x50\0\0\0\0\0\x01x").unwrap();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    assert_eq!(error(&stream), "unknown opcode 0x50");
    assert_eq!(answer(&stream), pong());
}

#[test]
fn the_answer_to_a_value_that_is_too_long_arrives_while_it_is_still_being_sent() {
    let node = Node::start_with(&Options {
        limits: "max_value_bytes = 1000",
        ..Options::default()
    });
    let stream = node.connect();
    let value = vec![b'x'; 50 << 20];
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let frame = frames(&[Request::Set {
            key: b"k",
            value: &value,
        }]);
        let sent = scope.spawn(move || writer.write_all(&frame));
        // Reads only when everything is sent, as a blocking client does: a reset would have taken the answer away.
        sent.join().unwrap().unwrap();
        assert_eq!(error(&stream), "value of 52428800 bytes, limit 1000");
        closed(&stream);
    });
    let mut stream = node.connect();
    let longest = vec![b'x'; 1000];
    stream
        .write_all(&frames(&[Request::Set {
            key: b"k",
            value: &longest,
        }]))
        .unwrap();
    assert_eq!(answer(&stream), done());
}

#[test]
fn answers_before_a_fault_arrive_before_its_error() {
    let node = Node::start();
    let mut bytes = frames(&[
        Request::Set {
            key: b"k",
            value: b"v",
        },
        Request::Get { key: b"k" },
    ]);
    bytes.extend_from_slice(b"\x01\0\0\xff\xff\xff\xff and then anything");
    let answers = node.exchange(&bytes);
    let (good, bad) = answers.split_at(5 + 6);
    assert_eq!(good, b"\0\0\0\0\0\0\0\0\0\x01v");
    assert_eq!(bad[0], Status::Error.byte());
    assert!(bad.ends_with(b"value of 4294967295 bytes, limit 67108864"));
}

#[test]
fn of_a_frame_that_is_cut_nothing_is_applied_and_the_log_says_so_once() {
    let node = Node::start();
    let set = frames(&[Request::Set {
        key: b"key",
        value: b"value",
    }]);
    for len in 1..set.len() {
        assert_eq!(node.exchange(&set[..len]), b"", "{len} bytes");
    }
    assert_eq!(
        node.exchange(&frames(&[Request::Get { key: b"key" }])),
        b"\x03\0\0\0\0"
    );
    let said = || node.log().matches("end of stream inside a frame").count();
    wait_for("the log", || (said() >= set.len() - 1).then_some(()));
    assert_eq!(said(), set.len() - 1);
    assert!(
        node.log()
            .contains("end of stream inside a frame, 14 of 15 bytes"),
        "{}",
        node.log()
    );
}

/// The third SET of a kind is read to where the first one's value was; cut off, it leaves the second one's.
#[test]
fn of_a_large_value_after_others_that_is_cut_or_late_nothing_is_applied() {
    let node = Node::start_with(&Options {
        limits: "request_timeout_ms = 400",
        ..Options::default()
    });
    let set = |value: &[u8]| frames(&[Request::Set { key: b"key", value }]);
    let (first, second, third) = (&[1; 60_000], &[2; 60_000], set(&[3; 60_000]));
    let begun = |len: usize| {
        let stream = node.connect();
        for frame in [set(first), set(second)] {
            (&stream).write_all(&frame).unwrap();
            assert_eq!(answer(&stream), done());
        }
        (&stream).write_all(&third[..len]).unwrap();
        stream
    };
    let get = frames(&[Request::Get { key: b"key" }]);
    for len in [1, 6, 7, 30_000, third.len() - 1] {
        let cut = begun(len);
        cut.shutdown(Shutdown::Write).unwrap();
        closed(&cut);
        let said = format!("end of stream inside a frame, {len} of");
        wait_for("the log", || node.log().contains(&said).then_some(()));
        let late = begun(len);
        assert_eq!(error(&late), "request not whole after 400 ms, the limit");
        closed(&late);
        assert_eq!(node.exchange(&get)[5..], second[..], "{len} bytes");
    }
    assert!(
        node.log().contains("30000 of 60010 bytes"),
        "{}",
        node.log()
    );
}

#[test]
fn a_length_of_4_gib_takes_no_memory_and_times_out() {
    let node = Node::start_with(&Options {
        limits: "max_value_bytes = 4294901745\nrequest_timeout_ms = 400",
        ..Options::default()
    });
    let before = node.memory_kib("VmRSS");
    let claim = b"\x01\0\x01\xff\xfe\xff\xf1";
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = node.connect();
            stream.write_all(claim).unwrap();
            stream
        })
        .collect();
    // One of them goes on, a byte at a time; that must not win it more time.
    let slow = node.connect();
    (&slow).write_all(claim).unwrap();
    thread::scope(|scope| {
        let trickle = scope.spawn(|| {
            wait_for("the end of patience with a slow client", || {
                thread::sleep(Duration::from_millis(10));
                (&slow).write_all(b"x").err()
            })
        });
        assert_eq!(error(&slow), "request not whole after 400 ms, the limit");
        closed(&slow);
        slow.shutdown(Shutdown::Both).unwrap();
        trickle.join().unwrap();
    });
    let grown = node.memory_kib("VmHWM").saturating_sub(before);
    assert!(
        grown < 200 * (64 + 32) + 1024,
        "{grown} KiB for 200 clients"
    );
    for stream in &clients {
        assert_eq!(error(stream), "request not whole after 400 ms, the limit");
        closed(stream);
    }
}

#[test]
fn a_client_that_never_reads_is_cut_off_and_costs_bounded_memory() {
    let node = Node::start_with(&Options {
        limits: "max_connections = 1\nrequest_timeout_ms = 400",
        ..Options::default()
    });
    let value = vec![b'x'; 1 << 20];
    let mut stream = node.connect();
    set_k(&stream, &value);
    let before = node.memory_kib("VmHWM");
    // A gigabyte of answers.
    stream
        .write_all(&frames(&[Request::Get { key: b"k" }; 1_000]))
        .unwrap();
    wait_for("the node to serve someone else", || {
        let mut other = node.connect();
        other.write_all(&frames(&[Request::Ping])).ok()?;
        let mut status = [0];
        other.read_exact(&mut status).ok()?;
        (status[0] == Status::Ok.byte()).then_some(())
    });
    let grown = node.memory_kib("VmHWM") - before;
    assert!(grown < 4 << 10, "{grown} KiB");
}

#[test]
fn a_frame_that_is_being_skipped_and_never_ends_gets_one_answer() {
    let node = Node::start_with(&Options {
        limits: "request_timeout_ms = 200",
        ..Options::default()
    });
    let stream = node.connect();
    (&stream).write_all(b"\x7f\0\0\0\0\0\x05ab").unwrap();
    assert_eq!(error(&stream), "unknown opcode 0x7f");
    closed(&stream);
}

#[test]
fn a_follower_refuses_a_large_value_without_taking_it_in() {
    let node = Node::start_with(&Options {
        leader: Some(([127, 0, 0, 1], 1).into()),
        ..Options::default()
    });
    let mut stream = node.connect();
    let before = node.memory_kib("VmHWM");
    let value = vec![b'x'; 32 << 20];
    let set = frames(&[Request::Set {
        key: b"k",
        value: &value,
    }]);
    let (start, rest) = set.split_at(1_000);
    stream.write_all(start).unwrap();
    assert_eq!(answer(&stream).0, Status::NotLeader);
    stream.write_all(rest).unwrap();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    let grown = node.memory_kib("VmHWM") - before;
    assert!(grown < 4 << 10, "{grown} KiB");
}

/// All frames of the document that leave the connection open, good and bad, cut in two at every byte.
#[test]
fn a_stream_means_the_same_however_it_is_split() {
    let node = Node::start();
    // Operations on data alone: what others are answered depends on the node's state, or on when they come.
    let is_sent = |v: &&vectors::Vector| {
        let is_request = v.side == vectors::Side::Client;
        // The answers to SCAN, SYNC and WATCH depend on the node's state.
        let is_data =
            v.is_refused() || v.bytes[0] < 0x40 && ![0x0E, 0x10, 0x11].contains(&v.bytes[0]);
        let is_whole = skipped(v).is_none_or(|len| len == v.bytes.len());
        is_request && is_data && is_whole && !v.meaning.starts_with("refused, close")
    };
    let all = vectors::all();
    let stream: Vec<u8> = all
        .iter()
        .filter(is_sent)
        .flat_map(|v| v.bytes.clone())
        .collect();
    let whole = node.exchange(&stream);
    assert!(whole.len() > 200);
    for at in 1..stream.len() {
        let mut connection = node.connect();
        connection.write_all(&stream[..at]).unwrap();
        // The node answers what is whole before it has the rest, so that it has seen the cut.
        let mut answers = vec![0; 1];
        let has_whole_request = at >= all[0].bytes.len();
        if has_whole_request {
            connection.read_exact(&mut answers).unwrap();
        } else {
            answers.clear();
        }
        connection.write_all(&stream[at..]).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        connection.read_to_end(&mut answers).unwrap();
        assert_eq!(answers, whole, "cut at {at}");
    }
}
