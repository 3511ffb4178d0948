//! Properties of every request, every response and every sequence of bytes.
//!
//! A failure prints its input and writes a seed to `tests/protocol/properties.proptest-regressions`, from which it is
//! replayed first at the next run.

use gopherstore::history::{EpochStart, History};
use gopherstore::wire::comparison::{BITS_MAX, List, ListAnswer, Sums, SumsAnswer};
use gopherstore::wire::replication::{
    self, BatchEncoder, Epochs, Fields, Follow, FollowAnswer, Head, Message, Start, StreamOpcode,
};
use gopherstore::wire::request::{self, Disposition, Limits, RequestHeader};
use gopherstore::wire::response::{self, ResponseHeader};
use gopherstore::wire::{Opcode, Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

/// Bytes that look like frames more often than random ones do.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        0_u8..8,
        Just(0x40),
        Just(0x41),
        Just(0x42),
        Just(0x43),
        Just(0x44),
        Just(0x60),
        any::<u8>()
    ];
    let key_len = prop_oneof![0_u16..20, any::<u16>()];
    let value_len = prop_oneof![0_u32..20, any::<u32>()];
    (opcode, key_len, value_len, bytes(60)).prop_map(|(opcode, key_len, value_len, rest)| {
        let header = RequestHeader {
            opcode,
            key_len,
            value_len,
        };
        [&header.encode()[..], &rest].concat()
    })
}

fn digest() -> impl Strategy<Value = u128> {
    any::<[u8; 16]>().prop_map(u128::from_be_bytes)
}

/// Any history of a few epochs: rising epochs, starts that do not fall.
fn history() -> impl Strategy<Value = History> {
    vec((1..u64::MAX >> 8, any::<u64>(), 0..u64::MAX >> 8), 1..20).prop_map(|steps| {
        let (mut epoch, mut start_index) = (0, 1);
        let epochs = steps.into_iter().map(|(rise, nonce, step)| {
            epoch += rise;
            start_index += step;
            EpochStart {
                epoch,
                nonce,
                start_index,
            }
        });
        History::new(epochs.collect()).unwrap()
    })
}

/// Frames of SET and DEL.
fn writes() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec((any::<bool>(), bytes(40), bytes(200)), 1..12).prop_map(|writes| {
        let frame = |(is_set, key, value): (bool, Vec<u8>, Vec<u8>)| {
            let mut frame = Vec::new();
            let request = match is_set {
                true => Request::Set {
                    key: &key,
                    value: &value,
                },
                false => Request::Del { key: &key },
            };
            request.encode(&mut frame).unwrap();
            frame
        };
        writes.into_iter().map(frame).collect()
    })
}

/// Reads the one frame in `stream`, which `after` bytes follow, and writes it again.
fn assert_read_back(expected: Message, stream: &[u8], after: usize) {
    let len = stream.len() - after;
    assert_eq!(
        replication::parse(stream),
        Ok(replication::Parsed::Whole {
            message: expected,
            frame_len: len
        })
    );
    let mut again = Vec::new();
    expected.encode(&mut again).unwrap();
    assert_eq!(again, stream[..len]);
}

/// The limit on an operation's value, where the node's is `value_len_max`.
fn longest_value(opcode: u8, value_len_max: u32) -> u32 {
    let limits = Limits { value_len_max };
    match Opcode::try_from(opcode) {
        Ok(opcode) if opcode.uses_value() => opcode.spec().value_len_max(&limits),
        Ok(_) | Err(_) => value_len_max,
    }
}

