//! All operations at random on a leader and a node that follows it, against the reference of the tests: the answers,
//! the records, and the digest at each position, while entries expire and the wall clock is set.

use std::collections::BTreeMap;
use std::rc::Rc;

use gopherstore::engine::clock::Clock;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::log::Found;
use gopherstore::wire::batch::Batch;
use gopherstore::wire::conditional::{Add, Condition, Put, Take, Want};
use gopherstore::wire::expiry::{Expiry, SetAt};
use gopherstore::wire::request::frames;
use gopherstore::wire::{Opcode, Request, Status, Token, response};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_128;

use crate::expiry::{Manual, START, engine, execute, expiry, follow};
use crate::model::EPOCH;
use crate::random_seed;
use crate::reference::{At, Effect, Expected, Item};

const ROUNDS: usize = 1_500;

/// Keys, few of them, so that requests meet.
const KEYS: u8 = 12;

/// Lengths of values: short ones, those of the longest SET of a run, and those that are made or hashed without a lock.
const LENGTHS: [usize; 7] = [0, 1, 20, 300, 3_200, 5_000, 70_000];

/// The data set and the records that the reference has, with its own clock.
struct Model {
    items: BTreeMap<Vec<u8>, Item>,
    digest: u128,
    /// Of each record the answer of the request that made it, and the digest after it.
    records: Vec<(Expected, u128)>,
    monotonic: u64,
    wall: u64,
    /// The clock less `monotonic`.
    ahead: u64,
    has_log: bool,
}

impl Model {
    fn now(&self) -> u64 {
        self.monotonic + self.ahead
    }

    /// Sets both clocks.
    fn set_time(&mut self, time: &Manual, wall: u64, passed: u64) {
        self.monotonic += passed;
        self.wall = wall;
        self.ahead = self.ahead.max(wall.saturating_sub(self.monotonic));
        time.set(wall, self.monotonic);
    }

    fn change(&mut self, made: &Expected) {
        for (key, effect) in &made.effects {
            let hash = |item: Option<&Item>| item.map_or(0, |item| item.hash(key));
            self.digest = self.digest.wrapping_sub(hash(self.items.get(&key[..])));
            match effect.on(self.items.get(&key[..])) {
                Some(item) => drop(self.items.insert(key.to_vec(), item)),
                None => drop(self.items.remove(&key[..])),
            }
            self.digest = self.digest.wrapping_add(hash(self.items.get(&key[..])));
        }
        if !made.effects.is_empty() {
            self.records.push((made.clone(), self.digest));
        }
    }

    /// The node removes an entry that has expired.
    fn remove(&mut self, key: &[u8]) {
        self.change(&Expected {
            status: Status::Ok,
            value: Vec::new(),
            effects: vec![(Rc::from(key), Effect::Remove)],
        });
    }

    /// The answer to a request, which is executed.
    fn execute(&mut self, request: &Request<'_>) -> Expected {
        let token = self.has_log.then(|| Token {
            epoch: EPOCH.epoch,
            // The EPOCH is the first record.
            index: u64::try_from(self.records.len()).unwrap() + 2,
            nonce: EPOCH.nonce,
        });
        let at = At {
            now: self.now(),
            token,
            last: token.map(|token| Token {
                index: token.index - 1,
                ..token
            }),
        };
        let items = |key: &[u8]| self.items.get(key);
        let expected = crate::with_frame(request, |frame| Expected::of(frame, items, at));
        self.change(&expected);
        expected
    }
}

