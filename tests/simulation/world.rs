//! A run: a cluster, its clients and its faults, from the begin to the agreement of all nodes at the end.

mod agreement;
mod causing;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Event;
use super::events::{MS, Micros, SECOND};
use super::faults::Plan;
use super::load::addr_of;
use super::machines::Disks;
use super::network::Signal;
use super::process::{Process, Slot, Wake};
use super::random::Random;
use super::shared::Shared;
use super::storing::Storing;
use super::trace::Mode;
use crate::config::{Config, WhenFull};
use crate::replication::Ending;

/// Processes of a run at most.
const PROCESSES_MAX: usize = 80;

/// Events of a run at most; most runs have a hundredth of that.
const STEPS_MAX: u64 = 500_000;

/// Longest time until a thread has its turn in a process that was paused.
const PAUSED_TURN: Micros = 30 * MS;

/// Why a record is lost that never should be.
const KEPT: &str = "its node stopped, and said that another one held it";

/// The result of a run without a violation.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    /// Events.
    pub(super) steps: u64,
    /// Requests of clients that were answered.
    pub(super) done: usize,
    /// Requests that were executed, and whose records are on no node at the end.
    pub(super) lost: usize,
    /// How often something happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Simulated time.
    pub(super) time: Micros,
    /// Sum of the trace.
    pub(super) sum: u64,
}

impl Summary {
    /// Adds the numbers of another run.
    pub(super) fn add(&mut self, other: &Summary) {
        self.steps += other.steps;
        self.done += other.done;
        self.lost += other.lost;
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.time += other.time;
    }
}

/// A run that found a violation.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) what: String,
    /// The last lines of the trace, where there is one.
    pub(super) trace: String,
}

/// Runs a seed. A panic is a violation as well.
pub(super) fn run(seed: u64, mode: Mode) -> Result<Summary, Failure> {
    run_with(seed, mode, false)
}

/// Runs a seed with nodes that have disks. Everything else is drawn as without.
pub(super) fn run_with_disks(seed: u64, mode: Mode) -> Result<Summary, Failure> {
    run_with(seed, mode, true)
}

fn run_with(seed: u64, mode: Mode, has_disks: bool) -> Result<Summary, Failure> {
    let slots: Vec<Slot> = (0..PROCESSES_MAX).map(|_| Slot::new()).collect();
    let mut random = Random::new(seed);
    let mut plan = Plan::new(&mut random);
    let disks = if has_disks {
        Disks::new(seed, plan.nodes, plan.is_harmless)
    } else {
        Disks::none()
    };
    plan.waits_for_commit &= !disks.is_any();
    let mut world = World::new(plan, random, mode, &slots);
    world.shared.trace.add(0, || format!("{disks:?}"));
    world.shared.disks = disks;
    let result = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    });
    result.map_err(|what| Failure {
        what,
        trace: world.shared.trace.text(),
    })
}

/// Something that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    /// The next fault.
    Fault,
    /// The next fault of disks.
    DiskFault,
    /// A disk that was full has room.
    Room(usize),
    /// A node starts.
    Start(usize),
    /// A node crashes and starts.
    Restart(usize),
    /// A way between two nodes is whole again.
    Heal(usize, usize),
    /// A link has its speed back.
    Quicken(usize, usize),
    /// An operator gives up the data of a node that refuses.
    Discard(usize),
    /// A look whether the nodes agree.
    Look,
}

struct World<'a> {
    plan: Plan,
    config: Config,
    random: Random,
    shared: Shared,
    slots: &'a [Slot],
    /// The process of each node.
    nodes: Vec<Option<Process<'a>>>,
    /// How many were started.
    started: usize,
    /// Until when a node does nothing.
    paused: Vec<Micros>,
    has_faults: bool,
    /// When an operator last restarted nodes.
    restarted: Micros,
    steps: u64,
}

