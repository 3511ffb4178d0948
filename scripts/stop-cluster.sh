#!/usr/bin/env bash
# Stops the nodes of a cluster that run in the background; those that no longer run are no fault.
#
# Usage: scripts/stop-cluster.sh [--yes] [CONFIG]   CONFIG is cluster.toml where none is given
#
# Stops nodes that were started for this file, and no others. At a terminal it asks first where data is lost with them,
# which is not the data of nodes that have it on disk; --yes answers. A node that does not stop within 90 seconds is killed.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/nodes.sh"

arguments=()
for argument in "$@"; do
    case $argument in
    --yes) assume_yes=1 ;;
    -*) misused "usage: scripts/stop-cluster.sh [--yes] [CONFIG]" ;;
    *) arguments+=("$argument") ;;
    esac
done
((${#arguments[@]} <= 1)) || misused "usage: scripts/stop-cluster.sh [--yes] [CONFIG]"
use_config "${arguments[@]}"

find_alive
if ((${#alive[@]} == 0)); then
    [[ -e $config || -d $dir ]] || misused "cannot read $config: no such file"
    echo "No node of $(typed "$config") was running."
    for_others say_running
    exit 0
fi
read_record "$dir"
members=$recorded_members
cli=${GOPHERSTORE_CLI:-$recorded_cli}
assess "${alive[@]}"
confirmed "Stopping ${alive[*]}" || fail "nothing was stopped"

lock
find_alive
# The leader is last: it has all data, and logs what is lost with it. A leader without a disk comes before the followers
# that have one: it waits until they have its data.
followers=() leader=() on_disk_followers=() on_disk_leader=()
for name in "${alive[@]}"; do
    case " ${on_disk[*]} " in
    *" $name "*) if is_leader "$name"; then on_disk_leader+=("$name"); else on_disk_followers+=("$name"); fi ;;
    *) if is_leader "$name"; then leader+=("$name"); else followers+=("$name"); fi ;;
    esac
done
result=0
stop_nodes "${followers[@]}" || result=1
stop_nodes "${leader[@]}" || result=1
stop_nodes "${on_disk_followers[@]}" || result=1
stop_nodes "${on_disk_leader[@]}" || result=1
stopped=0
for name in "${alive[@]}"; do
    if running "$name"; then
        kill -KILL "$pid" 2>/dev/null || true
        waited 5 stopped "$name" || { say "$name (process $pid) is still there"; continue; }
        say "$name was killed"
        rm -f "$dir/$name.pid"
    fi
    stopped=$((stopped + 1))
done
case ${#alive[@]}/$stopped in
0/0) echo "No node was running any more." ;;
1/1) echo "Stopped 1 node." ;;
*) echo "Stopped $stopped of ${#alive[@]} nodes." ;;
esac
exit "$result"
