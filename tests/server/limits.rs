//! Connections: how many, how long, and what they cost.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::wire::{Request, Status};

use crate::node::{Node, Options, wait_for};
use crate::quick::assert_quick_once;
use crate::{answer, closed, error, frames, pong};

#[test]
fn the_limit_of_connections_is_exact_under_a_rush() {
    let node = Node::start_with(&Options {
        limits: "max_connections = 20",
        ..Options::default()
    });
    for round in 0..5 {
        let rush = Barrier::new(100);
        let (mut served, mut rejected) = (Vec::new(), 0);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..100)
                .map(|_| {
                    scope.spawn(|| {
                        rush.wait();
                        let mut stream = node.connect();
                        // Without reading the limit's ERROR first, as a client that expects an answer does.
                        stream.write_all(&frames(&[Request::Ping])).unwrap();
                        let first = answer(&stream);
                        (stream, first)
                    })
                })
                .collect();
            for client in clients {
                let (stream, (status, value)) = client.join().unwrap();
                if status == Status::Ok {
                    served.push(stream);
                } else {
                    assert_eq!(value, b"too many connections, limit 20");
                    closed(&stream);
                    rejected += 1;
                }
            }
        });
        assert_eq!((served.len(), rejected), (20, 80), "round {round}");
        // Clients that are served stay served, and a place that becomes free is taken again.
        for stream in &mut served {
            stream.write_all(&frames(&[Request::Ping])).unwrap();
            assert_eq!(answer(stream), pong());
        }
        drop(served);
        wait_for("all places to be free", || {
            let streams: Vec<_> = (0..20).map(|_| node.connect()).collect();
            let served = streams.iter().filter(|stream| {
                let mut stream = *stream;
                stream.write_all(&frames(&[Request::Ping])).unwrap();
                answer(stream) == pong()
            });
            (served.count() == 20).then_some(())
        });
        // The node notices one after the other that these have left; the next rush must find none of them.
        wait_for("the node to be alone", || {
            (node.threads("client-") == 0).then_some(())
        });
    }
}

#[test]
fn an_idle_client_is_closed_and_a_busy_one_is_not() {
    let node = Node::start_with(&Options {
        limits: "idle_timeout_ms = 1500",
        ..Options::default()
    });
    let (idle, busy) = (node.connect(), node.connect());
    thread::scope(|scope| {
        // `closed` returns when the node has closed, so the busy one has been at it for at least the idle timeout.
        let waiting = scope.spawn(|| closed(&idle));
        while !waiting.is_finished() {
            (&busy).write_all(&frames(&[Request::Ping])).unwrap();
            assert_eq!(answer(&busy), pong());
            thread::yield_now();
        }
        waiting.join().unwrap();
    });
    (&busy).write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&busy), pong());
}

/// Connections that are held until the node has no descriptor left: some in ordinary places, the others in the reserve.
fn run_out_of_descriptors(node: &Node) -> Vec<std::net::TcpStream> {
    let mut held = Vec::new();
    wait_for("the node to run out", || {
        let stream = node.connect();
        (&stream).write_all(&frames(&[Request::Status])).unwrap();
        held.push(stream);
        node.log().contains("cannot accept clients").then_some(())
    });
    held
}

#[test]
fn running_out_of_descriptors_disturbs_no_served_client() {
    let node = Node::start_with(&Options {
        descriptors: Some(40),
        ..Options::default()
    });
    let mut first = node.connect();
    let rest = run_out_of_descriptors(&node);
    first.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&first), pong());
    drop(rest);
    wait_for("the node to serve others again", || {
        let last = node.connect();
        (ask(&last, Request::Ping) == pong()).then_some(())
    });
    // One line each time that it runs out, not one a try. While descriptors come back one by one that may be twice.
    node.wait_for_log("accepting clients again");
    let log = node.log();
    let told: Vec<bool> = log
        .lines()
        .filter_map(|line| {
            let is_out = line.contains("cannot accept clients");
            (is_out || line.contains("accepting clients again")).then_some(is_out)
        })
        .collect();
    assert!(told.len() >= 2, "{log}");
    let expected = [true, false].into_iter().cycle().take(told.len());
    assert!(expected.eq(told.iter().copied()), "{log}");
}

#[test]
fn the_stop_ends_the_pause_after_a_failed_accept() {
    assert_quick_once(Duration::from_millis(500), || {
        let mut node = Node::start_with(&Options {
            descriptors: Some(40),
            ..Options::default()
        });
        let _held = run_out_of_descriptors(&node);
        // The pause is doubled up to a second.
        node.wait_for_log("the next accept is in 1000 ms");
        assert!(!node.log().contains("accepting clients again"));
        let begin = Instant::now();
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0));
        begin.elapsed()
    });
}

