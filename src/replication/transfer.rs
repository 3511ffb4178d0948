//! The transfer of leadership to a follower, as planned by an operator.
//!
//! 1. The leader suspends writes: new ones wait for room in the append queue, unexecuted.
//! 2. It waits until the target has acknowledged all of the log. If that takes too long it goes on leading.
//! 3. It steps down, and sends LEAD to the target as the last message of the stream. From here on it does not go back:
//!    it is a candidate, as at its start. It follows the target once that leads, and leads again, in a new epoch, only
//!    once the target is known neither to lead nor to follow any more.
//! 4. The writes that waited are answered NOT_LEADER with the target's address.
//!
//! So no acknowledged write is lost: the target has all of them before it leads. None is applied in two epochs: the old
//! one takes no write after the target has acknowledged the last.

use std::fmt;
use std::time::{Duration, Instant};

use log::info;

use super::Replica;
use super::core::role::LeadOrder;
use crate::node::RoleState;

/// Time between two looks at the target's progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Why leadership was not transferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// This node does not lead, or stops.
    NotLeading,
    /// Another transfer has begun, and has not ended.
    InProgress,
    /// No follower of this name has a stream.
    NotFollowing {
        /// The name.
        target: String,
    },
    /// The target had not acknowledged all of the log in time. This node goes on leading.
    Behind {
        /// The target.
        target: String,
        /// The last index that it acknowledged.
        acknowledged: u64,
        /// The last index of the log.
        last_index: u64,
    },
    /// The target did not lead, and this node leads again.
    Declined {
        /// The target.
        target: String,
    },
    /// Another node leads, and does not have all records of this one, which keeps them.
    Refused {
        /// The target.
        target: String,
    },
    /// The target was ordered to lead, and is not known to. This node does not lead until it knows.
    Unknown {
        /// The target.
        target: String,
    },
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransferError::NotLeading => f.write_str("this node does not lead"),
            TransferError::InProgress => f.write_str("another transfer is in progress"),
            TransferError::NotFollowing { target } => {
                write!(f, "{target} does not follow this node")
            }
            TransferError::Behind {
                target,
                acknowledged,
                last_index,
            } => write!(
                f,
                "{target} has acknowledged index {acknowledged} of {last_index} in time; this node goes on leading"
            ),
            TransferError::Declined { target } => {
                write!(f, "{target} did not lead; this node leads again")
            }
            TransferError::Refused { target } => write!(
                f,
                "{target} was ordered to lead, and the leader does not have all records of this node, which keeps them"
            ),
            TransferError::Unknown { target } => write!(
                f,
                "{target} was ordered to lead and is not known to; this node asks the others and takes no writes"
            ),
        }
    }
}

impl std::error::Error for TransferError {}

/// The next thing to do about a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again at this time, or when a follower's progress has changed.
    Wait(Instant),
    /// The transfer has ended.
    End(Result<(), TransferError>),
}

/// One transfer of leadership. Knows no socket, thread or clock.
pub(crate) struct Transfer<'a> {
    replica: Replica<'a>,
    target: String,
    deadline: Instant,
    is_ordered: bool,
}

impl<'a> Transfer<'a> {
    /// Begins the transfer to the follower `target`, which has until `deadline` to acknowledge all of the log, and then
    /// to lead.
    ///
    /// # Errors
    ///
    /// Where this node does not lead, or the target does not follow it.
    pub(crate) fn begin(
        replica: Replica<'a>,
        target: &str,
        deadline: Instant,
    ) -> Result<Transfer<'a>, TransferError> {
        let node = replica.node;
        if !node.takes_writes() || node.engine().log().is_none() {
            let is_second = node.is_transferring();
            return Err(if is_second {
                TransferError::InProgress
            } else {
                TransferError::NotLeading
            });
        }
        let target = target.to_owned();
        if replica.peers.acknowledged_by(&target).is_none() {
            return Err(TransferError::NotFollowing { target });
        }
        if !node.begin_transfer() {
            return Err(TransferError::InProgress);
        }
        node.engine().hold_writes(true);
        Ok(Transfer {
            replica,
            target,
            deadline,
            is_ordered: false,
        })
    }

    /// The next thing to do.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.is_ordered {
            return self.next_of_ordered(now);
        }
        let Replica { node, peers } = self.replica;
        let head = node.head();
        let target = self.target.clone();
        let Some(acknowledged) = peers.acknowledged_by(&target) else {
            return self.resume(TransferError::NotFollowing { target });
        };
        // It has yielded, or it stops.
        if !node.leads() || !node.is_transferring() {
            return self.resume(TransferError::NotLeading);
        }
        if acknowledged < head.index {
            if now < self.deadline {
                return Next::Wait(now + LOOK_INTERVAL);
            }
            return self.resume(TransferError::Behind {
                target,
                acknowledged,
                last_index: head.index,
            });
        }
        let RoleState::Leader { epoch } = node.role() else {
            return self.resume(TransferError::NotLeading);
        };
        let order = LeadOrder {
            epoch,
            last_index: head.index,
            digest: head.digest.to_u128(),
        };
        if !peers.order_to_lead(&target, order, now) {
            return self.resume(TransferError::NotFollowing { target });
        }
        self.is_ordered = true;
        info!("ordering {target} to lead after index {}", head.index);
        node.campaign(&format!("{target} is about to lead; try again"));
        if let Some(log) = node.engine().log() {
            log.wake_readers();
        }
        Next::Wait(now)
    }

    /// The order is given: this node follows the target, or leads again, as its driver decides.
    fn next_of_ordered(&mut self, now: Instant) -> Next {
        let target = self.target.clone();
        let result = match self.replica.node.role() {
            RoleState::Leader { .. } => Err(TransferError::Declined { target }),
            RoleState::Loading { leader, .. } | RoleState::Follower { leader }
                if *leader.name == *target =>
            {
                Ok(())
            }
            RoleState::Refusing { .. } => Err(TransferError::Refused { target }),
            RoleState::Candidate { .. }
            | RoleState::Loading { .. }
            | RoleState::Follower { .. } => {
                if now < self.deadline {
                    return Next::Wait(now + LOOK_INTERVAL);
                }
                Err(TransferError::Unknown { target })
            }
        };
        self.release_writes();
        Next::End(result)
    }

    /// This node goes on as before.
    fn resume(&self, error: TransferError) -> Next {
        self.release_writes();
        Next::End(Err(error))
    }

    /// Writes that wait are executed, or answered as the node's role has it.
    fn release_writes(&self) {
        let node = self.replica.node;
        node.end_transfer();
        node.engine().hold_writes(false);
    }
}
