//! The state of a node's data set, and its transitions. [`Node::change`] alone sets what each state allows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::{Node, Reply, Role};
use crate::engine::Admission;
use crate::history::{EpochStart, History, HistoryError};

/// The answer to a write once a leader stops.
const STOPS: &str = "this leader is stopping and takes no more writes; try again when it is back";

/// Whether a node holds a complete data set, and serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It holds no complete data set, for the reason given, and refuses reads.
    Loading(Arc<str>),
    /// It holds a complete data set and serves it. A follower follows, or tries to.
    Serving,
    /// A follower holds a data set that its leader does not know, or a leader has yielded to another one. It serves the
    /// data set, keeps it, and follows no node until an operator orders it to discard the data set.
    Refusing(Arc<str>),
}

/// The state of a node's data set.
#[derive(Debug)]
pub(super) struct ReplicaState {
    pub(super) phase: Phase,
    pub(super) history: History,
    /// An operator has ordered to replace the data set by a snapshot, whatever is lost with it.
    discard_ordered: bool,
    /// The data set differs from the leader's. The node wants a snapshot of a leader that knows of the data set.
    diverged: bool,
    /// The node stops, and takes no more writes.
    stops: bool,
}

impl ReplicaState {
    pub(super) fn new(phase: Phase) -> ReplicaState {
        ReplicaState {
            phase,
            history: History::default(),
            discard_ordered: false,
            diverged: false,
            stops: false,
        }
    }
}

impl Node {
    /// The phase that the node is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase.clone()
    }

    /// The phase now, and each later one; ends with the node.
    pub fn watch(&mut self) -> Receiver<Phase> {
        // Unbounded, so that a change of phase never waits. Changes are rare.
        let (sender, phases) = crossbeam_channel::unbounded();
        let _ = sender.send(self.phase());
        self.watcher = Some(sender);
        phases
    }

    /// The epochs that the data set went through.
    #[must_use]
    pub fn history(&self) -> History {
        self.state.lock().history.clone()
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

    /// Whether the node takes writes.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        self.engine.admits_writes()
    }

    /// Whether the node holds a complete data set, served or not.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.state.lock().history.last().is_some()
    }

    /// A number that rises whenever the data set or its history becomes another one: before the first entry of the old
    /// data set is removed, and before the first entry of a new epoch is applied.
    ///
    /// A reader that takes this number, then the history, then reads from the log or the store, and then finds the
    /// number unchanged, has read entries of that history alone.
    #[must_use]
    pub fn dataset_generation(&self) -> u64 {
        self.dataset_generation.load(Ordering::SeqCst)
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.change(|state| state.phase = phase);
    }

    /// The node holds a data set of this history, after a snapshot or where a stream resumes. A follower serves it. A
    /// leader serves it once it has [opened its own epoch](Self::open_epoch): a write before that would be in the epoch
    /// of another leader.
    pub fn adopt(&self, history: History) {
        let phase = match self.role {
            Role::Follower { .. } => Phase::Serving,
            Role::Leader => Phase::Loading(Arc::from("this leader is about to lead")),
        };
        self.change(|state| {
            if state.history != history {
                self.next_generation();
            }
            state.history = history;
            state.phase = phase;
            state.discard_ordered = false;
            state.diverged = false;
        });
    }

    /// Discards the data set, because a snapshot replaces it. `why` is the answer to reads from now on.
    pub fn discard_dataset(&self, why: &str) {
        self.change(|state| {
            self.next_generation();
            state.history = History::default();
            state.phase = Phase::Loading(Arc::from(why));
        });
        self.engine.clear();
    }

    /// The data set differs from the leader's: the node stops serving it and wants a snapshot.
    pub fn mark_diverged(&self, why: &str) {
        self.change(|state| {
            self.next_generation();
            state.phase = Phase::Loading(Arc::from(why));
            state.diverged = true;
        });
    }

    /// A leader takes writes from now on, in a new epoch.
    ///
    /// # Errors
    ///
    /// Where the epoch cannot follow the node's history.
    pub fn open_epoch(&self, epoch: EpochStart) -> Result<(), HistoryError> {
        let mut result = Ok(());
        self.change(|state| {
            result = state.history.push(epoch);
            if result.is_ok() {
                self.next_generation();
                state.phase = Phase::Serving;
            }
        });
        result
    }

    /// Another node leads in a later epoch: this leader keeps its data and takes no more writes, for the reason given.
    /// No answer waits for a position of its own epoch any more.
    pub fn yield_to_other_leader(&self, why: &str) {
        let refuse = |state: &mut ReplicaState| {
            if state.phase == Phase::Serving {
                state.phase = Phase::Refusing(Arc::from(why));
            }
        };
        self.change_then(refuse, || self.give_up_positions());
    }

    /// A leader that stops takes no more writes, so that its followers can apply everything before it ends. Returns
    /// whether it took any until now.
    pub fn end_writes(&self) -> bool {
        let took = self.engine.admits_writes();
        self.change(|state| state.stops = true);
        took
    }

    /// An operator orders a follower to discard the data set that its leader does not know.
    pub(super) fn order_discard(&self) -> Reply {
        let mut done = Reply::Done;
        self.change(|state| match (&state.phase, &self.role) {
            (Phase::Refusing(_), Role::Follower { .. }) => state.discard_ordered = true,
            (Phase::Refusing(_), Role::Leader) => {
                done = Reply::Error(
                    "this node is to lead by its own cluster.toml: correct that and restart it"
                        .to_owned(),
                );
            }
            (Phase::Loading(_) | Phase::Serving, Role::Leader | Role::Follower { .. }) => {
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
        match &state.phase {
            Phase::Loading(why) | Phase::Refusing(why) => Reply::Loading(Arc::clone(why)),
            Phase::Serving if state.stops => Reply::Loading(Arc::from(STOPS)),
            Phase::Serving => Reply::Loading(Arc::from("this node is about to serve")),
        }
    }

    /// To be called in [`change`](Self::change), whose lock keeps readers from the history until it is the new one.
    fn next_generation(&self) {
        self.dataset_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes the state, and sets what it allows. Nothing else sets that.
    fn change(&self, with: impl FnOnce(&mut ReplicaState)) {
        self.change_then(with, || {});
    }

    /// The same, and calls `then` once no request is under way that was admitted before, and before another thread sees
    /// the new state.
    fn change_then(&self, with: impl FnOnce(&mut ReplicaState), then: impl FnOnce()) {
        let mut state = self.state.lock();
        let before = self.watcher.is_some().then(|| state.phase.clone());
        with(&mut state);
        let serves = !matches!(state.phase, Phase::Loading(_));
        let leads = self.role == Role::Leader && state.phase == Phase::Serving && !state.stops;
        self.engine.admit(Admission {
            reads: serves,
            writes: leads,
            epoch: state.history.last().map_or(0, |start| start.epoch),
        });
        then();
        if let Some(watcher) = &self.watcher
            && before.as_ref() != Some(&state.phase)
        {
            // Under the lock, for the order. A receiver that is gone needs no phase.
            let _ = watcher.send(state.phase.clone());
        }
    }
}
