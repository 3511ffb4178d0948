//! BATCH beside pipelined requests: `cargo bench --bench batch [-- ROUNDS]`.
//!
//! Starts a leader with a log, and measures in each round
//!
//! * connections with runs of 16 SETs alone, and the same beside writers of batches of 64 keys: the p99 of the runs in
//!   both, and of the writers how far the slowest stays behind their mean;
//! * the same runs beside writers that send their 64 SETs in a pipeline, which says what the processor alone costs;
//! * batches of 10 SETs against the same SETs in a pipeline, in SETs per second: with many in flight, and with ten.
//!
//! Prints the rounds, then the medians with their limits. Node and clients share the processor.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::wire::Request;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const ROUNDS: usize = 7;
const CLIENTS: usize = 8;
const RUN: usize = 16;
const BATCH: usize = 64;
const KEYS: u32 = 100_000;
const VALUE: [u8; 16] = [b'v'; 16];

/// Length of one measurement.
const SPAN: Duration = Duration::from_secs(2);

/// Connections and SETs in flight on each, of the comparison of batches of 10 with a pipeline.
const CONNECTIONS: usize = 4;
const DEPTH: usize = 120;

/// Turns of that comparison in a round.
const TURNS: usize = 10;

struct Node {
    child: Child,
    addr: SocketAddr,
}

