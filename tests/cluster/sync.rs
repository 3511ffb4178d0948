//! SYNC at tokens: reads on a follower that see a write, and waits that delay nobody.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::client::{self, ClusterOptions, Error, Response};
use gopherstore::wire::{Request, Status, SyncRequest, Token};

use crate::support::cluster::{Cluster, Options};
use crate::support::names::state;
use crate::support::node::{PATIENCE, wait_for};
use crate::support::proxy::{Cut, Way};

const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 10000";
const WITHIN: Duration = Duration::from_secs(20);

fn cluster() -> Cluster {
    let options = Options {
        replication: QUICK.to_owned(),
        proxies: true,
        ..Options::default()
    };
    let cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

/// Holds what the leader sends to the follower, and writes a key that the follower then lacks. Returns the leader's
/// position after it.
fn write_behind(cluster: &Cluster, key: &[u8]) -> Token {
    cluster.link(1, 0).hold(Way::Down);
    let mut leader = cluster.client(0);
    leader.set(key, b"new").unwrap();
    leader.position().unwrap()
}

fn frame(request: Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    bytes
}

fn sync_at(token: Token, timeout_ms: u32) -> Vec<u8> {
    let value = &SyncRequest::At { token, timeout_ms }.value();
    frame(Request::Sync { value })
}

/// A response: its status and its value.
fn response(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_be_bytes(*header.last_chunk().unwrap());
    let mut value = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut value).unwrap();
    (header[0], value)
}

fn connect(cluster: &Cluster, node: usize) -> TcpStream {
    let stream = TcpStream::connect(cluster.addr(node)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whether something has been received, or the stream has ended.
fn has_arrivals(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let has = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).unwrap();
    has
}

#[test]
fn a_follower_shows_a_write_after_its_sync_and_not_before() {
    let cluster = cluster();
    let mut leader = cluster.client(0);
    leader.set(b"k", b"old").unwrap();
    cluster.wait_converged(WITHIN);
    let token = write_behind(&cluster, b"k");
    let mut follower = cluster.client(1);
    assert_eq!(follower.get(b"k").unwrap(), Some(b"old".to_vec()));

    // Behind a GET that is answered at once, SYNC, then GET and PING that wait for it.
    let mut stream = connect(&cluster, 1);
    let get = frame(Request::Get { key: b"k" });
    let request = [
        &get[..],
        &sync_at(token, 30_000),
        &get,
        &frame(Request::Ping),
    ]
    .concat();
    stream.write_all(&request).unwrap();
    assert_eq!(response(&mut stream), (0, b"old".to_vec()));
    // Others are served meanwhile, and the waiting client gets nothing.
    for _ in 0..100 {
        assert_eq!(follower.get(b"k").unwrap(), Some(b"old".to_vec()));
    }
    let error = follower
        .sync_at(token, Duration::from_millis(50))
        .unwrap_err();
    assert!(matches!(&error, Error::NotReached { .. }), "{error:?}");
    assert!(!error.is_outcome_unknown());
    assert!(!has_arrivals(&stream));

    cluster.link(1, 0).release(Way::Down);
    let (status, value) = response(&mut stream);
    assert_eq!(status, Status::Ok.byte());
    assert!(Token::decode(value.try_into().unwrap()) >= token);
    assert_eq!(response(&mut stream), (0, b"new".to_vec()));
    assert_eq!(response(&mut stream), (0, b"PONG".to_vec()));
    // The client's own calls, also in a pipeline, and at the leader.
    assert!(follower.sync_at(token, PATIENCE).unwrap() >= token);
    assert_eq!(follower.get(b"k").unwrap(), Some(b"new".to_vec()));
    assert!(leader.sync_at(token, Duration::ZERO).unwrap() >= token);
    let value = &SyncRequest::Position.value();
    let mut pipeline = leader.pipeline();
    pipeline
        .set(b"k", b"newer")
        .request(&Request::Sync { value });
    let responses = pipeline.run().unwrap();
    let Ok(Response::Value(bytes)) = &responses[1] else {
        panic!("{responses:?}");
    };
    let token = Token::decode(bytes[..].try_into().unwrap());
    follower.sync_at(token, PATIENCE).unwrap();
    assert_eq!(follower.get(b"k").unwrap(), Some(b"newer".to_vec()));
}

/// Clients that share a thread are not delayed by one of them that waits, and each waits for its own position.
#[test]
fn many_clients_wait_while_many_others_are_served() {
    let cluster = cluster();
    let token = write_behind(&cluster, b"k");
    // More than a node serves with a thread for each.
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| connect(&cluster, 1)).collect();
    let mut served: Vec<TcpStream> = (0..20).map(|_| connect(&cluster, 1)).collect();
    let ping = frame(Request::Ping);
    for stream in waiting.iter_mut().chain(&mut served) {
        stream.write_all(&ping).unwrap();
        assert_eq!(response(stream), (0, b"PONG".to_vec()));
    }
    let request = [sync_at(token, 60_000), frame(Request::Get { key: b"k" })].concat();
    for (at, stream) in waiting.iter_mut().enumerate() {
        // In one piece, or cut.
        let (first, rest) = request.split_at(at * 2);
        stream.write_all(first).unwrap();
        stream.write_all(rest).unwrap();
    }
    let begin = Instant::now();
    for _ in 0..200 {
        for stream in &mut served {
            stream
                .write_all(&frame(Request::Get { key: b"k" }))
                .unwrap();
        }
        for stream in &mut served {
            assert_eq!(response(stream).0, Status::NotFound.byte());
        }
    }
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert!(waiting.iter().all(|stream| !has_arrivals(stream)));
    cluster.link(1, 0).release(Way::Down);
    for stream in &mut waiting {
        assert_eq!(response(stream).0, Status::Ok.byte());
        assert_eq!(response(stream), (0, b"new".to_vec()));
    }
}

