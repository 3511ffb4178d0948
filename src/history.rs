//! The epochs of a data set: which leader wrote which records. They make one position in the log name one data set.
//!
//! An index alone names nothing: after a change of leader two nodes may hold different records at one index. A node
//! that becomes leader therefore opens an epoch ([`EpochStart`]): a number above any before, and a random nonce, which
//! distinguishes it from an epoch that another node opened with the same number. The epoch begins with a record of its
//! own in the log, EPOCH, which holds both. The epochs of a data set, oldest first, are its [`History`].
//!
//! **`(epoch, nonce, index)` names one data set for ever.** An epoch is opened once, by one node, on top of one data
//! set; the records before its start are that data set, and its own records have one author. Two nodes that both know
//! an epoch and both hold `index`, no further than the epoch goes, therefore have the same keys and values there. A
//! follower sends these three numbers, and is sent exactly what it lacks.
//!
//! ```
//! use gopherstore::history::{EpochEnd, EpochStart, History};
//!
//! let first = EpochStart { epoch: 1, nonce: 0xA, start_index: 1 };
//! let second = EpochStart { epoch: 2, nonce: 0xB, start_index: 8 };
//! let history = History::new(vec![first, second])?;
//!
//! assert_eq!(history.epoch_of(7), Some(first));
//! assert_eq!(history.epoch_of(8), Some(second));
//! assert_eq!(history.end_of(1, 0xA), Some(EpochEnd::At(7)));
//! assert_eq!(history.end_of(2, 0xB), Some(EpochEnd::Open));
//! assert!(history.holds(1, 0xA, 7));
//! assert!(!history.holds(1, 0xA, 8), "record 8 of the first leader is not that of the second");
//! # Ok::<(), gopherstore::history::HistoryError>(())
//! ```
//!
//! # Known limits
//!
//! * Two epochs with one number are distinguished by their nonces alone: 64 random bits, drawn for each epoch.
//! * A history has the newest [`EPOCHS_MAX`] epochs. A node whose last record is of an older one is not known any more:
//!   it keeps its data and does not follow.

use std::fmt;

/// Most epochs in a history. The oldest one is forgotten for the next, so that no number of epochs ends a data set.
pub const EPOCHS_MAX: usize = 1_024;

/// The start of an epoch. From there until the start of the next epoch all records are one leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// Number of the epoch, from 1. Rises with every change of leader; 0 stands for no epoch.
    pub epoch: u64,
    /// Drawn at random when the epoch was opened.
    pub nonce: u64,
    /// Index of the epoch's first record, from 1: its EPOCH record.
    pub start_index: u64,
}

impl EpochStart {
    /// Checks that the epoch can follow `previous` in a history, or begin one where that is `None`.
    ///
    /// # Errors
    ///
    /// Where its number or its start index is too low.
    pub const fn check_after(self, previous: Option<EpochStart>) -> Result<(), HistoryError> {
        let (epoch, start_index) = match previous {
            Some(previous) => (previous.epoch, previous.start_index),
            None => (0, 0),
        };
        if self.epoch <= epoch {
            return Err(HistoryError::Epoch {
                got: self.epoch,
                previous: epoch,
            });
        }
        if self.start_index <= start_index {
            return Err(HistoryError::StartIndex {
                got: self.start_index,
                // The last index of all has no next one.
                min: start_index.saturating_add(1),
            });
        }
        Ok(())
    }
}

/// The end of an epoch, as far as a history tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochEnd {
    /// The epoch is the newest one: any index from its start on may belong to it.
    Open,
    /// The last index that belongs to it.
    At(u64),
}

/// Whether a data set has a position that is named by its epoch, nonce and index ([`History::holding`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The data set is at the position, or has gone through it.
    Held,
    /// It may get there: the index is ahead of it, or the epoch begins later than any that it knows.
    NotYet,
    /// The position is not part of this history and never will be.
    Lost,
    /// The history no longer has the epochs of that time.
    Forgotten {
        /// Index at which the oldest epoch begins that it has.
        oldest: u64,
    },
}

