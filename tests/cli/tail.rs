//! `tail` against clusters of real nodes.

use std::{
    io::{BufRead, BufReader, Read},
    process::Child,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    finish,
    nodes::{
        cluster::{Cluster, Options},
        node::Node,
        proxy::{Cut, Proxy},
    },
    program, run, run_at, start,
    support::{in_time, nobody},
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
        let run = run_at(&addr, &["tail", "--from", "1", "--count", "4"], b"");
        let lines = "1 SET user123 6\n2 SET \"two words\" 2\n3 SET \"\" 70\n4 DEL user123 -\n";
        run.expect(0, lines, "");
        let run = run_at(
            &addr,
            &["tail", "--from", "2", "--count", "2", "--values"],
            b"",
        );
        let cut = "x".repeat(64);
        let lines = format!("2 SET \"two words\" 2 \"\\xff\\n\"\n3 SET \"\" 70 \"{cut}\"...\n");
        run.expect(0, &lines, "");
        let arguments = ["tail", "--from=2", "--count=1", "--values", "-w", "json"];
        run_at(&addr, &arguments, b"").expect(
            0,
            "{\"epoch\":1,\"index\":2,\"key\":\"two words\",\"op\":\"SET\",\"size\":2,\"value_hex\":\"ff0a\"}\n",
            "",
        );
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
    // Nobody writes any more, and nobody reads.
    drop(out);
    let output = in_time(move || child.wait_with_output().unwrap());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
}

#[test]
fn a_lost_link_is_taken_up_where_it_was_lost() {
    let mut cluster = cluster(2, "");
    cluster.client(0).set(b"a", b"1").unwrap();
    cluster.wait_converged(WITHIN);
    let mut child = tail(
        &cluster.addr(1).to_string(),
        &["--from", "1", "--count", "3"],
    );
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(line(&mut out), "1 SET a 1\n");
    cluster.stop(1);
    let lost = line(&mut err);
    assert!(
        lost.contains("lost") && lost.ends_with("trying again, from index 2 on\n"),
        "{lost}"
    );
    cluster.client(0).set(b"b", b"22").unwrap();
    cluster.restart(1);
    // Its copy ends at entry 2, so that is not in its log.
    cluster.wait_converged(WITHIN);
    let mut said = line(&mut err);
    while !said.contains("connected again") {
        said = line(&mut err);
    }
    assert_eq!(
        said,
        "gopherstore-cli: connected again; missed entries 2 to 2\n"
    );
    cluster.client(0).set(b"c", b"333").unwrap();
    assert_eq!(line(&mut out), "3 SET c 3\n");
    // And without a loss where the log has it all.
    let proxy = Proxy::start(cluster.addr(0));
    let mut child_of_leader = tail(&proxy.addr().to_string(), &["--from", "3", "--count", "2"]);
    let mut leaders = BufReader::new(child_of_leader.stdout.take().unwrap());
    assert_eq!(line(&mut leaders), "3 SET c 3\n");
    proxy.refuse(true);
    proxy.cut(Cut::Reset);
    cluster.client(0).del(b"c").unwrap();
    proxy.refuse(false);
    assert_eq!(line(&mut leaders), "4 DEL c -\n");
    let output = in_time(move || child_of_leader.wait_with_output().unwrap());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.ends_with("connected again, going on from index 4\n"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(line(&mut out), "4 DEL c -\n");
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn what_the_log_no_longer_holds_is_said_to_be_missed() {
    let cluster = cluster(2, "backlog_bytes = 1048576");
    cluster.client(0).set(b"a", b"1").unwrap();
    let proxy = Proxy::start(cluster.addr(0));
    let mut child = tail(&proxy.addr().to_string(), &["--from", "1", "--count", "2"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(line(&mut out), "1 SET a 1\n");
    proxy.refuse(true);
    proxy.cut(Cut::End);
    let value = vec![b'v'; 60_000];
    cluster.write_all((0..60).map(|_| (&b"b"[..], &value[..])));
    proxy.refuse(false);
    let mut said = String::new();
    while !said.contains("missed") {
        said = line(&mut err);
        assert!(!said.is_empty(), "no end of the program");
    }
    assert_eq!(
        said,
        "gopherstore-cli: connected again; missed entries 2 to 61\n"
    );
    cluster.client(0).set(b"c", b"1").unwrap();
    assert_eq!(line(&mut out), "62 SET c 1\n");
    assert_eq!(in_time(move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn where_there_is_nothing_to_watch_one_line_says_so() {
    let addr = nobody();
    run_at(&addr, &["tail"], b"").expect_failure(5, &["cannot connect to", &addr]);
    let alone = Node::start();
    let addr = alone.addr.to_string();
    run_at(&addr, &["tail"], b"").expect_failure(
        3,
        &["nothing to watch: a cluster of one node keeps no log and has no followers; name another node with --addr\n"],
    );
    let cluster = cluster(2, "");
    let addr = cluster.addr(1).to_string();
    run_at(&addr, &["tail", "--from", "9"], b"").expect_failure(
        3,
        &["no entry after 8 yet, this node's last one is 0", "--from"],
    );
    for arguments in [
        ["tail", "--from", "0"],
        ["tail", "--count", "0"],
        ["tail", "-w", "xml"],
    ] {
        run(&arguments, b"").expect_failure(2, &["--help"]);
    }
    let mut silent = program();
    silent.args(["--addr", &addr, "tail", "--timeout", "50ms"]);
    // A heartbeat comes every 100 ms, so each silence is too long for it, and it goes on trying.
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
