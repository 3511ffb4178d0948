//! Watchers.

use std::collections::BTreeMap;

use super::*;
use crate::log::Mark;
use crate::wire::replication::{self, Change, Parsed as StreamParsed};
use crate::wire::request::Limits;
use crate::wire::{RequestFrame, Token};

/// The status of a refusal, and its value as text or as an index.
#[track_caller]
fn refused(host: &Host, from: WatchFrom) -> String {
    match judge_watch(host, &all(from)).map(drop) {
        Err(Reply::Compacted(index)) => format!("COMPACTED {}", u64::from_be_bytes(index)),
        Err(reply) => {
            let text = String::from_utf8(reply.value().to_vec()).unwrap();
            format!("{} {text}", reply.status().name())
        }
        Ok(()) => "OK".to_owned(),
    }
}

/// The position of a node's record.
fn token(host: &Host, index: u64) -> Token {
    let start = host.node.history().epoch_of(index).unwrap();
    Token {
        epoch: start.epoch,
        index,
        nonce: start.nonce,
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn record(frame: &RequestFrame<'_>) -> String {
    let (opcode, request) = (frame.opcode().name(), frame.request());
    format!("{opcode} {} {}", text(request.key()), text(request.value()))
}

fn change(change: &Change<'_>) -> String {
    let value = match (change.value(), change.value_len()) {
        (Some(value), Some(_)) => format!(" {}", text(value)),
        (None, Some(len)) => format!(" ({len})"),
        (_, None) => String::new(),
    };
    let until = change.deadline().map(|time| format!(" until {time}"));
    let (name, key) = (change.opcode().name(), text(change.key()));
    format!("{name} {key}{value}{}", until.unwrap_or_default())
}

/// The messages of one write, a line each.
fn lines(mut bytes: &[u8], lines: &mut Vec<String>) {
    while !bytes.is_empty() {
        let Ok(StreamParsed::Whole { message, frame_len }) = replication::parse(bytes) else {
            panic!("whole messages");
        };
        bytes = &bytes[frame_len..];
        match message {
            Message::Event { index, changes, .. } => {
                let changes: Vec<String> = changes.iter().map(|one| change(&one)).collect();
                lines.push(format!("{index}: {}", changes.join(", ")));
            }
            Message::Heartbeat { last_index, .. } => lines.push(format!("at {last_index}")),
            Message::SnapshotBegin { .. } => lines.push("begin".to_owned()),
            Message::SnapshotChunk { frames, .. } => {
                lines.extend(frames.iter().map(|frame| record(&frame)));
            }
            Message::SnapshotEnd { index, .. } => lines.push(format!("end {index}")),
            Message::Entries { .. } | Message::Ack { .. } | Message::Lead { .. } => {
                panic!("{message:?}")
            }
        }
    }
}

/// A data set made from what a stream sends.
#[derive(Default)]
struct Copy {
    values: BTreeMap<String, String>,
    /// Index of the end of the snapshot.
    end: Option<u64>,
}

impl Copy {
    fn apply(&mut self, lines: &[String]) {
        for line in lines {
            // An event begins with its index, a record of a snapshot does not.
            let record = match line.split_once(": ") {
                Some((index, record)) if index.parse::<u64>().is_ok() => record,
                Some(_) | None => line,
            };
            let mut words = record.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("SET"), Some(key), Some(value)) => {
                    self.values.insert(key.to_owned(), value.to_owned());
                }
                (Some("DEL"), Some(key), _) => drop(self.values.remove(key)),
                (Some("end"), Some(index), _) => self.end = index.parse().ok(),
                _ => {}
            }
        }
    }
}

/// Returns the frames that the stream sends until it waits, or the reason why it ends.
fn sent(stream: &mut WatchStream<'_>, now: Instant) -> Result<Vec<String>, StreamEnd> {
    let (mut out, mut all) = (Vec::new(), Vec::new());
    loop {
        match stream.next(now, &mut out)? {
            Sending::Frames { large } => {
                if let Some(entry) = large {
                    out.extend_from_slice(entry.frame());
                }
                lines(&out, &mut all);
            }
            Sending::Gather(_) => {}
            Sending::Wait { .. } => return Ok(all),
            Sending::AwaitAck { .. } | Sending::End => {
                all.push("over".to_owned());
                return Ok(all);
            }
        }
    }
}

