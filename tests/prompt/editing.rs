use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use rustix::termios::LocalModes;
use vt100::Color;

use crate::support::cluster::Cluster;
use crate::support::node::{Node, PATIENCE};
use crate::support::tools;
use crate::terminal::{CTRL_C, CTRL_D, ENTER, Options, TAB, Terminal, UP};

/// A node of its own, and the prompt that it gets.
fn node() -> (Node, String, String) {
    let node = Node::start();
    let addr = node.addr.to_string();
    let prompt = format!("n1 leader {addr}>");
    (node, addr, prompt)
}

fn with<'a>(variables: &[(&'a str, &'a str)]) -> Options<'a> {
    Options {
        variables: variables.to_vec(),
        ..Options::default()
    }
}

#[test]
fn lines_are_kept_across_runs_and_are_private() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("not/yet there");
    let terminal = Terminal::start(&state, &["--addr", &addr], Options::default());
    terminal.ask(&prompt, "set k v", "OK");
    terminal.ask(&prompt, " set secret s", "OK");
    terminal.leave();
    let file = state.join("gopherstore/history");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    let kept = fs::read_to_string(&file).unwrap();
    assert!(
        kept.contains("set k v") && !kept.contains("secret"),
        "{kept}"
    );

    let terminal = Terminal::start(&state, &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press(UP);
    terminal.wait_for_end(&format!("{prompt} set k v"));
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("{prompt} set k v\nOK\n{prompt}"));
    terminal.ask(&prompt, "get k", "v");
    terminal.leave();
    let kept = fs::read_to_string(&file).unwrap();
    assert!(kept.ends_with("set k v\nget k\n"), "{kept}");
    assert_eq!(mode(&file), 0o600);
}

#[test]
fn sessions_at_a_time_keep_each_others_lines() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let start = || Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    let (one, two) = (start(), start());
    one.ask(&prompt, "set a 1", "OK");
    two.ask(&prompt, "set b 2", "OK");
    one.ask(&prompt, "set c 3", "OK");
    two.leave();
    one.leave();
    let kept = fs::read_to_string(dir.path().join("gopherstore/history")).unwrap();
    assert_eq!(kept, "#V2\nset a 1\nset b 2\nset c 3\n");
}

#[test]
fn the_history_is_below_the_home_by_default() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    // One that is relative does not count.
    for state in ["", "relative"] {
        let variables = [("XDG_STATE_HOME", state)];
        let terminal = Terminal::start(dir.path(), &["--addr", &addr], with(&variables));
        terminal.ask(&prompt, &format!("set k {state}v"), "OK");
        terminal.leave();
    }
    let kept = fs::read_to_string(dir.path().join(".local/state/gopherstore/history")).unwrap();
    assert!(kept.ends_with("set k v\nset k relativev\n"), "{kept}");
}

#[test]
fn no_place_for_the_history_stops_nothing() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    // A folder that cannot be made, a home that cannot be written, a file that is a folder, and no home at all.
    fs::create_dir_all(dir.path().join("odd/gopherstore/history")).unwrap();
    let odd = dir.path().join("odd");
    for variables in [
        vec![("XDG_STATE_HOME", "/dev/null/state")],
        vec![("XDG_STATE_HOME", ""), ("HOME", "/proc/self")],
        vec![("XDG_STATE_HOME", odd.to_str().unwrap())],
        vec![("XDG_STATE_HOME", ""), ("HOME", "")],
    ] {
        let terminal = Terminal::start(dir.path(), &["--addr", &addr], with(&variables));
        terminal.ask(&prompt, "set k v", "OK");
        terminal.ask(&prompt, "get k", "v");
        terminal.press(UP);
        terminal.wait_for_end(&format!("{prompt} get k"));
        let screen = terminal.screen();
        let said = "gopherstore-cli: the history ends with this session: ";
        assert_eq!(screen.matches(said).count(), 1, "{screen}");
        terminal.press(CTRL_C);
        terminal.wait_for_end(&format!("{prompt} get k\n{prompt}"));
        terminal.leave();
    }
}

