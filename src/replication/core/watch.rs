//! Judges what one peer says: whether the node yields to it, leaves its leader for it, or logs something.

use super::liveness::{Change, LeaderChange};
use super::machine::{Action, Level};
use super::report::{Contact, Report, Role, Settings, State};
use super::role::supersedes;
use super::role_state::RoleState;

/// The state of the node that judges.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its role.
    pub role: &'a RoleState,
    /// Whether it takes writes.
    pub takes_writes: bool,
    /// The last epoch of its history.
    pub epoch: u64,
    /// Number of its process.
    pub process: u64,
    /// Digests of its settings.
    pub settings: &'a Settings,
}

/// The judgement of one peer. It keeps the last state that was logged, so that each state is logged once.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    peer: String,
    stranger: String,
    unclear: String,
    differences: Vec<&'static str>,
    two_leaders: bool,
    lower_limit: bool,
    actions: Vec<Action>,
}

impl Watch {
    /// Of a peer that was not asked yet.
    #[must_use]
    pub fn new(peer: &str) -> Watch {
        Watch {
            peer: peer.to_owned(),
            ..Watch::default()
        }
    }

    /// Judges the result of an attempt to ask the peer.
    pub fn step(&mut self, contact: &Contact, view: View<'_>) -> Vec<Action> {
        let peer = self.peer.clone();
        match contact {
            Contact::Stranger(text) => {
                if *text != self.stranger {
                    let line = format!(
                        "{text}, and not {peer}: it is passed over; correct addr in cluster.toml"
                    );
                    self.log(Level::Error, line);
                    self.stranger.clone_from(text);
                }
            }
            Contact::Report(report) => {
                self.stranger.clear();
                self.unclear.clear();
                self.judge(report, view);
            }
            Contact::Unclear(text) => {
                if *text != self.unclear {
                    self.log(
                        Level::Warn,
                        format!("{peer} gives no usable answer: {text}"),
                    );
                    self.unclear.clone_from(text);
                }
            }
            Contact::NoProcess | Contact::Silent(_) => {}
        }
        std::mem::take(&mut self.actions)
    }

    fn log(&mut self, level: Level, line: String) {
        self.actions.push(Action::Log(level, line));
    }

    fn judge(&mut self, report: &Report, view: View<'_>) {
        self.compare_settings(report, view);
        self.compare_limits(report, view);
        // One that has yielded already has led all the same.
        let has_led = report.role == Role::Leader && report.state != State::Loading;
        let two_leaders = view.takes_writes && has_led;
        if two_leaders && !self.two_leaders {
            let line = format!(
                "two leaders: {} leads as well, in epoch {}; writes accepted by both cannot be merged",
                self.peer, report.epoch
            );
            self.log(Level::Error, line);
        }
        self.two_leaders = two_leaders;
        if let Some(reason) = yields_to(report, view) {
            self.log(Level::Error, reason.clone());
            self.actions.push(Action::Yield(reason));
        }
        let leader = view.role.leader();
        if leader.is_some_and(|leader| supersedes(report, &leader.name, view.epoch)) {
            self.actions.push(Action::EndStream);
        }
    }

    fn compare_settings(&mut self, report: &Report, view: View<'_>) {
        let differences = view.settings.differences(&report.settings);
        if differences == self.differences {
            return;
        }
        let peer = &self.peer;
        if differences.is_empty() {
            let line = format!("{peer} has the same settings as this node again");
            self.log(Level::Info, line);
        } else {
            let groups = differences.join(", ");
            let line = format!("cluster.toml of {peer} and of this node differ in: {groups}");
            self.log(Level::Error, line);
        }
        self.differences = differences;
    }

