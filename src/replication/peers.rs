//! The peers of a node: the registry of its followers, which peers are up, and the stream from its leader.
//!
//! Each field has a lock of its own, which is held for the length of one call. Only [`Peers::wait_for_end_of`],
//! [`Peers::wait_for_follower`] and [`Peers::wait_for_progress`] wait, for a change of the registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::log::{Head, Log};
use crate::node::{Lines, Node, RoleState, Shown, StatusSection, Summary};
use crate::replication::core::followers::{Follower, Followers};
use crate::replication::core::liveness::{
    LeaderChange, LeaderWatch, Liveness, Peer, SILENT_HEARTBEATS,
};
use crate::replication::core::progress::{Behind, Progress};
use crate::replication::core::report::{Contact, Settings, Stopping};
use crate::replication::core::role::LeadOrder;
use crate::replication::core::shutdown::{Lacking, PeerAt};
use crate::replication::core::snapshot_permits::SnapshotPermits;

/// A node and its peers, as the threads of replication share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replica<'a> {
    pub(crate) node: &'a Node,
    pub(crate) peers: &'a Peers,
}

/// The peers of a node. A node without a `cluster.toml` has none.
#[derive(Debug)]
pub struct Peers {
    /// Silence after which a follower or a peer counts as gone.
    silence_max: Duration,
    followers: Mutex<Followers>,
    /// A follower's progress has changed, or it has gone.
    progressed: Condvar,
    snapshot_permits: SnapshotPermits,
    liveness: Mutex<Liveness>,
    leader_stream: Mutex<LeaderStream>,
    behind: Mutex<Behind>,
    /// Why a follower does not follow its leader.
    not_following: Mutex<Option<Arc<str>>>,
    stopping: Mutex<Stopping>,
}

/// A follower's stream from its leader.
#[derive(Clone, Copy, Debug)]
struct LeaderStream {
    is_up: bool,
    /// When anything last came on it.
    heard: Option<Instant>,
    /// Judges silence, by the stream and by the answers to probes.
    watch: LeaderWatch,
}

impl Peers {
    /// Makes the table of `node`'s peers, and adds it to the node's STATUS.
    #[must_use]
    pub fn attach(node: &mut Node) -> Arc<Peers> {
        Peers::attach_at(node, Instant::now())
    }

    /// The same at a time.
    pub(crate) fn attach_at(node: &mut Node, now: Instant) -> Arc<Peers> {
        let member = node.member();
        let (silence_max, leader_timeout) =
            member.map_or((Duration::MAX, Duration::MAX), |member| {
                let replication = &member.replication;
                let silence_max = replication.heartbeat_interval * SILENT_HEARTBEATS;
                (silence_max, replication.leader_timeout)
            });
        let configured = member.into_iter().flat_map(|member| &member.peers);
        let names: Vec<String> = configured.map(|peer| peer.name.clone()).collect();
        let peers = Arc::new(Peers {
            silence_max,
            followers: Mutex::default(),
            progressed: Condvar::new(),
            snapshot_permits: SnapshotPermits::default(),
            liveness: Mutex::new(Liveness::new(names, silence_max, now)),
            leader_stream: Mutex::new(LeaderStream {
                is_up: false,
                heard: None,
                watch: LeaderWatch::new(leader_timeout, now),
            }),
            behind: Mutex::new(Behind::new(now)),
            not_following: Mutex::default(),
            stopping: Mutex::default(),
        });
        let section: Arc<dyn StatusSection> = Arc::<Peers>::clone(&peers);
        node.add_to_status(section);
        peers
    }

    /// The table of which peers are up.
    #[must_use]
    pub const fn liveness(&self) -> &Mutex<Liveness> {
        &self.liveness
    }

    /// Permits for the snapshots that the node sends.
    #[must_use]
    pub const fn snapshot_permits(&self) -> &SnapshotPermits {
        &self.snapshot_permits
    }

    /// Notes how far the node's stop has come, for its peers.
    pub fn set_stopping(&self, stopping: Stopping) {
        *self.stopping.lock() = stopping;
    }

