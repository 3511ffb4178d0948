//! The leader side: the acknowledgements that come back on a stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{Link, StreamEnd};
use crate::wire::Buffer;
use crate::wire::replication::{Message, Parsed, parse};

/// The half of the leader side that takes acknowledgements.
pub(crate) struct AckReader<'a> {
    link: Arc<Link<'a>>,
    /// Silence after which the stream ends.
    silence_max: Duration,
    /// When anything last came.
    heard: Instant,
}

impl<'a> AckReader<'a> {
    pub(super) const fn new(
        link: Arc<Link<'a>>,
        silence_max: Duration,
        now: Instant,
    ) -> AckReader<'a> {
        AckReader {
            link,
            silence_max,
            heard: now,
        }
    }

    /// Consumes the whole frames that have arrived in `buffer`. Returns the length of the frame that has begun, as far
    /// as known. To be called after each read.
    ///
    /// # Errors
    ///
    /// Why the stream has to end.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut Buffer,
        now: Instant,
    ) -> Result<usize, StreamEnd> {
        self.heard = now;
        loop {
            match parse(buffer.bytes()).map_err(StreamEnd::BadFrame)? {
                Parsed::Incomplete { needed } => return Ok(needed),
                Parsed::Whole { message, frame_len } => {
                    let Message::Ack {
                        last_index,
                        applied_index,
                        ..
                    } = message
                    else {
                        return Err(StreamEnd::NotAnAck(message.opcode().name()));
                    };
                    self.acknowledged(last_index.max(applied_index), applied_index, now)?;
                    buffer.consume(frame_len);
                }
            }
        }
    }

    /// The other side has logged everything up to `last_index`, and applied it up to `applied_index`.
    fn acknowledged(
        &self,
        last_index: u64,
        applied_index: u64,
        now: Instant,
    ) -> Result<(), StreamEnd> {
        let matched = self.link.matched();
        if last_index > matched {
            let index = last_index;
            return Err(StreamEnd::AckBeyond { index, matched });
        }
        self.link.acknowledged(applied_index, now)
    }

    /// The longest wait for an acknowledgement.
    pub(crate) const fn silence_max(&self) -> Duration {
        self.silence_max
    }

    /// Judges a wait in which nothing has come. To be called where a read has timed out.
    ///
    /// # Errors
    ///
    /// [`StreamEnd::Silent`], where the stream has to end.
    pub(crate) fn check_silence(&self, now: Instant) -> Result<(), StreamEnd> {
        let silence = now.saturating_duration_since(self.heard);
        if silence < self.silence_max {
            Ok(())
        } else {
            Err(StreamEnd::Silent)
        }
    }

    /// The other side has ended the stream, so the half that sends ends too. A follower may come back at once.
    pub(crate) fn end(&self, why: StreamEnd) {
        self.link.set_end(why);
    }
}
