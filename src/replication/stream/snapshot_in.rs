//! Receiving a snapshot: loads what comes into the engine, and checks that it is what was sent.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::FollowError;
use crate::engine::Load;
use crate::engine::digest::Digest;
use crate::history::History;
use crate::node::Node;
use crate::wire::replication::Frames;

/// Most bytes that the allocator is asked for in advance: glibc maps what is larger apart, and unmaps it again.
const ROOM_BYTES_MAX: usize = 120 << 10;

/// Longest time that entries wait to be stored while more of them come: STATUS counts what is in the store.
const STAGED_FOR: Duration = Duration::from_millis(100);

/// Highest index at which a snapshot may end: the log goes on behind it for ever.
const INDEX_MAX: u64 = 1 << 62;

/// A snapshot that is being received.
pub(super) struct SnapshotIn<'n> {
    history: History,
    load: Load<'n>,
    /// When entries were last stored.
    stored_at: Instant,
    chunks: u64,
    started: Instant,
}

impl<'n> SnapshotIn<'n> {
    /// Begins a snapshot of about `keys` keys, in place of the data set that the node held.
    pub(super) fn begin(
        node: &'n Node,
        keys: u64,
        history: History,
        now: Instant,
    ) -> SnapshotIn<'n> {
        node.discard_dataset("this node is receiving a full copy");
        SnapshotIn {
            history,
            load: node.engine().load(keys),
            stored_at: now,
            chunks: 0,
            started: now,
        }
    }

    /// Loads the next chunk.
    ///
    /// # Errors
    ///
    /// [`FollowError::Protocol`], where another chunk than the next one came.
    pub(super) fn chunk(
        &mut self,
        sequence: u64,
        frames: Frames<'_>,
        now: Instant,
    ) -> Result<(), FollowError> {
        if sequence != self.chunks {
            let text = format!("chunk {sequence} came, expected {}", self.chunks);
            return Err(FollowError::Protocol(text));
        }
        self.chunks += 1;
        make_room(frames.bytes().len());
        self.load.add(frames.iter());
        if now.saturating_duration_since(self.stored_at) >= STAGED_FOR {
            self.load.flush();
            self.stored_at = now;
        }
        Ok(())
    }

    /// Ends the snapshot, of which the sender says that it has `chunks` chunks, this digest, and ends at `index`.
    /// Returns how long the snapshot took.
    ///
    /// # Errors
    ///
    /// [`FollowError::Diverged`], where the data set is another.
    pub(super) fn end(
        &mut self,
        index: u64,
        digest: u128,
        chunks: u64,
        now: Instant,
    ) -> Result<Duration, FollowError> {
        if index > INDEX_MAX {
            return Err(FollowError::Protocol(format!(
                "the copy ends at index {index}, limit {INDEX_MAX}"
            )));
        }
        let (digest, history) = (Digest::from_u128(digest), std::mem::take(&mut self.history));
        if chunks != self.chunks || !self.load.finish(index, digest, history, now) {
            let text = "the copy is not what was sent".to_owned();
            return Err(FollowError::Diverged(text));
        }
        Ok(now.saturating_duration_since(self.started))
    }
}

/// Has the allocator take from the system at once what entries of so many bytes need. glibc takes a page at a time in
/// any thread but the first, each with a system call; it keeps what is freed here, and makes the entries of it.
fn make_room(bytes: usize) {
    black_box(Vec::<u8>::with_capacity((2 * bytes).min(ROOM_BYTES_MAX)));
}
