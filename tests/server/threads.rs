//! A system with few threads: a starting node reports the missing thread, and a running one continues.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gopherstore::wire::replication::{Follow, StreamOpcode, Watch, WatchFrom};
use gopherstore::wire::{Request, Status};

use crate::node::{Process, free_port, wait_for};
use crate::{answer, frames, pong, tools};

/// Enough threads for a node of a cluster of two and a few clients.
const MANY: u32 = 40;

/// Starts the node n1 of a cluster of two as a user with this limit of threads.
fn start(dir: &Path, limit: u32) -> Process {
    // A user of this test alone, since all processes of a user count.
    let user = format!("--reuid={}", 2_000_000 + std::process::id());
    let limit = format!("--nproc={limit}");
    let words = [
        "prlimit",
        &limit,
        "setpriv",
        &user,
        "--clear-groups",
        "./server",
    ];
    let _ = std::fs::remove_file(dir.join("log"));
    Process::spawn_by(dir, "n1", &words)
}

#[test]
fn a_node_without_threads_ends_with_an_error_or_rejects_clients_and_goes_on() {
    if !tools::are_there(&["prlimit", "setpriv"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Where another user can run it.
    let server = env!("CARGO_BIN_EXE_gopherstore-server");
    std::fs::copy(server, dir.path().join("server")).unwrap();
    let config = format!(
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:{}\"\n\
         [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:{}\"\n",
        free_port(),
        free_port(),
    );
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let mut ended = 0;
    for limit in 1..MANY {
        let mut node = start(dir.path(), limit);
        let ended_with = wait_for("the end, or the start", || {
            if let Some(status) = node.try_wait() {
                return Some(Some(status));
            }
            node.log().contains("leading from index").then_some(None)
        });
        let log = node.log();
        if log.contains("setpriv: ") {
            tools::skip("a process of another user needs root");
            return;
        }
        if let Some(status) = ended_with {
            assert_eq!(status.code(), Some(1), "{limit}: {log}");
            let last = log.lines().last().unwrap_or_default();
            assert!(
                last.contains("cannot start the ") && last.contains("allow more processes"),
                "{limit}: {log}"
            );
            ended += 1;
            continue;
        }
        assert!(ended > 3, "{limit}: {log}");
        assert!(node.wait_until_ready());
        let is_checked = rejects_clients(&node);
        node.signal("TERM");
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{}", node.log());
        if is_checked {
            assert!(node.log().contains("cannot start a thread for this"));
            return;
        }
    }
    panic!("no client was rejected");
}

/// A FOLLOW of a node that holds nothing.
fn follow(name: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let follow = Follow {
        name: name.as_bytes(),
        wants_snapshot: true,
        is_to_lead: false,
        epoch: 0,
        nonce: 0,
        last_index: 0,
        cluster_id: b"c",
    };
    follow.encode(&mut frame).unwrap();
    frame
}

/// A WATCH of all keys from now on.
fn watch() -> Vec<u8> {
    let mut frame = Vec::new();
    let watch = Watch {
        prefix: b"",
        wants_values: false,
        from: WatchFrom::Now,
    };
    watch.encode(&mut frame).unwrap();
    frame
}

/// Connects clients until one is rejected, and checks that the clients before it are still served. Returns false if no
/// client was rejected, or if fewer than two were served, which the check of streams needs.
fn rejects_clients(node: &Process) -> bool {
    let ask = |mut stream: &TcpStream| {
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        answer(stream)
    };
    let mut served = Vec::new();
    while served.len() < usize::try_from(MANY).unwrap() {
        let stream = node.connect();
        let (status, value) = ask(&stream);
        if status == Status::Ok {
            served.push(stream);
            continue;
        }
        let message = String::from_utf8(value).unwrap();
        assert!(message.starts_with("cannot start a thread"), "{message}");
        if served.len() < 2 {
            return false;
        }
        // A stream needs one more thread than a client: it ends, and nothing else does.
        let mut stream = served.pop().unwrap();
        stream.write_all(&follow("n2")).unwrap();
        assert_eq!(answer(&stream).0, Status::Ok);
        // Skips the bytes that it was sent before.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        let fault = "n2 no longer ";
        node.wait_for_log(fault);
        let log = node.log();
        let line = log.lines().find(|line| line.contains(fault)).unwrap();
        assert!(line.contains("no thread for it: "), "{line}");
        // So that the next one finds none either.
        served.push(wait_for("its thread", || {
            let stream = node.connect();
            (ask(&stream) == pong()).then_some(stream)
        }));
        // That of a watcher needs none.
        let mut watcher = served.pop().unwrap();
        watcher.write_all(&watch()).unwrap();
        assert_eq!(answer(&watcher).0, Status::Ok);
        let mut beat = [0; 87];
        watcher.read_exact(&mut beat).unwrap();
        assert_eq!(beat[0], StreamOpcode::Heartbeat.byte());
        for stream in &served {
            assert_eq!(ask(stream), pong());
        }
        return true;
    }
    false
}
