//! The answer to FOLLOW, and the registration of a follower whose stream begins.

use std::time::Instant;

use super::link::Link;
use super::source::Offer;
use crate::config::NodeConfig;
use crate::history::History;
use crate::log::Log;
use crate::node::{Member, Reply};
use crate::replication::core::progress::Progress;
use crate::replication::core::rules::{Position, lacks_records, start_of};
use crate::replication::core::snapshot_permits::Permit;
use crate::replication::peers::{Peers, Replica};
use crate::wire::replication::{Epochs, Follow, FollowAnswer, Start};

/// A follower whose request was accepted.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    pub(super) link: Link<'a>,
    pub(super) offer: Offer<'a>,
    /// Whether this node led when the request was judged.
    pub(super) led: bool,
    /// Where the stream begins.
    pub(super) start: Start,
    /// The answer's value.
    pub(crate) answer: Vec<u8>,
}

impl Accepted<'_> {
    /// The line for the log.
    pub(crate) fn line(&self) -> String {
        let name = self.link.name();
        match self.start {
            Start::Snapshot | Start::Unknown => format!("{name} follows: full copy"),
            Start::Resume { from_index } => format!("{name} follows: from index {from_index}"),
        }
    }
}

/// Why a FOLLOW is not accepted.
#[derive(Debug)]
pub(crate) enum NotAccepted {
    /// For the reason that the answer gives.
    Refused(Reply),
    /// The name has a stream already.
    SecondNode {
        /// The name.
        name: String,
        /// Address of the stream that is there.
        older: String,
    },
}

impl From<Reply> for NotAccepted {
    fn from(reply: Reply) -> NotAccepted {
        NotAccepted::Refused(reply)
    }
}

/// Judges a FOLLOW request from `addr`. Boxed, since every connection's stack would have room for what few of them
/// need.
///
/// # Errors
///
/// Why it is not accepted. [`NotAccepted::SecondNode`] may be judged again: a follower that comes back may do so before
/// the end of its last stream is noticed.
pub(crate) fn accept<'a>(
    replica: Replica<'a>,
    addr: &str,
    key: &[u8],
    value: &[u8],
    now: Instant,
) -> Result<Box<Accepted<'a>>, NotAccepted> {
    let node = replica.node;
    let error = |message: String| Err(Reply::Error(message).into());
    let follow = match Follow::decode(key, value) {
        Ok(follow) => follow,
        Err(fault) => return error(fault.to_string()),
    };
    let (Some(log), Some(member)) = (node.engine().log(), node.member()) else {
        return error("a cluster of one node has no followers".to_owned());
    };
    if follow.cluster_id != member.cluster.as_bytes() {
        return error(format!("this node is of cluster {}", member.cluster));
    }
    accept_follower(replica, log, member, &follow, addr, now)
}

/// Finds the peer of the name that a FOLLOW gives.
fn configured<'m>(member: &'m Member, follow: &Follow<'_>) -> Result<&'m NodeConfig, Reply> {
    let mut peers = member.peers.iter();
    let found = peers.find(|peer| peer.name.as_bytes() == follow.name);
    found.ok_or_else(|| {
        Reply::Error(format!(
            "no other node is called {}; compare the cluster.toml of both",
            follow.name.escape_ascii()
        ))
    })
}

/// Judges the FOLLOW of a node of the cluster.
fn accept_follower<'a>(
    replica: Replica<'a>,
    log: &'a Log,
    member: &'a Member,
    follow: &Follow<'_>,
    addr: &str,
    now: Instant,
) -> Result<Box<Accepted<'a>>, NotAccepted> {
    let Replica { node, peers } = replica;
    let peer = configured(member, follow)?;
    // A follower serves only a node that is to lead, which has to find the data again, and, while it stops, any peer
    // that can keep the data.
    let serves_it = follow.is_to_lead || peers.is_stopping();
    if let (Some(refusal), false) = (node.redirects_writes(), serves_it) {
        return Err(refusal.into());
    }
    let second_node = |older: String| NotAccepted::SecondNode {
        name: peer.name.clone(),
        older,
    };
    if let Some(older) = peers.stream_of(&peer.name, now) {
        return Err(second_node(older));
    }
    // Read before role and history, so that the sender notices a later change of either.
    let (generation, led) = (node.dataset_generation(), node.leads());
    if let Some(why) = node.lacks_data() {
        return Err(Reply::Loading(why).into());
    }
    let history = node.history();
    let last_index = log.last_index();
    // A leader has all records of its epoch, so a data set that goes further is none of it, and is to be replaced.
    let is_to_replace = follow.wants_snapshot && node.leads();
    if !is_to_replace && lacks_records(&history, last_index, position_of(follow)) {
        let why = format!("this node has records up to index {last_index} only");
        return Err(Reply::Loading(why.into()).into());
    }
    let mut cursor = None;
    let start = start_of(
        &history,
        last_index,
        |index| {
            cursor = log.cursor_after(index);
            #[cfg(test)]
            if crate::planted::is(crate::planted::Fault::SkippedOnResume) {
                cursor = log.cursor_after(index + 1).or(cursor);
            }
            cursor.is_some()
        },
        position_of(follow),
        follow.wants_snapshot,
    );
    let answer = answer_of(start, &history)?;
    if start == Start::Unknown {
        return Err(Reply::Answer(answer).into());
    }
    let permit = permit_of(peers, follow, start, now)?;
    let progress = match start {
        Start::Resume { from_index } => Progress::new(from_index - 1, now),
        Start::Snapshot | Start::Unknown => Progress::copying(now),
    };
    let number = peers
        .follower_came(&peer.name, progress, addr.to_owned(), now)
        .map_err(second_node)?;
    let matched = match start {
        Start::Resume { from_index } => from_index - 1,
        Start::Snapshot | Start::Unknown => 0,
    };
    Ok(Box::new(Accepted {
        link: Link::new(replica, peer.name.clone(), number, matched, permit),
        offer: Offer {
            node,
            log,
            generation,
            history,
            cursor: cursor.filter(|_| start != Start::Snapshot),
            interval: member.replication.heartbeat_interval,
        },
        led,
        start,
        answer,
    }))
}

/// The position that a FOLLOW names.
const fn position_of(follow: &Follow<'_>) -> Position {
    Position {
        epoch: follow.epoch,
        nonce: follow.nonce,
        index: follow.last_index,
    }
}

/// Takes a permit, where the stream begins with a snapshot.
fn permit_of(
    peers: &Peers,
    follow: &Follow<'_>,
    start: Start,
    now: Instant,
) -> Result<Option<Permit>, Reply> {
    if start != Start::Snapshot {
        return Ok(None);
    }
    // A data set that is to be replaced is not worth keeping.
    let holds_data = follow.last_index > 0 && !follow.wants_snapshot;
    let permit = peers.snapshot_permits().begin(holds_data, now);
    let why = "another follower is taking a full copy; one that holds data waits for its turn";
    permit.map(Some).ok_or_else(|| Reply::Loading(why.into()))
}

/// The value of the answer.
pub(super) fn answer_of(start: Start, history: &History) -> Result<Vec<u8>, Reply> {
    let Some(history) = Epochs::of(history) else {
        return Err(Reply::Loading("this node has no history yet".into()));
    };
    let mut answer = Vec::new();
    FollowAnswer { start, history }.encode(&mut answer);
    Ok(answer)
}
