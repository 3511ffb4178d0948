//! The measurements, in their shortest form: that they work, not what they find.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::node::wait_for;
use crate::support::tools;
use crate::{CLI, SERVER, both, output, root};

/// An example, as this build of the tests has it.
fn example(name: &str) -> PathBuf {
    let built = Path::new(CLI).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--example", name]);
    if built.ends_with("release") {
        cargo.arg("--release");
    }
    output(cargo.current_dir(root()));
    built.join("examples").join(name)
}

fn bench(dir: &Path) -> Command {
    script(dir, "bench-peers.sh")
}

/// A script that measures, in a folder of its own.
fn script(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(root().join("scripts").join(name));
    command
        .env("GOPHERSTORE_SERVER", SERVER)
        .env("GOPHERSTORE_PEERS", example("peers"))
        .env("TMPDIR", dir)
        .current_dir(dir);
    command
}

/// Processes that work in a folder or below it.
fn working_in(dir: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let folders = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
    folders.filter(|folder| folder.starts_with(dir)).count()
}

fn peers_are_installed() -> bool {
    tools::are_there(&["bash", "redis-server", "memcached"])
}

#[test]
fn every_cell_of_the_measurement_beside_other_servers_works() {
    if !peers_are_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let list = output(bench(&dir).arg("--list"));
    let cells: BTreeSet<&str> = list
        .lines()
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert!(cells.len() > 30, "{list}");

    let table = output(bench(&dir).args(["--smoke", "--cells", "all", "--json", "readings"]));
    for cell in &cells {
        assert!(table.contains(&format!("| `{cell}`: ")), "{cell}: {table}");
    }
    let text = fs::read_to_string(dir.join("readings")).unwrap();
    let readings: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |cell: &str| -> Vec<&str> {
        let of_cell = readings.iter().filter(|reading| reading["cell"] == cell);
        of_cell.map(|one| one["server"].as_str().unwrap()).collect()
    };
    for cell in &cells {
        let servers = of(cell);
        assert!(servers.contains(&"gopherstore"), "{cell}: {servers:?}");
        assert!(servers.contains(&"redis"), "{cell}: {servers:?}");
    }
    assert!(of("get-4x128").contains(&"memcached"), "{text}");
    assert!(of("get-4x128").contains(&"echo"), "{text}");
    assert!(of("interval-set-4x128").contains(&"in-memory"), "{text}");
    assert!(!of("get-4x128").contains(&"in-memory"), "{text}");
    let figure = |cell: &str, server: &str, name: &str| -> f64 {
        let mut all = readings.iter();
        let one = all.find(|one| one["cell"] == cell && one["server"] == server);
        one.unwrap()["figures"][name].as_f64().unwrap()
    };
    // A record has 87 bytes, and its group 88 more.
    let written = "bytes written to files ÷ those of keys and values";
    let amplification = figure("always-set-1x1", "gopherstore", written);
    assert!(amplification > 2.0, "{text}");
    // The file has each key, and so the restarted server.
    for cell in ["restart-snapshot", "restart-log"] {
        for server in ["gopherstore", "redis"] {
            let mib = figure(cell, server, "MiB of files");
            assert!(mib > 0.01, "{cell} of {server}: {text}");
        }
    }
    assert_eq!(working_in(&dir), 0, "something that it started is left");

    if tools::are_there(&["python3"]) {
        let plot = root().join("scripts/plot-performance.py");
        let svg = output(Command::new(plot).arg(dir.join("readings")));
        assert!(
            svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"),
            "{svg}"
        );
        for title in ["keys", "value size", "connections", "followers"] {
            assert!(svg.contains(title), "{title}: {svg}");
        }
    }
}

