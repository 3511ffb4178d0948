use std::collections::BTreeSet;

use crate::nodes::node::Node;
use crate::{Run, run_at};

fn start() -> (Node, impl Fn(&[&str]) -> Run) {
    let node = Node::start();
    let addr = node.addr.to_string();
    let run = move |words: &[&str]| run_at(&addr, words, b"");
    for (key, value) in [
        ("user:1", "ann"),
        ("user:2", "two words"),
        ("a b", ""),
        ("z", "last"),
    ] {
        run(&["set", key, value]).expect(0, "", "");
    }
    (node, run)
}

/// The parts of an output, whose order is of no meaning.
fn parts(run: &Run, end: char) -> BTreeSet<String> {
    assert_eq!((run.code, &*run.err), (0, ""), "{run:?}");
    let text = std::str::from_utf8(&run.out).unwrap();
    assert!(text.is_empty() || text.ends_with(end), "{text:?}");
    text.split_terminator(end).map(str::to_owned).collect()
}

fn set<const N: usize>(parts: [&str; N]) -> BTreeSet<String> {
    parts.map(str::to_owned).into()
}

#[test]
fn keys_are_printed_in_every_form() {
    let (_node, run) = start();
    let all = run(&["scan"]);
    assert_eq!(parts(&all, '\n'), set(["user:1", "user:2", "\"a b\"", "z"]));
    let users = run(&["scan", "user:"]);
    assert_eq!(parts(&users, '\n'), set(["user:1", "user:2"]));
    let users = run(&["scan", "user:", "--values"]);
    assert_eq!(
        parts(&users, '\n'),
        set(["user:1 ann", "user:2 \"two words\""])
    );
    let zeros = run(&["scan", "-0"]);
    assert_eq!(parts(&zeros, '\0'), set(["user:1", "user:2", "a b", "z"]));
    let zeros = run(&["scan", "-0", "user:2", "--values"]);
    assert_eq!(zeros.out, b"user:2\0two words\0");
    let objects = run(&["scan", "a", "-w", "json", "--values"]);
    objects.expect(0, "{\"key\":\"a b\",\"value\":\"\"}\n", "");
    run(&["scan", "--count"]).expect(0, "4\n", "");
    run(&["scan", "user:", "--count", "-w", "json"]).expect(0, "{\"count\":2}\n", "");
    run(&["scan", "nobody"]).expect(0, "", "");
    run(&["scan", "nobody", "--count"]).expect(0, "0\n", "");
}

#[test]
fn options_of_a_scan_that_contradict_each_other_are_exit_code_2() {
    let (_node, run) = start();
    run(&["scan", "--count", "--values"]).expect_failure(2, &["--count with --values"]);
    run(&["scan", "-0", "-w", "json"]).expect_failure(2, &["--null with -w json"]);
    run(&["del", "z", "--prefix", "z"]).expect_failure(2, &["a key together with --prefix"]);
    run(&["del"]).expect_failure(2, &["no key after del"]);
    run(&["del", "--prefix", "", "--yes"]).expect_failure(2, &["flush removes all"]);
}

#[test]
fn a_zero_with_a_dash_is_an_option_of_scan_and_a_value_elsewhere() {
    let (_node, run) = start();
    run(&["set", "k", "-0"]).expect(0, "", "");
    run(&["get", "k"]).expect(0, "-0", "");
    run(&["scan", "k", "-0"]).expect(0, "k\0", "");
}

#[test]
fn keys_with_a_prefix_and_all_keys_are_removed_once_that_is_confirmed() {
    let (_node, run) = start();
    let unconfirmed = "confirm it with --yes";
    run(&["del", "--prefix", "user:"]).expect_failure(2, &[unconfirmed]);
    run(&["flush"]).expect_failure(2, &[unconfirmed]);
    run(&["scan", "--count"]).expect(0, "4\n", "");
    run(&["del", "--prefix", "user:", "--yes"]).expect(0, "", "");
    run(&["scan", "--count"]).expect(0, "2\n", "");
    run(&["del", "--prefix", "user:", "--yes"])
        .expect_failure(1, &["no keys that begin with \"user:\""]);
    run(&["flush", "--yes"]).expect(0, "", "");
    run(&["flush", "--yes"]).expect(0, "", "");
    run(&["scan"]).expect(0, "", "");
}

#[test]
fn many_keys_are_removed_and_none_is_left() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let lines: String = (0..5_000).map(|key| format!("set key{key} v\n")).collect();
    assert_eq!(run_at(&addr, &[""; 0], lines.as_bytes()).code, 0);
    run_at(&addr, &["set", "other", "v"], b"").expect(0, "", "");
    run_at(&addr, &["scan", "key", "--count"], b"").expect(0, "5000\n", "");
    run_at(&addr, &["del", "--prefix", "key", "--yes"], b"").expect(0, "", "");
    run_at(&addr, &["scan"], b"").expect(0, "other\n", "");
}

#[test]
fn lines_have_scan_too_and_every_frame_is_shown() {
    let (node, _run) = start();
    let addr = node.addr.to_string();
    let lines = b"scan z\nscan nobody\nSCAN \"a b\"\n";
    run_at(&addr, &[""; 0], lines).expect(0, "z\n(no keys)\n\"a b\"\n", "");
    let shown = run_at(&addr, &["scan", "z", "--values", "--hex"], b"");
    assert_eq!((shown.code, &shown.out[..]), (0, &b"z last\n"[..]));
    for part in [
        "SCAN",
        "want       values",
        "partitions",
        "\"z\"",
        "\"last\"",
    ] {
        assert!(shown.err.contains(part), "{part}: {}", shown.err);
    }
}
