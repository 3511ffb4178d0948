//! A node that asks a peer for STATUS, at every heartbeat or in a hurry.

use std::time::{Duration, Instant};

use super::Event;
use super::events::{Micros, Timeline};
use super::network::{End, Network, Signal};
use crate::config::NodeConfig;
use crate::node::Member;
use crate::replication::core::report::{Contact, Expected};
use crate::wire::response::{self, Parsed};
use crate::wire::{Request, Status};

/// An exchange of STATUS on a connection.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    received: Vec<u8>,
}

impl Exchange {
    /// Asks.
    pub(super) fn begin(
        end: End,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
    ) -> Exchange {
        let mut request = Vec::new();
        Request::Status
            .encode(&mut request)
            .expect("it has no fields");
        network.write(end, &request, timeline);
        Exchange::default()
    }

    /// Takes what has arrived. Returns the result once there is one.
    pub(super) fn receive(
        &mut self,
        expected: Expected<'_>,
        addr: &str,
        end: End,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
    ) -> Option<Contact> {
        network.read(end, usize::MAX, &mut self.received, timeline);
        match response::parse(&self.received) {
            Ok(Parsed::Whole(answer)) if answer.status == Status::Ok.byte() => {
                Some(expected.judge(addr, &String::from_utf8_lossy(answer.value)))
            }
            Ok(Parsed::Whole(answer)) => {
                let text = String::from_utf8_lossy(answer.value);
                Some(Contact::Unclear(format!(
                    "{addr} answers {}: {text}",
                    answer.status
                )))
            }
            Ok(Parsed::Incomplete { .. }) if network.is_at_end(end) => {
                Some(self.lost("end of file"))
            }
            Ok(Parsed::Incomplete { .. }) => None,
            Err(error) => Some(Contact::Unclear(error.to_string())),
        }
    }

    /// The result where the connection ends, or the time is over.
    pub(super) fn lost(&self, how: &str) -> Contact {
        if self.received.is_empty() {
            Contact::Silent(how.to_owned())
        } else {
            Contact::Unclear(format!("the answer is cut off: {how}"))
        }
    }
}

/// The questions to one peer.
pub(super) struct Asking<'a> {
    pub(super) peer: &'a NodeConfig,
    from: usize,
    to: usize,
    /// The connection is kept between questions.
    pub(super) end: Option<End>,
    is_connected: bool,
    question: Option<Question>,
    /// When the last question ended.
    ended: Option<Micros>,
}

#[derive(Debug)]
struct Question {
    began: Instant,
    deadline: Micros,
    exchange: Option<Exchange>,
    /// It is asked on a connection that may have ended since the last one.
    is_on_old: bool,
}

/// The next step for the questions to a peer.
#[derive(Debug)]
pub(super) enum Asked {
    /// Nothing before this time.
    Wait(Micros),
    /// A question has ended: its result, and when it began.
    Ended(Contact, Instant),
}

impl<'a> Asking<'a> {
    pub(super) const fn new(peer: &'a NodeConfig, from: usize, to: usize) -> Asking<'a> {
        Asking {
            peer,
            from,
            to,
            end: None,
            is_connected: false,
            question: None,
            ended: None,
        }
    }

    /// When the next question is to begin, with this pause after the last one; `None` while one is open.
    pub(super) fn due(&self, pause: Duration) -> Option<Micros> {
        let pause = Micros::try_from(pause.as_micros()).unwrap_or(Micros::MAX);
        let due = self.ended.map_or(0, |ended| ended + pause);
        self.question.is_none().then_some(due)
    }

    /// Begins a question, which is to end by a time.
    pub(super) fn begin(
        &mut self,
        deadline: Micros,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
    ) {
        let mut question = Question {
            began: timeline.instant(),
            deadline,
            exchange: None,
            is_on_old: false,
        };
        match self.end {
            Some(end) if !network.is_at_end(end) => {
                question.exchange = Some(Exchange::begin(end, network, timeline));
                question.is_on_old = true;
            }
            Some(_) | None => self.connect(network, timeline),
        }
        self.question = Some(question);
    }

    fn connect(&mut self, network: &mut Network, timeline: &mut Timeline<Event>) {
        self.close(network, timeline);
        self.end = Some(network.connect(self.from, self.to, timeline));
    }

    /// Gives the connection up.
    pub(super) fn close(&mut self, network: &mut Network, timeline: &mut Timeline<Event>) {
        self.is_connected = false;
        if let Some(end) = self.end.take() {
            network.close(end, timeline);
        }
    }

    /// Goes on after a signal of the connection, or at a time.
    pub(super) fn step(
        &mut self,
        signal: Option<Signal>,
        member: &Member,
        network: &mut Network,
        timeline: &mut Timeline<Event>,
    ) -> Option<Asked> {
        let (peer, end) = (self.peer, self.end?);
        let Some(question) = &mut self.question else {
            // A connection between questions has ended.
            self.close(network, timeline);
            return None;
        };
        let expected = Expected {
            cluster: &member.cluster,
            own: &member.name,
            peer: &peer.name,
        };
        let contact = match (signal, &mut question.exchange) {
            (Some(Signal::Connected), _) => {
                self.is_connected = true;
                question.exchange = Some(Exchange::begin(end, network, timeline));
                None
            }
            (Some(Signal::Refused), _) => Some(Contact::NoProcess),
            (Some(Signal::Reset), Some(exchange)) => Some(exchange.lost("connection reset")),
            (Some(Signal::Readable), Some(exchange)) => {
                exchange.receive(expected, &peer.addr, end, network, timeline)
            }
            _ => None,
        };
        let is_late = timeline.now() >= question.deadline;
        let contact = match (contact, &question.exchange) {
            // The connection had ended before.
            (Some(Contact::Silent(_)), _) if question.is_on_old && !is_late => {
                question.is_on_old = false;
                question.exchange = None;
                self.connect(network, timeline);
                return None;
            }
            (Some(contact), _) => contact,
            (None, Some(exchange)) if is_late => exchange.lost("timed out"),
            (None, None) if is_late => Contact::Silent("timed out".to_owned()),
            (None, _) => return Some(Asked::Wait(question.deadline)),
        };
        let began = question.began;
        self.question = None;
        self.ended = Some(timeline.now());
        if !matches!(contact, Contact::Report(_) | Contact::Stranger(_)) {
            self.close(network, timeline);
        }
        Some(Asked::Ended(contact, began))
    }
}
