//! Acknowledgements, and how a stream ends.

use super::*;
use crate::log::Mark;
use crate::replication::core::role::LeadOrder;
use crate::wire;
use crate::wire::replication::{Epochs, FollowAnswer};

#[test]
fn a_stream_ends_before_the_first_record_of_a_new_epoch_and_with_its_data_set() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    leader.open(2, 20);
    assert_eq!(stream.end(), Ended::Leader(StreamEnd::OtherData));
    // A follower serves watchers.
    let mut stream = watch(&follower, &all(WatchFrom::Now));
    let mut out = Vec::new();
    assert!(stream.next(follower.began, &mut out).is_ok());
    follower.node.discard_dataset("test");
    let ended = stream.next(follower.began, &mut out).map(drop);
    assert_eq!(ended, Err(StreamEnd::OtherData));
}

fn ack_of(index: u64) -> Message<'static> {
    ack_of_round(0, index)
}

fn ack_of_round(round: u64, index: u64) -> Message<'static> {
    Message::Ack {
        epoch: 1,
        round,
        last_index: index,
        applied_index: index,
        durable_index: 0,
    }
}

/// The `durable_index` of the HEARTBEAT that these bytes are.
fn durable_index_of(bytes: &[u8]) -> u64 {
    let parsed = wire::replication::parse(bytes).unwrap();
    let wire::replication::Parsed::Whole { message, frame_len } = parsed else {
        panic!("a whole frame")
    };
    assert_eq!(frame_len, bytes.len());
    let Message::Heartbeat { durable_index, .. } = message else {
        panic!("{message:?}")
    };
    durable_index
}

#[test]
fn heartbeats_and_acks_say_how_far_each_disk_is() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let last_index = leader.index();
    for (round, of_leader, of_follower) in [(2, 0, 0), (3, 1, 0), (4, last_index, last_index - 1)] {
        leader.log().advance(Mark::Durable, of_leader);
        follower.log().advance(Mark::Durable, of_follower);
        stream.now += INTERVAL;
        let mut out = Vec::new();
        stream.leader.next(stream.now, &mut out).unwrap();
        assert_eq!(durable_index_of(&out), of_leader);
        stream.to_follower.extend(&out);
        stream
            .follower
            .receive(&mut stream.to_follower, stream.now)
            .unwrap();
        let expected = Message::Ack {
            epoch: 1,
            round,
            last_index,
            applied_index: last_index,
            durable_index: of_follower,
        };
        let turn = stream.follower.acks().next(stream.now);
        assert_eq!(turn, AckTurn::Send(expected));
    }
}

#[test]
fn an_ack_counts_up_to_what_the_stream_has_sent() {
    let (leader, follower) = pair();
    leader.set("c", b"3");
    let matched = follower.index();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.send_ack(&ack_of(matched)).unwrap();
    let beyond = StreamEnd::AckBeyond {
        index: matched + 1,
        matched,
    };
    let early = stream.send_ack(&ack_of(matched + 1));
    assert_eq!(early, Err(Ended::Leader(beyond)), "it is not sent yet");

    let third = Host::new("n3");
    let mut stream = Joined::join(&leader, &third, leader.began).unwrap();
    stream.send_ack(&ack_of(0)).unwrap();
    for _ in 0..3 {
        stream.step().unwrap();
    }
    assert!(stream.leader.is_in_snapshot());
    let ended = stream.send_ack(&ack_of(1)).unwrap_err();
    let (index, matched) = (1, 0);
    let beyond = StreamEnd::AckBeyond { index, matched };
    assert_eq!(ended, Ended::Leader(beyond), "before the snapshot's end");
}

#[test]
fn an_ack_of_an_older_stream_counts_for_nothing() {
    let (leader, follower) = pair();
    leader.set("c", b"3");
    let (mut now, index) = (leader.began, follower.index());
    let mut old = Joined::join(&leader, &follower, now).unwrap();
    let request = follower.follows("n1").request(now).unwrap();
    assert!(matches!(
        judge(&leader, &request, now),
        Err(NotAccepted::SecondNode { .. })
    ));
    now += 3 * INTERVAL + ms(1);
    let _new = Joined::join(&leader, &follower, now).unwrap();
    // The old stream has sent everything.
    let mut out = Vec::new();
    old.leader.link().sent(index + 1);
    let ended = old.send_ack(&ack_of(index + 1));
    assert_eq!(ended, Err(Ended::Leader(StreamEnd::Replaced)));
    let followers = leader.peers.peers_at(index + 1);
    assert_eq!(followers[0].lacks, Some(Lacking::At(index)));
    let ended = old.leader.next(now + INTERVAL, &mut out).map(drop);
    assert_eq!(ended, Ok(()), "a heartbeat");
    let ended = old.leader.next(now + INTERVAL, &mut out).map(drop);
    assert_eq!(ended, Err(StreamEnd::Silent));
    drop(old);
    let followers = leader.peers.peers_at(index + 1);
    assert_eq!(followers[0].lacks, Some(Lacking::At(index)), "still there");
}

