//! The scripts that start nodes in the background.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::checkout::{
    Checkout, assert_serves, at_terminal, cli, end, ends, pid, spawn, stop_command,
};
use crate::support::node::wait_for;
use crate::support::tools;
use crate::{CLI, both, output, root};

#[test]
fn a_cluster_serves_when_its_start_returns() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 3);
    // The followers are there first. They have tried in vain for so long that they wait for more than a second until
    // they try again.
    let file = checkout.path().join("cluster.toml");
    let config = fs::read_to_string(&file).unwrap();
    let config = config.replace("interval_ms = 100", "interval_ms = 10000");
    fs::write(
        &file,
        config.replace("timeout_ms = 1000", "timeout_ms = 30000"),
    )
    .unwrap();
    let slow =
        checkout.fake_server("case $* in *'--node n1') sleep 2.5 ;; esac\nexec \"$SERVER\" \"$@\"");
    let started = ends(
        0,
        checkout
            .script("start-cluster.sh")
            .env("GOPHERSTORE_SERVER", slow),
    );
    for addr in &addrs {
        assert_serves(*addr);
    }
    assert!(
        started.contains("All 3 nodes serve. Logs: run/cluster/*.log. "),
        "{started}"
    );
    assert_eq!(stop_command(&started), "scripts/stop-cluster.sh");

    let again = ends(1, &mut checkout.script("start-cluster.sh"));
    assert!(
        again.contains("all 3 nodes of cluster.toml are already running"),
        "{again}"
    );
    tools::signal(pid(&checkout, "run/cluster/n3.pid"), "KILL");
    checkout.wait_for_processes(2);
    let again = ends(1, &mut checkout.script("start-cluster.sh"));
    assert!(
        again.contains("scripts/start-node.sh --background n3\n"),
        "{again}"
    );
    ends(
        0,
        checkout
            .script("start-node.sh")
            .args(["n3", "--background"]),
    );
    assert_serves(addrs[2]);

    assert_eq!(
        ends(0, &mut checkout.script("stop-cluster.sh")),
        "Stopped 3 of 3 nodes.\n"
    );
    assert_eq!(
        ends(0, &mut checkout.script("stop-cluster.sh")),
        "No node of cluster.toml was running.\n"
    );
    assert_eq!(checkout.processes(), [""; 0]);
}

#[test]
fn nodes_that_do_not_serve_in_time_are_named_with_their_reasons_and_go_on() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    checkout.configure("cluster.toml", "demo", 2);
    let stuck = checkout.fake_server(
        "case $* in *'--node n1') while :; do sleep 0.05; done ;; esac\nexec \"$SERVER\" \"$@\"",
    );
    let printed = ends(
        1,
        checkout
            .script("start-cluster.sh")
            .env("GOPHERSTORE_SERVER", stuck)
            .env("GOPHERSTORE_READY_SECONDS", "1"),
    );
    for words in [
        "n1 does not serve after 1 s: it has not said that it is ready\n",
        "n2 does not serve after 1 s: state loading: ",
        "the nodes go on running; to stop them: scripts/stop-cluster.sh\n",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    assert_eq!(
        ends(0, &mut checkout.script("stop-cluster.sh")),
        "Stopped 2 of 2 nodes.\n"
    );

    let mut wrong = checkout.script("start-cluster.sh");
    let printed = ends(2, wrong.env("GOPHERSTORE_READY_SECONDS", "1s"));
    assert!(
        printed.contains("a number of seconds, not '1s'"),
        "{printed}"
    );
}

#[test]
fn a_node_that_ends_during_the_wait_ends_the_start() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    checkout.configure("cluster.toml", "demo", 2);
    let start = || {
        let failing = checkout.fake_server(
            "case $* in *'--node n2') sleep 0.3; echo told >&2; exit 7 ;; esac\nexec \"$SERVER\" \"$@\"",
        );
        let mut start = checkout.script("start-cluster.sh");
        ends(1, start.env("GOPHERSTORE_SERVER", failing))
    };
    for _ in 0..2 {
        let printed = start();
        let words = "n2 has ended with exit status 7; the end of run/cluster/n2.log:\ntold\nstart-cluster.sh: stopping";
        assert!(printed.contains(words), "{printed}");
    }
    assert_eq!(checkout.processes(), [""; 0]);
    // The log of the first start is still there, and was not shown at the second.
    let log = fs::read_to_string(checkout.path().join("run/cluster/n2.log")).unwrap();
    assert_eq!(log, "told\ntold\n");
}

