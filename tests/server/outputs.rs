//! Standard output and standard error without a reader, and the log.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use gopherstore::wire::Request;

use crate::node::{PATIENCE, Process, wait_at_most, wait_for};
use crate::{answer, done, frames, pong, tools};

/// How long a node may take to stop if it has nothing to do. It waits a second for readers of its output.
const STOP: Duration = Duration::from_secs(10);

/// A single node with streams of the test's choice. It is gone when the test is.
struct Single(Child);

impl Single {
    fn start(stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Single {
        let child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--addr", "127.0.0.1:0"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Single(child)
    }

    /// The address in the line that says that it is ready.
    fn ready(&mut self) -> (SocketAddr, BufReader<ChildStdout>) {
        let mut stdout = BufReader::new(self.0.stdout.take().unwrap());
        let line = thread::spawn(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            (line, stdout)
        });
        wait_for("the ready line", || line.is_finished().then_some(()));
        let (line, stdout) = line.join().unwrap();
        (addr_in(&line).unwrap_or_else(|| panic!("{line:?}")), stdout)
    }

    fn stop(&mut self) -> ExitStatus {
        assert!(tools::signal(self.0.id(), "TERM"));
        wait_at_most(STOP, "the node's end", || self.0.try_wait().unwrap())
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn addr_in(line: &str) -> Option<SocketAddr> {
    let mut words = line.split([' ', ',']);
    words.find_map(|word| word.trim_end_matches(':').parse().ok())
}

/// A stream that takes no byte more, and its other end.
fn full() -> (OwnedFd, UnixStream) {
    let (stream, reader) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[b'\n'; 4096]).is_ok() {}
    while (&stream).write(b"\n").is_ok() {}
    stream.set_nonblocking(false).unwrap();
    (stream.into(), reader)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The bytes that a reader gets until the end.
fn read_all(reader: &UnixStream) -> String {
    let mut text = String::new();
    let mut reader = reader;
    reader.read_to_string(&mut text).unwrap();
    text.trim_start().to_owned()
}

#[test]
fn an_unread_log_blocks_neither_requests_nor_the_stop() {
    for is_read_in_the_end in [false, true] {
        let (stderr, reader) = full();
        let mut node = Single::start(Stdio::piped(), stderr);
        let (addr, _stdout) = node.ready();
        let set = Request::Set {
            key: b"k",
            value: b"v",
        };
        let stream = connect(addr);
        (&stream).write_all(&frames(&[set])).unwrap();
        assert_eq!(answer(&stream), done());
        if !is_read_in_the_end {
            assert_eq!(node.stop().code(), Some(0));
            continue;
        }
        // The logged lines come out once they are read.
        let reading = thread::spawn(move || read_all(&reader));
        assert_eq!(node.stop().code(), Some(0));
        let log = reading.join().unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines[0].contains("a single node on "), "{log}");
        assert!(
            lines[lines.len() - 2].contains("SIGTERM: stopping"),
            "{log}"
        );
        assert!(lines[lines.len() - 1].contains("has stopped"), "{log}");
    }
}

#[test]
fn an_unread_ready_line_blocks_nothing() {
    let (stuck, reader) = full();
    let (closed, other_end) = UnixStream::pair().unwrap();
    drop(other_end);
    for stdout in [stuck, closed.into()] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut node = Single::start(stdout, File::create(&path).unwrap());
        let addr = wait_for("the address in the log", || {
            let log = std::fs::read_to_string(&path).unwrap();
            log.lines().find_map(addr_in)
        });
        let stream = connect(addr);
        (&stream).write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&stream), pong());
        assert_eq!(node.stop().code(), Some(0));
    }
    drop(reader);
}

#[test]
fn a_failure_of_the_start_is_logged_although_the_reader_is_late() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (stderr, reader) = full();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .args(["--addr", &taken.local_addr().unwrap().to_string()])
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let reading = thread::spawn(move || read_all(&reader));
    let status = wait_at_most(STOP, "the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let said = reading.join().unwrap();
    assert!(
        said.contains("Address already in use") && said.contains("with --addr HOST:PORT"),
        "{said}"
    );
}

#[test]
fn a_list_of_nodes_that_cannot_be_written_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .args(["--check-config", "--config", "cluster.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write to standard output"), "{said}");
}

#[test]
fn an_invalid_variable_is_reported_and_the_default_applies() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n";
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    for (name, value, is_named) in [
        ("RUST_LOG", "nonsense", true),
        ("RUST_LOG", "gopherstore=loud", true),
        ("RUST_LOG", "", false),
        ("RUST_LOG", "info", false),
        ("RUST_LOG_STYLE", "pink", true),
    ] {
        let mut node = Process::spawn_with(dir.path(), "n1", None, &[(name, value)]);
        assert!(node.wait_until_ready());
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0));
        let log = node.log();
        assert_eq!(
            log.contains(&format!("{name}={value}: ")),
            is_named,
            "{log}"
        );
        assert!(log.contains("node n1 of cluster c: leader"), "{log}");
        std::fs::remove_file(dir.path().join("log")).unwrap();
    }
}

/// The system gives a user few threads (`ulimit -u`): whatever thread is missing, the node says so and ends.
#[test]
fn too_few_threads_are_an_error_and_no_abort() {
    if !tools::are_there(&["prlimit", "setpriv"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("gopherstore-server");
    std::fs::copy(env!("CARGO_BIN_EXE_gopherstore-server"), &server).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // A user of this test alone, since all processes of a user count.
    let user = format!("--reuid={}", 1_000_000 + std::process::id());
    for (limit, missing) in [
        (1, "log"),
        (2, "thread \"signals\""),
        (3, "thread \"ready\""),
    ] {
        let path = dir.path().join("said");
        let child = Command::new("prlimit")
            .arg(format!("--nproc={limit}"))
            .args(["setpriv", &user, "--clear-groups"])
            .arg(&server)
            .args(["--addr", "127.0.0.1:0"])
            .stderr(File::create(&path).unwrap())
            .spawn()
            .unwrap();
        let mut node = Single(child);
        let status = wait_at_most(PATIENCE, "the end", || node.0.try_wait().unwrap());
        let said = std::fs::read_to_string(&path).unwrap();
        if said.contains("setpriv: ") {
            tools::skip("a process of another user needs root");
            return;
        }
        assert_eq!(status.code(), Some(1), "{limit}: {said}");
        let last = said.lines().last().unwrap();
        let expected = format!("gopherstore-server: cannot start the {missing}: ");
        assert!(
            last.starts_with(&expected) && last.contains("allow more processes and threads"),
            "{limit}: {said}"
        );
    }
}
