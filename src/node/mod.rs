//! A node: admission of requests by role, epoch and state; STATUS; counters.
//!
//! | file           | what it does                                                                  |
//! |----------------|-------------------------------------------------------------------------------|
//! | `state.rs`     | the state of the data set, its transitions, and what each admits              |
//! | `data.rs`      | runs of reads and writes, and the answers where they are not admitted         |
//! | `directory.rs` | the node's data directory, as far as the node knows of it                     |
//! | `positions.rs` | which answers wait for the log                                                |
//! | `reply.rs`     | answers to all other requests                                                 |
//! | `status.rs`    | the answer to STATUS                                                          |
//! | `storage.rs`   | the state of the node's disk, for STATUS                                      |
//! | `sync.rs`      | the answer to SYNC, and when it waits                                         |

#![deny(clippy::wildcard_enum_match_arm)]

mod data;
mod directory;
mod positions;
mod reply;
mod state;
mod status;
mod storage;
mod sync;

pub use crate::replication::core::role_state::{Leader, RoleState};
pub use data::{NoRoom, NotBatched, NotSet};
pub use directory::DataDirectory;
pub use reply::Reply;
pub use state::NotOpened;
use state::ReplicaState;
pub use status::{Lines, Shown, StatusSection, Summary};
pub use storage::{RecoveryFigures, SnapshotFigures, StorageStatus};
pub use sync::{Awaited, Synced};

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::config::{Config, LimitsConfig, NodeConfig, ReplicationConfig, WhenFull};
use crate::engine::Engine;
#[cfg(test)]
use crate::engine::clock::Clock;
use crate::engine::comparison::Budget;
use crate::engine::memory::MemoryLimit;
use crate::engine::scan::{Bounds, NotScanned};
use crate::engine::store::Store;
use crate::log::{Head, Log, Mark};
use crate::replication::core::report::Settings;
use crate::time::MachineTime;
use crate::wire::comparison::{ComparisonError, List, Sums};
use crate::wire::scan::Scan;
use crate::wire::{Request, RequestFrame};

/// Why a follower does not serve before its first stream.
const NO_DATA_YET: &str = "this follower holds no complete data set yet; ask the leader";

/// Identity and settings of a node, from `cluster.toml`.
#[derive(Clone, Debug)]
pub struct Member {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub name: String,
    /// The node that leads at first. It is this one, or one of `peers`.
    pub initial_leader: Leader,
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
    /// The data set and the order of its writes.
    engine: Engine,
    member: Option<Member>,
    state: Mutex<ReplicaState>,
    /// Whether the role is that of a leader. Changed with the state locked, and read without.
    is_leader: AtomicBool,
    /// Receive each role.
    watchers: Vec<Sender<RoleState>>,
    /// The part of STATUS that is about the node's peers.
    status_section: Option<Arc<dyn StatusSection>>,
    connections: AtomicU64,
    full_copies: AtomicU64,
    resumes: AtomicU64,
    /// The node's data directory, if it has one.
    directory: Option<Arc<dyn DataDirectory>>,
    /// The watermark that answers wait for.
    acknowledged_at: Mark,
    started: Instant,
}

impl Node {
    /// A node without a cluster and with an empty store, which leads.
    #[must_use]
    pub fn alone() -> Node {
        Node::with(None, None, RoleState::Leader { epoch: 0 })
    }

    /// A node without a cluster and with an empty store, which follows the node at `addr` and never serves.
    #[must_use]
    pub fn follower_of(addr: &str) -> Node {
        let leader = Leader {
            name: Arc::from("-"),
            addr: Arc::from(addr),
        };
        let why = Arc::from(NO_DATA_YET);
        Node::with(None, None, RoleState::Loading { leader, why })
    }

    /// A node of the configured cluster. One of several does not serve until it knows which data the others hold.
    #[must_use]
    pub fn of_cluster(config: &Config, this: &NodeConfig) -> Node {
        Node::configured(config, this, false)
    }

    /// The same for a node with a disk: it has a log also without peers, and does not serve before it has recovered.
    #[must_use]
    pub fn with_disk(config: &Config, this: &NodeConfig) -> Node {
        Node::configured(config, this, true)
    }

    fn configured(config: &Config, this: &NodeConfig, has_disk: bool) -> Node {
        let leader = config.leader();
        let leader = Leader {
            name: Arc::from(leader.name.as_str()),
            addr: Arc::from(leader.addr.as_str()),
        };
        let peers = config.nodes.iter().filter(|node| node.name != this.name);
        let member = Member {
            cluster: config.cluster.clone(),
            name: this.name.clone(),
            initial_leader: leader.clone(),
            peers: peers.cloned().collect(),
            replication: config.replication.clone(),
            limits: config.limits.clone(),
            settings: config.settings(),
            process: RandomState::new().build_hasher().finish(),
        };
        if member.peers.is_empty() && !has_disk {
            return Node::with(None, Some(member), RoleState::Leader { epoch: 0 });
        }
        let role = if *leader.name == member.name {
            let why = Arc::from("this leader is asking the other nodes for data");
            RoleState::Candidate { why, serves: false }
        } else {
            let why = Arc::from(NO_DATA_YET);
            RoleState::Loading { leader, why }
        };
        let backlog_bytes = config.replication.backlog_bytes;
        Node::with(Some(backlog_bytes), Some(member), role)
    }

