//! Clients: they send random requests to few keys, follow redirects, try again elsewhere, and note every outcome.

use std::collections::{BTreeMap, VecDeque};

use super::Event;
use super::events::{MS, Micros, SECOND, Timeline};
use super::network::{End, Network, Signal};
use super::operations::{Kind, Known};
use super::random::Random;
use super::trace::{Trace, line_of};
use crate::wire::Status;
use crate::wire::response::{self, Parsed};

/// Shortest and longest time that clients wait for the answers to a batch.
const ANSWER_TIMEOUT: (Micros, Micros) = (500 * MS, 4 * SECOND);

/// Times that a request is sent again after answers that say that nothing was done.
const TRIES_MAX: u32 = 40;

/// The number of a request among all of a run. Sent again after a refusal, it keeps its number.
pub(super) type Number = usize;

/// One request of a client.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) number: Number,
    pub(super) kind: Kind,
    tries: u32,
}

/// A client's knowledge of a request in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is under way, or is to be sent again.
    Open,
    /// Answered by OK, NOT_FOUND, CONFLICT, ERROR or FULL.
    Done,
    /// No answer came, or TIMEOUT.
    Unknown,
    /// Given up after refusals.
    Refused,
}

/// Something that a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientEvent {
    /// The time to send something.
    Turn(usize),
    /// The end of the wait for a batch with this number.
    Deadline(usize, u64),
}

/// The shape of the load of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) clients: usize,
    /// Keys with values. Counters are half as many.
    pub(super) keys: u64,
    /// Longest pause between two batches.
    pub(super) pause: Micros,
    /// Most requests of a batch.
    pub(super) batch: u64,
    /// Times of a thousand that a value is long.
    pub(super) long: u64,
    /// Most bytes of a long value.
    pub(super) long_bytes: u64,
    /// Times of a thousand that a batch goes to any node, and not to the last one that led.
    pub(super) strays: u64,
}

/// All clients of a run. They are at one host.
#[derive(Debug)]
pub(super) struct Load {
    shape: Shape,
    host: usize,
    nodes: usize,
    clients: Vec<Client>,
    /// The client of each open connection.
    at: BTreeMap<End, usize>,
    outcomes: Vec<Outcome>,
    /// Requests that were sent on each connection, in their order.
    sent: BTreeMap<End, Vec<Number>>,
    has_ended: bool,
}

#[derive(Debug)]
struct Client {
    random: Random,
    /// The node that it asks.
    target: usize,
    end: Option<End>,
    is_connected: bool,
    /// To be sent.
    queue: VecDeque<Operation>,
    /// Sent and not answered.
    open: VecDeque<Operation>,
    /// Bytes that the network has not taken.
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// Values that keys had.
    known: Known,
    /// Number of the batch.
    batch: u64,
    /// A turn is to come.
    has_turn: bool,
}

impl Load {
    /// Clients that begin soon.
    pub(super) fn new(
        shape: Shape,
        host: usize,
        nodes: usize,
        random: &mut Random,
        timeline: &mut Timeline<Event>,
    ) -> Load {
        let clients = (0..shape.clients).map(|at| {
            let mut random = random.split();
            timeline.after(random.below(20 * MS), ClientEvent::Turn(at).into());
            Client {
                has_turn: true,
                target: random.place(nodes),
                random,
                end: None,
                is_connected: false,
                queue: VecDeque::new(),
                open: VecDeque::new(),
                unsent: Vec::new(),
                received: Vec::new(),
                known: Known::default(),
                batch: 0,
            }
        });
        Load {
            shape,
            host,
            nodes,
            clients: clients.collect(),
            at: BTreeMap::new(),
            outcomes: Vec::new(),
            sent: BTreeMap::new(),
            has_ended: false,
        }
    }

    /// No client begins a batch any more.
    pub(super) const fn end(&mut self) {
        self.has_ended = true;
    }

    /// The outcomes, by the numbers of the requests.
    pub(super) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The number of the request that was sent as the `at`th one on the connection whose other end is `end`.
    pub(super) fn number_of(&self, end: End, at: usize) -> Option<Number> {
        self.sent.get(&end.other())?.get(at).copied()
    }

