//! The log: the order of all writes, and the newest part of it in memory.
//!
//! ```text
//! a leader    engine ─→ Sequencer::append ─→ append queue ─→ replication thread ─→ Backlog ─→ followers, watchers
//!                       (index, epoch)      (Room bounds it)  (Log::keep)
//! a follower  stream ─→ Sequencer::receive ──────────────────────────────────────→ Backlog ─→ watchers
//! ```
//!
//! On a node with a disk the log-writer thread takes the place of the replication thread ([`Log::drain`]). It also
//! writes the records of the backlog to the disk. Followers and watchers get a record once it is acknowledged.
//!
//! A leader's record is applied when it is appended. A follower logs records when it receives them, and applies them
//! once they are committed: [`Log::head`] is how far its data set is, [`Log::last_index`] how far its log.
//!
//! [`Sequencer`] is the writing side, which the engine owns; [`Log`] is the reading side, which everything else sees.
//! [`Watermarks`] say how far the log has come, for answers that wait for a position. The log also has the [`History`]
//! of the data set, which follows from its EPOCH records.

#![deny(clippy::wildcard_enum_match_arm)]

pub mod append_times;
pub mod backlog;
pub(crate) mod epoch_record;
mod room;
mod sequencer;
#[cfg(test)]
pub(crate) mod tap;
mod waits;
mod watermarks;
mod writer_signal;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Select, Sender, unbounded};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::history::{EpochStart, History, Holding};
use crate::wire::Token;
use append_times::AppendTimes;
use backlog::{After, Append, Backlog, Records};
use room::Room;
pub use room::{ROOM_BYTES, Reservation, Space};
pub use sequencer::{NotLogged, Received, Sequencer};
pub use waits::Wait;
use waits::Waits;
pub use watermarks::{Mark, Position, Reached, SubscriptionId, Wake, Watermarks};
pub use writer_signal::{Deferral, WriterSignal};

/// Appends that the replication thread moves to the backlog at a time. Between them readers can lock the backlog.
const MOVED_MAX: usize = 128;

/// The last position of a data set, and its digest there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Index of the last record that is applied.
    pub index: u64,
    /// Digest of the data set after it.
    pub digest: Digest,
}

/// The reading side of the log of one node.
#[derive(Debug)]
pub struct Log {
    order: Mutex<Order>,
    sender: Sender<Step>,
    receiver: Receiver<Step>,
    room: Room,
    kept: Mutex<Kept>,
    grown: Condvar,
    watermarks: Watermarks,
    /// The watermark at which the node acknowledges records; unset where that is when they are appended.
    acknowledged_at: OnceLock<Mark>,
    /// Requests that wait until the data set gets to an index.
    waits: Waits,
    /// Index up to which the records are to be durable soon.
    wanted_durable: AtomicU64,
    /// Changes together with the history, under the lock of `order`.
    dataset_generation: AtomicU64,
}

/// The end of the order of writes.
#[derive(Debug, Default)]
struct Order {
    /// The position of the data set.
    head: Head,
    /// Records behind it that are logged and not applied yet: 0 on a leader.
    waiting: u64,
    /// The epochs of all that is logged.
    history: History,
}

impl Order {
    /// Index of the last record that is logged.
    const fn last_index(&self) -> u64 {
        self.head.index + self.waiting
    }

    /// The position of the data set.
    fn token(&self) -> Token {
        let index = self.head.index;
        let start = self.history.epoch_of(index);
        start.map_or_else(Token::default, |EpochStart { epoch, nonce, .. }| Token {
            epoch,
            index,
            nonce,
        })
    }

    /// The newest epoch; 0 before the first.
    fn epoch(&self) -> u64 {
        self.history.last().map_or(0, |start| start.epoch)
    }
}

/// An element of the append queue.
#[derive(Debug)]
enum Step {
    Append(Append),
    End,
}

