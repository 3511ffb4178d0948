//! A node: admission of requests by role, epoch and state; STATUS; counters.
//!
//! | file           | what it does                                                                  |
//! |----------------|-------------------------------------------------------------------------------|
//! | `state.rs`     | the state of the data set, its transitions, and what each admits              |
//! | `data.rs`      | runs of reads and writes, and the answers where they are not admitted         |
//! | `positions.rs` | which answers wait for the log                                                |
//! | `reply.rs`     | answers to all other requests                                                 |
//! | `status.rs`    | the answer to STATUS                                                          |

#![deny(clippy::wildcard_enum_match_arm)]

mod data;
mod positions;
mod reply;
mod state;
mod status;

pub use data::{NoRoom, NotSet};
pub use reply::Reply;
pub use state::Phase;
use state::ReplicaState;
pub use status::{Lines, StatusSection, Summary};

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::config::{Config, LimitsConfig, NodeConfig, ReplicationConfig};
use crate::engine::Engine;
use crate::engine::comparison::Budget;
use crate::log::{Head, Mark};
use crate::replication::core::report::Settings;
use crate::wire::comparison::{ComparisonError, List, Sums};
use crate::wire::{Request, RequestFrame};

/// The role of a node in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes reads and writes.
    Leader,
    /// Takes reads, and refuses writes with the leader's address.
    Follower {
        /// The leader's `host:port`, as in `cluster.toml`.
        leader_addr: Arc<str>,
    },
}

/// Identity and settings of a node, from `cluster.toml`.
#[derive(Clone, Debug)]
pub struct Member {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub name: String,
    /// The name of the node that leads.
    pub leader: String,
    /// All other nodes.
    pub peers: Vec<NodeConfig>,
    /// Intervals and sizes of replication.
    pub replication: ReplicationConfig,
    /// Limits on clients.
    pub limits: LimitsConfig,
    /// Digests of the settings that all nodes share.
    pub settings: Settings,
    /// Number of this process, drawn at its start.
    pub process: u64,
}

/// One node: its role, its state and its data set. It has no sockets, so every rule about answers is tested without
/// one.
#[derive(Debug)]
pub struct Node {
    role: Role,
    /// The data set and the order of its writes.
    engine: Engine,
    member: Option<Member>,
    state: Mutex<ReplicaState>,
    /// Receives each phase.
    watcher: Option<Sender<Phase>>,
    /// The part of STATUS that is about the node's peers.
    status_section: Option<Arc<dyn StatusSection>>,
    connections: AtomicU64,
    full_copies: AtomicU64,
    resumes: AtomicU64,
    dataset_generation: AtomicU64,
    /// The watermark that answers wait for.
    acknowledged_at: Mark,
    started: Instant,
}

impl Node {
    /// A node without a cluster and with an empty store. A leader serves at once, a follower never does.
    #[must_use]
    pub fn new(role: Role) -> Node {
        let serves = role == Role::Leader;
        let why = "this follower holds no complete data set yet; ask the leader";
        let phase = if serves {
            Phase::Serving
        } else {
            Phase::Loading(Arc::from(why))
        };
        Node::with(role, None, None, phase)
    }

    /// A node of the configured cluster. One of several does not serve until it knows which data the others hold.
    #[must_use]
    pub fn of_cluster(config: &Config, this: &NodeConfig) -> Node {
        let leader = config.leader();
        let role = if this.name == leader.name {
            Role::Leader
        } else {
            Role::Follower {
                leader_addr: Arc::from(leader.addr.as_str()),
            }
        };
        let peers = config.nodes.iter().filter(|node| node.name != this.name);
        let member = Member {
            cluster: config.cluster.clone(),
            name: this.name.clone(),
            leader: leader.name.clone(),
            peers: peers.cloned().collect(),
            replication: config.replication.clone(),
            limits: config.limits.clone(),
            settings: config.settings(),
            process: RandomState::new().build_hasher().finish(),
        };
        if member.peers.is_empty() {
            return Node::with(role, None, Some(member), Phase::Serving);
        }
        let why = match role {
            Role::Leader => "this leader is asking the other nodes for data",
            Role::Follower { .. } => "this follower holds no complete data set yet; ask the leader",
        };
        Node::with(
            role,
            Some(config.replication.backlog_bytes),
            Some(member),
            Phase::Loading(Arc::from(why)),
        )
    }

    fn with(role: Role, backlog_bytes: Option<u64>, member: Option<Member>, phase: Phase) -> Node {
        let node = Node {
            role,
            engine: Engine::new(backlog_bytes),
            member,
            state: Mutex::new(ReplicaState::new(Phase::Serving)),
            watcher: None,
            status_section: None,
            connections: AtomicU64::new(0),
            full_copies: AtomicU64::new(0),
            resumes: AtomicU64::new(0),
            dataset_generation: AtomicU64::new(0),
            acknowledged_at: Mark::default(),
            started: Instant::now(),
        };
        node.enter(phase);
        node
    }

    /// The node's data set.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The role that the configuration gives the node.
    #[must_use]
    pub const fn role(&self) -> &Role {
        &self.role
    }

    /// Whether the node is to lead, by its configuration.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// Identity and settings of the node, where it has a `cluster.toml`.
    #[must_use]
    pub const fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Carries out one request (GBP §4).
    #[must_use]
    pub fn execute(&self, frame: &RequestFrame<'_>) -> Reply {
        match frame.request() {
            Request::Ping => Reply::Pong,
            Request::Get { .. }
            | Request::Set { .. }
            | Request::Del { .. }
            | Request::Add { .. } => {
                Reply::Error(format!("{} is executed in runs", frame.opcode().name()))
            }
            Request::Status => Reply::Text(self.status(Instant::now())),
            Request::Discard => self.order_discard(),
            Request::Sums { key, value } => self.comparison(|out| {
                let request = Sums::decode(key, value)?;
                (self.engine.sums(&request, Budget::default())?).encode(out);
                Ok(())
            }),
            Request::List { key, value } => self.comparison(|out| {
                let request = List::decode(key, value)?;
                (self.engine.list(&request, Budget::default())?).encode(out);
                Ok(())
            }),
            Request::Follow { .. } => Reply::Error("this node has no followers".to_owned()),
            Request::Epoch { .. } => {
                Reply::Error("EPOCH is a record of the log and not a request".to_owned())
            }
        }
    }

    /// Answers a request for a comparison of nodes. `write` writes the answer's value.
    fn comparison(&self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), ComparisonError>) -> Reply {
        if !self.engine.admits_reads() {
            return self.refusal_of_read();
        }
        let mut answer = Vec::new();
        let result = write(&mut answer);
        // Asked again, since the data set may have been discarded meanwhile.
        if !self.engine.admits_reads() {
            return self.refusal_of_read();
        }
        match result {
            Ok(()) => Reply::Answer(answer),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    /// A client has connected, or has gone.
    pub fn count_connection(&self, has_come: bool) {
        if has_come {
            self.connections.fetch_add(1, Ordering::Relaxed);
        } else {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A stream to a follower, or from the leader, has begun.
    pub fn count_stream(&self, is_snapshot: bool) {
        let counter = if is_snapshot {
            &self.full_copies
        } else {
            &self.resumes
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Index and digest of the last entry; index 0 in a cluster of one.
    #[must_use]
    pub fn head(&self) -> Head {
        self.engine.head()
    }
}
