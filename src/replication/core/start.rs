//! Decides what a node that is to lead does before it leads, by what its peers say.

use std::time::{Duration, Instant};

use super::liveness::Peer;
use super::report::{Contact, Report, Role, State, Stopping};
use crate::history::History;

use super::rules::{PeerPosition, Position, most_up_to_date, next_epoch};

/// The next step of a node that is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It asks again.
    Wait {
        /// The text for the log and for LOADING: the peer that it waits for, and why.
        reason: String,
        /// Two nodes are to lead: an operator has to decide.
        is_conflict: bool,
    },
    /// The peer leads: the node follows it.
    Follow {
        /// The peer's name.
        peer: String,
        /// Whether the peer leads by its own `cluster.toml`, which names another leader than this node's.
        files_differ: bool,
    },
    /// The peer holds the newest data: the node catches up with it.
    CatchUp {
        /// The peer's name.
        peer: String,
        /// Epoch of the peer's data set.
        epoch: u64,
        /// Index of its last entry.
        index: u64,
        /// Peers that were silent for the timeout: name, and the last failure.
        passed_over: Vec<(String, String)>,
    },
    /// No peer holds newer data: the node leads, in this epoch.
    Lead {
        /// The epoch that it opens.
        epoch: u64,
        /// Peers that were silent for the timeout: name, and the last failure.
        passed_over: Vec<(String, String)>,
    },
}

/// The knowledge of a peer that the decision needs.
enum Answer<'a> {
    Report(&'a Report),
    /// It has no data as far as can be known: no process, or another node at its address.
    Absent,
    /// It was silent for the timeout.
    PassedOver(String),
    /// It may have data: ask again.
    Unknown(String),
}

