//! Tests of the whole dump.

use super::dump::FIELD_LEN_MAX;
use super::*;
use crate::history::{EpochStart, History};
use crate::wire::replication::{
    BatchEncoder, Epochs, Fields, Follow, FollowAnswer, Message, Start, StreamOpcode,
};
use crate::wire::{Request, Response, SyncRequest, Token};

const SET: &[u8] = b"\x01\x00\x07\x00\x00\x00\x06user123active";

fn lines(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_golden_set_reads_as_the_document_explains_it() {
    let expected = lines(&[
        "000000  01                       opcode     SET",
        "000001  00 07                    key_len    7",
        "000003  00 00 00 06              value_len  6",
        "000007  75 73 65 72 31 32 33     key        \"user123\"",
        "00000e  61 63 74 69 76 65        value      \"active\"",
    ]);
    assert_eq!(request(SET), expected);
    assert_eq!(HEADING.find("meaning"), expected.find("SET"));
}

#[test]
fn answers_have_a_status_and_a_value() {
    assert_eq!(
        response(b"\x00\x00\x00\x00\x04PONG"),
        lines(&[
            "000000  00                       status     OK",
            "000001  00 00 00 04              value_len  4",
            "000005  50 4f 4e 47              value      \"PONG\"",
        ])
    );
}

#[test]
fn a_sync_and_its_answer_have_the_fields_of_a_token() {
    let token = Token {
        epoch: 1,
        index: 42,
        nonce: 0xAB,
    };
    let timeout_ms = 5_000;
    let value = &SyncRequest::At { token, timeout_ms }.value();
    let mut bytes = Vec::new();
    assert!(Request::Sync { value }.encode(&mut bytes).is_ok());
    let at = lines(&[
        "000000  10                       opcode     SYNC",
        "000001  00 00                    key_len    0",
        "000003  00 00 00 1d              value_len  29",
        "000007  01                       mode       at token",
        "000008  00 00 13 88              timeout    5,000",
        "00000c  00 00 00 00 00 00 00 01  epoch      1",
        "000014  00 00 00 00 00 00 00 2a  index      42",
        "00001c  00 00 00 00 00 00 00 ab  nonce      0x00000000000000ab",
    ]);
    assert_eq!(request(&bytes), at);
    let mut cut = at
        .lines()
        .take(6)
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    cut += "! incomplete: 20 of 36 bytes, 16 missing\n";
    assert_eq!(request(&bytes[..20]), cut);
    let answer = [&b"\x00\x00\x00\x00\x18"[..], &token.encode()].concat();
    assert_eq!(
        response_to(Opcode::Sync, &answer),
        lines(&[
            "000000  00                       status     OK",
            "000001  00 00 00 18              value_len  24",
            "000005  00 00 00 00 00 00 00 01  epoch      1",
            "00000d  00 00 00 00 00 00 00 2a  index      42",
            "000015  00 00 00 00 00 00 00 ab  nonce      0x00000000000000ab",
        ])
    );
}

#[test]
fn bytes_that_are_not_plain_text_are_escaped() {
    assert_eq!(
        response(b"\x00\x00\x00\x00\x09\"\\\n\r\t\x00\xc3\xa4~"),
        lines(&[
            "000000  00                       status     OK",
            "000001  00 00 00 09              value_len  9",
            r#"000005  22 5c 0a 0d 09 00 c3 a4  value      "\"\\\n\r\t\x00\xc3\xa4""#,
            "00000d  7e                                  \"~\"",
        ])
    );
}

#[test]
fn a_long_field_is_cut_in_the_middle_and_no_byte_goes_uncounted() {
    let mut frame = Vec::new();
    let value: Vec<u8> = (b'a'..=b'z').cycle().take(2_000).collect();
    assert!(
        Request::Set {
            key: b"k",
            value: &value
        }
        .encode(&mut frame)
        .is_ok()
    );
    assert_eq!(
        request(&frame),
        lines(&[
            "000000  01                       opcode     SET",
            "000001  00 01                    key_len    1",
            "000003  00 00 07 d0              value_len  2,000",
            "000007  6b                       key        \"k\"",
            "000008  61 62 63 64 65 66 67 68  value      \"abcdefgh\"",
            "000010  69 6a 6b 6c 6d 6e 6f 70             \"ijklmnop\"",
            "000018  71 72 73 74 75 76 77 78             \"qrstuvwx\"",
            "000020  79 7a 61 62 63 64 65 66             \"yzabcdef\"",
            "...     ...                                 (1,952 bytes left out)",
            "0007c8  69 6a 6b 6c 6d 6e 6f 70             \"ijklmnop\"",
            "0007d0  71 72 73 74 75 76 77 78             \"qrstuvwx\"",
        ])
    );
}

#[test]
fn a_field_of_the_longest_length_is_shown_whole() {
    let mut frame = Vec::new();
    let response_frame = Response {
        status: 0,
        value: &[b'v'; FIELD_LEN_MAX],
    };
    assert!(response_frame.encode(&mut frame).is_ok());
    assert!(!response(&frame).contains("..."));
    assert_eq!(response(&frame).lines().count(), 2 + 8);
}

#[test]
fn a_cut_frame_says_what_is_missing() {
    assert_eq!(request(b""), "! no bytes\n");
    assert_eq!(
        request(&SET[..2]),
        lines(&[
            "000000  01                       opcode     SET",
            "000001  00                       key_len    cut: 1 of 2 bytes",
            "! incomplete: 2 of at least 7 bytes, at least 5 missing",
        ])
    );
    assert_eq!(
        request(&SET[..9]),
        lines(&[
            "000000  01                       opcode     SET",
            "000001  00 07                    key_len    7",
            "000003  00 00 00 06              value_len  6",
            "000007  75 73                    key        \"us\"",
            "! incomplete: 9 of 20 bytes, 11 missing",
        ])
    );
    assert_eq!(
        response(b"\x00\xff\xff\xff\xffx"),
        lines(&[
            "000000  00                       status     OK",
            "000001  ff ff ff ff              value_len  4,294,967,295",
            "000005  78                       value      \"x\"",
            "! incomplete: 6 of 4294967300 bytes, 4294967294 missing",
        ])
    );
}

#[test]
fn what_is_wrong_is_said_at_the_end() {
    assert_eq!(
        request(b"GET k\r\n"),
        lines(&[
            "000000  47 45 54 20 6b 0d 0a     text       \"GET k\\r\\n\"",
            "! the first byte is 'G', which is text; this port speaks GBP, a binary protocol",
        ])
    );
    assert_eq!(
        request(b"\x7f\x00\x00\x00\x00\x00\x00"),
        lines(&[
            "000000  7f                       opcode     unknown",
            "000001  00 00                    key_len    0",
            "000003  00 00 00 00              value_len  0",
            "! unknown opcode 0x7f",
        ])
    );
    assert_eq!(
        request(b"\x04\x00\x01\x00\x00\x00\x00k"),
        lines(&[
            "000000  04                       opcode     PING",
            "000001  00 01                    key_len    1",
            "000003  00 00 00 00              value_len  0",
            "000007  6b                       key        \"k\"",
            "! key of 1 bytes, limit 0: PING has no key",
        ])
    );
    assert_eq!(
        response(b"\x99\x00\x00\x00\x02no"),
        lines(&[
            "000000  99                       status     unknown",
            "000001  00 00 00 02              value_len  2",
            "000005  6e 6f                    value      \"no\"",
            "! unknown status 0x99; a client takes its value for a message",
        ])
    );
    assert_eq!(
        response(b"HTTP"),
        lines(&[
            "000000  48 54 54 50              text       \"HTTP\"",
            "! the response begins with 'H', which is text and not GBP",
        ])
    );
    assert!(response(b"\x03\x00\x00\x00\x01x").ends_with("NOT_FOUND has no value\n"));
}

fn epoch_start(epoch: u64, start_index: u64) -> EpochStart {
    EpochStart {
        epoch,
        nonce: 0xABC,
        start_index,
    }
}

#[test]
fn a_follow_and_the_stream_behind_it_are_shown_field_by_field() {
    let follow = Follow {
        name: b"n2",
        wants_snapshot: true,
        is_to_lead: true,
        epoch: 1,
        nonce: 0xABC,
        last_index: 1_000,
        cluster_id: b"demo",
    };
    let mut bytes = Vec::new();
    assert_eq!(follow.encode(&mut bytes), Ok(()));
    let message = Message::Ack {
        epoch: 1,
        round: 3,
        last_index: 1_002,
        applied_index: 1_000,
        durable_index: 0,
    };
    assert_eq!(message.encode(&mut bytes), Ok(()));
    let follow = [
        "000000  60                       opcode     FOLLOW",
        "000001  00 02                    key_len    2",
        "000003  00 00 00 1e              value_len  30",
        "000007  6e 32                    key        \"n2\"",
        "000009  02                       version    2",
        "00000a  06                       flags      snapshot, to lead",
        "00000b  00 00 00 00 00 00 00 01  epoch      1",
        "000013  00 00 00 00 00 00 0a bc  nonce      0x0000000000000abc",
        "00001b  00 00 00 00 00 00 03 e8  last_index  1,000",
        "000023  64 65 6d 6f              cluster_id  \"demo\"",
    ];
    let ack = [
        "000027  66                       opcode     ACK",
        "000028  00 30                    key_len    48",
        "00002a  00 00 00 00              value_len  0",
        "00002e  00 00 00 00 00 00 00 01  epoch      1",
        "000036  00 00 00 00 00 00 00 03  round      3",
        "00003e  00 00 00 00 00 00 03 ea  last_index  1,002",
        "000046  00 00 00 00 00 00 03 e8  applied_index  1,000",
        "00004e  00 00 00 00 00 00 00 00  durable_index  0",
        "000056  00 00 00 00              value_crc  0x00000000",
        "00005a  a8 de a9 a7              head_crc   0xa8dea9a7",
    ];
    assert_eq!(request(&bytes), lines(&[&follow[..], &ack].concat()));
    bytes[9] = 3;
    assert!(
        request(&bytes[..0x27])
            .ends_with("! version 3 of the replication stream, this node speaks 2\n")
    );
    // Without a FOLLOW before it, it is what it looks like.
    assert!(request(b"foo").contains("the first byte is 'f'"));
}

#[test]
fn an_answer_to_follow_and_the_stream_behind_it_are_shown_field_by_field() {
    let Ok(history) = History::new(vec![epoch_start(1, 1)]) else {
        unreachable!("a history")
    };
    let Some(epochs) = Epochs::of(&history) else {
        unreachable!("it has an epoch")
    };
    let (mut value, mut bytes) = (Vec::new(), Vec::new());
    let answer = FollowAnswer {
        start: Start::Resume { from_index: 8 },
        history: epochs,
    };
    answer.encode(&mut value);
    let answer = Response {
        status: 0,
        value: &value,
    };
    assert_eq!(answer.encode(&mut bytes), Ok(()));
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    assert!(batch.push(SET));
    let written = batch.finish(|count| Fields::Entries {
        epoch: 1,
        first_index: 8,
        count,
        committed_index: 9,
        time_ms: 1_700_000_000_000,
        digest: 7,
    });
    assert_eq!(written, 1);
    let answer = [
        "000000  00                       status     OK",
        "000001  00 00 00 23              value_len  35",
        "000005  00                       mode       resume",
        "000006  00 00 00 00 00 00 00 08  from_index  8",
        "00000e  00 01                    epochs     1",
        "000010  00 00 00 00 00 00 00 01  epoch      1",
        "000018  00 00 00 00 00 00 0a bc  nonce      0x0000000000000abc",
        "000020  00 00 00 00 00 00 00 01  start_index  1",
    ];
    let entries = [
        "000028  61                       opcode     ENTRIES",
        "000029  00 3c                    key_len    60",
        "00002b  00 00 00 14              value_len  20",
        "00002f  00 00 00 00 00 00 00 01  epoch      1",
        "000037  00 00 00 00 00 00 00 08  first_index  8",
        "00003f  00 00 00 01              count      1",
        "000043  00 00 00 00 00 00 00 09  committed_index  9",
        "00004b  00 00 01 8b cf e5 68 00  time_ms    1,700,000,000,000",
        "000053  00 00 00 00 00 00 00 00  digest     0x00000000000000000000000000000007",
        "00005b  00 00 00 00 00 00 00 07             ",
        "000063  36 3c 72 1e              value_crc  0x363c721e",
        "000067  c1 c9 c7 27              head_crc   0xc1c9c727",
        "00006b  01                       opcode     SET",
        "00006c  00 07                    key_len    7",
        "00006e  00 00 00 06              value_len  6",
        "000072  75 73 65 72 31 32 33     key        \"user123\"",
        "000079  61 63 74 69 76 65        value      \"active\"",
    ];
    let dump = response_to(Opcode::Follow, &bytes);
    assert_eq!(dump, lines(&[&answer[..], &entries].concat()));

    // Cut in the batch: what is there is shown, and what is missing is counted.
    let dump = stream(&bytes[0x28..0x7b]);
    assert!(
        dump.ends_with("! incomplete: 83 of 87 bytes, 4 missing\n"),
        "{dump}"
    );
    // A refusal is like any other answer.
    assert_eq!(
        response_to(Opcode::Follow, b"\x02\0\0\0\x01x"),
        response(b"\x02\0\0\0\x01x")
    );
    bytes[5] = 9;
    let dump = response_to(Opcode::Follow, &bytes);
    assert!(
        dump.ends_with("! mode 9, must be 0 (resume), 1 (snapshot) or 2 (unknown data set)\n"),
        "{dump}"
    );
}

#[test]
fn a_list_and_its_answer_are_shown_field_by_field() {
    let bytes = b"\x43\0\x01\0\0\0\x0ek\0\0\0\0\0\0\x0a\xbc\0\0\0\x07\x01\x80";
    let expected = [
        "000000  43                       opcode     LIST",
        "000001  00 01                    key_len    1",
        "000003  00 00 00 0e              value_len  14",
        "000007  6b                       key        \"k\"",
        "000008  00 00 00 00 00 00 0a bc  incarnation  0x0000000000000abc",
        "000010  00 00 00 07              partition  7",
        "000014  01                       bits       1",
        "000015  80                       buckets    \"\\x80\"",
    ];
    assert_eq!(request(bytes), lines(&expected));
    let dump = request(b"\x42\0\0\0\0\0\x0d\0\0\0\0\0\0\0\0\0\0\0\0\x0d");
    assert!(dump.ends_with("! bits 13, limit 12\n"), "{dump}");

    let mut bytes = b"\0\0\0\0\x29".to_vec();
    bytes.extend_from_slice(b"\0\0\0\0\0\0\x0a\xbc\0\0\x01\0\0\0\x01\0\0\0");
    bytes.extend_from_slice(b"\0\x01\0\0\0\x06");
    bytes.extend_from_slice(&(7_u128 << 64).to_be_bytes());
    bytes.push(b'k');
    let expected = [
        "000000  00                       status     OK",
        "000001  00 00 00 29              value_len  41",
        "000005  00 00 00 00 00 00 0a bc  incarnation  0x0000000000000abc",
        "00000d  00 00 01 00              partitions  256",
        "000011  00 00 01 00              partition  256",
        "000015  00 00                    from_len   0",
        "000017  00 01                    key_len    1",
        "000019  00 00 00 06              value_len  6",
        "00001d  00 00 00 00 00 00 00 07  hash       0x00000000000000070000000000000000",
        "000025  00 00 00 00 00 00 00 00             ",
        "00002d  6b                       key        \"k\"",
    ];
    assert_eq!(response_to(Opcode::List, &bytes), lines(&expected));
    let dump = response_to(Opcode::Sums, &bytes);
    assert!(
        dump.contains("000017  00 01 00 00 00 06 00 00  sum        0x000100000006"),
        "{dump}"
    );
    let cut = response_to(Opcode::List, &bytes[..40]);
    assert!(
        cut.ends_with("! incomplete: 40 of 46 bytes, 6 missing\n"),
        "{cut}"
    );
    // A refusal is like any other answer.
    let refusal = b"\x01\0\0\0\x01x";
    assert_eq!(response_to(Opcode::Sums, refusal), response(refusal));
}

#[test]
fn a_damaged_frame_of_the_stream_is_shown_as_far_as_it_can_be_believed() {
    let mut bytes = Vec::new();
    let message = Message::Heartbeat {
        epoch: 1,
        round: 5,
        last_index: 2,
        committed_index: 2,
        durable_index: 0,
        time_ms: 1_700_000_000_000,
        digest_index: 2,
        digest: 7 << 64,
    };
    assert_eq!(message.encode(&mut bytes), Ok(()));
    let dump = stream(&bytes);
    assert!(
        dump.contains(
            "\
00003f  00 00 00 00 00 00 00 07  digest     0x00000000000000070000000000000000
000047  00 00 00 00 00 00 00 00             \n"
        ),
        "{dump}"
    );
    bytes[3] = 0x80;
    bytes.extend_from_slice(b"next");
    let dump = stream(&bytes);
    assert!(dump.contains("bytes      \"next\"\n! damaged head of HEARTBEAT"));
    let dump = stream(b"\x67\0\0\0\0\0\0rest");
    assert!(dump.contains("bytes      \"rest\"\n! unknown opcode 0x67"));
}

#[test]
fn a_long_batch_is_cut_and_no_byte_goes_uncounted() {
    let mut bytes = Vec::new();
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::SnapshotChunk);
    for _ in 0..100 {
        assert!(batch.push(SET));
    }
    let written = batch.finish(|count| Fields::SnapshotChunk {
        epoch: 1,
        sequence: 0,
        count,
    });
    assert_eq!(written, 100);
    let dump = stream(&bytes);
    assert_eq!(dump.lines().count(), 8 + 16 * 5 + 1);
    assert!(dump.ends_with("(1,680 bytes left out)\n"), "{dump}");
}

