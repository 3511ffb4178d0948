//! The answer to each request in each role.

use std::sync::Arc;
use std::time::Instant;

use gopherstore::config::Config;
use gopherstore::engine::COPIED_BYTES;
use gopherstore::engine::digest::Digest;
use gopherstore::history::{EpochStart, History, HistoryError};
use gopherstore::node::{Node, NotOpened, Reply, RoleState};
use gopherstore::wire::comparison::{ListAnswer, SumsAnswer};
use gopherstore::wire::response::Response;
use gopherstore::wire::{Opcode, Request, Status};

use crate::{ask, entry, execute, load};

fn follower() -> Node {
    Node::follower_of("10.0.0.1:8000")
}

#[test]
fn a_leader_stores_reads_and_removes() {
    let node = Node::alone();
    let (key, nothing) = (&b"k"[..], Vec::new());
    assert_eq!(
        ask(&node, &Request::Get { key }),
        (Status::NotFound, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Set { key, value: b"1" }),
        (Status::Ok, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Get { key }),
        (Status::Ok, b"1".to_vec())
    );
    assert_eq!(
        ask(&node, &Request::Set { key, value: b"" }),
        (Status::Ok, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Get { key }),
        (Status::Ok, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Del { key }),
        (Status::Ok, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Del { key }),
        (Status::NotFound, nothing.clone())
    );
    assert_eq!(
        ask(&node, &Request::Get { key }),
        (Status::NotFound, nothing)
    );
}

#[test]
fn the_empty_key_is_a_key_like_any_other() {
    let node = Node::alone();
    ask(
        &node,
        &Request::Set {
            key: b"",
            value: b"empty",
        },
    );
    ask(
        &node,
        &Request::Set {
            key: b"\0",
            value: b"zero",
        },
    );
    assert_eq!(
        ask(&node, &Request::Get { key: b"" }),
        (Status::Ok, b"empty".to_vec())
    );
    assert_eq!(
        ask(&node, &Request::Get { key: b"\0" }),
        (Status::Ok, b"zero".to_vec())
    );
    assert_eq!(node.engine().len(), 2);
}

#[test]
fn a_follower_names_its_leader_and_keeps_its_data_as_it_is() {
    let node = follower();
    let leader = (Status::NotLeader, b"10.0.0.1:8000".to_vec());
    assert_eq!(
        ask(
            &node,
            &Request::Set {
                key: b"k",
                value: b"1"
            }
        ),
        leader
    );
    assert!(node.engine().is_empty());
    load(&node, [&entry(b"k", b"1")]);
    assert_eq!(ask(&node, &Request::Del { key: b"k" }), leader);
    assert_eq!(node.engine().len(), 1);
}

#[test]
fn a_follower_without_a_complete_data_set_does_not_say_not_found() {
    let (status, message) = ask(&follower(), &Request::Get { key: b"k" });
    assert_eq!(status, Status::Loading);
    assert!(
        std::str::from_utf8(&message)
            .unwrap()
            .contains("ask the leader")
    );
}

/// The node holds a complete data set and serves it.
fn serve(node: &Node) {
    if !node.leads() {
        node.adopt();
    }
}

/// A node in the role and state that a row of GBP §7 names.
fn in_state(row: &str) -> Node {
    let node = if row.starts_with("leader, ") {
        Node::alone()
    } else {
        follower()
    };
    match row.split_once(", ").expect("role and state").1 {
        "`serving`" | "`serving` or `refused`" => serve(&node),
        "`serving`, that stops" => assert!(node.end_writes()),
        "`refused`" => node.yield_to_other_leader("why"),
        "`loading`" => node.discard_dataset("why"),
        other => panic!("no such state: {other}"),
    }
    node
}

