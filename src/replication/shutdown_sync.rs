//! The shutdown synchronization: before a node ends, its data has to be on another node.
//!
//! A leader waits until its followers have all entries. It accepts FOLLOW meanwhile, since a follower may be about to
//! reconnect: a leader that is stopped right after its start has accepted writes that no other node has. Then any node
//! asks its peers whether one of them holds its data and does not stop ([`keeps_data`]). A node that alone holds data
//! waits for a peer for [`ALONE_TIMEOUT`], and then ends without one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::peers::Lacking;
use super::{Peers, Replica, Stop};
use crate::node::{Node, RoleState};
use crate::replication::core::report::{Contact, Report, Role, Stopping, keeps_data};

/// How long a peer that is up is waited for. A follower pauses for 5 seconds at most before it asks again.
const PEER_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a node that alone holds its data waits for a peer.
const ALONE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer is waited for that is being sent the data, where no other peer has all of it. Longest time that the
/// synchronization takes.
pub(crate) const SENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// Age of a stream from which on it counts as sending. A stream whose offer is refused ends before.
const SENDING_AFTER: Duration = Duration::from_millis(500);

/// Interval at which the peers' progress is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How long the peers have to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);

/// How a stop in good order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Another node holds the data, or there is none, or there is no other node.
    Kept,
    /// No other node is known to hold all of this node's data, which is lost with it.
    Lost {
        /// Number of keys that it held.
        keys: usize,
        /// Index of its last entry.
        index: u64,
    },
}

/// Waits until the node can end. To be called once writes have ended; `took_writes` says that the node accepted them
/// until then.
pub(crate) fn run(replica: Replica<'_>, stop: &Stop, took_writes: bool) -> Ending {
    let Replica { node, peers } = replica;
    peers.set_stopping(Stopping::Waiting);
    if !node.holds_data() || node.engine().is_empty() {
        peers.set_stopping(Stopping::Ending);
        return Ending::Kept;
    }
    if let RoleState::Refusing { why, .. } = node.role() {
        let (keys, index) = (node.engine().len(), node.head().index);
        peers.set_stopping(Stopping::Ending);
        error!("the data of this node, {keys} keys, is on no other one and lost with it: {why}");
        return Ending::Lost { keys, index };
    }
    stop.hurry(true);
    ShutdownSync::new(replica, stop, took_writes).run()
}

struct ShutdownSync<'a> {
    node: &'a Node,
    peers: &'a Peers,
    stop: &'a Stop,
    took_writes: bool,
    /// Index of the last entry.
    index: u64,
    begin: Instant,
    /// By when a peer that is up has to have all entries.
    deadline: Instant,
    /// Peers that had all entries, and have been up since.
    complete: BTreeSet<String>,
    /// Since when a peer is being sent what it lacks.
    sending_since: Option<Instant>,
    /// Whether the begin is logged.
    is_begin_logged: bool,
}

