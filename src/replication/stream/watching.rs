//! WATCH: its answer, and the node's side of its stream.
//!
//! Any node that holds a complete data set serves watchers, a follower too, and no other part of the node knows of
//! them. A watcher is sent nothing beyond what is committed here and nothing of another data set. It sends nothing, and
//! may pause for as long as the log holds the next record.

use std::time::{Duration, Instant};

use super::accept::answer_of;
use super::link::StreamEnd;
use super::sending::{GATHER, Sending, encode, stall_turn};
use super::snapshot_out::{SnapshotEnd, SnapshotOut};
use super::source::{Offer, Source};
use crate::engine::entry::Entry;
use crate::history::History;
use crate::log::{Cursor, Found, Log};
use crate::node::{Node, Reply};
use crate::replication::core::rules::{WatchStart, start_of_watch};
use crate::wire::batch::effects;
use crate::wire::replication::{EventEncoder, Start, Watch, WatchFrom, event_head};
use crate::wire::request::{self, ANY_VALUE, Parsed};
use crate::wire::{Opcode, RequestFrame, Token};

/// Longest frame in bytes that is copied into an event. A longer one is sent from where it lies.
const COPIED_MAX: usize = 256 << 10;

/// The reason where a node has no log.
const NO_LOG: &str =
    "a watch needs a log, which a node has with peers in cluster.toml or a data directory";

/// A watch that was accepted.
#[derive(Debug)]
pub(crate) struct AcceptedWatch<'a> {
    offer: Offer<'a>,
    start: Start,
    /// `host:port` of the watcher.
    addr: String,
    prefix: Vec<u8>,
    wants_values: bool,
    /// The answer's value.
    pub(crate) answer: Vec<u8>,
}

impl AcceptedWatch<'_> {
    /// The line for the log.
    pub(crate) fn line(&self) -> String {
        let addr = &self.addr;
        match self.start {
            Start::Snapshot | Start::Unknown => format!("{addr} watches from a snapshot on"),
            Start::Resume { from_index } => format!("{addr} watches from index {from_index} on"),
        }
    }

    /// The line for the log when the stream has ended. `why` says how, where it is not complete.
    pub(crate) fn end_line(addr: &str, why: Option<&StreamEnd>) -> String {
        match why {
            None => format!("{addr} no longer watches"),
            Some(why) => format!("{addr} no longer watches: {why}"),
        }
    }

    /// `host:port` of the watcher.
    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }
}

/// Judges a WATCH request from `addr`. Boxed, since every connection's stack would have room for what few of them need.
///
/// # Errors
///
/// The answer that refuses it.
pub(crate) fn accept_watch<'a>(
    node: &'a Node,
    addr: &str,
    key: &[u8],
    value: &[u8],
) -> Result<Box<AcceptedWatch<'a>>, Reply> {
    let watch = Watch::decode(key, value).map_err(|error| Reply::Error(error.to_string()))?;
    let (Some(log), Some(member)) = (node.engine().log(), node.member()) else {
        return Err(Reply::Error(NO_LOG.to_owned()));
    };
    // Read before the history, so that the sender notices a later change.
    let generation = node.dataset_generation();
    if let Some(why) = node.lacks_data() {
        return Err(Reply::Loading(why));
    }
    let history = node.history();
    let judged = judge(log, &history, watch.from);
    // A refusal is final, so it must not be judged by two data sets.
    if node.dataset_generation() != generation {
        return Err(Reply::Loading(StreamEnd::OtherData.to_string().into()));
    }
    let (start, cursor) = judged?;
    Ok(Box::new(AcceptedWatch {
        start,
        addr: addr.to_owned(),
        prefix: watch.prefix.to_vec(),
        wants_values: watch.wants_values,
        answer: answer_of(start, &history)?,
        offer: Offer {
            node,
            log,
            generation,
            history,
            cursor,
            interval: member.replication.heartbeat_interval,
        },
    }))
}