proptest! {
    #[test]
    fn fields_of_a_stream_are_read_as_they_were_written(
        which in 0..4, epoch in any::<u64>(), numbers in any::<[u64; 6]>(), digest in digest(), after in bytes(20)
    ) {
        let [a, b, c, d, e, f] = numbers;
        let message = match which {
            0 => Message::SnapshotEnd { epoch, index: a, digest, chunks: b },
            1 => Message::Heartbeat {
                epoch, round: a, last_index: b, committed_index: c, durable_index: d, time_ms: e, digest_index: f,
                digest,
            },
            2 => Message::Lead { epoch, last_index: a, digest },
            _ => Message::Ack { epoch, round: a, last_index: b, applied_index: c, durable_index: d },
        };
        let mut stream = Vec::new();
        message.encode(&mut stream).unwrap();
        stream.extend_from_slice(&after);
        assert_read_back(message, &stream, after.len());
    }

    #[test]
    fn a_history_is_read_as_it_was_written(
        history in history(), epoch in any::<u64>(), from_index in 1_u64.., after in bytes(20)
    ) {
        let epochs = Epochs::of(&history).unwrap();
        let message = Message::SnapshotBegin { epoch, keys: from_index, bytes: epoch, history: epochs };
        let mut stream = Vec::new();
        message.encode(&mut stream).unwrap();
        stream.extend_from_slice(&after);
        assert_read_back(message, &stream, after.len());

        for start in [Start::Snapshot, Start::Resume { from_index }] {
            let answer = FollowAnswer { start, history: epochs };
            let mut value = Vec::new();
            answer.encode(&mut value);
            let read = FollowAnswer::decode(&value).unwrap();
            prop_assert_eq!(read, answer);
            prop_assert_eq!(read.history.to_history(), history.clone());
        }
    }

    #[test]
    fn a_batch_is_read_as_it_was_written(
        is_chunk in any::<bool>(), epoch in any::<u64>(), number in 1..u64::MAX - 20, writes in writes(),
        end in any::<(u64, u64, u128)>(), after in bytes(20)
    ) {
        let mut stream = Vec::new();
        let opcode = if is_chunk { StreamOpcode::SnapshotChunk } else { StreamOpcode::Entries };
        let mut batch = BatchEncoder::new(&mut stream, opcode);
        for frame in &writes {
            prop_assert!(batch.push(frame));
        }
        let (committed_index, time_ms, digest) = end;
        let written = batch.finish(|count| match is_chunk {
            true => Fields::SnapshotChunk { epoch, sequence: number, count },
            false => Fields::Entries { epoch, first_index: number, count, committed_index, time_ms, digest },
        });
        prop_assert_eq!(usize::try_from(written).unwrap(), writes.len());
        stream.extend_from_slice(&after);
        let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&stream) else {
            return Err(TestCaseError::fail("not whole"));
        };
        if let Message::Entries { committed_index, time_ms, digest, .. } = message {
            prop_assert_eq!((committed_index, time_ms, digest), end);
        }
        let (Message::Entries { epoch: read_epoch, first_index: read_number, frames, .. }
            | Message::SnapshotChunk { epoch: read_epoch, sequence: read_number, frames }) = message
        else {
            return Err(TestCaseError::fail("no batch"));
        };
        prop_assert_eq!((read_epoch, read_number), (epoch, number));
        prop_assert_eq!(frames.iter().len(), writes.len());
        prop_assert!(frames.iter().map(|frame| frame.bytes()).eq(writes.iter().map(|frame| &frame[..])));
        assert_read_back(message, &stream, after.len());
    }

    #[test]
    fn a_follow_is_read_as_it_was_written(
        name in vec(any::<u8>(), 0..70), cluster_id in vec(any::<u8>(), 0..1_100), flags in any::<(bool, bool)>(),
        (epoch, nonce, last_index) in any::<(u64, u64, u64)>()
    ) {
        let (wants_snapshot, is_to_lead) = flags;
        let follow = Follow {
            name: &name, wants_snapshot, is_to_lead, epoch, nonce, last_index, cluster_id: &cluster_id,
        };
        let mut stream = Vec::new();
        let is_acceptable = (1..=64).contains(&name.len()) && cluster_id.len() <= 1_024;
        prop_assert_eq!(follow.encode(&mut stream).is_ok(), is_acceptable);
        if !is_acceptable {
            prop_assert!(stream.is_empty());
            return Ok(());
        }
        // Whatever the node's limit on values is.
        let Ok(request::Parsed::Whole(frame)) = request::parse(&stream, &Limits { value_len_max: 0 }) else {
            return Err(TestCaseError::fail("not whole"));
        };
        let Request::Follow { key, value } = frame.request() else {
            return Err(TestCaseError::fail("no FOLLOW"));
        };
        prop_assert_eq!(Follow::decode(key, value), Ok(follow));
    }

    /// A head that is intact is judged by what it says, with whatever value behind it, and nothing panics.
    #[test]
    fn any_batch_gets_a_verdict(
        first_index in prop_oneof![0_u64..3, any::<u64>()], count in prop_oneof![0_u32..4, any::<u32>()],
        writes in writes(), rest in bytes(12)
    ) {
        let value = [writes.concat(), rest].concat();
        let mut stream = Vec::new();
        let fields = Fields::Entries { epoch: 1, first_index, count, committed_index: 0, time_ms: 0, digest: 0 };
        let head = Head::new(fields, &value).unwrap();
        head.encode(&mut stream);
        stream.extend_from_slice(&value);
        if let Ok(read) = replication::parse(&stream) {
            let replication::Parsed::Whole { message: Message::Entries { frames, .. }, frame_len } = read else {
                return Err(TestCaseError::fail("incomplete"));
            };
            prop_assert_eq!(frame_len, stream.len());
            prop_assert_eq!(frames.bytes(), &value[..]);
            prop_assert_eq!(frames.iter().count(), usize::try_from(count).unwrap());
            prop_assert!(first_index > 0 && first_index.checked_add(u64::from(count) - 1).is_some());
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written(
        op in 0..9, key in bytes(300), value in bytes(3_000), after in bytes(20)
    ) {
        let follow_value = &value[..value.len().min(1_050)];
        let request = match op {
            0 => Request::Set { key: &key, value: &value },
            1 => Request::Get { key: &key },
            2 => Request::Del { key: &key },
            3 => Request::Status,
            4 => Request::Discard,
            5 => Request::Sums { key: &key, value: &value[..value.len().min(13)] },
            6 => Request::List { key: &key, value: &value[..value.len().min(525)] },
            7 => Request::Follow { key: &key, value: follow_value },
            _ => Request::Ping,
        };
        let mut stream = Vec::new();
        request.encode(&mut stream).unwrap();
        let len = stream.len();
        stream.extend_from_slice(&after);
        let Ok(request::Parsed::Whole(frame)) = request::parse(&stream, &Limits::default()) else {
            return Err(TestCaseError::fail("not whole"));
        };
        prop_assert_eq!(frame.request(), request);
        prop_assert_eq!(frame.bytes(), &stream[..len]);
    }

    /// Fields of SUMS and LIST and of their answers: those that are taken are written just so again.
    #[test]
    fn any_comparison_gets_a_verdict(
        key in bytes(5), bits in 0..=BITS_MAX, small in 0_u8..4, lens in vec(0_u8..4, 0..4), mut value in bytes(120),
    ) {
        // Mostly zeros where lengths stand, so that more than a few are taken.
        for (at, byte) in value.iter_mut().enumerate() {
            match at {
                8 | 9 | 10 | 12 | 13 | 14 | 16 => *byte = 0,
                11 | 15 | 17 => *byte = small,
                18.. if lens.contains(&(*byte % 8)) => *byte = small,
                _ => {}
            }
        }
        if let Ok(sums) = Sums::decode(&key, &value) {
            prop_assert_eq!(sums.value(), &value[..]);
        }
        if let Ok(list) = List::decode(&key, &value) {
            prop_assert_eq!((list.key(), list.value()), (&key[..], value.clone()));
        }
        let mut written = Vec::new();
        if let Ok(answer) = SumsAnswer::decode(&value, bits) {
            answer.encode(&mut written);
            prop_assert_eq!(&written, &value);
        }
        written.clear();
        if let Ok(answer) = ListAnswer::decode(&value) {
            answer.encode(&mut written);
            prop_assert_eq!(&written, &value);
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written(
        status in any::<u8>(), value in bytes(3_000), after in bytes(20)
    ) {
        let response = Response { status, value: &value };
        let mut stream = Vec::new();
        response.encode(&mut stream).unwrap();
        stream.extend_from_slice(&after);
        match response::parse(&stream) {
            Ok(response::Parsed::Whole(read)) => prop_assert_eq!(read, response),
            Err(_) => prop_assert!(gopherstore::wire::is_text(status)),
            Ok(incomplete) => prop_assert!(false, "{:?}", incomplete),
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written(
        byte in any::<u8>(), key_len in any::<u16>(), value_len in any::<u32>()
    ) {
        let header = RequestHeader { opcode: byte, key_len, value_len };
        prop_assert_eq!(RequestHeader::decode(header.encode()), header);
        let header = ResponseHeader { status: byte, value_len };
        prop_assert_eq!(ResponseHeader::decode(header.encode()), header);
    }

    /// Whatever comes, the verdict is about exactly the frame that the header announces.
    #[test]
    fn any_bytes_get_a_verdict(stream in frame_like(), value_len_max in any::<u32>()) {
        let limits = Limits { value_len_max };
        let header = RequestHeader::decode(*stream.first_chunk().unwrap());
        match request::parse(&stream, &limits) {
            Ok(request::Parsed::Whole(frame)) => {
                prop_assert_eq!(frame.bytes().len(), header.frame_len());
                let max = longest_value(header.opcode, value_len_max);
                prop_assert!(frame.request().value().len() <= usize::try_from(max).unwrap());
                let mut written = Vec::new();
                frame.request().encode(&mut written).unwrap();
                prop_assert_eq!(&written, frame.bytes());
            }
            Ok(request::Parsed::Incomplete { needed }) => {
                prop_assert_eq!(needed, header.frame_len());
                prop_assert!(needed > stream.len());
            }
            Err(error) => match error.disposition() {
                Disposition::Skip(len) => {
                    prop_assert_eq!(len, header.frame_len());
                    prop_assert!(header.value_len <= value_len_max, "{}", error);
                }
                Disposition::Close => {
                    prop_assert!(header.value_len > value_len_max, "{}", error);
                }
            },
        }
    }
}
