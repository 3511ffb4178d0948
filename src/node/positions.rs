//! When answers may be sent: once a watermark has reached their position in the log.

use std::sync::Arc;

use super::{Node, Reply};
#[cfg(test)]
use crate::config::Config;
#[cfg(test)]
use crate::history::EpochStart;
use crate::log::{Mark, Position, Reached, Watermarks};

impl Node {
    /// Has answers wait until `mark` has reached their position. Without this they wait for [`Mark::Appended`], which
    /// every record has reached when its answer is made. To be called before the node is served.
    pub const fn acknowledge_at(&mut self, mark: Mark) {
        self.acknowledged_at = mark;
    }

    /// The watermarks and the mark that answers wait for; `None` where they wait for nothing.
    #[must_use]
    #[inline]
    pub fn awaited(&self) -> Option<(&Watermarks, Mark)> {
        match self.acknowledged_at {
            Mark::Appended => None,
            mark @ (Mark::Written | Mark::Durable | Mark::Committed) => {
                self.engine.log().map(|log| (log.watermarks(), mark))
            }
        }
    }

    /// Whether answers at `position` may be sent.
    #[must_use]
    #[inline]
    pub fn reached(&self, position: Position) -> Reached {
        match self.awaited() {
            None => Reached::Yes,
            Some((watermarks, mark)) => watermarks.reached(mark, position),
        }
    }

    /// The answer to a request in place of one whose position is never reached.
    #[must_use]
    pub fn lost(&self, is_write: bool) -> Reply {
        if is_write {
            return Reply::Timeout;
        }
        let leader = self.redirects_writes();
        leader.unwrap_or_else(|| Reply::NotLeader(Arc::from("")))
    }

    /// Ends the wait of every answer: the positions that are not reached by now never will be.
    pub fn give_up_positions(&self) {
        if let Some((watermarks, _)) = self.awaited() {
            watermarks.give_up_epoch();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Node {
    /// A leader of a cluster of two that serves, and whose answers wait for `mark`.
    pub(crate) fn leader_of_two(mark: Mark) -> Node {
        let text = "cluster = \"c\"\nleader = \"n1\"\n\
                    [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                    [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
        let config = Config::parse(text, "cluster.toml").unwrap();
        let mut node = Node::of_cluster(&config, config.leader());
        node.acknowledge_at(mark);
        let start = EpochStart {
            epoch: 1,
            nonce: 1,
            start_index: 1,
        };
        node.open_epoch(start).unwrap();
        node
    }
}
