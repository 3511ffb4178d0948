//! Writers, the replication thread, a follower and a full copy, as `Node::make`, `Log::keep`, `source` and `link`
//! have them, and the same with one thing wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::backlog::Frames;
use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::wire::request::{Limits, Parsed, parse};
use gopherstore::wire::{Request, RequestFrame, Run};
use shuttle::Runner;
use shuttle::scheduler::RandomScheduler;
use shuttle::thread;

use crate::log::{Cursor, Found, Log};
use crate::store::{Contended, Copied, Store};

/// Schedules that the protocol has to pass.
const PASSES: usize = 2_000;

/// Schedules within which a planted fault has to be found.
const FINDS: usize = 1_000;

/// The seed with which planted faults are looked for, so that the search is the same each time.
const SEED: u64 = 3;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A write gets its index and its place in the log when its partition is unlocked.
    AppendAfterUnlock,
    /// A write gets its index and its place in the log before its partition is locked.
    AppendBeforeLock,
    /// A full copy notes where the log stands when the partition is unlocked.
    CopiedAtAfterUnlock,
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// One node's data and its order.
struct Node {
    store: Store,
    log: Log,
}

/// A SET frame.
fn set(key: &[u8], value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let value = &[value];
    Request::Set { key, value }.encode(&mut bytes).unwrap();
    bytes
}

/// A GET frame.
fn get(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Get { key }.encode(&mut bytes).unwrap();
    bytes
}

impl Node {
    fn new(partitions: usize) -> Node {
        Node {
            store: Store::with_partitions(partitions),
            log: Log::new(1 << 20),
        }
    }

    /// `Node::make` of `src/node/mod.rs`: SETs and GETs, one frame behind the other, together.
    fn make(&self, frames: &[u8], planted: Planted) {
        let run = Run::of(frames, &Limits::default());
        assert_eq!(run.bytes(), frames);
        let (store, journal) = (&self.store, &self.log);
        let is_get = |frame: &RequestFrame<'_>| matches!(frame.request(), Request::Get { .. });
        let changed = |sum: Digest, frame: &RequestFrame<'_>, old: Option<&Entry>| {
            let new = Digest::of_frame(frame.bytes());
            sum.changed(old.map(Digest::of).unwrap_or_default(), new)
        };
        let log = run.copy_of(run.writes());
        let cost = Frames::cost(log.len());
        let append = |change| {
            let count = run.writes().count_ones();
            journal.append(Frames::Run(log.clone()), count, change);
        };
        journal.reserve(cost);
        let mut change = Digest::EMPTY;
        if planted == Planted::AppendBeforeLock {
            for frame in run.frames().filter(|frame| !is_get(frame)) {
                change = changed(change, &frame, store.get(frame.request().key()).as_ref());
            }
            append(change);
        }
        let made = store.carry_out(
            &run,
            &mut change,
            |change, _, frame, old| {
                if !is_get(frame) {
                    *change = changed(*change, frame, old);
                }
                true
            },
            |change| {
                if matches!(planted, Planted::Nothing | Planted::CopiedAtAfterUnlock) {
                    append(*change);
                }
            },
        );
        match made {
            Ok(_) if planted == Planted::AppendAfterUnlock => append(change),
            Ok(_) => {}
            // `Node::make_one` waits for the partition; this asks again, and a scheduler that is fair comes to an end.
            Err(Contended) if run.len() == 1 && planted != Planted::AppendBeforeLock => {
                journal.release(cost);
                thread::yield_now();
                self.make(frames, planted);
            }
            Err(Contended) => {
                journal.release(cost);
                for frame in run.frames().filter(|frame| !is_get(frame)) {
                    self.make(frame.bytes(), planted);
                }
            }
        }
    }

    fn copy_partition(&self, partition: usize, planted: Planted) -> (Map, u64) {
        let index = || self.log.head().index;
        let mut copied = Copied::default();
        let copied_at = if planted == Planted::CopiedAtAfterUnlock {
            self.store.copy_partition(partition, &mut copied, || ());
            index()
        } else {
            self.store.copy_partition(partition, &mut copied, index)
        };
        (map(&entries_of(&copied)), copied_at)
    }

    fn contents(&self) -> Vec<Entry> {
        let (mut copied, mut all) = (Copied::default(), Vec::new());
        for partition in 0..self.store.partitions() {
            self.store.copy_partition(partition, &mut copied, || ());
            all.extend(entries_of(&copied));
        }
        all
    }

    /// A key that lives in this partition.
    fn key_in(&self, partition: usize) -> Vec<u8> {
        let mut keys = (0_u8..=255).map(|byte| vec![byte]);
        keys.find(|key| self.store.partition_of(key) == partition)
            .expect("a partition that none of 256 keys fall in")
    }
}

