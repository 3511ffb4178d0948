//! Sessions without sockets: bytes in, bytes out.

#![allow(clippy::unwrap_used, clippy::panic)]

mod held;

use super::output::OUTPUT_BYTES_MAX;
use super::*;
use crate::engine::DIRECT_BYTES;
use crate::engine::entry::Entry;
use crate::wire::conditional::{Condition, Put, Want};
use crate::wire::{Request, Status};

/// Input that has arrived, and of which each read gives at most `piece` bytes.
struct Arrived<'b> {
    bytes: &'b [u8],
    piece: usize,
}

impl Arrived<'_> {
    fn take(&mut self, room: usize) -> &[u8] {
        let count = room.min(self.piece).min(self.bytes.len());
        let (taken, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        taken
    }
}

impl Source for Arrived<'_> {
    type Error = ();

    fn read(&mut self, room: &mut [u8]) -> Result<usize, ()> {
        let taken = self.take(room.len());
        room[..taken.len()].copy_from_slice(taken);
        Ok(taken.len())
    }

    fn read_uninit<'r>(&mut self, room: &'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8], ()> {
        let taken = self.take(room.len());
        Ok(room[..taken.len()].write_copy_of_slice(taken))
    }
}

/// A session, and what its client has received.
struct Client<'a> {
    session: Session<'a>,
    received: Vec<u8>,
    /// Sent, and not read while the session waits.
    unread: Vec<u8>,
    /// Why the session ended.
    refused: Option<RequestError>,
    /// The thread that runs it; the connection's own goes on where a polling thread may not.
    thread: Thread,
}

impl<'a> Client<'a> {
    fn new(node: &'a Node) -> Client<'a> {
        Client {
            session: Session::new(node, Limits::default(), &[], false),
            received: Vec::new(),
            unread: Vec::new(),
            refused: None,
            thread: Thread::Own,
        }
    }

    /// Takes everything that can be sent.
    fn receive(&mut self) {
        self.session.release_answers();
        let output = self.session.output().concat();
        self.session.sent(output.len());
        self.received.extend(output);
        assert_eq!(self.session.output(), [b"", b""]);
    }

    /// Sends `bytes`, in pieces of at most so many, and receives the answers.
    fn send_in(&mut self, sent: &[u8], piece: usize) {
        let mut bytes = std::mem::take(&mut self.unread);
        bytes.extend_from_slice(sent);
        let bytes = &bytes[..];
        let mut arrived = Arrived { bytes, piece };
        let mut thread = self.thread;
        while self.refused.is_none() {
            match self.session.step(thread) {
                Step::Read if arrived.bytes.is_empty() => break,
                Step::Read => assert!(self.session.read(&mut arrived).unwrap() > 0),
                Step::Send => self.receive(),
                Step::Own => {
                    assert_eq!(thread, Thread::Polling);
                    thread = Thread::Own;
                    continue;
                }
                Step::Await => {
                    assert!(self.session.awaits().is_some());
                    self.receive();
                    if self.session.awaits().is_some() {
                        self.unread = arrived.bytes.to_vec();
                        break;
                    }
                }
                Step::Room(cost) => panic!("no room for {cost} bytes"),
                Step::Sync(..) => self.session.answer(Reply::Error("not now".to_owned())),
                Step::Stream => self.session.answer(Reply::Error("not here".to_owned())),
                Step::LeaveReserve => panic!("it has no place of the reserve"),
                Step::Refuse(error) => {
                    self.session.refuse(error.to_string());
                    self.refused = Some(error);
                }
            }
            thread = self.thread;
        }
        self.receive();
    }

    fn send(&mut self, bytes: &[u8]) {
        self.send_in(bytes, usize::MAX);
    }
}

fn leader() -> Node {
    Node::alone()
}

fn follower() -> Node {
    Node::follower_of("leader:1")
}

fn frame(request: Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    bytes
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    frame(Request::Set { key, value })
}

fn get(key: &[u8]) -> Vec<u8> {
    frame(Request::Get { key })
}

fn answer(status: Status, value: &[u8]) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap();
    [&[status.byte()][..], &len.to_be_bytes(), value].concat()
}

fn error(text: &str) -> Vec<u8> {
    answer(Status::Error, text.as_bytes())
}

