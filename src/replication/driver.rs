//! Carries out what [`core::machine`](super::core::machine) decides about the role of a node.
//!
//! The driver knows no socket, thread or clock. The transport and the simulator ask it what to do next, do that, and
//! tell it how it ended.

use std::time::Instant;

use log::{error, info, warn};

use super::Replica;
use super::core::machine::{Action, Level, Machine, Settings, View};
pub(crate) use super::core::machine::{Ended, Goal, Outcome};
use crate::config::NodeConfig;
use crate::history::EpochStart;
use crate::node::{Leader, Member};

/// The next thing that a node does about its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task<'a> {
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

/// The driver of a node's role.
pub(crate) struct Driver<'a> {
    replica: Replica<'a>,
    member: &'a Member,
    machine: Machine,
}

impl<'a> Driver<'a> {
    /// A driver for a node that has had no stream yet.
    pub(crate) fn new(replica: Replica<'a>, member: &'a Member, now: Instant) -> Driver<'a> {
        let peers = member.peers.iter().map(|peer| Leader {
            name: peer.name.as_str().into(),
            addr: peer.addr.as_str().into(),
        });
        let settings = Settings {
            own: member.name.clone(),
            initial_leader: member.initial_leader.name.to_string(),
            leader_setting: member.settings.leader,
            peers: peers.collect(),
            heartbeat_interval: member.replication.heartbeat_interval,
            leader_timeout: member.replication.leader_timeout,
            has_directory: replica.node.has_directory(),
        };
        Driver {
            replica,
            member,
            machine: Machine::new(settings, now),
        }
    }

    /// Whether the peers are to be asked at once and often, since the next decision depends on their answers.
    pub(crate) fn is_hurried(&self, now: Instant) -> bool {
        self.machine.is_hurried(&self.replica.node.role(), now)
    }

    /// The next thing to do. `random` gives a nonce or a jitter.
    pub(crate) fn next(&mut self, random: u64, now: Instant) -> Task<'a> {
        let actions = self.decide(random, |machine, view| machine.tick(view, now));
        self.carry_out(actions).unwrap_or(Task::Wait(now))
    }

    /// The stream of the last task has ended. `random` gives the jitter of a pause, or a nonce.
    pub(crate) fn ended(&mut self, ended: Ended, random: u64, now: Instant) {
        let actions = self.decide(random, |machine, view| machine.step(ended, view, now));
        self.carry_out(actions);
    }

    fn decide<T>(&mut self, random: u64, f: impl FnOnce(&mut Machine, View<'_>) -> T) -> T {
        let Replica { node, peers } = self.replica;
        let (role, history) = (node.role(), node.history());
        let index = node.last_index();
        let is_stopping = peers.is_stopping();
        let liveness = peers.liveness().lock();
        let view = View {
            role: &role,
            history: &history,
            index,
            peers: liveness.peers(),
            is_diverged: node.is_diverged(),
            is_stopping,
            random,
        };
        f(&mut self.machine, view)
    }

    /// Does what was decided, and returns what is left to the caller.
    fn carry_out(&self, actions: Vec<Action>) -> Option<Task<'a>> {
        let mut task = None;
        for action in actions {
            match action {
                Action::Stream { peer, goal } => {
                    let mut peers = self.member.peers.iter();
                    let peer = peers.find(|found| found.name == peer)?;
                    task = Some(Task::Stream { peer, goal });
                }
                Action::Wait(until) => task = Some(Task::Wait(until)),
                Action::Log(..)
                | Action::Follow(_)
                | Action::Campaign(_)
                | Action::SetReason(_)
                | Action::Lead(_)
                | Action::Refuse(_)
                | Action::MarkDiverged(_)
                | Action::Discard(_)
                | Action::Yield(_)
                | Action::SetNotFollowing(_)
                | Action::EndStream => carry_out(self.replica, action),
            }
        }
        task
    }
}

/// Does what an action says that concerns the node alone.
pub(super) fn carry_out(replica: Replica<'_>, action: Action) {
    let Replica { node, peers } = replica;
    match action {
        Action::Log(Level::Error, line) => error!("{line}"),
        Action::Log(Level::Warn, line) => warn!("{line}"),
        Action::Log(Level::Info, line) => info!("{line}"),
        Action::Follow(leader) => node.follow(leader),
        Action::Campaign(why) => node.campaign(&why),
        Action::SetReason(why) => node.set_reason(&why),
        Action::Lead(start) => lead(replica, start),
        Action::Refuse(why) => node.refuse(&why),
        Action::MarkDiverged(why) => node.mark_diverged(&why),
        Action::Discard(why) => node.discard_copy(&why),
        Action::Yield(why) => node.yield_to_other_leader(&why),
        Action::SetNotFollowing(why) => peers.set_not_following(why.as_deref()),
        // The caller does these.
        Action::EndStream | Action::Stream { .. } | Action::Wait(_) => {}
    }
}

/// Applies all that is logged, and leads in a new epoch.
fn lead(replica: Replica<'_>, start: EpochStart) {
    let node = replica.node;
    if let Err(error) = node.engine().apply(u64::MAX) {
        error!("cannot lead: {error}");
        node.mark_diverged(&error.to_string());
        return;
    }
    match node.open_epoch(start) {
        Ok(()) => info!(
            "leading from index {} on, in epoch {}",
            start.start_index, start.epoch
        ),
        Err(error) => error!("cannot lead: {error}"),
    }
}
