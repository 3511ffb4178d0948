//! External programs: skips a test whose programs are not installed, and sends signals without kill(1).
//!
//! The tests need a Rust toolchain, a C linker and `sh`. A test that runs any other program asks [`are_there`] first,
//! and returns where it answers no. `tests/tidy.rs` checks that every program is asked for.

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Where this variable is set, a missing program fails the test. `.ci/run` sets it.
const REQUIRED: &str = "GOPHERSTORE_REQUIRE_TOOLS";

/// Debian's packages, for programs that are not in one of their own name.
const PACKAGES: [(&str, &str); 18] = [
    ("addr2line", "binutils"),
    ("cc", "gcc"),
    ("hexdump", "bsdextrautils"),
    ("ip", "iproute2"),
    ("man", "man-db"),
    ("nc", "netcat-openbsd"),
    ("nsenter", "util-linux"),
    ("perf", "linux-perf"),
    ("script", "bsdutils"),
    ("stty", "coreutils"),
    ("systemd-analyze", "systemd"),
    ("taskset", "util-linux"),
    ("text2pcap", "tshark"),
    ("prlimit", "util-linux"),
    ("setpriv", "util-linux"),
    ("timeout", "coreutils"),
    ("unshare", "util-linux"),
    ("xxd", "xxd"),
];

/// Returns whether all these programs are installed. Prints one line that names those that are not, or fails the test
/// where `GOPHERSTORE_REQUIRE_TOOLS` is set.
#[track_caller]
pub(crate) fn are_there(names: &[&str]) -> bool {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !is_there(name))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let mut packages: Vec<&str> = missing.iter().map(|name| package(name)).collect();
    packages.dedup();
    let why = format!(
        "not installed: {} (apt-get install {})",
        missing.join(", "),
        packages.join(" ")
    );
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "{REQUIRED} is set: {why}"
    );
    skip(&why);
    false
}

/// Returns whether a program is installed, without a word.
pub(crate) fn is_there(name: &str) -> bool {
    if name == "nc" {
        // Only OpenBSD's netcat has -N.
        let help = Command::new("nc").arg("-h").output();
        return help.is_ok_and(|help| {
            let text = String::from_utf8_lossy(&help.stderr).to_lowercase();
            text.lines()
                .any(|line| line.trim_start().starts_with("-n") && line.contains("shutdown"))
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| {
        fs::metadata(folder.join(name))
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

fn package(name: &str) -> &str {
    let found = PACKAGES.iter().find(|(program, _)| *program == name);
    found.map_or(name, |(_, package)| package)
}

/// Prints a line that says that the running test, or a part of it, is skipped, and why.
pub(crate) fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // The test harness captures `eprintln!` and shows it only where the test fails.
    let _ = std::io::stderr().write_all(format!("skipped {test}: {why}\n").as_bytes());
}

/// Sends a signal to a process, or to a process group where `target` is its negative number. Returns whether there was
/// such a process.
pub(crate) fn signal(target: impl Display, name: &str) -> bool {
    // kill(1) is in a package that a small system lacks; that of the shell is built in.
    let output = Command::new("sh")
        .args([
            "-c",
            "kill -s \"$1\" -- \"$2\"",
            "sh",
            name,
            &target.to_string(),
        ])
        .output();
    output.is_ok_and(|output| output.status.success())
}
