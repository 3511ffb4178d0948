//! The terminal sessions of the documents, run at a terminal as they stand there.
//!
//! What is run is each `console` block: a line that begins with `$ ` is typed, and the lines after it are what comes of
//! it, with `[..]` for what varies and `...` for any lines. Every command has to end with 0; one that is to fail shows
//! its code with `; echo $?`. An HTML comment `<!-- session … -->` is run too, and not shown to readers: it waits for
//! what a reader would have waited for (`soon COMMAND`, `says ADDR LINE-OF-ITS-STATUS`), or makes the trouble that the
//! text speaks of (`node NAME` starts one).
//!
//! Each document is one session in a folder of its own, where `scripts`, `cluster.toml` and `target/release` are as in
//! a clone after its first build. Its nodes are at ports of their own; in what is typed and in what is printed
//! they stand as 8000, 8001, 8002, and 8003 for one more.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapbox::IntoData;
use socket2::Socket;
use tempfile::TempDir;

use crate::support::node::PATIENCE;
use crate::support::proxy::reserve_port;
use crate::support::tools;
use crate::{CLI, SERVER, both, root};

/// Separates, in what the terminal shows, one step from the next.
const MARK: char = '\u{1}';

/// What is typed, and what has to come of it; nothing where nobody looks.
#[derive(Debug)]
struct Step {
    typed: String,
    expected: Option<String>,
}

/// The steps of a document.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```console" {
            for line in lines.by_ref().take_while(|line| *line != "```") {
                if let Some(typed) = line.strip_prefix("$ ") {
                    steps.push(Step {
                        typed: typed.to_owned(),
                        expected: Some(String::new()),
                    });
                    continue;
                }
                let step = steps.last_mut().expect("a command before its output");
                match (&mut step.expected, step.typed.ends_with('\\')) {
                    (Some(expected), false) => *expected += &format!("{line}\n"),
                    (_, true) => step.typed += &format!("\n{line}"),
                    (None, _) => panic!("output without a command: {line}"),
                }
            }
        } else if line == "<!-- session" {
            let typed: Vec<&str> = lines.by_ref().take_while(|line| *line != "-->").collect();
            steps.push(Step {
                typed: typed.join("\n"),
                expected: None,
            });
        }
    }
    steps
}

/// The folder of a session. What it started ends with it.
struct Sandbox {
    dir: TempDir,
    /// With the ports as they are, and as documents have them.
    addrs: Vec<(String, String)>,
    _reserved: Vec<Socket>,
}

