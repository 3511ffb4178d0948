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
    /// The peer refused to be followed.
    Rejected(String),
    /// The peer cannot be followed yet: it has no data set, or another follower is being copied to.
    NotYet(String),
    /// Another node than the expected one answers.
    WrongNode(String),
    /// The stream is not what it should be.
    Protocol(String),
    /// The data set is not what the leader's is.
    Diverged(String),
    /// Keep the own data set and follow nobody.
    KeepsData(String),
}

impl From<io::Error> for FollowError {
    fn from(error: io::Error) -> FollowError {
        FollowError::Io(error)
    }
}

/// Follows the leader, or as the leader finds data and begins to serve, until the node stops.
pub(super) fn run(replica: Replica<'_>, member: &Member, stop: &Stop) {
    if replica.node.is_leader() {
        recover(replica, member, stop);
    } else if let Some(leader) = member.peers.iter().find(|peer| peer.name == member.leader) {
        follow(replica, member, leader, stop);
    }
}

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

/// Logs why the leader is not followed: one line for a state of affairs, not one for each attempt. Texts that differ in
/// numbers alone, such as ports, are about the same state.
#[derive(Default)]
struct FailureLog {
    last: String,
    waits: bool,
}

impl FailureLog {
    fn note(&mut self, error: &FollowError, text: String) {
        // What a starting leader waits for may change; that is its own log's matter.
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

/// A number that nobody can foresee, from the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
