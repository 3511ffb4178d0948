//! Receiving a snapshot: puts what comes into the store, and checks that it is what was sent.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::FollowError;
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::engine::store::Staged;
use crate::history::History;
use crate::log::Head;
use crate::node::{Node, digest};
use crate::wire::Request;
use crate::wire::replication::Frames;

/// Most entries that an announced snapshot reserves room for, whatever it says: half a gigabyte of empty table.
const EXPECTED_MAX: usize = 1 << 26;

/// Most bytes that the allocator is asked for in advance: glibc maps what is larger apart, and unmaps it again.
const ROOM_BYTES_MAX: usize = 120 << 10;

/// Entries that are put into the store together: a few dozen for each partition.
const STAGED_MAX: usize = 1 << 15;

/// Bytes of them, about. One key may come again and again, and each time counts until they are put in.
const STAGED_BYTES_MAX: usize = 4 << 20;

/// Longest time that entries stay staged while more of them come: STATUS counts what is in the store.
const STAGED_FOR: Duration = Duration::from_millis(100);

/// A snapshot that is being received.
pub(super) struct SnapshotIn {
    history: History,
    /// Of all entries received, staged or not, and of those that a staged entry will replace.
    digest: Digest,
    /// SETs that are not in the store yet.
    staged: Staged,
    /// Bytes of their frames.
    staged_bytes: usize,
    /// When entries were last put into the store.
    put_at: Instant,
    chunks: u64,
    started: Instant,
}

impl SnapshotIn {
    /// Begins a snapshot of about `keys` keys, in place of the data set that the node held.
    pub(super) fn begin(node: &Node, keys: u64, history: History) -> SnapshotIn {
        node.give_up("this node is receiving a full copy");
        let expected = usize::try_from(keys).unwrap_or(usize::MAX);
        node.store().reserve(expected.min(EXPECTED_MAX));
        SnapshotIn {
            history,
            digest: Digest::EMPTY,
            staged: Staged::default(),
            staged_bytes: 0,
            put_at: Instant::now(),
            chunks: 0,
            started: Instant::now(),
        }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    ///
    /// [`FollowError::Protocol`], where another chunk than the next one came.
    pub(super) fn chunk(
        &mut self,
        node: &Node,
        sequence: u64,
        frames: Frames<'_>,
    ) -> Result<(), FollowError> {
        if sequence != self.chunks {
            let text = format!("chunk {sequence} came, expected {}", self.chunks);
            return Err(FollowError::Protocol(text));
        }
        self.chunks += 1;
        make_room(frames.bytes().len());
        for frame in frames.iter() {
            if let Request::Set { .. } = frame.request() {
                self.digest = self.digest.plus(digest(frame));
                node.store().stage(&mut self.staged, Entry::copy_of(&frame));
                self.staged_bytes += frame.bytes().len();
            } else {
                self.put(node);
                let old = node.store().remove(frame.request().key());
                let old = old.as_ref().map(Digest::of).unwrap_or_default();
                self.digest = self.digest.changed(old, Digest::EMPTY);
            }
        }
        if self.staged.len() >= STAGED_MAX
            || self.staged_bytes >= STAGED_BYTES_MAX
            || self.put_at.elapsed() >= STAGED_FOR
        {
            self.put(node);
        }
        // Other threads may have more urgent work. Once per chunk, a third of a millisecond: each call gives away what
        // the scheduler would have let this thread run.
        thread::yield_now();
        Ok(())
    }

    /// Puts the staged entries into the store.
    fn put(&mut self, node: &Node) {
        let sum = &mut self.digest;
        node.store().put(&mut self.staged, |old| {
            *sum = sum.changed(Digest::of(old), Digest::EMPTY);
        });
        self.staged_bytes = 0;
        self.put_at = Instant::now();
    }

    /// Ends the snapshot, which the sender says has `chunks` chunks, this digest, and stands at `index`. Returns the
    /// history of the data set, and how long the snapshot took.
    ///
    /// # Errors
    ///
    /// [`FollowError::Diverged`], where the data set is another.
    pub(super) fn end(
        &mut self,
        node: &Node,
        index: u64,
        digest: u128,
        chunks: u64,
    ) -> Result<(History, Duration), FollowError> {
        self.put(node);
        if chunks != self.chunks || digest != self.digest.to_u128() {
            let text = "the copy is not what was sent".to_owned();
            return Err(FollowError::Diverged(text));
        }
        if let Some(log) = node.log() {
            log.reset(Head {
                index,
                digest: self.digest,
            });
        }
        Ok((std::mem::take(&mut self.history), self.started.elapsed()))
    }
}

/// Has the allocator take from the system at once what entries of so many bytes need. glibc takes a page at a time in
/// any thread but the first, each with a system call; it keeps what is freed here, and makes the entries of it.
fn make_room(bytes: usize) {
    black_box(Vec::<u8>::with_capacity((2 * bytes).min(ROOM_BYTES_MAX)));
}
