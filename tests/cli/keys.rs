//! `put`, `take`, `expire`, `persist`, `ttl`, `exists`, and `incr` with options, against a real node.

use gopherstore::wire::Token;

use crate::{Run, nodes::cluster::Cluster, nodes::node::Node, run, run_at};

/// A real node, and a function that runs the program against it.
fn node() -> (Node, impl Fn(&[&str]) -> Run) {
    let node = Node::start();
    let addr = node.addr.to_string();
    (node, move |words: &[&str]| run_at(&addr, words, b""))
}

#[test]
fn put_stores_under_a_condition_and_a_conflict_is_exit_code_9() {
    let (_node, run) = node();
    run(&["put", "k", "v"]).expect(0, "", "");
    run(&["get", "k"]).expect(0, "v", "");
    run(&["put", "k", "w", "--if-absent"])
        .expect_failure(9, &["conflict: \"k\" exists; nothing was changed"]);
    run(&["put", "other", "w", "--if-present"])
        .expect_failure(9, &["conflict: \"other\" does not exist"]);
    run(&["put", "other", "w", "--if-equals", "v"])
        .expect_failure(9, &["conflict: \"other\" does not exist"]);
    run(&["put", "k", "w", "--if-equals", "x"])
        .expect_failure(9, &["conflict: \"k\" has another value"]);
    run(&["put", "k", "w", "--if-equals", "v", "--return-old"]).expect(0, "v", "");
    run(&["put", "new", "1", "--if-absent", "--return-old"]).expect(0, "", "");
    // The hash of "w", as xxhsum -H2 prints it.
    let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(b"w"));
    run(&["put", "k", "x", "--if-hash", &hash]).expect(0, "", "");
    run(&["put", "k", "y", "--if-hash", &hash]).expect_failure(9, &["has another value"]);
    let conflict = run(&["put", "k", "y", "--if-absent", "--return-old"]);
    assert_eq!((conflict.code, &*conflict.out), (9, &b"x"[..]));
    run(&["get", "k"]).expect(0, "x", "");
}

#[test]
fn a_value_of_put_can_come_from_standard_input_or_look_like_an_option() {
    let (node, run) = node();
    let addr = node.addr.to_string();
    let value: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    run_at(&addr, &["put", "k", "-", "--return-old"], &value).expect(0, "", "");
    let got = run_at(&addr, &["take", "k"], b"");
    assert!(got.code == 0 && got.out == value, "{got:?}");
    run(&["put", "--if-absent", "k", "--", "--weird"]).expect(0, "", "");
    run(&["get", "k"]).expect(0, "--weird", "");
    run(&["put", "k", "-5", "--if-equals=--weird"]).expect(0, "", "");
    run(&["get", "k"]).expect(0, "-5", "");
}

#[test]
fn take_prints_what_it_removes() {
    let (_node, run) = node();
    run(&["take", "k"]).expect_failure(1, &["not found: \"k\""]);
    run(&["set", "k", "v"]).expect(0, "", "");
    run(&["take", "k", "--if-equals", "x", "--no-value"])
        .expect_failure(9, &["conflict: \"k\" has another value"]);
    run(&["take", "k", "--if-equals", "v"]).expect(0, "v", "");
    run(&["take", "k", "--if-equals", "v"]).expect_failure(9, &["\"k\" does not exist"]);
    run(&["set", "k", "v"]).expect(0, "", "");
    run(&["take", "k", "--no-value"]).expect(0, "", "");
    run(&["get", "k"]).expect_failure(1, &["not found"]);
}

#[test]
fn a_quiet_command_tells_by_its_exit_code_alone() {
    let (_node, run) = node();
    run(&["--quiet", "get", "k"]).expect(1, "", "");
    run(&["exists", "k", "-q"]).expect(1, "", "");
    run(&["-q", "expire", "k", "30s"]).expect(1, "", "");
    run(&["-q", "take", "k"]).expect(1, "", "");
    run(&["-q", "put", "k", "v", "--if-present"]).expect(9, "", "");
    run(&["-q", "set", "k", "v"]).expect(0, "", "");
    run(&["-q", "get", "k"]).expect(0, "v", "");
    // The parts that were asked for are printed.
    run(&["-q", "put", "k", "w", "--if-absent", "--return-old"]).expect(9, "v", "");
    run(&["-q", "take", "k", "--if-equals", "w", "--no-value"]).expect(9, "", "");
    // Other failures have their message.
    run(&["-q", "incr", "k"]).expect_failure(3, &["no decimal number"]);
    run(&["-q", "take", "k"]).expect(0, "v", "");
}

