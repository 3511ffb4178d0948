# shellcheck shell=bash
# Functions that start, watch and stop nodes in the background. Sourced, never run.
#
# Each configuration file has a folder of its own in run/ (or where GOPHERSTORE_RUN says), in which its nodes have
# NAME.pid, NAME.log (appended to) and NAME.out (the ready line). The file `cluster` there records the configuration
# file, the client, and the members as --check-config prints them.

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
shopt -s nullglob dotglob

# The binaries, and the members as --check-config prints them: set by the scripts.
server='' cli='' members=''
config_default=$root/cluster.toml
run=${GOPHERSTORE_RUN:-$root/run}
[[ $run == /* ]] || run=$PWD/$run
ready_seconds=${GOPHERSTORE_READY_SECONDS:-30}
assume_yes='' is_restart='' locked='' signal=0
# By a node's name: its process id, the length of its log before it was started or stopped, why it does not serve.
declare -A child=() log_len=() words=()

[[ $ready_seconds =~ ^[0-9]{1,6}$ ]] || misused "GOPHERSTORE_READY_SECONDS is a number of seconds, not '$ready_seconds'"
ready_seconds=$((10#$ready_seconds))

# Sets config to the absolute path of a configuration file, and dir to the folder of its nodes: use_config [CONFIG].
# The same file has the same folder, however it is named; two files never share one.
use_config() {
    local given=${1-$config_default} folder stem
    [[ -n $given ]] || misused "the name of the configuration file is empty"
    folder=$(cd -P -- "$(dirname -- "$given")" 2>/dev/null && pwd -P) ||
        misused "cannot read $given: no such file or folder"
    config=${folder%/}/${given##*/}
    stem=$(basename -- "$config" .toml)
    if [[ $config == "$root/$stem.toml" ]]; then
        dir=$run/$stem
    else
        dir=$run/$stem-$(printf '%s' "$config" | cksum | cut -d ' ' -f 1)
    fi
}