fn entries_of(copied: &Copied) -> Vec<Entry> {
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

/// Entries of the log from the cursor on, waiting for them; `None` at the log's end.
fn next(log: &Log, cursor: &mut Cursor) -> Option<Vec<Entry>> {
    let never = Instant::now() + Duration::from_secs(3_600);
    let mut frames = Vec::new();
    match log.read(cursor, 1 << 20, &mut frames, never, || false) {
        Found::Small(_) => Some(entries(&frames)),
        Found::Ended => None,
        found => panic!("{found:?}"),
    }
}

/// The entries of frames that lie one after another.
fn entries(mut frames: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Parsed::Whole(frame) = parse(frames, &Limits::default()).unwrap() {
        let entry = Entry::copy_of(&frame);
        frames = &frames[entry.frame().len()..];
        entries.push(entry);
        if frames.is_empty() {
            break;
        }
    }
    entries
}

/// What can be wrong after a run.
const ORDER: &str = "the follower's data is not the leader's";
const DIGEST: &str = "the digest is not the data's";
const COPY: &str = "the copy of a partition is not the data at its index";

/// One run: writers on as many keys as there are partitions, a follower and a copy. Each writer makes its
/// writes one by one, or all together. Says what is wrong after it.
fn run(
    partitions: usize,
    writers: u8,
    writes: u8,
    in_runs: bool,
    planted: Planted,
) -> Vec<&'static str> {
    let leader = Arc::new(Node::new(partitions));
    let keys: Arc<Vec<_>> = Arc::new((0..partitions).map(|at| leader.key_in(at)).collect());
    let spawn = |work: Box<dyn FnOnce(&Node) + Send>| {
        let leader = Arc::clone(&leader);
        thread::spawn(move || work(&leader))
    };
    let keeper = spawn(Box::new(|leader| leader.log.keep()));

    let follower = Arc::new(Node::new(partitions));
    let following = spawn(Box::new({
        let follower = Arc::clone(&follower);
        move |leader| {
            let mut cursor = leader.log.cursor_after(0).unwrap();
            while let Some(entries) = next(&leader.log, &mut cursor) {
                let frames: Vec<u8> = entries.iter().flat_map(|e| e.frame()).copied().collect();
                follower.make(&frames, Planted::Nothing);
            }
        }
    }));
    let copying = thread::spawn({
        let leader = Arc::clone(&leader);
        move || -> Vec<_> {
            (0..partitions)
                .map(|partition| leader.copy_partition(partition, planted))
                .collect()
        }
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
                    // With reads of all keys among them, whose locks the copy shares.
                    let gets: Vec<u8> = keys.iter().flat_map(|key| get(key)).collect();
                    let frames: Vec<Vec<u8>> = frames.collect();
                    leader.make(&frames.join(&gets[..]), planted);
                } else {
                    frames.for_each(|frame| leader.make(&frame, planted));
                }
            }))
        })
        .collect();
    for writer in writing {
        writer.join().unwrap();
    }
    let copies = copying.join().unwrap();
    leader.log.end();
    keeper.join().unwrap();
    following.join().unwrap();

    let count = u64::from(writers) * u64::from(writes);
    let mut faults = Vec::new();
    let mut check = |fault, is_met: bool| {
        if !is_met {
            faults.push(fault);
        }
    };
    let (own, theirs) = (leader.contents(), follower.contents());
    let head = leader.log.head();
    assert_eq!(head.index, count);
    assert_eq!(head, leader.log.kept_head());
    check(ORDER, map(&own) == map(&theirs));
    check(DIGEST, head.digest == digest_of(&own));
    check(DIGEST, head == follower.log.head());

    // Along the log: the digest at each index, and each partition as it was where it was copied.
    let mut cursor = leader.log.cursor_after(0).unwrap();
    let log = next(&leader.log, &mut cursor).unwrap();
    let mut data: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    for index in 0..=count {
        if let Some(at) = index.checked_sub(1) {
            let entry = &log[usize::try_from(at).unwrap()];
            data.insert(entry.key().to_vec(), entry.clone());
        }
        let entries: Vec<_> = data.values().cloned().collect();
        let digest = leader.log.digest_at(index);
        // Of writes made together, only the last has one.
        check(DIGEST, digest.map_or(in_runs, |d| d == digest_of(&entries)));
        for (partition, (copy, copied_at)) in copies.iter().enumerate() {
            let lives_there = |entry: &Entry| leader.store.partition_of(entry.key()) == partition;
            let expected: Vec<_> = entries.iter().filter(|e| lives_there(e)).cloned().collect();
            check(COPY, *copied_at != index || *copy == map(&expected));
        }
    }
    faults
}