#[test]
fn the_fields_of_an_epoch_are_shown_in_a_batch_and_alone() {
    let mut epoch = Vec::new();
    let value = &Opcode::Epoch.spec().value_of([4, 0xABC]);
    assert_eq!(Request::Epoch { value }.encode(&mut epoch), Ok(()));
    let mut bytes = Vec::new();
    let mut batch = BatchEncoder::new(&mut bytes, StreamOpcode::Entries);
    assert!(batch.push(&epoch));
    batch.finish(|count| Fields::Entries {
        epoch: 4,
        first_index: 8,
        count,
        committed_index: 8,
        time_ms: 0,
        digest: 0,
    });
    for (dump, at) in [(stream(&bytes), 0x4A), (request(&epoch), 7)] {
        let fields = format!(
            "\
{at:06x}  00 00 00 00 00 00 00 04  epoch      4
{:06x}  00 00 00 00 00 00 0a bc  nonce      0x0000000000000abc
",
            at + 8
        );
        assert!(dump.ends_with(&fields), "{dump}");
    }
}

#[test]
fn frames_one_after_another_go_on_counting() {
    let dump = request(&[b"\x04\x00\x00\x00\x00\x00\x00".as_slice(), SET].concat());
    assert_eq!(
        dump.lines().nth(3),
        Some("000007  01                       opcode     SET")
    );
}

