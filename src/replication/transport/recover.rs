//! The start of a node that is to lead: it finds the newest data set in the cluster and copies it before it serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::Stop;
use super::follow::{is_eager, random};
use super::follow_stream;
use super::pauses::{BACK_OFF, Pauses};
use crate::history::EpochStart;
use crate::node::{Member, Node, Phase};
use crate::replication::Replica;
use crate::replication::core::start::{self, Next, Own};
use crate::replication::stream::following::{FollowerStream, Goal};

/// Time between two looks at what the peers have said.
const DECISION_PAUSE: Duration = Duration::from_millis(5);

/// Time after which a leader that starts logs what it waits for.
const NOTABLE_WAIT: Duration = Duration::from_millis(500);

/// Asks the peers for their positions, follows one that leads already, catches up with the one that is most up to date,
/// and opens a new epoch. The decisions are [`start::next`]'s.
pub(super) fn recover(replica: Replica<'_>, member: &Member, stop: &Stop) {
    let node = replica.node;
    let mut pauses = Pauses::new();
    stop.hurry(true);
    while let Some(next) = decide(replica, member, stop) {
        let (peer, goal, reason) = match next {
            // `decide` waits itself.
            Next::Wait { .. } => continue,
            Next::Lead { epoch, passed_over } => {
                report_passed_over(&passed_over);
                lead(node, epoch);
                stop.hurry(false);
                return;
            }
            Next::Follow { peer, reason } => {
                error!("{reason}");
                (peer, Goal::Follow, reason)
            }
            Next::CatchUp {
                peer,
                epoch,
                index,
                passed_over,
            } => {
                report_passed_over(&passed_over);
                info!("{peer} is furthest ahead, at index {index} of epoch {epoch}; copying it");
                let reason = format!("this leader is copying its data from {peer}");
                (peer, Goal::CatchUp(index), reason)
            }
        };
        let Some(peer) = member.peers.iter().find(|found| found.name == peer) else {
            continue;
        };
        node.enter(Phase::Loading(Arc::from(reason.as_str())));
        let mut stream = FollowerStream::before_leading(replica, member, &peer.name, goal, reason);
        stop.hurry(false);
        let result = follow_stream::run(&mut stream, &peer.addr, stop);
        if stop.is_stopped() {
            return;
        }
        stop.hurry(true);
        if let Err(error) = result {
            warn!("no longer copying {}: {error}", peer.name);
            if stream.is_in_snapshot() {
                node.discard_dataset("this leader is asking the other nodes for data");
            }
            if stream.has_followed() {
                pauses = Pauses::new();
            }
            let reason = format!("this leader cannot copy {}: {error}", peer.name);
            node.enter(Phase::Loading(Arc::from(reason)));
            let pause = pauses.next(is_eager(&error), BACK_OFF.1, Instant::now());
            if stop.wait(pause) {
                return;
            }
        }
    }
}

/// Waits until the peers have said enough to do something, and returns what; `None` at the stop.
fn decide(replica: Replica<'_>, member: &Member, stop: &Stop) -> Option<Next> {
    let Replica { node, peers } = replica;
    let began = Instant::now();
    let timeout = member.replication.leader_timeout;
    let mut logged = String::new();
    loop {
        let history = node.history();
        let own = Own {
            history: &history,
            index: node.head().index,
        };
        let now = Instant::now();
        let next = start::next(own, peers.liveness().lock().peers(), began, timeout, now);
        let Next::Wait {
            reason,
            is_conflict,
        } = next
        else {
            return Some(next);
        };
        if reason != logged {
            node.enter(Phase::Loading(Arc::from(reason.as_str())));
            // A short wait is not worth a line.
            if now - began >= NOTABLE_WAIT {
                if is_conflict {
                    error!("not leading: {reason}");
                } else {
                    warn!("not leading yet: {reason}");
                }
                logged = reason;
            }
        }
        if stop.wait(DECISION_PAUSE) {
            return None;
        }
    }
}

fn report_passed_over(peers: &[(String, String)]) {
    for (name, how) in peers {
        error!(
            "{name} does not answer, and is passed over ({how}); what it alone holds is not taken"
        );
    }
}

fn lead(node: &Node, epoch: u64) {
    let start = EpochStart {
        epoch,
        nonce: random(),
        start_index: node.head().index + 1,
    };
    match node.open_epoch(start) {
        Ok(()) => info!(
            "leading from index {} on, in epoch {epoch}",
            start.start_index
        ),
        Err(error) => error!("cannot lead: {error}"),
    }
}
