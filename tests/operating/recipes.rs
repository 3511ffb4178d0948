//! Runs the programs of `docs/recipes.md` as they stand, several at a time, against a cluster of real nodes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::cluster::Cluster;
use crate::support::node::wait_for;
use crate::support::tools;
use crate::{both, path, root};

const CONVERGED_WITHIN: Duration = Duration::from_secs(15);

/// Writes each program of the document to a file of its name in `folder`, and returns the names.
pub(crate) fn install(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    fs::create_dir(folder).unwrap();
    let blocks = text.split("\n```sh\n").skip(1);
    let programs = blocks.map(|rest| {
        let (program, _) = rest.split_once("```\n").expect("the end of a block");
        let described = program.strip_prefix("#!/bin/sh\n# ");
        let name = described
            .and_then(|line| line.split([' ', ':']).next())
            .unwrap_or_else(|| panic!("no name in {program}"));
        let file = folder.join(name);
        fs::write(&file, program).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        name.to_owned()
    });
    programs.collect()
}

/// A cluster, and a folder in which the programs run.
struct Sandbox {
    cluster: Cluster,
    dir: TempDir,
}

impl Sandbox {
    fn new() -> Sandbox {
        let cluster = Cluster::start(2);
        cluster.wait_converged(CONVERGED_WITHIN);
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("bin"));
        Sandbox { cluster, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lines of a file. None where it does not exist.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A line of shell, with the programs in front of `$PATH`.
    fn shell_at(&self, node: usize, line: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{}", self.file("bin").display(), path()))
            .env("GOPHERSTORE_ADDR", self.cluster.addr(node).to_string())
            .stdin(Stdio::null());
        for variable in [
            "FILLS",
            "TOKEN",
            "LOCK_SECONDS",
            "SESSION_SECONDS",
            "WORK_PAUSE",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// Output of a line of shell.
    fn run(&self, line: &str) -> Output {
        self.shell_at(0, line).output().unwrap()
    }

    /// Standard output of a line of shell that has to end with this code.
    #[track_caller]
    fn expect(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            both(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a line of shell in a process group of its own. Its output goes to the file `log`.
    fn start_at(&self, node: usize, line: &str) -> Group {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))
            .unwrap();
        let mut command = self.shell_at(node, line);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Group(command.process_group(0).spawn().unwrap())
    }

    fn start(&self, line: &str) -> Group {
        self.start_at(0, line)
    }

    /// Returns the output of the programs in the background.
    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }
}

/// A process with all that it has started, which are gone when the test is.
struct Group(Child);

impl Group {
    /// The code with which the process ends.
    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        wait_for("the end of a program", || self.0.try_wait().unwrap()).code()
    }

    /// Ends all processes at once, as a machine that dies does.
    fn kill(&mut self) {
        tools::signal(format!("-{}", self.0.id()), "KILL");
        self.0.wait().unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits in a shell until the test makes the file `go`; for half a minute at most.
const UNTIL_GO: &str =
    "n=0; until [ -e go ]; do n=$((n + 1)); [ $n -lt 600 ] || exit 99; sleep 0.05; done";

/// Whether the machine has what the programs use.
fn is_there() -> bool {
    tools::are_there(&["flock", "mktemp", "sleep", "sort", "timeout"])
}

#[test]
fn every_block_of_shell_is_a_program_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let names = install(&dir.path().join("bin"));
    let text = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    for name in &names {
        let is_row = |line: &str| line.starts_with("| [") && line.contains(&format!("`{name}`"));
        assert!(text.lines().any(is_row), "{name}");
    }
    assert!(names.len() > 8, "{names:?}");
}

#[test]
fn one_process_at_a_time_holds_the_lock_and_tokens_rise() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    fs::write(sandbox.file("count"), "0").unwrap();
    // Fails where another one is inside, and counts in two steps.
    let inside = "mkdir inside && n=$(cat count) && gopherstore-cli ping >pong && echo $((n + 1)) >count && \
                  echo $TOKEN >>tokens && rmdir inside";
    let contender =
        format!("for i in 1 2 3 4 5; do with-lock shared sh -c '{inside}' || exit; done");
    let mut contenders: Vec<Group> = (0..4).map(|_| sandbox.start(&contender)).collect();
    for contender in &mut contenders {
        assert_eq!(contender.code(), Some(0), "{}", sandbox.log());
    }
    assert_eq!(sandbox.lines("count"), ["20"]);
    let tokens = sandbox.lines("tokens");
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:#?}");
    assert_eq!((tokens.len(), sandbox.log()), (20, String::new()));
    // It is released, also after a command that fails.
    assert_eq!(
        sandbox.expect(7, "with-lock --try shared sh -c 'exit 7'"),
        ""
    );
    sandbox.expect(1, "gopherstore-cli --quiet exists lock:shared");
}

#[test]
fn a_lock_with_a_limit_is_held_by_one_and_released() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let hold =
        &format!("try-lock brief 600 sh -c '[ -n \"$TOKEN\" ] && echo x >>ran && {UNTIL_GO}'");
    let mut contenders: Vec<Group> = (0..4).map(|_| sandbox.start(hold)).collect();
    wait_for("the holder", || sandbox.lines("ran").pop());
    sandbox.expect(9, hold);
    fs::write(sandbox.file("go"), "").unwrap();
    let codes: BTreeSet<Option<i32>> = contenders.iter_mut().map(Group::code).collect();
    assert!(
        codes.is_subset(&BTreeSet::from([Some(0), Some(9)])),
        "{codes:?}"
    );
    sandbox.expect(3, "try-lock brief 600 sh -c 'exit 3'");
    sandbox.expect(124, "try-lock brief 1 tail -f /dev/null");
    sandbox.expect(0, "try-lock brief 600 true");
}

