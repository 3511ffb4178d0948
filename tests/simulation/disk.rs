//! The disk of a node: the shipped steps of its log writer and of its snapshots, as events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::checks::place_of;
use super::events::{MS, Micros, SECOND};
use super::process::{Process, Wake};
use super::random::Random;
use super::shared::Shared;
use super::truth::{Place, Truth, Violation};
use crate::config::{StorageConfig, SyncPolicy};
use crate::engine::Engine;
use crate::log::{Log, Mark};
use crate::node::{DataDirectory, Node, StorageStatus};
use crate::persistence::{
    self, Copying, Exchange, Next, Progress, Recovery, Settings, Snapshots, Writing,
};
use crate::storage::error::StorageError;
use crate::storage::files::Files as _;
use crate::storage::simulated::Disk;
use crate::wire::Status;

/// Pause before another snapshot, where one has failed: as in the server.
const RETRY_PAUSE: Micros = SECOND;

/// Longest time between two steps of a snapshot that waits for the log.
const SNAPSHOT_POLL: Micros = 10 * MS;

/// Counters of disks.
pub(super) const RECOVERIES: &str = "recoveries";
pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const DATA_SETS_REPLACED: &str = "data sets replaced on a disk";

/// The disk of each machine, and what a run does to them.
#[derive(Debug)]
pub(super) struct Disks {
    pub(super) random: Random,
    machines: Vec<Option<Machine>>,
    /// Longest time between two faults of disks; `None` where there is none.
    pub(super) pause: Option<Micros>,
}

/// A machine's disk.
#[derive(Debug)]
struct Machine {
    plan: Plan,
    disk: Disk,
    /// The last position that an answer was about which has left.
    answered: Option<Place>,
    /// The position up to which the node has said that it is written, and durable.
    written: Option<Place>,
    durable: Option<Place>,
    /// The position of a data set that was to replace that of the disk when the process ended.
    replacing: Option<Place>,
    /// The positions that a recovery has to reach.
    required: Vec<Place>,
    /// A call that fails is the end of the machine's process, or with `true` of its power.
    dies: Option<bool>,
    /// An operator has ordered to discard the data set.
    may_discard: bool,
    /// How often an operator has restarted the node in vain.
    restarts: u32,
}

/// The settings of a node's disk.
#[derive(Clone, Debug)]
struct Plan {
    config: StorageConfig,
    segment_bytes: u64,
    snapshot_log_bytes: u64,
    /// Longest time until the threads that write have their turn.
    turn: Micros,
}

/// Something that is done to disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskFault {
    /// The processes of all nodes, or of some of them, end at once; with `true` the power of their machines.
    All(bool),
    Some(bool),
    /// The same with one machine, within one of its next steps.
    Within(bool),
    /// A call fails; with `true` all calls behind it too.
    Fails(bool),
    /// It is full for some time.
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

    /// Has a call of the next ones fail.
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

    /// A disk has room again.
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

    /// No call fails any more.
    pub(super) fn heal(&mut self) {
        self.pause = None;
        for machine in self.machines.iter_mut().flatten() {
            machine.dies = None;
            machine.disk.limit(None);
            machine.disk.fail(0, std::io::ErrorKind::Other, false);
        }
    }

    fn of(&mut self, host: usize) -> Option<&mut Machine> {
        self.machines.get_mut(host)?.as_mut()
    }

    /// An operator has ordered a node to discard its data set.
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

/// An operator has restarted a node in vain: at the second time, its data directory is removed. Its process has ended.
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

/// The key of a machine's disk among the [places](Shared::places).
const fn key_of(host: usize) -> usize {
    usize::MAX - host
}