/// The number of milliseconds that `ttl` prints.
fn left(run: &Run) -> u64 {
    let text = String::from_utf8_lossy(&run.out).into_owned();
    let ms = text.strip_suffix("ms\n").and_then(|ms| ms.parse().ok());
    ms.unwrap_or_else(|| panic!("{run:?}"))
}

#[test]
fn keys_expire_when_they_are_told_to() {
    let (_node, run) = node();
    run(&["ttl", "k"]).expect_failure(1, &["not found"]);
    run(&["expire", "k", "30s"]).expect_failure(1, &["not found"]);
    run(&["persist", "k"]).expect_failure(1, &["not found"]);
    run(&["exists", "k"]).expect_failure(1, &["not found"]);
    run(&["set", "k", "v"]).expect(0, "", "");
    run(&["exists", "k"]).expect(0, "", "");
    run(&["ttl", "k"]).expect(0, "never\n", "");
    run(&["expire", "k", "30s"]).expect(0, "", "");
    assert!((1..=30_000).contains(&left(&run(&["ttl", "k"]))));
    run(&["put", "k", "w", "--keep-ttl"]).expect(0, "", "");
    assert!((1..=30_000).contains(&left(&run(&["ttl", "k"]))));
    run(&["persist", "k"]).expect(0, "", "");
    run(&["ttl", "k"]).expect(0, "never\n", "");
    run(&["put", "k", "x", "--at", "2100-01-01T00:00:00Z"]).expect(0, "", "");
    assert!(left(&run(&["ttl", "k"])) > 1_000_000_000_000);
    // A date in the past: it expires at once.
    run(&["expire", "k", "2001-02-03"]).expect_failure(2, &["2030-01-01T00:00:00Z"]);
    run(&["expire", "k", "2001-02-03T04:05:06Z"]).expect(0, "", "");
    run(&["exists", "k"]).expect_failure(1, &["not found"]);
    run(&["put", "k", "y", "--if-absent", "--ttl", "1h"]).expect(0, "", "");
    assert!((1..=3_600_000).contains(&left(&run(&["ttl", "k"]))));
}

#[test]
fn a_number_begins_where_it_is_told_and_keeps_its_expiry() {
    let (_node, run) = node();
    run(&["decr", "tickets", "--start", "500"]).expect(0, "499\n", "");
    run(&["decr", "tickets", "9", "--start", "500"]).expect(0, "490\n", "");
    run(&["ttl", "tickets"]).expect(0, "never\n", "");
    run(&["incr", "rate", "--ttl", "60s"]).expect(0, "1\n", "");
    let before = left(&run(&["ttl", "rate"]));
    run(&["incr", "rate", "5", "--ttl", "10h"]).expect(0, "6\n", "");
    let after = left(&run(&["ttl", "rate"]));
    assert!(after <= before && before <= 60_000, "{before} {after}");
}

#[test]
fn options_that_contradict_or_say_nothing_are_usage_errors() {
    let (_node, run) = node();
    for (words, message) in [
        (
            &["put", "k", "v", "--if-absent", "--keep-ttl"][..],
            "--if-absent and --keep-ttl contradict each other",
        ),
        (
            &["put", "k", "v", "--if-absent", "--if-equals", "v"],
            "--if-absent and --if-equals contradict each other",
        ),
        (
            &["put", "k", "v", "--ttl", "1s", "--keep-ttl"],
            "--ttl and --keep-ttl contradict each other",
        ),
        (
            &[
                "put",
                "k",
                "v",
                "--ttl",
                "1s",
                "--at",
                "2030-01-01T00:00:00Z",
            ],
            "--ttl and --at contradict each other",
        ),
        (&["put", "k", "v", "--ttl", "0s"], "expires after no time"),
        (
            &["put", "k", "v", "--ttl", "soon"],
            "write a time such as 30s",
        ),
        (&["put", "k", "v", "--at", "soon"], "write one such as"),
        (
            &["expire", "k", "1960-01-01T00:00:00Z"],
            "no date from 1970 on",
        ),
        (
            &["put", "k", "v", "--if-hash", "12"],
            "32 hexadecimal digits",
        ),
        (
            &[
                "take",
                "k",
                "--if-equals",
                "a",
                "--if-hash",
                &"0".repeat(32),
            ],
            "--if-equals and --if-hash contradict each other",
        ),
        (
            &["expire", "k", "soon"],
            "write a time such as 30s, or a date",
        ),
        (&["expire", "k"], "missing time"),
        (&["incr", "k", "--start", "x"], "whole number"),
    ] {
        run(words).expect_failure(2, &[message]);
    }
    let long = "x".repeat(4_097);
    run(&["put", "k", "v", "--if-equals", &long])
        .expect_failure(2, &["expected_len 4097 with if 3, limit 4096"]);
    run(&["exists", "k"]).expect_failure(1, &["not found"]);
}

