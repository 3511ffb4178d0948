//! Faults of a `cluster.toml`, and their messages.

use std::str::Utf8Error;
use std::time::Duration;
use std::{fmt, io};

use super::NAME_LEN_MAX;

/// A line and a column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// The place of the byte at `offset`; past the end, the place of the end.
    pub(super) fn of(text: &[u8], offset: usize) -> Place {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        Place {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            column: 1 + String::from_utf8_lossy(&before[line_start..])
                .chars()
                .count(),
        }
    }
}

/// A fault of a file: one line that names the file, the line and the key, with the value and advice.
#[derive(Debug)]
pub struct ConfigError {
    file: String,
    place: Option<Place>,
    /// Boxed, so that a result stays small.
    problem: Box<Problem>,
}

impl ConfigError {
    pub(super) fn new(file: String, place: Option<Place>, problem: Problem) -> ConfigError {
        ConfigError {
            file,
            place,
            problem: Box::new(problem),
        }
    }

    /// The line of the fault, from 1; `None` where the file was not read.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.place.map(|place| place.line)
    }

    /// The fault.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, "{line}:")?;
            if matches!(*self.problem, Problem::Toml { .. }) {
                write!(f, "{column}:")?;
            }
        }
        write!(f, " {}", self.problem)
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.problem {
            Problem::Unreadable(error) => Some(error),
            Problem::NotUtf8(error) => Some(error),
            Problem::Toml { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A fault of a `cluster.toml`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read.
    Unreadable(io::Error),
    /// The file is no text.
    NotUtf8(Utf8Error),
    /// The text is no TOML, or has a key that is unknown, is missing, or has a value of the wrong type.
    Toml {
        /// The dotted key, if the fault is at a key.
        key: Option<String>,
        /// The fault.
        error: toml::de::Error,
    },
    /// A name that is empty, too long, or has a character that names do not have.
    BadName {
        /// The key, dotted.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// A number out of its range.
    OutOfRange {
        /// The key, dotted.
        key: &'static str,
        /// The number.
        value: i128,
        /// The lowest that is allowed.
        min: u64,
        /// The highest that is allowed.
        max: u64,
    },
    /// `leader_timeout_ms` leaves no room for a heartbeat.
    TimeoutTooShort {
        /// The leader's timeout.
        timeout: Duration,
        /// The heartbeat's interval.
        heartbeat: Duration,
    },
    /// There is no `[[node]]`.
    NoNodes,
    /// The leader is not among the nodes.
    UnknownLeader {
        /// The value of `leader`.
        leader: String,
        /// The names of the nodes.
        nodes: Vec<String>,
    },
    /// Two nodes have one name.
    DuplicateName {
        /// The name.
        name: String,
        /// The line of the first of the two.
        first_line: usize,
    },
    /// Two nodes have one address.
    DuplicateAddr {
        /// The second node.
        name: String,
        /// The address.
        addr: String,
        /// The first node.
        first_name: String,
        /// The line of the first node's address.
        first_line: usize,
    },
    /// An address that cannot be one.
    BadAddr {
        /// The node.
        name: String,
        /// The key: `addr` or `listen`.
        key: &'static str,
        /// The address.
        addr: String,
        /// The fault of the address.
        fault: AddrFault,
    },
}

/// A fault of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddrFault {
    /// There is no port, or it is no number.
    NoPort,
    /// An IPv6 address that is not in brackets.
    Brackets,
    /// The host is neither a name nor an IP address.
    Host,
    /// The port is above 65535.
    PortTooHigh,
    /// The port is 0 in a cluster of several nodes, which could not find one another.
    PortZero,
    /// The host is a wildcard in a cluster of several nodes, which could not find one another.
    Wildcard,
    /// A multicast or broadcast address, which no connection can be made to.
    ManyMachines,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable(error) => {
                write!(f, "cannot be read: {error}; name another file with --config")
            }
            Problem::NotUtf8(_) => f.write_str("not UTF-8; save the file as UTF-8 text"),
            Problem::Toml { key, error } => {
                if let Some(key) = key {
                    write!(f, "{key}: ")?;
                }
                // serde's word `field` becomes `key`, and a message of several lines becomes one.
                let message = error
                    .message()
                    .replacen("unknown field", "unknown key", 1)
                    .replacen("missing field", "missing key", 1);
                let mut words = message.split_whitespace();
                f.write_str(words.next().unwrap_or("no valid TOML"))?;
                words.try_for_each(|word| write!(f, " {word}"))
            }
            Problem::BadName { key, name } => write!(
                f,
                "{key}: {name:?} is no name; use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 - _ ."
            ),
            Problem::OutOfRange {
                key,
                value,
                min,
                max,
            } => write!(f, "{key}: {value} is out of range {min}..={max}"),
            Problem::TimeoutTooShort { timeout, heartbeat } => write!(
                f,
                "replication.leader_timeout_ms: {} is not above heartbeat_interval_ms, which is {}",
                timeout.as_millis(),
                heartbeat.as_millis()
            ),
            Problem::NoNodes => f.write_str(
                "node: there is none; list each member as [[node]] with name = \"n1\" and addr = \"127.0.0.1:8000\"",
            ),
            Problem::UnknownLeader { leader, nodes } => {
                write!(f, "leader: {leader:?} is not a node; there are ")?;
                nodes.iter().enumerate().try_for_each(|(at, name)| {
                    write!(f, "{}{name:?}", if at == 0 { "" } else { ", " })
                })
            }
            Problem::DuplicateName { name, first_line } => write!(
                f,
                "node.name: {name:?} is already the name of another node (line {first_line})"
            ),
            Problem::DuplicateAddr {
                name,
                addr,
                first_name,
                first_line,
            } => write!(
                f,
                "node {name:?}: addr: {addr} is already that of {first_name:?} (line {first_line})"
            ),
            Problem::BadAddr {
                name,
                key,
                addr,
                fault,
            } => {
                write!(f, "node {name:?}: {key}: ")?;
                match fault {
                    AddrFault::NoPort => {
                        write!(f, "{addr:?} is not host:port, such as 127.0.0.1:8000")
                    }
                    AddrFault::Brackets => write!(
                        f,
                        "{addr:?} is not host:port; an IPv6 address needs brackets, such as [::1]:8000"
                    ),
                    AddrFault::Host => write!(
                        f,
                        "{addr:?} is not host:port; its host is neither a name nor an IP address"
                    ),
                    AddrFault::PortTooHigh => {
                        let port = addr.rsplit_once(':').map_or("", |(_, port)| port);
                        write!(f, "port {port} of {addr:?} is out of range 1..=65535")
                    }
                    AddrFault::PortZero => write!(
                        f,
                        "port 0 of {addr:?} is out of range 1..=65535; only a cluster of one node may leave the \
                         choice to the system"
                    ),
                    AddrFault::Wildcard => {
                        let port = addr.rsplit_once(':').map_or("", |(_, port)| port);
                        write!(
                            f,
                            "{addr:?} stands for every address of a machine, so other nodes and clients cannot reach \
                             this node by it; set addr = \"HOST:{port}\" as they reach it, and listen = {addr:?}"
                        )
                    }
                    AddrFault::ManyMachines => write!(
                        f,
                        "{addr:?} is a multicast or broadcast address, which no connection can be made to"
                    ),
                }
            }
        }
    }
}
