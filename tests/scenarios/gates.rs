//! Gates: which bytes of a node's stream pass.
//!
//! A gate is at the connection on which a node asks another one for its stream. Where it is shut, what the other node
//! has sent waits in front of it, and so does the request for the stream. What a follower acknowledges always passes,
//! so no stream ends because a command of a script lets time pass. Frames pass whole.

use super::super::Event;
use super::super::events::{MS, SECOND};
use super::super::network::{End, Signal};
use super::super::shared::Shared;
use super::world::World;
use crate::node::StatusSection;
use crate::wire::replication::{self, Message};
use crate::wire::response;

/// The frames in front of the messages of a stream: the responses to STATUS and FOLLOW.
const RESPONSES: u32 = 2;

/// The gate of one node.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The node's end of the connection.
    end: Option<End>,
    /// Whether the frames of the node are held back.
    is_silent: bool,
    /// Frames that have passed.
    frames: u32,
    /// The bytes that have passed of a frame.
    begun: Vec<u8>,
    /// The next message is to pass.
    is_stepping: bool,
    /// That message, once it has passed.
    message: Option<Vec<u8>>,
}

impl World<'_> {
    /// Opens or shuts a gate.
    pub(super) fn open(&mut self, at: usize, is_open: bool) {
        self.opened[at] = is_open;
        self.keep_gates();
    }

    /// Has each gate at the node's present connection, and lets pass what may.
    pub(super) fn keep_gates(&mut self) {
        for at in 0..self.nodes.len() {
            let process = self.nodes[at].as_ref();
            let end = process.and_then(|process| process.stream_end());
            if end != self.gates[at].end {
                if let Some(old) = self.gates[at].end {
                    self.show(old, None);
                    self.show(old.other(), None);
                }
                self.gates[at] = Gate {
                    end,
                    ..Gate::default()
                };
                if let Some(end) = end {
                    self.show(end, Some(0));
                }
            }
            if let Some(end) = end {
                self.keep_gate(at, end);
            }
        }
    }

    /// The gate of a node that is to lead is open: it gets its data before the script goes on. So is the gate of a node
    /// that asks such a one, which sends no stream yet.
    fn keep_gate(&mut self, at: usize, end: End) {
        let asked = self.shared.network.host_of_other(end);
        let is_stepping = self.gates[at].is_stepping;
        let has_stream = self.nodes[at]
            .as_ref()
            .is_some_and(|process| process.replica.peers.summary().has_stream);
        let is_open = self.opened[at]
            || self.is_candidate(at)
            || !has_stream && asked.is_some_and(|asked| self.is_candidate(asked));
        let is_silent = !(is_open || is_stepping || has_stream);
        if is_silent != self.gates[at].is_silent {
            self.gates[at].is_silent = is_silent;
            self.show(end.other(), is_silent.then_some(0));
        }
        if is_open || is_stepping || !self.gates[at].begun.is_empty() {
            self.pass(at, end);
        }
    }

    /// Lets more of a frame pass, once the node has read what has passed.
    fn pass(&mut self, at: usize, end: End) {
        let network = &self.shared.network;
        let arrived = network.arrived_at(end);
        if arrived.is_empty() || network.readable(end) > 0 {
            return;
        }
        let gate = &mut self.gates[at];
        let passed = gate.begun.len();
        gate.begun.extend_from_slice(arrived);
        let is_response = gate.frames < RESPONSES;
        let len = frame_len(&gate.begun, is_response);
        gate.begun.truncate(len);
        let count = gate.begun.len() - passed;
        if gate.begun.len() == len {
            let frame = std::mem::take(&mut gate.begun);
            gate.frames += 1;
            if gate.is_stepping && !is_response {
                gate.is_stepping = false;
                gate.message = Some(frame);
            }
        }
        self.show(end, Some(count));
    }

    /// Has an end see so many bytes more.
    fn show(&mut self, end: End, seen_max: Option<usize>) {
        let network = &mut self.shared.network;
        network.limit(end, seen_max);
        if network.readable(end) > 0 {
            let host = network.host_of(end);
            let readable = Event::Signal(host, end, Signal::Readable);
            self.shared.timeline.after(0, readable);
        }
    }

    /// A node crashes: what waits in front of the gates of others is lost with it.
    pub(super) fn lose_streams_of(&mut self, other: usize) {
        for at in 0..self.nodes.len() {
            let asked = self.gates[at]
                .end
                .map(|end| self.shared.network.host_of_other(end));
            if asked == Some(Some(other)) && !self.is_empty(at) {
                self.lose_stream(at);
            }
        }
    }

    /// Loses the connection of a node's stream. Both sides learn it.
    pub(super) fn lose_stream(&mut self, at: usize) {
        if let Some(end) = self.gates[at].end {
            let Shared {
                network, timeline, ..
            } = &mut self.shared;
            network.lose(end, [true, true], timeline);
        }
    }

    /// Whether nothing waits in front of a gate.
    pub(super) fn is_empty(&self, at: usize) -> bool {
        let end = self.gates[at].end;
        end.is_none_or(|end| self.shared.network.arrived_at(end).is_empty())
    }

    /// Lets the next message of a stream pass; `None` where none comes within a second.
    pub(super) fn pass_message(&mut self, at: usize) -> Option<Vec<u8>> {
        let until = self.shared.timeline.now() + SECOND;
        while self.gates[at].message.is_none() && self.shared.timeline.now() < until {
            self.gates[at].is_stepping = true;
            self.keep_gates();
            self.run_for(MS / 10);
        }
        self.gates[at].is_stepping = false;
        self.keep_gates();
        self.gates[at].message.take()
    }

    /// Lets messages pass until there were `count` records among them.
    pub(super) fn pass_records(&mut self, at: usize, count: u32) {
        let mut left = count;
        while left > 0
            && let Some(bytes) = self.pass_message(at)
        {
            if let Ok(replication::Parsed::Whole {
                message: Message::Entries { frames, .. },
                ..
            }) = replication::parse(&bytes)
            {
                left = left.saturating_sub(frames.count());
            }
        }
    }
}

/// The length of the frame that begins so, as far as it is known.
fn frame_len(bytes: &[u8], is_response: bool) -> usize {
    if is_response {
        match response::parse(bytes).unwrap() {
            response::Parsed::Incomplete { needed } => needed,
            response::Parsed::Whole(response) => response.frame_len(),
        }
    } else {
        match replication::parse(bytes).unwrap() {
            replication::Parsed::Incomplete { needed } => needed,
            replication::Parsed::Whole { frame_len, .. } => frame_len,
        }
    }
}
