//! Drives the role of a node: which peer it follows, and when it leads.
//!
//! The driver knows no socket, thread or clock. The transport and the simulator ask it what to do next, do that, and
//! tell it how it ended. The decisions are those of [`core::role`](super::core::role) and
//! [`core::start`](super::core::start).

use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::Replica;
use super::core::pauses::{BACK_OFF, Pauses};
use super::core::role::{self, Choice, LeadOrder, Names};
use super::core::start::{self, Next, Own};
use super::stream::FollowError;
use super::stream::following::Goal;
use crate::config::NodeConfig;
use crate::history::EpochStart;
use crate::node::{Leader, Member, RoleState};

/// Time between two looks at what the peers have said.
const DECISION_PAUSE: Duration = Duration::from_millis(5);

/// Time between two looks at the role of a node that leads or has nothing to do. A change of role wakes the driver.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// Time after which a candidate logs what it waits for.
const NOTABLE_WAIT: Duration = Duration::from_millis(500);

/// How long a follower that has lost its leader has its peers asked often.
const HURRIED_AFTER_LOSS: Duration = Duration::from_secs(1);

/// The next thing that a node does about its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task<'a> {
    /// Nothing before this time. Then, or when something has changed, the driver is asked again.
    Wait(Instant),
    /// The node asks `peer` for the stream and applies it until it ends.
    Stream {
        /// The peer.
        peer: &'a NodeConfig,
        /// When the stream has done what it is for.
        goal: Goal,
    },
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its goal is reached.
    Reached,
    /// The leader has ordered this node to lead. The node has all of the leader's log.
    Lead(LeadOrder),
    /// It failed, or did not begin.
    Failed(FollowError),
}

/// The result of a stream that the node asked for.
#[derive(Debug)]
pub(super) struct Ended {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// Whether the node has resumed, or has received a whole snapshot.
    pub(super) has_followed: bool,
    /// Whether the node holds a part of a snapshot, which is no data set.
    pub(super) is_in_snapshot: bool,
}

/// The driver of a node's role.
pub(super) struct Driver<'a> {
    replica: Replica<'a>,
    member: &'a Member,
    pauses: Pauses,
    failures: FailureLog,
    /// Since when the node has no stream. Only what peers have said since then counts.
    since: Instant,
    /// The last attempt, if the node has made one since then.
    tried: Option<Attempt<'a>>,
    /// What a candidate was last logged to wait for.
    logged: String,
    /// Whether the node led until it ordered a peer to lead.
    has_led: bool,
    was_leader: bool,
}

/// An attempt to get a stream.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    peer: &'a NodeConfig,
    /// When it ended.
    ended: Instant,
    /// By when the peer is not asked again.
    until: Instant,
}

