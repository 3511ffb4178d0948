//! The role of a node, and the state of its data set.

use std::fmt;
use std::sync::Arc;

/// A node that another one follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its name in `cluster.toml`.
    pub name: Arc<str>,
    /// Its `host:port`, as in `cluster.toml`.
    pub addr: Arc<str>,
}

/// The role of a node, and the state of its data set.
///
/// | role        | serves reads | takes writes | holds a complete data set |
/// |-------------|--------------|--------------|---------------------------|
/// | `Loading`   | no           | no           | no, or one that differs   |
/// | `Candidate` | where it led or followed before | no | perhaps       |
/// | `Follower`  | yes          | no           | yes                       |
/// | `Leader`    | yes          | yes, until it stops | yes                |
/// | `Refusing`  | yes          | no           | yes, one that its leader does not know |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleState {
    /// It is a follower without a complete data set, for the reason given, and refuses reads.
    Loading {
        /// The leader that it follows or tries to.
        leader: Leader,
        /// The answer to reads.
        why: Arc<str>,
    },
    /// It is to lead, and finds out which data the other nodes hold and whether one of them leads.
    Candidate {
        /// The answer to writes, and to reads where it serves none.
        why: Arc<str>,
        /// Whether it serves the data set that it had as a leader or a follower.
        serves: bool,
    },
    /// It serves a complete data set, and follows the leader or tries to.
    Follower {
        /// The leader.
        leader: Leader,
    },
    /// It takes reads and writes.
    Leader {
        /// The epoch that it opened; 0 of a node without peers.
        epoch: u64,
    },
    /// It holds a data set that the leader does not know. It serves the data set and keeps it until a leader
    /// knows it, or an operator orders to discard it.
    Refusing {
        /// The leader; `None` of a node that led itself until it heard of another leader.
        leader: Option<Leader>,
        /// The reason, for STATUS.
        why: Arc<str>,
    },
}

impl RoleState {
    /// The leader that the node follows or tries to follow.
    #[must_use]
    pub const fn leader(&self) -> Option<&Leader> {
        match self {
            RoleState::Loading { leader, .. } | RoleState::Follower { leader } => Some(leader),
            RoleState::Refusing { leader, .. } => leader.as_ref(),
            RoleState::Candidate { .. } | RoleState::Leader { .. } => None,
        }
    }

    /// Whether reads are served.
    #[must_use]
    pub const fn serves(&self) -> bool {
        match self {
            RoleState::Loading { .. } => false,
            RoleState::Candidate { serves, .. } => *serves,
            RoleState::Follower { .. } | RoleState::Leader { .. } | RoleState::Refusing { .. } => {
                true
            }
        }
    }

    /// The role's word in STATUS. A candidate is to lead.
    #[must_use]
    pub const fn role_name(&self) -> &'static str {
        match self {
            RoleState::Candidate { .. }
            | RoleState::Leader { .. }
            | RoleState::Refusing { leader: None, .. } => "leader",
            RoleState::Loading { .. }
            | RoleState::Follower { .. }
            | RoleState::Refusing {
                leader: Some(_), ..
            } => "follower",
        }
    }

    /// The state's word in STATUS.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
        match self {
            RoleState::Loading { .. } | RoleState::Candidate { .. } => "loading",
            RoleState::Follower { .. } | RoleState::Leader { .. } => "serving",
            RoleState::Refusing { .. } => "refused",
        }
    }

    /// Why the node does not serve, or does not follow.
    #[must_use]
    pub const fn why(&self) -> Option<&Arc<str>> {
        match self {
            RoleState::Loading { why, .. }
            | RoleState::Candidate { why, .. }
            | RoleState::Refusing { why, .. } => Some(why),
            RoleState::Follower { .. } | RoleState::Leader { .. } => None,
        }
    }
}

impl fmt::Display for RoleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.role_name(), self.state_name())?;
        match self.why() {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}