impl Machine {
    /// The process ends, or the power of the machine. `replacing` is the position of a data set that is not on the
    /// disk yet. Returns the position that the disk has to have.
    fn end(
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

    /// Checks what a recovery has found.
    fn check(&mut self, found: Option<Place>, truth: &Truth) -> Result<(), Violation> {
        let holds = |place| found.is_some_and(|found| truth.holds(found, place));
        let (required, replacing) = (std::mem::take(&mut self.required), self.replacing.take());
        let lost = required.into_iter().find(|place| !holds(*place));
        let is_new =
            found.is_some_and(|found| replacing.is_some_and(|new| truth.holds(new, found)));
        if let (Some(lost), false) = (lost, is_new) {
            return Err(format!("its disk had {lost:?}, and {found:?} is recovered"));
        }
        if lost.is_some() {
            self.answered = None;
        }
        Ok(())
    }
}

/// A node's directory, as the node knows it.
#[derive(Debug)]
pub(super) struct Directory {
    disk: Disk,
    now: Mutex<Instant>,
    /// The result of an order to read it again.
    restored: Mutex<Option<Result<Recovery, StorageError>>>,
    status: StorageStatus,
}

impl DataDirectory for Directory {
    fn restore(&self, engine: &Engine) -> bool {
        let restored = persistence::recover(&self.disk, engine, *self.now.lock(), 1);
        let is_done = restored.is_ok();
        *self.restored.lock() = Some(restored);
        is_done
    }

    /// No operator of a run orders one: they are wanted often enough.
    fn begin_snapshot(&self, _: &Log) -> bool {
        false
    }

    fn status(&self) -> &StorageStatus {
        &self.status
    }
}

/// The work of a process on its disk.
pub(super) struct Storing<'a> {
    directory: &'a Directory,
    settings: Settings,
    turn: Micros,
    /// The recovered data set, until the writing begins.
    recovery: Option<Recovery>,
    writing: Option<Writing<'a>>,
    exchange: Exchange,
    copying: Option<Copy<'a>>,
    /// The last snapshot has failed.
    has_failed: bool,
    is_over: bool,
    /// The process has died of a call that failed; with `true` the power has failed.
    died: Option<bool>,
}

/// A snapshot that is being written.
struct Copy<'a> {
    copying: Copying<'a>,
    chain: u32,
    /// Where it ends, once everything is copied.
    end: Option<u64>,
}

/// Opens the disk of a host for a node that starts, and recovers the node. Returns the directory, and what was
/// recovered.
pub(super) fn open(
    node: &mut Node,
    host: usize,
    now: Instant,
    shared: &mut Shared,
) -> Option<Arc<Directory>> {
    let machine = shared.disks.of(host)?;
    let mark = persistence::acknowledged_at(machine.plan.config.sync);
    let directory = Arc::new(Directory {
        disk: machine.disk.clone(),
        now: Mutex::new(now),
        restored: Mutex::default(),
        status: StorageStatus::new(machine.plan.config.sync),
    });
    node.acknowledge_at(mark);
    let opened = persistence::open(&directory.disk, node.engine(), mark, now, 1);
    match &opened {
        Ok(_) => node.restored(),
        Err(error) => {
            let names = directory.disk.list().unwrap_or_default();
            shared.fail(host, &format!("cannot recover: {error}; {names:?}"));
        }
    }
    *directory.restored.lock() = Some(opened);
    node.keep_in(Arc::clone(&directory) as Arc<dyn DataDirectory>);
    Some(directory)
}

