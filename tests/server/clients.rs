//! The client library and the command-line client against the built server.

use std::process::{Command, Output};

use gopherstore::client::{Client, ClientOptions, Error, Response};

use crate::node::{Node, Options};

fn connect(node: &Node) -> Client {
    Client::connect(&node.addr.to_string()).unwrap()
}

fn cli(node: &Node, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(["--addr", &node.addr.to_string()])
        .args(arguments)
        .output()
        .unwrap()
}

/// A leader and a node that follows it.
fn pair() -> (Node, Node) {
    let leader = Node::start();
    let follower = Node::start_with(&Options {
        leader: Some(leader.addr),
        ..Options::default()
    });
    (leader, follower)
}

#[test]
fn every_operation_of_the_client() {
    let node = Node::start();
    let mut client = connect(&node);
    client.ping().unwrap();
    for (key, value) in [
        (&b"key"[..], &b"value"[..]),
        (b"", b""),
        (b"\xff\0", &[0; 3 << 20]),
    ] {
        assert_eq!(client.get(key).unwrap(), None);
        assert!(!client.del(key).unwrap());
        client.set(key, value).unwrap();
        assert_eq!(client.get(key).unwrap().as_deref(), Some(value));
        assert!(client.del(key).unwrap());
        assert_eq!(client.get(key).unwrap(), None);
    }
    // A fault of one request is that request's alone.
    let too_long = vec![0; (64 << 20) + 1];
    let error = client.set(b"key", &too_long).unwrap_err();
    assert!(matches!(&error, Error::Server { .. }), "{error}");
    assert!(error.to_string().contains("67108865"), "{error}");
    client.ping().unwrap();
}

#[test]
fn pipelines_of_any_shape_come_to_an_end() {
    let node = Node::start();
    let mut client = connect(&node);
    let value = vec![b'x'; 1 << 20];
    client.set(b"large", &value).unwrap();

    let mut pipeline = client.pipeline();
    for _ in 0..200 {
        // Responses of 200 MiB to requests of a few bytes.
        pipeline.get(b"large");
    }
    let responses = pipeline.run().unwrap();
    assert_eq!(responses.len(), 200);
    assert!(
        responses
            .iter()
            .all(|response| matches!(response, Ok(Response::Value(got)) if *got == value))
    );

    let mut pipeline = client.pipeline();
    for n in 0..50_000_u32 {
        pipeline.set(&n.to_be_bytes(), &n.to_le_bytes());
        pipeline.get(&n.to_be_bytes());
    }
    let responses = pipeline.run().unwrap();
    for (n, pair) in (0_u32..).zip(responses.chunks(2)) {
        assert!(
            matches!(&pair[1], Ok(Response::Value(got)) if *got == n.to_le_bytes()),
            "{n}"
        );
    }
    assert_eq!(responses.len(), 100_000);
}

#[test]
fn a_write_to_a_follower_finds_the_leader() {
    let (leader, follower) = pair();
    let mut client = connect(&follower);
    client.set(b"k", b"v").unwrap();
    assert_eq!(
        connect(&leader).get(b"k").unwrap().as_deref(),
        Some(&b"v"[..])
    );
    assert!(client.del(b"k").unwrap());
    assert_eq!(connect(&leader).get(b"k").unwrap(), None);

    let options = ClientOptions {
        follow_redirects: false,
        ..ClientOptions::default()
    };
    let mut client = Client::connect_with(&follower.addr.to_string(), options).unwrap();
    let error = client.set(b"k", b"v").unwrap_err();
    let addr = leader.addr.to_string();
    assert!(
        matches!(&error, Error::NotLeader { leader: Some(at) } if *at == addr),
        "{error}"
    );
}

#[test]
fn the_cli_follows_redirects_unless_told_otherwise() {
    let (leader, follower) = pair();
    assert_eq!(cli(&follower, &["set", "k", "v"]).status.code(), Some(0));
    assert_eq!(cli(&leader, &["get", "k"]).stdout, b"v");

    let refused = cli(&follower, &["--no-redirect", "set", "k", "w"]);
    assert_eq!(refused.status.code(), Some(4));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&leader.addr.to_string()), "{said}");
    assert_eq!(cli(&leader, &["get", "k"]).stdout, b"v");
}

#[test]
fn bytes_that_are_no_text_pass_through_the_command_line() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let node = Node::start();
    let (key, value) = (
        OsStr::from_bytes(b"\xff key"),
        OsStr::from_bytes(b"\xfe\x80value"),
    );
    let set = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(["--addr", &node.addr.to_string(), "set"])
        .args([key, value])
        .status()
        .unwrap();
    assert!(set.success());
    assert_eq!(
        connect(&node).get(key.as_bytes()).unwrap().as_deref(),
        Some(value.as_bytes())
    );
}
