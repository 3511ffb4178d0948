//! A cluster in a calm network, and the commands of the scripts.
//!
//! | command                        | does                                                                        |
//! |--------------------------------|-----------------------------------------------------------------------------|
//! | `cluster nodes=3 backlog=1000` | starts nodes, until n1 leads; each log keeps about that many bytes          |
//! | `set 1 a=1 b=2`, `del 1 a`     | a client writes on a node, one record after another                         |
//! | `get 2 a`                      | a client reads on a node                                                    |
//! | `deliver`, `deliver 2`         | all followers, or one, get what their leader has; for a second at most      |
//! | `deliver 2 1`                  | one follower gets messages of its stream up to one more record              |
//! | `copy 2`                       | one follower gets one message of its stream, which is shown                 |
//! | `tick 500`                     | milliseconds pass, and all followers get all that is sent                   |
//! | `hold 3`, `release 3`          | `tick` delivers nothing to that node, or does so again                      |
//! | `partition 3`, `heal 3`        | no link of that node to others works, or all do                             |
//! | `lose 3`                       | the connection of that node's stream is lost, with what is on its way       |
//! | `crash 2`, `restart 2`         | a process is gone with its data and connections; an empty one starts        |
//! | `discard 3`                    | an operator orders a node to give up data that its leader does not know     |
//! | `transfer 1 2`                 | an operator has n1 hand leadership over to n2                               |
//! | `plant 2 a=9`                  | changes data and digest behind the log's back, at the index where it is     |
//! | `status`                       | what each node's STATUS says, and the data that it holds                    |
//!
//! Between commands no byte of a stream reaches a follower ([`gates`](super::gates)), though its leader may have sent
//! it. A node that is to lead gets what it asks for at once. `cluster` also takes `partitions=4`, the number of them in
//! each store, and `pipe=64`, the bytes of a connection that are on their way at most. Log lines about which peers are
//! up are left out, except in `tick`.
//!
//! A value that ends with `+` makes a record of 40 KB.

use super::super::Event;
use super::super::events::{MS, Micros, SECOND};
use super::super::load::{Shape, node_at};
use super::super::network::{Link, Signal};
use super::super::process::{Process, Slot};
use super::super::random::Random;
use super::super::shared::Shared;
use super::super::trace::Mode;
use super::super::world::{Later, config};
use super::gates::Gate;
use super::output;
use crate::config::Config;
use crate::engine::entry::Entry;
use crate::node::{RoleState, StatusSection};
use crate::wire::Request;
use crate::wire::request::frames;

const HEARTBEAT: Micros = 500 * MS;
const LEADER_TIMEOUT: Micros = 5 * SECOND;

/// Longest time that `deliver` takes.
const DELIVERY_MAX: Micros = SECOND;

/// Longest time that a node that starts needs until it leads or follows: it waits for silent peers.
const START_MAX: Micros = 3 * LEADER_TIMEOUT;

/// No client but the script's.
const NO_LOAD: Shape = Shape {
    clients: 0,
    keys: 1,
    pause: MS,
    batch: 1,
    long: 0,
    long_bytes: 0,
    strays: 0,
};

/// A cluster, and the output of the command that runs.
pub(super) struct World<'a> {
    config: Config,
    partitions: usize,
    slots: &'a [Slot],
    /// Processes that were started.
    started: usize,
    pub(super) shared: Shared,
    /// The process of each node.
    pub(super) nodes: Vec<Option<Process<'a>>>,
    pub(super) gates: Vec<Gate>,
    /// Which gates are to be open.
    pub(super) opened: Vec<bool>,
    is_held: Vec<bool>,
    /// Lines are put out with the time.
    shows_time: bool,
    /// Data were changed behind the log's back, which the simulator's checks find as well.
    is_planted: bool,
    out: String,
}