/// The part of the log that is in memory.
#[derive(Debug)]
struct Kept {
    backlog: Backlog,
    times: AppendTimes,
    /// Rises when the log is reset, which invalidates cursors.
    generation: u64,
    ended: bool,
    /// Index up to which the records are written to the node's disk; `None` without one.
    written: Option<u64>,
    /// Room of records that are not written yet, with the last index of each move from the append queue.
    unwritten: VecDeque<(u64, u64)>,
    /// The first record that waits to be applied.
    first_waiting: Option<u64>,
}

/// The place up to which a node's disk has the log.
#[derive(Clone, Debug)]
pub struct Unwritten {
    /// Where the records begin that are not written.
    pub cursor: Cursor,
    /// The position before them.
    pub head: Head,
    /// The epochs up to there; none of a node that holds no data set.
    pub history: History,
}

/// A reader's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    generation: u64,
    /// Index of the next record to read.
    pub next: u64,
}

/// The result of [`Log::read`]. Records that are found end where an append ends, and with them comes the digest of the
/// data set there.
#[derive(Debug)]
pub enum Found {
    /// This many records. Their frames are in the buffer, and the cursor is behind them.
    Small(u32, Digest),
    /// A large record; the cursor is behind it.
    Large(Entry, Digest),
    /// There is no further record yet.
    Nothing,
    /// The log has ended and holds no further record.
    Ended,
    /// The backlog no longer holds the next record, or the log was reset.
    Gone,
}

impl Kept {
    /// Has the backlog hold what waits to be applied or to be written.
    fn hold(&mut self) {
        let unwritten = self.written.map(|index| index + 1);
        let first = match (unwritten, self.first_waiting) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.backlog.hold_from(first);
    }

    /// Whether the records that wait to be applied count for more than the backlog may have.
    fn is_overfull(&self) -> bool {
        let first = self.first_waiting;
        first.is_some_and(|first| self.backlog.is_overfull(first))
    }

    /// Whether those that wait to be written do.
    fn is_behind(&self) -> bool {
        let written = self.written;
        !self.ended && written.is_some_and(|index| self.backlog.is_overfull(index + 1))
    }

    fn read(
        &self,
        cursor: &mut Cursor,
        up_to: u64,
        bytes_max: usize,
        buffer: &mut Vec<u8>,
    ) -> Found {
        if self.generation != cursor.generation {
            return Found::Gone;
        }
        match self.backlog.read(cursor.next, up_to, bytes_max, buffer) {
            After::Small(count, digest) => {
                cursor.next += u64::from(count);
                Found::Small(count, digest)
            }
            After::Large(entry, digest) => {
                cursor.next += 1;
                Found::Large(entry, digest)
            }
            After::Gone => Found::Gone,
            After::Nothing if self.ended && cursor.next > self.backlog.last_index() => Found::Ended,
            After::Nothing => Found::Nothing,
        }
    }

    /// Whether [`read`](Self::read) finds nothing.
    const fn has_nothing(&self, cursor: &Cursor) -> bool {
        self.generation == cursor.generation
            && cursor.next > self.backlog.last_index()
            && !self.ended
    }
}

impl Log {
    fn new(backlog_bytes: u64) -> Log {
        let (sender, receiver) = unbounded();
        Log {
            order: Mutex::default(),
            sender,
            receiver,
            room: Room::new(),
            kept: Mutex::new(Kept {
                backlog: Backlog::new(backlog_bytes),
                times: AppendTimes::default(),
                generation: 0,
                ended: false,
                written: None,
                unwritten: VecDeque::new(),
                first_waiting: None,
            }),
            grown: Condvar::new(),
            watermarks: Watermarks::default(),
            acknowledged_at: OnceLock::new(),
            waits: Waits::new(),
            wanted_durable: AtomicU64::new(0),
            dataset_generation: AtomicU64::new(0),
        }
    }

    /// How far the log has come, for answers that wait for a position.
    #[must_use]
    pub const fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// The last position of the data set.
    #[must_use]
    pub fn head(&self) -> Head {
        self.order.lock().head
    }

