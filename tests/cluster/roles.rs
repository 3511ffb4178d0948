//! Which node leads: what a leader asks before it serves, files that name different leaders, and the last holder's end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::client::Error;

use crate::support::cluster::{Cluster, Options, Status, wait_until};
use crate::support::names::{key, peer, state};
use crate::support::node::PATIENCE;

const LEADER_TIMEOUT: Duration = Duration::from_secs(1);
const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";

fn cluster(nodes: usize) -> Cluster {
    let cluster = start(nodes, false);
    cluster.wait_converged(PATIENCE);
    cluster
}

fn start(nodes: usize, proxies: bool) -> Cluster {
    Cluster::start_with(
        nodes,
        &Options {
            replication: QUICK.to_owned(),
            proxies,
            ..Options::default()
        },
    )
}

/// Keys `PREFIX0` to `PREFIX99`, written on a node.
fn write(cluster: &Cluster, node: usize, prefix: &str) -> Vec<Vec<u8>> {
    let mut client = cluster.client(node);
    let keys: Vec<Vec<u8>> = (0..100)
        .map(|n| format!("{prefix}{n}").into_bytes())
        .collect();
    for key in &keys {
        client.set(key, b"v").unwrap();
    }
    keys
}

#[track_caller]
fn assert_holds(cluster: &Cluster, node: usize, keys: &[Vec<u8>]) {
    let values = cluster.read_all(node, keys).unwrap();
    let missing = values.iter().filter(|value| value.is_none()).count();
    assert_eq!(missing, 0, "of {} keys", keys.len());
}

fn is_loading_for(status: &Status, words: &[&str]) -> bool {
    let reason = status.get("reason").unwrap_or_default();
    status.is_state("loading") && words.iter().all(|word| reason.contains(word))
}

/// Stands in for a node: answers whatever comes with the same bytes, and then closes where it is to.
struct Fake {
    answer: Arc<Mutex<(Vec<u8>, bool)>>,
    listener: Arc<TcpListener>,
    addr: SocketAddr,
    thread: Option<thread::JoinHandle<()>>,
}

