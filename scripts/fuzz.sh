#!/bin/sh
# Coverage-guided fuzzing of every decoder, with libFuzzer, on stable Rust.
#
# Usage: scripts/fuzz.sh [SECONDS]        60 seconds where none are given
#
# Inputs that fail are in fuzz/artifacts/. Add one as a line to fuzz/seeds/frames.hex, and `cargo test` checks it too.
# Needs a C++ compiler, which builds libFuzzer.
set -eu

seconds=${1:-60}
case $seconds in
    '' | *[!0-9]*)
        echo "fuzz.sh: SECONDS is a whole number, and not '$seconds'" >&2
        exit 2
        ;;
esac
cd "$(dirname "$(readlink -f "$0")")/../fuzz"
command -v xxd >/dev/null || { echo "fuzz.sh: xxd is needed for the seeds: apt-get install xxd" >&2; exit 1; }

mkdir -p corpus/decode artifacts/decode target/seeds
# One file for each line of seeds, named for the line.
number=0
while IFS= read -r line; do
    number=$((number + 1))
    case $line in '' | '#'*) continue ;; esac
    printf '%s\n' "${line%%  *}" | xxd -r -p >"target/seeds/$number"
done <seeds/frames.hex

# libFuzzer's instrumentation is a pass of LLVM, which stable Rust runs when it is named. A target is named too, so that
# build scripts go without it.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --quiet --release --locked --target "$host" --bin decode

exec "target/$host/release/decode" corpus/decode target/seeds -dict=gbp.dict -artifact_prefix=artifacts/decode/ \
    -max_len=4096 -timeout=10 -rss_limit_mb=1024 -max_total_time="$seconds" -print_final_stats=1
