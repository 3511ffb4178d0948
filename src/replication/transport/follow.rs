//! The follower side: one stream from the node that is followed, and what a node does before it leads.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use log::{error, warn};

use crate::config::NodeConfig;
use crate::node::{Member, Phase};
use crate::replication::Replica;
use crate::replication::stream::FollowError;
use crate::replication::stream::following::FollowerStream;

use super::Stop;
use super::follow_stream;
use super::pauses::{BACK_OFF, Pauses, pause_for};
use super::recover::recover;

/// Follows the leader until the node stops; or, where this node is to lead, recovers the data and begins to lead.
pub(super) fn run(replica: Replica<'_>, member: &Member, stop: &Stop) {
    if replica.node.is_leader() {
        recover(replica, member, stop);
    } else if let Some(leader) = member.peers.iter().find(|peer| peer.name == member.leader) {
        follow(replica, member, leader, stop);
    }
}

/// Follows the leader, again and again, until the node stops.
fn follow(replica: Replica<'_>, member: &Member, leader: &NodeConfig, stop: &Stop) {
    let mut pauses = Pauses::new();
    let mut failures = FailureLog::default();
    while !stop.is_stopped() {
        let mut stream = FollowerStream::new(replica, member, &leader.name);
        let error = match follow_stream::run(&mut stream, &leader.addr, stop) {
            Ok(()) => return,
            Err(error) => error,
        };
        if stop.is_stopped() {
            return;
        }
        if stream.has_followed() {
            pauses = Pauses::new();
            failures = FailureLog::default();
        }
        let text = error.to_string();
        match &error {
            FollowError::Diverged(_) => replica.node.mark_diverged(&text),
            FollowError::KeepsData(_) => replica
                .node
                .enter(Phase::Refusing(Arc::from(text.as_str()))),
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Lost(_)
            | FollowError::Rejected(_)
            | FollowError::NotYet(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_) => {}
        }
        let text = format!("not following {}: {text}", leader.name);
        replica.peers.set_not_following(Some(&text));
        failures.note(&error, text);
        let longest = match error {
            // Asking costs little, and the leader is followed soon after it can be.
            FollowError::NotYet(_) | FollowError::Rejected(_) => {
                member.replication.heartbeat_interval
            }
            FollowError::NoProcess(_)
            | FollowError::Silent(_)
            | FollowError::Lost(_)
            | FollowError::WrongNode(_)
            | FollowError::Protocol(_)
            | FollowError::Diverged(_)
            | FollowError::KeepsData(_) => BACK_OFF.1,
        };
        let pause = pauses.next(is_eager(&error), longest, Instant::now());
        if pause_for(replica.peers, &leader.name, stop, pause) {
            return;
        }
    }
}

/// Whether the leader may be followed at any moment: it is starting.
pub(super) fn is_eager(error: &FollowError) -> bool {
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
#[derive(Default)]
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

/// A random number, from the keys that the standard library draws for its hash maps.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
