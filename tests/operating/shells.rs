//! Completions in the shells themselves, and man pages in the programs that show them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::node::PATIENCE;
use crate::support::tools;
use crate::{CLI, PROGRAMS, output, path, root};

/// A folder with the scripts of a shell, a `cluster.toml` and a file.
fn scripts(shell: &str) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(root().join("cluster.toml"), dir.path().join("cluster.toml")).unwrap();
    let paths = PROGRAMS.map(|(name, program)| {
        let what = format!("complete-{shell}");
        let script = output(Command::new(program).args(["--generate", &what]));
        assert!(script.contains(name), "{script}");
        let path = dir.path().join(format!("{name}.{shell}"));
        fs::write(&path, script).unwrap();
        path
    });
    (dir, paths.into())
}

/// The commands that the program knows, as its help lists them.
fn commands() -> Vec<String> {
    let help = output(Command::new(CLI).arg("--help"));
    let (_, list) = help.split_once("\nCommands:\n").expect("its commands");
    let list = list.split("\n\n").next().unwrap().lines();
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.collect()
}

/// The candidates of each shell for a line that is being typed.
fn expectations() -> Vec<(String, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let beginning_with = |prefix: &str| {
        let found = commands()
            .into_iter()
            .filter(|name| name.starts_with(prefix));
        found.collect::<Vec<String>>()
    };
    assert!(beginning_with("st").contains(&"status".to_owned()));
    vec![
        ("gopherstore-cli st".to_owned(), beginning_with("st")),
        (
            "gopherstore-cli --addr 127.0.0.1:8000 st".to_owned(),
            beginning_with("st"),
        ),
        (
            "gopherstore-cli get k --no-re".to_owned(),
            words(&["--no-redirect"]),
        ),
        (
            "gopherstore-cli --config cluster.toml --node ".to_owned(),
            words(&["n1", "n2", "n3"]),
        ),
        (
            "gopherstore-server --node ".to_owned(),
            words(&["n1", "n2", "n3"]),
        ),
        (
            "gopherstore-server --check".to_owned(),
            words(&["--check-config"]),
        ),
    ]
}

#[test]
fn bash_completes_commands_options_and_nodes() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let (dir, paths) = scripts("bash");
    for (line, expected) in expectations() {
        // Readline does this at TAB.
        let script = format!(
            "for file in {}; do source \"$file\"; done\n\
             COMP_LINE=$1; COMP_POINT=${{#1}}\n\
             program=${{1%% *}}\n\
             [[ $(complete -p \"$program\") =~ -F\\ ([^ ]+) ]]\n\
             \"${{BASH_REMATCH[1]}}\" \"$program\" '' ''\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            paths
                .iter()
                .map(|path| format!("'{}'", path.display()))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let offered = output(
            Command::new("bash")
                .args(["--norc", "-uc", &script, "bash", &line])
                .current_dir(dir.path())
                .env("PATH", path()),
        );
        assert_eq!(offered.lines().collect::<Vec<_>>(), expected, "{line:?}");
    }
}

#[test]
fn bash_completes_only_what_it_took_for_the_last_word() {
    if !tools::are_there(&["bash"]) {
        return;
    }
    let (dir, paths) = scripts("bash");
    let script = "source \"$1\"; COMP_LINE='gopherstore-cli --config=cluster.toml --node=n'\n\
                  COMP_POINT=${#COMP_LINE}; _gopherstore_cli; echo \"${COMPREPLY[@]}\"";
    let offered = output(
        Command::new("bash")
            .args(["--norc", "-uc", script, "bash", paths[0].to_str().unwrap()])
            .current_dir(dir.path())
            // A service's shell may have none, and -u makes that an error.
            .env_remove("HOME")
            .env("PATH", path()),
    );
    assert_eq!(offered, "n1 n2 n3\n");
}

#[test]
fn bash_completes_at_a_terminal() {
    if !tools::are_there(&["bash", "script"]) {
        return;
    }
    let (dir, paths) = scripts("bash");
    let sourced = paths
        .iter()
        .map(|path| format!("source '{}'\n", path.display()));
    // ^B, once the line is complete, shows it and ends the shell.
    let start = format!(
        "{}bind -x '\"\\C-b\": printf \"[[[%s]]]\" \"$READLINE_LINE\"; exit'\n",
        sourced.collect::<String>()
    );
    let file = dir.path().join("rc");
    fs::write(&file, start).unwrap();
    let command = format!("bash --noprofile --rcfile '{}' -i", file.display());
    for (typed, expected) in [
        ("gopherstore-cli stat", "gopherstore-cli status "),
        ("gopherstore-cli --config clus", "--config cluster.toml "),
        ("gopherstore-cli --config=clus", "--config=cluster.toml "),
        (
            "gopherstore-cli --addr 127.0.0.1:8000 stat",
            " 127.0.0.1:8000 status ",
        ),
        ("gopherstore-server --check", "--check-config "),
    ] {
        let mut script = Command::new("script");
        script
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .current_dir(dir.path())
            .env("TERM", "dumb")
            .env("PATH", path());
        let shown = given(&mut script, &format!("{typed}\t\x02"));
        let line = shown
            .rsplit_once("[[[")
            .and_then(|(_, rest)| rest.split_once("]]]"));
        let line = line
            .unwrap_or_else(|| panic!("{typed:?}: no line in {shown:?}"))
            .0;
        assert!(line.ends_with(expected), "{typed:?}: {line:?}");
    }
}

