//! A node whose disk is full refuses writes, loses no acknowledged write, and goes on when there is space again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gopherstore::client::{Client, Error, NodeStatus};
use rustix::process::{Pid, Signal, kill_process};
use socket2::Socket;

use crate::cluster::rounds;
use crate::durable::{Durable, log, status_of};
use crate::node::wait_for;
use crate::proxy::reserve_port;
use crate::tools;

/// Part of the reason that a node gives.
const FULL: &str = ": the disk is full: ";

/// Bytes of the disk. A segment has 1 MiB here.
const DISK: &str = "size=12m";

/// A small disk, in a mount namespace of its own.
struct SmallDisk {
    /// Holds the namespace.
    holder: Child,
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a disk. `None` where the machine does not allow that.
    fn new() -> Option<SmallDisk> {
        if !tools::are_there(&["unshare", "nsenter"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        let script =
            format!("mount -t tmpfs -o {DISK} tmpfs disk && echo mounted && exec sleep 100000");
        let mut holder = Command::new("unshare")
            .args(["-rm", "sh", "-c", &script])
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = holder.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let disk = SmallDisk { holder, dir };
        if line.trim() != "mounted" {
            tools::skip("a mount namespace of its own needs root or user namespaces");
            return None;
        }
        Some(disk)
    }

    fn start(&self, sync: &str) -> Durable {
        let mut command = self.command();
        command
            .args(["--addr", "127.0.0.1:0", "--sync", sync, "--data-dir"])
            .arg(self.dir.path().join("disk/data"));
        Durable::of(command, self.dir.path())
    }

    /// The command for a server in the namespace.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.holder.id().to_string(), "-U", "-m"])
            .args(["--preserve-credentials", "--"])
            .arg(env!("CARGO_BIN_EXE_gopherstore-server"));
        self.set_up(&mut command);
        command
    }

    fn set_up(&self, command: &mut Command) {
        let err = self.dir.path().join("err");
        let err = File::options().create(true).append(true).open(err);
        command
            .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "1048576")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(err.unwrap());
    }

    /// The path of a file on the disk for processes outside the namespace.
    fn path(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        let inside = self.dir.path().join("disk").join(name);
        Path::new(&root).join(inside.strip_prefix("/").unwrap())
    }

    /// Fills the disk until `is_over`. The node frees space from time to time, which is filled again.
    fn take_all(&self, is_over: &AtomicBool) {
        let mut ballast = File::create(self.path("ballast")).unwrap();
        let block = [0; 4_096];
        while !is_over.load(Ordering::Relaxed) {
            if ballast.write_all(&block).is_err() {
                thread::yield_now();
            }
        }
    }

    /// Fills the disk but for this many bytes.
    fn take_all_but(&self, left: u64) {
        let mut ballast = File::create(self.path("ballast")).unwrap();
        let disk = rustix::fs::fstatvfs(&ballast).unwrap();
        let taken = (disk.f_bavail * disk.f_frsize).saturating_sub(left);
        let blocks = usize::try_from(taken / 4_096).unwrap();
        (0..blocks).for_each(|_| ballast.write_all(&[0; 4_096]).unwrap());
    }