/// The epochs of one data set, oldest first.
///
/// Invariants: epochs and start indexes are 1 at least and rise strictly; there are at most [`EPOCHS_MAX`] epochs. A
/// history without epochs is that of a node that holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    epochs: Vec<EpochStart>,
}

impl History {
    /// A history of the newest [`EPOCHS_MAX`] of these epochs.
    ///
    /// # Errors
    ///
    /// Where the epochs break an invariant.
    pub fn new(epochs: Vec<EpochStart>) -> Result<History, HistoryError> {
        let mut previous = None;
        for &start in &epochs {
            start.check_after(previous)?;
            previous = Some(start);
        }
        Ok(History::from_checked(epochs))
    }

    /// The same of epochs that were checked while they were read.
    pub(crate) fn from_checked(mut epochs: Vec<EpochStart>) -> History {
        let excess = epochs.len().saturating_sub(EPOCHS_MAX);
        epochs.drain(..excess);
        History { epochs }
    }

    /// The epochs, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[EpochStart] {
        &self.epochs
    }

    /// The newest epoch.
    #[must_use]
    pub fn last(&self) -> Option<EpochStart> {
        self.epochs.last().copied()
    }

    /// The epoch that the record at `index` belongs to: the last one that starts no later. `None` for index 0, which
    /// means no record, and for one before the first epoch.
    #[must_use]
    pub fn epoch_of(&self, index: u64) -> Option<EpochStart> {
        let count = self
            .epochs
            .partition_point(|start| start.start_index <= index);
        self.epochs[..count].last().copied()
    }

    /// The epochs whose EPOCH records are the last ones of a log that ends at `index`, with nothing behind or between
    /// them. These records follow from the history alone.
    #[must_use]
    pub fn last_records(&self, index: u64) -> &[EpochStart] {
        let mut at = self.epochs.len();
        let mut expected = index;
        while let Some(before) = at.checked_sub(1)
            && self.epochs[before].start_index == expected
        {
            at = before;
            expected = expected.saturating_sub(1);
        }
        &self.epochs[at..]
    }

    /// The end of the epoch with this number and nonce; `None` where this history does not have it.
    #[must_use]
    pub fn end_of(&self, epoch: u64, nonce: u64) -> Option<EpochEnd> {
        // Numbers rise strictly, so at most one epoch has this one.
        let at = self
            .epochs
            .binary_search_by_key(&epoch, |start| start.epoch)
            .ok()?;
        if self.epochs[at].nonce != nonce {
            return None;
        }
        Some(match self.epochs.get(at + 1) {
            None => EpochEnd::Open,
            // A start is 1 at least, so this never saturates.
            Some(next) => EpochEnd::At(next.start_index.saturating_sub(1)),
        })
    }

    /// Whether the data set that `(epoch, nonce, index)` names is one that this history went through, or, in its newest
    /// epoch, may yet get to: the caller knows how far its own log goes.
    ///
    /// An index before the epoch's start counts: what lies there is the one data set that the epoch was opened on.
    #[must_use]
    pub fn holds(&self, epoch: u64, nonce: u64, index: u64) -> bool {
        match self.end_of(epoch, nonce) {
            None => false,
            Some(EpochEnd::Open) => true,
            Some(EpochEnd::At(end)) => index <= end,
        }
    }

    /// Whether a data set of this history that ends at `last` has the position `(epoch, nonce, index)`.
    ///
    /// ```
    /// use gopherstore::history::{EpochStart, History, Holding};
    ///
    /// let first = EpochStart { epoch: 1, nonce: 0xA, start_index: 1 };
    /// let third = EpochStart { epoch: 3, nonce: 0xC, start_index: 8 };
    /// let history = History::new(vec![first, third])?;
    /// assert_eq!(history.holding(1, 0xA, 7, 20), Holding::Held);
    /// assert_eq!(history.holding(3, 0xC, 21, 20), Holding::NotYet);
    /// assert_eq!(history.holding(1, 0xA, 8, 20), Holding::Lost, "record 8 is another leader's");
    /// assert_eq!(history.holding(2, 0xB, 8, 20), Holding::Lost, "no such epoch was ever followed");
    /// # Ok::<(), gopherstore::history::HistoryError>(())
    /// ```
    #[must_use]
    pub fn holding(&self, epoch: u64, nonce: u64, index: u64, last: u64) -> Holding {
        let [Some(oldest), Some(newest)] = [self.epochs.first(), self.epochs.last()] else {
            return Holding::NotYet;
        };
        match self.end_of(epoch, nonce) {
            Some(EpochEnd::At(end)) if index > end => Holding::Lost,
            Some(_) if index <= last => Holding::Held,
            Some(_) => Holding::NotYet,
            None if epoch > newest.epoch => Holding::NotYet,
            // A history that begins with the first record of all has never forgotten an epoch.
            None if epoch < oldest.epoch && oldest.start_index > 1 => Holding::Forgotten {
                oldest: oldest.start_index,
            },
            None => Holding::Lost,
        }
    }

    /// The last index, `index` at most, up to which a data set of this history that ends at `index` is one that `other`
    /// went through as well; 0 where the two share nothing. Later records of one are not in the other.
    #[must_use]
    pub fn shared_with(&self, other: &History, index: u64) -> u64 {
        // The newest shared epoch tells: ends never fall from one epoch to the next.
        let shared = self.epochs.iter().rev().find_map(|start| {
            let ends = [self, other].map(|history| history.end_of(start.epoch, start.nonce));
            let [Some(own), Some(theirs)] = ends else {
                return None;
            };
            Some(
                [own, theirs]
                    .into_iter()
                    .fold(index, |last, end| match end {
                        EpochEnd::Open => last,
                        EpochEnd::At(end) => last.min(end),
                    }),
            )
        });
        shared.unwrap_or(0)
    }

    /// The epochs that began up to this index.
    #[must_use]
    pub fn up_to(&self, index: u64) -> History {
        let count = self
            .epochs
            .partition_point(|start| start.start_index <= index);
        History {
            epochs: self.epochs[..count].to_vec(),
        }
    }

    /// Adds the newest epoch. Forgets the oldest one where there are [`EPOCHS_MAX`] already.
    ///
    /// # Errors
    ///
    /// Where it does not follow the last one; the history is then as it was.
    pub fn push(&mut self, start: EpochStart) -> Result<(), HistoryError> {
        start.check_after(self.last())?;
        if self.epochs.len() >= EPOCHS_MAX {
            self.epochs.remove(0);
        }
        self.epochs.push(start);
        Ok(())
    }
}

