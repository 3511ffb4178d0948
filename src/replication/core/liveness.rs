//! Table of a node's peers: which are up, when they were last heard, and their last answers.

use std::time::{Duration, Instant};

use super::report::{Contact, Report};

/// Heartbeat intervals of silence after which a peer counts as down, and a follower as gone.
pub const SILENT_HEARTBEATS: u32 = 3;

/// State of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in `cluster.toml`.
    pub name: String,
    /// Whether it is up, as far as is known; a peer is down until it is heard.
    pub is_up: bool,
    /// Time of the last change between up and down.
    pub since: Instant,
    heard: Option<Instant>,
    /// Result of the last attempt to ask it.
    contact: Option<Asked>,
    /// Time of the last attempt that was not silent.
    answered: Option<Instant>,
    /// Whether it led when it was last heard.
    leads: bool,
    /// When it was ordered to lead, while it may obey: it has a stream from this node, on which the order is.
    ordered: Option<Instant>,
}

/// Result of one attempt to ask a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// When the attempt began.
    began: Instant,
    contact: Contact,
}

/// A peer has come up or gone down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Whether it is up now.
    pub is_up: bool,
    /// How long it was in the other state.
    pub after: Duration,
}

/// The table of a node's peers.
#[derive(Clone, Debug)]
pub struct Liveness {
    peers: Vec<Peer>,
    /// Silence after which a peer counts as down.
    timeout: Duration,
}

impl Liveness {
    /// A table of peers none of which has been heard yet.
    #[must_use]
    pub fn new(
        names: impl IntoIterator<Item = String>,
        timeout: Duration,
        now: Instant,
    ) -> Liveness {
        let peers = names.into_iter().map(|name| Peer {
            name,
            is_up: false,
            since: now,
            heard: None,
            contact: None,
            answered: None,
            leads: false,
            ordered: None,
        });
        Liveness {
            peers: peers.collect(),
            timeout,
        }
    }

    /// A peer was heard.
    pub fn observe(&mut self, name: &str, now: Instant) -> Option<Change> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == name)?;
        peer.heard = Some(now);
        (!peer.is_up).then(|| peer.turn(true, now))
    }

    /// The peer's machine refuses the connection: the peer does not run.
    pub fn refused(&mut self, name: &str, now: Instant) -> Option<Change> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == name)?;
        peer.is_up.then(|| peer.turn(false, now))
    }

    /// Records the result of an attempt to ask a peer, which began at `began`. The peer is up after a report or an
    /// unclear answer, and down after a refused connection or the answer of another node. [`check`](Self::check) judges
    /// silence.
    pub fn record(
        &mut self,
        name: &str,
        contact: Contact,
        began: Instant,
        now: Instant,
    ) -> Option<Change> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == name)?;
        let is_silent = matches!(contact, Contact::Silent(_));
        let is_alive = matches!(contact, Contact::Report(_) | Contact::Unclear(_));
        if !is_silent {
            peer.answered = Some(now);
        }
        match &contact {
            Contact::Report(report) => {
                peer.leads = report.leads();
                let may_obey = !report.leads() && report.follows.is_some();
                // An answer to a question of before the order says nothing about it.
                peer.ordered = peer.ordered.filter(|&ordered| may_obey || began < ordered);
            }
            Contact::NoProcess | Contact::Stranger(_) => {
                peer.leads = false;
                peer.ordered = None;
            }
            Contact::Unclear(_) | Contact::Silent(_) => {}
        }
        peer.contact = Some(Asked { began, contact });
        if is_alive {
            self.observe(name, now)
        } else if is_silent {
            None
        } else {
            self.refused(name, now)
        }
    }

    /// This node has ordered a peer to lead. The peer counts as one that leads until it says that it neither leads nor
    /// follows: while it follows, the order may be on its way.
    pub fn ordered_to_lead(&mut self, name: &str, now: Instant) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) {
            peer.ordered = Some(now);
        }
    }

    /// Returns the peers whose silence has lasted for the timeout, and marks them as down.
    pub fn check(&mut self, now: Instant) -> Vec<Change> {
        let timeout = self.timeout;
        let silent = |peer: &&mut Peer| {
            peer.is_up
                && peer
                    .heard
                    .is_none_or(|heard| now.saturating_duration_since(heard) >= timeout)
        };
        let peers = self.peers.iter_mut().filter(silent);
        peers.map(|peer| peer.turn(false, now)).collect()
    }

    /// All peers, in the order of `cluster.toml`.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