/// A request and its answer.
type Exchange = (Vec<u8>, Vec<u8>);

/// Requests of every kind that go on, with their answers.
fn exchanges(large: usize) -> Vec<Exchange> {
    let ok = |value: &[u8]| answer(Status::Ok, value);
    let large = vec![b'l'; large];
    vec![
        (set(b"k", b"v"), ok(b"")),
        (get(b"k"), ok(b"v")),
        (get(b"none"), answer(Status::NotFound, b"")),
        (frame(Request::Ping), ok(b"PONG")),
        // Of an opcode that does not exist, and with a key that PING has not: both are skipped.
        (
            b"\x99\0\x01\0\0\0\x02abb".to_vec(),
            error("unknown opcode 0x99"),
        ),
        (
            b"\x04\0\x01\0\0\0\0a".to_vec(),
            error("key of 1 bytes, limit 0: PING has no key"),
        ),
        // Longer than an ADD may be, and no longer than the node accepts.
        (
            [&b"\x08\0\x01\0\0\0\x1ak"[..], &[0; 26]].concat(),
            error("value of 26 bytes, limit 25"),
        ),
        (
            frame(Request::Batch {
                value: &[set(b"b", b"1"), get(b"b"), get(b"none")].concat(),
            }),
            ok(&[ok(b""), ok(b"1"), answer(Status::NotFound, b"")].concat()),
        ),
        (
            frame(Request::Batch {
                value: &[set(b"b", b"2"), frame(Request::Ping)].concat(),
            }),
            error("request 2: PING may not be in a BATCH"),
        ),
        (get(b"b"), ok(b"1")),
        (set(b"k", &large), ok(b"")),
        (get(b"k"), ok(&large)),
        (set(b"k", &large), ok(b"")),
        (frame(Request::Del { key: b"k" }), ok(b"")),
        (
            frame(Request::Del { key: b"k" }),
            answer(Status::NotFound, b""),
        ),
        (
            frame(Request::Follow {
                key: b"n",
                value: b"",
            }),
            error("not here"),
        ),
        (get(b"k"), answer(Status::NotFound, b"")),
    ]
}

fn joined(exchanges: &[Exchange]) -> Exchange {
    let (requests, answers): (Vec<_>, Vec<_>) = exchanges.iter().cloned().unzip();
    (requests.concat(), answers.concat())
}

#[test]
fn every_split_of_a_stream_gets_the_same_answers() {
    for thread in [Thread::Own, Thread::Polling] {
        let (requests, answers) = joined(&exchanges(40));
        for at in 0..=requests.len() {
            let node = leader();
            let mut client = Client::new(&node);
            client.thread = thread;
            client.send(&requests[..at]);
            client.send(&requests[at..]);
            assert_eq!(client.received, answers, "{at}");
        }
        for piece in [1, 2, 3, 7, 16] {
            let node = leader();
            let mut client = Client::new(&node);
            client.thread = thread;
            client.send_in(&requests, piece);
            assert_eq!(client.received, answers, "{piece}");
        }
    }
}

#[test]
fn every_split_around_a_large_value_gets_the_same_answers() {
    let (requests, answers) = joined(&exchanges(60_000));
    let len = requests.len();
    let begin = joined(&exchanges(60_000)[..10]).0.len();
    // Around both ends of both large frames, and now and then within them.
    let near = |at: &usize| {
        let ends = [begin, begin + 60_008, begin + 60_016, begin + 120_024];
        at.is_multiple_of(9_001) || ends.iter().any(|end| at.abs_diff(*end) < 9)
    };
    for at in (0..=len).filter(near) {
        let node = leader();
        let mut client = Client::new(&node);
        client.send(&requests[..at]);
        client.send(&requests[at..]);
        assert!(client.received == answers, "{at}");
    }
    for piece in [1_000, 4_096, 65_536] {
        let node = leader();
        let mut client = Client::new(&node);
        client.send_in(&requests, piece);
        assert!(client.received == answers, "{piece}");
    }
}

/// A bad frame of GBP.md §8.
struct Bad {
    bytes: Vec<u8>,
    /// Bytes to be skipped; `None` where the connection ends.
    skip: Option<usize>,
    message: String,
}

