//! Reads the STATUS of a peer, and decides whether a stopping node can rely on that peer.
//!
//! Nodes ask each other for STATUS (GBP §4) at every heartbeat, when a leader starts, and when a node stops. Only an OK
//! of the expected node of the expected cluster is a [`Report`]. [`Contact`] keeps the other results of an attempt
//! apart: a failure to learn something must not be taken for knowledge of the opposite.

use std::fmt;

/// Whether a node is to lead, by its own `cluster.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is to lead.
    Leader,
    /// It is to follow.
    Follower,
}

/// State of a node's data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves no complete data set.
    Loading,
    /// It serves a complete data set.
    Serving,
    /// It serves a data set that the leader does not have, and does not follow.
    Refused,
}

/// How far a node's stop has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stopping {
    /// The node does not stop.
    #[default]
    No,
    /// It stops, and waits until another node holds its data.
    Waiting,
    /// It has decided to end.
    Ending,
}

impl Stopping {
    /// The word in STATUS.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stopping::No => "no",
            Stopping::Waiting => "waiting",
            Stopping::Ending => "ending",
        }
    }
}

/// Digests of the groups of settings in which the files of a cluster's nodes must agree. Equal settings have equal
/// digests; addresses are in none of them, since nodes may reach each other by different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The names of all nodes.
    pub members: u64,
    /// The name of the leader.
    pub leader: u64,
    /// The sections `[replication]` and `[limits]`.
    pub limits: u64,
    /// The limit of the data set's memory in bytes; `None` where there is none. It is a part of `limits` too.
    pub max_memory_bytes: Option<u64>,
}

impl Settings {
    /// Name and digest of each group.
    #[must_use]
    pub const fn groups(&self) -> [(&'static str, u64); 3] {
        [
            ("members", self.members),
            ("leader", self.leader),
            ("limits", self.limits),
        ]
    }

    /// Names of the groups in which two files differ.
    #[must_use]
    pub fn differences(&self, other: &Settings) -> Vec<&'static str> {
        let groups = self.groups().into_iter().zip(other.groups());
        let differ = groups.filter(|((_, own), (_, other))| own != other);
        differ.map(|((name, _), _)| name).collect()
    }
}

/// The STATUS of a node, as its peers read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub node: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Whether it is to lead.
    pub role: Role,
    /// State of its data set.
    pub state: State,
    /// How far its stop has come.
    pub stopping: Stopping,
    /// Epoch of the last record that it holds; 0 where it holds no data set.
    pub epoch: u64,
    /// Index of that record.
    pub index: u64,
    /// Number of its process, drawn at its start.
    pub process: u64,
    /// Digests of its settings.
    pub settings: Settings,
    /// Names of its peers.
    pub peers: Vec<String>,
    /// Address of the leader that the node follows; `None` where it has no stream.
    pub follows: Option<String>,
}

/// A STATUS without a line that this version needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The line that is missing or has no valid value.
    pub key: &'static str,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its STATUS has no valid line {}", self.key)
    }
}

impl Report {
    /// Reads the lines of a STATUS.
    ///
    /// # Errors
    ///
    /// The first line that is missing or not valid. No default takes its place.
    pub fn parse(text: &str) -> Result<Report, Unreadable> {
        let field = |key: &'static str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(name, _)| *name == key);
            found.map(|(_, value)| value).ok_or(Unreadable { key })
        };
        let number = |key| field(key)?.parse().map_err(|_| Unreadable { key });
        let hex = |key| u64::from_str_radix(field(key)?, 16).map_err(|_| Unreadable { key });
        let role = match field("role")? {
            "leader" => Role::Leader,
            "follower" => Role::Follower,
            _ => return Err(Unreadable { key: "role" }),
        };
        let state = match field("state")? {
            "loading" => State::Loading,
            "serving" => State::Serving,
            "refused" => State::Refused,
            _ => return Err(Unreadable { key: "state" }),
        };
        let stopping = match field("stopping")? {
            "no" => Stopping::No,
            "waiting" => Stopping::Waiting,
            "ending" => Stopping::Ending,
            _ => return Err(Unreadable { key: "stopping" }),
        };
        let peers = text.lines().filter_map(|line| {
            let (key, _) = line.split_once(": ")?;
            key.strip_prefix("peer.")?.strip_suffix(".addr")
        });
        Ok(Report {
            node: field("node")?.to_owned(),
            cluster: field("cluster")?.to_owned(),
            role,
            state,
            stopping,
            epoch: number("epoch")?,
            index: number("index")?,
            process: hex("process")?,
            settings: Settings {
                members: hex("settings.members")?,
                leader: hex("settings.leader")?,
                limits: hex("settings.limits")?,
                // A node of an earlier version has no such line, and no limit.
                max_memory_bytes: number("max_memory_bytes").ok().filter(|&bytes| bytes > 0),
            },
            peers: peers.map(str::to_owned).collect(),
            follows: match (field("link"), field("leader")) {
                (Ok("up"), Ok(leader)) => Some(leader.to_owned()),
                _ => None,
            },
        })
    }

    /// Whether it holds a complete data set that has not diverged. A node that is to lead may hold one before it
    /// serves: the data set of another node that still leads.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        match self.state {
            State::Serving | State::Refused => true,
            State::Loading => self.role == Role::Leader && self.epoch > 0,
        }
    }

    /// Whether it takes writes, or took them until its stop began.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.role == Role::Leader && self.state == State::Serving
    }
}

