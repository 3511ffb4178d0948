//! A process of a node: the shipped values, and what the threads and sockets of the transport do around them.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Event;
use super::asking::{Asked, Asking};
use super::checks::place_of;
use super::clocks::ClockCheck;
use super::disk::{self, Directory, Storing};
use super::events::{MS, Micros};
use super::following::{Following, Turn};
use super::load::node_at;
use super::network::{End, Signal};
use super::serving::Connection;
use super::session::Answered;
use super::shared::Shared;
use super::stopping::Stopping;
use super::truth::{Executing, Limit, Model, Place, Written};
use crate::config::Config;
use crate::engine::Engine;
use crate::history::History;
use crate::log::Mark;
use crate::node::{Member, Node, RoleState};
use crate::replication::core::report::Contact;
use crate::replication::driver::{Driver, Ended, Outcome, Task};
use crate::replication::stream::FollowError;
use crate::replication::stream::following::FollowerStream;
use crate::replication::transfer::{Next, Transfer, TransferError};
use crate::replication::watch::{self, Watch};
use crate::replication::{Peers, Replica};
use crate::wire::request::Limits;
use crate::wire::{Opcode, Status};

/// Shortest and longest timeout of a question, and the pause between two in a hurry: as in the transport.
const ASK_MIN: Duration = Duration::from_secs(1);
const ASK_MAX: Duration = Duration::from_secs(5);
const HURRIED_PAUSE: Duration = Duration::from_millis(20);

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
        let shipped = slot.get_or_init(|| {
            let (this, process) = (&config.nodes[host], shared.random.next());
            let clock = shared.timeline.clock(host);
            let mut node = Node::simulated(config, this, partitions, process, (now, clock));
            if shared.waits_for_commit {
                node.acknowledge_at(Mark::Committed);
            }
            let directory = disk::open(&mut node, host, now, shared);
            let peers = Peers::attach_at(&mut node, now);
            Shipped {
                node,
                peers,
                directory,
            }
        });
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

    /// Asks a peer, or goes on with the question.
    fn ask(&mut self, at: usize, signal: Option<Signal>, shared: &mut Shared) {
        let replication = &self.member.replication;
        let interval = replication.heartbeat_interval;
        let (pause, timeout) = if self.is_hurried {
            (
                HURRIED_PAUSE.min(interval),
                replication.leader_timeout.min(ASK_MAX),
            )
        } else {
            (interval, interval)
        };
        let now = shared.timeline.now();
        let (asking, _) = &mut self.askings[at];
        if let (Some(due), None) = (asking.due(pause), signal) {
            if due > now {
                return self.wake_at(Wake::Ask(at), due, shared);
            }
            let deadline = now + micros(timeout.max(ASK_MIN));
            asking.begin(deadline, &mut shared.network, &mut shared.timeline);
            return self.wake_at(Wake::Ask(at), deadline, shared);
        }
        match asking.step(
            signal,
            self.member,
            &mut shared.network,
            &mut shared.timeline,
        ) {
            None => {}
            Some(Asked::Wait(until)) => self.wake_at(Wake::Ask(at), until, shared),
            Some(Asked::Ended(contact, began)) => {
                self.due.remove(&Wake::Ask(at));
                self.wake_at(Wake::Ask(at), now + micros(pause), shared);
                self.contact(at, contact, began, shared);
            }
        }
    }

    /// A question has ended.
    fn contact(
        &mut self,
        at: usize,
        contact: Contact,
        began: std::time::Instant,
        shared: &mut Shared,
    ) {
        let (asking, watch) = &mut self.askings[at];
        let (host, name) = (self.host, &asking.peer.name);
        shared.count("questions");
        shared.note(host, || match &contact {
            Contact::Report(report) => format!(
                "hears of {name}: {:?}, {:?}, stopping {:?}, epoch {}, index {}",
                report.role, report.state, report.stopping, report.epoch, report.index
            ),
            other => format!("hears of {name}: {other:?}"),
        });
        self.has_news = true;
        if watch.contact(contact, began, shared.timeline.instant())
            && let Some(following) = &self.following
        {
            let error = following.stream.closed();
            self.end_following(Outcome::Failed(error), shared);
        }
    }

    /// Has the node's peers asked often, or not.
    fn hurry(&mut self, shared: &mut Shared) {
        let now = shared.timeline.instant();
        let is_hurried = self.following.is_none() && self.driver.is_hurried(now)
            || self.replica.peers.is_stopping();
        if is_hurried && !self.is_hurried {
            for at in 0..self.askings.len() {
                if let Some(due) = self.askings[at].0.due(HURRIED_PAUSE) {
                    self.wake_at(Wake::Ask(at), due, shared);
                }
            }
        }
        self.is_hurried = is_hurried;
    }

    /// Does what the driver of the role says.
    fn drive(&mut self, shared: &mut Shared) {
        self.has_news = false;
        if let Some(storing) = &self.storing {
            storing.set_now(shared.timeline.instant());
        }
        for _ in 0..10 {
            if self.following.is_some() {
                break;
            }
            let now = shared.timeline.instant();
            match self.driver.next(shared.random.next(), now) {
                Task::Wait(until) if until > now => {
                    let until = shared.timeline.micros_of(until);
                    self.wake_at(Wake::Driver, until, shared);
                    break;
                }
                Task::Wait(_) => {}
                Task::Stream { peer, goal } => {
                    let stream = FollowerStream::new(self.replica, self.member, &peer.name, goal);
                    let to = node_at(peer_addr(peer)).expect("its address");
                    shared.note(self.host, || {
                        format!("asks {} for the stream: {goal:?}", peer.name)
                    });
                    let following = Following::begin(stream, peer, self.host, to, shared);
                    self.following = Some(following);
                    self.step_following(None, shared);
                }
            }
        }
        self.take_restored(shared);
        self.hurry(shared);
    }

    fn step_following(&mut self, signal: Option<Signal>, shared: &mut Shared) {
        let Some(following) = &mut self.following else {
            return;
        };
        let turn = following.step(signal, shared);
        if following.stream.is_in_snapshot() {
            self.copies_from = following.leader;
        }
        let leader_time = following.leader_time;
        let time_ms = leader_time.unwrap_or_default();
        self.clock_check.pulled(time_ms, &shared.timeline);
        self.clock_now(shared);
        if let (Turn::Ended(Outcome::Reached), None) = (&turn, leader_time) {
            let text = "it may lead with the data of a node whose time it does not know";
            shared.fail(self.host, text);
        }
        match turn {
            Turn::Wait(until) => self.wake_at(Wake::Follow, until, shared),
            Turn::Ended(outcome) => self.end_following(outcome, shared),
        }
    }

    /// The stream from the leader has ended.
    fn end_following(&mut self, outcome: Outcome, shared: &mut Shared) {
        let Some(following) = self.following.take() else {
            return;
        };
        let host = self.host;
        shared.note(host, || format!("follows no longer: {outcome:?}"));
        match &outcome {
            Outcome::Failed(FollowError::Diverged(text)) => {
                shared.fail(host, &format!("diverged: {text}"));
            }
            Outcome::Failed(FollowError::Protocol(text))
                if !text.ends_with(" ended the stream") =>
            {
                shared.fail(host, &format!("a stream broke the protocol: {text}"));
            }
            Outcome::Failed(_) | Outcome::Reached | Outcome::Lead(_) => {}
        }
        if following.stream.is_in_snapshot() {
            shared.count("copies cut off");
        }
        shared.logged.remove(&following.end);
        shared.network.close(following.end, &mut shared.timeline);
        self.due.remove(&Wake::Follow);
        let ended = Ended {
            outcome,
            has_followed: following.stream.has_followed(),
            is_in_snapshot: following.stream.is_in_snapshot(),
        };
        if let Some(storing) = &self.storing {
            storing.set_now(shared.timeline.instant());
        }
        self.driver
            .ended(ended, shared.random.next(), shared.timeline.instant());
        following.stream.end();
        self.take_restored(shared);
        self.has_news = true;
    }

    /// Goes on with a connection that was accepted.
    pub(super) fn serve(&mut self, end: End, signal: Option<Signal>, shared: &mut Shared) {
        // It may have begun to lead since the last event.
        self.observe(shared);
        let now = self.clock_now(shared);
        let Some(connection) = self.connections.get_mut(&end) else {
            return;
        };
        let (node, number, host) = (self.replica.node, self.number, self.host);
        if !connection.is_peer && !connection.is_stream() {
            let place = place_of(node, node.head().index);
            if let Err(text) = shared.truth.advance(&mut self.model, place) {
                shared.fail(host, &text);
            }
        }
        let limit = limit_of(node.engine());
        let evicted = node.engine().evicted_and_refused()[0];
        let mut by = Executing {
            process: number,
            model: &mut self.model,
            written: &mut self.written,
            now,
            limit,
        };
        let mut answers = self.answers.remove(&end).unwrap_or_default();
        let keeps_answers = self.storing.is_some() && node.leads();
        let mut judge = |shared: &mut Shared, answered: Answered<'_>| {
            let at = answered.at;
            let request = shared.load.number_of(end, answered.at);
            let Answered {
                frame,
                status,
                value,
                ..
            } = answered;
            by.written.gather();
            let item = by.model.item(frame.key());
            if item.is_some_and(|item| item.has_expired(by.now)) {
                shared.count(if node.takes_writes() {
                    MET_EXPIRED[0]
                } else {
                    MET_EXPIRED[1]
                });
            }
            shared.count(status.name());
            if status == Status::Full && keeps_answers {
                // Its disk has no space: nothing was executed.
                return;
            }
            let result = shared
                .truth
                .executed(&mut by, request, &frame, (status, value));
            if let Err(text) = result {
                shared.fail(host, &text);
            }
            let written = request.and_then(|number| shared.truth.place_of_request(number));
            let is_read = matches!(frame.opcode(), Opcode::Get | Opcode::Ttl);
            let about = match by.model.place() {
                Some(place) if is_read => shared.truth.last_change(place, frame.key()),
                Some(_) | None => written,
            };
            if let (true, Some(place)) = (keeps_answers, about) {
                answers.insert(at, place);
            }
        };
        let wait = connection.step(signal, shared, &mut judge);
        by.written.gather();
        if let Err(text) = shared.truth.settled(&mut by) {
            shared.fail(host, &text);
        }
        for _ in evicted..node.engine().evicted_and_refused()[0] {
            shared.count(EVICTED);
        }
        let released = connection.take_released();
        self.note_answered(&released, &mut answers, shared);
        let Some(connection) = self.connections.get_mut(&end) else {
            return;
        };
        if !answers.is_empty() {
            self.answers.insert(end, answers);
        }
        if connection.is_closed() {
            self.connections.remove(&end);
            self.answers.remove(&end);
            self.due.remove(&Wake::Serve(end));
            self.due.remove(&Wake::Acks(end));
        } else {
            let silent_at = connection.silent_at();
            if let Some(until) = wait {
                self.due.remove(&Wake::Serve(end));
                self.wake_at(Wake::Serve(end), until, shared);
            }
            if let Some(at) = silent_at {
                self.wake_at(Wake::Acks(end), at, shared);
            }
        }
        if self.waits_for_commit {
            self.check_released(end, &released, shared);
        }
    }

    /// The turn of the expiry thread: it removes expired entries from each partition, as many as it may at a time.
    fn expire(&mut self, shared: &mut Shared) {
        if !self.has_threads() {
            return;
        }
        // It may have begun to lead since the last event.
        self.observe(shared);
        let (host, engine, now) = (self.host, self.node().engine(), self.clock_now(shared));
        let place = place_of(self.node(), engine.head().index);
        if let Err(text) = shared.truth.advance(&mut self.model, place) {
            shared.fail(host, &text);
        }
        for partition in 0..engine.partitions() {
            // Where there is no room, it waits for it, and goes on when its turn comes.
            let removed = engine.expire(partition, None, || ());
            let Ok(expired) = removed else {
                break;
            };
            for _ in 0..expired.removed {
                shared.count(EXPIRED);
            }
        }
        self.written.gather();
        let mut by = Executing {
            process: self.number,
            model: &mut self.model,
            written: &mut self.written,
            now,
            // Only what has expired is removed.
            limit: Limit::None,
        };
        if let Err(text) = shared.truth.settled(&mut by) {
            shared.fail(host, &text);
        }
        let pause = shared.random.below(2 * EXPIRY_PAUSE);
        self.wake_at(Wake::Expire, shared.timeline.now() + pause, shared);
    }

    /// Whether the threads of replication and of expiry run.
    const fn has_threads(&self) -> bool {
        !matches!(
            self.stopping,
            Some(Stopping::Closing(..) | Stopping::Over(_))
        )
    }

    /// The time by the node's clock, in milliseconds since 1970, which is checked.
    fn clock_now(&mut self, shared: &mut Shared) -> u64 {
        let clock = self.node().engine().clock();
        let now = self.clock_check.read(clock, &shared.timeline);
        now.unwrap_or_else(|text| {
            shared.fail(self.host, &text);
            0
        })
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

fn limit_of(engine: &Engine) -> Limit {
    match engine.memory_limit() {
        None => Limit::None,
        Some(limit) if limit.evicts => Limit::Evicts,
        Some(_) => Limit::Refuses,
    }
}

fn peer_addr(peer: &crate::config::NodeConfig) -> &[u8] {
    peer.addr.as_bytes()
}

fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}
