//! How long a client can be kept waiting while the store grows: `cargo bench --bench growth [-- ENTRIES]`.
//!
//! One thread inserts entries, 5 million unless told otherwise, while another reads and writes a few keys as a client
//! would and times each operation. Once for a single table, once for the store's partitions, in turns. The
//! figures include waits for the processor, so a run without inserting is there for comparison.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::engine::entry::Entry;
use gopherstore::engine::store::{PARTITIONS, Store};
use gopherstore::wire::Request;
use gopherstore::wire::request::{Limits, Parsed, parse};

const ROUNDS: usize = 3;

fn entry(bytes: &mut Vec<u8>, number: u64) -> Entry {
    bytes.clear();
    let key = format!("key:{number:012}");
    let set = Request::Set {
        key: key.as_bytes(),
        value: &[b'v'; 32],
    };
    set.encode(bytes).unwrap();
    match parse(bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => Entry::copy_of(&frame),
        Parsed::Incomplete { .. } => panic!("a whole frame was written"),
    }
}

/// Longest and 99.99th percentile operation of the client while `entries` are inserted; the inserting's own time too.
fn stall(store: &Store, entries: u64) -> (Duration, Duration, Duration) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut bytes, mut times, mut number) = (Vec::new(), Vec::new(), 0_u64);
            while !done.load(Ordering::Relaxed) {
                number += 1;
                let own = entry(&mut bytes, u64::MAX / 2 + number % 1_000);
                let start = Instant::now();
                if number.is_multiple_of(2) {
                    black_box(store.set(own));
                } else {
                    black_box(store.get(own.key()));
                }
                times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
                if number.is_multiple_of(64) {
                    // As a client waits for the network: the processor is free for the other thread in between.
                    thread::sleep(Duration::from_micros(20));
                }
            }
            times.sort_unstable();
            times
        });
        let (mut bytes, start) = (Vec::new(), Instant::now());
        for number in 0..entries {
            store.set(entry(&mut bytes, number));
        }
        if entries == 0 {
            thread::sleep(Duration::from_secs(2));
        }
        let took = start.elapsed();
        done.store(true, Ordering::Relaxed);
        let times = client.join().unwrap();
        let nanos = |index: usize| Duration::from_nanos(u64::from(times[index]));
        let last = times.len() - 1;
        (nanos(last), nanos(last - last / 10_000), took)
    })
}

fn main() {
    let entries = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(5_000_000);
    println!(
        "{:>10}  {:>9}  {:>12}  {:>12}  {:>10}",
        "partitions", "entries", "longest", "p99.99", "inserting"
    );
    for round in 0..ROUNDS {
        for (partitions, entries) in [(PARTITIONS, 0), (1, entries), (PARTITIONS, entries)] {
            if entries == 0 && round > 0 {
                continue;
            }
            let (longest, high, took) = stall(&Store::with_partitions(partitions), entries);
            let ms = |time: Duration| format!("{:.3} ms", time.as_secs_f64() * 1e3);
            println!(
                "{partitions:>10}  {entries:>9}  {:>12}  {:>12}  {:>8.1} s",
                ms(longest),
                ms(high),
                took.as_secs_f64()
            );
        }
    }
}
