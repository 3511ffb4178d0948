//! Finds the node: the first of several addresses that responds, or the leader of a `cluster.toml`.

use std::{
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use gopherstore::{
    Client,
    client::{ClientOptions, Error, NodeRole, NodeState, NodeStatus},
    config::{Config, NodeConfig},
    wire::Opcode,
};

use crate::report::{self, Failure, Outcome};

use super::Context;

/// How long the response of the leader in the file is awaited after another node has reported that it leads.
const PRECEDENCE: Duration = Duration::from_millis(500);

/// A client whose frames are not dumped, since they are not the user's requests.
fn asking(context: &Context, addr: &str) -> Client {
    let options = ClientOptions {
        on_frame: None,
        ..context.options()
    };
    Client::unconnected(addr, options)
}

/// The first address whose node responds to a PING, each within --timeout.
pub(super) fn first_that_responses(context: &Context, addrs: &[&str]) -> Result<String, Failure> {
    let mut first = None;
    let mut words = Vec::new();
    for addr in addrs {
        match asking(context, addr).ping() {
            Ok(()) => return Ok((*addr).to_owned()),
            Err(error) => {
                words.push(format!("{addr} ({error})"));
                let failure = report::failure(&error, Opcode::Ping, None);
                first.get_or_insert(failure.outcome);
            }
        }
    }
    Err(Failure::new(
        first.unwrap_or(Outcome::NoConnection),
        format!(
            "no node answers at {}; is one of them running? start it, or name another with --addr",
            words.join(", ")
        ),
    ))
}

/// The role of a node of the file.
enum Standing {
    /// It takes writes.
    Leads,
    /// It is a leader that does not serve.
    IsToLead,
    /// It follows, or is another node; the text says which.
    No(String),
    /// It does not report its role.
    Unknown(Error),
}

/// The node of the file that leads. All nodes are asked at once. The leader in the file is preferred, then the first
/// node that reports that it leads.
pub(super) fn leader(context: &Context, file: &Path) -> Result<String, Failure> {
    let config = Config::load(file);
    let config = config.map_err(|error| Failure::new(Outcome::Usage, error.to_string()))?;
    if let [only] = config.nodes.as_slice() {
        return Ok(only.addr.clone());
    }
    let mut nodes: Vec<&NodeConfig> = config.nodes.iter().collect();
    nodes.sort_by_key(|node| node.name != config.leader().name);
    let began = Instant::now();
    let responses = ask_all(context, &nodes)?;
    let mut standings: Vec<Option<Standing>> = nodes.iter().map(|_| None).collect();
    let leads = |standing: &Option<Standing>| matches!(standing, Some(Standing::Leads));
    loop {
        let found = standings.iter().position(leads);
        let left = match found {
            Some(0) => Duration::ZERO,
            Some(_) => PRECEDENCE.saturating_sub(began.elapsed()),
            None => Duration::MAX,
        };
        if let Some(found) = found
            && left.is_zero()
        {
            return Ok(nodes[found].addr.clone());
        }
        match responses.recv_timeout(left) {
            Ok((at, response)) => {
                standings[at] = Some(match response {
                    Ok(status) => standing(nodes[at], &config.cluster, &status),
                    Err(error) => Standing::Unknown(error),
                });
            }
            Err(RecvTimeoutError::Timeout) => {}
            // All nodes have responded.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let is_to_lead = |standing: &Option<Standing>| matches!(standing, Some(Standing::IsToLead));
    let leading = standings.iter().position(leads);
    match leading.or_else(|| standings.iter().position(is_to_lead)) {
        Some(found) => Ok(nodes[found].addr.clone()),
        None => Err(no_leader(file, &nodes, &standings)),
    }
}

/// A node's index in the list, and its response.
type Response = (usize, Result<NodeStatus, Error>);

/// Asks each node in its own thread. A silent node does not delay the result.
fn ask_all(context: &Context, nodes: &[&NodeConfig]) -> Result<Receiver<Response>, Failure> {
    let (sender, responses) = mpsc::channel();
    for (at, node) in nodes.iter().enumerate() {
        let mut client = asking(context, &node.addr);
        let sender = sender.clone();
        let ask = move || {
            let status = client.status().map(|text| NodeStatus::parse(&text));
            // No receiver is left once the leader is found.
            let _ = sender.send((at, status));
        };
        let thread = thread::Builder::new().name(format!("ask-{at}"));
        thread.spawn(ask).map_err(|error| {
            let message = format!("cannot start a thread: {error}; try again");
            Failure::new(Outcome::LocalInput, message)
        })?;
    }
    Ok(responses)
}

fn standing(node: &NodeConfig, cluster: &str, status: &NodeStatus) -> Standing {
    match (&status.cluster, &status.node) {
        (Some(theirs), _) if theirs != cluster => {
            return Standing::No(format!("is a node of cluster {theirs}"));
        }
        (_, Some(name)) if *name != node.name => return Standing::No(format!("is {name}")),
        // A node that was started without a file has no name.
        (_, None) => return Standing::No("is a node on its own".to_owned()),
        _ => {}
    }
    match (&status.role, &status.state) {
        (Some(NodeRole::Leader), Some(NodeState::Serving)) => Standing::Leads,
        (Some(NodeRole::Leader), _) => Standing::IsToLead,
        (Some(role), _) => Standing::No(format!("is a {}", role.as_str())),
        (None, _) => Standing::No("does not report whether it leads".to_owned()),
    }
}

fn no_leader(file: &Path, nodes: &[&NodeConfig], standings: &[Option<Standing>]) -> Failure {
    let mut outcome = Outcome::NotLeader;
    let words = nodes.iter().zip(standings).enumerate();
    let words: Vec<String> = words
        .filter_map(|(at, (node, standing))| {
            let words = match standing.as_ref()? {
                Standing::No(words) => words.clone(),
                Standing::Unknown(error) => {
                    // The failure of the leader is the reason.
                    if at == 0 {
                        outcome = report::failure(error, Opcode::Status, None).outcome;
                    }
                    format!("gives no response ({error})")
                }
                Standing::Leads | Standing::IsToLead => return None,
            };
            Some(format!("{} {words}", node.name))
        })
        .collect();
    Failure::new(
        outcome,
        format!(
            "no node of {} leads: {}; start the leader, or name a node to read from with --node",
            file.display(),
            words.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_one_of_the_cluster_that_serves() {
        let file = "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"h:1\"\n";
        let Ok(config) = Config::parse(file, "cluster.toml") else {
            unreachable!("a cluster.toml")
        };
        let node = config.leader();
        for (text, expected) in [
            (
                "cluster: c\nnode: n1\nrole: leader\nstate: serving\n",
                "leads",
            ),
            (
                "cluster: c\nnode: n1\nrole: leader\nstate: loading\n",
                "is to lead",
            ),
            ("cluster: c\nnode: n1\nrole: leader\n", "is to lead"),
            (
                "cluster: c\nnode: n1\nrole: follower\nstate: serving\n",
                "is a follower",
            ),
            (
                "cluster: c\nnode: n1\nrole: witness\nstate: serving\n",
                "is a witness",
            ),
            (
                "cluster: c\nnode: n1\nstate: serving\n",
                "does not report whether it leads",
            ),
            (
                "cluster: d\nnode: n1\nrole: leader\nstate: serving\n",
                "is a node of cluster d",
            ),
            (
                "cluster: c\nnode: n2\nrole: leader\nstate: serving\n",
                "is n2",
            ),
            (
                "cluster: -\nnode: -\nrole: leader\nstate: serving\n",
                "is a node on its own",
            ),
        ] {
            let found = match standing(node, "c", &NodeStatus::parse(text)) {
                Standing::Leads => "leads".to_owned(),
                Standing::IsToLead => "is to lead".to_owned(),
                Standing::No(words) => words,
                Standing::Unknown(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{text}");
        }
    }
}
