//! `batch` against real nodes: together or not at all, with the lines named.

use std::fs;

use crate::{Run, nodes::cluster::Cluster, nodes::node::Node, run, run_at, text};

/// A real node, and a function that runs the program against it with these words and this standard input.
fn node() -> (Node, impl Fn(&[&str], &str) -> Run) {
    let node = Node::start();
    let addr = node.addr.to_string();
    (node, move |words: &[&str], input: &str| {
        run_at(&addr, words, input.as_bytes())
    })
}

#[test]
fn a_batch_prints_a_line_for_each_response() {
    let (_node, run) = node();
    let input = "# every command that may be in a batch\n\
                 set a 1\nget a\nput b \"two words\" --return-old\nget b\nincr a 9\ndecr a\nttl a\n\
                 expire a 1h\npersist a\ntake b\ndel b\nexists b\nexists a\nget b";
    let expected = "OK\n1\n(none)\n\"two words\"\n10\n9\nnever\nOK\nOK\n\"two words\"\n(not found)\n\
                    (not found)\nOK\n(not found)\n";
    let expected = expected.replace("\"two words\"", "two words");
    run(&["batch"], input).expect(0, &expected, "");
    run(&["batch", "-"], "get a\n").expect(0, "9\n", "");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("commands");
    fs::write(&file, "incr a\nincr a\n").unwrap();
    run(&["batch", text(&file)], "").expect(0, "10\n11\n", "");
    // Within lines.
    let lines = format!("batch '{}'\nget a\n", text(&file));
    run(&[], &lines).expect(0, "12\n13\n13\n", "");
}

#[test]
fn a_conflict_names_the_line_and_changes_nothing() {
    let (_node, run) = node();
    let payment = "# once\nset balance 70\n\nput payment paid --if-absent --return-old\n";
    run(&["batch"], payment).expect(0, "OK\n(none)\n", "");
    run(&["set", "balance", "100"], "").expect(0, "", "");
    let again = run(&["batch"], payment);
    let message = "gopherstore-cli: conflict: line 4: \"payment\" exists; nothing was changed\n";
    again.expect(9, "paid\n", message);
    run(&["get", "balance"], "").expect(0, "100", "");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payment");
    fs::write(&file, payment).unwrap();
    let lines = format!("batch {}\n", text(&file));
    run(&[], &lines).expect(9, "(line 4) (conflict) paid\n", "");
}

#[test]
fn a_refusal_names_the_line_and_changes_nothing() {
    let (_node, run) = node();
    run(&["set", "k", "text"], "").expect(0, "", "");
    run(&["batch"], "set a 1\n\nincr k\n").expect_failure(
        3,
        &["the node refused the request: line 3: the value is no decimal number of 64 bits"],
    );
    run(&["get", "a"], "").expect_failure(1, &["not found"]);
    run(&["batch"], "set a 1\nget\n").expect_failure(2, &["line 2: 0 given after get"]);
    run(&["batch"], "set a 1\nscan\n").expect_failure(2, &["line 2: scan may not be in a batch"]);
    run(&["batch"], "").expect_failure(2, &["no commands for a batch"]);
    run(&["batch"], &"get k\n".repeat(65)).expect_failure(2, &["line 65: a BATCH has 64 at most"]);
    run(&["batch"], &format!("set k {}\n", "v".repeat(4_089)))
        .expect_failure(2, &["line 1: frame of 4097 bytes, limit 4096"]);
    run(&["batch", "/nonexistent"], "").expect_failure(8, &["cannot read /nonexistent"]);
    run(&[], "batch -\nget k\n").expect(
        2,
        "text\n",
        "gopherstore-cli: line 1: - is standard input, which has the lines already; write batch FILE\n",
    );
    run(&["get", "a"], "").expect_failure(1, &["not found"]);
}

#[test]
fn the_most_commands_of_the_greatest_length_fit() {
    let (_node, run) = node();
    let value = "v".repeat(4_086);
    let lines: String = (0..64).map(|at| format!("set {at:03} {value}\n")).collect();
    run(&["batch"], &lines).expect(0, &"OK\n".repeat(64), "");
    let lines: String = (0..64).map(|at| format!("get {at:03}\n")).collect();
    run(&["batch"], &lines).expect(0, &format!("{value}\n").repeat(64), "");
}

#[test]
fn a_batch_goes_to_the_leader_unless_it_only_reads() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(std::time::Duration::from_secs(15));
    let follower = cluster.addr(1).to_string();
    let write = b"set k v\nincr n\n";
    run_at(&follower, &["--no-redirect", "batch"], write).expect_failure(4, &["not the leader"]);
    run_at(&follower, &["batch"], write).expect(0, "OK\n1\n", "");
    cluster.wait_converged(std::time::Duration::from_secs(15));
    run_at(&follower, &["--no-redirect", "batch"], b"get k\nget n\n").expect(0, "v\n1\n", "");
    // All tokens of a batch are the position of its one record.
    let tokens = run_at(&follower, &["batch"], b"put a 1 --token\nput b 2 --token\n");
    let out = String::from_utf8(tokens.out).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines.len() == 2 && lines[0] == lines[1] && lines[0].len() == 48,
        "{out}"
    );
}

#[test]
fn encode_prints_the_frame_of_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("commands");
    fs::write(&file, "set a 1\nget a\n").unwrap();
    let frame = "0f 0000 00000011 0100010000000161310200010000000061\n";
    run(&["encode", "batch", text(&file)], b"").expect(0, frame, "");
    run(&["encode", "batch"], b"set a 1\nget a\n").expect(0, frame, "");
    run(&["encode", "batch", "-"], b"set a 1\nget a\n").expect(0, frame, "");
    run(&["encode", "batch"], b"ping\n").expect_failure(2, &["line 1: ping may not be in a batch"]);
}
