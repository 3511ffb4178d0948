//! `cluster.toml`: the nodes of a cluster, and the limits.
//!
//! [`Config::load`] reads a file, and [`Config::parse`] checks its text. Every [`Config`] is valid: names and addresses
//! are well-formed and occur once, the leader is one of the nodes, and every number is in its range. Every error is one
//! line that names the file, the line and the key.
//!
//! | key                                 | default  | range                                      |
//! |-------------------------------------|----------|--------------------------------------------|
//! | `cluster`                           | required | 1 to 64 bytes of `A-Z a-z 0-9 - _ .`       |
//! | `leader`                            | required | the name of a node                         |
//! | `node.name`                         | required | as `cluster`, each once                    |
//! | `node.addr`                         | required | `host:port`, each once                     |
//! | `node.listen`                       | `addr`   | `host:port`                                |
//! | `replication.heartbeat_interval_ms` | 500      | 10..=60,000                                |
//! | `replication.leader_timeout_ms`     | 5,000    | above the heartbeat interval, ..=3,600,000 |
//! | `replication.backlog_bytes`         | 64 MiB   | 1 MiB..=1 TiB                              |
//! | `limits.max_connections`            | 10,000   | 1..=1,000,000                              |
//! | `limits.max_value_bytes`            | 64 MiB   | 1..=4,294,901,745                          |
//! | `limits.request_timeout_ms`         | 30,000   | 1..=86,400,000 (a day)                     |
//! | `limits.idle_timeout_ms`            | 0: never | 0..=2,592,000,000 (30 days)                |
//! | `limits.max_memory_bytes`           | 0: none  | 0, or 1 MiB..=1 PiB                        |
//! | `limits.when_full`                  | refuse   | `refuse`, `evict`                          |
//! | `storage.data_dir`                  | "": none | a directory                                |
//! | `storage.sync`                      | always   | `always`, `interval`, `never`              |
//! | `storage.sync_interval_ms`          | 1,000    | 1..=60,000                                 |
//!
//! Known limit: two names of one host, such as `localhost` and `127.0.0.1`, count as two addresses. The second node
//! that binds the address reports that it is in use.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

mod address;
mod error;
mod settings;

use address::Address;
use error::Place;
pub use error::{AddrFault, ConfigError, Problem};

/// Most that `max_value_bytes` can be: a whole SET frame, with the longest key, travels to followers as one value
/// (GBP §6), so header, key and value together have to fit a 32-bit length.
pub const VALUE_BYTES_MAX: u32 = u32::MAX - 65_550;

/// Longest name of a cluster or node in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// A valid `cluster.toml`.
///
/// ```
/// use gopherstore::config::Config;
///
/// let text = r#"
///     cluster = "demo"
///     leader = "n1"
///     [[node]]
///     name = "n1"
///     addr = "127.0.0.1:8000"
/// "#;
/// let config = Config::parse(text, "cluster.toml")?;
/// assert_eq!(config.leader().addr, "127.0.0.1:8000");
/// assert_eq!(config.limits.max_connections, 10_000);
///
/// let error = Config::parse(&text.replace("8000", "80000"), "cluster.toml").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     r#"cluster.toml:6: node "n1": addr: port 80000 of "127.0.0.1:80000" is out of range 1..=65535"#
/// );
/// # Ok::<(), gopherstore::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name, which nodes compare before they talk to one another.
    pub cluster: String,
    /// The name of the initial leader; one of `nodes`.
    pub leader: String,
    /// The members, in the order in which the file lists them; at least one.
    pub nodes: Vec<NodeConfig>,
    /// Settings of replication.
    pub replication: ReplicationConfig,
    /// Limits of a node's clients.
    pub limits: LimitsConfig,
    /// Settings of data directories.
    pub storage: StorageConfig,
    /// Index of the leader in `nodes`. Private, so that only [`Config::parse`] makes a `Config`.
    leader_at: usize,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name; no other node has it.
    pub name: String,
    /// Address that clients and the other nodes connect to: `host:port`, as in the file. The host is a name, an IPv4
    /// address or an IPv6 address in brackets; the port is 1..=65535, or 0 in a cluster of one node, for one that the
    /// system chooses. In a cluster of several nodes the host is no wildcard (`0.0.0.0`, `[::]`).
    pub addr: String,
    /// Address that it listens on, by default `addr`. It may be a wildcard, and nodes on different machines may have
    /// the same one.
    pub listen: String,
}