#[test]
fn tab_completes_commands_and_the_names_of_nodes() {
    let cluster = Cluster::start(2);
    cluster.wait_converged(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let addr = cluster.addr(0).to_string();
    // The names are those that the node itself tells.
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    let prompt = format!("n1 leader {addr}>");
    terminal.wait_for_end(&prompt);
    terminal.press("pi");
    terminal.press(TAB);
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("{prompt} ping\nPONG\n{prompt}"));
    terminal.press(":o");
    terminal.press(TAB);
    terminal.wait_for_end(&format!("{prompt} :on NODE COMMAND"));
    terminal.press(TAB);
    terminal.wait_for_end(&format!("{prompt} :on n COMMAND"));
    terminal.press(TAB);
    terminal.press(TAB);
    terminal.wait_until("both names", |screen| screen.contains("\nn1  n2"));
    terminal.press("2");
    terminal.press(" ge");
    terminal.press(TAB);
    terminal.wait_for_end(&format!("{prompt} :on n2 get KEY"));
    terminal.press(CTRL_C);
    // A line that was never entered stays as it was, with its hint.
    terminal.wait_for_end(&format!("{prompt} :on n2 get KEY\n{prompt}"));
    terminal.leave();
}

#[test]
fn operands_are_hinted_in_grey_and_go_when_they_are_typed() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press("set");
    terminal.wait_for_end(&format!("{prompt} set KEY VALUE"));
    terminal.press(" k");
    terminal.wait_for_end(&format!("{prompt} set k VALUE"));
    assert_eq!(terminal.color_of(" VALUE"), Color::Idx(8));
    assert_eq!(terminal.color_of("set k"), Color::Default);
    terminal.press(" v");
    terminal.wait_for_end(&format!("{prompt} set k v"));
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("{prompt} set k v\nOK\n{prompt}"));
    // A hint is none of the line.
    terminal.press("get");
    terminal.wait_for_end(&format!("{prompt} get KEY"));
    terminal.press(ENTER);
    terminal.wait_until("the mistake", |screen| {
        screen.contains(&format!(
            "{prompt} get\ngopherstore-cli: 0 given after get; write get KEY"
        ))
    });
    terminal.leave();
}

#[test]
fn no_color_means_none() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let options = with(&[("NO_COLOR", "1")]);
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], options);
    terminal.wait_for_end(&prompt);
    terminal.press("set k");
    terminal.wait_for_end(&format!("{prompt} set k VALUE"));
    assert_eq!(terminal.color_of("VALUE"), Color::Default);
    terminal.press(" v");
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("{prompt} set k v\nOK\n{prompt}"));
    let bytes = terminal.bytes();
    let text = String::from_utf8_lossy(&bytes);
    let mut orders = text.split("\x1b[").skip(1);
    let is_color = |order: &str| {
        order
            .trim_start_matches(|c: char| !c.is_alphabetic())
            .starts_with('m')
    };
    assert!(!orders.any(is_color), "{text:?}");
    terminal.leave();
}

#[test]
fn ctrl_c_abandons_the_line_and_ctrl_d_leaves() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press("set k v");
    terminal.wait_for_end("set k v");
    terminal.press(CTRL_C);
    terminal.wait_for_end(&format!("{prompt} set k v\n{prompt}"));
    terminal.ask(&prompt, "get k", "(not found)");
    terminal.press(CTRL_D);
    assert_eq!(terminal.wait(), 0);
    // Nothing was kept of what was never entered.
    let kept = fs::read_to_string(dir.path().join("gopherstore/history")).unwrap();
    assert_eq!(kept, "#V2\nget k\n");
    let mut terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press(":quit");
    terminal.press(ENTER);
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    for (name, number) in [("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        if name == "HUP" && gopherstore::signals::is_ignored(number) {
            tools::skip("SIGHUP is ignored, as under nohup");
            continue;
        }
        let mut terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
        terminal.wait_for_end(&prompt);
        terminal.press("set k");
        terminal.wait_for_end(&format!("{prompt} set k VALUE"));
        assert_eq!(terminal.modes(), LocalModes::empty(), "while it edits");
        terminal.signal(name);
        assert_eq!(terminal.wait_killed(), number);
        let all = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        assert_eq!(terminal.modes(), all, "after {name}");
        terminal.wait_until("the end of bracketed paste", |_| {
            let bytes = terminal.bytes();
            let last = |order: &[u8]| bytes.windows(order.len()).rposition(|part| part == order);
            last(b"\x1b[?2004l") > last(b"\x1b[?2004h")
        });
    }
}

