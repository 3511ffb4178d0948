//! Answers that wait for a position, in a node whose watermark moves late.

use super::*;
use crate::log::Mark;
use crate::node::Awaited;
use crate::wire::{SyncRequest, Token};

/// A leader with a log, whose answers wait until their positions are committed.
fn leader_of_two() -> Node {
    Node::leader_of_two(Mark::Committed)
}

/// Commits so many writes, which come behind the first record, an EPOCH.
fn commit(node: &Node, writes: u64) {
    let (watermarks, mark) = node.awaited().unwrap();
    watermarks.advance(mark, writes.saturating_add(1));
}

fn ok(value: &[u8]) -> Vec<u8> {
    answer(Status::Ok, value)
}

/// TIMEOUT, and NOT_LEADER of a node that knows none.
fn lost() -> [Vec<u8>; 2] {
    let timeout = Reply::Timeout;
    [
        answer(Status::Timeout, timeout.value()),
        answer(Status::NotLeader, b""),
    ]
}

#[test]
fn answers_are_sent_in_order_as_their_positions_are_reached() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    client.send(&set(b"a", b"1"));
    client.send(&set(b"b", b"2"));
    client.send(&frame(Request::Ping));
    client.send(b"\x99\0\0\0\0\0\0");
    client.send(&get(b"a"));
    assert_eq!(client.received, b"");
    let index = client.session.awaits().map(|position| position.index);
    assert_eq!(index, Some(2));
    // All of it is carried out meanwhile.
    assert!(client.session.is_between_frames());
    commit(&node, 1);
    client.receive();
    assert_eq!(client.received, ok(b""));
    commit(&node, 2);
    client.receive();
    let rest = [
        ok(b""),
        ok(b""),
        ok(b"PONG"),
        error("unknown opcode 0x99"),
        ok(b"1"),
    ];
    assert_eq!(client.received, rest.concat());
    assert!(client.session.awaits().is_none());
}

#[test]
fn a_run_waits_for_its_last_write_and_a_stranger_for_nothing() {
    let node = leader_of_two();
    let (mut client, mut stranger) = (Client::new(&node), Client::new(&node));
    client.send(&[set(b"k", b"1"), set(b"k", b"2"), get(b"k")].concat());
    commit(&node, 1);
    client.receive();
    assert_eq!(client.received, b"");
    commit(&node, 2);
    client.receive();
    assert_eq!(client.received, [ok(b""), ok(b""), ok(b"2")].concat());
    stranger.send(&[frame(Request::Ping), get(b"none")].concat());
    let expected = [ok(b"PONG"), answer(Status::NotFound, b"")];
    assert_eq!(stranger.received, expected.concat());
}

#[test]
fn positions_that_are_never_reached_give_timeout_or_not_leader() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    let requests = [
        set(b"a", b"1"),
        get(b"a"),
        frame(Request::Ping),
        set(b"b", b"2"),
        frame(Request::Del { key: b"a" }),
    ];
    client.send(&requests[0]);
    commit(&node, 1);
    client.receive();
    client.received.clear();
    client.send(&requests.concat());
    let [timeout, not_leader] = lost();
    assert_eq!(client.received, b"");
    node.give_up_positions();
    client.receive();
    let expected = [
        timeout.clone(),
        not_leader,
        ok(b"PONG"),
        timeout.clone(),
        timeout,
    ];
    assert_eq!(client.received, expected.concat());
}

#[test]
fn a_long_value_that_waits_is_sent_or_lost_as_others_are() {
    for is_lost in [false, true] {
        let node = leader_of_two();
        let mut client = Client::new(&node);
        let value = vec![b'v'; DIRECT_BYTES];
        client.send(&[set(b"k", &value), get(b"k"), get(b"k")].concat());
        assert_eq!(client.received, b"");
        let [timeout, not_leader] = lost();
        let expected = if is_lost {
            node.give_up_positions();
            [timeout, not_leader.clone(), not_leader]
        } else {
            commit(&node, 1);
            [ok(b""), ok(&value), ok(&value)]
        };
        client.receive();
        client.send(b"");
        assert!(client.received == expected.concat(), "{is_lost}");
    }
}

