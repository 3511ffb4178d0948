//! PUT and TAKE: conditions, what they answer, and what the log has of them.

use std::collections::BTreeMap;
use std::thread;

use gopherstore::engine::{Answers, Engine};
use gopherstore::wire::conditional::{Add, Condition, Found, Put, Take, Want};
use gopherstore::wire::expiry::{Expiry, SetAt};
use gopherstore::wire::request::Limits;
use gopherstore::wire::{Opcode, Request, Run, Status, Token};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_128;

use crate::expiry::{START, engine, execute, expiry, follow, one};
use crate::random_seed;

const VALUE: Want = Want {
    value: true,
    token: false,
};
const TOKEN: Want = Want {
    value: false,
    token: true,
};
const BOTH: Want = Want {
    value: true,
    token: true,
};

fn put(engine: &Engine, key: &[u8], put: Put<'_>) -> (Status, Vec<u8>) {
    let value = &put.encode();
    one(engine, Request::Put { key, value })
}

fn take(engine: &Engine, key: &[u8], take: Take<'_>) -> (Status, Vec<u8>) {
    let value = &take.encode();
    one(engine, Request::Take { key, value })
}

/// The value of an answer: whether the key existed, and its value.
fn state(existed: bool, value: &[u8]) -> Vec<u8> {
    [&[u8::from(existed)], value].concat()
}

