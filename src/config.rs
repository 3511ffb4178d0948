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
//! | `limits.max_value_bytes`            | 64 MiB   | 1..=4,294,901,753                          |
//! | `limits.request_timeout_ms`         | 30,000   | 1..=86,400,000 (a day)                     |
//! | `limits.idle_timeout_ms`            | 0: never | 0..=2,592,000,000 (30 days)                |
//!
//! Known limit: two names of one host, such as `localhost` and `127.0.0.1`, are not seen to be one address; the second
//! node that binds it reports that it is in use.

use std::path::Path;
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
pub const VALUE_BYTES_MAX: u32 = u32::MAX - 65_542;

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
    /// The name of the node that leads at the start; one of `nodes`.
    pub leader: String,
    /// The members, in the order in which the file lists them; at least one.
    pub nodes: Vec<NodeConfig>,
    /// Settings of replication.
    pub replication: ReplicationConfig,
    /// Limits of a node's clients.
    pub limits: LimitsConfig,
    /// Index of the leader in `nodes`. Private, so that only [`Config::parse`] makes a `Config`.
    leader_at: usize,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name; no other node has it.
    pub name: String,
    /// Where clients and the other nodes reach it: `host:port`, as the file says it. The host is a name, an IPv4
    /// address or an IPv6 address in brackets; the port is 1..=65535, or 0 in a cluster of one node, for one that the
    /// system chooses. In a cluster of several nodes the host is no wildcard (`0.0.0.0`, `[::]`).
    pub addr: String,
    /// Where it listens, by default at `addr`. It may be a wildcard, and several nodes, on machines of their own, may
    /// have the same one.
    pub listen: String,
}

/// Settings of replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// Pause between two heartbeats: 10 ms to 60 s, by default 500 ms.
    pub heartbeat_interval: Duration,
    /// Silence after which a follower reports a leader timeout: above `heartbeat_interval` to 1 h, by default 5 s.
    pub leader_timeout: Duration,
    /// Bytes of log kept for followers that fall behind: 1 MiB to 1 TiB, by default 64 MiB. One that lacks more takes
    /// a full copy.
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
    /// How long a connection may lie idle between requests: up to 30 days, by default for ever (0 in the file).
    pub idle_timeout: Option<Duration>,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            max_connections: 10_000,
            max_value_bytes: 64 << 20,
            request_timeout: Duration::from_secs(30),
            idle_timeout: None,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no UTF-8 text, or says something that [`Config::parse`] refuses.
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
            leader_at,
        })
    }

    /// The node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Settings that are valid and most likely a mistake: addresses that other machines cannot reach. A line for each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
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
                    "node {name:?}: listen: only its own machine reaches it at {listen}, and others are told {addr}"
                ));
            }
        }
        warnings
    }

    /// The node that leads at the start.
    #[must_use]
    pub fn leader(&self) -> &NodeConfig {
        // Within bounds: `parse` found it there, and nothing else makes a `Config`.
        &self.nodes[self.leader_at]
    }
}

/// The file as it is written: every value with its range of bytes.
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

/// The text that is being judged, and its name.
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
                // An empty one stands for the whole file, as where a top-level key is missing.
                .filter(|span| !span.is_empty())
                .and_then(|span| key_at(table.get_ref(), span.start));
            self.toml(key, error)
        })
    }

    /// The key on the line of a place where the text is no TOML, and so has no keys that a parser knows.
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

    /// Judges an address of the node `name`. A node that `is_alone` may leave its port to the system.
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
        // One of the two keys is in the file, since the defaults agree; the error stands at the timeout where it can.
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
        Ok(limits)
    }

    /// The number within `min` and `max`, both included; `None` where the file leaves the key out.
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
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::error::Error as _;

    use proptest::prelude::*;

    use super::*;

    /// Line 5 is n1's address, line 8 n2's; sections follow from line 9 on.
    const GOOD: &str = r#"cluster = "demo"
