//! Followers as their source sees them: one stream for each name, and how far behind each one is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gopherstore::wire::replication::Follow;

use crate::support::cluster::{Cluster, Options, Status, wait_until};
use crate::support::names::{key, peer, state};
use crate::support::node::{PATIENCE, Process};
use crate::support::proxy::{Cut, Way, reserve_port};
use crate::support::quick::assert_quick_once;

const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";
const WITHIN: Duration = Duration::from_secs(20);

fn cluster(count: usize, replication: &str) -> Cluster {
    let options = Options {
        replication: replication.to_owned(),
        proxies: true,
        ..Options::default()
    };
    let cluster = Cluster::start_with(count, &options);
    cluster.wait_converged(WITHIN);
    cluster.wait_for_status(0, WITHIN, "its followers", |status| {
        (1..count).all(|at| is_following(status, cluster.name(at)))
    });
    cluster
}

fn is_following(status: &Status, name: &str) -> bool {
    status.get(&key::follower_state(name)) == Some("following")
}

fn lag_ms(status: &Status, name: &str) -> u64 {
    status.number(&key::follower_lag_ms(name)).unwrap()
}

/// A FOLLOW as that node would send it, which holds nothing.
fn follow_frame(name: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let follow = Follow {
        name: name.as_bytes(),
        wants_snapshot: false,
        is_to_lead: false,
        epoch: 0,
        nonce: 0,
        last_index: 0,
        cluster_id: b"test",
    };
    follow.encode(&mut frame).unwrap();
    frame
}

