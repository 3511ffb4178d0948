#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use super::super::lifecycle::{self, Lifecycle};
use super::*;
use crate::engine::entry::EntryBuilder;
use crate::node::Node;
use crate::replication::Peers;
use crate::wire::Request;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Has `test` drive a connection whose idle timeout is longer than its memory's time, with its client and the
/// server's stop.
fn drive(test: impl FnOnce(&mut Connection<'_>, TcpStream, &Lifecycle)) {
    let (client, stream) = pair();
    let mut node = Node::alone();
    let peers = Peers::attach(&mut node);
    let timeouts = Timeouts {
        request: Duration::from_secs(30),
        idle: Some(Duration::from_millis(60)),
        release: Duration::from_millis(20),
    };
    let (housekeeper, _chores) = Housekeeper::new(1);
    let peer = Arc::new(Peer::new(stream));
    let lifecycle = Lifecycle::new();
    let registry = Registry::new(1);
    let context = Context {
        peer,
        replica: Replica {
            node: &node,
            peers: &peers,
        },
        limits: Limits::default(),
        timeouts,
        stop: lifecycle.signal(lifecycle.state()),
        registry: &registry,
        housekeeper,
    };
    test(&mut Connection::new(context, &[]), client, &lifecycle);
}

/// Waits alone.
fn wait<'a>(connection: &mut Connection<'a>) -> Event {
    let poller: Poller<'_, Connection<'a>> =
        Poller::new(Duration::from_secs(1), None, None).unwrap();
    connection.wait(&poller).unwrap()
}

#[test]
fn an_idle_connection_frees_grown_buffers() {
    drive(|connection, client, _| frees_buffers(connection, client));
}

fn frees_buffers(connection: &mut Connection<'_>, mut client: TcpStream) {
    let mut frames = Vec::new();
    let value = [b'x'; 15_000];
    Request::Set {
        key: b"k",
        value: &value,
    }
    .encode(&mut frames)
    .unwrap();
    for _ in 0..3 {
        Request::Get { key: b"k" }.encode(&mut frames).unwrap();
    }
    client.write_all(&frames).unwrap();
    while connection.session.output()[0].len() < 45_000 {
        assert!(matches!(connection.step(Thread::Own), Step::Read));
        if connection.session.output()[0].len() < 45_000 {
            assert_eq!(wait(connection), Event::Bytes);
        }
    }
    connection.send_all().unwrap();
    assert!(connection.session.is_grown());
    // The idle timeout is the longer one, so when it is over the memory has to be gone.
    assert_eq!(wait(connection), Event::Idle);
    assert!(!connection.session.is_grown());
}

#[test]
fn a_large_value_goes_to_the_block_of_the_one_before_and_the_stop_waits_for_it() {
    drive(|connection, mut client, lifecycle| {
        let mut sets = Vec::new();
        for byte in [1, 2] {
            let value = &[byte; 60_000];
            let key = b"k";
            Request::Set { key, value }.encode(&mut sets).unwrap();
        }
        let half = sets.len() / 4;
        let read = |connection: &mut Connection<'_>, until: fn(&Connection<'_>) -> usize, count| {
            loop {
                assert!(matches!(connection.step(Thread::Own), Step::Read));
                connection.send_all().unwrap();
                connection.heed_stop();
                if until(connection) == count {
                    return;
                }
                assert_eq!(wait(connection), Event::Bytes);
            }
        };
        let has_spare =
            |connection: &Connection<'_>| usize::from(connection.session.spare().is_some());
        let arrived = |connection: &Connection<'_>| {
            connection.session.large().map_or(0, EntryBuilder::arrived)
        };
        client.write_all(&sets).unwrap();
        read(connection, has_spare, 1);
        // Kept for no longer than other memory.
        assert_eq!(wait(connection), Event::Idle);
        assert!(!connection.session.is_grown());
        client.write_all(&sets[..2 * half]).unwrap();
        read(connection, has_spare, 1);
        let spare = connection
            .session
            .spare()
            .map(|spare| spare.bytes().as_ptr());
        client.write_all(&sets[..half]).unwrap();
        read(connection, arrived, half);
        let large = connection
            .session
            .large()
            .map(|large| large.bytes().as_ptr());
        assert_eq!(large, spare);
        assert_eq!(connection.context.peer.activity(), Activity::Receiving);
        lifecycle.advance(lifecycle::Event::StopRequested { has_peers: false });
        connection.heed_stop();
        client.write_all(&sets[half..2 * half]).unwrap();
        read(connection, has_spare, 1);
        assert_eq!(wait(connection), Event::EndOfStream);
        assert!(connection.session.is_between_frames());
        let value = connection.context.replica.node.engine().get(b"k").unwrap();
        assert_eq!(value.value(), &[1; 60_000]);
    });
}
