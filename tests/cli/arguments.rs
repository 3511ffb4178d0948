use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    finish,
    nodes::{cluster::Cluster, node::PATIENCE},
    program, run, run_at,
    status::ConfigFile,
    support::{Peer, StubNode, next_frame, response, unused_addr, wait_for_close},
};

#[test]
fn values_that_look_like_options_or_commands_are_values() {
    let node = StubNode::start();
    for value in ["-5", "-.5", "help", "get", "", "=", "a b", "\"", "\u{e4}"] {
        run_at(node.addr(), &["set", "k", value], b"").expect(0, "", "");
        assert_eq!(node.value(b"k"), Some(value.as_bytes().to_vec()));
    }
    for value in ["--weird", "-x", "--hex", "--help", "-h", "--"] {
        run_at(node.addr(), &["set", "k", "--", value], b"").expect(0, "", "");
        assert_eq!(node.value(b"k"), Some(value.as_bytes().to_vec()));
    }
    node.insert(b"help", b"me");
    run_at(node.addr(), &["get", "help"], b"").expect(0, "me", "");
}

#[test]
fn options_may_stand_anywhere() {
    let node = StubNode::start();
    let joined = format!("--addr={}", node.addr());
    run(&["ping", &joined], b"").expect(0, "PONG\n", "");
    run(&[&joined, "ping"], b"").expect(0, "PONG\n", "");
    let run = run(
        &["set", &joined, "k", "--timeout=10s", "v", "--no-redirect"],
        b"",
    );
    run.expect(0, "", "");
}

#[test]
fn mistakes_are_one_line_and_exit_code_2() {
    for (line, parts) in [
        (
            "set k --weird",
            &["unknown option --weird", "put -- before it"][..],
        ),
        ("set k", &["missing value"]),
        ("get", &["missing key"]),
        ("get a b", &["one argument too many: b"]),
        (
            "putt",
            &[
                "unknown command putt",
                "set, get, del, put, take, incr, decr, expire, persist, ttl, exists, batch, sync, ping, status, resync",
            ],
        ),
        ("status now", &["one argument too many: now"]),
        (
            "resync",
            &[
                "all data",
                "its leader lacks",
                "lost for good",
                "confirm that with --discard",
            ],
        ),
        ("resync n1 --discard", &["one argument too many: n1"]),
        ("status --discard", &["--discard goes with resync alone"]),
        ("--discard", &["--discard goes with resync alone"]),
        ("ping --timeout 0s", &["--timeout", "5s"]),
        ("ping --timeout soon", &["'soon'", "5s"]),
        ("ping --addr nowhere", &["nowhere", "HOST:PORT"]),
        ("ping --addr h:99999", &["h:99999", "HOST:PORT"]),
        ("ping --addr", &["no value after --addr"]),
        ("ping --addr h:1,nowhere", &["nowhere", "HOST:PORT"]),
        ("ping --addr h:1 --addr=", &["\"\"", "HOST:PORT"]),
        (
            "resync --discard --addr h:1 --addr h:2",
            &["to one node", "one --addr"],
        ),
        (
            "resync --discard --config c.toml",
            &["to one node", "--config and --node"],
        ),
        ("ping --node n1", &["--node without --config"]),
        ("ping --addr h:1 --node n1", &["--addr together with"]),
        ("ping --hex=1", &["--hex takes no value"]),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let run = run(&arguments, b"");
        run.expect_failure(2, parts);
        assert!(run.err.ends_with("see gopherstore-cli --help\n"), "{run:?}");
    }
    let mut command = program();
    command.arg("ping").env("GOPHERSTORE_ADDR", "nowhere");
    finish(&mut command, b"").expect_failure(2, &["GOPHERSTORE_ADDR \"nowhere\""]);
    run(&["ping", "--config", "/none"], b"").expect_failure(2, &["/none"]);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    // Whether a node is at the default address or not: it is the one that was asked.
    let ask = |command: &mut Command| {
        let run = finish(command.arg("ping").args(["--timeout", "2s"]), b"");
        (run.code, run.err.contains("127.0.0.1:8000"))
    };
    let unset = ask(&mut program());
    assert!(unset == (0, false) || unset.1, "{unset:?}");
    assert_eq!(ask(program().env("GOPHERSTORE_ADDR", "")), unset);
    // --addr stands above it, whatever it holds.
    let node = StubNode::start();
    let mut command = program();
    command.env("GOPHERSTORE_ADDR", "nowhere");
    finish(command.args(["ping", "--addr", node.addr()]), b"").expect(0, "PONG\n", "");
    // Without a home, a terminal or colours there is nothing that a command lacks.
    let mut command = program();
    for name in ["HOME", "TERM", "NO_COLOR", "XDG_STATE_HOME"] {
        command.env(name, "");
    }
    finish(command.args(["ping", "--addr", node.addr()]), b"").expect(0, "PONG\n", "");
}

