use std::io::Write;
use std::sync::{Arc, Mutex};

use gopherstore::client::{Client, ClientOptions};
use gopherstore::wire::Opcode;

use crate::config;
use crate::stub::{Peer, StubNode, next_frame, response};
use crate::support::cluster::Cluster;
use crate::support::node::{Node, PATIENCE, wait_for};
use crate::terminal::{ENTER, Options, Terminal};

#[test]
fn it_shows_node_role_and_address_and_talks_to_the_others() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&cluster, dir.path());
    let arguments = ["--config", &config, "--node", "n1"];
    let wide = || Options {
        columns: 200,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &arguments, wide());
    let (leader, follower) = (cluster.addr(0), cluster.addr(1));
    let prompt = format!("n1 leader {leader}>");
    terminal.ask(&prompt, r#"set k "two words\x00""#, "OK");
    terminal.ask(&prompt, "get k", r#""two words\x00""#);
    cluster.wait_converged(PATIENCE);
    terminal.ask(&prompt, ":on n2 get k", r#""two words\x00""#);
    terminal.ask(
        &prompt,
        &format!(":on {follower} get k"),
        r#""two words\x00""#,
    );
    // A write goes on to the leader, which is said once, and the node stays the one that was named.
    let passed = format!(
        "gopherstore-cli: n2 follower {follower} passed the write to the leader at {leader}, and may not show it yet\n\
         OK"
    );
    terminal.ask(&prompt, ":on n2 set k u", &passed);
    terminal.ask(&prompt, ":on n2 set k v", "OK");
    terminal.ask(&prompt, ":on n1 get k", "v");
    terminal.ask(&prompt, "get none", "(not found)");
    let refusal = "gopherstore-cli: no node n9 is known; there are n1, n2, or write HOST:PORT";
    terminal.ask(&prompt, ":on n9 get k", refusal);
    terminal.leave();

    let terminal = Terminal::start(
        dir.path(),
        &["--config", &config, "--node", "n2"],
        Options::default(),
    );
    let prompt = format!("n2 follower {follower}>");
    terminal.ask(&prompt, ":on n1 ping", "PONG");
    terminal.leave();

    // Without a name it is the leader.
    let terminal = Terminal::start(dir.path(), &["--config", &config], Options::default());
    terminal.ask(&format!("n1 leader {leader}>"), "get k", "v");
    terminal.leave();
}

#[test]
fn endless_commands_end_by_a_signal_and_restore_the_terminal() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let addr = cluster.addr(0).to_string();
    for (command, shown) in [("status --watch", "serving"), ("tail", "watching")] {
        for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
            if name == "HUP" && gopherstore::signals::is_ignored(number) {
                continue; // as under nohup
            }
            let words = command.split(' ').chain(["--addr", &addr]);
            let words: Vec<&str> = words.collect();
            let mut terminal = Terminal::start(dir.path(), &words, Options::default());
            let before = terminal.modes();
            terminal.wait_until(command, |screen| screen.contains(shown));
            terminal.signal(name);
            assert_eq!(terminal.wait_killed(), number, "{command}");
            assert_eq!(terminal.modes(), before, "{command} after {name}");
        }
    }
}

#[test]
fn a_session_reads_what_it_wrote() {
    // The follower never gets what its leader takes.
    let (leader, follower) = (StubNode::start(), StubNode::start());
    follower.follow(Some(leader.addr()));
    let dir = tempfile::tempdir().unwrap();
    let wide = Options {
        columns: 200,
        ..Options::default()
    };
    let (leader_addr, addr) = (leader.addr(), follower.addr());
    let terminal = Terminal::start(dir.path(), &["--addr", addr], wide);
    let prompt = format!("n1 {addr}>");
    terminal.ask(&prompt, "get k", "(not found)");
    terminal.press("set k v");
    terminal.press(ENTER);
    let moved = format!(
        "gopherstore-cli: {addr} follows and may not show a write at once; this session goes on with the leader at \
         {leader_addr}\nOK"
    );
    let prompt = format!("n1 {leader_addr}>");
    terminal.wait_for_end(&format!("{moved}\n{prompt}"));
    terminal.ask(&prompt, "get k", "v");
    terminal.ask(&prompt, "set k w", "OK");
    terminal.ask(&prompt, "get k", "w");
    terminal.ask(&prompt, &format!(":on {addr} get k"), "(not found)");
    terminal.leave();
}