    /// A follower applies what its leader has, whatever its own limit: that holds once the node leads.
    fn compare_limits(&mut self, report: &Report, view: View<'_>) {
        let leader = view.role.leader();
        let is_leader = leader.is_some_and(|leader| *leader.name == *self.peer);
        let (own, of_leader) = (
            view.settings.max_memory_bytes,
            report.settings.max_memory_bytes,
        );
        let limit = own.filter(|&own| of_leader.is_none_or(|of_leader| own < of_leader));
        let is_lower = is_leader && report.leads() && limit.is_some();
        if let Some(own) = limit.filter(|_| is_lower && !self.lower_limit) {
            let of_leader = of_leader.map_or("none".to_owned(), |bytes| bytes.to_string());
            let line = format!(
                "max_memory_bytes of this node is {own}, of its leader {} it is {of_leader}: a follower takes all that \
                 its leader has, and keeps its own limit only once it leads",
                self.peer
            );
            self.log(Level::Warn, line);
        }
        self.lower_limit = is_lower;
    }
}

/// Why this node yields to the reported peer, if it does: both lead, and this one in the older epoch. Equal epochs are
/// told apart by the number of the process.
fn yields_to(report: &Report, view: View<'_>) -> Option<String> {
    let View { epoch, process, .. } = view;
    if !view.takes_writes || !report.leads() || (report.epoch, report.process) <= (epoch, process) {
        return None;
    }
    Some(format!(
        "{} leads in epoch {}, this node in epoch {epoch}: this one takes no more writes; compare their data \
         (gopherstore-cli diff), correct leader in cluster.toml, and restart this node",
        report.node, report.epoch
    ))
}

/// The line for a peer that has come up or gone down.
#[must_use]
pub fn line_of_change(change: &Change) -> Action {
    let (name, after) = (&change.name, change.after.as_millis());
    if change.is_up {
        Action::Log(Level::Info, format!("{name} is up, after {after} ms"))
    } else {
        Action::Log(Level::Warn, format!("{name} is down, after {after} ms"))
    }
}

/// The line for a leader that is silent, or is heard again. A cluster that is stopped as a whole loses its leader
/// first, so a node that stops has no line for the silence.
#[must_use]
pub fn line_of_leader(leader: &str, change: LeaderChange, is_stopping: bool) -> Option<Action> {
    match change {
        LeaderChange::TimedOut(_) if is_stopping => None,
        LeaderChange::TimedOut(silence) => Some(Action::Log(
            Level::Error,
            format!(
                "leader timeout: nothing heard from leader {leader} for {} ms",
                silence.as_millis()
            ),
        )),
        LeaderChange::Back(silence) => Some(Action::Log(
            Level::Info,
            format!(
                "leader {leader} is heard again, after {} ms",
                silence.as_millis()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::replication::core::report::Stopping;
    use crate::replication::core::role_state::Leader;

    #[test]
    fn a_follower_with_a_lower_memory_limit_than_its_leader_says_so_once() {
        let role = RoleState::Follower {
            leader: Leader {
                name: Arc::from("n1"),
                addr: Arc::from("h:1"),
            },
        };
        let warnings = |peer: &str, own: Option<u64>, of_leader: Option<u64>| {
            let settings = |max_memory_bytes| Settings {
                max_memory_bytes,
                ..Settings::default()
            };
            let report = Report {
                node: peer.to_owned(),
                cluster: "demo".to_owned(),
                role: Role::Leader,
                state: State::Serving,
                stopping: Stopping::No,
                epoch: 1,
                index: 9,
                process: 1,
                settings: settings(of_leader),
                peers: vec![],
                follows: None,
            };
            let view = View {
                role: &role,
                takes_writes: false,
                epoch: 1,
                process: 2,
                settings: &settings(own),
            };
            let (mut watch, contact) = (Watch::new(peer), Contact::Report(Box::new(report)));
            let again = watch.step(&contact, view).into_iter();
            let actions = again.chain(watch.step(&contact, view));
            let is_warning = |action: &Action| matches!(action, Action::Log(Level::Warn, _));
            actions.filter(is_warning).count()
        };
        for (peer, own, of_leader, expected) in [
            ("n1", Some(5), Some(6), 1),
            ("n1", Some(5), None, 1),
            ("n1", Some(6), Some(6), 0),
            ("n1", Some(7), Some(6), 0),
            ("n1", None, Some(6), 0),
            ("n1", None, None, 0),
            // Not its leader.
            ("n3", Some(5), Some(6), 0),
        ] {
            assert_eq!(
                warnings(peer, own, of_leader),
                expected,
                "{peer} {own:?} {of_leader:?}"
            );
        }
    }
}