#[test]
fn a_cluster_at_the_addresses_of_another_is_refused_and_harms_nothing() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("one.toml", "one", 2);
    let config = fs::read_to_string(checkout.path().join("one.toml")).unwrap();
    let config = config.replace("\"one\"", "\"two\"");
    fs::write(checkout.path().join("two.toml"), config).unwrap();
    ends(0, checkout.script("start-cluster.sh").arg("one.toml"));
    cli(0, addrs[0], &["set", "k", "v"]);
    for mut command in [
        checkout.script("start-cluster.sh"),
        {
            let mut command = checkout.script("start-node.sh");
            command.args(["--background", "n1"]);
            command
        },
        {
            let mut command = checkout.script("restart-node.sh");
            command.arg("n1");
            command
        },
    ] {
        let printed = ends(1, command.arg("two.toml"));
        let words = format!(
            "{}, the address of n1, is in use by n1 of one.toml (process ",
            addrs[0]
        );
        assert!(printed.contains(&words), "{printed}");
    }
    assert_eq!(checkout.processes().len(), 2);
    let stopped = ends(0, checkout.script("stop-cluster.sh").arg("two.toml"));
    assert!(
        stopped.starts_with("No node of two.toml was running.\n"),
        "{stopped}"
    );
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
}

#[test]
fn a_node_in_the_background_outlives_its_terminal() {
    if !tools::are_there(&["bash", "script"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    let printed = at_terminal(&checkout, "scripts/start-node.sh --background n1", "");
    assert!(
        printed.contains("n1 ready on ") && printed.ends_with("exit 0"),
        "{printed}"
    );
    assert_serves(addrs[0]);
    let pid = pid(&checkout, "run/cluster/n1.pid");
    let process = Path::new("/proc").join(&pid);
    let status = fs::read_to_string(process.join("status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_eq!(ignored & 1, 1, "SIGHUP is not ignored: {status}");
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // State, parent, process group, session.
    assert_eq!(fields.split(' ').nth(3), Some(&*pid), "{stat}");
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let file = fs::read_link(entry.unwrap().path()).unwrap();
        assert!(
            !file.ends_with("lock") && !file.starts_with("/dev/pts"),
            "{file:?}"
        );
    }
    let mut again = checkout.script("start-node.sh");
    let printed = ends(1, again.args(["--background", "n1"]));
    let words = format!(
        "n1 is already running (process {pid}); to restart it: scripts/restart-node.sh n1\n"
    );
    assert!(printed.ends_with(&words), "{printed}");
}

#[test]
fn an_interrupted_start_leaves_no_node_behind_but_one_that_holds_data() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 2);
    let stuck = checkout.fake_server(
        "case $* in *'--node n2') while :; do sleep 0.05; done ;; esac\nexec \"$SERVER\" \"$@\"",
    );
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 143)] {
        let mut start = checkout.script("start-cluster.sh");
        let mut start = spawn(start.env("GOPHERSTORE_SERVER", &stuck));
        let addr = addrs[0].to_string();
        wait_for("n1 to answer", || {
            let mut ping = Command::new(CLI);
            ping.args(["--addr", &addr, "status"]);
            let status = ping.output().unwrap();
            both(&status).contains("\nstate: serving\n").then_some(())
        });
        if signal == "HUP" {
            cli(0, addrs[0], &["set", "k", "v"]);
        }
        // Bash drops a SIGINT that comes just when a command substitution ends. A user presses Ctrl-C again.
        let mut sent = None;
        wait_for("the end of the script", || {
            let is_due = |at: Instant| signal == "INT" && at.elapsed() > Duration::from_secs(2);
            if sent.is_none_or(is_due) {
                tools::signal(start.id(), signal);
                sent = Some(Instant::now());
            }
            start.try_wait().unwrap()
        });
        let output = start.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{signal}: {}",
            both(&output)
        );
        if signal == "HUP" {
            assert!(
                both(&output).contains("leaving the nodes running"),
                "{}",
                both(&output)
            );
            assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
        } else {
            // The fake server leaves a sleep that ends by itself.
            checkout.wait_for_processes(0);
        }
    }
}

