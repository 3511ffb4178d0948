//! ADD: a command whose effect follows from the old value.

use std::thread;
use std::time::Instant;

use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::log::Found;
use gopherstore::node::Node;
use gopherstore::wire::request::{Limits, frames};
use gopherstore::wire::run::RUN_FRAME_BYTES_MAX;
use gopherstore::wire::{Opcode, Request, Run, Status};

use crate::{apply, ask, execute};

fn operands(delta: i64, start: i64) -> Vec<u8> {
    let spec = Opcode::Add.spec();
    spec.value_of([0, delta.cast_unsigned(), start.cast_unsigned(), 0])
}

fn encoded<'a>(requests: impl IntoIterator<Item = Request<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

/// An engine with a log, which admits everything.
fn engine() -> Engine {
    let engine = Engine::new(Some(1 << 20), gopherstore::time::MachineTime::clock());
    engine.admit(Admission {
        reads: true,
        writes: true,
    });
    engine
}

#[test]
fn the_sum_is_stored_and_answered_and_what_is_no_number_is_left_as_it_is() {
    let node = Node::alone();
    let (key, max, min) = (&b"k"[..], i64::MAX, i64::MIN);
    let (max_text, min_text) = (max.to_string(), min.to_string());
    let no_number = "the value is no decimal number of 64 bits";
    for (old, delta, start, expected) in [
        (None, 1, 0, Ok("1")),
        (None, -3, 10, Ok("7")),
        (None, 0, 0, Ok("0")),
        (Some("41"), 1, 99, Ok("42")),
        (Some("-1"), 1, 0, Ok("0")),
        (Some("0"), min, 0, Ok(&min_text[..])),
        (Some(&max_text), -1, 0, Ok("9223372036854775806")),
        (Some(&min_text), max, 0, Ok("-1")),
        (
            Some(&max_text),
            1,
            0,
            Err("9223372036854775807 and 1 add up to no number of 64 bits"),
        ),
        (
            None,
            1,
            max,
            Err("9223372036854775807 and 1 add up to no number of 64 bits"),
        ),
        (
            Some(&min_text),
            -1,
            0,
            Err("-9223372036854775808 and -1 add up to no number of 64 bits"),
        ),
        (Some(""), 1, 0, Err(no_number)),
        (Some("01"), 1, 0, Err(no_number)),
        (Some("+1"), 1, 0, Err(no_number)),
        (Some("-0"), 1, 0, Err(no_number)),
        (Some(" 1"), 1, 0, Err(no_number)),
        (Some("1.0"), 1, 0, Err(no_number)),
        (Some("9223372036854775808"), 1, 0, Err(no_number)),
        (Some("one"), 1, 0, Err(no_number)),
    ] {
        ask(&node, &Request::Del { key });
        if let Some(old) = old {
            let value = old.as_bytes();
            ask(&node, &Request::Set { key, value });
        }
        let value = &operands(delta, start);
        let (status, answer) = ask(&node, &Request::Add { key, value });
        let answer = String::from_utf8(answer).unwrap();
        let answer = match status {
            Status::Ok => Ok(&answer[..]),
            Status::Error
            | Status::NotLeader
            | Status::NotFound
            | Status::Loading
            | Status::Conflict
            | Status::Full
            | Status::Timeout
            | Status::Lost
            | Status::Compacted => Err(&answer[..]),
        };
        assert_eq!(answer, expected, "{old:?} {delta} {start}");
        let stored = match (expected, old) {
            (Ok(sum), _) => (Status::Ok, sum.as_bytes().to_vec()),
            (Err(_), Some(old)) => (Status::Ok, old.as_bytes().to_vec()),
            (Err(_), None) => (Status::NotFound, Vec::new()),
        };
        assert_eq!(ask(&node, &Request::Get { key }), stored);
    }
}

#[test]
fn operands_that_the_operation_does_not_know_are_refused() {
    let node = Node::alone();
    let spec = Opcode::Add.spec();
    for (value, message) in [
        (
            spec.value_of([1, 1, 0, 0]),
            "want 0x01, must have no bit but 0x02",
        ),
        (
            spec.value_of([2, 1, 0, 0]),
            "want 0x02: a token needs a log, which a node has with peers in cluster.toml",
        ),
        (
            spec.value_of([0, 1, 0, u64::MAX]),
            "ttl of 18446744073709551615 ms from now is beyond 64 bits",
        ),
        (vec![0; 24], "value of 24 bytes in ADD, must have 25"),
        (vec![], "value of 0 bytes in ADD, must have 25"),
    ] {
        let (key, value) = (&b"k"[..], &value[..]);
        let answer = ask(&node, &Request::Add { key, value });
        assert_eq!(answer, (Status::Error, message.as_bytes().to_vec()));
        assert_eq!(ask(&node, &Request::Get { key }).0, Status::NotFound);
    }
}