#[test]
fn every_line_fits_78_columns_and_nothing_panics_on_any_bytes() {
    let mut seed = 1_u32;
    for len in 0..400 {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Half of all bytes are zero, so that lengths are often small.
                if seed & 0x8000 == 0 {
                    0
                } else {
                    seed.to_be_bytes()[0]
                }
            })
            .collect();
        let following = [b"\x60\0\0\0\0\0\0", &bytes[..]].concat();
        let dumps = [
            request(&bytes),
            response(&bytes),
            request(&following),
            response_to(Opcode::Follow, &bytes),
            response_to(Opcode::Sums, &[b"\0", &bytes[..]].concat()),
            response_to(Opcode::List, &[b"\0", &bytes[..]].concat()),
            request(&[b"\x43", &bytes[..]].concat()),
            stream(&[&[0x61 + bytes.len().to_le_bytes()[0] % 8], &bytes[..]].concat()),
            sent(&bytes),
            received(&bytes),
            frame(Kind::FollowResponse, &bytes, 0xFF_0000),
        ];
        for dump in dumps {
            for line in dump.lines().filter(|line| !line.starts_with('!')) {
                assert!(line.chars().count() <= 78, "{line}");
            }
        }
    }
}

#[test]
fn a_condition_is_named_and_what_it_compares_with_is_a_field() {
    let put = [&b"\x06\0\x01\0\0\0\x13k\x03\x01\x03"[..], &[0; 6]].concat();
    let put = [&put[..], b"\x75\x30\0\x03oldnew"].concat();
    assert_eq!(
        request(&put),
        lines(&[
            "000000  06                       opcode     PUT",
            "000001  00 01                    key_len    1",
            "000003  00 00 00 13              value_len  19",
            "000007  6b                       key        \"k\"",
            "000008  03                       if         equal",
            "000009  01                       expiry     ttl",
            "00000a  03                       want       value, token",
            "00000b  00 00 00 00 00 00 75 30  time       30,000",
            "000013  00 03                    expected_len  3",
            "000015  6f 6c 64                 expected   \"old\"",
            "000018  6e 65 77                 value      \"new\"",
        ])
    );
    let wrong = [&put[..8], b"\x05", &put[9..]].concat();
    let text = request(&wrong);
    assert!(text.ends_with("! if 5, must be 0 to 4\n"), "{text}");
    assert!(text.contains("if         5\n"), "{text}");
    let cut = request(&put[..put.len() - 5]);
    assert!(cut.contains("expected   \"o\""), "{cut}");
    let take = request(b"\x07\0\x01\0\0\0\x04k\x03\0\0\x02");
    let note = "! expected_len 2, but 0 bytes follow the operands\n";
    assert!(take.ends_with(note), "{take}");
    let found = response_to(Opcode::Put, b"\0\0\0\0\x04\x01old");
    assert!(found.contains("flags      existed\n"), "{found}");
    let left = response_to(Opcode::Ttl, b"\0\0\0\0\x08\0\0\0\0\0\0\x75\x30");
    assert!(left.contains("ms         30,000\n"), "{left}");
}