/// Runs the protocol as it is, with schedules that are others each time.
fn passes(partitions: usize, writers: u8, writes: u8, in_runs: bool) {
    let runner = Runner::new(RandomScheduler::new(PASSES), shuttle::Config::default());
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
    let runner = Runner::new(scheduler, shuttle::Config::default());
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
    finds(Planted::CopiedAtAfterUnlock, COPY);
}

#[test]
#[should_panic(expected = "the follower's data is not the leader's")]
fn a_send_of_writes_made_together_after_their_partitions_are_unlocked_is_found() {
    finds_in(true, Planted::AppendAfterUnlock, ORDER);
}

/// Two clients each read the key that the other one writes, and write their own. Says whether both found nothing, as
/// if each had come before the other.
fn both_find_nothing(frames_of: fn(&[u8], &[u8]) -> Vec<Vec<u8>>) -> bool {
    let node = Arc::new(Node::new(2));
    let keys = [node.key_in(0), node.key_in(1)];
    let clients = [(0, 1), (1, 0)].map(|(own, other)| {
        let (node, runs) = (Arc::clone(&node), frames_of(&keys[own], &keys[other]));
        thread::spawn(move || {
            let mut found = false;
            for frames in &runs {
                let run = Run::of(frames, &Limits::default());
                let each = |found: &mut bool, _, frame: &RequestFrame<'_>, old: Option<&Entry>| {
                    *found |= matches!(frame.request(), Request::Get { .. }) && old.is_some();
                    true
                };
                while node
                    .store
                    .carry_out(&run, &mut found, each, |_| {})
                    .is_err()
                {
                    thread::yield_now();
                }
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
    let runner = Runner::new(RandomScheduler::new(PASSES), shuttle::Config::default());
    runner.run(|| {
        let nothing = both_find_nothing(|own, other| vec![[get(other), set(own, 1)].concat()]);
        assert!(!nothing, "{NOTHING}");
    });
}

#[test]
#[should_panic(expected = "each came before the other")]
fn a_read_and_a_write_that_are_two_steps_are_found() {
    let scheduler = RandomScheduler::new_from_seed(SEED, FINDS);
    let runner = Runner::new(scheduler, shuttle::Config::default());
    runner.run(|| {
        let nothing = both_find_nothing(|own, other| vec![get(other), set(own, 1)]);
        assert!(!nothing, "{NOTHING}");
    });
}
