//! The properties that must hold for every sequence of bytes that reaches a decoder of GBP.
//!
//! Included by the fuzz target (`fuzz/targets/decode.rs`) and by an ordinary test (`tests/protocol/fuzz.rs`).
//!
//! 1. Nothing panics.
//! 2. A naive decoder, written differently, agrees.
//! 3. What is decoded encodes to the bytes that it came from, and the other way round.
//! 4. Every strict prefix of a frame is incomplete, and says that it needs more than there is, up to the frame's end.
//! 5. A refusal needs the header alone, and skips what the header declares.
//! 6. However the bytes are cut on their way through a [`Buffer`], the frames are the same, and its memory follows
//!    the bytes that have arrived and not the lengths that are claimed.
//! 7. The same holds for frames of the replication stream, once as they come and once with their checksums put right,
//!    since random bytes hardly ever have right ones.

use gopherstore::wire::batch::{Batch, BatchAnswer};
use gopherstore::wire::conditional::{Add, Found, Put, Take, Want, sum_of};
use gopherstore::wire::expiry::{SetAt, expiry_of, ttl_of};
use gopherstore::wire::replication::{
    self, Epochs, Follow, FollowAnswer, Message, ReplicationError, Watch,
};
use gopherstore::wire::request::{self, Disposition, Limits, RequestHeader, reject_text};
use gopherstore::wire::response::{self, ResponseHeader};
use gopherstore::wire::scan::{Scan, ScanAnswer};
use gopherstore::wire::{
    Buffer, GROWTH_BYTES_MAX, KEY_LEN_MAX, Opcode, Request, RequestError, Response, ResponseError,
    Status,
};

/// Limits on values to judge each input by: none at all, a few bytes, the default, and all that a length can say.
const VALUE_LEN_MAX: [u32; 4] = [0, 16, 64 << 20, u32::MAX];

/// Checks all of the above on `input`, and panics where something does not hold.
pub(super) fn check(input: &[u8]) {
    for value_len_max in VALUE_LEN_MAX {
        let limits = Limits { value_len_max };
        let outcomes = requests(input, &limits);
        assert_eq!(
            requests_in_pieces(input, &limits),
            outcomes,
            "in pieces, with the limit {value_len_max}, it reads differently"
        );
    }
    responses(input);
    first_byte(input);
    round_trip(input);
    stream(input);
    stream(&repaired(input));
    following(input);
    operands(input);
    scan(input);
    batch(input);
}

/// The result for one frame.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was whole; its bytes.
    Whole(Vec<u8>),
    /// It was refused.
    Refused(RequestError),
    /// It has not all arrived; how many bytes it needs.
    Incomplete(usize),
}

/// One request as a plain reading of GBP §2, §3 and §6 has it, byte after byte and in 64-bit numbers.
#[derive(Debug, PartialEq, Eq)]
enum Naive {
    Incomplete {
        needed: u64,
    },
    Close,
    Skip {
        frame_len: u64,
    },
    Whole {
        opcode: u8,
        key: Vec<u8>,
        value: Vec<u8>,
    },
}

/// The operations of GBP §3: opcode, whether there is a key, and what limits the value.
const OPERATIONS: [(u8, bool, NaiveValue); 21] = [
    (0x01, true, NaiveValue::OfNode),
    (0x02, true, NaiveValue::None),
    (0x03, true, NaiveValue::None),
    (0x04, false, NaiveValue::None),
    (0x05, true, NaiveValue::OfNodeAnd(8)),
    (0x06, true, NaiveValue::OfNodeAnd(13)),
    (0x07, true, NaiveValue::UpTo(4_100)),
    (0x08, true, NaiveValue::UpTo(25)),
    (0x0B, true, NaiveValue::UpTo(9)),
    (0x0C, true, NaiveValue::None),
    (0x0E, true, NaiveValue::UpTo(65_552)),
    (0x0F, false, NaiveValue::UpTo(262_656)),
    (0x10, false, NaiveValue::UpTo(29)),
    (0x11, true, NaiveValue::UpTo(25)),
    (0x40, false, NaiveValue::None),
    (0x41, false, NaiveValue::None),
    (0x42, true, NaiveValue::UpTo(13)),
    (0x43, true, NaiveValue::UpTo(525)),
    (0x44, false, NaiveValue::None),
    (0x60, true, NaiveValue::UpTo(1_050)),
    (0x67, false, NaiveValue::UpTo(16)),
];

