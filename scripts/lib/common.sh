# shellcheck shell=bash
# Functions that the scripts share. Sourced, never run.
# GOPHERSTORE_SERVER and GOPHERSTORE_CLI name binaries to use instead of building them.

# The next file that is opened would take the place of a descriptor that the caller closed.
true 3>&2 || exec 2>/dev/null
{ true 3>&1; } 2>/dev/null || exec >/dev/null
{ true 3<&0; } 2>/dev/null || exec </dev/null
# cd would look for relative paths there, and print where it went.
unset CDPATH
# Without symbolic links, as the paths that are compared with it. A folder that was deleted stays as it is.
cd -P . 2>/dev/null || true

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# Ends the script because of its arguments.
misused() {
    say "$@"
    exit 2
}

# Prints a path as a user types it in this folder.
typed() {
    local path=$1
    [[ $path != "$PWD"/[!-]* ]] || path=${path#"$PWD"/}
    printf '%q' "$path"
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
    # As a user types them here.
    [[ ${server#"$PWD"/} != */* ]] || server=${server#"$PWD"/}
    [[ ${cli#"$PWD"/} != */* ]] || cli=${cli#"$PWD"/}
}

# Prints the absolute path of a program, which is named by a path or found in $PATH.
program() {
    local path
    path=$(command -v -- "$1") || fail "there is no program $1"
    [[ $path == /* ]] || path=$PWD/$path
    printf '%s\n' "$path"
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
