//! The answer to STATUS: `key: value` lines (GBP §4). The node writes those about itself; replication adds the others.

use std::fmt::{self, Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Node, RoleState};
use crate::config::WhenFull;
use crate::engine::memory::MemoryLimit;
use crate::log::{Head, Log};

/// The part of STATUS that is about a node's peers.
pub trait StatusSection: fmt::Debug + Send + Sync {
    /// The values of lines that stand among the node's own.
    fn summary(&self) -> Summary;

    /// Adds the lines that follow the node's own. `shown` is what the lines before it show.
    fn write(&self, node: &Node, shown: &Shown, now: Instant, lines: &mut Lines);
}

/// The values that the lines of a node's own show, and that the others must agree with.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The node's role, read after `summary`.
    pub role: RoleState,
    /// The last position of its data set.
    pub head: Head,
    /// The epoch of the record there: with the index it says what the node holds.
    pub epoch: u64,
    /// The summary of the section, which was read before the role.
    pub summary: Summary,
}

/// The values that a [`StatusSection`] adds to the node's own lines. They are read before the node's role: a node that
/// is ordered to lead has a stream from its leader until it leads, and no STATUS may show neither.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Whether the node has a stream from its leader.
    pub has_stream: bool,
    /// Why a follower does not follow its leader, for `reason`.
    pub not_following: Option<Arc<str>>,
    /// The word for `stopping`.
    pub stopping: &'static str,
}

/// The lines of a STATUS.
#[derive(Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// Adds a line.
    pub fn add(&mut self, key: &str, value: &dyn Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{key}: {value}");
    }

    /// Adds a line whose value is `-` where there is none.
    pub fn add_or_dash(&mut self, key: &str, value: Option<impl Display>) {
        match value {
            Some(value) => self.add(key, &value),
            None => self.add(key, &"-"),
        }
    }

    /// Adds a line with a text of other origin, which may have control characters.
    pub fn add_text(&mut self, key: &str, text: &str) {
        self.add(key, &text.replace(char::is_control, " "));
    }
}

impl Node {
    /// Has STATUS show this section too.
    pub fn add_to_status(&mut self, section: Arc<dyn StatusSection>) {
        self.status_section = Some(section);
    }

    /// The answer to STATUS.
    pub(crate) fn status(&self, now: Instant) -> String {
        let mut lines = Lines::default();
        let summary = match &self.status_section {
            Some(section) => section.summary(),
            None => Summary {
                has_stream: false,
                not_following: None,
                stopping: "no",
            },
        };
        let role = self.role();
        let place = self.engine.log().map(Log::head_in_epoch);
        let (head, epoch) = place.unwrap_or_default();
        let shown = Shown {
            role,
            head,
            epoch,
            summary,
        };
        self.write_state(&shown, now, &mut lines);
        self.write_settings(&mut lines);
        let log = self.engine.log();
        lines.add("full_copies", &self.full_copies.load(Ordering::Relaxed));
        lines.add("resumes", &self.resumes.load(Ordering::Relaxed));
        lines.add("backlog_bytes", &log.map_or(0, Log::kept_bytes));
        lines.add("backlog_first_index", &log.map_or(0, Log::first_index));
        match &self.directory {
            None => lines.add("disk", &"none"),
            Some(directory) => {
                lines.add("disk", &"used");
                directory.status().write(log, now, &mut lines);
            }
        }
        if let Some(section) = &self.status_section {
            section.write(self, &shown, now, &mut lines);
        }
        lines.0
    }

    /// Identity, role, state and data.
    fn write_state(&self, shown: &Shown, now: Instant, lines: &mut Lines) {
        let Shown {
            role,
            head,
            epoch,
            summary,
        } = shown;
        let not_following = summary.not_following.as_deref();
        let why = role.why().map(AsRef::as_ref);
        let reason = match role {
            RoleState::Loading { .. } | RoleState::Follower { .. } => not_following.or(why),
            RoleState::Candidate { .. } | RoleState::Leader { .. } | RoleState::Refusing { .. } => {
                why
            }
        };
        let member = self.member.as_ref();
        lines.add_or_dash("node", member.map(|member| &member.name));
        lines.add_or_dash("cluster", member.map(|member| &member.cluster));
        lines.add("role", &role.role_name());
        lines.add("state", &role.state_name());
        lines.add_text("reason", reason.unwrap_or("-"));
        lines.add("stopping", &summary.stopping);
        lines.add("epoch", &epoch);
        lines.add("index", &head.index);
        lines.add("digest", &head.digest);
        lines.add("keys", &self.engine.len());
        lines.add("bytes", &self.engine.bytes());
        lines.add("expiring", &self.engine.expiring());
        lines.add("expired", &self.engine.expired());
        self.write_memory(lines);
        lines.add("connections", &self.connections.load(Ordering::Relaxed));
        let uptime = now.saturating_duration_since(self.started);
        lines.add("uptime_ms", &uptime.as_millis());
        lines.add("version", &env!("CARGO_PKG_VERSION"));
    }

    /// The memory of the data set, and its limit.
    fn write_memory(&self, lines: &mut Lines) {
        let limit = self.engine.memory_limit();
        let when_full = match limit {
            Some(MemoryLimit { evicts: true, .. }) => WhenFull::Evict,
            Some(MemoryLimit { evicts: false, .. }) | None => WhenFull::Refuse,
        };
        let [evicted, refused] = self.engine.evicted_and_refused();
        lines.add("memory_bytes", &self.engine.memory_bytes());
        lines.add(
            "max_memory_bytes",
            &limit.map_or(0, |limit| limit.max_bytes),
        );
        lines.add("when_full", &when_full.as_str());
        lines.add("evicted", &evicted);
        lines.add("refused_writes", &refused);
    }

    /// The settings that peers and clients need to know.
    fn write_settings(&self, lines: &mut Lines) {
        let Some(member) = &self.member else {
            return;
        };
        let replication = &member.replication;
        let heartbeat_interval_ms = replication.heartbeat_interval.as_millis();
        lines.add("process", &format_args!("{:016x}", member.process));
        lines.add("max_value_bytes", &member.limits.max_value_bytes);
        lines.add("heartbeat_interval_ms", &heartbeat_interval_ms);
        lines.add("leader_timeout_ms", &replication.leader_timeout.as_millis());
        for (group, digest) in member.settings.groups() {
            lines.add(&format!("settings.{group}"), &format_args!("{digest:016x}"));
        }
    }
}
