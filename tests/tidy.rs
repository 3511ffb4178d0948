//! The shape of the sources: which module may use which, and what no file may hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of ours that each module of `src/` may use. A path such as `engine::entry` is a module of its own.
/// Arrows point one way, so each module can be read, tested and changed without knowledge of those above it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("history", &[]),
    ("planted", &[]),
    ("wire", &["history"]),
    ("config", &["replication::core"]),
    ("arguments", &["config"]),
    ("hexdump", &[]),
    ("service", &[]),
    ("signals", &[]),
    ("logging", &["service"]),
    ("dial", &[]),
    ("client", &["config", "dial", "wire", "history"]),
    ("engine::entry", &["wire"]),
    ("engine::digest", &["engine::entry", "wire"]),
    (
        "log",
        &["engine::entry", "engine::digest", "history", "wire"],
    ),
    (
        "engine",
        &["engine::entry", "engine::digest", "log", "wire", "history"],
    ),
    ("storage", &["engine::digest", "history"]),
    (
        "persistence",
        &[
            "storage",
            "engine",
            "engine::digest",
            "log",
            "history",
            "wire",
            "config",
        ],
    ),
    (
        "storage::annotate",
        &["storage", "engine::digest", "history", "wire"],
    ),
    ("replication::core", &["history", "wire"]),
    (
        "node",
        &[
            "engine",
            "engine::entry",
            "engine::digest",
            "log",
            "history",
            "replication::core",
            "wire",
            "config",
            "time",
        ],
    ),
    ("replication::peers", &["node", "log", "replication::core"]),
    (
        "replication::stream",
        &[
            "replication::peers",
            "replication::core",
            "node",
            "engine",
            "engine::entry",
            "engine::digest",
            "log",
            "history",
            "wire",
            "config",
            "time",
        ],
    ),
    (
        "replication",
        &[
            "replication::stream",
            "replication::peers",
            "replication::core",
            "node",
            "engine",
            "log",
            "history",
            "dial",
            "wire",
            "config",
        ],
    ),
    (
        "server::session",
        &["node", "engine", "engine::entry", "log", "wire"],
    ),
    (
        "server",
        &[
            "replication",
            "replication::core",
            "replication::stream",
            "node",
            "engine",
            "engine::entry",
            "log",
            "dial",
            "wire",
            "config",
            "storage",
            "persistence",
            "history",
            "engine::digest",
            "server::lifecycle",
        ],
    ),
    ("server::lifecycle", &[]),
    ("time", &["engine"]),
];

/// Modules that are pure: what they do follows from their arguments alone, so they are tested without waiting, and can
/// run anywhere.
const PURE: &[&str] = &[
    "history",
    "hexdump",
    "wire",
    "engine::entry",
    "engine::digest",
    "engine",
    "replication::core",
    "replication::stream",
    "server::session",
    "server::lifecycle",
];

/// Names that a pure module does not use.
const IMPURE: [&str; 9] = [
    "std::net",
    "std::thread",
    "std::fs",
    "std::env",
    "std::io::",
    "Instant::now",
    "SystemTime",
    "log::",
    "println!",
];

/// Columns of the longest line.
const COLUMNS_MAX: usize = 120;

