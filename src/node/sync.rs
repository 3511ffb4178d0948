//! The answer to SYNC: the position of the data set, and whether it has that of a token.

use std::time::Duration;

use super::{Node, Reply};
use crate::history::Holding;
use crate::log::{Log, Position, Wait, Wake};
use crate::wire::{SyncRequest, Token};

/// The answer to a SYNC where the node has no log.
const NO_LOG: &str = "SYNC: a token needs a log, which a node has with peers in cluster.toml";

/// The result of a SYNC.
#[derive(Debug)]
pub enum Synced {
    /// Its answer, and the position that the answer waits for.
    Done(Reply, Position),
    /// The data set does not have the token's position yet.
    NotYet {
        /// Index of that position.
        index: u64,
        /// How long the request may wait.
        timeout: Duration,
        /// The answer if the wait is over.
        reply: Reply,
    },
}

impl Node {
    /// Judges a SYNC, now. After [`Synced::NotYet`] the caller may wait ([`await_index`](Self::await_index)) and ask
    /// again.
    #[must_use]
    pub fn sync(&self, value: &[u8]) -> Synced {
        let done = |reply| Synced::Done(reply, Position::default());
        let request = match SyncRequest::decode(value) {
            Ok(request) => request,
            Err(error) => return done(Reply::Error(error.reason)),
        };
        let Some(log) = self.engine.log() else {
            return done(Reply::Error(NO_LOG.to_owned()));
        };
        if !self.engine.admits_reads() {
            return done(self.refusal_of_read());
        }
        let synced = match request {
            SyncRequest::Position => holds(log.token()),
            SyncRequest::At { token, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms.into());
                judge(log, token, timeout)
            }
        };
        // Asked again, since the data set may have been discarded meanwhile.
        if !self.engine.admits_reads() {
            return done(self.refusal_of_read());
        }
        synced
    }

    /// Has `wake` called once, when the data set gets to `index` or becomes another one. To be called before
    /// [`sync`](Self::sync), so that nothing is missed in between. `None` without a log.
    #[must_use]
    pub fn await_index(&self, index: u64, wake: Wake) -> Option<Wait<'_>> {
        self.engine.log().map(|log| log.await_index(index, wake))
    }
}

/// Judges a SYNC at `token`.
fn judge(log: &Log, token: Token, timeout: Duration) -> Synced {
    let (holding, own) = log.holding(token);
    let Token {
        epoch,
        index,
        nonce,
    } = token;
    let done = |reply| Synced::Done(reply, Position::default());
    match holding {
        Holding::Held => holds(own),
        Holding::NotYet => Synced::NotYet {
            index,
            timeout,
            reply: Reply::NotReached(format!(
                "this node is at index {} of epoch {}, the token is index {index} of epoch {epoch}",
                own.index, own.epoch
            )),
        },
        Holding::Lost => done(Reply::Lost(format!(
            "index {index} of epoch {epoch} with nonce {nonce:#018x} is not in the history of this node"
        ))),
        Holding::Forgotten { oldest } => done(Reply::Compacted(oldest.to_be_bytes())),
    }
}

/// OK with the node's own position.
fn holds(own: Token) -> Synced {
    let (epoch, index) = (own.epoch, own.index);
    let reply = Reply::Answer(own.encode().to_vec());
    Synced::Done(reply, Position { epoch, index })
}