#[test]
fn the_lock_of_a_dead_holder_expires_and_its_token_is_refused() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let hold =
        "LOCK_SECONDS=3 exec with-lock shared sh -c 'echo $TOKEN >first; exec tail -f /dev/null'";
    let mut holder = sandbox.start(hold);
    wait_for("the first holder", || sandbox.lines("first").pop());
    // It is held, and stays so for longer than it lasts without being renewed.
    let held_from = Instant::now();
    while held_from.elapsed() < Duration::from_millis(4_500) {
        sandbox.expect(9, "with-lock --try shared true");
    }
    holder.kill();
    let next = "with-lock shared sh -c 'echo $TOKEN >second; echo new | fenced result'";
    assert_eq!(sandbox.start(next).code(), Some(0), "{}", sandbox.log());
    // The first holder comes back, and writes.
    let late = sandbox.run("echo old | TOKEN=$(cat first) fenced result");
    assert_eq!(late.status.code(), Some(1));
    assert!(both(&late).contains("a later holder of the lock has written result"));
    assert_eq!(sandbox.lines("result"), ["new"]);
    sandbox.expect(0, "echo newer | TOKEN=$(cat second) fenced result");
    assert_eq!(sandbox.lines("result"), ["newer"]);
}

#[test]
fn a_lock_whose_shell_alone_is_killed_is_not_renewed() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let hold =
        "LOCK_SECONDS=3 exec with-lock shared sh -c 'echo $TOKEN >first; exec tail -f /dev/null'";
    let mut holder = sandbox.start(hold);
    wait_for("the first holder", || sandbox.lines("first").pop());
    holder.0.kill().unwrap();
    let mut next = sandbox.start("exec with-lock shared true");
    assert_eq!(next.code(), Some(0), "{}", sandbox.log());
}

#[test]
fn a_holder_that_lost_its_lock_says_so() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let lost = sandbox.run("with-lock shared gopherstore-cli set lock:shared other");
    assert_eq!(lost.status.code(), Some(0));
    assert!(
        both(&lost).contains("lock:shared was lost"),
        "{}",
        both(&lost)
    );
    assert_eq!(
        sandbox.expect(0, "gopherstore-cli get lock:shared"),
        "other"
    );
}