impl Sandbox {
    fn new() -> Sandbox {
        let dir = tempfile::tempdir().unwrap();
        let mut config = "cluster = \"demo\"\nleader = \"n1\"\n".to_owned();
        let mut addrs = Vec::new();
        let mut reserved = Vec::new();
        // Three nodes, and an address to move one to.
        for number in 1..=4 {
            let (socket, addr) = reserve_port();
            reserved.push(socket);
            if number <= 3 {
                config += &format!("[[node]]\nname = \"n{number}\"\naddr = \"{addr}\"\n");
            }
            addrs.push((addr.port().to_string(), (7_999 + number).to_string()));
        }
        // As the defaults, but that nobody waits for 5 seconds.
        config += "[replication]\nheartbeat_interval_ms = 100\nleader_timeout_ms = 1000\n";
        fs::write(dir.path().join("cluster.toml"), config).unwrap();
        symlink(root().join("scripts"), dir.path().join("scripts")).unwrap();
        symlink(root().join("docs"), dir.path().join("docs")).unwrap();
        let built = dir.path().join("target/release");
        fs::create_dir_all(&built).unwrap();
        symlink(CLI, built.join("gopherstore-cli")).unwrap();
        symlink(SERVER, built.join("gopherstore-server")).unwrap();
        Sandbox {
            dir,
            addrs,
            _reserved: reserved,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// As it is typed here.
    fn real(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (real, documented) in &self.addrs {
            for separator in [":", " "] {
                let from = format!("127.0.0.1{separator}{documented}");
                text = text.replace(&from, &format!("127.0.0.1{separator}{real}"));
            }
        }
        text
    }

    /// As a document has it.
    fn documented(&self, text: &str) -> String {
        let mut text = text.replace('\r', "");
        for (real, documented) in &self.addrs {
            text = text.replace(
                &format!("127.0.0.1:{real}"),
                &format!("127.0.0.1:{documented}"),
            );
        }
        // Above a column of ports that are a digit longer.
        text.replace("address          role", "address         role")
    }

    /// Processes that work in this folder.
    fn processes(&self) -> Vec<String> {
        let of_here = |entry: fs::DirEntry| {
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            (cwd == fs::canonicalize(self.path()).ok()?)
                .then(|| entry.file_name().to_string_lossy().into_owned())
        };
        let entries = fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| of_here(entry.ok()?)).collect()
    }

    /// What the steps show at a terminal, and the code that each ends with.
    fn run(&self, steps: &[Step]) -> Vec<(String, i32)> {
        let folder = self.path().join("steps");
        fs::create_dir(&folder).unwrap();
        // Read one after another, so that an alias is known to the steps after it.
        let mut session = "shopt -s expand_aliases\nstty cols 120 rows 50 -echo\nstatus=0\n\
            soon() { local end=$((SECONDS + 20)); until eval \"$*\"; do ((SECONDS < end)) || return 1; \
            sleep 0.02; done; }\n\
            says() { soon \"target/release/gopherstore-cli --addr $1 status 2>&1 | grep -q '^$2$'\"; }\n\
            node() { scripts/start-node.sh $1 >run/$1.out 2>>run/$1.log & echo $! >run/$1.pid; disown; }\n"
            .to_owned();
        for (number, step) in steps.iter().enumerate() {
            let file = folder.join(number.to_string());
            fs::write(&file, self.real(&step.typed) + "\n").unwrap();
            session += &format!(
                "(exit $status); . {0}; status=$?; printf '{MARK}%s{MARK}' $status\n",
                file.display()
            );
        }
        let script = folder.join("session");
        fs::write(&script, session).unwrap();
        // `script` hands this to $SHELL. Where that one stayed in between, the session would be in the background of
        // its terminal and stop as soon as it sets a width.
        let command = format!(
            "exec timeout {} bash {}",
            2 * PATIENCE.as_secs(),
            script.display()
        );
        let run = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .current_dir(self.path())
            .env("GOPHERSTORE_SERVER", "target/release/gopherstore-server")
            .env("GOPHERSTORE_CLI", "target/release/gopherstore-cli")
            .env("GOPHERSTORE_ADDR", format!("127.0.0.1:{}", self.addrs[0].0))
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1")
            .env("TERM", "xterm")
            // One that does not leave its place to its last command by itself.
            .env("SHELL", "/bin/sh")
            .output()
            .unwrap();
        let shown = both(&run);
        let parts: Vec<&str> = shown.split(MARK).collect();
        let results: Vec<(String, i32)> = parts
            .chunks_exact(2)
            .map(|part| (self.documented(part[0]), part[1].parse().unwrap()))
            .collect();
        assert_eq!(
            results.len(),
            steps.len(),
            "the session broke off:\n{shown}"
        );
        results
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for pid in self.processes() {
            tools::signal(pid, "KILL");
        }
    }
}

fn check(document: &str) {
    if !tools::are_there(&["bash", "script", "timeout"]) {
        return;
    }
    let path: PathBuf = root().join(document);
    let mut steps = steps(&fs::read_to_string(path).unwrap());
    let uses_netcat = |step: &Step| step.typed.contains("| nc ");
    if steps.iter().any(uses_netcat) && !tools::are_there(&["nc", "xxd"]) {
        steps.retain(|step| !uses_netcat(step));
    }
    let shown_count = steps.iter().filter(|step| step.expected.is_some()).count();
    assert!(shown_count > 3, "{document} has no sessions");
    let sandbox = Sandbox::new();
    let results = sandbox.run(&steps);
    let (mut expected, mut actual) = (String::new(), String::new());
    for (step, (shown, code)) in steps.iter().zip(results) {
        let typed = &step.typed;
        assert_eq!(code, 0, "{document}: $ {typed}\n{shown}");
        if let Some(output) = &step.expected {
            expected += &format!("$ {typed}\n{output}");
            actual += &format!("$ {typed}\n{shown}");
        }
    }
    // Once the session is over nothing of it is left.
    let left = sandbox.processes();
    // Backslashes are what was typed, and no separators of paths.
    snapbox::Assert::new()
        .normalize_paths(false)
        .eq(actual, expected.into_data());
    assert!(left.is_empty(), "{document} leaves processes: {left:?}");
}

#[test]
fn the_sessions_of_the_readme_are_as_it_says() {
    check("README.md");
}

#[test]
fn the_sessions_of_the_operators_text_are_as_it_says() {
    check("docs/operating.md");
}

#[test]
fn steps_are_commands_with_what_comes_of_them() {
    let text = "```sh\n$ no\n```\n<!-- session\nsoon true\n-->\n```console\n$ a \\\n  b\nx\ny\n$ c\n```\n$ no\n";
    let steps = steps(text);
    let steps: Vec<(&str, Option<&str>)> = steps
        .iter()
        .map(|step| (&*step.typed, step.expected.as_deref()))
        .collect();
    assert_eq!(
        steps,
        [
            ("soon true", None),
            ("a \\\n  b", Some("x\ny\n")),
            ("c", Some(""))
        ]
    );
}

/// A document, by its path from the root.
fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// What stands in backticks in a text.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_operators_text_explains_every_line_of_a_status() {
    let protocol = document("docs/GBP.md");
    let (_, section) = protocol.split_once("\n**STATUS**").expect("its section");
    let (section, _) = section.split_once("\n**DISCARD**").expect("its end");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let keys: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert!(keys.len() > 20, "{keys:?}");
    let text = document("docs/operating.md");
    let explained: Vec<&str> = quoted(&text)
        .into_iter()
        .map(|key| key.split(": ").next().unwrap_or(key))
        .collect();
    for key in keys {
        assert!(explained.contains(&key), "no {key} in docs/operating.md");
    }
}

#[test]
fn the_tests_that_the_operators_text_names_are_there() {
    let faults = document("tests/cluster/faults.rs");
    let text = document("docs/operating.md");
    let is_test = |word: &&str| word.matches('_').count() > 4;
    let names: Vec<&str> = quoted(&text).into_iter().filter(is_test).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(faults.contains(&format!("\nfn {name}()")), "no test {name}");
    }
}
