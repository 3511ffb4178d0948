//! The client of a cluster: what it repeats, where, and for how long.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use gopherstore::{
    client::{Cluster, ClusterError, ClusterOptions, ClusterResult, Error},
    wire::{Opcode, Request, Status, SyncRequest, Token},
};

use crate::support::{
    PATIENCE, Peer, next_frame, request, response, silent::Silent, unused_addr, wait_until,
};

/// The action of a fake node for a request of the client, other than STATUS.
#[derive(Clone, Debug)]
enum Deed {
    Answer(Status, Vec<u8>),
    /// Ends the connection without an answer.
    Close,
    /// Never answers.
    Silence,
}

#[derive(Debug, Default)]
struct State {
    /// The address that it names as the leader; none where it leads.
    leader: Option<String>,
    /// The next deeds, before it does what its role says.
    deeds: Vec<Deed>,
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Time before each answer.
    delay: Duration,
    /// How often each operation came, refused ones too.
    asked: BTreeMap<&'static str, usize>,
}

/// A node that plays a role.
struct Fake {
    peer: Peer,
    state: Arc<Mutex<State>>,
}

impl Fake {
    fn start() -> Fake {
        let state = Arc::new(Mutex::new(State::default()));
        let peer = Peer::start({
            let state = Arc::clone(&state);
            move |_, stream| serve(&state, stream)
        });
        Fake { peer, state }
    }

    fn following(leader: &str) -> Fake {
        let fake = Fake::start();
        fake.follow(Some(leader));
        fake
    }

    fn addr(&self) -> &str {
        &self.peer.addr
    }

    fn follow(&self, leader: Option<&str>) {
        self.state.lock().unwrap().leader = leader.map(str::to_owned);
    }

    /// Does these things first, with the next requests.
    fn will(&self, deeds: &[Deed]) {
        self.state.lock().unwrap().deeds = deeds.to_vec();
    }

    fn asked(&self, opcode: Opcode) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.get(opcode.name()).copied().unwrap_or(0)
    }

    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.lock().unwrap().map.get(key).cloned()
    }
}

fn serve(state: &Mutex<State>, mut stream: TcpStream) {
    while let Some(frame) = next_frame(&mut stream) {
        let (deed, delay) = {
            let mut state = state.lock().unwrap();
            (state.deed(&request(&frame)), state.delay)
        };
        thread::sleep(delay);
        match deed {
            Deed::Answer(status, value) => {
                if stream.write_all(&response(status.byte(), &value)).is_err() {
                    return;
                }
            }
            Deed::Close => {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Deed::Silence => {}
        }
    }
}

impl State {
    fn deed(&mut self, request: &Request<'_>) -> Deed {
        *self.asked.entry(request.opcode().name()).or_default() += 1;
        if request.opcode() == Opcode::Status {
            let text = match &self.leader {
                None => "role: leader\nstate: serving\n".to_owned(),
                Some(leader) => format!("role: follower\nstate: serving\nleader: {leader}\n"),
            };
            return Deed::Answer(Status::Ok, text.into_bytes());
        }
        if !self.deeds.is_empty() {
            return self.deeds.remove(0);
        }
        if let Some(leader) = &self.leader
            && request.opcode().spec().writes
        {
            return Deed::Answer(Status::NotLeader, leader.clone().into_bytes());
        }
        let (key, value) = (request.key().to_vec(), request.value().to_vec());
        match request.opcode() {
            Opcode::Set => {
                self.map.insert(key, value);
                Deed::Answer(Status::Ok, Vec::new())
            }
            Opcode::Get => match self.map.get(&key) {
                Some(value) => Deed::Answer(Status::Ok, value.clone()),
                None => Deed::Answer(Status::NotFound, Vec::new()),
            },
            Opcode::Sync => match SyncRequest::decode(&value).unwrap() {
                SyncRequest::Position | SyncRequest::Durable { .. } => {
                    Deed::Answer(Status::Ok, TOKEN.encode().to_vec())
                }
                SyncRequest::At { token, .. } => Deed::Answer(Status::Ok, token.encode().to_vec()),
            },
            other => panic!("no {other:?} is expected"),
        }
    }
}

const TOKEN: Token = Token {
    epoch: 1,
    index: 7,
    nonce: 9,
};

fn loading() -> Deed {
    Deed::Answer(Status::Loading, b"not yet".to_vec())
}

/// A client whose limits never strike in a test that is about something else.
fn patient<'a>(addrs: impl IntoIterator<Item = &'a str>) -> Cluster {
    with_timeout(addrs, PATIENCE)
}

