//! `bench` against real nodes, and against scripted ones where what was sent matters.

use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use gopherstore::{
    Client,
    wire::{Request, Status},
};
use serde_json::Value;

use crate::{
    Run,
    nodes::{
        cluster::Cluster,
        node::{Node, Options, wait_for},
        tools,
    },
    program, run_at, start,
    support::{Peer, StubNode, next_frame, request, response, unused_addr},
};

/// Runs `bench` with options in one line.
fn bench(addr: &str, options: &str) -> Run {
    let arguments: Vec<&str> = std::iter::once("bench")
        .chain(options.split_whitespace())
        .collect();
    run_at(addr, &arguments, b"")
}

/// Starts `bench` and does not wait for it.
fn start_bench(addr: &str, options: &str) -> Child {
    let mut command = program();
    command.args(["--addr", addr, "bench"]);
    start(command.args(options.split_whitespace()))
}

fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn addr(node: &Node) -> String {
    node.addr.to_string()
}

fn client(addr: &str) -> Client {
    Client::connect(addr).unwrap()
}

fn keys(addr: &str) -> u64 {
    let status = client(addr).status().unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("keys: "));
    line.unwrap().parse().unwrap()
}

fn json(out: &[u8]) -> Value {
    let text = String::from_utf8_lossy(out);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Sends signals to a program, one right behind the other.
pub(crate) fn signal(child: &Child, names: &[&str]) {
    let kills = names
        .iter()
        .map(|name| format!("kill -s {name} {};", child.id()));
    let status = Command::new("sh")
        .args(["-c", &kills.collect::<String>()])
        .status();
    assert!(status.unwrap().success(), "{names:?}");
}

/// Whether this process, and so each that it starts, ignores the signal; the tests may run under `nohup`.
pub(crate) fn cannot_receive(name: &str) -> bool {
    let is_ignored = name == "HUP" && gopherstore::signals::is_ignored(1);
    if is_ignored {
        tools::skip("SIGHUP is ignored, as under nohup");
    }
    is_ignored
}

/// A figure of one kind of operation.
fn figure(results: &Value, operation: &str, name: &str) -> f64 {
    let operations = results["operations"].as_array().unwrap();
    let row = operations.iter().find(|row| row["operation"] == operation);
    let value = &row.unwrap()[name];
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{operation} {name} {value}"))
}

const PERCENTILES: [&str; 6] = [
    "p50_us",
    "p90_us",
    "p99_us",
    "p99_9_us",
    "p99_99_us",
    "max_us",
];

#[test]
fn results_come_in_three_forms_and_nothing_is_left() {
    let node = Node::start();
    let addr = addr(&node);
    let options = "--count 2001 --connections 3 --depth 4 --keys 100 --value-size 16..64 --seed 7";
    client(&addr).set(b"mine", b"v").unwrap();

    let run = bench(&addr, &format!("{options} -w json"));
    assert_eq!((run.code, &*run.err), (0, ""));
    let results = json(&run.out);
    assert_eq!(results["seed"], 7);
    assert_eq!(results["value_bytes"], "16..64");
    assert_eq!(
        (&results["addr"], &results["leader"]),
        (&addr.clone().into(), &addr.clone().into())
    );
    assert_eq!(results["is_partial"], false);
    assert_eq!(figure(&results, "all", "count"), 2_001.0);
    let gets = figure(&results, "get", "count");
    // The standard deviation is 13, and the seed is fixed.
    assert!((1_740.0..1_860.0).contains(&gets), "{gets}");
    assert_eq!(gets + figure(&results, "set", "count"), 2_001.0);
    for operation in ["get", "set", "all"] {
        assert_eq!(figure(&results, operation, "missed"), 0.0);
        assert_eq!(figure(&results, operation, "errors"), 0.0);
        let latencies = PERCENTILES.map(|name| figure(&results, operation, name));
        assert!(latencies.is_sorted() && latencies[0] > 0.0, "{latencies:?}");
    }

    let run = bench(&addr, &format!("{options} --write-out csv"));
    assert_eq!((run.code, &*run.err), (0, ""));
    let csv = String::from_utf8(run.out).unwrap();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(names, ["operation", "get", "set", "all"]);
    for line in &lines[1..] {
        assert_eq!(line.len(), lines[0].len());
        assert!(
            line[1..].iter().all(|field| field.parse::<f64>().is_ok()),
            "{csv}"
        );
    }
    assert_eq!(lines[3][1], "2001");

    let run = bench(&addr, options);
    assert_eq!((run.code, &*run.err), (0, ""));
    let table = String::from_utf8(run.out).unwrap();
    assert!(table.starts_with("seed    7\n"), "{table}");
    assert!(
        table.lines().all(|line| line.chars().count() <= 40),
        "{table}"
    );
    assert!(table.contains("p99.99"), "{table}");
    assert_eq!(keys(&addr), 1, "the key that was there");
}

/// A node without keys. It notes the requests of each connection, and pauses once for `stall`.
struct Recorder {
    peer: Peer,
    frames: Arc<Mutex<Vec<Vec<Vec<u8>>>>>,
}

impl Recorder {
    fn start() -> Recorder {
        Recorder::stalling(usize::MAX, Duration::ZERO)
    }

    /// Stands still before the response to that SET, counted from 1 and the marker's.
    fn stalling(at: usize, stall: Duration) -> Recorder {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let sets = AtomicUsize::new(0);
        let peer = Peer::start({
            let frames = Arc::clone(&frames);
            move |number, mut stream| {
                while let Some(frame) = next_frame(&mut stream) {
                    let out = match request(&frame) {
                        Request::Status => response(Status::Ok.byte(), b"role: leader\n"),
                        Request::Ping => response(Status::Ok.byte(), b"PONG"),
                        Request::Get { .. } => response(Status::NotFound.byte(), b""),
                        Request::Set { .. } => {
                            if sets.fetch_add(1, Ordering::SeqCst) + 1 == at {
                                thread::sleep(stall);
                            }
                            response(Status::Ok.byte(), b"")
                        }
                        _ => response(Status::Ok.byte(), b""),
                    };
                    let mut frames = frames.lock().unwrap();
                    if frames.len() <= number {
                        frames.resize(number + 1, Vec::new());
                    }
                    frames[number].push(frame);
                    drop(frames);
                    if stream.write_all(&out).is_err() {
                        break;
                    }
                }
            }
        });
        Recorder { peer, frames }
    }
}

#[test]
fn the_same_seed_sends_the_same_bytes() {
    let record = |options: &str| {
        let node = Recorder::start();
        let shape = "--count 301 --connections 2 --depth 3 --keys 50 --value-size 0..40 --get 50";
        let run = bench(&node.peer.addr, &format!("{shape} -w json {options}"));
        assert_eq!((run.code, &*run.err), (0, ""));
        let frames = node.frames.lock().unwrap().clone();
        (json(&run.out)["seed"].clone(), frames)
    };
    let (drawn, frames) = record("");
    assert_eq!(
        frames.len(),
        3,
        "one to make ready and clean up, and two that measure"
    );
    assert_eq!(frames[1].len(), 1 + 151, "a PING and its operations");
    assert_eq!(frames[2].len(), 1 + 150);
    let (seed, again) = record(&format!("--seed {drawn}"));
    assert_eq!(seed, drawn);
    assert!(again == frames, "seed {drawn}");
    let other = drawn.as_u64().unwrap() + 1;
    assert!(
        record(&format!("--seed {other}")).1 != frames,
        "seed {other}"
    );
    // Only the PING comes before the requests that are measured.
    let (_, zipf) = record("--seed 5 --zipf");
    let (_, warmed) = record("--seed 5 --zipf --warm-up 20ms");
    for connection in [1, 2] {
        assert!(zipf[connection] != frames[connection]);
        let measured = &zipf[connection][1..];
        assert!(warmed[connection].len() > zipf[connection].len());
        assert!(warmed[connection].ends_with(measured));
    }
}

#[test]
fn keys_of_others_are_overwritten_only_on_request() {
    let node = Node::start();
    let addr = addr(&node);
    let mut mine = client(&addr);
    mine.set(b"bench:0000000099", b"mine").unwrap();
    let options = "--count 100 --keys 100";
    bench(&addr, options).expect_failure(
        2,
        &[
            "\"bench:0000000099\" has a value",
            "--prefix",
            "--overwrite",
        ],
    );
    assert_eq!(
        mine.get(b"bench:0000000099").unwrap().as_deref(),
        Some(&b"mine"[..])
    );
    assert_eq!(keys(&addr), 1);
    assert_eq!(bench(&addr, "--count 100 --keys 99").code, 0);
    assert_eq!(
        bench(&addr, "--count 100 --keys 100 --prefix other:").code,
        0
    );
    assert_eq!(keys(&addr), 1);
    assert_eq!(bench(&addr, &format!("{options} --overwrite")).code, 0);
    assert_eq!(keys(&addr), 0);
}

#[test]
fn keys_of_an_earlier_run_are_detected_and_removed_on_request() {
    let node = Node::start();
    let addr = addr(&node);
    assert_eq!(bench(&addr, "--count 10 --keys 100 --keep").code, 0);
    assert_eq!(keys(&addr), 101, "the keys and bench:running");
    bench(&addr, "--count 10 --keys 5").expect_failure(2, &["bench:running", "100 keys"]);
    assert_eq!(keys(&addr), 101);
    assert_eq!(bench(&addr, "--count 10 --keys 5 --overwrite").code, 0);
    assert_eq!(keys(&addr), 0);
}

#[test]
fn a_rate_is_kept_and_all_is_sent() {
    let node = Node::start();
    let addr = addr(&node);
    let options = "--rate 500 --count 100 --connections 3 --keys 10 -w json";
    let run = bench(&addr, options);
    assert_eq!((run.code, &*run.err), (0, ""));
    let results = json(&run.out);
    assert_eq!(figure(&results, "all", "count"), 100.0);
    assert_eq!(results["rate"], 500);
    assert_eq!(results["unsent"], 0);
    // The last one is due after 99 / 500 s.
    let elapsed = results["elapsed_s"].as_f64().unwrap();
    assert!(elapsed >= 0.198, "{elapsed}");
    let run = bench(
        &addr,
        "--rate 1000 --duration 200ms --connections 3 --keys 10 -w json",
    );
    let results = json(&run.out);
    let unsent = results["unsent"].as_f64().unwrap();
    assert_eq!(figure(&results, "all", "count") + unsent, 200.0);
}

#[test]
fn a_run_too_short_for_anything_prints_its_figures_and_fails() {
    let node = Node::start();
    let addr = addr(&node);
    let options = "--duration 1ns --keys 10 --connections 2";
    let run = bench(&addr, &format!("{options} -w json"));
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.err.contains("before anything was measured") && run.err.contains("--duration"));
    assert_eq!(run.err.matches('\n').count(), 1, "{run:?}");
    let results = json(&run.out);
    assert_eq!(figure(&results, "all", "count"), 0.0);
    assert_eq!(figure(&results, "all", "per_s"), 0.0);
    let run = bench(&addr, options);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.out.starts_with(b"seed "), "{run:?}");
    assert_eq!(keys(&addr), 0);
}

