#!/usr/bin/env bash
# Restarts a node that runs in the background, with a new build: builds first, stops it in good order, starts it, and
# returns once it serves again.
#
# Usage: scripts/restart-node.sh [--yes] NAME [CONFIG]     CONFIG is cluster.toml where none is given
#
# A node without a data directory starts empty and copies its data from the others. If no other node is known to hold
# its data, nothing is done: at a terminal it asks, and --yes answers. A node that does not serve within
# GOPHERSTORE_READY_SECONDS, 30 by default, goes on running; the exit status is 1 then.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/nodes.sh"

arguments=()
for argument in "$@"; do
    case $argument in
    --yes) assume_yes=1 ;;
    -*) misused "usage: scripts/restart-node.sh [--yes] NAME [CONFIG]" ;;
    *) arguments+=("$argument") ;;
    esac
done
((${#arguments[@]} == 1 || ${#arguments[@]} == 2)) ||
    misused "usage: scripts/restart-node.sh [--yes] NAME [CONFIG], where NAME is a node of CONFIG, such as n1"
name=${arguments[0]}
use_config "${arguments[@]:1}"

binaries
members=$("$server" --check-config --config "$config" --node "$name")
claim_folder
# This comes before the check for data that is lost: another restart may be under way, so that this node is the last
# that holds the data.
lock
if running "$name"; then
    # shellcheck disable=SC2034 # assess uses it
    is_restart=1
    assess "$name"
    if [[ -n $at_risk && -z $assume_yes && ! (-t 0 && -t 2) ]]; then
        fail "$name was not restarted, since that loses data ($at_risk); --yes restarts it anyway"
    fi
    confirmed "Restarting $name" || fail "$name was not restarted"
fi
refuse_taken "$name"
if running "$name"; then
    trap 'say "$name stops and is not started; to start it: $(command_for start-node.sh --background "$name")"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    stop_nodes "$name" || { trap - EXIT; fail "$name was told to stop and is not started again"; }
    trap - EXIT
else
    read -r _ addr _ < <(grep "^$name " <<<"$members")
    ! ask_status "$addr" ||
        fail "$name answers at $addr, but these scripts have not started it; restart it where it was started"
    say "$name was not running"
fi
start_detached "$name"
