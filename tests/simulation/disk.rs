//! The turns of the threads that write the disk of a node, as events, and the checks of what they have written.

use std::collections::BTreeMap;

use super::checks::place_of;
use super::events::{MS, Micros, SECOND};
use super::machines::key_of;
use super::process::{Process, Wake};
use super::shared::Shared;
use super::truth::Place;
use crate::log::Mark;
use crate::persistence::{self, Next, Snapshots};
use crate::storage::error::StorageError;
use crate::wire::Status;

/// Pause after a failed snapshot, as in the server.
const RETRY_PAUSE: Micros = SECOND;

/// Longest time between a sync and its news.
const SYNC_MAX: Micros = 20 * MS;

/// Counters of disks.
pub(super) const RECOVERIES: &str = "recoveries";
pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const LAST_SNAPSHOTS: &str = "snapshots behind the end of the log";
pub(super) const DATA_SETS_REPLACED: &str = "data sets replaced on a disk";

impl Process<'_> {
    /// Goes on writing behind the recovered data set, where the directory was read into the engine.
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

    /// Checks the data set that a node has recovered at its start.
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

    /// Notes that the disk holds the data set up to a position from now on.
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
        let Shared { disks, truth, .. } = &mut *shared;
        let Some(machine) = disks.of(host) else {
            return;
        };
        let is_kept = |answered: &Place| place.is_some_and(|it| truth.holds(it, *answered));
        machine.answered = machine.answered.filter(is_kept);
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
            // All that was written before it is durable, and nothing else; that is known later.
            Ok(Next::Sync(sync)) => match sync.run() {
                Ok(done) => {
                    storing.synced = Some(done);
                    let [again, synced] =
                        [turn, SYNC_MAX].map(|max| shared.disks.random.below(max));
                    let now = shared.timeline.now();
                    self.wake_at(Wake::Write, now + again, shared);
                    self.wake_at(Wake::Sync, now + synced, shared);
                }
                Err(error) => return self.fail_disk(&error, shared),
            },
            Ok(Next::Wait(until)) => {
                let until = shared.timeline.micros_of(until);
                self.wake_at(Wake::Write, until, shared);
            }
            // The last snapshot is under way: this step is repeated, since a log that has ended is news.
            Ok(Next::Ended) if !storing.exchange.is_over() => {}
            Ok(Next::Ended) => {
                storing.is_over = true;
                shared.note(host, || "has written all of its log".to_owned());
            }
            Err(error) => return self.fail_disk(&error, shared),
        }
        self.note_written(shared);
    }

    /// The sync thread has made a sync.
    pub(super) fn note_sync(&mut self, shared: &mut Shared) {
        let Some(storing) = self.storing.as_mut().filter(|storing| !storing.is_over) else {
            return;
        };
        if let (Some(done), Some(writing)) = (storing.synced.take(), &mut storing.writing) {
            writing.synced(done);
            let turn = storing.turn;
            let delay = shared.disks.random.below(turn);
            self.wake_at(Wake::Write, shared.timeline.now() + delay, shared);
        }
        self.note_written(shared);
    }

    /// Notes the positions up to which the data set is written and durable, as the node states them.
    fn note_written(&mut self, shared: &mut Shared) {
        let node = self.replica.node;
        let Some(log) = node.engine().log() else {
            return;
        };
        let index = |mark| log.watermarks().index(mark).filter(|index| *index > 0);
        // Until the data set is on the disk, the disk has the previous one.
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
                    if storing.exchange.has_ended() {
                        shared.count(LAST_SNAPSHOTS);
                    }
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
                if storing.exchange.has_ended() {
                    storing.exchange.give_up_snapshot();
                } else {
                    storing.has_failed = true;
                }
                shared.note(self.host, || format!("has no new snapshot: {error}"));
                self.die_of_disk(shared);
                self.wake_at(Wake::Snapshot, shared.timeline.now() + RETRY_PAUSE, shared);
            }
        }
    }

    /// Ends a node that cannot write its log.
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

    /// Ends the process at once if the failed call stands for its end or for a power failure. Returns whether it does.
    fn die_of_disk(&mut self, shared: &mut Shared) -> bool {
        let machine = shared.disks.machines[self.host].as_ref();
        let dies = machine.and_then(|machine| machine.dies);
        if let (Some(is_power), Some(storing)) = (dies, &mut self.storing) {
            storing.died = Some(is_power);
            storing.is_over = true;
        }
        dies.is_some()
    }

    /// Wakes the threads of the disk that have work.
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

    /// Notes the positions of answers that a leader has sent, and checks that its disk has them.
    pub(super) fn note_answered(
        &mut self,
        released: &[(usize, Status)],
        answers: &mut BTreeMap<usize, Place>,
        shared: &mut Shared,
    ) {
        let node = self.replica.node;
        for (at, status) in released {
            let Some(place) = answers.remove(at) else {
                continue;
            };
            let is_told = matches!(
                status,
                Status::Ok | Status::NotFound | Status::Conflict | Status::Error | Status::Full
            );
            let Shared { disks, truth, .. } = &mut *shared;
            let Some(machine) = disks.of(self.host).filter(|_| is_told) else {
                continue;
            };
            if !(machine.answered).is_some_and(|answered| truth.holds(answered, place)) {
                machine.answered = Some(place);
            }
            let mark = persistence::acknowledged_at(machine.plan.config.sync);
            let has = (node.engine().log())
                .and_then(|log| log.watermarks().index(mark))
                .and_then(|index| place_of(node, index));
            if node.leads() && !has.is_some_and(|has| truth.holds(has, place)) {
                let text = format!("it answers about {place:?}, and its disk has {has:?}");
                shared.fail(self.host, &text);
            }
        }
    }

    /// Ends the process, or the power of its machine. Only the disk keeps its data.
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