#[test]
fn an_add_sees_what_the_requests_of_its_run_before_it_did() {
    let node = Node::alone();
    let (key, value) = (&b"k"[..], &operands(5, 100)[..]);
    let (add, get, del) = (
        Request::Add { key, value },
        Request::Get { key },
        Request::Del { key },
    );
    let set = Request::Set { key, value: b"1" };
    let (out, steps) = execute(&node, &encoded([add, add, get, set, add, del, get, add]));
    assert_eq!(steps, [(8, false)]);
    let expected = b"\0\0\0\0\x03105\0\0\0\0\x03110\0\0\0\0\x03110\0\0\0\0\0\
        \0\0\0\0\x016\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x03105";
    assert_eq!(out, expected);
}

/// The log has absolute effects, so a follower that applies them twice ends where the leader is.
#[test]
fn the_log_has_the_sums_and_a_follower_that_applies_them_has_the_same_data() {
    let leader = engine();
    let (key, value) = (&b"k"[..], &operands(1, 6)[..]);
    let long = vec![b'7'; RUN_FRAME_BYTES_MAX];
    let add = Request::Add { key, value };
    let requests = [
        add,
        Request::Set {
            key: b"other",
            value: b"text",
        },
        Request::Add {
            key: b"other",
            value,
        },
        add,
        Request::Del { key },
        add,
        // Of a long value the digest is needed first, and it is no number.
        Request::Set {
            key: b"long",
            value: &long,
        },
        Request::Add {
            key: b"long",
            value,
        },
        Request::Set {
            key: b"long",
            value: b"1",
        },
        Request::Add {
            key: b"long",
            value,
        },
    ];
    let (bytes, mut at) = (encoded(requests), 0);
    let mut answers = Answers::new();
    while at < bytes.len() {
        let run = Run::of(&bytes[at..], &Limits::default());
        let outcome = leader.execute(&run, None, &mut answers).unwrap();
        at += run.bytes_of(outcome.count);
        assert_eq!(outcome.position.index, leader.head().index);
    }
    let log = leader.log().unwrap();
    leader.end_log();
    log.keep();
    let (mut cursor, mut records, mut part) =
        (log.cursor_after(0).unwrap(), Vec::new(), Vec::new());
    while let Found::Small(..) = log.read(&mut cursor, 1 << 20, &mut part, Instant::now(), || false)
    {
        records.extend_from_slice(&part);
    }
    let logged: Vec<(Opcode, Vec<u8>)> = frames(&records)
        .map(|frame| {
            (
                frame.opcode(),
                frame.value()[..frame.value().len().min(4)].to_vec(),
            )
        })
        .collect();
    let set = |value: &[u8]| (Opcode::Set, value.to_vec());
    assert_eq!(
        logged,
        [
            set(b"7"),
            set(b"text"),
            set(b"8"),
            (Opcode::Del, vec![]),
            set(b"7"),
            set(b"7777"),
            set(b"1"),
            set(b"2")
        ]
    );
    assert_eq!(leader.head().index, 8);
    let follower = engine();
    apply(&follower, &records).unwrap();
    assert_eq!(follower.head(), leader.head());
    assert_eq!(follower.get(b"long").unwrap().value(), b"2");
}

#[test]
fn no_add_of_many_threads_is_lost() {
    const THREADS: i64 = 4;
    const ADDS: i64 = 2_000;
    let engine = engine();
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    let value = &operands(1, 0);
    let run = encoded(keys.map(|key| Request::Add { key, value }));
    thread::scope(|scope| {
        let keeper = scope.spawn(|| engine.log().unwrap().keep());
        let writers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Answers::new();
                    for _ in 0..ADDS {
                        let mut rest = Run::of(&run, &Limits::default());
                        while !rest.is_empty() {
                            let outcome = engine.execute(&rest, None, &mut answers);
                            rest = rest.after(outcome.map_or(0, |outcome| outcome.count));
                        }
                        answers.clear();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        engine.end_log();
        keeper.join().unwrap();
    });
    for key in keys {
        let sum = (THREADS * ADDS).to_string();
        assert_eq!(engine.get(key).unwrap().value(), sum.as_bytes());
    }
    assert_eq!(
        engine.head().index,
        u64::try_from(3 * THREADS * ADDS).unwrap()
    );
}
