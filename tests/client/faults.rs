use std::{
    error::Error as _,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use gopherstore::{
    client::{
        Client, ClientOptions, Direction, Error, FrameHook, ProtocolError, Wait, Watch, Watcher,
    },
    wire::{
        EncodeError,
        comparison::{Buckets, ComparisonError, List, Place, Sums},
    },
};

use crate::{
    patient,
    support::{
        PATIENCE, Peer, StubNode, next_frame, response, silent::Silent, unused_addr,
        wait_for_close, wait_until,
    },
    with_timeout,
};

const SHORT: Duration = Duration::from_millis(50);

/// Answers every request with `bytes`.
fn repeat(mut stream: TcpStream, bytes: &[u8]) {
    while next_frame(&mut stream).is_some() {
        if stream.write_all(bytes).is_err() {
            break;
        }
    }
}

#[test]
fn the_four_operations() {
    let node = StubNode::start();
    let mut client = patient(node.addr());
    client.ping().unwrap();
    assert_eq!(client.get(b"k\xff\x00").unwrap(), None);
    client.set(b"k\xff\x00", b"v\x00").unwrap();
    assert_eq!(client.get(b"k\xff\x00").unwrap(), Some(b"v\x00".to_vec()));
    assert!(client.del(b"k\xff\x00").unwrap());
    assert!(!client.del(b"k\xff\x00").unwrap());
    client.set(b"", b"").unwrap();
    assert_eq!(client.get(b"").unwrap(), Some(Vec::new()));
    let large: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_be_bytes).collect();
    client.set(&[7; 65_535], &large).unwrap();
    assert!(client.get(&[7; 65_535]).unwrap() == Some(large));
    assert_eq!(node.peer.connections(), 1);
}

#[test]
fn a_response_cut_at_any_byte_is_a_lost_connection_and_the_next_call_makes_a_new_one() {
    let whole = response(0, b"value");
    for cut in 0..=whole.len() {
        let peer = Peer::start({
            let whole = whole.clone();
            move |number, mut stream| {
                if number == 0 {
                    next_frame(&mut stream).unwrap();
                    stream.write_all(&whole[..cut]).unwrap();
                } else {
                    repeat(stream, &whole);
                }
            }
        });
        let mut client = patient(&peer.addr);
        let first = client.get(b"k");
        if cut == whole.len() {
            assert_eq!(first.unwrap(), Some(b"value".to_vec()));
        } else {
            let error = first.unwrap_err();
            let Error::Connection { source, .. } = &error else {
                panic!("cut at {cut}: {error:?}");
            };
            assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
            assert!(error.source().is_some());
            assert_eq!(client.get(b"k").unwrap(), Some(b"value".to_vec()));
            assert_eq!(peer.connections(), 2);
        }
    }
}

#[test]
fn a_response_in_single_bytes_is_whole() {
    let peer = Peer::start(|_, mut stream| {
        while next_frame(&mut stream).is_some() {
            for byte in response(0, b"value") {
                stream.write_all(&[byte]).unwrap();
            }
        }
    });
    let mut client = patient(&peer.addr);
    for _ in 0..20 {
        assert_eq!(client.get(b"k").unwrap(), Some(b"value".to_vec()));
    }
}

#[test]
fn silence_ends_at_the_timeout() {
    for sent in [0, 3, 7] {
        let peer = Peer::start(move |_, mut stream| {
            next_frame(&mut stream).unwrap();
            stream.write_all(&response(0, b"value")[..sent]).unwrap();
            wait_for_close(&mut stream);
        });
        let mut client = with_timeout(&peer.addr, SHORT);
        let start = Instant::now();
        let error = client.get(b"k").unwrap_err();
        assert!(start.elapsed() >= SHORT);
        assert!(
            matches!(
                &error,
                Error::Timeout { what: Wait::Response, addr, after }
                    if *addr == peer.addr && *after == SHORT
            ),
            "{error:?}"
        );
    }
}

