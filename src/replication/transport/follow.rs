//! The thread `role`: gets the streams that the [driver](crate::replication::driver) asks for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

use super::{Stop, follow_stream};
use crate::node::Member;
use crate::replication::Replica;
use crate::replication::driver::{Driver, Ended, Outcome, Task};
use crate::replication::stream::following::FollowerStream;

/// Does what the driver of the node's role asks for, until the node stops.
pub(super) fn run(replica: Replica<'_>, member: &Member, stop: &Stop) {
    let mut driver = Driver::new(replica, member, Instant::now());
    while !stop.is_stopped() {
        let seen = stop.news();
        let task = driver.next(random(), Instant::now());
        let hurry = |driver: &Driver<'_>| {
            stop.hurry(driver.is_hurried(Instant::now()) || replica.peers.is_stopping());
        };
        match task {
            Task::Wait(until) => {
                hurry(&driver);
                stop.wait_for_news(seen, until);
            }
            Task::Stream { peer, goal } => {
                let mut stream = FollowerStream::new(replica, member, &peer.name, goal);
                stop.hurry(replica.peers.is_stopping());
                let outcome = match follow_stream::run(&mut stream, &peer.addr, stop) {
                    Ok(None) => Outcome::Reached,
                    Ok(Some(order)) => Outcome::Lead(order),
                    Err(error) => Outcome::Failed(error),
                };
                if stop.is_stopped() {
                    stream.end();
                    return;
                }
                let ended = Ended {
                    outcome,
                    has_followed: stream.has_followed(),
                    is_in_snapshot: stream.is_in_snapshot(),
                };
                driver.ended(ended, random(), Instant::now());
                // STATUS says that the node follows until it leads where it is ordered to, so that the old leader does
                // not take it for one that has declined.
                stream.end();
                hurry(&driver);
            }
        }
    }
}

/// A random number, from the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
