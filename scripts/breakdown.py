#!/usr/bin/env python3
"""Where the processor time of a request goes: the tables of "Where the time goes" in docs/tried.md.

Usage: scripts/breakdown.py [--smoke]

Drives the servers by scripts/bench-peers.sh three times, a minute in all: as they are, for their processor time; under
`perf record`, whose samples are then put down to parts; and under `perf stat`, which counts system calls and switches
of threads. Needs perf, and addr2line for code that was inlined (apt-get install linux-perf binutils), and the right to
look at other programs: be root, or set kernel.perf_event_paranoid to -1. Says which symbols it could not place.
--smoke takes short readings, to see that it works: the figures mean nothing.
"""

import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

SCRIPTS = os.path.dirname(os.path.realpath(__file__))
# Title of a column, cell, server.
COLUMNS = [
    ("GET 4×128", "get-4x128", "gopherstore"),
    ("SET 4×128", "set-4x128", "gopherstore"),
    ("GET 50×1", "get-50x1", "gopherstore"),
    ("echo 4×128", "get-4x128", "echo"),
    ("echo 50×1", "get-50x1", "echo"),
]
CELLS = "get-4x128,set-4x128,get-50x1"
COUNTED = "get-50x1"  # one send is the answer to one request there

# Parts of the system's work, by the functions on its stack: the first part that any of them belongs to.
KERNEL = [
    ("switching threads", r"(__)?schedule$|schedule_|do_sched_yield|__x64_sys_sched_yield|finish_task_switch"),
    ("system: waking the client", r"sock_def_readable|ep_poll_callback|try_to_wake_up|__wake_up"),
    ("system: receiving", r"__x64_sys_(read|recv)"),
    ("system: sending", r"__x64_sys_(write|send)|do_writev"),
    ("system: waiting for many clients", r"__x64_sys_epoll_"),
    ("locks", r"__x64_sys_futex"),
    ("memory from the allocator", r"__x64_sys_(mmap|munmap|madvise|brk|mprotect)|exc_page_fault"),
    ("interrupts", r"asm_sysvec|asm_common_interrupt|asm_exc_nmi"),
    ("system: entry and exit of calls", r"do_syscall_64|entry_SYSCALL|syscall_"),
]
# Parts of the server's work, by symbols of libraries.
LIBRARIES = [
    ("copying values and frames", r"mem(move|cpy|set)"),
    ("looking keys up", r"memcmp|bcmp"),
    ("memory from the allocator", r"malloc|free|realloc|calloc|int_|tcache|sysmalloc|unlink_chunk|arena|cfree"),
    ("system: entry and exit of calls", r"send|recv|read|write|sched_yield|syscall"),
]
# Parts of the server's own work, by "function file" of each function that was inlined there, the first from the
# innermost outwards. A function of no file named here counts for its caller.
SOURCES = [
    ("hashing", r"/hash/sip\.rs|/store\.rs hash(es)?\b|siphash"),
    ("log and digest", r"xxhash|src/(engine/(digest|change|prepared)|log/[a-z_]+)\.rs|crossbeam"),
    ("locks", r"parking_lot|lock_api|slice/sort|src/engine/(gate\.rs|store\.rs (lock|spin)\b)"),
    ("copying values and frames", r"src/engine/entry\.rs (overwrite|copy_of|write)"),
    ("responses", r"wire/response\.rs|src/(engine/(answers|command/[a-z]+)|node/[a-z]+|server/session/output)\.rs"),
    ("looking keys up", r"hashbrown|src/engine/[a-z]+\.rs"),
    ("reading requests", r"src/wire/|peers/echo\.rs"),
    ("connection", r"src/server/|rustix|std/src/(sys/net|net|thread|io|os/unix/net)"),
    ("memory from the allocator", r"alloc/src/(alloc|raw_vec|boxed)"),
]
PARTS = [
    "system: receiving",
    "system: sending",
    "system: waiting for many clients",
    "system: waking the client",
    "system: entry and exit of calls",
    "switching threads",
    "interrupts",
    "reading requests",
    "hashing",
    "looking keys up",
    "copying values and frames",
    "locks",
    "responses",
    "connection",
    "memory from the allocator",
    "log and digest",
]
REST = "not placed"

