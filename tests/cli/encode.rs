use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use crate::{Run, finish, nodes::node::Node, nodes::tools, run, run_at};

/// Lines as they are typed line by line, the value that `k` has in each where it is a SET of it, and the response.
const LINES: [(&str, &[u8]); 9] = [
    ("ping", b"\0\0\0\0\x04PONG"),
    ("set user123 active", b"\0\0\0\0\0"),
    ("get user123", b"\0\0\0\0\x06active"),
    (
        r#"set k "it's 100% \"\\\x00\xff\n\t$HOME `id` !! %s""#,
        b"\0\0\0\0\0",
    ),
    (
        "get k",
        b"\0\0\0\0\x20it's 100% \"\\\0\xff\n\t$HOME `id` !! %s",
    ),
    (r#"set "" ''"#, b"\0\0\0\0\0"),
    ("get ''", b"\0\0\0\0\0"),
    ("del k", b"\0\0\0\0\0"),
    ("get k", b"\x03\0\0\0\0"),
];

#[track_caller]
fn encoded(addr: &str, line: &str, form: &str) -> String {
    let run = run_at(addr, &["encode", line, "--as", form], b"");
    assert_eq!((run.code, &*run.err), (0, ""));
    let text = String::from_utf8(run.out).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    text
}

/// Pastes lines into a shell.
fn paste(shell: &str, lines: &str) -> Run {
    // A shell complains of a locale that the machine lacks.
    finish(Command::new(shell).env("LC_ALL", "C"), lines.as_bytes())
}

fn unhex(out: &[u8]) -> Vec<u8> {
    let run = finish(Command::new("xxd").arg("-r"), out);
    assert_eq!(run.code, 0, "{run:?}");
    run.out
}

/// The shells of this machine, `sh` at least.
fn shells() -> impl Iterator<Item = &'static str> {
    ["sh", "bash", "dash", "zsh"]
        .into_iter()
        .filter(|name| tools::is_there(name))
}

#[test]
fn a_line_for_nc_works_in_a_shell() {
    if !tools::are_there(&["nc", "xxd"]) {
        return;
    }
    let node = Node::start();
    let addr = node.addr.to_string();
    for shell in shells() {
        for (line, response) in LINES {
            let text = encoded(&addr, line, "nc");
            let run = paste(shell, &text);
            assert_eq!((run.code, &*run.err), (0, ""), "{shell}: {text}");
            assert_eq!(unhex(&run.out), response, "{shell}: {text}");
        }
    }
    let run = paste("sh", &encoded(&addr, "status", "nc"));
    let response = String::from_utf8_lossy(&unhex(&run.out)).into_owned();
    assert!(response.contains("state: serving\n"), "{response}");
}

#[test]
fn a_line_for_python_works_in_a_shell() {
    if !tools::are_there(&["python3"]) {
        return;
    }
    let node = Node::start();
    let addr = node.addr.to_string();
    for (line, response) in LINES {
        let text = encoded(&addr, line, "python");
        // Python reads its own output of bytes again.
        let check = format!(
            "import ast, sys; assert ast.literal_eval(sys.stdin.read()) == bytes.fromhex('{}')",
            response
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        );
        let run = paste("sh", &text);
        assert_eq!((run.code, &*run.err), (0, ""), "{text}");
        let checked = finish(Command::new("python3").args(["-c", &check]), &run.out);
        assert_eq!(checked.code, 0, "{text}: {run:?} {}", checked.err);
    }
}

#[test]
fn a_line_for_printf_prints_the_frame_and_every_line_is_decoded() {
    for (line, _) in LINES {
        let digits = encoded("127.0.0.1:8000", line, "hex");
        let frame: Vec<u8> = {
            let digits: String = digits.split_whitespace().collect();
            let pairs = (0..digits.len()).step_by(2);
            pairs
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect()
        };
        let shown = run(&["decode", "--as", "request"], &frame);
        assert_eq!(shown.code, 0, "{shown:?}");
        for form in ["hex", "printf", "nc"] {
            let text = encoded("127.0.0.1:8000", line, form);
            assert_eq!(run(&["decode"], text.as_bytes()), shown, "{text}");
            assert_eq!(run(&["decode", text.trim_end()], b""), shown, "{text}");
        }
        let printf = encoded("127.0.0.1:8000", line, "printf");
        for shell in shells() {
            assert_eq!(paste(shell, &printf).out, frame, "{shell}: {printf}");
        }
    }
}

#[test]
fn digits_go_through_xxd() {
    if !tools::are_there(&["nc", "xxd"]) {
        return;
    }
    let node = Node::start();
    let (host, port) = ("127.0.0.1", node.addr.port());
    for (line, response) in LINES {
        let digits = encoded("127.0.0.1:8000", line, "hex");
        let text = format!(
            "echo '{}' | xxd -r -p | nc -N {host} {port} | xxd",
            digits.trim_end()
        );
        assert_eq!(unhex(&paste("sh", &text).out), response, "{text}");
    }
}

