//! Judges what the peers of a node say, and how long they have been silent.
//!
//! Knows no socket, thread or clock: the transport and the simulator ask the peers, and pass in the results.

use std::time::Instant;

use log::{error, info, warn};

use super::Replica;
use super::core::liveness::{Change, LeaderChange};
use super::core::report::{Contact, Report, Role, State};
use super::core::role::supersedes;
use crate::node::{Member, Node};

/// Checks which peers are up, and whether the leader is silent. To be called at every heartbeat interval.
pub(crate) fn check(replica: Replica<'_>, now: Instant) {
    let changes = replica.peers.liveness().lock().check(now);
    changes.into_iter().for_each(report_change);
    let role = replica.node.role();
    let Some(leader) = role.leader() else {
        return;
    };
    match replica.peers.check_leader(&leader.name, now) {
        None => {}
        // A cluster that is stopped as a whole loses its leader first.
        Some(LeaderChange::TimedOut(_)) if replica.peers.is_stopping() => {}
        Some(LeaderChange::TimedOut(silence)) => error!(
            "leader timeout: nothing heard from leader {} for {} ms",
            leader.name,
            silence.as_millis()
        ),
        Some(LeaderChange::Back(silence)) => info!(
            "leader {} is heard again, after {} ms",
            leader.name,
            silence.as_millis()
        ),
    }
}

/// The judgement of one peer.
pub(crate) struct Watch<'a> {
    replica: Replica<'a>,
    member: &'a Member,
    peer: &'a str,
    notes: Notes,
}

impl<'a> Watch<'a> {
    /// Of a peer that was not asked yet.
    pub(crate) fn new(replica: Replica<'a>, member: &'a Member, peer: &'a str) -> Watch<'a> {
        Watch {
            replica,
            member,
            peer,
            notes: Notes::default(),
        }
    }

    /// Judges the result of an attempt to ask the peer, which began at `began`. Returns whether the node ends the
    /// stream from its leader, since the peer leads in a later epoch.
    #[must_use]
    pub(crate) fn contact(&mut self, contact: Contact, began: Instant, now: Instant) -> bool {
        let Replica { node, peers } = self.replica;
        self.notes.note(node, self.member, self.peer, &contact);
        let mut leaves = false;
        if let Contact::Report(report) = &contact {
            judge_leaders(node, self.member, report);
            let role = node.role();
            if let Some(leader) = role.leader() {
                if *leader.name == *self.peer && report.leads() {
                    // Not when it was answered, since the leader may have looked at its index long before.
                    peers.leader_told(report.index, node.head().index, began);
                }
                leaves = supersedes(report, &leader.name, last_epoch(node));
            }
        }
        let mut liveness = peers.liveness().lock();
        let change = liveness.record(self.peer, contact, began, now);
        drop(liveness);
        change.into_iter().for_each(report_change);
        leaves
    }
}

fn last_epoch(node: &Node) -> u64 {
    node.history().last().map_or(0, |start| start.epoch)
}

/// The last state of a peer that was logged, so that each state is logged once.
#[derive(Default)]
struct Notes {
    stranger: String,
    unclear: String,
    differences: Vec<&'static str>,
    two_leaders: bool,
}

impl Notes {
    fn note(&mut self, node: &Node, member: &Member, peer: &str, contact: &Contact) {
        match contact {
            Contact::Stranger(text) => {
                if *text != self.stranger {
                    error!(
                        "{text}, and not {peer}: it is passed over; correct addr in cluster.toml"
                    );
                    self.stranger.clone_from(text);
                }
            }
            Contact::Report(report) => {
                self.stranger.clear();
                self.unclear.clear();
                self.note_report(node, member, peer, report);
            }
            Contact::Unclear(text) => {
                if *text != self.unclear {
                    warn!("{peer} gives no usable answer: {text}");
                    self.unclear.clone_from(text);
                }
            }
            Contact::NoProcess | Contact::Silent(_) => {}
        }
    }

    fn note_report(&mut self, node: &Node, member: &Member, peer: &str, report: &Report) {
        let differences = member.settings.differences(&report.settings);
        if differences != self.differences {
            if differences.is_empty() {
                info!("{peer} has the same settings as this node again");
            } else {
                let groups = differences.join(", ");
                error!("cluster.toml of {peer} and of this node differ in: {groups}");
            }
            self.differences = differences;
        }
        // One that has yielded already has led all the same.
        let has_led = report.role == Role::Leader && report.state != State::Loading;
        let two_leaders = node.takes_writes() && has_led;
        if two_leaders && !self.two_leaders {
            error!(
                "two leaders: {peer} leads as well, in epoch {}; writes that they have taken apart cannot be joined",
                report.epoch
            );
        }
        self.two_leaders = two_leaders;
    }
}

/// Where this node and the peer both lead, the one with the older epoch takes no more writes. Equal epochs are told
/// apart by the number of the process.
fn judge_leaders(node: &Node, member: &Member, report: &Report) {
    if !node.takes_writes() || !report.leads() {
        return;
    }
    let epoch = last_epoch(node);
    if (report.epoch, report.process) > (epoch, member.process) {
        let peer = &report.node;
        let text = format!(
            "{peer} leads in epoch {}, this node in epoch {epoch}: this one takes no more writes; compare their data \
             (gopherstore-cli diff), correct leader in cluster.toml, and restart this node",
            report.epoch
        );
        error!("{text}");
        node.yield_to_other_leader(&text);
    }
}

fn report_change(change: Change) {
    let (name, after) = (change.name, change.after.as_millis());
    if change.is_up {
        info!("{name} is up, after {after} ms");
    } else {
        warn!("{name} is down, after {after} ms");
    }
}
