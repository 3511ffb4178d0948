//! The data set of the follower.

use super::*;
use crate::engine::{Engine, Group};
use crate::log::Found;
use crate::wire::replication::{self, BatchEncoder, Fields, StreamOpcode};
use crate::wire::{Opcode, Request};

#[test]
fn a_follower_resumes_after_its_last_record_and_acknowledges_what_it_has() {
    let (leader, follower) = pair();
    let index = follower.index();
    for at in 0..1_000_u32 {
        leader.set(&format!("key{at}"), &at.to_be_bytes());
    }
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    let from_index = index + 1;
    assert_eq!(stream.start, Start::Resume { from_index });
    stream.beat().unwrap();
    leader.equals(&follower);
    let applied = |_: ()| {
        let followers = leader.peers.peers_at(leader.index());
        followers[0].lacks
    };
    assert_eq!(applied(()), None, "all is acknowledged");
    leader.set("more", b"1");
    assert_eq!(applied(()), Some(Lacking::At(leader.index() - 1)));
    stream.settle().unwrap();
    assert_eq!(applied(()), None);
    assert!(stream.follower.has_followed());
    assert!(matches!(follower.node.role(), RoleState::Follower { .. }));
}

#[test]
fn a_stream_that_is_to_catch_up_ends_with_its_goal() {
    let (leader, follower) = pair();
    leader.set("c", b"3");
    let member = follower.node.member().unwrap();
    let goal = |index| {
        let (replica, goal) = (follower.replica(), Goal::CatchUp(index));
        FollowerStream::new(replica, member, "n1", goal)
    };
    let index = leader.index();
    let mut stream = Joined::with(&leader, &follower, goal(index), leader.began).unwrap();
    stream.settle().unwrap();
    let needs = stream.follower.receive(&mut Buffer::new(), stream.now);
    assert_eq!(needs, Ok(Need::Done));
    drop(stream);
    let mut follower_stream = goal(index);
    let request = follower_stream.request(leader.began).unwrap();
    let accepted = judge(&leader, &request, leader.began).unwrap();
    let mut buffer = Buffer::new();
    buffer.extend(&response(&Reply::Answer(accepted.answer.clone())));
    let needs = follower_stream.receive(&mut buffer, leader.began);
    assert_eq!(needs, Ok(Need::Done), "it has all of that already");
}

#[test]
fn a_snapshot_that_is_taken_under_writes_is_exact_at_its_end() {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    for at in 0..5_000_u32 {
        leader.set(&format!("key{at}"), &at.to_be_bytes());
    }
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    let (mut at, mut steps) = (0, 0);
    while !stream.follower.has_followed() {
        stream.step().unwrap();
        steps += 1;
        assert_eq!(follower.node.holds_data(), stream.follower.has_followed());
        for _ in 0..7 {
            at += 1;
            match at % 5 {
                0 => leader.del(&format!("key{}", at / 5 * 3)),
                1 => leader.set(&format!("new{at}"), &vec![b'n'; at % 100]),
                _ => leader.set(&format!("key{}", at * 31 % 5_000), b"changed"),
            }
        }
    }
    assert!(steps > 100, "{steps}");
    stream.beat().unwrap();
    leader.equals(&follower);
}

/// Receives the last `count` records of a leader as one group, of which a half is committed.
pub(super) fn receive(follower: &Host, leader: &Host, records: &[u8], count: u32) {
    let mut bytes = Vec::new();
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    assert!(batch.push_run(records, count));
    let first_index = follower.index() + 1;
    batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index,
        count,
        committed_index: 0,
        time_ms: 0,
        digest: 0,
    });
    let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&bytes) else {
        panic!("a whole message");
    };
    let Message::Entries {
        frames: records, ..
    } = message
    else {
        panic!("entries");
    };
    let group = Group {
        first_index,
        records,
        committed: first_index + u64::from(count / 2),
        digest: leader.node.head().digest,
    };
    let received = follower.node.engine().receive(&group, leader.began);
    received.unwrap();
}

