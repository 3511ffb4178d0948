//! Which leader wrote which entries: what makes one position in the log mean one data set, and nothing else.
//!
//! An index alone names nothing: after a change of leader two nodes may hold different entries under one index. A node
//! that becomes leader therefore opens an [`Era`]: a new epoch, which is higher than any before, and a random nonce,
//! which tells it from an era that another node opened with the same epoch. The eras of a data set, oldest first, are
//! its [`History`].
//!
//! **`(epoch, nonce, index)` names one data set for ever.** An era is opened once, by one node, on top of one data set;
//! what lies before its start is that data set, and its entries have one author. So two nodes that both know an era
//! and both have got to `index`, no further than the era goes, hold the same keys and values there. That is all that
//! a follower has to say to be sent just what it lacks.
//!
//! ```
//! use gopherstore::history::{End, Era, History};
//!
//! let first = Era { epoch: 1, nonce: 0xA, start_index: 1 };
//! let second = Era { epoch: 2, nonce: 0xB, start_index: 8 };
//! let history = History::new(vec![first, second])?;
//!
//! assert_eq!(history.era_of(7), Some(first));
//! assert_eq!(history.era_of(8), Some(second));
//! assert_eq!(history.end_of(1, 0xA), Some(End::At(7)));
//! assert_eq!(history.end_of(2, 0xB), Some(End::Open));
//! assert!(history.holds(1, 0xA, 7));
//! assert!(!history.holds(1, 0xA, 8), "the first leader's entry 8 is not the second's");
//! # Ok::<(), gopherstore::history::HistoryError>(())
//! ```
//!
//! # Known limits
//!
//! That no two eras share epoch and nonce rests on the nonce: 64 random bits, drawn anew whenever an era is opened.

use std::fmt;

/// Most eras in a history: what the 16-bit count of a history on the wire can say. A cluster that changes its leader
/// every hour gets there in seven years; then no era can be opened on that data set ([`HistoryError::TooMany`]).
pub const ERAS_MAX: usize = 65_535;

/// One leader's time: from its start until the next era starts, entries are that leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// Rises with every change of leader, from 1; 0 stands for none.
    pub epoch: u64,
    /// Drawn at random when the era was opened.
    pub nonce: u64,
    /// Index of the era's first entry, from 1. Where the leader has written nothing yet, the index that its first entry
    /// will have.
    pub start_index: u64,
}

impl Era {
    /// Whether the era may stand behind `previous` in a history, or, where there is none, at its beginning.
    ///
    /// # Errors
    ///
    /// What is wrong with its epoch or its start.
    pub const fn check_after(self, previous: Option<Era>) -> Result<(), HistoryError> {
        let (epoch, start_index) = match previous {
            Some(previous) => (previous.epoch, previous.start_index),
            None => (0, 1),
        };
        if self.epoch <= epoch {
            return Err(HistoryError::Epoch {
                got: self.epoch,
                previous: epoch,
            });
        }
        if self.start_index < start_index {
            return Err(HistoryError::StartIndex {
                got: self.start_index,
                min: start_index,
            });
        }
        Ok(())
    }
}

/// Where an era ends, as far as a history tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is the newest era: any index from its start on may belong to it.
    Open,
    /// The last index that belongs to it. An era in which nothing was written ends one before its start.
    At(u64),
}

/// The eras of one data set, oldest first.
///
/// Invariants: epochs are 1 at least and rise strictly; start indexes are 1 at least and never fall; there are
/// [`ERAS_MAX`] eras at most. Two eras start at one index where a leader wrote nothing. A history without eras is that
/// of a node that holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    eras: Vec<Era>,
}

impl History {
    /// A history of these eras.
    ///
    /// # Errors
    ///
    /// Where the eras break an invariant.
    pub fn new(eras: Vec<Era>) -> Result<History, HistoryError> {
        if eras.len() > ERAS_MAX {
            return Err(HistoryError::TooMany { len: eras.len() });
        }
        let mut previous = None;
        for &era in &eras {
            era.check_after(previous)?;
            previous = Some(era);
        }
        Ok(History { eras })
    }

    /// A history of eras that were checked while they were read.
    pub(crate) fn from_checked(eras: Vec<Era>) -> History {
        debug_assert_eq!(
            History::new(eras.clone()).err(),
            None,
            "eras come in order from whoever checked them"
        );
        History { eras }
    }