    /// Returns whether the node's stop has begun.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock() != Stopping::No
    }
}

/// The leader, as a follower sees it.
impl Peers {
    /// Something was received from the leader, possibly the first message.
    pub fn leader_heard(&self, now: Instant) {
        let mut stream = self.leader_stream.lock();
        stream.is_up = true;
        stream.heard = Some(now);
    }

    /// The leader said, in a heartbeat or in its STATUS, that its last index is `last_index`; this node's is `head`.
    pub fn leader_told(&self, last_index: u64, head: u64, now: Instant) {
        self.behind.lock().heard(last_index, head, now);
    }

    /// The stream from the leader has ended, with this node at index `head`.
    pub fn leader_lost(&self, head: u64) {
        self.leader_stream.lock().is_up = false;
        self.behind.lock().lost(head);
    }

    /// Notes why this follower does not follow its leader; `None` where it does.
    pub fn set_not_following(&self, why: Option<&str>) {
        *self.not_following.lock() = why.map(Arc::from);
    }

    /// Judges how long a follower has heard nothing of its leader, by the stream or by the answers to probes. Reports
    /// the leader timeout, and its end, once each.
    pub fn check_leader(&self, leader: &str, now: Instant) -> Option<LeaderChange> {
        let probed = {
            let liveness = self.liveness.lock();
            let peer = liveness.peers().iter().find(|peer| peer.name == leader);
            peer.and_then(Peer::heard)
        };
        let mut stream = self.leader_stream.lock();
        let heard = stream.heard.max(probed);
        match heard {
            Some(heard) if stream.watch.last_heard() < Some(heard) => stream.watch.heard(heard),
            Some(_) | None => stream.watch.check(now),
        }
    }

    /// How many entries this follower lacks of its leader's, where that is known, and for how long it has lacked any.
    fn lag_behind_leader(&self, node: &Node, now: Instant) -> (Option<u64>, Duration) {
        let is_loading = matches!(node.role(), RoleState::Loading { .. });
        // While it loads it holds nothing that counts.
        let head = if is_loading { 0 } else { node.head().index };
        let follows = self.leader_stream.lock().is_up && !is_loading;
        let mut behind = self.behind.lock();
        let age = behind.age(head, follows, self.silence_max, now);
        (behind.entries(head), age)
    }
}

/// The followers of this node.
impl Peers {
    /// Registers a follower whose connection from `addr` becomes a stream; returns the stream's number. A stream of the
    /// same name that has been silent for three heartbeats is replaced.
    ///
    /// # Errors
    ///
    /// The address of the older stream of the same name, where that is alive.
    pub fn follower_came(
        &self,
        name: &str,
        progress: Progress,
        addr: String,
        now: Instant,
    ) -> Result<u64, String> {
        let mut followers = self.followers.lock();
        followers.come(name, progress, addr, self.silence_max, now)
    }

    /// The address of the stream that has this name, where one is alive.
    #[must_use]
    pub fn stream_of(&self, name: &str, now: Instant) -> Option<String> {
        let followers = self.followers.lock();
        let older = followers.stream_of(name, self.silence_max, now);
        older.map(str::to_owned)
    }

