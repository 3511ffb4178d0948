#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::error::Error as _;

use proptest::prelude::*;

use super::*;

/// Line 5 is n1's address, line 8 n2's; sections follow from line 9 on.
const GOOD: &str = r#"cluster = "demo"
leader = "n1"
[[node]]
name = "n1"
addr = "127.0.0.1:8000"
[[node]]
name = "n2"
addr = "127.0.0.1:8001"
"#;

fn error(text: &str) -> String {
    Config::parse(text, "cluster.toml").unwrap_err().to_string()
}

#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    assert!(GOOD.contains(from), "{from:?} is not in the good file");
    assert_eq!(error(&GOOD.replacen(from, to, 1)), expected);
}

/// The good file and more lines, the first of which is line 9.
#[track_caller]
fn check_with(more: &str, expected: &str) {
    assert_eq!(error(&format!("{GOOD}{more}")), expected);
}

#[test]
fn the_example_file_holds_the_documented_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster.toml");
    let config = Config::load(&path).unwrap();
    assert_eq!((&*config.cluster, &*config.leader), ("demo", "n1"));
    let nodes: Vec<_> = config
        .nodes
        .iter()
        .map(|node| (&*node.name, &*node.addr))
        .collect();
    assert_eq!(
        nodes,
        [
            ("n1", "127.0.0.1:8000"),
            ("n2", "127.0.0.1:8001"),
            ("n3", "127.0.0.1:8002")
        ]
    );
    assert_eq!(config.leader(), &config.nodes[0]);
    assert_eq!(config.node("n3"), Some(&config.nodes[2]));
    assert_eq!(config.node("n4"), None);
    assert_eq!(config.replication, ReplicationConfig::default());
    assert_eq!(config.limits, LimitsConfig::default());
    assert_eq!(config.storage, StorageConfig::default());
}

#[test]
fn omitted_settings_have_their_defaults() {
    let config = Config::parse(GOOD, "cluster.toml").unwrap();
    assert_eq!(config.replication, ReplicationConfig::default());
    assert_eq!(config.limits, LimitsConfig::default());
}

#[test]
fn every_value_arrives_in_its_field() {
    let more = "[replication]\nheartbeat_interval_ms = 11\nleader_timeout_ms = 12\nbacklog_bytes = 1_048_577\n\
                    [limits]\nmax_connections = 13\nmax_value_bytes = 14\nrequest_timeout_ms = 15\n\
                    idle_timeout_ms = 16\nmax_memory_bytes = 1_048_593\nwhen_full = \"evict\"\n\
                    [storage]\ndata_dir = \"d/e\"\nsync = \"interval\"\nsync_interval_ms = 17\n";
    let config = Config::parse(&format!("{GOOD}{more}"), "cluster.toml").unwrap();
    assert_eq!(
        config.replication,
        ReplicationConfig {
            heartbeat_interval: Duration::from_millis(11),
            leader_timeout: Duration::from_millis(12),
            backlog_bytes: 1_048_577,
        }
    );
    assert_eq!(
        config.limits,
        LimitsConfig {
            max_connections: 13,
            max_value_bytes: 14,
            request_timeout: Duration::from_millis(15),
            idle_timeout: Some(Duration::from_millis(16)),
            max_memory_bytes: Some(1_048_593),
            when_full: WhenFull::Evict,
        }
    );
    assert_eq!(
        config.storage,
        StorageConfig {
            data_dir: Some("d/e".into()),
            sync: SyncPolicy::Interval,
            sync_interval: Duration::from_millis(17),
        }
    );
}

