//! How long a stop takes.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gopherstore::wire::{Request, Status};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::durable::{Durable, log};
use crate::node::{Node, Process, free_port};
use crate::{answer, closed, done, frames, pong};

/// How long the server waits for clients at a stop.
const GRACE: Duration = Duration::from_secs(5);

/// Longer than everything else takes in a stop, and shorter than the grace.
const REST: Duration = Duration::from_secs(3);

/// The leader `n1` of a cluster of two.
struct Leader {
    process: Process,
    config: String,
    /// Goes after the process.
    _dir: TempDir,
}

impl Leader {
    /// Starts it; it leads.
    fn start() -> Leader {
        for _ in 0..20 {
            let config = format!(
                "cluster = \"test\"\nleader = \"n1\"\n\
                 [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:{}\"\n\
                 [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:{}\"\n",
                free_port(),
                free_port()
            );
            let _dir = tempfile::tempdir().unwrap();
            if let Some(process) = start(&config, "n1", &_dir) {
                process.wait_for_log("leading from index");
                return Leader {
                    process,
                    config,
                    _dir,
                };
            }
        }
        panic!("no free port in 20 tries")
    }

    /// Starts the other node, which follows.
    fn start_follower(&self, dir: &TempDir) -> Process {
        let follower = start(&self.config, "n2", dir).expect("its port to be free still");
        follower.wait_for_log("copied n1");
        follower
    }

    /// Stores an entry.
    fn store(&self) {
        let mut client = self.process.connect();
        client.write_all(&frames(&[SET])).unwrap();
        assert_eq!(answer(&client), done());
    }

    /// Waits for its end, and gives the exit status and how long ago `begin` is by then.
    fn wait(&mut self, begin: Instant) -> (Option<i32>, Duration) {
        let status = self.process.wait();
        (status.code(), begin.elapsed())
    }
}

/// Starts a node; `None` where its port is taken.
fn start(config: &str, name: &str, dir: &TempDir) -> Option<Process> {
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let mut process = Process::spawn(dir.path(), name, None);
    process.wait_until_ready().then_some(process)
}

const SET: Request<'static> = Request::Set {
    key: b"k",
    value: b"v",
};

/// Sends the first half of a SET to a node, which waits for the rest by the time that this returns.
fn send_half(mut stream: &TcpStream, node: &Process) {
    let value = vec![b'x'; 30_000];
    let set = frames(&[Request::Set {
        key: b"k",
        value: &value,
    }]);
    let bytes = [&frames(&[Request::Ping]), &set[..20_000]].concat();
    stream.write_all(&bytes).unwrap();
    assert_eq!(answer(stream), pong());
    // The thread that has sent this answer notes next that it waits. It has the time of a new connection for that.
    let mut other = node.connect();
    other.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&other), pong());
}

#[test]
fn a_client_that_resets_its_connection_is_not_waited_for() {
    let mut node = Node::start();
    let mut stream = node.connect();
    let value = vec![b'x'; 1 << 20];
    let set = Request::Set {
        key: b"k",
        value: &value,
    };
    stream.write_all(&frames(&[set])).unwrap();
    assert_eq!(answer(&stream), done());
    stream
        .write_all(&frames(&[Request::Get { key: b"k" }; 100]))
        .unwrap();
    answer(&stream);
    let begin = Instant::now();
    node.signal("TERM");
    node.wait_for_log("stopping");
    // The client has not read all answers, so this resets the connection, and the rest is never acknowledged.
    drop(stream);
    assert_eq!(node.wait().code(), Some(0));
    let took = begin.elapsed();
    assert!(took < REST, "{took:?}");
}

