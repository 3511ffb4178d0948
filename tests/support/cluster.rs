//! A cluster of real processes, and proxies on the links between them.
//!
//! Each node has a port that is reserved for it as long as the cluster is, so a restart finds it free. With proxies
//! every node has a `cluster.toml` of its own, in which its own address is the real one and each other's is that of a
//! [`Proxy`], so that there is one on each link in each direction of dialling: [`Cluster::link`]. Clients of a test
//! talk to the real addresses.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gopherstore::client::{Client, ClientOptions, Response};
use gopherstore::wire::Status as ResponseStatus;
use socket2::Socket;
use tempfile::TempDir;

use super::names::{key, opcode, state};
use super::node::{PATIENCE, Process, wait_at_most, wait_for};
use super::proxy::{Proxy, reserve_port};

/// How long a node may take to answer a STATUS.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks at a status; each is a connection in the nodes' logs.
const POLL: Duration = Duration::from_millis(20);
/// Requests in one pipeline.
const PIPELINE_COUNT: usize = 5_000;

/// How a [`Cluster`] is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Lines of the `[replication]` section.
    pub(crate) replication: String,
    /// Lines of the `[limits]` section.
    pub(crate) limits: String,
    /// Lines of the `[storage]` section.
    pub(crate) storage: String,
    /// More in the environment of all nodes.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Whether there is a proxy on every link between nodes.
    pub(crate) proxies: bool,
}

/// Nodes `n1`, `n2` …, called by their number from 0. The first one leads.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Member>,
    links: HashMap<(usize, usize), Proxy>,
    /// Old and new addresses of nodes that were moved.
    moved: Vec<(SocketAddr, SocketAddr)>,
    /// Goes after all processes.
    _dir: TempDir,
}

#[derive(Debug)]
struct Member {
    name: String,
    addr: SocketAddr,
    dir: PathBuf,
    env: Vec<(&'static str, String)>,
    process: Option<Process>,
    is_paused: bool,
    /// Keeps the port.
    _reserved: Socket,
}

/// The STATUS of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status(BTreeMap<String, String>);

impl Status {
    /// The lines `key: value`; any other line is passed over.
    pub(crate) fn parse(text: &str) -> Status {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Status(
            pairs
                .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value, where it begins with a number: `12`, `12 ms`.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.split(' ').next()?.parse().ok()
    }

    pub(crate) fn is_state(&self, state: &str) -> bool {
        self.get(key::STATE)
            .is_some_and(|value| value.starts_with(state))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.0 {
            write!(f, " {key}={value}")?;
        }
        Ok(())
    }
}

impl Cluster {
    /// That many nodes with the defaults, and nothing between them.
    pub(crate) fn start(count: usize) -> Cluster {
        Cluster::start_with(count, &Options::default())
    }

    pub(crate) fn start_with(count: usize, options: &Options) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Member> = (0..count)
            .map(|at| {
                let name = format!("n{}", at + 1);
                let (reserved, addr) = reserve_port();
                let dir = dir.path().join(&name);
                Member {
                    name,
                    addr,
                    dir,
                    env: options.env.clone(),
                    process: None,
                    is_paused: false,
                    _reserved: reserved,
                }
            })
            .collect();
        let mut links = HashMap::new();
        for from in 0..count {
            let mut config = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
            for (to, node) in nodes.iter().enumerate() {
                let mut addr = node.addr;
                if options.proxies && to != from {
                    let proxy = Proxy::start(node.addr);
                    proxy.watch(opcode::FOLLOW);
                    proxy.set_target_gone(true);
                    addr = proxy.addr();
                    links.insert((from, to), proxy);
                }
                let name = &node.name;
                write!(config, "[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n").unwrap();
            }
            write!(config, "[replication]\n{}\n", options.replication).unwrap();
            write!(config, "[limits]\n{}\n", options.limits).unwrap();
            if !options.storage.is_empty() {
                write!(config, "[storage]\n{}\n", options.storage).unwrap();
            }
            let node = &mut nodes[from];
            std::fs::create_dir(&node.dir).unwrap();
            std::fs::write(node.dir.join("cluster.toml"), config).unwrap();
        }
        let mut cluster = Cluster {
            nodes,
            links,
            moved: Vec::new(),
            _dir: dir,
        };
        // All before the first is waited for, since one may need another to become ready.
        for node in &mut cluster.nodes {
            node.spawn();
        }
        for at in 0..count {
            cluster.wait_until_ready(at);
        }
        cluster
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Where the node listens, with no proxy in front.
    pub(crate) fn addr(&self, node: usize) -> SocketAddr {
        self.nodes[node].addr
    }

    /// The running process, for its log, its memory and its signals.
    pub(crate) fn process(&self, node: usize) -> &Process {
        self.nodes[node].process.as_ref().expect("a running node")
    }

