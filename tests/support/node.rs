//! A node of its own process, which is gone when the test is.
#![allow(dead_code)] // each test crate uses its part

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools;

/// How long a test waits for anything that must come. Long, since it is waited for in full only by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Lines of a node's log that are printed where a test fails.
const LOG_LINES_SHOWN: usize = 40;

/// Polls until `condition` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, what, condition)
}

/// Polls until `condition` gives something, which it must within that time.
#[track_caller]
pub(crate) fn wait_at_most<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A running `gopherstore-server`.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// The node's name, for what is printed.
    name: String,
    /// Where it listens; known once it is ready.
    pub(crate) addr: SocketAddr,
    log_path: PathBuf,
    /// How long the log was before this process.
    log_from: usize,
    /// Gives the first line of standard output. In a lock, so that threads of a test may share a node.
    ready: Mutex<Receiver<String>>,
}

/// A [`Process`] with a folder of its own.
#[derive(Debug)]
pub(crate) struct Node {
    process: Process,
    /// Goes after the process.
    _dir: TempDir,
}

/// How a [`Node`] is started.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Lines of the `[limits]` section.
    pub(crate) limits: &'static str,
    /// Start the node `n2`, which follows the leader at this address.
    pub(crate) leader: Option<SocketAddr>,
    /// File descriptors that the process may have.
    pub(crate) descriptors: Option<u32>,
}

impl Node {
    pub(crate) fn start() -> Node {
        Node::start_with(&Options::default())
    }

    pub(crate) fn start_with(options: &Options) -> Node {
        // A node of a cluster of one has the system choose its port. A follower needs a cluster and so a number; where
        // somebody else takes the port before the node does, there is another.
        for _ in 0..20 {
            let port = if options.leader.is_some() {
                free_port()
            } else {
                0
            };
            if let Some(node) = Node::try_start(options, port) {
                return node;
            }
        }
        panic!("no free port in 20 tries")
    }

    fn try_start(options: &Options, port: u16) -> Option<Node> {
        let dir = tempfile::tempdir().unwrap();
        let mut config =
            "cluster = \"test\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\n".to_owned();
        if let Some(leader) = options.leader {
            write!(config, "addr = \"{leader}\"\n[[node]]\nname = \"n2\"\n").unwrap();
        }
        write!(
            config,
            "addr = \"127.0.0.1:{port}\"\n[limits]\n{}\n",
            options.limits
        )
        .unwrap();
        std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
        let name = if options.leader.is_some() { "n2" } else { "n1" };
        let mut process = Process::spawn(dir.path(), name, options.descriptors);
        process
            .wait_until_ready()
            .then_some(Node { process, _dir: dir })
    }
}

impl Deref for Node {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Process {
    /// Starts the node `name` of `cluster.toml` in `dir`. It logs to the file `log` there, after what that file holds.
    pub(crate) fn spawn(dir: &Path, name: &str, descriptors: Option<u32>) -> Process {
        Process::spawn_with(dir, name, descriptors, &[])
    }

    /// The same, by a command that begins with these words and runs those that follow.
    pub(crate) fn spawn_in(dir: &Path, name: &str, prefix: &[&str]) -> Process {
        let words = [prefix, &[env!("CARGO_BIN_EXE_gopherstore-server")]].concat();
        Process::spawn_by(dir, name, &words)
    }

    /// The same, by these words in place of the server's path.
    pub(crate) fn spawn_by(dir: &Path, name: &str, words: &[&str]) -> Process {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Process::spawn_command(command, dir, name, &[])
    }

    /// The same, with more in its environment.
    pub(crate) fn spawn_with(
        dir: &Path,
        name: &str,
        descriptors: Option<u32>,
        env: &[(&str, &str)],
    ) -> Process {
        let command = match descriptors {
            Some(count) => {
                let mut command = Command::new("sh");
                let script = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
                command.args(["-c", &script, env!("CARGO_BIN_EXE_gopherstore-server")]);
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_gopherstore-server")),
        };
        Process::spawn_command(command, dir, name, env)
    }

    fn spawn_command(
        mut command: Command,
        dir: &Path,
        name: &str,
        env: &[(&str, &str)],
    ) -> Process {
        let log_path = dir.join("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .unwrap();
        let log_from = usize::try_from(log.metadata().unwrap().len()).unwrap();
        let mut child = command
            .args(["--config", "cluster.toml", "--node", name])
            .current_dir(dir)
            .env("RUST_LOG", "debug")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, ready) = mpsc::channel();
        // Ends with the line or with the process.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = sender.send(line);
        });
        Process {
            child,
            name: name.to_owned(),
            addr: ([0, 0, 0, 0], 0).into(),
            log_path,
            log_from,
            ready: Mutex::new(ready),
        }
    }

    /// Waits for the line that says so. False where somebody else has the port; the process has then ended.
    pub(crate) fn wait_until_ready(&mut self) -> bool {
        let line = self
            .ready
            .lock()
            .unwrap()
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{} is not ready after {PATIENCE:?}", self.name));
        if line.is_empty() {
            let status = self.wait();
            let log = self.log();
            assert!(log.contains("Address already in use"), "{status}: {log}");
            return false;
        }
        // gopherstore-server: n1 ready on 127.0.0.1:8000 (leader)
        let addr = line
            .split(" ready on ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        self.addr = addr
            .and_then(|addr| addr.parse().ok())
            .unwrap_or_else(|| panic!("{line:?}"));
        true
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The node's log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log_path).unwrap()
    }

    /// The log of this process alone.
    pub(crate) fn own_log(&self) -> String {
        self.log()[self.log_from..].to_owned()
    }

    /// Waits until this process has logged that.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        // An earlier process may have logged the same to the same file.
        wait_for(text, || {
            self.log()[self.log_from..].contains(text).then_some(())
        });
    }

    /// A field of `/proc/PID/status` in KiB: `VmRSS` now, `VmHWM` at the most so far.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many of the node's threads have a name that begins so.
    pub(crate) fn threads(&self, prefix: &str) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        // A thread may end between the two looks.
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with(prefix)).count()
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(tools::signal(self.pid(), name), "no process to signal");
    }

    /// Sends SIGKILL, and does not wait.
    pub(crate) fn begin_kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Ends the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How the process has ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the node's end", || child.try_wait().unwrap())
    }

    /// A connection that does not wait for ever.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends bytes on a connection of their own, shuts down the writing side and reads all that comes.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut responses = Vec::new();
        stream.read_to_end(&mut responses).unwrap();
        responses
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- {}: its last lines\n{}", self.name, tail.join("\n"));
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
