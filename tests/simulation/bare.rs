//! Clients against nodes without replication: the harness itself is tested.

use std::collections::BTreeMap;

use super::Event;
use super::events::{SECOND, Timeline};
use super::load::{Load, Outcome, Shape, addr_of};
use super::network::{Link, Network, Signal};
use super::random::Random;
use super::session::{Served, Turn};
use super::trace::{Mode, Trace};
use crate::node::Node;
use crate::wire::Status;
use crate::wire::request::Limits;

const SHAPE: Shape = Shape {
    clients: 3,
    pause: 2_000,
    batch: 5,
    long: 300,
    long_bytes: 3_000,
    strays: 100,
};

/// What clients got in two seconds at a leader and a node that sends them there.
fn run(seed: u64) -> (Vec<Outcome>, BTreeMap<&'static str, usize>, u64) {
    let nodes = [Node::alone(), Node::follower_of(&addr_of(0))];
    let mut random = Random::new(seed);
    let mut timeline: Timeline<Event> = Timeline::new();
    let mut link = Link::fast();
    link.splits = 300;
    let mut network = Network::new(3, link, 5_000, random.split());
    let mut trace = Trace::new(Mode::Kept);
    let mut load = Load::new(SHAPE, 2, 2, &mut random, &mut timeline);
    network.listen(0, true);
    network.listen(1, true);
    let mut served = BTreeMap::new();
    let mut answers = BTreeMap::new();
    while let Some(event) = timeline.next() {
        if timeline.now() > 2 * SECOND {
            load.end();
        }
        let event = match event {
            Event::Client(event) => {
                load.step(event, &mut network, &mut timeline, &mut trace);
                continue;
            }
            Event::Network(event) => event,
        };
        let Some((host, end, signal)) = network.step(event, &mut timeline) else {
            continue;
        };
        if host == 2 {
            load.signal(end, signal, &mut network, &mut timeline, &mut trace);
            continue;
        }
        if signal == Signal::Accepted {
            served.insert(end, Served::new(&nodes[host], Limits::default(), true));
        }
        let Some(session) = served.get_mut(&end) else {
            continue;
        };
        let mut numbers = Vec::new();
        let turn = session.step(end, &mut network, &mut timeline, &mut |answered| {
            *answers.entry(answered.status.name()).or_insert(0) += 1;
            numbers.push(load.number_of(end, answered.at).expect("it was sent"));
            if host == 1 && answered.frame.opcode().spec().writes {
                assert_eq!(answered.status, Status::NotLeader);
            }
        });
        // Now and then a connection is lost.
        if turn == Turn::Closed || signal == Signal::Reset {
            served.remove(&end);
        } else if random.happens(20) {
            network.lose(end, [true, true], &mut timeline);
        }
    }
    (load.outcomes().to_vec(), answers, trace.sum())
}

#[test]
fn clients_get_an_outcome_of_every_request_and_follow_redirects() {
    let (outcomes, answers, sum) = run(7);
    let count = |outcome| outcomes.iter().filter(|found| **found == outcome).count();
    assert!(count(Outcome::Done) > 500, "{}", count(Outcome::Done));
    assert!(count(Outcome::Unknown) > 5, "{}", count(Outcome::Unknown));
    assert_eq!(count(Outcome::Open) + count(Outcome::Refused), 0);
    assert!(
        answers["NOT_LEADER"] > 5 && answers["NOT_FOUND"] > 5,
        "{answers:?}"
    );
    assert_eq!(run(7).2, sum, "a seed is one run");
    assert_ne!(run(8).2, sum);
}
