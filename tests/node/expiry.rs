//! Entries with deadlines: on the node that executes the requests, and on one that follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gopherstore::engine::clock::{Clock, Reading, TimeSource};
use gopherstore::engine::digest::Digest;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine, PartitionCopy};
use gopherstore::log::Found;
use gopherstore::wire::expiry::Expiry;
use gopherstore::wire::request::Limits;
use gopherstore::wire::{Opcode, Request, Run, Status, response};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::random_seed;

/// A clock that tests set: the wall, and the time since a start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manual(Arc<[AtomicU64; 2]>);

impl Manual {
    pub(crate) fn set(&self, wall: u64, monotonic: u64) {
        self.0[0].store(wall, Ordering::SeqCst);
        self.0[1].store(monotonic, Ordering::SeqCst);
    }

    /// Both clocks go on.
    pub(crate) fn pass(&self, ms: u64) {
        for clock in &*self.0 {
            clock.fetch_add(ms, Ordering::SeqCst);
        }
    }
}

impl TimeSource for Manual {
    fn read(&self) -> Reading {
        let [wall, monotonic] = self.0.each_ref().map(|clock| clock.load(Ordering::SeqCst));
        Reading { wall, monotonic }
    }
}

pub(crate) const START: u64 = 1_000_000;

pub(crate) fn engine(partitions: usize) -> (Engine, Manual) {
    let time = Manual::default();
    time.set(START, 0);
    let clock = Clock::new(Box::new(time.clone()));
    let engine = Engine::with_store(Store::with_partitions(partitions), Some(1 << 24), clock);
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    (engine, time)
}

