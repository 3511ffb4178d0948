//! `tail` across restarts of nodes that keep their log on disk.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout},
};

use gopherstore::client::{Batch, Client};

use crate::{
    finish,
    nodes::{
        cluster::{Cluster, Options, wait_until},
        node::PATIENCE,
    },
    program, run_at, start,
    support::in_time,
};

fn cluster(count: usize, sync: &str, env: Vec<(&'static str, String)>) -> Cluster {
    let options = Options {
        replication: "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000".to_owned(),
        storage: format!("data_dir = \"data\"\nsync = \"{sync}\""),
        env,
        ..Options::default()
    };
    let cluster = Cluster::start_with(count, &options);
    cluster.wait_converged(PATIENCE);
    for node in 1..count {
        // Before that, a follower's directory has nothing.
        cluster.process(node).wait_for_log("wrote a snapshot of");
    }
    cluster
}

/// The next entries of a node, as `tail` prints them.
fn entries(addr: &str, from: &[&str], count: usize) -> Vec<String> {
    let count = count.to_string();
    let command = &mut program();
    command.args(["--addr", addr, "tail", "-w", "json", "--values"]);
    let run = finish(command.args(["--count", &count]).args(from), b"");
    assert_eq!(run.code, 0, "{from:?}: {}", run.err);
    let text = String::from_utf8(run.out).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn token_of(entry: &str) -> String {
    let entry: serde_json::Value = serde_json::from_str(entry).unwrap();
    entry["token"].as_str().unwrap().to_owned()
}

/// A `tail` from index 2 on, which goes on while its node is restarted.
struct Running {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn start(addr: &str) -> Running {
        let command = &mut program();
        command.args(["--addr", addr, "tail", "-w", "json", "--values"]);
        let mut child = start(command.args(["--from", "2"]));
        let lines = Some(BufReader::new(child.stdout.take().unwrap()));
        let mut err = child.stderr.take().unwrap();
        // Nothing waits for its messages, but a full pipe must not block it.
        std::thread::spawn(move || err.read_to_end(&mut Vec::new()));
        Running { child, lines }
    }

    fn next(&mut self, count: usize) -> Vec<String> {
        let mut lines = self.lines.take().unwrap();
        let (next, lines) = in_time(move || {
            let next: Vec<String> = (&mut lines)
                .lines()
                .take(count)
                .map(Result::unwrap)
                .collect();
            (next, lines)
        });
        self.lines = Some(lines);
        next
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes of each kind. Returns the number of their records.
fn write(client: &mut Client, round: u8) -> usize {
    client.set(b"small", &[round]).unwrap();
    client.set(b"large", &vec![round; 50_000]).unwrap();
    assert!(client.del(b"small").unwrap());
    let mut batch = Batch::new();
    batch.set(b"one", &[round]).set(b"two", &[round]);
    client.batch(&batch).unwrap();
    client.add(b"number", 1, 0).unwrap();
    5
}

#[test]
fn a_watch_goes_on_where_it_was_when_nodes_with_a_disk_are_restarted() {
    for sync in ["always", "never"] {
        let mut cluster = cluster(2, sync, Vec::new());
        let addrs = [0, 1].map(|node| cluster.addr(node).to_string());
        let mut running = [0, 1].map(|node: usize| Running::start(&addrs[node]));
        let mut count = 0;
        let mut known: Vec<String> = Vec::new();
        for (round, is_killed) in (0..).zip([true, false, true]) {
            count += write(&mut cluster.client(0), round);
            cluster.wait_converged(PATIENCE);
            let before = entries(&addrs[0], &["--from", "2"], count);
            assert!(before.starts_with(&known));
            for running in &mut running {
                assert_eq!(
                    running.next(before.len() - known.len()),
                    before[known.len()..]
                );
            }
            if is_killed {
                cluster.kill_all();
            } else {
                cluster.stop(1);
                cluster.stop(0);
            }
            cluster.restart(0);
            cluster.restart(1);
            cluster.wait_converged(PATIENCE);
            // The first new entry is the beginning of the epoch.
            count += 1;
            for (addr, running) in addrs.iter().zip(&mut running) {
                let now = entries(addr, &["--from", "2"], count);
                assert!(now.starts_with(&before), "{sync}, round {round}");
                assert_eq!(now.len(), before.len() + 1);
                assert!(now[before.len()].contains("\"EPOCH\""), "{now:?}");
                assert_eq!(running.next(1), now[before.len()..]);
                for (at, entry) in before.iter().enumerate() {
                    // One record of a BATCH has two lines and one position.
                    let token = token_of(entry);
                    if token_of(&now[at + 1]) != token {
                        let rest = entries(addr, &["--token", &token], 1);
                        assert_eq!(rest[0], now[at + 1], "{sync}, round {round}");
                    }
                }
                known = now;
            }
        }
    }
}

/// A log that was removed behind a snapshot is no longer on the disk, and a node that starts has none of it in memory.
#[test]
fn a_watch_from_before_a_snapshot_is_told_the_oldest_index_after_a_restart() {
    let env = vec![("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "20000".to_owned())];
    let mut cluster = cluster(1, "interval", env);
    let addr = cluster.addr(0).to_string();
    let mut client = cluster.client(0);
    let first = cluster
        .folder(0)
        .join("data/n1/log-00000001-0000000000000001");
    wait_until(PATIENCE, "the first segment to go", || {
        client.set(b"key", &[b'x'; 5_000]).unwrap();
        !first.exists()
    });
    drop(client);
    // The log in memory still has it.
    let second = entries(&addr, &["--from", "2"], 1);
    for is_killed in [true, false] {
        let last = cluster.number(0, "index");
        let newest = entries(&addr, &["--from", &last.to_string()], 1);
        if is_killed {
            cluster.kill(0);
        } else {
            cluster.stop(0);
        }
        cluster.restart(0);
        cluster.wait_converged(PATIENCE);
        let oldest = cluster.number(0, "backlog_first_index");
        let snapshot = cluster.number(0, "snapshot_index");
        assert!(2 < oldest && oldest <= snapshot + 1, "{oldest}, {snapshot}");
        let missed = oldest - 1;
        let (from, after) = (["--from", "2"], ["--token", &token_of(&second[0])]);
        for (first, place) in [(2, &from), (3, &after)] {
            let text = format!(
                "nothing to watch: missed entries {first} to {missed}, since the log begins at index {oldest} now; go \
                 on with --from {oldest}, "
            );
            let arguments = ["tail", place[0], place[1]];
            run_at(&addr, &arguments, b"").expect_failure(11, &[&text]);
        }
        // Every entry from there on is present, and every entry after the newest one before the restart.
        let count = usize::try_from(last + 2 - oldest).unwrap();
        let all = entries(&addr, &["--from", &oldest.to_string()], count);
        assert!(all[count - 1].contains("\"EPOCH\""), "{all:?}");
        let next = entries(&addr, &["--token", &token_of(&newest[0])], 1);
        assert_eq!(next[..], all[count - 1..]);
    }
}
