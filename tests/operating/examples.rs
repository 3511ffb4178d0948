//! Runs every example of the help, with shorter durations, against a cluster of real nodes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::node::{PATIENCE, wait_for};
use crate::support::tools;
use crate::{CLI, SERVER, output, path};

/// A recorded session.
const CAPTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/cli/captures/session.pcap"
);

const CONVERGED_WITHIN: Duration = Duration::from_secs(15);

/// How an example ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By itself, with this code.
    Code(i32),
    /// Never: it is stopped once it has printed something.
    Never,
}

impl End {
    /// The end of an example, in the words of the command line. Examples that end with another code than 0 are listed
    /// here, with the reason.
    fn of(example: &str) -> End {
        let words: Vec<&str> = example.split(' ').collect();
        let is = |word: &str| words.contains(&word);
        if is("tail") || is("--watch") {
            End::Never
        } else if is("resync") {
            // No node of a healthy cluster takes the order; tests/operating/sessions.rs gives it to one that does.
            End::Code(3)
        } else if is("--durable") {
            // No node of the cluster here has a disk.
            End::Code(3)
        } else if is("snapshot") {
            // The nodes have no disk; tests/server/disk_status.rs gives the order to one that has.
            End::Code(3)
        } else if is("tcpdump") {
            // The recording ends with bytes that are no request.
            End::Code(7)
        } else {
            End::Code(0)
        }
    }
}

/// The environment of an example: a stored value, and files.
fn prepare(dir: &Path, addr: &str) {
    fs::write(dir.join("photo.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
    let payment = "put payment:7 paid --if-absent\ndecr alice 30\nincr bob 30\n";
    fs::write(dir.join("payment.txt"), payment).unwrap();
    fs::copy(CAPTURE, dir.join("capture.pcap")).unwrap();
    for [key, value] in [["user123", "active"], ["photo", "pixels"]] {
        output(Command::new(CLI).args(["--addr", addr, "set", key, value]));
    }
}

/// The examples of a help text, each on one line.
fn examples(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nExamples:\n") else {
        return Vec::new();
    };
    let list = list.split("\n\n").next().unwrap();
    let joined = list.replace("\\\n", " ");
    joined.lines().map(|line| line.trim().to_owned()).collect()
}

/// The programs in an example's pipeline that are neither ours nor built into the shell.
fn programs(example: &str) -> Vec<&str> {
    let stages = example.split('|').map(str::trim);
    let first_words = stages.filter_map(|stage| stage.split(' ').next());
    first_words
        .filter(|name| !name.is_empty() && !name.starts_with("gopherstore-"))
        .filter(|name| !["echo", "printf"].contains(name))
        .collect()
}

#[test]
fn the_programs_of_an_example_are_those_that_its_pipeline_runs() {
    let example = "printf x | nc -N 127.0.0.1 8000 | gopherstore-cli decode || echo \"no: $?\"";
    assert_eq!(programs(example), ["nc"]);
    assert_eq!(programs("zstd -dc a | gopherstore-cli load -"), ["zstd"]);
}

fn shell(example: &str, dir: &Path, addr: &str) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-c", example])
        .current_dir(dir)
        .env("PATH", path())
        .env("GOPHERSTORE_ADDR", addr)
        .stdin(Stdio::null());
    command
}

