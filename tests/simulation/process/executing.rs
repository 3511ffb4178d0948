//! The requests that a process executes, the expired entries that it removes, and the checks of both.

use std::collections::BTreeMap;

use super::super::checks::place_of;
use super::super::events::Micros;
use super::super::network::{End, Signal};
use super::super::session::Answered;
use super::super::shared::Shared;
use super::super::truth::{Executing, Limit, Place};
use super::{EVICTED, EXPIRED, EXPIRY_PAUSE, MET_EXPIRED, Process, Wake};
use crate::engine::Engine;
use crate::log::Space;
use crate::node::Node;
use crate::wire::batch::Batch;
use crate::wire::{Opcode, RequestFrame, Status};

/// The checks of a connection's answers while it is served.
struct Judge<'m> {
    by: Executing<'m>,
    node: &'m Node,
    host: usize,
    end: End,
    /// The disk has to have what the answers are about.
    keeps_answers: bool,
    /// The position that each answer is about.
    answers: BTreeMap<usize, Place>,
}

impl Judge<'_> {
    /// Checks an answer.
    fn answered(&mut self, answered: &Answered<'_>, shared: &mut Shared) {
        let (at, frame, status) = (answered.at, &answered.frame, answered.status);
        let by = &mut self.by;
        let request = shared.load.number_of(self.end, at);
        by.written.gather();
        let item = by.model.item(frame.key());
        if item.is_some_and(|item| item.has_expired(by.now)) {
            shared.count(if self.node.takes_writes() {
                MET_EXPIRED[0]
            } else {
                MET_EXPIRED[1]
            });
        }
        shared.count(status.name());
        if is_refused_for_space(self.node, frame) {
            let is_executed = matches!(
                status,
                Status::Ok | Status::NotFound | Status::Conflict | Status::Error
            );
            if is_executed {
                let (name, status) = (frame.opcode().name(), status.name());
                let text = format!("{name} is answered by {status}, and its disk is full");
                shared.fail(self.host, &text);
            }
            // Of FULL as of a refusal, nothing was executed: its record would be found behind it.
            return;
        }
        let result = (shared.truth).executed(by, request, frame, (status, answered.value));
        if let Err(text) = result {
            shared.fail(self.host, &text);
        }
        if !self.keeps_answers || status == Status::Full {
            return;
        }
        let written = request.and_then(|number| shared.truth.place_of_request(number));
        // Without a record, the answer shows the last changes of the keys.
        let about = written.or_else(|| {
            let changes = requests_of(frame).into_iter().filter_map(|frame| {
                let place = by.model.place()?;
                shared.truth.last_change(place, frame.key())
            });
            changes.max_by_key(|place| place.index)
        });
        if let Some(place) = about {
            self.answers.insert(at, place);
        }
    }
}

/// The requests about a key that a request consists of: those of a BATCH, or itself.
fn requests_of<'f>(frame: &RequestFrame<'f>) -> Vec<RequestFrame<'f>> {
    let batch = (frame.opcode() == Opcode::Batch).then(|| Batch::decode(frame.value()));
    match batch {
        Some(Ok(batch)) => batch.frames().to_vec(),
        Some(Err(_)) | None => vec![*frame],
    }
}

/// Whether a leader refuses a request before it is executed, since its disk is full (GBP §7).
fn is_refused_for_space(node: &Node, frame: &RequestFrame<'_>) -> bool {
    let space = node.engine().log().map(|log| log.space().0);
    let requests = requests_of(frame);
    let opcodes = requests.iter().map(RequestFrame::opcode);
    let mut writes = opcodes.filter(|opcode| opcode.spec().writes);
    match space {
        None | Some(Space::Enough) => false,
        Some(Space::Reserve) => writes.any(|opcode| !matches!(opcode, Opcode::Del | Opcode::Take)),
        Some(Space::UsedUp) => writes.next().is_some(),
    }
}

