//! Runs: pipelined requests that are executed together.

use arrayvec::ArrayVec;

use super::request::{HEADER_LEN, Limits, Parsed, parse};
use super::traits::Traits;
use super::{RequestFrame, size};

/// Most requests in a run. The cost of a run is then small for each of them, and a run still locks a small part of the
/// store.
pub const RUN_MAX: usize = 16;

/// Longest frame in bytes of a SET that shares a run with others. A longer one is a run of its own.
pub const RUN_FRAME_BYTES_MAX: usize = 4 << 10;

/// Most bytes in a run: room for the most SETs, and for any one GET or DEL.
const RUN_BYTES_MAX: usize = RUN_MAX * RUN_FRAME_BYTES_MAX;

/// Whole, acceptable requests that lie one behind the other and may be executed together, at most [`RUN_MAX`].
///
/// Every connection keeps one on its stack, so it holds the ends of the frames and not the frames.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    bytes: &'a [u8],
    ends: ArrayVec<u32, RUN_MAX>,
    writes: u16,
    has_computed: bool,
}

impl<'a> Run<'a> {
    /// Whether the command table puts requests of this opcode into runs.
    #[must_use]
    pub fn takes(opcode: u8) -> bool {
        Traits::of(opcode).is_batchable()
    }

    /// The batchable requests at the start of `bytes`, up to the first other one; a SET of more than
    /// [`RUN_FRAME_BYTES_MAX`] bytes alone.
    #[must_use]
    pub fn of(bytes: &'a [u8], limits: &Limits) -> Run<'a> {
        let (mut ends, mut len, mut writes) = (ArrayVec::new(), 0, 0);
        let mut has_computed = false;
        while !ends.is_full()
            && let Ok(Parsed::Whole(frame)) = parse(&bytes[len..], limits)
        {
            let traits = frame.traits();
            let is_large = is_large(&frame, traits);
            let is_too_much = len > 0 && (is_large || len + frame.bytes().len() > RUN_BYTES_MAX);
            if !traits.is_batchable() || is_too_much {
                break;
            }
            len += frame.bytes().len();
            writes |= u16::from(traits.writes()) << ends.len();
            has_computed |= traits.is_computed();
            ends.push(u32::try_from(len).unwrap_or(u32::MAX));
            if is_large {
                break;
            }
        }
        let bytes = &bytes[..len];
        Run {
            bytes,
            ends,
            writes,
            has_computed,
        }
    }

    /// A run of one request, whatever the command table says of it.
    pub(super) fn of_one(frame: &RequestFrame<'a>) -> Run<'a> {
        let (bytes, traits) = (frame.bytes(), frame.traits());
        Run {
            bytes,
            ends: std::iter::once(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).collect(),
            writes: u16::from(traits.writes()),
            has_computed: traits.is_computed(),
        }
    }

    /// The run without its first `count` requests.
    #[must_use]
    pub fn after(&self, count: usize) -> Run<'a> {
        let start = self.bytes_of(count);
        let starts_at = u32::try_from(start).unwrap_or(u32::MAX);
        let ends = self.ends.iter().skip(count).map(|end| end - starts_at);
        Run {
            bytes: &self.bytes[start..],
            ends: ends.collect(),
            writes: self
                .writes
                .checked_shr(u32::try_from(count).unwrap_or(u32::MAX))
                .unwrap_or(0),
            has_computed: self.has_computed,
        }
    }

    /// The frames, one behind the other.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The SET of more than [`RUN_FRAME_BYTES_MAX`] bytes that is the whole run, where it is one.
    #[must_use]
    pub fn large(&self) -> Option<RequestFrame<'a>> {
        let first = self.frames().next();
        first.filter(|frame| is_large(frame, frame.traits()))
    }

    /// A bit for each request, the lowest for the first: 1 for a write.
    #[must_use]
    pub const fn writes(&self) -> u16 {
        self.writes
    }

    /// Whether the effect of a write in the run is computed from old values. Where it is false, the frames of the
    /// writes are their effects, byte for byte.
    #[must_use]
    pub const fn has_computed(&self) -> bool {
        self.has_computed
    }

    /// Copies the frames of the requests whose bits are set, one behind the other.
    #[must_use]
    pub fn copy_of(&self, requests: u16) -> Vec<u8> {
        if usize::try_from(requests.count_ones()) == Ok(self.len()) {
            return self.bytes.to_vec();
        }
        let frames = (0..).zip(self.frames());
        let frames = frames.filter(|(at, _)| requests >> at & 1 == 1);
        let frames: ArrayVec<&[u8], RUN_MAX> = frames.map(|(_, frame)| frame.bytes()).collect();
        frames.concat()
    }

    /// Bytes of the first `count` requests.
    #[must_use]
    pub fn bytes_of(&self, count: usize) -> usize {
        let last = count.checked_sub(1).and_then(|at| self.ends.get(at));
        last.map_or(0, |&end| size(end))
    }