#[test]
fn the_first_of_several_addresses_that_answers_is_taken() {
    let node = StubNode::start();
    node.insert(b"k", b"v");
    let other = StubNode::start();
    other.insert(b"k", b"other");
    let gone = unused_addr();
    let full = Peer::start(|_, mut stream| {
        use std::io::Write;
        while next_frame(&mut stream).is_some()
            && stream
                .write_all(&response(1, b"too many connections"))
                .is_ok()
        {}
    });
    let list = format!("{gone},{},{},{}", full.addr, node.addr(), other.addr());
    run(&["get", "k", "--addr", &list], b"").expect(0, "v", "");
    let repeated = [
        "get",
        "--addr",
        &gone,
        "k",
        "--addr",
        other.addr(),
        "--addr",
        node.addr(),
    ];
    run(&repeated, b"").expect(0, "other", "");
    let mut command = program();
    command.env("GOPHERSTORE_ADDR", &list);
    finish(command.args(["get", "k"]), b"").expect(0, "v", "");
    // Lines go on where they began.
    run::<&str>(&["--addr", &list], b"get k\nset k w\nget k\n").expect(0, "v\nOK\nw\n", "");
    let none = format!("{gone},{}", full.addr);
    run(&["get", "k", "--addr", &none], b"").expect_failure(
        5,
        &[
            &format!("no node answers at {gone} (cannot connect to"),
            &format!("{} (too many connections)", full.addr),
        ],
    );
}

#[test]
fn a_file_without_a_name_finds_the_leader() {
    let cluster = Cluster::start(3);
    cluster.wait_converged(PATIENCE);
    let at = |node: usize| cluster.addr(node).to_string();
    let config = ConfigFile::of(&cluster);
    let with = |config: &ConfigFile, words: &[&str]| {
        run(&[words, &["--config", config.path()]].concat(), b"")
    };
    with(&config, &["set", "k", "v", "--no-redirect"]).expect(0, "", "");
    with(&config, &["get", "k"]).expect(0, "v", "");
    // The file may be wrong about who leads, and its leader may be gone, or be somebody else.
    let gone = unused_addr();
    let nodes = [("n2", at(1)), ("n3", at(2)), ("n1", at(0))];
    let wrong = ConfigFile::new("test", &nodes);
    with(&wrong, &["set", "k", "w", "--no-redirect"]).expect(0, "", "");
    with(&wrong, &["get", "k"]).expect(0, "w", "");
    let dead = ConfigFile::new("test", &[("n9", gone.clone()), ("n1", at(0))]);
    with(&dead, &["del", "k", "--no-redirect"]).expect(0, "", "");
    let alone = StubNode::start();
    let stranger = ConfigFile::new("test", &[("n2", alone.addr().to_owned()), ("n1", at(0))]);
    with(&stranger, &["set", "k", "x", "--no-redirect"]).expect(0, "", "");
    assert_eq!(alone.writes(), 0);
    // Nobody leads: what each says, and what the leader's fault is.
    let none = ConfigFile::new(
        "test",
        &[("n1", gone.clone()), ("n2", at(1)), ("n3", at(0))],
    );
    with(&none, &["get", "k"]).expect_failure(
        5,
        &[
            &format!("n1 gives no response (cannot connect to {gone}"),
            "n2 is a follower",
            "n3 is n1",
            "--node",
        ],
    );
    let node = ["get", "k", "--node", "n2"];
    cluster.wait_converged(PATIENCE);
    with(&none, &node).expect(0, "x", "");
}

#[test]
fn a_silent_leader_in_the_file_does_not_delay_the_real_one() {
    let silent = Peer::start(|_, mut stream| wait_for_close(&mut stream));
    let says = |text: &'static str| {
        Peer::start(move |_, mut stream| {
            use std::io::Write;
            while next_frame(&mut stream).is_some()
                && stream.write_all(&response(0, text.as_bytes())).is_ok()
            {}
        })
    };
    let leads = says("node: n2\ncluster: test\nrole: leader\nstate: serving\n");
    let nodes = [("n1", silent.addr.clone()), ("n2", leads.addr.clone())];
    let config = ConfigFile::new("test", &nodes);
    let began = Instant::now();
    let found = run(&["status", "--node", "n2", "--config", config.path()], b"");
    assert_eq!(found.code, 0, "{found:?}");
    let line = ["ping", "--timeout", "60s", "--config", config.path()];
    // It is no node that knows PING, which shows that it was asked.
    run(&line, b"").expect_failure(7, &[&leads.addr]);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_error_of_a_key_that_is_too_long_names_the_limit() {
    let node = StubNode::start();
    let run = run_at(node.addr(), &["get", &"k".repeat(65_536)], b"");
    run.expect_failure(2, &["key of 65536 bytes, limit 65535"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for line in [
        "--help",
        "-h",
        "help",
        "set --help",
        "help get",
        "ping -h",
        "resync -h",
        "help status",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let run = run(&arguments, b"");
        assert_eq!((run.code, &*run.err), (0, ""), "{line}");
        assert!(run.out.starts_with(b"Usage: gopherstore-cli"), "{run:?}");
        assert!(run.out.ends_with(b"\n") && !run.out.ends_with(b"\n\n"));
    }
    let version = format!("gopherstore-cli {}\n", env!("CARGO_PKG_VERSION"));
    for line in ["--version", "-V", "set --version"] {
        let arguments: Vec<&str> = line.split(' ').collect();
        run(&arguments, b"").expect(0, &version, "");
    }
}
