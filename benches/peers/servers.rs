//! The servers: how each is started, asked how it stands, and stopped; and what the system knows of a process.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::Client;
use gopherstore::client::{NodeState, NodeStatus};

use crate::protocol::{KEY_LEN, Keys, Protocol, Requests, WriteKind, head};
use crate::{Outcome, check_interrupted};

/// How long a server may take to be ready, or a follower to have everything.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often a server is started again because another program has taken its port.
const TRIES: usize = 5;

/// The log that a leader keeps for its followers: large, since a follower that falls behind is none for a while.
const BACKLOG_BYTES: u64 = 512 << 20;

/// Clients that each server takes.
const CLIENTS_MAX: usize = 20_000;

/// The system's unit of processor time in ticks a second: USER_HZ, which has long been 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The data directory of GopherStore, in the folder of the server.
const DATA: &str = "data";

/// That of Redis and Valkey, by their default.
const APPEND_ONLY: &str = "appendonlydir";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    GopherStore,
    /// GopherStore without a data directory, in the cells where it has one.
    InMemory,
    Redis,
    Valkey,
    Memcached,
    Echo,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] = [
        Kind::GopherStore,
        Kind::InMemory,
        Kind::Redis,
        Kind::Valkey,
        Kind::Memcached,
        Kind::Echo,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::GopherStore => "gopherstore",
            Kind::InMemory => "in-memory",
            Kind::Redis => "redis",
            Kind::Valkey => "valkey",
            Kind::Memcached => "memcached",
            Kind::Echo => "echo",
        }
    }

    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Kind::GopherStore | Kind::InMemory | Kind::Echo => Protocol::Gbp,
            Kind::Redis | Kind::Valkey => Protocol::Resp,
            Kind::Memcached => Protocol::Memcached,
        }
    }

    /// Whether it stores values.
    pub(crate) fn stores(self) -> bool {
        self != Kind::Echo
    }

    pub(crate) fn is_gopherstore(self) -> bool {
        matches!(self, Kind::GopherStore | Kind::InMemory)
    }

    /// Whether it can have followers.
    pub(crate) fn replicates(self) -> bool {
        !matches!(self, Kind::Memcached | Kind::Echo)
    }
}

/// Where the programs are.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) gopherstore: PathBuf,
}

impl Programs {
    fn of(&self, kind: Kind) -> PathBuf {
        match kind {
            Kind::GopherStore | Kind::InMemory => self.gopherstore.clone(),
            Kind::Redis => "redis-server".into(),
            Kind::Valkey => "valkey-server".into(),
            Kind::Memcached => "memcached".into(),
            Kind::Echo => std::env::current_exe().unwrap_or_default(),
        }
    }

    /// Name and version of a server; none where it is not installed.
    pub(crate) fn version(&self, kind: Kind) -> Option<String> {
        if kind == Kind::Echo {
            return Some("echo".to_owned());
        }
        let output = Command::new(self.of(kind)).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.split_whitespace().find_map(|word| {
            let word = word.strip_prefix("v=").unwrap_or(word);
            word.starts_with(|char: char| char.is_ascii_digit())
                .then_some(word)
        });
        let name = match kind {
            Kind::GopherStore => "GopherStore",
            Kind::InMemory => "GopherStore in memory",
            Kind::Redis => "redis-server",
            Kind::Valkey => "valkey-server",
            Kind::Memcached | Kind::Echo => kind.name(),
        };
        Some(format!(
            "{name} {}",
            number.unwrap_or("of no known version")
        ))
    }
}