leader = "n1"
[[node]]
name = "n1"
addr = "127.0.0.1:8000"
[[node]]
name = "n2"
addr = "127.0.0.1:8001"
"#;

    fn error(text: &str) -> String {
        Config::parse(text, "cluster.toml").unwrap_err().to_string()
    }

    #[track_caller]
    fn check(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from), "{from:?} is not in the good file");
        assert_eq!(error(&GOOD.replacen(from, to, 1)), expected);
    }

    /// The good file and more lines, the first of which is line 9.
    #[track_caller]
    fn check_with(more: &str, expected: &str) {
        assert_eq!(error(&format!("{GOOD}{more}")), expected);
    }

    #[test]
    fn the_example_file_holds_the_documented_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster.toml");
        let config = Config::load(&path).unwrap();
        assert_eq!((&*config.cluster, &*config.leader), ("demo", "n1"));
        let nodes: Vec<_> = config
            .nodes
            .iter()
            .map(|node| (&*node.name, &*node.addr))
            .collect();
        assert_eq!(
            nodes,
            [
                ("n1", "127.0.0.1:8000"),
                ("n2", "127.0.0.1:8001"),
                ("n3", "127.0.0.1:8002")
            ]
        );
        assert_eq!(config.leader(), &config.nodes[0]);
        assert_eq!(config.node("n3"), Some(&config.nodes[2]));
        assert_eq!(config.node("n4"), None);
        assert_eq!(config.replication, ReplicationConfig::default());
        assert_eq!(config.limits, LimitsConfig::default());
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = Config::parse(GOOD, "cluster.toml").unwrap();
        assert_eq!(config.replication, ReplicationConfig::default());
        assert_eq!(config.limits, LimitsConfig::default());
    }

    #[test]
    fn every_value_arrives_in_its_field() {
        let more = "[replication]\nheartbeat_interval_ms = 11\nleader_timeout_ms = 12\nbacklog_bytes = 1_048_577\n\
                    [limits]\nmax_connections = 13\nmax_value_bytes = 14\nrequest_timeout_ms = 15\n\
                    idle_timeout_ms = 16\n";
        let config = Config::parse(&format!("{GOOD}{more}"), "cluster.toml").unwrap();
        assert_eq!(
            config.replication,
            ReplicationConfig {
                heartbeat_interval: Duration::from_millis(11),
                leader_timeout: Duration::from_millis(12),
                backlog_bytes: 1_048_577,
            }
        );
        assert_eq!(
            config.limits,
            LimitsConfig {
                max_connections: 13,
                max_value_bytes: 14,
                request_timeout: Duration::from_millis(15),
                idle_timeout: Some(Duration::from_millis(16)),
            }
        );
    }

    #[test]
    fn numbers_have_ranges_and_their_ends_are_in_them() {
        let cases: [(&str, &str, i128, i128); 7] = [
            ("replication", "heartbeat_interval_ms", 10, 60_000),
            ("replication", "leader_timeout_ms", 501, 3_600_000),
            ("replication", "backlog_bytes", 1 << 20, 1 << 40),
            ("limits", "max_connections", 1, 1_000_000),
            ("limits", "max_value_bytes", 1, 4_294_901_753),
            ("limits", "request_timeout_ms", 1, 86_400_000),
            ("limits", "idle_timeout_ms", 0, 2_592_000_000),
        ];
        for (table, key, min, max) in cases {
            let text = |value: i128| {
                let timeout = if key == "heartbeat_interval_ms" {
                    "leader_timeout_ms = 3600000\n"
                } else {
                    ""
                };
                format!("{GOOD}[{table}]\n{key} = {value}\n{timeout}")
            };
            for value in [min, max] {
                Config::parse(&text(value), "cluster.toml").unwrap();
            }
            for value in [max + 1, i128::from(i64::MAX), -1] {
                let min = if key == "leader_timeout_ms" { 1 } else { min };
                assert_eq!(
                    error(&text(value)),
                    format!(
                        "cluster.toml:10: {table}.{key}: {value} is out of range {min}..={max}"
                    )
                );
            }
        }
        check_with(
            "[limits]\nmax_connections = 0\n",
            "cluster.toml:10: limits.max_connections: 0 is out of range 1..=1000000",
        );
        check_with(
            "[limits]\nmax_value_bytes = 99999999999999999999\n",
            "cluster.toml:10: limits.max_value_bytes: 99999999999999999999 is out of range 1..=4294901753",
        );
        check_with(
            "[replication]\nbacklog_bytes = 1048575\n",
            "cluster.toml:10: replication.backlog_bytes: 1048575 is out of range 1048576..=1099511627776",
        );
    }

    #[test]
    fn the_leader_timeout_is_above_the_heartbeat_interval() {
        check_with(
            "[replication]\nleader_timeout_ms = 500\n",
            "cluster.toml:10: replication.leader_timeout_ms: 500 is not above heartbeat_interval_ms, which is 500",
        );
        check_with(
            "[replication]\n\nheartbeat_interval_ms = 6000\n",
            "cluster.toml:11: replication.leader_timeout_ms: 5000 is not above heartbeat_interval_ms, which is 6000",
        );
    }

    #[test]
    fn unknown_keys_are_named_and_the_known_ones_too() {
        check(
            "leader",
            "leeder",
            "cluster.toml:2:1: leeder: unknown key `leeder`, expected one of `cluster`, `leader`, `node`, \
             `replication`, `limits`",
        );
        check(
            "addr = \"127.0.0.1:8001\"",
            "address = \"127.0.0.1:8001\"",
            "cluster.toml:8:1: node.address: unknown key `address`, expected one of `name`, `addr`, \
             `listen`",
        );
        check_with(
            "[limits]\nmax_conns = 1\n",
            "cluster.toml:10:1: limits.max_conns: unknown key `max_conns`, expected one of `max_connections`, \
             `max_value_bytes`, `request_timeout_ms`, `idle_timeout_ms`",
        );
        check_with(
            "[replication]\n\"a\\nb\" = 1\n",
            "cluster.toml:10:1: replication.a\\nb: unknown key `a b`, expected one of `heartbeat_interval_ms`, \
             `leader_timeout_ms`, `backlog_bytes`",
        );
    }

    #[test]
    fn missing_keys_and_wrong_types_are_named() {
        assert_eq!(error(""), "cluster.toml:1:1: missing key `cluster`");
        check(
            "leader = \"n1\"",
            "",
            "cluster.toml:1:1: missing key `leader`",
        );
        check(
            "addr = \"127.0.0.1:8001\"",
            "",
            "cluster.toml:6:1: node: missing key `addr`",
        );
        check(
            "\"demo\"",
            "3",
            "cluster.toml:1:11: cluster: invalid type: integer `3`, expected a string",
        );
        check_with(
            "[limits]\nrequest_timeout_ms = \"5s\"\n",
            "cluster.toml:10:22: limits.request_timeout_ms: invalid type: string \"5s\", expected a whole number",
        );
        check_with(
            "[limits]\nmax_connections = 1.5\n",
            "cluster.toml:10:19: limits.max_connections: invalid type: floating point `1.5`, expected a whole number",
        );
        assert_eq!(
            error("limits = 3\ncluster = \"a\"\nleader = \"b\"\n"),
            "cluster.toml:1:10: limits: invalid type: integer `3`, expected a table"
        );
        assert_eq!(
            error("node = [1]\ncluster = \"a\"\nleader = \"b\"\n"),
            "cluster.toml:1:9: node: invalid type: integer `1`, expected a table with name and addr"
        );
    }

    #[test]
    fn what_is_no_toml_is_reported_where_it_begins() {
        let text = "cluster = \"demo\nleader = \"n1\"\nfoo\n";
        let error = Config::parse(text, "a/b.toml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a/b.toml:1:16: cluster: invalid basic string, expected `\"`"
        );
        assert_eq!(error.line(), Some(1));
        assert!(error.source().is_some());
        check(
            "leader",
            "cluster",
            "cluster.toml:2:1: cluster: duplicate key",
        );
        check_with(
            "[limits\n",
            "cluster.toml:9:8: unclosed table, expected `]`",
        );
    }

    #[test]
    fn the_leader_is_one_of_the_nodes() {
        check(
            "leader = \"n1\"",
            "leader = \"n9\"",
            "cluster.toml:2: leader: \"n9\" is not a node; there are \"n1\", \"n2\"",
        );
        let none = "cluster.toml:2: node: there is none; list each member as [[node]] with name = \"n1\" and \
                    addr = \"127.0.0.1:8000\"";
        assert_eq!(error("cluster = \"a\"\nleader = \"n1\"\n"), none);
        assert_eq!(error("cluster = \"a\"\nleader = \"n1\"\nnode = []\n"), none);
    }

    #[test]
    fn names_are_short_and_plain() {
        check(
            "\"demo\"",
            "\"\"",
            "cluster.toml:1: cluster: \"\" is no name; use 1 to 64 of A-Z a-z 0-9 - _ .",
        );
        check(
            "\"n2\"",
            "\"n\\n2\"",
            "cluster.toml:7: node.name: \"n\\n2\" is no name; use 1 to 64 of A-Z a-z 0-9 - _ .",
        );
        let long = "x".repeat(65);
        check(
            "\"demo\"",
            &format!("{long:?}"),
            &format!(
                "cluster.toml:1: cluster: {long:?} is no name; use 1 to 64 of A-Z a-z 0-9 - _ ."
            ),
        );
        let good = GOOD.replacen("demo", &"x".repeat(64), 1);
        Config::parse(&good, "cluster.toml").unwrap();
    }

    #[test]
    fn names_and_addresses_occur_once() {
        check(
            "name = \"n2\"",
            "name = \"n1\"",
            "cluster.toml:7: node.name: \"n1\" is already the name of another node (line 4)",
        );
        check(
            "8001",
            "8000",
            "cluster.toml:8: node \"n2\": addr: 127.0.0.1:8000 is already that of \"n1\" (line 5)",
        );
        let twice = GOOD.replacen("127.0.0.1:8000", "[::1]:8000", 1).replacen(
            "127.0.0.1:8001",
            "[0:0::1]:08000",
            1,
        );
        assert_eq!(
            error(&twice),
            "cluster.toml:8: node \"n2\": addr: [0:0::1]:08000 is already that of \"n1\" (line 5)"
        );
    }

    #[test]
    fn addresses_are_host_and_port() {
        let cases = [
            (
                "127.0.0.1",
                "\"127.0.0.1\" is not host:port, such as 127.0.0.1:8000",
            ),
            ("", "\"\" is not host:port, such as 127.0.0.1:8000"),
            (
                "host:",
                "\"host:\" is not host:port, such as 127.0.0.1:8000",
            ),
            (
                "host:+80",
                "\"host:+80\" is not host:port, such as 127.0.0.1:8000",
            ),
            (
                "host:http",
                "\"host:http\" is not host:port, such as 127.0.0.1:8000",
            ),
            (
                "::1:8000",
                "\"::1:8000\" is not host:port; an IPv6 address stands in brackets, such as [::1]:8000",
            ),
            (
                ":8000",
                "\":8000\" is not host:port; its host is neither a name nor an IP address",
            ),
            (
                "[::g]:8000",
                "\"[::g]:8000\" is not host:port; its host is neither a name nor an IP address",
            ),
            (
                "127.0.0.256:8000",
                "\"127.0.0.256:8000\" is not host:port; its host is neither a name nor an IP address",
            ),
            (
                "my host:8000",
                "\"my host:8000\" is not host:port; its host is neither a name nor an IP address",
            ),
            (
                "127.0.0.1:65536",
                "port 65536 of \"127.0.0.1:65536\" is out of range 1..=65535",
            ),
            (
                "127.0.0.1:0",
                "port 0 of \"127.0.0.1:0\" is out of range 1..=65535; only a cluster of one node may leave the \
                 choice to the system",
            ),
        ];
        for (addr, expected) in cases {
            check(
                "127.0.0.1:8001",
                addr,
                &format!("cluster.toml:8: node \"n2\": addr: {expected}"),
            );
        }
        for addr in [
            "localhost:1",
            "[::1]:65535",
            "10.0.0.1:80",
            "n-1.example_x.org:8000",
        ] {
            let config = Config::parse(&GOOD.replacen("127.0.0.1:8001", addr, 1), "x").unwrap();
            assert_eq!(config.nodes[1].addr, addr);
        }
    }

    #[test]
    fn a_node_that_nobody_could_reach_is_refused_and_may_listen_everywhere() {
        for (addr, port) in [
            ("0.0.0.0:8001", 8001),
            ("[::]:8001", 8001),
            ("[0::0]:1", 1),
            ("[::ffff:0.0.0.0]:8001", 8001),
        ] {
            check(
                "127.0.0.1:8001",
                addr,
                &format!(
                    "cluster.toml:8: node \"n2\": addr: {addr:?} stands for every address of a machine, so other \
                     nodes and clients cannot reach this node by it; set addr = \"HOST:{port}\" as they reach it, and \
                     listen = {addr:?}"
                ),
            );
            let listen = format!("127.0.0.1:8001\"\nlisten = \"{addr}");
            let text = GOOD.replacen("127.0.0.1:8001", &listen, 1);
            let config = Config::parse(&text, "cluster.toml").unwrap();
            assert_eq!(config.nodes[1].addr, "127.0.0.1:8001");
            assert_eq!(config.nodes[1].listen, addr);
            assert_eq!(config.nodes[0].listen, config.nodes[0].addr);
            let alone = format!(
                "cluster = \"a\"\nleader = \"n\"\nnode = [{{ name = \"n\", addr = \"{addr}\" }}]\n"
            );
            Config::parse(&alone, "cluster.toml").unwrap();
        }
        for addr in ["224.0.0.1:8001", "[ff02::1]:8001", "255.255.255.255:8001"] {
            let why = "is a multicast or broadcast address, which no connection can be made to";
            check(
                "127.0.0.1:8001",
                addr,
                &format!("cluster.toml:8: node \"n2\": addr: {addr:?} {why}"),
            );
        }
    }

    #[test]
    fn where_a_node_listens_is_judged_as_its_address_is() {
        let with = |listen: &str| format!("127.0.0.1:8001\"\nlisten = \"{listen}");
        for (listen, why) in [
            (
                "::",
                "\"::\" is not host:port; an IPv6 address stands in brackets, such as [::1]:8000",
            ),
            ("x", "\"x\" is not host:port, such as 127.0.0.1:8000"),
            (
                "0.0.0.0:0",
                "port 0 of \"0.0.0.0:0\" is out of range 1..=65535; only a cluster of one node may leave the choice to \
                 the system",
            ),
        ] {
            check(
                "127.0.0.1:8001",
                &with(listen),
                &format!("cluster.toml:9: node \"n2\": listen: {why}"),
            );
        }
        // On machines of their own; on one machine the second node says that the port is in use.
        let text = GOOD
            .replacen("127.0.0.1:8000", "db1:8000\"\nlisten = \"0.0.0.0:8000", 1)
            .replacen("127.0.0.1:8001", "db2:8000\"\nlisten = \"0.0.0.0:8000", 1);
        let config = Config::parse(&text, "cluster.toml").unwrap();
        assert_eq!(config.nodes[0].listen, config.nodes[1].listen);
        assert_eq!(config.warnings(), [""; 0]);
    }

    #[test]
    fn addresses_that_other_machines_cannot_reach_are_warned_of() {
        let warnings = |first: &str, second: &str| {
            let text = GOOD.replacen("127.0.0.1:8000", first, 1);
            let text = text.replacen("127.0.0.1:8001", second, 1);
            Config::parse(&text, "cluster.toml").unwrap().warnings()
        };
        let none: [&str; 0] = [];
        assert_eq!(warnings("127.0.0.1:1", "localhost:2"), none);
        assert_eq!(warnings("10.0.0.1:1", "db2:2"), none);
        for own in ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"] {
            assert_eq!(
                warnings(own, "10.0.0.2:2"),
                [format!(
                    "node \"n1\": addr: only its own machine reaches it at {own}, and \"n2\" at 10.0.0.2:2 may be on \
                     another one"
                )]
            );
        }
        assert_eq!(
            warnings("db1:1", "db2:2\"\nlisten = \"127.0.0.1:2"),
            [
                "node \"n2\": listen: only its own machine reaches it at 127.0.0.1:2, and others are told db2:2"
            ]
        );
    }

    #[test]
    fn a_cluster_of_one_node_may_leave_its_port_to_the_system() {
        let text =
            "cluster = \"a\"\nleader = \"n\"\nnode = [{ name = \"n\", addr = \"localhost:0\" }]\n";
        let config = Config::parse(text, "cluster.toml").unwrap();
        assert_eq!(config.leader().addr, "localhost:0");
    }

    #[test]
    fn a_file_that_cannot_be_read_or_is_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.toml");
        let error = Config::load(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: cannot be read: No such file or directory (os error 2); name another file with --config",
                path.display()
            )
        );
        assert_eq!(error.line(), None);
        assert!(matches!(error.problem(), Problem::Unreadable(_)));
        assert!(error.source().is_some());

        let path = folder.path().join("latin1.toml");
        fs::write(&path, b"# good\ncluster = \"caf\xE9\"\n").unwrap();
        let error = Config::load(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}:2: not UTF-8; save the file as UTF-8 text",
                path.display()
            )
        );
        assert!(error.source().is_some());
    }

    /// Any text gives no panic, and an error of one line that names the file and a line.
    fn holds(text: &str) -> Result<(), TestCaseError> {
        match Config::parse(text, "cluster.toml") {
            Ok(config) => prop_assert_eq!(&config.leader().name, &config.leader),
            Err(error) => {
                let message = error.to_string();
                prop_assert!(message.starts_with("cluster.toml:"), "{}", message);
                prop_assert!(!message.contains('\n'), "{}", message);
                prop_assert!(
                    error
                        .line()
                        .is_some_and(|line| line <= text.lines().count() + 1)
                );
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC*") {
            holds(&text)?;
        }

        #[test]
        fn any_text_of_tomls_own_characters_is_judged(text in "[\\[\\]{}=.,\"'a-c0-9 \n#\\\\_-]{0,60}") {
            holds(&text)?;
        }

        #[test]
        fn a_mutated_good_file_is_judged(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..4, any::<char>()), 1..6),
        ) {
            let example = format!("{GOOD}[limits]\nmax_connections = 7\n[replication]\nleader_timeout_ms = 5000\n");
            let mut text: Vec<char> = example.chars().collect();
            for (at, how, char) in changes {
                if text.is_empty() {
                    break;
                }
                let at = at.index(text.len());
                match how {
                    0 => text[at] = char,
                    1 => text.insert(at, char),
                    2 => { text.remove(at); }
                    _ => text.truncate(at + 1),
                }
            }
            holds(&text.into_iter().collect::<String>())?;
        }
    }
}
