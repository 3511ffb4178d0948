//! A process of a node: the shipped values, and what the threads and sockets of the transport do around them.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::Event;
use super::asking::{Asked, Asking};
use super::events::{Micros, Timeline};
use super::following::{Following, Turn};
use super::load::{ClientEvent, Load, Number, Shape, node_at};
use super::network::{End, Link, Network, Signal};
use super::random::Random;
use super::serving::Connection;
use super::session::Answered;
use super::stopping::Stopping;
use super::trace::{Mode, Trace, line_of};
use super::truth::{Model, Place, Truth, Violation};
use crate::config::Config;
use crate::engine::PartitionCopy;
use crate::history::History;
use crate::node::{Member, Node, Reply, RoleState};
use crate::replication::core::report::Contact;
use crate::replication::driver::{Driver, Ended, Outcome, Task};
use crate::replication::stream::FollowError;
use crate::replication::stream::following::FollowerStream;
use crate::replication::stream::link::{Link as StreamLink, StreamEnd};
use crate::replication::transfer::{Next, Transfer, TransferError};
use crate::replication::watch::{self, Watch};
use crate::replication::{Peers, Replica};
use crate::wire::request::{self, Limits, Parsed};
use crate::wire::{Request, Status};

/// Shortest and longest timeout of a question, and the pause between two in a hurry: as in the transport.
const ASK_MIN: Duration = Duration::from_secs(1);
const ASK_MAX: Duration = Duration::from_secs(5);
const HURRIED_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that one append of a run counts for at most.
const APPEND_BYTES_MAX: u64 = 16 * 3_100;

/// A node and its peers. The borrowed parts of a process live in a slot that outlives it.
#[derive(Debug)]
pub(super) struct Shipped {
    node: Node,
    peers: Arc<Peers>,
}

impl Shipped {
    /// Full copies and resumed streams of the process.
    pub(super) fn streams(&self) -> [u64; 2] {
        self.node.streams()
    }
}

/// The place of a process's [`Shipped`].
pub(super) type Slot = OnceCell<Shipped>;

/// Everything in a run beside the processes.
pub(super) struct Shared {
    pub(super) network: Network,
    pub(super) timeline: Timeline<Event>,
    pub(super) random: Random,
    pub(super) trace: Trace,
    pub(super) truth: Truth,
    pub(super) load: Load,
    pub(super) nodes: usize,
    /// The position of the log of each process that runs.
    pub(super) places: BTreeMap<usize, Place>,
    /// Requests whose records are on no node any more, and why.
    pub(super) lost: BTreeMap<Number, &'static str>,
    /// How often something happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The first violation.
    pub(super) violation: Option<Violation>,
}

impl Shared {
    /// A run of so many nodes in which nothing has happened.
    pub(super) fn new(
        nodes: usize,
        link: Link,
        pipe_bytes: usize,
        shape: Shape,
        mode: Mode,
        random: &mut Random,
    ) -> Shared {
        let mut timeline = Timeline::new();
        // Clients are at the last host.
        let network = Network::new(nodes + 1, link, pipe_bytes, random.split());
        let load = Load::new(shape, nodes, nodes, random, &mut timeline);
        Shared {
            network,
            timeline,
            random: random.split(),
            trace: Trace::new(mode),
            truth: Truth::default(),
            load,
            nodes,
            places: BTreeMap::new(),
            lost: BTreeMap::new(),
            counts: BTreeMap::new(),
            violation: None,
        }
    }

    /// Counts something that happened.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A client waits for something no longer.
    pub(super) fn client(&mut self, event: ClientEvent) {
        let Shared {
            network,
            timeline,
            trace,
            load,
            ..
        } = self;
        load.step(event, network, timeline, trace);
    }

    /// A client notices something.
    pub(super) fn client_signal(&mut self, end: End, signal: Signal) {
        let Shared {
            network,
            timeline,
            trace,
            load,
            ..
        } = self;
        load.signal(end, signal, network, timeline, trace);
    }

    /// Adds a line about a host to the trace.
    pub(super) fn note(&mut self, host: usize, line: impl FnOnce() -> String) {
        self.trace.add(self.timeline.now(), || {
            format!("n{}   {}", host + 1, line())
        });
    }

    /// Adds what a node sends to the trace.
    pub(super) fn message(&mut self, host: usize, end: End, bytes: &[u8]) {
        let to = self.network.host_of_other(end).unwrap_or(host);
        self.trace.add(self.timeline.now(), || {
            format!("n{} → n{}  {}", host + 1, to + 1, line_of(bytes))
        });
    }

    /// Logs lines of a stream.
    pub(super) fn log(&mut self, lines: Vec<String>) {
        for line in lines {
            log::info!("{line}");
            self.trace
                .add(self.timeline.now(), || format!("     {line}"));
        }
    }

    /// Logs the end of a stream.
    pub(super) fn log_end(&mut self, link: &StreamLink<'_>, why: Option<&StreamEnd>) {
        let line = link.end_line(why.map(|why| why as &dyn Display));
        match why {
            None => log::info!("{line}"),
            Some(_) => log::warn!("{line}"),
        }
        self.trace
            .add(self.timeline.now(), || format!("     {line}"));
    }

