//! The faults of a run: which kinds it has, and how often, by its seed.

use super::events::{MS, Micros, SECOND};
use super::load::Shape;
use super::network::Link;
use super::random::Random;

/// Something that is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process ends at once, and its machine says so.
    Crash,
    /// A machine goes off.
    TurnOff,
    /// A node is stopped in good order.
    Stop,
    /// The leader hands over to another node.
    Transfer,
    /// One way between two nodes is cut for some time.
    CutOneWay,
    /// Both ways between two nodes are cut for some time.
    Cut,
    /// A node is cut off from all others for some time.
    Isolate,
    /// A process ends at once, and starts while it is cut off from all others for some time.
    Restart,
    /// The leader is cut off for some time, and the initial leader starts anew. Where that leads, it hands over.
    Usurp,
    /// The leader does nothing for some time, and a follower starts anew meanwhile.
    RestartInPause,
    /// A connection between two nodes is lost.
    Lose,
    /// One end of a connection between two nodes learns that it is lost.
    HalfOpen,
    /// A link is slow for some time.
    Slow,
    /// A process does nothing for some time.
    Pause,
    /// A client's connection is lost.
    LoseClient,
    /// An operator orders a node that refuses its leader to discard its data.
    Discard,
    /// The wall clock of a machine is set forward or backward.
    ClockStep,
}

impl Fault {
    /// Its name where faults are counted.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Fault::Crash => "FAULT process crashes",
            Fault::TurnOff => "FAULT machine goes off",
            Fault::Stop => "FAULT stop",
            Fault::Transfer => "FAULT transfer",
            Fault::CutOneWay => "FAULT link cut one way",
            Fault::Cut => "FAULT link cut",
            Fault::Isolate => "FAULT node cut off",
            Fault::Restart => "FAULT node restarts cut off",
            Fault::Usurp => "FAULT leader cut off, initial leader restarts",
            Fault::RestartInPause => "FAULT leader pauses, follower restarts",
            Fault::Lose => "FAULT connection lost",
            Fault::HalfOpen => "FAULT connection half-open",
            Fault::Slow => "FAULT link slow",
            Fault::Pause => "FAULT process pauses",
            Fault::LoseClient => "FAULT client's connection lost",
            Fault::Discard => "FAULT data discarded",
            Fault::ClockStep => "FAULT wall clock set",
        }
    }
}

/// The kinds that leave every acknowledged write.
const HARMLESS: [Fault; 8] = [
    Fault::ClockStep,
    Fault::Stop,
    Fault::Transfer,
    Fault::Lose,
    Fault::HalfOpen,
    Fault::Slow,
    Fault::Pause,
    Fault::LoseClient,
];

const ALL: [Fault; 17] = [
    Fault::ClockStep,
    Fault::Crash,
    Fault::TurnOff,
    Fault::Stop,
    Fault::Transfer,
    Fault::CutOneWay,
    Fault::Cut,
    Fault::Isolate,
    Fault::Restart,
    Fault::Usurp,
    Fault::RestartInPause,
    Fault::Lose,
    Fault::HalfOpen,
    Fault::Slow,
    Fault::Pause,
    Fault::LoseClient,
    Fault::Discard,
];

/// Kinds that meet more often than in runs with all of them.
const THEMES: [&[Fault]; 4] = [
    // Two nodes lead.
    &[Fault::Usurp, Fault::Usurp, Fault::Usurp, Fault::Discard],
    // A follower comes back before its leader has noticed that it was gone.
    &[Fault::RestartInPause, Fault::RestartInPause, Fault::Pause],
    // The last node that holds the data stops.
    &[Fault::Stop, Fault::Stop, Fault::Crash, Fault::Lose],
    // Leaders with different clocks follow each other.
    &[
        Fault::ClockStep,
        Fault::ClockStep,
        Fault::Transfer,
        Fault::Crash,
    ],
];

/// The shape of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) nodes: usize,
    pub(super) load: Shape,
    pub(super) link: Link,
    /// Bytes that a connection holds.
    pub(super) pipe_bytes: usize,
    pub(super) backlog_bytes: u64,
    pub(super) partitions: usize,
    pub(super) heartbeat: Micros,
    pub(super) leader_timeout: Micros,
    /// Answers wait until most nodes have what they are about.
    pub(super) waits_for_commit: bool,
    /// Longest time until a thread has its turn; 0 where that costs no time.
    pub(super) turn: Micros,
    /// How long faults last.
    pub(super) until: Micros,
    /// Longest time between two faults.
    pub(super) pause: Micros,
    /// No acknowledged write may be lost.
    pub(super) is_harmless: bool,
    /// Milliseconds by which the wall clocks of two machines differ at most when the run begins.
    pub(super) clocks_differ: u64,
    /// The memory limit of each node in bytes, and whether entries are evicted.
    pub(super) memory: Option<(u64, bool)>,
    kinds: Vec<Fault>,
}

impl Plan {
    /// The plan of a run.
    pub(super) fn new(random: &mut Random) -> Plan {
        let is_harmless = random.happens(300);
        let from: &[Fault] = if is_harmless {
            &HARMLESS
        } else if random.happens(300) {
            random.pick(&THEMES)
        } else {
            &ALL
        };
        // A few kinds, some of them more often than others.
        let kinds = (0..random.between(1, 8))
            .map(|_| random.pick(from))
            .collect();
        let heartbeat = random.pick(&[100 * MS, 200 * MS, 200 * MS, 500 * MS]);
        let mut link = Link::fast();
        link.delay = random.pick(&[50, 200, 1_000, 5 * MS]);
        link.jitter = link.delay * random.below(3);
        link.splits = random.pick(&[0, 0, 200]);
        link.bandwidth = random.pick(&[100, 1_000, 100_000]);
        Plan {
            nodes: random.pick(&[3, 3, 3, 3, 3, 3, 2, 5]),
            load: Shape {
                clients: random.place(3) + 2,
                keys: random.pick(&[6, 6, 30, 300]),
                pause: random.pick(&[50 * MS, 100 * MS, 200 * MS]),
                batch: random.pick(&[1, 3, 6]),
                long: random.pick(&[0, 100, 500]),
                long_bytes: random.pick(&[300, 3_000]),
                strays: random.pick(&[0, 100, 500]),
            },
            link,
            pipe_bytes: random.pick(&[2_000, 16_000, 200_000]),
            backlog_bytes: random.pick(&[2_000, 10_000, 100_000]),
            partitions: random.pick(&[1, 2, 4]),
            waits_for_commit: random.happens(250),
            turn: random.pick(&[0, 0, 100, MS]),
            heartbeat,
            leader_timeout: heartbeat * random.between(3, 6),
            until: random.between(2 * SECOND, 6 * SECOND),
            pause: random.pick(&[200 * MS, SECOND, 3 * SECOND]),
            is_harmless,
            clocks_differ: random.pick(&[0, 20, 200, 5_000]),
            memory: random
                .pick(&[None, None, None, Some(2_500), Some(6_000), Some(20_000)])
                .map(|bytes| (bytes, random.happens(700))),
            kinds,
        }
    }

    /// The next fault, and how long after the last one it comes.
    pub(super) fn next(&self, random: &mut Random) -> (Fault, Micros) {
        (random.pick(&self.kinds), random.below(self.pause))
    }
}
