"""Requests a second, of trioreq and of what one could write instead, in a closed loop over tcp.

The servers are the files of `benchmarks/peers`. Their async handlers are `echo`, which never waits,
`checkpoint`, which awaits one checkpoint, and `sleep`, which waits 1 ms. Their plain functions run
in threads: `plain-echo` returns at once, `plain-sleep` sleeps for 1 ms, `plain-query` for 10 ms,
which is about what a database takes, and `plain-compute` computes for 100 microseconds.

Each figure is a ratio to a named server in the same round: `echo` to a raw loop of pyzmq calls (and
to the same loop in a trio task), `checkpoint` and `sleep` to the naive server on trio and to
zmq.asyncio, plain functions to ZeroMQ's own proxy with as many threads. All servers of a figure run
at the same time, and the rounds go over them in turn, trioreq next to what it is compared with: so
what else the machine does hits all alike.

Measure what users run, which has the C extension. From the root of a clone:

    python3 -m venv ENV
    TRIOREQ_COMPILE=1 ENV/bin/python -m pip install '.[bench]'
    ENV/bin/python -m benchmarks throughput

The report's first line says whether trioreq is compiled; an installation with -e never is.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trioreq
from harness.generator import Load, Shape
from harness.processes import processors

from ..shared import report
from ..shared.load import drive, is_lean
from ..shared.servers import (
    BARE_TRIO,
    CONTESTANTS,
    MULTIPART,
    NAIVE,
    PROCESSES,
    PROXY,
    RAW,
    TRIOREQ,
    ZMQ_ASYNCIO,
    installed,
    serving,
)

WIDE = 64 * 1024  # bytes


@dataclass(frozen=True)
class Pattern:
    """A load that servers are measured with."""

    title: str
    clients: int
    in_flight: int = 1
    bytes: int = 64


LOADS = {
    "1": Pattern("1 client", 1),
    "64": Pattern("64 clients", 64),
    "8x32": Pattern("8 clients, 32 each", 8, 32),
    "500": Pattern("500 clients", 500),
    "64KiB": Pattern("64 clients, 64 KiB", 64, bytes=WIDE),
}


@dataclass(frozen=True)
class Section:
    """A handler, and the servers that figures are ratios to: the first is that of all rows."""

    title: str
    references: Sequence[str]
    loads: Sequence[str] = ("1", "64", "8x32", "500")


SECTIONS = {
    "echo": Section("An async handler that never waits", (RAW, BARE_TRIO), tuple(LOADS)),
    "checkpoint": Section("An async handler that awaits a checkpoint", (NAIVE, ZMQ_ASYNCIO)),
    "sleep": Section("An async handler that waits 1 ms", (NAIVE, ZMQ_ASYNCIO)),
    "plain-echo": Section("A plain function that returns at once", (PROXY,)),
    "plain-sleep": Section("A plain function that sleeps for 1 ms", (PROXY,)),
    "plain-query": Section("A plain function that sleeps for 10 ms", (PROXY,)),
    "plain-compute": Section("A plain function that computes for 100 µs", (PROXY,)),
}
SERVERS = [name for name in CONTESTANTS if name != MULTIPART]  # that is the client's reference
DEFAULT = [name for name in SERVERS if name != PROCESSES]  # which needs more processors

Loads = dict[str, list[Load]]  # by server, one for each round
Figures = dict[str, dict[str, Loads]]  # by handler and load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=9, help="(9)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="for each figure of a round (0.5)"
    )
    parser.add_argument(
        "--handlers",
        nargs="+",
        choices=SECTIONS,
        default=[*SECTIONS],
        metavar="NAME",
        help=f"of {', '.join(SECTIONS)} (all)",
    )
    parser.add_argument(
        "--loads",
        nargs="+",
        choices=LOADS,
        default=[*LOADS],
        metavar="NAME",
        help=f"of {', '.join(LOADS)} (all); the last is for echo only",
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=SERVERS,
        default=DEFAULT,
        metavar="NAME",
        help=f"of {', '.join(map(repr, SERVERS))} (all but the last); those that ratios are taken "
        "to are added",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (SVG)")
    report.add_output(parser)


def servers_of(handler: str, wanted: Sequence[str]) -> list[str]:
    """Those that are measured with a handler, in turn: its references first, then trioreq."""
    order = [*SECTIONS[handler].references, *sorted(wanted, key=lambda name: name != TRIOREQ)]
    named = dict.fromkeys(order)  # each once
    return [name for name in named if handler in CONTESTANTS[name].handlers]


def measure_load(
    handler: str, pattern: Pattern, servers: list[str], rounds: int, seconds: float
) -> Loads:
    """All servers under one load. With one client, it and a server have a processor each."""
    cpus = processors()
    apart = pattern.clients == 1 and len(cpus) > 1
    shape = Shape(
        clients=pattern.clients,
        in_flight=pattern.in_flight,
        bytes=pattern.bytes,
        seconds=seconds,
        cpu=cpus[1] if apart else None,
    )
    loads: Loads = defaultdict(list)
    with ExitStack() as stack:
        running = [
            stack.enter_context(serving(server, handler, cpu=cpus[0] if apart else None))
            for server in servers
        ]
        for _ in range(rounds):
            for server in running:
                loads[server.contestant.name].append(drive(server, shape))
    return loads


def measure(options: argparse.Namespace) -> Figures:
    """All servers under all loads."""
    wanted = [server.name for server in installed(options.servers)]
    cells = [
        (handler, load)
        for handler in options.handlers
        for load in SECTIONS[handler].loads
        if load in options.loads
    ]
    figures: Figures = {handler: {} for handler, _ in cells}
    for handler, load in cells:
        servers = servers_of(handler, wanted)
        print(f"{handler}, {LOADS[load].title}: {', '.join(servers)}", file=sys.stderr)
        loads = measure_load(handler, LOADS[load], servers, options.rounds, options.seconds)
        for server, of_rounds in loads.items():
            for faults in filter(None, (came.faults() for came in of_rounds)):
                print(f"  {server}: {faults}", file=sys.stderr)
        figures[handler][load] = loads
    return figures


def ratios(loads: Loads, server: str, reference: str) -> list[float]:
    """Of a server's rates, to those of another in the same rounds; nan if that answered nothing."""
    pairs = zip(loads[server], loads[reference], strict=True)
    return [load.rps / base.rps for load, base in pairs if base.rps] or [math.nan]


