//! Histories: which leader wrote which records.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::{Fields, ReplicationError};
use crate::history::{EpochStart, History, HistoryError};

/// Bytes of the count before the epochs.
const COUNT_LEN: usize = 2;

/// Bytes of one epoch.
///
/// | offset | size | field         |
/// |--------|------|---------------|
/// | 0      | 8    | `epoch`       |
/// | 8      | 8    | `nonce`       |
/// | 16     | 8    | `start_index` |
pub const EPOCH_LEN: usize = 24;

/// Bytes of the longest history.
pub(super) const EPOCHS_LEN_MAX: u32 = 2 + 24 * 65_535;

/// A history of at least one epoch, borrowed from bytes or from a list.
///
/// | offset | size       | field   | meaning                  |
/// |--------|------------|---------|--------------------------|
/// | 0      | 2          | `count` | number of epochs, 1..=65,535 |
/// | 2      | 24 × count |         | the epochs, oldest first   |
///
/// Invariant: the epochs are a valid [`History`].
#[derive(Clone, Copy)]
pub struct Epochs<'a> {
    source: Source<'a>,
    count: u16,
}

/// Memory that holds the epochs.
#[derive(Clone, Copy)]
enum Source<'a> {
    Wire(&'a [[u8; EPOCH_LEN]]),
    List(&'a [EpochStart]),
}

impl<'a> Epochs<'a> {
    /// The epochs of `history`; `None` where it is empty, since a history on the wire has at least one.
    #[must_use]
    pub fn of(history: &'a History) -> Option<Epochs<'a>> {
        let epochs = history.epochs();
        // A history has no more epochs than the count can say.
        let count = u16::try_from(epochs.len())
            .ok()
            .filter(|&count| count > 0)?;
        Some(Epochs {
            source: Source::List(epochs),
            count,
        })
    }

    /// Reads `bytes`, which are a history and nothing else.
    ///
    /// # Errors
    ///
    /// Where the length is not that of the count, or the epochs are no history.
    pub fn decode(bytes: &'a [u8]) -> Result<Epochs<'a>, EpochsError> {
        let Some((count, rest)) = bytes.split_first_chunk::<COUNT_LEN>() else {
            return Err(EpochsError::Len {
                got: bytes.len(),
                expected: COUNT_LEN + EPOCH_LEN,
            });
        };
        let count = u16::from_be_bytes(*count);
        if count == 0 {
            return Err(EpochsError::Empty);
        }
        let expected = COUNT_LEN + EPOCH_LEN * usize::from(count);
        if bytes.len() != expected {
            return Err(EpochsError::Len {
                got: bytes.len(),
                expected,
            });
        }
        let (list, _) = rest.as_chunks::<EPOCH_LEN>();
        let mut previous = None;
        for start in list.iter().map(decode_epoch) {
            start.check_after(previous).map_err(EpochsError::History)?;
            previous = Some(start);
        }
        Ok(Epochs {
            source: Source::Wire(list),
            count,
        })
    }

    /// Reads the value of a message, which is a history.
    pub(super) fn of_value(_: &Fields, value: &'a [u8]) -> Result<Epochs<'a>, ReplicationError> {
        Epochs::decode(value).map_err(ReplicationError::History)
    }

    /// The number of epochs, at least 1.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// Each of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = EpochStart> + use<'a> {
        let (wire, list): (&[[u8; EPOCH_LEN]], &[EpochStart]) = match self.source {
            Source::Wire(wire) => (wire, &[]),
            Source::List(list) => (&[], list),
        };
        wire.iter().map(decode_epoch).chain(list.iter().copied())
    }

    /// The history that they make, in memory of its own.
    #[must_use]
    pub fn to_history(&self) -> History {
        History::from_checked(self.iter().collect())
    }

    /// Appends count and epochs to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(COUNT_LEN + EPOCH_LEN * usize::from(self.count));
        out.extend_from_slice(&self.count.to_be_bytes());
        for start in self.iter() {
            out.extend_from_slice(&start.epoch.to_be_bytes());
            out.extend_from_slice(&start.nonce.to_be_bytes());
            out.extend_from_slice(&start.start_index.to_be_bytes());
        }
    }
}

fn decode_epoch(bytes: &[u8; EPOCH_LEN]) -> EpochStart {
    EpochStart {
        epoch: BigEndian::read_u64(&bytes[0..8]),
        nonce: BigEndian::read_u64(&bytes[8..16]),
        start_index: BigEndian::read_u64(&bytes[16..24]),
    }
}

impl PartialEq for Epochs<'_> {
    fn eq(&self, other: &Epochs<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Epochs<'_> {}

impl fmt::Debug for Epochs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Bytes that are no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochsError {
    /// There is no epoch.
    Empty,
    /// The bytes are more or fewer than the count says.
    Len {
        /// The length in bytes.
        got: usize,
        /// The length that the count requires.
        expected: usize,
    },
    /// The epochs break a rule of histories.
    History(HistoryError),
}

impl fmt::Display for EpochsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EpochsError::Empty => write!(f, "history of 0 epochs, must have 1 at least"),
            EpochsError::Len { got, expected } => {
                write!(f, "history of {got} bytes, must have {expected}")
            }
            EpochsError::History(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EpochsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            EpochsError::History(error) => Some(error),
            EpochsError::Empty | EpochsError::Len { .. } => None,
        }
    }
}