    fn with(backlog_bytes: Option<u64>, member: Option<Member>, role: RoleState) -> Node {
        let limits = member.as_ref().map(|member| &member.limits);
        let store = limited(Store::new(), limits);
        let node = Node {
            engine: Engine::with_store(store, backlog_bytes, MachineTime::clock()),
            member,
            state: Mutex::new(ReplicaState::new(role)),
            is_leader: AtomicBool::new(false),
            watchers: Vec::new(),
            status_section: None,
            connections: AtomicU64::new(0),
            full_copies: AtomicU64::new(0),
            resumes: AtomicU64::new(0),
            directory: None,
            acknowledged_at: Mark::default(),
            started: Instant::now(),
        };
        node.admit_initial_role();
        node
    }

    /// A node of a simulated cluster. Its store has a few partitions, and `seed` says which keys are in them.
    #[cfg(test)]
    pub(crate) fn simulated(
        config: &Config,
        this: &NodeConfig,
        partitions: usize,
        seed: u64,
        (started, clock): (Instant, Clock),
    ) -> Node {
        let mut node = Node::of_cluster(config, this);
        let store = limited(Store::seeded(partitions, seed), Some(&config.limits));
        node.engine = Engine::with_store(store, Some(config.replication.backlog_bytes), clock);
        if let Some(member) = &mut node.member {
            member.process = seed;
        }
        node.started = started;
        node.admit_initial_role();
        node
    }

    /// The same without a log, and with this clock.
    #[cfg(test)]
    pub(crate) fn with_clock(mut self, clock: Clock) -> Node {
        self.engine = Engine::new(None, clock);
        self.admit_initial_role();
        self
    }

    /// Full copies and resumed streams so far.
    #[cfg(test)]
    pub(crate) fn streams(&self) -> [u64; 2] {
        [&self.full_copies, &self.resumes].map(|count| count.load(Ordering::Relaxed))
    }

    /// The node's data set.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
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
            | Request::SetAt { .. }
            | Request::Put { .. }
            | Request::Take { .. }
            | Request::Add { .. }
            | Request::Expire { .. }
            | Request::Ttl { .. } => {
                Reply::Error(format!("{} is executed in runs", frame.opcode().name()))
            }
            Request::Scan { key, value } => match Scan::decode(key, value) {
                Ok(request) => self.scan(&request),
                Err(error) => Reply::Error(error.to_string()),
            },
            Request::Batch { .. } => Reply::Error("BATCH is executed by itself".to_owned()),
            Request::Sync { value } => match self.sync(value) {
                Synced::Done(reply, _) => reply,
                Synced::NotYet { reply, .. } => reply,
            },
            Request::Status => Reply::Text(self.status(Instant::now())),
            Request::Discard => self.order_discard(),
            Request::Snapshot => self.order_snapshot(),
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
            Request::Watch { .. } => Reply::Error("this node has no watchers".to_owned()),
            Request::Follow { .. } => Reply::Error("this node has no followers".to_owned()),
            Request::Epoch { .. } => {
                Reply::Error("EPOCH is a record of the log and not a request".to_owned())
            }
        }
    }

    fn scan(&self, request: &Scan) -> Reply {
        let result = self.engine.scan(request, Bounds::default());
        // Asked again, since the data set may have been discarded meanwhile.
        if !self.engine.admits_reads() {
            return self.refusal_of_read();
        }
        match result {
            Ok((answer, position)) => Reply::Entries(answer, position),
            Err(NotScanned::Refused) => self.refusal_of_read(),
            Err(NotScanned::Fault(error)) => Reply::Error(error.to_string()),
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

    /// Index of the last record of the log. On a follower it may be ahead of [`head`](Self::head).
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.engine.log().map_or(0, Log::last_index)
    }

    /// Index up to which the log is on this node's disk ([`Log::durable_index`]).
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.engine.log().map_or(0, Log::durable_index)
    }

    /// Index and digest of the last entry that is applied; index 0 without a log.
    #[must_use]
    pub fn head(&self) -> Head {
        self.engine.head()
    }
}

/// The same store, with the memory limit of `cluster.toml` if there is one.
fn limited(store: Store, limits: Option<&LimitsConfig>) -> Store {
    let Some((limits, max_bytes)) =
        limits.and_then(|limits| Some((limits, limits.max_memory_bytes?)))
    else {
        return store;
    };
    let evicts = limits.when_full == WhenFull::Evict;
    store.with_limit(MemoryLimit { max_bytes, evicts })
}
