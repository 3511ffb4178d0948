//! The scripts that stop and restart nodes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;

use crate::checkout::{
    Checkout, assert_serves, at_terminal, cli, end, ends, pid, spawn, stop_command,
};
use crate::support::node::wait_for;
use crate::support::tools;
use crate::{CLI, both};

#[test]
fn clusters_of_one_name_on_one_host_are_kept_apart() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let first = checkout.configure("one/cluster.toml", "demo", 2);
    let second = checkout.configure("two/cluster.toml", "demo", 2);
    let printed = ends(
        0,
        checkout.script("start-cluster.sh").arg("one/cluster.toml"),
    );
    let stop_first = stop_command(&printed).to_owned();
    cli(0, first[0], &["set", "k", "first"]);
    let printed = ends(
        0,
        checkout.script("start-cluster.sh").arg("two/cluster.toml"),
    );
    let stop_second = stop_command(&printed).to_owned();

    // The shipped file's cluster is another.
    checkout.configure("cluster.toml", "demo", 2);
    let printed = ends(0, &mut checkout.script("stop-cluster.sh"));
    for part in [
        "No node of cluster.toml was running.\n",
        &stop_first,
        &stop_second,
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let stopped = ends(0, checkout.command("bash").args(["-c", &stop_second]));
    assert_eq!(stopped, "Stopped 2 of 2 nodes.\n");
    cli(5, second[0], &["ping"]);
    assert_eq!(cli(0, first[1], &["get", "k"]), "first");
    // The same file by another name.
    let mut stop = checkout.script("stop-cluster.sh");
    let stopped = ends(0, stop.arg(checkout.path().join("two/../one/cluster.toml")));
    assert!(
        stopped.starts_with("Stopped 2 of 2 nodes.\nn1: no other node "),
        "{stopped}"
    );
    assert_eq!(checkout.processes(), [""; 0]);
}

#[test]
fn processes_that_only_have_a_nodes_number_are_left_alone() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("one.toml", "demo", 1);
    checkout.configure("two.toml", "demo", 1);
    ends(0, checkout.script("start-cluster.sh").arg("one.toml"));
    let node = pid(&checkout, "run/one/n1.pid");
    // Of another cluster's node, of this test, and of nothing.
    let this = std::process::id().to_string();
    let folder = checkout.path().join("run/two");
    fs::create_dir_all(&folder).unwrap();
    for number in [&*node, &this, "", "x", "-1", "0", "99999999999999999999"] {
        fs::write(folder.join("n1.pid"), format!("{number}\n")).unwrap();
        let printed = ends(0, checkout.script("stop-cluster.sh").arg("two.toml"));
        assert!(
            printed.starts_with("No node of two.toml was running.\n"),
            "{number}: {printed}"
        );
    }
    assert_serves(addrs[0]);
    ends(0, checkout.script("start-cluster.sh").arg("two.toml"));
    assert_eq!(checkout.processes().len(), 2);
}

#[test]
fn a_restart_builds_before_it_stops_the_node() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 1);
    ends(0, &mut checkout.script("start-cluster.sh"));
    let before = pid(&checkout, "run/cluster/n1.pid");
    let bin = checkout.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let restart = || {
        let mut restart = checkout.script("restart-node.sh");
        restart
            .arg("n1")
            .env_remove("GOPHERSTORE_SERVER")
            .env_remove("GOPHERSTORE_CLI")
            .env("PATH", &search);
        restart
    };
    let target = checkout.path().join("target");
    let cargo = |build: &str| {
        let metadata = format!("echo '{{\"target_directory\":\"{}\"}}'", target.display());
        checkout.program(
            "bin/cargo",
            &format!("case $1 in metadata) {metadata} ;; build) {build} ;; esac"),
        );
    };
    cargo("echo 'does not compile' >&2; exit 101");
    let printed = ends(101, &mut restart());
    assert!(printed.contains("does not compile"), "{printed}");
    assert_eq!(pid(&checkout, "run/cluster/n1.pid"), before);
    assert_serves(addrs[0]);

    // A file that is wrong stops nothing either.
    cargo(":");
    let file = checkout.path().join("cluster.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("nonsense = 1\n{config}")).unwrap();
    ends(2, &mut restart());
    fs::write(&file, config).unwrap();
    assert_serves(addrs[0]);

    cargo(&format!("kill -0 {before} && touch built"));
    ends(0, &mut restart());
    assert!(
        checkout.path().join("built").exists(),
        "n1 was stopped before the build"
    );
    assert_ne!(pid(&checkout, "run/cluster/n1.pid"), before);
    assert_serves(addrs[0]);
}

