//! A folder as a clone of the project is after its first build, and its processes.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;

use crate::support::node::wait_for;
use crate::support::proxy::reserve_port;
use crate::support::tools;
use crate::{CLI, SERVER, both, root};

/// The folder, with copies of `scripts` and the built programs in `target/release`. Its name has a blank. Processes
/// that work in it end with it.
pub(crate) struct Checkout {
    _parent: TempDir,
    path: PathBuf,
    reserved: Vec<Socket>,
}

impl Checkout {
    pub(crate) fn new() -> Checkout {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().canonicalize().unwrap().join("a clone");
        for folder in ["scripts/lib", "target/release"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        for folder in ["scripts", "scripts/lib"] {
            for entry in fs::read_dir(root().join(folder)).unwrap() {
                let from = entry.unwrap().path();
                if from.is_file() {
                    let name = from.file_name().unwrap();
                    fs::copy(&from, path.join(folder).join(name)).unwrap();
                }
            }
        }
        for program in [CLI, SERVER] {
            let name = Path::new(program).file_name().unwrap();
            symlink(program, path.join("target/release").join(name)).unwrap();
        }
        Checkout {
            _parent: parent,
            path,
            reserved: Vec::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An address that no other test uses while this folder exists.
    pub(crate) fn address(&mut self) -> SocketAddr {
        let (socket, addr) = reserve_port();
        self.reserved.push(socket);
        addr
    }

    /// Writes the configuration `file` of a cluster of this number of nodes, of which `n1` leads. Returns their
    /// addresses.
    pub(crate) fn configure(&mut self, file: &str, cluster: &str, count: usize) -> Vec<SocketAddr> {
        let addrs: Vec<SocketAddr> = (0..count).map(|_| self.address()).collect();
        let mut config = format!("cluster = \"{cluster}\"\nleader = \"n1\"\n");
        for (number, addr) in (1..).zip(&addrs) {
            config += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
        }
        config += "[replication]\nheartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n";
        let path = self.path.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, config).unwrap();
        addrs
    }

    /// Writes a program for `sh` that may do something else in the place of the server. `$SERVER` is the server.
    pub(crate) fn fake_server(&self, script: &str) -> PathBuf {
        self.program("fake-server", &format!("SERVER='{SERVER}'\n{script}"))
    }

    /// Writes a program for `sh`.
    pub(crate) fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A script of this folder, as it is called there.
    pub(crate) fn script(&self, name: &str) -> Command {
        self.command(self.path.join("scripts").join(name))
    }

    /// A program that is called in this folder, with the built programs.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .current_dir(&self.path)
            .env("GOPHERSTORE_SERVER", "target/release/gopherstore-server")
            .env("GOPHERSTORE_CLI", "target/release/gopherstore-cli")
            .env_remove("GOPHERSTORE_ADDR")
            .env_remove("GOPHERSTORE_RUN")
            .env_remove("GOPHERSTORE_READY_SECONDS")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Waits until this number of processes run in this folder.
    #[track_caller]
    pub(crate) fn wait_for_processes(&self, count: usize) {
        wait_for(&format!("{count} processes"), || {
            (self.processes().len() == count).then_some(())
        });
    }

    /// Processes that work in this folder.
    pub(crate) fn processes(&self) -> Vec<String> {
        let of_here = |entry: fs::DirEntry| {
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            (cwd == self.path).then(|| entry.file_name().to_string_lossy().into_owned())
        };
        let entries = fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| of_here(entry.ok()?)).collect()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        // A script that is about to start something is one of them.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let processes = self.processes();
            if processes.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in processes {
                tools::signal(pid, "KILL");
            }
        }
    }
}

/// The output of a command on both streams. It must end with this exit code.
#[track_caller]
pub(crate) fn ends(code: i32, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {printed}");
    printed
}

/// The client's standard output, which must end with this exit code.
#[track_caller]
pub(crate) fn cli(code: i32, addr: SocketAddr, arguments: &[&str]) -> String {
    let addr = addr.to_string();
    let output = Command::new(CLI)
        .args(["--addr", &addr])
        .args(arguments)
        .output()
        .unwrap();
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn assert_serves(addr: SocketAddr) {
    let status = cli(0, addr, &["status"]);
    assert!(status.contains("\nstate: serving\n"), "{status}");
}

/// The process id in a file such as `run/cluster/n1.pid`.
pub(crate) fn pid(checkout: &Checkout, file: &str) -> String {
    let path = checkout.path().join(file);
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// The command in the last line of what start-cluster.sh has printed.
pub(crate) fn stop_command(printed: &str) -> &str {
    let (_, command) = printed.rsplit_once("To stop them: ").unwrap();
    command.trim_end()
}

/// A script that runs beside the test.
pub(crate) fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code of a script, and what it has printed.
pub(crate) fn end(child: Child) -> (i32, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), both(&output))
}

/// Runs a command line at a terminal where this is typed.
pub(crate) fn at_terminal(checkout: &Checkout, line: &str, typed: &str) -> String {
    let mut child = checkout
        .command("script")
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let code = output.status.code().unwrap();
    format!("{}exit {code}", both(&output))
}