/// Why a list of epochs is no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryError {
    /// An epoch that is not higher than the one before it, which is 0 for the first.
    Epoch {
        /// Its number.
        got: u64,
        /// The number of the epoch before it.
        previous: u64,
    },
    /// A start that is not behind the start of the epoch before it, or is 0.
    StartIndex {
        /// The epoch's start.
        got: u64,
        /// The least that it may be.
        min: u64,
    },
    /// An epoch that is to be opened elsewhere than at the end of the log.
    NotNext {
        /// The epoch's start.
        got: u64,
        /// The next index of the log.
        next: u64,
    },
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HistoryError::Epoch { got, previous } => {
                write!(f, "epoch {got} after epoch {previous}: epochs must rise")
            }
            HistoryError::StartIndex { got, min } => {
                write!(f, "an epoch starts at index {got}, must be {min} at least")
            }
            HistoryError::NotNext { got, next } => {
                write!(
                    f,
                    "an epoch starts at index {got}, the next one of the log is {next}"
                )
            }
        }
    }
}

impl std::error::Error for HistoryError {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn epoch_start(epoch: u64, nonce: u64, start_index: u64) -> EpochStart {
        EpochStart {
            epoch,
            nonce,
            start_index,
        }
    }

    fn history() -> History {
        // The leader of epoch 4 wrote nothing.
        History::new(vec![
            epoch_start(1, 10, 1),
            epoch_start(4, 40, 8),
            epoch_start(5, 50, 9),
        ])
        .unwrap()
    }