impl Node {
    /// A leader with a log, whose only follower does not come.
    fn start(dir: &Path) -> Node {
        let ports = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let addrs = ports.map(|port| port.local_addr().unwrap());
        let mut text = "cluster = \"bench\"\nleader = \"n1\"\n".to_owned();
        for (number, addr) in (1..).zip(addrs) {
            text += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
        }
        text += "[replication]\nheartbeat_interval_ms = 50\nleader_timeout_ms = 200\n";
        std::fs::write(dir.join("cluster.toml"), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--config", "cluster.toml", "--node", "n1"])
            .env("RUST_LOG", "error")
            .current_dir(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let addr = line.split(' ').nth(4).unwrap().parse().unwrap();
        let node = Node { child, addr };
        let deadline = Instant::now() + Duration::from_secs(30);
        while node.is_loading() {
            assert!(Instant::now() < deadline, "it does not serve");
            thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn is_loading(&self) -> bool {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let request = frame(Request::Set {
            key: b"k",
            value: b"v",
        });
        stream.write_all(&request).unwrap();
        let mut status = [0];
        stream.read_exact(&mut status).unwrap();
        status != [0]
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn frame(request: Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    bytes
}

/// SETs of random keys, one behind the other.
fn sets(random: &mut ChaCha8Rng, count: usize, bytes: &mut Vec<u8>) {
    for _ in 0..count {
        let key = format!("key:{:08}", random.random_range(0..KEYS));
        let (key, value) = (key.as_bytes(), &VALUE[..]);
        Request::Set { key, value }.encode(bytes).unwrap();
    }
}

/// The work of a connection: what it sends before it reads the answers.
#[derive(Clone, Copy)]
enum Work {
    /// This number of SETs.
    Sets(usize),
    /// This number of batches, each of this number of SETs.
    Batches(usize, usize),
}

impl Work {
    fn request(self, random: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
        bytes.clear();
        match self {
            Work::Sets(count) => sets(random, count, bytes),
            Work::Batches(count, len) => {
                let mut value = Vec::new();
                for _ in 0..count {
                    value.clear();
                    sets(random, len, &mut value);
                    Request::Batch { value: &value }.encode(bytes).unwrap();
                }
            }
        }
    }

    const fn answers_len(self) -> usize {
        match self {
            Work::Sets(count) => 5 * count,
            Work::Batches(count, len) => count * (5 + 5 * len),
        }
    }
}

/// Has connections work for a while. Returns for each how long every exchange took.
fn measure(addr: SocketAddr, works: &[Work], span: Duration) -> Vec<Vec<Duration>> {
    let (barrier, is_over) = (Barrier::new(works.len() + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(works)
            .map(|(seed, work)| {
                let (barrier, is_over) = (&barrier, &is_over);
                scope.spawn(move || {
                    let mut random = ChaCha8Rng::seed_from_u64(seed);
                    let mut stream = TcpStream::connect(addr).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let (mut request, mut answers) = (Vec::new(), vec![0; work.answers_len()]);
                    let mut times = Vec::with_capacity(1 << 18);
                    barrier.wait();
                    while !is_over.load(Ordering::Relaxed) {
                        work.request(&mut random, &mut request);
                        let begin = Instant::now();
                        stream.write_all(&request).unwrap();
                        stream.read_exact(&mut answers).unwrap();
                        times.push(begin.elapsed());
                        assert_eq!(answers[0], 0, "an answer is not OK");
                    }
                    times
                })
            })
            .collect();
        barrier.wait();
        thread::sleep(span);
        is_over.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn p99(times: &[Vec<Duration>]) -> f64 {
    let mut all: Vec<Duration> = times.iter().flatten().copied().collect();
    all.sort_unstable();
    all[all.len() * 99 / 100].as_secs_f64() * 1e6
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The figures of a round.
struct Round {
    alone: f64,
    beside_batches: f64,
    beside_pipelines: f64,
    /// Batches of the slowest writer, as a part of the mean.
    slowest: f64,
    batches_per_second: f64,
    /// SETs per second in batches of 10, as a part of those in a pipeline.
    tens: f64,
    /// The same with one batch, or ten SETs, in flight on each connection.
    ten: f64,
}

fn round(addr: SocketAddr) -> Round {
    let runs = [Work::Sets(RUN); CLIENTS];
    let beside = |work: Work| {
        let all = [&runs[..], &[work; CLIENTS]].concat();
        let mut times = measure(addr, &all, SPAN);
        let writers = times.split_off(CLIENTS);
        (p99(&times), writers)
    };
    let alone = p99(&measure(addr, &runs, SPAN));
    let (beside_batches, writers) = beside(Work::Batches(1, BATCH));
    let (beside_pipelines, _) = beside(Work::Sets(BATCH));
    let counts: Vec<usize> = writers.iter().map(Vec::len).collect();
    #[allow(clippy::cast_precision_loss)]
    let (least, total) = (
        *counts.iter().min().unwrap() as f64,
        counts.iter().sum::<usize>() as f64,
    );
    // In turn, and for short times: what else the machine does meets both.
    let (mut in_pipelines, mut in_batches) = (0, 0);
    for _ in 0..TURNS {
        in_pipelines += exchanges(addr, Work::Sets(DEPTH));
        in_batches += exchanges(addr, Work::Batches(DEPTH / 10, 10));
    }
    let (mut ten_in_pipeline, mut ten_in_batch) = (0, 0);
    for _ in 0..TURNS {
        ten_in_pipeline += exchanges(addr, Work::Sets(10));
        ten_in_batch += exchanges(addr, Work::Batches(1, 10));
    }
    #[allow(clippy::cast_precision_loss)]
    Round {
        alone,
        beside_batches,
        beside_pipelines,
        slowest: least / (total / CLIENTS as f64),
        batches_per_second: total / SPAN.as_secs_f64(),
        tens: in_batches as f64 / in_pipelines as f64,
        ten: ten_in_batch as f64 / ten_in_pipeline as f64,
    }
}

/// Exchanges of some connections in a short time.
fn exchanges(addr: SocketAddr, work: Work) -> usize {
    let times = measure(addr, &[work; CONNECTIONS], SPAN / 10);
    times.iter().map(Vec::len).sum()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.find_map(|word| word.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    // Every key is there.
    measure(node.addr, &[Work::Sets(DEPTH); 4], SPAN);
    let rounds: Vec<Round> = (0..rounds.unwrap_or(ROUNDS))
        .map(|_| {
            let round = round(node.addr);
            println!(
                "runs p99 {:.0} us alone, {:.0} us beside batches, {:.0} us beside pipelines; {:.0} batches/s, the \
                 slowest writer has {:.2} of the mean; batches of 10: {:.2} of a pipeline",
                round.alone,
                round.beside_batches,
                round.beside_pipelines,
                round.batches_per_second,
                round.slowest,
                round.tens
            );
            round
        })
        .collect();
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    println!("medians of {} rounds:", rounds.len());
    println!(
        "runs p99 beside batches / alone: {:.2} (at most 3)",
        of(|round| round.beside_batches / round.alone)
    );
    println!(
        "runs p99 beside pipelines / alone: {:.2}",
        of(|round| round.beside_pipelines / round.alone)
    );
    println!(
        "slowest writer / mean: {:.2} (at least 0.25)",
        of(|round| round.slowest)
    );
    println!(
        "batches of 10 / pipeline, {DEPTH} SETs in flight: {:.2} (at least 0.7)",
        of(|round| round.tens)
    );
    println!(
        "one batch of 10 / ten SETs in a pipeline: {:.2} (at least 0.7)",
        of(|round| round.ten)
    );
}