    /// The eras, oldest first.
    #[must_use]
    pub fn eras(&self) -> &[Era] {
        &self.eras
    }

    /// The newest era.
    #[must_use]
    pub fn last(&self) -> Option<Era> {
        self.eras.last().copied()
    }

    /// The era that the entry at `index` belongs to: the last one that starts no later. None for index 0, which means
    /// no entry, and for one before the first era.
    #[must_use]
    pub fn era_of(&self, index: u64) -> Option<Era> {
        let count = self.eras.partition_point(|era| era.start_index <= index);
        self.eras[..count].last().copied()
    }

    /// Where the era with this epoch and nonce ends; none where this history does not know it.
    #[must_use]
    pub fn end_of(&self, epoch: u64, nonce: u64) -> Option<End> {
        // Epochs rise strictly, so there is one era of this epoch at most.
        let at = self
            .eras
            .binary_search_by_key(&epoch, |era| era.epoch)
            .ok()?;
        if self.eras[at].nonce != nonce {
            return None;
        }
        Some(match self.eras.get(at + 1) {
            None => End::Open,
            // A start is 1 at least, so this never saturates.
            Some(next) => End::At(next.start_index.saturating_sub(1)),
        })
    }

    /// Whether the data set that `(epoch, nonce, index)` names is one that this history went through, or, in its newest
    /// era, may yet get to: the caller knows how far its own log goes.
    ///
    /// An index before the era's start counts: what lies there is the one data set that the era was opened on.
    #[must_use]
    pub fn holds(&self, epoch: u64, nonce: u64, index: u64) -> bool {
        match self.end_of(epoch, nonce) {
            None => false,
            Some(End::Open) => true,
            Some(End::At(end)) => index <= end,
        }
    }

    /// The last index, `index` at most, up to which a data set of this history that ends at `index` is one that `other`
    /// went through as well; 0 where the two share nothing. What follows it in one of them is not in the other.
    #[must_use]
    pub fn shared_with(&self, other: &History, index: u64) -> u64 {
        // The newest shared era tells: ends never fall from one era to the next.
        let shared = self.eras.iter().rev().find_map(|era| {
            let ends = [self, other].map(|history| history.end_of(era.epoch, era.nonce));
            let [Some(own), Some(theirs)] = ends else {
                return None;
            };
            Some(
                [own, theirs]
                    .into_iter()
                    .fold(index, |last, end| match end {
                        End::Open => last,
                        End::At(end) => last.min(end),
                    }),
            )
        });
        shared.unwrap_or(0)
    }

    /// Adds the newest era.
    ///
    /// # Errors
    ///
    /// Where it does not follow the last one, or there are [`ERAS_MAX`] already; the history is then as it was.
    pub fn push(&mut self, era: Era) -> Result<(), HistoryError> {
        if self.eras.len() >= ERAS_MAX {
            return Err(HistoryError::TooMany {
                len: self.eras.len().saturating_add(1),
            });
        }
        era.check_after(self.last())?;
        self.eras.push(era);
        Ok(())
    }
}

/// Eras that are no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryError {
    /// An epoch that is not higher than the one before it, which is 0 for the first.
    Epoch {
        /// The era's epoch.
        got: u64,
        /// That of the era before it.
        previous: u64,
    },
    /// A start before the start of the era before it, or at 0.
    StartIndex {
        /// The era's start.
        got: u64,
        /// The least that it may be.
        min: u64,
    },
    /// More than [`ERAS_MAX`] eras.
    TooMany {
        /// How many there are.
        len: usize,
    },
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HistoryError::Epoch { got, previous } => {
                write!(f, "epoch {got} after epoch {previous}: epochs must rise")
            }
            HistoryError::StartIndex { got, min } => {
                write!(f, "an era starts at index {got}, must be {min} at least")
            }
            HistoryError::TooMany { len } => write!(f, "history of {len} eras, limit {ERAS_MAX}"),
        }
    }
}

impl std::error::Error for HistoryError {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn era(epoch: u64, nonce: u64, start_index: u64) -> Era {
        Era {
            epoch,
            nonce,
            start_index,
        }
    }

    fn history() -> History {
        // The leader of epoch 4 wrote nothing.
        History::new(vec![era(1, 10, 1), era(4, 40, 8), era(5, 50, 8)]).unwrap()
    }

