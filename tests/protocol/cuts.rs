//! A frame that arrives in pieces: cut at every byte, split at every byte, one byte at a time.

use gopherstore::wire::replication::{self, Head, ParsedHead, ReplicationError};
use gopherstore::wire::request::{self, Limits};
use gopherstore::wire::{Buffer, Request, response};

use crate::vectors;

/// Drives `pieces` through a buffer as a connection does; returns the requests that came out, as frames.
fn receive<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let (mut buffer, mut frames) = (Buffer::new(), Vec::new());
    let mut needed = request::HEADER_LEN;
    for mut piece in pieces {
        while !piece.is_empty() {
            let space = buffer.space(needed);
            let count = space.len().min(piece.len());
            space[..count].copy_from_slice(&piece[..count]);
            buffer.filled(count);
            piece = &piece[count..];
            loop {
                match request::parse(buffer.bytes(), &Limits::default()).unwrap() {
                    request::Parsed::Whole(frame) => {
                        let len = frame.bytes().len();
                        frames.push(frame.bytes().to_vec());
                        buffer.consume(len);
                    }
                    request::Parsed::Incomplete { needed: more } => {
                        assert!(
                            more > buffer.bytes().len(),
                            "waits for bytes that are there"
                        );
                        needed = more;
                        break;
                    }
                }
            }
        }
    }
    assert!(buffer.is_empty(), "{} bytes left", buffer.bytes().len());
    frames
}

#[test]
fn a_request_that_is_cut_at_any_byte_is_incomplete() {
    for vector in vectors::requests() {
        for len in 0..vector.bytes.len() {
            let parsed = request::parse(&vector.bytes[..len], &Limits::default());
            let Ok(request::Parsed::Incomplete { needed }) = parsed else {
                panic!("line {}: {parsed:?} from {len} bytes", vector.line)
            };
            assert!(
                len < needed && needed <= vector.bytes.len(),
                "line {}",
                vector.line
            );
        }
    }
}

#[test]
fn an_answer_that_is_cut_at_any_byte_is_incomplete() {
    for vector in vectors::responses() {
        for len in 0..vector.bytes.len() {
            let parsed = response::parse(&vector.bytes[..len]);
            let Ok(response::Parsed::Incomplete { needed }) = parsed else {
                panic!("line {}: {parsed:?} from {len} bytes", vector.line)
            };
            assert!(
                len < needed && needed <= vector.bytes.len(),
                "line {}",
                vector.line
            );
        }
    }
}

#[test]
fn a_refusal_comes_with_the_header_and_not_before() {
    let refused = vectors::from_clients()
        .filter(|v| v.is_refused() && request::reject_text(v.bytes[0]).is_ok());
    for vector in refused {
        let verdict = request::parse(&vector.bytes, &Limits::default());
        assert!(verdict.is_err());
        for len in 0..=vector.bytes.len() {
            let parsed = request::parse(&vector.bytes[..len], &Limits::default());
            if len < request::HEADER_LEN {
                assert!(
                    parsed.is_ok(),
                    "line {}: judged on {len} bytes",
                    vector.line
                );
            } else {
                assert_eq!(parsed, verdict, "line {}: {len} bytes", vector.line);
            }
        }
    }
}

#[test]
fn a_stream_of_requests_means_the_same_however_it_is_split() {
    let frames: Vec<Vec<u8>> = vectors::requests().map(|v| v.bytes).collect();
    let stream = frames.concat();
    assert_eq!(receive([&stream[..]]), frames, "in one piece");
    assert_eq!(receive(stream.chunks(1)), frames, "one byte at a time");
    for at in 0..=stream.len() {
        let (first, second) = stream.split_at(at);
        assert_eq!(receive([first, second]), frames, "split at {at}");
    }
}

#[test]
fn a_large_value_arrives_whole_between_small_ones() {
    let value: Vec<u8> = (0_u32..100_000).flat_map(u32::to_le_bytes).collect();
    let mut stream = Vec::new();
    for request in [
        Request::Ping,
        Request::Set {
            key: b"large",
            value: &value,
        },
        Request::Get { key: b"large" },
    ] {
        request.encode(&mut stream).unwrap();
    }
    for size in [stream.len(), 1 << 16, 999] {
        let frames = receive(stream.chunks(size));
        assert_eq!(frames.len(), 3);
        assert!(frames[1].ends_with(&value), "pieces of {size}");
    }
}

#[test]
fn a_frame_of_a_stream_that_is_cut_at_any_byte_is_incomplete_or_refused_already() {
    for vector in vectors::from_streams() {
        let verdict = replication::parse(&vector.bytes);
        let mut refused_at = None;
        for len in 0..vector.bytes.len() {
            match replication::parse(&vector.bytes[..len]) {
                Ok(replication::Parsed::Incomplete { needed }) => assert!(
                    len < needed && needed <= vector.bytes.len() && refused_at.is_none(),
                    "line {}: {needed} needed after {len}",
                    vector.line
                ),
                early => {
                    assert_eq!(early, verdict, "line {}: {len} bytes", vector.line);
                    refused_at.get_or_insert(len);
                }
            }
        }
        assert_eq!(verdict.is_err(), vector.is_refused());
        // Faults of the header are found with the header, faults of the key with the key, and none before.
        let expected = match verdict {
            Ok(_) => None,
            Err(ReplicationError::UnknownOpcode { .. } | ReplicationError::KeyLen { .. }) => {
                Some(7)
            }
            Err(
                ReplicationError::HeadChecksum { opcode, .. }
                | ReplicationError::NoFrames { opcode }
                | ReplicationError::ValueTooLong { opcode, .. },
            ) => Some(Head::len_of(opcode)),
            Err(ReplicationError::Index { .. }) => Some(7 + 60),
            Err(ReplicationError::EventIndex | ReplicationError::EventValues { .. }) => {
                Some(7 + 29)
            }
            Err(_) => Some(vector.bytes.len()),
        };
        let judged_at = refused_at.or_else(|| verdict.is_err().then_some(vector.bytes.len()));
        assert_eq!(judged_at, expected, "line {}", vector.line);
    }
}

/// The heart of the two checksums: whatever single bit is damaged, the frame is refused, and nothing is waited for that
/// the leader did not announce.
#[test]
fn any_bit_that_is_flipped_in_a_frame_of_a_stream_is_found() {
    for vector in vectors::from_streams().filter(|v| !v.is_refused()) {
        for bit in 0..vector.bytes.len() * 8 {
            let mut damaged = vector.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let verdict = replication::parse(&damaged);
            assert!(
                verdict.is_err(),
                "line {}: bit {bit}: {verdict:?}",
                vector.line
            );
        }
    }
}

#[test]
fn head_and_value_may_lie_apart() {
    for vector in vectors::from_streams().filter(|v| !v.is_refused()) {
        let Ok(ParsedHead::Whole(head)) = Head::parse(&vector.bytes) else {
            panic!("line {}: no head", vector.line)
        };
        let value = vector.bytes[head.len()..].to_vec();
        assert_eq!(value.len(), head.value_len());
        let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&vector.bytes)
        else {
            panic!("line {}: not whole", vector.line)
        };
        assert_eq!(head.message(&value), Ok(message), "line {}", vector.line);
        let longer = [&value[..], b"x"].concat();
        assert!(matches!(
            head.message(&longer),
            Err(ReplicationError::ValueLen { .. })
        ));
        let mut written = Vec::new();
        Head::new(head.fields(), &value)
            .unwrap()
            .encode(&mut written);
        assert_eq!(written, vector.bytes[..head.len()]);
    }
}