CALLS = {
    "receive": ("read", "recvfrom", "recvmsg", "readv"),
    "send": ("write", "sendto", "sendmsg", "writev"),
    "yield": ("sched_yield",),
    "wait": ("epoll_wait", "epoll_pwait", "epoll_pwait2"),
}


def run(*command, env=None):
    """Standard output of a program that has to succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=False)
    if done.returncode != 0:
        sys.exit(f"breakdown.py: {command[0]} has failed")
    return done.stdout


def drive(folder, *options, beside=None):
    """Readings of scripts/bench-peers.sh. `beside` goes on while each is taken."""
    readings = os.path.join(folder, "readings")
    command = [os.path.join(SCRIPTS, "bench-peers.sh"), "--json", readings, *options]
    if beside:
        command += ["--beside", beside]
    run(*command, env=os.environ | {"OUT": folder})
    with open(readings, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def first(rules, texts):
    """The part of the first text that a rule is for."""
    for text in texts:
        for part, pattern in rules:
            if re.search(pattern, text):
                return part
    return None


def samples(file):
    """The stack of each sample, from the innermost function outwards: address, symbol, program."""
    frame = re.compile(r"\s*([0-9a-f]+) (.*) \((.*)\)$")
    stack = []
    with open(f"{file}.pid", encoding="utf-8") as pid:
        server = f"--pid={pid.read().strip()}"
    for line in run("perf", "script", "-i", file, server, "-F", "ip,sym,dso", "--no-inline").split("\n"):
        found = frame.match(line)
        if found:
            stack.append(found.groups())
        elif stack:
            yield stack
            stack = []


def inlined(program, offsets):
    """For each place in a program the functions that it is of, inlined ones first, with their files."""
    # perf gives places in the file, addr2line wants places in memory.
    segments = re.findall(r"LOAD +0x(\w+) 0x(\w+) \S+ 0x(\w+)", run("readelf", "-lW", program))
    segments = [[int(number, 16) for number in segment] for segment in segments]
    shifts = [(start, start + size, address - start) for start, address, size in segments]
    addresses = {}
    for offset in offsets:
        for start, end, shift in shifts:
            if start <= offset < end:
                addresses[offset + shift] = offset
    lines = subprocess.run(
        ["addr2line", "-e", program, "-aifC"],
        input="\n".join(map(hex, addresses)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split("\n")
    chains, chain = {}, []
    for line in lines:
        if re.fullmatch("0x[0-9a-f]{16}", line):
            chain = chains.setdefault(addresses[int(line, 16)], [])
        elif line:
            chain.append(line)
    # A function and its file in turn.
    return {at: [f"{file} {name}" for name, file in zip(chain[::2], chain[1::2])] for at, chain in chains.items()}


def profile(file):
    """The share of each part, and the symbols that are in none."""
    stacks = list(samples(file))
    is_system = lambda place: place.startswith("[kernel")
    own = collections.defaultdict(set)
    for (offset, _, place), *_ in stacks:
        if place.startswith("/") and "/lib" not in place:
            own[place].add(int(offset, 16))
    sources = {program: inlined(program, offsets) for program, offsets in own.items()}
    parts, unplaced = collections.Counter(), collections.Counter()
    for stack in stacks:
        offset, symbol, place = stack[0]
        if is_system(place):
            names = [name for _, name, of in stack if is_system(of)]
            part = next((part for part, pattern in KERNEL if any(re.match(pattern, name) for name in names)), None)
        elif place in sources:
            chain = sources[place].get(int(offset, 16), [])
            # Reading an entry counts as such and not as the functions inlined there.
            chain = next((chain[at:] for at, text in enumerate(chain) if "src/engine/entry.rs" in text), chain)
            part = first(SOURCES, chain) or first(SOURCES, [symbol])
        elif place == "[vdso]":
            part = "connection"
        else:
            part = first(LIBRARIES, [symbol])
        parts[part or REST] += 1
        if part is None:
            unplaced[f"{symbol} ({os.path.basename(place)})"] += 1
    total = sum(parts.values())
    if total == 0:
        sys.exit(f"breakdown.py: perf has taken no samples of {os.path.basename(file)}")
    return (
        {part: count / total for part, count in parts.items()},
        [(symbol, count / total) for symbol, count in unplaced.most_common(5)],
    )


def counts(file):
    """Events by their names, as `perf stat -x,` writes them."""
    # An event that was not counted has a text instead of a number.
    with open(file, encoding="utf-8") as lines:
        rows = [line.split(",") for line in lines if re.match(r"[0-9]", line)]
    found = {row[2].removeprefix("syscalls:sys_enter_"): float(row[0]) for row in rows}
    return collections.Counter(found)


def table(titles, rows):
    """As Markdown has it."""
    lines = [titles, ["---"] + ["--:"] * (len(titles) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    """Measures, and prints both tables."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["--smoke"]):
        print(__doc__.strip())
        sys.exit(0 if arguments in (["-h"], ["--help"]) else 2)
    is_smoke = bool(arguments)
    # When and how long perf looks.
    start, time = (0.05, 0.1) if is_smoke else (0.3, 1.5)
    look = f"sleep {start}; exec perf"
    with tempfile.TemporaryDirectory() as folder:
        plain = drive(folder, "--cells", CELLS, "--seconds", "0.5", *arguments)
        # Of all programs: a clock that followed the threads of one would be set anew at each switch.
        record = f"{look} record -q -N -B -a -g -e cpu-clock -F 1999 -o $OUT/$CELL-$SERVER -- sleep {time}"
        record = f"echo $PID >$OUT/$CELL-$SERVER.pid; {record}"
        drive(folder, "--cells", CELLS, "--servers", "gopherstore,echo", "--rounds", "1", *arguments, beside=record)
        calls = ",".join(f"syscalls:sys_enter_{name}" for names in CALLS.values() for name in names)
        count = f"{look} stat -x, -e context-switches,raw_syscalls:sys_enter,{calls} -o $OUT/$SERVER -p $PID"
        drive(folder, "--cells", COUNTED, "--rounds", "1", *arguments, beside=f"{count} -- sleep {time}")
        profiles = [profile(os.path.join(folder, f"{cell}-{server}")) for _, cell, server in COLUMNS]
        servers = {reading["server"]: reading["version"] for reading in plain}
        counted = {server: counts(os.path.join(folder, server)) for server in servers}

    def processor(cell, server):
        of = [one for one in plain if one["cell"] == cell and one["server"] == server]
        return statistics.median(one["figures"]["processor µs/request"] for one in of)

    whole = [1e3 * processor(cell, server) for _, cell, server in COLUMNS]
    rows = []
    for part in [*PARTS, REST]:
        shares = [shares.get(part, 0) for shares, _ in profiles]
        if any(shares) or part == REST:
            rows.append([part] + [f"{share * ns:.0f}" for share, ns in zip(shares, whole)])
    rows.append(["**all**"] + [f"**{ns:.0f}**" for ns in whole])
    print(table(["ns of a request"] + [title for title, _, _ in COLUMNS], rows), end="\n\n")
    rows = []
    for server, version in servers.items():
        events = counted[server]
        requests = sum(events[name] for name in CALLS["send"])
        each = {group: sum(events[name] for name in names) for group, names in CALLS.items()}
        each["other"] = max(0, events["raw_syscalls:sys_enter"] - sum(each.values()))
        figures = [events["raw_syscalls:sys_enter"], *each.values(), events["context-switches"]]
        rows.append(
            [version, f"{processor(COUNTED, server):.2f}"] + [f"{figure / max(requests, 1):.2f}" for figure in figures]
        )
    titles = ["GET 50×1, a request", "processor µs", "system calls", *CALLS, "other", "switches"]
    print(table(titles, rows), end="\n\n")
    pipe = run("taskset", "-c", "0", "perf", "bench", "-f", "simple", "sched", "pipe", "-T", "-l", "20000")
    print(f"A switch of threads on one core, with a sleep, a wake and a byte through a pipe: {cost(pipe):.2f} µs.")
    for (title, _, _), (shares, unplaced) in zip(COLUMNS, profiles):
        symbols = ", ".join(f"{symbol} {share:.1%}" for symbol, share in unplaced)
        print(f"{title}: {shares.get(REST, 0):.1%} not placed: {symbols}", file=sys.stderr)


def cost(pipe):
    """Microseconds of one of the two switches of each of the 20,000 rounds."""
    return float(pipe.split()[-1]) * 1e6 / 20_000 / 2


if __name__ == "__main__":
    main()