#[test]
fn it_reconnects_after_a_restart_and_says_so() {
    let mut cluster = Cluster::start(2);
    cluster.wait_converged(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let addr = cluster.addr(1).to_string();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    let prompt = format!("n2 follower {addr}>");
    terminal.ask(&prompt, "ping", "PONG");
    cluster.stop(1);
    terminal.press("get k");
    terminal.press(ENTER);
    let gone = format!("n2 unreachable {addr}>");
    terminal.wait_for_end(&gone);
    let refused = format!("gopherstore-cli: cannot connect to {addr}: connection refused;");
    assert!(
        terminal.screen().contains(&refused),
        "{}",
        terminal.screen()
    );
    cluster.restart(1);
    cluster.wait_converged(PATIENCE);
    terminal.press("get k");
    terminal.press(ENTER);
    let node = format!("n2 follower {addr}");
    let restarted = format!("gopherstore-cli: reconnected to {node}, which has restarted since");
    // As wide as it is, it may be two rows.
    terminal.wait_until("the response", |screen| {
        screen
            .replace('\n', "")
            .ends_with(&format!("{restarted}(not found){node}>"))
    });
    // While nothing is asked, and at once.
    cluster.kill(1);
    cluster.restart(1);
    cluster.wait_converged(PATIENCE);
    terminal.press("set k v");
    terminal.press(ENTER);
    let leader = cluster.addr(0);
    let moved = format!("session goes on with the leader at {leader}OKn1 leader {leader}>");
    terminal.wait_until("the response", |screen| {
        let screen = screen.replace('\n', "");
        screen.contains(&format!("{restarted}gopherstore-cli: {addr} follows"))
            && screen.ends_with(&moved)
    });
    terminal.leave();
}

#[test]
fn a_missing_node_is_reported_and_awaited() {
    let mut cluster = Cluster::start(1);
    let addr = cluster.addr(0).to_string();
    cluster.stop(0);
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&format!("\nunreachable {addr}>"));
    // Several lines at once fail once.
    terminal.press("\x1b[200~ping\nping\nping\x1b[201~");
    terminal.press(ENTER);
    let dropped = "gopherstore-cli: the lines that were pasted behind it are dropped";
    terminal.wait_for_end(&format!("{dropped}\nunreachable {addr}>"));
    assert_eq!(terminal.screen().matches("cannot connect").count(), 2);
    assert!(
        terminal
            .screen()
            .starts_with("gopherstore-cli: cannot connect to")
    );
    cluster.restart(0);
    terminal.press(ENTER);
    let connected = format!("gopherstore-cli: connected to n1 leader {addr}\nn1 leader {addr}>");
    terminal.wait_for_end(&connected);
    terminal.leave();

    // The same by its name.
    let config = config(&cluster, dir.path());
    let arguments = ["--config", &config, "--node", "n1"];
    let terminal = Terminal::start(dir.path(), &arguments, Options::default());
    terminal.ask(&format!("n1 leader {addr}>"), ":on n1 ping", "PONG");
    terminal.leave();
}

/// Whether no thread of a process runs.
fn is_still(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut states = tasks.map(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        // 1234 (name) T ...
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    });
    states.all(|is_stopped| is_stopped)
}

#[test]
fn a_stopped_node_costs_its_timeout_only() {
    let mut cluster = Cluster::start(1);
    let dir = tempfile::tempdir().unwrap();
    let addr = cluster.addr(0).to_string();
    let wide = Options {
        columns: 300,
        timeout: "2s",
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], wide);
    terminal.ask(&format!("n1 leader {addr}>"), "ping", "PONG");
    cluster.pause(0);
    // The signal comes to a process, and its threads go on for a moment.
    wait_for("the node to stand still", || {
        is_still(cluster.process(0).pid()).then_some(())
    });
    terminal.press("set k v");
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("\nn1 unreachable {addr}>"));
    let screen = terminal.screen();
    let said = [
        format!("gopherstore-cli: no response from {addr} within 2s; it is unknown whether"),
        "; it was not sent again\n".to_owned(),
    ];
    assert!(said.iter().all(|said| screen.contains(said)), "{screen}");
    cluster.resume(0);
    terminal.press("ping");
    terminal.press(ENTER);
    // It is the process that it was.
    let response =
        format!("gopherstore-cli: reconnected to n1 leader {addr}\nPONG\nn1 leader {addr}>");
    terminal.wait_for_end(&response);
    terminal.leave();
}