/// The limit of an operation's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NaiveValue {
    /// It has none.
    None,
    /// The node's limit.
    OfNode,
    /// The node's limit, and so many bytes before it.
    OfNodeAnd(u32),
    /// A limit of its own, in bytes.
    UpTo(u32),
}

/// Whether there is a key, and what limits the value; none for an opcode that is unknown.
fn operation(opcode: u8) -> Option<(bool, NaiveValue)> {
    let row = OPERATIONS.into_iter().find(|row| row.0 == opcode);
    row.map(|(_, has_key, value)| (has_key, value))
}

/// The longest value that a header may declare, in bytes.
fn longest(opcode: u8, value_len_max: u32) -> u32 {
    match operation(opcode) {
        Some((_, NaiveValue::UpTo(max))) => max,
        Some((_, NaiveValue::OfNodeAnd(more))) => value_len_max.saturating_add(more),
        Some((_, NaiveValue::None | NaiveValue::OfNode)) | None => value_len_max,
    }
}

fn naive_request(bytes: &[u8], value_len_max: u32) -> Naive {
    let number = |from: usize, to: usize| {
        bytes[from..to]
            .iter()
            .fold(0, |n, &b| n * 256 + u64::from(b))
    };
    if bytes.len() < 7 {
        return Naive::Incomplete { needed: 7 };
    }
    let (opcode, key_len, value_len) = (bytes[0], number(1, 3), number(3, 7));
    let frame_len = 7 + key_len + value_len;
    let is_too_long = value_len > longest(opcode, value_len_max).into();
    let is_allowed = operation(opcode).is_some_and(|(has_key, value)| {
        (has_key || key_len == 0) && (value != NaiveValue::None || value_len == 0)
    });
    if is_too_long || !is_allowed {
        return if value_len > value_len_max.into() {
            Naive::Close
        } else {
            Naive::Skip { frame_len }
        };
    }
    if (bytes.len() as u64) < frame_len {
        return Naive::Incomplete { needed: frame_len };
    }
    let mut payload = bytes[7..].iter().copied();
    Naive::Whole {
        opcode,
        key: (0..key_len).filter_map(|_| payload.next()).collect(),
        value: (0..value_len).filter_map(|_| payload.next()).collect(),
    }
}

/// Reads `input` as requests, one after another, checking each.
fn requests(input: &[u8], limits: &Limits) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut rest = input;
    loop {
        let naive = naive_request(rest, limits.value_len_max);
        match request::parse(rest, limits) {
            Ok(request::Parsed::Incomplete { needed }) => {
                assert_eq!(
                    naive,
                    Naive::Incomplete {
                        needed: needed as u64
                    }
                );
                assert!(needed > rest.len());
                assert!(
                    needed as u64 <= 7 + 65_535 + u64::from(limits.value_len_max.max(262_144)) + 13
                );
                outcomes.push(Outcome::Incomplete(needed));
                return outcomes;
            }
            Ok(request::Parsed::Whole(frame)) => {
                let len = frame.bytes().len();
                assert_eq!(frame.bytes(), &rest[..len]);
                let request = frame.request();
                assert_eq!(
                    naive,
                    Naive::Whole {
                        opcode: request.opcode().byte(),
                        key: request.key().to_vec(),
                        value: request.value().to_vec(),
                    }
                );
                let mut encoded = vec![0xAA];
                request.encode(&mut encoded).unwrap();
                assert_eq!(&encoded[1..], frame.bytes(), "decoded and encoded again");
                let whole = Ok(request::Parsed::Whole(frame));
                assert_eq!(request::parse(frame.bytes(), limits), whole);
                for cut in cuts(len) {
                    let needed = if cut < 7 { 7 } else { len };
                    assert_eq!(
                        request::parse(&rest[..cut], limits),
                        Ok(request::Parsed::Incomplete { needed }),
                        "cut at {cut} of {len}"
                    );
                }
                outcomes.push(Outcome::Whole(frame.bytes().to_vec()));
                rest = &rest[len..];
            }
            Err(error) => {
                let header: [u8; 7] = *rest.first_chunk().expect("a refusal has a header");
                let header = RequestHeader::decode(header);
                assert_eq!(header.encode(), rest[..7]);
                assert_eq!(
                    request::parse(&rest[..7], limits),
                    Err(error),
                    "the header alone"
                );
                assert_message(&error.to_string());
                outcomes.push(Outcome::Refused(error));
                let (len, max) = (
                    header.value_len,
                    longest(header.opcode, limits.value_len_max),
                );
                let skip = (len <= limits.value_len_max).then(|| header.frame_len());
                // Of a frame that has a value it is the length that is wrong, of any other something else in the first
                // place.
                let is_length = error == RequestError::ValueTooLong { len, max, skip };
                assert_eq!(
                    is_length,
                    operation(header.opcode).is_some_and(|(has_key, value)| {
                        value != NaiveValue::None && (has_key || header.key_len == 0)
                    }),
                    "{error}"
                );
                match error.disposition() {
                    Disposition::Close => {
                        assert_eq!(naive, Naive::Close);
                        return outcomes;
                    }
                    Disposition::Skip(frame_len) => {
                        assert_eq!(
                            naive,
                            Naive::Skip {
                                frame_len: frame_len as u64
                            }
                        );
                        assert_eq!(frame_len, header.frame_len());
                        let Some(after) = rest.get(frame_len..) else {
                            return outcomes;
                        };
                        rest = after;
                    }
                }
            }
        }
    }
}