impl Peer {
    /// The result of the last attempt to ask it, where that attempt began at `since` or later.
    #[must_use]
    pub fn contact_since(&self, since: Instant) -> Option<&Contact> {
        let asked = self.contact.as_ref().filter(|asked| asked.began >= since)?;
        Some(&asked.contact)
    }

    /// The result of the last attempt to ask it.
    #[must_use]
    pub fn contact(&self) -> Option<&Contact> {
        self.contact.as_ref().map(|asked| &asked.contact)
    }

    /// The report, where the last attempt to ask it returned one.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        match self.contact()? {
            Contact::Report(report) => Some(report),
            Contact::NoProcess
            | Contact::Stranger(_)
            | Contact::Unclear(_)
            | Contact::Silent(_) => None,
        }
    }

    /// When the peer was last heard.
    #[must_use]
    pub const fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether the peer led when it was last heard, or was ordered to lead and may still obey.
    #[must_use]
    pub const fn is_known_to_lead(&self) -> bool {
        self.leads || self.ordered.is_some()
    }

    /// How long all attempts have been silent, counted from `since` at the earliest.
    #[must_use]
    pub fn silence(&self, since: Instant, now: Instant) -> Duration {
        let from = self.answered.map_or(since, |answered| answered.max(since));
        now.saturating_duration_since(from)
    }

    fn turn(&mut self, is_up: bool, now: Instant) -> Change {
        let after = now.saturating_duration_since(self.since);
        self.is_up = is_up;
        self.since = now;
        Change {
            name: self.name.clone(),
            is_up,
            after,
        }
    }
}

/// Measures the silence of a follower's leader.
#[derive(Clone, Copy, Debug)]
pub struct LeaderWatch {
    timeout: Duration,
    heard: Option<Instant>,
    /// When the watch began, or the leader was last heard.
    since: Instant,
    is_timed_out: bool,
}

/// A change that a [`LeaderWatch`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderChange {
    /// The leader has been silent for this long, the timeout at least.
    TimedOut(Duration),
    /// The leader was heard again, after this long.
    Back(Duration),
}

impl LeaderWatch {
    /// A watch that begins at `now` with a leader that has not been heard.
    #[must_use]
    pub const fn new(timeout: Duration, now: Instant) -> LeaderWatch {
        LeaderWatch {
            timeout,
            heard: None,
            since: now,
            is_timed_out: false,
        }
    }

    /// The leader was heard. Returns [`LeaderChange::Back`] after a timeout.
    pub fn heard(&mut self, now: Instant) -> Option<LeaderChange> {
        let silence = now.saturating_duration_since(self.since);
        self.heard = Some(now);
        self.since = now;
        std::mem::take(&mut self.is_timed_out).then_some(LeaderChange::Back(silence))
    }

    /// Returns [`LeaderChange::TimedOut`] once in each silence that lasts for the timeout.
    pub fn check(&mut self, now: Instant) -> Option<LeaderChange> {
        let silence = now.saturating_duration_since(self.since);
        if self.is_timed_out || silence < self.timeout {
            return None;
        }
        self.is_timed_out = true;
        Some(LeaderChange::TimedOut(silence))
    }

    /// When the leader was last heard.
    #[must_use]
    pub const fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether the leader has been silent for the timeout, and has not been heard since.
    #[must_use]
    pub const fn is_timed_out(&self) -> bool {
        self.is_timed_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::core::report::{Report, Role, Settings, State, Stopping};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn change(name: &str, is_up: bool, ms: u64) -> Change {
        Change {
            name: name.to_owned(),
            is_up,
            after: Duration::from_millis(ms),
        }
    }

    #[test]
    fn a_peer_is_up_while_it_is_heard_and_down_after_silence() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2", "n3"].map(str::to_owned), TIMEOUT, start);
        assert_eq!(table.check(at(start, 60_000)), []);
        assert_eq!(
            table.observe("n2", at(start, 100)),
            Some(change("n2", true, 100))
        );
        assert_eq!(table.observe("n2", at(start, 200)), None);
        assert_eq!(table.check(at(start, 5_199)), []);
        assert_eq!(table.check(at(start, 5_200)), [change("n2", false, 5_100)]);
        assert_eq!(table.check(at(start, 9_000)), []);
        assert_eq!(
            table.observe("n2", at(start, 9_200)),
            Some(change("n2", true, 4_000))
        );
        let states: Vec<_> = table.peers().iter().map(|peer| peer.is_up).collect();
        assert_eq!(states, [true, false]);
    }