    fn free(&self) {
        fs::remove_file(self.path("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The state that the writers share.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    refused: AtomicU64,
    written: AtomicU64,
}

/// Writes numbers to keys of its own until the node is gone, or the load over. Returns for each key the last number
/// that was acknowledged, and the last one that may have been executed.
fn write(node: &str, writer: usize, first: u64, load: &Load) -> BTreeMap<String, (u64, u64)> {
    let mut written = BTreeMap::new();
    let Ok(mut client) = Client::connect(node) else {
        return written;
    };
    for number in first.. {
        if load.is_over.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("writer:{writer}:{}", number % 40);
        let entry = written.entry(key.clone()).or_insert((0, 0));
        let value = format!("{number:<3000}");
        match client.set(key.as_bytes(), value.as_bytes()) {
            Ok(()) => {
                *entry = (number, number);
                load.written.fetch_add(1, Ordering::Relaxed);
            }
            // It was not executed.
            Err(Error::Full { message }) => {
                assert!(
                    message.contains("the disk is full") && message.contains("data"),
                    "{message}"
                );
                load.refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                entry.1 = number;
                break;
            }
        }
    }
    written
}

/// Checks a node whose disk is full.
fn look_at_full(node: &Durable, known: u64, dir: &Path) {
    let mut client = node.client();
    let space = status_of(&mut client).disk_space;
    assert!(
        ["full", "used_up"].contains(&space.as_deref().unwrap()),
        "{space:?}"
    );
    assert_eq!(
        client.get(b"kept").unwrap(),
        Some(known.to_string().into_bytes())
    );
    // Writes that were executed before are on the disk.
    client.sync_durable(crate::node::PATIENCE).unwrap();
    match client.del(format!("gone:{known}").as_bytes()) {
        Ok(was_there) => assert!(was_there),
        Err(Error::Full { .. }) => assert_eq!(space.as_deref(), Some("used_up")),
        Err(error) => panic!("{error}:\n{}", log(dir)),
    }
    assert!(status_of(&mut client).refused_writes > Some(0));
}

fn full_under_load(sync: &str, rounds: usize) {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let dir = disk.dir.path();
    let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for round in 0..u64::try_from(rounds).unwrap() {
        let node = disk.start(sync);
        let mut client = node.client();
        for (key, (acknowledged, sent)) in &known {
            let value = client.get(key.as_bytes()).unwrap();
            let text = value.map(|value| String::from_utf8(value).unwrap());
            let number: u64 = text.map_or(0, |text| text.trim().parse().unwrap());
            assert!(
                (*acknowledged..=*sent).contains(&number),
                "{sync}, round {round}: {key} is {number}, and {acknowledged} was acknowledged"
            );
        }
        client.set(b"kept", round.to_string().as_bytes()).unwrap();
        client.set(format!("gone:{round}").as_bytes(), b"").unwrap();
        let (load, addr) = (Load::default(), node.addr.clone());
        let written = thread::scope(|scope| {
            let (load, addr) = (&load, &addr);
            let first = (round + 1) * 1_000_000;
            let writers: Vec<_> = (0..3)
                .map(|writer| scope.spawn(move || write(addr, writer, first, load)))
                .collect();
            let is_taken = AtomicBool::new(false);
            thread::scope(|inner| {
                inner.spawn(|| disk.take_all(&is_taken));
                wait_for("FULL", || {
                    (load.refused.load(Ordering::Relaxed) > 10).then_some(())
                });
                is_taken.store(true, Ordering::Relaxed);
            });
            look_at_full(&node, round, dir);
            disk.free();
            let before = load.written.load(Ordering::Relaxed);
            wait_for("writes to go on", || {
                (load.written.load(Ordering::Relaxed) > before + 1_000).then_some(())
            });
            node.kill();
            load.is_over.store(true, Ordering::Relaxed);
            let results = writers.into_iter().map(|writer| writer.join().unwrap());
            results.collect::<Vec<_>>()
        });
        for (key, (acknowledged, sent)) in written.into_iter().flatten() {
            let entry = known.entry(key).or_insert((0, 0));
            entry.0 = entry.0.max(acknowledged);
            entry.1 = entry.1.max(sent);
        }
        let text = log(dir);
        assert!(text.contains(FULL), "{text}");
        assert!(text.contains("the disk has space again"), "{text}");
        assert!(!text.contains("this node ends"), "{text}");
    }
}

/// Runs `gopherstore-cli` for a node. Returns its exit code, and what it says.
fn cli(node: &Durable, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(["--addr", &node.addr])
        .args(words)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Writes values of 3 MB together.
fn write_3_mb(client: &mut Client) {
    for number in 0..300_u32 {
        client.set(&number.to_be_bytes(), &[1; 10_000]).unwrap();
    }
}

#[test]
fn an_order_for_a_snapshot_on_a_full_disk_ends_with_the_reason() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let node = disk.start("always");
    let mut client = node.client();
    client.set(b"key", &[1; 200_000]).unwrap();
    let is_ready = || {
        let names = fs::read_dir(disk.path("data")).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name());
        names
            .any(|name| name.to_string_lossy().starts_with("spare-"))
            .then_some(())
    };
    wait_for("the next segment", is_ready);
    disk.take_all_but(0);
    // The pause before the node tries again by itself becomes longer, and no order waits for its end.
    let began = Instant::now();
    for count in 1..=5 {
        let (code, text) = cli(&node, &["snapshot"]);
        assert_eq!(code, Some(10), "{text}");
        assert!(text.contains("data: the disk is full: "), "{text}");
        let status = status_of(&mut client);
        assert!(status.failed_snapshots >= Some(count), "{status:?}");
        assert_eq!(status.disk_space.as_deref(), Some("enough"));
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    disk.free();
    assert_eq!(cli(&node, &["snapshot"]), (Some(0), String::new()));
    let status = status_of(&mut client);
    assert_eq!((status.snapshots, status.snapshot_error), (Some(1), None));
    assert_eq!(status.snapshot_index, status.index);
}

#[test]
fn a_stop_tells_once_that_the_last_snapshot_has_no_space() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let (node, dir) = (disk.start("always"), disk.dir.path());
    let mut client = node.client();
    write_3_mb(&mut client);
    // One that the node began by itself has ended before the order.
    let mut looks = 0;
    wait_for("the end of the snapshots of these writes", || {
        let is_written = disk.path("data/new-snapshot").exists();
        looks = if is_written { 0 } else { looks + 1 };
        (looks > 5).then_some(())
    });
    assert_eq!(cli(&node, &["snapshot"]), (Some(0), String::new()));
    wait_for("the removal of the log before the snapshot", || {
        (status_of(&mut client).log_bytes <= Some(1 << 20)).then_some(())
    });
    // Enough for the log, and too little for another snapshot.
    disk.take_all_but(2_700_000);
    assert_eq!(cli(&node, &["snapshot"]).0, Some(10));
    for number in 0..200_u32 {
        client.set(&number.to_be_bytes(), &[2; 10_000]).unwrap();
    }
    let index = status_of(&mut client).index;
    assert_eq!(node.stop().code(), Some(0), "{}", log(dir));
    let text = log(dir);
    let count = text
        .matches("there is no new snapshot, and the next start reads the log")
        .count();
    assert_eq!(count, 1, "{text}");
    let node = disk.start("always");
    assert!(status_of(&mut node.client()).index >= index);
}

/// No client writes meanwhile: the node looks for space by itself, and says when there is some.
#[test]
fn an_idle_node_logs_that_its_disk_has_space_again() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let node = disk.start("never");
    let mut client = node.client();
    let is_full = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| disk.take_all(&is_full));
        let refused = (0..100_000_u32).find(|key| {
            let written = client.set(&key.to_be_bytes(), &[1; 1_000]);
            matches!(written, Err(Error::Full { .. }))
        });
        assert!(refused.is_some(), "the disk is never full");
        let refusal = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
            .args(["--addr", &node.addr, "set", "key", "value"])
            .output();
        is_full.store(true, Ordering::Relaxed);
        let text = String::from_utf8(refusal.unwrap().stderr).unwrap();
        assert!(text.contains("the disk is full"), "{text}");
        assert!(!text.contains("max_memory_bytes"), "another limit: {text}");
    });
    disk.free();
    wait_for("the line about space", || {
        let text = log(disk.dir.path());
        text.contains("the disk has space again").then_some(())
    });
}

