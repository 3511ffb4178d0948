//! The answer to FOLLOW, and the registration of a follower whose stream begins.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::warn;

use crate::config::NodeConfig;
use crate::history::History;
use crate::log::{Cursor, Log};
use crate::node::{Member, Node, Phase, Reply};
use crate::replication::core::progress::Progress;
use crate::replication::core::rules::{Position, Unwatched, start_of, start_of_observer};
use crate::replication::core::snapshot_permits::Permit;
use crate::replication::{Peers, Replica};
use crate::wire::replication::{Epochs, Follow, FollowAnswer, Start};

/// Why a stream ends, or does not begin, when the node takes another data set or another history.
pub(in crate::replication) const OTHER_DATA: &str = "this node's data set is another now";

/// How long a follower that comes back waits for this node to notice the end of its last stream. Where the stream is
/// another node's of the same name, it does not end, and the follower is refused.
const OLDER_STREAM_ENDS: Duration = Duration::from_millis(100);

/// A follower or an observer whose request was accepted.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    pub(in crate::replication) name: String,
    /// `None` for an observer.
    pub(in crate::replication) registration: Option<Registration<'a>>,
    /// [`Node::dataset_generation`] before the request was judged.
    pub(in crate::replication) generation: u64,
    pub(in crate::replication) start: Start,
    pub(in crate::replication) history: History,
    pub(in crate::replication) cursor: Option<Cursor>,
    /// Permit for the snapshot, where the stream begins with one.
    pub(in crate::replication) permit: Option<Permit>,
    /// The answer's value.
    pub(crate) answer: Vec<u8>,
}

impl Accepted<'_> {
    pub(crate) const fn is_observer(&self) -> bool {
        self.registration.is_none()
    }
}

/// A follower's entry in the registry, until it is dropped.
#[derive(Debug)]
pub(in crate::replication) struct Registration<'a> {
    replica: Replica<'a>,
    pub(in crate::replication) name: String,
    /// Number of the stream among all that the node has had.
    pub(in crate::replication) number: u64,
}

