#!/usr/bin/env bash
# Runs one node in the foreground, until Ctrl-C; or starts it in the background, and returns once it serves.
#
# Usage: scripts/start-node.sh [--background] NAME [CONFIG]     CONFIG is cluster.toml where none is given
#
# In the background its files are those of scripts/start-cluster.sh, and it outlives the terminal. A node that does not
# serve within GOPHERSTORE_READY_SECONDS, 30 by default, goes on running; the exit status is 1 then.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/nodes.sh"

arguments=() background=''
for argument in "$@"; do
    case $argument in
    --background) background=1 ;;
    -*) misused "usage: scripts/start-node.sh [--background] NAME [CONFIG]" ;;
    *) arguments+=("$argument") ;;
    esac
done
((${#arguments[@]} == 1 || ${#arguments[@]} == 2)) ||
    misused "usage: scripts/start-node.sh [--background] NAME [CONFIG], where NAME is a node of CONFIG, such as n1"
name=${arguments[0]}
use_config "${arguments[@]:1}"

binaries
if [[ -z $background ]]; then
    # The path as a user types it, since messages name it.
    exec "$server" --config "${arguments[1]-${config#"$PWD"/}}" --node "$name"
fi
members=$("$server" --check-config --config "$config" --node "$name")
claim_folder
lock
running "$name" && fail "$name is already running (process $pid); to restart it: $(command_for restart-node.sh "$name")"
refuse_taken "$name"
start_detached "$name"