#[test]
fn a_server_that_is_not_installed_is_named_and_left_out() {
    let tools = ["bash", "dirname", "readlink", "uname"];
    if !tools::are_there(&tools) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    for name in tools {
        let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
        let program = places.find(|program| program.is_file()).unwrap();
        std::os::unix::fs::symlink(program, dir.path().join(name)).unwrap();
    }
    let arguments = ["--smoke", "--cells", "always-set-1x1"];
    let mut command = bench(dir.path());
    let run = command.args(arguments).env("PATH", dir.path());
    let run = run.output().unwrap();
    assert!(run.status.success(), "{}", both(&run));
    let (table, errors) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(table.contains("| `always-set-1x1`: "), "{table}");
    assert!(!table.contains("redis"), "{table}");
    assert!(errors.contains("redis-server is not installed"), "{errors}");
}

#[test]
fn an_interrupted_measurement_leaves_nothing_behind() {
    if !peers_are_installed() {
        return;
    }
    for signal in ["INT", "TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        // It would take an hour.
        let arguments = [
            "--cells",
            "set-replicated",
            "--seconds",
            "3600",
            "--json",
            "readings",
        ];
        let mut child = bench(&dir)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Itself, three nodes, and three of redis-server.
        wait_for("all servers", || (working_in(&dir) == 7).then_some(()));
        assert!(tools::signal(child.id(), signal));
        let status = wait_for("the end", || child.try_wait().unwrap());
        let mut lines = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut lines).unwrap();
        assert_eq!(status.code(), Some(130), "{signal}: {lines}");
        // Before it a line may name a server that is not installed.
        assert!(lines.contains("interrupted"), "{signal}: {lines}");
        assert_eq!(working_in(&dir), 0, "{signal}: something is left");
    }
}

#[test]
fn a_breakdown_of_requests_has_every_part_and_server() {
    if !tools::are_there(&["python3", "taskset", "perf", "addr2line"]) || !peers_are_installed() {
        return;
    }
    let mut perf = Command::new("perf");
    perf.args(["stat", "-a", "-e", "raw_syscalls:sys_enter", "true"]);
    let looked = perf.output().unwrap();
    if !looked.status.success() {
        tools::skip(&format!(
            "perf may not look at other programs: {}",
            both(&looked)
        ));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let tables = output(script(&dir, "breakdown.py").arg("--smoke"));
    let row = |start: &str| -> Vec<&str> {
        let line = tables.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("{start}: {tables}"));
        line.split('|').map(str::trim).collect()
    };
    // Nothing that there must be takes part in so few samples, but for this.
    for part in ["system: sending", "not placed", "**all**"] {
        for ns in &row(&format!("| {part} |"))[2..7] {
            assert!(ns.trim_matches('*').parse::<f64>().is_ok(), "{tables}");
        }
    }
    for server in ["GopherStore", "redis-server", "memcached", "echo"] {
        assert_eq!(row(&format!("| {server}")).len(), 11, "{tables}");
    }
    assert!(
        tables.contains("A switch of threads on one core"),
        "{tables}"
    );
    assert_eq!(working_in(&dir), 0, "something that it started is left");
}

#[test]
fn instructions_are_counted_and_compared_with_those_that_were_saved() {
    if !tools::are_there(&["bash", "valgrind"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let count = |arguments: &[&str]| {
        let mut command = script(dir.path(), "count-instructions.sh");
        command.env("GOPHERSTORE_COUNT", example("count"));
        output(command.arg("--smoke").args(arguments))
    };
    let first = count(&["--save", "before"]);
    assert_eq!(first.lines().count(), 20, "{first}");
    let compared = count(&["--baseline", "before"]);
    assert_eq!(compared.lines().count(), 20, "{compared}");
    for (line, found) in first.lines().zip(compared.lines()).skip(1) {
        let (instructions, name) = line.trim_start().split_once("  ").unwrap();
        assert!(instructions.parse::<f64>().unwrap() > 10.0, "{first}");
        assert!(found.ends_with(&format!("%  {name}")), "{compared}");
        let figures: Vec<&str> = found.split_whitespace().collect();
        assert_eq!(figures[0], instructions, "{compared}");
        // The hash key is another one, and with so few calls that shows.
        let change: f64 = figures[2].trim_end_matches('%').parse().unwrap();
        assert!(change.abs() < 20.0, "{name}: {compared}");
    }
}
