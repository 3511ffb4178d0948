//! Decides between resume and snapshot, and which peer is most up to date: rules over positions.

use crate::history::{EpochEnd, History};
use crate::wire::Token;
use crate::wire::replication::{Start, WatchFrom};

/// The position of a node in its data set, as it says itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the last record that it holds; 0 where it holds no data set.
    pub epoch: u64,
    /// Nonce of that epoch.
    pub nonce: u64,
    /// Index of that record.
    pub index: u64,
}

impl Position {
    /// The position of a node with this history, whose log ends at `index`.
    #[must_use]
    pub fn of(history: &History, index: u64) -> Position {
        history
            .epoch_of(index)
            .map_or_else(Position::default, |start| Position {
                epoch: start.epoch,
                nonce: start.nonce,
                index,
            })
    }
}

/// The start that the leader side offers to a follower.
///
/// It resumes where its own data set went through the follower's and the log still holds the next entry. It sends a
/// snapshot where the log does not, where the follower wants one, and where the follower holds nothing. It sends
/// nothing where it does not know the follower's data set: a snapshot would replace entries that it lacks.
#[must_use]
pub fn start_of(
    own: &History,
    last_index: u64,
    is_held: impl FnOnce(u64) -> bool,
    follower: Position,
    wants_snapshot: bool,
) -> Start {
    let is_known = own.holds(follower.epoch, follower.nonce, follower.index);
    #[cfg(test)]
    let is_known = is_known || crate::planted::is(crate::planted::Fault::RefusingEmptied);
    if !is_known && follower.index > 0 {
        Start::Unknown
    } else if !wants_snapshot && is_known && follower.index <= last_index && is_held(follower.index)
    {
        Start::Resume {
            from_index: follower.index + 1,
        }
    } else {
        Start::Snapshot
    }
}

/// Whether a node whose log ends at `last_index` lacks records that the follower has, in an epoch that both know. A
/// leader lacks none, but a node that stops serves peers that may be ahead of it. It cannot offer them anything.
#[must_use]
pub fn lacks_records(own: &History, last_index: u64, follower: Position) -> bool {
    follower.index > last_index && own.holds(follower.epoch, follower.nonce, follower.index)
}

/// The decision of a node about the position that a watcher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// The stream begins after this index.
    After(u64),
    /// The node has not come so far: it is the position of a later record of its own data set, or may be.
    Later,
    /// There is no record with this index yet, and none was named whose successor it would be.
    Beyond,
    /// The position was never part of the data set. The epoch ended at this index, where the history has it.
    Lost {
        /// Last index of the position's epoch; `None` where the history does not have that epoch.
        epoch_end: Option<u64>,
    },
    /// The history no longer reaches back to the epoch.
    Forgotten,
}

/// Decides where the stream of a watcher begins, on a node with the history `own`, whose log ends at `last_index` and
/// is committed up to `committed`.
#[must_use]
pub fn start_of_watch(
    own: &History,
    last_index: u64,
    committed: u64,
    from: WatchFrom,
) -> WatchStart {
    let token = match from {
        WatchFrom::Now | WatchFrom::Snapshot => return WatchStart::After(committed),
        WatchFrom::Index(index) if index > last_index + 1 => return WatchStart::Beyond,
        WatchFrom::Index(index) => return WatchStart::After(index - 1),
        WatchFrom::After(token) => token,
    };
    let Token {
        epoch,
        index,
        nonce,
    } = token;
    if own.holds(epoch, nonce, index) {
        return if index > last_index {
            WatchStart::Later
        } else {
            WatchStart::After(index)
        };
    }
    let is_forgotten = own
        .epochs()
        .first()
        .is_some_and(|oldest| epoch < oldest.epoch && index < oldest.start_index);
    if own.last().is_none_or(|newest| epoch > newest.epoch) {
        // This node has not heard of that epoch yet.
        return WatchStart::Later;
    }
    match own.end_of(epoch, nonce) {
        Some(EpochEnd::At(end)) => WatchStart::Lost {
            epoch_end: Some(end),
        },
        Some(EpochEnd::Open) | None if is_forgotten => WatchStart::Forgotten,
        Some(EpochEnd::Open) | None => WatchStart::Lost { epoch_end: None },
    }
}