/// Decides what the node `own` does next. It is to lead and began to ask at `began`; only answers to questions since
/// then count.
///
/// * The node follows a peer that leads, whatever the configuration says.
/// * It waits while a peer still follows another leader: that leader may have the node's own name, at an earlier
///   address. A stream whose leader is gone ends within the peer's leader timeout.
/// * It waits without limit for a peer that is to lead as well, and for one whose answer is unclear.
/// * A node with a data directory waits for a peer that does not run until `timeout` has passed.
/// * It waits for a silent peer until `timeout` has passed, and without limit where that one led when it was last
///   heard.
/// * Then it catches up with the peer that is most up to date, and at last it leads.
#[must_use]
pub fn next(own: Own<'_>, peers: &[Peer], began: Instant, timeout: Duration, now: Instant) -> Next {
    let answers: Vec<(&str, Answer<'_>)> = peers
        .iter()
        .map(|peer| (peer.name.as_str(), answer(own, peer, began, timeout, now)))
        .collect();
    let reports = || {
        answers.iter().filter_map(|(name, answer)| match answer {
            Answer::Report(report) => Some((*name, *report)),
            Answer::Absent | Answer::PassedOver(_) | Answer::Unknown(_) => None,
        })
    };
    let claims = || reports().filter(|(_, report)| report.role == Role::Leader);
    // One that serves first: two claimants both follow it.
    for state in [State::Serving, State::Loading, State::Refused] {
        let in_state = claims().filter(|(_, report)| report.state == state);
        if let Some(next) = in_state
            .filter_map(|(name, report)| beside_leader(own, name, report))
            .next()
        {
            return next;
        }
    }
    for (name, report) in reports() {
        if let Some(leader) = &report.follows {
            // The peers of one that has handed over may not know it yet.
            let hint = if own.has_led {
                "this node leads no more"
            } else {
                "this node is to lead; stop one of the two"
            };
            return Next::Wait {
                reason: format!("{name} follows a leader at {leader}, and {hint}"),
                is_conflict: !own.has_led,
            };
        }
    }
    for (_, answer) in &answers {
        if let Answer::Unknown(reason) = answer {
            let (reason, is_conflict) = (reason.clone(), false);
            return Next::Wait {
                reason,
                is_conflict,
            };
        }
    }
    let passed_over = answers.iter().filter_map(|(name, answer)| match answer {
        Answer::PassedOver(how) => Some(((*name).to_owned(), how.clone())),
        Answer::Report(_) | Answer::Absent | Answer::Unknown(_) => None,
    });
    let passed_over = passed_over.collect();
    let reports: Vec<(&str, &Report)> = reports().collect();
    catch_up_or_lead(own, &reports, passed_over)
}

/// Whether the reported peer holds newer data than this node.
fn is_ahead(report: &Report, own: Own<'_>) -> bool {
    let position = Position::of(own.history, own.index);
    report.holds_data() && (report.epoch, report.index) > (position.epoch, position.index)
}

/// The next step where nothing is waited for any more: the node catches up with the peer that is most up to date, or
/// leads where its own data are as new.
fn catch_up_or_lead(
    own: Own<'_>,
    reports: &[(&str, &Report)],
    passed_over: Vec<(String, String)>,
) -> Next {
    let positions: Vec<PeerPosition> = reports
        .iter()
        .map(|(_, report)| PeerPosition {
            epoch: report.epoch,
            index: report.index,
            has_data: report.holds_data(),
        })
        .collect();
    let position = Position::of(own.history, own.index);
    let best = most_up_to_date(&positions).map(|at| (reports[at].0, positions[at]));
    match best {
        Some((peer, PeerPosition { epoch, index, .. }))
            if (epoch, index) > (position.epoch, position.index) =>
        {
            Next::CatchUp {
                peer: peer.to_owned(),
                epoch,
                index,
                passed_over,
            }
        }
        Some(_) | None => {
            let epoch = next_epoch(own.history, &positions);
            Next::Lead { epoch, passed_over }
        }
    }
}

/// The position of the node that decides.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The history of its data set; empty where it holds nothing.
    pub history: &'a History,
    /// Index of its last record.
    pub index: u64,
    /// Digest of the leader's name in its `cluster.toml`.
    pub leader_setting: u64,
    /// Whether it led until it ordered a peer to lead.
    pub has_led: bool,
    /// Whether it has a data directory. Its peers may have one too, and data in it while they do not run.
    pub has_directory: bool,
}

fn answer<'a>(
    own: Own<'_>,
    peer: &'a Peer,
    began: Instant,
    timeout: Duration,
    now: Instant,
) -> Answer<'a> {
    let name = &peer.name;
    let how = match peer.contact_since(began) {
        Some(Contact::Report(report)) => return Answer::Report(report),
        Some(Contact::NoProcess) if own.has_directory => {
            let how = "connection refused";
            if now.saturating_duration_since(began) >= timeout {
                return Answer::PassedOver(how.to_owned());
            }
            let reason = format!("this leader is waiting for {name}, which may have data: {how}");
            return Answer::Unknown(reason);
        }
        Some(Contact::NoProcess | Contact::Stranger(_)) => return Answer::Absent,
        Some(Contact::Unclear(text)) => {
            let reason = format!("{name} may hold data and cannot be asked: {text}");
            return Answer::Unknown(reason);
        }
        Some(Contact::Silent(how)) => how.as_str(),
        None => "no answer yet",
    };
    if peer.is_known_to_lead() {
        let reason = format!("{name} led when it was last heard, and does not answer: {how}");
        return Answer::Unknown(reason);
    }
    if peer.silence(began, now) >= timeout {
        return Answer::PassedOver(how.to_owned());
    }
    Answer::Unknown(format!("this leader is asking {name} for data: {how}"))
}

