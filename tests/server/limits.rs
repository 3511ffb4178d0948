//! Connections: how many, how long, and what they cost.

use std::io::Write;
use std::sync::Barrier;
use std::thread;

use gopherstore::wire::{Request, Status};

use crate::node::{Node, Options, wait_for};
use crate::{answer, closed, error, frames, pong};

#[test]
fn the_limit_of_connections_is_exact_under_a_rush() {
    let node = Node::start_with(&Options {
        limits: "max_connections = 20",
        ..Options::default()
    });
    for round in 0..5 {
        let rush = Barrier::new(100);
        let (mut served, mut turned_away) = (Vec::new(), 0);
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
                    turned_away += 1;
                }
            }
        });
        assert_eq!((served.len(), turned_away), (20, 80), "round {round}");
        // Whoever is served stays served, and a place that becomes free is taken again.
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

#[test]
fn running_out_of_descriptors_stops_nobody_who_is_served() {
    let node = Node::start_with(&Options {
        descriptors: Some(40),
        ..Options::default()
    });
    let mut first = node.connect();
    let mut rest: Vec<_> = (0..60).map(|_| node.connect()).collect();
    wait_for("the node to run out", || {
        node.log().contains("cannot accept clients").then_some(())
    });
    first.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&first), pong());
    let mut last = rest.pop().unwrap();
    drop(rest);
    // It was connected by the system and is served once there are descriptors again.
    last.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&last), pong());
    // One line each time that it runs out, not one a try. While descriptors come back one by one that may be twice.
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

/// What a client's busy time cost is given back to the system when it has nothing to do.
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

#[test]
fn too_few_descriptors_for_the_limit_are_told_at_the_start() {
    let node = Node::start_with(&Options {
        descriptors: Some(200),
        ..Options::default()
    });
    wait_for("the warning", || {
        let log = node.log();
        let warned = log.contains("which needs 11088 open files, and the system allows 200");
        warned.then_some(())
    });
}

#[test]
fn a_turned_away_client_is_told_without_asking() {
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
