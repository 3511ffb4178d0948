//! What a stopping node waits for before it ends: that its data stays in the cluster.
//!
//! A leader waits until its followers have everything, and goes on accepting FOLLOW meanwhile, since a follower may be
//! on its way back: a leader that is stopped right after its start has taken writes that nobody else has. Any node then
//! asks its peers whether one of them holds its data and stays ([`keeps_data`]). One that alone holds data waits a
//! little for a peer, and ends all the same.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::Stop;
use crate::node::{Lacking, Node, Phase};
use crate::replication::core::report::{Contact, Report, Role, Stopping, keeps_data};

/// How long a peer that lives is waited for. A follower pauses for 5 seconds at most before it asks again.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long a node that alone holds data waits for a peer.
const PATIENCE_FOR_ANYBODY: Duration = Duration::from_secs(5);

/// How long, where no follower has everything and one is being sent it: until then the data would go with this node.
pub(crate) const PATIENCE_WHERE_ALONE: Duration = Duration::from_secs(60);

/// A stream that is as old as this sends. One that refuses what it is offered ends at once.
const SENDS: Duration = Duration::from_millis(500);

/// Between two looks at the peers.
const LOOK: Duration = Duration::from_millis(20);

/// How long peers have for one answer to whether they keep the data.
const ANSWER: Duration = Duration::from_millis(200);

/// How a stop in good order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Another node holds the data, or there is none, or there is no other node.
    Kept,
    /// The node was the only one that is known to hold all of its data, which ends with it.
    Lost {
        /// Keys that it held.
        keys: usize,
        /// Index of its last entry.
        index: u64,
    },
}

/// Waits until the node can end; nobody may write any more. `took_writes` says that it led until now.
pub(crate) fn run(node: &Node, stop: &Stop, took_writes: bool) -> Ending {
    node.set_stopping(Stopping::Waiting);
    if !node.holds_data() || node.store().is_empty() {
        node.set_stopping(Stopping::Ending);
        return Ending::Kept;
    }
    if let Phase::Refusing(why) = node.phase() {
        let (keys, index) = (node.store().len(), node.head().index);
        node.set_stopping(Stopping::Ending);
        error!("the data of this node, {keys} keys, is on no other one and lost with it: {why}");
        return Ending::Lost { keys, index };
    }
    stop.hurry(true);
    Handover::new(node, stop, took_writes).run()
}

struct Handover<'a> {
    node: &'a Node,
    stop: &'a Stop,
    took_writes: bool,
    index: u64,
    begin: Instant,
    /// By when a peer that lives has to have everything.
    end: Instant,
    /// Peers that had everything and have lived since.
    have_all: BTreeSet<String>,
    sending_since: Option<Instant>,
    is_said: bool,
}