#[test]
fn arrows_between_modules_point_one_way() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let Some(module) = module(&path) else {
            continue; // the library's root and the binaries stand above all modules
        };
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            faults.push(format!(
                "{}: module {module} is not in MAY_USE of tests/tidy.rs: decide what it may use, and add it",
                path.display()
            ));
            continue;
        };
        for (line, code) in statements(&text) {
            for used in modules_used(&code) {
                // Faults that tests plant are in no build but theirs.
                if used != module && used != "planted" && !may_use.contains(&used) {
                    faults.push(format!(
                        "{}:{line}: {module} uses {used}, and may use only {may_use:?}: pass in what it needs, or move \
                         the code up to a module that may know both",
                        path.display()
                    ));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn pure_modules_know_no_socket_thread_clock_file_or_log() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        if !module(&path).is_some_and(|module| PURE.contains(&module.as_str())) {
            continue;
        }
        for (line, code) in code_lines(&text) {
            for impure in IMPURE.iter().filter(|impure| mentions(code, impure)) {
                faults.push(format!(
                    "{}:{line}: {impure} in a pure module: let the caller do that, and pass in the result",
                    path.display()
                ));
            }
        }
    }
    report(&faults);
}

#[test]
fn no_file_has_unfinished_code_or_wide_lines() {
    // Put together here, so that this file does not hold them.
    let unfinished = [
        (
            concat!("#[ign", "ore"),
            "a test that does not run proves nothing: make it run, or delete it",
        ),
        (
            concat!("tod", "o!("),
            "finish it, or return an error that says what is missing",
        ),
        (
            concat!("unimpl", "emented!("),
            "finish it, or return an error that says what is missing",
        ),
        (concat!("db", "g!("), "delete it"),
    ];
    let mut faults = Vec::new();
    for (path, text) in ["src", "tests", "fuzz", "benches"]
        .into_iter()
        .flat_map(sources)
    {
        for (line, content) in (1..).zip(text.lines()) {
            let place = format!("{}:{line}", path.display());
            let columns = content.chars().count();
            if columns > COLUMNS_MAX {
                faults.push(format!(
                    "{place}: {columns} columns, limit {COLUMNS_MAX}: break the line"
                ));
            }
            for (text, remedy) in unfinished {
                if content.contains(text) {
                    faults.push(format!("{place}: {text}: {remedy}"));
                }
            }
        }
    }
    report(&faults);
}

#[cfg(unix)]
#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt;

    let mut scripts: Vec<PathBuf> = fs::read_dir(root().join("scripts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sh"))
        .collect();
    scripts.push(root().join(".ci/run"));
    assert!(scripts.len() > 3, "scripts are missing: {scripts:?}");
    let faults: Vec<String> = scripts
        .iter()
        .filter(|path| fs::metadata(path).unwrap().permissions().mode() & 0o111 != 0o111)
        .map(|path| {
            let path = path.strip_prefix(root()).unwrap().display();
            format!("{path}: not executable: chmod +x {path}")
        })
        .collect();
    report(&faults);
}

#[test]
fn tests_ask_whether_the_programs_that_they_run_are_installed() {
    // In two parts, so that this line is not one of those that it looks for.
    let run = concat!("Command::new", "(\"");
    let mut faults = Vec::new();
    let mut count = 0;
    for (path, text) in sources("tests") {
        if path.ends_with("support/tools.rs") {
            continue; // it is asked
        }
        let asked: Vec<&str> = text
            .split("are_there(&[")
            .skip(1)
            .filter_map(|rest| rest.split(']').next())
            .collect();
        for (number, line) in (1..).zip(text.lines()) {
            let Some((_, rest)) = line.split_once(run) else {
                continue;
            };
            count += 1;
            let program = rest.split('"').next().unwrap_or_default();
            let quoted = format!("\"{program}\"");
            if program != "sh" && !asked.iter().any(|names| names.contains(&quoted)) {
                faults.push(format!(
                    "{}:{number}: {program} may be missing: ask tools::are_there(&[{quoted}]) first; signals are sent \
                     by tools::signal",
                    path.display()
                ));
            }
        }
    }
    assert!(count > 5, "{count}");
    report(&faults);
}

#[track_caller]
/// The fuzzers are a workspace of their own. A dependency that is new is missing in their lock file until it is updated
/// (`cargo update --workspace` in `fuzz`), and they are built with `--locked`.
#[test]
fn the_lock_file_of_the_fuzzers_has_every_dependency() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let lock: toml::Table = read("fuzz/Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let own = packages
        .iter()
        .find(|package| package["name"].as_str() == Some("gopherstore"));
    let locked = own.unwrap()["dependencies"].as_array().unwrap();
    // A name may be followed by a version.
    let locked: Vec<&str> = locked
        .iter()
        .map(|name| name.as_str().unwrap().split(' ').next().unwrap())
        .collect();
    let needed = manifest["dependencies"].as_table().unwrap();
    let faults: Vec<String> = needed
        .keys()
        .filter(|name| !locked.contains(&name.as_str()))
        .map(|name| format!("fuzz/Cargo.lock: {name} is missing: cargo update --workspace in fuzz"))
        .collect();
    assert!(needed.len() > 10, "{needed:?}");
    report(&faults);
}