#[test]
fn numbers_have_ranges_and_their_ends_are_in_them() {
    let cases: [(&str, &str, i128, i128); 9] = [
        ("replication", "heartbeat_interval_ms", 10, 60_000),
        ("replication", "leader_timeout_ms", 501, 3_600_000),
        ("replication", "backlog_bytes", 1 << 20, 1 << 40),
        ("limits", "max_connections", 1, 1_000_000),
        ("limits", "max_value_bytes", 1, 4_294_901_745),
        ("limits", "request_timeout_ms", 1, 86_400_000),
        ("limits", "idle_timeout_ms", 0, 2_592_000_000),
        ("limits", "max_memory_bytes", 1 << 20, 1 << 50),
        ("storage", "sync_interval_ms", 1, 60_000),
    ];
    for (table, key, min, max) in cases {
        let text = |value: i128| {
            let timeout = if key == "heartbeat_interval_ms" {
                "leader_timeout_ms = 3600000\n"
            } else {
                ""
            };
            format!("{GOOD}[{table}]\n{key} = {value}\n{timeout}")
        };
        for value in [min, max] {
            Config::parse(&text(value), "cluster.toml").unwrap();
        }
        for value in [max + 1, i128::from(i64::MAX), -1] {
            let min = if key == "leader_timeout_ms" { 1 } else { min };
            assert_eq!(
                error(&text(value)),
                format!("cluster.toml:10: {table}.{key}: {value} is out of range {min}..={max}")
            );
        }
    }
    check_with(
        "[limits]\nmax_connections = 0\n",
        "cluster.toml:10: limits.max_connections: 0 is out of range 1..=1000000",
    );
    check_with(
        "[limits]\nmax_value_bytes = 99999999999999999999\n",
        "cluster.toml:10: limits.max_value_bytes: 99999999999999999999 is out of range 1..=4294901745",
    );
    check_with(
        "[replication]\nbacklog_bytes = 1048575\n",
        "cluster.toml:10: replication.backlog_bytes: 1048575 is out of range 1048576..=1099511627776",
    );
}

#[test]
fn a_memory_limit_of_0_is_none() {
    let text = format!("{GOOD}[limits]\nmax_memory_bytes = 0\nwhen_full = \"refuse\"\n");
    let config = Config::parse(&text, "cluster.toml").unwrap();
    assert_eq!(config.limits, LimitsConfig::default());
    check_with(
        "[limits]\nmax_memory_bytes = 1048575\n",
        "cluster.toml:10: limits.max_memory_bytes: 1048575 is out of range 1048576..=1125899906842624",
    );
}

#[test]
fn memory_settings_that_are_likely_mistakes_give_warnings() {
    let warnings = |more: &str| {
        let text = format!("{GOOD}[limits]\n{more}");
        Config::parse(&text, "cluster.toml").unwrap().warnings()
    };
    assert_eq!(
        warnings("when_full = \"evict\""),
        ["limits.when_full: \"evict\" has no effect without max_memory_bytes"]
    );
    assert_eq!(
        warnings("max_memory_bytes = 67108863"),
        [
            "limits.max_memory_bytes: 67108863 is less than max_value_bytes, which is 67108864; a value longer than \
             that always gets FULL"
        ]
    );
    assert_eq!(
        warnings("max_memory_bytes = 67108864\nwhen_full = \"evict\""),
        [""; 0]
    );
}

#[test]
fn the_leader_timeout_is_above_the_heartbeat_interval() {
    check_with(
        "[replication]\nleader_timeout_ms = 500\n",
        "cluster.toml:10: replication.leader_timeout_ms: 500 is not above heartbeat_interval_ms, which is 500",
    );
    check_with(
        "[replication]\n\nheartbeat_interval_ms = 6000\n",
        "cluster.toml:11: replication.leader_timeout_ms: 5000 is not above heartbeat_interval_ms, which is 6000",
    );
}

#[test]
fn unknown_keys_are_named_with_the_known_ones() {
    check(
        "leader",
        "leeder",
        "cluster.toml:2:1: leeder: unknown key `leeder`, expected one of `cluster`, `leader`, `node`, \
             `replication`, `limits`, `storage`",
    );
    check(
        "addr = \"127.0.0.1:8001\"",
        "address = \"127.0.0.1:8001\"",
        "cluster.toml:8:1: node.address: unknown key `address`, expected one of `name`, `addr`, \
             `listen`",
    );
    check_with(
        "[limits]\nmax_conns = 1\n",
        "cluster.toml:10:1: limits.max_conns: unknown key `max_conns`, expected one of `max_connections`, \
             `max_value_bytes`, `request_timeout_ms`, `idle_timeout_ms`, `max_memory_bytes`, `when_full`",
    );
    check_with(
        "[replication]\n\"a\\nb\" = 1\n",
        "cluster.toml:10:1: replication.a\\nb: unknown key `a b`, expected one of `heartbeat_interval_ms`, \
             `leader_timeout_ms`, `backlog_bytes`",
    );
}

