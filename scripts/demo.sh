#!/usr/bin/env bash
# The first five minutes: starts every node of a cluster, writes, reads back from each, shows the bytes, kills a follower
# and lets it catch up. Leaves nothing running.
#
# Usage: scripts/demo.sh [CONFIG]                   CONFIG is cluster.toml where none is given
#
# Each response shown is compared with the expected one. The exit status is 0 only if all of them were right, and 3 if
# another program listens on the port of a node.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/nodes.sh"

if (($# > 1)) || [[ ${1-} == -* ]]; then
    misused "usage: scripts/demo.sh [CONFIG]"
fi
use_config "$@"
file=$(typed "$config")

binaries
members=$("$server" --check-config --config "$config")
[[ $members != *" data_dir="* ]] ||
    misused "$file keeps data on disk (data_dir), which the demo would write to; give it a copy of the file without that:" \
        "grep -v data_dir $file >memory.toml, and then scripts/demo.sh memory.toml"
# The leader first, and then its followers; the same place in each array is the same node.
names=()
pids=()
addrs=()
read -r leader leader_addr _ < <(grep ' leader$' <<<"$members") || true
[[ -n $leader ]] || fail "$server --check-config names no leader of $file"
names+=("$leader")
while read -r name _; do
    [[ $name == "$leader" ]] || names+=("$name")
done <<<"$members"
count=${#names[@]}
work=$(mktemp -d)

ended() { [[ -z ${pids[$1]:-} ]] || ! kill -0 "${pids[$1]}" 2>/dev/null; }
all_ended() {
    local at
    for ((at = 0; at < count; at++)); do ended "$at" || return 1; done
}

clean_up() {
    local at
    for ((at = 0; at < count; at++)); do ended "$at" || kill -TERM "${pids[at]}" 2>/dev/null || true; done
    waited 10 all_ended || true
    for ((at = 0; at < count; at++)); do ended "$at" || kill -KILL "${pids[at]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Sets now to the time in milliseconds.
clock() {
    local time=${EPOCHREALTIME:-$SECONDS.000000}
    time=${time/,/.}
    now=$((${time%.*} * 1000 + 10#${time#*.} / 1000))
}

step=0
title() {
    step=$((step + 1))
    printf '\n%s. %s\n' "$step" "$*"
}

wrong() {
    local name
    printf '%s: that is not what should have come: %s\n' "${0##*/}" "$*" >&2
    for name in "${names[@]}"; do
        [[ -s $work/$name.log ]] || continue
        echo "The log of $name:" >&2
        tail -n 10 "$work/$name.log" >&2
    done
    exit 1
}

# Runs a command: leaves what it printed in $out and $err, its exit status in $status, and the time it took in $took.
quietly() {
    local begin
    status=0
    clock
    begin=$now
    timeout --foreground 20 bash -o pipefail -c "$1" </dev/null >"$work/out" 2>"$work/err" || status=$?
    clock
    took=$((now - begin))
    out=$(<"$work/out")
    err=$(<"$work/err")
}

print() {
    if [[ -n $err ]]; then printf '%s\n' "$err"; fi
    if [[ -n $out ]]; then printf '%s\n' "$out"; fi
    if ((status == 0)); then echo "($*)"; else echo "(exit status $status, $*)"; fi
}

# Shows a command and runs it: shown EXIT_STATUS COMMAND.
shown() {
    printf '$ %s\n' "$2"
    quietly "$2"
    print "$took ms"
    [[ $status == "$1" ]] || wrong "exit status $status, expected $1"
}

# Shows a command and runs it until it prints this line, or the time is over: soon SECONDS LINE COMMAND.
# Counts from the time in $since, where it is set, and unsets it.
since=
soon() {
    local deadline=$((SECONDS + $1)) begin tries=0
    clock
    begin=${since:-$now}
    since=
    printf '$ %s\n' "$3"
    while
        tries=$((tries + 1))
        quietly "$3"
        ! { ((status == 0)) && grep -Fxq -- "$2" "$work/out"; }
    do
        if ((SECONDS >= deadline)); then
            print "$tries tries"
            wrong "no line '$2' within $1 seconds"
        fi
        sleep 0.02
    done
    clock
    print "there after $((now - begin)) ms, tries: $tries"
}

# Sets out to a value of a node's STATUS: fact NUMBER KEY.
fact() {
    quietly "$(client "$1") status | sed -n 's/^$2: //p'"
    [[ $status == 0 && -n $out ]] || wrong "no $2 in the status of ${names[$1]}"
}

client() { printf '%q --addr %q' "$cli" "${addrs[$1]}"; }

start() {
    local name=${names[$1]}
    : >"$work/$name.ready"
    echo "\$ $server --config $file --node $name &"
    "$server" --config "$config" --node "$name" </dev/null >"$work/$name.ready" 2>>"$work/$name.log" &
    pids[$1]=$!
}

ready() { grep -q "^gopherstore-server: ${names[$1]} ready on " "$work/${names[$1]}.ready"; }
ready_or_ended() { ended "$1" || ready "$1"; }

# Waits until a node is ready, and learns its address.
ready_at() {
    local name=${names[$1]} result=0
    waited 30 ready_or_ended "$1" || wrong "no line of $name that says ready within 30 seconds"
    if ended "$1"; then
        wait "${pids[$1]}" || result=$?
        pids[$1]=
        cat "$work/$name.log" >&2
        say "$name has not started (exit status $result)"
        if grep -q 'in use' "$work/$name.log"; then
            say "another program listens on its port: run scripts/demo.sh with a copy of $file that names other ports"
            say_running
            for_others say_running
            exit 3
        fi
        exit 1
    fi
    cat "$work/$name.ready"
    addrs[$1]=$(sed -n "s/^gopherstore-server: $name ready on \([^ ]*\) .*/\1/p" "$work/$name.ready")
}

clock
since=$now
if ((count == 1)); then
    title "Start node $leader, alone."
else
    title "Start $count nodes: $leader leads, ${names[*]:1} follow."
fi
for ((at = 0; at < count; at++)); do start "$at"; done
for ((at = 0; at < count; at++)); do ready_at "$at"; done
soon 30 "state: serving" "$(client 0) status | grep '^state'"
leads=$(client 0)

title "Write, and read back."
shown 0 "$leads ping"
shown 0 "$leads set user123 active"
clock
since_write=$now
shown 0 "$leads get user123"
[[ $out == active ]] || wrong "the value is 'active'"

if ((count > 1)); then
    title "Read on every follower what the leader was told."
    for ((at = 1; at < count; at++)); do
        since=$since_write
        soon 30 active "$(client "$at") get user123"
    done

    title "Write on a follower: it names the leader, and the client goes there by itself."
    follows=$(client 1)
    shown 4 "$follows --no-redirect set user123 lost"
    [[ $err == *" $leader_addr;"* ]] || wrong "the leader's address, $leader_addr"
    shown 0 "$follows set user456 redirected"
    clock
    since=$now
    shown 0 "$leads get user456"
    [[ $out == redirected ]] || wrong "the value is 'redirected'"
    soon 30 redirected "$follows get user456"
    quietly "$leads get user123"
    [[ $out == active ]] || wrong "the refused write changed nothing"
fi

title "See the bytes, both ways."
shown 0 "$leads --hex get user123"
[[ $out == active ]] || wrong "the value is 'active'"
[[ $err == *"75 73 65 72 31 32 33"* ]] || wrong "the dump shows the key's bytes, 75 73 65 72 31 32 33"
[[ $err == *"61 63 74 69 76 65"* ]] || wrong "the dump shows the value's bytes, 61 63 74 69 76 65"

title "The same without a client: the protocol is simple enough for printf."
missing=()
# Netcats differ: only OpenBSD's knows -N, which ends the sending side and still reads the responses.
nc -h 2>&1 | grep -q 'N.*[Ss]hutdown' || missing+=(netcat-openbsd)
command -v xxd >/dev/null || missing+=(xxd)
if ((${#missing[@]} == 0)); then
    host=${addrs[0]%:*}
    host=${host#[}
    host=${host%]}
    port=${addrs[0]##*:}
    # Opcode 1 byte, key length 2, value length 4, key.
    shown 0 "printf '\\002\\000\\007\\000\\000\\000\\000user123' | nc -N $host $port | xxd"
    [[ $out == "00000000: 0000 0000 0661 6374 6976 65 "* ]] || wrong "status 00, length 00000006, then the value"
    shown 0 "printf '\\004\\000\\000\\000\\000\\000\\000' | nc -N $host $port | xxd"
    [[ $out == "00000000: 0000 0000 0450 4f4e 47 "* ]] || wrong "status 00, length 00000004, then PONG"
    shown 0 "printf '\\100\\000\\000\\000\\000\\000\\000' | nc -N $host $port | tail -c +6 | grep -a '^state: '"
    [[ $out == "state: serving" ]] || wrong "STATUS is text: state: serving"
else
    echo "(left out: it needs ${missing[*]}, as from 'apt-get install ${missing[*]}')"
fi

title "Delete. Nothing is found afterwards, and the exit status says so."
shown 0 "$leads del user123"
shown 1 "$leads get user123"
[[ -z $out ]] || wrong "no value"

if ((count > 1)); then
    killed=${names[1]}
    title "Kill $killed, write on without it, and start it again, empty: it catches up."
    echo "\$ kill -KILL ${pids[1]}"
    kill -KILL "${pids[1]}" || wrong "$killed is gone already"
    # Hides the shell's own message about the kill.
    wait "${pids[1]}" 2>/dev/null || true
    pids[1]=
    shown 5 "$follows --timeout 2s get user456"
    shown 0 "seq 1000 | sed 's/.*/set more& value&/' | $leads | sort | uniq -c"
    [[ $out =~ ^\ *1000\ OK$ ]] || wrong "1000 times OK"
    clock
    since=$now
    start 1
    ready_at 1
    soon 30 value1000 "$follows get more1000"
    shown 0 "$follows get user456"
    [[ $out == redirected ]] || wrong "what was written before it was killed"
    shown 1 "$follows get user123"

    title "Ask all how they are. Equal digests are equal data."
    fact 0 digest
    digest=$out
    for ((at = 1; at < count; at++)); do
        soon 30 "digest: $digest" "$(client "$at") status | grep -E '^(node|role|state|epoch|index|digest|keys):'"
        [[ $out == *"role: follower"* && $out == *"state: serving"* ]] || wrong "a follower that serves"
        soon 30 0 "$leads status | sed -n 's/^follower[.]${names[at]}[.]lag_entries: //p'"
    done
    shown 0 "$leads status"
    [[ $out == *"role: leader"* && $out == *"keys: 1001"* ]] || wrong "a leader with 1001 keys"
else
    title "Ask it how it is."
    shown 0 "$leads status"
    [[ $out == *"role: leader"* && $out == *"state: serving"* ]] || wrong "a leader that serves"
fi

# Stops nodes by their numbers, each of which must end with this exit status: stop EXIT_STATUS NUMBER...
stop() {
    local expected=$1 at status numbers=("${@:2}") targets=()
    for at in "${numbers[@]}"; do targets+=("${pids[at]}"); done
    echo "\$ kill -TERM ${targets[*]}"
    clock
    begin=$now
    kill -TERM "${targets[@]}" || wrong "a node is gone already"
    for at in "${numbers[@]}"; do
        waited 15 ended "$at" || wrong "${names[at]} has not stopped within 15 seconds"
        status=0
        wait "${pids[at]}" || status=$?
        pids[at]=
        ((status == expected)) || wrong "exit status $status of ${names[at]}, expected $expected"
    done
    clock
    echo "(exit status $expected, $((now - begin)) ms)"
}

if ((count > 1)); then
    title "Stop the followers, and then the leader. It is the last with the data: it waits for a peer, and exits with 3."
    stop 0 $(seq "$((count - 1))")
    stop 3 0
    grep ' ERROR ' "$work/$leader.log" | tail -n 1
else
    title "Stop it."
    stop 0 0
fi

cat <<END

All answers were right, and nothing is left running. What to try next:

  $(command_for start-cluster.sh)
      every node of $file, in the background
  $(command_for stop-cluster.sh)
      stops them
  $cli --addr HOST:PORT
      commands at a prompt, in another terminal
  $(command_for start-node.sh "$leader")
      a node in this terminal, until Ctrl-C
END
