//! Where every write gets its place in the one order, and the thread that keeps the log.
//!
//! Writes, with their keys' partitions locked, call [`Log::append`]: that gives them the next indexes and puts them
//! into a channel, under a mutex that is held for nothing else. The replication thread ([`Log::keep`]) moves what
//! comes through the channel to the [`Backlog`], where the senders of all followers read it. It never waits for a
//! socket, so the channel empties as fast as a pointer moves; and since room in it is reserved before any lock is taken
//! ([`Log::reserve`]), nothing that holds a lock ever waits.
//!
//! # Invariants
//!
//! 1. For each key, the order in the log is the order in the map: the index is taken, and the channel filled, while the
//!    key's partition is locked for the write.
//! 2. The channel's order is the order of indexes, as both are under one mutex.
//! 3. While a partition is locked for reading, no writer is between taking an index and changing that partition.
//!    A full copy rests on it.

pub mod append_times;
pub mod backlog;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use append_times::AppendTimes;
use backlog::{After, Backlog, Frames, Logged};

/// What may be on its way to the log, in bytes as [`Frames::cost`] counts them, or half of it and one write. Writers
/// wait beyond it.
const ROOM_BYTES: u64 = 8 << 20;

/// How long a writer waits for room before it looks again by itself.
const REST: Duration = Duration::from_millis(1);

/// Most that the replication thread takes out of the channel at a time, so that readers of the log get their turn.
const MOVED_MAX: usize = 128;

/// How far a node's data set has come: its index, and its digest there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Index of the last entry.
    pub index: u64,
    /// Of the data set after it.
    pub digest: Digest,
}

/// The order of all writes of a node, and the log as far as it is kept.
#[derive(Debug)]
pub struct Log {
    head: Mutex<Head>,
    sender: Sender<Step>,
    receiver: Receiver<Step>,
    /// Bytes reserved of the room.
    reserved: AtomicU64,
    /// Nobody takes anything out of the channel any more, or soon.
    is_over: AtomicBool,
    /// For waiting for room; taken only where there is none.
    waiting: Mutex<()>,
    freed: Condvar,
    kept: Mutex<Kept>,
    grown: Condvar,
}

#[derive(Debug)]
enum Step {
    Append(Logged),
    Reset(Head),
    End,
}

#[derive(Debug)]
struct Kept {
    log: Backlog,
    times: AppendTimes,
    /// Rises when the log is reset: positions of before mean nothing afterwards.
    generation: u64,
    ended: bool,
}

/// A reader's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    generation: u64,
    /// Index of the next entry to read.
    pub next: u64,
}

/// What a reader of the log finds.
#[derive(Debug)]
pub enum Found {
    /// So many entries, whose frames are in the buffer; the cursor stands behind them.
    Small(u32),
    /// A large entry; the cursor stands behind it.
    Large(Entry),
    /// None yet, and the time is over.
    Nothing,
    /// None, and none will come.
    Ended,
    /// The log no longer holds what comes next, or was reset.
    Gone,
}

impl Log {
    /// A log that keeps `backlog_bytes` of log.
    #[must_use]
    pub fn new(backlog_bytes: u64) -> Log {
        let (sender, receiver) = unbounded();
        Log {
            head: Mutex::default(),
            sender,
            receiver,
            reserved: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            waiting: Mutex::default(),
            freed: Condvar::new(),
            kept: Mutex::new(Kept {
                log: Backlog::new(backlog_bytes),
                times: AppendTimes::default(),
                generation: 0,
                ended: false,
            }),
            grown: Condvar::new(),
        }
    }

    /// Waits until the channel has room for writes of this cost, and takes it. To be called before any lock is taken.
    /// What is larger than half of the room waits until the other half is free: to wait for all of it, beside writers
    /// of little, could take for ever. Once the log has [ended](Self::end) nobody waits.
    pub fn reserve(&self, cost: u64) {
        if self.try_reserve(cost) {
            return;
        }
        let mut waiting = self.waiting.lock();
        while !self.try_reserve(cost) {
            // Not for ever: who releases does not take the lock, and may so miss one that has just come.
            self.freed.wait_for(&mut waiting, REST);
        }
    }

    fn try_reserve(&self, cost: u64) -> bool {
        let is_over = self.is_over.load(Ordering::Acquire);
        let room = |reserved: u64| {
            let after = reserved.saturating_add(cost);
            let fits = after <= ROOM_BYTES || reserved <= ROOM_BYTES / 2;
            (fits || is_over).then_some(after)
        };
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.reserved.fetch_update(order.0, order.1, room).is_ok()
    }

    /// Gives back what was reserved and is not needed, or no longer.
    pub fn release(&self, cost: u64) {
        let was = self.reserved.fetch_sub(cost, Ordering::AcqRel);
        debug_assert!(was >= cost, "what is released was reserved");
        // Writers wait only where there was little room.
        if was > ROOM_BYTES / 2 {
            self.freed.notify_all();
        }
    }

    /// Gives writes that were made together their indexes and their place in the log, `change` being what they changed
    /// the digest by. To be called with the partitions of all their keys locked for the write, and with room reserved.
    pub fn append(&self, frames: Frames, count: u32, change: Digest) {
        let mut head = self.head.lock();
        head.index += u64::from(count);
        head.digest = head.digest.plus(change);
        let digest = head.digest;
        let logged = Logged {
            frames,
            count,
            digest,
        };
        // The log holds a receiver itself, so the channel is never closed.
        let _ = self.sender.send(Step::Append(logged));
    }