/// Reads `input` as a connection does: some bytes at a time into a [`Buffer`], taking what is whole.
fn requests_in_pieces(input: &[u8], limits: &Limits) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut buffer = Buffer::new();
    let (mut arrived, mut needed, mut skip) = (0, request::HEADER_LEN, 0_usize);
    // Sizes of pieces follow from the input, so that a finding can be run again.
    let mut state = input
        .iter()
        .fold(1_u32, |n, &b| n.wrapping_mul(31).wrapping_add(b.into()));
    while arrived < input.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let piece = if state >> 31 == 0 {
            1
        } else {
            1 + (state >> 8) as usize % 97
        };
        let space = buffer.space(needed);
        assert!(
            !space.is_empty(),
            "a read into no space looks like the stream's end"
        );
        let count = piece.min(space.len()).min(input.len() - arrived);
        space[..count].copy_from_slice(&input[arrived..arrived + count]);
        buffer.filled(count);
        arrived += count;
        assert!(
            buffer.capacity() <= arrived + GROWTH_BYTES_MAX,
            "memory runs ahead"
        );

        loop {
            let skipped = skip.min(buffer.bytes().len());
            buffer.consume(skipped);
            skip -= skipped;
            if skip > 0 {
                needed = request::HEADER_LEN;
                break;
            }
            match request::parse(buffer.bytes(), limits) {
                Ok(request::Parsed::Incomplete { needed: more }) => {
                    assert!(more > buffer.bytes().len());
                    needed = more;
                    break;
                }
                Ok(request::Parsed::Whole(frame)) => {
                    let len = frame.bytes().len();
                    outcomes.push(Outcome::Whole(frame.bytes().to_vec()));
                    buffer.consume(len);
                }
                Err(error) => {
                    outcomes.push(Outcome::Refused(error));
                    match error.disposition() {
                        Disposition::Close => return outcomes,
                        Disposition::Skip(frame_len) => skip = frame_len,
                    }
                }
            }
        }
    }
    // An unfinished skip is all that there is to say about the stream's end; otherwise a frame is awaited.
    if skip == 0 {
        outcomes.push(Outcome::Incomplete(needed.max(request::HEADER_LEN)));
    }
    outcomes
}

/// Reads `input` as responses, one after another, checking each.
fn responses(input: &[u8]) {
    let mut rest = input;
    loop {
        let is_text = rest.first().is_some_and(|&first| is_naive_text(first));
        match response::parse(rest) {
            Err(ResponseError::Text { first }) => {
                assert!(is_text);
                assert_eq!(rest[0], first);
                assert_eq!(
                    response::parse(&rest[..1]),
                    Err(ResponseError::Text { first })
                );
                assert_message(&ResponseError::Text { first }.to_string());
                return;
            }
            Ok(response::Parsed::Incomplete { needed }) => {
                assert!(!is_text);
                assert!(needed > rest.len());
                let declared = rest
                    .get(1..5)
                    .map_or(0, |len| len.iter().fold(0, |n, &b| n * 256 + u64::from(b)));
                assert_eq!(needed as u64, 5 + declared);
                return;
            }
            Ok(response::Parsed::Whole(response)) => {
                assert!(!is_text);
                let len = response.frame_len();
                assert_eq!(response.status, rest[0]);
                assert_eq!(response.value, &rest[5..len]);
                assert_eq!(
                    Status::try_from(response.status).map(Status::byte).ok(),
                    [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]
                        .contains(&response.status)
                        .then_some(response.status)
                );
                let header: [u8; 5] = *rest.first_chunk().expect("a whole response has a header");
                let header = ResponseHeader::decode(header);
                assert_eq!(header.frame_len(), len);
                assert_eq!(header.encode(), rest[..5]);
                let mut encoded = Vec::new();
                response.encode(&mut encoded).unwrap();
                assert_eq!(encoded, &rest[..len], "decoded and encoded again");
                for cut in cuts(len) {
                    let needed = if cut < 5 { 5 } else { len };
                    assert_eq!(
                        response::parse(&rest[..cut]),
                        Ok(response::Parsed::Incomplete { needed }),
                        "cut at {cut} of {len}"
                    );
                }
                rest = &rest[len..];
            }
        }
    }
}

