//! A run: a cluster, its clients and its faults, from the begin to the agreement of all nodes at the end.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Event;
use super::disk::{self, DiskFault, Disks, Storing};
use super::events::{MS, Micros, SECOND};
use super::faults::{Fault, Plan};
use super::load::{Outcome, addr_of};
use super::network::Signal;
use super::process::{Process, Shipped, Slot, Wake};
use super::random::Random;
use super::shared::Shared;
use super::trace::Mode;
use super::truth::Truth;
use crate::config::{Config, WhenFull};
use crate::engine::digest::Digest;
use crate::node::RoleState;
use crate::replication::Ending;

/// Processes of a run at most.
const PROCESSES_MAX: usize = 80;

/// Time within which the nodes agree once faults have ended.
const AGREEMENT_MAX: Micros = 120 * SECOND;

/// Events of a run at most; most runs have a hundredth of that.
const STEPS_MAX: u64 = 500_000;

/// Longest time until a thread has its turn in a process that was paused.
const PAUSED_TURN: Micros = 30 * MS;

/// Time after which an operator restarts nodes that are stuck.
const PATIENCE: Micros = 15 * SECOND;

/// Time between two looks whether they do.
const LOOK: Micros = 200 * MS;

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
                let delay = self.random.below(2 * SECOND);
                self.later(delay, Later::Start(node));
            }
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

    /// The time of the next fault of disks is drawn.
    fn await_disk_fault(&mut self) {
        let disks = &mut self.shared.disks;
        if let Some(pause) = disks.pause {
            let delay = disks.random.below(pause);
            self.later(delay, Later::DiskFault);
        }
    }

    fn cause_at_disks(&mut self, fault: DiskFault) {
        self.shared.note(0, || format!("FAULT {fault:?}"));
        self.shared.count(fault.name());
        match fault {
            DiskFault::All(is_power) => {
                for node in 0..self.plan.nodes {
                    self.end_at_once(node, is_power);
                }
            }
            DiskFault::Some(is_power) => {
                for node in 0..self.plan.nodes {
                    if self.shared.disks.random.happens(500) {
                        self.end_at_once(node, is_power);
                    }
                }
            }
            DiskFault::Within(_) | DiskFault::Fails(_) | DiskFault::Full => {
                if let Some(node) = self.shared.disks.draw()
                    && self.nodes[node].is_some()
                {
                    self.shared.disks.fail_soon(node, fault);
                    let time = self.shared.disks.random.below(3 * SECOND);
                    if fault == DiskFault::Full {
                        self.later(time, Later::Room(node));
                    }
                }
            }
        }
    }

    /// A process ends at once, or the power of its machine. Another one starts a little later.
    fn end_at_once(&mut self, node: usize, is_power: bool) {
        if let Some(process) = self.nodes[node].take() {
            process.crash(is_power, &mut self.shared);
            let delay = self.shared.disks.random.below(SECOND);
            self.later(delay, Later::Start(node));
        }
    }

    /// Two different nodes.
    fn pair(&mut self) -> (usize, usize) {
        let from = self.random.place(self.plan.nodes);
        let to = (from + 1 + self.random.place(self.plan.nodes - 1)) % self.plan.nodes;
        (from, to)
    }

    fn cause(&mut self, fault: Fault) {
        let (node, other) = self.pair();
        let time = self.random.between(10 * MS, 2 * SECOND);
        self.shared
            .note(node, || format!("FAULT {fault:?} (n{})", other + 1));
        self.shared.count(fault.name());
        match fault {
            Fault::Crash | Fault::TurnOff => {
                if let Some(process) = self.nodes[node].take() {
                    process.crash(fault == Fault::TurnOff, &mut self.shared);
                    self.later(time, Later::Start(node));
                }
            }
            Fault::Stop => self.stop(node),
            Fault::Transfer => {
                if let Some(leader) = self.leader() {
                    self.transfer(leader, other);
                }
            }
            Fault::CutOneWay => self.cut(node, other, time),
            Fault::Cut => {
                self.cut(node, other, time);
                self.cut(other, node, time);
            }
            Fault::Isolate => self.isolate(node, time),
            Fault::Restart => {
                let timeout = self.plan.leader_timeout;
                let time = timeout + self.random.below(2 * timeout);
                self.isolate(node, time);
                self.restart(node);
            }
            Fault::Usurp => match self.leader() {
                Some(0) => self.transfer(0, other),
                Some(leader) => {
                    let timeout = self.plan.leader_timeout;
                    let time = timeout + self.random.between(timeout, 2 * timeout);
                    self.isolate(leader, time);
                    self.restart(0);
                    self.later(time + 2 * self.plan.heartbeat, Later::Discard(leader));
                }
                None => {}
            },
            Fault::RestartInPause => {
                if let Some(leader) = self.leader().filter(|leader| *leader != node) {
                    let time = self.plan.heartbeat * self.random.between(4, 8);
                    self.paused[leader] = self.shared.timeline.now() + time;
                    // It acknowledges once more before.
                    let delay = self.random.between(1, 2 * self.plan.heartbeat);
                    self.later(delay, Later::Restart(node));
                }
            }
            Fault::Lose | Fault::HalfOpen | Fault::LoseClient => self.lose(fault, node),
            Fault::Slow => {
                // A node that seems to be silent is passed over, with all that it alone has.
                let (longest, least) = if self.plan.is_harmless {
                    (20 * MS, 50)
                } else {
                    (100 * MS, 1)
                };
                let delay = self.random.between(MS, longest);
                let bandwidth = self.random.between(least, 100);
                let link = self.shared.network.link(node, other);
                link.delay = delay;
                link.bandwidth = bandwidth;
                self.later(time, Later::Quicken(node, other));
            }
            Fault::Pause => {
                let time = if self.plan.is_harmless {
                    time / 20
                } else {
                    time
                };
                self.paused[node] = self.shared.timeline.now() + time;
            }
            Fault::Discard => self.discard(node),
            Fault::ClockStep => {
                let most = self.random.pick(&[50, 500, 500, 60_000]);
                let ms = self.step_wall(node, most);
                self.shared
                    .note(node, || format!("has its wall clock set by {ms} ms"));
            }
        }
    }

    /// Sets the wall clock of a machine forward or backward, by so many milliseconds at most. Returns by how many.
    fn step_wall(&mut self, node: usize, most: u64) -> i64 {
        let ms = i64::try_from(self.random.below(2 * most + 1)).unwrap_or(0);
        let ms = ms - i64::try_from(most).unwrap_or(0);
        self.shared.timeline.step_wall(node, ms);
        ms
    }

    /// Stops a node in good order. Where nothing may be lost, the others have to run.
    fn stop(&mut self, node: usize) {
        let stays = |process: &Process<'_>| process.stopping.is_none();
        let is_rolling = self
            .nodes
            .iter()
            .all(|process| process.as_ref().is_some_and(stays));
        if self.plan.is_harmless && !is_rolling {
            return;
        }
        if let Some(process) = &mut self.nodes[node] {
            process.stop(&mut self.shared);
        }
    }

    fn cut(&mut self, from: usize, to: usize, time: Micros) {
        let Shared {
            network, timeline, ..
        } = &mut self.shared;
        network.cut(from, to, true, timeline);
        self.later(time, Later::Heal(from, to));
    }

    /// The node that takes writes; the first of several.
    fn leader(&self) -> Option<usize> {
        let leads = |process: &Option<Process<'_>>| {
            process
                .as_ref()
                .is_some_and(|process| process.node().takes_writes())
        };
        self.nodes.iter().position(leads)
    }

    fn transfer(&mut self, from: usize, to: usize) {
        if let Some(leader) = &mut self.nodes[from] {
            leader.begin_transfer(&format!("n{}", to + 1), &mut self.shared);
        }
    }

    /// A process ends at once, and another one of its node starts.
    fn restart(&mut self, node: usize) {
        if let Some(process) = self.nodes[node].take() {
            process.crash(false, &mut self.shared);
            self.later(10 * MS, Later::Start(node));
        }
    }

    /// Cuts a node off from all others.
    fn isolate(&mut self, node: usize, time: Micros) {
        for other in (0..self.plan.nodes).filter(|other| *other != node) {
            self.cut(node, other, time);
            self.cut(other, node, time);
        }
    }

    /// Loses a connection of a node.
    fn lose(&mut self, fault: Fault, node: usize) {
        let Shared {
            network, timeline, ..
        } = &mut self.shared;
        let is_client = fault == Fault::LoseClient;
        let ends = network.ends_at(node, is_client, self.plan.nodes);
        if ends.is_empty() {
            return;
        }
        let end = ends[self.random.place(ends.len())];
        let tells = if fault == Fault::HalfOpen {
            let side = self.random.place(2);
            [side == 0, side == 1]
        } else {
            [true, true]
        };
        network.lose(end, tells, timeline);
    }

    /// An operator gives up the data of a node that refuses.
    fn discard(&mut self, node: usize) {
        if let Some(process) = &mut self.nodes[node]
            && let RoleState::Refusing { .. } = process.node().role()
        {
            process.discard(&mut self.shared);
        }
    }

    /// Ends the faults, where it is time, and looks whether all nodes agree.
    fn look(&mut self) -> bool {
        if std::mem::take(&mut self.has_faults) {
            self.heal();
        }
        let has_ended = self.shared.timeline.now() > self.plan.until + AGREEMENT_MAX;
        let is_agreed = self.disagreement().is_none();
        if let (false, true) = (is_agreed, has_ended) {
            let what = self.disagreement().unwrap_or_default();
            self.shared.violation = Some(format!("no agreement: {what}"));
        }
        for node in 0..self.plan.nodes {
            self.discard(node);
        }
        if self.shared.timeline.now() > self.restarted + PATIENCE {
            self.restart_stuck();
        }
        self.later(LOOK, Later::Look);
        is_agreed
    }

    /// An operator restarts the nodes that are to lead and cannot: one that has led beside another leader, and one
    /// whose data the others do not know.
    fn restart_stuck(&mut self) {
        self.restarted = self.shared.timeline.now();
        for node in 0..self.plan.nodes {
            let is_stuck = |process: &mut Process<'_>| match process.node().role() {
                RoleState::Candidate { .. } | RoleState::Refusing { leader: None, .. } => true,
                RoleState::Loading { .. }
                | RoleState::Follower { .. }
                | RoleState::Leader { .. }
                | RoleState::Refusing { .. } => false,
            };
            if let Some(process) = self.nodes[node].take_if(is_stuck) {
                self.shared.count("nodes that an operator restarted");
                process.crash(false, &mut self.shared);
                disk::give_up(node, &mut self.shared);
                self.later(100 * MS, Later::Start(node));
            }
        }
    }

    /// Ends all faults. Every node starts that does not run.
    fn heal(&mut self) {
        self.shared.note(0, || "FAULTS END".to_owned());
        self.restarted = self.shared.timeline.now();
        self.shared.load.end();
        self.shared.disks.heal();
        for from in 0..self.plan.nodes {
            for to in 0..self.plan.nodes {
                *self.shared.network.link(from, to) = self.plan.link;
                let Shared {
                    network, timeline, ..
                } = &mut self.shared;
                network.cut(from, to, false, timeline);
            }
            let delay = self.random.below(SECOND);
            self.later(delay, Later::Start(from));
        }
    }

    /// Returns the reason why the nodes do not agree; `None` where they agree.
    fn disagreement(&self) -> Option<String> {
        let mut leaders = 0;
        let mut common: Option<(u64, Digest, u64)> = None;
        for (at, process) in self.nodes.iter().enumerate() {
            let name = at + 1;
            let Some(process) = process else {
                return Some(format!("n{name} does not run"));
            };
            let node = process.node();
            match node.role() {
                RoleState::Leader { .. } => leaders += 1,
                RoleState::Follower { .. } => {}
                role => return Some(format!("n{name} is {role}")),
            }
            let head = node.head();
            let epoch = node.history().last().map_or(0, |start| start.epoch);
            let place = (head.index, head.digest, epoch);
            let (first, digest, _) = *common.get_or_insert(place);
            if place != common.unwrap_or_default() {
                return Some(format!(
                    "n{name} is at {} in epoch {epoch}, {}, another at {first}, {digest}",
                    head.index, head.digest
                ));
            }
        }
        (leaders != 1).then(|| format!("{leaders} nodes lead"))
    }

    /// Checks what the clients were told.
    fn finish(&mut self) -> Result<Summary, String> {
        let mut lost = 0;
        let process = self.nodes[0].as_ref().ok_or("n1 does not run")?;
        let place = Truth::place_of(&process.node().history(), process.node().head().index);
        for (number, outcome) in self.shared.load.outcomes().iter().enumerate() {
            let Some(executed) = self.shared.truth.place_of_request(number) else {
                continue;
            };
            if place.is_some_and(|place| self.shared.truth.holds(place, executed)) {
                continue;
            }
            lost += 1;
            let mut why = self.shared.lost.get(&number).copied();
            if self
                .shared
                .disks
                .is_being_discarded(executed, &self.shared.truth)
            {
                why = why.or(Some("an operator discarded it"));
            }
            // With disks, processes end in harmless runs, too: with what nobody was told.
            let is_told = *outcome == Outcome::Done || !self.shared.disks.is_any();
            if why.is_none() || self.plan.is_harmless && is_told {
                return Err(format!(
                    "request #{number}, executed at {executed:?}, {outcome:?}, is lost: {why:?}"
                ));
            }
        }
        for process in self.nodes.iter_mut().flatten() {
            process.check_store(&mut self.shared)?;
        }
        for slot in &self.slots[..self.started] {
            let [copies, resumes] = slot.get().map_or([0; 2], Shipped::streams);
            *self.shared.counts.entry("full copies").or_default() += copies;
            *self.shared.counts.entry("resumes").or_default() += resumes;
        }
        let epochs = u64::try_from(self.shared.truth.epochs()).unwrap_or(0);
        self.shared.counts.insert("epochs", epochs);
        let outcomes = self.shared.load.outcomes();
        Ok(Summary {
            steps: self.steps,
            done: outcomes
                .iter()
                .filter(|outcome| **outcome == Outcome::Done)
                .count(),
            lost,
            counts: self.shared.counts.clone(),
            time: self.shared.timeline.now(),
            sum: self.shared.trace.sum(),
        })
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