# Prints the command that runs a script for this cluster: command_for SCRIPT [ARGUMENT...].
command_for() {
    local path
    path=$(typed "$root/scripts/$1")
    [[ $path == */* ]] || path=./$path
    shift
    [[ -z ${GOPHERSTORE_RUN:-} ]] || printf 'GOPHERSTORE_RUN=%s ' "$(typed "$run")"
    printf '%s' "$path"
    (($# == 0)) || printf ' %q' "$@"
    [[ $config == "$config_default" ]] || printf ' %s' "$(typed "$config")"
}

# Sets recorded_config, recorded_cli and recorded_members to what the file `cluster` of a folder holds.
read_record() {
    recorded_config='' recorded_cli='' recorded_members=''
    [[ -r $1/cluster ]] || return 0
    {
        IFS= read -r recorded_config || true
        # shellcheck disable=SC2034 # stop-cluster.sh uses it
        IFS= read -r recorded_cli || true
        recorded_members=$(cat)
    } <"$1/cluster"
}

# Makes the folder of this cluster.
claim_folder() {
    mkdir -p "$dir"
    read_record "$dir"
    [[ -z $recorded_config || $recorded_config == "$config" ]] ||
        fail "$dir belongs to $recorded_config; give $config another name"
}

# Replaces a file in one step: replace FILE LINE...
replace() {
    printf '%s\n' "${@:2}" >"$1.new"
    mv -f "$1.new" "$1"
}

# Lets one script at a time start or stop nodes of this cluster. Two that stop a node at once would send it two
# signals, of which the second ends it before other nodes have its data.
lock() {
    command -v flock >/dev/null || return 0
    exec {locked}>"$dir/lock"
    flock -n "$locked" && return 0
    say "waiting for another script that starts or stops nodes of $(typed "$config")"
    flock -w 200 "$locked" || fail "another script still works on $(typed "$config"); nothing was done"
}

unlock() {
    [[ -z $locked ]] || exec {locked}>&-
    locked=''
}

# The command line of a process, with a blank before and after each word; nothing where there is no such process.
command_line() {
    if [[ -r /proc/self/cmdline ]]; then
        # A process may end meanwhile.
        { printf ' '; tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
    else
        printf ' %s ' "$(ps -p "$1" -o args= 2>/dev/null || true)"
    fi
}

# Sets pid to the process id of a node of this cluster; fails where it does not run. A number alone proves nothing: after
# a crash or a restart of the machine it may be that of another program, or of another cluster's node.
running() {
    pid=''
    [[ -r $dir/$1.pid ]] && read -r pid <"$dir/$1.pid" && [[ $pid =~ ^[1-9][0-9]{0,9}$ ]] || return 1
    [[ $(command_line "$pid") == *" --config $config --node $1 " ]]
}

# Whether the process of a node is still ending. Its memory goes first, which takes the longer the more it is, and its
# arguments with that; then its sockets are closed.
ending() {
    local stat fields
    pid=''
    [[ -r $dir/$1.pid ]] && read -r pid <"$dir/$1.pid" && [[ $pid =~ ^[1-9][0-9]{0,9}$ ]] || return 1
    { read -r stat <"/proc/$pid/stat"; } 2>/dev/null || return 1
    # From the process's state on: flags are the seventh, of which 4 is "exiting", and threads the eighteenth.
    read -r -a fields <<<"${stat##*) }"
    ((fields[6] & 4)) && [[ ${fields[0]} != [ZX] || ${fields[17]} -gt 1 ]]
}

stopped() { ! running "$1" && ! ending "$1"; }

# Whether a node is to lead, by $members.
is_leader() {
    local line
    while read -r line; do
        if [[ $line == "$1 "*' leader' ]]; then return 0; fi
    done <<<"$members"
    return 1
}

# Whether the configuration file gives a node a data directory, by $members.
has_directory() {
    local line
    while read -r line; do
        if [[ $line == "$1 "*' data_dir='* ]]; then return 0; fi
    done <<<"$members"
    return 1
}

# Sets alive to the names of this cluster's nodes that run.
find_alive() {
    local file name
    alive=()
    for file in "$dir"/*.pid; do
        name=$(basename -- "$file" .pid)
        if running "$name"; then alive+=("$name"); fi
    done
}

# Calls a function for each other configuration file that has a folder, with dir, config and recorded_members of it.
for_others() {
    local file own=$dir
    for file in "$run"/*/cluster; do
        local dir=${file%/cluster} config
        [[ $dir != "$own" ]] || continue
        read_record "$dir"
        config=$recorded_config
        "$@"
    done
}

# Prints how to stop this cluster, if it runs.
say_running() {
    local alive
    find_alive
    ((${#alive[@]} == 0)) ||
        say "running from $(typed "$config"): ${alive[*]}; to stop them: $(command_for stop-cluster.sh)"
}

# Fails where a node that runs has the address of another cluster's node: refuse_address NAME ADDR.
refuse_address() {
    local name addr
    while read -r name addr _; do
        if [[ $addr == "$2" ]] && running "$name"; then
            fail "nothing was started: $2, the address of $1, is in use by $name of $(typed "$config") (process $pid);" \
                "give $1 another address"
        fi
    done <<<"$recorded_members"
}

# Fails where a running node of another cluster has the address of one of the named nodes.
refuse_taken() {
    local name addr
    while read -r name addr _; do
        [[ " $* " != *" $name "* || $addr == *:0 ]] || for_others refuse_address "$name" "$addr"
    done <<<"$members"
}

# Starts nodes, detached: each in a session of its own, without this script's descriptors, and ignoring SIGHUP. Needs
# server, cli, members and the lock; child has their process ids.
launch() {
    local name server_path cli_path traps detach=()
    server_path=$(program "$server")
    cli_path=$(program "$cli")
    ! command -v setsid >/dev/null || detach=(setsid)
    replace "$dir/cluster" "$config" "$cli_path" "$members"
    # A signal waits until the process ids are written down.
    traps=$(trap -p INT TERM HUP)
    trap 'signal=130' INT
    trap 'signal=143' TERM HUP
    for name in "$@"; do
        waited 60 stopped "$name" || true
        : >>"$dir/$name.log"
        log_len[$name]=$(wc -c <"$dir/$name.log")
        : >"$dir/$name.out"
        (
            trap '' HUP
            close_descriptors
            cd "$root" || exit
            exec "${detach[@]}" "$server_path" --config "$config" --node "$name"
        ) </dev/null >"$dir/$name.out" 2>>"$dir/$name.log" &
        child[$name]=$!
        replace "$dir/$name.pid" "$!"
    done
    # Until then others do not recognise the processes.
    for name in "$@"; do waited 5 running_or_gone "$name" || true; done
    trap - INT TERM HUP
    eval "$traps"
    ((signal == 0)) || exit "$signal"
}

# Starts one node, detached, and waits until it serves. Needs the lock, and releases it.
start_detached() {
    launch "$1"
    unlock
    wait_serving "$1"
    if ! report_start; then
        ((${#ended[@]} > 0)) || say "it goes on running"
        exit 1
    fi
    cat "$dir/$1.out"
}

# Closes what a node would inherit beside its three streams, such as the lock.
close_descriptors() {
    local fd
    for fd in /dev/fd/*; do
        fd=${fd##*/}
        if ((fd > 2)); then eval "exec $fd>&-"; fi
    done
}

running_or_gone() { running "$1" || ! kill -0 "${child[$1]}" 2>/dev/null; }

# Prints the address that a node has named as ready; fails where it has not.
address_of() {
    [[ $(cat "$dir/$1.out" 2>/dev/null) =~ " ready on "([^ ,]+) ]] && printf '%s\n' "${BASH_REMATCH[1]}"
}

# Asks the node at an address for its STATUS, and sets status_KEY for some keys; fails without a response.
ask_status() {
    local key value
    status_cluster='' status_role='' status_state='' status_reason='' status_keys=''
    status_epoch='' status_index='' status_digest='' status_disk='' status_written=''
    while IFS=' ' read -r key value; do
        case $key in
        cluster:) status_cluster=$value ;;
        role:) status_role=$value ;;
        state:) status_state=$value ;;
        reason:) status_reason=$value ;;
        keys:) status_keys=$value ;;
        epoch:) status_epoch=$value ;;
        index:) status_index=$value ;;
        digest:) status_digest=$value ;;
        disk:) status_disk=$value ;;
        written_index:) status_written=$value ;;
        esac
    done < <("$cli" --addr "$1" --timeout 2s status 2>/dev/null </dev/null)
    # A copy that is not on the disk yet is in memory alone.
    if [[ $status_written == 0 && $status_index != 0 ]]; then status_disk=behind; fi
    [[ -n $status_state ]]
}

