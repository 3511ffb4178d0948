//! The vectors of `docs/GBP.md`, read from the document itself and checked both ways.

use gopherstore::wire::batch::Batch;
use gopherstore::wire::command::Limit;
use gopherstore::wire::comparison::{self, List, ListAnswer, Sums, SumsAnswer};
use gopherstore::wire::replication::{
    self, BatchEncoder, Changes, Epochs, Follow, FollowAnswer, Frames, Head, Message, ParsedHead,
    Start, StreamOpcode, Watch,
};
use gopherstore::wire::request::{self, Disposition, Limits, RequestError};
use gopherstore::wire::scan::{Scan, ScanAnswer};
use gopherstore::wire::{
    Field, Form, Opcode, Request, Response, Status, SyncRequest, Token, response,
};

/// The side that sends the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `>`: a request.
    Client,
    /// `<`: an answer, and to which operation where its value has fields.
    Node { to: Option<Opcode> },
    /// `~`: a frame of the replication stream.
    Stream,
}

/// One frame of a `gbp` block.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    /// The first of its lines.
    pub(crate) line: usize,
    pub(crate) side: Side,
    pub(crate) bytes: Vec<u8>,
    pub(crate) meaning: String,
}

impl Vector {
    pub(crate) fn is_refused(&self) -> bool {
        self.meaning.starts_with("refused")
    }
}

