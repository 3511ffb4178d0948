//! The effects of faults. Each fault is drawn, carried out, and ends after some time.

use super::super::events::{MS, Micros, SECOND};
use super::super::faults::Fault;
use super::super::machines::DiskFault;
use super::super::process::Process;
use super::super::shared::Shared;
use super::{Later, World};
use crate::node::RoleState;

impl World<'_> {
    /// The time of the next fault of disks is drawn.
    pub(super) fn await_disk_fault(&mut self) {
        let disks = &mut self.shared.disks;
        if let Some(pause) = disks.pause {
            let delay = disks.random.below(pause);
            self.later(delay, Later::DiskFault);
        }
    }

    pub(super) fn cause_at_disks(&mut self, fault: DiskFault) {
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
    pub(super) fn end_at_once(&mut self, node: usize, is_power: bool) {
        if let Some(process) = self.nodes[node].take() {
            process.crash(is_power, &mut self.shared);
            let longest = self.longest_absence(SECOND);
            let delay = self.shared.disks.random.below(longest);
            self.later(delay, Later::Start(node));
        }
    }

    /// Two different nodes.
    fn pair(&mut self) -> (usize, usize) {
        let from = self.random.place(self.plan.nodes);
        let to = (from + 1 + self.random.place(self.plan.nodes - 1)) % self.plan.nodes;
        (from, to)
    }

    pub(super) fn cause(&mut self, fault: Fault) {
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
            Fault::Usurp => self.usurp(other),
            Fault::RestartInPause => self.restart_in_pause(node),
            Fault::Lose | Fault::HalfOpen | Fault::LoseClient => self.lose(fault, node),
            Fault::Slow => self.slow(node, other, time),
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

    /// Cuts the leader off and restarts the initial leader. Where that one leads, it hands over to `other` before.
    fn usurp(&mut self, other: usize) {
        match self.leader() {
            Some(0) => self.transfer(0, other),
            Some(leader) => {
                let timeout = self.plan.leader_timeout;
                let time = timeout + self.random.between(timeout, 2 * timeout);
                self.isolate(leader, time);
                self.restart(0);
                self.later(time + 2 * self.plan.heartbeat, Later::Discard(leader));
            }
            None => {}
        }
    }

    /// Restarts a follower while the leader is paused.
    fn restart_in_pause(&mut self, node: usize) {
        let Some(leader) = self.leader().filter(|leader| *leader != node) else {
            return;
        };
        let time = self.plan.heartbeat * self.random.between(4, 8);
        self.paused[leader] = self.shared.timeline.now() + time;
        // It acknowledges once more before.
        let delay = self.random.between(1, 2 * self.plan.heartbeat);
        self.later(delay, Later::Restart(node));
    }

    /// Slows the link from one node to another down for some time.
    fn slow(&mut self, from: usize, to: usize, time: Micros) {
        // A node that seems to be silent is passed over, with all that it alone has.
        let (longest, least) = if self.plan.is_harmless {
            (20 * MS, 50)
        } else {
            (100 * MS, 1)
        };
        let delay = self.random.between(MS, longest);
        let bandwidth = self.random.between(least, 100);
        let link = self.shared.network.link(from, to);
        link.delay = delay;
        link.bandwidth = bandwidth;
        self.later(time, Later::Quicken(from, to));
    }

    /// Sets the wall clock of a machine forward or backward, by so many milliseconds at most. Returns by how many.
    pub(super) fn step_wall(&mut self, node: usize, most: u64) -> i64 {
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
    pub(super) fn restart(&mut self, node: usize) {
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
    pub(super) fn discard(&mut self, node: usize) {
        if let Some(process) = &mut self.nodes[node]
            && let RoleState::Refusing { .. } = process.node().role()
        {
            process.discard(&mut self.shared);
        }
    }
}