    /// Waits until the stream that has this name has ended, for `time` at most. Returns whether it has.
    #[must_use]
    pub fn wait_for_end_of(&self, name: &str, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut followers = self.followers.lock();
        loop {
            let stream = followers.stream_of(name, self.silence_max, Instant::now());
            if stream.is_none() {
                return true;
            }
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return false;
            }
        }
    }

    /// Notes that a node at `host` was refused a name whose stream is another node's. Returns whether it is the first
    /// time since that stream began.
    pub fn refuse_follower(&self, name: &str, host: &str) -> bool {
        self.followers.lock().refuse(name, host)
    }

    /// A follower's stream has ended. Where `keeps`, the follower stays in STATUS with its last figures.
    pub fn follower_left(&self, name: &str, stream: u64, keeps: bool) {
        let mut followers = self.followers.lock();
        followers.leave(name, stream, keeps, Instant::now());
        self.progressed.notify_all();
    }

    /// Looks at or changes a follower's progress; `None` where it has left, or has another stream by now.
    pub fn with_follower<T>(
        &self,
        name: &str,
        stream: u64,
        f: impl FnOnce(&mut Progress) -> T,
    ) -> Option<T> {
        let mut followers = self.followers.lock();
        let result = followers.progress_mut(name, stream).map(f);
        self.progressed.notify_all();
        result
    }

    /// The number of a follower's newest stream, and the last index that it is taken to have.
    #[cfg(test)]
    pub(crate) fn newest_stream(&self, name: &str) -> Option<(u64, u64)> {
        let followers = self.followers.lock();
        let number = followers.stream_number(name)?;
        Some((number, followers.attached(name)?.applied_index()))
    }

    /// The last index that a follower with a stream has acknowledged; `None` where it has none, or is receiving a
    /// snapshot.
    pub(crate) fn acknowledged_by(&self, name: &str) -> Option<u64> {
        let followers = self.followers.lock();
        let progress = followers.attached(name)?;
        (!progress.is_copying()).then(|| progress.applied_index())
    }

    /// Orders a follower to lead: its stream sends the order as its last message. Returns whether it has a stream.
    pub(crate) fn order_to_lead(&self, name: &str, order: LeadOrder, now: Instant) -> bool {
        let has_stream = self.followers.lock().order_to_lead(name, order);
        if has_stream {
            self.liveness.lock().ordered_to_lead(name, now);
        }
        has_stream
    }

    /// The order to lead that was given to a follower with this stream.
    pub(crate) fn order_of(&self, name: &str, stream: u64) -> Option<LeadOrder> {
        self.followers.lock().order_of(name, stream)
    }

    /// Waits until the follower has applied `index`, has left, or the deadline has passed. Returns whether it has
    /// applied it.
    #[must_use]
    pub fn wait_for_follower(
        &self,
        name: &str,
        stream: u64,
        index: u64,
        deadline: Instant,
    ) -> bool {
        let mut followers = self.followers.lock();
        loop {
            let Some(progress) = followers.progress_mut(name, stream) else {
                return false;
            };
            if progress.applied_index() >= index {
                return true;
            }
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return false;
            }
        }
    }

    /// How far each peer is with a log that ends at `index`.
    pub(crate) fn peers_at(&self, index: u64) -> Vec<PeerAt> {
        let peers: Vec<_> = self.liveness.lock().peers().to_vec();
        let followers = self.followers.lock();
        let peers = peers.into_iter().map(|peer| {
            let follower = followers.attached(&peer.name);
            let lacks = match follower.map(Progress::applied_index) {
                Some(applied) if applied >= index => None,
                Some(applied) => Some(Lacking::At(applied)),
                None => Some(Lacking::Absent),
            };
            PeerAt {
                name: peer.name,
                is_up: peer.is_up,
                lacks,
            }
        });
        peers.collect()
    }

    /// Waits until some follower's progress has changed, until `deadline` at most.
    pub(crate) fn wait_for_progress(&self, deadline: Instant) {
        let mut followers = self.followers.lock();
        self.progressed.wait_until(&mut followers, deadline);
    }
}

impl StatusSection for Peers {
    fn summary(&self) -> Summary {
        Summary {
            has_stream: self.leader_stream.lock().is_up,
            not_following: self.not_following.lock().clone(),
            stopping: self.stopping.lock().name(),
        }
    }

    fn write(&self, node: &Node, shown: &Shown, now: Instant, lines: &mut Lines) {
        if let Some(leader) = shown.role.leader() {
            lines.add("leader", &leader.addr);
            self.write_leader(node, shown.summary.has_stream, now, lines);
        }
        let member = node.member();
        for peer in member.into_iter().flat_map(|member| &member.peers) {
            lines.add(&format!("peer.{}.addr", peer.name), &peer.addr);
        }
        let settings = member.map(|member| &member.settings);
        for peer in self.liveness.lock().peers() {
            write_peer(peer, settings, now, lines);
        }
        let followers = self.followers.lock().clone();
        for (name, follower) in followers.iter() {
            write_follower(name, follower, shown.head, node.engine().log(), now, lines);
        }
    }
}

