use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use gopherstore::client::{Client, Error, Response};

use crate::{
    patient,
    support::{Peer, StubNode, in_time, next_frame, response, wait_for_close},
};

#[test]
fn a_hundred_thousand_requests_with_large_responses_do_not_deadlock() {
    // The stub reads nothing while a response of it is not taken: 400 MB of them are more than any buffer.
    let node = StubNode::start();
    node.insert(b"k", &[b'v'; 4_000]);
    let addr = node.addr().to_owned();
    in_time(move || {
        let mut client = patient(&addr);
        let mut pipeline = client.pipeline();
        for at in 0..100_000 {
            match at % 1_000 {
                7 => pipeline.ping(),
                _ => pipeline.get(b"k"),
            };
        }
        assert_eq!(pipeline.len(), 100_000);
        let responses = pipeline.run().unwrap();
        assert_eq!(responses.len(), 100_000);
        for (at, response) in responses.iter().enumerate() {
            match response {
                Ok(Response::Pong) => assert_eq!(at % 1_000, 7),
                Ok(Response::Value(value)) => {
                    assert_eq!((value.len(), at % 1_000 == 7), (4_000, false))
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(node.peer.connections(), 1);
}

#[test]
fn responses_have_the_times_of_their_last_bytes() {
    let pause = Duration::from_millis(50);
    let peer = Peer::start(move |_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            if frame[0] == 0x02 {
                thread::sleep(pause);
            }
            if stream.write_all(&response(0, b"")).is_err() {
                break;
            }
        }
    });
    let addr = peer.addr.clone();
    in_time(move || {
        let mut client = patient(&addr);
        let mut pipeline = client.pipeline();
        let mut responses = Vec::new();
        for _ in 0..3 {
            let begin = Instant::now();
            pipeline.set(b"k", b"").get(b"k").set(b"k", b"");
            pipeline.run_timed(&mut responses).unwrap();
            let end = Instant::now();
            assert!(pipeline.is_empty());
            assert_eq!(responses.len(), 3, "those of the last run are gone");
            let at: Vec<Instant> = responses.iter().map(|(_, at)| *at).collect();
            assert!(begin <= at[0] && at.is_sorted() && at[2] <= end);
            assert!(at[1] - begin >= pause);
            assert!(matches!(&responses[1].0, Ok(Response::Value(value)) if value.is_empty()));
        }
    });
}

#[test]
fn huge_values_go_both_ways() {
    let node = StubNode::start();
    let addr = node.addr().to_owned();
    in_time(move || {
        let mut client = patient(&addr);
        let mut pipeline = client.pipeline();
        for at in 0..6_u8 {
            pipeline.set(&[at], &vec![at; 8 << 20]);
            for _ in 0..3 {
                pipeline.get(&[at]).ping();
            }
        }
        let responses = pipeline.run().unwrap();
        for (at, group) in (0..6_u8).zip(responses.chunks(7)) {
            assert!(matches!(group[0], Ok(Response::Done)));
            for pair in group[1..].chunks(2) {
                assert!(
                    matches!(&pair[0], Ok(Response::Value(value)) if *value == vec![at; 8 << 20])
                );
                assert!(matches!(pair[1], Ok(Response::Pong)));
            }
        }
    });
}

#[test]
fn refusals_are_in_their_places() {
    let node = StubNode::start();
    let mut client = patient(node.addr());
    let mut pipeline = client.pipeline();
    pipeline
        .set(b"a", b"1")
        .set(b"b", b"refuse it")
        .get(b"b")
        .get(b"a");
    let responses = pipeline.run().unwrap();
    assert!(matches!(responses[0], Ok(Response::Done)));
    assert!(matches!(responses[1], Err(Error::Server { .. })));
    assert!(matches!(responses[2], Ok(Response::NotFound)));
    assert!(matches!(&responses[3], Ok(Response::Value(value)) if value == b"1"));
}

#[test]
fn an_empty_pipeline_is_no_request_and_a_used_one_is_empty() {
    let node = StubNode::start();
    let mut client = patient(node.addr());
    let mut pipeline = client.pipeline();
    assert!(pipeline.is_empty());
    assert_eq!(pipeline.run().unwrap().len(), 0);
    pipeline.set(b"k", b"v");
    assert_eq!(pipeline.run().unwrap().len(), 1);
    assert!(pipeline.is_empty());
    assert_eq!(pipeline.run().unwrap().len(), 0);
    assert_eq!(node.writes(), 1);
}

#[test]
fn nothing_is_sent_when_a_request_fits_no_frame() {
    let node = StubNode::start();
    let mut client = patient(node.addr());
    let mut pipeline = client.pipeline();
    pipeline.set(b"k", b"v").get(&[0; 65_536]);
    let error = pipeline.run().unwrap_err();
    assert!(matches!(error.error, Error::TooLong(_)), "{error:?}");
    assert_eq!(node.writes(), 0);
    assert_eq!(pipeline.run().unwrap().len(), 0);
}

#[test]
fn a_connection_lost_in_the_middle_gives_the_responses_before_it() {
    for whole in [0, 1, 500, 4_999] {
        let peer = Peer::start(move |_, mut stream| {
            for _ in 0..whole {
                next_frame(&mut stream).unwrap();
                stream.write_all(&response(0, b"PONG")).unwrap();
            }
            next_frame(&mut stream).unwrap();
            stream.write_all(&response(0, b"PONG")[..6]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            wait_for_close(&mut stream);
        });
        let mut client = patient(&peer.addr);
        let mut pipeline = client.pipeline();
        for _ in 0..5_000 {
            pipeline.ping();
        }
        let error = pipeline.run().unwrap_err();
        assert_eq!(error.responses.len(), whole);
        assert!(error.responses.iter().all(Result::is_ok));
        assert!(matches!(error.error, Error::Connection { .. }), "{error:?}");
    }
}

#[test]
fn a_response_too_many_is_a_fault() {
    let peer = Peer::start(|_, mut stream| {
        next_frame(&mut stream).unwrap();
        let frames = [
            response(0, b"PONG"),
            response(0, b"PONG"),
            response(0, b"PONG"),
        ];
        next_frame(&mut stream).unwrap();
        stream.write_all(&frames.concat()).unwrap();
        wait_for_close(&mut stream);
    });
    let mut client = Client::connect(&peer.addr).unwrap();
    let error = client.pipeline().ping().ping().run().unwrap_err();
    assert_eq!(error.responses.len(), 2);
    assert!(matches!(error.error, Error::Protocol { .. }), "{error:?}");
}

#[test]
fn a_refusal_in_the_middle_of_a_large_request_is_in_its_place() {
    let peer = Peer::start(|_, mut stream| {
        next_frame(&mut stream).unwrap();
        stream.write_all(&response(0, b"PONG")).unwrap();
        let mut header = [0; 7];
        std::io::Read::read_exact(&mut stream, &mut header).unwrap();
        stream.write_all(&response(1, b"value too long")).unwrap();
    });
    let mut client = patient(&peer.addr);
    let mut pipeline = client.pipeline();
    pipeline.ping().set(b"k", &vec![0; 64 << 20]).ping();
    let error = pipeline.run().unwrap_err();
    assert!(
        matches!(
            &error.responses[..],
            [Ok(Response::Pong), Err(Error::Server { .. })]
        ),
        "{error:?}"
    );
    assert!(matches!(error.error, Error::Connection { .. }), "{error:?}");
}
