//! The checks of a node after each event.

use super::network::End;
use super::process::Process;
use super::reference::Item;
use super::shared::Shared;
use super::trace::line_of;
use super::truth::{Place, Truth, Violation};
use crate::engine::PartitionCopy;
use crate::history::History;
use crate::log::Mark;
use crate::node::{Node, Reply, RoleState};
use crate::wire::request::{self, Limits, Parsed};
use crate::wire::{Request, Status};

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
            shared.disks.may_discard(self.host);
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
            for frame in copy.frames() {
                count += 1;
                if self.model.item(frame.key()) != Some(&Item::of(&frame)) {
                    let entry = line_of(frame.bytes());
                    return Err(format!("the store has {entry} at {place:?}"));
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

    pub(super) fn observe(&mut self, shared: &mut Shared) {
        let node = self.node();
        let (generation, head) = (node.dataset_generation(), node.head());
        let last_index = node.last_index();
        if let Some(end) = self.stream_end() {
            shared.logged.insert(end, last_index);
        }
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
            // The entries before the point where the two logs part are kept.
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
        if place.is_none() && self.is_known_limit(before, shared) {
            shared.count("known limit: a leader died while a follower took its snapshot");
            for number in dropped {
                shared.lost.insert(
                    number,
                    "its leader died while the last follower took a snapshot",
                );
            }
            return Ok(());
        }
        Err(format!(
            "it gives up {before:?} for {place:?}, and nobody else has requests {dropped:?}"
        ))
    }

    /// Whether the node has given up its data for a snapshot whose sender had them, and has crashed since. That is a
    /// known limit (docs/operating.md, "Data lost by failures").
    fn is_known_limit(&self, before: Place, shared: &Shared) -> bool {
        let sender = self
            .copies_from
            .and_then(|sender| shared.crashed.get(&sender));
        let Some(sender) = sender else {
            return false;
        };
        let others = shared.places.values().chain([sender]);
        let others: Vec<Place> = others.copied().collect();
        shared.truth.only_at(before, &others).is_empty()
    }

    /// Checks that what a client was told to be done is committed.
    pub(super) fn check_released(
        &mut self,
        end: End,
        released: &[(usize, Status)],
        shared: &mut Shared,
    ) {
        let node = self.node();
        let place = place_of(node, node.last_index());
        for (at, status) in released {
            let number = shared.load.number_of(end, *at);
            let Some(record) = number.and_then(|number| shared.truth.place_of_request(number))
            else {
                continue;
            };
            let is_held = place.is_some_and(|place| shared.truth.holds(place, record));
            if *status == Status::Ok && !(is_held && record.index <= self.committed) {
                let (number, committed) = (number.unwrap_or(0), self.committed);
                let text = format!(
                    "#{number} is answered by OK, and {record:?} is not committed: {committed} of {place:?} is"
                );
                shared.fail(self.host, &text);
            }
        }
    }

    /// Moves the watermark of a leader to what most nodes have, of its own epoch.
    pub(super) fn commit(&mut self, shared: &mut Shared) {
        let RoleState::Leader { epoch } = self.node().role() else {
            return;
        };
        if self.leads_in != epoch {
            (self.leads_in, self.committed) = (epoch, 0);
        }
        let (peers, log) = (self.replica.peers, self.node().engine().log());
        let acknowledged = self
            .member
            .peers
            .iter()
            .map(|peer| peers.acknowledged_by(&peer.name));
        let mut indexes: Vec<u64> = acknowledged.map(Option::unwrap_or_default).collect();
        indexes.push(self.node().last_index());
        indexes.sort_unstable();
        let committed = indexes[(indexes.len() - 1) / 2];
        let start = self
            .node()
            .history()
            .last()
            .map_or(0, |start| start.start_index);
        if committed >= start && committed > self.committed {
            self.committed = committed;
            shared.note(self.host, || format!("has committed {committed}"));
            if let Some(log) = log {
                log.watermarks().advance(Mark::Committed, committed);
            }
        }
    }
}

/// The position of a node at an index.
pub(super) fn place_of(node: &Node, index: u64) -> Option<Place> {
    Truth::place_of(&node.history(), index)
}
