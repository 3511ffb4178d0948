//! The answer to SYNC: the position of the data set, whether it has that of a token, and whether the disk has it.

use std::time::Duration;

use super::{Node, Reply};
use crate::history::Holding;
use crate::log::{Log, Mark, Position, Wait, Wake};
use crate::wire::{SyncRequest, Token};

/// The answer to a SYNC where the node has no log.
const NO_LOG: &str =
    "SYNC: a token needs a log, which a node has with peers in cluster.toml or with --data-dir";

/// The answer to a SYNC `durable` where the node has no disk.
const NO_DISK: &str = "SYNC: durable needs a disk, which a node has with --data-dir, or with data_dir in \
                       [storage] of cluster.toml";

/// The result of a SYNC.
#[derive(Debug)]
pub enum Synced {
    /// Its answer, and the position that the answer waits for.
    Done(Reply, Position),
    /// The answer has to wait.
    NotYet {
        /// The state that it waits for.
        awaited: Awaited,
        /// How long the request may wait.
        timeout: Duration,
        /// The answer if the wait is over.
        reply: Reply,
    },
}

/// The state that a SYNC waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The data set has the position of this token.
    Held(Token),
    /// The disk has the data set up to this position, which was that of the data set when the request was first judged.
    Durable(Token),
}

impl Node {
    /// Judges a SYNC, now. After [`Synced::NotYet`] the caller may wait ([`await_sync`](Self::await_sync)) and ask
    /// again ([`sync_again`](Self::sync_again)).
    #[must_use]
    pub fn sync(&self, value: &[u8]) -> Synced {
        let done = |reply| Synced::Done(reply, Position::default());
        let request = match SyncRequest::decode(value) {
            Ok(request) => request,
            Err(error) => return done(Reply::Error(error.reason)),
        };
        let log = match (request, self.engine.log()) {
            (SyncRequest::Durable { .. }, _) if !self.has_directory() => {
                return done(Reply::Error(NO_DISK.to_owned()));
            }
            (_, None) => return done(Reply::Error(NO_LOG.to_owned())),
            (_, Some(log)) => log,
        };
        let timeout = |timeout_ms: u32| Duration::from_millis(timeout_ms.into());
        match request {
            SyncRequest::Position => self.while_it_serves(|| holds(log.token())),
            SyncRequest::At { token, timeout_ms } => {
                self.sync_again(Awaited::Held(token), timeout(timeout_ms))
            }
            SyncRequest::Durable { timeout_ms } => {
                self.sync_again(Awaited::Durable(log.token()), timeout(timeout_ms))
            }
        }
    }

    /// Judges a SYNC again that waits for `awaited`, for `timeout` at most.
    #[must_use]
    pub fn sync_again(&self, awaited: Awaited, timeout: Duration) -> Synced {
        let Some(log) = self.engine.log() else {
            return Synced::Done(Reply::Error(NO_LOG.to_owned()), Position::default());
        };
        self.while_it_serves(|| match awaited {
            Awaited::Held(token) => judge(log, token, timeout),
            Awaited::Durable(token) => judge_durable(log, token, timeout),
        })
    }

    /// The result of `judge`, where the node serves reads before and after it: the data set may be discarded meanwhile.
    fn while_it_serves(&self, judge: impl FnOnce() -> Synced) -> Synced {
        let refusal = || Synced::Done(self.refusal_of_read(), Position::default());
        if !self.engine.admits_reads() {
            return refusal();
        }
        let synced = judge();
        if !self.engine.admits_reads() {
            return refusal();
        }
        synced
    }

    /// Has `wake` called once, when the state may be reached, or the data set becomes another one. To be called before
    /// [`sync_again`](Self::sync_again), so that nothing is missed in between. `None` without a log.
    #[must_use]
    pub fn await_sync(&self, awaited: Awaited, wake: Wake) -> Option<Wait<'_>> {
        let log = self.engine.log()?;
        Some(match awaited {
            Awaited::Held(token) => log.await_index(token.index, wake),
            Awaited::Durable(token) => log.watermarks().await_durable(token.index, wake),
        })
    }
}

/// Judges a SYNC at `token`.
fn judge(log: &Log, token: Token, timeout: Duration) -> Synced {
    let (holding, own) = log.holding(token);
    let Token { epoch, index, .. } = token;
    match holding {
        Holding::Held => holds(own),
        Holding::NotYet => Synced::NotYet {
            awaited: Awaited::Held(token),
            timeout,
            reply: Reply::NotReached(format!(
                "this node is at index {} of epoch {}, the token is index {index} of epoch {epoch}",
                own.index, own.epoch
            )),
        },
        Holding::Lost => lost(token),
        Holding::Forgotten { oldest } => compacted(oldest),
    }
}

/// Judges a SYNC `durable` of which `token` was the position of the data set.
fn judge_durable(log: &Log, token: Token, timeout: Duration) -> Synced {
    let generation = log.dataset_generation();
    let durable = log.watermarks().index(Mark::Durable).unwrap_or(0);
    // The position may have been cut off, or the data set replaced, since the request was first judged.
    let is_held = match log.holding(token).0 {
        Holding::Held => true,
        // Nothing has been written yet.
        Holding::NotYet | Holding::Lost | Holding::Forgotten { .. } if token.index == 0 => true,
        Holding::NotYet => false,
        Holding::Lost => return lost(token),
        Holding::Forgotten { oldest } => return compacted(oldest),
    };
    // Of this data set, the disk has it.
    if is_held && durable >= token.index && log.dataset_generation() == generation {
        let reply = Reply::Answer(token.encode().to_vec());
        // It waits for no other watermark: records are written before they are durable.
        return Synced::Done(reply, Position::default());
    }
    log.want_durable(token.index);
    Synced::NotYet {
        awaited: Awaited::Durable(token),
        timeout,
        reply: Reply::NotReached(format!(
            "the disk of this node has its records up to index {durable}, and {} is asked for",
            token.index
        )),
    }
}

/// OK with the node's own position.
fn holds(own: Token) -> Synced {
    let (epoch, index) = (own.epoch, own.index);
    let reply = Reply::Answer(own.encode().to_vec());
    Synced::Done(reply, Position { epoch, index })
}

fn lost(token: Token) -> Synced {
    let Token {
        epoch,
        index,
        nonce,
    } = token;
    let reply = Reply::Lost(format!(
        "index {index} of epoch {epoch} with nonce {nonce:#018x} is not in the history of this node"
    ));
    Synced::Done(reply, Position::default())
}

fn compacted(oldest: u64) -> Synced {
    let reply = Reply::Compacted(oldest.to_be_bytes());
    Synced::Done(reply, Position::default())
}
