//! A node under a service manager.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::node::{PATIENCE, Process, wait_for};
use crate::support::proxy::reserve_port;
use crate::support::tools;
use crate::{SERVER, both, output, root};

/// A folder with a `cluster.toml` of nodes at these addresses, the first of which leads.
fn folder(addrs: &[SocketAddr]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
    for (number, addr) in (1..).zip(addrs) {
        config += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
    }
    config += "[replication]\nheartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n";
    fs::write(dir.path().join("cluster.toml"), config).unwrap();
    dir
}

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn at_path(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager::of(socket, path.to_str().unwrap().to_owned())
    }

    fn of(socket: UnixDatagram, name: String) -> Manager {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, name }
    }

    fn start(&self, dir: &Path, node: &str) -> Process {
        Process::spawn_with(dir, node, None, &[("NOTIFY_SOCKET", &self.name)])
    }

    /// The next datagram.
    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let len = loop {
            match self.socket.recv(&mut bytes) {
                // A suspended process gets an interruption (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.expect("a datagram"),
            }
        };
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }
}

#[test]
fn the_manager_waits_for_the_longest_stop() {
    let unit = fs::read_to_string(root().join("scripts/gopherstore@.service")).unwrap();
    let seconds = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let seconds: u64 = seconds.unwrap().parse().unwrap();
    assert!(gopherstore::server::STOP_MAX < std::time::Duration::from_secs(seconds));
}

#[test]
fn the_manager_takes_the_last_nodes_stop_for_a_success() {
    let unit = fs::read_to_string(root().join("scripts/gopherstore@.service")).unwrap();
    let has = |line: &str| unit.lines().any(|own| own == line);
    // A success is not restarted.
    assert!(
        has("SuccessExitStatus=3") && has("Restart=on-failure"),
        "{unit}"
    );
}

#[test]
fn a_leader_notifies_its_start_and_stop_at_either_kind_of_socket() {
    let abstract_name = format!("gopherstore-test-{}", std::process::id());
    let addr = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let abstract_socket = UnixDatagram::bind_addr(&addr).unwrap();
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    for manager in [
        Manager::at_path(dir.path()),
        Manager::of(abstract_socket, format!("@{abstract_name}")),
    ] {
        let mut node = manager.start(dir.path(), "n1");
        assert_eq!(manager.next(), "READY=1\nSTATUS=leader, serving\n");
        node.signal("TERM");
        assert_eq!(manager.next(), "STOPPING=1\nSTATUS=stopping\n");
        assert_eq!(node.wait().code(), Some(0));
    }
}

#[test]
fn a_leader_is_ready_only_once_it_serves() {
    // A peer that says nothing is waited for.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (_reserved, addr) = reserve_port();
    let dir = folder(&[addr, silent.local_addr().unwrap()]);
    let manager = Manager::at_path(dir.path());
    let _node = manager.start(dir.path(), "n1");
    let mut told = manager.next();
    assert!(told.starts_with("STATUS=leader, loading: "), "{told}");
    // The reason why it waits may change meanwhile.
    while told.starts_with("STATUS=leader, loading: ") {
        told = manager.next();
    }
    assert_eq!(told, "READY=1\nSTATUS=leader, serving\n");
}

#[test]
fn a_follower_is_ready_when_it_listens_and_reports_its_state() {
    let (reserved, addrs): (Vec<_>, Vec<_>) = (0..2).map(|_| reserve_port()).unzip();
    let dir = folder(&addrs);
    let manager = Manager::at_path(dir.path());
    let mut follower = manager.start(dir.path(), "n2");
    let first = manager.next();
    assert!(
        first.starts_with("READY=1\nSTATUS=follower, loading: "),
        "{first}"
    );
    assert!(follower.wait_until_ready(), "its port was taken");
    let _leader = Process::spawn(dir.path(), "n1", None);
    wait_for("the follower to serve", || {
        let told = manager.next();
        told.contains("STATUS=follower, serving\n").then_some(())
    });
    drop(reserved);
}

#[test]
fn a_manager_that_cannot_be_notified_is_one_log_line() {
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    for name in ["/nowhere/notify", "no address"] {
        let env = [("NOTIFY_SOCKET", name)];
        let mut node = Process::spawn_with(dir.path(), "n1", None, &env);
        assert!(node.wait_until_ready());
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0), "{name}");
        assert!(node.log().contains("the service manager"), "{}", node.log());
    }
}

