//! Received bytes that are not consumed yet.

/// Most bytes by which a buffer's memory may exceed the bytes that have arrived, whatever a header claims (GBP §2).
pub const GROWTH_BYTES_MAX: usize = 64 << 10;

/// A buffer of received bytes, from which frames are parsed.
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
/// Invariants: `start <= end <= bytes.len()`; `bytes[start..end]` has arrived and is not consumed; when `bytes` grows,
/// its length exceeds `end` by at most [`GROWTH_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Buffer {
    /// Initialised throughout, so that a safe `read` may write to any part of it.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled all of its space, so more bytes were probably waiting.
    was_filled: bool,
}

impl Buffer {
    /// Bytes of a connection's first allocation: one page, since most requests are small and most connections idle.
    const SMALL: usize = 4 << 10;
    /// Most bytes that are kept for a client whose reads fill their space. Only a longer frame takes more, and only
    /// until it is consumed.
    const STEADY_MAX: usize = 2 * GROWTH_BYTES_MAX;

    /// An empty buffer without memory.
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

    /// Whether all bytes that have arrived are consumed.
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

    /// Removes the first `count` bytes, or all where there are fewer.
    pub fn consume(&mut self, count: usize) {
        if count > self.bytes().len() {
            // The rest is read into other memory.
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

    /// Frees the memory of an empty buffer.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Buffer::new();
        }
    }

    /// Space for the next read, never empty. `needed` is the length of the frame at the buffer's start, as far as
    /// known. It is a claim of the sender, so the buffer grows towards it in steps of at most [`GROWTH_BYTES_MAX`].
    pub fn space(&mut self, needed: usize) -> &mut [u8] {
        // Whole frames are consumed before the next read, so this moves a part of one frame.
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
            // A vector that doubles would hold twice the bytes that have arrived.
            self.bytes.reserve_exact(target - len);
            self.bytes.resize(target, 0);
        }
        self.was_filled = false;
        &mut self.bytes[self.end..]
    }

    /// Appends bytes that were received into other memory.
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

    /// Records that the first `count` bytes of the last [`space`](Self::space) are filled, or all of it where it was
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