/// The bad frames of GBP.md §8.
fn bad_frames() -> Vec<Bad> {
    let text = include_str!("../../../docs/GBP.md");
    let (_, section) = text.split_once("\n## 8. ").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("> "));
    let bad = lines.map(|line| {
        let (hex, meaning) = line.split_once('#').unwrap();
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        let bytes = digits.chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(pair, 16).unwrap()
        });
        let (verdict, message) = meaning.split_once(": ").unwrap();
        let skip = verdict.trim().strip_prefix("refused, skip ");
        assert!(skip.is_some() || verdict.trim() == "refused, close");
        Bad {
            bytes: bytes.collect(),
            skip: skip.map(|skip| skip.parse().unwrap()),
            message: message.to_owned(),
        }
    });
    bad.collect()
}

#[test]
fn every_bad_input_of_the_specification_gets_its_error_however_it_arrives() {
    let bad_frames = bad_frames();
    assert!(bad_frames.len() >= 20);
    let ping = frame(Request::Ping);
    for bad in &bad_frames {
        // Of some frames the document has the header alone.
        let rest = bad.skip.map_or(0, |skip| skip - bad.bytes.len());
        let sent = [&bad.bytes[..], &vec![b'x'; rest], &ping].concat();
        for piece in 1..=bad.bytes.len() {
            let node = leader();
            let mut client = Client::new(&node);
            client.send_in(&sent, piece);
            let mut expected = error(&bad.message);
            if bad.skip.is_some() {
                expected.extend(answer(Status::Ok, b"PONG"));
            }
            assert_eq!(client.received, expected, "{}", bad.message);
            assert_eq!(client.refused.is_none(), bad.skip.is_some());
        }
    }
}

#[test]
fn text_is_refused_only_as_the_first_byte_of_a_connection() {
    let node = leader();
    let mut client = Client::new(&node);
    client.send(b"G");
    assert!(matches!(client.refused, Some(RequestError::Text { .. })));
    let mut client = Client::new(&node);
    client.send(&[&frame(Request::Ping)[..], b"G\0\0\0\0\0\0"].concat());
    assert!(client.refused.is_none());
    let expected = [answer(Status::Ok, b"PONG"), error("unknown opcode 0x47")];
    assert_eq!(client.received, expected.concat());
}

#[test]
fn the_end_of_input_is_between_frames_or_inside_one() {
    let exchanges = exchanges(60_000);
    let mut ends = vec![0];
    for (request, _) in &exchanges {
        ends.push(ends[ends.len() - 1] + request.len());
    }
    let (requests, _) = joined(&exchanges);
    for at in
        (0..=requests.len()).filter(|at| at.is_multiple_of(997) || *at < 200 || ends.contains(at))
    {
        let node = leader();
        let mut client = Client::new(&node);
        client.send(&requests[..at]);
        let whole = ends.iter().filter(|end| **end <= at).count() - 1;
        let is_end = ends[whole] == at;
        assert_eq!(client.session.is_between_frames(), is_end, "{at}");
        if client.session.is_skipping() || is_end {
            continue;
        }
        let (len, needed) = client.session.progress();
        assert_eq!(len, at - ends[whole], "{at}");
        let known = if len < HEADER_LEN {
            HEADER_LEN
        } else {
            exchanges[whole].0.len()
        };
        assert_eq!(needed, known, "{at}");
        // Nothing of that frame is carried out.
        let answers = joined(&exchanges[..whole]).1;
        assert!(client.received == answers, "{at}");
    }
}

#[test]
fn a_refused_frame_is_answered_at_its_header_and_discarded_to_its_end() {
    let mut refused = b"\x99\0\x01\0\x01\0\0k".to_vec();
    refused.resize(HEADER_LEN + 1 + (1 << 16), b'x');
    let node = leader();
    let mut client = Client::new(&node);
    client.send(&refused[..HEADER_LEN]);
    assert_eq!(client.received, error("unknown opcode 0x99"));
    assert!(client.session.is_skipping() && !client.session.is_between_frames());
    client.send_in(&refused[HEADER_LEN..refused.len() - 1], 1_000);
    assert!(client.session.is_skipping());
    client.send(&[&refused[refused.len() - 1..], &frame(Request::Ping)].concat());
    assert!(client.session.is_between_frames());
    let expected = [error("unknown opcode 0x99"), answer(Status::Ok, b"PONG")];
    assert_eq!(client.received, expected.concat());
}