/// Whether a connection is told from its first byte that it speaks text.
fn first_byte(input: &[u8]) {
    let Some(&first) = input.first() else { return };
    let expected = if is_naive_text(first) && operation(first).is_none() {
        Err(RequestError::Text { first })
    } else {
        Ok(())
    };
    assert_eq!(reject_text(first), expected);
    if let Err(error) = expected {
        assert_eq!(error.disposition(), Disposition::Close);
        assert_message(&error.to_string());
    }
}

fn is_naive_text(byte: u8) -> bool {
    let char = char::from(byte);
    char.is_ascii_graphic() || " \t\r\n".contains(char)
}

/// Any key and any value go into a frame and come out of it.
fn round_trip(input: &[u8]) {
    let at = input
        .first()
        .map_or(0, |&first| usize::from(first).min(input.len()));
    let (key, value) = input.split_at(at.min(KEY_LEN_MAX));
    let limits = Limits {
        value_len_max: u32::MAX,
    };
    assert_eq!(Opcode::ALL.map(Opcode::byte), OPERATIONS.map(|row| row.0));
    for opcode in Opcode::ALL {
        let max = len(longest(opcode.byte(), u32::MAX).into());
        let request = Request::new(opcode, key, &value[..value.len().min(max)]);
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        assert_eq!(Opcode::try_from(bytes[0]), Ok(request.opcode()));
        let Ok(request::Parsed::Whole(frame)) = request::parse(&bytes, &limits) else {
            panic!("{request:?} is not read back from {bytes:?}")
        };
        assert_eq!((frame.request(), frame.bytes()), (request, &*bytes));
    }
    for status in Status::ALL {
        let response = Response {
            status: status.byte(),
            value,
        };
        let mut bytes = Vec::new();
        response.encode(&mut bytes).unwrap();
        assert_eq!(
            response::parse(&bytes),
            Ok(response::Parsed::Whole(response))
        );
    }
}

/// One frame of the replication stream as a plain reading of GBP §6 has it.
#[derive(Debug, PartialEq, Eq)]
enum NaiveStream {
    Incomplete { needed: u64 },
    Refused,
    Whole { frame_len: usize },
}

/// Opcode, the key's length, and whether there is a value.
const STREAM: [(u8, u64, bool); 8] = [
    (0x61, 60, true),
    (0x62, 32, true),
    (0x63, 28, true),
    (0x64, 48, false),
    (0x65, 80, false),
    (0x66, 48, false),
    (0x68, 40, false),
    (0x69, 29, true),
];

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// A length as a size in memory; none that is tried here is longer.
fn len(number: u64) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}

/// CRC-32C, bit by bit.
fn naive_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