/// The result of an attempt to ask a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The expected node answered.
    Report(Box<Report>),
    /// Every address of the peer refused the connection: no process listens there.
    NoProcess,
    /// A node of another cluster answered; the text names it.
    Stranger(String),
    /// Something answered, but not with a report; the text says what. The expected node may be alive.
    Unclear(String),
    /// No answer came; the text says how the attempt failed.
    Silent(String),
}

/// Identity of the node that asks, and of the one that it expects.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The own cluster's name.
    pub cluster: &'a str,
    /// The own name.
    pub own: &'a str,
    /// The peer's name.
    pub peer: &'a str,
}

impl Expected<'_> {
    /// Judges the STATUS that came from `addr`.
    #[must_use]
    pub fn judge(&self, addr: &str, text: &str) -> Contact {
        let named = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(name, _)| *name == key);
            found.map_or("-", |(_, value)| value)
        };
        let (node, cluster) = (named("node"), named("cluster"));
        let who = format!("node {node} of cluster {cluster} answers at {addr}");
        if cluster != self.cluster {
            return Contact::Stranger(who);
        }
        if node != self.peer {
            // The addresses are mixed up, so the expected node may be anywhere.
            return Contact::Unclear(format!("{who}; correct addr in cluster.toml"));
        }
        match Report::parse(text) {
            Err(error) => Contact::Unclear(format!("{error}; is it of another version?")),
            Ok(report) if !report.peers.iter().any(|peer| peer == self.own) => {
                let (own, peer) = (self.own, self.peer);
                Contact::Unclear(format!(
                    "its cluster.toml does not name {own}; {peer} and {own} need the same nodes in their files"
                ))
            }
            Ok(report) => Contact::Report(Box::new(report)),
        }
    }
}

/// Whether `a` ends after `b` where both stop, and so keeps the data for `b`. The leader ends last, and before it the
/// followers in the reverse order of their names.
fn stays_before(a: (Role, &str), b: (Role, &str)) -> bool {
    let rank = |(role, name)| (role == Role::Follower, name);
    rank(a) < rank(b)
}

