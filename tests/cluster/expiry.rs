//! Keys that expire in a live cluster, under load: gone in time on every node, and equal data everywhere.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use gopherstore::wire::Request;
use gopherstore::wire::expiry::expire_value;

use crate::support::cluster::{Cluster, Options, Status, wait_until};
use crate::support::load::{self, Load};
use crate::support::names::key;
use crate::support::node::PATIENCE;

const WITHIN: Duration = Duration::from_secs(60);

/// After their deadline expired keys count for so long at most.
const GONE_WITHIN: Duration = Duration::from_secs(10);

const KEYS: u64 = 60_000;

pub(crate) fn now_ms() -> u64 {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(time.as_millis()).unwrap()
}

/// The requests that store keys with these deadlines and values of this length.
pub(crate) fn puts(deadlines: impl Iterator<Item = u64>, value_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, deadline) in deadlines.enumerate() {
        let key = &key_of(number);
        let value = &[&deadline.to_be_bytes()[..], &vec![b'v'; value_len]].concat();
        Request::SetAt { key, value }.encode(&mut bytes).unwrap();
    }
    bytes
}

fn key_of(number: usize) -> Vec<u8> {
    format!("expiring:{number}").into_bytes()
}

/// Sends requests whose answers are all OK and empty.
pub(crate) fn send(addr: SocketAddr, requests: &[u8], count: usize) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writing.write_all(requests).unwrap());
        let mut answers = vec![1; 5 * count];
        stream.read_exact(&mut answers).unwrap();
        assert!(answers.iter().all(|byte| *byte == 0), "an answer is not OK");
    });
}

/// Notes digests by index, and finds two that differ at one index.
#[derive(Default)]
struct Digests(BTreeMap<(u64, u64), String>);

impl Digests {
    fn note(&mut self, status: &Status) {
        let number = |key| status.number(key).unwrap();
        let digest = status.get(key::DIGEST).unwrap().to_owned();
        let at = (number(key::EPOCH), number(key::INDEX));
        let noted = self.0.entry(at).or_insert_with(|| digest.clone());
        assert_eq!(*noted, digest, "at {at:?}");
    }
}

#[test]
fn keys_that_expire_under_load_are_gone_in_time_and_digests_stay_equal() {
    let options = Options {
        replication: "heartbeat_interval_ms = 100\nleader_timeout_ms = 2000".to_owned(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(3, &options);
    cluster.wait_converged(WITHIN);
    let load = Load::start(
        cluster.addr(0),
        load::Options {
            prefix: "load",
            keys: 500,
            value_len: 40..=2_000,
            per_second: None,
            batch: 50,
            dels: 10,
            seed: 1,
        },
    );
    // While some expire, others are stored, and get other deadlines.
    let begin = now_ms();
    let last = begin + 4_000;
    let deadlines = (0..KEYS).map(|number| begin + 1_000 + number % 3_000);
    let count = usize::try_from(KEYS).unwrap();
    send(cluster.addr(0), &puts(deadlines, 10), count);
    let mut digests = Digests::default();
    let deadline = Instant::now() + WITHIN;
    loop {
        let statuses: Vec<Status> = (0..3).map(|node| cluster.status(node).unwrap()).collect();
        statuses.iter().for_each(|status| digests.note(status));
        if statuses
            .iter()
            .all(|status| status.number("expiring") == Some(0))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{}", cluster.statuses());
    }
    let late = Duration::from_millis(now_ms().saturating_sub(last));
    assert!(late < GONE_WITHIN, "{late:?}");
    drop(load);
    cluster.wait_converged(WITHIN);
    let expired = |node| cluster.number(node, "expired");
    assert_eq!([expired(0), expired(1), expired(2)], [KEYS, 0, 0]);
    let keys = cluster.number(0, key::KEYS);
    assert!(keys <= 500, "{keys}");
}

#[test]
fn memory_of_keys_that_have_expired_goes_back_to_the_system() {
    const COUNT: usize = 40_000;
    let cluster = Cluster::start(2);
    cluster.wait_converged(WITHIN);
    let memory = |node: usize| cluster.process(node).memory_kib("VmRSS");
    let before = [memory(0), memory(1)];
    let far = now_ms() + 3_600_000;
    send(
        cluster.addr(0),
        &puts([far; COUNT].into_iter(), 1_000),
        COUNT,
    );
    cluster.wait_converged(WITHIN);
    let full = [memory(0), memory(1)];
    let mut requests = Vec::new();
    let value = &expire_value(Some(now_ms() + 500));
    for number in 0..COUNT {
        let key = &key_of(number);
        Request::Expire { key, value }
            .encode(&mut requests)
            .unwrap();
    }
    send(cluster.addr(0), &requests, COUNT);
    for node in 0..2 {
        wait_until(WITHIN, "memory of expired keys", || {
            // The backlog keeps up to 64 MiB of records, which the keys have filled too.
            let kept_kib = cluster.number(node, "backlog_bytes") / 1_024;
            let held = memory(node).saturating_sub(before[node] + kept_kib);
            cluster.number(node, key::KEYS) == 0 && held < (full[node] - before[node]) / 4
        });
    }
}