/// A request of any kind, some of which are refused.
fn request(random: &mut ChaCha8Rng, model: &Model) -> (Opcode, Vec<u8>, Vec<u8>) {
    let key = vec![random.random_range(0..KEYS)];
    let len = LENGTHS[random.random_range(0..LENGTHS.len())];
    // Now and then a number.
    let text = vec![random.random_range(b'0'..=b'9'); len];
    let known = match model.items.get(&key) {
        Some(item) if random.random_bool(0.8) => &item.value[..],
        _ => b"another",
    };
    let condition = match random.random_range(0..6) {
        0 | 1 => Condition::Always,
        2 => Condition::Absent,
        3 => Condition::Present,
        4 if known.len() <= 4_096 => Condition::Equal(known),
        _ => Condition::EqualHash(xxh3_128(known)),
    };
    let want = Want {
        value: random.random_bool(0.4),
        token: random.random_bool(0.3),
    };
    let ttl = match random.random_range(0..50) {
        0 => u64::MAX,
        1 => 1_000_000,
        _ => random.random_range(1..60),
    };
    let deadline = (model.now() + random.random_range(0..60)).saturating_sub(5);
    let expiries = [
        Expiry::None,
        Expiry::Ttl(ttl),
        Expiry::Ttl(ttl),
        Expiry::Deadline(deadline),
        Expiry::Keep,
    ];
    let when = expiries[random.random_range(0..expiries.len())];
    let opcodes = [
        Opcode::Set,
        Opcode::SetAt,
        Opcode::Get,
        Opcode::Del,
        Opcode::Put,
        Opcode::Put,
        Opcode::Take,
        Opcode::Add,
        Opcode::Add,
        Opcode::Expire,
        Opcode::Ttl,
    ];
    let opcode = opcodes[random.random_range(0..opcodes.len())];
    let mut value = match opcode {
        Opcode::Set => text,
        Opcode::SetAt => SetAt {
            deadline,
            value: &text,
        }
        .encode(),
        Opcode::Put => Put {
            condition,
            expiry: when,
            want,
            value: &text,
        }
        .encode(),
        Opcode::Take => Take { condition, want }.encode(),
        Opcode::Add => Add {
            want_token: want.token,
            delta: random.random_range(-3..10),
            start: if random.random_bool(0.1) {
                i64::MAX
            } else {
                random.random_range(-5..5)
            },
            expiry: when,
        }
        .encode(),
        Opcode::Expire => expiry(when),
        Opcode::Get | Opcode::Del | Opcode::Ttl => Vec::new(),
        other => unreachable!("{} is not drawn", other.name()),
    };
    // A byte of the operands is another one.
    if opcode != Opcode::Set && !value.is_empty() && random.random_bool(0.02) {
        let at = random.random_range(0..value.len().min(13));
        value[at] ^= 1 << random.random_range(0..8);
    }
    (opcode, key, value)
}