#[test]
fn every_byte_can_be_pasted() {
    if !tools::are_there(&["nc", "xxd"]) {
        return;
    }
    let node = Node::start();
    let addr = node.addr.to_string();
    let value: Vec<u8> = (0..=255).collect();
    let run = run_at(&addr, &["encode", "set", "k", "-", "--as", "nc"], &value);
    assert_eq!(run.code, 0, "{run:?}");
    let text = String::from_utf8(run.out).unwrap();
    assert_eq!(unhex(&paste("sh", &text).out), b"\0\0\0\0\0");
    assert_eq!(run_at(&addr, &["get", "k"], b"").out, value);
}

#[test]
fn several_words_are_taken_as_they_are() {
    let words = [
        OsStr::new("encode"),
        OsStr::new("set"),
        OsStr::new("\"q\" "),
        OsStr::from_bytes(b"\xff"),
    ];
    run(&words, b"").expect(0, "01 0004 00000001 22712220 ff\n", "");
    run(&["encode", "GET", "get"], b"").expect(0, "02 0003 00000000 676574\n", "");
    run(&["encode", "set", "t", "-5"], b"").expect(0, "01 0001 00000002 74 2d35\n", "");
    run(&["encode", "set", "t", "-"], b"\0x").expect(0, "01 0001 00000002 74 0078\n", "");
    run(&["encode", "set t -"], b"").expect(0, "01 0001 00000001 74 2d\n", "");
    run(&["encode", "status"], b"").expect(0, "40 0000 00000000\n", "");
    run_at("[::1]:9", &["encode", "ping", "--as", "nc"], b"").expect(
        0,
        "printf '\\004\\000\\000\\000\\000\\000\\000' | nc -N ::1 9 | xxd\n",
        "",
    );
}

/// Operations that are no command of lines are written with the fields of the document.
#[test]
fn every_operation_of_the_document_is_encoded_by_the_names_of_its_fields() {
    for (words, digits) in [
        (&["discard"][..], "41 0000 00000000\n"),
        (&["snapshot"], "44 0000 00000000\n"),
        (
            &["scan", "user:"],
            "0e 0005 00000011 757365723a 0000000000000000000000000000000000\n",
        ),
        (
            &["scan", "u", "1", "2", "0x1122334455667788", "7", "k"],
            "0e 0001 00000012 75 01000000021122334455667788000000076b\n",
        ),
        (&["LIST", "user123"], "43 0007 00000000 75736572313233\n"),
        (
            &["sums", "", "0x1122334455667788", "7", "12"],
            "42 0000 0000000d 1122334455667788000000070c\n",
        ),
        (
            &[
                "follow",
                "n2",
                "2",
                "0",
                "1",
                "0x1111111111111111",
                "7",
                "demo",
            ],
            "60 0002 0000001e 6e32 020000000000000000011111111111111111000000000000000764656d6f\n",
        ),
    ] {
        let words = [&["encode"], words].concat();
        run(&words, b"").expect(0, digits, "");
    }
    run(&["encode", "epoch", "4", "0x0abc"], b"").expect(
        0,
        "67 0000 00000010 00000000000000040000000000000abc\n",
        "",
    );
    for (words, parts) in [
        (
            &["list"][..],
            &["0 given after list; write list KEY INCARNATION PARTITION BITS [BUCKETS]"][..],
        ),
        (
            &["sums", "", "1", "2"],
            &["3 given after sums; write sums KEY INCARNATION PARTITION BITS"],
        ),
        (
            &["sums", "", "-1", "0", "0"],
            &["-1 is no incarnation from 0 to 18446744073709551615"],
        ),
        (
            &["sums", "", "0", "x", "0"],
            &["x is no partition from 0 to 4294967295"],
        ),
        (
            &["sums", "", "0", "0", "13"],
            &["bits 13, limit 12; write sums KEY"],
        ),
        (
            &["follow", "n2", "1", "0", "0", "0", "0"],
            &["version 1 of the replication stream"],
        ),
        (&["discard", "k"], &["1 given after discard; write discard"]),
    ] {
        let words = [&["encode"], words].concat();
        run(&words, b"").expect_failure(2, parts);
    }
}

#[test]
fn words_that_form_no_line_are_exit_code_2() {
    for (arguments, parts) in [
        (&["encode"][..], ["no command to encode", "get KEY"]),
        (&["encode", "purge"], ["unknown command purge", "--help"]),
        (&["encode", "set", "k"], ["write set KEY VALUE", "--help"]),
        (&["encode", "get \"k"], ["no closing \"", "--help"]),
        (&["encode", "resync", "--discard"], ["--discard", "--help"]),
        (
            &["encode", "ping", "--as", "base64"],
            ["hex, printf, nc and python", "base64"],
        ),
        (
            &["encode", "ping", "--as", "nc", "--addr", "$(id):1"],
            ["$(id)", "--addr"],
        ),
        (
            &["encode", "ping", "--as", "nc", "--addr", "x"],
            ["no address", "HOST:PORT"],
        ),
    ] {
        run(arguments, b"").expect_failure(2, &parts);
    }
    let long = vec![b'v'; 70_000];
    let run_long = |form: &str| run(&["encode", "set", "k", "-", "--as", form], &long);
    run_long("python").expect_failure(2, &["70008 bytes", "use --as nc"]);
    assert_eq!(run_long("nc").code, 0);
    run(&["encode", "get", &"k".repeat(65_536)], b"").expect_failure(2, &["65536", "shorten it"]);
}
