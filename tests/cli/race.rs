use std::{os::unix::process::ExitStatusExt, time::Duration};

use serde_json::Value;

use crate::{
    bench::cannot_receive,
    nodes::{
        cluster::{Cluster, Options},
        node::{PATIENCE, wait_for},
        proxy::Way,
        tools,
    },
    program, run, run_at, start,
    status::ConfigFile,
    support::{Peer, StubNode, next_frame, response, unused_addr},
};

fn cluster(proxies: bool) -> Cluster {
    let options = Options {
        // A link that is held is to stay.
        replication: "heartbeat_interval_ms = 100\nleader_timeout_ms = 60000".to_owned(),
        proxies,
        ..Options::default()
    };
    let cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(PATIENCE);
    cluster.client(0).set(b"theirs", b"v").unwrap();
    cluster.wait_converged(PATIENCE);
    cluster
}

/// That nothing is left but what was there.
#[track_caller]
fn expect_clean(cluster: &Cluster) {
    assert_eq!(cluster.number(0, "keys"), 1, "{}", cluster.statuses());
    let value = cluster.client(0).get(b"theirs").unwrap();
    assert_eq!(value.as_deref(), Some(b"v".as_slice()));
}

#[test]
fn the_distribution_is_of_as_many_writes_as_were_asked_for() {
    let cluster = cluster(false);
    let follower = cluster.addr(1).to_string();
    let table = run_at(
        &follower,
        &[
            "race",
            "--on",
            &follower,
            "--count",
            "50",
            "--interval",
            "1ms",
        ],
        b"",
    );
    assert_eq!((table.code, &*table.err), (0, ""), "{table:?}");
    let text = String::from_utf8(table.out).unwrap();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let expected = [
        "from", "min", "p50", "p90", "p99", "p99.9", "max", "read", "writes", "reads",
    ];
    assert_eq!(names, expected, "{text}");
    assert!(text.contains("\nwrites 50, "), "{text}");
    expect_clean(&cluster);

    // By name, from what a node lists; the leader is whom the follower names.
    let leader = cluster.addr(0).to_string();
    let json = run_at(
        &leader,
        &[
            "race",
            "--on",
            "n2",
            "--count=20",
            "--interval=0s",
            "-w",
            "json",
        ],
        b"",
    );
    assert_eq!((json.code, &*json.err), (0, ""), "{json:?}");
    let value: Value = serde_json::from_slice(&json.out).unwrap();
    assert_eq!(
        (&value["leader"], &value["follower"]),
        (&leader.into(), &follower.into())
    );
    assert_eq!(
        (&value["node"], &value["writes"]),
        (&"n2".into(), &20.into())
    );
    let us = |name: &str| {
        value[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {value}"))
    };
    let times = ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"].map(us);
    assert!(times.is_sorted() && times[5] > 0, "{value}");
    assert_eq!(us("reads"), us("writes") + us("stale_reads"), "{value}");
    assert!(us("stale_writes") <= us("stale_reads").min(20), "{value}");
    expect_clean(&cluster);
}

#[test]
fn a_slow_link_is_seen_in_the_figures() {
    let cluster = cluster(true);
    cluster
        .link(1, 0)
        .delay(Way::Down, Duration::from_millis(30));
    let config = ConfigFile::of(&cluster);
    let line = "race --on n2 --duration 1s --interval 1ms -w json --config";
    let run = run(
        &line.split(' ').chain([config.path()]).collect::<Vec<_>>(),
        b"",
    );
    assert_eq!((run.code, &*run.err), (0, ""), "{run:?}");
    let value: Value = serde_json::from_slice(&run.out).unwrap();
    // A little less than the delay, which begins before the leader's response has come.
    assert!(value["p50_us"].as_u64() >= Some(20_000), "{value}");
    assert!(value["stale_reads"].as_u64() >= Some(1), "{value}");
    assert!(
        (1..=60).contains(&value["writes"].as_u64().unwrap()),
        "{value}"
    );
    expect_clean(&cluster);
}

#[test]
fn a_write_that_is_never_seen_is_a_timeout_and_leaves_nothing() {
    let cluster = cluster(true);
    cluster.link(1, 0).hold(Way::Down);
    let config = ConfigFile::of(&cluster);
    let line = "race --on n2 --timeout 300ms --config";
    let run = run(
        &line.split(' ').chain([config.path()]).collect::<Vec<_>>(),
        b"",
    );
    let follower = cluster.addr(1).to_string();
    run.expect_failure(
        6,
        &[
            "write 1 is not seen on",
            &follower,
            "after 300ms",
            "status --cluster",
        ],
    );
    expect_clean(&cluster);
}

#[test]
fn results_before_a_failure_are_printed() {
    let cluster = cluster(true);
    let config = ConfigFile::of(&cluster);
    let line = "race --on n2 --timeout 500ms --count 1000000 --interval 1ms -w json --config";
    let line = line.split(' ').chain([config.path()]);
    let child = start(program().args(line.collect::<Vec<_>>()));
    wait_for("some writes", || {
        (cluster.number(0, "index") > 20).then_some(())
    });
    cluster.link(1, 0).hold(Way::Down);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["is_partial"], true);
    assert!(value["writes"].as_u64() > Some(0), "{value}");
    expect_clean(&cluster);
    // Nothing was.
    let line = "race --on n2 --timeout 300ms -w json --config";
    let run = run(
        &line.split(' ').chain([config.path()]).collect::<Vec<_>>(),
        b"",
    );
    assert_eq!(run.code, 6, "{run:?}");
    let value: Value = serde_json::from_slice(&run.out).unwrap();
    assert_eq!(
        (&value["writes"], &value["p50_us"]),
        (&0.into(), &Value::Null)
    );
}

