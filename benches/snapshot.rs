//! How long writers wait while a node writes a snapshot to its disk: `cargo bench --bench snapshot [-- ROUNDS] [SYNC]`.
//!
//! Starts a single node with a data directory and loads 2 million entries. In each round clients write 50,000 entries a
//! second, for some seconds without a snapshot and then until the node has written one, and time each request. Prints
//! for each round
//!
//! * the longest wait of a client before the snapshot, while it is written, and the difference;
//! * how long the snapshot took;
//! * the longest time for which a partition is locked while its entries are copied, and the longest processor time of
//!   the thread under such a lock. These are taken of the same data set in the bench's own process, while nothing else
//!   uses it;
//! * the memory of the node before, at most meanwhile, and the difference. The node keeps the memory that its first
//!   snapshot took, so that of the first one is printed too, which no round measures.
//!
//! SYNC is always, interval (the default) or never. The directory is in TMPDIR: it is to be on a disk. A log of some
//! length makes the node write the snapshot, so the clients write at full speed between the rounds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    missing_docs
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::engine::entry::Entry;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Engine, PartitionCopy};
use gopherstore::time::MachineTime;
use gopherstore::wire::Request;
use gopherstore::wire::request::frames;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 15;
const KEYS: u64 = 2_000_000;
const CLIENTS: u64 = 4;

/// Writes a second of all clients.
const RATE: u64 = 50_000;

/// Writes that a client sends together, and those that load the data.
const BATCH: u64 = 10;
const LOAD_BATCH: u64 = 1_000;

/// Bytes of a record of 16 + 64 bytes.
const RECORD: u64 = 7 + 16 + 64;

/// Bytes of log after which the node writes a snapshot: more than the last one has, which is the node's other limit.
const LOG_BYTES: u64 = KEYS * RECORD + 6_000_000;

/// Time of the clients at their rate before they are timed, and then without a snapshot.
const SETTLE: Duration = Duration::from_millis(1_500);
const BEFORE: Duration = Duration::from_millis(2_500);

/// Time of the clients from then on until the node begins the snapshot, about.
const MARGIN: Duration = Duration::from_millis(500);

/// Time after which the snapshot has to be there.
const WITHIN: Duration = Duration::from_secs(60);

struct Node {
    child: Child,
    addr: SocketAddr,
    data: PathBuf,
}

impl Node {
    fn start(dir: &Path, sync: &str) -> Node {
        let data = dir.join("data");
        let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--addr", "127.0.0.1:0", "--sync", sync, "--data-dir"])
            .arg(&data)
            .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", LOG_BYTES.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let addr = line.split_whitespace().find_map(|word| word.parse().ok());
        let addr = addr.unwrap_or_else(|| panic!("no ready line: {line:?}"));
        Node { child, addr, data }
    }

    /// Whether a snapshot is being written, and the name of the last one.
    fn snapshots(&self) -> (bool, Option<String>) {
        let entries = fs::read_dir(&self.data).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let (mut is_running, mut last) = (false, None);
        for name in names {
            is_running |= name == "new-snapshot";
            if name.starts_with("snapshot-") && Some(&name) > last.as_ref() {
                last = Some(name);
            }
        }
        (is_running, last)
    }

    fn memory_mb(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.unwrap().split_whitespace().next().unwrap();
        kib.parse::<f64>().unwrap() * 1_024.0 / 1e6
    }