#[test]
fn a_watcher_is_told_of_each_record_once_and_of_its_position() {
    let leader = Host::leader();
    leader.set("a", b"1");
    let mut stream = watch(&leader, &all(WatchFrom::Index(1)));
    let now = leader.began;
    assert_eq!(
        sent(&mut stream, now).unwrap(),
        ["at 0", "1: EPOCH ", "2: SET a 1"]
    );
    assert_eq!(sent(&mut stream, now).unwrap(), [""; 0]);
    leader.set("large", &vec![b'x'; 300_000]);
    leader.del("a");
    let told = sent(&mut stream, now).unwrap();
    assert_eq!(
        (told[0].len(), &told[1][..]),
        ("3: SET large ".len() + 300_000, "4: DEL a")
    );
    assert_eq!(sent(&mut stream, now + INTERVAL).unwrap(), ["at 4"]);
    let mut new = watch(&leader, &all(WatchFrom::Now));
    assert_eq!(sent(&mut new, now).unwrap(), ["at 4"]);
    let mut later = watch(&leader, &all(WatchFrom::After(token(&leader, 3))));
    assert_eq!(sent(&mut later, now).unwrap(), ["at 3", "4: DEL a"]);
}

#[test]
fn a_prefix_and_values_are_as_asked_for_and_the_position_moves_on_without_events() {
    let leader = Host::leader();
    let of = |from, wants_values| Watch {
        prefix: b"user:",
        wants_values,
        from,
    };
    leader.set("user:1", b"one");
    leader.set("other", b"1");
    leader.set("user:", &vec![b'x'; 300_000]);
    leader.set("use", &vec![b'y'; 300_000]);
    leader.del("user:1");
    let mut stream = watch(&leader, &of(WatchFrom::Index(1), false));
    let now = leader.began;
    let told = sent(&mut stream, now).unwrap();
    let events = [
        "at 0",
        "2: SET user:1 (3)",
        "4: SET user: (300000)",
        "6: DEL user:1",
    ];
    assert_eq!(told, events);
    leader.set("other", b"2");
    assert_eq!(sent(&mut stream, now).unwrap(), [""; 0]);
    assert_eq!(sent(&mut stream, now + INTERVAL).unwrap(), ["at 7"]);
    let mut snapshot = watch(&leader, &of(WatchFrom::Snapshot, true));
    let told = sent(&mut snapshot, now).unwrap();
    assert_eq!(told.len(), 4, "{}", told.len());
    assert_eq!(
        (&told[0][..], &told[2][..], &told[3][..]),
        ("begin", "end 7", "at 7")
    );
    assert!(told[1].starts_with("SET user: xxx"));
}

#[test]
fn a_snapshot_goes_on_into_events_without_a_gap() {
    let leader = Host::leader();
    for at in 0..5_000_u32 {
        leader.set(&format!("user:{}", at % 700), &at.to_be_bytes());
        leader.set(&format!("key{at}"), b"old");
    }
    let users = Watch {
        prefix: b"user:",
        wants_values: true,
        from: WatchFrom::Snapshot,
    };
    let mut stream = watch(&leader, &users);
    let (mut copy, mut out, mut at, mut more) = (Copy::default(), Vec::new(), 0_u32, 0);
    while more < 50 {
        if copy.end.is_some() {
            more += 1;
        }
        let sending = stream.next(leader.began, &mut out).unwrap();
        if let Sending::Frames { .. } = sending {
            let mut told = Vec::new();
            lines(&out, &mut told);
            copy.apply(&told);
        }
        for _ in 0..5 {
            at += 1;
            match at % 4 {
                0 => leader.del(&format!("user:{}", at / 4 % 700)),
                1 => leader.set(&format!("new{at}"), b"x"),
                _ => leader.set(&format!("user:{}", at * 31 % 900), &at.to_be_bytes()),
            }
        }
    }
    copy.apply(&sent(&mut stream, leader.began).unwrap());
    assert!(copy.end.unwrap() < leader.index());
    let mut truth = Copy::default();
    truth.apply(&sent(&mut watch(&leader, &users), leader.began).unwrap());
    assert_eq!(truth.end, Some(leader.index()));
    assert!(copy.values == truth.values);
}

