//! Scenarios of replication, told by the text files of `tests/scripts`: one scenario a file.
//!
//! A line that begins with `>` is a command, one with `#` a comment. All other lines are the output of the commands
//! when the file was last written. `GOPHERSTORE_UPDATE=1 cargo test --lib scenarios` writes all outputs anew; read them
//! before they are committed. With `GOPHERSTORE_SCRIPT=transfer.txt` and `-- --nocapture` one script is played, and
//! everything that happens is printed.
//!
//! The nodes are those of the simulator, which are made of the shipped code, in a network where nothing happens at
//! random. The output is what these nodes put out: log lines, responses to clients, messages of streams, and STATUS.
//! Everything that a node does is checked as in a simulation, and a violation is put out as well.
//!
//! | file         | what it does                                     |
//! |--------------|--------------------------------------------------|
//! | `world.rs`   | the cluster, and the commands                    |
//! | `gates.rs`   | which bytes of the streams pass                  |
//! | `client.rs`  | requests of a client                             |
//! | `output.rs`  | log lines and STATUS, as a script has them       |

mod client;
mod gates;
mod output;
mod world;

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::process::Slot;
use world::World;

/// Processes of a script at most.
const PROCESSES_MAX: usize = 40;

/// Runs the commands of a script, and returns the script with their output. Where `is_traced`, prints what happens.
fn play(script: &str, is_traced: bool) -> String {
    let slots: Vec<Slot> = (0..PROCESSES_MAX).map(|_| Slot::new()).collect();
    let mut world: Option<World<'_>> = None;
    let mut played = String::new();
    for line in script.lines() {
        let command = line.strip_prefix("> ");
        if command.is_none() && !line.starts_with('#') && !line.is_empty() {
            continue;
        }
        played.push_str(line);
        played.push('\n');
        if let Some(command) = command {
            let words: Vec<&str> = command.split(' ').collect();
            if is_traced {
                println!("> {command}");
            }
            let world = world.get_or_insert_with(|| World::start(&words, is_traced, &slots));
            played.push_str(&world.run(&words));
        }
    }
    played
}

/// The first line in which a script that was played differs from what is recorded.
fn difference(script: &str, played: &str) -> Option<String> {
    let mut pairs = (1..).zip(script.lines().zip(played.lines()));
    let differs = pairs.find(|(_, (old, new))| old != new);
    match differs {
        Some((line, (old, new))) => Some(format!("{line}: recorded {old:?}, now {new:?}")),
        None if script == played => None,
        None => {
            let [recorded, now] = [script, played].map(|text| text.lines().count());
            Some(format!("{recorded} lines recorded, now {now}"))
        }
    }
}

#[test]
fn every_script_puts_out_what_is_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let files = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 25, "scripts are missing: {paths:?}");
    let traced = env::var("GOPHERSTORE_SCRIPT").ok();
    let mut faults = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if traced.as_ref().is_some_and(|traced| *traced != name) {
            continue;
        }
        let script = fs::read_to_string(&path).unwrap();
        let played = play(&script, traced.is_some());
        if env::var_os("GOPHERSTORE_UPDATE").is_some() {
            fs::write(&path, &played).unwrap();
        } else if let Some(what) = difference(&script, &played) {
            faults.push(format!("{name}:{what}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
