//! Faulty streams, as an observer reports them.

use std::{io::Write, time::Duration};

use gopherstore::{
    client::{ClientOptions, Error, Observer, ProtocolError, Watch},
    history::{EpochStart, History},
    wire::{
        Request,
        replication::{BatchEncoder, Epochs, Fields, FollowAnswer, Message, Start, StreamOpcode},
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

fn entry(epoch: u64, index: u64) -> Vec<u8> {
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

/// A peer that answers a FOLLOW with these bytes and goes on listening.
fn speaking(bytes: Vec<u8>) -> Peer {
    Peer::start(move |_, mut stream| {
        if next_frame(&mut stream).is_some() {
            let _ = stream.write_all(&bytes);
            wait_for_close(&mut stream);
        }
    })
}

fn open(peer: &Peer, watch: Watch) -> Result<Observer, Error> {
    let options = ClientOptions {
        timeout: Duration::from_millis(200),
        ..ClientOptions::default()
    };
    Observer::open(&peer.addr, &options, watch)
}

/// The result of a stream after a number of good messages.
fn fault(watch: Watch, start: Start, good: usize, parts: &[Vec<u8>]) -> Error {
    let peer = speaking([&accepted(start)[..], &parts.concat()].concat());
    let mut observer = open(&peer, watch).unwrap();
    for at in 0..good {
        if let Err(error) = observer.receive() {
            panic!("{at}: {error}");
        }
    }
    observer.receive().unwrap_err()
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
    let from = Watch::From(5);
    let gap = [entry(EPOCH, 5), entry(EPOCH, 7)];
    out_of_place(fault(from, RESUME, 1, &gap), StreamOpcode::Entries);
    let again = [entry(EPOCH, 5), entry(EPOCH, 5)];
    out_of_place(fault(from, RESUME, 1, &again), StreamOpcode::Entries);
    let other_epoch = [entry(EPOCH + 1, 5)];
    out_of_place(fault(from, RESUME, 0, &other_epoch), StreamOpcode::Entries);
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
    let copy = |good, parts: &[Vec<u8>]| fault(Watch::Copy, Start::Snapshot, good, parts);
    let lost = [begin.clone(), chunk(0), chunk(2)];
    out_of_place(copy(2, &lost), StreamOpcode::SnapshotChunk);
    let short = [begin.clone(), chunk(0), end(2)];
    out_of_place(copy(2, &short), StreamOpcode::SnapshotEnd);
    out_of_place(copy(0, &[entry(EPOCH, 5)]), StreamOpcode::Entries);
    let mut damaged = entry(EPOCH, 5);
    *damaged.last_mut().unwrap() ^= 1;
    match fault(from, RESUME, 0, &[damaged]) {
        Error::Protocol {
            source: ProtocolError::Stream(error),
            ..
        } => assert!(error.to_string().contains("value_crc"), "{error}"),
        other => panic!("{other:?}"),
    }
    // And a good one goes on into the entries behind it, at the place where it ended.
    let parts = [begin, chunk(0), end(1), entry(EPOCH, 10)];
    let peer = speaking([&accepted(Start::Snapshot)[..], &parts.concat()].concat());
    let mut observer = open(&peer, Watch::Copy).unwrap();
    assert_eq!(observer.position(), None);
    for _ in 0..4 {
        observer.receive().unwrap();
    }
    let after = Watch::After {
        epoch: EPOCH,
        nonce: 7,
        index: 10,
    };
    assert_eq!(observer.position(), Some(after));
    let silence = observer.receive().unwrap_err();
    assert!(matches!(silence, Error::Timeout { .. }), "{silence}");
}

#[test]
fn a_stream_that_was_not_asked_for_is_refused_and_a_refusal_is_an_error() {
    for (watch, start) in [
        (Watch::Copy, RESUME),
        (Watch::New, Start::Snapshot),
        (Watch::From(6), RESUME),
    ] {
        let error = open(&speaking(accepted(start)), watch).unwrap_err();
        assert!(
            error.to_string().contains("which was not requested"),
            "{error}"
        );
    }
    let error = open(&speaking(response(0, b"\x00")), Watch::New).unwrap_err();
    match error {
        Error::Protocol {
            source: ProtocolError::FollowAnswer(error),
            ..
        } => assert!(error.to_string().starts_with("value of 1 bytes"), "{error}"),
        other => panic!("{other:?}"),
    }
    let error = open(&speaking(response(1, b"gone")), Watch::From(1)).unwrap_err();
    assert!(
        matches!(&error, Error::Server { message } if message == "gone"),
        "{error}"
    );
    let error = open(&speaking(response(4, b"soon")), Watch::Copy).unwrap_err();
    assert!(
        matches!(&error, Error::Loading { message } if message == "soon"),
        "{error}"
    );
    let error = open(&speaking(Vec::new()), Watch::New).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}
