//! A follower with other data than its leader: planted before it follows, found by the first heartbeat.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::client::{Client, ClientOptions};
use gopherstore::config::Config;
use gopherstore::history::{EpochStart, History};
use gopherstore::node::Node;
use gopherstore::replication::Peers;
use gopherstore::server::{Server, Stopper};
use gopherstore::wire::replication::{Epochs, FollowAnswer, Message, Start};
use gopherstore::wire::response::Response;
use gopherstore::wire::{Opcode, Request, Status};
use socket2::{Domain, Socket, Type};

use crate::quick::assert_quick_once;
use crate::{apply, ask, entry, epoch_record, with_frame};

const HEARTBEAT: Duration = Duration::from_millis(300);

/// Longest time for a step on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The one epoch of these tests' data.
const EPOCH: EpochStart = EpochStart {
    epoch: 1,
    nonce: 7,
    start_index: 1,
};

/// A port that belongs to this test as long as the socket exists.
fn reserve_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// A leader `n1` and a follower `n2`, in this process.
struct Pair {
    config: Config,
    _reserved: [Socket; 2],
    running: Vec<(Stopper, thread::JoinHandle<()>)>,
}

impl Pair {
    fn new() -> Pair {
        let ((one, first), (two, second)) = (reserve_port(), reserve_port());
        let text = format!(
            "cluster = \"test\"\nleader = \"n1\"\n\
             [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:{}\"\n\
             [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:{}\"\n\
             [replication]\nheartbeat_interval_ms = {}\n",
            first,
            second,
            HEARTBEAT.as_millis()
        );
        Pair {
            config: Config::parse(&text, "cluster.toml").unwrap(),
            _reserved: [one, two],
            running: Vec::new(),
        }
    }

    fn addr(&self, name: &str) -> &str {
        &self.config.node(name).unwrap().addr
    }

    fn node(&self, name: &str) -> Node {
        Node::of_cluster(&self.config, self.config.node(name).unwrap())
    }

    fn run(&mut self, name: &str, node: Node) {
        let server = Server::bind(self.addr(name), node, self.config.limits.clone()).unwrap();
        let stopper = server.stopper();
        let thread = thread::spawn(move || {
            server.run().unwrap();
        });
        self.running.push((stopper, thread));
    }

    fn client(&self, name: &str) -> Client {
        let options = ClientOptions {
            follow_redirects: false,
            ..ClientOptions::default()
        };
        Client::connect_with(self.addr(name), options).unwrap()
    }