def table(handler: str, by_load: dict[str, Loads]) -> report.Table:
    """A row for each server, and rows for the other references and the rates of the first."""
    section = SECTIONS[handler]
    first, *others = section.references
    servers = list(next(iter(by_load.values())))
    rows = []
    for server in servers:
        cells = [
            ("1" if server == first else report.spread(ratios(loads, server, first)))
            + (" !" if any(load.faults() for load in loads[server]) else "")
            for loads in by_load.values()
        ]
        mark = "" if is_lean(CONTESTANTS[server].protocol) else " *"
        rows.append([server + mark, *cells])
    if TRIOREQ in servers:
        for other in others:
            cells = [report.spread(ratios(loads, TRIOREQ, other)) for loads in by_load.values()]
            rows.append([f"{TRIOREQ}, to {other}", *cells])
    for server in dict.fromkeys([first, TRIOREQ]):
        if server in servers:
            rates = [
                f"{statistics.median(load.rps for load in loads[server]):,.0f}"
                for loads in by_load.values()
            ]
            rows.append([f"{server}, requests a second", *rates])
    head = [handler, *(LOADS[load].title for load in by_load)]
    title = f"{section.title}: ratio to {first}"
    return report.Table(head, rows, title=title, note=notes(rows))


def notes(rows: list[list[str]]) -> str:
    """What the marks in a table mean, as far as it has them."""
    lines = ["Ratio in the same round: median (least..greatest)."]
    if any(row[0].endswith("*") for row in rows):
        lines.append(
            "`*`: loaded by Python clients in up to two processes, which cost more than the C "
            "generator; a lower bound."
        )
    if any(cell.endswith("!") for row in rows for cell in row):
        lines.append("`!`: there were wrong or missing replies.")
    return " ".join(lines)


def plot(figures: Figures, file: Path) -> None:
    """Draw a row of panels for each handler, a panel for each load, a bar for each server."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "trioreq"  # the same figures make the same file
    from matplotlib import pyplot as plt

    names = {handler: [*next(iter(by_load.values()))] for handler, by_load in figures.items()}
    width = max(map(len, figures.values()))
    heights = [0.35 * len(servers) + 0.8 for servers in names.values()]
    figure, panels = plt.subplots(
        len(figures),
        width,
        sharey="row",
        squeeze=False,
        height_ratios=heights,
        figsize=(3 * width + 1.5, sum(heights)),
        layout="constrained",
    )
    for row, (handler, by_load) in zip(panels, figures.items(), strict=True):
        reference = SECTIONS[handler].references[0]
        colors = ["#1b6ca8" if name == TRIOREQ else "#b0b7bf" for name in names[handler]]
        for panel, (load, loads) in zip(row, by_load.items(), strict=False):
            values = [ratios(loads, name, reference) for name in names[handler]]
            medians = [statistics.median(value) for value in values]
            below = [median - min(value) for median, value in zip(medians, values, strict=True)]
            above = [max(value) - median for median, value in zip(medians, values, strict=True)]
            panel.barh(names[handler], medians, xerr=[below, above], color=colors, ecolor="#444444")
            panel.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
            panel.set_title(LOADS[load].title, fontsize=10)
            panel.set_xlabel(f"{handler}, to {reference}", fontsize=9)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in row[len(by_load) :]:
            panel.set_axis_off()
        row[0].invert_yaxis()
    figure.suptitle(
        "requests a second, as a ratio to the dotted line's server (lines: least to greatest)",
        fontsize=9,
    )
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    if not trioreq.__compiled__:
        print("trioreq is not compiled here: see --help for how users install it", file=sys.stderr)
    figures = measure(options)
    if not figures:
        print("no load of those is measured with any of these handlers", file=sys.stderr)
        return 2
    told = {
        handler: {
            load: {server: [vars(came) for came in loads[server]] for server in loads}
            for load, loads in by_load.items()
        }
        for handler, by_load in figures.items()
    }
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure."
    if options.plot:
        plot(figures, options.plot)
    tables = [table(handler, by_load) for handler, by_load in figures.items()]
    report.show(options, "throughput", how, tables, told, options.plot)
    return 0