/// All vectors of the document, in order.
pub(crate) fn all() -> Vec<Vector> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GBP.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut vectors: Vec<Vector> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```gbp";
        } else if inside {
            add(&mut vectors, number + 1, line);
        }
    }
    assert!(vectors.len() > 80, "{} vectors in {path}", vectors.len());
    for vector in &vectors {
        assert!(
            !vector.meaning.is_empty(),
            "line {}: no meaning",
            vector.line
        );
    }
    vectors
}

/// The vectors that are requests, refused ones too.
pub(crate) fn from_clients() -> impl Iterator<Item = Vector> {
    all().into_iter().filter(|v| v.side == Side::Client)
}

/// The vectors that are whole, acceptable requests.
pub(crate) fn requests() -> impl Iterator<Item = Vector> {
    from_clients().filter(|v| !v.is_refused())
}

/// The vectors that are answers of a node, refused ones too.
fn from_nodes() -> impl Iterator<Item = Vector> {
    all()
        .into_iter()
        .filter(|v| matches!(v.side, Side::Node { .. }))
}

/// The vectors that are answers of a node.
pub(crate) fn responses() -> impl Iterator<Item = Vector> {
    from_nodes().filter(|v| !v.is_refused())
}

/// The vectors that are frames of the replication stream, refused ones too.
pub(crate) fn from_streams() -> impl Iterator<Item = Vector> {
    all().into_iter().filter(|v| v.side == Side::Stream)
}

/// Adds what a line says: a new vector, or more of the last one where it begins with a blank.
fn add(vectors: &mut Vec<Vector>, line: usize, text: &str) {
    let (frame, meaning) = text.split_once('#').unwrap_or((text, ""));
    let (side, hex) = frame.split_at(1);
    let before = vectors
        .last()
        .and_then(|last| Opcode::try_from(last.bytes[0]).ok());
    let has_fields = |to: &Opcode| {
        matches!(
            to,
            Opcode::Watch
                | Opcode::Follow
                | Opcode::Sums
                | Opcode::List
                | Opcode::Scan
                | Opcode::Sync
        )
    };
    let to = before.filter(has_fields);
    let side = match side {
        " " => None,
        ">" => Some(Side::Client),
        "<" => Some(Side::Node { to }),
        "~" => Some(Side::Stream),
        _ => panic!("line {line}: begins with {side:?}"),
    };
    let digits: Vec<u32> = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            c.to_digit(16)
                .unwrap_or_else(|| panic!("line {line}: {c:?} is no digit"))
        })
        .collect();
    assert!(digits.len().is_multiple_of(2), "line {line}: half a byte");
    if let Some(side) = side {
        vectors.push(Vector {
            line,
            side,
            bytes: Vec::new(),
            meaning: String::new(),
        });
    }
    let vector = vectors.last_mut().expect("a frame to go on with");
    vector.bytes.extend(
        digits
            .chunks(2)
            .map(|d| u8::try_from(d[0] * 16 + d[1]).unwrap()),
    );
    if !meaning.is_empty() {
        let meaning = format!("{} {}", vector.meaning, meaning.trim());
        vector.meaning = meaning.trim().to_owned();
    }
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn request_meaning(request: &Request) -> String {
    let (spec, key, value) = (request.opcode().spec(), request.key(), request.value());
    if let Err(error) = spec.check(key, value) {
        return format!("bad {}: {}", spec.name, error.reason);
    }
    if request.opcode() == Opcode::Sums {
        let Sums { place, bits } = Sums::decode(key, value).unwrap();
        return format!("SUMS {} bits={bits}", place_meaning(&place));
    }
    if request.opcode() == Opcode::List {
        return list_meaning(&List::decode(key, value).unwrap());
    }
    if request.opcode() == Opcode::Sync {
        return sync_meaning(value);
    }
    if request.opcode() == Opcode::Batch {
        let batch = Batch::decode(value).unwrap();
        let frames = batch.frames().iter();
        let meanings: Vec<_> = frames
            .map(|frame| request_meaning(&frame.request()))
            .collect();
        return format!("BATCH {}", meanings.join(", "));
    }
    if request.opcode() == Opcode::Follow {
        return follow_meaning(&Follow::decode(key, value).unwrap());
    }
    let mut words = vec![spec.name.to_owned()];
    words.extend(spec.has_key.then(|| quoted(key)));
    let mut rest = value;
    for field in spec.operands {
        let (bytes, after) = rest.split_at(field.size);
        words.push(format!("{}={}", field.name, field_meaning(field, bytes)));
        rest = after;
    }
    if let Some(Field {
        size,
        form: Form::Length(name),
        ..
    }) = spec.operands.last()
    {
        let operands_len = value.len() - rest.len();
        let len = &value[operands_len - size..operands_len];
        let len = len.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
        let (bytes, after) = rest.split_at(len);
        words.push(format!("{name}={}", quoted(bytes)));
        rest = after;
        if *name == spec.rest {
            return words.join(" ");
        }
    }
    if request.opcode() == Opcode::Scan {
        words.push(format!("from={}", quoted(rest)));
        return words.join(" ");
    }
    words.extend((spec.rest_max != Limit::Bytes(0)).then(|| quoted(rest)));
    words.join(" ")
}

/// The number in a field of 8 bytes at the most.
fn field_meaning(field: &Field, bytes: &[u8]) -> String {
    let number = bytes.iter().fold(0, |n, &byte| n << 8 | i128::from(byte));
    match field.form {
        Form::Number | Form::Flags(_) | Form::Length(_) => number.to_string(),
        Form::Choice(names) => names[usize::from(bytes[0])].to_owned(),
        Form::Hex => format!("{number:#0width$x}", width = 2 + 2 * field.size),
        Form::Signed if bytes[0] < 0x80 => number.to_string(),
        Form::Signed => (number - (1 << (8 * field.size))).to_string(),
    }
}

fn sync_meaning(value: &[u8]) -> String {
    match SyncRequest::decode(value).unwrap() {
        SyncRequest::Position => "SYNC mode=0 timeout=0".to_owned(),
        SyncRequest::Durable { timeout_ms } => format!("SYNC mode=2 timeout={timeout_ms}"),
        SyncRequest::At { token, timeout_ms } => {
            format!("SYNC mode=1 timeout={timeout_ms} {}", token_meaning(token))
        }
    }
}

fn token_meaning(token: Token) -> String {
    let Token {
        epoch,
        index,
        nonce,
    } = token;
    format!("epoch={epoch} index={index} nonce={nonce:#018x}")
}

fn list_meaning(list: &List) -> String {
    match list {
        List::One(key) => format!("LIST {}", quoted(key)),
        List::Some { place, buckets } => {
            let bits = buckets.bits();
            let wanted = (0..1 << bits).filter(|bucket| buckets.contains(*bucket));
            let wanted: Vec<_> = wanted.map(|bucket| bucket.to_string()).collect();
            let (place, wanted) = (place_meaning(place), wanted.join(","));
            format!("LIST {place} bits={bits} buckets={wanted}")
        }
    }
}

fn place_meaning(place: &comparison::Place) -> String {
    let (incarnation, partition) = (place.incarnation, place.partition);
    format!(
        "incarnation={incarnation:#018x} partition={partition} from={}",
        quoted(&place.from)
    )
}

/// Of the value of an OK to a SUMS or LIST.
fn comparison_meaning(to: Opcode, value: &[u8]) -> String {
    let meaning = |partitions: u32, next: &comparison::Place, rest: String| {
        format!("OK partitions={partitions} {}{rest}", place_meaning(next))
    };
    let answer = if to == Opcode::Sums {
        let from_len = value.get(17).map_or(0, |len| usize::from(*len));
        let sums = value.len().saturating_sub(18 + from_len) / 16;
        let bits = u8::try_from(sums.max(1).ilog2()).unwrap();
        SumsAnswer::decode(value, bits).map(|answer| {
            let sums = answer.sums.iter().map(|sum| format!(" {sum:#034x}"));
            let sums = format!(" sums:{}", sums.collect::<String>());
            meaning(answer.partitions, &answer.next, sums)
        })
    } else if to == Opcode::Scan {
        return scan_meaning(value);
    } else {
        ListAnswer::decode(value).map(|answer| {
            let items = answer.items.iter().map(|item| {
                let (key, value_len, hash) = (quoted(&item.key), item.value_len, item.hash);
                format!(" {key} value_len={value_len} hash={hash:#034x}")
            });
            let items = items.collect::<String>();
            meaning(answer.partitions, &answer.next, items)
        })
    };
    answer.unwrap_or_else(|error| format!("refused, close: {error}"))
}

/// Of the value of an OK to a SCAN.
fn scan_meaning(value: &[u8]) -> String {
    let answer = match ScanAnswer::decode(value) {
        Ok(answer) => answer,
        Err(error) => return format!("refused, close: {error}"),
    };
    let items = answer.items().map(|item| {
        let value = item.value.map(|value| format!("={}", quoted(value)));
        let deadline = item.deadline.map(|deadline| format!(" until {deadline}"));
        let key = quoted(item.key);
        format!(
            " {key}{}{}",
            value.unwrap_or_default(),
            deadline.unwrap_or_default()
        )
    });
    let (partitions, next) = (answer.partitions, place_meaning(&answer.next));
    format!(
        "OK partitions={partitions} {next}{}",
        items.collect::<String>()
    )
}

fn follow_meaning(follow: &Follow) -> String {
    let Follow {
        epoch, last_index, ..
    } = follow;
    format!(
        "FOLLOW {}{} epoch={epoch} nonce={:#018x} last_index={last_index} cluster_id={}",
        quoted(follow.name),
        if follow.wants_snapshot {
            " snapshot"
        } else {
            ""
        },
        follow.nonce,
        quoted(follow.cluster_id)
    )
}

fn history_meaning(history: &Epochs) -> String {
    let epochs = history.iter().map(|start| {
        let (epoch, nonce, start_index) = (start.epoch, start.nonce, start.start_index);
        format!(" ({epoch}, {nonce:#018x}, {start_index})")
    });
    format!("history:{}", epochs.collect::<String>())
}

fn answer_meaning(value: &[u8]) -> String {
    match FollowAnswer::decode(value) {
        Ok(FollowAnswer { start, history }) => {
            let history = history_meaning(&history);
            match start {
                Start::Resume { from_index } => {
                    format!("OK resume from_index={from_index} {history}")
                }
                Start::Snapshot => format!("OK snapshot {history}"),
                Start::Unknown => format!("OK unknown {history}"),
            }
        }
        Err(error) => format!("refused, close: {error}"),
    }
}

fn frames_meaning(frames: &Frames) -> String {
    let meanings: Vec<_> = frames
        .iter()
        .map(|frame| request_meaning(&frame.request()))
        .collect();
    meanings.join(", ")
}

fn changes_meaning(changes: &Changes) -> String {
    let meanings = changes.iter().map(|change| {
        let (opcode, key) = (change.opcode(), change.key());
        let whole = [change.operands(), change.value().unwrap_or_default()].concat();
        match (change.value(), change.value_len()) {
            (None, Some(len)) => {
                let operands = Request::new(opcode, key, change.operands());
                let meaning = request_meaning(&operands);
                let fields = meaning.strip_suffix(" \"\"").unwrap();
                format!("{fields} {len} bytes")
            }
            (Some(_), _) | (None, None) => request_meaning(&Request::new(opcode, key, &whole)),
        }
    });
    meanings.collect::<Vec<_>>().join(", ")
}

fn message_meaning(message: &Message, frame: &[u8]) -> String {
    let spec = message.opcode().spec();
    let mut words = vec![spec.name.to_owned()];
    let mut rest = &frame[request::HEADER_LEN..];
    for field in &spec.fields[..spec.fields.len() - 2] {
        let (bytes, after) = rest.split_at(field.size);
        words.push(format!("{}={}", field.name, field_meaning(field, bytes)));
        rest = after;
    }
    let fields = words.join(" ");
    match message {
        Message::Entries { frames, .. } | Message::SnapshotChunk { frames, .. } => {
            format!("{fields}: {}", frames_meaning(frames))
        }
        Message::Event { changes, .. } => {
            format!("{fields}: {}", changes_meaning(changes))
        }
        Message::SnapshotBegin { history, .. } => {
            format!("{fields} {}", history_meaning(history))
        }
        Message::SnapshotEnd { .. }
        | Message::Heartbeat { .. }
        | Message::Ack { .. }
        | Message::Lead { .. } => fields,
    }
}

fn stream_meaning(bytes: &[u8]) -> String {
    match replication::parse(bytes) {
        Ok(replication::Parsed::Whole { message, frame_len }) => {
            assert_eq!(frame_len, bytes.len(), "bytes behind {message:?}");
            message_meaning(&message, bytes)
        }
        Ok(replication::Parsed::Incomplete { needed }) => format!("incomplete, {needed} needed"),
        Err(error) => format!("refused, close: {error}"),
    }
}

fn refusal_meaning(error: &RequestError) -> String {
    match error.disposition() {
        Disposition::Skip(len) => format!("refused, skip {len}: {error}"),
        Disposition::Close => format!("refused, close: {error}"),
    }
}

/// The result of the first bytes of a connection, as the document states it.
fn judge(bytes: &[u8]) -> String {
    if let Err(error) = request::reject_text(bytes[0]) {
        return refusal_meaning(&error);
    }
    match request::parse(bytes, &Limits::default()) {
        Ok(request::Parsed::Whole(frame)) => request_meaning(&frame.request()),
        Ok(request::Parsed::Incomplete { needed }) => format!("incomplete, {needed} needed"),
        Err(error) => refusal_meaning(&error),
    }
}

#[test]
fn every_request_means_what_the_document_says() {
    for vector in from_clients() {
        assert_eq!(judge(&vector.bytes), vector.meaning, "line {}", vector.line);
    }
}

#[test]
fn every_answer_means_what_the_document_says() {
    for vector in from_nodes() {
        let Side::Node { to } = vector.side else {
            panic!("line {}: no answer", vector.line)
        };
        let meaning = match response::parse(&vector.bytes) {
            Ok(response::Parsed::Whole(Response { status, value })) => {
                assert_eq!(vector.bytes.len(), 5 + value.len(), "line {}", vector.line);
                let name = Status::try_from(status).unwrap().name();
                match value {
                    _ if matches!(to, Some(Opcode::Watch | Opcode::Follow)) && name == "OK" => {
                        answer_meaning(value)
                    }
                    _ if name == "OK" && to == Some(Opcode::Sync) => {
                        let token = Token::decode(value.try_into().unwrap());
                        format!("OK {}", token_meaning(token))
                    }
                    _ if name == "OK" && to.is_some() => comparison_meaning(to.unwrap(), value),
                    b"" => name.to_owned(),
                    _ => format!("{name} {}", quoted(value)),
                }
            }
            Ok(response::Parsed::Incomplete { needed }) => format!("incomplete, {needed} needed"),
            Err(error) => format!("refused, close: {error}"),
        };
        assert_eq!(meaning, vector.meaning, "line {}", vector.line);
    }
}

#[test]
fn every_frame_of_a_stream_means_what_the_document_says() {
    let mut seen = Vec::new();
    for vector in from_streams() {
        let meaning = stream_meaning(&vector.bytes);
        assert_eq!(meaning, vector.meaning, "line {}", vector.line);
        seen.extend(meaning.split(' ').next().map(str::to_owned));
    }
    for opcode in StreamOpcode::ALL {
        let name = opcode.name();
        assert!(seen.iter().any(|seen| seen == name), "no vector of {name}");
    }
}

#[test]
fn every_good_frame_of_a_stream_is_written_just_as_it_is_read() {
    for vector in from_streams().filter(|v| !v.is_refused()) {
        let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(&vector.bytes)
        else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = b"before".to_vec();
        message.encode(&mut bytes).unwrap();
        assert_eq!(&bytes[6..], vector.bytes, "line {}", vector.line);

        // Batches are written in a second way, frame by frame.
        bytes.truncate(6);
        let (Message::Entries { frames, .. } | Message::SnapshotChunk { frames, .. }) = message
        else {
            continue;
        };
        let Ok(ParsedHead::Whole(head)) = Head::parse(&vector.bytes) else {
            panic!("line {}: no head", vector.line)
        };
        let mut batch = BatchEncoder::new(&mut bytes, message.opcode());
        for frame in frames {
            assert!(batch.push(frame.bytes()));
        }
        assert_eq!(batch.finish(|_| head.fields()), frames.count());
        assert_eq!(&bytes[6..], vector.bytes, "line {}", vector.line);
    }
}

#[test]
fn every_good_follow_and_its_answer_are_written_just_as_they_are_read() {
    let mut count = 0;
    for vector in requests().filter(|v| v.meaning.starts_with("FOLLOW")) {
        let Ok(request::Parsed::Whole(frame)) = request::parse(&vector.bytes, &Limits::default())
        else {
            panic!("line {}: not whole", vector.line)
        };
        let request = frame.request();
        let follow = Follow::decode(request.key(), request.value()).unwrap();
        let mut bytes = Vec::new();
        follow.encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
        count += 1;
    }
    let to = Some(Opcode::Follow);
    for vector in requests().filter(|v| v.meaning.starts_with("WATCH")) {
        let Ok(request::Parsed::Whole(frame)) = request::parse(&vector.bytes, &Limits::default())
        else {
            panic!("line {}: not whole", vector.line)
        };
        let request = frame.request();
        let watch = Watch::decode(request.key(), request.value()).unwrap();
        let mut bytes = Vec::new();
        watch.encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
        count += 1;
    }
    for vector in responses().filter(|v| v.side == Side::Node { to }) {
        let Ok(response::Parsed::Whole(response)) = response::parse(&vector.bytes) else {
            panic!("line {}: not whole", vector.line)
        };
        let mut value = Vec::new();
        FollowAnswer::decode(response.value)
            .unwrap()
            .encode(&mut value);
        assert_eq!(value, response.value, "line {}", vector.line);
        count += 1;
    }
    assert!(count >= 6, "{count} vectors");
}

#[test]
fn every_good_comparison_and_its_answer_are_written_just_as_they_are_read() {
    let mut count = 0;
    for vector in requests() {
        let Ok(request::Parsed::Whole(frame)) = request::parse(&vector.bytes, &Limits::default())
        else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = Vec::new();
        match frame.request() {
            Request::Sums { key, value } => match Sums::decode(key, value) {
                Ok(sums) => sums.encode(&mut bytes).unwrap(),
                Err(_) => continue,
            },
            Request::List { key, value } => match List::decode(key, value) {
                Ok(list) => list.encode(&mut bytes).unwrap(),
                Err(_) => continue,
            },
            Request::Scan { key, value } => match Scan::decode(key, value) {
                Ok(scan) => scan.encode(&mut bytes).unwrap(),
                Err(_) => continue,
            },
            _ => continue,
        }
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
        count += 1;
    }
    for vector in responses() {
        let Ok(response::Parsed::Whole(Response { status: 0, value })) =
            response::parse(&vector.bytes)
        else {
            continue;
        };
        let mut written = Vec::new();
        match vector.side {
            Side::Node {
                to: Some(Opcode::Sums),
            } => SumsAnswer::decode(value, 1).unwrap().encode(&mut written),
            Side::Node {
                to: Some(Opcode::List),
            } => ListAnswer::decode(value).unwrap().encode(&mut written),
            Side::Node {
                to: Some(Opcode::Scan),
            } => ScanAnswer::decode(value).unwrap().encode(&mut written),
            Side::Client | Side::Node { .. } | Side::Stream => continue,
        }
        assert_eq!(written, value, "line {}", vector.line);
        count += 1;
    }
    assert!(count >= 14, "{count} vectors");
}

#[test]
fn every_good_vector_is_written_just_as_it_is_read() {
    for vector in requests() {
        let Ok(request::Parsed::Whole(frame)) = request::parse(&vector.bytes, &Limits::default())
        else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = Vec::new();
        frame.request().encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
        assert_eq!(frame.bytes(), vector.bytes, "line {}", vector.line);
    }
    for vector in responses() {
        let Ok(response::Parsed::Whole(response)) = response::parse(&vector.bytes) else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = Vec::new();
        response.encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
    }
}

/// The two frames that the published protocol document shows, here a second time so that no edit of ours can lose them.
#[test]
fn the_published_examples_stand() {
    let lines: Vec<_> = all().into_iter().map(|v| (v.bytes, v.meaning)).collect();
    for (bytes, meaning) in [
        (
            &b"\x01\x00\x07\x00\x00\x00\x06user123active"[..],
            r#"SET "user123" "active""#,
        ),
        (
            &b"\x02\x00\x07\x00\x00\x00\x00user123"[..],
            r#"GET "user123""#,
        ),
    ] {
        assert!(
            lines.contains(&(bytes.to_vec(), meaning.to_owned())),
            "{meaning}"
        );
    }
}
