//! A node whose disk is full: it refuses what it cannot keep, loses nothing that it has acknowledged, and goes on by
//! itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gopherstore::client::{Client, Error};

use crate::cluster::rounds;
use crate::durability::{Durable, log, status_of};
use crate::node::wait_for;
use crate::tools;

/// Bytes of the disk. A segment has 1 MiB here.
const DISK: &str = "size=12m";

/// A small disk, in a mount namespace of its own.
struct SmallDisk {
    /// Holds the namespace.
    holder: Child,
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where the machine does not allow it.
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
        let dir = self.dir.path();
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.holder.id().to_string(), "-U", "-m"])
            .args(["--preserve-credentials", "--"])
            .arg(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--addr", "127.0.0.1:0", "--sync", sync, "--data-dir"])
            .arg(dir.join("disk/data"))
            .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", "1048576")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(dir.join("err"))
                    .unwrap(),
            );
        Durable::of(command, dir)
    }

    /// A file of the disk, as this process reaches it.
    fn path(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        let inside = self.dir.path().join("disk").join(name);
        Path::new(&root).join(inside.strip_prefix("/").unwrap())
    }

    /// Takes all space that is left, again and again until `is_over`: the node gives some back now and then.
    fn take_all(&self, is_over: &AtomicBool) {
        let mut ballast = File::create(self.path("ballast")).unwrap();
        let block = [0; 4_096];
        while !is_over.load(Ordering::Relaxed) {
            if ballast.write_all(&block).is_err() {
                thread::yield_now();
            }
        }
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

/// What the writers share.
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

/// Looks at a node whose disk is full.
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
    // What was executed before is on the disk.
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
        assert!(text.contains(": the disk is full: "), "{text}");
        assert!(text.contains("the disk has space again"), "{text}");
        assert!(!text.contains("this node ends"), "{text}");
    }
}

#[test]
fn a_full_disk_refuses_writes_and_the_node_goes_on_with_room() {
    for sync in ["always", "interval"] {
        full_under_load(sync, rounds(2, 20));
    }
}
