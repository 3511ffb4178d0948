//! The state of a node, parsed from the lines of STATUS.

use std::{collections::BTreeMap, str::FromStr};

/// The state of a node: the parsed lines of [`Client::status`](super::Client::status) (GBP §4).
///
/// Parsing never fails. A key that is missing, or whose value is not of its kind, is `None`, since nodes of other
/// versions have other keys. `-`, a node's value for a name or a figure that it does not have, is `None` too. Keys that
/// this version does not know are only in [`lines`](NodeStatus::lines), which has every line.
///
/// ```
/// use gopherstore::client::{NodeState, NodeStatus};
///
/// let status = NodeStatus::parse("node: n2\nstate: serving\nindex: 7\npeer.n1.state: up\nlater: x\n");
/// assert_eq!(status.node.as_deref(), Some("n2"));
/// assert_eq!(status.state, Some(NodeState::Serving));
/// assert_eq!(status.index, Some(7));
/// assert_eq!(status.peers["n1"].is_up, Some(true));
/// assert_eq!(status.epoch, None);
/// assert_eq!(status.lines["later"], "x");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Every line: the key, and the value as text.
    pub lines: BTreeMap<String, String>,
    /// Its name in `cluster.toml`; `None` where it was started without that file.
    pub node: Option<String>,
    /// The cluster's name; `None` where the node was started without `cluster.toml`.
    pub cluster: Option<String>,
    /// Its role.
    pub role: Option<NodeRole>,
    /// Its state.
    pub state: Option<NodeState>,
    /// Why it is loading or refused, or does not follow its leader; `None` where all is well.
    pub reason: Option<String>,
    /// Epoch of its newest epoch; 0 without one.
    pub epoch: Option<u64>,
    /// Index of its last entry.
    pub index: Option<u64>,
    /// Digest of its data set at `index`, as the node writes it: 32 hexadecimal digits.
    pub digest: Option<String>,
    /// Keys that it holds.
    pub keys: Option<u64>,
    /// Bytes of all keys and values.
    pub bytes: Option<u64>,
    /// Keys that have a deadline.
    pub expiring: Option<u64>,
    /// Expired keys that it has removed since its start, as the leader.
    pub expired: Option<u64>,
    /// Bytes of memory that its data set takes.
    pub memory_bytes: Option<u64>,
    /// Most bytes of memory that its data set may take; 0 without a limit.
    pub max_memory_bytes: Option<u64>,
    /// The rule for writes that need more: `refuse` or `evict`.
    pub when_full: Option<String>,
    /// Entries that it has removed to make room for others, since its start.
    pub evicted: Option<u64>,
    /// Writes that it has answered with FULL, since its start.
    pub refused_writes: Option<u64>,
    /// Connections that it serves.
    pub connections: Option<u64>,
    /// Milliseconds since its start.
    pub uptime_ms: Option<u64>,
    /// Version of its program.
    pub version: Option<String>,
    /// Progress of its stop: `no`, `waiting` or `ending`.
    pub stopping: Option<String>,
    /// Random number of its process.
    pub process: Option<String>,
    /// Milliseconds between two heartbeats.
    pub heartbeat_interval_ms: Option<u64>,
    /// Milliseconds of silence after which a follower reports a leader timeout.
    pub leader_timeout_ms: Option<u64>,
    /// Longest value in bytes that it accepts.
    pub max_value_bytes: Option<u64>,
    /// Digests of its settings, by group.
    pub settings: BTreeMap<String, String>,
    /// Streams that began with a snapshot, sent and received.
    pub full_copies: Option<u64>,
    /// Streams that began after the follower's last entry, sent and received.
    pub resumes: Option<u64>,
    /// Bytes of memory of its backlog.
    pub backlog_bytes: Option<u64>,
    /// Index of the oldest entry in its backlog; one past `index` where that is empty.
    pub backlog_first_index: Option<u64>,
    /// Whether it keeps its data on a disk.
    pub has_disk: Option<bool>,
    /// Of a node with a disk: when its log is made durable, `always`, `interval` or `never`.
    pub sync: Option<String>,
    /// Of a node with a disk: index up to which its log is given to the system.
    pub written_index: Option<u64>,
    /// Of a node with a disk: index up to which its log is on the disk.
    pub durable_index: Option<u64>,
    /// Of a node with a disk: `enough`, or whether the disk is full: `full` with a reserve, or `used_up`.
    pub disk_space: Option<String>,
    /// Of a node with a disk: milliseconds since its log was last made durable.
    pub synced_ms: Option<u64>,
    /// Of a node with a disk: bytes of the files of its log.
    pub log_bytes: Option<u64>,
    /// Of a node with a disk: bytes of the files of its snapshots.
    pub snapshot_bytes: Option<u64>,
    /// Of a node with a disk: index at which its last snapshot begins; `None` where it has none.
    pub snapshot_index: Option<u64>,
    /// Of a node with a disk: milliseconds since that was written.
    pub snapshot_age_ms: Option<u64>,
    /// Of a node with a disk: snapshots that it has written since its start.
    pub snapshots: Option<u64>,
    /// Of a node with a disk: snapshots that it could not write since its start.
    pub failed_snapshots: Option<u64>,
    /// Of a node with a disk: why it could not write the last one; `None` where it was written.
    pub snapshot_error: Option<String>,
    /// Of a node with a disk: milliseconds that the recovery at its start took.
    pub recovery_ms: Option<u64>,
    /// Of a node with a disk: records of the log that the recovery applied.
    pub recovered_records: Option<u64>,
    /// Of a node with a disk: bytes at least of a torn write that the recovery cut off.
    pub cut_bytes: Option<u64>,
    /// Of a follower: its leader's `host:port`.
    pub leader: Option<String>,
    /// Of a follower: whether it receives its leader's stream.
    pub is_link_up: Option<bool>,
    /// Of a follower: milliseconds since it last received anything on that stream; `None` before the first.
    pub leader_heard_ms: Option<u64>,
    /// Of a follower: entries of its leader that it lacks, as far as it knows.
    pub lag_entries: Option<u64>,
    /// Of a follower: milliseconds for which it has lacked entries, by its own clock; 0 where it lacks none.
    pub lag_ms: Option<u64>,
    /// The other nodes, by their names in `cluster.toml`.
    pub peers: BTreeMap<String, PeerStatus>,
    /// Of a leader: its followers, by their names.
    pub followers: BTreeMap<String, FollowerStatus>,
}

