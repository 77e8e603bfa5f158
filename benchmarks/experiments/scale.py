"""What many connections cost: throughput beside idle clients, and the price of a new client.

Each idle client has asked once, so that the server knows it. At most 64 clients go on asking, one
request at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from typing import TypedDict

from harness.generator import Load, Shape

from ..shared import report
from ..shared.load import drive
from ..shared.servers import RAW, TRIOREQ, serving

SERVERS = [RAW, TRIOREQ]
CONNECTED = [1, 10, 64, 1000, 10_000]
SPEAKERS = 64
SPARE_FILES = 200
NEWCOMERS = 16  # clients that come and go at the same time

Loads = dict[str, list[Load]]  # by server, one for each round


class Figures(TypedDict):
    """What is measured."""

    connected: dict[int, Loads]
    first: Loads
    newcomers: Loads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round (2)")
    parser.add_argument("--connected", type=int, nargs="+", default=CONNECTED, metavar="CLIENTS")
    report.add_output(parser)


def load(name: str, shape: Shape) -> Load:
    """A server of its own under a load."""
    with serving(name, files=shape.clients + SPARE_FILES) as server:
        return drive(server, shape)


def measure(options: argparse.Namespace) -> Figures:
    """All rounds."""
    counts = sorted({SPEAKERS, *options.connected})
    figures = Figures(
        connected={count: defaultdict(list) for count in counts},
        first=defaultdict(list),
        newcomers=defaultdict(list),
    )
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for name in SERVERS:
            for count, loads in figures["connected"].items():
                shape = Shape(clients=count, speakers=min(count, SPEAKERS), seconds=options.seconds)
                loads[name].append(load(name, shape))
            once = Shape(mode="connect", seconds=options.seconds)
            figures["first"][name].append(load(name, once))
            many = Shape(mode="connect", clients=NEWCOMERS, seconds=options.seconds)
            figures["newcomers"][name].append(load(name, many))
    return figures


def throughput(connected: dict[int, Loads]) -> report.Table:
    """Relative to 64 clients alone, for each server by itself."""
    table = report.Table(
        ["clients connected", *SERVERS],
        title="Requests a second beside idle clients",
        note=f"Ratio to {SPEAKERS} clients alone, of the same server in the same round: median "
        f"(least..greatest). At most {SPEAKERS} clients send requests.",
    )
    for count, loads in connected.items():
        row = [f"{count:,}"]
        for name in SERVERS:
            pairs = zip(loads[name], connected[SPEAKERS][name], strict=True)
            row.append(report.spread(here.rps / alone.rps for here, alone in pairs))
        table.rows.append(row)
    alone = connected[SPEAKERS]
    medians = [statistics.median(load.rps for load in alone[name]) for name in SERVERS]
    table.rows.append([f"{SPEAKERS}, requests a second", *(f"{rps:,.0f}" for rps in medians)])
    return table


def newcomers(first: Loads, many: Loads) -> report.Table:
    """A new client's first reply, and how many new clients a second."""
    table = report.Table(
        ["server", "median ms", "p99 ms", "ratio", "new clients a second", "ratio"],
        title="New clients: connect, handshake, one request, disconnect",
        note=f"Milliseconds from connect to the first reply, one client after the other; then "
        f"{NEWCOMERS} at the same time. Medians of the rounds; ratios to raw in the same round, of "
        "the medians and of the rates: median (least..greatest).",
    )
    for name in SERVERS:
        times = zip(first[name], first[RAW], strict=True)
        rates = zip(many[name], many[RAW], strict=True)
        table.rows.append(
            [
                name,
                f"{statistics.median(load.p50 for load in first[name]) / 1000:.3f}",
                f"{statistics.median(load.p99 for load in first[name]) / 1000:.3f}",
                report.spread(ours.p50 / raws.p50 for ours, raws in times),
                f"{statistics.median(load.rps for load in many[name]):,.0f}",
                report.spread(ours.rps / raws.rps for ours, raws in rates),
            ]
        )
    return table


def told(loads: Loads) -> dict[str, list[dict[str, float]]]:
    """For JSON."""
    return {name: [vars(load) for load in of_rounds] for name, of_rounds in loads.items()}


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    figures = measure(options)
    tables = [
        throughput(figures["connected"]),
        newcomers(figures["first"], figures["newcomers"]),
    ]
    everything = {
        "connected": {count: told(loads) for count, loads in figures["connected"].items()},
        "first": told(figures["first"]),
        "newcomers": told(figures["newcomers"]),
    }
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure."
    report.show(options, "scale", how, tables, everything)
    return 0
