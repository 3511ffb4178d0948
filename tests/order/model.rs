//! Writers, the replication thread, a follower, a snapshot and a demotion, all of them the shipped code; and the same
//! with one step out of order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gopherstore::history::{EpochStart, HistoryError};
use gopherstore::wire::batch::{Batch, BatchAnswer, effects};
use gopherstore::wire::replication::{self, BatchEncoder, Fields, Message, StreamOpcode};
use gopherstore::wire::request::{Limits, frames};
use gopherstore::wire::{Opcode, Request, RequestFrame, Run};
use shuttle::Runner;
use shuttle::scheduler::RandomScheduler;
use shuttle::thread;

use crate::Mutex;
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::engine::planted::Planted;
use crate::engine::store::Store;
use crate::engine::{
    Admission, Answers, ApplyError, Engine, Group, NotDone, NotTogether, PartitionCopy,
};
use crate::log::{Cursor, Found, Log};

/// Stacks of the model's threads: those of a debug build are deep.
fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    config.stack_size = 256 << 10;
    config
}

/// Schedules that the code has to pass.
const PASSES: usize = 2_000;

/// Schedules within which a planted fault has to be found.
const FINDS: usize = 1_000;

/// The seed of the search for planted faults, which makes it the same each time.
const SEED: u64 = 3;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A SET frame.
fn set(key: &[u8], value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let value = &[value];
    Request::Set { key, value }.encode(&mut bytes).unwrap();
    bytes
}

/// A SETAT frame whose deadline has passed.
fn set_expired(key: &[u8], value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let value = &[&1_u64.to_be_bytes()[..], &[value]].concat();
    Request::SetAt { key, value }.encode(&mut bytes).unwrap();
    bytes
}

/// A GET frame.
fn get(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Get { key }.encode(&mut bytes).unwrap();
    bytes
}

/// An admission of reads, and of writes where `writes`.
fn admission(writes: bool) -> Admission {
    Admission {
        reads: true,
        writes,
    }
}

/// The engine of a leader in epoch 1, or of a follower.
fn engine(partitions: usize, leads: bool) -> Engine {
    let engine = Engine::with_store(
        Store::with_partitions(partitions),
        Some(1 << 20),
        crate::time::MachineTime::clock(),
    );
    if leads {
        open_epoch(&engine, 1).unwrap();
    } else {
        engine.admit(admission(false));
    }
    engine
}

/// Opens an epoch at the end of the log.
fn open_epoch(engine: &Engine, epoch: u64) -> Result<(), HistoryError> {
    let start = EpochStart {
        epoch,
        nonce: epoch,
        start_index: engine.head().index + 1,
    };
    engine.open_epoch(start, admission(true))
}

/// Executes SETs and GETs, one frame behind the other. Returns whether they were admitted.
fn execute(engine: &Engine, frames: &[u8], planted: Planted) -> bool {
    let run = Run::of(frames, &Limits::default());
    assert_eq!(run.bytes(), frames);
    let mut answers = Answers::new();
    if matches!(planted, Planted::Nothing | Planted::IndexAfterUnlock) {
        let outcome = engine.execute(&run, None, &mut answers);
        return outcome.is_ok_and(|outcome| outcome.count == run.len());
    }
    loop {
        match engine.execute_planted(&run, planted, &mut answers) {
            Ok(_) => return true,
            Err(NotTogether::NotDone(NotDone::Refused)) => return false,
            Err(NotTogether::Contended) => thread::yield_now(),
            Err(why) => panic!("{why:?}"),
        }
    }
}