/// The decision of a follower about the start that it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Resume after its last entry.
    Resume,
    /// Discard its data set, if it has one, and take the snapshot.
    TakeSnapshot,
    /// Keep its data set and refuse: a snapshot would lose entries that the leader does not have.
    Refuse,
    /// Reject the offer: it does not match the follower's position.
    OfferMismatch,
}

/// Decides what a follower at `own` does with a start offered by a leader with the history `theirs`.
///
/// A follower that was ordered to discard its data set asks as one that holds nothing. Only the order has that effect:
/// a follower whose data set has diverged asks for a snapshot, and keeps the data set where the leader does not know
/// it.
#[must_use]
pub fn decide(own: Position, start: Start, theirs: &History) -> Decision {
    let is_known = theirs.holds(own.epoch, own.nonce, own.index);
    #[cfg(test)]
    let is_known = is_known || crate::planted::is(crate::planted::Fault::RefusingEmptied);
    match start {
        Start::Resume { from_index } if is_known && from_index == own.index + 1 => Decision::Resume,
        Start::Resume { .. } => Decision::OfferMismatch,
        Start::Snapshot if own.index == 0 || is_known => Decision::TakeSnapshot,
        Start::Unknown if own.index == 0 || is_known => Decision::OfferMismatch,
        Start::Snapshot | Start::Unknown => Decision::Refuse,
    }
}

/// The position of a peer, as a leader that starts learns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerPosition {
    /// Epoch of the last record that it holds; 0 where it holds no data set.
    pub epoch: u64,
    /// Index of that record.
    pub index: u64,
    /// Whether it holds a complete data set that has not diverged.
    pub has_data: bool,
}

/// The peer that a leader that starts copies: of those that have data the one with the highest epoch, and then the
/// highest index, since a later leader had everything that its followers had of the one before. Of equals the last one.
#[must_use]
pub fn most_up_to_date(peers: &[PeerPosition]) -> Option<usize> {
    let have_data = peers.iter().enumerate().filter(|(_, peer)| peer.has_data);
    have_data
        .max_by_key(|(_, peer)| (peer.epoch, peer.index))
        .map(|(at, _)| at)
}

/// Returns the epoch that a leader opens: above those of its own history and of all peers.
#[must_use]
pub fn next_epoch(own: &History, peers: &[PeerPosition]) -> u64 {
    let heard = peers.iter().map(|peer| peer.epoch);
    let own = own.last().map(|start| start.epoch);
    heard.chain(own).max().unwrap_or(0).saturating_add(1)
}

/// Decides which entries of the log belong to a snapshot that is under way.
///
/// Partitions are copied one after another, each at the index of the log while no writer was in that partition. Between
/// two partitions the sender sends what the log has gained: of a partition that is copied already, the entries after
/// its copy. All other entries are part of a copy, or will be.
#[derive(Clone, Debug, Default)]
pub struct SnapshotRule {
    /// For each partition that is copied, the index at which it was.
    copied_at: Vec<u64>,
}

impl SnapshotRule {
    /// Whether the next partition may be copied, of a data set that has everything up to `applied`, where the log was
    /// read up to `read`. A follower logs records before it applies them. A record that was read, and left out because
    /// its partition was not copied yet, must be in that copy.
    #[must_use]
    pub const fn may_copy(read: u64, applied: u64) -> bool {
        read <= applied
    }

    /// The next partition was copied while the data set was at `index`.
    pub fn partition_copied(&mut self, index: u64) {
        self.copied_at.push(index);
    }

    /// Whether the entry with this index, of a key in this partition, must be sent.
    #[must_use]
    pub fn sends(&self, partition: usize, index: u64) -> bool {
        #[cfg(test)]
        if partition == 0 && crate::planted::lacks_tail_of_snapshot() {
            return false;
        }
        self.copied_at.get(partition).is_some_and(|&at| index > at)
    }

