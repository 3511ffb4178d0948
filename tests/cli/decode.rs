use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gopherstore::wire::{Request, annotate};

use crate::{
    Run, finish, finish_endless,
    nodes::{documented::documented, tools},
    program, run, start,
};

const GOLDEN: &[u8] = b"\x01\0\x07\0\0\0\x06user123active";
const SHOWN: &str = "\
frame 1: request SET, 20 bytes
000000  01                       opcode     SET
000001  00 07                    key_len    7
000003  00 00 00 06              value_len  6
000007  75 73 65 72 31 32 33     key        \"user123\"
00000e  61 63 74 69 76 65        value      \"active\"
";

fn decode(arguments: &[&str], input: &[u8]) -> Run {
    run(&[&["decode"], arguments].concat(), input)
}

/// The output of another program that is given `input`.
fn piped(name: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let run = finish(Command::new(name).args(arguments), input);
    assert_eq!(run.code, 0, "{run:?}");
    run.out
}

#[test]
fn every_form_of_the_same_bytes_shows_the_same_frames() {
    let xxd = "00000000: 0100 0700 0000 0675 7365 7231 3233 6163  .......user123ac\n\
               00000010: 7469 7665                                tive\n";
    decode(&[], xxd.as_bytes()).expect(0, SHOWN, "");
    decode(&[], GOLDEN).expect(0, SHOWN, "");
    let digits = "01 0007 00000006 75736572313233 616374697665";
    decode(&[], digits.as_bytes()).expect(0, SHOWN, "");
    decode(&[digits], b"").expect(0, SHOWN, "");
    decode(&digits.split(' ').collect::<Vec<_>>(), b"").expect(0, SHOWN, "");
    let list = "0x1,0x0,0x7,0x0,0x0,0x0,0x6,0x75,0x73,0x65,0x72,0x31,0x32,0x33,0x61,0x63,0x74,0x69,0x76,0x65";
    decode(&[list], b"").expect(0, SHOWN, "");
    decode(&[r"\x01\x00\7\0\0\0\x06user123active"], b"").expect(0, SHOWN, "");
    let line =
        r"printf '\001\000\007\000\000\000\006user123active' | nc -N 127.0.0.1 8000 | xxd   # SET";
    decode(&[line], b"").expect(0, SHOWN, "");
    decode(&[], format!("{line}\n").as_bytes()).expect(0, SHOWN, "");
}

#[test]
fn marks_and_ends_of_other_systems_are_no_part_of_a_text() {
    let xxd = "00000000: 0100 0700 0000 0675 7365 7231 3233 6163  .......user123ac\r\n\
               00000010: 7469 7665                                tive\r\n";
    let digits = "01 0007 00000006\r\n75736572313233 616374697665\r\n";
    let printf = "printf '\\001\\000\\007\\000\\000\\000\\006user123active'\r\n";
    let canonical = "00000000  01 00 07 00 00 00 06 75  73 65 72 31 32 33 61 63  |.......user123ac|\r\n\
                     00000010  74 69 76 65                                       |tive|\r\n\
                     00000014\r\n";
    for text in [xxd, digits, printf, canonical] {
        decode(&[], text.as_bytes()).expect(0, SHOWN, "");
        decode(&[], format!("\u{feff}{text}").as_bytes()).expect(0, SHOWN, "");
    }
}

#[test]
fn input_without_an_end_is_decoded_up_to_a_limit() {
    let mut frame = Vec::new();
    let (key, value) = (b"k", vec![b'v'; 3_000_000]);
    let value = &value[..];
    Request::Set { key, value }.encode(&mut frame).unwrap();
    let run = finish_endless(program().arg("decode"), b"", frame.clone());
    assert_eq!(run.code, 8);
    let expected = "gopherstore-cli: standard input is longer than 256 MiB, and nothing beyond that is decoded; give a \
                    part of it, such as tail -c +OFFSET makes\n";
    assert_eq!(run.err, expected);
    let count = (256 << 20) / frame.len();
    let out = String::from_utf8(run.out).unwrap();
    assert_eq!(out.matches("request SET").count(), count);
    assert!(!out.contains("no whole"));
    let run = finish_endless(program().arg("decode"), b"", vec![b'0'; 1 << 20]);
    assert_eq!((run.code, &*run.err, run.out.len()), (8, expected, 0));
}

