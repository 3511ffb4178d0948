//! PUT, TAKE and ADD: what they require of a key, and what they answer of it.
//!
//! # Source
//!
//! GBP §4 "PUT", "TAKE", "ADD".

use byteorder::{BigEndian, ByteOrder};

use super::command::{CommandSpec, OperandError};
use super::expiry::Expiry;
use super::{Opcode, TOKEN_LEN, Token};

/// Longest value in bytes that [`Condition::Equal`] compares with.
pub const EXPECTED_LEN_MAX: usize = 4_096;

/// The condition that the key must meet for a PUT or TAKE to be executed: the operands `if` and `expected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing.
    #[default]
    Always,
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
    /// It has this value, of [`EXPECTED_LEN_MAX`] bytes at most.
    Equal(&'a [u8]),
    /// Its value has this XXH3-128, with seed 0.
    EqualHash(u128),
}

/// Names of the kinds of [`Condition`], by the byte of `if`.
pub(super) const CONDITION_NAMES: &[&str] = &["always", "absent", "present", "equal", "equal hash"];

/// Bytes of an XXH3-128.
const HASH_LEN: usize = 16;

impl<'a> Condition<'a> {
    /// The byte of `if`.
    #[must_use]
    pub const fn byte(&self) -> u8 {
        match self {
            Condition::Always => 0,
            Condition::Absent => 1,
            Condition::Present => 2,
            Condition::Equal(_) => 3,
            Condition::EqualHash(_) => 4,
        }
    }

    /// Appends `expected_len` and `expected`. A value that is too long for the length is cut; a node refuses it anyway.
    fn encode(&self, len_at: usize, out: &mut Vec<u8>) {
        match self {
            Condition::Always | Condition::Absent | Condition::Present => {}
            Condition::Equal(value) => {
                out.extend_from_slice(&value[..value.len().min(usize::from(u16::MAX))]);
            }
            Condition::EqualHash(hash) => out.extend_from_slice(&hash.to_be_bytes()),
        }
        let len = u16::try_from(out.len() - len_at - 2).unwrap_or(u16::MAX);
        BigEndian::write_u16(&mut out[len_at..len_at + 2], len);
    }

    /// Reads the condition at the start of `rest`, and returns it with what is behind it. The error begins with the
    /// name of the operand.
    fn of(
        byte: u8,
        expected_len: u16,
        rest: &'a [u8],
    ) -> Result<(Condition<'a>, &'a [u8]), String> {
        let wrong = |must: String| {
            Err(format!(
                "expected_len {expected_len} with if {byte}, {must}"
            ))
        };
        let len = usize::from(expected_len);
        match byte {
            0..=2 if len > 0 => return wrong("must be 0".to_owned()),
            3 if len > EXPECTED_LEN_MAX => return wrong(format!("limit {EXPECTED_LEN_MAX}")),
            4 if len != HASH_LEN => return wrong(format!("must be {HASH_LEN}")),
            0..=4 => {}
            _ => return Err(format!("if {byte}, must be 0 to 4")),
        }
        let Some((expected, rest)) = rest.split_at_checked(len) else {
            let there = rest.len();
            return Err(format!(
                "expected_len {expected_len}, but {there} bytes follow the operands"
            ));
        };
        let condition = match byte {
            0 => Condition::Always,
            1 => Condition::Absent,
            2 => Condition::Present,
            3 => Condition::Equal(expected),
            _ => Condition::EqualHash(BigEndian::read_u128(expected)),
        };
        Ok((condition, rest))
    }
}

/// The parts of an answer that a request asks for beyond its outcome: the operand `want`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The value that the key had.
    pub value: bool,
    /// The position of the write.
    pub token: bool,
}

impl Want {
    /// Nothing.
    pub const NOTHING: Want = Want {
        value: false,
        token: false,
    };

    const VALUE: u8 = 0x01;
    const TOKEN: u8 = 0x02;

    /// Names of the bits.
    pub(super) const BITS: &[(u8, &str)] = &[(Want::VALUE, "value"), (Want::TOKEN, "token")];
    /// Names of the bits of an operation that returns no value of the key.
    pub(super) const TOKEN_BIT: &[(u8, &str)] = &[(Want::TOKEN, "token")];

    /// The byte.
    #[must_use]
    pub const fn byte(self) -> u8 {
        (if self.value { Want::VALUE } else { 0 }) | (if self.token { Want::TOKEN } else { 0 })
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub const fn is_nothing(self) -> bool {
        !self.value && !self.token
    }

    fn of(byte: u8, known: u8) -> Result<Want, String> {
        if byte & !known != 0 {
            return Err(format!(
                "want 0x{byte:02x}, must have no bit but 0x{known:02x}"
            ));
        }
        Ok(Want {
            value: byte & Want::VALUE != 0,
            token: byte & Want::TOKEN != 0,
        })
    }
}

/// The `N` bytes of the operands at the start of a value, and what is behind them.
#[inline]
fn split<'a, const N: usize>(
    spec: &CommandSpec,
    value: &'a [u8],
) -> Result<(&'a [u8; N], &'a [u8]), OperandError> {
    match value.split_first_chunk() {
        Some(split) => Ok(split),
        None => Err(spec.too_short(value.len())),
    }
}