/// One process. It ends with this.
pub(crate) struct Process {
    child: Child,
    pub(crate) addr: SocketAddr,
    log: PathBuf,
    /// An echo server ends with its input.
    _input: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// Starts a program that is to listen on `addr`, in a group of its own: Ctrl-C is for us, and we stop it.
    fn start(mut command: Command, addr: SocketAddr, dir: &Path) -> Outcome<Process> {
        let log = dir.join(format!("{}.log", addr.port()));
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let both = file.try_clone().map_err(|error| error.to_string())?;
        command.current_dir(dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(file).stderr(both);
        let mut child = command.spawn().map_err(|error| {
            let program = command.get_program().display();
            format!("cannot start {program}: {error}")
        })?;
        Ok(Process {
            _input: child.stdin.take(),
            child,
            addr,
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its output.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

/// Waits until `condition` gives something.
fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        check_interrupted()?;
        if Instant::now() > deadline {
            return Err(format!(
                "{what} is not there after {} s",
                PATIENCE.as_secs()
            ));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// This number of different free ports.
fn free_addrs(count: usize) -> Outcome<Vec<SocketAddr>> {
    let listeners: Result<Vec<TcpListener>, _> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect();
    let addrs: Result<Vec<SocketAddr>, _> = listeners
        .map_err(|error| format!("cannot listen: {error}"))?
        .iter()
        .map(TcpListener::local_addr)
        .collect();
    addrs.map_err(|error| error.to_string())
}

/// The answer to a GET of the key with this number; none without an answer, or after an error.
fn get(protocol: Protocol, addr: SocketAddr, number: u64) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut out = Vec::new();
    Requests::new(protocol, WriteKind::Set, 1).push(true, &Keys::new().key(number), &mut out);
    stream.write_all(&out).ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        let count = stream.read(&mut buffer).ok().filter(|&count| count > 0)?;
        answer.extend_from_slice(&buffer[..count]);
        let head = head(protocol, &answer).ok()?;
        if head.is_some_and(|head| answer.len() >= head.len) {
            return Some(answer);
        }
    }
}

/// How a server keeps its data on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) sync: Sync,
    pub(crate) snapshots: Snapshots,
}

/// When a write is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Always,
    /// Once a second.
    Interval,
}

/// When a server writes a snapshot; Redis and Valkey rewrite the AOF, which then begins with an RDB file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshots {
    /// By its own rule.
    Usual,
    Never,
    /// When every key has been set once.
    OnceLoaded,
}

/// A server that is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Keys that are loaded.
    pub(crate) keys: u64,
    /// Bytes of the values that are asked for; an echo server must know.
    pub(crate) value_len: usize,
    /// The write that loads the data, and that clients send.
    pub(crate) write: WriteKind,
    /// Followers that run from the start.
    pub(crate) followers: usize,
    /// Followers that are known, and started later.
    pub(crate) later: usize,
    /// None for a server that keeps its data in memory alone.
    pub(crate) disk: Option<Disk>,
}

impl Setup {
    /// Bytes of log after which GopherStore writes a snapshot; none where its own rule says.
    fn snapshot_log_bytes(&self) -> Option<u64> {
        // A record has a head of 7 bytes.
        let record = u64::try_from(7 + KEY_LEN + self.value_len).unwrap_or(u64::MAX);
        match self.disk?.snapshots {
            Snapshots::Usual => None,
            Snapshots::Never => Some(u64::MAX),
            Snapshots::OnceLoaded => Some((self.keys * record).saturating_sub(1)),
        }
    }
}

