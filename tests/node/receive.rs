//! Records of a leader on a follower: logged when they come, applied when they are committed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use gopherstore::config::Config;
use gopherstore::engine::digest::Digest;
use gopherstore::engine::{Admission, Answers, ApplyError, Engine};
use gopherstore::history::{EpochStart, HistoryError};
use gopherstore::log::{Found, Log, Mark, NotLogged, Position, Reached};
use gopherstore::node::{Node, NotOpened, RoleState};
use gopherstore::wire::request::{Limits, frames};
use gopherstore::wire::{Request, Run};

use crate::{apply, digest_after, entry, epoch_record, receive};

const BACKLOG_BYTES: u64 = 1 << 20;

const EPOCH: EpochStart = EpochStart {
    epoch: 3,
    nonce: 7,
    start_index: 1,
};

/// A follower whose log has one record, the beginning of [`EPOCH`].
fn follower() -> Engine {
    let engine = Engine::new(Some(BACKLOG_BYTES), gopherstore::time::MachineTime::clock());
    apply(&engine, &epoch_record(EPOCH)).unwrap();
    engine
}

fn log(engine: &Engine) -> &Log {
    engine.log().unwrap()
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    entry(key, value).frame().to_vec()
}

fn del(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Del { key }.encode(&mut bytes).unwrap();
    bytes
}

/// The values of one-byte keys, 0 for none.
fn values<const N: usize>(engine: &Engine, keys: &[u8; N]) -> [u8; N] {
    keys.map(|key| engine.get(&[key]).map_or(0, |entry| entry.value()[0]))
}

/// The position that the answer to a GET is about.
fn position_of_read(engine: &Engine, key: &[u8]) -> Position {
    let mut bytes = Vec::new();
    Request::Get { key }.encode(&mut bytes).unwrap();
    let run = Run::of(&bytes, &Limits::default());
    let outcome = engine.execute(&run, None, &mut Answers::new()).unwrap();
    outcome.position
}

/// Indexes of the data set and of the log.
fn places(engine: &Engine) -> (u64, u64) {
    (engine.head().index, log(engine).last_index())
}

#[test]
fn a_group_that_is_committed_is_one_append_and_applied_at_once() {
    let engine = follower();
    let records = [set(b"a", b"1"), set(b"b", b"2"), del(b"a"), set(b"c", b"3")].concat();
    let digest = digest_after(&engine, &records);
    receive(&engine, &records, 5, digest).unwrap();
    assert_eq!(places(&engine), (5, 5));
    assert_eq!(engine.head().digest, digest);
    assert_eq!(values(&engine, b"abc"), [0, b'2', b'3']);
    // The digest is known where the group ends, and there alone.
    let digests: Vec<_> = (1..=5).map(|index| log(&engine).digest_at(index)).collect();
    let (begin, none) = (Some(Digest::EMPTY), None);
    assert_eq!(digests, [begin, none, none, none, Some(digest)]);
    let mut cursor = log(&engine).cursor_after(3).unwrap();
    let mut frames = Vec::new();
    let found = log(&engine).try_read(&mut cursor, 0, &mut frames);
    assert!(
        matches!(found, Found::Small(2, found) if found == digest),
        "{found:?}"
    );
    assert_eq!(frames, [del(b"a"), set(b"c", b"3")].concat());
    let watermarks = log(&engine).watermarks();
    let at = |index| watermarks.reached(Mark::Committed, Position { epoch: 3, index });
    assert_eq!(at(5), Reached::Yes);
    assert_ne!(at(6), Reached::Yes);
    assert_eq!(log(&engine).committed_index(), 5);
}

#[test]
fn what_is_not_committed_waits_in_the_log_and_is_not_shown() {
    let engine = follower();
    let watermarks = log(&engine).watermarks();
    let at = |index| watermarks.reached(Mark::Committed, Position { epoch: 3, index });
    let first = [set(b"a", b"1"), set(b"b", b"2"), set(b"a", b"3"), del(b"b")].concat();
    let digest = digest_after(&engine, &first);
    // In the middle of the group, and again.
    receive(&engine, &first, 3, digest).unwrap();
    assert_eq!(places(&engine), (3, 5));
    assert_eq!(values(&engine, b"ab"), *b"12");
    assert_eq!((at(3), at(4) == Reached::Yes), (Reached::Yes, false));
    engine.apply(2).unwrap();
    engine.apply(4).unwrap();
    assert_eq!(places(&engine), (4, 5));
    assert_eq!(values(&engine, b"ab"), *b"32");
    // The next groups wait behind it, whatever is committed of them.
    let long = vec![b'l'; 40_000];
    let both = [first.clone(), set(b"a", &long)].concat();
    let fresh = follower();
    let end = digest_after(&fresh, &both);
    receive(&engine, &set(b"a", &long), 4, end).unwrap();
    assert_eq!(places(&engine), (4, 6));
    let all = [both, set(b"c", b"4")].concat();
    let end = digest_after(&fresh, &all);
    receive(&engine, &set(b"c", b"4"), u64::MAX, end).unwrap();
    assert_eq!(places(&engine), (7, 7));
    assert_eq!(values(&engine, b"abc"), *b"l\x004");
    assert_eq!(engine.head().digest, end);
    assert_eq!(at(7), Reached::Yes);
    engine.apply(u64::MAX).unwrap();
    assert_eq!(places(&engine), (7, 7));
}

