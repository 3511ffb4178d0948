//! What a node is, what it holds, and what it answers to a request, whatever the request came in by.

mod data;
mod positions;
mod replica;
mod status;

pub use data::{NoRoom, NotSet};

use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use crate::config::{Config, LimitsConfig, NodeConfig, ReplicationConfig};
use crate::engine::comparison::Budget;
use crate::engine::{Admission, Answers, Engine};
use crate::history::{Era, History};
use crate::log::{Head, Log, Mark};
use crate::replication::core::followers::Followers;
use crate::replication::core::liveness::{LeaderChange, LeaderWatch, Liveness};
use crate::replication::core::progress::{Behind, Progress};
use crate::replication::core::report::{Contact, Settings, Stopping};
use crate::replication::core::snapshot_permits::SnapshotPermits;
use crate::wire::comparison::{ComparisonError, List, Sums};
use crate::wire::response::ResponseHeader;
use crate::wire::{Request, RequestFrame, Status};

/// A peer that says nothing for so many heartbeats counts as down, and a follower as gone.
pub const SILENT_HEARTBEATS: u32 = 3;

/// The answer to a write once a leader stops.
const STOPS: &str = "this leader is stopping and takes no more writes; try again when it is back";

/// What a node is in its cluster.
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

/// Where a node stands with its data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It holds no complete data set, and says why; it refuses reads.
    Loading(Arc<str>),
    /// It holds a complete data set and serves it; a follower follows, or tries to.
    Serving,
    /// A follower that holds a data set which its leader does not know: it serves it, keeps it, and follows nobody
    /// until somebody orders it to discard it.
    Refusing(Arc<str>),
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
    /// What the node accepts from clients.
    pub limits: LimitsConfig,
    /// Digests of the settings that all nodes share.
    pub settings: Settings,
    /// Number of this process, drawn at its start.
    pub process: u64,
}

/// One node: its role and its data. Knows no socket, so every rule about answers is tested without one.
#[derive(Debug)]
pub struct Node {
    role: Role,
    /// The data set and the order of its writes.
    engine: Engine,
    member: Option<Member>,
    standing: Mutex<Standing>,
    followers: Mutex<Followers>,
    /// A follower's progress has changed, or it has gone.
    progressed: Condvar,
    snapshot_permits: SnapshotPermits,
    /// Whoever wants to know of each phase.
    watcher: Option<Sender<Phase>>,
    liveness: Mutex<Liveness>,
    connections: AtomicU64,
    full_copies: AtomicU64,
    resumes: AtomicU64,
    dataset_generation: AtomicU64,
    leader_link: Mutex<LeaderLink>,
    behind: Mutex<Behind>,
    /// Why a follower does not follow its leader.
    not_following: Mutex<Option<Arc<str>>>,
    /// The watermark that answers wait for.
    acknowledged_at: Mark,
    stopping: Mutex<Stopping>,
    started: Instant,
}

/// A follower's stream from its leader.
#[derive(Clone, Copy, Debug)]
struct LeaderLink {
    is_up: bool,
    /// When anything last came by it.
    heard: Option<Instant>,
    /// Judges silence, by the stream and by the answers to probes.
    watch: LeaderWatch,
}

#[derive(Debug)]
struct Standing {
    phase: Phase,
    history: History,
    /// Somebody ordered to replace the data set by a full copy, whatever is lost with it.
    discard: bool,
    /// The node has found that its data set is not what its leader's is, and wants a full copy of a leader that knows
    /// of it.
    distrust: bool,
    /// The node stops, and takes no more writes.
    stops: bool,
}

/// The message of TIMEOUT.
const OUTCOME_UNKNOWN: &str =
    "outcome unknown: the node gave up its epoch before the write was acknowledged";

/// The answer to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// OK, empty.
    Done,
    /// OK and `PONG`.
    Pong,
    /// OK and a text.
    Text(String),
    /// OK and bytes.
    Answer(Vec<u8>),
    /// NOT_LEADER and the leader's address.
    NotLeader(Arc<str>),
    /// LOADING and a message.
    Loading(Arc<str>),
    /// ERROR and a message.
    Error(String),
    /// TIMEOUT: it is unknown whether the write is kept.
    Timeout,
}