impl<'a> World<'a> {
    fn new(plan: Plan, mut random: Random, mode: Mode, slots: &'a [Slot]) -> World<'a> {
        let (nodes, link, pipe_bytes, load) = (plan.nodes, plan.link, plan.pipe_bytes, plan.load);
        let mut shared = Shared::new(nodes, link, pipe_bytes, load, mode, &mut random);
        shared.waits_for_commit = plan.waits_for_commit;
        shared.trace.add(0, || format!("{plan:?}"));
        World {
            config: limited(
                config(
                    nodes,
                    [plan.heartbeat, plan.leader_timeout],
                    plan.backlog_bytes,
                ),
                plan.memory,
            ),
            nodes: (0..plan.nodes).map(|_| None).collect(),
            paused: vec![0; plan.nodes],
            plan,
            random,
            shared,
            slots,
            started: 0,
            has_faults: true,
            restarted: 0,
            steps: 0,
        }
    }

    fn run(&mut self) -> Result<Summary, String> {
        // Clients have links of their own.
        for node in 0..self.plan.nodes {
            for (from, to) in [(node, self.plan.nodes), (self.plan.nodes, node)] {
                self.shared.network.link(from, to).bandwidth = 100_000;
            }
            let delay = self.random.below(200 * MS);
            self.later(delay, Later::Start(node));
            self.step_wall(node, self.plan.clocks_differ / 2);
        }
        let (_, pause) = self.plan.next(&mut self.random);
        self.later(pause, Later::Fault);
        self.later(self.plan.until, Later::Look);
        self.await_disk_fault();
        while let Some(event) = self.shared.timeline.next() {
            self.steps += 1;
            if self.steps == STEPS_MAX {
                return Err("it does not come to an end".to_owned());
            }
            let is_agreed = self.step(event);
            self.end_stopped();
            if let Some(violation) = self.shared.violation.take() {
                return Err(violation);
            }
            if is_agreed {
                return self.finish();
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn later(&mut self, delay: Micros, later: Later) {
        self.shared.timeline.after(delay, Event::Later(later));
    }

    /// Carries out an event. Returns whether the run is over.
    fn step(&mut self, event: Event) -> bool {
        match event {
            Event::Client(event) => self.shared.client(event),
            Event::Network(network_event) => {
                let Shared {
                    network, timeline, ..
                } = &mut self.shared;
                if let Some((host, end, signal)) = network.step(network_event, timeline) {
                    let event = Event::Signal(host, end, signal);
                    if is_begin(signal) || self.plan.turn == 0 {
                        self.step(event);
                    } else {
                        // Threads have their turns in any order.
                        timeline.after(self.random.below(self.plan.turn), event);
                    }
                }
            }
            Event::Signal(host, end, signal) if host == self.plan.nodes => {
                self.shared.client_signal(end, signal);
            }
            Event::Signal(host, end, signal) => {
                if self.is_paused(host) {
                    let turn = if is_begin(signal) {
                        0
                    } else {
                        self.random.below(PAUSED_TURN)
                    };
                    self.shared.timeline.at(self.paused[host] + turn, event);
                } else if let Some(process) = &mut self.nodes[host] {
                    process.signal(end, signal, &mut self.shared);
                } else if signal != Signal::Reset {
                    self.shared.network.reset(end, &mut self.shared.timeline);
                }
            }
            Event::Process(number, wake) => self.wake(number, wake),
            Event::Later(later) => return self.do_later(later),
        }
        false
    }

    fn is_paused(&self, host: usize) -> bool {
        self.paused[host] > self.shared.timeline.now()
    }

    fn wake(&mut self, number: usize, wake: Wake) {
        let running = self.nodes.iter_mut().flatten();
        let Some(process) = running.into_iter().find(|process| process.number == number) else {
            return;
        };
        let until = self.paused[process.host];
        if until > self.shared.timeline.now() {
            let at = until + self.random.below(PAUSED_TURN);
            self.shared.timeline.at(at, Event::Process(number, wake));
        } else {
            process.wake(wake, &mut self.shared);
        }
    }

    fn do_later(&mut self, later: Later) -> bool {
        match later {
            Later::Fault => {
                if self.has_faults {
                    let (fault, pause) = self.plan.next(&mut self.random);
                    self.cause(fault);
                    self.later(pause, Later::Fault);
                }
            }
            Later::DiskFault => {
                if self.has_faults {
                    let fault = self.shared.disks.fault();
                    self.cause_at_disks(fault);
                    self.await_disk_fault();
                }
            }
            Later::Room(node) => self.shared.disks.give_room(node),
            Later::Start(node) => self.start(node),
            Later::Restart(node) => self.restart(node),
            Later::Heal(from, to) => {
                let Shared {
                    network, timeline, ..
                } = &mut self.shared;
                network.cut(from, to, false, timeline);
                self.shared
                    .note(from, || format!("reaches n{} again", to + 1));
            }
            Later::Quicken(from, to) => {
                *self.shared.network.link(from, to) = self.plan.link;
            }
            Later::Discard(node) => self.discard(node),
            Later::Look => return self.look(),
        }
        false
    }

    /// Removes the processes that have stopped.
    fn end_stopped(&mut self) {
        for node in 0..self.plan.nodes {
            let storing = self.nodes[node]
                .as_ref()
                .and_then(|process| process.storing.as_ref());
            if let Some(is_power) = storing.and_then(Storing::died) {
                self.end_at_once(node, is_power);
            }
            let Some(ending) = self.nodes[node].as_ref().and_then(Process::ending) else {
                continue;
            };
            if let Some(process) = self.nodes[node].take() {
                let why = match ending {
                    Ending::Kept => KEPT,
                    Ending::Lost { .. } => "its node stopped, and knew no other one that held it",
                };
                process.lose(why, &mut self.shared);
                let longest = self.longest_absence(2 * SECOND);
                let delay = self.random.below(longest);
                self.later(delay, Later::Start(node));
            }
        }
    }

    /// Longest time until a node starts again. Where nothing may be lost, it starts before a leader with a disk passes
    /// over it (docs/operating.md, "Data on disk"): it may be the only one that has the last writes.
    fn longest_absence(&self, usual: Micros) -> Micros {
        if self.plan.is_harmless && self.shared.disks.is_any() {
            usual.min(self.plan.leader_timeout / 2)
        } else {
            usual
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_some() || self.started == PROCESSES_MAX {
            return;
        }
        let number = self.started;
        self.started += 1;
        let slot = &self.slots[number];
        let (config, partitions) = (&self.config, self.plan.partitions);
        let process = Process::start(number, node, slot, config, partitions, &mut self.shared);
        self.nodes[node] = Some(process);
    }
}

/// The same with a memory limit, which in a file has a lower bound as well.
fn limited(mut config: Config, memory: Option<(u64, bool)>) -> Config {
    if let Some((bytes, evicts)) = memory {
        config.limits.max_memory_bytes = Some(bytes);
        config.limits.when_full = if evicts {
            WhenFull::Evict
        } else {
            WhenFull::Refuse
        };
    }
    config
}

/// Whether a signal has to come before all others of its connection.
const fn is_begin(signal: Signal) -> bool {
    matches!(signal, Signal::Accepted | Signal::Connected)
}

/// The file of a cluster with this interval of heartbeats and this leader timeout.
pub(super) fn config(nodes: usize, times: [Micros; 2], backlog_bytes: u64) -> Config {
    let mut text = "cluster = \"sim\"\nleader = \"n1\"\n".to_owned();
    let [heartbeat, timeout] = times.map(|time| time / MS);
    text += &format!(
        "[replication]\nheartbeat_interval_ms = {heartbeat}\nleader_timeout_ms = {timeout}\n"
    );
    for node in 0..nodes {
        let addr = addr_of(node);
        text += &format!("[[node]]\nname = \"n{}\"\naddr = \"{addr}\"\n", node + 1);
    }
    let mut config = Config::parse(&text, "cluster.toml").expect("a right file");
    // A file has a lower bound, with which no run would evict anything.
    config.replication.backlog_bytes = backlog_bytes;
    config
}
