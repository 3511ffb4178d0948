//! Deadlines of keys: the operands `expiry` and `time`, and the values of SETAT, EXPIRE and TTL.
//!
//! # Source
//!
//! GBP §4 "Expiry".

use std::time::Duration;

use byteorder::{BigEndian, ByteOrder};

use super::Opcode;
use super::command::OperandError;

/// Bytes of a deadline.
pub const DEADLINE_LEN: usize = 8;

/// When a key that is written expires: the operands `expiry` and `time`. Times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    #[default]
    None,
    /// So long after the write is executed; 1 or more.
    Ttl(u64),
    /// When the earlier value would have expired.
    Keep,
    /// At this time since 1970 UTC; 1 or more. One that is past is legal, and the key expires at once.
    Deadline(u64),
}

/// Names of the kinds of [`Expiry`], by the byte of `expiry`.
pub(super) const EXPIRY_NAMES: &[&str] = &["none", "ttl", "keep", "at"];

impl Expiry {
    /// Expires so long after the write. Less than a millisecond counts as one, and too long a time as the longest.
    #[must_use]
    pub fn after(ttl: Duration) -> Expiry {
        let ms = ttl.as_nanos().div_ceil(1_000_000);
        Expiry::Ttl(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// The bytes of `expiry` and `time`.
    #[must_use]
    pub const fn operands(self) -> (u8, u64) {
        match self {
            Expiry::None => (0, 0),
            Expiry::Ttl(ms) => (1, ms),
            Expiry::Keep => (2, 0),
            Expiry::Deadline(deadline) => (3, deadline),
        }
    }

    /// Reads `expiry` and `time`.
    ///
    /// # Errors
    ///
    /// The fault, which begins with the name of the field.
    pub fn of(expiry: u8, time: u64) -> Result<Expiry, String> {
        let must = match (expiry, time) {
            (0, 0) => return Ok(Expiry::None),
            (1, 1..) => return Ok(Expiry::Ttl(time)),
            (2, 0) => return Ok(Expiry::Keep),
            (3, 1..) => return Ok(Expiry::Deadline(time)),
            (0 | 2, 1..) => "0",
            (1 | 3, 0) => "1 at least",
            (4.., _) => return Err(format!("expiry {expiry}, must be 0 to 3")),
        };
        Err(format!("time {time} with expiry {expiry}, must be {must}"))
    }

    /// The deadline of a key that is written at `now`, and whose earlier value has the deadline `kept`. All are
    /// milliseconds since 1970 UTC.
    ///
    /// # Errors
    ///
    /// Where the deadline is beyond what 64 bits hold.
    pub fn deadline(
        self,
        now: impl FnOnce() -> u64,
        kept: Option<u64>,
    ) -> Result<Option<u64>, String> {
        match self {
            Expiry::None => Ok(None),
            Expiry::Keep => Ok(kept),
            Expiry::Deadline(deadline) => Ok(Some(deadline)),
            Expiry::Ttl(ms) => match now().checked_add(ms) {
                Some(deadline) => Ok(Some(deadline)),
                None => Err(format!("ttl of {ms} ms from now is beyond 64 bits")),
            },
        }
    }
}

/// The value of a [`Request::SetAt`](super::Request::SetAt).
///
/// | offset | size | field      | meaning                            |
/// |--------|------|------------|------------------------------------|
/// | 0      | 8    | `deadline` | milliseconds since 1970 UTC, not 0 |
/// | 8      | rest | `value`    |                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAt<'a> {
    /// Milliseconds since 1970 UTC.
    pub deadline: u64,
    /// The key's value.
    pub value: &'a [u8],
}

impl<'a> SetAt<'a> {
    /// Reads the value of a request.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn decode(key: &[u8], value: &'a [u8]) -> Result<SetAt<'a>, OperandError> {
        let spec = Opcode::SetAt.spec();
        spec.has_operands(value)?;
        let (deadline, value) = value.split_at(spec.operands_len());
        match BigEndian::read_u64(deadline) {
            0 => Err(spec.wrong(key, "deadline 0, must be 1 at least".to_owned())),
            deadline => Ok(SetAt { deadline, value }),
        }
    }

    /// The value of the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.deadline.to_be_bytes(), self.value].concat()
    }
}

/// The value of an EXPIRE with this deadline, or without one.
#[must_use]
pub fn expire_value(deadline: Option<u64>) -> [u8; 9] {
    let (expiry, time) = deadline.map_or(Expiry::None, Expiry::Deadline).operands();
    let mut value = [0; 9];
    value[0] = expiry;
    BigEndian::write_u64(&mut value[1..], time);
    value
}

/// Reads the value of an EXPIRE.
///
/// | offset | size | field    | meaning                    |
/// |--------|------|----------|----------------------------|
/// | 0      | 1    | `expiry` | [`Expiry`], but not `Keep` |
/// | 1      | 8    | `time`   | of it                      |
///
/// # Errors
///
/// The fault, which begins with the name of the field.
pub fn expiry_of(value: &[u8]) -> Result<Expiry, String> {
    let Some((&expiry, time)) = value.split_first().filter(|(_, time)| time.len() == 8) else {
        let len = value.len();
        return Err(format!("value of {len} bytes in EXPIRE, must have 9"));
    };
    match Expiry::of(expiry, BigEndian::read_u64(time))? {
        Expiry::Keep => Err("expiry 2, must be 0, 1 or 3 in EXPIRE".to_owned()),
        expiry @ (Expiry::None | Expiry::Ttl(_) | Expiry::Deadline(_)) => Ok(expiry),
    }
}

/// The deadline that an EXPIRE sets as a record of the log: `Some(None)` where it takes one away. `None` where the
/// value is no record's: a record has a time that does not depend on the clock of its reader.
#[must_use]
pub fn recorded_expiry(value: &[u8]) -> Option<Option<u64>> {
    let (&expiry, time) = value.split_first()?;
    match (expiry, u64::from_be_bytes(time.try_into().ok()?)) {
        (0, 0) => Some(None),
        (3, deadline @ 1..) => Some(Some(deadline)),
        _ => None,
    }
}

/// Judges key and value of an EXPIRE for the command table.
pub(super) fn check_expire(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
    match expiry_of(value) {
        Ok(_) => Ok(()),
        Err(reason) => Err(Opcode::Expire.spec().wrong(key, reason)),
    }
}

/// Judges key and value of a SETAT for the command table.
pub(super) fn check_setat(key: &[u8], value: &[u8]) -> Result<(), OperandError> {
    SetAt::decode(key, value).map(drop)
}

/// The value of an OK to a TTL: the time that is left, in milliseconds, or nothing where the key does not expire.
/// `None` where the value is neither.
#[must_use]
pub fn ttl_of(value: &[u8]) -> Option<Option<u64>> {
    match <[u8; 8]>::try_from(value) {
        Ok(ms) => Some(Some(u64::from_be_bytes(ms))),
        Err(_) => value.is_empty().then_some(None),
    }
}