#[test]
fn a_leader_with_a_client_in_mid_frame_stops_after_one_grace_period() {
    let mut leader = Leader::start();
    let dir = tempfile::tempdir().unwrap();
    let _follower = leader.start_follower(&dir);
    leader.store();
    let client = leader.process.connect();
    send_half(&client, &leader.process);
    let begin = Instant::now();
    leader.process.signal("TERM");
    leader.process.wait_for_log("stopping");
    // Like a peer's probes that time out: they come while the client is waited for, and have left by the time that they
    // are admitted.
    for _ in 0..3 {
        let mut probe = leader.process.connect();
        probe.write_all(&frames(&[Request::Status])).unwrap();
    }
    let (code, took) = leader.wait(begin);
    let log = leader.process.log();
    assert_eq!(code, Some(0), "{log}");
    assert!(took > GRACE - REST && took < GRACE + REST, "{took:?}");
    assert!(log.contains("did not finish in time: 1"), "{log}");
    assert_eq!(log.matches("cutting off").count(), 1, "{log}");
    assert!(log.contains("handed over up to index 2"), "{log}");
}

/// Such a client cannot write, and none of its requests that has not arrived whole is answered.
#[test]
fn a_client_that_came_after_the_stop_is_not_waited_for_in_mid_frame() {
    let mut leader = Leader::start();
    leader.store();
    let begin = Instant::now();
    leader.process.signal("TERM");
    // It alone holds data, so it waits for a peer for 5 seconds.
    leader.process.wait_for_log("no writes from here on");
    let late = leader.process.connect();
    send_half(&late, &leader.process);
    let (code, took) = leader.wait(begin);
    let log = leader.process.log();
    assert_eq!(code, Some(3), "{log}");
    assert!(took > GRACE - REST && took < GRACE + REST, "{took:?}");
    closed(&late);
    assert!(!log.contains("cutting off"), "{log}");
}

#[test]
fn a_leader_that_waits_for_a_peer_answers_reads_and_refuses_writes() {
    let mut leader = Leader::start();
    leader.store();
    let early = leader.process.connect();
    leader.process.signal("TERM");
    closed(&early);
    leader.process.wait_for_log("no writes from here on");
    let mut late = leader.process.connect();
    let get = Request::Get { key: b"k" };
    let requests = frames(&[get, SET, Request::Status]);
    late.write_all(&requests).unwrap();
    assert_eq!(answer(&late), (Status::Ok, b"v".to_vec()));
    assert_eq!(answer(&late).0, Status::Loading);
    let text = String::from_utf8(answer(&late).1).unwrap();
    assert!(text.contains("\nstopping: waiting\n"), "{text}");
    closed(&late);
    assert_eq!(leader.process.wait().code(), Some(3));
}

/// The log of a node without peers ends behind the requests that have arrived: an answer that waits for a record of it
/// would never come.
#[test]
fn a_stop_completes_the_writes_that_have_arrived_with_each_policy() {
    for sync in ["always", "interval", "never"] {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..4 {
            let mut node = Durable::start(dir.path(), sync);
            let process = Pid::from_child(&node.child);
            let clients = [(); 16].map(|()| TcpStream::connect(&node.addr).unwrap());
            for mut client in &clients {
                client.write_all(&frames(&[Request::Ping])).unwrap();
                assert_eq!(answer(client), pong());
            }
            kill_process(process, Signal::STOP).unwrap();
            for (i, mut client) in clients.iter().enumerate() {
                let key = format!("{round} {i}");
                let set = Request::Set {
                    key: key.as_bytes(),
                    value: b"v",
                };
                client.write_all(&frames(&[set])).unwrap();
            }
            kill_process(process, Signal::TERM).unwrap();
            kill_process(process, Signal::CONT).unwrap();
            for client in &clients {
                assert_eq!(answer(client), done(), "{sync}: {}", log(dir.path()));
            }
            assert_eq!(node.child.wait().unwrap().code(), Some(0));
        }
        let node = Durable::start(dir.path(), sync);
        let mut client = node.client();
        for round in 0..4 {
            for i in 0..16 {
                let key = format!("{round} {i}");
                assert_eq!(client.get(key.as_bytes()).unwrap(), Some(b"v".to_vec()));
            }
        }
    }
}
