//! Answers to a well-behaved client.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use gopherstore::wire::response::Response;
use gopherstore::wire::{Opcode, Request, Status};

use crate::node::{Node, Options, wait_for};
use crate::vectors::{self, Side};
use crate::{answer, done, frames, pong};

/// The conversations of `docs/GBP.md` about data: each request that is followed by an answer. The answers to
/// SCAN, SYNC, WATCH, STATUS, DISCARD, SNAPSHOT and FOLLOW depend on the node's state.
fn conversations() -> Vec<(Vec<u8>, Vec<u8>)> {
    let all: Vec<_> = vectors::all()
        .into_iter()
        .filter(|v| !v.is_refused())
        .collect();
    let pairs: Vec<_> = all
        .windows(2)
        .filter(|pair| pair[0].side == Side::Client && matches!(pair[1].side, Side::Node { .. }))
        .filter(|pair| {
            let opcode = pair[0].bytes[0];
            opcode < Opcode::Sync.byte() && opcode != Opcode::Scan.byte()
        })
        .map(|pair| (pair[0].bytes.clone(), pair[1].bytes.clone()))
        .collect();
    assert!(pairs.len() >= 13);
    pairs
}

#[test]
fn the_conversations_of_the_document_happen_as_it_says() {
    let node = Node::start();
    let mut stream = node.connect();
    for (request, expected) in conversations() {
        stream.write_all(&request).unwrap();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, expected, "to {}", request.escape_ascii());
    }
}

#[test]
fn the_same_conversations_pipelined_and_half_closed_or_byte_by_byte() {
    let (requests, answers): (Vec<_>, Vec<_>) = conversations().into_iter().unzip();
    let node = Node::start();
    assert_eq!(node.exchange(&requests.concat()), answers.concat());

    let node = Node::start();
    let mut stream = node.connect();
    for byte in requests.concat() {
        stream.write_all(&[byte]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, answers.concat());
}

#[test]
fn an_answer_is_not_held_back_for_the_rest_of_the_next_request() {
    let node = Node::start();
    let mut stream = node.connect();
    let set = frames(&[Request::Set {
        key: b"k",
        value: b"v",
    }]);
    for at in 1..set.len() {
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        stream.write_all(&set[..at]).unwrap();
        assert_eq!(answer(&stream), pong());
        stream.write_all(&set[at..]).unwrap();
        assert_eq!(answer(&stream), done());
    }
}

#[test]
fn a_hundred_thousand_pipelined_requests_are_answered_in_order() {
    let node = Node::start();
    let mut stream = node.connect();
    let count = 100_000_u32;
    let requests: Vec<u8> = (0..count)
        .flat_map(|n| {
            let (key, value) = ((n % 100).to_be_bytes(), n.to_be_bytes());
            frames(&[
                Request::Set {
                    key: &key,
                    value: &value,
                },
                Request::Get { key: &key },
            ])
        })
        .collect();
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(&requests).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        let expected: Vec<u8> = (0..count)
            .flat_map(|n| [&b"\0\0\0\0\0\0\0\0\0\x04"[..], &n.to_be_bytes()].concat())
            .collect();
        assert!(answers == expected);
    });
}

#[test]
fn clients_see_what_other_clients_wrote() {
    let node = Node::start();
    let (mut one, mut other) = (node.connect(), node.connect());
    for n in 0..100_u8 {
        one.write_all(&frames(&[Request::Set {
            key: b"k",
            value: &[n],
        }]))
        .unwrap();
        assert_eq!(answer(&one), done());
        other
            .write_all(&frames(&[Request::Get { key: b"k" }]))
            .unwrap();
        assert_eq!(answer(&other), (Status::Ok, vec![n]));
    }
}

/// The largest value that is allowed goes in and comes out whole, and its memory goes when it does.
#[test]
fn a_value_of_64_mib_passes_and_leaves_no_memory_behind() {
    let node = Node::start();
    let value: Vec<u8> = (0_u32..16 << 20).flat_map(u32::to_ne_bytes).collect();
    let mut stream = node.connect();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    let before = node.memory_kib("VmRSS");
    let set = frames(&[Request::Set {
        key: b"large",
        value: &value,
    }]);
    stream.write_all(&set).unwrap();
    assert_eq!(answer(&stream), done());
    let peak = node.memory_kib("VmHWM") - before;
    assert!(
        peak < (64 + 8) << 10,
        "{peak} KiB at the most to take a value of 65,536"
    );
    // The old one stays until the new one is whole, and that is all.
    stream.write_all(&set).unwrap();
    assert_eq!(answer(&stream), done());
    let peak = node.memory_kib("VmHWM") - before;
    assert!(
        peak < (128 + 8) << 10,
        "{peak} KiB at the most to replace a value of 65,536"
    );
    stream
        .write_all(&frames(&[Request::Get { key: b"large" }]))
        .unwrap();
    let (status, got) = answer(&stream);
    assert_eq!(status, Status::Ok);
    assert!(got == value, "another value");
    let stored = node.memory_kib("VmRSS") - before;
    assert!(
        stored < (64 + 8) << 10,
        "{stored} KiB for a value of 65,536"
    );
    stream
        .write_all(&frames(&[Request::Del { key: b"large" }]))
        .unwrap();
    assert_eq!(answer(&stream), done());
    wait_for("the memory to be given back", || {
        (node.memory_kib("VmRSS") < before + (8 << 10)).then_some(())
    });
}

