//! Faults of a cluster as text, from the statuses of its nodes. Pure.

use std::collections::BTreeMap;

use gopherstore::client::{Error, NodeRole, NodeState, NodeStatus, PeerStatus};

use crate::report::UNKNOWN_OPCODE;

/// `leader_timeout_ms` if neither a file nor a node gives it. Source: docs/operating.md.
const LEADER_TIMEOUT_MS: u64 = 5_000;

/// A node that was asked, and its status.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Its name in `cluster.toml`; `-` if it was asked by its address.
    pub(super) name: String,
    /// Its `host:port`.
    pub(super) addr: String,
    pub(super) response: Result<NodeStatus, Silence>,
}

/// Reason why there is no status of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// No connection, or no response in time, with the reason.
    Unreachable(String),
    /// The node refused the request, for example at its limit of connections; its message.
    Refused(String),
    /// The response is no status, such as that of an old node or of another program; its description.
    NoStatus(String),
}

impl Silence {
    /// The failure of a request for a status.
    pub(super) fn why(&self) -> &str {
        match self {
            Silence::Unreachable(why) | Silence::Refused(why) | Silence::NoStatus(why) => why,
        }
    }
}

/// The nodes that are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// One node alone.
    Node,
    /// All nodes of a cluster, with its name if that is known.
    Cluster(Option<String>),
}

/// Greatest lags of a healthy follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Entries; `None` for any number.
    pub(super) lag_entries: Option<u64>,
    /// `leader_timeout_ms` of the file, if one was read.
    pub(super) leader_timeout_ms: Option<u64>,
}

impl Limits {
    /// The leader timeout of a node: from the file, or otherwise from its status.
    pub(super) fn timeout_ms(&self, status: &NodeStatus) -> u64 {
        let told = self.leader_timeout_ms.or(status.leader_timeout_ms);
        told.unwrap_or(LEADER_TIMEOUT_MS)
    }
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The faults, a phrase for each; empty if all is well.
    pub(super) faults: Vec<String>,
    /// Number of nodes without a fault.
    pub(super) healthy: usize,
    /// Number of all nodes.
    pub(super) total: usize,
    /// Greatest lag of a follower in entries.
    pub(super) lag_max: u64,
}

impl From<&Error> for Silence {
    fn from(error: &Error) -> Silence {
        match error {
            Error::Connect { .. } | Error::Connection { .. } | Error::Timeout { .. } => {
                Silence::Unreachable(error.to_string())
            }
            Error::Server { message } if !message.starts_with(UNKNOWN_OPCODE) => {
                Silence::Refused(message.clone())
            }
            Error::Loading { .. } | Error::NotLeader { .. } => Silence::Refused(error.to_string()),
            _ => Silence::NoStatus(error.to_string()),
        }
    }
}

impl Verdict {
    pub(super) const fn is_healthy(&self) -> bool {
        self.faults.is_empty()
    }

    /// The faults, or a phrase without any.
    pub(super) fn words(&self, scope: &Scope) -> Vec<String> {
        if !self.is_healthy() {
            return self.faults.clone();
        }
        if *scope == Scope::Node {
            return vec!["serving".to_owned()];
        }
        let sync = format!("in sync: {}/{}", self.healthy, self.total);
        vec![match self.lag_max {
            0 => sync,
            1 => format!("{sync}, at most 1 entry behind"),
            lag => format!("{sync}, at most {lag} entries behind"),
        }]
    }
}

/// Entries of its leader that a follower lacks, by both statuses, which are from different times.
pub(super) fn lag_entries(leader: Option<&NodeStatus>, node: &NodeStatus) -> Option<u64> {
    let (ends, has) = (leader?.index?, node.index?);
    (node.role != Some(NodeRole::Leader)).then(|| ends.saturating_sub(has))
}

/// The node that leads: the one that takes writes, or otherwise the one with the role of leader. `None` if there are
/// two.
pub(super) fn leader<'a>(nodes: &'a [Asked], scope: &Scope) -> Option<&'a Asked> {
    let leaders: Vec<_> = members(nodes, scope)
        .filter(|(_, status)| leads(status))
        .collect();
    let serving: Vec<_> = leaders
        .iter()
        .filter(|(_, status)| is_serving(status))
        .collect();
    match (leaders.as_slice(), serving.as_slice()) {
        (_, [(leader, _)]) | ([(leader, _)], []) => Some(leader),
        _ => None,
    }
}