#[test]
fn a_duration_ends_it_during_a_long_pause() {
    let cluster = cluster(false);
    let follower = cluster.addr(1).to_string();
    let line = [
        "race",
        "--on",
        &follower,
        "--duration",
        "200ms",
        "--interval",
        "1000000days",
        "-w",
        "json",
    ];
    let run = run_at(&follower, &line, b"");
    assert_eq!((run.code, &*run.err), (0, ""), "{run:?}");
    let value: Value = serde_json::from_slice(&run.out).unwrap();
    assert_eq!(value["writes"], 1);
    expect_clean(&cluster);
}

#[test]
fn a_signal_ends_it_with_what_there_is_and_leaves_nothing() {
    let cluster = cluster(false);
    let follower = cluster.addr(1).to_string();
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        if cannot_receive(name) {
            continue;
        }
        let line = ["race", "--on", &follower, "--count", "1000000"];
        let child = start(program().args(line).args(["--interval", "1ms"]));
        let before = cluster.number(0, "index");
        wait_for("some writes", || {
            (cluster.number(0, "index") > before + 20).then_some(())
        });
        assert!(tools::signal(child.id(), name));
        let output = child.wait_with_output().unwrap();
        // By the signal, so that a script around it sees what ended it.
        assert_eq!(
            (output.status.signal(), &*output.stderr),
            (Some(number), b"".as_slice())
        );
        assert!(output.stdout.starts_with(b"from "), "{output:?}");
        expect_clean(&cluster);
    }
}

#[test]
fn a_race_that_is_not_possible_names_the_reason() {
    let cluster = cluster(false);
    let leader = cluster.addr(0).to_string();
    let on = |node: &str| run_at(&leader, &["race", "--on", node], b"");
    on(&leader).expect_failure(2, &["leads", "name a follower"]);
    on("n1").expect_failure(2, &["leads", "name a follower"]);
    on("n9").expect_failure(2, &["knows no address of \"n9\", but of n2"]);
    let gone = unused_addr();
    on(&gone).expect_failure(5, &[&format!("cannot connect to {gone}")]);
    let node = StubNode::start();
    on(node.addr()).expect_failure(4, &["names no leader", "--config"]);
    node.set_refusing();
    on(node.addr()).expect_failure(3, &["n1 refuses its leader"]);
    let old = Peer::start(|_, mut stream| {
        use std::io::Write;
        while next_frame(&mut stream).is_some()
            && stream
                .write_all(&response(1, b"unknown opcode 0x40"))
                .is_ok()
        {}
    });
    on(&old.addr).expect_failure(3, &["unknown opcode 0x40"]);
    run_at(&leader, &["race"], b"").expect_failure(2, &["missing", "--on"]);
    for (option, value, part) in [
        ("--count", "0", "whole number from 1 to "),
        ("--interval", "soon", "10ms"),
        ("--duration", "0s", "5s"),
        ("-w", "lines", "table and json"),
    ] {
        run_at(&leader, &["race", "--on", "n2", option, value], b"").expect_failure(2, &[part]);
    }
    expect_clean(&cluster);
}