impl<'a> Handover<'a> {
    fn new(node: &'a Node, stop: &'a Stop, took_writes: bool) -> Handover<'a> {
        let begin = Instant::now();
        Handover {
            node,
            stop,
            took_writes,
            index: node.head().index,
            begin,
            end: begin + PATIENCE,
            have_all: BTreeSet::new(),
            sending_since: None,
            is_said: false,
        }
    }

    fn run(mut self) -> Ending {
        loop {
            let lacking = self.lacking();
            let now = Instant::now();
            if lacking.is_empty() {
                if let Some(peer) = self.keeper() {
                    self.log_end(&peer);
                    return Ending::Kept;
                }
                if now >= self.begin + PATIENCE_FOR_ANYBODY {
                    return self.end_without_keeper();
                }
                self.say(&["a peer".to_owned()]);
            } else {
                self.extend(&lacking, now);
                if now >= self.end {
                    for (name, lacks) in lacking {
                        let index = self.index;
                        warn!("stopping though {name} {lacks}, and the log ends at index {index}");
                    }
                    let Some(peer) = self.keeper() else {
                        return self.end_without_keeper();
                    };
                    self.log_end(&peer);
                    return Ending::Kept;
                }
                let names: Vec<_> = lacking.into_iter().map(|(name, _)| name).collect();
                self.say(&names);
            }
            self.node.wait_for_progress(LOOK);
        }
    }

    /// Peers that are to have everything and have not: of a leader those that live, of a follower those that it streams
    /// to.
    fn lacking(&mut self) -> Vec<(String, Lacking)> {
        let mut lacking = Vec::new();
        for peer in self.node.peers_at(self.index) {
            // What a dead one had is gone, though its stream may not have ended yet.
            if !peer.is_up {
                self.have_all.remove(&peer.name);
            }
            match peer.lacks {
                None if peer.is_up => drop(self.have_all.insert(peer.name)),
                None => {}
                // It says itself what it lacks, whatever it had before. One that follows lives, though a busy machine
                // may have kept it from saying so to the probe.
                Some(lacks @ Lacking::At(_)) => {
                    self.have_all.remove(&peer.name);
                    lacking.push((peer.name, lacks));
                }
                Some(lacks @ Lacking::Absent)
                    if self.took_writes && peer.is_up && !self.have_all.contains(&peer.name) =>
                {
                    lacking.push((peer.name, lacks));
                }
                Some(Lacking::Absent) => {}
            }
        }
        lacking
    }

    /// Gives a peer that is being sent the data more time, where no other has it.
    fn extend(&mut self, lacking: &[(String, Lacking)], now: Instant) {
        if lacking.iter().all(|(_, lacks)| *lacks == Lacking::Absent) {
            self.sending_since = None;
        } else if now - *self.sending_since.get_or_insert(now) >= SENDS && self.have_all.is_empty()
        {
            // Where the stream is lost it may come back.
            self.end = (now + PATIENCE).min(self.begin + PATIENCE_WHERE_ALONE);
        }
    }

    /// Asks the peers who keeps this node's data, and leaves the node marked as ending where one does. A peer that does
    /// not stop may begin to, and then rely on this node: so it is asked again once the mark is set.
    fn keeper(&self) -> Option<String> {
        let found = self.ask()?;
        self.node.set_stopping(Stopping::Ending);
        if found.stopping != Stopping::No {
            return Some(found.node);
        }
        let confirmed = self.ask();
        if confirmed.is_none() {
            self.node.set_stopping(Stopping::Waiting);
        }
        confirmed.map(|report| report.node)
    }

    /// Asks the peers, and returns the report of one that keeps this node's data.
    fn ask(&self) -> Option<Report> {
        let node = self.node;
        let asked = Instant::now();
        self.stop.hurry(true);
        let own_name = node.member().map_or("", |member| member.name.as_str());
        let own_role = if super::leader_side::accept::leads(node) {
            Role::Leader
        } else {
            Role::Follower
        };
        loop {
            let (keeper, is_complete) = {
                let liveness = node.liveness().lock();
                let contacts = || {
                    liveness
                        .peers()
                        .iter()
                        .map(|peer| peer.contact_since(asked))
                };
                let mut reports = contacts().filter_map(|contact| match contact? {
                    Contact::Report(report) => Some(report),
                    Contact::NoProcess
                    | Contact::Stranger(_)
                    | Contact::Unclear(_)
                    | Contact::Silent(_) => None,
                });
                let keeper =
                    reports.find(|report| keeps_data((own_role, own_name), self.index, report));
                let keeper = keeper.map(|report| Report::clone(report));
                (keeper, contacts().all(|contact| contact.is_some()))
            };
            if keeper.is_some() || is_complete || asked.elapsed() >= ANSWER {
                return keeper;
            }
            node.wait_for_progress(LOOK / 4);
        }
    }

    fn end_without_keeper(&self) -> Ending {
        let has_some = {
            let liveness = self.node.liveness().lock();
            let mut peers = liveness.peers().iter();
            peers.any(|peer| {
                let report = peer.report();
                report.is_some_and(|report| report.stopping == Stopping::No && report.holds_data())
            })
        };
        self.node.set_stopping(Stopping::Ending);
        let (keys, index) = (self.node.store().len(), self.index);
        if has_some {
            error!(
                "no other node is known to hold all of the data: {keys} keys, up to index {index}; what the others \
                 lack of it is lost with this node"
            );
        } else {
            error!(
                "no other node is known to hold the data: {keys} keys, up to index {index}, are lost with this node"
            );
        }
        Ending::Lost { keys, index }
    }

    fn log_end(&self, keeper: &str) {
        let (index, ms) = (self.index, self.begin.elapsed().as_millis());
        if self.took_writes {
            let names: Vec<_> = self.have_all.iter().map(String::as_str).collect();
            let names = if names.is_empty() {
                keeper.to_owned()
            } else {
                names.join(", ")
            };
            info!("handed over up to index {index} in {ms} ms, to {names}");
        } else {
            info!("{keeper} holds the data up to index {index}");
        }
    }

    fn say(&mut self, names: &[String]) {
        if !self.is_said && (self.took_writes || self.begin.elapsed() >= ANSWER * 2) {
            let (index, names) = (self.index, names.join(", "));
            info!("no writes from here on; handing over to {names} up to index {index}");
            self.is_said = true;
        }
    }
}
