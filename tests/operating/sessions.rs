//! Runs the terminal sessions of the documents in a terminal.
//!
//! Each `console` block is run: a line that begins with `$ ` is typed, and the lines after it are its output. Times and
//! the widths of columns may differ ([`comparable`]); everything else is as the document shows it. Nothing else is run,
//! so what a reader sees is what works. Every command has to end with 0; one that is to fail shows its code with
//! `; echo $?`.
//!
//! Each document is one session in a folder of its own, where `scripts`, `cluster.toml` and `target/release` are as in
//! a clone after its first build. Its nodes are at ports of their own; in what is typed and in what is printed
//! they stand as 8000, 8001, 8002, and 8003 for one more. `bin` holds the programs of `docs/recipes.md`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use gopherstore::wire::Opcode;
use snapbox::IntoData;

use crate::checkout::Checkout;
use crate::support::node::PATIENCE;
use crate::support::tools;
use crate::{CLI, both, output, recipes, root};

/// Separates, in what the terminal shows, one step from the next.
const MARK: char = '\u{1}';

/// A typed line, and its output.
#[derive(Debug)]
struct Step {
    typed: String,
    expected: String,
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
                        expected: String::new(),
                    });
                    continue;
                }
                let step = steps.last_mut().expect("a command before its output");
                if step.typed.ends_with('\\') {
                    step.typed += &format!("\n{line}");
                } else {
                    step.expected += &format!("{line}\n");
                }
            }
        }
    }
    steps
}

/// The folder of a session.
struct Sandbox {
    checkout: Checkout,
    /// With the ports as they are, and as documents have them.
    addrs: Vec<(String, String)>,
}

impl Sandbox {
    fn new() -> Sandbox {
        let mut checkout = Checkout::new();
        // Three nodes, and an address to move one to.
        let mut addrs = checkout.configure("cluster.toml", "demo", 3);
        addrs.push(checkout.address());
        let ports = (8000..).zip(&addrs);
        let addrs =
            ports.map(|(documented, addr)| (addr.port().to_string(), documented.to_string()));
        let addrs = addrs.collect();
        symlink(root().join("docs"), checkout.path().join("docs")).unwrap();
        recipes::install(&checkout.path().join("bin"));
        Sandbox { checkout, addrs }
    }

