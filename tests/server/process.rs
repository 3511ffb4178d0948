//! Start, stop, arguments.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gopherstore::wire::Request;

use crate::node::{Node, Options, wait_for};
use crate::silent::Silent;
use crate::tools;
use crate::{answer, closed, done, frames, pong, set_k};

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
fn received_requests_are_answered_before_the_node_stops() {
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
    set_k(&stream, &value);
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
fn a_client_that_stays_connected_is_cut_off_at_the_end() {
    let mut node = Node::start();
    let value = vec![b'x'; 1 << 20];
    let mut stream = node.connect();
    set_k(&stream, &value);
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
        (
            &["--addr", "127.0.0.1:0", "--node", "n1"],
            "--addr is for a single node",
        ),
        (
            &["--addr", "127.0.0.1"],
            "--addr: \"127.0.0.1\" is not host:port, such as ",
        ),
        (&["--addr", "h:70000"], "--addr: port 70000 of"),
        (&["--addr", "\"'\n"], "--addr: "),
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

/// Port 8000 may be taken, by whatever else runs here. The message of that says which port it was, and what to do.
#[test]
fn without_arguments_it_is_a_single_node_on_port_8000_and_reads_no_file() {
    let dir = tempfile::tempdir().unwrap();
    // Reading this would be an error.
    std::fs::write(dir.path().join("cluster.toml"), "nonsense").unwrap();
    let log = dir.path().join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    let status = wait_for("the node or an error", || {
        let is_up = said().contains("cluster.toml is here");
        let ended = child.try_wait().unwrap();
        (is_up || ended.is_some()).then_some(ended)
    });
    if status.is_none() {
        assert!(tools::signal(child.id(), "TERM"));
    }
    let code = child.wait().unwrap().code();
    let said = said();
    if status.is_none() {
        assert_eq!(code, Some(0), "{said}");
        for part in [
            "a single node on 127.0.0.1:8000: no file was read",
            "It is in no cluster",
            "nothing is on disk",
            "cluster.toml is here and was not read; to start a node of it: gopherstore-server --node NAME",
        ] {
            assert!(said.contains(part), "{said}");
        }
    } else {
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(
            said,
            "gopherstore-server: cannot listen on 127.0.0.1:8000: Address already in use (os error 98); \
             stop what listens there, or give another address with --addr HOST:PORT\n"
        );
    }
}

#[test]
fn a_single_node_listens_on_its_addr_option() {
    let dir = tempfile::tempdir().unwrap();
    let start = |addr: &str| {
        Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--addr", addr])
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut node = start("127.0.0.1:0");
    let mut line = String::new();
    let mut stdout = BufReader::new(node.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let rest = line.strip_prefix("gopherstore-server: single ready on ");
    let addr = rest.and_then(|rest| rest.strip_suffix(" (leader)\n"));
    let addr = addr.unwrap_or_else(|| panic!("{line}"));
    let second = start(addr).wait_with_output().unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    (&stream).write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    assert!(tools::signal(node.id(), "TERM"));
    let (code, _, err) = outcome(&node.wait_with_output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(!err.contains("cluster.toml"), "{err}");
    let (code, _, err) = outcome(&second);
    assert_eq!(code, 1);
    assert!(
        err.contains("stop what listens there, or give another address with --addr HOST:PORT"),
        "{err}"
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
