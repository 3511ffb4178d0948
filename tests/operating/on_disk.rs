//! The scripts, and the procedures of operating.md, where nodes keep their data on disk.

use std::fs;
use std::net::SocketAddr;

use crate::checkout::{Checkout, at_terminal, cli, ends, pid};
use crate::root;
use crate::support::node::wait_for;
use crate::support::tools;

/// Returns whether the programs that the tests need are installed.
fn has_programs() -> bool {
    tools::are_there(&["bash", "script"])
}

/// A folder with the configuration of `count` nodes, and their addresses. `None` where a program is missing.
fn configured(count: usize) -> Option<(Checkout, Vec<SocketAddr>)> {
    if !has_programs() {
        return None;
    }
    let mut checkout = Checkout::new();
    let addrs = checkout.configure("cluster.toml", "demo", count);
    Some((checkout, addrs))
}

/// The same with running nodes that keep their data on disk. The key `k` has the value `v`.
fn running_on_disk(count: usize) -> Option<(Checkout, Vec<SocketAddr>)> {
    let (checkout, addrs) = configured(count)?;
    add_storage(&checkout);
    start(&checkout);
    cli(0, addrs[0], &["set", "k", "v"]);
    Some((checkout, addrs))
}

/// Adds data directories to `cluster.toml`.
fn add_storage(checkout: &Checkout) {
    let file = checkout.path().join("cluster.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config + "[storage]\ndata_dir = \"data\"\n").unwrap();
}

