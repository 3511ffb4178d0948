//! The shutdown synchronization: before a node ends, its data has to be on another node.
//!
//! [`core::shutdown`](super::core::shutdown) decides. This value passes the state of the node and its peers to
//! the decision, and logs the result. It knows no socket, thread or clock.

use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::Replica;
use super::core::report::{Role, Stopping};
use super::core::shutdown::{ANSWER_TIMEOUT, Shutdown, Step};
use crate::node::{Node, RoleState};

/// How a stop in good order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Another node or the data directory holds the data, or there is none, or there is no other node.
    Kept,
    /// No other node is known to hold all of this node's data, which is lost with it.
    Lost {
        /// Number of keys that it held.
        keys: usize,
        /// Index of its last entry.
        index: u64,
    },
}

/// The next thing that a node that stops does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It asks again at this time, or when a peer's progress has changed.
    Wait(Instant),
    /// It ends.
    End(Ending),
}

/// The synchronization of one node, from the end of its writes on.
pub(crate) struct ShutdownSync<'a> {
    replica: Replica<'a>,
    took_writes: bool,
    index: u64,
    /// The data directory has the data set, or gets it as the node ends.
    is_on_disk: bool,
    began: Instant,
    /// `None` where the end is known from the start.
    shutdown: Option<Shutdown>,
    is_begin_logged: bool,
}

impl<'a> ShutdownSync<'a> {
    /// To be called once writes have ended; `took_writes` says that the node accepted them until then.
    pub(crate) fn new(replica: Replica<'a>, took_writes: bool, now: Instant) -> ShutdownSync<'a> {
        let node = replica.node;
        let role = node.role();
        let own_role = match role.role_name() {
            "leader" => Role::Leader,
            _ => Role::Follower,
        };
        let own_name = node.member().map_or("", |member| member.name.as_str());
        let index = node.head().index;
        let is_on_disk = node.keeps_on_disk(index);
        let holds_data = node.holds_data() && has_written(node);
        let is_refusing = matches!(role, RoleState::Refusing { .. });
        let shutdown = (holds_data && !is_refusing).then(|| {
            let shutdown = Shutdown::new((own_role, own_name), index, took_writes, now);
            if is_on_disk {
                shutdown.with_directory()
            } else {
                shutdown
            }
        });
        replica.peers.set_stopping(Stopping::Waiting);
        ShutdownSync {
            replica,
            took_writes,
            index,
            is_on_disk,
            began: now,
            shutdown,
            is_begin_logged: false,
        }
    }

    /// The next thing to do.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let peers = self.replica.peers;
        let Some(mut shutdown) = self.shutdown.take() else {
            peers.set_stopping(Stopping::Ending);
            return Next::End(self.end_of_idle_node());
        };
        let progress = peers.peers_at(self.index);
        let step = shutdown.next(&progress, peers.liveness().lock().peers(), now);
        peers.set_stopping(shutdown.stopping());
        let next = match step {
            Step::Wait {
                until,
                peers: names,
            } => {
                self.log_begin(&names, now);
                Next::Wait(until)
            }
            Step::End { keeper, missing } => {
                let index = self.index;
                for (name, lacks) in missing {
                    warn!("stopping though {name} {lacks}, and the log ends at index {index}");
                }
                Next::End(match keeper {
                    Some(keeper) => self.end_with(&keeper, &shutdown, now),
                    None => self.end_without_keeper(),
                })
            }
        };
        self.shutdown = Some(shutdown);
        next
    }

    /// Ends a node that holds no data, or whose data no leader knows.
    fn end_of_idle_node(&self) -> Ending {
        let node = self.replica.node;
        let RoleState::Refusing { why, .. } = node.role() else {
            return Ending::Kept;
        };
        if !has_written(node) || self.is_on_disk {
            return Ending::Kept;
        }
        let (keys, index) = (node.engine().len(), self.index);
        error!("the data of this node, {keys} keys, is on no other one and lost with it: {why}");
        Ending::Lost { keys, index }
    }

    fn end_without_keeper(&self) -> Ending {
        if self.is_on_disk {
            let (durable, index) = (self.replica.node.durable_index(), self.index);
            if durable >= index {
                info!("the data up to index {index} is in the data directory");
            } else {
                info!(
                    "the data up to index {durable} is in the data directory; the rest, up to index {index}, is \
                     written as the node ends"
                );
            }
            return Ending::Kept;
        }
        let has_some = {
            let liveness = self.replica.peers.liveness().lock();
            let mut reports = liveness.peers().iter().filter_map(|peer| peer.report());
            reports.any(|report| report.stopping == Stopping::No && report.holds_data())
        };
        let (keys, index) = (self.replica.node.engine().len(), self.index);
        let on_disk = self.replica.node.durable_index();
        if on_disk > 0 {
            error!(
                "no other node is known to hold all of the data, up to index {index}, and the data directory has it up \
                 to index {on_disk}; the rest is lost with this node"
            );
        } else if has_some {
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

    fn end_with(&self, keeper: &str, shutdown: &Shutdown, now: Instant) -> Ending {
        let (index, ms) = (self.index, self.age(now).as_millis());
        if self.took_writes {
            let names: Vec<_> = shutdown.complete().collect();
            let names = if names.is_empty() {
                keeper.to_owned()
            } else {
                names.join(", ")
            };
            info!("handed over up to index {index} in {ms} ms, to {names}");
        } else {
            info!("{keeper} holds the data up to index {index}");
        }
        Ending::Kept
    }

    fn log_begin(&mut self, names: &[String], now: Instant) {
        let is_notable = self.took_writes || self.age(now) >= ANSWER_TIMEOUT * 2;
        if !self.is_begin_logged && is_notable {
            let (index, names) = (self.index, names.join(", "));
            info!("no writes from here on; handing over to {names} up to index {index}");
            self.is_begin_logged = true;
        }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

/// Whether there is anything to lose: a data set that is empty because everything in it was removed is not one that
/// was never written to. A node that lacks the removals would have the keys again.
fn has_written(node: &Node) -> bool {
    let index = node.head().index;
    let log = node.engine().log();
    let epochs = log.map_or(0, |log| log.history().last_records(index).len());
    !node.engine().is_empty() || u64::try_from(epochs).is_ok_and(|epochs| epochs < index)
}
