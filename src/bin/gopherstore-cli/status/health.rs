//! What is wrong with a cluster, in words: a function of what its nodes said.

use gopherstore::client::{Error, NodeRole, NodeState, NodeStatus};

/// A node as it was asked for, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Its name in `cluster.toml`; `-` where nobody named it.
    pub(super) name: String,
    /// Its `host:port`.
    pub(super) addr: String,
    pub(super) answer: Result<NodeStatus, Silence>,
}

/// Why there is no status of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// No connection, or no answer in time; why.
    Unreachable(String),
    /// Something else came; what.
    NoStatus(String),
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// One node, on its own.
    Node,
    /// All nodes of a cluster, and its name where it is known.
    Cluster(Option<String>),
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is wrong, a phrase each; nothing where all is well.
    pub(super) faults: Vec<String>,
    /// Nodes with nothing wrong about them.
    pub(super) healthy: usize,
    /// All nodes.
    pub(super) total: usize,
    /// Entries that the follower furthest behind lacks.
    pub(super) lag_max: u64,
}

impl From<&Error> for Silence {
    fn from(error: &Error) -> Silence {
        match error {
            Error::Connect { .. } | Error::Connection { .. } | Error::Timeout { .. } => {
                Silence::Unreachable(error.to_string())
            }
            // A node that does not know the operation says so, and so does one that has no room.
            _ => Silence::NoStatus(error.to_string()),
        }
    }
}

impl Verdict {
    pub(super) const fn is_healthy(&self) -> bool {
        self.faults.is_empty()
    }

    /// In words, on one line.
    pub(super) fn words(&self, scope: &Scope) -> String {
        if !self.is_healthy() {
            return self.faults.join("; ");
        }
        if *scope == Scope::Node {
            return "serving".to_owned();
        }
        let sync = format!("in sync: {}/{}", self.healthy, self.total);
        match self.lag_max {
            0 => sync,
            1 => format!("{sync}, at most 1 entry behind"),
            lag => format!("{sync}, at most {lag} entries behind"),
        }
    }
}

/// Entries that a follower lacks of its leader's, by what both say. The two figures are of two moments.
pub(super) fn lag_entries(leader: Option<&NodeStatus>, node: &NodeStatus) -> Option<u64> {
    let (ends, has) = (leader?.index?, node.index?);
    (node.role != Some(NodeRole::Leader)).then(|| ends.saturating_sub(has))
}

/// The one node that leads, if there is just one.
pub(super) fn leader<'a>(nodes: &'a [Asked], scope: &Scope) -> Option<&'a Asked> {
    let mut leaders = members(nodes, scope).filter(|(_, status)| leads(status));
    let (leader, _) = leaders.next()?;
    leaders.next().is_none().then_some(leader)
}

/// Whether a node that answered is another one than was asked for, in words.
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
        // A node on its own has no name to give.
        None if total > 1 => Some(format!("{at} is a node on its own, not of this cluster")),
        Some(name) if *name != node.name && node.name != "-" => {
            Some(format!("{at} is {name}, not {}", node.name))
        }
        _ => None,
    }
}

/// Judges what the nodes said. Healthy is: every node answers and serves, they are the ones that were asked for, one
/// of them leads, all are of one epoch, every follower's stream comes in, and none lacks more than `max_lag` entries
/// of the leader's; followers at the leader's very index have its digest. Where the scope is one node, it is judged on
/// its own.
pub(super) fn judge(nodes: &[Asked], scope: &Scope, max_lag: Option<u64>) -> Verdict {
    let mut faults = Vec::new();
    let mut lag_max = 0;
    let leader = leader(nodes, scope);
    let leads_here = members(nodes, scope).filter(|(_, status)| leads(status));
    let leaders: Vec<&str> = leads_here.map(|(node, _)| &*node.name).collect();
    let mut healthy = 0;
    for node in nodes {
        let before = faults.len();
        let status = match &node.answer {
            Ok(status) => status,
            Err(Silence::Unreachable(why)) => {
                faults.push(format!("{} is unreachable: {why}", node.name));
                continue;
            }
            Err(Silence::NoStatus(why)) => {
                faults.push(format!(
                    "{} at {} gives no status, so it is of another version or no GopherStore: {why}",
                    node.name, node.addr
                ));
                continue;
            }
        };
        if let Some(fault) = stranger(node, status, scope, nodes.len()) {
            faults.push(fault);
            continue;
        }
        faults.extend(own_fault(shown_name(node, status), status));
        if let Some(leader) = leader
            && let Ok(leads) = &leader.answer
            && leader.name != node.name
        {
            faults.extend(difference(node, status, leader, leads, max_lag));
            if is_serving(status) {
                lag_max = lag_max.max(lag_entries(Some(leads), status).unwrap_or(0));
            }
        }
        healthy += usize::from(faults.len() == before);
    }
    if matches!(scope, Scope::Cluster(_)) {
        match leaders.as_slice() {
            [_] => {}
            // Where one node is away, that is the fault, and it may well be the leader.
            [] if nodes.iter().all(|node| node.answer.is_ok()) => {
                faults.push("no node leads".to_owned())
            }
            [] => {}
            names => faults.push(format!("{} lead at once", names.join(" and "))),
        }
    }
    Verdict {
        faults,
        healthy,
        total: nodes.len(),
        lag_max,
    }
}

