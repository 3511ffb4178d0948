//! Frames as people are shown them: every one whole, and of every other the place where it is wrong.

use gopherstore::wire::annotate;
use gopherstore::wire::replication::StreamOpcode;
use gopherstore::wire::transcript::{Fault, Frame, Kind, Side, Transcript};
use gopherstore::wire::{Opcode, Status};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::vectors::{self, Vector};

fn side(vector: &Vector) -> Side {
    match vector.side {
        vectors::Side::Client => Side::Requests,
        vectors::Side::Node { .. } => Side::Responses,
        vectors::Side::Stream => Side::Stream,
    }
}

fn is_whole(vector: &Vector) -> bool {
    // The fields of a request for a stream decide what the bytes behind it are.
    let of_stream = ["bad FOLLOW", "bad WATCH"];
    let is_bad = of_stream.iter().any(|bad| vector.meaning.starts_with(bad));
    !vector.is_refused() && !is_bad
}

/// Whether a dump shows all of it: of a long message, and of many requests, it leaves out a part.
fn is_short(vector: &Vector) -> bool {
    let is_error = matches!(vector.side, vectors::Side::Node { .. }) && vector.bytes[0] == 1;
    vector.bytes.len() <= if is_error { 5 + 64 } else { 400 }
}

fn fault(side: Side, bytes: &[u8]) -> Option<Fault> {
    Transcript::new(side, bytes).find_map(Result::err)
}

/// The bytes that rows of a dump show.
fn shown(rows: &str) -> Vec<u8> {
    let hex = rows.lines().flat_map(|row| row[8..31].split_whitespace());
    hex.map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn every_frame_of_the_document_is_shown_whole_by_itself_and_among_others() {
    for side_of_all in Side::ALL {
        let vectors: Vec<Vector> = vectors::all()
            .into_iter()
            .filter(|vector| is_whole(vector) && is_short(vector) && side(vector) == side_of_all)
            .collect();
        assert!(vectors.len() > 6);
        for vector in &vectors {
            assert_eq!(
                Side::guess(&vector.bytes),
                side_of_all,
                "line {}",
                vector.line
            );
            let mut frames = Transcript::new(side_of_all, &vector.bytes);
            let frame = frames.next().unwrap().unwrap();
            assert_eq!(frame.bytes, vector.bytes, "line {}", vector.line);
            assert!(frames.next().is_none());
            assert!(vector.meaning.contains(frame.name()), "{frame:?}");
            let rows = annotate::frame(frame.kind, frame.bytes, 0x100);
            assert!(rows.starts_with("000100  "), "{rows}");
            assert!(rows.contains(frame.name()), "{rows}");
            assert_eq!(shown(&rows), vector.bytes, "{rows}");
        }
        let all: Vec<u8> = vectors
            .iter()
            .flat_map(|vector| vector.bytes.clone())
            .collect();
        assert_eq!(Side::guess(&all), side_of_all);
        let frames: Vec<Frame> = Transcript::new(side_of_all, &all)
            .map(Result::unwrap)
            .collect();
        assert_eq!(frames.len(), vectors.len());
        assert!(
            frames
                .iter()
                .zip(1..)
                .all(|(frame, number)| frame.number == number)
        );
        let together: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.bytes.to_vec())
            .collect();
        assert_eq!(together, all);
    }
}

#[test]
fn every_name_of_the_protocol_is_shown() {
    let mut named = Vec::new();
    for vector in vectors::all().iter().filter(|vector| is_whole(vector)) {
        let frames = Transcript::new(side(vector), &vector.bytes);
        named.extend(frames.map(|frame| frame.unwrap().name()));
    }
    // ERROR has no vector of its own: what it says is the node's affair.
    let error = Transcript::new(Side::Responses, b"\x01\0\0\0\x02no").next();
    named.push(error.unwrap().unwrap().name());
    let requests = Opcode::ALL.into_iter().map(Opcode::name);
    let answers = Status::ALL.into_iter().map(Status::name);
    let stream = StreamOpcode::ALL.into_iter().map(StreamOpcode::name);
    for name in requests.chain(answers).chain(stream) {
        assert!(named.contains(&name), "{name}");
    }
}

