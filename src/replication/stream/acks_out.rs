//! Acknowledgements of a follower: decides which one is due when.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::wire::replication::Message;

/// Least time between two acknowledgements, so that a busy stream does not have one for each batch.
const ACK_PAUSE: Duration = Duration::from_millis(1);

/// The acknowledgements of one stream, shared by its side that receives and the one that acknowledges.
///
/// An ACK is due when the node's position changes, after a HEARTBEAT, at the end of a snapshot, and once in each
/// heartbeat interval, but never sooner than [`ACK_PAUSE`] after the one before.
#[derive(Debug)]
pub(crate) struct AcksOut {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` until the other side has accepted the stream.
    epoch: Option<u64>,
    at: Acknowledged,
    /// Round of the newest HEARTBEAT.
    round: u64,
    /// The last ACK, and when it was sent.
    last: Option<(Acknowledged, Instant)>,
    /// The other side must get an ACK though the position is the one acknowledged last.
    is_due: bool,
}

/// The position that a follower acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// Index of the last record of its log.
    pub(super) last_index: u64,
    /// Index of the last record that its data set has.
    pub(super) applied_index: u64,
    /// Index up to which its log is on its disk; 0 where it has none.
    pub(super) durable_index: u64,
}

/// Next action of the acknowledging side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckTurn {
    /// This one is to be sent now.
    Send(Message<'static>),
    /// None before this time, whatever comes.
    NotBefore(Instant),
    /// One when something is received, and at this time at the latest. `None` before the stream is accepted.
    OnChange(Option<Instant>),
}

impl AcksOut {
    /// The acknowledgements of a stream that is not accepted yet. `interval` is the interval of heartbeats.
    pub(super) fn new(interval: Duration) -> AcksOut {
        AcksOut {
            interval,
            state: Mutex::default(),
        }
    }

    /// The stream begins in `epoch`, with a node at this position.
    pub(super) fn begin(&self, epoch: u64, at: Acknowledged) {
        let mut state = self.state.lock();
        state.epoch = Some(epoch);
        state.at = at;
    }

    /// The node has come to this position.
    pub(super) fn reached(&self, at: Acknowledged) {
        self.state.lock().at = at;
    }

    /// A snapshot is complete, and the position may be the one acknowledged last.
    pub(super) fn snapshot_ended(&self) {
        self.state.lock().is_due = true;
    }

    /// A HEARTBEAT of this round has come.
    pub(super) fn heartbeat(&self, round: u64) {
        let mut state = self.state.lock();
        state.round = round;
        state.is_due = true;
    }

    /// Decides what is to be done now. An ACK that is returned counts as sent.
    pub(crate) fn next(&self, now: Instant) -> AckTurn {
        let mut state = self.state.lock();
        let Some(epoch) = state.epoch else {
            return AckTurn::OnChange(None);
        };
        let at = state.at;
        if let Some((last, sent)) = state.last {
            if now < sent + ACK_PAUSE {
                return AckTurn::NotBefore(sent + ACK_PAUSE);
            }
            let at_latest = sent + ACK_PAUSE + self.interval;
            if last == at && !state.is_due && now < at_latest {
                return AckTurn::OnChange(Some(at_latest));
            }
        }
        state.is_due = false;
        state.last = Some((at, now));
        AckTurn::Send(Message::Ack {
            epoch,
            round: state.round,
            last_index: at.last_index,
            applied_index: at.applied_index,
            durable_index: at.durable_index,
        })
    }
}
