//! Dumps of every form, written here from any bytes and read back.

use std::fmt::Write;

use gopherstore::hexdump::{self, Flow, Form, REPEATED_MAX, printf};
use proptest::collection::vec;
use proptest::prelude::*;

/// As `xxd -c columns -g group` writes it, from an offset on.
fn xxd(bytes: &[u8], columns: usize, group: usize, from: usize) -> String {
    let mut text = String::new();
    for (row, line) in bytes.chunks(columns).enumerate() {
        let mut hex = String::new();
        for (at, byte) in line.iter().enumerate() {
            if at > 0 && at % group == 0 {
                hex.push(' ');
            }
            write!(hex, "{byte:02x}").unwrap();
        }
        let width = columns * 2 + columns.div_ceil(group) - 1;
        let at = from + row * columns;
        writeln!(text, "{at:08x}: {hex:<width$}  {}", dots(line)).unwrap();
    }
    text
}

/// As `hexdump -C` writes it, without its `*`.
fn canonical(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, line) in bytes.chunks(16).enumerate() {
        let (first, second) = line.split_at(line.len().min(8));
        let hex = format!("{}  {}", spaced(first), spaced(second));
        writeln!(text, "{:08x}  {hex:<48}  |{}|", row * 16, dots(line)).unwrap();
    }
    writeln!(text, "{:08x}", bytes.len()).unwrap();
    text
}

fn spaced(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(" ")
}

fn dots(bytes: &[u8]) -> String {
    let char = |&byte: &u8| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '.',
    };
    bytes.iter().map(char).collect()
}

