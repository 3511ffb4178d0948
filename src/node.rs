//! What a node is, what it holds, and what it answers to a request, whatever the request came in by.

use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use crate::census::{self, Budget};
use crate::config::{Config, LimitsConfig, NodeConfig, ReplicationConfig};
use crate::digest::Digest;
use crate::entry::{Entry, SHORT_BYTES};
use crate::followers::Followers;
use crate::history::{Era, History};
use crate::journal::{Head, Journal};
use crate::liveness::{LeaderChange, LeaderWatch, Liveness};
use crate::oplog::Frames;
use crate::progress::{Behind, Copies, Progress};
use crate::report::{Contact, Settings, Stopping};
use crate::store::{Contended, Store};
use crate::wire::census::{CensusError, List, Sums};
use crate::wire::response::ResponseHeader;
use crate::wire::run::{RUN_FRAME_BYTES_MAX, RUN_MAX};
use crate::wire::{Request, RequestFrame, Run, Status};

/// A peer that says nothing for so many heartbeats counts as down, and a follower as gone.
pub const SILENT_HEARTBEATS: u32 = 3;

/// The answer to a write once a leader stops.
const STOPS: &str = "this leader is stopping and takes no more writes; try again when it is back";

/// Longest value in bytes that is copied to the answers while its partition is locked: so many are sooner copied than
/// their count is raised and lowered. A longer one is copied, or sent from where it lies, when nothing is locked.
pub const COPIED_BYTES: usize = 1 << 10;

// What is not copied so is cloned under the lock, and must have a count.
const _: () = assert!(COPIED_BYTES >= SHORT_BYTES);

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
    store: Store,
    /// The order of all writes; none in a cluster of one, which pays nothing for replication.
    journal: Option<Journal>,
    member: Option<Member>,
    standing: Mutex<Standing>,
    /// What `standing` allows, for the way of every request.
    serves_reads: AtomicBool,
    takes_writes: AtomicBool,
    followers: Mutex<Followers>,
    /// A follower's progress has changed, or it has gone.
    progressed: Condvar,
    copies: Copies,
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

/// The answer to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// OK, empty: the answer to SET, and to DEL of a key that was there.
    Done,
    /// OK and `PONG`.
    Pong,
    /// OK and the entry's value.
    Value(Entry),
    /// OK and a text.
    Text(String),
    /// OK and bytes.
    Answer(Vec<u8>),
    /// NOT_FOUND.
    NotFound,
    /// NOT_LEADER and the leader's address.
    NotLeader(Arc<str>),
    /// LOADING and a message.
    Loading(Arc<str>),
    /// ERROR and a message.
    Error(String),
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