#[test]
fn exactly_as_many_pass_the_limiter_as_it_allows() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    for _ in 0..2 {
        let mut askers: Vec<Group> = (0..16).map(|_| sandbox.start("allow a 5 600")).collect();
        let codes: Vec<Option<i32>> = askers.iter_mut().map(Group::code).collect();
        let count = |code| codes.iter().filter(|got| **got == Some(code)).count();
        assert_eq!((count(0), count(1)), (5, 11), "{codes:?} {}", sandbox.log());
        // The period ends.
        sandbox.expect(0, "gopherstore-cli expire rate:a 1ms");
        wait_for("the next period", || {
            let gone = sandbox
                .run("gopherstore-cli -q exists rate:a")
                .status
                .code()
                == Some(1);
            gone.then_some(())
        });
    }
    // A period ends by itself, although it is asked for meanwhile.
    sandbox.expect(0, "allow b 1 1");
    wait_for("the next period", || {
        sandbox.run("allow b 1 1").status.success().then_some(())
    });
}

/// The milliseconds that a session has left.
#[track_caller]
fn left(sandbox: &Sandbox, id: &str) -> u64 {
    let text = sandbox.expect(0, &format!("gopherstore-cli ttl session:{id}"));
    text.strip_suffix("ms\n").unwrap().parse().unwrap()
}

#[test]
fn a_session_lasts_as_long_as_it_is_used() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let id = sandbox
        .expect(0, "session start alice")
        .trim_end()
        .to_owned();
    let at_first = left(&sandbox, &id);
    assert!(at_first <= 30 * 60 * 1_000, "{at_first}");
    wait_for("time to pass", || {
        (left(&sandbox, &id) < at_first - 200).then_some(())
    });
    let before = left(&sandbox, &id);
    assert_eq!(sandbox.expect(0, &format!("session user {id}")), "alice");
    assert!(left(&sandbox, &id) > before);
    sandbox.expect(0, &format!("session end {id}"));
    assert_eq!(sandbox.expect(1, &format!("session user {id}")), "");

    let id = sandbox.expect(0, "SESSION_SECONDS=1 session start bob");
    let id = id.trim_end();
    wait_for("the end of the session", || {
        let exists = format!("gopherstore-cli -q exists session:{id}");
        (sandbox.run(&exists).status.code() == Some(1)).then_some(())
    });
    assert_eq!(sandbox.expect(1, &format!("session user {id}")), "");
}

#[test]
fn workers_do_each_job_once_while_none_dies() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let add = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do add-job mail \"job $n\"; done";
    assert_eq!(sandbox.expect(0, add).lines().count(), 12);
    let work = "WORK_PAUSE=0.1 exec work mail sh -c 'echo \"$(cat)\" >>done'";
    let _workers: Vec<Group> = (0..3).map(|_| sandbox.start(work)).collect();
    wait_for("the jobs", || {
        sandbox
            .expect(0, "gopherstore-cli scan job:")
            .is_empty()
            .then_some(())
    });
    let mut done = sandbox.lines("done");
    done.sort_unstable();
    let mut jobs: Vec<String> = (1..=12).map(|n| format!("job {n}")).collect();
    jobs.sort_unstable();
    assert_eq!(done, jobs, "{}", sandbox.log());
}

#[test]
fn another_worker_does_the_job_of_one_that_was_killed() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.expect(
        0,
        "add-job mail one && add-job mail two && add-job mail three",
    );
    let stuck = "LOCK_SECONDS=3 exec work mail sh -c 'cat >taken; exec tail -f /dev/null'";
    let mut first = sandbox.start(stuck);
    wait_for("a job in work", || {
        fs::read(sandbox.file("taken"))
            .is_ok_and(|text| text == b"one")
            .then_some(())
    });
    let work = "WORK_PAUSE=0.1 exec work mail sh -c 'cat >>done; echo >>done'";
    let _second = sandbox.start(work);
    wait_for("the other jobs", || {
        (sandbox.lines("done") == ["two", "three"]).then_some(())
    });
    first.kill();
    wait_for("the job of the dead worker", || {
        (sandbox.lines("done") == ["two", "three", "one"]).then_some(())
    });
    wait_for("the end of the job", || {
        sandbox
            .expect(0, "gopherstore-cli scan job:")
            .is_empty()
            .then_some(())
    });
}

#[test]
fn a_job_that_fails_is_done_again() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.expect(0, "add-job mail one");
    let work = "WORK_PAUSE=0.1 exec work mail sh -c 'cat >>tries; echo >>tries; mkdir tried || exit 0; exit 1'";
    let _worker = sandbox.start(work);
    wait_for("the end of the job", || {
        sandbox
            .expect(0, "gopherstore-cli scan job:")
            .is_empty()
            .then_some(())
    });
    assert_eq!(sandbox.lines("tries"), ["one", "one"]);
}

