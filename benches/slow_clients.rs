//! The cost of slow clients for another one: `cargo bench --bench slow_clients`.
//!
//! One client asks as fast as it gets answers, alone and beside 500 clients that have each claimed a value of 4 GiB and
//! send a byte a second; in turns, and the ratio of its 99th percentiles is what counts. Both share the processor.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::config::LimitsConfig;
use gopherstore::node::Node;
use gopherstore::server::Server;
use gopherstore::wire::Request;

const SLOW: usize = 500;
const ROUNDS: usize = 5;

/// 99th percentile of one client's round trips.
fn p99(addr: SocketAddr) -> Duration {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut set = Vec::new();
    let request = Request::Set {
        key: b"key",
        value: &[b'v'; 64],
    };
    request.encode(&mut set).unwrap();
    let (mut times, mut answer) = (Vec::new(), [0; 5]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let sent = Instant::now();
        stream.write_all(&set).unwrap();
        stream.read_exact(&mut answer).unwrap();
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// The same beside the slow clients.
fn p99_beside_slow(addr: SocketAddr) -> Duration {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let slow: Vec<TcpStream> = (0..SLOW)
            .map(|_| {
                let mut stream = TcpStream::connect(addr).unwrap();
                stream.write_all(b"\x01\0\x01\xff\xff\xff\xff").unwrap();
                stream
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            for mut stream in slow.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                stream.write_all(b"x").unwrap();
                thread::sleep(Duration::from_secs(1) / u32::try_from(SLOW).unwrap());
            }
        });
        let time = p99(addr);
        done.store(true, Ordering::Relaxed);
        time
    })
}

fn main() {
    let limits = LimitsConfig {
        max_value_bytes: u32::MAX,
        ..LimitsConfig::default()
    };
    let server = Server::bind("127.0.0.1:0", Node::alone(), limits).unwrap();
    let (addr, stopper) = (server.local_addr(), server.stopper());
    thread::scope(|scope| {
        scope.spawn(|| server.run().unwrap());
        p99(addr);
        let mut ratios: Vec<f64> = (0..ROUNDS)
            .map(|_| p99_beside_slow(addr).as_secs_f64() / p99(addr).as_secs_f64())
            .collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "p99 beside {SLOW} slow clients, as a multiple of that alone: {:.2} ({:.2} to {:.2})",
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1]
        );
        stopper.stop();
    });
}
