//! How many connections the operating system allows. Its limits may be below what `max_connections` needs. A server
//! that ran into them could not use its reserve, or would end.

use std::fs;

use log::warn;

use super::{housekeeping, pending, registry};

/// Descriptors of the listeners, the log, epoll and a few more.
const OTHERS: usize = 64;

/// Descriptors beside those of `max_connections`.
const DESCRIPTORS_BESIDE: usize =
    registry::RESERVE + pending::PENDING_MAX + housekeeping::SOCKETS_MAX + OTHERS;

/// Memory maps of a thread: its stack, its alternate stack for signals, and a guard page for each. Where the system
/// refuses the second, the standard library panics, which ends the process.
const MAPS_PER_THREAD: u64 = 4;

/// Memory maps for everything else: 3 for each 64 MiB of data, about.
const MAPS_BESIDE: u64 = 8_192;

/// Memory maps that are allowed where the limit cannot be read: the default of Linux.
const MAPS_BY_DEFAULT: u64 = 65_530;

/// How many connections of each kind the server may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Connections beside the reserve.
    pub(super) connections: u32,
    /// Pending connections.
    pub(super) pending: usize,
    /// Sockets of refused clients that are drained.
    pub(super) refused: usize,
}

impl Allowance {
    /// Raises the limit of open files to what `max_connections` needs. Where the system allows less, logs a warning and
    /// returns what it allows.
    pub(super) fn new(max_connections: u32) -> Allowance {
        let mut connections = max_connections;
        let maps = maps_max();
        let threads = maps.saturating_sub(MAPS_BESIDE) / MAPS_PER_THREAD;
        let affordable = threads.saturating_sub(registry::RESERVE as u64).max(1);
        if u64::from(connections) > affordable {
            connections = u32::try_from(affordable).unwrap_or(connections);
            let needed = MAPS_BESIDE
                + MAPS_PER_THREAD * (u64::from(max_connections) + registry::RESERVE as u64);
            warn!(
                "max_connections is {max_connections}, which needs {needed} memory maps, and the system allows {maps}; \
                 serving {connections} at once; raise it (vm.max_map_count) or lower max_connections"
            );
        }
        let needed = u64::from(connections) + DESCRIPTORS_BESIDE as u64;
        match rlimit::increase_nofile_limit(needed) {
            Ok(allowed) if allowed < needed => {
                let allowance = Allowance::of_descriptors(allowed);
                warn!(
                    "max_connections is {max_connections}, which needs {needed} open files, and the system allows \
                     {allowed}; serving {} at once; raise it (ulimit -n, LimitNOFILE) or lower max_connections",
                    allowance.connections
                );
                return allowance;
            }
            Ok(_) => {}
            Err(error) => warn!("cannot tell how many open files the system allows: {error}"),
        }
        Allowance {
            connections,
            pending: pending::PENDING_MAX,
            refused: housekeeping::SOCKETS_MAX,
        }
    }

    /// Divides too few descriptors: half of them are for connections at the least, and the reserve, pending connections
    /// and refused sockets get a part each.
    fn of_descriptors(allowed: u64) -> Allowance {
        let connections = allowed
            .saturating_sub(DESCRIPTORS_BESIDE as u64)
            .max(allowed / 2)
            .max(1);
        let taken = connections + (registry::RESERVE + OTHERS) as u64;
        let left = usize::try_from(allowed.saturating_sub(taken)).unwrap_or(usize::MAX);
        let pending = (left / 2).clamp(1, pending::PENDING_MAX);
        let refused = left.saturating_sub(pending);
        Allowance {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            pending,
            refused: refused.clamp(1, housekeeping::SOCKETS_MAX),
        }
    }
}

/// Memory maps that the system allows a process.
fn maps_max() -> u64 {
    // A service may not be allowed to read it.
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(MAPS_BY_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_divided_so_that_the_reserve_gets_its_part() {
        for (allowed, connections, pending, refused) in [
            (65_536, 64_128, 256, 1_024),
            (4_096, 2_688, 256, 1_024),
            (2_000, 1_000, 256, 616),
            (1_024, 512, 192, 192),
            (40, 20, 1, 1),
            (0, 1, 1, 1),
        ] {
            let expected = Allowance {
                connections,
                pending,
                refused,
            };
            assert_eq!(Allowance::of_descriptors(allowed), expected, "{allowed}");
        }
    }

    #[test]
    fn threads_are_no_more_than_the_memory_maps_allow() {
        let allowance = Allowance::new(u32::MAX);
        let threads = u64::from(allowance.connections) + registry::RESERVE as u64;
        assert!(threads * MAPS_PER_THREAD < maps_max());
    }
}