fn naive_stream(bytes: &[u8]) -> NaiveStream {
    if bytes.len() < 7 {
        return NaiveStream::Incomplete { needed: 7 };
    }
    let Some((opcode, key_len, has_value)) = STREAM.into_iter().find(|s| s.0 == bytes[0]) else {
        return NaiveStream::Refused;
    };
    if number(&bytes[1..3]) != key_len {
        return NaiveStream::Refused;
    }
    let needed = 7 + key_len;
    if (bytes.len() as u64) < needed {
        return NaiveStream::Incomplete { needed };
    }
    let (head, rest) = bytes.split_at(len(needed));
    let value_len = number(&head[3..7]);
    let (covered, checksum) = head.split_at(head.len() - 4);
    if number(checksum) != u64::from(naive_crc(covered)) {
        return NaiveStream::Refused;
    }
    let key = &head[7..];
    let is_batch = opcode == 0x61 || opcode == 0x63;
    let is_event = opcode == 0x69;
    let count = match opcode {
        0x61 | 0x63 => number(&key[16..20]),
        0x69 => number(&key[17..21]),
        _ => 0,
    };
    let limit = match opcode {
        0x61 | 0x63 | 0x69 if count == 1 => u64::from(u32::MAX),
        0x61 | 0x63 | 0x69 => 1_048_576,
        0x62 => 2 + 24 * 65_535,
        _ => 0,
    };
    assert_eq!(limit > 0, has_value);
    let first = u128::from(number(&key[8..16]));
    let is_out_of_range =
        opcode == 0x61 && (first == 0 || first + u128::from(count) > u128::from(u64::MAX) + 1);
    let is_bad_event = is_event && (first == 0 || key[16] > 1);
    if value_len > limit
        || ((is_batch || is_event) && count == 0)
        || is_out_of_range
        || is_bad_event
    {
        return NaiveStream::Refused;
    }
    let needed = needed + value_len;
    let Some(value) = rest.get(..len(value_len)) else {
        return NaiveStream::Incomplete { needed };
    };
    if number(&key[key.len() - 8..key.len() - 4]) != u64::from(naive_crc(value)) {
        return NaiveStream::Refused;
    }
    let is_good = match opcode {
        0x61 | 0x63 => {
            naive_records(value, opcode).is_some_and(|frames| frames.len() as u64 == count)
        }
        0x62 => is_naive_history(value),
        0x69 => naive_changes(value, key[16] == 1) == Some(count),
        _ => true,
    };
    match is_good {
        true => NaiveStream::Whole {
            frame_len: len(needed),
        },
        false => NaiveStream::Refused,
    }
}

/// Whether a frame with these operands is a record; EPOCH only where these are taken.
fn is_naive_record(opcode: u8, operands: &[u8], takes_epochs: bool) -> bool {
    match opcode {
        1 | 3 => true,
        5 => operands.len() >= 8 && number(&operands[..8]) > 0,
        0x0B if operands.len() == 9 => match operands[0] {
            0 => number(&operands[1..]) == 0,
            3 => number(&operands[1..]) > 0,
            _ => false,
        },
        0x0F => takes_epochs && is_naive_batch(operands),
        0x67 => takes_epochs && operands.len() == 16,
        _ => false,
    }
}

/// Whether a value is that of a BATCH of effects.
fn is_naive_batch(value: &[u8]) -> bool {
    let frames = naive_batch(value);
    frames.is_some_and(|frames| {
        frames
            .iter()
            .all(|(opcode, value)| is_naive_record(*opcode, value, false))
    })
}

/// The records of a batch, those EPOCH of one of ENTRIES too; none where it holds anything else.
fn naive_records(mut value: &[u8], batch: u8) -> Option<Vec<&[u8]>> {
    let mut frames = Vec::new();
    while !value.is_empty() {
        match naive_request(value, u32::MAX) {
            Naive::Whole {
                opcode,
                value: operands,
                ..
            } if is_naive_record(opcode, &operands, batch == 0x61) => {
                let frame_len = 7 + number(&value[1..3]) + number(&value[3..7]);
                let (frame, rest) = value.split_at(len(frame_len));
                frames.push(frame);
                value = rest;
            }
            Naive::Incomplete { .. } | Naive::Close | Naive::Skip { .. } | Naive::Whole { .. } => {
                return None;
            }
        }
    }
    Some(frames)
}

/// Opcodes and values of the requests in the value of a BATCH; none where it is no good one.
fn naive_batch(mut value: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let mut requests = Vec::new();
    while !value.is_empty() {
        let Naive::Whole {
            opcode,
            key,
            value: operands,
        } = naive_request(value, u32::MAX)
        else {
            return None;
        };
        let is_good = match opcode {
            1..=3 | 0x0C => true,
            5..=8 | 0x0B => naive_operands(opcode, &operands),
            _ => false,
        };
        let frame_len = 7 + key.len() + operands.len();
        if !is_good || frame_len > 4_096 {
            return None;
        }
        value = &value[frame_len..];
        requests.push((opcode, operands));
    }
    (1..=64).contains(&requests.len()).then_some(requests)
}