#[test]
fn an_idle_connection_costs_at_most_20_kib() {
    const COUNT: u64 = 1_000;
    let node = Node::start();
    let mut clients = vec![node.connect()];
    let ping = |stream: &mut std::net::TcpStream| {
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(stream), pong());
    };
    ping(&mut clients[0]);
    let before = node.memory_kib("VmRSS");
    for _ in 0..COUNT {
        let mut stream = node.connect();
        ping(&mut stream);
        clients.push(stream);
    }
    let each = (node.memory_kib("VmRSS") - before) * 1024 / COUNT;
    assert!(each <= 20 << 10, "{each} bytes");
}

/// Memory that a client's requests took is returned to the system when the client is idle.
#[test]
fn connections_that_were_busy_cost_no_more_than_idle_ones_in_the_end() {
    const COUNT: u64 = 300;
    let node = Node::start();
    let value = vec![b'x'; 100_000];
    let requests = [
        frames(&[
            Request::Set {
                key: b"k",
                value: &value,
            },
            Request::Get { key: b"k" },
        ]),
        frames(&[Request::Ping; 3_000]),
    ]
    .concat();
    let before = node.memory_kib("VmRSS");
    let mut clients: Vec<_> = (0..COUNT).map(|_| node.connect()).collect();
    // All at a time, since memory is given back a second later, and a slow machine needs more for one after another.
    for stream in &mut clients {
        stream.write_all(&requests).unwrap();
    }
    for stream in &mut clients {
        for _ in 0..2 + 3_000 {
            assert_eq!(answer(stream).0, Status::Ok);
        }
    }
    let busy = node.memory_kib("VmHWM") - before;
    assert!(busy > COUNT * 64, "{busy} KiB are no busy time");
    wait_for("the memory of a busy time", || {
        // Less than half of it, and what the pages of a thread's stack cost that a busy time has touched.
        (node.memory_kib("VmRSS") < before + COUNT * 36).then_some(())
    });
    for stream in &mut clients {
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(stream), pong());
    }
}

/// The same of clients that leave in the middle of a large value.
#[test]
fn memory_of_a_client_that_leaves_is_returned() {
    const COUNT: u64 = 300;
    const HALF: usize = 60_000;
    let node = Node::start();
    let value = vec![b'x'; 2 * HALF];
    let set = frames(&[Request::Set {
        key: b"k",
        value: &value,
    }]);
    let before = node.memory_kib("VmRSS");
    let mut clients: Vec<_> = (0..COUNT).map(|_| node.connect()).collect();
    for stream in &mut clients {
        stream.write_all(&set[..HALF]).unwrap();
    }
    let held = before + COUNT * 60;
    wait_for("the values' halves", || {
        (node.memory_kib("VmRSS") > held).then_some(())
    });
    // All but a few, between which what the others had lies.
    let mut count = 0;
    clients.retain(|_| {
        count += 1;
        count % 6 == 0
    });
    wait_for("the memory of those that have left", || {
        (node.memory_kib("VmRSS") < before + COUNT * 40).then_some(())
    });
    drop(clients);
}

#[test]
fn too_few_descriptors_for_the_limit_are_a_warning_at_the_start() {
    let node = Node::start_with(&Options {
        descriptors: Some(200),
        ..Options::default()
    });
    wait_for("the warning", || {
        let log = node.log();
        let warned = log.contains("which needs 11408 open files, and the system allows 200");
        warned.then_some(())
    });
}

#[test]
fn a_rejected_client_gets_the_error_without_a_request() {
    let node = Node::start_with(&Options {
        limits: "max_connections = 1",
        ..Options::default()
    });
    let mut first = node.connect();
    first.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&first), pong());
    let second = node.connect();
    assert_eq!(error(&second), "too many connections, limit 1");
    closed(&second);
}

/// Asks one thing.
fn ask(mut stream: &TcpStream, request: Request<'_>) -> (Status, Vec<u8>) {
    stream.write_all(&frames(&[request])).unwrap();
    answer(stream)
}

/// A node all of whose `max_connections`, 3, are taken.
fn full() -> (Node, Vec<TcpStream>) {
    let node = Node::start_with(&Options {
        limits: "max_connections = 3",
        ..Options::default()
    });
    let clients: Vec<_> = (0..3).map(|_| node.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client, Request::Ping), pong());
    }
    (node, clients)
}

const FULL: &str = "too many connections, limit 3";