/// The start of a stream, and the position in the log; none where the stream begins with a snapshot.
fn judge(log: &Log, history: &History, from: WatchFrom) -> Result<(Start, Option<Cursor>), Reply> {
    if from == WatchFrom::Snapshot {
        return Ok((Start::Snapshot, None));
    }
    let last_index = log.last_index();
    let compacted = || Reply::Compacted(log.first_index().to_be_bytes());
    match start_of_watch(history, last_index, log.committed_index(), from) {
        WatchStart::After(index) => {
            let cursor = log.cursor_after(index).ok_or_else(compacted)?;
            let from_index = cursor.next;
            Ok((Start::Resume { from_index }, Some(cursor)))
        }
        WatchStart::Later => {
            let why = format!("this node has records up to index {last_index} only");
            Err(Reply::Loading(why.into()))
        }
        WatchStart::Beyond => {
            let index = index_of(from).saturating_sub(1);
            Err(Reply::Error(format!(
                "no entry after {index} yet, this node's last one is {last_index}"
            )))
        }
        WatchStart::Lost { epoch_end } => {
            let (epoch, index) = (epoch_of(from), index_of(from));
            let end = epoch_end.map_or_else(
                || "which does not have that epoch".to_owned(),
                |end| format!("where that epoch ends at index {end}"),
            );
            Err(Reply::Lost(format!(
                "entry {index} of epoch {epoch} is not in this node's history, {end}"
            )))
        }
        WatchStart::Forgotten => Err(compacted()),
    }
}

/// The index that a watcher names; 0 where it names none.
const fn index_of(from: WatchFrom) -> u64 {
    match from {
        WatchFrom::Index(index) | WatchFrom::After(Token { index, .. }) => index,
        WatchFrom::Now | WatchFrom::Snapshot => 0,
    }
}

/// The epoch that a watcher names; 0 where it names none.
const fn epoch_of(from: WatchFrom) -> u64 {
    match from {
        WatchFrom::After(Token { epoch, .. }) => epoch,
        WatchFrom::Index(_) | WatchFrom::Now | WatchFrom::Snapshot => 0,
    }
}

/// The node's side of the stream of a watcher.
///
/// The caller does what [`next`](Self::next) returns, and then calls it again. Where a write is not taken it asks
/// [`check_stall`](Self::check_stall).
pub(crate) struct WatchStream<'a> {
    source: Source<'a>,
    addr: String,
    prefix: Vec<u8>,
    wants_values: bool,
    /// The snapshot that comes first, until it is sent.
    snapshot: Option<Box<SnapshotOut>>,
    /// Lines for the log.
    notes: Vec<String>,
}

impl<'a> WatchStream<'a> {
    /// Begins a stream that was accepted.
    pub(crate) fn new(accepted: AcceptedWatch<'a>, now: Instant) -> WatchStream<'a> {
        let mut source = Source::new(accepted.offer, now);
        let snapshot = match source.cursor {
            Some(_) => None,
            None => {
                // Its first message says that the node is alive.
                source.beat_from(now + source.interval);
                Some(Box::new(SnapshotOut::new(&accepted.prefix, now)))
            }
        };
        WatchStream {
            source,
            addr: accepted.addr,
            prefix: accepted.prefix,
            wants_values: accepted.wants_values,
            snapshot,
            notes: Vec::new(),
        }
    }

    /// The log that is sent.
    pub(crate) const fn log(&self) -> &'a Log {
        self.source.log
    }

    /// Whether the stream is over, though the log has nothing new.
    pub(crate) fn has_news(&self) -> bool {
        self.source.check_dataset().is_err()
    }

    /// Whether a snapshot is being sent.
    pub(crate) const fn is_in_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Takes the lines for the log that have come up since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Decides what is to be done next. Bytes to write replace the contents of `out`; there may be none.
    ///
    /// # Errors
    ///
    /// Why the stream ends.
    pub(crate) fn next(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        out.clear();
        self.source.check_dataset()?;
        if let Some(snapshot) = &mut self.snapshot {
            let sending = snapshot.next(&mut self.source, now, out)?;
            if let Some(SnapshotEnd { index, took }) = snapshot.take_end() {
                let (addr, took) = (&self.addr, took.as_millis());
                self.notes.push(format!(
                    "{addr} was sent a snapshot up to index {index} in {took} ms"
                ));
            }
            match sending {
                // It visits keys that are not watched.
                Some(Sending::Gather(_)) if self.source.is_beat_due(now) => {
                    let cursor = self.source.cursor.ok_or(StreamEnd::FellBehind)?;
                    return self.beat(cursor, out);
                }
                Some(sending) => return Ok(sending),
                None => {}
            }
            self.source.beat_from(now);
            self.snapshot = None;
        }
        self.next_of_log(now, out)
    }

