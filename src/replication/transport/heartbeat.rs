//! Asks each peer for STATUS at every heartbeat, and judges what the answers mean for this node.

use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::Stop;
use super::ask::Inquiry;
use crate::config::NodeConfig;
use crate::node::{Member, Node};
use crate::replication::Replica;
use crate::replication::core::liveness::{Change, LeaderChange};
use crate::replication::core::report::{Contact, Report, Role, State};

/// Shortest timeout of one question, however short the heartbeat interval is.
const ASK_MIN: Duration = Duration::from_secs(1);

/// Longest timeout of one question while a node that starts or stops depends on the answer.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Pause between two questions while a node that starts or stops depends on the answers.
const HURRIED_PAUSE: Duration = Duration::from_millis(20);

/// Checks at every interval which peers are up, and whether the leader is silent.
pub(super) fn run(replica: Replica<'_>, member: &Member, stop: &Stop) {
    while !stop.wait(member.replication.heartbeat_interval) {
        let now = Instant::now();
        let changes = replica.peers.liveness().lock().check(now);
        changes.into_iter().for_each(report_change);
        if replica.node.is_leader() {
            continue;
        }
        match replica.peers.check_leader(&member.leader, now) {
            None => {}
            // A cluster that is stopped as a whole loses its leader first.
            Some(LeaderChange::TimedOut(_)) if replica.peers.is_stopping() => {}
            Some(LeaderChange::TimedOut(silence)) => error!(
                "leader timeout: nothing heard from leader {} for {} ms",
                member.leader,
                silence.as_millis()
            ),
            Some(LeaderChange::Back(silence)) => info!(
                "leader {} is heard again, after {} ms",
                member.leader,
                silence.as_millis()
            ),
        }
    }
}

/// Asks one peer at every interval.
pub(super) fn probe(replica: Replica<'_>, member: &Member, peer: &NodeConfig, stop: &Stop) {
    let Replica { node, peers } = replica;
    let interval = member.replication.heartbeat_interval;
    let mut inquiry = Inquiry::new(member, &peer.name, &peer.addr);
    let mut notes = Notes::default();
    loop {
        let timeout = if stop.is_hurried() {
            member.replication.leader_timeout.min(ASK_MAX)
        } else {
            interval
        };
        let began = Instant::now();
        let contact = inquiry.ask(began + timeout.max(ASK_MIN), stop);
        if stop.is_stopped() {
            return;
        }
        notes.note(node, member, &peer.name, &contact);
        if let Contact::Report(report) = &contact {
            judge_leaders(node, member, report);
            if peer.name == member.leader && report.leads() {
                // Not when it was answered, since the leader may have looked at its index long before.
                peers.leader_told(report.index, node.head().index, began);
            }
        }
        let now = Instant::now();
        let change = peers
            .liveness()
            .lock()
            .record(&peer.name, contact, began, now);
        change.into_iter().for_each(report_change);
        if stop.wait_for_turn(interval, HURRIED_PAUSE.min(interval)) {
            return;
        }
    }
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
    let epoch = node.history().last().map_or(0, |start| start.epoch);
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