/// The lag of a follower in milliseconds, from the leader's status, or otherwise from its own.
pub(super) fn lag_ms(leader: Option<&NodeStatus>, name: &str, node: &NodeStatus) -> Option<u64> {
    let seen = leader.and_then(|leader| leader.followers.get(name)?.lag_ms);
    seen.or(node.lag_ms)
}

/// A phrase if a node with another name or cluster has responded.
pub(super) fn stranger(
    node: &Asked,
    status: &NodeStatus,
    scope: &Scope,
    total: usize,
) -> Option<String> {
    let Scope::Cluster(cluster) = scope else {
        return None;
    };
    let at = format!("{} at {}", node.name, node.addr);
    if let (Some(ours), Some(theirs)) = (cluster, &status.cluster)
        && ours != theirs
    {
        return Some(format!("{at} is a node of cluster {theirs}, not of {ours}"));
    }
    match &status.node {
        // A single node has no name.
        None if total > 1 => Some(format!("{at} is a node on its own, not of this cluster")),
        Some(name) if *name != node.name && node.name != "-" => {
            Some(format!("{at} is {name}, not {}", node.name))
        }
        _ => None,
    }
}

/// Checks the statuses of the nodes. A cluster is healthy if every node responds under its name and serves; one node
/// leads; all are in one epoch; every follower receives its stream and lags within the limits; equal indexes have equal
/// digests; the nodes can reach one another and have equal settings; no disk is full; and each node could write its
/// last snapshot. A single node is checked alone.
pub(super) fn judge(nodes: &[Asked], scope: &Scope, limits: Limits) -> Verdict {
    let mut faults = Vec::new();
    let mut lag_max = 0;
    let leader = leader(nodes, scope);
    let mut healthy = 0;
    for node in nodes {
        let before = faults.len();
        let (name, addr) = (&node.name, &node.addr);
        let status = match &node.response {
            Ok(status) => status,
            Err(silence) => {
                faults.push(match silence {
                    Silence::Unreachable(why) => format!("{name} is unreachable: {why}"),
                    Silence::Refused(why) => format!("{name} at {addr} gives no status: {why}"),
                    Silence::NoStatus(why) => format!(
                        "{name} at {addr} gives no status, so it is of another version or no GopherStore: {why}"
                    ),
                });
                continue;
            }
        };
        if let Some(fault) = stranger(node, status, scope, nodes.len()) {
            faults.push(fault);
            continue;
        }
        let timeout_ms = limits.timeout_ms(status);
        faults.extend(disk_fault(shown_name(node, status), status));
        faults.extend(snapshot_fault(shown_name(node, status), status));
        faults.extend(own_fault(shown_name(node, status), status, timeout_ms));
        match leader {
            Some(leader) if leader.name == *name => {}
            Some(Asked {
                response: Ok(leads),
                name: of,
                ..
            }) if faults.len() == before => {
                faults.extend(difference(name, status, of, leads, limits));
                lag_max = lag_max.max(lag_entries(Some(leads), status).unwrap_or(0));
            }
            _ if faults.len() == before => {
                let lag = lag_ms(None, name, status);
                faults.extend(too_late(shown_name(node, status), lag, timeout_ms));
            }
            _ => {}
        }
        healthy += usize::from(faults.len() == before);
    }
    if matches!(scope, Scope::Cluster(_)) {
        faults.extend(leaders_fault(nodes, scope));
        faults.extend(peer_faults(nodes, scope, limits));
    }
    Verdict {
        faults,
        healthy,
        total: nodes.len(),
        lag_max,
    }
}

/// The fault of a node whose disk is full.
fn disk_fault(name: &str, status: &NodeStatus) -> Option<String> {
    let leads = status.role == Some(NodeRole::Leader);
    Some(match (status.disk_space.as_deref()?, leads) {
        ("enough", _) => return None,
        ("full", true) => {
            format!("{name} has a full disk, and executes only writes that remove")
        }
        ("used_up", true) => format!("{name} has a full disk, and executes no write"),
        ("full", false) => {
            format!("{name} has a full disk, and writes to the reserve of its log")
        }
        ("used_up", false) => format!("{name} has a full disk, and writes nothing there"),
        (word, _) => format!("{name} says that its disk_space is {word}"),
    })
}