#[test]
fn the_timeout_is_for_connecting_too() {
    let silent = Silent::start();
    let addr = silent.addr.to_string();
    let options = |connect_timeout, timeout| ClientOptions {
        connect_timeout,
        timeout,
        ..ClientOptions::default()
    };
    let whole = options(PATIENCE, SHORT);
    let one = options(SHORT, PATIENCE);
    let mut client = Client::unconnected(&addr, whole.clone());
    let start = Instant::now();
    let failures = [
        client.get(b"k").unwrap_err(),
        client.pipeline().set(b"k", b"v").run().unwrap_err().error,
        Watcher::open(&addr, &whole, Watch::default()).unwrap_err(),
        Client::connect_with(&addr, one.clone()).unwrap_err(),
        Client::unconnected(&addr, one).ping().unwrap_err(),
    ];
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    for error in failures {
        let Error::Timeout {
            what: Wait::Connection,
            addr: named,
            after: SHORT,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(*named, addr);
        assert!(!error.is_outcome_unknown());
    }
}

#[test]
fn the_timeout_is_for_the_whole_response_and_not_for_each_byte() {
    let peer = Peer::start(|_, mut stream| {
        next_frame(&mut stream).unwrap();
        // A value of 4 GiB, a byte at a time, faster than the timeout.
        let mut bytes = vec![0, 0xff, 0xff, 0xff, 0xff];
        while stream.write_all(&bytes).is_ok() {
            bytes = vec![0];
            thread::sleep(Duration::from_millis(5));
        }
    });
    let mut client = with_timeout(&peer.addr, 3 * SHORT);
    let start = Instant::now();
    let error = client.get(b"k").unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                what: Wait::Response,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(start.elapsed() < 200 * SHORT);
}

#[test]
fn a_peer_that_takes_no_bytes_is_a_timeout_too() {
    let (done, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let peer = Peer::start(move |_, _stream| {
        let _ = wait.lock().unwrap().recv();
    });
    let mut client = with_timeout(&peer.addr, SHORT);
    let error = client.set(b"k", &vec![0; 64 << 20]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                what: Wait::Request,
                ..
            }
        ),
        "{error:?}"
    );
    drop(done);
}

#[test]
fn a_late_response_is_never_taken_for_another_requests() {
    let peer = Peer::start(|number, mut stream| {
        if number == 0 {
            next_frame(&mut stream).unwrap();
            wait_for_close(&mut stream);
            let _ = stream.write_all(&response(0, b"late"));
        } else {
            repeat(stream, &response(0, b"own"));
        }
    });
    // The second response has to come within it, from a thread that starts meanwhile.
    let mut client = with_timeout(&peer.addr, 20 * SHORT);
    assert!(matches!(client.get(b"a"), Err(Error::Timeout { .. })));
    assert_eq!(client.get(b"b").unwrap(), Some(b"own".to_vec()));
    assert_eq!(peer.connections(), 2);
}

#[test]
fn wrong_responses_are_faults_and_end_the_connection() {
    type Call = fn(&mut Client) -> Result<(), Error>;
    let get: Call = |client| client.get(b"k").map(drop);
    let set: Call = |client| client.set(b"k", b"v");
    let ping: Call = Client::ping;
    let twice = [response(0, b"PONG"), response(0, b"PONG")].concat();
    let cases: [(&str, Vec<u8>, Call); 7] = [
        ("text", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), get),
        ("a single byte of text", b"-".to_vec(), get),
        ("OK with a value to a SET", response(0, b"v"), set),
        ("not PONG", response(0, b"PANG"), ping),
        ("NOT_FOUND to a PING", response(3, b""), ping),
        ("no address", response(2, b"nowhere"), set),
        ("two responses to one request", twice, ping),
    ];
    for (name, bytes, call) in cases {
        let peer = Peer::start({
            let bytes = bytes.clone();
            move |number, mut stream| {
                next_frame(&mut stream).unwrap();
                if number == 0 {
                    stream.write_all(&bytes).unwrap();
                    wait_for_close(&mut stream);
                } else {
                    stream.write_all(&response(0, b"PONG")).unwrap();
                }
            }
        });
        let mut client = patient(&peer.addr);
        let error = call(&mut client).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{name}: {error:?}");
        client.ping().unwrap();
        assert_eq!(peer.connections(), 2, "{name}");
    }
}

#[test]
fn bytes_that_nobody_asked_for_do_not_become_a_response() {
    let (sent, wait) = mpsc::channel();
    let peer = Peer::start(move |number, mut stream| {
        next_frame(&mut stream).unwrap();
        if number == 0 {
            stream.write_all(&response(0, b"PONG")).unwrap();
            stream.write_all(&response(0, b"unasked")).unwrap();
            sent.send(()).unwrap();
            wait_for_close(&mut stream);
        } else {
            stream.write_all(&response(0, b"asked")).unwrap();
        }
    });
    let mut client = patient(&peer.addr);
    match client.ping() {
        Ok(()) => {}
        // Both came at once.
        Err(Error::Protocol { source, .. }) => {
            assert_eq!(source, ProtocolError::Unrequested { len: 12 });
        }
        Err(error) => panic!("{error:?}"),
    }
    wait.recv().unwrap();
    assert_eq!(client.get(b"k").unwrap(), Some(b"asked".to_vec()));
}

