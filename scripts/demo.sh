#!/usr/bin/env bash
# The first five minutes: starts a node, writes, reads back, deletes, and shows the bytes. Leaves nothing running.
#
# Usage: scripts/demo.sh [CONFIG]                   CONFIG is cluster.toml where none is given
#
# Each answer that is shown is compared with what it has to be; the exit status is 0 only if all of them were right.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

if (($# > 1)) || [[ ${1:-} == -* ]]; then
    say "usage: scripts/demo.sh [CONFIG]"
    exit 2
fi
config=${1:-$config_default}

binaries
members=$("$server" --check-config --config "$config")
name=$(sed -n 's/^\([^ ]*\) .* leader$/\1/p' <<<"$members")
[[ -n $name ]] || fail "$server --check-config names no leader of $config"
work=$(mktemp -d)
node=

ended() { ! kill -0 "$node" 2>/dev/null; }

clean_up() {
    if [[ -n $node ]] && ! ended; then
        kill -TERM "$node" 2>/dev/null || true
        waited 10 ended || kill -KILL "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

title() { printf '\n%s\n' "$*"; }

wrong() {
    printf '%s: that is not what should have come: %s\n' "${0##*/}" "$*" >&2
    echo "The node's log:" >&2
    tail -n 10 "$work/log" >&2
    exit 1
}

# Shows a command and runs it: shown EXIT_STATUS COMMAND. Leaves what it printed in $out and $err.
shown() {
    local expected=$1 status=0
    printf '$ %s\n' "$2"
    timeout --foreground 20 bash -o pipefail -c "$2" </dev/null >"$work/out" 2>"$work/err" || status=$?
    out=$(<"$work/out")
    err=$(<"$work/err")
    if [[ -n $err ]]; then printf '%s\n' "$err"; fi
    if [[ -n $out ]]; then printf '%s\n' "$out"; fi
    if ((status != 0)); then echo "(exit status $status)"; fi
    [[ $status == "$expected" ]] || wrong "exit status $status, expected $expected"
}

title "1. Start node $name, alone."
echo "\$ $server --config $config --node $name &"
"$server" --config "$config" --node "$name" </dev/null >"$work/ready" 2>"$work/log" &
node=$!
ready() { grep -q "^gopherstore-server: $name ready on " "$work/ready"; }
ready_or_ended() { ended || ready; }
waited 30 ready_or_ended || wrong "no line that says ready within 30 seconds"
if ended; then
    status=0
    wait "$node" || status=$?
    node=
    cat "$work/log" >&2
    say "the node has not started (exit status $status)"
    if grep -q 'in use' "$work/log"; then
        say "another program listens on its port: if that is a node of yours, stop it (scripts/stop-cluster.sh, or" \
            "Ctrl-C where it runs); else run scripts/demo.sh with a copy of $config that names another port"
    fi
    exit 1
fi
cat "$work/ready"
addr=$(sed -n "s/^gopherstore-server: $name ready on \([^ ]*\) .*/\1/p" "$work/ready")
host=${addr%:*}
host=${host#[}
host=${host%]}
port=${addr##*:}
printf -v client '%q --addr %q' "$cli" "$addr"

title "2. Write, and read back."
shown 0 "$client ping"
shown 0 "$client set user123 active"
shown 0 "$client get user123"
[[ $out == active ]] || wrong "the value is 'active'"

title "3. See the bytes, both ways."
shown 0 "$client --hex get user123"
[[ $out == active ]] || wrong "the value is 'active'"
[[ $err == *"75 73 65 72 31 32 33"* ]] || wrong "the dump shows the key's bytes, 75 73 65 72 31 32 33"
[[ $err == *"61 63 74 69 76 65"* ]] || wrong "the dump shows the value's bytes, 61 63 74 69 76 65"

title "4. The same without a client: the protocol is simple enough for printf."
missing=()
# Netcats differ: only OpenBSD's knows -N, which ends the sending side and still reads the answers.
nc -h 2>&1 | grep -q 'N.*[Ss]hutdown' || missing+=(netcat-openbsd)
command -v xxd >/dev/null || missing+=(xxd)
if ((${#missing[@]} == 0)); then
    # Opcode 1 byte, key length 2, value length 4, key.
    shown 0 "printf '\\002\\000\\007\\000\\000\\000\\000user123' | nc -N $host $port | xxd"
    [[ $out == "00000000: 0000 0000 0661 6374 6976 65 "* ]] || wrong "status 00, length 00000006, then the value"
    shown 0 "printf '\\004\\000\\000\\000\\000\\000\\000' | nc -N $host $port | xxd"
    [[ $out == "00000000: 0000 0000 0450 4f4e 47 "* ]] || wrong "status 00, length 00000004, then PONG"
else
    echo "(left out: it needs ${missing[*]}, as from 'apt-get install ${missing[*]}')"
fi

title "5. Delete. Nothing is found afterwards, and the exit status says so."
shown 0 "$client del user123"
shown 1 "$client get user123"
[[ -z $out ]] || wrong "no value"

title "6. Stop the node."
echo "\$ kill -TERM $node"
kill -TERM "$node"
waited 15 ended || wrong "the node has not stopped within 15 seconds"
status=0
wait "$node" || status=$?
node=
((status == 0)) || wrong "exit status $status of the node, expected 0"

cat <<END

All answers were right, and the node is gone. What to try next:

  scripts/start-node.sh $name${1:+ $1}
      a node in this terminal, until Ctrl-C
  $cli --addr $addr
      commands at a prompt, in another terminal
  scripts/start-cluster.sh${1:+ $1}
      every node of $config, in the background; scripts/stop-cluster.sh stops them
END
