#!/usr/bin/env bash
# Starts every node of a cluster in the background, and returns once all of them are ready.
#
# Usage: scripts/start-cluster.sh [CONFIG]          CONFIG is cluster.toml where none is given
#
# Process ids and logs lie in run/ (or where GOPHERSTORE_RUN says): NAME.pid, NAME.log, NAME.out.
# scripts/stop-cluster.sh stops them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

if (($# > 1)) || [[ ${1:-} == -* ]]; then
    say "usage: scripts/start-cluster.sh [CONFIG]"
    exit 2
fi
config=${1:-$config_default}
ready_seconds=${GOPHERSTORE_READY_SECONDS:-30}

binaries
# Says itself what is wrong with the file, and exits with 2.
members=$("$server" --check-config --config "$config")
mkdir -p "$run"

names=()
while read -r name _; do
    names+=("$name")
    if running "$name"; then
        fail "$name is already running (process $pid); stop it with scripts/stop-cluster.sh"
    fi
done <<<"$members"

started=()
# Whatever ends this script before every node is ready, Ctrl-C too, leaves none of them behind.
abandon() {
    ((${#started[@]} > 0)) || return 0
    say "stopping what it started: ${started[*]}"
    stop_nodes "${started[@]}" || true
}
trap abandon EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for name in "${names[@]}"; do
    : >"$run/$name.out"
    # Closing the terminal later is not meant for the nodes.
    (
        trap '' HUP
        exec "$server" --config "$config" --node "$name"
    ) </dev/null >"$run/$name.out" 2>"$run/$name.log" &
    echo "$!" >"$run/$name.pid"
    started+=("$name")
done

# Ready, or gone for good. Whether it is gone is asked first: one that printed its line and ended is not ready.
ready_or_gone() {
    kill -0 "$2" 2>/dev/null || return 0
    grep -q "^gopherstore-server: $1 ready on " "$run/$1.out"
}

for name in "${names[@]}"; do
    read -r pid <"$run/$name.pid"
    waited "$ready_seconds" ready_or_gone "$name" "$pid" || true
    if ! running "$name" || ! grep "^gopherstore-server: $name ready on " "$run/$name.out"; then
        if running "$name"; then
            say "$name is not ready after $ready_seconds seconds; the end of ${run#"$PWD"/}/$name.log:"
        else
            say "$name has not started; the end of ${run#"$PWD"/}/$name.log:"
        fi
        tail -n 10 "$run/$name.log" >&2
        exit 1
    fi
done

trap - EXIT INT TERM HUP
echo "All ${#names[@]} nodes are ready. Logs: ${run#"$PWD"/}/*.log. To stop them: scripts/stop-cluster.sh"