#[test]
fn restarted_nodes_serve_what_they_held() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 3);
    ends(0, &mut checkout.script("start-cluster.sh"));
    cli(0, addrs[0], &["set", "k", "v"]);
    for (number, addr) in (1..).zip(&addrs) {
        let file = format!("run/cluster/n{number}.pid");
        let before = pid(&checkout, &file);
        let name = format!("n{number}");
        let printed = ends(0, checkout.script("restart-node.sh").arg(&name));
        assert!(
            printed.starts_with(&format!("gopherstore-server: {name} ready on {addr} (")),
            "{printed}"
        );
        assert_ne!(pid(&checkout, &file), before);
        assert_eq!(cli(0, *addr, &["get", "k"]), "v");
    }
    // One that does not run is started; one that others have started is theirs.
    tools::signal(pid(&checkout, "run/cluster/n2.pid"), "KILL");
    checkout.wait_for_processes(2);
    let printed = ends(0, checkout.script("restart-node.sh").arg("n2"));
    assert!(printed.contains("n2 was not running\n"), "{printed}");
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
    fs::remove_file(checkout.path().join("run/cluster/n3.pid")).unwrap();
    let printed = ends(1, checkout.script("restart-node.sh").arg("n3"));
    assert!(
        printed.contains("these scripts have not started it"),
        "{printed}"
    );
    assert_eq!(cli(0, addrs[2], &["get", "k"]), "v");
}

#[test]
fn a_restart_that_would_lose_data_is_refused() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 2);
    ends(0, &mut checkout.script("start-cluster.sh"));
    // Nothing is lost where there is nothing.
    tools::signal(pid(&checkout, "run/cluster/n2.pid"), "KILL");
    checkout.wait_for_processes(1);
    ends(0, checkout.script("restart-node.sh").arg("n1"));
    cli(0, addrs[0], &["set", "k", "v"]);
    let printed = ends(1, checkout.script("restart-node.sh").arg("n1"));
    let words = "n1 was not restarted, since that loses data (no other node is known to hold the data, keys: 1)";
    assert!(printed.contains(words), "{printed}");
    assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");

    // A follower whose leader is gone may hold the only copy.
    ends(
        0,
        checkout
            .script("start-node.sh")
            .args(["--background", "n2"]),
    );
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
    tools::signal(pid(&checkout, "run/cluster/n1.pid"), "KILL");
    checkout.wait_for_processes(1);
    ends(1, checkout.script("restart-node.sh").arg("n2"));
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
    let mut restart = checkout.script("restart-node.sh");
    restart
        .args(["--yes", "n2"])
        .env("GOPHERSTORE_READY_SECONDS", "0");
    let printed = ends(1, &mut restart);
    assert!(
        printed.contains("n2 does not serve after 0 s: ")
            && printed.ends_with("it goes on running\n"),
        "{printed}"
    );
}

#[test]
fn without_a_leader_a_node_is_restarted_if_another_one_holds_the_same() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 3);
    let pid = |name| pid(&checkout, &format!("run/cluster/{name}.pid"));
    let client = |addr: SocketAddr, command: &str| {
        let mut client = checkout.command(CLI);
        client.args(["--addr", &addr.to_string()]);
        client.args(command.split(' '));
        client
    };
    let wait_for_index = |addr, index: u32| {
        let line = format!("\nindex: {index}\n");
        wait_for(&line, || {
            // Its exit code also tells how the other nodes are.
            let status = client(addr, "status").output().unwrap();
            both(&status).contains(&line).then_some(())
        });
    };
    ends(0, &mut checkout.script("start-cluster.sh"));
    cli(0, addrs[0], &["set", "k", "v"]);
    wait_for_index(addrs[1], 2);
    wait_for_index(addrs[2], 2);
    tools::signal(pid("n1"), "KILL");
    checkout.wait_for_processes(2);
    let file = checkout.path().join("cluster.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("leader = \"n1\"", "leader = \"n2\"")).unwrap();
    ends(0, checkout.script("restart-node.sh").arg("n2"));
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
    ends(0, checkout.script("restart-node.sh").arg("n3"));
    ends(
        0,
        checkout
            .script("start-node.sh")
            .args(["--background", "n1"]),
    );

    // n3 is suspended while more is written than fits between the two, so it lags behind n1 when the leader dies.
    tools::signal(pid("n3"), "STOP");
    let value = checkout.path().join("value");
    fs::write(&value, vec![b'v'; 30 << 20]).unwrap();
    let mut set = client(addrs[1], "set more -");
    ends(0, set.stdin(fs::File::open(value).unwrap()));
    wait_for_index(addrs[0], 4);
    tools::signal(pid("n2"), "KILL");
    checkout.wait_for_processes(2);
    tools::signal(pid("n3"), "CONT");
    let before = pid("n1");
    let printed = ends(1, checkout.script("restart-node.sh").arg("n1"));
    assert!(printed.contains("n1 was not restarted"), "{printed}");
    assert_eq!(pid("n1"), before);
}

