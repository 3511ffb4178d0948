#!/usr/bin/env bash
# Runs one node in the foreground, until Ctrl-C.
#
# Usage: scripts/start-node.sh NAME [CONFIG]        CONFIG is cluster.toml where none is given
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

config=${2:-$config_default}
if (($# < 1 || $# > 2)) || [[ $1 == -* ]]; then
    say "usage: scripts/start-node.sh NAME [CONFIG], where NAME is a node in $config_default, such as n1"
    exit 2
fi

binaries
exec "$server" --config "$config" --node "$1"