#[test]
fn missing_keys_and_wrong_types_are_named() {
    assert_eq!(error(""), "cluster.toml:1:1: missing key `cluster`");
    check(
        "leader = \"n1\"",
        "",
        "cluster.toml:1:1: missing key `leader`",
    );
    check(
        "addr = \"127.0.0.1:8001\"",
        "",
        "cluster.toml:6:1: node: missing key `addr`",
    );
    check(
        "\"demo\"",
        "3",
        "cluster.toml:1:11: cluster: invalid type: integer `3`, expected a string",
    );
    check_with(
        "[limits]\nrequest_timeout_ms = \"5s\"\n",
        "cluster.toml:10:22: limits.request_timeout_ms: invalid type: string \"5s\", expected a whole number",
    );
    check_with(
        "[limits]\nmax_connections = 1.5\n",
        "cluster.toml:10:19: limits.max_connections: invalid type: floating point `1.5`, expected a whole number",
    );
    check_with(
        "[limits]\nwhen_full = \"wait\"\n",
        "cluster.toml:10:13: limits.when_full: unknown variant `wait`, expected `refuse` or `evict`",
    );
    check_with(
        "[storage]\nsync = \"often\"\n",
        "cluster.toml:10:8: storage.sync: unknown variant `often`, expected one of `always`, `interval`, `never`",
    );
    check_with(
        "[storage]\ndir = \"d\"\n",
        "cluster.toml:10:1: storage.dir: unknown key `dir`, expected one of `data_dir`, `sync`, `sync_interval_ms`",
    );
    assert_eq!(
        error("limits = 3\ncluster = \"a\"\nleader = \"b\"\n"),
        "cluster.toml:1:10: limits: invalid type: integer `3`, expected a table"
    );
    assert_eq!(
        error("node = [1]\ncluster = \"a\"\nleader = \"b\"\n"),
        "cluster.toml:1:9: node: invalid type: integer `1`, expected a table with name and addr"
    );
}

#[test]
fn invalid_toml_is_reported_where_it_begins() {
    let text = "cluster = \"demo\nleader = \"n1\"\nfoo\n";
    let error = Config::parse(text, "a/b.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "a/b.toml:1:16: cluster: invalid basic string, expected `\"`"
    );
    assert_eq!(error.line(), Some(1));
    assert!(error.source().is_some());
    check(
        "leader",
        "cluster",
        "cluster.toml:2:1: cluster: duplicate key",
    );
    check_with(
        "[limits\n",
        "cluster.toml:9:8: unclosed table, expected `]`",
    );
}

#[test]
fn the_leader_is_one_of_the_nodes() {
    check(
        "leader = \"n1\"",
        "leader = \"n9\"",
        "cluster.toml:2: leader: \"n9\" is not a node; there are \"n1\", \"n2\"",
    );
    let none = "cluster.toml:2: node: there is none; list each member as [[node]] with name = \"n1\" and \
                    addr = \"127.0.0.1:8000\"";
    assert_eq!(error("cluster = \"a\"\nleader = \"n1\"\n"), none);
    assert_eq!(error("cluster = \"a\"\nleader = \"n1\"\nnode = []\n"), none);
}

#[test]
fn names_are_short_and_plain() {
    check(
        "\"demo\"",
        "\"\"",
        "cluster.toml:1: cluster: \"\" is no name; use 1 to 64 of A-Z a-z 0-9 - _ .",
    );
    check(
        "\"n2\"",
        "\"n\\n2\"",
        "cluster.toml:7: node.name: \"n\\n2\" is no name; use 1 to 64 of A-Z a-z 0-9 - _ .",
    );
    let long = "x".repeat(65);
    check(
        "\"demo\"",
        &format!("{long:?}"),
        &format!("cluster.toml:1: cluster: {long:?} is no name; use 1 to 64 of A-Z a-z 0-9 - _ ."),
    );
    let good = GOOD.replacen("demo", &"x".repeat(64), 1);
    Config::parse(&good, "cluster.toml").unwrap();
}

#[test]
fn names_and_addresses_occur_once() {
    check(
        "name = \"n2\"",
        "name = \"n1\"",
        "cluster.toml:7: node.name: \"n1\" is already the name of another node (line 4)",
    );
    check(
        "8001",
        "8000",
        "cluster.toml:8: node \"n2\": addr: 127.0.0.1:8000 is already that of \"n1\" (line 5)",
    );
    let twice = GOOD.replacen("127.0.0.1:8000", "[::1]:8000", 1).replacen(
        "127.0.0.1:8001",
        "[0:0::1]:08000",
        1,
    );
    assert_eq!(
        error(&twice),
        "cluster.toml:8: node \"n2\": addr: [0:0::1]:08000 is already that of \"n1\" (line 5)"
    );
}

