//! The disks of the machines, their faults, and the positions that a recovery has to reach.

use std::time::Duration;

use super::events::{MS, Micros, SECOND};
use super::random::Random;
use super::shared::Shared;
use super::truth::{Place, Truth, Violation};
use crate::config::{StorageConfig, SyncPolicy};
use crate::storage::simulated::Disk;

/// The disks of all machines, and their faults.
#[derive(Debug)]
pub(super) struct Disks {
    pub(super) random: Random,
    pub(super) machines: Vec<Option<Machine>>,
    /// Longest time between two faults of disks; `None` where there is none.
    pub(super) pause: Option<Micros>,
}

/// A machine's disk.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) plan: Plan,
    pub(super) disk: Disk,
    /// The greatest position that an answer which was sent is about.
    pub(super) answered: Option<Place>,
    /// The positions up to which the data set is written and durable, as the node states them.
    pub(super) written: Option<Place>,
    pub(super) durable: Option<Place>,
    /// The position of the data set in memory that was to replace that of the disk when the process ended.
    replacing: Option<Place>,
    /// The positions that a recovery has to reach.
    required: Vec<Place>,
    /// The call that fails ends the process, or with `true` the power of the machine.
    pub(super) dies: Option<bool>,
    /// An operator has ordered to discard the data set.
    pub(super) may_discard: bool,
    /// How often an operator has restarted the node because it was stuck.
    restarts: u32,
}

/// The settings of a node's disk.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) config: StorageConfig,
    pub(super) segment_bytes: u64,
    pub(super) snapshot_log_bytes: u64,
    /// Longest delay of a step of the threads that write.
    pub(super) turn: Micros,
}

/// A fault of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskFault {
    /// The processes of all nodes, or of some of them, end at once; with `true` the power of their machines.
    All(bool),
    Some(bool),
    /// The same with one machine, at one of its next calls.
    Within(bool),
    /// A call fails; with `true` all calls behind it too.
    Fails(bool),
    /// The disk is full for some time.
    Full,
}

impl DiskFault {
    /// Its name where faults are counted.
    pub(super) const fn name(self) -> &'static str {
        match self {
            DiskFault::All(false) => "FAULT all processes killed",
            DiskFault::All(true) => "FAULT power of all machines fails",
            DiskFault::Some(false) => "FAULT some processes killed",
            DiskFault::Some(true) => "FAULT power of some machines fails",
            DiskFault::Within(false) => "FAULT process killed within a step of its disk",
            DiskFault::Within(true) => "FAULT power fails within a step of a disk",
            DiskFault::Fails(false) => "FAULT call of a disk fails",
            DiskFault::Fails(true) => "FAULT disk fails",
            DiskFault::Full => "FAULT disk full",
        }
    }
}

impl Plan {
    fn new(policy: SyncPolicy, random: &mut Random) -> Plan {
        Plan {
            config: StorageConfig {
                data_dir: None,
                sync: policy,
                sync_interval: Duration::from_millis(random.pick(&[5, 50, 500])),
            },
            segment_bytes: random.pick(&[1_024, 4_096, 16_384]),
            snapshot_log_bytes: random.pick(&[1_000, 10_000, 100_000]),
            turn: random.pick(&[100, MS, 10 * MS, 50 * MS]),
        }
    }
}

fn policy(random: &mut Random) -> SyncPolicy {
    random.pick(&[
        SyncPolicy::Always,
        SyncPolicy::Always,
        SyncPolicy::Interval,
        SyncPolicy::Never,
    ])
}

impl Disks {
    /// No machine has one.
    pub(super) const fn none() -> Disks {
        Disks {
            random: Random::new(0),
            machines: Vec::new(),
            pause: None,
        }
    }

    /// The disks of a run, by its seed.
    pub(super) fn new(seed: u64, nodes: usize, is_harmless: bool) -> Disks {
        let mut random = Random::new(seed ^ 0xD15C_D15C_D15C_D15C);
        let common = random.happens(700).then(|| policy(&mut random));
        let without = random.pick(&[0, 0, 300]);
        let mut machines = Vec::new();
        for _ in 0..nodes {
            let policy = common.unwrap_or_else(|| policy(&mut random));
            let plan = Plan::new(policy, &mut random);
            machines.push((!random.happens(without)).then(|| Machine {
                plan,
                disk: Disk::default(),
                answered: None,
                written: None,
                durable: None,
                replacing: None,
                required: Vec::new(),
                dies: None,
                may_discard: false,
                restarts: 0,
            }));
        }
        let pause = random.pick(&[None, Some(500 * MS), Some(2 * SECOND)]);
        let are_safe =
            (machines.iter()).all(|machine| machine.as_ref().is_some_and(|it| it.plan.is_always()));
        Disks {
            random,
            machines,
            pause: pause.filter(|_| are_safe || !is_harmless),
        }
    }

    /// Whether any machine has one.
    pub(super) fn is_any(&self) -> bool {
        self.machines.iter().any(Option::is_some)
    }

    /// The next fault.
    pub(super) fn fault(&mut self) -> DiskFault {
        let is_power = self.random.happens(600);
        match self.random.below(8) {
            0 => DiskFault::All(is_power),
            1 => DiskFault::Some(is_power),
            2 => DiskFault::Fails(is_power),
            3 => DiskFault::Full,
            _ => DiskFault::Within(is_power),
        }
    }

