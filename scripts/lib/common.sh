# shellcheck shell=bash
# What the scripts share. Sourced by them, never run.
# GOPHERSTORE_SERVER and GOPHERSTORE_CLI name binaries to use instead of building them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# As people would type it where they are.
# shellcheck disable=SC2034 # used by the scripts that source this one
config_default=$([[ $PWD == "$root" ]] || printf '%s/' "$root")cluster.toml
# Process ids and logs of the nodes that start-cluster.sh starts.
run=${GOPHERSTORE_RUN:-$root/run}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# Where cargo puts what it builds.
target_folder() {
    cargo metadata --manifest-path "$root/Cargo.toml" --locked --format-version 1 --no-deps |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Sets server and cli to the binaries, built if they are not up to date.
binaries() {
    server=${GOPHERSTORE_SERVER:-}
    cli=${GOPHERSTORE_CLI:-}
    if [[ -z $server || -z $cli ]]; then
        local target
        command -v cargo >/dev/null || fail "cargo is needed to build GopherStore: see https://rustup.rs"
        target=$(target_folder)
        [[ -n $target ]] || fail "cargo metadata names no target directory"
        [[ -x $target/release/gopherstore-server ]] || say "building, which takes a minute the first time"
        cargo build --manifest-path "$root/Cargo.toml" --release --locked --quiet --bins
        server=${server:-$target/release/gopherstore-server}
        cli=${cli:-$target/release/gopherstore-cli}
    fi
    server=${server#"$PWD"/}
    cli=${cli#"$PWD"/}
}

# Waits until a command succeeds: waited SECONDS COMMAND...; fails once the time is over.
waited() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# The command line of a process, with a blank before each word; nothing where there is no such process.
command_line() {
    if [[ -d /proc/self ]]; then
        # A process may end while it is looked at.
        { printf ' '; tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
    else
        printf ' %s ' "$(ps -p "$1" -o args= 2>/dev/null || true)"
    fi
}

# Sets pid to the process id of the node NAME that start-cluster.sh started; fails where it does not run. A number
# alone proves nothing: after a crash or a restart of the machine it may be that of another program.
running() {
    pid=
    [[ -r $run/$1.pid ]] && read -r pid <"$run/$1.pid" && [[ $pid =~ ^[1-9][0-9]*$ ]] || return 1
    [[ $(command_line "$pid") == *gopherstore*" --node $1 "* ]]
}

stopped() { ! running "$1"; }

# Stops the named nodes, those that do not run included, and fails if one had to be killed.
stop_nodes() {
    local name result=0
    for name in "$@"; do
        if running "$name"; then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    for name in "$@"; do
        if running "$name"; then
            if ! waited 90 stopped "$name"; then
                say "$name has not stopped within 90 seconds and is killed; see $run/$name.log"
                running "$name" && kill -KILL "$pid" 2>/dev/null
                waited 5 stopped "$name" || say "$name (process $pid) is still there"
                result=1
            fi
        fi
        rm -f "$run/$name.pid"
    done
    return "$result"
}