/// Each condition, whether it is met by no key, by the value, and by another value of the same length.
fn conditions<'a>(value: &'a [u8]) -> [(Condition<'a>, [bool; 3]); 5] {
    [
        (Condition::Always, [true, true, true]),
        (Condition::Absent, [true, false, false]),
        (Condition::Present, [false, true, true]),
        (Condition::Equal(value), [false, true, false]),
        (Condition::EqualHash(xxh3_128(value)), [false, true, false]),
    ]
}

#[test]
fn a_condition_is_met_by_some_states_of_a_key_and_by_no_others() {
    let (engine, _) = engine(4);
    let key = b"k";
    for len in [0, 1, 16, 1_025, 4_096, 5_000, 70_000] {
        let value = vec![b'v'; len];
        let mut other = value.clone();
        match other.last_mut() {
            Some(last) => *last = b'w',
            None => other.push(b'w'),
        }
        for (condition, met) in conditions(&value) {
            if matches!(condition, Condition::Equal(_)) && len > 4_096 {
                continue;
            }
            for (stored, is_met) in [None, Some(&value), Some(&other)].into_iter().zip(met) {
                let prepare = || {
                    one(&engine, Request::Del { key });
                    if let Some(value) = stored {
                        one(&engine, Request::Set { key, value });
                    }
                };
                let old = stored.map_or(&b""[..], |stored| stored);
                prepare();
                let index = engine.head().index;
                let request = Put {
                    condition,
                    want: VALUE,
                    value: b"new",
                    ..Put::default()
                };
                let status = if is_met { Status::Ok } else { Status::Conflict };
                let expected = (status, state(stored.is_some(), old));
                assert_eq!(put(&engine, key, request), expected, "{condition:?}");
                assert_eq!(engine.head().index - index, u64::from(is_met));
                let now = engine.get(key).map(|entry| entry.value().to_vec());
                let expected = if is_met {
                    Some(&b"new"[..])
                } else {
                    stored.map(|v| &**v)
                };
                assert_eq!(now.as_deref(), expected, "{condition:?} {len}");

                if condition == Condition::Absent {
                    continue;
                }
                prepare();
                let want = VALUE;
                let expected = match (condition, stored) {
                    (Condition::Always, None) => (Status::NotFound, vec![]),
                    (_, stored) => (status, state(stored.is_some(), old)),
                };
                assert_eq!(take(&engine, key, Take { condition, want }), expected);
                let is_left = stored.is_some() && !is_met;
                assert_eq!(engine.get(key).is_some(), is_left, "{condition:?} {len}");
            }
        }
    }
}

#[test]
fn an_answer_has_what_was_wanted_and_a_token_is_the_position_of_the_write() {
    let (engine, _) = engine(4);
    let key = b"k";
    let new = |want, condition| Put {
        condition,
        want,
        value: b"v",
        ..Put::default()
    };
    let nothing = Want::NOTHING;
    let answer = put(&engine, key, new(nothing, Condition::Absent));
    assert_eq!(answer, (Status::Ok, vec![]));
    let answer = put(&engine, key, new(nothing, Condition::Absent));
    assert_eq!(answer, (Status::Conflict, vec![1]), "flags alone");
    let answer = put(&engine, key, new(TOKEN, Condition::Absent));
    assert_eq!(
        answer,
        (Status::Conflict, vec![1]),
        "a conflict has no token"
    );
    let mut last = Token::default();
    for want in [TOKEN, BOTH] {
        let (status, answer) = put(&engine, key, new(want, Condition::Always));
        assert_eq!(status, Status::Ok);
        let found = Found::of_ok(&answer, want).unwrap();
        assert!(found.existed);
        assert_eq!(found.value, want.value.then_some(&b"v"[..]));
        let token = found.token.unwrap();
        assert_eq!(token.index, engine.head().index);
        assert!(token > last);
        last = token;
    }
    let add = Add {
        want_token: true,
        delta: 5,
        ..Add::default()
    };
    let add = &add.encode();
    let take_both = &Take {
        want: BOTH,
        ..Take::default()
    }
    .encode();
    // In a run, each has its own.
    let requests = [
        Request::Add {
            key: b"n",
            value: add,
        },
        Request::Get { key },
        Request::Add {
            key: b"n",
            value: add,
        },
        Request::Take {
            key,
            value: take_both,
        },
        Request::Take {
            key,
            value: take_both,
        },
    ];
    let before = engine.head().index;
    let answers = execute(&engine, &requests);
    for (at, number) in [(0, 1), (2, 2)] {
        let (token, sum) = gopherstore::wire::conditional::sum_of(&answers[at].1).unwrap();
        assert_eq!(
            (token.unwrap().index, sum),
            (before + number, 5 * i64::try_from(number).unwrap())
        );
    }
    let found = Found::of_ok(&answers[3].1, BOTH).unwrap();
    assert_eq!(found.token.unwrap().index, before + 3);
    assert_eq!(found.value, Some(&b"v"[..]));
    assert_eq!(answers[4], (Status::NotFound, vec![]));
    assert_eq!(engine.head().index, before + 3);
}

#[test]
fn an_expired_key_is_absent_to_conditions_and_a_kept_expiry_is_that_of_the_old_value() {
    let (engine, time) = engine(4);
    let key = b"k";
    let put_at = |condition, expiry| Put {
        condition,
        expiry,
        want: VALUE,
        value: b"v",
    };
    let deadline = || engine.get(key).and_then(|entry| entry.deadline());
    let ok = |existed| (Status::Ok, state(existed, if existed { b"v" } else { b"" }));
    let answer = put(&engine, key, put_at(Condition::Always, Expiry::Keep));
    assert_eq!((answer, deadline()), (ok(false), None), "nothing to keep");
    let answer = put(&engine, key, put_at(Condition::Present, Expiry::Ttl(10)));
    assert_eq!((answer, deadline()), (ok(true), Some(START + 10)));
    time.pass(9);
    let answer = put(&engine, key, put_at(Condition::Equal(b"v"), Expiry::Keep));
    assert_eq!((answer, deadline()), (ok(true), Some(START + 10)));
    assert_eq!(
        one(&engine, Request::Ttl { key }),
        (Status::Ok, 1_u64.to_be_bytes().to_vec())
    );
    time.pass(1);
    assert_eq!(one(&engine, Request::Ttl { key }).0, Status::NotFound);
    for condition in [Condition::Present, Condition::Equal(b"v")] {
        let answer = put(&engine, key, put_at(condition, Expiry::None));
        assert_eq!(answer, (Status::Conflict, state(false, b"")));
        let answer = take(
            &engine,
            key,
            Take {
                condition,
                want: VALUE,
            },
        );
        assert_eq!(answer, (Status::Conflict, state(false, b"")));
    }
    let answer = take(&engine, key, Take::default());
    assert_eq!(answer, (Status::NotFound, vec![]));
    let answer = put(&engine, key, put_at(Condition::Always, Expiry::Keep));
    assert_eq!((answer, deadline()), (ok(false), None), "it kept nothing");
    time.pass(1_000);
    assert_eq!(one(&engine, Request::Ttl { key }), (Status::Ok, vec![]));
    let answer = put(&engine, key, put_at(Condition::Always, Expiry::Deadline(1)));
    assert_eq!(answer, ok(true));
    assert_eq!(one(&engine, Request::Get { key }).0, Status::NotFound);
    let answer = put(&engine, key, put_at(Condition::Absent, Expiry::Ttl(5)));
    assert_eq!((answer, deadline()), (ok(false), Some(START + 1_015)));
}

/// Adds to one number by reading it and storing the sum on the condition that it is still the same, from many threads.
#[test]
fn no_compare_and_set_of_many_threads_is_lost_and_one_of_many_takes_a_lock() {
    const THREADS: usize = 4;
    const ROUNDS: u64 = 300;
    let (engine, _) = engine(2);
    let key = b"sum";
    one(&engine, Request::Set { key, value: b"0" });
    let locks = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let engine = &engine;
                scope.spawn(move || {
                    let mut locks = 0;
                    for round in 0..ROUNDS {
                        loop {
                            let (_, old) = one(engine, Request::Get { key });
                            let sum = std::str::from_utf8(&old).unwrap().parse::<u64>();
                            let sum = (sum.unwrap() + 1).to_string();
                            let request = Put {
                                condition: match number % 2 {
                                    0 => Condition::Equal(&old),
                                    _ => Condition::EqualHash(xxh3_128(&old)),
                                },
                                value: sum.as_bytes(),
                                ..Put::default()
                            };
                            if put(engine, key, request).0 == Status::Ok {
                                break;
                            }
                        }
                        let lock = Put {
                            condition: Condition::Absent,
                            ..Put::default()
                        };
                        let lock = put(engine, &round.to_be_bytes(), lock);
                        locks += u64::from(lock.0 == Status::Ok);
                    }
                    locks
                })
            })
            .collect();
        let locks = threads.into_iter().map(|thread| thread.join().unwrap());
        locks.sum::<u64>()
    });
    assert_eq!(locks, ROUNDS);
    let sum = (ROUNDS * THREADS as u64).to_string();
    assert_eq!(engine.get(key).unwrap().value(), sum.as_bytes());
}

