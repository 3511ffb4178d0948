//! Faulty streams, as a watcher reports them.

use std::{io::Write, time::Duration};

use gopherstore::{
    client::{ClientOptions, Error, ProtocolError, Watch, WatchFrom, Watched, Watcher},
    history::{EpochStart, History},
    wire::{
        Request, Token,
        replication::{
            BatchEncoder, Epochs, EventEncoder, Fields, FollowAnswer, Message, Start, StreamOpcode,
        },
        request::{Limits, Parsed, parse},
    },
};

use crate::support::{Peer, next_frame, response, wait_for_close};

const EPOCH: u64 = 3;

fn accepted(start: Start) -> Vec<u8> {
    let history = History::new(vec![EpochStart {
        epoch: EPOCH,
        nonce: 7,
        start_index: 1,
    }])
    .unwrap();
    let mut value = Vec::new();
    FollowAnswer {
        start,
        history: Epochs::of(&history).unwrap(),
    }
    .encode(&mut value);
    response(0, &value)
}

fn batch(opcode: StreamOpcode, fields: impl FnOnce(u32) -> Fields) -> Vec<u8> {
    let (mut frame, mut out) = (Vec::new(), Vec::new());
    let (key, value) = (b"k", b"v");
    Request::Set { key, value }.encode(&mut frame).unwrap();
    let mut batch = BatchEncoder::new(&mut out, opcode);
    assert!(batch.push(&frame));
    batch.finish(fields);
    out
}

fn event(epoch: u64, index: u64) -> Vec<u8> {
    let (mut frame, mut out) = (Vec::new(), Vec::new());
    let (key, value) = (b"k", b"v");
    Request::Set { key, value }.encode(&mut frame).unwrap();
    let Ok(Parsed::Whole(frame)) = parse(&frame, &Limits::default()) else {
        panic!("a whole frame");
    };
    let mut event = EventEncoder::new(&mut out, true);
    event.push(&frame);
    assert_eq!(event.finish(epoch, index), Ok(true));
    out
}

fn beat(last_index: u64) -> Vec<u8> {
    message(Message::Heartbeat {
        epoch: EPOCH,
        round: 1,
        last_index,
        committed_index: last_index,
        durable_index: 0,
        time_ms: 0,
        digest_index: last_index,
        digest: 0,
    })
}

fn entries(epoch: u64, index: u64) -> Vec<u8> {
    batch(StreamOpcode::Entries, |count| Fields::Entries {
        epoch,
        first_index: index,
        count,
        committed_index: index,
        time_ms: 0,
        digest: 0,
    })
}

fn chunk(sequence: u64) -> Vec<u8> {
    batch(StreamOpcode::SnapshotChunk, |count| Fields::SnapshotChunk {
        epoch: EPOCH,
        sequence,
        count,
    })
}

fn message(message: Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    out
}

fn end(chunks: u64) -> Vec<u8> {
    message(Message::SnapshotEnd {
        epoch: EPOCH,
        index: 9,
        digest: 0,
        chunks,
    })
}

/// A peer that answers a WATCH with these bytes and goes on listening.
fn speaking(bytes: Vec<u8>) -> Peer {
    Peer::start(move |_, mut stream| {
        if next_frame(&mut stream).is_some() {
            let _ = stream.write_all(&bytes);
            wait_for_close(&mut stream);
        }
    })
}

fn open(peer: &Peer, from: WatchFrom) -> Result<Watcher, Error> {
    let watch = Watch {
        values: true,
        from,
        ..Watch::default()
    };
    open_with(peer, watch)
}

fn open_with(peer: &Peer, watch: Watch) -> Result<Watcher, Error> {
    let options = ClientOptions {
        timeout: Duration::from_millis(200),
        ..ClientOptions::default()
    };
    Watcher::open(&peer.addr, &options, watch)
}

/// The result of a stream after a number of good messages.
fn fault(from: WatchFrom, start: Start, good: usize, parts: &[Vec<u8>]) -> Error {
    let peer = speaking([&accepted(start)[..], &parts.concat()].concat());
    let mut watcher = open(&peer, from).unwrap();
    for at in 0..good {
        if let Err(error) = watcher.receive() {
            panic!("{at}: {error}");
        }
    }
    watcher.receive().unwrap_err()
}