impl<'a> ShutdownSync<'a> {
    fn new(replica: Replica<'a>, stop: &'a Stop, took_writes: bool) -> ShutdownSync<'a> {
        let Replica { node, peers } = replica;
        let begin = Instant::now();
        ShutdownSync {
            node,
            peers,
            stop,
            took_writes,
            index: node.head().index,
            begin,
            deadline: begin + PEER_TIMEOUT,
            complete: BTreeSet::new(),
            sending_since: None,
            is_begin_logged: false,
        }
    }

    fn run(mut self) -> Ending {
        loop {
            let lacking = self.incomplete_peers();
            let now = Instant::now();
            if lacking.is_empty() {
                if let Some(peer) = self.find_keeper() {
                    self.log_end(&peer);
                    return Ending::Kept;
                }
                if now >= self.begin + ALONE_TIMEOUT {
                    return self.end_without_keeper();
                }
                self.log_begin(&["a peer".to_owned()]);
            } else {
                self.extend_deadline(&lacking, now);
                if now >= self.deadline {
                    for (name, lacks) in lacking {
                        let index = self.index;
                        warn!("stopping though {name} {lacks}, and the log ends at index {index}");
                    }
                    let Some(peer) = self.find_keeper() else {
                        return self.end_without_keeper();
                    };
                    self.log_end(&peer);
                    return Ending::Kept;
                }
                let names: Vec<_> = lacking.into_iter().map(|(name, _)| name).collect();
                self.log_begin(&names);
            }
            self.peers.wait_for_progress(CHECK_INTERVAL);
        }
    }

    /// The peers that are waited for: those that lack entries, and are up or follow this node. A follower waits only
    /// for the peers that follow it.
    fn incomplete_peers(&mut self) -> Vec<(String, Lacking)> {
        let mut lacking = Vec::new();
        for peer in self.peers.peers_at(self.index) {
            // The data of a peer that is down is gone, though its stream may not have ended yet.
            if !peer.is_up {
                self.complete.remove(&peer.name);
            }
            match peer.lacks {
                None if peer.is_up => drop(self.complete.insert(peer.name)),
                None => {}
                // The peer itself says what it lacks, so it counts whatever the peer had before. A peer that follows
                // is up, though it may be too busy to answer the probe.
                Some(lacks @ Lacking::At(_)) => {
                    self.complete.remove(&peer.name);
                    lacking.push((peer.name, lacks));
                }
                Some(lacks @ Lacking::Absent)
                    if self.took_writes && peer.is_up && !self.complete.contains(&peer.name) =>
                {
                    lacking.push((peer.name, lacks));
                }
                Some(Lacking::Absent) => {}
            }
        }
        lacking
    }

    /// Extends the deadline where a peer is being sent what it lacks, and no other peer has all entries.
    fn extend_deadline(&mut self, lacking: &[(String, Lacking)], now: Instant) {
        if lacking.iter().all(|(_, lacks)| *lacks == Lacking::Absent) {
            self.sending_since = None;
        } else if now - *self.sending_since.get_or_insert(now) >= SENDING_AFTER
            && self.complete.is_empty()
        {
            // A stream that is lost may be resumed.
            self.deadline = (now + PEER_TIMEOUT).min(self.begin + SENDING_TIMEOUT);
        }
    }

    /// Looks for a peer that keeps this node's data, and returns its name. The node is then marked as ending. A peer
    /// that does not stop may begin to, and rely on this node, so the peers are asked again once the mark is set.
    fn find_keeper(&self) -> Option<String> {
        let found = self.ask_peers()?;
        self.peers.set_stopping(Stopping::Ending);
        if found.stopping != Stopping::No {
            return Some(found.node);
        }
        let confirmed = self.ask_peers();
        if confirmed.is_none() {
            self.peers.set_stopping(Stopping::Waiting);
        }
        confirmed.map(|report| report.node)
    }

    /// Asks the peers, and returns the report of one that keeps this node's data, if there is one.
    fn ask_peers(&self) -> Option<Report> {
        let (node, peers) = (self.node, self.peers);
        let asked = Instant::now();
        self.stop.hurry(true);
        let own_name = node.member().map_or("", |member| member.name.as_str());
        let own_role = if node.role().role_name() == "leader" {
            Role::Leader
        } else {
            Role::Follower
        };
        loop {
            let (keeper, is_complete) = {
                let liveness = peers.liveness().lock();
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
            if keeper.is_some() || is_complete || asked.elapsed() >= ANSWER_TIMEOUT {
                return keeper;
            }
            peers.wait_for_progress(CHECK_INTERVAL / 4);
        }
    }

    fn end_without_keeper(&self) -> Ending {
        let has_some = {
            let liveness = self.peers.liveness().lock();
            let mut peers = liveness.peers().iter();
            peers.any(|peer| {
                let report = peer.report();
                report.is_some_and(|report| report.stopping == Stopping::No && report.holds_data())
            })
        };
        self.peers.set_stopping(Stopping::Ending);
        let (keys, index) = (self.node.engine().len(), self.index);
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
            let names: Vec<_> = self.complete.iter().map(String::as_str).collect();
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

    fn log_begin(&mut self, names: &[String]) {
        if !self.is_begin_logged && (self.took_writes || self.begin.elapsed() >= ANSWER_TIMEOUT * 2)
        {
            let (index, names) = (self.index, names.join(", "));
            info!("no writes from here on; handing over to {names} up to index {index}");
            self.is_begin_logged = true;
        }
    }
}