    /// The index up to which the log must be sent before the snapshot is exact.
    #[must_use]
    pub fn exact_from(&self) -> u64 {
        self.copied_at.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::history::EpochStart;

    /// Epoch 4 wrote nothing; epoch 5 goes on after index 8.
    fn history() -> History {
        let epoch_start = |epoch, start_index| EpochStart {
            epoch,
            nonce: epoch * 10,
            start_index,
        };
        History::new(vec![
            epoch_start(1, 1),
            epoch_start(4, 8),
            epoch_start(5, 9),
        ])
        .unwrap()
    }

    const fn at(epoch: u64, index: u64) -> Position {
        Position {
            epoch,
            nonce: epoch * 10,
            index,
        }
    }

    const UNRELATED: Position = Position {
        epoch: 1,
        nonce: 11,
        index: 3,
    };

    #[test]
    fn a_node_lacks_records_of_a_follower_that_is_further_in_an_epoch_of_both() {
        for (follower, lacks) in [
            (at(5, 10), true),
            (at(5, 9), false),
            (at(4, 8), false),
            // Another data set: it is not known, and the follower keeps it.
            (at(1, 10), false),
            (at(6, 10), false),
            (Position::default(), false),
        ] {
            assert_eq!(
                lacks_records(&history(), 9, follower),
                lacks,
                "{follower:?}"
            );
        }
    }

    const fn resume(from_index: u64) -> Start {
        Start::Resume { from_index }
    }

    /// Of a leader at index 9 whose log begins with entry 4.
    fn start(follower: Position, wants_snapshot: bool) -> Start {
        start_of(&history(), 9, |index| index >= 3, follower, wants_snapshot)
    }

    #[test]
    fn a_position_is_of_the_epoch_of_the_last_record() {
        assert_eq!(Position::of(&History::default(), 9), at(0, 0));
        assert_eq!(Position::of(&history(), 0), at(0, 0));
        assert_eq!(Position::of(&history(), 7), at(1, 7), "not there yet");
        assert_eq!(Position::of(&history(), 8), at(4, 8));
        assert_eq!(Position::of(&history(), 9), at(5, 9));
        assert_eq!(Position::of(&history(), u64::MAX), at(5, u64::MAX));
    }

    #[test]
    fn a_follower_resumes_where_the_leader_side_knows_its_data_and_holds_the_rest() {
        for position in [at(5, 9), at(4, 8), at(4, 7), at(1, 7), at(1, 3), at(5, 3)] {
            assert_eq!(start(position, false), resume(position.index + 1));
            assert_eq!(start(position, true), Start::Snapshot, "asked for");
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
                Start::Snapshot,
                "{position:?}: {why}"
            );
        }
    }

    #[test]
    fn a_follower_whose_data_the_leader_side_does_not_know_is_sent_nothing() {
        for (position, why) in [
            (at(1, 8), "that epoch ended at 7"),
            (at(4, 9), "that epoch ended at 8"),
            (at(2, 3), "an epoch that it does not know"),
            (at(6, 9), "an epoch that it does not know"),
            (UNRELATED, "another nonce"),
        ] {
            for wants_snapshot in [false, true] {
                let start = start(position, wants_snapshot);
                assert_eq!(start, Start::Unknown, "{position:?}: {why}");
            }
        }
    }

    /// Of a node at index 9 that has committed up to 8.
    fn watched(from: WatchFrom) -> WatchStart {
        start_of_watch(&history(), 9, 8, from)
    }

    fn after(position: Position) -> WatchStart {
        let Position {
            epoch,
            nonce,
            index,
        } = position;
        watched(WatchFrom::After(Token {
            epoch,
            index,
            nonce,
        }))
    }

    #[test]
    fn a_watcher_begins_where_it_says() {
        for position in [at(5, 9), at(1, 3), at(4, 8), at(5, 0)] {
            assert_eq!(after(position), WatchStart::After(position.index));
        }
        assert_eq!(watched(WatchFrom::Now), WatchStart::After(8));
        for (index, start) in [
            (1, WatchStart::After(0)),
            (10, WatchStart::After(9)),
            (11, WatchStart::Beyond),
            (u64::MAX, WatchStart::Beyond),
        ] {
            assert_eq!(watched(WatchFrom::Index(index)), start, "{index}");
        }
        for index in [10, u64::MAX] {
            assert_eq!(after(at(5, index)), WatchStart::Later);
        }
    }