/// A server with its followers.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// Before its followers, so that it is stopped before them and does not wait.
    pub(crate) leader: Process,
    followers: Vec<Process>,
    programs: Programs,
    addrs: Vec<SocketAddr>,
    setup: Setup,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(programs: &Programs, kind: Kind, setup: Setup) -> Outcome<Server> {
        let mut tries = 1;
        loop {
            match Server::try_start(programs, kind, setup) {
                Err(error) if error.contains("in use") && tries < TRIES => tries += 1,
                result => return result.map_err(|error| format!("{}: {error}", kind.name())),
            }
        }
    }

    fn try_start(programs: &Programs, kind: Kind, setup: Setup) -> Outcome<Server> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let addrs = free_addrs(1 + setup.followers + setup.later)?;
        if kind.is_gopherstore() && setup.disk.is_none() {
            let mut text = "cluster = \"bench\"\nleader = \"n1\"\n".to_owned();
            for (number, addr) in (1..).zip(&addrs) {
                text += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
            }
            text += &format!("[replication]\nbacklog_bytes = {BACKLOG_BYTES}\n");
            text += &format!("[limits]\nmax_connections = {CLIENTS_MAX}\n");
            fs::write(dir.path().join("cluster.toml"), text).map_err(|error| error.to_string())?;
        }
        let command = command(programs, kind, setup, &addrs, 0);
        let mut server = Server {
            kind,
            leader: ready(kind, Process::start(command, addrs[0], dir.path())?)?,
            followers: Vec::new(),
            programs: programs.clone(),
            addrs,
            setup,
            dir,
        };
        for number in 1..=setup.followers {
            let follower = server.follower(number)?;
            server.followers.push(follower);
        }
        server.wait_followed()?;
        Ok(server)
    }

    /// Starts the follower with this number, from 1 on.
    fn follower(&self, number: usize) -> Outcome<Process> {
        let command = command(&self.programs, self.kind, self.setup, &self.addrs, number);
        Process::start(command, self.addrs[number], self.dir.path())
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.kind.protocol()
    }

    /// Runs a command for the shell that is told of this server.
    pub(crate) fn look(&self, command: &str, cell: &str) -> Outcome<()> {
        // Of our group, so that Ctrl-C ends it too.
        let status = Command::new("sh")
            .args(["-c", command])
            .env("CELL", cell)
            .env("SERVER", self.kind.name())
            .env("PID", self.leader.pid().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("--beside: {status}")),
            Err(error) => Err(format!("--beside: sh: {error}")),
        }
    }

    /// Waits until those of its followers that run have all that it has.
    pub(crate) fn wait_followed(&mut self) -> Outcome<()> {
        let wanted = self.followers.len();
        if wanted == 0 {
            return Ok(());
        }
        wait_for("a follower", || {
            if let Some(dead) = {
                let mut all = self.followers.iter_mut();
                all.find_map(|one| one.has_ended().then(|| one.log()))
            } {
                return Err(format!("a follower has ended: {dead}"));
            }
            let lags = self.lags()?;
            let is_level = lags.len() == wanted && lags.iter().all(|&lag| lag == 0);
            Ok(is_level.then_some(()))
        })
    }

    /// How far each of its followers is behind: entries of GopherStore, bytes of the others.
    fn lags(&self) -> Outcome<Vec<u64>> {
        if self.kind.is_gopherstore() {
            let status = status(self.leader.addr)?;
            let lags = status.followers.values().filter_map(|one| one.lag_entries);
            return Ok(lags.collect());
        }
        let end = field(
            &info(self.leader.addr, "replication")?,
            "master_repl_offset",
        )
        .unwrap_or(0);
        // The leader is told once a second, so they are asked themselves.
        let mut lags = Vec::new();
        for follower in &self.followers {
            let text = info(follower.addr, "replication").unwrap_or_default();
            if text.contains("master_link_status:up") {
                let offset = field(&text, "slave_repl_offset").unwrap_or(0);
                lags.push(end.saturating_sub(offset));
            }
        }
        Ok(lags)
    }

    /// Full copies that it has sent since its start.
    pub(crate) fn full_copies(&self) -> Outcome<u64> {
        Ok(if self.kind.is_gopherstore() {
            status(self.leader.addr)?.full_copies.unwrap_or(0)
        } else {
            field(&info(self.leader.addr, "stats")?, "sync_full").unwrap_or(0)
        })
    }

    /// Waits until the files hold all data, with a snapshot if there is to be one, and stops the server: the next start
    /// of it is measured.
    pub(crate) fn stop_with_data(&mut self) -> Outcome<()> {
        let with_snapshot = self
            .setup
            .disk
            .is_some_and(|disk| disk.snapshots == Snapshots::OnceLoaded);
        if self.kind.is_gopherstore() {
            if with_snapshot {
                wait_for("the snapshot", || {
                    let files = self.files()?;
                    let count = |start| {
                        files
                            .iter()
                            .filter(|(name, _)| name.starts_with(start))
                            .count()
                    };
                    // The log before it goes, but for the segment that is being written.
                    Ok((count("snapshot-") == 1 && count("log-") <= 2).then_some(()))
                })?;
            }
        } else {
            let addr = self.leader.addr;
            if with_snapshot {
                ask(addr, "BGREWRITEAOF")?;
            }
            wait_for("the AOF", || {
                let text = info(addr, "persistence")?;
                let busy = ["aof_rewrite_in_progress", "aof_buffer_length"];
                let is_done = busy.iter().all(|name| field(&text, name) == Some(0));
                Ok(is_done.then_some(()))
            })?;
        }
        self.leader.kill();
        Ok(())
    }

    /// Starts the server, which does not run; how long it takes until a GET of the last key has the right answer.
    pub(crate) fn restart(&mut self) -> Outcome<Duration> {
        let command = command(&self.programs, self.kind, self.setup, &self.addrs, 0);
        let (number, value) = (self.setup.keys - 1, vec![b'1'; self.setup.value_len]);
        let start = Instant::now();
        self.leader = Process::start(command, self.addrs[0], self.dir.path())?;
        wait_for("the data", || {
            if self.leader.has_ended() {
                return Err(format!("it has ended: {}", self.leader.log().trim()));
            }
            let Some(answer) = get(self.protocol(), self.leader.addr, number) else {
                return Ok(None);
            };
            if answer.windows(value.len()).any(|bytes| bytes == value) {
                Ok(Some(start.elapsed()))
            } else {
                Err("it has not recovered the last key".to_owned())
            }
        })
    }

    /// Stops it at once.
    pub(crate) fn kill(&mut self) {
        self.leader.kill();
    }

    /// The files with its data, and their bytes.
    pub(crate) fn files(&self) -> Outcome<Vec<(String, u64)>> {
        let name = if self.kind.is_gopherstore() {
            DATA
        } else {
            APPEND_ONLY
        };
        let path = self.dir.path().join(name);
        let entries = fs::read_dir(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        // One that is removed meanwhile is none.
        let files = entries.flatten().filter_map(|entry| {
            let bytes = entry.metadata().ok()?.len();
            Some((entry.file_name().to_string_lossy().into_owned(), bytes))
        });
        Ok(files.collect())
    }

    /// Waits until the disk has what other servers and programs have written.
    pub(crate) fn sync_disk(&self) -> Outcome<()> {
        let sync = || rustix::fs::syncfs(File::open(self.dir.path())?).map_err(io::Error::from);
        sync().map_err(|error| format!("cannot sync the disk: {error}"))
    }

    /// Starts the follower that is known and does not run, and waits until it has a full copy; how long that took, from
    /// the start of its process. It is stopped then.
    pub(crate) fn copy_to_new_follower(&self, keys: u64) -> Outcome<Duration> {
        let number = self.followers.len() + 1;
        let start = Instant::now();
        let mut follower = self.follower(number)?;
        let addr = follower.addr;
        wait_for("the full copy", || {
            if follower.has_ended() {
                return Err(format!("the follower has ended: {}", follower.log()));
            }
            let has_all = if self.kind.is_gopherstore() {
                status(addr).is_ok_and(|status| {
                    status.state == Some(NodeState::Serving)
                        && status.is_link_up == Some(true)
                        && status.keys >= Some(keys)
                })
            } else {
                info(addr, "replication").is_ok_and(|text| text.contains("master_link_status:up"))
            };
            Ok(has_all.then(|| start.elapsed()))
        })
    }
}