impl Registration<'_> {
    /// Looks at or changes the follower's progress; `None` where it has left, or has another stream by now.
    pub(in crate::replication) fn progress<T>(
        &self,
        f: impl FnOnce(&mut Progress) -> T,
    ) -> Option<T> {
        self.replica.peers.with_follower(&self.name, self.number, f)
    }

    /// The stream has ended, and the follower may come back. Dropping the entry later changes nothing.
    pub(in crate::replication) fn leave(&self) {
        // A leader keeps it in STATUS, with its last figures.
        let keeps = self.replica.node.is_leader();
        let peers = self.replica.peers;
        peers.follower_left(&self.name, self.number, keeps);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Judges a FOLLOW request from `addr`. Boxed, since every connection's stack would have room for what few of them
/// need.
///
/// # Errors
///
/// The answer that refuses it.
pub(crate) fn accept<'a>(
    replica: Replica<'a>,
    addr: SocketAddr,
    key: &[u8],
    value: &[u8],
) -> Result<Box<Accepted<'a>>, Reply> {
    let node = replica.node;
    let error = |message: String| Err(Reply::Error(message));
    let follow = match Follow::decode(key, value) {
        Ok(follow) => follow,
        Err(fault) => return error(fault.to_string()),
    };
    let (Some(log), Some(member)) = (node.engine().log(), node.member()) else {
        return error("a cluster of one node keeps no log and has no followers".to_owned());
    };
    let names_no_cluster = follow.is_observer && follow.cluster_id.is_empty();
    if follow.cluster_id != member.cluster.as_bytes() && !names_no_cluster {
        return error(format!("this node is of cluster {}", member.cluster));
    }
    if follow.is_observer {
        return accept_observer(node, log, &follow);
    }
    accept_follower(replica, log, member, &follow, addr)
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
    log: &Log,
    member: &Member,
    follow: &Follow<'_>,
    addr: SocketAddr,
) -> Result<Box<Accepted<'a>>, Reply> {
    let Replica { node, peers } = replica;
    let peer = configured(member, follow)?;
    // A follower serves only a node that is to lead, which has to find the data again, and, while it stops, any peer
    // that can keep the data.
    let serves_it = follow.is_to_lead || peer.name == member.leader || peers.is_stopping();
    if let (Some(refusal), false) = (node.redirects_writes(), serves_it) {
        return Err(refusal);
    }
    if let Some(older) = peers.stream_of(&peer.name, OLDER_STREAM_ENDS) {
        return Err(refuse_second(peers, &peer.name, &older, addr));
    }
    // Read before phase and history, so that the sender notices a later change of either.
    let generation = node.dataset_generation();
    if let Phase::Loading(why) = node.phase() {
        return Err(Reply::Loading(why));
    }
    let history = node.history();
    let mut cursor = None;
    let start = start_of(
        &history,
        log.head().index,
        |index| {
            cursor = log.cursor_after(index);
            cursor.is_some()
        },
        position_of(follow),
        follow.wants_snapshot,
    );
    let answer = answer_of(start, &history)?;
    if start == Start::Unknown {
        return Err(Reply::Answer(answer));
    }
    let permit = permit_of(peers, follow, start)?;
    let now = Instant::now();
    let progress = match start {
        Start::Resume { from_index } => Progress::new(from_index - 1, now),
        Start::Snapshot | Start::Unknown => Progress::copying(now),
    };
    let number = peers
        .follower_came(&peer.name, progress, addr.to_string(), now)
        .map_err(|older| refuse_second(peers, &peer.name, &older, addr))?;
    Ok(Box::new(Accepted {
        name: peer.name.clone(),
        registration: Some(Registration {
            replica,
            name: peer.name.clone(),
            number,
        }),
        generation,
        start,
        cursor: cursor.filter(|_| start != Start::Snapshot),
        answer,
        history,
        permit,
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
fn permit_of(peers: &Peers, follow: &Follow<'_>, start: Start) -> Result<Option<Permit>, Reply> {
    if start != Start::Snapshot {
        return Ok(None);
    }
    // A data set that is to be replaced is not worth keeping.
    let holds_data = follow.last_index > 0 && !follow.wants_snapshot;
    let permit = peers.snapshot_permits().begin(holds_data, Instant::now());
    let why = "another follower is taking a full copy; one that holds data waits for its turn";
    permit.map(Some).ok_or_else(|| Reply::Loading(why.into()))
}

/// Refuses a node at `addr` whose name already has a stream, and logs it once for each such node.
fn refuse_second(peers: &Peers, name: &str, older: &str, addr: SocketAddr) -> Reply {
    let text = format!(
        "two nodes are called {name}: the one at {older} follows and stays, the one at {addr} is refused"
    );
    if peers.refuse_follower(name, &addr.ip().to_string()) {
        warn!("{text}");
    }
    Reply::Error(text)
}

/// Judges the FOLLOW of an observer. It may have any name, and any node that serves data accepts it.
fn accept_observer<'a>(
    node: &'a Node,
    log: &Log,
    follow: &Follow<'_>,
) -> Result<Box<Accepted<'a>>, Reply> {
    // Read before phase and history, as above.
    let generation = node.dataset_generation();
    if let Phase::Loading(why) = node.phase() {
        return Err(Reply::Loading(why));
    }
    let history = node.history();
    let (last_index, first_index) = (log.head().index, log.first_index());
    let judged = start_of_observer(
        &history,
        last_index,
        first_index,
        position_of(follow),
        follow.wants_snapshot,
    )
    .and_then(|start| match start {
        Start::Resume { from_index } => {
            let cursor = log.cursor_after(from_index - 1);
            let gone = || Unwatched::Gone {
                from_index,
                first_index: log.first_index(),
            };
            Ok((start, Some(cursor.ok_or_else(gone)?)))
        }
        Start::Snapshot | Start::Unknown => Ok((start, None)),
    });
    // A refusal is final, so it must not be judged by two data sets.
    if node.dataset_generation() != generation {
        return Err(Reply::Loading(OTHER_DATA.into()));
    }
    let (start, cursor) = judged.map_err(|why| Reply::Error(why.to_string()))?;
    Ok(Box::new(Accepted {
        name: follow.name.escape_ascii().to_string(),
        registration: None,
        generation,
        start,
        cursor,
        answer: answer_of(start, &history)?,
        history,
        permit: None,
    }))
}

/// The value of the answer.
fn answer_of(start: Start, history: &History) -> Result<Vec<u8>, Reply> {
    let Some(history) = Epochs::of(history) else {
        return Err(Reply::Loading("this node has no history yet".into()));
    };
    let mut answer = Vec::new();
    FollowAnswer { start, history }.encode(&mut answer);
    Ok(answer)
}