impl Process<'_> {
    /// Goes on with a connection that was accepted.
    pub(in super::super) fn serve(
        &mut self,
        end: End,
        signal: Option<Signal>,
        shared: &mut Shared,
    ) {
        // It may have begun to lead since the last event.
        self.observe(shared);
        let now = self.clock_now(shared);
        let Some(connection) = self.connections.get_mut(&end) else {
            return;
        };
        let (node, host) = (self.replica.node, self.host);
        if !connection.is_peer && !connection.is_stream() {
            let place = place_of(node, node.head().index);
            if let Err(text) = shared.truth.advance(&mut self.model, place) {
                shared.fail(host, &text);
            }
        }
        let evicted = node.engine().evicted_and_refused()[0];
        let mut judge = Judge {
            by: Executing {
                process: self.number,
                model: &mut self.model,
                written: &mut self.written,
                now,
                limit: limit_of(node.engine()),
            },
            node,
            host,
            end,
            keeps_answers: self.storing.is_some() && node.leads(),
            answers: self.answers.remove(&end).unwrap_or_default(),
        };
        let wait = connection.step(signal, shared, &mut |shared, answered| {
            judge.answered(&answered, shared);
        });
        judge.by.written.gather();
        if let Err(text) = shared.truth.settled(&mut judge.by) {
            shared.fail(host, &text);
        }
        for _ in evicted..node.engine().evicted_and_refused()[0] {
            shared.count(EVICTED);
        }
        let mut answers = judge.answers;
        let released = connection.take_released();
        self.note_answered(&released, &mut answers, shared);
        self.served(end, wait, answers, shared);
        if self.waits_for_commit {
            self.check_released(end, &released, shared);
        }
    }

    /// A connection was served: it goes on at `wait`, or is over. `answers` have not left yet.
    fn served(
        &mut self,
        end: End,
        wait: Option<Micros>,
        answers: BTreeMap<usize, Place>,
        shared: &mut Shared,
    ) {
        let Some(connection) = self.connections.get_mut(&end) else {
            return;
        };
        if connection.is_closed() {
            self.connections.remove(&end);
            self.due.remove(&Wake::Serve(end));
            self.due.remove(&Wake::Acks(end));
            return;
        }
        let silent_at = connection.silent_at();
        if !answers.is_empty() {
            self.answers.insert(end, answers);
        }
        if let Some(until) = wait {
            self.due.remove(&Wake::Serve(end));
            self.wake_at(Wake::Serve(end), until, shared);
        }
        if let Some(at) = silent_at {
            self.wake_at(Wake::Acks(end), at, shared);
        }
    }

    /// The turn of the expiry thread: it removes expired entries from each partition, as many as it may at a time.
    pub(super) fn expire(&mut self, shared: &mut Shared) {
        if !self.has_threads() {
            return;
        }
        // It may have begun to lead since the last event.
        self.observe(shared);
        let (host, engine, now) = (self.host, self.node().engine(), self.clock_now(shared));
        let place = place_of(self.node(), engine.head().index);
        if let Err(text) = shared.truth.advance(&mut self.model, place) {
            shared.fail(host, &text);
        }
        for partition in 0..engine.partitions() {
            // Where there is no room, it waits for it, and goes on when its turn comes.
            let removed = engine.expire(partition, None, || ());
            let Ok(expired) = removed else {
                break;
            };
            for _ in 0..expired.removed {
                shared.count(EXPIRED);
            }
        }
        self.written.gather();
        let mut by = Executing {
            process: self.number,
            model: &mut self.model,
            written: &mut self.written,
            now,
            // Only what has expired is removed.
            limit: Limit::None,
        };
        if let Err(text) = shared.truth.settled(&mut by) {
            shared.fail(host, &text);
        }
        let pause = shared.random.below(2 * EXPIRY_PAUSE);
        self.wake_at(Wake::Expire, shared.timeline.now() + pause, shared);
    }

    /// The time by the node's clock, in milliseconds since 1970, which is checked.
    pub(super) fn clock_now(&mut self, shared: &mut Shared) -> u64 {
        let clock = self.node().engine().clock();
        let now = self.clock_check.read(clock, &shared.timeline);
        now.unwrap_or_else(|text| {
            shared.fail(self.host, &text);
            0
        })
    }
}

fn limit_of(engine: &Engine) -> Limit {
    match engine.memory_limit() {
        None => Limit::None,
        Some(limit) if limit.evicts => Limit::Evicts,
        Some(_) => Limit::Refuses,
    }
}