    #[test]
    fn a_position_of_other_data_is_lost_and_one_of_forgotten_epochs_is_not_known() {
        let lost = |epoch_end| WatchStart::Lost { epoch_end };
        assert_eq!(after(at(1, 8)), lost(Some(7)));
        assert_eq!(after(at(4, 9)), lost(Some(8)));
        assert_eq!(after(UNRELATED), lost(None));
        assert_eq!(after(at(2, 3)), lost(None));
        // An epoch that this node has not heard of yet.
        for position in [at(6, 9), at(6, 0)] {
            assert_eq!(after(position), WatchStart::Later, "{position:?}");
        }
        let oldest = EpochStart {
            epoch: 7,
            nonce: 70,
            start_index: 100,
        };
        let history = History::new(vec![oldest]).unwrap();
        let start = |epoch, index| {
            let nonce = epoch * 10;
            let token = Token {
                epoch,
                index,
                nonce,
            };
            start_of_watch(&history, 200, 200, WatchFrom::After(token))
        };
        assert_eq!(start(6, 99), WatchStart::Forgotten);
        assert_eq!(start(6, 100), lost(None));
        assert_eq!(start(7, 99), WatchStart::After(99));
        assert_eq!(start(8, 99), WatchStart::Later, "an epoch that is new here");
    }

    #[test]
    fn a_snapshot_is_taken_where_nothing_is_lost_by_it() {
        let decision = |own, start| decide(own, start, &history());
        for own in [at(0, 0), at(1, 2), at(1, 7), at(5, 9), at(9, 0)] {
            assert_eq!(
                decision(own, Start::Snapshot),
                Decision::TakeSnapshot,
                "{own:?}"
            );
            assert_eq!(
                decision(own, Start::Unknown),
                Decision::OfferMismatch,
                "{own:?}"
            );
        }
        for own in [at(1, 8), at(4, 9), at(2, 1), at(6, 9), UNRELATED] {
            assert_eq!(decision(own, Start::Snapshot), Decision::Refuse, "{own:?}");
            assert_eq!(decision(own, Start::Unknown), Decision::Refuse, "{own:?}");
        }
    }

    #[test]
    fn an_offer_to_resume_must_fit() {
        let decision = |own, from_index| decide(own, resume(from_index), &history());
        assert_eq!(decision(at(1, 7), 8), Decision::Resume);
        assert_eq!(decision(at(1, 7), 7), Decision::OfferMismatch, "twice");
        assert_eq!(decision(at(1, 7), 9), Decision::OfferMismatch, "a gap");
        assert_eq!(
            decision(at(1, 8), 9),
            Decision::OfferMismatch,
            "not its data"
        );
        assert_eq!(
            decision(UNRELATED, 4),
            Decision::OfferMismatch,
            "not its data"
        );
    }

    #[test]
    fn the_most_up_to_date_has_data_and_the_highest_epoch_and_then_index() {
        let peer = |epoch, index, has_data| PeerPosition {
            epoch,
            index,
            has_data,
        };
        assert_eq!(most_up_to_date(&[]), None);
        let empty = peer(9, 9, false);
        assert_eq!(most_up_to_date(&[empty, empty]), None);
        assert_eq!(
            most_up_to_date(&[empty, peer(0, 0, true)]),
            Some(1),
            "an empty one is one"
        );
        for (peers, at) in [
            ([peer(2, 5, true), peer(1, 9, true), empty], 0),
            ([peer(2, 5, true), peer(2, 6, true), empty], 1),
            ([peer(2, 5, true), empty, peer(2, 5, true)], 2),
        ] {
            assert_eq!(most_up_to_date(&peers), Some(at), "{peers:?}");
        }
    }

    #[test]
    fn a_new_epoch_is_above_all_that_are_known() {
        let heard = |epoch| PeerPosition {
            epoch,
            ..PeerPosition::default()
        };
        assert_eq!(next_epoch(&History::default(), &[]), 1);
        assert_eq!(next_epoch(&history(), &[heard(4)]), 6);
        assert_eq!(next_epoch(&history(), &[heard(8), heard(7)]), 9);
    }

    #[test]
    fn a_snapshot_takes_from_the_log_what_came_after_each_partition_was_copied() {
        let mut rule = SnapshotRule::default();
        assert!(!rule.sends(0, u64::MAX), "its copy will have it");
        assert_eq!(rule.exact_from(), 0);
        assert!(SnapshotRule::may_copy(5, 5) && !SnapshotRule::may_copy(6, 5));
        rule.partition_copied(5);
        rule.partition_copied(9);
        assert_eq!((rule.sends(0, 5), rule.sends(0, 6)), (false, true));
        assert_eq!((rule.sends(1, 9), rule.sends(1, 10)), (false, true));
        assert!(!rule.sends(2, 10));
        assert_eq!(rule.exact_from(), 9);
    }
}