/// What is wrong with a node on its own.
pub(super) fn own_fault(name: &str, status: &NodeStatus) -> Option<String> {
    let reason = status.reason.as_deref().unwrap_or("it does not say why");
    match &status.state {
        Some(NodeState::Serving) => {}
        Some(NodeState::Loading) => return Some(format!("{name} is loading: {reason}")),
        Some(NodeState::Refused) => return Some(format!("{name} refuses its leader: {reason}")),
        Some(state) => return Some(format!("{name} is in state {}: {reason}", state.as_str())),
        None => return Some(format!("{name} does not say whether it serves")),
    }
    if status.is_link_up != Some(false) {
        return None;
    }
    let leader = status.leader.as_deref().unwrap_or("-");
    Some(match status.leader_heard_ms {
        Some(ms) => {
            format!("{name} does not follow its leader at {leader}, last heard {ms} ms ago")
        }
        None => {
            format!("{name} does not follow its leader at {leader}, and has not since its start")
        }
    })
}

/// What is wrong with a node beside its leader.
fn difference(
    node: &Asked,
    status: &NodeStatus,
    leader: &Asked,
    leads: &NodeStatus,
    max_lag: Option<u64>,
) -> Option<String> {
    if !is_serving(status) || status.role == Some(NodeRole::Leader) {
        return None;
    }
    let (name, of) = (&node.name, &leader.name);
    if let (Some(theirs), Some(ours)) = (leads.epoch, status.epoch)
        && theirs != ours
    {
        return Some(format!("{name} is in epoch {ours}, {of} in {theirs}"));
    }
    let lag = lag_entries(Some(leads), status)?;
    if max_lag.is_some_and(|max| lag > max) {
        let max = max_lag.unwrap_or_default();
        return Some(format!("{name} lacks {lag} entries of {of}, limit {max}"));
    }
    let differs = status.index == leads.index && status.digest != leads.digest;
    (differs && status.digest.is_some() && leads.digest.is_some()).then(|| {
        let index = status.index.unwrap_or_default();
        format!("{name} holds other data than {of} at index {index}: their digests differ")
    })
}