impl<'a> World<'a> {
    /// The cluster that the first command of a script describes.
    pub(super) fn start(words: &[&str], is_traced: bool, slots: &'a [Slot]) -> World<'a> {
        assert_eq!(words[0], "cluster", "the first command");
        let option = |name: &str, default: u64| {
            let mut pairs = words.iter().filter_map(|word| word.split_once('='));
            let value = pairs.find(|(key, _)| *key == name);
            value.map_or(default, |(_, value)| value.parse().unwrap())
        };
        let option_len = |name, default| usize::try_from(option(name, default)).unwrap();
        let (nodes, pipe) = (option_len("nodes", 3), option_len("pipe", 1 << 20));
        let mut link = Link::fast();
        link.jitter = 0;
        let mode = if is_traced { Mode::Printed } else { Mode::Off };
        output::keep_log_lines();
        World {
            config: config(
                nodes,
                [HEARTBEAT, LEADER_TIMEOUT],
                option("backlog", 1 << 20),
            ),
            partitions: option_len("partitions", 1),
            slots,
            started: 0,
            shared: Shared::new(nodes, link, pipe, NO_LOAD, mode, &mut Random::calm()),
            nodes: (0..nodes).map(|_| None).collect(),
            gates: (0..nodes).map(|_| Gate::default()).collect(),
            opened: vec![false; nodes],
            is_held: vec![false; nodes],
            shows_time: false,
            is_planted: false,
            out: String::new(),
        }
    }

    /// Runs a command, and returns its output.
    pub(super) fn run(&mut self, words: &[&str]) -> String {
        let number = |at: usize| -> usize { words[at].parse().unwrap() };
        let count = self.nodes.len();
        let node = |at: usize| {
            let number = number(at);
            assert!((1..=count).contains(&number), "{words:?}: which node?");
            number - 1
        };
        match (words[0], words.len()) {
            ("cluster", _) => {
                (0..self.nodes.len()).for_each(|at| self.start_process(at));
                self.run_until(START_MAX, |world| world.leads(0));
            }
            ("set", 3..) => {
                let at = node(1);
                for pair in &words[2..] {
                    let (key, value) = pair.split_once('=').expect("key=value");
                    self.set(at, key, value);
                }
            }
            ("del", 3..) => {
                let at = node(1);
                for key in &words[2..] {
                    let key = key.as_bytes();
                    self.request(at, &Request::Del { key });
                }
            }
            ("get", 3) => {
                let key = words[2].as_bytes();
                self.request(node(1), &Request::Get { key });
            }
            ("deliver", 1) => self.deliver(&(0..self.nodes.len()).collect::<Vec<_>>()),
            ("deliver", 2) => self.deliver(&[node(1)]),
            ("deliver", 3) => {
                self.pass_records(node(1), words[2].parse().unwrap());
                // Its acknowledgements.
                self.run_for(2 * MS);
            }
            ("copy", 2) => {
                let message = self.pass_message(node(1));
                let line = message.map(|bytes| output::message(&bytes));
                self.say(&line.unwrap_or_else(|| "no message".to_owned()));
                self.run_for(2 * MS);
            }
            ("tick", 2) => self.tick(words[1].parse().unwrap()),
            ("hold", 2) => self.is_held[node(1)] = true,
            ("release", 2) => self.is_held[node(1)] = false,
            ("partition", 2) => self.cut(node(1), true),
            ("heal", 2) => self.cut(node(1), false),
            ("lose", 2) => {
                self.lose_stream(node(1));
                self.run_for(2 * MS);
            }
            ("crash", 2) => self.crash(node(1)),
            ("restart", 2) => {
                let at = node(1);
                self.start_process(at);
                self.run_until(START_MAX, |world| !world.is_candidate(at));
                self.run_for(2 * MS);
            }
            ("discard", 2) => {
                let at = node(1);
                let process = self.nodes[at].as_mut().expect("it runs");
                let reply = process.discard(&mut self.shared);
                self.take_output(at);
                self.say(reply.status().name());
            }
            ("transfer", 3) => {
                let (at, target) = (node(1), format!("n{}", number(2)));
                let process = self.nodes[at].as_mut().expect("it runs");
                process.begin_transfer(&target, &mut self.shared);
                self.take_output(at);
                self.run_for(5 * MS);
            }
            ("plant", 3) => self.plant(node(1), words[2]),
            ("status", 1) => self.status(),
            (name, _) => panic!("no command {name:?} of so many words"),
        }
        std::mem::take(&mut self.out)
    }

    /// Puts out a line.
    pub(super) fn say(&mut self, line: &str) {
        if self.shows_time {
            self.out += &format!("{} ms: ", self.shared.timeline.now() / MS);
        }
        self.out += line;
        self.out.push('\n');
    }

    fn leads(&self, at: usize) -> bool {
        let process = self.nodes[at].as_ref();
        process.is_some_and(|process| matches!(process.node().role(), RoleState::Leader { .. }))
    }

    pub(super) fn is_candidate(&self, at: usize) -> bool {
        let process = self.nodes[at].as_ref();
        process.is_some_and(|process| matches!(process.node().role(), RoleState::Candidate { .. }))
    }

    fn start_process(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "it runs");
        let slot = &self.slots[self.started];
        let process = Process::start(
            self.started,
            at,
            slot,
            &self.config,
            self.partitions,
            &mut self.shared,
        );
        self.started += 1;
        self.nodes[at] = Some(process);
        self.take_output(at);
        self.keep_gates();
    }

    /// The process ends at once. What has not passed a gate is lost.
    fn crash(&mut self, at: usize) {
        let process = self.nodes[at].take().expect("it runs");
        process.crash(false, &mut self.shared);
        self.lose_streams_of(at);
        self.keep_gates();
        self.run_for(2 * MS);
    }