impl Fake {
    fn start(addr: SocketAddr) -> Fake {
        let listener = Arc::new(TcpListener::bind(addr).unwrap());
        let answer = Arc::new(Mutex::new((Vec::new(), false)));
        let thread = thread::spawn({
            let (listener, answer) = (Arc::clone(&listener), Arc::clone(&answer));
            move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    let answer = Arc::clone(&answer);
                    // Ends with its connection, which the node closes.
                    thread::spawn(move || {
                        let mut request = [0; 64];
                        while stream.read(&mut request).is_ok_and(|count| count > 0) {
                            let (bytes, closes) = answer.lock().unwrap().clone();
                            if stream.write_all(&bytes).is_err() || closes {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Fake {
            answer,
            listener,
            addr,
            thread: Some(thread),
        }
    }

    fn answers(&self, bytes: Vec<u8>, closes: bool) {
        *self.answer.lock().unwrap() = (bytes, closes);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        assert!(self.addr.port() > 0);
    }
}

fn response(status: u8, text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[status][..], &len, text.as_bytes()].concat()
}

/// Any answer but a report may come from a node with all the data.
#[test]
fn a_leader_that_starts_waits_for_a_peer_whose_answer_is_unclear() {
    let mut cluster = cluster(2);
    for node in [0, 1] {
        cluster.kill(node);
    }
    let fake = Fake::start(cluster.addr(1));
    let half = response(0, "node: n2\ncluster: test\n")[..20].to_vec();
    let cases: [(Vec<u8>, bool, &str); 6] = [
        (
            response(1, "too many connections, limit 10"),
            true,
            "too many connections",
        ),
        (response(4, "this node is about to serve"), false, "LOADING"),
        (response(2, "127.0.0.1:1"), false, "NOT_LEADER"),
        (
            response(0x0c, "of a later version"),
            false,
            "unknown status",
        ),
        (half, true, "cut off"),
        (
            response(0, "node: n2\ncluster: test\nrole: follower\n"),
            false,
            "state",
        ),
    ];
    fake.answers(cases[0].0.clone(), cases[0].1);
    cluster.restart(0);
    for (answer, closes, word) in cases {
        fake.answers(answer, closes);
        cluster.wait_for_status(0, PATIENCE, word, |status| {
            is_loading_for(status, &["n2", word])
        });
        let begin = Instant::now();
        while begin.elapsed() < LEADER_TIMEOUT * 3 / 2 {
            let status = cluster.status(0).unwrap();
            assert!(is_loading_for(&status, &["n2"]), "{word}:{status}");
        }
    }
    drop(fake);
    // Open connections still say so. Then the port is closed.
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
}

#[test]
fn a_stranger_at_a_peers_address_is_named_and_passed_over() {
    let mut cluster = cluster(3);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.kill(1);
    cluster.kill(0);
    let fake = Fake::start(cluster.addr(1));
    fake.answers(
        response(
            0,
            "node: m1\ncluster: other\nrole: leader\nstate: serving\n",
        ),
        false,
    );
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert_holds(&cluster, 0, &keys);
    cluster.wait_for_status(0, PATIENCE, "the stranger", |status| {
        status.get(&key::peer_state("n2")) == Some(peer::DOWN)
            && status
                .get("peer.n2.reason")
                .is_some_and(|reason| reason.contains("node m1 of cluster other"))
    });
    let log = cluster.folder_log(0);
    assert_eq!(
        log.matches("node m1 of cluster other answers").count(),
        1,
        "{log}"
    );
    drop(fake);
}

/// A follower does not follow another cluster's node at its leader's address.
#[test]
fn a_stranger_at_the_leaders_address_is_not_followed() {
    let mut cluster = cluster(2);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.kill(0);
    let fake = Fake::start(cluster.addr(0));
    fake.answers(
        response(
            0,
            "node: m1\ncluster: other\nrole: leader\nstate: serving\n",
        ),
        false,
    );
    let text = "not following n1: node m1 of cluster other answers at";
    wait_until(PATIENCE, "the stranger's name", || {
        cluster.folder_log(1).contains(text)
    });
    assert_holds(&cluster, 1, &keys);
    drop(fake);
}

#[test]
fn a_silent_peer_is_passed_over_after_the_leader_timeout_and_an_error_names_it() {
    let mut cluster = cluster(3);
    let lines = |cluster: &Cluster| {
        let log = cluster.folder_log(1);
        log.matches("not following n1: n1 answers LOADING").count()
    };
    let before = lines(&cluster);
    cluster.kill(0);
    cluster.pause(2);
    let begin = Instant::now();
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to wait for n3", |status| {
        is_loading_for(status, &["n3"])
    });
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert!(begin.elapsed() >= LEADER_TIMEOUT);
    cluster.wait_for_status(1, PATIENCE, "to follow", |status| {
        status.get("link") == Some("up")
    });
    let log = cluster.folder_log(0);
    assert!(
        log.contains("ERROR") && log.contains("n3 does not answer, and is passed over"),
        "{log}"
    );
    // However long the leader waited and for whom, the follower has logged one line.
    assert_eq!(lines(&cluster) - before, 1, "{}", cluster.folder_log(1));
    cluster.resume(2);
    cluster.wait_converged(PATIENCE);
}

/// The file names another leader and the nodes are restarted one by one: at no time do two take writes, and nothing
/// that was acknowledged is gone.
#[test]
fn a_change_of_the_leader_in_the_file_loses_nothing() {
    for order in [[2, 1, 0], [1, 2, 0], [0, 1, 2]] {
        let mut cluster = cluster(3);
        let mut keys = write(&cluster, 0, "before");
        cluster.wait_converged(PATIENCE);
        for (step, node) in order.into_iter().enumerate() {
            cluster.stop(node);
            cluster.set_leader(node, "n2");
            cluster.restart(node);
            for writer in 0..3 {
                let key = format!("step{step}at{writer}").into_bytes();
                if cluster.client(writer).set(&key, b"v").is_ok() {
                    keys.push(key);
                }
            }
        }
        cluster.wait_for_status(1, PATIENCE, "to lead", |status| {
            status.is_state(state::SERVING)
        });
        cluster.wait_converged(PATIENCE);
        for node in 0..3 {
            assert_holds(&cluster, node, &keys);
        }
        if order[0] == 1 {
            let log = cluster.folder_log(1);
            assert!(
                log.contains("ERROR") && log.contains("n1 leads, by its own cluster.toml"),
                "{log}"
            );
        }
    }
}

/// As docs/operating.md tells: the leader's machine is gone, and there are two followers.
#[test]
fn another_node_becomes_the_leader_when_the_leaders_machine_is_gone() {
    let mut cluster = cluster(3);
    let mut keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.kill(0);
    for node in [1, 2] {
        cluster.stop(node);
        cluster.set_leader(node, "n2");
        cluster.restart(node);
        cluster.wait_for_status(1, PATIENCE, "to lead", |status| {
            status.is_state(state::SERVING)
        });
        assert_holds(&cluster, 1, &keys);
        keys.extend(write(&cluster, 1, &format!("after{node}")));
    }
    cluster.wait_for_status(2, PATIENCE, "to follow", |status| {
        status.get("link") == Some("up")
    });
    // The machine comes back, with the file as it was.
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to follow n2", |status| {
        status.is_state(state::SERVING)
            && status.get("role") == Some("follower")
            && status.get("link") == Some("up")
    });
    assert_holds(&cluster, 0, &keys);
    let n2 = cluster.addr(1).to_string();
    assert!(matches!(
        cluster.client(0).set(b"x", b"v"),
        Err(Error::NotLeader { leader: Some(addr) }) if addr == n2
    ));
    keys.extend(write(&cluster, 1, "beside"));
    cluster.stop(0);
    cluster.set_leader(0, "n2");
    cluster.restart(0);
    cluster.wait_converged(PATIENCE);
    for node in 0..3 {
        assert_holds(&cluster, node, &keys);
    }
}

/// As docs/operating.md tells: there is one follower, and the leader's name starts elsewhere.
#[test]
fn the_leaders_name_starts_elsewhere_with_its_followers_data() {
    let mut cluster = cluster(2);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.kill(0);
    cluster.move_node(0);
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert_holds(&cluster, 0, &keys);
    // The follower has the old address until it is restarted, and cannot know that the leader has its data.
    cluster.begin_stop(1);
    cluster.wait_stopped_with(1, 3);
    cluster.update_addresses(1);
    cluster.restart(1);
    cluster.wait_converged(PATIENCE);
    assert_holds(&cluster, 1, &keys);
}

/// The machine of a leader that was thought to be gone is alive: its followers say so to the node that has taken its
/// name.
#[test]
fn a_second_leader_of_one_name_does_not_lead_while_the_first_one_is_followed() {
    let mut cluster = cluster(3);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    let mut first = cluster.move_running(0);
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "the first one", |status| {
        is_loading_for(status, &["follows a leader at"])
    });
    wait_until(PATIENCE, "the error", || {
        let log = cluster.folder_log(0);
        log.contains("ERROR") && log.contains("not leading: n2 follows a leader at")
            || log.contains("not leading: n3 follows a leader at")
    });
    first.kill();
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert_holds(&cluster, 0, &keys);
}