#[test]
fn binary_values_are_escaped_and_raw_where_one_asks() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.ask(&prompt, r#"set k "a\x1b[31mb\xff\x0a""#, "OK");
    terminal.ask(&prompt, "get k", r#""a\x1b[31mb\xff\n""#);
    let plain = terminal.bytes();
    assert!(!plain.windows(5).any(|bytes| bytes == b"\x1b[31m"));
    terminal.press(":raw get k");
    terminal.press(ENTER);
    let raw = |terminal: &Terminal| {
        let bytes = terminal.bytes();
        // The terminal makes \r\n of a line feed.
        bytes
            .windows(12)
            .filter(|bytes| bytes == b"a\x1b[31mb\xff\r\n\r\n")
            .count()
    };
    terminal.wait_until("the value's bytes", |_| raw(&terminal) == 1);
    terminal.press("\x0c"); // clears the screen
    terminal.wait_until("a clear screen", |screen| screen == prompt);
    terminal.ask(
        &prompt,
        ":raw on",
        "values are printed byte by byte from now on",
    );
    terminal.press("get k");
    terminal.press(ENTER);
    terminal.wait_until("the value's bytes", |_| raw(&terminal) == 2);
    terminal.wait_for_end(&prompt);
    terminal.ask(
        &prompt,
        ":raw off",
        "values are printed byte by byte no more",
    );
    terminal.ask(&prompt, "get k", r#""a\x1b[31mb\xff\n""#);
    terminal.leave();
}

#[test]
fn bytes_that_are_not_utf_8_are_an_error_and_end_nothing() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press(b"set k \xff");
    terminal.wait_until("the mistake", |screen| {
        screen.contains("\ngopherstore-cli: what was typed is not UTF-8")
            && screen.ends_with(&prompt)
    });
    terminal.ask(&prompt, r#"set k "\xff""#, "OK");
    terminal.ask(&prompt, "get k", r#""\xff""#);
    terminal.leave();
    // A terminal's own line takes any byte, as a pipe does.
    let options = with(&[("TERM", "dumb")]);
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], options);
    terminal.wait_for_end(&prompt);
    terminal.press(b"set k \xfe\n");
    terminal.wait_until("the response", |screen| {
        screen.ends_with(&format!("\nOK\n{prompt}"))
    });
    terminal.ask(&prompt, "get k", r#""\xfe""#);
    terminal.leave();
}

#[test]
fn hex_shows_the_frames_of_commands_and_no_others() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.ask(&prompt, ":hex on", "frames are dumped from now on");
    terminal.press("ping");
    terminal.press(ENTER);
    terminal.wait_until("the response", |screen| {
        screen.ends_with(&format!("\nPONG\n{prompt}"))
    });
    let screen = terminal.screen();
    assert!(
        screen.contains(&format!("\n> to {addr}, 7 bytes\n")),
        "{screen}"
    );
    assert!(
        screen.contains(&format!("\n< from {addr}, 9 bytes\n")),
        "{screen}"
    );
    assert!(!screen.contains("STATUS"), "{screen}");
    terminal.ask(&prompt, ":hex off", "frames are dumped no more");
    terminal.ask(&prompt, "ping", "PONG");
    terminal.leave();
}

#[test]
fn several_lines_that_are_pasted_are_several_commands() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], Options::default());
    terminal.wait_for_end(&prompt);
    terminal.press("\x1b[200~set k v\nget k\n\x1b[201~");
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("\nOK\nv\n{prompt}"));
    terminal.leave();
}

