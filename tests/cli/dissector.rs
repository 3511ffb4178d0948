//! scripts/gbp.lua in tshark: a recorded session, the document's vectors in pieces, and live.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use gopherstore::wire::request::RequestHeader;
use tempfile::TempDir;

use crate::{finish, nodes::node::Node, nodes::tools, support::PATIENCE, vectors};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gbp.lua");
/// A capture by `tcpdump -i lo -w` of a leader on port 8000 and its follower on 8001: a SET in three segments, a
/// NOT_FOUND, a pipeline with an unknown opcode, a SET cut across two packets that others share, text, a snapshot, a
/// write and a refused one. Its stream was of version 1, and its frames were rewritten as those of version 2.
const SESSION: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/cli/captures/session.pcap"
);

/// tshark with the dissector, and without the settings of the user that runs the test.
fn tshark(home: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new("tshark");
    command
        .env("HOME", home.path())
        .env("WIRESHARK_CONFIG_DIR", home.path())
        .args(["-n", "-X", &format!("lua_script:{SCRIPT}")])
        .args(arguments);
    command
}

/// The lines that tshark prints.
#[track_caller]
fn lines(arguments: &[&str]) -> Vec<String> {
    let home = TempDir::new().unwrap();
    let run = finish(&mut tshark(&home, arguments), b"");
    assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
    // Otherwise tshark continues without the script.
    assert!(!run.err.contains("Lua"), "{}", run.err);
    let out = String::from_utf8(run.out).unwrap();
    out.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn of_session(filter: &str, fields: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-2", "-r", SESSION, "-Y", filter, "-T", "fields"];
    for field in fields {
        arguments.extend(["-e", field]);
    }
    lines(&arguments)
}

#[test]
fn a_recorded_session_is_dissected() {
    if !tools::are_there(&["tshark"]) {
        return;
    }
    let infos = of_session("gbp && tcp.port == 54728", &["_ws.col.Info"]);
    let text = "\"the first byte is 'G', which is text; this port speaks GBP, a bi\"...";
    assert_eq!(
        infos,
        [
            r#"> SET "user123""#,
            "< OK to SET",
            r#"> GET "user123""#,
            "< OK to GET",
            r#"> GET "nobody""#,
            "< NOT_FOUND to GET",
            r#"> PING, SET "\xff\x00", opcode 0x99 "k", DEL "user123", STATUS"#,
            r#"< OK to PING, OK to SET, ERROR "unknown opcode 0x99" to 0x99, OK to DEL, OK to STATUS"#,
            "> PING",
            "< OK to PING",
            r#"> SET "big" > GET "big""#,
            "< OK to SET, OK to GET",
            r#"> SET "a", DEL "a""#,
            "< OK to SET, OK to DEL",
        ]
    );
    let infos = of_session("gbp && tcp.port == 54730", &["_ws.col.Info"]);
    assert_eq!(
        infos,
        [
            r#"> text "GET / HTTP/1.1\x0d\x0a\x0d\x0a""#.to_owned(),
            format!("< ERROR {text}")
        ]
    );
    // The time of a probe or a heartbeat varies.
    let mut infos = of_session("gbp && tcp.port == 54736", &["_ws.col.Info"]);
    infos.retain(|info| !info.contains("ACK") && !info.contains("HEARTBEAT"));
    assert_eq!(
        infos,
        [
            r#"> FOLLOW "n2""#,
            "< OK to FOLLOW",
            "< SNAPSHOT_BEGIN epoch=1 keys=2 bytes=208",
            "< SNAPSHOT_CHUNK epoch=1 sequence=0 count=1",
            "< SNAPSHOT_CHUNK epoch=1 sequence=1 count=1",
            "< SNAPSHOT_END epoch=1 index=4 chunks=2",
            "< ENTRIES epoch=1 first_index=5 count=2 committed_index=6 time_ms=0",
        ]
    );
    let beats = of_session("gbp.stream.opcode == 0x65", &["gbp.stream.last_index"]);
    assert!(beats.iter().any(|index| index == "6"), "{beats:?}");
    // Of the batch, each frame has lines of its own.
    let batch = of_session("gbp.stream.opcode == 0x61", &["gbp.opcode", "gbp.key"]);
    assert_eq!(batch, ["0x01,0x03\t61,61"]);
    let follow = of_session("gbp.follow.mode == 1", &["gbp.history.start_index"]);
    assert_eq!(follow, ["1"]);
}

#[test]
fn requests_and_responses_are_paired_and_errors_are_marked() {
    if !tools::are_there(&["tshark"]) {
        return;
    }
    let fields = [
        "frame.number",
        "gbp.response_to",
        "gbp.request_in",
        "gbp.time",
    ];
    let responses = of_session("gbp.request_in", &fields);
    let requests = of_session("gbp.response_in", &["frame.number", "gbp.response_in"]);
    let mut forth = Vec::new();
    for row in &requests {
        let (number, responses) = row.split_once('\t').unwrap();
        forth.extend(
            responses
                .split(',')
                .map(|response| (number.to_owned(), response.to_owned())),
        );
    }
    let mut back = Vec::new();
    for row in &responses {
        let [number, to, requests, times] = row.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let requests: Vec<&str> = requests.split(',').collect();
        assert_eq!(to.split(',').count(), requests.len(), "{row}");
        assert_eq!(times.split(',').count(), requests.len(), "{row}");
        back.extend(
            requests
                .iter()
                .map(|request| ((*request).to_owned(), number.to_owned())),
        );
    }
    forth.sort();
    back.sort();
    assert_eq!(forth, back);
    assert!(forth.len() > 20, "{forth:?}");
    // The fourth packet of requests, in the order in which they were sent.
    let pipelined = of_session(
        "gbp.response.error && gbp.response_to",
        &["gbp.response_to"],
    );
    assert_eq!(pipelined, ["0x04,0x01,0x99,0x03,0x40"]);

    let marked = |filter: &str| of_session(filter, &["_ws.expert.message"]).join("\n");
    let errors = marked("_ws.expert.severity == \"Error\"");
    assert_eq!(errors.lines().count(), 2, "{errors}");
    assert!(
        errors.contains(r#"ERROR "unknown opcode 0x99""#),
        "{errors}"
    );
    assert!(errors.contains("which is text"), "{errors}");
    let elsewhere = marked("gbp.response.elsewhere");
    assert!(
        elsewhere.contains(r#"NOT_LEADER "127.0.0.1:8000""#),
        "{elsewhere}"
    );
    assert_eq!(
        of_session("gbp.malformed", &["frame.number"]),
        Vec::<String>::new()
    );
}

#[test]
fn ports_are_a_preference() {
    if !tools::are_there(&["tshark"]) {
        return;
    }
    let count = |arguments: &[&str]| {
        let fixed = ["-r", SESSION, "-Y", "gbp", "-T", "fields", "-e", "tcp.port"];
        let ports = lines(&[&fixed, arguments].concat());
        let of = |port: &str| ports.iter().filter(|ports| ports.contains(port)).count();
        (of("8000") > 0, of("8001") > 0)
    };
    assert_eq!(count(&[]), (true, true));
    assert_eq!(count(&["-o", "gbp.ports:8001"]), (false, true));
    assert_eq!(count(&["-o", "gbp.ports:9000-9001"]), (false, false));
    let decode_as = ["-o", "gbp.ports:9000", "-d", "tcp.port==8000,gbp"];
    assert_eq!(count(&decode_as), (true, false));
}

/// Writes a capture in which `bytes` go from one port to another, at most `len` in a packet.
fn text2pcap(bytes: &[u8], len: usize, ports: &str, file: &Path) {
    let mut text = String::new();
    for packet in bytes.chunks(len) {
        for (row, line) in packet.chunks(16).enumerate() {
            write!(text, "{:06x}", row * 16).unwrap();
            for byte in line {
                write!(text, " {byte:02x}").unwrap();
            }
            text.push('\n');
        }
    }
    let mut command = Command::new("text2pcap");
    command.args(["-q", "-T", ports, "-"]).arg(file);
    let run = finish(&mut command, text.as_bytes());
    assert_eq!(run.code, 0, "{run:?}");
}

/// The first byte of a frame, and those of the whole frames within it where it is a BATCH.
fn opcodes(frame: &[u8]) -> Vec<u8> {
    let mut opcodes = vec![frame[0]];
    let mut rest = match frame[0] {
        0x0f => &frame[7..],
        _ => &[],
    };
    while let Some(header) = rest.first_chunk::<7>() {
        let header = RequestHeader::decode(*header);
        let Some(after) = rest.get(header.frame_len()..) else {
            break;
        };
        opcodes.push(header.opcode);
        rest = after;
    }
    opcodes
}

#[test]
fn the_requests_and_responses_of_a_batch_are_dissected() {
    if !tools::are_there(&["tshark", "text2pcap"]) {
        return;
    }
    let batches = vectors::all()
        .into_iter()
        .filter(|vector| !vector.is_refused());
    let batches: Vec<_> = batches.collect();
    let conversations = batches
        .windows(2)
        .filter(|two| two[0].bytes[0] == 0x0f && matches!(two[1].side, vectors::Side::Node { .. }));
    let mut text = String::new();
    for vector in conversations.flatten() {
        let direction = match vector.side {
            vectors::Side::Client => "I",
            vectors::Side::Node { .. } | vectors::Side::Stream => "O",
        };
        write!(text, "{direction}\n000000").unwrap();
        for byte in &vector.bytes {
            write!(text, " {byte:02x}").unwrap();
        }
        text.push('\n');
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("batch.pcap");
    let mut command = Command::new("text2pcap");
    command
        .args(["-q", "-D", "-T", "40000,8000", "-"])
        .arg(&file);
    let run = finish(&mut command, text.as_bytes());
    assert_eq!(run.code, 0, "{run:?}");
    let rows = lines(&[
        "-r",
        file.to_str().unwrap(),
        "-Y",
        "gbp",
        "-T",
        "fields",
        "-e",
        "gbp.opcode",
        "-e",
        "gbp.status",
        "-e",
        "gbp.batch.position",
    ]);
    let expected = [
        "0x0f,0x01,0x02",
        "\t0x00,0x00,0x00",
        "0x0f,0x03,0x02",
        "\t0x00,0x00,0x03",
        "0x0f,0x01,0x06",
        "\t0x05,0x05\t1",
        "0x0f,0x02,0x08,0x08,0x03",
        "\t0x00,0x03,0x00,0x00,0x00",
        "0x0f,0x03,0x08",
        "\t0x01",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn every_frame_of_the_document_is_dissected_however_it_is_cut() {
    if !tools::are_there(&["tshark", "text2pcap"]) {
        return;
    }
    let whole = |vector: &vectors::Vector| !vector.is_refused();
    let requests: Vec<_> = vectors::requests().collect();
    let responses: Vec<_> = vectors::responses().filter(whole).collect();
    let stream: Vec<_> = vectors::from_streams().filter(whole).collect();
    assert!(requests.len() > 15 && responses.len() > 12 && stream.len() > 6);
    let dir = TempDir::new().unwrap();
    for (vectors, ports, field) in [
        (requests, "40000,8000", "gbp.opcode"),
        (responses, "8000,40000", "gbp.status"),
        (stream, "8000,40000", "gbp.stream.opcode"),
    ] {
        let bytes: Vec<u8> = vectors
            .iter()
            .flat_map(|vector| vector.bytes.clone())
            .collect();
        let expected: Vec<String> = vectors
            .iter()
            .flat_map(|vector| opcodes(&vector.bytes))
            .map(|opcode| format!("0x{opcode:02x}"))
            .collect();
        for len in [1, 33] {
            let file = dir.path().join("cut.pcap");
            text2pcap(&bytes, len, ports, &file);
            let rows = lines(&[
                "-r",
                file.to_str().unwrap(),
                "-Y",
                field,
                "-T",
                "fields",
                "-e",
                field,
            ]);
            let seen: Vec<&str> = rows.iter().flat_map(|row| row.split(',')).collect();
            assert_eq!(seen, expected, "{field}, {len} bytes in a packet");
        }
    }
}

/// A tshark that captures; gone when the test is.
struct Capture {
    child: Child,
    rows: mpsc::Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Capture {
    fn start(home: &TempDir, port: u16) -> Capture {
        let filter = format!("tcp port {port}");
        let ports = format!("gbp.ports:{port}");
        let mut command = tshark(
            home,
            &[
                "-l",
                "-i",
                "lo",
                "-f",
                &filter,
                "-o",
                &ports,
                "-Y",
                "gbp",
                "-T",
                "fields",
                "-e",
                "tcp.port",
                "-e",
                "_ws.col.Info",
            ],
        );
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, rows) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line.trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Capture {
            child,
            rows,
            errors: Some(errors),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Asked and not killed, so that it ends the process that captures for it.
        tools::signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

#[test]
fn a_live_capture_of_the_loopback_is_dissected() {
    if !tools::are_there(&["tshark"]) {
        return;
    }
    let node = Node::start();
    let home = TempDir::new().unwrap();
    let mut capture = Capture::start(&home, node.addr.port());
    let deadline = Instant::now() + PATIENCE;
    // Until it is there; nothing else says from when on it sees packets.
    loop {
        node.exchange(b"\x04\0\0\0\0\0\0");
        if capture
            .rows
            .recv_timeout(Duration::from_millis(100))
            .is_ok()
        {
            break;
        }
        if capture.child.try_wait().unwrap().is_some() {
            let errors = capture.errors.take().unwrap().join().unwrap();
            let why = errors.lines().find(|line| line.contains("ermission"));
            let why = why.unwrap_or(&errors);
            tools::skip(&format!("tshark may not capture from the loopback: {why}"));
            return;
        }
        assert!(Instant::now() < deadline, "no packet was captured");
    }
    // Of two ports tshark asks the lower one first for its protocol, and it may know one by the client's.
    let mut stream = node.connect();
    for _ in 0..200 {
        if stream.local_addr().unwrap().port() > node.addr.port() {
            break;
        }
        stream = node.connect();
    }
    stream.set_nodelay(true).unwrap();
    let own_port = stream.local_addr().unwrap().port().to_string();
    let set = b"\x01\0\x07\0\0\0\x06user123active";
    for part in [&set[..3], &set[3..12], &set[12..]] {
        stream.write_all(part).unwrap();
    }
    read(&mut stream, 5);
    stream
        .write_all(b"\x04\0\0\0\0\0\0\x02\0\x06\0\0\0\0nobody\x99\0\x01\0\0\0\0k")
        .unwrap();
    read(&mut stream, 9 + 5 + 24);
    let mut seen: [Vec<String>; 2] = Default::default();
    while seen[0].len() < 4 || seen[1].len() < 4 {
        let left = deadline.saturating_duration_since(Instant::now());
        let row = capture.rows.recv_timeout(left);
        let row = row.unwrap_or_else(|_| panic!("no more packets behind {seen:?}"));
        let (ports, info) = row.split_once('\t').unwrap_or((&row, ""));
        if !ports.split(',').any(|port| port == own_port) {
            continue;
        }
        let way = usize::from(info.starts_with('<'));
        seen[way].extend(info[2..].split(", ").map(str::to_owned));
    }
    let expected = [
        vec![
            r#"SET "user123""#,
            "PING",
            r#"GET "nobody""#,
            r#"opcode 0x99 "k""#,
        ],
        vec![
            "OK to SET",
            "OK to PING",
            "NOT_FOUND to GET",
            r#"ERROR "unknown opcode 0x99" to 0x99"#,
        ],
    ];
    assert_eq!(seen, expected);
}

fn read(stream: &mut TcpStream, len: usize) {
    stream.read_exact(&mut vec![0; len]).unwrap();
}
