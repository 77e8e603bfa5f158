"""The same crashes on the classic pump, the gateway and trioreq: which works for dead clients?

    python -m benchmarks pump [--clients 10000] [--plot docs/pump.svg]

The classic server is what ZeroMQ's guide has for many workers: a ROUTER in front, a DEALER behind,
`zmq.proxy` between them, and REP workers in threads. The gateway is in front of the same workers,
which bind. trioreq runs plain functions in as many threads. The first column has the classic server
without deaths. The work is the same: 20 steps of 10 ms; trioreq's function calls check_cancelled
between them. Clients ask for it in groups and are killed with SIGKILL, 250 a second, which is more
than the threads can work off. Meanwhile live clients ask for an echo, again and again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from harness.measurements.pump import STEPS, Report, measure

from ..shared.drawing import drawing

NAMES = ("classic", "gateway", "trioreq")


def plot(reports: list[Report], file: Path) -> None:
    """Draw what the living waited."""
    with drawing(file) as axes:
        for report in reports:
            first = report.waits.ends[0]
            # The longest of each tenth of a second is enough to draw.
            longest: dict[int, float] = {}
            for wait, end in zip(report.waits.waits, report.waits.ends, strict=True):
                tenth = int((end - first) * 10)
                longest[tenth] = max(wait, longest.get(tenth, 0.0))
            axes.semilogy(
                [tenth / 10 for tenth in longest],
                [wait * 1000 for wait in longest.values()],
                label=report.name,
            )
        axes.set_xlabel("seconds; clients die all the while")
        axes.set_ylabel("longest wait of the living, ms")
        axes.legend()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=10_000, help="that die")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 10 ms, that each has for work")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw the waits into")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    calm = trio.run(measure, "classic", 0, options.steps)
    reports = [trio.run(measure, name, options.clients, options.steps) for name in NAMES]
    columns = [report.figures() for report in (calm, *reports)]
    print(f"{'':46}" + "".join(f" {name:>14}" for name in ("no deaths", *NAMES)))
    for what in columns[0]:
        print(f"{what:46}" + "".join(f" {figures[what]:>14}" for figures in columns))
    if options.plot:
        plot(reports, options.plot)
    return 0
