//! Decides when a node that stops can end: once another node holds its data.
//!
//! A leader waits until its followers have all entries. It accepts FOLLOW meanwhile, since a follower may be about to
//! reconnect: a leader that is stopped right after its start has accepted writes that no other node has. Then any node
//! asks its peers whether one of them holds its data and does not stop ([`report::keeps_data`](super::report)). A node
//! that alone holds data waits for a peer for 5 seconds, and then ends without one. A node with a data directory needs
//! no peer that holds its data.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use super::liveness::Peer;
use super::report::{Contact, Report, Role, Stopping, keeps_data};

/// How long a peer that is up is waited for. A follower pauses for 5 seconds at most before it asks again.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a node that alone holds its data waits for a peer.
const ALONE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer is waited for that is being sent the data, where no other peer has all of it. Longest time that the
/// synchronization takes.
pub const SENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// Age of a stream from which on it counts as sending. A stream whose offer is refused ends before.
const SENDING_AFTER: Duration = Duration::from_millis(500);

/// Interval at which the peers' progress is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How long the peers have to answer one question.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);

/// A peer, and what it lacks of this node's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAt {
    /// Its name in `cluster.toml`.
    pub name: String,
    /// Whether it is up, as far as is known.
    pub is_up: bool,
    /// `None` where it has everything.
    pub lacks: Option<Lacking>,
}

/// Why a peer is not known to have all of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// It does not follow.
    Absent,
    /// It follows, and has acknowledged this index.
    At(u64),
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lacking::Absent => f.write_str("does not follow"),
            Lacking::At(0) => f.write_str("has not taken all of its full copy"),
            Lacking::At(index) => write!(f, "has applied no more than index {index}"),
        }
    }
}

/// The next thing that a node does about its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It looks again at this time, or when a peer's progress has changed. [`Shutdown::stopping`] may be another word
    /// by now, and the peers are asked at once and often.
    Wait {
        /// The time.
        until: Instant,
        /// The peers that it waits for.
        peers: Vec<String>,
    },
    /// It ends.
    End {
        /// A peer that holds the data; `None` where none is known to. Then the data directory has it, or it is lost.
        keeper: Option<String>,
        /// The peers that were up, and that it waited for in vain.
        missing: Vec<(String, Lacking)>,
    },
}

/// The stop of one node, from the end of its writes on.
#[derive(Debug)]
pub struct Shutdown {
    own_role: Role,
    own_name: String,
    took_writes: bool,
    /// The node has a data directory, which keeps its data.
    has_directory: bool,
    /// Index of the last entry.
    index: u64,
    began: Instant,
    /// By when a peer that is up has to have all entries.
    deadline: Instant,
    /// Peers that had all entries, and have been up since.
    complete: BTreeSet<String>,
    /// Since when a peer is being sent what it lacks.
    sending_since: Option<Instant>,
    question: Option<Question>,
    /// The peers that were missing at the deadline.
    missing: Vec<(String, Lacking)>,
    stopping: Stopping,
}

/// A question to all peers: which of them holds the data.
#[derive(Clone, Copy, Debug)]
struct Question {
    asked: Instant,
    /// A peer has said that it does, and is asked again now that this node is marked as ending.
    is_confirmation: bool,
}

impl Shutdown {
    /// The stop of the node `own`, whose log ends at `index`. `took_writes` says that it accepted writes until now.
    #[must_use]
    pub fn new(own: (Role, &str), index: u64, took_writes: bool, now: Instant) -> Shutdown {
        Shutdown {
            own_role: own.0,
            own_name: own.1.to_owned(),
            took_writes,
            has_directory: false,
            index,
            began: now,
            deadline: now + PEER_TIMEOUT,
            complete: BTreeSet::new(),
            sending_since: None,
            question: None,
            missing: Vec::new(),
            stopping: Stopping::Waiting,
        }
    }

    /// The same for a node with a data directory.
    #[must_use]
    pub fn with_directory(self) -> Shutdown {
        Shutdown {
            has_directory: true,
            ..self
        }
    }

    /// How far the stop has come, for STATUS.
    #[must_use]
    pub const fn stopping(&self) -> Stopping {
        self.stopping
    }

    /// Peers that had all entries, and have been up since.
    pub fn complete(&self) -> impl Iterator<Item = &str> {
        self.complete.iter().map(String::as_str)
    }