#[test]
fn the_output_of_the_tools_is_parsed() {
    if tools::are_there(&["xxd"]) {
        for options in [
            vec![],
            vec!["-p"],
            vec!["-g1", "-u"],
            vec!["-c", "7"],
            vec!["-g", "4", "-c", "8"],
        ] {
            decode(&[], &piped("xxd", &options, GOLDEN)).expect(0, SHOWN, "");
        }
        let zeros = [b"\x01\0\0\0\0\x02\0".as_slice(), &[0; 512]].concat();
        let run = decode(&[], &piped("xxd", &["-a"], &zeros));
        assert_eq!((run.code, run.out), (0, decode(&[], &zeros).out));
    }
    if tools::are_there(&["hexdump"]) {
        decode(&[], &piped("hexdump", &["-C"], GOLDEN)).expect(0, SHOWN, "");
    }
}

#[test]
fn a_capture_is_shown_connection_by_connection() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/cli/captures/session.tcpdump.txt"
    );
    let text = fs::read(path).unwrap();
    let run = decode(&[], &text);
    let out = String::from_utf8(run.out).unwrap();
    assert_eq!((run.code, &*run.err), (0, ""), "{out}");
    let flows: Vec<&str> = out.lines().filter(|line| line.contains(" > ")).collect();
    assert_eq!(
        flows,
        [
            "127.0.0.1:54736 > 127.0.0.1:8000, 479 bytes",
            "127.0.0.1:8000 > 127.0.0.1:54736, 1232 bytes",
            "127.0.0.1:34156 > 127.0.0.1:8001, 23 bytes",
            "127.0.0.1:8001 > 127.0.0.1:34156, 24 bytes",
        ]
    );
    for frame in [
        "frame 1: request FOLLOW, 39 bytes",
        "frame 2: stream ACK, 55 bytes",
        "frame 1: response OK, 40 bytes",
        "frame 2: stream SNAPSHOT_BEGIN, 65 bytes",
        "frame 3: stream SNAPSHOT_CHUNK, 47 bytes",
        "frame 5: stream SNAPSHOT_END, 55 bytes",
        "frame 6: stream HEARTBEAT, 87 bytes",
        ": stream ENTRIES, 84 bytes",
        "frame 1: response NOT_LEADER, 19 bytes",
    ] {
        assert!(out.contains(&format!("{frame}\n")), "no {frame} in {out}");
    }
    assert!(!out.contains("no whole"), "{out}");
    // A packet that is gone: what was before it is shown.
    let lines = String::from_utf8(text).unwrap();
    let packets: Vec<&str> = lines.split_inclusive("\n06:").collect();
    let gone = packets
        .iter()
        .position(|packet| packet.contains("seq 153:398"))
        .unwrap();
    let rest = [&packets[..gone], &packets[gone + 1..]].concat().concat();
    let run = decode(&[], rest.as_bytes());
    assert_eq!(run.code, 7, "{}", run.err);
    let parts = [
        "127.0.0.1:8000 > 127.0.0.1:54736: behind offset 0x98: ",
        "not in the capture",
    ];
    for part in parts {
        assert!(run.err.contains(part), "{}", run.err);
    }
}

#[test]
fn at_the_first_wrong_byte_it_says_where_and_why() {
    let ping = "04 0000 00000000";
    let run = decode(&[ping, "04 0001 00000000 6b", ping], b"");
    let out = String::from_utf8(run.out).unwrap();
    assert_eq!(run.code, 7);
    assert_eq!(
        run.err,
        "gopherstore-cli: frame 2, from offset 0x7: wrong at offset 0x8: key of 1 bytes, limit 0: PING has no key; \
         if another side sent it, say which with --as request, response or stream\n"
    );
    assert!(
        out.starts_with("frame 1: request PING, 7 bytes\n000000  04"),
        "{out}"
    );
    assert!(
        out.ends_with("\n00000e  6b                       key        \"k\"\n"),
        "{out}"
    );
    let run = decode(&[], &GOLDEN[..9]);
    assert_eq!(run.code, 7);
    assert_eq!(
        run.err,
        "gopherstore-cli: frame 1, from offset 0x0: cut: 9 of 20 bytes, 11 missing; give the bytes to the frame's \
         end\n"
    );
    let run = decode(&["--as", "response", "99 00000000"], b"");
    assert_eq!(run.code, 7);
    assert!(
        run.err
            .contains("unknown status 0x99; the bytes before it are right"),
        "{}",
        run.err
    );
}

