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
alive=0
for file in "$run"/*.pid; do
    [[ -e $file ]] || continue # nothing matched
    name=$(basename "$file" .pid)
    names+=("$name")
    if running "$name"; then alive=$((alive + 1)); fi
done

result=0
if ((${#names[@]} > 0)); then stop_nodes "${names[@]}" || result=1; fi
case $alive in
    0) echo "No node was running." ;;
    1) echo "Stopped 1 node." ;;
    *) echo "Stopped $alive nodes." ;;
esac
exit "$result"