fn with_timeout<'a>(addrs: impl IntoIterator<Item = &'a str>, timeout: Duration) -> Cluster {
    let options = ClusterOptions {
        timeout,
        attempt_timeout: PATIENCE,
        connect_timeout: PATIENCE,
        ..ClusterOptions::default()
    };
    Cluster::with_options(addrs, options)
}

#[track_caller]
fn is_unknown<T: std::fmt::Debug>(result: ClusterResult<T>) {
    match result {
        Err(ClusterError::OutcomeUnknown { source }) => assert!(source.is_outcome_unknown()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_leader_is_found_and_asked_directly_from_then_on() {
    let leader = Fake::start();
    let followers = [
        Fake::following(leader.addr()),
        Fake::following(leader.addr()),
    ];
    // By its followers alone, which name it.
    let mut cluster = patient(followers.iter().map(Fake::addr));
    assert_eq!(cluster.leader(), None);
    cluster.set(b"k", b"1").unwrap();
    assert_eq!(cluster.leader(), Some(leader.addr()));
    cluster.set(b"k", b"2").unwrap();
    assert_eq!(cluster.get(b"k").unwrap(), Some(b"2".to_vec()));
    assert_eq!(
        (
            followers[0].asked(Opcode::Set),
            followers[1].asked(Opcode::Set)
        ),
        (1, 0)
    );
    assert_eq!(
        (leader.asked(Opcode::Set), leader.asked(Opcode::Get)),
        (2, 1)
    );
    assert_eq!(leader.peer.connections(), 1);
    // Also by one that only reads.
    let mut reader = patient([followers[1].addr(), leader.addr()]);
    assert_eq!(reader.get(b"k").unwrap(), Some(b"2".to_vec()));
    assert_eq!(reader.get(b"none").unwrap(), None);
    assert_eq!(reader.leader(), Some(leader.addr()));
    assert_eq!(
        (
            followers[1].asked(Opcode::Status),
            leader.asked(Opcode::Status)
        ),
        (1, 1)
    );
    assert_eq!(followers[1].asked(Opcode::Get), 0);
}

#[test]
fn it_follows_the_leader_when_leadership_moves() {
    let nodes = [Fake::start(), Fake::start(), Fake::start()];
    let lead = |leader: usize| {
        for (at, node) in nodes.iter().enumerate() {
            node.follow((at != leader).then(|| nodes[leader].addr()));
        }
    };
    lead(0);
    let mut cluster = patient(nodes.iter().map(Fake::addr));
    for round in 0..6_u8 {
        let leader = usize::from(round * 2 % 3);
        lead(leader);
        cluster.set(b"k", &[round]).unwrap();
        assert_eq!(nodes[leader].value(b"k"), Some(vec![round]));
        assert_eq!(cluster.leader(), Some(nodes[leader].addr()));
        assert_eq!(cluster.get(b"k").unwrap(), Some(vec![round]));
    }
}

#[test]
fn nodes_that_refuse_connections_or_load_are_passed_over_until_one_serves() {
    let (gone, leader) = (unused_addr(), Fake::start());
    let follower = Fake::following(&gone);
    leader.will(&[loading(), loading(), loading(), loading()]);
    let mut cluster = patient([&*gone, follower.addr(), leader.addr()]);
    cluster.set(b"k", b"v").unwrap();
    assert_eq!(leader.value(b"k"), Some(b"v".to_vec()));
    assert_eq!(leader.asked(Opcode::Set), 5, "it was executed once");
    leader.will(&[loading()]);
    assert_eq!(cluster.get(b"k").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn a_write_without_a_response_is_not_repeated_and_a_read_is() {
    let (leader, other) = (Fake::start(), Fake::start());
    let mut cluster = patient([leader.addr(), other.addr()]);
    let unknown = Deed::Answer(Status::Timeout, b"the epoch has ended".to_vec());
    for deed in [Deed::Close, unknown.clone()] {
        let before = leader.asked(Opcode::Set) + other.asked(Opcode::Set);
        leader.will(std::slice::from_ref(&deed));
        other.will(std::slice::from_ref(&deed));
        is_unknown(cluster.set(b"k", b"v"));
        let after = leader.asked(Opcode::Set) + other.asked(Opcode::Set);
        assert_eq!(after, before + 1, "{deed:?}");
    }
    // The client goes on with the next call.
    leader.will(&[]);
    other.will(&[]);
    cluster.set(b"k", b"v").unwrap();
    for deed in [Deed::Close, unknown] {
        leader.will(std::slice::from_ref(&deed));
        other.will(std::slice::from_ref(&deed));
        assert!(cluster.get(b"k").is_ok(), "{deed:?}");
    }
}

#[test]
fn a_write_that_was_not_sent_whole_is_repeated() {
    let leader = Fake::start();
    let large = vec![b'v'; 32 << 20];
    // Takes a part of the request, and goes.
    let cutting = Peer::start(|_, stream| {
        let mut part = [0; 1_000];
        let _ = std::io::Read::read(&mut &stream, &mut part);
        let _ = stream.shutdown(Shutdown::Both);
    });
    let mut cluster = patient([&*cutting.addr, leader.addr()]);
    cluster.set(b"k", &large).unwrap();
    assert_eq!(leader.asked(Opcode::Set), 1);
    assert!(leader.value(b"k") == Some(large));
}

#[test]
fn a_refusal_is_returned_at_once() {
    let (leader, other) = (Fake::start(), Fake::start());
    let mut cluster = patient([leader.addr(), other.addr()]);
    for (status, value) in [
        (Status::Error, &b"no"[..]),
        (Status::Full, b"full"),
        (Status::Lost, b"lost"),
        (Status::Compacted, &[0; 8]),
    ] {
        leader.will(&[Deed::Answer(status, value.to_vec())]);
        match cluster.set(b"k", b"v") {
            Err(ClusterError::Refused { source }) => assert!(!source.is_outcome_unknown()),
            other => panic!("{other:?}"),
        }
    }
    let key = vec![0; 70_000];
    let refused = cluster.get(&key);
    assert!(
        matches!(
            &refused,
            Err(ClusterError::Refused {
                source: Error::TooLong(_)
            })
        ),
        "{refused:?}"
    );
    assert_eq!(leader.asked(Opcode::Set), 4);
    assert_eq!(other.peer.connections(), 0);
}

#[test]
fn nothing_is_tried_for_longer_than_the_timeout_nor_more_often_than_the_pauses_allow() {
    let (gone, timeout) = (unused_addr(), Duration::from_millis(1_500));
    let one = Fake::start();
    let other = Fake::following(one.addr());
    // They name each other, and one that is gone.
    one.follow(Some(other.addr()));
    let third = Fake::following(&gone);
    let mut cluster = with_timeout([one.addr(), third.addr(), &*gone], timeout);
    let begin = Instant::now();
    let error = cluster.set(b"k", b"v").unwrap_err();
    let took = begin.elapsed();
    assert!(took >= timeout && took < timeout * 4, "{took:?}");
    let text = error.to_string();
    let ClusterError::Unavailable { after, failures } = error else {
        panic!("{error:?}");
    };
    assert_eq!(after, timeout);
    assert!(
        text.starts_with("no node executed the request within 1.5s; "),
        "{text}"
    );
    assert!(!failures.is_empty() && failures.iter().all(|(addr, _)| text.contains(&**addr)));
    // The pauses of half a second at most are at least 5, 10, 20, 40, 80, 160 and 250 ms long.
    let asked = [&one, &other, &third].map(|node| node.asked(Opcode::Set));
    assert!(asked.iter().sum::<usize>() <= 60, "{asked:?}");
}

/// STATUS and both reads are answered within the limit of an attempt, but not together.
#[test]
fn the_requests_of_an_attempt_have_one_limit_together() {
    let leader = Fake::start();
    let limit = Duration::from_millis(500);
    leader.state.lock().unwrap().delay = limit * 2 / 5;
    let options = ClusterOptions {
        timeout: limit,
        attempt_timeout: limit,
        connect_timeout: PATIENCE,
        on_frame: None,
    };
    let mut cluster = Cluster::with_options([leader.addr()], options);
    let result = cluster.read(|client| {
        client.get(b"a")?;
        client.get(b"b")
    });
    assert!(
        matches!(result, Err(ClusterError::Unavailable { .. })),
        "{result:?}"
    );
}

#[test]
fn a_silent_node_leaves_time_for_another_one() {
    let silent = Silent::start();
    let leader = Fake::start();
    let options = ClusterOptions {
        timeout: PATIENCE,
        attempt_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(200),
        on_frame: None,
    };
    let addrs = [silent.addr.to_string(), leader.addr().to_owned()];
    let mut cluster = Cluster::with_options(addrs.clone(), options.clone());
    let begin = Instant::now();
    cluster.set(b"k", b"v").unwrap();
    assert_eq!(cluster.get(b"k").unwrap(), Some(b"v".to_vec()));
    // A read that is not answered, too, but not a write.
    let mute = Fake::start();
    mute.will(&[Deed::Silence]);
    let addrs = [mute.addr().to_owned(), leader.addr().to_owned()];
    let mut cluster = Cluster::with_options(addrs, options.clone());
    assert_eq!(cluster.get(b"k").unwrap(), Some(b"v".to_vec()));
    assert!(begin.elapsed() < PATIENCE / 2);
    mute.will(&[Deed::Silence]);
    let timeout = Duration::from_millis(600);
    let options = ClusterOptions { timeout, ..options };
    let mut cluster = Cluster::with_options([mute.addr(), leader.addr()], options);
    let begin = Instant::now();
    is_unknown(cluster.set(b"k", b"v"));
    assert!(
        begin.elapsed() >= timeout,
        "it waits as long as the call may take"
    );
}

#[test]
fn a_read_at_a_token_goes_to_any_node_that_has_it_and_to_the_leader_at_last() {
    let leader = Fake::start();
    let (late, lost) = (
        Fake::following(leader.addr()),
        Fake::following(leader.addr()),
    );
    let mut cluster = patient([leader.addr(), late.addr(), lost.addr()]);
    cluster.set(b"k", b"v").unwrap();
    let token = cluster.position().unwrap();
    assert_eq!(token, TOKEN);
    // The follower that is asked first has it.
    lost.state
        .lock()
        .unwrap()
        .map
        .insert(b"k".to_vec(), b"copy".to_vec());
    let read = |cluster: &mut Cluster| cluster.read_at(token, |node| node.get(b"k"));
    assert_eq!(read(&mut cluster).unwrap(), Some(b"copy".to_vec()));
    assert_eq!(read(&mut cluster).unwrap(), Some(b"copy".to_vec()));
    assert_eq!(
        (leader.asked(Opcode::Get), lost.asked(Opcode::Sync)),
        (0, 2)
    );
    // Neither has it.
    lost.will(&[Deed::Answer(Status::Lost, b"another history".to_vec())]);
    late.will(&[Deed::Answer(Status::Timeout, b"late".to_vec())]);
    assert_eq!(read(&mut cluster).unwrap(), Some(b"v".to_vec()));
    assert_eq!(leader.asked(Opcode::Get), 1);
    // The leader's word counts.
    let gone = Deed::Answer(Status::Lost, b"it was not kept".to_vec());
    for node in [&leader, &late, &lost] {
        node.will(&[gone.clone(), gone.clone()]);
    }
    match read(&mut cluster) {
        Err(ClusterError::Refused {
            source: Error::Lost { message },
        }) => {
            assert_eq!(message, "it was not kept");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_wait_of_a_sync_counts_in_addition_to_the_timeout_of_the_client() {
    let late = Duration::from_millis(400);
    let node = Peer::start(move |_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            let is_sync = request(&frame).opcode() == Opcode::Sync;
            if is_sync {
                // Until the client has gone, or has waited for longer than its timeout.
                stream.set_read_timeout(Some(late)).unwrap();
                let _ = stream.peek(&mut [0]);
                stream.set_read_timeout(None).unwrap();
            }
            let value = if is_sync {
                TOKEN.encode().to_vec()
            } else {
                b"PONG".to_vec()
            };
            if stream.write_all(&response(0, &value)).is_err() {
                return;
            }
        }
    });
    let timeout = late / 2;
    let mut client = crate::with_timeout(&node.addr, timeout);
    let sync = |timeout_ms| {
        SyncRequest::At {
            token: TOKEN,
            timeout_ms,
        }
        .value()
    };
    assert_eq!(client.sync_at(TOKEN, late * 20).unwrap(), TOKEN);
    let value = &sync(8_000);
    let mut pipeline = client.pipeline();
    pipeline.ping().request(&Request::Sync { value }).ping();
    let responses = pipeline.run().unwrap();
    assert!(responses.iter().all(Result::is_ok), "{responses:?}");
    // Without that wait the limit holds.
    let error = client.sync_at(TOKEN, Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    let value = &sync(0);
    let mut pipeline = client.pipeline();
    let error = pipeline
        .request(&Request::Sync { value })
        .run()
        .unwrap_err()
        .error;
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[test]
fn a_call_that_waits_goes_on_as_soon_as_a_leader_is_there() {
    let node = Fake::following("");
    let mut cluster = patient([node.addr()]);
    thread::scope(|scope| {
        let writer = scope.spawn(|| cluster.set(b"k", b"v"));
        wait_until("three attempts", || node.asked(Opcode::Set) >= 3);
        node.follow(None);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(node.value(b"k"), Some(b"v".to_vec()));
}
