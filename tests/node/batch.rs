//! BATCH: all of its requests, or none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use gopherstore::engine::{Answers, Engine};
use gopherstore::wire::batch::{Batch, BatchAnswer};
use gopherstore::wire::expiry::Expiry;
use gopherstore::wire::request::{Limits, Parsed, parse};
use gopherstore::wire::{Opcode, Request, Run, Status, Token, response};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::expiry::{START, at, digest, encoded, engine, execute, expiry, follow, one};
use crate::random_seed;

/// Executes requests as a BATCH, and returns its answer.
fn batch(engine: &Engine, requests: &[Request<'_>]) -> (Status, Vec<u8>) {
    let value = encoded(requests);
    let batch = Batch::decode(&value).unwrap();
    let mut answers = Answers::new();
    engine.execute_batch(&batch, None, &mut answers).unwrap();
    let out = [answers.bytes(), answers.apart().unwrap_or_default()].concat();
    let response::Parsed::Whole(answer) = response::parse(&out).unwrap() else {
        panic!("a whole answer");
    };
    assert_eq!(answer.frame_len(), out.len());
    (answer.status.try_into().unwrap(), answer.value.to_vec())
}

/// The responses of a batch that is executed.
fn done(engine: &Engine, requests: &[Request<'_>]) -> Vec<(Status, Vec<u8>)> {
    let (status, value) = batch(engine, requests);
    assert_eq!(status, Status::Ok, "{}", value.escape_ascii());
    let Some(BatchAnswer::Done(all)) = BatchAnswer::of_ok(&value, requests.len()) else {
        panic!("{}", value.escape_ascii());
    };
    let all = all.into_iter();
    all.map(|answer| (answer.status.try_into().unwrap(), answer.value.to_vec()))
        .collect()
}

fn add(delta: i64) -> Vec<u8> {
    Opcode::Add
        .spec()
        .value_of([0, delta.cast_unsigned(), 0, 0])
}

#[test]
fn requests_of_a_batch_see_each_other_and_become_one_record() {
    let (leader, _) = engine(8);
    let (follower, _) = engine(2);
    let ok = |value: &[u8]| (Status::Ok, value.to_vec());
    let not_found = || (Status::NotFound, Vec::new());
    let (a, b, c) = (&b"a"[..], &b"b"[..], &b"c"[..]);
    execute(
        &leader,
        &[Request::Set {
            key: c,
            value: b"7",
        }],
    );
    let (five, later) = (add(5), at(START + 9, b"later"));
    let never = expiry(Expiry::None);
    let soon = expiry(Expiry::Ttl(3));
    let answers = done(
        &leader,
        &[
            Request::Set {
                key: a,
                value: b"1",
            },
            Request::Add {
                key: a,
                value: &five,
            },
            Request::Get { key: a },
            Request::Get { key: b },
            Request::Del { key: b },
            Request::SetAt {
                key: b,
                value: &later,
            },
            Request::Expire {
                key: b,
                value: &never,
            },
            Request::Get { key: b },
            Request::Expire {
                key: c,
                value: &soon,
            },
            Request::Add {
                key: c,
                value: &five,
            },
            Request::Del { key: a },
            Request::Get { key: a },
        ],
    );
    let expected = [
        ok(b""),
        ok(b"6"),
        ok(b"6"),
        not_found(),
        not_found(),
        ok(b""),
        ok(b""),
        ok(b"later"),
        ok(b""),
        ok(b"12"),
        ok(b""),
        not_found(),
    ];
    assert_eq!(answers, expected);
    assert_eq!(leader.head().index, 2, "one record");
    let deadline = |key: &[u8]| leader.get(key).map(|entry| entry.deadline());
    assert_eq!(deadline(b), Some(None));
    assert_eq!(deadline(c), Some(Some(START + 3)), "ADD keeps it");
    assert!(leader.get(a).is_none());
    follow(&leader, &follower);
    // One that changes nothing makes no record.
    assert_eq!(
        done(&leader, &[Request::Del { key: a }, Request::Get { key: b }]).len(),
        2
    );
    done(
        &leader,
        &[Request::Set { key: a, value: b"" }, Request::Del { key: a }],
    );
    assert_eq!(leader.head().index, 2);
}

#[test]
fn a_batch_with_a_request_that_is_refused_does_nothing() {
    let (leader, _) = engine(8);
    execute(
        &leader,
        &[Request::Set {
            key: b"k",
            value: b"text",
        }],
    );
    let before = leader.head();
    let one = add(1);
    let (status, message) = batch(
        &leader,
        &[
            Request::Set {
                key: b"a",
                value: b"1",
            },
            Request::Del { key: b"k" },
            Request::Set {
                key: b"k",
                value: b"other",
            },
            Request::Add {
                key: b"k",
                value: &one,
            },
        ],
    );
    assert_eq!(status, Status::Error);
    let message = String::from_utf8(message).unwrap();
    assert_eq!(
        message,
        "request 4: the value is no decimal number of 64 bits"
    );
    assert_eq!(leader.head(), before);
    assert_eq!(leader.get(b"k").unwrap().value(), b"text");
    assert!(leader.get(b"a").is_none());
}

#[test]
fn the_tokens_of_a_batch_are_the_position_of_its_record() {
    let (leader, _) = engine(8);
    let value = Opcode::Add.spec().value_of([2, 1, 0, 0]);
    let adds = [b"a", b"b", b"a"].map(|key| Request::Add { key, value: &value });
    let answers = done(&leader, &adds);
    let expected = [&b"1"[..], b"1", b"2"];
    for ((status, value), sum) in answers.iter().zip(expected) {
        assert_eq!(*status, Status::Ok);
        let (token, text) = value.split_first_chunk().unwrap();
        assert_eq!((Token::decode(*token).index, text), (1, sum));
    }
}

/// Random batches, also over long entries, answer as the same requests do one by one; a follower has the same entries.
#[test]
fn random_batches_do_what_their_requests_do_one_by_one() {
    let mut random = ChaCha8Rng::seed_from_u64(random_seed());
    let (leader, time) = engine(4);
    let (single, single_time) = engine(4);
    let (follower, _) = engine(8);
    for round in 0..1_500 {
        let passed = random.random_range(0..10);
        time.pass(passed);
        single_time.pass(passed);
        let now = leader.clock().now();
        if random.random_range(0..4) == 0 {
            // Too long for a batch.
            let key = [random.random_range(0..8_u8)];
            let value = vec![b'l'; random.random_range(4_000..9_000)];
            let set = Request::Set {
                key: &key,
                value: &value,
            };
            assert_eq!(one(&leader, set), one(&single, set));
        }
        let count = random.random_range(1..=12);
        let operations: Vec<_> = (0..count)
            .map(|_| {
                let key = random.random_range(0..8_u8);
                let value = random.random_range(0..1_000_u32).to_string().into_bytes();
                let deadline = now + random.random_range(0..30_u64);
                match random.random_range(0..8) {
                    0 | 1 => (Opcode::Set, key, value),
                    2 => (Opcode::SetAt, key, at(deadline, &value)),
                    3 => (Opcode::Get, key, vec![]),
                    4 => (Opcode::Del, key, vec![]),
                    5 => (Opcode::Expire, key, expiry(Expiry::Deadline(deadline))),
                    6 => (Opcode::Expire, key, expiry(Expiry::None)),
                    _ => (Opcode::Add, key, add(random.random_range(-9..9))),
                }
            })
            .collect();
        let requests: Vec<_> = operations
            .iter()
            .map(|(opcode, key, value)| Request::new(*opcode, std::slice::from_ref(key), value))
            .collect();
        let before = leader.head();
        let (status, value) = batch(&leader, &requests);
        if status == Status::Error {
            // An ADD to what is no number.
            assert_eq!(leader.head(), before, "round {round}");
            continue;
        }
        let Some(BatchAnswer::Done(answers)) = BatchAnswer::of_ok(&value, count) else {
            panic!("round {round}: {status:?}");
        };
        for (number, (answer, request)) in answers.into_iter().zip(&requests).enumerate() {
            let expected = one(&single, *request);
            let answer = (answer.status.try_into().unwrap(), answer.value.to_vec());
            assert!(
                answer == expected,
                "round {round}, request {number} of {requests:?}"
            );
        }
        assert_eq!(
            leader.head().digest,
            single.head().digest,
            "round {round}: {requests:?}"
        );
        assert!(leader.head().index <= before.index + 1);
        if round % 5 == 0 {
            follow(&leader, &follower);
        }
    }
    follow(&leader, &follower);
    assert_eq!(digest(&leader), digest(&single));
}

/// Threads move money between accounts, by batches and by runs that read all accounts: the sum is always right.
#[test]
fn a_reader_never_sees_half_of_a_batch() {
    const ACCOUNTS: u8 = 12;
    let (leader, _) = engine(64);
    for key in 0..ACCOUNTS {
        execute(
            &leader,
            &[Request::Set {
                key: &[key],
                value: b"100",
            }],
        );
    }
    let is_over = AtomicBool::new(false);
    let sum = |answers: &[(Status, Vec<u8>)]| -> i64 {
        let number = |(_, value): &(Status, Vec<u8>)| {
            std::str::from_utf8(value).unwrap().parse::<i64>().unwrap()
        };
        answers.iter().map(number).sum()
    };
    thread::scope(|scope| {
        for seed in 0..4_u8 {
            let (leader, is_over) = (&leader, &is_over);
            scope.spawn(move || {
                let mut random = ChaCha8Rng::seed_from_u64(seed.into());
                for _ in 0..300 {
                    let mut values = Vec::new();
                    for _ in 0..16 {
                        let amount = random.random_range(0..50);
                        values.push((random.random_range(0..ACCOUNTS), add(-amount)));
                        values.push((random.random_range(0..ACCOUNTS), add(amount)));
                    }
                    let adds: Vec<_> = values
                        .iter()
                        .map(|(key, value)| Request::Add {
                            key: std::slice::from_ref(key),
                            value,
                        })
                        .collect();
                    done(leader, &adds);
                }
                is_over.store(true, Ordering::SeqCst);
            });
        }
        let keys: Vec<[u8; 1]> = (0..ACCOUNTS).map(|key| [key]).collect();
        let gets: Vec<_> = keys.iter().map(|key| Request::Get { key }).collect();
        let mut rounds = 0;
        while !is_over.load(Ordering::SeqCst) || rounds < 10 {
            assert_eq!(sum(&done(&leader, &gets)), 100 * i64::from(ACCOUNTS));
            rounds += 1;
        }
    });
    assert_eq!(leader.head().digest, digest(&leader));
    let (follower, _) = engine(2);
    follow(&leader, &follower);
}

#[test]
fn a_batch_that_only_reads_is_a_read() {
    let value = encoded(&[Request::Get { key: b"a" }, Request::Get { key: b"b" }]);
    assert!(!Batch::decode(&value).unwrap().writes());
    let mut frame = Vec::new();
    Request::Batch { value: &value }.encode(&mut frame).unwrap();
    let Parsed::Whole(frame) = parse(&frame, &Limits::default()).unwrap() else {
        panic!("a whole frame");
    };
    assert!(Run::of(frame.bytes(), &Limits::default()).is_empty());
    let (leader, _) = engine(2);
    leader.admit(gopherstore::engine::Admission {
        reads: true,
        writes: false,
    });
    let answers = done(
        &leader,
        &[Request::Get { key: b"a" }, Request::Get { key: b"b" }],
    );
    assert_eq!(answers, [(); 2].map(|()| (Status::NotFound, Vec::new())));
    let value = encoded(&[Request::Set {
        key: b"a",
        value: b"",
    }]);
    let refused = leader.execute_batch(&Batch::decode(&value).unwrap(), None, &mut Answers::new());
    assert!(refused.is_err());
}

/// The requests that fold into one effect are as long as they may be: the effect is longer.
#[test]
fn a_record_may_be_longer_than_the_requests_of_its_batch() {
    let (leader, _) = engine(8);
    let (follower, _) = engine(2);
    let ttl = expiry(Expiry::Ttl(1_000_000));
    for len in 4_080..=4_096 {
        let value = vec![b'v'; len - 8];
        let put = Request::Set {
            key: b"k",
            value: &value,
        };
        let expire = Request::Expire {
            key: b"k",
            value: &ttl,
        };
        done(&leader, &[put, expire]);
        follow(&leader, &follower);
    }
    // As many bytes as a batch may have, and each number becomes one with a deadline and all its digits.
    let value = Opcode::Add
        .spec()
        .value_of([0, 0, i64::MIN.cast_unsigned(), 1_000_000]);
    let keys: Vec<Vec<u8>> = (0..64_u8).map(|at| vec![at; 4_096 - 32]).collect();
    let adds: Vec<_> = keys
        .iter()
        .map(|key| Request::Add { key, value: &value })
        .collect();
    assert_eq!(encoded(&adds).len(), 262_144);
    done(&leader, &adds);
    follow(&leader, &follower);
    assert_eq!(follower.len(), 65);
}

#[test]
fn a_deadline_of_a_long_value_holds_for_the_requests_behind_it() {
    let (leader, time) = engine(8);
    let (follower, _) = engine(2);
    let ok = |value: &[u8]| (Status::Ok, value.to_vec());
    let value = vec![b'l'; 100_000];
    let (key, get) = (&b"k"[..], Request::Get { key: b"k" });
    let (soon, never) = (expiry(Expiry::Ttl(5)), expiry(Expiry::None));
    let soon = Request::Expire { key, value: &soon };
    let never = Request::Expire { key, value: &never };
    let ttl = Request::Ttl { key };
    execute(&leader, &[Request::Set { key, value: &value }]);
    let five = 5_u64.to_be_bytes();
    let expected = [
        ok(b""),
        ok(&five),
        ok(&value),
        ok(b""),
        ok(b""),
        ok(b""),
        ok(&five),
    ];
    assert_eq!(
        done(&leader, &[soon, ttl, get, never, ttl, soon, ttl]),
        expected
    );
    assert_eq!(leader.head().index, 2);
    follow(&leader, &follower);
    time.pass(5);
    assert_eq!(
        done(&leader, &[ttl, get]),
        [(); 2].map(|()| (Status::NotFound, vec![]))
    );
    // A deadline that has passed hides the key within the batch.
    execute(&leader, &[Request::Set { key, value: &value }]);
    let past = expiry(Expiry::Deadline(1));
    let past = Request::Expire { key, value: &past };
    assert_eq!(
        done(&leader, &[past, get]),
        [ok(b""), (Status::NotFound, vec![])]
    );
    follow(&leader, &follower);
}

#[test]
fn the_responses_of_a_batch_are_limited_before_they_are_gathered() {
    let (leader, _) = engine(8);
    let value = vec![b'l'; 8 << 20];
    execute(
        &leader,
        &[Request::Set {
            key: b"k",
            value: &value,
        }],
    );
    let gets = [Request::Get { key: b"k" }; 20];
    let (status, message) = batch(&leader, &gets);
    assert_eq!(status, Status::Error);
    assert_eq!(message, b"responses of more than 4194304 bytes");
    let ttl = expiry(Expiry::Ttl(1_000));
    let keys: Vec<[u8; 1]> = (0..9).map(|key| [key]).collect();
    for key in &keys {
        leader.log().unwrap().drain(Instant::now());
        execute(&leader, &[Request::Set { key, value: &value }]);
    }
    let expires: Vec<_> = keys
        .iter()
        .map(|key| Request::Expire { key, value: &ttl })
        .collect();
    leader.log().unwrap().drain(Instant::now());
    let (status, _) = batch(&leader, &expires);
    assert_eq!(status, Status::Error);
    assert_eq!(leader.get(&keys[0]).unwrap().deadline(), None);
}