/// The lines of STATUS about the leader.
impl Peers {
    fn write_leader(&self, node: &Node, has_stream: bool, now: Instant, lines: &mut Lines) {
        let LeaderStream { heard, watch, .. } = *self.leader_stream.lock();
        // The watch learns at the next heartbeat that the leader is heard again. A node whose stream is up must not
        // pass for one without: a leader that has ordered it to lead would take that for a refusal.
        let is_timed_out = watch.is_timed_out() && heard <= watch.last_heard();
        let link = match (has_stream, is_timed_out) {
            (_, true) => "timeout",
            (true, false) => "up",
            (false, false) => "down",
        };
        lines.add("link", &link);
        let heard_ms = heard.map(|heard| now.saturating_duration_since(heard).as_millis());
        lines.add_or_dash("leader_heard_ms", heard_ms);
        let (entries, lag) = self.lag_behind_leader(node, now);
        lines.add_or_dash("lag_entries", entries);
        lines.add("lag_ms", &lag.as_millis());
    }
}

fn write_peer(peer: &Peer, settings: Option<&Settings>, now: Instant, lines: &mut Lines) {
    let name = &peer.name;
    let state = if peer.is_up { "up" } else { "down" };
    lines.add(&format!("peer.{name}.state"), &state);
    let since = now.saturating_duration_since(peer.since).as_millis();
    lines.add(&format!("peer.{name}.since_ms"), &since);
    let reason = match peer.contact() {
        None | Some(Contact::Report(_)) => "-",
        Some(Contact::NoProcess) => "connection refused",
        Some(Contact::Stranger(text) | Contact::Unclear(text) | Contact::Silent(text)) => text,
    };
    lines.add_text(&format!("peer.{name}.reason"), reason);
    let differences = match (settings, peer.report()) {
        (Some(settings), Some(report)) => settings.differences(&report.settings),
        (None, _) | (_, None) => Vec::new(),
    };
    let differences = Some(differences.join(",")).filter(|names| !names.is_empty());
    lines.add_or_dash(&format!("peer.{name}.differs"), differences);
}

fn write_follower(
    name: &str,
    follower: &Follower,
    head: Head,
    log: Option<&Log>,
    now: Instant,
    lines: &mut Lines,
) {
    let appended_at = |index| log?.appended_at(index);
    let lag = follower.lag(head.index, appended_at, now);
    lines.add(&format!("follower.{name}.state"), &follower.state().name());
    let applied = follower.progress().applied_index();
    lines.add(&format!("follower.{name}.index"), &applied);
    let entries = follower.lag_entries(head.index);
    lines.add_or_dash(&format!("follower.{name}.lag_entries"), entries);
    lines.add(&format!("follower.{name}.lag_ms"), &lag.as_millis());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_link_is_up_as_soon_as_the_leader_is_heard_again() {
        let text = "cluster = \"c\"\nleader = \"n1\"\n\
                    [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                    [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
        let config = Config::parse(text, "cluster.toml").unwrap();
        let start = Instant::now();
        let mut node = Node::of_cluster(&config, &config.nodes[1]);
        let peers = Peers::attach_at(&mut node, start);
        let timeout = config.replication.leader_timeout;
        let link = |now: Instant| {
            let text = node.status(now);
            let link = text.lines().find(|line| line.starts_with("link: "));
            link.unwrap_or_default().to_owned()
        };
        peers.leader_heard(start);
        assert_eq!(link(start), "link: up");
        let silent = start + timeout;
        assert_eq!(peers.check_leader("n1", start), None);
        let change = peers.check_leader("n1", silent);
        assert!(
            matches!(change, Some(LeaderChange::TimedOut(_))),
            "{change:?}"
        );
        assert_eq!(link(silent), "link: timeout");
        let heard = silent + Duration::from_millis(1);
        peers.leader_heard(heard);
        assert_eq!(link(heard), "link: up");
        let change = peers.check_leader("n1", heard);
        assert!(matches!(change, Some(LeaderChange::Back(_))), "{change:?}");
        assert_eq!(link(heard), "link: up");
    }
}
