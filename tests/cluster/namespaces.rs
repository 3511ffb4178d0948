//! Three nodes in three network namespaces, so that a connection can be cut as a network cuts it: packets vanish, and
//! no end is told.
//!
//! A fourth namespace holds a bridge, to which each node has a pair of virtual interfaces; taking the bridge's end of
//! one down cuts that node off. Nothing of it touches the machine's own network. It takes root, so where these tests
//! cannot have that they say so and do nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::cluster::{Status, rounds};
use crate::support::names::{key, peer, state};
use crate::support::node::{PATIENCE, wait_at_most};
use crate::support::tools;

const HEARTBEAT: Duration = Duration::from_millis(200);
/// Added for a busy machine, and for the two programs that ask a node in its namespace.
const SLACK: Duration = Duration::from_secs(1);
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
const HEALED_WITHIN: Duration = Duration::from_secs(15);
const PORT: u16 = 8000;

/// Runs a program to its end, and gives what it printed, or else what it complained of.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        let complaint = text(output.stderr);
        Err(format!("{program} {}: {complaint}", arguments.join(" ")))
    }
}

/// `ip` with these words.
fn ip(words: &str) -> Result<String, String> {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

/// Namespaces of this process: one a node, and one for the bridge between them. They are gone when this is.
#[derive(Debug)]
struct Network {
    /// Tells it from those of other tests and other processes.
    id: String,
    made: Vec<String>,
}

impl Network {
    fn new(count: usize) -> Result<Network, String> {
        // Dropped, with what was made of it, where something fails.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let mut network = Network {
            id: format!("gopherstore-{process}-{number}"),
            made: Vec::new(),
        };
        network.make(&network.bridge())?;
        let bridge = network.bridge();
        ip(&format!("-n {bridge} link add switch type bridge"))?;
        ip(&format!("-n {bridge} link set switch up"))?;
        for node in 0..count {
            let name = network.name(node);
            network.make(&name)?;
            let port = port(node);
            ip(&format!(
                "-n {name} link add eth0 type veth peer name {port} netns {bridge}"
            ))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", host(node)))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {bridge} link set {port} master switch"))?;
            ip(&format!("-n {bridge} link set {port} up"))?;
        }
        Ok(network)
    }

    fn make(&mut self, name: &str) -> Result<(), String> {
        ip(&format!("netns add {name}"))?;
        self.made.push(name.to_owned());
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("{}-switch", self.id)
    }

    fn name(&self, node: usize) -> String {
        format!("{}-n{}", self.id, node + 1)
    }

    /// Has the processes that are started in a node's namespace read `text` as `/etc/FILE`.
    fn set_etc(&self, node: usize, file: &str, text: &str) {
        let dir = etc(&self.name(node));
        std::fs::create_dir_all(&dir).unwrap();
        // The file is overwritten in place, since running processes have it mounted.
        std::fs::write(dir.join(file), text).unwrap();
    }

    /// Has packets from a node to `host` vanish.
    fn silence(&self, node: usize, host: &str) {
        let name = self.name(node);
        let words = format!("-n {name} neigh replace {host} lladdr 02:00:00:00:00:03 dev eth0");
        ip(&words).unwrap();
    }

    /// Has every packet from and to a node vanish, or lets them through again.
    fn set_cut(&self, node: usize, is_cut: bool) {
        let (bridge, port) = (self.bridge(), port(node));
        let state = if is_cut { "down" } else { "up" };
        ip(&format!("-n {bridge} link set {port} {state}")).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = ip(&format!("netns del {name}")) {
                eprintln!("a namespace is left behind: {error}");
            }
            // Most namespaces have none.
            let _ = std::fs::remove_dir_all(etc(name));
        }
        // Stays where another process has files there.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}