    /// The folder of a node's files.
    pub(crate) fn folder(&self, node: usize) -> &Path {
        &self.nodes[node].dir
    }

    /// The log of a node, in all its processes.
    pub(crate) fn folder_log(&self, node: usize) -> String {
        std::fs::read_to_string(self.nodes[node].dir.join("log")).unwrap()
    }

    /// The proxy on the connections that node `from` makes to node `to`.
    pub(crate) fn link(&self, from: usize, to: usize) -> &Proxy {
        &self.links[&(from, to)]
    }

    /// The proxies on all connections between a node and the others.
    pub(crate) fn links_of(&self, node: usize) -> impl Iterator<Item = &Proxy> {
        let is_of = move |ends: &(usize, usize)| ends.0 == node || ends.1 == node;
        self.links
            .iter()
            .filter(move |(ends, _)| is_of(ends))
            .map(|(_, proxy)| proxy)
    }

    /// kill -9. Nothing is left but the node's folder.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().expect("a running node");
        process.kill();
        self.gone(node);
    }

    /// kill -9 of all nodes at once.
    pub(crate) fn kill_all(&mut self) {
        for process in self.nodes.iter_mut().flat_map(|node| &mut node.process) {
            process.begin_kill();
        }
        for node in 0..self.len() {
            self.kill(node);
        }
    }

    /// SIGTERM, and a good end.
    pub(crate) fn stop(&mut self, node: usize) {
        self.begin_stop(node);
        self.wait_stopped(node);
    }

    /// SIGTERM. Another one would end the node at once.
    pub(crate) fn begin_stop(&self, node: usize) {
        self.process(node).signal("TERM");
    }

    /// Waits for the end of a stopping node, with exit code 0.
    pub(crate) fn wait_stopped(&mut self, node: usize) {
        self.wait_stopped_with(node, 0);
    }

    /// Waits for the end of a stopping node, with this exit code.
    pub(crate) fn wait_stopped_with(&mut self, node: usize, code: i32) {
        let process = self.nodes[node].process.as_mut().expect("a running node");
        let status = process.wait();
        assert_eq!(status.code(), Some(code), "{}: {status}", self.name(node));
        self.nodes[node].process = None;
        self.gone(node);
    }

    /// Waits for the end of a stopping node, and returns its exit code.
    pub(crate) fn wait_ended(&mut self, node: usize) -> Option<i32> {
        let process = self.nodes[node].process.as_mut().expect("a running node");
        let code = process.wait().code();
        self.nodes[node].process = None;
        self.gone(node);
        code
    }

