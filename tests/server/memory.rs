//! A server with a memory limit.

use std::io::Write;

use gopherstore::client::{Client, NodeStatus};
use gopherstore::wire::{Request, Status};

use crate::node::{Node, Options, Process, wait_for};
use crate::{answer, frames};

/// Sends a SET that is read into memory of its own, and returns the answer.
fn set(node: &Process, key: &[u8], value: &[u8]) -> (Status, Vec<u8>) {
    let mut stream = node.connect();
    stream
        .write_all(&frames(&[Request::Set { key, value }]))
        .unwrap();
    answer(&stream)
}

fn status(node: &Process) -> NodeStatus {
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

#[test]
fn a_cache_that_starts_above_its_limit_refuses_writes_until_enough_is_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let start = |limits: &str| {
        let config = format!(
            "cluster = \"test\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n\
             [storage]\ndata_dir = \"data\"\nsync = \"never\"\n[limits]\n{limits}"
        );
        std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
        let mut node = Process::spawn(dir.path(), "n1", None);
        assert!(node.wait_until_ready());
        // No key makes room for this.
        let mut client = Client::connect(&node.addr.to_string()).unwrap();
        wait_for("the node to lead", || client.del(b"no such key").ok());
        node
    };
    let keys = 120_000_u64;
    let mut node = start("");
    let mut client = Client::connect(&node.addr.to_string()).unwrap();
    let mut pipeline = client.pipeline();
    for key in 0..keys {
        pipeline.set(&key.to_be_bytes(), &[b'v'; 40]);
    }
    assert!(pipeline.run().unwrap().iter().all(Result::is_ok));
    node.signal("TERM");
    assert!(node.wait().success());

    let limit = 2_000_000;
    let node = start("max_memory_bytes = 2_000_000\nwhen_full = \"evict\"");
    let before = status(&node);
    assert_eq!((before.keys, before.evicted), (Some(keys), Some(0)));
    assert!(before.memory_bytes > Some(2 * limit), "{before:?}");
    let mut refused = 0;
    wait_for("a write that is executed", || {
        let (answered, message) = set(&node, b"new", b"v");
        let is_full = answered == Status::Full;
        refused += u64::from(is_full);
        assert!(is_full || (answered, &*message) == (Status::Ok, b""));
        (!is_full).then_some(())
    });
    let after = status(&node);
    let evicted = after.evicted.unwrap();
    assert!(refused >= 2, "{refused} refused: {after:?}");
    let of_a_write = 33_000;
    assert!(
        evicted <= of_a_write * (refused + 1),
        "{refused} refused: {after:?}"
    );
    assert_eq!(after.refused_writes, Some(refused));
    assert!(after.memory_bytes <= Some(limit), "{after:?}");
}