/// Where `ip netns exec` looks for files that stand in for those of `/etc`.
fn etc(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

/// The bridge's end of a node's link.
fn port(node: usize) -> String {
    format!("port{}", node + 1)
}

fn host(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

/// A node's process, which is gone when this is.
#[derive(Debug)]
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fields in the order in which they have to go.
#[derive(Debug)]
struct Nodes {
    nodes: Vec<Node>,
    network: Network,
    dir: TempDir,
}

impl Nodes {
    fn start(network: Network, count: usize) -> Nodes {
        let hosts: Vec<String> = (0..count).map(host).collect();
        Nodes::start_at(network, &hosts)
    }

    /// The same, by other names than those of their addresses.
    fn start_at(network: Network, hosts: &[String]) -> Nodes {
        let dir = tempfile::tempdir().unwrap();
        let mut config = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
        for (name, host) in (1..).zip(hosts) {
            config += &format!("[[node]]\nname = \"n{name}\"\naddr = \"{host}:{PORT}\"\n");
        }
        config += &format!(
            "[replication]\nheartbeat_interval_ms = {}\nleader_timeout_ms = {}\n",
            HEARTBEAT.as_millis(),
            LEADER_TIMEOUT.as_millis()
        );
        std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
        let nodes = (0..hosts.len())
            .map(|node| Nodes::spawn(&network, dir.path(), node))
            .collect();
        Nodes {
            nodes,
            network,
            dir,
        }
    }

    fn spawn(network: &Network, dir: &Path, node: usize) -> Node {
        let name = format!("n{}", node + 1);
        let log = File::create(log(dir, &name)).unwrap();
        // `ip` becomes the node, so its number is the node's.
        let child = Command::new("ip")
            .args(["netns", "exec", &network.name(node)])
            .arg(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--config", "cluster.toml", "--node", &name])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Node(child)
    }

    /// A command to a node, from within its namespace, whose own link it does not need.
    fn gs(&self, node: usize, arguments: &[&str]) -> Result<String, String> {
        let addr = format!("{}:{PORT}", host(node));
        let all = [&["--addr", &addr, "--no-redirect"], arguments].concat();
        self.gs_at(node, &all)
    }

    /// The program with just these arguments, in a node's namespace.
    fn gs_at(&self, node: usize, arguments: &[&str]) -> Result<String, String> {
        let name = self.network.name(node);
        let program = env!("CARGO_BIN_EXE_gopherstore-cli");
        run(
            "ip",
            &[&["netns", "exec", &name, program], arguments].concat(),
        )
    }

    fn status(&self, node: usize) -> Option<Status> {
        Some(Status::parse(&self.gs(node, &["status"]).ok()?))
    }

    #[track_caller]
    fn wait_for(
        &self,
        node: usize,
        within: Duration,
        what: &str,
        is_met: impl Fn(&Status) -> bool,
    ) {
        wait_at_most(within, what, || {
            self.status(node).filter(|status| is_met(status)).map(drop)
        });
    }

    /// Waits for equal nodes that all serve.
    #[track_caller]
    fn wait_converged(&self, within: Duration) {
        wait_at_most(within, "equal nodes", || {
            let place = |node| {
                let status = self.status(node)?;
                let keys = [key::EPOCH, key::INDEX, key::DIGEST];
                let place = keys.map(|key| status.get(key).map(str::to_owned));
                status.is_state(state::SERVING).then_some(place)
            };
            let first = place(0)?;
            (1..self.nodes.len())
                .all(|node| place(node).as_ref() == Some(&first))
                .then_some(())
        });
    }

    /// Waits until a node counts another one as down, and says when it began to.
    #[track_caller]
    fn wait_down(&self, node: usize, other: &str) -> Instant {
        wait_at_most(PATIENCE, &format!("{other} is down"), || {
            let status = self.status(node)?;
            let since = status.number(&format!("peer.{other}.since_ms"))?;
            (status.get(&key::peer_state(other)) == Some(peer::DOWN))
                .then(|| Instant::now() - Duration::from_millis(since))
        })
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 0..self.nodes.len() {
                let name = format!("n{}", node + 1);
                let text = std::fs::read_to_string(log(self.dir.path(), &name));
                eprintln!("--- {name}: its log\n{}", text.unwrap_or_default());
            }
        }
    }
}

fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

/// A network of namespaces, or a line that says why there is none.
fn network(count: usize) -> Option<Network> {
    if !tools::are_there(&["ip"]) {
        return None;
    }
    Network::new(count)
        .inspect_err(|error| {
            tools::skip(&format!(
                "needs root, network namespaces and bridges: {error}"
            ));
        })
        .ok()
}

#[test]
fn a_real_partition_is_detected_by_both_sides_and_healed() {
    let Some(network) = network(3) else {
        return;
    };
    let names: Vec<String> = network.made.clone();
    let nodes = Nodes::start(network, 3);
    nodes.wait_converged(PATIENCE);
    let silence = HEARTBEAT * 3 + HEARTBEAT + SLACK;
    for round in 0..rounds(2, 50) {
        // A follower that is cut off, and a leader that is cut off from both.
        let at = if round % 2 == 0 { 1 } else { 0 };
        let cut_off = format!("n{}", at + 1);
        let written = format!("before{round}");
        nodes.gs(0, &["set", &written, "v"]).unwrap();
        nodes.wait_converged(HEALED_WITHIN);

        nodes.network.set_cut(at, true);
        let cut = Instant::now();
        let during = format!("during{round}");
        nodes.gs(0, &["set", &during, "w"]).unwrap();
        let others: Vec<usize> = (0..3).filter(|node| *node != at).collect();
        for &node in &others {
            let took = nodes
                .wait_down(node, &cut_off)
                .saturating_duration_since(cut);
            assert!(took <= silence, "n{} noticed after {took:?}", node + 1);
            let name = format!("n{}", node + 1);
            let took = nodes.wait_down(at, &name).saturating_duration_since(cut);
            assert!(took <= silence, "{cut_off} noticed after {took:?}");
        }
        // The leader has let go of the streams to those that it cannot reach, and of no other.
        for follower in [1, 2] {
            let name = format!("n{}", follower + 1);
            let is_reached = at != 0 && at != follower;
            nodes.wait_for(0, LEADER_TIMEOUT + SLACK, "its streams", |status| {
                (status.get(&key::follower_state(&name)) == Some("following")) == is_reached
            });
        }
        // A node that is cut off serves its data. The others go on.
        for follower in [1, 2] {
            assert_eq!(nodes.gs(follower, &["get", &written]).as_deref(), Ok("v"));
            let is_reached = at != 0 && at != follower;
            if is_reached {
                let read = || nodes.gs(follower, &["get", &during]).ok();
                wait_at_most(HEALED_WITHIN, "the entry", read);
            } else {
                assert!(nodes.gs(follower, &["get", &during]).is_err());
                let status = nodes.status(follower).unwrap();
                assert!(status.is_state(state::SERVING), "{status}");
            }
        }

        nodes.network.set_cut(at, false);
        nodes.wait_converged(HEALED_WITHIN);
        for node in 0..3 {
            assert_eq!(nodes.gs(node, &["get", &during]).as_deref(), Ok("w"));
        }
    }
    drop(nodes);
    let left = ip("netns list").unwrap();
    for name in names {
        let is_left = left
            .lines()
            .any(|line| line.split(' ').next() == Some(&name));
        assert!(!is_left, "{name} is left behind");
    }
}

#[test]
fn namespaces_of_a_failing_test_are_removed() {
    let Some(network) = network(1) else {
        return;
    };
    let name = network.name(0);
    let is_there = || ip("netns list").unwrap().contains(&name);
    assert!(is_there());
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _network = network;
        panic!("as a failing test would");
    }));
    assert!(failed.is_err() && !is_there());
}