#[test]
fn a_slow_rate_is_not_reported_as_a_fast_one() {
    let node = Node::start();
    let addr = addr(&node);
    for options in ["--rate 1 --count 1", "--rate 1 --duration 20ms"] {
        let run = bench(&addr, &format!("{options} --keys 10 -w json"));
        assert_eq!((run.code, &*run.err), (0, ""), "{options}");
        let results = json(&run.out);
        assert_eq!(figure(&results, "all", "count"), 1.0, "{options}");
        assert_eq!(figure(&results, "all", "per_s"), 1.0, "{results}");
    }
}

#[test]
fn with_a_rate_a_pause_of_the_node_shows_in_the_percentiles() {
    let options = "--count 200 --get 0 --connections 1 --keys 10 -w json";
    let stall = Duration::from_millis(500);
    let node = Recorder::stalling(30, stall);
    let run = bench(&node.peer.addr, &format!("{options} --rate 1000"));
    let results = json(&run.out);
    // Some 170 operations were due before it went on, and waited for it.
    assert!(figure(&results, "set", "p50_us") > 200_000.0, "{results}");
    assert!(figure(&results, "set", "max_us") > 450_000.0, "{results}");
    let node = Recorder::stalling(30, stall);
    let run = bench(&node.peer.addr, options);
    let results = json(&run.out);
    assert!(figure(&results, "set", "p90_us") < 200_000.0, "{results}");
    assert!(figure(&results, "set", "max_us") > 450_000.0, "{results}");
}

