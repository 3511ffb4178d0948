//! `sync`: the position of a node, and the wait for one.

use std::time::Duration;

use gopherstore::wire::Token;

use crate::{nodes::cluster::Cluster, nodes::node::Node, run_at};

#[test]
fn sync_prints_a_token_and_waits_for_one() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(Duration::from_secs(20));
    let [leader, follower] = [0, 1].map(|node| cluster.addr(node).to_string());
    run_at(&leader, &["set", "k", "v"], b"").expect(0, "", "");
    let run = run_at(&leader, &["sync"], b"");
    assert_eq!((run.code, run.out.len()), (0, 49), "{run:?}");
    let text = String::from_utf8(run.out).unwrap();
    let token: Token = text.trim_end().parse().unwrap();
    run_at(&follower, &["sync", "--at", text.trim_end()], b"").expect(0, &text, "");
    run_at(&follower, &["get", "k"], b"").expect(0, "v", "");
    // In lines, and in both directions of a dump.
    let lines = format!("sync\nsync {token}\nsync {token} 200ms\n");
    run_at(&follower, &[""; 0], lines.as_bytes()).expect(0, &text.repeat(3), "");
    let run = run_at(&follower, &["--hex", "sync", "--at", text.trim_end()], b"");
    assert_eq!(run.code, 0);
    for field in [
        "mode       at token",
        "timeout    5,000",
        "epoch      1",
        "nonce      0x",
    ] {
        assert!(run.err.contains(field), "{field}: {}", run.err);
    }
    assert_eq!(
        run.err
            .matches(&format!("index      {}", token.index))
            .count(),
        2
    );

    let at = |token: Token| token.to_string();
    let lost = at(Token {
        nonce: token.nonce ^ 1,
        ..token
    });
    let words = ["sync", "--at", &lost];
    run_at(&follower, &words, b"").expect_failure(12, &["is not in the history of this node"]);
    let ahead = at(Token {
        index: token.index + 1_000,
        ..token
    });
    let words = ["sync", "--timeout", "100ms", "--at", &ahead];
    run_at(&follower, &words, b"").expect_failure(6, &["not reached", "--timeout"]);
    for bad in ["", "12", &text[1..48]] {
        let run = run_at(&follower, &["sync", "--at", bad], b"");
        run.expect_failure(2, &["a token has 48 hexadecimal digits"]);
    }
}

#[test]
fn a_node_without_a_log_says_so() {
    let node = Node::start();
    let run = run_at(&node.addr.to_string(), &["sync"], b"");
    run.expect_failure(
        3,
        &["a token needs a log, which a node has with peers in cluster.toml"],
    );
    let run = run_at(&node.addr.to_string(), &["sync", "--durable"], b"");
    run.expect_failure(3, &["durable needs a disk", "--data-dir"]);
    let run = run_at(&node.addr.to_string(), &[""; 0], b"sync durable 1s\n");
    run.expect_failure(3, &["line 1", "durable needs a disk"]);
    let (text, words) = ("00".repeat(24), ["sync", "--durable", "--at"]);
    let words = [&words[..], &[text.as_str()]].concat();
    let run = run_at(&node.addr.to_string(), &words, b"");
    run.expect_failure(2, &["--at and --durable contradict each other"]);
}