/// A peer, and what it lacks of this node's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAt {
    /// Its name in `cluster.toml`.
    pub name: String,
    /// Whether it lives, as far as is known.
    pub is_up: bool,
    /// `None` where it has everything.
    pub lacks: Option<Lacking>,
}

/// Why a peer is not known to have all of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// It does not follow.
    Absent,
    /// It follows, and has said that it is at this index.
    At(u64),
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lacking::Absent => f.write_str("does not follow"),
            Lacking::At(0) => f.write_str("has not taken all of its full copy"),
            Lacking::At(index) => write!(f, "has applied no more than index {index}"),
        }
    }
}

impl Node {
    /// A node on its own, without a cluster and with an empty store: a leader serves at once, a follower never does.
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

    /// A node of the configured cluster. One of several does not serve until it has found out what data there is.
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
        let now = Instant::now();
        let names = member.iter().flat_map(|member| &member.peers);
        let names: Vec<String> = names.map(|peer| peer.name.clone()).collect();
        let timeout = member.as_ref().map_or(Duration::MAX, |member| {
            member.replication.heartbeat_interval * SILENT_HEARTBEATS
        });
        let leader_timeout = member
            .as_ref()
            .map_or(Duration::MAX, |member| member.replication.leader_timeout);
        let node = Node {
            role,
            engine: Engine::new(backlog_bytes),
            member,
            standing: Mutex::new(Standing {
                phase: Phase::Serving,
                history: History::default(),
                discard: false,
                distrust: false,
                stops: false,
            }),
            followers: Mutex::default(),
            progressed: Condvar::new(),
            snapshot_permits: SnapshotPermits::default(),
            watcher: None,
            liveness: Mutex::new(Liveness::new(names, timeout, now)),
            connections: AtomicU64::new(0),
            full_copies: AtomicU64::new(0),
            resumes: AtomicU64::new(0),
            dataset_generation: AtomicU64::new(0),
            leader_link: Mutex::new(LeaderLink {
                is_up: false,
                heard: None,
                watch: LeaderWatch::new(leader_timeout, now),
            }),
            stopping: Mutex::default(),
            behind: Mutex::new(Behind::new(now)),
            not_following: Mutex::default(),
            acknowledged_at: Mark::default(),
            started: now,
        };
        node.enter(phase);
        node
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

    /// The table of peers.
    #[must_use]
    pub const fn liveness(&self) -> &Mutex<Liveness> {
        &self.liveness
    }

    /// The full copies that it sends.
    #[must_use]
    pub const fn snapshot_permits(&self) -> &SnapshotPermits {
        &self.snapshot_permits
    }

