use std::{ffi::OsStr, fs, fs::File, os::unix::ffi::OsStrExt, process::Stdio};

use crate::{finish, nodes::node::Node, program, run_at, start, support::StubNode};

#[test]
fn into_a_pipe_values_are_exact_and_success_is_quiet() {
    let node = StubNode::start();
    run_at(node.addr(), &["set", "user123", "active"], b"").expect(0, "", "");
    run_at(node.addr(), &["get", "user123"], b"").expect(0, "active", "");
    run_at(node.addr(), &["del", "user123"], b"").expect(0, "", "");
    run_at(node.addr(), &["ping"], b"").expect(0, "PONG\n", "");
    assert_eq!(node.value(b"user123"), None);
}

#[test]
fn incr_and_decr_print_the_number_that_the_node_stores() {
    let node = Node::start();
    let run = |words: &[&str]| run_at(&node.addr.to_string(), words, b"");
    run(&["incr", "visits"]).expect(0, "1\n", "");
    run(&["incr", "visits", "41"]).expect(0, "42\n", "");
    run(&["decr", "visits"]).expect(0, "41\n", "");
    run(&["decr", "visits", "50"]).expect(0, "-9\n", "");
    run(&["incr", "visits", "-1"]).expect(0, "-10\n", "");
    run(&["get", "visits"]).expect(0, "-10", "");
    let lines = b"incr visits\ndecr visits 2\n";
    run_at(&node.addr.to_string(), &[""; 0], lines).expect(0, "-9\n-11\n", "");
    run(&["set", "text", "abc"]).expect(0, "", "");
    run(&["incr", "text"]).expect_failure(3, &["the value is no decimal number of 64 bits"]);
    run(&["get", "text"]).expect(0, "abc", "");
    for words in [
        &["incr", "k", "one"][..],
        &["decr", "k", "-9223372036854775808"],
    ] {
        run(words).expect_failure(2, &["is out of range, or no number"]);
    }
    run(&["get", "k"]).expect_failure(1, &["not found"]);
}

