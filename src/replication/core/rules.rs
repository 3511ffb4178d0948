//! Who is given what: plain rules over positions, without sockets, threads or clocks.

use std::fmt;

use crate::history::History;
use crate::wire::replication::Start;

/// Where a node says it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the era that its next entry belongs to, as far as it knows; 0 where it holds no data set.
    pub epoch: u64,
    /// Nonce of that era.
    pub nonce: u64,
    /// Index of its last entry.
    pub index: u64,
}

impl Position {
    /// Of a node with this history, whose log ends at `index`. An era that begins further on does not count: a node
    /// that resumes is told of eras before it has their entries, and must not pass for one that is ahead.
    #[must_use]
    pub fn of(history: &History, index: u64) -> Position {
        history
            .era_of(index.saturating_add(1))
            .map_or_else(Position::default, |era| Position {
                epoch: era.epoch,
                nonce: era.nonce,
                index,
            })
    }
}

/// How a source starts the stream for a follower: it resumes where the follower's data set is one that the source's
/// own went through and the log still holds what comes next. It sends a full copy where the log does not, where the
/// follower wants one, and where it holds nothing; but nothing where the follower holds a data set that the source
/// does not know, since a copy would replace entries that the source lacks.
#[must_use]
pub fn start_of(
    own: &History,
    last_index: u64,
    is_held: impl FnOnce(u64) -> bool,
    follower: Position,
    wants_full_copy: bool,
) -> Start {
    let is_known = own.holds(follower.epoch, follower.nonce, follower.index);
    if !is_known && follower.index > 0 {
        Start::Unknown
    } else if !wants_full_copy
        && is_known
        && follower.index <= last_index
        && is_held(follower.index)
    {
        Start::Resume {
            from_index: follower.index + 1,
        }
    } else {
        Start::FullCopy
    }
}

/// The last index that an observer gives for "from the end on".
pub const FROM_THE_END: u64 = u64::MAX;

/// How a source starts the stream for an observer, which keeps no data set that could differ: from the entry after its
/// last one, whatever history that was where it names none, or with a full copy, but only where it asks for that.
/// `first_index` is that of the oldest entry that the log holds.
///
/// # Errors
///
/// Why there is nothing to be watched from there on.
pub fn start_of_observer(
    own: &History,
    last_index: u64,
    first_index: u64,
    observer: Position,
    wants_full_copy: bool,
) -> Result<Start, Unwatched> {
    let Position {
        epoch,
        nonce,
        index,
    } = observer;
    if wants_full_copy {
        return Ok(Start::FullCopy);
    }
    let names_a_history = (epoch, nonce) != (0, 0);
    if !names_a_history && index == FROM_THE_END {
        let from_index = last_index + 1;
        return Ok(Start::Resume { from_index });
    }
    if names_a_history && !own.holds(epoch, nonce, index) {
        return Err(Unwatched::Unknown { epoch, index });
    }
    if index > last_index {
        return Err(Unwatched::Beyond { index, last_index });
    }
    let from_index = index + 1;
    if from_index < first_index {
        return Err(Unwatched::Gone {
            from_index,
            first_index,
        });
    }
    Ok(Start::Resume { from_index })
}

/// Why an observer is given nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwatched {
    /// The source's data set did not come by the observer's last entry.
    Unknown {
        /// Epoch of that entry.
        epoch: u64,
        /// Its index.
        index: u64,
    },
    /// The source has not come so far.
    Beyond {
        /// The observer's last index.
        index: u64,
        /// The source's last index.
        last_index: u64,
    },
    /// The log no longer holds the entry.
    Gone {
        /// The entry that the observer wants first.
        from_index: u64,
        /// The oldest that is held.
        first_index: u64,
    },
}

impl fmt::Display for Unwatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwatched::Unknown { epoch, index } => write!(
                f,
                "entry {index} of epoch {epoch} is not in this node's history"
            ),
            Unwatched::Beyond { index, last_index } => write!(
                f,
                "no entry after {index} yet, this node's last one is {last_index}"
            ),
            Unwatched::Gone {
                from_index,
                first_index,
            } => write!(
                f,
                "entry {from_index} is no longer in the log, which begins at index {first_index}"
            ),
        }
    }
}

/// What a follower makes of the start that it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on after its last entry.
    Resume,
    /// Give up what it holds, if anything, and take the copy.
    TakeCopy,
    /// Keep what it holds and refuse: a copy would lose entries that the leader does not have.
    Refuse,
    /// The offer does not fit where the follower stands.
    Misfit,
}

/// What a follower at `own` makes of a start offered by a leader with the history `theirs`. A follower that was ordered
/// to give up its data asks as one that holds nothing. Nothing but an order does that: a node that distrusts its data
/// asks for a copy, and keeps what it holds where the leader does not know that.
#[must_use]
pub fn takes(own: Position, start: Start, theirs: &History) -> Verdict {
    let is_known = theirs.holds(own.epoch, own.nonce, own.index);
    match start {
        Start::Resume { from_index } if is_known && from_index == own.index + 1 => Verdict::Resume,
        Start::Resume { .. } => Verdict::Misfit,
        Start::FullCopy if own.index == 0 || is_known => Verdict::TakeCopy,
        Start::Unknown if own.index == 0 || is_known => Verdict::Misfit,
        Start::FullCopy | Start::Unknown => Verdict::Refuse,
    }
}