#[test]
fn flags_are_named_and_what_has_no_name_is_a_number() {
    let shown = |frame: &[u8], field: &str| {
        let text = request(frame);
        let line = text.lines().find(|line| line.contains(field));
        let meaning = line.and_then(|line| line.split_once(field));
        meaning.map_or(String::new(), |(_, meaning)| meaning.trim().to_owned())
    };
    let add = |want| [&b"\x08\0\x01\0\0\0\x19k"[..], &[want], &[0; 24]].concat();
    let follow = |flags| {
        let start = &b"\x60\0\x02\0\0\0\x1an2\x02"[..];
        [start, &[flags], &[0; 24]].concat()
    };
    assert_eq!(shown(&add(0), "want"), "0x00");
    assert_eq!(shown(&add(2), "want"), "token");
    assert_eq!(shown(&add(7), "want"), "token, 0x05");
    assert_eq!(shown(&follow(0), "flags"), "0x00");
    assert_eq!(shown(&follow(0b1010), "flags"), "snapshot, 0x08");
}

#[test]
fn the_requests_and_responses_of_a_batch_have_their_own_lines() {
    let value = b"\x03\0\x01\0\0\0\0k\x02\0\x01\0\0\0\0k";
    let mut bytes = Vec::new();
    assert!(Request::Batch { value }.encode(&mut bytes).is_ok());
    let expected = [
        "000000  0f                       opcode     BATCH",
        "000001  00 00                    key_len    0",
        "000003  00 00 00 10              value_len  16",
        "000007  03                       opcode     DEL",
        "000008  00 01                    key_len    1",
        "00000a  00 00 00 00              value_len  0",
        "00000e  6b                       key        \"k\"",
        "00000f  02                       opcode     GET",
        "000010  00 01                    key_len    1",
        "000012  00 00 00 00              value_len  0",
        "000016  6b                       key        \"k\"",
    ];
    assert_eq!(request(&bytes), lines(&expected));
    let done = b"\0\0\0\0\x0a\0\0\0\0\0\x03\0\0\0\0";
    let expected = [
        "000000  00                       status     OK",
        "000001  00 00 00 0a              value_len  10",
        "000005  00                       status     OK",
        "000006  00 00 00 00              value_len  0",
        "00000a  03                       status     NOT_FOUND",
        "00000b  00 00 00 00              value_len  0",
    ];
    assert_eq!(response_to(Opcode::Batch, done), lines(&expected));
    let conflict = b"\x05\0\0\0\x0a\x01\x05\0\0\0\x04\x01you";
    let expected = [
        "000000  05                       status     CONFLICT",
        "000001  00 00 00 0a              value_len  10",
        "000005  01                       position   1",
        "000006  05                       status     CONFLICT",
        "000007  00 00 00 04              value_len  4",
        "00000b  01 79 6f 75              value      \"\\x01you\"",
    ];
    assert_eq!(response_to(Opcode::Batch, conflict), lines(&expected));
}

/// A batch in a batch is shown as bytes, however many are nested: nothing calls itself for each.
#[test]
fn a_batch_is_shown_one_deep() {
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        let inner = std::mem::take(&mut bytes);
        assert!(Request::Batch { value: &inner }.encode(&mut bytes).is_ok());
    }
    let shown = request(&bytes);
    let opcodes = shown.lines().filter(|line| line.contains("BATCH")).count();
    assert!((1..=3).contains(&opcodes), "{opcodes}: {shown:.2000}");
}