#[test]
fn an_ack_is_due_on_change_after_a_heartbeat_and_once_in_each_interval_but_not_twice_in_a_millisecond()
 {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    let begin = stream.now;
    let next = |stream: &Joined<'_>, at| stream.follower.acks().next(begin + at);
    let index = follower.index();
    assert_eq!(next(&stream, ms(0)), AckTurn::Send(ack_of(index)));
    let pause = AckTurn::NotBefore(begin + ms(1));
    assert_eq!(next(&stream, ms(0)), pause);
    let at_latest = begin + ms(1) + INTERVAL;
    let on_change = AckTurn::OnChange(Some(at_latest));
    assert_eq!(next(&stream, ms(1)), on_change);
    let again = next(&stream, ms(1) + INTERVAL);
    assert_eq!(again, AckTurn::Send(ack_of(index)), "an interval later");

    stream.now = at_latest + ms(1);
    let beat = stream.step().unwrap();
    assert_eq!(beat, None);
    let mut since = stream.now - begin;
    let pause = AckTurn::NotBefore(stream.now + ms(1));
    assert_eq!(next(&stream, since), pause, "the heartbeat is answered");
    leader.set("c", b"3");
    while stream.step().unwrap().is_none() {}
    since += ms(1);
    let changed = AckTurn::Send(ack_of_round(1, index + 1));
    assert_eq!(next(&stream, since), changed);
    let idle = follower.follows("n1");
    assert_eq!(idle.acks().next(begin), AckTurn::OnChange(None));
}

#[test]
fn either_side_ends_a_stream_on_which_nothing_comes() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let now = stream.now;
    let silent = StreamEnd::Silent;
    assert_eq!(stream.acks.check_silence(now + INTERVAL), Ok(()));
    assert_eq!(stream.acks.check_silence(now + 3 * INTERVAL), Err(silent));
    let timeout = ms(5_000);
    assert_eq!(stream.follower.check_silence(now + ms(4_900)), Ok(()));
    let silent = FollowError::Silent(timeout);
    assert_eq!(stream.follower.check_silence(now + timeout), Err(silent));
    assert_eq!(stream.follower.check_disk(now + ms(4_900)), Ok(()));
    let slow = "this node's disk is slow, and backlog_bytes of the log wait for it";
    let slow = Err(FollowError::Disk(slow.to_owned()));
    assert_eq!(stream.follower.check_disk(now + timeout), slow);
    let leader_stream = &stream.leader;
    assert_eq!(leader_stream.check_stall(now, now + 2 * INTERVAL), Ok(()));
    let took_nothing = leader_stream.check_stall(now, now + 3 * INTERVAL);
    assert_eq!(took_nothing, Err(StreamEnd::TookNothing));

    let mut asking = follower.follows("n1");
    assert_eq!(asking.check_disk(now), slow, "none is begun");
    asking.request(now).unwrap();
    assert_eq!(asking.check_silence(now + ms(4_999)), Ok(()));
    let silent = FollowError::Silent(timeout);
    assert_eq!(asking.check_silence(now + timeout), Err(silent));
    let ended = asking.closed();
    assert!(matches!(ended, FollowError::Lost(_)), "{ended:?}");
}

/// Writes more than the backlog holds.
pub(super) fn overflow(host: &Host) {
    for at in 0..64_u32 {
        host.set("wide", &[&at.to_be_bytes()[..], &[0; 30_000]].concat());
    }
}

#[test]
fn a_follower_that_falls_behind_the_backlog_takes_a_snapshot() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    overflow(&leader);
    assert_eq!(stream.end(), Ended::Leader(StreamEnd::FellBehind));
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    assert_eq!(stream.start, Start::Snapshot);
    stream.beat().unwrap();
    leader.equals(&follower);
}

#[test]
fn a_follower_that_holds_data_waits_for_the_snapshot_of_another() {
    let (leader, follower) = pair();
    leader.set("c", b"3");
    let third = Host::new("n3");
    let mut first = Joined::join(&leader, &third, leader.began).unwrap();
    assert_eq!(first.start, Start::Snapshot);
    overflow(&leader);
    let error = Joined::join(&leader, &follower, leader.began).err();
    assert!(matches!(error, Some(FollowError::NotYet(_))), "{error:?}");
    while !third.node.holds_data() {
        first.step().unwrap();
    }
    let error = Joined::join(&leader, &follower, leader.began).err();
    assert!(matches!(error, Some(FollowError::NotYet(_))), "{error:?}");
    // The permit is returned with the acknowledgement, and not when the leader next sends something.
    first.now += Duration::from_millis(2);
    first.acknowledge().unwrap();
    let second = Joined::join(&leader, &follower, leader.began).unwrap();
    assert_eq!(second.start, Start::Snapshot, "the first one is complete");
}

#[test]
fn the_streams_of_a_leader_end_as_soon_as_it_leads_no_more() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    assert!(!stream.leader.has_news());
    leader.node.campaign("n2 is about to lead");
    assert!(stream.leader.has_news());
    let ended = stream.step();
    assert_eq!(ended, Err(Ended::Leader(StreamEnd::NotLeading)));
}