/// Executes these requests as one BATCH.
fn batch(host: &Host, requests: &[Request<'_>]) {
    let (mut frames, mut answers) = (Vec::new(), Answers::new());
    for request in requests {
        request.encode(&mut frames).unwrap();
    }
    let value = &frames;
    let mut bytes = Vec::new();
    Request::Batch { value }.encode(&mut bytes).unwrap();
    let Ok(Parsed::Whole(frame)) = parse(&bytes, &Limits::default()) else {
        panic!("a whole request");
    };
    host.node
        .execute_batch(&frame, (&Limits::default(), true), None, &mut answers)
        .unwrap();
    assert_eq!(answers.bytes()[0], Status::Ok.byte());
    host.log().drain(host.began);
}

#[test]
fn the_effects_of_a_batch_are_one_event_and_deadlines_are_told() {
    let leader = Host::leader();
    leader.set("user:1", b"1");
    let mut everything = watch(&leader, &all(WatchFrom::Index(3)));
    let users = Watch {
        prefix: b"user:",
        wants_values: false,
        from: WatchFrom::Index(3),
    };
    let mut users = watch(&leader, &users);
    let deadline = u64::MAX.to_be_bytes();
    let (value, expiry) = (
        [&deadline[..], b"v"].concat(),
        [&[3], &deadline[..]].concat(),
    );
    let set = |key| Request::Set { key, value: b"v" };
    let requests = [
        set(b"other"),
        Request::SetAt {
            key: b"user:2",
            value: &value,
        },
        Request::Expire {
            key: b"other",
            value: &expiry,
        },
        Request::Del { key: b"user:1" },
    ];
    batch(&leader, &requests);
    batch(&leader, &[set(b"other"), set(b"another")]);
    let now = leader.began;
    let changes = |stream: &mut WatchStream<'_>| {
        let mut told = sent(stream, now).unwrap();
        assert_eq!(told.remove(0), "at 2");
        told.iter_mut().for_each(|line| {
            let (index, changes) = line.split_once(": ").unwrap();
            let mut changes: Vec<&str> = changes.split(", ").collect();
            changes.sort_unstable();
            *line = format!("{index}: {}", changes.join(", "));
        });
        told
    };
    assert_eq!(
        changes(&mut everything),
        [
            format!(
                "3: DEL user:1, SETAT other v until {0}, SETAT user:2 v until {0}",
                u64::MAX
            ),
            "4: SET another v, SET other v".to_owned(),
        ]
    );
    let of_users = format!("3: DEL user:1, SETAT user:2 (1) until {}", u64::MAX);
    assert_eq!(changes(&mut users), [of_users]);
    assert_eq!(sent(&mut users, now + INTERVAL).unwrap(), ["at 4"]);
}

#[test]
fn nothing_is_sent_that_is_not_committed() {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    leader.set("a", b"1");
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let at = leader.index();
    let mut frames = Vec::new();
    let mut cursor = leader.log().cursor_after(at).unwrap();
    for number in 1..=4 {
        leader.set(&format!("k{number}"), b"v");
    }
    leader.log().try_read(&mut cursor, 1 << 20, &mut frames);
    super::data::receive(&follower, &leader, &frames, 4);
    // Half of them and one more are committed: the first three.
    assert_eq!(follower.log().committed_index(), at + 3);
    assert_eq!(follower.log().last_index(), at + 4);
    let now = follower.began;
    let mut watcher = watch(&follower, &all(WatchFrom::After(token(&follower, at))));
    let told = sent(&mut watcher, now).unwrap();
    let event = |number: u64| format!("{}: SET k{number} v", at + number);
    assert_eq!(told, [format!("at {at}"), event(1), event(2), event(3)]);
    assert_eq!(sent(&mut watcher, now).unwrap(), [""; 0]);
    let mut new = watch(&follower, &all(WatchFrom::Now));
    assert_eq!(sent(&mut new, now).unwrap(), [format!("at {}", at + 3)]);
    follower.node.engine().apply(at + 4).unwrap();
    assert_eq!(sent(&mut watcher, now).unwrap(), [event(4)]);
    assert_eq!(sent(&mut new, now).unwrap(), [event(4)]);
}

/// The records that its leader has committed are on the disk of that leader.
#[test]
fn a_watch_of_a_follower_does_not_wait_for_the_disk_of_the_follower() {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    follower.log().begin_writing(0, Mark::Durable);
    leader.set("a", b"1");
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    stream.settle().unwrap();
    let (at, now) = (leader.index(), follower.began);
    assert_eq!(follower.log().committed_index(), at);
    let mut watcher = watch(&follower, &all(WatchFrom::Now));
    assert_eq!(sent(&mut watcher, now).unwrap(), [format!("at {at}")]);
    leader.set("b", b"2");
    stream.settle().unwrap();
    let event = format!("{}: SET b 2", at + 1);
    assert_eq!(sent(&mut watcher, now).unwrap(), [event]);
    assert_eq!(follower.log().watermarks().index(Mark::Durable), Some(0));
}