/// Settings of replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// Pause between two heartbeats: 10 ms to 60 s, by default 500 ms.
    pub heartbeat_interval: Duration,
    /// Silence after which a follower reports a leader timeout: above `heartbeat_interval` to 1 h, by default 5 s.
    pub leader_timeout: Duration,
    /// Bytes of log kept for followers that fall behind: 1 MiB to 1 TiB, by default 64 MiB. A follower that lacks more
    /// takes a snapshot.
    pub backlog_bytes: u64,
}

impl Default for ReplicationConfig {
    fn default() -> ReplicationConfig {
        ReplicationConfig {
            heartbeat_interval: Duration::from_millis(500),
            leader_timeout: Duration::from_secs(5),
            backlog_bytes: 64 << 20,
        }
    }
}

/// Limits of a node's clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Connections at once: 1 to 1,000,000, by default 10,000. One more is answered with ERROR and closed,
    /// unless it asks FOLLOW or STATUS, for which there are 64 places more.
    pub max_connections: u32,
    /// Longest value in bytes: 1 to [`VALUE_BYTES_MAX`], by default 64 MiB.
    pub max_value_bytes: u32,
    /// From a request's first byte to its last: 1 ms to a day, by default 30 s. A slower one is cut off.
    pub request_timeout: Duration,
    /// Longest idle time of a connection between requests: up to 30 days, by default no limit (0 in the file).
    pub idle_timeout: Option<Duration>,
    /// Most bytes that the data set may take: 1 MiB to 1 PiB, by default no limit (0 in the file).
    pub max_memory_bytes: Option<u64>,
    /// The rule for a write that needs more than `max_memory_bytes`.
    pub when_full: WhenFull,
}

/// The rule for a write for which `max_memory_bytes` leaves no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It is answered with FULL, and nothing is changed.
    #[default]
    Refuse,
    /// Entries that were not read lately are removed, and then it is executed.
    Evict,
}

impl WhenFull {
    /// The word for it, as in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            WhenFull::Refuse => "refuse",
            WhenFull::Evict => "evict",
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            max_connections: 10_000,
            max_value_bytes: 64 << 20,
            request_timeout: Duration::from_secs(30),
            idle_timeout: None,
            max_memory_bytes: None,
            when_full: WhenFull::default(),
        }
    }
}

/// When a node's log is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncPolicy {
    /// Before an answer says so: no acknowledged write is lost by a power failure.
    #[default]
    Always,
    /// Once an interval: a power failure loses the writes of that time. Killing the process loses none.
    Interval,
    /// When the system does it by itself. Killing the process loses no write.
    Never,
}

impl SyncPolicy {
    /// Every policy with its word.
    pub const ALL: [(&'static str, SyncPolicy); 3] = [
        ("always", SyncPolicy::Always),
        ("interval", SyncPolicy::Interval),
        ("never", SyncPolicy::Never),
    ];
}

/// Settings of data directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// The directory in which each node has one of its own, with its name: relative to the file, where it is not
    /// absolute. By default none (empty in the file): data is in memory alone.
    pub data_dir: Option<PathBuf>,
    /// When the log is made durable.
    pub sync: SyncPolicy,
    /// The interval of [`SyncPolicy::Interval`]: 1 ms to a minute, by default 1 s.
    pub sync_interval: Duration,
}

impl Default for StorageConfig {
    fn default() -> StorageConfig {
        StorageConfig {
            data_dir: None,
            sync: SyncPolicy::default(),
            sync_interval: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no UTF-8 text, or is refused by [`Config::parse`].
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let file = path.display().to_string();
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(ConfigError::new(file, None, Problem::Unreadable(error))),
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Config::parse(text, &file),
            Err(error) => {
                let place = Place::of(&bytes, error.valid_up_to());
                Err(ConfigError::new(file, Some(place), Problem::NotUtf8(error)))
            }
        }
    }

    /// Checks the text of a `cluster.toml`; `file` is its name in errors.
    ///
    /// # Errors
    ///
    /// The first fault: of TOML's own rules, then of keys and types, then of values.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
        let source = Source { text, file };
        let raw = source.read()?;