#[test]
fn a_signal_ends_it_with_results_and_without_keys() {
    let node = Node::start();
    let addr = addr(&node);
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        if cannot_receive(name) {
            continue;
        }
        // Without GETs no key has a value before it is measured.
        let options = "--duration 10m --get 0 --keys 1000 --rate 2000 -w json";
        let child = start_bench(&addr, options);
        wait_for("some SETs", || (keys(&addr) > 100).then_some(()));
        // Twice at once, as `timeout` and a terminal that closes do.
        signal(&child, &[name, name]);
        let output = end(child);
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let results = json(&output.stdout);
        assert_eq!(results["is_partial"], true);
        assert!(figure(&results, "all", "count") > 0.0);
        assert_eq!(keys(&addr), 0, "after {name}");
    }
}

#[test]
fn a_hangup_that_is_ignored_at_the_start_stays_ignored() {
    let node = Node::start();
    let addr = addr(&node);
    let options = "--count 1500 --get 0 --keys 1000 --rate 1000 -w json";
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .args([env!("CARGO_BIN_EXE_gopherstore-cli"), "--addr", &addr])
        .arg("bench");
    let child = start(command.args(options.split_whitespace()));
    wait_for("some SETs", || (keys(&addr) > 100).then_some(()));
    signal(&child, &["HUP"]);
    let output = end(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(json(&output.stdout)["is_partial"], false);
    assert_eq!(keys(&addr), 0);
}

#[test]
fn a_later_signal_ends_it_at_once() {
    // It does not answer a DEL, so the clean-up has no end.
    let node = Peer::start(|_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            let out = match request(&frame) {
                Request::Status => response(Status::Ok.byte(), b"role: leader\n"),
                Request::Ping => response(Status::Ok.byte(), b"PONG"),
                Request::Get { .. } => response(Status::NotFound.byte(), b""),
                Request::Del { .. } => continue,
                _ => response(Status::Ok.byte(), b""),
            };
            if stream.write_all(&out).is_err() {
                break;
            }
        }
    });
    let options = "--duration 10m --get 0 --keys 10 --timeout 10m";
    let mut child = start_bench(&node.addr, options);
    wait_for("its end", || {
        signal(&child, &["TERM"]);
        child.try_wait().unwrap()
    });
    let output = end(child);
    assert_eq!(output.status.signal(), Some(15), "{output:?}");
}