/// The requests of a BATCH and its answer: what is accepted, as a plain reading of GBP §4 has it.
fn batch(input: &[u8]) {
    let naive = naive_batch(input);
    match Batch::decode(input) {
        Ok(batch) => {
            let frames = batch.frames();
            let read: Vec<_> = frames
                .iter()
                .map(|frame| (frame.opcode().byte(), frame.value().to_vec()))
                .collect();
            assert_eq!(Some(read), naive);
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|frame| frame.bytes().to_vec())
                .collect();
            assert_eq!(bytes, input);
            let writes = frames
                .iter()
                .any(|frame| !matches!(frame.opcode().byte(), 2 | 0x0C));
            assert_eq!(batch.writes(), writes);
        }
        Err(error) => {
            assert_eq!(naive, None, "{error:?}");
            assert_message(&error.reason);
            assert!(error.at < 7 + input.len(), "{error:?}");
        }
    }
    for count in 0..3 {
        if let Some(BatchAnswer::Done(responses)) = BatchAnswer::of_ok(input, count) {
            assert_eq!(responses.len(), count);
            let bytes = responses.iter().map(|response| 5 + response.value.len());
            assert_eq!(bytes.sum::<usize>(), input.len());
        }
        if let Some(BatchAnswer::Conflict { position, response }) =
            BatchAnswer::of_conflict(input, count)
        {
            assert!(usize::from(position) < count && response.status == 5);
            assert_eq!(6 + response.value.len(), input.len());
        }
    }
}

/// The number of changes in the value of an EVENT; none where it holds anything else.
fn naive_changes(mut value: &[u8], has_values: bool) -> Option<u64> {
    let mut count = 0;
    while !value.is_empty() {
        let header = value.get(..7)?;
        let (key_len, value_len) = (number(&header[1..3]), number(&header[3..7]));
        let operands = match header[0] {
            1 => 0,
            3 if value_len == 0 => 0,
            5 if value_len >= 8 => 8,
            0x0B if value_len == 9 => 9,
            0x67 if key_len == 0 && value_len == 16 => 16,
            _ => return None,
        };
        let sent = if has_values { value_len } else { operands };
        let after = value.get(len(7 + key_len + sent)..)?;
        let operands = &value[len(7 + key_len)..len(7 + key_len + operands)];
        let is_record = is_naive_record(header[0], operands, true);
        if !is_record {
            return None;
        }
        value = after;
        count += 1;
    }
    Some(count)
}

fn is_naive_history(value: &[u8]) -> bool {
    if value.len() < 2 || number(&value[..2]) == 0 {
        return false;
    }
    let epochs: Vec<_> = value[2..]
        .chunks(24)
        .filter(|start| start.len() == 24)
        .map(|start| (number(&start[..8]), number(&start[16..])))
        .collect();
    value.len() as u64 == 2 + 24 * number(&value[..2])
        && epochs[0].0 > 0
        && epochs[0].1 > 0
        && epochs
            .windows(2)
            .all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1)
}

/// Reads `input` as frames of the replication stream, one after another, checking each.
fn stream(input: &[u8]) {
    let mut rest = input;
    loop {
        let naive = naive_stream(rest);
        match replication::parse(rest) {
            Ok(replication::Parsed::Incomplete { needed }) => {
                let needed = needed as u64;
                assert_eq!(naive, NaiveStream::Incomplete { needed });
                assert!(needed > rest.len() as u64);
                return;
            }
            Err(error) => {
                assert_eq!(naive, NaiveStream::Refused, "{error}");
                assert!(!matches!(error, ReplicationError::ValueLen { .. }));
                assert_message(&error.to_string());
                return;
            }
            Ok(replication::Parsed::Whole { message, frame_len }) => {
                assert_eq!(naive, NaiveStream::Whole { frame_len });
                let bytes = &rest[..frame_len];
                let mut encoded = vec![0xAA];
                message.encode(&mut encoded).unwrap();
                assert_eq!(&encoded[1..], bytes, "decoded and encoded again");
                if let Message::Entries { frames, .. } | Message::SnapshotChunk { frames, .. } =
                    message
                {
                    let naive = naive_records(frames.bytes(), bytes[0]).unwrap();
                    assert_eq!(frames.iter().len(), naive.len());
                    let has_epochs = naive.iter().any(|frame| frame[0] == 0x67);
                    assert_eq!(frames.has_epochs(), has_epochs);
                    assert!(frames.iter().map(|frame| frame.bytes()).eq(naive));
                    let runs = frames.runs().map(|run| run.bytes().len());
                    assert_eq!(runs.sum::<usize>(), frames.bytes().len());
                }
                if let Message::Event { changes, .. } = message {
                    let all = changes.iter().count();
                    assert_eq!(u32::try_from(all), Ok(changes.count()));
                }
                for cut in cuts(frame_len) {
                    let Ok(replication::Parsed::Incomplete { needed }) =
                        replication::parse(&bytes[..cut])
                    else {
                        panic!("cut at {cut} of {frame_len}, and not incomplete")
                    };
                    assert!(needed > cut && needed <= frame_len);
                }
                rest = &rest[frame_len..];
            }
        }
    }
}