impl<'a> Driver<'a> {
    /// A driver for a node that has had no stream yet.
    pub(super) fn new(replica: Replica<'a>, member: &'a Member, now: Instant) -> Driver<'a> {
        Driver {
            replica,
            member,
            pauses: Pauses::default(),
            failures: FailureLog::default(),
            since: now,
            tried: None,
            logged: String::new(),
            has_led: false,
            was_leader: false,
        }
    }

    /// Whether the peers are to be asked at once and often, since the next decision depends on their answers.
    pub(super) fn is_hurried(&self, now: Instant) -> bool {
        match self.replica.node.role() {
            RoleState::Candidate { .. } => true,
            RoleState::Leader { .. } => false,
            RoleState::Loading { .. } | RoleState::Follower { .. } | RoleState::Refusing { .. } => {
                now.saturating_duration_since(self.since) < HURRIED_AFTER_LOSS
            }
        }
    }

    /// The next thing to do. `random` gives a nonce or a jitter.
    pub(super) fn next(&mut self, random: u64, now: Instant) -> Task<'a> {
        match self.replica.node.role() {
            RoleState::Leader { .. } => {
                self.was_leader = true;
                Task::Wait(now + IDLE_PAUSE)
            }
            RoleState::Candidate { .. } => {
                self.note_end_of_leading(now);
                self.next_of_candidate(random, now)
            }
            RoleState::Refusing { leader: None, .. } => {
                self.note_end_of_leading(now);
                self.next_of_follower(None, now)
            }
            RoleState::Loading { leader, .. }
            | RoleState::Follower { leader }
            | RoleState::Refusing {
                leader: Some(leader),
                ..
            } => {
                self.note_end_of_leading(now);
                self.next_of_follower(Some(&leader.name), now)
            }
        }
    }

    /// Begins anew where the node led until now.
    fn note_end_of_leading(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_leader) {
            self.has_led = true;
            self.lose_leader(now);
        }
    }

    fn lose_leader(&mut self, now: Instant) {
        self.since = now;
        self.tried = None;
        self.logged.clear();
        self.pauses = Pauses::default();
    }

    fn peer(&self, name: &str) -> Option<&'a NodeConfig> {
        self.member.peers.iter().find(|peer| peer.name == name)
    }

    /// The next thing that a candidate does: it asks the peers for their positions, follows one that leads already,
    /// catches up with the one that is most up to date, or leads.
    fn next_of_candidate(&mut self, random: u64, now: Instant) -> Task<'a> {
        if let Some(tried) = self.tried
            && now < tried.until
        {
            return Task::Wait(tried.until);
        }
        let node = self.replica.node;
        let history = node.history();
        let own = Own {
            history: &history,
            index: node.head().index,
            leader_setting: self.member.settings.leader,
            has_led: self.has_led,
        };
        let timeout = self.member.replication.leader_timeout;
        let next = {
            let liveness = self.replica.peers.liveness().lock();
            start::next(own, liveness.peers(), self.since, timeout, now)
        };
        match next {
            Next::Wait {
                reason,
                is_conflict,
            } => {
                self.note_wait(&reason, is_conflict, now);
                Task::Wait(now + DECISION_PAUSE)
            }
            Next::Lead { epoch, passed_over } => {
                report_passed_over(&passed_over);
                self.lead(epoch, random);
                Task::Wait(now)
            }
            Next::Follow { peer, files_differ } => {
                if files_differ {
                    error!("{peer} leads, by its own cluster.toml; this node follows it");
                } else {
                    info!("{peer} leads; this node follows it");
                }
                self.follow(&peer, now)
            }
            Next::CatchUp {
                peer,
                epoch,
                index,
                passed_over,
            } => {
                report_passed_over(&passed_over);
                info!("{peer} is furthest ahead, at index {index} of epoch {epoch}; copying it");
                node.set_reason(&format!("this leader is copying its data from {peer}"));
                self.stream(&peer, Goal::CatchUp(index), now)
            }
        }
    }

    /// Notes what a candidate waits for. A short wait is not worth a line in the log.
    fn note_wait(&mut self, reason: &str, is_conflict: bool, now: Instant) {
        if reason == self.logged {
            return;
        }
        self.replica.node.set_reason(reason);
        if now.saturating_duration_since(self.since) >= NOTABLE_WAIT {
            if is_conflict {
                error!("not leading: {reason}");
            } else {
                warn!("not leading yet: {reason}");
            }
            reason.clone_into(&mut self.logged);
        }
    }

    /// Opens an epoch above all that are known.
    fn lead(&mut self, epoch: u64, nonce: u64) {
        let node = self.replica.node;
        let start = EpochStart {
            epoch,
            nonce,
            start_index: node.head().index + 1,
        };
        match node.open_epoch(start) {
            Ok(()) => info!(
                "leading from index {} on, in epoch {epoch}",
                start.start_index
            ),
            Err(error) => error!("cannot lead: {error}"),
        }
        self.has_led = false;
        self.replica.peers.set_not_following(None);
    }

    /// The next thing that a follower without a stream does.
    fn next_of_follower(&mut self, current: Option<&str>, now: Instant) -> Task<'a> {
        let names = Names {
            own: &self.member.name,
            initial: &self.member.initial_leader.name,
            current,
        };
        let (choice, has_come) = {
            let liveness = self.replica.peers.liveness().lock();
            let peers = liveness.peers();
            let has_come = self.tried.is_some_and(|tried| {
                let mut peers = peers.iter().filter(|peer| peer.name == tried.peer.name);
                peers.any(|peer| peer.is_up && peer.since > tried.ended)
            });
            (role::choose(names, peers, self.since), has_come)
        };
        let is_refusing = matches!(self.replica.node.role(), RoleState::Refusing { .. });
        let leader = match choice {
            Choice::Follow(leader) => leader,
            // A data set that the last leader did not know is no ground for a new epoch.
            Choice::Campaign if is_refusing => return Task::Wait(now + IDLE_PAUSE),
            Choice::Campaign => {
                info!("no node leads; this node is to lead at first, and looks for data");
                let why = "this leader is asking the other nodes for data";
                self.replica.node.campaign(why);
                self.replica.peers.set_not_following(None);
                self.lose_leader(now);
                return Task::Wait(now);
            }
        };
        if let Some(tried) = self.tried
            && tried.peer.name == leader
            && now < tried.until
            && !has_come
        {
            // Another peer may be found to lead meanwhile.
            return Task::Wait(tried.until.min(now + self.look_interval(now)));
        }
        self.follow(&leader, now)
    }

    /// Time between two looks at what the peers have said, for a follower that pauses.
    fn look_interval(&self, now: Instant) -> Duration {
        if self.is_hurried(now) {
            DECISION_PAUSE
        } else {
            BACK_OFF.0
        }
    }

    /// The node follows the peer of this name.
    fn follow(&mut self, name: &str, now: Instant) -> Task<'a> {
        let node = self.replica.node;
        let Some(peer) = self.peer(name) else {
            return Task::Wait(now + IDLE_PAUSE);
        };
        let leader = Leader {
            name: name.into(),
            addr: peer.addr.as_str().into(),
        };
        let role = node.role();
        // One that led until it heard of another leader keeps that reason until it is known to fit.
        let keeps = matches!(role, RoleState::Refusing { leader: None, .. });
        if !keeps && role.leader() != Some(&leader) {
            node.follow(leader);
            self.has_led = false;
        }
        self.stream(name, Goal::Follow, now)
    }

    fn stream(&mut self, name: &str, goal: Goal, now: Instant) -> Task<'a> {
        match self.peer(name) {
            Some(peer) => {
                let (ended, until) = (now, now);
                self.tried = Some(Attempt { peer, ended, until });
                Task::Stream { peer, goal }
            }
            None => Task::Wait(now + DECISION_PAUSE),
        }
    }

    /// The stream of the last task has ended. `random` gives the jitter of the pause.
    pub(super) fn ended(&mut self, ended: Ended, random: u64, now: Instant) {
        let Some(Attempt { peer, .. }) = self.tried else {
            return;
        };
        if ended.has_followed {
            self.pauses = Pauses::default();
            self.failures = FailureLog::default();
            self.since = now;
        }
        let error = match ended.outcome {
            Outcome::Failed(error) => error,
            Outcome::Reached => {
                self.since = now;
                self.tried = None;
                return;
            }
            Outcome::Lead(order) => return self.lead_as_ordered(order, random),
        };
        let text = error.to_string();
        let longest = if self.replica.node.is_candidate() {
            self.note_failure_of_candidate(&text, ended.is_in_snapshot, now);
            BACK_OFF.1
        } else {
            self.note_failure_of_follower(&error, &text, peer)
        };
        let pause = self.pauses.next(is_eager(&error), longest, random, now);
        self.tried = Some(Attempt {
            peer,
            ended: now,
            until: now + pause,
        });
    }

    /// A candidate could not copy a peer. It asks all of them again.
    fn note_failure_of_candidate(&mut self, text: &str, is_in_snapshot: bool, now: Instant) {
        let node = self.replica.node;
        let name = self.tried.map_or("", |tried| tried.peer.name.as_str());
        warn!("no longer copying {name}: {text}");
        if is_in_snapshot {
            node.discard_dataset("this leader is asking the other nodes for data");
        }
        node.set_reason(&format!("this leader cannot copy {name}: {text}"));
        self.since = now;
    }

    /// A follower's stream has failed. Returns the longest pause before the next attempt.
    fn note_failure_of_follower(
        &mut self,
        error: &FollowError,
        text: &str,
        peer: &NodeConfig,
    ) -> Duration {
        let Replica { node, peers } = self.replica;
        match error {
            FollowError::Diverged(_) => node.mark_diverged(text),
            FollowError::KeepsData(_) => {
                // One that led keeps the reason why it does not any more.
                if !matches!(node.role(), RoleState::Refusing { leader: None, .. }) {
                    node.refuse(text);
                }
            }
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::NotYet(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_) => {}
        }
        let text = format!("not following {}: {text}", peer.name);
        peers.set_not_following(Some(&text));
        self.failures.note(error, text);
        match error {
            // Asking costs little, and the leader is followed soon after it can be.
            FollowError::NotYet(_) | FollowError::Rejected(_) => {
                self.member.replication.heartbeat_interval
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
    fn lead_as_ordered(&mut self, order: LeadOrder, nonce: u64) {
        let reported = {
            let liveness = self.replica.peers.liveness().lock();
            let reports = liveness.peers().iter().filter_map(|peer| peer.report());
            reports.map(|report| report.epoch).max().unwrap_or(0)
        };
        self.lead(order.epoch.max(reported) + 1, nonce);
        self.tried = None;
    }
}

fn report_passed_over(peers: &[(String, String)]) {
    for (name, how) in peers {
        error!(
            "{name} does not answer, and is passed over ({how}); what it alone holds is not taken"
        );
    }
}

/// Whether the leader may be followed at any moment: it is starting.
fn is_eager(error: &FollowError) -> bool {
    match error {
        FollowError::NotYet(_) | FollowError::NoProcess(_) => true,
        FollowError::Silent(_)
        | FollowError::Lost(_)
        | FollowError::Rejected(_)
        | FollowError::WrongNode(_)
        | FollowError::Protocol(_)
        | FollowError::Diverged(_)
        | FollowError::KeepsData(_) => false,
    }
}

/// Logs why the leader is not followed: one line for each reason, not one for each attempt. Texts that differ only in
/// numbers, such as ports, have the same reason.
#[derive(Debug, Default)]
struct FailureLog {
    last: String,
    waits: bool,
}

impl FailureLog {
    fn note(&mut self, error: &FollowError, text: String) {
        // The reason why a starting leader waits may change; that leader logs it.
        let waits = matches!(error, FollowError::NotYet(_));
        let is_same = {
            let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
            words(&text) == words(&self.last)
        };
        if is_same || (waits && self.waits) {
            return;
        }
        match error {
            FollowError::WrongNode(_) => error!("{text}"),
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::NotYet(_)
            | FollowError::Protocol(_)
            | FollowError::Diverged(_)
            | FollowError::KeepsData(_) => warn!("{text}"),
        }
        self.last = text;
        self.waits = waits;
    }
}