#[test]
fn lines_take_the_same_options() {
    let (node, run) = node();
    let lines = b"put k v --if-absent\n\
        put k w --if-absent --return-old\n\
        put k 'two words' --if-equals v --return-old\n\
        put n 1 --return-old\n\
        exists k\nexists nobody\nttl k\npersist k\n\
        expire k 2001-02-03T04:05:06Z\nexists k\n\
        incr c 5 --start 10\n\
        take c --if-equals 15\n\
        put k v --ttl\n\
        put k\n\
        take k --colour\n";
    let run_lines = run_at(&node.addr.to_string(), &[""; 0], lines);
    let expected =
        "OK\n(conflict) v\nv\n(none)\nOK\n(not found)\nnever\nOK\nOK\n(not found)\n15\n15\n";
    assert_eq!(String::from_utf8_lossy(&run_lines.out), expected);
    assert_eq!(run_lines.code, 9);
    for part in [
        "line 13: no value after --ttl; write put KEY VALUE [OPTIONS]",
        "line 14: missing value; write put KEY VALUE [OPTIONS]",
        "line 15: unknown option --colour; if it is meant as a value, put -- before it; write take KEY [OPTIONS]",
    ] {
        assert!(run_lines.err.contains(part), "{run_lines:?}");
    }
    run(&["get", "k"]).expect_failure(1, &["not found"]);
}

#[test]
fn tokens_rise_and_a_node_without_a_log_has_none() {
    let (_node, run_alone) = node();
    run_alone(&["put", "k", "v", "--token"]).expect_failure(3, &["want 0x02: a token needs a log"]);
    run_alone(&["take", "k", "--token"]).expect_failure(3, &["want 0x02: a token needs a log"]);
    run_alone(&["exists", "k"]).expect_failure(1, &["not found"]);

    let cluster = Cluster::start(2);
    cluster.wait_converged(std::time::Duration::from_secs(15));
    let run = |words: &[&str]| run_at(&cluster.addr(0).to_string(), words, b"");
    let token = |run: &Run| -> Token {
        let text = String::from_utf8_lossy(&run.out).into_owned();
        text.trim_end()
            .parse()
            .unwrap_or_else(|_| panic!("{run:?}"))
    };
    let first = token(&run(&["put", "lock", "a", "--if-absent", "--token"]));
    let second = token(&run(&["put", "lock", "b", "--token"]));
    assert!(first < second && first.epoch == second.epoch);
    assert_eq!(second.index, first.index + 1);
    let taken = run(&["take", "lock", "--token"]);
    let text = String::from_utf8_lossy(&taken.out).into_owned();
    let (third, value) = text.split_once('\n').unwrap();
    assert!(second < third.parse().unwrap());
    assert_eq!(value, "b");
    let lines = b"put lock c --token --return-old\n";
    let both = run_at(&cluster.addr(0).to_string(), &[""; 0], lines);
    assert_eq!((both.code, both.out.len()), (0, 49), "{both:?}");
}

#[test]
fn encode_and_decode_know_conditions_by_their_names() {
    let line = "put lock me --if-absent --ttl 30s --token";
    let encoded = run(&["encode", line], b"");
    let frame = "06 0004 0000000f 6c6f636b 01010200000000000075300000\
        6d65\n";
    encoded.expect(0, frame, "");
    let decoded = run(&["decode", "--as", "request"], frame.as_bytes());
    let text = String::from_utf8_lossy(&decoded.out).into_owned();
    for part in [
        "if         absent",
        "expiry     ttl",
        "want       token",
        "time       30,000",
    ] {
        assert!(text.contains(part), "{text}");
    }
    run(&["encode", "setat", "k", "0", "v"], b"").expect_failure(
        2,
        &["deadline 0, must be 1 at least; write setat KEY DEADLINE [VALUE]"],
    );
}