/// A value of megabytes is replaced by another thread while its hash is taken without a lock.
#[test]
fn the_hash_of_a_long_value_is_that_of_the_value_that_is_replaced() {
    let (engine, _) = engine(1);
    let key = b"k";
    let values = [b'a', b'b'].map(|byte| vec![byte; 200_000]);
    let hashes = values.each_ref().map(|value| xxh3_128(value));
    one(
        &engine,
        Request::Set {
            key,
            value: &values[0],
        },
    );
    thread::scope(|scope| {
        for at in 0..2 {
            let (engine, values) = (&engine, &values);
            scope.spawn(move || {
                // Each replaces the other's value alone, so what it replaced is never its own.
                for _ in 0..60 {
                    let request = Put {
                        condition: Condition::EqualHash(hashes[1 - at]),
                        want: VALUE,
                        value: &values[at],
                        ..Put::default()
                    };
                    let (status, old) = put(engine, key, request);
                    let expected = if status == Status::Ok { 1 - at } else { at };
                    assert!(old[1..] == values[expected], "{status:?}");
                }
            });
        }
    });
}

/// The state of a key in the model: its value and its deadline.
type Model = BTreeMap<u8, (Vec<u8>, Option<u64>)>;

/// Returns whether a PUT or TAKE is executed, its status and its answer.
fn naive(model: &Model, key: u8, condition: Condition<'_>, want: Want) -> (bool, Status, Vec<u8>) {
    let old = model.get(&key).map(|(value, _)| value);
    let is_met = match condition {
        Condition::Always => true,
        Condition::Absent => old.is_none(),
        Condition::Present => old.is_some(),
        Condition::Equal(expected) => old.is_some_and(|old| old == expected),
        Condition::EqualHash(expected) => old.is_some_and(|old| xxh3_128(old) == expected),
    };
    let value = old.filter(|_| want.value).map_or(&b""[..], |old| old);
    let found = state(old.is_some(), value);
    match is_met {
        true if want.is_nothing() => (true, Status::Ok, vec![]),
        true => (true, Status::Ok, found),
        false => (false, Status::Conflict, found),
    }
}

