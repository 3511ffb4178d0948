use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use gopherstore::{
    client::{Client, ClientOptions, Expiry},
    wire::{Request, Status},
};
use serde_json::{Value, json};

use crate::{
    Run, finish,
    nodes::{
        cluster::{Cluster, Options},
        load::{self, Load},
        node::{self, Node},
        proxy::{Proxy, Way},
    },
    program, start,
    support::{Peer, StubNode, next_frame, request, response, unused_addr},
};

const SOON: Duration = Duration::from_secs(30);

fn diff(arguments: &[&str]) -> Run {
    finish(program().arg("diff").args(arguments), b"")
}

fn addr(node: &Node) -> String {
    node.addr.to_string()
}

fn client(addr: &str) -> Client {
    let options = ClientOptions {
        timeout: SOON,
        ..ClientOptions::default()
    };
    Client::connect_with(addr, options).unwrap()
}

fn fill(addr: &str, count: u32, value_len: usize) {
    let mut client = client(addr);
    let value = vec![b'v'; value_len];
    let mut pipeline = client.pipeline();
    for n in 0..count {
        pipeline.set(format!("key:{n:06}").as_bytes(), &value);
    }
    let responses = pipeline.run().unwrap();
    assert!(responses.iter().all(Result::is_ok));
}

/// Two clusters of one node each, equal but for what this plants; and the lines that say so.
fn unequal(names: [&str; 2]) -> (Node, Node, String) {
    let (a, b) = (Node::start(), Node::start());
    for node in [&a, &b] {
        fill(&addr(node), 1_000, 10);
    }
    let (mut on_a, mut on_b) = (client(&addr(&a)), client(&addr(&b)));
    on_a.set(b"", b"x").unwrap();
    on_a.set(b"a\xff\n", b"").unwrap();
    on_b.set(b"b \"c\"", b"123").unwrap();
    on_a.set(b"key:000007", b"vvvvvvvvvV").unwrap();
    on_b.del(b"key:000008").unwrap();
    on_b.set(b"key:000009", b"").unwrap();
    let [a_name, b_name] = names;
    let lines = format!(
        "only on {a_name}: \"\", 1 byte\n\
         only on {a_name}: \"a\\xff\\n\", 0 bytes\n\
         only on {b_name}: \"b \\\"c\\\"\", 3 bytes\n\
         differs: \"key:000007\", 10 bytes on {a_name}, 10 bytes on {b_name}\n\
         only on {a_name}: \"key:000008\", 10 bytes\n\
         differs: \"key:000009\", 10 bytes on {a_name}, 0 bytes on {b_name}\n"
    );
    (a, b, lines)
}

/// A cluster.toml with these nodes, for names.
fn config(dir: &Path, nodes: &[(&str, String)]) -> String {
    let mut text = format!("cluster = \"test\"\nleader = \"{}\"\n", nodes[0].0);
    for (name, addr) in nodes {
        write!(text, "[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n").unwrap();
    }
    let file = dir.join("cluster.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn every_kind_of_difference_is_a_line_and_the_same_is_silence() {
    let (a, b, lines) = unequal(["left", "right"]);
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &[("left", addr(&a)), ("right", addr(&b))]);
    let named = ["left", "right", "--config", &file];
    diff(&named).expect(1, &lines, "");

    // Made the same, with a key that is deleted on both, and then with nothing on both.
    let (mut on_a, mut on_b) = (client(&addr(&a)), client(&addr(&b)));
    for key in [&b""[..], b"a\xff\n", b"key:000008"] {
        on_a.del(key).unwrap();
    }
    on_b.del(b"b \"c\"").unwrap();
    for key in [b"key:000007", b"key:000009"] {
        on_a.set(key, b"same").unwrap();
        on_b.set(key, b"same").unwrap();
    }
    diff(&named).expect(0, "", "");
    diff(&[&addr(&a), &addr(&b)]).expect(0, "", "");
    let (empty, other) = (Node::start(), Node::start());
    diff(&[&addr(&empty), &addr(&other)]).expect(0, "", "");
    // One that holds nothing lacks every key.
    let all = diff(&[&addr(&b), &addr(&empty)]);
    assert_eq!((all.code, all.err.as_str()), (1, ""));
    let out = String::from_utf8(all.out).unwrap();
    assert_eq!(out.lines().count(), 999);
    assert!(out.lines().all(|line| line.starts_with("only on ")));
}