/// The nodes that answered and are of the cluster.
fn members<'a>(
    nodes: &'a [Asked],
    scope: &Scope,
) -> impl Iterator<Item = (&'a Asked, &'a NodeStatus)> {
    nodes.iter().filter_map(move |node| {
        let status = node.answer.as_ref().ok()?;
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

/// The name by which a node is spoken of: its own, where nobody knew it.
fn shown_name<'a>(node: &'a Asked, status: &'a NodeStatus) -> &'a str {
    match &status.node {
        Some(name) if node.name == "-" => name,
        _ if node.name == "-" => &node.addr,
        _ => &node.name,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node that answered with these words, `key=value` each, beside those of a healthy one.
    pub(in super::super) fn said(name: &str, words: &str) -> Asked {
        let mut text = format!(
            "node: {name}\ncluster: demo\nstate: serving\nepoch: 3\nindex: 17\ndigest: 0a\n"
        );
        for (key, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
            text.push_str(&format!("{key}: {}\n", value.replace('_', " ")));
        }
        Asked {
            name: name.to_owned(),
            addr: format!("{name}:80"),
            answer: Ok(NodeStatus::parse(&text)),
        }
    }

    pub(in super::super) fn silent(name: &str, silence: Silence) -> Asked {
        Asked {
            answer: Err(silence),
            ..said(name, "")
        }
    }

    pub(in super::super) fn demo() -> Scope {
        Scope::Cluster(Some("demo".to_owned()))
    }

    fn words(nodes: &[Asked], max_lag: Option<u64>) -> String {
        judge(nodes, &demo(), max_lag).words(&demo())
    }

    const LEADER: &str = "role=leader";
    const FOLLOWER: &str = "role=follower link=up";

    #[test]
    fn a_cluster_is_in_sync_or_what_is_wrong_is_said() {
        for (second, expected) in [
            (FOLLOWER, "in sync: 2/2"),
            // Older nodes say neither link nor cluster.
            ("role=follower cluster=-", "in sync: 2/2"),
            ("role=follower link=up index=18 digest=0b", "in sync: 2/2"),
            (
                "role=follower link=up index=16 digest=0b",
                "in sync: 2/2, at most 1 entry behind",
            ),
            (
                "role=follower link=up index=5",
                "in sync: 2/2, at most 12 entries behind",
            ),
            (
                "role=follower link=up digest=0b",
                "n2 holds other data than n1 at index 17: their digests differ",
            ),
            (
                "role=follower link=up epoch=2 digest=0b",
                "n2 is in epoch 2, n1 in 3",
            ),
            (
                "role=follower state=loading reason=it_copies epoch=0",
                "n2 is loading: it copies",
            ),
            (
                "role=follower state=refused reason=why link=down epoch=9",
                "n2 refuses its leader: why",
            ),
            (
                "role=follower state=dozing",
                "n2 is in state dozing: it does not say why",
            ),
            ("role=follower state=", "n2 does not say whether it serves"),
            (
                "role=follower link=down leader=h:1 leader_heard_ms=1",
                "n2 does not follow its leader at h:1, last heard 1 ms ago",
            ),
            (LEADER, "n1 and n2 lead at once"),
            (
                "role=follower cluster=other",
                "n2 at n2:80 is a node of cluster other, not of demo",
            ),
            (
                "role=leader cluster=other epoch=9",
                "n2 at n2:80 is a node of cluster other, not of demo",
            ),
            ("role=follower node=n3", "n2 at n2:80 is n3, not n2"),
            (
                "role=leader cluster=- node=-",
                "n2 at n2:80 is a node on its own, not of this cluster",
            ),
        ] {
            let nodes = [said("n1", LEADER), said("n2", second)];
            assert_eq!(words(&nodes, None), expected, "{second}");
            let verdict = judge(&nodes, &demo(), None);
            assert_eq!(
                verdict.is_healthy(),
                expected.starts_with("in sync"),
                "{second}"
            );
        }
    }

    #[test]
    fn how_much_may_be_lacking_is_the_askers_choice() {
        let nodes = [
            said("n1", LEADER),
            said("n2", "role=follower link=up index=5"),
            said("n3", FOLLOWER),
        ];
        assert_eq!(
            words(&nodes, None),
            "in sync: 3/3, at most 12 entries behind"
        );
        assert_eq!(
            words(&nodes, Some(12)),
            "in sync: 3/3, at most 12 entries behind"
        );
        assert_eq!(
            words(&nodes, Some(11)),
            "n2 lacks 12 entries of n1, limit 11"
        );
        assert_eq!(judge(&nodes, &demo(), Some(0)).healthy, 2);
    }

    #[test]
    fn every_fault_is_told() {
        let nodes = [
            silent(
                "n1",
                Silence::Unreachable("cannot connect to n1:80: refused".to_owned()),
            ),
            said("n2", "role=follower link=down leader=n1:80"),
            silent("n3", Silence::NoStatus("unknown opcode 0x40".to_owned())),
        ];
        assert_eq!(
            words(&nodes, None),
            "n1 is unreachable: cannot connect to n1:80: refused; n2 does not follow its leader at n1:80, and has not \
             since its start; n3 at n3:80 gives no status, so it is of another version or no GopherStore: unknown \
             opcode 0x40"
        );
        assert_eq!(judge(&nodes, &demo(), None).healthy, 0);
        let nodes = [said("n1", FOLLOWER), said("n2", FOLLOWER)];
        assert_eq!(words(&nodes, None), "no node leads");
    }

    #[test]
    fn one_node_is_judged_on_its_own() {
        let judge = |words: &str, name: &str| {
            let node = Asked {
                name: name.to_owned(),
                ..said("n2", words)
            };
            judge(&[node], &Scope::Node, Some(0)).words(&Scope::Node)
        };
        assert_eq!(judge(FOLLOWER, "-"), "serving");
        assert_eq!(judge("", "-"), "serving", "a node that says little");
        assert_eq!(
            judge("cluster=other", "n1"),
            "serving",
            "whoever was asked for"
        );
        assert_eq!(
            judge("state=loading reason=empty", "-"),
            "n2 is loading: empty"
        );
        assert_eq!(
            judge("node=- state=loading reason=empty", "-"),
            "n2:80 is loading: empty"
        );
        assert_eq!(
            judge("link=down leader=h:1 leader_heard_ms=- role=follower", "-"),
            "n2 does not follow its leader at h:1, and has not since its start"
        );
    }

    #[test]
    fn a_cluster_of_one_is_in_sync_with_itself() {
        let node = Asked {
            name: "-".to_owned(),
            ..said("n1", "node=- cluster=- role=leader epoch=0 index=0")
        };
        let scope = Scope::Cluster(None);
        assert_eq!(
            judge(&[node], &scope, Some(0)).words(&scope),
            "in sync: 1/1"
        );
        let named = said("n1", "node=- cluster=- role=leader epoch=0 index=0");
        assert_eq!(words(&[named], None), "in sync: 1/1");
    }
}