#[test]
fn a_follower_refuses_a_large_value_before_it_has_arrived() {
    let node = follower();
    let mut client = Client::new(&node);
    let large = set(b"k", &[b'v'; 100_000]);
    client.send(&large[..LARGE_FRAME_BYTES]);
    assert_eq!(client.received, answer(Status::NotLeader, b"leader:1"));
    assert!(client.session.is_skipping());
    client.send_in(&large[LARGE_FRAME_BYTES..], 4_096);
    assert!(client.session.is_between_frames());
    assert_eq!(client.received, answer(Status::NotLeader, b"leader:1"));
}

#[test]
fn a_batch_to_a_node_without_a_data_set_is_refused_as_a_read_or_a_write_is() {
    let node = follower();
    let mut client = Client::new(&node);
    client.send(&get(b"a"));
    let loading = std::mem::take(&mut client.received);
    assert_eq!(loading[0], Status::Loading.byte());
    let reads = [get(b"a"), get(b"b")].concat();
    client.send(&frame(Request::Batch { value: &reads }));
    assert_eq!(std::mem::take(&mut client.received), loading);
    let writes = [get(b"a"), set(b"b", b"1")].concat();
    client.send(&frame(Request::Batch { value: &writes }));
    assert_eq!(client.received, answer(Status::NotLeader, b"leader:1"));
}

/// As after a large SET and its GET.
#[test]
fn a_session_gives_back_the_memory_of_a_batch_and_its_answer() {
    let node = leader();
    let mut client = Client::new(&node);
    let value = vec![b'v'; 4_080];
    let sets: Vec<u8> = (0..64_u8).flat_map(|key| set(&[key], &value)).collect();
    let gets: Vec<u8> = (0..64_u8).flat_map(|key| get(&[key])).collect();
    for requests in [sets, gets] {
        client.send_in(&frame(Request::Batch { value: &requests }), 10_000);
    }
    assert_eq!(client.received.len(), 2 * 5 + 64 * 5 + 64 * (5 + 4_080));
    client.session.release();
    assert!(!client.session.is_large());
}

#[test]
fn a_spare_block_takes_the_next_frame_whatever_that_is() {
    let large = |byte: u8, len: usize| set(b"k", &vec![byte; len]);
    let ok = answer(Status::Ok, b"");
    let node = leader();
    let mut client = Client::new(&node);
    client.send(&[large(1, 60_000), large(2, 60_000)].concat());
    assert!(client.session.spare.is_some() && client.session.is_grown());
    // One that fits, one that begins as that does, others that do not, and a longer one.
    let next = [
        large(3, 60_000),
        large(4, 60_001),
        get(b"none"),
        large(5, 1 << 20),
    ];
    for (at, next) in next.iter().enumerate() {
        for piece in [1, 5, 70_000] {
            for byte in 0..3 {
                client.send_in(&large(byte, 60_000), 10_000);
            }
            assert!(client.session.spare.is_some());
            client.received.clear();
            client.send_in(next, if at == 3 { 70_000 } else { piece });
            let expected = if at == 2 {
                answer(Status::NotFound, b"")
            } else {
                ok.clone()
            };
            assert_eq!(client.received, expected, "{at}, {piece}");
            if at != 2 {
                let entry = node.engine().get(b"k").unwrap();
                assert_eq!(entry.frame(), next, "{at}, {piece}");
            }
        }
    }
    client.session.release();
    assert!(!client.session.is_grown());
}