/// Receives records of a leader, of which the first is committed, and applies the others later. Returns whether the
/// data set has the leader's digest then.
fn receive(engine: &Engine, records: &[u8], digest: Digest) -> bool {
    let (mut bytes, first_index) = (Vec::new(), engine.head().index + 1);
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    let frames = all_frames(records);
    assert!(frames.iter().all(|frame| batch.push(frame.bytes())));
    batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index,
        count,
        committed_index: first_index + u64::from(count) - 1,
        time_ms: 0,
        digest: 0,
    });
    let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&bytes) else {
        panic!("a whole message was written");
    };
    let Message::Entries {
        frames: records, ..
    } = message
    else {
        panic!("entries were written");
    };
    let group = Group {
        first_index,
        records,
        committed: first_index,
        digest,
    };
    let received = engine.receive(&group, Instant::now());
    match received.and_then(|()| engine.apply(u64::MAX)) {
        Ok(()) => true,
        Err(ApplyError::Diverged { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn copy_partition(engine: &Engine, partition: usize, planted: Planted) -> (Map, u64) {
    let mut copy = PartitionCopy::default();
    let copied_at = engine.copy_partition_planted(partition, &mut copy, planted);
    (map(&entries_of(&copy)), copied_at)
}

fn contents(engine: &Engine) -> Vec<Entry> {
    let (mut copy, mut all) = (PartitionCopy::default(), Vec::new());
    for partition in 0..engine.partitions() {
        engine.copy_partition(partition, &mut copy);
        all.extend(entries_of(&copy));
    }
    all
}

/// The log of an engine.
fn log(engine: &Engine) -> &Log {
    engine.log().expect("an engine with a log")
}

/// A key of this partition.
fn key_in(engine: &Engine, partition: usize) -> Vec<u8> {
    let mut keys = (0_u8..=255).map(|byte| vec![byte]);
    keys.find(|key| engine.partition_of(key) == partition)
        .expect("a partition that none of 256 keys fall in")
}

fn entries_of(copied: &PartitionCopy) -> Vec<Entry> {
    let frames = copied.frames();
    frames.map(|frame| Entry::copy_of(&frame)).collect()
}

fn map(entries: &[Entry]) -> Map {
    let pairs = entries.iter();
    pairs
        .map(|entry| (entry.key().to_vec(), entry.value().to_vec()))
        .collect()
}

fn digest_of(entries: &[Entry]) -> Digest {
    entries.iter().fold(Digest::EMPTY, |sum, entry| {
        sum.changed(Digest::EMPTY, Digest::of(entry))
    })
}

/// Records of the log from the cursor on, waiting for them, and the digest after them; `None` at the log's end.
fn next(log: &Log, cursor: &mut Cursor) -> Option<(Vec<u8>, Digest)> {
    let never = Instant::now() + Duration::from_secs(3_600);
    let mut records = Vec::new();
    match log.read(cursor, 1 << 20, &mut records, never, || false) {
        Found::Small(_, digest) => Some((records, digest)),
        Found::Ended => None,
        found => panic!("{found:?}"),
    }
}

/// The frames of records that lie one after another.
fn all_frames(records: &[u8]) -> Vec<RequestFrame<'_>> {
    frames(records).collect()
}

/// Faults that a run can have.
const ORDER: &str = "the follower's data is not the leader's";
const DIGEST: &str = "the digest is not the data's";
const DIVERGED: &str = "the follower finds another digest than the leader's";
const COPY: &str = "the copy of a partition is not the data at its index";

/// One run: writers on as many keys as there are partitions, a follower and a snapshot. Each writer makes its writes
/// one by one, or all together. Returns the faults found after it.
fn run(
    partitions: usize,
    writers: u8,
    writes: u8,
    in_runs: bool,
    planted: Planted,
) -> Vec<&'static str> {
    let leader = Arc::new(engine(partitions, true));
    let keys: Arc<Vec<_>> = Arc::new((0..partitions).map(|at| key_in(&leader, at)).collect());
    let spawn = |work: Box<dyn FnOnce(&Engine) + Send>| {
        let leader = Arc::clone(&leader);
        thread::spawn(move || work(&leader))
    };
    let keeper = spawn(Box::new(|leader| log(leader).keep()));

    let follower = Arc::new(engine(partitions, false));
    let agreed = Arc::new(Mutex::new(false));
    let following = spawn(Box::new({
        let (follower, is_agreed) = (Arc::clone(&follower), Arc::clone(&agreed));
        move |leader| {
            let mut cursor = log(leader).cursor_after(0).unwrap();
            let mut agrees = true;
            while let Some((records, digest)) = next(log(leader), &mut cursor) {
                agrees &= receive(&follower, &records, digest);
            }
            *is_agreed.lock() = agrees;
        }
    }));
    let copying = [(&leader, planted), (&follower, Planted::Nothing)].map(|(node, planted)| {
        let node = Arc::clone(node);
        thread::spawn(move || -> Vec<_> {
            (0..partitions)
                .map(|partition| copy_partition(&node, partition, planted))
                .collect()
        })
    });
    let writing: Vec<_> = (0..writers)
        .map(|writer| {
            let keys = Arc::clone(&keys);
            spawn(Box::new(move |leader| {
                let frames = (0..writes).map(|write| {
                    let key = &keys[usize::from(write) % keys.len()];
                    set(key, writer * writes + write)
                });
                if in_runs {
                    // Among the writes are reads of all keys. They share locks with the snapshot.
                    let gets: Vec<u8> = keys.iter().flat_map(|key| get(key)).collect();
                    let frames: Vec<Vec<u8>> = frames.collect();
                    assert!(execute(leader, &frames.join(&gets[..]), planted));
                } else {
                    frames.for_each(|frame| assert!(execute(leader, &frame, planted)));
                }
            }))
        })
        .collect();
    for writer in writing {
        writer.join().unwrap();
    }
    let copies = copying.map(|copying| copying.join().unwrap());
    leader.end_log();
    keeper.join().unwrap();
    following.join().unwrap();

    // The first record begins the epoch.
    let count = 1 + u64::from(writers) * u64::from(writes);
    let mut faults = Vec::new();
    let mut check = |fault, is_met: bool| {
        if !is_met {
            faults.push(fault);
        }
    };
    let (own, theirs) = (contents(&leader), contents(&follower));
    let head = leader.head();
    assert_eq!(head.index, count);
    assert_eq!(head, log(&leader).kept_head());
    check(ORDER, map(&own) == map(&theirs));
    check(DIGEST, head.digest == digest_of(&own));
    check(DIGEST, head == follower.head());
    check(DIVERGED, *agreed.lock());
    let kept = (log(&follower).kept_head(), log(&follower).last_index());
    check(DIGEST, kept == (head, head.index));

    // Along the log: the digest at each index, and each partition as it was where it was copied.
    let mut cursor = log(&leader).cursor_after(0).unwrap();
    let (records, _) = next(log(&leader), &mut cursor).unwrap();
    let records = all_frames(&records);
    let mut data: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    for index in 0..=count {
        if let Some(at) = index.checked_sub(1) {
            let frame = &records[usize::try_from(at).unwrap()];
            let is_epoch = frame.opcode() == Opcode::Epoch;
            assert_eq!(is_epoch, index == 1);
            if !is_epoch {
                data.insert(frame.key().to_vec(), Entry::copy_of(frame));
            }
        }
        let entries: Vec<_> = data.values().cloned().collect();
        let digest = log(&leader).digest_at(index);
        // Of writes made together, only the last has one.
        check(DIGEST, digest.map_or(in_runs, |d| d == digest_of(&entries)));
        for (node, copies) in [&leader, &follower].into_iter().zip(&copies) {
            for (partition, (copy, copied_at)) in copies.iter().enumerate() {
                let lives_there = |entry: &Entry| node.partition_of(entry.key()) == partition;
                let expected: Vec<_> = entries.iter().filter(|e| lives_there(e)).cloned().collect();
                check(COPY, *copied_at != index || *copy == map(&expected));
            }
        }
    }
    faults
}

/// Runs the code as it is, with other schedules each time.
fn passes(partitions: usize, writers: u8, writes: u8, in_runs: bool) {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(move || {
        let faults = run(partitions, writers, writes, in_runs, Planted::Nothing);
        assert!(faults.is_empty(), "{faults:?}");
    });
}

/// Looks for one consequence of a planted fault, and panics with it.
fn finds(planted: Planted, sought: &'static str) {
    finds_in(false, planted, sought);
}

/// The same, where writes are made one by one or together.
fn finds_in(in_runs: bool, planted: Planted, sought: &'static str) {
    let (partitions, writes) = if in_runs { (2, 2) } else { (1, 1) };
    let scheduler = RandomScheduler::new_from_seed(SEED, FINDS);
    let runner = Runner::new(scheduler, config());
    runner.run(move || {
        assert!(
            !run(partitions, 2, writes, in_runs, planted).contains(&sought),
            "{sought}"
        )
    });
}

#[test]
fn writers_of_one_key_reach_the_follower_in_their_order() {
    passes(1, 2, 2, false);
    passes(1, 3, 1, false);
}

#[test]
fn writers_of_two_keys_and_a_copy_of_both_partitions_agree() {
    passes(2, 2, 2, false);
}

#[test]
fn writes_made_together_agree_with_a_copy_and_with_each_other() {
    passes(2, 2, 2, true);
    passes(2, 2, 3, true);
}

#[test]
#[should_panic(expected = "the follower's data is not the leader's")]
fn a_send_after_the_partition_is_unlocked_is_found() {
    finds(Planted::AppendAfterUnlock, ORDER);
}

#[test]
#[should_panic(expected = "the follower's data is not the leader's")]
fn an_index_taken_before_the_partition_is_locked_is_found() {
    finds(Planted::AppendBeforeLock, ORDER);
}

#[test]
#[should_panic(expected = "the digest is not the data's")]
fn a_digest_of_an_entry_that_was_replaced_meanwhile_is_found() {
    finds(Planted::AppendBeforeLock, DIGEST);
}

#[test]
#[should_panic(expected = "the copy of a partition is not the data at its index")]
fn an_index_noted_after_a_copied_partition_is_unlocked_is_found() {
    finds(Planted::IndexAfterUnlock, COPY);
}

#[test]
#[should_panic(expected = "the follower's data is not the leader's")]
fn a_send_of_writes_made_together_after_their_partitions_are_unlocked_is_found() {
    finds_in(true, Planted::AppendAfterUnlock, ORDER);
}

/// Two clients each read the key that the other one writes, and write their own. Returns whether both found nothing, as
/// if each had come before the other.
fn both_find_nothing(frames_of: fn(&[u8], &[u8]) -> Vec<Vec<u8>>) -> bool {
    let engine = Arc::new(engine(2, true));
    let keys = [key_in(&engine, 0), key_in(&engine, 1)];
    let clients = [(0, 1), (1, 0)].map(|(own, other)| {
        let (engine, runs) = (Arc::clone(&engine), frames_of(&keys[own], &keys[other]));
        thread::spawn(move || {
            let mut found = false;
            for frames in &runs {
                let run = Run::of(frames, &Limits::default());
                let mut answers = Answers::new();
                while engine.execute_together(&run, None, &mut answers).is_err() {
                    thread::yield_now();
                }
                // The answer to a SET is empty, and so is NOT_FOUND.
                found |= answers.bytes().len() > 5 * run.len();
            }
            found
        })
    });
    let found = clients.map(|client| client.join().unwrap());
    found == [false; 2]
}

const NOTHING: &str = "each came before the other";

#[test]
fn a_run_that_reads_and_writes_is_one_step() {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(|| {
        let nothing = both_find_nothing(|own, other| vec![[get(other), set(own, 1)].concat()]);
        assert!(!nothing, "{NOTHING}");
    });
}

#[test]
#[should_panic(expected = "each came before the other")]
fn a_read_and_a_write_that_are_two_steps_are_found() {
    let scheduler = RandomScheduler::new_from_seed(SEED, FINDS);
    let runner = Runner::new(scheduler, config());
    runner.run(|| {
        let nothing = both_find_nothing(|own, other| vec![get(other), set(own, 1)]);
        assert!(!nothing, "{NOTHING}");
    });
}

/// A leader is demoted while a client writes. Returns whether the log grew after the demotion.
fn grows_after_demotion(planted: Planted) -> bool {
    let engine = Arc::new(engine(2, true));
    let keys = [key_in(&engine, 0), key_in(&engine, 1)];
    let writers = keys.map(|key| {
        let engine = Arc::clone(&engine);
        thread::spawn(move || execute(&engine, &set(&key, 1), planted))
    });
    engine.admit(admission(false));
    let head = engine.head();
    let admitted = writers.map(|writer| writer.join().unwrap());
    let count = admitted.iter().filter(|admitted| **admitted).count();
    assert_eq!(engine.len(), count, "a refused write changes nothing");
    engine.head() != head
}

const GROWN: &str = "a write of the epoch that had ended";

#[test]
fn no_write_is_under_way_after_a_demotion() {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(|| assert!(!grows_after_demotion(Planted::Nothing), "{GROWN}"));
}

#[test]
#[should_panic(expected = "a write of the epoch that had ended")]
fn a_gate_that_is_asked_before_the_partition_is_locked_is_found() {
    let scheduler = RandomScheduler::new_from_seed(SEED, FINDS);
    let runner = Runner::new(scheduler, config());
    runner.run(|| assert!(!grows_after_demotion(Planted::AdmitBeforeLock), "{GROWN}"));
}

/// A leader opens its next epoch while clients write. Returns whether the log is as the history says: the records of
/// the writers, and one EPOCH where each epoch starts.
fn epochs_are_in_their_places(planted: Planted) -> bool {
    let engine = Arc::new(engine(2, true));
    let keys = [key_in(&engine, 0), key_in(&engine, 1)];
    let keeper = thread::spawn({
        let engine = Arc::clone(&engine);
        move || log(&engine).keep()
    });
    let writers = keys.map(|key| {
        let engine = Arc::clone(&engine);
        thread::spawn(move || execute(&engine, &set(&key, 1), planted))
    });
    // Where a write comes in between, the epoch does not start at the log's next index.
    while let Err(error) = open_epoch(&engine, 2) {
        assert!(matches!(error, HistoryError::NotNext { .. }), "{error}");
        thread::yield_now();
    }
    let admitted = writers.map(|writer| writer.join().unwrap());
    engine.end_log();
    keeper.join().unwrap();
    let mut cursor = log(&engine).cursor_after(0).unwrap();
    let (records, _) = next(log(&engine), &mut cursor).unwrap();
    let writes = admitted.iter().filter(|admitted| **admitted).count();
    let starts: Vec<u64> = (1..)
        .zip(all_frames(&records))
        .filter(|(_, frame)| frame.opcode() == Opcode::Epoch)
        .map(|(index, _)| index)
        .collect();
    let history = log(&engine).history();
    let told: Vec<u64> = history
        .epochs()
        .iter()
        .map(|start| start.start_index)
        .collect();
    starts == told && all_frames(&records).len() == writes + 2
}

#[test]
fn an_epoch_begins_while_no_write_is_under_way() {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(|| assert!(epochs_are_in_their_places(Planted::Nothing)));
}

#[test]
#[should_panic(expected = "a write of another epoch")]
fn a_write_of_the_epoch_before_is_found() {
    let scheduler = RandomScheduler::new_from_seed(SEED, FINDS);
    let runner = Runner::new(scheduler, config());
    runner.run(|| assert!(epochs_are_in_their_places(Planted::AdmitBeforeLock)));
}

/// Clients store an expired entry and others under one key, another thread removes what has expired, and the node is
/// demoted at last. Returns whether the log is the order of the store.
fn removals_are_in_the_order_of_the_log() -> bool {
    let leader = Arc::new(engine(1, true));
    let key = key_in(&leader, 0);
    let spawn = |work: Box<dyn FnOnce(&Engine) + Send>| {
        let leader = Arc::clone(&leader);
        thread::spawn(move || work(&leader))
    };
    let keeper = spawn(Box::new(|leader| log(leader).keep()));
    let writers = [
        [set_expired(&key, 1), set(&key, 2)],
        [set_expired(&key, 3), set_expired(&key, 4)],
    ];
    let writers = writers.map(|frames| {
        spawn(Box::new(move |leader| {
            for frame in frames {
                execute(leader, &frame, Planted::Nothing);
            }
        }))
    });
    let sweeper = spawn(Box::new(|leader| {
        for _ in 0..3 {
            // After the demotion nothing is admitted.
            let _ = leader.expire(0, None, || ());
        }
    }));
    leader.admit(admission(false));
    let head = leader.head();
    for thread in writers.into_iter().chain([sweeper]) {
        thread.join().unwrap();
    }
    leader.end_log();
    keeper.join().unwrap();
    let follower = engine(1, false);
    let mut cursor = log(&leader).cursor_after(0).unwrap();
    let mut agrees = leader.head() == head;
    while let Some((records, digest)) = next(log(&leader), &mut cursor) {
        agrees &= receive(&follower, &records, digest);
    }
    let (own, theirs) = (contents(&leader), contents(&follower));
    agrees
        && map(&own) == map(&theirs)
        && leader.head() == follower.head()
        && leader.expiring() == follower.expiring()
}

#[test]
fn removals_of_expired_entries_are_in_the_order_of_the_log() {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(|| assert!(removals_are_in_the_order_of_the_log(), "{ORDER}"));
}

/// Executes requests as a BATCH, and returns the values of their responses.
fn batch(engine: &Engine, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let value = frames.concat();
    let mut answers = Answers::new();
    let batch = Batch::decode(&value).unwrap();
    engine.execute_batch(&batch, None, &mut answers).unwrap();
    let Some(BatchAnswer::Done(responses)) =
        BatchAnswer::of_ok(&answers.bytes()[5..], frames.len())
    else {
        panic!("it is refused");
    };
    let values = responses.iter().map(|response| response.value.to_vec());
    values.collect()
}

/// Clients write two keys by a BATCH, each in another order, beside runs and single writes of other keys in the same
/// partitions, a follower, and a copy of the partitions. Readers of both keys, here and at the follower, find them
/// equal. Returns the faults found.
fn batches_are_one_step() -> Vec<&'static str> {
    let leader = Arc::new(engine(2, true));
    let follower = Arc::new(engine(2, false));
    let (a, b) = (key_in(&leader, 0), key_in(&leader, 1));
    let mut others = (0..=255_u8).map(|byte| vec![byte, byte]);
    let mut other = |partition| others.find(|key| leader.partition_of(key) == partition);
    let (c, d) = (other(0).unwrap(), other(1).unwrap());
    let spawn = |node: &Arc<Engine>, work: Box<dyn FnOnce(&Engine) -> bool + Send>| {
        let node = Arc::clone(node);
        thread::spawn(move || work(&node))
    };
    let keeper = thread::spawn({
        let leader = Arc::clone(&leader);
        move || log(&leader).keep()
    });
    let following = thread::spawn({
        let (leader, follower) = (Arc::clone(&leader), Arc::clone(&follower));
        move || {
            let mut cursor = log(&leader).cursor_after(0).unwrap();
            let mut agrees = true;
            while let Some((records, digest)) = next(log(&leader), &mut cursor) {
                agrees &= receive(&follower, &records, digest);
            }
            agrees
        }
    });
    let copying = thread::spawn({
        let leader = Arc::clone(&leader);
        move || [0, 1].map(|partition| copy_partition(&leader, partition, Planted::Nothing))
    });
    let both = [get(&a), get(&b)];
    let reads = |node| {
        let both = both.clone();
        let read = move |node: &Engine| {
            let values = batch(node, &both);
            values[0] == values[1]
        };
        spawn(node, Box::new(read))
    };
    let readers = [reads(&leader), reads(&follower)];
    let in_run = spawn(&leader, {
        let frames = both.concat();
        Box::new(move |leader| {
            let run = Run::of(&frames, &Limits::default());
            let mut answers = Answers::new();
            while leader.execute_together(&run, None, &mut answers).is_err() {
                thread::yield_now();
            }
            let bytes = answers.bytes();
            bytes[..bytes.len() / 2] == bytes[bytes.len() / 2..]
        })
    });
    let batches = [
        vec![set(&a, 1), set(&b, 1)],
        vec![set(&d, 2), set(&b, 2), set(&a, 3), set(&a, 2)],
    ];
    let batches = batches.map(|frames| {
        let write = move |leader: &Engine| !batch(leader, &frames).is_empty();
        spawn(&leader, Box::new(write))
    });
    let runs = [
        [set(&c, 1), set(&d, 1), get(&a)].concat(),
        [set(&d, 3)].concat(),
    ];
    let runs = runs.map(|frames| {
        let write = move |leader: &Engine| execute(leader, &frames, Planted::Nothing);
        spawn(&leader, Box::new(write))
    });
    let mut faults = Vec::new();
    for thread in readers.into_iter().chain([in_run]) {
        if !thread.join().unwrap() {
            faults.push("a reader has found half of a batch");
        }
    }
    for thread in batches.into_iter().chain(runs) {
        assert!(thread.join().unwrap());
    }
    let copies = copying.join().unwrap();
    leader.end_log();
    keeper.join().unwrap();
    let mut check = |fault, is_met: bool| {
        if !is_met {
            faults.push(fault);
        }
    };
    check(DIVERGED, following.join().unwrap());
    check(ORDER, map(&contents(&leader)) == map(&contents(&follower)));
    check(DIGEST, leader.head() == follower.head());
    check(
        DIGEST,
        leader.head().digest == digest_of(&contents(&leader)),
    );

    // Along the log: each partition as it was where it was copied.
    let mut cursor = log(&leader).cursor_after(0).unwrap();
    let (records, _) = next(log(&leader), &mut cursor).unwrap();
    let mut data: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    for (index, record) in (1..).zip(all_frames(&records)) {
        for effect in effects(&record) {
            data.insert(effect.key().to_vec(), Entry::copy_of(&effect));
        }
        for (partition, (copy, copied_at)) in copies.iter().enumerate() {
            let entries = data.values();
            let expected = entries.filter(|entry| leader.partition_of(entry.key()) == partition);
            let expected: Vec<_> = expected.cloned().collect();
            check(COPY, *copied_at != index || *copy == map(&expected));
        }
    }
    faults
}

#[test]
fn a_batch_beside_runs_and_single_writes_is_one_step() {
    let runner = Runner::new(RandomScheduler::new(PASSES), config());
    runner.run(|| {
        let faults = batches_are_one_step();
        assert!(faults.is_empty(), "{faults:?}");
    });
}