#[test]
fn a_refused_frame_is_wrong_for_the_documents_reason_and_at_its_place() {
    let mut judged = 0;
    for vector in vectors::all().iter().filter(|vector| !is_whole(vector)) {
        let reason = vector.meaning.split_once(": ").unwrap().1;
        // A node's limit is not known here, and of an answer not what was asked.
        let of_node = [67_108_864, 67_108_872, 67_108_877];
        let of_node = of_node.map(|limit| format!("limit {limit}"));
        if of_node.iter().any(|limit| reason.ends_with(limit))
            || side(vector) == Side::Responses && vector.bytes[0] == 0
        {
            continue;
        }
        let fault = fault(side(vector), &vector.bytes).unwrap();
        assert_eq!(
            (fault.reason.as_str(), fault.needed),
            (reason, None),
            "{fault}"
        );
        assert!(fault.at < vector.bytes.len(), "{fault:?}");
        judged += 1;
    }
    assert!(judged > 35, "{judged}");
    for (side, bytes, at) in [
        (Side::Requests, b"\x99\0\0\0\0\0\0".as_slice(), 0),
        (Side::Requests, b"\x04\0\x01\0\0\0\0k", 1),
        (Side::Requests, b"\x02\0\0\0\0\0\x01v", 3),
        (Side::Requests, b"\x99", 0),
        (Side::Requests, b"GET k", 0),
        (Side::Responses, b"\x77\0\0\0\0", 0),
        (Side::Responses, b"\x99\0\0\0\0", 0),
        (Side::Responses, b"\x03\0\0\0\x01x", 1),
        (Side::Stream, b"\x61\0\x01\0\0\0\0", 1),
        (Side::Stream, b"\x01", 0),
    ] {
        // Behind another frame as well as at the beginning.
        let ping: &[u8] = match side {
            Side::Requests => b"\x04\0\0\0\0\0\0",
            Side::Responses => b"\0\0\0\0\x04PONG",
            Side::Stream => b"",
        };
        for before in [b"".as_slice(), ping] {
            let fault = fault(side, &[before, bytes].concat()).unwrap();
            assert_eq!(
                (fault.frame_at, fault.at),
                (before.len(), before.len() + at),
                "{fault}"
            );
        }
    }
}