/// Role of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeRole {
    /// It executes writes while it serves.
    Leader,
    /// It executes reads, and refuses writes with the leader's address.
    Follower,
    /// A word of a later version.
    Other(String),
}

/// State of a node's data set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeState {
    /// It has a complete data set and executes reads.
    Serving,
    /// It has no complete data set, and answers reads with LOADING.
    Loading,
    /// It keeps a data set that is not part of its leader's history, and takes no part in replication.
    Refused,
    /// A word of a later version.
    Other(String),
}

/// Another node, as a node reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its `host:port`, as in the `cluster.toml` of the reporting node.
    pub addr: Option<String>,
    /// `up`, `down`, or a word of a later version.
    pub state: Option<String>,
    /// Whether it is up; `None` where `state` is another word than `up` and `down`.
    pub is_up: Option<bool>,
    /// Milliseconds since that state began.
    pub since_ms: Option<u64>,
    /// Why it is not up.
    pub reason: Option<String>,
    /// The groups of settings in which its `cluster.toml` differs from the node's.
    pub differs: Option<String>,
}

/// A follower, as its leader reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// Its state: `following`, `copying` or `away`, or a word of a later version.
    pub state: Option<String>,
    /// Index that it last acknowledged.
    pub index: Option<u64>,
    /// Entries that it lacks.
    pub lag_entries: Option<u64>,
    /// Age in milliseconds of the oldest entry that it lacks; 0 where it follows and lacks none.
    pub lag_ms: Option<u64>,
}

impl NodeStatus {
    /// Parses the lines of a STATUS. Of two lines with one key the last one counts.
    #[must_use]
    pub fn parse(text: &str) -> NodeStatus {
        let mut status = NodeStatus::default();
        for line in text.lines() {
            // An empty value may have lost the space behind its colon.
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            status.lines.insert(key.to_owned(), value.to_owned());
            if let Some((name, field)) = named(key, "peer.") {
                status.read_peer(name, field, value);
            } else if let Some((name, field)) = named(key, "follower.") {
                status.read_follower(name, field, value);
            } else {
                status.read(key, value);
            }
        }
        status
    }