/// The same bytes with right checksums, as far as they are frames of the stream.
fn repaired(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 7) {
        let Some((_, key_len, _)) = STREAM.into_iter().find(|s| s.0 == header[0]) else {
            break;
        };
        let value_at = at + 7 + len(key_len);
        let value_end = value_at as u64 + number(&header[3..7]);
        if value_at > bytes.len() {
            break;
        }
        // Where the value is cut, its checksum is never looked at.
        let value_end = bytes.len().min(len(value_end));
        let value_crc = naive_crc(&bytes[value_at..value_end]).to_be_bytes();
        bytes[value_at - 8..value_at - 4].copy_from_slice(&value_crc);
        let head_crc = naive_crc(&bytes[at..value_at - 4]).to_be_bytes();
        bytes[value_at - 4..value_at].copy_from_slice(&head_crc);
        at = value_end;
    }
    bytes
}

/// The values of PUT and its like: what is accepted, as a plain reading of GBP §4 has it, and that what is read is
/// written to the same bytes.
fn operands(input: &[u8]) {
    for opcode in [0x05, 0x06, 0x07, 0x08, 0x0B] {
        let spec = Opcode::try_from(opcode).unwrap().spec();
        let judged = spec.check(b"key", input);
        assert_eq!(
            judged.is_ok(),
            naive_operands(opcode, input),
            "{opcode:#04x} {judged:?}"
        );
        match judged {
            Ok(()) => {
                let again = match opcode {
                    0x05 => SetAt::decode(b"", input).unwrap().encode(),
                    0x06 => Put::decode(b"", input).unwrap().encode(),
                    0x07 => Take::decode(b"", input).unwrap().encode(),
                    0x08 => Add::decode(b"", input).unwrap().encode(),
                    _ => {
                        let (expiry, time) = expiry_of(input).unwrap().operands();
                        spec.value_of([expiry.into(), time])
                    }
                };
                // An ADD ends with its operands.
                let len = if opcode == 0x08 { 25 } else { input.len() };
                assert_eq!(again[..], input[..len], "{opcode:#04x}");
            }
            Err(error) => {
                assert_message(&error.reason);
                assert!(error.at < 7 + 3 + spec.operands_len(), "{error:?}");
            }
        }
    }
    let want = Want {
        value: input.len().is_multiple_of(2),
        token: input.len().is_multiple_of(3),
    };
    if let Some(found) = Found::of_ok(input, want) {
        assert_eq!(found.token.is_some(), want.token);
        assert!(found.value.is_none() || (want.value && found.existed));
    }
    let _ = (sum_of(input), ttl_of(input));
}

/// Whether these operands are acceptable.
fn naive_operands(opcode: u8, value: &[u8]) -> bool {
    let at = |at: usize| value.get(at).copied().unwrap_or(0xFF);
    let expiry = |kind: u8, time: u64| match kind {
        0 | 2 => time == 0,
        1 | 3 => time > 0,
        _ => false,
    };
    let condition = |kind: u8, len: u64| match kind {
        0..=2 => len == 0,
        3 => len <= 4_096,
        4 => len == 16,
        _ => false,
    };
    let len = value.len() as u64;
    match opcode {
        0x05 => len >= 8 && number(&value[..8]) > 0,
        0x06 if len >= 13 => {
            let expected = number(&value[11..13]);
            condition(at(0), expected)
                && expiry(at(1), number(&value[3..11]))
                && at(2) < 4
                && 13 + expected <= len
                && (at(0), at(1)) != (1, 2)
        }
        0x07 if len >= 4 => {
            let expected = number(&value[2..4]);
            at(0) != 1 && condition(at(0), expected) && at(1) < 4 && 4 + expected == len
        }
        0x08 => len >= 25 && matches!(at(0), 0 | 2),
        0x0B => len == 9 && at(0) != 2 && expiry(at(0), number(&value[1..9])),
        _ => false,
    }
}