#[test]
fn a_watch_that_cannot_begin_is_told_why() {
    let (leader, follower) = pair();
    let after = |epoch, index, nonce| {
        WatchFrom::After(Token {
            epoch,
            index,
            nonce,
        })
    };
    assert_eq!(refused(&leader, WatchFrom::Index(5)), "OK", "the next one");
    assert_eq!(
        refused(&leader, WatchFrom::Index(6)),
        "ERROR no entry after 5 yet, this node's last one is 4"
    );
    assert_eq!(
        refused(&leader, after(1, 6, 10)),
        "LOADING this node has records up to index 4 only"
    );
    assert_eq!(
        refused(&leader, after(1, 2, 11)),
        "LOST entry 2 of epoch 1 is not in this node's history, which does not have that epoch"
    );
    // The follower's log begins behind its snapshot.
    assert_eq!(refused(&follower, WatchFrom::Index(2)), "COMPACTED 5");
    assert_eq!(refused(&follower, after(1, 3, 10)), "COMPACTED 5");
    assert_eq!(refused(&follower, after(1, 4, 10)), "OK");
    leader.open(3, 30);
    assert_eq!(
        refused(&leader, after(1, 5, 10)),
        "LOST entry 5 of epoch 1 is not in this node's history, where that epoch ends at index 4"
    );
    assert_eq!(refused(&leader, after(1, 4, 10)), "OK");
    let alone = Node::alone();
    let answer = accept_watch(&alone, "watcher:1", b"", &all(WatchFrom::Now).value());
    let Err(Reply::Error(text)) = answer.map(drop) else {
        panic!("accepted");
    };
    assert_eq!(
        text,
        "a watch needs a log, which a node has with peers in cluster.toml or a data directory"
    );
    let empty = Host::new("n3");
    assert!(refused(&empty, WatchFrom::Now).starts_with("LOADING"));
}

#[test]
fn a_watcher_may_pause_while_the_log_holds_its_next_record() {
    let (leader, _) = pair();
    let now = leader.began;
    let mut stream = watch(&leader, &all(WatchFrom::Now));
    assert_eq!(sent(&mut stream, now).unwrap(), ["at 4"]);
    let later = now + ms(1_000_000);
    assert_eq!(stream.check_stall(), Ok(()));
    leader.set("c", b"3");
    assert_eq!(stream.check_stall(), Ok(()));
    super::ends::overflow(&leader);
    assert_eq!(stream.check_stall(), Err(StreamEnd::FellBehind));
    assert_eq!(sent(&mut stream, now), Err(StreamEnd::FellBehind));
    let oldest = leader.log().first_index();
    assert!(oldest > 5);
    let answer = refused(&leader, WatchFrom::After(token(&leader, 4)));
    assert_eq!(answer, format!("COMPACTED {oldest}"));
    let mut stream = watch(&leader, &all(WatchFrom::Index(oldest)));
    let told = sent(&mut stream, later).unwrap();
    assert_eq!(told.len() as u64, 1 + leader.index() - oldest + 1);
    assert!(
        leader
            .peers
            .peers_at(0)
            .iter()
            .all(|peer| peer.lacks == Some(Lacking::Absent)),
        "it is no follower"
    );
}

#[test]
fn a_watch_ends_with_its_data_set_and_before_a_new_epoch_and_continues_at_another_node() {
    let (leader, follower) = pair();
    let (mut stream, now) = (watch(&leader, &all(WatchFrom::Now)), leader.began);
    leader.set("c", b"3");
    assert_eq!(sent(&mut stream, now).unwrap(), ["at 4", "5: SET c 3"]);
    let position = token(&leader, 5);
    assert_eq!(
        refused(&follower, WatchFrom::After(position)),
        "LOADING this node has records up to index 4 only"
    );
    Joined::join(&leader, &follower, now)
        .unwrap()
        .settle()
        .unwrap();
    follower.open(2, 20);
    follower.set("d", b"4");
    let mut resumed = watch(&follower, &all(WatchFrom::After(position)));
    assert_eq!(
        sent(&mut resumed, follower.began).unwrap(),
        ["at 5", "6: EPOCH ", "7: SET d 4"]
    );
    assert!(!resumed.has_news());
    leader.open(3, 30);
    assert!(stream.has_news());
    assert_eq!(sent(&mut stream, now), Err(StreamEnd::OtherData));
    follower.node.discard_dataset("test");
    assert_eq!(sent(&mut resumed, now), Err(StreamEnd::OtherData));
}

#[test]
fn a_node_that_stops_sends_a_watcher_what_its_log_holds() {
    let leader = Host::leader();
    let mut stream = watch(&leader, &all(WatchFrom::Index(1)));
    leader.set("a", b"1");
    leader.node.engine().end_log();
    leader.log().drain(leader.began);
    let told = sent(&mut stream, leader.began).unwrap();
    assert_eq!(told, ["at 0", "1: EPOCH ", "2: SET a 1", "over"]);
    assert_eq!(stream.check_stall(), Err(StreamEnd::NodeStops));
}