#[test]
fn text_that_is_no_dump_is_exit_code_2_and_prints_nothing() {
    for (text, parts) in [
        ("04 0000 0000000", ["line 1, column 15", "half a byte"]),
        (
            "04 00g0 00000000",
            ["line 1, column 6", "'g' is no hexadecimal digit"],
        ),
        (
            "hello",
            ["line 1, column 1", "decode takes raw bytes, an xxd"],
        ),
        (" \n ", ["no bytes to decode", "standard input"]),
        (
            "00000000: 04\n00000020: 00\n",
            ["line 2", "is a line missing"],
        ),
        ("\t0x0000:  4500 0014", ["line 1", "not TCP over IPv4"]),
        (r"\x0g", ["frame 1", "cut"]),
    ] {
        let run = decode(&[], text.as_bytes());
        if text.starts_with('\\') {
            // 0x00 and a letter, as printf has it.
            assert_eq!(run.code, 7, "{run:?}");
        } else {
            run.expect_failure(2, &parts);
        }
    }
    decode(&[], b"").expect_failure(2, &["no bytes to decode"]);
    decode(&["04", "--as", "question"], b"")
        .expect_failure(2, &["question", "request, response, stream and auto"]);
}

#[test]
fn the_side_is_seen_or_said() {
    let response = "02 0000000e 3132372e302e302e313a38303030";
    for arguments in [
        &[response][..],
        &["--as", "auto", response],
        &["--as=response", response],
    ] {
        let run = decode(arguments, b"");
        let out = String::from_utf8(run.out).unwrap();
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(
            out.starts_with("frame 1: response NOT_LEADER, 19 bytes\n"),
            "{out}"
        );
    }
    assert_eq!(decode(&["--as", "request", response], b"").code, 7);
    let ack = "66 0030 00000000 0000000000000003 0000000000000011 0000000000000009 \
        0000000000000008 0000000000000000 00000000 9e459db1";
    let run = decode(&[ack], b"");
    assert!(
        run.out.starts_with(b"frame 1: stream ACK, 55 bytes\n"),
        "{run:?}"
    );
}

fn sets(count: u32) -> Vec<u8> {
    let mut file = Vec::new();
    for number in 0..count {
        let key = format!("key{number}");
        let request = Request::Set {
            key: key.as_bytes(),
            value: &number.to_be_bytes(),
        };
        request.encode(&mut file).unwrap();
    }
    file
}

#[test]
fn a_file_of_set_frames_is_printed_up_to_its_truncation() {
    let file = sets(2_000);
    let run = decode(&[], &file);
    let out = String::from_utf8(run.out).unwrap();
    assert_eq!((run.code, &*run.err), (0, ""));
    let rows: Vec<&str> = out
        .lines()
        .filter(|line| !line.starts_with("frame "))
        .collect();
    assert_eq!(rows.join("\n"), annotate::request(&file).trim_end());
    assert!(out.contains("\nframe 2000: request SET, "), "{out}");
    let run = decode(&[], &file[..file.len() - 1]);
    assert_eq!(run.code, 7);
    assert!(run.err.contains("frame 2000, from offset"), "{}", run.err);
    assert!(run.err.contains("1 missing"), "{}", run.err);
    let out = String::from_utf8(run.out).unwrap();
    assert!(out.contains("\nframe 1999: request SET, "), "{out}");
}

#[test]
fn a_large_value_is_short_to_read_and_much_input_is_quick() {
    let value = vec![b'v'; 64 << 20];
    let mut frame = Vec::new();
    let request = Request::Set {
        key: b"k",
        value: &value,
    };
    request.encode(&mut frame).unwrap();
    let started = Instant::now();
    let run = decode(&[], &frame);
    let out = String::from_utf8(run.out).unwrap();
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(out.contains("(67,108,816 bytes left out)"), "{out}");
    assert_eq!(out.lines().count(), 12);
    let run = decode(&[], &sets(100_000));
    assert_eq!(run.code, 0, "{}", run.err);
    // Quadratic cost would be hours.
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_closed_pipe_ends_the_output() {
    let mut command = program();
    command.arg("decode");
    let mut child = start(&mut command);
    let mut stdin = child.stdin.take().unwrap();
    let file = sets(100_000);
    let writing = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &file)));
    let mut first = [0; 8];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"frame 1:");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stderr),
        (Some(0), b"".as_slice())
    );
}

