//! A client's connection at a node: the shipped session, and what it was asked and has answered.

use std::mem::MaybeUninit;

use super::Event;
use super::events::Timeline;
use super::network::{End, Network};
use super::shared::Shared;
use crate::log::Reached;
use crate::node::{Node, Reply};
use crate::server::session::{Session, Source, Step, Thread};
use crate::wire::request::{self, Limits};
use crate::wire::response;
use crate::wire::{Opcode, RequestFrame, Status};

/// Most bytes of answers that a session holds: 64 KiB, and those to a last run or a STATUS.
const OUTPUT_BYTES_MAX: usize = (64 << 10) + (32 << 10);

/// The reason why [`Served::step`] has returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It waits for input, for room in the network, or for a position of the log.
    Waits,
    /// A FOLLOW is at the start of its input.
    Follow,
    /// The connection is over.
    Closed,
}

/// A session at its end of a connection.
pub(super) struct Served<'a> {
    pub(super) session: Session<'a>,
    node: &'a Node,
    /// It ends once everything is sent.
    is_ending: bool,
    /// It ends once everything that has arrived is answered.
    is_draining: bool,
    /// It waits for so much room in the append queue.
    awaits_room: Option<u64>,
    /// Of a client's session.
    tap: Option<Tap>,
}

/// The requests and answers of a client's session.
#[derive(Default)]
struct Tap {
    /// Requests that are not answered.
    requests: Vec<u8>,
    /// Number of requests that are answered.
    answered: usize,
    /// The beginning of an answer, the rest of which is not sent.
    begun: Vec<u8>,
    /// Number of answers that are sent.
    sent: usize,
    /// Answers that were sent since they were last taken: the place of the request, and the status.
    released: Vec<(usize, Status)>,
}

/// A request, its place on its connection, and its answer.
pub(super) struct Answered<'t> {
    pub(super) at: usize,
    pub(super) frame: RequestFrame<'t>,
    pub(super) status: Status,
    pub(super) value: &'t [u8],
}

/// Input that has arrived.
struct Arrived<'n> {
    network: &'n mut Network,
    timeline: &'n mut Timeline<Event>,
    end: End,
    bytes: Vec<u8>,
}

impl Tap {
    fn note_sent(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        while let Ok(response::Parsed::Whole(answer)) = response::parse(&self.begun) {
            let status = Status::try_from(answer.status).expect("a status");
            let len = answer.frame_len();
            self.released.push((self.sent, status));
            self.sent += 1;
            self.begun.drain(..len);
        }
    }
}

impl Arrived<'_> {
    fn take(&mut self, room: usize) -> &[u8] {
        self.network
            .read(self.end, room, &mut self.bytes, self.timeline);
        &self.bytes
    }
}

impl Source for Arrived<'_> {
    type Error = ();

    fn read(&mut self, room: &mut [u8]) -> Result<usize, ()> {
        let taken = self.take(room.len());
        room[..taken.len()].copy_from_slice(taken);
        Ok(taken.len())
    }

    fn read_uninit<'r>(&mut self, room: &'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8], ()> {
        let taken = self.take(room.len());
        Ok(room[..taken.len()].write_copy_of_slice(taken))
    }
}

