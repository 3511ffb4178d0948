//! A process of a node: the shipped values, and what the threads and sockets of the transport do around them.

mod executing;
mod replicating;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Event;
use super::asking::Asking;
use super::clocks::ClockCheck;
use super::events::{MS, Micros};
use super::following::Following;
use super::load::node_at;
use super::network::{End, Signal};
use super::serving::Connection;
use super::shared::Shared;
use super::stopping::Stopping;
use super::storing::{self, Directory, Storing};
use super::truth::{Model, Place, Written};
use crate::config::Config;
use crate::history::History;
use crate::log::Mark;
use crate::node::{Member, Node, RoleState};
use crate::replication::driver::Driver;
use crate::replication::transfer::{Next, Transfer, TransferError};
use crate::replication::watch::{self, Watch};
use crate::replication::{Peers, Replica};
use crate::wire::request::Limits;

/// Time between two turns of the expiry thread, on average: as in the transport.
const EXPIRY_PAUSE: Micros = 100 * MS;

/// Entries that a leader removes by itself.
pub(super) const EXPIRED: &str = "entries that expired and were removed";

/// Entries that a leader removes to make room.
pub(super) const EVICTED: &str = "entries that were evicted";

/// The events of requests about an expired entry: on a leader, and on another node.
pub(super) const MET_EXPIRED: [&str; 2] = [
    "requests about an expired entry on a leader",
    "requests about an expired entry on another node",
];

/// Bytes that one append of a run counts for at most.
const APPEND_BYTES_MAX: u64 = 16 * 3_100;

/// A node and its peers. The borrowed parts of a process live in a slot that outlives it.
#[derive(Debug)]
pub(super) struct Shipped {
    node: Node,
    peers: Arc<Peers>,
    directory: Option<Arc<Directory>>,
}

impl Shipped {
    /// A node of a process that starts, as it is after the recovery from its disk.
    fn new(host: usize, config: &Config, partitions: usize, shared: &mut Shared) -> Shipped {
        let now = shared.timeline.instant();
        let (this, process) = (&config.nodes[host], shared.random.next());
        let clock = shared.timeline.clock(host);
        let mut node = Node::simulated(config, this, partitions, process, (now, clock));
        if shared.waits_for_commit {
            node.acknowledge_at(Mark::Committed);
        }
        let directory = storing::open(&mut node, host, now, shared);
        let peers = Peers::attach_at(&mut node, now);
        Shipped {
            node,
            peers,
            directory,
        }
    }

    /// Full copies and resumed streams of the process.
    pub(super) fn streams(&self) -> [u64; 2] {
        self.node.streams()
    }
}

/// The place of a process's [`Shipped`].
pub(super) type Slot = OnceCell<Shipped>;

/// Something that a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wake {
    /// The next look at the role.
    Driver,
    /// The check of who is up.
    Heartbeat,
    /// The questions to a peer.
    Ask(usize),
    /// The stream from the leader.
    Follow,
    /// A connection that was accepted.
    Serve(End),
    /// The acknowledgements on a stream.
    Acks(End),
    /// The replication thread's turn.
    Drain,
    /// The expiry thread's turn.
    Expire,
    /// The log-writer thread's turn.
    Write,
    /// The sync thread's turn.
    Sync,
    /// The snapshot thread's turn.
    Snapshot,
    /// The next step of the stop.
    Stop,
    /// The next step of a transfer of leadership.
    Transfer,
}

