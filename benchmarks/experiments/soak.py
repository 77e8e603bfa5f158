"""A hundred thousand clients that ask and die: what is left of them in the server?

    python -m benchmarks soak [--clients 100000] [--plot docs/soak.svg]

The server is a process of its own that serves async handlers on one address and plain functions
on another. The clients are processes in groups that are killed with SIGKILL, and connections that
are reset, half of each. They ask for handlers of all kinds: those that answer at once, that take
their time, that shield themselves, and plain functions that check for cancellation and that do
not. Memory is what the server has resident after `malloc_trim(0)`.

It fails if memory grows by more than 10 MB after the first clients, if a descriptor, a task or a
thread stays, if the statistics do not add up, or if a new client is not answered at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio

from harness.measurements.soak import MB, Report, soak

from ..shared.drawing import drawing


def plot(report: Report, file: Path) -> None:
    """Draw memory over deaths."""
    with drawing(file) as axes:
        axes.plot(*zip(*((died, size / MB) for died, size in report.memory), strict=True))
        axes.set_xlabel("clients that have died")
        axes.set_ylabel("resident memory, MB")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=5_000, help="compare with so many")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw memory into")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    report = trio.run(soak, options.clients, options.first)
    print(report)
    if options.plot:
        plot(report, options.plot)
    for fault in report.faults():
        print(fault, file=sys.stderr)
    return 1 if report.faults() else 0