    /// A machine with a disk, drawn; `None` where there is none.
    pub(super) fn draw(&mut self) -> Option<usize> {
        let hosts = (0..self.machines.len()).filter(|host| self.machines[*host].is_some());
        let hosts: Vec<usize> = hosts.collect();
        (!hosts.is_empty()).then(|| hosts[self.random.place(hosts.len())])
    }

    /// Makes one of the next calls fail.
    pub(super) fn fail_soon(&mut self, host: usize, fault: DiskFault) {
        let call = self.random.between(1, 30);
        let Some(machine) = &mut self.machines[host] else {
            return;
        };
        if fault == DiskFault::Full {
            let left = self.random.below(3_000);
            return machine.disk.limit(Some(machine.disk.used() + left));
        }
        let (dies, fails_on) = match fault {
            DiskFault::Within(is_power) => (Some(is_power), true),
            DiskFault::Fails(fails_on) => (None, fails_on),
            DiskFault::All(_) | DiskFault::Some(_) | DiskFault::Full => return,
        };
        machine.dies = dies;
        let call = machine.disk.calls() + call;
        machine.disk.fail(call, std::io::ErrorKind::Other, fails_on);
    }

    /// Gives a disk space again.
    pub(super) fn give_room(&mut self, host: usize) {
        if let Some(machine) = self.of(host) {
            machine.disk.limit(None);
        }
    }

    /// Whether an operator has ordered to discard a data set that a disk has yet, and that has `place`.
    pub(super) fn is_being_discarded(&self, place: Place, truth: &Truth) -> bool {
        let mut machines = self.machines.iter().flatten();
        machines.any(|machine| {
            let written = machine.written;
            machine.may_discard && written.is_some_and(|written| truth.holds(written, place))
        })
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.pause = None;
        for machine in self.machines.iter_mut().flatten() {
            machine.dies = None;
            machine.disk.limit(None);
            machine.disk.fail(0, std::io::ErrorKind::Other, false);
        }
    }

    pub(super) fn of(&mut self, host: usize) -> Option<&mut Machine> {
        self.machines.get_mut(host)?.as_mut()
    }

    /// Notes that an operator has ordered a node to discard its data set.
    pub(super) fn may_discard(&mut self, host: usize) {
        if let Some(machine) = self.of(host) {
            machine.may_discard = true;
        }
    }
}

impl Plan {
    fn is_always(&self) -> bool {
        self.config.sync == SyncPolicy::Always
    }
}

/// Removes the data directory of a stuck node that an operator restarts for the second time. Its process has ended.
pub(super) fn give_up(host: usize, shared: &mut Shared) {
    let Some(machine) = shared.disks.of(host) else {
        return;
    };
    machine.restarts += 1;
    if machine.restarts == 1 {
        return;
    }
    machine.disk = Disk::default();
    machine.required.clear();
    machine.replacing = None;
    (machine.answered, machine.written, machine.durable) = (None, None, None);
    shared.count("data directories that an operator removed");
    if let Some(place) = shared.places.remove(&key_of(host)) {
        for number in shared.only_at(key_of(host), place) {
            shared
                .lost
                .insert(number, "an operator removed the data directory");
        }
    }
}

impl Machine {
    /// Ends the process, or the power of the machine. `replacing` is the position of a data set that is not on the
    /// disk yet. Returns the position that the disk has to have.
    pub(super) fn end(
        &mut self,
        is_power: bool,
        replacing: Option<Place>,
        random: &mut Random,
    ) -> Option<Place> {
        self.disk = if is_power {
            self.disk.after_power_failure(random.next())
        } else {
            self.disk.after_kill()
        };
        self.dies = None;
        self.replacing = replacing;
        let (has, answered) = if is_power {
            let answered = self.answered.filter(|_| self.plan.is_always());
            (self.durable, answered)
        } else {
            (self.written, self.answered)
        };
        self.required.extend(has);
        self.required.extend(answered);
        self.answered = answered;
        has
    }

    /// Checks that a recovery has found every required position.
    pub(super) fn check(&mut self, found: Option<Place>, truth: &Truth) -> Result<(), Violation> {
        let holds = |place| found.is_some_and(|found| truth.holds(found, place));
        let (required, replacing) = (std::mem::take(&mut self.required), self.replacing.take());
        // A data set that replaces the one of the disk need not have what only that one had.
        let new = replacing.filter(|new| found.is_some_and(|found| truth.holds(*new, found)));
        let is_replaced = |place| new.is_some_and(|new| !truth.holds(new, place));
        let mut lost =
            (required.into_iter()).filter(|place| !holds(*place) && !is_replaced(*place));
        if let Some(lost) = lost.next() {
            return Err(format!("its disk had {lost:?}, and {found:?} is recovered"));
        }
        self.answered = self.answered.filter(|answered| holds(*answered));
        Ok(())
    }
}

/// The key of a machine's disk among the [places](Shared::places).
pub(super) const fn key_of(host: usize) -> usize {
    usize::MAX - host
}
