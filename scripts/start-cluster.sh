#!/usr/bin/env bash
# Starts every node of a cluster in the background, and returns once all of them serve.
#
# Usage: scripts/start-cluster.sh [CONFIG]          CONFIG is cluster.toml where none is given
#
# Process ids and logs lie in a folder of their own for each CONFIG, run/cluster for cluster.toml: NAME.pid, NAME.log,
# NAME.out. GOPHERSTORE_RUN names another folder than run/. GOPHERSTORE_READY_SECONDS limits the wait, to 30 seconds by
# default; nodes that do not serve then are left running. scripts/stop-cluster.sh stops them.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/nodes.sh"

if (($# > 1)) || [[ ${1-} == -* ]]; then
    misused "usage: scripts/start-cluster.sh [CONFIG]"
fi
use_config "$@"
binaries
# Prints faults of the file, and exits with 2.
members=$("$server" --check-config --config "$config")
claim_folder
lock

names=() already=() missing=()
while read -r name _; do
    names+=("$name")
    if running "$name"; then already+=("$name"); else missing+=("$name"); fi
done <<<"$members"
if ((${#missing[@]} == 0)); then
    fail "all ${#names[@]} nodes of $(typed "$config") are already running; to stop them: $(command_for stop-cluster.sh)"
elif ((${#already[@]} > 0)); then
    say "already running: ${already[*]}. Nothing was started. To start the others:"
    for name in "${missing[@]}"; do echo "  $(command_for start-node.sh --background "$name")" >&2; done
    exit 1
fi
refuse_taken "${names[@]}"

# If this script ends before every node serves, by Ctrl-C too, it stops the nodes. Where that would lose data that they
# hold by then, they stay.
abandon() {
    trap '' INT TERM HUP
    [[ -n $locked ]] || lock
    assess "${names[@]}"
    if [[ -n $at_risk ]]; then
        say "leaving the nodes running, since clients have written already; to stop them: $(command_for stop-cluster.sh)"
        return 0
    fi
    say "stopping what it started"
    stop_nodes "${names[@]}" || true
}
trap abandon EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
launch "${names[@]}"
unlock

wait_serving "${names[@]}"
if ! report_start; then
    ((${#ended[@]} == 0)) || exit 1
    trap - EXIT
    fail "the nodes go on running; to stop them: $(command_for stop-cluster.sh)"
fi
trap - EXIT INT TERM HUP
for name in "${names[@]}"; do cat "$dir/$name.out"; done
echo "All ${#names[@]} nodes serve. Logs: $(typed "$dir")/*.log. To stop them: $(command_for stop-cluster.sh)"