#[test]
fn a_full_disk_refuses_writes_and_the_node_goes_on_with_room() {
    for sync in ["always", "interval"] {
        full_under_load(sync, rounds(2, 20));
    }
}

/// Sets a flag when it is dropped.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A node of a cluster, which is killed when the test ends.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(status: &NodeStatus) -> &str {
    status.lines.get("link").map_or("", String::as_str)
}

/// The disk of n2 of the cluster is full, and n2 does not follow for that reason. Both are faults.
fn is_a_fault(config: &Path) {
    for (form, healthy) in [
        ("table", "\nn2 has a full disk, "),
        ("json", "\"healthy\":false"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
            .args(["status", "-w", form, "--config"])
            .arg(config)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{text}");
        for fault in [
            "n2 has a full disk, and writes nothing there",
            "n2 does not follow its leader at ",
        ] {
            assert!(text.contains(fault), "{text}");
        }
        assert!(text.contains(healthy), "{text}");
    }
}

/// The configuration of two nodes, of which the second has a small disk.
struct Pair<'d> {
    disk: &'d SmallDisk,
    file: PathBuf,
    ports: [(Socket, SocketAddr); 2],
}

impl Pair<'_> {
    fn new(disk: &SmallDisk) -> Pair<'_> {
        let ports = [reserve_port(), reserve_port()];
        let mut config = "cluster = \"c\"\nleader = \"n1\"\n".to_owned();
        config += "[replication]\nbacklog_bytes = 1048576\n\
                   heartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n";
        for (name, (_reserved, addr)) in ["n1", "n2"].iter().zip(&ports) {
            config += &format!("[[node]]\nname = \"{name}\"\naddr = \"{addr}\"\n");
        }
        let file = disk.dir.path().join("cluster.toml");
        fs::write(&file, config).unwrap();
        Pair { disk, file, ports }
    }

    fn start(&self, mut command: Command, name: &str, data: &str) -> Member {
        command.arg("--config").arg(&self.file);
        command.args(["--node", name, "--sync", "always", "--data-dir"]);
        command.arg(self.disk.dir.path().join(data));
        Member(command.spawn().unwrap())
    }

    fn start_leader(&self) -> Member {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"));
        self.disk.set_up(&mut command);
        self.start(command, "n1", "n1")
    }

    fn start_follower(&self) -> Member {
        self.start(self.disk.command(), "n2", "disk/n2")
    }

    fn client(&self, node: usize) -> Option<Client> {
        Client::connect(&self.ports[node].1.to_string()).ok()
    }

    fn status(&self, node: usize) -> Option<NodeStatus> {
        let text = self.client(node)?.status().ok()?;
        Some(NodeStatus::parse(&text))
    }

    /// The follower has everything, on its disk too.
    fn is_equal(&self) -> Option<()> {
        let (leader, follower) = (self.status(0)?, self.status(1)?);
        let is_it = follower.digest == leader.digest
            && follower.durable_index == leader.index
            && leader.index > Some(0);
        is_it.then_some(())
    }
}

