//! Histories: which leader wrote which entries.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use crate::history::{Era, History, HistoryError};

/// Bytes of the count before the eras.
const COUNT_LEN: usize = 2;

/// Bytes of one era.
///
/// | offset | size | field         |
/// |--------|------|---------------|
/// | 0      | 8    | `epoch`       |
/// | 8      | 8    | `nonce`       |
/// | 16     | 8    | `start_index` |
pub const ERA_LEN: usize = 24;

/// Bytes of the longest history.
pub(super) const ERAS_LEN_MAX: u32 = 2 + 24 * 65_535;

/// A history of at least one era, borrowed from bytes or from a list.
///
/// | offset | size       | field   | meaning                  |
/// |--------|------------|---------|--------------------------|
/// | 0      | 2          | `count` | number of eras, 1..=65,535 |
/// | 2      | 24 × count |         | the eras, oldest first   |
///
/// Invariant: the eras are a valid [`History`].
#[derive(Clone, Copy)]
pub struct Eras<'a> {
    source: Source<'a>,
    count: u16,
}

/// Memory that holds the eras.
#[derive(Clone, Copy)]
enum Source<'a> {
    Wire(&'a [[u8; ERA_LEN]]),
    List(&'a [Era]),
}

impl<'a> Eras<'a> {
    /// The eras of `history`; `None` where it is empty, since a history on the wire has at least one.
    #[must_use]
    pub fn of(history: &'a History) -> Option<Eras<'a>> {
        let eras = history.eras();
        // A history has no more eras than the count can say.
        let count = u16::try_from(eras.len()).ok().filter(|&count| count > 0)?;
        Some(Eras {
            source: Source::List(eras),
            count,
        })
    }

    /// Reads `bytes`, which are a history and nothing else.
    ///
    /// # Errors
    ///
    /// Where the length is not that of the count, or the eras are no history.
    pub fn decode(bytes: &'a [u8]) -> Result<Eras<'a>, ErasError> {
        let Some((count, rest)) = bytes.split_first_chunk::<COUNT_LEN>() else {
            return Err(ErasError::Len {
                got: bytes.len(),
                expected: COUNT_LEN + ERA_LEN,
            });
        };
        let count = u16::from_be_bytes(*count);
        if count == 0 {
            return Err(ErasError::Empty);
        }
        let expected = COUNT_LEN + ERA_LEN * usize::from(count);
        if bytes.len() != expected {
            return Err(ErasError::Len {
                got: bytes.len(),
                expected,
            });
        }
        let (list, _) = rest.as_chunks::<ERA_LEN>();
        let mut previous = None;
        for era in list.iter().map(decode_era) {
            era.check_after(previous).map_err(ErasError::History)?;
            previous = Some(era);
        }
        Ok(Eras {
            source: Source::Wire(list),
            count,
        })
    }

    /// The number of eras, at least 1.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// Each of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Era> + use<'a> {
        let (wire, list): (&[[u8; ERA_LEN]], &[Era]) = match self.source {
            Source::Wire(wire) => (wire, &[]),
            Source::List(list) => (&[], list),
        };
        wire.iter().map(decode_era).chain(list.iter().copied())
    }

    /// The history that they make, in memory of its own.
    #[must_use]
    pub fn to_history(&self) -> History {
        History::from_checked(self.iter().collect())
    }

    /// Appends count and eras to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(COUNT_LEN + ERA_LEN * usize::from(self.count));
        out.extend_from_slice(&self.count.to_be_bytes());
        for era in self.iter() {
            out.extend_from_slice(&era.epoch.to_be_bytes());
            out.extend_from_slice(&era.nonce.to_be_bytes());
            out.extend_from_slice(&era.start_index.to_be_bytes());
        }
    }
}

fn decode_era(bytes: &[u8; ERA_LEN]) -> Era {
    Era {
        epoch: BigEndian::read_u64(&bytes[0..8]),
        nonce: BigEndian::read_u64(&bytes[8..16]),
        start_index: BigEndian::read_u64(&bytes[16..24]),
    }
}

impl PartialEq for Eras<'_> {
    fn eq(&self, other: &Eras<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Eras<'_> {}

impl fmt::Debug for Eras<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Bytes that are no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErasError {
    /// There is no era.
    Empty,
    /// The bytes are more or fewer than the count says.
    Len {
        /// The length in bytes.
        got: usize,
        /// The length that the count requires.
        expected: usize,
    },
    /// The eras break a rule of histories.
    History(HistoryError),
}

impl fmt::Display for ErasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErasError::Empty => write!(f, "history of 0 eras, must have 1 at least"),
            ErasError::Len { got, expected } => {
                write!(f, "history of {got} bytes, must have {expected}")
            }
            ErasError::History(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ErasError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ErasError::History(error) => Some(error),
            ErasError::Empty | ErasError::Len { .. } => None,
        }
    }
}