/// The fault of a node that could not write its last snapshot.
fn snapshot_fault(name: &str, status: &NodeStatus) -> Option<String> {
    let why = status.snapshot_error.as_deref()?;
    Some(format!("{name} cannot write a snapshot: {why}"))
}

/// Faults of a node alone, but for its disk.
pub(super) fn own_fault(name: &str, status: &NodeStatus, timeout_ms: u64) -> Option<String> {
    let reason = status.reason.as_deref().unwrap_or("it gives no reason");
    match &status.state {
        Some(NodeState::Serving) => {}
        Some(NodeState::Loading) => return Some(format!("{name} is loading: {reason}")),
        Some(NodeState::Refused) => return Some(format!("{name} refuses its leader: {reason}")),
        Some(state) => return Some(format!("{name} is in state {}: {reason}", state.as_str())),
        None => return Some(format!("{name} does not report whether it serves")),
    }
    if let Some(stopping) = status.stopping.as_deref().filter(|word| *word != "no") {
        return Some(format!("{name} is stopping: {stopping}"));
    }
    let leader = status.leader.as_deref().unwrap_or("-");
    // The leader is not what is silent.
    let waits_for_disk = disk_fault(name, status).is_some();
    match (
        status.lines.get("link").map(String::as_str),
        status.leader_heard_ms,
    ) {
        // A leader has none, and older nodes do not report it.
        (None | Some("" | "-"), _) => None,
        (Some("timeout"), Some(ms)) => Some(format!(
            "{name} has a leader timeout: its leader at {leader} was last heard {ms} ms ago"
        )),
        (Some("timeout"), None) => Some(format!(
            "{name} has a leader timeout: its leader at {leader} was not heard since its start"
        )),
        // Nodes of older versions do not report it.
        (Some(link), Some(ms)) if ms > timeout_ms && !(waits_for_disk && link == "down") => {
            Some(format!(
                "{name} has a leader timeout: its leader at {leader} was last heard {ms} ms ago, limit {timeout_ms}"
            ))
        }
        (Some("up"), _) => None,
        (Some("down"), Some(ms)) => Some(format!(
            "{name} does not follow its leader at {leader}, last heard {ms} ms ago"
        )),
        (Some("down"), None) => Some(format!(
            "{name} does not follow its leader at {leader}, and has not since its start"
        )),
        (Some(word), _) => Some(format!("{name} says that its link to {leader} is {word}")),
    }
}

/// Faults of a node compared with the leader, whose name is `of`.
fn difference(
    name: &str,
    status: &NodeStatus,
    of: &str,
    leads: &NodeStatus,
    limits: Limits,
) -> Option<String> {
    if status.role == Some(NodeRole::Leader) {
        return None;
    }
    if let (Some(theirs), Some(ours)) = (leads.epoch, status.epoch)
        && theirs != ours
    {
        return Some(format!("{name} is in epoch {ours}, {of} in {theirs}"));
    }
    let lag = lag_entries(Some(leads), status);
    if let (Some(lag), Some(max)) = (lag, limits.lag_entries)
        && lag > max
    {
        return Some(format!("{name} lacks {lag} entries of {of}, limit {max}"));
    }
    let late = lag_ms(Some(leads), name, status);
    if let Some(fault) = too_late(name, late, limits.timeout_ms(leads)) {
        return Some(fault);
    }
    let differs = status.index == leads.index && status.digest != leads.digest;
    (differs && status.digest.is_some() && leads.digest.is_some()).then(|| {
        let index = status.index.unwrap_or_default();
        format!("{name} holds other data than {of} at index {index}: their digests differ")
    })
}

/// The fault of a follower that lags by more than the leader timeout.
fn too_late(name: &str, lag_ms: Option<u64>, timeout_ms: u64) -> Option<String> {
    let lag = lag_ms.filter(|&lag| lag > timeout_ms)?;
    Some(format!(
        "{name} is {lag} ms behind its leader, limit {timeout_ms} (leader_timeout_ms)"
    ))
}