/// The value of a [`Request::Put`](super::Request::Put).
///
/// | offset              | size           | field          | meaning                             |
/// |---------------------|----------------|----------------|-------------------------------------|
/// | 0                   | 1              | `if`           | [`Condition`]                       |
/// | 1                   | 1              | `expiry`       | [`Expiry`]                          |
/// | 2                   | 1              | `want`         | [`Want`]                            |
/// | 3                   | 8              | `time`         | of the expiry, in milliseconds      |
/// | 11                  | 2              | `expected_len` | bytes of `expected`                 |
/// | 13                  | `expected_len` | `expected`     | what the condition compares with    |
/// | 13 + `expected_len` | rest           | `value`        |                                     |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put<'a> {
    /// The condition that the key must meet.
    pub condition: Condition<'a>,
    /// When the key expires.
    pub expiry: Expiry,
    /// The parts that the answer holds.
    pub want: Want,
    /// The new value.
    pub value: &'a [u8],
}

impl<'a> Put<'a> {
    /// Reads the value of a request.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    #[inline]
    pub fn decode(key: &[u8], value: &'a [u8]) -> Result<Put<'a>, OperandError> {
        let spec = Opcode::Put.spec();
        let (fields, rest) = split::<13>(spec, value)?;
        if *fields == [0; 13] {
            return Ok(Put {
                value: rest,
                ..Put::default()
            });
        }
        Put::decode_operands(key, fields, rest)
    }

    fn decode_operands(
        key: &[u8],
        fields: &[u8; 13],
        rest: &'a [u8],
    ) -> Result<Put<'a>, OperandError> {
        let spec = Opcode::Put.spec();
        let [condition, expiry, want, time @ .., high, low] = *fields;
        let expected_len = u16::from_be_bytes([high, low]);
        let wrong = |reason| spec.wrong(key, reason);
        let (condition, value) = Condition::of(condition, expected_len, rest).map_err(wrong)?;
        let expiry = Expiry::of(expiry, u64::from_be_bytes(time)).map_err(wrong)?;
        let want = Want::of(want, Want::VALUE | Want::TOKEN).map_err(wrong)?;
        if (condition, expiry) == (Condition::Absent, Expiry::Keep) {
            let reason = "expiry 2 with if 1: an absent key has no expiry to keep";
            return Err(wrong(reason.to_owned()));
        }
        Ok(Put {
            condition,
            expiry,
            want,
            value,
        })
    }

    /// The value of the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (expiry, time) = self.expiry.operands();
        let (condition, want) = (self.condition.byte(), self.want.byte());
        let operands = [condition, expiry, want].map(u64::from);
        let [condition, expiry, want] = operands;
        let mut out = Opcode::Put
            .spec()
            .value_of([condition, expiry, want, time, 0]);
        self.condition.encode(out.len() - 2, &mut out);
        out.extend_from_slice(self.value);
        out
    }

    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Put::decode(key, value).map(drop)
    }
}

/// The value of a [`Request::Take`](super::Request::Take).
///
/// | offset | size           | field          | meaning                            |
/// |--------|----------------|----------------|------------------------------------|
/// | 0      | 1              | `if`           | [`Condition`], but not `Absent`    |
/// | 1      | 1              | `want`         | [`Want`]                           |
/// | 2      | 2              | `expected_len` | bytes of `expected`                |
/// | 4      | `expected_len` | `expected`     | what the condition compares with   |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Take<'a> {
    /// The condition that the key must meet.
    pub condition: Condition<'a>,
    /// The parts that the answer holds.
    pub want: Want,
}

impl<'a> Take<'a> {
    /// Reads the value of a request.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn decode(key: &[u8], value: &'a [u8]) -> Result<Take<'a>, OperandError> {
        let spec = Opcode::Take.spec();
        let (&[condition, want, high, low], rest) = split(spec, value)?;
        let expected_len = u16::from_be_bytes([high, low]);
        let wrong = |reason| spec.wrong(key, reason);
        let (condition, rest) = Condition::of(condition, expected_len, rest).map_err(wrong)?;
        if condition == Condition::Absent {
            return Err(wrong("if 1, must be 0, 2, 3 or 4 in TAKE".to_owned()));
        }
        let want = Want::of(want, Want::VALUE | Want::TOKEN).map_err(wrong)?;
        if !rest.is_empty() {
            let (len, needed) = (value.len(), value.len() - rest.len());
            return Err(wrong(format!(
                "value of {len} bytes in TAKE, its fields say {needed}"
            )));
        }
        Ok(Take { condition, want })
    }

    /// The value of the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let operands = [self.condition.byte(), self.want.byte()].map(u64::from);
        let [condition, want] = operands;
        let mut out = Opcode::Take.spec().value_of([condition, want, 0]);
        self.condition.encode(out.len() - 2, &mut out);
        out
    }

    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Take::decode(key, value).map(drop)
    }
}

