//! The time of a run, and what happens when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::engine::clock::{Clock, Reading, TimeSource};

/// Microseconds since the begin of the run.
pub(super) type Micros = u64;

/// Microseconds of a millisecond.
pub(super) const MS: Micros = 1_000;

/// Microseconds of a second.
pub(super) const SECOND: Micros = 1_000_000;

/// The clock of a run, and the events that are to come, in the order of their times. Those of one time come in the
/// order in which they were added.
#[derive(Debug)]
pub(super) struct Timeline<E> {
    base: Instant,
    now: Micros,
    /// The same, for the clocks of nodes.
    shared: Arc<AtomicU64>,
    /// Milliseconds that the wall clock of each machine is ahead of the right time.
    walls: Vec<Arc<AtomicI64>>,
    /// The most of them so far.
    most_ahead: i64,
    added: u64,
    events: BinaryHeap<Entry<E>>,
}

/// The right wall clock at the begin of a run.
const WALL: u64 = 1_700_000_000_000;

/// The clocks of a simulated machine.
#[derive(Debug)]
struct SimulatedTime {
    now: Arc<AtomicU64>,
    wall: Arc<AtomicI64>,
    /// Milliseconds for which the machine runs already when the run begins.
    uptime: u64,
}

impl TimeSource for SimulatedTime {
    fn read(&self) -> Reading {
        let now = self.now.load(Relaxed) / MS;
        Reading {
            wall: (WALL + now).saturating_add_signed(self.wall.load(Relaxed)),
            monotonic: self.uptime + now,
        }
    }
}

#[derive(Debug)]
struct Entry<E> {
    at: Micros,
    /// How many were added before it.
    number: u64,
    event: E,
}

impl<E> Timeline<E> {
    /// Time 0, and nothing to come.
    pub(super) fn new() -> Timeline<E> {
        Timeline {
            // No decision depends on the instant that stands for time 0, only on differences. Instants that the shipped
            // code takes itself lie before it, and so far that STATUS has as many digits for each of them.
            base: Instant::now() + Duration::from_secs(5_000),
            now: 0,
            shared: Arc::default(),
            walls: Vec::new(),
            most_ahead: 0,
            added: 0,
            events: BinaryHeap::new(),
        }
    }

    /// The time.
    pub(super) const fn now(&self) -> Micros {
        self.now
    }

    /// The time as the shipped code has it.
    pub(super) fn instant(&self) -> Instant {
        self.instant_of(self.now)
    }

    /// A time as the shipped code has it.
    pub(super) fn instant_of(&self, at: Micros) -> Instant {
        self.base + Duration::from_micros(at)
    }

    /// A clock that goes with this time and with the wall clock of a machine.
    pub(super) fn clock(&mut self, host: usize) -> Clock {
        let wall = Arc::clone(self.wall(host));
        let hours = u64::try_from(host).unwrap_or(0) + 1;
        Clock::new(Box::new(SimulatedTime {
            now: Arc::clone(&self.shared),
            wall,
            uptime: hours * 3_600_000,
        }))
    }

    fn wall(&mut self, host: usize) -> &Arc<AtomicI64> {
        if self.walls.len() <= host {
            self.walls.resize_with(host + 1, Arc::default);
        }
        &self.walls[host]
    }

    /// Sets the wall clock of a machine forward or backward.
    pub(super) fn step_wall(&mut self, host: usize, ms: i64) {
        let wall = self.wall(host);
        let ahead = wall.load(Relaxed) + ms;
        wall.store(ahead, Relaxed);
        self.most_ahead = self.most_ahead.max(ahead);
    }

    /// Milliseconds since the begin of the run.
    pub(super) const fn ms(&self) -> u64 {
        self.now / MS
    }

    /// The latest time, in milliseconds since 1970, that any clock can have: none of a node is ahead of all machines'.
    pub(super) const fn latest_ms(&self) -> u64 {
        (WALL + self.ms()).saturating_add_signed(self.most_ahead)
    }

    /// The time of an instant; that of one in the past is now.
    pub(super) fn micros_of(&self, instant: Instant) -> Micros {
        let since = instant.saturating_duration_since(self.base).as_nanos();
        // Never before the instant.
        let since = since.div_ceil(1_000);
        u64::try_from(since).unwrap_or(u64::MAX).max(self.now)
    }

    /// Adds an event that comes at a time, or now where that is over.
    pub(super) fn at(&mut self, at: Micros, event: E) {
        self.added += 1;
        self.events.push(Entry {
            at: at.max(self.now),
            number: self.added,
            event,
        });
    }

    /// Adds an event that comes after a time.
    pub(super) fn after(&mut self, delay: Micros, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// The next event, whose time it is by then.
    pub(super) fn next(&mut self) -> Option<E> {
        let entry = self.events.pop()?;
        self.now = entry.at;
        self.shared.store(entry.at, Relaxed);
        Some(entry.event)
    }

    /// The time of the next event.
    pub(super) fn next_at(&self) -> Option<Micros> {
        self.events.peek().map(|entry| entry.at)
    }
}

// The greatest entry of a heap comes first, so the earliest entry is the greatest.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Entry<E>) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Entry<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Entry<E>) -> bool {
        self.number == other.number
    }
}

#[test]
fn events_come_in_the_order_of_their_times_and_then_as_they_were_added() {
    let mut timeline = Timeline::new();
    timeline.at(5 * MS, 'c');
    timeline.at(MS, 'a');
    timeline.at(5 * MS, 'd');
    timeline.after(2 * MS, 'b');
    let mut seen = String::new();
    while let Some(event) = timeline.next() {
        seen.push(event);
        if event == 'b' {
            // Its time is over.
            timeline.at(MS, 'x');
        }
    }
    assert_eq!(seen, "abxcd");
    assert_eq!(timeline.now(), 5 * MS);
    assert_eq!(timeline.micros_of(timeline.instant()), 5 * MS);
}