        let cluster = source.name("cluster", &raw.cluster)?;
        let nodes = source.nodes(&raw)?;
        let leader = raw.leader.get_ref();
        let Some(leader_at) = nodes.iter().position(|node| node.name == *leader) else {
            return Err(source.error(
                &raw.leader,
                Problem::UnknownLeader {
                    leader: leader.clone(),
                    nodes: nodes.into_iter().map(|node| node.name).collect(),
                },
            ));
        };
        Ok(Config {
            cluster,
            leader: leader.clone(),
            nodes,
            replication: source.replication(&raw.replication)?,
            limits: source.limits(&raw.limits)?,
            storage: source.storage(&raw.storage)?,
            leader_at,
        })
    }

    /// The node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Warnings, a line for each: valid settings that are likely mistakes, such as addresses that other machines cannot
    /// reach.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings_of_addresses();
        let limits = &self.limits;
        match limits.max_memory_bytes {
            None if limits.when_full != WhenFull::default() => warnings.push(format!(
                "limits.when_full: {:?} has no effect without max_memory_bytes",
                limits.when_full.as_str()
            )),
            Some(max) if max < u64::from(limits.max_value_bytes) => warnings.push(format!(
                "limits.max_memory_bytes: {max} is less than max_value_bytes, which is {}; a value longer than that \
                 always gets FULL",
                limits.max_value_bytes
            )),
            None | Some(_) => {}
        }
        warnings
    }

    fn warnings_of_addresses(&self) -> Vec<String> {
        let is_loopback = |text: &str| Address::parse(text).is_ok_and(|addr| addr.is_loopback());
        let Some(other) = self.nodes.iter().find(|node| !is_loopback(&node.addr)) else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        for NodeConfig { name, addr, listen } in &self.nodes {
            if is_loopback(addr) {
                warnings.push(format!(
                    "node {name:?}: addr: only its own machine reaches it at {addr}, and {:?} at {} may be on \
                     another one",
                    other.name, other.addr
                ));
            } else if is_loopback(listen) {
                warnings.push(format!(
                    "node {name:?}: listen: only its own machine reaches it at {listen}, and others connect to {addr}"
                ));
            }
        }
        warnings
    }

    /// The initial leader.
    #[must_use]
    pub fn leader(&self) -> &NodeConfig {
        // Within bounds: `parse` found it there, and nothing else makes a `Config`.
        &self.nodes[self.leader_at]
    }
}

/// The parsed file: every value with its range of bytes.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawConfig {
    cluster: Spanned<String>,
    leader: Spanned<String>,
    #[serde(default)]
    node: Vec<RawNode>,
    #[serde(default)]
    replication: RawReplication,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    storage: RawStorage,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with name and addr")]
struct RawNode {
    name: Spanned<String>,
    addr: Spanned<String>,
    listen: Option<Spanned<String>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct RawReplication {
    heartbeat_interval_ms: Option<Spanned<Number>>,
    leader_timeout_ms: Option<Spanned<Number>>,
    backlog_bytes: Option<Spanned<Number>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct RawLimits {
    max_connections: Option<Spanned<Number>>,
    max_value_bytes: Option<Spanned<Number>>,
    request_timeout_ms: Option<Spanned<Number>>,
    idle_timeout_ms: Option<Spanned<Number>>,
    max_memory_bytes: Option<Spanned<Number>>,
    when_full: Option<WhenFull>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct RawStorage {
    data_dir: Option<PathBuf>,
    sync: Option<SyncPolicy>,
    sync_interval_ms: Option<Spanned<Number>>,
}

/// Any whole number, so that errors report the range of the key and not that of a Rust type.
#[derive(Clone, Copy)]
struct Number(i128);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct WholeNumber;

        impl Visitor<'_> for WholeNumber {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value.into()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value.into()))
            }

            fn visit_i128<E: de::Error>(self, value: i128) -> Result<Number, E> {
                Ok(Number(value))
            }
        }

        deserializer.deserialize_any(WholeNumber)
    }
}