    /// Carries out an event.
    pub(super) fn step(
        &mut self,
        event: ClientEvent,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
        trace: &mut Trace,
    ) {
        match event {
            ClientEvent::Turn(at) => self.turn(at, network, timeline, trace),
            ClientEvent::Deadline(at, batch) => {
                if self.clients[at].batch == batch && !self.clients[at].open.is_empty() {
                    trace.add(timeline.now(), || format!("c{at}   waits no longer"));
                    self.lose(at, network, timeline);
                }
            }
        }
    }

    /// A client notices something at its end of a connection.
    pub(super) fn signal(
        &mut self,
        end: End,
        signal: Signal,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
        trace: &mut Trace,
    ) {
        let Some(&at) = self.at.get(&end) else {
            network.close(end, timeline);
            return;
        };
        match signal {
            Signal::Connected => {
                self.clients[at].is_connected = true;
                self.send(at, network, timeline, trace);
            }
            Signal::Writable => self.flush(at, network, timeline),
            Signal::Readable => self.receive(at, network, timeline, trace),
            Signal::Refused | Signal::Reset => {
                trace.add(timeline.now(), || format!("c{at}   {signal:?}"));
                self.lose(at, network, timeline);
            }
            Signal::Accepted => unreachable!("clients do not listen"),
        }
    }

    /// Begins a batch, or sends again what was refused.
    fn turn(
        &mut self,
        at: usize,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
        trace: &mut Trace,
    ) {
        let (has_ended, nodes, host) = (self.has_ended, self.nodes, self.host);
        self.clients[at].has_turn = false;
        if !self.clients[at].open.is_empty() {
            return;
        }
        if self.clients[at].queue.is_empty() {
            if has_ended {
                return;
            }
            let (shape, now) = (self.shape, timeline.latest_ms());
            let client = &mut self.clients[at];
            for _ in 0..client.random.between(1, shape.batch) {
                let number = self.outcomes.len();
                self.outcomes.push(Outcome::Open);
                let kind = client.known.choose(&mut client.random, number, shape, now);
                let tries = 0;
                client.queue.push_back(Operation {
                    number,
                    kind,
                    tries,
                });
            }
            if client.random.happens(shape.strays) {
                let target = client.random.place(nodes);
                if target != client.target {
                    client.target = target;
                    self.disconnect(at, network, timeline);
                }
            }
        }
        let client = &mut self.clients[at];
        client.batch += 1;
        let deadline = ClientEvent::Deadline(at, client.batch);
        let timeout = client.random.between(ANSWER_TIMEOUT.0, ANSWER_TIMEOUT.1);
        timeline.after(timeout, deadline.into());
        // Not sent, but as good as: the deadline is for the connection, too.
        client.open.extend(client.queue.drain(..));
        if client.end.is_none() {
            let end = network.connect(host, client.target, timeline);
            client.end = Some(end);
            self.at.insert(end, at);
        }
        self.send(at, network, timeline, trace);
    }

    /// Sends the batch, where the connection is there.
    fn send(
        &mut self,
        at: usize,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
        trace: &mut Trace,
    ) {
        let client = &mut self.clients[at];
        let Some(end) = client.end.filter(|_| client.is_connected) else {
            return;
        };
        for operation in &client.open {
            let (number, target) = (operation.number, client.target);
            let start = client.unsent.len();
            operation.kind.encode(&mut client.unsent);
            trace.add(timeline.now(), || {
                let line = line_of(&client.unsent[start..]);
                format!("c{at} → n{}  #{number} {line:.160}", target + 1)
            });
            self.sent.entry(end).or_default().push(number);
        }
        self.flush(at, network, timeline);
    }

    fn flush(&mut self, at: usize, network: &mut Network, timeline: &mut Timeline<Event>) {
        let client = &mut self.clients[at];
        if let Some(end) = client.end {
            let count = network.write(end, &client.unsent, timeline);
            client.unsent.drain(..count);
        }
    }

