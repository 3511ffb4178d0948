//! Start, stop, arguments.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use gopherstore::wire::Request;

use crate::node::{Node, Options, wait_for};
use crate::silent::Silent;
use crate::{answer, closed, done, frames, pong};

fn server(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Exit code, standard output and standard error.
fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_signal_stops_the_node_in_good_order() {
    for signal in ["INT", "TERM"] {
        let mut node = Node::start();
        let idle = node.connect();
        let mut busy = node.connect();
        busy.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&busy), pong());
        let set = frames(&[Request::Set {
            key: b"k",
            value: b"v",
        }]);
        busy.write_all(&set).unwrap();
        assert_eq!(answer(&busy), done());
        node.signal(signal);
        closed(&idle);
        closed(&busy);
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        assert!(node.log().contains("has stopped"));
        assert!(!node.log().contains("cutting off"));
    }
}

#[test]
fn a_stop_does_not_wait_for_a_connect() {
    let silent = Silent::start();
    let mut node = Node::start_with(&Options {
        leader: Some(silent.addr),
        limits: "[replication]\nheartbeat_interval_ms = 20000\nleader_timeout_ms = 60000",
        ..Options::default()
    });
    // Both threads that connect do by now, or will find the node stopped.
    wait_for("its threads", || (node.threads("probe") > 0).then_some(()));
    let begin = Instant::now();
    node.signal("TERM");
    let status = node.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn requests_that_have_come_are_answered_before_the_node_stops() {
    for _ in 0..10 {
        let mut node = Node::start();
        let mut stream = node.connect();
        // The node has this batch when the first of its answers is there.
        let count = 5_000;
        stream
            .write_all(&frames(&vec![Request::Ping; count]))
            .unwrap();
        assert_eq!(answer(&stream), pong());
        node.signal("TERM");
        for n in 1..count {
            assert_eq!(answer(&stream), pong(), "{n}");
        }
        closed(&stream);
        assert_eq!(node.wait().code(), Some(0));
    }
}

/// A client that reads slowly and goes on asking: closing the socket on it would reset the connection, and answers that
/// it was given would be lost on their way.
#[test]
fn answers_on_their_way_outlive_the_stop_of_their_node() {
    let mut node = Node::start();
    let mut stream = node.connect();
    let value = vec![b'x'; 300];
    let count = 3_000;
    stream
        .write_all(&frames(&[Request::Set {
            key: b"k",
            value: &value,
        }]))
        .unwrap();
    assert_eq!(answer(&stream), done());
    socket2::SockRef::from(&stream)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    stream
        .write_all(&frames(&vec![Request::Get { key: b"k" }; count]))
        .unwrap();
    assert_eq!(answer(&stream).1, value);
    node.signal("TERM");
    wait_for("the stop", || node.log().contains("stopping").then_some(()));
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    for n in 1..count {
        assert_eq!(answer(&stream).1, value, "{n}");
    }
    assert_eq!(node.wait().code(), Some(0));
    assert!(!node.log().contains("cutting off"), "{}", node.log());
}

#[test]
fn a_request_that_has_begun_to_arrive_is_finished_before_the_node_stops() {
    let mut node = Node::start();
    let mut streams = [node.connect(), node.connect()];
    let values = [vec![b'x'; 30_000], vec![b'x'; 300_000]];
    let sets = values
        .each_ref()
        .map(|value| frames(&[Request::Set { key: b"k", value }]));
    for (stream, set) in streams.iter_mut().zip(&sets) {
        // The answer to the PING shows that the node is about to read what follows it.
        stream
            .write_all(&[&frames(&[Request::Ping]), &set[..20_000]].concat())
            .unwrap();
        assert_eq!(answer(stream), pong());
    }
    // Where the rest of the first half is read after the stop, the request has not begun for the node: nothing to test.
    std::thread::yield_now();
    node.signal("TERM");
    wait_for("the stop", || node.log().contains("stopping").then_some(()));
    for (stream, set) in streams.iter_mut().zip(&sets) {
        stream.write_all(&set[20_000..]).unwrap();
        assert_eq!(answer(stream), done());
        closed(stream);
    }
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_node_at_once() {
    let mut node = Node::start();
    let value = vec![b'x'; 1 << 20];
    let mut stream = node.connect();
    stream
        .write_all(&frames(&[Request::Set {
            key: b"k",
            value: &value,
        }]))
        .unwrap();
    assert_eq!(answer(&stream), done());
    // Answers that nobody takes: the first signal waits for them.
    stream
        .write_all(&frames(&[Request::Get { key: b"k" }; 100]))
        .unwrap();
    answer(&stream);
    node.signal("TERM");
    wait_for("the node to stop", || {
        node.log().contains("stopping").then_some(())
    });
    node.signal("TERM");
    let status = node.wait();
    assert_eq!(
        status.code(),
        Some(128 + 15),
        "{status} {:?}",
        status.signal()
    );
    assert!(!node.log().contains("cutting off"));
}

#[test]
fn a_client_that_does_not_let_go_is_cut_off_in_the_end() {
    let mut node = Node::start();
    let value = vec![b'x'; 1 << 20];
    let mut stream = node.connect();
    stream
        .write_all(&frames(&[Request::Set {
            key: b"k",
            value: &value,
        }]))
        .unwrap();
    assert_eq!(answer(&stream), done());
    stream
        .write_all(&frames(&[Request::Get { key: b"k" }; 100]))
        .unwrap();
    answer(&stream);
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    assert!(
        node.log().contains("did not finish in time: 1"),
        "{}",
        node.log()
    );
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let addr = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.toml");
    let config =
        format!("cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"{addr}\"\n");
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    let (code, out, err) = outcome(&server(&["--config", file, "--node", "n1"]));
    assert_eq!((code, out.as_str()), (1, ""));
    let expected = format!(
        "gopherstore-server: cannot listen on {addr}: Address already in use (os error 98); \
         stop what listens there, or change addr of node \"n1\" in {file}\n"
    );
    assert_eq!(err, expected);
}

#[test]
fn wrong_arguments_and_files_are_one_clear_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.toml");
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n";
    std::fs::write(&file, config).unwrap();
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, config.replace("leader", "laeder")).unwrap();
    let (file, bad) = (file.to_str().unwrap(), bad.to_str().unwrap());
    for (arguments, part) in [
        (&["--config", file, "--node", "n2"][..], "no node \"n2\""),
        (&["--config", file], "--node NAME is needed"),
        (&["--config", bad, "--node", "n1"], "bad.toml:2:1: laeder: "),
        (
            &["--config", "/nowhere/cluster.toml", "--node", "n1"],
            "/nowhere/cluster.toml",
        ),
        (&["--config"], "--config"),
        (&["--what"], "--what"),
        (&["stray"], "stray"),
    ] {
        let (code, out, err) = outcome(&server(arguments));
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(
            err.starts_with("gopherstore-server: ") && err.contains(part),
            "{err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let (code, _, err) = outcome(&server(&[
        "--config",
        file,
        "--check-config",
        "--node",
        "n7",
    ]));
    assert!(code == 2 && err.contains("n7"), "{code} {err}");
    let (code, out, err) = outcome(&server(&["--config", file, "--check-config"]));
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "n1 127.0.0.1:0 leader\n", "")
    );
}

#[test]
fn version_and_help_go_to_standard_output() {
    for flag in ["--version", "-V"] {
        let (code, out, err) = outcome(&server(&[flag]));
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(
            out,
            format!("gopherstore-server {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
    for flag in ["--help", "-h"] {
        let (code, out, err) = outcome(&server(&[flag]));
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.starts_with("Usage: gopherstore-server") && out.contains("--check-config"));
    }
}