    #[test]
    fn an_index_belongs_to_the_last_era_that_starts_no_later() {
        let history = history();
        let epoch = |index| history.era_of(index).map(|era| era.epoch);
        assert_eq!(epoch(0), None);
        assert_eq!((epoch(1), epoch(7)), (Some(1), Some(1)));
        assert_eq!((epoch(8), epoch(u64::MAX)), (Some(5), Some(5)));
        assert_eq!(History::default().era_of(1), None);
        let later = History::new(vec![era(1, 10, 5)]).unwrap();
        assert_eq!(later.era_of(4), None, "before the first era");
        assert_eq!(history.last(), Some(era(5, 50, 8)));
        assert_eq!(history.eras().len(), 3);
    }

    #[test]
    fn an_era_ends_where_the_next_one_starts() {
        let history = history();
        assert_eq!(history.end_of(1, 10), Some(End::At(7)));
        assert_eq!(history.end_of(4, 40), Some(End::At(7)), "nothing written");
        assert_eq!(history.end_of(5, 50), Some(End::Open));
        for (epoch, nonce) in [(1, 11), (2, 10), (4, 50), (0, 0), (6, 50)] {
            assert_eq!(history.end_of(epoch, nonce), None, "{epoch}, {nonce}");
        }
        let at_once = History::new(vec![era(1, 10, 1), era(2, 20, 1)]).unwrap();
        assert_eq!(at_once.end_of(1, 10), Some(End::At(0)));
    }

    #[test]
    fn a_data_set_is_held_up_to_the_end_of_its_era() {
        let history = history();
        assert!(history.holds(1, 10, 0) && history.holds(1, 10, 7));
        assert!(!history.holds(1, 10, 8), "that era's entry 8 was given up");
        assert!(history.holds(4, 40, 7) && !history.holds(4, 40, 8));
        assert!(history.holds(5, 50, 3), "what the era was opened on");
        assert!(history.holds(5, 50, 1_000_000));
        assert!(!history.holds(5, 51, 1) && !history.holds(0, 0, 0));
    }

    #[test]
    fn eras_that_are_no_history_are_refused_with_their_numbers() {
        for (eras, error, text) in [
            (
                vec![era(0, 1, 1)],
                HistoryError::Epoch {
                    got: 0,
                    previous: 0,
                },
                "epoch 0 after epoch 0: epochs must rise",
            ),
            (
                vec![era(3, 1, 1), era(3, 2, 5)],
                HistoryError::Epoch {
                    got: 3,
                    previous: 3,
                },
                "epoch 3 after epoch 3: epochs must rise",
            ),
            (
                vec![era(1, 1, 0)],
                HistoryError::StartIndex { got: 0, min: 1 },
                "an era starts at index 0, must be 1 at least",
            ),
            (
                vec![era(1, 1, 9), era(2, 2, 8)],
                HistoryError::StartIndex { got: 8, min: 9 },
                "an era starts at index 8, must be 9 at least",
            ),
        ] {
            assert_eq!(History::new(eras.clone()), Err(error));
            assert_eq!(error.to_string(), text);
            let mut pushed = History::default();
            let results: Vec<_> = eras.into_iter().map(|era| pushed.push(era)).collect();
            assert_eq!(results.last(), Some(&Err(error)));
        }
    }

    #[test]
    fn two_histories_share_what_lies_before_they_part() {
        let first = History::new(vec![era(1, 7, 1)]).unwrap();
        let second = History::new(vec![era(1, 7, 1), era(2, 8, 11)]).unwrap();
        let third = History::new(vec![era(1, 7, 1), era(2, 9, 6), era(3, 1, 21)]).unwrap();
        let other = History::new(vec![era(1, 6, 1), era(2, 5, 11)]).unwrap();
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
    fn a_history_has_65_535_eras_at_most() {
        let eras = |count| (1..=count).map(|epoch| era(epoch, 7, epoch)).collect();
        let mut history = History::new(eras(65_535)).unwrap();
        let error = HistoryError::TooMany { len: 65_536 };
        assert_eq!(history.push(era(65_536, 7, 65_536)), Err(error));
        assert_eq!(history.eras().len(), ERAS_MAX);
        assert_eq!(History::new(eras(65_536)), Err(error));
        assert_eq!(error.to_string(), "history of 65536 eras, limit 65535");
    }
}
