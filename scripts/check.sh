#!/usr/bin/env bash
# What a change must pass: form, lints, documentation, scripts, the demo, and at last the tests.
#
# Usage: scripts/check.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

step cargo fmt --check
step cargo fmt --check --manifest-path fuzz/Cargo.toml
step cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps
if command -v shellcheck >/dev/null; then
    step shellcheck -x -P scripts scripts/*.sh scripts/lib/*.sh .ci/run
else
    printf '\n== shellcheck is not installed, so the scripts are not checked (apt-get install shellcheck)\n'
fi
if command -v c++ >/dev/null; then
    step scripts/fuzz.sh 5
else
    printf '\n== no C++ compiler, so the fuzz target is not built (apt-get install g++)\n'
fi
# On a port that the system chooses, so that a node of yours may go on running.
config=$(mktemp)
trap 'rm -f "$config"' EXIT
printf 'cluster = "check"\nleader = "n1"\n[[node]]\nname = "n1"\naddr = "127.0.0.1:0"\n' >"$config"
step scripts/demo.sh "$config"
# Last, so that what ends this output is the tests' own summary.
step cargo test --locked