/// The wrong follower was restarted first, and knows a leader that has the data and does not lead. That one hands its
/// data over as it stops.
#[test]
fn a_follower_that_stops_hands_its_data_to_any_peer() {
    let mut cluster = cluster(3);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.kill(0);
    for node in [2, 1] {
        cluster.stop(node);
        cluster.set_leader(node, "n2");
        cluster.restart(node);
    }
    cluster.wait_for_status(1, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert_holds(&cluster, 1, &keys);
}

#[test]
fn a_node_that_refuses_its_leader_says_what_is_lost_as_it_stops() {
    let mut cluster = cluster(2);
    write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.pause(1);
    cluster.kill(0);
    cluster.restart(0);
    cluster.wait_for_status(0, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    cluster.resume(1);
    cluster.wait_for_status(1, PATIENCE, "to refuse", |status| {
        status.is_state(state::REFUSED)
    });
    cluster.client(0).set(b"fresh", b"v").unwrap();
    // Neither has what the other has.
    for node in [0, 1] {
        cluster.begin_stop(node);
        cluster.wait_stopped_with(node, 3);
        let log = cluster.folder_log(node);
        assert!(log.contains("ERROR") && log.contains("lost with"), "{log}");
    }
}

#[test]
fn two_nodes_that_are_both_to_lead_wait_until_one_file_is_corrected() {
    let mut cluster = cluster(3);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    for node in [0, 1] {
        cluster.kill(node);
    }
    cluster.set_leader(1, "n2");
    // The first of them would find no peer. So that neither is first, both start beside a peer that is silent until
    // both have started.
    cluster.pause(2);
    cluster.restart(0);
    cluster.restart(1);
    for (node, other) in [(0, "n2"), (1, "n1")] {
        cluster.wait_for_status(node, PATIENCE, "the conflict", |status| {
            is_loading_for(status, &[other, "is to lead as well"])
        });
        wait_until(PATIENCE, "the error", || {
            let log = cluster.folder_log(node);
            log.contains("ERROR") && log.contains("is to lead as well")
        });
    }
    cluster.resume(2);
    let begin = Instant::now();
    while begin.elapsed() < LEADER_TIMEOUT * 3 / 2 {
        for node in [0, 1] {
            assert!(cluster.status(node).unwrap().is_state("loading"));
        }
    }
    cluster.stop(1);
    cluster.set_leader(1, "n1");
    cluster.restart(1);
    cluster.wait_converged(PATIENCE);
    for node in 0..3 {
        assert_holds(&cluster, node, &keys);
    }
}

/// The network between two leaders is back: the one with the older epoch takes no more writes, and keeps its data.
#[test]
fn of_two_leaders_the_one_with_the_older_epoch_yields() {
    let mut cluster = start(3, true);
    cluster.wait_converged(PATIENCE);
    let keys = write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    cluster.stop(1);
    cluster.set_leader(1, "n2");
    let links = [(0, 1), (1, 0), (0, 2), (2, 0)];
    for (from, to) in links {
        cluster.link(from, to).hold_both();
    }
    cluster.restart(1);
    // Past n1, with what n3 has.
    cluster.wait_for_status(1, PATIENCE, "to lead", |status| {
        status.is_state(state::SERVING)
    });
    assert_holds(&cluster, 1, &keys);
    cluster.client(0).set(b"apart", b"v").unwrap();
    for (from, to) in links {
        cluster.link(from, to).pass();
    }
    cluster.wait_for_status(0, PATIENCE, "to yield", |status| {
        status.is_state(state::REFUSED)
            && status
                .get("reason")
                .is_some_and(|reason| reason.contains("n2 leads in epoch 2"))
    });
    assert!(matches!(
        cluster.client(0).set(b"x", b"v"),
        Err(Error::Loading { .. })
    ));
    assert_holds(&cluster, 0, &[b"apart".to_vec()]);
    cluster.client(1).set(b"x", b"v").unwrap();
    for node in [0, 1] {
        wait_until(PATIENCE, "the error", || {
            cluster.folder_log(node).contains("two leaders: ")
        });
    }
}

#[test]
fn the_last_holder_of_data_says_so_and_exits_with_3() {
    let mut cluster = cluster(3);
    // Nothing is lost where there is nothing.
    cluster.stop(2);
    cluster.restart(2);
    write(&cluster, 0, "k");
    cluster.wait_converged(PATIENCE);
    // A node that another one stands in for ends at once.
    let begin = Instant::now();
    cluster.stop(2);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    // A follower alone.
    cluster.kill(0);
    cluster.begin_stop(1);
    cluster.wait_stopped_with(1, 3);
    let log = cluster.folder_log(1);
    let text = "no other node is known to hold the data: 100 keys, up to index 101, are lost with this node";
    assert!(log.contains("ERROR") && log.contains(text), "{log}");
}

/// All nodes are told to stop at the same moment. No two may rely on each other.
#[test]
fn of_nodes_that_stop_together_exactly_the_last_exits_with_3() {
    for _ in 0..3 {
        let mut cluster = cluster(3);
        write(&cluster, 0, "k");
        cluster.wait_converged(PATIENCE);
        for node in 0..3 {
            cluster.begin_stop(node);
        }
        let mut codes: Vec<Option<i32>> = (0..3).map(|node| cluster.wait_ended(node)).collect();
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(0), Some(3)]);
    }
}