impl<'a> Storing<'a> {
    /// The work of a process that has opened its directory.
    pub(super) fn new(
        directory: &'a Directory,
        host: usize,
        shared: &mut Shared,
    ) -> Option<Storing<'a>> {
        let salt = AtomicU64::new(shared.disks.random.next());
        let plan = shared.disks.of(host)?.plan.clone();
        Some(Storing {
            directory,
            settings: Settings {
                config: plan.config,
                segment_bytes: plan.segment_bytes,
                snapshot_log_bytes: plan.snapshot_log_bytes,
                salts: Arc::new(move || salt.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed)),
            },
            turn: plan.turn,
            recovery: None,
            writing: None,
            exchange: Exchange::default(),
            copying: None,
            has_failed: false,
            is_over: false,
            died: None,
        })
    }

    /// Whether nothing is written any more.
    pub(super) const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the process has died of it: with `true` the power has failed.
    pub(super) const fn died(&self) -> Option<bool> {
        self.died
    }

    /// Sets the time for what the node does by itself.
    pub(super) fn set_now(&self, now: Instant) {
        *self.directory.now.lock() = now;
    }

    /// Whether the log has something for it.
    fn has_news(&self, engine: &Engine) -> bool {
        let (Some(log), Some(writing)) = (engine.log(), &self.writing) else {
            return false;
        };
        let cursor = writing.cursor();
        if writing.is_stalled() {
            return self.exchange.has_news(log);
        }
        log.kept_head().index >= cursor.next
            || !log.holds(&cursor)
            || log.has_ended()
            || self.exchange.has_news(log)
    }

    /// Whether everything in the backlog is written.
    pub(super) fn has_written_all(&self, engine: &Engine) -> bool {
        let (Some(log), Some(writing)) = (engine.log(), &self.writing) else {
            return false;
        };
        let is_written = !writing.is_stalled() && !self.has_news(engine);
        is_written && log.kept_head().index < writing.cursor().next
    }

    /// A step of the log-writer thread.
    fn write(&mut self, engine: &'a Engine, now: Instant) -> Result<Next, StorageError> {
        let log = engine.log().expect("it has peers");
        let directory = self.directory;
        let writing = match &mut self.writing {
            Some(writing) => writing,
            None => {
                log.drain(now);
                let recovery = self.recovery.take().unwrap_or_default();
                let (files, settings) = (&directory.disk, self.settings.clone());
                let writing = Writing::new(files, (engine, log), settings, recovery, now)?;
                self.writing.insert(writing)
            }
        };
        exchange(&mut self.exchange, writing)?;
        // The replication thread runs at the same time: it waits for nothing that this step waits for.
        if writing.chain().is_none() || !log.holds(&writing.cursor()) {
            log.drain(now);
        }
        let next = writing.step(now)?;
        if let Next::Wait(_) = next {
            exchange(&mut self.exchange, writing)?;
        }
        Ok(next)
    }

    /// A step of the snapshot thread. Returns how long it waits then; `None` where it waits until a snapshot is wanted.
    fn copy(&mut self, engine: &'a Engine, salt: u64) -> Result<Option<Micros>, StorageError> {
        let log = engine.log().expect("it has peers");
        if std::mem::take(&mut self.has_failed) {
            self.exchange.want_snapshot();
        }
        let Some(copy) = &mut self.copying else {
            let Some(chain) = self.exchange.begin_snapshot() else {
                return Ok(None);
            };
            let files = &self.directory.disk;
            self.copying = Some(Copy {
                copying: Copying::begin(files, (engine, log), chain, salt)?,
                chain: chain.0,
                end: None,
            });
            return Ok(Some(0));
        };
        let may_finish = match copy.end {
            None => match copy.copying.step()? {
                Progress::More => return Ok(Some(0)),
                Progress::Copied(end) => {
                    copy.end = Some(end);
                    None
                }
                Progress::Replaced => Some(false),
            },
            Some(end) => self.exchange.may_finish(end, copy.chain, &copy.copying),
        };
        let Some(may_finish) = may_finish else {
            return Ok(Some(SNAPSHOT_POLL));
        };
        let done = match self.copying.take() {
            Some(copy) if may_finish => {
                let bytes = copy.copying.len();
                Some((copy.copying.finish()?, bytes))
            }
            Some(copy) => {
                copy.copying.discard();
                None
            }
            None => None,
        };
        self.exchange.end_snapshot(done);
        Ok(None)
    }
}

/// The steps of the log-writer thread for the snapshot thread.
fn exchange(exchange: &mut Exchange, writing: &mut Writing<'_>) -> Result<(), StorageError> {
    if let Some((id, bytes)) = exchange.take_done() {
        writing.snapshot_done(id, bytes)?;
    }
    exchange.note(writing);
    Ok(())
}