    #[test]
    fn an_index_belongs_to_the_last_epoch_that_starts_no_later() {
        let history = history();
        let epoch = |index| history.epoch_of(index).map(|start| start.epoch);
        assert_eq!(epoch(0), None);
        assert_eq!((epoch(1), epoch(7)), (Some(1), Some(1)));
        assert_eq!((epoch(8), epoch(9)), (Some(4), Some(5)));
        assert_eq!(epoch(u64::MAX), Some(5));
        assert_eq!(History::default().epoch_of(1), None);
        let later = History::new(vec![epoch_start(1, 10, 5)]).unwrap();
        assert_eq!(later.epoch_of(4), None, "before the first epoch");
        assert_eq!(history.last(), Some(epoch_start(5, 50, 9)));
        assert_eq!(history.epochs().len(), 3);
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_starts() {
        let history = history();
        assert_eq!(history.end_of(1, 10), Some(EpochEnd::At(7)));
        let nothing_written = Some(EpochEnd::At(8));
        assert_eq!(history.end_of(4, 40), nothing_written);
        assert_eq!(history.end_of(5, 50), Some(EpochEnd::Open));
        for (epoch, nonce) in [(1, 11), (2, 10), (4, 50), (0, 0), (6, 50)] {
            assert_eq!(history.end_of(epoch, nonce), None, "{epoch}, {nonce}");
        }
        let at_once = History::new(vec![epoch_start(1, 10, 1), epoch_start(2, 20, 2)]).unwrap();
        assert_eq!(at_once.end_of(1, 10), Some(EpochEnd::At(1)));
    }

    #[test]
    fn records_that_follow_from_the_history_are_at_the_end_of_a_log() {
        let history = history();
        assert_eq!(history.last_records(9), &history.epochs()[1..]);
        for index in [0, 1, 7, 8, 10] {
            assert_eq!(history.last_records(index), [], "{index}");
        }
        let first = History::new(vec![epoch_start(1, 10, 1)]).unwrap();
        assert_eq!(first.last_records(1), first.epochs());
        assert_eq!(History::default().last_records(0), []);
    }

    #[test]
    fn a_data_set_is_held_up_to_the_end_of_its_epoch() {
        let history = history();
        assert!(history.holds(1, 10, 0) && history.holds(1, 10, 7));
        assert!(
            !history.holds(1, 10, 8),
            "that epoch's record 8 was discarded"
        );
        assert!(history.holds(4, 40, 8) && !history.holds(4, 40, 9));
        assert!(history.holds(5, 50, 3), "what the epoch was opened on");
        assert!(history.holds(5, 50, 1_000_000));
        assert!(!history.holds(5, 51, 1) && !history.holds(0, 0, 0));
    }

    #[test]
    fn a_position_is_held_or_awaited_or_lost_or_forgotten() {
        let history = history();
        let holding = |epoch, nonce, index| history.holding(epoch, nonce, index, 12);
        for (epoch, nonce, index) in [(1, 10, 1), (1, 10, 7), (4, 40, 8), (5, 50, 9), (5, 50, 12)] {
            assert_eq!(
                holding(epoch, nonce, index),
                Holding::Held,
                "{epoch} {index}"
            );
        }
        for (epoch, nonce, index) in [(5, 50, 13), (6, 1, 3), (u64::MAX, 1, 1)] {
            assert_eq!(
                holding(epoch, nonce, index),
                Holding::NotYet,
                "{epoch} {index}"
            );
        }
        let lost = [
            (1, 10, 8),
            (4, 40, 9),
            (1, 11, 1),
            (2, 10, 1),
            (5, 51, 9),
            (0, 0, 1),
        ];
        for (epoch, nonce, index) in lost {
            assert_eq!(
                holding(epoch, nonce, index),
                Holding::Lost,
                "{epoch} {index}"
            );
        }
        // Records that are logged and not applied yet, of an epoch that has ended in the log.
        assert_eq!(history.holding(1, 10, 7, 6), Holding::NotYet);
        let later = History::new(vec![epoch_start(3, 30, 5), epoch_start(4, 40, 8)]).unwrap();
        let forgotten = Holding::Forgotten { oldest: 5 };
        assert_eq!(later.holding(1, 10, 1, 9), forgotten);
        assert_eq!(later.holding(3, 31, 5, 9), Holding::Lost);
        assert_eq!(History::default().holding(1, 10, 1, 0), Holding::NotYet);
    }

    #[test]
    fn epochs_that_are_no_history_are_refused_with_their_numbers() {
        for (epochs, error, text) in [
            (
                vec![epoch_start(0, 1, 1)],
                HistoryError::Epoch {
                    got: 0,
                    previous: 0,
                },
                "epoch 0 after epoch 0: epochs must rise",
            ),
            (
                vec![epoch_start(3, 1, 1), epoch_start(3, 2, 5)],
                HistoryError::Epoch {
                    got: 3,
                    previous: 3,
                },
                "epoch 3 after epoch 3: epochs must rise",
            ),
            (
                vec![epoch_start(1, 1, 0)],
                HistoryError::StartIndex { got: 0, min: 1 },
                "an epoch starts at index 0, must be 1 at least",
            ),
            (
                vec![epoch_start(1, 1, 9), epoch_start(2, 2, 9)],
                HistoryError::StartIndex { got: 9, min: 10 },
                "an epoch starts at index 9, must be 10 at least",
            ),
            (
                vec![epoch_start(1, 1, u64::MAX), epoch_start(2, 2, u64::MAX)],
                HistoryError::StartIndex {
                    got: u64::MAX,
                    min: u64::MAX,
                },
                "an epoch starts at index 18446744073709551615, must be 18446744073709551615 at least",
            ),
        ] {
            assert_eq!(History::new(epochs.clone()), Err(error));
            assert_eq!(error.to_string(), text);
            let mut pushed = History::default();
            let results: Vec<_> = epochs.into_iter().map(|start| pushed.push(start)).collect();
            assert_eq!(results.last(), Some(&Err(error)));
        }
    }

    #[test]
    fn two_histories_share_what_lies_before_they_part() {
        let first = History::new(vec![epoch_start(1, 7, 1)]).unwrap();
        let second = History::new(vec![epoch_start(1, 7, 1), epoch_start(2, 8, 11)]).unwrap();
        let third = History::new(vec![
            epoch_start(1, 7, 1),
            epoch_start(2, 9, 6),
            epoch_start(3, 1, 21),
        ])
        .unwrap();
        let other = History::new(vec![epoch_start(1, 6, 1), epoch_start(2, 5, 11)]).unwrap();
        for (own, theirs, index, shared) in [
            (&first, &first, 15, 15),
            (&first, &second, 10, 10),
            (&first, &second, 15, 10),
            (&second, &first, 15, 10),
            (&second, &third, 15, 5),
            (&third, &second, 3, 3),
            (&second, &other, 15, 0),
            (&second, &History::default(), 15, 0),
            (&History::default(), &second, 0, 0),
        ] {
            assert_eq!(own.shared_with(theirs, index), shared, "{own:?} {theirs:?}");
        }
    }

    #[test]
    fn a_history_has_the_newest_1_024_epochs() {
        let epochs = |first, last| -> Vec<EpochStart> {
            let epochs = first..=last;
            epochs.map(|epoch| epoch_start(epoch, 7, epoch)).collect()
        };
        let mut history = History::new(epochs(1, 1_025)).unwrap();
        assert_eq!(history.epochs(), epochs(2, 1_025));
        for epoch in 1_026..=3_000 {
            history.push(epoch_start(epoch, 7, epoch)).unwrap();
        }
        assert_eq!(history.epochs(), epochs(1_977, 3_000));
        // A position of an epoch that is forgotten is unknown, as one of an epoch that never was.
        assert!(history.holds(1_977, 7, 1_977) && !history.holds(1_976, 7, 1_976));
        assert_eq!(history.epoch_of(1_976), None);
        let behind = History::new(epochs(1, 1_990)).unwrap();
        assert_eq!(behind.shared_with(&history, 1_990), 1_990);
        let long_ago = History::new(epochs(1, 1_976)).unwrap();
        assert_eq!(long_ago.shared_with(&history, 1_976), 0);
    }
}