/// The command that starts node `number` of these, the first of which leads.
fn command(
    programs: &Programs,
    kind: Kind,
    setup: Setup,
    addrs: &[SocketAddr],
    number: usize,
) -> Command {
    let mut command = Command::new(programs.of(kind));
    let port = addrs[number].port().to_string();
    match kind {
        Kind::GopherStore | Kind::InMemory => match setup.disk {
            None => {
                let node = format!("n{}", number + 1);
                command.args(["--config", "cluster.toml", "--node", &node]);
            }
            Some(disk) => {
                command.args(["--addr", &addrs[number].to_string()]);
                let sync = match disk.sync {
                    Sync::Always => "always",
                    Sync::Interval => "interval",
                };
                if kind == Kind::GopherStore {
                    command.args(["--data-dir", DATA, "--sync", sync]);
                }
                if let Some(bytes) = setup.snapshot_log_bytes() {
                    command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", bytes.to_string());
                }
            }
        },
        Kind::Redis | Kind::Valkey => redis_arguments(&mut command, setup, addrs, number),
        Kind::Memcached => {
            let clients = CLIENTS_MAX.saturating_sub(1_000).to_string();
            command.args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-m", "65536"]);
            // As root it needs the name of a user to run as.
            command.args(["-c", &clients, "-t", "2", "-u", "root"]);
        }
        Kind::Echo => {
            command.args(["echo", "--value-bytes", &setup.value_len.to_string()]);
        }
    }
    command
}

