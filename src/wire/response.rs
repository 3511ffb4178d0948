//! Responses: header, and how bytes that are no response are refused.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::{EncodeError, Status, is_text, size};

/// Bytes of a response's header.
pub const HEADER_LEN: usize = 5;

/// Response header: 5 bytes, integers big-endian.
///
/// | offset | size | field       | meaning                                       |
/// |--------|------|-------------|-----------------------------------------------|
/// | 0      | 1    | `status`    | the outcome: [`Status`]                       |
/// | 1      | 4    | `value_len` | bytes of value that follow, 0..=4,294,967,295 |
///
/// The status is kept as a byte, since a later version may add one.
///
/// # Source
///
/// GBP §2 "Response".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHeader {
    /// Byte 0.
    pub status: u8,
    /// Bytes of value that follow the header.
    pub value_len: u32,
}

impl ResponseHeader {
    /// Reads a header. Every 5 bytes are a header.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_LEN]) -> ResponseHeader {
        ResponseHeader {
            status: bytes[0],
            value_len: BigEndian::read_u32(&bytes[1..5]),
        }
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [self.status, 0, 0, 0, 0];
        BigEndian::write_u32(&mut bytes[1..5], self.value_len);
        bytes
    }

    /// The header of a response with a value of `value_len` bytes.
    ///
    /// # Errors
    ///
    /// When the value is too long for the length field.
    pub fn new(status: Status, value_len: usize) -> Result<ResponseHeader, EncodeError> {
        Ok(ResponseHeader {
            status: status.byte(),
            value_len: u32::try_from(value_len)
                .map_err(|_| EncodeError::ValueTooLong { len: value_len })?,
        })
    }

    /// Bytes of the whole frame: header and value.
    #[must_use]
    pub fn frame_len(self) -> usize {
        size(self.value_len).saturating_add(HEADER_LEN)
    }
}

/// One response, its value borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The status byte; [`Status::try_from`] names it where this version knows it.
    pub status: u8,
    /// The result, the message or the address, as the status says.
    pub value: &'a [u8],
}

impl Response<'_> {
    /// Appends the response's frame to `out`.
    ///
    /// # Errors
    ///
    /// When the value is too long for its length field; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let header = ResponseHeader {
            status: self.status,
            value_len: u32::try_from(self.value.len()).map_err(|_| EncodeError::ValueTooLong {
                len: self.value.len(),
            })?,
        };
        out.reserve(header.frame_len());
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(self.value);
        Ok(())
    }

    /// Bytes of the response's frame: header and value.
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        HEADER_LEN + self.value.len()
    }
}

/// Result of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The bytes end inside a frame.
    Incomplete {
        /// Bytes of the whole frame, as far as known; at least one more than there are.
        needed: usize,
    },
    /// A whole response.
    Whole(Response<'a>),
}

/// Bytes that are no response of a GopherStore node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// A status byte in the range of text, which no version uses: the peer speaks a text protocol.
    Text {
        /// That byte.
        first: u8,
    },
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResponseError::Text { first } => write!(
                f,
                "the response begins with {:?}, which is text and not GBP",
                char::from(*first)
            ),
        }
    }
}

impl std::error::Error for ResponseError {}

/// Reads the response at the start of `bytes`. Allocates nothing.
///
/// # Errors
///
/// When the status is text, as from a server of another kind. The first byte alone is judged, so that no reader waits
/// for as many bytes as the next four would announce.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, ResponseError> {
    if let Some(&first) = bytes.first()
        && is_text(first)
    {
        return Err(ResponseError::Text { first });
    }
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Parsed::Incomplete { needed: HEADER_LEN });
    };
    let header = ResponseHeader::decode(*header);
    let needed = header.frame_len();
    Ok(match payload.get(..needed - HEADER_LEN) {
        None => Parsed::Incomplete { needed },
        Some(value) => Parsed::Whole(Response {
            status: header.status,
            value,
        }),
    })
}
