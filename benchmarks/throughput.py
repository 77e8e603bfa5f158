"""Requests a second, of trioreq and of others, in a closed loop over tcp.

Each figure is a ratio to `raw` in the same round: the loop of pyzmq calls that a good user writes
by hand, in one thread and with nothing around it. The rounds go over all servers in turn, so that
what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from harness.generator import Load, Shape
from harness.processes import processors

from . import report
from .load import drive, is_lean
from .servers import CONTESTANTS, RAW, Contestant, chosen, serving


@dataclass(frozen=True)
class Column:
    """A pattern of requests that all servers are measured with."""

    key: str
    title: str
    clients: int
    in_flight: int = 1
    bytes: int = 64


COLUMNS = [
    Column("1", "1 client", 1),
    Column("64", "64 clients", 64),
    Column("8x32", "8 clients, 32 each", 8, 32),
    Column("64KiB", "64 clients, 64 KiB", 64, bytes=64 * 1024),
]

Figures = dict[str, dict[str, list[Load]]]  # by column and server, one for each round


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    keys = [column.key for column in COLUMNS]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round (2)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="servers")
    parser.add_argument("--columns", nargs="+", choices=keys, default=keys, metavar="KEY")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (SVG)")
    report.add_output(parser)


def measure_one(name: str, column: Column, seconds: float) -> Load:
    """One server under one load. With one client each has a processor of its own."""
    cpus = processors()
    apart = column.clients == 1 and len(cpus) > 1
    shape = Shape(
        clients=column.clients,
        in_flight=column.in_flight,
        bytes=column.bytes,
        seconds=seconds,
        cpu=cpus[1] if apart else None,
    )
    with serving(name, cpu=cpus[0] if apart else None) as server:
        return drive(server, shape)


def measure(servers: list[Contestant], options: argparse.Namespace) -> Figures:
    """All rounds."""
    figures: Figures = {}
    for number in range(options.rounds):
        for column in COLUMNS:
            if column.key not in options.columns:
                continue
            loads = figures.setdefault(column.key, defaultdict(list))
            print(f"round {number + 1} of {options.rounds}: {column.title}", file=sys.stderr)
            for server in servers:
                load = measure_one(server.name, column, options.seconds)
                if load.faults():
                    print(f"  {server.name}: {load.faults()}", file=sys.stderr)
                loads[server.name].append(load)
    return figures


def ratios(figures: Figures, column: str, server: str) -> list[float]:
    """To raw in the same round."""
    loads = figures[column]
    return [
        load.rps / raw.rps for load, raw in zip(loads[server], loads[RAW], strict=True) if raw.rps
    ]


def table(figures: Figures, servers: list[Contestant]) -> report.Table:
    """A row for each server, and one with raw's requests a second."""
    columns = [column for column in COLUMNS if column.key in figures]
    rows = []
    for server in servers:
        cells = [
            ("1" if server.name == RAW else report.spread(ratios(figures, column.key, server.name)))
            + (" !" if faulty(figures, column.key, server.name) else "")
            for column in columns
        ]
        mark = "" if is_lean(server.protocol) else " *"
        rows.append([server.name + mark, *cells])
    raw = [statistics.median(load.rps for load in figures[c.key][RAW]) for c in columns]
    rows.append(["raw, requests a second", *(f"{rps:,.0f}" for rps in raw)])
    head = ["server", *(column.title for column in columns)]
    return report.Table(head, rows, note=notes(rows))


def faulty(figures: Figures, column: str, server: str) -> bool:
    """Whether any reply was wrong or missing."""
    return any(load.faults() for load in figures[column][server])


def notes(rows: list[list[str]]) -> str:
    """What the marks in the table mean, as far as it has them."""
    lines = ["Ratio to raw in the same round: median (least..greatest)."]
    if any(row[0].endswith("*") for row in rows):
        lines.append(
            "`*`: loaded by Python clients in up to two processes, which cost more than the C "
            "generator; a lower bound."
        )
    if any(cell.endswith("!") for row in rows for cell in row):
        lines.append("`!`: there were wrong or missing replies.")
    return " ".join(lines)


def plot(figures: Figures, servers: list[Contestant], file: Path) -> None:
    """Draw a panel for each column, with a bar for each server."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "trioreq"  # the same figures make the same file
    from matplotlib import pyplot as plt

    columns = [column for column in COLUMNS if column.key in figures]
    figure, panels = plt.subplots(
        1,
        len(columns),
        sharey=True,
        squeeze=False,
        figsize=(3 * len(columns) + 1.5, 0.35 * len(servers) + 1),
        layout="constrained",
    )
    names = [server.name for server in servers]
    colors = ["#1b6ca8" if name.startswith("trioreq") else "#b0b7bf" for name in names]
    for panel, column in zip(panels[0], columns, strict=True):
        values = [ratios(figures, column.key, name) for name in names]
        medians = [statistics.median(value) for value in values]
        below = [median - min(value) for median, value in zip(medians, values, strict=True)]
        above = [max(value) - median for median, value in zip(medians, values, strict=True)]
        panel.barh(names, medians, xerr=[below, above], color=colors, ecolor="#444444")
        panel.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
        panel.set_title(column.title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    figure.supxlabel("requests a second, as a ratio to raw (lines: least to greatest)", fontsize=9)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    servers = chosen(options.only)
    figures = measure(servers, options)
    told = {
        column: {name: [vars(load) for load in loads] for name, loads in by_server.items()}
        for column, by_server in figures.items()
    }
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure."
    if options.plot:
        plot(figures, servers, options.plot)
    report.show(options, "throughput", how, [table(figures, servers)], told, options.plot)
    return 0