/// Adds the arguments of Redis and Valkey, as of [`command`].
fn redis_arguments(command: &mut Command, setup: Setup, addrs: &[SocketAddr], number: usize) {
    let port = addrs[number].port().to_string();
    let clients = CLIENTS_MAX.saturating_sub(1_000).to_string();
    command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
    command.args(["--maxclients", &clients]);
    match setup.disk {
        None => {
            command.args(["--appendonly", "no"]);
        }
        Some(disk) => {
            let sync = match disk.sync {
                Sync::Always => "always",
                Sync::Interval => "everysec",
            };
            command.args(["--appendonly", "yes", "--appendfsync", sync]);
            if disk.snapshots != Snapshots::Usual {
                command.args(["--auto-aof-rewrite-percentage", "0"]);
            }
        }
    }
    // Two processes share the folder.
    command.args(["--dbfilename", &format!("{port}.rdb")]);
    command.args([
        "--repl-diskless-sync",
        "yes",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    command.args(["--repl-backlog-size", &BACKLOG_BYTES.to_string()]);
    command.args(["--client-output-buffer-limit", "replica 0 0 0"]);
    if number > 0 {
        let leader = addrs[0].port().to_string();
        command.args(["--replicaof", &format!("127.0.0.1 {leader}")]);
    }
}

/// Waits until the process answers; its address is known then.
fn ready(kind: Kind, mut process: Process) -> Outcome<Process> {
    wait_for("the server", || {
        if process.has_ended() {
            return Err(format!("it has ended: {}", process.log().trim()));
        }
        if kind == Kind::Echo {
            // It takes a port of its own.
            let log = process.log();
            let Some(addr) = log.trim_end().strip_prefix("echo: ready on ") else {
                return Ok(None);
            };
            process.addr = addr.parse().map_err(|error| format!("{addr}: {error}"))?;
        }
        Ok(get(kind.protocol(), process.addr, 0).map(drop))
    })?;
    Ok(process)
}

fn status(addr: SocketAddr) -> Outcome<NodeStatus> {
    let text = Client::connect(&addr.to_string()).and_then(|mut client| client.status());
    let text = text.map_err(|error| error.to_string())?;
    Ok(NodeStatus::parse(&text))
}

/// The INFO of a server that speaks RESP.
fn info(addr: SocketAddr, section: &str) -> Outcome<String> {
    ask(addr, &format!("INFO {section}"))
}

/// The answer of a server that speaks RESP.
fn ask(addr: SocketAddr, command: &str) -> Outcome<String> {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    ask().map_err(|error| format!("{command}: {error}"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Processor time that a process has used: its threads together, those that ended too.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15; the second one is a name in parentheses, with any characters in it.
    let behind = text.rsplit(')').next().unwrap_or("");
    let ticks: f64 = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Memory of a process in KiB, now and at most until now.
pub(crate) fn memory_kib(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Bytes that were written, up to some moment.
#[derive(Clone, Copy, Default)]
pub(crate) struct Written {
    /// By a process to files; those of Redis and Valkey to sockets count too.
    pub(crate) to_files: u64,
    /// To the disk that has the temporary files, by all programs; 0 where the system does not tell.
    pub(crate) to_disk: u64,
}

impl Written {
    pub(crate) fn by(pid: u32) -> Written {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        Written {
            to_files: field(&text, "wchar").unwrap_or(0),
            to_disk: disk_bytes().unwrap_or(0),
        }
    }

    pub(crate) fn since(self, start: Written) -> Written {
        Written {
            to_files: self.to_files.saturating_sub(start.to_files),
            to_disk: self.to_disk.saturating_sub(start.to_disk),
        }
    }
}

fn disk_bytes() -> Option<u64> {
    let device = fs::metadata(std::env::temp_dir()).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = fs::read_to_string("/proc/diskstats").ok()?;
    let mut lines = text.lines().map(|line| line.split_whitespace());
    lines.find_map(|mut fields| {
        let mut is = |number: u32| Some(fields.next()?.parse() == Ok(number));
        let is_it = is(major)? && is(minor)?;
        // Sectors of 512 bytes.
        let sectors: u64 = fields.nth(7)?.parse().ok()?;
        is_it.then_some(sectors * 512)
    })
}

/// Whether files in the folder for temporary files are on a disk.
pub(crate) fn temporary_files_are_on_disk() -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let found = rustix::fs::statfs(std::env::temp_dir());
    !found.is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS_MAGIC))
}