#[test]
fn a_session_reads_its_own_writes_at_a_follower_every_time() {
    let options = Options {
        replication: QUICK.to_owned(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(3, &options);
    cluster.wait_converged(WITHIN);
    thread::scope(|scope| {
        for node in [1, 2] {
            let cluster = &cluster;
            scope.spawn(move || {
                let (mut leader, mut follower) = (cluster.client(0), cluster.client(node));
                let key = format!("of-{node}").into_bytes();
                for number in 0..300_u32 {
                    leader.set(&key, &number.to_be_bytes()).unwrap();
                    let token = leader.position().unwrap();
                    follower.sync_at(token, PATIENCE).unwrap();
                    let read = follower.get(&key).unwrap();
                    assert_eq!(read, Some(number.to_be_bytes().to_vec()));
                }
            });
        }
    });
}

#[test]
fn a_client_of_the_cluster_outlives_restarts_of_every_node() {
    let options = Options {
        replication: QUICK.to_owned(),
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(3, &options);
    cluster.wait_converged(WITHIN);
    let addrs: Vec<String> = (0..3).map(|node| cluster.addr(node).to_string()).collect();
    let limits = ClusterOptions {
        timeout: PATIENCE,
        ..ClusterOptions::default()
    };
    let mut client = client::Cluster::with_options(addrs, limits);
    for node in [1, 0, 2, 0] {
        client.set(b"k", b"before").unwrap();
        cluster.wait_converged(WITHIN);
        cluster.stop(node);
        thread::scope(|scope| {
            let call = scope.spawn(|| {
                // Also while no node leads; the stopping one has answered all that it has read.
                client.set(b"k", b"after").unwrap();
                let token = client.position().unwrap();
                client.read_at(token, |node| node.get(b"k")).unwrap()
            });
            cluster.restart(node);
            assert_eq!(call.join().unwrap(), Some(b"after".to_vec()), "{node}");
        });
    }
}

#[test]
fn a_token_of_another_history_is_lost_and_one_that_is_ahead_times_out() {
    let cluster = cluster();
    let token = cluster.client(0).position().unwrap();
    for node in [0, 1] {
        let mut client = cluster.client(node);
        let nonce = token.nonce ^ 1;
        let error = client
            .sync_at(Token { nonce, ..token }, PATIENCE)
            .unwrap_err();
        assert!(matches!(&error, Error::Lost { .. }), "{error:?}");
        let ahead = Token {
            index: token.index + 1_000,
            ..token
        };
        let (wait, begin) = (Duration::from_millis(300), Instant::now());
        let error = client.sync_at(ahead, wait).unwrap_err();
        assert!(matches!(&error, Error::NotReached { .. }), "{error:?}");
        assert!(begin.elapsed() >= wait && begin.elapsed() < PATIENCE);
        client.ping().unwrap();
    }
}

#[test]
fn a_wait_ends_when_the_node_stops() {
    let mut cluster = cluster();
    let token = write_behind(&cluster, b"k");
    let mut streams: Vec<TcpStream> = (0..3).map(|_| connect(&cluster, 1)).collect();
    let mut half_closed = streams.pop().unwrap();
    half_closed.write_all(&sync_at(token, 600_000)).unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    for stream in &mut streams {
        stream.write_all(&sync_at(token, 600_000)).unwrap();
    }
    // One of them has begun another request.
    streams[1].write_all(b"\x04\0").unwrap();
    let begin = Instant::now();
    cluster.begin_stop(1);
    for stream in streams.iter_mut().chain([&mut half_closed]) {
        let (status, message) = response(stream);
        assert_eq!(status, Status::Loading.byte());
        assert!(String::from_utf8(message).unwrap().contains("stopping"));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    drop(streams);
    cluster.link(1, 0).release(Way::Down);
    cluster.wait_stopped(1);
    cluster.restart(1);
    cluster.wait_converged(WITHIN);
    assert_eq!(cluster.client(1).get(b"k").unwrap(), Some(b"new".to_vec()));
}

#[test]
fn a_wait_of_a_client_that_has_reset_its_connection_ends() {
    let cluster = cluster();
    let token = write_behind(&cluster, b"k");
    let mut stream = connect(&cluster, 1);
    let addr = stream.local_addr().unwrap().to_string();
    stream.write_all(&frame(Request::Ping)).unwrap();
    stream.write_all(&sync_at(token, 600_000)).unwrap();
    assert_eq!(response(&mut stream), (0, b"PONG".to_vec()));
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    let end = format!("client {addr}: ");
    wait_for("its end", || {
        cluster.folder_log(1).contains(&end).then_some(())
    });
    cluster.link(1, 0).release(Way::Down);
}

#[test]
fn the_token_of_a_write_that_died_with_its_leader_is_lost() {
    let mut cluster = cluster();
    // The leader is lost with a write that the follower lacks, and begins anew without it.
    let token = write_behind(&cluster, b"k");
    cluster.kill(0);
    let mut stream = connect(&cluster, 1);
    let ahead = Token {
        epoch: token.epoch + 100,
        ..token
    };
    stream.write_all(&sync_at(ahead, 600_000)).unwrap();
    cluster.link(1, 0).cut(Cut::Reset);
    cluster.link(1, 0).release(Way::Down);
    cluster.restart(0);
    cluster.wait_for_status(1, WITHIN, "a new leader", |status| {
        status.is_state(state::SERVING) && status.get("link") == Some("up")
    });
    // The token of the write that died with its leader.
    let error = cluster.client(1).sync_at(token, PATIENCE).unwrap_err();
    assert!(matches!(&error, Error::Lost { .. }), "{error:?}");
    assert!(
        !has_arrivals(&stream),
        "the wait goes on: its epoch may come"
    );
}
