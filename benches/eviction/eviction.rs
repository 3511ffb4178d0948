//! Hit ratios of the cache's policy beside others: `cargo bench --bench eviction [-- SECONDS]`.
//!
//! Every policy sees the same accesses: a key is read, and stored if it is not there. The caches hold about
//! [`CAPACITY`] entries each. Hits are counted after the first third of the accesses.
//!
//! | column    | policy                                                                          |
//! |-----------|---------------------------------------------------------------------------------|
//! | `ours`    | the shipped engine with `when_full = "evict"`, through its requests              |
//! | `redis`   | a redis-server with `maxmemory-policy allkeys-lru`; left out where there is none |
//! | `sieve`   | SIEVE, exactly                                                                  |
//! | `optimal` | Belady: evicts the entry whose next access is the farthest                      |
//!
//! Redis' clock of accesses has a resolution of one second. At full speed all entries would have one age, and the
//! choice would be that of chance. So its accesses are spread over SECONDS, 60 unless told otherwise, in which the
//! cache's contents are replaced several times. All workloads run at once then, each with a server of its own.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod ours;
mod policies;
mod redis;
mod traces;

use std::thread;
use std::time::Duration;

/// Entries of a cache.
const CAPACITY: usize = 50_000;

/// Bytes of a value.
const VALUE_LEN: usize = 200;

/// Accesses of a workload.
const ACCESSES: usize = 900_000;

/// Hits and accesses after the first third.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    hits: u32,
    accesses: u32,
}

impl Score {
    /// Counts the access with this number.
    fn count(&mut self, number: usize, is_hit: bool) {
        if number >= ACCESSES / 3 {
            self.accesses += 1;
            self.hits += u32::from(is_hit);
        }
    }

    /// Hits per hundred accesses.
    fn percent(self) -> f64 {
        100.0 * f64::from(self.hits) / f64::from(self.accesses.max(1))
    }
}

/// The key of a number.
fn key(number: u32) -> String {
    format!("key:{number:012}")
}

fn main() {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(60));
    let traces = traces::all();
    let redis_runs: Vec<Option<(Score, u64)>> = thread::scope(|scope| {
        let runs = traces
            .iter()
            .map(|(_, trace)| scope.spawn(move || redis::run(trace, seconds)));
        let runs: Vec<_> = runs.collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    if redis_runs.iter().any(Option::is_none) {
        println!("redis-server is not installed: its columns are left out");
    }
    println!(
        "hits in per cent, with {CAPACITY} entries; `held`: entries of ours and of redis at the end\n"
    );
    println!(
        "{:<26} {:>7} {:>7} {:>7} {:>8}   held",
        "workload", "ours", "redis", "sieve", "optimal"
    );
    for ((name, trace), redis) in traces.iter().zip(redis_runs) {
        let (own, held) = ours::run(trace);
        let sieve = policies::sieve(trace);
        let optimal = policies::optimal(trace);
        let (redis, redis_held) = match redis {
            Some((score, held)) => (format!("{:.2}", score.percent()), held.to_string()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        println!(
            "{name:<26} {:>7.2} {redis:>7} {:>7.2} {:>8.2}   {held} {redis_held}",
            own.percent(),
            sieve.percent(),
            optimal.percent()
        );
    }
}