/// The next step where a peer is to lead by its own configuration. `None` where that peer has yielded to another
/// leader and takes no writes: it then counts as a follower.
fn beside_leader(own: Own<'_>, name: &str, report: &Report) -> Option<Next> {
    let wait = |reason: String, is_conflict| {
        Some(Next::Wait {
            reason,
            is_conflict,
        })
    };
    match (report.state, report.stopping) {
        (State::Refused, _) => None,
        (State::Serving | State::Loading, Stopping::Ending)
        | (State::Loading, Stopping::Waiting) => wait(format!("{name} is stopping"), false),
        (State::Serving, Stopping::No | Stopping::Waiting) => Some(Next::Follow {
            peer: name.to_owned(),
            files_differ: report.settings.leader != own.leader_setting,
        }),
        // Two candidates would wait for each other. One that led until now has everything that the other can have.
        (State::Loading, Stopping::No) if own.has_led && !is_ahead(report, own) => None,
        (State::Loading, Stopping::No) => wait(
            format!(
                "{name} is to lead as well, by its own cluster.toml; correct leader in one of the files and restart \
                 that node"
            ),
            true,
        ),
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::history::EpochStart;
    use crate::replication::core::liveness::Liveness;
    use crate::replication::core::report::Settings;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn report(name: &str, role: Role, state: State, epoch: u64, index: u64) -> Contact {
        Contact::Report(Box::new(Report {
            node: name.to_owned(),
            cluster: "demo".to_owned(),
            role,
            state,
            stopping: Stopping::No,
            epoch,
            index,
            process: 1,
            settings: Settings::default(),
            peers: vec!["n1".to_owned()],
            follows: None,
        }))
    }

    fn follower(name: &str, state: State, epoch: u64, index: u64) -> Contact {
        report(name, Role::Follower, state, epoch, index)
    }

    /// Epoch and index of n1's data.
    type Place = (u64, u64);
    const NOTHING: Place = (0, 0);

    fn history(epoch: u64) -> History {
        let start = EpochStart {
            epoch,
            nonce: 7,
            start_index: 1,
        };
        History::new(Vec::from_iter((epoch > 0).then_some(start))).unwrap()
    }

    /// The next step of n1 after these contacts of n2 and n3, `ms` after it began to ask.
    fn decide(place: Place, contacts: [Option<Contact>; 2], ms: u64) -> Next {
        decide_with(place, contacts, ms, false)
    }

    fn decide_with(
        (epoch, index): Place,
        contacts: [Option<Contact>; 2],
        ms: u64,
        has_directory: bool,
    ) -> Next {
        let began = Instant::now();
        let mut table = Liveness::new(["n2", "n3"].map(str::to_owned), TIMEOUT, began);
        for (name, contact) in ["n2", "n3"].into_iter().zip(contacts) {
            if let Some(contact) = contact {
                table.record(name, contact, began, began);
            }
        }
        let now = began + Duration::from_millis(ms);
        let history = history(epoch);
        let own = Own {
            history: &history,
            index,
            leader_setting: 0,
            has_led: false,
            has_directory,
        };
        next(own, table.peers(), began, TIMEOUT, now)
    }

    fn lead(epoch: u64, passed_over: &[(&str, &str)]) -> Next {
        let own = |&(name, how): &(&str, &str)| (name.to_owned(), how.to_owned());
        Next::Lead {
            epoch,
            passed_over: passed_over.iter().map(own).collect(),
        }
    }

    #[test]
    fn only_peers_that_say_so_have_no_data() {
        let none = || Some(Contact::NoProcess);
        assert_eq!(decide(NOTHING, [none(), none()], 0), lead(1, &[]));
        let stranger = Some(Contact::Stranger("node m1 of cluster other".to_owned()));
        assert_eq!(decide(NOTHING, [stranger, none()], 0), lead(1, &[]));
        let empty = Some(follower("n2", State::Loading, 0, 0));
        assert_eq!(decide(NOTHING, [empty, none()], 0), lead(1, &[]));
        // However long it lasts.
        let unclear = || Some(Contact::Unclear("it answers ERROR: too many".to_owned()));
        for ms in [0, 4_999, 3_600_000] {
            let next = decide(NOTHING, [none(), unclear()], ms);
            let Next::Wait { reason, .. } = next else {
                panic!("{next:?}");
            };
            assert!(
                reason.contains("n3") && reason.contains("too many"),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_node_with_a_directory_waits_for_peers_that_do_not_run() {
        let none = || Some(Contact::NoProcess);
        let next = |contacts, ms| decide_with((3, 12), contacts, ms, true);
        let Next::Wait { reason, .. } = next([none(), none()], 4_999) else {
            panic!("it does not wait");
        };
        assert!(reason.contains("n2, which may have data"), "{reason}");
        let refused = "connection refused";
        let passed_over = [("n2", refused), ("n3", refused)];
        assert_eq!(next([none(), none()], 5_000), lead(4, &passed_over));
        // One that runs again is asked.
        let ahead = Some(follower("n3", State::Serving, 3, 13));
        let next = next([none(), ahead], 5_000);
        assert!(
            matches!(&next, Next::CatchUp { peer, .. } if peer == "n3"),
            "{next:?}"
        );
    }

    #[test]
    fn a_silent_peer_is_waited_for_until_the_timeout() {
        let silent = || Some(Contact::Silent("timed out".to_owned()));
        let data = || Some(follower("n3", State::Serving, 4, 9));
        for contact in [None, silent()] {
            let next = decide(NOTHING, [contact, data()], 4_999);
            assert!(matches!(next, Next::Wait { .. }), "{next:?}");
        }
        let next = decide(NOTHING, [silent(), data()], 5_000);
        let expected = Next::CatchUp {
            peer: "n3".to_owned(),
            epoch: 4,
            index: 9,
            passed_over: vec![("n2".to_owned(), "timed out".to_owned())],
        };
        assert_eq!(next, expected);
    }

    #[test]
    fn the_most_up_to_date_is_caught_up_with_unless_the_own_data_is_as_new() {
        let peers = || {
            let behind = follower("n2", State::Serving, 4, 7);
            [Some(behind), Some(follower("n3", State::Serving, 4, 9))]
        };
        for behind in [NOTHING, (4, 8), (3, 12)] {
            let next = decide(behind, peers(), 0);
            assert!(
                matches!(&next, Next::CatchUp { peer, .. } if peer == "n3"),
                "{next:?}"
            );
        }
        assert_eq!(decide((4, 9), peers(), 0), lead(5, &[]));
        assert_eq!(decide((5, 1), peers(), 0), lead(6, &[]));
    }

    #[test]
    fn a_peer_that_follows_another_leader_is_waited_for() {
        let mut follows = follower("n2", State::Serving, 4, 9);
        if let Contact::Report(report) = &mut follows {
            report.follows = Some("h:1".to_owned());
        }
        let next = decide(
            NOTHING,
            [Some(follows), Some(Contact::NoProcess)],
            3_600_000,
        );
        let Next::Wait {
            reason,
            is_conflict: true,
        } = next
        else {
            panic!("{next:?}");
        };
        assert!(reason.contains("n2 follows a leader at h:1"), "{reason}");
    }

    #[test]
    fn a_peer_that_leads_is_followed_and_one_that_is_to_lead_is_waited_for() {
        let silent = || Some(Contact::Silent("timed out".to_owned()));
        let leads = Some(report("n3", Role::Leader, State::Serving, 2, 5));
        let next = decide(NOTHING, [silent(), leads], 0);
        assert!(
            matches!(&next, Next::Follow { peer, .. } if peer == "n3"),
            "{next:?}"
        );
        let claims = Some(report("n2", Role::Leader, State::Loading, 0, 0));
        let data = Some(follower("n3", State::Serving, 4, 9));
        let next = decide(NOTHING, [claims, data], 3_600_000);
        assert!(
            matches!(
                &next,
                Next::Wait {
                    is_conflict: true,
                    ..
                }
            ),
            "{next:?}"
        );
    }
}