#[test]
fn a_stop_that_loses_data_is_asked_about_at_a_terminal() {
    if !tools::are_there(&["bash", "script"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 2);
    let start = || ends(0, &mut checkout.script("start-cluster.sh"));
    let stop = |typed| at_terminal(&checkout, "scripts/stop-cluster.sh", typed);
    start();
    let printed = stop("");
    assert!(
        printed.contains("Stopped 2 of 2 nodes.") && !printed.contains("Go on?"),
        "{printed}"
    );

    start();
    cli(0, addrs[0], &["set", "k", "v"]);
    for typed in ["n\n", "\n", "\x04"] {
        let printed = stop(typed);
        let words = "Stopping n1 n2 loses data (no other node is known to hold the data, keys: 1). Go on? [y/N] ";
        assert!(printed.contains(words), "{printed}");
        assert!(
            printed.contains("nothing was stopped") && printed.ends_with("exit 1"),
            "{printed}"
        );
        assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
    }
    let printed = stop("y\n");
    assert!(
        printed.contains("Stopped 2 of 2 nodes.") && printed.ends_with("exit 0"),
        "{printed}"
    );

    start();
    cli(0, addrs[0], &["set", "k", "v"]);
    let printed = at_terminal(&checkout, "scripts/stop-cluster.sh --yes", "");
    assert!(
        printed.contains("Stopped 2 of 2 nodes.") && !printed.contains("Go on?"),
        "{printed}"
    );
    assert_eq!(checkout.processes(), [""; 0]);
}

#[test]
fn lost_data_that_a_stopping_node_logs_is_shown() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let mut checkout = Checkout::new();
    checkout.configure("cluster.toml", "demo", 1);
    let losing = checkout.fake_server(
        "case $* in *--check-config*) exec \"$SERVER\" \"$@\" ;; esac\n\
         trap 'echo \"[2026-01-01T00:00:00Z ERROR x] 5 keys are lost with it\" >&2; exit 3' TERM\n\
         while :; do sleep 0.05; done",
    );
    let mut start = checkout.script("start-cluster.sh");
    start.env("GOPHERSTORE_SERVER", losing);
    ends(1, start.env("GOPHERSTORE_READY_SECONDS", "0"));
    let printed = ends(0, &mut checkout.script("stop-cluster.sh"));
    assert!(printed.starts_with("Stopped 1 node.\n"), "{printed}");
    assert!(
        printed.contains("n1: 5 keys are lost with it\n"),
        "{printed}"
    );
}

#[test]
fn scripts_that_run_at_the_same_time_do_not_interfere() {
    if !tools::are_there(&["bash", "flock"]) {
        return;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", 2);
    let spawn = |name: &str| spawn(&mut checkout.script(name));
    let starts = [spawn("start-cluster.sh"), spawn("start-cluster.sh")];
    let mut started = starts.map(end);
    started.sort();
    assert!(started[0].0 == 0 && started[1].0 == 1, "{started:?}");
    let words = "all 2 nodes of cluster.toml are already running";
    assert!(started[1].1.contains(words), "{started:?}");
    for addr in &addrs {
        assert_serves(*addr);
    }
    assert_eq!(checkout.processes().len(), 2);

    // The leader, which alone holds data then, waits for a follower, so that the second script comes while the first
    // one stops it. Where it sent a second signal, that would end the leader at once.
    cli(0, addrs[0], &["set", "k", "v"]);
    let log = |name: &str| {
        let path = checkout.path().join(format!("run/cluster/{name}.log"));
        fs::read_to_string(path).unwrap()
    };
    let first = spawn("stop-cluster.sh");
    wait_for("the leader's stop", || {
        log("n1").contains("SIGTERM").then_some(())
    });
    let mut second = spawn("stop-cluster.sh");
    let mut line = String::new();
    let mut stderr = BufReader::new(second.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for another script"), "{line}");
    for stop in [first, second] {
        let (code, printed) = end(stop);
        assert_eq!(code, 0, "{printed}");
    }
    assert_eq!(checkout.processes(), [""; 0]);
    for name in ["n1", "n2"] {
        assert_eq!(log(name).matches("SIGTERM").count(), 1, "{}", log(name));
    }
}
