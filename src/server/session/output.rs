//! Answers that are not sent yet, some of which wait for a position of the log.
//!
//! Answers are sent in the order of their requests. So an answer that waits for a position also holds back those behind
//! it, whatever they wait for.

use std::collections::VecDeque;
use std::ops::Range;

use crate::engine::{Answers, DIRECT_BYTES};
use crate::log::{Position, Reached};
use crate::node::{Node, Reply};
use crate::wire::Status;
use crate::wire::response::ResponseHeader;

/// Bytes of answers from which on nothing more is executed until some are sent. It bounds the memory that answers take,
/// and the time that a client waits for the first of them.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Output {
    pub(super) answers: Answers,
    /// Bytes of them that are sent.
    sent: usize,
    /// Answers that wait, in their order. Nothing is sent from the first of them on.
    held: VecDeque<Held>,
}

/// Answers to one run that wait for a position.
struct Held {
    position: Position,
    /// Where they are in the bytes of the answers.
    range: Range<usize>,
    /// A bit for each answer, the lowest for the first: whether its request was a write.
    writes: u16,
}

impl Output {
    #[inline]
    pub(super) fn push(&mut self, reply: Reply) {
        reply.push_to(&mut self.answers);
    }

    /// Bytes of answers, up to which [`hold`](Output::hold) leaves alone what is there.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.answers.bytes().len()
    }

    /// Whether something has to be sent before more is added.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        let held = self.held.len() * size_of::<Held>();
        self.answers.apart().is_some() || self.len() + held >= OUTPUT_BYTES_MAX
    }

    /// Whether some answers wait for a position.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// The position that the first answer to be sent waits for.
    #[inline]
    pub(super) fn awaits(&self) -> Option<Position> {
        self.held.front().map(|held| held.position)
    }

    /// Has the answers behind the first `start` bytes wait for `position`, where it is not reached yet. `writes` has a
    /// bit for each, the lowest for the first: whether its request was a write.
    #[inline]
    pub(super) fn hold(&mut self, node: &Node, start: usize, position: Position, writes: u16) {
        if node.reached(position) != Reached::Yes {
            let range = start..self.len();
            self.held.push_back(Held {
                position,
                range,
                writes,
            });
        }
    }

    /// Ends the waits that are over. Answers whose position is never reached are replaced.
    #[inline]
    pub(super) fn release(&mut self, node: &Node) {
        if self.is_held() {
            self.release_held(node);
        }
    }

    fn release_held(&mut self, node: &Node) {
        while let Some(first) = self.held.front() {
            match node.reached(first.position) {
                Reached::Yes => drop(self.held.pop_front()),
                Reached::NotYet => return,
                Reached::Never => self.replace_lost(node),
            }
        }
    }

    /// Replaces the first answers that wait, and those behind them, as long as their position is never reached. The
    /// answers between them, and refusals, stay as they are.
    fn replace_lost(&mut self, node: &Node) {
        let bytes = self.answers.bytes();
        let start = self.held.front().map_or(0, |held| held.range.start);
        let (mut end, mut replaced) = (start, Answers::new());
        let is_lost = |held: &mut Held| node.reached(held.position) == Reached::Never;
        while let Some(held) = self.held.pop_front_if(is_lost) {
            replaced.push_frames(&bytes[end..held.range.start]);
            end = held.range.end;
            let mut rest = &bytes[held.range];
            for request in 0.. {
                let Some(header) = rest.first_chunk() else {
                    break;
                };
                let header = ResponseHeader::decode(*header);
                // The value of the last one may be apart.
                let (frame, behind) = rest.split_at(header.frame_len().min(rest.len()));
                rest = behind;
                if is_refusal(header.status) {
                    replaced.push_frames(frame);
                } else {
                    node.lost(held.writes >> request & 1 == 1)
                        .push_to(&mut replaced);
                }
            }
        }
        let moved = replaced.bytes().len();
        self.answers.replace(start..end, replaced.bytes());
        for held in &mut self.held {
            let shift = |at: usize| at - end + start + moved;
            held.range = shift(held.range.start)..shift(held.range.end);
        }
    }

    /// The answers that can be sent, in two parts.
    #[inline]
    pub(super) fn sendable(&self) -> [&[u8]; 2] {
        let bytes = self.answers.bytes();
        if let Some(first) = self.held.front() {
            return [&bytes[self.sent..first.range.start], &[]];
        }
        let apart = self.answers.apart().unwrap_or_default();
        match self.sent.checked_sub(bytes.len()) {
            None => [&bytes[self.sent..], apart],
            Some(of_apart) => [&apart[of_apart..], &[]],
        }
    }

    /// The first `count` bytes of that are sent. Returns whether these were all.
    #[inline]
    pub(super) fn sent(&mut self, count: usize) -> bool {
        self.sent += count;
        if self.is_held() {
            return self.consume_sent();
        }
        let apart = self.answers.apart().map_or(0, <[u8]>::len);
        let is_all = self.sent >= self.len() + apart;
        if is_all {
            self.answers.clear();
            self.sent = 0;
        }
        is_all
    }

    /// Removes what is sent in front of answers that wait, which may be for long: it does not count towards the bound.
    fn consume_sent(&mut self) -> bool {
        let sent = std::mem::take(&mut self.sent);
        self.answers.consume(sent);
        for held in &mut self.held {
            held.range = held.range.start - sent..held.range.end - sent;
        }
        self.held.front().is_none_or(|first| first.range.start == 0)
    }

    /// Answers that are made and not sent, except for a value that is apart.
    #[cfg(test)]
    pub(super) fn made(&self) -> &[u8] {
        let bytes = self.answers.bytes();
        &bytes[self.sent.min(bytes.len())..]
    }

    /// Whether more memory is held than for short answers.
    pub(super) fn is_grown(&self) -> bool {
        self.answers.capacity() + self.held.capacity() * size_of::<Held>() > DIRECT_BYTES
    }

    /// Frees the memory, where every answer is sent.
    pub(super) fn free(&mut self) {
        self.answers.release();
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
    }
}

/// Whether a response with this status says that nothing was done, whatever becomes of the position.
const fn is_refusal(status: u8) -> bool {
    status == Status::Error.byte()
        || status == Status::NotLeader.byte()
        || status == Status::Loading.byte()
        || status == Status::Full.byte()
}
