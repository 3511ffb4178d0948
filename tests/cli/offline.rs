//! The data directory of a node that does not run: what `dump`, `check` and `decode` say of it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use gopherstore::Client;

use crate::{
    Run, finish,
    nodes::{
        node::{Node, wait_for},
        tools,
    },
    program, run, run_at, text,
};

/// A deadline far ahead.
const FAR: u64 = 4_102_444_800_000;

/// A single node with the data directory `data` in a folder.
struct Durable {
    child: Child,
    addr: String,
}

impl Durable {
    /// Starts it. With `snapshot_bytes` of log there is a snapshot.
    fn start(dir: &Path, snapshot_bytes: &str) -> Durable {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
            .args(["--addr", "127.0.0.1:0", "--data-dir", "data"])
            .current_dir(dir)
            .env_remove("RUST_LOG")
            .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", snapshot_bytes)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.join("err")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let addr = line.split(' ').nth(4).unwrap_or_default().to_owned();
        let node = Durable { child, addr };
        wait_for("the node to lead", || {
            node.client().del(b"no such key").ok()
        });
        node
    }

    fn client(&self) -> Client {
        Client::connect(&self.addr).unwrap()
    }

    fn stop(mut self) {
        tools::signal(self.child.id().to_string(), "TERM");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stores some entries of each kind.
fn fill(client: &mut Client) {
    let mut pipeline = client.pipeline();
    for n in 0..2_000_u32 {
        pipeline.set(&n.to_be_bytes(), &n.to_le_bytes().repeat(4));
    }
    pipeline.set(b"long", &[7; 3 << 20]).set(b"", b"");
    assert!(pipeline.run().unwrap().iter().all(Result::is_ok));
    client.set_at(b"session", b"alice", FAR).unwrap();
    client.del(&3_u32.to_be_bytes()).unwrap();
}

/// The frames of a dump in an order of their own, and its end mark.
fn sorted(dump: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (entries, mark) = dump.split_at(dump.len() - 55);
    let frames = gopherstore::wire::request::frames(entries);
    let mut frames: Vec<Vec<u8>> = frames.map(|frame| frame.bytes().to_vec()).collect();
    frames.sort_unstable();
    (frames, mark.to_vec())
}

#[test]
fn a_stopped_nodes_directory_is_dumped_as_the_running_node_is() {
    // From the log alone, and from a snapshot with a log behind it.
    for snapshot_bytes in ["100000000", "50000"] {
        let dir = tempfile::tempdir().unwrap();
        let (data, file) = (dir.path().join("data"), dir.path().join("stopped.gbp"));
        let node = Durable::start(dir.path(), snapshot_bytes);
        fill(&mut node.client());
        let running = run_at(&node.addr, &["dump"], b"");
        assert_eq!((running.code, &*running.err), (0, ""));
        let offline = ["dump", "--data-dir", text(&data), text(&file)];
        run(&offline, b"").expect_failure(8, &["another process uses this data directory"]);
        assert!(!file.exists());
        node.stop();
        let before = contents(&data);
        run(&offline, b"").expect(0, "", "");
        let stopped = fs::read(&file).unwrap();
        assert!(sorted(&stopped) == sorted(&running.out), "other entries");
        let piped = run(&["dump", "--data-dir", text(&data)], b"").out;
        assert!(sorted(&piped) == sorted(&stopped), "other entries");
        run(&offline, b"").expect_failure(8, &["stopped.gbp exists", "--force"]);
        assert!(contents(&data) == before, "the directory is as it was");

        let to = Node::start();
        run_at(&to.addr.to_string(), &["load", text(&file)], b"").expect(0, "", "");
        let mut client = Client::connect(&to.addr.to_string()).unwrap();
        assert_eq!(client.get(b"long").unwrap(), Some(vec![7; 3 << 20]));
        assert_eq!(client.get(b"session").unwrap(), Some(b"alice".to_vec()));
        assert_eq!(client.get(&3_u32.to_be_bytes()).unwrap(), None);
        assert!(client.status().unwrap().contains("keys: 2002\n"));
    }
}

/// The names and bytes of all files.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort_unstable();
    files
}

#[test]
fn a_directory_without_data_is_not_dumped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dump = |arguments: &[&str]| -> Run {
        let mut command = program();
        command
            .current_dir(dir.path())
            .args(["dump", "--data-dir", "data", "copy.gbp"]);
        finish(command.args(arguments), b"")
    };
    dump(&[]).expect_failure(8, &["cannot open the data directory"]);
    fs::create_dir(&data).unwrap();
    dump(&[]).expect_failure(8, &["it has none of a node's files"]);
    let identity = "gopherstore data directory, format 1\ncluster = \"c\"\nnode = \"n\"\n";
    fs::write(data.join("identity"), identity).unwrap();
    dump(&[]).expect_failure(8, &["nothing to copy: data has no data set"]);
    fs::write(
        data.join("identity"),
        identity.replace("format 1", "format 2"),
    )
    .unwrap();
    dump(&[]).expect_failure(7, &["data/identity: its first line is", "format 2"]);
    for place in [
        &["--addr", "127.0.0.1:1"][..],
        &["--config", "cluster.toml"],
    ] {
        dump(place).expect_failure(2, &["--data-dir asks no node; leave out", place[0]]);
    }
    assert!(!dir.path().join("copy.gbp").exists());
}