/// Random requests of every operation on a few keys, short values and long ones, one by one and in runs, while time
/// passes: the leader answers as a map does, and its follower has the same entries and the same digest.
#[test]
fn random_conditions_on_a_leader_and_its_follower() {
    let mut random = ChaCha8Rng::seed_from_u64(random_seed());
    let (leader, time) = engine(2);
    let (follower, _) = engine(8);
    let (mut model, mut now) = (Model::new(), START);
    for round in 0..2_000 {
        let passed = random.random_range(0..20);
        time.pass(passed);
        now += passed;
        let is_live = |deadline: &Option<u64>, now| deadline.is_none_or(|deadline| deadline > now);
        model.retain(|_, (_, deadline)| is_live(deadline, now));
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..random.random_range(1..=6) {
            let key = random.random_range(0..8_u8);
            let len = [0, 1, 3, 300, 5_000, 70_000][random.random_range(0..6)];
            let value = vec![random.random_range(b'0'..=b'3'); len];
            // One that some key has, as a rule.
            let mut guess = model
                .get(&key)
                .map_or(value.clone(), |(value, _)| value.clone());
            if random.random_range(0..4) == 0 {
                guess = value.clone();
            }
            let condition = match random.random_range(0..5) {
                0 => Condition::Always,
                1 => Condition::Absent,
                2 => Condition::Present,
                3 if guess.len() <= 4_096 => Condition::Equal(&guess),
                _ => Condition::EqualHash(xxh3_128(&guess)),
            };
            let want = Want {
                value: random.random(),
                token: false,
            };
            let ms = random.random_range(1..60_u64);
            let expiry_of = match random.random_range(0..4) {
                0 => Expiry::Ttl(ms),
                1 if condition != Condition::Absent => Expiry::Keep,
                2 => Expiry::Deadline(now + ms - 5),
                _ => Expiry::None,
            };
            let old = model.get(&key).cloned();
            let kept = old.as_ref().and_then(|(_, deadline)| *deadline);
            let deadline = expiry_of.deadline(|| now, kept).unwrap();
            let (request, answer) = match random.random_range(0..8) {
                0..=3 => {
                    let put = Put {
                        condition,
                        expiry: expiry_of,
                        want,
                        value: &value,
                    };
                    let (is_met, status, answer) = naive(&model, key, condition, want);
                    if is_met {
                        model.insert(key, (value.clone(), deadline));
                    }
                    ((Opcode::Put, put.encode()), (status, answer))
                }
                4 if condition != Condition::Absent => {
                    let (is_met, status, answer) = naive(&model, key, condition, want);
                    let is_gone = old.is_none() && condition == Condition::Always;
                    if is_met {
                        model.remove(&key);
                    }
                    let answer = match is_gone {
                        true => (Status::NotFound, vec![]),
                        false => (status, answer),
                    };
                    ((Opcode::Take, Take { condition, want }.encode()), answer)
                }
                5 => {
                    let set_at = SetAt {
                        deadline: now + ms,
                        value: &value,
                    };
                    model.insert(key, (value.clone(), Some(now + ms)));
                    ((Opcode::SetAt, set_at.encode()), (Status::Ok, vec![]))
                }
                6 if expiry_of != Expiry::Keep => {
                    let status = match model.get_mut(&key) {
                        Some((_, old)) => {
                            *old = deadline;
                            Status::Ok
                        }
                        None => Status::NotFound,
                    };
                    ((Opcode::Expire, expiry(expiry_of)), (status, vec![]))
                }
                7 => {
                    let answer = match old {
                        None => (Status::NotFound, vec![]),
                        Some((_, None)) => (Status::Ok, vec![]),
                        Some((_, Some(deadline))) => {
                            (Status::Ok, (deadline - now).to_be_bytes().to_vec())
                        }
                    };
                    ((Opcode::Ttl, vec![]), answer)
                }
                _ => {
                    let answer = match old {
                        None => (Status::NotFound, vec![]),
                        Some((value, _)) => (Status::Ok, value),
                    };
                    ((Opcode::Get, vec![]), answer)
                }
            };
            sent.push((request.0, key, request.1));
            expected.push(answer);
            model.retain(|_, (_, deadline)| is_live(deadline, now));
        }
        let requests: Vec<_> = sent
            .iter()
            .map(|(opcode, key, value)| Request::new(*opcode, std::slice::from_ref(key), value))
            .collect();
        let answers = execute(&leader, &requests);
        for (at, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            let (opcode, key, value) = &sent[at];
            assert!(
                answer == expected,
                "round {round}: {opcode:?} {key} {:?}: {:?}, not {:?}",
                &value[..value.len().min(20)],
                answer.0,
                expected.0
            );
        }
        if round % 7 == 0 {
            follow(&leader, &follower);
        }
    }
    follow(&leader, &follower);
}

