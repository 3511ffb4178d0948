//! Clients against nodes without replication: the harness itself is tested.

use std::collections::BTreeMap;

use super::Event;
use super::events::SECOND;
use super::load::{Outcome, Shape, addr_of};
use super::network::{Link, Signal};
use super::random::Random;
use super::session::{Served, Turn};
use super::shared::Shared;
use super::trace::Mode;
use crate::node::Node;
use crate::wire::batch::Batch;
use crate::wire::request::Limits;
use crate::wire::{Opcode, Status};

const SHAPE: Shape = Shape {
    clients: 3,
    keys: 6,
    pause: 2_000,
    batch: 5,
    long: 300,
    long_bytes: 3_000,
    strays: 100,
};

/// Returns the outcomes of two seconds of load at a leader and a node that redirects to it, and the sum of the trace.
fn run(seed: u64) -> (Vec<Outcome>, BTreeMap<&'static str, usize>, u64) {
    let mut random = Random::new(seed);
    let mut link = Link::fast();
    link.splits = 300;
    let mut shared = Shared::new(2, link, 5_000, SHAPE, Mode::Kept, &mut random);
    let nodes = [Node::alone(), Node::follower_of(&addr_of(0))];
    let nodes = nodes.map(|node| node.with_clock(shared.timeline.clock(0)));
    shared.network.listen(0, true);
    shared.network.listen(1, true);
    let mut served = BTreeMap::new();
    let mut answers = BTreeMap::new();
    while let Some(event) = shared.timeline.next() {
        if shared.timeline.now() > 2 * SECOND {
            shared.load.end();
        }
        let event = match event {
            Event::Network(event) => event,
            Event::Client(event) => {
                shared.client(event);
                continue;
            }
            Event::Signal(..) | Event::Process(..) | Event::Later(_) => unreachable!("no process"),
        };
        let Some((host, end, signal)) = shared.network.step(event, &mut shared.timeline) else {
            continue;
        };
        if host == 2 {
            shared.client_signal(end, signal);
            continue;
        }
        if signal == Signal::Accepted {
            served.insert(end, Served::new(&nodes[host], Limits::default(), true));
        }
        let Some(session) = served.get_mut(&end) else {
            continue;
        };
        let turn = session.step(end, &mut shared, &mut |shared, answered| {
            *answers.entry(answered.status.name()).or_insert(0) += 1;
            assert!(shared.load.number_of(end, answered.at).is_some());
            let frame = answered.frame;
            // A BATCH of reads is a read.
            let writes = match frame.opcode() {
                Opcode::Batch => Batch::decode(frame.value()).is_ok_and(|batch| batch.writes()),
                opcode => opcode.spec().writes,
            };
            if host == 1 && writes {
                assert_eq!(answered.status, Status::NotLeader);
            }
        });
        // Now and then a connection is lost.
        if turn == Turn::Closed || signal == Signal::Reset {
            served.remove(&end);
        } else if random.happens(20) {
            shared.network.lose(end, [true, true], &mut shared.timeline);
        }
    }
    (shared.load.outcomes().to_vec(), answers, shared.trace.sum())
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