#[test]
fn a_node_that_stops_waits_for_the_last_ack() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    leader.set("c", b"3");
    leader.node.engine().end_log();
    leader.log().drain(leader.began);
    assert_eq!(stream.settle().map(drop), Ok(()), "the ack is to come");
    let ended = stream.step();
    assert_eq!(ended, Err(Ended::Leader(StreamEnd::NodeStops)), "in order");

    let third = Host::new("n3");
    let request = third.follows("n1").request(leader.began).unwrap();
    let accepted = judge(&leader, &request, leader.began).unwrap();
    let mut stream = LeaderStream::new(*accepted, leader.began);
    let mut out = Vec::new();
    let begin = stream.next(leader.began, &mut out);
    assert!(begin.is_ok(), "{begin:?}");
    let ended = stream.next(leader.began, &mut out).map(drop);
    assert_eq!(
        ended,
        Err(StreamEnd::NodeStops),
        "no snapshot is sent any more"
    );
}

#[test]
fn acknowledgements_mean_the_same_however_they_are_split() {
    let (leader, follower) = pair();
    let index = follower.index();
    let mut bytes = Vec::new();
    for _ in 0..2 {
        ack_of(index).encode(&mut bytes).unwrap();
    }
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    let mut buffer = Buffer::new();
    for at in 0..=bytes.len() {
        for piece in [&bytes[..at], &bytes[at..]] {
            buffer.extend(piece);
            let needed = stream.acks.receive(&mut buffer, leader.began).unwrap();
            assert!(needed > buffer.bytes().len());
        }
        assert!(buffer.is_empty());
    }
    let mut beat = Vec::new();
    stream.leader.next(leader.began, &mut beat).unwrap();
    buffer.extend(&beat);
    let ended = stream.acks.receive(&mut buffer, leader.began);
    assert_eq!(ended, Err(StreamEnd::NotAnAck("HEARTBEAT")));
    let mut noise = Buffer::new();
    noise.extend(&[0xFF; 64]);
    let ended = stream.acks.receive(&mut noise, leader.began);
    assert!(matches!(ended, Err(StreamEnd::BadFrame(_))), "{ended:?}");
}

#[test]
fn an_order_to_lead_is_the_last_message_and_is_checked_by_the_follower() {
    let (leader, follower) = pair();
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let head = leader.node.head();
    let order = LeadOrder {
        epoch: 1,
        last_index: head.index,
        digest: head.digest.to_u128(),
    };
    assert!(
        !leader.peers.order_to_lead("n3", order, stream.now),
        "it has no stream"
    );
    assert!(leader.peers.order_to_lead("n2", order, stream.now));
    // Its wall clock was set: keys that it hides stay hidden.
    let clock = |host: &Host| host.node.engine().clock().now();
    let ahead = clock(&leader) + 3_600_000;
    leader.node.engine().clock().pull(ahead);
    let mut out = Vec::new();
    let sending = stream.leader.next(stream.now, &mut out).unwrap();
    assert!(matches!(sending, Sending::Frames { large: None }));
    let receive = |bytes: &[u8]| {
        let mut follower_stream = follower.follows("n1");
        follower_stream.request(leader.began).unwrap();
        let mut buffer = Buffer::new();
        buffer.extend(&answer_to_resume(&leader, follower.index()));
        follower_stream.receive(&mut buffer, leader.began).unwrap();
        buffer.extend(bytes);
        follower_stream.receive(&mut buffer, leader.began)
    };
    assert!(clock(&follower) < ahead);
    assert_eq!(receive(&out), Ok(Need::Lead(order)));
    assert!(clock(&follower) >= ahead);
    let others = [
        LeadOrder { epoch: 2, ..order },
        LeadOrder {
            last_index: head.index + 1,
            ..order
        },
        LeadOrder { digest: 1, ..order },
    ];
    for LeadOrder {
        epoch,
        last_index,
        digest,
    } in others
    {
        let mut bytes = Vec::new();
        let lead = Message::Lead {
            epoch,
            last_index,
            digest,
        };
        lead.encode(&mut bytes).unwrap();
        let result = receive(&bytes);
        assert!(
            matches!(result, Err(FollowError::Protocol(_))),
            "{result:?}"
        );
    }
    stream.acks.end(StreamEnd::Closed);
    let ended = stream.leader.next(stream.now, &mut out);
    assert!(matches!(ended, Ok(Sending::End)), "{ended:?}");
}

/// The answer of a leader to a follower that resumes after `index`.
fn answer_to_resume(leader: &Host, index: u64) -> Vec<u8> {
    let mut answer = Vec::new();
    let history = leader.node.history();
    let offer = FollowAnswer {
        start: Start::Resume {
            from_index: index + 1,
        },
        history: Epochs::of(&history).unwrap(),
    };
    offer.encode(&mut answer);
    response(&Reply::Answer(answer))
}
