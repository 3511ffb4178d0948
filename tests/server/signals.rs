//! A node's reaction to signals, and to its terminal closing.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use gopherstore::signals::is_ignored;
use gopherstore::wire::Request;
use pty_process::blocking;

use crate::node::{Node, PATIENCE, Process, wait_for};
use crate::{answer, closed, done, frames, pong, set_k, tools};

const SIGHUP: i32 = 1;

/// Those that ask for a stop, and their numbers.
fn stops() -> Vec<(&'static str, i32)> {
    let mut stops = vec![("INT", 2), ("TERM", 15), ("QUIT", 3)];
    if is_ignored(SIGHUP) {
        tools::skip("SIGHUP is ignored here, and so by every node");
    } else {
        stops.push(("HUP", SIGHUP));
    }
    stops
}

#[test]
fn each_signal_stops_the_node_in_good_order() {
    for (signal, _) in stops() {
        let mut node = Node::start();
        let idle = node.connect();
        let mut busy = node.connect();
        busy.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&busy), pong());
        let set = frames(&[Request::Set {
            key: b"k",
            value: b"v",
        }]);
        busy.write_all(&set).unwrap();
        assert_eq!(answer(&busy), done());
        node.signal(signal);
        closed(&idle);
        closed(&busy);
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        let log = node.log();
        assert!(log.contains(&format!("SIG{signal}: stopping")), "{log}");
        assert!(log.contains("has stopped"), "{log}");
        assert!(!log.contains("cutting off"), "{log}");
    }
}

/// Of SIGHUP only the first counts: systemd-logind sends one right behind SIGTERM.
#[test]
fn a_second_signal_ends_the_node_at_once_unless_it_is_sighup() {
    let stops = stops();
    let value = vec![b'x'; 1 << 20];
    for at in 0..stops.len() {
        // The same one again, and another one.
        for (second, number) in [stops[at], stops[(at + 1) % stops.len()]] {
            let (first, _) = stops[at];
            let mut node = Node::start();
            let mut stream = node.connect();
            set_k(&stream, &value);
            // Unread answers: the first signal waits for them.
            stream
                .write_all(&frames(&[Request::Get { key: b"k" }; 100]))
                .unwrap();
            answer(&stream);
            node.signal(first);
            node.wait_for_log("stopping");
            node.signal(second);
            let is_counted = number != SIGHUP;
            let code = if is_counted { 128 + number } else { 0 };
            let status = node.wait();
            assert_eq!(status.code(), Some(code), "{first} {second}");
            assert_eq!(node.log().contains("cutting off"), !is_counted);
        }
    }
}

/// A folder with the file of a cluster of one.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n";
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    dir
}

#[test]
fn signals_that_are_not_meant_for_a_node_do_not_end_it() {
    let dir = folder();
    // As nohup does.
    let nohup = ["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""];
    let mut node = Process::spawn_in(dir.path(), "n1", &nohup);
    assert!(node.wait_until_ready());
    for signal in ["HUP", "HUP", "USR1", "USR2", "PIPE", "XFSZ"] {
        node.signal(signal);
        let mut stream = node.connect();
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&stream), pong(), "{signal}");
    }
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    assert!(!node.log().contains("SIGHUP"), "{}", node.log());
}

#[test]
fn a_log_that_may_not_grow_costs_lines_and_not_the_node() {
    let dir = folder();
    // In blocks of 512 bytes, or 1,024 with some shells; an earlier log has used them up.
    std::fs::write(dir.path().join("log"), [b'\n'; 1024]).unwrap();
    let limited = ["sh", "-c", "ulimit -f 1; exec \"$0\" \"$@\""];
    let mut node = Process::spawn_in(dir.path(), "n1", &limited);
    assert!(node.wait_until_ready());
    let mut stream = node.connect();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
}

/// A node that a shell at a terminal started. It is gone when the test is.
struct OfTerminal {
    dir: PathBuf,
    shell: std::process::Child,
}

impl OfTerminal {
    fn pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.dir.join("pid")).ok()?;
        text.trim().parse().ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for OfTerminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        if let Some(pid) = self.pid().filter(|_| !self.log().contains("has stopped")) {
            tools::signal(pid, "KILL");
        }
    }
}

/// A shell whose terminal closes sends SIGHUP to its jobs, and once it has ended the kernel sends it to the job in the
/// foreground again. That is no second signal.
#[test]
fn a_terminal_that_closes_stops_its_node_in_good_order() {
    if is_ignored(SIGHUP) {
        tools::skip("SIGHUP is ignored here, and so by every node");
        return;
    }
    if !tools::are_there(&["bash", "sleep"]) {
        return;
    }
    let server = env!("CARGO_BIN_EXE_gopherstore-server");
    for end in ["", " &"] {
        let dir = folder();
        // Two signals that come at once are one; with this they do not.
        std::fs::write(dir.path().join("rc"), "trap 'sleep 0.3' EXIT\n").unwrap();
        let (mut pty, pts) = blocking::open().unwrap();
        let shell = blocking::Command::new("bash")
            .args(["--noprofile", "--rcfile", "rc", "-i"])
            .env("HISTFILE", "")
            .env("RUST_LOG", "info")
            .current_dir(dir.path())
            .spawn(pts)
            .unwrap();
        let mut node = OfTerminal {
            dir: dir.path().to_owned(),
            shell,
        };
        let run = format!("exec {server} --config cluster.toml --node n1 >out 2>log");
        let line = format!("sh -c 'echo $$ >pid; {run}'{end}\n");
        pty.write_all(line.as_bytes()).unwrap();
        let addr: SocketAddr = wait_for("the node to be ready", || {
            let line = std::fs::read_to_string(dir.path().join("out")).ok()?;
            let (_, rest) = line.split_once(" ready on ")?;
            rest.split_once(' ')?.0.parse().ok()
        });
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A request that has begun: the stop waits for its rest.
        let value = vec![b'x'; 30_000];
        let set = frames(&[Request::Set {
            key: b"k",
            value: &value,
        }]);
        stream
            .write_all(&[&frames(&[Request::Ping]), &set[..20_000]].concat())
            .unwrap();
        assert_eq!(answer(&stream), pong());
        drop(pty);
        wait_for("the shell's end", || node.shell.try_wait().unwrap());
        wait_for("the stop", || {
            node.log().contains("SIGHUP: stopping").then_some(())
        });
        stream.write_all(&set[20_000..]).unwrap();
        assert_eq!(answer(&stream), done(), "{end:?}: {}", node.log());
        closed(&stream);
        wait_for("the node's end", || {
            node.log().contains("has stopped").then_some(())
        });
    }
}