#[test]
fn each_request_gets_the_status_that_the_document_says_for_role_and_state() {
    let document = include_str!("../../docs/GBP.md");
    let (_, table) = document
        .split_once("reads: GET, TTL, SCAN, SYNC, SUMS, LIST, BATCH of reads | writes")
        .expect("the table");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 6);
    let key = &b"k"[..];
    let reads = [
        Request::Get { key },
        Request::Ttl { key },
        Request::Sums {
            key: b"",
            value: &[0; 13],
        },
        Request::List { key, value: b"" },
        Request::Scan {
            key: b"",
            value: &[0; 17],
        },
    ];
    let add = &Opcode::Add.spec().value_of([0, 1, 0, 0]);
    let put = &[&[0; 13][..], b"1"].concat();
    let set_at = &[&[0x7f; 8][..], b"1"].concat();
    let writes = [
        Request::Set { key, value: b"1" },
        Request::Put { key, value: put },
        Request::SetAt { key, value: set_at },
        Request::Add { key, value: add },
        Request::Expire {
            key,
            value: &[0; 9],
        },
        Request::Take {
            key,
            value: &[0; 4],
        },
        Request::Del { key },
    ];
    for row in &rows {
        let mut nodes = vec![in_state(row[1])];
        if row[1].ends_with("or `refused`") {
            let refused = follower();
            refused.refuse("why");
            nodes.push(refused);
        }
        for (requests, expected) in [(&reads[..], row[2]), (&writes[..], row[3])] {
            for (node, request) in nodes
                .iter()
                .flat_map(|node| requests.iter().map(move |request| (node, request)))
            {
                let (status, _) = ask(node, request);
                let is_as_said = match expected {
                    "carried out" => matches!(status, Status::Ok | Status::NotFound),
                    name => status.name() == name,
                };
                assert!(is_as_said, "{}: {request:?}: {status:?}", row[1]);
            }
        }
    }
}

#[test]
fn any_node_answers_ping() {
    for node in [Node::alone(), follower()] {
        assert_eq!(ask(&node, &Request::Ping), (Status::Ok, b"PONG".to_vec()));
    }
}

#[test]
fn the_header_of_a_reply_is_that_of_its_value() {
    for reply in [
        Reply::Done,
        Reply::Pong,
        Reply::Answer(vec![7; 100_000]),
        Reply::Text("text".to_owned()),
        Reply::NotLeader(Arc::from("n1:1")),
        Reply::Loading(Arc::from("later")),
        Reply::Error("wrong".to_owned()),
    ] {
        let header = reply.header();
        assert_eq!(header.status, reply.status().byte());
        assert_eq!(
            usize::try_from(header.value_len).unwrap(),
            reply.value().len()
        );
    }
}

/// Sums are reads: a node that serves reads answers, leader or not, and any other answers LOADING.
#[test]
fn a_node_that_serves_reads_says_what_it_holds() {
    let sums = Request::Sums {
        key: b"",
        value: &[0; 13],
    };
    let one = Request::List {
        key: b"k",
        value: b"",
    };
    let node = Node::alone();
    let set = Request::Set {
        key: b"k",
        value: b"v",
    };
    assert_eq!(ask(&node, &set).0, Status::Ok);
    let answer = SumsAnswer::decode(&ask(&node, &sums).1, 0).unwrap();
    let hash = Digest::of(&entry(b"k", b"v")).to_u128();
    assert_eq!((answer.sums, answer.partitions), (vec![hash], 1_024));
    let answer = ListAnswer::decode(&ask(&node, &one).1).unwrap();
    assert_eq!(answer.items[0].hash, hash);

    let bad = Request::List {
        key: b"",
        value: b"13 bytes long",
    };
    let (status, message) = ask(&node, &bad);
    assert_eq!(status, Status::Error);
    assert_eq!(message, b"bits 103, limit 12");

    let follower = follower();
    for request in [sums, one, bad] {
        assert_eq!(ask(&follower, &request).0, Status::Loading);
    }
}

/// A write before that would have an index in the epoch of the leader that was copied.
#[test]
fn a_leader_that_has_taken_a_snapshot_serves_once_it_has_its_own_epoch() {
    let text = "cluster = \"c\"\nleader = \"n1\"\n\
                [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    let mut node = Node::of_cluster(&config, config.leader());
    node.discard_dataset("it copies a follower");
    let roles = node.watch();
    let epoch_start = |epoch, start_index| EpochStart {
        epoch,
        nonce: epoch,
        start_index,
    };
    let (key, value) = (&b"k"[..], &b"v"[..]);
    let history = History::new(vec![epoch_start(1, 1)]).unwrap();
    let mut copy = node.engine().load(0);
    assert!(copy.finish(3, Digest::EMPTY, history.clone(), Instant::now()));
    node.adopt();
    assert_eq!(node.history(), history);
    assert_eq!(ask(&node, &Request::Set { key, value }).0, Status::Loading);
    assert_eq!(ask(&node, &Request::Get { key }).0, Status::Loading);
    let refused = node.open_epoch(epoch_start(2, 3));
    let (got, next) = (3, 4);
    let why = HistoryError::NotNext { got, next };
    assert_eq!(refused, Err(NotOpened::Epoch(why)));
    assert_eq!(ask(&node, &Request::Set { key, value }).0, Status::Loading);
    node.open_epoch(epoch_start(2, 4)).unwrap();
    assert_eq!(node.history().last(), Some(epoch_start(2, 4)));
    assert_eq!(ask(&node, &Request::Set { key, value }).0, Status::Ok);
    drop(node);
    let served = roles.iter().filter(RoleState::serves);
    assert_eq!(served.count(), 1, "not even for a moment before");
}

