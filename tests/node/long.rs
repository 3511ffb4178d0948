//! Writes over long entries, whose digests are taken without the lock.
//!
//! A run is executed at once only up to such a write. To see one beforehand it looks at the entries that its keys seem
//! to have, and may look at another entry with the same tag. So these tests have many keys in one partition.

use std::thread;
use std::time::Duration;

use gopherstore::engine::digest::Digest;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine, NotDone, PartitionCopy};
use gopherstore::log::ROOM_BYTES;
use gopherstore::wire::request::Limits;
use gopherstore::wire::run::RUN_FRAME_BYTES_MAX;
use gopherstore::wire::{Opcode, Request, Run};

use crate::apply;

const KEYS: u32 = 3_000;

fn engine(store: Store) -> Engine {
    let engine = Engine::with_store(
        store,
        Some(64 << 20),
        gopherstore::time::MachineTime::clock(),
    );
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    engine
}

fn encoded<'a>(requests: impl IntoIterator<Item = Request<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

/// Executes everything, and returns the answers.
fn execute(engine: &Engine, bytes: &[u8]) -> Vec<u8> {
    let (mut at, mut answers, mut out) = (0, Answers::new(), Vec::new());
    while at < bytes.len() {
        let run = Run::of(&bytes[at..], &Limits::default());
        at += run.bytes_of(engine.execute(&run, None, &mut answers).unwrap().count);
        out.extend_from_slice(answers.bytes());
        answers.clear();
    }
    out
}

/// The digest of the entries, beside the one that the log has.
fn digest(engine: &Engine) -> Digest {
    let (mut copy, mut sum) = (PartitionCopy::default(), Digest::EMPTY);
    for partition in 0..engine.partitions() {
        engine.copy_partition(partition, &mut copy);
        let digests = copy.frames().map(|frame| Digest::of_frame(frame.bytes()));
        sum = digests.fold(sum, Digest::plus);
    }
    sum
}

/// Pairs of keys, the values of the first ones long.
fn pairs() -> impl Iterator<Item = [[u8; 4]; 2]> {
    (0..KEYS / 2).map(|n| [2 * n, 2 * n + 1].map(u32::to_be_bytes))
}

#[test]
fn a_run_over_long_entries_is_executed_whatever_its_keys_seem_to_have() {
    let leader = engine(Store::with_partitions(1));
    let long = vec![b'l'; RUN_FRAME_BYTES_MAX];
    for [key, other] in pairs() {
        let (value, short) = (&long[..], &b"short"[..]);
        execute(
            &leader,
            &encoded([
                Request::Set { key: &key, value },
                Request::Set {
                    key: &other,
                    value: short,
                },
            ]),
        );
    }
    assert_eq!(leader.head().digest, digest(&leader));
    for (at, [key, other]) in (0..).zip(pairs()) {
        let set = Request::Set {
            key: &key,
            value: b"1",
        };
        let over_long = if at % 2 == 0 {
            set
        } else {
            Request::Del { key: &key }
        };
        let add = &Opcode::Add.spec().value_of([0, 1, 0, 0]);
        let out = execute(
            &leader,
            &encoded([
                Request::Set {
                    key: &other,
                    value: b"2",
                },
                over_long,
                Request::Add {
                    key: &key,
                    value: add,
                },
                Request::Get { key: &other },
            ]),
        );
        let sum = if at % 2 == 0 { b'2' } else { b'1' };
        let expected = [
            &b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"[..],
            &[sum],
            b"\0\0\0\0\x012",
        ];
        assert_eq!(out, expected.concat(), "pair {at}");
    }
    assert_eq!(leader.head().digest, digest(&leader));
}

#[test]
fn a_follower_applies_runs_over_long_entries_whatever_their_keys_seem_to_have() {
    let follower = engine(Store::with_partitions(1));
    let long = vec![b'l'; RUN_FRAME_BYTES_MAX];
    for [key, other] in pairs() {
        let long = Request::Set {
            key: &key,
            value: &long,
        };
        apply(&follower, &encoded([long])).unwrap();
        let short = Request::Set {
            key: &other,
            value: b"short",
        };
        apply(&follower, &encoded([short])).unwrap();
    }
    for [key, other] in pairs() {
        let sets = [&other, &key].map(|key| Request::Set { key, value: b"v" });
        let del = Request::Del { key: &key };
        apply(&follower, &encoded([sets[0], sets[1], del, sets[1]])).unwrap();
    }
    assert_eq!(follower.len(), usize::try_from(KEYS).unwrap());
    assert_eq!(follower.head().digest, digest(&follower));
}

/// The first one makes an entry that is longer than what runs replace.
#[test]
fn two_writes_of_one_run_to_a_long_key() {
    let engine = engine(Store::new());
    let (key, value) = (
        &vec![b'k'; 5_000][..],
        &Opcode::Add.spec().value_of([0, 1, 0, 0])[..],
    );
    let add = Request::Add { key, value };
    let out = execute(&engine, &encoded([add, add, Request::Del { key }, add]));
    assert_eq!(out, b"\0\0\0\0\x011\0\0\0\0\x012\0\0\0\0\0\0\0\0\0\x011");
    assert_eq!(engine.head().index, 4);
    assert_eq!(engine.head().digest, digest(&engine));
}

/// Room that was waited for is kept where a run goes one by one: otherwise others get it first, each time.
#[test]
fn a_run_over_a_long_entry_has_room_after_one_wait_while_others_wait_too() {
    let engine = engine(Store::new());
    let long = vec![b'l'; RUN_FRAME_BYTES_MAX];
    let (key, value) = (&b"long"[..], &long[..]);
    execute(&engine, &encoded([Request::Set { key, value }]));
    let sets = [b"long", b"othe"].map(|key| Request::Set { key, value: b"v" });
    let bytes = encoded(sets);
    let run = Run::of(&bytes, &Limits::default());
    let mut answers = Answers::new();
    thread::scope(|scope| {
        let engine = &engine;
        let all = engine.wait_for_room(ROOM_BYTES).unwrap();
        let Err(NotDone::NoRoom { cost }) = engine.execute(&run, None, &mut answers) else {
            panic!("there is room");
        };
        let own = scope.spawn(move || engine.wait_for_room(cost));
        // Room is given in the order in which it was asked for.
        thread::sleep(Duration::from_millis(100));
        let others = scope.spawn(move || engine.wait_for_room(ROOM_BYTES - cost));
        drop(all);
        let (own, _others) = (own.join().unwrap(), others.join().unwrap());
        // All room is taken, some of it for this run. One by one it needs a little more.
        let outcome = engine.execute(&run, own, &mut answers).unwrap();
        assert_eq!(outcome.count, 1);
    });
    assert_eq!(engine.head().digest, digest(&engine));
}
