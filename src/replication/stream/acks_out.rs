//! Acknowledgements of a follower: decides which one is due when.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::wire::replication::Message;

/// Least time between two acknowledgements, so that a busy stream does not have one for each batch.
const ACK_PAUSE: Duration = Duration::from_millis(1);

/// The acknowledgements of one stream, shared by its side that receives and the one that acknowledges.
///
/// An ACK is due when the applied index changes, at the end of a snapshot, and once in each heartbeat interval, but
/// never sooner than [`ACK_PAUSE`] after the one before.
#[derive(Debug)]
pub(crate) struct AcksOut {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` until the other side has accepted the stream.
    epoch: Option<u64>,
    applied_index: u64,
    /// Index and time of the last ACK.
    last: Option<(u64, Instant)>,
    /// A snapshot is complete. The other side must learn that even where the index is the one acknowledged last.
    is_due: bool,
}

/// What is to be done about acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckTurn {
    /// This one is to be sent now.
    Send(Message<'static>),
    /// None before this time, whatever comes.
    NotBefore(Instant),
    /// One when the applied index changes, and at this time at the latest. `None` before the stream is accepted.
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

    /// The stream begins in `epoch`, with a node that has applied everything up to `index`.
    pub(super) fn begin(&self, epoch: u64, index: u64) {
        let mut state = self.state.lock();
        state.epoch = Some(epoch);
        state.applied_index = index;
    }

    /// The node has applied everything up to `index`. `is_due` has that acknowledged even where it was before.
    pub(super) fn applied(&self, index: u64, is_due: bool) {
        let mut state = self.state.lock();
        state.applied_index = index;
        state.is_due |= is_due;
    }

    /// Decides what is to be done now. An ACK that is returned counts as sent.
    pub(crate) fn next(&self, now: Instant) -> AckTurn {
        let mut state = self.state.lock();
        let Some(epoch) = state.epoch else {
            return AckTurn::OnChange(None);
        };
        let applied_index = state.applied_index;
        if let Some((index, sent)) = state.last {
            if now < sent + ACK_PAUSE {
                return AckTurn::NotBefore(sent + ACK_PAUSE);
            }
            let at_latest = sent + ACK_PAUSE + self.interval;
            if index == applied_index && !state.is_due && now < at_latest {
                return AckTurn::OnChange(Some(at_latest));
            }
        }
        state.is_due = false;
        state.last = Some((applied_index, now));
        AckTurn::Send(Message::Ack {
            epoch,
            round: 0,
            last_index: applied_index,
            applied_index,
            durable_index: 0,
        })
    }
}