#[test]
fn a_watcher_of_a_node_receives_each_change_of_role_once() {
    let mut node = follower();
    let roles = node.watch();
    serve(&node);
    serve(&node);
    node.refuse("it is ahead");
    let first = roles.recv();
    assert!(matches!(first, Ok(RoleState::Loading { .. })), "{first:?}");
    drop(node);
    // The channel ends with the node.
    let rest: Vec<String> = roles.iter().map(|role| role.to_string()).collect();
    assert_eq!(
        rest,
        ["follower, serving", "follower, refused: it is ahead"]
    );
}

/// The same requests to another node, one by one.
fn one_by_one(node: &Node, requests: &[Request<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for request in requests {
        let (status, value) = ask(node, request);
        let (status, value) = (status.byte(), &value[..]);
        Response { status, value }.encode(&mut out).unwrap();
    }
    out
}

fn frames(requests: &[Request<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn each_request_of_a_run_sees_what_those_before_it_did() {
    let set = |value| Request::Set { key: b"k", value };
    let (get, del) = (Request::Get { key: b"k" }, Request::Del { key: b"k" });
    let other = Request::Get { key: b"other" };
    let requests = [
        get,
        set(b"1"),
        get,
        set(b"22"),
        set(b"33"),
        get,
        other,
        del,
        get,
        del,
        set(b"4"),
        get,
    ];
    let node = Node::alone();
    let (out, steps) = execute(&node, &frames(&requests));
    assert_eq!(steps, [(requests.len(), false)]);
    assert_eq!(out, one_by_one(&Node::alone(), &requests));
    assert_eq!(ask(&node, &get), (Status::Ok, b"4".to_vec()));
}

/// Short values are answered together; a long one is held alone until the client takes it. The requests before it are
/// executed, and those behind it come after it.
#[test]
fn a_run_ends_at_a_long_value() {
    let long = vec![7; COPIED_BYTES + 1];
    let set = |key, value| Request::Set { key, value };
    let sets = [
        set(&b"long"[..], &long[..]),
        set(b"edge", &long[1..]),
        set(b"short", b"v"),
    ];
    let get = |key| Request::Get { key };
    let requests = [
        get(b"short"),
        get(b"none"),
        set(b"short", b"w"),
        get(b"edge"),
        get(b"long"),
        Request::Del { key: b"long" },
        set(b"edge", &long),
        get(b"long"),
        get(b"edge"),
        get(b"edge"),
        get(b"short"),
    ];
    let (node, other) = (Node::alone(), Node::alone());
    for set in sets {
        ask(&node, &set);
        ask(&other, &set);
    }
    let (out, steps) = execute(&node, &frames(&requests));
    // The count of a step includes the long value that ends it.
    assert_eq!(steps, [(5, false), (4, false), (1, false), (1, false)]);
    assert_eq!(out, one_by_one(&other, &requests));
}

#[test]
fn a_follower_answers_each_request_of_a_run_as_it_would_alone() {
    let set = Request::Set {
        key: b"k",
        value: b"2",
    };
    let requests = [
        Request::Get { key: b"k" },
        set,
        Request::Get { key: b"k" },
        Request::Del { key: b"k" },
        Request::Get { key: b"none" },
    ];
    let node = follower();
    let gets = [Request::Get { key: b"k" }; 3];
    for requests in [&requests[..], &gets] {
        let (out, _) = execute(&node, &frames(requests));
        assert_eq!(out, one_by_one(&node, requests), "it holds no data set");
        assert_eq!(out[0], Status::Loading.byte());
    }
    serve(&node);
    load(&node, [&entry(b"k", b"1")]);
    for requests in [&requests[..], &gets] {
        let (out, steps) = execute(&node, &frames(requests));
        assert_eq!(steps, [(requests.len(), false)]);
        assert_eq!(out, one_by_one(&node, requests));
        assert_eq!(out[..6], *b"\0\0\0\0\x011");
    }

    let stopping = Node::alone();
    ask(&stopping, &set);
    assert!(stopping.end_writes());
    let (out, _) = execute(&stopping, &frames(&requests));
    assert_eq!(out, one_by_one(&stopping, &requests));
    assert_eq!(out[..6], *b"\0\0\0\0\x012");
    assert_eq!(out[6], Status::Loading.byte());
}
