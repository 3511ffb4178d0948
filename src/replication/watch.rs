//! Carries out what [`core::watch`](super::core::watch) decides about the peers of a node.
//!
//! Knows no socket, thread or clock: the transport and the simulator ask the peers, and pass in the results.

use std::time::Instant;

use super::Replica;
use super::core::machine::Action;
use super::core::report::Contact;
use super::core::watch::{self, View};
use super::driver::carry_out;
use crate::node::Member;

/// Checks which peers are up, and whether the leader is silent. To be called at every heartbeat interval.
pub(crate) fn check(replica: Replica<'_>, now: Instant) {
    let Replica { node, peers } = replica;
    let changes = peers.liveness().lock().check(now);
    for change in changes {
        carry_out(replica, watch::line_of_change(&change));
    }
    if let Some(leader) = node.role().leader()
        && let Some(change) = peers.check_leader(&leader.name, now)
        && let Some(line) = watch::line_of_leader(&leader.name, change, peers.is_stopping())
    {
        carry_out(replica, line);
    }
}

/// The judgement of one peer.
pub(crate) struct Watch<'a> {
    replica: Replica<'a>,
    member: &'a Member,
    peer: &'a str,
    watch: watch::Watch,
}

impl<'a> Watch<'a> {
    /// Of a peer that was not asked yet.
    pub(crate) fn new(replica: Replica<'a>, member: &'a Member, peer: &'a str) -> Watch<'a> {
        Watch {
            replica,
            member,
            peer,
            watch: watch::Watch::new(peer),
        }
    }

    /// Judges the result of an attempt to ask the peer, which began at `began`. Returns whether the node ends the
    /// stream from its leader, since the peer leads in a later epoch.
    #[must_use]
    pub(crate) fn contact(&mut self, contact: Contact, began: Instant, now: Instant) -> bool {
        let Replica { node, peers } = self.replica;
        let role = node.role();
        if let Contact::Report(report) = &contact
            && report.leads()
            && role
                .leader()
                .is_some_and(|leader| *leader.name == *self.peer)
        {
            // Not when it was answered, since the leader may have looked at its index long before.
            peers.leader_told(report.index, node.head().index, began);
        }
        let view = View {
            role: &role,
            takes_writes: node.takes_writes(),
            epoch: node.history().last().map_or(0, |start| start.epoch),
            process: self.member.process,
            settings: &self.member.settings,
        };
        let mut leaves = false;
        for action in self.watch.step(&contact, view) {
            leaves |= action == Action::EndStream;
            carry_out(self.replica, action);
        }
        let change = peers
            .liveness()
            .lock()
            .record(self.peer, contact, began, now);
        if let Some(change) = change {
            carry_out(self.replica, watch::line_of_change(&change));
        }
        leaves
    }
}
