//! How long clients wait while a million keys expire in the same second: `cargo bench --bench expiry [-- ROUNDS]`.
//!
//! Starts a leader with one follower. In each round a million keys get deadlines within one second. Clients read and
//! write other keys meanwhile, and time each request: for a few seconds before the deadlines, and from then on until
//! the last key is removed. Prints for each round
//!
//! * the longest wait of a client before, and during the removal;
//! * the longest time for which a partition was locked for it, and the longest processor time of the thread under such
//!   a lock, which the node logs;
//! * how long after the last deadline all keys were gone;
//! * the memory of the leader before the keys, with them, and some seconds after their removal. Its backlog keeps up to
//!   64 MiB of records once there are so many.
//!
//! Both nodes share the processor with the clients. A lock is held for longer where its thread loses the processor, so
//! the processor time is what the node itself makes others wait.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use gopherstore::wire::Request;

const ROUNDS: usize = 15;
const KEYS: u64 = 1_000_000;
const CLIENTS: u64 = 4;
const DEPTH: usize = 128;

/// Time of the clients without removals.
const BEFORE: Duration = Duration::from_secs(3);

/// Time after which keys have to be gone.
const WITHIN: Duration = Duration::from_secs(60);

/// Time for a node to return memory to the system.
const RETURNED_WITHIN: Duration = Duration::from_secs(3);

struct Node {
    child: Child,
    addr: SocketAddr,
    /// Of each burst of removals, in microseconds: the longest lock, and the longest processor time under one.
    locks: Receiver<[u64; 2]>,
}

