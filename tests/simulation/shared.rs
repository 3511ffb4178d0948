//! Everything in a run beside its processes.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::Event;
use super::events::Timeline;
use super::load::{ClientEvent, Load, Number, Shape};
use super::machines::Disks;
use super::network::{End, Link, Network, Signal};
use super::random::Random;
use super::trace::{Mode, Trace, line_of};
use super::truth::{Place, Truth, Violation};
use crate::log::tap;
use crate::replication::stream::link::{Link as StreamLink, StreamEnd};

/// Everything in a run beside the processes.
pub(super) struct Shared {
    pub(super) network: Network,
    pub(super) timeline: Timeline<Event>,
    pub(super) random: Random,
    pub(super) trace: Trace,
    pub(super) truth: Truth,
    pub(super) load: Load,
    pub(super) nodes: usize,
    pub(super) disks: Disks,
    /// Answers of nodes wait until most nodes have what they are about.
    pub(super) waits_for_commit: bool,
    /// The position of the log of each process that runs, and of the data set on each disk.
    pub(super) places: BTreeMap<usize, Place>,
    /// The process that was last started on each host.
    pub(super) running: BTreeMap<usize, usize>,
    /// The last position of the log of each process that crashed.
    pub(super) crashed: BTreeMap<usize, Place>,
    /// The last index of the log of each node that follows, by its end of the stream.
    pub(super) logged: BTreeMap<End, u64>,
    /// Requests whose records are on no node any more, and why.
    pub(super) lost: BTreeMap<Number, &'static str>,
    /// How often something happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The first violation.
    pub(super) violation: Option<Violation>,
}

impl Shared {
    /// A run of so many nodes in which nothing has happened.
    pub(super) fn new(
        nodes: usize,
        link: Link,
        pipe_bytes: usize,
        shape: Shape,
        mode: Mode,
        random: &mut Random,
    ) -> Shared {
        tap::keep();
        let mut timeline = Timeline::new();
        // Clients are at the last host.
        let network = Network::new(nodes + 1, link, pipe_bytes, random.split());
        let load = Load::new(shape, nodes, nodes, random, &mut timeline);
        Shared {
            network,
            timeline,
            random: random.split(),
            trace: Trace::new(mode),
            truth: Truth::default(),
            load,
            nodes,
            disks: Disks::none(),
            waits_for_commit: false,
            places: BTreeMap::new(),
            running: BTreeMap::new(),
            crashed: BTreeMap::new(),
            logged: BTreeMap::new(),
            lost: BTreeMap::new(),
            counts: BTreeMap::new(),
            violation: None,
        }
    }

    /// Counts something that happened.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A client waits for something no longer.
    pub(super) fn client(&mut self, event: ClientEvent) {
        let Shared {
            network,
            timeline,
            trace,
            load,
            ..
        } = self;
        load.step(event, network, timeline, trace);
    }

    /// A client notices something.
    pub(super) fn client_signal(&mut self, end: End, signal: Signal) {
        let Shared {
            network,
            timeline,
            trace,
            load,
            ..
        } = self;
        load.signal(end, signal, network, timeline, trace);
    }

    /// Adds a line about a host to the trace.
    pub(super) fn note(&mut self, host: usize, line: impl FnOnce() -> String) {
        self.trace.add(self.timeline.now(), || {
            format!("n{}   {}", host + 1, line())
        });
    }

    /// Adds what a node sends to the trace.
    pub(super) fn message(&mut self, host: usize, end: End, bytes: &[u8]) {
        // Of a connection that is gone, nothing is known.
        let Some(to) = self.network.host_of_other(end) else {
            return;
        };
        self.trace.add(self.timeline.now(), || {
            format!("n{} → n{}  {}", host + 1, to + 1, line_of(bytes))
        });
    }

    /// Logs lines of a stream.
    pub(super) fn log(&mut self, lines: Vec<String>) {
        for line in lines {
            log::info!("{line}");
            self.trace
                .add(self.timeline.now(), || format!("     {line}"));
        }
    }

    /// Logs the end of a stream.
    pub(super) fn log_end(&mut self, link: &StreamLink<'_>, why: Option<&StreamEnd>) {
        let line = link.end_line(why.map(|why| why as &dyn Display));
        match why {
            None => log::info!("{line}"),
            Some(_) => log::warn!("{line}"),
        }
        self.trace
            .add(self.timeline.now(), || format!("     {line}"));
    }

    /// Notes a violation.
    pub(super) fn fail(&mut self, host: usize, what: &str) {
        self.note(host, || format!("VIOLATION: {what}"));
        self.violation
            .get_or_insert_with(|| format!("n{}: {what}", host + 1));
    }

    /// The requests whose records only a process at `place` has.
    pub(super) fn only_at(&self, number: usize, place: Place) -> Vec<Number> {
        let others = self.places.iter().filter(|(other, _)| **other != number);
        let others: Vec<Place> = others.map(|(_, place)| *place).collect();
        self.truth.only_at(place, &others)
    }
}