#[test]
fn refusals_keep_the_connection() {
    let peer = Peer::start(|_, mut stream| {
        for (status, value) in [
            (1, "too large"),
            (4, "wait"),
            (7, "it leads no more"),
            (0x77 + 0x80, "later"),
        ] {
            next_frame(&mut stream).unwrap();
            stream
                .write_all(&response(status, value.as_bytes()))
                .unwrap();
        }
        repeat(stream, &response(0, b""));
    });
    let mut client = patient(&peer.addr);
    let mut fail = || client.set(b"k", b"v").unwrap_err();
    assert!(matches!(fail(), Error::Server { message } if message == "too large"));
    assert!(matches!(fail(), Error::Loading { message } if message == "wait"));
    let timeout = fail();
    assert!(timeout.is_outcome_unknown());
    assert!(matches!(timeout, Error::OutcomeUnknown { message } if message == "it leads no more"));
    assert!(matches!(fail(), Error::UnknownStatus { status: 0xf7, message } if message == "later"));
    client.set(b"k", b"v").unwrap();
    assert_eq!(peer.connections(), 1);
}

#[test]
fn a_connection_that_was_closed_while_idle_is_replaced_before_anything_is_sent() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let peer = Peer::start({
        let seen = Arc::clone(&seen);
        move |number, mut stream| {
            let frame = next_frame(&mut stream).unwrap();
            seen.lock().unwrap().push((number, frame));
            stream.write_all(&response(0, b"")).unwrap();
        }
    });
    let mut client = patient(&peer.addr);
    for round in 1..=5 {
        client.set(b"k", b"v").unwrap();
        wait_until("the end of the connection", || peer.open_connections() == 0);
        assert_eq!(seen.lock().unwrap().len(), round);
    }
    let connections: Vec<usize> = seen.lock().unwrap().iter().map(|seen| seen.0).collect();
    assert_eq!(connections, [0, 1, 2, 3, 4]);
}

#[test]
fn a_write_of_unknown_outcome_is_not_sent_again() {
    let seen = Arc::new(Mutex::new(0));
    let peer = Peer::start({
        let seen = Arc::clone(&seen);
        move |_, mut stream| {
            if next_frame(&mut stream).is_some() {
                *seen.lock().unwrap() += 1;
            }
        }
    });
    let mut client = patient(&peer.addr);
    let error = client.set(b"k", b"v").unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    assert_eq!(*seen.lock().unwrap(), 1);
    assert_eq!(peer.connections(), 1);
}

#[test]
fn a_refusal_on_the_header_arrives_though_the_request_was_not_taken() {
    let peer = Peer::start(|number, mut stream| {
        let mut header = [0; 7];
        stream.read_exact(&mut header).unwrap();
        if number == 0 {
            stream.write_all(&response(1, b"value too long")).unwrap();
        } else {
            stream.write_all(&response(0, b"PONG")).unwrap();
        }
    });
    let mut client = patient(&peer.addr);
    let error = client.set(b"k", &vec![0; 64 << 20]).unwrap_err();
    assert!(
        matches!(&error, Error::Server { message } if message == "value too long"),
        "{error:?}"
    );
    client.ping().unwrap();
    assert_eq!(peer.connections(), 2);
}