fn report(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} to mend:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, by its path from the repository's root. A folder that is not there has none.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_path_buf(), text));
            }
        }
    }
    assert!(
        folder == "benches" || !found.is_empty(),
        "no sources in {folder}"
    );
    found.sort();
    found
}

/// The module of [`MAY_USE`] that a file of `src/` belongs to; none for the library's root and the binaries.
fn module(path: &Path) -> Option<String> {
    let parts = path.strip_prefix("src").ok()?.iter();
    let parts = parts
        .map(|part| part.to_str())
        .collect::<Option<Vec<_>>>()?;
    let path = parts.join("::");
    let path = path.strip_suffix(".rs").unwrap_or(&path);
    let first = path.split("::").next()?;
    (first != "lib" && first != "bin").then(|| room(path).to_owned())
}

/// The longest beginning of a path such as `engine::entry::Entry` that is a module of [`MAY_USE`]; the first part of
/// the path where none is.
fn room(path: &str) -> &str {
    let ends = path.match_indices("::").map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([path.len()]).collect();
    let known = |end: &&usize| MAY_USE.iter().any(|(name, _)| *name == &path[..**end]);
    let end = ends.iter().rev().find(known).unwrap_or(&ends[0]);
    &path[..*end]
}

/// Numbered lines of code: no comments, and no item at the margin that is for tests alone.
fn code_lines(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let mut is_test = false;
    for (number, line) in (1..).zip(text.lines()) {
        is_test |= line == "#[cfg(test)]";
        if !is_test && !line.trim_start().starts_with("//") {
            lines.push((number, line));
        }
        // rustfmt puts the end of such an item at the margin, and everything within it further right.
        let is_end = line == "}" || (line.ends_with(';') && !line.starts_with(' '));
        is_test &= !is_end;
    }
    lines
}

/// The lines of code, those of a `use` in one, with the number of the first.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut statements: Vec<(usize, String)> = Vec::new();
    for (line, code) in code_lines(text) {
        match statements.last_mut() {
            Some((_, open))
                if open.contains("use ") && open.contains('{') && !open.contains(';') =>
            {
                open.push_str(code);
            }
            _ => statements.push((line, code.to_owned())),
        }
    }
    statements
}

/// The modules that come after each `crate::` of `code`, singly or in braces, over several lines too.
fn modules_used(code: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let path = &code[at + found.len()..];
        let Some(group) = path.strip_prefix('{') else {
            used.extend(module_of(path));
            continue;
        };
        // Of `{wire::{Request, Opcode}, store}` what begins an item of the outer braces.
        let (mut depth, mut begin) = (1, 0);
        for (at, char) in group.char_indices() {
            match char {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (char == ',' && depth == 1) || depth == 0 {
                used.extend(module_of(group[begin..at].trim()));
                begin = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

/// The module of [`MAY_USE`] that a path from the library's root begins with.
fn module_of(path: &str) -> Option<&str> {
    let end = path.find(|char: char| !char.is_alphanumeric() && char != '_' && char != ':');
    let path = path[..end.unwrap_or(path.len())].trim_end_matches(':');
    match path.split("::").next()? {
        // The one item that the root re-exports.
        "Client" => Some("client"),
        name => name.starts_with(char::is_lowercase).then(|| room(path)),
    }
}

/// Whether a line holds `text`, and not as the end of a longer name or path, as `catalog::` and `crate::log::` end with
/// `log::`.
fn mentions(code: &str, text: &str) -> bool {
    code.match_indices(text).any(|(at, _)| {
        !code[..at].ends_with(|char: char| char.is_alphanumeric() || "_:".contains(char))
    })
}

#[test]
fn modules_are_found_where_they_are_used() {
    assert_eq!(modules_used("use crate::wire::Request;"), ["wire"]);
    assert_eq!(
        modules_used("    crate::engine::store::f(crate::node::X)"),
        ["engine", "node"]
    );
    assert_eq!(
        modules_used("use crate::{wire::Request, engine::entry::Entry};"),
        ["wire", "engine::entry"]
    );
    assert_eq!(modules_used("pub(crate) use crate::Client;"), ["client"]);
    assert!(mentions("log::info!()", "log::"));
    assert!(!mentions("catalog::info!()", "log::"));
    assert!(!mentions("use crate::log::Head;", "log::"));
}
