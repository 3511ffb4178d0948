//! The bytes that have arrived and are not yet used up.

/// How far a buffer's allocation may run ahead of the bytes that have arrived, whatever a header claims (GBP §2).
pub const GROWTH_BYTES_MAX: usize = 64 << 10;

/// Received bytes on their way to being frames.
///
/// ```
/// use gopherstore::wire::Buffer;
///
/// let mut buffer = Buffer::new();
/// buffer.space(7)[..3].copy_from_slice(b"abc"); // as a socket's read would
/// buffer.filled(3);
/// buffer.consume(1);
/// assert_eq!(buffer.bytes(), b"bc");
/// ```
///
/// Invariants: `start <= end <= bytes.len()`; what has arrived and is not consumed is `bytes[start..end]`; and
/// `bytes.len()` exceeds what has arrived by [`GROWTH_BYTES_MAX`] at most at the time when it grows.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Initialised throughout, so that a safe `read` can be given any part of it.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled all the space it was given, so there was probably more.
    was_filled: bool,
}

impl Buffer {
    /// What a connection starts with: one page, since most requests are small and most connections idle.
    const SMALL: usize = 4 << 10;
    /// What a client that sends more than it is given space for soon gets. More than that is held only for a frame that
    /// needs it, and only until that frame is consumed.
    const STEADY_MAX: usize = 2 * GROWTH_BYTES_MAX;

    /// An empty buffer, which owns no memory yet.
    #[must_use]
    pub const fn new() -> Buffer {
        Buffer {
            bytes: Vec::new(),
            start: 0,
            end: 0,
            was_filled: false,
        }
    }

    /// The bytes that have arrived and are not consumed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether every byte that arrived is consumed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether the buffer holds more memory than a connection starts with.
    #[must_use]
    pub fn is_grown(&self) -> bool {
        self.capacity() > Buffer::SMALL
    }

    /// Marks the first `count` bytes as used up; all of them where there are fewer.
    pub fn consume(&mut self, count: usize) {
        if count > self.bytes().len() {
            // The rest goes elsewhere.
            self.was_filled = false;
        }
        self.start = self.end.min(self.start.saturating_add(count));
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            if self.bytes.len() > Buffer::STEADY_MAX {
                *self = Buffer::new();
            }
        }
    }

    /// Gives an empty buffer's memory back.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Buffer::new();
        }
    }

    /// Room for the next read, never empty. `needed` is the length of the frame that stands at the buffer's start, as
    /// far as is known; it is a claim, so it bounds how far the buffer grows and never makes it grow at once.
    pub fn space(&mut self, needed: usize) -> &mut [u8] {
        // Whole frames were consumed before anyone asks for more, so what moves is a part of one frame.
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let len = self.bytes.len();
        let steady = if len == 0 {
            Buffer::SMALL
        } else if self.was_filled && len < Buffer::STEADY_MAX {
            len.saturating_mul(4).min(Buffer::STEADY_MAX)
        } else {
            len
        };
        let target = steady
            .max(needed)
            .max(self.end + 1)
            .min(self.end + GROWTH_BYTES_MAX);
        if target > len {
            // Exactly: a doubling vector would run ahead of what has arrived by as much again.
            self.bytes.reserve_exact(target - len);
            self.bytes.resize(target, 0);
        }
        self.was_filled = false;
        &mut self.bytes[self.end..]
    }

    /// Adds bytes that have arrived elsewhere.
    pub fn extend(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space(self.bytes().len() + bytes.len());
            let count = space.len().min(bytes.len());
            let (now, rest) = bytes.split_at(count);
            space[..count].copy_from_slice(now);
            self.filled(count);
            bytes = rest;
        }
    }

    /// Takes note that the first `count` bytes of the last [`space`](Self::space) are filled; all of it where it was
    /// shorter.
    pub fn filled(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end.saturating_add(count));
        self.was_filled = self.end == self.bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(buffer: &mut Buffer, needed: usize, bytes: &[u8]) -> usize {
        let space = buffer.space(needed);
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        buffer.filled(count);
        count
    }

    #[test]
    fn bytes_come_out_in_the_order_in_which_they_came() {
        let sent: Vec<u8> = (0u32..200_000).flat_map(u32::to_be_bytes).collect();
        let (mut buffer, mut received, mut at) = (Buffer::new(), Vec::new(), 0);
        let mut step = 1;
        while received.len() < sent.len() {
            step = step * 31 % 9_973;
            at += arrive(&mut buffer, 7, &sent[at..sent.len().min(at + step)]);
            let take = buffer.bytes().len().min(step / 2 + 1);
            received.extend_from_slice(&buffer.bytes()[..take]);
            buffer.consume(take);
        }
        assert!(received == sent);
    }

    #[test]
    fn a_claim_of_4_gib_takes_no_more_than_64_kib_ahead_of_what_arrived() {
        let mut buffer = Buffer::new();
        let mut arrived = 0;
        for _ in 0..1_000 {
            assert!(buffer.space(4 << 30).len() <= GROWTH_BYTES_MAX);
            arrived += arrive(&mut buffer, 4 << 30, &[1; 10_000]);
            assert!(buffer.capacity() <= arrived + GROWTH_BYTES_MAX);
        }
        assert_eq!(buffer.bytes().len(), arrived);
    }

    #[test]
    fn bytes_that_arrived_elsewhere_are_added_whole() {
        let bytes: Vec<u8> = (0_u32..50_000).flat_map(u32::to_be_bytes).collect();
        let (mut buffer, mut at) = (Buffer::new(), 0);
        for len in [0, 6, 5_000, 128 << 10, 1] {
            buffer.extend(&bytes[at..at + len]);
            at += len;
            assert_eq!(buffer.bytes(), &bytes[..at]);
        }
        buffer.consume(at);
        assert!(buffer.is_empty());
    }

    #[test]
    fn memory_grown_for_a_large_frame_is_given_back_with_it() {
        let mut buffer = Buffer::new();
        let needed = 3 << 20;
        while buffer.bytes().len() < needed {
            arrive(&mut buffer, needed, &[1; 50_000]);
        }
        assert_eq!(buffer.bytes().len(), needed, "no byte beyond the frame");
        buffer.consume(needed);
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn a_client_that_fills_every_read_gets_larger_reads_up_to_a_limit() {
        let mut buffer = Buffer::new();
        for _ in 0..20 {
            let count = buffer.space(7).len();
            buffer.filled(count);
            buffer.consume(count);
        }
        assert_eq!(buffer.capacity(), GROWTH_BYTES_MAX);
        buffer.release();
        assert_eq!(buffer.capacity(), 0);
    }
}
