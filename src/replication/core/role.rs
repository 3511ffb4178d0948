//! Decides which leader a node follows, and when the node that is to lead at first looks for data again.

use std::time::Instant;

use super::liveness::Peer;
use super::report::{Contact, Report, Role, State};

/// The choice of a node that does not lead and is not about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It follows this peer, or tries to.
    Follow(String),
    /// It is to lead, since no node leads: it asks for data first ([`start::next`](super::start::next)).
    Campaign,
}

/// The order of a leader that its follower leads from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeadOrder {
    /// The epoch of the leader that gives the order.
    pub epoch: u64,
    /// The index of the last record of that leader's log.
    pub last_index: u64,
    /// The digest of the data set there.
    pub digest: u128,
}

/// The names that the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The node itself.
    pub own: &'a str,
    /// The leader that `cluster.toml` names: it leads at first, and whenever no node leads.
    pub initial: &'a str,
    /// The leader that the node follows or tries to follow; `None` where it has none.
    pub current: Option<&'a str>,
}

/// Chooses the leader of a node without a stream, by what its peers have said since `since`, when the node lost its
/// leader.
///
/// * The node follows a peer that leads, whatever its file says; of several the one with the latest epoch.
/// * Where no peer is known to lead, it goes on trying its leader as long as that may lead again: it is silent, or it
///   is a candidate.
/// * Otherwise the initial leader looks for data and leads, and the others try the initial leader. No silence alone
///   makes a node lead that has followed another one.
#[must_use]
pub fn choose(names: Names<'_>, peers: &[Peer], since: Instant) -> Choice {
    if let Some(leader) = leading(peers, since) {
        return Choice::Follow(leader.node.clone());
    }
    let may_lead_again = |name: &&str| {
        let peer = peers.iter().find(|peer| peer.name == *name);
        peer.is_some_and(|peer| may_lead(peer.contact_since(since)))
    };
    match names.current.filter(may_lead_again) {
        Some(current) => Choice::Follow(current.to_owned()),
        None if names.initial == names.own => Choice::Campaign,
        None => Choice::Follow(names.initial.to_owned()),
    }
}

/// The report of the peer that leads, by what the peers have said since `since`; of several the one with the latest
/// epoch. Equal epochs are told apart by the number of the process.
#[must_use]
pub fn leading(peers: &[Peer], since: Instant) -> Option<&Report> {
    let reports = peers
        .iter()
        .filter_map(|peer| match peer.contact_since(since)? {
            Contact::Report(report) => Some(&**report),
            Contact::NoProcess
            | Contact::Stranger(_)
            | Contact::Unclear(_)
            | Contact::Silent(_) => None,
        });
    let leaders = reports.filter(|report| report.leads());
    leaders.max_by_key(|report| (report.epoch, report.process))
}

/// Whether a leader that was lost may lead again, by the result of the last attempt to ask it since then.
fn may_lead(contact: Option<&Contact>) -> bool {
    match contact {
        Some(Contact::Report(report)) => {
            report.role == Role::Leader && report.state != State::Refused
        }
        Some(Contact::NoProcess | Contact::Stranger(_)) => false,
        Some(Contact::Unclear(_) | Contact::Silent(_)) | None => true,
    }
}

/// Whether a node that follows `current` in this epoch leaves it for the reported peer: one that leads in a later
/// epoch.
#[must_use]
pub fn supersedes(report: &Report, current: &str, epoch: u64) -> bool {
    report.leads() && report.node != current && report.epoch > epoch
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replication::core::liveness::Liveness;
    use crate::replication::core::report::{Settings, Stopping};

    fn report(name: &str, role: Role, state: State, epoch: u64) -> Contact {
        Contact::Report(Box::new(Report {
            node: name.to_owned(),
            cluster: "demo".to_owned(),
            role,
            state,
            stopping: Stopping::No,
            epoch,
            index: 9,
            process: 1,
            settings: Settings::default(),
            peers: vec!["n1".to_owned()],
            follows: None,
        }))
    }

    fn leader(name: &str, epoch: u64) -> Option<Contact> {
        Some(report(name, Role::Leader, State::Serving, epoch))
    }

    fn follower(name: &str) -> Option<Contact> {
        Some(report(name, Role::Follower, State::Serving, 3))
    }

    fn candidate(name: &str) -> Option<Contact> {
        Some(report(name, Role::Leader, State::Loading, 3))
    }

    /// The choice of `own`, whose file names n1, after these contacts of n1, n2 and n3.
    fn decide(own: &str, current: Option<&str>, contacts: [Option<Contact>; 3]) -> Choice {
        let now = Instant::now();
        let names = ["n1", "n2", "n3"];
        let mut table = Liveness::new(names.map(str::to_owned), Duration::from_secs(5), now);
        for (name, contact) in names.into_iter().zip(contacts) {
            if let Some(contact) = contact.filter(|_| name != own) {
                table.record(name, contact, now, now);
            }
        }
        let initial = "n1";
        choose(
            Names {
                own,
                initial,
                current,
            },
            table.peers(),
            now,
        )
    }

    fn follow(name: &str) -> Choice {
        Choice::Follow(name.to_owned())
    }

    #[test]
    fn a_node_follows_the_peer_that_leads_whatever_its_file_says() {
        for current in [None, Some("n1"), Some("n2")] {
            let choice = decide("n3", current, [candidate("n1"), leader("n2", 4), None]);
            assert_eq!(choice, follow("n2"));
        }
        assert_eq!(
            decide("n1", Some("n2"), [None, follower("n2"), leader("n3", 4)]),
            follow("n3"),
            "the initial leader too"
        );
        assert_eq!(
            decide("n3", Some("n1"), [leader("n1", 3), leader("n2", 4), None]),
            follow("n2"),
            "the later epoch"
        );
    }

    #[test]
    fn a_leader_that_may_lead_again_is_tried_on() {
        let silent = || Some(Contact::Silent("timed out".to_owned()));
        let unclear = || Some(Contact::Unclear("ERROR".to_owned()));
        for lost in [None, silent(), unclear(), candidate("n2")] {
            for own in ["n1", "n3"] {
                let contacts = [follower("n1"), lost.clone(), follower("n3")];
                assert_eq!(decide(own, Some("n2"), contacts), follow("n2"), "{lost:?}");
            }
        }
    }

    #[test]
    fn where_no_node_leads_the_initial_leader_does() {
        let refused = Some(report("n2", Role::Leader, State::Refused, 3));
        let stranger = Some(Contact::Stranger("another".to_owned()));
        for lost in [Some(Contact::NoProcess), follower("n2"), refused, stranger] {
            let contacts = || [follower("n1"), lost.clone(), follower("n3")];
            assert_eq!(decide("n1", Some("n2"), contacts()), Choice::Campaign);
            assert_eq!(decide("n3", Some("n2"), contacts()), follow("n1"));
        }
        assert_eq!(decide("n1", None, [None, None, None]), Choice::Campaign);
        assert_eq!(decide("n3", None, [None, None, None]), follow("n1"));
    }

    #[test]
    fn only_a_leader_of_a_later_epoch_supersedes_the_one_that_is_followed() {
        let supersedes = |contact: Option<Contact>| match contact {
            Some(Contact::Report(report)) => super::supersedes(&report, "n1", 3),
            other => unreachable!("{other:?}"),
        };
        assert!(supersedes(leader("n2", 4)));
        assert!(!supersedes(leader("n2", 3)));
        assert!(!supersedes(leader("n1", 4)), "it is the same one");
        assert!(!supersedes(candidate("n2")) && !supersedes(follower("n2")));
    }
}
