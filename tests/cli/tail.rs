//! `tail` against clusters of real nodes.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::Child,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gopherstore::client::{Client, ClientOptions, Error, Watch, Watcher};
use serde_json::Value;

use crate::{
    finish,
    nodes::{
        cluster::{Cluster, Options},
        node::Node,
        proxy::{Cut, Proxy},
    },
    program, run, run_at, start,
    support::{in_time, unused_addr, wait_until},
};

const WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn cluster(count: usize, replication: &str) -> Cluster {
    let options = Options {
        replication: format!(
            "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n{replication}"
        ),
        ..Options::default()
    };
    let cluster = Cluster::start_with(count, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

fn tail(addr: &str, arguments: &[&str]) -> Child {
    start(program().args(["--addr", addr, "tail"]).args(arguments))
}

/// The next line of standard error.
fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line
}

#[test]
fn each_entry_is_a_line_on_any_node() {
    let cluster = cluster(2, "");
    let mut client = cluster.client(0);
    client.set(b"user123", b"active").unwrap();
    client.set(b"two words", b"\xff\n").unwrap();
    client.set(b"", &[b'x'; 70]).unwrap();
    assert!(client.del(b"user123").unwrap());
    cluster.wait_converged(WITHIN);
    for node in 0..2 {
        let addr = cluster.addr(node).to_string();
        let run = run_at(&addr, &["tail", "--from", "1", "--count", "1"], b"");
        let epoch = String::from_utf8(run.out).unwrap();
        let nonce = epoch.strip_prefix("1 EPOCH 1 ").expect("the first record");
        assert_eq!(nonce.trim_end().len(), 16, "{epoch}");
        let run = run_at(&addr, &["tail", "--from", "2", "--count", "4"], b"");
        let lines = "2 SET user123 6\n3 SET \"two words\" 2\n4 SET \"\" 70\n5 DEL user123 -\n";
        run.expect(0, lines, "");
        let run = run_at(
            &addr,
            &["tail", "--from", "3", "--count", "2", "--values"],
            b"",
        );
        let cut = "x".repeat(64);
        let lines = format!("3 SET \"two words\" 2 \"\\xff\\n\"\n4 SET \"\" 70 \"{cut}\"...\n");
        run.expect(0, &lines, "");
        let token = |index: u64| format!("{:016x}{index:016x}{}", 1, nonce.trim_end());
        let json = format!(
            "{{\"epoch\":1,\"index\":3,\"key\":\"two words\",\"op\":\"SET\",\"size\":2,\"token\":\"{}\",\
             \"value_hex\":\"ff0a\"}}\n",
            token(3)
        );
        let arguments = ["tail", "--from=3", "--count=1", "--values", "-w", "json"];
        run_at(&addr, &arguments, b"").expect(0, &json, "");
        let after = token(2);
        let arguments = [
            "tail",
            "--token",
            &after,
            "--count=1",
            "--values",
            "-w",
            "json",
        ];
        run_at(&addr, &arguments, b"").expect(0, &json, "");
    }
}

#[test]
fn without_an_index_only_what_is_new_is_shown_and_a_closed_pipe_ends_it() {
    let cluster = cluster(2, "");
    let mut client = cluster.client(0);
    client.set(b"old", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    let mut child = tail(&cluster.addr(1).to_string(), &[]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    // It does not say when it has begun, so write until it shows something.
    let (first, out) = in_time(move || {
        let (begin, is_shown) = (Instant::now(), AtomicBool::new(false));
        let first = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_shown.load(Ordering::SeqCst) && begin.elapsed() < WITHIN {
                    client.set(b"new", b"1").unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let first = line(&mut out);
            is_shown.store(true, Ordering::SeqCst);
            first
        });
        (first, out)
    });
    assert!(first.ends_with(" SET new 1\n"), "{first}");
    // No more writes come, and the output has no reader.
    drop(out);
    let output = in_time(move || child.wait_with_output().unwrap());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
}

#[test]
fn after_a_lost_connection_tail_continues_where_it_was() {
    let mut cluster = cluster(2, "");
    cluster.client(0).set(b"a", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    let mut child = tail(
        &cluster.addr(1).to_string(),
        &["--from", "2", "--count", "3"],
    );
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(line(&mut out), "2 SET a 1\n");
    cluster.stop(1);
    let lost = line(&mut err);
    assert!(
        lost.contains("lost") && lost.ends_with("trying again, from index 3 on\n"),
        "{lost}"
    );
    cluster.client(0).set(b"b", b"22").unwrap();
    cluster.restart(1);
    // Its copy ends at entry 3, so that is not in its log.
    cluster.wait_converged(WITHIN);
    let mut said = line(&mut err);
    while !said.contains("missed") {
        said = line(&mut err);
    }
    assert!(
        said.contains(
            ": missed entries 3 to 3, since the log begins at index 4 now; go on with --from 4, "
        ),
        "{said}"
    );
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(11));
    let mut child = tail(
        &cluster.addr(1).to_string(),
        &["--from", "4", "--count", "2"],
    );
    let mut out = BufReader::new(child.stdout.take().unwrap());
    cluster.client(0).set(b"c", b"333").unwrap();
    assert_eq!(line(&mut out), "4 SET c 3\n");
    // And without a loss where the log has it all.
    let proxy = Proxy::start(cluster.addr(0));
    let mut child_of_leader = tail(&proxy.addr().to_string(), &["--from", "4", "--count", "2"]);
    let mut leaders = BufReader::new(child_of_leader.stdout.take().unwrap());
    assert_eq!(line(&mut leaders), "4 SET c 3\n");
    proxy.refuse(true);
    proxy.cut(Cut::Reset);
    cluster.client(0).del(b"c").unwrap();
    proxy.refuse(false);
    assert_eq!(line(&mut leaders), "5 DEL c -\n");
    let output = in_time(move || child_of_leader.wait_with_output().unwrap());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.ends_with("connected again, going on from index 5\n"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(line(&mut out), "5 DEL c -\n");
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn with_a_file_tail_goes_on_at_another_node() {
    let mut cluster = cluster(2, "");
    cluster.client(0).set(b"a", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.toml");
    let mut text = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
    for node in 0..2 {
        let (name, addr) = (cluster.name(node), cluster.addr(node));
        text += &format!("[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n");
    }
    fs::write(&file, text).unwrap();
    let mut command = program();
    command.arg("--config").arg(&file);
    let mut child = start(command.args(["tail", "--from", "2", "--count", "2"]));
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(line(&mut out), "2 SET a 1\n");
    cluster.kill(0);
    let mut said = line(&mut err);
    while !said.contains("connected again") {
        said = line(&mut err);
    }
    assert!(said.ends_with("going on from index 3\n"), "{said}");
    // Its first entry is the new epoch.
    cluster.restart(0);
    assert!(line(&mut out).starts_with("3 EPOCH "));
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn entries_that_the_log_no_longer_holds_are_reported_as_missed_and_end_it() {
    let cluster = cluster(2, "backlog_bytes = 1048576");
    cluster.client(0).set(b"a", b"1").unwrap();
    let proxy = Proxy::start(cluster.addr(0));
    let mut child = tail(&proxy.addr().to_string(), &["--from", "2"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(line(&mut out), "2 SET a 1\n");
    proxy.refuse(true);
    proxy.cut(Cut::End);
    let value = vec![b'v'; 60_000];
    cluster.write_all((0..60).map(|_| (&b"b"[..], &value[..])));
    // Until the follower has all of them, the log goes on to evict the oldest.
    cluster.wait_converged(WITHIN);
    proxy.refuse(false);
    let mut said = String::new();
    while !said.contains("missed") {
        said = line(&mut err);
        assert!(!said.is_empty(), "no end of the program");
    }
    let [(first, last)] = told(&said, "missed entries ")[..] else {
        panic!("{said}");
    };
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(11));
    // Records that the log still holds are shown.
    assert!(first == 3 && last < 62, "{said}");
    let next = (last + 1).to_string();
    assert!(said.contains(&format!("--from {next}, ")), "{said}");
    let mut child = tail(&proxy.addr().to_string(), &["--from", &next]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for index in last + 1..=62 {
        assert_eq!(line(&mut out), format!("{index} SET b 60000\n"));
    }
    cluster.client(0).set(b"c", b"1").unwrap();
    assert_eq!(line(&mut out), "63 SET c 1\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let addr = cluster.addr(0).to_string();
    let text = format!(
        "nothing to watch: missed entries 1 to {last}, since the log begins at index {next} now; "
    );
    run_at(&addr, &["tail", "--from", "1"], b"").expect_failure(11, &[&text]);
}

#[test]
fn a_prefix_shows_its_keys_alone_and_a_snapshot_comes_before_the_changes() {
    let cluster = cluster(2, "");
    let mut client = cluster.client(0);
    for (key, value) in [("user:1", "one"), ("other", "x"), ("user:2", "two")] {
        client.set(key.as_bytes(), value.as_bytes()).unwrap();
    }
    assert!(client.del(b"user:1").unwrap());
    cluster.wait_converged(WITHIN);
    for node in 0..2 {
        let addr = cluster.addr(node).to_string();
        let arguments = ["tail", "--prefix", "user:", "--from", "5", "--count", "1"];
        if node == 0 {
            run_at(&addr, &arguments, b"").expect(0, "5 DEL user:1 -\n", "");
        }
        let mut child = tail(
            &addr,
            &["--prefix=user:", "--from-snapshot", "--values", "--count=3"],
        );
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let index = 5 + 4 * u64::try_from(node).unwrap();
        assert_eq!(line(&mut out), "- SNAPSHOT_BEGIN\n");
        let value = if node == 0 { "two" } else { "again" };
        assert_eq!(
            line(&mut out),
            format!("- SET user:2 {} {value}\n", value.len())
        );
        assert_eq!(line(&mut out), format!("{index} SNAPSHOT_END\n"));
        client.set(b"use", b"not this").unwrap();
        client.set(b"user:3", b"three").unwrap();
        assert_eq!(
            line(&mut out),
            format!("{} SET user:3 5 three\n", index + 2)
        );
        client.set(b"user:2", b"again").unwrap();
        assert_eq!(
            line(&mut out),
            format!("{} SET user:2 5 again\n", index + 3)
        );
        assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(0));
        assert!(client.del(b"user:3").unwrap());
        cluster.wait_converged(WITHIN);
    }
}

/// Writes one entry after another, each under a key of its own, and gives those that were acknowledged.
fn write_until(addr: &str, is_over: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut client = None;
    for number in 0.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("key-{number}");
        let mut write = || -> Result<(), Error> {
            let client = match &mut client {
                Some(client) => client,
                none => none.insert(Client::connect(addr)?),
            };
            client.set(key.as_bytes(), b"v")
        };
        match write() {
            Ok(()) => acknowledged.push(key),
            Err(Error::Loading { .. }) => {}
            Err(_) => client = None,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    acknowledged
}

/// The ranges of entries that lines on standard error tell of, behind `word`.
fn told(said: &str, word: &str) -> Vec<(u64, u64)> {
    let rest = said.lines().filter_map(|line| line.split_once(word));
    let ranges = rest.map(|(_, rest)| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        let mut number = || {
            let word = numbers.find(|word| !word.is_empty()).unwrap();
            word.parse().unwrap()
        };
        (number(), number())
    });
    ranges.collect()
}

/// Ends a test's writer and its `tail` when the test ends or fails, so that no thread waits for them for ever.
struct Running<'a> {
    is_over: &'a AtomicBool,
    tail: &'a RunningTail,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.tail.gives_up.store(true, Ordering::SeqCst);
        if let Some(child) = &mut *self.tail.child.lock().unwrap() {
            let _ = child.kill();
        }
    }
}

/// A `tail` that is started again where it ends, as its message says.
#[derive(Default)]
struct RunningTail {
    gives_up: AtomicBool,
    child: Mutex<Option<Child>>,
}

/// An entry as it is shown: index, epoch, and key, which an EPOCH does not have.
type Entry = (u64, u64, String);

impl RunningTail {
    /// The entries from the first on, up to the key `last`, and what was said on standard error.
    fn run(&self, addr: &str) -> (Vec<Entry>, String) {
        let (mut shown, mut said, mut from) = (Vec::new(), String::new(), 1);
        while !self.gives_up.load(Ordering::SeqCst) {
            let mut child = tail(addr, &["--from", &format!("{from}"), "-w", "json"]);
            let (out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            *self.child.lock().unwrap() = Some(child);
            let told = std::thread::spawn(move || {
                let mut text = String::new();
                err.read_to_string(&mut text).unwrap();
                text
            });
            for line in BufReader::new(out).lines() {
                let entry: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let number = |name: &str| entry[name].as_u64().unwrap();
                let key = entry["key"].as_str().unwrap_or_default().to_owned();
                assert_eq!(key.is_empty(), entry["op"] == "EPOCH");
                from = number("index") + 1;
                shown.push((number("index"), number("epoch"), key));
                if shown.last().is_some_and(|(.., key)| key == "last") {
                    self.gives_up.store(true, Ordering::SeqCst);
                    if let Some(child) = &mut *self.child.lock().unwrap() {
                        let _ = child.kill();
                    }
                    break;
                }
            }
            let mut child = self.child.lock().unwrap().take().unwrap();
            let code = child.wait().unwrap().code();
            let text = told.join().unwrap();
            if code == Some(11) {
                let place = text.rsplit_once("go on with --from ");
                let (_, rest) = place.unwrap_or_else(|| panic!("{text}"));
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                from = digits.parse().unwrap();
            } else if code.is_some() {
                // The node is not there yet.
                assert!(!text.contains("lost"), "{text}");
                wait_until("a node at the address of the tail", || {
                    self.gives_up.load(Ordering::SeqCst)
                        || std::net::TcpStream::connect(addr).is_ok()
                });
            }
            said += &text;
        }
        (shown, said)
    }
}

/// Every entry is shown once and in order, or is said to be missed, whichever nodes are stopped or killed.
#[test]
fn each_surviving_write_is_shown_once_or_said_to_be_missed_while_nodes_restart() {
    let mut cluster = cluster(3, "");
    let (leader, follower) = (cluster.addr(0).to_string(), cluster.addr(1).to_string());
    let (is_over, tail) = (AtomicBool::new(false), RunningTail::default());
    let (acknowledged, shown, said) = std::thread::scope(|scope| {
        let running = Running {
            is_over: &is_over,
            tail: &tail,
        };
        let shown = scope.spawn(|| tail.run(&follower));
        let writer = scope.spawn(|| write_until(&leader, &is_over));
        // Leader, watched follower, the other one.
        for (node, kills) in [
            (0, true),
            (2, true),
            (0, false),
            (1, true),
            (0, true),
            (2, false),
            (1, false),
            (0, true),
        ] {
            let before = cluster.number(0, "index");
            cluster.wait_for_status(0, WITHIN, "writes", |status| {
                status.number("index") > Some(before + 50)
            });
            if kills {
                cluster.kill(node);
            } else {
                cluster.stop(node);
            }
            cluster.restart(node);
            for node in 0..3 {
                cluster.wait_for_status(node, WITHIN, "its data", |status| {
                    status.is_state("serving")
                });
            }
        }
        is_over.store(true, Ordering::SeqCst);
        let acknowledged = writer.join().unwrap();
        cluster.wait_converged(WITHIN);
        // The tail may still be waiting for its next try.
        let begin = Instant::now();
        while !shown.is_finished() {
            assert!(begin.elapsed() < WITHIN, "the last entry is not shown");
            cluster.client(0).set(b"last", b"v").unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        let (shown, said) = shown.join().unwrap();
        drop(running);
        (acknowledged, shown, said)
    });
    let missed = told(&said, "missed entries ");
    assert!(!said.contains("is lost"), "{said}");
    let mut next = 1;
    for (index, ..) in &shown {
        while *index > next {
            let gap = missed.iter().find(|(first, _)| *first == next);
            let (_, last) =
                gap.unwrap_or_else(|| panic!("{next} is missed without a word\n{said}"));
            next = last + 1;
        }
        assert_eq!(*index, next, "shown twice\n{said}");
        next += 1;
    }
    let watcher = Watcher::open(&follower, &ClientOptions::default(), Watch::default()).unwrap();
    let history = watcher.history();
    for (index, epoch, _) in &shown {
        let start = history.epoch_of(*index).unwrap();
        assert_eq!(start.epoch, *epoch, "entry {index}\n{said}");
    }
    let mut client = cluster.client(0);
    let mut lacks = 0;
    let mut rest = shown.iter().map(|(.., key)| key);
    for key in &acknowledged {
        if client.get(key.as_bytes()).unwrap().is_some() {
            let mut from_here = rest.clone();
            if from_here.any(|shown| shown == key) {
                rest = from_here;
            } else {
                lacks += 1;
            }
        }
    }
    let missed: u64 = missed.iter().map(|(first, last)| last + 1 - first).sum();
    assert!(
        lacks <= missed,
        "{lacks} are not shown, {missed} were missed\n{said}"
    );
}

#[test]
fn a_node_without_a_log_to_watch_is_one_error_line() {
    let addr = unused_addr();
    run_at(&addr, &["tail"], b"").expect_failure(5, &["cannot connect to", &addr]);
    let alone = Node::start();
    let addr = alone.addr.to_string();
    run_at(&addr, &["tail"], b"").expect_failure(
        3,
        &[
            "nothing to watch: a watch needs a log, which a node has with peers in cluster.toml or a data directory; \
           name another node with --addr\n",
        ],
    );
    let cluster = cluster(2, "");
    let addr = cluster.addr(1).to_string();
    run_at(&addr, &["tail", "--from", "9"], b"").expect_failure(
        3,
        &["no entry after 8 yet, this node's last one is 1", "--from"],
    );
    for arguments in [
        ["tail", "--from", "0"],
        ["tail", "--count", "0"],
        ["tail", "-w", "xml"],
        ["tail", "--token", "12"],
    ] {
        run(&arguments, b"").expect_failure(2, &["--help"]);
    }
    let both = ["tail", "--from", "1", "--from-snapshot"];
    run(&both, b"").expect_failure(2, &["--from", "--from-snapshot", "give one of them"]);
    let stranger = "0000000000000001000000000000000100000000000000ff";
    run_at(&addr, &["tail", "--token", stranger], b"").expect_failure(
        12,
        &[
            "entry 1 of epoch 1 is not in this node's history",
            "--from-snapshot",
        ],
    );
    let mut silent = program();
    silent.args(["--addr", &addr, "tail", "--timeout", "50ms"]);
    // A heartbeat comes every 100 ms, so each silence is too long, and the command connects again.
    let mut child = start(&mut silent);
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let said = line(&mut err);
    assert!(said.contains("within 50ms"), "{said}");
    child.kill().unwrap();
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    child.wait().unwrap();
    assert_eq!(finish(program().args(["tail", "--help"]), b"").code, 0);
}
