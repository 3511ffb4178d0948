//! What a stopping leader does between its last write and its end: it waits until its followers have everything.
//!
//! It goes on accepting FOLLOW meanwhile, since a follower may be on its way back: a leader that is stopped right after
//! its start has taken writes that nobody else has.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::node::{Lacking, Node};

/// How long a peer that lives is waited for. A follower pauses for 5 seconds at most before it asks again.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long, where no follower has everything and one is being sent it: until then the data would go with this node.
pub(crate) const PATIENCE_WHERE_ALONE: Duration = Duration::from_secs(60);

/// A stream that is as old as this sends. One that refuses what it is offered ends at once.
const SENDS: Duration = Duration::from_millis(500);

/// Between two looks at which peers live.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until every peer that lives follows and has applied everything, for a bounded time. Nobody may write any more.
pub(crate) fn run(node: &Node) {
    let index = node.head().index;
    let begin = Instant::now();
    let mut end = begin + PATIENCE;
    // Nothing is written any more, so whoever had everything has it as long as it lives, though its link be gone.
    let mut have_all = BTreeSet::new();
    let mut sending_since = None;
    let mut is_said = false;
    loop {
        let mut lacking = Vec::new();
        for peer in node.peers_at(index) {
            // What a dead one had is gone, though its stream may not have ended yet.
            if !peer.is_up {
                have_all.remove(&peer.name);
            }
            match peer.lacks {
                None if peer.is_up => drop(have_all.insert(peer.name)),
                None => {}
                // It says itself what it lacks, whatever it had before. Whoever follows lives, though a busy machine
                // may have kept it from saying so to the probe.
                Some(lacks @ Lacking::At(_)) => {
                    have_all.remove(&peer.name);
                    lacking.push((peer.name, lacks));
                }
                Some(lacks) if peer.is_up && !have_all.contains(&peer.name) => {
                    lacking.push((peer.name, lacks));
                }
                Some(_) => {}
            }
        }
        let now = Instant::now();
        if lacking.is_empty() {
            let names: Vec<_> = have_all.into_iter().collect();
            info!(
                "handed over up to index {index} in {} ms, to {}",
                (now - begin).as_millis(),
                list(&names)
            );
            return;
        }
        if lacking.iter().all(|(_, lacks)| *lacks == Lacking::Absent) {
            sending_since = None;
        } else if now - *sending_since.get_or_insert(now) >= SENDS && have_all.is_empty() {
            // Where the stream is lost it may come back.
            end = (now + PATIENCE).min(begin + PATIENCE_WHERE_ALONE);
        }
        if now >= end {
            for (name, lacks) in lacking {
                warn!("stopping though {name} {lacks}, and the log ends at index {index}");
            }
            return;
        }
        if !is_said {
            let names: Vec<_> = lacking.into_iter().map(|(name, _)| name).collect();
            info!(
                "no writes from here on; handing over to {} up to index {index}",
                list(&names)
            );
            is_said = true;
        }
        node.wait_for_progress(LOOK);
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "nobody".to_owned()
    } else {
        names.join(", ")
    }
}
