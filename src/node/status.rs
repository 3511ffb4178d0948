//! The answer to STATUS (GBP §4).

use super::*;

impl Node {
    /// The answer to STATUS: `key: value` lines (GBP §4).
    pub(super) fn status(&self, now: Instant) -> String {
        let head = self.engine.head();
        let (phase, epoch) = {
            let standing = self.standing.lock();
            // Not of an era whose first entry is further on: epoch and index together say what the node holds.
            let era = standing.history.era_of(head.index.saturating_add(1));
            let epoch = era.map_or(0, |era| era.epoch);
            (standing.phase.clone(), epoch)
        };
        let name = self
            .member
            .as_ref()
            .map_or("-", |member| member.name.as_str());
        let role = match &self.role {
            Role::Leader => "leader",
            Role::Follower { .. } => "follower",
        };
        let stopping = *self.stopping.lock();
        let not_following = self.not_following.lock().clone();
        let (state, why) = match &phase {
            Phase::Loading(why) => ("loading", not_following.as_ref().unwrap_or(why).as_ref()),
            Phase::Serving => ("serving", not_following.as_deref().unwrap_or("-")),
            Phase::Refusing(why) => ("refused", why.as_ref()),
        };
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key}: {value}");
        };
        let cluster = self.member.as_ref().map_or("-", |member| &member.cluster);
        line("node", &name);
        line("cluster", &cluster);
        line("role", &role);
        line("state", &state);
        line("reason", &one_line(why));
        line("stopping", &stopping.name());
        line("epoch", &epoch);
        line("index", &head.index);
        line("digest", &head.digest);
        line("keys", &self.engine.len());
        line("bytes", &self.engine.bytes());
        line("connections", &self.connections.load(Ordering::Relaxed));
        line(
            "uptime_ms",
            &now.saturating_duration_since(self.started).as_millis(),
        );
        line("version", &env!("CARGO_PKG_VERSION"));
        if let Some(member) = &self.member {
            let (replication, settings) = (&member.replication, &member.settings);
            line("process", &format_args!("{:016x}", member.process));
            line("max_value_bytes", &member.limits.max_value_bytes);
            line(
                "heartbeat_interval_ms",
                &replication.heartbeat_interval.as_millis(),
            );
            line("leader_timeout_ms", &replication.leader_timeout.as_millis());
            for (group, digest) in settings.groups() {
                line(&format!("settings.{group}"), &format_args!("{digest:016x}"));
            }
        }
        line("full_copies", &self.full_copies.load(Ordering::Relaxed));
        line("resumes", &self.resumes.load(Ordering::Relaxed));
        line(
            "backlog_bytes",
            &self.engine.log().map_or(0, Log::kept_bytes),
        );
        line(
            "backlog_first_index",
            &self.engine.log().map_or(0, Log::first_index),
        );
        if let Role::Follower { leader_addr } = &self.role {
            line("leader", leader_addr);
            let LeaderLink {
                is_up,
                heard,
                watch,
            } = *self.leader_link.lock();
            let link = match (is_up, watch.is_timed_out()) {
                (_, true) => "timeout",
                (true, false) => "up",
                (false, false) => "down",
            };
            line("link", &link);
            match heard.map(|heard| now.saturating_duration_since(heard).as_millis()) {
                Some(heard_ms) => line("leader_heard_ms", &heard_ms),
                None => line("leader_heard_ms", &"-"),
            }
            let (entries, lag) = self.lag_behind_leader(now);
            match entries {
                Some(entries) => line("lag_entries", &entries),
                None => line("lag_entries", &"-"),
            }
            line("lag_ms", &lag.as_millis());
        }
        for peer in self.member.iter().flat_map(|member| &member.peers) {
            line(&format!("peer.{}.addr", peer.name), &peer.addr);
        }
        for peer in self.liveness.lock().peers() {
            let since = now.saturating_duration_since(peer.since).as_millis();
            line(
                &format!("peer.{}.state", peer.name),
                &if peer.is_up { "up" } else { "down" },
            );
            line(&format!("peer.{}.since_ms", peer.name), &since);
            let reason = match peer.contact() {
                None | Some(Contact::Report(_)) => "-",
                Some(Contact::NoProcess) => "connection refused",
                Some(Contact::Stranger(text) | Contact::Unclear(text) | Contact::Silent(text)) => {
                    text
                }
            };
            line(&format!("peer.{}.reason", peer.name), &one_line(reason));
            let differences = match (&self.member, peer.report()) {
                (Some(member), Some(report)) => member.settings.differences(&report.settings),
                (None, _) | (_, None) => Vec::new(),
            };
            let differences = if differences.is_empty() {
                "-".to_owned()
            } else {
                differences.join(",")
            };
            line(&format!("peer.{}.differs", peer.name), &differences);
        }
        let followers = self.followers.lock().clone();
        for (name, follower) in followers.iter() {
            let appended_at = |index| self.engine.log()?.appended_at(index);
            let (progress, lag) = (
                follower.progress(),
                follower.lag(head.index, appended_at, now),
            );
            line(&format!("follower.{name}.state"), &follower.state().name());
            line(&format!("follower.{name}.index"), &progress.applied_index());
            let key = format!("follower.{name}.lag_entries");
            match follower.lag_entries(head.index) {
                Some(entries) => line(&key, &entries),
                None => line(&key, &"-"),
            }
            line(&format!("follower.{name}.lag_ms"), &lag.as_millis());
        }
        text
    }
}

/// A text of other origin as the value of one line.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