#[test]
fn a_value_of_more_rows_than_16_bits_count_can_be_pasted() {
    let (_node, addr, _) = node();
    let dir = tempfile::tempdir().unwrap();
    let narrow = Options {
        columns: 20,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], narrow);
    terminal.wait_until("the prompt", |screen| screen.ends_with('>'));
    let value = "v".repeat(1_400_000);
    terminal.press(format!("set k \x1b[200~{value}\x1b[201~"));
    terminal.press(ENTER);
    terminal.wait_until("the response", |screen| screen.contains("\nOK\n"));
    let mut client = gopherstore::Client::connect(addr.as_str()).unwrap();
    assert_eq!(
        client.get(b"k").unwrap().map(|value| value.len()),
        Some(value.len())
    );
    terminal.leave();
}

#[test]
fn a_dumb_terminal_has_a_prompt_without_escape_sequences() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    for term in ["dumb", ""] {
        let options = with(&[("TERM", term)]);
        let terminal = Terminal::start(dir.path(), &["--addr", &addr], options);
        terminal.ask(&prompt, r#"set k "a\x00""#, "OK");
        terminal.ask(&prompt, "get k", r#""a\x00""#);
        terminal.press("del k");
        terminal.wait_for_end("del k");
        terminal.press(CTRL_C);
        terminal.wait_for_end(&format!("{prompt} del k^C\n{prompt}"));
        terminal.ask(&prompt, "get k", r#""a\x00""#);
        let bytes = terminal.bytes();
        assert!(
            !bytes.contains(&0x1b),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
        terminal.leave();
    }
}

#[test]
fn responses_alone_go_to_standard_output_that_is_no_terminal() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("responses");
    let options = Options {
        stdout: Some(Stdio::from(File::create(&path).unwrap())),
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], options);
    for line in ["set k v", "get k", ":raw get k", "del none"] {
        terminal.wait_for_end(&prompt);
        terminal.press(line);
        terminal.press("\n");
        terminal.wait_for_end(&format!("{prompt} {line}\n{prompt}"));
    }
    terminal.leave();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "OK\nv\nv\n(not found)\n"
    );
}

#[test]
fn forty_columns_are_enough() {
    let (_node, addr, prompt) = node();
    let dir = tempfile::tempdir().unwrap();
    let narrow = Options {
        columns: 40,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], narrow);
    terminal.wait_for_end(&prompt);
    // A line of three rows, which is edited at its beginning.
    let value = "0123456789".repeat(8);
    terminal.press(format!("et k {value}"));
    terminal.press("\x01s\x05");
    terminal.press(ENTER);
    terminal.wait_for_end(&format!("\nOK\n{prompt}"));
    terminal.press("get k");
    terminal.press(ENTER);
    let (first, second) = value.split_at(40);
    terminal.wait_for_end(&format!("{prompt} get k\n{first}\n{second}\n{prompt}"));
    terminal.press("\x0c"); // clears the screen
    terminal.wait_until("a clear screen", |screen| screen == prompt);
    terminal.press(":help");
    terminal.press(ENTER);
    terminal.wait_until("the help", |screen| {
        screen.contains("\n:on NODE COMMAND\n") && screen.ends_with(&prompt)
    });
    // No word is broken at the edge.
    let screen = terminal.screen();
    let widest = screen.lines().map(|line| line.chars().count()).max();
    assert!(widest < Some(40), "{screen}");
    terminal.leave();

    let narrower = Options {
        columns: 30,
        ..Options::default()
    };
    let terminal = Terminal::start(dir.path(), &["--addr", &addr], narrower);
    terminal.ask("n1>", "get none", "(not found)");
    terminal.leave();
}
