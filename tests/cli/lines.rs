use std::io::Write;

use crate::{
    finish_endless, program, run_at,
    support::{Peer, StubNode, next_frame, response, unused_addr},
};

#[test]
fn each_response_is_a_line() {
    let node = StubNode::start();
    let input = "# a comment\n\nset k v\nget k\n  DEL k\nget k\r\nping\n";
    run_at::<&str>(node.addr(), &[], input.as_bytes()).expect(
        1,
        "OK\nv\nOK\n(not found)\nPONG\n",
        "",
    );
    assert_eq!(node.peer.connections(), 1);
}

/// As editors and shells of other systems write it.
#[test]
fn marks_and_ends_of_other_systems_are_no_part_of_a_line() {
    let node = StubNode::start();
    let input = b"\xef\xbb\xbfset k v\r\nget k\r\n\xef\xbb\xbf# another file\r\n\xef\xbb\xbfget \"k\"\r\n\r\nget 'k'";
    run_at::<&str>(node.addr(), &[], input).expect(0, "OK\nv\nv\nv\n", "");
    assert_eq!(node.value(b"k"), Some(b"v".to_vec()));
    // Elsewhere it is bytes like any others, as are zeros.
    let input = b"set \xef\xbb\xbf a\0b\0\nget \xef\xbb\xbf\n";
    run_at::<&str>(node.addr(), &[], input).expect(0, "OK\n\"a\\x00b\\x00\"\n", "");
    assert_eq!(node.value(b"\xef\xbb\xbf"), Some(b"a\0b\0".to_vec()));
}

#[test]
fn a_line_without_an_end_is_refused_at_the_limit_that_the_help_names() {
    let node = StubNode::start();
    let mut command = program();
    command.args(["--addr", node.addr()]);
    let run = finish_endless(&mut command, b"ping\nset k ", vec![b'v'; 1 << 20]);
    assert_eq!((run.code, &*run.out), (2, &b"PONG\n"[..]), "{run:?}");
    let expected = "gopherstore-cli: line 2: longer than 128 MiB, so it and all behind it is left out; a long value is \
                    for set KEY - < FILE\n";
    assert_eq!(run.err, expected);
    assert_eq!(node.writes(), 0);
    let help = run_at::<&str>(node.addr(), &[], b"help\n").out;
    assert!(
        String::from_utf8(help)
            .unwrap()
            .contains("A line has 128 MiB at most")
    );
}

#[test]
fn a_status_is_its_lines_and_no_line_gives_up_data() {
    let node = StubNode::start();
    node.set_refusing();
    let run = run_at::<&str>(node.addr(), &[], b"status\nresync --discard\nping\n");
    let expected = b"node: n1\nstate: refused\nkeys: 0\nPONG\n";
    assert_eq!((run.code, &*run.out), (2, expected.as_slice()));
    assert!(
        run.err.contains("line 2: resync is no command for lines"),
        "{run:?}"
    );
    assert_eq!(node.discards(), 0);
}

#[test]
fn success_is_exit_code_0_and_the_last_line_needs_no_end() {
    let node = StubNode::start();
    run_at::<&str>(node.addr(), &[], b"ping").expect(0, "PONG\n", "");
    run_at::<&str>(&unused_addr(), &[], b"# nothing to do\n").expect(0, "", "");
    run_at::<&str>(node.addr(), &[], b"ping\nexit\nping\n").expect(0, "PONG\n", "");
    run_at::<&str>(node.addr(), &[], b"QUIT\nping\n").expect(0, "", "");
    let help = run_at::<&str>(node.addr(), &[], b"help\n");
    assert!(help.code == 0 && help.out.starts_with(b"set KEY VALUE"));
}