/// A peer that breaks the first connection on which a SET or a GET comes, and is a node with one value otherwise.
fn breaking(requests: &Arc<Mutex<Vec<u8>>>) -> Peer {
    let requests = Arc::clone(requests);
    Peer::start(move |_, mut stream| {
        while let Some(frame) = next_frame(&mut stream) {
            let opcode = frame[0];
            let value: &[u8] = match Opcode::try_from(opcode) {
                Ok(Opcode::Status) => b"node: n1\nrole: leader\nstate: serving\n",
                Ok(Opcode::Get) => b"value",
                _ => b"",
            };
            if opcode != Opcode::Status.byte() {
                let mut requests = requests.lock().unwrap();
                requests.push(opcode);
                if requests.len() == 1 {
                    return;
                }
            }
            if stream.write_all(&response(0, value)).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_read_is_asked_again_when_its_connection_breaks() {
    let requests = Arc::default();
    let peer = breaking(&requests);
    let dir = tempfile::tempdir().unwrap();
    let wide = Options {
        columns: 200,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &peer.addr], wide);
    let node = format!("n1 leader {}", peer.addr);
    let addr = &peer.addr;
    let response = format!(
        "gopherstore-cli: the connection to {addr} broke (unexpected end of file), so it is asked again\n\
         gopherstore-cli: reconnected to {node}\nvalue"
    );
    terminal.ask(&format!("{node}>"), "get k", &response);
    terminal.ask(&format!("{node}>"), "get k", "value");
    assert_eq!(*requests.lock().unwrap(), [Opcode::Get.byte(); 3]);
    terminal.leave();
}

#[test]
fn a_write_whose_outcome_is_unknown_is_never_sent_again() {
    let requests = Arc::default();
    let peer = breaking(&requests);
    let dir = tempfile::tempdir().unwrap();
    let wide = Options {
        columns: 300,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &peer.addr], wide);
    let addr = &peer.addr;
    terminal.wait_for_end(&format!("n1 leader {addr}>"));
    terminal.press("set k v");
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("\nn1 unreachable {addr}>"));
    let said = "it is unknown whether the write was executed, so check with get before repeating it; it was not \
                sent again\n";
    assert!(terminal.screen().contains(said), "{}", terminal.screen());
    terminal.press("get k");
    terminal.press(ENTER);
    let response = format!("reconnected to n1 leader {addr}\nvalue\nn1 leader {addr}>");
    terminal.wait_for_end(&response);
    let sent = [Opcode::Set.byte(), Opcode::Get.byte()];
    assert_eq!(*requests.lock().unwrap(), sent);
    terminal.leave();
}

#[test]
fn without_a_configuration_the_node_says_where_the_others_are() {
    let other = StubNode::start();
    other.insert(b"k", b"there");
    let status = format!(
        "node: n1\nrole: leader\npeer.n2.state: up\npeer.n2.addr: {}\npeer.n3.state: up\n",
        other.addr()
    );
    let peer = Peer::start(move |_, mut stream| {
        while next_frame(&mut stream).is_some() {
            stream.write_all(&response(0, status.as_bytes())).unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let wide = Options {
        columns: 200,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &peer.addr], wide);
    let prompt = format!("n1 leader {}>", peer.addr);
    terminal.ask(&prompt, ":on n2 get k", "there");
    terminal.ask(
        &prompt,
        ":on n3 get k",
        "gopherstore-cli: the address of n3 is not known here; write HOST:PORT, or start with --config and --node",
    );
    terminal.leave();
}

#[test]
fn a_value_of_64_mib_is_a_line() {
    let node = Node::start();
    let addr = node.addr.to_string();
    let options = ClientOptions {
        timeout: PATIENCE,
        ..ClientOptions::default()
    };
    let mut client = Client::connect_with(&addr, options).unwrap();
    client.set(b"big", &vec![b'x'; 64 << 20]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    let prompt = format!("n1 leader {addr}>");
    terminal.wait_for_end(&prompt);
    terminal.press("get big");
    terminal.press(ENTER);
    terminal.wait_until("the prompt after it", |screen| {
        screen.matches(&prompt).count() == 2 && screen.ends_with(&prompt)
    });
    let screen = terminal.screen();
    let lines: Vec<&str> = screen.lines().collect();
    // One line, which takes two rows.
    let head = "(67108864 bytes; :raw get big prints all, gopherstore-cli get big > FILE in a sh";
    assert_eq!((lines.len(), lines[1]), (4, head), "{screen}");
    assert!(lines[2].starts_with("ell keeps it) \"xxx") && lines[2].ends_with("x\"..."));
    assert!(terminal.bytes().len() < 4096);
    terminal.leave();
}
