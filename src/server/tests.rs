//! Answers that wait for a position, through sockets: a server whose watermark is moved by the test.

#![allow(clippy::unwrap_used, clippy::panic)]

mod durable;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::*;
use crate::config::Config;
use crate::log::Mark;
use crate::wire::{Request, Status, response};

/// Longest time that anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time in which something would have happened that must not.
const WHILE: Duration = Duration::from_millis(30);

/// Runs a leader whose answers wait until they are committed, with these limits, for the length of `test`.
fn with_server(limits: &str, test: impl FnOnce(&Server)) {
    let text = format!(
        "cluster = \"c\"\nleader = \"n1\"\n\
         [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
         [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n\
         [limits]\n{limits}"
    );
    let config = Config::parse(&text, "cluster.toml").unwrap();
    let mut node = Node::of_cluster(&config, config.leader());
    node.acknowledge_at(Mark::Committed);
    let server = Server::bind("127.0.0.1:0", node, config.limits.clone()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| server.run_until_stopped().unwrap());
        let _stop = StopAtEnd(&server);
        wait_for("the leader", || server.node.refuses_writes().is_none());
        test(&server);
    });
}

/// Stops a server that holds no data, so that it waits for no peer.
struct StopAtEnd<'a>(&'a Server);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        let watermarks = self.0.node.awaited().unwrap().0;
        watermarks.advance(Mark::Committed, u64::MAX);
        self.0.node.discard_dataset("the test ends");
        self.0.stopper().stop();
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The first record, an EPOCH, is in front of the writes.
const EPOCH_INDEX: u64 = 1;

/// Commits so many writes, the first ones of the log.
fn commit(server: &Server, writes: u64) {
    commit_up_to(server, EPOCH_INDEX + writes);
}

fn commit_up_to(server: &Server, index: u64) {
    let (watermarks, mark) = server.node.awaited().unwrap();
    watermarks.advance(mark, index);
}

/// Waits until so many writes are appended.
fn appended(server: &Server, writes: u64) {
    appended_up_to(server, EPOCH_INDEX + writes);
}