/// The log of a follower is ahead of its data set while records are applied, or wait to be committed.
#[test]
fn a_snapshot_of_a_follower_that_has_yet_to_apply_records_is_exact() {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    for at in 0..100_u32 {
        leader.set(&format!("key{at}"), b"old");
    }
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    while !stream.follower.has_followed() {
        stream.step().unwrap();
    }
    let (mut frames, mut cursor) = (
        Vec::new(),
        leader.log().cursor_after(leader.index()).unwrap(),
    );
    for at in 0..1_000_u32 {
        leader.set(&format!("key{at}"), b"new");
    }
    let found = leader.log().try_read(&mut cursor, 1 << 20, &mut frames);
    assert!(matches!(found, Found::Small(1_000, _)), "{found:?}");
    receive(&follower, &leader, &frames, 1_000);
    let engine = follower.node.engine();
    let mut sender = watch(&follower, &all(WatchFrom::Snapshot));
    let copied = Engine::new(Some(1 << 20), crate::time::MachineTime::clock());
    let (mut load, mut out, mut waits) = (copied.load(0), Vec::new(), 0);
    let (index, digest) = loop {
        let sending = sender.next(leader.began, &mut out).unwrap();
        if let Sending::Gather(_) = sending {
            waits += 1;
            if waits > 2 {
                engine.apply(u64::MAX).unwrap();
            }
            continue;
        }
        assert!(
            matches!(sending, Sending::Frames { large: None }),
            "{sending:?}"
        );
        let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&out) else {
            panic!("a whole message");
        };
        if let Message::SnapshotChunk { frames, .. } = message {
            load.add(frames.iter());
        } else if let Message::SnapshotEnd { index, digest, .. } = message {
            break (index, digest);
        }
    };
    assert_eq!(waits, 3);
    assert_eq!(
        (index, digest),
        (leader.index(), leader.node.head().digest.to_u128())
    );
    let history = leader.node.history();
    assert!(load.finish(index, leader.node.head().digest, history, leader.began));
    assert_eq!(copied.len(), 1_000);
}

#[test]
fn large_entries_are_sent_from_where_they_lie() {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    leader.set("in the snapshot", &vec![1; 700_000]);
    leader.set("not so large", &vec![2; 100_000]);
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    leader.set("in the log", &vec![3; 900_000]);
    leader.set("small", b"4");
    stream.beat().unwrap();
    leader.equals(&follower);
}

#[test]
fn a_follower_that_was_behind_when_the_epoch_changed_resumes() {
    let (leader, follower) = pair();
    leader.set("old", b"1");
    leader.open(2, 20);
    leader.set("new", b"2");
    leader.open(5, 50);
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    let from_index = follower.index() + 1;
    assert_eq!(stream.start, Start::Resume { from_index });
    stream.beat().unwrap();
    leader.equals(&follower);
    leader.set("newest", b"3");
    stream.beat().unwrap();
    leader.equals(&follower);
}

#[test]
fn a_follower_keeps_data_that_the_leader_does_not_know() {
    let (_, follower) = pair();
    let other = Host::new("n1");
    other.open(1, 11);
    for at in 0..9 {
        other.set(&format!("key{at}"), b"other");
    }
    let before = follower.node.head();
    let error = Joined::join(&other, &follower, other.began).err().unwrap();
    let FollowError::KeepsData(text) = &error else {
        panic!("{error:?}");
    };
    assert!(text.contains("does not include this node's"), "{text}");
    assert_eq!(follower.node.head(), before);
    assert_eq!(error.to_string(), *text);
}

#[test]
fn a_leader_without_a_data_set_is_not_followed_yet() {
    let (leader, follower) = (Host::new("n1"), Host::new("n2"));
    let error = Joined::join(&leader, &follower, leader.began).err();
    assert!(matches!(error, Some(FollowError::NotYet(_))), "{error:?}");
    let third = Host::new("n3");
    let error = Joined::join(&third, &follower, leader.began).err();
    assert!(matches!(error, Some(FollowError::Rejected(_))), "{error:?}");
}

/// Two leaders that write different values at the same positions, and a follower of each.
fn twins() -> [(Host, Host); 2] {
    let (leader, follower) = pair();
    let (twin, other) = (Host::leader(), Host::new("n3"));
    while twin.index() < leader.index() {
        twin.set("twin", b"other");
    }
    let mut stream = Joined::join(&twin, &other, twin.began).unwrap();
    stream.settle().unwrap();
    drop(stream);
    twin.equals(&other);
    [(leader, follower), (twin, other)]
}

#[track_caller]
fn assert_diverged(error: &FollowError) {
    let FollowError::Diverged(text) = error else {
        panic!("{error:?}");
    };
    assert!(text.contains("digest"), "{text}");
}