    /// Notes a violation.
    pub(super) fn fail(&mut self, host: usize, what: &str) {
        self.note(host, || format!("VIOLATION: {what}"));
        self.violation
            .get_or_insert_with(|| format!("n{}: {what}", host + 1));
    }

    /// The requests whose records only a process at `place` has.
    fn only_at(&self, number: usize, place: Place) -> Vec<Number> {
        let others = self.places.iter().filter(|(other, _)| **other != number);
        let others: Vec<Place> = others.map(|(_, place)| *place).collect();
        self.truth.only_at(place, &others)
    }
}

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
    /// The replication thread's turn.
    Drain,
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
    member: &'a Member,
    pub(super) stopping: Option<Stopping<'a>>,
    transfer: Option<Transfer<'a>>,
    /// The result of the last transfer.
    pub(super) transferred: Option<Result<(), TransferError>>,
    driver: Driver<'a>,
    following: Option<Following<'a>>,
    askings: Vec<(Asking<'a>, Watch<'a>)>,
    pub(super) connections: BTreeMap<End, Connection<'a>>,
    /// Connections that came while none is served.
    waiting: Vec<End>,
    due: BTreeMap<Wake, Micros>,
    is_hurried: bool,
    /// Something has happened that the driver is to know.
    has_news: bool,
    /// The node's data set as the truth has it.
    model: Model,
    seen: Seen,
    /// An operator has ordered to discard the data set.
    may_discard: bool,
}

/// What was last seen of a node.
#[derive(Default)]
struct Seen {
    generation: u64,
    index: u64,
    last_index: u64,
    role: Option<RoleState>,
    history: History,
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
            let mut node = Node::simulated(config, this, partitions, process, now);
            let peers = Peers::attach_at(&mut node, now);
            Shipped { node, peers }
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
            waiting: Vec::new(),
            due: BTreeMap::new(),
            is_hurried: false,
            has_news: true,
            model: Model::default(),
            seen: Seen::default(),
            may_discard: false,
        };
        shared.network.turn_on(host, &mut shared.timeline);
        shared.note(host, || format!("process {number} starts"));
        process.wake_at(Wake::Heartbeat, 0, shared);
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
        self.hurry(shared);
    }

    fn step_following(&mut self, signal: Option<Signal>, shared: &mut Shared) {
        let Some(following) = &mut self.following else {
            return;
        };
        match following.step(signal, shared) {
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
        shared.network.close(following.end, &mut shared.timeline);
        self.due.remove(&Wake::Follow);
        let ended = Ended {
            outcome,
            has_followed: following.stream.has_followed(),
            is_in_snapshot: following.stream.is_in_snapshot(),
        };
        self.driver
            .ended(ended, shared.random.next(), shared.timeline.instant());
        following.stream.end();
        self.has_news = true;
    }

    /// Goes on with a connection that was accepted.
    pub(super) fn serve(&mut self, end: End, signal: Option<Signal>, shared: &mut Shared) {
        // It may have begun to lead since the last event.
        self.observe(shared);
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
        let model = &mut self.model;
        let mut judge = |shared: &mut Shared, answered: Answered<'_>| {
            let request = shared.load.number_of(end, answered.at);
            let Answered {
                frame,
                status,
                value,
                ..
            } = answered;
            let result = shared
                .truth
                .executed(number, model, request, &frame, status, value);
            if let Err(text) = result {
                shared.fail(host, &text);
            }
        };
        let wait = connection.step(signal, shared, &mut judge);
        if connection.is_closed() {
            self.connections.remove(&end);
            self.due.remove(&Wake::Serve(end));
        } else if let Some(until) = wait {
            self.due.remove(&Wake::Serve(end));
            self.wake_at(Wake::Serve(end), until, shared);
        }
    }

    /// Carries out what follows from the last event, and checks the node.
    pub(super) fn settle(&mut self, shared: &mut Shared) {
        let has_threads = !matches!(
            self.stopping,
            Some(Stopping::Closing(..) | Stopping::Over(_))
        );
        if self.has_news && has_threads {
            self.drive(shared);
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
        // What is kept counts for a segment more at most, or for one append.
        let backlog_bytes = self.member.replication.backlog_bytes;
        let kept_max = backlog_bytes + (backlog_bytes / 4).max(APPEND_BYTES_MAX);
        if log.kept_bytes() > kept_max {
            let text = format!("the backlog has {} bytes", log.kept_bytes());
            shared.fail(self.host, &text);
        }
        // After a reset the index may be the same.
        let (kept, head) = (log.kept_head(), log.head());
        if kept.index != log.last_index() || kept.index == head.index && kept != head {
            let delay = shared.random.below(300);
            self.wake_at(Wake::Drain, shared.timeline.now() + delay, shared);
        }
        self.observe(shared);
    }
}