/// A process that runs.
pub(super) struct Process<'a> {
    /// Its number among all of the run.
    pub(super) number: usize,
    /// The host, which is the node's place.
    pub(super) host: usize,
    pub(super) replica: Replica<'a>,
    pub(super) member: &'a Member,
    pub(super) stopping: Option<Stopping<'a>>,
    transfer: Option<Transfer<'a>>,
    /// The result of the last transfer.
    pub(super) transferred: Option<Result<(), TransferError>>,
    driver: Driver<'a>,
    following: Option<Following<'a>>,
    askings: Vec<(Asking<'a>, Watch<'a>)>,
    pub(super) connections: BTreeMap<End, Connection<'a>>,
    /// Its work on its disk, if it has one.
    pub(super) storing: Option<Storing<'a>>,
    /// Of each connection: the position that each answer is about which has not left.
    answers: BTreeMap<End, BTreeMap<usize, Place>>,
    /// Connections that came while none is served.
    waiting: Vec<End>,
    pub(super) due: BTreeMap<Wake, Micros>,
    is_hurried: bool,
    /// Something has happened that the driver is to know.
    pub(super) has_news: bool,
    /// The node's data set as the truth has it.
    pub(super) model: Model,
    written: Written,
    pub(super) clock_check: ClockCheck,
    /// The process whose snapshot it last began to take.
    pub(super) copies_from: Option<usize>,
    pub(super) seen: Seen,
    /// An operator has ordered to discard the data set.
    pub(super) may_discard: bool,
    /// Answers wait until most nodes have what they are about.
    pub(super) waits_for_commit: bool,
    /// Of a leader: the index up to which most nodes have its log.
    pub(super) committed: u64,
    /// The last epoch in which it led.
    pub(super) leads_in: u64,
}

/// The last observation of a node.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) generation: u64,
    pub(super) index: u64,
    pub(super) last_index: u64,
    pub(super) role: Option<RoleState>,
    pub(super) history: History,
}

