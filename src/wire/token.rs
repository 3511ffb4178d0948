//! Tokens: positions in the log, as clients keep and compare them.

use std::fmt;
use std::str::FromStr;

use byteorder::{BigEndian, ByteOrder};

/// Bytes of a [`Token`].
pub const TOKEN_LEN: usize = 24;

/// A position in the log of a cluster: epoch, index, and the nonce of the epoch, 8 bytes each.
///
/// The order of tokens is the order of their bytes, and of their hexadecimal text: of two writes of one history, the
/// later one has the greater token. So the token of the write that takes a lock is a fencing token.
///
/// ```
/// use gopherstore::wire::Token;
///
/// let token = Token { epoch: 1, index: 42, nonce: 0xABCD };
/// let text = "0000000000000001000000000000002a000000000000abcd";
/// assert_eq!(token.to_string(), text);
/// assert_eq!(text.parse(), Ok(token));
/// ```
///
/// # Source
///
/// GBP §4 "Tokens".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Epoch of the record; 0 where the position is before the first record.
    pub epoch: u64,
    /// Index of the record; 0 before the first.
    pub index: u64,
    /// Nonce of the epoch.
    pub nonce: u64,
}

impl Token {
    /// Reads a token.
    #[must_use]
    pub fn decode(bytes: [u8; TOKEN_LEN]) -> Token {
        Token {
            epoch: BigEndian::read_u64(&bytes[..8]),
            index: BigEndian::read_u64(&bytes[8..16]),
            nonce: BigEndian::read_u64(&bytes[16..]),
        }
    }

    /// Writes the token.
    #[must_use]
    pub fn encode(self) -> [u8; TOKEN_LEN] {
        let mut bytes = [0; TOKEN_LEN];
        BigEndian::write_u64(&mut bytes[..8], self.epoch);
        BigEndian::write_u64(&mut bytes[8..16], self.index);
        BigEndian::write_u64(&mut bytes[16..], self.nonce);
        bytes
    }
}

impl fmt::Display for Token {
    /// 48 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:016x}{:016x}{:016x}",
            self.epoch, self.index, self.nonce
        )
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenError;

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token has 48 hexadecimal digits")
    }
}

impl std::error::Error for TokenError {}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() != 2 * TOKEN_LEN || !is_hex {
            return Err(TokenError);
        }
        let number = |part: &str| u64::from_str_radix(part, 16).map_err(|_| TokenError);
        Ok(Token {
            epoch: number(&text[..16])?,
            index: number(&text[16..32])?,
            nonce: number(&text[32..])?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_sorts_as_its_bytes_and_its_text() {
        let numbers = [0, 1, 255, 256, u64::MAX];
        let mut tokens = Vec::new();
        for epoch in numbers {
            for index in numbers {
                for nonce in numbers {
                    tokens.push(Token {
                        epoch,
                        index,
                        nonce,
                    });
                }
            }
        }
        for pair in tokens.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].encode() < pair[1].encode());
            assert!(pair[0].to_string() < pair[1].to_string());
        }
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), token);
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let text = Token::default().to_string();
        for wrong in [
            "",
            &text[1..],
            &format!("{text}0"),
            &text.replacen('0', "+", 1),
            &text.replacen('0', "ä", 1),
        ] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError), "{wrong}");
        }
    }
}