const fn token(index: u64) -> Token {
    Token {
        epoch: EPOCH,
        index,
        nonce: 7,
    }
}

/// Events of other keys are not sent, and heartbeats tell how far the stream has come.
#[test]
fn with_a_prefix_the_position_is_that_of_the_last_event_or_heartbeat() {
    let watch = Watch {
        prefix: b"k".to_vec(),
        from: WatchFrom::After(token(4)),
        ..Watch::default()
    };
    let parts = [event(EPOCH, 6), beat(9), event(EPOCH, 12), event(EPOCH, 12)].concat();
    let peer = speaking([accepted(RESUME), parts].concat());
    let mut watcher = open_with(&peer, watch).unwrap();
    let mut positions = vec![watcher.position()];
    for at in 0..3 {
        let watched = watcher.receive().unwrap();
        match (at, watched) {
            (0 | 2, Watched::Event(event)) => assert_eq!(event.changes().count(), 1),
            (1, Watched::Heartbeat { .. }) => {}
            (_, other) => panic!("{other:?}"),
        }
        positions.push(watcher.position());
    }
    assert_eq!(positions, [4, 6, 9, 12].map(|index| Some(token(index))));
    assert!(watcher.receive().is_err(), "one event twice");
}

#[test]
fn a_watcher_resumes_at_the_first_node_that_has_its_position() {
    let gone = speaking(response(0x0B, &77_u64.to_be_bytes()));
    let lost = speaking(response(
        0x08,
        b"entry 5 of epoch 3 is not in this node's history",
    ));
    let loading = speaking(response(4, b"soon"));
    let next = speaking([accepted(Start::Resume { from_index: 6 }), event(EPOCH, 6)].concat());
    let peer = speaking([accepted(RESUME), event(EPOCH, 5)].concat());
    let mut watcher = open(&peer, WatchFrom::Index(5)).unwrap();
    watcher.receive().unwrap();
    let wait = Duration::from_millis(1);
    let error = watcher.resume(&[&loading.addr], wait).unwrap_err();
    assert!(matches!(error, Error::Loading { .. }), "{error}");
    let error = watcher
        .resume(&[&loading.addr, &gone.addr], wait)
        .unwrap_err();
    assert!(matches!(error, Error::Compacted { oldest: 77 }), "{error}");
    let error = watcher.resume(&[&lost.addr], wait).unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert_eq!(watcher.position(), Some(token(5)));
    watcher.resume(&[&loading.addr, &next.addr], wait).unwrap();
    let Watched::Event(event) = watcher.receive().unwrap() else {
        panic!("no event");
    };
    assert_eq!(event.position(), token(6));
}

const RESUME: Start = Start::Resume { from_index: 5 };