#[test]
fn every_example_of_every_command_works() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let cluster = Cluster::start(3);
    cluster.wait_converged(CONVERGED_WITHIN);
    let dir = tempfile::tempdir().unwrap();
    let addrs: Vec<String> = (0..3).map(|node| cluster.addr(node).to_string()).collect();
    let mut config = "cluster = \"test\"\nleader = \"n1\"\n".to_owned();
    for (number, addr) in (1..).zip(&addrs) {
        config += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
    }
    fs::write(dir.path().join("cluster.toml"), config).unwrap();

    data_directory(dir.path());

    let help = output(Command::new(CLI).arg("--help"));
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let list = list.split("\n\n").next().unwrap().lines();
    let commands = list.filter_map(|line| line.strip_prefix("  ")?.split_once(' ')?.0.into());
    let mut texts = vec![(String::new(), help.clone())];
    for name in commands.filter(|name: &&str| !name.is_empty()) {
        let help = output(Command::new(CLI).args(["help", name]));
        assert!(!examples(&help).is_empty(), "help {name} has no example");
        texts.push((name.to_owned(), help));
    }
    assert!(texts.len() > 5, "{help}");

    for (name, help) in texts {
        for example in examples(&help) {
            assert!(example.contains("gopherstore-cli"), "{name}: {example}");
            if !tools::are_there(&programs(&example)) {
                continue;
            }
            prepare(dir.path(), &addrs[0]);
            // Followers have it too.
            cluster.wait_converged(CONVERGED_WITHIN);
            // Unchanged except for its duration.
            let mut runs = example.replace("--duration 30s", "--duration 1s");
            runs = runs.replace("--duration 10s", "--duration 1s");
            for (node, addr) in addrs.iter().enumerate() {
                runs = runs.replace(&format!("127.0.0.1:800{node}"), addr);
                // As netcat has it.
                let apart = addr.replacen(':', " ", 1);
                runs = runs.replace(&format!("127.0.0.1 800{node}"), &apart);
            }
            match End::of(&example) {
                End::Code(code) => {
                    ends_with(code, &example, &mut shell(&runs, dir.path(), &addrs[0]))
                }
                End::Never => goes_on(&example, &runs, dir.path(), &addrs[0]),
            }
        }
    }
}

/// Makes the data directory `data`, which no node uses any more.
fn data_directory(dir: &Path) {
    let mut node = Command::new(SERVER)
        .args(["--addr", "127.0.0.1:0", "--data-dir", "data"])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(node.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let segment = dir.join("data/log-00000001-0000000000000001");
    wait_for("a segment of the log", || segment.exists().then_some(()));
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(dir.join("data/identity").exists(), "{line}");
}

#[track_caller]
fn ends_with(code: i32, example: &str, command: &mut Command) {
    let log = tempfile::tempfile().unwrap();
    let mut child = Running::start(command, log.try_clone().unwrap());
    let what = format!("the end of: {example}");
    let status = wait_for(&what, || child.0.try_wait().unwrap());
    let printed = read(log);
    assert_eq!(status.code(), Some(code), "{example}\n{printed}");
}

/// An example without an end: writes continue until it has printed.
#[track_caller]
fn goes_on(example: &str, runs: &str, dir: &Path, addr: &str) {
    let log = tempfile::tempfile().unwrap();
    let command = format!("exec {runs}");
    let mut child = Running::start(&mut shell(&command, dir, addr), log.try_clone().unwrap());
    wait_for(&format!("what it prints: {example}"), || {
        prepare(dir, addr);
        let ended = child.0.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "{example} ended: {}",
            read(log.try_clone().unwrap())
        );
        (log.metadata().unwrap().len() > 0).then_some(())
    });
}

fn read(mut file: fs::File) -> String {
    use std::io::{Read, Seek};

    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process that is gone when the test is, with all that it started.
struct Running(Child);

impl Running {
    /// Both streams go to `log`.
    fn start(command: &mut Command, log: fs::File) -> Running {
        command.stdout(log.try_clone().unwrap()).stderr(log);
        // All of a pipeline are to go, and not its shell alone.
        Running(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        tools::signal(format!("-{}", self.0.id()), "KILL");
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_servers_examples_start_a_node() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n";
    fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let examples = examples(&output(Command::new(SERVER).arg("--help")));
    assert!(!examples.is_empty());
    for example in examples {
        let log = tempfile::tempfile().unwrap();
        let command = format!("exec {example}");
        let mut child = Running::start(
            &mut shell(&command, dir.path(), ""),
            log.try_clone().unwrap(),
        );
        wait_for(&format!("a node by: {example}, {PATIENCE:?}"), || {
            let printed = read(log.try_clone().unwrap());
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "{example}: {printed}");
            printed
                .contains("gopherstore-server: n1 ready on ")
                .then_some(())
        });
    }
}