#[test]
fn a_client_frame_that_is_wrong_in_a_batch_is_pointed_at() {
    let mut checked = 0;
    for vector in vectors::from_streams().filter(Vector::is_refused) {
        let after = |what: &str| vector.meaning.contains(what);
        // Behind header and key of 7 and 60 bytes, 28 in a chunk or 29 in an event, and a SET of 20 where there is one.
        let value_at = match vector.bytes[0] {
            0x63 => 35,
            0x69 => 36,
            _ => 67,
        };
        let expected =
            if after("operation GET after 1 others") || after("operation EPOCH after 1 others") {
                value_at + 20
            } else if after("cut frame after 0 others") || after("operation GET after 0 others") {
                value_at
            } else if after("bad frame after 0 others: value of 1 bytes")
                || after("value of 15 bytes in EPOCH after 0 others")
            {
                value_at + 3
            } else {
                continue;
            };
        assert_eq!(fault(Side::Stream, &vector.bytes).unwrap().at, expected);
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn behind_a_follow_both_sides_are_read_as_the_stream() {
    let of = |wanted: fn(&Vector) -> bool| {
        let vector = vectors::all()
            .into_iter()
            .find(|v| wanted(v) && is_whole(v));
        vector.unwrap().bytes
    };
    let follow = of(|v| v.meaning.starts_with("FOLLOW"));
    let answer = of(|v| v.meaning.starts_with("OK resume"));
    let ack = of(|v| v.meaning.starts_with("ACK"));
    let beat = of(|v| v.meaning.starts_with("HEARTBEAT"));
    for (side, bytes, kinds) in [
        (
            Side::Requests,
            [&follow[..], &ack, &ack].concat(),
            [Kind::Request, Kind::Stream, Kind::Stream],
        ),
        (
            Side::Responses,
            [&answer[..], &beat, &beat].concat(),
            [Kind::FollowResponse, Kind::Stream, Kind::Stream],
        ),
    ] {
        assert_eq!(Side::guess(&bytes), side);
        let frames = Transcript::new(side, &bytes).map(|frame| frame.unwrap().kind);
        assert_eq!(frames.collect::<Vec<_>>(), kinds);
    }
    // Without one, they are no requests.
    assert!(fault(Side::Requests, &ack).is_some());
    // One by one, as a client sees them.
    for (rows, name) in [
        (annotate::sent(&follow), "cluster_id"),
        (annotate::sent(&ack), "applied_index"),
        (annotate::received(&answer), "from_index"),
        (annotate::received(&beat), "digest_index"),
    ] {
        assert!(rows.contains(name) && !rows.contains('!'), "{rows}");
    }
    assert!(annotate::received(b"error: no").contains("'e', which is text"));
}

#[test]
fn some_bytes_are_frames_of_two_sides() {
    // An ERROR without a message and one of 253 bytes; or a SET of the empty key.
    let bytes = [b"\x01\0\0\0\0\x01\0\0\0\xfd".as_slice(), &[b'x'; 253]].concat();
    assert_eq!(fault(Side::Responses, &bytes), None);
    assert_eq!(fault(Side::Requests, &bytes), None);
    assert_eq!(Side::guess(&bytes), Side::Requests);
}

#[test]
fn bytes_that_are_wrong_or_cut_are_of_the_likeliest_side() {
    let long_set = [
        b"\x01\0\x01\x00\x98\x96\x80k".as_slice(),
        &[b'v'; 1_000_000],
    ]
    .concat();
    for (bytes, side) in [
        (b"\x01\0\x07\0\0\0\x06user1".as_slice(), Side::Requests),
        (b"\x01\0", Side::Requests),
        (&long_set, Side::Requests),
        (b"\x02\0\x01\0\0\0\x01kv", Side::Requests),
        (b"\x99\0\0\0\0\0\0", Side::Requests),
        (b"\0\0\0\0\x06act", Side::Responses),
        (b"\0\0", Side::Responses),
        (b"\x01\0\0\0\x06abc", Side::Responses),
        (b"\x61\0\x1c\0\0\0\0\0", Side::Stream),
        (b"\x61", Side::Stream),
    ] {
        assert_eq!(Side::guess(bytes), side, "{bytes:02x?}");
    }
}

#[test]
fn a_cut_at_any_byte_is_told_by_what_is_missing() {
    for side_of_all in Side::ALL {
        let whole = vectors::all()
            .into_iter()
            .filter(|vector| is_whole(vector) && is_short(vector) && side(vector) == side_of_all);
        let frames: Vec<Vec<u8>> = whole.map(|vector| vector.bytes).collect();
        let all = frames.concat();
        let (mut start, mut number) = (0, 0);
        for frame in &frames {
            number += 1;
            for len in 1..frame.len() {
                let cut = start + len;
                let fault = fault(side_of_all, &all[..cut]).unwrap();
                let place = (fault.number, fault.frame_at, fault.at);
                assert_eq!(place, (number, start, cut));
                assert!(fault.needed.unwrap() > len && fault.needed.unwrap() <= frame.len());
                let rows = annotate::frame(fault.kind, &all[start..cut], start);
                assert_eq!(shown(&rows), &all[start..cut], "{rows}");
            }
            start += frame.len();
            assert_eq!(fault(side_of_all, &all[..start]), None);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_none_is_passed_over(
        bytes in vec(prop_oneof![Just(0_u8), 0_u8..8, 0x60_u8..0x69, any::<u8>()], 0..200),
    ) {
        let _ = Side::guess(&bytes);
        for side in Side::ALL {
            let mut at = 0;
            for frame in Transcript::new(side, &bytes) {
                match frame {
                    Ok(frame) => {
                        prop_assert_eq!(frame.at, at);
                        prop_assert!(!annotate::frame(frame.kind, frame.bytes, at).is_empty());
                        at += frame.bytes.len();
                    }
                    Err(fault) => {
                        prop_assert_eq!(fault.frame_at, at);
                        prop_assert!((at..=bytes.len()).contains(&fault.at));
                        prop_assert!(!annotate::frame(fault.kind, &bytes[at..], at).is_empty());
                        at = bytes.len();
                    }
                }
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