fn appended_up_to(server: &Server, index: u64) {
    wait_for("a write", || server.node.head().index >= index);
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frames(requests: &[Request<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

fn send(mut stream: &TcpStream, requests: &[Request<'_>]) {
    stream.write_all(&frames(requests)).unwrap();
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Set { key, value }
}

/// The next answer.
fn answer(mut stream: &TcpStream) -> (Status, Vec<u8>) {
    let mut header = [0; response::HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = response::ResponseHeader::decode(header);
    let mut value = vec![0; usize::try_from(header.value_len).unwrap()];
    stream.read_exact(&mut value).unwrap();
    (header.status.try_into().unwrap(), value)
}

fn ok(value: &[u8]) -> (Status, Vec<u8>) {
    (Status::Ok, value.to_vec())
}

/// Nothing comes for a while, not even the end.
fn silent(stream: &TcpStream) {
    stream.set_read_timeout(Some(WHILE)).unwrap();
    let error = stream.peek(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn closed(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_lone_client_gets_its_answers_in_order_as_the_watermark_moves() {
    with_server("", |server| {
        let client = connect(server);
        send(&client, &[set(b"a", b"1")]);
        appended(server, 1);
        // It goes on being read and executed.
        send(&client, &[set(b"b", b"2"), Request::Ping]);
        appended(server, 2);
        send(&client, &[Request::Status, Request::Get { key: b"a" }]);
        silent(&client);
        commit(server, 1);
        assert_eq!(answer(&client), ok(b""));
        silent(&client);
        commit(server, 2);
        assert_eq!(answer(&client), ok(b""));
        assert_eq!(answer(&client), ok(b"PONG"));
        assert_eq!(answer(&client).0, Status::Ok);
        assert_eq!(answer(&client), ok(b"1"));
        // And once it waits alone again.
        thread::sleep(WHILE);
        commit(server, 3);
        send(&client, &[set(b"c", b"3"), Request::Get { key: b"c" }]);
        assert_eq!((answer(&client), answer(&client)), (ok(b""), ok(b"3")));
    });
}

#[test]
fn readers_do_not_wait_for_parked_writers() {
    with_server("", |server| {
        let writers: Vec<TcpStream> = (0..50).map(|_| connect(server)).collect();
        for (key, writer) in (0_u64..).zip(&writers) {
            send(writer, &[set(&key.to_be_bytes(), b"v")]);
        }
        appended(server, 50);
        // A key whose partition none of them has changed.
        let engine = server.node.engine();
        let partition = |key: u64| engine.partition_of(&key.to_be_bytes());
        let changed: Vec<usize> = (0..50).map(partition).collect();
        let free = (50..).find(|key| !changed.contains(&partition(*key)));
        let key = &free.unwrap().to_be_bytes()[..];
        let others: Vec<TcpStream> = (0..8).map(|_| connect(server)).collect();
        for _ in 0..100 {
            for other in &others {
                send(other, &[Request::Get { key }, Request::Ping]);
            }
            for other in &others {
                assert_eq!(answer(other), (Status::NotFound, Vec::new()));
                assert_eq!(answer(other), ok(b"PONG"));
            }
        }
        for index in 1..=50 {
            commit(server, index);
        }
        for writer in &writers {
            assert_eq!(answer(writer), ok(b""));
        }
    });
}

#[test]
fn a_client_that_ends_its_side_gets_its_answers_and_then_the_end() {
    with_server("", |server| {
        let (whole, cut) = (connect(server), connect(server));
        send(&whole, &[set(b"a", b"1"), Request::Ping]);
        appended(server, 1);
        let frame = frames(&[set(b"b", b"2"), set(b"c", b"3")]);
        (&cut).write_all(&frame[..frame.len() - 1]).unwrap();
        appended(server, 2);
        for client in [&whole, &cut] {
            client.shutdown(std::net::Shutdown::Write).unwrap();
            silent(client);
        }
        commit(server, 2);
        assert_eq!((answer(&whole), answer(&whole)), (ok(b""), ok(b"PONG")));
        assert_eq!(answer(&cut), ok(b""));
        closed(&whole);
        closed(&cut);
    });
}

#[test]
fn a_client_that_waits_for_answers_is_not_idle() {
    with_server("idle_timeout_ms = 100\n", |server| {
        let client = connect(server);
        send(&client, &[set(b"a", b"1")]);
        appended(server, 1);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(250) {
            silent(&client);
        }
        commit(server, 1);
        assert_eq!(answer(&client), ok(b""));
        let began = Instant::now();
        closed(&client);
        assert!(began.elapsed() >= Duration::from_millis(90));
    });
}

#[test]
fn a_request_that_is_not_whole_in_time_is_refused_behind_the_answers_that_wait() {
    with_server("request_timeout_ms = 100\n", |server| {
        let client = connect(server);
        let frame = frames(&[set(b"a", b"1"), set(b"b", b"2")]);
        (&client).write_all(&frame[..frame.len() - 1]).unwrap();
        appended(server, 1);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(200) {
            silent(&client);
        }
        // Too late.
        (&client).write_all(&frame[frame.len() - 1..]).unwrap();
        silent(&client);
        commit(server, 1);
        assert_eq!(answer(&client), ok(b""));
        let (status, message) = answer(&client);
        assert_eq!(status, Status::Error);
        assert_eq!(message, b"request not whole after 100 ms, the limit");
        closed(&client);
        assert_eq!(server.node.head().index, EPOCH_INDEX + 1);
    });
}

#[test]
fn a_client_that_resets_its_connection_leaves_its_place_at_once() {
    with_server("", |server| {
        let client = connect(server);
        send(&client, &[set(b"a", b"1")]);
        appended(server, 1);
        let before = server.shared.registry.lock().peers().count();
        assert_eq!(before, 1);
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        wait_for("the end", || {
            server.shared.registry.lock().peers().count() == 0
        });
    });
}

/// Four clients, each with a write whose answer waits.
fn held_writers(server: &Server) -> Vec<TcpStream> {
    let before = server.node.head().index;
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(server)).collect();
    for (key, client) in (0_u64..).zip(&clients) {
        send(client, &[set(&key.to_be_bytes(), b"v"), Request::Ping]);
    }
    appended_up_to(server, before + 4);
    clients
}

#[test]
fn a_new_epoch_ends_the_wait_for_positions_of_the_one_before() {
    with_server("", |server| {
        let before = held_writers(server);
        let mut next = server.node.history().last().unwrap();
        next.epoch += 1;
        next.start_index = server.node.head().index + 1;
        server.node.open_epoch(next).unwrap();
        for client in &before {
            assert_eq!(answer(client).0, Status::Timeout);
            assert_eq!(answer(client), ok(b"PONG"));
        }
        // Those of the new one wait for the watermark.
        let after = held_writers(server);
        silent(&after[0]);
        commit_up_to(server, server.node.head().index);
        for client in &after {
            assert_eq!((answer(client), answer(client)), (ok(b""), ok(b"PONG")));
        }
    });
}

#[test]
fn a_leader_that_yields_ends_the_wait_of_every_answer() {
    with_server("", |server| {
        let clients = held_writers(server);
        server.node.yield_to_other_leader("another node leads");
        for client in &clients {
            assert_eq!(answer(client).0, Status::Timeout);
            assert_eq!(answer(client), ok(b"PONG"));
            send(client, &[set(b"k", b"v")]);
            assert_eq!(answer(client).0, Status::Loading);
        }
    });
}

#[test]
fn a_stop_ends_the_wait_of_every_answer_before_it_cuts_clients() {
    with_server("", |server| {
        let clients: Vec<TcpStream> = (0..3).map(|_| connect(server)).collect();
        send(&clients[0], &[set(b"a", b"1")]);
        appended(server, 1);
        send(&clients[1], &[Request::Del { key: b"a" }]);
        appended(server, 2);
        send(&clients[2], &[Request::Get { key: b"a" }, Request::Ping]);
        thread::sleep(WHILE);
        server.stopper().stop();
        for client in &clients[..2] {
            assert_eq!(answer(client).0, Status::Timeout);
        }
        assert_eq!(answer(&clients[2]).0, Status::NotLeader);
        assert_eq!(answer(&clients[2]), ok(b"PONG"));
        for client in &clients {
            closed(client);
        }
    });
}

/// Moves the watermark to where the log is now and then, until the server stops.
fn commit_late<'scope>(scope: &'scope Scope<'scope, '_>, server: &'scope Server) {
    scope.spawn(move || {
        while server.shared.lifecycle.state() == lifecycle::State::Running {
            let index = server.node.head().index;
            thread::sleep(Duration::from_micros(700));
            commit_up_to(server, index);
        }
    });
}

#[test]
fn many_clients_that_write_and_read_get_their_own_answers_in_order() {
    with_server("", |server| {
        thread::scope(|scope| {
            commit_late(scope, server);
            let clients = (0_u32..12).map(|number| {
                scope.spawn(move || {
                    let client = connect(server);
                    let key = number.to_be_bytes();
                    for round in 0_u32..60 {
                        let values: Vec<Vec<u8>> = (0..1 + round % 20)
                            .map(|at| {
                                let len = if round % 30 == 29 { 20_000 } else { 40 };
                                vec![(round + at).to_be_bytes()[3]; len]
                            })
                            .collect();
                        let mut requests = Vec::new();
                        for value in &values {
                            requests.push(set(&key, value));
                            requests.push(Request::Get { key: &key });
                            requests.push(Request::Ping);
                        }
                        send(&client, &requests);
                        for value in &values {
                            assert_eq!(answer(&client), ok(b""));
                            assert!(answer(&client) == ok(value), "{number}, {round}");
                            assert_eq!(answer(&client), ok(b"PONG"));
                        }
                    }
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.join().unwrap();
            }
            server.node.discard_dataset("the test ends");
            server.stopper().stop();
        });
    });
}