#[test]
fn a_data_set_that_differs_is_found_by_the_digest_of_a_heartbeat() {
    let [(_, follower), (twin, _)] = twins();
    let stream = Joined::join(&twin, &follower, twin.began).unwrap();
    let from_index = follower.index() + 1;
    assert_eq!(stream.start, Start::Resume { from_index });
    match stream.end() {
        Ended::Follower(error) => assert_diverged(&error),
        Ended::Leader(why) => panic!("{why}"),
    }
}

#[test]
fn a_data_set_that_differs_is_found_by_the_digest_of_a_group() {
    let [(leader, follower), (twin, other)] = twins();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let mut stranger = Joined::join(&twin, &other, twin.began).unwrap();
    stranger.settle().unwrap();
    twin.set("more", b"1");
    let mut out = Vec::new();
    stranger.leader.next(stranger.now, &mut out).unwrap();
    stream.to_follower.extend(&out);
    let result = stream.follower.receive(&mut stream.to_follower, stream.now);
    assert_diverged(&result.unwrap_err());
}

#[test]
fn a_message_of_another_epoch_ends_the_stream() {
    let (leader, follower) = pair();
    let later = Host::leader();
    later.open(2, 20);
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let third = Host::new("n3");
    let mut other = Joined::join(&later, &third, later.began).unwrap();
    let mut out = Vec::new();
    other.leader.next(other.now, &mut out).unwrap();
    stream.to_follower.extend(&out);
    let error = stream.follower.receive(&mut stream.to_follower, stream.now);
    let text = "a message of epoch 2, not 1".to_owned();
    assert_eq!(error, Err(FollowError::Protocol(text)));
}

/// All bytes that a leader sends a new follower, the answer to FOLLOW included.
fn transcript(leader: &Host) -> Vec<u8> {
    let host = Host::new("n2");
    let request = host.follows("n1").request(leader.began).unwrap();
    let accepted = judge(leader, &request, leader.began).unwrap();
    let mut bytes = response(&Reply::Answer(accepted.answer.clone()));
    let mut stream = LeaderStream::new(*accepted, leader.began);
    let (mut out, mut rest) = (Vec::new(), 10);
    loop {
        match stream.next(leader.began, &mut out).unwrap() {
            Sending::Frames { large } => {
                bytes.extend_from_slice(&out);
                bytes.extend(large.iter().flat_map(|entry| entry.frame()));
            }
            Sending::Gather(_) => {}
            Sending::Wait { .. } if rest == 0 => return bytes,
            Sending::Wait { .. } => {
                leader.set(&format!("rest{rest}"), b"value");
                rest -= 1;
            }
            other @ (Sending::AwaitAck { .. } | Sending::End) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stream_means_the_same_however_it_is_split() {
    let leader = Host::leader();
    leader.set("a", b"1");
    let bytes = transcript(&leader);
    assert!(bytes.len() > 500, "{}", bytes.len());
    let receive = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let host = Host::new("n2");
        let mut stream = host.follows("n1");
        stream.request(host.began).unwrap();
        let mut buffer = Buffer::new();
        for piece in pieces {
            buffer.extend(piece);
            let needs = stream.receive(&mut buffer, host.began).unwrap();
            assert!(matches!(needs, Need::Bytes(count) if count > buffer.bytes().len()));
            host.log().drain(host.began);
        }
        assert!(buffer.is_empty());
        leader.equals(&host);
    };
    receive(&mut bytes.chunks(1));
    for at in 1..bytes.len() {
        receive(&mut [&bytes[..at], &bytes[at..]].into_iter());
    }
}

#[test]
fn an_epoch_that_the_leader_did_not_offer_ends_the_stream() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let (index, digest) = (follower.index(), follower.node.head().digest);
    let mut frame = Vec::new();
    let value = &Opcode::Epoch.spec().value_of([99, 7]);
    Request::Epoch { value }.encode(&mut frame).unwrap();
    let mut out = Vec::new();
    let mut batch = BatchEncoder::new(&mut out, StreamOpcode::Entries);
    assert!(batch.push(&frame));
    batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index: index + 1,
        count,
        committed_index: index + 1,
        time_ms: 0,
        digest: digest.to_u128(),
    });
    stream.to_follower.extend(&out);
    let error = stream.follower.receive(&mut stream.to_follower, stream.now);
    let text = "epoch 99 begins, which is not in the history that it offered".to_owned();
    assert_eq!(error, Err(FollowError::Protocol(text)));
    assert_eq!(follower.index(), index, "nothing is logged");
}