/// Waits for a file in the folder of the program, for some 20 seconds at most: await_file FILE.
const AWAIT_FILE: &str = "\
export DIR=\"${DIR:-${0%/*}}\"
await_file() {
    tries=2000
    until [ -e \"$DIR/$1\" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || exit 1
        sleep 0.01
    done
}
";

/// A node that becomes another program, whose command line is not a node's, once its STATUS is asked for. Once that is
/// asked for again, it becomes the server.
const CHANGING_SERVER: &str = "\
case $1 in --check-config) exec \"$SERVER\" \"$@\" ;; esac
echo \"n1 ready on $ADDR (leader)\"
await_file asked
export SERVER CONFIG=\"$2\" NODE=\"$4\"
exec sh \"$DIR/between\"
";
const BETWEEN: &str = "\
: >\"$DIR/changed\"
await_file seen
exec \"$SERVER\" --config \"$CONFIG\" --node \"$NODE\"
";

/// Gives no STATUS at first, and returns when the node is another program.
const CLI_BESIDE_IT: &str = "\
if [ ! -e \"$DIR/asked\" ]; then
    : >\"$DIR/asked\"
    await_file changed
    exit 1
fi
: >\"$DIR/seen\"
exec \"$CLI\" \"$@\"
";

/// A process has no command line for a moment when it becomes another program.
#[test]
fn a_start_waits_for_a_process_that_becomes_another_program() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    let server = checkout.fake_server(&format!("{AWAIT_FILE}{CHANGING_SERVER}"));
    let cli = checkout.program("fake-cli", &format!("{AWAIT_FILE}{CLI_BESIDE_IT}"));
    checkout.program("between", &format!("{AWAIT_FILE}{BETWEEN}"));
    let mut start = checkout.script("start-cluster.sh");
    start
        .env("ADDR", addrs[0].to_string())
        .env("CLI", CLI)
        .env("GOPHERSTORE_SERVER", &server)
        .env("GOPHERSTORE_CLI", &cli);
    let mut start = spawn(&mut start);
    wait_for("the end of the script", || start.try_wait().unwrap());
    let (code, printed) = end(start);
    assert_eq!(code, 0, "{printed}");
    assert_serves(addrs[0]);
}

/// A process as a killed node is while the system takes its memory back: no arguments any more, but still its port.
/// Here its main thread has ended. It is over half a second after its input.
const ENDING: &str = "\
import ctypes, platform, socket, sys, threading, time
host, port = sys.argv[1].rsplit(':', 1)
listener = socket.create_server((host, int(port)))
def rest():
    sys.stdin.read()
    time.sleep(0.5)
threading.Thread(target=rest).start()
print('listening', flush=True)
ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)
";