impl<'a> Process<'a> {
    /// Starts a process.
    pub(super) fn start(
        number: usize,
        host: usize,
        slot: &'a Slot,
        config: &Config,
        partitions: usize,
        shared: &mut Shared,
    ) -> Process<'a> {
        let now = shared.timeline.instant();
        let shipped = slot.get_or_init(|| Shipped::new(host, config, partitions, shared));
        let (node, peers) = (&shipped.node, &*shipped.peers);
        let replica = Replica { node, peers };
        let member = node.member().expect("it has peers");
        let asking = |peer| {
            let to = node_at(peer_addr(peer)).expect("its address");
            (
                Asking::new(peer, host, to),
                Watch::new(replica, member, &peer.name),
            )
        };
        let directory = shipped.directory.as_deref();
        let storing = directory.and_then(|directory| Storing::new(directory, host, shared));
        let mut process = Process {
            number,
            host,
            replica,
            member,
            stopping: None,
            transfer: None,
            transferred: None,
            driver: Driver::new(replica, member, now),
            following: None,
            askings: member.peers.iter().map(asking).collect(),
            connections: BTreeMap::new(),
            storing,
            answers: BTreeMap::new(),
            waiting: Vec::new(),
            due: BTreeMap::new(),
            is_hurried: false,
            has_news: true,
            model: Model::default(),
            written: Written::default(),
            clock_check: ClockCheck::default(),
            copies_from: None,
            seen: Seen::default(),
            may_discard: false,
            waits_for_commit: shared.waits_for_commit,
            committed: 0,
            leads_in: 0,
        };
        shared.running.insert(host, number);
        shared.network.turn_on(host, &mut shared.timeline);
        shared.note(host, || format!("process {number} starts"));
        process.take_restored(shared);
        process.check_recovered(shared);
        if process.storing.is_some() {
            process.wake_at(Wake::Write, 0, shared);
        }
        process.wake_at(Wake::Heartbeat, 0, shared);
        process.wake_at(Wake::Expire, shared.timeline.now() + EXPIRY_PAUSE, shared);
        for at in 0..process.askings.len() {
            process.wake_at(Wake::Ask(at), 0, shared);
        }
        process.settle(shared);
        process
    }

    /// The node.
    pub(super) const fn node(&self) -> &'a Node {
        self.replica.node
    }

    /// The node's end of its stream from the node that it follows.
    pub(super) fn stream_end(&self) -> Option<End> {
        self.following.as_ref().map(|following| following.end)
    }

    /// The connection ends at once. `is_silent` of a machine that goes off; otherwise the system closes its sockets.
    pub(super) fn crash(mut self, is_silent: bool, shared: &mut Shared) {
        let (host, number) = (self.host, self.number);
        shared.note(host, || format!("process {number} crashes"));
        if is_silent {
            shared.network.turn_off(host);
        } else {
            self.close_all(shared);
            shared.network.listen(host, false);
        }
        if let Some(place) = shared.places.get(&number) {
            shared.crashed.insert(number, *place);
        }
        self.end_disk(is_silent, shared);
        self.lose("its last node crashed", shared);
    }

    pub(super) fn close_all(&mut self, shared: &mut Shared) {
        for connection in self.connections.values_mut() {
            connection.close(shared);
        }
        for end in std::mem::take(&mut self.waiting) {
            shared.network.close(end, &mut shared.timeline);
        }
        self.end_threads(shared);
    }

    /// The threads of replication end.
    pub(super) fn end_threads(&mut self, shared: &mut Shared) {
        for (asking, _) in &mut self.askings {
            asking.close(&mut shared.network, &mut shared.timeline);
        }
        self.askings.clear();
        if let Some(following) = self.following.take() {
            following.stream.end();
            shared.logged.remove(&following.end);
            shared.network.close(following.end, &mut shared.timeline);
        }
    }

    /// An operator has the node hand over to another one.
    pub(super) fn begin_transfer(&mut self, target: &str, shared: &mut Shared) {
        if self.transfer.is_some() {
            return;
        }
        let timeout = self.member.replication.leader_timeout;
        let deadline = shared.timeline.instant() + timeout;
        match Transfer::begin(self.replica, target, deadline) {
            Ok(transfer) => {
                shared.note(self.host, || format!("hands over to {target}"));
                self.transfer = Some(transfer);
                self.settle(shared);
            }
            Err(error) => {
                shared.note(self.host, || format!("does not hand over: {error}"));
                self.transferred = Some(Err(error));
            }
        }
    }

    fn go_on_transferring(&mut self, shared: &mut Shared) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        match transfer.next(shared.timeline.instant()) {
            Next::Wait(until) => {
                self.has_news = true;
                let until = shared.timeline.micros_of(until);
                self.wake_at(Wake::Transfer, until, shared);
            }
            Next::End(result) => {
                shared.note(self.host, || format!("has handed over: {result:?}"));
                shared.count(match &result {
                    Ok(()) => "transfers",
                    Err(_) => "transfers that failed",
                });
                self.transfer = None;
                self.transferred = Some(result);
                self.has_news = true;
            }
        }
    }

    /// The data of this process are gone.
    pub(super) fn lose(&self, why: &'static str, shared: &mut Shared) {
        let Some(place) = shared.places.remove(&self.number) else {
            return;
        };
        for number in shared.only_at(self.number, place) {
            shared.lost.insert(number, why);
        }
    }

    /// Has something come at a time, where it does not come before.
    pub(super) fn wake_at(&mut self, wake: Wake, at: Micros, shared: &mut Shared) {
        let at = at.max(shared.timeline.now());
        if self.due.get(&wake).is_some_and(|due| *due <= at) {
            return;
        }
        self.due.insert(wake, at);
        let number = self.number;
        shared.timeline.at(at, Event::Process(number, wake));
    }

    /// Something is due, unless it came before.
    pub(super) fn wake(&mut self, wake: Wake, shared: &mut Shared) {
        if self
            .due
            .get(&wake)
            .is_none_or(|due| *due > shared.timeline.now())
        {
            return;
        }
        self.due.remove(&wake);
        match wake {
            Wake::Driver => self.has_news = true,
            Wake::Stop | Wake::Transfer => {}
            Wake::Heartbeat => {
                let interval = micros(self.member.replication.heartbeat_interval);
                if shared.timeline.now() > 0 {
                    watch::check(self.replica, shared.timeline.instant());
                }
                self.wake_at(Wake::Heartbeat, shared.timeline.now() + interval, shared);
            }
            Wake::Ask(at) if at < self.askings.len() => self.ask(at, None, shared),
            Wake::Ask(_) => {}
            Wake::Follow => self.step_following(None, shared),
            Wake::Serve(end) => self.serve(end, None, shared),
            Wake::Acks(end) => self.serve(end, Some(Signal::Readable), shared),
            Wake::Expire => self.expire(shared),
            Wake::Write => {
                self.write_log(shared);
                // The stream waits for the disk.
                self.step_following(None, shared);
            }
            Wake::Sync => {
                self.note_sync(shared);
                self.step_following(None, shared);
            }
            Wake::Snapshot => self.copy_dataset(shared),
            Wake::Drain => {
                if let Some(log) = self.node().engine().log() {
                    log.drain(shared.timeline.instant());
                }
            }
        }
        self.settle(shared);
    }

    /// A signal of the network.
    pub(super) fn signal(&mut self, end: End, signal: Signal, shared: &mut Shared) {
        if signal == Signal::Accepted {
            self.waiting.push(end);
        }
        if self.waiting.contains(&end) {
            if self.admits() {
                self.admit_waiting(shared);
            }
            return self.settle(shared);
        }
        if self.connections.contains_key(&end) {
            self.serve(end, Some(signal), shared);
        } else if self
            .following
            .as_ref()
            .is_some_and(|following| following.end == end)
        {
            self.step_following(Some(signal), shared);
        } else if let Some(at) = self
            .askings
            .iter()
            .position(|(asking, _)| asking.end == Some(end))
        {
            self.ask(at, Some(signal), shared);
        } else {
            shared.network.close(end, &mut shared.timeline);
        }
        self.settle(shared);
    }

    /// Serves the connections that have come.
    pub(super) fn admit_waiting(&mut self, shared: &mut Shared) {
        for end in std::mem::take(&mut self.waiting) {
            let other = shared.network.host_of_other(end);
            let is_peer = other.is_some_and(|host| host < shared.nodes);
            let limits = Limits {
                value_len_max: self.member.limits.max_value_bytes,
            };
            let connection = Connection::new(self.replica, end, limits, is_peer);
            self.connections.insert(end, connection);
            self.serve(end, None, shared);
        }
    }

    /// Whether the threads of replication and of expiry run.
    const fn has_threads(&self) -> bool {
        !matches!(
            self.stopping,
            Some(Stopping::Closing(..) | Stopping::Over(_))
        )
    }

    /// Carries out what follows from the last event, and checks the node.
    pub(super) fn settle(&mut self, shared: &mut Shared) {
        if self.has_news && self.has_threads() {
            self.drive(shared);
        }
        if self.waits_for_commit {
            self.commit(shared);
        }
        self.go_on_transferring(shared);
        self.go_on_stopping(shared);
        let streams = self
            .connections
            .values()
            .filter(|connection| connection.is_due(shared.timeline.now()));
        let due: Vec<End> = streams.map(|connection| connection.end).collect();
        for end in due {
            self.serve(end, None, shared);
        }
        let log = self.node().engine().log().expect("it has peers");
        // The limit of the kept bytes is exceeded by one segment at most, or by one append.
        let backlog_bytes = self.member.replication.backlog_bytes;
        let kept_max = backlog_bytes + (backlog_bytes / 4).max(APPEND_BYTES_MAX);
        // Records that are not written are kept, too.
        let has_written = (self.storing.as_ref())
            .is_none_or(|storing| storing.has_written_all(self.node().engine()));
        if has_written && log.kept_bytes() > kept_max {
            let text = format!("the backlog has {} bytes", log.kept_bytes());
            shared.fail(self.host, &text);
        }
        // After a reset the index may be the same.
        let (kept, head) = (log.kept_head(), log.head());
        if kept.index != log.last_index() || kept.index == head.index && kept != head {
            let delay = shared.random.below(300);
            self.wake_at(Wake::Drain, shared.timeline.now() + delay, shared);
        }
        self.wake_disk(shared);
        self.observe(shared);
        for connection in self.connections.values() {
            connection.check_acknowledged(shared);
        }
    }
}

fn peer_addr(peer: &crate::config::NodeConfig) -> &[u8] {
    peer.addr.as_bytes()
}

fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}