#[test]
fn a_data_set_that_is_not_the_leaders_is_found_where_a_group_ends() {
    for committed in [2, 3, 4] {
        let engine = follower();
        let records = [set(b"a", b"1"), set(b"b", b"2"), set(b"c", b"3")].concat();
        let own = digest_after(&engine, &records);
        let theirs = Digest::from_u128(9);
        let received = receive(&engine, &records, committed, theirs);
        let error = ApplyError::Diverged {
            index: 4,
            own,
            theirs,
        };
        if committed == 4 {
            assert_eq!(received, Err(error));
        } else {
            assert_eq!(received, Ok(()));
            assert_eq!(engine.apply(4), Err(error));
        }
    }
    let engine = follower();
    let records = [set(b"a", b"1"), del(b"b")].concat();
    let digest = digest_after(&engine, &records);
    let key = b"b".to_vec();
    let missing = Err(ApplyError::Missing { key });
    assert_eq!(receive(&engine, &records, u64::MAX, digest), missing);
}

#[test]
fn what_does_not_continue_the_log_is_not_logged() {
    let engine = follower();
    let records = [set(b"a", b"1"), epoch_record(EPOCH)].concat();
    let generation = log(&engine).dataset_generation();
    let (got, previous) = (3, 3);
    let refused = NotLogged::Epoch(HistoryError::Epoch { got, previous });
    let received = receive(&engine, &records, u64::MAX, Digest::EMPTY);
    assert_eq!(received, Err(ApplyError::NotLogged(refused)));
    assert_eq!(places(&engine), (1, 1));
    assert_eq!(log(&engine).history().epochs(), [EPOCH]);
    assert_eq!(log(&engine).dataset_generation(), generation);
    let alone = Engine::new(None, gopherstore::time::MachineTime::clock());
    let received = receive(&alone, &set(b"a", b"1"), u64::MAX, Digest::EMPTY);
    assert_eq!(received, Err(ApplyError::NoLog));
}

#[test]
fn an_epoch_is_in_the_history_once_it_is_logged() {
    let engine = follower();
    let generation = log(&engine).dataset_generation();
    let next = EpochStart {
        epoch: 4,
        nonce: 8,
        start_index: 3,
    };
    let records = [set(b"a", b"1"), epoch_record(next), set(b"b", b"2")].concat();
    let digest = digest_after(&engine, &records);
    receive(&engine, &records, 2, digest).unwrap();
    assert_eq!(log(&engine).history().epochs(), [EPOCH, next]);
    assert_eq!(log(&engine).dataset_generation(), generation + 1);
    // The position of the data set is still in the epoch before.
    assert_eq!(log(&engine).head_in_epoch(), (engine.head(), 3));
    engine.admit(Admission {
        reads: true,
        writes: false,
    });
    let read = || position_of_read(&engine, b"a");
    assert_eq!(read(), Position { epoch: 3, index: 2 });
    engine.apply(3).unwrap();
    assert_eq!(log(&engine).head_in_epoch(), (engine.head(), 4));
    assert_eq!(read(), Position { epoch: 4, index: 2 });
    engine.apply(4).unwrap();
    assert_eq!(values(&engine, b"ab"), *b"12");
}

/// A leader may show what it has copied once its own disk has it.
#[test]
fn a_read_of_a_copied_data_set_is_about_the_index_of_the_copy() {
    let engine = follower();
    let (frame, history) = (entry(b"a", b"1"), log(&engine).history());
    let mut copy = engine.load(1);
    copy.add(frames(frame.frame()));
    assert!(copy.finish(9, Digest::of(&frame), history, Instant::now()));
    let next = EpochStart {
        epoch: 4,
        nonce: 8,
        start_index: 10,
    };
    let admission = Admission {
        reads: true,
        writes: true,
    };
    engine.open_epoch(next, admission).unwrap();
    for key in [b"a", b"b"] {
        let position = position_of_read(&engine, key);
        assert_eq!(position, Position { epoch: 4, index: 9 });
    }
}