    /// Changes the file of a node that does not run.
    pub(crate) fn change_config(&self, node: usize, change: impl FnOnce(&str) -> String) {
        let path = self.nodes[node].dir.join("cluster.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = change(&text);
        assert_ne!(text, changed, "nothing to change");
        std::fs::write(path, changed).unwrap();
    }

    /// Names another leader in the file of a node.
    pub(crate) fn set_leader(&self, node: usize, leader: &str) {
        self.change_config(node, |text| {
            let (_, rest) = text.split_once("leader = ").unwrap();
            let (old, _) = rest.split_once('\n').unwrap();
            text.replace(
                &format!("leader = {old}"),
                &format!("leader = \"{leader}\""),
            )
        });
    }

    /// Gives a node that does not run another port, in its own file.
    pub(crate) fn move_node(&mut self, node: usize) {
        let (reserved, addr) = reserve_port();
        let old = std::mem::replace(&mut self.nodes[node].addr, addr);
        self.nodes[node]._reserved = reserved;
        self.moved.push((old, addr));
        self.update_addresses(node);
    }

    /// Gives the name of a running node another port. The node itself goes on running and is no longer part of the
    /// cluster.
    pub(crate) fn move_running(&mut self, node: usize) -> Process {
        let process = self.nodes[node].process.take().expect("a running node");
        self.move_node(node);
        process
    }

    /// Writes the addresses of moved nodes into the file of a node.
    pub(crate) fn update_addresses(&self, node: usize) {
        self.change_config(node, |text| {
            let moved = self.moved.iter();
            moved.fold(text.to_owned(), |text, (old, new)| {
                text.replace(&old.to_string(), &new.to_string())
            })
        });
    }

    fn gone(&mut self, node: usize) {
        self.nodes[node].is_paused = false;
        self.set_gone(node, true);
    }

    fn set_gone(&self, node: usize, is_gone: bool) {
        for (_, proxy) in self.links.iter().filter(|((_, to), _)| *to == node) {
            proxy.set_target_gone(is_gone);
        }
    }

    /// Starts a node that was killed or stopped, at the address that it had.
    pub(crate) fn restart(&mut self, node: usize) {
        let member = &mut self.nodes[node];
        assert!(member.process.is_none(), "{} is running", member.name);
        member.spawn();
        self.wait_until_ready(node);
    }

    /// Gives a node another environment, from its next start on.
    pub(crate) fn set_env(&mut self, node: usize, env: Vec<(&'static str, String)>) {
        self.nodes[node].env = env;
    }

    /// Starts a node with another environment, and does not wait for it: it may end before it is ready.
    pub(crate) fn begin_restart(&mut self, node: usize, env: Vec<(&'static str, String)>) {
        let member = &mut self.nodes[node];
        assert!(member.process.is_none(), "{} is running", member.name);
        let before = std::mem::replace(&mut member.env, env);
        member.spawn();
        member.env = before;
        self.set_gone(node, false);
    }

    /// Whether a node's process has ended.
    pub(crate) fn has_ended(&mut self, node: usize) -> bool {
        let process = self.nodes[node].process.as_mut();
        process.expect("a node").try_wait().is_some()
    }

    fn wait_until_ready(&mut self, node: usize) {
        let member = &mut self.nodes[node];
        wait_for("the node's port", || {
            let is_ready = member
                .process
                .as_mut()
                .is_some_and(Process::wait_until_ready);
            if !is_ready {
                member.spawn();
            }
            is_ready.then_some(())
        });
        assert_eq!(self.process(node).addr, self.addr(node));
        self.set_gone(node, false);
    }

    /// SIGSTOP: the process is suspended, and its sockets stay open.
    pub(crate) fn pause(&mut self, node: usize) {
        self.process(node).signal("STOP");
        self.nodes[node].is_paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, node: usize) {
        self.process(node).signal("CONT");
        self.nodes[node].is_paused = false;
    }

    /// The nodes that run and are not suspended.
    pub(crate) fn running(&self) -> Vec<usize> {
        let is_running =
            |&at: &usize| self.nodes[at].process.is_some() && !self.nodes[at].is_paused;
        (0..self.len()).filter(is_running).collect()
    }

    /// The STATUS of a node, or the reason why there is none.
    pub(crate) fn status(&self, node: usize) -> Result<Status, String> {
        let (status, value) = ask(self.addr(node), opcode::STATUS).map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&value).into_owned();
        if status == ResponseStatus::Ok.byte() {
            Ok(Status::parse(&text))
        } else {
            Err(format!("answered {status:#04x}: {text}"))
        }
    }

    /// A number of a node's status; fails the test where there is none.
    pub(crate) fn number(&self, node: usize, key: &str) -> u64 {
        let status = self.status(node).unwrap();
        let name = self.name(node);
        status
            .number(key)
            .unwrap_or_else(|| panic!("no number {key} of {name}:{status}"))
    }

    /// Orders a node that refuses its leader to give up its data. Answers with status and message.
    pub(crate) fn discard(&self, node: usize) -> (u8, String) {
        let (status, value) = ask(self.addr(node), opcode::DISCARD).unwrap();
        (status, String::from_utf8_lossy(&value).into_owned())
    }

    /// The STATUS of every node, a line each.
    pub(crate) fn statuses(&self) -> String {
        let mut text = String::new();
        for at in 0..self.len() {
            let name = self.name(at);
            let said = match self.running().contains(&at).then(|| self.status(at)) {
                Some(Ok(status)) => status.to_string(),
                Some(Err(error)) => format!(" {error}"),
                None => " does not run".to_owned(),
            };
            let _ = writeln!(text, "{name}:{said}");
        }
        text
    }

    /// Waits until the status of a node is as it must be.
    #[track_caller]
    pub(crate) fn wait_for_status(
        &self,
        node: usize,
        within: Duration,
        what: &str,
        is_met: impl Fn(&Status) -> bool,
    ) {
        let begin = Instant::now();
        while !self.status(node).is_ok_and(|status| is_met(&status)) {
            let name = self.name(node);
            assert!(
                begin.elapsed() < within,
                "waited {within:?} for {name}: {what}\n{}",
                self.statuses()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until all running nodes serve, with equal epoch, index and digest. Says how long that took.
    ///
    /// The epoch is part of it since a leader that has come back with its followers' data has their index and digest
    /// before any of them has found it again.
    #[track_caller]
    pub(crate) fn wait_converged(&self, within: Duration) -> Duration {
        let begin = Instant::now();
        loop {
            let states: Vec<_> = self
                .running()
                .into_iter()
                .map(|at| {
                    let status = self.status(at).ok()?;
                    let place = (
                        status.number(key::EPOCH)?,
                        status.number(key::INDEX)?,
                        status.get(key::DIGEST)?.to_owned(),
                    );
                    status.is_state(state::SERVING).then_some(place)
                })
                .collect();
            if states.first().is_some_and(Option::is_some)
                && states.iter().all(|state| *state == states[0])
            {
                return begin.elapsed();
            }
            assert!(
                begin.elapsed() < within,
                "not converged within {within:?}\n{}",
                self.statuses()
            );
            std::thread::sleep(POLL);
        }
    }

    /// A client of one node that follows no redirect.
    pub(crate) fn client(&self, node: usize) -> Client {
        let options = ClientOptions {
            connect_timeout: PATIENCE,
            timeout: PATIENCE,
            follow_redirects: false,
            ..ClientOptions::default()
        };
        Client::connect_with(&self.addr(node).to_string(), options).unwrap()
    }

    /// Writes the keys on the leader.
    pub(crate) fn write_all<'a>(&self, pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut client = self.client(0);
        let mut pairs = pairs.peekable();
        while pairs.peek().is_some() {
            let mut pipeline = client.pipeline();
            for (key, value) in pairs.by_ref().take(PIPELINE_COUNT) {
                pipeline.set(key, value);
            }
            for response in pipeline.run().unwrap() {
                assert_eq!(response.unwrap(), Response::Done);
            }
        }
    }

    /// Reads the keys from one node, or says why it does not serve them.
    pub(crate) fn read_all(
        &self,
        node: usize,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, String> {
        let mut client = self.client(node);
        let mut values = Vec::with_capacity(keys.len());
        for keys in keys.chunks(PIPELINE_COUNT) {
            let mut pipeline = client.pipeline();
            for key in keys {
                pipeline.get(key);
            }
            for response in pipeline.run().map_err(|e| e.error.to_string())? {
                values.push(match response.map_err(|e| e.to_string())? {
                    Response::Value(value) => Some(value),
                    Response::Done
                    | Response::NotFound
                    | Response::Conflict(_)
                    | Response::Pong => None,
                });
            }
        }
        Ok(values)
    }

    /// Reads the keys from every running node, fails the test where two differ, and gives what they hold.
    #[track_caller]
    pub(crate) fn equal_contents(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        let mut first: Option<(usize, Vec<Option<Vec<u8>>>)> = None;
        for node in self.running() {
            let name = self.name(node);
            let values = self
                .read_all(node, keys)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let Some((other, expected)) = &first else {
                first = Some((node, values));
                continue;
            };
            let other = self.name(*other);
            for ((key, value), expected) in keys.iter().zip(&values).zip(expected) {
                assert!(
                    value == expected,
                    "{}: {other} has {:?}, {name} has {:?}",
                    key.escape_ascii(),
                    expected
                        .as_ref()
                        .map(|value| value.escape_ascii().to_string()),
                    value.as_ref().map(|value| value.escape_ascii().to_string()),
                );
            }
        }
        first.expect("a running node").1
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for ((from, to), proxy) in &self.links {
                let (from, to) = (&self.nodes[*from].name, &self.nodes[*to].name);
                eprintln!("--- {from} to {to}: {:?}", proxy.counts());
            }
        }
    }
}

impl Member {
    fn spawn(&mut self) {
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, it)| (*name, &**it)).collect();
        self.process = Some(Process::spawn_with(&self.dir, &self.name, None, &env));
    }
}

/// Sends a request without key and value on a connection of its own.
fn ask(addr: SocketAddr, opcode: u8) -> io::Result<(u8, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&addr, STATUS_TIMEOUT)?;
    stream.set_read_timeout(Some(STATUS_TIMEOUT))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[opcode, 0, 0, 0, 0, 0, 0])?;
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [status, len @ ..] = header;
    let mut value = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    stream.read_exact(&mut value)?;
    Ok((status, value))
}

/// Percentage of the long run that was asked for: 100 with `GOPHERSTORE_LONG=1`, N with `GOPHERSTORE_LONG=N%`; `None`
/// without it.
fn long_percentage() -> Option<usize> {
    let value = std::env::var("GOPHERSTORE_LONG").ok()?;
    match value.strip_suffix('%') {
        Some(number) => Some(number.parse().expect("GOPHERSTORE_LONG=1 or N%")),
        None => (value == "1").then_some(100),
    }
}

/// Whether the long run was asked for, or a part of it.
pub(crate) fn is_long() -> bool {
    long_percentage().is_some()
}

/// How often a test does what it does: few times, and many in the long run.
pub(crate) fn rounds(default: usize, long: usize) -> usize {
    match long_percentage() {
        Some(percentage) => (long * percentage / 100).max(default),
        None => default,
    }
}

/// Waits for something that must come soon enough; a shorter name for what the fault tests do most.
#[track_caller]
pub(crate) fn wait_until(within: Duration, what: &str, mut is_met: impl FnMut() -> bool) {
    wait_at_most(within, what, || is_met().then_some(()));
}