    /// The next thing to do. `progress` is how far each peer is with the log, and `peers` what each of them has said.
    pub fn next(&mut self, progress: &[PeerAt], peers: &[Peer], now: Instant) -> Step {
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::StopDoesNotWait) {
            return self.end(Some(self.own_name.clone()));
        }
        if let Some(question) = self.question {
            return self.next_of_question(question, peers, now);
        }
        let lacking = self.incomplete_peers(progress);
        if !lacking.is_empty() && !self.has_directory {
            self.extend_deadline(&lacking, now);
        }
        if lacking.is_empty() || now >= self.deadline {
            self.missing = lacking;
            if self.has_directory {
                self.stopping = Stopping::Ending;
                return self.end(None);
            }
            return self.ask(false, peers, now);
        }
        let peers = lacking.into_iter().map(|(name, _)| name).collect();
        Step::Wait {
            until: now + CHECK_INTERVAL,
            peers,
        }
    }

    /// The peers that are waited for: those that lack entries, and are up or follow this node. A follower waits only
    /// for the peers that follow it.
    fn incomplete_peers(&mut self, progress: &[PeerAt]) -> Vec<(String, Lacking)> {
        let mut lacking = Vec::new();
        for peer in progress {
            let name = &peer.name;
            // The data of a peer that is down is gone, though its stream may not have ended yet.
            if !peer.is_up {
                self.complete.remove(name);
            }
            match peer.lacks {
                None if peer.is_up => drop(self.complete.insert(name.clone())),
                None => {}
                // The peer itself says what it lacks, so it counts whatever the peer had before. A peer that follows
                // is up, though it may be too busy to answer the probe.
                Some(lacks @ Lacking::At(_)) => {
                    self.complete.remove(name);
                    lacking.push((name.clone(), lacks));
                }
                Some(lacks @ Lacking::Absent)
                    if self.took_writes && peer.is_up && !self.complete.contains(name) =>
                {
                    lacking.push((name.clone(), lacks));
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
            self.deadline = (now + PEER_TIMEOUT).min(self.began + SENDING_TIMEOUT);
        }
    }

    /// Asks the peers which of them holds the data.
    fn ask(&mut self, is_confirmation: bool, peers: &[Peer], now: Instant) -> Step {
        let question = Question {
            asked: now,
            is_confirmation,
        };
        self.question = Some(question);
        self.next_of_question(question, peers, now)
    }

    /// The next thing to do while the peers are asked. A peer that keeps the data and does not stop may begin to, and
    /// rely on this node, so the peers are asked again once this node is marked as ending.
    fn next_of_question(&mut self, question: Question, peers: &[Peer], now: Instant) -> Step {
        let own = (self.own_role, self.own_name.as_str());
        let reports = peers
            .iter()
            .filter_map(|peer| match peer.contact_since(question.asked)? {
                Contact::Report(report) => Some(&**report),
                Contact::NoProcess
                | Contact::Stranger(_)
                | Contact::Unclear(_)
                | Contact::Silent(_) => None,
            });
        let mut keepers = reports.filter(|report| keeps_data(own, self.index, report));
        let keeper: Option<&Report> = keepers.next();
        if let Some(keeper) = keeper {
            self.stopping = Stopping::Ending;
            if keeper.stopping == Stopping::No && !question.is_confirmation {
                return self.ask(true, peers, now);
            }
            return self.end(Some(keeper.node.clone()));
        }
        let have_all_answered = peers
            .iter()
            .all(|peer| peer.contact_since(question.asked).is_some());
        if !have_all_answered && now < question.asked + ANSWER_TIMEOUT {
            return self.wait(now + CHECK_INTERVAL / 4);
        }
        if !self.missing.is_empty() || now >= self.began + ALONE_TIMEOUT {
            self.stopping = Stopping::Ending;
            return self.end(None);
        }
        self.stopping = Stopping::Waiting;
        self.question = None;
        self.wait(now + CHECK_INTERVAL)
    }

    fn wait(&self, until: Instant) -> Step {
        let peers = vec!["a peer".to_owned()];
        Step::Wait { until, peers }
    }

    fn end(&mut self, keeper: Option<String>) -> Step {
        let missing = std::mem::take(&mut self.missing);
        Step::End { keeper, missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::core::liveness::Liveness;
    use crate::replication::core::report::{Settings, State};

    const INDEX: u64 = 9;

    fn report(name: &str, index: u64, stopping: Stopping) -> Contact {
        Contact::Report(Box::new(Report {
            node: name.to_owned(),
            cluster: "demo".to_owned(),
            role: Role::Follower,
            state: State::Serving,
            stopping,
            epoch: 1,
            index,
            process: 1,
            settings: Settings::default(),
            peers: vec!["n1".to_owned()],
            follows: None,
        }))
    }

    /// The stop of the leader n1 beside the followers n2 and n3.
    struct Case {
        start: Instant,
        shutdown: Shutdown,
        table: Liveness,
        progress: Vec<PeerAt>,
    }

    impl Case {
        fn new() -> Case {
            let start = Instant::now();
            let names = ["n2", "n3"].map(str::to_owned);
            let at = |name: &str| PeerAt {
                name: name.to_owned(),
                is_up: true,
                lacks: Some(Lacking::At(5)),
            };
            Case {
                start,
                shutdown: Shutdown::new((Role::Leader, "n1"), INDEX, true, start),
                table: Liveness::new(names, Duration::from_secs(5), start),
                progress: vec![at("n2"), at("n3")],
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn next(&mut self, ms: u64) -> Step {
            let now = self.at(ms);
            self.shutdown.next(&self.progress, self.table.peers(), now)
        }

        /// Both peers say this at `ms`.
        fn say(&mut self, index: u64, stopping: Stopping, ms: u64) {
            let now = self.at(ms);
            for name in ["n2", "n3"] {
                self.table
                    .record(name, report(name, index, stopping), now, now);
            }
        }

        fn is_waiting_for(&mut self, ms: u64) -> Vec<String> {
            match self.next(ms) {
                Step::Wait { peers, .. } => peers,
                Step::End { .. } => Vec::new(),
            }
        }
    }

    #[test]
    fn a_leader_ends_once_its_followers_have_everything_and_one_has_said_twice_that_it_stays() {
        let mut case = Case::new();
        case.say(INDEX, Stopping::No, 0);
        assert_eq!(case.is_waiting_for(0), ["n2", "n3"]);
        case.progress[0].lacks = None;
        assert_eq!(case.is_waiting_for(20), ["n3"]);
        case.progress[1].lacks = None;
        // Only reports of after the question count.
        assert_eq!(case.is_waiting_for(40), ["a peer"]);
        assert_eq!(case.shutdown.stopping(), Stopping::Waiting);
        case.say(INDEX, Stopping::No, 45);
        assert_eq!(case.is_waiting_for(46), ["a peer"]);
        assert_eq!(case.shutdown.stopping(), Stopping::Ending);
        case.say(INDEX, Stopping::No, 50);
        let keeper = Some("n2".to_owned());
        let missing = Vec::new();
        assert_eq!(case.next(50), Step::End { keeper, missing });
    }

    #[test]
    fn a_peer_that_begins_to_stop_meanwhile_is_not_relied_on() {
        let mut case = Case::new();
        case.progress.iter_mut().for_each(|peer| peer.lacks = None);
        case.next(0);
        case.say(INDEX, Stopping::No, 10);
        case.next(11);
        assert_eq!(case.shutdown.stopping(), Stopping::Ending);
        case.say(INDEX, Stopping::Ending, 20);
        assert_eq!(case.is_waiting_for(21), ["a peer"]);
        assert_eq!(case.shutdown.stopping(), Stopping::Waiting);
    }

    #[test]
    fn a_node_that_alone_holds_the_data_ends_without_a_keeper_after_five_seconds() {
        let mut case = Case::new();
        case.progress.iter_mut().for_each(|peer| {
            peer.is_up = false;
            peer.lacks = Some(Lacking::Absent);
        });
        for ms in (0..5_000).step_by(100) {
            assert!(matches!(case.next(ms), Step::Wait { .. }), "{ms}");
        }
        let ends = (5_000..5_400).step_by(100).map(|ms| case.next(ms));
        let ends: Vec<Step> = ends
            .filter(|step| matches!(step, Step::End { .. }))
            .collect();
        let (keeper, missing) = (None, Vec::new());
        assert_eq!(ends.first(), Some(&Step::End { keeper, missing }));
    }

    #[test]
    fn a_peer_that_is_up_and_lacks_entries_is_waited_for_until_the_deadline_and_named() {
        let mut case = Case::new();
        case.progress[0].lacks = None;
        case.progress[1].lacks = Some(Lacking::Absent);
        assert_eq!(case.is_waiting_for(5_999), ["n3"]);
        case.next(6_000);
        case.say(INDEX, Stopping::No, 6_010);
        case.next(6_011);
        case.say(INDEX, Stopping::No, 6_020);
        let missing = vec![("n3".to_owned(), Lacking::Absent)];
        let keeper = Some("n2".to_owned());
        assert_eq!(case.next(6_020), Step::End { keeper, missing });
    }

    #[test]
    fn a_peer_that_is_sent_the_data_is_waited_for_longer_where_no_other_has_it() {
        let mut case = Case::new();
        for ms in (0..60_000).step_by(500) {
            let step = case.next(ms);
            assert!(matches!(step, Step::Wait { .. }), "{ms}: {step:?}");
        }
        case.next(60_000);
        assert!(matches!(case.next(60_300), Step::End { keeper: None, .. }));
    }
}
