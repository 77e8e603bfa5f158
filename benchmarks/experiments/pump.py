"""The same crashes on the classic pump and on trioreq: which one works for dead clients?

    python -m benchmarks pump [--clients 10000] [--plot docs/pump.svg]

The classic server is what ZeroMQ's guide has for many workers: a ROUTER in front, a DEALER behind,
`zmq.proxy` between them, and REP workers in threads. trioreq runs plain functions in as many
threads. The work is the same: 20 steps of 10 ms; trioreq's function calls check_cancelled
between them. Clients ask for it in groups and are killed with SIGKILL, 250 a second, which is more
than the threads can work off. Meanwhile live clients ask for an echo, again and again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from harness.measurements.pump import STEPS, Report, measure

from ..shared.drawing import drawing


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
    reports = [
        trio.run(measure, name, options.clients, options.steps) for name in ("classic", "trioreq")
    ]
    classic, ours = (report.figures() for report in reports)
    print(f"{'':46} {'classic':>14} {'trioreq':>14}")
    for what, figure in classic.items():
        print(f"{what:46} {figure:>14} {ours[what]:>14}")
    if options.plot:
        plot(reports, options.plot)
    return 0