pub(crate) fn encoded(requests: &[Request<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

/// Executes requests as a connection does, and returns their answers.
pub(crate) fn execute(engine: &Engine, requests: &[Request<'_>]) -> Vec<(Status, Vec<u8>)> {
    let bytes = encoded(requests);
    let (mut at, mut answers, mut out) = (0, Answers::new(), Vec::new());
    while at < bytes.len() {
        let run = Run::of(&bytes[at..], &Limits::default());
        at += run.bytes_of(engine.execute(&run, None, &mut answers).unwrap().count);
        out.extend_from_slice(answers.bytes());
        out.extend_from_slice(answers.apart().unwrap_or_default());
        answers.clear();
    }
    let (mut all, mut rest) = (Vec::new(), &out[..]);
    while let Ok(response::Parsed::Whole(answer)) = response::parse(rest) {
        all.push((answer.status.try_into().unwrap(), answer.value.to_vec()));
        rest = &rest[answer.frame_len()..];
    }
    assert_eq!((all.len(), rest), (requests.len(), &[][..]));
    all
}

pub(crate) fn one(engine: &Engine, request: Request<'_>) -> (Status, Vec<u8>) {
    execute(engine, &[request]).remove(0)
}

/// The value of a SETAT.
pub(crate) fn at(deadline: u64, value: &[u8]) -> Vec<u8> {
    [&deadline.to_be_bytes()[..], value].concat()
}

/// The value of an EXPIRE.
pub(crate) fn expiry(expiry: Expiry) -> Vec<u8> {
    let (expiry, time) = expiry.operands();
    Opcode::Expire.spec().value_of([expiry.into(), time])
}

/// The digest of the entries, beside the one that the log has.
pub(crate) fn digest(engine: &Engine) -> Digest {
    let (mut copy, mut sum) = (PartitionCopy::default(), Digest::EMPTY);
    for partition in 0..engine.partitions() {
        engine.copy_partition(partition, &mut copy);
        let digests = copy.frames().map(|frame| Digest::of_frame(frame.bytes()));
        sum = digests.fold(sum, Digest::plus);
    }
    sum
}

/// Has `follower` log and apply what `leader` has logged behind it.
pub(crate) fn follow(leader: &Engine, follower: &Engine) {
    let now = Instant::now();
    let log = leader.log().unwrap();
    log.drain(now);
    let mut buffer = Vec::new();
    loop {
        let next = follower.log().unwrap().last_index() + 1;
        let mut cursor = log.cursor_after(next - 1).unwrap();
        let (records, digest) = match log.try_read(&mut cursor, 1 << 16, &mut buffer) {
            Found::Small(_, digest) => (buffer.clone(), digest),
            Found::Large(entry, digest) => (entry.frame().to_vec(), digest),
            Found::Nothing => break,
            found @ (Found::Ended | Found::Gone) => panic!("{found:?}"),
        };
        crate::receive(follower, &records, u64::MAX, digest).unwrap();
    }
    assert_eq!(follower.head(), leader.head());
    assert_eq!(digest(follower), leader.head().digest);
    assert_eq!(digest(leader), leader.head().digest);
}

#[test]
fn an_entry_is_there_until_its_deadline_and_every_operation_takes_it_for_absent_then() {
    let (engine, time) = engine(4);
    let key = b"k";
    let (set, get, del) = (
        at(START + 10, b"5"),
        Request::Get { key },
        Request::Del { key },
    );
    let add = &Opcode::Add.spec().value_of([0, 1, 100, 0])[..];
    let add = Request::Add { key, value: add };
    let persist = &expiry(Expiry::None)[..];
    let persist = Request::Expire {
        key,
        value: persist,
    };
    let set = Request::SetAt { key, value: &set };
    let ok = |value: &[u8]| (Status::Ok, value.to_vec());
    let gone = (Status::NotFound, Vec::new());
    assert_eq!(execute(&engine, &[set, get]), [ok(b""), ok(b"5")]);
    time.pass(9);
    assert_eq!(one(&engine, add), ok(b"6"), "it keeps its deadline");
    time.pass(1);
    let index = engine.head().index;
    for request in [get, del, persist] {
        assert_eq!(one(&engine, request), gone, "{request:?}");
    }
    assert_eq!(
        execute(&engine, &[get, del, persist]),
        [(); 3].map(|()| gone.clone())
    );
    assert_eq!(engine.head().index, index, "a read removes nothing");
    assert_eq!(execute(&engine, &[add, get]), [ok(b"101"), ok(b"101")]);
    time.pass(1_000_000);
    assert_eq!(one(&engine, get), ok(b"101"), "a new value has no deadline");
    let past = at(1, b"old");
    let past = Request::SetAt { key, value: &past };
    assert_eq!(execute(&engine, &[past, get]), [ok(b""), gone]);
    let set = Request::Set { key, value: b"v" };
    assert_eq!(
        execute(&engine, &[past, set, get]),
        [ok(b""), ok(b""), ok(b"v")]
    );
    assert_eq!(engine.head().digest, digest(&engine));
}

#[test]
fn a_step_of_the_wall_clock_brings_no_expired_key_back_and_stops_no_time() {
    let (engine, time) = engine(4);
    let key = b"k";
    let (value, get) = (at(START + 1_000, b"v"), Request::Get { key });
    let set = Request::SetAt { key, value: &value };
    execute(&engine, &[set]);
    time.set(START - 500_000, 999);
    assert_eq!(one(&engine, get).0, Status::Ok);
    time.set(START - 499_999, 1_000);
    assert_eq!(one(&engine, get).0, Status::NotFound, "time went on");
    time.set(START - 900_000, 1_001);
    assert_eq!(one(&engine, get).0, Status::NotFound);
    // Forward, and back again.
    let value = at(START + 10_000, b"v");
    execute(&engine, &[Request::SetAt { key, value: &value }]);
    assert_eq!(one(&engine, get).0, Status::Ok);
    time.set(START + 10_000, 1_002);
    assert_eq!(one(&engine, get).0, Status::NotFound);
    time.set(START, 1_003);
    assert_eq!(one(&engine, get).0, Status::NotFound);
    // The clock of a leader that is ahead.
    let value = at(START + 20_000, b"v");
    execute(&engine, &[Request::SetAt { key, value: &value }]);
    engine.clock().pull(START + 20_000);
    assert_eq!(one(&engine, get).0, Status::NotFound);
}

#[test]
fn a_time_to_live_becomes_a_deadline_and_one_that_is_no_time_is_refused() {
    let (leader, time) = engine(4);
    let (follower, _) = engine(4);
    let key = b"k";
    let get = Request::Get { key };
    let ttl = expiry(Expiry::Ttl(50));
    let ttl = Request::Expire { key, value: &ttl };
    execute(&leader, &[Request::Set { key, value: b"v" }, ttl]);
    assert_eq!(leader.get(key).unwrap().deadline(), Some(START + 50));
    time.pass(50);
    assert_eq!(one(&leader, get).0, Status::NotFound);
    follow(&leader, &follower);
    assert_eq!(follower.get(key).unwrap().deadline(), Some(START + 50));
    assert_eq!(one(&follower, get).0, Status::Ok, "by its own clock");
    let add = Opcode::Add.spec().value_of([0, 1, 0, 30]);
    let add = Request::Add { key, value: &add };
    execute(&leader, &[add, add]);
    assert_eq!(leader.get(key).unwrap().deadline(), Some(START + 80));
    let value = expiry(Expiry::Ttl(u64::MAX));
    let (status, message) = one(&leader, Request::Expire { key, value: &value });
    assert_eq!(status, Status::Error);
    assert!(message.starts_with(b"ttl of 18446744073709551615 ms"));
    for value in [
        &[][..],
        &[0; 8],
        &expiry(Expiry::Keep),
        &Opcode::Expire.spec().value_of([4, 0]),
        &Opcode::Expire.spec().value_of([1, 0]),
        &Opcode::Expire.spec().value_of([3, 0]),
        &Opcode::Expire.spec().value_of([0, 1]),
    ] {
        assert_eq!(
            one(&leader, Request::Expire { key, value }).0,
            Status::Error,
            "{value:?}"
        );
    }
    for value in [&[][..], &[1; 7], &at(0, b"v")] {
        assert_eq!(
            one(&leader, Request::SetAt { key, value }).0,
            Status::Error,
            "{value:?}"
        );
    }
    assert_eq!(leader.get(key).unwrap().deadline(), Some(START + 80));
    follow(&leader, &follower);
}

/// Random requests over a few keys, short values and long ones, one by one and in runs, while time passes: the leader
/// answers as a map does, and the follower has the same entries, and the same digest.
#[test]
fn random_requests_on_a_leader_and_its_follower() {
    let mut random = ChaCha8Rng::seed_from_u64(random_seed());
    let (leader, time) = engine(2);
    let (follower, _) = engine(8);
    let mut model: BTreeMap<u8, (Vec<u8>, Option<u64>)> = BTreeMap::new();
    let mut now = START;
    for round in 0..2_000 {
        let passed = random.random_range(0..20);
        time.pass(passed);
        now += passed;
        model.retain(|_, (_, deadline)| deadline.is_none_or(|deadline| deadline > now));
        let count = random.random_range(1..=6);
        let mut operations = Vec::new();
        for _ in 0..count {
            let key = random.random_range(0..12_u8);
            let len = [0, 3, 200, 300, 5_000, 70_000][random.random_range(0..6)];
            let value = vec![random.random_range(b'0'..=b'9'); len];
            // Some lie in the past.
            let deadline = (now + random.random_range(0..60_u64)).saturating_sub(5);
            operations.push(match random.random_range(0..6) {
                0 => (Opcode::Set, key, value),
                1 => (Opcode::SetAt, key, at(deadline, &value)),
                2 => (Opcode::Get, key, vec![]),
                3 => (Opcode::Del, key, vec![]),
                4 => (Opcode::Expire, key, expiry(Expiry::Deadline(deadline))),
                _ => (Opcode::Expire, key, expiry(Expiry::None)),
            });
        }
        let requests: Vec<_> = operations
            .iter()
            .map(|(opcode, key, value)| Request::new(*opcode, std::slice::from_ref(key), value))
            .collect();
        let answers = execute(&leader, &requests);
        for ((opcode, key, value), answer) in operations.iter().zip(answers) {
            let is_there = model.contains_key(key);
            let of_key = if is_there {
                Status::Ok
            } else {
                Status::NotFound
            };
            let found = model.get(key).map(|(value, _)| value.clone());
            let expected = match opcode {
                Opcode::Set | Opcode::SetAt => (Status::Ok, vec![]),
                Opcode::Get => (of_key, found.unwrap_or_default()),
                Opcode::Del | Opcode::Expire => (of_key, vec![]),
                other => unreachable!("{} is not drawn", other.name()),
            };
            assert!(
                answer == expected,
                "round {round}: {opcode:?} {key}: {:?}",
                answer.0
            );
            let deadline = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
            match opcode {
                Opcode::Set => drop(model.insert(*key, (value.clone(), None))),
                Opcode::SetAt => {
                    let entry = (value[8..].to_vec(), Some(deadline(&value[..8])));
                    model.insert(*key, entry);
                }
                Opcode::Del => drop(model.remove(key)),
                Opcode::Expire => {
                    if let Some((_, old)) = model.get_mut(key) {
                        *old = (value[0] == 3).then(|| deadline(&value[1..]));
                    }
                }
                Opcode::Get => {}
                other => unreachable!("{} is not drawn", other.name()),
            }
            model.retain(|_, (_, deadline)| deadline.is_none_or(|deadline| deadline > now));
        }
        if round % 7 == 0 {
            follow(&leader, &follower);
        }
    }
    follow(&leader, &follower);
}

/// A clock that goes on by a millisecond each time it is read.
#[derive(Debug)]
struct Running(AtomicU64);

impl TimeSource for Running {
    fn read(&self) -> Reading {
        let monotonic = self.0.fetch_add(1, Ordering::SeqCst);
        let wall = START + monotonic;
        Reading { wall, monotonic }
    }
}

/// The first attempt at a new deadline of a long value finds the key there, and copies it without the lock. Its
/// deadline passes meanwhile, which a reader may see.
#[test]
fn a_key_that_expires_between_two_attempts_at_a_write_has_expired() {
    let engine = Engine::new(None, Clock::new(Box::new(Running(AtomicU64::new(0)))));
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    let (key, ttl) = (&b"k"[..], expiry(Expiry::None));
    let now = engine.clock().now();
    // The next reading is before the deadline, and the one behind it is not.
    let value = at(now + 2, &[b'l'; 100_000]);
    let request = Request::SetAt { key, value: &value };
    assert_eq!(one(&engine, request).0, Status::Ok);
    let request = Request::Expire { key, value: &ttl };
    assert_eq!(one(&engine, request).0, Status::NotFound);
}
