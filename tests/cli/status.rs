use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Run,
    nodes::{
        cluster::{Cluster, Options},
        names::state,
        node::{Node, PATIENCE, wait_for},
        proxy::{Cut, Way},
    },
    program, run, run_at, start,
    support::{Peer, StubNode, next_frame, response, unused_addr},
};

/// A cluster.toml of a cluster for its clients, with no proxy in it.
pub(crate) struct ConfigFile {
    path: PathBuf,
    _dir: TempDir,
}

impl ConfigFile {
    pub(crate) fn new(cluster: &str, nodes: &[(&str, String)]) -> ConfigFile {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.toml");
        let mut text = format!("cluster = \"{cluster}\"\nleader = \"{}\"\n", nodes[0].0);
        for (name, addr) in nodes {
            text.push_str(&format!("[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n"));
        }
        fs::write(&path, text).unwrap();
        ConfigFile { path, _dir: dir }
    }

    pub(crate) fn of(cluster: &Cluster) -> ConfigFile {
        let nodes = (0..cluster.len()).map(|at| (cluster.name(at), cluster.addr(at).to_string()));
        ConfigFile::new("test", &nodes.collect::<Vec<_>>())
    }

    /// The same, with a leader timeout in the file.
    fn with_leader_timeout(self, ms: u32) -> ConfigFile {
        let mut text = fs::read_to_string(&self.path).unwrap();
        let section = "[replication]\nheartbeat_interval_ms = 100\nleader_timeout_ms = ";
        text.push_str(&format!("{section}{ms}\n"));
        fs::write(&self.path, text).unwrap();
        self
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// `status` of this cluster.
    fn status(&self, line: &str) -> Run {
        run(&self.line(line), b"")
    }

    fn line<'a>(&'a self, line: &'a str) -> Vec<&'a str> {
        let options = line.split(' ').filter(|word| !word.is_empty());
        ["status", "--config", self.path()]
            .into_iter()
            .chain(options)
            .collect()
    }
}

impl Run {
    fn text(&self) -> &str {
        str::from_utf8(&self.out).unwrap()
    }

    fn last_line(&self) -> &str {
        self.text().lines().last().unwrap_or_default()
    }

    /// That all is well, and says so.
    #[track_caller]
    fn expect_sync(&self, line: &str) {
        assert_eq!(
            (self.code, &*self.err, self.last_line()),
            (0, "", line),
            "{}",
            self.text()
        );
    }

    /// The text below a table; all of it where there is none.
    fn verdict(&self) -> &str {
        let text = self.text();
        text.rsplit_once("\n\n").map_or(text, |(_, below)| below)
    }