    #[test]
    fn a_refused_connection_is_an_answer() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
        assert_eq!(table.refused("n2", start), None);
        table.observe("n2", at(start, 10));
        assert_eq!(
            table.refused("n2", at(start, 20)),
            Some(change("n2", false, 10))
        );
        assert_eq!(table.observe("stranger", at(start, 30)), None);
    }

    #[test]
    fn only_a_report_or_an_unclear_answer_of_a_peer_counts_as_up() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
        let cases = [
            (Contact::Silent("timed out".to_owned()), None),
            (Contact::Unclear("answers ERROR".to_owned()), Some(true)),
            (Contact::Silent("timed out".to_owned()), None),
            (Contact::Stranger("node m1".to_owned()), Some(false)),
            (Contact::NoProcess, None),
        ];
        for (contact, change) in cases {
            let changed = table.record("n2", contact.clone(), start, at(start, 10));
            assert_eq!(changed.map(|change| change.is_up), change, "{contact:?}");
        }
    }

    #[test]
    fn a_peer_that_was_ordered_to_lead_counts_as_leading_while_it_may_obey() {
        let start = Instant::now();
        let report = |role, state, follows: Option<&str>| {
            Contact::Report(Box::new(Report {
                node: "n2".to_owned(),
                cluster: "demo".to_owned(),
                role,
                state,
                stopping: Stopping::No,
                epoch: 3,
                index: 9,
                process: 1,
                settings: Settings::default(),
                peers: vec!["n1".to_owned()],
                follows: follows.map(str::to_owned),
            }))
        };
        let (leader, follower, serving) = (Role::Leader, Role::Follower, State::Serving);
        let silent = Contact::Silent("timed out".to_owned());
        let cases = [
            (silent, true),
            (Contact::Unclear("answers ERROR".to_owned()), true),
            (report(follower, serving, Some("n1:1")), true),
            (report(leader, serving, None), true),
            (report(follower, serving, None), false),
            (report(leader, State::Loading, None), false),
            (Contact::NoProcess, false),
        ];
        for (contact, leads) in cases {
            let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
            table.ordered_to_lead("n2", start);
            table.record("n2", contact.clone(), start, start);
            let is_known_to_lead = table.peers()[0].is_known_to_lead();
            assert_eq!(is_known_to_lead, leads, "{contact:?}");
        }
        let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
        table.record("n2", report(leader, serving, None), start, start);
        table.record("n2", report(follower, serving, Some("n3:1")), start, start);
        assert!(!table.peers()[0].is_known_to_lead(), "it was not ordered");
    }

    #[test]
    fn silence_counts_from_the_last_answer_and_an_older_answer_is_not_taken_for_a_new_one() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
        table.record("n2", Contact::NoProcess, start, at(start, 100));
        let peer = &table.peers()[0];
        assert_eq!(peer.contact_since(start), Some(&Contact::NoProcess));
        assert_eq!(peer.contact_since(at(start, 1)), None);
        assert_eq!(
            peer.silence(start, at(start, 400)),
            Duration::from_millis(300)
        );
        assert_eq!(
            peer.silence(at(start, 200), at(start, 400)),
            Duration::from_millis(200)
        );
        table.record(
            "n2",
            Contact::Silent(String::new()),
            at(start, 100),
            at(start, 300),
        );
        assert_eq!(
            table.peers()[0].silence(start, at(start, 400)),
            Duration::from_millis(300)
        );
    }

    #[test]
    fn each_silence_of_the_leader_is_one_timeout_and_one_return() {
        let start = Instant::now();
        let mut watch = LeaderWatch::new(TIMEOUT, start);
        assert_eq!(watch.check(at(start, 4_999)), None);
        assert_eq!(
            watch.check(at(start, 5_000)),
            Some(LeaderChange::TimedOut(TIMEOUT))
        );
        assert_eq!(watch.check(at(start, 9_000)), None);
        assert!(watch.is_timed_out());
        assert_eq!(
            watch.heard(at(start, 9_500)),
            Some(LeaderChange::Back(Duration::from_millis(9_500)))
        );
        assert_eq!(watch.heard(at(start, 9_600)), None);
        assert_eq!(watch.check(at(start, 14_599)), None);
        assert!(watch.check(at(start, 14_600)).is_some());
    }
}
