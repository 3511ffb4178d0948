use std::io::Write;

use crate::{
    run_at,
    support::{Peer, StubNode, next_frame, response, silent::Silent, unused_addr, wait_for_close},
};

/// A peer that answers the first request of each connection with `bytes`, and closes.
fn answering(bytes: Vec<u8>) -> Peer {
    Peer::start(move |_, mut stream| {
        if next_frame(&mut stream).is_some() {
            let _ = stream.write_all(&bytes);
        }
    })
}

#[test]
fn a_refused_request_is_exit_code_3() {
    let node = StubNode::start();
    let run = run_at(node.addr(), &["set", "k", "refuse it"], b"");
    run.expect_failure(3, &["value of 9 bytes, limit 8"]);
    node.set_loading();
    let run = run_at(node.addr(), &["get", "k"], b"");
    run.expect_failure(
        3,
        &["the node is loading: no complete data set yet", "try again"],
    );
    let peer = answering(response(0x99, b"from\nthe future\x1b[31m"));
    let run = run_at(&peer.addr, &["ping"], b"");
    run.expect_failure(3, &["unknown status 0x99", r"from\nthe future\u{1b}[31m"]);
    let run = run_at(&peer.addr, &["del", "k"], b"");
    run.expect_failure(3, &["unknown status 0x99", "unknown whether the write"]);
}

#[test]
fn a_timeout_of_the_node_says_that_the_outcome_is_unknown() {
    let peer = answering(response(0x07, b"it leads no more"));
    let said = "outcome unknown: it leads no more";
    let run = run_at(&peer.addr, &["set", "k", "v"], b"");
    run.expect_failure(3, &[said, "check with get before repeating it"]);
    let run = run_at(&peer.addr, &["get", "k"], b"");
    run.expect_failure(3, &[said, "try again"]);
}

#[test]
fn no_node_at_the_address_is_exit_code_5() {
    let addr = unused_addr();
    let run = run_at(&addr, &["ping"], b"");
    run.expect_failure(
        5,
        &[
            &format!("cannot connect to {addr}: connection refused"),
            "is the node running? start it, or name another with --addr",
        ],
    );
}

#[test]
fn a_redirect_that_fails_names_both_nodes() {
    let gone = unused_addr();
    let follower = StubNode::follower(&gone);
    let addr = follower.addr();
    let run = run_at(addr, &["set", "k", "v"], b"");
    let said = format!(
        "the node at {addr} named {gone} as the leader, and that address failed: cannot connect to {gone}: connection \
         refused; nothing was written"
    );
    run.expect_failure(5, &[&said, "--addr"]);

    let silent = Silent::start();
    follower.follow(Some(&silent.addr.to_string()));
    let run = run_at(addr, &["set", "k", "v", "--timeout", "200ms"], b"");
    let said = format!(
        "no connection to {} within 200ms; nothing was written",
        silent.addr
    );
    run.expect_failure(6, &[addr, &said]);

    let closing = answering(Vec::new());
    follower.follow(Some(&closing.addr));
    let run = run_at(addr, &["set", "k", "v"], b"");
    run.expect_failure(
        5,
        &[addr, &closing.addr, "lost", "unknown whether the write"],
    );
}

#[test]
fn the_timeout_is_for_connecting_too() {
    let silent = Silent::start();
    let addr = silent.addr.to_string();
    let said = format!("no connection to {addr} within 200ms");
    for command in [&["ping"][..], &["dump", "-"], &["tail"], &["bench"]] {
        let run = run_at(&addr, &[command, &["--timeout", "200ms"]].concat(), b"");
        run.expect_failure(6, &[&said, "allow more with --timeout"]);
    }
}

#[test]
fn a_lost_connection_is_exit_code_5_and_says_what_is_not_known() {
    let peer = answering(response(0, b"value")[..7].to_vec());
    run_at(&peer.addr, &["get", "k"], b"").expect_failure(5, &["lost", "try again"]);
    let peer = answering(Vec::new());
    let run = run_at(&peer.addr, &["set", "k", "v"], b"");
    run.expect_failure(5, &["lost", "unknown whether the write was executed"]);
}

#[test]
fn silence_is_exit_code_6() {
    let peer = Peer::start(|_, mut stream| wait_for_close(&mut stream));
    let run = run_at(&peer.addr, &["get", "k", "--timeout", "50ms"], b"");
    run.expect_failure(
        6,
        &[
            &format!("no response from {} within 50ms", peer.addr),
            "--timeout",
        ],
    );
}

#[test]
fn another_protocol_is_exit_code_7() {
    let peer = answering(response(0, b"value"));
    let run = run_at(&peer.addr, &["set", "k", "v"], b"");
    run.expect_failure(
        7,
        &["value of 5 bytes, limit 0", "unknown whether the write"],
    );
    let peer = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    let run = run_at(&peer.addr, &["ping"], b"");
    run.expect_failure(7, &["'H', which is text", "is it a GopherStore node?"]);
    let run = run_at(&peer.addr, &["ping", "--hex"], b"");
    assert_eq!(run.code, 7);
    assert!(
        run.err
            .contains("\n< 000000  48 54 54 50 2f 31 2e 31  text"),
        "{}",
        run.err
    );
}