    fn read(&mut self, key: &str, value: &str) {
        match key {
            "node" => self.node = word(value),
            "cluster" => self.cluster = word(value),
            "role" => {
                self.role = word(value).map(|role| match &*role {
                    "leader" => NodeRole::Leader,
                    "follower" => NodeRole::Follower,
                    _ => NodeRole::Other(role),
                });
            }
            "state" => {
                self.state = word(value).map(|state| match &*state {
                    "serving" => NodeState::Serving,
                    "loading" => NodeState::Loading,
                    "refused" => NodeState::Refused,
                    _ => NodeState::Other(state),
                });
            }
            "reason" => self.reason = word(value),
            "epoch" => self.epoch = number(value),
            "index" => self.index = number(value),
            "digest" => self.digest = word(value),
            "keys" => self.keys = number(value),
            "bytes" => self.bytes = number(value),
            "expiring" => self.expiring = number(value),
            "expired" => self.expired = number(value),
            "memory_bytes" => self.memory_bytes = number(value),
            "max_memory_bytes" => self.max_memory_bytes = number(value),
            "when_full" => self.when_full = word(value),
            "evicted" => self.evicted = number(value),
            "refused_writes" => self.refused_writes = number(value),
            "connections" => self.connections = number(value),
            "uptime_ms" => self.uptime_ms = number(value),
            "version" => self.version = word(value),
            "stopping" => self.stopping = word(value),
            "process" => self.process = word(value),
            "heartbeat_interval_ms" => self.heartbeat_interval_ms = number(value),
            "leader_timeout_ms" => self.leader_timeout_ms = number(value),
            "max_value_bytes" => self.max_value_bytes = number(value),
            "lag_entries" => self.lag_entries = number(value),
            "lag_ms" => self.lag_ms = number(value),
            "full_copies" => self.full_copies = number(value),
            "resumes" => self.resumes = number(value),
            "backlog_bytes" => self.backlog_bytes = number(value),
            "backlog_first_index" => self.backlog_first_index = number(value),
            "disk" => self.has_disk = word(value).map(|word| word != "none"),
            "sync" => self.sync = word(value),
            "written_index" => self.written_index = number(value),
            "durable_index" => self.durable_index = number(value),
            "disk_space" => self.disk_space = word(value),
            "synced_ms" => self.synced_ms = number(value),
            "log_bytes" => self.log_bytes = number(value),
            "snapshot_bytes" => self.snapshot_bytes = number(value),
            "snapshot_index" => self.snapshot_index = number(value),
            "snapshot_age_ms" => self.snapshot_age_ms = number(value),
            "snapshots" => self.snapshots = number(value),
            "failed_snapshots" => self.failed_snapshots = number(value),
            "snapshot_error" => self.snapshot_error = word(value),
            "recovery_ms" => self.recovery_ms = number(value),
            "recovered_records" => self.recovered_records = number(value),
            "cut_bytes" => self.cut_bytes = number(value),
            "leader" => self.leader = word(value),
            "link" => self.is_link_up = up_or_down(value),
            "leader_heard_ms" => self.leader_heard_ms = number(value),
            _ => {
                if let (Some(group), Some(digest)) = (key.strip_prefix("settings."), word(value)) {
                    self.settings.insert(group.to_owned(), digest);
                }
            }
        }
    }

    fn read_peer(&mut self, name: &str, field: &str, value: &str) {
        let peer = self.peers.entry(name.to_owned()).or_default();
        match field {
            "addr" => peer.addr = word(value),
            "state" => {
                peer.state = word(value);
                peer.is_up = up_or_down(value);
            }
            "since_ms" => peer.since_ms = number(value),
            "reason" => peer.reason = word(value),
            "differs" => peer.differs = word(value),
            _ => {}
        }
    }

    fn read_follower(&mut self, name: &str, field: &str, value: &str) {
        let follower = self.followers.entry(name.to_owned()).or_default();
        match field {
            "state" => follower.state = word(value),
            "index" => follower.index = number(value),
            "lag_entries" => follower.lag_entries = number(value),
            "lag_ms" => follower.lag_ms = number(value),
            _ => {}
        }
    }
}

