//! What must hold for every sequence of bytes that reaches a decoder of GBP.
//!
//! Included by the fuzz target (`fuzz/targets/decode.rs`) and by an ordinary test (`tests/protocol/fuzz.rs`).
//!
//! 1. Nothing panics.
//! 2. A naive decoder, written differently, agrees.
//! 3. What is decoded encodes to the bytes that it came from, and the other way round.
//! 4. Every strict prefix of a frame is incomplete, and says that it needs more than there is, up to the frame's end.
//! 5. A refusal needs the header alone, and skips what the header declares.
//! 6. However the bytes are cut on their way through a [`Buffer`], the frames are the same, and its memory follows
//!    what has arrived and not what is claimed.

use gopherstore::wire::request::{self, Disposition, Limits, RequestHeader, reject_text};
use gopherstore::wire::response::{self, ResponseHeader};
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
}

/// What became of one frame.
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
    let is_too_long = value_len > value_len_max.into();
    let is_allowed = match opcode {
        1 => true,
        2 | 3 => value_len == 0,
        4 => key_len == 0 && value_len == 0,
        _ => false,
    };
    if is_too_long {
        return Naive::Close;
    }
    if !is_allowed {
        return Naive::Skip { frame_len };
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
                assert!(needed as u64 <= 7 + 65_535 + u64::from(limits.value_len_max));
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
                match error.disposition() {
                    Disposition::Close => {
                        assert_eq!(naive, Naive::Close);
                        let (len, max) = (header.value_len, limits.value_len_max);
                        // Of a SET it is the length that is wrong, of any other frame something else in the first
                        // place.
                        let is_length = error == RequestError::ValueTooLong { len, max };
                        assert_eq!(is_length, header.opcode == Opcode::Set.byte(), "{error}");
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
                    (response.status <= 4).then_some(response.status)
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
    let expected = if is_naive_text(first) && !(1..=4).contains(&first) {
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
    for request in [
        Request::Set { key, value },
        Request::Get { key },
        Request::Del { key },
        Request::Ping,
    ] {
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