/// What a peer says of itself to a leader that starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Epoch of the era that its next entry belongs to; 0 where it holds no data set.
    pub epoch: u64,
    /// Index of its last entry.
    pub index: u64,
    /// Whether it holds a whole data set that it trusts.
    pub has_data: bool,
}

/// Which of the peers a leader that starts takes its data from: the one furthest ahead of those that have any, by epoch
/// and then by index, since a later leader had all that its followers had of the one before. Of equals the last one.
#[must_use]
pub fn furthest(peers: &[Standing]) -> Option<usize> {
    let have_data = peers.iter().enumerate().filter(|(_, peer)| peer.has_data);
    have_data
        .max_by_key(|(_, peer)| (peer.epoch, peer.index))
        .map(|(at, _)| at)
}

/// Returns the epoch of the era that a leader opens: above its own, whose history it has copied, and all that it has
/// heard of.
#[must_use]
pub fn next_epoch(own: &History, peers: &[Standing]) -> u64 {
    let heard = peers.iter().map(|peer| peer.epoch);
    let own = own.last().map(|era| era.epoch);
    heard.chain(own).max().unwrap_or(0) + 1
}

/// Which entries of the log go into a full copy that is under way.
///
/// Partitions are copied one after another, each at the index at which the log stood while nobody wrote there. Between
/// two of them goes what the log has gained: of a partition that is copied already, what came after its copy. All else
/// is in a copy, or will be.
#[derive(Clone, Debug, Default)]
pub struct CopyRule {
    /// For each partition that is copied, the index at which it was.
    copied_at: Vec<u64>,
}

impl CopyRule {
    /// The next partition was copied while the log stood at `index`.
    pub fn copied(&mut self, index: u64) {
        self.copied_at.push(index);
    }

    /// Whether the entry with this index, of a key in this partition, has to be sent.
    #[must_use]
    pub fn sends(&self, partition: usize, index: u64) -> bool {
        self.copied_at.get(partition).is_some_and(|&at| index > at)
    }

