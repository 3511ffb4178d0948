//! One of the two nodes of a comparison: its STATUS, sums and entries.

use std::collections::HashMap;

use gopherstore::{
    Client,
    client::{Error, NodeState, NodeStatus, Response, Result as ClientResult},
    wire::{
        Opcode,
        comparison::{Buckets, List, ListAnswer, Place, Sums},
    },
};

use crate::{
    context::{self, Context},
    mistake,
    report::{self, Failure, Outcome, UNKNOWN_OPCODE},
};

/// Requests in one pipeline.
const PIPELINE_COUNT: usize = 10_000;

/// One of the two nodes.
pub(super) struct Node {
    /// The user's name for it.
    pub(super) name: String,
    pub(super) client: Client,
}

/// The lines of a STATUS that a comparison needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeSummary {
    /// 0 on a node without a log, which has no index and no digest.
    pub(super) epoch: u64,
    pub(super) index: u64,
    pub(super) digest: String,
    pub(super) keys: u64,
    pub(super) cluster: String,
    /// Whether its state is `refused`.
    pub(super) refuses: bool,
    /// The reason of a node that is loading.
    pub(super) loading: Option<String>,
}

/// The hash and length of the value that a node holds for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) hash: u128,
    pub(super) value_len: u32,
}

impl Node {
    /// The node that an operand names: a name in the cluster.toml, or an address.
    pub(super) fn named(name: &str, context: &Context) -> Result<Node, Failure> {
        if context.addr.is_some() || context.node.is_some() {
            return Err(mistake(
                "--addr or --node with diff, which is given its two nodes; leave it out",
            ));
        }
        let addr = match &context.config {
            _ if context::is_address(name) => name.to_owned(),
            Some(file) => context::configured(file, name)?,
            None => {
                return Err(mistake(&format!(
                    "{name:?} is no address; write HOST:PORT, or name the cluster.toml with --config"
                )));
            }
        };
        Ok(Node {
            name: name.to_owned(),
            client: context.client_of(&addr),
        })
    }

    /// Asks the node for its STATUS. Fails if it serves no reads.
    pub(super) fn serving(&mut self) -> Result<NodeSummary, Failure> {
        let text = self.client.status();
        let summary = NodeSummary::parse(&text.map_err(|error| self.failure(&error))?);
        match summary.loading {
            Some(message) => Err(self.failure(&Error::Loading { message })),
            None => Ok(summary),
        }
    }

    /// The sums of all buckets.
    pub(super) fn sums(&mut self, bits: u8) -> Result<Vec<u128>, Failure> {
        let mut total = vec![0_u128; 1 << bits];
        let mut place = Place::default();
        loop {
            let request = Sums { place, bits };
            let response = self.client.sums(&request);
            let response = response.map_err(|error| self.failure(&error))?;
            for (total, sum) in total.iter_mut().zip(response.sums) {
                *total = total.wrapping_add(sum);
            }
            if response.next.is_end(response.partitions) {
                return Ok(total);
            }
            place = response.next;
        }
    }

    /// Reads the node's entries of the keys in some buckets.
    pub(super) fn list(&mut self, buckets: &Buckets) -> Result<HashMap<Vec<u8>, Entry>, Failure> {
        let mut listed = HashMap::new();
        let mut place = Place::default();
        loop {
            let request = List::Some {
                place,
                buckets: buckets.clone(),
            };
            let response = self.client.list(&request);
            let response = response.map_err(|error| self.failure(&error))?;
            for item in response.items {
                let (hash, value_len) = (item.hash, item.value_len);
                listed.insert(item.key, Entry { hash, value_len });
            }
            if response.next.is_end(response.partitions) {
                return Ok(listed);
            }
            place = response.next;
        }
    }

    /// Reads the node's entries of some keys.
    pub(super) fn entries_of(&mut self, keys: &[&[u8]]) -> Result<Vec<Option<Entry>>, Failure> {
        let mut seen = Vec::with_capacity(keys.len());
        for keys in keys.chunks(PIPELINE_COUNT) {
            let mut pipeline = self.client.pipeline();
            for key in keys {
                pipeline.list(key);
            }
            let responses = pipeline.run();
            let responses: ClientResult<Vec<Response>> = responses
                .map_err(Error::from)
                .and_then(|responses| responses.into_iter().collect());
            for (key, response) in keys
                .iter()
                .zip(responses.map_err(|error| self.failure(&error))?)
            {
                let item = match response {
                    Response::Value(bytes) => ListAnswer::decode(&bytes)
                        .map_err(|error| self.broken(&error.to_string()))?
                        .items
                        .pop(),
                    Response::Done
                    | Response::NotFound
                    | Response::Conflict(_)
                    | Response::Pong => {
                        return Err(self.broken("a LIST is answered without a list"));
                    }
                };
                if item.as_ref().is_some_and(|item| item.key != *key) {
                    return Err(self.broken("a LIST of one key is answered with another"));
                }
                seen.push(item.map(|item| Entry {
                    hash: item.hash,
                    value_len: item.value_len,
                }));
            }
        }
        Ok(seen)
    }

    fn broken(&self, what: &str) -> Failure {
        let name = &self.name;
        let message = format!("{name} violates the protocol: {what}; see --hex");
        Failure::new(Outcome::Protocol, message)
    }

    /// The failure of a request to this node, as text for the user.
    fn failure(&self, error: &Error) -> Failure {
        let outcome = report::failure(error, Opcode::Status, None).outcome;
        // The user names the nodes by operands, not by --addr.
        let next = match error {
            Error::Server { message } if message.starts_with(UNKNOWN_OPCODE) => {
                "the node is of another version, which cannot be compared key by key; upgrade it, or compare the \
                 digests that status shows"
            }
            Error::Loading { .. } => "compare once it serves; status shows how it is",
            Error::Connect { .. } => "is the node running?",
            Error::Timeout { .. } => "allow more with --timeout",
            Error::Protocol { .. } => "is it a GopherStore node? --hex shows what it sends",
            _ => "try again",
        };
        let said = error.to_string();
        if said.contains(self.client.addr()) && self.name == self.client.addr() {
            return Failure::new(outcome, format!("{said}; {next}"));
        }
        Failure::new(outcome, format!("{}: {said}; {next}", self.name))
    }
}

impl NodeSummary {
    /// Parses a STATUS. A missing number is 0.
    pub(super) fn parse(text: &str) -> NodeSummary {
        let status = NodeStatus::parse(text);
        let is_loading = status.state == Some(NodeState::Loading);
        NodeSummary {
            epoch: status.epoch.unwrap_or(0),
            index: status.index.unwrap_or(0),
            digest: status.digest.unwrap_or_default(),
            keys: status.keys.unwrap_or(0),
            cluster: status.cluster.unwrap_or_default(),
            refuses: status.state == Some(NodeState::Refused),
            loading: is_loading.then(|| status.reason.unwrap_or_default()),
        }
    }
}