#[test]
fn addresses_are_host_and_port() {
    let cases = [
        (
            "127.0.0.1",
            "\"127.0.0.1\" is not host:port, such as 127.0.0.1:8000",
        ),
        ("", "\"\" is not host:port, such as 127.0.0.1:8000"),
        (
            "host:",
            "\"host:\" is not host:port, such as 127.0.0.1:8000",
        ),
        (
            "host:+80",
            "\"host:+80\" is not host:port, such as 127.0.0.1:8000",
        ),
        (
            "host:http",
            "\"host:http\" is not host:port, such as 127.0.0.1:8000",
        ),
        (
            "::1:8000",
            "\"::1:8000\" is not host:port; an IPv6 address needs brackets, such as [::1]:8000",
        ),
        (
            ":8000",
            "\":8000\" is not host:port; its host is neither a name nor an IP address",
        ),
        (
            "[::g]:8000",
            "\"[::g]:8000\" is not host:port; its host is neither a name nor an IP address",
        ),
        (
            "127.0.0.256:8000",
            "\"127.0.0.256:8000\" is not host:port; its host is neither a name nor an IP address",
        ),
        (
            "my host:8000",
            "\"my host:8000\" is not host:port; its host is neither a name nor an IP address",
        ),
        (
            "127.0.0.1:65536",
            "port 65536 of \"127.0.0.1:65536\" is out of range 1..=65535",
        ),
        (
            "127.0.0.1:0",
            "port 0 of \"127.0.0.1:0\" is out of range 1..=65535; only a cluster of one node may leave the \
                 choice to the system",
        ),
    ];
    for (addr, expected) in cases {
        check(
            "127.0.0.1:8001",
            addr,
            &format!("cluster.toml:8: node \"n2\": addr: {expected}"),
        );
    }
    for addr in [
        "localhost:1",
        "[::1]:65535",
        "10.0.0.1:80",
        "n-1.example_x.org:8000",
    ] {
        let config = Config::parse(&GOOD.replacen("127.0.0.1:8001", addr, 1), "x").unwrap();
        assert_eq!(config.nodes[1].addr, addr);
    }
}

#[test]
fn a_node_that_nobody_could_reach_is_refused_and_may_listen_everywhere() {
    for (addr, port) in [
        ("0.0.0.0:8001", 8001),
        ("[::]:8001", 8001),
        ("[0::0]:1", 1),
        ("[::ffff:0.0.0.0]:8001", 8001),
    ] {
        check(
            "127.0.0.1:8001",
            addr,
            &format!(
                "cluster.toml:8: node \"n2\": addr: {addr:?} stands for every address of a machine, so other \
                     nodes and clients cannot reach this node by it; set addr = \"HOST:{port}\" as they reach it, and \
                     listen = {addr:?}"
            ),
        );
        let listen = format!("127.0.0.1:8001\"\nlisten = \"{addr}");
        let text = GOOD.replacen("127.0.0.1:8001", &listen, 1);
        let config = Config::parse(&text, "cluster.toml").unwrap();
        assert_eq!(config.nodes[1].addr, "127.0.0.1:8001");
        assert_eq!(config.nodes[1].listen, addr);
        assert_eq!(config.nodes[0].listen, config.nodes[0].addr);
        let alone = format!(
            "cluster = \"a\"\nleader = \"n\"\nnode = [{{ name = \"n\", addr = \"{addr}\" }}]\n"
        );
        Config::parse(&alone, "cluster.toml").unwrap();
    }
    for addr in ["224.0.0.1:8001", "[ff02::1]:8001", "255.255.255.255:8001"] {
        let why = "is a multicast or broadcast address, which no connection can be made to";
        check(
            "127.0.0.1:8001",
            addr,
            &format!("cluster.toml:8: node \"n2\": addr: {addr:?} {why}"),
        );
    }
}