#[test]
fn a_refusal_from_a_node_that_reads_no_more_is_not_waited_for_until_the_timeout() {
    let (done, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let peer = Peer::start(move |_, mut stream| {
        stream.read_exact(&mut [0; 7]).unwrap();
        stream.write_all(&response(1, b"value too long")).unwrap();
        let _ = wait.lock().unwrap().recv();
    });
    let mut client = patient(&peer.addr);
    let start = Instant::now();
    let error = client.set(b"k", &vec![0; 64 << 20]).unwrap_err();
    assert!(
        matches!(&error, Error::Server { message } if message == "value too long"),
        "{error:?}"
    );
    assert!(start.elapsed() < PATIENCE / 2);
    drop(done);
}

#[test]
fn values_too_long_for_a_frame_are_not_sent() {
    let node = StubNode::start();
    let mut client = patient(node.addr());
    let error = client.set(&[0; 65_536], b"").unwrap_err();
    assert!(matches!(
        error,
        Error::TooLong(EncodeError::KeyTooLong { len: 65_536 })
    ));
    client.ping().unwrap();
    assert_eq!(node.writes(), 0);
}

#[test]
fn an_address_without_a_node_is_a_refused_connection() {
    for addr in [
        unused_addr(),
        format!("localhost:{}", unused_addr().split(':').nth(1).unwrap()),
    ] {
        let error = Client::connect(&addr).unwrap_err();
        let Error::Connect {
            addr: named,
            source,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (named, source.kind()),
            (&addr, io::ErrorKind::ConnectionRefused)
        );
    }
    let error = Client::connect("no port").unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[test]
fn every_address_of_a_name_is_tried() {
    // Where `localhost` is ::1 first, nothing listens there.
    let node = StubNode::start();
    let port = node.addr().rsplit_once(':').unwrap().1;
    patient(&format!("localhost:{port}")).ping().unwrap();
}

#[test]
fn an_unconnected_client_connects_when_it_is_used_and_again_after_a_refusal() {
    let node = StubNode::start();
    let mut client = Client::unconnected(node.addr(), ClientOptions::default());
    assert_eq!(node.peer.connections(), 0);
    client.ping().unwrap();
    assert_eq!(node.peer.connections(), 1);
}

#[test]
fn the_hook_sees_every_frame_and_faulty_bytes() {
    let peer = Peer::start(|_, mut stream| {
        next_frame(&mut stream).unwrap();
        stream.write_all(&response(0, b"PONG")).unwrap();
        next_frame(&mut stream).unwrap();
        stream.write_all(&response(0, b"value")[..6]).unwrap();
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = FrameHook::new({
        let seen = Arc::clone(&seen);
        let addr = peer.addr.clone();
        move |frame| {
            assert_eq!(frame.addr, addr);
            seen.lock()
                .unwrap()
                .push((frame.direction, frame.bytes.to_vec()));
        }
    });
    let options = ClientOptions {
        on_frame: Some(hook),
        ..ClientOptions::default()
    };
    let mut client = Client::connect_with(&peer.addr, options).unwrap();
    client.ping().unwrap();
    client.get(b"k").unwrap_err();
    assert_eq!(
        *seen.lock().unwrap(),
        [
            (Direction::Sent, b"\x04\0\0\0\0\0\0".to_vec()),
            (Direction::Received, b"\0\0\0\0\x04PONG".to_vec()),
            (Direction::Sent, b"\x02\0\x01\0\0\0\0k".to_vec()),
            (Direction::Received, b"\0\0\0\0\x05v".to_vec()),
        ]
    );
}

/// A walk through a node's entries comes to an end, whatever the node answers.
#[test]
fn a_wrong_response_to_sums_or_list_is_a_broken_protocol() {
    let fields = |partition: u32| {
        let mut value = vec![0; 18];
        value[11] = 4;
        value[12..16].copy_from_slice(&partition.to_be_bytes());
        value
    };
    let sums_of = |partition| [fields(partition), vec![0; 16]].concat();
    let fault = |result: Result<(), Error>| match result.unwrap_err() {
        Error::Protocol {
            source: ProtocolError::Comparison(error),
            ..
        } => error,
        error => panic!("{error:?}"),
    };
    for (value, expected) in [
        (sums_of(2), ComparisonError::Standstill),
        (sums_of(1), ComparisonError::Standstill),
        (
            fields(3),
            ComparisonError::Cut {
                len: 18,
                needed: 34,
            },
        ),
        (vec![], ComparisonError::Cut { len: 0, needed: 18 }),
    ] {
        let (value, good) = (response(0, &value), response(0, &sums_of(3)));
        let peer = Peer::start(move |number, stream| {
            repeat(stream, if number == 0 { &value } else { &good });
        });
        let mut client = patient(&peer.addr);
        let place = Place {
            incarnation: 0,
            partition: 2,
            from: b"k".to_vec(),
        };
        let request = Sums { place, bits: 0 };
        assert_eq!(fault(client.sums(&request).map(drop)), expected);
        // Nothing that comes on that connection is trusted any more.
        assert_eq!(client.sums(&request).unwrap().sums, [0]);
        assert_eq!(peer.connections(), 2);
    }
    let value = response(0, &fields(0));
    let peer = Peer::start(move |_, stream| repeat(stream, &value));
    let mut client = patient(&peer.addr);
    let request = List::Some {
        place: Place::default(),
        buckets: Buckets::none(0),
    };
    let standstill = fault(client.list(&request).map(drop));
    assert_eq!(standstill, ComparisonError::Standstill);
    assert_eq!(client.list(&List::One(b"k".to_vec())).unwrap().items, []);
}
