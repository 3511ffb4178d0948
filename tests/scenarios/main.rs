//! Replication as plain values, driven by the text files of `tests/scripts`: one scenario a file.
//!
//! A line that begins with `>` is a command, one with `#` a comment, and everything else is what the commands put out
//! when the file was last written: `GOPHERSTORE_UPDATE=1 cargo test --test scenarios` writes all of them anew, to be
//! read before they are committed. No socket, thread or clock takes part; [`world`] has the commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod node;
mod stream;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use world::World;

/// Runs the commands of a script, and gives the script with what they put out.
fn play(script: &str) -> String {
    let mut world = World::new();
    let mut played = String::new();
    for line in script.lines() {
        let command = line.strip_prefix("> ");
        if command.is_none() && !line.starts_with('#') && !line.is_empty() {
            continue;
        }
        played.push_str(line);
        played.push('\n');
        if let Some(command) = command {
            played.push_str(&world.run(command));
        }
    }
    played
}

#[test]
fn every_script_puts_out_what_is_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let files = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "scripts are missing: {paths:?}");
    let mut faults = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let script = fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if std::env::var_os("GOPHERSTORE_UPDATE").is_some() {
            fs::write(&path, &played).unwrap();
            continue;
        }
        let pairs = (1..).zip(script.lines().zip(played.lines()));
        let differs = pairs.into_iter().find(|(_, (old, new))| old != new);
        if let Some((line, (old, new))) = differs {
            faults.push(format!("{name}:{line}: recorded {old:?}, now {new:?}"));
        } else if script != played {
            faults.push(format!(
                "{name}: {} lines recorded, now {}",
                script.lines().count(),
                played.lines().count()
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