/// Whether a node that stops at `index` can end without loss: the reported peer holds all of its data and stays.
///
/// Two nodes that stop at the same time must not each rely on the other. Only the one that ends first relies on the
/// other: the leader ends last, and of two followers the one whose name comes first. A node that relies on one that
/// does not stop sets its own [`Stopping::Ending`] and asks again, so that at least one of the two sees the mark of the
/// other.
#[must_use]
pub fn keeps_data(own: (Role, &str), index: u64, peer: &Report) -> bool {
    let stays = match peer.stopping {
        Stopping::No => true,
        Stopping::Waiting => stays_before((peer.role, &peer.node), own),
        Stopping::Ending => false,
    };
    stays && peer.state != State::Refused && peer.holds_data() && peer.index >= index
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "node: n2\ncluster: demo\nrole: follower\nstate: serving\nreason: -\nstopping: no\nepoch: 3\n\
                        index: 7\nprocess: 00000000000000ff\nsettings.members: 01\nsettings.leader: 02\n\
                        settings.limits: 03\npeer.n1.addr: h:1\npeer.n1.state: up\npeer.n3.addr: h:3\nlater: x\n";

    const EXPECTED: Expected<'_> = Expected {
        cluster: "demo",
        own: "n1",
        peer: "n2",
    };

    fn report() -> Report {
        Report::parse(TEXT).unwrap()
    }

    #[test]
    fn a_status_is_read_or_the_line_that_is_wrong_is_named() {
        let report = report();
        assert_eq!((report.epoch, report.index, report.process), (3, 7, 255));
        assert_eq!(report.peers, ["n1", "n3"]);
        assert_eq!(report.follows, None);
        for (link, follows) in [("up", Some("h:1")), ("down", None), ("timeout", None)] {
            let text = format!("{TEXT}leader: h:1\nlink: {link}\n");
            assert_eq!(Report::parse(&text).unwrap().follows.as_deref(), follows);
        }
        for line in TEXT.lines().take(12).filter(|line| *line != "reason: -") {
            let (key, _) = line.split_once(": ").unwrap();
            let without = TEXT.replace(&format!("{line}\n"), "");
            assert_eq!(Report::parse(&without).unwrap_err().key, key);
            if !matches!(key, "node" | "cluster") {
                let wrong = TEXT.replace(line, &format!("{key}: ?"));
                assert_eq!(Report::parse(&wrong).unwrap_err().key, key);
            }
        }
    }

    #[test]
    fn only_the_expected_node_that_knows_the_own_one_gives_a_report() {
        let judge = |text: &str| EXPECTED.judge("h:2", text);
        assert_eq!(judge(TEXT), Contact::Report(Box::new(report())));
        let strangers = [
            ("cluster: demo", "cluster: other"),
            ("cluster: demo", "cluster: -"),
            ("cluster: demo\n", ""),
        ];
        for (from, to) in strangers {
            let contact = judge(&TEXT.replace(from, to));
            assert!(matches!(contact, Contact::Stranger(_)), "{to}: {contact:?}");
        }
        for (from, to) in [
            ("peer.n1.addr", "peer.n4.addr"),
            ("epoch: 3", "epoch: x"),
            // Addresses of one cluster that are mixed up.
            ("node: n2", "node: n3"),
            ("node: n2", "node: n1"),
        ] {
            let contact = judge(&TEXT.replace(from, to));
            assert!(matches!(contact, Contact::Unclear(_)), "{to}: {contact:?}");
        }
    }

    #[test]
    fn groups_of_settings_that_differ_are_named() {
        let own = report().settings;
        assert!(own.differences(&own).is_empty());
        let other = Settings {
            leader: 9,
            limits: 9,
            ..own
        };
        assert_eq!(own.differences(&other), ["leader", "limits"]);
    }

    /// Of two nodes that stop at once, each of which has seen any mark of the other that it can have, not both end
    /// relying on the other.
    #[test]
    fn of_two_nodes_that_stop_at_once_one_at_least_keeps_the_data() {
        let node = |name: &str, role, stopping| Report {
            node: name.to_owned(),
            role,
            stopping,
            ..report()
        };
        let roles = [
            (Role::Leader, Role::Follower),
            (Role::Follower, Role::Follower),
            (Role::Follower, Role::Leader),
        ];
        for (role_a, role_b) in roles {
            for (a, b) in [
                (Stopping::Ending, Stopping::Waiting),
                (Stopping::Waiting, Stopping::Ending),
                (Stopping::Ending, Stopping::Ending),
                (Stopping::Waiting, Stopping::Waiting),
            ] {
                let a_ends = keeps_data((role_a, "n1"), 7, &node("n2", role_b, b));
                let b_ends = keeps_data((role_b, "n2"), 7, &node("n1", role_a, a));
                assert!(!(a_ends && b_ends), "{role_a:?} {a:?}, {role_b:?} {b:?}");
            }
        }
        let stays = node("n2", Role::Follower, Stopping::No);
        assert!(keeps_data((Role::Leader, "n1"), 7, &stays));
        assert!(!keeps_data((Role::Leader, "n1"), 8, &stays));
        let loading = Report {
            state: State::Loading,
            ..stays
        };
        assert!(!keeps_data((Role::Leader, "n1"), 7, &loading));
        let about_to_lead = Report {
            role: Role::Leader,
            ..loading
        };
        assert!(keeps_data((Role::Leader, "n1"), 7, &about_to_lead));
    }
}