/// The value of a BATCH of those that may be in one: some are too long, or are refused.
fn batch_of(operations: &[(Opcode, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (opcode, key, value) in operations {
        if value.len() < 4_000 {
            Request::new(*opcode, key, value).encode(&mut out).unwrap();
        }
    }
    out
}

fn execute_batch(engine: &Engine, value: &[u8]) -> (Status, Vec<u8>) {
    let mut answers = Answers::new();
    let batch = match Batch::decode(value) {
        Ok(batch) => batch,
        Err(error) => return (Status::Error, error.reason.into_bytes()),
    };
    engine.execute_batch(&batch, None, &mut answers).unwrap();
    let bytes = [answers.bytes(), answers.apart().unwrap_or_default()].concat();
    match response::parse(&bytes).unwrap() {
        response::Parsed::Whole(answer) => {
            assert_eq!(answer.frame_len(), bytes.len(), "one answer");
            (answer.status.try_into().unwrap(), answer.value.to_vec())
        }
        response::Parsed::Incomplete { needed } => panic!("{needed} bytes needed"),
    }
}

/// The records of a log behind those that were read, in pieces with the digest behind each.
fn read(engine: &Engine, read: &mut u64) -> Vec<(Vec<u8>, u128)> {
    let (mut pieces, mut buffer) = (Vec::new(), Vec::new());
    let log = engine.log().unwrap();
    let mut cursor = log.cursor_after(*read).unwrap();
    loop {
        let (bytes, digest) = match log.try_read(&mut cursor, 1 << 16, &mut buffer) {
            Found::Small(_, digest) => (buffer.clone(), digest),
            Found::Large(entry, digest) => (entry.frame().to_vec(), digest),
            Found::Nothing => break,
            found @ (Found::Ended | Found::Gone) => panic!("{found:?}"),
        };
        pieces.push((bytes, digest.to_u128()));
    }
    *read = cursor.next - 1;
    pieces
}

/// Removes what has expired, and adds the records to the model, whose order is the engine's.
fn sweep(engine: &Engine, model: &mut Model, read_up_to: &mut u64) {
    for partition in 0..engine.partitions() {
        while engine.expire(partition, None, || ()).unwrap().is_more {}
    }
    let now = model.now();
    let due = |model: &Model| {
        let due = model.items.iter().filter(|(_, item)| item.has_expired(now));
        due.map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    if !model.has_log {
        for key in due(model) {
            model.remove(&key);
        }
        return;
    }
    engine.log().unwrap().drain(std::time::Instant::now());
    for (bytes, digest) in read(engine, read_up_to) {
        for frame in frames(&bytes) {
            assert_eq!(frame.opcode(), Opcode::Del);
            let item = model.items.get(frame.key());
            assert!(item.is_some_and(|item| item.has_expired(now)), "{frame:?}");
            model.remove(frame.key());
        }
        assert_eq!(model.digest, digest);
    }
    assert!(due(model).is_empty());
}

/// Executes random requests, in runs of some, while time passes and the wall clock is set.
fn run(seed: u64, has_log: bool) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let time = Manual::default();
    time.set(START, 0);
    let clock = Clock::new(Box::new(time.clone()));
    let backlog_bytes = has_log.then_some(1 << 26);
    let leader = Engine::with_store(Store::with_partitions(3), backlog_bytes, clock);
    let all = Admission {
        reads: true,
        writes: true,
    };
    if has_log {
        leader.open_epoch(EPOCH, all).unwrap();
    } else {
        leader.admit(all);
    }
    let (follower, _) = engine(5);
    follower.admit(Admission {
        writes: false,
        ..all
    });
    let mut model = Model {
        items: BTreeMap::new(),
        digest: 0,
        records: Vec::new(),
        monotonic: 0,
        wall: START,
        ahead: START,
        has_log,
    };
    let mut read_up_to = 1;
    for round in 0..ROUNDS {
        let passed = random.random_range(0..15);
        let mut wall = model.wall + passed;
        if random.random_bool(0.05) {
            let reach = [30, 1_000, START][random.random_range(0..3)];
            wall =
                (wall + random.random_range(0..60)).saturating_sub(random.random_range(0..reach));
        }
        model.set_time(&time, wall, passed);
        assert_eq!(leader.clock().now(), model.now(), "round {round}");
        let count = random.random_range(1..=8);
        let mut operations: Vec<_> = (0..count).map(|_| request(&mut random, &model)).collect();
        if random.random_bool(0.2) {
            operations = vec![(Opcode::Batch, Vec::new(), batch_of(&operations))];
        }
        let requests: Vec<_> = operations
            .iter()
            .map(|(opcode, key, value)| Request::new(*opcode, key, value))
            .collect();
        let first = model.records.len();
        let answers = match requests[..] {
            [Request::Batch { value }] => vec![execute_batch(&leader, value)],
            _ => execute(&leader, &requests),
        };
        for (request, (status, value)) in requests.iter().zip(answers) {
            let expected = model.execute(request);
            assert!(
                (status, &value) == (expected.status, &expected.value),
                "round {round}: {:?} {:?} is answered by {status:?} {:.80}, and is {:?} {:.80}",
                request.opcode(),
                request.value().escape_ascii().to_string().get(..80),
                value.escape_ascii(),
                expected.status,
                expected.value.escape_ascii()
            );
        }
        if has_log {
            leader.log().unwrap().drain(std::time::Instant::now());
            let mut at = first;
            for (bytes, digest) in read(&leader, &mut read_up_to) {
                for frame in frames(&bytes) {
                    let is_batch = frame.opcode() == Opcode::Batch;
                    let made = &model.records[at].0;
                    assert!(
                        made.is_recorded(is_batch, Some(frame.bytes())),
                        "round {round}"
                    );
                    at += 1;
                }
                assert_eq!(model.records[at - 1].1, digest, "round {round}");
            }
            assert_eq!(at, model.records.len(), "round {round}");
            assert_eq!(leader.head().digest.to_u128(), model.digest);
        }
        if random.random_bool(0.2) {
            sweep(&leader, &mut model, &mut read_up_to);
        }
        if has_log && round % 7 == 0 {
            follow(&leader, &follower);
        }
    }
    for (key, item) in &model.items {
        let entry = leader.get(key).expect("it is there");
        assert!((entry.value(), entry.deadline()) == (&item.value[..], item.deadline));
    }
    assert_eq!(leader.len(), model.items.len());
    if has_log {
        follow(&leader, &follower);
    }
}

#[test]
fn all_operations_at_random_answer_and_record_what_the_reference_does() {
    let seed = random_seed();
    run(seed, true);
    run(seed, false);
}
