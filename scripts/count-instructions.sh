#!/usr/bin/env bash
# Counts the processor's instructions for a request in the codec, the store and a node, with valgrind's callgrind. Unlike
# times, these hardly depend on the machine or its load, so they can be compared across commits.
#
# Usage: scripts/count-instructions.sh [--save FILE] [--baseline FILE] [--smoke]
#   --save FILE      writes the figures to FILE too
#   --baseline FILE  compares with the figures that were saved in FILE
#   --smoke          calls everything a few times only, to see that it works
# GOPHERSTORE_COUNT names the program that is counted (benches/count) instead of building it.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib/common.sh"

usage() {
    sed -n '/^# Usage:/,/^# GOPH/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

save='' baseline='' calls=2000
while (($# > 0)); do
    case $1 in
    --save | --baseline)
        (($# > 1)) || { usage >&2; exit 2; }
        [[ $1 == --save ]] && save=$2 || baseline=$2
        shift
        ;;
    --smoke) calls=20 ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done
[[ -z $baseline || -r $baseline ]] || fail "$baseline cannot be read"
command -v valgrind >/dev/null || fail "valgrind is needed (apt-get install valgrind)"

count=${GOPHERSTORE_COUNT:-}
if [[ -z $count ]]; then
    command -v cargo >/dev/null || fail "cargo is needed to build GopherStore: see https://rustup.rs"
    cargo build --manifest-path "$root/Cargo.toml" --release --locked --quiet --example count
    count=$(target_folder)/release/examples/count
fi

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# Counts the calls that measured() makes. Each call of it writes a file of its own: out.1, out.2 and so on.
valgrind --tool=callgrind --callgrind-out-file="$dir/out" --toggle-collect='*::measured' \
    --dump-after='count*::measured' "$count" "$calls" >"$dir/operations" 2>"$dir/log" ||
    { cat "$dir/log" >&2; fail "the program that is counted has failed"; }
number=0
while read -r requests name; do
    number=$((number + 1))
    total=$(sed -n 's/^totals: //p' "$dir/out.$number" 2>/dev/null || true)
    [[ -n $total ]] || fail "valgrind has counted nothing of: $name"
    awk -v total="$total" -v requests="$requests" -v name="$name" \
        'BEGIN { printf "%10.1f  %s\n", total / requests, name }'
done <"$dir/operations" >"$dir/figures"
[[ -z $save ]] || cp "$dir/figures" "$save"

if [[ -z $baseline ]]; then
    printf '%10s  %s\n' instructions 'a request of'
    cat "$dir/figures"
else
    printf '%12s %12s %8s  %s\n' before now change 'a request of'
    awk '{ name = $0; sub(/^ *[0-9.]+ +/, "", name) }
        FNR == NR { before[name] = $1; next }
        name in before { printf "%12.1f %12.1f %+7.1f%%  %s\n", before[name], $1, ($1 / before[name] - 1) * 100, name; next }
        { printf "%12s %12.1f %8s  %s\n", "-", $1, "", name }' "$baseline" "$dir/figures"
fi