#[test]
fn quotes_and_escapes_are_read_and_printed() {
    let node = StubNode::start();
    let input = br#"set k "two words\x00\n\\\"\xff"
get k
set k '"single\n'
get k
set k ""
get k
set k (odd)
get k
set k -
get k
"#;
    run_at::<&str>(node.addr(), &[], input).expect(
        0,
        r#"OK
"two words\x00\n\\\"\xff"
OK
"\"single\\n"
OK
""
OK
"(odd)"
OK
-
"#,
        "",
    );
    run_at::<&str>(node.addr(), &[], b"set \xff\xfe \x80\n").expect(0, "OK\n", "");
    assert_eq!(node.value(b"\xff\xfe"), Some(vec![0x80]));
}

#[test]
fn a_bad_line_is_reported_with_its_number_and_the_others_go_on() {
    let node = StubNode::start();
    let input = b"ping\n\nset k\nget \"k\nset k refuse\npurge\nget k\nping\n";
    let run = run_at::<&str>(node.addr(), &[], input);
    assert_eq!(
        (run.code, &*run.out),
        (2, b"PONG\n(not found)\nPONG\n".as_slice())
    );
    let starts = [
        "gopherstore-cli: line 3: 1 given after set; write set KEY VALUE",
        "gopherstore-cli: line 4: no closing \"",
        "gopherstore-cli: line 5: the node refused the request: ",
        "gopherstore-cli: line 6: unknown command purge",
    ];
    let lines: Vec<&str> = run.err.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{}", run.err);
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn the_exit_code_is_the_first_failing_lines() {
    let node = StubNode::start();
    let code = |input: &[u8]| run_at::<&str>(node.addr(), &[], input).code;
    assert_eq!(code(b"set k refuse\nget none\n"), 3);
    assert_eq!(code(b"get none\nset k refuse\nping\n"), 1);
    node.follow(Some(""));
    assert_eq!(code(b"ping\nset k v\nget none\n"), 4);
}

#[test]
fn lines_read_what_they_wrote() {
    // The follower never gets what its leader takes.
    let (leader, follower) = (StubNode::start(), StubNode::start());
    follower.follow(Some(leader.addr()));
    let input = b"get k\nset k v\nget k\nset k w\nget k\ndel k\nget k\n";
    let run = run_at::<&str>(follower.addr(), &[], input);
    let expected = b"(not found)\nOK\nv\nOK\nw\nOK\n(not found)\n";
    assert_eq!((run.code, &*run.out), (1, expected.as_slice()), "{run:?}");
    let said = format!(
        "gopherstore-cli: {} follows and may not show a write at once; this session goes on with the leader at {}\n",
        follower.addr(),
        leader.addr()
    );
    assert_eq!(run.err, said, "once");
    // One command is no session.
    run_at(follower.addr(), &["set", "k", "v"], b"").expect(0, "", "");
}

#[test]
fn a_connection_that_fails_ends_it() {
    let peer = Peer::start(|_, mut stream| {
        for _ in 0..2 {
            if next_frame(&mut stream).is_some() {
                let _ = stream.write_all(&response(0, b""));
            }
        }
        let _ = next_frame(&mut stream);
    });
    let input = b"set a 1\nset b 2\nset c 3\nset d 4\n";
    let run = run_at::<&str>(&peer.addr, &[], input);
    assert_eq!((run.code, &*run.out), (5, b"OK\nOK\n".as_slice()));
    assert!(
        run.err.starts_with("gopherstore-cli: line 3: "),
        "{}",
        run.err
    );
    assert_eq!(run.err.lines().count(), 1);
    assert_eq!(peer.connections(), 1);
    let run = run_at::<&str>(&unused_addr(), &[], b"ping\nping\n");
    run.expect_failure(5, &["line 1: cannot connect"]);
}

#[test]
fn a_line_is_answered_before_the_next_one_is_there() {
    let node = StubNode::start();
    let mut child = crate::start(crate::program().args(["--addr", node.addr()]));
    let mut stdin = child.stdin.take().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        stdin.write_all(b"ping\n").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "PONG\n");
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