    /// From now on the most memory that it has is counted.
    fn count_memory(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(number: u64) -> String {
    format!("key:{number:012}")
}

fn push(number: u64, out: &mut Vec<u8>) {
    let (key, value) = (key(number), [b'v'; 64]);
    let (key, value) = (key.as_bytes(), value.as_slice());
    Request::Set { key, value }.encode(out).unwrap();
}

/// A connection that writes keys, one after another.
struct Writer<'c> {
    stream: TcpStream,
    next: u64,
    out: Vec<u8>,
    answers: Vec<u8>,
    /// Writes that were answered, of all writers.
    written: &'c AtomicU64,
}

impl Writer<'_> {
    fn connect(addr: SocketAddr, first: u64, written: &AtomicU64) -> Writer<'_> {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        Writer {
            stream,
            next: first,
            out: Vec::new(),
            answers: Vec::new(),
            written,
        }
    }

    /// Writes so many keys, and returns how long that took.
    fn write(&mut self, count: u64) -> Duration {
        self.out.clear();
        for number in self.next..self.next + count {
            push(number % KEYS, &mut self.out);
        }
        self.next += count;
        self.answers.resize(5 * usize::try_from(count).unwrap(), 0);
        let begin = Instant::now();
        self.stream.write_all(&self.out).unwrap();
        self.stream.read_exact(&mut self.answers).unwrap();
        let took = begin.elapsed();
        assert!(self.answers.iter().all(|&byte| byte == 0), "no OK");
        self.written.fetch_add(count, Ordering::Relaxed);
        took
    }
}

/// The phases that the clients are timed in.
const IDLE: u8 = 0;
const BEFOREHAND: u8 = 1;
const SNAPSHOT: u8 = 2;
const END: u8 = 3;

/// The phase of the clients, and their longest wait in each phase, in microseconds.
#[derive(Default)]
struct Waits {
    phase: AtomicU8,
    longest: [AtomicU64; 4],
}