#[test]
fn a_closed_output_does_not_leave_keys() {
    let node = Node::start();
    let addr = addr(&node);
    let mut child = start_bench(&addr, "--count 100 --keys 100");
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), &*err), (Some(0), ""));
    assert_eq!(keys(&addr), 0);
}

#[test]
fn at_a_follower_gets_stay_and_sets_go_to_the_leader() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(Duration::from_secs(30));
    let (leader, follower) = (cluster.addr(0).to_string(), cluster.addr(1).to_string());
    let options = "--count 500 --get 50 --keys 100 --connections 2 --depth 4 -w json";
    let run = bench(&follower, options);
    assert_eq!((run.code, &*run.err), (0, ""));
    let results = json(&run.out);
    assert_eq!(
        (&results["addr"], &results["leader"]),
        (&follower.clone().into(), &leader.into())
    );
    assert_eq!(figure(&results, "all", "count"), 500.0);
    assert_eq!(figure(&results, "get", "missed"), 0.0);
    cluster.wait_converged(Duration::from_secs(30));
    assert_eq!(keys(&follower), 0);
    bench(&follower, &format!("{options} --no-redirect")).expect_failure(4, &["not the leader"]);
}

#[test]
fn a_node_that_dies_ends_it_with_what_was_measured() {
    let mut node = Node::start();
    let addr = addr(&node);
    let options = "--duration 10m --get 0 --keys 1000 --rate 2000 -w json";
    let child = start_bench(&addr, options);
    wait_for("some SETs", || (keys(&addr) > 100).then_some(()));
    node.kill();
    let output = end(child);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let results = json(&output.stdout);
    assert_eq!(results["is_partial"], true);
    assert!(figure(&results, "all", "count") > 0.0);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(err.matches('\n').count(), 1, "{err}");
    assert!(err.contains("keys could not be removed"), "{err}");
}