/// The fault of no leader or several.
fn leaders_fault(nodes: &[Asked], scope: &Scope) -> Option<String> {
    let leaders = || members(nodes, scope).filter(|(_, status)| leads(status));
    let names: Vec<&str> = leaders().map(|(node, _)| &*node.name).collect();
    let serving = leaders().filter(|(_, status)| is_serving(status)).count();
    match names.as_slice() {
        [_] => None,
        // If a node does not respond, that is the fault: it may be the leader.
        [] if nodes.iter().any(|node| node.response.is_err()) => None,
        [] => Some("no node leads".to_owned()),
        names if serving > 1 => Some(format!("{} lead at once", names.join(" and "))),
        names => Some(format!("{} are both to lead", names.join(" and "))),
    }
}

/// Contradictions between nodes: another node at a peer's address, different settings, and a node that responds here
/// but not to a peer.
fn peer_faults(nodes: &[Asked], scope: &Scope, limits: Limits) -> Vec<String> {
    let mut faults = Vec::new();
    // Both report it.
    let mut differing = BTreeMap::new();
    let mut differ = |one: &str, other: &str, groups: String| {
        let pair = [one.min(other).to_owned(), one.max(other).to_owned()];
        differing.insert(pair, groups);
    };
    let first = members(nodes, scope).next();
    for (node, status) in members(nodes, scope) {
        let name = shown_name(node, status);
        for (peer, said) in &status.peers {
            let responses = || members(nodes, scope).any(|(node, _)| node.name == *peer);
            let timeout_ms = limits.timeout_ms(status);
            faults.extend(peer_fault(name, peer, said, responses, timeout_ms));
            if let Some(groups) = &said.differs {
                differ(name, peer, groups.replace(',', ", "));
            }
        }
        // They may not have asked each other yet.
        if let Some((node, first)) = first {
            let own = status.settings.iter();
            let groups: Vec<&str> = own
                .filter(|(group, digest)| {
                    first.settings.get(*group).is_some_and(|it| it != *digest)
                })
                .map(|(group, _)| group.as_str())
                .collect();
            if !groups.is_empty() {
                differ(shown_name(node, first), name, groups.join(", "));
            }
        }
    }
    faults.extend(differing.iter().map(|([one, other], groups)| {
        format!("the cluster.toml of {one} and that of {other} differ in: {groups}")
    }));
    faults
}

/// Faults of a peer, as the node `name` reports it.
fn peer_fault(
    name: &str,
    peer: &str,
    said: &PeerStatus,
    responses: impl Fn() -> bool,
    timeout_ms: u64,
) -> Option<String> {
    let reason = said.reason.as_ref().map(|reason| format!(": {reason}"));
    let reason = reason.unwrap_or_default();
    match said.state.as_deref()? {
        "up" => None,
        // A started node is down for its peers until their next heartbeat.
        "down" => {
            let ms = said.since_ms.filter(|&ms| ms > timeout_ms && responses())?;
            Some(format!("{name} has not heard {peer} for {ms} ms{reason}"))
        }
        word => {
            let addr = said.addr.as_deref().unwrap_or("its address");
            Some(format!(
                "{name} finds a {word} at {addr}, where {peer} should be{reason}"
            ))
        }
    }
}

/// The nodes that responded and belong to the cluster.
fn members<'a>(
    nodes: &'a [Asked],
    scope: &Scope,
) -> impl Iterator<Item = (&'a Asked, &'a NodeStatus)> {
    nodes.iter().filter_map(move |node| {
        let status = node.response.as_ref().ok()?;
        stranger(node, status, scope, nodes.len())
            .is_none()
            .then_some((node, status))
    })
}

fn leads(status: &NodeStatus) -> bool {
    status.role == Some(NodeRole::Leader)
}

fn is_serving(status: &NodeStatus) -> bool {
    status.state == Some(NodeState::Serving)
}

/// The name of a node in messages: as asked, or otherwise from its status.
fn shown_name<'a>(node: &'a Asked, status: &'a NodeStatus) -> &'a str {
    match &status.node {
        Some(name) if node.name == "-" => name,
        _ if node.name == "-" => &node.addr,
        _ => &node.name,
    }
}

#[cfg(test)]
pub(super) mod tests;
