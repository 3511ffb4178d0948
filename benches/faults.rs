//! The cost of a follower in trouble for the clients of its leader: `cargo bench --bench faults`.
//!
//! A cluster of three processes; its leader is written to at a steady rate by one pipelining client, while others ask
//! for one thing after another and take the time of each answer. For each fault the same is done without it and with
//! it, in turns, and the ratio of the two 99th percentiles is what counts: about 1, or less, is no cost. The other
//! follower's lag is looked at in both, and printed likewise. Nodes and clients share the processor.
//!
//! `none` does nothing in both halves: its ratios are what this machine's noise alone makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::Client;

use support::cluster::{Cluster, Options};
use support::names::key;
use support::proxy::Way;

/// The cluster.
#[path = "../tests/support"]
#[allow(dead_code)] // it serves the tests
mod support {
    pub(crate) mod cluster;
    pub(crate) mod names;
    pub(crate) mod node;
    pub(crate) mod proxy;
    pub(crate) mod tools;
}

const ROUNDS: usize = 15;
/// Of each half of a round.
const TIME: Duration = Duration::from_secs(1);
/// From the fault to the first time that counts, so that buffers are full and what is to be noticed was.
const SETTLE: Duration = Duration::from_millis(500);
const WITHIN: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 4;
const BATCH: u64 = 10;
const WRITES_PER_SECOND: u64 = 5_000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Stopped,
    Slow,
    HalfOpen,
}

impl Fault {
    const ALL: [(Fault, &'static str); 4] = [
        (Fault::None, "none"),
        (Fault::Stopped, "stopped (SIGSTOP)"),
        (Fault::Slow, "slow (64 KB/s)"),
        (Fault::HalfOpen, "half-open"),
    ];

    fn begin(self, cluster: &mut Cluster) {
        match self {
            Fault::None => {}
            Fault::Stopped => cluster.pause(1),
            Fault::Slow => cluster.link(1, 0).throttle(Way::Down, Some(64 << 10)),
            Fault::HalfOpen => cluster.links_of(1).for_each(|link| link.hold_both()),
        }
    }

    fn end(self, cluster: &mut Cluster) {
        if matches!(self, Fault::Stopped) {
            cluster.resume(1);
        }
        cluster.links_of(1).for_each(|link| link.pass());
    }
}

/// 99th percentiles.
#[derive(Clone, Copy, Debug)]
struct Measured {
    answer: Duration,
    lag: Duration,
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Writes steadily until it is over.
fn write(addr: SocketAddr, is_over: &AtomicBool) {
    let mut client = Client::connect(&addr.to_string()).unwrap();
    let (begin, mut sent) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let mut pipeline = client.pipeline();
        for n in sent..sent + BATCH {
            pipeline.set(format!("key:{:06}", n % 100_000).as_bytes(), &[b'v'; 100]);
        }
        pipeline.run().unwrap();
        sent += BATCH;
        let due = begin + Duration::from_secs(sent) / u32::try_from(WRITES_PER_SECOND).unwrap();
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Times of one request after another, every other one a write.
fn ask(addr: SocketAddr, number: u64, is_over: &AtomicBool) -> Vec<Duration> {
    let mut client = Client::connect(&addr.to_string()).unwrap();
    let key = format!("client:{number}").into_bytes();
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        if times.len() % 2 == 0 {
            client.set(&key, b"value").unwrap();
        } else {
            client.get(&key).unwrap();
        }
        times.push(begin.elapsed());
        // Not so many that the processor is all that is measured.
        thread::sleep(Duration::from_millis(1));
    }
    times
}

/// Times until the healthy follower shows a write that was answered.
fn lags(leader: SocketAddr, follower: SocketAddr, is_over: &AtomicBool) -> Vec<Duration> {
    let mut writer = Client::connect(&leader.to_string()).unwrap();
    let mut reader = Client::connect(&follower.to_string()).unwrap();
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let value = u64::try_from(times.len()).unwrap().to_be_bytes();
        writer.set(b"lag", &value).unwrap();
        let answered = Instant::now();
        while reader.get(b"lag").unwrap().as_deref() != Some(&value[..]) {
            thread::sleep(Duration::from_micros(100));
        }
        times.push(answered.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    times
}

fn measure(cluster: &Cluster) -> Measured {
    let (leader, follower) = (cluster.addr(0), cluster.addr(2));
    let (is_over, ends_writing) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(leader, ends_writing));
        thread::sleep(SETTLE);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || ask(leader, number, is_over)))
            .collect();
        let lags = scope.spawn(move || lags(leader, follower, is_over));
        thread::sleep(TIME);
        is_over.store(true, Ordering::Relaxed);
        let times = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        let measured = Measured {
            answer: p99(times.collect()),
            lag: p99(lags.join().unwrap()),
        };
        ends_writing.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        measured
    })
}

/// The middle one, and both ends.
fn spread(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let (first, last) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} ({first:.2} to {last:.2})", ratios[ratios.len() / 2])
}

fn main() {
    let options = Options {
        proxies: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(3, &options);
    cluster.wait_converged(WITHIN);
    println!(
        "p99 of {CLIENTS} clients and of the other follower's lag, with a follower in trouble, \
         as a multiple of that without; median of {ROUNDS} rounds"
    );
    for (fault, name) in Fault::ALL {
        let (mut answers, mut lags) = (Vec::new(), Vec::new());
        let mut without = Vec::new();
        for round in 0..ROUNDS {
            let mut halves = [None; 2];
            // Whichever comes first has it no easier in the long run.
            for half in [round % 2, 1 - round % 2] {
                if half == 1 {
                    fault.begin(&mut cluster);
                }
                halves[half] = Some(measure(&cluster));
                if half == 1 {
                    fault.end(&mut cluster);
                }
                cluster.wait_converged(WITHIN);
            }
            let [Some(a), Some(b)] = halves else {
                unreachable!("both were measured")
            };
            answers.push(b.answer.as_secs_f64() / a.answer.as_secs_f64());
            lags.push(b.lag.as_secs_f64() / a.lag.as_secs_f64());
            without.push(a);
        }
        without.sort_unstable_by_key(|measured| measured.answer);
        let middle = without[ROUNDS / 2];
        println!(
            "{name:18} clients {}, lag {}; without: {:?} and {:?}",
            spread(answers),
            spread(lags),
            middle.answer,
            middle.lag
        );
    }
    println!("snapshots: {}", cluster.number(0, key::FULL_COPIES));
}