/// The fields of SCAN and those of its answer: what is accepted, as a plain reading of GBP §4 has it, and that what is
/// read is written to the same bytes.
fn scan(input: &[u8]) {
    let is_good = input.len() >= 17 && input[0] < 2;
    let judged = Scan::decode(b"prefix", input);
    assert_eq!(judged.is_ok(), is_good, "{judged:?}");
    match judged {
        Ok(scan) => assert_eq!(scan.value(), input),
        Err(error) => assert_message(&error.to_string()),
    }
    let answer = ScanAnswer::decode(input);
    assert_eq!(answer.is_ok(), naive_scan_answer(input), "{answer:?}");
    match answer {
        Ok(answer) => {
            let mut again = Vec::new();
            answer.encode(&mut again);
            assert_eq!(again, input);
            for item in answer.items() {
                assert_eq!(item.value.is_some(), answer.with_values);
                assert!(answer.with_values || item.deadline.is_none());
            }
        }
        Err(error) => assert_message(&error.to_string()),
    }
}

/// Whether these bytes are the value of an OK to a SCAN.
fn naive_scan_answer(value: &[u8]) -> bool {
    let small = |bytes: &[u8]| usize::try_from(number(bytes)).unwrap();
    let part = |from: usize, len: u64| {
        let to = usize::try_from(len)
            .ok()
            .and_then(|len| from.checked_add(len));
        to.and_then(|to| value.get(from..to))
    };
    let (Some(partitions), Some(partition), Some(from_len)) =
        (part(8, 4), part(12, 4), part(16, 2))
    else {
        return false;
    };
    if number(partitions) == 0 || number(partition) > number(partitions) {
        return false;
    }
    let want_at = 18 + small(from_len);
    let (Some(&want), mut at) = (value.get(want_at), want_at + 1) else {
        return false;
    };
    while at < value.len() {
        let len = match want {
            0 => part(at, 2).map(|len| 2 + number(len)),
            1 => match (value[at], part(at + 1, 2), part(at + 3, 4)) {
                (0x01, Some(key), Some(value)) => Some(7 + number(key) + number(value)),
                (0x05, Some(key), Some(len)) => {
                    let deadline = part(at + 7 + small(key), 8);
                    let is_good = number(len) >= 8 && deadline.is_some_and(|at| number(at) > 0);
                    is_good.then(|| 7 + number(key) + number(len))
                }
                _ => None,
            },
            _ => None,
        };
        match len.and_then(|len| part(at, len)) {
            Some(item) => at += item.len(),
            None => return false,
        }
    }
    want < 2
}

/// The fields of FOLLOW, those of its answer, and a history: what is read is written to the same bytes.
fn following(input: &[u8]) {
    for name_len in [0, 1, 64, 65] {
        let (name, value) = input.split_at(name_len.min(input.len()));
        match Follow::decode(name, value) {
            Ok(follow) => {
                let mut frame = Vec::new();
                follow.encode(&mut frame).unwrap();
                assert_eq!(frame[0], 0x60);
                assert_eq!(number(&frame[1..3]), name.len() as u64);
                assert_eq!(frame[7..], *input);
            }
            Err(error) => assert_message(&error.to_string()),
        }
    }
    match Watch::decode(b"prefix", input) {
        Ok(watch) => assert_eq!(watch.value(), input[..25]),
        Err(error) => assert_message(&error.to_string()),
    }
    match FollowAnswer::decode(input) {
        Ok(answer) => {
            let mut value = Vec::new();
            answer.encode(&mut value);
            assert_eq!(value, input);
        }
        Err(error) => assert_message(&error.to_string()),
    }
    match Epochs::decode(input) {
        Ok(epochs) => {
            assert!(is_naive_history(input));
            let history = epochs.to_history();
            assert_eq!(history.epochs().len(), usize::from(epochs.count()));
            let mut value = Vec::new();
            Epochs::of(&history).unwrap().encode(&mut value);
            assert_eq!(value, input);
        }
        Err(error) => {
            assert!(!is_naive_history(input));
            assert_message(&error.to_string());
        }
    }
}

/// Where to cut a frame of `len` bytes: everywhere, or, where it is long, near its ends and here and there between.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let step = (len / 16).max(1);
    (0..len).filter(move |&cut| len <= 64 || cut < 16 || cut + 16 > len || cut % step == 0)
}

/// A message for people is one line, begins in lower case and ends without a full stop.
fn assert_message(message: &str) {
    assert!(
        message.starts_with(|first: char| first.is_ascii_lowercase()),
        "{message:?}"
    );
    assert!(
        !message.ends_with('.') && !message.contains('\n'),
        "{message:?}"
    );
}