#[test]
fn a_refused_request_ends_it_and_leaves_no_keys() {
    let node = Node::start_with(&Options {
        limits: "max_value_bytes = 100",
        ..Options::default()
    });
    let addr = addr(&node);
    let run = bench(
        &addr,
        "--count 100 --get 0 --value-size 200 --keys 10 --connections 1 -w json",
    );
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.err.matches('\n').count(), 1, "{run:?}");
    assert!(run.err.contains("value of 200 bytes, limit 100"), "{run:?}");
    let results = json(&run.out);
    assert_eq!(figure(&results, "set", "count"), 0.0);
    assert_eq!(figure(&results, "set", "errors"), 1.0);
    assert_eq!(keys(&addr), 0);
}

#[test]
fn a_node_that_cannot_serve_is_one_error_line() {
    bench(&unused_addr(), "--count 1").expect_failure(5, &["is the node running?"]);
    let node = StubNode::start();
    node.set_loading();
    bench(node.addr(), "--count 1").expect_failure(3, &["loading"]);
    assert_eq!(node.writes(), 0);
}

#[test]
fn contradicting_options_are_errors_before_anything_is_sent() {
    let node = StubNode::start();
    for (options, parts) in [
        ("--count 1 --duration 1s", ["--count", "--duration"]),
        ("--count 0", ["--count", "from 1"]),
        ("--get 101", ["--get", "from 0 to 100"]),
        ("--connections 0", ["--connections", "from 1 to 10000"]),
        ("--depth 0", ["--depth", "from 1"]),
        ("--keys 0", ["--keys", "from 1"]),
        ("--rate 0", ["--rate", "from 1"]),
        ("--duration 0s", ["--duration", "5s"]),
        ("--value-size 9..1", ["--value-size", "16..1024"]),
        ("--value-size x", ["--value-size", "64"]),
        (
            "--value-size 67108864 --depth 100",
            ["limit 1073741824", "--depth"],
        ),
        ("--prefix=", ["--prefix", "bench:"]),
        ("-w xml", ["-w", "table, json and csv"]),
    ] {
        bench(node.addr(), options).expect_failure(2, &parts);
    }
    assert_eq!(node.peer.connections(), 0);
}

#[test]
fn the_examples_of_the_help_work() {
    let node = Node::start();
    let addr = addr(&node);
    let help = bench(&addr, "--help");
    let help = String::from_utf8(help.out).unwrap();
    let examples = help.lines().skip_while(|line| *line != "Examples:");
    let examples: Vec<&str> = examples
        .filter_map(|line| line.trim().strip_prefix("gopherstore-cli bench "))
        .collect();
    assert_eq!(examples.len(), 3, "{help}");
    for example in examples {
        // These take longer than a test should.
        let short = example.replace("30s", "50ms").replace("100000", "1000");
        assert_ne!(short, example);
        let run = bench(&addr, &short);
        assert_eq!((run.code, &*run.err), (0, ""), "{example}");
        assert!(!run.out.is_empty());
    }
    assert_eq!(keys(&addr), 0);
}
