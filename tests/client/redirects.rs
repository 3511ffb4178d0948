use std::{
    io::Write,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use gopherstore::client::{Client, ClientOptions, Error, REDIRECTS_MAX, Response, Wait};

use crate::{
    patient,
    support::{
        Peer, StubNode, next_frame, request, response, silent::Silent, unused_addr, wait_for_close,
        wait_until,
    },
    with_timeout,
};

fn stubborn(addr: &str) -> Client {
    let options = ClientOptions {
        follow_redirects: false,
        ..ClientOptions::default()
    };
    Client::connect_with(addr, options).unwrap()
}

fn leader_of(error: &Error) -> Option<&str> {
    match error {
        Error::NotLeader { leader } => leader.as_deref(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_go_to_the_leader_and_reads_to_the_own_node() {
    let leader = StubNode::start();
    let follower = StubNode::follower(leader.addr());
    follower.insert(b"k", b"old");
    let mut client = patient(follower.addr());
    client.set(b"k", b"new").unwrap();
    assert_eq!(leader.value(b"k"), Some(b"new".to_vec()));
    assert_eq!(client.get(b"k").unwrap(), Some(b"old".to_vec()));
    assert!(client.del(b"k").unwrap());
    client.set(b"k", b"again").unwrap();
    // Asked once; after that the way is known.
    assert_eq!((follower.writes(), leader.writes()), (1, 3));
    assert_eq!((follower.reads(), leader.reads()), (1, 0));
    assert_eq!(
        (follower.peer.connections(), leader.peer.connections()),
        (1, 1)
    );
}

#[test]
fn without_redirects_the_leader_is_named() {
    let follower = StubNode::follower("host.example:8000");
    let mut client = stubborn(follower.addr());
    let error = client.set(b"k", b"v").unwrap_err();
    assert_eq!(leader_of(&error), Some("host.example:8000"));
    let responses = client.pipeline().set(b"k", b"v").ping().run().unwrap();
    assert_eq!(
        leader_of(responses[0].as_ref().unwrap_err()),
        Some("host.example:8000")
    );
    assert!(matches!(responses[1], Ok(Response::Pong)));
}

#[test]
fn an_unknown_leader_leads_nowhere() {
    let follower = StubNode::follower("");
    let error = patient(follower.addr()).set(b"k", b"v").unwrap_err();
    assert_eq!(leader_of(&error), None);
    let mut client = patient(follower.addr());
    let responses = client.pipeline().set(b"k", b"v").run().unwrap();
    assert_eq!(leader_of(responses[0].as_ref().unwrap_err()), None);
}

#[test]
fn nodes_that_name_each_other_are_asked_a_bounded_number_of_times() {
    let one = StubNode::start();
    let other = StubNode::follower(one.addr());
    one.follow(Some(other.addr()));
    let asked = usize::try_from(REDIRECTS_MAX).unwrap() + 1;

    let error = patient(one.addr()).set(b"k", b"v").unwrap_err();
    assert!(leader_of(&error).is_some());
    assert_eq!(one.writes() + other.writes(), asked);

    let responses = patient(one.addr())
        .pipeline()
        .set(b"k", b"v")
        .run()
        .unwrap();
    assert!(leader_of(responses[0].as_ref().unwrap_err()).is_some());
    assert_eq!(one.writes() + other.writes(), 2 * asked);

    one.follow(Some(one.addr()));
    let error = patient(one.addr()).set(b"k", b"v").unwrap_err();
    assert_eq!(leader_of(&error), Some(one.addr()));
    assert_eq!(one.writes() + other.writes(), 3 * asked);
}

#[test]
fn a_connection_to_a_former_leader_is_dropped() {
    let old = StubNode::start();
    let new = StubNode::start();
    let home = StubNode::follower(old.addr());
    let mut client = patient(home.addr());
    client.set(b"k", b"1").unwrap();
    old.follow(Some(new.addr()));
    home.follow(Some(new.addr()));
    client.set(b"k", b"2").unwrap();
    assert_eq!(new.value(b"k"), Some(b"2".to_vec()));
    // Home leads now, and the one that led says so.
    new.follow(Some(home.addr()));
    home.follow(None);
    client.set(b"k", b"3").unwrap();
    client.set(b"k", b"4").unwrap();
    assert_eq!(home.value(b"k"), Some(b"4".to_vec()));
    assert_eq!(home.peer.connections(), 1);
}

#[test]
fn after_the_leader_is_gone_the_own_node_is_asked_for_it_again() {
    let old = StubNode::start();
    let new = StubNode::start();
    let home = StubNode::follower(old.addr());
    let mut client = patient(home.addr());
    client.set(b"k", b"1").unwrap();
    drop(old);
    home.follow(Some(new.addr()));
    client.set(b"k", b"2").unwrap();
    assert_eq!(new.value(b"k"), Some(b"2".to_vec()));
}

/// The failure at the leader, where the error says that `home` named it.
fn at_leader<'a>(error: &'a Error, home: &str, named: &str) -> &'a Error {
    let Error::Redirect {
        named_by,
        leader,
        source,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((&**named_by, &**leader), (home, named));
    let text = error.to_string();
    let begin =
        format!("the node at {home} named {named} as the leader, and that address failed: ");
    assert_eq!(text, format!("{begin}{source}"));
    source
}

#[test]
fn a_leader_that_cannot_be_reached_is_named_in_the_error() {
    let gone = unused_addr();
    let home = StubNode::follower(&gone);
    let mut client = patient(home.addr());
    let failures = [
        client.set(b"k", b"v").unwrap_err(),
        client.pipeline().set(b"k", b"v").run().unwrap_err().error,
    ];
    for error in &failures {
        let source = at_leader(error, home.addr(), &gone);
        assert!(
            matches!(source, Error::Connect { addr, .. } if *addr == gone),
            "{error:?}"
        );
        assert!(!error.is_outcome_unknown());
    }
    client.ping().unwrap();
    assert_eq!(home.peer.connections(), 1);
}

#[test]
fn a_failure_of_the_leader_names_the_leader() {
    type Is = fn(&Error) -> bool;
    let cases: [(Vec<u8>, Is); 2] = [
        (Vec::new(), |error| {
            matches!(error, Error::Connection { .. })
        }),
        (response(0, b"v"), |error| {
            matches!(error, Error::Protocol { .. })
        }),
    ];
    for (bytes, is_expected) in cases {
        let leader = Peer::start(move |_, mut stream| {
            next_frame(&mut stream).unwrap();
            stream.write_all(&response(0, b"")).unwrap();
            next_frame(&mut stream).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let home = StubNode::follower(&leader.addr);
        let mut client = patient(home.addr());
        client.set(b"k", b"1").unwrap();
        // On the connection that was made for the write before, too.
        let error = client.set(b"k", b"2").unwrap_err();
        assert!(is_expected(at_leader(&error, home.addr(), &leader.addr)));
        assert!(error.is_outcome_unknown());
        assert_eq!(leader.connections(), 1, "it was sent again");
    }
}

#[test]
fn a_redirect_has_what_is_left_of_the_calls_time() {
    let silent = Silent::start();
    let accepting = Peer::start(|_, mut stream| wait_for_close(&mut stream));
    thread::scope(|scope| {
        let silent = silent.addr.to_string();
        scope.spawn(move || times_out_at_leader(&silent, Wait::Connection));
        scope.spawn(|| times_out_at_leader(&accepting.addr, Wait::Response));
    });
}

fn times_out_at_leader(leader: &str, expected: Wait) {
    let time = Duration::from_secs(4);
    let home = Peer::start({
        let leader = leader.to_owned();
        move |_, mut stream| {
            next_frame(&mut stream).unwrap();
            thread::sleep(time / 2);
            stream.write_all(&response(2, leader.as_bytes())).unwrap();
        }
    });
    let mut client = with_timeout(&home.addr, time);
    let begin = Instant::now();
    let error = client.set(b"k", b"v").unwrap_err();
    let took = begin.elapsed();
    assert!(took >= time && took < time * 5 / 4, "{took:?}");
    match at_leader(&error, &home.addr, leader) {
        Error::Timeout { what, addr, after } => {
            assert_eq!((*what, &**addr, *after), (expected, leader, time));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pipeline_goes_on_at_the_leader_from_the_first_refused_request() {
    let leader = StubNode::start();
    let follower = StubNode::follower(leader.addr());
    follower.insert(b"k", b"at the follower");
    leader.insert(b"k", b"at the leader");
    let mut client = patient(follower.addr());
    let mut pipeline = client.pipeline();
    pipeline
        .get(b"k")
        .set(b"a", b"1")
        .get(b"k")
        .get(b"a")
        .del(b"a")
        .del(b"a");
    let responses: Vec<Response> = pipeline
        .run()
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        responses,
        [
            Response::Value(b"at the follower".to_vec()),
            Response::Done,
            Response::Value(b"at the leader".to_vec()),
            Response::Value(b"1".to_vec()),
            Response::Done,
            Response::NotFound,
        ]
    );
    assert_eq!(leader.writes(), 3);
    // The way is known now: the whole of the next one runs there, unless it only reads.
    let refused = follower.writes();
    let responses = client.pipeline().get(b"k").set(b"a", b"1").run().unwrap();
    assert!(matches!(&responses[0], Ok(Response::Value(value)) if value == b"at the leader"));
    assert_eq!(follower.writes(), refused);
    let responses = client.pipeline().get(b"k").run().unwrap();
    assert!(matches!(&responses[0], Ok(Response::Value(value)) if value == b"at the follower"));
}

#[test]
fn a_long_pipeline_at_a_follower_writes_each_key_once_and_in_order() {
    let leader = StubNode::start();
    let follower = StubNode::follower(leader.addr());
    let mut client = patient(follower.addr());
    let mut pipeline = client.pipeline();
    for at in 0..20_000_u32 {
        pipeline.set(b"k", &at.to_be_bytes()).get(b"k");
    }
    let responses = pipeline.run().unwrap();
    for (at, pair) in (0..20_000_u32).zip(responses.chunks(2)) {
        assert!(matches!(&pair[0], Ok(Response::Done)));
        assert!(matches!(&pair[1], Ok(Response::Value(value)) if *value == at.to_be_bytes()));
    }
    assert_eq!(leader.writes(), 20_000);
    assert!(
        follower.writes() < 2_000,
        "no more than a window was sent in vain"
    );
}

#[test]
fn a_write_that_was_carried_out_is_not_repeated_at_the_leader() {
    // The whole pipeline in one window, and more than one.
    for count in [2, 5_000] {
        becomes_leader_after_the_first_of(count, 0);
    }
}

#[test]
fn a_write_whose_outcome_is_unknown_is_not_repeated_at_the_leader() {
    becomes_leader_after_the_first_of(2, 0x99);
}

fn becomes_leader_after_the_first_of(count: usize, status: u8) {
    let leader = StubNode::start();
    let seen = Arc::new(Mutex::new(0));
    // Becomes the leader between the first write and the second.
    let home = Peer::start({
        let leader = leader.addr().to_owned();
        let seen = Arc::clone(&seen);
        move |_, mut stream| {
            while let Some(frame) = next_frame(&mut stream) {
                request(&frame);
                *seen.lock().unwrap() += 1;
                let out = match *seen.lock().unwrap() {
                    1 => response(2, leader.as_bytes()),
                    _ => response(status, b""),
                };
                stream.write_all(&out).unwrap();
            }
        }
    });
    let mut client = patient(&home.addr);
    let mut pipeline = client.pipeline();
    for _ in 0..count {
        pipeline.set(b"k", b"v");
    }
    let responses = pipeline.run().unwrap();
    assert_eq!(
        leader_of(responses[0].as_ref().unwrap_err()),
        Some(leader.addr())
    );
    assert!(
        responses[1..]
            .iter()
            .all(|response| response.is_ok() == (status == 0))
    );
    wait_until("all of them", || *seen.lock().unwrap() == count);
    assert_eq!(leader.writes(), 0);
}

#[test]
fn orders_for_one_node_go_to_no_other() {
    let leader = StubNode::start();
    leader.set_refusing();
    let follower = StubNode::start();
    follower.set_refusing();
    let mut client = patient(follower.addr());
    assert_eq!(
        client.status().unwrap(),
        "node: n1\nstate: refused\nkeys: 0\n"
    );
    client.discard().unwrap();
    let error = client.discard().unwrap_err();
    assert!(matches!(error, Error::Server { .. }), "{error:?}");
    assert_eq!(
        client.status().unwrap(),
        "node: n1\nstate: serving\nkeys: 0\n"
    );
    // The way to the leader is known.
    follower.follow(Some(leader.addr()));
    client.set(b"k", b"v").unwrap();
    assert!(client.discard().is_err());
    assert_eq!((follower.discards(), leader.discards()), (3, 0));
    // No node answers so, and if one did, the order would not be for whom it names.
    let odd = Peer::start({
        let leader = leader.addr().to_owned();
        move |_, mut stream| {
            while next_frame(&mut stream).is_some() {
                stream.write_all(&response(2, leader.as_bytes())).unwrap();
            }
        }
    });
    let error = patient(&odd.addr).discard().unwrap_err();
    assert_eq!(leader_of(&error), Some(leader.addr()));
    assert_eq!(leader.discards(), 0);
}
