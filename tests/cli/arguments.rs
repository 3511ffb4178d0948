use crate::{finish, program, run, run_at, support::StubNode};

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
            "put",
            &["unknown command put", "set, get, del, ping, status, resync"],
        ),
        ("status now", &["one argument too many: now"]),
        (
            "resync",
            &[
                "all data",
                "its leader lacks",
                "lost for good",
                "--discard, which is the order",
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
        ("ping --config c.toml", &["--config without --node"]),
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
}

#[test]
fn a_key_that_is_too_long_is_told_the_limit() {
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