#[test]
fn nothing_is_executed_while_a_slow_reader_has_unread_responses() {
    let node = leader();
    let mut client = Client::new(&node);
    let value = [b'v'; 4_000];
    client.send(&set(b"k", &value));
    client.received.clear();
    let requests = [get(b"k").repeat(100), set(b"after", b"")].concat();
    let bytes = &requests[..];
    let piece = usize::MAX;
    let mut arrived = Arrived { bytes, piece };
    client.session.read(&mut arrived).unwrap();
    let mut sends = 0;
    while matches!(client.session.step(Thread::Own), Step::Send) {
        // As long as the client takes nothing, and while it has taken a part.
        let len = client.session.output()[0].len();
        assert!((OUTPUT_BYTES_MAX..OUTPUT_BYTES_MAX + (64 << 10)).contains(&len));
        for count in [0, 1, len / 2] {
            client
                .received
                .extend_from_slice(&client.session.output()[0][..count]);
            client.session.sent(count);
            assert!(matches!(client.session.step(Thread::Own), Step::Send));
        }
        assert!(node.engine().get(b"after").is_none());
        client.receive();
        sends += 1;
    }
    client.receive();
    assert!(sends >= 5 && node.engine().get(b"after").is_some());
    let expected = [
        answer(Status::Ok, &value).repeat(100),
        answer(Status::Ok, b""),
    ];
    assert!(client.received == expected.concat());
}

#[test]
fn a_long_value_is_sent_from_its_entry_before_anything_else_is_carried_out() {
    let node = leader();
    let mut client = Client::new(&node);
    let value = vec![b'v'; DIRECT_BYTES];
    client.send(&set(b"k", &value));
    client.received.clear();
    let requests = [get(b"none"), get(b"k"), get(b"k")].concat();
    let bytes = &requests[..];
    let piece = usize::MAX;
    client.session.read(&mut Arrived { bytes, piece }).unwrap();
    assert!(matches!(client.session.step(Thread::Own), Step::Send));
    let [first, long] = client.session.output();
    assert_eq!((first.len(), long.len()), (10, DIRECT_BYTES));
    // In pieces that end before, at and after the border of both parts.
    for count in [3, 7, 1, DIRECT_BYTES - 2] {
        let output = client.session.output().concat();
        client.received.extend_from_slice(&output[..count]);
        client.session.sent(count);
    }
    assert_eq!(client.session.output().concat(), b"v");
    client.send(b"");
    let value = answer(Status::Ok, &value);
    let expected = [answer(Status::NotFound, b""), value.clone(), value];
    assert!(client.received == expected.concat());
}

#[test]
fn a_polling_thread_leaves_long_work_to_the_own_thread() {
    let node = leader();
    let key = b"long".as_slice();
    let stored = Entry::of_put(key, &vec![b'v'; 100_000], None).unwrap();
    assert!(node.set(stored, None).is_ok());
    let read = frame(Request::Get { key });
    let put = Put {
        condition: Condition::Absent,
        want: Want {
            value: true,
            token: false,
        },
        ..Put::default()
    };
    let value = &put.encode();
    let refused = frame(Request::Put { key, value });
    for request in [
        // Their answers are long.
        Request::Batch { value: &read },
        Request::Batch { value: &refused },
        Request::Status,
        Request::Discard,
        Request::Sums {
            key: b"",
            value: b"",
        },
        Request::List {
            key: b"",
            value: b"",
        },
        Request::Follow {
            key: b"",
            value: b"",
        },
    ] {
        let bytes = &[set(b"k", b"v"), frame(request)].concat()[..];
        let piece = usize::MAX;
        let mut client = Client::new(&node);
        client.session.read(&mut Arrived { bytes, piece }).unwrap();
        let step = client.session.step(Thread::Polling);
        assert!(matches!(step, Step::Own), "{request:?}");
        assert_eq!(client.session.completed(), 1);
        client.receive();
        assert_eq!(client.received, answer(Status::Ok, b""));
        let step = client.session.step(Thread::Own);
        assert!(!matches!(step, Step::Own), "{request:?}");
    }
}

#[test]
fn a_place_of_the_reserve_is_for_status_follow_and_ping() {
    let node = leader();
    let requests = [frame(Request::Ping), get(b"k")].concat();
    let mut session = Session::new(&node, Limits::default(), &requests, true);
    assert!(matches!(session.step(Thread::Own), Step::LeaveReserve));
    assert_eq!(session.output()[0], answer(Status::Ok, b"PONG"));
    session.leave_reserve();
    assert!(matches!(session.step(Thread::Own), Step::Read));
    assert!(!session.is_reserved() && session.is_between_frames());
}
