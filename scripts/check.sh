#!/usr/bin/env bash
# Checks that a change must pass: form, lints, documentation, scripts, the demo, and at last the tests.
#
# Usage: scripts/check.sh
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

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
# The demo uses ports of its own, so that a cluster of yours may go on running. They are chosen at random, below those
# that systems give to connections. If another program has one of them, others are tried.
config=$(mktemp)
trap 'rm -f "$config"' EXIT
demo() {
    local tries port name result
    for ((tries = 0; tries < 10; tries++)); do
        port=$((10000 + RANDOM % 20000))
        printf 'cluster = "check"\nleader = "n1"\n' >"$config"
        for name in n1 n2 n3; do
            printf '[[node]]\nname = "%s"\naddr = "127.0.0.1:%s"\n' "$name" "$port" >>"$config"
            port=$((port + 1 + RANDOM % 500))
        done
        result=0
        scripts/demo.sh "$config" || result=$?
        ((result == 3)) || return "$result"
    done
    return "$result"
}
step demo
printf 'cluster = "check"\nleader = "n1"\n[[node]]\nname = "n1"\naddr = "127.0.0.1:0"\n' >"$config"
step scripts/demo.sh "$config"
# The tests are last, so that this output ends with their summary.
step cargo test --locked