/// An address of the network that no node has.
const NOBODY: &str = "10.77.0.3";

/// Two nodes by names, of which each finds the other's at an address that is silent, too, and there first.
fn named_nodes(network: Network) -> Nodes {
    let hosts = [host(0), host(1)];
    for node in 0..2 {
        let (own, other) = (node + 1, 2 - node);
        network.silence(node, NOBODY);
        let text = format!(
            "{} n{own}.test\n{NOBODY} n{other}.test\n{} n{other}.test\n",
            hosts[node],
            hosts[1 - node]
        );
        network.set_etc(node, "hosts", &text);
    }
    Nodes::start_at(network, &["n1.test".to_owned(), "n2.test".to_owned()])
}

#[test]
fn every_address_of_a_name_is_tried_by_followers_probes_and_a_leader_that_starts() {
    let Some(network) = network(2) else {
        return;
    };
    let mut nodes = named_nodes(network);
    nodes.wait_converged(PATIENCE);
    nodes.gs(0, &["set", "k", "v"]).unwrap();
    nodes.wait_converged(HEALED_WITHIN);
    for (node, other) in [(0, "n2"), (1, "n1")] {
        nodes.wait_for(node, PATIENCE, "its peer", |status| {
            status.get(&key::peer_state(other)) == Some(peer::UP)
        });
    }
    // A leader that cannot reach its follower starts with nothing.
    drop(nodes.nodes.remove(0));
    let again = Nodes::spawn(&nodes.network, nodes.dir.path(), 0);
    nodes.nodes.insert(0, again);
    nodes.wait_converged(HEALED_WITHIN);
    for node in 0..2 {
        assert_eq!(nodes.gs(node, &["get", "k"]).as_deref(), Ok("v"));
    }
}

#[test]
fn a_silent_resolver_blocks_no_command_and_no_stop() {
    let Some(network) = network(2) else {
        return;
    };
    network.set_etc(1, "resolv.conf", &format!("nameserver {NOBODY}\n"));
    let mut nodes = named_nodes(network);
    nodes.wait_converged(PATIENCE);
    // The follower knows its own name from here on, and has to look for its leader again.
    let own = format!("{} n2.test\n", host(1));
    nodes.network.set_etc(1, "hosts", &own);
    drop(nodes.nodes.remove(0));
    let follower = nodes.nodes[0].0.id();
    let look_ups = || {
        let tasks = std::fs::read_dir(format!("/proc/{follower}/task")).unwrap();
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name == "look-up\n").count()
    };
    wait_at_most(PATIENCE, "a look-up", || (look_ups() > 0).then_some(()));

    let begin = Instant::now();
    let arguments = ["--timeout", "1s", "--addr", "n1.test:8000", "ping"];
    let error = nodes.gs_at(1, &arguments).unwrap_err();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1) + 2 * SLACK, "{took:?}");
    assert!(
        error.contains("no response from the resolver for n1.test"),
        "{error}"
    );
    // Both the stream's thread and the probe have been asking for a second.
    assert_eq!(look_ups(), 1);

    let begin = Instant::now();
    assert!(tools::signal(follower, "TERM"));
    let status = nodes.nodes[0].0.wait().unwrap();
    let took = begin.elapsed();
    assert!(took < 3 * SLACK, "{took:?}");
    assert_eq!(status.code(), Some(0), "{status}");
}
