//! What holds for every request, every answer and every sequence of bytes.
//!
//! A failure prints its input and writes a seed to `tests/protocol/properties.proptest-regressions`, from which it is
//! replayed first at the next run.

use gopherstore::wire::request::{self, Disposition, Limits, RequestHeader};
use gopherstore::wire::response::{self, ResponseHeader};
use gopherstore::wire::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

/// Bytes that look like frames more often than random ones do.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![0_u8..8, any::<u8>()];
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

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(
        op in 0..4, key in bytes(300), value in bytes(3_000), after in bytes(20)
    ) {
        let request = match op {
            0 => Request::Set { key: &key, value: &value },
            1 => Request::Get { key: &key },
            2 => Request::Del { key: &key },
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
                prop_assert!(frame.request().value().len() <= usize::try_from(value_len_max).unwrap());
                let mut written = Vec::new();
                frame.request().encode(&mut written).unwrap();
                prop_assert_eq!(&written, frame.bytes());
            }
            Ok(request::Parsed::Incomplete { needed }) => {
                prop_assert_eq!(needed, header.frame_len());
                prop_assert!(needed > stream.len());
            }
            Err(error) => match error.disposition() {
                Disposition::Skip(len) => prop_assert_eq!(len, header.frame_len()),
                Disposition::Close => prop_assert!(header.value_len > value_len_max, "{}", error),
            },
        }
    }
}