#[test]
fn a_directory_cannot_be_decoded() {
    let directory = fs::File::open(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut command = program();
    let output = command
        .arg("decode")
        .stdin(Stdio::from(directory))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8));
}

#[test]
fn the_files_of_a_data_directory_are_recognised_from_a_file_and_from_standard_input() {
    let mut segment = documented("segment");
    segment.resize(512, 0);
    segment.extend(documented("group"));
    segment.extend([0; 1_000]);
    let identity = documented_text("identity");
    let dir = tempfile::tempdir().unwrap();
    for (bytes, first) in [
        (
            &segment,
            "header of log-00000001-0000000000000001, 512 bytes\n",
        ),
        (
            &documented("snapshot"),
            "header of snapshot-00000001-0000000000000005, ",
        ),
        (&identity, "identity of a data directory, "),
    ] {
        let file = dir.path().join("log-0000000000000001");
        fs::write(&file, bytes).unwrap();
        let named = decode(&[file.to_str().unwrap()], b"");
        assert_eq!((named.code, &*named.err), (0, ""));
        assert!(named.out.starts_with(first.as_bytes()), "{named:?}");
        assert_eq!(decode(&[], bytes), named);
        // A missing byte of a group is reported. A segment may also end behind its last group.
        let cut = &bytes[..bytes.len().min(600) - 1];
        fs::write(&file, cut).unwrap();
        let named = decode(&[file.to_str().unwrap()], b"");
        assert_eq!(named.code, 7, "{named:?}");
        assert!(
            named.err.contains("log-0000000000000001, offset 0x"),
            "{named:?}"
        );
        let read = decode(&[], cut);
        assert_eq!((read.code, &read.out), (7, &named.out));
        // Only a connection has sides.
        assert_ne!(decode(&["--as", "request"], bytes).code, 0);
    }
    if tools::are_there(&["xxd"]) {
        let run = decode(&[], &piped("xxd", &[], &segment));
        assert_eq!((run.code, run.out), (0, decode(&[], &segment).out));
    }
}

/// Without the name, zeros are responses.
#[test]
fn a_file_of_a_data_directory_whose_first_bytes_are_damaged_is_known_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "log-00000001-0000000000000001",
        "snapshot-00000001-0000000000000005",
    ] {
        let file = dir.path().join(name);
        fs::write(&file, [0; 4_096]).unwrap();
        let run = decode(&[file.to_str().unwrap()], b"");
        assert_eq!(run.code, 7, "{run:?}");
        assert!(!run.out.starts_with(b"frame 1"), "{run:?}");
        let place = format!("{name}, offset 0x0");
        assert!(run.err.contains(&place), "{run:?}");
    }
}

fn documented_text(kind: &str) -> Vec<u8> {
    let document = include_str!("../../docs/FORMAT.md");
    let (_, section) = document.split_once(&format!("\n## {kind}\n")).unwrap();
    let (_, block) = section.split_once("```text\n").unwrap();
    block.split_once("```").unwrap().0.into()
}

#[test]
fn an_argument_is_a_file_only_where_it_is_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("04"), b"no frame").unwrap();
    fs::write(dir.path().join("dump"), GOLDEN).unwrap();
    let at = |arguments: &[&str]| {
        let mut command = program();
        command
            .current_dir(dir.path())
            .arg("decode")
            .args(arguments);
        finish(&mut command, b"")
    };
    at(&["dump"]).expect(0, SHOWN, "");
    assert_eq!(at(&["04"]).code, 7);
    at(&["./04"]).expect_failure(2, &["line 1"]);
    at(&["dump", "04"]).expect_failure(2, &["line 1, column 2"]);
    at(&["other"]).expect_failure(2, &["line 1, column 1", "or the name of a file"]);
    at(&["./other"]).expect_failure(8, &["cannot read ./other: No such file"]);
    at(&["./"]).expect_failure(8, &["./ is a directory; check reads a data directory"]);
}