#[test]
fn a_job_that_cannot_be_read_is_neither_done_nor_removed() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.expect(0, "add-job mail one");
    // The first GET fails, as at a node that does not respond in time.
    sandbox.expect(
        0,
        "mkdir failing && {
            echo '#!/bin/sh'
            echo 'case \" $* \" in *\" get \"*) mkdir failed 2>/dev/null && exit 6;; esac'
            echo \"exec $(command -v gopherstore-cli) \\\"\\$@\\\"\"
        } >failing/gopherstore-cli && chmod +x failing/gopherstore-cli",
    );
    let work =
        "PATH=$PWD/failing:$PATH WORK_PAUSE=0.1 exec work mail sh -c 'cat >>done; echo >>done'";
    let _worker = sandbox.start(work);
    wait_for("the end of the job", || {
        sandbox
            .expect(0, "gopherstore-cli scan job:")
            .is_empty()
            .then_some(())
    });
    assert!(sandbox.file("failed").exists());
    assert_eq!(sandbox.lines("done"), ["one"]);
}

#[test]
fn a_slow_command_runs_once_for_all_who_ask() {
    if !is_there() {
        return;
    }
    let sandbox = Sandbox::new();
    let ask = "echo x >>asked; cached slow 600 sh -c 'echo run >>runs; ";
    let ask = &format!("{ask}{UNTIL_GO}; echo 42'");
    let mut askers: Vec<Group> = (0..8).map(|_| sandbox.start(ask)).collect();
    wait_for("all who ask", || {
        let is_all = sandbox.lines("asked").len() == 8 && !sandbox.lines("runs").is_empty();
        is_all.then_some(())
    });
    fs::write(sandbox.file("go"), "").unwrap();
    for asker in &mut askers {
        assert_eq!(asker.code(), Some(0), "{}", sandbox.log());
    }
    assert_eq!(sandbox.log(), "42\n".repeat(8));
    assert_eq!(sandbox.lines("runs"), ["run"]);
    // A failure is not kept, and its code is passed on.
    sandbox.expect(3, "cached failing 600 sh -c 'echo no; exit 3'");
    assert_eq!(sandbox.expect(0, "cached failing 600 echo yes"), "yes\n");
    assert_eq!(sandbox.expect(0, "cached failing 600 echo no"), "yes\n");
    // It expires.
    assert_eq!(sandbox.expect(0, "cached brief 1 echo one"), "one\n");
    wait_for("the value to expire", || {
        (sandbox.expect(0, "cached brief 1 echo two") == "two\n").then_some(())
    });
    // Without a node the command runs.
    let alone = "GOPHERSTORE_ADDR=127.0.0.1:1 cached slow 600 echo alone 2>/dev/null";
    assert_eq!(sandbox.expect(0, alone), "alone\n");
}

#[test]
fn a_file_follows_the_configuration_through_a_restart_of_the_node() {
    if !is_there() {
        return;
    }
    let mut sandbox = Sandbox::new();
    sandbox.expect(
        0,
        "gopherstore-cli set config:a 1 && gopherstore-cli set other 1",
    );
    let _watcher = sandbox.start_at(1, "exec on-change config: write-config app.conf");
    let is = |sandbox: &Sandbox, what: &str, lines: &[&str]| {
        wait_for(what, || (sandbox.lines("app.conf") == lines).then_some(()));
    };
    is(&sandbox, "the first values", &["config:a 1"]);
    for number in 2..=20 {
        let set = format!(
            "gopherstore-cli set config:a {number}; gopherstore-cli put config:b {number} --ttl 1s"
        );
        sandbox.expect(0, &set);
    }
    // One of them expires.
    is(&sandbox, "the last values", &["config:a 20"]);
    sandbox.cluster.kill(1);
    sandbox.expect(
        0,
        "gopherstore-cli del config:a && gopherstore-cli set config:c 3",
    );
    sandbox.cluster.restart(1);
    is(&sandbox, "what changed meanwhile", &["config:c 3"]);
    sandbox.expect(0, "gopherstore-cli set config:c 4");
    is(&sandbox, "what changed afterwards", &["config:c 4"]);
}