impl Node {
    fn start(dir: &Path, name: &str) -> Node {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--config", "cluster.toml", "--node", name])
            .env("RUST_LOG", "gopherstore::server::expiry=debug")
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let addr = line.split(' ').nth(4).unwrap().parse().unwrap();
        let (sender, locks) = channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("the longest lock was held for ") {
                    let words = rest.split(' ').filter_map(|word| word.parse().ok());
                    let micros: Vec<u64> = words.collect();
                    let _ = sender.send(micros.try_into().unwrap());
                }
            }
        });
        Node { child, addr, locks }
    }

    fn status(&self, key: &str) -> u64 {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let mut request = Vec::new();
        Request::Status.encode(&mut request).unwrap();
        stream.write_all(&request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[5..]).into_owned();
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value);
        value.unwrap_or("").parse().unwrap_or(u64::MAX)
    }

    fn wait_for(&self, key: &str, is_met: impl Fn(u64) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !is_met(self.status(key)) {
            assert!(Instant::now() < deadline, "{key}: {}", self.status(key));
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn memory_mb(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        kib * 1_024 / 1_000_000
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(dir: &Path) {
    let listeners = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let mut text = "cluster = \"bench\"\nleader = \"n1\"\n".to_owned();
    for (number, listener) in (1..).zip(listeners) {
        let addr = listener.local_addr().unwrap();
        text += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
    }
    std::fs::write(dir.join("cluster.toml"), text).unwrap();
}

fn now_ms() -> u64 {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(time.as_millis()).unwrap()
}

/// Stores the keys that expire, with deadlines in the second before `last`.
fn load(addr: SocketAddr, last: u64) {
    let mut stream = TcpStream::connect(addr).unwrap();
    let mut answers = vec![0; 5 * DEPTH];
    let mut batch = Vec::new();
    for first in (0..KEYS).step_by(DEPTH) {
        batch.clear();
        let numbers = first..KEYS.min(first + DEPTH as u64);
        let count = usize::try_from(numbers.end - numbers.start).unwrap();
        for number in numbers {
            let mut value = (last - number % 1_000).to_be_bytes().to_vec();
            value.extend_from_slice(&[b'v'; 64]);
            let key = format!("expiring:{number:07}");
            let request = Request::SetAt {
                key: key.as_bytes(),
                value: &value,
            };
            request.encode(&mut batch).unwrap();
        }
        stream.write_all(&batch).unwrap();
        stream.read_exact(&mut answers[..5 * count]).unwrap();
    }
}

/// The phases that the clients are timed in.
const IDLE: u8 = 0;
const BEFOREHAND: u8 = 1;
const REMOVAL: u8 = 2;
const END: u8 = 3;

/// The phase of the clients, and their longest wait in each phase, in microseconds.
#[derive(Default)]
struct Waits {
    phase: AtomicU8,
    longest: [AtomicU64; 4],
}

/// Reads and writes keys that do not expire, and notes how long each request takes.
fn client(addr: SocketAddr, number: u64, waits: &Waits) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut request, mut answer) = (Vec::new(), vec![0; 1_024]);
    for count in 0_u64.. {
        let phase = waits.phase.load(Ordering::Relaxed);
        if phase == END {
            return;
        }
        request.clear();
        let key = format!("client:{number}:{}", count % 1_000);
        let key = key.as_bytes();
        if count.is_multiple_of(2) {
            Request::Set {
                key,
                value: &[b'v'; 64],
            }
            .encode(&mut request)
            .unwrap();
        } else {
            Request::Get { key }.encode(&mut request).unwrap();
        }
        let begin = Instant::now();
        stream.write_all(&request).unwrap();
        assert!(stream.read(&mut answer).unwrap() > 0);
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap();
        waits.longest[usize::from(phase)].fetch_max(micros, Ordering::Relaxed);
        thread::sleep(Duration::from_micros(200));
    }
}

/// The figures of a round, in the order in which they are printed.
type Round = [f64; 9];

fn round(leader: &Node, follower: &Node) -> Round {
    let empty_mb = leader.memory_mb();
    let begin = Instant::now();
    // Later than the keys are stored and the clients have had their time.
    let last = now_ms() + 10_000;
    load(leader.addr, last);
    let loaded = begin.elapsed();
    follower.wait_for("keys", |keys| keys >= KEYS);
    while leader.locks.try_recv().is_ok() {}
    let full_mb = leader.memory_mb();
    let waits = Waits::default();
    let gone_ms = thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (addr, waits) = (leader.addr, &waits);
            scope.spawn(move || client(addr, number, waits));
        }
        let until = |ms: u64| thread::sleep(Duration::from_millis(ms.saturating_sub(now_ms())));
        until(last - 1_500 - u64::try_from(BEFORE.as_millis()).unwrap());
        waits.phase.store(BEFOREHAND, Ordering::Relaxed);
        until(last - 1_500);
        assert!(
            leader.status("expired").is_multiple_of(KEYS),
            "loading took {loaded:?}"
        );
        waits.phase.store(IDLE, Ordering::Relaxed);
        until(last - 1_000);
        waits.phase.store(REMOVAL, Ordering::Relaxed);
        leader.wait_for("expiring", |expiring| expiring == 0);
        let gone_ms = now_ms() - last;
        follower.wait_for("expiring", |expiring| expiring == 0);
        waits.phase.store(END, Ordering::Relaxed);
        gone_ms
    });
    let [lock_us, work_us] = leader.locks.recv_timeout(WITHIN).unwrap();
    thread::sleep(RETURNED_WITHIN);
    let ms = |phase: u8| {
        let micros = waits.longest[usize::from(phase)].load(Ordering::Relaxed);
        micros as f64 / 1e3
    };
    let (before, during) = (ms(BEFOREHAND), ms(REMOVAL));
    [
        before,
        during,
        during - before,
        lock_us as f64 / 1e3,
        work_us as f64 / 1e3,
        gone_ms as f64,
        empty_mb as f64,
        full_mb as f64,
        leader.memory_mb() as f64,
    ]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.find_map(|argument| argument.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    config(dir.path());
    let leader = Node::start(dir.path(), "n1");
    let follower = Node::start(dir.path(), "n2");
    follower.wait_for("full_copies", |copies| copies > 0);
    let titles = [
        "before ms",
        "removal ms",
        "more ms",
        "lock ms",
        "work ms",
        "gone ms",
        "empty MB",
        "full MB",
        "after MB",
    ];
    println!(
        "round  {}",
        titles.map(|title| format!("{title:>10}")).join("  ")
    );
    let rounds: Vec<Round> = (1..=rounds.unwrap_or(ROUNDS))
        .map(|number| {
            let round = round(&leader, &follower);
            println!(
                "{number:>5}  {}",
                round.map(|figure| format!("{figure:>10.3}")).join("  ")
            );
            round
        })
        .collect();
    let median = std::array::from_fn(|at| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    });
    let median: Round = median;
    println!(
        "median {}",
        median.map(|figure| format!("{figure:>10.3}")).join("  ")
    );
}
