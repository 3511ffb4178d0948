use std::io::Write;

use crate::{
    run_at,
    support::{Peer, StubNode, answer, next_frame, nobody, wait_for_close},
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
fn what_the_node_refuses_is_exit_code_3() {
    let node = StubNode::start();
    let run = run_at(node.addr(), &["set", "k", "refuse it"], b"");
    run.expect_failure(3, &["value of 9 bytes, limit 8"]);
    node.set_loading();
    let run = run_at(node.addr(), &["get", "k"], b"");
    run.expect_failure(
        3,
        &["the node is loading: no complete data set yet", "try again"],
    );
    let peer = answering(answer(0x99, b"from\nthe future\x1b[31m"));
    let run = run_at(&peer.addr, &["ping"], b"");
    run.expect_failure(3, &["unknown status 0x99", r"from\nthe future\u{1b}[31m"]);
}

#[test]
fn nobody_there_is_exit_code_5() {
    let addr = nobody();
    let run = run_at(&addr, &["ping"], b"");
    run.expect_failure(
        5,
        &[
            &format!("cannot connect to {addr}: connection refused"),
            "is the node running? start it with scripts/start-node.sh n1, or name another with --addr",
        ],
    );
}

#[test]
fn a_lost_connection_is_exit_code_5_and_says_what_is_not_known() {
    let peer = answering(answer(0, b"value")[..7].to_vec());
    run_at(&peer.addr, &["get", "k"], b"").expect_failure(5, &["lost", "try again"]);
    let peer = answering(Vec::new());
    let run = run_at(&peer.addr, &["set", "k", "v"], b"");
    run.expect_failure(5, &["lost", "not known whether the write was carried out"]);
}

#[test]
fn silence_is_exit_code_6() {
    let peer = Peer::start(|_, mut stream| wait_for_close(&mut stream));
    let run = run_at(&peer.addr, &["get", "k", "--timeout", "50ms"], b"");
    run.expect_failure(
        6,
        &[
            &format!("no answer from {} within 50ms", peer.addr),
            "--timeout",
        ],
    );
}

#[test]
fn another_protocol_is_exit_code_7() {
    let peer = answering(answer(0, b"value"));
    let run = run_at(&peer.addr, &["set", "k", "v"], b"");
    run.expect_failure(7, &["value of 5 bytes, limit 0"]);
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
