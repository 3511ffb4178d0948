#!/usr/bin/env bash
# Stops the nodes that scripts/start-cluster.sh started; those that no longer run are no fault.
#
# Usage: scripts/stop-cluster.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

if (($# > 0)); then
    say "usage: scripts/stop-cluster.sh, without arguments"
    exit 2
fi

names=()
alive=()
for file in "$run"/*.pid; do
    [[ -e $file ]] || continue # nothing matched
    name=$(basename "$file" .pid)
    names+=("$name")
    if running "$name"; then alive+=("$name"); fi
done

result=0
if ((${#names[@]} > 0)); then stop_nodes "${names[@]}" || result=1; fi
stopped=0
for name in "${alive[@]}"; do
    running "$name" || stopped=$((stopped + 1))
done
case ${#alive[@]}/$stopped in
    0/0) echo "No node was running." ;;
    1/1) echo "Stopped 1 node." ;;
    *) echo "Stopped $stopped of ${#alive[@]} nodes." ;;
esac
exit "$result"