#[test]
fn a_follower_whose_disk_is_full_lags_and_goes_on_with_room() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let pair = Pair::new(&disk);
    let (_leader, follower) = (pair.start_leader(), pair.start_follower());
    let status = |node: usize| pair.status(node);
    let is_equal = || pair.is_equal();
    wait_for("the follower", is_equal);
    let mut client = pair.client(0).unwrap();
    let mut number = 0_u64;
    let mut write = || {
        let key = format!("k{}", number % 300);
        client
            .set(key.as_bytes(), format!("{number:<3000}").as_bytes())
            .unwrap();
        number += 1;
    };
    let is_over = AtomicBool::new(false);
    let full = thread::scope(|scope| {
        // Set where an assertion fails too: the scope waits for its thread.
        let _over = SetAtEnd(&is_over);
        scope.spawn(|| disk.take_all(&is_over));
        let full = wait_for("the follower to lag", || {
            (0..100).for_each(|_| write());
            let (leader, follower) = (status(0)?, status(1)?);
            let lags = follower.index < leader.index && follower.written_index < follower.index;
            (follower.disk_space.as_deref() == Some("used_up") && lags).then_some(follower)
        });
        // More than the backlog waits for the disk, so it takes no more. Its leader is up, and gives it up.
        wait_for("the follower not to follow", || {
            (0..100).for_each(|_| write());
            let follower = status(1)?;
            let reason = follower.reason.as_deref().unwrap_or_default();
            let says = reason.starts_with("not following n1: ") && reason.contains(FULL);
            (link(&follower) == "down" && says).then_some(())
        });
        is_a_fault(&pair.file);
        full
    });
    assert_eq!(status(0).unwrap().disk_space.as_deref(), Some("enough"));
    assert!(full.durable_index <= full.written_index, "{full:?}");
    disk.free();
    wait_for("the follower to go on", is_equal);
    let follows = status(1).unwrap();
    assert_eq!(follows.disk_space.as_deref(), Some("enough"));
    assert_eq!((link(&follows), follows.reason.as_deref()), ("up", None));
    drop(follower);
    let _follower = pair.start_follower();
    wait_for("the follower again", is_equal);
    let text = log(disk.dir.path());
    assert!(!text.contains("this node ends"), "{text}");
}

/// A copy that has no space on the disk is in memory alone: another node has to hold the data, or it is lost.
#[test]
fn a_follower_that_stops_before_its_copy_is_on_the_disk_says_what_is_lost() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let pair = Pair::new(&disk);
    let mut leader = pair.start_leader();
    let mut client = wait_for("the leader", || pair.client(0));
    for key in 0..5_u32 {
        let value = vec![b'x'; 4 << 20];
        wait_for("a write", || client.set(&key.to_be_bytes(), &value).ok());
    }
    let mut follower = pair.start_follower();
    let copied = wait_for("the copy", || {
        let follower = pair.status(1)?;
        let is_in_memory = follower.keys == Some(5) && follower.snapshot_error.is_some();
        is_in_memory.then_some(follower)
    });
    assert_eq!(copied.written_index, Some(0));
    leader.0.kill().unwrap();
    leader.0.wait().unwrap();
    kill_process(Pid::from_child(&follower.0), Signal::TERM).unwrap();
    let status = follower.0.wait().unwrap();
    let text = log(disk.dir.path());
    assert_eq!(status.code(), Some(3), "{text}");
    assert!(text.contains("are lost with this node"), "{text}");
    assert!(!text.contains("is in the data directory"), "{text}");
}
