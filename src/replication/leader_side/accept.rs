//! The sending side: what FOLLOW is answered with, and the place in the node's table of one whose stream begins.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::warn;

use crate::history::History;
use crate::log::{Cursor, Log};
use crate::node::{Member, Node, Phase, Reply};
use crate::replication::core::progress::Progress;
use crate::replication::core::rules::{Position, Unwatched, start_of, start_of_observer};
use crate::replication::core::snapshot_permits::Permit;
use crate::replication::{Peers, Replica};
use crate::wire::replication::{Epochs, Follow, FollowAnswer, Start};

/// Why a stream ends, or does not begin, while a follower takes another data set or another history.
pub(super) const OTHER_DATA: &str = "this node's data set is another now";

/// How long a follower that comes back waits for the end of its last stream to be noticed. The stream of another node
/// under its name does not end, and it is refused then.
const OLDER_ENDS: Duration = Duration::from_millis(100);

/// A follower or an observer whose request was accepted.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    pub(super) name: String,
    /// None of an observer's.
    pub(super) place: Option<Place<'a>>,
    /// [`Node::dataset_generation`] before the request was judged.
    pub(super) dataset: u64,
    pub(super) start: Start,
    pub(super) history: History,
    pub(super) cursor: Option<Cursor>,
    /// Of a full copy.
    pub(super) permit: Option<Permit>,
    /// The answer's value.
    pub(crate) answer: Vec<u8>,
}

impl Accepted<'_> {
    pub(crate) const fn is_observer(&self) -> bool {
        self.place.is_none()
    }
}

/// A follower's place in the node's table, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    replica: Replica<'a>,
    pub(super) name: String,
    /// Of the stream among all that the node has had.
    pub(super) number: u64,
}

impl Place<'_> {
    /// Looks at or changes the follower's progress; `None` where it has left, or has another stream by now.
    pub(super) fn progress<T>(&self, f: impl FnOnce(&mut Progress) -> T) -> Option<T> {
        self.replica.peers.with_follower(&self.name, self.number, f)
    }

    /// The stream has ended: the follower may come again. Whoever drops the place later changes nothing.
    pub(super) fn leave(&self) {
        // A leader remembers it: its figures stay in STATUS.
        let keeps = self.replica.node.is_leader();
        let peers = self.replica.peers;
        peers.follower_left(&self.name, self.number, keeps);
    }
}

impl Drop for Place<'_> {
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

/// Judges the FOLLOW of a node of the cluster.
fn accept_follower<'a>(
    replica: Replica<'a>,
    log: &Log,
    member: &Member,
    follow: &Follow<'_>,
    addr: SocketAddr,
) -> Result<Box<Accepted<'a>>, Reply> {
    let Replica { node, peers } = replica;
    let Some(peer) = member
        .peers
        .iter()
        .find(|peer| peer.name.as_bytes() == follow.name)
    else {
        return Err(Reply::Error(format!(
            "no other node is called {}; compare the cluster.toml of both",
            follow.name.escape_ascii()
        )));
    };
    // A follower is a source only for a node that is to lead, which has to find the data again, and, while it stops,
    // for any peer that can keep the data.
    let is_source = follow.is_to_lead || peer.name == member.leader || peers.is_stopping();
    if let (Some(refusal), false) = (node.redirects_writes(), is_source) {
        return Err(refusal);
    }
    if let Some(older) = peers.stream_of(&peer.name, OLDER_ENDS) {
        return Err(refuse_second(peers, &peer.name, &older, addr));
    }
    // Before phase and history: a change after the first look is then noticed by the sender.
    let dataset = node.dataset_generation();
    if let Phase::Loading(why) = node.phase() {
        return Err(Reply::Loading(why));
    }
    let history = node.history();
    let position = Position {
        epoch: follow.epoch,
        nonce: follow.nonce,
        index: follow.last_index,
    };
    let mut cursor = None;
    let start = start_of(
        &history,
        log.head().index,
        |index| {
            cursor = log.cursor_after(index);
            cursor.is_some()
        },
        position,
        follow.wants_full_copy,
    );
    let answer = answer_of(start, &history)?;
    if start == Start::Unknown {
        return Err(Reply::Answer(answer));
    }
    let permit = permit_of(peers, follow, start)?;
    let now = Instant::now();
    let progress = match start {
        Start::Resume { from_index } => Progress::new(from_index - 1, now),
        Start::FullCopy | Start::Unknown => Progress::copying(now),
    };
    let number = peers
        .follower_came(&peer.name, progress, addr.to_string(), now)
        .map_err(|older| refuse_second(peers, &peer.name, &older, addr))?;
    Ok(Box::new(Accepted {
        name: peer.name.clone(),
        place: Some(Place {
            replica,
            name: peer.name.clone(),
            number,
        }),
        dataset,
        start,
        cursor: cursor.filter(|_| start != Start::FullCopy),
        answer,
        history,
        permit,
    }))
}

/// Begins a full copy, where the stream starts with one.
fn permit_of(peers: &Peers, follow: &Follow<'_>, start: Start) -> Result<Option<Permit>, Reply> {
    if start != Start::FullCopy {
        return Ok(None);
    }
    // What somebody wants to be replaced is nothing to keep.
    let holds_data = follow.last_index > 0 && !follow.wants_full_copy;
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

/// Judges the FOLLOW of an observer: any name will do, and any node that serves.
fn accept_observer<'a>(
    node: &'a Node,
    log: &Log,
    follow: &Follow<'_>,
) -> Result<Box<Accepted<'a>>, Reply> {
    // Before phase and history, as above.
    let dataset = node.dataset_generation();
    if let Phase::Loading(why) = node.phase() {
        return Err(Reply::Loading(why));
    }
    let history = node.history();
    let position = Position {
        epoch: follow.epoch,
        nonce: follow.nonce,
        index: follow.last_index,
    };
    let (last_index, first_index) = (log.head().index, log.first_index());
    let judged = start_of_observer(
        &history,
        last_index,
        first_index,
        position,
        follow.wants_full_copy,
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
        Start::FullCopy | Start::Unknown => Ok((start, None)),
    });
    // A refusal says what is so for good, and must not be made up of two data sets.
    if node.dataset_generation() != dataset {
        return Err(Reply::Loading(OTHER_DATA.into()));
    }
    let (start, cursor) = judged.map_err(|why| Reply::Error(why.to_string()))?;
    Ok(Box::new(Accepted {
        name: follow.name.escape_ascii().to_string(),
        place: None,
        dataset,
        start,
        cursor,
        answer: answer_of(start, &history)?,
        history,
        permit: None,
    }))
}

/// The value of the OK.
fn answer_of(start: Start, history: &History) -> Result<Vec<u8>, Reply> {
    let Some(history) = Epochs::of(history) else {
        return Err(Reply::Loading("this node has no history yet".into()));
    };
    let mut answer = Vec::new();
    FollowAnswer { start, history }.encode(&mut answer);
    Ok(answer)
}