#[test]
fn a_status_is_answered_beyond_the_limit_and_nothing_else_is_before_it() {
    let (node, clients) = full();
    for first in [
        Request::Ping,
        Request::Get { key: b"k" },
        Request::Discard,
        Request::Set {
            key: b"k",
            value: &[b'x'; 100_000],
        },
    ] {
        let refused = node.connect();
        // The node may refuse before it has taken all of it.
        let _ = (&refused).write_all(&frames(&[first]));
        assert_eq!(error(&refused), FULL, "{first:?}");
        closed(&refused);
    }
    let operator = node.connect();
    for _ in 0..3 {
        let (status, text) = ask(&operator, Request::Status);
        assert_eq!(status, Status::Ok);
        // Those of the reserve count.
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\nconnections: 4\n"), "{text}");
        assert_eq!(ask(&operator, Request::Ping), pong());
    }
    let get = Request::Get { key: b"k" };
    (&operator).write_all(&frames(&[get])).unwrap();
    assert_eq!(error(&operator), FULL);
    closed(&operator);
    // All at once, of which the first part is answered.
    let operator = node.connect();
    let requests = [Request::Status, Request::Ping, get, Request::Ping];
    (&operator).write_all(&frames(&requests)).unwrap();
    assert_eq!(answer(&operator).0, Status::Ok);
    assert_eq!(answer(&operator), pong());
    assert_eq!(error(&operator), FULL);
    closed(&operator);
    assert_eq!(ask(&clients[0], get).0, Status::NotFound);
}

#[test]
fn a_connection_leaves_the_reserve_for_a_place_that_has_become_free() {
    let (node, mut clients) = full();
    let operator = node.connect();
    assert_eq!(ask(&operator, Request::Status).0, Status::Ok);
    drop(clients.pop());
    wait_for("a free place", || {
        let (_, text) = ask(&operator, Request::Status);
        let text = String::from_utf8(text).unwrap();
        text.contains("\nconnections: 3\n").then_some(())
    });
    let get = Request::Get { key: b"k" };
    assert_eq!(ask(&operator, get).0, Status::NotFound);
    // It holds that place now.
    let refused = node.connect();
    (&refused).write_all(&frames(&[get])).unwrap();
    assert_eq!(error(&refused), FULL);
    assert_eq!(ask(&operator, get).0, Status::NotFound);
}

#[test]
fn a_first_request_in_pieces_has_a_second() {
    let (node, _clients) = full();
    let status = frames(&[Request::Status]);
    let mut patient = node.connect();
    for byte in &status {
        patient.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answer(&patient).0, Status::Ok);
    let begin = Instant::now();
    let (silent, mut slow) = (node.connect(), node.connect());
    slow.write_all(&status[..6]).unwrap();
    assert_eq!(error(&silent), FULL);
    assert_eq!(error(&slow), FULL);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    closed(&silent);
    closed(&slow);
}

#[test]
fn clients_cannot_lock_out_status_requests() {
    let (node, _clients) = full();
    // More of each kind than there is room for: silent ones, ones that have sent a part, and ones that hold a place of
    // the reserve.
    let silent: Vec<_> = (0..300).map(|_| node.connect()).collect();
    for mut stream in silent.iter().step_by(2) {
        stream.write_all(&[0x40]).unwrap();
    }
    let holders: Vec<_> = (0..100).map(|_| node.connect()).collect();
    for holder in &holders {
        assert_eq!(ask(holder, Request::Status).0, Status::Ok);
    }
    for _ in 0..20 {
        assert_quick_once(Duration::from_millis(900), || {
            let begin = Instant::now();
            let operator = node.connect();
            assert_eq!(ask(&operator, Request::Status).0, Status::Ok);
            begin.elapsed()
        });
    }
    // Those that hold places are no more than the reserve has.
    wait_for("the closed ones to be gone", || {
        (node.threads("client-") <= 3 + 64).then_some(())
    });
    // The idlest was closed, the newest was not.
    closed(&holders[0]);
}

#[test]
fn few_descriptors_leave_the_reserve_its_part() {
    let node = Node::start_with(&Options {
        descriptors: Some(400),
        ..Options::default()
    });
    // Half of them are for connections.
    let clients: Vec<_> = (0..200).map(|_| node.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client, Request::Ping), pong());
    }
    let _silent: Vec<_> = (0..200).map(|_| node.connect()).collect();
    let refused = node.connect();
    (&refused).write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(error(&refused), "too many connections, limit 200");
    assert_quick_once(Duration::from_millis(900), || {
        let begin = Instant::now();
        let operator = node.connect();
        assert_eq!(ask(&operator, Request::Status).0, Status::Ok);
        begin.elapsed()
    });
    let log = node.log();
    assert!(log.contains("allows 400; serving 200 at once"), "{log}");
}

#[test]
fn the_command_line_says_that_there_are_too_many_connections() {
    let (node, _clients) = full();
    let addr = node.addr.to_string();
    let run = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
            .args(["--addr", &addr])
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    assert_eq!(run(&["status"]).0, Some(0));
    let (code, said) = run(&["get", "k"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(FULL), "{said}");
}