#[test]
fn a_follower_names_the_leader_and_has_nothing_to_read() {
    let node = Node::start_with(&Options {
        leader: Some(([127, 0, 0, 1], 1).into()),
        ..Options::default()
    });
    let mut stream = node.connect();
    let leader = (Status::NotLeader, b"127.0.0.1:1".to_vec());
    stream
        .write_all(&frames(&[
            Request::Set {
                key: b"k",
                value: b"v",
            },
            Request::Del { key: b"k" },
            Request::Get { key: b"k" },
            Request::Ping,
        ]))
        .unwrap();
    assert_eq!(answer(&stream), leader);
    assert_eq!(answer(&stream), leader);
    assert_eq!(answer(&stream).0, Status::Loading);
    assert_eq!(answer(&stream), pong());
}

/// Frames of the longest key are longer than what is read straight into an entry, whichever operation they are.
#[test]
fn the_longest_key_passes_with_every_operation_however_it_is_split() {
    let node = Node::start();
    let key: Vec<u8> = (0..65_535_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut stream = node.connect();
    let mut ask = |request: Request<'_>| {
        let frame = frames(&[request]);
        let (start, end) = frame.split_at(100);
        stream.write_all(start).unwrap();
        stream.write_all(end).unwrap();
        answer(&stream)
    };
    for value in [&b"v"[..], &[7; 100_000]] {
        assert_eq!(ask(Request::Set { key: &key, value }), done());
        assert_eq!(
            ask(Request::Get { key: &key }),
            (Status::Ok, value.to_vec())
        );
    }
    assert_eq!(ask(Request::Del { key: &key }), done());
    assert_eq!(
        ask(Request::Get { key: &key }),
        (Status::NotFound, Vec::new())
    );
}

/// A large SET of the same length as the last one is read straight to where it stays; whatever else comes in its place,
/// in whatever pieces, is taken for what it is.
#[test]
fn requests_after_a_large_value_are_parsed_correctly() {
    let node = Node::start();
    let mut stream = node.connect();
    let mut ask = |frame: &[u8], cut: usize| {
        let (start, end) = frame.split_at(cut.min(frame.len()));
        stream.write_all(start).unwrap();
        stream.write_all(end).unwrap();
        answer(&stream)
    };
    let value = |byte: u8, len: usize| vec![byte; len];
    let set = |key: &[u8], value: &[u8]| frames(&[Request::Set { key, value }]);
    let get = |key: &[u8]| frames(&[Request::Get { key }]);
    let unknown = [&b"\x7f"[..], &set(b"key", &value(9, 60_000))[1..]].concat();
    let refused = (Status::Error, b"unknown opcode 0x7f".to_vec());
    // The request, and the value of `key` afterwards, or the answer to a request that is no SET of it.
    let follow_ups = [
        (set(b"key", &value(2, 60_000)), done()),
        (set(b"key", &value(3, 59_999)), done()),
        (set(b"key", &value(4, 60_001)), done()),
        (set(b"key", &value(5, 200_000)), done()),
        (set(b"key", &value(6, 10)), done()),
        (set(b"other", &value(7, 59_998)), done()),
        (set(b"", &value(8, 60_003)), done()),
        (get(b"key"), (Status::Ok, value(1, 60_000))),
        (frames(&[Request::Del { key: b"key" }]), done()),
        (frames(&[Request::Ping]), pong()),
        (unknown, refused),
    ];
    for (frame, expected) in &follow_ups {
        for cut in [0, 1, 6, 7, 8, 12, 30_000, frame.len() - 1] {
            for byte in [0, 1] {
                assert_eq!(ask(&set(b"key", &value(byte, 60_000)), 0), done());
            }
            assert!(ask(frame, cut) == *expected, "{:?}, {cut}", &frame[..7]);
            // The frame is a SET's, and is what its key now has, or another operation's, or refused.
            if frame[0] == 1 {
                let key_len = usize::from(u16::from_be_bytes([frame[1], frame[2]]));
                let (key, value) = frame[7..].split_at(key_len);
                assert!(ask(&get(key), 0) == (Status::Ok, value.to_vec()), "{cut}");
            }
        }
    }
}

/// Requests of all kinds as they come, values of all lengths among them, in pieces of any length: byte for byte the
/// answers of a map.
#[test]
fn mixed_requests_in_any_pieces_are_answered_as_by_a_map() {
    let seed = RandomState::new().hash_one(0) | 1;
    println!("seed {seed}");
    let mut state = seed;
    let mut below = move |count: usize| {
        // Xorshift: of a state that is not 0.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % count
    };
    let lens = [0, 1, 64, 64, 64, 1 << 10, 1_025, 5_000, 16 << 10, 70_000];
    let mut model: BTreeMap<[u8; 1], Vec<u8>> = BTreeMap::new();
    let (mut asked, mut expected) = (Vec::new(), Vec::new());
    for n in 0..4_000_usize {
        let key = &[u8::try_from(below(20)).unwrap()];
        let (request, found) = match below(10) {
            0..6 => (Request::Get { key }, model.get(key).cloned()),
            6 => (Request::Del { key }, model.remove(key).map(|_| Vec::new())),
            _ => {
                let value = vec![n.to_le_bytes()[0]; lens[below(lens.len())]];
                let value = &*model.entry(*key).insert_entry(value).into_mut();
                (Request::Set { key, value }, Some(Vec::new()))
            }
        };
        request.encode(&mut asked).unwrap();
        let status = found.as_ref().map_or(Status::NotFound, |_| Status::Ok);
        let (status, value) = (status.byte(), &found.unwrap_or_default()[..]);
        Response { status, value }.encode(&mut expected).unwrap();
    }
    let node = Node::start();
    let mut stream = node.connect();
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            let mut rest = &asked[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(1 + below(20_000)));
                writer.write_all(piece).unwrap();
                rest = after;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        assert!(answers == expected, "seed {seed}");
    });
}