#[test]
fn nothing_more_is_executed_once_held_responses_reach_the_bound() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    let value = [b'v'; 1_000];
    client.send(&set(b"k", &value));
    let requests = [get(b"k").repeat(100), set(b"after", b"")].concat();
    let (bytes, piece) = (&requests[..], usize::MAX);
    client.session.read(&mut Arrived { bytes, piece }).unwrap();
    assert!(matches!(client.session.step(Thread::Own), Step::Await));
    assert!(!client.session.is_between_frames());
    assert!(client.session.output.len() < OUTPUT_BYTES_MAX + 16 * 1_005);
    assert!(node.engine().get(b"after").is_none());
    commit(&node, 1);
    client.receive();
    client.send(b"");
    assert!(node.engine().get(b"after").is_some());
    commit(&node, 2);
    client.receive();
    let expected = [ok(b""), ok(&value).repeat(100), ok(b"")];
    assert!(client.received == expected.concat());
    // Small ones that come one by one count what it takes to hold them.
    client.received.clear();
    let mut count = 0;
    while !client.session.output.is_full() {
        client.send(&set(b"k", b""));
        count += 1;
    }
    assert!((1_000..OUTPUT_BYTES_MAX / 40).contains(&count), "{count}");
    node.give_up_positions();
    client.receive();
    assert!(client.received == lost()[0].repeat(count));
}

#[test]
fn a_follow_is_not_accepted_before_the_answers_in_front_of_it_are_sent() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    let follow = frame(Request::Follow {
        key: b"n",
        value: b"",
    });
    let requests = [set(b"k", b"v"), follow].concat();
    let (bytes, piece) = (&requests[..], usize::MAX);
    client.session.read(&mut Arrived { bytes, piece }).unwrap();
    assert!(matches!(client.session.step(Thread::Own), Step::Await));
    commit(&node, 1);
    client.receive();
    assert!(matches!(client.session.step(Thread::Own), Step::Stream));
}

/// A SYNC at an index of the first epoch of [`leader_of_two`].
fn sync_at(index: u64, timeout_ms: u32) -> Vec<u8> {
    let (epoch, nonce) = (1, 1);
    let token = Token {
        epoch,
        index,
        nonce,
    };
    let value = &SyncRequest::At { token, timeout_ms }.value();
    frame(Request::Sync { value })
}

fn position(index: u64) -> Vec<u8> {
    let [epoch, nonce] = [1, 1];
    let token = Token {
        epoch,
        index,
        nonce,
    };
    ok(&token.encode())
}

#[test]
fn a_sync_that_waits_is_on_the_own_thread_and_begins_behind_the_answers_in_front_of_it() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    let requests = [set(b"k", b"v"), sync_at(9, 100), get(b"k")].concat();
    let (bytes, piece) = (&requests[..], usize::MAX);
    client.session.read(&mut Arrived { bytes, piece }).unwrap();
    assert!(matches!(client.session.step(Thread::Polling), Step::Own));
    assert!(matches!(client.session.step(Thread::Own), Step::Await));
    commit(&node, 1);
    client.receive();
    assert_eq!(client.received, ok(b""));
    let Step::Sync(Awaited::Held(token), timeout) = client.session.step(Thread::Own) else {
        panic!("it waits for the position")
    };
    assert_eq!((token.index, timeout), (9, Duration::from_millis(100)));
    // Nothing behind it is executed before its answer.
    assert!(matches!(client.session.step(Thread::Own), Step::Sync(..)));
    let late = Reply::NotReached("late".to_owned());
    client.session.answer_at(late, Position::default());
    client.send(b"");
    let expected = [ok(b""), answer(Status::Timeout, b"late"), ok(b"v")];
    assert_eq!(client.received, expected.concat());
}

#[test]
fn a_sync_that_waits_for_nothing_is_answered_on_any_thread_when_its_position_is_acknowledged() {
    for thread in [Thread::Own, Thread::Polling] {
        let node = leader_of_two();
        let mut client = Client::new(&node);
        client.thread = thread;
        let value = &SyncRequest::Position.value();
        let now = frame(Request::Sync { value });
        client.send(&[&set(b"k", b"v"), &now[..], &sync_at(1, 7), &sync_at(3, 0)].concat());
        assert_eq!(client.received, b"", "the SET is not acknowledged");
        commit(&node, 1);
        client.receive();
        let late = "this node is at index 2 of epoch 1, the token is index 3 of epoch 1";
        let expected = [
            ok(b""),
            position(2),
            position(2),
            answer(Status::Timeout, late.as_bytes()),
        ];
        assert_eq!(client.received, expected.concat());
    }
}