/// A TCP segment over IPv4 as `tcpdump` writes it, behind a link's header of Ethernet where that is wanted.
fn packet(ports: (u16, u16), sequence: u32, flags: u8, payload: &[u8], link: bool) -> String {
    let mut bytes = Vec::new();
    if link {
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(&[8, 0]);
    }
    let len = u16::try_from(40 + payload.len()).unwrap();
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, 0x40, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    bytes.extend_from_slice(&ports.0.to_be_bytes());
    bytes.extend_from_slice(&ports.1.to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 0x50, flags, 2, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(payload);
    if link {
        bytes.extend_from_slice(&[0; 3]); // what fills up a short frame
    }
    let mut text = "12:00:00.000000 IP 127.0.0.1 > 127.0.0.1: Flags [P.]\n".to_owned();
    for line in xxd(&bytes, 16, 2, 0).lines() {
        writeln!(text, "\t0x{}", line[4..].replacen(": ", ":  ", 1)).unwrap();
    }
    text
}

#[track_caller]
fn one(text: &str) -> (Form, Vec<u8>) {
    match hexdump::read(text.as_bytes()) {
        Ok(contents) => {
            let [
                Flow {
                    bytes, missing: 0, ..
                },
            ] = &contents.flows[..]
            else {
                panic!("{contents:?}")
            };
            (contents.form, bytes.to_vec())
        }
        Err(error) => panic!("{error}\n{text}"),
    }
}

proptest! {
    #[test]
    fn what_a_dump_shows_is_what_it_was_made_of(
        bytes in vec(any::<u8>(), 1..400), columns in 1_usize..40, group in 1_usize..9, from in 0_usize..1 << 20,
    ) {
        prop_assert_eq!(one(&xxd(&bytes, columns, group, from)), (Form::Xxd, bytes.clone()));
        let crlf = xxd(&bytes, columns, group, from).replace('\n', "\r\n");
        prop_assert_eq!(one(&crlf), (Form::Xxd, bytes.clone()));
        prop_assert_eq!(one(&canonical(&bytes)), (Form::Canonical, bytes.clone()));
        prop_assert_eq!(one(&spaced(&bytes)), (Form::Digits, bytes.clone()));
        prop_assert_eq!(one(&spaced(&bytes).to_uppercase().replace(' ', "")), (Form::Digits, bytes.clone()));
        let list: Vec<String> = bytes.iter().map(|byte| format!("0x{byte:x}")).collect();
        prop_assert_eq!(one(&list.join(", ")), (Form::Digits, bytes.clone()));
        let plain: Vec<String> = bytes.chunks(columns).map(|line| spaced(line).replace(' ', "")).collect();
        prop_assert_eq!(one(&plain.join("\n")), (Form::Digits, bytes));
    }

    #[test]
    fn what_a_string_for_printf_prints_is_what_it_was_made_of(bytes in vec(any::<u8>(), 0..300)) {
        // A form is recognised by a backslash, and a string without one is digits, if it is anything.
        let bytes = [&[0][..], &bytes].concat();
        let escaped = printf::escaped(&bytes);
        prop_assert!(!escaped.contains(['\'', '\n', '%']));
        let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        for text in [
            escaped.clone(),
            format!("'{escaped}'\n"),
            format!("printf '{escaped}'"),
            format!("$ printf -- '{escaped}' | nc -N 127.0.0.1 8000 | xxd\n"),
            format!("printf %b '{hex}'"),
            hex.clone(),
            format!("b'{hex}'"),
            format!("\"{hex}\""),
            format!("printf \"{hex}\" > file"),
        ] {
            prop_assert_eq!(one(&text), (Form::Printf, bytes.clone()), "{}", text);
        }
        // Behind %b a number in octal has a zero more, where it begins with one.
        prop_assert_eq!(one(r"printf '%b' '\01018\101'").1, b"A8A");
        let twice = format!("# two\nprintf '{escaped}' | nc -N ::1 8000\n\nprintf '{escaped}'\n");
        prop_assert_eq!(one(&twice).1, [&bytes[..], &bytes].concat());
    }

    #[test]
    fn bytes_that_no_text_holds_are_taken_as_they_are(
        bytes in vec(any::<u8>(), 0..100),
        control in prop_oneof![0_u8..9, 14_u8..32, Just(0xFF)],
        at in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes;
        bytes.insert(at.index(bytes.len() + 1), control);
        let contents = hexdump::read(&bytes).unwrap();
        prop_assert_eq!(contents.form, Form::Raw);
        prop_assert_eq!(&contents.flows[0].bytes[..], &bytes[..]);
    }

    #[test]
    fn segments_in_any_order_cut_and_sent_twice_make_the_stream_that_was_sent(
        bytes in vec(any::<u8>(), 2..2_000),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
        start in prop_oneof![any::<u32>(), u32::MAX - 1_000..],
        seed in any::<u64>(),
        link in any::<bool>(),
    ) {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        ends.extend([0, bytes.len()]);
        ends.sort_unstable();
        let segment = |from: usize, to: usize| {
            let sequence = start.wrapping_add(u32::try_from(from).unwrap());
            packet((40_000, 8_000), sequence, 0x18, &bytes[from..to], link)
        };
        let mut segments: Vec<String> = ends.windows(2).map(|pair| segment(pair[0], pair[1])).collect();
        // One again, and one that overlaps two.
        segments.push(segment(ends[0], ends[1]));
        segments.push(segment(bytes.len() / 3, bytes.len() * 2 / 3));
        let mut seed = seed;
        for at in (1..segments.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            segments.swap(at, usize::try_from(seed >> 33).unwrap() % (at + 1));
        }
        let answer = packet((8_000, 40_000), 7, 0x18, b"\0\0\0\0\0", link);
        let text = [&segments[..], &[answer]].concat().concat();
        let contents = hexdump::read(text.as_bytes()).unwrap();
        prop_assert_eq!(contents.form, Form::Packets);
        let [there, back] = &contents.flows[..] else { panic!("{contents:?}") };
        prop_assert_eq!(&there.bytes[..], &bytes[..]);
        prop_assert_eq!(there.missing, 0);
        prop_assert_eq!(there.name.as_deref(), Some("127.0.0.1:40000 > 127.0.0.1:8000"));
        prop_assert_eq!(&back.bytes[..], b"\0\0\0\0\0");
    }

    #[test]
    fn no_text_makes_it_panic(
        text in prop_oneof![
            "\\PC{0,80}",
            "[0-9a-fx:|*.#\\\\'\"%$b \n\t]{0,120}",
            "(0x0000:  )?(45[0-9a-f]{2} ?){0,30}[0-9a-f ]{0,60}",
            "(printf )?['\"]?(\\\\[0-7xn]|[0-9a-f%]){0,40}['\"]?( \\|)?",
        ],
    ) {
        if let Err(error) = hexdump::read(text.as_bytes()) {
            prop_assert!(error.line >= 1 && !error.to_string().contains('\n'));
        }
    }
}

#[test]
fn what_is_wrong_with_a_text_is_told_with_its_place() {
    for (text, expected) in [
        ("xyz", "line 1, column 1: 'x' is no hexadecimal digit"),
        ("01 02\n0 03", "line 2, column 1: half a byte"),
        ("010", "line 1, column 3: half a byte"),
        ("01 0x 02", "line 1, column 5: digits belong behind 0x"),
        ("0xzz", "line 1, column 3: 'z' is no"),
        ("01 \u{2026}", "line 1, column 4: '\u{2026}' is no"),
        ("00000000: 0g00  ..", "line 1, column 12: 'g' is no"),
        ("00000000: 0400 000  ...", "line 1, column 18: half a byte"),
        (
            "00000000: 04\n00000010: 04",
            "line 2, column 1: offset 0x10, 0x1 comes next",
        ),
        ("00000000: 04\nand so on", "line 2: no offset"),
        (
            "\\x",
            "line 1, column 1: hexadecimal digits belong behind \\x",
        ),
        ("\\x00\n\\q", "line 2, column 1: unknown escape"),
        ("\\400", "line 1, column 1: above \\377"),
        ("\\x00\\", "line 1, column 5: a backslash at the end"),
        ("printf '\\x00", "line 1, column 8: no closing '"),
        (
            "printf '\\x00%s' k",
            "line 1, column 13: a directive of printf",
        ),
        (
            "printf '\\x00' k",
            "line 1, column 15: one string belongs behind printf",
        ),
        ("printf", "line 1, column 1: 'p' is no"),
        (
            "printf | nc",
            "line 1, column 7: a string belongs behind printf",
        ),
        (
            "printf '\\x00'\nls\n",
            "line 2, column 1: not a printf command",
        ),
        (
            "'\\x00' x",
            "line 1, column 7: text behind the closing quote",
        ),
        ("\t0x0000:  4500", "line 1: packet 1 is not TCP"),
        (
            "\t0x0010:  4500",
            "line 1, column 1: offset 0x10, 0x0 comes next",
        ),
        ("00000000  00  |.|\n*\n00000fff\n", ""),
        (
            "00000000  00 00  |..|\n*\n00000fff\n",
            "line 3: a * with no whole lines",
        ),
        (
            "00000000  00  |.|\n*\nfffffffff\n",
            "line 3: a * for 68719476734 bytes, limit",
        ),
    ] {
        let error = hexdump::read(text.as_bytes()).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with(expected), "{text:?}: {error}");
        assert_eq!(error.is_empty(), expected.is_empty(), "{text:?}: {error}");
    }
    assert_eq!(REPEATED_MAX, 256 << 20);
}

