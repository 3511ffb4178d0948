//! A declared length takes no memory: what is allocated follows the bytes that have arrived.

use allocation_counter::measure;
use gopherstore::wire::replication::{self, Follow, FollowAnswer};
use gopherstore::wire::request::{self, Limits};
use gopherstore::wire::{Buffer, GROWTH_BYTES_MAX, response};

use crate::vectors;

/// The page that a buffer starts with, which is there beside the larger one while it is moved there, and bookkeeping.
const SLACK: u64 = 4_096 + 256;

#[test]
fn a_claim_of_4_gib_takes_64_kib() {
    let limits = Limits {
        value_len_max: u32::MAX,
    };
    for arriving in [0, 1, 1_000, 100_000, 1_000_000] {
        let mut peak = 0;
        let info = measure(|| {
            let mut buffer = Buffer::new();
            let header = *b"\x01\xff\xff\xff\xff\xff\xff";
            buffer.space(7)[..7].copy_from_slice(&header);
            buffer.filled(7);
            let mut left = arriving;
            while left > 0 {
                let Ok(request::Parsed::Incomplete { needed }) =
                    request::parse(buffer.bytes(), &limits)
                else {
                    panic!("whole?")
                };
                assert_eq!(needed, 7 + 65_535 + 4_294_967_295);
                let count = buffer.space(needed).len().min(left);
                buffer.filled(count);
                left -= count;
            }
            peak = buffer.capacity();
        });
        let arrived = arriving + 7;
        assert!(
            peak <= arrived + GROWTH_BYTES_MAX,
            "{peak} bytes held for {arrived}"
        );
        // A buffer that grows is for a moment there twice where the allocator has to move it.
        let limit = u64::try_from(2 * arrived + GROWTH_BYTES_MAX).unwrap() + SLACK;
        assert!(
            info.bytes_max <= limit,
            "{} bytes at once for {arrived}",
            info.bytes_max
        );
    }
}

#[test]
fn reading_a_frame_allocates_nothing() {
    for vector in vectors::all() {
        let info = measure(|| {
            for len in 0..=vector.bytes.len() {
                let bytes = &vector.bytes[..len];
                let _ = std::hint::black_box(request::parse(bytes, &Limits::default()));
                let _ = std::hint::black_box(response::parse(bytes));
                let _ = std::hint::black_box(replication::parse(bytes));
                let _ = std::hint::black_box(Follow::decode(b"n", bytes));
                let _ = std::hint::black_box(FollowAnswer::decode(bytes));
            }
        });
        assert_eq!(info.count_total, 0, "line {}", vector.line);
    }
}