#[test]
fn every_split_gets_the_same_answers_however_late_the_watermark_moves() {
    for large in [40, 60_000] {
        let (requests, answers) = joined(&exchanges(large));
        let step = if large == 40 { 1 } else { 9_973 };
        for at in (0..=requests.len()).step_by(step) {
            for committed in 0..=4 {
                let node = leader_of_two();
                let mut client = Client::new(&node);
                client.send(&requests[..at]);
                commit(&node, committed);
                client.send(&requests[at..]);
                let mut index = committed;
                while client.session.awaits().is_some() {
                    index += 1;
                    commit(&node, index);
                    client.receive();
                    client.send(b"");
                }
                assert!(client.received == answers, "{at}, {committed}");
            }
        }
    }
}

/// Sends SETs until the log, which nobody reads, has no room for more. Returns the one that was not executed.
fn fill_log(client: &mut Client<'_>, node: &Node, len: usize) -> Step {
    let value = vec![b'v'; len];
    let request = set(b"k", &value);
    for _ in 0..10_000 {
        commit(node, u64::MAX);
        client.receive();
        let (bytes, piece) = (&request[..], usize::MAX);
        let mut arrived = Arrived { bytes, piece };
        loop {
            let step = client.session.step(Thread::Own);
            if !matches!(step, Step::Read) {
                return step;
            }
            if arrived.bytes.is_empty() {
                break;
            }
            assert!(client.session.read(&mut arrived).unwrap() > 0);
        }
    }
    panic!("the log always has room")
}

#[test]
fn a_write_without_room_in_the_log_waits_unexecuted_on_the_own_thread() {
    for len in [1_000, 100_000] {
        let node = leader_of_two();
        let mut client = Client::new(&node);
        let Step::Room(cost) = fill_log(&mut client, &node, len) else {
            panic!("room is what it needs")
        };
        assert!(cost > u64::try_from(len).unwrap());
        let index = node.engine().head().index;
        assert!(matches!(client.session.step(Thread::Polling), Step::Own));
        assert!(matches!(client.session.step(Thread::Own), Step::Room(_)));
        assert!(!client.session.is_between_frames());
        assert_eq!(node.engine().head().index, index);
        client.receive();
        client.received.clear();
        // The end of the log grants every reservation.
        node.engine().end_log();
        client.session.give_room(node.engine().wait_for_room(cost));
        client.send(b"");
        assert_eq!(node.engine().head().index, index + 1);
        assert_eq!(client.received, ok(b""));
        assert!(client.session.is_between_frames());
    }
}

#[test]
fn a_batch_without_room_in_the_log_waits_unexecuted_and_then_is_executed_as_a_whole() {
    let node = leader_of_two();
    let mut client = Client::new(&node);
    let Step::Room(_) = fill_log(&mut client, &node, 1_000) else {
        panic!("room is what it needs")
    };
    // Another client, whose batch has a read before its write.
    let mut client = Client::new(&node);
    let value = [set(b"a", b"1"), get(b"a"), set(b"b", &[b'v'; 2_000])].concat();
    let index = node.engine().head().index;
    let request = frame(Request::Batch { value: &value });
    let (bytes, piece) = (&request[..], usize::MAX);
    let mut arrived = Arrived { bytes, piece };
    while matches!(client.session.step(Thread::Own), Step::Read) {
        assert!(client.session.read(&mut arrived).unwrap() > 0);
    }
    let Step::Room(cost) = client.session.step(Thread::Own) else {
        panic!("room is what it needs")
    };
    assert!(matches!(client.session.step(Thread::Polling), Step::Own));
    assert_eq!(node.engine().head().index, index);
    assert!(node.engine().get(b"a").is_none() && node.engine().get(b"b").is_none());
    // The end of the log grants every reservation.
    node.engine().end_log();
    client.session.give_room(node.engine().wait_for_room(cost));
    client.send(b"");
    assert_eq!(node.engine().head().index, index + 1);
    assert_eq!(client.received, ok(&[ok(b""), ok(b"1"), ok(b"")].concat()));
}