    /// The index up to which the log has to be sent for the copy to be exact.
    #[must_use]
    pub fn exact_from(&self) -> u64 {
        self.copied_at.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::history::Era;

    /// Epoch 4 wrote nothing; epoch 5 goes on after index 7.
    fn history() -> History {
        let era = |epoch, start_index| Era {
            epoch,
            nonce: epoch * 10,
            start_index,
        };
        History::new(vec![era(1, 1), era(4, 8), era(5, 8)]).unwrap()
    }

    const fn at(epoch: u64, index: u64) -> Position {
        Position {
            epoch,
            nonce: epoch * 10,
            index,
        }
    }

    const STRANGER: Position = Position {
        epoch: 1,
        nonce: 11,
        index: 3,
    };

    const fn resume(from_index: u64) -> Start {
        Start::Resume { from_index }
    }

    /// Of a leader at index 9 whose log begins with entry 4.
    fn start(follower: Position, wants_full_copy: bool) -> Start {
        start_of(&history(), 9, |index| index >= 3, follower, wants_full_copy)
    }

    #[test]
    fn a_position_is_of_the_last_era_that_begins_no_later_than_its_next_entry() {
        assert_eq!(Position::of(&History::default(), 9), at(0, 0));
        assert_eq!(Position::of(&history(), 0), at(1, 0));
        assert_eq!(Position::of(&history(), 6), at(1, 6), "not there yet");
        assert_eq!(Position::of(&history(), 7), at(5, 7));
        assert_eq!(Position::of(&history(), u64::MAX), at(5, u64::MAX));
    }

    #[test]
    fn a_follower_resumes_where_the_source_knows_its_data_and_holds_the_rest() {
        for position in [at(5, 9), at(5, 7), at(4, 7), at(1, 7), at(1, 3), at(5, 3)] {
            assert_eq!(start(position, false), resume(position.index + 1));
            assert_eq!(start(position, true), Start::FullCopy, "asked for");
        }
        for (position, why) in [
            (at(1, 2), "its log begins later"),
            (at(5, 10), "beyond its end"),
            (at(5, u64::MAX), "beyond its end"),
            (at(0, 0), "nothing to resume"),
            (at(9, 0), "nothing to resume"),
        ] {
            assert_eq!(
                start(position, false),
                Start::FullCopy,
                "{position:?}: {why}"
            );
        }
    }

    #[test]
    fn a_follower_whose_data_the_source_does_not_know_is_sent_nothing() {
        for (position, why) in [
            (at(1, 8), "that epoch ended at 7"),
            (at(4, 8), "that epoch ended at 7"),
            (at(2, 3), "an epoch that it does not know"),
            (at(6, 9), "an epoch that it does not know"),
            (STRANGER, "another nonce"),
        ] {
            for wants_full_copy in [false, true] {
                let start = start(position, wants_full_copy);
                assert_eq!(start, Start::Unknown, "{position:?}: {why}");
            }
        }
    }

    /// Of a source at index 9 whose log begins with entry 4.
    fn watched(observer: Position, wants_full_copy: bool) -> Result<Start, String> {
        start_of_observer(&history(), 9, 4, observer, wants_full_copy)
            .map_err(|why| why.to_string())
    }

    #[test]
    fn an_observer_begins_where_it_says_and_gets_no_copy_that_it_did_not_ask_for() {
        for position in [at(5, 9), at(1, 3), at(4, 7), at(0, 3), at(0, 9)] {
            assert_eq!(watched(position, false), Ok(resume(position.index + 1)));
            assert_eq!(watched(position, true), Ok(Start::FullCopy));
        }
        assert_eq!(watched(at(0, FROM_THE_END), false), Ok(resume(10)));
        assert_eq!(watched(STRANGER, true), Ok(Start::FullCopy));
        for (position, why) in [
            (
                at(0, 2),
                "entry 3 is no longer in the log, which begins at index 4",
            ),
            (
                at(5, 0),
                "entry 1 is no longer in the log, which begins at index 4",
            ),
            (
                at(0, 10),
                "no entry after 10 yet, this node's last one is 9",
            ),
            (
                at(5, FROM_THE_END),
                "no entry after 18446744073709551615 yet, this node's last one is 9",
            ),
            (at(1, 8), "entry 8 of epoch 1 is not in this node's history"),
            (STRANGER, "entry 3 of epoch 1 is not in this node's history"),
        ] {
            assert_eq!(watched(position, false), Err(why.to_owned()));
        }
    }

    #[test]
    fn a_copy_is_taken_where_nothing_is_lost_by_it() {
        let verdict = |own, start| takes(own, start, &history());
        for own in [at(0, 0), at(1, 2), at(1, 7), at(5, 9), at(9, 0)] {
            assert_eq!(verdict(own, Start::FullCopy), Verdict::TakeCopy, "{own:?}");
            assert_eq!(verdict(own, Start::Unknown), Verdict::Misfit, "{own:?}");
        }
        for own in [at(1, 8), at(4, 8), at(2, 1), at(6, 9), STRANGER] {
            assert_eq!(verdict(own, Start::FullCopy), Verdict::Refuse, "{own:?}");
            assert_eq!(verdict(own, Start::Unknown), Verdict::Refuse, "{own:?}");
        }
    }

    #[test]
    fn an_offer_to_resume_must_fit() {
        let verdict = |own, from_index| takes(own, resume(from_index), &history());
        assert_eq!(verdict(at(1, 7), 8), Verdict::Resume);
        assert_eq!(verdict(at(1, 7), 7), Verdict::Misfit, "twice");
        assert_eq!(verdict(at(1, 7), 9), Verdict::Misfit, "a gap");
        assert_eq!(verdict(at(1, 8), 9), Verdict::Misfit, "not its data");
        assert_eq!(verdict(STRANGER, 4), Verdict::Misfit, "not its data");
    }

    #[test]
    fn the_furthest_has_data_and_the_highest_epoch_and_then_index() {
        let peer = |epoch, index, has_data| Standing {
            epoch,
            index,
            has_data,
        };
        assert_eq!(furthest(&[]), None);
        let empty = peer(9, 9, false);
        assert_eq!(furthest(&[empty, empty]), None);
        assert_eq!(
            furthest(&[empty, peer(0, 0, true)]),
            Some(1),
            "an empty one is one"
        );
        for (peers, at) in [
            ([peer(2, 5, true), peer(1, 9, true), empty], 0),
            ([peer(2, 5, true), peer(2, 6, true), empty], 1),
            ([peer(2, 5, true), empty, peer(2, 5, true)], 2),
        ] {
            assert_eq!(furthest(&peers), Some(at), "{peers:?}");
        }
    }

    #[test]
    fn a_new_epoch_is_above_all_that_are_known() {
        let heard = |epoch| Standing {
            epoch,
            ..Standing::default()
        };
        assert_eq!(next_epoch(&History::default(), &[]), 1);
        assert_eq!(next_epoch(&history(), &[heard(4)]), 6);
        assert_eq!(next_epoch(&history(), &[heard(8), heard(7)]), 9);
    }

    #[test]
    fn a_copy_takes_from_the_log_what_came_after_each_partition_was_copied() {
        let mut rule = CopyRule::default();
        assert!(!rule.sends(0, u64::MAX), "its copy will have it");
        assert_eq!(rule.exact_from(), 0);
        rule.copied(5);
        rule.copied(9);
        assert_eq!((rule.sends(0, 5), rule.sends(0, 6)), (false, true));
        assert_eq!((rule.sends(1, 9), rule.sends(1, 10)), (false, true));
        assert!(!rule.sends(2, 10));
        assert_eq!(rule.exact_from(), 9);
    }
}