/// Fills what the system keeps for a manager that does not read, and gives how many datagrams that is.
fn fill(manager: &Manager) -> usize {
    let socket = UnixDatagram::unbound().unwrap();
    socket.set_nonblocking(true).unwrap();
    let sent = (0..10_000).take_while(|_| socket.send_to(b"X=1\n", &manager.name).is_ok());
    sent.count()
}

#[test]
fn a_manager_that_does_not_read_blocks_neither_requests_nor_the_stop() {
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    let manager = Manager::at_path(dir.path());
    fill(&manager);
    let mut node = manager.start(dir.path(), "n1");
    assert!(node.wait_until_ready());
    assert_eq!(node.exchange(b"\x04\0\0\0\0\0\0"), b"\0\0\0\0\x04PONG");
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_manager_that_reads_again_gets_the_missed_state() {
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    let manager = Manager::at_path(dir.path());
    let count = fill(&manager);
    let node = manager.start(dir.path(), "n1");
    node.wait_for_log("cannot tell the service manager");
    for _ in 0..count {
        assert_eq!(manager.next(), "X=1\n");
    }
    assert_eq!(manager.next(), "READY=1\nSTATUS=leader, serving\n");
    assert_eq!(node.log().matches("cannot tell").count(), 1);
}

/// `DEVICE:INODE` of a file, as the journal names a stream.
fn stream(path: &Path) -> String {
    let file = fs::metadata(path).unwrap();
    format!("{}:{}", file.dev(), file.ino())
}

#[test]
fn lines_for_the_journal_have_a_priority_and_no_time() {
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    let log = dir.path().join("log");
    File::create(&log).unwrap();
    let stream = stream(&log);
    let mut node = Process::spawn_with(dir.path(), "n1", None, &[("JOURNAL_STREAM", &stream)]);
    assert!(node.wait_until_ready());
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    let log = node.log();
    let expected = format!(
        "<6>node n1 of cluster test: leader, on {}\n<6>SIGTERM: stopping\n<6>node n1 has stopped\n",
        node.addr
    );
    let shown: Vec<&str> = log
        .lines()
        .filter(|line| !line.starts_with("<7>"))
        .collect();
    assert_eq!(shown.join("\n") + "\n", expected);
}

#[test]
fn a_journal_that_reads_something_else_changes_nothing() {
    // The variable is handed down to processes whose standard error is another.
    let dir = folder(&[([127, 0, 0, 1], 0).into()]);
    let stream = stream(&dir.path().join("cluster.toml"));
    for value in [&*stream, "8:", "x:y", ""] {
        let env = [("JOURNAL_STREAM", value)];
        let mut node = Process::spawn_with(dir.path(), "n1", None, &env);
        assert!(node.wait_until_ready());
        node.wait_for_log("INFO");
        let log = node.log();
        assert!(!log.contains("<6>"), "{log}");
        node.kill();
    }
}

#[test]
fn a_failure_of_the_start_is_an_error_in_the_journal() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dir = folder(&[taken.local_addr().unwrap()]);
    let log = dir.path().join("log");
    let file = File::create(&log).unwrap();
    let status = Command::new(SERVER)
        .args(["--config", "cluster.toml", "--node", "n1"])
        .current_dir(dir.path())
        .env("JOURNAL_STREAM", stream(&log))
        .stderr(file)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.starts_with("<3>cannot listen on "), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}

/// The unit with the built server in it, in a folder of its own.
fn unit() -> (TempDir, String) {
    let unit = fs::read_to_string(root().join("scripts/gopherstore@.service")).unwrap();
    let installed = "/usr/local/bin/gopherstore-server";
    assert!(unit.contains(&format!("ExecStart={installed} ")), "{unit}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gopherstore@.service");
    // Only the unit is verified, and not whether this machine has the man page or which users may read this folder.
    let unit = unit
        .replace(installed, SERVER)
        .replace("Documentation=man:", "Documentation=https://localhost/");
    fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    if !tools::are_there(&["systemd-analyze"]) {
        return;
    }
    let (_dir, unit) = unit();
    let run = Command::new("systemd-analyze")
        .args(["verify", "--man=no", &unit])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", both(&run));
    assert_eq!(both(&run), "");
}

#[test]
fn the_unit_leaves_a_node_little_to_do_harm_with() {
    if !tools::are_there(&["systemd-analyze"]) {
        return;
    }
    let (_dir, unit) = unit();
    // Exposure in tenths, of 100. A service without any of it has 96.
    let report = output(Command::new("systemd-analyze").args([
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        &unit,
    ]));
    assert!(report.contains("Overall exposure level"), "{report}");
}
