//! Scans over connections that break.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use gopherstore::client::{Client, Error, ScanOptions};
use gopherstore::config::LimitsConfig;
use gopherstore::node::Node;
use gopherstore::server::Server;

use crate::patient;

/// A node on its own.
fn node() -> SocketAddr {
    let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default()).unwrap();
    let addr = server.local_addr();
    thread::spawn(|| server.run());
    addr
}

fn fill(addr: SocketAddr, keys: u32) {
    let mut client = patient(&addr.to_string());
    let mut pipeline = client.pipeline();
    for key in 0..keys {
        pipeline.set(format!("key{key}").as_bytes(), b"value");
    }
    pipeline.set(b"other", b"");
    pipeline.run().unwrap();
}

fn read_frame(stream: &mut TcpStream, header_len: usize) -> Option<Vec<u8>> {
    let mut frame = vec![0; header_len];
    stream.read_exact(&mut frame).ok()?;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
    let len = match header_len {
        7 => number(&frame[1..3]) + number(&frame[3..]),
        _ => number(&frame[1..]),
    };
    frame.resize(header_len + len, 0);
    stream.read_exact(&mut frame[header_len..]).ok()?;
    Some(frame)
}

/// A relay to the node at an address that may be changed. Each connection ends when its second request has arrived.
fn relay(to: Arc<Mutex<SocketAddr>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(request) = read_frame(&mut stream, 7) else {
                continue;
            };
            let mut node = TcpStream::connect(*to.lock().unwrap()).unwrap();
            node.write_all(&request).unwrap();
            let answer = read_frame(&mut node, 5).unwrap();
            stream.write_all(&answer).unwrap();
            read_frame(&mut stream, 7);
        }
    });
    addr
}

fn options(max: u32) -> ScanOptions {
    ScanOptions {
        prefix: b"key".to_vec(),
        max,
        ..ScanOptions::default()
    }
}

#[test]
fn a_scan_goes_on_where_it_was_after_each_lost_connection() {
    let node = node();
    fill(node, 500);
    let addr = relay(Arc::new(Mutex::new(node)));
    let mut client = Client::unconnected(&addr.to_string(), Default::default());
    let mut seen = BTreeMap::new();
    for item in client.scan(options(7)) {
        *seen.entry(item.unwrap().key).or_insert(0) += 1;
    }
    let expected = (0..500).map(|key| (format!("key{key}").into_bytes(), 1));
    assert_eq!(seen, expected.collect());
}

#[test]
fn a_scan_fails_where_the_process_of_the_node_is_another() {
    let (first, second) = (node(), node());
    fill(first, 100);
    fill(second, 100);
    let to = Arc::new(Mutex::new(first));
    let addr = relay(Arc::clone(&to));
    let mut client = Client::unconnected(&addr.to_string(), Default::default());
    let mut scan = client.scan(options(7));
    for _ in 0..7 {
        scan.next().unwrap().unwrap();
    }
    *to.lock().unwrap() = second;
    let error = scan.find_map(Result::err).unwrap();
    let Error::Server { message } = &error else {
        panic!("{error:?}");
    };
    let is_told = message.ends_with("the place is of another process of this node; begin again");
    assert!(
        message.starts_with("incarnation 0x") && is_told,
        "{message}"
    );
    assert!(scan.next().is_none());
}

#[test]
fn a_scan_tries_again_with_each_call_where_no_node_responds() {
    let node = node();
    fill(node, 3);
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut client = Client::unconnected(&gone.to_string(), Default::default());
    let mut scan = client.scan(options(0));
    for _ in 0..2 {
        assert!(matches!(scan.next(), Some(Err(Error::Connect { .. }))));
    }
    let mut client = patient(&node.to_string());
    assert_eq!(client.scan(options(0)).count(), 3);
    assert_eq!(client.scan(ScanOptions::default()).count(), 4);
}
