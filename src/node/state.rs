//! The role and state of a node, and their transitions. [`Node::change`] alone sets what each state admits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::{NO_DATA_YET, Node, Reply};
use crate::engine::{Admission, ApplyError};
use crate::history::{EpochStart, History, HistoryError};
use crate::log::Log;
use crate::replication::core::role_state::{Leader, RoleState};

/// The answer to a write once a leader stops.
const STOPS: &str = "this leader is stopping and takes no more writes; try again when it is back";

/// Why a node does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The epoch is not acceptable.
    Epoch(HistoryError),
    /// The records that were received last cannot be applied.
    NotApplied(ApplyError),
}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotOpened::Epoch(error) => error.fmt(f),
            NotOpened::NotApplied(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NotOpened {}

/// The role of a node, and the state of its data set.
#[derive(Debug)]
pub(super) struct ReplicaState {
    pub(super) role: RoleState,
    /// An operator has ordered to replace the data set by a snapshot, whatever is lost with it.
    discard_ordered: bool,
    /// The data set differs from the leader's. The node wants a snapshot of a leader that knows of the data set.
    diverged: bool,
    /// The node stops, and takes no more writes.
    stops: bool,
    /// Leadership moves to another node: the leader takes no writes meanwhile.
    is_transferring: bool,
}

impl ReplicaState {
    pub(super) fn new(role: RoleState) -> ReplicaState {
        ReplicaState {
            role,
            discard_ordered: false,
            diverged: false,
            stops: false,
            is_transferring: false,
        }
    }
}

impl Node {
    /// The role that the node has, and the state of its data set.
    #[must_use]
    pub fn role(&self) -> RoleState {
        self.state.lock().role.clone()
    }

    /// Whether the node leads, even while it stops.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.is_leader.load(Ordering::SeqCst)
    }

    /// Whether the node is to lead, and finds out which data the others hold.
    #[must_use]
    pub fn is_candidate(&self) -> bool {
        matches!(self.state.lock().role, RoleState::Candidate { .. })
    }

    /// The role now, and each later one; ends with the node.
    pub fn watch(&mut self) -> Receiver<RoleState> {
        // Unbounded, so that a change of role never waits. Changes are rare.
        let (sender, roles) = crossbeam_channel::unbounded();
        let _ = sender.send(self.role());
        self.watchers.push(sender);
        roles
    }

    /// The epochs that the data set went through; none of a node without a log.
    #[must_use]
    pub fn history(&self) -> History {
        self.engine.log().map(Log::history).unwrap_or_default()
    }

    /// Whether an operator has ordered to discard the data set.
    #[must_use]
    pub fn is_to_discard(&self) -> bool {
        self.state.lock().discard_ordered
    }

    /// Whether the node wants a snapshot, even where it could resume.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        let state = self.state.lock();
        state.discard_ordered || state.diverged
    }

    /// Whether the data set is known to differ from the leader's.
    #[must_use]
    pub fn is_diverged(&self) -> bool {
        self.state.lock().diverged
    }

    /// Whether the node takes writes.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        self.engine.admits_writes()
    }

    /// Whether the node holds a complete data set, served or not.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.engine.log().is_some_and(Log::has_history)
    }

    /// Why the node can give its data set to no other node: it holds none, or one that differs from its leader's, or it
    /// is about to lead. `None` where it serves.
    #[must_use]
    pub fn lacks_data(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        match &state.role {
            RoleState::Loading { why, .. } | RoleState::Candidate { why, .. } => {
                Some(Arc::clone(why))
            }
            RoleState::Follower { .. } | RoleState::Leader { .. } | RoleState::Refusing { .. } => {
                None
            }
        }
    }

    /// A number that rises whenever the data set or its history becomes another one ([`Log::dataset_generation`]).
    #[must_use]
    pub fn dataset_generation(&self) -> u64 {
        self.engine.log().map_or(0, Log::dataset_generation)
    }

    /// The node follows `leader` from now on, or tries to. It serves the data set that it holds, if that is complete.
    /// One that led until now has taken its last write.
    pub fn follow(&self, leader: Leader) {
        let follow = |state: &mut ReplicaState| {
            state.is_transferring = false;
            state.role = match &state.role {
                RoleState::Refusing { why, .. } => RoleState::Refusing {
                    leader: Some(leader),
                    why: Arc::clone(why),
                },
                RoleState::Loading { .. }
                | RoleState::Candidate { .. }
                | RoleState::Follower { .. }
                | RoleState::Leader { .. } => {
                    if self.holds_data() && !state.diverged {
                        RoleState::Follower { leader }
                    } else {
                        let why = Arc::from(NO_DATA_YET);
                        RoleState::Loading { leader, why }
                    }
                }
            };
        };
        self.change_then(follow, || self.give_up_positions());
    }

    /// The node is to lead, and finds out first which data the others hold. It goes on to serve reads where it serves
    /// them now. `why` is the answer to writes, and to reads where it serves none.
    pub fn campaign(&self, why: &str) {
        let campaign = |state: &mut ReplicaState| {
            let serves = state.role.serves();
            let why = Arc::from(why);
            state.role = RoleState::Candidate { why, serves };
        };
        self.change_then(campaign, || self.give_up_positions());
    }

    /// Replaces the reason why a candidate does not lead yet, or why a follower has no data set. Changes no other role.
    pub fn set_reason(&self, reason: &str) {
        self.change(|state| match &mut state.role {
            RoleState::Loading { why, .. } | RoleState::Candidate { why, .. } => {
                *why = Arc::from(reason);
            }
            RoleState::Follower { .. } | RoleState::Leader { .. } | RoleState::Refusing { .. } => {}
        });
    }

    /// The leader does not know this node's data set, which the node keeps.
    pub fn refuse(&self, why: &str) {
        self.change(|state| {
            let leader = state.role.leader().cloned();
            let why = Arc::from(why);
            state.role = RoleState::Refusing { leader, why };
        });
    }

    /// The node holds a data set of its leader's, after a snapshot or where a stream resumes. A follower serves it. A
    /// candidate serves it once it has [opened its own epoch](Self::open_epoch): a write before that would be in the
    /// epoch of another leader.
    pub fn adopt(&self) {
        self.change(|state| {
            state.discard_ordered = false;
            state.diverged = false;
            if let Some(leader) = state.role.leader().cloned() {
                state.role = RoleState::Follower { leader };
            }
        });
    }

    /// Notes that the node holds the data set of its data directory, if the directory has one. A follower serves it,
    /// unless it is known to differ from the leader's.
    pub fn restored(&self) {
        let has_data = self.holds_data();
        self.change(|state| {
            if let RoleState::Loading { leader, .. } = &state.role
                && has_data
                && !state.diverged
            {
                let leader = leader.clone();
                state.role = RoleState::Follower { leader };
            }
        });
    }

    /// Discards the data set, because a snapshot replaces it. `why` is the answer to reads from now on.
    pub fn discard_dataset(&self, why: &str) {
        self.change(|state| state.stop_serving(why));
        self.engine.clear();
    }

    /// The data set differs from the leader's: the node stops serving it and wants a snapshot.
    pub fn mark_diverged(&self, why: &str) {
        self.change(|state| {
            state.stop_serving(why);
            state.diverged = true;
        });
        if let Some(log) = self.engine.log() {
            log.end_streams();
        }
    }

    /// The node leads from now on, and takes writes in a new epoch, whose EPOCH record is the next one of the log. All
    /// that the log has is applied before.
    ///
    /// # Errors
    ///
    /// Where the records of the log cannot be applied; where the epoch cannot follow the node's history, or does not
    /// start at the log's next index.
    pub fn open_epoch(&self, start: EpochStart) -> Result<(), NotOpened> {
        #[cfg(test)]
        if let (true, Some(last)) = (
            crate::planted::is(crate::planted::Fault::EpochReused),
            self.history().last(),
        ) {
            let epoch = last.epoch;
            self.change(|state| state.role = RoleState::Leader { epoch });
            return Ok(());
        }
        self.engine.apply(u64::MAX).map_err(NotOpened::NotApplied)?;
        let state = &mut *self.state.lock();
        let (role, is_transferring) = (state.role.clone(), state.is_transferring);
        let epoch = start.epoch;
        state.role = RoleState::Leader { epoch };
        state.is_transferring = false;
        if let Err(error) = self.engine.open_epoch(start, state.admission()) {
            state.role = role;
            state.is_transferring = is_transferring;
            return Err(NotOpened::Epoch(error));
        }
        self.is_leader.store(true, Ordering::SeqCst);
        self.tell_watchers(&role, state);
        Ok(())
    }

    /// Another node leads in a later epoch: this leader keeps its data and takes no more writes, for the reason given.
    /// No answer waits for a position of its own epoch any more.
    pub fn yield_to_other_leader(&self, why: &str) {
        let refuse = |state: &mut ReplicaState| {
            if matches!(state.role, RoleState::Leader { .. }) {
                let (leader, why) = (None, Arc::from(why));
                state.role = RoleState::Refusing { leader, why };
            }
        };
        self.change_then(refuse, || self.give_up_positions());
    }

    /// A leader that stops takes no more writes, so that its followers can apply everything before it ends. Returns
    /// whether it took any until now.
    pub fn end_writes(&self) -> bool {
        let mut took = false;
        self.change(|state| {
            // Writes that wait for a transfer of leadership count: the node takes them, or answers them.
            took = matches!(state.role, RoleState::Leader { .. }) && !state.stops;
            state.stops = true;
        });
        took
    }

    /// Suspends the writes of a leader for a transfer of its leadership. When it returns, no write is under way.
    /// Returns false, and does nothing, where the node does not lead, where it stops, and during another transfer.
    #[must_use]
    pub fn begin_transfer(&self) -> bool {
        let mut begins = false;
        self.change(|state| {
            let leads = matches!(state.role, RoleState::Leader { .. });
            begins = leads && !state.stops && !state.is_transferring;
            state.is_transferring |= begins;
        });
        begins
    }

    /// Ends what [`begin_transfer`](Self::begin_transfer) began: writes are taken again where the node leads.
    pub fn end_transfer(&self) {
        self.change(|state| state.is_transferring = false);
    }

    /// Whether writes wait for a transfer of leadership.
    #[must_use]
    pub fn is_transferring(&self) -> bool {
        let state = self.state.lock();
        state.is_transferring && !state.stops
    }

    /// An operator orders a node to discard the data set that its leader does not know.
    pub(super) fn order_discard(&self) -> Reply {
        let mut done = Reply::Done;
        self.change(|state| match &state.role {
            RoleState::Refusing { .. } => state.discard_ordered = true,
            RoleState::Loading { .. }
            | RoleState::Candidate { .. }
            | RoleState::Follower { .. }
            | RoleState::Leader { .. } => {
                done = Reply::Error(
                    "nothing to discard: this node refuses no data set of its leader's".to_owned(),
                );
            }
        });
        done
    }

    /// The answer to every read, where this node serves none.
    pub(super) fn refusal_of_read(&self) -> Reply {
        let state = self.state.lock();
        match &state.role {
            RoleState::Loading { why, .. }
            | RoleState::Candidate { why, .. }
            | RoleState::Refusing { why, .. } => Reply::Loading(Arc::clone(why)),
            RoleState::Leader { .. } if state.stops => Reply::Loading(Arc::from(STOPS)),
            RoleState::Follower { .. } | RoleState::Leader { .. } => {
                Reply::Loading(Arc::from("this node is about to serve"))
            }
        }
    }

    /// Puts in force what the role of a new node admits.
    pub(super) fn admit_initial_role(&self) {
        self.change(|_| {});
    }

    /// Changes the state, and sets what it admits. Nothing else sets that.
    fn change(&self, with: impl FnOnce(&mut ReplicaState)) {
        self.change_then(with, || {});
    }

    /// The same. Where the node led before and does not any more, `then` is called once no request is under way that
    /// was admitted before, and before another thread sees the new state.
    fn change_then(&self, with: impl FnOnce(&mut ReplicaState), then: impl FnOnce()) {
        let mut state = self.state.lock();
        let before = state.role.clone();
        with(&mut state);
        let leads = matches!(state.role, RoleState::Leader { .. });
        self.is_leader.store(leads, Ordering::SeqCst);
        self.engine.admit(state.admission());
        if matches!(before, RoleState::Leader { .. }) && !leads {
            then();
        }
        self.tell_watchers(&before, &state);
    }

    /// Sends the watchers a role that is another one than before. The state is locked, for the order.
    fn tell_watchers(&self, before: &RoleState, state: &ReplicaState) {
        if *before == state.role {
            return;
        }
        for watcher in &self.watchers {
            // A receiver that is gone needs no role.
            let _ = watcher.send(state.role.clone());
        }
    }
}

impl ReplicaState {
    /// The requests that the node executes.
    const fn admission(&self) -> Admission {
        let leads = matches!(self.role, RoleState::Leader { .. });
        Admission {
            reads: self.role.serves(),
            writes: leads && !self.stops && !self.is_transferring,
        }
    }

    /// The data set is not complete any more, or differs from the leader's.
    fn stop_serving(&mut self, why: &str) {
        let why = Arc::from(why);
        self.role = match self.role.leader().cloned() {
            Some(leader) => RoleState::Loading { leader, why },
            None => RoleState::Candidate { why, serves: false },
        };
    }
}