#[test]
fn json_is_an_object_for_each_key_and_one_for_the_result() {
    let (a, b, _) = unequal(["", ""]);
    let (a, b) = (addr(&a), addr(&b));
    let run = diff(&[&a, &b, "-w", "json"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    let objects: Vec<Value> = String::from_utf8(run.out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let object = |key: Option<&str>, hex: &str, [on_a, on_b]: [Option<u32>; 2]| {
        let value_bytes = json!({ &a: on_a, &b: on_b });
        json!({ "key": key, "key_hex": hex, "value_bytes": value_bytes })
    };
    let expected = [
        object(Some(""), "", [Some(1), None]),
        object(None, "61ff0a", [Some(0), None]),
        object(Some("b \"c\""), "6220226322", [None, Some(3)]),
        object(
            Some("key:000007"),
            "6b65793a303030303037",
            [Some(10), Some(10)],
        ),
        object(Some("key:000008"), "6b65793a303030303038", [Some(10), None]),
        object(
            Some("key:000009"),
            "6b65793a303030303039",
            [Some(10), Some(0)],
        ),
        json!({
            "result": "different", "only_on": { &a: 3, &b: 1 }, "differ": 2, "changing": 0,
            "behind": null, "stopped": false,
        }),
    ];
    assert_eq!(objects, expected);

    let run = diff(&[&a, &b, "-w=json", "--max", "1"]);
    let text = String::from_utf8(run.out).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((text.lines().count(), &last["stopped"]), (2, &json!(true)));
}

#[test]
fn hex_tells_the_fields_of_the_answers_too() {
    let (a, b, _) = unequal(["", ""]);
    let run = diff(&[&addr(&a), &addr(&b), "--hex"]);
    for (mark, field) in [
        ('>', "SUMS"),
        ('<', "sum   "),
        ('>', "LIST"),
        ('<', "partitions"),
        ('<', "hash"),
    ] {
        let mut lines = run.err.lines();
        assert!(
            lines.any(|line| line.starts_with(mark) && line.contains(field)),
            "{mark} {field}: {run:?}"
        );
    }
    for frame in run.err.split("< from ").skip(1) {
        // Of these nodes nothing but a status is text.
        let is_status = frame.contains("\"node: ");
        assert!(is_status || !frame.contains(" value  "), "{frame}");
    }
}

#[test]
fn enough_is_enough() {
    let (a, b, lines) = unequal(["left", "right"]);
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &[("left", addr(&a)), ("right", addr(&b))]);
    let first: String = lines.split_inclusive('\n').take(2).collect();
    diff(&["left", "right", "--config", &file, "--max", "2"]).expect(1, &first, "");

    // The reader has closed the pipe; the exit code still tells that the nodes differ.
    let mut child = start(program().args(["diff", "left", "right", "--config", &file]));
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn three_differences_among_a_hundred_thousand_keys_move_little() {
    let (a, b) = (Node::start(), Node::start());
    let (count, value_len) = (100_000, 100);
    for node in [&a, &b] {
        fill(&addr(node), count, value_len);
    }
    let (mut on_a, mut on_b) = (client(&addr(&a)), client(&addr(&b)));
    on_a.del(b"key:000001").unwrap();
    on_a.set(b"key:050000", b"other").unwrap();
    on_b.set(b"more", b"1").unwrap();
    let proxies = [Proxy::start(a.addr), Proxy::start(b.addr)];
    let [a, b] = proxies.each_ref().map(|proxy| proxy.addr().to_string());
    let lines = format!(
        "only on {b}: \"key:000001\", 100 bytes\n\
         differs: \"key:050000\", 5 bytes on {a}, 100 bytes on {b}\n\
         only on {b}: \"more\", 1 byte\n"
    );
    diff(&[&a, &b, "--timeout", "30s"]).expect(1, &lines, "");
    let data = u64::from(count) * (10 + 100);
    for proxy in proxies {
        let counts = proxy.counts();
        let moved = counts.up + counts.down;
        // 64 KiB of sums, and a few dozen keys.
        assert!(moved < data / 100, "{moved} bytes moved, {data} there");
    }
}

#[test]
fn nodes_of_a_cluster_with_equal_digests_are_asked_for_nothing_more() {
    let cluster = Cluster::start(3);
    cluster.wait_converged(SOON);
    let nodes = ["n1", "n2", "n3"];
    let addrs: Vec<_> = (0..3).map(|node| cluster.addr(node).to_string()).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = config(
        dir.path(),
        &nodes.into_iter().zip(addrs.clone()).collect::<Vec<_>>(),
    );
    fill(&addrs[0], 1_000, 10);
    cluster.wait_converged(SOON);
    for (a, b) in [("n1", "n2"), ("n3", "n1"), ("n2", "n3")] {
        let run = diff(&[a, b, "--config", &file, "--hex"]);
        assert_eq!((run.code, run.out.as_slice()), (0, &b""[..]), "{}", run.err);
        assert_eq!(run.err.matches("STATUS").count(), 2, "{}", run.err);
        assert_eq!(run.err.matches("SUMS").count(), 0, "{}", run.err);
    }
    // A node of another cluster is compared as well.
    let other = Node::start();
    fill(&addr(&other), 1_000, 10);
    diff(&["n2", &addr(&other), "--config", &file]).expect(0, "", "");
    client(&addr(&other)).set(b"more", b"1").unwrap();
    let line = format!("only on {}: \"more\", 1 byte\n", addr(&other));
    diff(&["n2", &addr(&other), "--config", &file]).expect(1, &line, "");
}

#[test]
fn a_follower_that_is_written_to_meanwhile_does_not_differ() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(SOON);
    fill(&cluster.addr(0).to_string(), 2_000, 10);
    let options = load::Options {
        keys: 300,
        per_second: Some(2_000),
        dels: 20,
        ..load::Options::default()
    };
    let load = Load::start(cluster.addr(0), options);
    load.wait_for_more(1_000);
    // And keys with two values in turn, as a lock or a flag has.
    let stop = Arc::new(AtomicBool::new(false));
    let flags = thread::spawn({
        let (stop, addr) = (Arc::clone(&stop), cluster.addr(0).to_string());
        move || {
            let mut client = client(&addr);
            for turn in 0_u32.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let value = if turn % 2 == 0 { b"0" } else { b"1" };
                for flag in 0_u32..20 {
                    client
                        .set(format!("flag:{flag}").as_bytes(), value)
                        .unwrap();
                }
            }
        }
    });
    let [a, b] = [0, 1].map(|node| cluster.addr(node).to_string());
    for _ in 0..4 {
        diff(&[&a, &b, "--timeout", "30s"]).expect(0, "", "");
        diff(&[&b, &a, "--timeout", "30s"]).expect(0, "", "");
        load.wait_for_more(100);
    }
    stop.store(true, Ordering::SeqCst);
    flags.join().unwrap();
    drop(load);
    cluster.wait_converged(SOON);
    diff(&[&a, &b]).expect(0, "", "");
}

#[test]
fn a_follower_that_does_not_catch_up_is_reported_as_behind() {
    let cluster = Cluster::start_with(
        2,
        &Options {
            proxies: true,
            ..Options::default()
        },
    );
    cluster.wait_converged(SOON);
    let [a, b] = [0, 1].map(|node| cluster.addr(node).to_string());
    fill(&a, 100, 10);
    cluster.wait_converged(SOON);
    for link in cluster.links_of(1) {
        link.hold(Way::Up);
        link.hold(Way::Down);
    }
    let mut leader = client(&a);
    leader.set(b"late", b"1").unwrap();
    leader.set(b"key:000003", b"2").unwrap();
    let run = diff(&[&a, &b, "--timeout", "400ms"]);
    let lines = format!(
        "differs: \"key:000003\", 1 byte on {a}, 10 bytes on {b}\n\
         only on {a}: \"late\", 1 byte\n"
    );
    let note = format!(
        "gopherstore-cli: {b} lacks 2 entries and did not catch up within 400ms, so what differs may be on its way; \
         try again, or allow more with --timeout\n"
    );
    run.expect(1, &lines, &note);
    for link in cluster.links_of(1) {
        link.release(Way::Up);
        link.release(Way::Down);
    }
    cluster.wait_converged(SOON);
    diff(&[&a, &b]).expect(0, "", "");
}

#[test]
fn nodes_that_cannot_be_compared_are_named_in_one_line() {
    let node = Node::start();
    let a = addr(&node);
    client(&a).set(b"k", b"v").unwrap();

    let old = StubNode::start();
    let run = diff(&[&a, old.addr()]);
    run.expect_failure(3, &[old.addr(), "unknown opcode 0x42", "another version"]);

    let leader = unused_addr();
    let loading = Node::start_with(&node::Options {
        leader: Some(leader.parse().unwrap()),
        ..node::Options::default()
    });
    let run = diff(&[&addr(&loading), &a]);
    run.expect_failure(3, &[&addr(&loading), "is loading", "status"]);

    let gone = unused_addr();
    diff(&[&a, &gone]).expect_failure(5, &[&gone, "cannot connect", "is the node running?"]);
    diff(&[&gone, &a]).expect_failure(5, &[&gone, "cannot connect"]);

    let silent = Peer::start(|_, mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let run = diff(&[&a, &silent.addr, "--timeout", "200ms"]);
    run.expect_failure(6, &[&silent.addr, "no response", "--timeout"]);
    let other = Peer::start(|_, mut stream| {
        // All of the request, since closing with unread input would reset the connection.
        stream.read_exact(&mut [0; 7]).unwrap();
        stream.write_all(b"HTTP/1.1 400\r\n\r\n").unwrap();
    });
    let run = diff(&[&a, &other.addr]);
    run.expect_failure(7, &[&other.addr, "which is text and not GBP"]);
}

/// Not to know is not to be the same.
#[test]
fn nodes_that_do_not_answer_are_not_the_same() {
    let saying = |status: Status, text: &'static [u8]| {
        Peer::start(move |_, mut stream| {
            while let Some(frame) = next_frame(&mut stream) {
                let out = match request(&frame) {
                    Request::Status => response(status.byte(), text),
                    _ => response(Status::Error.byte(), b"unknown opcode 0x42"),
                };
                if stream.write_all(&out).is_err() {
                    return;
                }
            }
        })
    };
    let text = b"state: serving\nepoch: 1\nindex: 7\n";
    let [a, b] = [saying(Status::Ok, text), saying(Status::Ok, text)];
    let run = diff(&[&a.addr, &b.addr]);
    run.expect_failure(3, &["unknown opcode 0x42"]);
    let full = saying(Status::Error, b"too many connections");
    diff(&[&a.addr, &full.addr]).expect_failure(3, &[&full.addr, "too many connections"]);
    diff(&[&full.addr, &a.addr]).expect_failure(3, &[&full.addr, "too many connections"]);
    let loading = saying(Status::Loading, b"it copies n1");
    diff(&[&a.addr, &loading.addr]).expect_failure(3, &[&loading.addr, "it copies n1"]);
}

#[test]
fn wrong_input_gets_advice() {
    let a = "127.0.0.1:8000";
    diff(&["n1", "n2"]).expect_failure(2, &["\"n1\" is no address", "--config"]);
    diff(&[a, a]).expect_failure(2, &["the same node"]);
    diff(&[a]).expect_failure(2, &["n2"]);
    diff(&[a, "127.0.0.1:8001", "--addr", a]).expect_failure(2, &["--addr", "leave it out"]);
    diff(&[a, "127.0.0.1:8001", "-w", "xml"]).expect_failure(2, &["xml", "lines and json"]);
    diff(&[a, "127.0.0.1:8001", "--max", "0"]).expect_failure(2, &["a whole number from 1 to "]);
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), &[("n1", a.to_owned())]);
    diff(&["n1", "n9", "--config", &file]).expect_failure(2, &["n9", "there are n1"]);
    let help = diff(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(String::from_utf8_lossy(&help.out).contains("diff n1 n2 --config cluster.toml"));
}

#[test]
fn keys_whose_deadlines_differ_are_different() {
    const FAR: u64 = 4_102_444_800_000;
    let (a, b) = (Node::start(), Node::start());
    let (mut on_a, mut on_b) = (client(&addr(&a)), client(&addr(&b)));
    for client in [&mut on_a, &mut on_b] {
        client.set_at(b"equal", b"v", FAR).unwrap();
    }
    on_a.set_at(b"other", b"v", FAR).unwrap();
    on_b.set_at(b"other", b"v", FAR + 1).unwrap();
    on_a.set_at(b"one", b"v", FAR).unwrap();
    on_b.set(b"one", b"v").unwrap();
    let (a, b) = (addr(&a), addr(&b));
    let lines = format!(
        "differs: \"one\", 1 byte on {a}, 1 byte on {b}\n\
         differs: \"other\", 1 byte on {a}, 1 byte on {b}\n"
    );
    diff(&[&a, &b]).expect(1, &lines, "");
    on_b.expire(b"other", Expiry::Deadline(FAR)).unwrap();
    on_a.expire(b"one", Expiry::None).unwrap();
    diff(&[&a, &b]).expect(0, "", "");
}