/// A node that was moved to another address while the old one runs on: they used to replace each other's streams.
#[test]
fn the_older_of_two_nodes_of_one_name_stays_and_the_newer_is_refused() {
    let cluster = cluster(2, QUICK);
    let before = cluster.status(0).unwrap();
    let (_reserved, addr) = reserve_port();
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "cluster = \"test\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"{}\"\n\
         [[node]]\nname = \"n2\"\naddr = \"{addr}\"\n[replication]\n{QUICK}\n",
        cluster.addr(0)
    );
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let mut second = Process::spawn(dir.path(), "n2", None);
    assert!(second.wait_until_ready(), "{}", second.log());
    let reason = || {
        let mut stream = second.connect();
        stream.write_all(&[0x40, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut header = [0; 5];
        stream.read_exact(&mut header).unwrap();
        let len = u32::from_be_bytes(*header.last_chunk().unwrap());
        let mut text = vec![0; usize::try_from(len).unwrap()];
        stream.read_exact(&mut text).unwrap();
        let status = Status::parse(&String::from_utf8(text).unwrap());
        status.get("reason").unwrap().to_owned()
    };
    wait_until(WITHIN, "the refusal", || {
        reason().contains("two nodes are called n2: the one at 127.0.0.1:")
    });
    // It asks again and again, which affects neither the old one nor the logs.
    let (mut client, mut asked) = (cluster.client(0), 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        client.set(b"k", b"v").unwrap();
        asked += u32::from(cluster.status(1).unwrap().get("link") == Some(peer::UP));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(asked >= 20, "{asked} looks");
    cluster.wait_converged(WITHIN);
    let after = cluster.status(0).unwrap();
    for figure in [key::FULL_COPIES, key::RESUMES] {
        assert_eq!(after.number(figure), before.number(figure), "{figure}");
    }
    let lines = |log: &str| log.matches("two nodes are called n2").count();
    assert_eq!(lines(&cluster.process(0).log()), 1);
    assert_eq!(lines(&second.log()), 1, "{}", second.log());
    second.kill();
}

/// The end of its last connection is noticed when it comes back, so it does not have to ask again.
#[test]
fn a_follower_that_was_cut_off_is_in_again_at_once() {
    // Long heartbeats: one more attempt would take a second.
    let cluster = cluster(2, "heartbeat_interval_ms = 2000\nleader_timeout_ms = 10000");
    for _ in 1..=5 {
        assert_quick_once(Duration::from_millis(1_500), || {
            let before = cluster.number(0, key::RESUMES);
            cluster.link(1, 0).cut(Cut::End);
            let begin = Instant::now();
            wait_until(WITHIN, "the next stream", || {
                cluster.number(0, key::RESUMES) > before
            });
            begin.elapsed()
        });
    }
    assert!(!cluster.process(0).log().contains("two nodes"));
}

#[test]
fn a_half_open_stream_keeps_the_true_follower_out_no_longer_than_three_heartbeats() {
    // And the time of an attempt or two.
    assert_quick_once(Duration::from_millis(3 * 300 + 1_500), || {
        let mut cluster = cluster(2, "heartbeat_interval_ms = 300\nleader_timeout_ms = 5000");
        cluster.kill(1);
        cluster.wait_for_status(0, WITHIN, "its end", |status| {
            status.get(&key::follower_state("n2")) == Some("away")
        });
        // Nobody says anything on it.
        let mut half_open = TcpStream::connect(cluster.addr(0)).unwrap();
        half_open.write_all(&follow_frame("n2")).unwrap();
        half_open.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut response = [0; 5];
        half_open.read_exact(&mut response).unwrap();
        assert_eq!(response[0], 0);
        let begin = Instant::now();
        cluster.restart(1);
        cluster.wait_for_status(1, WITHIN, "its data", |status| {
            status.is_state(state::SERVING)
        });
        begin.elapsed()
    });
}

/// The leader's lag for a follower is the age of what a reader of the follower sees, also where entries wait to be
/// sent.
#[test]
fn lag_counts_from_the_write_and_not_from_the_sending() {
    let cluster = cluster(2, "heartbeat_interval_ms = 200\nleader_timeout_ms = 5000");
    cluster.link(1, 0).throttle(Way::Down, Some(200_000));
    let begin = Instant::now();
    let now = || u64::try_from(begin.elapsed().as_millis()).unwrap();
    let is_over = AtomicBool::new(false);
    let (mut client, reader) = (cluster.client(0), &mut cluster.client(1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let value = format!("{} {}", now(), "x".repeat(10_000));
                client.set(b"t", value.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut looks = 0;
        while looks <= 3 {
            assert!(now() < 60_000, "the connection is not slow");
            std::thread::sleep(Duration::from_millis(500));
            let Some(value) = reader.get(b"t").unwrap() else {
                continue;
            };
            let status = cluster.status(0).unwrap();
            let seen = String::from_utf8(value).unwrap();
            let seen: u64 = seen.split(' ').next().unwrap().parse().unwrap();
            let (age, told) = (now() - seen, lag_ms(&status, "n2"));
            // It is exact to a heartbeat; the looks are at two moments, and the acknowledgement is on its way.
            assert!(
                told + 700 > age && told < age + 700,
                "told {told}, and {age} is true"
            );
            looks += u32::from(age > 2_000);
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let own = cluster.status(1).unwrap();
    // By what heartbeats told, which came behind the entries.
    assert!(own.number("lag_entries").unwrap() > 100, "{own}");
    assert!(own.number("lag_ms").unwrap() > 200, "{own}");
    cluster.link(1, 0).throttle(Way::Down, None);
    cluster.wait_for_status(0, WITHIN, "no lag", |status| {
        lag_ms(status, "n2") == 0 && is_following(status, "n2")
    });
    cluster.wait_for_status(1, WITHIN, "no lag", |status| {
        status.number("lag_ms") == Some(0) && status.number("lag_entries") == Some(0)
    });
}

#[test]
fn a_follower_that_is_away_or_loads_lags_since_its_oldest_missing_entry() {
    let mut cluster = cluster(2, "heartbeat_interval_ms = 200\nleader_timeout_ms = 5000");
    let mut client = cluster.client(0);
    let value = vec![b'v'; 20_000];
    for at in 0_u32..200 {
        client.set(&at.to_be_bytes(), &value).unwrap();
    }
    let first_write = Instant::now();
    cluster.wait_for_status(0, WITHIN, "its last acknowledgement", |status| {
        status.number("follower.n2.lag_entries") == Some(0)
    });
    cluster.kill(1);
    cluster.wait_for_status(0, WITHIN, "its end", |status| {
        status.get(&key::follower_state("n2")) == Some("away")
    });
    assert!(
        lag_ms(&cluster.status(0).unwrap(), "n2") > 0,
        "it may hold nothing"
    );
    let missing = Instant::now();
    client.set(b"missing", b"v").unwrap();
    cluster.wait_for_status(0, WITHIN, "the age of the first entry", |status| {
        lag_ms(status, "n2") >= 700
    });
    client.set(b"missing", b"w").unwrap();
    let before = missing.elapsed().as_millis();
    let status = cluster.status(0).unwrap();
    let (told, after) = (lag_ms(&status, "n2"), missing.elapsed().as_millis());
    assert_eq!(status.number("follower.n2.lag_entries"), Some(2));
    let told = u128::from(told);
    // The log notes the time of an entry a moment after the client has its answer.
    assert!(
        told + 200 >= before && told <= after + 200,
        "told {told}, and {before} to {after} is true"
    );
    // 4 MB at this pace take some seconds.
    cluster.link(1, 0).throttle(Way::Down, Some(1_000_000));
    cluster.restart(1);
    let mut looks = 0;
    let begin = Instant::now();
    while !cluster.status(1).unwrap().is_state(state::SERVING) {
        assert!(begin.elapsed() < WITHIN);
        let (status, own) = (cluster.status(0).unwrap(), cluster.status(1).unwrap());
        if status.get(&key::follower_state("n2")) == Some("copying") {
            let (told, age) = (lag_ms(&status, "n2"), first_write.elapsed().as_millis());
            assert!(
                u128::from(told) + 200 >= age,
                "told {told}, and {age} is true"
            );
            assert!(
                own.is_state("serving") || own.number("lag_ms") != Some(0),
                "{own}"
            );
            looks += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(looks > 5, "{looks} looks");
    cluster.wait_for_status(0, WITHIN, "no lag", |status| {
        lag_ms(status, "n2") == 0 && is_following(status, "n2")
    });
}

/// The thread that reads ACKs sees the end, and wakes the sender out of its wait for the next entry or heartbeat.
#[test]
fn the_end_of_an_idle_stream_is_noticed_before_the_next_heartbeat() {
    let mut cluster = cluster(
        2,
        "heartbeat_interval_ms = 10000\nleader_timeout_ms = 40000",
    );
    let begin = Instant::now();
    cluster.kill(1);
    cluster.wait_for_status(0, WITHIN, "its end", |status| {
        status.get(&key::follower_state("n2")) == Some("away")
    });
    cluster
        .process(0)
        .wait_for_log("n2 no longer follows: it closed the connection");
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}