impl NodeRole {
    /// The word that the node says.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            NodeRole::Leader => "leader",
            NodeRole::Follower => "follower",
            NodeRole::Other(word) => word,
        }
    }
}

impl NodeState {
    /// The word that the node says.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            NodeState::Serving => "serving",
            NodeState::Loading => "loading",
            NodeState::Refused => "refused",
            NodeState::Other(word) => word,
        }
    }
}

/// NAME and FIELD of a key `prefix` NAME `.` FIELD. A name may hold dots, a field does not.
fn named<'a>(key: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    key.strip_prefix(prefix)?.rsplit_once('.')
}

fn word(value: &str) -> Option<String> {
    (!value.is_empty() && value != "-").then(|| value.to_owned())
}

fn number<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn up_or_down(value: &str) -> Option<bool> {
    match value {
        "up" => Some(true),
        "down" | "timeout" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read(
            lines in prop::collection::vec(("[a-z_]{0,9}|(peer|follower|)[.a-z]{0,9}", "[:.]{0,2} ?", ".{0,12}"), 0..9),
        ) {
            let text: String = lines.iter().map(|(key, colon, value)| format!("{key}{colon}{value}\n")).collect();
            let status = NodeStatus::parse(&text);
            // Saying it all again changes nothing.
            prop_assert_eq!(NodeStatus::parse(&text.repeat(2)), status);
        }
    }

    #[test]
    fn every_documented_key_is_read() {
        let text = "node: n1\ncluster: demo\nrole: leader\nstate: refused\nreason: it says: no\nepoch: 3\nindex: 17\n\
            digest: 00ff\nkeys: 4\nbytes: 5\nconnections: 6\nuptime_ms: 7\nversion: 0.1.0\nfull_copies: 8\n\
            resumes: 9
backlog_bytes: 10
backlog_first_index: 16
leader: 127.0.0.1:8000
link: down
\
            leader_heard_ms: 11
peer.a.b.addr: h:1
peer.a.b.state: up
peer.a.b.since_ms: 12
peer.a.b.reason: why
\
            peer.a.b.differs: leader
follower.n3.state: away
follower.n3.index: 13
follower.n3.lag_entries: 14
follower.n3.lag_ms: 15
\
            memory_bytes: 23
max_memory_bytes: 24
when_full: evict
evicted: 25
refused_writes: 26
\
            process: 16
heartbeat_interval_ms: 17
leader_timeout_ms: 18
max_value_bytes: 19
lag_entries: 20
\
            lag_ms: 21\nexpiring: 22\nexpired: 23\nstopping: no\nsettings.leader: 22
disk: used
sync: always
\
            written_index: 27\ndurable_index: 28\ndisk_space: full\nsynced_ms: 29\nlog_bytes: 30\nsnapshot_bytes: 31\n\
            snapshot_index: 32\nsnapshot_age_ms: 33\nrecovery_ms: 34\nrecovered_records: 35\ncut_bytes: 36
snapshots: 37\nfailed_snapshots: 38\nsnapshot_error: it says: no
";
        let text_of = |text: &str| Some(text.to_owned());
        let peer = PeerStatus {
            addr: text_of("h:1"),
            state: text_of("up"),
            is_up: Some(true),
            since_ms: Some(12),
            reason: text_of("why"),
            differs: text_of("leader"),
        };
        let follower = FollowerStatus {
            state: text_of("away"),
            index: Some(13),
            lag_entries: Some(14),
            lag_ms: Some(15),
        };
        let pairs = text.lines().filter_map(|line| line.split_once(": "));
        let expected = NodeStatus {
            lines: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            node: text_of("n1"),
            cluster: text_of("demo"),
            role: Some(NodeRole::Leader),
            state: Some(NodeState::Refused),
            reason: text_of("it says: no"),
            epoch: Some(3),
            index: Some(17),
            digest: text_of("00ff"),
            keys: Some(4),
            bytes: Some(5),
            memory_bytes: Some(23),
            max_memory_bytes: Some(24),
            when_full: text_of("evict"),
            evicted: Some(25),
            refused_writes: Some(26),
            connections: Some(6),
            uptime_ms: Some(7),
            version: text_of("0.1.0"),
            full_copies: Some(8),
            resumes: Some(9),
            backlog_bytes: Some(10),
            backlog_first_index: Some(16),
            has_disk: Some(true),
            sync: text_of("always"),
            written_index: Some(27),
            durable_index: Some(28),
            disk_space: text_of("full"),
            synced_ms: Some(29),
            log_bytes: Some(30),
            snapshot_bytes: Some(31),
            snapshot_index: Some(32),
            snapshot_age_ms: Some(33),
            snapshots: Some(37),
            failed_snapshots: Some(38),
            snapshot_error: text_of("it says: no"),
            recovery_ms: Some(34),
            recovered_records: Some(35),
            cut_bytes: Some(36),
            leader: text_of("127.0.0.1:8000"),
            is_link_up: Some(false),
            leader_heard_ms: Some(11),
            process: text_of("16"),
            heartbeat_interval_ms: Some(17),
            leader_timeout_ms: Some(18),
            max_value_bytes: Some(19),
            stopping: text_of("no"),
            settings: BTreeMap::from([("leader".to_owned(), "22".to_owned())]),
            lag_entries: Some(20),
            lag_ms: Some(21),
            expiring: Some(22),
            expired: Some(23),
            peers: BTreeMap::from([("a.b".to_owned(), peer)]),
            followers: BTreeMap::from([("n3".to_owned(), follower)]),
        };
        assert_eq!(NodeStatus::parse(text), expected);
    }

    /// The lines that are understood.
    fn read(text: &str) -> NodeStatus {
        let mut status = NodeStatus::parse(text);
        status.lines.clear();
        status
    }

    #[test]
    fn odd_lines_are_skipped() {
        for text in [
            "",
            "\n\n",
            "no colon",
            ":",
            ": x",
            "epoch:",
            "epoch: -",
            "epoch: -1",
            "epoch: 99999999999999999999",
            "index: 1 entry",
            "node: -",
            "link: sideways",
            "peer.: x",
            "peer.n1: up",
            "Node: n1",
            "follower: x",
            "disk: -",
        ] {
            assert_eq!(read(text), NodeStatus::default(), "{text:?}");
        }
        assert_eq!(read("disk: none").has_disk, Some(false));
        let status = NodeStatus::parse("role: witness\r\nstate: dozing\nstate: asleep");
        assert_eq!(
            status.role.map(|role| role.as_str().to_owned()),
            Some("witness".to_owned())
        );
        assert_eq!(status.state, Some(NodeState::Other("asleep".to_owned())));
        let status = NodeStatus::parse("peer..x: y\npeer.n1.colour: red\n");
        assert_eq!(status.peers.len(), 2);
        assert_eq!(status.lines["peer.n1.colour"], "red");
        let status = NodeStatus::parse("later: a: b\npeer.n1.state: stranger\n");
        assert_eq!(status.lines["later"], "a: b");
        let peer = &status.peers["n1"];
        assert_eq!(
            (peer.state.as_deref(), peer.is_up),
            (Some("stranger"), None)
        );
    }

    #[test]
    fn every_status_line_of_this_version_is_parsed() {
        let document = include_str!("../../docs/GBP.md");
        let (_, section) = document.split_once("\n**STATUS**").unwrap_or_default();
        let (section, _) = section.split_once("\n**DISCARD**").unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let keys: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        assert!(keys.len() > 20, "{keys:?}");
        for key in keys {
            // A value that is a word and a figure, and one that is up.
            let read = ["7", "up"].map(|value| read(&format!("{key}: {value}\n")));
            let is_read = |status: &NodeStatus| {
                let peer = status
                    .peers
                    .values()
                    .any(|peer| *peer != PeerStatus::default());
                let mut followers = status.followers.values();
                let follower = followers.any(|follower| *follower != FollowerStatus::default());
                let mut own = status.clone();
                own.peers.clear();
                own.followers.clear();
                peer || follower || own != NodeStatus::default()
            };
            assert!(read.iter().any(is_read), "{key} is not read");
        }
    }
}