    fn cut(&mut self, at: usize, is_cut: bool) {
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            for (from, to) in [(at, other), (other, at)] {
                let Shared {
                    network, timeline, ..
                } = &mut self.shared;
                network.cut(from, to, is_cut, timeline);
            }
        }
    }

    /// Delivers to some nodes until they have all of what their leader has.
    fn deliver(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|at| self.open(*at, true));
        let nodes = nodes.to_vec();
        let are_level = |world: &World<'_>| nodes.iter().all(|at| world.is_level(*at));
        self.run_until(DELIVERY_MAX, are_level);
        nodes.iter().for_each(|at| self.open(*at, false));
    }

    /// Whether there is nothing to deliver to a node.
    fn is_level(&self, at: usize) -> bool {
        let Some(process) = &self.nodes[at] else {
            return true;
        };
        let role = process.node().role();
        let leader = match &role {
            RoleState::Leader { .. } => return true,
            RoleState::Follower { leader } => node_at(leader.addr.as_bytes()).unwrap(),
            RoleState::Candidate { .. }
            | RoleState::Loading { .. }
            | RoleState::Refusing { .. } => {
                return false;
            }
        };
        let Some(leader) = &self.nodes[leader] else {
            return false;
        };
        let index = leader.node().head().index;
        let name = format!("n{}", at + 1);
        process.replica.peers.summary().has_stream
            && self.is_empty(at)
            && process.node().head().index == index
            && leader.replica.peers.acknowledged_by(&name) == Some(index)
    }

    fn tick(&mut self, ms: u64) {
        self.shows_time = true;
        for at in 0..self.nodes.len() {
            self.open(at, !self.is_held[at]);
        }
        self.run_for(ms * MS);
        for at in 0..self.nodes.len() {
            self.open(at, false);
        }
        self.shows_time = false;
    }

    fn plant(&mut self, at: usize, pair: &str) {
        let (key, value) = pair.split_once('=').expect("key=value");
        let (key, value) = (key.as_bytes(), value.as_bytes());
        let mut bytes = Vec::new();
        Request::Set { key, value }.encode(&mut bytes).unwrap();
        let frame = frames(&bytes).next().unwrap();
        let process = self.nodes[at].as_ref().expect("it runs");
        let now = self.shared.timeline.instant();
        process.node().engine().plant(Entry::copy_of(&frame), now);
        self.is_planted = true;
    }

    fn status(&mut self) {
        let now = self.shared.timeline.instant();
        for process in self.nodes.iter().flatten() {
            self.out += &output::status(process, now);
        }
    }
}

/// Time.
impl World<'_> {
    /// Lets a time pass.
    pub(super) fn run_for(&mut self, time: Micros) {
        self.run_until(time, |_| false);
    }

    /// Lets a time pass, or less of it until something is so.
    fn run_until(&mut self, time: Micros, is_done: impl Fn(&World<'_>) -> bool) {
        let until = self.shared.timeline.now() + time;
        let end = Event::Later(Later::Look);
        self.shared.timeline.at(until, end);
        while !is_done(self) {
            let event = self.shared.timeline.next().expect("the end");
            if event == end && self.shared.timeline.now() == until {
                return;
            }
            self.step(event);
            self.keep_gates();
        }
    }

    fn step(&mut self, event: Event) {
        let (nodes, shared) = (&mut self.nodes, &mut self.shared);
        let host = match event {
            Event::Network(event) => {
                if let Some((host, end, signal)) = shared.network.step(event, &mut shared.timeline)
                {
                    self.step(Event::Signal(host, end, signal));
                }
                return;
            }
            // The client looks by itself.
            Event::Signal(host, ..) if host >= nodes.len() => return,
            Event::Signal(host, end, signal) => {
                if let Some(process) = &mut nodes[host] {
                    process.signal(end, signal, shared);
                } else if signal != Signal::Reset {
                    shared.network.reset(end, &mut shared.timeline);
                }
                host
            }
            Event::Process(number, wake) => {
                let mut running = nodes.iter_mut().flatten();
                let Some(process) = running.find(|process| process.number == number) else {
                    return;
                };
                process.wake(wake, shared);
                process.host
            }
            // The end of an earlier wait.
            Event::Later(_) => return,
            Event::Client(_) => unreachable!("no load"),
        };
        self.take_output(host);
    }

    /// Puts out what a node has logged, and the result of its transfer.
    fn take_output(&mut self, at: usize) {
        for line in output::take_log_lines() {
            // Which peers are up is told where a script lets time pass.
            if self.shows_time || !output::is_about_peer(&line) {
                self.say(&format!("n{}: {line}", at + 1));
            }
        }
        let process = self.nodes[at].as_mut();
        match process.and_then(|process| process.transferred.take()) {
            None => {}
            Some(Ok(())) => self.say(&format!("n{}: Ok(())", at + 1)),
            Some(Err(error)) => self.say(&format!("n{}: Err({error})", at + 1)),
        }
        let violation = self.shared.violation.take();
        if let (Some(text), false) = (violation, self.is_planted) {
            self.say(&format!("VIOLATION {text}"));
        }
    }
}
