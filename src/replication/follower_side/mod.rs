//! The follower side: one stream from the node that is followed, and what a node does before it leads.

mod acks;
mod pauses;
mod recover;
mod snapshot_in;
mod stream;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Instant;

use log::{error, warn};

use super::{Replica, Stop};
use crate::config::NodeConfig;
use crate::node::{Member, Phase};
use pauses::{BACK_OFF, Pauses, pause_for};
use recover::recover;
use stream::Stream;

/// Why a stream ended, or did not begin.
#[derive(Debug)]
enum FollowError {
    Io(io::Error),
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

impl From<io::Error> for FollowError {
    fn from(error: io::Error) -> FollowError {
        FollowError::Io(error)
    }
}

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
        let mut stream = Stream::new(replica, member, &leader.name);
        let error = match stream.run(&leader.addr, stop) {
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
        let text = describe(&error, member);
        match &error {
            FollowError::Diverged(_) => replica.node.mark_diverged(&text),
            FollowError::KeepsData(_) => replica
                .node
                .enter(Phase::Refusing(Arc::from(text.as_str()))),
            FollowError::Io(_)
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
            FollowError::Io(_)
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
fn is_eager(error: &FollowError) -> bool {
    match error {
        FollowError::NotYet(_) => true,
        FollowError::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        FollowError::Rejected(_)
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
            FollowError::Io(_)
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

/// The text of an error for the log and for STATUS.
fn describe(error: &FollowError, member: &Member) -> String {
    match error {
        FollowError::Io(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
        {
            let limit = member.replication.leader_timeout.as_millis();
            format!("it said nothing for {limit} ms")
        }
        FollowError::Io(error) => error.to_string(),
        FollowError::Rejected(text)
        | FollowError::NotYet(text)
        | FollowError::WrongNode(text)
        | FollowError::Protocol(text)
        | FollowError::Diverged(text)
        | FollowError::KeepsData(text) => text.clone(),
    }
}

/// A random number, from the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
