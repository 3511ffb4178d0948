//! Programs of others that some tests need: `nc`, `xxd`, `python3`, `tshark`.

use std::process::{Command, Stdio};

/// Set where every such program must be there, so that no test is left out unseen.
const REQUIRED: &str = "GOPHERSTORE_REQUIRE_TOOLS";

/// Whether all of these can be run. Where not, says which one is missing, and the test that asks ends.
pub(crate) fn are_there(names: &[&str]) -> bool {
    let missing = names.iter().find(|name| !is_there(name));
    if let Some(name) = missing {
        skip(&format!("{name} is not installed"));
    }
    missing.is_none()
}

fn is_there(name: &str) -> bool {
    if name == "nc" {
        // Other netcats lack -N.
        let help = Command::new("nc").arg("-h").output();
        return help.is_ok_and(|help| {
            let text = String::from_utf8_lossy(&help.stderr).to_lowercase();
            text.lines()
                .any(|line| line.trim_start().starts_with("-n") && line.contains("shutdown"))
        });
    }
    let mut command = Command::new(name);
    command.arg("--version").stdin(Stdio::null());
    command.output().is_ok()
}

/// Says that a test proves nothing here, and why.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "{REQUIRED} is set, but {why}"
    );
    eprintln!("skipped: {why}");
}
