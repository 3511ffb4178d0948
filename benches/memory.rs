//! `memory_bytes` beside the memory of the process: `cargo bench --bench memory [-- WORDS]`.
//!
//! Each case runs in a process of its own. Four threads, as of four clients, load entries into an engine without a log.
//! The growth of the resident memory is compared with what the engine counts.
//!
//! * `load`: each key is stored once.
//! * `churn`: each key is stored once with a value of a random length, up to twice the mean. Then ten times as many
//!   values are stored under random ones of the keys, each of a length drawn anew.
//! * `churn-at-limit`: the same with `when_full = "evict"` and a limit of half of what the entries would take.
//!
//! All have a limit, and one heap of the allocator, as a server with a limit has. Names that end with `-free` have
//! neither. The column `trimmed` is after memory was returned to the system, as the server's housekeeping does it.
//!
//! WORDS choose the cases whose names hold one of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    missing_docs
)]

use std::env;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use gopherstore::engine::memory::MemoryLimit;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::time::MachineTime;
use gopherstore::wire::Request;
use gopherstore::wire::request::Limits;
use gopherstore::wire::run::{RUN_MAX, Run};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const THREADS: u64 = 4;

/// Entries, and the bytes of their values.
const CASES: [(&str, u64, usize); 4] = [
    ("1M-16+16", 1_000_000, 16),
    ("1M-16+64", 1_000_000, 64),
    ("1M-16+1000", 1_000_000, 1_000),
    ("100k-16+10000", 100_000, 10_000),
];

/// The cases.
const KINDS: [&str; 5] = ["load", "churn", "churn-at-limit", "load-free", "churn-free"];

/// Names the case for a process of its own.
const CASE: &str = "GOPHERSTORE_MEMORY_CASE";

fn main() {
    if let Ok(case) = env::var(CASE) {
        let (name, kind) = case.split_once(' ').unwrap();
        let (_, entries, value_len) = CASES.into_iter().find(|case| case.0 == name).unwrap();
        measure(name, kind, entries, value_len);
        return;
    }
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    println!(
        "{:<14} {:<15} {:>9} {:>10} {:>10} {:>8} {:>8} {:>9}",
        "entries", "", "held", "counted", "process", "ratio", "trimmed", "B/entry"
    );
    for (name, ..) in CASES {
        for kind in KINDS {
            let case = format!("{name} {kind}");
            if words.is_empty() || words.iter().any(|word| case.contains(word)) {
                let program = env::current_exe().unwrap();
                let status = Command::new(program).env(CASE, &case).status().unwrap();
                assert!(status.success(), "{case}: {status}");
            }
        }
    }
}

/// Runs one case and prints its line.
fn measure(name: &str, kind: &str, entries: u64, value_len: usize) {
    let before = resident_bytes();
    let limited = |max_bytes, evicts| {
        use_one_heap();
        Store::new().with_limit(MemoryLimit { max_bytes, evicts })
    };
    let store = match kind {
        "load" | "churn" => limited(u64::MAX, false),
        "churn-at-limit" => limited(loaded_bytes(entries, value_len) / 2, true),
        _ => Store::new(),
    };
    let engine = Engine::with_store(store, None, MachineTime::clock());
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    each_thread(|thread| {
        let mut random = ChaCha8Rng::seed_from_u64(thread);
        let numbers = (thread..entries).step_by(usize::try_from(THREADS).unwrap());
        if kind.starts_with("load") {
            store_all(&engine, numbers, value_len, || value_len);
            return;
        }
        let mut lens = ChaCha8Rng::seed_from_u64(THREADS + thread);
        let mut len = || lens.random_range(1..2 * value_len);
        store_all(&engine, numbers, 2 * value_len, &mut len);
        let numbers = (0..10 * entries / THREADS).map(|_| random.random_range(0..entries));
        store_all(&engine, numbers, 2 * value_len, len);
    });
    let (counted, process) = (engine.memory_bytes(), resident_bytes() - before);
    trim_memory();
    let trimmed = resident_bytes() - before;
    let ratio = |bytes: u64| bytes as f64 / counted as f64;
    println!(
        "{name:<14} {kind:<15} {:>9} {:>6} MiB {:>6} MiB {:>8.3} {:>8.3} {:>9.1}",
        engine.len(),
        counted >> 20,
        process >> 20,
        ratio(process),
        ratio(trimmed),
        process as f64 / engine.len() as f64,
    );
}

/// Returns the memory of these entries by the engine's rules, without the tables.
fn loaded_bytes(entries: u64, value_len: usize) -> u64 {
    entries * gopherstore::engine::memory::block_bytes(7 + 16 + value_len)
}

fn each_thread(body: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| body(next.fetch_add(1, Ordering::Relaxed)));
        }
    });
}

/// Stores a value under each of the keys.
fn store_all(
    engine: &Engine,
    numbers: impl Iterator<Item = u64>,
    len_max: usize,
    mut len: impl FnMut() -> usize,
) {
    let value = vec![b'v'; len_max];
    let mut requests = Requests::default();
    for number in numbers {
        requests.set(engine, number, &value[..len()]);
    }
    requests.flush(engine);
}

/// SETs that are sent as a pipeline.
#[derive(Default)]
struct Requests {
    frames: Vec<u8>,
    count: usize,
    answers: Answers,
}

impl Requests {
    fn set(&mut self, engine: &Engine, number: u64, value: &[u8]) {
        let key = format!("key:{number:012}");
        let key = key.as_bytes();
        Request::Set { key, value }
            .encode(&mut self.frames)
            .unwrap();
        self.count += 1;
        if self.count == RUN_MAX {
            self.flush(engine);
        }
    }

    fn flush(&mut self, engine: &Engine) {
        let mut rest = self.frames.as_slice();
        while !rest.is_empty() {
            let run = Run::of(rest, &Limits::default());
            self.answers.clear();
            let count = engine.execute(&run, None, &mut self.answers).unwrap().count;
            let done: usize = run
                .frames()
                .take(count)
                .map(|frame| frame.bytes().len())
                .sum();
            rest = &rest[done..];
        }
        self.frames.clear();
        self.count = 0;
    }
}

/// Has all threads allocate from one heap, as the server does where there is a limit.
#[allow(unsafe_code)]
fn use_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no memory of ours, and may be called by any thread at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns free memory to the system, as the server does.
#[allow(unsafe_code)]
fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no memory of ours, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}