/// Removes the data directories from `cluster.toml`.
fn remove_storage(checkout: &Checkout) {
    let file = checkout.path().join("cluster.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (config, _) = config.split_once("[storage]").unwrap();
    fs::write(&file, config).unwrap();
}

fn start(checkout: &Checkout) {
    ends(0, &mut checkout.script("start-cluster.sh"));
}

/// Kills a node, and waits until `left` processes run.
fn kill(checkout: &Checkout, name: &str, left: usize) {
    tools::signal(pid(checkout, &format!("run/cluster/{name}.pid")), "KILL");
    checkout.wait_for_processes(left);
}

/// Stops the cluster at a terminal, and checks that no question is asked.
#[track_caller]
fn stops_without_a_question(checkout: &Checkout, count: usize) {
    let printed = at_terminal(checkout, "scripts/stop-cluster.sh", "");
    let words = match count {
        1 => "Stopped 1 node.".to_owned(),
        _ => format!("Stopped {count} of {count} nodes."),
    };
    assert!(
        printed.contains(&words) && !printed.contains("Go on?") && !printed.contains(" lost"),
        "{printed}"
    );
    assert_eq!(checkout.processes(), [""; 0]);
}

#[test]
fn nodes_that_have_their_data_on_disk_stop_and_restart_without_a_question() {
    let Some((checkout, addrs)) = running_on_disk(2) else {
        return;
    };
    stops_without_a_question(&checkout, 2);
    start(&checkout);
    assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
    // The leader alone, which is the last with the data.
    kill(&checkout, "n2", 1);
    ends(0, checkout.script("restart-node.sh").arg("n1"));
    assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
    stops_without_a_question(&checkout, 1);
}

#[test]
fn of_nodes_with_and_without_a_disk_those_whose_data_is_at_risk_are_named() {
    let Some((checkout, addrs)) = configured(3) else {
        return;
    };
    start(&checkout);
    cli(0, addrs[0], &["set", "k", "v"]);
    add_storage(&checkout);
    ends(0, checkout.script("restart-node.sh").arg("n2"));
    let disk_of = |at: usize| {
        let status = cli(0, addrs[at], &["status"]);
        let mut lines = status.lines();
        lines
            .find(|line| line.starts_with("disk: "))
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        [0, 1, 2].map(disk_of),
        ["disk: none", "disk: used", "disk: none"]
    );

    // n3 takes a write that n2 does not get, and then the leader is lost.
    kill(&checkout, "n2", 2);
    cli(0, addrs[0], &["set", "more", "v"]);
    wait_for("the write at n3", || {
        (cli_code(addrs[2], &["get", "more"]) == Some(0)).then_some(())
    });
    kill(&checkout, "n1", 1);
    let mut start_n2 = checkout.script("start-node.sh");
    ends(0, start_n2.args(["--background", "n2"]));
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
    let printed = at_terminal(&checkout, "scripts/stop-cluster.sh", "n\n");
    let words = "Stopping n2 n3 loses data (n3: not on disk, and no other node is known to hold the data, keys: 2). \
                 Go on? [y/N] ";
    assert!(printed.contains(words), "{printed}");
    let printed = ends(1, checkout.script("restart-node.sh").arg("n3"));
    assert!(
        printed.contains("(no other node is known to hold the data, keys: 2)"),
        "{printed}"
    );
    // The data of n2 is on its disk.
    let mut restart = checkout.script("restart-node.sh");
    ends(0, restart.arg("n2"));
    assert_eq!(cli(0, addrs[1], &["get", "k"]), "v");
}

/// The exit code of the client.
fn cli_code(addr: SocketAddr, arguments: &[&str]) -> Option<i32> {
    let mut command = std::process::Command::new(crate::CLI);
    command.args(["--addr", &addr.to_string()]).args(arguments);
    command.output().unwrap().status.code()
}

#[test]
fn a_cluster_goes_from_memory_to_disk_and_back_without_a_loss() {
    let Some((checkout, addrs)) = configured(3) else {
        return;
    };
    let restart = |name: &str| {
        ends(0, checkout.script("restart-node.sh").arg(name));
    };
    let disks = || {
        addrs.clone().into_iter().map(|addr| {
            let status = cli(0, addr, &["status"]);
            status.contains("\ndisk: used\n")
        })
    };
    start(&checkout);
    cli(0, addrs[0], &["set", "k", "v"]);
    add_storage(&checkout);
    for name in ["n2", "n3"] {
        restart(name);
    }
    // The leader has no disk yet. Its last writes are on the disks of its followers.
    cli(0, addrs[0], &["set", "late", "v"]);
    stops_without_a_question(&checkout, 3);
    start(&checkout);
    assert!(disks().all(|is_used| is_used));
    for addr in &addrs {
        assert_eq!(cli(0, *addr, &["get", "k"]), "v");
    }
    assert_eq!(cli(0, addrs[0], &["get", "late"]), "v");

    remove_storage(&checkout);
    for name in ["n2", "n3", "n1"] {
        restart(name);
        assert_eq!(cli(0, addrs[0], &["get", "late"]), "v");
    }
    assert!(disks().all(|is_used| !is_used));
    for addr in &addrs {
        assert_eq!(cli(0, *addr, &["get", "k"]), "v");
    }
}

#[test]
fn a_restart_that_would_leave_the_directory_is_refused_where_no_other_node_has_the_data() {
    let Some((checkout, addrs)) = running_on_disk(1) else {
        return;
    };
    remove_storage(&checkout);
    let printed = ends(1, checkout.script("restart-node.sh").arg("n1"));
    let words = "(cluster.toml gives n1 no data directory any more, and no other node is known to hold the data, \
                 keys: 1)";
    assert!(printed.contains(words), "{printed}");
    // A stop does not remove the directory.
    stops_without_a_question(&checkout, 1);
    add_storage(&checkout);
    start(&checkout);
    assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
}

#[test]
fn the_demo_does_not_write_to_data_directories() {
    let Some((checkout, _)) = configured(1) else {
        return;
    };
    add_storage(&checkout);
    let printed = ends(2, &mut checkout.script("demo.sh"));
    assert!(printed.contains("keeps data on disk"), "{printed}");
    // As the message says.
    let copy = "grep -v data_dir cluster.toml >memory.toml";
    assert!(printed.contains(copy), "{printed}");
    ends(0, checkout.command("sh").args(["-c", copy]));
    let printed = ends(0, checkout.script("demo.sh").arg("memory.toml"));
    assert!(printed.contains("All answers were right"), "{printed}");
    assert!(!checkout.path().join("data").exists());
}

/// The commands of operating.md on the data directory of a node: to back it up, to check the backup, to move its files
/// away, to empty it, and to restore it.
fn documented_commands() -> [String; 5] {
    let text = fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let (_, section) = text.split_once("\n### Backup and restore\n").unwrap();
    let (_, commands) = section.split_once("```sh\n").unwrap();
    let (commands, _) = commands.split_once("```").unwrap();
    let commands = commands
        .replace("/var/lib/gopherstore", "data")
        .replace("/backup", "backup")
        .replace("gopherstore-cli", crate::CLI);
    let lines: Vec<String> = commands.lines().map(str::to_owned).collect();
    lines.try_into().unwrap()
}

#[test]
fn a_copy_of_a_stopped_nodes_directory_is_a_backup() {
    let [back_up, check, move_away, empty, restore] = documented_commands();
    // A service has a link in the place of its directory.
    for is_link in [false, true] {
        let Some((checkout, addrs)) = running_on_disk(1) else {
            return;
        };
        let run = |command: &str| ends(0, checkout.command("sh").args(["-c", command]));
        let stop = || stops_without_a_question(&checkout, 1);
        let files = || {
            fs::read_dir(checkout.path().join("data/n1"))
                .unwrap()
                .count()
        };
        stop();
        run("mkdir backup");
        if is_link {
            run("mkdir private && mv data/n1 private/n1 && ln -s ../private/n1 data/n1");
        }
        run(&back_up);
        let printed = run(&check);
        assert!(printed.contains("1 keys up to index "), "{printed}");
        start(&checkout);
        cli(0, addrs[0], &["set", "k", "newer"]);
        stop();

        run(&move_away);
        assert_eq!(files(), 0);
        start(&checkout);
        cli(1, addrs[0], &["get", "k"]);
        cli(0, addrs[0], &["set", "k", "other"]);
        stop();

        run(&empty);
        assert_eq!(files(), 0);
        run(&restore);
        start(&checkout);
        assert_eq!(cli(0, addrs[0], &["get", "k"]), "v");
        stop();
        // The copies are no links to what the node has changed since.
        let old = checkout.path().join("backup/n1.old");
        assert!(old.join("identity").is_file() && !old.is_symlink());
        run(&check);
    }
}

#[test]
fn a_node_whose_disk_is_lost_copies_its_data_from_the_others() {
    let Some((checkout, addrs)) = running_on_disk(2) else {
        return;
    };
    for (at, name) in [(1, "n2"), (0, "n1")] {
        wait_for("the key at both", || {
            let has = |addr| cli_code(addr, &["get", "k"]) == Some(0);
            (has(addrs[0]) && has(addrs[1])).then_some(())
        });
        kill(&checkout, name, 1);
        fs::remove_dir_all(checkout.path().join("data").join(name)).unwrap();
        let mut start = checkout.script("start-node.sh");
        ends(0, start.args(["--background", name]));
        assert_eq!(cli(0, addrs[at], &["get", "k"]), "v");
    }
}