    fn status(&self, name: &str, key: &str) -> String {
        let mut stream = TcpStream::connect(self.addr(name)).unwrap();
        let text = status(&mut stream);
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(name, _)| *name == key);
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    #[track_caller]
    fn wait(&self, what: &str, mut is_met: impl FnMut(&Pair) -> bool) {
        let begin = Instant::now();
        while !is_met(self) {
            assert!(begin.elapsed() < PATIENCE, "waited for: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for (stopper, _) in &self.running {
            stopper.stop();
        }
        for (_, thread) in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

fn status(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    Request::Status.encode(&mut request).unwrap();
    stream.write_all(&request).unwrap();
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_be_bytes(header[1..].try_into().unwrap());
    let mut text = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// A data set of these pairs, as records of the log behind that of [`EPOCH`].
fn fill(node: &Node, pairs: &[(&[u8], &[u8])]) {
    apply(node.engine(), &epoch_record(EPOCH)).unwrap();
    for (key, value) in pairs {
        apply(node.engine(), entry(key, value).frame()).unwrap();
    }
    node.adopt();
}

#[test]
fn a_follower_with_other_data_stops_serving_and_takes_a_snapshot() {
    // Another value, another key, and no entry where the leader has one.
    for last in [(&b"c"[..], &b"x"[..]), (b"d", b"3"), (b"a", b"1")] {
        // On a busy machine nobody may look between the difference and the end of the copy.
        assert_quick_once(3 * HEARTBEAT, || finds_a_difference(last));
    }
}

/// A follower whose last entry is another one than the leader's takes a full copy. Returns how long it took until it
/// was seen to load because of the difference; the longest time where it was not seen.
fn finds_a_difference(last: (&[u8], &[u8])) -> Duration {
    let leaders: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")];
    let mut pair = Pair::new();
    let (leader, follower) = (pair.node("n1"), pair.node("n2"));
    fill(&leader, &leaders);
    fill(&follower, &[leaders[0], leaders[1], last]);
    assert_eq!(leader.head().index, follower.head().index);
    assert_ne!(leader.head().digest, follower.head().digest);

    pair.run("n1", leader);
    pair.wait("the leader", |pair| pair.status("n1", "epoch") == "2");
    let (begin, mut found) = (Instant::now(), Duration::MAX);
    pair.run("n2", follower);
    // It serves, and loads before its first stream, before it finds the difference too.
    pair.wait("a full copy", |pair| {
        let reason = pair.status("n2", "reason");
        let is_seen = pair.status("n2", "state") == "loading"
            && (reason.contains("digest at index 4") || reason.contains("full copy"));
        if is_seen {
            found = found.min(begin.elapsed());
        }
        pair.status("n2", "full_copies") != "0" && pair.status("n2", "state") == "serving"
    });
    assert_eq!(pair.status("n2", "full_copies"), "1");
    for key in ["epoch", "index", "digest", "keys"] {
        assert_eq!(pair.status("n1", key), pair.status("n2", key), "{key}");
    }
    let mut client = pair.client("n2");
    for (key, value) in leaders {
        assert_eq!(client.get(key).unwrap().as_deref(), Some(value));
    }
    assert_eq!(client.get(b"d").unwrap(), None);
    found
}

#[test]
fn a_follower_that_has_found_a_difference_answers_no_reads() {
    let pair = Pair::new();
    let node = pair.node("n2");
    fill(&node, &[(b"a", b"1")]);
    let get = |node: &Node| ask(node, &Request::Get { key: b"a" });
    assert_eq!(get(&node).0, Status::Ok);
    node.mark_diverged("the digest differs");
    assert_eq!(get(&node).0, Status::Loading);
    assert_eq!(get(&node).1, b"the digest differs");
    assert!(node.wants_snapshot());
    assert!(!node.is_to_discard(), "only an operator's order says so");
    node.adopt();
    assert!(!node.wants_snapshot());
}

#[test]
fn a_leader_that_knows_nothing_of_it_does_not_empty_a_follower_that_found_a_difference() {
    let mut pair = Pair::new();
    let follower = pair.node("n2");
    fill(&follower, &[(b"a", b"1")]);
    follower.mark_diverged("the digest differs");
    // The leader has no data, and does not copy data that a follower found to differ.
    let leader = pair.node("n1");
    pair.run("n2", follower);
    pair.run("n1", leader);
    pair.wait("the refusal", |pair| {
        pair.status("n2", "state") == "refused"
    });
    assert_eq!(pair.client("n2").get(b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(pair.status("n2", "full_copies"), "0");
}

/// A leader that answers STATUS as `node` does, lets every follower resume after the fourth record and then sends
/// `message`, for as long as the test runs.
fn lead_wrongly(addr: &str, node: &Node, message: Vec<u8>) {
    let report = with_frame(&Request::Status, |frame| node.execute(frame));
    let mut report_bytes = report.header().encode().to_vec();
    report_bytes.extend_from_slice(report.value());
    let listener = TcpListener::bind(addr).unwrap();
    let mut answer = Vec::new();
    let history = History::new(vec![EPOCH]).unwrap();
    FollowAnswer {
        start: Start::Resume { from_index: 5 },
        history: Epochs::of(&history).unwrap(),
    }
    .encode(&mut answer);
    let mut bytes = Vec::new();
    let (status, value) = (Status::Ok.byte(), &answer[..]);
    Response { status, value }.encode(&mut bytes).unwrap();
    bytes.extend(message);
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let (report, bytes) = (report_bytes.clone(), bytes.clone());
            thread::spawn(move || serve_wrongly(stream, &report, &bytes));
        }
    });
}

fn serve_wrongly(mut stream: TcpStream, report: &[u8], bytes: &[u8]) {
    let mut header = [0; 7];
    while stream.read_exact(&mut header).is_ok() {
        let answer = if header[0] == Opcode::Status.byte() {
            report
        } else {
            bytes
        };
        if stream.write_all(answer).is_err() {
            return;
        }
        if header[0] == Opcode::Follow.byte() {
            let mut rest = [0; 512];
            while stream.read(&mut rest).is_ok_and(|count| count > 0) {}
        }
    }
}

/// Runs a follower at index 4 against such a leader.
fn follow_wrongly(message: &Message<'_>) -> Pair {
    let mut pair = Pair::new();
    let follower = pair.node("n2");
    fill(&follower, &[(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]);
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    let mut leader = pair.node("n1");
    let _peers = Peers::attach(&mut leader);
    lead_wrongly(pair.addr("n1"), &leader, bytes);
    pair.run("n2", follower);
    pair.wait("the stream", |pair| pair.status("n2", "resumes") != "0");
    pair
}

#[test]
fn a_heartbeat_for_an_index_that_the_follower_is_not_at_is_a_difference() {
    for digest_index in [3, 5] {
        let pair = follow_wrongly(&Message::Heartbeat {
            epoch: 1,
            round: 1,
            last_index: 5,
            committed_index: 5,
            durable_index: 0,
            time_ms: 0,
            digest_index,
            digest: 0,
        });
        pair.wait("the difference", |pair| {
            let expected = format!("everything up to index {digest_index}, and this node is at 4");
            pair.status("n2", "reason").contains(&expected)
        });
    }
}

#[test]
fn a_snapshot_that_was_not_agreed_on_empties_no_node() {
    let history = History::new(vec![EPOCH]).unwrap();
    let pair = follow_wrongly(&Message::SnapshotBegin {
        epoch: 1,
        keys: 0,
        bytes: 0,
        history: Epochs::of(&history).unwrap(),
    });
    // The stream is dropped and begun again.
    pair.wait("another stream", |pair| {
        pair.status("n2", "resumes")
            .parse()
            .is_ok_and(|count: u64| count > 1)
    });
    assert_eq!(pair.status("n2", "state"), "serving");
    assert_eq!(pair.status("n2", "keys"), "3");
}