#[test]
fn a_missing_key_is_exit_code_1() {
    let node = StubNode::start();
    for command in ["get", "del"] {
        run_at(node.addr(), &[command, "a\nb"], b"").expect_failure(1, &[r#"not found: "a\nb""#]);
    }
}

#[test]
fn a_dash_reads_the_value_from_standard_input() {
    let node = StubNode::start();
    let value: Vec<u8> = (0..=255_u8).cycle().take(1_000_000).collect();
    run_at(node.addr(), &["set", "k", "-"], &value).expect(0, "", "");
    assert!(node.value(b"k") == Some(value.clone()));
    let run = run_at(node.addr(), &["get", "k"], b"");
    assert!(run.code == 0 && run.out == value && run.err.is_empty());
    run_at(node.addr(), &["set", "k", "-"], b"").expect(0, "", "");
    assert_eq!(node.value(b"k"), Some(Vec::new()));
}

#[test]
fn a_directory_as_standard_input_is_exit_code_8() {
    let node = StubNode::start();
    let directory = File::open(env!("CARGO_MANIFEST_DIR")).unwrap();
    let output = program()
        .args(["--addr", node.addr(), "set", "k", "-"])
        .stdin(Stdio::from(directory))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert_eq!(node.writes(), 0);
}

#[test]
fn bytes_that_are_not_utf_8_are_carried_exactly() {
    let node = StubNode::start();
    let raw = OsStr::from_bytes(b"\xff\xfe\n");
    let arguments = [OsStr::new("set"), raw, raw];
    run_at(node.addr(), &arguments, b"").expect(0, "", "");
    assert_eq!(node.value(b"\xff\xfe\n"), Some(b"\xff\xfe\n".to_vec()));
    let run = run_at(node.addr(), &[OsStr::new("get"), raw], b"");
    assert_eq!((run.code, &*run.out), (0, b"\xff\xfe\n".as_slice()));
    run_at(node.addr(), &[OsStr::new("del"), raw], b"").expect(0, "", "");
    let missing = run_at(node.addr(), &[OsStr::new("get"), raw], b"");
    missing.expect_failure(1, &[r#"not found: "\xff\xfe\n""#]);
}

#[test]
fn hex_dumps_both_directions_on_standard_error() {
    let node = StubNode::start();
    let expected = format!(
        "\
> to {addr}, 20 bytes
> 000000  01                       opcode     SET
> 000001  00 07                    key_len    7
> 000003  00 00 00 06              value_len  6
> 000007  75 73 65 72 31 32 33     key        \"user123\"
> 00000e  61 63 74 69 76 65        value      \"active\"
< from {addr}, 5 bytes
< 000000  00                       status     OK
< 000001  00 00 00 00              value_len  0
",
        addr = node.addr()
    );
    run_at(node.addr(), &["set", "user123", "active", "--hex"], b"").expect(0, "", &expected);
    let run = run_at(node.addr(), &["--hex", "get", "user123"], b"");
    assert_eq!(run.out, b"active");
    assert!(run.err.ends_with("value      \"active\"\n"), "{}", run.err);
}

#[test]
fn writes_follow_redirects_unless_turned_off() {
    let leader = StubNode::start();
    let follower = StubNode::follower(leader.addr());
    run_at(follower.addr(), &["set", "k", "v"], b"").expect(0, "", "");
    assert_eq!(leader.value(b"k"), Some(b"v".to_vec()));
    let refused = run_at(follower.addr(), &["--no-redirect", "set", "k", "v"], b"");
    refused.expect_failure(4, &["not the leader", leader.addr(), "--addr"]);
    let refused = run_at(follower.addr(), &["del", "k", "--no-redirect"], b"");
    refused.expect_failure(4, &[leader.addr()]);
    assert_eq!(leader.writes(), 1);
    follower.follow(Some(""));
    let refused = run_at(follower.addr(), &["set", "k", "v"], b"");
    refused.expect_failure(4, &["knows none", "name another node with --addr"]);
}

#[test]
fn the_address_comes_from_the_option_the_environment_or_the_config() {
    let node = StubNode::start();
    let other = StubNode::start();
    let ping = |arguments: &[&str], variable: &str| {
        let mut command = program();
        command.args(arguments).env("GOPHERSTORE_ADDR", variable);
        finish(&mut command, b"").expect(0, "PONG\n", "");
    };
    ping(&["ping"], node.addr());
    assert_eq!(node.peer.connections(), 1);
    ping(&["--addr", node.addr(), "ping"], other.addr());
    assert_eq!(node.peer.connections(), 2);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.toml");
    let text = format!(
        "cluster = \"demo\"\nleader = \"n1\"\n\n[[node]]\nname = \"n1\"\naddr = \"{}\"\n",
        node.addr()
    );
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    ping(&["ping", "--config", file, "--node", "n1"], other.addr());
    assert_eq!((node.peer.connections(), other.peer.connections()), (3, 0));

    let run = |arguments: &[&str]| finish(program().args(arguments), b"");
    let unknown = run(&["ping", "--config", file, "--node", "n2"]);
    unknown.expect_failure(2, &["no node \"n2\"", file, "there are n1"]);
    run(&["ping", "--config", "/none", "--node", "n1"]).expect_failure(2, &["/none"]);
    fs::write(file, "cluster = 3\n").unwrap();
    run(&["ping", "--config", file, "--node", "n1"]).expect_failure(2, &[file, "cluster"]);
}

#[test]
fn a_closed_pipe_ends_it_without_an_error() {
    let node = StubNode::start();
    node.insert(b"k", &vec![b'v'; 8 << 20]);
    for (arguments, input) in [(&["get", "k"][..], ""), (&[][..], "get k\nping\nping\n")] {
        let mut child = start(program().args(["--addr", node.addr()]).args(arguments));
        drop(child.stdout.take());
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_is_full_is_not_success() {
    let node = StubNode::start();
    node.insert(b"k", b"v");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let output = program()
        .args(["--addr", node.addr(), "get", "k"])
        .stdout(Stdio::from(full()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(err.contains("cannot write to standard output"), "{err}");
    // Texts generated into a file, too.
    for arguments in [&["--generate", "man"][..], &["help", "bench"]] {
        let output = program()
            .args(arguments)
            .stdout(Stdio::from(full()))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(8), "{output:?}");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            err.starts_with("gopherstore-cli: cannot write to standard output"),
            "{err}"
        );
    }
}

#[test]
fn a_status_is_printed_as_it_came() {
    let node = StubNode::start();
    node.insert(b"k", b"v");
    run_at(node.addr(), &["status"], b"").expect(0, "node: n1\nstate: serving\nkeys: 1\n", "");
}

#[test]
fn resync_needs_discard() {
    let node = StubNode::start();
    node.set_refusing();
    run_at(node.addr(), &["resync"], b"").expect_failure(2, &["confirm that with --discard"]);
    assert_eq!((node.discards(), node.peer.connections()), (0, 0));
    run_at(node.addr(), &["resync", "--discard"], b"").expect(0, "", "");
    assert_eq!(node.discards(), 1);
    let again = run_at(node.addr(), &["--discard", "resync"], b"");
    again.expect_failure(
        3,
        &[
            "refused the order: nothing to discard",
            "keeps its data",
            "status",
        ],
    );
}