    /// Where the node stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.standing.lock().phase.clone()
    }

    /// Where the node stands now, and each time that this changes; ends with the node.
    pub fn watch(&mut self) -> Receiver<Phase> {
        // Without a bound, so that nobody waits who changes it: that is rare.
        let (sender, phases) = crossbeam_channel::unbounded();
        let _ = sender.send(self.phase());
        self.watcher = Some(sender);
        phases
    }

    /// What its data set went through.
    #[must_use]
    pub fn history(&self) -> History {
        self.standing.lock().history.clone()
    }

    /// Whether it was ordered to give up what it holds.
    #[must_use]
    pub fn is_to_discard(&self) -> bool {
        self.standing.lock().discard
    }

    /// Whether it wants a full copy, though it may be able to resume.
    #[must_use]
    pub fn wants_full_copy(&self) -> bool {
        let standing = self.standing.lock();
        standing.discard || standing.distrust
    }

    /// Goes into a phase, and from then on serves what it allows.
    pub fn enter(&self, phase: Phase) {
        self.change(|standing| standing.phase = phase);
    }

    /// A copy or a resumed stream: the node holds a data set of this history. A follower serves it, and a leader once
    /// it has [opened its own era](Self::open_era): a write before that would be of another leader's time.
    pub fn adopt(&self, history: History) {
        let phase = match self.role {
            Role::Follower { .. } => Phase::Serving,
            Role::Leader => Phase::Loading(Arc::from("this leader is about to lead")),
        };
        self.change(|standing| {
            if standing.history != history {
                self.next_dataset();
            }
            standing.history = history;
            standing.phase = phase;
            standing.discard = false;
            standing.distrust = false;
        });
    }

    /// A full copy begins: what the node holds is given up.
    pub fn give_up(&self, why: &str) {
        self.change(|standing| {
            self.next_dataset();
            standing.history = History::default();
            standing.phase = Phase::Loading(Arc::from(why));
        });
        self.engine.clear();
    }

    /// A number that rises whenever the data set or its history becomes another one: before the first entry of the old
    /// data set is removed, and before the first entry of a new era is applied.
    ///
    /// A reader that takes this number, then the history, then reads from the log or the store, and then finds the
    /// number unchanged, has read entries of that history alone.
    #[must_use]
    pub fn dataset_generation(&self) -> u64 {
        self.dataset_generation.load(Ordering::SeqCst)
    }

    /// To be called in [`change`](Self::change), whose lock keeps readers from the history until it is the new one.
    fn next_dataset(&self) {
        self.dataset_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The node has found that its data set is not what it should be: it stops serving and wants a full copy.
    pub fn distrust(&self, why: &str) {
        self.change(|standing| {
            self.next_dataset();
            standing.phase = Phase::Loading(Arc::from(why));
            standing.distrust = true;
        });
    }

    /// A leader takes writes from here on, in a new era.
    ///
    /// # Errors
    ///
    /// When the era cannot follow the node's history.
    pub fn open_era(&self, era: Era) -> Result<(), crate::history::HistoryError> {
        let mut result = Ok(());
        self.change(|standing| {
            result = standing.history.push(era);
            if result.is_ok() {
                self.next_dataset();
                standing.phase = Phase::Serving;
            }
        });
        result
    }

    /// Whether the node takes writes.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        self.engine.admits_writes()
    }

    /// Another node leads in a later epoch: this leader keeps its data, takes no more writes, and says why.
    pub fn yield_to_other_leader(&self, why: &str) {
        self.change(|standing| {
            if standing.phase == Phase::Serving {
                standing.phase = Phase::Refusing(Arc::from(why));
            }
        });
    }

    /// Whether the node holds a complete data set, served or not.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.standing.lock().history.last().is_some()
    }

    /// Notes how far the node's stop has come, for its peers.
    pub fn set_stopping(&self, stopping: Stopping) {
        *self.stopping.lock() = stopping;
    }

    /// Returns whether the node's stop has begun.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock() != Stopping::No
    }

    /// A leader that stops takes no more writes, so that its followers can get everything before it goes. Says whether
    /// it took any until now.
    pub fn end_writes(&self) -> bool {
        let took = self.engine.admits_writes();
        self.change(|standing| standing.stops = true);
        took
    }

    fn change(&self, with: impl FnOnce(&mut Standing)) {
        let mut standing = self.standing.lock();
        let before = self.watcher.is_some().then(|| standing.phase.clone());
        with(&mut standing);
        if let Some(watcher) = &self.watcher
            && before.as_ref() != Some(&standing.phase)
        {
            // Under the lock, for the order. Whoever does not read any more has no need to know.
            let _ = watcher.send(standing.phase.clone());
        }
        let serves = !matches!(standing.phase, Phase::Loading(_));
        let leads =
            self.role == Role::Leader && standing.phase == Phase::Serving && !standing.stops;
        self.engine.admit(Admission {
            reads: serves,
            writes: leads,
            epoch: standing.history.last().map_or(0, |era| era.epoch),
        });
    }

    /// Carries out one request (GBP §4).
    #[must_use]
    pub fn execute(&self, frame: &RequestFrame<'_>) -> Reply {
        match frame.request() {
            Request::Ping => Reply::Pong,
            Request::Get { .. } | Request::Set { .. } | Request::Del { .. } => {
                Reply::Error(format!("{} is executed in runs", frame.opcode().name()))
            }
            Request::Status => Reply::Text(self.status(Instant::now())),
            Request::Discard => self.discard(),
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
        }
    }

    /// Answers about what the store holds, with what `write` makes of it.
    fn comparison(&self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), ComparisonError>) -> Reply {
        if !self.engine.admits_reads() {
            return self.refusal_of_read();
        }
        let mut answer = Vec::new();
        let result = write(&mut answer);
        // Asked again, since the store may have been given up meanwhile.
        if !self.engine.admits_reads() {
            return self.refusal_of_read();
        }
        match result {
            Ok(()) => Reply::Answer(answer),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    fn refusal_of_read(&self) -> Reply {
        match self.phase() {
            Phase::Loading(why) | Phase::Refusing(why) => Reply::Loading(why),
            Phase::Serving if self.standing.lock().stops => Reply::Loading(Arc::from(STOPS)),
            Phase::Serving => Reply::Loading(Arc::from("this node is about to serve")),
        }
    }

    fn discard(&self) -> Reply {
        let mut done = Reply::Done;
        self.change(|standing| match &standing.phase {
            Phase::Refusing(_) if self.role != Role::Leader => standing.discard = true,
            Phase::Refusing(_) => {
                done = Reply::Error(
                    "this node is to lead by its own cluster.toml: correct that and restart it"
                        .to_owned(),
                );
            }
            Phase::Loading(_) | Phase::Serving => {
                done = Reply::Error(
                    "nothing to discard: this node refuses no data set of its leader's".to_owned(),
                );
            }
        });
        done
    }

    /// A client has come (1) or gone (-1).
    pub fn count_connection(&self, has_come: bool) {
        if has_come {
            self.connections.fetch_add(1, Ordering::Relaxed);
        } else {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A stream to a follower, or from the leader, has begun.
    pub fn count_stream(&self, is_full_copy: bool) {
        let counter = if is_full_copy {
            &self.full_copies
        } else {
            &self.resumes
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the data set stands; index 0 in a cluster of one.
    #[must_use]
    pub fn head(&self) -> Head {
        self.engine.head()
    }
}

impl Reply {
    /// The answer's status.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Reply::Done | Reply::Pong | Reply::Text(_) | Reply::Answer(_) => Status::Ok,
            Reply::NotLeader(_) => Status::NotLeader,
            Reply::Loading(_) => Status::Loading,
            Reply::Error(_) => Status::Error,
            Reply::Timeout => Status::Timeout,
        }
    }

    /// The answer's value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self {
            Reply::Done => b"",
            Reply::Pong => b"PONG",
            Reply::Answer(bytes) => bytes,
            Reply::NotLeader(text) | Reply::Loading(text) => text.as_bytes(),
            Reply::Text(text) | Reply::Error(text) => text.as_bytes(),
            Reply::Timeout => OUTCOME_UNKNOWN.as_bytes(),
        }
    }

    /// Adds the answer's frame.
    pub fn push_to(self, answers: &mut Answers) {
        let status = self.status();
        match self {
            Reply::Text(text) | Reply::Error(text) => answers.push_bytes(status, text.into_bytes()),
            Reply::Answer(bytes) => answers.push_bytes(status, bytes),
            Reply::Done
            | Reply::Pong
            | Reply::NotLeader(_)
            | Reply::Loading(_)
            | Reply::Timeout => {
                answers.push(status, self.value());
            }
        }
    }

    /// The header of the answer's frame.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        header(self.status(), self.value())
    }
}

fn header(status: Status, value: &[u8]) -> ResponseHeader {
    match ResponseHeader::new(status, value.len()) {
        Ok(header) => header,
        Err(_) => unreachable!("a stored value came in a frame whose length field is as wide"),
    }
}