    /// That something is wrong, and that a line for each fault says so: each of `parts` is in one of them.
    #[track_caller]
    fn expect_fault(&self, parts: &[&str]) {
        assert_eq!((self.code, &*self.err), (3, ""), "{}", self.text());
        for part in parts {
            assert!(
                self.verdict().contains(part),
                "no {part:?} in {}",
                self.text()
            );
        }
    }
}

/// Nodes that notice a lost link soon, unless `leader_timeout_ms` is long.
fn cluster_with(leader_timeout_ms: u32, proxies: bool) -> Cluster {
    let options = Options {
        replication: format!(
            "heartbeat_interval_ms = 100\nleader_timeout_ms = {leader_timeout_ms}"
        ),
        proxies,
        ..Options::default()
    };
    let cluster = Cluster::start_with(3, &options);
    ConfigFile::of(&cluster)
        .status("--wait --max-lag 0 --timeout 30s")
        .expect_sync("in sync: 3/3");
    cluster
}

fn cluster() -> Cluster {
    cluster_with(1_000, false)
}

/// Runs the program to its end on a terminal of this number of columns and 60 rows. Returns the exit code and the
/// output.
fn on_terminal(columns: u16, variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let (mut child, mut terminal) = start_on_terminal(columns, variables, arguments);
    let mut shown = Vec::new();
    // Ends with an error once the program has closed its side.
    let _ = terminal.read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap().replace("\r\n", "\n");
    (child.wait().unwrap().code().expect("an exit code"), shown)
}

fn start_on_terminal(
    columns: u16,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> (Child, pty_process::blocking::Pty) {
    let (terminal, end) = pty_process::blocking::open().unwrap();
    terminal
        .resize(pty_process::Size::new(60, columns))
        .unwrap();
    let command = pty_process::blocking::Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(arguments)
        .env_remove("GOPHERSTORE_ADDR")
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("TERM", "xterm")
        .envs(variables.iter().copied());
    (command.spawn(end).unwrap(), terminal)
}

#[test]
fn a_cluster_in_sync_is_shown_in_every_form() {
    let cluster = cluster();
    let config = ConfigFile::of(&cluster);
    cluster.client(0).set(b"k", b"value").unwrap();
    let lines = config.status("--wait --max-lag 0 --timeout 30s");
    lines.expect_sync("in sync: 3/3");
    for line in [
        "n1 role: leader",
        "n2 role: follower",
        "n3 link: up",
        "n3 keys: 1",
        "n1 cluster: test",
    ] {
        assert!(
            lines.text().lines().any(|found| found == line),
            "{line}\n{}",
            lines.text()
        );
    }

    let table = config.status("-w table");
    table.expect_sync("in sync: 3/3");
    let rows: Vec<Vec<&str>> = table
        .text()
        .lines()
        .map(|line| line.split("  ").collect())
        .collect();
    assert_eq!(rows.len(), 6, "{}", table.text());
    for (row, name) in rows[1..4].iter().zip(["n1", "n2", "n3"]) {
        assert_eq!(row[0], name);
    }
    assert!(
        !table.text().contains('\x1b'),
        "a pipe has no colours: {}",
        table.text()
    );

    // The same from what a follower lists.
    let addr = cluster.addr(1).to_string();
    let json = run_at(&addr, &["status", "--cluster", "--write-out", "json"], b"");
    assert_eq!((json.code, &*json.err), (0, ""), "{json:?}");
    let value: Value = serde_json::from_slice(&json.out).unwrap();
    assert_eq!(
        (&value["verdict"], &value["cluster"]),
        (&"in sync: 3/3".into(), &"test".into())
    );
    for (at, node) in value["nodes"].as_array().unwrap().iter().enumerate() {
        assert_eq!(node["node"], cluster.name(at));
        assert_eq!(node["addr"], cluster.addr(at).to_string());
        let role = if at == 0 { "leader" } else { "follower" };
        assert_eq!(
            (&node["role"], &node["state"]),
            (&role.into(), &"serving".into())
        );
        assert_eq!(
            (&node["index"], &node["keys"], &node["bytes"]),
            (&2.into(), &1.into(), &6.into())
        );
        assert_eq!(node["digest"], value["nodes"][0]["digest"]);
        assert_eq!(
            node["lag_entries"],
            if at == 0 { Value::Null } else { 0.into() }
        );
        assert_eq!(node["leader_heard_ms"].is_u64(), at > 0, "{node}");
        for figure in ["full_copies", "resumes", "backlog_bytes", "uptime_ms"] {
            assert!(node[figure].is_u64(), "{figure}: {node}");
        }
        for other in (0..3).filter(|&other| other != at) {
            let peer = &node["peers"][cluster.name(other)];
            assert_eq!(peer["addr"], cluster.addr(other).to_string(), "{node}");
            assert!(
                peer["state"].is_string() && peer["since_ms"].is_u64(),
                "{node}"
            );
            let follower = &node["followers"][cluster.name(other)];
            let is_told = follower["index"].is_u64() && follower["lag_entries"].is_u64();
            assert_eq!(is_told, at == 0, "{node}");
        }
    }
}

#[test]
fn each_fault_is_a_line_of_its_own_and_an_element_of_the_list() {
    let full = answering(response(1, b"too many connections; try again"));
    let gone = unused_addr();
    let nodes = [("n1", full.addr.clone()), ("n2", gone.clone())];
    let config = ConfigFile::new("test", &nodes);
    let expected = [
        format!(
            "n1 at {} gives no status: too many connections; try again",
            full.addr
        ),
        format!("n2 is unreachable: cannot connect to {gone}: connection refused"),
    ];
    let text = config.status("-w table");
    assert_eq!(
        text.verdict().lines().collect::<Vec<_>>(),
        expected,
        "{text:?}"
    );
    let json = config.status("-w json");
    assert_eq!((json.code, &*json.err), (3, ""), "{json:?}");
    let value: Value = serde_json::from_slice(&json.out).unwrap();
    assert_eq!(value["faults"], Value::from(expected.to_vec()));
    let verdict = value["verdict"].as_str().unwrap();
    assert_eq!(verdict.lines().collect::<Vec<_>>(), expected);
    let wait = config.status("--wait --timeout 200ms");
    assert_eq!(wait.code, 6, "{wait:?}");
    let said = "gopherstore-cli: not healthy within 200ms: 2 faults, as above; ";
    assert!(wait.err.starts_with(said), "{wait:?}");
    assert_eq!(wait.err.matches('\n').count(), 1, "{wait:?}");
}

#[test]
fn a_follower_that_is_longer_behind_than_the_leader_timeout_is_a_fault() {
    let says = |text: &str| answering(response(0, text.as_bytes()));
    let leader =
        says("node: n1\nrole: leader\nstate: serving\nindex: 9\nfollower.n2.lag_ms: 800\n");
    let follower = says("node: n2\nrole: follower\nstate: serving\nlink: up\nindex: 9\n");
    let nodes = [("n1", leader.addr.clone()), ("n2", follower.addr.clone())];
    let config = ConfigFile::new("test", &nodes);
    config.status("").expect_sync("in sync: 2/2");
    config
        .with_leader_timeout(700)
        .status("-w table")
        .expect_fault(&["n2 is 800 ms behind its leader, limit 700 (leader_timeout_ms)\n"]);
}

#[test]
fn a_missing_node_is_a_row_and_wait_ends_once_it_is_back() {
    let mut cluster = cluster();
    let config = ConfigFile::of(&cluster);
    cluster.kill(2);
    let table = config.status("-w table");
    let addr = cluster.addr(2).to_string();
    table.expect_fault(&[&format!(
        "n3 is unreachable: cannot connect to {addr}: connection refused"
    )]);
    let row = table
        .text()
        .lines()
        .find(|line| line.starts_with("n3"))
        .unwrap();
    assert!(row.contains(&addr) && row.contains("unreachable"), "{row}");
    assert_eq!(
        table.text().matches("n3").count(),
        2,
        "a row and the last line: {}",
        table.text()
    );
    config.status("").expect_fault(&["n3 is unreachable"]);
    assert!(
        config
            .status("")
            .text()
            .contains("\nn3 error: cannot connect to")
    );

    let wait = config.status("--wait --timeout 2s");
    assert_eq!(wait.code, 6, "{wait:?}");
    assert!(
        wait.last_line().starts_with("n3 is unreachable"),
        "{wait:?}"
    );
    assert!(
        wait.err
            .starts_with("gopherstore-cli: not healthy within 2s: n3 is unreachable"),
        "{wait:?}"
    );
    assert_eq!(wait.err.matches('\n').count(), 1, "{wait:?}");

    // It comes back while it is waited for.
    let waiting = start(program().args(config.line("--wait --max-lag 0 --timeout 30s")));
    cluster.restart(2);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.ends_with(b"in sync: 3/3\n"), "{output:?}");
}

#[test]
fn a_missing_leader_and_the_followers_without_a_link_are_faults() {
    let mut cluster = cluster();
    let config = ConfigFile::of(&cluster);
    cluster.kill(0);
    cluster.wait_for_status(1, PATIENCE, "its link's end", |status| {
        matches!(status.get("link"), Some("down" | "timeout"))
    });
    let run = config.status("-w table");
    let addr = cluster.addr(0);
    run.expect_fault(&[
        "n1 is unreachable",
        // In the leader timeout or before it.
        &format!("its leader at {addr}"),
        "last heard",
    ]);
    // The node on its own says it too.
    let addr = cluster.addr(1).to_string();
    let alone = run_at(&addr, &["status"], b"");
    assert_eq!(alone.code, 3, "{alone:?}");
    assert!(alone.text().starts_with("node: n2\n"), "{alone:?}");
    assert!(
        alone.err.starts_with("gopherstore-cli: n2 ") && alone.err.contains("its leader at"),
        "{alone:?}"
    );
    let wait = run_at(&addr, &["status", "--wait", "--timeout", "200ms"], b"");
    assert_eq!(wait.code, 6, "{wait:?}");
}

#[test]
fn a_stopped_node_delays_nothing() {
    let mut cluster = cluster();
    let config = ConfigFile::of(&cluster);
    cluster.pause(1);
    let began = Instant::now();
    let run = config.status("-w table --timeout 2s");
    let took = began.elapsed();
    cluster.resume(1);
    run.expect_fault(&["n2 is unreachable: no response from", "within 2s"]);
    assert!(!run.verdict().contains("n3"), "{}", run.text());
    // One wait and not three; generous, since the machine may be busy.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn max_lag_is_the_limit_of_a_followers_lag() {
    let cluster = cluster_with(60_000, true);
    // As long in the file, or the time that this takes is a fault too.
    let config = ConfigFile::of(&cluster).with_leader_timeout(60_000);
    let strict = ConfigFile::of(&cluster).with_leader_timeout(500);
    cluster.link(1, 0).hold(Way::Down);
    for number in 0..5 {
        cluster.client(0).set(b"k", &[number]).unwrap();
    }
    cluster.wait_for_status(2, PATIENCE, "all entries", |status| {
        status.number("index") == Some(6)
    });
    config
        .status("--max-lag 0")
        .expect_fault(&["n2 lacks 5 entries of n1, limit 0"]);
    config
        .status("--max-lag 4")
        .expect_fault(&["n2 lacks 5 entries of n1, limit 4"]);
    config
        .status("--max-lag 5")
        .expect_sync("in sync: 3/3, at most 5 entries behind");
    config
        .status("")
        .expect_sync("in sync: 3/3, at most 5 entries behind");
    let table = config.status("-w table");
    let row = table
        .text()
        .lines()
        .find(|line| line.starts_with("n2"))
        .unwrap();
    // Entries, and the time for which the leader has had no response.
    assert!(row.contains(" 5 (") && row.contains(" ms)"), "{row}");
    // The silence is as long as the lag, and is the reason.
    wait_for("silence for the file's leader timeout", || {
        let run = strict.status("");
        let is_told = run.text().lines().any(|line| {
            line.starts_with("n2 has a leader timeout: ") && line.ends_with(" ms ago, limit 500")
        });
        (run.code == 3 && is_told).then_some(())
    });
    let waiting = start(program().args(config.line("--wait --max-lag 0 --timeout 30s")));
    cluster.link(1, 0).release(Way::Down);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    config.status("--max-lag 0").expect_sync("in sync: 3/3");
}

#[test]
fn a_follower_reports_leader_heard_ms_and_a_link_that_is_down() {
    let cluster = cluster_with(1_000, true);
    let link = cluster.link(1, 0);
    let heard =
        |status: &crate::nodes::cluster::Status| status.number("leader_heard_ms").unwrap_or(0);
    link.hold_both();
    // Beyond three heartbeats' time, and the stream is still there.
    cluster.wait_for_status(1, PATIENCE, "silence", |status| {
        heard(status) > 300 && status.get("link") == Some("up")
    });
    cluster.wait_for_status(1, PATIENCE, "the link's end", |status| {
        heard(status) > 900
            && matches!(status.get("link"), Some("down" | "timeout"))
            && status.is_state(state::SERVING)
    });
    link.pass();
    link.cut(Cut::Reset);
    cluster.wait_for_status(1, PATIENCE, "its leader", |status| {
        heard(status) < 300 && status.get("link") == Some("up")
    });
}

#[test]
fn nodes_of_other_names_and_clusters_are_faults() {
    let cluster = cluster();
    let at = |node: usize| cluster.addr(node).to_string();
    let other = ConfigFile::new("other", &[("n1", at(0)), ("n2", at(1))]);
    other.status("-w table").expect_fault(&[
        &format!("n1 at {} is a node of cluster test, not of other", at(0)),
        &format!("n2 at {} is a node of cluster test, not of other", at(1)),
    ]);
    let swapped = ConfigFile::new("test", &[("n1", at(0)), ("n3", at(1))]);
    swapped
        .status("")
        .expect_fault(&[&format!("n3 at {} is n2, not n3", at(1))]);
    let alone = Node::start();
    let mixed = ConfigFile::new("test", &[("n1", at(0)), ("n2", alone.addr.to_string())]);
    mixed
        .status("-w table")
        .expect_fault(&[&format!("n2 at {} is n1, not n2", alone.addr)]);
}

#[test]
fn a_node_on_its_own_is_in_sync_with_itself() {
    let node = Node::start();
    let addr = node.addr.to_string();
    run_at(&addr, &["status", "--cluster"], b"").expect_sync("in sync: 1/1");
    run_at(&addr, &["status", "--wait", "--max-lag", "0"], b"").expect_sync("in sync: 1/1");
    run_at(&addr, &["status", "-w", "table"], b"").expect_sync("serving");
    let config = ConfigFile::new("test", &[("n1", addr.clone())]);
    config.status("").expect_sync("in sync: 1/1");
    // It is shown by the name that its file gives it.
    let run = run_at(&addr, &["status", "-w", "json"], b"");
    let value: Value = serde_json::from_slice(&run.out).unwrap();
    assert_eq!(value["nodes"][0]["node"], "n1", "{value}");
}

/// A peer that answers every request so.
fn answering(bytes: Vec<u8>) -> Peer {
    Peer::start(
        move |_, mut stream| {
            while next_frame(&mut stream).is_some() && stream.write_all(&bytes).is_ok() {}
        },
    )
}

#[test]
fn nodes_of_other_versions_are_one_clear_line_each() {
    let unknowing = answering(response(1, b"unknown opcode 0x40\x1b[31m"));
    let web = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    let addrs = [unknowing.addr.clone(), web.addr.clone(), unused_addr()];
    let nodes: Vec<(&str, String)> = ["n1", "n2", "n3"].into_iter().zip(addrs.clone()).collect();
    let run = ConfigFile::new("test", &nodes).status("-w table");
    run.expect_fault(&[
        &format!(
            "n1 at {} gives no status, so it is of another version",
            addrs[0]
        ),
        "or no GopherStore: unknown opcode 0x40",
        &format!("n2 at {} gives no status", addrs[1]),
        "'H', which is text",
        &format!("n3 is unreachable: cannot connect to {}", addrs[2]),
    ]);
    assert!(!run.text().contains('\x1b'), "{run:?}");
    let alone = run_at(&addrs[0], &["status"], b"");
    alone.expect_failure(3, &["unknown opcode 0x40"]);
    // The fault is the version, whatever was asked.
    for command in [
        "ping",
        "status",
        "tail",
        "dump /dev/null",
        "resync --discard",
        "snapshot",
        "bench --count 1",
        "race --on n2",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        run_at(&addrs[0], &words, b"").expect_failure(3, &["the node is of another version"]);
    }
    run_at(&addrs[2], &["status", "--cluster"], b"").expect_failure(5, &["is the node running?"]);
    let wait = run_at(
        &addrs[2],
        &["status", "--max-lag=0", "--wait", "--timeout=200ms"],
        b"",
    );
    wait.expect_failure(
        6,
        &["not healthy within 200ms: cannot connect to", &addrs[2]],
    );

    let old = answering(response(
        0,
        b"node: n1\nrole: leader\nstate: serving\npeer.n2.state: up\n",
    ));
    let run = run_at(&old.addr, &["status", "--cluster"], b"");
    run.expect_failure(3, &["does not tell its peers' addresses", "--config"]);
}

#[test]
fn a_node_that_does_not_serve_is_exit_code_3() {
    let node = StubNode::start();
    run_at(node.addr(), &["status", "--wait"], b"").expect(
        0,
        "node: n1\nstate: serving\nkeys: 0\n",
        "",
    );
    node.set_refusing();
    run_at(node.addr(), &["status"], b"").expect(
        3,
        "node: n1\nstate: refused\nkeys: 0\n",
        "gopherstore-cli: n1 refuses its leader: it gives no reason\n",
    );
}

#[test]
fn wrong_options_are_usage_errors() {
    let config = ConfigFile::new("test", &[("n1", unused_addr())]);
    config
        .status("--watch --wait")
        .expect_failure(2, &["--watch together with --wait"]);
    config
        .status("-w xml")
        .expect_failure(2, &["'xml'", "table, json and lines"]);
    config
        .status("--max-lag few")
        .expect_failure(2, &["--max-lag", "'few'"]);
    config
        .status("--node n9 --cluster")
        .expect_failure(2, &["no node \"n9\"", "there are n1"]);
    run(&["ping", "--wait"], b"").expect_failure(2, &["--wait goes with status alone"]);
    run(&["get", "-w", "json", "k"], b"").expect_failure(2, &["-w goes with status"]);
    run(&["status", "--config", "/none"], b"").expect_failure(2, &["/none"]);
}

#[test]
fn a_terminal_has_a_table_that_fits_or_a_list_and_colours_where_they_are_wanted() {
    let cluster = cluster();
    let config = ConfigFile::of(&cluster);
    let shown = |columns, variables: &[(&str, &str)]| {
        let (code, shown) = on_terminal(columns, variables, &config.line("--max-lag 0"));
        assert_eq!(code, 0, "{shown}");
        let widest = shown.lines().map(|line| {
            line.replace("\x1b[32m", "")
                .replace("\x1b[0m", "")
                .chars()
                .count()
        });
        assert!(widest.max() <= Some(usize::from(columns)), "{shown}");
        shown
    };
    let wide = shown(200, &[]);
    assert!(wide.starts_with("node  address"), "{wide}");
    assert_eq!(wide.lines().count(), 6, "{wide}");
    assert!(
        wide.ends_with("\n\x1b[32min sync: 3/3\x1b[0m\n"),
        "{wide:?}"
    );
    let plain = shown(80, &[("NO_COLOR", "1")]);
    assert!(
        plain.starts_with("node  address") && plain.ends_with("\nin sync: 3/3\n"),
        "{plain}"
    );
    assert_eq!(
        plain.matches("\nnode  ").count(),
        1,
        "goes on below: {plain}"
    );
    assert!(!plain.contains('\x1b'), "{plain:?}");
    let narrow = shown(40, &[]);
    assert!(
        narrow.starts_with("node     n1\naddress  127.0.0.1:"),
        "{narrow}"
    );
    assert_eq!(narrow.matches("\nrole     ").count(), 3, "{narrow}");
}

#[test]
fn a_watch_is_drawn_again_in_its_place() {
    let cluster = cluster();
    let config = ConfigFile::of(&cluster);
    for (term, home) in [
        ("xterm", "\x1b[Hnode  address"),
        ("dumb", "\nnode  address"),
    ] {
        let (mut child, mut terminal) =
            start_on_terminal(120, &[("TERM", term)], &config.line("--watch"));
        let (mut shown, mut bytes) = (String::new(), [0; 4096]);
        // The first one, and the second in its place; it is there within seconds or the read ends with the program.
        while shown.matches(home).count() < 2 || !shown.trim_end_matches("\x1b[J").ends_with('\n') {
            let len = terminal.read(&mut bytes).unwrap();
            shown.push_str(&String::from_utf8_lossy(&bytes[..len]).replace('\r', ""));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(shown.contains("\x1b[2J"), term == "xterm", "{shown:?}");
    }
}

#[test]
fn a_watch_into_a_pipe_is_a_block_or_a_line_for_each_look_until_nobody_reads() {
    let mut cluster = cluster();
    let config = ConfigFile::of(&cluster);
    let mut child = start(program().args(config.line("--watch -w json --max-lag 0")));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["healthy"], true);
    cluster.kill(1);
    let is_told = |line: std::io::Result<String>| {
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        value["faults"]
            .as_array()
            .is_some_and(|faults| !faults.is_empty())
    };
    assert!(lines.by_ref().take(30).any(is_told));
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stderr),
        (Some(0), b"".as_slice())
    );

    // One node, which is not there.
    let addr = unused_addr();
    let mut child = start(program().args(["--addr", &addr, "status", "--watch"]));
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    let expected = format!("cannot connect to {addr}: connection refused");
    assert_eq!(first, [expected.as_str(), "", expected.as_str()]);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));

    // As `| head -1` does it.
    let mut child = start(program().args(config.line("--watch")));
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert_eq!(first, "n1 node: n1\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stderr),
        (Some(0), b"".as_slice())
    );

    // And where it has gone before there is anything to read.
    let mut child = start(program().args(config.line("-w table --timeout 1s")));
    drop(child.stdout.take());
    let ended = thread::spawn(move || child.wait_with_output().unwrap());
    let output = ended.join().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stderr),
        (Some(0), b"".as_slice())
    );
}