/// The text that is checked, and its name.
#[derive(Clone, Copy)]
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn error<T>(self, at: &Spanned<T>, problem: Problem) -> ConfigError {
        let place = Place::of(self.text.as_bytes(), at.span().start);
        ConfigError::new(self.file.to_owned(), Some(place), problem)
    }

    fn line<T>(self, at: &Spanned<T>) -> usize {
        Place::of(self.text.as_bytes(), at.span().start).line
    }

    fn read(self) -> Result<RawConfig, ConfigError> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        // The parser goes on after an error, and what it then finds is often a consequence of the first.
        let first = errors
            .into_iter()
            .min_by_key(|error| error.span().map_or(0, |span| span.start));
        if let Some(error) = first {
            let key = self.key_on_line_of(error.span().map_or(0, |span| span.start));
            return Err(self.toml(key, error));
        }
        RawConfig::deserialize(toml::de::Deserializer::from(table)).map_err(|error| {
            let table = DeTable::parse_recoverable(self.text).0;
            let key = error
                .span()
                // An empty range means the whole file, as for a missing top-level key.
                .filter(|span| !span.is_empty())
                .and_then(|span| key_at(table.get_ref(), span.start));
            self.toml(key, error)
        })
    }

    /// The key on a line that is not TOML, and for which the parser gives no key.
    fn key_on_line_of(self, offset: usize) -> Option<String> {
        let line = Place::of(self.text.as_bytes(), offset).line;
        let (key, _) = self.text.lines().nth(line - 1)?.split_once('=')?;
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let key = key.trim();
        (!key.is_empty() && key.bytes().all(is_bare)).then(|| key.to_owned())
    }

    fn toml(self, key: Option<String>, error: toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start);
        let place = Place::of(self.text.as_bytes(), start);
        let problem = Problem::Toml { key, error };
        ConfigError::new(self.file.to_owned(), Some(place), problem)
    }

    fn name(self, key: &'static str, name: &Spanned<String>) -> Result<String, ConfigError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let text = name.get_ref();
        if text.is_empty() || text.len() > NAME_LEN_MAX || !text.bytes().all(is_allowed) {
            let name_text = text.clone();
            return Err(self.error(
                name,
                Problem::BadName {
                    key,
                    name: name_text,
                },
            ));
        }
        Ok(text.clone())
    }

    fn nodes(self, raw: &RawConfig) -> Result<Vec<NodeConfig>, ConfigError> {
        if raw.node.is_empty() {
            return Err(self.error(&raw.leader, Problem::NoNodes));
        }
        let mut nodes = Vec::with_capacity(raw.node.len());
        let mut addrs: Vec<Address> = Vec::with_capacity(raw.node.len());
        let is_alone = raw.node.len() == 1;
        for node in &raw.node {
            let name = self.name("node.name", &node.name)?;
            let earlier = &raw.node[..nodes.len()];
            if let Some(first) = earlier
                .iter()
                .find(|first| first.name.get_ref() == node.name.get_ref())
            {
                let first_line = self.line(&first.name);
                return Err(self.error(&node.name, Problem::DuplicateName { name, first_line }));
            }
            let addr = self.address(&name, "addr", &node.addr, is_alone)?;
            if addr.is_wildcard() && !is_alone {
                return Err(self.bad_addr(&name, "addr", &node.addr, AddrFault::Wildcard));
            }
            if let Some(first) = addrs.iter().position(|first| *first == addr) {
                return Err(self.error(
                    &node.addr,
                    Problem::DuplicateAddr {
                        name,
                        addr: node.addr.get_ref().clone(),
                        first_name: earlier[first].name.get_ref().clone(),
                        first_line: self.line(&earlier[first].addr),
                    },
                ));
            }
            addrs.push(addr);
            if let Some(listen) = &node.listen {
                self.address(&name, "listen", listen, is_alone)?;
            }
            nodes.push(NodeConfig {
                name,
                addr: node.addr.get_ref().clone(),
                listen: node.listen.as_ref().unwrap_or(&node.addr).get_ref().clone(),
            });
        }
        Ok(nodes)
    }

    /// Checks an address of the node `name`. A node that `is_alone` may have port 0.
    fn address(
        self,
        name: &str,
        key: &'static str,
        text: &Spanned<String>,
        is_alone: bool,
    ) -> Result<Address, ConfigError> {
        match Address::parse(text.get_ref()) {
            Ok(addr) if addr.port == 0 && !is_alone => {
                Err(self.bad_addr(name, key, text, AddrFault::PortZero))
            }
            Ok(addr) => Ok(addr),
            Err(fault) => Err(self.bad_addr(name, key, text, fault)),
        }
    }

    fn bad_addr(
        self,
        name: &str,
        key: &'static str,
        text: &Spanned<String>,
        fault: AddrFault,
    ) -> ConfigError {
        let problem = Problem::BadAddr {
            name: name.to_owned(),
            key,
            addr: text.get_ref().clone(),
            fault,
        };
        self.error(text, problem)
    }

    fn replication(self, raw: &RawReplication) -> Result<ReplicationConfig, ConfigError> {
        let mut replication = ReplicationConfig::default();
        let heartbeat = self.number(
            "replication.heartbeat_interval_ms",
            raw.heartbeat_interval_ms.as_ref(),
            (10, 60_000),
        )?;
        let timeout = self.number(
            "replication.leader_timeout_ms",
            raw.leader_timeout_ms.as_ref(),
            (1, 3_600_000),
        )?;
        let backlog = self.number(
            "replication.backlog_bytes",
            raw.backlog_bytes.as_ref(),
            (1 << 20, 1 << 40),
        )?;
        if let Some(ms) = heartbeat {
            replication.heartbeat_interval = Duration::from_millis(ms);
        }
        if let Some(ms) = timeout {
            replication.leader_timeout = Duration::from_millis(ms);
        }
        if let Some(bytes) = backlog {
            replication.backlog_bytes = bytes;
        }
        // One of the two keys is in the file, since the defaults agree. The error names the line of the timeout if it
        // is there.
        if replication.leader_timeout <= replication.heartbeat_interval
            && let Some(at) = raw
                .leader_timeout_ms
                .as_ref()
                .or(raw.heartbeat_interval_ms.as_ref())
        {
            let problem = Problem::TimeoutTooShort {
                timeout: replication.leader_timeout,
                heartbeat: replication.heartbeat_interval,
            };
            return Err(self.error(at, problem));
        }
        Ok(replication)
    }

    fn limits(self, raw: &RawLimits) -> Result<LimitsConfig, ConfigError> {
        let mut limits = LimitsConfig::default();
        if let Some(count) = self.number(
            "limits.max_connections",
            raw.max_connections.as_ref(),
            (1, 1_000_000_u32),
        )? {
            limits.max_connections = count;
        }
        if let Some(bytes) = self.number(
            "limits.max_value_bytes",
            raw.max_value_bytes.as_ref(),
            (1, VALUE_BYTES_MAX),
        )? {
            limits.max_value_bytes = bytes;
        }
        if let Some(ms) = self.number(
            "limits.request_timeout_ms",
            raw.request_timeout_ms.as_ref(),
            (1, 86_400_000),
        )? {
            limits.request_timeout = Duration::from_millis(ms);
        }
        if let Some(ms) = self.number(
            "limits.idle_timeout_ms",
            raw.idle_timeout_ms.as_ref(),
            (0, 2_592_000_000),
        )? {
            limits.idle_timeout = (ms > 0).then(|| Duration::from_millis(ms));
        }
        let max_memory = raw.max_memory_bytes.as_ref();
        let is_zero = |number: &Spanned<Number>| matches!(number.get_ref(), Number(0));
        limits.max_memory_bytes = self.number(
            "limits.max_memory_bytes",
            max_memory.filter(|number| !is_zero(number)),
            (1 << 20, 1_u64 << 50),
        )?;
        limits.when_full = raw.when_full.unwrap_or_default();
        Ok(limits)
    }

    fn storage(self, raw: &RawStorage) -> Result<StorageConfig, ConfigError> {
        let mut storage = StorageConfig::default();
        if let Some(ms) = self.number(
            "storage.sync_interval_ms",
            raw.sync_interval_ms.as_ref(),
            (1, 60_000),
        )? {
            storage.sync_interval = Duration::from_millis(ms);
        }
        storage.sync = raw.sync.unwrap_or_default();
        let data_dir = raw.data_dir.clone();
        storage.data_dir = data_dir.filter(|path| !path.as_os_str().is_empty());
        Ok(storage)
    }

    /// The number within `min` and `max`, both included; `None` if the file has no such key.
    fn number<N>(
        self,
        key: &'static str,
        value: Option<&Spanned<Number>>,
        (min, max): (N, N),
    ) -> Result<Option<N>, ConfigError>
    where
        N: TryFrom<i128> + Into<u64> + PartialOrd + Copy,
    {
        let Some(at) = value else { return Ok(None) };
        let Number(value) = *at.get_ref();
        match N::try_from(value) {
            Ok(number) if min <= number && number <= max => Ok(Some(number)),
            _ => Err(self.error(
                at,
                Problem::OutOfRange {
                    key,
                    value,
                    min: min.into(),
                    max: max.into(),
                },
            )),
        }
    }
}

/// The dotted path of the innermost key at `offset`, or of the key with a value there.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    let (key, value) = table
        .iter()
        .find_map(|(key, value)| match value.get_ref() {
            // A table's own span is its header, so its contents are searched too.
            DeValue::Table(inner) => key_at(inner, offset).map(|below| (key, Some(below))),
            DeValue::Array(items) => items
                .iter()
                .filter_map(|item| item.get_ref().as_table())
                .find_map(|inner| key_at(inner, offset))
                .map(|below| (key, Some(below))),
            _ => None,
        })
        .or_else(|| {
            let stands_at = |span: std::ops::Range<usize>| span.contains(&offset);
            let is_item = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
                DeValue::Array(items) => items.iter().any(|item| stands_at(item.span())),
                _ => false,
            };
            table
                .iter()
                .find(|(key, value)| {
                    stands_at(key.span()) || stands_at(value.span()) || is_item(value)
                })
                .map(|(key, _)| (key, None))
        })?;
    let key = key.get_ref().escape_debug();
    Some(value.map_or_else(|| key.to_string(), |below| format!("{key}.{below}")))
}

#[cfg(test)]
mod tests;
