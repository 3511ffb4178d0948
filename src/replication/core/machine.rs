//! The role of a node as a state machine: which peer it follows, and when it leads.
//!
//! [`Machine::tick`] and [`Machine::step`] take the time and what has happened, and return what is to be done. The
//! rules of the choice are in [`role`] and [`start`].

use std::fmt;
use std::time::{Duration, Instant};

use super::liveness::Peer;
use super::pauses::{BACK_OFF, Pauses};
use super::role::{self, Choice, LeadOrder, Names};
use super::role_state::{Leader, RoleState};
use super::start::{self, Next, Own};
use crate::history::{EpochStart, History};

/// Interval at which a waiting node decides again.
const DECISION_PAUSE: Duration = Duration::from_millis(5);

/// Time between two looks at the role of a node that leads or has nothing to do. A change of role wakes the node.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// Time after which a candidate logs what it waits for.
const NOTABLE_WAIT: Duration = Duration::from_millis(500);

/// How long a follower that has lost its leader has its peers asked often.
const HURRIED_AFTER_LOSS: Duration = Duration::from_secs(1);

/// When a stream has done what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Never: the node follows until the stream ends.
    Follow,
    /// When the node has applied everything up to this index.
    CatchUp(u64),
}

/// Why the follower side of a stream ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowError {
    /// No process listens at the peer's address.
    NoProcess(String),
    /// Nothing came from the peer for the leader timeout, which is given.
    Silent(Duration),
    /// This node's disk has no space for what it has received, or is slow: for the leader timeout it has taken no more.
    Disk(String),
    /// The connection failed.
    Lost(String),
    /// The peer refuses to be followed.
    Rejected(String),
    /// The peer cannot be followed yet: it has no data set, or is sending a snapshot to another follower.
    NotYet(String),
    /// Another node than the expected one answers.
    WrongNode(String),
    /// The stream breaks the protocol, or has ended.
    Protocol(String),
    /// The data set differs from the leader's.
    Diverged(String),
    /// The leader does not know the node's data set. The node keeps it and does not follow.
    KeepsData(String),
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FollowError::Silent(limit) => {
                write!(f, "it said nothing for {} ms", limit.as_millis())
            }
            FollowError::NoProcess(text)
            | FollowError::Disk(text)
            | FollowError::Lost(text)
            | FollowError::Rejected(text)
            | FollowError::NotYet(text)
            | FollowError::WrongNode(text)
            | FollowError::Protocol(text)
            | FollowError::Diverged(text)
            | FollowError::KeepsData(text) => f.write_str(text),
        }
    }
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its goal is reached.
    Reached,
    /// The leader has ordered this node to lead. The node has all of the leader's log.
    Lead(LeadOrder),
    /// It failed, or did not begin.
    Failed(FollowError),
}

/// The result of a stream that the node asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the node has resumed, or has received a whole snapshot.
    pub has_followed: bool,
    /// Whether the node holds a part of a snapshot, which is no data set.
    pub is_in_snapshot: bool,
}

/// Importance of a line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// An operator has to know.
    Error,
    /// Something does not go as it should.
    Warn,
    /// A change of state.
    Info,
}

/// Action of a node after a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Log this line.
    Log(Level, String),
    /// Become a follower of this leader.
    Follow(Leader),
    /// Become a candidate, for this reason.
    Campaign(String),
    /// Replace the reason why the node does not serve, or does not lead.
    SetReason(String),
    /// Open this epoch, and lead.
    Lead(EpochStart),
    /// Keep the data set, which the leader does not know.
    Refuse(String),
    /// Stop serving the data set, which differs from the leader's.
    MarkDiverged(String),
    /// Discard what the node holds: a part of a snapshot.
    Discard(String),
    /// Stop taking writes, and keep the data set: another node leads in a later epoch.
    Yield(String),
    /// Show in STATUS why the node does not follow its leader, or that it does.
    SetNotFollowing(Option<String>),
    /// End the stream from the leader.
    EndStream,
    /// Ask this peer for the stream, and tell the machine how it ends.
    Stream {
        /// The peer's name.
        peer: String,
        /// When the stream has done what it is for.
        goal: Goal,
    },
    /// Nothing before this time. Then, or when something has changed, the machine is asked again.
    Wait(Instant),
}