impl Process<'_> {
    /// The directory was read into the engine: the writing goes on there.
    pub(super) fn take_restored(&mut self, shared: &mut Shared) {
        let (host, node) = (self.host, self.replica.node);
        let Some(storing) = &mut self.storing else {
            return;
        };
        let Some(restored) = storing.directory.restored.lock().take() else {
            return;
        };
        let recovery = match restored {
            Ok(recovery) => recovery,
            Err(error) => return shared.fail(host, &format!("cannot read its directory: {error}")),
        };
        let time = recovery.log.as_ref().map_or(0, |log| log.time_ms);
        self.clock_check.pulled(time, &shared.timeline);
        let found = place_of(node, node.head().index);
        shared.note(host, || {
            let cut = recovery.log.as_ref().and_then(|log| log.cut.clone());
            format!("has recovered {found:?}, and cut off {cut:?}")
        });
        let resumed = match &mut storing.writing {
            Some(writing) => writing.resume(recovery),
            None => {
                storing.recovery = Some(recovery);
                Ok(())
            }
        };
        if let Err(error) = resumed {
            self.fail_disk(&error, shared);
        }
    }

    /// The node has started, and has recovered this.
    pub(super) fn check_recovered(&mut self, shared: &mut Shared) {
        let (host, node) = (self.host, self.replica.node);
        let Some(machine) = shared.disks.machines.get_mut(host).and_then(Option::as_mut) else {
            return;
        };
        let found = place_of(node, node.head().index);
        let checked = machine.check(found, &shared.truth);
        (machine.written, machine.durable) = (found, found);
        machine.may_discard = false;
        shared.count(RECOVERIES);
        if let Err(text) = checked {
            return shared.fail(host, &text);
        }
        self.move_disk(found, shared);
    }

    /// The disk holds the data set up to a position from now on.
    fn move_disk(&mut self, place: Option<Place>, shared: &mut Shared) {
        let key = key_of(self.host);
        let before = match place {
            Some(place) => shared.places.insert(key, place),
            None => shared.places.remove(&key),
        };
        let Some(before) = before else {
            return;
        };
        if place.is_some_and(|place| shared.truth.holds(place, before)) {
            return;
        }
        shared.count(DATA_SETS_REPLACED);
        let host = self.host;
        let Some(machine) = shared.disks.of(host) else {
            return;
        };
        machine.answered = None;
        let may_discard = std::mem::take(&mut machine.may_discard);
        let others: Vec<Place> = shared.places.values().copied().collect();
        let dropped = shared.truth.only_at(before, &others);
        if may_discard {
            for number in dropped {
                shared.lost.insert(number, "an operator discarded it");
            }
        } else if !dropped.is_empty() {
            let text = format!(
                "its disk gives up {before:?} for {place:?}, and nobody else has requests {dropped:?}"
            );
            shared.fail(host, &text);
        }
    }

    /// A step of the log-writer thread.
    pub(super) fn write_log(&mut self, shared: &mut Shared) {
        let (host, engine, now) = (
            self.host,
            self.replica.node.engine(),
            shared.timeline.instant(),
        );
        let Some(storing) = self.storing.as_mut().filter(|storing| !storing.is_over) else {
            return;
        };
        let turn = storing.turn;
        match storing.write(engine, now) {
            Ok(Next::Again) => {
                let delay = shared.disks.random.below(turn);
                self.wake_at(Wake::Write, shared.timeline.now() + delay, shared);
            }
            Ok(Next::Wait(until)) => {
                let until = shared.timeline.micros_of(until);
                self.wake_at(Wake::Write, until, shared);
            }
            Ok(Next::Ended) => {
                storing.is_over = true;
                storing.copying = None;
                shared.note(host, || "has written all of its log".to_owned());
            }
            Err(error) => return self.fail_disk(&error, shared),
        }
        self.note_written(shared);
    }

    /// Notes what the node says that its disk has.
    fn note_written(&mut self, shared: &mut Shared) {
        let node = self.replica.node;
        let Some(log) = node.engine().log() else {
            return;
        };
        let index = |mark| log.watermarks().index(mark).filter(|index| *index > 0);
        // Until the data set is on the disk, the one before is.
        let Some(written) = index(Mark::Written) else {
            return;
        };
        let written = place_of(node, written);
        let durable = index(Mark::Durable).and_then(|index| place_of(node, index));
        if let Some(machine) = shared.disks.of(self.host) {
            (machine.written, machine.durable) = (written, durable);
        }
        self.move_disk(written, shared);
    }

    /// A step of the snapshot thread.
    pub(super) fn copy_dataset(&mut self, shared: &mut Shared) {
        let engine = self.replica.node.engine();
        let salt = shared.disks.random.next();
        let Some(storing) = self.storing.as_mut().filter(|storing| !storing.is_over) else {
            return;
        };
        let turn = storing.turn;
        match storing.copy(engine, salt) {
            Ok(None) => {
                if let Snapshots::Done(..) = storing.exchange.snapshot() {
                    shared.count(SNAPSHOTS);
                    let done = storing.exchange.snapshot();
                    shared.note(self.host, || format!("has a snapshot: {done:?}"));
                }
            }
            Ok(Some(wait)) => {
                let delay = wait + shared.disks.random.below(turn);
                self.wake_at(Wake::Snapshot, shared.timeline.now() + delay, shared);
            }
            Err(error) => {
                storing.copying = None;
                storing.has_failed = true;
                shared.note(self.host, || format!("has no new snapshot: {error}"));
                self.die_of_disk(shared);
                self.wake_at(Wake::Snapshot, shared.timeline.now() + RETRY_PAUSE, shared);
            }
        }
    }

    /// The log cannot be written any more: the node ends.
    fn fail_disk(&mut self, error: &StorageError, shared: &mut Shared) {
        shared.note(self.host, || format!("ends: {error}"));
        if let Some(storing) = &mut self.storing {
            storing.is_over = true;
            storing.copying = None;
        }
        if self.die_of_disk(shared) {
            return;
        }
        shared.count("nodes that ended since their disk failed");
        self.node().give_up_positions();
        self.stop(shared);
    }

    /// Where the call that failed was the end of the process, or of the power, it dies.
    fn die_of_disk(&mut self, shared: &mut Shared) -> bool {
        let machine = shared.disks.machines[self.host].as_ref();
        let dies = machine.and_then(|machine| machine.dies);
        if let (Some(is_power), Some(storing)) = (dies, &mut self.storing) {
            storing.died = Some(is_power);
            storing.is_over = true;
        }
        dies.is_some()
    }

    /// Has the threads of the disk go on, where there is something for them.
    pub(super) fn wake_disk(&mut self, shared: &mut Shared) {
        let now = shared.timeline.now();
        let Some(storing) = self.storing.as_ref().filter(|storing| !storing.is_over) else {
            return;
        };
        let (turn, engine) = (storing.turn, self.replica.node.engine());
        let wants_snapshot =
            storing.copying.is_none() && storing.exchange.snapshot() == Snapshots::Wanted;
        let news = [
            (Wake::Write, storing.has_news(engine)),
            (Wake::Snapshot, wants_snapshot),
        ];
        for (wake, has_news) in news {
            if has_news && self.due.get(&wake).is_none_or(|due| *due > now + turn) {
                let delay = shared.disks.random.below(turn);
                self.wake_at(wake, now + delay, shared);
            }
        }
    }

    /// Notes that answers of a leader have left: its disk has what they are about.
    pub(super) fn note_answered(
        &mut self,
        released: &[(usize, Status)],
        answers: &mut std::collections::BTreeMap<usize, Place>,
        shared: &mut Shared,
    ) {
        for (at, status) in released {
            let Some(place) = answers.remove(at) else {
                continue;
            };
            let is_told = matches!(
                status,
                Status::Ok | Status::NotFound | Status::Conflict | Status::Error | Status::Full
            );
            let Shared { disks, truth, .. } = &mut *shared;
            if let (true, Some(machine)) = (is_told, disks.of(self.host))
                && !(machine.answered).is_some_and(|answered| truth.holds(answered, place))
            {
                machine.answered = Some(place);
            }
        }
    }

    /// The process ends, or the power of its machine: what was in memory is gone. Its disk has the rest.
    pub(super) fn end_disk(&mut self, is_power: bool, shared: &mut Shared) {
        let (host, node) = (self.host, self.replica.node);
        let has_written = node
            .engine()
            .log()
            .and_then(|log| log.watermarks().index(Mark::Written));
        let replacing = match has_written {
            Some(0) => place_of(node, node.last_index()),
            Some(_) | None => None,
        };
        let Shared { disks, .. } = &mut *shared;
        let Some(machine) = disks.machines.get_mut(host).and_then(Option::as_mut) else {
            return;
        };
        let has = machine.end(is_power, replacing, &mut disks.random);
        match has {
            Some(has) => shared.places.insert(key_of(host), has),
            None => shared.places.remove(&key_of(host)),
        };
    }
}