/// A write from the leader that cannot have been made to this data set: a DEL of a key that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// That key.
    pub key: Vec<u8>,
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
        let journal = Journal::new(config.replication.backlog_bytes);
        Node::with(
            role,
            Some(journal),
            Some(member),
            Phase::Loading(Arc::from(why)),
        )
    }

    fn with(role: Role, journal: Option<Journal>, member: Option<Member>, phase: Phase) -> Node {
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
            store: Store::new(),
            journal,
            member,
            standing: Mutex::new(Standing {
                phase: Phase::Serving,
                history: History::default(),
                discard: false,
                distrust: false,
                stops: false,
            }),
            serves_reads: AtomicBool::new(false),
            takes_writes: AtomicBool::new(false),
            followers: Mutex::default(),
            progressed: Condvar::new(),
            copies: Copies::default(),
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
            started: now,
        };
        node.enter(phase);
        node
    }

    /// The node's data.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// The order of all writes, where the node has peers.
    #[must_use]
    pub const fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
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
    pub const fn copies(&self) -> &Copies {
        &self.copies
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
        self.store.clear();
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
        self.takes_writes.load(Ordering::Acquire)
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
        let took = self.takes_writes.load(Ordering::Acquire);
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
        self.serves_reads.store(serves, Ordering::SeqCst);
        self.takes_writes.store(leads, Ordering::SeqCst);
    }

    /// Carries out one request (GBP §4).
    #[must_use]
    pub fn execute(&self, frame: &RequestFrame<'_>) -> Reply {
        match frame.request() {
            Request::Ping => Reply::Pong,
            Request::Get { key } => self.read(key),
            Request::Set { .. } | Request::Del { .. } => self.write(frame),
            Request::Status => Reply::Text(self.status(Instant::now())),
            Request::Discard => self.discard(),
            Request::Sums { key, value } => self.census(|out| {
                let request = Sums::decode(key, value)?;
                census::sums(&self.store, &request, Budget::default())?.encode(out);
                Ok(())
            }),
            Request::List { key, value } => self.census(|out| {
                let request = List::decode(key, value)?;
                census::list(&self.store, &request, Budget::default())?.encode(out);
                Ok(())
            }),
            Request::Follow { .. } => Reply::Error("this node has no followers".to_owned()),
        }
    }

    /// Carries out a SET, and returns the entry that it replaced.
    ///
    /// # Errors
    ///
    /// The answer to the client, where this node takes no writes.
    pub fn set(&self, entry: Entry) -> Result<Option<Entry>, Reply> {
        match self.refuses_writes() {
            Some(reply) => Err(reply),
            None => Ok(self.put(entry)),
        }
    }

    /// The answer to every write, where this node takes none.
    #[must_use]
    pub fn refuses_writes(&self) -> Option<Reply> {
        if self.takes_writes.load(Ordering::Acquire) {
            return None;
        }
        Some(
            self.redirects_writes()
                .unwrap_or_else(|| self.refuses_reads()),
        )
    }

    /// Where a follower sends writers, whatever state it is in; `None` of a leader.
    #[must_use]
    pub fn redirects_writes(&self) -> Option<Reply> {
        match &self.role {
            Role::Leader => None,
            Role::Follower { leader_addr } => Some(Reply::NotLeader(Arc::clone(leader_addr))),
        }
    }

    /// Answers about what the store holds, with what `write` makes of it.
    fn census(&self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), CensusError>) -> Reply {
        if !self.serves_reads.load(Ordering::Acquire) {
            return self.refuses_reads();
        }
        let mut answer = Vec::new();
        let result = write(&mut answer);
        // Asked again, since the store may have been given up meanwhile.
        if !self.serves_reads.load(Ordering::Acquire) {
            return self.refuses_reads();
        }
        match result {
            Ok(()) => Reply::Answer(answer),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    fn refuses_reads(&self) -> Reply {
        match self.phase() {
            Phase::Loading(why) | Phase::Refusing(why) => Reply::Loading(why),
            Phase::Serving if self.standing.lock().stops => Reply::Loading(Arc::from(STOPS)),
            Phase::Serving => Reply::Loading(Arc::from("this node is about to serve")),
        }
    }

    /// Carries out the requests of `run` in their order. The answers to the first ones are added to `out`, frame by
    /// frame, and how many these are is returned, with the answer to the next one where its value is long; what comes
    /// after that is not carried out.
    pub fn carry_out(&self, run: &Run<'_>, out: &mut Vec<u8>) -> (usize, Option<Reply>) {
        if run.len() > 1
            && let Ok(carried_out) = self.carry_out_together(run, out)
        {
            return carried_out;
        }
        for (at, frame) in run.frames().enumerate() {
            let reply = match frame.request() {
                Request::Get { key } => self.read_to(key, out),
                _ => Some(self.write(&frame)),
            };
            match reply {
                None => {}
                Some(reply) if reply.value().len() > COPIED_BYTES => return (at, Some(reply)),
                Some(reply) => answer(out, reply.status(), reply.value()),
            }
        }
        (run.len(), None)
    }

    /// As [`carry_out`](Self::carry_out), where all of it can be done together and nothing is refused. Apart from it,
    /// since what this needs of the stack a connection that asks for one thing at a time is not to pay for.
    #[inline(never)]
    fn carry_out_together(
        &self,
        run: &Run<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Reply>), Contended> {
        let (writes, before) = (run.writes() != 0, out.len());
        let allows = if writes {
            &self.takes_writes
        } else {
            &self.serves_reads
        };
        if !allows.load(Ordering::Acquire) {
            return Err(Contended);
        }
        let (mut count, mut next) = (0, None);
        self.make(run, |frame, old| {
            let (status, value) = match (frame.request(), old) {
                (Request::Get { .. }, Some(entry)) if entry.value().len() > COPIED_BYTES => {
                    next = Some(entry.clone());
                    return false;
                }
                (Request::Get { .. }, Some(entry)) => (Status::Ok, entry.value()),
                (Request::Set { .. }, _) | (_, Some(_)) => (Status::Ok, &[][..]),
                (_, None) => (Status::NotFound, &[][..]),
            };
            answer(out, status, value);
            count += 1;
            true
        })?;
        // Asked again, since the store may have been given up meanwhile; but not by a leader that takes writes, which
        // keeps what it has for good.
        if !writes && !self.serves_reads.load(Ordering::Acquire) {
            out.truncate(before);
            return Err(Contended);
        }
        Ok((count, next.map(Reply::Value)))
    }

    fn write(&self, frame: &RequestFrame<'_>) -> Reply {
        match self.refuses_writes() {
            Some(reply) => reply,
            None if self.make_one(frame) => Reply::Done,
            None => Reply::NotFound,
        }
    }

    /// Adds the answer to a GET to `out`, or returns it where its value is long or nothing is read here.
    fn read_to(&self, key: &[u8], out: &mut Vec<u8>) -> Option<Reply> {
        let serves = || self.serves_reads.load(Ordering::Acquire);
        if !serves() {
            return Some(self.refuses_reads());
        }
        let before = out.len();
        let long = self.store.look(key, |entry| match entry {
            Some(entry) if entry.value().len() > COPIED_BYTES => Some(entry.clone()),
            Some(entry) => {
                answer(out, Status::Ok, entry.value());
                None
            }
            None => {
                answer(out, Status::NotFound, b"");
                None
            }
        });
        // Asked again, since the store may have been given up meanwhile.
        if !serves() {
            out.truncate(before);
            return Some(self.refuses_reads());
        }
        long.map(Reply::Value)
    }

    fn read(&self, key: &[u8]) -> Reply {
        let serves = || self.serves_reads.load(Ordering::Acquire);
        if !serves() {
            return self.refuses_reads();
        }
        match self.store.get(key) {
            Some(entry) => Reply::Value(entry),
            // Asked again, since the store may have been given up between the first look and this one.
            None if !serves() => self.refuses_reads(),
            None => Reply::NotFound,
        }
    }

    /// Makes writes of the log, on a follower, where they come from the leader and in its order.
    ///
    /// # Errors
    ///
    /// [`Diverged`], where a DEL finds nothing; the others are made all the same.
    pub fn apply_run(&self, run: &Run<'_>) -> Result<(), Diverged> {
        let mut missing = None;
        let mut check = |frame: &RequestFrame<'_>, is_made: bool| {
            if !is_made && missing.is_none() {
                missing = Some(frame.request().key().to_vec());
            }
        };
        let together = |frame: &RequestFrame<'_>, old: Option<&Entry>| {
            check(frame, is_made(frame, old));
            true
        };
        if run.len() == 1 || self.make(run, together).is_err() {
            run.frames()
                .for_each(|frame| check(&frame, self.make_one(&frame)));
        }
        missing.map_or(Ok(()), |key| Err(Diverged { key }))
    }

    /// Carries out a run in the store, and logs what it changes there. `each` is as in [`Store::carry_out`].
    fn make(
        &self,
        run: &Run<'_>,
        mut each: impl FnMut(&RequestFrame<'_>, Option<&Entry>) -> bool,
    ) -> Result<(), Contended> {
        let journal = self.journal.as_ref().filter(|_| run.writes() != 0);
        let Some(journal) = journal else {
            let each =
                |(): &mut (), _, frame: &RequestFrame<'_>, old: Option<&Entry>| each(frame, old);
            return self.store.carry_out(run, &mut (), each, |()| {}).map(drop);
        };
        // All that can be done is done before anything is locked.
        let digests: ArrayVec<Digest, RUN_MAX> = run.frames().map(digest).collect();
        let log = run.copy_of(run.writes());
        let cost = Frames::cost(log.len());
        journal.reserve(cost);
        let mut state = (0_u16, Digest::EMPTY, cost);
        let replaced = self.store.carry_out(
            run,
            &mut state,
            |(made, change, _), at, frame, old| {
                if is_made(frame, old) {
                    *made |= 1 << at;
                    let old = old.map(Digest::of).unwrap_or_default();
                    *change = change.changed(old, digests[at]);
                }
                each(frame, old)
            },
            |(made, change, unused)| {
                if *made == 0 {
                    return;
                }
                let all = *made == run.writes();
                let log = if all { log } else { run.copy_of(*made) };
                *unused -= Frames::cost(log.len());
                journal.append(Frames::Run(log), made.count_ones(), *change);
            },
        );
        let (_, _, unused) = state;
        if unused > 0 {
            journal.release(unused);
        }
        replaced.map(drop)
    }

    /// Makes one write, and says whether it did anything.
    fn make_one(&self, frame: &RequestFrame<'_>) -> bool {
        let is_del = matches!(frame.request(), Request::Del { .. });
        if !is_del && frame.bytes().len() > RUN_FRAME_BYTES_MAX {
            // Copied before anything is locked, and the same copy goes to the log.
            self.put(Entry::copy_of(frame));
            return true;
        }
        let mut made = false;
        let Some(journal) = &self.journal else {
            self.store.write(frame, |_| made = true);
            return made;
        };
        let new = digest(*frame);
        let log = frame.bytes().to_vec();
        let cost = Frames::cost(log.len());
        journal.reserve(cost);
        self.store.write(frame, |old| {
            made = true;
            let old = old.map(Digest::of).unwrap_or_default();
            journal.append(Frames::Run(log), 1, Digest::EMPTY.changed(old, new));
        });
        if !made {
            journal.release(cost);
        }
        made
    }

    /// Makes one SET, and returns the entry that it replaced.
    fn put(&self, entry: Entry) -> Option<Entry> {
        let Some(journal) = &self.journal else {
            return self.store.set(entry);
        };
        let new = Digest::of(&entry);
        journal.reserve(Frames::cost(entry.frame().len()));
        self.store.set_with(entry, |entry, old| {
            let old = old.map(Digest::of).unwrap_or_default();
            let change = Digest::EMPTY.changed(old, new);
            journal.append(Frames::Entry(entry.clone()), 1, change);
        })
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

    /// Something has come by the stream from the leader, be it the first of it.
    pub fn leader_heard(&self, now: Instant) {
        let mut link = self.leader_link.lock();
        link.is_up = true;
        link.heard = Some(now);
    }

    /// Judges how long a follower has heard nothing of its leader, by the stream or by the answers to probes. Reports
    /// the leader timeout, and its end, once each.
    pub fn check_leader(&self, now: Instant) -> Option<LeaderChange> {
        let Role::Follower { .. } = self.role else {
            return None;
        };
        let leader = self.member.as_ref().map(|member| member.leader.as_str())?;
        let probed = {
            let liveness = self.liveness.lock();
            let peer = liveness.peers().iter().find(|peer| peer.name == leader);
            peer.and_then(|peer| peer.heard())
        };
        let mut link = self.leader_link.lock();
        let heard = link.heard.max(probed);
        match heard {
            Some(heard) if link.watch.last_heard() < Some(heard) => link.watch.heard(heard),
            Some(_) | None => link.watch.check(now),
        }
    }

    /// The leader said, in a heartbeat or in its STATUS, that its last index is `last_index`.
    pub fn leader_told(&self, last_index: u64, now: Instant) {
        let head = self.head().index;
        self.behind.lock().heard(last_index, head, now);
    }

    /// The stream from the leader has ended.
    pub fn leader_lost(&self) {
        let head = self.head().index;
        self.leader_link.lock().is_up = false;
        self.behind.lock().lost(head);
    }

    /// Notes why this follower does not follow its leader; nothing where it does.
    pub fn set_not_following(&self, why: Option<&str>) {
        *self.not_following.lock() = why.map(Arc::from);
    }

    /// How many entries this follower lacks of its leader's, where that is known, and for how long it has lacked any.
    fn lag_behind_leader(&self, now: Instant) -> (Option<u64>, Duration) {
        let is_loading = matches!(self.phase(), Phase::Loading(_));
        // While it loads it holds nothing that counts.
        let head = if is_loading { 0 } else { self.head().index };
        let follows = self.leader_link.lock().is_up && !is_loading;
        let silence_max = self.silence_max();
        let mut behind = self.behind.lock();
        let age = behind.age(head, follows, silence_max, now);
        (behind.entries(head), age)
    }

    /// Takes a follower in, whose connection from `addr` becomes a stream; gives the stream's number. A stream of the
    /// same name that has been silent for three heartbeats is its stream no longer.
    ///
    /// # Errors
    ///
    /// The address of the older stream of the same name, where that is alive.
    pub fn follower_came(
        &self,
        name: &str,
        progress: Progress,
        addr: String,
        now: Instant,
    ) -> Result<u64, String> {
        let silence_max = self.silence_max();
        let mut followers = self.followers.lock();
        followers.come(name, progress, addr, silence_max, now)
    }

    /// The address of the stream that has this name, where one is alive and does not end within `time`: a follower that
    /// comes back may do so before the end of its last connection is noticed.
    #[must_use]
    pub fn stream_of(&self, name: &str, time: Duration) -> Option<String> {
        let (silence_max, deadline) = (self.silence_max(), Instant::now() + time);
        let mut followers = self.followers.lock();
        loop {
            let older = followers.stream_of(name, silence_max, Instant::now())?;
            let older = older.to_owned();
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return Some(older);
            }
        }
    }

    /// Notes that a node at `host` was refused a name whose stream is another node's. Says whether it is the first time
    /// since that stream began.
    pub fn refuse_follower(&self, name: &str, host: &str) -> bool {
        self.followers.lock().refuse(name, host)
    }

    /// A follower's stream has ended. A leader remembers it: its figures stay in STATUS.
    pub fn follower_left(&self, name: &str, stream: u64) {
        let keeps = self.role == Role::Leader;
        let mut followers = self.followers.lock();
        followers.leave(name, stream, keeps, Instant::now());
        self.progressed.notify_all();
    }

    /// Looks at or changes a follower's progress; `None` where it has left, or has another stream by now.
    pub fn with_follower<T>(
        &self,
        name: &str,
        stream: u64,
        f: impl FnOnce(&mut Progress) -> T,
    ) -> Option<T> {
        let mut followers = self.followers.lock();
        let result = followers.progress_mut(name, stream).map(f);
        self.progressed.notify_all();
        result
    }

    /// Waits until the follower has applied `index`, has left, or the time is over. Says whether it has applied it.
    #[must_use]
    pub fn wait_for_follower(
        &self,
        name: &str,
        stream: u64,
        index: u64,
        deadline: Instant,
    ) -> bool {
        let mut followers = self.followers.lock();
        loop {
            let Some(progress) = followers.progress_mut(name, stream) else {
                return false;
            };
            if progress.applied_index() >= index {
                return true;
            }
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return false;
            }
        }
    }

    /// Silence after which a follower counts as gone.
    fn silence_max(&self) -> Duration {
        self.member.as_ref().map_or(Duration::MAX, |member| {
            member.replication.heartbeat_interval * SILENT_HEARTBEATS
        })
    }

    /// How far each peer is with a log that ends at `index`.
    #[must_use]
    pub fn peers_at(&self, index: u64) -> Vec<PeerAt> {
        let peers: Vec<_> = self.liveness.lock().peers().to_vec();
        let followers = self.followers.lock();
        let peers = peers.into_iter().map(|peer| {
            let follower = followers.attached(&peer.name);
            let lacks = match follower.map(Progress::applied_index) {
                Some(applied) if applied >= index => None,
                Some(applied) => Some(Lacking::At(applied)),
                None => Some(Lacking::Absent),
            };
            PeerAt {
                name: peer.name,
                is_up: peer.is_up,
                lacks,
            }
        });
        peers.collect()
    }

    /// Waits until some follower's progress has changed, or the time is over.
    pub fn wait_for_progress(&self, time: Duration) {
        let mut followers = self.followers.lock();
        self.progressed.wait_for(&mut followers, time);
    }

    /// The answer to STATUS: `key: value` lines (GBP §4).
    fn status(&self, now: Instant) -> String {
        let head = self.journal.as_ref().map(Journal::head).unwrap_or_default();
        let (phase, epoch) = {
            let standing = self.standing.lock();
            // Not of an era whose first entry is further on: epoch and index together say what the node holds.
            let era = standing.history.era_of(head.index.saturating_add(1));
            let epoch = era.map_or(0, |era| era.epoch);
            (standing.phase.clone(), epoch)
        };
        let name = self
            .member
            .as_ref()
            .map_or("-", |member| member.name.as_str());
        let role = match &self.role {
            Role::Leader => "leader",
            Role::Follower { .. } => "follower",
        };
        let stopping = *self.stopping.lock();
        let not_following = self.not_following.lock().clone();
        let (state, why) = match &phase {
            Phase::Loading(why) => ("loading", not_following.as_ref().unwrap_or(why).as_ref()),
            Phase::Serving => ("serving", not_following.as_deref().unwrap_or("-")),
            Phase::Refusing(why) => ("refused", why.as_ref()),
        };
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key}: {value}");
        };
        let cluster = self.member.as_ref().map_or("-", |member| &member.cluster);
        line("node", &name);
        line("cluster", &cluster);
        line("role", &role);
        line("state", &state);
        line("reason", &one_line(why));
        line("stopping", &stopping.name());
        line("epoch", &epoch);
        line("index", &head.index);
        line("digest", &head.digest);
        line("keys", &self.store.len());
        line("bytes", &self.store.bytes());
        line("connections", &self.connections.load(Ordering::Relaxed));
        line(
            "uptime_ms",
            &now.saturating_duration_since(self.started).as_millis(),
        );
        line("version", &env!("CARGO_PKG_VERSION"));
        if let Some(member) = &self.member {
            let (replication, settings) = (&member.replication, &member.settings);
            line("process", &format_args!("{:016x}", member.process));
            line("max_value_bytes", &member.limits.max_value_bytes);
            line(
                "heartbeat_interval_ms",
                &replication.heartbeat_interval.as_millis(),
            );
            line("leader_timeout_ms", &replication.leader_timeout.as_millis());
            for (group, digest) in settings.groups() {
                line(&format!("settings.{group}"), &format_args!("{digest:016x}"));
            }
        }
        line("full_copies", &self.full_copies.load(Ordering::Relaxed));
        line("resumes", &self.resumes.load(Ordering::Relaxed));
        line(
            "backlog_bytes",
            &self.journal.as_ref().map_or(0, Journal::kept_bytes),
        );
        line(
            "backlog_first_index",
            &self.journal.as_ref().map_or(0, Journal::first_index),
        );
        if let Role::Follower { leader_addr } = &self.role {
            line("leader", leader_addr);
            let LeaderLink {
                is_up,
                heard,
                watch,
            } = *self.leader_link.lock();
            let link = match (is_up, watch.is_timed_out()) {
                (_, true) => "timeout",
                (true, false) => "up",
                (false, false) => "down",
            };
            line("link", &link);
            match heard.map(|heard| now.saturating_duration_since(heard).as_millis()) {
                Some(heard_ms) => line("leader_heard_ms", &heard_ms),
                None => line("leader_heard_ms", &"-"),
            }
            let (entries, lag) = self.lag_behind_leader(now);
            match entries {
                Some(entries) => line("lag_entries", &entries),
                None => line("lag_entries", &"-"),
            }
            line("lag_ms", &lag.as_millis());
        }
        for peer in self.member.iter().flat_map(|member| &member.peers) {
            line(&format!("peer.{}.addr", peer.name), &peer.addr);
        }
        for peer in self.liveness.lock().peers() {
            let since = now.saturating_duration_since(peer.since).as_millis();
            line(
                &format!("peer.{}.state", peer.name),
                &if peer.is_up { "up" } else { "down" },
            );
            line(&format!("peer.{}.since_ms", peer.name), &since);
            let reason = match peer.contact() {
                None | Some(Contact::Report(_)) => "-",
                Some(Contact::NoProcess) => "connection refused",
                Some(Contact::Stranger(text) | Contact::Unclear(text) | Contact::Silent(text)) => {
                    text
                }
            };
            line(&format!("peer.{}.reason", peer.name), &one_line(reason));
            let differences = match (&self.member, peer.report()) {
                (Some(member), Some(report)) => member.settings.differences(&report.settings),
                (None, _) | (_, None) => Vec::new(),
            };
            let differences = if differences.is_empty() {
                "-".to_owned()
            } else {
                differences.join(",")
            };
            line(&format!("peer.{}.differs", peer.name), &differences);
        }
        let followers = self.followers.lock().clone();
        for (name, follower) in followers.iter() {
            let appended_at = |index| self.journal.as_ref()?.appended_at(index);
            let (progress, lag) = (
                follower.progress(),
                follower.lag(head.index, appended_at, now),
            );
            line(&format!("follower.{name}.state"), &follower.state().name());
            line(&format!("follower.{name}.index"), &progress.applied_index());
            let key = format!("follower.{name}.lag_entries");
            match follower.lag_entries(head.index) {
                Some(entries) => line(&key, &entries),
                None => line(&key, &"-"),
            }
            line(&format!("follower.{name}.lag_ms"), &lag.as_millis());
        }
        text
    }

    /// Where the data set stands; index 0 in a cluster of one.
    #[must_use]
    pub fn head(&self) -> Head {
        self.journal.as_ref().map(Journal::head).unwrap_or_default()
    }
}