/// Without a log there are no tokens; everything else works.
#[test]
fn a_token_without_a_log_is_refused_and_nothing_is_changed() {
    let node = gopherstore::node::Node::alone();
    let key = b"k";
    let request = Put {
        want: TOKEN,
        value: b"v",
        ..Put::default()
    };
    let value = &request.encode();
    let (status, message) = crate::ask(&node, &Request::Put { key, value });
    let text = "want 0x02: a token needs a log, which a node has with peers in cluster.toml";
    assert_eq!((status, &message[..]), (Status::Error, text.as_bytes()));
    let take = Take {
        want: BOTH,
        ..Take::default()
    };
    let value = &take.encode();
    let (status, message) = crate::ask(&node, &Request::Take { key, value });
    assert_eq!((status, &message[..]), (Status::Error, text.as_bytes()));
    assert_eq!(crate::ask(&node, &Request::Get { key }).0, Status::NotFound);
}

/// A run of PUTs on one key is executed together, and the last of them wins.
#[test]
fn puts_of_a_run_see_those_before_them() {
    let (engine, _) = engine(1);
    let puts: Vec<Vec<u8>> = (0..16_u8)
        .map(|at| {
            let before = [at.wrapping_sub(1)];
            let put = Put {
                condition: if at == 0 {
                    Condition::Absent
                } else {
                    Condition::Equal(&before)
                },
                value: &[at],
                ..Put::default()
            };
            put.encode()
        })
        .collect();
    let mut bytes = Vec::new();
    for value in &puts {
        Request::Put { key: b"k", value }
            .encode(&mut bytes)
            .unwrap();
    }
    let run = Run::of(&bytes, &Limits::default());
    let mut answers = Answers::new();
    let outcome = engine.execute_together(&run, None, &mut answers).unwrap();
    assert_eq!((outcome.count, outcome.position.index), (16, 16));
    assert_eq!(answers.bytes(), [0; 5 * 16]);
    assert_eq!(engine.get(b"k").unwrap().value(), [15]);
}