/// The leader must not have more than that waiting, but a follower is not to trust it.
#[test]
fn what_waits_is_not_evicted_and_bounded() {
    let engine = follower();
    let values: Vec<Vec<u8>> = (0..60).map(|byte| set(&[byte], &[byte; 50_000])).collect();
    let mut records = Vec::new();
    let mut logged = 0;
    let empty = follower();
    for value in &values {
        records.extend_from_slice(value);
        match receive(&engine, value, 1, digest_after(&empty, &records)) {
            Ok(()) => logged += 1,
            Err(error) => {
                assert_eq!(error, ApplyError::NotLogged(NotLogged::Overfull));
                break;
            }
        }
    }
    let bytes = log(&engine).kept_bytes();
    assert!(
        (BACKLOG_BYTES..BACKLOG_BYTES + 60_000).contains(&bytes),
        "{bytes}"
    );
    assert_eq!(places(&engine), (1, 1 + logged));
    engine.apply(u64::MAX).unwrap();
    assert_eq!(places(&engine), (1 + logged, 1 + logged));
    assert_eq!(u64::try_from(engine.len()).unwrap(), logged);
    // There is room again, for which the oldest ones go.
    for value in &values {
        apply(&engine, value).unwrap();
    }
    assert!(log(&engine).kept_bytes() <= BACKLOG_BYTES + 60_000);
}

/// A node of a cluster of two.
fn node(name: &str) -> Node {
    let text = "cluster = \"c\"\nleader = \"n1\"\n\
                [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
                [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    Node::of_cluster(&config, config.node(name).unwrap())
}

#[test]
fn a_node_that_leads_has_applied_all_that_it_has_logged() {
    for is_whole in [true, false] {
        let node = node("n1");
        let engine = node.engine();
        apply(engine, &epoch_record(EPOCH)).unwrap();
        let records = [set(b"a", b"1"), set(b"b", b"2")].concat();
        let own = digest_after(engine, &records);
        let theirs = if is_whole { own } else { Digest::EMPTY };
        receive(engine, &records, 2, theirs).unwrap();
        assert_eq!(places(engine), (2, 3));
        let next = EpochStart {
            epoch: 4,
            nonce: 8,
            start_index: 4,
        };
        let opened = node.open_epoch(next);
        if is_whole {
            assert_eq!(opened, Ok(()));
            assert_eq!(places(engine), (4, 4));
            assert_eq!(values(engine, b"ab"), *b"12");
        } else {
            let error = ApplyError::Diverged {
                index: 3,
                own,
                theirs,
            };
            assert_eq!(opened, Err(NotOpened::NotApplied(error)));
            assert!(matches!(node.role(), RoleState::Candidate { .. }));
            assert_eq!(node.history().epochs(), [EPOCH]);
        }
    }
}

/// Its last writes may still be on their way to the backlog, from which watchers and other followers are sent them.
#[test]
fn a_leader_that_begins_to_follow_logs_behind_its_own_writes() {
    let node = node("n1");
    let engine = node.engine();
    node.open_epoch(EPOCH).unwrap();
    let own: Vec<u8> = (0..100).flat_map(|byte| set(&[byte], b"own")).collect();
    thread::scope(|scope| {
        let run = |from: usize| {
            let run = Run::of(&own[from..], &Limits::default());
            let outcome = engine.execute(&run, None, &mut Answers::new()).unwrap();
            from + run.bytes_of(outcome.count)
        };
        let mut at = 0;
        while at < own.len() {
            at = run(at);
        }
        node.campaign("another node leads");
        let records = set(b"theirs", b"1");
        let digest = digest_after(engine, &records);
        let receiving = scope.spawn(move || receive(engine, &records, u64::MAX, digest));
        scope.spawn(|| log(engine).keep());
        receiving.join().unwrap().unwrap();
        engine.end_log();
    });
    assert_eq!(places(engine), (102, 102));
    let mut cursor = log(engine).cursor_after(1).unwrap();
    let mut frames = Vec::new();
    let found = log(engine).try_read(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(found, Found::Small(101, _)), "{found:?}");
    assert_eq!(frames, [own, set(b"theirs", b"1")].concat());
    assert!(
        log(engine)
            .appended_at(102)
            .is_some_and(|at| at <= Instant::now())
    );
}

/// A read that finds a record of the leader before the whole group is applied is answered all the same.
#[test]
fn a_read_beside_the_records_of_a_leader_waits_for_nothing() {
    const GROUPS: u32 = 20;
    let engine = follower();
    engine.admit(Admission {
        reads: true,
        writes: false,
    });
    let watermarks = log(&engine).watermarks();
    // As when the node began to follow.
    watermarks.give_up_epoch();
    let (is_over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let position = position_of_read(&engine, b"k");
                for mark in [Mark::Written, Mark::Durable, Mark::Committed] {
                    let reached = watermarks.reached(mark, position);
                    assert_eq!(reached, Reached::Yes, "{position:?}");
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        for group in 0..GROUPS {
            // Long, so that it is read meanwhile.
            let records: Vec<u8> = (0..500_u32)
                .flat_map(|number| set(b"k", &(group * 500 + number).to_be_bytes()))
                .collect();
            apply(&engine, &records).unwrap();
            let before = reads.load(Ordering::Relaxed);
            while reads.load(Ordering::Relaxed) == before && !reader.is_finished() {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(engine.head().index, 1 + u64::from(GROUPS) * 500);
}