/// The checks of a node after each event.
impl Process<'_> {
    /// An operator orders the node to discard its data.
    pub(super) fn discard(&mut self, shared: &mut Shared) -> Reply {
        let mut bytes = Vec::new();
        Request::Discard
            .encode(&mut bytes)
            .expect("it has no fields");
        let Ok(Parsed::Whole(frame)) = request::parse(&bytes, &Limits::default()) else {
            unreachable!("it is whole");
        };
        let reply = self.node().execute(&frame);
        shared.note(self.host, || {
            format!("is told to discard its data: {}", reply.status().name())
        });
        if reply.status() == Status::Ok {
            shared.count("discards");
            self.may_discard = true;
        }
        self.has_news = true;
        self.settle(shared);
        reply
    }

    /// Checks that the store has exactly the keys and values of the node's position.
    pub(super) fn check_store(&mut self, shared: &mut Shared) -> Result<(), Violation> {
        let engine = self.node().engine();
        let place = place_of(self.node(), engine.head().index);
        shared.truth.advance(&mut self.model, place)?;
        let (mut copy, mut count) = (PartitionCopy::default(), 0);
        for partition in 0..engine.partitions() {
            engine.copy_partition(partition, &mut copy);
            let long = copy.long().iter().map(|entry| (entry.key(), entry.value()));
            let short = request::frames(copy.short()).map(|frame| (frame.key(), frame.value()));
            for (key, value) in short.chain(long) {
                count += 1;
                let right = self.model.value(key);
                if right != Some(value) {
                    let (key, value) = (key.escape_ascii(), value.escape_ascii());
                    return Err(format!("the store has {value:.60} for {key} at {place:?}"));
                }
            }
        }
        if count == self.model.len() {
            Ok(())
        } else {
            Err(format!(
                "the store has {count} keys at {place:?}, and not {}",
                self.model.len()
            ))
        }
    }

    fn observe(&mut self, shared: &mut Shared) {
        let node = self.node();
        let (generation, head) = (node.dataset_generation(), node.head());
        let last_index = node.last_index();
        let role = node.role();
        if self.seen.role.as_ref() != Some(&role) {
            shared.note(self.host, || format!("is {role}"));
            shared.count(match &role {
                RoleState::Loading { .. } => "loading",
                RoleState::Candidate { .. } => "candidates",
                RoleState::Follower { .. } => "followers",
                RoleState::Leader { .. } => "leaders",
                RoleState::Refusing { leader: None, .. } => "leaders that gave up",
                RoleState::Refusing { .. } => "refusals",
            });
            self.seen.role = Some(role.clone());
        }
        if (generation, head.index, last_index)
            == (self.seen.generation, self.seen.index, self.seen.last_index)
        {
            return;
        }
        self.seen.generation = generation;
        self.seen.index = head.index;
        self.seen.last_index = last_index;
        let history = node.history();
        if let Err(text) = self.check(&role, &history, shared) {
            shared.fail(self.host, &text);
        }
        self.seen.history = history;
    }

    fn check(
        &mut self,
        role: &RoleState,
        history: &History,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        let node = self.node();
        if *history != self.seen.history {
            if let Some(last) = history.last()
                && matches!(role, RoleState::Leader { .. })
                && !shared.truth.knows(last)
            {
                shared.truth.open(self.number, history)?;
            }
            shared.truth.check_history(history)?;
        }
        let place = Truth::place_of(history, self.seen.last_index);
        self.check_kept(place, shared)?;
        let head = node.head();
        let Some(applied) = Truth::place_of(history, head.index) else {
            return Ok(());
        };
        if let RoleState::Leader { .. } = role {
            let last = shared.truth.last_of(applied.epoch);
            if last != head.index {
                return Err(format!(
                    "its log ends at {}, and record {last} was written",
                    head.index
                ));
            }
        }
        shared.truth.check_digest(applied, head.digest)
    }

    /// Checks that no record is dropped that no other node has.
    fn check_kept(&mut self, place: Option<Place>, shared: &mut Shared) -> Result<(), Violation> {
        let before = match place {
            Some(place) => shared.places.insert(self.number, place),
            None => shared.places.remove(&self.number),
        };
        let Some(before) = before else {
            return Ok(());
        };
        if place.is_some_and(|place| shared.truth.holds(place, before)) {
            return Ok(());
        }
        let dropped = match place {
            // What lies before the point where the two part is kept.
            Some(_) => shared
                .truth
                .only_at(before, &shared.places.values().copied().collect::<Vec<_>>()),
            None => shared.only_at(self.number, before),
        };
        if dropped.is_empty() || self.may_discard {
            for number in dropped {
                shared.lost.insert(number, "an operator discarded it");
            }
            self.may_discard = false;
            return Ok(());
        }
        Err(format!(
            "it gives up {before:?} for {place:?}, and nobody else has requests {dropped:?}"
        ))
    }
}

/// The position of a node at an index.
fn place_of(node: &Node, index: u64) -> Option<Place> {
    Truth::place_of(&node.history(), index)
}

fn peer_addr(peer: &crate::config::NodeConfig) -> &[u8] {
    peer.addr.as_bytes()
}

fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}