    /// Index of the last record of the log. Records behind [`head`](Self::head) wait until they are committed.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.order.lock().last_index()
    }

    /// Index up to which the records are known to be committed. A leader commits a record when it acknowledges it: at
    /// once, or where it has a disk once that has the record. A follower applies what is committed, and nothing else.
    #[must_use]
    pub fn committed_index(&self) -> u64 {
        self.head().index.min(self.acknowledged_index())
    }

    /// Index up to which records are acknowledged, by this node or by the leader that it follows: followers are sent
    /// nothing behind it. Without a disk it is behind every record.
    #[must_use]
    pub fn acknowledged_index(&self) -> u64 {
        let mark = self.acknowledged_at.get();
        mark.and_then(|mark| self.watermarks.reached_index(*mark))
            .unwrap_or(u64::MAX)
    }

    /// Index up to which the records are on this node's disk: they survive a power failure. 0 where there is no disk,
    /// and after a full copy until that is on the disk.
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.watermarks.index(Mark::Durable).unwrap_or(0)
    }

    /// Moves a watermark forward to `index`, and wakes its waiters.
    pub fn advance(&self, mark: Mark, index: u64) {
        self.watermarks.advance(mark, index);
        if self.acknowledged_at.get() == Some(&mark) {
            self.wake_readers();
        }
    }

    /// The same where `cursor` reads the data set that the log has now: an index of a data set that was replaced says
    /// nothing about this one.
    pub fn advance_at(&self, cursor: &Cursor, mark: Mark, index: u64) {
        {
            // Another data set takes the place of this one with this locked.
            let kept = self.kept.lock();
            if kept.generation != cursor.generation {
                return;
            }
            self.watermarks.advance(mark, index);
        }
        if self.acknowledged_at.get() == Some(&mark) {
            self.wake_readers();
        }
    }

    /// The position of the data set: the index of the last record that is applied, with the epoch and the nonce that it
    /// belongs to; zeros where there is none.
    #[must_use]
    pub fn token(&self) -> Token {
        self.order.lock().token()
    }

    /// Whether the data set has the position of `token`, and its own position at that moment.
    #[must_use]
    pub fn holding(&self, token: Token) -> (Holding, Token) {
        let order = self.order.lock();
        let last = order.head.index;
        let holding = order
            .history
            .holding(token.epoch, token.nonce, token.index, last);
        (holding, order.token())
    }

    /// Has `wake` called once, when the data set gets to `index`, becomes another one, or gets another history. The
    /// caller looks at the data set after this call, and again when it is woken.
    pub fn await_index(&self, index: u64, wake: Wake) -> Wait<'_> {
        self.waits.register(index, wake)
    }

    /// The last position of the data set, and the epoch of the record there; 0 where there is none.
    #[must_use]
    pub fn head_in_epoch(&self) -> (Head, u64) {
        let order = self.order.lock();
        let epoch = order.history.epoch_of(order.head.index);
        (order.head, epoch.map_or(0, |start| start.epoch))
    }

    /// The epochs of the data set: those of its EPOCH records, and for what a snapshot replaced those of the snapshot.
    #[must_use]
    pub fn history(&self) -> History {
        self.order.lock().history.clone()
    }

    /// The newest epoch of the data set; `None` before the first.
    #[must_use]
    pub fn last_epoch(&self) -> Option<EpochStart> {
        self.order.lock().history.last()
    }

    /// Whether the node holds a data set: it has a [history](Self::history).
    #[must_use]
    pub fn has_history(&self) -> bool {
        self.order.lock().history.last().is_some()
    }

    /// Wakes the requests that wait until the data set gets to `index` or less, which it has, and the log-writer thread
    /// where there is one. No partition is locked, since a thread that is woken may take the processor.
    #[inline]
    pub fn reached(&self, index: u64) {
        self.waits.reach(index);
        if self.acknowledged_at.get().is_some() {
            self.writer_signal().send();
        }
    }

    /// A number that rises whenever the data set or its history becomes another one: before the first entry of the old
    /// data set is removed, and before the first record of a new epoch can be read.
    ///
    /// A reader that takes this number, then the history, then reads from the log or the store, and then finds the
    /// number unchanged, has read records of that history alone.
    #[must_use]
    pub fn dataset_generation(&self) -> u64 {
        self.dataset_generation.load(Ordering::SeqCst)
    }

    /// Raises [`dataset_generation`](Self::dataset_generation). The order is locked, so that no reader gets the history
    /// before it is the new one.
    fn next_generation(&self, _locked: &mut Order) {
        self.dataset_generation.fetch_add(1, Ordering::SeqCst);
        // They look again once the order is unlocked.
        self.waits.wake_all();
    }

    /// Ends every stream of this data set, by raising [`dataset_generation`](Self::dataset_generation).
    pub fn end_streams(&self) {
        self.next_generation(&mut self.order.lock());
    }

    /// Moves records from the append queue to the backlog until the log [ends](Sequencer::end). The replication thread
    /// runs this, where the node has no disk. With one the log-writer thread keeps the log
    /// ([`wait_to_write`](Self::wait_to_write)).
    pub fn keep(&self) {
        let mut moved = Vec::new();
        while !self.move_all(&mut moved, Instant::now()) {
            let mut select = Select::new();
            select.recv(&self.receiver);
            select.ready();
        }
    }

    /// Moves everything that is in the append queue to the backlog, as [`keep`](Self::keep) does, and does not wait for
    /// more. Threads that read the log may call it at any time.
    pub fn drain(&self, now: Instant) {
        self.move_all(&mut Vec::new(), now);
    }

    /// Moves everything that is in the append queue to the backlog. Between some of it and the next, readers can lock
    /// the backlog. Returns whether the log has ended. `moved` is memory for the caller's next call.
    fn move_all(&self, moved: &mut Vec<Append>, now: Instant) -> bool {
        loop {
            let mut kept = self.kept.lock();
            let has_moved = self.move_some(&mut kept, moved, now);
            let ended = kept.ended;
            drop(kept);
            // Frees entries that the store has replaced; no lock is held meanwhile.
            moved.clear();
            if ended || !has_moved {
                return ended;
            }
        }
    }

    /// Moves what is in the append queue, up to a limit, to the backlog, which the caller has locked: so the order of
    /// the queue is that of the backlog, whichever threads do this. Returns whether there was something. `moved` gets
    /// the records.
    fn move_some(&self, kept: &mut Kept, moved: &mut Vec<Append>, now: Instant) -> bool {
        let (mut cost, mut has_moved) = (0, false);
        let first_index = kept.backlog.last_index() + 1;
        for step in self.receiver.try_iter().take(MOVED_MAX) {
            has_moved = true;
            match step {
                Step::Append(append) => {
                    cost += Records::cost(append.records.bytes().len());
                    kept.backlog.push(&append);
                    moved.push(append);
                }
                Step::End => kept.ended = true,
            }
        }
        if !has_moved {
            return false;
        }
        let last_index = kept.backlog.last_index();
        if last_index >= first_index {
            kept.times.note(first_index, last_index, now);
        }
        if kept.written.is_some() {
            kept.unwritten.push_back((last_index, cost));
            cost = 0;
        }
        self.grown.notify_all();
        self.room.release(cost);
        true
    }

    /// [Drains](Self::drain) the append queue, and waits until the next record of the cursor can be read or the log has
    /// ended, until `deadline`, or until `is_over`, which is asked again at each [`wake_writer`](Self::wake_writer).
    /// Without a cursor, no record ends the wait. The log-writer thread alone calls this.
    pub fn wait_to_write(
        &self,
        cursor: Option<&Cursor>,
        deadline: Instant,
        is_over: impl Fn() -> bool,
    ) {
        loop {
            self.drain(Instant::now());
            let has_some = cursor.is_some_and(|cursor| !self.kept.lock().has_nothing(cursor));
            if has_some || is_over() || !self.writer_signal().wait(deadline) {
                return;
            }
        }
    }

    /// Wakes the log-writer thread, which asks again whether its wait is over.
    pub fn wake_writer(&self) {
        self.writer_signal().send_now();
    }

    const fn writer_signal(&self) -> &WriterSignal {
        self.watermarks.writer_signal()
    }

    /// The node has a disk, which holds the records up to `index`: from now on records are kept until they are
    /// [written](Self::written), and writers wait where too many are not. The node acknowledges records at `mark`,
    /// which is for good.
    pub fn begin_writing(&self, index: u64, mark: Mark) {
        let _ = self.acknowledged_at.set(mark);
        let kept = &mut *self.kept.lock();
        kept.written = Some(index);
        kept.hold();
    }

    /// Has the log-writer thread make the records up to `index` durable soon, whatever the node's policy is.
    pub fn want_durable(&self, index: u64) {
        let before = self.wanted_durable.fetch_max(index, Ordering::SeqCst);
        if before < index {
            self.wake_writer();
        }
    }

    /// Index up to which the records are to be durable soon. It may be behind what is durable.
    #[must_use]
    pub fn wanted_durable(&self) -> u64 {
        self.wanted_durable.load(Ordering::SeqCst)
    }

    /// The space of the node's disk, and why it is full.
    #[must_use]
    pub fn space(&self) -> (Space, Arc<str>) {
        self.room.space_and_why()
    }

    /// Sets the space of the disk; `why` is the reason why it is full. Writers that wait for room are woken.
    pub fn set_space(&self, space: Space, why: &str) {
        self.room.set_space(space, why);
    }

    /// Whether the space of the disk admits a write.
    #[inline]
    #[must_use]
    pub fn has_space(&self, only_removes: bool) -> bool {
        self.room.space().admits(only_removes)
    }

    /// The place behind the records that are written to the node's disk, or that a full copy has brought.
    #[must_use]
    pub fn unwritten(&self) -> Unwritten {
        let kept = self.caught_up();
        let index = kept.written.unwrap_or(0);
        let digest = kept.backlog.digest_at(index).unwrap_or_default();
        let order = self.order.lock();
        Unwritten {
            cursor: Cursor {
                generation: kept.generation,
                next: index + 1,
            },
            head: Head { index, digest },
            history: order.history.up_to(index),
        }
    }

    /// Waits until the node's disk is near the end of the log, until `deadline` at most. Returns whether it is: where
    /// it is not, a follower receives nothing.
    #[must_use]
    pub fn wait_for_disk(&self, deadline: Instant) -> bool {
        let mut kept = self.kept.lock();
        while kept.is_behind() {
            if self.grown.wait_until(&mut kept, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Notes that the records up to `index` are given to the system to be written to the node's disk. Does nothing
    /// before [`begin_writing`](Self::begin_writing).
    pub fn written(&self, index: u64) {
        self.note_written(None, index);
    }

    /// The same where `cursor` reads the data set that the log has now.
    pub fn written_at(&self, cursor: &Cursor, index: u64) {
        self.note_written(Some(cursor.generation), index);
    }

    fn note_written(&self, generation: Option<u64>, index: u64) {
        let mut cost = 0;
        {
            let kept = &mut *self.kept.lock();
            let is_other = generation.is_some_and(|generation| generation != kept.generation);
            if kept.written.is_none() || is_other {
                return;
            }
            let was_behind = kept.is_behind();
            kept.written = Some(index);
            kept.hold();
            if was_behind {
                self.grown.notify_all();
            }
            while let Some((last, room)) = kept.unwritten.front().copied()
                && last <= index
            {
                cost += room;
                kept.unwritten.pop_front();
            }
        }
        self.room.release(cost);
    }

    /// The backlog, with everything in it that was appended: where a leader begins to follow, its last writes may still
    /// be in the append queue.
    fn caught_up(&self) -> MutexGuard<'_, Kept> {
        let (mut moved, mut kept) = (Vec::new(), self.kept.lock());
        while self.move_some(&mut kept, &mut moved, Instant::now()) {}
        kept
    }

    /// A cursor after `index`, if the backlog still holds the next record.
    #[must_use]
    pub fn cursor_after(&self, index: u64) -> Option<Cursor> {
        let kept = self.kept.lock();
        let held = index + 1 >= kept.backlog.first_index() && index <= self.last_index();
        held.then_some(Cursor {
            generation: kept.generation,
            next: index + 1,
        })
    }

    /// Whether `cursor` reads the data set that the log has now: no other one has replaced that.
    #[must_use]
    pub fn is_current(&self, cursor: &Cursor) -> bool {
        self.kept.lock().generation == cursor.generation
    }

    /// Whether the backlog still holds the next record of `cursor`.
    #[must_use]
    pub fn holds(&self, cursor: &Cursor) -> bool {
        let kept = self.kept.lock();
        kept.generation == cursor.generation && cursor.next >= kept.backlog.first_index()
    }

    /// Index of the oldest record in the backlog; one past the last where it holds none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.kept.lock().backlog.first_index()
    }

    /// Reads the next records of the cursor ([`Backlog::read`]). Does not wait for them.
    pub fn try_read(&self, cursor: &mut Cursor, bytes_max: usize, buffer: &mut Vec<u8>) -> Found {
        let kept = self.kept.lock();
        kept.read(cursor, u64::MAX, bytes_max, buffer)
    }

    /// The same up to the [last record that is acknowledged](Self::acknowledged_index).
    pub fn try_read_acknowledged(
        &self,
        cursor: &mut Cursor,
        bytes_max: usize,
        buffer: &mut Vec<u8>,
    ) -> Found {
        let up_to = self.acknowledged_index();
        self.kept.lock().read(cursor, up_to, bytes_max, buffer)
    }

    /// Waits until [`try_read`](Self::try_read) finds something else than nothing, until `deadline`, or until
    /// `is_over`, which is asked again at each [`wake_readers`](Self::wake_readers).
    pub fn wait(&self, cursor: &Cursor, deadline: Instant, is_over: impl Fn() -> bool) {
        let mut kept = self.kept.lock();
        while kept.has_nothing(cursor)
            && !is_over()
            && !self.grown.wait_until(&mut kept, deadline).timed_out()
        {}
    }

    /// Waits until the next record of the cursor is committed and can be read, until the log has ended before it or no
    /// longer holds it, until `deadline`, or until `is_over`, which is asked again at each
    /// [`wake_readers`](Self::wake_readers).
    pub fn wait_committed(&self, cursor: &Cursor, deadline: Instant, is_over: impl Fn() -> bool) {
        let mut kept = self.kept.lock();
        while kept.generation == cursor.generation
            && (kept.has_nothing(cursor)
                || (cursor.next <= kept.backlog.last_index()
                    && cursor.next > self.committed_index()))
            && !is_over()
            && !self.grown.wait_until(&mut kept, deadline).timed_out()
        {}
    }

    /// Reads the next records of the cursor ([`try_read`](Self::try_read)). Waits for them ([`wait`](Self::wait)).
    pub fn read(
        &self,
        cursor: &mut Cursor,
        bytes_max: usize,
        buffer: &mut Vec<u8>,
        deadline: Instant,
        is_over: impl Fn() -> bool,
    ) -> Found {
        self.wait(cursor, deadline, &is_over);
        if is_over() {
            return Found::Nothing;
        }
        self.try_read(cursor, bytes_max, buffer)
    }

    /// Wakes every waiting reader, which asks `is_over` again.
    pub fn wake_readers(&self) {
        // With the lock, so that no reader is between asking and waiting.
        drop(self.kept.lock());
        self.grown.notify_all();
    }

    /// Whether the log has [ended](Sequencer::end) and everything appended before is in the backlog.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.kept.lock().ended
    }

    /// When the record with this index was appended, to 10 ms or a thousandth of its age; `None` where it is not in
    /// the backlog yet.
    #[must_use]
    pub fn appended_at(&self, index: u64) -> Option<Instant> {
        self.kept.lock().times.of(index)
    }

    /// Index and digest of the newest record in the backlog, which may be a little behind
    /// [`last_index`](Self::last_index).
    #[must_use]
    pub fn kept_head(&self) -> Head {
        let kept = self.kept.lock();
        let index = kept.backlog.last_index();
        Head {
            index,
            digest: kept.backlog.digest_at(index).unwrap_or_default(),
        }
    }

    /// The digest at `index`, where the backlog reaches back so far and an append ended there.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        self.kept.lock().backlog.digest_at(index)
    }

    /// Bytes that the backlog counts for.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept.lock().backlog.bytes()
    }
}