impl Waits {
    fn begin(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn longest_ms(&self, phase: u8) -> f64 {
        self.longest[usize::from(phase)].load(Ordering::Relaxed) as f64 / 1e3
    }
}

/// Writes at its share of the rate, and notes how long each batch takes.
fn client(mut writer: Writer<'_>, waits: &Waits) {
    let interval = Duration::from_secs(1) * u32::try_from(BATCH * CLIENTS).unwrap()
        / u32::try_from(RATE).unwrap();
    let mut due = Instant::now();
    loop {
        let phase = waits.phase.load(Ordering::Relaxed);
        if phase == END {
            return;
        }
        let micros = u64::try_from(writer.write(BATCH).as_micros()).unwrap();
        waits.longest[usize::from(phase)].fetch_max(micros, Ordering::Relaxed);
        due += interval;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// The same data set in this process.
fn engine() -> Engine {
    let (store, mut frame) = (Store::new(), Vec::new());
    for number in 0..KEYS {
        frame.clear();
        push(number, &mut frame);
        store.set(Entry::copy_of(&frames(&frame).next().unwrap()));
    }
    Engine::with_store(store, None, MachineTime::clock())
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Copies all partitions, as a snapshot does: the longest time of a copy, and its longest processor time, in
/// milliseconds.
fn locks(engine: &Engine) -> [f64; 2] {
    let mut copy = PartitionCopy::default();
    let mut longest = [Duration::ZERO; 2];
    // The first one makes room in `copy`; a snapshot has that to do once too, and counts.
    for partition in 0..engine.partitions() {
        let (begin, used) = (Instant::now(), processor_time());
        engine.copy_partition(partition, &mut copy);
        let took = [begin.elapsed(), processor_time().saturating_sub(used)];
        longest = std::array::from_fn(|at| longest[at].max(took[at]));
    }
    longest.map(|longest| longest.as_secs_f64() * 1e3)
}

/// Waits until the node has written the snapshot after `last`, and returns how long that took. Sets `begun` to the
/// number of writes when it began.
fn wait_for_snapshot(
    node: &Node,
    last: Option<&String>,
    written: &AtomicU64,
    begun: &mut u64,
) -> Duration {
    let deadline = Instant::now() + WITHIN;
    let mut began = None;
    loop {
        assert!(Instant::now() < deadline, "no snapshot");
        let (is_running, newest) = node.snapshots();
        if began.is_none() && (is_running || newest.as_ref() != last) {
            began = Some(Instant::now());
            *begun = written.load(Ordering::Relaxed);
        }
        if newest.as_ref() != last {
            return began.unwrap().elapsed();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

const TITLES: [&str; 9] = [
    "before ms",
    "during ms",
    "more ms",
    "took ms",
    "lock ms",
    "work ms",
    "before MB",
    "peak MB",
    "more MB",
];

/// The figures of a round, in the order of [`TITLES`].
type Round = [f64; TITLES.len()];

/// A round. `begun` is how much was written when the last snapshot began, and then when this one does.
fn round(node: &Node, engine: &Engine, written: &AtomicU64, begun: &mut u64) -> Round {
    let at_rate = (SETTLE + BEFORE + MARGIN).as_millis();
    let at_rate = RATE * u64::try_from(at_rate).unwrap() / 1_000;
    let end = *begun + LOG_BYTES / RECORD - at_rate;
    let mut writer = Writer::connect(node.addr, written.load(Ordering::Relaxed), written);
    while written.load(Ordering::Relaxed) < end {
        writer.write(LOAD_BATCH);
    }
    let [lock, work] = locks(engine);
    let (was_running, last) = node.snapshots();
    assert!(!was_running, "a snapshot began too early");
    let waits = Waits::default();
    waits.begin(IDLE);
    let (took, before_mb, peak_mb) = thread::scope(|scope| {
        for number in 0..CLIENTS {
            let writer = Writer::connect(node.addr, KEYS / CLIENTS * number, written);
            let waits = &waits;
            scope.spawn(move || client(writer, waits));
        }
        thread::sleep(SETTLE);
        waits.begin(BEFOREHAND);
        thread::sleep(BEFORE);
        node.count_memory();
        let before_mb = node.memory_mb("VmRSS:");
        assert_eq!(node.snapshots(), (false, last.clone()), "it began early");
        waits.begin(SNAPSHOT);
        let took = wait_for_snapshot(node, last.as_ref(), written, begun);
        waits.begin(END);
        (took, before_mb, node.memory_mb("VmHWM:"))
    });
    let (before, during) = (waits.longest_ms(BEFOREHAND), waits.longest_ms(SNAPSHOT));
    [
        before,
        during,
        during - before,
        took.as_secs_f64() * 1e3,
        lock,
        work,
        before_mb,
        peak_mb,
        peak_mb - before_mb,
    ]
}

fn print(name: &str, round: &[String]) {
    let columns: Vec<String> = round.iter().map(|text| format!("{text:>9}")).collect();
    println!("{name:<6} {}", columns.join("  "));
}

fn main() {
    let (mut rounds, mut sync) = (ROUNDS, "interval".to_owned());
    for word in std::env::args().skip(1) {
        match word.parse() {
            Ok(number) => rounds = number,
            Err(_) if word.starts_with("--") => {}
            Err(_) => sync = word,
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &sync);
    let (written, engine) = (AtomicU64::new(0), engine());
    let mut writer = Writer::connect(node.addr, 0, &written);
    while written.load(Ordering::Relaxed) < KEYS {
        writer.write(LOAD_BATCH);
    }
    node.count_memory();
    let before_mb = node.memory_mb("VmRSS:");
    while written.load(Ordering::Relaxed) * RECORD <= LOG_BYTES {
        writer.write(LOAD_BATCH);
    }
    let mut begun = 0;
    wait_for_snapshot(&node, None, &written, &mut begun);
    println!(
        "first snapshot: {before_mb:.0} MB of memory before, {:.0} MB at most",
        node.memory_mb("VmHWM:")
    );
    print("round", &TITLES.map(str::to_owned));
    let rounds: Vec<Round> = (1..=rounds)
        .map(|number| {
            let round = round(&node, &engine, &written, &mut begun);
            let texts = round.map(|figure| format!("{figure:.3}"));
            print(&number.to_string(), &texts);
            round
        })
        .collect();
    let median = std::array::from_fn::<String, { TITLES.len() }, _>(|at| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        figures.sort_by(f64::total_cmp);
        format!("{:.3}", figures[figures.len() / 2])
    });
    print("median", &median);
}