    /// Where the data set stands.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.head.lock()
    }

    /// Begins anew after `head`: the data set was replaced by another. Nobody may write meanwhile.
    pub fn reset(&self, head: Head) {
        let mut own = self.head.lock();
        *own = head;
        let _ = self.sender.send(Step::Reset(head));
    }

    /// Says that nothing that is appended from here on matters. Ends [`keep`](Self::keep) once all that was before is
    /// in the log.
    pub fn end(&self) {
        // A follower's link may still be writing, and must not wait for room that nobody frees.
        self.is_over.store(true, Ordering::Release);
        let _ = self.sender.send(Step::End);
    }

    /// The replication thread: moves entries from the channel to the log until [`end`](Self::end).
    pub fn keep(&self) {
        let mut moved: Vec<Logged> = Vec::new();
        loop {
            let Ok(first) = self.receiver.recv() else {
                return;
            };
            let mut cost = 0;
            let mut kept = self.kept.lock();
            let now = Instant::now();
            let mut first_index = kept.log.last_index() + 1;
            for step in std::iter::once(first).chain(self.receiver.try_iter().take(MOVED_MAX)) {
                match step {
                    Step::Append(logged) => {
                        cost += Frames::cost(logged.frames.bytes().len());
                        kept.log.push(&logged);
                        moved.push(logged);
                    }
                    Step::Reset(head) => {
                        kept.log.reset(head.index, head.digest);
                        kept.times.reset(head.index, now);
                        kept.generation += 1;
                        first_index = head.index + 1;
                    }
                    Step::End => kept.ended = true,
                }
            }
            let last_index = kept.log.last_index();
            if last_index >= first_index {
                kept.times.note(first_index, last_index, now);
            }
            let ended = kept.ended;
            drop(kept);
            self.grown.notify_all();
            self.release(cost);
            // Where the store has given an entry up already, this frees it; no lock is held meanwhile.
            moved.clear();
            if ended {
                return;
            }
        }
    }

    /// A place in the log: after `index`, if the log still holds what comes next.
    #[must_use]
    pub fn cursor_after(&self, index: u64) -> Option<Cursor> {
        let kept = self.kept.lock();
        let held = index + 1 >= kept.log.first_index() && index <= self.head.lock().index;
        held.then_some(Cursor {
            generation: kept.generation,
            next: index + 1,
        })
    }

    /// Whether the log still holds what comes next at `cursor`.
    #[must_use]
    pub fn holds(&self, cursor: &Cursor) -> bool {
        let kept = self.kept.lock();
        kept.generation == cursor.generation && cursor.next >= kept.log.first_index()
    }

    /// Index of the oldest entry that the log still holds; one past the last where it holds none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.kept.lock().log.first_index()
    }

    /// The next entries from the cursor on ([`Backlog::read`]). Waits for them until `deadline`, or until `is_over`,
    /// which is asked again at each [`wake_readers`](Self::wake_readers).
    pub fn read(
        &self,
        cursor: &mut Cursor,
        bytes_max: usize,
        buffer: &mut Vec<u8>,
        deadline: Instant,
        is_over: impl Fn() -> bool,
    ) -> Found {
        let mut kept = self.kept.lock();
        loop {
            if is_over() {
                return Found::Nothing;
            }
            if kept.generation != cursor.generation {
                return Found::Gone;
            }
            match kept.log.read(cursor.next, bytes_max, buffer) {
                After::Small(count) => {
                    cursor.next += u64::from(count);
                    return Found::Small(count);
                }
                After::Large(entry) => {
                    cursor.next += 1;
                    return Found::Large(entry);
                }
                After::Gone => return Found::Gone,
                After::Nothing if kept.ended => return Found::Ended,
                After::Nothing => {
                    if self.grown.wait_until(&mut kept, deadline).timed_out() {
                        return Found::Nothing;
                    }
                }
            }
        }
    }

    /// Has every reader that waits look whether it is over.
    pub fn wake_readers(&self) {
        // With the lock, so that none is between its look and its wait.
        drop(self.kept.lock());
        self.grown.notify_all();
    }

    /// Whether the log has [ended](Self::end), and all that was appended before is in the log.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.kept.lock().ended
    }

    /// When the entry with this index was appended, to 10 ms or a thousandth of its age; `None` where it is not in
    /// the log yet.
    #[must_use]
    pub fn appended_at(&self, index: u64) -> Option<Instant> {
        self.kept.lock().times.of(index)
    }

    /// Index and digest of the newest entry in the log, which may be a little behind [`head`](Self::head).
    #[must_use]
    pub fn kept_head(&self) -> Head {
        let kept = self.kept.lock();
        let index = kept.log.last_index();
        Head {
            index,
            digest: kept.log.digest_at(index).unwrap_or_default(),
        }
    }

    /// The digest at `index`, where the log reaches back so far.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<Digest> {
        self.kept.lock().log.digest_at(index)
    }

    /// Bytes that the log counts for.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept.lock().log.bytes()
    }
}