#[test]
fn lines_that_a_star_stands_for_are_there() {
    let text = "00000000  01 01  |..|\n00000002  00 02  |..|\n*\n0000000a  03  |.|\n0000000b\n";
    let expected = [1, 1, 0, 2, 0, 2, 0, 2, 0, 2, 3];
    assert_eq!(one(text), (Form::Canonical, expected.to_vec()));
    let text = "00000000: 0000  ..\n*\n00000006: 05  .\n";
    assert_eq!(one(text).1, [0, 0, 0, 0, 0, 0, 5]);
}

#[test]
fn a_comment_is_no_part_of_digits() {
    let text = "01 0001 00000001 6b 76   # SET k v\n# and\n  03 0001 00000000 6b";
    let expected = b"\x01\0\x01\0\0\0\x01kv\x03\0\x01\0\0\0\0k";
    assert_eq!(one(text), (Form::Digits, expected.to_vec()));
}

#[test]
fn what_packets_lack_is_counted() {
    let first = packet((9, 8_000), 100, 0x18, b"abc", false);
    let third = packet((9, 8_000), 110, 0x18, b"def", false);
    let read = |text: &str| {
        let contents = hexdump::read(text.as_bytes()).unwrap();
        let flows = contents.flows.into_iter();
        flows
            .map(|flow| (flow.bytes.to_vec(), flow.missing))
            .collect::<Vec<_>>()
    };
    assert_eq!(read(&format!("{first}{third}")), [(b"abc".to_vec(), 7)]);
    // Cut by the capture: the last line is not there.
    let long = packet((9, 8_000), 100, 0x18, &[7; 30], false);
    let cut: Vec<&str> = long.lines().take(4).collect();
    assert_eq!(read(&cut.join("\n")), [(vec![7; 8], 22)]);
    // The port again, for another connection.
    let opening = packet((9, 8_000), 5_000, 0x02, b"", false);
    let again = packet((9, 8_000), 5_001, 0x18, b"xyz", false);
    let text = format!("{first}{opening}{again}");
    assert_eq!(read(&text), [(b"abc".to_vec(), 0), (b"xyz".to_vec(), 0)]);
    // None that carries anything.
    assert_eq!(read(&opening), []);
}

#[test]
fn a_large_dump_takes_time_in_proportion() {
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(1 << 20).collect();
    let started = std::time::Instant::now();
    assert!(one(&xxd(&bytes, 16, 2, 0)).1 == bytes);
    assert!(one(&spaced(&bytes)).1 == bytes);
    assert!(one(&spaced(&bytes).replace(' ', "")).1 == bytes);
    assert!(one(&printf::escaped(&bytes)).1 == bytes);
    assert!(one(&canonical(&bytes)).1 == bytes);
    // Quadratic cost would be minutes.
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}
