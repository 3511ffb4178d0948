//! `cluster.toml`: who is in the cluster, and the limits.