#[test]
fn fish_completes_commands_options_nodes_and_files() {
    if !tools::are_there(&["fish"]) {
        return;
    }
    let (dir, paths) = scripts("fish");
    let mut expectations = expectations();
    for line in [
        "gopherstore-cli --config clu",
        "gopherstore-cli --config=clu",
    ] {
        let words = line.split(' ').next_back().unwrap();
        let expected = words.replace("clu", "cluster.toml");
        expectations.push((line.to_owned(), vec![expected]));
    }
    for (line, expected) in expectations {
        let script = "for file in $argv[2..-1]; source $file; end; complete -C $argv[1]";
        let offered = output(
            Command::new("fish")
                .args(["--no-config", "-c", script, &line])
                .args(&paths)
                .current_dir(dir.path())
                .env("HOME", dir.path())
                .env("PATH", path()),
        );
        let words = offered.lines().map(|line| line.split('\t').next().unwrap());
        let mut words: Vec<&str> = words.collect();
        words.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(words, expected, "{line:?}: {offered}");
    }
}

#[test]
fn zsh_completes_at_a_terminal() {
    if !tools::are_there(&["zsh", "timeout"]) {
        return;
    }
    let (dir, paths) = scripts("zsh");
    let sourced = paths
        .iter()
        .map(|path| format!("source '{}'\n", path.display()));
    let start = format!(
        "unset zle_bracketed_paste; PS1='(ready)'; autoload -Uz compinit; compinit -u -D\n{}\
         show() {{ print -r -- \"[[[$BUFFER]]]\"; }}; zle -N show; bindkey '^B' show\n",
        sourced.collect::<String>()
    );
    fs::write(dir.path().join(".zshrc"), start).unwrap();
    for (typed, expected) in [
        ("gopherstore-cli stat", "gopherstore-cli status "),
        ("gopherstore-cli get k --no-re", "--no-redirect "),
        ("gopherstore-cli --config clus", "--config cluster.toml "),
        ("gopherstore-cli --config=clus", "--config=cluster.toml "),
        (
            "gopherstore-server --node n1 --check",
            "gopherstore-server --node n1 --check-config ",
        ),
    ] {
        // At a terminal that zsh makes itself; ^B, once the line is complete, shows it.
        let script = "zmodload zsh/zpty\n\
            zpty -b z zsh -i\n\
            zpty -r z out '*(ready)*'\n\
            zpty -w -n z \"$1\"$'\\t\\x02'\n\
            zpty -r z out '*]]]*'\n\
            print -r -- $out\n\
            zpty -d z";
        let seconds = PATIENCE.as_secs().to_string();
        let shown = output(
            Command::new("timeout")
                .args([&*seconds, "zsh", "-f", "-c", script, "zsh", typed])
                .env("ZDOTDIR", dir.path())
                .current_dir(dir.path())
                .env("HOME", dir.path())
                .env("TERM", "dumb")
                .env("PATH", path()),
        );
        let (_, line) = shown.rsplit_once("[[[").expect("the line");
        let line = line.split("]]]").next().unwrap();
        assert!(line.ends_with(expected), "{typed:?}: {line:?}");
    }
}

#[test]
fn man_pages_have_all_that_the_help_has_and_no_faults() {
    for (name, program) in PROGRAMS {
        let page = output(Command::new(program).args(["--generate", "man"]));
        let plain = page.replace("\\-", "-");
        let help = output(Command::new(program).arg("--help"));
        let options = help
            .split_whitespace()
            .filter(|word| word.starts_with("--"));
        let mut count = 0;
        for option in options {
            let option = option.trim_end_matches([',', ';', '.']);
            count += 1;
            assert!(plain.contains(option), "{name}: no {option}");
        }
        assert!(count > 3, "{help}");
        if name == "gopherstore-cli" {
            for command in commands() {
                assert!(page.contains(&format!("\n.SS {command}\n")), "no {command}");
            }
        }
        if tools::are_there(&["groff"]) {
            let faults = filter("groff", &["-man", "-Tutf8", "-ww", "-z"], &page);
            assert_eq!(faults, "", "{name}");
        }
        if tools::are_there(&["mandoc"]) {
            let faults = filter("mandoc", &["-Tlint", "-Wwarning"], &page);
            // The page bears no date, so that a program always makes the same.
            let faults: Vec<&str> = faults
                .lines()
                .filter(|line| !line.contains("cannot parse date"))
                .collect();
            assert!(faults.is_empty(), "{name}: {faults:?}");
        }
        if tools::are_there(&["man"]) {
            let shown = filter("man", &["-l", "-"], &page);
            assert!(
                shown.contains("SYNOPSIS") && shown.contains(name),
                "{shown}"
            );
        }
    }
}

/// The output of a program, on either stream, with this `input`.
fn filter(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    given(command.args(arguments).env("MANWIDTH", "80"), input)
}

fn given(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A page is larger than a pipe; none of these programs answers before it has read all.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    crate::both(&child.wait_with_output().unwrap())
}
