//! A server with a memory limit.

use std::io::Write;

use gopherstore::client::NodeStatus;
use gopherstore::wire::{Request, Status};

use crate::node::{Node, Options};
use crate::{answer, frames};

/// Sends a SET that is read into memory of its own, and returns the answer.
fn set(node: &Node, key: &[u8], value: &[u8]) -> (Status, Vec<u8>) {
    let mut stream = node.connect();
    stream
        .write_all(&frames(&[Request::Set { key, value }]))
        .unwrap();
    answer(&stream)
}

fn status(node: &Node) -> NodeStatus {
    let mut stream = node.connect();
    stream.write_all(&frames(&[Request::Status])).unwrap();
    let (_, text) = answer(&stream);
    NodeStatus::parse(&String::from_utf8(text).unwrap())
}

#[test]
fn a_full_server_refuses_large_values_and_says_how_much_it_holds() {
    let node = Node::start_with(&Options {
        limits: "max_memory_bytes = 2000000",
        ..Options::default()
    });
    let value = vec![b'v'; 600_000];
    for key in [b"1", b"2", b"3"] {
        assert_eq!(set(&node, key, &value), (Status::Ok, vec![]));
    }
    let (full, message) = set(&node, b"4", &value);
    assert_eq!(full, Status::Full);
    let message = String::from_utf8(message).unwrap();
    assert!(message.contains(" of 2000000 bytes"), "{message}");
    let status = status(&node);
    assert_eq!(status.keys, Some(3));
    assert_eq!(status.max_memory_bytes, Some(2_000_000));
    assert_eq!(status.when_full.as_deref(), Some("refuse"));
    assert_eq!((status.evicted, status.refused_writes), (Some(0), Some(1)));
    let used = status.memory_bytes.unwrap();
    assert!((1_800_000..1_820_000).contains(&used), "{used}");
    assert_eq!(set(&node, b"1", &value), (Status::Ok, vec![]));
}

#[test]
fn a_full_cache_makes_room_for_large_values() {
    let node = Node::start_with(&Options {
        limits: "max_memory_bytes = 2000000\nwhen_full = \"evict\"",
        ..Options::default()
    });
    let value = vec![b'v'; 600_000];
    for key in 0..20_u8 {
        assert_eq!(set(&node, &[key], &value), (Status::Ok, vec![]));
    }
    let status = status(&node);
    assert_eq!((status.keys, status.evicted), (Some(3), Some(17)));
    assert_eq!(status.when_full.as_deref(), Some("evict"));
    assert_eq!(set(&node, b"large", &vec![0; 2_000_001]).0, Status::Full);
}