/// The value of a [`Request::Add`](super::Request::Add).
///
/// | offset | size | field   | meaning                                                       |
/// |--------|------|---------|---------------------------------------------------------------|
/// | 0      | 1    | `want`  | [`Want`], the token alone                                     |
/// | 1      | 8    | `delta` | number to add, signed                                         |
/// | 9      | 8    | `start` | value of a key that does not exist, signed                    |
/// | 17     | 8    | `ttl`   | milliseconds after which a key that is created expires; 0 for none |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// Whether the answer holds the token.
    pub want_token: bool,
    /// The number to add.
    pub delta: i64,
    /// The value of a key that does not exist.
    pub start: i64,
    /// When a key that is created expires: `None` or `Ttl`.
    pub expiry: Expiry,
}

impl Add {
    /// Reads the value of a request.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    #[inline]
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Add, OperandError> {
        let spec = Opcode::Add.spec();
        let ([want, numbers @ ..], _) = split::<25>(spec, value)?;
        let ([delta, start, ttl], _) = numbers.as_chunks() else {
            return Err(spec.too_short(value.len()));
        };
        let want = Want::of(*want, Want::TOKEN).map_err(|reason| spec.wrong(key, reason))?;
        Ok(Add {
            want_token: want.token,
            delta: i64::from_be_bytes(*delta),
            start: i64::from_be_bytes(*start),
            expiry: match u64::from_be_bytes(*ttl) {
                0 => Expiry::None,
                ttl => Expiry::Ttl(ttl),
            },
        })
    }

    /// The value of the request. An expiry that is no `Ttl` counts as none.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let want = Want {
            value: false,
            token: self.want_token,
        };
        let ttl = match self.expiry {
            Expiry::Ttl(ttl) => ttl,
            Expiry::None | Expiry::Keep | Expiry::Deadline(_) => 0,
        };
        let numbers = [self.delta, self.start].map(i64::cast_unsigned);
        let [delta, start] = numbers;
        let operands = [u64::from(want.byte()), delta, start, ttl];
        Opcode::Add.spec().value_of(operands)
    }

    pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        Add::decode(key, value).map(drop)
    }
}

/// The value of an OK or a CONFLICT that answers a PUT or TAKE with a `want`: the state of the key.
///
/// | offset | size      | field   | meaning                                                            |
/// |--------|-----------|---------|--------------------------------------------------------------------|
/// | 0      | 1         | `flags` | bit 0 (0x01): the key existed                                      |
/// | 1      | 24        | `token` | only in an OK, where it was wanted                                 |
/// | then   | rest      | `value` | of the key, where it existed and the value was wanted              |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found<'a> {
    /// Whether the key existed.
    pub existed: bool,
    /// The position of the write.
    pub token: Option<Token>,
    /// The value that the key had; in a CONFLICT the value that it has.
    pub value: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    /// The bit of `flags` for a key that existed.
    pub const EXISTED: u8 = 0x01;

    /// Reads the value of an OK to a request with this `want`; `None` where it is none. Without a wish it is empty, and
    /// says nothing of the key.
    #[must_use]
    pub fn of_ok(value: &'a [u8], want: Want) -> Option<Found<'a>> {
        if want.is_nothing() {
            return value.is_empty().then(Found::default);
        }
        Found::read(value, want)
    }

    /// Reads the value of a CONFLICT to a request with this `want`; `None` where it is none.
    #[must_use]
    pub fn of_conflict(value: &'a [u8], want: Want) -> Option<Found<'a>> {
        let token = false;
        Found::read(value, Want { token, ..want })
    }

    fn read(value: &'a [u8], want: Want) -> Option<Found<'a>> {
        let (&flags, mut rest) = value.split_first()?;
        if flags & !Found::EXISTED != 0 {
            return None;
        }
        let existed = flags & Found::EXISTED != 0;
        let mut token = None;
        if want.token {
            let (bytes, after) = rest.split_first_chunk()?;
            (token, rest) = (Some(Token::decode(*bytes)), after);
        }
        let has_value = want.value && existed;
        (has_value || rest.is_empty()).then_some(Found {
            existed,
            token,
            value: has_value.then_some(rest),
        })
    }
}

/// The token, where there is one, and the decimal text in the value of an OK to an ADD. `None` where it is neither:
/// decimal text has 20 bytes at most, and a token 24.
#[must_use]
pub fn sum_of(value: &[u8]) -> Option<(Option<Token>, i64)> {
    let (token, text) = match value.split_first_chunk::<TOKEN_LEN>() {
        Some((token, text)) => (Some(Token::decode(*token)), text),
        None => (None, value),
    };
    Some((token, str::from_utf8(text).ok()?.parse().ok()?))
}