impl<'a> Served<'a> {
    pub(super) fn new(node: &'a Node, limits: Limits, is_client: bool) -> Served<'a> {
        Served {
            session: Session::new(node, limits, &[], false),
            node,
            is_ending: false,
            is_draining: false,
            awaits_room: None,
            tap: is_client.then(Tap::default),
        }
    }

    /// Executes what has arrived and sends what can be sent. `judge` is told each answer to a client before anything
    /// else happens at the node.
    pub(super) fn step(
        &mut self,
        end: End,
        shared: &mut Shared,
        judge: &mut dyn FnMut(&mut Shared, Answered<'_>),
    ) -> Turn {
        loop {
            if self.is_ending {
                if self.is_sent(end, shared) {
                    shared.network.close(end, &mut shared.timeline);
                    return Turn::Closed;
                }
                return Turn::Waits;
            }
            if let Some(cost) = self.awaits_room {
                let Some(room) = self.node.engine().try_room(cost) else {
                    self.flush(end, &mut shared.network, &mut shared.timeline);
                    return Turn::Waits;
                };
                self.session.give_room(Some(room));
                self.awaits_room = None;
            }
            let step = self.session.step(Thread::Polling);
            self.tell(shared, judge);
            let Shared {
                network, timeline, ..
            } = &mut *shared;
            match step {
                Step::Read => {
                    if !self.read(end, network, timeline) {
                        return Turn::Waits;
                    }
                }
                Step::Send => {
                    if self.flush(end, network, timeline) == 0 {
                        return Turn::Waits;
                    }
                }
                Step::Await => {
                    self.session.release_answers();
                    if self.flush(end, network, timeline) == 0 {
                        return Turn::Waits;
                    }
                }
                Step::Own if self.asks_status() => {
                    let text = self.node.status(timeline.instant());
                    self.session.answer(Reply::Text(text));
                }
                Step::Own => {
                    let step = self.session.step(Thread::Own);
                    self.tell(shared, judge);
                    match step {
                        Step::Stream => return Turn::Follow,
                        Step::Room(cost) => self.awaits_room = Some(cost),
                        Step::Read | Step::Send | Step::Await | Step::Own => {}
                        Step::LeaveReserve | Step::Refuse(_) => unreachable!("as on any thread"),
                        Step::Sync(..) => unreachable!("no load sends a SYNC that waits"),
                    }
                }
                Step::Refuse(error) => {
                    self.session.refuse(error.to_string());
                    self.is_ending = true;
                }
                Step::Room(_) | Step::Sync(..) | Step::Stream | Step::LeaveReserve => {
                    unreachable!("not on a polling thread, and in no reserve")
                }
            }
        }
    }

    /// Reads what has arrived. Returns whether the session goes on: there was something, or the session is to end.
    fn read(&mut self, end: End, network: &mut Network, timeline: &mut Timeline<Event>) -> bool {
        if network.readable(end) > 0 {
            let mut source = Arrived {
                network,
                timeline,
                end,
                bytes: Vec::new(),
            };
            let _ = self.session.read(&mut source);
            if let Some(tap) = &mut self.tap {
                tap.requests.extend(source.bytes);
            }
            return true;
        }
        self.flush(end, network, timeline);
        self.is_ending = self.is_draining || network.is_at_end(end);
        self.is_ending
    }

    /// Tells the answers that have come up.
    fn tell(&mut self, shared: &mut Shared, judge: &mut dyn FnMut(&mut Shared, Answered<'_>)) {
        let Some(tap) = &mut self.tap else {
            return;
        };
        let output = [&tap.begun, self.session.made()].concat();
        let mut rest = &output[..];
        let any = Limits {
            value_len_max: u32::MAX,
        };
        let mut at = tap.sent;
        while let Ok(response::Parsed::Whole(answer)) = response::parse(rest) {
            rest = &rest[answer.frame_len()..];
            at += 1;
            if at <= tap.answered {
                continue;
            }
            let Ok(request::Parsed::Whole(frame)) = request::parse(&tap.requests, &any) else {
                unreachable!("an answer to no request");
            };
            let len = frame.bytes().len();
            let answered = Answered {
                at: tap.answered,
                frame,
                status: Status::try_from(answer.status).expect("a status"),
                value: answer.value,
            };
            judge(shared, answered);
            tap.requests.drain(..len);
            tap.answered += 1;
        }
    }

    /// Has it end once everything that has arrived is answered.
    pub(super) const fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Whether it may go on, though nothing was signalled: it waits for room in the append queue, or for a position
    /// that is reached or never will be.
    pub(super) fn may_go_on(&self) -> bool {
        let is_released = |position| self.node.reached(position) != Reached::NotYet;
        self.awaits_room.is_some() || self.session.awaits().is_some_and(is_released)
    }

    /// Takes the answers that were sent since the last call: the place of each request, and the status.
    pub(super) fn take_released(&mut self) -> Vec<(usize, Status)> {
        let tap = self.tap.as_mut();
        tap.map(|tap| std::mem::take(&mut tap.released))
            .unwrap_or_default()
    }

    /// Sends answers that can be sent. Returns whether all are sent.
    pub(super) fn is_sent(&mut self, end: End, shared: &mut Shared) -> bool {
        self.flush(end, &mut shared.network, &mut shared.timeline);
        self.session.output() == [b"", b""] && !self.session.is_held()
    }

    fn asks_status(&self) -> bool {
        let frame = self.session.frame();
        frame.is_some_and(|frame| frame.opcode() == Opcode::Status)
    }

    /// Sends what can be sent; returns how many bytes.
    fn flush(&mut self, end: End, network: &mut Network, timeline: &mut Timeline<Event>) -> usize {
        self.session.release_answers();
        let mut sum = 0;
        for _ in 0..2 {
            let [first, second] = self.session.output();
            let mut count = network.write(end, first, timeline);
            if count == first.len() {
                count += network.write(end, second, timeline);
            }
            sum += count;
            if let Some(tap) = &mut self.tap {
                tap.note_sent(&[first, second].concat()[..count]);
            }
            self.session.sent(count);
        }
        let len: usize = self.session.output().iter().map(|part| part.len()).sum();
        assert!(len <= OUTPUT_BYTES_MAX, "{len} bytes of answers wait");
        sum
    }
}
