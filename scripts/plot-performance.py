#!/usr/bin/env python3
"""Draws how the cost of a request grows with keys, value size, connections and followers.

Usage: scripts/plot-performance.py READINGS >docs/performance.svg

READINGS is what this wrote:
    scripts/bench-peers.sh --cells keys,values,connections,followers --json READINGS
Needs nothing but Python's standard library.
"""

import json
import math
import statistics
import sys
from html import escape

# Group of cells, title, axis, whether the axis is logarithmic.
PANELS = [
    ("keys", "keys", "8 × depth 64, 90 % GET, 64 B", True),
    ("values", "value size in bytes", "8 × depth 64, 90 % GET, 2,000 keys", True),
    ("connections", "connections", "depth 1, 90 % GET, 64 B", True),
    ("followers", "followers", "4 × depth 128, SET, 64 B", False),
]
FIGURE = "processor µs/request"
# Apart for those who do not see colours as well: each has a mark of its own too.
SERVERS = {
    "gopherstore": ("#0072b2", "circle"),
    "redis": ("#d55e00", "square"),
    "valkey": ("#cc79a7", "diamond"),
    "memcached": ("#009e73", "triangle"),
    "echo": ("#777777", "cross"),
}
WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 50, 48


def curves(lines):
    """The median of each point: group, server, x. Names of the servers with their versions."""
    points, names = {}, {}
    for line in lines:
        reading = json.loads(line)
        value = reading["figures"].get(FIGURE)
        if reading["x"] is None or value is None or value <= 0:
            continue
        key = (reading["group"], reading["server"])
        points.setdefault(key, {}).setdefault(reading["x"], []).append(value)
        names[reading["server"]] = reading["version"]
    medians = {
        key: sorted((x, statistics.median(values)) for x, values in of.items()) for key, of in points.items()
    }
    return medians, names


def short(number):
    """1,000 as 1k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{unit}" if number % size == 0 else f"{number / size:.0f}{unit}"
    return f"{number:g}"


def mark(shape, x, y, colour):
    """A point."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    outline = {
        "square": "M-3,-3h6v6h-6z",
        "diamond": "M0,-4.5l4.5,4.5l-4.5,4.5l-4.5,-4.5z",
        "triangle": "M0,-4.5l4,7.5h-8z",
        "cross": "M-3.5,-3.5l7,7m0,-7l-7,7",
    }[shape]
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{outline}" fill="{colour}" stroke="{colour}"/>'


def text(x, y, content, anchor="middle", extra=""):
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(content)}</text>'


def panel(group, title, subtitle, is_log, medians):
    """One chart, with its upper left corner at 0, 0."""
    of = {server: medians[group, server] for server in SERVERS if (group, server) in medians}
    xs = sorted({x for points in of.values() for x, _ in points})
    ys = [y for points in of.values() for _, y in points]
    out = [text(WIDTH / 2, 20, f"{title}", extra='font-weight="bold"'), text(WIDTH / 2, 37, subtitle)]
    if not ys:
        return out + [text(WIDTH / 2, HEIGHT / 2, "not measured")]
    place = math.log10 if is_log else float
    low, high = place(xs[0]), place(xs[-1])
    bottom, top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    top = max(top, bottom + 1)

    def at_x(x):
        share = (place(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def at_y(y):
        return HEIGHT - BOTTOM - (math.log10(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    for decade in range(bottom, top + 1):
        for step in (1, 2, 5):
            value = step * 10.0**decade
            if value > 10.0**top:
                break
            out.append(f'<path d="M{LEFT},{at_y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            if step == 1 or top - bottom < 3:
                out.append(text(LEFT - 6, at_y(value) + 4, f"{value:g}", "end"))
    for x in xs:
        out.append(text(at_x(x), HEIGHT - BOTTOM + 16, short(x)))
    out.append(text(WIDTH / 2, HEIGHT - 10, title))
    turned = f'transform="rotate(-90 16 {HEIGHT / 2})"'
    out.append(text(16, HEIGHT / 2, "processor µs per request", extra=turned))
    for server, points in of.items():
        colour, shape = SERVERS[server]
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.extend(mark(shape, at_x(x), at_y(y), colour) for x, y in points)
    return out


def draw(lines):
    """The whole picture."""
    medians, names = curves(lines)
    width, height = 2 * WIDTH, 2 * HEIGHT + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, chosen in enumerate(PANELS):
        x, y = number % 2 * WIDTH, number // 2 * HEIGHT
        out.append(f'<g transform="translate({x} {y})">')
        out.extend(panel(*chosen, medians))
        out.append("</g>")
    x = 40
    for server, (colour, shape) in SERVERS.items():
        if server in names:
            out.append(mark(shape, x, height - 16, colour))
            out.append(text(x + 10, height - 12, names[server], "start"))
            x += 30 + 7 * len(names[server])
    return "\n".join(out + ["</svg>"])


def main():
    """Reads the file, prints the picture."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip() if sys.argv[1:] in (["-h"], ["--help"]) else "usage: plot-performance.py READINGS")
    with open(sys.argv[1], encoding="utf-8") as file:
        print(draw(file))


if __name__ == "__main__":
    main()