#[test]
fn a_start_waits_until_the_nodes_last_process_has_closed_its_port() {
    if !tools::are_there(&["bash", "python3"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    let mut python = checkout.command("python3");
    python.args(["-c", ENDING, &addrs[0].to_string()]);
    let mut last = spawn(python.stdin(Stdio::piped()));
    let mut line = String::new();
    let mut stdout = BufReader::new(last.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    let arguments = Path::new("/proc").join(last.id().to_string());
    wait_for("the end of its main thread", || {
        let line = fs::read(arguments.join("cmdline")).unwrap();
        line.is_empty().then_some(())
    });
    let run = checkout.path().join("run/cluster");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("n1.pid"), format!("{}\n", last.id())).unwrap();
    let start = spawn(
        checkout
            .script("start-node.sh")
            .args(["--background", "n1"]),
    );
    // This line is written right before the node is started.
    wait_for("the start", || run.join("cluster").exists().then_some(()));
    drop(last.stdin.take());
    last.wait().unwrap();
    let (code, printed) = end(start);
    assert_eq!(code, 0, "{printed}");
    assert_serves(addrs[0]);
}

#[test]
fn a_node_in_the_foreground_reads_the_shipped_file_from_anywhere() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    let folders = [checkout.path(), &checkout.path().join("target")];
    for folder in folders {
        let mut start = checkout.script("start-node.sh");
        start.arg("n1").current_dir(folder);
        for (variable, name) in [("SERVER", "server"), ("CLI", "cli")] {
            let program = format!("target/release/gopherstore-{name}");
            start.env(
                format!("GOPHERSTORE_{variable}"),
                checkout.path().join(program),
            );
        }
        let mut node = spawn(&mut start);
        let mut line = String::new();
        let mut stdout = BufReader::new(node.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        tools::signal(node.id(), "TERM");
        let (code, printed) = end(node);
        let ready = format!("gopherstore-server: n1 ready on {} (leader)\n", addrs[0]);
        assert_eq!((code, line), (0, ready), "{printed}");
    }
}

#[test]
fn scripts_work_by_links_from_other_folders_and_with_closed_streams() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    let elsewhere = checkout.path().join("else where");
    fs::create_dir(&elsewhere).unwrap();
    for name in ["start-cluster.sh", "restart-node.sh", "stop-cluster.sh"] {
        symlink(Path::new("../scripts").join(name), elsewhere.join(name)).unwrap();
    }
    symlink(checkout.path().join("scripts"), elsewhere.join("scripts")).unwrap();
    let target = checkout.path().join("target/release");
    let run = |line: &str| {
        let mut command = checkout.command("bash");
        command
            .args(["-c", line])
            .current_dir(&elsewhere)
            .env("CDPATH", checkout.path())
            .env("GOPHERSTORE_SERVER", target.join("gopherstore-server"))
            .env("GOPHERSTORE_CLI", target.join("gopherstore-cli"));
        ends(0, &mut command)
    };
    // The same cluster each time: the shipped file, which is that of the clone.
    run("./start-cluster.sh <&- >&- 2>&-");
    assert_serves(addrs[0]);
    run("scripts/restart-node.sh n1 ../cluster.toml >&-");
    assert_serves(addrs[0]);
    run("./restart-node.sh n1 <&-");
    assert_serves(addrs[0]);
    assert_eq!(
        run("./stop-cluster.sh ../cluster.toml"),
        "Stopped 1 node.\n"
    );

    // A folder of this name is in CDPATH too.
    fs::create_dir(checkout.path().join("etc")).unwrap();
    fs::create_dir(elsewhere.join("etc")).unwrap();
    let config = checkout.path().join("cluster.toml");
    fs::copy(config, elsewhere.join("etc/two.toml")).unwrap();
    run("./start-cluster.sh etc/two.toml");
    let stopped = run("cd ./etc && ../stop-cluster.sh two.toml");
    assert!(stopped.ends_with("Stopped 1 node.\n"), "{stopped}");

    // A folder for the run files by a relative name, and the command that was printed.
    let printed = run("GOPHERSTORE_RUN=r ./start-cluster.sh");
    assert!(elsewhere.join("r/cluster/n1.pid").exists(), "{printed}");
    assert_eq!(run(stop_command(&printed)), "Stopped 1 node.\n");
    assert_eq!(checkout.processes(), [""; 0]);
}

#[test]
fn every_script_finds_its_folder_through_a_link() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue; // a folder
        };
        for line in text.lines() {
            let own_path = ["\"${BASH_SOURCE[0]}\")", "\"$0\")", "__file__"];
            if line.contains("dirname") && own_path.iter().any(|own| line.contains(own)) {
                assert!(
                    line.contains("readlink -f") || line.contains("realpath"),
                    "{path:?}: {line}"
                );
                count += 1;
            }
        }
    }
    assert!(count > 7, "{count}");
}

#[test]
fn scripts_say_how_they_are_called() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let checkout = Checkout::new();
    let calls: [(&str, &[&str]); 9] = [
        ("start-cluster.sh", &["--yes"]),
        ("start-cluster.sh", &["a", "b"]),
        ("start-cluster.sh", &[""]),
        ("stop-cluster.sh", &["--no"]),
        ("stop-cluster.sh", &["missing.toml"]),
        ("start-node.sh", &[]),
        ("start-node.sh", &["--background", "n9"]),
        ("restart-node.sh", &["n1", "a", "b"]),
        ("demo.sh", &["no/such/folder"]),
    ];
    for (name, arguments) in calls {
        let printed = ends(2, checkout.script(name).args(arguments));
        assert!(!printed.is_empty(), "{name} {arguments:?}");
        assert!(
            !checkout.path().join("run").exists(),
            "{name} {arguments:?}"
        );
    }
    output(checkout.command("bash").args(["-n", "scripts/demo.sh"]));
}