    /// As it is typed here.
    fn real(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (real, documented) in &self.addrs {
            for separator in [":", " ", "/"] {
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
        text
    }

    /// The output of the steps at a terminal, and the code that each ends with.
    fn run(&self, steps: &[Step]) -> Vec<(String, i32)> {
        let folder = self.checkout.path().join("steps");
        fs::create_dir(&folder).unwrap();
        // Read one after another, so that an alias is known to the steps after it.
        let mut session =
            "shopt -s expand_aliases\nstty cols 120 rows 50 -echo\nstatus=0\n".to_owned();
        for (number, step) in steps.iter().enumerate() {
            let file = folder.join(number.to_string());
            fs::write(&file, self.real(&step.typed) + "\n").unwrap();
            session += &format!(
                "(exit $status); . steps/{number}; status=$?; printf '{MARK}%s{MARK}' $status\n"
            );
        }
        let script = folder.join("session");
        fs::write(&script, session).unwrap();
        // `script` hands this to $SHELL. Where that one stayed in between, the session would be in the background of
        // its terminal and stop as soon as it sets a width.
        let command = format!("exec timeout {} bash steps/session", 2 * PATIENCE.as_secs());
        let run = self
            .checkout
            .command("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("GOPHERSTORE_ADDR", format!("127.0.0.1:{}", self.addrs[0].0))
            .env_remove("CLICOLOR_FORCE")
            // A shell complains of a locale that the machine lacks.
            .env("LC_ALL", "C")
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

/// Output without what differs from one run to the next: each time in milliseconds is `N ms`, and each row of blanks is
/// one.
fn comparable(output: &str) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let masked = words.iter().enumerate().map(|(at, word)| {
            let is_time = words.get(at + 1).is_some_and(|unit| unit.starts_with("ms"));
            if is_time && word.ends_with(|last: char| last.is_ascii_digit()) {
                format!("{}N", word.trim_end_matches(|c: char| c.is_ascii_digit()))
            } else {
                (*word).to_owned()
            }
        });
        masked.collect::<Vec<String>>().join(" ") + "\n"
    };
    output.lines().map(line).collect()
}

#[test]
fn outputs_differ_in_all_but_times_and_widths() {
    let shown = "n2  0 (12 ms)  up    481 ms  0 B\n";
    assert_eq!(comparable(shown), "n2 0 (N ms) up N ms 0 B\n");
    assert_eq!(
        comparable("n2 3 (7 ms) up 1 ms 0 B"),
        comparable(&shown.replace("0 (", "3 ("))
    );
    assert_ne!(comparable("1 key"), comparable("2 keys"));
}

/// A step that sends the bytes of one with netcat by bash alone, and shows nothing, so that the steps after it find the
/// same data.
fn without_netcat(step: &Step) -> Option<Step> {
    let (bytes, rest) = step.typed.split_once(" | nc -N ")?;
    let (addr, _) = rest.split_once(" | xxd")?;
    let (host, port) = addr.split_once(' ')?;
    let connect = format!("exec 9<>/dev/tcp/{host}/{port}");
    Some(Step {
        // The response has come when its header has.
        typed: format!("{connect} && {bytes} >&9 && head -c 5 <&9 >/dev/null && exec 9>&-"),
        expected: String::new(),
    })
}

fn check(document: &str) {
    if !tools::are_there(&["bash", "script", "timeout"]) {
        return;
    }
    let path: PathBuf = root().join(document);
    let mut steps = steps(&fs::read_to_string(path).unwrap());
    let uses_netcat = steps.iter().any(|step| without_netcat(step).is_some());
    if uses_netcat && !tools::are_there(&["nc", "xxd"]) {
        for step in &mut steps {
            if let Some(other) = without_netcat(step) {
                *step = other;
            }
        }
    }
    assert!(steps.len() > 3, "{document} has no sessions");
    let sandbox = Sandbox::new();
    let results = sandbox.run(&steps);
    let (mut expected, mut actual) = (String::new(), String::new());
    for (step, (shown, code)) in steps.iter().zip(results) {
        let typed = &step.typed;
        assert_eq!(code, 0, "{document}: $ {typed}\n{shown}");
        expected += &format!("$ {typed}\n{}", comparable(&step.expected));
        actual += &format!("$ {typed}\n{}", comparable(&shown));
    }
    // Once the session is over nothing of it is left.
    let left = sandbox.checkout.processes();
    // As they are: without wildcards, and with backslashes that separate no paths.
    snapbox::Assert::new()
        .normalize_paths(false)
        .eq(actual, expected.into_data().raw());
    assert!(left.is_empty(), "{document} leaves processes: {left:?}");
}

#[test]
fn the_sessions_of_the_readme_run_as_shown() {
    check("README.md");
}

#[test]
fn the_sessions_of_operating_md_run_as_shown() {
    check("docs/operating.md");
}

#[test]
fn the_sessions_of_recipes_md_run_as_shown() {
    if tools::are_there(&["flock", "mktemp", "sleep", "sort"]) {
        check("docs/recipes.md");
    }
}

#[test]
fn steps_are_commands_with_their_output() {
    let text = "```sh\n$ no\n```\n```console\n$ a \\\n  b\nx\ny\n$ c\n```\n$ no\n";
    let steps = steps(text);
    let steps: Vec<(&str, &str)> = steps
        .iter()
        .map(|step| (&*step.typed, &*step.expected))
        .collect();
    assert_eq!(steps, [("a \\\n  b", "x\ny\n"), ("c", "")]);
}

/// A document, by its path from the root.
fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The words in backticks in a text.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn operating_md_explains_every_line_of_a_status() {
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
fn the_readme_names_every_operation_and_command() {
    let text = document("README.md");
    let (_, table) = text
        .split_once("\n| operation | command |")
        .expect("the table");
    let (table, _) = table.split_once("\n\n").expect("its end");
    // Those of a client: the frames of replication are not among them.
    for opcode in Opcode::ALL.iter().filter(|opcode| opcode.byte() < 0x60) {
        let name = opcode.name();
        let is_named = |row: &str| row.split(['|', ',', ' ']).any(|word| word == name);
        assert!(
            table.lines().any(is_named),
            "no {name} in the table of README.md"
        );
    }
    let help = output(Command::new(CLI).arg("--help"));
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let list = list.split("\n\n").next().unwrap().lines();
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
    for (name, _) in names.filter(|(name, _)| !name.is_empty()) {
        let is_named = text.contains(&format!("`{name}")) || text.contains(&format!("gs {name}"));
        assert!(is_named, "no {name} in README.md");
    }
}

#[test]
fn the_tests_that_operating_md_names_exist() {
    let folders = [
        "tests/cluster",
        "tests/server",
        "tests/operating",
        "tests/cli",
        "src/storage",
    ];
    let files = folders.map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let tests: String = files
        .into_iter()
        .flatten()
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let text = document("docs/operating.md");
    let is_test = |word: &&str| word.matches('_').count() > 4;
    let names: Vec<&str> = quoted(&text).into_iter().filter(is_test).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("\nfn {name}()")), "no test {name}");
    }
}

/// The files whose errors end the start of a node, or `gopherstore-cli check`.
const WITH_ERRORS: [&str; 12] = [
    "src/persistence/copying.rs",
    "src/persistence/opening.rs",
    "src/persistence/recovery.rs",
    "src/persistence/writing.rs",
    "src/server/data_dir.rs",
    "src/storage/error.rs",
    "src/storage/files.rs",
    "src/storage/identity.rs",
    "src/storage/recovery.rs",
    "src/storage/snapshot.rs",
    "src/storage/spares.rs",
    "src/storage/writer.rs",
];

/// The string literals in code. Bugs, which `unreachable!` names, are none of them.
fn literals(code: &str) -> Vec<String> {
    let lines = code.lines().filter(|line| {
        let line = line.trim_start();
        !line.starts_with("//") && !line.contains("unreachable!(")
    });
    let code: String = lines.map(|line| line.to_owned() + "\n").collect();
    let code = code.replace("'\"'", "").replace("\\\"", "'");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let texts = code.split('"').skip(1).step_by(2);
    texts
        .map(|text| words(&text.replace("\\\n", " ")))
        .collect()
}

/// The longest piece of a message that is always the same, before the remedy; `None` where it is shorter than three
/// words, as names of files and operations are.
fn fixed_part(message: &str) -> Option<&str> {
    let message = message.split(';').next()?;
    let pieces = message.split(['{', '}']).step_by(2);
    let piece = pieces.max_by_key(|piece| piece.len())?;
    let piece = piece.trim_matches([' ', ',', ':']);
    let words = piece
        .split(' ')
        .filter(|word| word.contains(char::is_alphanumeric));
    (words.count() >= 3).then_some(piece)
}

#[test]
fn operating_md_explains_every_error_of_a_data_directory() {
    let text = document("docs/operating.md");
    let (_, section) = text
        .split_once("\n### Errors of a data directory\n")
        .expect("its section");
    let (section, _) = section.split_once("\n### ").expect("its end");
    let explained = quoted(section).join("\n");
    let mut messages = Vec::new();
    for file in WITH_ERRORS {
        let code = document(file);
        let code = code.split("\nmod tests {").next().unwrap_or_default();
        messages.extend(literals(code));
    }
    for file in ["src/server/disk.rs", "src/server/mod.rs"] {
        for start in [" error!(", " warn!(", " log!("] {
            for call in document(file).split(start).skip(1) {
                let logged = literals(call.split(");").next().unwrap_or_default());
                messages.extend(logged.iter().map(|text| text.replacen("{error}; ", "", 1)));
            }
        }
    }
    let messages: Vec<&str> = messages.iter().filter_map(|it| fixed_part(it)).collect();
    assert!(messages.len() > 30, "{messages:#?}");
    let missing: Vec<&&str> = messages
        .iter()
        .filter(|message| !explained.contains(**message))
        .collect();
    assert!(missing.is_empty(), "not in docs/operating.md: {missing:#?}");
}
