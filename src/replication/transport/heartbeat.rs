//! Asks each peer for STATUS at every heartbeat. [`watch`](crate::replication::watch) judges the answers.

use std::time::{Duration, Instant};

use super::Stop;
use super::ask::Inquiry;
use crate::config::NodeConfig;
use crate::node::Member;
use crate::replication::Replica;
use crate::replication::watch::{self, Watch};

/// Shortest timeout of one question, however short the heartbeat interval is.
const ASK_MIN: Duration = Duration::from_secs(1);

/// Longest timeout of one question while a decision of this node depends on the answer.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Pause between two questions while a decision of this node depends on the answers.
const HURRIED_PAUSE: Duration = Duration::from_millis(20);

/// Checks at every interval which peers are up, and whether the leader is silent.
pub(super) fn run(replica: Replica<'_>, member: &Member, stop: &Stop) {
    while !stop.wait(member.replication.heartbeat_interval) {
        watch::check(replica, Instant::now());
    }
}

/// Asks one peer at every interval.
pub(super) fn probe(replica: Replica<'_>, member: &Member, peer: &NodeConfig, stop: &Stop) {
    let interval = member.replication.heartbeat_interval;
    let mut inquiry = Inquiry::new(member, &peer.name, &peer.addr);
    let mut watch = Watch::new(replica, member, &peer.name);
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
        if watch.contact(contact, began, Instant::now()) {
            stop.end_stream();
        }
        stop.wake();
        if stop.wait_for_turn(interval, HURRIED_PAUSE.min(interval)) {
            return;
        }
    }
}
