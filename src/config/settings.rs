//! Digests of the settings that all nodes of a cluster share.

use std::fmt::Write as _;

use xxhash_rust::xxh3::xxh3_64;

use super::Config;
use crate::replication::core::report::Settings;

impl Config {
    /// Digests of the groups of settings in which the files of all nodes must agree. Equal settings have equal digests,
    /// however the files write them. Addresses and `[storage]` are in none, and neither are comments nor the order of
    /// nodes.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        let mut limits = String::new();
        // Writing to a string does not fail. Every field has its place here, so that a new one is not forgotten.
        let _ = write!(limits, "{:?} {:?}", self.replication, self.limits);
        Settings {
            // Names have no blanks.
            members: xxh3_64(names.join(" ").as_bytes()),
            leader: xxh3_64(self.leader.as_bytes()),
            limits: xxh3_64(limits.as_bytes()),
            max_memory_bytes: self.limits.max_memory_bytes,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: &str = "cluster = \"demo\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"h:1\"\n\
                        [[node]]\nname = \"n2\"\naddr = \"h:2\"\n[limits]\nmax_connections = 5\n";

    #[test]
    fn each_group_has_a_digest_of_its_own_and_addresses_have_none() {
        let settings = |text: &str| Config::parse(text, "cluster.toml").unwrap().settings();
        let own = settings(FILE);
        let cases: [(&str, &str, &[&str]); 5] = [
            ("h:2", "h:9", &[]),
            ("# ", "# again ", &[]),
            ("leader = \"n1\"", "leader = \"n2\"", &["leader"]),
            ("name = \"n2\"", "name = \"n3\"", &["members"]),
            ("max_connections = 5", "max_connections = 6", &["limits"]),
        ];
        for (from, to, differ) in cases {
            let other = settings(&FILE.replace(from, to));
            assert_eq!(own.differences(&other), differ, "{from} to {to}");
        }
    }
}