#[test]
fn missing_or_damaged_messages_are_never_returned() {
    let out_of_place = |error: Error, what: StreamOpcode| match error {
        Error::Protocol {
            source: ProtocolError::OutOfPlace { what: found },
            ..
        } => assert_eq!(found, what),
        other => panic!("{other:?}"),
    };
    let from = WatchFrom::Index(5);
    let gap = [event(EPOCH, 5), event(EPOCH, 7)];
    out_of_place(fault(from, RESUME, 1, &gap), StreamOpcode::Event);
    let again = [event(EPOCH, 5), event(EPOCH, 5)];
    out_of_place(fault(from, RESUME, 1, &again), StreamOpcode::Event);
    let other_epoch = [event(EPOCH + 1, 5)];
    out_of_place(fault(from, RESUME, 0, &other_epoch), StreamOpcode::Event);
    let of_a_follower = [entries(EPOCH, 5)];
    out_of_place(
        fault(from, RESUME, 0, &of_a_follower),
        StreamOpcode::Entries,
    );
    let ahead = [event(EPOCH, 5), beat(5), beat(6)];
    out_of_place(fault(from, RESUME, 2, &ahead), StreamOpcode::Heartbeat);
    let behind = [event(EPOCH, 5), beat(4)];
    out_of_place(fault(from, RESUME, 1, &behind), StreamOpcode::Heartbeat);
    let ack = message(Message::Ack {
        epoch: EPOCH,
        round: 0,
        last_index: 5,
        applied_index: 5,
        durable_index: 0,
    });
    out_of_place(fault(from, RESUME, 0, &[ack]), StreamOpcode::Ack);
    let unasked = [chunk(0)];
    out_of_place(
        fault(from, RESUME, 0, &unasked),
        StreamOpcode::SnapshotChunk,
    );
    let begin = {
        let history = History::new(vec![EpochStart {
            epoch: EPOCH,
            nonce: 7,
            start_index: 1,
        }])
        .unwrap();
        message(Message::SnapshotBegin {
            epoch: EPOCH,
            keys: 1,
            bytes: 2,
            history: Epochs::of(&history).unwrap(),
        })
    };
    let copy = |good, parts: &[Vec<u8>]| fault(WatchFrom::Snapshot, Start::Snapshot, good, parts);
    let lost = [begin.clone(), chunk(0), chunk(2)];
    out_of_place(copy(2, &lost), StreamOpcode::SnapshotChunk);
    let short = [begin.clone(), chunk(0), end(2)];
    out_of_place(copy(2, &short), StreamOpcode::SnapshotEnd);
    out_of_place(copy(0, &[event(EPOCH, 5)]), StreamOpcode::Event);
    let mut damaged = event(EPOCH, 5);
    *damaged.last_mut().unwrap() ^= 1;
    match fault(from, RESUME, 0, &[damaged]) {
        Error::Protocol {
            source: ProtocolError::Stream(error),
            ..
        } => assert!(error.to_string().contains("value_crc"), "{error}"),
        other => panic!("{other:?}"),
    }
    // And a good one goes on into the entries behind it, at the place where it ended.
    let parts = [begin, chunk(0), end(1), event(EPOCH, 10)];
    let peer = speaking([&accepted(Start::Snapshot)[..], &parts.concat()].concat());
    let mut watcher = open(&peer, WatchFrom::Snapshot).unwrap();
    assert_eq!(watcher.position(), None);
    for _ in 0..4 {
        watcher.receive().unwrap();
    }
    assert_eq!(watcher.position(), Some(token(10)));
    let silence = watcher.receive().unwrap_err();
    assert!(matches!(silence, Error::Timeout { .. }), "{silence}");
}

#[test]
fn a_stream_that_was_not_asked_for_is_refused_and_a_refusal_is_an_error() {
    for (from, start) in [
        (WatchFrom::Snapshot, RESUME),
        (WatchFrom::Now, Start::Snapshot),
        (WatchFrom::Index(6), RESUME),
        (WatchFrom::After(token(5)), RESUME),
        (WatchFrom::After(token(u64::MAX)), RESUME),
    ] {
        let error = open(&speaking(accepted(start)), from).unwrap_err();
        assert!(
            error.to_string().contains("which was not requested"),
            "{error}"
        );
    }
    let error = open(&speaking(accepted(Start::Unknown)), WatchFrom::Now).unwrap_err();
    assert!(
        error.to_string().contains("nothing, as to a follower"),
        "{error}"
    );
    let error = open(&speaking(response(0, b"\x00")), WatchFrom::Now).unwrap_err();
    match error {
        Error::Protocol {
            source: ProtocolError::FollowAnswer(error),
            ..
        } => assert!(error.to_string().starts_with("value of 1 bytes"), "{error}"),
        other => panic!("{other:?}"),
    }
    let error = open(&speaking(response(1, b"gone")), WatchFrom::Index(1)).unwrap_err();
    assert!(
        matches!(&error, Error::Server { message } if message == "gone"),
        "{error}"
    );
    let error = open(&speaking(response(4, b"soon")), WatchFrom::Snapshot).unwrap_err();
    assert!(
        matches!(&error, Error::Loading { message } if message == "soon"),
        "{error}"
    );
    let error = open(&speaking(Vec::new()), WatchFrom::Now).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}