/// The state of the node that decides.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its role.
    pub role: &'a RoleState,
    /// The history of its data set.
    pub history: &'a History,
    /// Index of its last record.
    pub index: u64,
    /// Results of the last questions to its peers.
    pub peers: &'a [Peer],
    /// Whether its data set is known to differ from the leader's. It does not lead with that.
    pub is_diverged: bool,
    /// Whether it stops. It follows on meanwhile, and begins to lead no more.
    pub is_stopping: bool,
    /// A random number, for a nonce or the jitter of a pause.
    pub random: u64,
}

/// The settings of the node that decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name.
    pub own: String,
    /// The leader that `cluster.toml` names.
    pub initial_leader: String,
    /// Digest of that name.
    pub leader_setting: u64,
    /// Name and address of each peer.
    pub peers: Vec<Leader>,
    /// Interval of heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence after which a peer is passed over.
    pub leader_timeout: Duration,
    /// Whether the node has a data directory.
    pub has_directory: bool,
}

/// An attempt to get a stream.
#[derive(Clone, Debug)]
struct Attempt {
    peer: String,
    /// When it ended.
    ended: Instant,
    /// By when the peer is not asked again.
    until: Instant,
}

/// The role of one node.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    pauses: Pauses,
    failures: FailureLog,
    /// Since when the node has no stream. Only what peers have said since then counts.
    since: Instant,
    /// The last attempt, if the node has made one since then.
    tried: Option<Attempt>,
    /// Reason for waiting that was logged last.
    logged: String,
    /// Whether the node led until it ordered a peer to lead.
    has_led: bool,
    was_leader: bool,
    actions: Vec<Action>,
}

