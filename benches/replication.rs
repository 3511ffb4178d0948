//! The cost and the staleness of replicas: `cargo bench --bench replication`.
//!
//! Starts a cluster of three processes and a node on its own, and prints
//!
//! * throughput of SET on the leader with two followers, as a multiple of that of the lone node, in turns;
//! * the time from the leader's answer until a follower shows the write, at 50,000 writes a second;
//! * the time that a new follower's snapshot of 2 million entries takes.
//!
//! All of them share the processor with the client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::Client;
use gopherstore::wire::Request;

const ROUNDS: usize = 5;
const DEPTH: usize = 128;

struct Node {
    child: Child,
    addr: SocketAddr,
}

impl Node {
    fn start(dir: &Path, file: &str, name: &str) -> Node {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--config", file, "--node", name])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = line
            .split(' ')
            .nth(4)
            .and_then(|addr| addr.parse().ok())
            .expect("a ready line");
        Node { child, addr }
    }

    fn status(&self, key: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let mut request = Vec::new();
        Request::Status.encode(&mut request).unwrap();
        stream.write_all(&request).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[5..]).into_owned();
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(name, _)| *name == key)
            .map_or_else(String::new, |(_, value)| value.to_owned())
    }

    fn wait(&self, key: &str, value: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.status(key) != value {
            assert!(
                Instant::now() < deadline,
                "{key} is {}, not {value}",
                self.status(key)
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(dir: &Path, file: &str, count: usize) {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap())
        .collect();
    let mut text = "cluster = \"bench\"\nleader = \"n1\"\n".to_owned();
    for (number, listener) in listeners.iter().enumerate() {
        let addr = listener.local_addr().unwrap();
        text += &format!("[[node]]\nname = \"n{}\"\naddr = \"{addr}\"\n", number + 1);
    }
    std::fs::write(dir.join(file), text).unwrap();
}

fn set(out: &mut Vec<u8>, key: u64, value: u64) {
    let key = format!("key:{key:012}");
    let value = format!("{value:064}");
    let request = Request::Set {
        key: key.as_bytes(),
        value: value.as_bytes(),
    };
    request.encode(out).unwrap();
}

/// SETs a second of four connections with 128 requests in flight each.
fn throughput(addr: SocketAddr, time: Duration) -> f64 {
    let done = AtomicBool::new(false);
    let count: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..4_u64)
            .map(|client| {
                let done = &done;
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(addr).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let batches: Vec<Vec<u8>> = (0..100_u64)
                        .map(|batch| {
                            let mut out = Vec::new();
                            for n in 0..DEPTH as u64 {
                                set(
                                    &mut out,
                                    (batch * 7_919 + n * 104_729 + client * 31) % 100_000,
                                    n,
                                );
                            }
                            out
                        })
                        .collect();
                    let (mut answers, mut count) = (vec![0; 5 * DEPTH], 0);
                    for batch in batches.iter().cycle() {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        stream.write_all(batch).unwrap();
                        stream.read_exact(&mut answers).unwrap();
                        count += DEPTH;
                    }
                    count
                })
            })
            .collect();
        thread::sleep(time);
        done.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    count as f64 / time.as_secs_f64()
}

/// Times from the leader's answer to a write until the follower shows it, at a steady rate of writes beside it.
fn lags(leader: SocketAddr, follower: SocketAddr) -> Vec<Duration> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = TcpStream::connect(leader).unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut out, mut answers, mut sent) = (Vec::new(), vec![0; 5 * 50], 0_u64);
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) {
                out.clear();
                for n in 0..50 {
                    set(&mut out, (sent + n) % 100_000, sent);
                }
                stream.write_all(&out).unwrap();
                stream.read_exact(&mut answers).unwrap();
                sent += 50;
                // 50,000 a second: a batch of 50 each millisecond.
                let due = start + Duration::from_micros(sent * 20);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let mut writer = Client::connect(&leader.to_string()).unwrap();
        let mut reader = Client::connect(&follower.to_string()).unwrap();
        let times = (0..2_000_u64)
            .map(|n| {
                let value = n.to_be_bytes();
                writer.set(b"probe", &value).unwrap();
                let answered = Instant::now();
                while reader.get(b"probe").unwrap().as_deref() != Some(&value[..]) {}
                answered.elapsed()
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        times
    })
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "three.toml", 3);
    config(dir.path(), "one.toml", 1);
    let lone = Node::start(dir.path(), "one.toml", "n1");
    let leader = Node::start(dir.path(), "three.toml", "n1");
    let follower = Node::start(dir.path(), "three.toml", "n2");
    let other = Node::start(dir.path(), "three.toml", "n3");
    for node in [&leader, &follower, &other] {
        node.wait("state", "serving");
    }

    let time = Duration::from_secs(2);
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| throughput(leader.addr, time) / throughput(lone.addr, time))
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "SET with two followers, as a multiple of that without: {:.2} ({:.2} to {:.2})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );

    let index = leader.status("index");
    follower.wait("index", &index);
    let mut times = lags(leader.addr, follower.addr);
    times.sort_unstable();
    println!(
        "visible on a follower after the answer, at 50,000 writes/s: p50 {:?}, p99 {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );

    drop(other);
    let mut client = Client::connect(&leader.addr.to_string()).unwrap();
    for start in (0..2_000_000_u64).step_by(10_000) {
        let mut pipeline = client.pipeline();
        for n in start..start + 10_000 {
            pipeline.set(format!("key:{n:012}").as_bytes(), &[b'v'; 64]);
        }
        pipeline.run().unwrap();
    }
    let mut took: Vec<Duration> = (0..3)
        .map(|_| {
            let index = leader.status("index");
            let start = Instant::now();
            let new = Node::start(dir.path(), "three.toml", "n3");
            new.wait("state", "serving");
            let took = start.elapsed();
            assert_eq!(new.status("index"), index);
            took
        })
        .collect();
    took.sort_unstable();
    println!(
        "a new follower with 2 million entries, from its start until it serves: {:?} ({took:?})",
        took[1]
    );
}