#[test]
fn a_leader_timeout_is_one_error_line_and_the_return_another() {
    let mut cluster = cluster(2);
    cluster.kill(0);
    // Refused connections are silence, too.
    cluster.wait_for_status(1, PATIENCE, "the timeout", |status| {
        status.get("link") == Some("timeout")
    });
    let lines = |text: &str, cluster: &Cluster| cluster.folder_log(1).matches(text).count();
    let timeout = "leader timeout: nothing heard from leader n1 for";
    assert_eq!(lines(timeout, &cluster), 1);
    cluster.restart(0);
    cluster.wait_converged(PATIENCE);
    let back = "leader n1 is heard again, after";
    wait_until(PATIENCE, "the return", || lines(back, &cluster) == 1);
    assert_eq!(cluster.status(1).unwrap().get("link"), Some("up"));
    // Silence of a process that stands still.
    cluster.pause(0);
    cluster.wait_for_status(1, PATIENCE, "the timeout", |status| {
        status.get("link") == Some("timeout")
    });
    cluster.resume(0);
    wait_until(PATIENCE, "the return", || lines(back, &cluster) == 2);
    assert_eq!(lines(timeout, &cluster), 2);
}

#[test]
fn settings_that_differ_are_named_by_group() {
    let mut cluster = cluster(2);
    cluster.stop(1);
    cluster.change_config(1, |text| {
        text.replace("[limits]", "[limits]\nmax_connections = 77")
    });
    cluster.restart(1);
    for (node, other) in [(0, "n2"), (1, "n1")] {
        let differs = format!("peer.{other}.differs");
        cluster.wait_for_status(node, PATIENCE, "the difference", |status| {
            status.get(&differs) == Some("limits")
        });
        let text = format!("cluster.toml of {other} and of this node differ in: limits");
        wait_until(PATIENCE, "the line", || {
            cluster.folder_log(node).contains(&text)
        });
    }
}