    fn receive(
        &mut self,
        at: usize,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
        trace: &mut Trace,
    ) {
        let client = &mut self.clients[at];
        let Some(end) = client.end else {
            return;
        };
        let count = network.readable(end);
        network.read(end, count, &mut client.received, timeline);
        let received = std::mem::take(&mut client.received);
        let mut rest = &received[..];
        let mut goes_elsewhere = None;
        while let Ok(Parsed::Whole(answer)) = response::parse(rest) {
            rest = &rest[answer.frame_len()..];
            let client = &mut self.clients[at];
            let operation = client
                .open
                .pop_front()
                .expect("an answer without a request");
            let (number, value) = (operation.number, answer.value);
            let status = Status::try_from(answer.status).expect("a status");
            trace.add(timeline.now(), || {
                let value = value.escape_ascii();
                format!("c{at}   #{number} {} {value:.60}", status.name())
            });
            if let Some(target) = self.judge(at, operation, status, value) {
                goes_elsewhere = Some(target);
            }
        }
        let rest = rest.to_vec();
        let client = &mut self.clients[at];
        client.received = rest;
        if network.is_at_end(end) {
            self.lose(at, network, timeline);
        } else if client.open.is_empty() {
            let is_retry = !client.queue.is_empty();
            let pause = if is_retry { 30 * MS } else { self.shape.pause };
            client.wait(at, pause, timeline);
            if let Some(target) = goes_elsewhere {
                client.target = target;
                self.disconnect(at, network, timeline);
            }
        }
    }

    /// Notes the outcome of a request, or has it sent again. Returns the node that is asked then.
    fn judge(
        &mut self,
        at: usize,
        mut operation: Operation,
        status: Status,
        value: &[u8],
    ) -> Option<usize> {
        let (client, nodes) = (&mut self.clients[at], self.nodes);
        let kind = operation.kind.clone();
        let mut again = |client: &mut Client, target: usize| {
            operation.tries += 1;
            if operation.tries < TRIES_MAX {
                client.queue.push_back(operation.clone());
                Some(target)
            } else {
                self.outcomes[operation.number] = Outcome::Refused;
                None
            }
        };
        match status {
            // ERROR and FULL are right answers to some.
            Status::Ok | Status::NotFound | Status::Conflict | Status::Error | Status::Full => {
                client.known.learn(&kind, status, value);
                self.outcomes[operation.number] = Outcome::Done;
            }
            Status::Timeout => self.outcomes[operation.number] = Outcome::Unknown,
            Status::NotLeader => {
                let target = node_at(value).unwrap_or_else(|| client.random.place(nodes));
                return again(client, target);
            }
            Status::Loading | Status::Lost | Status::Compacted => {
                let target = client.random.place(nodes);
                return again(client, target);
            }
        }
        None
    }

    /// The connection is lost, with the answers to all that was sent.
    fn lose(&mut self, at: usize, network: &mut Network, timeline: &mut Timeline<Event>) {
        let was_connected = self.clients[at].is_connected;
        self.disconnect(at, network, timeline);
        let nodes = self.nodes;
        let client = &mut self.clients[at];
        client.target = client.random.place(nodes);
        for mut operation in std::mem::take(&mut client.open) {
            operation.tries += 1;
            if was_connected {
                self.outcomes[operation.number] = Outcome::Unknown;
            } else if operation.tries < TRIES_MAX {
                client.queue.push_back(operation);
            } else {
                self.outcomes[operation.number] = Outcome::Refused;
            }
        }
        client.wait(at, 30 * MS, timeline);
    }

    fn disconnect(&mut self, at: usize, network: &mut Network, timeline: &mut Timeline<Event>) {
        let client = &mut self.clients[at];
        client.is_connected = false;
        client.unsent.clear();
        client.received.clear();
        // A turn that begins anew, and not the deadline of the last one.
        client.batch += 1;
        if let Some(end) = client.end.take() {
            self.at.remove(&end);
            network.close(end, timeline);
        }
    }
}

impl Client {
    /// Has its turn come within a time.
    fn wait(&mut self, at: usize, longest: Micros, timeline: &mut Timeline<Event>) {
        if !std::mem::replace(&mut self.has_turn, true) {
            timeline.after(self.random.below(longest + 1), ClientEvent::Turn(at).into());
        }
    }
}

/// The address of a node, by its place.
pub(super) fn addr_of(node: usize) -> String {
    format!("n{}:1", node + 1)
}

/// The place of the node with an address.
pub(super) fn node_at(addr: &[u8]) -> Option<usize> {
    let number = std::str::from_utf8(addr).ok()?.strip_prefix('n')?;
    number
        .strip_suffix(":1")?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
}