#[test]
fn listen_is_checked_like_addr() {
    let with = |listen: &str| format!("127.0.0.1:8001\"\nlisten = \"{listen}");
    for (listen, why) in [
        (
            "::",
            "\"::\" is not host:port; an IPv6 address needs brackets, such as [::1]:8000",
        ),
        ("x", "\"x\" is not host:port, such as 127.0.0.1:8000"),
        (
            "0.0.0.0:0",
            "port 0 of \"0.0.0.0:0\" is out of range 1..=65535; only a cluster of one node may leave the choice to \
                 the system",
        ),
    ] {
        check(
            "127.0.0.1:8001",
            &with(listen),
            &format!("cluster.toml:9: node \"n2\": listen: {why}"),
        );
    }
    // On machines of their own; on one machine the second node says that the port is in use.
    let text = GOOD
        .replacen("127.0.0.1:8000", "db1:8000\"\nlisten = \"0.0.0.0:8000", 1)
        .replacen("127.0.0.1:8001", "db2:8000\"\nlisten = \"0.0.0.0:8000", 1);
    let config = Config::parse(&text, "cluster.toml").unwrap();
    assert_eq!(config.nodes[0].listen, config.nodes[1].listen);
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn addresses_that_other_machines_cannot_reach_are_warned_of() {
    let warnings = |first: &str, second: &str| {
        let text = GOOD.replacen("127.0.0.1:8000", first, 1);
        let text = text.replacen("127.0.0.1:8001", second, 1);
        Config::parse(&text, "cluster.toml").unwrap().warnings()
    };
    let none: [&str; 0] = [];
    assert_eq!(warnings("127.0.0.1:1", "localhost:2"), none);
    assert_eq!(warnings("10.0.0.1:1", "db2:2"), none);
    for own in ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"] {
        assert_eq!(
            warnings(own, "10.0.0.2:2"),
            [format!(
                "node \"n1\": addr: only its own machine reaches it at {own}, and \"n2\" at 10.0.0.2:2 may be on \
                     another one"
            )]
        );
    }
    assert_eq!(
        warnings("db1:1", "db2:2\"\nlisten = \"127.0.0.1:2"),
        [
            "node \"n2\": listen: only its own machine reaches it at 127.0.0.1:2, and others connect to db2:2"
        ]
    );
}

#[test]
fn a_cluster_of_one_node_may_leave_its_port_to_the_system() {
    let text =
        "cluster = \"a\"\nleader = \"n\"\nnode = [{ name = \"n\", addr = \"localhost:0\" }]\n";
    let config = Config::parse(text, "cluster.toml").unwrap();
    assert_eq!(config.leader().addr, "localhost:0");
}

#[test]
fn a_file_that_cannot_be_read_or_is_no_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let error = Config::load(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: cannot be read: No such file or directory (os error 2); name another file with --config",
            path.display()
        )
    );
    assert_eq!(error.line(), None);
    assert!(matches!(error.problem(), Problem::Unreadable(_)));
    assert!(error.source().is_some());

    let path = folder.path().join("latin1.toml");
    fs::write(&path, b"# good\ncluster = \"caf\xE9\"\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}:2: not UTF-8; save the file as UTF-8 text",
            path.display()
        )
    );
    assert!(error.source().is_some());
}

/// Any text gives no panic, and an error of one line that names the file and a line.
fn holds(text: &str) -> Result<(), TestCaseError> {
    match Config::parse(text, "cluster.toml") {
        Ok(config) => prop_assert_eq!(&config.leader().name, &config.leader),
        Err(error) => {
            let message = error.to_string();
            prop_assert!(message.starts_with("cluster.toml:"), "{}", message);
            prop_assert!(!message.contains('\n'), "{}", message);
            prop_assert!(
                error
                    .line()
                    .is_some_and(|line| line <= text.lines().count() + 1)
            );
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "\\PC*") {
        holds(&text)?;
    }

    #[test]
    fn any_text_of_tomls_own_characters_is_judged(text in "[\\[\\]{}=.,\"'a-c0-9 \n#\\\\_-]{0,60}") {
        holds(&text)?;
    }

    #[test]
    fn a_mutated_good_file_is_judged(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..4, any::<char>()), 1..6),
    ) {
        let example = format!("{GOOD}[limits]\nmax_connections = 7\n[replication]\nleader_timeout_ms = 5000\n");
        let mut text: Vec<char> = example.chars().collect();
        for (at, how, char) in changes {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match how {
                0 => text[at] = char,
                1 => text.insert(at, char),
                2 => { text.remove(at); }
                _ => text.truncate(at + 1),
            }
        }
        holds(&text.into_iter().collect::<String>())?;
    }
}
