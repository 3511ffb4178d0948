//! BATCH in a live cluster: money that moves between accounts is never seen on its way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gopherstore::client::{
    AddOptions, Batch, BatchOutcome, BatchResult, Client, ClientOptions, Condition, Error,
    PutOptions, Response, Watch, Watched, Watcher,
};
use gopherstore::wire::replication::WatchFrom;

use crate::faults::{QUICK, QUICK_AND_SMALL};
use crate::support::cluster::{Cluster, Options, wait_until};
use crate::support::load::Random;
use crate::support::names::{key, state};
use crate::support::node::PATIENCE;

const WITHIN: Duration = Duration::from_secs(30);

const ACCOUNTS: usize = 12;

/// The money of each account at first.
const EACH: i64 = 1_000;

const TOTAL: i64 = EACH * 12;

fn cluster(count: usize, replication: &str) -> Cluster {
    let options = Options {
        replication: replication.to_owned(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(count, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

fn account(number: usize) -> Vec<u8> {
    format!("account:{number}").into_bytes()
}

fn number(value: Option<&[u8]>) -> i64 {
    std::str::from_utf8(value.unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

/// The values of these keys at one moment.
fn read(client: &mut Client, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, Error> {
    let mut batch = Batch::new();
    for key in keys {
        batch.get(key);
    }
    let BatchOutcome::Done(results) = client.batch(&batch)? else {
        panic!("a GET has no condition");
    };
    let values = results.into_iter().map(|result| match result {
        BatchResult::Value(value) => value,
        other => panic!("{other:?}"),
    });
    Ok(values.collect())
}

/// The money of all accounts at one moment.
fn sum(client: &mut Client) -> Result<i64, Error> {
    let all: Vec<Vec<u8>> = (0..ACCOUNTS).map(account).collect();
    let values = read(client, &all)?;
    Ok(values.iter().map(|value| number(value.as_deref())).sum())
}

fn open_accounts(client: &mut Client) {
    let mut batch = Batch::new();
    for at in 0..ACCOUNTS {
        batch.set(&account(at), EACH.to_string().as_bytes());
    }
    assert!(client.batch(&batch).unwrap().is_done());
}

/// Moves money several times, in one batch.
fn move_by_adds(client: &mut Client, random: &mut Random) {
    let mut batch = Batch::new();
    for _ in 0..random.index(16) + 1 {
        let amount = i64::try_from(random.index(50)).unwrap();
        for amount in [-amount, amount] {
            let at = random.index(ACCOUNTS);
            batch.add(&account(at), amount, &AddOptions::default());
        }
    }
    assert!(client.batch(&batch).unwrap().is_done());
}

/// Moves money by reading two accounts, and storing both where nobody else has stored meanwhile.
fn move_by_comparing(client: &mut Client, random: &mut Random) {
    let from = random.index(ACCOUNTS);
    let to = (from + 1 + random.index(ACCOUNTS - 1)) % ACCOUNTS;
    let keys = [account(from), account(to)];
    loop {
        let values = read(client, &keys).unwrap();
        let mut batch = Batch::new();
        for ((key, old), amount) in keys.iter().zip(&values).zip([-7, 7]) {
            let old = old.as_deref();
            let new = (number(old) + amount).to_string();
            let unchanged = PutOptions {
                condition: Condition::Equal(old.unwrap()),
                want_value: true,
                ..PutOptions::default()
            };
            batch.put(key, new.as_bytes(), &unchanged);
        }
        match client.batch(&batch).unwrap() {
            BatchOutcome::Done(results) => {
                assert_eq!(results.len(), 2);
                return;
            }
            BatchOutcome::Conflict { position, found } => {
                assert!(found.exists && found.value != values[position]);
            }
        }
    }
}

/// Rebuilds the accounts from a snapshot and events of the node, each event as a whole, until it is over.
fn watch(addr: &str, is_over: &AtomicBool, events: &AtomicU64) {
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    let watch = Watch {
        prefix: b"account:".to_vec(),
        values: true,
        from: WatchFrom::Snapshot,
    };
    let mut watcher = Watcher::open(addr, &options, watch).unwrap();
    let mut accounts = BTreeMap::new();
    let mut is_complete = false;
    while !is_over.load(Ordering::SeqCst) {
        match watcher.receive().unwrap() {
            Watched::SnapshotBegin { .. } => accounts.clear(),
            Watched::Snapshot(frames) => {
                for frame in frames.iter() {
                    accounts.insert(frame.key().to_vec(), number(Some(frame.value())));
                }
            }
            Watched::SnapshotEnd { .. } => is_complete = true,
            Watched::Event(event) => {
                for change in event.changes() {
                    accounts.insert(change.key().to_vec(), number(change.value()));
                }
                events.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        if is_complete {
            assert_eq!(accounts.values().sum::<i64>(), TOTAL, "{accounts:?}");
        }
    }
}

/// Ends the threads of a test, also where it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn money_that_moves_is_whole_on_every_node_in_a_snapshot_and_for_watchers() {
    let mut cluster = cluster(3, QUICK_AND_SMALL);
    let mut leader = cluster.client(0);
    open_accounts(&mut leader);
    // So much that a follower takes a while to copy it.
    let filler: Vec<Vec<u8>> = (0..20_000_u32)
        .map(|number| format!("filler:{number}").into_bytes())
        .collect();
    cluster.write_all(filler.iter().map(|key| (&key[..], &b"0123456789"[..])));
    cluster.wait_converged(WITHIN);

    let (is_over, events) = (AtomicBool::new(false), AtomicU64::new(0));
    let reads = [(); 3].map(|()| AtomicU64::new(0));
    let mut random = Random::from_env();
    let writers: Vec<_> = (0..6)
        .map(|at| (at, cluster.client(0), Random::new(random.next())))
        .collect();
    let readers: Vec<_> = (0..3).map(|at| (at, cluster.client(at))).collect();
    let addrs = [0, 1].map(|at| cluster.addr(at).to_string());
    thread::scope(|scope| {
        let (is_over, events, reads) = (&is_over, &events, &reads);
        let _end = End(is_over);
        for (at, mut client, mut random) in writers {
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    if at % 2 == 0 {
                        move_by_adds(&mut client, &mut random);
                    } else {
                        move_by_comparing(&mut client, &mut random);
                    }
                }
            });
        }
        for (at, mut client) in readers {
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    match sum(&mut client) {
                        Ok(sum) => {
                            assert_eq!(sum, TOTAL, "on node {at}");
                            reads[at].fetch_add(1, Ordering::SeqCst);
                        }
                        // It is restarted meanwhile.
                        Err(_) if at == 2 => wait_until(PATIENCE, "the restarted node", || {
                            is_over.load(Ordering::SeqCst) || sum(&mut client).is_ok()
                        }),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for addr in &addrs {
            scope.spawn(move || watch(addr, is_over, events));
        }
        let more = |count: &AtomicU64, more: u64| {
            let before = count.load(Ordering::SeqCst);
            wait_until(PATIENCE, "reads or events", || {
                count.load(Ordering::SeqCst) >= before + more
            });
        };
        // The follower joins, and takes a snapshot, while money moves.
        for _ in 0..2 {
            more(events, 200);
            reads.iter().for_each(|count| more(count, 20));
            cluster.kill(2);
            cluster.restart(2);
            cluster.wait_for_status(2, PATIENCE, "its copy", |status| {
                status.is_state(state::SERVING)
            });
        }
        reads.iter().for_each(|count| more(count, 100));
        more(events, 200);
    });
    assert!(
        cluster.number(0, key::FULL_COPIES) >= 2,
        "{}",
        cluster.statuses()
    );
    cluster.wait_converged(WITHIN);
    for node in 0..3 {
        assert_eq!(sum(&mut cluster.client(node)).unwrap(), TOTAL);
    }
    cluster.equal_contents(&(0..ACCOUNTS).map(account).collect::<Vec<_>>());
}

#[test]
fn batches_in_a_pipeline_are_executed_in_their_place_among_runs() {
    let cluster = cluster(2, QUICK);
    let mut leader = cluster.client(0);
    let mut pipeline = leader.pipeline();
    let absent = PutOptions {
        condition: Condition::Absent,
        ..PutOptions::default()
    };
    let mut refused = Batch::new();
    refused.set(b"k", b"never").put(b"k", b"", &absent);
    let mut good = Batch::new();
    good.get(b"k")
        .set(b"k", b"batch")
        .add(b"n", 1, &AddOptions::default());
    let rounds = 500;
    for round in 0..rounds {
        let value = format!("{round}").into_bytes();
        for at in 0..20_u8 {
            pipeline.set(&[at], &value);
        }
        pipeline
            .set(b"k", &value)
            .batch(&good)
            .get(b"k")
            .batch(&refused)
            .get(b"k");
    }
    let responses = pipeline.run().unwrap();
    for (round, answers) in responses.chunks(25).enumerate() {
        let answer = |at: usize| answers[at].as_ref().unwrap();
        assert!((0..21).all(|at| *answer(at) == Response::Done));
        let Some(BatchOutcome::Done(results)) = good.outcome(answer(21)) else {
            panic!("{:?}", answer(21));
        };
        let value = Some(format!("{round}").into_bytes());
        assert_eq!(results[0], BatchResult::Value(value));
        let BatchResult::Added(added) = &results[2] else {
            panic!("{results:?}");
        };
        assert_eq!(added.sum, i64::try_from(round).unwrap() + 1);
        let batch = Response::Value(b"batch".to_vec());
        assert_eq!((answer(22), answer(24)), (&batch, &batch));
        let refusal = refused.outcome(answer(23));
        let Some(BatchOutcome::Conflict { position, found }) = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!((position, found.exists), (1, true));
    }
    cluster.wait_converged(WITHIN);
    let mut follower = cluster.client(1);
    let error = follower.batch(&good).unwrap_err();
    assert!(matches!(error, Error::NotLeader { .. }), "{error:?}");
    let values = read(&mut follower, &[b"k".to_vec(), b"n".to_vec()]).unwrap();
    assert_eq!(
        values,
        [
            Some(b"batch".to_vec()),
            Some(rounds.to_string().into_bytes())
        ]
    );
}