impl Machine {
    /// Of a node that has had no stream yet.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Machine {
        Machine {
            settings,
            pauses: Pauses::default(),
            failures: FailureLog::default(),
            since: now,
            tried: None,
            logged: String::new(),
            has_led: false,
            was_leader: false,
            actions: Vec::new(),
        }
    }

    /// Whether the peers are to be asked at once and often, since the next decision depends on their answers.
    #[must_use]
    pub fn is_hurried(&self, role: &RoleState, now: Instant) -> bool {
        match role {
            RoleState::Candidate { .. } => true,
            RoleState::Leader { .. } => false,
            RoleState::Loading { .. } | RoleState::Follower { .. } | RoleState::Refusing { .. } => {
                now.saturating_duration_since(self.since) < HURRIED_AFTER_LOSS
            }
        }
    }

    /// Decides what a node without a stream does now. The last action is a [`Action::Stream`] or a [`Action::Wait`].
    pub fn tick(&mut self, view: View<'_>, now: Instant) -> Vec<Action> {
        if matches!(view.role, RoleState::Leader { .. }) {
            self.was_leader = true;
            self.wait(now + IDLE_PAUSE);
            return self.take_actions();
        }
        if std::mem::take(&mut self.was_leader) {
            self.has_led = true;
            self.lose_leader(now);
        }
        match view.role {
            RoleState::Candidate { .. } => self.tick_candidate(view, now),
            RoleState::Loading { .. }
            | RoleState::Follower { .. }
            | RoleState::Refusing { .. }
            | RoleState::Leader { .. } => self.tick_follower(view, now),
        }
        self.take_actions()
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn log(&mut self, level: Level, line: String) {
        self.act(Action::Log(level, line));
    }

    fn wait(&mut self, until: Instant) {
        self.act(Action::Wait(until));
    }

    fn lose_leader(&mut self, now: Instant) {
        self.since = now;
        self.tried = None;
        self.logged.clear();
        self.pauses = Pauses::default();
    }

    /// A candidate asks the peers for their positions, follows one that leads already, catches up with the one that is
    /// most up to date, or leads.
    fn tick_candidate(&mut self, view: View<'_>, now: Instant) {
        if let Some(tried) = &self.tried
            && now < tried.until
        {
            return self.wait(tried.until);
        }
        let own = Own {
            history: view.history,
            index: view.index,
            leader_setting: self.settings.leader_setting,
            has_led: self.has_led,
            has_directory: self.settings.has_directory,
        };
        let timeout = self.settings.leader_timeout;
        match start::next(own, view.peers, self.since, timeout, now) {
            Next::Wait {
                reason,
                is_conflict,
            } => {
                self.note_wait(reason, is_conflict, now);
                self.wait(now + DECISION_PAUSE);
            }
            Next::Lead { .. } if view.is_stopping => self.wait(now + IDLE_PAUSE),
            Next::Lead { epoch, passed_over } => {
                self.log_passed_over(&passed_over);
                // The node that this one ordered to lead opens the next epoch if it obeys after all: the numbers never
                // meet.
                let epoch = if self.has_led {
                    epoch.saturating_add(1)
                } else {
                    epoch
                };
                self.lead(epoch, view);
                self.wait(now + IDLE_PAUSE);
            }
            Next::Follow { peer, files_differ } => {
                if files_differ {
                    let line =
                        format!("{peer} leads, by its own cluster.toml; this node follows it");
                    self.log(Level::Error, line);
                } else {
                    self.log(Level::Info, format!("{peer} leads; this node follows it"));
                }
                self.follow(&peer, view, now);
            }
            Next::CatchUp {
                peer,
                epoch,
                index,
                passed_over,
            } => {
                self.log_passed_over(&passed_over);
                let line = format!(
                    "{peer} is most up to date, at index {index} of epoch {epoch}; catching up with it"
                );
                self.log(Level::Info, line);
                let reason = format!("this leader is catching up with {peer}");
                self.act(Action::SetReason(reason));
                self.stream(&peer, Goal::CatchUp(index), now);
            }
        }
    }

    fn log_passed_over(&mut self, peers: &[(String, String)]) {
        for (name, how) in peers {
            let line = format!(
                "{name} does not answer, and is passed over ({how}); what it alone holds is not taken"
            );
            self.log(Level::Error, line);
        }
    }

    /// Notes what a candidate waits for. A short wait is not worth a line in the log.
    fn note_wait(&mut self, reason: String, is_conflict: bool, now: Instant) {
        if reason == self.logged {
            return;
        }
        self.act(Action::SetReason(reason.clone()));
        if now.saturating_duration_since(self.since) < NOTABLE_WAIT {
            return;
        }
        if is_conflict {
            self.log(Level::Error, format!("not leading: {reason}"));
        } else {
            self.log(Level::Warn, format!("not leading yet: {reason}"));
        }
        self.logged = reason;
    }

    /// Opens an epoch above all that are known.
    fn lead(&mut self, epoch: u64, view: View<'_>) {
        self.act(Action::Lead(EpochStart {
            epoch,
            nonce: view.random,
            start_index: view.index + 1,
        }));
        self.act(Action::SetNotFollowing(None));
        self.has_led = false;
        self.was_leader = true;
        self.tried = None;
    }

    /// A follower without a stream tries its leader, or another node that leads, or becomes a candidate.
    fn tick_follower(&mut self, view: View<'_>, now: Instant) {
        let names = Names {
            own: &self.settings.own,
            initial: &self.settings.initial_leader,
            current: view.role.leader().map(|leader| &*leader.name),
        };
        let is_refusing = matches!(view.role, RoleState::Refusing { .. });
        let leader = match role::choose(names, view.peers, self.since) {
            Choice::Follow(leader) => leader,
            // A data set that the last leader did not know, or that differs from its own, is no ground for a new epoch.
            Choice::Campaign if is_refusing || view.is_diverged || view.is_stopping => {
                return self.wait(now + IDLE_PAUSE);
            }
            Choice::Campaign => return self.campaign(now),
        };
        if let Some(tried) = &self.tried
            && tried.peer == leader
            && now < tried.until
            && !tried.is_up_since(view.peers)
        {
            // Another peer may be found to lead meanwhile.
            let pause = if self.is_hurried(view.role, now) {
                DECISION_PAUSE
            } else {
                BACK_OFF.0
            };
            let until = tried.until.min(now + pause);
            return self.wait(until);
        }
        self.follow(&leader, view, now);
    }

    fn campaign(&mut self, now: Instant) {
        let line = "no node leads; this node is to lead at first, and looks for data";
        self.log(Level::Info, line.to_owned());
        let why = "this leader is asking the other nodes for data";
        self.act(Action::Campaign(why.to_owned()));
        self.has_led = false;
        self.act(Action::SetNotFollowing(None));
        self.lose_leader(now);
        self.wait(now);
    }

    /// The node follows the peer of this name.
    fn follow(&mut self, name: &str, view: View<'_>, now: Instant) {
        let mut peers = self.settings.peers.iter();
        let Some(leader) = peers.find(|peer| *peer.name == *name).cloned() else {
            return self.wait(now + IDLE_PAUSE);
        };
        // One that led until it heard of another leader keeps that reason until it is known to fit.
        let keeps = matches!(view.role, RoleState::Refusing { leader: None, .. });
        if !keeps && view.role.leader() != Some(&leader) {
            self.act(Action::Follow(leader));
            self.has_led = false;
        }
        self.stream(name, Goal::Follow, now);
    }

    fn stream(&mut self, name: &str, goal: Goal, now: Instant) {
        let peer = name.to_owned();
        self.tried = Some(Attempt {
            peer: peer.clone(),
            ended: now,
            until: now,
        });
        self.act(Action::Stream { peer, goal });
    }

    /// The stream that the last [`tick`](Self::tick) asked for has ended.
    pub fn step(&mut self, ended: Ended, view: View<'_>, now: Instant) -> Vec<Action> {
        let Some(tried) = self.tried.take() else {
            return Vec::new();
        };
        if ended.has_followed {
            self.pauses = Pauses::default();
            self.failures = FailureLog::default();
            self.since = now;
            self.has_led = false;
        }
        match ended.outcome {
            Outcome::Reached => self.since = now,
            // The old leader leads again once it hears that this node does not.
            Outcome::Lead(_) if view.is_stopping => self.since = now,
            Outcome::Lead(order) => self.lead_as_ordered(order, view),
            Outcome::Failed(error) => {
                if ended.is_in_snapshot {
                    // A part of a snapshot is no data set, and no ground for a new epoch.
                    let why = format!("the snapshot from {} was interrupted", tried.peer);
                    self.act(Action::Discard(why));
                }
                let longest = if matches!(view.role, RoleState::Candidate { .. }) {
                    self.fail_as_candidate(&tried.peer, &error, now);
                    BACK_OFF.1
                } else {
                    self.fail_as_follower(&tried.peer, &error, view.role)
                };
                let pause = self
                    .pauses
                    .next(error.is_of_start(), longest, view.random, now);
                self.tried = Some(Attempt {
                    peer: tried.peer,
                    ended: now,
                    until: now + pause,
                });
            }
        }
        self.take_actions()
    }

    /// A candidate could not copy a peer. It asks all of them again.
    fn fail_as_candidate(&mut self, peer: &str, error: &FollowError, now: Instant) {
        self.log(Level::Warn, format!("no longer copying {peer}: {error}"));
        let reason = format!("this leader cannot copy {peer}: {error}");
        self.act(Action::SetReason(reason));
        self.since = now;
    }

    /// A follower's stream has failed. Returns the longest pause before the next attempt.
    fn fail_as_follower(&mut self, peer: &str, error: &FollowError, role: &RoleState) -> Duration {
        let text = error.to_string();
        // One that led keeps the reason why it does not any more.
        let keeps_reason = matches!(role, RoleState::Refusing { leader: None, .. });
        match error {
            FollowError::Diverged(_) => self.act(Action::MarkDiverged(text.clone())),
            FollowError::KeepsData(_) if !keeps_reason => self.act(Action::Refuse(text.clone())),
            FollowError::KeepsData(_)
            | FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Disk(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::NotYet(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_) => {}
        }
        let text = format!("not following {peer}: {text}");
        self.act(Action::SetNotFollowing(Some(text.clone())));
        if let Some(level) = self.failures.note(error, &text) {
            self.log(level, text);
        }
        match error {
            // Asking costs little, and the leader is followed soon after it can be.
            FollowError::NotYet(_) | FollowError::Rejected(_) | FollowError::Disk(_) => {
                self.settings.heartbeat_interval
            }
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Lost(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_)
            | FollowError::Diverged(_)
            | FollowError::KeepsData(_) => BACK_OFF.1,
        }
    }

    /// The leader has ordered this node to lead. The stream has checked that this node has all of the leader's log.
    fn lead_as_ordered(&mut self, order: LeadOrder, view: View<'_>) {
        let reports = view.peers.iter().filter_map(Peer::report);
        let reported = reports.map(|report| report.epoch).max().unwrap_or(0);
        self.lead(order.epoch.max(reported).saturating_add(1), view);
    }
}

impl Attempt {
    /// Whether the peer has come up since the attempt.
    fn is_up_since(&self, peers: &[Peer]) -> bool {
        let mut peers = peers.iter().filter(|peer| peer.name == self.peer);
        peers.any(|peer| peer.is_up && peer.since > self.ended)
    }
}

impl FollowError {
    /// Whether the peer may be starting, and may be followed at any moment.
    const fn is_of_start(&self) -> bool {
        match self {
            FollowError::NotYet(_) | FollowError::NoProcess(_) => true,
            FollowError::Silent(_)
            | FollowError::Disk(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_)
            | FollowError::Diverged(_)
            | FollowError::KeepsData(_) => false,
        }
    }
}

/// Decides whether a failure to follow is logged: one line for each reason, not one for each attempt. Texts that differ
/// only in numbers, such as ports, have the same reason.
#[derive(Clone, Debug, Default)]
struct FailureLog {
    last: String,
    waits: bool,
}

impl FailureLog {
    /// The level of the line for this failure; `None` where it is not logged.
    fn note(&mut self, error: &FollowError, text: &str) -> Option<Level> {
        // The reason why a starting leader waits may change; that leader logs it.
        let waits = matches!(error, FollowError::NotYet(_));
        let is_same = {
            let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
            words(text) == words(&self.last)
        };
        if is_same || (waits && self.waits) {
            return None;
        }
        text.clone_into(&mut self.last);
        self.waits = waits;
        Some(match error {
            FollowError::WrongNode(_) => Level::Error,
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Disk(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::NotYet(_)
            | FollowError::Protocol(_)
            | FollowError::Diverged(_)
            | FollowError::KeepsData(_) => Level::Warn,
        })
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::replication::core::liveness::Liveness;
    use crate::replication::core::report::{self, Contact, Report, Role, State, Stopping};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn leader(name: &str) -> Leader {
        Leader {
            name: name.into(),
            addr: format!("{name}:1").into(),
        }
    }

    fn report(name: &str, role: Role, state: State, epoch: u64) -> Contact {
        Contact::Report(Box::new(Report {
            node: name.to_owned(),
            cluster: "demo".to_owned(),
            role,
            state,
            stopping: Stopping::No,
            epoch,
            index: 9,
            process: 1,
            settings: report::Settings::default(),
            peers: vec!["n1".to_owned()],
            follows: None,
        }))
    }

    /// The node `own` of n1, n2 and n3, of which n1 leads at first. It holds 9 records of epoch 3.
    struct Case {
        start: Instant,
        machine: Machine,
        table: Liveness,
        role: RoleState,
        is_stopping: bool,
    }

    impl Case {
        fn new(own: &str, role: RoleState) -> Case {
            let start = Instant::now();
            let others = ["n1", "n2", "n3"].into_iter().filter(|name| *name != own);
            let names = others.clone().map(str::to_owned);
            let settings = Settings {
                own: own.to_owned(),
                initial_leader: "n1".to_owned(),
                leader_setting: 0,
                peers: others.map(leader).collect(),
                heartbeat_interval: Duration::from_millis(500),
                leader_timeout: TIMEOUT,
                has_directory: false,
            };
            Case {
                start,
                machine: Machine::new(settings, start),
                table: Liveness::new(names, TIMEOUT, start),
                role,
                is_stopping: false,
            }
        }

        fn hear(&mut self, name: &str, contact: Contact, ms: u64) {
            let now = self.start + Duration::from_millis(ms);
            self.table.record(name, contact, now, now);
        }

        fn decide(
            &mut self,
            ms: u64,
            f: impl FnOnce(&mut Machine, View<'_>, Instant) -> Vec<Action>,
        ) -> Vec<Action> {
            let start = EpochStart {
                epoch: 3,
                nonce: 3,
                start_index: 1,
            };
            let history = History::new(vec![start]).unwrap();
            let view = View {
                role: &self.role,
                history: &history,
                index: 9,
                peers: self.table.peers(),
                is_diverged: false,
                is_stopping: self.is_stopping,
                random: 7,
            };
            let now = self.start + Duration::from_millis(ms);
            let actions = f(&mut self.machine, view, now);
            let quiet =
                |action: &Action| !matches!(action, Action::Log(..) | Action::SetNotFollowing(_));
            actions.into_iter().filter(quiet).collect()
        }

        fn tick(&mut self, ms: u64) -> Vec<Action> {
            self.decide(ms, Machine::tick)
        }

        fn end(&mut self, outcome: Outcome, ms: u64) -> Vec<Action> {
            let ended = Ended {
                has_followed: !matches!(outcome, Outcome::Failed(FollowError::NotYet(_))),
                outcome,
                is_in_snapshot: false,
            };
            self.decide(ms, |machine, view, now| machine.step(ended, view, now))
        }

        /// The stream is lost in the middle of a snapshot.
        fn end_in_snapshot(&mut self, ms: u64) -> Vec<Action> {
            let ended = Ended {
                has_followed: false,
                outcome: lost(),
                is_in_snapshot: true,
            };
            self.decide(ms, |machine, view, now| machine.step(ended, view, now))
        }
    }

    fn stream(peer: &str) -> Action {
        Action::Stream {
            peer: peer.to_owned(),
            goal: Goal::Follow,
        }
    }

    fn follower_of(name: &str) -> RoleState {
        RoleState::Follower {
            leader: leader(name),
        }
    }

    fn lost() -> Outcome {
        Outcome::Failed(FollowError::Lost("reset".to_owned()))
    }

    #[test]
    fn a_follower_that_loses_its_leader_follows_the_one_that_it_finds() {
        let mut case = Case::new("n3", follower_of("n1"));
        assert_eq!(case.tick(0), [stream("n1")]);
        assert_eq!(case.end(lost(), 1_000), []);
        let pausing = case.tick(1_001);
        assert!(matches!(pausing[..], [Action::Wait(_)]), "{pausing:?}");
        case.hear("n2", report("n2", Role::Leader, State::Serving, 4), 1_010);
        let actions = [Action::Follow(leader("n2")), stream("n2")];
        assert_eq!(case.tick(1_010), actions);
    }

    #[test]
    fn the_initial_leader_campaigns_where_its_leader_is_gone_and_not_where_it_is_silent() {
        for (contact, campaigns) in [
            (Contact::Silent("timed out".to_owned()), false),
            (Contact::NoProcess, true),
        ] {
            let mut case = Case::new("n1", follower_of("n2"));
            case.tick(0);
            case.end(lost(), 1_000);
            case.hear("n2", contact, 90_000);
            let actions = case.tick(90_000);
            let campaign = |action: &Action| matches!(action, Action::Campaign(_));
            assert_eq!(actions.iter().any(campaign), campaigns, "{actions:?}");
        }
    }

    #[test]
    fn a_node_that_stops_does_not_begin_to_lead() {
        let candidate = RoleState::Candidate {
            why: "it asks".into(),
            serves: false,
        };
        for (role, is_stopping) in [
            (follower_of("n2"), true),
            (candidate.clone(), true),
            (candidate, false),
        ] {
            let mut case = Case::new("n1", role);
            case.is_stopping = is_stopping;
            for name in ["n2", "n3"] {
                case.hear(name, Contact::NoProcess, 0);
            }
            let actions = case.tick(10);
            let begins = |action: &Action| matches!(action, Action::Campaign(_) | Action::Lead(_));
            assert_eq!(actions.iter().any(begins), !is_stopping, "{actions:?}");
        }
    }

    #[test]
    fn a_node_that_is_ordered_to_lead_opens_an_epoch_above_all_that_it_knows() {
        let mut case = Case::new("n2", follower_of("n1"));
        case.tick(0);
        case.hear("n3", report("n3", Role::Follower, State::Refused, 8), 10);
        let order = LeadOrder {
            epoch: 3,
            last_index: 9,
            digest: 0,
        };
        let start = EpochStart {
            epoch: 9,
            nonce: 7,
            start_index: 10,
        };
        let actions = case.end(Outcome::Lead(order), 20);
        assert_eq!(actions, [Action::Lead(start)]);
    }

    /// After the order the old leader is a candidate: it leads again only once the target says that it neither leads
    /// nor follows, however long it is silent.
    #[test]
    fn a_leader_that_has_ordered_a_follower_to_lead_does_not_go_back_by_itself() {
        let mut case = Case::new("n2", RoleState::Leader { epoch: 3 });
        case.tick(0);
        case.table.ordered_to_lead("n3", case.start);
        case.role = RoleState::Candidate {
            why: "n3 is about to lead".into(),
            serves: true,
        };
        case.tick(10);
        case.hear("n1", report("n1", Role::Follower, State::Serving, 3), 20);
        for ms in [20, 60_000, 3_600_000] {
            case.hear("n3", Contact::Silent("timed out".to_owned()), ms);
            let actions = case.tick(ms);
            assert!(
                matches!(actions.last(), Some(Action::Wait(_))),
                "{ms}: {actions:?}"
            );
        }
        let mut declined = case.machine.clone();
        std::mem::swap(&mut declined, &mut case.machine);
        case.hear(
            "n3",
            report("n3", Role::Follower, State::Serving, 3),
            3_600_100,
        );
        let leads = |action: &Action| matches!(action, Action::Lead(start) if start.epoch == 5);
        assert!(case.tick(3_600_100).iter().any(leads));
        case.machine = declined;
        case.hear(
            "n3",
            report("n3", Role::Leader, State::Serving, 4),
            3_600_200,
        );
        let actions = [Action::Follow(leader("n3")), stream("n3")];
        assert_eq!(case.tick(3_600_200), actions);
    }

    #[test]
    fn a_part_of_a_snapshot_is_discarded_whatever_the_role() {
        let loading = RoleState::Loading {
            leader: leader("n1"),
            why: "".into(),
        };
        let candidate = RoleState::Candidate {
            why: "".into(),
            serves: false,
        };
        for (own, role, peer) in [("n3", loading, "n1"), ("n1", candidate, "n2")] {
            let mut case = Case::new(own, role);
            case.hear(peer, report(peer, Role::Leader, State::Serving, 4), 0);
            let actions = case.tick(0);
            assert!(actions.contains(&stream(peer)), "{actions:?}");
            let actions = case.end_in_snapshot(1_000);
            let is_discarded = |action: &Action| matches!(action, Action::Discard(_));
            assert!(actions.iter().any(is_discarded), "{actions:?}");
        }
    }

    #[test]
    fn a_node_that_refuses_its_leader_does_not_lead_with_what_it_holds() {
        let role = RoleState::Refusing {
            leader: Some(leader("n2")),
            why: "it is ahead".into(),
        };
        let mut case = Case::new("n1", role);
        case.hear("n2", Contact::NoProcess, 0);
        let actions = case.tick(10);
        assert!(matches!(actions[..], [Action::Wait(_)]), "{actions:?}");
    }
}