# Whether a node serves; words says why not.
serves() {
    local addr
    if ! addr=$(address_of "$1"); then
        words[$1]='it has not said that it is ready'
    elif ! ask_status "$addr"; then
        words[$1]="it does not answer at $addr"
    else
        words[$1]="state $status_state${status_reason:+: $status_reason}"
        [[ $status_state == serving ]] && return 0
    fi
    return 1
}

# Waits until nodes that were launched serve, for ready_seconds in all. Sets ended to those that do not run any more, of
# which one ends the wait, and late to those that do not serve yet.
wait_serving() {
    local deadline=$((SECONDS + ready_seconds)) name pending
    late=("$@")
    while true; do
        pending=() ended=()
        for name in "${late[@]}"; do serves "$name" || pending+=("$name"); done
        # A process that becomes another program has no command line for a moment.
        for name in "$@"; do
            running "$name" || kill -0 "${child[$name]}" 2>/dev/null || ended+=("$name")
        done
        late=("${pending[@]}")
        ((${#ended[@]} == 0 && ${#late[@]} > 0 && SECONDS < deadline)) || return 0
        sleep 0.05
    done
}

# Prints the log of a node since it was launched, or since it was told to stop.
new_log() { tail -c "+$((${log_len[$1]} + 1))" "$dir/$1.log"; }

# Reports the nodes in ended and late; fails where there are any.
report_start() {
    local name code
    for name in "${ended[@]}"; do
        code=0
        wait "${child[$name]}" || code=$?
        say "$name has ended with exit status $code; the end of $(typed "$dir/$name.log"):"
        new_log "$name" | tail -n 10 >&2
        rm -f "$dir/$name.pid"
    done
    if ((${#ended[@]} == 0)); then
        for name in "${late[@]}"; do
            say "$name does not serve after $ready_seconds s: ${words[$name]}"
        done
    fi
    ((${#ended[@]} + ${#late[@]} == 0))
}

# Sets at_risk to a text that names the data that is lost if the named nodes stop; empty if none is lost. Sets on_disk to
# those of them that keep their data on disk. Their data is not lost, unless a restart (is_restart) no longer reads the
# directory. The data of the other nodes is safe
# - while a leader serves that stays, or that has a disk;
# - where a leader stops and a follower stays: it waits until that has its data. A follower with a disk is stopped after
#   a leader without one;
# - without a leader, where a node that stays, or that has a disk, has the same position and digest.
assess() {
    local name addr position cluster='' keys=0 leader='' follower='' holders=' ' silent=() refused=() lacking=()
    local bare=() positions=() dropped='' at
    at_risk='' on_disk=()
    for name in "$@"; do
        if ! running "$name" || ! addr=$(address_of "$name"); then continue; fi # it serves nobody
        if ! ask_status "$addr"; then
            silent+=("$name")
            continue
        fi
        cluster=$status_cluster position="$status_epoch/$status_index/$status_digest"
        if [[ $status_disk == used && -n $is_restart ]] && ! has_directory "$name"; then
            dropped="$(typed "$config") gives $name no data directory any more, and "
        elif [[ $status_disk == used ]]; then
            on_disk+=("$name")
            [[ $status_state == serving ]] || continue
            if [[ $status_role == leader ]]; then leader=stays; else follower=$name; fi
            holders+="$position "
            continue
        fi
        [[ $status_state != refused ]] || refused+=("$name")
        [[ $status_role/$status_state != leader/serving || -n $leader ]] || leader=goes
        if ((${status_keys:-0} > 0)); then bare+=("$name") positions+=("$position $status_keys"); fi
    done
    if ((${#bare[@]} == 0 && ${#silent[@]} == 0)); then return 0; fi
    while read -r name addr _; do
        [[ -n $name && " $* " != *" $name "* ]] || continue
        if ! ask_status "$addr" || [[ $status_cluster != "$cluster" || $status_state != serving ]]; then continue; fi
        if [[ $status_role == leader ]]; then leader=stays; else follower=$name; fi
        holders+="$status_epoch/$status_index/$status_digest "
    done <<<"$members"
    if ((${#refused[@]} > 0)); then
        at_risk="${refused[*]}: state refused, with entries that other nodes lack"
    elif [[ $leader == stays ]]; then
        return 0
    elif ((${#silent[@]} > 0)); then
        at_risk="${silent[*]}: no response, and no leader serves"
    elif [[ $leader != goes || -z $follower ]]; then
        for at in "${!bare[@]}"; do
            read -r position status_keys <<<"${positions[at]}"
            if [[ $holders == *" $position "* ]]; then continue; fi
            lacking+=("${bare[at]}")
            ((status_keys <= keys)) || keys=$status_keys
        done
        ((${#lacking[@]} > 0)) || return 0
        at_risk="${dropped}no other node is known to hold the data, keys: $keys"
        ((${#on_disk[@]} == 0)) || at_risk="${lacking[*]}: not on disk, and $at_risk"
    fi
}

# Asks at a terminal whether to go on although at_risk says what is lost. Elsewhere, and with --yes, the answer is yes.
confirmed() {
    local answer=''
    [[ -n $at_risk && -z $assume_yes && -t 0 && -t 2 ]] || return 0
    read -r -p "$1 loses data ($at_risk). Go on? [y/N] " answer || true
    [[ $answer == [yY] || $answer == [yY][eE][sS] ]]
}

# Stops the named nodes in good order, and fails if one does not stop within 90 seconds. Needs the lock. A node's exit
# status is its parent's to know; what it logs as lost, or as a fault of its own, is shown.
stop_nodes() {
    local name result=0
    for name in "$@"; do
        log_len[$name]=0
        [[ ! -e $dir/$name.log ]] || log_len[$name]=$(wc -c <"$dir/$name.log")
        if running "$name"; then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    for name in "$@"; do
        if ! waited 90 stopped "$name"; then
            say "$name has not stopped within 90 seconds (process $pid); see $(typed "$dir/$name.log")"
            result=1
            continue
        fi
        rm -f "$dir/$name.pid"
        [[ ! -e $dir/$name.log ]] ||
            new_log "$name" | sed -n "/ ERROR .* lost /s/^[^]]*\] /$name: /p; /panicked at/s/^/$name: /p" >&2
    done
    return "$result"
}