impl Reply {
    /// The answer's status.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Reply::Done | Reply::Pong | Reply::Value(_) | Reply::Text(_) | Reply::Answer(_) => {
                Status::Ok
            }
            Reply::NotFound => Status::NotFound,
            Reply::NotLeader(_) => Status::NotLeader,
            Reply::Loading(_) => Status::Loading,
            Reply::Error(_) => Status::Error,
        }
    }

    /// The answer's value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self {
            Reply::Done | Reply::NotFound => b"",
            Reply::Pong => b"PONG",
            Reply::Value(entry) => entry.value(),
            Reply::Answer(bytes) => bytes,
            Reply::NotLeader(text) | Reply::Loading(text) => text.as_bytes(),
            Reply::Text(text) | Reply::Error(text) => text.as_bytes(),
        }
    }

    /// The header of the answer's frame.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        header(self.status(), self.value())
    }
}

/// A text of other origin as the value of one line.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Whether a request changes the data, where its key has this entry: a SET does, and a DEL of what is there.
fn is_made(frame: &RequestFrame<'_>, old: Option<&Entry>) -> bool {
    match frame.request() {
        Request::Set { .. } => true,
        Request::Del { .. } => old.is_some(),
        _ => false,
    }
}

/// What a write makes of the digest, beside what it replaces.
pub(crate) fn digest(frame: RequestFrame<'_>) -> Digest {
    match frame.request() {
        Request::Set { .. } => Digest::of_frame(frame.bytes()),
        _ => Digest::EMPTY,
    }
}

/// Adds an answer's frame.
fn answer(out: &mut Vec<u8>, status: Status, value: &[u8]) {
    out.extend_from_slice(&header(status, value).encode());
    out.extend_from_slice(value);
}

fn header(status: Status, value: &[u8]) -> ResponseHeader {
    match ResponseHeader::new(status, value.len()) {
        Ok(header) => header,
        Err(_) => unreachable!("a stored value came in a frame whose length field is as wide"),
    }
}