    /// The number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the run has no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The keys of the requests, in their order.
    #[inline]
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.take(self.len()).map(|start| {
            let frame = &self.bytes[size(start)..];
            let key_len = usize::from(u16::from_be_bytes([frame[1], frame[2]]));
            &frame[HEADER_LEN..HEADER_LEN + key_len]
        })
    }

    /// The requests, in their order.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> Frames<'a, '_> {
        Frames {
            bytes: self.bytes,
            start: 0,
            ends: self.ends.iter(),
        }
    }
}

/// The requests of a [`Run`], in their order.
#[derive(Clone, Debug)]
pub struct Frames<'a, 'r> {
    bytes: &'a [u8],
    start: usize,
    ends: std::slice::Iter<'r, u32>,
}

impl<'a> Iterator for Frames<'a, '_> {
    type Item = RequestFrame<'a>;

    // A closure in its place is not inlined, which takes 7 % of the instructions of a SET in a run.
    #[inline(always)]
    fn next(&mut self) -> Option<RequestFrame<'a>> {
        let end = size(*self.ends.next()?);
        let frame = &self.bytes[self.start..end];
        self.start = end;
        Some(RequestFrame::of_whole(frame))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ends.size_hint()
    }
}

/// Whether the frame is that of a write with a value, and is long.
fn is_large(frame: &RequestFrame<'_>, traits: Traits) -> bool {
    traits.writes() && traits.has_value() && frame.bytes().len() > RUN_FRAME_BYTES_MAX
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::Request;

    /// A frame of each request, one behind the other.
    fn frames(requests: &[Request<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for request in requests {
            request.encode(&mut bytes).unwrap();
        }
        bytes
    }

    fn len(bytes: &[u8]) -> usize {
        let run = Run::of(bytes, &Limits::default());
        assert!(bytes.starts_with(run.bytes()));
        let len: usize = run.frames().map(|frame| frame.bytes().len()).sum();
        assert_eq!(len, run.bytes().len());
        run.len()
    }

    #[test]
    fn a_run_ends_where_something_else_begins() {
        let set = Request::Set {
            key: b"k",
            value: b"v",
        };
        let (get, del) = (Request::Get { key: b"k" }, Request::Del { key: b"k" });
        let bytes = frames(&[set, del, get, set, Request::Ping, get]);
        assert_eq!(len(&bytes), 4);
        let run = Run::of(&bytes, &Limits::default());
        assert_eq!(run.writes(), 0b1011);
        let lens = [0, 1, 2, 3, 4, 5].map(|count| run.bytes_of(count));
        assert_eq!(lens, [0, 9, 17, 25, 34, 0]);
        let some = |requests, expected: &[Request<'_>]| {
            assert_eq!(run.copy_of(requests), frames(expected), "{requests:b}");
        };
        some(0b1111, &[set, del, get, set]);
        some(0b1011, &[set, del, set]);
        some(0b0010, &[del]);
        some(0, &[]);
        for count in 0..=4 {
            let rest = run.after(count);
            assert_eq!(rest.bytes(), &run.bytes()[run.bytes_of(count)..]);
            assert_eq!((rest.len(), rest.writes()), (4 - count, 0b1011 >> count));
            assert!(rest.frames().eq(run.frames().skip(count)));
            assert!(rest.keys().eq(rest.frames().map(|frame| frame.key())));
        }
        assert_eq!(len(&bytes[..33]), 3, "the fourth one is not whole");
        assert_eq!(len(b""), 0);
        assert_eq!(len(&frames(&[Request::Ping])), 0);
        assert_eq!(len(b"\x01\x00\x01\xff\xff\xff\xffk"), 0, "refused");
        let gets = frames(&[get; 3]);
        assert_eq!(Run::of(&gets, &Limits::default()).writes(), 0);
    }

    #[test]
    fn a_run_is_bounded_in_number_and_in_bytes() {
        let set = |len: usize| {
            let value = vec![b'v'; len];
            let (key, value) = (b"k", &value);
            frames(&[Request::Set { key, value }])
        };
        assert_eq!(len(&set(1).repeat(100)), RUN_MAX);
        let run = &set(1).repeat(100);
        assert_eq!(Run::of(run, &Limits::default()).writes(), u16::MAX);
        let longest = RUN_FRAME_BYTES_MAX - 8;
        assert_eq!(len(&set(longest).repeat(100)), RUN_MAX);
        let large = set(longest + 1);
        let run = |bytes: &[u8]| Run::of(bytes, &Limits::default()).large().is_some();
        assert!(run(&large) && !run(&set(longest)) && !run(b""));
        assert_eq!(len(&large.repeat(2)), 1);
        assert_eq!(len(&[set(1), large.clone()].concat()), 1);
        assert_eq!(len(&[large.clone(), set(1)].concat()), 1);
        let key = &vec![b'k'; 65_535];
        let (get, del) = (Request::Get { key }, Request::Del { key });
        let (get, del) = (frames(&[get]), frames(&[del]));
        assert_eq!(len(&[get, del.clone()].concat()), 1);
        assert_eq!(len(&del), 1);
        assert_eq!(len(&del.repeat(3)), 1, "two are longer than a run may be");
    }
}