    fn next_of_log(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        let mut cursor = self.source.cursor.ok_or(StreamEnd::FellBehind)?;
        if self.source.takes_pause() {
            return Ok(Sending::Gather(GATHER));
        }
        // In the midst of records that a follower is applying, the digest is not known.
        let may_beat = self.source.is_at_digest(cursor) || self.source.is_beat_late(now);
        if may_beat && self.source.is_beat_due(now) {
            return self.beat(cursor, out);
        }
        let (first_index, committed) = (cursor.next, self.source.log.committed_index());
        if first_index > committed && self.source.log.holds(&cursor) {
            return Ok(if self.source.log.has_ended() {
                Sending::End
            } else {
                Sending::Wait {
                    cursor,
                    until: self.source.beat_at(),
                }
            });
        }
        match self.source.read(&mut cursor)? {
            Found::Small(count, _) => {
                // A follower's log may be further than its data set.
                let left =
                    u32::try_from((committed + 1).saturating_sub(first_index)).unwrap_or(u32::MAX);
                let count = count.min(left);
                cursor.next = first_index + u64::from(count);
                self.source.cursor = Some(cursor);
                self.events(first_index, count, out)?;
                self.source.sent(count);
                Ok(Sending::Frames { large: None })
            }
            Found::Large(entry, _) => self.large_event(first_index, entry, out),
            Found::Nothing => Ok(Sending::Wait {
                cursor,
                until: self.source.beat_at(),
            }),
            Found::Gone => Err(StreamEnd::FellBehind),
            Found::Ended => Ok(Sending::End),
        }
    }

    /// Makes a heartbeat, which says how far the stream has come.
    fn beat(&mut self, cursor: Cursor, out: &mut Vec<u8>) -> Result<Sending, StreamEnd> {
        if let Some(beat) = self.source.beat(cursor, cursor.next - 1, false) {
            self.source.check_dataset()?;
            encode(&beat, out)?;
        }
        Ok(Sending::Frames { large: None })
    }

    /// Makes the events of the first `count` records that were read.
    fn events(&self, first_index: u64, count: u32, out: &mut Vec<u8>) -> Result<(), StreamEnd> {
        let (mut frames, end) = (
            request::frames(&self.source.run),
            first_index + u64::from(count),
        );
        for index in first_index..end {
            // A watcher is to miss none, whatever is wrong.
            let frame = frames.next().ok_or(StreamEnd::TooLong)?;
            self.event(index, &frame, out)?;
        }
        Ok(())
    }

    /// Makes the event of one record, where it is about a key that is watched.
    fn event(
        &self,
        index: u64,
        record: &RequestFrame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        let mut event = EventEncoder::new(out, self.wants_values);
        if record.opcode() == Opcode::Epoch && self.prefix.is_empty() {
            event.push(record);
        }
        for effect in effects(record) {
            if effect.key().starts_with(&self.prefix) {
                event.push(&effect);
            }
        }
        let made = event.finish(self.source.epoch, index);
        made.map(drop).map_err(|_| StreamEnd::TooLong)
    }

    /// Makes the event of a record that may be too long to be copied.
    fn large_event(
        &self,
        index: u64,
        entry: Entry,
        out: &mut Vec<u8>,
    ) -> Result<Sending, StreamEnd> {
        if !entry.key().starts_with(&self.prefix) {
            return Ok(Sending::Frames { large: None });
        }
        let frame = entry.frame();
        if self.wants_values && frame.len() > COPIED_MAX {
            let head = event_head(self.source.epoch, index, true, 1, frame);
            head.map_err(|_| StreamEnd::TooLong)?.encode(out);
            return Ok(Sending::Frames { large: Some(entry) });
        }
        if let Ok(Parsed::Whole(record)) = request::parse(frame, &ANY_VALUE) {
            self.event(index, &record, out)?;
        }
        Ok(Sending::Frames { large: None })
    }

    /// Longest time that a write may wait before [`check_stall`](Self::check_stall) is asked.
    pub(crate) fn stall_turn(&self) -> Duration {
        stall_turn(self.source.interval)
    }

    /// Judges a write that the watcher does not take. It may pause for as long as this node holds the next record.
    ///
    /// # Errors
    ///
    /// Why the stream has to end.
    pub(crate) fn check_stall(&self) -> Result<(), StreamEnd> {
        self.source.check_pause()
    }
}
