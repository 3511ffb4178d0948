//! A single node with a data directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use gopherstore::client::{Client, ClientOptions, NodeStatus};

use super::node::{PATIENCE, wait_for};

/// A single node with a data directory.
pub(crate) struct Durable {
    pub(crate) child: Child,
    pub(crate) addr: String,
}

/// The command for a node with the directory `data` in this folder. It logs to the file `err` there.
pub(crate) fn command(dir: &Path, sync: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"));
    command
        .args(["--addr", "127.0.0.1:0", "--sync", sync, "--data-dir"])
        .arg(dir.join("data"))
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(
            fs::File::options()
                .create(true)
                .append(true)
                .open(dir.join("err"))
                .unwrap(),
        );
    command
}

/// Reads the line that a node prints once it listens. Returns its address, which is empty where the node has ended.
pub(crate) fn ready_addr(child: &mut Child) -> String {
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    line.split(' ').nth(4).unwrap_or_default().to_owned()
}

impl Durable {
    /// Starts a node, and waits until it leads.
    pub(crate) fn start(dir: &Path, sync: &str) -> Durable {
        Durable::of(command(dir, sync), dir)
    }

    /// Starts the node of this command, and waits until it leads.
    pub(crate) fn of(mut command: Command, dir: &Path) -> Durable {
        let mut child = command.spawn().unwrap();
        let addr = ready_addr(&mut child);
        let node = Durable { child, addr };
        assert!(!node.addr.is_empty(), "{}", log(dir));
        wait_for("the node to lead", || {
            node.client().del(b"no such key").ok()
        });
        node
    }

    pub(crate) fn client(&self) -> Client {
        let options = ClientOptions {
            timeout: PATIENCE,
            ..ClientOptions::default()
        };
        Client::connect_with(&self.addr, options).unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it in good order.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The log of the nodes of a folder.
pub(crate) fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("err")).unwrap_or_default()
}

/// The STATUS of a node.
pub(crate) fn status_of(client: &mut Client) -> NodeStatus {
    NodeStatus::parse(&client.status().unwrap())
}
