//! The end of a run: faults end, all nodes agree, and what clients were told is checked.

use super::super::events::{MS, Micros, SECOND};
use super::super::load::Outcome;
use super::super::machines;
use super::super::process::{Process, Shipped};
use super::super::shared::Shared;
use super::super::truth::Truth;
use super::{Later, Summary, World};
use crate::engine::digest::Digest;
use crate::node::RoleState;

/// Time within which the nodes agree once faults have ended.
const AGREEMENT_MAX: Micros = 120 * SECOND;

/// Time after which an operator restarts nodes that are stuck.
const PATIENCE: Micros = 15 * SECOND;

/// Time between two looks whether they do.
const LOOK: Micros = 200 * MS;

impl World<'_> {
    /// Ends the faults, where it is time, and looks whether all nodes agree.
    pub(super) fn look(&mut self) -> bool {
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
                machines::give_up(node, &mut self.shared);
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
    pub(super) fn finish(&mut self) -> Result<Summary, String> {
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
